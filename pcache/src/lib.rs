//! The set-associative cache in front of remote memory: lookup, fill, eviction, write-back.
//!
//! A program's memory lives on another machine; what it works on lives in the lines of a [`Cache`], one page each. The
//! cache decides, and acts through what it is given ([`Machine`]): it knows neither page tables, nor the network, nor
//! where a remote page lives. It never blocks and never reads a clock:
//!
//! * [`Cache::access`] answers at once: the line is there (pinned, ready to be mapped), or it has to be waited for, or
//!   the caller has to put the bytes in.
//! * [`Cache::complete`] is told the end of each transfer that the cache started.
//! * [`Cache::get`] is the same as a future, for callers that would rather await.
//!
//! # Locks
//!
//! One spin lock a set. Two cores' misses contend only when they fall into the same set. Under a set's lock the cache
//! calls [`Backing`], [`Mapper::map`] and [`Mapper::take_accessed`], which may take locks of their own (order: set, then theirs) and must not
//! call the cache. [`Mapper::unmap`], which may wait for other cores, and [`RemoteStore`] and [`Lines`], which move
//! bytes, are called with no lock held. No two sets are ever locked at once. A set's waiters have a lock of their own,
//! never held together with the set's.
//!
//! # What is left out
//!
//! * Lines shared by two address spaces (fork, shared mappings): a line has one page.
//! * Prefetch, lines larger than a page, moving a line to another page (mremap copies).
//! * A write-back that fails is tried again only when its line is evicted again; meanwhile the node is told.
#![cfg_attr(not(any(test, interleave)), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod cache;
mod counters;
mod error;
mod evict;
mod geometry;
mod machine;
mod page;
mod pin;
mod set;
mod sync;
mod wait;

pub use cache::{Access, Cache, Config};
pub use counters::Counters;
pub use error::Error;
pub use geometry::{Geometry, LINE_SIZE, MIN_WAYS};
pub use machine::{
    Backing, IoFailed, Lines, Machine, MapFailed, Mapper, RemoteAddr, RemoteStore, Source, Unmapped,
};
/// What [`Cache::fill_times`] and [`Cache::flush_times`] tell.
pub use metrics::Summary;
pub use page::{LineId, Page, SpaceId, Token, Vpn};
pub use pin::{Load, Pinned};
pub use set::Policy;
pub use wait::Got;
