//! Errors of FIT.

use core::fmt;

use hal::Duration;
use verbs::Status;

use crate::peer::{PeerName, Role};
use crate::state::LinkState;
use crate::wire::MAX_PIECES;

/// Operations that a caller can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// The reply to a call of this kind.
    Call(u16),
    /// Room for a one-way message of this kind.
    OneWay(u16),
    /// An RDMA READ.
    Read,
    /// An RDMA WRITE.
    Write,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(kind) => write!(f, "call {kind}"),
            Self::OneWay(kind) => write!(f, "one-way message {kind}"),
            Self::Read => f.write_str("RDMA READ"),
            Self::Write => f.write_str("RDMA WRITE"),
        }
    }
}

/// Reasons why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LostCause {
    /// A request of ours failed in the transport.
    Transport(Status),
    /// The device reported that the queue pair failed.
    QpFailed,
    /// The peer asked to disconnect.
    PeerLeft,
    /// This side disconnected.
    WeLeft,
    /// An operation that lends memory to the peer or the HCA ran past its deadline.
    Deadline(Operation),
    /// The peer broke the protocol: a header that makes no sense, or more requests than it has
    /// credits for.
    Protocol,
    /// The device reported a completion that can't be.
    Device,
    /// The device did not complete a request.
    NoCompletion,
    /// Nothing came from the peer for this long, though it was asked to answer.
    Silent(Duration),
    /// The peer asked for a connection and then did not prove that it holds the cluster's key.
    NoProof,
    /// The peer did not answer the connection request.
    NoAnswer,
    /// Another node with the peer's GID is connected, and answers.
    Duplicate,
}

impl LostCause {
    /// The end of a sentence that says that a peer is gone: nothing if the cause is not known.
    pub fn clause(cause: &Option<Self>) -> impl fmt::Display {
        fmt::from_fn(move |f| match cause {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        })
    }
}

impl fmt::Display for LostCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(status) => write!(f, "the transport failed: {status:?}"),
            Self::QpFailed => f.write_str("the queue pair failed"),
            Self::PeerLeft => f.write_str("the peer left"),
            Self::WeLeft => f.write_str("this node left"),
            Self::Deadline(operation) => write!(f, "{operation} missed its deadline"),
            Self::Protocol => f.write_str("the peer broke the protocol"),
            Self::Device => f.write_str("the device reported completions that can't be"),
            Self::NoCompletion => f.write_str("the device did not complete a request"),
            Self::Silent(age) => write!(f, "nothing was heard of it for {age:?}"),
            Self::NoProof => f.write_str("the peer did not prove that it holds the cluster's key"),
            Self::NoAnswer => f.write_str("the peer did not answer the connection request"),
            Self::Duplicate => f.write_str("another node with its GID is connected"),
        }
    }
}

/// An operation that was waited for when its peer was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The operation.
    pub operation: Operation,
    /// Age of the operation.
    pub age: Duration,
    /// The connection's state when the waiter was told.
    pub state: LinkState,
}

impl Waiting {
    /// The end of a sentence that says that a peer is lost.
    pub(crate) fn clause(waiting: &Option<Self>) -> impl fmt::Display {
        fmt::from_fn(move |f| match waiting {
            Some(Self {
                operation,
                age,
                state,
            }) => {
                write!(
                    f,
                    "; no end of {operation} after {age:?} (connection {state:?})"
                )
            }
            None => Ok(()),
        })
    }
}

impl Error {
    /// Says what was waited for, if the error is that the peer is lost.
    pub(crate) fn while_waiting(self, waited: Waiting) -> Self {
        match self {
            Self::PeerLost {
                peer,
                cause,
                waiting: None,
            } => Self::PeerLost {
                peer,
                cause,
                waiting: Some(waited),
            },
            other => other,
        }
    }
}

/// Errors of FIT.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No answer in time.
    #[error("{peer}: no end of {operation} after {age:?} (connection {state:?})")]
    Deadline {
        /// The peer.
        peer: PeerName,
        /// The operation that was waited for.
        operation: Operation,
        /// Age of the operation.
        age: Duration,
        /// The connection's state at that moment.
        state: LinkState,
    },
    /// The connection ended.
    #[error("{peer} is lost: {cause}{}", Waiting::clause(waiting))]
    PeerLost {
        /// The peer.
        peer: PeerName,
        /// Cause of the loss.
        cause: LostCause,
        /// The operation that was waited for; `None` if the peer was lost before.
        waiting: Option<Waiting>,
    },
    /// No such peer on this core.
    #[error("no connection to peer {0}")]
    NotConnected(u16),
    /// Too many tasks wait for a free slot already.
    #[error("{peer}: {limit} tasks wait for a free slot already")]
    Overloaded {
        /// The peer.
        peer: PeerName,
        /// Number of waiters at most.
        limit: usize,
    },
    /// A message is longer than the connection takes.
    #[error("{peer}: a message of {len} bytes, the connection takes {limit}")]
    TooLong {
        /// The peer.
        peer: PeerName,
        /// Its length.
        len: usize,
        /// The bound.
        limit: usize,
    },
    /// A call has more pieces of memory than the protocol takes.
    #[error("{peer}: a call with {pieces} pieces of memory, {limit} are the most", limit = MAX_PIECES)]
    TooManyPieces {
        /// The peer.
        peer: PeerName,
        /// Number of pieces.
        pieces: usize,
    },
    /// The peer takes no one-way messages.
    #[error("{0} takes no one-way messages")]
    NoOneWays(PeerName),
    /// The peer did not connect in time.
    #[error("{peer} did not connect within {waited:?}: {step}")]
    NoConnection {
        /// The peer.
        peer: PeerName,
        /// Time waited.
        waited: Duration,
        /// The last step that was waited for.
        step: ConnectStep,
    },
    /// No node of a role joined in time.
    #[error("no {role} has joined the cluster within {waited:?}")]
    NoMember {
        /// The role that is missing.
        role: Role,
        /// Time waited.
        waited: Duration,
    },
    /// The peer refused, for good.
    #[error("{peer} refused the connection with reason {reason}")]
    Refused {
        /// The peer.
        peer: PeerName,
        /// The reason code of its CM REJ.
        reason: u16,
    },
    /// The depths asked for do not fit the device.
    #[error("{what}: {wanted} wanted, the device has {have}")]
    TooDeep {
        /// The resource that does not suffice.
        what: Resource,
        /// Amount needed.
        wanted: u32,
        /// Amount that the device has.
        have: u32,
    },
    /// The device refused or failed.
    #[error(transparent)]
    Device(#[from] verbs::Error),
    /// The machine has no memory for queues.
    #[error(transparent)]
    Memory(#[from] hal::Error),
}

/// Resources of a device that FIT needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Send requests of a queue pair.
    SendQueue,
    /// Receive requests of a queue pair.
    ReceiveQueue,
    /// Entries of a core's completion queue.
    CompletionQueue,
    /// Bytes of registered memory.
    Memory,
    /// Bytes that go inline with a send request.
    Inline,
    /// Pieces of memory that a send request gathers.
    Pieces,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SendQueue => "send requests",
            Self::ReceiveQueue => "receive requests",
            Self::CompletionQueue => "completion queue entries",
            Self::Memory => "bytes of queue memory",
            Self::Inline => "bytes inline",
            Self::Pieces => "pieces of a send",
        })
    }
}

/// Steps of connecting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectStep {
    /// Waiting for this node's port to become active.
    Port,
    /// Waiting for the subnet administrator to name the peer's LID.
    Path,
    /// Waiting for the peer's answer to a CM REQ.
    Answer,
    /// Waiting for the peer to connect to this node.
    Request,
}

impl fmt::Display for ConnectStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Port => "this node's port is not active",
            Self::Path => "the subnet administrator knows no path to it",
            Self::Answer => "it did not answer the connection request",
            Self::Request => "it sent no connection request",
        })
    }
}
