//! An NVMe controller in software, for tests of a driver in one process.
//!
//! * [`Controller`]: registers, queues and commands; pure, with the time and a seed as arguments.
//! * [`ControllerFacts`]: what it is, and which faults it has.
//! * [`Medium`]: its blocks, with a cache that a loss of power takes.
//! * [`Bench`]: a machine with one, its clock and its executor.
//!
//! It shares the layouts of `nvme_hw` with the driver, and nothing else. It is stricter than
//! devices are: DMA without the bus, to memory that is not allocated, or by a PRP that breaks
//! section 4.3's rules is counted as a violation, as are doorbells out of range, identifiers in
//! use twice and queues that overflow.
//!
//! # What is left out
//!
//! Namespaces beside number 1, SGLs, metadata, more than one interrupt vector, features beside the
//! number of queues, asynchronous events, arbitration: commands are fetched as they come.
#![forbid(unsafe_code)]

mod bench;
mod config_space;
mod controller;
mod execute;
mod facts;
mod medium;
mod rng;

pub use bench::Bench;
pub use controller::Controller;
pub use facts::{ControllerFacts, Faults};
pub use medium::Medium;
