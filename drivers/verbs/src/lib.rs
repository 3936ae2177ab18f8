//! The RDMA vocabulary: what a driver offers and FIT uses.
//!
//! Two halves, as in every RDMA system:
//!
//! * **Control** ([`Device`]): queue sets, queue pairs and their state, memory regions, the port,
//!   management datagrams. Slow, asynchronous, answered by the HCA's firmware.
//! * **Data** ([`QueueSet`]): posting work and polling completions. Never waits, never allocates,
//!   takes no lock.
//!
//! Pages have a data path of their own ([`PageQueue`]): one queue pair, READs and WRITEs of a page
//! each, named by lines.
//!
//! A queue set is one completion queue with all the queue pairs that complete into it. It belongs
//! to one core: cores share no queue, so posting needs no lock.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod data;
mod device;
mod error;
mod ids;
mod pages;
mod work;

pub use data::QueueSet;
pub use device::{
    Access, Device, DeviceEvent, DeviceLimits, PathToPeer, PortInfo, PortState, QpConfig, QpKind,
    QpState, RcParameters, Region,
};
pub use error::{Error, Failure, Misuse, Operation, Parameter, Resource};
pub use ids::{Address, Cqn, Domain, Gid, Guid, Lid, Lkey, PKey, Psn, QKey, QpSlot, Qpn, Rkey};
pub use pages::{PAGE_LEN, PageFailure, PageOp, PageQueue, PagesConfig, PagesOver, RingFull};
pub use work::{
    Completion, CompletionKind, DatagramSource, Payload, RemoteAddr, SendOp, SendRequest, Sge,
    Status, UdAddress,
};
