//! Completions: into bounded queues, visible at once or later, with an interrupt if the queue is
//! armed.

use verbs::{Completion, CompletionKind, DeviceEvent, QpState, Qpn, Sge, Status};

use crate::memory::Right;
use crate::qp::{Armed, Entry, Wqe};
use crate::rogue::EXTRA;
use crate::rule::Rule;
use crate::world::{Event, Late, NodeIndex, World};

impl World {
    pub(crate) fn complete_send(
        &mut self,
        node: NodeIndex,
        qpn: Qpn,
        wqe: &Wqe,
        status: Status,
        bytes: u32,
    ) {
        if wqe.id == EXTRA || (status == Status::Success && !wqe.signalled) {
            return;
        }
        let Some(qp) = self.nodes[node].qps.get(&qpn.0) else {
            return;
        };
        let completion = Completion {
            id: wqe.id,
            qp: qp.slot,
            status,
            kind: CompletionKind::Send,
            bytes,
            imm: None,
            source: None,
        };
        let cqn = qp.cqn;
        self.push(node, cqn, completion, false, Some(wqe.index + 1));
    }

    /// Completes a request that was carried out. Now and then the completion never comes, or comes
    /// twice.
    pub(crate) fn complete_well(&mut self, node: NodeIndex, qpn: Qpn, wqe: &Wqe, bytes: u32) {
        if wqe.signalled && self.rng.chance(self.rates.completion_lost) {
            return self.stats.count("completion lost");
        }
        self.complete_send(node, qpn, wqe, Status::Success, bytes);
        if wqe.signalled && self.rng.chance(self.rates.completion_duplicate) {
            self.stats.count("completion duplicated");
            self.complete_send(node, qpn, wqe, Status::Success, bytes);
        }
    }

    /// Puts a completion into its queue.
    pub(crate) fn push(
        &mut self,
        node: NodeIndex,
        cqn: u32,
        completion: Completion,
        solicited: bool,
        frees: Option<u64>,
    ) {
        let mut delay = self.rng.between(50, 300);
        if self.rng.chance(self.rates.completion_late) {
            self.stats.count("completion late");
            delay += self.rng.between(10_000, 20_000_000);
        }
        let (life, now) = (self.life(node), self.now);
        let Some(cq) = self.nodes[node].cqs.get_mut(cqn as usize) else {
            return;
        };
        if cq.entries.len() >= cq.depth as usize {
            let depth = cq.depth;
            cq.failed = true;
            return self.violate(
                Rule::CompletionQueue,
                format_args!("node {node}: completion queue {cqn} of {depth} entries overruns"),
            );
        }
        cq.last_ready = cq.last_ready.max(now + delay);
        let ready = cq.last_ready;
        cq.entries.push_back(Entry {
            ready,
            completion,
            solicited,
            frees,
        });
        self.schedule(ready, Event::Completion { life, cqn });
        let code = [node as u64, completion.id, u64::from(completion.qp.0)];
        self.trace.event(now, 3, code);
        if completion.status != Status::Success {
            self.trace.whisper(
                now,
                format_args!(
                    "node {node}: {} {:?} {:?}",
                    completion.qp, completion.kind, completion.status
                ),
            );
        }
    }

    /// Makes a completion visible: raises the interrupt if the queue is armed.
    pub(crate) fn completion_visible(&mut self, node: NodeIndex, cqn: u32) {
        let now = self.now;
        let Some(cq) = self.nodes[node].cqs.get_mut(cqn as usize) else {
            return;
        };
        let due = cq.entries.iter().take_while(|entry| entry.ready <= now);
        let fires = match cq.armed {
            Armed::No => false,
            Armed::Any => due.count() > 0,
            Armed::Solicited => due
                .into_iter()
                .any(|entry| entry.solicited || entry.completion.status != Status::Success),
        };
        if !fires {
            return;
        }
        cq.armed = Armed::No;
        let vector = cq.vector;
        if self.rng.chance(self.rates.interrupt_lost) {
            self.stats.count("interrupt lost");
            return;
        }
        let mut delay = self.rng.between(300, 3000);
        if self.rng.chance(self.rates.interrupt_late) {
            self.stats.count("interrupt late");
            delay += self.rng.between(10_000, 50_000_000);
        }
        let life = self.life(node);
        self.after(delay, Event::Interrupt { life, vector });
    }

    pub(crate) fn interrupt(&mut self, node: NodeIndex, vector: u16) {
        let Some(vector) = self.nodes[node].vectors.get_mut(usize::from(vector)) else {
            return;
        };
        vector.pending = true;
        if let Some(waiter) = vector.waiter.take() {
            waiter.wake();
        }
    }

    /// Moves a queue pair to the error state, where everything is flushed.
    pub(crate) fn fail_pair(&mut self, node: NodeIndex, qpn: Qpn, tell: bool) {
        let now = self.now;
        let Some(qp) = self.nodes[node].qps.get_mut(&qpn.0) else {
            return;
        };
        if matches!(qp.state, QpState::Error | QpState::Reset) {
            return;
        }
        qp.state = QpState::Error;
        qp.failed_at = now;
        qp.timer += 1;
        qp.rnr_waiting = false;
        let (begun, resets, cqn) = (qp.begun(), qp.resets, qp.cqn);
        if tell {
            self.nodes[node]
                .events
                .push_back(DeviceEvent::QpFailed { qpn });
        }
        if let Some(pieces) = begun {
            // Half of the time nothing is on its way any more.
            if self.rng.chance(500_000) {
                let (life, delay) = (self.life(node), self.rng.between(1000, 5_000_000));
                let late = Late { life, qpn, resets };
                // Its completion, though flushed, and those behind it say that the memory is free:
                // they come later.
                if let Some(cq) = self.nodes[node].cqs.get_mut(cqn as usize) {
                    cq.last_ready = cq.last_ready.max(now + delay);
                }
                self.after(delay, Event::Begun(late, pieces));
            }
        }
        self.flush(node, qpn);
    }

    /// Ends what a queue pair had begun when it failed, unless it was reset meanwhile.
    pub(crate) fn end_begun(&mut self, late: Late, pieces: &[Sge]) {
        let node = late.life.node;
        let qp = self.nodes[node].qps.get(&late.qpn.0);
        let Some(qp) = qp.filter(|qp| qp.resets == late.resets) else {
            return;
        };
        let domain = qp.domain;
        self.stats.count("READ that ended after ERR");
        for piece in pieces {
            let (key, len) = ((domain, piece.lkey.0), piece.len as usize);
            let memory = &mut self.nodes[node].memory;
            match memory.device(key, piece.addr, len, Right::LocalWrite) {
                // Torn: any bytes may be there already.
                Ok(bytes) => bytes.fill(0xdd),
                Err(denied) => self.denied(node, denied),
            }
        }
    }

    /// Completes as flushed whatever was shown to the device.
    pub(crate) fn flush(&mut self, node: NodeIndex, qpn: Qpn) {
        let Some(qp) = self.nodes[node].qps.get_mut(&qpn.0) else {
            return;
        };
        let shown = std::mem::take(&mut qp.shown);
        qp.sent = 0;
        let sends: Vec<Wqe> = qp.sends.drain(..shown).collect();
        let receives = std::mem::take(&mut qp.receives);
        let (slot, cqn) = (qp.slot, qp.cqn);
        for wqe in &sends {
            self.complete_send(node, qpn, wqe, Status::Flushed, 0);
        }
        for receive in receives {
            let completion = Completion {
                id: receive.id,
                qp: slot,
                status: Status::Flushed,
                kind: CompletionKind::Receive,
                ..Completion::EMPTY
            };
            self.push(node, cqn, completion, false, None);
        }
    }
}
