//! Calls: requests out, replies in, matched by slot and generation.

use core::task::{Poll, Waker};

use hal::{DmaBuffer, Instant};
use verbs::{Lkey, QueueSet, Region, RemoteAddr, Rkey, Sge};

use crate::config::Layout;
use crate::counters::count;
use crate::link::{Failure, Link, Outgoing};
use crate::ring::Purpose;
use crate::wire::{Brief, DESCRIPTOR_LEN, Descriptor, HEADER_LEN, Header, MessageType};
use crate::{Error, LinkState, LostCause, MAX_PIECES, Operation};

/// A piece of this node's registered memory that a call uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins, as its region counts.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u32,
    /// The region's key for this node's device: bulk that fits the message is gathered by it.
    pub lkey: Lkey,
    /// The region's key for the peer, which READs or WRITEs by it; the region must allow that.
    pub rkey: Rkey,
}

impl Piece {
    /// The piece of a region that begins `offset` bytes behind its beginning.
    ///
    /// # Panics
    ///
    /// When it does not lie in the region.
    #[must_use]
    pub fn of(region: &Region, offset: u64, len: u32) -> Self {
        let end = offset.checked_add(len.into());
        assert!(
            end.is_some_and(|end| end <= region.len),
            "{len} bytes at {offset} of a region of {}",
            region.len
        );
        Self {
            addr: region.addr + offset,
            len,
            lkey: region.lkey,
            rkey: region.rkey,
        }
    }

    pub(crate) fn sge(&self) -> Sge {
        Sge {
            addr: self.addr,
            len: self.len,
            lkey: self.lkey,
        }
    }

    pub(crate) fn descriptor(&self) -> Descriptor {
        Descriptor {
            at: RemoteAddr {
                addr: self.addr,
                rkey: self.rkey,
            },
            len: self.len,
        }
    }
}

/// What a call says, and which memory it lends until it ends.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// What it asks for, by a number that both sides know.
    pub kind: u16,
    /// The request's body. Copied, so short ones are best; it must fit a message.
    pub body: &'a [u8],
    /// Memory whose bytes are the request's bulk. It is not copied: it goes with the message if it fits, else the peer READs it.
    pub gather: &'a [Piece],
    /// Memory that the reply's bulk fills, piece by piece, by the peer's WRITEs.
    pub scatter: &'a [Piece],
}

impl<'a> Call<'a> {
    /// A call without bulk.
    #[must_use]
    pub fn new(kind: u16, body: &'a [u8]) -> Self {
        Self {
            kind,
            body,
            gather: &[],
            scatter: &[],
        }
    }

    /// The same with bulk in the request.
    #[must_use]
    pub fn gather(self, gather: &'a [Piece]) -> Self {
        Self { gather, ..self }
    }

    /// The same with room for bulk of the reply.
    #[must_use]
    pub fn scatter(self, scatter: &'a [Piece]) -> Self {
        Self { scatter, ..self }
    }

    fn lends(&self) -> bool {
        !self.gather.is_empty() || !self.scatter.is_empty()
    }
}

fn total(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.len)).sum()
}

/// What a call brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Bytes of the reply, now in the caller's slice.
    pub len: usize,
    /// Bytes that the peer wrote into the pieces for bulk.
    pub bulk: u32,
}

/// Names a call to its waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallId {
    /// The connection; the engine's to know.
    pub(crate) link: u16,
    pub(crate) slot: u16,
    pub(crate) generation: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallState {
    Free,
    Waiting,
    /// The reply is in this receive buffer.
    Answered {
        receive: u16,
        body: u32,
        bulk: u32,
    },
    Failed(Failure),
    /// Past its deadline; the waiter does not know yet, and the peer still owes the reply.
    Expired(Failure),
    /// Nobody waits any more, but the peer still owes the reply.
    Orphaned,
}

#[derive(Debug)]
pub(crate) struct CallSlot {
    pub(crate) state: CallState,
    pub(crate) generation: u32,
    kind: u16,
    /// Whether peer and device may touch the caller's memory until it ends.
    pub(crate) lends: bool,
    /// Whether the device is done with the request. Until then it may read what it gathers again, though the reply be there.
    sent: bool,
    /// Bytes that the reply's bulk may have.
    takes: u32,
    started: Instant,
    deadline: Instant,
    waker: Option<Waker>,
    /// While it is free: the next free slot.
    next_free: u16,
}

/// No slot.
const NONE: u16 = u16::MAX;

/// Which slots of a connection are free: a list through the slots, the last one freed first.
#[derive(Debug)]
pub(crate) struct FreeCalls {
    first: u16,
}

impl FreeCalls {
    pub(crate) fn none() -> Self {
        Self { first: NONE }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first == NONE
    }

    #[inline]
    pub(crate) fn push(&mut self, calls: &mut [CallSlot], slot: u16) {
        calls[usize::from(slot)].next_free = self.first;
        self.first = slot;
    }

    /// Takes a slot out.
    #[inline]
    fn pop<'a>(&mut self, calls: &'a mut [CallSlot]) -> Option<(u16, &'a mut CallSlot)> {
        let slot = self.first;
        let place = calls.get_mut(usize::from(slot))?;
        self.first = place.next_free;
        Some((slot, place))
    }
}

impl CallSlot {
    pub(crate) fn free() -> Self {
        Self {
            state: CallState::Free,
            generation: 0,
            kind: 0,
            lends: false,
            sent: true,
            takes: 0,
            started: Instant::default(),
            deadline: Instant::default(),
            waker: None,
            next_free: NONE,
        }
    }
}

impl CallSlot {
    /// Frees the slot of a call that neither lends memory nor has a waker any more.
    #[inline(always)]
    fn end(&mut self, free: &mut FreeCalls, slot: u16) {
        self.state = CallState::Free;
        self.generation = self.generation.wrapping_add(1);
        self.next_free = core::mem::replace(&mut free.first, slot);
    }

    /// Keeps the waker of a call that has not ended.
    fn keep<T>(&mut self, waker: &Waker) -> Poll<T> {
        match &mut self.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        Poll::Pending
    }
}

/// The header of a request without bulk.
#[inline(always)]
fn request_header(call: &Call<'_>, id: CallId) -> Header {
    Header {
        kind: call.kind,
        slot: id.slot,
        generation: id.generation,
        body: u32::try_from(call.body.len()).expect("at most a message"),
        ..Header::bare(MessageType::Request, 0)
    }
}

impl<M: DmaBuffer> Link<M> {
    // ---- Calls ----

    /// Sends a request; nothing if no slot or credit is free just now.
    #[inline]
    pub(crate) fn start_call<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        call: &Call<'_>,
        now: Instant,
        deadline: Instant,
    ) -> Result<Option<CallId>, Error> {
        if self.state != LinkState::Up {
            return self.check_up().map(|()| None);
        }
        if call.lends() {
            return self.start_lending_call(queues, call, now, deadline);
        }
        self.check_len(HEADER_LEN + call.body.len())?;
        let Some((id, _)) = self.begin_call(call, now, deadline) else {
            return Ok(None);
        };
        let header = request_header(call, id);
        let place = |layout: &Layout| layout.call(id.slot.into());
        self.send_plain(queues, header, call.body, place, Purpose::Unanswered);
        Ok(Some(id))
    }

    /// Takes a slot for a call, if there is one and room in the send queue.
    #[inline]
    fn begin_call(
        &mut self,
        call: &Call<'_>,
        now: Instant,
        deadline: Instant,
    ) -> Option<(CallId, &mut CallSlot)> {
        if self.ring.room() == 0 {
            return None;
        }
        let (slot, place) = self.free_calls.pop(&mut self.calls)?;
        place.state = CallState::Waiting;
        place.kind = call.kind;
        (place.started, place.deadline) = (now, deadline);
        self.counters.nr_ib_send_reply += 1;
        count(&mut self.counters.calls, call.kind);
        let generation = place.generation;
        let id = CallId {
            link: 0,
            slot,
            generation,
        };
        Some((id, place))
    }

    /// Starts a call that lends memory.
    #[inline(never)]
    fn start_lending_call<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        call: &Call<'_>,
        now: Instant,
        deadline: Instant,
    ) -> Result<Option<CallId>, Error> {
        let (bulk, carried) = self.check_call(call)?;
        let Some((id, place)) = self.begin_call(call, now, deadline) else {
            return Ok(None);
        };
        place.lends = true;
        place.takes = u32::try_from(total(call.scatter)).unwrap_or(u32::MAX);
        place.sent = call.gather.is_empty() || !carried;
        let purpose = match place.sent {
            true => Purpose::Unanswered,
            false => Purpose::Gathering(id.slot, id.generation),
        };
        let (carried, offered) = if carried {
            (call.gather, &[][..])
        } else {
            (&[][..], call.gather)
        };
        let pieces = |pieces: &[Piece]| u8::try_from(pieces.len()).expect("at most MAX_PIECES");
        let header = Header {
            gathers: pieces(offered),
            scatters: pieces(call.scatter),
            bulk,
            ..request_header(call, id)
        };
        let at = self.layout.call(id.slot.into());
        let message = Outgoing {
            header,
            offered,
            accepting: call.scatter,
            body: call.body,
            carried,
        };
        self.send_message(queues, message, at, purpose);
        Ok(Some(id))
    }

    /// The bytes of a request's bulk, and whether they go with its message.
    fn check_call(&self, call: &Call<'_>) -> Result<(u32, bool), Error> {
        let pieces = call.gather.len().max(call.scatter.len());
        if pieces > MAX_PIECES {
            return Err(Error::TooManyPieces {
                peer: self.peer,
                pieces,
            });
        }
        let bulk = total(call.gather);
        let head = HEADER_LEN + call.scatter.len() * DESCRIPTOR_LEN + call.body.len();
        let limit = self.target.message_size;
        if head as u64 + bulk <= u64::from(limit) {
            return Ok((u32::try_from(bulk).expect("at most a message"), true));
        }
        if bulk == 0 {
            self.check_len(head)?;
        }
        self.check_len(head + call.gather.len() * DESCRIPTOR_LEN)?;
        match u32::try_from(bulk) {
            Ok(bulk) if bulk <= self.target.bulk_size => Ok((bulk, false)),
            _ => Err(Error::TooLong {
                peer: self.peer,
                len: usize::try_from(bulk).unwrap_or(usize::MAX),
                limit: self.target.bulk_size as usize,
            }),
        }
    }

    /// Looks whether a call has ended. Its reply is copied into `into`; the id means nothing afterwards.
    #[inline]
    pub(crate) fn poll_call<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        id: CallId,
        waker: &Waker,
        into: &mut [u8],
    ) -> Poll<Result<Reply, Error>> {
        let call = &mut self.calls[usize::from(id.slot)];
        assert_eq!(call.generation, id.generation, "a call's end is taken once");
        let CallState::Answered { receive, body, .. } = call.state else {
            return self.poll_unanswered(id.slot, waker);
        };
        let len = body as usize;
        let Some(into) = into.get_mut(..len).filter(|_| !call.lends) else {
            return self.poll_unusual(queues, id.slot, waker, into);
        };
        call.end(&mut self.free_calls, id.slot);
        let receive = &mut self.receives[usize::from(receive)];
        self.memory.read(receive.at + HEADER_LEN, into);
        if matches!(self.state, LinkState::Up)
            && let Err(error) = receive.post(queues, self.qp)
        {
            self.on_refused_receive(&error);
        }
        self.wake_room_waiters();
        Poll::Ready(Ok(Reply { len, bulk: 0 }))
    }

    /// Looks at a call that no reply has come for.
    #[inline(never)]
    fn poll_unanswered(&mut self, slot: u16, waker: &Waker) -> Poll<Result<Reply, Error>> {
        let call = &mut self.calls[usize::from(slot)];
        let operation = Operation::Call(call.kind);
        match call.state {
            CallState::Waiting => call.keep(waker),
            CallState::Failed(failure) => {
                self.free_call(slot);
                Poll::Ready(Err(self.error(operation, failure)))
            }
            CallState::Expired(failure) => {
                call.state = CallState::Orphaned;
                Poll::Ready(Err(self.error(operation, failure)))
            }
            CallState::Free | CallState::Orphaned | CallState::Answered { .. } => {
                unreachable!("an id whose end was taken")
            }
        }
    }

    /// Looks at a call with a reply that lends memory, or whose reply is too long for `into`.
    #[inline(never)]
    fn poll_unusual<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        slot: u16,
        waker: &Waker,
        into: &mut [u8],
    ) -> Poll<Result<Reply, Error>> {
        let call = &mut self.calls[usize::from(slot)];
        let CallState::Answered { receive, body, bulk } = call.state else {
            unreachable!("only calls with a reply are looked at")
        };
        if !call.sent {
            return call.keep(waker);
        }
        let len = body as usize;
        let result = match into.get_mut(..len) {
            Some(into) => {
                let at = self.receives[usize::from(receive)].at + HEADER_LEN;
                self.memory.read(at, into);
                Ok(Reply { len, bulk })
            }
            None => Err(Error::TooLong {
                peer: self.peer,
                len,
                limit: into.len(),
            }),
        };
        self.post_receive(queues, receive);
        self.free_call(slot);
        Poll::Ready(result)
    }

    /// The waiter of a call is gone.
    pub(crate) fn abandon_call<Q: QueueSet>(&mut self, queues: &mut Q, id: CallId) {
        let call = &mut self.calls[usize::from(id.slot)];
        if call.generation != id.generation {
            return;
        }
        call.waker = None;
        match call.state {
            CallState::Waiting | CallState::Expired(_) => call.state = CallState::Orphaned,
            CallState::Answered { receive, .. } => {
                self.post_receive(queues, receive);
                self.free_call(id.slot);
            }
            CallState::Failed(_) => self.free_call(id.slot),
            CallState::Free | CallState::Orphaned => {}
        }
    }

    pub(crate) fn free_call(&mut self, slot: u16) {
        let call = &mut self.calls[usize::from(slot)];
        call.waker = None;
        (call.lends, call.sent, call.takes) = (false, true, 0);
        call.end(&mut self.free_calls, slot);
        self.wake_room_waiters();
    }

    #[inline(always)]
    pub(crate) fn end_call(&mut self, slot: usize, state: CallState) {
        let call = &mut self.calls[slot];
        call.state = state;
        if let Some(waker) = call.waker.take() {
            waker.wake();
        }
    }

    /// The device is done with the request of a call that gathers memory.
    pub(crate) fn on_gathered(&mut self, slot: u16, generation: u32) {
        let call = &mut self.calls[usize::from(slot)];
        if call.generation == generation {
            call.sent = true;
            if let Some(waker) = call.waker.take() {
                waker.wake();
            }
        }
    }

    /// Takes a reply; its receive is posted again when the waiter has it.
    #[inline(always)]
    pub(crate) fn on_reply<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        receive: u16,
        reply: Brief,
        bulk: u32,
        now: Instant,
    ) {
        let Some(call) = self.calls.get_mut(usize::from(reply.slot)) else {
            return self.on_stray_reply(queues, receive);
        };
        if call.generation != reply.generation || call.state != CallState::Waiting {
            let Brief {
                kind,
                slot,
                generation,
                ..
            } = reply;
            return self.on_unawaited_reply(queues, receive, (slot, generation), (kind, bulk));
        }
        if bulk > call.takes || reply.kind != call.kind {
            return self.fail(LostCause::Protocol);
        }
        let took = now.nanos.saturating_sub(call.started.nanos);
        call.state = CallState::Answered {
            receive,
            body: reply.body,
            bulk,
        };
        if let Some(waker) = call.waker.take() {
            waker.wake();
        }
        self.counters.nr_bytes_rx += u64::from(bulk);
        self.counters.call_time.record_ns(took);
    }

    /// Takes a reply that is for no call that waits.
    #[inline(never)]
    fn on_unawaited_reply<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        receive: u16,
        (slot, generation): (u16, u32),
        (kind, bulk): (u16, u32),
    ) {
        let call = &self.calls[usize::from(slot)];
        if call.generation != generation {
            return self.on_stray_reply(queues, receive);
        }
        let owed = matches!(call.state, CallState::Expired(_) | CallState::Orphaned);
        if owed && (bulk > call.takes || kind != call.kind) {
            return self.fail(LostCause::Protocol);
        }
        match call.state {
            CallState::Expired(failure) => self.end_call(slot.into(), CallState::Failed(failure)),
            CallState::Orphaned => self.free_call(slot),
            CallState::Free | CallState::Waiting | CallState::Answered { .. } | CallState::Failed(_) => {
                return self.on_stray_reply(queues, receive);
            }
        }
        self.post_receive(queues, receive);
    }

    /// Drops a reply that nothing was asked for.
    #[inline(never)]
    fn on_stray_reply<Q: QueueSet>(&mut self, queues: &mut Q, receive: u16) {
        self.counters.nr_stray += 1;
        self.post_receive(queues, receive);
    }

    /// Ends the calls that are past their deadline.
    pub(crate) fn expire_calls(&mut self, now: Instant) {
        let mut orphans = 0;
        let mut overdue = None;
        for slot in 0..self.calls.len() {
            let call = &self.calls[slot];
            let late = now >= call.deadline;
            match call.state {
                CallState::Waiting if late && !call.lends => {
                    let failure = Failure::Deadline {
                        age: now.since(call.started),
                        state: self.state,
                    };
                    self.counters.nr_deadline += 1;
                    self.end_call(slot, CallState::Expired(failure));
                }
                CallState::Waiting | CallState::Orphaned if late && call.lends => {
                    overdue = Some(Operation::Call(call.kind));
                }
                CallState::Answered { .. } if late && !call.sent => {
                    overdue = Some(Operation::Call(call.kind));
                }
                CallState::Orphaned => orphans += 1,
                _ => {}
            }
        }
        if let Some(operation) = overdue {
            self.counters.nr_deadline += 1;
            self.fail(LostCause::Deadline(operation));
        } else if orphans == self.calls.len().min(self.target.serves.into()) {
            // The peer owes a reply to everything it was ever asked.
            self.fail(LostCause::Deadline(Operation::Call(self.calls[0].kind)));
        }
    }
}
