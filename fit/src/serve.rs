//! The callee's half of a connection: requests in, replies out.
//!
//! The caller's slot is also the slot here, so serving allocates nothing: the announced number of serves is both the
//! caller's credit and the size of this table. A caller that uses a slot again before it has the reply, or a slot it
//! was not given, breaks the protocol and loses its connection.

use core::future::Future;

use hal::DmaBuffer;
use verbs::{Payload, QueueSet, RemoteAddr, SendOp};

use crate::link::Link;
use crate::ring::Purpose;
use crate::wire::{HEADER_LEN, Header, MessageType};
use crate::{LinkCounters, LostCause, Member, PeerId};

/// A request that a peer sent, to be answered through its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incoming {
    /// Who asks.
    pub from: PeerId,
    /// What kind of call it is.
    pub kind: u16,
    /// Bytes of the request, now in the server's slice.
    pub len: usize,
    /// Bytes of bulk that the caller takes and this side can send.
    pub bulk_limit: u32,
    pub(crate) link: u16,
    pub(crate) slot: u16,
    pub(crate) generation: u32,
}

/// Where a handler puts its answer.
pub trait ReplyBuf: Send {
    /// The reply's message: what of it is used is set by [`set_len`](Self::set_len).
    fn message(&mut self) -> &mut [u8];
    /// Sets how many bytes of [`message`](Self::message) are the reply.
    fn set_len(&mut self, len: usize);
    /// Bytes of bulk that the caller takes.
    fn bulk_limit(&self) -> usize;
    /// Puts bytes of bulk at `offset` and returns how many fitted. The bulk ends where the last of these ends.
    fn write_bulk(&mut self, offset: usize, bytes: &[u8]) -> usize;
}

/// What a node does with the requests of its peers.
pub trait Handler: Send + Sync {
    /// Answers one request.
    fn handle(
        &self,
        from: PeerId,
        kind: u16,
        request: &[u8],
        reply: &mut dyn ReplyBuf,
    ) -> impl Future<Output = ()> + Send;

    /// A node has joined: its calls may come, and calls to it work. If it was here before, it was told as lost first.
    fn peer_joined(&self, _peer: PeerId, _member: &Member) {}

    /// A peer is lost: whatever it held can be taken back.
    fn peer_lost(&self, peer: PeerId);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum ServeState {
    #[default]
    Idle,
    /// The request is in this receive buffer.
    Arrived { receive: u16, body: u32 },
    /// A handler is at work.
    Serving,
    /// The reply stands in the slot's buffer and waits for room in the send queue.
    Queued { body: u32, bulk: u32 },
}

/// One request that this side may be busy with.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ServeSlot {
    state: ServeState,
    generation: u32,
    kind: u16,
    bulk: RemoteAddr,
    bulk_len: u32,
}

impl<M: DmaBuffer> Link<M> {
    /// Notes a request; it stays in its receive buffer until a server takes it. Returns whether it was one.
    pub(crate) fn on_request(&mut self, receive: usize, header: &Header) -> bool {
        match self.serves.get_mut(usize::from(header.slot)) {
            Some(serve) if serve.state == ServeState::Idle => {
                let receive = u16::try_from(receive).expect("receives are counted in 16 bits");
                *serve = ServeSlot {
                    state: ServeState::Arrived {
                        receive,
                        body: header.body,
                    },
                    generation: header.generation,
                    kind: header.kind,
                    bulk: header.bulk,
                    bulk_len: header.bulk_len,
                };
                self.arrived.push_back(header.slot);
                true
            }
            _ => {
                self.fail(LostCause::Protocol);
                false
            }
        }
    }

    /// Copies the next request into `into` and gives its receive back to the queue.
    pub(crate) fn take_request<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        (from, link): (PeerId, u16),
        into: &mut [u8],
    ) -> Option<Incoming> {
        let slot = self.arrived.pop_front()?;
        let serve = &mut self.serves[usize::from(slot)];
        let ServeState::Arrived { receive, body } = serve.state else {
            unreachable!("only arrived requests are queued")
        };
        serve.state = ServeState::Serving;
        let (kind, generation, lent) = (serve.kind, serve.generation, serve.bulk_len);
        let len = body as usize;
        self.memory
            .read(self.layout.receive(receive.into()) + HEADER_LEN, &mut into[..len]);
        self.repost(queues, receive);
        let bulk_limit = lent.min(self.reply_limits().1);
        Some(Incoming {
            from,
            kind,
            len,
            bulk_limit,
            link,
            slot,
            generation,
        })
    }

    /// Puts bytes into the bulk buffer of a request being served.
    pub(crate) fn write_bulk(&mut self, incoming: &Incoming, offset: usize, bytes: &[u8]) {
        if self.is_serving(incoming) {
            self.memory
                .write(self.layout.bulk(incoming.slot.into()) + offset, bytes);
        }
    }

    fn is_serving(&self, incoming: &Incoming) -> bool {
        let serve = &self.serves[usize::from(incoming.slot)];
        serve.state == ServeState::Serving && serve.generation == incoming.generation
    }

    /// Sends a reply, or queues it until the send queue has room. If the connection is gone it is dropped.
    pub(crate) fn reply<Q: QueueSet>(&mut self, queues: &mut Q, incoming: &Incoming, body: &[u8], bulk: u32) {
        if !self.is_serving(incoming) {
            self.counters.nr_stray += 1;
            return;
        }
        assert!(body.len() <= self.reply_limits().0, "a reply fits the message");
        assert!(bulk <= incoming.bulk_limit, "a bulk fits the caller's buffer");
        let slot = incoming.slot;
        let header = self.reply_header(slot, u32::try_from(body.len()).expect("fits the message"), bulk);
        let at = self.layout.reply(slot.into());
        if self.ring.room() < 2 {
            self.memory.write(at, &header.encode());
            self.memory.write(at + HEADER_LEN, body);
            self.serves[usize::from(slot)].state = ServeState::Queued {
                body: header.body,
                bulk,
            };
            self.queued_replies.push_back(slot);
            return;
        }
        self.write_back_bulk(queues, slot, bulk);
        self.send_message(queues, &header, body, at, Purpose::Reply);
        self.finish_serve(slot);
    }

    fn reply_header(&self, slot: u16, body: u32, bulk: u32) -> Header {
        let serve = &self.serves[usize::from(slot)];
        Header {
            message: MessageType::Reply,
            kind: serve.kind,
            slot,
            generation: serve.generation,
            body,
            bulk: RemoteAddr::default(),
            bulk_len: bulk,
        }
    }

    /// Posts the WRITE of a bulk reply; on one queue pair the SEND behind it arrives after it.
    fn write_back_bulk<Q: QueueSet>(&mut self, queues: &mut Q, slot: u16, bulk: u32) {
        if bulk == 0 {
            return;
        }
        let to = self.serves[usize::from(slot)].bulk;
        let piece = self.piece(self.layout.bulk(slot.into()), bulk as usize);
        self.counters.nr_bytes_tx += u64::from(bulk);
        self.post(
            queues,
            SendOp::Write { to, imm: None },
            Payload::Gather(&[piece]),
            Purpose::Reply,
        );
    }

    fn finish_serve(&mut self, slot: u16) {
        let serve = &mut self.serves[usize::from(slot)];
        serve.state = ServeState::Idle;
        self.counters.nr_ib_send += 1;
        self.counters.served[LinkCounters::kind(serve.kind)] += 1;
    }

    pub(crate) fn send_queued_replies<Q: QueueSet>(&mut self, queues: &mut Q) {
        while self.ring.room() >= 2 {
            let Some(slot) = self.queued_replies.pop_front() else {
                return;
            };
            let ServeState::Queued { body, bulk } = self.serves[usize::from(slot)].state else {
                unreachable!("only queued replies are queued")
            };
            self.write_back_bulk(queues, slot, bulk);
            let at = self.layout.reply(slot.into());
            self.send_staged(queues, at, HEADER_LEN + body as usize, Purpose::Reply);
            self.finish_serve(slot);
        }
    }

    /// Forgets every request: their replies have nowhere to go.
    pub(crate) fn drop_requests(&mut self) {
        self.arrived.clear();
        self.queued_replies.clear();
        self.serves.fill(ServeSlot::default());
    }
}
