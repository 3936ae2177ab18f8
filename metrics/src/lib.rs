//! Measuring for the parts of a node: a [`Histogram`] of times and its [`Summary`].
//!
//! # What is left out
//!
//! Plain counters are integers of whoever counts; there is no registry. How figures leave a node is
//! the image's matter.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod histogram;

pub use histogram::{Histogram, Summary};
