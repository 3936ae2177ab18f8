//! Per-core counts of evictions whose shootdown is pending.
//!
//! An evictor makes entries remote or empty first, and does one shootdown for a batch later. A walk
//! in between (munmap, mprotect, fork) finds entries that need no shootdown of its own, though
//! cores may still use their old translations. So a walk checks these counts before it ends.

use alloc::boxed::Box;

use crate::sync::{AtomicU32, Ordering};

/// A core's count, in a cache line of its own: an eviction touches that of its core only.
#[repr(align(64))]
#[derive(Default)]
struct Core(AtomicU32);

/// The counts.
pub(crate) struct Shootdowns(Box<[Core]>);

impl Shootdowns {
    pub(crate) fn new(cores: u32) -> Self {
        Self((0..cores.max(1)).map(|_| Core::default()).collect())
    }

    fn of(&self, core: usize) -> &AtomicU32 {
        &self
            .0
            .get(core)
            .unwrap_or_else(|| &self.0[core % self.0.len()])
            .0
    }

    /// Notes that a core is about to change entries, before the first of them.
    pub(crate) fn begin(&self, core: usize) {
        self.of(core).fetch_add(1, Ordering::SeqCst);
    }

    /// Notes that no TLB holds the old translations any more.
    pub(crate) fn end(&self, core: usize) {
        self.of(core).fetch_sub(1, Ordering::SeqCst);
    }

    /// Returns whether a shootdown may be pending for changed entries.
    pub(crate) fn any(&self) -> bool {
        self.0.iter().any(|core| core.0.load(Ordering::SeqCst) > 0)
    }
}
