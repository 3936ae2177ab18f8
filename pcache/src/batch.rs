//! Batches changes of entries, so that one shootdown serves all.

use heapless::Vec;
use mutants::Mutant;

use crate::set::{Set, State};
use crate::sync::MutexGuard;
use crate::{Cache, LineId, Machine, Page, RemoteAddr, SpaceId};

/// Translations, and lines, that a batch holds before it flushes by itself.
pub(crate) const BATCH: usize = 64;

/// WRITEs of a batch.
type Writes = Vec<(LineId, RemoteAddr), BATCH>;

/// A batch. It flushes when it is dropped, and before if it is full.
pub struct Batch<'a, M: Machine> {
    cache: &'a Cache<M>,
    stale: Vec<Page, BATCH>,
    /// Lines that wait for the shootdown, by set and way.
    lines: Vec<(u32, usize), BATCH>,
    /// The space whose table is walked: its translations of victims are flushed too.
    walked: Option<SpaceId>,
    /// The core on which victims are being unmapped.
    unmapping: Option<usize>,
}

impl<'a, M: Machine> Batch<'a, M> {
    pub(crate) const fn new(cache: &'a Cache<M>, walked: Option<SpaceId>) -> Self {
        Self {
            cache,
            walked,
            unmapping: None,
            stale: Vec::new(),
            lines: Vec::new(),
        }
    }

    /// Makes room for one more line. Called with no set locked.
    pub(crate) fn make_room(&mut self) {
        if self.is_full() {
            self.flush();
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.lines.is_full() || self.stale.is_full()
    }

    /// Notes that entries of victims are about to change, whose translations are pushed then.
    pub(crate) fn begin_unmapping(&mut self) {
        if self.unmapping.is_none() {
            let core = self.cache.machine.core();
            self.cache.shootdowns.begin(core);
            self.unmapping = Some(core);
        }
    }

    /// Adds a translation that cores may still use. May be called with sets locked.
    pub(crate) fn push(&mut self, page: Page) {
        if self.stale.is_full() {
            self.cache.machine.flush(&self.stale);
            self.stale.clear();
        }
        let pushed = self.stale.push(page);
        debug_assert!(pushed.is_ok(), "there is room");
    }

    /// Adds a line that must stay as it is until the shootdown; there must be room.
    pub(crate) fn hold(&mut self, set: &mut Set<M::Entry>, index: u32, way: usize) {
        set.lines[way].flushing += 1;
        let pushed = self.lines.push((index, way));
        debug_assert!(pushed.is_ok(), "make_room was called");
    }

    /// Returns when no core uses any of the translations (of the space that is walked: nor any that
    /// an evictor took from it), and lets go of the lines: those that have no user are free then,
    /// and dirty victims are on their way. Called with no set locked.
    pub fn flush(&mut self) {
        if !self.stale.is_empty() {
            if !Mutant::ShootdownLeftOut.on() {
                self.cache.machine.flush(&self.stale);
            }
            self.stale.clear();
        }
        if let Some(core) = self.unmapping.take() {
            self.cache.shootdowns.end(core);
        }
        if let Some(space) = self.walked
            && self.cache.shootdowns.any()
        {
            self.cache.machine.flush_space(space);
        }
        let mut writes = Writes::new();
        while let Some((index, way)) = self.lines.pop() {
            if let Some(write) = self.let_go(index, way) {
                let pushed = writes.push(write);
                debug_assert!(pushed.is_ok(), "no more than lines");
            }
        }
        if !writes.is_empty() {
            self.cache.machine.write_now(&writes);
        }
    }

    /// Ends a line's wait for the shootdown; returns the WRITE that is to be started for it.
    fn let_go(&self, index: u32, way: usize) -> Option<(LineId, RemoteAddr)> {
        let cache = self.cache;
        let mut set = cache.set(index);
        let line = &mut set.lines[way];
        line.flushing -= 1;
        let leaves = line.victim && line.evictable() && !line.mapped();
        let (dirty, skipped) = (line.dirty, !line.flushed);
        if !leaves {
            cache.settle(&mut set, way);
        } else if let Some(written) = cache.move_to_victims(&mut set, index, way) {
            Set::changed(set);
            return written.map(|(id, slot)| (id, cache.chunks.place(slot)));
        } else if dirty {
            return Some(self.write_back(set, index, way));
        } else {
            set.counters.nr_clflush_clean_skipped += u64::from(skipped);
            set.update(way);
        }
        Set::changed(set);
        None
    }

    /// Makes a victim that nothing maps any more one that is being written; returns its WRITE.
    fn write_back(
        &self,
        mut set: MutexGuard<'_, Set<M::Entry>>,
        index: u32,
        way: usize,
    ) -> (LineId, RemoteAddr) {
        let cache = self.cache;
        let slot = set.slot(way).expect("a victim holds a slot");
        let started = cache.start_time(&set);
        let line = &mut set.lines[way];
        (line.state, line.started) = (State::Writing, started);
        (line.dirty, line.fresh, line.flushed) = (false, false, true);
        if Mutant::WriteBackOfNothing.on() {
            line.state = State::Valid;
        }
        set.update(way);
        drop(set);
        (cache.geometry.line(index, way), cache.chunks.place(slot))
    }
}

impl<M: Machine> Drop for Batch<'_, M> {
    fn drop(&mut self) {
        self.flush();
    }
}
