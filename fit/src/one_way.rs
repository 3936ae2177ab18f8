//! One-way messages: no slot, no answer; a window keeps the receiver's queue from running dry.
//!
//! The receiver has a receive for each message of the window. It posts one again when a handler has
//! taken its message, and says in the header of whatever it sends next how many it has posted again
//! in all. If it has nothing to send, a bare credit message says so for each half of the window; so
//! two of these are under way at most.

use hal::{DmaBuffer, Instant};
use mutants::Mutant;
use verbs::QueueSet;

use crate::counters::count;
use crate::link::{Link, due};
use crate::ring::Purpose;
use crate::serve::Incoming;
use crate::wire::{HEADER_LEN, Header, MessageType};
use crate::{Error, LinkState, LostCause, PeerId};

/// The credits of one-way messages in both directions. All counts wrap.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// Messages that may be under way, to the peer and from it.
    limit: u16,
    sent: u32,
    /// Messages that the peer has taken, as far as it has told.
    taken: u32,
    /// Messages that may be under way to this side.
    size: u16,
    held: u16,
    /// Receives posted again.
    returned: u32,
    /// Messages taken that the peer has not been told of.
    untold: u16,
}

impl Window {
    pub(crate) fn new(size: u16) -> Self {
        Self {
            size,
            ..Self::default()
        }
    }

    /// The peer takes so many at once.
    pub(crate) fn open(&mut self, peer_takes: u16) {
        self.limit = peer_takes.min(self.size);
    }

    fn under_way(&self) -> u32 {
        self.sent.wrapping_sub(self.taken)
    }

    /// Returns whether the peer says nothing new by that it has taken so many in all.
    #[inline]
    pub(crate) fn knows(&self, taken: u32) -> bool {
        taken == self.taken
    }

    /// The peer says how many it has taken in all: how many more these are than before, or nothing
    /// if that can't be.
    pub(crate) fn hear(&mut self, taken: u32) -> Option<u32> {
        let more = taken.wrapping_sub(self.taken);
        if more > self.under_way() && !Mutant::AnyCreditBelieved.on() {
            return None;
        }
        self.taken = taken;
        Some(more)
    }

    /// Returns the count that the next message carries.
    pub(crate) fn tell(&mut self) -> u32 {
        self.untold = 0;
        self.returned
    }

    /// Returns whether the peer waits for nothing else to be told.
    pub(crate) fn is_credit_due(&self) -> bool {
        // Both sides know the limit, as each takes what the other does: the smaller of the two
        // windows.
        self.untold > 0 && self.untold >= self.limit.div_ceil(2)
    }
}

/// A message of the peer that waits for a handler.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OneWayMessage {
    pub(crate) receive: u16,
    kind: u16,
    body: u32,
    at: Instant,
}

impl OneWayMessage {
    /// One whose body, of so many bytes, stands in this receive.
    pub(crate) fn new(receive: u16, kind: u16, body: u32, at: Instant) -> Self {
        Self {
            receive,
            kind,
            body,
            at,
        }
    }
}

impl<M: DmaBuffer> Link<M> {
    /// Sends a message that wants no answer; nothing if there is no room just now. The device sees
    /// it at the next [`flush`](Self::flush).
    pub(crate) fn start_one_way<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        kind: u16,
        body: &[u8],
    ) -> Result<Option<()>, Error> {
        self.check_up()?;
        if self.state != LinkState::Up {
            return Ok(None);
        }
        if self.window.limit == 0 {
            return Err(Error::NoOneWays(self.peer));
        }
        self.check_len(HEADER_LEN + body.len())?;
        let closed = self.window.under_way() >= self.window.limit.into();
        if self.ring.room() == 0 || (closed && !Mutant::WindowIgnored.on()) {
            return Ok(None);
        }
        // Its place is free again: the peer has taken what stood there one window ago.
        let place = self.window.sent % u32::from(self.window.limit);
        self.window.sent = self.window.sent.wrapping_add(1);
        let header = Header {
            kind,
            body: u32::try_from(body.len()).expect("at most a message"),
            ..Header::bare(MessageType::OneWay, 0)
        };
        let at = self.layout.one_way(place as usize);
        self.send_plain(queues, header, body, at, Purpose::Unanswered);
        self.counters.nr_ib_send += 1;
        self.counters.nr_one_way += 1;
        Ok(Some(()))
    }

    /// Keeps a message until a handler takes it.
    pub(crate) fn on_one_way(&mut self, receive: u16, header: &Header, now: Instant) {
        if self.window.held >= self.window.size && !Mutant::WindowOverrunTaken.on() {
            return self.fail(LostCause::Protocol);
        }
        self.window.held += 1;
        let message = OneWayMessage::new(receive, header.kind, header.body, now);
        self.arrived.push_one_way(message);
        self.due |= due::ARRIVED;
    }

    /// Copies a message that waited into `into`, for a handler.
    #[inline(never)]
    pub(crate) fn take_one_way<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        (from, link): (PeerId, u16),
        message: OneWayMessage,
        into: &mut [u8],
    ) -> Incoming {
        let len = message.body as usize;
        let at = self.receives[usize::from(message.receive)].at + HEADER_LEN;
        self.memory.read(at, &mut into[..len]);
        self.return_one_way(queues, message.receive, message.kind);
        Incoming {
            from,
            kind: message.kind,
            len,
            one_way: true,
            bulk_len: 0,
            bulk_limit: 0,
            arrived: message.at,
            carried: false,
            link,
            slot: 0,
            serial: 0,
        }
    }

    /// A handler has the message: its receive is posted again.
    fn return_one_way<Q: QueueSet>(&mut self, queues: &mut Q, receive: u16, kind: u16) {
        self.post_receive(queues, receive);
        self.window.held -= 1;
        self.window.returned = self.window.returned.wrapping_add(1);
        self.window.untold += 1;
        if self.window.is_credit_due() {
            self.due |= due::BACKLOG;
        }
        self.counters.nr_one_way_served += 1;
        count(&mut self.counters.served, kind);
    }

    /// Tells the peer of returned receives, if nothing else has.
    pub(crate) fn send_credit<Q: QueueSet>(&mut self, queues: &mut Q) {
        if self.window.is_credit_due() && self.ring.room() > 0 && !Mutant::NoCreditMessages.on() {
            let header = Header::bare(MessageType::Credit, 0);
            self.send_bare(queues, header);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A sender and a receiver, with any order of sending, taking and telling, and messages
        /// that are read late.
        #[test]
        fn a_window_never_overflows_nor_gets_stuck(size in 1u16..9, first: u32, steps in proptest::collection::vec(0u8..5, 0..300)) {
            let (mut sender, mut receiver) = (Window::new(size), Window::new(size));
            (sender.sent, sender.taken, receiver.returned) = (first, first, first);
            sender.open(size);
            receiver.open(size);
            let (mut told, mut most) = (std::collections::VecDeque::new(), 0);
            let take = |receiver: &mut Window, told: &mut std::collections::VecDeque<u32>| {
                receiver.held -= 1;
                receiver.returned = receiver.returned.wrapping_add(1);
                receiver.untold += 1;
                if receiver.is_credit_due() {
                    told.push_back(receiver.tell());
                }
            };
            for step in steps {
                match step {
                    0 | 1 if sender.under_way() < size.into() => {
                        sender.sent = sender.sent.wrapping_add(1);
                        prop_assert!(receiver.held < size, "a receive for each");
                        receiver.held += 1;
                    }
                    2 | 3 if receiver.held > 0 => take(&mut receiver, &mut told),
                    4 => if let Some(taken) = told.pop_front() {
                        prop_assert!(sender.hear(taken).is_some());
                    },
                    _ => {}
                }
                most = most.max(told.len());
            }
            prop_assert!(most <= 2, "{most} credit messages under way");
            while receiver.held > 0 {
                take(&mut receiver, &mut told);
            }
            while let Some(taken) = told.pop_front() {
                prop_assert!(sender.hear(taken).is_some());
            }
            prop_assert!(sender.under_way() < size.into(), "the sender may go on");
        }
    }

    #[test]
    fn windows_of_different_sizes_do_not_stall() {
        for (ours, theirs) in [(2, 8), (8, 2), (1, 64), (3, 4)] {
            let (mut sender, mut receiver) = (Window::new(ours), Window::new(theirs));
            sender.open(theirs);
            receiver.open(ours);
            let mut told = 0;
            for _ in 0..100 {
                assert!(
                    sender.under_way() < sender.limit.into(),
                    "{ours} and {theirs} stall"
                );
                sender.sent += 1;
                receiver.returned += 1;
                receiver.untold += 1;
                if receiver.is_credit_due() {
                    told += 1;
                    let taken = receiver.tell();
                    assert!(sender.hear(taken).is_some());
                }
            }
            assert!(told > 0);
        }
    }

    #[test]
    fn a_peer_that_returns_what_was_never_sent_is_not_believed() {
        let mut window = Window::new(4);
        window.open(4);
        window.sent = 2;
        assert_eq!(window.hear(1), Some(1));
        assert_eq!(window.hear(3), None);
        assert_eq!(window.hear(0), None, "it can't take one back either");
        assert_eq!(window.hear(2), Some(1));
    }
}
