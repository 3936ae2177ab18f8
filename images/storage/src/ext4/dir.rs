//! Folders: lists of entries in blocks. The hash tree of a large one looks like empty entries and is skipped.

use alloc::vec;
use alloc::vec::Vec;

use super::{Ext4, Inode, u16_at, u32_at};
use crate::{BlockDevice, Error};

/// One entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The inode's number.
    pub inode: u32,
    /// Byte position in the folder behind this entry: where to go on reading.
    pub next: u64,
    /// `d_type` as Linux has it.
    pub kind: u8,
    /// The name.
    pub name: Vec<u8>,
}

/// `d_type` of an entry's file type (`EXT4_FT_*` to `DT_*`).
fn d_type(file_type: u8) -> u8 {
    match file_type {
        1 => 8,
        2 => 4,
        3 => 2,
        4 => 6,
        5 => 1,
        6 => 12,
        7 => 10,
        _ => 0,
    }
}

/// The largest folder that is read: far above what a disk image holds, so that a corrupt size ends.
const MAX_FOLDER: u64 = 1 << 30;

impl<B: BlockDevice> Ext4<B> {
    /// The entries of the block of a folder that `position` lies in, from `position` on; nothing behind the end.
    ///
    /// A block may hold none: the caller goes on at the returned position.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] for entries that make no sense, [`Error::Disk`].
    pub async fn entries(
        &self,
        folder: &Inode,
        position: u64,
    ) -> Result<Option<(Vec<DirEntry>, u64)>, Error> {
        let size = folder.stat.size;
        if size > MAX_FOLDER {
            return Err(Error::Corrupt {
                inode: folder.number,
                field: "i_size of a folder",
                value: size,
            });
        }
        if position >= size {
            return Ok(None);
        }
        let block_size = u64::from(self.block_size());
        let base = position - position % block_size;
        let mut block = vec![0; self.block_size() as usize];
        let len = self.read(folder, base, &mut block).await?;
        let mut entries = parse(folder, &block[..len], base)?;
        entries.retain(|(at, _)| *at >= position);
        Ok(Some((
            entries.into_iter().map(|(_, entry)| entry).collect(),
            base + block_size,
        )))
    }

    /// The inode that `name` is in a folder.
    pub(super) async fn lookup(&self, folder: &Inode, name: &[u8]) -> Result<Option<u32>, Error> {
        let mut position = 0;
        while let Some((entries, next)) = self.entries(folder, position).await? {
            if let Some(found) = entries.iter().find(|entry| entry.name == name) {
                return Ok(Some(found.inode));
            }
            position = next;
        }
        Ok(None)
    }
}

/// The used entries of a block, each with its position.
fn parse(folder: &Inode, block: &[u8], base: u64) -> Result<Vec<(u64, DirEntry)>, Error> {
    let mut entries = Vec::new();
    let mut at = 0;
    while at + 8 <= block.len() {
        let entry = &block[at..];
        let (inode, record) = (u32_at(entry, 0), usize::from(u16_at(entry, 4)));
        let name_len = usize::from(entry[6]);
        if record < 8 + name_len || !record.is_multiple_of(4) || record > entry.len() {
            return Err(Error::Corrupt {
                inode: folder.number,
                field: "rec_len",
                value: record as u64,
            });
        }
        if inode != 0 && name_len > 0 {
            let next = base + (at + record) as u64;
            let name = entry[8..8 + name_len].to_vec();
            entries.push((
                base + at as u64,
                DirEntry {
                    inode,
                    next,
                    kind: d_type(entry[7]),
                    name,
                },
            ));
        }
        at += record;
    }
    Ok(entries)
}
