//! The victim cache: a few lines beside the sets, which hold what left them last (LegoOS's
//! mechanism).
//!
//! A victim is copied here and its line is free at once, also while the copy is written back. A
//! fault on its slot copies it into the set again, without a message. Slots are found by a search
//! of all entries under one lock: this is for comparisons, and no other mechanism takes that lock.
//!
//! An entry belongs to its slot's set: it changes with that set locked, but for giving a clean
//! entry to another slot. So a slot has an entry or a line, or both while an entry that was copied
//! back is still being written; the line counts as `flushing` then, which keeps it where it is.

use alloc::boxed::Box;

use hal::Instant;

use crate::set::{Set, State};
use crate::sync::Mutex;
use crate::{Cache, Error, IoFailed, LineId, Machine, Slot};

/// Entries at most (LegoOS's `VICTIM_NR_ENTRIES`).
pub(crate) const MOST: u32 = 128;

/// State of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Held {
    Nothing,
    /// Bytes that M has, too.
    Clean,
    /// Bytes that are being written to M.
    Writing,
    /// Being written; a line of the set has the slot again.
    Returned,
    /// Being written; the slot has no user any more.
    Dead,
    /// Bytes that could not be written to M.
    Unwritten,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    slot: Slot,
    held: Held,
    /// Start of the WRITE; zero if its time is not taken.
    started: Instant,
}

/// The entries, and where the search for the next one to use begins.
struct Entries {
    all: Box<[Entry]>,
    hand: usize,
}

impl Entries {
    /// Returns the entry that holds `slot` for its next fault.
    fn find(&mut self, slot: Slot) -> Option<(usize, &mut Entry)> {
        let holds =
            |entry: &Entry| matches!(entry.held, Held::Clean | Held::Writing | Held::Unwritten);
        let mut all = self.all.iter_mut().enumerate();
        all.find(|(_, entry)| entry.slot == slot && holds(entry))
    }

    /// Returns an entry for another slot, in turn; `None` while all wait for M.
    fn take(&mut self) -> Option<usize> {
        let count = self.all.len();
        let mut turn = (0..count).map(|i| (self.hand + i) % count);
        let index = turn.find(|&i| matches!(self.all[i].held, Held::Nothing | Held::Clean))?;
        self.hand = (index + 1) % count;
        Some(index)
    }
}

/// The victim cache. Its lock is taken under those of sets.
pub(crate) struct Victims {
    /// The number of the first entry's line.
    first: u32,
    entries: Mutex<Entries>,
}

impl Victims {
    /// Returns an empty victim cache whose lines follow the `lines` lines of the sets.
    pub(crate) fn new(lines: u32, count: u32) -> Self {
        let empty = Entry {
            slot: Slot::from_raw(0),
            held: Held::Nothing,
            started: Instant::default(),
        };
        let all = (0..count).map(|_| empty).collect();
        Self {
            first: lines,
            entries: Mutex::new(Entries { all, hand: 0 }),
        }
    }

    fn line(&self, index: usize) -> LineId {
        LineId(self.first + u32::try_from(index).expect("few entries"))
    }

    /// Returns how many entries hold something, and how many of them are being written.
    pub(crate) fn in_use(&self) -> (usize, usize) {
        let entries = self.entries.lock();
        let count =
            |is: fn(Held) -> bool| entries.all.iter().filter(|entry| is(entry.held)).count();
        let writing = count(|held| matches!(held, Held::Writing | Held::Returned | Held::Dead));
        (count(|held| held != Held::Nothing), writing)
    }
}

impl<M: Machine> Cache<M> {
    /// Copies a line that left its set into the victim cache and frees the line; `None` if there is
    /// no room. Returns the entry's line if it must be written. Called with the set locked.
    pub(crate) fn move_to_victims(
        &self,
        set: &mut Set<M::Entry>,
        index: u32,
        way: usize,
    ) -> Option<Option<(LineId, Slot)>> {
        let victims = self.victims.as_ref()?;
        let slot = set.slot(way)?;
        let mut entries = victims.entries.lock();
        let Some(free) = entries.take() else {
            set.counters.nr_victim_eviction_eagain += 1;
            return None;
        };
        let dirty = set.lines[way].dirty;
        let to = victims.line(free);
        self.machine.copy_line(self.geometry.line(index, way), to);
        entries.all[free] = Entry {
            slot,
            held: if dirty { Held::Writing } else { Held::Clean },
            started: self.start_time(set),
        };
        drop(entries);
        let counters = &mut set.counters;
        counters.nr_victim_finish_insert += 1;
        counters.nr_pcache_eviction_succeed += 1;
        counters.nr_pcache_eviction_dirty += u64::from(dirty);
        counters.nr_pcache_eviction_clean += u64::from(!dirty);
        counters.nr_clflush_clean_skipped += u64::from(!dirty);
        set.clear(way);
        Some(dirty.then_some((to, slot)))
    }

    /// Copies a slot from the victim cache into a line of its set; false if it is not there or the
    /// set has no room. Called with the set locked.
    pub(crate) fn return_victim(&self, set: &mut Set<M::Entry>, index: u32, slot: Slot) -> bool {
        let Some(victims) = &self.victims else {
            return false;
        };
        let mut entries = victims.entries.lock();
        let Some((found, entry)) = entries.find(slot) else {
            return false;
        };
        let Some(way) = set.take(slot, State::Valid) else {
            return false;
        };
        self.renew(set, index, way);
        self.machine
            .copy_line(victims.line(found), self.geometry.line(index, way));
        let line = &mut set.lines[way];
        line.dirty = entry.held == Held::Unwritten;
        line.flushing = u16::from(entry.held == Held::Writing);
        line.flushed = true;
        entry.held = if entry.held == Held::Writing {
            Held::Returned
        } else {
            Held::Nothing
        };
        set.update(way);
        set.counters.nr_victim_hit += 1;
        true
    }

    /// Returns whether the victim cache holds a slot. Called with the slot's set locked.
    pub(crate) fn has_victim(&self, slot: Slot) -> bool {
        let has = |victims: &Victims| victims.entries.lock().find(slot).is_some();
        self.victims.as_ref().is_some_and(has)
    }

    /// Forgets a slot that has no user and no line; false if its end must wait for a WRITE. Called
    /// with the slot's set locked.
    pub(crate) fn forget_victim(&self, slot: Slot) -> bool {
        let Some(victims) = &self.victims else {
            return true;
        };
        let mut entries = victims.entries.lock();
        let Some((_, entry)) = entries.find(slot) else {
            return true;
        };
        let writing = entry.held == Held::Writing;
        entry.held = if writing { Held::Dead } else { Held::Nothing };
        !writing
    }

    /// Takes the end of an entry's WRITE.
    pub(crate) fn victim_written(
        &self,
        id: LineId,
        result: Result<(), IoFailed>,
    ) -> Result<(), Error> {
        let unknown = || Error::UnknownTransfer(id);
        let victims = self.victims.as_ref().ok_or_else(unknown)?;
        let index = id.0.checked_sub(victims.first).ok_or_else(unknown)? as usize;
        let of = |entry: &Entry| {
            let writing = matches!(entry.held, Held::Writing | Held::Returned | Held::Dead);
            writing.then_some(entry.slot)
        };
        // The entry keeps its slot while it is written.
        let slot = victims
            .entries
            .lock()
            .all
            .get(index)
            .and_then(of)
            .ok_or_else(unknown)?;
        let mut set = self.set(self.geometry.set_of(slot));
        let mut entries = victims.entries.lock();
        let Entry { held, started, .. } = entries.all[index];
        entries.all[index].held = match (held, result) {
            (Held::Writing, Ok(())) => Held::Clean,
            (Held::Writing, Err(_)) => Held::Unwritten,
            _ => Held::Nothing,
        };
        drop(entries);
        match held {
            Held::Dead => self.chunks.free(slot),
            Held::Returned => {
                let way = set.find(slot).expect("the line waits for this");
                let line = &mut set.lines[way];
                line.flushing -= 1;
                line.dirty |= result.is_err();
                self.settle(&mut set, way);
            }
            _ => {}
        }
        let outcome = match result {
            Ok(()) => {
                set.counters.nr_clflush += 1;
                self.flush_took(started);
                Ok(())
            }
            Err(cause) => {
                set.counters.nr_clflush_fail += 1;
                Err(Error::WriteBack { slot, cause })
            }
        };
        Set::changed(set);
        outcome
    }
}
