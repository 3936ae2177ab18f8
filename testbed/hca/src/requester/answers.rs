//! Requester's handling of the peer's answers: acknowledgements, refusals and responses.

use fabric::{AckCode, NakCode, Operation, Packet, Place};
use hal::Duration;
use mlx4_hw::bits::Low24;
use mlx4_hw::cq::Syndrome;
use mlx4_hw::qp::QpState;

use super::{psn_distance, psn_plus};
use crate::core::{Core, Diagnostics};
use crate::qp::QueuePair;
use crate::wqe::scatter;

/// The delays that a receiver that is not ready asks for, in units of 10 µs (IBA 1.3, table 45).
const RNR_DELAYS: [u32; 32] = [
    65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536,
    2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152,
];
const RNR_FOR_EVER: u8 = 7;

impl QueuePair {
    /// Takes a packet that answers a request.
    pub(crate) fn receive_response(&mut self, core: &mut Core, packet: Packet) {
        let psn = packet.psn.0;
        let newest = psn_plus(self.requester.sent, Low24::MAX);
        let known = psn_distance(psn, newest) <= 0 && psn_distance(psn, self.requester.oldest) >= 0;
        if !matches!(self.state, QpState::RTS | QpState::SQD) {
            return;
        }
        match packet.operation {
            Operation::Ack {
                code: AckCode::Ack, ..
            } if known => self.acknowledge(core, psn),
            Operation::Ack {
                code: AckCode::ReceiverNotReady(timer),
                ..
            } if known => self.not_ready(core, psn, timer),
            Operation::Ack {
                code: AckCode::Nak(code),
                ..
            } if known => self.refused(core, psn, code),
            Operation::ReadResponse { place, .. } if known => {
                self.read_response(core, psn, place, &packet.payload)
            }
            Operation::AtomicResponse { original, .. } if known => {
                // In the host's order, in which the responder's memory has it too: programs compare
                // what they get with plain integers (qperf `src/rdma.c`,
                // `ib_client_verify_atomic`), and INIT_HCA tells the order (Linux
                // `drivers/net/ethernet/mellanox/mlx4/fw.c`, "Check endianness").
                self.read_response(core, psn, Place::Only, &original.to_le_bytes());
            }
            _ => {}
        }
        self.pump_or_queue(core);
    }

    /// Goes on sending where it left off.
    pub(super) fn pump_or_queue(&mut self, core: &mut Core) {
        if self.pump(core, 16) {
            core.ready.push_back(self.qpn);
        }
    }

    /// Completes the packets up to `psn` as acknowledged, up to the first missing response.
    ///
    /// A response that is missing keeps what is behind it from completing, though the peer has
    /// carried it out: an ACK beyond a READ says that its responses were lost (Linux `rxe_comp.c`,
    /// `check_psn`: `COMPST_ERROR_RETRY`).
    fn acknowledge(&mut self, core: &mut Core, psn: u32) {
        let reached = psn_plus(psn, 1);
        if psn_distance(reached, self.requester.oldest) > 0 {
            self.requester.progress();
        }
        let missing = self
            .requester
            .queue
            .iter()
            .take(self.requester.cursor.0 + 1)
            .find(|pending| pending.wants_response() && pending.received < pending.packets);
        let gap = missing.map(|pending| psn_plus(pending.first_psn, pending.received));
        match gap {
            Some(gap) if psn_distance(gap, reached) < 0 => {
                self.requester.advance(gap);
                self.complete_front(core);
                self.resend_from_gap(core, gap);
            }
            _ => {
                self.requester.advance(reached);
                self.complete_front(core);
            }
        }
        self.restart_timeout(core.now);
    }

    /// Requests a missing response again, once for each gap.
    fn resend_from_gap(&mut self, core: &mut Core, psn: u32) {
        if self.requester.gap != Some(psn) {
            core.counters.retransmitted += 1;
            self.requester.seek(psn);
            self.requester.gap = Some(psn);
        }
    }

    fn read_response(&mut self, core: &mut Core, psn: u32, place: Place, bytes: &[u8]) {
        let wanted = self
            .requester
            .queue
            .iter()
            .position(|pending| pending.wants_response() && pending.received < pending.packets);
        let Some(index) = wanted else { return };
        let mtu = self.mtu();
        let pending = &self.requester.queue[index];
        let expected = psn_plus(pending.first_psn, pending.received);
        match psn_distance(psn, expected) {
            0 => {}
            ahead if ahead > 0 => return self.resend_from_gap(core, expected),
            _ => return,
        }
        let offset = pending.received * mtu;
        let last = pending.received + 1 == pending.packets;
        let len = mtu.min(pending.work.len - offset) as usize;
        if bytes.len() != len || place.is_last() != last {
            return self.fail_at(core, index, Syndrome::BAD_RESP_ERR);
        }
        if let Err(error) = scatter(
            &core.memory,
            self.accessor(),
            &pending.work.pieces,
            offset,
            bytes,
        ) {
            log::debug!("QP {:#x}: response: {error}", self.qpn);
            return self.fail_at(core, index, Syndrome::LOCAL_PROT_ERR);
        }
        self.requester.queue[index].received += 1;
        self.requester.advance(psn_plus(psn, 1));
        self.requester.progress();
        self.complete_front(core);
        self.restart_timeout(core.now);
    }

    fn fail_at(&mut self, core: &mut Core, index: usize, syndrome: Syndrome) {
        let pending = &mut self.requester.queue[index];
        pending.failed = Some(syndrome);
        // The response says that everything before it has arrived.
        let reached = psn_plus(pending.first_psn, pending.received);
        self.requester.advance(reached);
        self.complete_front(core);
    }

    /// The peer took everything before `psn` and nothing from it on. It names its delay itself, so
    /// the timeout does not run meanwhile (Linux `rxe_comp.c`, `rxe_completer`,
    /// `COMPST_RNR_RETRY`).
    fn not_ready(&mut self, core: &mut Core, psn: u32, timer: u8) {
        self.reached(core, psn);
        core.diagnostics.count(Diagnostics::NOT_READY_RECEIVED);
        if self.requester.parameters.rnr_retry() != RNR_FOR_EVER {
            if self.requester.rnr_retries == 0 {
                return self.fail_oldest(core, Syndrome::RNR_RETRY_EXC_ERR);
            }
            self.requester.rnr_retries -= 1;
        }
        let delay = RNR_DELAYS[usize::from(timer) % RNR_DELAYS.len()];
        self.requester.resume_at = Some(core.now + Duration::from_micros(10) * delay);
        self.requester.deadline = None;
        core.counters.retransmitted += 1;
        self.requester.seek(psn);
    }

    fn refused(&mut self, core: &mut Core, psn: u32, code: NakCode) {
        self.reached(core, psn);
        let syndrome = match code {
            NakCode::Sequence => {
                core.diagnostics.count(Diagnostics::GAP_TOLD);
                if self.requester.retries == 0 {
                    return self.fail_oldest(core, Syndrome::TRANSPORT_RETRY_EXC_ERR);
                }
                self.requester.retries -= 1;
                core.counters.retransmitted += 1;
                self.requester.seek(psn);
                return self.restart_timeout(core.now);
            }
            NakCode::InvalidRequest => Syndrome::REMOTE_INVAL_REQ_ERR,
            NakCode::RemoteAccess => Syndrome::REMOTE_ACCESS_ERR,
            NakCode::RemoteOperation => Syndrome::REMOTE_OP_ERR,
        };
        // A response before the refused packet may still be missing: then this is asked for first.
        let front = self.requester.queue.front();
        if front.is_some_and(|front| psn_distance(psn, front.end_psn()) < 0) {
            self.fail_oldest(core, syndrome);
        }
    }

    /// Acknowledges all packets before `psn`: a refusal of `psn` means that they arrived.
    ///
    /// "A NAK implicitly acks all packets with PSNs before" (Linux `rxe_comp.c`, `check_ack`).
    fn reached(&mut self, core: &mut Core, psn: u32) {
        if psn_distance(psn, self.requester.oldest) > 0 {
            self.acknowledge(core, psn_plus(psn, Low24::MAX));
        }
    }
}
