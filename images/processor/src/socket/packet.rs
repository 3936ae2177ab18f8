//! Fields of the header that a datagram would have.

use core::net::SocketAddr;
use core::time::Duration;

/// The fields of a header that programs choose.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Fields {
    /// Time to live, or hop limit.
    pub(crate) hops: u8,
    /// Type of service, or traffic class.
    pub(crate) class: u8,
}

/// Facts of a datagram beside its bytes and its sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Packet {
    /// Time since the epoch at which it was sent, which is when it arrives.
    pub(crate) sent: Duration,
    pub(crate) v4: Fields,
    pub(crate) v6: Fields,
    /// Its destination; `None` if it is not sent over IP.
    pub(crate) to: Option<SocketAddr>,
}
