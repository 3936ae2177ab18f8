//! Shared mappings of files of S: which pages programs store to, and their way back to S.
//!
//! A page is mapped for reading until the first store to it, which the fault handler notes here.
//! From then on any program that maps it may store to it at any time, so each write-back compares
//! the page's sum with that of the bytes that S has, and sends what differs.
//!
//! Pages go back when a mapping ends, at msync, fsync and sync, and before a call reads those bytes
//! from S.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::hash::{BuildHasher, Hasher};
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use foldhash::quality::FixedState;
use messages::storage::FileId;
use messages::{Errno, PAGE_SIZE};
use spin::Mutex;

use super::file::FilePages;
use crate::error::{Error, Result, errno};
use crate::files::{Handle, OpenFile};
use crate::load::PIECE;
use crate::platform::Files;
use crate::process::Node;

/// Stores of programs to a file's pages.
#[derive(Debug, Default)]
pub(super) struct Stores {
    /// Pages that a mapping may store to, with the sum of their bytes at S; none before the first
    /// write-back.
    pages: Mutex<BTreeMap<u64, Option<u64>>>,
    /// The file, open for writing; kept from the first mapping on that may be written.
    writer: Mutex<Option<(Option<Arc<Handle>>, FileId)>>,
    /// A write-back that failed and that no program was told of.
    failed: Mutex<Option<Errno>>,
    /// The number of the last failure of gathered writes that msync has told.
    told: AtomicU64,
}

impl Stores {
    /// Returns which of 64 pages from `first` on programs may store to, a bit for each.
    pub(super) fn bits(&self, first: u64) -> u64 {
        let pages = self.pages.lock();
        let range = pages.range(first..first.saturating_add(64));
        range.fold(0, |bits, (&page, _)| bits | 1 << (page - first))
    }

    /// Notes that a call has changed pages of a range, here and at S.
    pub(super) fn changed_at_s(&self, pages: Range<u64>) {
        if pages.start < pages.end {
            let mut known = self.pages.lock();
            known.range_mut(pages).for_each(|(_, sum)| *sum = None);
        }
    }
}

/// Neighbouring pages that go to S together.
#[derive(Default)]
struct Run {
    first: u64,
    bytes: Vec<u8>,
    sums: Vec<u64>,
}

impl Run {
    /// Returns whether `page` lengthens the run.
    fn takes(&self, page: u64) -> bool {
        self.bytes.len() < PIECE && page == self.first + self.sums.len() as u64
    }

    fn push(&mut self, page: u64, bytes: &[u8], sum: u64) {
        if self.sums.is_empty() {
            self.first = page;
        }
        self.bytes.extend_from_slice(bytes);
        self.sums.push(sum);
    }
}

fn sum_of(bytes: &[u8]) -> u64 {
    let mut hasher = FixedState::default().build_hasher();
    hasher.write(bytes);
    hasher.finish()
}

impl FilePages {
    /// Keeps the file open for writing, for what programs will store.
    pub(crate) fn set_writer(&self, open: &OpenFile, id: FileId) {
        let mut writer = self.stores.writer.lock();
        writer.get_or_insert_with(|| {
            self.stores.told.store(open.told(), Ordering::Relaxed);
            (open.handle(), id)
        });
    }

    /// Notes that a page is mapped to be written.
    pub(super) fn stored_to(&self, page: u64) {
        self.stores.pages.lock().entry(page).or_insert(None);
    }

    /// Returns whether a mapping may store to pages of the file.
    pub(crate) fn has_stores(&self) -> bool {
        !self.stores.pages.lock().is_empty()
    }

    /// Writes pages of a range back and makes the file durable.
    ///
    /// # Errors
    ///
    /// As [`write_back`](Self::write_back); also a failure before that no program was told of.
    pub(crate) async fn sync<N: Node>(&self, node: &N, pages: Range<u64>) -> Result<()> {
        self.write_back(node, pages).await?;
        let writer = self.stores.writer.lock().clone();
        if let Some((_handle, id)) = writer {
            node.files().fsync(id).await?;
            self.tell_gathered(node)?;
        }
        self.take_failure()
    }

    /// Tells msync, once, that what was written to the file by calls did not come to S.
    fn tell_gathered<N: Node>(&self, node: &N) -> Result<()> {
        let told = &self.stores.told;
        let gathered = node.files().gathered();
        let failed =
            gathered.and_then(|all| all.failed_since(self.inode, told.load(Ordering::Relaxed)));
        match failed {
            Some((number, errno)) if told.fetch_max(number, Ordering::Relaxed) < number => {
                Err(errno.into())
            }
            _ => Ok(()),
        }
    }

    /// Takes the failure of a write-back that no program was told of.
    ///
    /// # Errors
    ///
    /// That failure.
    pub(crate) fn take_failure(&self) -> Result<()> {
        match self.stores.failed.lock().take() {
            Some(errno) => Err(errno.into()),
            None => Ok(()),
        }
    }

    /// Writes back what a mapping that has ended may have stored; a failure is told by the next
    /// fsync or msync.
    pub(super) async fn put_back<N: Node>(&self, node: &N, pages: Range<u64>) {
        match self.write_back(node, pages).await {
            Ok(()) => {}
            Err(Error::Errno(errno)) => {
                log::error!("what was stored to a mapped file is lost: {errno}");
                *self.stores.failed.lock() = Some(errno);
            }
            // The node ends, and says why where it waits next.
            Err(error) => log::error!("what was stored to a mapped file is lost: {error}"),
        }
    }

    /// Writes pages of a range back to S that programs have stored to.
    ///
    /// # Errors
    ///
    /// The errno that S answered first, or an error that ends the node.
    pub(crate) async fn write_back<N: Node>(&self, node: &N, range: Range<u64>) -> Result<()> {
        let Some((_handle, id)) = self.stores.writer.lock().clone() else {
            return Ok(());
        };
        let pages: Vec<u64> = {
            let pages = self.stores.pages.lock();
            pages.range(range).map(|(&page, _)| page).collect()
        };
        if pages.is_empty() {
            return Ok(());
        }
        let _order = node.kernel().changes.pass(self.inode).await;
        let mut first_error = Ok(());
        let mut run = Run::default();
        let mut bytes = vec![0; pcache::LINE_SIZE];
        for page in pages {
            if !self.read_page(node, page, &mut bytes).await? {
                continue;
            }
            let sum = sum_of(&bytes);
            if self.stores.pages.lock().get(&page) == Some(&Some(sum)) {
                continue;
            }
            if !run.sums.is_empty() && !run.takes(page) {
                let done = self.put_run(node, id, core::mem::take(&mut run)).await;
                first_error = first_error.and(errno_only(done)?);
            }
            run.push(page, &bytes, sum);
        }
        if !run.sums.is_empty() {
            let done = self.put_run(node, id, run).await;
            first_error = first_error.and(errno_only(done)?);
        }
        first_error
    }

    /// Reads a page; returns whether the file has it still.
    async fn read_page<N: Node>(&self, node: &N, page: u64, into: &mut [u8]) -> Result<bool> {
        let _pass = self.gate.pass().await;
        let region = self.region();
        let offset = page.saturating_mul(PAGE_SIZE);
        if offset >= region.len.min(self.size.load(Ordering::Acquire)) {
            return Ok(false);
        }
        let space = node.kernel().tmpfs().space();
        space.read(region.start + offset, into).await?;
        Ok(true)
    }

    /// Sends a run to S, without what lies behind the file's end. Called by who has passed the gate
    /// of the file's changes.
    async fn put_run<N: Node>(&self, node: &N, id: FileId, run: Run) -> Result<()> {
        let start = run.first * PAGE_SIZE;
        // S knows the end best: nothing is written back behind it, whoever has cut the file.
        let size = node.files().stat_file(id).await?.size;
        let left = size
            .min(self.size.load(Ordering::Acquire))
            .saturating_sub(start);
        let len = usize::try_from(left).map_or(run.bytes.len(), |left| left.min(run.bytes.len()));
        let mut done = 0;
        while done < len {
            let at = start + done as u64;
            let written = node
                .files()
                .write(id, Some(at), &run.bytes[done..len])
                .await?;
            if written.len == 0 {
                return Err(errno::EIO.into());
            }
            done += written.len as usize;
        }
        node.kernel().changes.changed(self.inode);
        let mut pages = self.stores.pages.lock();
        for (page, sum) in (run.first..).zip(run.sums) {
            pages.insert(page, Some(sum));
        }
        Ok(())
    }
}

/// Separates what the program is told from what ends the node.
fn errno_only(done: Result<()>) -> Result<Result<()>> {
    match done {
        Err(Error::Errno(errno)) => Ok(Err(errno.into())),
        Err(error) => Err(error),
        Ok(()) => Ok(Ok(())),
    }
}
