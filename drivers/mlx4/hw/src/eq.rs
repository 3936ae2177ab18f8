//! Event queues: their context and their entries.
//!
//! Source: Linux `mlx4.h` (`struct mlx4_eq_context`, `struct mlx4_eqe`), `eq.c`
//! (`MLX4_EQ_STATUS_*`, `MLX4_EQ_STATE_*`), `include/linux/mlx4/device.h` (`enum mlx4_event`).
//!
//! # Shape
//!
//! ```text
//!  00 - type - subtype │ 04 24 bytes by type │ 1c - - - owner
//!     completion        04 CQN
//!     command           06 token │ 0f status │ 10 output parameter
//!     CQ error          04 CQN │ 0f syndrome
//!     port              0c number of the port in the upper four bits
//! ```
//!
//! The owner bit is told from the pass as a completion's is (Linux `mlx4/eq.c`, `next_eqe_sw`), but
//! there is no doorbell record: the consumer index goes to a register of the queue's own, with the
//! request for the next interrupt (`eq_set_ci`).

use bitfield_struct::bitfield;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::{Low, Low24, QueueBuffer, layout, open_enum};

/// An EQ's context (SW2HW_EQ's input, HW2SW_EQ's and QUERY_EQ's output).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EqContext {
    /// Status and state.
    pub flags: QueueFlags,
    _reserved_04: [u8; 6],
    /// Offset of the first entry in its page, in 32s.
    pub page_offset: U16,
    /// log2 of the entries.
    pub log_size: Low<5>,
    _reserved_0d: [u8; 3],
    /// Moderation: period.
    pub period: U16,
    /// Moderation: count.
    pub max_count: U16,
    _reserved_14: [u8; 2],
    /// The interrupt vector.
    pub vector: U16,
    /// The buffer.
    pub buffer: QueueBuffer,
    _reserved_20: [u8; 8],
    /// Consumer index.
    pub consumer: Low24,
    /// Producer index.
    pub producer: Low24,
    _reserved_30: [u8; 16],
}

layout!(EqContext: 0x40, page_offset @ 0x0a, log_size @ 0x0c, period @ 0x10, vector @ 0x16, buffer @ 0x18,
    consumer @ 0x28, producer @ 0x2c);

/// The queue works.
pub const STATUS_OK: u8 = 0;
/// The producer met the consumer.
pub const STATUS_OVERFLOW: u8 = 9;
/// An entry could not be written.
pub const STATUS_WRITE_FAIL: u8 = 0xa;

/// The EQ raises an interrupt at the next event.
pub const EQ_STATE_ARMED: u8 = 9;
/// The EQ has raised one and waits to be armed.
pub const EQ_STATE_FIRED: u8 = 0xa;
/// The EQ raises one at each event.
pub const EQ_STATE_ALWAYS_ARMED: u8 = 0xb;

/// First dword of an EQ's and of a CQ's context.
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct QueueFlags {
    /// [`STATUS_OK`] and so on.
    #[bits(4)]
    pub status: u8,
    #[bits(8)]
    __: u8,
    /// Completions carry time stamps (CQ only).
    pub timestamps: bool,
    /// Entries are written over each other.
    pub collapsed: bool,
    /// An overrun goes unnoticed.
    pub ignore_overrun: bool,
    #[bits(5)]
    __: u8,
    /// [`EQ_STATE_ARMED`] and so on.
    #[bits(4)]
    pub state: u8,
    __: u8,
}

/// Bytes of an event queue entry.
pub const EQE_LEN: usize = 32;

/// An event queue entry.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Eqe {
    _reserved_00: u8,
    /// Type of the event.
    pub event: EventType,
    _reserved_02: u8,
    /// More exactly; see [`PortChange`] and [`PortManagementChange`].
    pub subtype: u8,
    /// The event's data; see [`Eqe::number`], [`Eqe::command`], [`Eqe::port`].
    pub data: [u8; 24],
    /// The virtual function concerned.
    pub slave: u8,
    _reserved_1d: [u8; 2],
    /// Owner of the entry.
    pub owner: EqeOwner,
}

layout!(Eqe: 32, event @ 1, subtype @ 3, data @ 4, slave @ 0x1c, owner @ 0x1f);

/// Last byte of an [`Eqe`].
#[bitfield(u8, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct EqeOwner {
    /// Inverted at each pass through the queue: in pass n the entry is valid when this is n's
    /// lowest bit.
    pub pass: bool,
    #[bits(7)]
    __: u8,
}

/// Offset of the owner byte, which is read before the rest.
pub const EQE_OWNER_OFFSET: usize = 0x1f;

/// Data of a command's completion event.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CommandEvent {
    _reserved_04: [u8; 2],
    /// The command's token.
    pub token: U16,
    _reserved_08: [u8; 7],
    /// Status of the command.
    pub status: crate::command::CmdStatus,
    /// Its immediate output.
    pub out_param: U64,
    _reserved_18: [u8; 4],
}

layout!(CommandEvent: 24, token @ 2, status @ 11, out_param @ 12);

/// Data of a CQ error event.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CqErrorEvent {
    /// The CQ.
    pub cqn: Low24,
    _reserved_08: [u8; 7],
    /// 1: overrun, 2: access violation.
    pub syndrome: u8,
    _reserved_10: [u8; 12],
}

layout!(CqErrorEvent: 24, syndrome @ 11);

/// Data of a port's link event.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PortEvent {
    _reserved_04: [u8; 8],
    /// The port, from 1 (the top four bits of a dword).
    pub port: crate::bits::High<4>,
    _reserved_0d: [u8; 15],
}

layout!(PortEvent: 24, port @ 8);

/// Data of a port management event.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PortManagementEvent {
    _reserved_04: [u8; 3],
    /// The port, from 1.
    pub port: u8,
    /// The subnet manager's address.
    pub sm_lid: U16,
    /// The port's address.
    pub lid: U16,
    /// Attributes that changed.
    pub changed: PortAttributes,
    _reserved_10: [u8; 3],
    /// The subnet manager's service level.
    pub sm_sl: Low<4>,
    /// The subnet's prefix.
    pub gid_prefix: U64,
}

layout!(PortManagementEvent: 24, port @ 3, sm_lid @ 4, lid @ 6, changed @ 8, sm_sl @ 15, gid_prefix @ 16);

/// Changes that a [`PortManagementEvent`] reports.
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Lsb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct PortAttributes {
    /// The subnet manager's LID.
    pub sm_lid: bool,
    /// The GID prefix.
    pub gid_prefix: bool,
    /// The LID.
    pub lid: bool,
    /// Clients are to register again.
    pub client_reregister: bool,
    /// The subnet manager's service level.
    pub sm_sl: bool,
    #[bits(27)]
    __: u32,
}

impl Eqe {
    /// An entry of the given event with its 24 bytes of data, owned as `pass` says.
    #[must_use]
    pub fn new(event: EventType, subtype: u8, data: [u8; 24], pass: bool) -> Self {
        Self {
            _reserved_00: 0,
            event,
            _reserved_02: 0,
            subtype,
            data,
            slave: 0,
            _reserved_1d: [0; 2],
            owner: EqeOwner::new().with_pass(pass),
        }
    }

    /// The QPN, CQN or SRQN that the event is about, for those that have one.
    #[must_use]
    pub fn number(&self) -> u32 {
        let [_, a, b, c, ..] = self.data;
        u32::from_be_bytes([0, a, b, c])
    }

    /// Data with only a QPN, CQN or SRQN.
    #[must_use]
    pub fn number_data(number: u32) -> [u8; 24] {
        let mut data = [0; 24];
        data[..4].copy_from_slice(Low24::new(number).as_bytes());
        data
    }

    /// The data as a command's completion.
    #[must_use]
    pub fn command(&self) -> CommandEvent {
        zerocopy::transmute!(self.data)
    }

    /// The data as a CQ error.
    #[must_use]
    pub fn cq_error(&self) -> CqErrorEvent {
        zerocopy::transmute!(self.data)
    }

    /// The data as a link event.
    #[must_use]
    pub fn port(&self) -> PortEvent {
        zerocopy::transmute!(self.data)
    }

    /// The data as a port management event.
    #[must_use]
    pub fn port_management(&self) -> PortManagementEvent {
        zerocopy::transmute!(self.data)
    }
}

impl core::fmt::Debug for Eqe {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}.{:#x} {:02x?}", self.event, self.subtype, self.data)
    }
}

/// Subtypes of [`EventType::PORT_CHANGE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortChange;

impl PortChange {
    /// The link is down, or has left ACTIVE.
    pub const DOWN: u8 = 1;
    /// The port is ACTIVE.
    pub const ACTIVE: u8 = 4;
}

/// Subtypes of [`EventType::PORT_MANAGEMENT_CHANGE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortManagementChange;

impl PortManagementChange {
    /// The GUID table changed.
    pub const GUID_INFO: u8 = 0x14;
    /// PortInfo changed.
    pub const PORT_INFO: u8 = 0x15;
    /// The partition key table changed.
    pub const PKEY_TABLE: u8 = 0x16;
    /// The SL to VL map changed.
    pub const SL2VL: u8 = 0x17;
}

open_enum! {
    /// Type of an event queue entry.
    #[derive(zerocopy::Unaligned)]
    pub struct EventType(u8) {
        /// A CQ that was armed has a completion.
        COMPLETION = 0x00,
        /// A path has migrated.
        PATH_MIGRATED = 0x01,
        /// A QP in RTR got its first packet.
        COMMUNICATION_ESTABLISHED = 0x02,
        /// A send queue is drained.
        SQ_DRAINED = 0x03,
        /// A CQ failed.
        CQ_ERROR = 0x04,
        /// A work queue failed.
        WQ_CATASTROPHIC = 0x05,
        /// A QP context failed.
        QPC_CATASTROPHIC = 0x06,
        /// A path could not migrate.
        PATH_MIGRATION_FAILED = 0x07,
        /// The device failed.
        LOCAL_CATASTROPHIC = 0x08,
        /// A port's link changed.
        PORT_CHANGE = 0x09,
        /// A command ended.
        COMMAND = 0x0a,
        /// A memory error was found.
        ECC_DETECT = 0x0e,
        /// An EQ overflowed.
        EQ_OVERFLOW = 0x0f,
        /// A QP refused an invalid request of its peer.
        WQ_INVALID_REQUEST = 0x10,
        /// A QP refused its peer's access.
        WQ_ACCESS_VIOLATION = 0x11,
        /// An SRQ failed.
        SRQ_CATASTROPHIC = 0x12,
        /// A QP on an SRQ took its last WQE.
        SRQ_LAST_WQE = 0x13,
        /// An SRQ has fewer WQEs than its limit.
        SRQ_LIMIT = 0x14,
        /// The communication channel was written.
        COMM_CHANNEL = 0x18,
        /// Virtual Ethernet ports changed.
        VEP_UPDATE = 0x19,
        /// The firmware wants something done.
        OPERATION_REQUIRED = 0x1a,
        /// Something is about to fail.
        FATAL_WARNING = 0x1b,
        /// A function level reset.
        FLR = 0x1c,
        /// A port's addresses or tables changed.
        PORT_MANAGEMENT_CHANGE = 0x1d,
        /// A cable is bad.
        RECOVERABLE_ERROR = 0x3e,
        /// No event; an entry that was never written.
        NONE = 0xff,
    }
}

impl EventType {
    /// The event's bit in MAP_EQ's mask, for the types below 64.
    #[must_use]
    pub const fn mask(self) -> u64 {
        if self.0 < 64 { 1 << self.0 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn golden_context() {
        // Linux eq.c, mlx4_create_eq: flags = STATUS_OK | STATE_ARMED (9 << 8), log_eq_size =
        // ilog2(nent), intr = vector, log_page_size = PAGE_SHIFT - 12.
        let mut eq = EqContext::new_zeroed();
        eq.flags = QueueFlags::new().with_state(EQ_STATE_ARMED);
        eq.log_size = Low::new(9);
        eq.vector = 3.into();
        eq.buffer = QueueBuffer::new(0x1000, 12);
        let bytes = eq.as_bytes();
        assert_eq!(bytes[..4], [0, 0, 9, 0]);
        assert_eq!(bytes[0x0c], 9);
        assert_eq!(bytes[0x14..0x20], [0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0x10, 0]);
        // MLX4_EQ_OI 1 << 17, MLX4_EQ_STATUS_OVERFLOW 9 << 28.
        let flags = QueueFlags::new()
            .with_status(STATUS_OVERFLOW)
            .with_ignore_overrun(true);
        assert_eq!(flags.as_bytes(), [0x90, 2, 0, 0]);
    }

    #[test]
    fn golden_command_event() {
        // Linux mlx4.h, struct mlx4_eqe: event.cmd { u32 reserved1; be16 token at 6; status at 0xf;
        // be64 out_param at 0x10 } after type at 1 and subtype at 3; owner 0x80 at 0x1f.
        let mut bytes = [0; 32];
        bytes[1] = 0x0a;
        bytes[6..8].copy_from_slice(&[0x12, 0x34]);
        bytes[0x0f] = 3;
        bytes[0x10..0x18].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        bytes[0x1f] = 0x80;
        let eqe = Eqe::read_from_bytes(&bytes).unwrap();
        assert_eq!(eqe.event, EventType::COMMAND);
        assert!(eqe.owner.pass());
        let command = eqe.command();
        assert_eq!(command.token.get(), 0x1234);
        assert_eq!(command.status, crate::command::CmdStatus::BAD_PARAM);
        assert_eq!(command.out_param.get(), 0x0102_0304_0506_0708);
        let built = Eqe::new(EventType::COMMAND, 0, zerocopy::transmute!(command), true);
        assert_eq!(built.as_bytes(), bytes);
    }

    #[test]
    fn golden_port_events() {
        // Linux eq.c: port = be32_to_cpu(eqe->event.port_change.port) >> 28, that dword at 0x0c.
        let mut bytes = [0; 32];
        bytes[1] = 9;
        bytes[3] = 4;
        bytes[0x0c] = 0x20;
        assert_eq!(Eqe::read_from_bytes(&bytes).unwrap().port().port.get(), 2);
        // port_mgmt_change: port at 7, mstr_sm_lid 8, port_lid 0x0a, changed_attr 0x0c, mstr_sm_sl
        // 0x13.
        let mut bytes = [0; 32];
        bytes[1] = 0x1d;
        bytes[3] = 0x15;
        bytes[7] = 1;
        bytes[9] = 5;
        bytes[0x0b] = 6;
        bytes[0x0f] = 0b101;
        let event = Eqe::read_from_bytes(&bytes).unwrap().port_management();
        assert_eq!((event.port, event.sm_lid.get(), event.lid.get()), (1, 5, 6));
        assert!(event.changed.sm_lid() && event.changed.lid() && !event.changed.gid_prefix());
    }

    #[test]
    fn numbers_are_24_bits() {
        let eqe = Eqe::new(EventType::CQ_ERROR, 0, Eqe::number_data(0x0100_0081), false);
        assert_eq!(eqe.number(), 0x81);
        assert_eq!(eqe.cq_error().cqn.get(), 0x81);
        assert_eq!(EventType::COMMAND.mask(), 1 << 10);
    }
}
