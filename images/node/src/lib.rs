//! Start of every component: bring the HCA up, join the fabric and the cluster.
//!
//! A component's `main.rs` starts a `Node`, finds the members it needs, and then runs its role. On
//! the host the crate is empty: everything here needs the machine.
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
pub use start::{Card, Core, Fit, Node, end, finish, log_profile};
