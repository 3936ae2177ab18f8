//! Queue pairs: their context, their state machine, and what requester and responder share.

use mlx4_hw::bits::Low24;
use mlx4_hw::command::Opcode;
use mlx4_hw::cq::{CQE_OPCODE_ERROR, Cqe, CqeOwner, Syndrome};
use mlx4_hw::eq::EventType;
use mlx4_hw::qp::{OptionalParameters, QpContext, QpState, QueueSize, Service};
use mlx4_hw::wqe::BASIC_BLOCK_LEN;
use zerocopy::{FromZeros, IntoBytes};

use crate::core::Core;
use crate::memory::RingMemory;
use crate::requester::Requester;
use crate::responder::Responder;

/// One queue pair.
pub(crate) struct QueuePair {
    pub(crate) qpn: u32,
    /// Decides what packets and doorbells do (IBA 1.3, 10.3.1).
    pub(crate) state: QpState,
    /// The context that software gave, less what the two halves below keep themselves.
    pub(crate) context: QpContext,
    pub(crate) requester: Requester,
    pub(crate) responder: Responder,
    /// An SQD that was asked to report when the send queue is empty.
    pub(crate) report_drained: bool,
}

/// Returns the states that a transition leads from and to; `None` as origin is any but RESET.
///
/// The commands are those of Linux's table (`mlx4/qp.c`, `__mlx4_qp_modify`), without 2RST_QP,
/// which is allowed from any state.
pub(crate) fn transition(opcode: Opcode) -> Option<(Option<QpState>, QpState)> {
    Some(match opcode {
        Opcode::RST2INIT_QP => (Some(QpState::RST), QpState::INIT),
        Opcode::INIT2INIT_QP => (Some(QpState::INIT), QpState::INIT),
        Opcode::INIT2RTR_QP => (Some(QpState::INIT), QpState::RTR),
        Opcode::RTR2RTS_QP => (Some(QpState::RTR), QpState::RTS),
        Opcode::RTS2RTS_QP => (Some(QpState::RTS), QpState::RTS),
        Opcode::SQERR2RTS_QP => (Some(QpState::SQER), QpState::RTS),
        Opcode::RTS2SQD_QP => (Some(QpState::RTS), QpState::SQD),
        Opcode::SQD2RTS_QP => (Some(QpState::SQD), QpState::RTS),
        Opcode::SQD2SQD_QP => (Some(QpState::SQD), QpState::SQD),
        Opcode::QP_2ERR => (None, QpState::ERR),
        _ => return None,
    })
}

impl QueuePair {
    pub(crate) fn new(qpn: u32) -> Self {
        Self {
            qpn,
            state: QpState::RST,
            context: QpContext::new_zeroed(),
            requester: Requester::default(),
            responder: Responder::default(),
            report_drained: false,
        }
    }

    pub(crate) fn service(&self) -> Service {
        self.context.flags.service()
    }

    pub(crate) fn pd(&self) -> u32 {
        self.context.pd.get()
    }

    /// Returns the port that the queue pair sends and receives at, from 1.
    pub(crate) fn port(&self) -> u8 {
        self.context.primary_path.schedule.port()
    }

    /// Returns the payload bytes of a full packet.
    pub(crate) fn mtu(&self) -> u32 {
        128 << self.context.mtu.mtu_code().clamp(1, 5)
    }

    /// Returns whether what it sends is acknowledged.
    pub(crate) fn is_reliable(&self) -> bool {
        matches!(self.service(), Service::RC | Service::XRC)
    }

    /// Returns whether the queue pair takes packets.
    pub(crate) fn receives(&self) -> bool {
        matches!(
            self.state,
            QpState::RTR | QpState::RTS | QpState::SQD | QpState::SQ_DRAINING | QpState::SQER
        )
    }

    /// Returns the context as QUERY_QP shows it.
    pub(crate) fn query(&self) -> QpContext {
        let mut context = self.context;
        context.flags.set_state(match self.state {
            QpState::SQD if !self.requester.is_idle() => QpState::SQ_DRAINING,
            state => state,
        });
        context.local_qpn = Low24::new(self.qpn);
        context.next_send_psn = Low24::new(self.requester.next_psn());
        context.last_acked_psn = Low24::new(self.requester.oldest_psn().wrapping_sub(1));
        context
            .receive_psn
            .set_next_psn(self.responder.expected_psn);
        context.msn = Low24::new(self.responder.msn);
        context.send_counter = self.requester.next_slot().into();
        context.receive_counter = self.responder.taken.into();
        context
    }

    /// Takes what a transition takes of the mailbox's context.
    pub(crate) fn configure(
        &mut self,
        opcode: Opcode,
        optional: OptionalParameters,
        given: &QpContext,
    ) {
        match opcode {
            Opcode::RST2INIT_QP => self.context = *given,
            Opcode::INIT2RTR_QP => {
                self.context.mtu = given.mtu;
                self.context.remote_qpn = given.remote_qpn;
                self.take_path(optional, given);
                self.context
                    .receive_psn
                    .set_next_psn(given.receive_psn.next_psn());
                self.context
                    .responder
                    .set_log_reads(given.responder.log_reads());
                // From here on packets are taken; before RTR they are dropped without an answer,
                // and the peer's timeout has it send them again.
                self.responder.expected_psn = given.receive_psn.next_psn();
            }
            Opcode::RTR2RTS_QP => {
                self.context.next_send_psn = given.next_send_psn;
                self.context.requester = given.requester;
                let timeout = given.primary_path.ack_timeout.exponent();
                self.context.primary_path.ack_timeout.set_exponent(timeout);
                self.requester
                    .start(given.next_send_psn.get(), given.requester);
            }
            _ => {}
        }
        // RST2INIT takes the whole context. Later transitions take what they must and what the mask
        // names, so that software may send stale fields along (Linux `mlx4/qp.c`,
        // `mlx4_qp_to_ready`; `hw/mlx4/qp.c`, `__mlx4_ib_modify_qp`, `optpar`).
        if opcode != Opcode::RST2INIT_QP {
            self.take_optional(optional, given);
        }
    }

    /// Takes the primary path but for the fields that have an option of their own.
    fn take_path(&mut self, optional: OptionalParameters, given: &QpContext) {
        let old = self.context.primary_path;
        self.context.primary_path = given.primary_path;
        if !optional.pkey_index() {
            self.context.primary_path.pkey_index = old.pkey_index;
        }
        if !optional.counter_index() {
            self.context.primary_path.counter_index = old.counter_index;
        }
    }

    fn take_optional(&mut self, optional: OptionalParameters, given: &QpContext) {
        if optional.primary_path() {
            self.take_path(optional, given);
        }
        let context = &mut self.context;
        if optional.alternate_path() {
            context.alternate_path = given.alternate_path;
        }
        if optional.remote_read() {
            context
                .responder
                .set_remote_read(given.responder.remote_read());
        }
        if optional.remote_write() {
            context
                .responder
                .set_remote_write(given.responder.remote_write());
        }
        if optional.remote_atomic() {
            context
                .responder
                .set_remote_atomic(given.responder.remote_atomic());
        }
        if optional.pkey_index() {
            context.primary_path.pkey_index = given.primary_path.pkey_index;
        }
        if optional.qkey() {
            context.qkey = given.qkey;
        }
        if optional.rnr_timer() {
            context
                .receive_psn
                .set_min_rnr_timer(given.receive_psn.min_rnr_timer());
        }
        self.take_optional_transport(optional, given);
    }

    fn take_optional_transport(&mut self, optional: OptionalParameters, given: &QpContext) {
        let context = &mut self.context;
        if optional.reads_as_requester() {
            context.requester.set_log_reads(given.requester.log_reads());
        }
        if optional.reads_as_responder() {
            context.responder.set_log_reads(given.responder.log_reads());
        }
        if optional.path_migration() {
            context
                .flags
                .set_path_migration(given.flags.path_migration());
        }
        if optional.retry_count() {
            context
                .requester
                .set_retry_count(given.requester.retry_count());
        }
        if optional.rnr_retry() {
            context.requester.set_rnr_retry(given.requester.rnr_retry());
        }
        if optional.ack_timeout() {
            let timeout = given.primary_path.ack_timeout.exponent();
            context.primary_path.ack_timeout.set_exponent(timeout);
        }
        if optional.schedule() {
            context.primary_path.schedule = given.primary_path.schedule;
        }
        if optional.srqn() {
            context.srq = given.srq;
        }
        if optional.receive_cqn() {
            context.receive_cqn = given.receive_cqn;
        }
        if optional.counter_index() {
            context.primary_path.counter_index = given.primary_path.counter_index;
        }
        self.requester.reconfigure(self.context.requester);
    }

    /// Returns the place of the send queue. It comes first unless the receive queue's slots are
    /// larger.
    pub(crate) fn send_ring(&self) -> RingMemory {
        let receive = self.context.receive_queue;
        self.ring(if self.receives_first() {
            ring_len(receive)
        } else {
            0
        })
    }

    /// Returns the place of the receive queue.
    pub(crate) fn receive_ring(&self) -> RingMemory {
        let send = self.context.send_queue;
        self.ring(if self.receives_first() {
            0
        } else {
            ring_len(send)
        })
    }

    /// Returns whether the receive queue comes first in the buffer. A queue pair with a shared
    /// receive queue, or of XRC, has none of its own; its size field is then meaningless: Linux
    /// writes a stride of 0 bytes there, that is 0 less the 4 that the field leaves out (Linux
    /// `drivers/infiniband/hw/mlx4/qp.c`, `__mlx4_ib_modify_qp`).
    fn receives_first(&self) -> bool {
        let (send, receive) = (self.context.send_queue, self.context.receive_queue);
        self.has_receive_queue() && receive.log_stride() > send.log_stride()
    }

    /// Returns a work queue's place, `before` bytes into the buffer that both share.
    fn ring(&self, before: u64) -> RingMemory {
        RingMemory {
            buffer: self.context.buffer,
            offset: u64::from(self.context.responder.page_offset()) * BASIC_BLOCK_LEN as u64
                + before,
        }
    }

    /// Completes a send or a receive with an error.
    pub(crate) fn complete_error(
        &self,
        core: &mut Core,
        send: bool,
        wqe_counter: u16,
        syndrome: Syndrome,
    ) {
        core.diagnostics.count_error(send, syndrome);
        let mut cqe = Cqe::new_zeroed();
        cqe.qpn = Low24::new(self.qpn);
        cqe.wqe_counter = wqe_counter.into();
        cqe.syndrome = syndrome;
        cqe.vendor_syndrome = vendor_syndrome(syndrome);
        cqe.owner = CqeOwner::new()
            .with_send(send)
            .with_opcode(CQE_OPCODE_ERROR);
        let cqn = if send {
            self.context.send_cqn.get()
        } else {
            let (cqn, remote) = self.receive_completion();
            if self.service() == Service::XRC {
                cqe.remote = remote;
            }
            cqn
        };
        core.complete(cqn, cqe, true);
    }

    /// Goes to the error state: everything posted completes as flushed.
    pub(crate) fn fail(&mut self, core: &mut Core) {
        if self.state == QpState::RST {
            return;
        }
        // First the state, so that what completes below is seen to be flushed, not carried out.
        self.state = QpState::ERR;
        self.flush(core);
        core.ready.push_back(self.qpn);
        if self.context.srq.enable() {
            core.events
                .report_number(&core.memory, EventType::SRQ_LAST_WQE, self.qpn);
        }
    }

    /// Goes to the error state because of what the peer did, and reports it.
    pub(crate) fn fail_by_peer(&mut self, core: &mut Core, event: EventType) {
        core.events.report_number(&core.memory, event, self.qpn);
        self.fail(core);
    }

    /// Completes as flushed the requests posted to a queue pair in the error state.
    pub(crate) fn flush(&mut self, core: &mut Core) {
        self.flush_sends(core);
        self.flush_receives(core);
    }
}

/// Returns the vendor's syndrome of an error, where owners of real cards have published it, else 0.
///
/// 0x81: Oracle's document 1614576.1 (`mcxnex`, the driver of ConnectX). 0x88: NVIDIA's forum,
/// topic 207715 (ConnectX-2). 0xf9: accelio's issue 181 (ConnectX-3).
fn vendor_syndrome(syndrome: Syndrome) -> u8 {
    match syndrome {
        Syndrome::TRANSPORT_RETRY_EXC_ERR => 0x81,
        Syndrome::REMOTE_ACCESS_ERR => 0x88,
        Syndrome::WR_FLUSH_ERR => 0xf9,
        _ => 0,
    }
}

/// Returns the bytes of a queue pair's buffer: a queue that is shared lies elsewhere.
pub(crate) fn buffer_len(context: &QpContext) -> u64 {
    let receive = if context.srq.enable() || context.flags.service() == Service::XRC {
        0
    } else {
        ring_len(context.receive_queue)
    };
    let before = u64::from(context.responder.page_offset()) * BASIC_BLOCK_LEN as u64;
    before + ring_len(context.send_queue) + receive
}

fn ring_len(size: QueueSize) -> u64 {
    1 << (u32::from(size.log_slots()) + u32::from(size.log_stride()))
}

/// Encodes a context as QUERY_QP's mailbox has it.
pub(crate) fn context_mailbox(context: &QpContext) -> Vec<u8> {
    let mut mailbox = mlx4_hw::qp::QpMailbox::new_zeroed();
    mailbox.context = *context;
    mailbox.as_bytes().to_vec()
}
