//! The program's standard streams, clock and chance.

use core::future::Future;
use core::pin::pin;
use core::task::{Context, Waker};
use core::time::Duration;

use hal::Instant;
use libos::CommandLine;
use libos::virtio::{self, Reader, Writer};
use node::Error;
use processor::{Input, Platform, Stream};
use spin::Mutex;

/// Clock, chance and the two consoles: the first is stdout and stdin, the second stderr.
///
/// A program has one thread, so a console is in one hand at a time: it is taken out for as long as it is used.
pub(crate) struct Machine {
    stdin: Mutex<Option<Reader>>,
    stdout: Mutex<Option<Writer>>,
    stderr: Mutex<Option<Writer>>,
    input: Mutex<Input>,
    /// The time since 1970 when the machine's clock began.
    epoch: Duration,
}

impl Machine {
    /// Finds the consoles; `clock=` on the command line gives the seconds since 1970.
    ///
    /// # Errors
    ///
    /// When a console is missing or broken, or `clock=` is no number.
    pub(crate) fn new(line: &CommandLine) -> Result<Self, Error> {
        let mut consoles = virtio::consoles()?.into_iter();
        let mut next = |name| {
            let missing = || Error::Role(alloc::format!("no virtio console for {name}"));
            consoles.next().ok_or_else(missing)
        };
        let (stdout, stderr) = (next("stdout and stdin")?, next("stderr")?);
        let clock = Duration::from_secs(line.parsed("clock")?.unwrap_or(0));
        let epoch = clock.saturating_sub(Duration::from_nanos(libos::now().nanos));
        Ok(Self {
            stdin: Mutex::new(Some(stdout.reader)),
            stdout: Mutex::new(Some(stdout.writer)),
            stderr: Mutex::new(Some(stderr.writer)),
            input: Mutex::default(),
            epoch,
        })
    }

    fn in_use() -> ! {
        panic!("two tasks use a program's console at once")
    }
}

impl Platform for Machine {
    fn now(&self) -> Instant {
        libos::now()
    }

    fn wall_clock(&self) -> Duration {
        self.epoch + Duration::from_nanos(libos::now().nanos)
    }

    fn random(&self, into: &mut [u8]) {
        libos::random_bytes(into);
    }

    async fn sleep_until(&self, until: Instant) {
        libos::sleep_until(until).await;
    }

    async fn yield_now(&self) {
        libos::yield_now().await;
    }

    async fn read_stdin(&self, into: &mut [u8]) -> usize {
        loop {
            {
                let mut input = self.input.lock();
                let count = input.read(into);
                if count > 0 || input.ended() || into.is_empty() {
                    return count;
                }
            }
            let mut came = [0; 4096];
            let taken = self.stdin.lock().take();
            let Some(mut stdin) = taken else { Self::in_use() };
            let got = stdin.read(&mut came).await;
            *self.stdin.lock() = Some(stdin);
            match got {
                Ok(count) => self.input.lock().take(&came[..count]),
                Err(error) => {
                    log::error!("stdin: {error}");
                    self.input.lock().end();
                }
            }
        }
    }

    fn stdin_ready(&self) -> bool {
        let mut came = [0; 4096];
        let mut stdin = self.stdin.lock();
        let Some(stdin) = stdin.as_mut() else {
            Self::in_use()
        };
        // Dropping the read loses nothing: what came is kept by the console.
        let polled = pin!(stdin.read(&mut came)).poll(&mut Context::from_waker(Waker::noop()));
        let mut input = self.input.lock();
        if let core::task::Poll::Ready(Ok(count)) = polled {
            input.take(&came[..count]);
        }
        input.ready()
    }

    async fn write(&self, stream: Stream, bytes: &[u8]) {
        let place = match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        };
        let taken = place.lock().take();
        let Some(mut console) = taken else { Self::in_use() };
        let written = console.write(bytes).await;
        *place.lock() = Some(console);
        if let Err(error) = written {
            log::error!("{stream:?}: {error}");
        }
    }
}
