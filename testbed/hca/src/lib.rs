//! A software model of the ConnectX-3.
//!
//! [`Cluster`] holds every card of a testbed, the fabric that joins them and its subnet manager. It
//! is sans-IO: it has no clock, no thread and no device of its own. Whoever serves it (a vfio-user
//! server, a test) calls it with the register accesses of each node and with the time, and lends it
//! each node's memory and interrupts through [`Host`].
//!
//! ```text
//!   register access ──► Cluster ──► Hca ──► Firmware        commands: contexts, tables, ports
//!                          │         └────► QueuePair       doorbells and packets
//!                          │                 ├─ Requester   sends, retries, completions
//!                          │                 └─ Responder   receives, checks, answers
//!                          └─────► Fabric    packets between cards, subnet manager
//!   Core: what queue pairs share (memory and its keys, CQs, EQs, ports, timers)
//! ```
//!
//! Whoever wants to know what the cards are asked and do gives the cluster a [`trace::Recorder`].
//!
//! It is made for Linux's drivers as its client. `docs/hardware.md` tells what it models and how it
//! answers where the hardware's behaviour is not certain.
//!
//! # What the model leaves out
//!
//! * Ethernet ports and RoCE, and with them LSO, checksums, VLANs, RSS and flow steering.
//! * SR-IOV, memory windows, alternate paths and their migration.
//! * Contexts lie in the model, not in ICM: software must map the pages, as the hardware demands,
//!   but never finds anything in them. The dMPT, the MTT and the multicast table do lie there and
//!   are read at every use.
//! * Static rates, service levels and virtual lanes have no effect.
//! * B_Keys are not enforced; violations of Q_Keys are not counted; of traps there is that of local
//!   changes only.
//! * Memory outside the machine's is an error of the access, never a machine check.
#![forbid(unsafe_code)]

mod agents;
mod cluster;
mod config;
mod core;
mod counters;
mod cq;
mod datagram;
mod eq;
mod fast_register;
mod firmware;
mod hca;
mod host;
mod icm;
mod memory;
mod pci;
mod pin;
mod port;
mod qp;
mod registers;
mod requester;
mod responder;
mod rng;
mod srq;
pub mod trace;
mod transmit;
mod wqe;

pub use cluster::Cluster;
pub use config::{Board, ClusterConfig, Device, NodeConfig, NodeIndex};
pub use counters::Counters;
pub use host::{DmaError, Host};
pub use rng::Rng;
