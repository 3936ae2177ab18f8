//! Calls of a connection: their slots, and each one's way from its request to its end.
//!
//! A slot's number and generation name a call to the peer and to the waiter; whatever comes for
//! another generation touches nothing. The free slots are a list through the slots, the last one
//! freed first. What is to be done beside the slot (a receive to post again, waiters for room to
//! wake, a connection to end) is returned.

use alloc::boxed::Box;
use core::task::{Poll, Waker};

use hal::Instant;
use mutants::Mutant;

use crate::call::CallId;
use crate::error::Operation;
use crate::state::{Failure, LinkState};
use crate::wire::Brief;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallState {
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

impl CallState {
    /// Returns whether the peer owes the reply.
    fn is_owed(self) -> bool {
        matches!(self, Self::Waiting | Self::Expired(_) | Self::Orphaned)
    }
}

/// One call, or a place for one.
#[derive(Debug)]
pub(crate) struct CallSlot {
    state: CallState,
    generation: u32,
    kind: u16,
    /// Whether peer and device may touch the caller's memory until it ends.
    lends: bool,
    /// Whether the device is done with the request. Until then it may read what it gathers again,
    /// though the reply be there.
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

/// Memory that a call lends until it ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LentMemory {
    /// Bytes that the reply's bulk may have.
    pub(crate) takes: u32,
    /// Whether the device gathers from it with the request.
    pub(crate) gathers: bool,
}

/// End of a call that its waiter polled for. The slot is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallEnd {
    /// The reply is in this receive, which is to be posted again.
    Replied { receive: u16, len: usize, bulk: u32 },
    /// The call of this kind failed. Its slot may not be free: the peer may owe the reply.
    Failed(u16, Failure),
}

/// Fate of a slot whose waiter is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Abandoned {
    /// It stays as it is, or is owed a reply.
    Kept,
    /// It is free; the receive, if there is one, is to be posted again.
    Freed { receive: Option<u16> },
}

/// Judgement of a reply that no waiter gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnclaimedReply {
    /// It is for no call that the peer owes a reply to.
    Stray,
    /// It is not what was asked for.
    Broken,
    /// It was owed, and its slot stays until its waiter looks.
    Late,
    /// It was owed, and its slot is free.
    Freed,
}

/// Result of a look at the deadlines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Expired {
    /// Calls that ran past their deadline just now.
    pub(crate) count: u64,
    /// The connection can't go on, as this was not ended in time.
    pub(crate) lost: Option<Operation>,
}

/// The calls of one connection.
#[derive(Debug)]
pub(crate) struct Calls {
    slots: Box<[CallSlot]>,
    first_free: u16,
}

impl CallSlot {
    fn free() -> Self {
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

    /// Frees the slot of a call that neither lends memory nor has a waker any more.
    #[inline(always)]
    fn end(&mut self, first_free: &mut u16, slot: u16) {
        self.state = CallState::Free;
        self.generation = self.generation.wrapping_add(1);
        self.next_free = core::mem::replace(first_free, slot);
    }

    /// Returns whether it waits for this reply.
    #[inline(always)]
    fn awaits(&self, reply: &Brief) -> bool {
        (self.generation == reply.generation || Mutant::ReplyGenerationIgnored.on())
            && self.state == CallState::Waiting
            && self.kind == reply.kind
    }

    /// The reply is in this receive; how long it took, in nanoseconds.
    #[inline(always)]
    pub(crate) fn answer(&mut self, receive: u16, body: u32, bulk: u32, now: Instant) -> u64 {
        self.state = CallState::Answered {
            receive,
            body,
            bulk,
        };
        if self.waker.is_some() {
            self.wake();
        }
        now.nanos.saturating_sub(self.started.nanos)
    }

    #[inline(never)]
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Keeps the waker of a call that has not ended.
    fn keep<T>(&mut self, waker: &Waker) -> Poll<T> {
        match &mut self.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        Poll::Pending
    }

    /// Tells the waiter.
    fn tell(&mut self, state: CallState) {
        self.state = state;
        self.wake();
    }
}

impl Calls {
    /// Makes so many slots, none of which may be used before [`open`](Self::open).
    pub(crate) fn new(count: u16) -> Self {
        Self {
            slots: (0..count).map(|_| CallSlot::free()).collect(),
            first_free: NONE,
        }
    }

    /// Takes the place of another table, of whose calls nobody must be able to name any.
    pub(crate) fn follow(&mut self, old: &Self) {
        for (new, old) in self.slots.iter_mut().zip(&old.slots) {
            new.generation = old.generation.wrapping_add(1);
        }
    }

    /// The peer takes so many calls at once.
    pub(crate) fn open(&mut self, peer_takes: u16) {
        let slots = u16::try_from(self.slots.len()).expect("calls are counted in 16 bits");
        let credit = if Mutant::CallCreditIgnored.on() {
            u16::MAX
        } else {
            peer_takes
        };
        for slot in (0..slots.min(credit)).rev() {
            self.slots[usize::from(slot)].next_free = self.first_free;
            self.first_free = slot;
        }
    }

    pub(crate) fn has_free(&self) -> bool {
        self.first_free != NONE
    }

    /// Takes a slot for a call, if there is one; returns its number and generation.
    #[inline(always)]
    pub(crate) fn begin(
        &mut self,
        kind: u16,
        now: Instant,
        deadline: Instant,
    ) -> Option<(u16, u32)> {
        let slot = self.first_free;
        let call = self.slots.get_mut(usize::from(slot))?;
        self.first_free = call.next_free;
        call.state = CallState::Waiting;
        call.kind = kind;
        (call.started, call.deadline) = (now, deadline);
        Some((slot, call.generation))
    }

    /// Notes what a call that has just begun lends.
    pub(crate) fn lend(&mut self, slot: u16, loan: LentMemory) {
        let call = &mut self.slots[usize::from(slot)];
        call.lends = true;
        (call.takes, call.sent) = (loan.takes, !loan.gathers);
    }

    /// Returns whether there is such a call.
    #[inline(always)]
    pub(crate) fn has(&self, id: CallId) -> bool {
        let call = self.slots.get(usize::from(id.slot));
        call.is_some_and(|call| call.generation == id.generation)
    }

    /// Ends a call that has its reply, lends nothing, and whose reply has at most `room` bytes;
    /// returns the receive that holds the reply, and its length. Nothing of any other call.
    #[inline(always)]
    pub(crate) fn end_plain(&mut self, slot: u16, room: usize) -> Option<(u16, usize)> {
        let call = &mut self.slots[usize::from(slot)];
        let CallState::Answered { receive, body, .. } = call.state else {
            return None;
        };
        let len = body as usize;
        if len > room || call.lends {
            return None;
        }
        call.end(&mut self.first_free, slot);
        Some((receive, len))
    }

    /// Looks whether a call has ended that [`end_plain`](Self::end_plain) did not end.
    pub(crate) fn end_any(&mut self, slot: u16, waker: &Waker) -> Poll<CallEnd> {
        let call = &mut self.slots[usize::from(slot)];
        match call.state {
            CallState::Waiting => call.keep(waker),
            CallState::Answered { .. } if !call.sent && !Mutant::GatheringNotAwaited.on() => {
                call.keep(waker)
            }
            CallState::Answered {
                receive,
                body,
                bulk,
            } => {
                self.free(slot);
                let len = body as usize;
                Poll::Ready(CallEnd::Replied { receive, len, bulk })
            }
            CallState::Failed(failure) => {
                let kind = call.kind;
                self.free(slot);
                Poll::Ready(CallEnd::Failed(kind, failure))
            }
            CallState::Expired(failure) => {
                let kind = call.kind;
                if Mutant::LateCallFreesSlot.on() {
                    self.free(slot);
                } else {
                    call.state = CallState::Orphaned;
                }
                Poll::Ready(CallEnd::Failed(kind, failure))
            }
            CallState::Free | CallState::Orphaned => unreachable!("an id whose end was taken"),
        }
    }

    /// The waiter of a call is gone.
    pub(crate) fn abandon(&mut self, id: CallId) -> Abandoned {
        let Some(call) = self.slots.get_mut(usize::from(id.slot)) else {
            return Abandoned::Kept;
        };
        if call.generation != id.generation {
            return Abandoned::Kept;
        }
        call.waker = None;
        let receive = match call.state {
            CallState::Waiting | CallState::Expired(_) => {
                call.state = CallState::Orphaned;
                return Abandoned::Kept;
            }
            CallState::Free | CallState::Orphaned => return Abandoned::Kept,
            CallState::Answered { receive, .. } => Some(receive),
            CallState::Failed(_) => None,
        };
        self.free(id.slot);
        Abandoned::Freed { receive }
    }

    fn free(&mut self, slot: u16) {
        let call = &mut self.slots[usize::from(slot)];
        call.waker = None;
        (call.lends, call.sent, call.takes) = (false, true, 0);
        call.end(&mut self.first_free, slot);
    }

    /// The device is done with the request of a call that gathers memory.
    pub(crate) fn on_gathered(&mut self, slot: u16, generation: u32) {
        let call = &mut self.slots[usize::from(slot)];
        if call.generation == generation {
            call.sent = true;
            call.wake();
        }
    }

    /// The call that waits for this reply.
    #[inline(always)]
    pub(crate) fn awaiting(&mut self, reply: Brief) -> Option<&mut CallSlot> {
        let call = self.slots.get_mut(usize::from(reply.slot))?;
        call.awaits(&reply).then_some(call)
    }

    /// Takes a reply if a call waits for it that takes so much bulk; how long it took, in
    /// nanoseconds.
    pub(crate) fn answer(
        &mut self,
        receive: u16,
        reply: Brief,
        bulk: u32,
        now: Instant,
    ) -> Option<u64> {
        let call = self.awaiting(reply)?;
        let fits = bulk <= call.takes || Mutant::LongReplyTaken.on();
        fits.then(|| call.answer(receive, reply.body, bulk, now))
    }

    /// Takes a reply that no waiter gets: it comes too late, for nothing, or is not what was asked
    /// for.
    pub(crate) fn on_unawaited(&mut self, reply: Brief, bulk: u32) -> UnclaimedReply {
        let call = self.slots.get_mut(usize::from(reply.slot));
        let owed = call.filter(|call| call.generation == reply.generation && call.state.is_owed());
        let Some(call) = owed else {
            return UnclaimedReply::Stray;
        };
        if bulk > call.takes || reply.kind != call.kind {
            return UnclaimedReply::Broken;
        }
        match call.state {
            CallState::Expired(failure) => {
                call.tell(CallState::Failed(failure));
                UnclaimedReply::Late
            }
            CallState::Orphaned => {
                self.free(reply.slot);
                UnclaimedReply::Freed
            }
            _ => unreachable!("a reply that is owed, and as it was asked for, to one who waits"),
        }
    }

    /// Ends the calls that are past their deadline, of a connection in `state` whose peer takes
    /// `credit` calls.
    pub(crate) fn expire(&mut self, now: Instant, state: LinkState, credit: u16) -> Expired {
        let mut orphans = 0;
        let mut expired = Expired::default();
        for call in &mut self.slots {
            let late = now >= call.deadline && !Mutant::CallDeadlineIgnored.on();
            match call.state {
                CallState::Waiting if late && !call.lends => {
                    let age = now.since(call.started);
                    expired.count += 1;
                    call.tell(CallState::Expired(Failure::Deadline { age, state }));
                }
                CallState::Waiting | CallState::Orphaned if late && call.lends => {
                    expired.lost = Some(Operation::Call(call.kind));
                }
                CallState::Answered { .. } if late && !call.sent => {
                    expired.lost = Some(Operation::Call(call.kind));
                }
                // One that was given up may be answered until its deadline.
                CallState::Orphaned if late || Mutant::AbandonedCallsLosePeer.on() => orphans += 1,
                _ => {}
            }
        }
        if expired.lost.is_some() {
            expired.count += 1;
        } else if orphans == self.slots.len().min(credit.into()) {
            // The peer owes a reply to everything it was ever asked, and all are late.
            expired.lost = Some(Operation::Call(self.slots[0].kind));
        }
        expired
    }

    /// The connection is lost: waiters that lent no memory are told.
    pub(crate) fn fail(&mut self) {
        for call in &mut self.slots {
            if call.state == CallState::Waiting && !call.lends {
                call.tell(CallState::Failed(Failure::Lost));
            }
        }
    }

    /// The queue pair is dead: everyone still waiting is told.
    pub(crate) fn dead(&mut self) {
        for slot in 0..self.slots.len() {
            let call = &mut self.slots[slot];
            match call.state {
                CallState::Waiting => call.tell(CallState::Failed(Failure::Lost)),
                CallState::Expired(failure) => call.tell(CallState::Failed(failure)),
                CallState::Orphaned => {
                    self.free(u16::try_from(slot).expect("calls are counted in 16 bits"));
                }
                // The reply was there, only the request's end is missing.
                CallState::Answered { .. } => {
                    call.sent = true;
                    call.wake();
                }
                CallState::Free | CallState::Failed(_) => {}
            }
        }
    }

    /// Slots in use.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> usize {
        let used = self.slots.iter().map(|call| call.state != CallState::Free);
        used.filter(|&used| used).count()
    }
}
