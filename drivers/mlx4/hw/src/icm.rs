//! Giving the device memory: the entries of MAP_FA, MAP_ICM and MAP_ICM_AUX.
//!
//! Source: Linux `fw.c`, `mlx4_map_cmd`.
//!
//! # Shape
//!
//! ```text
//!  ICM address ──► host page        one MapEntry: 2^n pages, contiguous and aligned on both sides
//!
//!   00 ICM address │ 08 bus address, log2 of the pages in its lower bits
//! ```
//!
//! ICM is the card's own address space: INIT_HCA places the tables in it, MAP_ICM puts host memory
//! behind them. The card resolves it by itself, so a page must stay mapped for as long as an object
//! of the table's may lie there.

use zerocopy::big_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::layout;

/// Bytes of an ICM page.
pub const PAGE_LEN: u64 = 4096;
/// The same as a size in memory.
pub const PAGE: usize = 4096;
/// Entries that one mailbox holds.
pub const ENTRIES_PER_MAILBOX: usize = crate::command::MAILBOX_LEN / size_of::<MapEntry>();

/// One block of 2^n pages: where it appears and where it is.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MapEntry {
    /// ICM address; not used by MAP_FA and MAP_ICM_AUX, which take blocks in order.
    pub icm_addr: U64,
    block: U64,
}

layout!(MapEntry: 16, block @ 8);

impl MapEntry {
    const LOG_MASK: u64 = 0x1f;

    /// Maps 2^`log_pages` pages from bus address `addr`, aligned to as much, at `icm_addr`.
    #[must_use]
    pub fn new(icm_addr: u64, addr: u64, log_pages: u8) -> Self {
        Self {
            icm_addr: icm_addr.into(),
            block: (addr & !(PAGE_LEN - 1) | u64::from(log_pages) & Self::LOG_MASK).into(),
        }
    }

    /// The block's bus address.
    #[must_use]
    pub fn addr(&self) -> u64 {
        self.block.get() & !(PAGE_LEN - 1)
    }

    /// log2 of its pages.
    #[must_use]
    pub fn log_pages(&self) -> u8 {
        self.block.get().to_be_bytes()[7] & 0x1f
    }
}

impl core::fmt::Debug for MapEntry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (icm, bus) = (self.icm_addr.get(), self.addr());
        write!(
            f,
            "ICM {icm:#x} at bus {bus:#x}, 2^{} pages",
            self.log_pages()
        )
    }
}

/// The objects whose cMPT entries lie 2^24 entries apart: the cMPT's index is `kind << 24 |
/// number`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CmptKind {
    /// Queue pairs.
    Qp = 0,
    /// Shared receive queues.
    Srq = 1,
    /// Completion queues.
    Cq = 2,
    /// Event queues.
    Eq = 3,
}

impl CmptKind {
    /// log2 of the entries a kind has (Linux `main.c`, `MLX4_CMPT_SHIFT`).
    pub const LOG_ENTRIES: u8 = 24;

    /// The index of the kind's first entry.
    #[must_use]
    pub const fn first(self) -> u64 {
        (self as u64) << Self::LOG_ENTRIES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        // Linux fw.c: pages[nent * 2] = virt; pages[nent * 2 + 1] = (addr + i) | (lg -
        // MLX4_ICM_PAGE_SHIFT).
        let entry = MapEntry::new(0x1_1000_0000, 0x7654_0000, 6);
        assert_eq!(
            entry.as_bytes(),
            [0, 0, 0, 1, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x76, 0x54, 0, 6]
        );
        assert_eq!((entry.addr(), entry.log_pages()), (0x7654_0000, 6));
        assert_eq!(ENTRIES_PER_MAILBOX, 256);
        assert_eq!(CmptKind::Eq.first(), 3 << 24);
    }
}
