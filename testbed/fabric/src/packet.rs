//! Packets of the fabric (IBA 1.3, chapters 5 and 9), as structures.

use mad::smp::PERMISSIVE_LID;
use verbs::{Gid, Lid, PKey, Psn, QKey, Qpn, Rkey};

/// One packet.
#[derive(Debug, Clone, PartialEq)]
pub struct Packet {
    /// The sending port.
    pub slid: Lid,
    /// The receiving port, a multicast group, or the permissive LID of a directed route.
    pub dlid: Lid,
    /// Service level.
    pub sl: u8,
    /// The packet uses the management lane, VL15.
    pub vl15: bool,
    /// The global route header.
    pub grh: Option<Grh>,
    /// The partition.
    pub pkey: PKey,
    /// The queue pair it is for.
    pub dqpn: Qpn,
    /// Its sequence number.
    pub psn: Psn,
    /// The receiver's completion is solicited.
    pub solicited: bool,
    /// The sender requests an acknowledgement.
    pub ack_request: bool,
    /// The transport.
    pub service: Service,
    /// Operation, with its headers.
    pub operation: Operation,
    /// The bytes it carries.
    pub payload: Vec<u8>,
}

impl Packet {
    /// Bytes that it takes on a link, from its local route header to its invariant CRC (IBA 1.3,
    /// 7.7, 9.3).
    #[must_use]
    pub fn wire_len(&self) -> u64 {
        const LOCAL_ROUTE: usize = 8;
        const GLOBAL_ROUTE: usize = 40;
        const BASE_TRANSPORT: usize = 12;
        const EXTENDED: usize = 4;
        const INVARIANT_CRC: usize = 4;
        let route = LOCAL_ROUTE + if self.grh.is_some() { GLOBAL_ROUTE } else { 0 };
        let payload = self.payload.len().next_multiple_of(4);
        let extended = match self.service {
            Service::Xrc { srqn: Some(_) } => EXTENDED,
            _ => 0,
        };
        (route + BASE_TRANSPORT + extended + self.operation.header_len() + payload + INVARIANT_CRC)
            as u64
    }

    /// Returns whether the packet is addressed to a multicast group.
    #[must_use]
    pub fn is_multicast(&self) -> bool {
        is_multicast(self.dlid)
    }
}

/// The global route header, as far as receivers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grh {
    /// Traffic class.
    pub traffic_class: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Hop limit.
    pub hop_limit: u8,
    /// The sender.
    pub sgid: Gid,
    /// The receiver.
    pub dgid: Gid,
}

/// The transport a packet belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Reliable connection.
    Rc,
    /// Extended reliable connection.
    Xrc {
        /// The receiver's shared receive queue (the XRCETH): in all requests, in no response.
        srqn: Option<u32>,
    },
    /// Unreliable connection.
    Uc,
    /// Unreliable datagram.
    Ud,
}

/// A packet's place in its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The first of several.
    First,
    /// Neither first nor last.
    Middle,
    /// The last of several.
    Last,
    /// The whole message.
    Only,
}

impl Place {
    /// Returns the place of a packet which is the first, the last, both or neither.
    #[must_use]
    pub fn new(first: bool, last: bool) -> Self {
        match (first, last) {
            (true, true) => Self::Only,
            (true, false) => Self::First,
            (false, true) => Self::Last,
            (false, false) => Self::Middle,
        }
    }

    /// Returns whether the packet begins a message.
    #[must_use]
    pub fn is_first(self) -> bool {
        matches!(self, Self::First | Self::Only)
    }

    /// Returns whether the packet ends a message.
    #[must_use]
    pub fn is_last(self) -> bool {
        matches!(self, Self::Last | Self::Only)
    }
}

/// Remote memory that a request names (the RETH).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteRange {
    /// Start address.
    pub addr: u64,
    /// The key to it.
    pub rkey: Rkey,
    /// Its length in bytes.
    pub len: u32,
}

/// Atomic operation on eight bytes. All values are numbers, not bytes in memory order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtomicOp {
    /// Stores `swap` under `swap_mask` if the value equals `compare` under `compare_mask`.
    CompareSwap {
        /// Value to compare with.
        compare: u64,
        /// Value to store.
        swap: u64,
        /// Mask of the bits to compare.
        compare_mask: u64,
        /// Mask of the bits to store.
        swap_mask: u64,
    },
    /// Adds; a set bit of `boundary` ends a field, into which no carry comes from below.
    FetchAdd {
        /// Value to add.
        add: u64,
        /// The highest bit of each field.
        boundary: u64,
    },
}

/// Reason for which a responder refuses a request (IBA 1.3, 9.7.5.2.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NakCode {
    /// A packet is missing; `psn` is the one expected.
    Sequence,
    /// The request is malformed.
    InvalidRequest,
    /// The key does not allow it.
    RemoteAccess,
    /// The responder failed.
    RemoteOperation,
}

/// The answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckCode {
    /// All packets up to this PSN are acknowledged.
    Ack,
    /// No receive is posted: the requester retries after the time of this RNR timer code.
    ReceiverNotReady(u8),
    /// Refused.
    Nak(NakCode),
}

/// Operation of a packet: its opcode and extended headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A piece of a SEND.
    Send {
        /// Its place.
        place: Place,
        /// Immediate data, with the last piece.
        imm: Option<u32>,
        /// A key to take back, with the last piece.
        invalidate: Option<Rkey>,
    },
    /// A piece of a WRITE.
    Write {
        /// Its place.
        place: Place,
        /// Target range, in the first packet only.
        to: Option<RemoteRange>,
        /// Immediate data, with the last piece.
        imm: Option<u32>,
    },
    /// Asks for memory. The answer takes as many sequence numbers as it has packets.
    ReadRequest(RemoteRange),
    /// A piece of the answer.
    ReadResponse {
        /// Its place.
        place: Place,
        /// Messages done so far.
        msn: u32,
    },
    /// Changes eight bytes.
    Atomic {
        /// Address of the eight bytes.
        addr: u64,
        /// The key.
        rkey: Rkey,
        /// Operation on the value.
        op: AtomicOp,
    },
    /// The value before the change.
    AtomicResponse {
        /// The value.
        original: u64,
        /// Messages done so far.
        msn: u32,
    },
    /// Acknowledges or refuses.
    Ack {
        /// Acknowledgement or reason of refusal.
        code: AckCode,
        /// Messages done so far.
        msn: u32,
    },
    /// A datagram.
    Datagram {
        /// The key that the receiver must hold.
        qkey: QKey,
        /// The sending queue pair.
        source: Qpn,
        /// Immediate data.
        imm: Option<u32>,
    },
}

impl Operation {
    /// Bytes of its extended transport headers (IBA 1.3, 9.3).
    fn header_len(&self) -> usize {
        const IMMEDIATE: usize = 4;
        const INVALIDATE: usize = 4;
        const REMOTE_RANGE: usize = 16;
        const ATOMIC: usize = 28;
        const ACKNOWLEDGE: usize = 4;
        const ORIGINAL: usize = 8;
        const DATAGRAM: usize = 8;
        let optional = |there: bool, len| if there { len } else { 0 };
        match self {
            Self::Send {
                imm, invalidate, ..
            } => optional(imm.is_some(), IMMEDIATE) + optional(invalidate.is_some(), INVALIDATE),
            Self::Write { to, imm, .. } => {
                optional(to.is_some(), REMOTE_RANGE) + optional(imm.is_some(), IMMEDIATE)
            }
            Self::ReadRequest(_) => REMOTE_RANGE,
            Self::ReadResponse { place, .. } => optional(*place != Place::Middle, ACKNOWLEDGE),
            Self::Atomic { .. } => ATOMIC,
            Self::AtomicResponse { .. } => ACKNOWLEDGE + ORIGINAL,
            Self::Ack { .. } => ACKNOWLEDGE,
            Self::Datagram { imm, .. } => DATAGRAM + optional(imm.is_some(), IMMEDIATE),
        }
    }

    /// Returns whether the packet is addressed to a requester, not to a responder.
    #[must_use]
    pub fn is_response(&self) -> bool {
        matches!(
            self,
            Self::ReadResponse { .. } | Self::AtomicResponse { .. } | Self::Ack { .. }
        )
    }
}

/// The lowest LID of a multicast group (IBA 1.3, 4.1.3).
pub(crate) const FIRST_MLID: u16 = 0xc000;

/// Returns whether a LID is that of a multicast group.
#[must_use]
pub fn is_multicast(lid: Lid) -> bool {
    (FIRST_MLID..PERMISSIVE_LID).contains(&lid.0)
}
