//! Finding out that a peer is silent.
//!
//! A stopped machine's HCA still acknowledges, so the question must be answered by software: a ping
//! goes out when nothing came from the peer for a quarter of the bound, and again each quarter; a
//! peer that is silent for all of the bound is lost. Time in which this node itself did not run
//! counts for nobody's silence: of the time between two looks an eighth of the bound counts at
//! most, so a node that wakes up reads first what came meanwhile, and one that always looks late
//! still loses a peer at its ninth look.

use hal::{Duration, Instant};
use mutants::Mutant;

use crate::wire::MessageType;

/// Pings that can be under way: one each quarter of the bound, and one more when the peer is
/// probed.
pub(crate) const PINGS: u32 = 4;

/// Signs of life of the peer.
#[derive(Debug)]
pub(crate) struct Alive {
    bound: Duration,
    /// Time of this node's last look.
    looked: Option<Instant>,
    /// Whether something came since the last look.
    heard: bool,
    /// The time without a word that counts.
    silent: Duration,
    /// Length of the silence at the last ping.
    asked: Option<Duration>,
    ping_due: bool,
    pong_due: bool,
}

impl Alive {
    /// A zero bound stands for none.
    pub(crate) fn new(bound: Duration) -> Self {
        Self {
            bound,
            looked: None,
            heard: false,
            silent: Duration::ZERO,
            asked: None,
            ping_due: false,
            pong_due: false,
        }
    }

    /// Something came from the peer.
    #[inline]
    pub(crate) fn hear(&mut self) {
        self.heard = true;
    }

    /// Lets what was heard count.
    fn listen(&mut self) {
        if core::mem::take(&mut self.heard) {
            (self.silent, self.asked) = (Duration::ZERO, None);
        }
    }

    /// Returns whether a ping or pong is due.
    pub(crate) fn owes_signs(&self) -> bool {
        self.ping_due || self.pong_due
    }

    pub(crate) fn owe_pong(&mut self) {
        self.pong_due = !Mutant::PingsUnanswered.on();
    }

    /// Takes the sign of life to be sent next, if one is due.
    pub(crate) fn next_sign(&mut self) -> Option<MessageType> {
        if core::mem::take(&mut self.pong_due) {
            return Some(MessageType::Pong);
        }
        core::mem::take(&mut self.ping_due).then_some(MessageType::Ping)
    }

    /// Asks the peer, unless it was asked within the last quarter of the bound that counts.
    pub(crate) fn ask(&mut self) {
        self.listen();
        let lately = self
            .asked
            .is_some_and(|asked| self.silent - asked < self.bound / 4);
        if !lately {
            (self.asked, self.ping_due) = (Some(self.silent), true);
        }
    }

    /// Looks at the time; for how long the peer has been silent if that is too long.
    pub(crate) fn look(&mut self, now: Instant) -> Option<Duration> {
        if self.bound.is_zero() || Mutant::SilenceUnnoticed.on() {
            return None;
        }
        let gap = self
            .looked
            .map_or(Duration::ZERO, |looked| now.since(looked));
        self.looked = Some(now);
        self.listen();
        self.silent += gap.min(self.bound / 8);
        if self.silent >= self.bound {
            return Some(self.silent);
        }
        if self.silent >= self.bound / 4 {
            self.ask();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(2);

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(1_000_000_000) + Duration::from_millis(millis)
    }

    /// Looks each 5 ms up to `until`; when it was asked, and when it was lost.
    fn watch(alive: &mut Alive, from: u64, until: u64) -> (Vec<u64>, Option<u64>) {
        let mut asked = Vec::new();
        for millis in (from..=until).step_by(5) {
            if alive.look(at(millis)).is_some() {
                return (asked, Some(millis));
            }
            if core::mem::take(&mut alive.ping_due) {
                asked.push(millis);
            }
        }
        (asked, None)
    }

    #[test]
    fn a_silent_peer_is_asked_each_quarter_and_lost_at_the_bound() {
        let mut alive = Alive::new(BOUND);
        assert_eq!(
            watch(&mut alive, 0, 9000),
            (vec![500, 1000, 1500], Some(2000))
        );
    }

    #[test]
    fn a_peer_that_is_heard_stays() {
        let mut alive = Alive::new(BOUND);
        for round in 0..20 {
            let (asked, lost) = watch(&mut alive, round * 1000, round * 1000 + 600);
            assert!(!asked.is_empty() && lost.is_none());
            alive.hear();
            assert_eq!(
                watch(&mut alive, round * 1000 + 605, round * 1000 + 995).1,
                None
            );
        }
    }

    #[test]
    fn time_in_which_this_node_did_not_run_is_nobodys_silence() {
        let mut alive = Alive::new(BOUND);
        assert_eq!(watch(&mut alive, 0, 1000).1, None);
        assert_eq!(alive.look(at(60_000)), None);
        let (_, lost) = watch(&mut alive, 60_005, 70_000);
        // What it had been silent before still counts, and an eighth of the bound for the time in
        // between.
        assert_eq!(lost, Some(60_750));
    }

    #[test]
    fn a_node_that_looks_seldom_loses_a_silent_peer_all_the_same() {
        // A machine so busy, or a bound so short, that each look comes late.
        for step in [100, 300, 1000, 10_000] {
            let mut alive = Alive::new(BOUND);
            let mut asked = 0;
            let lost = (0..100).find(|look| {
                let silent = alive.look(at(look * step)).is_some();
                asked += u32::from(core::mem::take(&mut alive.ping_due));
                silent
            });
            assert!(lost.is_some(), "a look each {step} ms");
            assert!(
                (1..=PINGS).contains(&asked),
                "{asked} pings, a look each {step} ms"
            );
        }
    }

    #[test]
    fn pings_without_an_answer_stay_within_their_credits() {
        let mut alive = Alive::new(BOUND);
        let mut asked = 0;
        for millis in (0..2000).step_by(5) {
            assert_eq!(alive.look(at(millis)), None);
            alive.ask();
            asked += u32::from(core::mem::take(&mut alive.ping_due));
        }
        assert_eq!(asked, PINGS);
    }
}
