//! The miss path: an entry that is remote, a line, one READ.
//!
//! [`Cache::touch`] does what one look can do: it maps a page that is here, or starts the READ of
//! one that is not. [`Cache::complete`] maps the page, and the faulting thread only looks at its
//! entry again. Locks of a clean miss: the set's twice (start and end), and the store's queue.

use core::task::Waker;

use mutants::Mutant;

use crate::prefetch::Plan;
use crate::set::State;
use crate::sync::MutexGuard;
use crate::{Access, Cache, Entry, Error, Machine, Mapping, Mechanism, Pte, Rights, set::Set};

/// The answer to a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultAnswer {
    /// The entry permits the access now.
    Done,
    /// A READ was started; when it ends the entry is present.
    Started,
    /// A transfer under way must end first; the waker is called then.
    Wait,
    /// The page was never touched; the VMA says what it contains.
    Empty,
    /// The page is here, and must be copied before it is written.
    Copy,
    /// The page's rights forbid the access.
    Denied,
}

impl<M: Machine> Cache<M> {
    /// Looks at the entry of a page that was touched, and does what can be done now.
    ///
    /// `first` tells the first look of a fault from those after a wait, for the counters. With
    /// [`FaultAnswer::Wait`] the waker is kept and called at the next change of the set. `plan`
    /// says what to read ahead with a READ that is started, in the same doorbell.
    ///
    /// # Errors
    ///
    /// [`Error::Fill`] if the READ failed, once; the next call tries again.
    pub fn touch(
        &self,
        at: Mapping<M::Entry>,
        access: Access,
        first: bool,
        plan: Plan,
        waker: Option<&Waker>,
    ) -> Result<FaultAnswer, Error> {
        loop {
            let pte = at.entry.load();
            if !pte.is_remote() {
                return Ok(resident(pte, access));
            }
            if !pte.rights().allow(access) {
                return Ok(FaultAnswer::Denied);
            }
            let slot = pte.slot();
            let index = self.geometry.set_of(slot);
            let mut set = self.set(index);
            if at.entry.load() != pte {
                continue;
            }
            if let Some(way) = set.find(slot) {
                match self.found(&mut set, index, way, (at, pte), first, waker) {
                    Found::Mapped => {}
                    Found::Wait => return Ok(FaultAnswer::Wait),
                    Found::Failed(error) => return Err(error),
                }
            } else if self.return_victim(&mut set, index, slot) {
                // The next look finds it in its set.
                let wants_victim = self.wants_victim(&mut set);
                drop(set);
                if wants_victim && self.queue(index) {
                    self.evict();
                }
            } else if let Some(way) = set.take(slot, State::Reading) {
                self.renew(&mut set, index, way);
                set.counters.nr_pcache_miss += u64::from(first);
                set.counters.nr_pcache_miss_again += u64::from(!first);
                self.start(set, index, way, (at, pte), plan);
                return Ok(FaultAnswer::Started);
            } else if set.is_stuck(self.config.reserve, None) {
                if let Some(waker) = waker {
                    set.wait(waker);
                }
                return Ok(FaultAnswer::Wait);
            } else {
                drop(set);
                self.make_room(index);
            }
        }
    }

    /// Starts the READ of a page, and of those that are planned with it; then looks for victims.
    fn start(
        &self,
        mut set: MutexGuard<'_, Set<M::Entry>>,
        index: u32,
        way: usize,
        (at, pte): (Mapping<M::Entry>, Pte),
        plan: Plan,
    ) {
        let started = self.start_time(&set);
        let line = &mut set.lines[way];
        (line.first, line.expected, line.started) = (Some(at), pte, started);
        let wants_victim = self.wants_victim(&mut set);
        drop(set);
        let (id, place) = (
            self.geometry.line(index, way),
            self.chunks.place(pte.slot()),
        );
        let piggyback = self.config.mechanism == Mechanism::Piggyback;
        if plan.count == 0 && !piggyback {
            self.machine.read_now(id, place);
            if wants_victim && self.queue(index) {
                self.evict();
            }
            return;
        }
        self.machine.read(id, place);
        let due = wants_victim && self.queue(index);
        let due = self.read_ahead_of(at, plan) | due;
        if due && piggyback {
            self.evict();
        }
        self.machine.ring();
        if due && !piggyback {
            self.evict();
        }
    }

    /// A fault whose slot has a line. Not inline: a miss would pay for its registers.
    #[inline(never)]
    fn found(
        &self,
        set: &mut Set<M::Entry>,
        index: u32,
        way: usize,
        (at, pte): (Mapping<M::Entry>, Pte),
        first: bool,
        waker: Option<&Waker>,
    ) -> Found {
        match set.lines[way].state {
            State::Valid | State::Writing => {
                if self.map(set, index, way, at, pte) && first {
                    set.counters.nr_pcache_fill_from_victim +=
                        u64::from(set.lines[way].more.is_empty());
                    set.counters.nr_pcache_fill_shared +=
                        u64::from(!set.lines[way].more.is_empty());
                }
                Found::Mapped
            }
            State::Failed(cause) => {
                let slot = pte.slot();
                set.clear(way);
                Found::Failed(Error::Fill { slot, cause })
            }
            State::Reading | State::Free => {
                set.counters.nr_pcache_fill_coalesced += u64::from(first);
                if let Some(waker) = waker {
                    set.wait(waker);
                }
                Found::Wait
            }
        }
    }

    /// Maps a line that holds the slot of a remote entry; false if the entry changed meanwhile.
    fn map(
        &self,
        set: &mut Set<M::Entry>,
        index: u32,
        way: usize,
        at: Mapping<M::Entry>,
        pte: Pte,
    ) -> bool {
        let id = self.geometry.line(index, way);
        let present = pte.to_present(self.machine.frame(id)).with_accessed(true);
        if present.is_executable() {
            self.make_code(&mut set.lines[way], id);
        }
        if at.entry.exchange(pte, present).is_err() {
            return false;
        }
        if core::mem::take(&mut set.lines[way].prefetched) {
            self.judge_read_ahead(set, true);
        }
        self.add_mapping(set, way, at);
        set.used(way);
        true
    }

    /// Adds a mapping to a line's reverse map.
    pub(crate) fn add_mapping(&self, set: &mut Set<M::Entry>, way: usize, at: Mapping<M::Entry>) {
        let line = &mut set.lines[way];
        if Mutant::MappingForgotten.on() && line.first.is_some() {
            return;
        }
        if line.first.is_some() && !self.pool.push(&mut line.more, at) {
            self.steal_mapping(set, way);
        }
        let line = &mut set.lines[way];
        if line.first.is_none() {
            line.first = Some(at);
        }
    }

    /// Takes a mapping out of a line's reverse map.
    pub(crate) fn remove_mapping(
        &self,
        set: &mut Set<M::Entry>,
        way: usize,
        at: Mapping<M::Entry>,
    ) {
        let line = &mut set.lines[way];
        if line.first.is_some_and(|first| first.page == at.page) {
            line.first = self.pool.pop(&mut line.more);
        } else {
            let removed = self.pool.remove(&mut line.more, at.page);
            debug_assert!(removed.is_some(), "{} maps the line", at.page);
        }
    }

    /// Starts READs of neighbours of a page that is being read, for the caller to ring; returns
    /// whether enough sets want a victim now.
    fn read_ahead_of(&self, at: Mapping<M::Entry>, plan: Plan) -> bool {
        let mut due = false;
        for distance in plan.distances() {
            // The neighbours of one leaf table; at its end the plan goes on with the next fault.
            let Some(entry) = at.entry.neighbour(distance) else {
                break;
            };
            let mut page = at.page;
            page.vpn.0 = page.vpn.0.wrapping_add_signed(distance);
            due |= self
                .read_ahead_one(Mapping { entry, page })
                .unwrap_or(false);
        }
        due
    }

    /// Starts the READ of a page that may be missed; `None` if there is nothing to read or no room,
    /// else whether enough sets want a victim now.
    fn read_ahead_one(&self, at: Mapping<M::Entry>) -> Option<bool> {
        let pte = at.entry.load();
        if !pte.is_remote() || pte.rights().is_empty() {
            return None;
        }
        let slot = pte.slot();
        let index = self.geometry.set_of(slot);
        let mut set = self.set(index);
        if at.entry.load() != pte || set.find(slot).is_some() || self.has_victim(slot) {
            return None;
        }
        let way = set.take(slot, State::Reading)?;
        self.renew(&mut set, index, way);
        set.counters.nr_pcache_prefetch += 1;
        let started = self.start_time(&set);
        let line = &mut set.lines[way];
        (line.first, line.expected, line.started) = (Some(at), pte, started);
        // The first to leave unless it is used.
        (line.prefetched, line.stamp) = (true, 0);
        let wants_victim = self.wants_victim(&mut set);
        drop(set);
        self.machine
            .read(self.geometry.line(index, way), self.chunks.place(slot));
        Some(wants_victim && self.queue(index))
    }

    /// Starts the READ of one page that will be needed (`MADV_WILLNEED`), if it is remote and there
    /// is room. The caller rings by [`Machine::ring`]; returns whether a READ was started.
    pub fn will_need(&self, at: Mapping<M::Entry>) -> bool {
        let started = self.read_ahead_one(at);
        if started == Some(true) {
            self.evict();
        }
        started.is_some()
    }
}

enum Found {
    Mapped,
    Wait,
    Failed(Error),
}

/// The answer for an entry that is not remote.
fn resident(pte: Pte, access: Access) -> FaultAnswer {
    if pte.is_empty() {
        FaultAnswer::Empty
    } else if pte.permits(access) {
        FaultAnswer::Done
    } else if access == Access::Write && pte.is_cow() && pte.rights().contains(Rights::WRITE) {
        FaultAnswer::Copy
    } else {
        FaultAnswer::Denied
    }
}
