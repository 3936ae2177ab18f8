//! Files of S that this node has open or keeps parts of, kept in step with what its programs
//! change.
//!
//! A change by another node ends this node's lease of the file (`leased`): its pages are read anew
//! then, except those that stay mapped.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use messages::PAGE_SIZE;
use messages::storage::FileId;
use spin::Mutex;

use crate::error::{Error, Result};
use crate::files::{Kind, OpenFile};
use crate::gather::Settle;
use crate::mm::beyond::unmap_beyond;
use crate::mm::file::FilePages;
use crate::mm::vma::Backing;
use crate::pipe::Pipe;
use crate::platform::Files;
use crate::process::Node;
use crate::wait::{Gate, Pass};

/// Files are told apart by this many remainders of their inodes.
const SHARDS: usize = 64;

/// An open file or directory of S.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StorageFile {
    /// S's handle.
    pub(crate) id: FileId,
    /// Its inode on S's disk.
    pub(crate) inode: u64,
}

/// Changes of S's files by this node's programs.
#[derive(Debug)]
pub(crate) struct Changes {
    /// Held while a file changes, so that S and the cached pages see changes in one order.
    gates: [Gate; SHARDS],
    /// Counts the changes.
    versions: [AtomicU64; SHARDS],
    /// Counts changes of all files' bytes. A change counts here first.
    all: AtomicU64,
    /// Counts changes of attributes and names.
    notes: AtomicU64,
    /// Something was changed.
    any: AtomicBool,
}

/// The changes of a file by this node's programs, by which a later one is seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamp {
    version: u64,
    notes: u64,
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            gates: [const { Gate::new() }; SHARDS],
            versions: [const { AtomicU64::new(0) }; SHARDS],
            all: AtomicU64::new(0),
            notes: AtomicU64::new(0),
            any: AtomicBool::new(false),
        }
    }
}

/// Returns a file's place among the shards.
fn shard(inode: u64) -> usize {
    usize::try_from(inode % SHARDS as u64).unwrap_or(0)
}

impl Changes {
    /// Waits until no other task changes the file.
    pub(crate) async fn pass(&self, inode: u64) -> Pass<'_> {
        self.gates[shard(inode)].pass().await
    }

    /// Returns a number that differs once the file has changed.
    pub(crate) fn version(&self, inode: u64) -> u64 {
        self.versions[shard(inode)].load(Ordering::Acquire)
    }

    /// Returns the changes of a file until now.
    pub(crate) fn stamp(&self, inode: u64) -> Stamp {
        Stamp {
            version: self.versions[shard(inode)].load(Ordering::SeqCst),
            notes: self.notes.load(Ordering::SeqCst),
        }
    }

    /// Returns a number that differs once anything has changed.
    pub(crate) fn all(&self) -> u64 {
        let notes = self.notes.load(Ordering::SeqCst);
        self.all.load(Ordering::SeqCst).wrapping_add(notes)
    }

    /// Notes that something else than a file's bytes has changed.
    pub(crate) fn note(&self) {
        self.any.store(true, Ordering::Release);
        self.notes.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns whether anything was changed since this was asked last.
    pub(crate) fn take(&self) -> bool {
        self.any.swap(false, Ordering::AcqRel)
    }

    /// Counts a change of a file's bytes.
    pub(crate) fn changed(&self, inode: u64) {
        self.any.store(true, Ordering::Release);
        self.all.fetch_add(1, Ordering::SeqCst);
        self.versions[shard(inode)].fetch_add(1, Ordering::SeqCst);
    }
}

/// The pipes of named pipes on S's disk that are open, by their inodes.
#[derive(Debug, Default)]
pub(crate) struct NamedPipes(Mutex<BTreeMap<u64, Weak<Pipe>>>);

impl NamedPipes {
    /// Returns the pipe of an inode. It lasts as long as somebody has it open.
    pub(crate) fn get(&self, inode: u64) -> Arc<Pipe> {
        let mut pipes = self.0.lock();
        if let Some(pipe) = pipes.get(&inode).and_then(Weak::upgrade) {
            return pipe;
        }
        pipes.retain(|_, pipe| pipe.strong_count() > 0);
        let pipe = Arc::<Pipe>::default();
        pipes.insert(inode, Arc::downgrade(&pipe));
        pipe
    }

    /// Forgets the pipe of an inode that has lost a name: S may give its number to another one
    /// while programs still have the pipe open.
    fn forget(&self, inode: u64) {
        self.0.lock().remove(&inode);
    }
}

/// Applies bytes that S has stored. The caller holds the file's gate.
///
/// # Errors
///
/// An error that ends the node.
pub(crate) async fn written<N: Node>(
    node: &N,
    inode: u64,
    offset: u64,
    bytes: &[u8],
) -> Result<()> {
    let kernel = node.kernel();
    kernel.changes.changed(inode);
    match pages(node, inode) {
        Some(file) => file.update(kernel.tmpfs().space(), offset, bytes).await,
        None => Ok(()),
    }
}

/// Applies a change of a file's length at S. The caller holds the file's gate.
///
/// # Errors
///
/// As [`written`].
pub(crate) async fn resized<N: Node>(node: &N, inode: u64, size: u64) -> Result<()> {
    let kernel = node.kernel();
    kernel.changes.changed(inode);
    match pages(node, inode) {
        Some(file) => file.resize(kernel.tmpfs().space(), size).await,
        None => Ok(()),
    }
}

/// Takes pages behind a file's end out of programs' mappings. The caller holds no gate.
///
/// # Errors
///
/// As [`written`].
pub(crate) async fn unmap_behind<N: Node>(node: &N, inode: u64, size: u64) -> Result<()> {
    let Some(file) = pages(node, inode) else {
        return Ok(());
    };
    let first = |backing: &Backing| match backing {
        Backing::File(other, first) => Arc::ptr_eq(&file, other).then_some(*first),
        _ => None,
    };
    unmap_beyond(node, size.div_ceil(PAGE_SIZE), first).await
}

/// Applies that a range of a file reads as zeroes. The caller holds the file's gate.
///
/// # Errors
///
/// As [`written`].
pub(crate) async fn punched<N: Node>(node: &N, inode: u64, from: u64, to: u64) -> Result<()> {
    let kernel = node.kernel();
    kernel.changes.changed(inode);
    match pages(node, inode) {
        Some(file) => file.clear(kernel.tmpfs().space(), from, to).await,
        None => Ok(()),
    }
}

/// Writes back what programs have stored to a range of a file through mappings, for a call that
/// reads it from S. The caller does not hold the file's gate.
///
/// # Errors
///
/// EIO and the like if S can't take it, and errors that end the node.
pub(crate) async fn before_read<N: Node>(node: &N, inode: u64, bytes: Range<u64>) -> Result<()> {
    match pages(node, inode).filter(|file| file.has_stores()) {
        Some(file) => {
            let range = bytes.start / PAGE_SIZE..bytes.end.div_ceil(PAGE_SIZE);
            file.write_back(node, range).await
        }
        None => Ok(()),
    }
}

/// Makes an open file durable, with what programs have stored to it through mappings.
///
/// # Errors
///
/// As [`before_read`]; also a write-back that failed before and that no program was told of.
pub(crate) async fn sync<N: Node>(node: &N, of: StorageFile) -> Result<()> {
    let pages = pages(node, of.inode);
    if let Some(file) = &pages {
        file.write_back(node, 0..u64::MAX).await?;
    }
    node.files().fsync(of.id).await?;
    pages.map_or(Ok(()), |file| file.take_failure())
}

/// Tells the programs of an open file, once, that what was written to the file did not come to S.
///
/// # Errors
///
/// The errno that S answered.
pub(crate) fn tell_failure<N: Node>(node: &N, open: &OpenFile) -> Result<()> {
    let Kind::File(of) = &open.kind else {
        return Ok(());
    };
    let gathered = node.files().gathered();
    match gathered.and_then(|gathered| open.failure(gathered, of.inode)) {
        Some(errno) => Err(errno.into()),
        None => Ok(()),
    }
}

/// Brings what was written through an open file to S, as it is closed.
///
/// # Errors
///
/// An error that ends the node.
pub(crate) async fn closed<N: Node>(node: &N, open: &OpenFile) -> Result<()> {
    match &open.kind {
        Kind::File(of) if open.flags() & 3 != 0 => node.files().settle(Settle::File(of.id)).await,
        _ => Ok(()),
    }
}

/// Writes back what programs have stored to any file through mappings. What fails is told by the
/// next fsync of that file.
///
/// # Errors
///
/// An error that ends the node.
pub(crate) async fn write_back_all<N: Node>(node: &N) -> Result<()> {
    let files = node.kernel().file_cache.lock().stored();
    for file in files {
        match file.write_back(node, 0..u64::MAX).await {
            Ok(()) | Err(Error::Errno(_)) => {}
            ended => ended?,
        }
    }
    Ok(())
}

/// Forgets the pages of a file that has lost a name: S frees it once nothing has it open.
pub(crate) fn removed<N: Node>(node: &N, inode: u64) {
    let kernel = node.kernel();
    kernel.changes.note();
    kernel.named_pipes.forget(inode);
    let gone = kernel.file_cache.lock().forget(inode);
    drop(gone);
}

fn pages<N: Node>(node: &N, inode: u64) -> Option<Arc<FilePages>> {
    node.kernel().file_cache.lock().known(inode)
}
