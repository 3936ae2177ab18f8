//! The modelled InfiniBand fabric: links, one switch, a subnet manager and a subnet administrator.
//!
//! [`Fabric`] is sans-IO: cards hand it [`Packet`]s with the time, and take from it what has arrived where. Packets are
//! structures, not bytes: between two cards of one process nothing needs to be serialised.
//!
//! The subnet manager sits in the switch, at LID 1. It brings each port that has a link up to ACTIVE by directed-route
//! SMPs, gives LIDs in the order in which ports first arrive (a port keeps its LID), and answers subnet administration
//! on QP1: paths, nodes, ports and multicast groups.
//!
//! # What is left out
//!
//! * One switch: no topology, no credit flow between ports, no virtual lanes that could block each other. A link's
//!   bandwidth is not modelled, only its latency.
//! * The switch is no node of its own to others: directed routes of another subnet manager do not pass it, and it answers
//!   no SMP. Traps are not answered.
//! * Subnet administration answers GET, GET_TABLE, SET and DELETE of the records in [`mad::sa`]. A segment
//!   of a table that gets lost is not sent again: who asked has to ask anew.
//! * Ethernet.
#![forbid(unsafe_code)]

mod config;
mod fabric;
mod faults;
mod packet;
mod rmpp;
mod sa;
mod sm;

pub use config::{FabricConfig, Faults};
pub use fabric::{Fabric, PortIndex};
pub use packet::{
    AckCode, AtomicOp, Grh, NakCode, Operation, Packet, Place, RemoteRange, Service, is_multicast,
};
pub use sm::SM_LID;
