//! NVMe controllers as bytes, for the driver and the model: what lies where.
//!
//! * [`regs`]: controller registers and doorbells. * [`command`]: submission queue entries.
//! * [`completion`]: completion queue entries. * [`identify`]: identify data.
//!
//! Section numbers are those of the NVM Express Base Specification, revision 1.4c, and figures are
//! its figures; it has the NVM command set too, which revision 2.0 put into a document of its own.
//! All numbers are little-endian.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod command;
pub mod completion;
pub mod identify;
pub mod regs;

pub use command::{Command, Opcode};
pub use completion::{Completion, Status};
pub use regs::{AdminQueueAttributes, Cap, ControllerConfig, ControllerStatus};

/// PCI class, subclass and programming interface of an NVMe I/O controller (section 2.1.5).
pub const PCI_CLASS: u32 = 0x01_08_02;
/// The BAR of the registers (sections 2.1.10 and 2.1.11).
pub const BAR: u8 = 0;
