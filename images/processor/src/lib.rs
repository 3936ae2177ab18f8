//! P: runs programs whose memory is elsewhere.
//!
//! A [`Process`] is a Linux program, a [`Thread`] one of its flows of control. Memory
//! ([`mm::Space`]), open files and signal actions are parts of their own, which threads share as
//! `clone` says. Pages come and go through [`pcache`]; M lends the chunks behind them, S has the
//! files. The kernel never faults on a program's memory: it looks at the entry's rights and copies
//! while the line is locked.
//!
//! The library knows neither kernel nor network. The image's `main.rs` fills in [`Node`]: lines and
//! page tables ([`pcache::Machine`], [`mm::Tables`]), clock and console ([`Platform`]), M
//! ([`Memory`]), S ([`Files`]) and registers ([`Cpu`]).
//!
//! A map: `thread.rs` is a thread's life, `deliver.rs` what traps and signals do to it, `syscall/`
//! the calls by family, `kernel.rs` what all processes have in common, `load.rs` how a program
//! begins. `console/` is the channel of the program's streams, `terminal/` what a terminal is,
//! `jobs.rs` job control, `strace/` the trace of calls.
//!
//! # Locks
//!
//! Spin locks are held for a few instructions and never across a wait, in this order: the tree of
//! processes, a process's threads, actions or pending signals, then queues. Across waits there are
//! gates ([`Gate`](wait::Gate)): one an address space, for those that change it.
//!
//! # What is left out
//!
//! * Networks other than this node; `docs/linux-abi.md` has the table of calls.
//! * Coherence of mapped pages of S's files between nodes: another node's store shows once a page
//!   is read anew.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod ahead;
pub mod cached_files;
mod console;
mod cores;
mod cpu_time;
mod creds;
mod deliver;
mod device;
pub mod elf;
mod epoll;
mod error;
mod files;
mod find;
mod futex;
pub mod gather;
mod inotify;
#[cfg(all(test, interleave))]
mod interleavings;
mod ipc;
mod jobs;
pub mod kernel;
mod leased;
mod limits;
mod load;
mod locks;
pub mod mm;
mod names;
mod names_lease;
mod object;
mod pidfd;
mod pipe;
mod platform;
mod process;
mod pseudo;
pub mod remote;
mod report;
mod rseq;
mod signal_file;
mod signals;
mod socket;
pub mod stack;
mod storage;
mod strace;
mod syscall;
mod terminal;
#[cfg(test)]
mod tests;
mod texts;
mod thread;
mod timer;
mod timer_file;
mod tmpfs;
pub mod top;
mod users;
pub mod vdso;
mod vsyscall;
pub mod wait;

pub use crate::console::Console;
pub use error::{Error, Exit, Result};
pub use find::find;
pub use kernel::Kernel;
pub use load::{Command, Refusal};
pub use names::name as system_call_name;
pub use platform::{
    Cpu, CpuFacts, Files, Memory, Peer, Platform, REGISTERS, Registers, SystemCall, Trap,
};
pub use process::{Node, Process};
pub use report::Report;
pub use thread::Thread;
