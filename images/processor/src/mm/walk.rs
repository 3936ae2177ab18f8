//! Walks over the tables of a range that exist.

use core::ops::Range;

use messages::{CHUNK_SIZE, PAGE_SIZE};
use pcache::{Batch, Entry, Mapping};

use super::{EntryOf, Space, Tables};
use crate::platform::Platform;
use crate::process::Node;

impl<N: Node> Space<'_, N> {
    /// Calls `visit` for each entry of `range` that is not empty; other tasks run between two
    /// tables.
    pub(super) async fn walk(
        &self,
        range: Range<u64>,
        mut visit: impl FnMut(&Self, Mapping<EntryOf<N>>, &mut Batch<'_, N::Machine>),
    ) {
        let mut at = range.start;
        while let Some(end) = self.walk_table(at, range.end, &mut visit) {
            at = end;
            // A table may have 512 pages to flush and free: some hundred microseconds.
            self.node.platform().yield_now().await;
        }
    }

    /// Visits the first table of a range; returns its end.
    fn walk_table(
        &self,
        from: u64,
        end: u64,
        visit: &mut impl FnMut(&Self, Mapping<EntryOf<N>>, &mut Batch<'_, N::Machine>),
    ) -> Option<u64> {
        let start = self.tables.next_table(from, end)?;
        let table_end = (start / CHUNK_SIZE + 1) * CHUNK_SIZE;
        let mut batch = self.node.cache().batch(self.tables.space());
        let left = |addr: u64| {
            let pages = end.min(table_end).saturating_sub(addr).div_ceil(PAGE_SIZE);
            usize::try_from(pages).unwrap_or(0)
        };
        let (mut addr, mut next) = (start, self.tables.entry(start));
        while let Some((skipped, entry)) = next.and_then(|next| next.first_used(left(addr))) {
            addr += skipped as u64 * PAGE_SIZE;
            visit(self, self.mapping(addr, entry), &mut batch);
            addr += PAGE_SIZE;
            next = entry.neighbour(1);
        }
        Some(table_end)
    }

    /// Empties the entries of a range that is not mapped any more, and gives its tables and chunks
    /// up.
    pub(super) async fn empty(&self, range: Range<u64>) {
        let mut at = range.start;
        while let Some(end) = self.empty_table(at, range.end) {
            at = end;
            self.node.platform().yield_now().await;
        }
    }

    /// Empties the first table of a range that is not mapped any more; returns the table's end.
    pub(super) fn empty_table(&self, from: u64, end: u64) -> Option<u64> {
        let end = self.walk_table(from, end, &mut |space, at, batch| {
            space.node.cache().drop_page(at, batch);
        })?;
        self.release(end - CHUNK_SIZE);
        Some(end)
    }

    /// Gives a table and its region's chunk up, if nothing is in it any more.
    pub(super) fn release(&self, addr: u64) {
        // First touches hold the same lock.
        let _vmas = self.vmas.lock();
        if self.tables.release(addr)
            && let Some(chunk) = self.regions.lock().remove(&(addr / CHUNK_SIZE))
        {
            self.node.cache().chunks().detach(chunk);
        }
    }
}
