//! InfiniBand management datagrams as bytes: the common header, subnet management (SMP), subnet
//! administration (SA), communication management (CM) and performance counters (PMA), and the
//! packet headers that senders on QP0 and QP1 build.
//!
//! Layouts only, after the InfiniBand Architecture 1.3, volume 1 (chapters 13 to 16), and as Linux
//! has them (`include/rdma/ib_mad.h`, `ib_smi.h`, `ib_sa.h`, `ib_pma.h`). Every format is a plain
//! struct of big-endian numbers; a datagram that came from elsewhere is taken apart by a `parse`
//! function, which never panics and checks what the format promises. What a parsed field means, and
//! whether it makes sense, is its reader's to judge.
//!
//! # What is left out
//!
//! Device management, SNMP tunnelling, baseboard management, vendor classes, and of SA the records
//! that no one here asks for (services, links, traps). RMPP has its header; segmentation is not
//! done.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod cm;
mod header;
mod number;
pub mod pma;
pub mod sa;
pub mod smp;
pub mod wire;

pub use header::{Attribute, Header, MAD_LEN, Mad, Method, MgmtClass, Status};

/// Reasons why bytes are not the expected datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A datagram has 256 bytes.
    #[error("{0} bytes are no management datagram")]
    Length(usize),
    /// Only base version 1 is known.
    #[error("base version {0} is not 1")]
    BaseVersion(u8),
    /// The datagram is of another class.
    #[error("management class {0} where another was expected")]
    Class(MgmtClass),
    /// The class has this version, which is not known.
    #[error("class version {0} is not known")]
    ClassVersion(u8),
    /// A directed route has at most 63 hops.
    #[error("hop count {count}, pointer {pointer} are outside a directed route")]
    Route {
        /// The hop count.
        count: u8,
        /// The hop pointer.
        pointer: u8,
    },
}
