//! Eviction: victims are unmapped in batches, one shootdown a batch, and written back by
//! asynchronous WRITEs. A fault on a page whose line is leaving finds the line again.

use crate::batch::Batch;
use crate::set::{Line, Set};
use crate::sync::Ordering;
use crate::{Cache, Entry, Machine, Mapping, Mechanism, Pte, Slot};

impl<M: Machine> Cache<M> {
    /// Notes that a line of a set was taken: the set may need a victim. Called under its lock;
    /// returns whether the set is to be [queued](Self::queue).
    pub(crate) fn wants_victim(&self, set: &mut Set<M::Entry>) -> bool {
        let wants = !set.queued && !set.has_reserve(self.config.reserve);
        set.queued |= wants;
        wants
    }

    /// Queues a set for the evictor; returns whether enough wait for a batch. Called with no lock
    /// held.
    pub(crate) fn queue(&self, index: u32) -> bool {
        let enough = match self.config.mechanism {
            Mechanism::Batch => self.batch,
            Mechanism::Inline | Mechanism::Piggyback | Mechanism::Victim => 1,
        };
        self.queues.push(self.machine.core(), index) >= enough
    }

    /// Prepares victims in every set that waits for one on this core. Called by idle cores,
    /// and by misses when enough sets wait.
    pub fn evict(&self) {
        self.evict_queued(&mut Batch::new(self, None));
    }

    pub(crate) fn evict_queued(&self, batch: &mut Batch<'_, M>) {
        let core = self.machine.core();
        loop {
            let sets = self.queues.take(core);
            for &index in &sets {
                self.evict_from(index, self.config.reserve, batch);
            }
            if !sets.is_full() {
                break;
            }
        }
        batch.flush();
    }

    /// Makes room in a set for a miss that found none, and in those that wait besides.
    #[cold]
    #[inline(never)]
    pub(crate) fn make_room(&self, index: u32) {
        let mut batch = Batch::new(self, None);
        self.evict_from(index, self.config.reserve, &mut batch);
        self.evict_queued(&mut batch);
    }

    /// Chooses victims of a set until `reserve` lines are spare or leaving, and unmaps them.
    fn evict_from(&self, index: u32, reserve: u32, batch: &mut Batch<'_, M>) {
        batch.make_room();
        let mut set = self.set(index);
        set.queued = false;
        while !set.has_reserve(reserve) {
            let mut of_use = 0;
            let chosen = set.victim(self.config.policy, |line| {
                let accessed = self.take_accessed(line);
                of_use += u64::from(accessed && core::mem::take(&mut line.prefetched));
                accessed
            });
            set.counters.nr_pcache_prefetch_hit += of_use;
            if of_use > 0 {
                self.ahead.used.fetch_add(of_use, Ordering::Relaxed);
            }
            let Some(way) = chosen else {
                set.counters.nr_pcache_eviction_eagain_concurrent += 1;
                return;
            };
            set.counters.nr_pcache_eviction_triggered += 1;
            batch.begin_unmapping();
            self.unmap(&mut set, way, batch);
            batch.hold(&mut set, index, way);
            set.leaves(way);
            if batch.is_full() {
                drop(set);
                batch.flush();
                set = self.set(index);
            }
        }
    }

    /// Turns every entry that maps a line into a remote one; the entry of a page that was never
    /// written becomes empty again, and its slot free.
    fn unmap(&self, set: &mut Set<M::Entry>, way: usize, batch: &mut Batch<'_, M>) {
        let slot = set.slot(way).expect("a victim holds a slot");
        let line = &set.lines[way];
        let unwritten = line.fresh && !line.dirty && line.more.is_empty();
        let unwritten = unwritten && self.chunks.users(slot) == 1;
        let Some(first) = set.lines[way].first.take() else {
            return;
        };
        let was = leave(first.entry, slot, unwritten);
        self.unmapped(set, way, first, was, batch);
        if unwritten && !was.is_dirty() {
            set.lines[way].dead = true;
        }
        let mut chain = set.lines[way].more;
        while let Some(mapping) = self.pool.pop(&mut chain) {
            let was = leave(mapping.entry, slot, false);
            self.unmapped(set, way, mapping, was, batch);
        }
        set.lines[way].more = chain;
    }

    /// Remembers what an entry knew of its line, and that TLBs may still have it.
    fn unmapped(
        &self,
        set: &mut Set<M::Entry>,
        way: usize,
        mapping: Mapping<M::Entry>,
        was: Pte,
        batch: &mut Batch<'_, M>,
    ) {
        let line = &mut set.lines[way];
        line.dirty |= was.is_dirty();
        if core::mem::take(&mut line.prefetched) {
            self.judge_read_ahead(set, was.is_accessed());
        }
        batch.push(mapping.page);
    }

    /// Makes room for another mapping of a line when the pool has no node left: the first mapping
    /// goes.
    pub(crate) fn steal_mapping(&self, set: &mut Set<M::Entry>, way: usize) {
        let slot = set.slot(way).expect("a mapped line holds a slot");
        let Some(first) = set.lines[way].first.take() else {
            return;
        };
        let core = self.machine.core();
        self.shootdowns.begin(core);
        let was = leave(first.entry, slot, false);
        set.lines[way].dirty |= was.is_dirty();
        self.machine.flush(&[first.page]);
        self.shootdowns.end(core);
    }

    /// Counts whether a page of readahead was used.
    pub(crate) fn judge_read_ahead(&self, set: &mut Set<M::Entry>, used: bool) {
        if used {
            set.counters.nr_pcache_prefetch_hit += 1;
            self.ahead.used.fetch_add(1, Ordering::Relaxed);
        } else {
            set.counters.nr_pcache_prefetch_wasted += 1;
            self.ahead.wasted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns whether a line was used through any of its entries since the last call, and makes
    /// the entries forget. Other cores' translations are left: an accessed mark is a hint.
    fn take_accessed(&self, line: &Line<M::Entry>) -> bool {
        let take = |mapping: &Mapping<M::Entry>| {
            let mut pte = mapping.entry.load();
            while pte.is_accessed() {
                match mapping.entry.exchange(pte, pte.with_accessed(false)) {
                    Ok(()) => {
                        self.machine.flush_own(mapping.page);
                        return true;
                    }
                    Err(there) => pte = there,
                }
            }
            false
        };
        let first = line.first.as_ref().is_some_and(take);
        let more = !line.more.is_empty() && self.pool.any(line.more, take);
        first || more
    }
}

/// Makes a present entry remote, or empty if it is `unwritten` and not dirty; returns what it was.
/// Called under the lock of the line's set, so that only the CPU and changes of rights interfere.
fn leave<E: Entry>(entry: E, slot: Slot, unwritten: bool) -> Pte {
    let mut pte = entry.load();
    loop {
        debug_assert!(pte.is_present(), "a mapped line's entry is present");
        let left = if unwritten && !pte.is_dirty() {
            Pte::EMPTY
        } else {
            pte.to_remote(slot)
        };
        match entry.exchange(pte, left) {
            Ok(()) => return pte,
            Err(there) => pte = there,
        }
    }
}
