//! A node of FIT and nothing else, for tests of whole machines and for measurements: the image of
//! this package joins a cluster, answers, calls, and tells on its console what becomes of it. Here
//! is what it decides without a machine:
//!
//! * [`options`]: what the command line asks for. * [`payload`]: requests and replies that can be
//!   checked byte by byte.
//! * [`tally`]: what both sides count, and whether they agree. * [`times`]: typical, average and
//!   late calls.
//!
//! # What is left out
//!
//! READs and WRITEs, one-way messages, more than one core.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod options;
pub mod payload;
pub mod tally;
pub mod times;
