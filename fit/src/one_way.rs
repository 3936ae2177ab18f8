//! The window of one-way messages, which have no slot and no answer: it keeps the receiver's queue
//! from running dry.
//!
//! The receiver has a receive for each message of the window. It posts one again when a handler has
//! taken its message, and says in the header of whatever it sends next how many it has posted again
//! in all. If it has nothing to send, a bare credit message says so for each half of the window; so
//! two of these are under way at most.

use mutants::Mutant;

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

    /// Returns whether the peer takes no message at all.
    pub(crate) fn is_shut(&self) -> bool {
        self.limit == 0
    }

    fn under_way(&self) -> u32 {
        self.sent.wrapping_sub(self.taken)
    }

    /// One more message goes to the peer: its number among those of the window. Nothing if too many
    /// are under way.
    pub(crate) fn send(&mut self) -> Option<u16> {
        if self.under_way() >= self.limit.into() && !Mutant::WindowIgnored.on() {
            return None;
        }
        let number = self.sent % u32::from(self.limit);
        self.sent = self.sent.wrapping_add(1);
        Some(u16::try_from(number).expect("less than the limit"))
    }

    /// A message has come from the peer; whether it may have.
    pub(crate) fn hold(&mut self) -> bool {
        if self.held >= self.size && !Mutant::WindowOverrunTaken.on() {
            return false;
        }
        self.held += 1;
        true
    }

    /// The receive of a message that a handler has taken is posted again.
    pub(crate) fn give_back(&mut self) {
        self.held -= 1;
        self.returned = self.returned.wrapping_add(1);
        self.untold += 1;
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
                receiver.give_back();
                if receiver.is_credit_due() {
                    told.push_back(receiver.tell());
                }
            };
            for step in steps {
                match step {
                    0 | 1 => prop_assert!(
                        sender.send().is_none() || receiver.hold(),
                        "a receive for each"
                    ),
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
                assert!(sender.send().is_some(), "{ours} and {theirs} stall");
                assert!(receiver.hold());
                receiver.give_back();
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
