//! Changes of an address space that take no waiting: most calls of mmap and munmap.
//!
//! Each function does all of a change or nothing; what it leaves is for [`map`](super::map).

use core::ops::Range;

use messages::{CHUNK_SIZE, PAGE_SIZE};

use super::Space;
use super::map::Place;
use super::vma::{Vma, VmaFlags};
use crate::process::Node;

impl<N: Node> Space<'_, N> {
    /// Maps `len` bytes, a multiple of the page size, where nothing is mapped; returns where.
    /// `None` while another thread changes the address space, if M must promise more first, or on
    /// an error.
    pub(crate) fn map_now(&self, place: Place, len: u64, mut vma: Vma) -> Option<u64> {
        if matches!(place, Place::Exactly(_)) {
            return None;
        }
        let _change = self.change.try_pass()?;
        let supply = self.node.supply();
        let charge = if vma.accountable() {
            len / PAGE_SIZE
        } else {
            0
        };
        // Before the search, which moves on from the gap that it finds.
        if !supply.commit_now(charge) {
            return None;
        }
        vma.flags.set(VmaFlags::CHARGED, charge > 0);
        let mut vmas = self.vmas.lock();
        let Ok(start) = place.find(&mut vmas, len, self.layout) else {
            supply.uncommit(charge);
            return None;
        };
        vmas.insert(start..start + len, vma);
        Some(start)
    }

    /// Unmaps a range that is not empty; returns whether it did. It does so for the first part, or
    /// all, of a mapping of anonymous memory, if that is no longer than a table's pages.
    pub(crate) fn unmap_now(&self, range: Range<u64>) -> bool {
        if range.end - range.start > CHUNK_SIZE {
            return false;
        }
        let Some(_change) = self.change.try_pass() else {
            return false;
        };
        let Some(flags) = self.vmas.lock().cut(&range) else {
            return false;
        };
        let mut at = range.start;
        while let Some(end) = self.empty_table(at, range.end) {
            at = end;
        }
        if flags.contains(VmaFlags::CHARGED) {
            self.node
                .supply()
                .uncommit((range.end - range.start) / PAGE_SIZE);
        }
        true
    }
}
