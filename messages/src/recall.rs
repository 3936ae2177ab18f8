//! Calls of S to P: leases that S takes back.
//!
//! S grants a read lease of a file with [`Open`](crate::storage::Open) and
//! [`Lease`](crate::storage::Lease). Before another peer changes the file, S recalls the lease and
//! waits for the reply, or until the lease has expired (crate `leases`).

use crate::wire::{calls, wire_struct};

wire_struct! {
    /// Names a lease.
    RecallRequest {
        /// The file's inode.
        inode: u64,
        /// The lease's generation.
        lease: u64,
    }
}

calls! {
    /// A request to P.
    ProcessorRequest:
    /// Takes a lease back. The reply says that the peer relies on it no more.
    Recall = 42, "s2p_recall": RecallRequest => ();
}
