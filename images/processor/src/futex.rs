//! Futexes: words of memory that threads wait on.
//!
//! A waiter is queued under its bucket's lock after the word was seen to hold what was expected,
//! and a waker changes the word first: so no wake is lost (Linux `Documentation/locking/futex`).

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::task::Waker;

use locks::{AtomicBool, Mutex, MutexGuard, Ordering};
use pcache::SpaceId;

/// Buckets; a power of two.
const BUCKETS: usize = 64;
/// A wake or wait for any bit.
pub(crate) const ANY: u32 = u32::MAX;

/// The word that is waited on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Key {
    /// A word of one address space.
    Private(SpaceId, u64),
    /// A word of a shared object, by the object's place in memory and the byte.
    Shared(usize, u64),
}

impl Key {
    fn bucket(self) -> usize {
        let (Self::Private(_, word) | Self::Shared(_, word)) = self;
        // Fibonacci hashing (Knuth, volume 3, 6.4); words are four bytes apart.
        ((word / 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize % BUCKETS
    }
}

/// A waiter's place in a queue.
#[derive(Debug)]
pub(crate) struct Waiter {
    key: Mutex<Key>,
    bits: u32,
    woken: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Waiter {
    /// Returns whether it was woken; keeps the waker if not.
    pub(crate) fn poll(&self, waker: &Waker) -> bool {
        if self.woken.load(Ordering::Acquire) {
            return true;
        }
        *self.waker.lock() = Some(waker.clone());
        self.woken.load(Ordering::Acquire)
    }

    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        if let Some(waker) = self.waker.lock().take() {
            waker.wake();
        }
    }
}

type Queue = VecDeque<Arc<Waiter>>;

/// All queues.
#[derive(Debug)]
pub(crate) struct Futexes([Mutex<Queue>; BUCKETS]);

impl Default for Futexes {
    fn default() -> Self {
        Self([const { Mutex::new(VecDeque::new()) }; BUCKETS])
    }
}

impl Futexes {
    /// Queues a waiter if `expected` still holds, asked with the bucket locked.
    pub(crate) fn wait(
        &self,
        key: Key,
        bits: u32,
        expected: impl FnOnce() -> bool,
    ) -> Option<Arc<Waiter>> {
        let mut queue = self.0[key.bucket()].lock();
        if !expected() {
            return None;
        }
        let waiter = Arc::new(Waiter {
            key: Mutex::new(key),
            bits,
            woken: AtomicBool::new(false),
            waker: Mutex::default(),
        });
        queue.push_back(waiter.clone());
        Some(waiter)
    }

    /// Takes a waiter out that does not wait any more; false if it was woken before.
    pub(crate) fn cancel(&self, waiter: &Arc<Waiter>) -> bool {
        loop {
            let key = *waiter.key.lock();
            let mut queue = self.0[key.bucket()].lock();
            if *waiter.key.lock() != key {
                continue;
            }
            let before = queue.len();
            queue.retain(|other| !Arc::ptr_eq(other, waiter));
            return queue.len() < before;
        }
    }

    /// Wakes up to `count` waiters whose bits meet `bits`; returns how many.
    pub(crate) fn wake(&self, key: Key, count: u32, bits: u32) -> u32 {
        wake_in(&mut self.0[key.bucket()].lock(), key, count, bits)
    }

    /// Wakes up to `wake` waiters of `from` and moves up to `move_on` others to `to`, if `expected`
    /// holds; returns how many were woken, and how many moved.
    pub(crate) fn requeue(
        &self,
        from: Key,
        to: Key,
        (wake, move_on): (u32, u32),
        expected: impl FnOnce() -> bool,
    ) -> Option<(u32, u32)> {
        let (mut first, mut second) = self.lock_two(from, to);
        if !expected() {
            return None;
        }
        let woken = wake_in(&mut first, from, wake, ANY);
        let mut moved = 0;
        let mut at = 0;
        while moved < move_on && at < first.len() {
            if *first[at].key.lock() != from {
                at += 1;
                continue;
            }
            *first[at].key.lock() = to;
            moved += 1;
            match &mut second {
                Some(second) => second.extend(first.remove(at)),
                None => at += 1,
            }
        }
        Some((woken, moved))
    }

    /// Locks two buckets, the lower one first; `None` for the second if both are one.
    fn lock_two(
        &self,
        from: Key,
        to: Key,
    ) -> (MutexGuard<'_, Queue>, Option<MutexGuard<'_, Queue>>) {
        let (from, to) = (from.bucket(), to.bucket());
        if from == to {
            (self.0[from].lock(), None)
        } else if from < to {
            let first = self.0[from].lock();
            (first, Some(self.0[to].lock()))
        } else {
            let second = self.0[to].lock();
            (self.0[from].lock(), Some(second))
        }
    }
}

fn wake_in(queue: &mut Queue, key: Key, count: u32, bits: u32) -> u32 {
    let mut woken = 0;
    queue.retain(|waiter| {
        let due = woken < count && waiter.bits & bits != 0 && *waiter.key.lock() == key;
        if due {
            waiter.wake();
            woken += 1;
        }
        !due
    });
    woken
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORD: Key = Key::Private(SpaceId(1), 0x1000);
    const OTHER: Key = Key::Private(SpaceId(1), 0x2004);

    fn woken(waiter: &Waiter) -> bool {
        waiter.poll(Waker::noop())
    }

    #[test]
    fn waiters_are_woken_in_order_and_by_bits() {
        let futexes = Futexes::default();
        let waiters = [1, 2, 3].map(|bits| futexes.wait(WORD, bits, || true).unwrap());
        assert!(futexes.wait(WORD, 1, || false).is_none());
        assert_eq!(futexes.wake(OTHER, 9, ANY), 0);
        assert_eq!(futexes.wake(WORD, 1, 2), 1);
        assert_eq!(waiters.each_ref().map(|w| woken(w)), [false, true, false]);
        assert!(futexes.cancel(&waiters[0]) && !futexes.cancel(&waiters[1]));
        assert_eq!(futexes.wake(WORD, 9, ANY), 1);
    }

    #[test]
    fn requeued_waiters_are_woken_and_cancelled_where_they_went() {
        for to in [OTHER, Key::Private(SpaceId(2), 0x1000)] {
            let futexes = Futexes::default();
            let waiters = [0; 4].map(|_| futexes.wait(WORD, ANY, || true).unwrap());
            assert_eq!(futexes.requeue(WORD, to, (1, 2), || false), None);
            assert_eq!(futexes.requeue(WORD, to, (1, 2), || true), Some((1, 2)));
            assert!(futexes.cancel(&waiters[1]));
            assert_eq!(futexes.wake(WORD, 9, ANY), 1);
            assert_eq!(futexes.wake(to, 9, ANY), 1);
            assert_eq!(
                waiters.each_ref().map(|w| woken(w)),
                [true, false, true, true]
            );
        }
    }
}
