//! Sets that wait for a victim: a queue for each core.

use alloc::boxed::Box;
use alloc::collections::VecDeque;

use crate::sync::Mutex;

/// The queues. A queue's lock is a leaf lock.
pub(crate) struct Queues(Box<[Mutex<VecDeque<u32>>]>);

impl Queues {
    /// Returns empty queues; no queue ever holds more than `sets`, as a set is in one at a time.
    pub(crate) fn new(cores: u32, sets: u32) -> Self {
        let queue = |_| Mutex::new(VecDeque::with_capacity(sets as usize));
        Self((0..cores.max(1)).map(queue).collect())
    }

    fn of(&self, core: usize) -> &Mutex<VecDeque<u32>> {
        &self.0[core % self.0.len()]
    }

    /// Adds a set; returns how many wait now.
    pub(crate) fn push(&self, core: usize, index: u32) -> usize {
        let mut queue = self.of(core).lock();
        queue.push_back(index);
        queue.len()
    }

    /// Takes the set that has waited longest.
    pub(crate) fn pop(&self, core: usize) -> Option<u32> {
        self.of(core).lock().pop_front()
    }
}
