//! A machine in the test's own process: the hal over the ConnectX-3 model.
//!
//! A [`Testbed`] has a cluster of modelled cards and a clock of its own. Each [`Machine`] is a
//! [`hal::Platform`] that a driver runs on unchanged; [`Faulty`] around it makes things go wrong.
//!
//! ```
//! use harness::Testbed;
//! use hal::{Duration, Platform};
//!
//! let mut bed = Testbed::default();
//! let machine = bed.add_machine("p0", verbs::Guid(0x0002_c903_0000_1000));
//! let before = bed.now();
//! bed.block_on(machine.sleep(Duration::from_millis(5)));
//! assert_eq!(bed.now().since(before), Duration::from_millis(5));
//! ```
//!
//! Left out: interrupt masking (every vector is unmasked once enabled), more than one card a
//! machine, real time, commands that are delayed rather than lost.
#![forbid(unsafe_code)]

mod bed;
mod faults;
mod machine;
mod memory;

pub use bed::Testbed;
pub use fabric::{FabricConfig, Faults as LinkFaults, LinkRate};
pub use faults::{Faults, Faulty, FaultyBar, FaultyBuffer, FaultyConfig, FaultyVector, Fired};
pub use hca_model::{Board as CardBoard, ClusterConfig, Device, NodeConfig, Rng, trace};
pub use machine::{Bar, Board, CardConfigSpace, Machine, Vector, World};
pub use memory::Buffer;
