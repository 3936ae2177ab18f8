//! What every component does first: bring the HCA up, join the fabric, connect to its peers.
//!
//! A component's `main.rs` starts a `Node`, connects it, and then runs its role. On the host the crate is empty: everything
//! here needs the machine.
#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod error;
#[cfg(target_os = "none")]
mod start;

#[cfg(target_os = "none")]
pub use error::Error;
#[cfg(target_os = "none")]
pub use start::{Card, Core, Fit, Node, Peers, end, finish};
