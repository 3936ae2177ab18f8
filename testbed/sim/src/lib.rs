//! Deterministic simulation of whole clusters of FIT.
//!
//! A run is a seed. The unmodified asynchronous [`fit::Fit`] of each node runs over a simulated
//! machine (`hal`) and a simulated HCA (`verbs`), on one thread and in virtual time. From the seed
//! follow the nodes, the faults, the traffic and the order in which everything happens; the same
//! seed makes the same run, down to the hash of its trace.
//!
//! * [`Plan`]: what follows from the seed. [`run`] carries it out and tells the [`Outcome`];
//!   [`shrink`] takes away what a failing plan does not need.
//! * `world`, `executor`, `machine`: time, tasks, clocks and processors that may be skewed, slow or
//!   stopped.
//! * `hca`, `queues`, `qp`, `completion`, `requester`, `responder`, `datagram`: an HCA that is
//!   stricter than hardware. What hardware would only misbehave on is a [`Violation`].
//! * `network`, `sa`: packets, and the subnet administrator with its multicast groups. `hostile`:
//!   somebody without a key who sends what he likes. `rogue`: a member that breaks the
//!   protocol.
//! * [`Kind`], `faults`: what goes wrong by plan.
//! * `workload`: what the nodes do. `check`, `views`, [`Rule`]: what must hold, and who is there in
//!   truth.
//! * [`Sabotage`]: bugs that are built in to see that each rule can be broken.
//!
//! `docs/simulation.md` tells how to use it and what it cannot see.
//!
//! # What is left out
//!
//! Messages are one packet each, so nothing is torn within a message. One port, one processor a
//! node, no page paths.
#![forbid(unsafe_code)]

mod check;
mod cluster;
mod completion;
mod datagram;
mod executor;
mod fault;
mod faults;
mod hca;
mod hostile;
mod machine;
mod memory;
mod network;
mod plan;
mod qp;
mod queues;
mod requester;
mod responder;
mod rng;
mod rogue;
mod rule;
mod sa;
mod sabotage;
mod shrink;
mod trace;
mod views;
mod workload;
mod world;

pub use cluster::{Outcome, run};
pub use fault::{Fault, Impostor, Kind};
pub use plan::{Plan, Rates, rate_names};
pub use rng::Ppm;
pub use rule::{Rule, Violation};
pub use sabotage::Sabotage;
pub use shrink::{Removals, shrink};
pub use trace::Detail;
pub use world::{NodeIndex, Stats};
