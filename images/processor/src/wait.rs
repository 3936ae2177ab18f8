//! Waiting: queues of tasks that wait for something to change, and gates that one passes at a time.

use alloc::vec::Vec;
use core::future::poll_fn;
use core::pin::pin;
use core::task::{Poll, Waker};

use locks::{AtomicBool, AtomicU64, Mutex, Ordering};

/// Tasks that wait for something to change.
///
/// A change is followed by [`wake`](Self::wake), after which waiters check their condition again.
#[derive(Debug, Default)]
pub struct WaitQueue {
    wakers: Mutex<Vec<Waker>>,
    changes: AtomicU64,
}

impl WaitQueue {
    /// Returns a queue without waiters.
    const fn new() -> Self {
        Self {
            wakers: Mutex::new(Vec::new()),
            changes: AtomicU64::new(0),
        }
    }

    /// Wakes all that wait.
    pub fn wake(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        let mut wakers = self.wakers.lock();
        if !wakers.is_empty() {
            let taken = core::mem::take(&mut *wakers);
            drop(wakers);
            taken.into_iter().for_each(Waker::wake);
        }
    }

    /// Returns the number of wake-ups, by which a waiter sees a change since its last check.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Keeps a waker until the next [`wake`](Self::wake). Look at what is waited for after this.
    pub fn register(&self, waker: &Waker) {
        let mut wakers = self.wakers.lock();
        if !wakers.iter().any(|known| known.will_wake(waker)) {
            wakers.push(waker.clone());
        }
    }

    /// Waits until `look` gives something.
    pub async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        poll_fn(|context| {
            if let Some(found) = look() {
                return Poll::Ready(found);
            }
            self.register(context.waker());
            look().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// Waits for either of two; returns what the first gave, or `None` if the second ended before.
pub async fn either<T>(
    first: impl Future<Output = T>,
    second: impl Future<Output = ()>,
) -> Option<T> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|context| match first.as_mut().poll(context) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => second.as_mut().poll(context).map(|()| None),
    })
    .await
}

/// A lock that tasks hold across waits.
#[derive(Debug, Default)]
pub struct Gate {
    taken: AtomicBool,
    queue: WaitQueue,
}

impl Gate {
    /// Returns a free gate.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            queue: WaitQueue::new(),
        }
    }

    /// Waits for the gate.
    pub async fn pass(&self) -> Pass<'_> {
        self.queue.until(|| self.try_pass()).await
    }

    /// Enters the gate if it is free.
    pub fn try_pass(&self) -> Option<Pass<'_>> {
        let free = self
            .taken
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        free.ok().map(|_| Pass(self))
    }
}

/// The right to be in a gate, until it is dropped.
#[derive(Debug)]
pub struct Pass<'a>(&'a Gate);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.taken.store(false, Ordering::Release);
        self.0.queue.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Context, Wake};

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn one_passes_at_a_time_and_the_next_is_woken() {
        let (gate, count) = (Gate::default(), Arc::new(Count::default()));
        let waker = Waker::from(count.clone());
        let mut context = Context::from_waker(&waker);
        let first = gate.try_pass().unwrap();
        let mut second = pin!(gate.pass());
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert!(second.as_mut().poll(&mut context).is_pending());
        drop(first);
        assert_eq!(count.0.load(Ordering::SeqCst), 1, "a waker is kept once");
        assert!(second.as_mut().poll(&mut context).is_ready());
        assert!(gate.try_pass().is_some(), "the second has left again");
    }
}
