//! Files of S that programs map: their pages, read when they are touched and shared by all
//! mappings.
//!
//! The pages are an object, as those of shared memory, mapped at addresses of the kernel's space by
//! which they are filled. A program's private mapping shares them copy-on-write; through a shared
//! one it stores to them (`write_back`). What this node's programs change of a file by
//! other calls is changed in its pages, too (`storage.rs`).

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use messages::PAGE_SIZE;
use messages::storage::FileId;
use pcache::{Rights, Slot};
use spin::Mutex;

use super::Space;
use super::map::Place;
use super::object::Object;
use super::vma::{Backing, Vma, VmaFlags};
use super::write_back::Stores;
use crate::error::{Result, errno};
use crate::files::{Handle, OpenFile};
use crate::kernel::Closing;
use crate::load::{PIECE, read_file};
use crate::process::Node;
use crate::wait::Gate;

/// The pages of a file that was mapped.
#[derive(Debug)]
pub struct FilePages {
    /// Keeps the file open at S.
    _handle: Option<Arc<Handle>>,
    /// The path that the file was opened by.
    path: Vec<u8>,
    id: FileId,
    pub(super) inode: u64,
    region: Mutex<Region>,
    /// The file's size; pages behind it are not to be reached.
    pub(super) size: AtomicU64,
    /// Stores of programs through shared mappings.
    pub(super) stores: Stores,
    object: Arc<Object>,
    /// A bit for each page whose bytes have come. A slot alone says nothing: it is there before
    /// them.
    here: Mutex<Vec<u64>>,
    /// Generation of the lease under which pages were read; 0 for none.
    generation: AtomicU64,
    /// Pages counted in `total`.
    counted: AtomicU64,
    /// Pages of all files.
    total: Arc<AtomicU64>,
    /// Held by whoever brings pages.
    pub(super) gate: Gate,
    closing: Arc<Closing>,
}

/// Addresses in the kernel's space, at which the pages are filled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Region {
    pub(super) start: u64,
    /// In whole pages.
    pub(super) len: u64,
}

impl FilePages {
    /// Returns the slot of a page whose bytes are here.
    pub(super) fn slot(&self, page: u64) -> Option<Slot> {
        let here = self.here.lock();
        let word = here.get(usize::try_from(page / 64).ok()?)?;
        (word >> (page % 64) & 1 != 0)
            .then(|| self.object.slot(page))
            .flatten()
    }

    /// Returns the path that the file was opened by.
    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }

    /// Returns the file's inode on S.
    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    /// Returns how many pages the file has.
    pub(super) fn count(&self) -> u64 {
        self.size.load(Ordering::Acquire).div_ceil(PAGE_SIZE)
    }

    pub(super) fn region(&self) -> Region {
        *self.region.lock()
    }

    /// Returns the generation of the lease under which the pages were read; 0 for none.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Takes over the size that the file has under a lease. Pages that were read under another one
    /// are read anew when they are used; those that programs may store to stay. Returns whether the
    /// file is shorter than was known. The caller has passed the gate of the file's changes.
    pub(crate) async fn adopt(&self, generation: u64, size: u64) -> bool {
        let _pass = self.gate.pass().await;
        let had = self.size.load(Ordering::Acquire);
        if (self.generation(), had) == (generation, size) {
            return false;
        }
        {
            let mut here = self.here.lock();
            for (word, first) in here.iter_mut().zip((0..).step_by(64)) {
                *word &= self.stores.bits(first);
            }
        }
        self.size.store(size, Ordering::Release);
        self.generation.store(generation, Ordering::Release);
        size < had
    }

    /// Returns the pages that the file has in M's memory.
    pub(super) fn pages_held(&self) -> u64 {
        self.counted.load(Ordering::Acquire)
    }

    /// Counts the pages that were touched since the last count.
    fn count_pages(&self) {
        let now = self.object.touched();
        let had = self.counted.swap(now, Ordering::AcqRel);
        self.total
            .fetch_add(now.wrapping_sub(had), Ordering::AcqRel);
    }

    fn arrived(&self, page: u64) {
        let mut here = self.here.lock();
        if let Some(word) = usize::try_from(page / 64)
            .ok()
            .and_then(|word| here.get_mut(word))
        {
            *word |= 1 << (page % 64);
        }
    }
}

impl FilePages {
    /// Puts bytes that S has stored into those pages that are here.
    pub(crate) async fn update<N: Node>(
        &self,
        space: &Space<'static, N>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<()> {
        let _pass = self.gate.pass().await;
        let end = offset.saturating_add(bytes.len() as u64);
        let had = self.size.fetch_max(end, Ordering::AcqRel);
        // What a program has stored behind the old end is no part of the file.
        self.each_page(space, had, offset, |_, len| &ZEROES[..len])
            .await?;
        let parts = |at: u64| {
            let from = usize::try_from(at - offset).unwrap_or(usize::MAX);
            bytes.get(from..).unwrap_or_default()
        };
        self.each_page(space, offset, end, |at, len| &parts(at)[..len])
            .await
    }

    /// Overwrites a range with zeroes in those pages that are here.
    pub(crate) async fn clear<N: Node>(
        &self,
        space: &Space<'static, N>,
        from: u64,
        to: u64,
    ) -> Result<()> {
        let _pass = self.gate.pass().await;
        self.each_page(space, from, to, |_, len| &ZEROES[..len])
            .await
    }

    /// Takes over a new size. What lies behind it reads as zeroes if the file grows again.
    pub(crate) async fn resize<N: Node>(&self, space: &Space<'static, N>, size: u64) -> Result<()> {
        let _pass = self.gate.pass().await;
        let had = self.size.swap(size, Ordering::AcqRel);
        self.each_page(space, size.min(had), u64::MAX, |_, len| &ZEROES[..len])
            .await
    }

    /// Writes to the pages of a range that are here. The caller holds the gate.
    async fn each_page<'a, N: Node>(
        &self,
        space: &Space<'static, N>,
        from: u64,
        to: u64,
        bytes: impl Fn(u64, usize) -> &'a [u8],
    ) -> Result<()> {
        let Region { start, len } = self.region();
        let (mut at, to) = (from, to.min(len));
        self.stores
            .changed_at_s(at / PAGE_SIZE..to.div_ceil(PAGE_SIZE));
        while at < to {
            let end = (at / PAGE_SIZE + 1) * PAGE_SIZE;
            let count = usize::try_from(end.min(to) - at).unwrap_or(0);
            if self.slot(at / PAGE_SIZE).is_some() {
                space.write(start + at, bytes(at, count)).await?;
            } else {
                space.breathe().await;
            }
            at = end;
        }
        Ok(())
    }

    /// Makes room for a file that has grown. The caller does not hold the gate.
    async fn grow<N: Node>(&self, space: &Space<'static, N>, size: u64) -> Result<()> {
        self.size.fetch_max(size, Ordering::AcqRel);
        self.make_room(space, size).await
    }

    /// Makes room for the pages of a file of `size` bytes. The caller does not hold the gate.
    async fn make_room<N: Node>(&self, space: &Space<'static, N>, size: u64) -> Result<()> {
        let _pass = self.gate.pass().await;
        let had = self.region();
        if size <= had.len {
            return Ok(());
        }
        let len = region_len(size.max(had.len.saturating_mul(2)))?;
        let _change = space.change().await;
        let start = space
            .remap(had.start..had.start + had.len, len, true, None)
            .await?;
        *self.region.lock() = Region { start, len };
        self.here.lock().resize(words(len)?, 0);
        Ok(())
    }
}

/// A page of zeroes.
static ZEROES: [u8; 4096] = [0; 4096];

/// Returns the length of the region for a file: whole pages, at least one.
fn region_len(size: u64) -> Result<u64> {
    let len = size.max(1).checked_next_multiple_of(PAGE_SIZE);
    len.ok_or_else(|| errno::ENOMEM.into())
}

/// Returns the words of bits for the pages of a region.
fn words(len: u64) -> Result<usize> {
    usize::try_from((len / PAGE_SIZE).div_ceil(64)).map_err(|_| errno::ENOMEM.into())
}

impl Drop for FilePages {
    fn drop(&mut self) {
        let Region { start, len } = *self.region.get_mut();
        self.closing.add_region(start, len);
        let counted = *self.counted.get_mut();
        self.total.fetch_sub(counted, Ordering::AcqRel);
    }
}

/// Returns the pages of an open file of S.
///
/// # Errors
///
/// ENOMEM if the kernel's space has no room for the file.
pub(crate) async fn pages_of<N: Node>(
    node: &N,
    open: &OpenFile,
    id: FileId,
    inode: u64,
    size: u64,
) -> Result<Arc<FilePages>> {
    let kernel = node.kernel();
    let space = kernel.tmpfs().space();
    let known = kernel.file_cache.lock().known(inode);
    if let Some(known) = known {
        known.grow(space, size).await?;
        return Ok(known);
    }
    let len = region_len(size)?;
    let object = Arc::new(Object::default());
    let mut vma = Vma::anonymous(Rights::READ | Rights::WRITE);
    vma.flags |= VmaFlags::NORESERVE;
    vma.backing = Backing::Object(object.clone(), 0);
    let start = {
        let _change = space.change().await;
        space.map(Place::Wish(0), len, vma).await?
    };
    let file = Arc::new(FilePages {
        _handle: open.handle(),
        path: open.path.clone(),
        id,
        inode,
        region: Mutex::new(Region { start, len }),
        size: AtomicU64::new(size),
        stores: Stores::default(),
        object,
        here: Mutex::new(vec![0; words(len)?]),
        generation: AtomicU64::new(0),
        counted: AtomicU64::new(0),
        total: kernel.file_cache.lock().total(),
        gate: Gate::default(),
        closing: kernel.closing.clone(),
    });
    kernel.file_cache.lock().add(&file);
    Ok(file)
}

/// Brings a page of a file, and some behind it: `wanted` bytes, or what one call carries.
///
/// # Errors
///
/// The errno that S answers, or an error that ends the node.
pub(super) async fn bring<N: Node>(
    node: &N,
    space: &Space<'static, N>,
    file: &FilePages,
    page: u64,
    wanted: usize,
) -> Result<()> {
    let offset = page * PAGE_SIZE;
    if offset >= file.region().len {
        // The file has grown since it was mapped.
        let size = file.size.load(Ordering::Acquire).max(offset + 1);
        file.make_room(space, size).await?;
    }
    let _pass = file.gate.pass().await;
    if file.slot(page).is_some() {
        return Ok(());
    }
    let Region { start, len } = file.region();
    let wanted = wanted.next_multiple_of(pcache::LINE_SIZE).min(PIECE);
    let left = usize::try_from(len.saturating_sub(offset)).map_or(wanted, |left| left.min(wanted));
    let mut piece = vec![0; left];
    read_file(node, file.id, offset, &mut piece).await?;
    for (page, bytes) in (page..).zip(piece.chunks(4096)) {
        if file.slot(page).is_none() {
            space.write(start + page * PAGE_SIZE, bytes).await?;
            file.arrived(page);
        }
    }
    file.count_pages();
    Ok(())
}
