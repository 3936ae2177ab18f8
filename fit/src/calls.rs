//! Calls: requests out, replies in, matched by slot and generation.

use core::task::{Poll, Waker};

use hal::{DmaBuffer, Instant};
use mutants::Mutant;
use verbs::{Lkey, QueueSet, Region, RemoteAddr, Rkey, Sge};

use crate::call_slots::{CallSlot, CallState};
use crate::counters::count;
use crate::link::{Failure, Link, Outgoing};
use crate::ring::{Place, Purpose};
use crate::wire::{
    Brief, DESCRIPTOR_LEN, Descriptor, HEADER_BYTES, HEADER_LEN, Header, MessageType,
};
use crate::{Error, LinkState, LostCause, MAX_PIECES, Operation};

/// A piece of this node's registered memory that a call uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Start address, as its region counts.
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

/// A call: its content, and the memory that it lends until it ends.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Kind of the call, by a number that both sides know.
    pub kind: u16,
    /// The request's body. Copied, so short ones are best; it must fit a message.
    pub body: &'a [u8],
    /// Memory whose bytes are the request's bulk. It is not copied: it goes with the message if it
    /// fits, else the peer READs it.
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

/// Result of a call.
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

    /// Sends a request and rings the doorbell; nothing if no slot or credit is free just now.
    /// `link` is this connection's number.
    #[inline(always)]
    pub(crate) fn start_call<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        (link, call): (u16, &Call<'_>),
        now: Instant,
        deadline: Instant,
    ) -> Result<Option<CallId>, Error> {
        if call.lends() || !self.goes_at_once(call.body) {
            return self.start_longer_call(queues, (link, call), now, deadline);
        }
        let Some(place) = self.ring.take(Purpose::Unanswered) else {
            return Ok(None);
        };
        let Some((id, _)) = self.begin_call((link, call), now, deadline) else {
            return Ok(self.give_place_back(place));
        };
        self.send_at_once(queues, place, request_header(call, id), call.body);
        Ok(Some(id))
    }

    #[cold]
    fn give_place_back(&mut self, place: Place) -> Option<CallId> {
        self.ring.give_back(place);
        None
    }

    /// Takes a slot for a call, if there is one.
    #[inline(always)]
    fn begin_call(
        &mut self,
        (link, call): (u16, &Call<'_>),
        now: Instant,
        deadline: Instant,
    ) -> Option<(CallId, &mut CallSlot)> {
        let (slot, place) = self.free_calls.pop(&mut self.calls)?;
        place.state = CallState::Waiting;
        place.kind = call.kind;
        (place.started, place.deadline) = (now, deadline);
        self.counters.nr_ib_send_reply += 1;
        count(&mut self.counters.calls, call.kind);
        let generation = place.generation;
        let id = CallId {
            link,
            slot,
            generation,
        };
        Some((id, place))
    }

    /// Starts a call that does not go at once: it lends memory, is long, or the connection is not
    /// up.
    #[inline(never)]
    fn start_longer_call<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        (link, call): (u16, &Call<'_>),
        now: Instant,
        deadline: Instant,
    ) -> Result<Option<CallId>, Error> {
        self.check_up()?;
        if self.state != LinkState::Up {
            return Ok(None);
        }
        let id = if call.lends() {
            self.start_lending_call(queues, (link, call), now, deadline)
        } else {
            self.start_long_call(queues, (link, call), now, deadline)
        };
        self.flush(queues);
        id
    }

    /// Starts a call without bulk whose body does not go inline.
    fn start_long_call<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        (link, call): (u16, &Call<'_>),
        now: Instant,
        deadline: Instant,
    ) -> Result<Option<CallId>, Error> {
        self.check_len(HEADER_LEN + call.body.len())?;
        if self.ring.room() == 0 {
            return Ok(None);
        }
        let Some((id, _)) = self.begin_call((link, call), now, deadline) else {
            return Ok(None);
        };
        let (header, at) = (request_header(call, id), self.layout.call(id.slot.into()));
        self.send_plain(queues, header, call.body, at, Purpose::Unanswered);
        Ok(Some(id))
    }

    /// Starts a call that lends memory.
    fn start_lending_call<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        (link, call): (u16, &Call<'_>),
        now: Instant,
        deadline: Instant,
    ) -> Result<Option<CallId>, Error> {
        let (bulk, carried) = self.check_call(call)?;
        if self.ring.room() == 0 {
            return Ok(None);
        }
        let Some((id, place)) = self.begin_call((link, call), now, deadline) else {
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

    /// Returns whether there is such a call.
    #[inline(always)]
    pub(crate) fn has_call(&self, id: CallId) -> bool {
        let call = self.calls.get(usize::from(id.slot));
        call.is_some_and(|call| call.is_of(id))
    }

    /// Looks whether a call that [is there](Self::has_call) has ended. Its reply is copied into
    /// `into`; the id means nothing afterwards.
    #[inline(always)]
    pub(crate) fn poll_call<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        id: CallId,
        waker: &Waker,
        into: &mut [u8],
    ) -> Poll<Result<Reply, Error>> {
        let call = &mut self.calls[usize::from(id.slot)];
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
            && !Mutant::ReceiveNotPostedAgain.on()
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
                if Mutant::LateCallFreesSlot.on() {
                    self.free_call(slot);
                    return Poll::Ready(Err(self.error(operation, failure)));
                }
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
        let CallState::Answered {
            receive,
            body,
            bulk,
        } = call.state
        else {
            unreachable!("only calls with a reply are looked at")
        };
        if !call.sent && !Mutant::GatheringNotAwaited.on() {
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
        let Some(call) = self.calls.get_mut(usize::from(id.slot)) else {
            return;
        };
        if !call.is_of(id) {
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
        call.wake();
    }

    /// The device is done with the request of a call that gathers memory.
    pub(crate) fn on_gathered(&mut self, slot: u16, generation: u32) {
        let call = &mut self.calls[usize::from(slot)];
        if call.generation == generation {
            call.sent = true;
            call.wake();
        }
    }

    /// Takes a reply without bulk if a call waits for it and it says nothing new of one-way
    /// messages; whether this was so. Its receive is posted again when the waiter has it.
    #[inline(always)]
    pub(crate) fn on_plain_reply(&mut self, receive: u16, reply: Brief, now: Instant) -> bool {
        match self.calls.get_mut(usize::from(reply.slot)) {
            Some(call) if call.awaits(&reply) && self.window.knows(reply.returned) => {
                let took = call.answer(receive, reply.body, 0, now);
                self.hear(HEADER_BYTES + reply.body);
                self.counters.call_time.record_ns(took);
                true
            }
            _ => false,
        }
    }

    /// Takes a reply, whatever it brings.
    pub(crate) fn on_reply<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        receive: u16,
        reply: Brief,
        bulk: u32,
        now: Instant,
    ) {
        match self.calls.get_mut(usize::from(reply.slot)) {
            Some(call)
                if call.awaits(&reply) && (bulk <= call.takes || Mutant::LongReplyTaken.on()) =>
            {
                let took = call.answer(receive, reply.body, bulk, now);
                self.counters.nr_bytes_rx += u64::from(bulk);
                self.counters.call_time.record_ns(took);
            }
            _ => self.on_unawaited_reply(queues, receive, reply, bulk),
        }
    }

    /// Takes a reply that no waiter gets: it comes too late, for nothing, or is not what was asked
    /// for.
    #[inline(never)]
    fn on_unawaited_reply<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        receive: u16,
        reply: Brief,
        bulk: u32,
    ) {
        let call = self.calls.get(usize::from(reply.slot));
        let owed = call.filter(|call| call.generation == reply.generation && call.state.is_owed());
        let Some(call) = owed else {
            self.counters.nr_stray += 1;
            return self.post_receive(queues, receive);
        };
        if bulk > call.takes || reply.kind != call.kind {
            return self.fail(LostCause::Protocol);
        }
        match call.state {
            CallState::Expired(failure) => {
                self.end_call(reply.slot.into(), CallState::Failed(failure))
            }
            CallState::Orphaned => self.free_call(reply.slot),
            _ => unreachable!("a reply that is owed, and as it was asked for, to one who waits"),
        }
        self.post_receive(queues, receive);
    }

    /// Ends the calls that are past their deadline.
    pub(crate) fn expire_calls(&mut self, now: Instant) {
        let mut orphans = 0;
        let mut overdue = None;
        for slot in 0..self.calls.len() {
            let call = &self.calls[slot];
            let late = now >= call.deadline && !Mutant::CallDeadlineIgnored.on();
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
