//! M: lends memory.
//!
//! * [`Pool`]: the memory, in extents of chunks. Each extent is registered for one borrower at a
//!   time.
//! * `Accounts`: what each borrower is promised, holds and is lent, by process.
//! * [`Manager`]: the answers to [`messages::memory`]. It only issues [`Action`]s.
//! * [`Server`]: carries orders out by a [`Machine`], in the requests' tasks and in a task that
//!   cleans.
//!
//! The library knows neither the fabric nor where its memory is; the image's `wiring` is the
//! [`Machine`].
//!
//! # What is left out
//!
//! The page cache of files, and replicas.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod accounts;
mod counters;
mod extent;
mod manager;
mod pool;
mod server;
#[cfg(test)]
mod tests;

pub use accounts::Lost;
pub use counters::Counters;
pub use extent::{ExtentId, PIECE};
pub use manager::{Manager, PeerKey, Step};
pub use pool::{Action, MAX_EXTENTS, Pool};
pub use server::{Failed, MAX_WAITING, MAX_WAITING_OF_PEER, Machine, PATIENCE, Server, WORKERS};
