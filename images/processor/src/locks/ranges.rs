//! Locks of byte ranges of one file, as `fcntl` has them. Pure logic.

use alloc::vec::Vec;

/// The owner of a lock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Owner {
    /// A process (`F_SETLK`).
    Process(u32),
    /// An open file, by its address (`F_OFD_SETLK`).
    File(usize),
}

/// The two kinds: a writer's excludes all others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Read,
    Write,
}

/// Bytes from `start` to before `end`; `u64::MAX` is the end of every file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Range {
    fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// A lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lock {
    pub(crate) owner: Owner,
    pub(crate) range: Range,
    pub(crate) mode: Mode,
}

impl Lock {
    /// Returns whether two locks can't be held at once.
    pub(super) fn excludes(&self, other: &Self) -> bool {
        self.owner != other.owner
            && self.range.overlaps(other.range)
            && (self.mode == Mode::Write || other.mode == Mode::Write)
    }
}

/// The locks of one file. Those of an owner do not overlap.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    locks: Vec<Lock>,
}

impl Ranges {
    /// Returns the lock that excludes `wanted` and begins first.
    pub(super) fn conflict(&self, wanted: &Lock) -> Option<Lock> {
        let excluding = self.conflicts(wanted);
        excluding.min_by_key(|lock| lock.range.start)
    }

    /// Returns all locks that exclude `wanted`.
    pub(super) fn conflicts(&self, wanted: &Lock) -> impl Iterator<Item = Lock> {
        self.locks
            .iter()
            .filter(|lock| lock.excludes(wanted))
            .copied()
    }

    /// Sets what an owner holds of a range: a lock, or nothing.
    pub(super) fn set(&mut self, owner: Owner, range: Range, mode: Option<Mode>) {
        let mut kept = Vec::with_capacity(self.locks.len() + 2);
        let mut range = range;
        for lock in self.locks.drain(..) {
            let touches = lock.range.start <= range.end && range.start <= lock.range.end;
            if lock.owner != owner || !touches {
                kept.push(lock);
            } else if Some(lock.mode) == mode {
                // Neighbours of the same kind become one.
                range.start = range.start.min(lock.range.start);
                range.end = range.end.max(lock.range.end);
            } else {
                let before = Range {
                    end: lock.range.end.min(range.start),
                    ..lock.range
                };
                let behind = Range {
                    start: lock.range.start.max(range.end),
                    ..lock.range
                };
                let rest = [before, behind]
                    .into_iter()
                    .filter(|rest| rest.start < rest.end);
                kept.extend(rest.map(|range| Lock { range, ..lock }));
            }
        }
        kept.extend(mode.map(|mode| Lock { owner, range, mode }));
        self.locks = kept;
    }

    /// Takes all locks from an owner; returns whether there were any.
    pub(super) fn release(&mut self, owner: Owner) -> bool {
        let before = self.locks.len();
        self.locks.retain(|lock| lock.owner != owner);
        self.locks.len() < before
    }

    /// Returns the locks.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Lock> {
        self.locks.iter()
    }

    /// Returns how many locks there are.
    pub(super) fn len(&self) -> usize {
        self.locks.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Model: the mode in which each owner holds each byte.
    type Model = [[Option<Mode>; 20]; 3];

    fn held(ranges: &Ranges, owner: u32, byte: u64) -> Option<Mode> {
        let mut own = ranges.locks.iter().filter(|lock| {
            lock.owner == Owner::Process(owner)
                && (lock.range.start..lock.range.end).contains(&byte)
        });
        let found = own.next().map(|lock| lock.mode);
        assert!(own.next().is_none(), "an owner's locks do not overlap");
        found
    }

    proptest! {
        #[test]
        fn ranges_are_what_each_byte_says(
            steps in proptest::collection::vec((0..3u32, 0..20u64, 1..20u64, 0..3u8), 1..60),
        ) {
            let mut ranges = Ranges::default();
            let mut model: Model = [[None; 20]; 3];
            for (owner, start, len, kind) in steps {
                let range = Range { start, end: (start + len).min(20) };
                let mode = [None, Some(Mode::Read), Some(Mode::Write)][usize::from(kind)];
                let excluded = mode.is_some_and(|mode| {
                    (range.start..range.end).any(|byte| {
                        (0..3).filter(|&other| other != owner).any(|other| {
                            let there = model[other as usize][usize::try_from(byte).unwrap()];
                            there == Some(Mode::Write) || there.is_some() && mode == Mode::Write
                        })
                    })
                });
                let wanted = mode.map(|mode| Lock { owner: Owner::Process(owner), range, mode });
                let conflict = wanted.and_then(|wanted| ranges.conflict(&wanted));
                prop_assert_eq!(conflict.is_some(), excluded);
                if !excluded {
                    ranges.set(Owner::Process(owner), range, mode);
                    for byte in range.start..range.end {
                        model[owner as usize][usize::try_from(byte).unwrap()] = mode;
                    }
                }
                for owner in 0..3 {
                    for byte in 0..20 {
                        let expected = model[owner as usize][usize::try_from(byte).unwrap()];
                        prop_assert_eq!(held(&ranges, owner, byte), expected);
                    }
                }
                prop_assert!(ranges.len() <= 60, "neighbours are joined");
            }
        }
    }
}
