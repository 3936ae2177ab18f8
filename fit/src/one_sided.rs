//! One-sided access: READs and WRITEs that a waiter or a tag waits for.
//!
//! At most [`Config::one_sided`](crate::Config::one_sided) of them are with the device, and of
//! READs no more than the peer answers at once; the other READs, and what was started behind them,
//! wait in order in their slots. The end of one goes either to the waker that polls for it or, if
//! it was started with a tag, into the list of [`AccessEnd`]s.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::task::{Poll, Waker};

use hal::{Duration, Instant};
use verbs::{RemoteAddr, Sge};

use crate::error::{LostCause, Operation};
use crate::state::Failure;

/// A one-sided access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OneSided {
    /// Brings the peer's memory into local memory.
    Read,
    /// Brings local memory into the peer's.
    Write,
}

impl From<OneSided> for Operation {
    fn from(what: OneSided) -> Self {
        match what {
            OneSided::Read => Self::Read,
            OneSided::Write => Self::Write,
        }
    }
}

/// Names a one-sided access to its waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpId {
    slot: u16,
    generation: u32,
}

/// The end of an access that was started with a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessEnd {
    /// The tag.
    pub tag: u64,
    /// Result of the access.
    pub result: Result<(), LostCause>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OpState {
    Free,
    Queued,
    Posted,
    Done,
    Failed(Failure),
}

#[derive(Debug)]
struct OpSlot {
    state: OpState,
    generation: u32,
    what: OneSided,
    remote: RemoteAddr,
    local: Sge,
    started: Instant,
    deadline: Instant,
    abandoned: bool,
    tag: Option<u64>,
    waker: Option<Waker>,
}

/// An access that waits to be posted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueuedOp {
    pub(crate) slot: u16,
    pub(crate) what: OneSided,
    pub(crate) remote: RemoteAddr,
    pub(crate) local: Sge,
}

/// An access that the device is done with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SentOp {
    pub(crate) what: OneSided,
    /// Time since its start.
    pub(crate) age: Duration,
    /// Its bytes.
    pub(crate) len: u32,
}

/// A connection's one-sided accesses.
pub(crate) struct Ops {
    slots: Box<[OpSlot]>,
    free: Vec<u16>,
    queued: VecDeque<u16>,
    ended: VecDeque<AccessEnd>,
}

impl Ops {
    pub(crate) fn new(slots: u16) -> Self {
        let slot = |_| OpSlot {
            state: OpState::Free,
            generation: 0,
            what: OneSided::Read,
            remote: RemoteAddr::default(),
            local: Sge::default(),
            started: Instant::default(),
            deadline: Instant::default(),
            abandoned: false,
            tag: None,
            waker: None,
        };
        Self {
            slots: (0..slots).map(slot).collect(),
            free: (0..slots).rev().collect(),
            queued: VecDeque::with_capacity(slots.into()),
            ended: VecDeque::with_capacity(slots.into()),
        }
    }

    fn slot(&mut self, slot: u16) -> &mut OpSlot {
        &mut self.slots[usize::from(slot)]
    }

    /// Queues an access; nothing if no slot is free. With a tag nobody polls for it: its end comes
    /// by [`take_ended`](Self::take_ended).
    pub(crate) fn start(
        &mut self,
        (what, tag): (OneSided, Option<u64>),
        (remote, local): (RemoteAddr, Sge),
        now: Instant,
        deadline: Instant,
    ) -> Option<OpId> {
        let slot = self.free.pop()?;
        let op = self.slot(slot);
        op.state = OpState::Queued;
        op.what = what;
        (op.remote, op.local) = (remote, local);
        (op.started, op.deadline) = (now, deadline);
        (op.abandoned, op.tag) = (false, tag);
        let generation = op.generation;
        self.queued.push_back(slot);
        Some(OpId { slot, generation })
    }

    /// Looks whether an access has ended. If so its slot is free, and the id means nothing
    /// afterwards.
    pub(crate) fn poll(
        &mut self,
        id: OpId,
        waker: &Waker,
    ) -> Poll<Result<(), (Operation, Failure)>> {
        let op = self.slot(id.slot);
        assert_eq!(
            op.generation, id.generation,
            "an access's end is taken once"
        );
        let result = match op.state {
            OpState::Queued | OpState::Posted => {
                match &mut op.waker {
                    Some(known) => known.clone_from(waker),
                    none => *none = Some(waker.clone()),
                }
                return Poll::Pending;
            }
            OpState::Done => Ok(()),
            OpState::Failed(failure) => Err((op.what.into(), failure)),
            OpState::Free => unreachable!("an id whose end was taken"),
        };
        self.release(id.slot);
        Poll::Ready(result)
    }

    /// The waiter of an access is gone; the access itself goes on. Returns whether a slot is free
    /// now.
    pub(crate) fn abandon(&mut self, id: OpId) -> bool {
        let op = self.slot(id.slot);
        if op.generation != id.generation {
            return false;
        }
        op.waker = None;
        match op.state {
            OpState::Queued | OpState::Posted => op.abandoned = true,
            OpState::Done | OpState::Failed(_) => {
                self.release(id.slot);
                return true;
            }
            OpState::Free => {}
        }
        false
    }

    /// The next end of an access that was started with a tag.
    pub(crate) fn take_ended(&mut self) -> Option<AccessEnd> {
        self.ended.pop_front()
    }

    /// Returns whether an end waits to be taken.
    pub(crate) fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    fn release(&mut self, slot: u16) {
        let op = self.slot(slot);
        op.state = OpState::Free;
        op.generation = op.generation.wrapping_add(1);
        op.waker = None;
        self.free.push(slot);
    }

    /// Ends an access, by the loss of the connection if it has failed. A slot may be free now.
    fn end(&mut self, slot: u16, state: OpState, cause: LostCause) {
        let op = self.slot(slot);
        op.state = state;
        if let Some(tag) = op.tag {
            let done = state == OpState::Done;
            let result = if done { Ok(()) } else { Err(cause) };
            self.ended.push_back(AccessEnd { tag, result });
            self.release(slot);
        } else if op.abandoned {
            self.release(slot);
        } else if let Some(waker) = op.waker.take() {
            waker.wake();
        }
    }

    /// Returns whether an access waits to be posted.
    pub(crate) fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    /// The access to be posted next.
    pub(crate) fn next_queued(&self) -> Option<QueuedOp> {
        let &slot = self.queued.front()?;
        let op = &self.slots[usize::from(slot)];
        Some(QueuedOp {
            slot,
            what: op.what,
            remote: op.remote,
            local: op.local,
        })
    }

    /// The access that was to be posted next is about to be.
    pub(crate) fn post_next(&mut self) {
        if let Some(slot) = self.queued.pop_front() {
            self.slot(slot).state = OpState::Posted;
        }
    }

    /// Operation of an access.
    pub(crate) fn what(&self, slot: u16) -> OneSided {
        self.slots[usize::from(slot)].what
    }

    /// The device has carried an access out.
    pub(crate) fn on_done(&mut self, slot: u16, now: Instant) -> SentOp {
        let op = self.slot(slot);
        let sent = SentOp {
            what: op.what,
            age: now.since(op.started),
            len: op.local.len,
        };
        self.end(slot, OpState::Done, LostCause::QpFailed);
        sent
    }

    /// The device did not take an access, or failed to carry it out: the connection is lost.
    pub(crate) fn on_failed(&mut self, slot: u16, cause: LostCause) {
        self.end(slot, OpState::Failed(Failure::Lost), cause);
    }

    /// The connection is lost: what the device never saw ends now.
    pub(crate) fn fail_queued(&mut self, cause: LostCause) {
        while let Some(slot) = self.queued.pop_front() {
            self.end(slot, OpState::Failed(Failure::Lost), cause);
        }
    }

    /// The queue pair is dead: what the device saw ends too.
    pub(crate) fn fail_posted(&mut self, cause: LostCause) {
        for slot in 0..self.slots.len() {
            if self.slots[slot].state == OpState::Posted {
                let slot = u16::try_from(slot).expect("accesses are counted in 16 bits");
                self.end(slot, OpState::Failed(Failure::Lost), cause);
            }
        }
    }

    /// The operation of an access that is past its deadline.
    pub(crate) fn late(&self, now: Instant) -> Option<Operation> {
        if self.free.len() == self.slots.len() {
            return None;
        }
        let late = |op: &&OpSlot| {
            matches!(op.state, OpState::Queued | OpState::Posted) && now >= op.deadline
        };
        self.slots.iter().find(late).map(|op| op.what.into())
    }

    /// Slots in use.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> usize {
        self.slots
            .iter()
            .filter(|op| op.state != OpState::Free)
            .count()
    }
}
