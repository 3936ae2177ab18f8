//! Completions that do not come.
//!
//! A buffer that the device reads, or a place in the send queue, is free when a completion says so.
//! If the device loses one, a later one shows it (`ring`); on a connection on which nothing more is
//! sent there is none. So the oldest request that must complete is watched: if it stays the oldest
//! for long, the connection is lost, and all that it held is free once its queue pair is dead.

use hal::{Duration, Instant};
use mutants::Mutant;

/// Time that a request may take: some five times the time for which the transport tries.
const BOUND: Duration = Duration::from_secs(10);

/// Tracks how long the oldest signalled request has been outstanding.
#[derive(Debug, Default)]
pub(crate) struct Overdue {
    oldest: Option<u64>,
    looked: Instant,
    waited: Duration,
}

impl Overdue {
    /// Looks again; whether it has been the oldest for too long. Time in which this node did not
    /// look counts by an eighth of the bound at most, for completions may be there that it has not
    /// polled.
    pub(crate) fn look(&mut self, oldest: Option<u64>, now: Instant) -> bool {
        let gap = now.since(self.looked).min(BOUND / 8);
        self.looked = now;
        if oldest.is_none() || oldest != self.oldest {
            (self.oldest, self.waited) = (oldest, Duration::ZERO);
            return false;
        }
        self.waited += gap;
        self.waited >= BOUND && !Mutant::LostCompletionUnnoticed.on()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Instant {
        Instant::from_nanos(5_000_000_000) + Duration::from_secs(secs)
    }

    #[test]
    fn a_request_that_stays_the_oldest_is_overdue() {
        let mut overdue = Overdue::default();
        let late = (0..100).find(|&second| overdue.look(Some(7), at(second)));
        assert_eq!(late, Some(10));
    }

    #[test]
    fn requests_that_follow_each_other_and_an_empty_queue_are_not() {
        let mut overdue = Overdue::default();
        assert!((0..100).all(|second| !overdue.look(Some(second / 9), at(second))));
        assert!((100..200).all(|second| !overdue.look(None, at(second))));
    }

    #[test]
    fn a_node_that_did_not_run_polls_first() {
        let mut overdue = Overdue::default();
        assert!(!overdue.look(Some(7), at(0)));
        assert!(!overdue.look(Some(7), at(1000)));
    }
}
