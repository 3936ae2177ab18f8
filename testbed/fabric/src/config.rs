//! The fabric's parameters.

use hal::Duration;

/// The parameters of a fabric.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FabricConfig {
    /// The time a packet takes from port to port. Zero delivers within the call that sent it.
    pub latency: Duration,
    /// Training time of a link, before it carries packets. Linux opens a port some time before it
    /// can answer.
    pub training: Duration,
    /// Manager of the subnet.
    pub manager: Manager,
    /// Fault rates on the links; zero by default.
    pub faults: Faults,
    /// Seed of the faults' RNG: the same seed and the same calls give the same faults.
    pub seed: u64,
}

/// Manager of the subnet: the fabric's own or a node's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Manager {
    /// The fabric's own subnet manager, on the switch, of the highest priority: another one stands
    /// by.
    #[default]
    Own,
    /// One behind a port. Until it comes, no port is ACTIVE.
    Foreign,
}

/// Faults on the links, each by its probability per packet (0 to 1).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Faults {
    /// A packet is lost.
    pub loss: f64,
    /// A packet is delivered twice.
    pub duplicate: f64,
    /// A packet is held back by [`delay`](Self::delay) more, so that later ones overtake it.
    pub reorder: f64,
    /// Extra delay of a packet that is held back.
    pub delay: Duration,
}
