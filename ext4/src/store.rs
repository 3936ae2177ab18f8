//! Blocks of metadata in memory, in layers.
//!
//! ```text
//!  Op's overlay     changes of an operation that has not ended
//!  running          changes of ended operations, not yet in the log
//!  committing       the transaction that is being written to the log
//!  checkpoint       blocks in the log whose place on the disk holds something older
//!  clean            copies of what the disk holds
//! ```
//!
//! A block is looked for from the top. Layers share their bytes, so a commit writes a frozen
//! transaction while operations change newer copies.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::promise::{Promises, Terms};
use crate::ranges::Ranges;

/// The bytes of a block, shared between layers.
pub(crate) type Block = Arc<Vec<u8>>;

/// Blocks that the clean layer holds at most.
const CLEAN_BLOCKS: usize = 2048;

/// Changes that one commit makes durable.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    /// New contents of metadata blocks.
    pub(crate) blocks: BTreeMap<u64, Block>,
    /// Freed metadata blocks: replay must not write older copies of them.
    pub(crate) revoked: BTreeSet<u64>,
    /// Freed blocks. They are reused only once the transaction has committed, as data written in
    /// place would otherwise overwrite what a crash brings back.
    pub(crate) freed: Ranges,
}

impl Transaction {
    /// Returns whether there is nothing to commit.
    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.revoked.is_empty()
    }

    /// Returns about how many blocks of the log the transaction takes.
    pub(crate) fn size(&self) -> usize {
        self.blocks.len() + self.revoked.len() / 64
    }
}

#[derive(Debug)]
struct Clean {
    bytes: Block,
    /// Set once the block's checksum was compared.
    checked: AtomicBool,
}

/// The layers below an operation.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) running: Transaction,
    pub(crate) committing: Option<Arc<Transaction>>,
    pub(crate) checkpoint: BTreeMap<u64, Block>,
    clean: BTreeMap<u64, Clean>,
    order: VecDeque<u64>,
    /// Blocks of `freed` of the running and the committing transaction.
    pub(crate) busy: Ranges,
    /// Blocks that are being filled with data before the operation that allocates them.
    pub(crate) reserved: Ranges,
    /// Blocks promised to writers.
    pub(crate) promises: Promises,
    /// Inodes on the list of orphans, except those that the mount found there.
    pub(crate) orphans: BTreeSet<u32>,
    /// Number of the state that `clean` copies: a block read under an older number may be stale.
    pub(crate) generation: u64,
}

impl Store {
    /// Returns a block's newest bytes.
    pub(crate) fn get(&self, block: u64) -> Option<&Block> {
        let committing = self
            .committing
            .as_ref()
            .and_then(|txn| txn.blocks.get(&block));
        let pending = self.running.blocks.get(&block).or(committing);
        pending
            .or_else(|| self.checkpoint.get(&block))
            .or_else(|| self.clean.get(&block).map(|clean| &clean.bytes))
    }

    /// Returns whether a block's checksum need not be compared (again): we wrote it, or compared it
    /// before.
    pub(crate) fn is_checked(&self, block: u64) -> bool {
        let committing = self.committing.as_ref();
        let ours = self.running.blocks.contains_key(&block)
            || committing.is_some_and(|txn| txn.blocks.contains_key(&block))
            || self.checkpoint.contains_key(&block);
        let clean = self.clean.get(&block);
        ours || clean.is_some_and(|clean| clean.checked.load(Ordering::Relaxed))
    }

    /// Notes that a block's checksum was compared.
    pub(crate) fn set_checked(&self, block: u64) {
        if let Some(clean) = self.clean.get(&block) {
            clean.checked.store(true, Ordering::Relaxed);
        }
    }

    /// Adds a copy of what the disk holds, and drops the oldest copy when there are too many.
    pub(crate) fn add_clean(&mut self, block: u64, bytes: Block, checked: bool) {
        let checked = AtomicBool::new(checked);
        if self.clean.insert(block, Clean { bytes, checked }).is_none() {
            self.order.push_back(block);
        }
        while self.order.len() > CLEAN_BLOCKS {
            if let Some(oldest) = self.order.pop_front() {
                self.clean.remove(&oldest);
            }
        }
    }

    /// Adds an operation's changes to the running transaction.
    pub(crate) fn merge(&mut self, change: Change, terms: Terms) {
        let planned = change.reserved.blocks();
        self.promises.spent(terms, change.claimed, planned);
        if let Some((inode, blocks)) = change.promise {
            self.promises.promise(inode, blocks);
        }
        for (start, len) in change.freed.iter() {
            self.busy.insert(start, len);
            self.running.freed.insert(start, len);
        }
        for (start, len) in change.reserved.iter() {
            self.reserved.insert(start, len);
        }
        for (inode, listed) in change.orphans {
            if listed {
                self.orphans.insert(inode);
            } else {
                self.orphans.remove(&inode);
            }
        }
        for &block in &change.revoked {
            self.running.blocks.remove(&block);
        }
        self.running.revoked.extend(change.revoked);
        for (block, bytes) in change.overlay {
            self.running.revoked.remove(&block);
            self.running.blocks.insert(block, Arc::new(bytes));
        }
    }

    /// Freezes the running transaction and starts an empty one.
    pub(crate) fn freeze(&mut self) -> Arc<Transaction> {
        let frozen = Arc::new(core::mem::take(&mut self.running));
        self.committing = Some(frozen.clone());
        frozen
    }

    /// Moves the committing transaction, now durable, to the checkpoint layer and lets its freed
    /// blocks be reused.
    pub(crate) fn committed(&mut self) {
        let Some(txn) = self.committing.take() else {
            return;
        };
        for block in &txn.revoked {
            self.checkpoint.remove(block);
            self.clean.remove(block);
        }
        for (&block, bytes) in &txn.blocks {
            self.checkpoint.insert(block, bytes.clone());
        }
        for (start, _) in txn.freed.iter() {
            self.busy.remove(start);
        }
        self.generation += 1;
    }

    /// Notes that the disk now holds these blocks in their places.
    pub(crate) fn checkpointed(&mut self, written: BTreeMap<u64, Block>) {
        for (block, bytes) in written {
            let same = self
                .checkpoint
                .get(&block)
                .is_some_and(|now| Arc::ptr_eq(now, &bytes));
            if same {
                self.checkpoint.remove(&block);
                self.add_clean(block, bytes, true);
            }
        }
        self.generation += 1;
    }
}

/// The changes of an operation.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) overlay: BTreeMap<u64, Vec<u8>>,
    pub(crate) revoked: BTreeSet<u64>,
    pub(crate) freed: Ranges,
    /// Blocks to be filled with data before an operation allocates them.
    pub(crate) reserved: Ranges,
    /// Blocks allocated.
    pub(crate) claimed: u64,
    /// An inode whose promise is now of so many blocks.
    pub(crate) promise: Option<(u32, u64)>,
    /// An inode that is now held open once more.
    pub(crate) hold: Option<u32>,
    /// Inodes that were put on the list of orphans (`true`) or taken off it.
    pub(crate) orphans: BTreeMap<u32, bool>,
}

impl Change {
    /// Returns whether nothing on the disk is to change.
    pub(crate) fn is_empty(&self) -> bool {
        self.overlay.is_empty() && self.revoked.is_empty()
    }

    /// Returns about how many blocks of the log the change takes.
    pub(crate) fn cost(&self) -> usize {
        self.overlay.len() + self.revoked.len() / 64
    }
}
