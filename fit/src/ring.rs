//! The send queue as FIT sees it: what was posted and not yet known to be finished, in order.

use alloc::collections::VecDeque;

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

/// A completion that does not fit what was posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Misfit {
    /// Nothing with this id is posted (any more): a duplicate, or late.
    Stray,
    /// A signalled request before it has not completed, though a queue pair completes in order.
    OutOfOrder,
}

/// What is posted, numbered on and on; the number is the request's id.
#[derive(Debug)]
pub(crate) struct SendRing {
    /// Free places; counted, as each request asks for them.
    room: u32,
    head: u64,
    tail: u64,
    /// The signalled ones, oldest first. The others need no line: nobody waits for them, and they end with the next of these.
    signalled: VecDeque<(u64, Purpose)>,
    unsignalled_run: u16,
    signal_every: u16,
}

impl SendRing {
    pub(crate) fn new(depth: u32, signal_every: u16) -> Self {
        assert!(
            depth > 2 * u32::from(signal_every),
            "a full ring always holds a signalled request"
        );
        Self {
            room: depth,
            head: 0,
            tail: 0,
            signalled: VecDeque::with_capacity(depth as usize),
            unsignalled_run: 0,
            signal_every,
        }
    }

    /// Free places.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        self.room as usize
    }

    /// Places taken.
    #[cfg(test)]
    pub(crate) fn outstanding(&self) -> u64 {
        self.tail - self.head
    }

    /// Takes a place: the request's id, and whether it must be signalled, for its own sake or for those before it.
    #[inline]
    pub(crate) fn take(&mut self, purpose: Purpose) -> (u64, bool) {
        let left = self.room.checked_sub(1);
        self.room = left.expect("a request beyond the send queue's credits");
        let id = self.tail;
        self.tail = id + 1;
        self.unsignalled_run += 1;
        let signalled = purpose.is_awaited() || self.unsignalled_run >= self.signal_every;
        if signalled {
            self.unsignalled_run = 0;
            self.signalled.push_back((id, purpose));
        }
        (id, signalled)
    }

    /// The device has refused the request that took the last place.
    pub(crate) fn give_back(&mut self, signalled: bool) {
        self.tail -= 1;
        self.room += 1;
        if signalled {
            self.signalled.pop_back();
        } else {
            self.unsignalled_run -= 1;
        }
    }

    /// Takes out the request that completed, and with it the unsignalled ones before it.
    #[inline]
    pub(crate) fn complete(&mut self, id: u64) -> Result<Purpose, Misfit> {
        if !(self.head..self.tail).contains(&id) {
            return Err(Misfit::Stray);
        }
        let purpose = match self.signalled.front() {
            Some(&(first, _)) if first < id => return Err(Misfit::OutOfOrder),
            Some(&(first, purpose)) if first == id => {
                self.signalled.pop_front();
                purpose
            }
            // One that nobody asked a completion of has failed.
            _ => Purpose::Unanswered,
        };
        self.free(id + 1);
        Ok(purpose)
    }

    /// Frees the places in front of `head`.
    #[inline]
    fn free(&mut self, head: u64) {
        self.room += u32::try_from(head - self.head).expect("at most the ring's length");
        self.head = head;
    }

    /// Forgets everything: the queue pair is dead and completes nothing any more.
    pub(crate) fn clear(&mut self) {
        self.free(self.tail);
        self.signalled.clear();
        self.unsignalled_run = 0;
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
            ring.take(Purpose::Unanswered);
        }
        assert_eq!(ring.room(), 5);
        assert_eq!(ring.complete(2), Ok(Purpose::Unanswered));
        assert_eq!(ring.room(), 8);
    }

    #[test]
    fn a_duplicate_is_stray_and_an_early_one_out_of_order() {
        let mut ring = ring();
        assert_eq!(ring.take(Purpose::OneSided(7)), (0, true));
        assert_eq!(ring.take(Purpose::OneSided(8)), (1, true));
        assert_eq!(ring.complete(1), Err(Misfit::OutOfOrder));
        assert_eq!(ring.complete(0), Ok(Purpose::OneSided(7)));
        assert_eq!(ring.complete(0), Err(Misfit::Stray));
        assert_eq!(ring.complete(2), Err(Misfit::Stray));
    }

    #[test]
    fn an_unsignalled_one_may_fail_between_two_that_are_awaited() {
        let mut ring = ring();
        for purpose in [Purpose::OneSided(1), Purpose::Unanswered, Purpose::OneSided(2)] {
            ring.take(purpose);
        }
        assert_eq!(ring.complete(0), Ok(Purpose::OneSided(1)));
        assert_eq!(ring.complete(1), Ok(Purpose::Unanswered));
        assert_eq!(ring.complete(2), Ok(Purpose::OneSided(2)));
        assert_eq!(ring.room(), 8);
    }

    #[test]
    fn what_the_device_refuses_was_never_there() {
        let mut ring = ring();
        ring.take(Purpose::Unanswered);
        for purpose in [Purpose::Unanswered, Purpose::OneSided(1)] {
            let (id, signalled) = ring.take(purpose);
            ring.give_back(signalled);
            assert_eq!((ring.room(), ring.complete(id)), (7, Err(Misfit::Stray)));
        }
        assert_eq!(ring.complete(0), Ok(Purpose::Unanswered));
    }

    #[test]
    fn one_in_every_few_is_signalled() {
        let mut ring = ring();
        let signals: Vec<_> = (0..7).map(|_| ring.take(Purpose::Unanswered).1).collect();
        assert_eq!(signals, [false, false, true, false, false, true, false]);
    }
}
