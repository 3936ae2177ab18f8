//! The set-associative cache in front of remote memory.
//!
//! Three things and no fourth:
//!
//! * A [`Slot`] is one page of remote memory: a chunk that M lends, and a page in it. [`Chunks`]
//!   knows where each chunk lies, which slots are in use, and how many users a slot has.
//! * A page-table entry ([`Pte`]) is the truth about a page: present (a line's frame), remote (a
//!   slot), or empty. So a miss needs no VMA and no map: trap, walk, slot.
//! * A line is a frame that holds a slot. It knows which entries map it, so that a page shared by
//!   fork, by `MAP_SHARED` or as a file's page is one line.
//!
//! The cache decides, and acts through a [`Machine`]: it knows neither how tables are walked, nor
//! the network. It never blocks and allocates nothing after it was made:
//!
//! * [`Cache::touch`] is the miss path; [`Cache::complete`] takes the end of each transfer.
//! * [`Cache::install`], [`Cache::copy`], [`Cache::reuse`] give pages a slot of their own.
//! * [`Cache::drop_page`], [`Cache::share_page`], [`Cache::move_page`], [`Cache::protect_page`]
//!   change one entry of a space that changes; a [`Batch`] gathers the shootdown.
//!
//! # Locks
//!
//! One spin lock a set. An entry that is not empty changes only under the lock of its slot's set
//! (its marks and rights excepted), so a line's reverse map and the entries always agree. Two sets
//! are locked only to copy a page, the lower first. Leaf locks under them: the pool of further
//! mappings, a core's queue of sets that want a victim, the list of empty chunks, the victim cache
//! where there is one.
//!
//! # What is left out
//!
//! * Lines larger than a page.
//! * A write-back that fails is tried again only when its line is evicted again; the node is told.
#![cfg_attr(not(any(test, interleave)), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate self as pcache;

mod batch;
mod cache;
mod chunks;
#[cfg(all(test, not(interleave)))]
mod cost;
mod counters;
mod divisor;
mod entry;
mod error;
mod evict;
mod fault;
mod fill;
mod geometry;
mod machine;
mod names;
mod policy;
mod prefetch;
mod queue;
mod rmap;
mod set;
mod shootdown;
mod sync;
mod victims;
mod walk;
#[cfg(all(test, not(interleave)))]
#[path = "../tests/world/mod.rs"]
mod world;

pub use batch::Batch;
pub use cache::{Cache, Config};
pub use chunks::{Chunks, TableFull};
pub use counters::Counters;
pub use entry::{Access, Entry, Pte, Rights};
pub use error::Error;
pub use fault::FaultAnswer;
pub use fill::{Content, Filled};
pub use geometry::{Geometry, LINE_SIZE, MAX_WAYS, MIN_WAYS};
pub use machine::{IoFailed, Machine, RemoteAddr};
/// The result of [`Cache::fill_times`] and [`Cache::flush_times`].
pub use metrics::Summary;
pub use names::{CHUNK_PAGES, ChunkId, LineId, Page, Slot, SpaceId, Vpn};
pub use policy::{Mechanism, Policy, Unknown};
pub use prefetch::{Advice, MAX_WINDOW, Miss, Plan, Prefetcher};
pub use rmap::Mapping;
