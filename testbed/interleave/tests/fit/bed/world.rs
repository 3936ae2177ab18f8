//! State of both machines, and what the wire between them does with a request.

use std::collections::{BTreeMap, VecDeque};
use std::task::Waker;

use hal::Instant;
use mad::Mad;
use verbs::{Completion, CompletionKind, Lid, QpSlot, SendOp, Sge, Status};

/// Deliberate bug of a device, for a test that must find it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Sabotage {
    #[default]
    None,
    /// Arms only when the waiter has begun to wait: too late for what came after the last look.
    ArmsLate,
    /// Forgets an interrupt that came before anybody waited for it.
    ForgetsInterrupts,
    /// Wakes nobody when a doorbell rings and one was rung before.
    SleepingWire,
}

#[derive(Default)]
pub(super) struct Vector {
    pub(super) fired: bool,
    pub(super) waiter: Option<Waker>,
    /// Queues to be armed when somebody waits, if that is what goes wrong.
    pub(super) arm_late: Option<usize>,
}

#[derive(Default)]
pub(super) struct Cq {
    pub(super) entries: VecDeque<Completion>,
    pub(super) armed: bool,
    pub(super) vector: usize,
    pub(super) slots: Vec<u32>,
}

#[derive(Clone)]
pub(super) struct Work {
    pub(super) id: u64,
    pub(super) op: SendOp,
    pub(super) bytes: Vec<u8>,
    pub(super) pieces: Vec<Sge>,
    pub(super) signalled: bool,
    /// Life of the queue pair that it was posted in.
    pub(super) life: u32,
}

pub(super) struct Qp {
    pub(super) slot: QpSlot,
    pub(super) cq: usize,
    /// The peer's node and queue pair.
    pub(super) to: Option<(usize, u32)>,
    pub(super) failed: bool,
    /// Resets so far.
    pub(super) life: u32,
    pub(super) posted: VecDeque<Work>,
    pub(super) shown: usize,
    pub(super) receives: VecDeque<(u64, Sge)>,
}

#[derive(Default)]
pub(super) struct Node {
    pub(super) mads: VecDeque<(Lid, Mad)>,
    pub(super) cqs: Vec<Cq>,
    pub(super) qps: BTreeMap<u32, Qp>,
    pub(super) vectors: Vec<Vector>,
    pub(super) memory: Vec<u8>,
    pub(super) given: usize,
}

#[derive(Default)]
pub(super) struct World {
    pub(super) nodes: [Node; 2],
    pub(super) sleepers: Vec<(Instant, Waker)>,
    pub(super) now: Instant,
    pub(super) wire: Option<Waker>,
    pub(super) sabotage: Sabotage,
    pub(super) rang: bool,
}

impl World {
    /// Adds a completion; gives who is to be woken.
    pub(super) fn complete(
        &mut self,
        node: usize,
        qpn: u32,
        id: u64,
        kind: CompletionKind,
        status: Status,
        bytes: u32,
    ) -> Option<Waker> {
        let node = &mut self.nodes[node];
        let qp = &node.qps[&qpn];
        let cq = &mut node.cqs[qp.cq];
        cq.entries.push_back(Completion {
            id,
            qp: qp.slot,
            status,
            kind,
            bytes,
            ..Completion::EMPTY
        });
        if std::mem::take(&mut cq.armed) {
            let vector = cq.vector;
            return node.fire(vector);
        }
        None
    }

    pub(super) fn next_work(&mut self) -> Option<(usize, u32, Work)> {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            for (qpn, qp) in &mut node.qps {
                if qp.shown > 0 && !qp.failed && qp.to.is_some() {
                    qp.shown -= 1;
                    return qp.posted.pop_front().map(|work| (index, *qpn, work));
                }
            }
        }
        None
    }

    /// Carries out one request; gives who is to be woken. A queue pair that failed, or that was
    /// reset and is not connected to the sender, does not answer.
    pub(super) fn carry_out(&mut self, node: usize, qpn: u32, work: &Work) -> Vec<Waker> {
        let mut woken = Vec::new();
        // A request of a queue pair that was reset meanwhile comes to nothing.
        let ours = &self.nodes[node].qps[&qpn];
        let Some((to, their_qpn)) = ours.to.filter(|_| ours.life == work.life) else {
            return woken;
        };
        let theirs = &self.nodes[to].qps[&their_qpn];
        if theirs.failed || theirs.to != Some((node, qpn)) {
            woken.extend(self.complete(
                node,
                qpn,
                work.id,
                CompletionKind::Send,
                Status::RetryExceeded,
                0,
            ));
            woken.extend(self.flush(node, qpn));
            return woken;
        }
        let mut bytes = work.bytes.clone();
        for piece in &work.pieces {
            bytes.extend_from_slice(self.nodes[node].at(piece.addr, piece.len));
        }
        let len = u32::try_from(bytes.len()).expect("short");
        match work.op {
            SendOp::Send { .. } => {
                let qp = self.nodes[to]
                    .qps
                    .get_mut(&their_qpn)
                    .expect("a queue pair");
                let (id, into) = qp
                    .receives
                    .pop_front()
                    .expect("an honest peer finds a receive");
                assert!(len <= into.len, "longer than the receive");
                self.nodes[to].at(into.addr, len).copy_from_slice(&bytes);
                woken.extend(self.complete(
                    to,
                    their_qpn,
                    id,
                    CompletionKind::Receive,
                    Status::Success,
                    len,
                ));
            }
            SendOp::Write { to: place, .. } => {
                self.nodes[to].at(place.addr, len).copy_from_slice(&bytes)
            }
            SendOp::Read { from } => {
                let piece = work.pieces[0];
                let bytes = self.nodes[to].at(from.addr, piece.len).to_vec();
                self.nodes[node]
                    .at(piece.addr, piece.len)
                    .copy_from_slice(&bytes);
            }
        }
        if work.signalled {
            woken.extend(self.complete(
                node,
                qpn,
                work.id,
                CompletionKind::Send,
                Status::Success,
                len,
            ));
        }
        woken
    }

    /// Fails a queue pair: everything posted is flushed.
    pub(super) fn flush(&mut self, node: usize, qpn: u32) -> Vec<Waker> {
        let qp = self.nodes[node].qps.get_mut(&qpn).expect("a queue pair");
        qp.failed = true;
        qp.shown = 0;
        let sends: Vec<_> = qp
            .posted
            .drain(..)
            .map(|work| (work.id, CompletionKind::Send))
            .collect();
        let receives: Vec<_> = qp
            .receives
            .drain(..)
            .map(|(id, _)| (id, CompletionKind::Receive))
            .collect();
        sends
            .into_iter()
            .chain(receives)
            .filter_map(|(id, kind)| self.complete(node, qpn, id, kind, Status::Flushed, 0))
            .collect()
    }
}

impl Node {
    pub(super) fn fire(&mut self, vector: usize) -> Option<Waker> {
        let vector = &mut self.vectors[vector];
        vector.fired = true;
        vector.waiter.take()
    }

    pub(super) fn at(&mut self, addr: u64, len: u32) -> &mut [u8] {
        let start = usize::try_from(addr).expect("an address");
        &mut self.memory[start..start + len as usize]
    }
}
