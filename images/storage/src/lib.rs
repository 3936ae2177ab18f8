//! S: keeps files.
//!
//! * [`Server`]: the open files of each peer, and the answers to [`messages::storage`].
//! * `walk`: from a path to an inode of [`ext4`].
//! * `change`: the requests that change something.
//! * `rights`: what a caller may do.
//! * `xattr`: the requests about extended attributes.
//!
//! # What is left out
//!
//! Access control lists, locks of files. S believes a peer who its callers are, and paths begin at
//! the root: who was in a directory that he may not reach any more does not reach it by a relative
//! path either. What several processors keep of one file is not kept in step.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod change;
mod convert;
mod error;
mod held;
mod rights;
mod server;
#[cfg(test)]
mod tests;
mod walk;
mod xattr;

pub use error::Error;
pub use server::{Bulk, Counters, MAX_OPEN, PeerKey, Server};
