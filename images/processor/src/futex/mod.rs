//! Futexes: words of memory that threads wait on.
//!
//! A waiter is queued under its bucket's lock after the word was seen to hold what was expected,
//! and a waker changes the word first: so no wake is lost (Linux `Documentation/locking/futex`).

pub(crate) mod pi;
#[cfg(test)]
mod tests;

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::task::Waker;

use locks::{AtomicBool, Mutex, MutexGuard, Ordering};
use messages::Errno;
use pcache::SpaceId;

use crate::error::errno;
use pi::{Locker, States};

/// Buckets; a power of two.
const BUCKETS: usize = 64;
/// A wake or wait for any bit.
pub(crate) const ANY: u32 = u32::MAX;

/// The word that is waited on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
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
    /// The key that it was queued with.
    first_key: Key,
    bits: u32,
    /// The waiting thread, if it waits for a lock.
    by: Locker,
    /// The lock that it waits to be moved to.
    target: Option<Key>,
    woken: AtomicBool,
    /// It was woken since the lock's owner died.
    heir: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Waiter {
    fn new(key: Key, bits: u32, by: Locker, target: Option<Key>) -> Self {
        Self {
            key: Mutex::new(key),
            first_key: key,
            bits,
            by,
            target,
            woken: AtomicBool::new(false),
            heir: AtomicBool::new(false),
            waker: Mutex::default(),
        }
    }

    fn is_heir(&self) -> bool {
        self.heir.load(Ordering::Acquire)
    }

    fn wake_as_heir(&self) {
        self.heir.store(true, Ordering::Release);
        self.wake();
    }

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
pub(crate) struct Futexes {
    buckets: [Mutex<Queue>; BUCKETS],
    pi: States,
}

impl Default for Futexes {
    fn default() -> Self {
        Self {
            buckets: [const { Mutex::new(VecDeque::new()) }; BUCKETS],
            pi: States::default(),
        }
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
        let mut queue = self.buckets[key.bucket()].lock();
        if !expected() {
            return None;
        }
        let waiter = Arc::new(Waiter::new(key, bits, Locker::default(), None));
        queue.push_back(waiter.clone());
        Some(waiter)
    }

    /// Takes a waiter out that does not wait any more; false if it was woken before.
    pub(crate) fn cancel(&self, waiter: &Arc<Waiter>) -> bool {
        loop {
            let key = *waiter.key.lock();
            let mut queue = self.buckets[key.bucket()].lock();
            if *waiter.key.lock() != key {
                continue;
            }
            let before = queue.len();
            queue.retain(|other| !Arc::ptr_eq(other, waiter));
            return queue.len() < before;
        }
    }

    /// Wakes up to `count` waiters whose bits meet `bits`; returns how many.
    ///
    /// # Errors
    ///
    /// EINVAL if it meets one that waits for a lock.
    pub(crate) fn wake(&self, key: Key, count: u32, bits: u32) -> Result<u32, Errno> {
        let mut queue = self.buckets[key.bucket()].lock();
        let woken = wake_in(&mut queue, key, count, bits)?;
        if woken < count && self.pi.has(key) {
            return Err(errno::EINVAL);
        }
        Ok(woken)
    }

    /// Wakes up to `wake` waiters of `from` and moves up to `move_on` others to `to`, if `expected`
    /// holds; returns how many were woken, and how many moved.
    ///
    /// # Errors
    ///
    /// EINVAL if it meets one that waits for a lock.
    pub(crate) fn requeue(
        &self,
        from: Key,
        to: Key,
        (wake, move_on): (u32, u32),
        expected: impl FnOnce() -> bool,
    ) -> Option<Result<(u32, u32), Errno>> {
        let (mut first, mut second) = self.lock_two(from, to);
        if !expected() {
            return None;
        }
        let woken = match wake_in(&mut first, from, wake, ANY) {
            Ok(woken) => woken,
            Err(errno) => return Some(Err(errno)),
        };
        let mut moved = 0;
        let mut at = 0;
        while moved < move_on && at < first.len() {
            if *first[at].key.lock() != from {
                at += 1;
                continue;
            }
            if first[at].target.is_some() {
                return Some(Err(errno::EINVAL));
            }
            *first[at].key.lock() = to;
            moved += 1;
            match &mut second {
                Some(second) => second.extend(first.remove(at)),
                None => at += 1,
            }
        }
        if woken + moved < wake.saturating_add(move_on) && self.pi.has(from) {
            return Some(Err(errno::EINVAL));
        }
        Some(Ok((woken, moved)))
    }

    /// Locks two buckets, the lower one first; `None` for the second if both are one.
    fn lock_two(
        &self,
        from: Key,
        to: Key,
    ) -> (MutexGuard<'_, Queue>, Option<MutexGuard<'_, Queue>>) {
        let (from, to) = (from.bucket(), to.bucket());
        if from == to {
            (self.buckets[from].lock(), None)
        } else if from < to {
            let first = self.buckets[from].lock();
            (first, Some(self.buckets[to].lock()))
        } else {
            let second = self.buckets[to].lock();
            (self.buckets[from].lock(), Some(second))
        }
    }
}

fn wake_in(queue: &mut Queue, key: Key, count: u32, bits: u32) -> Result<u32, Errno> {
    let (mut woken, mut met_lock) = (0, false);
    queue.retain(|waiter| {
        let meets = woken < count && !met_lock && *waiter.key.lock() == key;
        met_lock |= meets && waiter.target.is_some();
        let due = meets && !met_lock && waiter.bits & bits != 0;
        if due {
            waiter.wake();
            woken += 1;
        }
        !due
    });
    if met_lock {
        return Err(errno::EINVAL);
    }
    Ok(woken)
}
