//! Sets that wait for a victim: a queue for each core.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::batch::BATCH;
use crate::sync::Mutex;

/// Sets that are taken at once.
pub(crate) type Taken = heapless::Vec<u32, BATCH>;

/// The queues. A queue's lock is a leaf lock.
pub(crate) struct Queues(Box<[Mutex<Vec<u32>>]>);

impl Queues {
    /// Returns empty queues; no queue ever holds more than `sets`, as a set is in one at a time.
    pub(crate) fn new(cores: u32, sets: u32) -> Self {
        let queue = |_| Mutex::new(Vec::with_capacity(sets as usize));
        Self((0..cores.max(1)).map(queue).collect())
    }

    fn of(&self, core: usize) -> &Mutex<Vec<u32>> {
        self.0
            .get(core)
            .unwrap_or_else(|| &self.0[core % self.0.len()])
    }

    /// Adds a set; returns how many wait now.
    pub(crate) fn push(&self, core: usize, index: u32) -> usize {
        let mut queue = self.of(core).lock();
        queue.push(index);
        queue.len()
    }

    /// Takes what waits, or part of it.
    pub(crate) fn take(&self, core: usize) -> Taken {
        let mut queue = self.of(core).lock();
        let from = queue.len().saturating_sub(BATCH);
        let mut taken = Taken::new();
        for index in queue.drain(from..) {
            let pushed = taken.push(index);
            debug_assert!(pushed.is_ok(), "a batch at most");
        }
        taken
    }
}
