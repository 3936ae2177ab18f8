//! Shared receive queues: their context and the segment that links their WQEs.
//!
//! Source: Linux `mlx4.h` (`struct mlx4_srq_context`), `include/linux/mlx4/srq.h` (`struct
//! mlx4_wqe_srq_next_seg`).
//!
//! # Shape
//!
//! ```text
//!  00 - - │ 02 number of the next entry │ 04 12 bytes unused      NextSegment
//!  10 length │ 14 key │ 18 address                                data segments, as in a receive
//! ```
//!
//! Receives of several queue pairs end in any order, so free entries are a list, not a ring:
//! software links them, the card follows the links (Linux `hw/mlx4/srq.c`, `mlx4_ib_free_srq_wqe`).

use bitfield_struct::bitfield;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::{Low, Low24, QueueBuffer, layout};

/// An SRQ's context.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SrqContext {
    /// State, size, number.
    pub size: SrqSize,
    /// log2 of a WQE's bytes, less 4.
    pub log_stride_less_4: Low<3>,
    _reserved_05: u8,
    /// XRC domain.
    pub xrcd: U16,
    /// Offset in the first page and the CQ (XRC).
    pub offset_cqn: SrqOffset,
    _reserved_0c: [u8; 4],
    /// The buffer.
    pub buffer: QueueBuffer,
    /// Protection domain.
    pub pd: Low24,
    /// The limit that is armed.
    pub limit: U16,
    /// WQEs there.
    pub wqe_count: U16,
    _reserved_20: [u8; 2],
    /// WQEs taken.
    pub wqe_counter: U16,
    _reserved_24: [u8; 4],
    /// Bus address of the doorbell record.
    pub doorbell_record: U64,
}

layout!(SrqContext: 48, log_stride_less_4 @ 4, xrcd @ 6, buffer @ 0x10, pd @ 0x18, limit @ 0x1c, wqe_count @ 0x1e, wqe_counter @ 0x22, doorbell_record @ 0x28);

/// First dword of an [`SrqContext`].
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct SrqSize {
    /// State.
    #[bits(4)]
    pub state: u8,
    /// log2 of the WQEs.
    #[bits(4)]
    pub log_size: u8,
    /// The SRQ.
    #[bits(24)]
    pub srqn: u32,
}

/// Page offset and CQ of an [`SrqContext`].
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct SrqOffset {
    /// Offset of the first WQE in its page, in 64s.
    #[bits(6)]
    pub page_offset: u8,
    #[bits(2)]
    __: u8,
    /// The CQ (XRC).
    #[bits(24)]
    pub cqn: u32,
}

/// First 16 bytes of an SRQ's WQE.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NextSegment {
    _reserved_00: [u8; 2],
    /// Index of the next WQE.
    pub next: U16,
    _reserved_04: [u8; 12],
}

layout!(NextSegment: 16, next @ 2);

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn golden() {
        // Linux srq.c: state_logsize_srqn = ilog2(max) << 24 | srqn; logstride = wqe_shift - 4; pd;
        // db_rec_addr.
        let mut srq = SrqContext::new_zeroed();
        srq.size = SrqSize::new().with_log_size(8).with_srqn(0x41);
        srq.log_stride_less_4 = Low::new(1);
        srq.pd = Low24::new(5);
        srq.doorbell_record = 0x40.into();
        let bytes = srq.as_bytes();
        assert_eq!(bytes[..5], [8, 0, 0, 0x41, 1]);
        assert_eq!((bytes[0x1b], bytes[0x2f]), (5, 0x40));
    }
}
