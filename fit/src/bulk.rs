//! The bulk of requests and replies on the callee's side: buffers, READs of what callers offer,
//! WRITEs of what they take.
//!
//! ```text
//!  request with bulk ─► Waiting ──buffers are free──► Fetching ──READs are done──► Arrived ─► Serving ─► reply:
//!                          └── nothing to fetch ──────────────────────────────────────┘        WRITE each piece, then SEND
//! ```
//!
//! The buffers lie in the connection's own memory, so a peer can take none from another, and no key
//! to them is given away: a caller can't change what a handler reads. A request takes all the
//! buffers that it needs at once, so two can't wait for each other. Requests without bulk overtake
//! those that wait.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use hal::{DmaBuffer, Instant};
use verbs::{Payload, QueueSet, SendOp};

use crate::link::{Link, due};
use crate::ring::Purpose;
use crate::serve::{Incoming, ServeState};
use crate::wire::{DESCRIPTOR_LEN, Descriptor, HEADER_LEN, Header};
use crate::{Config, LostCause, MAX_PIECES};

/// Bulk data of a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct BulkPart {
    /// Whether there is any; without, the lengths and counts are zero.
    any: bool,
    /// Bytes that come with the request.
    pub(crate) len: u32,
    /// Bytes that may be sent with the reply.
    pub(crate) limit: u32,
    gathers: u8,
    scatters: u8,
    /// The buffers it has.
    input: Option<u16>,
    output: Option<u16>,
    /// Pieces looked at, bytes asked for, and READs that are not done yet.
    looked_at: u8,
    asked: u32,
    reads: u8,
    scatter: [Descriptor; MAX_PIECES],
}

impl BulkPart {
    /// Returns whether there is any.
    #[inline]
    pub(crate) fn is_any(&self) -> bool {
        self.any
    }

    /// There is none.
    #[inline]
    pub(crate) fn clear(&mut self) {
        if self.any {
            self.any = false;
            (self.len, self.limit) = (0, 0);
            (self.gathers, self.scatters) = (0, 0);
        }
    }

    /// Returns whether the request's bulk came in its message.
    pub(crate) fn is_carried(&self) -> bool {
        self.len > 0 && self.gathers == 0
    }

    /// Bytes of the descriptors in the request.
    pub(crate) fn descriptors_len(&self) -> usize {
        (usize::from(self.gathers) + usize::from(self.scatters)) * DESCRIPTOR_LEN
    }

    /// The WRITEs of a reply with so much bulk, at most.
    pub(crate) fn writes(&self, bulk: u32) -> usize {
        if bulk == 0 { 0 } else { self.scatters.into() }
    }

    fn buffers_wanted(&self) -> usize {
        usize::from(self.gathers > 0) + usize::from(self.limit > 0)
    }

    fn is_fetched(&self) -> bool {
        self.looked_at == self.gathers && self.reads == 0
    }
}

/// A connection's buffers for bulk, and the slots that want some.
#[derive(Debug)]
pub(crate) struct Buffers {
    count: u16,
    size: u32,
    free: Vec<u16>,
    pub(crate) waiting: VecDeque<u16>,
    pub(crate) fetching: VecDeque<u16>,
}

impl Buffers {
    pub(crate) fn new(config: &Config) -> Self {
        let count = if config.bulk_size > 0 {
            config.bulk_buffers
        } else {
            0
        };
        let room = usize::from(config.serves);
        Self {
            count,
            size: config.bulk_size,
            free: (0..count).collect(),
            waiting: VecDeque::with_capacity(room),
            fetching: VecDeque::with_capacity(room),
        }
    }

    /// The queue pair is dead: nothing touches any of them.
    pub(crate) fn free_all(&mut self) {
        self.free.clear();
        self.free.extend(0..self.count);
    }

    fn give_back(&mut self, buffer: u16) {
        assert!(!self.free.contains(&buffer), "buffer {buffer} was taken");
        self.free.push(buffer);
    }

    /// Buffers that nobody has.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }
}

impl<M: DmaBuffer> Link<M> {
    /// Takes up a request, with the bulk that it brings or wants.
    pub(crate) fn on_request(&mut self, receive: u16, header: &Header, now: Instant) {
        let slot = usize::from(header.slot);
        if self.begin_serve(receive, header.brief(), now).is_none() {
            return self.fail(LostCause::Protocol);
        }
        let offered: u64 = (0..header.gathers)
            .map(|piece| u64::from(self.descriptor(receive, piece).len))
            .sum();
        if header.gathers > 0 && (offered != u64::from(header.bulk) || header.bulk > self.bulk.size)
        {
            return self.fail(LostCause::Protocol);
        }
        let mut taken = 0;
        for piece in 0..header.scatters {
            let descriptor = self.descriptor(receive, header.gathers + piece);
            self.serves[slot].bulk.scatter[usize::from(piece)] = descriptor;
            taken += u64::from(descriptor.len);
        }
        let part = &mut self.serves[slot].bulk;
        part.any = header.bulk > 0 || header.scatters > 0;
        part.len = header.bulk;
        part.limit = u32::try_from(taken).unwrap_or(u32::MAX).min(self.bulk.size);
        (part.gathers, part.scatters) = (header.gathers, header.scatters);
        (part.looked_at, part.asked, part.reads) = (0, 0, 0);
        if part.buffers_wanted() == 0 {
            return self.arrive(header.slot);
        }
        self.serves[slot].state = ServeState::Waiting;
        self.bulk.waiting.push_back(header.slot);
        self.admit_waiting();
    }

    /// The descriptor `index` of the request in a receive buffer.
    fn descriptor(&self, receive: u16, index: u8) -> Descriptor {
        let mut bytes = [0; DESCRIPTOR_LEN];
        let at = self.receives[usize::from(receive)].at
            + HEADER_LEN
            + usize::from(index) * DESCRIPTOR_LEN;
        self.memory.read(at, &mut bytes);
        Descriptor::decode(&bytes)
    }

    /// Gives buffers to those who wait for some, in order.
    fn admit_waiting(&mut self) {
        while let Some(&slot) = self.bulk.waiting.front() {
            let part = &mut self.serves[usize::from(slot)].bulk;
            if self.bulk.free.len() < part.buffers_wanted() {
                return;
            }
            self.bulk.waiting.pop_front();
            part.output = (part.limit > 0).then(|| self.bulk.free.pop()).flatten();
            if part.gathers == 0 {
                self.arrive(slot);
                continue;
            }
            part.input = self.bulk.free.pop();
            self.serves[usize::from(slot)].state = ServeState::Fetching;
            self.bulk.fetching.push_back(slot);
            self.due |= due::BACKLOG;
        }
    }

    /// Posts READs of what callers offer, as far as send queue and READ credits go.
    pub(crate) fn fetch_offered<Q: QueueSet>(&mut self, queues: &mut Q) {
        while let Some(&slot) = self.bulk.fetching.front() {
            let serve = &self.serves[usize::from(slot)];
            let part = &serve.bulk;
            if part.looked_at == part.gathers {
                self.bulk.fetching.pop_front();
                if part.is_fetched() {
                    self.arrive(slot);
                }
                continue;
            }
            if !self.may_read() {
                return;
            }
            let (receive, asked) = (serve.receive, part.asked);
            let buffer = part
                .input
                .expect("a buffer was taken before the first READ");
            let Descriptor { at: from, len } = self.descriptor(receive, part.looked_at);
            let into = self.piece(
                self.layout.bulk(buffer.into()) + asked as usize,
                len as usize,
            );
            let part = &mut self.serves[usize::from(slot)].bulk;
            part.looked_at += 1;
            if len == 0 {
                continue;
            }
            part.asked += len;
            part.reads += 1;
            self.reads_out += 1;
            let read = SendOp::Read { from };
            self.post(queues, read, Payload::Gather(&[into]), Purpose::Fetch(slot));
        }
    }

    /// A READ of what a caller offers has ended.
    pub(crate) fn on_fetched(&mut self, slot: u16, success: bool) {
        self.reads_out -= 1;
        let serve = &mut self.serves[usize::from(slot)];
        if !success || serve.state != ServeState::Fetching {
            return;
        }
        serve.bulk.reads -= 1;
        if serve.bulk.is_fetched() {
            self.counters.nr_bytes_rx += u64::from(serve.bulk.len);
            self.arrive(slot);
        }
    }

    /// Copies bulk of a request being served; returns how many bytes there were.
    pub(crate) fn read_bulk(&self, incoming: &Incoming, offset: usize, into: &mut [u8]) -> usize {
        let part = &self.serves[usize::from(incoming.slot)].bulk;
        let Some(buffer) = part.input.filter(|_| self.is_serving(incoming)) else {
            return 0;
        };
        let len = into.len().min((part.len as usize).saturating_sub(offset));
        if len > 0 {
            self.memory
                .read(self.layout.bulk(buffer.into()) + offset, &mut into[..len]);
        }
        len
    }

    /// Puts bytes into the bulk of a reply; `offset` and they are within [`Incoming::bulk_limit`].
    pub(crate) fn write_bulk(&mut self, incoming: &Incoming, offset: usize, bytes: &[u8]) {
        let part = &self.serves[usize::from(incoming.slot)].bulk;
        let Some(buffer) = part.output.filter(|_| self.is_serving(incoming)) else {
            return;
        };
        assert!(
            offset + bytes.len() <= part.limit as usize,
            "within the limit"
        );
        self.memory
            .write(self.layout.bulk(buffer.into()) + offset, bytes);
    }

    /// The handler is done with the request's bulk.
    pub(crate) fn release_input(&mut self, slot: u16) {
        if let Some(buffer) = self.serves[usize::from(slot)].bulk.input.take() {
            self.bulk.give_back(buffer);
            self.admit_waiting();
        }
    }

    /// Posts the WRITEs of a reply's bulk; on one queue pair the SEND behind them arrives after
    /// them. Returns what that SEND is for.
    pub(crate) fn write_bulk_back<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        slot: u16,
        bulk: u32,
    ) -> Purpose {
        let Some(buffer) = self.serves[usize::from(slot)].bulk.output.take() else {
            return Purpose::Unanswered;
        };
        if bulk == 0 {
            self.release_output(buffer);
            return Purpose::Unanswered;
        }
        self.counters.nr_bytes_tx += u64::from(bulk);
        let (mut done, mut piece) = (0, 0);
        while done < bulk {
            let Descriptor { at: to, len } = self.serves[usize::from(slot)].bulk.scatter[piece];
            let len = len.min(bulk - done);
            piece += 1;
            if len > 0 {
                let from = self.piece(
                    self.layout.bulk(buffer.into()) + done as usize,
                    len as usize,
                );
                let write = SendOp::Write { to, imm: None };
                self.post(queues, write, Payload::Gather(&[from]), Purpose::Unanswered);
                done += len;
            }
        }
        Purpose::BulkReply(buffer)
    }

    /// The device has read a reply's bulk, or never will.
    pub(crate) fn release_output(&mut self, buffer: u16) {
        self.bulk.give_back(buffer);
        self.admit_waiting();
    }
}
