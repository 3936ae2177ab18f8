//! Counts of the work that a core does between two turns.

use std::cell::Cell;

/// Work of a core before other tasks have their turn: pages copied, zeroed or unmapped.
#[derive(Default)]
pub(crate) struct Turns {
    work: Cell<u64>,
    pub(crate) most: Cell<u64>,
}

impl Turns {
    /// Notes that work of so many pages was done.
    pub(crate) fn did(&self, pages: usize) {
        self.work.set(self.work.get() + pages as u64);
        self.most.set(self.most.get().max(self.work.get()));
    }

    /// Notes that other tasks have their turn.
    pub(crate) fn next(&self) {
        self.work.set(0);
    }
}
