//! Messages of a peer that wait for a handler, in the order of their arrival.

use alloc::collections::VecDeque;

use hal::Instant;

/// No slot.
const NONE: u16 = u16::MAX;

/// A message of the peer that waits for a handler.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OneWayMessage {
    pub(crate) receive: u16,
    pub(crate) kind: u16,
    pub(crate) body: u32,
    pub(crate) at: Instant,
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

/// A slot of a request, which may stand in the list of those that wait.
pub(crate) trait Chained {
    /// The request behind it, if it is not the last.
    fn next(&mut self) -> &mut u16;
}

/// Requests, as a list through their slots, which costs less than a queue beside them, and the
/// one-way messages between them.
#[derive(Debug)]
pub(crate) struct Arrivals {
    first: u16,
    last: u16,
    /// Each with the request that came before it, unless a handler has that.
    one_ways: VecDeque<(u16, OneWayMessage)>,
}

impl Arrivals {
    pub(crate) fn new(one_ways: u16) -> Self {
        Self {
            first: NONE,
            last: NONE,
            one_ways: VecDeque::with_capacity(one_ways.into()),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first == NONE && self.one_ways.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.first = NONE;
        self.one_ways.clear();
    }

    /// The request in `slot` waits too.
    #[inline(always)]
    pub(crate) fn push_request<S: Chained>(&mut self, slots: &mut [S], slot: u16) {
        if self.first == NONE {
            self.first = slot;
        } else if let Some(last) = slots.get_mut(usize::from(self.last)) {
            *last.next() = slot;
        }
        self.last = slot;
    }

    pub(crate) fn push_one_way(&mut self, message: OneWayMessage) {
        let before = if self.first == NONE { NONE } else { self.last };
        self.one_ways.push_back((before, message));
    }

    /// Returns whether one-way messages wait; who takes a request looks for these
    /// [first](Self::pop_one_way).
    #[inline(always)]
    pub(crate) fn has_one_ways(&self) -> bool {
        !self.one_ways.is_empty()
    }

    /// Takes a one-way message if it came before all else that waits; else the next is a request.
    pub(crate) fn pop_one_way(&mut self) -> Option<OneWayMessage> {
        let (before, message) = *self.one_ways.front()?;
        if before == NONE {
            self.one_ways.pop_front();
            return Some(message);
        }
        let now = self.first;
        let freed = self
            .one_ways
            .iter_mut()
            .filter(|(before, _)| *before == now);
        freed.for_each(|(before, _)| *before = NONE);
        None
    }

    /// Takes a request.
    #[inline(always)]
    pub(crate) fn pop_request<'a, S: Chained>(
        &mut self,
        slots: &'a mut [S],
    ) -> Option<(u16, &'a mut S)> {
        let slot = self.first;
        let request = slots.get_mut(usize::from(slot))?;
        self.first = if slot == self.last {
            NONE
        } else {
            *request.next()
        };
        Some((slot, request))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque as Model;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone)]
    struct Slot(u16);

    impl Chained for Slot {
        fn next(&mut self) -> &mut u16 {
            &mut self.0
        }
    }

    proptest! {
        #[test]
        fn requests_and_one_way_messages_come_out_in_the_order_they_came(
            steps in proptest::collection::vec((0u8..4, 0u16..5), 0..200),
        ) {
            let mut serves = vec![Slot(0); 5];
            let mut arrivals = Arrivals::new(8);
            // A request by its slot, a one-way message by its number behind those.
            let mut model: Model<u16> = Model::new();
            let mut messages = 0;
            for (step, slot) in steps {
                match step {
                    0 if !model.contains(&slot) => {
                        arrivals.push_request(&mut serves, slot);
                        model.push_back(slot);
                    }
                    1 => {
                        messages += 1;
                        arrivals.push_one_way(OneWayMessage::new(100 + messages, 0, 0, Instant::default()));
                        model.push_back(100 + messages);
                    }
                    2 => {
                        let one_way = arrivals.has_one_ways().then(|| arrivals.pop_one_way()).flatten();
                        let taken = match one_way {
                            Some(message) => Some(message.receive),
                            None => arrivals.pop_request(&mut serves).map(|(slot, _)| slot),
                        };
                        prop_assert_eq!(taken, model.pop_front());
                    }
                    3 if slot == 0 => {
                        arrivals.clear();
                        model.clear();
                    }
                    _ => {}
                }
                prop_assert_eq!(arrivals.is_empty(), model.is_empty());
            }
        }
    }
}
