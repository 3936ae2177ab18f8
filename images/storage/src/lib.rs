//! S: keeps files.
//!
//! * [`Server`]: the open files of each peer, and the answers to [`messages::storage`].
//! * `walk`: from a path to an inode of [`ext4`].
//! * [`Choice`]: the disk among those of the machine.
//! * `change`: the requests that change something.
//! * [`lease`]: leases of files, and their recall.
//! * `flush`: what peers have gathered under write leases.
//! * `promise`: the disk's blocks that are kept for it.
//! * `rights`: what a caller may do.
//! * `xattr`: the requests about extended attributes.
//!
//! # What is left out
//!
//! Access control lists, locks of files. S trusts a peer's statement of its callers. Paths begin at
//! the root, so a process in a directory that it may not reach any more does not reach it by a
//! relative path either. Leases of directories.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod change;
mod choice;
mod convert;
mod door;
mod error;
mod flush;
mod held;
pub mod lease;
mod promise;
mod rights;
mod server;
#[cfg(test)]
mod tests;
mod walk;
mod xattr;

pub use choice::{BadChoice, Choice, Kind};
pub use error::Error;
pub use server::{Bulk, Counters, MAX_OPEN, PeerKey, Server};
