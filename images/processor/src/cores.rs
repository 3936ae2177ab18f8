//! Cores and the threads on them: where a new thread goes, and when one moves.
//!
//! A core's executor shares its time among the threads that it has. A thread moves between turns
//! only, from a core where others wait to one that has nothing to run: it ends its task and begins
//! another.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Cores at most.
const MAX_CORES: usize = 256;

/// One core.
#[derive(Debug)]
struct Core {
    /// Threads that live here, sleeping or not.
    threads: AtomicU32,
    /// Threads that were preempted and wait for their next turn.
    waiting: AtomicU32,
    /// A thread has its turn.
    running: AtomicBool,
    /// The thread of the last turn; 0 before the first.
    last: AtomicU32,
    /// Nanoseconds of all turns that are over.
    busy: AtomicU64,
}

impl Core {
    const fn new() -> Self {
        Self {
            threads: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            running: AtomicBool::new(false),
            last: AtomicU32::new(0),
            busy: AtomicU64::new(0),
        }
    }

    fn is_idle(&self) -> bool {
        !self.running.load(Ordering::Relaxed) && self.waiting.load(Ordering::Relaxed) == 0
    }
}

/// All cores.
#[derive(Debug)]
pub(crate) struct Cores([Core; MAX_CORES]);

impl Default for Cores {
    fn default() -> Self {
        Self([const { Core::new() }; MAX_CORES])
    }
}

/// Returns whether a set of cores has one. Sets have bits for 64 cores; those beyond are in every
/// set.
fn allows(affinity: u64, core: usize) -> bool {
    core >= 64 || affinity >> core & 1 != 0
}

impl Cores {
    fn of(&self, core: usize) -> &Core {
        &self.0[core % MAX_CORES]
    }

    fn allowed(count: usize, affinity: u64) -> impl Iterator<Item = usize> {
        (0..count.clamp(1, MAX_CORES)).filter(move |&core| allows(affinity, core))
    }

    /// Chooses one of the first `count` cores for a new thread and counts it there: an idle one
    /// before others, then the one with the fewest threads.
    pub(crate) fn choose(&self, count: usize, affinity: u64) -> usize {
        let load = |core: &usize| {
            let core = self.of(*core);
            (!core.is_idle(), core.threads.load(Ordering::Relaxed))
        };
        let core = Self::allowed(count, affinity).min_by_key(load).unwrap_or(0);
        self.of(core).threads.fetch_add(1, Ordering::Relaxed);
        core
    }

    /// Takes a thread off a core's count.
    pub(crate) fn leave(&self, core: usize) {
        self.of(core).threads.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns how many threads a core has.
    pub(crate) fn threads_on(&self, core: usize) -> u32 {
        self.of(core).threads.load(Ordering::Relaxed)
    }

    /// Notes that a thread begins a turn; returns whether the core's last turn was another's.
    pub(crate) fn begin_turn(&self, core: usize, tid: u32) -> bool {
        let core = self.of(core);
        core.running.store(true, Ordering::Relaxed);
        // Only the core itself writes this.
        let other = core.last.load(Ordering::Relaxed) != tid;
        if other {
            core.last.store(tid, Ordering::Relaxed);
        }
        other
    }

    /// Notes that a thread's turn is over, which took so many nanoseconds.
    pub(crate) fn end_turn(&self, core: usize, nanos: u64) {
        let core = self.of(core);
        core.running.store(false, Ordering::Relaxed);
        core.busy.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Returns the nanoseconds that threads have had of a core.
    pub(crate) fn busy_of(&self, core: usize) -> u64 {
        self.of(core).busy.load(Ordering::Relaxed)
    }

    /// Returns the nanoseconds that threads have had of the first `count` cores.
    pub(crate) fn busy(&self, count: usize) -> u64 {
        (0..count.min(MAX_CORES))
            .map(|core| self.busy_of(core))
            .sum()
    }

    /// Notes that a preempted thread waits for its next turn.
    pub(crate) fn begin_wait(&self, core: usize) {
        self.of(core).waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that a preempted thread has its next turn.
    pub(crate) fn end_wait(&self, core: usize) {
        self.of(core).waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns the core to which a thread moves from `core`, whose turn there is over, and counts
    /// it there: one that it may run on, if it may no longer run here; an idle one, if others wait
    /// here.
    pub(crate) fn better(&self, core: usize, count: usize, affinity: u64) -> Option<usize> {
        let here = self.of(core);
        let new = if !allows(affinity, core) {
            return Self::allowed(count, affinity)
                .next()
                .map(|_| self.choose(count, affinity));
        } else if here.waiting.load(Ordering::Relaxed) > 0 {
            Self::allowed(count, affinity)
                .find(|&other| other != core && self.of(other).is_idle())?
        } else {
            return None;
        };
        self.of(new).threads.fetch_add(1, Ordering::Relaxed);
        Some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_threads_go_where_nothing_runs() {
        let cores = Cores::default();
        assert_eq!(cores.choose(2, u64::MAX), 0);
        assert!(cores.begin_turn(0, 7) && !cores.begin_turn(0, 7));
        assert_eq!(cores.choose(2, u64::MAX), 1);
        assert_eq!(
            cores.choose(2, u64::MAX),
            1,
            "idle, though it has as many threads"
        );
        assert_eq!(cores.choose(2, 1), 0, "the only one allowed");
    }

    #[test]
    fn a_thread_moves_only_from_a_crowd_to_an_idle_core() {
        let cores = Cores::default();
        assert_eq!(cores.better(0, 2, u64::MAX), None, "nobody waits");
        cores.begin_wait(0);
        assert_eq!(cores.better(0, 2, u64::MAX), Some(1));
        assert_eq!(cores.better(0, 2, 1), None, "it may not");
        cores.begin_turn(1, 8);
        assert_eq!(cores.better(0, 2, u64::MAX), None, "nobody is idle");
        cores.end_wait(0);
        assert_eq!(cores.better(0, 2, 2), Some(1), "it may no longer stay");
        assert_eq!(cores.better(0, 2, 4), None, "no such core");
    }
}
