//! Directories: blocks of entries, searched one after the other or through an index.
//!
//! Layout after Linux `Documentation/filesystems/ext4/directory.rst`, `struct ext4_dir_entry_2` and
//! `ext4_dir_entry_tail`.

mod index;
mod index_edit;

use alloc::vec;
use alloc::vec::Vec;

use crate::Errno;
use crate::bytes::{low16, low32, put_u16, put_u32, u16_at, u32_at};
use crate::crc::crc32c;
use crate::error::{Step, corrupt};
use crate::extents::{Extent, Mapping};
use crate::inode::{
    BLOCK_DEVICE, CHARACTER, DIRECTORY, FIFO, INDEX_FLAG, Inode, REGULAR, SOCKET, SYMLINK,
    TYPE_MASK,
};
use crate::op::Op;
use crate::superblock::Geometry;

/// Longest name (`EXT4_NAME_LEN`).
pub const NAME_MAX: usize = 255;

/// Shortest record: eight bytes and a name of up to four.
const MIN_RECORD: usize = 12;

/// File type of the fake entry that holds a block's checksum (`EXT4_FT_DIR_CSUM`).
const TAIL_TYPE: u8 = 0xde;

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The inode's number.
    pub inode: u32,
    /// Position behind this entry, where reading goes on.
    pub next: u64,
    /// File type as stored (`EXT4_FT_*`: 1 regular, 2 directory, 3 character device, 4 block
    /// device, 5 FIFO, 6 socket, 7 symbolic link).
    pub kind: u8,
    /// The name.
    pub name: Vec<u8>,
}

/// The place of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// The block on the disk.
    block: u64,
    /// Offset in the block.
    at: usize,
    pub(crate) inode: u32,
}

/// Returns the file type of an entry for an inode's mode.
pub(crate) fn file_type(mode: u16) -> u8 {
    match mode & TYPE_MASK {
        REGULAR => 1,
        DIRECTORY => 2,
        CHARACTER => 3,
        BLOCK_DEVICE => 4,
        FIFO => 5,
        SOCKET => 6,
        SYMLINK => 7,
        _ => 0,
    }
}

/// Bytes that an entry with a name of this length needs (`EXT4_DIR_REC_LEN`).
fn record_len(name: usize) -> usize {
    (8 + name).next_multiple_of(4)
}

/// A record of a block.
#[derive(Debug, Clone, Copy)]
struct Record<'a> {
    at: usize,
    len: usize,
    inode: u32,
    kind: u8,
    name: &'a [u8],
}

impl Record<'_> {
    /// Bytes in use.
    fn used(&self) -> usize {
        if self.inode == 0 {
            0
        } else {
            record_len(self.name.len())
        }
    }
}

/// Takes the record at `at` apart.
fn record(block: &[u8], at: usize) -> Option<Record<'_>> {
    let rest = block.get(at..).filter(|rest| rest.len() >= MIN_RECORD)?;
    let (len, name_len) = (usize::from(u16_at(rest, 4)), usize::from(rest[6]));
    let named = name_len > 0 || u32_at(rest, 0) == 0;
    let sound = named
        && len >= MIN_RECORD
        && len.is_multiple_of(4)
        && len <= rest.len()
        && 8 + name_len <= len;
    sound.then(|| Record {
        at,
        len,
        inode: u32_at(rest, 0),
        kind: rest[7],
        name: &rest[8..8 + name_len],
    })
}

/// Returns the records of a block, of which the first `room` bytes hold entries.
fn records(block: &[u8], room: usize, number: u64) -> Step<Vec<Record<'_>>> {
    let block = &block[..room];
    let mut records = Vec::new();
    let mut at = 0;
    while at < room {
        let Some(record) = record(block, at) else {
            return corrupt("directory entry", number);
        };
        at += record.len;
        records.push(record);
    }
    Ok(records)
}

/// Writes an entry.
fn put_entry(block: &mut [u8], at: usize, len: usize, inode: u32, kind: u8, name: &[u8]) {
    put_u32(block, at, inode);
    put_u16(block, at + 4, u16::try_from(len).unwrap_or(u16::MAX));
    block[at + 6] = u8::try_from(name.len()).unwrap_or(u8::MAX);
    block[at + 7] = kind;
    block[at + 8..at + 8 + name.len()].copy_from_slice(name);
}

/// Checks a name that is looked for or made.
pub(crate) fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.len() > NAME_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// Bytes of a block that hold entries; behind them is the checksum.
fn room(geometry: &Geometry) -> usize {
    geometry.block_size
        - if geometry.metadata_csum {
            MIN_RECORD
        } else {
            0
        }
}

/// Puts the checksum at the end of a block of entries.
fn seal(geometry: &Geometry, seed: u32, block: &mut [u8]) {
    if geometry.metadata_csum {
        let tail = room(geometry);
        put_entry(block, tail, MIN_RECORD, 0, TAIL_TYPE, &[]);
        let sum = crc32c(seed, &block[..tail]);
        put_u32(block, tail + 8, sum);
    }
}

impl Op<'_> {
    /// Returns the number of blocks of a directory.
    fn dir_blocks(&self, dir: &Inode) -> Step<u32> {
        let size = self.geometry.block_size as u64;
        let blocks = u32::try_from(dir.size() / size).ok();
        match blocks.filter(|_| dir.size().is_multiple_of(size)) {
            Some(blocks) if blocks > 0 => Ok(blocks),
            _ => corrupt("i_size of a directory", dir.number.into()),
        }
    }

    /// Returns where a directory's block lies on the disk.
    fn dir_block(&self, dir: &Inode, logical: u32) -> Step<u64> {
        match self.map(dir, logical)? {
            Mapping::Extent(extent) if !extent.unwritten => Ok(extent.physical),
            _ => corrupt("hole in a directory", dir.number.into()),
        }
    }

    /// Returns the bytes of a block of entries.
    fn entry_block(&self, dir: &Inode, block: u64) -> Step<&[u8]> {
        let geometry = self.geometry;
        self.checked(block, "directory block", |bytes| {
            let tail = room(geometry);
            let sum = crc32c(dir.seed(geometry), &bytes[..tail]);
            !geometry.metadata_csum
                || bytes[tail + 7] == TAIL_TYPE && u32_at(bytes, tail + 8) == sum
        })
    }

    /// Returns the bytes of any block of a directory: one of entries, or one of the index, which
    /// looks like an empty one.
    fn any_block(&self, dir: &Inode, logical: u32, block: u64) -> Step<(&[u8], usize)> {
        let indexed = dir.flags() & INDEX_FLAG != 0;
        let bytes = self.block(block)?;
        let whole = self.geometry.block_size;
        let inner = u32_at(bytes, 0) == 0 && usize::from(u16_at(bytes, 4)) == whole;
        if indexed && (logical == 0 || inner) {
            return Ok((bytes, whole));
        }
        Ok((self.entry_block(dir, block)?, room(self.geometry)))
    }

    /// Finds a name.
    pub(crate) fn find(&self, dir: &Inode, name: &[u8]) -> Step<Option<Found>> {
        if !dir.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        let dots = name == b"." || name == b"..";
        if dir.flags() & INDEX_FLAG != 0 && !dots {
            return self.find_indexed(dir, name);
        }
        let blocks = if dots { 1 } else { self.dir_blocks(dir)? };
        for logical in 0..blocks {
            let block = self.dir_block(dir, logical)?;
            let (bytes, room) = self.any_block(dir, logical, block)?;
            if let Some(found) = find_in_block(bytes, room, block, name)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Returns the entries of the block that `position` lies in, from `position` on, and where to
    /// go on; `None` at the end.
    pub(crate) fn entries(&self, dir: &Inode, position: u64) -> Step<Option<(Vec<DirEntry>, u64)>> {
        if !dir.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        let size = self.geometry.block_size as u64;
        let logical = position / size;
        if logical >= self.dir_blocks(dir)?.into() {
            return Ok(None);
        }
        let (logical, base) = (low32(logical), logical * size);
        let block = self.dir_block(dir, logical)?;
        let (bytes, room) = self.any_block(dir, logical, block)?;
        let used = records(bytes, room, block)?
            .into_iter()
            .filter(|record| record.inode != 0);
        let entries = used
            .filter(|record| base + record.at as u64 >= position)
            .map(|record| DirEntry {
                inode: record.inode,
                next: base + (record.at + record.len) as u64,
                kind: record.kind,
                name: record.name.to_vec(),
            });
        Ok(Some((entries.collect(), base + size)))
    }

    /// Returns whether a directory has no entries besides `.` and `..`.
    pub(crate) fn is_empty_dir(&self, dir: &Inode) -> Step<bool> {
        for logical in 0..self.dir_blocks(dir)? {
            let block = self.dir_block(dir, logical)?;
            let (bytes, room) = self.any_block(dir, logical, block)?;
            let records = records(bytes, room, block)?;
            let mut names = records
                .iter()
                .filter(|record| record.inode != 0)
                .map(|record| record.name);
            if names.any(|name| name != b"." && name != b"..") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Gives a new directory its first block.
    pub(crate) fn start_dir(&mut self, dir: &mut Inode, parent: u32) -> Step<()> {
        let block = self.append_dir_block(dir)?;
        let mut bytes = self.zeroes();
        put_entry(&mut bytes, 0, MIN_RECORD, dir.number, 2, b".");
        put_entry(
            &mut bytes,
            MIN_RECORD,
            room(self.geometry) - MIN_RECORD,
            parent,
            2,
            b"..",
        );
        seal(self.geometry, dir.seed(self.geometry), &mut bytes);
        self.put(block, bytes);
        Ok(())
    }

    /// Allocates a block at a directory's end; the caller fills it.
    fn append_dir_block(&mut self, dir: &mut Inode) -> Step<u64> {
        let size = self.geometry.block_size as u64;
        let Ok(logical) = u32::try_from(dir.size() / size) else {
            return Err(Errno::ENOSPC.into());
        };
        let goal = match logical.checked_sub(1) {
            Some(last) => self.dir_block(dir, last)? + 1,
            None => self.inode_goal(dir.number),
        };
        let physical = self.allocate_one(goal)?;
        let extent = Extent {
            logical,
            len: 1,
            unwritten: false,
            physical,
        };
        self.insert_extent(dir, extent)?;
        dir.count_blocks(self.geometry, 1)?;
        dir.set_size(dir.size() + size);
        Ok(physical)
    }

    /// Adds a name that the directory does not have. The caller writes the directory's inode.
    pub(crate) fn add_entry(
        &mut self,
        dir: &mut Inode,
        name: &[u8],
        inode: u32,
        kind: u8,
    ) -> Step<()> {
        check_name(name)?;
        if dir.flags() & INDEX_FLAG != 0 {
            return self.add_indexed(dir, name, inode, kind);
        }
        let blocks = self.dir_blocks(dir)?;
        for logical in 0..blocks {
            let block = self.dir_block(dir, logical)?;
            if self.add_to_block(dir, block, name, inode, kind)? {
                return Ok(());
            }
        }
        if blocks == 1 && self.geometry.dir_index {
            self.start_index(dir)?;
            return self.add_indexed(dir, name, inode, kind);
        }
        let block = self.append_dir_block(dir)?;
        let mut bytes = self.zeroes();
        put_entry(&mut bytes, 0, room(self.geometry), inode, kind, name);
        seal(self.geometry, dir.seed(self.geometry), &mut bytes);
        self.put(block, bytes);
        Ok(())
    }

    /// Adds an entry to a block; returns whether it had room.
    fn add_to_block(
        &mut self,
        dir: &Inode,
        block: u64,
        name: &[u8],
        inode: u32,
        kind: u8,
    ) -> Step<bool> {
        let geometry = self.geometry;
        let needed = record_len(name.len());
        let records = records(self.entry_block(dir, block)?, room(geometry), block)?;
        let Some(record) = records
            .iter()
            .find(|record| record.len >= record.used() + needed)
        else {
            return Ok(false);
        };
        let (at, len, used) = (record.at, record.len, record.used());
        let bytes = self.block_mut(block)?;
        if used > 0 {
            put_u16(bytes, at + 4, low16(low32(used as u64)));
        }
        put_entry(bytes, at + used, len - used, inode, kind, name);
        seal(geometry, dir.seed(geometry), bytes);
        Ok(true)
    }

    /// Removes an entry: the one before it takes its bytes.
    pub(crate) fn remove_entry(&mut self, dir: &Inode, found: Found) -> Step<()> {
        let geometry = self.geometry;
        let records = records(
            self.entry_block(dir, found.block)?,
            room(geometry),
            found.block,
        )?;
        let Some(place) = records.iter().position(|record| record.at == found.at) else {
            return corrupt("directory entry", found.block);
        };
        let len = records[place].len;
        let before = place
            .checked_sub(1)
            .map(|before| (records[before].at, records[before].len));
        let bytes = self.block_mut(found.block)?;
        // The name goes, too, as on Linux since 5.13 (`ext4_generic_delete_entry`).
        bytes[found.at..found.at + len].fill(0);
        match before {
            Some((at, before_len)) => {
                put_u16(bytes, at + 4, low16(low32((before_len + len) as u64)))
            }
            None => put_u16(bytes, found.at + 4, low16(low32(len as u64))),
        }
        seal(geometry, dir.seed(geometry), bytes);
        Ok(())
    }

    /// Makes an entry name another inode.
    pub(crate) fn replace_entry(
        &mut self,
        dir: &Inode,
        found: Found,
        inode: u32,
        kind: u8,
    ) -> Step<()> {
        let geometry = self.geometry;
        let first = self.dir_block(dir, 0)?;
        let root = dir.flags() & INDEX_FLAG != 0 && found.block == first;
        if !root {
            self.entry_block(dir, found.block)?;
        }
        let bytes = self.block_mut(found.block)?;
        put_u32(bytes, found.at, inode);
        bytes[found.at + 7] = kind;
        if root {
            return self.seal_index(dir, found.block);
        }
        seal(geometry, dir.seed(geometry), bytes);
        Ok(())
    }

    /// Returns the directory that `..` of a directory names.
    pub(crate) fn parent_of(&self, dir: &Inode) -> Step<Found> {
        match self.find(dir, b"..")? {
            Some(found) => Ok(found),
            None => corrupt("directory without ..", dir.number.into()),
        }
    }
}

/// Finds a name in a block.
fn find_in_block(bytes: &[u8], room: usize, block: u64, name: &[u8]) -> Step<Option<Found>> {
    let mut at = 0;
    while at < room {
        let Some(record) = record(&bytes[..room], at) else {
            return corrupt("directory entry", block);
        };
        if record.inode != 0 && record.name == name {
            let inode = record.inode;
            return Ok(Some(Found { block, at, inode }));
        }
        at += record.len;
    }
    Ok(None)
}

/// Packs entries into a block one behind the other; the last takes what is left.
fn pack(geometry: &Geometry, seed: u32, entries: &[(u32, u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0; geometry.block_size];
    let end = room(geometry);
    let mut at = 0;
    for (number, (inode, kind, name)) in entries.iter().enumerate() {
        let last = number + 1 == entries.len();
        let len = if last {
            end - at
        } else {
            record_len(name.len())
        };
        put_entry(&mut bytes, at, len, *inode, *kind, name);
        at += len;
    }
    if entries.is_empty() {
        put_entry(&mut bytes, 0, end, 0, 0, &[]);
    }
    seal(geometry, seed, &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_in_use_has_a_name() {
        let mut block = [0; 24];
        put_entry(&mut block, 0, 24, 12, 1, b"a");
        assert_eq!(record(&block, 0).unwrap().name, b"a");
        block[6] = 0;
        assert!(record(&block, 0).is_none());
        block[..4].fill(0);
        assert!(record(&block, 0).is_some(), "a free one need not");
    }
}
