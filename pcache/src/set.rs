//! One set: its lines and their states. Plain data under the set's lock.
//!
//! ```text
//!            READ started             READ ended
//!   Free ───────────────► Reading ─────────────────┐
//!    │ ▲                     │ failed              ▼         unmapped, dirty: WRITE started
//!    │ │                     ▼                  ┌───────┐ ─────────────────────────────► Writing
//!    │ │                  Failed                │ Valid │ ◄──────────────────────────────  │
//!    │ │ no user left,       │                  └───────┘           WRITE ended            │
//!    │ └─ nothing under way ─┴───────────────────┴───┘  ▲                                  │
//!    └───── zeroed, copied or loaded ───────────────────┘      (a fault may map it again) ─┘
//! ```

use alloc::boxed::Box;
use core::task::Waker;

use hal::Instant;
use mutants::Mutant;

use crate::rmap::{Chain, Mapping};
use crate::sync::MutexGuard;
use crate::{Counters, IoFailed, Policy, Pte, Slot};

/// Capacity of a set's list of waiters; beyond it waiters are woken early.
const WAITERS: usize = 8;

/// State of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Holds no slot.
    Free,
    /// Being filled by a READ.
    Reading,
    /// Holds a slot's bytes.
    Valid,
    /// Holds a slot's bytes, and is being written back.
    Writing,
    /// Holds no bytes: the READ failed. The next access to the slot returns the error.
    Failed(IoFailed),
}

/// One line. Flags are meaningless while the line is `Free`.
#[derive(Clone, Debug)]
pub(crate) struct Line<E> {
    pub(crate) state: State,
    /// Zero-filled and never written back: M's copy of the slot is garbage.
    pub(crate) fresh: bool,
    /// Changed since the last write-back began, beyond the dirty marks of the entries.
    pub(crate) dirty: bool,
    /// The slot has no user any more; line and slot become free when nothing is under way.
    pub(crate) dead: bool,
    /// Chosen as a victim and not used since.
    pub(crate) victim: bool,
    /// Written back since it was filled.
    pub(crate) flushed: bool,
    /// Read ahead and not known to be used yet.
    pub(crate) prefetched: bool,
    /// A READ brought its bytes, and no [`Machine::prepare_code`] followed.
    ///
    /// [`Machine::prepare_code`]: crate::Machine::prepare_code
    pub(crate) fetched: bool,
    /// Programs may have executed it. Outlives the slot: see [`Machine::retire_code`].
    ///
    /// [`Machine::retire_code`]: crate::Machine::retire_code
    pub(crate) code: bool,
    /// Shootdowns under way that the line waits for before it is written back or used again.
    pub(crate) flushing: u16,
    /// Tick of the set at which it was last used or filled.
    pub(crate) stamp: u32,
    /// Start of the transfer in flight; zero if its time is not taken.
    pub(crate) started: Instant,
    /// While `Reading`: what the entry of `first` must still be when the READ ends.
    pub(crate) expected: Pte,
    /// The first mapping; while `Reading` the one to be made when the READ ends.
    pub(crate) first: Option<Mapping<E>>,
    /// Further mappings.
    pub(crate) more: Chain,
}

impl<E> Line<E> {
    const FREE: Self = Self {
        state: State::Free,
        fresh: false,
        dirty: false,
        dead: false,
        victim: false,
        flushed: false,
        prefetched: false,
        fetched: false,
        code: false,
        flushing: 0,
        stamp: 0,
        started: Instant::from_nanos(0),
        expected: Pte::EMPTY,
        first: None,
        more: Chain::EMPTY,
    };

    /// Returns whether entries map the line.
    pub(crate) fn mapped(&self) -> bool {
        self.state != State::Reading && self.first.is_some()
    }

    /// Returns whether the line may be chosen as a victim.
    pub(crate) fn evictable(&self) -> bool {
        let quiet = self.flushing == 0 || Mutant::ReusedBeforeShootdown.on();
        self.state == State::Valid && quiet && !self.dead
    }

    /// Returns whether the line can serve another slot at once.
    fn reclaimable(&self) -> bool {
        self.evictable() && self.first.is_none() && !self.dirty && !self.fresh
    }

    /// Returns whether the line becomes reclaimable when transfers or shootdowns end.
    fn leaving(&self) -> bool {
        let out = self.first.is_none() && (self.victim || self.dead);
        out && (self.flushing > 0 || self.state == State::Writing)
    }
}

/// The lines of one set.
#[derive(Debug)]
pub(crate) struct Set<E> {
    /// The slot of each line, or [`NO_SLOT`]: apart, so that a lookup reads one cache line.
    tags: Box<[u64]>,
    pub(crate) lines: Box<[Line<E>]>,
    /// A bit for each line that can serve a new slot at once.
    spare: u64,
    /// A bit for each line that will be spare soon.
    leaving: u64,
    pub(crate) tick: u32,
    pub(crate) hand: usize,
    /// The way used last, which is no victim, so that the faulting thread can use it even if all
    /// other lines are in flight.
    newest: usize,
    /// The set is in a queue of the evictor.
    pub(crate) queued: bool,
    waiters: heapless::Vec<Waker, WAITERS>,
    pub(crate) counters: Counters,
}

/// The tag of a free line.
const NO_SLOT: u64 = u64::MAX;

impl<E> Set<E> {
    pub(crate) fn new(ways: u32) -> Self {
        Self {
            tags: (0..ways).map(|_| NO_SLOT).collect(),
            lines: (0..ways).map(|_| Line::FREE).collect(),
            spare: u64::MAX >> (64 - ways),
            leaving: 0,
            tick: 0,
            hand: 0,
            newest: usize::MAX,
            queued: false,
            waiters: heapless::Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Returns the way that holds, or will hold, or is just giving up `slot`.
    pub(crate) fn find(&self, slot: Slot) -> Option<usize> {
        let tag = slot.raw();
        // Four at a time: two instructions a way in place of five.
        let (fours, rest) = self.tags.as_chunks::<4>();
        for (index, four) in fours.iter().enumerate() {
            if let Some(way) = position_of(tag, four) {
                return Some(4 * index + way);
            }
        }
        let way = rest.iter().position(|&there| there == tag)?;
        Some(4 * fours.len() + way)
    }

    /// Returns the slot of a way.
    pub(crate) fn slot(&self, way: usize) -> Option<Slot> {
        let tag = self.tags[way];
        (tag != NO_SLOT).then(|| Slot::from_raw(tag))
    }

    /// Takes a way that can serve `slot` at once, and makes it that slot's, in the state `state`.
    pub(crate) fn take(&mut self, slot: Slot, state: State) -> Option<usize> {
        if self.spare == 0 {
            return self.take_failed(slot, state);
        }
        let way = self.spare.trailing_zeros() as usize;
        if self.lines[way].state != State::Free {
            self.counters.nr_pcache_eviction_succeed += 1;
            if self.lines[way].flushed {
                self.counters.nr_pcache_eviction_dirty += 1;
            } else {
                self.counters.nr_pcache_eviction_clean += 1;
            }
        }
        self.begin(way, slot, state);
        Some(way)
    }

    /// The accesses that waited for a failed read may all be gone; those that are not read again.
    fn take_failed(&mut self, slot: Slot, state: State) -> Option<usize> {
        let failed = |line: &Line<E>| matches!(line.state, State::Failed(_)) && line.flushing == 0;
        let way = self.lines.iter().position(failed)?;
        self.begin(way, slot, state);
        Some(way)
    }

    fn begin(&mut self, way: usize, slot: Slot, state: State) {
        self.tick = self.tick.wrapping_add(1);
        self.newest = way;
        self.tags[way] = slot.raw();
        self.lines[way] = Line {
            state,
            stamp: self.tick,
            code: self.lines[way].code,
            ..Line::FREE
        };
        // It is neither, whatever `state` is: whoever took it says what becomes of it.
        self.spare &= !(1 << way);
        self.leaving &= !(1 << way);
    }

    /// Makes a way free.
    pub(crate) fn clear(&mut self, way: usize) {
        self.tags[way] = NO_SLOT;
        self.lines[way] = Line {
            code: self.lines[way].code,
            ..Line::FREE
        };
        self.update(way);
    }

    /// Notes what a change of a line means for [`spare`](Self::spare). Follows each change.
    pub(crate) fn update(&mut self, way: usize) {
        let (line, bit) = (&self.lines[way], 1 << way);
        self.spare &= !bit;
        self.leaving &= !bit;
        if line.state == State::Free || line.reclaimable() {
            self.spare |= bit;
        } else if line.leaving() {
            self.leaving |= bit;
        }
    }

    /// Makes a line that was unmapped, and that a shootdown waits for, a victim.
    pub(crate) fn leaves(&mut self, way: usize) {
        self.lines[way].victim = true;
        self.leaving |= 1 << way;
        debug_assert!(self.lines[way].leaving());
    }

    /// Returns whether so many lines are spare now, or become so when transfers end.
    pub(crate) fn has_reserve(&self, count: u32) -> bool {
        // Without the instruction for it, counting the bits takes 17 others; the reserve is mostly
        // 1.
        let mut lines = self.spare | self.leaving;
        for _ in 1..count {
            lines &= lines.wrapping_sub(1);
        }
        lines != 0
    }

    /// Marks a line as recently used.
    pub(crate) fn used(&mut self, way: usize) {
        self.tick = self.tick.wrapping_add(1);
        self.newest = way;
        let line = &mut self.lines[way];
        line.stamp = self.tick;
        line.victim = false;
        self.update(way);
    }

    /// Adds a waiter. If there is no room another is woken early: it looks, and comes back.
    pub(crate) fn wait(&mut self, waker: &Waker) {
        if self.waiters.iter().any(|known| known.will_wake(waker)) {
            return;
        }
        if self.waiters.is_full() {
            self.waiters.remove(0).wake();
        }
        if self.waiters.push(waker.clone()).is_err() {
            waker.wake_by_ref();
        }
    }

    /// Unlocks a set that has changed, and wakes its waiters.
    pub(crate) fn changed(set: MutexGuard<'_, Self>) {
        if !set.waiters.is_empty() {
            Self::wake(set);
        }
    }

    #[cold]
    #[inline(never)]
    fn wake(mut set: MutexGuard<'_, Self>) {
        let waiters = core::mem::take(&mut set.waiters);
        drop(set);
        waiters.into_iter().for_each(Waker::wake);
    }

    /// Chooses the next line to leave; `None` if all are in flight or leaving. `accessed` asks the
    /// entries of a line whether it was used, and makes them forget.
    #[inline]
    pub(crate) fn victim(
        &mut self,
        policy: Policy,
        mut accessed: impl FnMut(&mut Line<E>) -> bool,
    ) -> Option<usize> {
        match policy {
            Policy::Clock => self.clock(accessed),
            Policy::Lru => {
                let tick = self.tick;
                for line in &mut self.lines {
                    if line.mapped() && line.evictable() && accessed(line) {
                        line.stamp = tick;
                    }
                }
                self.oldest()
            }
            Policy::Fifo => self.oldest(),
            Policy::Random => {
                // xorshift32 (Marsaglia 2003) over the hand; any non-zero start will do.
                let mut x = self.tick.wrapping_mul(0x9e37_79b9) | 1;
                x ^= x << 13;
                x ^= x >> 17;
                x ^= x << 5;
                self.hand = x as usize % self.lines.len();
                self.turn()
            }
        }
    }

    /// Second chance: in turn, but a line used since its last turn is passed over once.
    #[inline]
    fn clock(&mut self, mut accessed: impl FnMut(&mut Line<E>) -> bool) -> Option<usize> {
        let ways = self.lines.len();
        for _ in 0..2 * ways {
            let way = self.hand;
            self.hand = if way + 1 == ways { 0 } else { way + 1 };
            if !self.may_leave(way) {
                continue;
            }
            let line = &mut self.lines[way];
            let used = (line.mapped() && accessed(line)) | (line.stamp != 0);
            line.stamp = 0;
            if !used {
                return Some(way);
            }
        }
        // Cores that keep using every page: then in turn.
        self.turn()
    }

    fn may_leave(&self, way: usize) -> bool {
        self.spare & (1 << way) == 0 && way != self.newest && self.lines[way].evictable()
    }

    /// Returns whether a full set gets room only by the end of a transfer or a shootdown, which
    /// wakes its waiters. Eviction can't help: enough lines are leaving, or none may. `but` names a
    /// line that must stay.
    pub(crate) fn is_stuck(&self, reserve: u32, but: Option<usize>) -> bool {
        let may = |way| Some(way) != but && self.may_leave(way);
        self.has_reserve(reserve) || !(0..self.lines.len()).any(may)
    }

    fn turn(&mut self) -> Option<usize> {
        let ways = self.lines.len();
        let way = (0..ways)
            .map(|i| (self.hand + i) % ways)
            .find(|&way| self.may_leave(way))?;
        self.hand = (way + 1) % ways;
        Some(way)
    }

    fn oldest(&self) -> Option<usize> {
        let age = |line: &Line<E>| self.tick.wrapping_sub(line.stamp);
        (0..self.lines.len())
            .filter(|&way| self.may_leave(way))
            .max_by_key(|&way| age(&self.lines[way]))
    }
}

/// Returns where `tag` is among four; written out, as the compiler does not unroll a search.
fn position_of(tag: u64, [a, b, c, d]: &[u64; 4]) -> Option<usize> {
    if *a == tag {
        Some(0)
    } else if *b == tag {
        Some(1)
    } else if *c == tag {
        Some(2)
    } else if *d == tag {
        Some(3)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChunkId;

    fn slot(page: u64) -> Slot {
        Slot::new(ChunkId(1), page)
    }

    fn mapping(page: u64) -> Mapping<u64> {
        Mapping {
            entry: page,
            page: crate::Page::default(),
        }
    }

    fn full_set(ways: u32) -> Set<u64> {
        let mut set = Set::new(ways);
        for page in 0..u64::from(ways) {
            let way = set.take(slot(page), State::Valid).unwrap();
            set.lines[way].first = Some(mapping(page));
            set.update(way);
        }
        set
    }

    fn entry_of(line: &Line<u64>) -> u64 {
        line.first.unwrap().entry
    }

    #[test]
    fn clock_gives_used_lines_a_second_chance() {
        let mut set = full_set(4);
        // All are fresh: the first turn takes their stamps, the second takes the first line.
        assert_eq!(set.victim(Policy::Clock, |_| false), Some(0));
        // Line 1 was used, line 2 was not.
        assert_eq!(set.victim(Policy::Clock, |l| entry_of(l) == 1), Some(2));
    }

    #[test]
    fn fifo_ignores_use_and_lru_does_not() {
        let mut set = full_set(4);
        assert_eq!(set.victim(Policy::Fifo, |_| true), Some(0));
        assert_eq!(set.victim(Policy::Lru, |l| entry_of(l) != 2), Some(2));
        assert_eq!(
            set.victim(Policy::Lru, |_| false),
            Some(2),
            "marks were kept"
        );
    }

    #[test]
    fn random_finds_every_line_but_the_newest() {
        let mut set = full_set(4);
        let mut seen = [false; 4];
        for _ in 0..100 {
            set.tick += 1;
            seen[set.victim(Policy::Random, |_| false).unwrap()] = true;
        }
        assert_eq!(seen, [true, true, true, false], "all but the newest");
    }

    #[test]
    fn lines_in_flight_are_no_victims_and_no_room() {
        for policy in [Policy::Clock, Policy::Lru, Policy::Fifo, Policy::Random] {
            let mut set = full_set(4);
            set.lines[0].flushing = 1;
            set.lines[1].state = State::Reading;
            set.lines[2].state = State::Writing;
            set.lines[3].dead = true;
            assert_eq!(set.victim(policy, |_| false), None);
            assert_eq!(set.take(slot(9), State::Reading), None);
        }
    }

    #[test]
    fn the_line_used_last_stays_though_all_others_are_in_flight() {
        for policy in [Policy::Clock, Policy::Lru, Policy::Fifo, Policy::Random] {
            let mut set = full_set(4);
            (0..3).for_each(|way| set.lines[way].state = State::Reading);
            assert_eq!(set.victim(policy, |_| false), None);
        }
    }

    #[test]
    fn pages_used_without_end_still_leave() {
        for policy in [Policy::Clock, Policy::Lru, Policy::Fifo, Policy::Random] {
            assert!(full_set(4).victim(policy, |_| true).is_some());
        }
    }
}
