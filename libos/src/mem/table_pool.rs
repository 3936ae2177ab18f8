//! Page frames that hold page tables, and when a retired one may be used again: [`Pool`].
//!
//! Other cores walk tables without a lock, so a table that was taken out of a tree is *retired*: it
//! is used again only after every core has passed a quiescent point, at which it holds no pointer
//! into a table. These are a core's quiescent points:
//!
//! * the start of a task's poll, which [`RunQueue::pop`](crate::task::run_queue::RunQueue::pop)
//!   counts;
//! * its entry into user mode, which makes `user_epoch` odd;
//! * its sleep, which [`RunQueue::observe`](crate::task::run_queue::RunQueue::observe) sees.
//!
//! A core that *stays* in user mode has passed none: it leaves by a plain store, which the CPU may
//! delay beyond the loads that follow, so an odd epoch does not show that no walk has begun (Intel
//! SDM volume 3A, section 9.2.3.4). It may also hold a pointer to the table in its paging-structure
//! caches until it enters user mode again, which flushes them (section 4.10.3). The timer ends its
//! stay after 10 ms.
//!
//! Pure: the cores are a trait, [`Core`]. `docs/decisions/0037-page-table-entries.md` has the
//! reasons.

use alloc::vec::Vec;

use hal::PhysAddr;

use crate::Error;

/// The most cores that are used.
pub(crate) const MAX_CORES: usize = 128;

/// Counters of one core that move at its quiescent points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Tasks polled.
    pub(crate) polls: u64,
    /// Entries to and exits from user mode; odd in between.
    pub(crate) user_epoch: u64,
}

impl Progress {
    /// Returns whether a core that made this progress has passed a quiescent point by `now`.
    pub(crate) fn has_passed(self, now: Self) -> bool {
        let next_entry = (self.user_epoch + 1) | 1;
        now.polls != self.polls || now.user_epoch >= next_entry
    }
}

/// A core as the pool sees it.
pub(crate) trait Core {
    /// Returns the core's number, below [`MAX_CORES`].
    fn index(&self) -> usize;
    /// Returns the core's counters, or `None` when it sleeps.
    ///
    /// The core's next poll sees everything that happened before this call.
    fn observe(&self) -> Option<Progress>;
    /// Returns the core's counters, without the guarantee of [`Core::observe`].
    fn peek(&self) -> Progress;
}

/// Retired tables, in two batches: one waits for the cores, one collects.
#[derive(Debug)]
struct Retired {
    collecting: Vec<PhysAddr>,
    /// The cores that retired a table of `collecting`, one bit each.
    retirers: u128,
    waiting: Vec<PhysAddr>,
    /// The cores that `waiting` waits for, as they were when it began to.
    cores: [Option<Progress>; MAX_CORES],
}

impl Retired {
    const fn new() -> Self {
        Self {
            collecting: Vec::new(),
            retirers: 0,
            waiting: Vec::new(),
            cores: [const { None }; MAX_CORES],
        }
    }

    fn len(&self) -> usize {
        self.collecting.len() + self.waiting.len()
    }

    /// Moves the tables that no core can reach any more to `free`. `own` is the calling core.
    fn reclaim<C: Core>(
        &mut self,
        own: usize,
        cores: impl Iterator<Item = C> + Clone,
        free: &mut Vec<PhysAddr>,
    ) {
        if !self.waiting.is_empty() && !self.settle(cores.clone(), free) {
            return;
        }
        if self.collecting.is_empty() {
            return;
        }
        core::mem::swap(&mut self.collecting, &mut self.waiting);
        // Who retires a table holds no pointer into it. Of another core's tables that is not known.
        let all_own = self.retirers == 1 << own;
        self.retirers = 0;
        for core in cores
            .clone()
            .filter(|core| !(all_own && core.index() == own))
        {
            self.cores[core.index()] = core.observe();
        }
        self.settle(cores, free);
    }

    /// Empties `waiting` into `free` if every core has passed; returns whether that was so.
    fn settle<C: Core>(
        &mut self,
        cores: impl Iterator<Item = C>,
        free: &mut Vec<PhysAddr>,
    ) -> bool {
        for core in cores {
            let slot = &mut self.cores[core.index()];
            let Some(seen) = *slot else { continue };
            // A core may fall asleep without a further poll.
            if !seen.has_passed(core.peek()) && core.observe().is_some() {
                return false;
            }
            *slot = None;
        }
        free.append(&mut self.waiting);
        true
    }
}

/// Table frames of one kind. A frame that came in stays: it never holds anything but a table.
#[derive(Debug)]
pub(crate) struct Pool {
    owned: usize,
    free: Vec<PhysAddr>,
    retired: Retired,
}

/// Numbers of table frames, by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TableFrames {
    /// Tables of address spaces that exist.
    pub in_use: usize,
    /// Tables that wait until no core can be walking them.
    pub retired: usize,
    /// Frames that are ready to be used again.
    pub free: usize,
}

impl Pool {
    pub(crate) const fn new() -> Self {
        Self {
            owned: 0,
            free: Vec::new(),
            retired: Retired::new(),
        }
    }

    /// Takes a table, all zero: one that was used before, else a `fresh` frame.
    pub(crate) fn take<C: Core>(
        &mut self,
        own: usize,
        cores: impl Iterator<Item = C> + Clone,
        fresh: impl FnOnce() -> Option<PhysAddr>,
    ) -> Result<PhysAddr, Error> {
        if self.free.is_empty() {
            self.retired.reclaim(own, cores, &mut self.free);
        }
        if let Some(table) = self.free.pop() {
            return Ok(table);
        }
        // Room for every frame in every list, so that giving one back never allocates.
        let all = self.owned + 1;
        for list in [
            &mut self.free,
            &mut self.retired.collecting,
            &mut self.retired.waiting,
        ] {
            list.try_reserve(all - list.len())
                .map_err(|_| Error::NoMemory)?;
        }
        let table = fresh().ok_or(Error::NoMemory)?;
        self.owned = all;
        Ok(table)
    }

    /// Takes back tables that were unhooked and are all zero. `own` is the calling core, which
    /// holds no pointer into them.
    pub(crate) fn retire<C: Core>(
        &mut self,
        tables: impl IntoIterator<Item = PhysAddr>,
        own: usize,
        cores: impl Iterator<Item = C> + Clone,
    ) {
        self.retired.collecting.extend(tables);
        self.retired.retirers |= 1 << own;
        self.retired.reclaim(own, cores, &mut self.free);
    }

    /// Counts the frames by state.
    pub(crate) fn count(&self) -> TableFrames {
        let (free, retired) = (self.free.len(), self.retired.len());
        TableFrames {
            in_use: self.owned - free - retired,
            retired,
            free,
        }
    }
}

#[cfg(all(test, not(interleave)))]
#[path = "table_pool_tests.rs"]
mod tests;

#[cfg(all(test, interleave))]
mod interleavings {
    use alloc::sync::Arc;

    use loom::cell::UnsafeCell;
    use loom::thread;

    use super::*;
    use crate::sync::{AtomicU64, Ordering};
    use crate::task::run_queue::RunQueue;

    /// A core that walks a table in its polls. Loom takes sequentially consistent accesses for
    /// weaker ones, so entries into user mode are left out here.
    struct Walker {
        queue: RunQueue<u32>,
        /// The upper entry that leads to `table`; 0 when the table is unhooked.
        entry: AtomicU64,
        /// Loom finds a reader of it beside a writer.
        table: UnsafeCell<u64>,
    }

    impl Core for &Walker {
        fn index(&self) -> usize {
            1
        }

        fn observe(&self) -> Option<Progress> {
            Some(Progress {
                polls: self.queue.observe()?,
                user_epoch: 0,
            })
        }

        fn peek(&self) -> Progress {
            Progress {
                polls: self.queue.polls(),
                user_epoch: 0,
            }
        }
    }

    impl Walker {
        fn poll(&self) {
            if self.entry.load(Ordering::Acquire) != 0 {
                self.table.with(|_| ());
            }
        }
    }

    /// Unhooks the table, retires it and reuses it when `passed` says so, while a core polls and
    /// sleeps.
    fn reuses_in_time(may_reuse: fn(&mut Pool, &Walker) -> bool) {
        let mut model = loom::model::Builder::new();
        // All orders take minutes; few bugs need more switches that nothing forces.
        model.preemption_bound = Some(3);
        model.check(move || {
            let walker = Arc::new(Walker {
                queue: RunQueue::new(),
                entry: AtomicU64::new(1),
                table: UnsafeCell::new(0),
            });
            let other = walker.clone();
            let other = thread::spawn(move || {
                for _ in 0..2 {
                    let _ = other.queue.pop();
                    other.poll();
                }
                let _ = other.queue.pop();
                other.queue.rest(|| ());
                let _ = other.queue.pop();
                other.poll();
            });
            let mut pool = Pool::new();
            let table = pool
                .take(0, core::iter::once(&*walker), || Some(PhysAddr(1)))
                .expect("a fresh one");
            assert_eq!(pool.count().in_use, 1);
            walker.entry.store(0, Ordering::Release);
            pool.retire([table], 0, core::iter::once(&*walker));
            for _ in 0..2 {
                if may_reuse(&mut pool, &walker) {
                    walker.table.with_mut(|_| ());
                    break;
                }
            }
            other.join().expect("it ends");
        });
    }

    #[test]
    fn no_walked_table_is_reused() {
        reuses_in_time(|pool, walker| {
            let fresh = pool.take(0, core::iter::once(walker), || Some(PhysAddr(2)));
            fresh == Ok(PhysAddr(1))
        });
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn reusing_at_once_is_found() {
        reuses_in_time(|_, _| true);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn counting_without_the_queues_lock_is_found() {
        // What was seen without the lock says nothing about what the next poll sees.
        reuses_in_time(|_, walker| walker.queue.polls() > 0);
    }
}
