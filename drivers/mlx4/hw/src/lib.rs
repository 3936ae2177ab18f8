//! The ConnectX-3 as bytes: registers, mailboxes, contexts, WQEs, CQEs, EQEs.
//!
//! One concept a file, used by the driver and by the model: the driver builds what the model parses
//! and the other way round, so each layout has a test with literal bytes, taken from what public
//! drivers write, that neither side can bend. All structures are plain bytes (`zerocopy`), without
//! padding or alignment; multi-byte fields are big-endian types; fields smaller than a byte are
//! bitfields. Numbers that the other side chose are open enums. No user of this crate shifts or
//! masks.
//!
//! Left out: Ethernet port settings beyond the general ones, device-managed flow steering, RSS
//! contexts, SR-IOV.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod bits;
pub mod command;
pub mod cq;
pub mod eq;
pub mod extended;
pub mod icm;
pub mod init_hca;
pub mod mad_ifc;
pub mod mgm;
pub mod mpt;
pub mod mtt;
pub mod path;
pub mod qp;
pub mod query_adapter;
pub mod query_dev_cap;
pub mod query_fw;
pub mod query_port;
pub mod regs;
pub mod set_port;
pub mod srq;
pub mod wqe;
