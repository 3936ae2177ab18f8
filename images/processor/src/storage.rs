//! Files of S that this node has open or keeps parts of, kept in step with what its programs
//! change.
//!
//! A change by another node is seen here once the file is opened anew, but not in pages that are
//! kept.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use messages::storage::FileId;

use crate::error::Result;
use crate::mm::file::FilePages;
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
    /// Something was changed.
    any: AtomicBool,
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            gates: [const { Gate::new() }; SHARDS],
            versions: [const { AtomicU64::new(0) }; SHARDS],
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

    /// Notes that something else than a file's bytes has changed.
    pub(crate) fn note(&self) {
        self.any.store(true, Ordering::Release);
    }

    /// Returns whether anything was changed since this was asked last.
    pub(crate) fn take(&self) -> bool {
        self.any.swap(false, Ordering::AcqRel)
    }

    fn changed(&self, inode: u64) {
        self.note();
        self.versions[shard(inode)].fetch_add(1, Ordering::AcqRel);
    }
}

/// Applies bytes that S has stored. The caller holds the file's gate.
///
/// # Errors
///
/// What ends the node.
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

/// Forgets the pages of a file that has lost a name: S frees it once nothing has it open.
pub(crate) fn removed<N: Node>(node: &N, inode: u64) {
    let kernel = node.kernel();
    kernel.changes.note();
    let gone = kernel.file_cache.lock().forget(inode);
    drop(gone);
}

fn pages<N: Node>(node: &N, inode: u64) -> Option<alloc::sync::Arc<FilePages>> {
    node.kernel().file_cache.lock().known(inode)
}
