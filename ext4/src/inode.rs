//! Inodes.
//!
//! Layout after Linux `Documentation/filesystems/ext4/inodes.rst` and `struct ext4_inode`. The
//! bytes are kept as they are, so fields not known here (extended attributes in the inode, project
//! numbers) survive a change.

use alloc::vec;
use alloc::vec::Vec;

use crate::bytes::{high32, index, low16, low32, put_u16, put_u32, u16_at, u32_at};
use crate::crc::crc32c;
use crate::error::{Step, corrupt};
use crate::group::put_block48;
use crate::op::Op;
use crate::superblock::Geometry;

/// The root directory's inode.
pub const ROOT: u32 = 2;

/// `S_IFMT` and the types.
pub(crate) const TYPE_MASK: u16 = 0xf000;
pub(crate) const FIFO: u16 = 0x1000;
pub(crate) const CHARACTER: u16 = 0x2000;
pub(crate) const DIRECTORY: u16 = 0x4000;
pub(crate) const BLOCK_DEVICE: u16 = 0x6000;
pub(crate) const REGULAR: u16 = 0x8000;
pub(crate) const SYMLINK: u16 = 0xa000;
pub(crate) const SOCKET: u16 = 0xc000;

/// `i_flags`.
pub(crate) const INDEX_FLAG: u32 = 0x1000;
const HUGE_FILE_FLAG: u32 = 0x4_0000;
pub(crate) const EXTENTS_FLAG: u32 = 0x8_0000;
/// Immutable and append-only.
const RESTRICTED_FLAGS: u32 = 0x10 | 0x20;

/// Offset and size of `i_block`.
const BLOCK: usize = 0x28;
const BLOCK_LEN: usize = 60;
const CHECKSUM_LOW: usize = 0x7c;
const EXTRA_SIZE: usize = 0x80;
const CHECKSUM_HIGH: usize = 0x82;

/// A point in time, since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Time {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds, less than 10^9.
    pub nanos: u32,
}

impl Time {
    /// Returns the closest time that an inode can hold, with or without the extra bits; at both
    /// ends without nanoseconds (Linux `fs/inode.c`, `timestamp_truncate`; `fs/ext4/ext4.h`,
    /// `EXT4_EXTRA_TIMESTAMP_MAX`).
    fn within(self, has_extra: bool) -> Self {
        let first = i64::from(i32::MIN);
        let last = match has_extra {
            true => first + (1 << 34) - 1,
            false => i64::from(i32::MAX),
        };
        let seconds = self.seconds.clamp(first, last);
        let at_end = seconds == first || seconds == last;
        let nanos = if at_end { 0 } else { self.nanos };
        Self { seconds, nanos }
    }
}

/// A file's attributes, as `stat` returns them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Number of the inode.
    pub inode: u32,
    /// Type and permissions, as `st_mode`.
    pub mode: u16,
    /// Number of names.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Allocated units of 512 bytes.
    pub blocks: u64,
    /// Time of the last access.
    pub accessed: Time,
    /// Time of the last change of contents.
    pub modified: Time,
    /// Time of the last change of the inode.
    pub changed: Time,
    /// `i_block[0]` and `i_block[1]` of a device node: its number in the old and the new encoding.
    pub device: [u32; 2],
}

/// An inode in memory.
#[derive(Debug, Clone)]
pub(crate) struct Inode {
    pub(crate) number: u32,
    raw: Vec<u8>,
}

/// A time and its extra bits (two of epoch, thirty of nanoseconds), each `(seconds, extra)` by
/// offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    Accessed,
    Changed,
    Modified,
    Created,
}

impl Clock {
    fn places(self) -> (usize, usize) {
        match self {
            Self::Accessed => (0x8, 0x8c),
            Self::Changed => (0xc, 0x84),
            Self::Modified => (0x10, 0x88),
            Self::Created => (0x90, 0x94),
        }
    }
}

impl Inode {
    /// Returns the type bits of the mode.
    pub(crate) fn kind(&self) -> u16 {
        self.mode() & TYPE_MASK
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.kind() == DIRECTORY
    }

    pub(crate) fn mode(&self) -> u16 {
        u16_at(&self.raw, 0)
    }

    pub(crate) fn set_mode(&mut self, mode: u16) {
        put_u16(&mut self.raw, 0, mode);
    }

    pub(crate) fn links(&self) -> u16 {
        u16_at(&self.raw, 0x1a)
    }

    pub(crate) fn set_links(&mut self, links: u16) {
        put_u16(&mut self.raw, 0x1a, links);
    }

    pub(crate) fn size(&self) -> u64 {
        u64::from(u32_at(&self.raw, 4)) | u64::from(u32_at(&self.raw, 0x6c)) << 32
    }

    pub(crate) fn set_size(&mut self, size: u64) {
        put_u32(&mut self.raw, 4, low32(size));
        put_u32(&mut self.raw, 0x6c, high32(size));
    }

    pub(crate) fn flags(&self) -> u32 {
        u32_at(&self.raw, 0x20)
    }

    pub(crate) fn set_flags(&mut self, flags: u32) {
        put_u32(&mut self.raw, 0x20, flags);
    }

    /// Returns whether the inode may not be changed (immutable or append-only).
    pub(crate) fn is_restricted(&self) -> bool {
        self.flags() & RESTRICTED_FLAGS != 0
    }

    /// Returns `i_dtime`: the time of deletion, or the next inode of the orphan list.
    pub(crate) fn dtime(&self) -> u32 {
        u32_at(&self.raw, 0x14)
    }

    pub(crate) fn set_dtime(&mut self, value: u32) {
        put_u32(&mut self.raw, 0x14, value);
    }

    pub(crate) fn generation(&self) -> u32 {
        u32_at(&self.raw, 0x64)
    }

    /// Returns the block of extended attributes; zero for none.
    pub(crate) fn attributes(&self) -> u64 {
        u64::from(u32_at(&self.raw, 0x68)) | u64::from(u16_at(&self.raw, 0x76)) << 32
    }

    pub(crate) fn clear_attributes(&mut self) {
        self.set_attributes(0);
    }

    pub(crate) fn set_attributes(&mut self, block: u64) {
        put_block48(&mut self.raw, 0x68, 0x76, block);
    }

    /// Returns the bytes behind the fields in use, where extended attributes lie.
    pub(crate) fn spare(&self) -> &[u8] {
        let from = 128 + self.extra_size();
        self.raw.get(from..).unwrap_or(&[])
    }

    pub(crate) fn spare_mut(&mut self) -> &mut [u8] {
        let from = 128 + self.extra_size();
        self.raw.get_mut(from..).unwrap_or(&mut [])
    }

    pub(crate) fn owner(&self) -> (u32, u32) {
        let id = |low, high| {
            u32::from(u16_at(&self.raw, low)) | u32::from(u16_at(&self.raw, high)) << 16
        };
        (id(2, 0x78), id(0x18, 0x7a))
    }

    pub(crate) fn set_owner(&mut self, uid: u32, gid: u32) {
        for (low, high, id) in [(2, 0x78, uid), (0x18, 0x7a, gid)] {
            put_u16(&mut self.raw, low, low16(id));
            put_u16(&mut self.raw, high, low16(id >> 16));
        }
    }

    /// Returns `i_block`: the root of the extent tree, or a short symbolic link's target.
    pub(crate) fn block(&self) -> &[u8] {
        &self.raw[BLOCK..BLOCK + BLOCK_LEN]
    }

    pub(crate) fn block_mut(&mut self) -> &mut [u8] {
        &mut self.raw[BLOCK..BLOCK + BLOCK_LEN]
    }

    /// Returns the allocated units of 512 bytes.
    pub(crate) fn sectors(&self, geometry: &Geometry) -> u64 {
        let stored = u64::from(u32_at(&self.raw, 0x1c)) | u64::from(u16_at(&self.raw, 0x74)) << 32;
        stored.saturating_mul(self.sectors_unit(geometry))
    }

    /// `i_blocks` counts 512 bytes, or blocks of the file system where the inode says so.
    fn sectors_unit(&self, geometry: &Geometry) -> u64 {
        let huge = geometry.huge_file && self.flags() & HUGE_FILE_FLAG != 0;
        if huge {
            geometry.block_size as u64 / 512
        } else {
            1
        }
    }

    /// Adds to or takes from the number of allocated blocks.
    pub(crate) fn count_blocks(&mut self, geometry: &Geometry, delta: i64) -> Step<()> {
        let per_block = geometry.block_size as u64 / 512;
        let sectors = self.sectors(geometry);
        let change = delta.saturating_mul(i64::from(low32(per_block)));
        let Some(sectors) = sectors.checked_add_signed(change) else {
            return corrupt("i_blocks", self.number.into());
        };
        let stored = sectors / self.sectors_unit(geometry);
        if stored >> 48 != 0 {
            return corrupt("i_blocks", self.number.into());
        }
        put_u32(&mut self.raw, 0x1c, low32(stored));
        put_u16(&mut self.raw, 0x74, low16(high32(stored)));
        Ok(())
    }

    /// Returns how many bytes behind the first 128 are in use.
    fn extra_size(&self) -> usize {
        if self.raw.len() > 128 {
            u16_at(&self.raw, EXTRA_SIZE).into()
        } else {
            0
        }
    }

    pub(crate) fn time(&self, clock: Clock) -> Time {
        let (low, extra) = clock.places();
        let has_extra = 128 + self.extra_size() >= extra + 4;
        let extra = if has_extra {
            u32_at(&self.raw, extra)
        } else {
            0
        };
        let seconds =
            i64::from(u32_at(&self.raw, low).cast_signed()) + (i64::from(extra & 3) << 32);
        Time {
            seconds,
            nanos: (extra >> 2).min(999_999_999),
        }
    }

    pub(crate) fn set_time(&mut self, clock: Clock, time: Time) {
        let (low, extra) = clock.places();
        let has_extra = 128 + self.extra_size() >= extra + 4;
        if clock == Clock::Created && !has_extra {
            return;
        }
        let time = time.within(has_extra);
        let seconds = low32(time.seconds.cast_unsigned());
        put_u32(&mut self.raw, low, seconds);
        if has_extra {
            // The epoch's bits count 2^32 seconds above the signed 32-bit seconds.
            let epoch = (time.seconds - i64::from(seconds.cast_signed())) >> 32 & 3;
            let nanos = time.nanos.min(999_999_999) << 2;
            put_u32(&mut self.raw, extra, nanos | low32(epoch.cast_unsigned()));
        }
    }

    /// Returns the seed of checksums of this inode's blocks.
    pub(crate) fn seed(&self, geometry: &Geometry) -> u32 {
        let sum = crc32c(geometry.checksum_seed, &self.number.to_le_bytes());
        crc32c(sum, &self.generation().to_le_bytes())
    }

    /// Returns whether the checksum's high half has a place (`EXT4_FITS_IN_INODE(i_checksum_hi)`).
    fn has_high_checksum(&self) -> bool {
        self.extra_size() >= 4
    }

    fn checksum(&self, geometry: &Geometry) -> u32 {
        let mut sum = crc32c(self.seed(geometry), &self.raw[..CHECKSUM_LOW]);
        sum = crc32c(sum, &[0, 0]);
        if !self.has_high_checksum() {
            return crc32c(sum, &self.raw[CHECKSUM_LOW + 2..]) & 0xffff;
        }
        sum = crc32c(sum, &self.raw[CHECKSUM_LOW + 2..CHECKSUM_HIGH]);
        sum = crc32c(sum, &[0, 0]);
        crc32c(sum, &self.raw[CHECKSUM_HIGH + 2..])
    }

    fn stored_checksum(&self) -> u32 {
        let high = if self.has_high_checksum() {
            u16_at(&self.raw, CHECKSUM_HIGH)
        } else {
            0
        };
        u32::from(u16_at(&self.raw, CHECKSUM_LOW)) | u32::from(high) << 16
    }

    fn seal(&mut self, geometry: &Geometry) {
        if geometry.metadata_csum {
            let sum = self.checksum(geometry);
            put_u16(&mut self.raw, CHECKSUM_LOW, low16(sum));
            if self.has_high_checksum() {
                put_u16(&mut self.raw, CHECKSUM_HIGH, low16(sum >> 16));
            }
        }
    }

    /// Returns what `stat` shows.
    pub(crate) fn stat(&self, geometry: &Geometry) -> Stat {
        let (uid, gid) = self.owner();
        let device = matches!(self.kind(), CHARACTER | BLOCK_DEVICE);
        let word = |at| if device { u32_at(self.block(), at) } else { 0 };
        Stat {
            inode: self.number,
            mode: self.mode(),
            links: self.links().into(),
            uid,
            gid,
            size: self.size(),
            blocks: self.sectors(geometry),
            accessed: self.time(Clock::Accessed),
            modified: self.time(Clock::Modified),
            changed: self.time(Clock::Changed),
            device: [word(0), word(4)],
        }
    }

    /// Makes an inode for a number that is free.
    pub(crate) fn fresh(geometry: &Geometry, number: u32, generation: u32) -> Self {
        let mut raw = vec![0; geometry.inode_size];
        put_u32(&mut raw, 0x64, generation);
        if raw.len() > 128 {
            put_u16(&mut raw, EXTRA_SIZE, geometry.extra_isize);
        }
        Self { number, raw }
    }
}

impl Op<'_> {
    /// Returns an inode's block and offset there.
    fn inode_place(&self, number: u32) -> Step<(u64, usize)> {
        let g = self.geometry;
        if number == 0 || number > g.inodes {
            return corrupt("inode number", number.into());
        }
        let group = self.group((number - 1) / g.inodes_per_group)?;
        let at = u64::from((number - 1) % g.inodes_per_group) * g.inode_size as u64;
        let size = g.block_size as u64;
        Ok((
            group.inode_table().saturating_add(at / size),
            index(at % size),
        ))
    }

    /// Reads an inode.
    pub(crate) fn inode(&self, number: u32) -> Step<Inode> {
        let (block, at) = self.inode_place(number)?;
        let raw = self.block(block)?[at..at + self.geometry.inode_size].to_vec();
        let inode = Inode { number, raw };
        let extra = inode.extra_size();
        let good = extra.is_multiple_of(4) && 128 + extra <= self.geometry.inode_size.max(128);
        if !good {
            return corrupt("i_extra_isize", number.into());
        }
        if self.geometry.metadata_csum && inode.checksum(self.geometry) != inode.stored_checksum() {
            return corrupt("i_checksum", number.into());
        }
        Ok(inode)
    }

    /// Reads an inode that has a name or is held: one that is free is corrupt metadata.
    pub(crate) fn used_inode(&self, number: u32) -> Step<Inode> {
        let inode = self.inode(number)?;
        let reserved = number < self.geometry.first_inode && number != ROOT;
        let known = matches!(
            inode.kind(),
            FIFO | CHARACTER | DIRECTORY | BLOCK_DEVICE | REGULAR | SYMLINK | SOCKET
        );
        if reserved || !known {
            return corrupt("inode of a name", number.into());
        }
        Ok(inode)
    }

    /// Writes an inode.
    pub(crate) fn put_inode(&mut self, inode: &Inode) -> Step<()> {
        let (block, at) = self.inode_place(inode.number)?;
        let mut sealed = inode.clone();
        sealed.seal(self.geometry);
        self.block_mut(block)?[at..at + sealed.raw.len()].copy_from_slice(&sealed.raw);
        Ok(())
    }
}
