//! The data path: a completion queue and the queue pairs that complete into it.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hal::{Platform, Registers, fence};
use mlx4_hw::cq::{CQE_OPCODE_ERROR, Cqe, ReceiveOpcode, Syndrome};
use mlx4_hw::regs::{self, SendDoorbell};
use mlx4_hw::wqe::{RemoteAddressSegment, WqeOpcode};
use verbs::{
    Completion, CompletionKind, Cqn, DatagramSource, Lid, Misuse, PKey, Payload, QpSlot, Qpn,
    QueueSet, Resource, SendOp, SendRequest, Sge, Status,
};

use crate::completion::CompletionQueue;
use crate::hca::{Hca, UAR_PAGE};
use crate::work_queue::{self, Geometry, ReceiveQueue, SendQueue};

/// Transport of a queue pair, as posts see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Connected,
    Datagram,
    /// QP0 or QP1: the driver's own.
    Special,
}

/// A queue pair as its user's core sees it.
pub(crate) struct QueuePair<P: Platform> {
    pub(crate) qpn: u32,
    pub(crate) transport: Transport,
    pub(crate) port: u8,
    pub(crate) pd: u32,
    pub(crate) send: SendQueue<P::Buffer>,
    pub(crate) receive: ReceiveQueue<P::Buffer>,
}

impl<P: Platform> QueuePair<P> {
    pub(crate) fn new(
        qpn: u32,
        transport: Transport,
        port: u8,
        pd: u32,
        memory: &Arc<P::Buffer>,
        geometry: Geometry,
    ) -> Self {
        Self {
            qpn,
            transport,
            port,
            pd,
            send: SendQueue::new(Arc::clone(memory), geometry),
            receive: ReceiveQueue::new(Arc::clone(memory), geometry),
        }
    }

    /// Returns whether the send queue takes a descriptor of so many bytes now.
    fn check_room(&self, qp: QpSlot, needed: usize) -> Result<(), verbs::Error> {
        if self.send.room() == 0 {
            let depth = self.send.depth();
            return Err(verbs::Error::QueueFull { qp, depth });
        }
        let have = self.send.stride();
        if needed > have {
            return Err(too_large(qp, needed, have));
        }
        Ok(())
    }
}

fn too_large(qp: QpSlot, needed: usize, have: usize) -> verbs::Error {
    let bytes = |len| u32::try_from(len).unwrap_or(u32::MAX);
    verbs::Error::TooLarge {
        qp,
        needed: bytes(needed),
        have: bytes(have),
    }
}

/// One completion queue and the queue pairs that complete into it.
///
/// Dropping it leaves the card's side in place (the card may still write there) until the device is
/// stopped; [`Device::destroy_queues`](verbs::Device::destroy_queues) takes it away in order.
pub struct Queues<P: Platform> {
    pub(crate) hca: Arc<Hca<P>>,
    pub(crate) cq: CompletionQueue<P>,
    pairs: Vec<Option<QueuePair<P>>>,
    /// Slots by QPN, sorted.
    slots: Vec<(u32, u16)>,
    /// The error that the last poll met behind the completions that it returned.
    pending: Option<verbs::Error>,
}

impl<P: Platform> Queues<P> {
    pub(crate) fn new(hca: Arc<Hca<P>>, cq: CompletionQueue<P>) -> Self {
        Self {
            hca,
            cq,
            pairs: Vec::new(),
            slots: Vec::new(),
            pending: None,
        }
    }

    /// The completion queue's number, as [`DeviceEvent::CqFailed`](verbs::DeviceEvent::CqFailed)
    /// names it.
    #[must_use]
    pub fn cqn(&self) -> Cqn {
        Cqn(self.cq.cqn)
    }

    /// The number of the queue pair in `slot`.
    #[must_use]
    pub fn qpn(&self, slot: QpSlot) -> Option<Qpn> {
        self.pair(slot).map(|pair| Qpn(pair.qpn))
    }

    /// The queue pairs there are.
    pub(crate) fn slots(&self) -> Vec<QpSlot> {
        self.slots.iter().map(|&(_, slot)| QpSlot(slot)).collect()
    }

    fn pair(&self, slot: QpSlot) -> Option<&QueuePair<P>> {
        self.pairs.get(usize::from(slot.0))?.as_ref()
    }

    pub(crate) fn pair_mut(&mut self, slot: QpSlot) -> Option<&mut QueuePair<P>> {
        self.pairs.get_mut(usize::from(slot.0))?.as_mut()
    }

    /// Takes a new queue pair in.
    pub(crate) fn insert(&mut self, pair: QueuePair<P>) -> Result<QpSlot, crate::Error> {
        let free = self.pairs.iter().position(Option::is_none);
        let index = free.unwrap_or(self.pairs.len());
        let slot = u16::try_from(index).map_err(|_| crate::Error::Exhausted {
            resource: Resource::Slot,
            limit: u16::MAX.into(),
        })?;
        let at = self.slots.partition_point(|&(qpn, _)| qpn < pair.qpn);
        self.slots.insert(at, (pair.qpn, slot));
        if free.is_none() {
            self.pairs.push(None);
        }
        self.pairs[index] = Some(pair);
        Ok(QpSlot(slot))
    }

    /// Takes a queue pair out whose card side is gone, with what it had completed.
    pub(crate) fn remove(&mut self, slot: QpSlot) {
        if let Some(pair) = self
            .pairs
            .get_mut(usize::from(slot.0))
            .and_then(Option::take)
        {
            self.slots.retain(|&(qpn, _)| qpn != pair.qpn);
            self.cq.forget(pair.qpn);
        }
    }

    /// Decodes a completion entry; everything in it is checked.
    fn decode(&mut self, entry: &Cqe) -> Result<Completion, verbs::Error> {
        let qpn = entry.qpn.get();
        let index = entry.wqe_counter.get();
        let inconsistent = verbs::Error::Inconsistent { qpn, index };
        let found = self.slots.binary_search_by_key(&qpn, |&(qpn, _)| qpn);
        let slot = QpSlot(found.map(|at| self.slots[at].1).map_err(|_| inconsistent)?);
        let pair = self.pair_mut(slot).ok_or(inconsistent)?;
        let send = entry.owner.send();
        // A send's completion also ends the unsignalled ones before it: the card executes a send
        // queue in order. Receives end in order too, but one by one.
        let id = if send {
            pair.send.complete(index)
        } else {
            pair.receive.complete()
        };
        let datagram = pair.transport != Transport::Connected;
        let mut completion = Completion {
            id: id.ok_or(inconsistent)?,
            qp: slot,
            status: Status::Success,
            kind: if send {
                CompletionKind::Send
            } else {
                CompletionKind::Receive
            },
            bytes: 0,
            imm: None,
            source: None,
        };
        let opcode = entry.owner.opcode();
        // An error entry has another shape (Linux `mlx4/cq.h`, `struct mlx4_err_cqe`): only the
        // QPN, counter, syndrome and owner mean something.
        if opcode == CQE_OPCODE_ERROR {
            completion.status = status(entry.syndrome);
            return Ok(completion);
        }
        if send {
            if WqeOpcode(opcode) == WqeOpcode::RDMA_READ {
                completion.bytes = entry.byte_count.get();
            }
            return Ok(completion);
        }
        completion.bytes = entry.byte_count.get();
        match opcode {
            ReceiveOpcode::WRITE_IMM => completion.kind = CompletionKind::ReceiveWrite,
            ReceiveOpcode::SEND | ReceiveOpcode::SEND_IMM => {}
            other => completion.status = Status::Other(other),
        }
        if opcode != ReceiveOpcode::SEND {
            completion.imm = Some(entry.immediate_or_pkey.get());
        }
        if datagram {
            completion.source = Some(source(entry));
        }
        Ok(completion)
    }
}

fn source(entry: &Cqe) -> DatagramSource {
    DatagramSource {
        address: Lid(entry.slid.get()).into(),
        qpn: Qpn(entry.remote.qpn()),
        sl: entry.sl.get(),
        grh: entry.remote.grh(),
        // The card names an index of the partition table; the driver knows of the default partition
        // only.
        pkey: PKey::DEFAULT,
    }
}

pub(crate) fn status(syndrome: Syndrome) -> Status {
    match syndrome {
        Syndrome::LOCAL_LENGTH_ERR => Status::LocalLength,
        Syndrome::LOCAL_QP_OP_ERR => Status::LocalQpOperation,
        Syndrome::LOCAL_PROT_ERR => Status::LocalProtection,
        Syndrome::WR_FLUSH_ERR => Status::Flushed,
        Syndrome::MW_BIND_ERR => Status::MemoryWindowBind,
        Syndrome::BAD_RESP_ERR => Status::BadResponse,
        Syndrome::LOCAL_ACCESS_ERR => Status::LocalAccess,
        Syndrome::REMOTE_INVAL_REQ_ERR => Status::RemoteInvalidRequest,
        Syndrome::REMOTE_ACCESS_ERR => Status::RemoteAccess,
        Syndrome::REMOTE_OP_ERR => Status::RemoteOperation,
        Syndrome::TRANSPORT_RETRY_EXC_ERR => Status::RetryExceeded,
        Syndrome::RNR_RETRY_EXC_ERR => Status::RnrRetryExceeded,
        Syndrome::REMOTE_ABORTED_ERR => Status::RemoteAborted,
        Syndrome(other) => Status::Other(other),
    }
}

/// Returns whether the kind of queue pair takes such a request at all.
fn check_kind(
    qp: QpSlot,
    transport: Transport,
    request: &SendRequest<'_>,
) -> Result<(), verbs::Error> {
    let not_possible = |misuse| Err(verbs::Error::NotPossible { qp, misuse });
    match (transport, request.op, request.to) {
        (Transport::Special, ..) => not_possible(Misuse::Management),
        (Transport::Connected, _, Some(_)) => not_possible(Misuse::DatagramOnConnection),
        (Transport::Datagram, SendOp::Send { .. }, None) => not_possible(Misuse::NoDestination),
        (Transport::Datagram, SendOp::Write { .. } | SendOp::Read { .. }, _) => {
            not_possible(Misuse::RdmaByDatagram)
        }
        (_, SendOp::Read { .. }, _) if matches!(request.payload, Payload::Inline(..)) => {
            not_possible(Misuse::InlineRead)
        }
        _ => Ok(()),
    }
}

impl<P: Platform> QueueSet for Queues<P> {
    fn post_send(&mut self, qp: QpSlot, request: &SendRequest<'_>) -> Result<(), verbs::Error> {
        let pair = self.pair_mut(qp).ok_or(verbs::Error::NotReady { qp })?;
        check_kind(qp, pair.transport, request)?;
        pair.check_room(qp, work_queue::needed_len(request))?;
        let (port, pd) = (pair.port, pair.pd);
        let mut descriptor = pair.send.begin();
        if let Some(to) = &request.to {
            descriptor.put(&work_queue::datagram(to, port, pd));
        }
        match request.op {
            SendOp::Write { to, .. } | SendOp::Read { from: to } => {
                descriptor.put(&RemoteAddressSegment::new(to.addr, to.rkey.0));
            }
            SendOp::Send { .. } => {}
        }
        match request.payload {
            Payload::Gather(pieces) => descriptor.put_pieces(pieces),
            Payload::Inline(first, second) => descriptor.put_inline([first, second]),
        }
        let len = descriptor.seal();
        let (opcode, imm) = work_queue::opcode(request.op);
        let control = work_queue::control(request, imm);
        pair.send.finish(request.id, opcode, len, control);
        Ok(())
    }

    fn send_inline(
        &mut self,
        qp: QpSlot,
        id: u64,
        signalled: bool,
        head: &[u8],
        rest: &[u8],
    ) -> Result<(), verbs::Error> {
        let pair = self.pair_mut(qp).ok_or(verbs::Error::NotReady { qp })?;
        if pair.transport != Transport::Connected {
            let misuse = match pair.transport {
                Transport::Special => Misuse::Management,
                _ => Misuse::NoDestination,
            };
            return Err(verbs::Error::NotPossible { qp, misuse });
        }
        pair.check_room(qp, work_queue::inline_send_len(head.len() + rest.len()))?;
        let mut descriptor = pair.send.begin();
        descriptor.put_inline([head, rest]);
        let len = descriptor.seal();
        let control = work_queue::send_control(signalled);
        pair.send.finish(id, WqeOpcode::SEND, len, control);
        Ok(())
    }

    fn post_receive(&mut self, qp: QpSlot, id: u64, into: &[Sge]) -> Result<(), verbs::Error> {
        let pair = self.pair_mut(qp).ok_or(verbs::Error::NotReady { qp })?;
        let queue = &mut pair.receive;
        if queue.is_full() {
            return Err(verbs::Error::QueueFull {
                qp,
                depth: queue.depth(),
            });
        }
        let piece_len = mlx4_hw::wqe::SEGMENT_UNIT;
        if into.len() > queue.max_pieces() {
            let needed = into.len().saturating_mul(piece_len);
            return Err(too_large(qp, needed, queue.max_pieces() * piece_len));
        }
        queue.post(id, into);
        Ok(())
    }

    fn ring(&mut self, qp: QpSlot) {
        let Some(pair) = self.pair(qp) else { return };
        let doorbell = SendDoorbell::new().with_qpn(pair.qpn);
        // WQEs before the doorbell (Linux `hw/mlx4/qp.c`, `mlx4_ib_post_send`).
        fence::publish();
        // The doorbell names the queue pair only: the card fetches for as long as owner bits are
        // right. So one does for all that was posted, and one too many does no harm.
        self.hca.uar.write_u32(
            UAR_PAGE as usize * regs::UAR_PAGE_LEN + regs::SEND_DOORBELL,
            regs::swap(doorbell.into()),
        );
    }

    fn poll(&mut self, into: &mut [Completion]) -> Result<usize, verbs::Error> {
        if self.cq.state.failed.load(Ordering::Acquire) {
            return Err(verbs::Error::CqFailed);
        }
        if let Some(error) = self.pending.take() {
            return Err(error);
        }
        let mut count = 0;
        for place in into.iter_mut() {
            let Some(entry) = self.cq.next() else { break };
            match self.decode(&entry) {
                Ok(completion) => *place = completion,
                // What was taken before is handed out first.
                Err(error) => {
                    log::error!("{error}");
                    self.pending = Some(error);
                    break;
                }
            }
            count += 1;
        }
        // Once for all that was taken (Linux `hw/mlx4/cq.c`, `mlx4_ib_poll_cq`, does the same). It
        // lets the card write over the entries, whose copies are complete: x86 shows no store
        // before the loads ahead of it (Intel SDM volume 3A, "Memory Ordering in P6 and More Recent
        // Processor Families").
        self.cq.publish_consumer();
        match self.pending.take_if(|_| count == 0) {
            Some(error) => Err(error),
            None => Ok(count),
        }
    }

    fn arm(&mut self, solicited_only: bool) {
        self.cq.arm(solicited_only);
    }

    fn forget(&mut self, qp: QpSlot) {
        let Some(pair) = self.pair_mut(qp) else {
            return;
        };
        // The card reads neither ring before the queue pair leaves RESET, so there is nothing to
        // order here: RST2INIT_QP comes with the command register's own fence.
        pair.send.clear();
        pair.receive.clear();
        let qpn = pair.qpn;
        self.cq.forget(qpn);
    }
}
