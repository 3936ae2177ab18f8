//! The send queue as FIT sees it: what was posted and not yet known to be finished, in order.

use alloc::collections::VecDeque;

/// Purpose of a posted request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A message, or a WRITE in front of one, whose completion tells nothing but that its place is
    /// free.
    Unanswered,
    /// The request of the call with this slot and generation, which gathers memory that the caller
    /// lent.
    Gathering(u16, u32),
    /// The reply behind a bulk that stands in this buffer.
    BulkReply(u16),
    /// A READ of the bulk of the request in this slot.
    Fetch(u16),
    /// A READ or WRITE in this slot.
    OneSided(u16),
}

impl Purpose {
    /// Returns whether somebody waits for its completion.
    fn is_awaited(self) -> bool {
        self != Self::Unanswered
    }
}

/// A completion that does not fit what was posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RingMismatch {
    /// Nothing with this id is posted (any more): a duplicate, or late.
    Stray,
    /// A signalled request before it has not completed, though a queue pair completes in order.
    OutOfOrder,
}

/// A place in the send queue, for one request: only who has one may post.
#[derive(Debug)]
pub(crate) struct Place {
    /// The request's id.
    pub(crate) id: u64,
    /// Whether the request must be signalled, for its own sake or for those before it.
    pub(crate) signalled: bool,
}

/// Posted requests, numbered without a gap; the number is the request's id.
#[derive(Debug)]
pub(crate) struct SendRing {
    /// The number of the next request.
    next: u64,
    /// The first number without a place: so far requests may go until one completes.
    end: u64,
    /// From this number on the next request is signalled, whatever it is for.
    next_signal: u64,
    /// The signalled ones, oldest first. The others need no line: nobody waits for them, and they
    /// end with the next of these.
    signalled: VecDeque<(u64, Purpose)>,
    depth: u32,
    signal_every: u16,
}

impl SendRing {
    pub(crate) fn new(depth: u32, signal_every: u16) -> Self {
        assert!(
            depth > 2 * u32::from(signal_every),
            "a full ring always holds a signalled request"
        );
        Self {
            next: 0,
            end: depth.into(),
            next_signal: u64::from(signal_every) - 1,
            signalled: VecDeque::with_capacity(depth as usize),
            depth,
            signal_every,
        }
    }

    /// The oldest request that is not known to be finished, or the next.
    fn head(&self) -> u64 {
        self.end - u64::from(self.depth)
    }

    /// Free places.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        usize::try_from(self.end - self.next).expect("at most the depth")
    }

    /// Places taken.
    #[cfg(test)]
    pub(crate) fn outstanding(&self) -> u64 {
        self.next - self.head()
    }

    /// The oldest request that must complete by itself.
    pub(crate) fn oldest_signalled(&self) -> Option<u64> {
        self.signalled.front().map(|&(id, _)| id)
    }

    /// Takes a place, if there is one.
    #[inline(always)]
    pub(crate) fn take(&mut self, purpose: Purpose) -> Option<Place> {
        let id = self.next;
        if id >= self.end {
            return None;
        }
        self.next = id + 1;
        let signalled = purpose.is_awaited() || id >= self.next_signal;
        if signalled {
            self.note_signalled(id, purpose);
        }
        Some(Place { id, signalled })
    }

    #[inline(never)]
    fn note_signalled(&mut self, id: u64, purpose: Purpose) {
        self.next_signal = id + u64::from(self.signal_every);
        self.signalled.push_back((id, purpose));
    }

    /// Takes back the place taken last: nothing was posted.
    pub(crate) fn give_back(&mut self, place: Place) {
        self.next = place.id;
        if place.signalled {
            self.signalled.pop_back();
            self.next_signal = place.id;
        }
    }

    /// Takes out the request that completed, and with it the unsignalled ones before it.
    #[inline]
    pub(crate) fn complete(&mut self, id: u64) -> Result<Purpose, RingMismatch> {
        if !(self.head()..self.next).contains(&id) {
            return Err(RingMismatch::Stray);
        }
        let purpose = match self.signalled.front() {
            Some(&(first, _)) if first < id => return Err(RingMismatch::OutOfOrder),
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
        self.end = head + u64::from(self.depth);
    }

    /// Forgets everything: the queue pair is dead and completes nothing any more.
    pub(crate) fn clear(&mut self) {
        self.free(self.next);
        self.signalled.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> SendRing {
        SendRing::new(8, 3)
    }

    fn take(ring: &mut SendRing, purpose: Purpose) -> (u64, bool) {
        let Place { id, signalled } = ring.take(purpose).expect("room");
        (id, signalled)
    }

    #[test]
    fn a_completion_frees_the_unsignalled_before_it() {
        let mut ring = ring();
        for _ in 0..3 {
            take(&mut ring, Purpose::Unanswered);
        }
        assert_eq!(ring.room(), 5);
        assert_eq!(ring.complete(2), Ok(Purpose::Unanswered));
        assert_eq!(ring.room(), 8);
    }

    #[test]
    fn a_duplicate_is_stray_and_an_early_one_out_of_order() {
        let mut ring = ring();
        assert_eq!(take(&mut ring, Purpose::OneSided(7)), (0, true));
        assert_eq!(take(&mut ring, Purpose::OneSided(8)), (1, true));
        assert_eq!(ring.complete(1), Err(RingMismatch::OutOfOrder));
        assert_eq!(ring.complete(0), Ok(Purpose::OneSided(7)));
        assert_eq!(ring.complete(0), Err(RingMismatch::Stray));
        assert_eq!(ring.complete(2), Err(RingMismatch::Stray));
    }

    #[test]
    fn an_unsignalled_one_may_fail_between_two_that_are_awaited() {
        let mut ring = ring();
        for purpose in [
            Purpose::OneSided(1),
            Purpose::Unanswered,
            Purpose::OneSided(2),
        ] {
            take(&mut ring, purpose);
        }
        assert_eq!(ring.complete(0), Ok(Purpose::OneSided(1)));
        assert_eq!(ring.complete(1), Ok(Purpose::Unanswered));
        assert_eq!(ring.complete(2), Ok(Purpose::OneSided(2)));
        assert_eq!(ring.room(), 8);
    }

    #[test]
    fn what_the_device_refuses_was_never_there() {
        let mut ring = ring();
        take(&mut ring, Purpose::Unanswered);
        for purpose in [Purpose::Unanswered, Purpose::OneSided(1)] {
            let place = ring.take(purpose).expect("room");
            let id = place.id;
            ring.give_back(place);
            assert_eq!(
                (ring.room(), ring.complete(id)),
                (7, Err(RingMismatch::Stray))
            );
        }
        assert_eq!(ring.complete(0), Ok(Purpose::Unanswered));
    }

    #[test]
    fn one_in_every_few_is_signalled() {
        let mut ring = ring();
        let signals: Vec<_> = (0..7)
            .map(|_| take(&mut ring, Purpose::Unanswered).1)
            .collect();
        assert_eq!(signals, [false, false, true, false, false, true, false]);
    }

    #[test]
    fn a_full_ring_gives_no_place_and_its_run_goes_on_behind_an_awaited_one() {
        let mut ring = ring();
        let purposes = [Purpose::Unanswered, Purpose::OneSided(1)].into_iter();
        let run = purposes.chain([Purpose::Unanswered; 6]);
        let signals: Vec<_> = run.map(|purpose| take(&mut ring, purpose).1).collect();
        assert_eq!(
            signals,
            [false, true, false, false, true, false, false, true]
        );
        assert!(
            ring.take(Purpose::Unanswered).is_none() && ring.take(Purpose::OneSided(2)).is_none()
        );
        assert_eq!(ring.complete(1), Ok(Purpose::OneSided(1)));
        assert_eq!(ring.room(), 2);
    }
}
