//! Messages of peers, as they are handed to handlers.

use hal::Instant;

use crate::PeerId;

/// A message of a peer that a handler has taken; a request is to be answered through its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incoming {
    /// The sender.
    pub from: PeerId,
    /// Kind of the call or message.
    pub kind: u16,
    /// Bytes of its body, now in the server's slice.
    pub len: usize,
    /// Whether it wants no answer.
    pub one_way: bool,
    /// Bytes of bulk that came with it.
    pub bulk_len: u32,
    /// Bytes of bulk that the caller takes and this side can send.
    pub bulk_limit: u32,
    /// Time of arrival.
    pub arrived: Instant,
    /// Whether the bulk stands behind the body in the server's slice.
    pub(crate) carried: bool,
    pub(crate) link: u16,
    pub(crate) slot: u16,
    /// Serial number among the requests in this slot.
    pub(crate) serial: u32,
}
