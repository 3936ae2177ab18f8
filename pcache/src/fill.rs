//! First touch, and copy-on-write: pages that get a slot of their own.

use core::task::Waker;

use mutants::Mutant;

use crate::batch::Batch;
use crate::set::{Set, State};
use crate::sync::MutexGuard;
use crate::{Access, Cache, Entry, Machine, Mapping, Pte, Rights, Slot};

/// The first contents of a page.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// Zeros.
    Zero,
    /// Bytes, and zeros behind them to the page's end.
    Bytes(&'a [u8]),
}

/// The outcome for a page that was to get a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filled {
    /// The page is mapped to the slot.
    Done,
    /// The page needed no slot of its own: it was the last user of the one it had.
    Reused,
    /// The entry changed meanwhile: the slot is unused, look again.
    Raced,
    /// The slot's set has no room: the waker is called at its next change. The slot is unused.
    Wait,
}

impl<M: Machine> Cache<M> {
    /// Maps a page that was never touched to `slot`, which is newly allocated, with its first
    /// contents.
    ///
    /// A page of a shared object (`object`) is never forgotten: it is written back though it is
    /// zero, for others find it by its slot.
    pub fn install(
        &self,
        at: Mapping<M::Entry>,
        slot: Slot,
        rights: Rights,
        content: Content<'_>,
        object: bool,
        waker: Option<&Waker>,
    ) -> Filled {
        let index = self.geometry.set_of(slot);
        let Some((mut set, way)) = self.take(index, slot, waker) else {
            return Filled::Wait;
        };
        self.renew(&mut set, index, way);
        let id = self.geometry.line(index, way);
        match content {
            Content::Zero => self.machine.zero(id),
            Content::Bytes(bytes) => {
                let len = bytes.len().min(crate::LINE_SIZE);
                if len < crate::LINE_SIZE {
                    self.machine.zero(id);
                }
                self.machine.copy_in(id, 0, &bytes[..len]);
            }
        }
        if rights.contains(Rights::EXEC) {
            self.make_code(&mut set.lines[way], id);
        }
        let mut present = Pte::present(self.machine.frame(id), rights).with_accessed(true);
        if object {
            present = present.with_object();
        }
        if at.entry.exchange(Pte::EMPTY, present).is_err() {
            set.clear(way);
            return Filled::Raced;
        }
        let zero = matches!(content, Content::Zero);
        set.counters.nr_pcache_fill_zerofill += u64::from(zero);
        set.counters.nr_pcache_fill_from_file += u64::from(!zero);
        let line = &mut set.lines[way];
        line.first = Some(at);
        line.fresh = zero && !object;
        line.dirty = !line.fresh;
        self.finish(set, index, way);
        Filled::Done
    }

    /// Takes the copy-on-write mark from a page whose slot has no other user.
    pub fn reuse(&self, at: Mapping<M::Entry>) -> Filled {
        let pte = at.entry.load();
        if !(pte.is_present() && pte.is_cow()) {
            return Filled::Raced;
        }
        let (_, index, way) = self.place_of(pte.frame());
        let mut set = self.set(index);
        self.reuse_locked(&mut set, way, at, pte.frame())
    }

    /// Reuses a line as [`reuse`](Self::reuse) does, with the set locked; [`Filled::Wait`] if there
    /// are other users.
    fn reuse_locked(
        &self,
        set: &mut Set<M::Entry>,
        way: usize,
        at: Mapping<M::Entry>,
        frame: u64,
    ) -> Filled {
        let Some(slot) = set.slot(way) else {
            return Filled::Raced;
        };
        let mut pte = at.entry.load();
        while pte.is_present() && pte.frame() == frame && pte.is_cow() {
            let shared = self.chunks.users(slot) > 1 && !Mutant::SharedPageReused.on();
            if pte.is_object() || shared {
                return Filled::Wait;
            }
            match at.entry.exchange(pte, pte.without_cow()) {
                Ok(()) => {
                    set.counters.nr_pcache_cow_reuse += 1;
                    self.machine.flush_own(at.page);
                    return Filled::Reused;
                }
                Err(there) => pte = there,
            }
        }
        Filled::Raced
    }

    /// Copies a page that is marked copy-on-write into `slot`, which is allocated and new, and maps
    /// it to that, writable. The page is present; if its slot has no other user any more it is
    /// [reused](Filled::Reused) instead.
    pub fn copy(&self, at: Mapping<M::Entry>, slot: Slot, waker: Option<&Waker>) -> Filled {
        let to = self.geometry.set_of(slot);
        loop {
            let pte = at.entry.load();
            if !(pte.is_present() && pte.is_cow()) {
                return Filled::Raced;
            }
            let (_, from, from_way) = self.place_of(pte.frame());
            let mut batch = Batch::new(self, None);
            let mut sets = self.lock_two(from, to);
            match self.reuse_locked(sets.first(), from_way, at, pte.frame()) {
                Filled::Wait => {}
                other => return other,
            }
            if let Some(way) = sets.second().take(slot, State::Valid) {
                let copied =
                    self.copy_locked(&mut sets, (from, from_way), (to, way), at, &mut batch);
                let wants_victim = copied && self.wants_victim(sets.second());
                drop(sets);
                batch.flush();
                if wants_victim && self.queue(to) {
                    self.evict();
                }
                return if copied { Filled::Done } else { Filled::Raced };
            }
            // The page itself must not be the one that makes room, or the copy never gets on.
            let own = (from == to).then_some(from_way);
            if sets.second().is_stuck(self.config.reserve, own) {
                if let Some(waker) = waker {
                    sets.second().wait(waker);
                }
                return Filled::Wait;
            }
            batch.hold(sets.first(), from, from_way);
            drop(sets);
            self.make_room(to);
        }
    }

    fn copy_locked(
        &self,
        sets: &mut Two<'_, M>,
        (from, from_way): (u32, usize),
        (to, to_way): (u32, usize),
        at: Mapping<M::Entry>,
        batch: &mut Batch<'_, M>,
    ) -> bool {
        let (source, copy) = (
            self.geometry.line(from, from_way),
            self.geometry.line(to, to_way),
        );
        self.renew(sets.second(), to, to_way);
        self.machine.copy_line(source, copy);
        let mut pte = at.entry.load();
        let frame = self.machine.frame(source);
        loop {
            if !(pte.is_present() && pte.frame() == frame && pte.is_cow()) {
                sets.second().clear(to_way);
                return false;
            }
            if pte.rights().contains(Rights::EXEC) {
                self.make_code(&mut sets.second().lines[to_way], copy);
            }
            let own = Pte::present(self.machine.frame(copy), pte.rights()).with_accessed(true);
            match at.entry.exchange(pte, own) {
                Ok(()) => break,
                Err(there) => pte = there,
            }
        }
        let set = sets.first();
        // The mark of a store from before the page was shared.
        set.lines[from_way].dirty |= pte.is_dirty();
        self.remove_mapping(set, from_way, at);
        // Cores may still read the old line: it must not serve another slot before the shootdown.
        batch.push(at.page);
        batch.hold(set, from, from_way);
        if !pte.is_object()
            && !Mutant::UserNotDropped.on()
            && let Some(slot) = set.slot(from_way)
        {
            let last = self.chunks.drop_user(slot);
            debug_assert!(!last, "the page had other users");
        }
        set.update(from_way);
        let set = sets.second();
        let line = &mut set.lines[to_way];
        (line.first, line.dirty) = (Some(at), true);
        set.update(to_way);
        set.counters.nr_pcache_cow_copy += 1;
        true
    }

    /// Takes a line for a new slot, after making room for it if there is none.
    fn take(
        &self,
        index: u32,
        slot: Slot,
        waker: Option<&Waker>,
    ) -> Option<(MutexGuard<'_, Set<M::Entry>>, usize)> {
        loop {
            let mut set = self.set(index);
            if let Some(way) = set.take(slot, State::Valid) {
                return Some((set, way));
            }
            if set.is_stuck(self.config.reserve, None) {
                if let Some(waker) = waker {
                    set.wait(waker);
                }
                return None;
            }
            drop(set);
            self.make_room(index);
        }
    }

    fn finish(&self, mut set: MutexGuard<'_, Set<M::Entry>>, index: u32, way: usize) {
        set.update(way);
        let wants_victim = self.wants_victim(&mut set);
        drop(set);
        if wants_victim && self.queue(index) {
            self.evict();
        }
    }

    /// Locks two sets, the lower one first so that no two cores wait for each other.
    fn lock_two(&self, first: u32, second: u32) -> Two<'_, M> {
        if first == second {
            return Two::Same(self.set(first));
        }
        if first < second {
            let lower = self.set(first);
            Two::Apart(lower, self.set(second))
        } else {
            let lower = self.set(second);
            Two::Apart(self.set(first), lower)
        }
    }

    /// Copies bytes from `offset` of a page out; false if its entry does not permit `access` now.
    pub fn copy_out(&self, at: M::Entry, access: Access, offset: usize, into: &mut [u8]) -> bool {
        self.with_line(
            at,
            |pte| pte.permits(access),
            |_, line| {
                self.machine.copy_out(line, offset, into);
            },
        )
    }

    /// Copies bytes into a page at `offset`; false if its entry does not permit a store now. With
    /// `force` the rights do not matter, only that the page is not to be copied first.
    pub fn copy_in(&self, at: M::Entry, force: bool, offset: usize, from: &[u8]) -> bool {
        let may =
            |pte: Pte| pte.permits(Access::Write) || force && pte.is_present() && !pte.is_cow();
        self.with_line(at, may, |set, line| {
            let (_, way) = self.geometry.place(line).expect("a line of this cache");
            set.lines[way].dirty = true;
            self.machine.copy_in(line, offset, from);
        })
    }

    /// Stores `new` in a page's word at `offset`, a multiple of four, if that is `old`
    /// ([`Machine::exchange`]); `None` if the entry does not permit a store now.
    pub fn exchange(
        &self,
        at: M::Entry,
        offset: usize,
        old: u32,
        new: u32,
    ) -> Option<Result<u32, u32>> {
        let mut exchanged = None;
        let may = |pte: Pte| pte.permits(Access::Write);
        self.with_line(at, may, |set, line| {
            let (_, way) = self.geometry.place(line).expect("a line of this cache");
            set.lines[way].dirty = true;
            exchanged = Some(self.machine.exchange(line, offset, old, new));
        });
        exchanged
    }

    /// Calls `act` with the line of a present entry that `may`, and its set locked: the line stays.
    fn with_line(
        &self,
        at: M::Entry,
        may: impl Fn(Pte) -> bool,
        act: impl FnOnce(&mut Set<M::Entry>, crate::LineId),
    ) -> bool {
        loop {
            let pte = at.load();
            if !pte.is_present() || !may(pte) {
                return false;
            }
            let (line, index, _) = self.place_of(pte.frame());
            let mut set = self.set(index);
            let now = at.load();
            if now.is_present() && now.frame() == pte.frame() && may(now) {
                act(&mut set, line);
                return true;
            }
        }
    }
}

/// Two locked sets, which may be one.
enum Two<'a, M: Machine> {
    Same(MutexGuard<'a, Set<M::Entry>>),
    Apart(MutexGuard<'a, Set<M::Entry>>, MutexGuard<'a, Set<M::Entry>>),
}

impl<M: Machine> Two<'_, M> {
    fn first(&mut self) -> &mut Set<M::Entry> {
        match self {
            Self::Same(set) | Self::Apart(set, _) => set,
        }
    }

    fn second(&mut self) -> &mut Set<M::Entry> {
        match self {
            Self::Same(set) | Self::Apart(_, set) => set,
        }
    }
}
