//! The control path: what the HCA's firmware is asked to do.
//!
//! # States of a queue pair
//!
//! ```text
//!   create_qp                ready_to_receive          ready_to_send
//!   ───────────► INIT ─────────────────────► RTR ────────────────────► RTS
//!                 ▲    takes receives         receives                sends
//!                 │ init_qp                                             │ an error, fail_qp
//!               RESET ◄───────────── reset_qp ─────────────── ERR ◄─────┘
//!          reaches no memory                              all is flushed
//! ```
//!
//! (InfiniBand Architecture 1.3, section 10.3.1; Linux `mlx4/qp.c`, `__mlx4_qp_modify`.) Memory may
//! be freed after RESET, not after ERR: until then the device may still write into receives and
//! lines.

use core::future::Future;

use crate::{
    Address, Cqn, Domain, Error, Gid, Guid, Lkey, PKey, PageQueue, PagesConfig, Psn, QKey, QpSlot,
    Qpn, QueueSet, Rkey,
};

/// Limits of an HCA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLimits {
    /// READs (and atomics) outstanding per queue pair, as requester.
    pub max_reads: u8,
    /// READs a queue pair answers at once, as responder.
    pub max_reads_as_responder: u8,
    /// Requests per work queue.
    pub max_queue_depth: u32,
    /// Pieces per request.
    pub max_sge: u8,
    /// Inline bytes per send request.
    pub max_inline: u32,
    /// Completion queue entries.
    pub max_cq_depth: u32,
    /// Ports.
    pub ports: u8,
    /// Protection domains.
    pub max_domains: u32,
}

/// State of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortInfo {
    /// Its state.
    pub state: PortState,
    /// Its address on the link layer; not [set](Address::is_set) before the subnet manager gave
    /// one.
    pub address: Address,
    /// The subnet manager's address.
    pub manager: Address,
    /// Its GUID.
    pub guid: Guid,
    /// Its first GID.
    pub gid: Gid,
    /// The largest packet payload in bytes (256 to 4096).
    pub mtu: u16,
}

/// A port's logical state (InfiniBand Architecture 1.3, section 14.2.5.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortState {
    /// No link.
    Down,
    /// Link, waiting for the subnet manager.
    Initialize,
    /// Configured, not yet released.
    Armed,
    /// In use.
    Active,
}

/// Events that the device reports without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceEvent {
    /// The port left or reached [`PortState::Active`], or its addresses changed.
    PortChanged {
        /// The port, from 1.
        port: u8,
    },
    /// A queue pair failed; its requests are being flushed.
    QpFailed {
        /// The queue pair.
        qpn: Qpn,
    },
    /// A completion queue failed.
    CqFailed {
        /// The queue.
        cqn: Cqn,
    },
    /// The device itself failed and must be reset.
    DeviceFailed,
}

/// The transport a queue pair speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QpKind {
    /// Reliable connection.
    ReliableConnection,
    /// Unreliable datagram, accepting this Q_Key.
    Datagram {
        /// The key.
        qkey: QKey,
    },
}

/// Parameters of a new queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QpConfig {
    /// Its transport.
    pub kind: QpKind,
    /// The domain whose regions it, and its peer through it, can reach.
    pub domain: Domain,
    /// Port, from 1.
    pub port: u8,
    /// Send requests it holds at least.
    pub send_depth: u32,
    /// Receive requests it holds at least.
    pub receive_depth: u32,
    /// Pieces per send request.
    pub send_sge: u8,
    /// Pieces per receive request.
    pub receive_sge: u8,
    /// Inline bytes per send request.
    pub inline: u32,
    /// Rights of peers to this node's memory through it (READ, WRITE).
    pub remote_access: Access,
}

/// The way to a peer's queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathToPeer {
    /// The peer's port.
    pub address: Address,
    /// Its queue pair.
    pub qpn: Qpn,
    /// The first PSN that the peer will send.
    pub their_psn: Psn,
    /// The first PSN that this side sends.
    pub our_psn: Psn,
    /// Packet payload in bytes that the whole path takes.
    pub mtu: u16,
    /// Service level.
    pub sl: u8,
}

/// Timeouts and retries of a reliable connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RcParameters {
    /// ACK timeout exponent: 4.096 µs × 2^n.
    pub ack_timeout: u8,
    /// Retries after a timeout (0 to 7).
    pub retry_count: u8,
    /// Retries after receiver-not-ready (0 to 6; 7 means for ever and is not allowed here).
    pub rnr_retry: u8,
    /// The delay code that this side asks of a sender when no receive is posted.
    pub min_rnr_timer: u8,
    /// READs this side may have outstanding.
    pub reads_as_requester: u8,
    /// READs this side answers at once.
    pub reads_as_responder: u8,
}

/// A queue pair's state (InfiniBand Architecture 1.3, section 10.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QpState {
    /// New or reset.
    Reset,
    /// Takes receives.
    Init,
    /// Receives.
    ReadyToReceive,
    /// Sends and receives.
    ReadyToSend,
    /// Sends are stopped after an error (datagrams).
    SendError,
    /// Failed: everything is flushed.
    Error,
}

/// Rights over a memory region or through a queue pair. Local read is always there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Access {
    /// This node's HCA may write (receives, READ results).
    pub local_write: bool,
    /// Peers may READ.
    pub remote_read: bool,
    /// Peers may WRITE.
    pub remote_write: bool,
}

/// A registered memory region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Start address, from which [`Sge`](crate::Sge) and [`RemoteAddr`](crate::RemoteAddr) count.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
    /// For local use.
    pub lkey: Lkey,
    /// For peers, as far as its rights go.
    pub rkey: Rkey,
}

/// The control path of an HCA. Each call is one or more firmware commands, each with its deadline.
pub trait Device: Send + Sync {
    /// The data path it makes.
    type Queues: QueueSet;

    /// The data path of pages that it makes.
    type Pages: PageQueue;

    /// Returns the limits of the device.
    fn limits(&self) -> DeviceLimits;

    /// Makes a completion queue of at least `depth` entries that raises interrupt vector `vector`
    /// (from 0 on), with no queue pair yet. Each request that is outstanding may make an entry: the
    /// depth is at least the sum of those of the queue pairs' work queues, or the queue may be
    /// overrun.
    fn create_queues(
        &self,
        depth: u32,
        vector: u16,
    ) -> impl Future<Output = Result<Self::Queues, Error>> + Send;

    /// Takes a queue set away, with the queue pairs that are still in it. What was posted never
    /// completes.
    fn destroy_queues(
        &self,
        queues: Self::Queues,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Waits until interrupt vector `vector` fires: a queue set made for it that was
    /// [armed](QueueSet::arm) may have completions. One that came before the call counts. There is
    /// one waiter a vector; who waits in vain bounds the wait.
    fn wait_completion(&self, vector: u16) -> impl Future<Output = Result<(), Error>> + Send;

    /// Makes a queue pair inside `queues`, in the state INIT: it takes receives at once.
    fn create_qp(
        &self,
        queues: &mut Self::Queues,
        config: &QpConfig,
    ) -> impl Future<Output = Result<(QpSlot, Qpn), Error>> + Send;

    /// Connects a reliable queue pair: INIT to RTR.
    fn ready_to_receive(
        &self,
        qpn: Qpn,
        path: &PathToPeer,
        parameters: &RcParameters,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Lets a queue pair send: RTR to RTS. A datagram queue pair goes from INIT all the way.
    fn ready_to_send(
        &self,
        qpn: Qpn,
        path: Option<&PathToPeer>,
        parameters: &RcParameters,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Moves a queue pair to ERR: everything posted completes as flushed.
    fn fail_qp(&self, qpn: Qpn) -> impl Future<Output = Result<(), Error>> + Send;

    /// Resets a queue pair, so that it can be used again: it reaches no memory any more, and what
    /// was posted never completes. [`QueueSet::forget`] comes next, then
    /// [`init_qp`](Self::init_qp). Its number stays the same.
    fn reset_qp(&self, qpn: Qpn) -> impl Future<Output = Result<(), Error>> + Send;

    /// Moves a connected queue pair that was [reset](Self::reset_qp) and
    /// [forgotten](QueueSet::forget) to the state INIT, as [`create_qp`](Self::create_qp) leaves
    /// it, in a protection domain that may be another than before.
    fn init_qp(&self, qpn: Qpn, domain: Domain) -> impl Future<Output = Result<(), Error>> + Send;

    /// Lets a datagram queue pair receive what is sent to a multicast group. The port must also be
    /// a member of the group, which the subnet administrator is asked for. A queue pair that is
    /// attached already stays so.
    fn attach_multicast(
        &self,
        qpn: Qpn,
        mgid: Gid,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Ends [`attach_multicast`](Self::attach_multicast); nothing when it was not attached. A queue
    /// pair is detached before it is taken away.
    fn detach_multicast(
        &self,
        qpn: Qpn,
        mgid: Gid,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Takes a queue pair away. What was posted never completes.
    fn destroy_qp(
        &self,
        queues: &mut Self::Queues,
        qp: QpSlot,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Makes a page queue: a queue pair in the state INIT that is connected as any other, and a
    /// completion queue of its own. Peers reach nothing of this node through it.
    fn create_pages(
        &self,
        config: &PagesConfig,
    ) -> impl Future<Output = Result<(Self::Pages, Qpn), Error>> + Send;

    /// Takes a page queue away. What was posted never completes, and touches no memory any more.
    fn destroy_pages(&self, pages: Self::Pages) -> impl Future<Output = Result<(), Error>> + Send;

    /// Registers a contiguous piece of bus-addressable memory for the queue pairs of `domain`.
    fn register(
        &self,
        domain: Domain,
        bus_addr: u64,
        len: u64,
        access: Access,
    ) -> impl Future<Output = Result<Region, Error>> + Send;

    /// Takes a region back: from then on its keys reach nothing.
    fn deregister(&self, region: &Region) -> impl Future<Output = Result<(), Error>> + Send;

    /// The port's state and addresses.
    fn port(&self, port: u8) -> impl Future<Output = Result<PortInfo, Error>> + Send;

    /// Sends a 256-byte management datagram from QP1 to QP1 of `to`.
    fn send_mad(
        &self,
        port: u8,
        to: Address,
        pkey: PKey,
        mad: &[u8; 256],
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Takes the next management datagram that arrived on QP1 (answers and requests alike) with its
    /// sender, if any. Subnet management on QP0 is the driver's own business.
    fn take_mad(&self, port: u8) -> Option<(Address, [u8; 256])>;

    /// Takes the next asynchronous event, if any. Events and datagrams come in while the driver's
    /// service runs.
    fn take_event(&self) -> Option<DeviceEvent>;
}
