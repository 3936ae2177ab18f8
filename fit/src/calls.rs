//! Calls: requests out, replies in, matched by slot and generation.

use core::task::{Poll, Waker};

use hal::{DmaBuffer, Instant};
use verbs::{QueueSet, RemoteAddr};

use crate::link::{Failure, Link};
use crate::ring::Purpose;
use crate::wire::{HEADER_LEN, Header, MessageType};
use crate::{Error, LinkCounters, LinkState, LostCause, Operation};

/// A caller's registered buffer for the long part of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bulk {
    /// Where; the region must allow remote writes.
    pub into: RemoteAddr,
    /// Its length in bytes.
    pub len: u32,
}

/// What a call brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Bytes of the reply, now in the caller's slice.
    pub len: usize,
    /// Bytes that the peer wrote into the bulk buffer.
    pub bulk: u32,
}

/// Names a call to its waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallId {
    slot: u16,
    generation: u32,
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
    generation: u32,
    kind: u16,
    pub(crate) bulk: Option<u32>,
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
            bulk: None,
            started: Instant::default(),
            deadline: Instant::default(),
            waker: None,
        }
    }
}

impl<M: DmaBuffer> Link<M> {
    // ---- Calls ----

    /// Sends a request; nothing if no slot or credit is free just now.
    pub(crate) fn start_call<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        (kind, body): (u16, &[u8]),
        bulk: Option<Bulk>,
        now: Instant,
        deadline: Instant,
    ) -> Result<Option<CallId>, Error> {
        self.check_up()?;
        if self.state != LinkState::Up || self.ring.room() == 0 || self.free_calls.is_empty() {
            return Ok(None);
        }
        let limit = self.target.message_size as usize - HEADER_LEN;
        if body.len() > limit {
            return Err(Error::TooLong {
                peer: self.peer,
                len: body.len(),
                limit,
            });
        }
        let Some(slot) = self.free_calls.pop() else {
            return Ok(None);
        };
        let call = &mut self.calls[usize::from(slot)];
        call.state = CallState::Waiting;
        call.kind = kind;
        call.bulk = bulk.map(|bulk| bulk.len);
        (call.started, call.deadline) = (now, deadline);
        let id = CallId {
            slot,
            generation: call.generation,
        };
        let header = Header {
            message: MessageType::Request,
            kind,
            slot,
            generation: id.generation,
            body: u32::try_from(body.len()).expect("at most a message"),
            bulk: bulk.map(|bulk| bulk.into).unwrap_or_default(),
            bulk_len: bulk.map_or(0, |bulk| bulk.len),
        };
        let at = self.layout.call(slot.into());
        self.send_message(queues, &header, body, at, Purpose::Request);
        self.counters.nr_ib_send_reply += 1;
        self.counters.calls[LinkCounters::kind(kind)] += 1;
        Ok(Some(id))
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
            CallState::Waiting => {
                match &mut call.waker {
                    Some(known) => known.clone_from(waker),
                    none => *none = Some(waker.clone()),
                }
                Poll::Pending
            }
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

    pub(crate) fn free_call(&mut self, slot: u16) {
        let call = &mut self.calls[usize::from(slot)];
        call.state = CallState::Free;
        call.generation = call.generation.wrapping_add(1);
        call.waker = None;
        self.free_calls.push(slot);
        self.wake_room_waiters();
    }

    pub(crate) fn end_call(&mut self, slot: usize, state: CallState) {
        let call = &mut self.calls[slot];
        call.state = state;
        if let Some(waker) = call.waker.take() {
            waker.wake();
        }
    }

    pub(crate) fn on_reply<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        receive: usize,
        header: &Header,
        now: Instant,
    ) {
        let known = self
            .calls
            .get(usize::from(header.slot))
            .filter(|call| call.generation == header.generation);
        let Some(call) = known else {
            self.counters.nr_stray += 1;
            return self.post_receive(queues, receive);
        };
        let (state, kind, lent, started) = (call.state, call.kind, call.bulk.unwrap_or(0), call.started);
        let owed = matches!(
            state,
            CallState::Waiting | CallState::Expired(_) | CallState::Orphaned
        );
        if owed && (header.bulk_len > lent || header.kind != kind) {
            return self.fail(LostCause::Protocol);
        }
        match state {
            CallState::Waiting => {
                self.counters.nr_bytes_rx += u64::from(header.bulk_len);
                self.counters.call_time.record(now.since(started));
                let receive = u16::try_from(receive).expect("receives are counted in 16 bits");
                let answer = CallState::Answered {
                    receive,
                    body: header.body,
                    bulk: header.bulk_len,
                };
                return self.end_call(header.slot.into(), answer);
            }
            CallState::Expired(failure) => self.end_call(header.slot.into(), CallState::Failed(failure)),
            CallState::Orphaned => self.free_call(header.slot),
            CallState::Free | CallState::Answered { .. } | CallState::Failed(_) => {
                self.counters.nr_stray += 1
            }
        }
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
                CallState::Waiting if late && call.bulk.is_none() => {
                    let failure = Failure::Deadline {
                        age: now.since(call.started),
                        state: self.state,
                    };
                    self.counters.nr_deadline += 1;
                    self.end_call(slot, CallState::Expired(failure));
                }
                CallState::Waiting | CallState::Orphaned if late && call.bulk.is_some() => {
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
