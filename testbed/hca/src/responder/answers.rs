//! Responder's answers: acknowledgements, refusals and responses, in order.

use fabric::{AckCode, Operation, Packet, Place, RemoteRange};
use mlx4_hw::bits::Low24;
use verbs::Psn;

use super::{Answer, Refusal, remote_error};
use crate::core::Core;
use crate::memory::Right;
use crate::qp::QueuePair;
use crate::transmit::Marks;

/// Answers that wait to be sent.
const MOST_ANSWERS: usize = 1024;

impl QueuePair {
    /// Returns whether as many READs and atomics are being answered as the peer may have
    /// outstanding. One more is an invalid request (IBA 1.3, 9.7.4.1; Linux
    /// `drivers/infiniband/sw/rxe/rxe_resp.c`, `RESPST_ERR_TOO_MANY_RDMA_ATM_REQ`).
    pub(super) fn serves_all_it_may(&self) -> bool {
        let takes_one = |answer: &&Answer| {
            matches!(
                answer,
                Answer::Read { again: false, .. } | Answer::Atomic { again: false, .. }
            )
        };
        let serving = self.responder.answers.iter().filter(takes_one).count();
        serving >= 1 << self.context.responder.log_reads()
    }

    /// Answers a request that was carried out before: its answer was lost, or it is late.
    pub(super) fn receive_again(&mut self, core: &mut Core, packet: &Packet) {
        let psn = packet.psn.0;
        match packet.operation {
            Operation::ReadRequest(range) => {
                let packets = range.len.div_ceil(self.mtu()).max(1);
                let pd = self.request_pd(core, packet);
                // A READ is carried out again, with the memory as it is now: responses are not
                // kept, and the region may be gone (Linux `rxe_resp.c`, `duplicate_request`).
                let may = |pd: &u32| {
                    self.context.responder.remote_read()
                        && self
                            .check_remote(core, *pd, &range, Right::RemoteRead)
                            .is_ok()
                };
                if let Some(pd) = pd.filter(may) {
                    self.answer(
                        core,
                        Answer::Read {
                            range,
                            pd,
                            psn,
                            packets,
                            sent: 0,
                            again: true,
                        },
                    );
                }
            }
            Operation::Atomic { .. } => {
                let kept = self.responder.atomics.iter().find(|(kept, _)| *kept == psn);
                if let Some((psn, original)) = kept.copied() {
                    let again = true;
                    self.answer(
                        core,
                        Answer::Atomic {
                            psn,
                            original,
                            again,
                        },
                    );
                }
            }
            _ => {
                // A SEND or WRITE that was carried out is not carried out again; the answer names
                // the newest number, which acknowledges it with all others (Linux `rxe_resp.c`,
                // `duplicate_request`: "SEND. Ack again and cleanup").
                let psn = Psn(self.responder.expected_psn).advance(Low24::MAX).0;
                self.answer(
                    core,
                    Answer::Ack {
                        psn,
                        code: AckCode::Ack,
                    },
                );
            }
        }
    }

    pub(super) fn answer(&mut self, core: &mut Core, answer: Answer) {
        if self.responder.answers.len() >= MOST_ANSWERS {
            return;
        }
        self.responder.answers.push_back(answer);
        let mut budget = 64;
        if self.pump_responses(core, &mut budget) {
            core.ready.push_back(self.qpn);
        }
    }

    /// Sends answers; says whether some are left.
    pub(crate) fn pump_responses(&mut self, core: &mut Core, budget: &mut u32) -> bool {
        while *budget > 0 {
            let Some(answer) = self.responder.answers.pop_front() else {
                return false;
            };
            *budget -= 1;
            let msn = self.responder.msn;
            match answer {
                Answer::Ack { psn, code } => {
                    let operation = Operation::Ack { code, msn };
                    self.transmit(core, psn, operation, Vec::new(), Marks::default());
                }
                Answer::Atomic { psn, original, .. } => {
                    let operation = Operation::AtomicResponse { original, msn };
                    self.transmit(core, psn, operation, Vec::new(), Marks::default());
                }
                Answer::Read {
                    range,
                    pd,
                    psn,
                    packets,
                    sent,
                    again,
                } => {
                    let psn_now = Psn(psn).advance(sent).0;
                    let place = Place::new(sent == 0, sent + 1 == packets);
                    if !self.send_read_response(core, (range, pd), psn_now, place, sent) {
                        return false;
                    }
                    if sent + 1 < packets {
                        let sent = sent + 1;
                        self.responder.answers.push_front(Answer::Read {
                            range,
                            pd,
                            psn,
                            packets,
                            sent,
                            again,
                        });
                    }
                }
            }
        }
        !self.responder.answers.is_empty()
    }

    fn send_read_response(
        &mut self,
        core: &mut Core,
        (range, pd): (RemoteRange, u32),
        psn: u32,
        place: Place,
        sent: u32,
    ) -> bool {
        let mtu = self.mtu();
        let offset = sent * mtu;
        let len = mtu.min(range.len - offset);
        let mut payload = vec![0; len as usize];
        let addr = range.addr.wrapping_add(u64::from(offset));
        let read = if len == 0 {
            Ok(())
        } else {
            core.memory
                .check(range.rkey.0, pd, addr, u64::from(len), Right::RemoteRead)
                .and_then(|region| core.memory.region_read(&region, &mut payload))
        };
        if let Err(error) = read {
            let Refusal::Nak(code) = remote_error(self.qpn, error) else {
                return false;
            };
            // Nothing may follow the refusal: the peer stops at it.
            self.responder.answers.clear();
            self.refuse(core, psn, code);
            return false;
        }
        let operation = Operation::ReadResponse {
            place,
            msn: self.responder.msn,
        };
        self.transmit(core, psn, operation, payload, Marks::default());
        true
    }
}
