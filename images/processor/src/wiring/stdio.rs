//! P's clock, RNG and console channel.

use alloc::vec::Vec;
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;

use console::Start;

use hal::Instant;
use libos::CommandLine;
use node::Error;
use processor::vdso::{self, VdsoParts};
use processor::{CpuFacts, Platform};

use super::Parts;
use super::streams::{Reader, Writer};

/// Bytes that are taken from the channel at once.
const PIECE: usize = 4096;
/// The time that the host may take to say what to run.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// Clock and RNG.
pub(crate) struct Machine {
    /// The time since 1970 when the machine's clock began.
    epoch: Duration,
}

impl Machine {
    /// Reads `clock=`, the seconds since 1970, from the command line.
    ///
    /// # Errors
    ///
    /// When it is no number.
    pub(crate) fn new(line: &CommandLine) -> Result<Self, Error> {
        let clock = Duration::from_secs(line.parsed("clock")?.unwrap_or(0));
        let epoch = clock.saturating_sub(Duration::from_nanos(libos::now().nanos));
        Ok(Self { epoch })
    }
}

/// Waits for the host to say what to run; `None` if it does not.
pub(crate) async fn start(parts: &'static Parts) -> Option<Start> {
    let mut said = pin!(parts.kernel.console().start());
    let mut late = pin!(libos::sleep_until(libos::now() + START_PATIENCE));
    poll_fn(|context| match said.as_mut().poll(context) {
        Poll::Ready(start) => Poll::Ready(start),
        Poll::Pending => late.as_mut().poll(context).map(|()| None),
    })
    .await
}

/// Takes what comes from the host, for ever.
pub(crate) async fn receive(parts: &'static Parts, mut reader: Reader) {
    let console = parts.kernel.console();
    let mut came = [0; PIECE];
    loop {
        let taken = match reader.read(&mut came).await {
            Ok(count) => console
                .take(&came[..count])
                .map_err(|error| log::error!("console: {error}")),
            Err(error) => {
                log::error!("console: {error}");
                console.lose();
                Err(())
            }
        };
        parts.kernel.send_terminals_signals();
        if taken.is_err() {
            return;
        }
    }
}

/// Gives the host what there is for it, for ever.
pub(crate) async fn send(parts: &'static Parts, mut writer: Writer) {
    let console = parts.kernel.console();
    let mut bytes = Vec::new();
    loop {
        console.output(&mut bytes).await;
        if let Err(error) = writer.write(&bytes).await {
            log::error!("console: {error}");
            console.lose();
            return;
        }
        bytes.clear();
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
}
