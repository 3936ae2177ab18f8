//! The requester's half of a reliable connection: sends in order, waits for acknowledgements,
//! retries, gives up.

use verbs::{Lid, Psn, QpState, Qpn, Status};

use crate::check::Phase;
use crate::memory::Right;
use crate::network::{Body, Nak, Packet, WireOp};
use crate::qp::{Op, Source, Wqe};
use crate::rng::digest;
use crate::sabotage::Sabotage;
use crate::world::{Event, NodeIndex, World};

/// Messages under way on one connection.
const WINDOW: usize = 16;

impl World {
    /// Gathers the bytes of a request.
    pub(crate) fn gather(
        &mut self,
        node: NodeIndex,
        qpn: Qpn,
        source: &Source,
    ) -> Result<Vec<u8>, Status> {
        let Some(qp) = self.nodes[node].qps.get(&qpn.0) else {
            return Ok(Vec::new());
        };
        let domain = qp.domain;
        let pieces = match source {
            Source::Inline(bytes) => return Ok(bytes.clone()),
            Source::Gather(pieces) => pieces,
        };
        let mut data = Vec::new();
        for piece in pieces {
            let key = (domain, piece.lkey.0);
            let found = self.nodes[node].memory.device(
                key,
                piece.addr,
                piece.len as usize,
                Right::LocalRead,
            );
            match found {
                Ok(bytes) => data.extend_from_slice(bytes),
                Err(denied) => {
                    self.denied(node, denied);
                    return Err(Status::LocalProtection);
                }
            }
        }
        Ok(data)
    }

    /// Sends what may be sent.
    pub(crate) fn pump(&mut self, node: NodeIndex, qpn: Qpn) {
        loop {
            let Some(qp) = self.nodes[node].qps.get(&qpn.0) else {
                return;
            };
            if qp.state != QpState::ReadyToSend || qp.rnr_waiting || qp.sent >= qp.shown.min(WINDOW)
            {
                return;
            }
            let (Some(path), Some(parameters)) = (qp.path, qp.parameters) else {
                return;
            };
            let wqe = qp.sends[qp.sent].clone();
            let reads = qp.reads_out();
            // Hardware itself waits for READs.
            let read = matches!(wqe.op, Op::Read { .. });
            if (read && reads >= usize::from(parameters.reads_as_requester))
                || (wqe.fence && reads > 0)
            {
                return;
            }
            let late = self.check.phase == Phase::Calm && self.sabotaged(Sabotage::LateError);
            if late || self.rng.chance(self.rates.error_completion) {
                self.stats.count("error completion");
                let status = self.rng.pick(&[
                    Status::LocalQpOperation,
                    Status::RemoteOperation,
                    Status::BadResponse,
                ]);
                return self.fail_request(node, qpn, status);
            }
            let op = match self.wire_op(node, qpn, &wqe) {
                Ok(op) => op,
                Err(status) => return self.fail_request(node, qpn, status),
            };
            let bytes = match &op {
                WireOp::Send { data, .. } | WireOp::Write { data, .. } => data.len(),
                WireOp::Read { .. } => 0,
            };
            let changed = match &op {
                WireOp::Send { data, .. } | WireOp::Write { data, .. } => {
                    digest(data) != wqe.digest
                }
                WireOp::Read { .. } => false,
            };
            let packet = Packet {
                slid: self.nodes[node].lid,
                dlid: path.address.lid(),
                to: path.qpn,
                body: Body::Request {
                    psn: wqe.psn,
                    op,
                    changed,
                },
            };
            self.send_reliable(packet, bytes);
            let qp = self.nodes[node].qps.get_mut(&qpn.0).expect("it was there");
            qp.sent += 1;
            if qp.sent == 1 {
                self.start_ack_timer(node, qpn);
            }
        }
    }

    fn wire_op(&mut self, node: NodeIndex, qpn: Qpn, wqe: &Wqe) -> Result<WireOp, Status> {
        Ok(match wqe.op {
            Op::Send { imm } => WireOp::Send {
                data: self.gather(node, qpn, &wqe.source)?,
                imm,
                solicited: wqe.solicited,
            },
            Op::Write { to, imm } => WireOp::Write {
                to,
                data: self.gather(node, qpn, &wqe.source)?,
                imm,
                solicited: wqe.solicited,
            },
            Op::Read { from } => WireOp::Read {
                from,
                len: wqe.len(),
            },
        })
    }

    fn start_ack_timer(&mut self, node: NodeIndex, qpn: Qpn) {
        let life = self.life(node);
        let stretch = self.rng.between(10, 40);
        let Some(qp) = self.nodes[node].qps.get_mut(&qpn.0) else {
            return;
        };
        qp.timer += 1;
        let timer = qp.timer;
        let Some(parameters) = qp.parameters.filter(|_| qp.sent > 0) else {
            return;
        };
        // 4.096 µs × 2^n, which vendors stretch up to four times (IBA 1.3, section 9.7.6.1.3).
        let span = (4096_u64 << parameters.ack_timeout) * stretch / 10;
        self.after(span, Event::AckTimeout { life, qpn, timer });
    }

    /// Handles an acknowledgement timeout: sends all requests in flight again, or gives up.
    pub(crate) fn ack_timeout(&mut self, node: NodeIndex, qpn: Qpn, timer: u64) {
        let Some(qp) = self.nodes[node].qps.get_mut(&qpn.0) else {
            return;
        };
        if qp.timer != timer || qp.sent == 0 || qp.state != QpState::ReadyToSend {
            return;
        }
        qp.retries += 1;
        if qp.retries > qp.parameters.map_or(0, |parameters| parameters.retry_count) {
            return self.fail_request(node, qpn, Status::RetryExceeded);
        }
        qp.sent = 0;
        self.pump(node, qpn);
    }

    /// Ends the wait for a receiver that was not ready.
    pub(crate) fn rnr_over(&mut self, node: NodeIndex, qpn: Qpn, timer: u64) {
        let Some(qp) = self.nodes[node].qps.get_mut(&qpn.0) else {
            return;
        };
        if qp.timer == timer && qp.rnr_waiting {
            qp.rnr_waiting = false;
            self.pump(node, qpn);
        }
    }

    /// Fails the oldest unfinished request, and with it the queue pair.
    pub(crate) fn fail_request(&mut self, node: NodeIndex, qpn: Qpn, status: Status) {
        let Some(qp) = self.nodes[node].qps.get_mut(&qpn.0) else {
            return;
        };
        // An error of the request that would be sent next still ends those before it as flushed.
        let Some(wqe) = qp.sends.pop_front() else {
            return;
        };
        qp.shown -= 1;
        qp.sent = qp.sent.saturating_sub(1);
        let now = self.now;
        self.trace
            .say(now, format_args!("node {node} {qpn}: {status:?}"));
        self.complete_send(node, qpn, &wqe, status, 0);
        self.fail_pair(node, qpn, false);
    }

    /// Returns whether a packet of queue pair `qpn` at LID `from` belongs to this queue pair's
    /// connection.
    pub(crate) fn connected(&self, node: NodeIndex, (from, qpn): (Lid, Qpn)) -> bool {
        let qp = self.nodes[node].qps.get(&qpn.0);
        qp.and_then(|qp| qp.path)
            .is_some_and(|path| path.address.lid() == from)
    }

    /// Handles an acknowledgement, or the bytes of a READ, which acknowledge as well.
    pub(crate) fn on_ack(
        &mut self,
        node: NodeIndex,
        at: (Lid, Qpn),
        psn: Psn,
        data: Option<Vec<u8>>,
    ) {
        let qpn = at.1;
        if !self.connected(node, at) {
            return;
        }
        let Some(qp) = self.nodes[node].qps.get_mut(&qpn.0) else {
            return;
        };
        let Some(index) = qp.under_way(psn) else {
            return;
        };
        let is_read = |wqe: &Wqe| matches!(wqe.op, Op::Read { .. });
        if is_read(&qp.sends[index]) != data.is_some() {
            return;
        }
        // The bytes of a READ before it may be lost.
        let missing = qp.sends.iter().take(index).position(is_read);
        let finished = missing.unwrap_or(index + 1);
        self.finish(node, qpn, finished, data.filter(|_| missing.is_none()));
        let Some(qp) = self.nodes[node].qps.get_mut(&qpn.0) else {
            return;
        };
        if missing.is_none() || qp.starts_again() || finished > 0 {
            self.start_ack_timer(node, qpn);
            self.pump(node, qpn);
        }
    }

    /// Completes the first requests, of which the last may be a READ with its bytes.
    fn finish(&mut self, node: NodeIndex, qpn: Qpn, count: usize, mut data: Option<Vec<u8>>) {
        for left in (0..count).rev() {
            let Some(qp) = self.nodes[node].qps.get_mut(&qpn.0) else {
                return;
            };
            let Some(wqe) = qp.sends.pop_front() else {
                return;
            };
            qp.shown -= 1;
            qp.sent -= 1;
            (qp.retries, qp.rnr_retries) = (0, 0);
            let mut bytes = 0;
            if left == 0
                && let Some(data) = data.take()
            {
                bytes = wqe.len();
                if self.sabotaged(Sabotage::LateRead) {
                    self.check
                        .late_reads
                        .push((node, qpn, wqe.clone(), data.clone()));
                }
                if let Err(status) = self.scatter(node, qpn, &wqe.source, &data) {
                    self.complete_send(node, qpn, &wqe, status, 0);
                    return self.fail_pair(node, qpn, false);
                }
            }
            self.complete_well(node, qpn, &wqe, bytes);
        }
    }

    /// Puts the bytes of a READ where they belong.
    pub(crate) fn scatter(
        &mut self,
        node: NodeIndex,
        qpn: Qpn,
        into: &Source,
        data: &[u8],
    ) -> Result<(), Status> {
        let Some(qp) = self.nodes[node].qps.get(&qpn.0) else {
            return Ok(());
        };
        let domain = qp.domain;
        let Source::Gather(pieces) = into else {
            return Ok(());
        };
        let mut rest = data;
        for piece in pieces {
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
                    return Err(Status::LocalProtection);
                }
            }
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(Status::LocalLength)
        }
    }

    pub(crate) fn on_nak(&mut self, node: NodeIndex, at: (Lid, Qpn), psn: Psn, why: Nak) {
        let qpn = at.1;
        if !self.connected(node, at) {
            return;
        }
        let Some(qp) = self.nodes[node].qps.get_mut(&qpn.0) else {
            return;
        };
        let Some(index) = qp.under_way(psn) else {
            return;
        };
        // Everything before it was carried out, unless the bytes of a READ are missing.
        let read = qp
            .sends
            .iter()
            .take(index)
            .position(|wqe| matches!(wqe.op, Op::Read { .. }));
        self.finish(node, qpn, read.unwrap_or(index), None);
        let life = self.life(node);
        let Some(qp) = self.nodes[node].qps.get_mut(&qpn.0) else {
            return;
        };
        match why {
            _ if read.is_some() => {
                if !qp.starts_again() {
                    return;
                }
            }
            Nak::Sequence => {
                qp.sent = 0;
                return self.ack_restart(node, qpn);
            }
            Nak::NotReady => {
                qp.rnr_retries += 1;
                if qp.rnr_retries > qp.parameters.map_or(0, |parameters| parameters.rnr_retry) {
                    return self.fail_request(node, qpn, Status::RnrRetryExceeded);
                }
                qp.sent = 0;
                qp.rnr_waiting = true;
                qp.timer += 1;
                let timer = qp.timer;
                // Code 12 is 0.64 ms (IBA 1.3, table 45).
                return self.after(640_000, Event::Rnr { life, qpn, timer });
            }
            Nak::Invalid => return self.fail_request(node, qpn, Status::RemoteInvalidRequest),
            Nak::Access => return self.fail_request(node, qpn, Status::RemoteAccess),
        }
        self.pump(node, qpn);
    }

    fn ack_restart(&mut self, node: NodeIndex, qpn: Qpn) {
        self.start_ack_timer(node, qpn);
        self.pump(node, qpn);
    }
}
