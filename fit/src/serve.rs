//! The callee's half of a connection: requests in, replies out.
//!
//! The caller's slot is also the slot here, so serving allocates nothing: the announced number of serves is both the
//! caller's credit and the size of this table. A caller that uses a slot again before it has the reply, or a slot it
//! was not given, breaks the protocol and loses its connection. Requests with bulk take the way through `bulk`.

use core::future::Future;

use hal::{DmaBuffer, Instant};
use verbs::QueueSet;

use crate::bulk::BulkPart;
use crate::link::{Link, Outgoing};
use crate::wire::{HEADER_LEN, Header, MessageType};
use crate::{LinkCounters, LostCause, Member, PeerId};

/// A message of a peer that a handler has taken; a request is to be answered through its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incoming {
    /// Who sent it.
    pub from: PeerId,
    /// What kind of call or message it is.
    pub kind: u16,
    /// Bytes of its body, now in the server's slice.
    pub len: usize,
    /// Whether it wants no answer.
    pub one_way: bool,
    /// Bytes of bulk that came with it.
    pub bulk_len: u32,
    /// Bytes of bulk that the caller takes and this side can send.
    pub bulk_limit: u32,
    /// When it arrived.
    pub arrived: Instant,
    /// Whether the bulk stands behind the body in the server's slice.
    pub(crate) carried: bool,
    pub(crate) link: u16,
    pub(crate) slot: u16,
    pub(crate) generation: u32,
}

/// One call as its handler sees it: the bulk that came with the request, and where the answer goes.
pub trait Exchange: Send {
    /// Bytes of bulk that came with the request.
    fn bulk_len(&self) -> usize;
    /// Copies bulk of the request from `offset` on into `into`, and returns how many bytes there were. None once the peer is lost.
    fn read_bulk(&mut self, offset: usize, into: &mut [u8]) -> usize;
    /// The reply's message: what of it is used is set by [`set_len`](Self::set_len).
    fn message(&mut self) -> &mut [u8];
    /// Sets how many bytes of [`message`](Self::message) are the reply.
    fn set_len(&mut self, len: usize);
    /// Bytes of bulk that the caller takes.
    fn bulk_limit(&self) -> usize;
    /// Puts bytes of bulk at `offset` and returns how many fitted. The bulk ends where the last of these ends.
    fn write_bulk(&mut self, offset: usize, bytes: &[u8]) -> usize;
}

/// What a node does with the messages of its peers.
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
        async move { log::warn!("peer {}: nobody takes one-way messages of kind {kind}", from.0) }
    }

    /// A node has joined: its calls may come, and calls to it work. If it was here before, it was told as lost first.
    fn peer_joined(&self, _peer: PeerId, _member: &Member) {}

    /// A peer is lost: whatever it held can be taken back.
    fn peer_lost(&self, peer: PeerId);
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
    generation: u32,
    kind: u16,
    /// Where the request stands until a handler takes it, and how long its body is.
    pub(crate) receive: u16,
    body: u32,
    arrived: Instant,
    pub(crate) bulk: BulkPart,
}

/// What waits for a handler.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arrival {
    /// The request in this slot.
    Call(u16),
    /// A one-way message in this receive buffer.
    OneWay {
        receive: u16,
        kind: u16,
        body: u32,
        at: Instant,
    },
}

impl<M: DmaBuffer> Link<M> {
    /// Notes a request; it stays in its receive buffer until a server takes it.
    #[inline]
    pub(crate) fn on_request(&mut self, receive: u16, header: &Header, now: Instant) {
        let idle = |serve: &&mut ServeSlot| serve.state == ServeState::Idle;
        let Some(serve) = self.serves.get_mut(usize::from(header.slot)).filter(idle) else {
            return self.fail(LostCause::Protocol);
        };
        serve.generation = header.generation;
        serve.kind = header.kind;
        (serve.receive, serve.body, serve.arrived) = (receive, header.body, now);
        if header.bulk > 0 || header.scatters > 0 {
            return self.on_bulk_request(header);
        }
        serve.bulk.clear();
        self.arrive(header.slot);
    }

    /// A request is complete: a handler may take it.
    pub(crate) fn arrive(&mut self, slot: u16) {
        self.serves[usize::from(slot)].state = ServeState::Arrived;
        self.arrived.push_back(Arrival::Call(slot));
        self.newly_arrived = true;
    }

    /// Copies the next message for a handler into `into` and gives its receive back to the queue.
    pub(crate) fn take_request<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        (from, link): (PeerId, u16),
        into: &mut [u8],
    ) -> Option<Incoming> {
        let slot = match self.arrived.pop_front()? {
            Arrival::Call(slot) => slot,
            Arrival::OneWay {
                receive,
                kind,
                body,
                at,
            } => {
                let len = body as usize;
                let at_ = self.layout.receive(receive.into()) + HEADER_LEN;
                self.memory.read(at_, &mut into[..len]);
                self.return_one_way(queues, receive, kind);
                return Some(Incoming {
                    from,
                    kind,
                    len,
                    one_way: true,
                    bulk_len: 0,
                    bulk_limit: 0,
                    arrived: at,
                    carried: false,
                    link,
                    slot: 0,
                    generation: 0,
                });
            }
        };
        let serve = &mut self.serves[usize::from(slot)];
        assert_eq!(
            serve.state,
            ServeState::Arrived,
            "only arrived requests are queued"
        );
        serve.state = ServeState::Serving;
        let incoming = Incoming {
            from,
            kind: serve.kind,
            len: serve.body as usize,
            one_way: false,
            bulk_len: serve.bulk.len,
            bulk_limit: serve.bulk.limit,
            arrived: serve.arrived,
            carried: serve.bulk.is_carried(),
            link,
            slot,
            generation: serve.generation,
        };
        let receive = serve.receive;
        let at = self.layout.receive(receive.into()) + HEADER_LEN + serve.bulk.descriptors_len();
        let carried = if incoming.carried {
            incoming.bulk_len as usize
        } else {
            0
        };
        self.memory.read(at, &mut into[..incoming.len + carried]);
        self.post_receive(queues, receive.into());
        Some(incoming)
    }

    pub(crate) fn is_serving(&self, incoming: &Incoming) -> bool {
        let serve = &self.serves[usize::from(incoming.slot)];
        serve.state == ServeState::Serving && serve.generation == incoming.generation
    }

    /// Sends a reply, or queues it until the send queue has room. If the connection is gone it is dropped.
    pub(crate) fn reply<Q: QueueSet>(&mut self, queues: &mut Q, incoming: &Incoming, body: &[u8], bulk: u32) {
        if !self.is_serving(incoming) {
            self.counters.nr_stray += 1;
            return;
        }
        assert!(body.len() <= self.reply_limit(), "a reply fits the message");
        assert!(bulk <= incoming.bulk_limit, "a bulk fits the caller's buffer");
        let slot = incoming.slot;
        let len = u32::try_from(body.len()).expect("fits the message");
        self.release_input(slot);
        if self.ring.room() < self.serves[usize::from(slot)].bulk.writes(bulk) + 1 {
            let at = self.layout.reply(slot.into());
            self.memory.write(at + HEADER_LEN, body);
            self.serves[usize::from(slot)].state = ServeState::Queued { body: len, bulk };
            self.queued_replies.push_back(slot);
            self.backlog = true;
            return;
        }
        let purpose = self.write_bulk_back(queues, slot, bulk);
        let header = self.reply_header(slot, len, bulk);
        let at = self.layout.reply(slot.into());
        self.send_message(queues, Outgoing::plain(header, body), at, purpose);
        self.finish_serve(slot);
    }

    fn reply_header(&self, slot: u16, body: u32, bulk: u32) -> Header {
        let serve = &self.serves[usize::from(slot)];
        Header {
            kind: serve.kind,
            slot,
            generation: serve.generation,
            body,
            bulk,
            ..Header::bare(MessageType::Reply, 0)
        }
    }

    fn finish_serve(&mut self, slot: u16) {
        let serve = &mut self.serves[usize::from(slot)];
        serve.state = ServeState::Idle;
        self.counters.nr_ib_send += 1;
        self.counters.served[LinkCounters::kind(serve.kind)] += 1;
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
            let header = self.reply_header(slot, body, bulk);
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
        }
    }
}
