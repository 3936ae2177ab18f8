//! Calls of a connection: requests out, replies to their waiters.

use core::task::{Poll, Waker};

use hal::{DmaBuffer, Instant};
use mutants::Mutant;
use verbs::QueueSet;

use super::{Link, Outgoing};
use crate::call::{Call, CallId, Piece, Reply, total};
use crate::calls::{Abandoned, CallEnd, LentMemory};
use crate::counters::count;
use crate::ring::{Place, Purpose};
use crate::wire::{DESCRIPTOR_LEN, HEADER_LEN, Header, MAX_PIECES, MessageType};
use crate::{Error, LinkState, LostCause, Operation};

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
    pub(crate) fn has_free_call(&self) -> bool {
        self.calls.has_free()
    }

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
        let Some(id) = self.begin_call((link, call), now, deadline) else {
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
    ) -> Option<CallId> {
        let (slot, generation) = self.calls.begin(call.kind, now, deadline)?;
        self.counters.nr_ib_send_reply += 1;
        count(&mut self.counters.calls, call.kind);
        Some(CallId {
            link,
            slot,
            generation,
        })
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
        let Some(id) = self.begin_call((link, call), now, deadline) else {
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
        let Some(id) = self.begin_call((link, call), now, deadline) else {
            return Ok(None);
        };
        let gathers = carried && !call.gather.is_empty();
        let loan = LentMemory {
            takes: u32::try_from(total(call.scatter)).unwrap_or(u32::MAX),
            gathers,
        };
        self.calls.lend(id.slot, loan);
        let purpose = match gathers {
            false => Purpose::Unanswered,
            true => Purpose::Gathering(id.slot, id.generation),
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
        self.calls.has(id)
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
        let Some((receive, len)) = self.calls.end_plain(id.slot, into.len()) else {
            return self.poll_unusual(queues, id.slot, waker, into);
        };
        let receive = self.receives.get(receive);
        self.memory
            .read(receive.at() + HEADER_LEN, &mut into[..len]);
        if matches!(self.state, LinkState::Up)
            && !Mutant::ReceiveNotPostedAgain.on()
            && let Err(error) = receive.post(queues, self.qp)
        {
            self.on_refused_receive(&error);
        }
        self.room.wake();
        Poll::Ready(Ok(Reply { len, bulk: 0 }))
    }

    /// Looks at a call that has no reply, lends memory, or whose reply is too long for `into`.
    #[inline(never)]
    fn poll_unusual<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        slot: u16,
        waker: &Waker,
        into: &mut [u8],
    ) -> Poll<Result<Reply, Error>> {
        let Poll::Ready(end) = self.calls.end_any(slot, waker) else {
            return Poll::Pending;
        };
        let result = match end {
            CallEnd::Failed(kind, failure) => Err(self.error(Operation::Call(kind), failure)),
            CallEnd::Replied { receive, len, bulk } => {
                let result = match into.get_mut(..len) {
                    Some(into) => {
                        let at = self.receives.at(receive) + HEADER_LEN;
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
                result
            }
        };
        self.room.wake();
        Poll::Ready(result)
    }

    /// The waiter of a call is gone.
    pub(crate) fn abandon_call<Q: QueueSet>(&mut self, queues: &mut Q, id: CallId) {
        if let Abandoned::Freed { receive } = self.calls.abandon(id) {
            if let Some(receive) = receive {
                self.post_receive(queues, receive);
            }
            self.room.wake();
        }
    }

    /// Ends the calls that are past their deadline.
    pub(super) fn expire_calls(&mut self, now: Instant) {
        let expired = self.calls.expire(now, self.state, self.target.serves);
        self.counters.nr_deadline += expired.count;
        if let Some(operation) = expired.lost {
            self.fail(LostCause::Deadline(operation));
        }
    }
}
