//! Speaks to Linux's rdma tools over our driver, from a host's process or from a unikernel: the
//! image of this package.
//!
//! * [`pingpong`], rdma-core's `ibv_rc_pingpong` and `ibv_ud_pingpong`, either side: their exchange
//!   of addresses over a [`Stream`], and their messages.
//! * [`cm`], connections by the InfiniBand communication manager as Linux's RDMA CM makes them,
//!   either side.
//! * [`rping`], rdma-core's `rping`, either side: its client's memory is read and written by the
//!   server.
//! * [`node`], a card in use, its registered memory, and a queue pair with its queues.
//!
//! Written against `verbs` and `hal`, so it does not know which driver it tests.
//!
//! # What is left out
//!
//! RoCE, IPv6 addresses, inline data, several connections at once. Datagrams of the communication
//! manager that are for nobody here are dropped, not refused.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod cm;
mod error;
pub mod node;
pub mod pingpong;
mod private;
pub mod rping;

use core::future::Future;

pub use error::{Error, Wait};

/// A stream of bytes to a peer, beside the fabric.
pub trait Stream {
    /// Sends all the bytes.
    ///
    /// # Errors
    ///
    /// [`Error::StreamEnded`] when the peer has gone, or [`Error::Timeout`].
    fn send(&mut self, bytes: &[u8]) -> impl Future<Output = Result<(), Error>>;

    /// Fills `into`.
    ///
    /// # Errors
    ///
    /// [`Error::StreamEnded`] when the peer has gone, or [`Error::Timeout`].
    fn receive(&mut self, into: &mut [u8]) -> impl Future<Output = Result<(), Error>>;
}
