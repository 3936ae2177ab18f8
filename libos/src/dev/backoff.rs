//! Polling a device that may answer soon or late: [`Backoff`].

use hal::{Duration, Instant};

use crate::task::{executor, time, timer};

/// Polls by yielding at first, then after sleeps that double.
pub(crate) struct Backoff {
    start: Instant,
    /// Time for which the core stays awake.
    awake: Duration,
    sleep: Duration,
    longest: Duration,
}

impl Backoff {
    /// Stays awake for `awake`, then sleeps from `shortest` to `longest`.
    pub(crate) fn new(awake: Duration, shortest: Duration, longest: Duration) -> Self {
        Self {
            start: time::now(),
            awake,
            sleep: shortest,
            longest,
        }
    }

    /// Returns the time since the first look.
    pub(crate) fn waited(&self) -> Duration {
        time::now().since(self.start)
    }

    /// Waits until the next look.
    pub(crate) async fn wait(&mut self) {
        if self.waited() < self.awake {
            executor::yield_now().await;
        } else {
            timer::sleep(self.sleep).await;
            self.sleep = (self.sleep * 2).min(self.longest);
        }
    }
}
