//! P's side: the leases held, the requests for them, and recalls that overtake replies.

use alloc::collections::BTreeMap;

use hal::{Duration, Instant};

use crate::{Kind, TERM};

/// The most leases that a node keeps.
const MAX_HELD: usize = 16_384;
/// The most inodes whose recalls are remembered.
const MAX_RECALLED: usize = 1024;
/// Time after a recall in which no lease of the file is asked for: where two nodes take turns, each
/// lease would cost more than it spares.
const PAUSE: Duration = Duration::from_millis(50);

/// A lease that the node holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Its generation.
    pub generation: u64,
    /// Its kind.
    pub kind: Kind,
    /// The node does not rely on it from then on.
    until: Instant,
}

/// A request under way for a lease.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a request is answered or abandoned"]
pub struct Ask {
    sent: Instant,
    number: u64,
}

/// The leases that a node holds.
#[derive(Debug, Default)]
pub struct Holder {
    held: BTreeMap<u64, Held>,
    /// Requests under way.
    asking: u32,
    /// Requests made.
    asked: u64,
    /// The latest generation recalled of each inode while a request is under way.
    recalled: BTreeMap<u64, u64>,
    /// Recalls since this many requests were made are not all remembered, so that the requests'
    /// replies grant nothing.
    forgotten: u64,
    /// The ends of pauses after recalls.
    pauses: BTreeMap<u64, Instant>,
}

impl Holder {
    /// Returns a holder of nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            held: BTreeMap::new(),
            asking: 0,
            asked: 0,
            recalled: BTreeMap::new(),
            forgotten: 0,
            pauses: BTreeMap::new(),
        }
    }

    /// Returns the lease of an inode, if the node may rely on it now.
    #[must_use]
    pub fn valid(&self, inode: u64, now: Instant) -> Option<Held> {
        let held = self.held.get(&inode)?;
        (now < held.until).then_some(*held)
    }

    /// Returns whether it is worth while to ask for a lease of an inode.
    #[must_use]
    pub fn may_ask(&self, inode: u64, now: Instant) -> bool {
        self.pauses.get(&inode).is_none_or(|&end| end <= now)
    }

    /// Notes that a request for a lease is about to be sent.
    pub fn ask(&mut self, now: Instant) -> Ask {
        self.asking += 1;
        self.asked += 1;
        Ask {
            sent: now,
            number: self.asked,
        }
    }

    /// Takes over what S has granted; `None` is a refusal. Returns the lease, unless it was
    /// recalled meanwhile.
    pub fn answered(&mut self, ask: Ask, inode: u64, granted: Option<(u64, Kind)>) -> Option<Held> {
        let recalled = self.recalled.get(&inode).copied().unwrap_or(0);
        let usable = ask.number > self.forgotten;
        let until = ask.sent + TERM;
        self.abandoned(ask);
        let (generation, kind) =
            granted.filter(|&(generation, _)| usable && generation > recalled)?;
        let known = self.held.get(&inode).copied();
        // A reply that was overtaken by that of a later request.
        if known.is_some_and(|known| known.generation > generation) {
            return None;
        }
        if self.held.len() >= MAX_HELD && known.is_none() {
            self.held.clear();
        }
        let mut held = Held {
            generation,
            kind,
            until,
        };
        if let Some(known) = known.filter(|known| known.generation == generation) {
            held.until = until.max(known.until);
            held.kind = kind.max(known.kind);
        }
        self.held.insert(inode, held);
        Some(held)
    }

    /// Notes that a request will not be answered.
    pub fn abandoned(&mut self, ask: Ask) {
        let Ask { .. } = ask;
        self.asking -= 1;
        if self.asking == 0 {
            self.recalled.clear();
        }
    }

    /// Gives a lease up that S recalls. S may be told so at once: nothing relies on it any more.
    pub fn recalled(&mut self, inode: u64, generation: u64, now: Instant) {
        self.held
            .retain(|&at, held| at != inode || held.generation > generation);
        if self.pauses.len() >= MAX_RECALLED {
            self.pauses.clear();
        }
        self.pauses.insert(inode, now + PAUSE);
        if self.asking == 0 {
            return;
        }
        if self.recalled.len() >= MAX_RECALLED {
            self.recalled.clear();
            self.forgotten = self.asked;
        }
        let last = self.recalled.entry(inode).or_default();
        *last = generation.max(*last);
    }

    /// Gives a lease up; S need not be told.
    pub fn forget(&mut self, inode: u64) {
        self.held.remove(&inode);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: u64 = 12;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(1_000_000 * millis)
    }

    fn granted(holder: &mut Holder, generation: u64, now: Instant) -> Option<Held> {
        let ask = holder.ask(now);
        holder.answered(ask, FILE, Some((generation, Kind::Read)))
    }

    #[test]
    fn a_lease_lasts_from_its_request_on() {
        let mut holder = Holder::new();
        let ask = holder.ask(at(100));
        assert!(holder.answered(ask, FILE, Some((5, Kind::Read))).is_some());
        let end = at(100) + TERM;
        let last = end - Duration::from_nanos(1);
        assert_eq!(
            holder.valid(FILE, last).map(|held| held.generation),
            Some(5)
        );
        assert_eq!(holder.valid(FILE, end), None);
        granted(&mut holder, 5, at(200));
        assert!(holder.valid(FILE, end).is_some(), "extended");
        holder.forget(FILE);
        assert_eq!(holder.valid(FILE, at(200)), None);
    }

    #[test]
    fn a_recall_that_overtakes_the_reply_ends_the_lease() {
        let mut holder = Holder::new();
        let (ask, other) = (holder.ask(at(0)), holder.ask(at(0)));
        holder.recalled(FILE, 5, at(0));
        assert!(!holder.may_ask(FILE, at(1)) && holder.may_ask(FILE, at(51)));
        assert_eq!(holder.answered(ask, FILE, Some((5, Kind::Read))), None);
        assert_eq!(holder.valid(FILE, at(0)), None);
        let later = holder.answered(other, FILE, Some((6, Kind::Read)));
        assert_eq!(later.map(|held| held.generation), Some(6));
        holder.recalled(FILE, 5, at(1));
        assert!(holder.valid(FILE, at(1)).is_some(), "of an older one");
        holder.recalled(FILE, 6, at(1));
        assert_eq!(holder.valid(FILE, at(1)), None);
    }

    #[test]
    fn more_recalls_than_are_remembered_refuse_what_was_asked_before() {
        let mut holder = Holder::new();
        let (first, second) = (holder.ask(at(0)), holder.ask(at(0)));
        for inode in 0..=MAX_RECALLED as u64 {
            holder.recalled(100 + inode, 1, at(0));
        }
        assert_eq!(holder.answered(first, 100, Some((1, Kind::Read))), None);
        assert!(granted(&mut holder, 9, at(1)).is_some());
        holder.abandoned(second);
        assert_eq!((holder.asking, holder.recalled.len()), (0, 0));
    }
}
