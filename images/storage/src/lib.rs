//! S: keeps files.
//!
//! * [`BlockDevice`]: the disk, read in pieces of any size.
//! * [`Ext4`]: a read-only ext4 file system on it.
//! * [`Server`]: the open files of each peer, and the answers to [`messages::storage`].
//!
//! # What is left out
//!
//! Writing; journal replay (a file system that needs it is refused); files with block maps instead of extents, inline
//! data, encryption, case folding; access checks (every peer reads as root); checksums.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod disk;
mod error;
mod ext4;
mod server;
#[cfg(test)]
mod tests;

pub use disk::{BlockDevice, DiskError};
pub use error::Error;
pub use ext4::{DirEntry, Ext4, Inode};
pub use server::{Bulk, Counters, MAX_OPEN, PeerKey, Server};
