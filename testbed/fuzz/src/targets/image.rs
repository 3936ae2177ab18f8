//! A small ext4 file system, made by hand, and a disk that counts what is read of it: for the targets on S.
//!
//! ```text
//!  /            inode 2       /a              inode 11     /a/hello   inode 12, two blocks
//!  /link        inode 13, a fast link to a/hello           /tree      inode 14, an extent tree of depth 1 with a hole
//!  /long        inode 15, a link whose target has a block
//! ```

use std::sync::atomic::{AtomicUsize, Ordering};

use storage::{BlockDevice, DiskError};

const BLOCK: usize = 1024;
const BLOCKS: usize = 32;
const INODE: usize = 128;
const INODE_TABLE: usize = 3 * BLOCK;

/// Bytes of the image.
pub(super) const LEN: usize = BLOCK * BLOCKS;

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
    let header = [0xf30a, count, 4, depth, 0, 0].map(u16::to_le_bytes).concat();
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

/// The file system, whole.
pub(super) fn build() -> Vec<u8> {
    let mut image = vec![0; LEN];
    let sb = BLOCK;
    for (at, value) in [
        (0, 16_u32),
        (4, 32),
        (0x14, 1),
        (0x20, 8192),
        (0x28, 16),
        (0x4c, 1),
        (0x60, 0x42),
    ] {
        put(&mut image, sb + at, &value.to_le_bytes());
    }
    put(&mut image, sb + 0x38, &0xef53_u16.to_le_bytes());
    put(&mut image, sb + 0x58, &128_u16.to_le_bytes());
    put(&mut image, 2 * BLOCK + 8, &3_u32.to_le_bytes());
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
    put(&mut image, 12 * BLOCK, &node(0, &[[0, 1, 14], [3, 2, 15]]));
    put(
        &mut image,
        13 * BLOCK,
        &[&b"./".repeat(37)[..], b"a/link"].concat(),
    );
    image
}

/// A disk in memory. It panics when more is read of it than anything may cost.
pub(super) struct Disk {
    bytes: Vec<u8>,
    read: AtomicUsize,
    most: usize,
}

impl Disk {
    pub(super) fn new(bytes: Vec<u8>, most: usize) -> Self {
        Self {
            bytes,
            read: AtomicUsize::new(0),
            most,
        }
    }
}

impl BlockDevice for Disk {
    async fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        let read = self.read.fetch_add(into.len(), Ordering::Relaxed);
        assert!(
            read < self.most,
            "{read} bytes read of a disk of {}",
            self.bytes.len()
        );
        let error = DiskError {
            offset,
            len: into.len(),
        };
        let start = usize::try_from(offset).map_err(|_| error)?;
        let from = self.bytes.get(start..).and_then(|bytes| bytes.get(..into.len()));
        into.copy_from_slice(from.ok_or(error)?);
        Ok(())
    }
}
