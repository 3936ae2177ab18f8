//! Handing out numbers and ranges of tables.

use alloc::vec;
use alloc::vec::Vec;
use verbs::Resource;

use crate::Error;

/// Hands out single numbers below a limit, each as late as possible after it was given back: what
/// is still on its way for an old number should not meet a new one.
pub(crate) struct Numbers {
    resource: Resource,
    first: usize,
    used: Vec<bool>,
    next: usize,
}

impl Numbers {
    /// The numbers from `first` to `limit` − 1; none if the card keeps all to itself.
    pub(crate) fn new(resource: Resource, first: usize, limit: usize) -> Self {
        let first = first.min(limit);
        let mut used = vec![false; limit];
        used.iter_mut().take(first).for_each(|used| *used = true);
        Self {
            resource,
            first,
            used,
            next: first,
        }
    }

    /// Lets the next number be the first free one from `place` on.
    pub(crate) fn search_from(&mut self, place: usize) {
        self.next = place.min(self.used.len());
    }

    pub(crate) fn take(&mut self) -> Result<u32, Error> {
        let limit = self.used.len();
        let found = (self.next..limit)
            .chain(0..self.next)
            .find(|&number| !self.used[number]);
        let exhausted = Error::Exhausted {
            resource: self.resource,
            limit: limit as u64,
        };
        let number = found.ok_or(exhausted)?;
        self.used[number] = true;
        self.next = (number + 1) % limit;
        u32::try_from(number).map_err(|_| exhausted)
    }

    /// Takes a number back; one that was never handed out stays reserved.
    pub(crate) fn give_back(&mut self, number: u32) {
        let number = number as usize;
        if number >= self.first
            && let Some(used) = self.used.get_mut(number)
        {
            *used = false;
        }
    }
}

/// A run of consecutive table entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) first: u32,
    pub(crate) count: u32,
}

impl Range {
    /// Byte offset of the first entry, if it is the MTT's.
    pub(crate) fn mtt_offset(self) -> u64 {
        u64::from(self.first) * mlx4_hw::mtt::ENTRY_LEN
    }
}

/// Hands out runs of table entries, first fit.
pub(crate) struct Ranges {
    resource: Resource,
    /// Free runs by their first entry; no two touch.
    free: Vec<Range>,
    limit: u32,
}

impl Ranges {
    pub(crate) fn new(resource: Resource, first: u32, limit: u32) -> Self {
        let count = limit.saturating_sub(first);
        Self {
            resource,
            free: vec![Range { first, count }],
            limit,
        }
    }

    pub(crate) fn take(&mut self, count: u32) -> Result<Range, Error> {
        let run = self.free.iter_mut().find(|run| run.count >= count);
        let run = run.ok_or(Error::Exhausted {
            resource: self.resource,
            limit: self.limit.into(),
        })?;
        let taken = Range {
            first: run.first,
            count,
        };
        run.first += count;
        run.count -= count;
        self.free.retain(|run| run.count > 0);
        Ok(taken)
    }

    pub(crate) fn give_back(&mut self, range: Range) {
        let at = self.free.partition_point(|run| run.first < range.first);
        self.free.insert(at, range);
        self.free.dedup_by(|later, earlier| {
            let touch = earlier.first + earlier.count == later.first;
            if touch {
                earlier.count += later.count;
            }
            touch
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_given_back_is_the_last_to_be_reused() {
        let mut numbers = Numbers::new(Resource::QueuePair, 2, 5);
        assert_eq!(numbers.take(), Ok(2));
        numbers.give_back(2);
        numbers.give_back(0);
        assert_eq!([3, 4, 2].map(Ok), [(); 3].map(|()| numbers.take()));
        assert_eq!(
            numbers.take(),
            Err(Error::Exhausted {
                resource: Resource::QueuePair,
                limit: 5
            })
        );
    }

    #[test]
    fn a_card_that_keeps_everything_leaves_nothing() {
        assert!(Numbers::new(Resource::QueuePair, 9, 4).take().is_err());
        assert!(
            Ranges::new(Resource::TranslationEntry, 9, 4)
                .take(1)
                .is_err()
        );
    }

    #[test]
    fn ranges_join_again() {
        let mut ranges = Ranges::new(Resource::TranslationEntry, 4, 16);
        let parts = [3, 4, 5].map(|count| ranges.take(count).unwrap());
        assert!(ranges.take(1).is_err());
        for part in [parts[1], parts[0], parts[2]] {
            ranges.give_back(part);
        }
        assert_eq!(
            ranges.take(12),
            Ok(Range {
                first: 4,
                count: 12
            })
        );
    }
}
