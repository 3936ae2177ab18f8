//! The receiving half of a connection: checks requests, carries them out, and answers.

mod answers;
mod extended;

use std::collections::VecDeque;

use fabric::{AckCode, AtomicOp, NakCode, Operation, Packet, Place, RemoteRange};
use mlx4_hw::bits::Low24;
use mlx4_hw::cq::{Cqe, CqeOwner, ReceiveOpcode, Syndrome};
use mlx4_hw::eq::EventType;
use mlx4_hw::qp::{QpState, Service};
use verbs::{Psn, Rkey};
use zerocopy::FromZeros;
use zerocopy::big_endian::U32;

use crate::core::{Core, Diagnostics};
use crate::fast_register;
use crate::memory::{AccessError, Right};
use crate::qp::QueuePair;
use crate::requester::psn_distance;
use crate::trace::Purpose;
use crate::wqe::{Accessor, LONGEST_MESSAGE, Piece, capacity, receive_pieces, scatter};

pub(crate) use extended::Target;

/// Results of atomics that are kept for peers that ask again.
const KEPT_ATOMICS: usize = 128;

/// A receive that was taken from its queue.
pub(crate) struct Receive {
    pub(crate) counter: u16,
    pub(crate) who: Accessor,
    pub(crate) pieces: Vec<Piece>,
}

/// A message of which not all has arrived.
enum Message {
    Send { receive: Receive, offset: u32 },
    Write { to: RemoteRange, offset: u32 },
}

/// Response that is still to be sent to the peer.
enum Answer {
    Ack {
        psn: u32,
        code: AckCode,
    },
    Read {
        range: RemoteRange,
        /// The protection domain that the range is in.
        pd: u32,
        psn: u32,
        packets: u32,
        sent: u32,
        /// The peer asked before.
        again: bool,
    },
    Atomic {
        psn: u32,
        original: u64,
        again: bool,
    },
}

/// The responder's state.
#[derive(Default)]
pub(crate) struct Responder {
    /// The one packet that is taken next; all others are early or come again.
    pub(crate) expected_psn: u32,
    /// Messages carried out, which each answer tells the peer (Linux `rxe_hdr.h`, `aeth_msn`).
    pub(crate) msn: u32,
    /// Receives taken from the queue pair's own queue.
    pub(crate) taken: u16,
    /// The gap or the missing receive was answered; what comes until the expected packet is not.
    refused: bool,
    message: Option<Message>,
    /// The SRQ of the newest request, if this is an XRC queue pair.
    target: Option<Target>,
    /// Sequence numbers and results, for peers that did not get them.
    atomics: VecDeque<(u32, u64)>,
    /// In the order of the requests, which is the order in which the peer must get them.
    answers: VecDeque<Answer>,
    /// COMMUNICATION_ESTABLISHED was reported: once in a life of the queue pair.
    announced: bool,
}

/// Reason for which a request is refused.
enum Refusal {
    /// The peer is told, and this side fails.
    Nak(NakCode),
    /// The receive ends with an error, the peer is told, and this side fails.
    Receive(u16, Syndrome, NakCode),
    /// The peer is to try again later.
    NotReady,
}

impl QueuePair {
    /// Takes a request of the peer.
    pub(crate) fn receive_request(&mut self, core: &mut Core, packet: Packet) {
        if !self.receives() {
            return;
        }
        // A passive side in RTR learns by this that its peer is ready, even if the CM's last
        // message was lost (Linux `include/rdma/ib_cm.h`, `ib_cm_notify`, `IB_EVENT_COMM_EST`).
        if !self.responder.announced && self.state == QpState::RTR {
            self.responder.announced = true;
            core.events
                .report_number(&core.memory, EventType::COMMUNICATION_ESTABLISHED, self.qpn);
        }
        if self.service() == Service::UC {
            return self.receive_unreliable(core, &packet);
        }
        match psn_distance(packet.psn.0, self.responder.expected_psn) {
            0 => self.receive_expected(core, &packet),
            ahead if ahead > 0 => {
                // One NAK a gap, not one a packet: those on the way behind it would each have the
                // peer go back again (Linux `rxe_resp.c`, `check_psn`, `sent_psn_nak`).
                core.diagnostics.count(Diagnostics::GAP_SEEN);
                if !self.responder.refused {
                    self.responder.refused = true;
                    self.answer(
                        core,
                        Answer::Ack {
                            psn: self.responder.expected_psn,
                            code: AckCode::Nak(NakCode::Sequence),
                        },
                    );
                }
            }
            _ => {
                core.diagnostics.count(Diagnostics::DUPLICATES);
                self.receive_again(core, &packet);
            }
        }
    }

    fn receive_expected(&mut self, core: &mut Core, packet: &Packet) {
        let outcome = self.carry_out(core, packet);
        let psn = packet.psn.0;
        match outcome {
            Ok(()) => {
                self.responder.refused = false;
                if packet.ack_request
                    && !matches!(
                        packet.operation,
                        Operation::ReadRequest(_) | Operation::Atomic { .. }
                    )
                {
                    self.answer(
                        core,
                        Answer::Ack {
                            psn,
                            code: AckCode::Ack,
                        },
                    );
                }
            }
            Err(Refusal::NotReady) => {
                // The expected number stays, so the same packet is taken when it comes again; what
                // is behind it counts as a gap that was answered.
                core.diagnostics.count(Diagnostics::NOT_READY_SENT);
                self.responder.refused = true;
                let timer = self.context.receive_psn.min_rnr_timer();
                self.answer(
                    core,
                    Answer::Ack {
                        psn,
                        code: AckCode::ReceiverNotReady(timer),
                    },
                );
            }
            Err(Refusal::Nak(code)) => self.refuse(core, psn, code),
            Err(Refusal::Receive(counter, syndrome, code)) => {
                // The receive tells software, so no event does (IBA 1.3, 9.9.3: class C, beside
                // classes without a receive).
                self.complete_error(core, false, counter, syndrome);
                // The answer goes out first: failing clears what waits to be sent.
                self.answer_refusal(core, psn, code);
                self.fail(core);
            }
        }
    }

    /// Refuses a request that no receive belongs to: an event tells software.
    fn refuse(&mut self, core: &mut Core, psn: u32, code: NakCode) {
        self.answer_refusal(core, psn, code);
        let event = match code {
            NakCode::InvalidRequest => EventType::WQ_INVALID_REQUEST,
            NakCode::RemoteAccess => EventType::WQ_ACCESS_VIOLATION,
            _ => EventType::WQ_CATASTROPHIC,
        };
        // After the answer, which failing would drop.
        self.fail_by_peer(core, event);
    }

    fn answer_refusal(&mut self, core: &mut Core, psn: u32, code: NakCode) {
        log::debug!("QP {:#x}: refuses packet {psn:#x}: {code:?}", self.qpn);
        self.answer(
            core,
            Answer::Ack {
                psn,
                code: AckCode::Nak(code),
            },
        );
        let mut budget = u32::MAX;
        self.pump_responses(core, &mut budget);
    }

    /// Handles a packet of an unreliable service: a message with a gap is dropped as a whole.
    fn receive_unreliable(&mut self, core: &mut Core, packet: &Packet) {
        let begins = matches!(
            packet.operation,
            Operation::Send { place, .. } | Operation::Write { place, .. } if place.is_first()
        );
        if packet.psn.0 != self.responder.expected_psn
            && let Some(Message::Send { receive, .. }) = self.responder.message.take()
            && !self.context.srq.enable()
        {
            // The receive is not used up: it is put back, as only the newest one can be.
            self.responder.taken = receive.counter;
        }
        let continues = self.responder.message.is_some();
        if begins == continues {
            if begins {
                self.responder.message = None;
            } else {
                self.responder.expected_psn = packet.psn.advance(1).0;
                return;
            }
        }
        self.responder.expected_psn = packet.psn.0;
        match self.carry_out(core, packet) {
            Ok(()) => {}
            Err(Refusal::Receive(counter, syndrome, _)) => {
                self.complete_error(core, false, counter, syndrome);
                self.fail(core);
            }
            Err(_) => {
                self.responder.message = None;
                self.responder.expected_psn = packet.psn.advance(1).0;
            }
        }
    }

    /// Carries out the packet that is expected next.
    fn carry_out(&mut self, core: &mut Core, packet: &Packet) -> Result<(), Refusal> {
        let invalid = Err(Refusal::Nak(NakCode::InvalidRequest));
        let rights = self.context.responder;
        let reliable = self.is_reliable();
        self.retarget(core, packet)?;
        match packet.operation {
            Operation::Send {
                place,
                imm,
                invalidate,
            } => {
                self.check_place(packet, place)?;
                self.receive_send(core, packet, place, imm, invalidate)?;
                self.advance(1, place.is_last());
            }
            Operation::Write { place, to, imm } => {
                self.check_place(packet, place)?;
                if !rights.remote_write() {
                    return invalid;
                }
                self.receive_write(core, packet, place, to, imm)?;
                self.advance(1, place.is_last());
            }
            Operation::ReadRequest(range) if reliable => {
                if !rights.remote_read()
                    || u64::from(range.len) > LONGEST_MESSAGE
                    || self.responder.message.is_some()
                    || self.serves_all_it_may()
                {
                    return invalid;
                }
                let pd = self.access_pd();
                self.check_remote(core, pd, &range, Right::RemoteRead)?;
                // The responses use the request's number and those behind it up, so the next
                // request's follows them.
                let packets = range.len.div_ceil(self.mtu()).max(1);
                self.advance(packets, true);
                self.answer(
                    core,
                    Answer::Read {
                        range,
                        pd,
                        psn: packet.psn.0,
                        packets,
                        sent: 0,
                        again: false,
                    },
                );
            }
            Operation::Atomic { addr, rkey, op } if reliable => {
                if !rights.remote_atomic()
                    || !addr.is_multiple_of(8)
                    || self.responder.message.is_some()
                    || self.serves_all_it_may()
                {
                    return invalid;
                }
                let original = self.atomic(core, addr, rkey, op)?;
                self.advance(1, true);
                // An atomic is carried out once however often it is asked for: its result is kept
                // for a peer that missed it (Linux `rxe_resp.c`, `duplicate_request`, finds it by
                // its number).
                self.responder.atomics.push_back((packet.psn.0, original));
                if self.responder.atomics.len() > KEPT_ATOMICS {
                    self.responder.atomics.pop_front();
                }
                self.answer(
                    core,
                    Answer::Atomic {
                        psn: packet.psn.0,
                        original,
                        again: false,
                    },
                );
            }
            _ => return invalid,
        }
        Ok(())
    }

    fn advance(&mut self, packets: u32, message_done: bool) {
        let responder = &mut self.responder;
        responder.expected_psn = Psn(responder.expected_psn).advance(packets).0;
        if message_done {
            responder.msn = Low24::new(responder.msn.wrapping_add(1)).get();
        }
    }

    /// Checks that a packet fits the message's state, and has the length that its place demands.
    ///
    /// All packets but a message's last are full (Linux `rxe_resp.c`, `check_length`,
    /// `check_op_seq`).
    fn check_place(&self, packet: &Packet, place: Place) -> Result<(), Refusal> {
        let continues = match (&self.responder.message, &packet.operation) {
            (None, _) => false,
            (Some(Message::Send { .. }), Operation::Send { .. })
            | (Some(Message::Write { .. }), Operation::Write { .. }) => true,
            _ => return Err(Refusal::Nak(NakCode::InvalidRequest)),
        };
        let len = packet.payload.len();
        let mtu = self.mtu() as usize;
        let length_ok = if place.is_last() {
            len <= mtu
        } else {
            len == mtu
        };
        if place.is_first() == continues || !length_ok {
            return Err(Refusal::Nak(NakCode::InvalidRequest));
        }
        Ok(())
    }

    fn check_remote(
        &self,
        core: &Core,
        pd: u32,
        range: &RemoteRange,
        right: Right,
    ) -> Result<(), Refusal> {
        // An empty access is not checked (IBA 1.3, 9.7.5.1.5).
        if range.len == 0 {
            return Ok(());
        }
        core.memory
            .check(range.rkey.0, pd, range.addr, u64::from(range.len), right)
            .map(drop)
            .map_err(|error| remote_error(self.qpn, error))
    }

    fn receive_send(
        &mut self,
        core: &mut Core,
        packet: &Packet,
        place: Place,
        imm: Option<u32>,
        invalidate: Option<Rkey>,
    ) -> Result<(), Refusal> {
        if place.is_first() {
            let receive = self.take_receive(core).ok_or(Refusal::NotReady)?;
            self.responder.message = Some(Message::Send { receive, offset: 0 });
        }
        let Some(Message::Send { receive, offset }) = self.responder.message.take() else {
            return Err(Refusal::Nak(NakCode::InvalidRequest));
        };
        let len = u32::try_from(packet.payload.len()).unwrap_or(u32::MAX);
        let end = offset.saturating_add(len);
        if u64::from(end) > capacity(&receive.pieces) {
            let syndrome = Syndrome::LOCAL_LENGTH_ERR;
            return Err(Refusal::Receive(
                receive.counter,
                syndrome,
                NakCode::InvalidRequest,
            ));
        }
        if let Err(error) = scatter(
            &core.memory,
            receive.who,
            &receive.pieces,
            offset,
            &packet.payload,
        ) {
            log::debug!("QP {:#x}: receive: {error}", self.qpn);
            let syndrome = Syndrome::LOCAL_PROT_ERR;
            return Err(Refusal::Receive(
                receive.counter,
                syndrome,
                NakCode::RemoteOperation,
            ));
        }
        if !place.is_last() {
            self.responder.message = Some(Message::Send {
                receive,
                offset: end,
            });
            return Ok(());
        }
        if let Some(key) = invalidate
            && !fast_register::invalidate_remotely(&core.memory, key.0, self.access_pd())
        {
            let syndrome = Syndrome::LOCAL_ACCESS_ERR;
            return Err(Refusal::Receive(
                receive.counter,
                syndrome,
                NakCode::RemoteAccess,
            ));
        }
        let (opcode, word) = match (imm, invalidate) {
            (Some(imm), _) => (ReceiveOpcode::SEND_IMM, imm),
            (None, Some(key)) => (ReceiveOpcode::SEND_INVAL, key.0),
            (None, None) => (ReceiveOpcode::SEND, 0),
        };
        self.complete_receive(core, packet, receive.counter, opcode, word, end);
        Ok(())
    }

    fn receive_write(
        &mut self,
        core: &mut Core,
        packet: &Packet,
        place: Place,
        to: Option<RemoteRange>,
        imm: Option<u32>,
    ) -> Result<(), Refusal> {
        let (to, offset) = match (self.responder.message.take(), to) {
            (Some(Message::Write { to, offset }), _) => (to, offset),
            (None, Some(to)) => {
                self.check_remote(core, self.access_pd(), &to, Right::RemoteWrite)?;
                (to, 0)
            }
            _ => return Err(Refusal::Nak(NakCode::InvalidRequest)),
        };
        let len = u32::try_from(packet.payload.len()).unwrap_or(u32::MAX);
        let end = offset.saturating_add(len);
        if end > to.len || (place.is_last() && end != to.len) {
            return Err(Refusal::Nak(NakCode::InvalidRequest));
        }
        // The receive is taken before anything is written: without one the packet comes again.
        let receive = match imm {
            None => None,
            Some(imm) => match self.take_receive(core) {
                Some(receive) => Some((receive, imm)),
                None => {
                    if !place.is_first() {
                        self.responder.message = Some(Message::Write { to, offset });
                    }
                    return Err(Refusal::NotReady);
                }
            },
        };
        if len > 0 {
            let at = to.addr.wrapping_add(u64::from(offset));
            core.memory
                // Each packet anew: the region may have been taken back since the first one.
                .check(
                    to.rkey.0,
                    self.access_pd(),
                    at,
                    u64::from(len),
                    Right::RemoteWrite,
                )
                .and_then(|region| core.memory.region_write(&region, &packet.payload))
                .map_err(|error| remote_error(self.qpn, error))?;
        }
        if !place.is_last() {
            self.responder.message = Some(Message::Write { to, offset: end });
        }
        if let Some((receive, imm)) = receive {
            self.complete_receive(
                core,
                packet,
                receive.counter,
                ReceiveOpcode::WRITE_IMM,
                imm,
                to.len,
            );
        }
        Ok(())
    }

    fn atomic(&mut self, core: &Core, addr: u64, rkey: Rkey, op: AtomicOp) -> Result<u64, Refusal> {
        let mut bytes = [0; 8];
        let region = core
            .memory
            .check(rkey.0, self.access_pd(), addr, 8, Right::RemoteAtomic)
            .and_then(|region| {
                core.memory
                    .region_read(&region, &mut bytes)
                    .map(|()| region)
            })
            .map_err(|error| remote_error(self.qpn, error))?;
        // Memory holds the value in the order of the machine, which is little-endian (INIT_HCA's
        // flag is not offered).
        let original = u64::from_le_bytes(bytes);
        let changed = apply(op, original);
        core.memory
            .region_write(&region, &changed.to_le_bytes())
            .map_err(|error| remote_error(self.qpn, error))?;
        Ok(original)
    }

    /// Takes the next receive of the queue pair's own queue or of its SRQ.
    pub(crate) fn take_receive(&mut self, core: &mut Core) -> Option<Receive> {
        if let Some(srqn) = self.receives_from() {
            let (counter, pd, pieces) = core.shared.take(&core.memory, &mut core.events, srqn)?;
            let who = Accessor {
                pd,
                ..self.accessor()
            };
            return Some(Receive {
                counter,
                who,
                pieces,
            });
        }
        let posted = core
            .memory
            .read_as::<U32>(Purpose::DoorbellRecord, self.context.doorbell_record.get())
            .ok()?
            .to_bytes();
        let counter = self.responder.taken;
        // The record's low half counts the receives posted; they have no doorbell (Linux
        // `hw/mlx4/qp.c`, `mlx4_ib_post_recv`).
        if u16::from_be_bytes([posted[2], posted[3]]) == counter {
            return None;
        }
        let size = self.context.receive_queue;
        let stride = 1_usize << size.log_stride();
        let slot = usize::from(counter) % (1 << size.log_slots());
        let mut bytes = vec![0; stride];
        core.memory
            .ring_read(
                Purpose::ReceiveWqe,
                self.receive_ring(),
                (slot * stride) as u64,
                &mut bytes,
            )
            .ok()?;
        // The record is read for each receive: software posts without a word to the card, so there
        // is no other time to look. A count of 16 bits is enough, as no ring has that many slots.
        self.responder.taken = counter.wrapping_add(1);
        Some(Receive {
            counter,
            who: self.accessor(),
            pieces: receive_pieces(&bytes),
        })
    }

    fn complete_receive(
        &self,
        core: &mut Core,
        packet: &Packet,
        counter: u16,
        opcode: u8,
        word: u32,
        len: u32,
    ) {
        let mut cqe = Cqe::new_zeroed();
        cqe.qpn = Low24::new(self.qpn);
        cqe.immediate_or_pkey = word.into();
        let (cqn, remote) = self.receive_completion();
        cqe.remote = remote;
        cqe.slid = packet.slid.0.into();
        cqe.byte_count = len.into();
        cqe.wqe_counter = counter.into();
        cqe.owner = CqeOwner::new().with_opcode(opcode);
        core.complete(cqn, cqe, packet.solicited);
    }

    /// Completes as flushed the receive in progress and what is in the queue pair's own queue.
    pub(crate) fn flush_receives(&mut self, core: &mut Core) {
        // A queue pair in ERR answers nothing; what the peer still waits for runs into its timeout.
        self.responder.answers.clear();
        if let Some(Message::Send { receive, .. }) = self.responder.message.take() {
            self.flush_receive(core, receive.counter);
        }
        if !self.has_receive_queue() {
            return;
        }
        let slots = 1_u32 << self.context.receive_queue.log_slots();
        for _ in 0..slots {
            match self.take_receive(core) {
                Some(receive) => self.flush_receive(core, receive.counter),
                None => break,
            }
        }
    }

    /// Completes a receive as flushed. Of a queue pair's own queue the counter says nothing:
    /// drivers go by the order (Linux `hw/mlx4/cq.c`, `mlx4_ib_poll_one`; rdma-core
    /// `providers/mlx4/cq.c`, `mlx4_parse_cqe`).
    fn flush_receive(&self, core: &mut Core, counter: u16) {
        let counter = if self.has_receive_queue() {
            !counter
        } else {
            counter
        };
        self.complete_error(core, false, counter, Syndrome::WR_FLUSH_ERR);
    }
}

fn remote_error(qpn: u32, error: AccessError) -> Refusal {
    log::debug!("QP {qpn:#x}: remote access: {error}");
    Refusal::Nak(match error {
        AccessError::Dma(_) | AccessError::Page(_) => NakCode::RemoteOperation,
        _ => NakCode::RemoteAccess,
    })
}

/// Returns the value that an atomic stores, given the old one.
fn apply(op: AtomicOp, value: u64) -> u64 {
    match op {
        AtomicOp::CompareSwap {
            compare,
            swap,
            compare_mask,
            swap_mask,
        } => {
            if value & compare_mask == compare & compare_mask {
                value & !swap_mask | swap & swap_mask
            } else {
                value
            }
        }
        AtomicOp::FetchAdd { add, boundary } => {
            // Each field is added by itself: the carry out of a boundary bit is dropped.
            let low = (value & !boundary).wrapping_add(add & !boundary);
            low ^ ((value ^ add) & boundary)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn masked_add_keeps_fields_apart() {
        let op = AtomicOp::FetchAdd {
            add: 0x0000_0001_0000_0001,
            boundary: 1 << 31 | 1 << 63,
        };
        assert_eq!(apply(op, 0x0000_0002_ffff_ffff), 0x0000_0003_0000_0000);
    }

    proptest! {
        #[test]
        fn add_without_boundaries_is_addition(value: u64, add: u64) {
            prop_assert_eq!(apply(AtomicOp::FetchAdd { add, boundary: 0 }, value), value.wrapping_add(add));
        }
    }
}
