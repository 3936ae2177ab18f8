//! S: keeps files.
//!
//! * [`Server`]: the open files of each peer, and the answers to [`messages::storage`].
//! * `walk`: from a path to an inode of [`ext4`].
//! * [`Choice`]: the disk among those of the machine.
//! * `change`: the requests that change something.
//! * [`lease`]: read leases of files, and their recall.
//! * `rights`: what a caller may do.
//! * `xattr`: the requests about extended attributes.
//!
//! # What is left out
//!
//! Access control lists, locks of files. S trusts a peer's statement of its callers. Paths begin at
//! the root, so a process in a directory that it may not reach any more does not reach it by a
//! relative path either. Write leases: every write of a peer is a request. Leases of directories.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod change;
mod choice;
mod convert;
mod error;
mod held;
pub mod lease;
mod rights;
mod server;
#[cfg(test)]
mod tests;
mod walk;
mod xattr;

pub use choice::{BadChoice, Choice, Kind};
pub use error::Error;
pub use server::{Bulk, Counters, MAX_OPEN, PeerKey, Server};
