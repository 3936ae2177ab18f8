//! A small ext4 file system with a journal, made by hand, and a disk that counts what is read of
//! it: for the targets on S.
//!
//! ```text
//!  blocks: 1 superblock, 2 descriptors, 3 to 6 inodes, 7 and 16 bitmaps, 8 to 15 files,
//!          32 to 1055 the journal (inode 8)
//!
//!  /            inode 2       /a              inode 11     /a/hello   inode 12, two blocks
//!  /link        inode 13, a fast link to a/hello
//!  /tree        inode 14, an extent tree of depth 1 with a hole
//!  /long        inode 15, a link whose target has a block
//! ```

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use ext4::DiskError;

const BLOCK: usize = 1024;
const BLOCKS: usize = 1536;
/// The journal's first block and length.
const JOURNAL: (u32, u32) = (32, 1024);
const INODE: usize = 128;
const INODE_TABLE: usize = 3 * BLOCK;

/// Bytes of the image.
const LEN: usize = BLOCK * BLOCKS;

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn inode(image: &mut [u8], number: usize, mode: u16, size: u32, extents: bool, block: &[u8]) {
    let at = INODE_TABLE + (number - 1) * INODE;
    put(image, at, &mode.to_le_bytes());
    put(image, at + 4, &size.to_le_bytes());
    put(image, at + 0x1a, &1_u16.to_le_bytes());
    let flags: u32 = if extents { 0x8_0000 } else { 0 };
    put(image, at + 0x20, &flags.to_le_bytes());
    put(image, at + 0x28, block);
}

/// A node of an extent tree: a header, and entries of three dwords.
fn node(depth: u16, entries: &[[u32; 3]]) -> Vec<u8> {
    let count = u16::try_from(entries.len()).unwrap_or(0);
    let header = [0xf30a, count, 4, depth, 0, 0]
        .map(u16::to_le_bytes)
        .concat();
    let entries: Vec<u8> = entries
        .iter()
        .flatten()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    [header, entries].concat()
}

fn folder(entries: &[(u32, u8, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (index, &(inode, kind, name)) in entries.iter().enumerate() {
        let len = (8 + name.len()).next_multiple_of(4);
        let record = if index + 1 == entries.len() {
            BLOCK - block.len()
        } else {
            len
        };
        block.extend(inode.to_le_bytes());
        block.extend(u16::try_from(record).unwrap_or(0).to_le_bytes());
        block.extend([u8::try_from(name.len()).unwrap_or(0), kind]);
        block.extend(name.as_bytes());
        block.resize(block.len().next_multiple_of(4), 0);
    }
    block.resize(BLOCK, 0);
    block
}

/// Sets bits of a bitmap.
fn mark(image: &mut [u8], block: usize, bits: std::ops::Range<usize>) {
    bits.for_each(|bit| image[block * BLOCK + bit / 8] |= 1 << (bit % 8));
}

/// Puts the superblock, the descriptor, the bitmaps and the journal.
fn put_tables(image: &mut [u8]) {
    let (first, len) = JOURNAL;
    let used = 16 + len;
    let blocks = u32::try_from(BLOCKS).unwrap_or(0);
    let sb = BLOCK;
    for (at, value) in [
        (0, 32_u32),
        (4, blocks),
        (0xc, blocks - used),
        (0x10, 17),
        (0x14, 1),
        (0x20, 8192),
        (0x28, 32),
        (0x4c, 1),
        (0x54, 11),
        (0x5c, 0x4),
        (0x60, 0x42),
        (0xe0, 8),
    ] {
        put(image, sb + at, &value.to_le_bytes());
    }
    put(image, sb + 0x38, &0xef53_u16.to_le_bytes());
    put(image, sb + 0x58, &128_u16.to_le_bytes());
    // Bitmaps and inode table; free blocks and inodes, directories.
    for (at, value) in [
        (0, 7_u32),
        (4, 16),
        (8, 3),
        (0xc, (blocks - used) | (17 << 16)),
        (0x10, 2),
    ] {
        put(image, 2 * BLOCK + at, &value.to_le_bytes());
    }
    // Bit 0 is block 1.
    mark(image, 7, 0..16);
    mark(image, 7, 31..31 + len as usize);
    mark(image, 7, BLOCKS - 1..8 * BLOCK);
    mark(image, 16, 0..15);
    mark(image, 16, 32..8 * BLOCK);
    inode(
        image,
        8,
        0x8180,
        len * 1024,
        true,
        &node(0, &[[0, len, first]]),
    );
    let journal = first as usize * BLOCK;
    for (at, value) in [
        (0, 0xc03b_3998_u32),
        (4, 4),
        (0xc, 1024),
        (0x10, len),
        (0x14, 1),
        (0x18, 1),
    ] {
        put(image, journal + at, &value.to_be_bytes());
    }
}

/// The file system, whole.
pub(super) fn build() -> Vec<u8> {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(make).clone()
}

fn make() -> Vec<u8> {
    let mut image = vec![0; LEN];
    put_tables(&mut image);
    inode(&mut image, 2, 0x41ed, 1024, true, &node(0, &[[0, 1, 8]]));
    inode(&mut image, 11, 0x41ed, 1024, true, &node(0, &[[0, 1, 9]]));
    inode(&mut image, 12, 0x81a4, 1500, true, &node(0, &[[0, 2, 10]]));
    inode(&mut image, 13, 0xa1ff, 7, false, b"a/hello");
    inode(&mut image, 14, 0x81a4, 5000, true, &node(1, &[[0, 12, 0]]));
    inode(&mut image, 15, 0xa1ff, 80, true, &node(0, &[[0, 1, 13]]));
    let root = [
        (2, 2, "."),
        (2, 2, ".."),
        (11, 2, "a"),
        (13, 7, "link"),
        (14, 1, "tree"),
        (15, 7, "long"),
    ];
    put(&mut image, 8 * BLOCK, &folder(&root));
    put(
        &mut image,
        9 * BLOCK,
        &folder(&[(11, 2, "."), (2, 2, ".."), (12, 1, "hello")]),
    );
    put(&mut image, 10 * BLOCK, &[0x61; 1500]);
    put(&mut image, 12 * BLOCK, &node(0, &[[0, 1, 14], [3, 1, 15]]));
    put(
        &mut image,
        13 * BLOCK,
        &[&b"./".repeat(37)[..], b"a/link"].concat(),
    );
    // Blocks of each, those of extent trees included, in units of 512 bytes.
    for (number, blocks) in [(2, 1), (8, JOURNAL.1), (11, 1), (12, 2), (14, 3), (15, 1)] {
        let at = INODE_TABLE + (number - 1) * INODE;
        put(&mut image, at + 0x1c, &(blocks * 2).to_le_bytes());
    }
    // Directories are named by their own entries, too.
    for (number, links) in [(2, 3_u16), (11, 2)] {
        let at = INODE_TABLE + (number - 1) * INODE;
        put(&mut image, at + 0x1a, &links.to_le_bytes());
    }
    image
}

/// A disk in memory. It panics when more is read of it than anything may cost.
pub(super) struct Disk {
    bytes: Mutex<Vec<u8>>,
    read: AtomicUsize,
    most: usize,
}

impl Disk {
    pub(super) fn new(bytes: Vec<u8>, most: usize) -> Self {
        Self {
            bytes: Mutex::new(bytes),
            read: AtomicUsize::new(0),
            most,
        }
    }

    fn range(
        &self,
        offset: u64,
        len: usize,
        with: impl FnOnce(&mut [u8]),
    ) -> Result<(), DiskError> {
        let error = DiskError { offset };
        let start = usize::try_from(offset).map_err(|_| error)?;
        let mut bytes = self.bytes.lock().expect("no panic");
        let range = bytes
            .get_mut(start..)
            .and_then(|bytes| bytes.get_mut(..len));
        with(range.ok_or(error)?);
        Ok(())
    }
}

impl ext4::Disk for Disk {
    async fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        let read = self.read.fetch_add(into.len(), Ordering::Relaxed);
        assert!(read < self.most, "{read} bytes read of a disk of {LEN}");
        self.range(offset, into.len(), |range| into.copy_from_slice(range))
    }

    async fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.range(offset, bytes.len(), |range| range.copy_from_slice(bytes))
    }

    async fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
}
