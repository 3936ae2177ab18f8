//! Seeded faults on the links.

use hal::Duration;

use crate::Faults;

/// Fault injector's decision on one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Copies that arrive: 0 if the packet is lost, 2 if it is duplicated.
    pub(crate) copies: u8,
    /// Delay beyond the usual latency.
    pub(crate) late_by: Duration,
}

/// Packets that faults befell so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Packets that were lost.
    pub lost: u64,
    /// Packets that were delivered twice.
    pub duplicated: u64,
    /// Packets that were held back.
    pub reordered: u64,
}

/// Decides the fate of packets, the same for the same seed.
pub(crate) struct FaultInjector {
    faults: Faults,
    state: u64,
    counts: FaultCounts,
}

impl FaultInjector {
    pub(crate) fn new(faults: Faults, seed: u64) -> Self {
        Self {
            faults,
            state: seed,
            counts: FaultCounts::default(),
        }
    }

    pub(crate) fn counts(&self) -> FaultCounts {
        self.counts
    }

    pub(crate) fn judge(&mut self) -> Verdict {
        let mut verdict = Verdict {
            copies: 1,
            late_by: Duration::ZERO,
        };
        if self.faults == Faults::default() {
            return verdict;
        }
        if self.chance(self.faults.loss) {
            verdict.copies = 0;
            self.counts.lost += 1;
        } else if self.chance(self.faults.duplicate) {
            verdict.copies = 2;
            self.counts.duplicated += 1;
        }
        if self.chance(self.faults.reorder) {
            verdict.late_by = self.faults.delay;
            self.counts.reordered += 1;
        }
        verdict
    }

    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.fraction() < probability
    }

    /// Draws a number from 0 up to 1, by splitmix64 (Steele, Lea, Flood: "Fast splittable
    /// pseudorandom number generators").
    fn fraction(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // The upper 53 bits fit a double exactly.
        (z >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_come_as_often_as_asked_and_repeat_with_the_seed() {
        let faults = Faults {
            loss: 0.25,
            ..Faults::default()
        };
        let lost = |seed| {
            let mut injector = FaultInjector::new(faults, seed);
            (0..4000).filter(|_| injector.judge().copies == 0).count()
        };
        assert!((900..1100).contains(&lost(1)), "{}", lost(1));
        assert_eq!(lost(7), lost(7));
    }
}
