//! The high precision event timer's numbers: its frequency, and the counts of a measured span.
//!
//! Layout: IA-PC HPET specification 1.0a, section 2.3.4 (capabilities).

const FEMTOS: u64 = 1_000_000_000_000_000;
/// Longest period that the specification allows, 100 ns; a shorter one than 100 ps is garbage.
const PERIODS: core::ops::RangeInclusive<u32> = 100_000..=0x05f5_e100;
/// Femtoseconds of the measured span, 2 ms.
const SPAN: u64 = 2_000_000_000_000;

/// A timer by its period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hpet {
    /// Femtoseconds.
    period: u32,
}

impl Hpet {
    /// Reads the two halves of the capabilities; `None` where they are none of a timer.
    pub(super) fn new(capabilities: u32, period: u32) -> Option<Self> {
        // A revision of 0 is not allowed.
        let has_revision = capabilities & 0xff != 0 && capabilities != u32::MAX;
        (has_revision && PERIODS.contains(&period)).then_some(Self { period })
    }

    /// Returns its frequency.
    pub(super) fn hz(self) -> u64 {
        FEMTOS / u64::from(self.period)
    }

    /// Returns its counts over the span.
    pub(super) fn span(self) -> u32 {
        u32::try_from(SPAN / u64::from(self.period)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_gives_frequency_and_span() {
        // QEMU's, of 100 MHz, and that of Intel's chipsets.
        let qemu = Hpet::new(0x8086_a201, 10_000_000).expect("a timer");
        assert_eq!((qemu.hz(), qemu.span()), (100_000_000, 200_000));
        let intel = Hpet::new(0x8086_a701, 69_841_279).expect("a timer");
        assert_eq!((intel.hz(), intel.span()), (14_318_179, 28_636));
    }

    #[test]
    fn what_is_no_timer_is_refused() {
        for (capabilities, period) in [
            (u32::MAX, u32::MAX),
            (0, 0),
            (0x8086_a201, 0),
            (0x8086_a200, 10_000_000),
            (0x8086_a201, 0x05f5_e101),
        ] {
            assert_eq!(Hpet::new(capabilities, period), None, "{period}");
        }
    }
}
