//! Work requests and completions.

use crate::{Address, Gid, Lkey, PKey, QKey, QpSlot, Qpn, Rkey};

/// A local piece of registered memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sge {
    /// Start address in the address space of the region that `lkey` names (bus addresses for a
    /// region registered by [`Device::register`](crate::Device::register)).
    pub addr: u64,
    /// Its length in bytes.
    pub len: u32,
    /// The region's local key.
    pub lkey: Lkey,
}

/// A place in a peer's registered memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RemoteAddr {
    /// Address in the peer's region.
    pub addr: u64,
    /// The region's remote key.
    pub rkey: Rkey,
}

/// Operation of a send request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendOp {
    /// Delivers the payload into the peer's next posted receive.
    Send {
        /// Four bytes handed to the receiver's completion.
        imm: Option<u32>,
    },
    /// Writes the payload into the peer's memory.
    Write {
        /// Destination in the peer's memory.
        to: RemoteAddr,
        /// With it the peer also gets a receive completion, and one of its posted receives is used
        /// up.
        imm: Option<u32>,
    },
    /// Reads the peer's memory into the local pieces.
    Read {
        /// Source in the peer's memory.
        from: RemoteAddr,
    },
}

/// The bytes of a send request.
#[derive(Debug, Clone, Copy)]
pub enum Payload<'a> {
    /// Pieces of registered memory, gathered (or, for a READ, scattered) in order.
    Gather(&'a [Sge]),
    /// Two pieces, a message's head and the rest of it, copied into the request itself; their
    /// memory is free again when the post returns. Not for READ.
    Inline(&'a [u8], &'a [u8]),
}

/// The destination of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdAddress {
    /// The port.
    pub address: Address,
    /// The queue pair there.
    pub qpn: Qpn,
    /// Its Q_Key.
    pub qkey: QKey,
    /// Service level.
    pub sl: u8,
    /// Destination GID, when a GRH is wanted (multicast needs one).
    pub gid: Option<Gid>,
}

/// A send request.
#[derive(Debug, Clone, Copy)]
pub struct SendRequest<'a> {
    /// Handed back in the completion.
    pub id: u64,
    /// The operation.
    pub op: SendOp,
    /// With which bytes.
    pub payload: Payload<'a>,
    /// Whether success makes a completion. Failure always does. An unsignalled request is finished
    /// when a later one of the same queue pair completes.
    pub signalled: bool,
    /// Whether the peer's completion counts as solicited.
    pub solicited: bool,
    /// Whether to wait for this queue pair's earlier READs.
    pub fence: bool,
    /// The destination; for datagram queue pairs only.
    pub to: Option<UdAddress>,
}

/// Status of a request (InfiniBand Architecture 1.3, section 11.6.2; ConnectX syndromes in Linux
/// `enum ib_wc_status` order).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// Done.
    Success,
    /// The payload does not fit its destination or exceeds a limit.
    LocalLength,
    /// The queue pair's context or request is inconsistent.
    LocalQpOperation,
    /// A local key does not cover the memory or the right.
    LocalProtection,
    /// Not attempted, or cut off: the queue pair is in the error state.
    Flushed,
    /// A memory window could not be bound.
    MemoryWindowBind,
    /// The peer answered something that makes no sense.
    BadResponse,
    /// A local access failed while receiving.
    LocalAccess,
    /// The peer finds the request invalid.
    RemoteInvalidRequest,
    /// The peer's memory key does not cover the memory or the right.
    RemoteAccess,
    /// The peer could not carry the request out.
    RemoteOperation,
    /// The peer did not acknowledge within the retries.
    RetryExceeded,
    /// The peer had no receive posted within the retries.
    RnrRetryExceeded,
    /// The peer aborted.
    RemoteAborted,
    /// A syndrome that is not in the list.
    Other(u8),
}

/// Kinds of completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompletionKind {
    /// A send request (also a WRITE or READ) of this side.
    Send,
    /// A message arrived in a posted receive.
    Receive,
    /// A WRITE with immediate arrived and used up a posted receive.
    ReceiveWrite,
}

/// Source of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramSource {
    /// The sender's port.
    pub address: Address,
    /// The sender's queue pair.
    pub qpn: Qpn,
    /// Service level.
    pub sl: u8,
    /// Whether the first 40 bytes of the receive hold a GRH.
    pub grh: bool,
    /// The index of the partition key it came with.
    pub pkey: PKey,
}

/// One finished request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The request's id.
    pub id: u64,
    /// The queue pair, by its place in the queue set.
    pub qp: QpSlot,
    /// Status of the request. When it is not success, only `id`, `qp` and `kind` are valid.
    pub status: Status,
    /// Kind of the request.
    pub kind: CompletionKind,
    /// Bytes received or read; for datagrams it includes the 40 bytes of the GRH.
    pub bytes: u32,
    /// The sender's four bytes.
    pub imm: Option<u32>,
    /// For datagrams: the sender.
    pub source: Option<DatagramSource>,
}

impl Completion {
    /// An entry to fill a slice for [`QueueSet::poll`](crate::QueueSet::poll) with.
    pub const EMPTY: Self = Self {
        id: 0,
        qp: QpSlot(0),
        status: Status::Success,
        kind: CompletionKind::Send,
        bytes: 0,
        imm: None,
        source: None,
    };
}
