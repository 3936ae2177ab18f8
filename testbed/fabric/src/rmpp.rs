//! Reliable multi-packet transfer: tables that do not fit one datagram (IBA 1.3, 13.6; Linux
//! `drivers/infiniband/core/mad_rmpp.c`).
//!
//! Only the sender's side, which answers need. What is not acknowledged in time is sent again, a
//! few times over.

use std::collections::BTreeMap;

use hal::{Duration, Instant};
use mad::sa::{Rmpp, SaMad};

use crate::{Packet, PortIndex};

/// Bytes of the SA header that RMPP counts into the payload of each segment.
const SA_HEADER: usize = 20;
/// Transfers that wait for an acknowledgement; the oldest gives way.
const MOST_TRANSFERS: usize = 64;
/// Deadline of an acknowledgement, after which segments are sent again.
const PATIENCE: Duration = Duration::from_secs(1);
/// Retries without any new acknowledgement before the transfer is given up.
const MOST_TRIES: u32 = 5;

/// A table on its way.
struct Transfer {
    /// An empty datagram to the receiver.
    envelope: Packet,
    segments: Vec<SaMad>,
    sent: usize,
    /// The receiver has these.
    seen: usize,
    /// Time at which segments that were sent and not acknowledged are sent again.
    due: Instant,
    tries: u32,
}

impl Transfer {
    /// Returns the segments that were not sent yet, up to the one that the receiver has room for.
    fn advance(&mut self, window: usize) -> Vec<Packet> {
        let first = self.sent;
        self.sent = self.sent.max(window.min(self.segments.len()));
        self.packets(first)
    }

    /// Returns the segments that were sent, from index `first` on.
    fn packets(&self, first: usize) -> Vec<Packet> {
        let segments = self.segments.get(first..self.sent).unwrap_or_default();
        segments
            .iter()
            .map(|segment| Packet {
                payload: segment.to_mad().to_vec(),
                ..self.envelope.clone()
            })
            .collect()
    }
}

/// Key of a transfer: the receiver's port and the transaction.
type Key = (PortIndex, u64);

/// All transfers that are not acknowledged whole.
#[derive(Default)]
pub(crate) struct Transfers {
    waiting: BTreeMap<Key, Transfer>,
    /// The order in which they began.
    order: Vec<Key>,
}

impl Transfers {
    /// Begins to send a table; gives what goes out at once: the first segment.
    pub(crate) fn begin(
        &mut self,
        now: Instant,
        to: PortIndex,
        envelope: Packet,
        head: &SaMad,
        table: &[u8],
    ) -> Vec<Packet> {
        let key = (to, head.header.transaction.get());
        let mut transfer = Transfer {
            envelope,
            segments: cut(head, table),
            sent: 0,
            seen: 0,
            due: now + PATIENCE,
            tries: 0,
        };
        let first = transfer.advance(1);
        self.end(key);
        if transfer.segments.len() > 1 {
            if self.order.len() >= MOST_TRANSFERS {
                self.end(self.order[0]);
            }
            self.waiting.insert(key, transfer);
            self.order.push(key);
        }
        first
    }

    /// Takes what a receiver says of a transfer: gives the segments that it has room for now.
    pub(crate) fn hear(&mut self, now: Instant, from: PortIndex, mad: &SaMad) -> Vec<Packet> {
        let key = (from, mad.header.transaction.get());
        let Some(transfer) = self.waiting.get_mut(&key) else {
            return Vec::new();
        };
        let number = |bytes| usize::try_from(u32::from_be_bytes(bytes)).unwrap_or(usize::MAX);
        // An acknowledgement names the last segment that came and the last that may be sent.
        let (seen, window) = (number(mad.rmpp.segment), number(mad.rmpp.payload_len));
        if mad.rmpp.kind != Rmpp::ACK || seen > transfer.sent || seen >= transfer.segments.len() {
            self.end(key);
            return Vec::new();
        }
        if seen > transfer.seen {
            transfer.seen = seen;
            transfer.tries = 0;
            transfer.due = now + PATIENCE;
        }
        transfer.advance(window)
    }

    /// Returns the segments to send again because their acknowledgement is overdue, with their
    /// receivers.
    pub(crate) fn poll(&mut self, now: Instant) -> Vec<(PortIndex, Packet)> {
        let mut again = Vec::new();
        let mut given_up = Vec::new();
        for (key, transfer) in &mut self.waiting {
            if transfer.due > now {
                continue;
            }
            if transfer.tries == MOST_TRIES {
                given_up.push(*key);
                continue;
            }
            transfer.tries += 1;
            transfer.due = now + PATIENCE;
            again.extend(
                transfer
                    .packets(transfer.seen)
                    .into_iter()
                    .map(|packet| (key.0, packet)),
            );
        }
        for key in given_up {
            log::debug!(
                "subnet administrator: port {} takes no more of its table",
                key.0.0
            );
            self.end(key);
        }
        again
    }

    /// Returns the time of the next retry.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.waiting.values().map(|transfer| transfer.due).min()
    }

    /// Ends all transfers to a port.
    pub(crate) fn forget(&mut self, port: PortIndex) {
        self.waiting.retain(|(to, _), _| *to != port);
        self.order.retain(|(to, _)| *to != port);
    }

    fn end(&mut self, key: Key) {
        self.waiting.remove(&key);
        self.order.retain(|other| *other != key);
    }
}

/// Cuts a table into segments, at least one. The length in the first is that of the table, in the
/// last its own.
fn cut(head: &SaMad, table: &[u8]) -> Vec<SaMad> {
    let room = head.data.len();
    let count = table.len().div_ceil(room).max(1);
    let len = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    (0..count)
        .map(|index| {
            let piece = &table[index * room..table.len().min((index + 1) * room)];
            let payload = match index {
                0 => len(count * SA_HEADER + table.len()),
                last if last + 1 == count => len(SA_HEADER + piece.len()),
                _ => 0,
            };
            let mut segment = *head;
            segment.set_record(piece);
            segment.rmpp = Rmpp::data(len(index + 1), index + 1 == count, payload);
            segment
        })
        .collect()
}
