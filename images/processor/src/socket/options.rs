//! Options of sockets, as far as they change something or are asked for again.

use alloc::collections::BTreeMap;
use core::time::Duration;

use super::{AF_UNIX, Type};

/// Bytes that a socket's buffer holds (Linux's `net.core.wmem_default`).
pub(crate) const BUFFER: usize = 212_992;
/// The largest buffer that can be asked for (Linux's `net.core.wmem_max`); twice this is had.
const MOST: usize = 212_992;
/// The least that is had for sending and receiving (Linux's `SOCK_MIN_SNDBUF`, `SOCK_MIN_RCVBUF`).
const LEAST_SEND: usize = 4608;
const LEAST_RECEIVE: usize = 2304;

/// Names that `TCP_CONGESTION` can have, its default first.
pub(crate) const CONGESTION: [&str; 2] = ["cubic", "reno"];

/// Times that come with datagrams (`SO_TIMESTAMP`, `SO_TIMESTAMPNS`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Timestamps {
    Off,
    Micros,
    Nanos,
}

/// A socket's options.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) send_buffer: usize,
    pub(crate) receive_buffer: usize,
    /// Bytes that the other end holds besides.
    beyond: usize,
    pub(crate) send_timeout: Option<Duration>,
    pub(crate) receive_timeout: Option<Duration>,
    pub(crate) pass_credentials: bool,
    pub(crate) timestamps: Timestamps,
    pub(crate) keep_alive: bool,
    pub(crate) broadcast: bool,
    pub(crate) linger: [u32; 2],
    pub(crate) low_water: u32,
    pub(crate) priority: u32,
    pub(crate) no_delay: bool,
    pub(crate) cork: bool,
    /// Seconds idle, seconds between probes, probes (`TCP_KEEPIDLE`, `TCP_KEEPINTVL`,
    /// `TCP_KEEPCNT`).
    pub(crate) keep: [u32; 3],
    /// Milliseconds (`TCP_USER_TIMEOUT`).
    pub(crate) user_timeout: u32,
    pub(crate) defer_accept: u32,
    pub(crate) quick_ack: bool,
    /// `TCP_FASTOPEN_CONNECT`.
    pub(crate) fast_open_connect: bool,
    /// `TCP_CONGESTION`: nothing is congested here.
    pub(crate) congestion: &'static str,
    /// Bound to the loopback interface (`SO_BINDTODEVICE`), as all sockets are in effect.
    pub(crate) on_loopback: bool,
    /// Options of IP and UDP that were set, by level and number.
    pub(crate) packets: BTreeMap<(u32, u32), i32>,
}

impl Options {
    pub(super) fn new(family: u16, kind: Type) -> Self {
        // What Linux says of a TCP socket that has not connected.
        let tcp = family != AF_UNIX && kind == Type::Stream;
        Self {
            send_buffer: if tcp { 16_384 } else { BUFFER },
            receive_buffer: if tcp { 131_072 } else { BUFFER },
            beyond: if tcp { BUFFER } else { 0 },
            send_timeout: None,
            receive_timeout: None,
            pass_credentials: false,
            timestamps: Timestamps::Off,
            keep_alive: false,
            broadcast: false,
            linger: [0; 2],
            low_water: 1,
            priority: 0,
            no_delay: false,
            cork: false,
            keep: [7200, 75, 9],
            user_timeout: 0,
            defer_accept: 0,
            quick_ack: true,
            fast_open_connect: false,
            congestion: CONGESTION[0],
            on_loopback: false,
            packets: BTreeMap::new(),
        }
    }

    /// Returns the options of a socket that is accepted from one with these.
    pub(super) fn inherited(&self) -> Self {
        Self {
            send_timeout: None,
            receive_timeout: None,
            ..self.clone()
        }
    }

    /// Returns the bytes that may wait on the way: over IP, both ends' buffers.
    pub(crate) fn capacity(&self) -> usize {
        self.send_buffer + self.beyond
    }

    /// Sets the bytes that wait on the way from the socket; as Linux, twice what is asked for.
    pub(crate) fn set_send_buffer(&mut self, asked: u32) -> usize {
        self.send_buffer = size(asked, LEAST_SEND);
        self.send_buffer
    }

    /// Sets the bytes that wait at the socket.
    pub(crate) fn set_receive_buffer(&mut self, asked: u32) {
        self.receive_buffer = size(asked, LEAST_RECEIVE);
    }
}

fn size(asked: u32, least: usize) -> usize {
    let asked = usize::try_from(asked).map_or(MOST, |asked| asked.min(MOST));
    (asked * 2).max(least)
}
