//! One set: its lines, their states, and the choice of a victim. Plain data under the set's lock.

use alloc::boxed::Box;

use hal::Instant;

use crate::{Counters, IoFailed, Page};

/// Which line of a full set leaves first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Policy {
    /// Second chance: in turn, but a line used since its last turn is passed over once.
    #[default]
    Clock,
    /// Strictly in turn, used or not.
    Fifo,
}

/// What a line holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Nothing.
    Free,
    /// A page that is being read from remote memory.
    Reading,
    /// A page that is being zeroed, or that the caller is loading.
    Loading,
    /// A page.
    Valid,
    /// A page, and the line is being written back.
    Writing,
    /// Nothing: the read failed, and the next access to the page is to be told.
    Failed(IoFailed),
}

/// One line. What its flags mean for a free line is nothing.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) page: Page,
    pub(crate) state: State,
    /// The page tables have it.
    pub(crate) mapped: bool,
    /// A core is taking the mapping away without holding the lock; until it is back the line is left alone.
    pub(crate) unmapping: bool,
    /// The page was given up (munmap, exit): the line becomes free once nothing uses it any more.
    pub(crate) doomed: bool,
    /// Changed since the last write-back began, beyond what the page tables' dirty bit says.
    pub(crate) dirty: bool,
    /// Used since its last turn, beyond what the page tables' accessed bit says.
    pub(crate) referenced: bool,
    /// Chosen as a victim and not used since.
    pub(crate) victim: bool,
    /// Written back as a victim.
    pub(crate) flushed: bool,
    /// Copies under way that need the line to stay.
    pub(crate) pins: u32,
    /// Tells this transfer of the line from earlier ones.
    pub(crate) generation: u32,
    /// When the transfer under way began.
    pub(crate) started: Instant,
}

impl Line {
    const FREE: Self = Self {
        page: Page {
            space: crate::SpaceId(0),
            vpn: crate::Vpn(0),
        },
        state: State::Free,
        mapped: false,
        unmapping: false,
        doomed: false,
        dirty: false,
        referenced: false,
        victim: false,
        flushed: false,
        pins: 0,
        generation: 0,
        started: Instant::from_nanos(0),
    };

    /// Starts a new life as the line of `page`.
    pub(crate) fn begin(&mut self, page: Page, state: State, now: Instant) {
        *self = Self {
            page,
            state,
            referenced: true,
            generation: self.generation.wrapping_add(1),
            started: now,
            ..Self::FREE
        };
    }

    /// Starts a write-back; what is written to the page from here on makes it dirty again.
    pub(crate) fn begin_write(&mut self, now: Instant) {
        self.state = State::Writing;
        self.dirty = false;
        self.flushed = true;
        self.generation = self.generation.wrapping_add(1);
        self.started = now;
    }

    /// Whether the page's bytes are here, whatever else happens to the line.
    pub(crate) fn has_bytes(&self) -> bool {
        matches!(self.state, State::Valid | State::Writing)
    }

    /// Frees the line if its page was given up and nothing uses it any more.
    pub(crate) fn settle(&mut self) {
        let quiet = matches!(self.state, State::Valid | State::Failed(_));
        if self.doomed && quiet && self.pins == 0 && !self.unmapping {
            *self = Self {
                generation: self.generation,
                ..Self::FREE
            };
        }
    }

    /// Whether the line could serve another page at once.
    fn reclaimable(&self) -> bool {
        self.evictable() && !self.mapped && !self.dirty
    }

    /// Whether nothing but a mapping or unwritten bytes hold the line.
    fn evictable(&self) -> bool {
        self.state == State::Valid && self.pins == 0 && !self.unmapping && !self.doomed
    }

    /// Whether the line will be reclaimable when its write-back is done.
    fn leaving(&self) -> bool {
        self.state == State::Writing && self.pins == 0 && !self.mapped && !self.dirty
    }
}

/// The lines of one set.
#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) lines: Box<[Line]>,
    pub(crate) counters: Counters,
    hand: usize,
}

impl Set {
    pub(crate) fn new(ways: u32) -> Self {
        Self {
            lines: (0..ways).map(|_| Line::FREE).collect(),
            counters: Counters::default(),
            hand: 0,
        }
    }

    /// The way that holds, or will hold, or is just giving up `page`.
    pub(crate) fn find(&self, page: Page) -> Option<usize> {
        self.lines
            .iter()
            .position(|l| l.state != State::Free && l.page == page)
    }

    /// A way that can serve a new page at once: a free one, else one whose page is written back and unmapped.
    pub(crate) fn take(&mut self) -> Option<usize> {
        if let Some(way) = self.lines.iter().position(|l| l.state == State::Free) {
            return Some(way);
        }
        let Some(way) = self.turn(Line::reclaimable) else {
            // The accesses that waited for a failed read may all be gone; those that are not read again.
            return self
                .lines
                .iter()
                .position(|l| matches!(l.state, State::Failed(_)));
        };
        self.counters.nr_pcache_eviction_succeed += 1;
        if self.lines[way].flushed {
            self.counters.nr_pcache_eviction_dirty += 1;
        } else {
            self.counters.nr_pcache_eviction_clean += 1;
        }
        Some(way)
    }

    /// Lines that can serve a new page now, or when the write-backs under way are done.
    pub(crate) fn reserve(&self) -> usize {
        self.lines
            .iter()
            .filter(|l| l.state == State::Free || l.reclaimable() || l.leaving())
            .count()
    }

    /// Lines that leave when their write-backs are done.
    pub(crate) fn leaving(&self) -> usize {
        self.lines.iter().filter(|l| l.leaving()).count()
    }

    /// The next line to leave; none if all are in flight, pinned or leaving. `accessed` asks the page tables about a
    /// mapped page and makes them forget.
    pub(crate) fn victim(&mut self, policy: Policy, mut accessed: impl FnMut(Page) -> bool) -> Option<usize> {
        let ways = self.lines.len();
        // After one whole turn each line has lost its second chance.
        for _ in 0..2 * ways {
            let way = self.hand;
            self.hand = (way + 1) % ways;
            let line = &mut self.lines[way];
            if !line.evictable() {
                continue;
            }
            let used = (line.mapped && accessed(line.page)) | line.referenced;
            line.referenced = false;
            if policy == Policy::Fifo || !used {
                return Some(way);
            }
        }
        // Cores that keep using every page: then in turn.
        self.turn(Line::evictable)
    }

    /// The first way from the hand on that is `fit`; the hand moves past it.
    fn turn(&mut self, fit: impl Fn(&Line) -> bool) -> Option<usize> {
        let ways = self.lines.len();
        let way = (0..ways)
            .map(|i| (self.hand + i) % ways)
            .find(|&way| fit(&self.lines[way]))?;
        self.hand = (way + 1) % ways;
        Some(way)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SpaceId, Vpn};

    fn page(vpn: u64) -> Page {
        Page {
            space: SpaceId(1),
            vpn: Vpn(vpn),
        }
    }

    fn full_set(ways: u32) -> Set {
        let mut set = Set::new(ways);
        for vpn in 0..u64::from(ways) {
            let way = set.take().unwrap();
            set.lines[way].begin(page(vpn), State::Valid, Instant::default());
            set.lines[way].mapped = true;
        }
        set
    }

    #[test]
    fn clock_gives_used_lines_a_second_chance() {
        let mut set = full_set(4);
        // All are fresh: the first turn takes their references, the second takes the first line.
        assert_eq!(set.victim(Policy::Clock, |_| false), Some(0));
        set.lines[0].begin(page(9), State::Valid, Instant::default());
        // Page 1 was used, page 2 was not.
        assert_eq!(set.victim(Policy::Clock, |p| p == page(1)), Some(2));
    }

    #[test]
    fn fifo_ignores_use() {
        let mut set = full_set(4);
        assert_eq!(set.victim(Policy::Fifo, |_| true), Some(0));
        assert_eq!(set.victim(Policy::Fifo, |_| true), Some(1));
    }

    #[test]
    fn pinned_and_flying_lines_are_no_victims() {
        let mut set = full_set(4);
        set.lines[0].pins = 1;
        set.lines[1].state = State::Reading;
        set.lines[2].state = State::Writing;
        set.lines[3].unmapping = true;
        assert_eq!(set.victim(Policy::Clock, |_| false), None);
        assert_eq!(set.take(), None);
    }

    #[test]
    fn pages_used_without_end_still_leave() {
        assert!(full_set(4).victim(Policy::Clock, |_| true).is_some());
    }
}
