//! Extent trees: nodes, and the way from a file's block to the disk's.
//!
//! Layout after Linux `Documentation/filesystems/ext4/ifork.rst` and `struct ext4_extent_header`,
//! `ext4_extent`, `ext4_extent_idx`.

mod edit;

use alloc::vec::Vec;

use crate::bytes::{low16, put_u16, put_u32, u16_at, u32_at};
use crate::crc::crc32c;
use crate::error::{Step, corrupt};
use crate::group::put_block48;
use crate::inode::{EXTENTS_FLAG, Inode};
use crate::op::Op;
use crate::{Errno, superblock::Geometry};

/// `eh_magic`.
const MAGIC: u16 = 0xf30a;

/// The deepest tree (`EXT4_MAX_EXTENT_DEPTH`).
pub(super) const MAX_DEPTH: u16 = 5;

/// Entries of the root, which lies in the inode.
pub(crate) const ROOT_ENTRIES: usize = 4;

/// Longest written extent (`EXT_INIT_MAX_LEN`); larger stored lengths mean an unwritten one, which
/// is one shorter.
pub(super) const MAX_LEN: u32 = 0x8000;

/// Consecutive blocks of a file that are consecutive on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First block of the file.
    pub(crate) logical: u32,
    pub(crate) len: u32,
    /// Allocated but never written: reads as zeroes.
    pub(crate) unwritten: bool,
    /// First block on the disk.
    pub(crate) physical: u64,
}

impl Extent {
    /// Returns the file's block behind the extent.
    pub(crate) fn end(&self) -> u64 {
        u64::from(self.logical) + u64::from(self.len)
    }

    /// Returns the part from the file's block `from` to before `to`.
    pub(crate) fn part(&self, from: u64, to: u64) -> Self {
        let from = from.max(self.logical.into());
        let len = to.min(self.end()).saturating_sub(from);
        let skip = from - u64::from(self.logical);
        Self {
            logical: u32::try_from(from).unwrap_or(u32::MAX),
            len: u32::try_from(len).unwrap_or(u32::MAX),
            physical: self.physical + skip,
            ..*self
        }
    }

    /// Returns both as one if the second continues the first.
    pub(crate) fn joined(&self, next: &Self) -> Option<Self> {
        let continues = self.end() == u64::from(next.logical)
            && self.physical + u64::from(self.len) == next.physical
            && self.unwritten == next.unwritten;
        let len = self.len + next.len;
        let fits = len <= MAX_LEN - u32::from(self.unwritten);
        (continues && fits).then_some(Self { len, ..*self })
    }
}

/// An entry of an inner node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Child {
    pub(super) logical: u32,
    pub(super) block: u64,
}

/// The entries of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    Leaf(Vec<Extent>),
    Inner(u16, Vec<Child>),
}

impl Node {
    pub(super) fn depth(&self) -> u16 {
        match self {
            Self::Leaf(_) => 0,
            Self::Inner(depth, _) => *depth,
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Leaf(extents) => extents.len(),
            Self::Inner(_, children) => children.len(),
        }
    }

    pub(super) fn key(&self, at: usize) -> Option<u32> {
        match self {
            Self::Leaf(extents) => extents.get(at).map(|extent| extent.logical),
            Self::Inner(_, children) => children.get(at).map(|child| child.logical),
        }
    }

    /// Moves the entries from `at` on to a new node.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        match self {
            Self::Leaf(extents) => Self::Leaf(extents.split_off(at)),
            Self::Inner(depth, children) => Self::Inner(*depth, children.split_off(at)),
        }
    }

    /// Takes a node apart.
    fn parse(bytes: &[u8], depth: Option<u16>, at: u64) -> Step<Self> {
        let (entries, max, found) = (u16_at(bytes, 2), u16_at(bytes, 4), u16_at(bytes, 6));
        let room = bytes.len() / 12 - 1;
        let sound = u16_at(bytes, 0) == MAGIC
            && entries <= max
            && usize::from(max) <= room
            && depth.map_or(found <= MAX_DEPTH, |depth| depth == found);
        if !sound {
            return corrupt("extent header", at);
        }
        let raw = bytes[12..].chunks_exact(12).take(entries.into());
        let node = if found == 0 {
            Self::Leaf(raw.map(parse_extent).collect())
        } else {
            Self::Inner(found, raw.map(parse_child).collect())
        };
        if node.is_ordered() {
            Ok(node)
        } else {
            corrupt("extents", at)
        }
    }

    fn is_ordered(&self) -> bool {
        match self {
            Self::Leaf(extents) => {
                let sound = extents
                    .iter()
                    .all(|extent| extent.len > 0 && extent.end() <= u64::from(u32::MAX));
                sound
                    && extents
                        .windows(2)
                        .all(|two| two[0].end() <= u64::from(two[1].logical))
            }
            Self::Inner(_, children) => {
                !children.is_empty()
                    && children
                        .windows(2)
                        .all(|two| two[0].logical < two[1].logical)
            }
        }
    }

    fn emit(&self, bytes: &mut [u8], max: usize) {
        bytes.fill(0);
        put_u16(bytes, 0, MAGIC);
        put_u16(bytes, 2, u16::try_from(self.len()).unwrap_or(u16::MAX));
        put_u16(bytes, 4, u16::try_from(max).unwrap_or(u16::MAX));
        put_u16(bytes, 6, self.depth());
        let places = bytes[12..].chunks_exact_mut(12);
        match self {
            Self::Leaf(extents) => places.zip(extents).for_each(|(place, extent)| {
                let len = extent.len + if extent.unwritten { MAX_LEN } else { 0 };
                put_u32(place, 0, extent.logical);
                put_u16(place, 4, low16(len));
                put_block48(place, 8, 6, extent.physical);
            }),
            Self::Inner(_, children) => places.zip(children).for_each(|(place, child)| {
                put_u32(place, 0, child.logical);
                put_block48(place, 4, 8, child.block);
            }),
        }
    }
}

fn parse_extent(raw: &[u8]) -> Extent {
    let len = u32::from(u16_at(raw, 4));
    let unwritten = len > MAX_LEN;
    Extent {
        logical: u32_at(raw, 0),
        len: if unwritten { len - MAX_LEN } else { len },
        unwritten,
        physical: u64::from(u32_at(raw, 8)) | u64::from(u16_at(raw, 6)) << 32,
    }
}

fn parse_child(raw: &[u8]) -> Child {
    Child {
        logical: u32_at(raw, 0),
        block: u64::from(u32_at(raw, 4)) | u64::from(u16_at(raw, 8)) << 32,
    }
}

/// Entries of a node that fills a block; four bytes behind them hold the checksum.
pub(crate) fn block_entries(geometry: &Geometry) -> usize {
    (geometry.block_size - 12) / 12
}

/// A step of the way from the root to a leaf.
#[derive(Debug)]
pub(super) struct Level {
    /// The node's block; `None` for the root.
    pub(super) place: Option<u64>,
    pub(super) node: Node,
    /// The entry on the way.
    pub(super) at: usize,
}

/// The mapping of a file's block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// The rest of an extent, from the block on.
    Extent(Extent),
    /// Nothing, for so many blocks.
    Hole(u64),
}

impl Op<'_> {
    fn extent_node(&self, inode: &Inode, block: u64, depth: u16) -> Step<Node> {
        self.check_owned(block, 1)?;
        let bytes = self.checked(block, "extent block", |bytes| {
            let tail = 12 + 12 * usize::from(u16_at(bytes, 4));
            let sum = bytes
                .get(..tail)
                .map(|body| crc32c(inode.seed(self.geometry), body));
            let stored = bytes.get(tail..tail + 4).map(|tail| u32_at(tail, 0));
            !self.geometry.metadata_csum || sum.is_some() && sum == stored
        })?;
        Node::parse(bytes, Some(depth), block)
    }

    /// Writes a node into a block.
    pub(super) fn put_extent_node(&mut self, inode: &Inode, block: u64, node: &Node) {
        let mut bytes = self.zeroes();
        let max = block_entries(self.geometry);
        node.emit(&mut bytes, max);
        if self.geometry.metadata_csum {
            let tail = 12 + 12 * max;
            let sum = crc32c(inode.seed(self.geometry), &bytes[..tail]);
            put_u32(&mut bytes, tail, sum);
        }
        self.put(block, bytes);
    }

    /// Writes the root of an inode's tree.
    pub(super) fn put_extent_root(inode: &mut Inode, node: &Node) {
        node.emit(inode.block_mut(), ROOT_ENTRIES);
    }

    /// Gives a new inode an empty tree.
    pub(crate) fn start_extents(inode: &mut Inode) {
        let flags = inode.flags() | EXTENTS_FLAG;
        inode.set_flags(flags);
        Self::put_extent_root(inode, &Node::Leaf(Vec::new()));
    }

    /// Returns the nodes from the root to the leaf that a block of the file belongs in.
    pub(super) fn extent_path(&self, inode: &Inode, logical: u32) -> Step<Vec<Level>> {
        if inode.flags() & EXTENTS_FLAG == 0 {
            // Files mapped by indirect blocks, as ext2 and ext3 made them.
            return Err(Errno::EOPNOTSUPP.into());
        }
        let mut node = Node::parse(inode.block(), None, inode.number.into())?;
        let mut path: Vec<Level> = Vec::new();
        let mut place = None;
        loop {
            let (at, below) = match &node {
                Node::Leaf(extents) => {
                    let behind = extents.partition_point(|extent| extent.logical <= logical);
                    (behind.saturating_sub(1), None)
                }
                Node::Inner(depth, children) => {
                    let behind = children.partition_point(|child| child.logical <= logical);
                    let at = behind.saturating_sub(1);
                    (at, Some((children[at].block, depth - 1)))
                }
            };
            path.push(Level { place, node, at });
            let Some((block, depth)) = below else {
                return Ok(path);
            };
            node = self.extent_node(inode, block, depth)?;
            place = Some(block);
        }
    }

    /// Returns what a file has at one of its blocks.
    pub(crate) fn map(&self, inode: &Inode, logical: u32) -> Step<Mapping> {
        let path = self.extent_path(inode, logical)?;
        let Some(Level {
            node: Node::Leaf(extents),
            at,
            ..
        }) = path.last()
        else {
            return corrupt("extents", inode.number.into());
        };
        if let Some(extent) = extents.get(*at).filter(|extent| {
            (u64::from(extent.logical)..extent.end()).contains(&u64::from(logical))
        }) {
            self.check_owned(extent.physical, extent.len.into())?;
            return Ok(Mapping::Extent(extent.part(logical.into(), extent.end())));
        }
        // The next entry on any level bounds the hole.
        let next = path
            .iter()
            .flat_map(|level| [level.node.key(level.at), level.node.key(level.at + 1)]);
        let next = next
            .flatten()
            .filter(|&key| key > logical)
            .min()
            .unwrap_or(u32::MAX);
        Ok(Mapping::Hole(u64::from(next - logical).max(1)))
    }
}
