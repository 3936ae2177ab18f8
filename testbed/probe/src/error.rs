//! Errors of an exchange with one of Linux's tools.

use core::fmt;

use mad::cm::{CmAttribute, RejectReason};
use verbs::Status;

/// Event that a timed-out wait was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The port to become ACTIVE.
    Port,
    /// A completion.
    Completion,
    /// A path record from the subnet administrator.
    Path,
    /// A message of the communication manager.
    Cm(CmAttribute),
    /// Bytes of the stream.
    Stream,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port => f.write_str("the port to become active"),
            Self::Completion => f.write_str("a completion"),
            Self::Path => f.write_str("a path record"),
            Self::Cm(attribute) => write!(f, "the CM's {attribute}"),
            Self::Stream => f.write_str("the stream"),
        }
    }
}

/// Error of an exchange with a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device refused a command or a request, or failed.
    #[error("the device: {0}")]
    Device(#[from] verbs::Error),
    /// The machine has no memory left.
    #[error(transparent)]
    Machine(#[from] hal::Error),
    /// A request failed.
    #[error("request {id} failed: {status:?}")]
    Request {
        /// Its id.
        id: u64,
        /// Status of its completion.
        status: Status,
    },
    /// A wait has timed out.
    #[error("waited in vain for {0}")]
    Timeout(Wait),
    /// The peer refused the connection.
    #[error("the peer refuses the connection: {0}")]
    Refused(RejectReason),
    /// The peer's words make no sense.
    #[error("the peer's address exchange makes no sense")]
    BadExchange,
    /// A message has another length than the protocol says.
    #[error("a message of {len} bytes where {wanted} were due")]
    Length {
        /// Its length.
        len: u32,
        /// Length that the protocol says.
        wanted: u32,
    },
    /// Received data differs from the data sent.
    #[error("byte {at} of round {round} is {found:#04x}, not {wanted:#04x}")]
    Data {
        /// The round, from 0.
        round: u32,
        /// The place of the first wrong byte.
        at: usize,
        /// Byte received.
        found: u8,
        /// Byte expected.
        wanted: u8,
    },
    /// The peer has ended the stream.
    #[error("the peer has ended the stream")]
    StreamEnded,
}
