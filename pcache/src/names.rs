//! The names of slots, lines, pages and chunks.

use core::fmt;

/// Pages of a chunk: what one leaf table of x86-64 maps.
pub const CHUNK_PAGES: u64 = 512;

/// A chunk that M lends, as P numbers it: an index into the [`Chunks`](crate::Chunks).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChunkId(pub u32);

/// One page of remote memory: a chunk and a page in it, in 40 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(u64);

impl Slot {
    /// Bits of a slot's number.
    pub const BITS: u32 = 40;
    /// One past the highest chunk number that slots can name.
    pub const MAX_CHUNKS: u32 = 1 << (Self::BITS - 9);

    /// Returns page `page` (modulo [`CHUNK_PAGES`]) of `chunk`.
    #[must_use]
    pub const fn new(chunk: ChunkId, page: u64) -> Self {
        Self(((chunk.0 as u64) << 9) | (page % CHUNK_PAGES))
    }

    /// Returns the slot with this number; the bits above [`Self::BITS`] are dropped.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw & ((1 << Self::BITS) - 1))
    }

    /// Returns the slot's number.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Returns the chunk that holds it.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "40 bits less 9 are 31")]
    pub const fn chunk(self) -> ChunkId {
        ChunkId((self.0 >> 9) as u32)
    }

    /// Returns its page within the chunk.
    #[must_use]
    pub const fn page(self) -> u64 {
        self.0 % CHUNK_PAGES
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {} of chunk {}", self.page(), self.chunk().0)
    }
}

/// An address space, as the machine numbers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SpaceId(pub u32);

/// A virtual page number: an address divided by the size of a page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Vpn(pub u64);

impl Vpn {
    /// Returns the page that holds `addr`.
    #[must_use]
    pub const fn of(addr: u64) -> Self {
        Self(addr >> 12)
    }

    /// Returns the address of the page's first byte.
    #[must_use]
    pub const fn addr(self) -> u64 {
        self.0 << 12
    }
}

/// One page of one address space, as a TLB knows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Page {
    /// The address space.
    pub space: SpaceId,
    /// The page within it.
    pub vpn: Vpn,
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {:#x} of space {}", self.vpn.addr(), self.space.0)
    }
}

/// A line of the cache, from zero to the number of lines.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LineId(pub u32);
