//! The data of files: objects in an address space that only the kernel reaches.

use alloc::sync::Arc;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use messages::PAGE_SIZE;
use pcache::Rights;
use spin::Mutex;

use super::{REGULAR, SEAL_SEAL, Tmpfs};
use crate::error::{Error, Result, errno};
use crate::kernel::Closing;
use crate::mm::beyond::unmap_beyond;
use crate::mm::map::Place;
use crate::mm::object::Object;
use crate::mm::vma::{Backing, Vma, VmaFlags};
use crate::process::Node;
use crate::wait::Gate;

/// Bytes of addresses that a file has at least once it has data.
const LEAST: u64 = 64 << 10;
/// The longest file.
const MAX_SIZE: u64 = 1 << 40;

/// A file's data.
#[derive(Debug)]
pub(crate) struct TmpFile {
    inode: u64,
    size: AtomicU64,
    /// Held during reads, writes and resizes.
    pub(super) gate: Gate,
    /// The addresses in the kernel's space, and the pages.
    region: Mutex<Option<Region>>,
    /// The list that the addresses are put on when nothing uses the file any more.
    closing: Arc<Closing>,
    pub(crate) modified: AtomicU64,
    pub(super) seals: AtomicU32,
    /// Type and rights, of a file without a name.
    pub(super) mode: AtomicU32,
    /// A name may be given to it.
    linkable: AtomicBool,
}

#[derive(Clone, Debug)]
struct Region {
    start: u64,
    len: u64,
    object: Arc<Object>,
}

impl TmpFile {
    pub(super) fn new(inode: u64, closing: Arc<Closing>) -> Self {
        Self {
            inode,
            size: AtomicU64::new(0),
            gate: Gate::default(),
            region: Mutex::new(None),
            closing,
            modified: AtomicU64::new(0),
            seals: AtomicU32::new(SEAL_SEAL),
            mode: AtomicU32::new(REGULAR | 0o600),
            linkable: AtomicBool::new(true),
        }
    }

    /// Returns the file's length.
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    /// Tells mappings of the file's pages how many there are.
    fn tell_pages(&self) {
        if let Some(region) = &*self.region.lock() {
            region.object.set_pages(self.size().div_ceil(PAGE_SIZE));
        }
    }

    /// Returns whether a program has mapped the file's pages.
    pub(super) fn is_mapped(&self) -> bool {
        let region = self.region.lock();
        // This list and the kernel's own mapping hold them anyway.
        region
            .as_ref()
            .is_some_and(|region| Arc::strong_count(&region.object) > 2)
    }

    pub(crate) fn is_linkable(&self) -> bool {
        self.linkable.load(Ordering::Relaxed)
    }

    pub(crate) fn set_linkable(&self, linkable: bool) {
        self.linkable.store(linkable, Ordering::Relaxed);
    }
}

impl Drop for TmpFile {
    fn drop(&mut self) {
        if let Some(region) = self.region.get_mut().take() {
            self.closing.add_region(region.start, region.len);
        }
    }
}

impl<N: Node> Tmpfs<N> {
    /// Reads from a file into kernel memory; returns how much.
    pub(crate) async fn read(&self, file: &TmpFile, offset: u64, into: &mut [u8]) -> Result<usize> {
        let _pass = file.gate.pass().await;
        let left = file.size().saturating_sub(offset);
        let len = usize::try_from(left).map_or(into.len(), |left| left.min(into.len()));
        let region = file.region.lock().clone();
        match region {
            _ if len == 0 => Ok(0),
            Some(region) => {
                let within = region.len.saturating_sub(offset);
                let here = usize::try_from(within).map_or(len, |within| within.min(len));
                self.space
                    .read(region.start + offset, &mut into[..here])
                    .await?;
                into[here..len].fill(0);
                Ok(len)
            }
            None => {
                into[..len].fill(0);
                Ok(len)
            }
        }
    }

    /// Writes from kernel memory to a file, at its end if there is no offset; returns where it
    /// ended.
    pub(crate) async fn write(
        &self,
        file: &TmpFile,
        offset: Option<u64>,
        from: &[u8],
    ) -> Result<u64> {
        let _pass = file.gate.pass().await;
        let offset = offset.unwrap_or_else(|| file.size());
        let end = offset
            .checked_add(from.len() as u64)
            .filter(|&end| end <= MAX_SIZE);
        let end = end.ok_or(errno::EFBIG)?;
        if from.is_empty() {
            return Ok(offset);
        }
        file.may_write(end)?;
        let region = self.reach(file, end).await?;
        match self.space.write(region.start + offset, from).await {
            // The only reason for a page of ours to be out of reach.
            Err(Error::Errno(_)) => return Err(errno::ENOSPC.into()),
            written => written?,
        }
        file.size.fetch_max(end, Ordering::AcqRel);
        file.tell_pages();
        let now = self.space.node_time();
        file.modified.store(now, Ordering::Relaxed);
        Ok(end)
    }

    /// Sets a file's length; programs that map what is behind it lose that.
    pub(crate) async fn resize(&self, file: &TmpFile, size: u64) -> Result<()> {
        let was = self.set_size(file, size).await?;
        let object = file
            .region
            .lock()
            .as_ref()
            .map(|region| region.object.clone());
        if let Some(object) = object.filter(|_| size < was && file.is_mapped()) {
            let first = |backing: &Backing| match backing {
                Backing::Object(other, first) => Arc::ptr_eq(&object, other).then_some(*first),
                _ => None,
            };
            unmap_beyond(self.space.node, size.div_ceil(PAGE_SIZE), first).await?;
        }
        Ok(())
    }

    /// Sets a file's length; returns the one before.
    async fn set_size(&self, file: &TmpFile, size: u64) -> Result<u64> {
        if size > MAX_SIZE {
            return Err(errno::EFBIG.into());
        }
        let _pass = file.gate.pass().await;
        file.may_resize(size)?;
        let was = file.size.swap(size, Ordering::AcqRel);
        file.tell_pages();
        if size < was {
            // What is behind the end is zero when the file grows again.
            self.clear(file, size..was.next_multiple_of(PAGE_SIZE))
                .await?;
        }
        file.modified
            .store(self.space.node_time(), Ordering::Relaxed);
        Ok(was)
    }

    /// Makes a range of a file zeros; its size stays.
    pub(crate) async fn punch(&self, file: &TmpFile, range: Range<u64>) -> Result<()> {
        let _pass = file.gate.pass().await;
        file.may_write(file.size())?;
        let end = range.end.min(file.size());
        self.clear(file, range.start..end).await?;
        file.modified
            .store(self.space.node_time(), Ordering::Relaxed);
        Ok(())
    }

    /// Makes a range of a file's pages zeros. Whole pages are freed, unless a program maps the
    /// file: its entries name their slots. The caller holds the file's gate.
    async fn clear(&self, file: &TmpFile, range: Range<u64>) -> Result<()> {
        let mapped = file.is_mapped();
        let Some(region) = file.region.lock().clone() else {
            return Ok(());
        };
        let end = range.end.min(region.len);
        let whole = range.start.next_multiple_of(PAGE_SIZE)..end / PAGE_SIZE * PAGE_SIZE;
        if !mapped && whole.start < whole.end {
            self.free_pages(&region, whole).await;
        }
        let mut at = range.start;
        while at < end {
            let page = at / PAGE_SIZE;
            let Some(touched) = region.object.next(page..end.div_ceil(PAGE_SIZE)) else {
                break;
            };
            at = at.max(touched * PAGE_SIZE);
            let next = ((touched + 1) * PAGE_SIZE).min(end);
            let len = usize::try_from(next - at).unwrap_or(0);
            self.space
                .write(region.start + at, &[0; 4096][..len])
                .await?;
            at = next;
        }
        Ok(())
    }

    /// Frees whole pages that nothing maps but the kernel.
    async fn free_pages(&self, region: &Region, range: Range<u64>) {
        let _change = self.space.change().await;
        self.space
            .discard(region.start + range.start..region.start + range.end)
            .await;
        let (mut at, end) = (range.start / PAGE_SIZE, range.end / PAGE_SIZE);
        while let Some(page) = region.object.next(at..end) {
            if let Some(slot) = region.object.take(page) {
                self.space.node.cache().drop_slot(slot);
            }
            at = page + 1;
            self.space.breathe().await;
        }
    }

    /// Returns a file's pages as far as its length, for a mapping.
    pub(crate) async fn object(&self, file: &TmpFile, end: u64) -> Result<Arc<Object>> {
        let _pass = file.gate.pass().await;
        let object = self.reach(file, end.max(1)).await?.object;
        file.tell_pages();
        Ok(object)
    }

    /// Returns a file's addresses, after making them reach to `end`.
    async fn reach(&self, file: &TmpFile, end: u64) -> Result<Region> {
        let had = file.region.lock().clone();
        if let Some(region) = had.as_ref().filter(|region| region.len >= end) {
            return Ok(region.clone());
        }
        let had_len = had.as_ref().map_or(0, |region| region.len);
        let len = end.max(had_len * 2).max(LEAST).next_multiple_of(PAGE_SIZE);
        let _change = self.space.change().await;
        let region = match had {
            Some(region) => {
                let was = region.start..region.start + region.len;
                let start = self.space.remap(was, len, true, None).await?;
                Region {
                    start,
                    len,
                    ..region
                }
            }
            None => {
                let object = Arc::new(Object::default());
                let mut vma = Vma::anonymous(Rights::READ | Rights::WRITE);
                vma.flags |= VmaFlags::NORESERVE;
                vma.backing = Backing::Object(object.clone(), 0);
                let start = self.space.map(Place::Wish(0), len, vma).await?;
                Region { start, len, object }
            }
        };
        *file.region.lock() = Some(region.clone());
        Ok(region)
    }
}
