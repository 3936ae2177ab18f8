//! The fabric's parameters.

use hal::Duration;

/// The parameters of a fabric.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FabricConfig {
    /// The time a packet takes from port to port. Zero delivers within the call that sent it.
    pub latency: Duration,
    /// Rate of the links; without one a packet takes no time on a link, and no link is ever full.
    pub rate: Option<LinkRate>,
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

/// Rate of a link's lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkRate {
    /// QDR: 10 Gb/s in codes of 8b/10b.
    Qdr,
    /// FDR: 14.0625 Gb/s in codes of 64b/66b.
    Fdr,
}

impl LinkRate {
    /// Returns the time that a packet of `bytes` takes on a link of so many lanes.
    #[must_use]
    pub fn time_of(self, bytes: u64, lanes: u32) -> Duration {
        // Kilobits of data a second and lane.
        let lane = match self {
            Self::Qdr => 8_000_000,
            Self::Fdr => 13_636_363,
        };
        let picoseconds = bytes.saturating_mul(8_000_000_000) / (lane * u64::from(lanes.max(1)));
        Duration::from_nanos(picoseconds.div_ceil(1000))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_takes_as_long_as_its_bits() {
        // 4124 bytes at 32 and 54.5 Gb/s; on one lane four times as long.
        let nanos = |rate: LinkRate, lanes| rate.time_of(4124, lanes).as_nanos();
        assert_eq!(nanos(LinkRate::Qdr, 4), 1031);
        assert_eq!(nanos(LinkRate::Fdr, 4), 605);
        assert_eq!(nanos(LinkRate::Qdr, 1), 4124);
    }
}
