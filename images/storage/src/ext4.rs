//! A read-only ext4: superblock, group descriptors, and the way from a path to an inode.
//!
//! Layouts after Linux `fs/ext4/ext4.h` and `Documentation/filesystems/ext4`; all numbers are little-endian. Nothing
//! that stands on the disk is believed: each number is checked where it becomes an index, a length or a bound of a
//! loop.

mod dir;
mod inode;

use alloc::vec::Vec;

use messages::Errno;
use messages::storage::{NAME_MAX, PATH_MAX};

use crate::disk::{BlockDevice, Cache};
use crate::{DiskError, Error};

pub use dir::DirEntry;
pub use inode::Inode;

/// The inode of the root folder.
const ROOT: u32 = 2;

/// Symbolic links on the way of one path (Linux `MAXSYMLINKS`).
const MAX_SYMLINKS: usize = 40;

/// `s_magic`.
const MAGIC: u16 = 0xef53;

/// `s_feature_incompat`: entries with types, extents, 64-bit numbers, flexible groups, a checksum seed, large folders.
const KNOWN_FEATURES: u32 = 0x2 | 0x40 | 0x80 | 0x200 | 0x2000 | 0x4000;

/// Entries with types: needed.
const FILETYPE: u32 = 0x2;

/// 64-bit block numbers: descriptors have their own size.
const WIDE: u32 = 0x80;

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// What of the superblock is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Geometry {
    block_size: u32,
    blocks: u64,
    inodes: u32,
    inodes_per_group: u32,
    inode_size: u16,
    descriptor_size: u16,
    first_descriptor_block: u64,
}

impl Geometry {
    fn parse(sb: &[u8; 1024]) -> Result<Self, Error> {
        let magic = u16_at(sb, 0x38);
        if magic != MAGIC {
            return Err(Error::NotExt4(magic));
        }
        let features = u32_at(sb, 0x60);
        let unknown = features & !KNOWN_FEATURES | !features & FILETYPE;
        if unknown != 0 {
            return Err(Error::Features(unknown));
        }
        let wide = features & WIDE != 0;
        let log_block_size = u32_at(sb, 0x18);
        check("s_log_block_size", log_block_size.into(), log_block_size <= 5)?;
        let old = u32_at(sb, 0x4c) == 0;
        let inode_size = if old { 128 } else { u16_at(sb, 0x58) };
        let block_size = 1024 << log_block_size;
        let size_ok = inode_size.is_power_of_two() && (128..=1024).contains(&inode_size);
        check("s_inode_size", inode_size.into(), size_ok)?;
        let descriptor_size = if wide { u16_at(sb, 0xfe) } else { 32 };
        let size_ok = descriptor_size.is_power_of_two() && (32..=1024).contains(&descriptor_size);
        check("s_desc_size", descriptor_size.into(), size_ok)?;
        let inodes_per_group = u32_at(sb, 0x28);
        check(
            "s_inodes_per_group",
            inodes_per_group.into(),
            inodes_per_group > 0,
        )?;
        let high = if wide { u64::from(u32_at(sb, 0x150)) } else { 0 };
        Ok(Self {
            block_size,
            blocks: u64::from(u32_at(sb, 0x4)) | high << 32,
            inodes: u32_at(sb, 0),
            inodes_per_group,
            inode_size,
            descriptor_size,
            first_descriptor_block: u64::from(u32_at(sb, 0x14)) + 1,
        })
    }
}

fn check(field: &'static str, value: u64, good: bool) -> Result<(), Error> {
    if good {
        Ok(())
    } else {
        Err(Error::BadSuperblock { field, value })
    }
}

/// A mounted file system.
pub struct Ext4<B> {
    disk: B,
    geometry: Geometry,
    cache: Cache,
}

impl<B: BlockDevice> Ext4<B> {
    /// Reads the superblock of `disk`.
    ///
    /// # Errors
    ///
    /// [`Error::NotExt4`], [`Error::Features`] (a journal that must be replayed is one), [`Error::BadSuperblock`], or
    /// [`Error::Disk`].
    pub async fn mount(disk: B) -> Result<Self, Error> {
        let mut superblock = [0; 1024];
        disk.read(1024, &mut superblock).await?;
        let geometry = Geometry::parse(&superblock)?;
        let cache = Cache::new(geometry.block_size as usize);
        Ok(Self {
            disk,
            geometry,
            cache,
        })
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.geometry.block_size
    }

    /// Reads metadata that does not cross a block's end.
    async fn metadata(&self, block: u64, offset: usize, into: &mut [u8]) -> Result<(), Error> {
        if block >= self.geometry.blocks || offset + into.len() > self.geometry.block_size as usize {
            return Err(DiskError {
                offset: block,
                len: into.len(),
            }
            .into());
        }
        Ok(self.cache.read(&self.disk, block, offset, into).await?)
    }

    /// Reads an inode.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] for a number that no inode has, [`Error::Disk`].
    pub async fn inode(&self, number: u32) -> Result<Inode, Error> {
        let g = &self.geometry;
        if number == 0 || number > g.inodes {
            return Err(Error::Corrupt {
                inode: number,
                field: "number",
                value: number.into(),
            });
        }
        let (group, index) = (
            (number - 1) / g.inodes_per_group,
            (number - 1) % g.inodes_per_group,
        );
        let block_size = u64::from(g.block_size);
        let at = u64::from(group) * u64::from(g.descriptor_size);
        let mut descriptor = [0; 64];
        let len = usize::from(g.descriptor_size.min(64));
        let offset = usize::try_from(at % block_size).expect("less than a block");
        self.metadata(
            g.first_descriptor_block + at / block_size,
            offset,
            &mut descriptor[..len],
        )
        .await?;
        let table = u64::from(u32_at(&descriptor, 8)) | u64::from(u32_at(&descriptor, 0x28)) << 32;
        let at = u64::from(index) * u64::from(g.inode_size);
        let offset = usize::try_from(at % block_size).expect("less than a block");
        let mut bytes = [0; 160];
        let len = usize::from(g.inode_size.min(160));
        let block = table.saturating_add(at / block_size);
        self.metadata(block, offset, &mut bytes[..len]).await?;
        Ok(Inode::parse(number, &bytes))
    }

    /// Finds the inode that an absolute path names, component by component; a symbolic link at the end is followed if
    /// `follow`.
    ///
    /// # Errors
    ///
    /// ENOENT, ENOTDIR, ELOOP (more than 40 links), ENAMETOOLONG; else the disk's or the file system's failure.
    pub async fn resolve(&self, path: &[u8], follow: bool) -> Result<Inode, Error> {
        if !path.starts_with(b"/") {
            return Err(Errno::ENOENT.into());
        }
        let mut left = path.to_vec();
        let mut parents: Vec<Inode> = Vec::new();
        let mut here = self.inode(ROOT).await?;
        let mut links = 0;
        while let Some((name, rest)) = split_component(&left) {
            if !here.is_dir() {
                return Err(Errno::ENOTDIR.into());
            }
            if name.len() > NAME_MAX {
                return Err(Errno::ENAMETOOLONG.into());
            }
            if name == b"." {
                left = rest.to_vec();
                continue;
            }
            if name == b".." {
                here = parents.pop().unwrap_or(here);
                left = rest.to_vec();
                continue;
            }
            let found = self.lookup(&here, name).await?.ok_or(Errno::ENOENT)?;
            let next = self.inode(found).await?;
            // A slash at the end asks for the folder behind the link.
            if next.is_symlink() && (follow || !rest.is_empty()) {
                links += 1;
                if links > MAX_SYMLINKS {
                    return Err(Errno::ELOOP.into());
                }
                let target = self.link_target(&next).await?;
                if target.starts_with(b"/") {
                    parents.clear();
                    here = self.inode(ROOT).await?;
                }
                left = splice(target, rest)?;
                continue;
            }
            left = rest.to_vec();
            parents.push(core::mem::replace(&mut here, next));
        }
        if path.ends_with(b"/") && !here.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        Ok(here)
    }

    /// Where a symbolic link points.
    ///
    /// # Errors
    ///
    /// EINVAL if it is none; [`Error::Corrupt`] for a target that is empty or too long.
    pub async fn link_target(&self, link: &Inode) -> Result<Vec<u8>, Error> {
        if !link.is_symlink() {
            return Err(Errno::EINVAL.into());
        }
        if let Some(target) = link.fast_target() {
            return Ok(target.to_vec());
        }
        let len = usize::try_from(link.stat.size)
            .ok()
            .filter(|len| (1..=PATH_MAX).contains(len));
        let bad = Error::Corrupt {
            inode: link.number,
            field: "i_size of a link",
            value: link.stat.size,
        };
        let mut target = alloc::vec![0; len.ok_or(bad)?];
        self.read(link, 0, &mut target).await?;
        Ok(target)
    }
}

/// The first component and what is behind it (which keeps its slashes); nothing at the end.
fn split_component(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = path.iter().position(|&byte| byte != b'/')?;
    let path = &path[start..];
    let end = path.iter().position(|&byte| byte == b'/').unwrap_or(path.len());
    Some((&path[..end], &path[end..]))
}

/// A link's target with the rest of the path behind it.
fn splice(mut target: Vec<u8>, rest: &[u8]) -> Result<Vec<u8>, Errno> {
    if target.len() + rest.len() > PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    target.extend_from_slice(rest);
    Ok(target)
}
