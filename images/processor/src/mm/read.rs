//! Reads of files out of their pages.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use messages::PAGE_SIZE;

use super::file::{FilePages, bring};
use crate::error::{Error, Result, errno};
use crate::process::Node;

impl FilePages {
    /// Reads until `into` is full or the file ends. Pages that are missing are brought, and `ahead`
    /// bytes at least with them.
    ///
    /// # Errors
    ///
    /// The errno that S answers, or an error that ends the node.
    pub(crate) async fn read<N: Node>(
        self: &Arc<Self>,
        node: &N,
        offset: u64,
        into: &mut [u8],
        ahead: usize,
    ) -> Result<usize> {
        let mut done = 0;
        while done < into.len() {
            let at = offset.saturating_add(done as u64);
            let size = self.size.load(Ordering::Acquire);
            if at >= size {
                break;
            }
            let left = usize::try_from(size - at).unwrap_or(usize::MAX);
            let part = left.min(into.len() - done);
            let part = self.here(at, part);
            if part == 0 {
                let wanted = ahead.max(left.min(into.len() - done));
                self.fetch(node, at, wanted).await?;
                continue;
            }
            if self.copy(node, at, &mut into[done..done + part]).await? {
                done += part;
            }
        }
        Ok(done)
    }

    /// Returns how many of `len` bytes from `at` on lie in pages that are here, without a gap.
    fn here(&self, at: u64, len: usize) -> usize {
        let end = at.saturating_add(len as u64);
        let mut reached = at;
        while reached < end && self.slot(reached / PAGE_SIZE).is_some() {
            reached = (reached / PAGE_SIZE + 1) * PAGE_SIZE;
        }
        usize::try_from(reached.min(end) - at).unwrap_or(len)
    }

    /// Copies from pages that are here; returns whether the file's addresses stayed the same.
    async fn copy<N: Node>(&self, node: &N, at: u64, into: &mut [u8]) -> Result<bool> {
        let region = self.region();
        let read = node
            .kernel()
            .tmpfs()
            .space()
            .read(region.start + at, into)
            .await;
        match read {
            // The file has grown, and its pages have moved.
            Ok(()) | Err(Error::Errno(errno::EFAULT)) if self.region() != region => Ok(false),
            Ok(()) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Brings pages from that of `at` on, and makes room for them.
    async fn fetch<N: Node>(self: &Arc<Self>, node: &N, at: u64, wanted: usize) -> Result<()> {
        let kernel = node.kernel();
        let page = at / PAGE_SIZE;
        let from_page = usize::try_from(at % PAGE_SIZE).unwrap_or(0);
        let wanted = wanted.saturating_add(from_page);
        bring(node, kernel.tmpfs().space(), self, page, wanted).await?;
        let gone = kernel.file_cache.lock().trim(self);
        drop(gone);
        Ok(())
    }
}
