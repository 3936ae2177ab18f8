//! One-sided access: READs and WRITEs that a waiter or a tag waits for.
//!
//! At most [`Config::one_sided`](crate::Config::one_sided) of them are with the device, and of
//! READs no more than the peer answers at once; the other READs, and what was started behind them,
//! wait in order in their slots. The end of one goes either to the waker that polls for it or, if
//! it was started with a tag, into the list of [`Ended`] ones.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::task::{Poll, Waker};

use hal::{DmaBuffer, Instant};
use mutants::Mutant;
use verbs::{Payload, QueueSet, RemoteAddr, SendOp, Sge};

use crate::link::{Failure, Link, due};
use crate::ring::Purpose;
use crate::{Config, Error, LinkState, LostCause, Operation};

/// A one-sided access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OneSided {
    /// Brings the peer's memory into local memory.
    Read,
    /// Brings local memory into the peer's.
    Write,
}

impl OneSided {
    fn operation(self) -> Operation {
        match self {
            Self::Read => Operation::Read,
            Self::Write => Operation::Write,
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
pub struct Ended {
    /// The tag.
    pub tag: u64,
    /// Result of the access.
    pub result: Result<(), LostCause>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpState {
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

/// A connection's one-sided accesses.
pub(crate) struct Ops {
    slots: Box<[OpSlot]>,
    free: Vec<u16>,
    queued: VecDeque<u16>,
    ended: VecDeque<Ended>,
}

impl Ops {
    pub(crate) fn new(config: &Config) -> Self {
        let slots = config.one_sided;
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

    /// Slots in use.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> usize {
        self.slots
            .iter()
            .filter(|op| op.state != OpState::Free)
            .count()
    }
}

impl<M: DmaBuffer> Link<M> {
    /// Starts a READ or WRITE, or queues it; nothing if no slot is free. The device sees it at the
    /// next [`flush`](Self::flush). With a tag nobody polls for it: its end comes by
    /// [`take_ended`](Self::take_ended).
    pub(crate) fn start_op<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        (what, tag): (OneSided, Option<u64>),
        (remote, local): (RemoteAddr, Sge),
        now: Instant,
        deadline: Instant,
    ) -> Result<Option<OpId>, Error> {
        self.check_up()?;
        if self.state != LinkState::Up {
            return Ok(None);
        }
        let Some(slot) = self.ops.free.pop() else {
            return Ok(None);
        };
        let op = self.ops.slot(slot);
        op.state = OpState::Queued;
        op.what = what;
        (op.remote, op.local) = (remote, local);
        (op.started, op.deadline) = (now, deadline);
        (op.abandoned, op.tag) = (false, tag);
        let id = OpId {
            slot,
            generation: op.generation,
        };
        match what {
            OneSided::Read => self.counters.nr_rdma_read += 1,
            OneSided::Write => self.counters.nr_rdma_write += 1,
        }
        self.ops.queued.push_back(slot);
        self.post_queued_ops(queues);
        Ok(Some(id))
    }

    /// Looks whether an access has ended. The id means nothing afterwards.
    pub(crate) fn poll_op(&mut self, id: OpId, waker: &Waker) -> Poll<Result<(), Error>> {
        let op = self.ops.slot(id.slot);
        assert_eq!(
            op.generation, id.generation,
            "an access's end is taken once"
        );
        let operation = op.what.operation();
        match op.state {
            OpState::Queued | OpState::Posted => {
                match &mut op.waker {
                    Some(known) => known.clone_from(waker),
                    none => *none = Some(waker.clone()),
                }
                Poll::Pending
            }
            OpState::Done => {
                self.free_op(id.slot);
                Poll::Ready(Ok(()))
            }
            OpState::Failed(failure) => {
                self.free_op(id.slot);
                Poll::Ready(Err(self.error(operation, failure)))
            }
            OpState::Free => unreachable!("an id whose end was taken"),
        }
    }

    /// The waiter of an access is gone; the access itself goes on.
    pub(crate) fn abandon_op(&mut self, id: OpId) {
        let op = self.ops.slot(id.slot);
        if op.generation != id.generation {
            return;
        }
        op.waker = None;
        match op.state {
            OpState::Queued | OpState::Posted => op.abandoned = true,
            OpState::Done | OpState::Failed(_) => self.free_op(id.slot),
            OpState::Free => {}
        }
    }

    /// The next end of an access that was started with a tag.
    pub(crate) fn take_ended(&mut self) -> Option<Ended> {
        self.ops.ended.pop_front()
    }

    /// Returns whether an end waits to be taken.
    pub(crate) fn has_ended(&self) -> bool {
        !self.ops.ended.is_empty()
    }

    fn free_op(&mut self, slot: u16) {
        let op = self.ops.slot(slot);
        op.state = OpState::Free;
        op.generation = op.generation.wrapping_add(1);
        op.waker = None;
        self.ops.free.push(slot);
        self.wake_room_waiters();
    }

    pub(crate) fn end_op(&mut self, slot: u16, state: OpState) {
        let cause = self.cause.unwrap_or(LostCause::QpFailed);
        let op = self.ops.slot(slot);
        op.state = state;
        if let Some(tag) = op.tag {
            let result = if state == OpState::Done {
                Ok(())
            } else {
                Err(cause)
            };
            self.ops.ended.push_back(Ended { tag, result });
            self.free_op(slot);
        } else if op.abandoned {
            self.free_op(slot);
        } else if let Some(waker) = op.waker.take() {
            waker.wake();
        }
    }

    /// Returns whether an access waits to be posted.
    pub(crate) fn has_queued_ops(&self) -> bool {
        !self.ops.queued.is_empty()
    }

    /// Posts the accesses that are queued, in order, as far as send queue and READ credits go.
    pub(crate) fn post_queued_ops<Q: QueueSet>(&mut self, queues: &mut Q) {
        while let Some(&slot) = self.ops.queued.front() {
            let op = &self.ops.slots[usize::from(slot)];
            let read = op.what == OneSided::Read;
            if self.ring.room() == 0 || (read && !self.may_read()) {
                self.due |= due::BACKLOG;
                break;
            }
            let (send, bytes) = match op.what {
                OneSided::Read => (SendOp::Read { from: op.remote }, 0),
                OneSided::Write => (
                    SendOp::Write {
                        to: op.remote,
                        imm: None,
                    },
                    op.local.len,
                ),
            };
            let local = op.local;
            self.ops.queued.pop_front();
            self.ops.slot(slot).state = OpState::Posted;
            self.reads_out += u8::from(read);
            self.counters.nr_bytes_tx += u64::from(bytes);
            self.post(
                queues,
                send,
                Payload::Gather(&[local]),
                Purpose::OneSided(slot),
            );
        }
    }

    /// Returns whether one more READ may be posted.
    pub(crate) fn may_read(&self) -> bool {
        let limited = self.reads_out >= self.target.reads && !Mutant::ReadLimitIgnored.on();
        self.ring.room() > 0 && !limited
    }

    /// The device is done with an access.
    pub(crate) fn on_op_sent(&mut self, slot: u16, success: bool, now: Instant) {
        let op = self.ops.slot(slot);
        let (what, age, len) = (op.what, now.since(op.started), op.local.len);
        if what == OneSided::Read {
            self.reads_out -= 1;
        }
        if !success {
            return self.end_op(slot, OpState::Failed(Failure::Lost));
        }
        match what {
            OneSided::Read => {
                self.counters.nr_bytes_rx += u64::from(len);
                self.counters.read_time.record(age);
            }
            OneSided::Write => self.counters.write_time.record(age),
        }
        self.end_op(slot, OpState::Done);
    }

    /// The connection is lost: what the device never saw ends now.
    pub(crate) fn fail_queued_ops(&mut self) {
        while let Some(slot) = self.ops.queued.pop_front() {
            self.end_op(slot, OpState::Failed(Failure::Lost));
        }
    }

    /// The queue pair is dead: what the device saw ends too.
    pub(crate) fn fail_posted_ops(&mut self) {
        for slot in 0..self.ops.slots.len() {
            if self.ops.slots[slot].state == OpState::Posted {
                let slot = u16::try_from(slot).expect("accesses are counted in 16 bits");
                self.end_op(slot, OpState::Failed(Failure::Lost));
            }
        }
    }

    /// Gives the connection up when an access is past its deadline: its memory is lent until the
    /// queue pair is dead.
    pub(crate) fn expire_ops(&mut self, now: Instant) {
        if self.ops.free.len() == self.ops.slots.len() {
            return;
        }
        let late =
            self.ops.slots.iter().find(|op| {
                matches!(op.state, OpState::Queued | OpState::Posted) && now >= op.deadline
            });
        if let Some(what) = late.map(|op| op.what) {
            self.counters.nr_deadline += 1;
            self.fail(LostCause::Deadline(what.operation()));
        }
    }
}
