//! Files that become shorter: programs lose their mappings' pages behind the new end, and touching
//! one is a bus error (Linux `mm/memory.c`, `unmap_mapping_range`).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use messages::PAGE_SIZE;

use super::Space;
use super::vma::Backing;
use crate::error::Result;
use crate::process::Node;

impl<N: Node> Space<'_, N> {
    /// Returns the mapped addresses of a file's pages from `page` on; `first` says which page of
    /// the file a mapping begins with, if it is one of it.
    fn beyond(&self, page: u64, first: impl Fn(&Backing) -> Option<u64>) -> Vec<Range<u64>> {
        self.with_vmas(|vmas| {
            let behind = vmas.iter().filter_map(|(range, vma)| {
                let first = first(&vma.backing)?;
                let skipped = page.saturating_sub(first).saturating_mul(PAGE_SIZE);
                let start = range.start.saturating_add(skipped);
                (start < range.end).then_some(start..range.end)
            });
            behind.collect()
        })
    }
}

/// Takes a file's pages from `page` on out of the mappings of all processes, private copies among
/// them. The caller holds no space's change and no file's gate: unmapping takes the one and then
/// the other.
///
/// # Errors
///
/// An error that ends the node.
pub(crate) async fn unmap_beyond<N: Node>(
    node: &N,
    page: u64,
    first: impl Fn(&Backing) -> Option<u64>,
) -> Result<()> {
    for process in node.kernel().living() {
        let Some(space) = process.memory.lock().clone() else {
            continue;
        };
        if !space.beyond(page, &first).is_empty() {
            let _change = space.change().await;
            for range in space.beyond(page, &first) {
                space.discard(range).await;
            }
        }
        // The process may have ended, or run another program, and left its memory to this call.
        if let Some(space) = Arc::into_inner(space) {
            node.kernel().add_faults(space.faults());
            space.end().await?;
        }
    }
    Ok(())
}
