//! P's requests to M: reservations of memory, and chunks of it.
//!
//! M lends memory in chunks of [`CHUNK_SIZE`](crate::CHUNK_SIZE) bytes. P reads and writes a chunk
//! by RDMA at the address and under the key that [`Lend`] replied: byte *o* of the chunk lies at
//! `addr + o`. M knows no address space: P decides what lies in a chunk, and sends nothing when a
//! program maps or unmaps.
//!
//! [`Reserve`] states how many chunks M must be able to lend this peer in all. M promises no chunk
//! twice: the sum over the peers of what is promised, or lent if that is more, never exceeds what M
//! has. Chunks beyond the promise are lent as long as no peer is promised them.
//!
//! A chunk's bytes are unspecified: they may be what the same peer left there, and are never
//! another peer's. P zero-fills a page when it is first touched, without reading it.
//!
//! M takes back what a peer holds when it loses the peer.

use verbs::RemoteAddr;

use crate::wire::{calls, wire_struct};
use crate::{Reader, Wire, WireError, Writer};

/// The most chunks in one message.
pub const MAX_CHUNKS: usize = 128;

/// The chunks that a [`Lend`] got: the address of each and the key it is reached under.
pub type Chunks = heapless::Vec<RemoteAddr, MAX_CHUNKS>;

wire_struct! {
    /// Reserves chunks.
    ReserveRequest {
        /// The number of chunks that the peer is promised in all, those it is lent included.
        chunks: u32,
    }
}

wire_struct! {
    /// Asks for chunks.
    LendRequest {
        /// The process at P that the chunks are accounted to.
        pid: u32,
        /// The number wanted, at least one. M caps the number at [`MAX_CHUNKS`].
        count: u16,
    }
}

/// Gives chunks back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReturnRequest {
    /// The address of each chunk, in any order.
    pub chunks: heapless::Vec<u64, MAX_CHUNKS>,
}

impl Wire<'_> for ReturnRequest {
    fn put(&self, to: &mut Writer<'_>) -> Result<(), WireError> {
        self.chunks.put(to)
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            chunks: Wire::take(from)?,
        })
    }
}

wire_struct! {
    /// The memory that M has, in chunks.
    CapacityReply {
        /// All that can be lent.
        total: u32,
        /// Chunks that are neither lent nor promised.
        free: u32,
    }
}

calls! {
    /// A request to M.
    #[expect(clippy::large_enum_variant, reason = "requests live shortly, on the stack")]
    MemoryRequest:
    /// Sets how many chunks M promises the peer; repeating the request changes nothing. ENOMEM if M
    /// cannot promise so many: the earlier promise stands then. A lower promise than before is
    /// always granted.
    Reserve = 1, "p2m_reserve": ReserveRequest => ();
    /// Lends chunks: as many as were asked for or fewer, but at least one. ENOMEM if M has none for
    /// the peer. EAGAIN if M must clean memory first and as many requests as may already wait for
    /// that: the peer asks again a little later.
    Lend = 2, "p2m_lend": LendRequest => Chunks;
    /// Returns chunks. EINVAL, and nothing has changed, if one of them is not lent to the peer or
    /// named twice. P has ended its transfers to and from them before it asks.
    Return = 3, "p2m_return": ReturnRequest => ();
    /// Returns the size of M's memory, for `/proc/meminfo`.
    Capacity = 4, "p2m_capacity": () => CapacityReply;
}
