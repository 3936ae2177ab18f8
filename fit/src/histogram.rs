//! A latency histogram of fixed size: powers of two, each cut into eight.

use hal::Duration;

const SUB_BITS: u32 = 3;
const SUB: usize = 1 << SUB_BITS;
/// Up to 2^40 ns, some 18 minutes; longer ones count into the last bucket.
const BUCKETS: usize = SUB * 39;

/// Counts durations; tells their average and percentiles, the latter within an eighth.
///
/// Adding one is a few instructions and no allocation, so it may stand on the miss path.
#[derive(Debug, Clone)]
pub struct Histogram {
    buckets: [u32; BUCKETS],
    count: u64,
    total_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [0; BUCKETS],
            count: 0,
            total_ns: 0,
        }
    }
}

/// Values below 8 have a bucket each; above, the bucket is the exponent and the three bits below the leading one.
fn bucket(ns: u64) -> usize {
    let exponent = ns.max(1).ilog2();
    let index = if exponent < SUB_BITS {
        ns
    } else {
        let shift = exponent - SUB_BITS;
        (u64::from(shift) << SUB_BITS) + (ns >> shift)
    };
    usize::try_from(index).map_or(BUCKETS - 1, |index| index.min(BUCKETS - 1))
}

/// The largest value that falls into a bucket.
fn upper(index: usize) -> u64 {
    if index < 2 * SUB {
        return index as u64;
    }
    let shift = index / SUB - 1;
    let lead = (index % SUB + SUB) as u64;
    ((lead + 1) << shift) - 1
}

impl Histogram {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one duration.
    pub fn add(&mut self, span: Duration) {
        let ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let bucket = &mut self.buckets[bucket(ns)];
        *bucket = bucket.saturating_add(1);
        self.count += 1;
        self.total_ns = self.total_ns.saturating_add(ns);
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their average; zero of none.
    #[must_use]
    pub fn average(&self) -> Duration {
        Duration::from_nanos(self.total_ns.checked_div(self.count).unwrap_or(0))
    }

    /// The duration that `permille` in 1000 of them do not exceed, rounded up to its bucket's end; zero of none.
    #[must_use]
    pub fn percentile(&self, permille: u16) -> Duration {
        let rank = (self.count * u64::from(permille.min(1000))).div_ceil(1000).max(1);
        let mut seen = 0;
        for (index, &count) in self.buckets.iter().enumerate() {
            seen += u64::from(count);
            if seen >= rank {
                return Duration::from_nanos(upper(index));
            }
        }
        Duration::ZERO
    }

    /// Counts in everything that `other` counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine = mine.saturating_add(*theirs);
        }
        self.count += other.count;
        self.total_ns = self.total_ns.saturating_add(other.total_ns);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bucket_ends_at_most_an_eighth_above_its_values(ns in 0u64..1 << 40) {
            let end = upper(bucket(ns));
            prop_assert!(end >= ns);
            prop_assert!(end - ns <= ns / 8);
        }

        #[test]
        fn percentiles_follow_a_sorted_list(mut values in proptest::collection::vec(0u64..1 << 30, 1..200), permille in 1u16..=1000) {
            let mut histogram = Histogram::new();
            values.iter().for_each(|&ns| histogram.add(Duration::from_nanos(ns)));
            values.sort_unstable();
            let rank = (values.len() * usize::from(permille)).div_ceil(1000).max(1);
            let exact = values[rank - 1];
            prop_assert_eq!(histogram.percentile(permille), Duration::from_nanos(upper(bucket(exact))));
            prop_assert_eq!(histogram.count(), values.len() as u64);
        }
    }

    #[test]
    fn nothing_counted_is_zero() {
        assert_eq!(Histogram::new().percentile(500), Duration::ZERO);
        assert_eq!(Histogram::new().average(), Duration::ZERO);
    }

    #[test]
    fn absurd_durations_count_into_the_last_bucket() {
        let mut histogram = Histogram::new();
        histogram.add(Duration::MAX);
        assert_eq!(
            histogram.percentile(1000),
            Duration::from_nanos(upper(BUCKETS - 1))
        );
    }
}
