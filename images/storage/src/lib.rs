//! S: keeps files.
//!
//! * [`Server`]: the open files of each peer, and the answers to [`messages::storage`].
//! * `walk`: from a path to an inode of [`ext4`].
//! * `change`: the requests that change something.
//!
//! # What is left out
//!
//! Access checks (every peer acts as root; P checks for its users), extended attributes, locks of
//! files. What several processors keep of one file is not kept in step.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod change;
mod convert;
mod error;
mod held;
mod server;
#[cfg(test)]
mod tests;
mod walk;

pub use error::Error;
pub use server::{Bulk, Counters, MAX_OPEN, PeerKey, Server};
