//! The superblock: features, geometry, and the fields that change.
//!
//! Layout after Linux `Documentation/filesystems/ext4/super.rst` and `struct ext4_super_block`.

use crate::bytes::{high32, index, low32, put_u16, put_u32, u16_at, u32_at};
use crate::crc::crc32c;
use crate::{Errno, Error};

/// Byte offset of the superblock on the disk, and its size.
pub(crate) const OFFSET: u64 = 1024;
pub(crate) const SIZE: usize = 1024;

/// `s_magic`.
const MAGIC: u16 = 0xef53;

/// `EXT4_FEATURE_COMPAT_*`.
const COMPAT_HAS_JOURNAL: u32 = 0x4;
const COMPAT_FAST_COMMIT: u32 = 0x400;
const COMPAT_DIR_INDEX: u32 = 0x20;

/// `EXT4_FEATURE_INCOMPAT_*`.
const INCOMPAT_FILETYPE: u32 = 0x2;
pub(crate) const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_EXTENTS: u32 = 0x40;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_FLEX_BG: u32 = 0x200;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
const INCOMPAT_KNOWN: u32 = INCOMPAT_FILETYPE
    | INCOMPAT_RECOVER
    | INCOMPAT_EXTENTS
    | INCOMPAT_64BIT
    | INCOMPAT_FLEX_BG
    | INCOMPAT_CSUM_SEED;
const INCOMPAT_NEEDED: u32 = INCOMPAT_FILETYPE | INCOMPAT_EXTENTS;

/// `EXT4_FEATURE_RO_COMPAT_*`: sparse_super, large_file, huge_file, uninit_bg, dir_nlink,
/// extra_isize, metadata_csum.
const RO_SPARSE_SUPER: u32 = 0x1;
const RO_HUGE_FILE: u32 = 0x8;
const RO_GDT_CSUM: u32 = 0x10;
const RO_DIR_NLINK: u32 = 0x20;
const RO_METADATA_CSUM: u32 = 0x400;
const RO_KNOWN: u32 =
    RO_SPARSE_SUPER | 0x2 | RO_HUGE_FILE | RO_GDT_CSUM | RO_DIR_NLINK | 0x40 | RO_METADATA_CSUM;

/// Offsets of fields that are written.
pub(crate) const FREE_INODES: usize = 0x10;
pub(crate) const FEATURE_INCOMPAT: usize = 0x60;
pub(crate) const LAST_ORPHAN: usize = 0xe8;

/// Facts of the superblock that do not change while the file system is mounted.
#[derive(Debug, Clone)]
pub(crate) struct Geometry {
    pub(crate) block_size: usize,
    pub(crate) blocks: u64,
    pub(crate) first_data_block: u64,
    pub(crate) inodes: u32,
    pub(crate) first_inode: u32,
    pub(crate) blocks_per_group: u32,
    pub(crate) inodes_per_group: u32,
    pub(crate) inode_size: usize,
    pub(crate) extra_isize: u16,
    pub(crate) descriptor_size: usize,
    pub(crate) reserved_descriptors: u32,
    pub(crate) reserved_blocks: u64,
    pub(crate) groups: u32,
    pub(crate) journal_inode: u32,
    pub(crate) uuid: [u8; 16],
    pub(crate) checksum_seed: u32,
    pub(crate) hash_seed: [u32; 4],
    pub(crate) hash_version: u8,
    pub(crate) unsigned_hash: bool,
    pub(crate) has_journal: bool,
    pub(crate) metadata_csum: bool,
    pub(crate) gdt_csum: bool,
    pub(crate) wide: bool,
    pub(crate) sparse_super: bool,
    pub(crate) huge_file: bool,
    pub(crate) dir_index: bool,
    pub(crate) dir_nlink: bool,
}

fn check(what: &'static str, at: u64, good: bool) -> Result<(), Error> {
    if good {
        Ok(())
    } else {
        Err(Error::Corrupt { what, at })
    }
}

fn check_features(sb: &[u8]) -> Result<(), Error> {
    let incompat = u32_at(sb, FEATURE_INCOMPAT);
    let unknown = incompat & !INCOMPAT_KNOWN | !incompat & INCOMPAT_NEEDED;
    let compat_unknown = u32_at(sb, 0x5c) & COMPAT_FAST_COMMIT;
    for (set, bits) in [
        ("s_feature_incompat", unknown),
        ("s_feature_compat", compat_unknown),
        ("s_feature_ro_compat", u32_at(sb, 0x64) & !RO_KNOWN),
    ] {
        if bits != 0 {
            return Err(Error::Features { set, bits });
        }
    }
    Ok(())
}

impl Geometry {
    /// Checks a superblock and takes its facts.
    pub(crate) fn parse(sb: &[u8]) -> Result<Self, Error> {
        let magic = u16_at(sb, 0x38);
        if magic != MAGIC {
            return Err(Error::NotExt4(magic));
        }
        check_features(sb)?;
        let (incompat, ro) = (u32_at(sb, FEATURE_INCOMPAT), u32_at(sb, 0x64));
        let metadata_csum = ro & RO_METADATA_CSUM != 0;
        let sum = crc32c(!0, &sb[..0x3fc]);
        check(
            "s_checksum",
            sum.into(),
            !metadata_csum || sum == u32_at(sb, 0x3fc),
        )?;
        let wide = incompat & INCOMPAT_64BIT != 0;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&sb[0x68..0x78]);
        let log_size = u32_at(sb, 0x18);
        check("s_log_block_size", log_size.into(), log_size <= 5)?;
        let seed_stored = incompat & INCOMPAT_CSUM_SEED != 0;
        let geometry = Self {
            block_size: 1024 << log_size,
            blocks: u64::from(u32_at(sb, 4))
                | if wide {
                    u64::from(u32_at(sb, 0x150)) << 32
                } else {
                    0
                },
            first_data_block: u32_at(sb, 0x14).into(),
            inodes: u32_at(sb, 0),
            first_inode: u32_at(sb, 0x54),
            blocks_per_group: u32_at(sb, 0x20),
            inodes_per_group: u32_at(sb, 0x28),
            inode_size: u16_at(sb, 0x58).into(),
            extra_isize: u16_at(sb, 0x15e),
            descriptor_size: if wide { u16_at(sb, 0xfe).into() } else { 32 },
            reserved_descriptors: u16_at(sb, 0xce).into(),
            reserved_blocks: u64::from(u32_at(sb, 8))
                | if wide {
                    u64::from(u32_at(sb, 0x154)) << 32
                } else {
                    0
                },
            groups: 0,
            journal_inode: u32_at(sb, 0xe0),
            checksum_seed: if seed_stored {
                u32_at(sb, 0x270)
            } else {
                crc32c(!0, &uuid)
            },
            uuid,
            hash_seed: core::array::from_fn(|at| u32_at(sb, 0xec + 4 * at)),
            hash_version: sb[0xfc],
            unsigned_hash: u32_at(sb, 0x160) & 2 != 0,
            has_journal: u32_at(sb, 0x5c) & COMPAT_HAS_JOURNAL != 0,
            metadata_csum,
            gdt_csum: ro & RO_GDT_CSUM != 0 && !metadata_csum,
            wide,
            sparse_super: ro & RO_SPARSE_SUPER != 0,
            huge_file: ro & RO_HUGE_FILE != 0,
            dir_index: u32_at(sb, 0x5c) & COMPAT_DIR_INDEX != 0,
            dir_nlink: ro & RO_DIR_NLINK != 0,
        };
        check(
            "s_rev_level",
            u32_at(sb, 0x4c).into(),
            u32_at(sb, 0x4c) == 1,
        )?;
        geometry.checked(u32_at(sb, 0x1c), log_size)
    }

    fn checked(mut self, log_cluster: u32, log_size: u32) -> Result<Self, Error> {
        let bits = 8 * self.block_size as u64;
        let size = self.inode_size;
        let size_ok = size.is_power_of_two() && (128..=self.block_size).contains(&size);
        check("s_inode_size", size as u64, size_ok)?;
        let size = self.descriptor_size;
        let least = if self.wide { 64 } else { 32 };
        let size_ok = size.is_power_of_two() && (least..=self.block_size).contains(&size);
        check("s_desc_size", size as u64, size_ok)?;
        check(
            "s_log_cluster_size",
            log_cluster.into(),
            log_cluster == log_size,
        )?;
        let per = u64::from(self.blocks_per_group);
        check(
            "s_blocks_per_group",
            per,
            per >= 8 && per <= bits && per.is_multiple_of(8),
        )?;
        let inodes = u64::from(self.inodes_per_group);
        let per_block = (self.block_size / self.inode_size) as u64;
        let inodes_ok = inodes <= bits && inodes >= per_block && inodes.is_multiple_of(8);
        check("s_inodes_per_group", inodes, inodes_ok)?;
        let first = self.first_data_block;
        check(
            "s_first_data_block",
            first,
            first == u64::from(self.block_size == 1024),
        )?;
        check(
            "s_blocks_count",
            self.blocks,
            self.blocks > first && self.blocks >> 48 == 0,
        )?;
        let groups = (self.blocks - first).div_ceil(per);
        let groups_ok = groups.checked_mul(inodes) == Some(self.inodes.into());
        check("s_inodes_count", self.inodes.into(), groups_ok)?;
        self.groups = u32::try_from(groups).unwrap_or(u32::MAX);
        check(
            "s_first_ino",
            self.first_inode.into(),
            self.first_inode > 10 && self.first_inode < self.inodes,
        )?;
        let extra = usize::from(self.extra_isize);
        check(
            "s_want_extra_isize",
            extra as u64,
            size_of_extra_ok(extra, self.inode_size),
        )?;
        Ok(self)
    }

    /// Returns the first block of a group.
    pub(crate) fn group_start(&self, group: u32) -> u64 {
        self.first_data_block + u64::from(group) * u64::from(self.blocks_per_group)
    }

    /// Returns how many blocks a group has; the last may be short.
    pub(crate) fn group_len(&self, group: u32) -> u32 {
        let left = self.blocks.saturating_sub(self.group_start(group));
        u32::try_from(left)
            .unwrap_or(u32::MAX)
            .min(self.blocks_per_group)
    }

    /// Returns the group and the bit in its bitmap of a block.
    pub(crate) fn locate(&self, block: u64) -> (u32, u32) {
        let relative = block.saturating_sub(self.first_data_block);
        let per = u64::from(self.blocks_per_group);
        (low32(relative / per), low32(relative % per))
    }

    /// Returns the block of the superblock and its offset there.
    pub(crate) fn superblock_place(&self) -> (u64, usize) {
        (
            OFFSET / self.block_size as u64,
            index(OFFSET % self.block_size as u64),
        )
    }

    /// Returns the number of blocks of group descriptors.
    pub(crate) fn descriptor_blocks(&self) -> u64 {
        (u64::from(self.groups) * self.descriptor_size as u64).div_ceil(self.block_size as u64)
    }

    /// Returns the number of blocks of a group's inode table.
    pub(crate) fn table_blocks(&self) -> u64 {
        (u64::from(self.inodes_per_group) * self.inode_size as u64).div_ceil(self.block_size as u64)
    }

    /// Returns whether a group holds a copy of the superblock: with `sparse_super`, groups 0, 1 and
    /// powers of 3, 5, 7.
    pub(crate) fn has_superblock(&self, group: u32) -> bool {
        let power_of = |base: u32| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        !self.sparse_super || group <= 1 || power_of(3) || power_of(5) || power_of(7)
    }
}

fn size_of_extra_ok(extra: usize, inode_size: usize) -> bool {
    inode_size == 128 || extra <= inode_size - 128 && extra.is_multiple_of(4)
}

/// Reads the number of free blocks (without the reserve's deduction).
pub(crate) fn free_blocks(sb: &[u8], wide: bool) -> u64 {
    u64::from(u32_at(sb, 0xc))
        | if wide {
            u64::from(u32_at(sb, 0x158)) << 32
        } else {
            0
        }
}

/// Sets the number of free blocks.
pub(crate) fn set_free_blocks(sb: &mut [u8], wide: bool, value: u64) {
    put_u32(sb, 0xc, low32(value));
    if wide {
        put_u32(sb, 0x158, high32(value));
    }
}

/// Renews the superblock's checksum.
pub(crate) fn seal(sb: &mut [u8], metadata_csum: bool) {
    if metadata_csum {
        let sum = crc32c(!0, &sb[..0x3fc]);
        put_u32(sb, 0x3fc, sum);
    }
}

/// Adds to or takes from the count of times mounted (`s_mnt_count`), and stores the time of
/// mounting (`s_mtime`).
pub(crate) fn note_mount(sb: &mut [u8], seconds: u32) {
    put_u32(sb, 0x2c, seconds);
    let count = u16_at(sb, 0x34).saturating_add(1);
    put_u16(sb, 0x34, count);
}

/// Refuses writing where there is no journal.
pub(crate) fn writable(geometry: &Geometry) -> Result<(), Error> {
    if geometry.has_journal {
        Ok(())
    } else {
        Err(Errno::EROFS.into())
    }
}
