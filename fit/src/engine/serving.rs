//! Requests of peers: taken by handlers, and answered.

use core::task::{Poll, Waker};

use hal::DmaBuffer;
use verbs::QueueSet;

use super::{Engine, settle};
use crate::incoming::Incoming;

impl<Q: QueueSet, M: DmaBuffer> Engine<Q, M> {
    /// Takes the next message of any peer that is for a handler, copied into `into` (of
    /// [`Config::message_size`](crate::Config::message_size) bytes).
    #[inline]
    pub fn poll_request(&mut self, waker: &Waker, into: &mut [u8]) -> Poll<Incoming> {
        for _ in 0..self.links.len() {
            let place = self.turn;
            self.turn = if usize::from(place) + 1 < self.links.len() {
                place + 1
            } else {
                0
            };
            let link = &mut self.links[usize::from(place)];
            if let Some(incoming) = link.take_request(&mut self.queues, place, into) {
                // A credit may be due.
                if link.is_due() {
                    link.flush(&mut self.queues);
                }
                return Poll::Ready(incoming);
            }
        }
        if !self.servers.iter().any(|known| known.will_wake(waker)) {
            self.servers.push(waker.clone());
        }
        Poll::Pending
    }

    /// The longest reply to `incoming`.
    #[must_use]
    pub fn reply_limit(&self, incoming: &Incoming) -> usize {
        match &self.links[usize::from(incoming.link)] {
            link if link.owner == Some(incoming.from) => link.reply_limit(),
            _ => 0,
        }
    }

    /// Copies bulk of a request from `offset` on; returns how many bytes there were. None once its
    /// connection is gone.
    #[must_use]
    pub fn read_bulk(&self, incoming: &Incoming, offset: usize, into: &mut [u8]) -> usize {
        let link = &self.links[usize::from(incoming.link)];
        link.read_bulk(incoming, offset, into)
    }

    /// Puts bytes of bulk into the slot of a request; at most [`Incoming::bulk_limit`] in all.
    pub fn write_bulk(&mut self, incoming: &Incoming, offset: usize, bytes: &[u8]) {
        let link = &mut self.links[usize::from(incoming.link)];
        link.write_bulk(incoming, offset, bytes);
    }

    /// Answers a request and rings the doorbell. If its connection is gone, the answer is dropped.
    #[inline]
    pub fn reply(&mut self, incoming: &Incoming, body: &[u8], bulk: u32) {
        let link = &mut self.links[usize::from(incoming.link)];
        link.reply(&mut self.queues, incoming, body, bulk);
        // Another request may have got this one's buffers.
        if link.is_due() {
            settle(link, &mut self.queues, &mut self.servers);
        }
    }
}
