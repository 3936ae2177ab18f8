//! Memory translation table entries: the pages behind a region or a queue.
//!
//! Source: Linux `mr.c`, `mlx4_write_mtt_chunk` and `MLX4_MTT_FLAG_PRESENT`.
//!
//! # Shape
//!
//! ```text
//!  63                                12 11            3 2   1 0
//!  ├─────────── bus address ───────────┤      0        │  -  │P│      P: present
//! ```
//!
//! A queue's or a region's entries are consecutive. The page's size is not here but in the context
//! or MPT entry that names the first of them, by its byte offset in the table: byte `b` of the
//! object is at `entry[b >> log_page]`, offset `b & (page - 1)`. The table is host memory, so an
//! entry is valid from the store on: each one must be written before the command that names it
//! (Linux `mr.c`, `mlx4_write_mtt_chunk`; `cq.c`, `mlx4_cq_alloc`).

use zerocopy::big_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::layout;

/// Bytes of an entry.
pub const ENTRY_LEN: u64 = 8;

/// One page: its bus address and whether it is there.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct MttEntry(U64);

layout!(MttEntry: 8);

impl MttEntry {
    const PRESENT: u64 = 1;
    const ADDR: u64 = !7;

    /// The page at bus address `addr`, a multiple of the page's size.
    #[must_use]
    pub const fn new(addr: u64) -> Self {
        Self(U64::new(addr & Self::ADDR | Self::PRESENT))
    }

    /// The page's bus address, if the entry is valid.
    #[must_use]
    pub const fn addr(self) -> Option<u64> {
        let raw = self.0.get();
        if raw & Self::PRESENT == 0 {
            return None;
        }
        Some(raw & Self::ADDR)
    }
}

impl core::fmt::Debug for MttEntry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.addr() {
            Some(addr) => write!(f, "{addr:#x}"),
            None => f.write_str("absent"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        // Linux mr.c: mtts[i] = cpu_to_be64(page_list[i] | MLX4_MTT_FLAG_PRESENT).
        assert_eq!(
            MttEntry::new(0x7654_3000).as_bytes(),
            [0, 0, 0, 0, 0x76, 0x54, 0x30, 1]
        );
        assert_eq!(MttEntry::new(0x7654_3000).addr(), Some(0x7654_3000));
        assert_eq!(MttEntry::default().addr(), None);
    }
}
