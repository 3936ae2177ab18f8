//! Readahead: predicts which neighbours of a missed page will be missed next.
//!
//! These pages are mapped when they arrive, so a scan faults only behind each window. A window
//! grows while faults come where it predicts; the stride is that of the majority of the last faults
//! (the trend of Leap, ATC'20). The share of pages that left unused limits it.

use crate::Vpn;

/// Pages read ahead at most, with one miss.
pub const MAX_WINDOW: u32 = 15;
/// Faults whose distances vote.
const VOTES: usize = 8;
/// Pages of readahead, used or evicted, after which the share of waste is computed again.
const JUDGED: u64 = 32;
/// Strides longer than this, in pages, are no trend.
const MAX_STRIDE: i64 = 64;

/// Pages to read with a missed one: `count` of them, each `stride` pages further.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Pages from one to the next.
    pub stride: i64,
    /// The number of pages.
    pub count: u32,
}

impl Plan {
    /// Reads nothing ahead.
    pub const NONE: Self = Self {
        stride: 0,
        count: 0,
    };

    /// Returns the distances from the missed page.
    pub fn distances(self) -> impl Iterator<Item = i64> {
        (1..=i64::from(self.count)).map(move |n| n * self.stride)
    }
}

/// A mapping's advice (`madvise`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Advice {
    /// No advice (`MADV_NORMAL`).
    #[default]
    Normal,
    /// Accesses are sequential (`MADV_SEQUENTIAL`).
    Sequential,
    /// Accesses are random (`MADV_RANDOM`).
    Random,
}

/// A miss, the input of a [`Prefetcher`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Miss {
    /// The page.
    pub vpn: Vpn,
    /// The advice that its mapping was given.
    pub advice: Advice,
    /// Pages read ahead that were used, and that left unused:
    /// [`Cache::read_ahead`](crate::Cache::read_ahead).
    pub fate: (u64, u64),
}

/// The recent misses of a thread.
#[derive(Clone, Debug, Default)]
pub struct Prefetcher {
    last: Vpn,
    plan: Plan,
    votes: [i64; VOTES],
    next_vote: usize,
    /// The distance that most of the votes are for, if it is one to follow.
    trend: Option<i64>,
    limit: Option<u32>,
    judged: (u64, u64),
}

impl Prefetcher {
    /// Takes a miss; returns what to read with it.
    pub fn miss(&mut self, Miss { vpn, advice, fate }: Miss) -> Plan {
        self.judge(fate);
        let distance = vpn.0.wrapping_sub(self.last.0).cast_signed();
        let predicted = self.predicted(distance);
        self.last = vpn;
        if !predicted {
            self.vote(distance);
        }
        self.plan = match advice {
            Advice::Random => Plan::NONE,
            Advice::Sequential => Plan {
                stride: 1,
                count: MAX_WINDOW,
            },
            Advice::Normal if predicted => Plan {
                stride: self.plan.stride,
                count: (self.plan.count * 2 + 1).min(self.limit()),
            },
            Advice::Normal => match self.trend {
                Some(stride) => Plan {
                    stride,
                    count: 1.min(self.limit()),
                },
                None => Plan::NONE,
            },
        };
        self.plan
    }

    fn limit(&self) -> u32 {
        self.limit.unwrap_or(MAX_WINDOW)
    }

    /// Returns whether a miss this far from the last one is what the last plan predicts: on its
    /// stride, and not beyond the first page behind the window.
    fn predicted(&self, distance: i64) -> bool {
        let Plan { stride, count } = self.plan;
        if count == 0 || stride == 0 || distance % stride != 0 {
            return false;
        }
        (1..=i64::from(count) + 1).contains(&(distance / stride))
    }

    /// Takes a vote in the place of the oldest. Only that which comes can gain a majority, and only
    /// that which goes can lose it: misses at random are not counted at all.
    fn vote(&mut self, distance: i64) {
        let gone = core::mem::replace(&mut self.votes[self.next_vote], distance);
        self.next_vote = (self.next_vote + 1) % VOTES;
        let fits = distance != 0 && (-MAX_STRIDE..=MAX_STRIDE).contains(&distance);
        if fits && self.has_majority(distance) {
            self.trend = Some(distance);
        } else if self.trend == Some(gone) && !self.has_majority(gone) {
            self.trend = None;
        }
    }

    fn has_majority(&self, distance: i64) -> bool {
        self.votes.iter().filter(|&&vote| vote == distance).count() > VOTES / 2
    }

    /// Narrows the window when most pages read ahead left unused, and widens it when few did.
    fn judge(&mut self, (used, wasted): (u64, u64)) {
        let new = (
            used.saturating_sub(self.judged.0),
            wasted.saturating_sub(self.judged.1),
        );
        if new.0 + new.1 < JUDGED {
            return;
        }
        self.judged = (used, wasted);
        let limit = self.limit();
        self.limit = Some(if new.1 > new.0 {
            limit / 2
        } else {
            (limit * 2 + 1).min(MAX_WINDOW)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(vpn: Vpn, advice: Advice, fate: (u64, u64)) -> Miss {
        Miss { vpn, advice, fate }
    }

    /// Plays accesses to pages; returns how many missed.
    fn misses(pages: impl Iterator<Item = u64>) -> usize {
        let (mut prefetcher, mut here) = (Prefetcher::default(), std::collections::BTreeSet::new());
        let mut misses = 0;
        for vpn in pages {
            if here.insert(vpn) {
                misses += 1;
                let plan = prefetcher.miss(told(Vpn(vpn), Advice::Normal, (0, 0)));
                here.extend(plan.distances().map(|d| vpn.wrapping_add_signed(d)));
            }
        }
        misses
    }

    #[test]
    fn scans_miss_one_page_in_sixteen() {
        for scan in [
            misses(1000..2600),
            misses((1000..2600).rev()),
            misses((0..1600).map(|n| 1000 + 7 * n)),
        ] {
            assert!(scan < 1600 / 12, "{scan} misses in 1600 pages");
        }
    }

    #[test]
    fn two_interleaved_scans_do_not_read_wildly() {
        let pages = (0..800).flat_map(|n| [n, 100_000 + n]);
        assert_eq!(misses(pages), 1600, "their distances have no majority");
    }

    #[test]
    fn random_misses_read_nothing_ahead() {
        let mut prefetcher = Prefetcher::default();
        let mut x = 1_u64;
        let planned: u32 = (0..1000)
            .map(|_| {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                prefetcher
                    .miss(told(Vpn(x >> 40), Advice::Normal, (0, 0)))
                    .count
            })
            .sum();
        assert_eq!(planned, 0);
    }

    #[test]
    fn advice_overrides_the_trend() {
        let mut prefetcher = Prefetcher::default();
        let plan = prefetcher.miss(told(Vpn(5), Advice::Sequential, (0, 0)));
        assert_eq!((plan.stride, plan.count), (1, MAX_WINDOW));
        let plan = prefetcher.miss(told(Vpn(6), Advice::Random, (0, 0)));
        assert_eq!(plan, Plan::NONE);
    }

    #[test]
    fn waste_narrows_the_window_and_use_widens_it() {
        let mut prefetcher = Prefetcher::default();
        let mut scan = |fate, from: u64| {
            (from..from + 200)
                .map(|n| prefetcher.miss(told(Vpn(n), Advice::Normal, fate)).count)
                .max()
        };
        assert_eq!(scan((0, 100), 0), Some(7));
        assert_eq!(scan((0, 300), 1000), Some(3));
        assert_eq!(scan((100, 300), 2000), Some(7));
    }
}
