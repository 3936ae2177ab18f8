//! Each core's sleeping tasks.

use alloc::collections::BTreeMap;
use core::pin::Pin;
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::{Context, Poll, Waker};

use hal::{Duration, Instant};
use spin::Mutex;

use crate::cpu::apic;
use crate::cpu::core_local::{self, CoreLocal};
use crate::task::time;

/// The tasks of one core that wait for a time.
pub(crate) struct Timers {
    /// By deadline and a number that makes it unique. The heap's lock is taken under it, and no
    /// other.
    waiting: Mutex<BTreeMap<(u64, u64), Waker>>,
    /// The first deadline, for a look without the lock; `u64::MAX` for none.
    next: AtomicU64,
}

impl Timers {
    pub(crate) fn new() -> Self {
        Self {
            waiting: Mutex::new(BTreeMap::new()),
            next: AtomicU64::new(u64::MAX),
        }
    }

    /// The first deadline in nanoseconds.
    pub(crate) fn next(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// Wakes the tasks whose time has come.
    pub(crate) fn fire(&self, now: Instant) {
        while self.next() <= now.nanos {
            let due = self.update(|waiting| waiting.pop_first());
            if let Some((_, waker)) = due {
                waker.wake();
            }
        }
    }

    fn update<R>(&self, change: impl FnOnce(&mut BTreeMap<(u64, u64), Waker>) -> R) -> R {
        let mut waiting = self.waiting.lock();
        let result = change(&mut waiting);
        let next = waiting.first_key_value().map_or(u64::MAX, |(key, _)| key.0);
        self.next.store(next, Ordering::Release);
        result
    }
}

/// Makes this core's timer fire at `deadline` (nanoseconds) or a little later.
pub(crate) fn arm(core: &CoreLocal, deadline: u64) {
    if core.armed.get() == deadline {
        return;
    }
    core.armed.set(deadline);
    let left = deadline.saturating_sub(time::now().nanos);
    apic::set_timer(if deadline == u64::MAX {
        0
    } else {
        time::timer_count(left)
    });
}

/// Serves the timer's interrupt.
pub(crate) fn interrupt(core: &CoreLocal) {
    core.armed.set(u64::MAX);
    // The wakers only queue tasks: nothing of a task runs in the interrupt.
    core.timers.fire(time::now());
}

/// Waits until `deadline`. See [`sleep_until`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Sleep {
    deadline: u64,
    /// Place in a core's timers: the core and the key; `None` if it is in none.
    place: Option<(usize, (u64, u64))>,
}

/// Waits until `deadline` or a little later.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep {
        deadline: deadline.nanos,
        place: None,
    }
}

/// Waits for `span` or a little longer.
pub fn sleep(span: Duration) -> Sleep {
    sleep_until(time::now() + span)
}

impl Sleep {
    fn leave(&mut self) {
        if let Some((core, key)) = self.place.take()
            && let Some(core) = core_local::get(core)
        {
            core.timers.update(|waiting| waiting.remove(&key));
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        self.leave();
        if time::now().nanos >= self.deadline {
            return Poll::Ready(());
        }
        let core = core_local::this();
        let key = (self.deadline, NUMBER.fetch_add(1, Ordering::Relaxed));
        core.timers
            .update(|waiting| waiting.insert(key, context.waker().clone()));
        self.place = Some((core.index, key));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.leave();
    }
}
