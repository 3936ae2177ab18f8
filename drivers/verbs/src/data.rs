//! The data path: post and poll.

use crate::{Completion, Payload, QpSlot, SendOp, SendRequest, Sge};

/// Reasons why a request was not taken. The queue is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// The work queue has no free slot. A user that counts its credits never sees this.
    #[error("the work queue of {qp} is full ({depth} requests)")]
    QueueFull {
        /// The queue pair.
        qp: QpSlot,
        /// Number of requests that it holds.
        depth: u32,
    },
    /// More pieces or inline bytes than the queue pair was made for.
    #[error("the request needs {needed} bytes of descriptor, {qp} has {have}")]
    TooLarge {
        /// The queue pair.
        qp: QpSlot,
        /// Descriptor bytes needed.
        needed: usize,
        /// Descriptor bytes a request may have.
        have: usize,
    },
    /// The request does not fit the queue pair's kind: READ on UD, no destination on UD, inline
    /// READ.
    #[error("{what} is not possible on {qp}")]
    NotPossible {
        /// The queue pair.
        qp: QpSlot,
        /// The request's kind.
        what: &'static str,
    },
    /// No such queue pair in this set, or it is not in a state that takes the request.
    #[error("{qp} does not take requests")]
    NotReady {
        /// The queue pair.
        qp: QpSlot,
    },
}

/// Reasons why a completion queue could not be polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PollError {
    /// The device wrote a completion that can't be: an unknown queue pair, or an index with nothing
    /// posted there.
    #[error("a completion for QPN {qpn:#x}, index {index}, that nothing was posted for")]
    Inconsistent {
        /// The queue pair's number as the device wrote it.
        qpn: u32,
        /// The index as the device wrote it.
        index: u16,
    },
    /// The completion queue was overrun or failed; its queue pairs are in the error state.
    #[error("the completion queue failed")]
    QueueFailed,
}

/// One completion queue and the queue pairs that complete into it: the property of one core.
pub trait QueueSet: Send {
    /// Puts a send request into the queue. The device sees it at the next [`ring`](Self::ring).
    ///
    /// # Errors
    ///
    /// See [`PostError`]; nothing was posted then.
    fn post_send(&mut self, qp: QpSlot, request: &SendRequest<'_>) -> Result<(), PostError>;

    /// Posts as [`post_send`](Self::post_send) does, the request that is made most often: a
    /// solicited SEND on a connection of the bytes of `head` and `rest`, [inline](Payload::Inline).
    ///
    /// # Errors
    ///
    /// See [`PostError`]; nothing was posted then.
    #[inline]
    fn send_inline(
        &mut self,
        qp: QpSlot,
        id: u64,
        signalled: bool,
        head: &[u8],
        rest: &[u8],
    ) -> Result<(), PostError> {
        let request = SendRequest {
            id,
            op: SendOp::Send { imm: None },
            payload: Payload::Inline(head, rest),
            signalled,
            solicited: true,
            fence: false,
            to: None,
        };
        self.post_send(qp, &request)
    }

    /// Puts a receive request into the queue and shows it to the device. Its message goes into
    /// these pieces; on a datagram queue pair the first 40 bytes are the GRH's. The completion
    /// hands `id` back.
    ///
    /// # Errors
    ///
    /// See [`PostError`]; nothing was posted then.
    fn post_receive(&mut self, qp: QpSlot, id: u64, into: &[Sge]) -> Result<(), PostError>;

    /// Shows the device every send posted so far on this queue pair, by one doorbell.
    fn ring(&mut self, qp: QpSlot);

    /// Takes finished requests, oldest first, into `into`; returns how many. Zero means none is
    /// ready.
    ///
    /// # Errors
    ///
    /// See [`PollError`]. A bad entry is consumed, so that polling goes on behind it.
    fn poll(&mut self, into: &mut [Completion]) -> Result<usize, PollError>;

    /// Asks for an interrupt at the next completion (or the next solicited one). One that is
    /// already there and was not polled also raises it, so: arm, poll once more, then wait.
    fn arm(&mut self, solicited_only: bool);

    /// Forgets what was posted to a queue pair that was [reset](crate::Device::reset_qp), with the
    /// completions that were not polled yet: both work queues are empty afterwards.
    fn forget(&mut self, qp: QpSlot);

    /// Free slots of the queue pair's send queue.
    fn send_room(&self, qp: QpSlot) -> u32;
}
