//! One-sided accesses of a connection.

use core::task::{Poll, Waker};

use hal::{DmaBuffer, Instant};
use mutants::Mutant;
use verbs::{Payload, QueueSet, RemoteAddr, SendOp, Sge};

use super::Link;
use crate::due;
use crate::one_sided::{AccessEnd, OneSided, OpId};
use crate::ring::Purpose;
use crate::{Error, LinkState, LostCause};

impl<M: DmaBuffer> Link<M> {
    /// Starts a READ or WRITE, or queues it; nothing if no slot is free. The device sees it at the
    /// next [`flush`](Self::flush). With a tag nobody polls for it: its end comes by
    /// [`take_ended`](Self::take_ended).
    pub(crate) fn start_op<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        (what, tag): (OneSided, Option<u64>),
        at: (RemoteAddr, Sge),
        now: Instant,
        deadline: Instant,
    ) -> Result<Option<OpId>, Error> {
        self.check_up()?;
        if self.state != LinkState::Up {
            return Ok(None);
        }
        let Some(id) = self.ops.start((what, tag), at, now, deadline) else {
            return Ok(None);
        };
        match what {
            OneSided::Read => self.counters.nr_rdma_read += 1,
            OneSided::Write => self.counters.nr_rdma_write += 1,
        }
        self.post_queued_ops(queues);
        Ok(Some(id))
    }

    /// Looks whether an access has ended. The id means nothing afterwards.
    pub(crate) fn poll_op(&mut self, id: OpId, waker: &Waker) -> Poll<Result<(), Error>> {
        let ended = self.ops.poll(id, waker);
        if ended.is_ready() {
            self.room.wake();
        }
        ended.map_err(|(operation, failure)| self.error(operation, failure))
    }

    /// The waiter of an access is gone; the access itself goes on.
    pub(crate) fn abandon_op(&mut self, id: OpId) {
        if self.ops.abandon(id) {
            self.room.wake();
        }
    }

    /// The next end of an access that was started with a tag.
    pub(crate) fn take_ended(&mut self) -> Option<AccessEnd> {
        self.ops.take_ended()
    }

    /// Posts the accesses that are queued, in order, as far as send queue and READ credits go.
    pub(super) fn post_queued_ops<Q: QueueSet>(&mut self, queues: &mut Q) {
        while let Some(op) = self.ops.next_queued() {
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
            self.ops.post_next();
            self.reads_out += u8::from(read);
            self.counters.nr_bytes_tx += u64::from(bytes);
            let payload = Payload::Gather(&[op.local]);
            self.post(queues, send, payload, Purpose::OneSided(op.slot));
        }
    }

    /// Returns whether one more READ may be posted.
    pub(super) fn may_read(&self) -> bool {
        let limited = self.reads_out >= self.target.reads && !Mutant::ReadLimitIgnored.on();
        self.ring.room() > 0 && !limited
    }

    /// Gives the connection up when an access is past its deadline: its memory is lent until the
    /// queue pair is dead.
    pub(super) fn expire_ops(&mut self, now: Instant) {
        if let Some(operation) = self.ops.late(now) {
            self.counters.nr_deadline += 1;
            self.fail(LostCause::Deadline(operation));
        }
    }
}
