//! A driver of NVMe disks, over [`hal::Platform`].
//!
//! * [`Disk`]: the first namespace of a controller, with reads, writes and flushes.
//! * `bring_up`: from a controller in any state to one with queues.
//! * `hardware`: registers, and waits for them. * `queue`: a pair of queues, without time.
//! * `prp`: how a command names its memory. * `recovery`: requests that are late, and resets.
//!
//! Sections are those of the NVM Express Base Specification 1.4c, as in [`nvme_hw`].
//!
//! # Hostile devices
//!
//! A completion counts only if its queue, its identifier and the identifier's generation belong to
//! an outstanding command. Each wait has a deadline. A command that is late is aborted; if that
//! does not end it, the controller is reset, the late command fails, and the others are sent again.
//! A controller that can't be reset is dead: all requests fail from then on. Data lies in
//! buffers of the driver's, which are used again only after the device gave them back or was reset.
//!
//! # What is left out
//!
//! Namespaces beside the first; metadata and protection information; asynchronous events, so no
//! news of wear or heat; shutdown notification, so that a disk counts each end as a loss of power
//! (what was flushed is durable); more than one interrupt vector; controllers that need a page of
//! more than 4 KiB; SGLs, host memory buffers, power states, trims.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod bring_up;
mod disk;
mod error;
mod hardware;
mod prp;
mod queue;
mod recovery;

pub use disk::{Config, Disk, MAX_TRANSFER};
pub use error::{ControllerNumber, Error, Request, Step};
pub use nvme_hw::PCI_CLASS;
