//! The index of a directory: a tree of hashes of names, at most three levels high.
//!
//! Layout after Linux `Documentation/filesystems/ext4/directory.rst`, `struct dx_root`, `dx_node`
//! and `dx_tail`.

use alloc::vec::Vec;

use super::{Found, find_in_block, room};
use crate::bytes::{put_u16, put_u32, u16_at, u32_at};
use crate::crc::crc32c;
use crate::error::{Step, corrupt};
use crate::hash::Hasher;
use crate::inode::Inode;
use crate::op::Op;
use crate::{Errno, superblock::Geometry};

/// Offset of the entries: behind `.`, `..` and `dx_root_info` in the root, behind a fake entry
/// elsewhere.
pub(super) const ROOT_ENTRIES: usize = 32;
pub(super) const NODE_ENTRIES: usize = 8;

/// Offsets of `hash_version` and `indirect_levels` in the root.
pub(super) const HASH_VERSION: usize = 28;
pub(super) const LEVELS: usize = 30;

/// Levels of inner nodes below the root, without the feature of large directories.
pub(super) const MAX_LEVELS: u8 = 1;

/// The lowest bit of an entry's hash: names of the same hash stand in the block before, too.
pub(super) const CONTINUED: u32 = 1;

/// An entry: names whose hash is at least this one are in this block of the directory, or below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Branch {
    pub(super) hash: u32,
    pub(super) block: u32,
}

/// A node on the way to a name.
#[derive(Debug)]
pub(super) struct Frame {
    /// The node's block on the disk.
    pub(super) block: u64,
    pub(super) root: bool,
    pub(super) branches: Vec<Branch>,
    /// The branch on the way.
    pub(super) at: usize,
}

/// Entries that a node has room for.
pub(super) fn limit(geometry: &Geometry, root: bool) -> usize {
    let tail = if geometry.metadata_csum { 8 } else { 0 };
    (geometry.block_size - if root { ROOT_ENTRIES } else { NODE_ENTRIES } - tail) / 8
}

/// The checksum of a node with its count and limit (`ext4_dx_csum`).
fn checksum(seed: u32, bytes: &[u8], offset: usize) -> Option<(usize, u32)> {
    let (limit, count) = (
        usize::from(u16_at(bytes, offset)),
        usize::from(u16_at(bytes, offset + 2)),
    );
    let tail = offset + 8 * limit;
    let used = bytes.get(..offset + 8 * count)?;
    let reserved = bytes.get(tail..tail + 4)?;
    bytes.get(tail + 4..tail + 8)?;
    Some((
        tail + 4,
        crc32c(crc32c(crc32c(seed, used), reserved), &[0; 4]),
    ))
}

impl Op<'_> {
    fn hasher(&self) -> Hasher {
        Hasher {
            seed: self.geometry.hash_seed,
            unsigned: self.geometry.unsigned_hash,
        }
    }

    /// Hashes a name as a directory does.
    pub(super) fn hash_name(&self, version: u8, name: &[u8]) -> Step<u32> {
        self.hasher()
            .hash(version, name)
            .ok_or(Errno::EOPNOTSUPP.into())
    }

    /// Reads a node of the index.
    fn index_node(&self, dir: &Inode, block: u64, root: bool) -> Step<(Vec<Branch>, &[u8])> {
        let offset = if root { ROOT_ENTRIES } else { NODE_ENTRIES };
        let geometry = self.geometry;
        let bytes = self.checked(block, "dx_tail", |bytes| {
            let sum = checksum(dir.seed(geometry), bytes, offset);
            !geometry.metadata_csum || sum.is_some_and(|(at, sum)| sum == u32_at(bytes, at))
        })?;
        let (found_limit, count) = (
            usize::from(u16_at(bytes, offset)),
            usize::from(u16_at(bytes, offset + 2)),
        );
        if found_limit != limit(geometry, root) || count == 0 || count > found_limit {
            return corrupt("dx_countlimit", block);
        }
        // The first entry's hash is zero; count and limit stand in its place.
        let branches = (0..count).map(|at| Branch {
            hash: if at == 0 {
                0
            } else {
                u32_at(bytes, offset + 8 * at)
            },
            block: u32_at(bytes, offset + 8 * at + 4),
        });
        let branches: Vec<_> = branches.collect();
        if branches.windows(2).any(|two| two[0].hash > two[1].hash) {
            return corrupt("dx_entry", block);
        }
        Ok((branches, bytes))
    }

    /// Returns the hash version of a directory and the number of levels below the root.
    pub(super) fn index_info(&self, dir: &Inode) -> Step<(u8, u8)> {
        let block = self.dir_block(dir, 0)?;
        let (_, bytes) = self.index_node(dir, block, true)?;
        let levels = bytes[LEVELS];
        if levels > MAX_LEVELS || bytes[29] != 8 {
            return corrupt("dx_root_info", block);
        }
        Ok((bytes[HASH_VERSION], levels))
    }

    /// Returns the nodes from the root to the branch of a hash.
    pub(super) fn index_path(&self, dir: &Inode, hash: u32, levels: u8) -> Step<Vec<Frame>> {
        let mut path = Vec::new();
        let mut logical = 0;
        for level in 0..=levels {
            let (block, root) = (self.dir_block(dir, logical)?, level == 0);
            let (branches, _) = self.index_node(dir, block, root)?;
            let at = branches
                .partition_point(|branch| branch.hash <= hash)
                .saturating_sub(1);
            logical = branches[at].block;
            path.push(Frame {
                block,
                root,
                branches,
                at,
            });
        }
        Ok(path)
    }

    /// Finds a name by the index.
    pub(super) fn find_indexed(&self, dir: &Inode, name: &[u8]) -> Step<Option<Found>> {
        let (version, levels) = self.index_info(dir)?;
        let hash = self.hash_name(version, name)?;
        let mut path = self.index_path(dir, hash, levels)?;
        // Each round looks into another block of the directory.
        for _ in 0..self.dir_blocks(dir)? {
            let Some(branch) = path.last().map(|frame| frame.branches[frame.at]) else {
                return Ok(None);
            };
            let block = self.dir_block(dir, branch.block)?;
            let bytes = self.entry_block(dir, block)?;
            if let Some(found) = find_in_block(bytes, room(self.geometry), block, name)? {
                return Ok(Some(found));
            }
            if !self.next_leaf(dir, &mut path, hash)? {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Goes on to the next leaf if it continues the hash (`ext4_htree_next_block`).
    fn next_leaf(&self, dir: &Inode, path: &mut Vec<Frame>, hash: u32) -> Step<bool> {
        let levels = path.len();
        while let Some(frame) = path.last_mut() {
            if frame.at + 1 < frame.branches.len() {
                frame.at += 1;
                break;
            }
            path.pop();
        }
        let Some(branch) = path.last().map(|frame| frame.branches[frame.at]) else {
            return Ok(false);
        };
        if branch.hash != hash | CONTINUED {
            return Ok(false);
        }
        let mut logical = branch.block;
        while path.len() < levels {
            let block = self.dir_block(dir, logical)?;
            let (branches, _) = self.index_node(dir, block, false)?;
            logical = branches[0].block;
            path.push(Frame {
                block,
                root: false,
                branches,
                at: 0,
            });
        }
        Ok(true)
    }

    /// Writes a node's entries and its checksum.
    pub(super) fn put_index(&mut self, dir: &Inode, frame: &Frame) -> Step<()> {
        let offset = if frame.root {
            ROOT_ENTRIES
        } else {
            NODE_ENTRIES
        };
        let limit = limit(self.geometry, frame.root);
        let bytes = self.block_mut(frame.block)?;
        bytes[offset..].fill(0);
        for (at, branch) in frame.branches.iter().enumerate() {
            put_u32(bytes, offset + 8 * at, branch.hash);
            put_u32(bytes, offset + 8 * at + 4, branch.block);
        }
        put_u16(bytes, offset, u16::try_from(limit).unwrap_or(u16::MAX));
        put_u16(
            bytes,
            offset + 2,
            u16::try_from(frame.branches.len()).unwrap_or(u16::MAX),
        );
        self.seal_node(dir, frame.block, offset)
    }

    /// Renews the checksum of the root after a change of its first entries.
    pub(super) fn seal_index(&mut self, dir: &Inode, block: u64) -> Step<()> {
        self.seal_node(dir, block, ROOT_ENTRIES)
    }

    fn seal_node(&mut self, dir: &Inode, block: u64, offset: usize) -> Step<()> {
        if !self.geometry.metadata_csum {
            return Ok(());
        }
        let seed = dir.seed(self.geometry);
        let bytes = self.block_mut(block)?;
        match checksum(seed, bytes, offset) {
            Some((at, sum)) => put_u32(bytes, at, sum),
            None => return corrupt("dx_tail", block),
        }
        Ok(())
    }
}
