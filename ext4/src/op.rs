//! One attempt at an operation: a view of the blocks in memory, with the operation's own changes on
//! top.
//!
//! An operation is a plain function over [`Op`]. When it needs a block that is not in memory it
//! stops with [`Stop::Miss`]; its changes are dropped, the block is read while nothing is locked,
//! and the operation starts again. So an operation never waits, and one that fails half-way (full
//! disk, corrupt metadata) changed nothing.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use crate::Time;
use crate::bytes::{put_u32, u32_at};
use crate::error::{Step, Stop, corrupt};
use crate::promise::Terms;
use crate::ranges::Ranges;
use crate::store::{Block, Change, Store};
use crate::superblock::{Geometry, seal};

/// An operation's view of the file system.
pub(crate) struct Op<'a> {
    pub(crate) geometry: &'a Geometry,
    pub(crate) store: &'a Store,
    /// Blocks of the file system's own tables: no file may own them.
    pub(crate) system: &'a Ranges,
    /// Blocks read for earlier attempts, which the clean layer may have dropped since.
    loaded: &'a BTreeMap<u64, Block>,
    /// Number of holds of each inode.
    pub(crate) held: &'a BTreeMap<u32, u32>,
    pub(crate) change: Change,
    pub(crate) terms: Terms,
    pub(crate) now: Time,
}

impl<'a> Op<'a> {
    /// Begins an attempt.
    pub(crate) fn new(
        geometry: &'a Geometry,
        store: &'a Store,
        system: &'a Ranges,
        loaded: &'a BTreeMap<u64, Block>,
        held: &'a BTreeMap<u32, u32>,
        now: Time,
    ) -> Self {
        Self {
            geometry,
            store,
            system,
            loaded,
            held,
            change: Change::default(),
            terms: Terms::default(),
            now,
        }
    }

    /// Returns a block's bytes.
    pub(crate) fn block(&self, block: u64) -> Step<&[u8]> {
        if block >= self.geometry.blocks {
            return corrupt("block number", block);
        }
        if let Some(bytes) = self.change.overlay.get(&block) {
            return Ok(bytes);
        }
        let bytes = self.store.get(block).or_else(|| self.loaded.get(&block));
        bytes.map(|bytes| bytes.as_slice()).ok_or(Stop::Miss(block))
    }

    /// Returns a block's bytes; `good` compares the checksum if that was not done before.
    pub(crate) fn checked(
        &self,
        block: u64,
        what: &'static str,
        good: impl FnOnce(&[u8]) -> bool,
    ) -> Step<&[u8]> {
        let bytes = self.block(block)?;
        if !self.change.overlay.contains_key(&block) && !self.store.is_checked(block) {
            if !good(bytes) {
                return corrupt(what, block);
            }
            self.store.set_checked(block);
        }
        Ok(bytes)
    }

    /// Returns a block's bytes to be changed.
    pub(crate) fn block_mut(&mut self, block: u64) -> Step<&mut Vec<u8>> {
        if !self.change.overlay.contains_key(&block) {
            let copy = self.block(block)?.to_vec();
            self.change.overlay.insert(block, copy);
        }
        Ok(self.change.overlay.entry(block).or_default())
    }

    /// Replaces a block's bytes.
    pub(crate) fn put(&mut self, block: u64, bytes: Vec<u8>) {
        self.change.overlay.insert(block, bytes);
    }

    /// Returns a block of zeroes.
    pub(crate) fn zeroes(&self) -> Vec<u8> {
        vec![0; self.geometry.block_size]
    }

    /// Frees a block of metadata: replay must no longer write it.
    pub(crate) fn forget(&mut self, block: u64) -> Step<()> {
        self.change.overlay.remove(&block);
        self.change.revoked.insert(block);
        self.free(block, 1)
    }

    /// Returns the superblock.
    pub(crate) fn superblock(&self) -> Step<&[u8]> {
        let (block, at) = self.geometry.superblock_place();
        Ok(&self.block(block)?[at..at + 1024])
    }

    /// Changes the superblock.
    pub(crate) fn edit_superblock(&mut self, edit: impl FnOnce(&mut [u8])) -> Step<()> {
        let (block, at) = self.geometry.superblock_place();
        let sealed = self.geometry.metadata_csum;
        let sb = &mut self.block_mut(block)?[at..at + 1024];
        edit(sb);
        seal(sb, sealed);
        Ok(())
    }

    /// Adds to a 32-bit count of the superblock.
    pub(crate) fn count(&mut self, field: usize, delta: i32) -> Step<()> {
        let value = u32_at(self.superblock()?, field);
        let Some(value) = value.checked_add_signed(delta) else {
            return corrupt("count of the superblock", value.into());
        };
        self.edit_superblock(|sb| put_u32(sb, field, value))
    }
}
