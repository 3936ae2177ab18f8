//! M: lends memory.
//!
//! * [`Pool`]: the memory, in lots that are registered for one borrower at a time, cut into chunks of one window each.
//! * [`AddressSpace`]: one process's VMAs and the windows that back them.
//! * [`Manager`]: the processes of each peer, and the answers to [`messages::memory`].
//!
//! Pure logic: it knows neither the fabric nor where its memory is; zeroing a chunk is a call into [`Backing`], registering a
//! lot an [`Order`] to whoever called.
//!
//! # What is left out
//!
//! Fork and copy-on-write; file mappings; spreading a process over several Ms.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod manager;
mod pool;
mod space;
#[cfg(test)]
mod tests;

pub use manager::{Counters, MAX_PROCESSES, Manager, PeerKey, Step};
pub use pool::{Backing, Chunk, LotId, MAX_LOTS, Order, Pool, Share};
pub use space::{AddressSpace, MAX_VMAS, MMAP_BASE, MMAP_MIN};
