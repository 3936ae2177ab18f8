//! Sets of disjoint ranges of blocks.

use alloc::collections::BTreeMap;

/// Disjoint ranges, by start.
#[derive(Debug, Default, Clone)]
pub(crate) struct Ranges {
    ends: BTreeMap<u64, u64>,
    /// Blocks of all ranges.
    blocks: u64,
}

impl Ranges {
    /// Adds `len` blocks from `start` on, which the set does not hold yet.
    pub(crate) fn insert(&mut self, start: u64, len: u64) {
        self.remove(start);
        self.ends.insert(start, start.saturating_add(len));
        self.blocks += len;
    }

    /// Removes the range that was added with this start.
    pub(crate) fn remove(&mut self, start: u64) {
        if let Some(end) = self.ends.remove(&start) {
            self.blocks -= end - start;
        }
    }

    /// Returns the end of the first range that meets `start..end`.
    pub(crate) fn meets(&self, start: u64, end: u64) -> Option<u64> {
        let (_, &last) = self.ends.range(..end).next_back()?;
        (last > start).then_some(last)
    }

    /// Returns whether the set is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns how many blocks there are.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Returns the ranges as (start, length).
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ends.iter().map(|(&start, &end)| (start, end - start))
    }
}
