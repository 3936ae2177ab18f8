//! The files that have pages in M's memory, and which of them are kept though nothing maps them.
//!
//! A file that is read once goes through the list of those: only a second use brings it to the list
//! of files that are used again. A stream of files that are read once so replaces its like first.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use messages::PAGE_SIZE;
use pcache::CHUNK_PAGES;

use super::file::FilePages;
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::platform::Memory;
use crate::process::Node;

/// Files of each list, at most: each is open at S.
const KEPT: usize = 256;
/// Share of M's memory that pages of files may take: one part of so many.
const SHARE: u64 = 4;

/// The files that have pages, by their inodes on S.
#[derive(Debug, Default)]
pub(crate) struct FileCache {
    files: BTreeMap<u64, Weak<FilePages>>,
    /// Used once, the oldest first.
    once: VecDeque<Arc<FilePages>>,
    /// Used again or mapped, the one used last at the end.
    again: VecDeque<Arc<FilePages>>,
    /// Pages of all files.
    total: Arc<AtomicU64>,
    /// Pages that may be kept; `None` before M was asked for its size.
    limit: Option<u64>,
}

impl FileCache {
    /// Returns the count of all files' pages.
    pub(super) fn total(&self) -> Arc<AtomicU64> {
        self.total.clone()
    }

    /// Returns the pages of a file, if it has some.
    pub(crate) fn known(&self, inode: u64) -> Option<Arc<FilePages>> {
        self.files.get(&inode)?.upgrade()
    }

    /// Keeps the pages of a file no longer than they are mapped; returns them for the caller to
    /// drop.
    pub(crate) fn forget(&mut self, inode: u64) -> Option<Arc<FilePages>> {
        let file = self.known(inode)?;
        self.unlist(&file);
        Some(file)
    }

    fn unlist(&mut self, file: &Arc<FilePages>) -> bool {
        let had = self.again.len() + self.once.len();
        self.again.retain(|other| !Arc::ptr_eq(other, file));
        self.once.retain(|other| !Arc::ptr_eq(other, file));
        had != self.again.len() + self.once.len()
    }

    /// Adds a file that has pages from now on.
    pub(super) fn add(&mut self, file: &Arc<FilePages>) {
        self.files.retain(|_, file| file.strong_count() > 0);
        self.files.insert(file.inode, Arc::downgrade(file));
    }

    /// Notes that an open file reads a file's pages for the first time, or that they are mapped.
    pub(crate) fn used(&mut self, file: &Arc<FilePages>) {
        let list = match self.unlist(file) {
            true => &mut self.again,
            false => &mut self.once,
        };
        list.push_back(file.clone());
    }

    /// Takes files out that need not be kept, `but` one; the caller drops them.
    pub(crate) fn trim(&mut self, but: &Arc<FilePages>) -> Vec<Arc<FilePages>> {
        let limit = self.limit.unwrap_or(u64::MAX);
        let mut gone = Vec::new();
        let mut over = self.total.load(Ordering::Acquire).saturating_sub(limit);
        for list in [&mut self.once, &mut self.again] {
            while list.len() > KEPT {
                gone.extend(list.pop_front());
            }
            let mut at = 0;
            while over > 0 && at < list.len() {
                let file = &list[at];
                if Arc::ptr_eq(file, but) || Arc::strong_count(file) > 1 {
                    at += 1;
                    continue;
                }
                over = over.saturating_sub(file.pages_held());
                gone.extend(list.remove(at));
            }
        }
        gone
    }

    /// Takes out all files that nothing uses; the caller drops them.
    pub(crate) fn give_up(&mut self) -> Vec<Arc<FilePages>> {
        let mut gone = Vec::new();
        for list in [&mut self.once, &mut self.again] {
            let (kept, idle) = list.drain(..).partition(|file| Arc::strong_count(file) > 1);
            *list = kept;
            let idle: VecDeque<_> = idle;
            gone.extend(idle);
        }
        gone
    }

    /// Returns the files that programs may store to through mappings.
    pub(crate) fn stored(&self) -> Vec<Arc<FilePages>> {
        let files = self.files.values().filter_map(Weak::upgrade);
        files.filter(|file| file.has_stores()).collect()
    }

    /// Forgets all files; those that are mapped stay until they are not.
    pub(crate) fn clear(&mut self) -> Vec<Arc<FilePages>> {
        self.files.clear();
        self.once.drain(..).chain(self.again.drain(..)).collect()
    }
}

impl<N: Node> Kernel<N> {
    /// Returns the bytes of files that may be kept.
    ///
    /// # Errors
    ///
    /// An error that ends the node.
    pub(crate) async fn file_limit(&self, node: &N) -> Result<u64> {
        let known = self.file_cache.lock().limit;
        let pages = match known {
            Some(pages) => pages,
            None => {
                let chunks = match node.memory().capacity().await {
                    Ok(capacity) => u64::from(capacity.total),
                    Err(Error::Errno(_)) => 0,
                    Err(error) => return Err(error),
                };
                let pages = chunks * CHUNK_PAGES / SHARE;
                *self.file_cache.lock().limit.insert(pages)
            }
        };
        Ok(pages * PAGE_SIZE)
    }
}
