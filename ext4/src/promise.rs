//! Blocks promised to writers: who gathers writes and brings them later is not told then that the
//! disk is full.
//!
//! A promise belongs to an inode and counts blocks, it picks none. It has room for the file's
//! blocks and for those that its extent tree may need ([`need`]). At any time
//!
//! ```text
//! free blocks - those that wait for a commit - those of writes under way >= promises
//! ```
//!
//! Every allocation keeps to that: one without a promise stops where promises begin, one of the
//! promise's own writes ([`Ext4::write_promised`]) takes from the promise first. So a promised
//! write waits neither for the commit that lets freed blocks be reused nor for others' blocks.

use alloc::collections::BTreeMap;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::bytes::u16_at;
use crate::error::{Step, Stop};
use crate::extents::{ROOT_ENTRIES, block_entries};
use crate::file::changeable;
use crate::inode::Inode;
use crate::op::Op;
use crate::superblock::{Geometry, free_blocks};
use crate::{Disk, Errno, Error, Ext4, Time};

/// The most blocks of a file that are promised: as many as cannot split a node of the smallest
/// block twice.
pub const MAX_PROMISED: u32 = 72;

/// Extents that writes without a promise may add between two looks at a tree that has none but its
/// root: blocks of one piece, at 1 KB each.
const SLACK: u64 = 64;

/// The blocks promised.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    by_inode: BTreeMap<u32, u64>,
    /// Blocks of all promises.
    total: u64,
    /// Blocks that are being filled with data by writes without a promise.
    planned: u64,
    /// Requests that found no room but for promises.
    refused: AtomicU64,
}

/// The account that an operation takes blocks from.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Terms {
    /// The inode whose promise pays.
    pub(crate) pays: Option<u32>,
    /// Blocks that a write without a promise has planned, and that are claimed now.
    pub(crate) settles: u64,
}

impl Promises {
    fn of(&self, inode: u32) -> u64 {
        self.by_inode.get(&inode).copied().unwrap_or(0)
    }

    fn set(&mut self, inode: u32, blocks: u64) {
        self.total -= self.by_inode.remove(&inode).unwrap_or(0);
        if blocks > 0 {
            self.by_inode.insert(inode, blocks);
            self.total += blocks;
        }
    }

    /// Applies an operation that has claimed and planned blocks.
    pub(crate) fn spent(&mut self, terms: Terms, claimed: u64, planned: u64) {
        self.planned = self.planned.saturating_sub(terms.settles);
        match terms.pays {
            Some(inode) => self.set(inode, self.of(inode).saturating_sub(claimed)),
            None => self.planned += planned,
        }
    }

    /// Notes that a write without a promise was given up, with the blocks it had planned.
    pub(crate) fn given_up(&mut self, planned: u64) {
        self.planned = self.planned.saturating_sub(planned);
    }

    /// Makes or changes a promise.
    pub(crate) fn promise(&mut self, inode: u32, blocks: u64) {
        self.set(inode, blocks);
    }

    /// Returns the blocks that others than their owners must not count on.
    pub(crate) fn unavailable(&self) -> u64 {
        self.total + self.planned
    }
}

/// Returns the blocks that writing `blocks` blocks of a file takes at most, whatever the order and
/// however scattered: an insertion splits at most one node of each level, and the root grows at
/// most twice. A tree with nothing below its root gets one leaf that takes all.
///
/// The tree may be a level deeper by then, through writes without a promise.
fn need(geometry: &Geometry, blocks: u32, depth: u16) -> u64 {
    let (blocks, entries) = (u64::from(blocks), block_entries(geometry) as u64);
    if depth == 0 && ROOT_ENTRIES as u64 + SLACK + 2 * blocks <= entries {
        return blocks + 1;
    }
    blocks + blocks * (u64::from(depth) + 1) + 2
}

impl Op<'_> {
    /// Returns how many blocks the operation may still take or plan; `None` if it has taken more
    /// than that already.
    pub(crate) fn room(&self) -> Step<Option<u64>> {
        let (store, terms) = (self.store, self.terms);
        let promises = &store.promises;
        if promises.total == 0 {
            return Ok(Some(u64::MAX));
        }
        let own = terms.pays.map_or(0, |inode| promises.of(inode));
        let free = free_blocks(self.superblock()?, self.geometry.wide);
        let busy = store.busy.blocks() + self.change.freed.blocks();
        let planned = promises.planned.saturating_sub(terms.settles);
        let taken = busy + planned + self.change.reserved.blocks() + promises.total - own;
        Ok(free.checked_sub(taken))
    }

    /// Returns the end of an operation that finds no room but for promises.
    pub(crate) fn no_room(&self) -> Stop {
        if !self.store.busy.is_empty() {
            return Stop::Commit;
        }
        self.store.promises.refused.fetch_add(1, Ordering::Relaxed);
        Errno::ENOSPC.into()
    }

    /// Checks that an operation has left others what is promised to them.
    pub(crate) fn check_room(&self) -> Step<()> {
        match self.room()? {
            Some(_) => Ok(()),
            None => Err(self.no_room()),
        }
    }

    /// Makes the promise of a file one of `blocks` blocks, if `spare` blocks are left for others.
    fn promise(&mut self, number: u32, blocks: u32, spare: u64) -> Step<bool> {
        let inode = self.used_inode(number)?;
        changeable(&inode)?;
        let need = need(self.geometry, blocks.min(MAX_PROMISED), depth_of(&inode));
        let promises = &self.store.promises;
        let more = need.saturating_sub(promises.of(number));
        let free = free_blocks(self.superblock()?, self.geometry.wide);
        let taken = self.store.busy.blocks() + promises.unavailable() + spare;
        if more > 0 && free.saturating_sub(taken) < more {
            return Ok(false);
        }
        self.change.promise = Some((number, need));
        Ok(true)
    }
}

/// Returns the levels below the root of a file's tree, as its header says (`eh_depth`).
fn depth_of(inode: &Inode) -> u16 {
    u16_at(inode.block(), 6)
}

impl<D: Disk> Ext4<D> {
    /// Promises the blocks that writes to `blocks` blocks of a file take, at most [`MAX_PROMISED`];
    /// an earlier promise is changed to that. Returns false, and changes nothing, if fewer than
    /// `spare` blocks would be left for others.
    ///
    /// # Errors
    ///
    /// EISDIR, EINVAL, EPERM, EROFS; else the disk's or the file system's failure.
    pub async fn promise(&self, inode: u32, blocks: u32, spare: u64) -> Result<bool, Error> {
        self.check_writable()?;
        self.run(Time::default(), |op| op.promise(inode, blocks, spare))
            .await
    }

    /// Takes back what is left of a file's promise.
    pub fn end_promise(&self, inode: u32) {
        self.state.lock().store.promises.set(inode, 0);
    }

    /// Returns the blocks of all promises.
    pub fn promised(&self) -> u64 {
        self.state.lock().store.promises.total
    }

    /// Returns how many requests were ENOSPC because of promises.
    pub fn refused_for_promises(&self) -> u64 {
        let state = self.state.lock();
        state.store.promises.refused.load(Ordering::Relaxed)
    }
}
