//! Requests and one-way messages of a connection: to their handlers, and the replies out.
//!
//! ```text
//!  request with bulk ─► Waiting ──buffers are free──► Fetching ──READs are done──► Arrived ─► Serving ─► reply:
//!                          └── nothing to fetch ──────────────────────────────────────┘        WRITE each piece, then SEND
//! ```

use hal::DmaBuffer;
use verbs::{Payload, QueueSet, SendOp};

use super::Link;
use crate::arrivals::OneWayMessage;
use crate::counters::count;
use crate::due;
use crate::incoming::Incoming;
use crate::ring::Purpose;
use crate::wire::{HEADER_LEN, Header, MessageType};
use crate::{Error, LinkState, LostCause, PeerId};

impl<M: DmaBuffer> Link<M> {
    // ---- Receives ----

    /// Posts every receive. Before the peer can know of the queue pair.
    pub(crate) fn post_receives<Q: QueueSet>(&mut self, queues: &mut Q) {
        for index in 0..self.layout.receives() {
            self.post_receive(queues, index);
        }
    }

    /// Gives a receive to the device, unless the connection is lost.
    #[inline]
    pub(super) fn post_receive<Q: QueueSet>(&mut self, queues: &mut Q, index: u16) {
        if matches!(self.state, LinkState::Failing | LinkState::Down) {
            return;
        }
        if let Err(error) = self.receives.get(index).post(queues, self.qp) {
            self.on_refused_receive(&error);
        }
    }

    /// Ends the connection: as for sends, the credits make a refused receive impossible.
    #[cold]
    pub(super) fn on_refused_receive(&mut self, error: &verbs::Error) {
        log::error!("{}: {error}", self.peer);
        self.fail(LostCause::Device);
    }

    // ---- Requests ----

    /// Copies the next message for a handler into `into` and gives its receive back to the queue.
    /// `link` is this connection's number.
    #[inline(always)]
    pub(crate) fn take_request<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        link: u16,
        into: &mut [u8],
    ) -> Option<Incoming> {
        let from = self.owner.filter(|_| self.state == LinkState::Up)?;
        if let Some(message) = self.serves.take_one_way() {
            return Some(self.take_one_way(queues, (from, link), message, into));
        }
        let (slot, serve) = self.serves.take_request()?;
        if serve.has_bulk() {
            let incoming = serve.incoming_bulk(from, link, slot);
            let (receive, descriptors) = (serve.receive(), serve.descriptors_len());
            self.take_bulk_request(queues, &incoming, (receive, descriptors), into);
            return Some(incoming);
        }
        let incoming = serve.incoming(from, link, slot);
        let receive = self.receives.get(serve.receive());
        self.memory
            .read(receive.at() + HEADER_LEN, &mut into[..incoming.len]);
        if let Err(error) = receive.post(queues, self.qp) {
            self.on_refused_receive(&error);
        }
        Some(incoming)
    }

    /// Takes a request that has to do with bulk, behind so many bytes of descriptors.
    #[inline(never)]
    fn take_bulk_request<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        incoming: &Incoming,
        (receive, descriptors): (u16, usize),
        into: &mut [u8],
    ) {
        let carried = if incoming.carried {
            incoming.bulk_len
        } else {
            0
        };
        let len = incoming.len + carried as usize;
        let at = self.receives.at(receive) + HEADER_LEN + descriptors;
        self.memory.read(at, &mut into[..len]);
        self.post_receive(queues, receive);
    }

    /// Sends a reply, or queues it until the send queue has room. If the connection is gone it is
    /// dropped.
    #[inline(always)]
    pub(crate) fn reply<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        incoming: &Incoming,
        body: &[u8],
        bulk: u32,
    ) {
        let at_once = self.goes_at_once(body);
        let Some(serve) = self.serves.serving(incoming) else {
            return self.on_stray_answer(incoming);
        };
        if !at_once || serve.has_bulk() {
            return self.reply_longer(queues, incoming, body, bulk);
        }
        let Some(place) = self.ring.take(Purpose::Unanswered) else {
            return self.reply_longer(queues, incoming, body, bulk);
        };
        assert_eq!(bulk, 0, "no buffer for bulk was offered");
        let len = u32::try_from(body.len()).expect("fits the message");
        let header = serve.finish(incoming.slot, len);
        self.counters.nr_ib_send += 1;
        count(&mut self.counters.served, header.kind);
        self.send_at_once(queues, place, header, body);
    }

    /// A reply to what is not served any more.
    #[cold]
    fn on_stray_answer(&mut self, incoming: &Incoming) {
        if self.owner == Some(incoming.from) {
            self.counters.nr_stray += 1;
        }
    }

    /// Posts a reply that does not go at once: it has to do with bulk, is long, or finds no room.
    #[inline(never)]
    fn reply_longer<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        incoming: &Incoming,
        body: &[u8],
        bulk: u32,
    ) {
        assert!(body.len() <= self.reply_limit(), "a reply fits the message");
        assert!(
            bulk <= incoming.bulk_limit,
            "a bulk fits the caller's buffer"
        );
        let slot = incoming.slot;
        let len = u32::try_from(body.len()).expect("fits the message");
        self.due |= self.serves.release_input(slot);
        let at = self.layout.reply(slot.into());
        if self.ring.room() < self.serves.posts(slot, bulk) {
            self.memory.write(at + HEADER_LEN, body);
            self.due |= self.serves.queue(slot, len, bulk);
            return;
        }
        let purpose = self.write_bulk_back(queues, slot, bulk);
        let header = self.serves.reply_header(slot, len, bulk);
        self.send_plain(queues, header, body, at, purpose);
        self.finish_serve(slot, header.kind);
    }

    #[inline]
    fn finish_serve(&mut self, slot: u16, kind: u16) {
        self.serves.finish(slot);
        self.counters.nr_ib_send += 1;
        count(&mut self.counters.served, kind);
    }

    pub(super) fn send_queued_replies<Q: QueueSet>(&mut self, queues: &mut Q) {
        while let Some(reply) = self.serves.take_queued(self.ring.room()) {
            let purpose = self.write_bulk_back(queues, reply.slot, reply.bulk);
            let header = self.serves.reply_header(reply.slot, reply.body, reply.bulk);
            let at = self.layout.reply(reply.slot.into());
            let len = HEADER_LEN + reply.body as usize;
            self.send_staged(queues, header, at, len, purpose);
            self.finish_serve(reply.slot, header.kind);
        }
    }

    // ---- Bulk ----

    /// Posts READs of what callers offer, as far as send queue and READ credits go.
    pub(super) fn fetch_offered<Q: QueueSet>(&mut self, queues: &mut Q) {
        loop {
            let (fetch, due) = self.serves.next_fetch();
            self.due |= due;
            let Some(fetch) = fetch.filter(|_| self.may_read()) else {
                return;
            };
            let piece = self.descriptor(fetch.receive, fetch.piece);
            self.serves.fetch(fetch.slot, piece.len);
            if piece.len == 0 {
                continue;
            }
            let at = self.layout.bulk(fetch.buffer.into()) + fetch.offset as usize;
            let into = self.piece(at, piece.len as usize);
            self.reads_out += 1;
            let read = SendOp::Read { from: piece.at };
            let purpose = Purpose::Fetch(fetch.slot);
            self.post(queues, read, Payload::Gather(&[into]), purpose);
        }
    }

    /// Copies bulk of a request being served; returns how many bytes there were.
    pub(crate) fn read_bulk(&self, incoming: &Incoming, offset: usize, into: &mut [u8]) -> usize {
        let Some((buffer, whole)) = self.serves.input(incoming) else {
            return 0;
        };
        let len = into.len().min((whole as usize).saturating_sub(offset));
        if len > 0 {
            self.memory
                .read(self.layout.bulk(buffer.into()) + offset, &mut into[..len]);
        }
        len
    }

    /// Puts bytes into the bulk of a reply; `offset` and they are within [`Incoming::bulk_limit`].
    pub(crate) fn write_bulk(&mut self, incoming: &Incoming, offset: usize, bytes: &[u8]) {
        let Some((buffer, limit)) = self.serves.output(incoming) else {
            return;
        };
        assert!(offset + bytes.len() <= limit as usize, "within the limit");
        self.memory
            .write(self.layout.bulk(buffer.into()) + offset, bytes);
    }

    /// Posts the WRITEs of a reply's bulk; on one queue pair the SEND behind them arrives after
    /// them. Returns what that SEND is for.
    fn write_bulk_back<Q: QueueSet>(&mut self, queues: &mut Q, slot: u16, bulk: u32) -> Purpose {
        let Some(buffer) = self.serves.take_output(slot) else {
            return Purpose::Unanswered;
        };
        if bulk == 0 {
            self.due |= self.serves.release_output(buffer);
            return Purpose::Unanswered;
        }
        self.counters.nr_bytes_tx += u64::from(bulk);
        for (to, offset, len) in self.serves.writes(slot, bulk) {
            let at = self.layout.bulk(buffer.into()) + offset as usize;
            let from = self.piece(at, len as usize);
            let write = SendOp::Write { to, imm: None };
            self.post(queues, write, Payload::Gather(&[from]), Purpose::Unanswered);
        }
        Purpose::BulkReply(buffer)
    }

    // ---- One-way messages ----

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
        if self.window.is_shut() {
            return Err(Error::NoOneWays(self.peer));
        }
        self.check_len(HEADER_LEN + body.len())?;
        if self.ring.room() == 0 {
            return Ok(None);
        }
        let Some(place) = self.window.send() else {
            return Ok(None);
        };
        let header = Header {
            kind,
            body: u32::try_from(body.len()).expect("at most a message"),
            ..Header::bare(MessageType::OneWay, 0)
        };
        // Its place is free again: the peer has taken what stood there one window ago.
        let at = self.layout.one_way(place.into());
        self.send_plain(queues, header, body, at, Purpose::Unanswered);
        self.counters.nr_ib_send += 1;
        self.counters.nr_one_way += 1;
        Ok(Some(()))
    }

    /// Copies a message that waited into `into`, for a handler.
    #[inline(never)]
    fn take_one_way<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        (from, link): (PeerId, u16),
        message: OneWayMessage,
        into: &mut [u8],
    ) -> Incoming {
        let len = message.body as usize;
        let at = self.receives.at(message.receive) + HEADER_LEN;
        self.memory.read(at, &mut into[..len]);
        self.post_receive(queues, message.receive);
        self.window.give_back();
        if self.window.is_credit_due() {
            self.due |= due::BACKLOG;
        }
        self.counters.nr_one_way_served += 1;
        count(&mut self.counters.served, message.kind);
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
}
