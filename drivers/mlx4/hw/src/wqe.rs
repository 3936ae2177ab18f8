//! Work queue entries: the segments that sends and receives are made of.
//!
//! Source: Linux `include/linux/mlx4/qp.h` (`struct mlx4_wqe_*_seg`, `MLX4_WQE_CTRL_*`),
//! `include/linux/mlx4/device.h` (`MLX4_OPCODE_*`), rdma-core `providers/mlx4/qp.c`.
//!
//! # Shape
//!
//! A send takes one slot or several: segments of 16 bytes, in blocks of 64 (Linux `hw/mlx4/qp.c`,
//! `_mlx4_ib_post_send`). `E` is written last.
//!
//! ```text
//!  block 0  00 E opcode │ 04 … size │ 08 flags   │ 0c immediate      control segment
//!           10 remote address       │ 18 key     │ 1c -              READ, WRITE, atomics
//!           20 length   │ 24 key    │ 28 address                     data segment, one a piece
//!           30 the next segment
//!  block 1  40 length or STAMP: 0xffffffff means that the block is not written yet
//! ```
//!
//! The card reads the ring ahead of its doorbell, 64 bytes at a time. It knows a block that is not
//! written by the owner bit in block 0 and by the stamp in the others, so the first dword of each
//! block follows all the block's other bytes (Linux `set_data_seg`: a valid byte count with stale
//! data behind it would be sent).
//!
//! A receive is only data segments, ended by one under an invalid key where fewer than the slot
//! holds are used. It has no owner bit: the doorbell record counts the receives that are there.
//!
//! # Ownership
//!
//! A slot goes round between software and card without a lock. The send ring's head is software's;
//! its tail follows completions. No WQE is written over before its completion or that of a later
//! one. The card prefetches beyond the head, so the ring is never filled: its last 2 KB and one WQE
//! stay stamped (Linux `hw/mlx4/qp.c`, `set_kernel_sq_size`).
//!
//! ```text
//!            tail             head            head + headroom
//!   completed │ outstanding     │ stamped        │ completed …
//!   ──────────┴─────────────────┴────────────────┴──────────── ring
//!              the card's         prefetched, not executed
//! ```
//!
//! The order of a send is fixed: data segments from the last block to the first, each block's first
//! dword behind the block's rest; the control segment but for its first dword; a fence; the owner.
//! From that store on the card may execute the WQE. The doorbell only wakes a card that had
//! stopped.

use core::mem::offset_of;

use bitfield_struct::bitfield;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::{Low24, layout, open_enum};
use crate::path::AddressVector;

/// Smallest slot of a send queue, and the block that inline data may not cross and that is stamped.
pub const BASIC_BLOCK_LEN: usize = 1 << LOG_BASIC_BLOCK_LEN;
/// log2 of it.
pub const LOG_BASIC_BLOCK_LEN: u32 = 6;
/// Unit of sizes in a WQE, in bytes.
pub const SEGMENT_UNIT: usize = 16;
/// Bytes of a send queue that stay free for the device's prefetching (Linux `mlx4_ib`,
/// `sq_overhead`: 2048 bytes and one slot).
pub const SEND_HEADROOM_LEN: u32 = 2048;
/// First dword of each block of a slot that the device must not take for a WQE (Linux
/// `stamp_send_wqe`).
pub const STAMP: u32 = 0xffff_ffff;

open_enum! {
    /// Opcode of a send; also that of its completion.
    pub struct WqeOpcode(u8) {
        /// Nothing.
        NOP = 0x00,
        /// SEND that invalidates a key of the peer.
        SEND_INVAL = 0x01,
        /// RDMA WRITE.
        RDMA_WRITE = 0x08,
        /// RDMA WRITE with immediate.
        RDMA_WRITE_IMM = 0x09,
        /// SEND.
        SEND = 0x0a,
        /// SEND with immediate.
        SEND_IMM = 0x0b,
        /// Large segment offload.
        LSO = 0x0e,
        /// RDMA READ.
        RDMA_READ = 0x10,
        /// Compare and swap.
        ATOMIC_CS = 0x11,
        /// Fetch and add.
        ATOMIC_FA = 0x12,
        /// Masked compare and swap.
        MASKED_ATOMIC_CS = 0x14,
        /// Masked fetch and add.
        MASKED_ATOMIC_FA = 0x15,
        /// Binds a window.
        BIND_MW = 0x18,
        /// Registers a region.
        FAST_REGISTER = 0x19,
        /// Invalidates a key.
        LOCAL_INVALIDATE = 0x1b,
    }
}

/// The control segment that begins a send.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ControlSegment {
    /// Owner and opcode: written last.
    pub owner: ControlOwner,
    _vlan: [u8; 3],
    /// Fence and size.
    pub size: ControlSize,
    /// Completion and solicitation.
    pub flags: ControlFlags,
    /// Immediate data, or the key to invalidate.
    pub immediate: U32,
}

layout!(ControlSegment: 16, size @ 7, flags @ 8, immediate @ 0x0c);

/// First dword of a send.
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct ControlOwner {
    /// Inverted at each pass through the queue: in pass n the WQE is valid when this is n's lowest
    /// bit.
    pub pass: bool,
    #[bits(26)]
    __: u32,
    /// Opcode of the request.
    #[bits(5)]
    pub opcode: WqeOpcode,
}

/// Fence and size of a send.
#[bitfield(u8, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct ControlSize {
    #[bits(1)]
    __: u8,
    /// Waits for earlier READs.
    pub fence: bool,
    /// Size in units of [`SEGMENT_UNIT`].
    #[bits(6)]
    pub units: u8,
}

/// Flags of a send.
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct ControlFlags {
    /// Shared receive queue of an XRC peer.
    #[bits(24)]
    pub xrc_srqn: u32,
    /// Strong ordering.
    pub strong_order: bool,
    #[bits(1)]
    __: u8,
    /// Compute the TCP or UDP checksum.
    pub tcp_udp_checksum: bool,
    /// Compute the IP checksum.
    pub ip_checksum: bool,
    /// [`COMPLETION_WANTED`] or 0.
    #[bits(2)]
    pub completion: u8,
    /// The peer's completion is solicited.
    pub solicited: bool,
    /// Loops back whatever the destination.
    pub force_loopback: bool,
}

/// Success is to make a completion (Linux `MLX4_WQE_CTRL_CQ_UPDATE`, 3 << 2).
pub const COMPLETION_WANTED: u8 = 3;

/// The control segment of a send whose headers software gives (QP0 and QP1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MlxControlSegment {
    /// Owner and opcode: written last.
    pub owner: ControlOwner,
    _schedule: [u8; 3],
    /// Fence and size.
    pub size: ControlSize,
    /// Flags of the send.
    pub flags: MlxControlFlags,
    /// The destination LID.
    pub remote_lid: U16,
    _reserved_0e: [u8; 2],
}

layout!(MlxControlSegment: 16, size @ 7, flags @ 8, remote_lid @ 0x0c);

/// Flags of a [`MlxControlSegment`] (Linux `MLX4_WQE_MLX_*`).
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct MlxControlFlags {
    #[bits(14)]
    __: u16,
    /// Sends on virtual lane 15.
    pub vl15: bool,
    /// Takes the source LID from the given headers, not from the port.
    pub slid_from_header: bool,
    /// Static rate.
    #[bits(4)]
    pub static_rate: u8,
    /// Service level.
    #[bits(4)]
    pub sl: u8,
    #[bits(3)]
    __: u8,
    /// Takes the ICRC from the given bytes; the device computes it otherwise.
    pub keep_icrc: bool,
    /// [`COMPLETION_WANTED`] or 0.
    #[bits(2)]
    pub completion: u8,
    #[bits(1)]
    __: u8,
    /// Loops back whatever the destination.
    pub force_loopback: bool,
}

/// Remote address of an RDMA WRITE or READ.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RemoteAddressSegment {
    /// The peer's virtual address.
    pub addr: U64,
    /// The peer's key.
    pub rkey: U32,
    _reserved_0c: [u8; 4],
}

layout!(RemoteAddressSegment: 16, rkey @ 8);

impl RemoteAddressSegment {
    /// A segment naming `addr` under `rkey`.
    #[must_use]
    pub fn new(addr: u64, rkey: u32) -> Self {
        Self {
            addr: addr.into(),
            rkey: rkey.into(),
            _reserved_0c: [0; 4],
        }
    }
}

/// Operands of an atomic.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AtomicSegment {
    /// Bits to swap in, or the number to add.
    pub swap_add: U64,
    /// Bits to compare with.
    pub compare: U64,
}

layout!(AtomicSegment: 16, compare @ 8);

/// Destination of a datagram.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DatagramSegment {
    /// The way.
    pub vector: AddressVector,
    /// The QP.
    pub qpn: Low24,
    /// Its Q_Key; with the top bit set, the sending QP's own is used.
    pub qkey: U32,
    /// VLAN, on Ethernet.
    pub vlan: U16,
    /// MAC address, on Ethernet.
    pub mac: [u8; 6],
}

layout!(DatagramSegment: 48, qpn @ 0x20, qkey @ 0x24, vlan @ 0x28, mac @ 0x2a);

/// A piece of memory to send from or receive into.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct DataSegment {
    /// Its length (31 bits); with the top bit set this is an [`InlineHeader`] instead.
    pub len: U32,
    /// The local key.
    pub lkey: U32,
    /// The address.
    pub addr: U64,
}

layout!(DataSegment: 16, lkey @ 4, addr @ 8);

impl DataSegment {
    /// The piece of `len` bytes (below 2^31) at `addr` under `lkey`.
    #[must_use]
    pub fn new(addr: u64, len: u32, lkey: u32) -> Self {
        Self {
            len: len.into(),
            lkey: lkey.into(),
            addr: addr.into(),
        }
    }

    /// A piece of no bytes that ends a receive's list (Linux `mlx4_ib_post_recv`).
    #[must_use]
    pub fn end() -> Self {
        Self::new(0, 0, crate::mpt::INVALID_LKEY)
    }
}

/// A READ or WRITE of one piece on a connection: it fills one block, so nothing behind it needs a
/// stamp.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PageWqe {
    control: ControlSegment,
    remote: RemoteAddressSegment,
    data: DataSegment,
    _unused: [u8; 16],
}

layout!(PageWqe: 64, remote @ 0x10, data @ 0x20);

impl PageWqe {
    /// Offset of [`owner`](Self::owner).
    pub const OWNER: usize = offset_of!(Self, control.owner);
    /// Offset of [`body`](Self::body).
    pub const BODY: usize = offset_of!(Self, control.flags);

    /// Builds what stands in a slot before its first WQE: its size, and an owner that is not the
    /// device in pass 0.
    #[must_use]
    pub fn template() -> Self {
        let mut wqe = Self::new_zeroed();
        wqe.control.owner = ControlOwner::new().with_pass(true);
        // Control, remote address, one piece.
        wqe.control.size = ControlSize::new().with_units(3);
        wqe
    }

    /// Returns the words from the flags on to the local address, as little-endian stores write
    /// them: the two of constants ready made, the others turned.
    #[must_use]
    #[inline]
    pub fn body(flags: u64, (remote, rkey): (u64, u32), piece: u64, local: u64) -> [u64; 5] {
        let rkey = rkey.swap_bytes().into();
        [flags, remote.swap_bytes(), rkey, piece, local.swap_bytes()]
    }

    /// Returns the word of a piece's length and local key, as a little-endian store writes it.
    #[must_use]
    pub fn piece(len: u32, lkey: u32) -> u64 {
        let [piece, _]: [u64; 2] = zerocopy::transmute!(DataSegment::new(0, len, lkey));
        piece
    }

    /// Returns the first dword, as a little-endian store writes it.
    #[must_use]
    pub fn owner(opcode: WqeOpcode, pass: bool) -> u32 {
        let owner = ControlOwner::new().with_pass(pass).with_opcode(opcode);
        zerocopy::transmute!(owner)
    }

    /// Returns the word of the flags and of no immediate, as a little-endian store writes it.
    #[must_use]
    pub fn flags(signalled: bool) -> u64 {
        let completion = if signalled { COMPLETION_WANTED } else { 0 };
        let flags = ControlFlags::new().with_completion(completion);
        zerocopy::transmute!([flags, ControlFlags::new()])
    }
}

/// Header of bytes that are in the WQE itself; they may not cross a [`BASIC_BLOCK_LEN`] boundary.
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct InlineHeader {
    /// Set: what follows is data.
    pub inline: bool,
    /// Bytes that follow.
    #[bits(31)]
    pub bytes: u32,
}

/// Bytes of an [`InlineHeader`].
pub const INLINE_HEADER_LEN: usize = size_of::<InlineHeader>();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_control() {
        // Linux qp.h: MLX4_WQE_CTRL_CQ_UPDATE 3 << 2, SOLICITED 1 << 1, FENCE 1 << 6, STRONG_ORDER
        // 1 << 7, FORCE_LOOPBACK 1 << 0; owner bit 31.
        let mut control = ControlSegment::new_zeroed();
        control.owner = ControlOwner::new()
            .with_pass(true)
            .with_opcode(WqeOpcode::RDMA_WRITE_IMM);
        control.size = ControlSize::new().with_fence(true).with_units(3);
        control.flags = ControlFlags::new()
            .with_completion(COMPLETION_WANTED)
            .with_solicited(true);
        control.immediate = 0x0102_0304.into();
        assert_eq!(
            control.as_bytes(),
            [0x80, 0, 0, 9, 0, 0, 0, 0x43, 0, 0, 0, 0x0e, 1, 2, 3, 4]
        );
    }

    #[test]
    fn a_page_wqe_is_the_segments_of_a_read() {
        let template = PageWqe::template();
        let mut bytes = [0; 64];
        bytes.copy_from_slice(template.as_bytes());
        assert_eq!(bytes[..4], [0x80, 0, 0, 0]);
        let mut put = |at: usize, word: &[u8]| bytes[at..at + word.len()].copy_from_slice(word);
        let owner = PageWqe::owner(WqeOpcode::RDMA_READ, false).to_le_bytes();
        put(PageWqe::OWNER, &owner);
        let (flags, piece) = (PageWqe::flags(true), PageWqe::piece(4096, 0x300));
        let body = PageWqe::body(flags, (0x1000, 0x77), piece, 0x2000);
        put(PageWqe::BODY, body.map(u64::to_le_bytes).as_flattened());
        let mut control = ControlSegment::new_zeroed();
        control.owner = ControlOwner::new().with_opcode(WqeOpcode::RDMA_READ);
        control.size = ControlSize::new().with_units(3);
        control.flags = ControlFlags::new().with_completion(COMPLETION_WANTED);
        let remote = RemoteAddressSegment::new(0x1000, 0x77);
        let data = DataSegment::new(0x2000, 4096, 0x300);
        let whole = [
            control.as_bytes(),
            remote.as_bytes(),
            data.as_bytes(),
            &[0; 16],
        ]
        .concat();
        assert_eq!(bytes[..], whole);
    }

    #[test]
    fn golden_mlx_control() {
        // Linux mlx4 ib qp.c, build_mlx_header: VL15 1 << 17, SLR 1 << 16, sl << 8, ICRC 1 << 4;
        // rlid be16 at 0x0c.
        let mut control = MlxControlSegment::new_zeroed();
        control.owner = ControlOwner::new().with_opcode(WqeOpcode::SEND);
        control.size = ControlSize::new().with_units(8);
        control.flags = MlxControlFlags::new()
            .with_vl15(true)
            .with_slid_from_header(true)
            .with_sl(5)
            .with_completion(COMPLETION_WANTED);
        control.remote_lid = 0xffff.into();
        assert_eq!(
            control.as_bytes(),
            [0, 0, 0, 0x0a, 0, 0, 0, 8, 0, 3, 5, 0x0c, 0xff, 0xff, 0, 0]
        );
    }

    #[test]
    fn golden_segments() {
        // Linux qp.h: struct mlx4_wqe_data_seg { byte_count, lkey, addr }; raddr { raddr, rkey,
        // reserved }.
        assert_eq!(
            DataSegment::new(0x1000, 0x20, 0x300).as_bytes(),
            [0, 0, 0, 0x20, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0x10, 0]
        );
        assert_eq!(
            RemoteAddressSegment::new(0x1000, 0x300).as_bytes(),
            [0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 3, 0, 0, 0, 0, 0]
        );
        assert_eq!(DataSegment::end().as_bytes()[..8], [0, 0, 0, 0, 0, 0, 1, 0]);
        // MLX4_INLINE_SEG 1 << 31.
        let inline = InlineHeader::new().with_inline(true).with_bytes(44);
        assert_eq!(inline.as_bytes(), [0x80, 0, 0, 44]);
        // struct mlx4_wqe_datagram_seg: av[8], dqpn, qkey, vlan, mac.
        let mut datagram = DatagramSegment::new_zeroed();
        datagram.qpn = Low24::new(1);
        datagram.qkey = 0x8001_0000.into();
        assert_eq!(datagram.as_bytes()[0x20..0x28], [0, 0, 0, 1, 0x80, 1, 0, 0]);
    }
}
