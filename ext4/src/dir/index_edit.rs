//! Growth of a directory's index: making one, splitting leaves and nodes.

use alloc::vec;
use alloc::vec::Vec;

use super::index::{Branch, CONTINUED, Frame, HASH_VERSION, LEVELS, MAX_LEVELS, limit};
use super::{MIN_RECORD, pack, put_entry, record_len, records, room};
use crate::Errno;
use crate::bytes::{low32, put_u16};
use crate::error::{Step, corrupt};
use crate::inode::{INDEX_FLAG, Inode};
use crate::op::Op;

/// An entry with its name's hash.
type Hashed = (u32, (u32, u8, Vec<u8>));

impl Op<'_> {
    /// Turns a directory of one block into an indexed one of two (`make_indexed_dir` of Linux).
    pub(super) fn start_index(&mut self, dir: &mut Inode) -> Step<()> {
        let root = self.dir_block(dir, 0)?;
        let old = records(self.entry_block(dir, root)?, room(self.geometry), root)?;
        let dots = old.len() >= 2
            && (old[0].name, old[1].name) == (b".".as_slice(), b"..".as_slice())
            && old[0].len == MIN_RECORD;
        if !dots {
            return corrupt("directory without . and ..", dir.number.into());
        }
        let parent = old[1].inode;
        let used = old[2..].iter().filter(|record| record.inode != 0);
        let entries: Vec<_> = used
            .map(|record| (record.inode, record.kind, record.name.to_vec()))
            .collect();
        let leaf = self.append_dir_block(dir)?;
        let bytes = pack(self.geometry, dir.seed(self.geometry), &entries);
        self.put(leaf, bytes);

        let size = self.geometry.block_size;
        let mut bytes = self.zeroes();
        put_entry(&mut bytes, 0, MIN_RECORD, dir.number, 2, b".");
        put_entry(&mut bytes, MIN_RECORD, size - MIN_RECORD, parent, 2, b"..");
        bytes[HASH_VERSION] = self.geometry.hash_version;
        // `info_length`: the size of `dx_root_info`.
        bytes[HASH_VERSION + 1] = 8;
        self.put(root, bytes);
        let flags = dir.flags() | INDEX_FLAG;
        dir.set_flags(flags);
        let branches = vec![Branch { hash: 0, block: 1 }];
        self.put_index(
            dir,
            &Frame {
                block: root,
                root: true,
                branches,
                at: 0,
            },
        )
    }

    /// Adds a name to an indexed directory.
    pub(super) fn add_indexed(
        &mut self,
        dir: &mut Inode,
        name: &[u8],
        inode: u32,
        kind: u8,
    ) -> Step<()> {
        let (version, levels) = self.index_info(dir)?;
        let hash = self.hash_name(version, name)?;
        let path = self.index_path(dir, hash, levels)?;
        let Some(branch) = path.last().map(|frame| frame.branches[frame.at]) else {
            return corrupt("dx_entry", dir.number.into());
        };
        let leaf = self.dir_block(dir, branch.block)?;
        if self.add_to_block(dir, leaf, name, inode, kind)? {
            return Ok(());
        }
        let path = self.make_room(dir, path, hash)?;
        let (upper, boundary) = self.split_leaf(dir, path, leaf, version)?;
        let target = if hash >= boundary & !CONTINUED {
            upper
        } else {
            leaf
        };
        if self.add_to_block(dir, target, name, inode, kind)? {
            return Ok(());
        }
        // Names of one hash fill a block and more; nor does Linux split these.
        Err(Errno::ENOSPC.into())
    }

    /// Sees to it that the lowest node of a path has room for an entry.
    fn make_room(&mut self, dir: &mut Inode, mut path: Vec<Frame>, hash: u32) -> Step<Vec<Frame>> {
        let full = |frame: &Frame| frame.branches.len() >= limit(self.geometry, frame.root);
        if !path.last().is_some_and(full) {
            return Ok(path);
        }
        let root_full = path.first().is_some_and(full);
        let levels = path.len() - 1;
        if levels == 0 {
            self.add_level(dir, &mut path[0])?;
        } else if root_full || levels > MAX_LEVELS.into() {
            return Err(Errno::ENOSPC.into());
        } else {
            self.split_node(dir, &mut path)?;
        }
        let (_, levels) = self.index_info(dir)?;
        self.index_path(dir, hash, levels)
    }

    /// Makes an empty inner node at the directory's end.
    fn new_node(&mut self, dir: &mut Inode, branches: Vec<Branch>) -> Step<u32> {
        let logical = low32(dir.size() / self.geometry.block_size as u64);
        let block = self.append_dir_block(dir)?;
        let mut bytes = self.zeroes();
        put_u16(
            &mut bytes,
            4,
            u16::try_from(self.geometry.block_size).unwrap_or(u16::MAX),
        );
        self.put(block, bytes);
        self.put_index(
            dir,
            &Frame {
                block,
                root: false,
                branches,
                at: 0,
            },
        )?;
        Ok(logical)
    }

    /// Moves the root's entries to a new node below it.
    fn add_level(&mut self, dir: &mut Inode, root: &mut Frame) -> Step<()> {
        let branches = core::mem::take(&mut root.branches);
        let block = self.new_node(dir, branches)?;
        root.branches = vec![Branch { hash: 0, block }];
        self.block_mut(root.block)?[LEVELS] = 1;
        self.put_index(dir, root)
    }

    /// Moves half of a full node to a new one; its parent has room.
    fn split_node(&mut self, dir: &mut Inode, path: &mut [Frame]) -> Step<()> {
        let [.., parent, node] = path else {
            return corrupt("dx_entry", dir.number.into());
        };
        let upper = node.branches.split_off(node.branches.len() / 2);
        let hash = upper.first().map_or(0, |branch| branch.hash);
        let block = self.new_node(dir, upper)?;
        parent
            .branches
            .insert(parent.at + 1, Branch { hash, block });
        self.put_index(dir, node)?;
        self.put_index(dir, parent)
    }

    /// Moves the upper half, by hash, of a leaf's entries to a new block; returns that and the hash
    /// it begins with.
    fn split_leaf(
        &mut self,
        dir: &mut Inode,
        mut path: Vec<Frame>,
        leaf: u64,
        version: u8,
    ) -> Step<(u64, u32)> {
        let mut entries = self.hashed_entries(dir, leaf, version)?;
        entries.sort_by_key(|&(hash, _)| hash);
        let total: usize = entries
            .iter()
            .map(|(_, entry)| record_len(entry.2.len()))
            .sum();
        let mut size = 0;
        let middle = entries.iter().position(|(_, entry)| {
            size += record_len(entry.2.len());
            size > total / 2
        });
        let middle = middle
            .unwrap_or(0)
            .max(1)
            .min(entries.len().saturating_sub(1));
        let upper = entries.split_off(middle);
        let (Some(&(first, _)), Some(&(last, _))) = (upper.first(), entries.last()) else {
            return corrupt("directory block", leaf);
        };
        let boundary = first | if first == last { CONTINUED } else { 0 };
        let logical = low32(dir.size() / self.geometry.block_size as u64);
        let new = self.append_dir_block(dir)?;
        for (block, half) in [(leaf, entries), (new, upper)] {
            let half: Vec<_> = half.into_iter().map(|(_, entry)| entry).collect();
            let bytes = pack(self.geometry, dir.seed(self.geometry), &half);
            self.put(block, bytes);
        }
        if let Some(frame) = path.last_mut() {
            frame.branches.insert(
                frame.at + 1,
                Branch {
                    hash: boundary,
                    block: logical,
                },
            );
            self.put_index(dir, frame)?;
        }
        Ok((new, boundary))
    }

    fn hashed_entries(&self, dir: &Inode, leaf: u64, version: u8) -> Step<Vec<Hashed>> {
        let bytes = self.entry_block(dir, leaf)?;
        let records = records(bytes, room(self.geometry), leaf)?;
        let used = records.into_iter().filter(|record| record.inode != 0);
        used.map(|record| {
            let hash = self.hash_name(version, record.name)?;
            Ok((hash, (record.inode, record.kind, record.name.to_vec())))
        })
        .collect()
    }
}
