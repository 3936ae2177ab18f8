//! The polling task of each core, which rests when nothing comes.

use core::future::poll_fn;
use core::pin::pin;

use futures_util::future::{Either, select};
use hal::{Duration, Instant, Platform};
use verbs::{Device, Failure};

use crate::shared::CoreMutex;
use crate::{AccessEnd, Error, Fit, Handler, ProfilePoint};

/// Bounds the sleep of a core when no interrupt comes: the bound on a lost one.
const IDLE: Duration = Duration::from_millis(100);

/// Completion sources that a core polls beside its own connections, as its [page
/// paths](crate::PagePath).
pub trait CompletionSource {
    /// Looks; returns whether anything has happened.
    fn look(&mut self, now: Instant) -> bool;
    /// Asks for an interrupt by the core's vector when there is something to look at.
    fn arm(&mut self);
}

/// Nothing beside.
impl CompletionSource for () {
    fn look(&mut self, _: Instant) -> bool {
        false
    }
    fn arm(&mut self) {}
}

impl<D: Device, P: Platform> Fit<D, P> {
    /// A core's data-path task: polls completions, and waits for the core's interrupt when none
    /// come. Spawned once for each core.
    ///
    /// # Errors
    ///
    /// When the device can't wait for the interrupt any more; it never ends otherwise.
    pub async fn run_core(&self, index: u16) -> Result<(), Error> {
        self.run_core_with(index, |_, _| {}).await
    }

    /// Does what [`run_core`](Self::run_core) does, and hands each [`AccessEnd`] to `sink`, with
    /// the time. The sink runs with no lock held and may start the next access.
    ///
    /// # Errors
    ///
    /// As for [`run_core`](Self::run_core).
    pub async fn run_core_with(
        &self,
        index: u16,
        sink: impl FnMut(AccessEnd, Instant),
    ) -> Result<(), Error> {
        self.run_core_beside(index, sink, ()).await
    }

    /// Does what [`run_core_with`](Self::run_core_with) does, and looks at `beside` each time that
    /// the core looks: before the core rests both are armed, and an interrupt of either ends the
    /// rest.
    ///
    /// # Errors
    ///
    /// As for [`run_core`](Self::run_core).
    pub async fn run_core_beside(
        &self,
        index: u16,
        mut sink: impl FnMut(AccessEnd, Instant),
        mut beside: impl CompletionSource,
    ) -> Result<(), Error> {
        let engine = &self.0.cores[usize::from(index)];
        let vector = self.0.config.first_vector + index;
        let budget = self.0.config.polling.budget();
        let mut empty = 0;
        loop {
            let any = self.poll_core(index, &mut sink, &mut beside);
            if !any && self.0.has_ended() {
                let why = *self.0.ended.lock();
                return Err(why.unwrap_or(verbs::Error::Failed(Failure::Unknown)).into());
            }
            empty = if any { 0 } else { empty + 1 };
            if any || budget.is_none_or(|budget| empty < budget) {
                self.0.platform.sleep(Duration::ZERO).await;
                continue;
            }
            empty = 0;
            engine.lock().arm();
            beside.arm();
            // A completion that came between the last poll and the arming is taken here.
            if !self.poll_core(index, &mut sink, &mut beside) {
                engine.lock().count_interrupt_wait();
                self.rest(engine, vector).await?;
            }
        }
    }

    /// Does what [`run_core_with`](Self::run_core_with) does, with `handler` at work in the same
    /// task, on one message at a time: what [`Config::workers`](crate::Config::workers) of 0 stands
    /// for. While a handler waits for something, polling goes on.
    ///
    /// # Errors
    ///
    /// As for [`run_core`](Self::run_core).
    pub async fn run_core_serving<H: Handler>(
        &self,
        index: u16,
        handler: &H,
        sink: impl FnMut(AccessEnd, Instant),
    ) -> Result<(), Error> {
        let core = self.core(index);
        let polling = pin!(self.run_core_with(index, sink));
        let serving = pin!(core.serve(handler));
        match select(polling, serving).await {
            Either::Left((ended, _)) => ended,
            Either::Right(((), polling)) => polling.await,
        }
    }

    /// Takes what completed; returns whether anything did.
    fn poll_core(
        &self,
        index: u16,
        sink: &mut impl FnMut(AccessEnd, Instant),
        beside: &mut impl CompletionSource,
    ) -> bool {
        let index = usize::from(index);
        let (engine, profile) = (&self.0.cores[index], &self.0.profiles[index]);
        let now = self.0.platform.now();
        let mut any = engine.lock().poll(now) > 0;
        while let Some(ended) = { engine.lock().take_ended() } {
            any = true;
            sink(ended, now);
        }
        if any {
            profile.end(ProfilePoint::Poll, profile.begin(|| now), || {
                self.0.platform.now()
            });
        }
        any | beside.look(now)
    }

    /// Waits until the interrupt comes or something is started, at most for a while.
    async fn rest(&self, engine: &CoreMutex<D, P>, vector: u16) -> Result<(), Error> {
        let started = pin!(poll_fn(|context| engine
            .lock()
            .poll_started(context.waker())));
        let nap = pin!(self.0.platform.sleep(IDLE));
        let interrupt = pin!(self.0.device.wait_completion(vector));
        match select(interrupt, select(nap, started)).await {
            Either::Left((result, _)) => Ok(result?),
            Either::Right(_) => Ok(()),
        }
    }
}
