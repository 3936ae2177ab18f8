//! Locks of inodes for tasks: a waiting task sleeps, nothing spins.
//!
//! Held over the disk's work on a file's data, so that blocks under a read or write keep their
//! owner. No task takes a second lock while it holds one, but the commit's, which comes last.

use alloc::collections::{BTreeMap, VecDeque};
use core::future::poll_fn;
use core::task::{Poll, Waker};

use spin::Mutex;

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    exclusive: bool,
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
struct Lock {
    shared: u32,
    exclusive: bool,
    /// First come, first served, so that no waiter starves.
    queue: VecDeque<Waiter>,
}

impl Lock {
    fn admits(&self, exclusive: bool) -> bool {
        !self.exclusive && (!exclusive || self.shared == 0)
    }

    fn wake(&mut self) {
        for waiter in &mut self.queue {
            if let Some(waker) = waiter.waker.take() {
                waker.wake();
            }
            if waiter.exclusive {
                return;
            }
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    locks: BTreeMap<u32, Lock>,
    tickets: u64,
}

/// A lock for each number.
#[derive(Debug, Default)]
pub(crate) struct Locks(Mutex<Table>);

/// A lock that is held until this is dropped.
pub(crate) struct Guard<'a> {
    locks: &'a Locks,
    number: u32,
    exclusive: bool,
}

/// A place in a lock's queue, given up when dropped.
struct Place<'a> {
    locks: &'a Locks,
    number: u32,
    ticket: u64,
}

impl Locks {
    /// Waits until the lock is not held exclusively.
    pub(crate) async fn shared(&self, number: u32) -> Guard<'_> {
        self.acquire(number, false).await
    }

    /// Waits until the lock is free.
    pub(crate) async fn exclusive(&self, number: u32) -> Guard<'_> {
        self.acquire(number, true).await
    }

    async fn acquire(&self, number: u32, exclusive: bool) -> Guard<'_> {
        let place = self.enqueue(number, exclusive);
        poll_fn(|context| self.try_enter(&place, exclusive, context.waker())).await;
        Guard {
            locks: self,
            number,
            exclusive,
        }
    }

    fn enqueue(&self, number: u32, exclusive: bool) -> Place<'_> {
        let mut table = self.0.lock();
        table.tickets += 1;
        let ticket = table.tickets;
        let waker = None;
        let waiter = Waiter {
            ticket,
            exclusive,
            waker,
        };
        table
            .locks
            .entry(number)
            .or_default()
            .queue
            .push_back(waiter);
        Place {
            locks: self,
            number,
            ticket,
        }
    }

    fn try_enter(&self, place: &Place<'_>, exclusive: bool, waker: &Waker) -> Poll<()> {
        let mut table = self.0.lock();
        let lock = table.locks.entry(place.number).or_default();
        let first = lock
            .queue
            .front()
            .is_some_and(|waiter| waiter.ticket == place.ticket);
        if first && lock.admits(exclusive) {
            lock.queue.pop_front();
            if exclusive {
                lock.exclusive = true;
            } else {
                lock.shared += 1;
                lock.wake();
            }
            return Poll::Ready(());
        }
        if let Some(waiter) = lock
            .queue
            .iter_mut()
            .find(|waiter| waiter.ticket == place.ticket)
        {
            waiter.waker = Some(waker.clone());
        }
        Poll::Pending
    }

    /// Changes a lock, wakes the waiters that get it, and removes it if it is unused.
    fn change(&self, number: u32, change: impl FnOnce(&mut Lock)) {
        let mut table = self.0.lock();
        if let Some(lock) = table.locks.get_mut(&number) {
            change(lock);
            lock.wake();
            if lock.queue.is_empty() && lock.admits(true) {
                table.locks.remove(&number);
            }
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let ticket = self.ticket;
        self.locks.change(self.number, |lock| {
            lock.queue.retain(|waiter| waiter.ticket != ticket)
        });
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let exclusive = self.exclusive;
        self.locks.change(self.number, |lock| {
            if exclusive {
                lock.exclusive = false;
            } else {
                lock.shared = lock.shared.saturating_sub(1);
            }
        });
    }
}
