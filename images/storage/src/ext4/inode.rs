//! Inodes: what they say of a file, and where its bytes are.

use messages::storage::{FileTime, Stat};

use super::{Ext4, u16_at, u32_at};
use crate::{BlockDevice, Error};

const EXTENTS_FLAG: u32 = 0x8_0000;
const INLINE_DATA_FLAG: u32 = 0x1000_0000;
const ENCRYPTED_FLAG: u32 = 0x800;

/// `i_blocks` counts file system blocks instead of 512-byte ones.
const HUGE_FILE_FLAG: u32 = 0x4_0000;

/// `eh_magic`.
const EXTENT_MAGIC: u16 = 0xf30a;

/// The deepest extent tree (Linux `EXT4_MAX_EXTENT_DEPTH`).
const MAX_DEPTH: u16 = 5;

/// A length above this means an extent that was never written: it reads as zeroes.
const UNWRITTEN: u16 = 0x8000;

/// An inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub number: u32,
    /// What `stat` tells; its block size is left to the file system.
    pub stat: Stat,
    flags: u32,
    block: [u8; 60],
}

/// Blocks of a file that lie one behind the other on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    /// The first on the disk; nothing for a hole.
    physical: Option<u64>,
    /// How many, at least one.
    blocks: u64,
}

fn time(bytes: &[u8], seconds: usize, extra: usize) -> FileTime {
    // Extra: two bits of epoch, thirty of nanoseconds.
    let extra_size = usize::from(u16_at(bytes, 0x80));
    let extra = if 0x80 + extra_size >= extra + 4 {
        u32_at(bytes, extra)
    } else {
        0
    };
    let seconds = i64::from(u32_at(bytes, seconds).cast_signed());
    FileTime {
        seconds: seconds + (i64::from(extra & 3) << 32),
        nanos: (extra >> 2).min(999_999_999),
    }
}

/// `st_rdev` of a device node as Linux shows it to programs.
fn device(mode: u32, block: &[u8; 60]) -> u64 {
    if !matches!(mode & 0xf000, 0x2000 | 0x6000) {
        return 0;
    }
    let (old, new) = (u32_at(block, 0), u32_at(block, 4));
    let (major, minor) = match old {
        0 => ((new & 0xf_ff00) >> 8, new & 0xff | new >> 12 & 0xf_ff00),
        old => (old >> 8 & 0xff, old & 0xff),
    };
    let (major, minor) = (u64::from(major), u64::from(minor));
    minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12 | (major & !0xfff) << 32
}

impl Inode {
    pub(super) fn parse(number: u32, bytes: &[u8; 160]) -> Self {
        let high = |at: usize| u32::from(u16_at(bytes, at)) << 16;
        let mode = u32::from(u16_at(bytes, 0));
        let flags = u32_at(bytes, 0x20);
        let block: [u8; 60] = bytes[0x28..0x64].try_into().expect("sixty bytes");
        let blocks = u64::from(u32_at(bytes, 0x1c)) | u64::from(u16_at(bytes, 0x74)) << 32;
        let stat = Stat {
            inode: number.into(),
            mode,
            links: u16_at(bytes, 0x1a).into(),
            uid: u32::from(u16_at(bytes, 2)) | high(0x78),
            gid: u32::from(u16_at(bytes, 0x18)) | high(0x7a),
            size: u64::from(u32_at(bytes, 4)) | u64::from(u32_at(bytes, 0x6c)) << 32,
            block_size: 0,
            blocks,
            accessed: time(bytes, 0x8, 0x8c),
            modified: time(bytes, 0x10, 0x88),
            changed: time(bytes, 0xc, 0x84),
            device: device(mode, &block),
        };
        Self {
            number,
            stat,
            flags,
            block,
        }
    }

    /// Whether it is a folder.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.stat.mode & 0xf000 == 0x4000
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.stat.mode & 0xf000 == 0x8000
    }

    /// Whether it is a symbolic link.
    #[must_use]
    pub fn is_symlink(&self) -> bool {
        self.stat.mode & 0xf000 == 0xa000
    }

    /// A short link's target stands in the inode itself.
    pub(super) fn fast_target(&self) -> Option<&[u8]> {
        let len = usize::try_from(self.stat.size).ok()?;
        let inside = self.flags & EXTENTS_FLAG == 0 && (1..60).contains(&len);
        inside.then(|| &self.block[..len])
    }

    fn corrupt(&self, field: &'static str, value: impl Into<u64>) -> Error {
        Error::Corrupt {
            inode: self.number,
            field,
            value: value.into(),
        }
    }
}

/// The header of an extent node: entries and depth.
fn node_header(inode: &Inode, node: &[u8]) -> Result<(usize, u16), Error> {
    let magic = u16_at(node, 0);
    if magic != EXTENT_MAGIC {
        return Err(inode.corrupt("eh_magic", magic));
    }
    let (entries, depth) = (u16_at(node, 2), u16_at(node, 6));
    let room = node.len() / 12 - 1;
    if usize::from(entries) > room {
        return Err(inode.corrupt("eh_entries", entries));
    }
    Ok((entries.into(), depth))
}

fn entries(node: &[u8], count: usize) -> impl DoubleEndedIterator<Item = &[u8]> {
    node[12..].chunks_exact(12).take(count)
}

/// The run at `logical` according to a leaf.
fn find_in_leaf(node: &[u8], count: usize, logical: u64) -> Run {
    let mut hole = u64::from(u32::MAX);
    for entry in entries(node, count) {
        let (first, len) = (u64::from(u32_at(entry, 0)), u16_at(entry, 4));
        let written = len <= UNWRITTEN;
        let len = u64::from(if written { len } else { len - UNWRITTEN });
        if (first..first + len).contains(&logical) {
            let start = u64::from(u32_at(entry, 8)) | u64::from(u16_at(entry, 6)) << 32;
            let inside = logical - first;
            return Run {
                physical: written.then_some(start + inside),
                blocks: len - inside,
            };
        }
        if first > logical {
            hole = hole.min(first - logical);
        }
    }
    Run {
        physical: None,
        blocks: hole.max(1),
    }
}

impl<B: BlockDevice> Ext4<B> {
    /// The run that begins at block `logical` of a file. A hole's run is only sure to reach the end of its leaf, so
    /// that it is one block where the tree is deep.
    async fn run_at(&self, inode: &Inode, logical: u64) -> Result<Run, Error> {
        let (mut count, mut depth) = node_header(inode, &inode.block)?;
        if depth > MAX_DEPTH {
            return Err(inode.corrupt("eh_depth", depth));
        }
        if depth == 0 {
            return Ok(find_in_leaf(&inode.block, count, logical));
        }
        let mut node = alloc::vec![0; self.block_size() as usize];
        node[..60].copy_from_slice(&inode.block);
        while depth > 0 {
            let below = entries(&node, count).rfind(|entry| u64::from(u32_at(entry, 0)) <= logical);
            let Some(entry) = below else {
                return Ok(Run {
                    physical: None,
                    blocks: 1,
                });
            };
            let child = u64::from(u32_at(entry, 4)) | u64::from(u16_at(entry, 8)) << 32;
            self.metadata(child, 0, &mut node).await?;
            let (child_count, child_depth) = node_header(inode, &node)?;
            if child_depth != depth - 1 {
                return Err(inode.corrupt("eh_depth", child_depth));
            }
            (count, depth) = (child_count, child_depth);
        }
        let run = find_in_leaf(&node, count, logical);
        Ok(if run.physical.is_none() {
            Run { blocks: 1, ..run }
        } else {
            run
        })
    }

    /// Reads a file's bytes from `offset` on; returns how many, fewer than asked for only at the end of the file.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] for a tree that makes no sense or contents kept in a way not known here, [`Error::Disk`].
    pub async fn read(&self, inode: &Inode, offset: u64, into: &mut [u8]) -> Result<usize, Error> {
        if inode.flags & EXTENTS_FLAG == 0 || inode.flags & (INLINE_DATA_FLAG | ENCRYPTED_FLAG) != 0 {
            return Err(inode.corrupt("i_flags", inode.flags));
        }
        let left = inode.stat.size.saturating_sub(offset);
        let len = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let block_size = u64::from(self.block_size());
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let run = self.run_at(inode, at / block_size).await?;
            let inside = at % block_size;
            let bytes = run.blocks.saturating_mul(block_size) - inside;
            let piece = (len - done).min(usize::try_from(bytes).unwrap_or(usize::MAX));
            let into = &mut into[done..done + piece];
            match run.physical {
                Some(block) if block.saturating_add(run.blocks) <= self.geometry.blocks => {
                    self.disk.read(block * block_size + inside, into).await?;
                }
                Some(block) => return Err(inode.corrupt("ee_start", block)),
                None => into.fill(0),
            }
            done += piece;
        }
        Ok(len)
    }

    /// What `stat` tells of a file.
    #[must_use]
    pub fn stat(&self, inode: &Inode) -> Stat {
        let unit = if inode.flags & HUGE_FILE_FLAG != 0 {
            u64::from(self.block_size()) / 512
        } else {
            1
        };
        let blocks = inode.stat.blocks.saturating_mul(unit);
        Stat {
            block_size: self.block_size(),
            blocks,
            ..inode.stat
        }
    }
}
