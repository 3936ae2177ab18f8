//! The callee's half of a connection: requests in, replies out.
//!
//! The caller's slot is also the slot here, so serving allocates nothing: the announced number of
//! serves is both the caller's credit and the size of this table. A caller that uses a slot again
//! before it has the reply, or a slot it was not given, breaks the protocol and loses its
//! connection. Requests with bulk take the way through `bulk`.

use alloc::vec::Vec;
use core::future::Future;
use core::task::Waker;

use hal::{DmaBuffer, Instant};
use mutants::Mutant;
use verbs::QueueSet;

use crate::bulk::BulkPart;
use crate::counters::count;
use crate::link::{Link, due, wake_all};
use crate::ring::Purpose;
use crate::wire::{Brief, HEADER_BYTES, HEADER_LEN, Header, MessageType};
use crate::{LinkState, LostCause, Member, PeerId};

/// A message of a peer that a handler has taken; a request is to be answered through its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incoming {
    /// The sender.
    pub from: PeerId,
    /// Kind of the call or message.
    pub kind: u16,
    /// Bytes of its body, now in the server's slice.
    pub len: usize,
    /// Whether it wants no answer.
    pub one_way: bool,
    /// Bytes of bulk that came with it.
    pub bulk_len: u32,
    /// Bytes of bulk that the caller takes and this side can send.
    pub bulk_limit: u32,
    /// Time of arrival.
    pub arrived: Instant,
    /// Whether the bulk stands behind the body in the server's slice.
    pub(crate) carried: bool,
    pub(crate) link: u16,
    pub(crate) slot: u16,
    /// Serial number among the requests in this slot.
    pub(crate) serial: u32,
}

/// One call as its handler sees it: the bulk that came with the request, and where the answer goes.
pub trait Exchange: Send {
    /// Bytes of bulk that came with the request.
    fn bulk_len(&self) -> usize;
    /// Copies bulk of the request from `offset` on into `into`, and returns how many bytes there
    /// were. None once the peer is lost.
    fn read_bulk(&mut self, offset: usize, into: &mut [u8]) -> usize;
    /// The reply's message: what of it is used is set by [`set_len`](Self::set_len).
    fn message(&mut self) -> &mut [u8];
    /// Sets how many bytes of [`message`](Self::message) are the reply.
    fn set_len(&mut self, len: usize);
    /// Bytes of bulk that the caller takes.
    fn bulk_limit(&self) -> usize;
    /// Puts bytes of bulk at `offset` and returns how many fitted. The bulk ends where the last of
    /// these ends.
    fn write_bulk(&mut self, offset: usize, bytes: &[u8]) -> usize;
}

/// Handler of the peers' messages.
pub trait Handler: Send + Sync {
    /// Answers one request.
    fn handle(
        &self,
        from: PeerId,
        kind: u16,
        request: &[u8],
        exchange: &mut dyn Exchange,
    ) -> impl Future<Output = ()> + Send;

    /// Takes a message that wants no answer.
    fn receive(&self, from: PeerId, kind: u16, _body: &[u8]) -> impl Future<Output = ()> + Send {
        async move {
            log::warn!(
                "peer {}: nobody takes one-way messages of kind {kind}",
                from.0
            )
        }
    }

    /// A node has joined: its calls may come, and calls to it work. If it was here before, it was
    /// told as lost first.
    fn peer_joined(&self, _peer: PeerId, _member: &Member) {}

    /// A peer is lost, and why, as far as that is remembered: whatever it held can be taken back.
    fn peer_lost(&self, peer: PeerId, cause: Option<LostCause>);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ServeState {
    #[default]
    Idle,
    /// It waits for buffers for its bulk.
    Waiting,
    /// Its bulk is on its way.
    Fetching,
    /// The request is in its receive buffer.
    Arrived,
    /// A handler is at work.
    Serving,
    /// The reply's body stands in the slot's buffer and waits for room in the send queue.
    Queued { body: u32, bulk: u32 },
}

/// One request that this side may be busy with.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServeSlot {
    pub(crate) state: ServeState,
    /// Counts the requests in this slot, of whatever peer: a late answer finds another number.
    serial: u32,
    /// The caller's name for it.
    generation: u32,
    kind: u16,
    /// The receive that holds the request until a handler takes it, and the length of its body.
    pub(crate) receive: u16,
    body: u32,
    arrived: Instant,
    /// While it waits for a handler: the request behind it, if it is not the last.
    pub(crate) next: u16,
    pub(crate) bulk: BulkPart,
}

impl ServeSlot {
    /// Takes the place of a slot whose requests nobody must be able to name any more.
    pub(crate) fn follow(&mut self, old: &Self) {
        self.serial = old.serial.wrapping_add(1);
    }

    #[inline(always)]
    fn reply_header(&self, slot: u16, body: u32, bulk: u32) -> Header {
        Header {
            kind: self.kind,
            slot,
            generation: self.generation,
            body,
            bulk,
            ..Header::bare(MessageType::Reply, 0)
        }
    }
}

impl<M: DmaBuffer> Link<M> {
    /// Notes a request without bulk if it says nothing new of one-way messages and its slot is
    /// free; whether this was so. It stays in its receive buffer until a server takes it, and the
    /// servers that wait are woken.
    #[inline(always)]
    pub(crate) fn on_plain_request(
        &mut self,
        receive: u16,
        request: Brief,
        now: Instant,
        servers: &mut Vec<Waker>,
    ) -> bool {
        if !self.window.knows(request.returned) {
            return false;
        }
        let Some(serve) = self.begin_serve(receive, request, now) else {
            return false;
        };
        serve.state = ServeState::Arrived;
        self.arrived.push_request(&mut self.serves, request.slot);
        self.hear(HEADER_BYTES + request.body);
        if !servers.is_empty() {
            wake_all(servers);
        }
        true
    }

    /// Notes a request in its slot; nothing if there is no such slot, or it is not free.
    #[inline(always)]
    pub(crate) fn begin_serve(
        &mut self,
        receive: u16,
        request: Brief,
        now: Instant,
    ) -> Option<&mut ServeSlot> {
        let serve = self.serves.get_mut(usize::from(request.slot))?;
        if serve.state != ServeState::Idle && !Mutant::BusySlotTaken.on() {
            return None;
        }
        serve.serial = serve.serial.wrapping_add(1);
        (serve.generation, serve.kind) = (request.generation, request.kind);
        (serve.receive, serve.body, serve.arrived) = (receive, request.body, now);
        Some(serve)
    }

    /// A request is complete: a handler may take it.
    pub(crate) fn arrive(&mut self, slot: u16) {
        self.serves[usize::from(slot)].state = ServeState::Arrived;
        self.arrived.push_request(&mut self.serves, slot);
        self.due |= due::ARRIVED;
    }

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
        if self.arrived.has_one_ways()
            && let Some(message) = self.arrived.pop_one_way()
        {
            return Some(self.take_one_way(queues, (from, link), message, into));
        }
        let (slot, serve) = self.arrived.pop_request(&mut self.serves)?;
        serve.state = ServeState::Serving;
        if serve.bulk.is_any() {
            return Some(self.take_bulk_request(queues, (from, link, slot), into));
        }
        let incoming = Incoming {
            from,
            kind: serve.kind,
            len: serve.body as usize,
            one_way: false,
            bulk_len: 0,
            bulk_limit: 0,
            arrived: serve.arrived,
            carried: false,
            link,
            slot,
            serial: serve.serial,
        };
        let receive = &mut self.receives[usize::from(serve.receive)];
        self.memory
            .read(receive.at + HEADER_LEN, &mut into[..incoming.len]);
        if let Err(error) = receive.post(queues, self.qp) {
            self.on_refused_receive(&error);
        }
        Some(incoming)
    }

    /// Takes a request that has to do with bulk.
    #[inline(never)]
    fn take_bulk_request<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        (from, link, slot): (PeerId, u16, u16),
        into: &mut [u8],
    ) -> Incoming {
        let serve = &self.serves[usize::from(slot)];
        let carried = serve.bulk.is_carried();
        let incoming = Incoming {
            from,
            kind: serve.kind,
            len: serve.body as usize,
            one_way: false,
            bulk_len: serve.bulk.len,
            bulk_limit: serve.bulk.limit,
            arrived: serve.arrived,
            carried,
            link,
            slot,
            serial: serve.serial,
        };
        let len = incoming.len + if carried { serve.bulk.len as usize } else { 0 };
        let receive = serve.receive;
        let at = self.receives[usize::from(receive)].at + HEADER_LEN + serve.bulk.descriptors_len();
        self.memory.read(at, &mut into[..len]);
        self.post_receive(queues, receive);
        incoming
    }

    /// Returns whether a handler is still at work on it, and its peer still there.
    #[inline(always)]
    pub(crate) fn is_serving(&self, incoming: &Incoming) -> bool {
        let serve = &self.serves[usize::from(incoming.slot)];
        serve.state == ServeState::Serving && serve.serial == incoming.serial
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
        if !self.is_serving(incoming) {
            return self.on_stray_answer(incoming);
        }
        let at_once = self.goes_at_once(body);
        let serve = &mut self.serves[usize::from(incoming.slot)];
        if !at_once || serve.bulk.is_any() {
            return self.reply_longer(queues, incoming, body, bulk);
        }
        let Some(place) = self.ring.take(Purpose::Unanswered) else {
            return self.reply_longer(queues, incoming, body, bulk);
        };
        assert_eq!(bulk, 0, "no buffer for bulk was offered");
        let len = u32::try_from(body.len()).expect("fits the message");
        let header = serve.reply_header(incoming.slot, len, 0);
        serve.state = ServeState::Idle;
        self.counters.nr_ib_send += 1;
        count(&mut self.counters.served, serve.kind);
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
        self.release_input(slot);
        let at = self.layout.reply(slot.into());
        if self.ring.room() < self.serves[usize::from(slot)].bulk.writes(bulk) + 1 {
            self.memory.write(at + HEADER_LEN, body);
            self.serves[usize::from(slot)].state = ServeState::Queued { body: len, bulk };
            self.queued_replies.push_back(slot);
            self.due |= due::BACKLOG;
            return;
        }
        let purpose = self.write_bulk_back(queues, slot, bulk);
        let header = self.serves[usize::from(slot)].reply_header(slot, len, bulk);
        self.send_plain(queues, header, body, at, purpose);
        self.finish_serve(slot);
    }

    #[inline]
    fn finish_serve(&mut self, slot: u16) {
        let serve = &mut self.serves[usize::from(slot)];
        serve.state = ServeState::Idle;
        serve.bulk.clear();
        self.counters.nr_ib_send += 1;
        count(&mut self.counters.served, serve.kind);
    }

    pub(crate) fn send_queued_replies<Q: QueueSet>(&mut self, queues: &mut Q) {
        while let Some(&slot) = self.queued_replies.front() {
            let serve = &self.serves[usize::from(slot)];
            let ServeState::Queued { body, bulk } = serve.state else {
                unreachable!("only queued replies are queued")
            };
            if self.ring.room() < serve.bulk.writes(bulk) + 1 {
                return;
            }
            self.queued_replies.pop_front();
            let purpose = self.write_bulk_back(queues, slot, bulk);
            let header = self.serves[usize::from(slot)].reply_header(slot, body, bulk);
            let at = self.layout.reply(slot.into());
            self.send_staged(queues, header, at, HEADER_LEN + body as usize, purpose);
            self.finish_serve(slot);
        }
    }

    /// Forgets every message of the peer: the replies have nowhere to go.
    pub(crate) fn drop_requests(&mut self) {
        self.arrived.clear();
        self.queued_replies.clear();
        self.bulk.waiting.clear();
        self.bulk.fetching.clear();
        for serve in &mut self.serves {
            serve.state = ServeState::Idle;
            serve.bulk.clear();
        }
    }
}
