//! Durations of calls: every one is kept, so the figures are exact.

use alloc::vec::Vec;

/// Times of calls, in nanoseconds.
#[derive(Debug, Default)]
pub struct Times(Vec<u32>);

/// Median, mean and 99th percentile of the calls' durations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Median.
    pub typical_ns: u64,
    /// Mean.
    pub average_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
}

impl Times {
    /// Creates an empty list with room for `calls` calls.
    #[must_use]
    pub fn with_capacity(calls: usize) -> Self {
        Self(Vec::with_capacity(calls))
    }

    /// Adds a call; one of more than four seconds counts as four.
    pub fn add(&mut self, nanos: u64) {
        self.0.push(u32::try_from(nanos).unwrap_or(u32::MAX));
    }

    /// Adds those of another.
    pub fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// Returns the number of calls.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether no call was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the figures; zeros if there is no call.
    #[must_use]
    pub fn summary(mut self) -> Summary {
        let count = self.0.len();
        self.0.sort_unstable();
        let rank = |percent: usize| {
            let place = (count * percent).div_ceil(100).saturating_sub(1);
            self.0.get(place).copied().unwrap_or(0).into()
        };
        let sum: u64 = self.0.iter().copied().map(u64::from).sum();
        Summary {
            typical_ns: rank(50),
            average_ns: sum.checked_div(count as u64).unwrap_or(0),
            p99_ns: rank(99),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_late_ones_show_in_the_average_and_the_last_hundredth_only() {
        let mut times = Times::with_capacity(200);
        let mut other = Times::default();
        (0..197).for_each(|_| times.add(10));
        (0..3).for_each(|_| other.add(1000));
        times.append(other);
        assert_eq!(times.len(), 200);
        let summary = times.summary();
        assert_eq!((summary.typical_ns, summary.p99_ns), (10, 1000));
        assert_eq!(summary.average_ns, (197 * 10 + 3 * 1000) / 200);
    }

    #[test]
    fn the_middle_and_the_last_hundredth_of_a_hundred() {
        let mut times = Times::default();
        (1..=100).rev().for_each(|nanos| times.add(nanos));
        let summary = times.summary();
        assert_eq!(
            (summary.typical_ns, summary.average_ns, summary.p99_ns),
            (50, 50, 99)
        );
        assert_eq!(Times::default().summary(), Summary::default());
    }

    #[test]
    fn a_call_beyond_measure_counts_as_the_longest() {
        let mut times = Times::default();
        times.add(u64::MAX);
        assert_eq!(times.summary().typical_ns, u32::MAX.into());
    }
}
