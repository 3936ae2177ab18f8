//! Calls as their callers see them: the request, the memory that it lends, the reply.

use verbs::{Lkey, Region, RemoteAddr, Rkey, Sge};

use crate::wire::Descriptor;

/// A piece of this node's registered memory that a call uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Start address, as its region counts.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u32,
    /// The region's key for this node's device: bulk that fits the message is gathered by it.
    pub lkey: Lkey,
    /// The region's key for the peer, which READs or WRITEs by it; the region must allow that.
    pub rkey: Rkey,
}

impl Piece {
    /// The piece of a region that begins `offset` bytes behind its beginning.
    ///
    /// # Panics
    ///
    /// When it does not lie in the region.
    #[must_use]
    pub fn of(region: &Region, offset: u64, len: u32) -> Self {
        let end = offset.checked_add(len.into());
        assert!(
            end.is_some_and(|end| end <= region.len),
            "{len} bytes at {offset} of a region of {}",
            region.len
        );
        Self {
            addr: region.addr + offset,
            len,
            lkey: region.lkey,
            rkey: region.rkey,
        }
    }

    pub(crate) fn sge(&self) -> Sge {
        Sge {
            addr: self.addr,
            len: self.len,
            lkey: self.lkey,
        }
    }

    pub(crate) fn descriptor(&self) -> Descriptor {
        Descriptor {
            at: RemoteAddr {
                addr: self.addr,
                rkey: self.rkey,
            },
            len: self.len,
        }
    }
}

/// A call: its content, and the memory that it lends until it ends.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Kind of the call, by a number that both sides know.
    pub kind: u16,
    /// The request's body. Copied, so short ones are best; it must fit a message.
    pub body: &'a [u8],
    /// Memory whose bytes are the request's bulk. It is not copied: it goes with the message if it
    /// fits, else the peer READs it.
    pub gather: &'a [Piece],
    /// Memory that the reply's bulk fills, piece by piece, by the peer's WRITEs.
    pub scatter: &'a [Piece],
}

impl<'a> Call<'a> {
    /// A call without bulk.
    #[must_use]
    pub fn new(kind: u16, body: &'a [u8]) -> Self {
        Self {
            kind,
            body,
            gather: &[],
            scatter: &[],
        }
    }

    /// The same with bulk in the request.
    #[must_use]
    pub fn gather(self, gather: &'a [Piece]) -> Self {
        Self { gather, ..self }
    }

    /// The same with room for bulk of the reply.
    #[must_use]
    pub fn scatter(self, scatter: &'a [Piece]) -> Self {
        Self { scatter, ..self }
    }

    pub(crate) fn lends(&self) -> bool {
        !self.gather.is_empty() || !self.scatter.is_empty()
    }
}

/// Bytes of these pieces.
pub(crate) fn total(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.len)).sum()
}

/// Result of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Bytes of the reply, now in the caller's slice.
    pub len: usize,
    /// Bytes that the peer wrote into the pieces for bulk.
    pub bulk: u32,
}

/// Names a call to its waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallId {
    /// The connection; the engine's to know.
    pub(crate) link: u16,
    pub(crate) slot: u16,
    pub(crate) generation: u32,
}
