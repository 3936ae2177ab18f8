//! The data path: post and poll.

use crate::{Completion, Error, Payload, QpSlot, SendOp, SendRequest, Sge};

/// One completion queue and the queue pairs that complete into it: the property of one core.
pub trait QueueSet: Send {
    /// Puts a send request into the queue. The device sees it at the next [`ring`](Self::ring).
    ///
    /// # Errors
    ///
    /// See [`Error`]; nothing was posted then.
    fn post_send(&mut self, qp: QpSlot, request: &SendRequest<'_>) -> Result<(), Error>;

    /// Posts as [`post_send`](Self::post_send) does, the request that is made most often: a
    /// solicited SEND on a connection of the bytes of `head` and `rest`, [inline](Payload::Inline).
    ///
    /// # Errors
    ///
    /// See [`Error`]; nothing was posted then.
    #[inline]
    fn send_inline(
        &mut self,
        qp: QpSlot,
        id: u64,
        signalled: bool,
        head: &[u8],
        rest: &[u8],
    ) -> Result<(), Error> {
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
    /// See [`Error`]; nothing was posted then.
    fn post_receive(&mut self, qp: QpSlot, id: u64, into: &[Sge]) -> Result<(), Error>;

    /// Shows the device every send posted so far on this queue pair, by one doorbell.
    fn ring(&mut self, qp: QpSlot);

    /// Takes finished requests, oldest first, into `into`; returns how many. Zero means none is
    /// ready.
    ///
    /// # Errors
    ///
    /// See [`Error`]. A bad entry is consumed, so that polling goes on behind it.
    fn poll(&mut self, into: &mut [Completion]) -> Result<usize, Error>;

    /// Asks for an interrupt at the next completion (or the next solicited one). One that is
    /// already there and was not polled also raises it, so: arm, poll once more, then wait.
    fn arm(&mut self, solicited_only: bool);

    /// Forgets what was posted to a queue pair that was [reset](crate::Device::reset_qp), with the
    /// completions that were not polled yet: both work queues are empty afterwards.
    fn forget(&mut self, qp: QpSlot);
}
