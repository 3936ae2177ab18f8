//! The slots of a connection's calls: what is known of each, and which are free.

use core::task::{Poll, Waker};

use hal::Instant;
use mutants::Mutant;

use crate::CallId;
use crate::link::Failure;
use crate::wire::Brief;

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

impl CallState {
    /// Returns whether the peer owes the reply.
    pub(crate) fn is_owed(self) -> bool {
        matches!(self, Self::Waiting | Self::Expired(_) | Self::Orphaned)
    }
}

#[derive(Debug)]
pub(crate) struct CallSlot {
    pub(crate) state: CallState,
    pub(crate) generation: u32,
    pub(crate) kind: u16,
    /// Whether peer and device may touch the caller's memory until it ends.
    pub(crate) lends: bool,
    /// Whether the device is done with the request. Until then it may read what it gathers again,
    /// though the reply be there.
    pub(crate) sent: bool,
    /// Bytes that the reply's bulk may have.
    pub(crate) takes: u32,
    pub(crate) started: Instant,
    pub(crate) deadline: Instant,
    pub(crate) waker: Option<Waker>,
    /// While it is free: the next free slot.
    next_free: u16,
}

/// No slot.
const NONE: u16 = u16::MAX;

/// Free call slots of a connection: a list through the slots, the last one freed first.
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
    pub(crate) fn pop<'a>(&mut self, calls: &'a mut [CallSlot]) -> Option<(u16, &'a mut CallSlot)> {
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

    /// Takes the place of a slot whose calls nobody must be able to name any more.
    pub(crate) fn follow(&mut self, old: &Self) {
        self.generation = old.generation.wrapping_add(1);
    }

    /// Returns whether it is this call's.
    #[inline(always)]
    pub(crate) fn is_of(&self, id: CallId) -> bool {
        self.generation == id.generation
    }

    /// Frees the slot of a call that neither lends memory nor has a waker any more.
    #[inline(always)]
    pub(crate) fn end(&mut self, free: &mut FreeCalls, slot: u16) {
        self.state = CallState::Free;
        self.generation = self.generation.wrapping_add(1);
        self.next_free = core::mem::replace(&mut free.first, slot);
    }

    /// Returns whether it waits for this reply.
    #[inline(always)]
    pub(crate) fn awaits(&self, reply: &Brief) -> bool {
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
    pub(crate) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Keeps the waker of a call that has not ended.
    pub(crate) fn keep<T>(&mut self, waker: &Waker) -> Poll<T> {
        match &mut self.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        Poll::Pending
    }
}
