//! CPU time of threads and processes.
//!
//! A thread's time runs while the executor polls its task: in the program, and in the kernel on its
//! behalf. The two are not told apart; all counts as the program's.

use core::future::{Future, poll_fn};
use core::pin::pin;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use hal::Instant;

use crate::platform::Platform;
use crate::process::Node;
use crate::thread::Thread;

/// The time that a thread has had.
#[derive(Debug, Default)]
pub(crate) struct ThreadTime {
    nanos: AtomicU64,
    /// The time at which it got the CPU, in nanoseconds; 0 while it has none.
    since: AtomicU64,
}

impl ThreadTime {
    fn begin(&self, now: Instant) {
        self.since.store(now.nanos.max(1), Ordering::Relaxed);
    }

    /// Ends a turn; returns how long it was, in nanoseconds.
    pub(crate) fn end(&self, now: Instant) -> u64 {
        let since = self.since.swap(0, Ordering::Relaxed);
        // A thread that moved has ended its turn already.
        if since == 0 {
            return 0;
        }
        let ran = now.nanos.saturating_sub(since);
        self.nanos.fetch_add(ran, Ordering::Relaxed);
        ran
    }

    /// Ends a turn and begins another; returns how long the first was, in nanoseconds.
    pub(crate) fn split(&self, now: Instant) -> u64 {
        let ran = self.end(now);
        self.begin(now);
        ran
    }

    /// Returns the time, the current turn's included.
    pub(crate) fn total(&self, now: Instant) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed)) + self.turn(now)
    }

    /// Returns whether the thread has the CPU.
    pub(crate) fn is_running(&self) -> bool {
        self.since.load(Ordering::Relaxed) != 0
    }

    /// Returns how long the current turn has been.
    pub(crate) fn turn(&self, now: Instant) -> Duration {
        match self.since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_nanos(now.nanos.saturating_sub(since)),
        }
    }
}

/// The time that a process has had: its threads' turns that are over, and its children's that it
/// waited for.
#[derive(Debug)]
pub(crate) struct ProcessTime {
    nanos: AtomicU64,
    children: AtomicU64,
    /// The time at which a timer expires or a limit is reached.
    limit: AtomicU64,
}

impl Default for ProcessTime {
    fn default() -> Self {
        Self {
            nanos: AtomicU64::new(0),
            children: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
        }
    }
}

impl ProcessTime {
    /// Adds a turn; returns the time in all if the limit is reached.
    pub(crate) fn add(&self, nanos: u64) -> Option<Instant> {
        let total = self.nanos.fetch_add(nanos, Ordering::Relaxed) + nanos;
        (total >= self.limit.load(Ordering::Relaxed)).then(|| Instant::from_nanos(total))
    }

    /// Returns the time of the turns that are over.
    pub(crate) fn total(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    /// Returns the time of children that were waited for.
    pub(crate) fn of_children(&self) -> Duration {
        Duration::from_nanos(self.children.load(Ordering::Relaxed))
    }

    /// Adds a child's time, its own children's included.
    pub(crate) fn add_child(&self, child: &Self) {
        let time = child.nanos.load(Ordering::Relaxed) + child.children.load(Ordering::Relaxed);
        self.children.fetch_add(time, Ordering::Relaxed);
    }

    /// Sets the time at which [`add`](Self::add) says that it is reached.
    pub(crate) fn set_limit(&self, at: Option<Instant>) {
        let at = at.map_or(u64::MAX, |at| at.nanos);
        self.limit.store(at, Ordering::Relaxed);
    }
}

impl<N: Node> Thread<N> {
    /// Runs the thread to its end, and measures its turns.
    pub async fn run(self) {
        let (process, shared) = (self.process.clone(), self.shared.clone());
        let platform = process.node.platform();
        let mut life = pin!(self.live());
        poll_fn(|context| {
            let core = shared.core();
            if process.node.kernel().cores.begin_turn(core, shared.tid()) {
                shared.note_turn_of_other();
            }
            shared.time.begin(platform.now());
            let polled = life.as_mut().poll(context);
            let ran = shared.time.end(platform.now());
            process.node.kernel().cores.end_turn(core, ran);
            if let Some(total) = process.cpu_time.add(ran) {
                process.expire_cpu_timers(total);
            }
            polled
        })
        .await;
    }

    /// Returns the CPU time of the process, this thread's current turn included.
    pub(crate) fn process_time(&self) -> Duration {
        self.process.cpu_time.total() + self.shared.time.turn(self.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_counts_while_it_lasts_and_afterwards() {
        let time = ThreadTime::default();
        let at = Instant::from_nanos;
        time.begin(at(100));
        assert_eq!(time.total(at(130)), Duration::from_nanos(30));
        assert_eq!(time.end(at(150)), 50);
        assert_eq!(time.end(at(160)), 0);
        assert_eq!(time.total(at(900)), Duration::from_nanos(50));
    }

    #[test]
    fn the_limit_is_told_of_when_it_is_reached() {
        let (time, parent) = (ProcessTime::default(), ProcessTime::default());
        time.set_limit(Some(Instant::from_nanos(100)));
        assert_eq!(time.add(60), None);
        assert_eq!(time.add(60), Some(Instant::from_nanos(120)));
        parent.add_child(&time);
        assert_eq!(parent.of_children(), Duration::from_nanos(120));
    }
}
