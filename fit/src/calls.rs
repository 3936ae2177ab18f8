//! Calls: requests out, replies in, matched by slot and generation.

use core::task::{Poll, Waker};

use hal::{DmaBuffer, Instant};
use verbs::{Lkey, QueueSet, Region, RemoteAddr, Rkey, Sge};

use crate::link::{Failure, Link, Outgoing};
use crate::ring::Purpose;
use crate::wire::{DESCRIPTOR_LEN, Descriptor, HEADER_LEN, Header, MessageType};
use crate::{Error, LinkCounters, LinkState, LostCause, MAX_PIECES, Operation};

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
        }
    }
}

impl CallSlot {
    /// Keeps the waker of a call that has not ended.
    fn keep<T>(&mut self, waker: &Waker) -> Poll<T> {
        match &mut self.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        Poll::Pending
    }
}

impl<M: DmaBuffer> Link<M> {
    // ---- Calls ----

    /// Sends a request; nothing if no slot or credit is free just now.
    pub(crate) fn start_call<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        call: &Call<'_>,
        now: Instant,
        deadline: Instant,
    ) -> Result<Option<CallId>, Error> {
        self.check_up()?;
        if self.state != LinkState::Up {
            return Ok(None);
        }
        let (bulk, carried) = self.check_call(call)?;
        if self.ring.room() == 0 {
            return Ok(None);
        }
        let Some(slot) = self.free_calls.pop() else {
            return Ok(None);
        };
        let place = &mut self.calls[usize::from(slot)];
        place.state = CallState::Waiting;
        place.kind = call.kind;
        place.lends = call.lends();
        place.takes = match call.scatter {
            [] => 0,
            pieces => u32::try_from(total(pieces)).unwrap_or(u32::MAX),
        };
        (place.started, place.deadline) = (now, deadline);
        place.sent = call.gather.is_empty() || !carried;
        let purpose = match place.sent {
            true => Purpose::Unanswered,
            false => Purpose::Gathering(slot, place.generation),
        };
        let id = CallId {
            link: 0,
            slot,
            generation: place.generation,
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
            kind: call.kind,
            slot,
            generation: id.generation,
            body: u32::try_from(call.body.len()).expect("at most a message"),
            bulk,
            ..Header::bare(MessageType::Request, 0)
        };
        let at = self.layout.call(slot.into());
        let message = Outgoing {
            header,
            offered,
            accepting: call.scatter,
            body: call.body,
            carried,
        };
        self.send_message(queues, message, at, purpose);
        self.counters.nr_ib_send_reply += 1;
        self.counters.calls[LinkCounters::kind(call.kind)] += 1;
        Ok(Some(id))
    }

    /// The bytes of a request's bulk, and whether they go with its message.
    fn check_call(&self, call: &Call<'_>) -> Result<(u32, bool), Error> {
        if !call.lends() {
            self.check_len(HEADER_LEN + call.body.len())?;
            return Ok((0, true));
        }
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
    pub(crate) fn poll_call<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        id: CallId,
        waker: &Waker,
        into: &mut [u8],
    ) -> Poll<Result<Reply, Error>> {
        let call = &mut self.calls[usize::from(id.slot)];
        assert_eq!(call.generation, id.generation, "a call's end is taken once");
        let operation = Operation::Call(call.kind);
        match call.state {
            CallState::Waiting => call.keep(waker),
            CallState::Answered { .. } if !call.sent => call.keep(waker),
            CallState::Answered { receive, body, bulk } => {
                let len = body as usize;
                let result = match into.get_mut(..len) {
                    Some(into) => {
                        self.memory
                            .read(self.layout.receive(receive.into()) + HEADER_LEN, into);
                        Ok(Reply { len, bulk })
                    }
                    None => Err(Error::TooLong {
                        peer: self.peer,
                        len,
                        limit: into.len(),
                    }),
                };
                self.post_receive(queues, receive.into());
                self.free_call(id.slot);
                Poll::Ready(result)
            }
            CallState::Failed(failure) => {
                self.free_call(id.slot);
                Poll::Ready(Err(self.error(operation, failure)))
            }
            CallState::Expired(failure) => {
                call.state = CallState::Orphaned;
                Poll::Ready(Err(self.error(operation, failure)))
            }
            CallState::Free | CallState::Orphaned => unreachable!("an id whose end was taken"),
        }
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
                self.post_receive(queues, receive.into());
                self.free_call(id.slot);
            }
            CallState::Failed(_) => self.free_call(id.slot),
            CallState::Free | CallState::Orphaned => {}
        }
    }

    #[inline]
    pub(crate) fn free_call(&mut self, slot: u16) {
        let call = &mut self.calls[usize::from(slot)];
        call.state = CallState::Free;
        call.generation = call.generation.wrapping_add(1);
        call.waker = None;
        self.free_calls.push(slot);
        self.wake_room_waiters();
    }

    #[inline]
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

    #[inline(always)]
    pub(crate) fn on_reply<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        receive: u16,
        header: &Header,
        now: Instant,
    ) {
        let known = self
            .calls
            .get(usize::from(header.slot))
            .filter(|call| call.generation == header.generation);
        let Some(call) = known else {
            self.counters.nr_stray += 1;
            return self.post_receive(queues, receive.into());
        };
        let owed = matches!(
            call.state,
            CallState::Waiting | CallState::Expired(_) | CallState::Orphaned
        );
        if owed && (header.bulk > call.takes || header.kind != call.kind) {
            return self.fail(LostCause::Protocol);
        }
        match call.state {
            CallState::Waiting => {
                let started = call.started;
                self.counters.nr_bytes_rx += u64::from(header.bulk);
                self.counters.call_time.record(now.since(started));
                let answer = CallState::Answered {
                    receive,
                    body: header.body,
                    bulk: header.bulk,
                };
                return self.end_call(header.slot.into(), answer);
            }
            CallState::Expired(failure) => self.end_call(header.slot.into(), CallState::Failed(failure)),
            CallState::Orphaned => self.free_call(header.slot),
            CallState::Free | CallState::Answered { .. } | CallState::Failed(_) => {
                self.counters.nr_stray += 1
            }
        }
        self.post_receive(queues, receive.into());
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
