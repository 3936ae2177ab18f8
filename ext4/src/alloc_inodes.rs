//! Allocation of inodes.

use crate::bytes::{low32, put_u32, u32_at};
use crate::crc::crc32c;
use crate::error::{Step, corrupt};
use crate::group::{
    BLOCK_UNINIT, FREE_INODES, Group, TABLE_UNUSED, USED_DIRS, bit, clear_bit, set_bit,
};
use crate::inode::{Clock, Inode};
use crate::op::Op;
use crate::superblock::FREE_INODES as TOTAL_FREE_INODES;
use crate::{Errno, superblock::Geometry};

/// Mode and owners of a new inode.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fresh {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

fn has_group_checksums(geometry: &Geometry) -> bool {
    geometry.metadata_csum || geometry.gdt_csum
}

impl Op<'_> {
    /// Allocates an inode, in the group of its parent if possible. It has no names yet and is not
    /// written.
    pub(crate) fn new_inode(&mut self, parent: u32, fresh: Fresh) -> Step<Inode> {
        let g = self.geometry;
        let first = (parent - 1) / g.inodes_per_group;
        for step in 0..g.groups {
            let group = self.group((first + step) % g.groups)?;
            if let Some(index) = self.free_inode_in(&group)? {
                let number = group.number * g.inodes_per_group + index + 1;
                let dir = fresh.mode & crate::inode::TYPE_MASK == crate::inode::DIRECTORY;
                self.mark_inode(group, index, dir)?;
                return Ok(self.fresh_inode(number, fresh));
            }
        }
        Err(Errno::ENOSPC.into())
    }

    fn free_inode_in(&self, group: &Group) -> Step<Option<u32>> {
        if group.get(FREE_INODES) == 0 {
            return Ok(None);
        }
        let per = self.geometry.inodes_per_group;
        let bitmap = self.inode_bitmap(group)?;
        let reserved = self.geometry.first_inode - 1;
        let from = reserved.saturating_sub(group.number.saturating_mul(per));
        Ok((from..per).find(|&at| !bit(&bitmap, at)))
    }

    fn mark_inode(&mut self, mut group: Group, index: u32, dir: bool) -> Step<()> {
        if group.flags() & BLOCK_UNINIT != 0 && has_group_checksums(self.geometry) {
            // As `ext4_new_inode` of Linux: a group with inodes has its block bitmap on the disk.
            let bitmap = self.block_bitmap(&group)?.into_owned();
            self.put_block_bitmap(&mut group, bitmap);
        }
        let mut bitmap = self.inode_bitmap(&group)?.into_owned();
        set_bit(&mut bitmap, index);
        self.put_inode_bitmap(&mut group, bitmap);
        let Some(free) = group.get(FREE_INODES).checked_sub(1) else {
            return corrupt("bg_free_inodes_count", group.number.into());
        };
        group.set(FREE_INODES, free);
        if dir {
            let dirs = group.get(USED_DIRS) + 1;
            group.set(USED_DIRS, dirs);
        }
        if has_group_checksums(self.geometry) {
            // Inodes at the table's end that were never used are not looked at by e2fsck.
            let unused = self.geometry.inodes_per_group - index - 1;
            let unused = unused.min(group.get(TABLE_UNUSED));
            group.set(TABLE_UNUSED, unused);
        }
        self.put_group(&group)?;
        self.count(TOTAL_FREE_INODES, -1)
    }

    fn fresh_inode(&self, number: u32, fresh: Fresh) -> Inode {
        // Tells a reused number from its former owner; need not be secret.
        let mut generation = crc32c(self.geometry.checksum_seed, &self.now.nanos.to_le_bytes());
        generation = crc32c(
            generation,
            &low32(self.now.seconds.cast_unsigned()).to_le_bytes(),
        );
        let mut inode = Inode::fresh(
            self.geometry,
            number,
            crc32c(generation, &number.to_le_bytes()),
        );
        inode.set_mode(fresh.mode);
        inode.set_owner(fresh.uid, fresh.gid);
        for clock in [
            Clock::Accessed,
            Clock::Changed,
            Clock::Modified,
            Clock::Created,
        ] {
            inode.set_time(clock, self.now);
        }
        inode
    }

    /// Frees an inode that owns no blocks any more.
    pub(crate) fn free_inode(&mut self, inode: &Inode) -> Step<()> {
        let g = self.geometry;
        let (number, index) = (
            (inode.number - 1) / g.inodes_per_group,
            (inode.number - 1) % g.inodes_per_group,
        );
        let mut group = self.group(number)?;
        let mut bitmap = self.inode_bitmap(&group)?.into_owned();
        if !bit(&bitmap, index) {
            return corrupt("inode bitmap", group.inode_bitmap());
        }
        clear_bit(&mut bitmap, index);
        self.put_inode_bitmap(&mut group, bitmap);
        let free = group.get(FREE_INODES) + 1;
        group.set(FREE_INODES, free);
        if inode.is_dir() {
            let dirs = group.get(USED_DIRS).saturating_sub(1);
            group.set(USED_DIRS, dirs);
        }
        self.put_group(&group)?;
        self.count(TOTAL_FREE_INODES, 1)
    }

    /// Drops an inode's reference to its block of extended attributes; several inodes may share
    /// one.
    ///
    /// Layout after `struct ext4_xattr_header`: magic, reference count, blocks, hash, checksum.
    pub(crate) fn drop_attributes(&mut self, inode: &mut Inode) -> Step<()> {
        let block = inode.attributes();
        if block == 0 {
            return Ok(());
        }
        self.check_owned(block, 1)?;
        let bytes = self.block(block)?;
        if u32_at(bytes, 0) != 0xea02_0000 {
            return corrupt("extended attributes", block);
        }
        let users = u32_at(bytes, 4);
        if users > 1 {
            let seed = crc32c(self.geometry.checksum_seed, &block.to_le_bytes());
            let sealed = self.geometry.metadata_csum;
            let bytes = self.block_mut(block)?;
            put_u32(bytes, 4, users - 1);
            if sealed {
                put_u32(bytes, 0x10, 0);
                let sum = crc32c(seed, bytes);
                put_u32(bytes, 0x10, sum);
            }
        } else {
            self.forget(block)?;
        }
        inode.clear_attributes();
        inode.count_blocks(self.geometry, -1)
    }
}
