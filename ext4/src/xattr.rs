//! Extended attributes: in what an inode has left behind its fields, and in a block of its own.
//!
//! Layout after Linux `fs/ext4/xattr.h`: entries grow from the front of an area and end with four
//! zero bytes; values grow from its end. Entries of a block are sorted and have hashes; several
//! inodes may share a block that Linux wrote, and a change copies it.

use alloc::vec::Vec;

use crate::bytes::{low32, put_u16, put_u32, u16_at, u32_at};
use crate::crc::crc32c;
use crate::error::{Step, corrupt};
use crate::inode::{Clock, Inode};
use crate::op::Op;
use crate::{Disk, Errno, Error, Ext4, Time};

const MAGIC: u32 = 0xea02_0000;
/// `struct ext4_xattr_header`: magic, users, blocks, hash, checksum.
const BLOCK_HEADER: usize = 32;
/// `struct ext4_xattr_ibody_header`: the magic.
const INODE_HEADER: usize = 4;
/// `struct ext4_xattr_entry` without its name.
const ENTRY: usize = 16;
/// The longest name without its prefix.
const NAME_MAX: usize = 255;

/// The part of a name that is stored as a number (`e_name_index`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Namespace(pub u8);

impl Namespace {
    /// `user.`
    pub const USER: Self = Self(1);
    /// `trusted.`
    pub const TRUSTED: Self = Self(4);
    /// `security.`
    pub const SECURITY: Self = Self(6);
}

/// Whether an attribute must exist when it is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetMode {
    /// It is made or replaced.
    Either,
    /// EEXIST if it is there (`XATTR_CREATE`).
    Create,
    /// ENODATA if it is not (`XATTR_REPLACE`).
    Replace,
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xattr {
    /// The part of the name that stands in front.
    pub namespace: Namespace,
    /// The rest of the name: 1 to 255 bytes.
    pub name: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

impl Xattr {
    fn is(&self, namespace: Namespace, name: &[u8]) -> bool {
        self.namespace == namespace && self.name == name
    }

    fn size(&self) -> usize {
        ENTRY + padded(self.name.len()) + padded(self.value.len())
    }

    /// Returns `e_hash` (`ext4_xattr_hash_entry`).
    fn hash(&self) -> u32 {
        let fold = |hash: u32, byte: &u8| hash.rotate_left(5) ^ u32::from(*byte);
        let hash = self.name.iter().fold(0, fold);
        self.value.chunks(4).fold(hash, |hash, word| {
            let mut bytes = [0; 4];
            bytes[..word.len()].copy_from_slice(word);
            hash.rotate_left(16) ^ u32::from_le_bytes(bytes)
        })
    }
}

/// Returns the bytes that attributes take in an area, with the zeroes behind the last entry.
fn size_of(list: &[Xattr]) -> usize {
    list.iter().map(Xattr::size).sum::<usize>() + 4
}

/// Reads the entries from `first` on; offsets of values count from `base`.
fn parse(area: &[u8], first: usize, base: usize, at: u64) -> Step<Vec<Xattr>> {
    const WHAT: &str = "extended attributes";
    let (mut list, mut next) = (Vec::new(), first);
    loop {
        match area.get(next..next + 4) {
            None => return corrupt(WHAT, at),
            // Values that share bytes would not fit when they are written again.
            Some([0, 0, 0, 0]) if first + size_of(&list) > area.len() => return corrupt(WHAT, at),
            Some([0, 0, 0, 0]) => return Ok(list),
            Some(_) => {}
        }
        let Some(entry) = area.get(next..next + ENTRY) else {
            return corrupt(WHAT, at);
        };
        let name_len = usize::from(entry[0]);
        let name = area.get(next + ENTRY..next + ENTRY + name_len);
        let from = base + usize::from(u16_at(entry, 2));
        let len = usize::try_from(u32_at(entry, 8)).unwrap_or(usize::MAX);
        let value = area.get(from..).and_then(|rest| rest.get(..len));
        // A value in an inode of its own is a feature that is not known here.
        let (Some(name), Some(value), 0) = (name, value, u32_at(entry, 4)) else {
            return corrupt(WHAT, at);
        };
        list.push(Xattr {
            namespace: Namespace(entry[1]),
            name: name.to_vec(),
            value: value.to_vec(),
        });
        next += ENTRY + padded(name_len);
    }
}

/// Writes entries from `first` on and their values before the end; offsets count from `base`. The
/// caller has looked that they fit.
fn store(list: &[Xattr], area: &mut [u8], first: usize, base: usize, hashed: bool) {
    area[first..].fill(0);
    let (mut next, mut end) = (first, area.len());
    for attribute in list {
        let (name, value) = (&attribute.name, &attribute.value);
        end -= padded(value.len());
        area[next] = u8::try_from(name.len()).unwrap_or(u8::MAX);
        area[next + 1] = attribute.namespace.0;
        let offset = if value.is_empty() { 0 } else { end - base };
        put_u16(area, next + 2, u16::try_from(offset).unwrap_or(u16::MAX));
        put_u32(area, next + 8, low32(value.len() as u64));
        if hashed {
            put_u32(area, next + 12, attribute.hash());
        }
        area[next + ENTRY..next + ENTRY + name.len()].copy_from_slice(name);
        area[end..end + value.len()].copy_from_slice(value);
        next += ENTRY + padded(name.len());
    }
}

impl Op<'_> {
    fn inside(&self, inode: &Inode) -> Step<Vec<Xattr>> {
        let area = inode.spare();
        if area.len() < INODE_HEADER + 4 || u32_at(area, 0) != MAGIC {
            return Ok(Vec::new());
        }
        parse(area, INODE_HEADER, INODE_HEADER, inode.number.into())
    }

    fn xattr_seal(&self, block: u64, bytes: &[u8]) -> u32 {
        let sum = crc32c(self.geometry.checksum_seed, &block.to_le_bytes());
        let sum = crc32c(sum, &bytes[..0x10]);
        crc32c(crc32c(sum, &[0; 4]), &bytes[0x14..])
    }

    fn outside(&self, inode: &Inode) -> Step<Vec<Xattr>> {
        let block = inode.attributes();
        if block == 0 {
            return Ok(Vec::new());
        }
        self.check_owned(block, 1)?;
        let sealed = self.geometry.metadata_csum;
        let good = |bytes: &[u8]| !sealed || self.xattr_seal(block, bytes) == u32_at(bytes, 0x10);
        let bytes = self.checked(block, "h_checksum of extended attributes", good)?;
        if u32_at(bytes, 0) != MAGIC || u32_at(bytes, 4) == 0 || u32_at(bytes, 8) != 1 {
            return corrupt("extended attributes", block);
        }
        parse(bytes, BLOCK_HEADER, 0, block)
    }

    /// Returns an inode's extended attributes.
    fn xattrs(&self, inode: &Inode) -> Step<Vec<Xattr>> {
        let mut all = self.inside(inode)?;
        all.extend(self.outside(inode)?);
        Ok(all)
    }

    /// Writes the attributes of an inode's block; no block is kept for none.
    fn put_outside(&mut self, inode: &mut Inode, mut list: Vec<Xattr>) -> Step<()> {
        let mut block = inode.attributes();
        if block != 0 && (list.is_empty() || u32_at(self.block(block)?, 4) > 1) {
            self.drop_attributes(inode)?;
            block = 0;
        }
        if list.is_empty() {
            return Ok(());
        }
        if block == 0 {
            block = self.allocate_one(self.inode_goal(inode.number))?;
            inode.set_attributes(block);
            inode.count_blocks(self.geometry, 1)?;
        }
        // As Linux looks for them.
        list.sort_by(|a, b| {
            let key = |x: &Xattr| (x.namespace, x.name.len());
            key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
        });
        let mut bytes = self.zeroes();
        store(&list, &mut bytes, BLOCK_HEADER, 0, true);
        let hashes: Vec<u32> = list.iter().map(Xattr::hash).collect();
        let hash = if hashes.contains(&0) {
            0
        } else {
            hashes
                .iter()
                .fold(0_u32, |all, hash| all.rotate_left(16) ^ hash)
        };
        for (at, word) in [(0, MAGIC), (4, 1), (8, 1), (12, hash)] {
            put_u32(&mut bytes, at, word);
        }
        if self.geometry.metadata_csum {
            let sum = self.xattr_seal(block, &bytes);
            put_u32(&mut bytes, 0x10, sum);
        }
        self.put(block, bytes);
        Ok(())
    }

    /// Sets an attribute, or takes it off an inode.
    fn change_xattr(
        &mut self,
        number: u32,
        (namespace, name): (Namespace, &[u8]),
        value: Option<&[u8]>,
        mode: SetMode,
    ) -> Step<()> {
        let mut inode = self.used_inode(number)?;
        if inode.is_restricted() {
            return Err(Errno::EPERM.into());
        }
        if !(1..=NAME_MAX).contains(&name.len()) {
            return Err(Errno::ERANGE.into());
        }
        let (mut inside, mut outside) = (self.inside(&inode)?, self.outside(&inode)?);
        let counts = (inside.len(), outside.len());
        inside.retain(|xattr| !xattr.is(namespace, name));
        outside.retain(|xattr| !xattr.is(namespace, name));
        let found = (inside.len(), outside.len()) != counts;
        match (mode, found) {
            (SetMode::Create, true) => return Err(Errno::EEXIST.into()),
            (SetMode::Replace, false) => return Err(Errno::ENODATA.into()),
            _ => {}
        }
        let mut moved = outside.len() != counts.1;
        if let Some(value) = value {
            let xattr = Xattr {
                namespace,
                name: name.to_vec(),
                value: value.to_vec(),
            };
            if INODE_HEADER + size_of(&inside) + xattr.size() <= inode.spare().len() {
                inside.push(xattr);
            } else {
                outside.push(xattr);
                moved = true;
            }
        }
        if BLOCK_HEADER + size_of(&outside) > self.geometry.block_size {
            return Err(Errno::ENOSPC.into());
        }
        if moved {
            self.put_outside(&mut inode, outside)?;
        }
        let area = inode.spare_mut();
        if area.len() >= INODE_HEADER + 4 && (!inside.is_empty() || counts.0 > 0) {
            put_u32(area, 0, MAGIC);
            store(&inside, area, INODE_HEADER, INODE_HEADER, false);
        }
        inode.set_time(Clock::Changed, self.now);
        self.put_inode(&inode)
    }
}

impl<D: Disk> Ext4<D> {
    /// Returns a file's extended attributes.
    ///
    /// # Errors
    ///
    /// The disk's or the file system's failure.
    pub async fn xattrs(&self, inode: u32) -> Result<Vec<Xattr>, Error> {
        self.run(Time::default(), |op| op.xattrs(&op.used_inode(inode)?))
            .await
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    ///
    /// EEXIST or ENODATA by `mode`; ENOSPC if it fits neither the inode nor a block with the
    /// others; ERANGE for a name of no or of more than 255 bytes; EPERM for an immutable file,
    /// EROFS.
    pub async fn set_xattr(
        &self,
        inode: u32,
        name: (Namespace, &[u8]),
        value: &[u8],
        mode: SetMode,
        now: Time,
    ) -> Result<(), Error> {
        self.run(now, |op| op.change_xattr(inode, name, Some(value), mode))
            .await
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    ///
    /// ENODATA if the file has none of that name; else as [`Self::set_xattr`].
    pub async fn remove_xattr(
        &self,
        inode: u32,
        name: (Namespace, &[u8]),
        now: Time,
    ) -> Result<(), Error> {
        self.run(now, |op| {
            op.change_xattr(inode, name, None, SetMode::Replace)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two attributes with values of 40 bytes, which lie so far from each other.
    fn area(len: usize, apart: u16) -> Vec<u8> {
        let mut area = alloc::vec![0; len];
        for (n, entry) in (0..2_u16).zip(area[4..44].chunks_mut(20)) {
            entry[..2].copy_from_slice(&[1, 1]);
            put_u16(entry, 2, 44 + n * apart);
            put_u32(entry, 8, 40);
            entry[ENTRY] = b"ab"[usize::from(n)];
        }
        area
    }

    #[test]
    fn values_that_share_bytes_and_would_not_fit_apart_are_refused() {
        let read = |area: &[u8]| parse(area, 4, 0, 7).map(|list| list.len()).ok();
        assert_eq!(read(&area(128, 40)), Some(2));
        assert_eq!(read(&area(100, 0)), None);
    }
}
