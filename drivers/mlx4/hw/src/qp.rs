//! Queue pairs: their context and the mailbox of their transitions.
//!
//! Source: Linux `include/linux/mlx4/qp.h` (`struct mlx4_qp_context`, `enum mlx4_qp_optpar`, `enum
//! mlx4_qp_state`), `qp.c`.
//!
//! # Shape
//!
//! ```text
//!  00 state, service │ 04 domain │ 08 MTU, sizes of both queues │ 0c UAR page
//!  10 own QPN │ 14 peer's QPN │ 18 path, 44 bytes │ 44 other path
//!  70 requester: retries, READs in flight       │ 78 next PSN to send │ 7c send CQ
//!  90 responder: rights, READs to answer        │ 94 RNR timer, next PSN to take │ 9c receive CQ
//!  a0 doorbell record (64 bits) │ a8 Q_Key │ ac shared receive queue │ c8 buffer
//! ```
//!
//! A transition's mailbox is a mask of optional fields and a whole context. The card takes what the
//! transition demands, and of the rest only what the mask names (Linux `hw/mlx4/qp.c`,
//! `__mlx4_ib_modify_qp`, `optpar`).

use bitfield_struct::bitfield;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::{Low24, QueueBuffer, layout, open_enum};
use crate::path::Path;

/// The mailbox of a transition: which optional parameters count, and the context. QUERY_QP answers
/// in the same form.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct QpMailbox {
    /// Optional parameters.
    pub optional: OptionalParameters,
    _reserved_04: [u8; 4],
    /// The context.
    pub context: QpContext,
}

layout!(QpMailbox: 0x100, context @ 8);

/// Optional fields that a transition takes besides those that it always takes (Linux
/// `MLX4_QP_OPTPAR_*`).
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Lsb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct OptionalParameters {
    /// Alternate path.
    pub alternate_path: bool,
    /// Peers may READ.
    pub remote_read: bool,
    /// Peers may do atomics.
    pub remote_atomic: bool,
    /// Peers may WRITE.
    pub remote_write: bool,
    /// Partition key index.
    pub pkey_index: bool,
    /// Q_Key.
    pub qkey: bool,
    /// RNR timer.
    pub rnr_timer: bool,
    /// Primary path.
    pub primary_path: bool,
    /// READs outstanding as requester.
    pub reads_as_requester: bool,
    /// READs answered at once.
    pub reads_as_responder: bool,
    /// Path migration state.
    pub path_migration: bool,
    #[bits(1)]
    __: u8,
    /// Retry count.
    pub retry_count: bool,
    /// RNR retry count.
    pub rnr_retry: bool,
    /// ACK timeout.
    pub ack_timeout: bool,
    #[bits(1)]
    __: u8,
    /// Port and service level.
    pub schedule: bool,
    /// RSS context.
    pub rss: bool,
    /// Shared receive queue.
    pub srqn: bool,
    /// Receive CQ.
    pub receive_cqn: bool,
    /// Counter index.
    pub counter_index: bool,
    /// VLAN stripping.
    pub vlan_strip: bool,
    #[bits(10)]
    __: u16,
}

/// A QP's context.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct QpContext {
    /// State and transport.
    pub flags: QpFlags,
    /// Protection domain.
    pub pd: Low24,
    /// Path MTU and longest message.
    pub mtu: MtuMessage,
    /// Receive queue's size.
    pub receive_queue: QueueSize,
    /// Send queue's size.
    pub send_queue: QueueSize,
    /// Reserved L_Key and RoCE mode.
    pub rlkey: RlkeyRoce,
    /// The UAR page that may ring it.
    pub uar: Low24,
    /// Own number.
    pub local_qpn: Low24,
    /// The peer's number.
    pub remote_qpn: Low24,
    /// The way to the peer.
    pub primary_path: Path,
    /// Another way.
    pub alternate_path: Path,
    /// Requester's parameters.
    pub requester: RequesterParameters,
    _reserved_74: [u8; 4],
    /// The next PSN to send.
    pub next_send_psn: Low24,
    /// Send CQ.
    pub send_cqn: Low24,
    /// Source port of RoCE v2.
    pub roce_entropy: U16,
    _reserved_82: [u8; 6],
    /// Last PSN acknowledged.
    pub last_acked_psn: Low24,
    /// Send sequence number.
    pub ssn: Low24,
    /// Responder's parameters.
    pub responder: ResponderParameters,
    /// RNR timer and the next PSN to receive.
    pub receive_psn: RnrReceivePsn,
    /// XRC domain.
    pub xrcd: Low24,
    /// Receive CQ.
    pub receive_cqn: Low24,
    /// Bus address of the receive queue's doorbell record: one dword with the counter of WQEs
    /// posted.
    pub doorbell_record: U64,
    /// Q_Key.
    pub qkey: U32,
    /// Shared receive queue.
    pub srq: SrqUse,
    /// Message sequence number.
    pub msn: Low24,
    /// WQEs received into.
    pub receive_counter: U16,
    /// WQEs sent.
    pub send_counter: U16,
    _reserved_b8: [u8; 4],
    /// Rate limit.
    pub rate_limit: U16,
    _reserved_be: u8,
    /// Virtual port for quality of service.
    pub qos_vport: u8,
    /// Ethernet receive options.
    pub param3: U32,
    /// Multicast peers and base key.
    pub multicast: U32,
    /// The buffer of both work queues, the one with the larger stride first.
    pub buffer: QueueBuffer,
    _reserved_d0: [u8; 40],
}

layout!(QpContext: 0xf8, pd @ 4, mtu @ 8, receive_queue @ 9, send_queue @ 0x0a, rlkey @ 0x0b, uar @ 0x0c,
    local_qpn @ 0x10, remote_qpn @ 0x14, primary_path @ 0x18, alternate_path @ 0x44, requester @ 0x70,
    next_send_psn @ 0x78, send_cqn @ 0x7c, roce_entropy @ 0x80, last_acked_psn @ 0x88, ssn @ 0x8c, responder @ 0x90,
    receive_psn @ 0x94, receive_cqn @ 0x9c, doorbell_record @ 0xa0, qkey @ 0xa8, srq @ 0xac, msn @ 0xb0,
    receive_counter @ 0xb4, send_counter @ 0xb6, rate_limit @ 0xbc, qos_vport @ 0xbf, param3 @ 0xc0,
    multicast @ 0xc4, buffer @ 0xc8);

/// First dword of a [`QpContext`].
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct QpFlags {
    /// State.
    #[bits(4)]
    pub state: QpState,
    #[bits(8)]
    __: u8,
    /// Transport.
    #[bits(4)]
    pub service: Service,
    #[bits(2)]
    __: u8,
    /// The context has an RSS context in it.
    pub rss: bool,
    /// [`PATH_MIGRATED`] and so on.
    #[bits(2)]
    pub path_migration: u8,
    #[bits(11)]
    __: u16,
}

/// Path migration state: migrated, that is, there is one path.
pub const PATH_MIGRATED: u8 = 3;

open_enum! {
    /// A QP's state (Linux `enum mlx4_qp_state`).
    pub struct QpState(u8) {
        /// Reset.
        RST = 0,
        /// Initialised: takes receives.
        INIT = 1,
        /// Ready to receive.
        RTR = 2,
        /// Ready to send.
        RTS = 3,
        /// Send queue in error.
        SQER = 4,
        /// Send queue drained.
        SQD = 5,
        /// Error.
        ERR = 6,
        /// Send queue draining.
        SQ_DRAINING = 7,
    }
}

open_enum! {
    /// A QP's transport (Linux `MLX4_QP_ST_*`).
    pub struct Service(u8) {
        /// Reliable connection.
        RC = 0,
        /// Unreliable connection.
        UC = 1,
        /// Reliable datagram.
        RD = 2,
        /// Unreliable datagram.
        UD = 3,
        /// Extended reliable connection.
        XRC = 6,
        /// Headers are given by software: QP0, QP1, raw Ethernet.
        MLX = 7,
    }
}

/// MTU and message length.
#[bitfield(u8, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct MtuMessage {
    /// 1 to 5 for 256 to 4096 bytes; 7 for raw Ethernet.
    #[bits(3)]
    pub mtu_code: u8,
    /// log2 of the longest message.
    #[bits(5)]
    pub log_message: u8,
}

/// Size of a work queue.
#[bitfield(u8, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct QueueSize {
    /// Send queue: the device doesn't prefetch.
    pub no_prefetch: bool,
    /// log2 of the slots.
    #[bits(4)]
    pub log_slots: u8,
    /// log2 of a slot's bytes, less 4.
    #[bits(3)]
    pub log_stride_less_4: u8,
}

impl QueueSize {
    /// A queue of 2^`log_slots` slots of 2^`log_stride` bytes each.
    #[must_use]
    pub fn of(log_slots: u8, log_stride: u8) -> Self {
        Self::new()
            .with_log_slots(log_slots & 0xf)
            .with_log_stride_less_4(log_stride.saturating_sub(4) & 7)
    }

    /// log2 of a slot's bytes.
    #[must_use]
    pub fn log_stride(self) -> u8 {
        self.log_stride_less_4() + 4
    }
}

/// Reserved L_Key and RoCE mode.
#[bitfield(u8, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct RlkeyRoce {
    /// 0: RoCE v1, 2: RoCE v2.
    #[bits(2)]
    pub roce_mode: u8,
    #[bits(1)]
    __: u8,
    /// The reserved L_Key may be used.
    pub reserved_lkey: bool,
    #[bits(4)]
    __: u8,
}

/// Requester's parameters.
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct RequesterParameters {
    /// An ACK is asked for at least every 2^n packets.
    #[bits(4)]
    pub log_ack_request: u8,
    #[bits(4)]
    __: u8,
    /// log2 of the READs outstanding.
    #[bits(3)]
    pub log_reads: u8,
    #[bits(2)]
    __: u8,
    /// Retries after a timeout.
    #[bits(3)]
    pub retry_count: u8,
    /// Retries after receiver-not-ready; 7 is for ever.
    #[bits(3)]
    pub rnr_retry: u8,
    #[bits(1)]
    __: u8,
    /// Regions may be registered by work requests.
    pub fast_register: bool,
    /// Retries left of `rnr_retry`.
    #[bits(3)]
    pub current_rnr_retry: u8,
    /// Retries left of `retry_count`.
    #[bits(3)]
    pub current_retry: u8,
    #[bits(5)]
    __: u8,
}

/// Responder's parameters.
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct ResponderParameters {
    __: u8,
    /// log2 of the READs answered at once.
    #[bits(3)]
    pub log_reads: u8,
    #[bits(5)]
    __: u8,
    /// Peers may READ.
    pub remote_read: bool,
    /// Peers may WRITE.
    pub remote_write: bool,
    /// Peers may do atomics.
    pub remote_atomic: bool,
    #[bits(1)]
    __: u8,
    /// Offset of the buffer in its first page, in 64s.
    #[bits(6)]
    pub page_offset: u8,
    #[bits(1)]
    __: u8,
    /// Count invalid requests.
    pub ric: bool,
    /// Forces the port.
    pub force_port: bool,
    #[bits(3)]
    __: u8,
}

/// RNR timer and receive PSN.
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct RnrReceivePsn {
    #[bits(3)]
    __: u8,
    /// The delay code asked of a sender when no receive is posted.
    #[bits(5)]
    pub min_rnr_timer: u8,
    /// The next PSN to receive.
    #[bits(24)]
    pub next_psn: u32,
}

/// Use of a shared receive queue by the QP.
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct SrqUse {
    #[bits(7)]
    __: u8,
    /// It does.
    pub enable: bool,
    /// Number of the shared receive queue.
    #[bits(24)]
    pub srqn: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn golden_context() {
        // Linux mlx4 ib qp.c, __mlx4_ib_modify_qp: flags = state << 28 | st << 16 |
        // MLX4_QP_PM_MIGRATED << 11; mtu_msgmax = mtu << 5 | log_max_msg; rq_size_stride =
        // ilog2(wqe_cnt) << 3 | (wqe_shift - 4).
        let mut qp = QpContext::new_zeroed();
        qp.flags = QpFlags::new()
            .with_state(QpState::RTS)
            .with_service(Service::MLX)
            .with_path_migration(PATH_MIGRATED);
        qp.pd = Low24::new(5);
        qp.mtu = MtuMessage::new().with_mtu_code(5).with_log_message(31);
        qp.receive_queue = QueueSize::of(7, 4);
        qp.send_queue = QueueSize::of(6, 8);
        qp.uar = Low24::new(128);
        let bytes = qp.as_bytes();
        assert_eq!(bytes[..4], [0x30, 7, 0x18, 0]);
        assert_eq!(bytes[8..12], [5 << 5 | 31, 7 << 3, 6 << 3 | 4, 0]);
        assert_eq!(bytes[0x0c..0x10], [0, 0, 0, 128]);
    }

    #[test]
    fn golden_parameters() {
        // params1 = MLX4_IB_ACK_REQ_FREQ (8) << 28 | retry_cnt << 16 | rnr_retry << 13 |
        // fls(max_rd_atomic - 1) << 21.
        let requester = RequesterParameters::new()
            .with_log_ack_request(8)
            .with_retry_count(7)
            .with_rnr_retry(6)
            .with_log_reads(4);
        assert_eq!(
            requester.as_bytes(),
            (8_u32 << 28 | 7 << 16 | 6 << 13 | 4 << 21).to_be_bytes()
        );
        // params2: MLX4_QP_BIT_RRE 1 << 15, RWE 14, RAE 13, RIC 4; rra_max << 21; page offset at
        // bits 11 to 6.
        let responder = ResponderParameters::new()
            .with_remote_read(true)
            .with_log_reads(4)
            .with_page_offset(1)
            .with_ric(true);
        assert_eq!(
            responder.as_bytes(),
            (1_u32 << 15 | 4 << 21 | 1 << 6 | 1 << 4).to_be_bytes()
        );
        // rnr_nextrecvpsn = min_rnr_timer << 24 | rq_psn.
        let psn = RnrReceivePsn::new()
            .with_min_rnr_timer(12)
            .with_next_psn(0xab_cdef);
        assert_eq!(psn.as_bytes(), [12, 0xab, 0xcd, 0xef]);
        // srqn = cpu_to_be32(1 << 24 | srqn).
        assert_eq!(
            SrqUse::new().with_enable(true).with_srqn(9).as_bytes(),
            [1, 0, 0, 9]
        );
    }

    #[test]
    fn golden_optional_parameters() {
        // Linux qp.h: ALT_ADDR_PATH 1 << 0, RRE 1, RAE 2, RWE 3, PKEY_INDEX 4, Q_KEY 5, RNR_TIMEOUT
        // 6, PRIMARY_ADDR_PATH 7, SRA_MAX 8, RRA_MAX 9, PM_STATE 10, RETRY_COUNT 12, RNR_RETRY 13,
        // ACK_TIMEOUT 14, SCHED_QUEUE 16, COUNTER_INDEX 20.
        let all = [
            (OptionalParameters::new().with_alternate_path(true), 0),
            (OptionalParameters::new().with_remote_write(true), 3),
            (OptionalParameters::new().with_qkey(true), 5),
            (OptionalParameters::new().with_path_migration(true), 10),
            (OptionalParameters::new().with_retry_count(true), 12),
            (OptionalParameters::new().with_ack_timeout(true), 14),
            (OptionalParameters::new().with_schedule(true), 16),
            (OptionalParameters::new().with_counter_index(true), 20),
        ];
        for (field, bit) in all {
            assert_eq!(field.as_bytes(), (1_u32 << bit).to_be_bytes(), "bit {bit}");
        }
    }

    #[test]
    fn golden_transition() {
        // Linux qp.c: *(__be32 *) mailbox->buf = optpar; context copied to buf + 8.
        let mut mailbox = QpMailbox::new_zeroed();
        mailbox.optional = OptionalParameters::new().with_qkey(true);
        mailbox.context.qkey = 0x8001_0000.into();
        let bytes = mailbox.as_bytes();
        assert_eq!(bytes[..4], [0, 0, 0, 0x20]);
        assert_eq!(bytes[8 + 0xa8..8 + 0xac], [0x80, 1, 0, 0]);
    }
}
