//! Completion queues: their context, their entries and their doorbell record.
//!
//! Source: Linux `mlx4.h` (`struct mlx4_cq_context`), `include/linux/mlx4/cq.h` (`struct mlx4_cqe`,
//! `struct mlx4_err_cqe`, `MLX4_CQE_*`), rdma-core `providers/mlx4/cq.c`.
//!
//! # Shape
//!
//! ```text
//!  00 QPN │ 04 immediate │ 08 sender's QPN │ 0c SL, LID │ 10 checksums │ 14 bytes
//!  18 counter │ 1a vendor's syndrome, syndrome │ 1c - - - │ 1f owner, send, opcode
//! ```
//!
//! The card writes an entry as one, with the last byte last. Software compares its owner bit with
//! the parity of the pass, so nobody has to clear an entry that was read (Linux `hw/mlx4/cq.c`,
//! `get_sw_cqe`). With entries of 64 bytes these 32 are the upper half (`get_cqe`).
//!
//! ```text
//!  doorbell record   00 consumer index: the card reads it when the queue seems full
//!                    04 sequence, command, consumer index: the last arming
//! ```

use bitfield_struct::bitfield;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::{Low24, QueueBuffer, layout, open_enum};
use crate::eq::QueueFlags;

/// A CQ's context (SW2HW_CQ's and MODIFY_CQ's input, QUERY_CQ's output).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CqContext {
    /// Status and state.
    pub flags: QueueFlags,
    _reserved_04: [u8; 6],
    /// Offset of the first entry in its page, in 32s.
    pub page_offset: U16,
    /// Entries and the UAR page that may arm it.
    pub size: CqSize,
    /// Moderation: microseconds.
    pub period: U16,
    /// Moderation: completions.
    pub max_count: U16,
    _reserved_14: [u8; 2],
    /// The EQ that completion events go to.
    pub eqn: U16,
    /// The buffer.
    pub buffer: QueueBuffer,
    /// Producer index at the last event.
    pub last_notified: Low24,
    /// Producer index at the last solicited completion.
    pub solicited: Low24,
    /// Consumer index.
    pub consumer: Low24,
    /// Producer index.
    pub producer: Low24,
    _reserved_30: [u8; 8],
    /// Bus address of the [`DoorbellRecord`], a multiple of 8.
    pub doorbell_record: U64,
}

layout!(CqContext: 0x40, page_offset @ 0x0a, size @ 0x0c, period @ 0x10, eqn @ 0x16, buffer @ 0x18,
    last_notified @ 0x20, consumer @ 0x28, doorbell_record @ 0x38);

/// Size and UAR of a [`CqContext`].
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct CqSize {
    #[bits(3)]
    __: u8,
    /// log2 of the entries.
    #[bits(5)]
    pub log_size: u8,
    /// The UAR page.
    #[bits(24)]
    pub uar: u32,
}

/// Armed for any completion.
pub const CQ_STATE_ARMED: u8 = 9;
/// Armed for solicited completions.
pub const CQ_STATE_ARMED_SOLICITED: u8 = 6;
/// Not armed.
pub const CQ_STATE_FIRED: u8 = 0xa;

/// A CQ's doorbell record in host memory, which the device reads.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DoorbellRecord {
    /// Consumer index.
    pub consumer: Low24,
    /// Last arming of the queue: [`CqArmRecord`](crate::regs::CqArmRecord).
    pub arm: U32,
}

layout!(DoorbellRecord: 8, arm @ 4);

/// Bytes of a completion queue entry.
pub const CQE_LEN: usize = 32;
/// Offset of the entry's last byte, [`CqeOwner`], which is read before the rest.
pub const CQE_OWNER_OFFSET: usize = 0x1f;
/// Every byte of an entry that software initialises itself (Linux `cq.c`, `mlx4_init_user_cqes`).
pub const CQE_INIT_BYTE: u8 = 0xcc;

/// A completion queue entry.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Cqe {
    /// The own QP (the upper byte has VLAN flags on Ethernet).
    pub qpn: Low24,
    /// Immediate data, or the index of the P_Key that a datagram came with (bits 6 to 0).
    pub immediate_or_pkey: U32,
    /// The sender of a datagram.
    pub remote: CqeRemote,
    /// Service level in the top four bits (InfiniBand).
    pub sl: crate::bits::High<4>,
    _reserved_0d: u8,
    /// The sender's LID.
    pub slid: U16,
    /// Checksum results, on Ethernet.
    pub checksum_status: U32,
    /// Bytes received or read; a datagram's include 40 for the GRH.
    pub byte_count: U32,
    /// WQE of the completion: for a send, the index of its first slot; for a receive, its number;
    /// both as counters of 16 bits.
    pub wqe_counter: U16,
    /// Checksum, or in an error entry the vendor's syndrome in the first byte.
    pub vendor_syndrome: u8,
    /// In an error entry: what went wrong.
    pub syndrome: Syndrome,
    _reserved_1c: [u8; 3],
    /// Opcode, direction and owner.
    pub owner: CqeOwner,
}

layout!(Cqe: 32, immediate_or_pkey @ 4, remote @ 8, sl @ 0x0c, slid @ 0x0e, byte_count @ 0x14, wqe_counter @ 0x18,
    syndrome @ 0x1b, owner @ 0x1f);

impl core::fmt::Debug for Cqe {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Cqe")
            .field("qpn", &self.qpn)
            .field("wqe", &self.wqe_counter.get())
            .field("bytes", &self.byte_count.get())
            .field("owner", &self.owner)
            .field("syndrome", &self.syndrome)
            .finish_non_exhaustive()
    }
}

impl Cqe {
    /// Replaces service level and sender by the time of the completion, 48 bits of the device's
    /// clock: entries of a CQ with [`QueueFlags::timestamps`] (rdma-core `providers/mlx4/mlx4dv.h`,
    /// `struct mlx4_cqe`: `ts_47_16`, `ts_15_8`, `ts_7_0`).
    pub fn set_timestamp(&mut self, cycles: u64) {
        let time = cycles.to_be_bytes();
        let bytes = self.as_mut_bytes();
        bytes[0x0c..0x10].copy_from_slice(&time[2..6]);
        bytes[0x1d..0x1f].copy_from_slice(&time[6..]);
    }

    /// Returns the time of the completion: see [`set_timestamp`](Self::set_timestamp).
    #[must_use]
    pub fn timestamp(&self) -> u64 {
        let mut time = [0; 8];
        let bytes = self.as_bytes();
        time[2..6].copy_from_slice(&bytes[0x0c..0x10]);
        time[6..].copy_from_slice(&bytes[0x1d..0x1f]);
        u64::from_be_bytes(time)
    }
}

/// Sender's dword of a [`Cqe`].
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct CqeRemote {
    /// The packet had a GRH.
    pub grh: bool,
    /// Low bits of the destination LID.
    #[bits(7)]
    pub path_bits: u8,
    /// The sender's QP.
    #[bits(24)]
    pub qpn: u32,
}

/// Last byte of a [`Cqe`].
#[bitfield(u8, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct CqeOwner {
    /// Inverted at each pass through the queue: in pass n the entry is valid when this is n's
    /// lowest bit.
    pub pass: bool,
    /// Of a send; a receive otherwise.
    pub send: bool,
    #[bits(1)]
    __: u8,
    /// Opcode of the completed request: a [`WqeOpcode`](crate::wqe::WqeOpcode) or a
    /// [`ReceiveOpcode`], or one of the constants here.
    #[bits(5)]
    pub opcode: u8,
}

/// Offset of a [`Cqe`]'s word [`CqeEnd`].
pub const CQE_END_OFFSET: usize = 0x18;
/// Offset of a [`Cqe`]'s dword [`CqeLast`].
pub const CQE_LAST_OFFSET: usize = 0x1c;

/// The last word of a [`Cqe`], for who reads an entry by words: which WQE it is of, and how that
/// ended.
#[bitfield(u64, order = Msb)]
#[derive(PartialEq, Eq)]
pub struct CqeEnd {
    /// Counter of the WQE.
    pub wqe: u16,
    /// The vendor's syndrome.
    pub vendor_syndrome: u8,
    /// In an error entry: what went wrong, a [`Syndrome`].
    pub syndrome: u8,
    #[bits(24)]
    __: u32,
    /// The owner byte: [`CqeOwner`].
    pub owner: u8,
}

impl CqeEnd {
    const PASS: u8 = CqeOwner::new().with_pass(true).into_bits();

    /// Returns the owner byte, but for the pass, of a send that was carried out, of a WQE with this
    /// opcode.
    #[must_use]
    pub fn success_of(opcode: u8) -> u8 {
        CqeOwner::new().with_send(true).with_opcode(opcode).into()
    }

    /// Returns the owner byte but for the pass: [`success_of`](Self::success_of) its WQE, if that
    /// was carried out.
    #[must_use]
    #[inline]
    pub fn kind(self) -> u8 {
        self.owner() & !Self::PASS
    }

    /// Returns whether the entry is of a send that failed.
    #[must_use]
    pub fn is_failure(self) -> bool {
        self.kind() == Self::success_of(CQE_OPCODE_ERROR)
    }
}

/// The last dword of a [`Cqe`] as a little-endian load reads it: [`CqeOwner`] is its last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CqeLast(pub u32);

impl CqeLast {
    const PASS: u32 = u32::from_le_bytes([0, 0, 0, CqeOwner::new().with_pass(true).into_bits()]);

    /// Returns a dword with this pass bit alone.
    #[must_use]
    pub const fn of_pass(pass: bool) -> Self {
        Self(if pass { Self::PASS } else { 0 })
    }

    /// Returns whether both have the same pass bit.
    #[must_use]
    #[inline]
    pub const fn has_pass_of(self, other: Self) -> bool {
        (self.0 ^ other.0) & Self::PASS == 0
    }
}

/// Opcode of an entry that reports an error (Linux `MLX4_CQE_OPCODE_ERROR`).
pub const CQE_OPCODE_ERROR: u8 = 0x1e;
/// Opcode of the last entry before a resize (Linux `MLX4_CQE_OPCODE_RESIZE`).
pub const CQE_OPCODE_RESIZE: u8 = 0x16;

/// Opcodes of receive completions (Linux `MLX4_RECV_OPCODE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveOpcode;

impl ReceiveOpcode {
    /// A WRITE with immediate arrived.
    pub const WRITE_IMM: u8 = 0;
    /// A SEND.
    pub const SEND: u8 = 1;
    /// A SEND with immediate.
    pub const SEND_IMM: u8 = 2;
    /// A SEND that invalidates a key.
    pub const SEND_INVAL: u8 = 3;
}

open_enum! {
    /// Syndrome of an error completion (Linux `cq.h`, `MLX4_CQE_SYNDROME_*`).
    #[derive(zerocopy::Unaligned)]
    pub struct Syndrome(u8) {
        /// No error, or not an error entry.
        NONE = 0x00,
        /// The payload does not fit.
        LOCAL_LENGTH_ERR = 0x01,
        /// The QP or the request is inconsistent.
        LOCAL_QP_OP_ERR = 0x02,
        /// A local key does not cover what was asked.
        LOCAL_PROT_ERR = 0x04,
        /// The QP is in error; the request was not carried out.
        WR_FLUSH_ERR = 0x05,
        /// A window could not be bound.
        MW_BIND_ERR = 0x06,
        /// The peer's answer makes no sense.
        BAD_RESP_ERR = 0x10,
        /// A local access failed while receiving.
        LOCAL_ACCESS_ERR = 0x11,
        /// The peer finds the request invalid.
        REMOTE_INVAL_REQ_ERR = 0x12,
        /// The peer refused the access.
        REMOTE_ACCESS_ERR = 0x13,
        /// The peer could not carry it out.
        REMOTE_OP_ERR = 0x14,
        /// No acknowledgement within the retries.
        TRANSPORT_RETRY_EXC_ERR = 0x15,
        /// The peer was not ready within the retries.
        RNR_RETRY_EXC_ERR = 0x16,
        /// The peer aborted.
        REMOTE_ABORTED_ERR = 0x22,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wqe::WqeOpcode;
    use zerocopy::FromZeros;

    #[test]
    fn golden_context() {
        // Linux cq.c, mlx4_cq_alloc: logsize_usrpage = ilog2(nent) << 24 | uar; comp_eqn;
        // db_rec_addr.
        let mut cq = CqContext::new_zeroed();
        cq.size = CqSize::new().with_log_size(8).with_uar(0x80);
        cq.eqn = 5.into();
        cq.buffer = QueueBuffer::new(0x8_0000, 12);
        cq.doorbell_record = 0x7000_0040.into();
        let bytes = cq.as_bytes();
        assert_eq!(bytes[0x0c..0x10], [8, 0, 0, 0x80]);
        assert_eq!(bytes[0x17], 5);
        assert_eq!(bytes[0x18..0x20], [0, 0, 0, 0, 0, 8, 0, 0]);
        assert_eq!(bytes[0x38..], [0, 0, 0, 0, 0x70, 0, 0, 0x40]);
    }

    #[test]
    fn golden_entry() {
        // Linux cq.h: vlan_my_qpn, immed_rss_invalid, g_mlpath_rqpn, sl_vid be16 at 0x0c, rlid,
        // status, ..., byte_cnt, wqe_index, checksum, owner_sr_opcode; MLX4_CQE_IS_SEND_MASK 0x40,
        // OWNER 0x80, OPCODE 0x1f.
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&[0, 0, 2, 8]);
        bytes[7] = 3;
        bytes[8..12].copy_from_slice(&[0x80, 0, 0, 1]);
        bytes[12] = 0x50;
        bytes[15] = 9;
        bytes[0x14..0x18].copy_from_slice(&[0, 0, 1, 40]);
        bytes[0x18..0x1a].copy_from_slice(&[0xff, 0xfe]);
        bytes[0x1f] = 0x81;
        let cqe = Cqe::read_from_bytes(&bytes).unwrap();
        assert_eq!((cqe.qpn.get(), cqe.immediate_or_pkey.get()), (0x208, 3));
        assert!(cqe.remote.grh());
        assert_eq!((cqe.remote.qpn(), cqe.sl.get(), cqe.slid.get()), (1, 5, 9));
        assert_eq!((cqe.byte_count.get(), cqe.wqe_counter.get()), (296, 0xfffe));
        assert!(cqe.owner.pass() && !cqe.owner.send());
        assert_eq!(cqe.owner.opcode(), ReceiveOpcode::SEND);
    }

    #[test]
    fn golden_timestamp() {
        // rdma-core providers/mlx4/mlx4dv.h: ts_47_16 be32 at 0x0c, ts_15_8 at 0x1d, ts_7_0 at
        // 0x1e.
        let mut cqe = Cqe::new_zeroed();
        cqe.byte_count = 7.into();
        cqe.set_timestamp(0xffff_1234_5678_9abc);
        assert_eq!(cqe.as_bytes()[0x0c..0x10], [0x12, 0x34, 0x56, 0x78]);
        assert_eq!(cqe.as_bytes()[0x1c..0x20], [0, 0x9a, 0xbc, 0]);
        assert_eq!(
            (cqe.timestamp(), cqe.byte_count.get()),
            (0x1234_5678_9abc, 7)
        );
    }

    #[test]
    fn golden_error_entry() {
        // Linux cq.h, struct mlx4_err_cqe: my_qpn, wqe_index at 0x18, vendor_err_syndrome 0x1a,
        // syndrome 0x1b, owner 0x1f.
        let mut cqe = Cqe::new_zeroed();
        cqe.syndrome = Syndrome::REMOTE_ACCESS_ERR;
        cqe.vendor_syndrome = 0x88;
        cqe.owner = CqeOwner::new()
            .with_send(true)
            .with_opcode(CQE_OPCODE_ERROR);
        assert_eq!(cqe.as_bytes()[0x1a..], [0x88, 0x13, 0, 0, 0, 0x5e]);
    }

    #[test]
    fn an_entry_read_by_words_says_the_same() {
        let mut cqe = Cqe::new_zeroed();
        cqe.wqe_counter = 0x1234.into();
        cqe.syndrome = Syndrome::REMOTE_ACCESS_ERR;
        cqe.owner = CqeOwner::new()
            .with_pass(true)
            .with_send(true)
            .with_opcode(CQE_OPCODE_ERROR);
        let end = cqe.as_bytes()[CQE_END_OFFSET..]
            .try_into()
            .expect("eight bytes");
        let end = CqeEnd::from(u64::from_be_bytes(end));
        assert_eq!(
            (end.wqe(), Syndrome(end.syndrome())),
            (0x1234, cqe.syndrome)
        );
        assert!(end.is_failure() && end.kind() != CqeEnd::success_of(WqeOpcode::RDMA_READ.0));
        let last = cqe.as_bytes()[CQE_LAST_OFFSET..]
            .try_into()
            .expect("four bytes");
        let last = CqeLast(u32::from_le_bytes(last));
        assert!(last.has_pass_of(CqeLast::of_pass(true)));
        assert!(!last.has_pass_of(CqeLast::of_pass(false)));
    }
}
