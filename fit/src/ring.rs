//! The send queue as FIT sees it: what was posted and not yet known to be finished, in order.

use alloc::boxed::Box;
use alloc::vec;

/// What a posted request was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A message, or a WRITE in front of one, whose completion tells nothing but that its place is free.
    Unanswered,
    /// The request of the call with this slot and generation, which gathers memory that the caller lent.
    Gathering(u16, u32),
    /// The reply behind a bulk that stands in this buffer.
    BulkReply(u16),
    /// A READ of the bulk of the request in this slot.
    Fetch(u16),
    /// A READ or WRITE in this slot.
    OneSided(u16),
}

impl Purpose {
    /// Whether somebody waits for its completion.
    fn is_awaited(self) -> bool {
        self != Self::Unanswered
    }
}

#[derive(Debug, Clone, Copy)]
struct Posted {
    purpose: Purpose,
    signalled: bool,
}

/// A completion that does not fit what was posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Misfit {
    /// Nothing with this id is posted (any more): a duplicate, or late.
    Stray,
    /// A signalled request before it has not completed, though a queue pair completes in order.
    OutOfOrder,
}

/// A ring of posted requests, numbered on and on; the number is the request's id.
#[derive(Debug)]
pub(crate) struct SendRing {
    /// A power of two of places, so that a number's place takes no division; no more than `depth` are used.
    posted: Box<[Posted]>,
    depth: usize,
    head: u64,
    tail: u64,
    unsignalled_run: u16,
    signal_every: u16,
}

impl SendRing {
    pub(crate) fn new(depth: u32, signal_every: u16) -> Self {
        assert!(
            depth > 2 * u32::from(signal_every),
            "a full ring always holds a signalled request"
        );
        let nothing = Posted {
            purpose: Purpose::Unanswered,
            signalled: false,
        };
        Self {
            posted: vec![nothing; (depth as usize).next_power_of_two()].into(),
            depth: depth as usize,
            head: 0,
            tail: 0,
            unsignalled_run: 0,
            signal_every,
        }
    }

    /// Free places.
    pub(crate) fn room(&self) -> usize {
        self.depth - self.outstanding()
    }

    /// Places taken.
    pub(crate) fn outstanding(&self) -> usize {
        usize::try_from(self.tail - self.head).expect("at most the ring's length")
    }

    /// The next request's id and whether it must be signalled: for its own sake, or for those before it.
    pub(crate) fn next(&self, purpose: Purpose) -> (u64, bool) {
        let wanted = purpose.is_awaited();
        (self.tail, wanted || self.unsignalled_run + 1 >= self.signal_every)
    }

    /// Notes that the request [`next`](Self::next) spoke of is posted.
    pub(crate) fn push(&mut self, purpose: Purpose, signalled: bool) {
        assert!(self.room() > 0, "a request beyond the send queue's credits");
        let place = self.place(self.tail);
        self.posted[place] = Posted { purpose, signalled };
        self.tail += 1;
        self.unsignalled_run = if signalled { 0 } else { self.unsignalled_run + 1 };
    }

    /// Takes out the request that completed, and with it the unsignalled ones before it.
    pub(crate) fn complete(&mut self, id: u64) -> Result<Purpose, Misfit> {
        if !(self.head..self.tail).contains(&id) {
            return Err(Misfit::Stray);
        }
        if (self.head..id).any(|before| self.posted[self.place(before)].signalled) {
            return Err(Misfit::OutOfOrder);
        }
        self.head = id + 1;
        Ok(self.posted[self.place(id)].purpose)
    }

    /// Forgets everything: the queue pair is dead and completes nothing any more.
    pub(crate) fn clear(&mut self) {
        self.head = self.tail;
        self.unsignalled_run = 0;
    }

    fn place(&self, id: u64) -> usize {
        usize::try_from(id).expect("64 bits") & (self.posted.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> SendRing {
        SendRing::new(8, 3)
    }

    #[test]
    fn a_completion_frees_the_unsignalled_before_it() {
        let mut ring = ring();
        for _ in 0..3 {
            let (_, signalled) = ring.next(Purpose::Unanswered);
            ring.push(Purpose::Unanswered, signalled);
        }
        assert_eq!(ring.room(), 5);
        assert_eq!(ring.complete(2), Ok(Purpose::Unanswered));
        assert_eq!(ring.room(), 8);
    }

    #[test]
    fn a_duplicate_is_stray_and_an_early_one_out_of_order() {
        let mut ring = ring();
        ring.push(Purpose::OneSided(7), true);
        ring.push(Purpose::OneSided(8), true);
        assert_eq!(ring.complete(1), Err(Misfit::OutOfOrder));
        assert_eq!(ring.complete(0), Ok(Purpose::OneSided(7)));
        assert_eq!(ring.complete(0), Err(Misfit::Stray));
        assert_eq!(ring.complete(2), Err(Misfit::Stray));
    }

    #[test]
    fn one_in_every_few_is_signalled() {
        let mut ring = ring();
        let signals: Vec<_> = (0..7)
            .map(|_| {
                let (_, signalled) = ring.next(Purpose::Unanswered);
                ring.push(Purpose::Unanswered, signalled);
                signalled
            })
            .collect();
        assert_eq!(signals, [false, false, true, false, false, true, false]);
    }
}
