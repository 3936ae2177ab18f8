//! A bound on what strangers can make this node log.

use hal::{Duration, Instant};

const BURST: u32 = 8;
const REFILL: Duration = Duration::from_secs(1);

/// Lets through eight lines at once and one more a second; the rest is counted only.
#[derive(Debug)]
pub(crate) struct Limiter {
    left: u32,
    refilled: Instant,
}

impl Limiter {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            refilled: now,
        }
    }

    /// Returns whether a line may be written now.
    pub(crate) fn allows(&mut self, now: Instant) -> bool {
        while self.left < BURST && now.since(self.refilled) >= REFILL {
            self.left += 1;
            self.refilled = self.refilled + REFILL;
        }
        if self.left == BURST {
            self.refilled = now;
        }
        let allows = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_a_burst_and_a_line_a_second() {
        let mut now = Instant::from_nanos(5);
        let mut limiter = Limiter::new(now);
        let mut lines = 0;
        for _ in 0..10_000 {
            lines += u32::from(limiter.allows(now));
            now = now + Duration::from_millis(1);
        }
        assert_eq!(lines, BURST + 9);
    }
}
