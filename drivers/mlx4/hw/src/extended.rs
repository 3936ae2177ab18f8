//! Send segments beyond the basics: registration and invalidation by work request, masked atomics.
//!
//! Source: Linux `include/linux/mlx4/qp.h` (`struct mlx4_wqe_fmr_seg`, `struct
//! mlx4_wqe_local_inval_seg`, `struct mlx4_wqe_masked_atomic_seg`), `infiniband/hw/mlx4/qp.c`
//! (`convert_access`, `set_reg_seg`).

use bitfield_struct::bitfield;
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::layout;

/// Registers a region: the page list becomes its translation.
#[derive(
    Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct FastRegisterSegment {
    /// Rights and kind.
    pub flags: FastRegisterFlags,
    /// The region's key.
    pub key: U32,
    /// Bus address of the page list: entries like the MTT's.
    pub page_list: U64,
    /// First virtual address.
    pub start: U64,
    /// Length in bytes.
    pub len: U64,
    /// Offset of the first byte in the first page.
    pub first_byte_offset: U32,
    /// log2 of a page's bytes.
    pub log_page: U32,
    /// Reserved.
    pub reserved: [U32; 2],
}

layout!(FastRegisterSegment: 48, key @ 4, page_list @ 8, start @ 0x10, len @ 0x18, first_byte_offset @ 0x20,
    log_page @ 0x24);

/// First dword of a [`FastRegisterSegment`].
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct FastRegisterFlags {
    /// Peers may do atomics.
    pub atomic: bool,
    /// Peers may WRITE.
    pub remote_write: bool,
    /// Peers may READ.
    pub remote_read: bool,
    /// This HCA may write.
    pub local_write: bool,
    /// This HCA may read.
    pub local_read: bool,
    /// `first_byte_offset` counts.
    pub first_byte_enable: bool,
    /// Bit 64 of the length.
    pub len_64: bool,
    #[bits(3)]
    __: u8,
    /// Windows may be bound.
    pub bind: bool,
    /// Blocks in place of pages.
    pub block: bool,
    #[bits(20)]
    __: u32,
}

/// Takes a key back.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LocalInvalidateSegment {
    /// Reserved.
    pub reserved_00: U64,
    /// The key.
    pub key: U32,
    /// Reserved.
    pub reserved_0c: [U32; 5],
}

layout!(LocalInvalidateSegment: 32, key @ 8);

/// Operands of a masked compare and swap.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct MaskedAtomicSegment {
    /// Bits to swap in.
    pub swap_add: U64,
    /// Bits to compare with.
    pub compare: U64,
    /// Mask of the bits to swap.
    pub swap_add_mask: U64,
    /// Mask of the bits to compare.
    pub compare_mask: U64,
}

layout!(MaskedAtomicSegment: 32, swap_add_mask @ 0x10, compare_mask @ 0x18);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_fast_registration() {
        // Linux qp.h: MLX4_WQE_FMR_PERM_LOCAL_READ 1 << 27, LOCAL_WRITE 28, REMOTE_READ 29,
        // REMOTE_WRITE 30, ATOMIC 31.
        let flags = FastRegisterFlags::new()
            .with_local_read(true)
            .with_remote_write(true);
        assert_eq!(flags.as_bytes(), (1_u32 << 27 | 1 << 30).to_be_bytes());
        // MLX4_WQE_FMR: fbo enable bit 26, len64 bit 25.
        let flags = FastRegisterFlags::new()
            .with_first_byte_enable(true)
            .with_len_64(true);
        assert_eq!(flags.as_bytes(), (1_u32 << 26 | 1 << 25).to_be_bytes());
    }

    #[test]
    fn golden_invalidation() {
        // Linux qp.h: struct mlx4_wqe_local_inval_seg { u64 reserved1; be32 mem_key; u32 reserved2;
        // u64 reserved3[2]; }.
        let mut bytes = [0; 32];
        bytes[8..12].copy_from_slice(&[1, 2, 3, 4]);
        let segment = LocalInvalidateSegment::read_from_bytes(&bytes).unwrap();
        assert_eq!(segment.key.get(), 0x0102_0304);
    }
}
