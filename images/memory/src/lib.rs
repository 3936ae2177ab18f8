//! M: lends memory.
//!
//! * [`Pool`]: the registered regions, cut into chunks of one window each.
//! * [`AddressSpace`]: one process's VMAs and the windows that back them.
//! * [`Manager`]: the processes of each peer, and the answers to [`messages::memory`].
//!
//! Pure logic: it knows neither the fabric nor where its memory is; zeroing a chunk is a call into [`Backing`].
//!
//! # What is left out
//!
//! Regions are shared by all borrowers, so a hostile processor can write to a chunk after it gave it back; fork and
//! copy-on-write; file mappings; spreading a process over several Ms.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod manager;
mod pool;
mod space;
#[cfg(test)]
mod tests;

pub use manager::{Counters, MAX_PROCESSES, Manager, PeerKey};
pub use pool::{Backing, Chunk, Pool};
pub use space::{AddressSpace, MAX_VMAS, MMAP_BASE, MMAP_MIN};
