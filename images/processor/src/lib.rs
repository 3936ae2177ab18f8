//! P: runs programs whose memory is elsewhere.
//!
//! A [`Process`] is a Linux program: its memory ([`mm::Space`]), its files, and the system calls it makes. Its pages come
//! and go through [`pcache`]; M lends the chunks behind them, S has the files. The kernel never faults on a program's
//! memory: it looks at the entry's rights and copies while the line is locked.
//!
//! The library knows neither kernel nor network. The image's `main.rs` fills in [`Node`]: lines and page tables
//! ([`pcache::Machine`], [`mm::Tables`]), clock and console ([`Platform`]), M ([`Memory`]), S ([`Files`]) and threads
//! ([`Cpu`]).
//!
//! # What is left out
//!
//! * Threads, fork, exec, pipes, sockets: one process of one thread. `docs/linux-abi.md` has the table of calls.
//! * Delivery of signals to handlers: a signal that a program sends itself has its default effect.
//! * Dynamic programs (PT_INTERP), writing to files, shared mappings of files. A private mapping of a file is read whole
//!   when it is made.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod ahead;
mod device;
pub mod elf;
mod error;
mod fault;
mod files;
mod input;
mod load;
pub mod mm;
mod names;
mod platform;
mod process;
pub mod remote;
mod report;
mod signals;
pub mod stack;
mod syscall;
#[cfg(test)]
mod tests;

pub use error::{Error, Exit, Result};
pub use input::Input;
pub use load::{Command, Refusal};
pub use names::name as system_call_name;
pub use platform::{Cpu, Files, Memory, Peer, Platform, Stream, SystemCall, Trap};
pub use process::{Node, Process};
pub use report::Report;
