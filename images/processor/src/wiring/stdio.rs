//! The program's standard streams, clock and chance.

use core::future::Future;
use core::pin::pin;
use core::task::{Context, Waker};
use core::time::Duration;

use hal::Instant;
use libos::CommandLine;
use libos::virtio::{self, Reader, Writer};
use node::Error;
use processor::vdso::{self, VdsoParts};
use processor::wait::{Gate, Pass};
use processor::{CpuFacts, Input, Platform, Stream};
use spin::Mutex;

/// Clock, RNG and the two consoles: the first is stdout and stdin, the second stderr.
pub(crate) struct Machine {
    stdin: Console<Reader>,
    stdout: Console<Writer>,
    stderr: Console<Writer>,
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
            stdin: Console::new(stdout.reader),
            stdout: Console::new(stdout.writer),
            stderr: Console::new(stderr.writer),
            input: Mutex::default(),
            epoch,
        })
    }
}

/// One end of a console, which one task uses at a time.
struct Console<T> {
    gate: Gate,
    end: Mutex<Option<T>>,
}

/// An end of a console in use; it goes back when this is dropped, also in the middle of a wait.
struct InUse<'a, T> {
    console: &'a Console<T>,
    end: Option<T>,
    _pass: Pass<'a>,
}

impl<T> Console<T> {
    fn new(end: T) -> Self {
        Self {
            gate: Gate::default(),
            end: Mutex::new(Some(end)),
        }
    }

    async fn take(&self) -> InUse<'_, T> {
        self.with(self.gate.pass().await)
    }

    fn try_take(&self) -> Option<InUse<'_, T>> {
        self.gate.try_pass().map(|pass| self.with(pass))
    }

    fn with<'a>(&'a self, pass: Pass<'a>) -> InUse<'a, T> {
        InUse {
            console: self,
            end: self.end.lock().take(),
            _pass: pass,
        }
    }
}

impl<T> InUse<'_, T> {
    fn get(&mut self) -> &mut T {
        self.end.as_mut().expect("whoever passed the gate has it")
    }
}

impl<T> Drop for InUse<'_, T> {
    fn drop(&mut self) {
        *self.console.end.lock() = self.end.take();
    }
}

impl Platform for Machine {
    fn vdso(&self) -> VdsoParts {
        const { assert!(vdso::CODE == libos::vdso::CODE_OFFSET) };
        let words = libos::vdso::data(self.epoch);
        VdsoParts {
            code: libos::vdso::code(),
            functions: libos::vdso::functions().to_vec(),
            data: words.iter().flat_map(|word| word.to_le_bytes()).collect(),
        }
    }

    fn cpu(&self) -> CpuFacts {
        super::cpu::facts()
    }

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
            let mut stdin = self.stdin.take().await;
            // Another task may have read meanwhile.
            if self.input.lock().ready() {
                continue;
            }
            match stdin.get().read(&mut came).await {
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
        // Whoever reads takes what comes.
        let Some(mut stdin) = self.stdin.try_take() else {
            return self.input.lock().ready();
        };
        // Dropping the read loses nothing: what came is kept by the console.
        let polled = pin!(stdin.get().read(&mut came)).poll(&mut Context::from_waker(Waker::noop()));
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
        if let Err(error) = place.take().await.get().write(bytes).await {
            log::error!("{stream:?}: {error}");
        }
    }
}
