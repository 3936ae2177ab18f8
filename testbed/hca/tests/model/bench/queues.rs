//! Queues, regions and work requests of the bench.

use mlx4_hw::bits::{Low24, QueueBuffer};
use mlx4_hw::command::{CmdStatus, Opcode, op_modifier};
use mlx4_hw::cq::{CQE_OPCODE_ERROR, CQE_OPCODE_RESIZE, CqContext, CqSize, Cqe, Syndrome};
use mlx4_hw::eq::{EQE_LEN, Eqe};
use mlx4_hw::mpt::{HwKey, MPT_STATUS_SOFTWARE, Mpt, MptFlags, MptPd};
use mlx4_hw::path::{AckTimeout, ScheduleQueue};
use mlx4_hw::qp::{
    MtuMessage, OptionalParameters, PATH_MIGRATED, QpContext, QpFlags, QpMailbox, QueueSize,
    RequesterParameters, ResponderParameters, RnrReceivePsn, Service,
};
use mlx4_hw::regs;
use mlx4_hw::wqe::{
    COMPLETION_WANTED, ControlFlags, ControlOwner, ControlSegment, ControlSize, DataSegment,
    RemoteAddressSegment, SEND_HEADROOM_LEN, STAMP, WqeOpcode,
};
use zerocopy::{FromZeros, IntoBytes};

use super::{Bench, EQN, PD, UAR};

pub(crate) const SQ_SLOTS: u32 = 64;
pub(crate) const RQ_SLOTS: u32 = 64;
const SQ_STRIDE: u32 = 256;
const RQ_STRIDE: u32 = 64;

/// A completion queue as software keeps it.
pub(crate) struct Cq {
    pub(crate) node: usize,
    pub(crate) cqn: u32,
    pub(crate) buffer: u64,
    pub(crate) record: u64,
    pub(crate) entries: u32,
    pub(crate) consumer: u32,
}

/// A queue pair as software keeps it.
#[derive(Clone)]
pub(crate) struct Qp {
    pub(crate) node: usize,
    pub(crate) qpn: u32,
    pub(crate) buffer: u64,
    pub(crate) record: u64,
    pub(crate) sent: u32,
    pub(crate) posted: u16,
    /// The peer's SRQ, of an XRC queue pair.
    pub(crate) srqn: u32,
    pub(crate) context: QpContext,
}

impl Qp {
    /// Returns the address of the send with a number.
    pub(crate) fn slot(&self, number: u32) -> u64 {
        self.buffer + u64::from(number % SQ_SLOTS * SQ_STRIDE)
    }
}

/// A memory region.
#[derive(Clone, Copy)]
pub(crate) struct Mr {
    pub(crate) addr: u64,
    pub(crate) key: u32,
    pub(crate) mtt: u64,
    pub(crate) index: u32,
}

/// Parameters of a connection.
#[derive(Clone, Copy)]
pub(crate) struct Connection {
    pub(crate) mtu_code: u8,
    pub(crate) ack_timeout: u8,
    pub(crate) retries: u8,
    pub(crate) rnr_retries: u8,
    pub(crate) log_reads: u8,
    pub(crate) psn: u32,
}

impl Default for Connection {
    fn default() -> Self {
        Self {
            mtu_code: 5,
            ack_timeout: 8,
            retries: 7,
            rnr_retries: 6,
            log_reads: 4,
            psn: 0xff_fff0,
        }
    }
}

/// One send.
pub(crate) struct Send<'a> {
    pub(crate) opcode: WqeOpcode,
    pub(crate) remote: Option<(u64, u32)>,
    pub(crate) pieces: &'a [(u64, u32, u32)],
    pub(crate) imm: u32,
    pub(crate) signalled: bool,
}

impl Bench {
    pub(crate) fn make_cq(&mut self, node: usize, log_size: u8) -> Cq {
        self.make_cq_with(node, log_size, |_| ())
    }

    /// Creates a completion queue, its context changed before the card gets it.
    pub(crate) fn make_cq_with(
        &mut self,
        node: usize,
        log_size: u8,
        change: impl FnOnce(&mut CqContext),
    ) -> Cq {
        self.try_make_cq(node, log_size, change).unwrap()
    }

    /// Creates a completion queue unless firmware refuses it.
    pub(crate) fn try_make_cq(
        &mut self,
        node: usize,
        log_size: u8,
        change: impl FnOnce(&mut CqContext),
    ) -> Result<Cq, CmdStatus> {
        let entries = 1_u32 << log_size;
        let len = u64::from(entries) * 32;
        let buffer = self.alloc(node, len);
        let record = self.alloc(node, 64);
        let cqn = self.nodes[node].next_cqn;
        self.nodes[node].next_cqn += 1;
        let mut cq = CqContext::new_zeroed();
        cq.size = CqSize::new().with_log_size(log_size).with_uar(UAR);
        cq.eqn = u16::try_from(EQN).unwrap().into();
        cq.buffer = QueueBuffer::new(self.map(node, buffer, len), 12);
        cq.doorbell_record = record.into();
        change(&mut cq);
        self.command(node, Opcode::SW2HW_CQ, 0, cqn, cq.as_bytes())?;
        Ok(Cq {
            node,
            cqn,
            buffer,
            record,
            entries,
            consumer: 0,
        })
    }

    /// Moves a completion queue to a buffer of another size, as rdma-core does
    /// (`providers/mlx4/cq.c`, `mlx4_cq_resize_copy_cqes`).
    pub(crate) fn resize_cq(&mut self, cq: &mut Cq, log_size: u8) -> Result<(), CmdStatus> {
        let entries = 1_u32 << log_size;
        let len = u64::from(entries) * 32;
        let buffer = self.alloc(cq.node, len);
        let mut wanted = CqContext::new_zeroed();
        wanted.size = CqSize::new().with_log_size(log_size);
        wanted.buffer = QueueBuffer::new(self.map(cq.node, buffer, len), 12);
        let resize = op_modifier::MODIFY_CQ_RESIZE;
        self.command(
            cq.node,
            Opcode::MODIFY_CQ,
            resize,
            cq.cqn,
            wanted.as_bytes(),
        )?;
        let ram = &self.nodes[cq.node].ram;
        for index in cq.consumer.. {
            let mut cqe: Cqe = ram.get(cq.buffer + u64::from(index % cq.entries * 32));
            if cqe.owner.opcode() == CQE_OPCODE_RESIZE {
                break;
            }
            cqe.owner.set_pass((index + 1) & entries != 0);
            ram.put(
                buffer + u64::from((index + 1) % entries * 32),
                cqe.as_bytes(),
            );
        }
        (cq.buffer, cq.entries) = (buffer, entries);
        cq.consumer += 1;
        ram.put(cq.record, Low24::new(cq.consumer).as_bytes());
        Ok(())
    }

    /// Creates a region with the given rights over fresh memory.
    pub(crate) fn make_mr(&mut self, node: usize, len: u64, rights: MptFlags) -> Mr {
        self.make_mr_in(node, len, rights, PD)
    }

    /// Creates such a region in a protection domain.
    pub(crate) fn make_mr_in(&mut self, node: usize, len: u64, rights: MptFlags, pd: u32) -> Mr {
        let addr = self.alloc(node, len);
        let mtt = self.map(node, addr, len);
        let index = self.nodes[node].next_mpt;
        self.nodes[node].next_mpt += 1;
        let key = HwKey::new(index, 0x2a);
        let mut mpt = Mpt::new_zeroed();
        mpt.flags = rights.with_status(MPT_STATUS_SOFTWARE).with_region(true);
        mpt.key = key;
        mpt.pd = MptPd::new().with_pd(pd);
        mpt.start = addr.into();
        mpt.len = len.into();
        mpt.mtt_offset = mtt.into();
        mpt.log_page = 12.into();
        self.command(node, Opcode::SW2HW_MPT, 0, index, mpt.as_bytes())
            .unwrap();
        Mr {
            addr,
            key: key.to_key(),
            mtt,
            index,
        }
    }

    /// Creates a queue pair in INIT that peers may read and write through.
    pub(crate) fn make_qp(&mut self, node: usize, service: Service, cq: &Cq) -> Qp {
        self.try_make_qp(node, service, cq, |_| ()).unwrap()
    }

    /// Creates a queue pair, its mailbox changed before the card gets it, unless firmware refuses
    /// it.
    pub(crate) fn try_make_qp(
        &mut self,
        node: usize,
        service: Service,
        cq: &Cq,
        change: impl FnOnce(&mut QpMailbox),
    ) -> Result<Qp, CmdStatus> {
        let len = u64::from(SQ_SLOTS * SQ_STRIDE + RQ_SLOTS * RQ_STRIDE);
        let buffer = self.alloc(node, len);
        let record = self.alloc(node, 64);
        let qpn = self.nodes[node].next_qpn;
        self.nodes[node].next_qpn += 1;
        let mut context = QpContext::new_zeroed();
        context.flags = QpFlags::new()
            .with_service(service)
            .with_path_migration(PATH_MIGRATED);
        context.pd = Low24::new(PD);
        context.uar = Low24::new(UAR);
        context.send_queue = QueueSize::of(6, 8);
        context.receive_queue = QueueSize::of(6, 6);
        context.send_cqn = Low24::new(cq.cqn);
        context.receive_cqn = Low24::new(cq.cqn);
        context.doorbell_record = record.into();
        context.primary_path.schedule = ScheduleQueue::of(1, 0);
        context.responder = ResponderParameters::new()
            .with_remote_read(true)
            .with_remote_write(true)
            .with_remote_atomic(true);
        context.qkey = 0x11_1111.into();
        context.buffer = QueueBuffer::new(self.map(node, buffer, len), 12);
        let mut qp = Qp {
            node,
            qpn,
            buffer,
            record,
            sent: 0,
            posted: 0,
            srqn: 0,
            context,
        };
        for slot in 0..SQ_SLOTS {
            // Owned by software in the first pass.
            let owner = ControlOwner::new().with_pass(true);
            self.nodes[node].ram.put(qp.slot(slot), owner.as_bytes());
            self.stamp(&qp, slot);
        }
        let mut mailbox = QpMailbox::new_zeroed();
        mailbox.context = qp.context;
        change(&mut mailbox);
        qp.context = mailbox.context;
        let bytes = mailbox.as_bytes();
        self.command(node, Opcode::RST2INIT_QP, 0, qpn, bytes)?;
        Ok(qp)
    }

    pub(crate) fn transition(
        &mut self,
        qp: &Qp,
        opcode: Opcode,
        optional: OptionalParameters,
    ) -> Result<u64, CmdStatus> {
        let mut mailbox = QpMailbox::new_zeroed();
        mailbox.optional = optional;
        mailbox.context = qp.context;
        self.command(qp.node, opcode, 0, qp.qpn, mailbox.as_bytes())
    }

    /// Brings a queue pair to RTS, connected to another one.
    pub(crate) fn connect(&mut self, qp: &mut Qp, to: (usize, u32), how: Connection) {
        let lid = self.nodes[to.0].lid;
        let context = &mut qp.context;
        context.mtu = MtuMessage::new()
            .with_mtu_code(how.mtu_code)
            .with_log_message(30);
        context.remote_qpn = Low24::new(to.1);
        context.primary_path.remote_lid = lid.0.into();
        context.primary_path.ack_timeout = AckTimeout::new().with_exponent(how.ack_timeout);
        context.receive_psn = RnrReceivePsn::new()
            .with_min_rnr_timer(1)
            .with_next_psn(how.psn);
        context.responder.set_log_reads(how.log_reads);
        context.next_send_psn = Low24::new(how.psn);
        context.requester = RequesterParameters::new()
            .with_log_reads(how.log_reads)
            .with_retry_count(how.retries)
            .with_rnr_retry(how.rnr_retries);
        let optional = OptionalParameters::new().with_rnr_timer(true);
        self.transition(qp, Opcode::INIT2RTR_QP, optional).unwrap();
        self.transition(qp, Opcode::RTR2RTS_QP, OptionalParameters::new())
            .unwrap();
    }

    /// Creates two connected queue pairs, with a completion queue each.
    pub(crate) fn pair(&mut self, service: Service, how: Connection) -> (Qp, Cq, Qp, Cq) {
        let (cq_a, cq_b) = (self.make_cq(0, 8), self.make_cq(1, 8));
        let mut a = self.make_qp(0, service, &cq_a);
        let mut b = self.make_qp(1, service, &cq_b);
        self.connect(&mut a, (1, b.qpn), how);
        self.connect(&mut b, (0, a.qpn), how);
        (a, cq_a, b, cq_b)
    }

    /// Writes raw bytes as the next send, with the owner bit that makes it the device's.
    pub(crate) fn post_bytes(&mut self, qp: &mut Qp, opcode: WqeOpcode, bytes: &[u8]) {
        let at = qp.slot(qp.sent);
        let owner = ControlOwner::new()
            .with_opcode(opcode)
            .with_pass(qp.sent & SQ_SLOTS != 0);
        self.nodes[qp.node].ram.put(at + 4, &bytes[4..]);
        self.nodes[qp.node].ram.put(at, owner.as_bytes());
        // The slot behind stays software's.
        let next = qp.sent + 1;
        let owner = ControlOwner::new().with_pass(next & SQ_SLOTS == 0);
        self.nodes[qp.node].ram.put(qp.slot(next), owner.as_bytes());
        qp.sent = next;
        self.stamp(qp, next + SEND_HEADROOM_LEN / SQ_STRIDE);
    }

    /// Marks the chunks behind a slot's first as not written.
    fn stamp(&self, qp: &Qp, slot: u32) {
        for chunk in (64..u64::from(SQ_STRIDE)).step_by(64) {
            let at = qp.slot(slot) + chunk;
            self.nodes[qp.node].ram.put(at, &STAMP.to_be_bytes());
        }
    }

    pub(crate) fn post(&mut self, qp: &mut Qp, send: &Send<'_>) {
        let mut bytes = Vec::new();
        let mut control = ControlSegment::new_zeroed();
        let units = 1 + usize::from(send.remote.is_some()) + send.pieces.len();
        control.size = ControlSize::new().with_units(u8::try_from(units).unwrap());
        control.flags = ControlFlags::new()
            .with_xrc_srqn(qp.srqn)
            .with_completion(if send.signalled { COMPLETION_WANTED } else { 0 })
            .with_solicited(true);
        control.immediate = send.imm.into();
        bytes.extend_from_slice(control.as_bytes());
        if let Some((addr, rkey)) = send.remote {
            bytes.extend_from_slice(RemoteAddressSegment::new(addr, rkey).as_bytes());
        }
        for (addr, len, lkey) in send.pieces {
            bytes.extend_from_slice(DataSegment::new(*addr, *len, *lkey).as_bytes());
        }
        self.post_bytes(qp, send.opcode, &bytes);
    }

    pub(crate) fn ring_send(&mut self, qp: &Qp) {
        let value = u32::from(regs::SendDoorbell::new().with_qpn(qp.qpn));
        self.ring(
            qp.node,
            UAR as usize * regs::UAR_PAGE_LEN + regs::SEND_DOORBELL,
            &value.to_be_bytes(),
        );
    }

    pub(crate) fn post_receive(&mut self, qp: &mut Qp, addr: u64, len: u32, lkey: u32) {
        let at = qp.buffer
            + u64::from(SQ_SLOTS * SQ_STRIDE)
            + u64::from(u32::from(qp.posted) % RQ_SLOTS * RQ_STRIDE);
        let ram = &self.nodes[qp.node].ram;
        ram.put(at, DataSegment::new(addr, len, lkey).as_bytes());
        ram.put(at + 16, DataSegment::end().as_bytes());
        qp.posted = qp.posted.wrapping_add(1);
        ram.put(qp.record, &u32::from(qp.posted).to_be_bytes());
    }

    /// Takes the next completion.
    pub(crate) fn poll_cq(&mut self, cq: &mut Cq) -> Option<Cqe> {
        let ram = &self.nodes[cq.node].ram;
        let at = cq.buffer + u64::from(cq.consumer % cq.entries * 32);
        let cqe: Cqe = ram.get(at);
        if cqe.owner.pass() != (cq.consumer & cq.entries != 0) {
            return None;
        }
        cq.consumer += 1;
        ram.put(cq.record, Low24::new(cq.consumer).as_bytes());
        Some(cqe)
    }

    /// Takes all completions. Returns for each whether it is of a send, the WQE, and the syndrome.
    pub(crate) fn drain(&mut self, cq: &mut Cq) -> Vec<(bool, u16, Syndrome)> {
        let mut all = Vec::new();
        while let Some(cqe) = self.poll_cq(cq) {
            let error = cqe.owner.opcode() == CQE_OPCODE_ERROR;
            let syndrome = if error { cqe.syndrome } else { Syndrome::NONE };
            all.push((cqe.owner.send(), cqe.wqe_counter.get(), syndrome));
        }
        all
    }

    /// Takes the next event.
    pub(crate) fn poll_eq(&mut self, node: usize) -> Option<Eqe> {
        let consumer = self.nodes[node].eq_consumer;
        let at = self.nodes[node].eq + u64::from(consumer % 128) * EQE_LEN as u64;
        let eqe: Eqe = self.nodes[node].ram.get(at);
        if eqe.owner.pass() != (consumer & 128 != 0) {
            return None;
        }
        self.nodes[node].eq_consumer += 1;
        Some(eqe)
    }

    pub(crate) fn events(&mut self, node: usize) -> Vec<Eqe> {
        std::iter::from_fn(|| self.poll_eq(node)).collect()
    }
}

pub(crate) fn all_rights() -> MptFlags {
    MptFlags::new()
        .with_local_read(true)
        .with_local_write(true)
        .with_remote_read(true)
        .with_remote_write(true)
        .with_atomic(true)
}
