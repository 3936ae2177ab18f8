//! Leases of files: which node may keep what of which file, and until when.
//!
//! S owns the files and grants leases ([`Granter`]); a P that holds one ([`Holder`]) answers its
//! programs from what it keeps of the file, without asking S. Both are state machines without
//! clock, lock or device of their own: they are given the time, and their users send the messages.
//!
//! * A *read lease* belongs to many nodes at once: none of them changes the file. A *write lease*
//!   belongs to one, and excludes read leases of others.
//! * Before S carries out what conflicts with a lease, it recalls the lease and waits until the
//!   holder has returned it, or until it has expired. A holder that does not answer, whatever the
//!   cause, so delays others by at most [`TERM`] and its margin.
//! * A lease ends for its holder [`TERM`] after the *request* for it was sent, and for S that much
//!   and [`MARGIN`] after the request *arrived*. So clocks need not agree, only run at speeds that
//!   differ by less than an eighth, and a lease has ended for the holder before it has for S.
//! * Each lease has a *generation*, a number that S never gives twice. A lease that is extended
//!   keeps it, so what was read under it is still true; under another one it has to be read again.
//!   A recall can overtake the reply that grants the lease it recalls: it names the generation, and
//!   the holder refuses that reply.
//!
//! # What is left out
//!
//! Leases of directories. A grace period of an S that was started again: its predecessor's leases
//! end with the connections to it, or after [`TERM`], which is shorter than a start.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod granter;
mod holder;

use hal::Duration;

pub use granter::{Granter, Lease, Ticket};
pub use holder::{Ask, Held, Holder};

/// Time that a lease lasts without being extended.
pub const TERM: Duration = Duration::from_secs(4);

/// Time by which a lease ends earlier for its holder than for S.
pub const MARGIN: Duration = Duration::from_millis(500);

/// A node's number, as S knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer(pub u16);

/// The kinds of leases, and of accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Reads, by many at once.
    Read,
    /// Changes, by one.
    Write,
}

impl Kind {
    /// Returns whether two nodes may not have both.
    #[must_use]
    pub fn conflicts(self, other: Self) -> bool {
        self == Self::Write || other == Self::Write
    }
}
