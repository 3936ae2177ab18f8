//! A small histogram of times, for many writers.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;

/// Steps within each power of two: the error of a percentile is at most one eighth.
const STEPS: u64 = 8;
/// Powers of two beyond the first step; the last bucket takes all that is longer (some 18 minutes).
const POWERS: u64 = 37;
const BUCKETS: usize = 304;
const _: () = assert!(BUCKETS as u64 == (POWERS + 1) * STEPS);

/// Counts times in buckets that grow with the time, so that percentiles cost no memory a sample.
///
/// Counting one is two atomic additions, so it may stand on the miss path. Any number of cores may
/// record at once; a summary or a clone taken meanwhile may miss the last few.
#[derive(Debug)]
pub struct Histogram {
    total_ns: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// Summary of a [`Histogram`]; times in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// The number of samples.
    pub count: u64,
    /// Their mean.
    pub avg_ns: u64,
    /// A time that half of the samples do not exceed.
    pub p50_ns: u64,
    /// A time that 99 of 100 samples do not exceed.
    pub p99_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            total_ns: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

impl Clone for Histogram {
    fn clone(&self) -> Self {
        Self {
            total_ns: AtomicU64::new(self.total_ns.load(Relaxed)),
            buckets: self
                .buckets
                .each_ref()
                .map(|b| AtomicU64::new(b.load(Relaxed))),
        }
    }
}

impl Histogram {
    /// Counts one sample.
    #[inline]
    pub fn record(&self, time: Duration) {
        let ns = time.as_secs().saturating_mul(1_000_000_000);
        self.record_ns(ns.saturating_add(time.subsec_nanos().into()));
    }

    /// Counts one sample of so many nanoseconds: half the work, for those who count in them.
    #[inline]
    pub fn record_ns(&self, ns: u64) {
        self.total_ns.fetch_add(ns, Relaxed);
        self.buckets[bucket(ns)].fetch_add(1, Relaxed);
    }

    /// Count, mean and percentiles of what was recorded so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let count: u64 = self.buckets.iter().map(|b| b.load(Relaxed)).sum();
        Summary {
            count,
            avg_ns: self.total_ns.load(Relaxed).checked_div(count).unwrap_or(0),
            p50_ns: self.percentile(count, 50),
            p99_ns: self.percentile(count, 99),
        }
    }

    /// The upper end of the bucket in which the sample of rank `percent` per cent of `count` lies;
    /// 0 without samples.
    fn percentile(&self, count: u64, percent: u64) -> u64 {
        let rank = (count.saturating_mul(percent)).div_ceil(100);
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket.load(Relaxed);
            if seen >= rank && seen > 0 {
                return upper_end(index as u64);
            }
        }
        0
    }
}

/// The bucket of `ns`: the first [`STEPS`] hold one value each, then each power of two has
/// [`STEPS`].
#[inline]
fn bucket(ns: u64) -> usize {
    // With the bit of the first step set, small values need no case of their own: their shift is
    // zero.
    let shift = (ns | STEPS).ilog2() - STEPS.ilog2();
    let index = u64::from(shift) * STEPS + (ns >> shift);
    usize::try_from(index).map_or(BUCKETS - 1, |i| i.min(BUCKETS - 1))
}

/// The largest time of bucket `index`.
fn upper_end(index: u64) -> u64 {
    if index < STEPS {
        return index;
    }
    let shift = index / STEPS - 1;
    ((STEPS + index % STEPS + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn empty_histogram_is_all_zero() {
        assert_eq!(Histogram::default().summary(), Summary::default());
    }

    #[test]
    fn percentiles_find_the_tail() {
        let h = Histogram::default();
        for _ in 0..98 {
            h.record(Duration::from_nanos(5));
        }
        h.record(Duration::from_nanos(1_000));
        h.record(Duration::from_nanos(1_000_000));
        let s = h.summary();
        assert_eq!((s.count, s.p50_ns), (100, 5));
        assert_eq!(s.avg_ns, (98 * 5 + 1_000 + 1_000_000) / 100);
        assert!((1_000..1_125).contains(&s.p99_ns), "{}", s.p99_ns);
    }

    #[test]
    fn a_clone_keeps_what_was_counted_and_counts_on_its_own() {
        let h = Histogram::default();
        h.record(Duration::from_nanos(7));
        let clone = h.clone();
        assert_eq!(clone.summary(), h.summary());
        h.record(Duration::from_nanos(7));
        assert_eq!((clone.summary().count, h.summary().count), (1, 2));
    }

    proptest! {
        #[test]
        fn bucket_holds_its_value(ns in 0u64..1 << 39) {
            let index = bucket(ns) as u64;
            prop_assert!(ns <= upper_end(index));
            prop_assert!(index == 0 || ns > upper_end(index - 1));
            prop_assert!(upper_end(index) - ns <= ns / 8);
        }

        #[test]
        fn any_time_has_a_bucket(ns: u64) {
            prop_assert!(bucket(ns) < BUCKETS);
        }

        #[test]
        fn percentiles_follow_a_sorted_list(mut values in proptest::collection::vec(0u64..1 << 30, 1..200)) {
            let h = Histogram::default();
            values.iter().for_each(|&ns| h.record(Duration::from_nanos(ns)));
            values.sort_unstable();
            let end_of = |percent: usize| upper_end(bucket(values[(values.len() * percent).div_ceil(100) - 1]) as u64);
            let summary = h.summary();
            prop_assert_eq!(summary.count, values.len() as u64);
            prop_assert_eq!((summary.p50_ns, summary.p99_ns), (end_of(50), end_of(99)));
        }
    }
}
