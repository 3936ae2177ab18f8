//! FIT: connections, RPC and one-sided access over verbs.
//!
//! A node makes one [`Fit`] from its HCA, spawns [`Fit::control`] once and [`Fit::run_core`] for
//! each core. With [`Config::discover`] it [finds](Fit::find) the other members of its [`Cluster`]
//! by itself; without, it [connects](Fit::connect) to those it is told. Both sides prove that they
//! hold the cluster's key. Calls and one-sided accesses go through a [`Core`]; requests of peers
//! reach a [`Handler`] through [`Core::serve`].
//!
//! Inside, everything that decides is a state machine without clock, thread or device of its own:
//! [`Engine`] for the data path (slots, credits, deadlines), `membership` and `handshake` for who
//! is there. The asynchronous face only feeds them. The handshake is drawn in `docs/fit.md`;
//! [`Depths`] gives the credit arithmetic.
//!
//! # What is left out
//!
//! More than some 65,000 peers at a time; one-way messages with bulk; RoCE.
#![cfg_attr(not(any(test, interleave)), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod arrivals;
mod bulk;
mod call;
mod calls;
mod config;
mod control;
mod counters;
mod due;
mod engine;
mod error;
#[cfg(any(test, feature = "fuzz"))]
#[cfg_attr(
    test,
    expect(
        clippy::cast_possible_truncation,
        reason = "the tests' sizes are their own, and small"
    )
)]
mod fake;
#[cfg(feature = "fuzz")]
pub mod fuzzing;
mod group;
mod handler;
mod handshake;
mod incoming;
mod joining;
mod keepalive;
mod link;
mod membership;
mod node;
mod one_sided;
mod one_way;
mod overdue;
mod pages;
mod peer;
mod peers;
mod polling;
mod profile;
mod receive;
mod resolver;
mod ring;
mod room;
mod serve;
mod shared;
mod state;
mod sync;
#[cfg(test)]
mod tests;
mod turns;
mod waiters;
mod wire;

pub use call::{Call, CallId, Piece, Reply};
pub use config::{BadPolling, Config, Depths, Domains, MAX_WORKERS, Polling};
pub use counters::{Counters, KINDS, LinkCounters};
pub use engine::Engine;
pub use error::{Error, LostCause, Operation, Waiting};
pub use handler::{Exchange, Handler};
pub use incoming::Incoming;
pub use membership::{BadKey, Change, Cluster, Incarnation, Key, Member, MembershipCounters, View};
pub use node::{Batch, Core, Fit, Ticket};
pub use one_sided::{AccessEnd, OneSided, OpId};
pub use pages::{PageCounters, PagePath, PageRefused};
pub use peer::{BadPeerSpec, PeerId, PeerName, PeerSpec, Role};
pub use polling::CompletionSource;
pub use profile::{Profile, ProfilePoint};
pub use state::{LinkState, Target};
pub use wire::{HEADER_LEN, MAX_PIECES, VERSION};
