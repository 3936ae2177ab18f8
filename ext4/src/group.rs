//! Group descriptors and the bitmaps they point at.
//!
//! Layout after Linux `Documentation/filesystems/ext4/group_descr.rst` and `struct
//! ext4_group_desc`.

use alloc::borrow::Cow;
use alloc::vec;
use alloc::vec::Vec;

use crate::bytes::{high32, index, low16, low32, put_u16, put_u32, u16_at, u32_at};
use crate::crc::{crc16, crc32c};
use crate::error::{Step, corrupt};
use crate::op::Op;
use crate::superblock::Geometry;

/// `bg_flags`: the inode bitmap, or the block bitmap, is not on the disk yet.
pub(crate) const INODE_UNINIT: u16 = 1;
pub(crate) const BLOCK_UNINIT: u16 = 2;

/// Offsets of numbers by their low halves; the high half of a 16-bit field lies at its own place.
const BLOCK_BITMAP: usize = 0x0;
const INODE_BITMAP: usize = 0x4;
const INODE_TABLE: usize = 0x8;
pub(crate) const FREE_BLOCKS: (usize, usize) = (0xc, 0x2c);
pub(crate) const FREE_INODES: (usize, usize) = (0xe, 0x2e);
pub(crate) const USED_DIRS: (usize, usize) = (0x10, 0x30);
pub(crate) const TABLE_UNUSED: (usize, usize) = (0x1c, 0x32);
const BLOCK_BITMAP_CSUM: (usize, usize) = (0x18, 0x38);
const INODE_BITMAP_CSUM: (usize, usize) = (0x1a, 0x3a);
const FLAGS: usize = 0x12;
const CHECKSUM: usize = 0x1e;

/// A group's descriptor.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) number: u32,
    raw: Vec<u8>,
}

impl Group {
    fn wide(&self) -> bool {
        self.raw.len() >= 64
    }

    fn block_at(&self, at: usize) -> u64 {
        let high = if self.wide() {
            u32_at(&self.raw, at + 0x20)
        } else {
            0
        };
        u64::from(u32_at(&self.raw, at)) | u64::from(high) << 32
    }

    /// Returns a number of two halves.
    pub(crate) fn get(&self, (low, high): (usize, usize)) -> u32 {
        let high = if self.wide() {
            u16_at(&self.raw, high)
        } else {
            0
        };
        u32::from(u16_at(&self.raw, low)) | u32::from(high) << 16
    }

    /// Sets a number of two halves.
    pub(crate) fn set(&mut self, (low, high): (usize, usize), value: u32) {
        put_u16(&mut self.raw, low, low16(value));
        if self.wide() {
            put_u16(&mut self.raw, high, low16(value >> 16));
        }
    }

    /// Returns the flags.
    pub(crate) fn flags(&self) -> u16 {
        u16_at(&self.raw, FLAGS)
    }

    /// Clears flags.
    pub(crate) fn clear_flags(&mut self, flags: u16) {
        let left = self.flags() & !flags;
        put_u16(&mut self.raw, FLAGS, left);
    }

    /// Returns the block of the block bitmap.
    pub(crate) fn block_bitmap(&self) -> u64 {
        self.block_at(BLOCK_BITMAP)
    }

    /// Returns the block of the inode bitmap.
    pub(crate) fn inode_bitmap(&self) -> u64 {
        self.block_at(INODE_BITMAP)
    }

    /// Returns the first block of the inode table.
    pub(crate) fn inode_table(&self) -> u64 {
        self.block_at(INODE_TABLE)
    }

    /// Computes the checksum after `ext4_group_desc_csum` of Linux; `None` where descriptors have
    /// none.
    fn checksum(&self, geometry: &Geometry) -> Option<u16> {
        let number = self.number.to_le_bytes();
        if geometry.metadata_csum {
            let mut sum = crc32c(
                crc32c(geometry.checksum_seed, &number),
                &self.raw[..CHECKSUM],
            );
            sum = crc32c(sum, &[0, 0]);
            return Some(low16(crc32c(sum, &self.raw[CHECKSUM + 2..])));
        }
        let sum = crc16(crc16(!0, &geometry.uuid), &number);
        let sum = crc16(crc16(sum, &self.raw[..CHECKSUM]), &self.raw[CHECKSUM + 2..]);
        geometry.gdt_csum.then_some(sum)
    }
}

/// Returns the block of a group's descriptor and its offset there.
fn place(geometry: &Geometry, group: u32) -> (u64, usize) {
    let at = u64::from(group) * geometry.descriptor_size as u64;
    let size = geometry.block_size as u64;
    (geometry.first_data_block + 1 + at / size, index(at % size))
}

/// Sets bits `from..to`.
fn fill(bitmap: &mut [u8], from: u32, to: u32) {
    for bit in from..to {
        set_bit(bitmap, bit);
    }
}

/// Returns a bit of a bitmap.
pub(crate) fn bit(bitmap: &[u8], at: u32) -> bool {
    bitmap
        .get(index(u64::from(at / 8)))
        .is_some_and(|byte| byte >> (at % 8) & 1 == 1)
}

/// Sets a bit of a bitmap.
pub(crate) fn set_bit(bitmap: &mut [u8], at: u32) {
    bitmap[index(u64::from(at / 8))] |= 1 << (at % 8);
}

/// Clears a bit of a bitmap.
pub(crate) fn clear_bit(bitmap: &mut [u8], at: u32) {
    bitmap[index(u64::from(at / 8))] &= !(1 << (at % 8));
}

impl Op<'_> {
    /// Reads a group's descriptor.
    pub(crate) fn group(&self, number: u32) -> Step<Group> {
        if number >= self.geometry.groups {
            return corrupt("group number", number.into());
        }
        let (block, at) = place(self.geometry, number);
        let raw = self.block(block)?[at..at + self.geometry.descriptor_size].to_vec();
        let group = Group { number, raw };
        let good = group
            .checksum(self.geometry)
            .is_none_or(|sum| sum == u16_at(&group.raw, CHECKSUM));
        if !good {
            return corrupt("bg_checksum", number.into());
        }
        Ok(group)
    }

    /// Writes a group's descriptor.
    pub(crate) fn put_group(&mut self, group: &Group) -> Step<()> {
        let mut raw = group.raw.clone();
        if let Some(sum) = group.checksum(self.geometry) {
            put_u16(&mut raw, CHECKSUM, sum);
        }
        let (block, at) = place(self.geometry, group.number);
        self.block_mut(block)?[at..at + raw.len()].copy_from_slice(&raw);
        Ok(())
    }

    fn bitmap_checksum(&self, bitmap: &[u8], bits: u32) -> u32 {
        crc32c(
            self.geometry.checksum_seed,
            &bitmap[..index(u64::from(bits / 8))],
        )
    }

    fn bitmap_good(&self, group: &Group, field: (usize, usize), bitmap: &[u8], bits: u32) -> bool {
        let mask = if group.wide() { !0 } else { 0xffff };
        let sum = self.bitmap_checksum(bitmap, bits) & mask;
        !self.geometry.metadata_csum || sum == group.get(field)
    }

    /// Returns a group's block bitmap.
    pub(crate) fn block_bitmap(&self, group: &Group) -> Step<Cow<'_, [u8]>> {
        if group.flags() & BLOCK_UNINIT != 0
            && (self.geometry.metadata_csum || self.geometry.gdt_csum)
        {
            return Ok(Cow::Owned(self.fresh_block_bitmap(group)));
        }
        let bits = self.geometry.blocks_per_group;
        let good = |bitmap: &[u8]| self.bitmap_good(group, BLOCK_BITMAP_CSUM, bitmap, bits);
        Ok(Cow::Borrowed(self.checked(
            group.block_bitmap(),
            "block bitmap",
            good,
        )?))
    }

    /// Makes the bitmap that a group flagged `BLOCK_UNINIT` stands for, as `ext4_init_block_bitmap`
    /// of Linux does.
    fn fresh_block_bitmap(&self, group: &Group) -> Vec<u8> {
        let g = self.geometry;
        let mut bitmap = vec![0; g.block_size];
        let len = g.group_len(group.number);
        if g.has_superblock(group.number) {
            let base = 1 + g.descriptor_blocks() + u64::from(g.reserved_descriptors);
            fill(&mut bitmap, 0, u32::try_from(base).unwrap_or(len).min(len));
        }
        let start = g.group_start(group.number);
        let own = [
            (group.block_bitmap(), 1),
            (group.inode_bitmap(), 1),
            (group.inode_table(), g.table_blocks()),
        ];
        for block in own
            .into_iter()
            .flat_map(|(first, len)| first..first.saturating_add(len))
        {
            if let Some(bit) = block.checked_sub(start).filter(|&bit| bit < len.into()) {
                set_bit(&mut bitmap, low32(bit));
            }
        }
        fill(&mut bitmap, len, low32(8 * g.block_size as u64));
        bitmap
    }

    /// Writes a group's block bitmap and the checksum in its descriptor, which the caller writes.
    pub(crate) fn put_block_bitmap(&mut self, group: &mut Group, bitmap: Vec<u8>) {
        if self.geometry.metadata_csum {
            let sum = self.bitmap_checksum(&bitmap, self.geometry.blocks_per_group);
            group.set(BLOCK_BITMAP_CSUM, sum);
        }
        group.clear_flags(BLOCK_UNINIT);
        self.put(group.block_bitmap(), bitmap);
    }

    /// Returns a group's inode bitmap.
    pub(crate) fn inode_bitmap(&self, group: &Group) -> Step<Cow<'_, [u8]>> {
        let g = self.geometry;
        let bits = g.inodes_per_group;
        if group.flags() & INODE_UNINIT != 0 && (g.metadata_csum || g.gdt_csum) {
            let mut bitmap = vec![0; g.block_size];
            fill(&mut bitmap, bits, low32(8 * g.block_size as u64));
            return Ok(Cow::Owned(bitmap));
        }
        let good = |bitmap: &[u8]| self.bitmap_good(group, INODE_BITMAP_CSUM, bitmap, bits);
        Ok(Cow::Borrowed(self.checked(
            group.inode_bitmap(),
            "inode bitmap",
            good,
        )?))
    }

    /// Writes a group's inode bitmap and the checksum in its descriptor, which the caller writes.
    pub(crate) fn put_inode_bitmap(&mut self, group: &mut Group, bitmap: Vec<u8>) {
        if self.geometry.metadata_csum {
            let sum = self.bitmap_checksum(&bitmap, self.geometry.inodes_per_group);
            group.set(INODE_BITMAP_CSUM, sum);
        }
        group.clear_flags(INODE_UNINIT);
        self.put(group.inode_bitmap(), bitmap);
    }
}

/// Stores a block number in two halves of 32 and 16 bits (extents, `i_file_acl`).
pub(crate) fn put_block48(bytes: &mut [u8], low: usize, high: usize, block: u64) {
    put_u32(bytes, low, low32(block));
    put_u16(bytes, high, low16(high32(block)));
}
