//! Calls of S to P: leases that S takes back.
//!
//! S grants leases of a file with [`Open`](crate::storage::Open), [`Lease`](crate::storage::Lease)
//! and [`WriteLease`](crate::storage::WriteLease). Before another peer's conflicting access S
//! recalls the lease and waits for the reply, or until the lease has expired (crate `leases`). The
//! reply to the recall of a write lease brings what the peer has gathered: [`pieces`] which S
//! carries out itself, so that P needs no call to S before it answers.
//!
//! [`pieces`]: crate::pieces

use crate::storage::FileId;
use crate::wire::{calls, wire_struct};
use crate::xattr::Rest;
use crate::{Reader, Wire, WireError, Writer};

/// Bytes of pieces in one reply, at most.
pub const MAX_PART: usize = 4096;

wire_struct! {
    /// Names a lease.
    RecallRequest {
        /// The file's inode; 0 for all names.
        inode: u64,
        /// The lease's generation.
        lease: u64,
        /// From which byte of the pieces on; `total` when S has them all.
        from: u32,
    }
}

/// A part of the pieces that were gathered under the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recalled<'a> {
    /// The open file that they were written to.
    pub file: FileId,
    /// Bytes of all pieces; 0 if nothing was gathered.
    pub total: u32,
    /// The bytes from where S has asked on, at most [`MAX_PART`].
    pub part: Rest<'a>,
}

impl<'a> Wire<'a> for Recalled<'a> {
    fn put(&self, to: &mut Writer<'_>) -> Result<(), WireError> {
        self.file.put(to)?;
        self.total.put(to)?;
        self.part.put(to)
    }
    fn take(from: &mut Reader<'a>) -> Result<Self, WireError> {
        Ok(Self {
            file: Wire::take(from)?,
            total: Wire::take(from)?,
            part: Wire::take(from)?,
        })
    }
}

calls! {
    /// A request to P.
    ProcessorRequest:
    /// Takes a lease back. The reply says that the peer relies on it no more.
    Recall = 42, "s2p_recall": RecallRequest => Recalled<'a>;
}
