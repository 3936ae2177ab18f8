//! The modelled InfiniBand fabric: links, one switch, a subnet manager and a subnet administrator.
//!
//! [`Fabric`] is sans-IO: cards hand it [`Packet`]s with the time, and take from it what has
//! arrived where. Packets are structures, not bytes: between two cards of one process nothing needs
//! to be serialised.
//!
//! The switch is a node with an agent of its own: it passes directed routes on, answers SMPs,
//! reports links that changed, and forwards by the tables that a subnet manager writes into it.
//!
//! The fabric's own subnet manager sits on the switch, at LID 1. It brings each port that has a
//! link up to ACTIVE by directed-route SMPs, gives LIDs in the order in which ports first arrive (a
//! port keeps its LID), and answers subnet administration on QP1: paths, nodes, ports and multicast
//! groups. A fabric can also be left to a subnet manager behind one of its ports
//! ([`Manager::Foreign`]).
//!
//! # What is left out
//!
//! * One switch: no topology, no credit flow between ports, no virtual lanes that could block each
//!   other. Links have a rate where the configuration says so; what waits for a full one waits
//!   without bound in the switch.
//! * The switch checks no M_Key. Its links make no errors that could be counted.
//! * The own subnet manager takes no trap but that of local changes, and hands over to nobody.
//! * Subnet administration answers GET, GET_TABLE, SET and DELETE of the records in [`mad::sa`]. A
//!   table of one segment is not sent again when it gets lost: who asked has to ask anew.
//! * Ethernet.
#![forbid(unsafe_code)]

mod config;
pub mod counters;
mod fabric;
mod faults;
mod packet;
mod rmpp;
mod sa;
mod sm;
mod switch;

pub use config::{FabricConfig, Faults, LinkRate, Manager};
pub use fabric::{Fabric, PortIndex};
pub use faults::FaultCounts;
pub use packet::{
    AckCode, AtomicOp, Grh, NakCode, Operation, Packet, Place, RemoteRange, Service, is_multicast,
};
pub use sm::{SM_LID, management_packet};
pub use switch::widths_of;
