//! The responder's half of a reliable connection: carries each request out once, in order.

use verbs::{Completion, CompletionKind, Lid, Psn, QpState, Qpn, Status};

use crate::memory::{Denied, Right};
use crate::network::{Body, Nak, Packet, WireOp};
use crate::qp::{Receive, ahead};
use crate::rule::Rule;
use crate::sabotage::Sabotage;
use crate::world::{NodeIndex, World};

/// Time after its failure in which a queue pair may still carry out packets that have arrived.
const LATE: u64 = 3_000_000;

impl World {
    pub(crate) fn on_request(
        &mut self,
        node: NodeIndex,
        at: (Lid, Qpn),
        psn: Psn,
        op: WireOp,
        changed: bool,
    ) {
        let qpn = at.1;
        if !self.connected(node, at) {
            return;
        }
        let Some(qp) = self.nodes[node].qps.get(&qpn.0) else {
            return;
        };
        if !matches!(qp.state, QpState::ReadyToReceive | QpState::ReadyToSend) {
            // What was in the pipeline when it failed may still be carried out.
            let begun =
                qp.state == QpState::Error && self.now - qp.failed_at < LATE && psn == qp.expected;
            if let WireOp::Write { to, data, .. } = op
                && begun
                && self.rng.chance(500_000)
                && self.write(node, qpn, (to.rkey.0, to.addr), &data)
            {
                self.stats.count("WRITE carried out after ERR");
                self.advance(node, qpn);
            }
            return;
        }
        let (distance, expected) = (ahead(psn, qp.expected), qp.expected);
        if distance > 0 {
            return self.answer(
                node,
                qpn,
                Body::Nak {
                    psn: expected,
                    why: Nak::Sequence,
                },
            );
        }
        if distance < 0 {
            // It was carried out before; a READ's bytes are fetched again. If their owner has them
            // back, then the requester has them too: only a network that puts packets out of order,
            // as this one does, brings such a repetition so late.
            return match op {
                WireOp::Read { from, len } => {
                    if let Ok(Some(data)) = self.look(node, qpn, from.rkey.0, from.addr, len) {
                        self.answer(node, qpn, Body::Data { psn, data });
                    }
                }
                _ => self.answer(node, qpn, Body::Ack { psn }),
            };
        }
        if changed {
            self.violate(
                Rule::SendBuffer,
                format_args!(
                    "node {node} {qpn}: the bytes of {psn} changed between post and departure"
                ),
            );
        }
        self.execute(node, qpn, psn, op);
    }

    fn execute(&mut self, node: NodeIndex, qpn: Qpn, psn: Psn, op: WireOp) {
        match op {
            WireOp::Send {
                data,
                imm,
                solicited,
            } => {
                let Some(receive) = self.take_receive(node, qpn, psn) else {
                    return;
                };
                if !self.land(node, qpn, &receive, &data) {
                    self.received(
                        node,
                        qpn,
                        &receive,
                        (Status::LocalLength, CompletionKind::Receive),
                        0,
                        None,
                        false,
                    );
                    return self.refuse(node, qpn, psn, Nak::Invalid);
                }
                let kind = (Status::Success, CompletionKind::Receive);
                self.received(node, qpn, &receive, kind, data.len(), imm, solicited);
                if self.sabotaged(Sabotage::DoubleDelivery) {
                    self.check.late_sends.push((node, qpn, data));
                }
            }
            WireOp::Write {
                to,
                data,
                imm,
                solicited,
            } => {
                if !self.sabotaged(Sabotage::LostWrite)
                    && !self.write(node, qpn, (to.rkey.0, to.addr), &data)
                {
                    return self.refuse(node, qpn, psn, Nak::Access);
                }
                if imm.is_some() {
                    let Some(receive) = self.take_receive(node, qpn, psn) else {
                        return;
                    };
                    let kind = (Status::Success, CompletionKind::ReceiveWrite);
                    self.received(node, qpn, &receive, kind, data.len(), imm, solicited);
                }
            }
            WireOp::Read { from, len } => {
                return match self.fetch(node, qpn, from.rkey.0, from.addr, len) {
                    Some(data) => {
                        self.advance(node, qpn);
                        self.answer(node, qpn, Body::Data { psn, data });
                    }
                    None => self.refuse(node, qpn, psn, Nak::Access),
                };
            }
        }
        self.advance(node, qpn);
        self.answer(node, qpn, Body::Ack { psn });
    }

    fn advance(&mut self, node: NodeIndex, qpn: Qpn) {
        if let Some(qp) = self.nodes[node].qps.get_mut(&qpn.0) {
            qp.expected = qp.expected.advance(1);
        }
    }

    fn answer(&mut self, node: NodeIndex, qpn: Qpn, body: Body) {
        let Some(path) = self.nodes[node].qps.get(&qpn.0).and_then(|qp| qp.path) else {
            return;
        };
        let bytes = match &body {
            Body::Data { data, .. } => data.len(),
            _ => 0,
        };
        let packet = Packet {
            slid: self.nodes[node].lid,
            dlid: path.address.lid(),
            to: path.qpn,
            body,
        };
        self.send_reliable(packet, bytes);
    }

    /// Refuses a request for good: this side's queue pair fails too.
    fn refuse(&mut self, node: NodeIndex, qpn: Qpn, psn: Psn, why: Nak) {
        let now = self.now;
        self.trace.say(
            now,
            format_args!("node {node} {qpn} refuses {psn}: {why:?}"),
        );
        self.answer(node, qpn, Body::Nak { psn, why });
        self.fail_pair(node, qpn, true);
    }

    fn take_receive(&mut self, node: NodeIndex, qpn: Qpn, psn: Psn) -> Option<Receive> {
        if self.rng.chance(self.rates.not_ready) {
            self.stats.count("receiver not ready");
            self.answer(
                node,
                qpn,
                Body::Nak {
                    psn,
                    why: Nak::NotReady,
                },
            );
            return None;
        }
        let kept = self.sabotaged(Sabotage::KeptReceive);
        let receives = &mut self.nodes[node].qps.get_mut(&qpn.0)?.receives;
        let receive = if kept {
            receives.front().cloned()
        } else {
            receives.pop_front()
        };
        if receive.is_none() {
            if !self.is_with_rogue(node, qpn) {
                self.violate(
                    Rule::ReceiveQueueDry,
                    format_args!("node {node} {qpn}: a message found no receive posted"),
                );
            }
            self.answer(
                node,
                qpn,
                Body::Nak {
                    psn,
                    why: Nak::NotReady,
                },
            );
        }
        receive
    }

    /// Delivers a message again that was delivered before: a deliberate bug.
    pub(crate) fn deliver_again(&mut self, node: NodeIndex, qpn: Qpn, data: &[u8]) {
        let receives = self.nodes[node]
            .qps
            .get_mut(&qpn.0)
            .map(|qp| &mut qp.receives);
        let Some(receive) = receives.and_then(std::collections::VecDeque::pop_front) else {
            return;
        };
        self.land(node, qpn, &receive, data);
        let kind = (Status::Success, CompletionKind::Receive);
        self.received(node, qpn, &receive, kind, data.len(), None, true);
    }

    /// Puts a message into a receive; false if it does not fit.
    pub(crate) fn land(
        &mut self,
        node: NodeIndex,
        qpn: Qpn,
        receive: &Receive,
        data: &[u8],
    ) -> bool {
        let Some(qp) = self.nodes[node].qps.get(&qpn.0) else {
            return false;
        };
        let domain = qp.domain;
        let mut rest = data;
        for piece in &receive.into {
            let (now, later) = rest.split_at(rest.len().min(piece.len as usize));
            rest = later;
            let key = (domain, piece.lkey.0);
            match self.nodes[node]
                .memory
                .device(key, piece.addr, now.len(), Right::LocalWrite)
            {
                Ok(bytes) => bytes.copy_from_slice(now),
                Err(denied) => {
                    self.denied(node, denied);
                    return false;
                }
            }
        }
        rest.is_empty()
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one completion")]
    fn received(
        &mut self,
        node: NodeIndex,
        qpn: Qpn,
        receive: &Receive,
        (status, kind): (Status, CompletionKind),
        bytes: usize,
        imm: Option<u32>,
        solicited: bool,
    ) {
        let Some(qp) = self.nodes[node].qps.get(&qpn.0) else {
            return;
        };
        let (qp, cqn) = (qp.slot, qp.cqn);
        let completion = Completion {
            id: receive.id,
            qp,
            status,
            kind,
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            imm,
            source: None,
        };
        self.push(node, cqn, completion, solicited, None);
    }

    fn write(&mut self, node: NodeIndex, qpn: Qpn, (rkey, addr): (u32, u64), data: &[u8]) -> bool {
        let Some(qp) = self.nodes[node].qps.get(&qpn.0) else {
            return false;
        };
        let domain = qp.domain;
        if !qp.remote_access.remote_write {
            return false;
        }
        match self.nodes[node]
            .memory
            .device((domain, rkey), addr, data.len(), Right::RemoteWrite)
        {
            Ok(bytes) => bytes.copy_from_slice(data),
            Err(denied) => {
                self.denied_to(node, qpn, denied);
                return false;
            }
        }
        true
    }

    fn fetch(
        &mut self,
        node: NodeIndex,
        qpn: Qpn,
        rkey: u32,
        addr: u64,
        len: u32,
    ) -> Option<Vec<u8>> {
        match self.look(node, qpn, rkey, addr, len) {
            Ok(data) => data,
            Err(denied) => {
                self.denied_to(node, qpn, denied);
                None
            }
        }
    }

    /// Returns the bytes of a READ; `None` if the queue pair answers none.
    fn look(
        &mut self,
        node: NodeIndex,
        qpn: Qpn,
        rkey: u32,
        addr: u64,
        len: u32,
    ) -> Result<Option<Vec<u8>>, Denied> {
        let qp = self.nodes[node].qps.get(&qpn.0);
        let Some(qp) = qp.filter(|qp| qp.remote_access.remote_read) else {
            return Ok(None);
        };
        let key = (qp.domain, rkey);
        let memory = &mut self.nodes[node].memory;
        let bytes = memory.device(key, addr, len as usize, Right::RemoteRead)?;
        Ok(Some(bytes.to_vec()))
    }
}
