//! Files of S that programs map: their pages, read when they are touched and shared by all mappings.
//!
//! The pages are an object, as those of shared memory, mapped at addresses of the kernel's space by which
//! they are filled. A program's mapping shares them copy-on-write. Files of S do not change.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec;
use alloc::vec::Vec;

use messages::PAGE_SIZE;
use messages::storage::FileId;
use pcache::{Rights, Slot};
use spin::Mutex;

use super::Space;
use super::map::Place;
use super::object::Object;
use super::vma::{Backing, Vma, VmaFlags};
use crate::error::{Result, errno};
use crate::files::OpenFile;
use crate::kernel::Closing;
use crate::load::{PIECE, read_file};
use crate::process::Node;
use crate::wait::Gate;

/// Files whose pages are kept though nothing maps them: a shell starts the same programs again and again.
const KEPT: usize = 64;

/// The pages of a file that was mapped.
#[derive(Debug)]
pub struct FilePages {
    /// Keeps the file open at S.
    open: Arc<OpenFile>,
    id: FileId,
    inode: u64,
    /// The first address in the kernel's space, and the length: that of the file, in whole pages.
    start: u64,
    len: u64,
    object: Arc<Object>,
    /// A bit for each page whose bytes have come. A slot alone says nothing: it is there before them.
    here: Mutex<Vec<u64>>,
    /// Passed by who brings pages.
    gate: Gate,
    closing: Arc<Closing>,
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
        &self.open.path
    }

    /// Returns the file's inode on S.
    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    /// Returns how many pages the file has.
    pub(super) fn count(&self) -> u64 {
        self.len / PAGE_SIZE
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

impl Drop for FilePages {
    fn drop(&mut self) {
        self.closing.add_region(self.start, self.len);
    }
}

/// The files that have pages, by their inodes on S.
#[derive(Debug, Default)]
pub(crate) struct FileCache {
    files: BTreeMap<u64, Weak<FilePages>>,
    recent: VecDeque<Arc<FilePages>>,
}

impl FileCache {
    fn get(&mut self, inode: u64) -> Option<Arc<FilePages>> {
        let file = self.files.get(&inode)?.upgrade()?;
        self.keep(&file);
        Some(file)
    }

    /// Makes a file the one used last; returns one that need not be kept for it.
    fn keep(&mut self, file: &Arc<FilePages>) -> Option<Arc<FilePages>> {
        self.recent.retain(|other| !Arc::ptr_eq(other, file));
        self.recent.push_back(file.clone());
        if self.recent.len() > KEPT {
            self.recent.pop_front()
        } else {
            None
        }
    }

    fn add(&mut self, inode: u64, file: &Arc<FilePages>) -> Option<Arc<FilePages>> {
        self.files.retain(|_, file| file.strong_count() > 0);
        self.files.insert(inode, Arc::downgrade(file));
        self.keep(file)
    }

    /// Forgets all files; those that are mapped stay until they are not.
    pub(crate) fn clear(&mut self) -> Vec<Arc<FilePages>> {
        self.files.clear();
        self.recent.drain(..).collect()
    }
}

/// Returns the pages of an open file of S.
///
/// # Errors
///
/// ENOMEM if the kernel's space has no room for the file.
pub(crate) async fn pages_of<N: Node>(
    node: &N,
    open: Arc<OpenFile>,
    id: FileId,
    inode: u64,
    size: u64,
) -> Result<Arc<FilePages>> {
    let kernel = node.kernel();
    if let Some(known) = kernel.file_cache.lock().get(inode) {
        return Ok(known);
    }
    let space = kernel.tmpfs().space();
    let len = size
        .max(1)
        .checked_next_multiple_of(PAGE_SIZE)
        .ok_or(errno::ENOMEM)?;
    let object = Arc::new(Object::default());
    let mut vma = Vma::anonymous(Rights::READ | Rights::WRITE);
    vma.flags |= VmaFlags::NORESERVE;
    vma.backing = Backing::Object(object.clone(), 0);
    let start = {
        let _change = space.change().await;
        space.map(Place::Wish(0), len, vma).await?
    };
    let words = usize::try_from((len / PAGE_SIZE).div_ceil(64)).map_err(|_| errno::ENOMEM)?;
    let file = Arc::new(FilePages {
        open,
        id,
        inode,
        start,
        len,
        object,
        here: Mutex::new(vec![0; words]),
        gate: Gate::default(),
        closing: kernel.closing.clone(),
    });
    let gone = kernel.file_cache.lock().add(inode, &file);
    drop(gone);
    Ok(file)
}

/// Brings a page of a file, and some behind it.
///
/// # Errors
///
/// The errno that S answers, or an error that ends the node.
pub(super) async fn bring<N: Node>(
    node: &N,
    space: &Space<'static, N>,
    file: &FilePages,
    page: u64,
) -> Result<()> {
    let _pass = file.gate.pass().await;
    if file.slot(page).is_some() {
        return Ok(());
    }
    let offset = page * PAGE_SIZE;
    let left = usize::try_from(file.len.saturating_sub(offset)).map_or(PIECE, |left| left.min(PIECE));
    let mut piece = vec![0; left];
    read_file(node, file.id, offset, &mut piece).await?;
    for (page, bytes) in (page..).zip(piece.chunks(4096)) {
        if file.slot(page).is_none() {
            space.write(file.start + page * PAGE_SIZE, bytes).await?;
            file.arrived(page);
        }
    }
    Ok(())
}
