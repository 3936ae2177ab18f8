//! How lines leave: victims, pages given up, mappings taken back.

use hal::Instant;

use crate::set::Set;
use crate::sync::MutexGuard;
use crate::{Cache, Error, Machine, Page, SpaceId, Token, Vpn};

impl<M: Machine> Cache<M> {
    /// Makes the next miss of the set find a line that it can take at once.
    pub(crate) fn evict_ahead(&self, index: u32, now: Instant) -> Result<(), Error> {
        let set = self.set(index);
        if set.reserve() < self.reserve {
            self.evict(set, index, now)?;
        }
        Ok(())
    }

    /// Chooses a victim, takes its mapping away, and starts its write-back if it is dirty. False if there was none to
    /// choose.
    pub(crate) fn evict(
        &self,
        mut set: MutexGuard<'_, Set>,
        index: u32,
        now: Instant,
    ) -> Result<bool, Error> {
        let Some(way) = set.victim(self.policy, |page| self.machine.take_accessed(page)) else {
            set.counters.nr_pcache_eviction_eagain_concurrent += 1;
            return Ok(false);
        };
        set.counters.nr_pcache_eviction_triggered += 1;
        set.lines[way].victim = true;
        let mut set = self.unmap(set, index, way);
        let Set { lines, counters, .. } = &mut *set;
        let line = &mut lines[way];
        let page = line.page;
        line.settle();
        if line.doomed || !line.has_bytes() {
            // Given up meanwhile: free now, or when its last user is done.
        } else if line.dirty {
            let Some(to) = self.machine.place(page) else {
                return Err(Error::NoPlace(page));
            };
            line.begin_write(now);
            let id = self.line_id(index, way);
            let token = Token::new(id, line.generation);
            drop(set);
            self.machine.start_write(token, id, to);
            self.wake(index);
            return Ok(true);
        } else {
            counters.nr_clflush_clean_skipped += u64::from(!line.flushed);
        }
        drop(set);
        self.wake(index);
        Ok(true)
    }

    /// Takes the mapping of way `way` away, if it has one, without holding the lock meanwhile. The caller wakes those who
    /// found the line busy.
    fn unmap<'a>(&'a self, mut set: MutexGuard<'a, Set>, index: u32, way: usize) -> MutexGuard<'a, Set> {
        let line = &mut set.lines[way];
        if !line.mapped {
            return set;
        }
        line.unmapping = true;
        let page = line.page;
        drop(set);
        let unmapped = self.machine.unmap(page);
        let mut set = self.set(index);
        let line = &mut set.lines[way];
        line.unmapping = false;
        line.mapped = false;
        line.dirty |= unmapped.dirty;
        set
    }

    /// Gives `page` up: its bytes are of no more use, its line becomes free as soon as nothing uses it. True if a transfer or a copy
    /// still does: until [`Cache::quiesce`] says so, what lies at the page's remote place may still change.
    pub fn discard(&self, page: Page) -> bool {
        let index = self.geometry().set_of(page);
        let set = self.set(index);
        match set.find(page) {
            Some(way) => self.discard_way(set, index, way),
            None => false,
        }
    }

    fn discard_way<'a>(&'a self, mut set: MutexGuard<'a, Set>, index: u32, way: usize) -> bool {
        let line = &mut set.lines[way];
        line.doomed = true;
        let page = line.page;
        if !line.unmapping {
            set = self.unmap(set, index, way);
        }
        set.lines[way].settle();
        let busy = set.find(page).is_some();
        drop(set);
        self.wake(index);
        busy
    }

    /// Gives up `count` pages of `space` from `first` on. True if some are still in use, as for [`Cache::discard`].
    pub fn discard_range(&self, space: SpaceId, first: Vpn, count: u64) -> bool {
        let end = first.0.saturating_add(count);
        if count <= u64::from(self.geometry().lines()) {
            return (first.0..end).fold(false, |busy, vpn| {
                self.discard(Page { space, vpn: Vpn(vpn) }) | busy
            });
        }
        self.discard_lines(|page| page.space == space && (first.0..end).contains(&page.vpn.0))
    }

    /// Gives up all pages of `space`. True if some are still in use, as for [`Cache::discard`].
    pub fn discard_space(&self, space: SpaceId) -> bool {
        self.discard_lines(|page| page.space == space)
    }

    fn discard_lines(&self, which: impl Fn(Page) -> bool) -> bool {
        let mut busy = false;
        for index in 0..self.geometry().sets() {
            for way in 0..self.geometry().ways() as usize {
                let set = self.set(index);
                let line = &set.lines[way];
                if line.state != crate::set::State::Free && which(line.page) {
                    busy |= self.discard_way(set, index, way);
                }
            }
        }
        busy
    }

    /// Takes the mapping of `page` away but keeps its bytes, so that the next use faults and maps it anew (with other rights). False
    /// if another core is just doing so for its own reasons: then try again after the next change.
    pub fn revoke(&self, page: Page) -> bool {
        let index = self.geometry().set_of(page);
        let set = self.set(index);
        let Some(way) = set.find(page) else { return true };
        if set.lines[way].unmapping {
            return false;
        }
        if !set.lines[way].mapped {
            return true;
        }
        let mut set = self.unmap(set, index, way);
        set.lines[way].settle();
        drop(set);
        self.wake(index);
        true
    }
}
