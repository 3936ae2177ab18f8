//! The callee's half of a connection: requests that came, and their answers.
//!
//! The caller's slot is also the slot here, so serving allocates nothing: the announced number of
//! serves is both the caller's credit and the size of this table. A caller that uses a slot again
//! before it has the reply, or a slot it was not given, breaks the protocol and loses its
//! connection. What becomes due on the connection is returned as bits ([`due`]).

use alloc::boxed::Box;
use alloc::collections::VecDeque;

use hal::Instant;
use mutants::Mutant;
use verbs::RemoteAddr;

use crate::arrivals::{Arrivals, Chained, OneWayMessage};
use crate::bulk::{Buffers, BulkPart};
use crate::due;
use crate::incoming::Incoming;
use crate::peer::PeerId;
use crate::wire::{Brief, Descriptor, Header, MessageType};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum ServeState {
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
    state: ServeState,
    /// Counts the requests in this slot, of whatever peer: a late answer finds another number.
    serial: u32,
    /// The caller's name for it.
    generation: u32,
    kind: u16,
    /// The receive that holds the request until a handler takes it, and the length of its body.
    receive: u16,
    body: u32,
    arrived: Instant,
    /// While it waits for a handler: the request behind it, if it is not the last.
    next: u16,
    bulk: BulkPart,
}

impl ServeSlot {
    /// Takes the place of a slot whose requests nobody must be able to name any more.
    fn follow(&mut self, old: &Self) {
        self.serial = old.serial.wrapping_add(1);
    }

    /// Returns whether bulk came with it, or may go with the reply.
    #[inline(always)]
    pub(crate) fn has_bulk(&self) -> bool {
        self.bulk.is_any()
    }

    /// The receive that the request stands in.
    #[inline(always)]
    pub(crate) fn receive(&self) -> u16 {
        self.receive
    }

    /// The request as its handler sees it: one without bulk, of this peer, in this slot of this
    /// connection.
    #[inline(always)]
    pub(crate) fn incoming(&self, from: PeerId, link: u16, slot: u16) -> Incoming {
        Incoming {
            from,
            kind: self.kind,
            len: self.body as usize,
            one_way: false,
            bulk_len: 0,
            bulk_limit: 0,
            arrived: self.arrived,
            carried: false,
            link,
            slot,
            serial: self.serial,
        }
    }

    /// The same, of one that has to do with bulk.
    pub(crate) fn incoming_bulk(&self, from: PeerId, link: u16, slot: u16) -> Incoming {
        Incoming {
            bulk_len: self.bulk.len,
            bulk_limit: self.bulk.limit,
            carried: self.bulk.is_carried(),
            ..self.incoming(from, link, slot)
        }
    }

    /// Bytes of the descriptors in front of the body.
    pub(crate) fn descriptors_len(&self) -> usize {
        self.bulk.descriptors_len()
    }

    /// Ends the serving of a request without bulk by a reply of so many bytes, and gives that
    /// reply's header.
    #[inline(always)]
    pub(crate) fn finish(&mut self, slot: u16, body: u32) -> Header {
        self.state = ServeState::Idle;
        self.reply_header(slot, body, 0)
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

impl Chained for ServeSlot {
    #[inline(always)]
    fn next(&mut self) -> &mut u16 {
        &mut self.next
    }
}

/// A READ of bulk that a caller offers, to be posted next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fetch {
    pub(crate) slot: u16,
    /// The receive that holds the request, and the number of the piece in it.
    pub(crate) receive: u16,
    pub(crate) piece: u8,
    /// The buffer that it goes into, and the offset in that.
    pub(crate) buffer: u16,
    pub(crate) offset: u32,
}

/// A reply that waits for room in the send queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueuedReply {
    pub(crate) slot: u16,
    pub(crate) body: u32,
    pub(crate) bulk: u32,
}

/// The requests of a connection's peer, its one-way messages, and the buffers for bulk.
#[derive(Debug)]
pub(crate) struct Serves {
    slots: Box<[ServeSlot]>,
    arrived: Arrivals,
    queued: VecDeque<u16>,
    buffers: Buffers,
    /// Slots that want buffers, and those whose bulk is to be fetched.
    waiting: VecDeque<u16>,
    fetching: VecDeque<u16>,
}

impl Serves {
    /// Makes so many slots, for so many one-way messages beside.
    pub(crate) fn new(slots: u16, one_ways: u16, buffers: Buffers) -> Self {
        let queue = || VecDeque::with_capacity(slots.into());
        Self {
            slots: (0..slots).map(|_| ServeSlot::default()).collect(),
            arrived: Arrivals::new(one_ways),
            queued: queue(),
            buffers,
            waiting: queue(),
            fetching: queue(),
        }
    }

    /// Takes the place of another table, of whose requests nobody must be able to name any.
    pub(crate) fn follow(&mut self, old: &Self) {
        let slots = self.slots.iter_mut().zip(&old.slots);
        slots.for_each(|(new, old)| new.follow(old));
    }

    /// Returns whether something waits for a handler.
    pub(crate) fn has_arrived(&self) -> bool {
        !self.arrived.is_empty()
    }

    // ---- Arrival ----

    /// Notes a request without bulk if its slot is free; whether this was so. It stays in its
    /// receive until a handler takes it.
    #[inline(always)]
    pub(crate) fn on_plain(&mut self, receive: u16, request: Brief, now: Instant) -> bool {
        let Some(serve) = self.begin(receive, request, now) else {
            return false;
        };
        serve.state = ServeState::Arrived;
        self.arrived.push_request(&mut self.slots, request.slot);
        true
    }

    /// Notes a request, with the bulk that it brings or wants, whose descriptors `piece` reads by
    /// their number. Nothing if it breaks the protocol.
    pub(crate) fn on_request(
        &mut self,
        receive: u16,
        header: &Header,
        now: Instant,
        piece: impl Fn(u8) -> Descriptor,
    ) -> Option<u8> {
        let size = self.buffers.size();
        let serve = self.begin(receive, header.brief(), now)?;
        if !serve.bulk.begin(header, size, piece) {
            return None;
        }
        if !serve.bulk.wants_buffers() {
            return Some(self.arrive(header.slot));
        }
        serve.state = ServeState::Waiting;
        self.waiting.push_back(header.slot);
        Some(self.admit_waiting())
    }

    /// Notes a request in its slot; nothing if there is no such slot, or it is not free.
    #[inline(always)]
    fn begin(&mut self, receive: u16, request: Brief, now: Instant) -> Option<&mut ServeSlot> {
        let serve = self.slots.get_mut(usize::from(request.slot))?;
        if serve.state != ServeState::Idle && !Mutant::BusySlotTaken.on() {
            return None;
        }
        serve.serial = serve.serial.wrapping_add(1);
        (serve.generation, serve.kind) = (request.generation, request.kind);
        (serve.receive, serve.body, serve.arrived) = (receive, request.body, now);
        Some(serve)
    }

    /// A request is complete: a handler may take it.
    fn arrive(&mut self, slot: u16) -> u8 {
        self.slots[usize::from(slot)].state = ServeState::Arrived;
        self.arrived.push_request(&mut self.slots, slot);
        due::ARRIVED
    }

    /// A one-way message waits for a handler too.
    pub(crate) fn on_one_way(&mut self, message: OneWayMessage) -> u8 {
        self.arrived.push_one_way(message);
        due::ARRIVED
    }

    // ---- Bulk of requests ----

    /// Gives buffers to those who wait for some, in order.
    fn admit_waiting(&mut self) -> u8 {
        let mut due = 0;
        while let Some(&slot) = self.waiting.front() {
            let serve = &mut self.slots[usize::from(slot)];
            let Some(fetches) = serve.bulk.admit(&mut self.buffers) else {
                break;
            };
            self.waiting.pop_front();
            if fetches {
                serve.state = ServeState::Fetching;
                self.fetching.push_back(slot);
                due |= due::BACKLOG;
            } else {
                due |= self.arrive(slot);
            }
        }
        due
    }

    pub(crate) fn has_fetches(&self) -> bool {
        !self.fetching.is_empty()
    }

    /// The next READ of what callers offer, and what is due by requests that need no more.
    pub(crate) fn next_fetch(&mut self) -> (Option<Fetch>, u8) {
        let mut due = 0;
        while let Some(&slot) = self.fetching.front() {
            let serve = &self.slots[usize::from(slot)];
            if !serve.bulk.is_asked() {
                let (piece, buffer, offset) = serve.bulk.next_piece();
                let fetch = Fetch {
                    slot,
                    receive: serve.receive,
                    piece,
                    buffer,
                    offset,
                };
                return (Some(fetch), due);
            }
            self.fetching.pop_front();
            if serve.bulk.is_fetched() {
                due |= self.arrive(slot);
            }
        }
        (None, due)
    }

    /// The next READ of the request in `slot`, of so many bytes, is about to be posted; none if
    /// these are zero.
    pub(crate) fn fetch(&mut self, slot: u16, len: u32) {
        self.slots[usize::from(slot)].bulk.ask(len);
    }

    /// A READ of what a caller offers has ended: the bytes of the bulk if all of it is there.
    pub(crate) fn on_fetched(&mut self, slot: u16, success: bool) -> Option<(u32, u8)> {
        let serve = &mut self.slots[usize::from(slot)];
        if !success || serve.state != ServeState::Fetching {
            return None;
        }
        serve.bulk.on_read();
        let len = serve.bulk.len;
        let fetched = serve.bulk.is_fetched();
        fetched.then(|| (len, self.arrive(slot)))
    }

    // ---- Handlers ----

    /// Takes a one-way message if it came before all else that waits; else the next is a request.
    #[inline(always)]
    pub(crate) fn take_one_way(&mut self) -> Option<OneWayMessage> {
        if !self.arrived.has_one_ways() {
            return None;
        }
        self.arrived.pop_one_way()
    }

    /// Takes the next request for a handler, with the number of its slot.
    #[inline(always)]
    pub(crate) fn take_request(&mut self) -> Option<(u16, &ServeSlot)> {
        let (slot, serve) = self.arrived.pop_request(&mut self.slots)?;
        serve.state = ServeState::Serving;
        Some((slot, serve))
    }

    /// The slot of a request, while a handler is at work on it and its peer still there.
    #[inline(always)]
    pub(crate) fn serving(&mut self, incoming: &Incoming) -> Option<&mut ServeSlot> {
        let serve = &mut self.slots[usize::from(incoming.slot)];
        (serve.state == ServeState::Serving && serve.serial == incoming.serial).then_some(serve)
    }

    fn bulk_of(&self, incoming: &Incoming) -> Option<&BulkPart> {
        let serve = &self.slots[usize::from(incoming.slot)];
        (serve.state == ServeState::Serving && serve.serial == incoming.serial)
            .then_some(&serve.bulk)
    }

    /// The buffer with the bulk of a request being served, and its length.
    pub(crate) fn input(&self, incoming: &Incoming) -> Option<(u16, u32)> {
        let part = self.bulk_of(incoming)?;
        Some((part.input()?, part.len))
    }

    /// The buffer for the bulk of its reply, and the bytes that the caller takes.
    pub(crate) fn output(&self, incoming: &Incoming) -> Option<(u16, u32)> {
        let part = self.bulk_of(incoming)?;
        Some((part.output()?, part.limit))
    }

    /// The handler is done with the request's bulk.
    pub(crate) fn release_input(&mut self, slot: u16) -> u8 {
        match self.slots[usize::from(slot)].bulk.take_input() {
            Some(buffer) => self.release_output(buffer),
            None => 0,
        }
    }

    /// The device has read a reply's bulk, or never will.
    pub(crate) fn release_output(&mut self, buffer: u16) -> u8 {
        self.buffers.give_back(buffer);
        self.admit_waiting()
    }

    // ---- Replies ----

    /// Requests that a reply with so much bulk posts at most.
    pub(crate) fn posts(&self, slot: u16, bulk: u32) -> usize {
        self.slots[usize::from(slot)].bulk.writes(bulk) + 1
    }

    /// Queues a reply whose body stands in the slot's buffer.
    pub(crate) fn queue(&mut self, slot: u16, body: u32, bulk: u32) -> u8 {
        self.slots[usize::from(slot)].state = ServeState::Queued { body, bulk };
        self.queued.push_back(slot);
        due::BACKLOG
    }

    pub(crate) fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    /// Takes the queued reply that is next, if it posts at most `room` requests.
    pub(crate) fn take_queued(&mut self, room: usize) -> Option<QueuedReply> {
        let &slot = self.queued.front()?;
        let ServeState::Queued { body, bulk } = self.slots[usize::from(slot)].state else {
            unreachable!("only queued replies are queued")
        };
        if room < self.posts(slot, bulk) {
            return None;
        }
        self.queued.pop_front();
        Some(QueuedReply { slot, body, bulk })
    }

    /// Takes the buffer with a reply's bulk.
    pub(crate) fn take_output(&mut self, slot: u16) -> Option<u16> {
        self.slots[usize::from(slot)].bulk.take_output()
    }

    /// The WRITEs of a reply's bulk: for each the place, the offset in the buffer and the length.
    pub(crate) fn writes(
        &self,
        slot: u16,
        bulk: u32,
    ) -> impl Iterator<Item = (RemoteAddr, u32, u32)> + use<> {
        self.slots[usize::from(slot)].bulk.pieces(bulk)
    }

    /// The header of a reply.
    pub(crate) fn reply_header(&self, slot: u16, body: u32, bulk: u32) -> Header {
        self.slots[usize::from(slot)].reply_header(slot, body, bulk)
    }

    /// A reply was posted.
    pub(crate) fn finish(&mut self, slot: u16) {
        let serve = &mut self.slots[usize::from(slot)];
        serve.state = ServeState::Idle;
        serve.bulk.clear();
    }

    // ---- Ends ----

    /// Forgets every message of the peer: the replies have nowhere to go.
    pub(crate) fn fail(&mut self) {
        self.arrived.clear();
        self.queued.clear();
        self.waiting.clear();
        self.fetching.clear();
        for serve in &mut self.slots {
            serve.state = ServeState::Idle;
            serve.bulk.clear();
        }
    }

    /// The queue pair is dead: nothing touches any buffer.
    pub(crate) fn dead(&mut self) {
        self.buffers.free_all();
    }

    /// Buffers that nobody has.
    #[cfg(test)]
    pub(crate) fn free_buffers(&self) -> usize {
        self.buffers.free()
    }
}
