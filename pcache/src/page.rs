//! The names of pages, lines and transfers.

use core::fmt;

/// An address space, as its owner numbers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SpaceId(pub u64);

/// A virtual page number: an address divided by the size of a line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Vpn(pub u64);

impl Vpn {
    /// The page that holds `addr`.
    #[must_use]
    pub const fn of(addr: u64) -> Self {
        Self(addr >> 12)
    }

    /// The address of the page's first byte.
    #[must_use]
    pub const fn addr(self) -> u64 {
        self.0 << 12
    }
}

/// One page of one address space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Page {
    /// The address space.
    pub space: SpaceId,
    /// The page within it.
    pub vpn: Vpn,
}

impl Page {
    /// The page of `space` that holds `addr`.
    #[must_use]
    pub const fn of(space: SpaceId, addr: u64) -> Self {
        Self {
            space,
            vpn: Vpn::of(addr),
        }
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {:#x} of space {}", self.vpn.addr(), self.space.0)
    }
}

/// A line of the cache, from zero to the number of lines.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LineId(pub u32);

/// Names one transfer of one line; its completion brings it back. A token is good for one completion only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Token(u64);

impl Token {
    pub(crate) fn new(line: LineId, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(line.0))
    }

    /// The token as a number that a work request can carry.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The token that [`Token::raw`] made `raw`. A number that never was one is refused by the cache.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The line that the transfer reads or writes.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is the line")]
    pub const fn line(self) -> LineId {
        LineId(self.0 as u32)
    }

    pub(crate) const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}
