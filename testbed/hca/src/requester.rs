//! The sending half of a connection: fetches sends, cuts them into packets, and waits for the
//! peer's responses.
//!
//! ```text
//!   send queue ──fetch──► queue: [ acknowledged in part | sent | ...cursor: being sent | not yet sent ]
//!                         front completes first
//! ```
//!
//! Every send keeps the sequence numbers of its packets; sending again means moving the cursor
//! back.
//!
//! A connection goes back N: what was lost is sent again from the oldest packet that is not
//! acknowledged, with all behind it (Linux `drivers/infiniband/sw/rxe/rxe_req.c`, `req_retry`).
//! Sequence numbers have 24 bits and are compared as a circle (`rxe`, `psn_compare`), so fewer than
//! 2^23 may be on the way.

mod answers;
mod operation;
mod read_ahead;

use std::collections::VecDeque;

use hal::{Duration, Instant};
use mlx4_hw::bits::Low24;
use mlx4_hw::cq::{Cqe, CqeOwner, Syndrome};
use mlx4_hw::eq::EventType;
use mlx4_hw::qp::{QpState, RequesterParameters, Service};
use mlx4_hw::wqe::{BASIC_BLOCK_LEN, ControlSegment, LOG_BASIC_BLOCK_LEN, SEGMENT_UNIT, WqeOpcode};
use zerocopy::{FromBytes, FromZeros};

use crate::core::{Core, Diagnostics};
use crate::fast_register;
use crate::qp::QueuePair;
use crate::trace::Purpose;
use crate::transmit::Marks;
use crate::wqe::{Accessor, Malformed, Task, Work, gather, parse};
use operation::operation;
use read_ahead::ReadAhead;

/// Packets of one queue pair on the way at most.
const WINDOW: u32 = 1024;
/// Sends fetched ahead at most.
const FETCHED: usize = 256;
/// Intervals at which a failed queue pair is checked for receives posted since: the first, and the
/// longest, reached by backoff while none comes.
const FLUSH_INTERVALS: (Duration, Duration) =
    (Duration::from_millis(1), Duration::from_millis(128));

/// A fetched send.
struct Pending {
    work: Work,
    first_psn: u32,
    /// Sequence numbers it takes; none for what stays on this side.
    packets: u32,
    /// Response packets of a READ or atomic received.
    received: u32,
    /// The part of the request that needs no packet is done.
    done: bool,
    /// The error it ends with when its turn comes.
    failed: Option<Syndrome>,
}

impl Pending {
    fn wants_response(&self) -> bool {
        matches!(self.work.task, Task::Read { .. } | Task::Atomic { .. })
    }

    fn end_psn(&self) -> u32 {
        Low24::new(self.first_psn.wrapping_add(self.packets)).get()
    }
}

/// The requester's state.
#[derive(Default)]
pub(crate) struct Requester {
    queue: VecDeque<Pending>,
    /// Index of the slot that is fetched next.
    slot: u16,
    /// A doorbell was rung since the send queue was last seen empty.
    fetching: bool,
    ahead: ReadAhead,
    /// Of the next send that is fetched.
    next_psn: u32,
    /// Oldest sequence number that is not acknowledged.
    oldest: u32,
    /// The send, and the packet of it, that goes out next.
    cursor: (usize, u32),
    /// One behind the newest sequence number ever sent.
    sent: u32,
    parameters: RequesterParameters,
    /// Left before the oldest packet is given up; set anew whenever one is acknowledged.
    retries: u8,
    /// The retries left for receivers that are not ready.
    rnr_retries: u8,
    /// The time at which the oldest packet counts as lost.
    deadline: Option<Instant>,
    /// Nothing is sent before: the peer asked for a pause, or a failed queue pair is looked at
    /// then.
    resume_at: Option<Instant>,
    /// A gap in responses has been answered by sending again from here.
    gap: Option<u32>,
    timer: Option<Instant>,
    /// Interval before the last check of a failed queue pair for new receives.
    flush_interval: Option<Duration>,
}

/// Returns how many sequence numbers `a` is ahead of `b`; negative if behind.
pub(crate) fn psn_distance(a: u32, b: u32) -> i32 {
    let ahead = Low24::new(a.wrapping_sub(b)).get();
    let full = i32::try_from(Low24::MAX).unwrap_or(i32::MAX) + 1;
    let ahead = i32::try_from(ahead).unwrap_or(0);
    if ahead >= full / 2 {
        ahead - full
    } else {
        ahead
    }
}

fn psn_plus(psn: u32, count: u32) -> u32 {
    Low24::new(psn.wrapping_add(count)).get()
}

impl Requester {
    pub(crate) fn start(&mut self, psn: u32, parameters: RequesterParameters) {
        self.next_psn = psn;
        self.oldest = psn;
        self.sent = psn;
        self.reconfigure(parameters);
        self.progress();
    }

    pub(crate) fn reconfigure(&mut self, parameters: RequesterParameters) {
        self.parameters = parameters;
    }

    pub(crate) fn next_psn(&self) -> u32 {
        self.next_psn
    }

    pub(crate) fn oldest_psn(&self) -> u32 {
        self.oldest
    }

    pub(crate) fn next_slot(&self) -> u16 {
        self.slot
    }

    /// Returns whether no send is outstanding.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Handles the send doorbell.
    pub(crate) fn ring(&mut self) {
        self.fetching = true;
    }

    /// Resets the retry counters after an answer of the peer.
    fn progress(&mut self) {
        self.retries = self.parameters.retry_count();
        self.rnr_retries = self.parameters.rnr_retry();
        self.gap = None;
    }

    /// Moves the cursor to a sequence number, back or forth.
    fn seek(&mut self, psn: u32) {
        let unfinished = |pending: &Pending| {
            if pending.packets == 0 {
                !pending.done
            } else {
                psn_distance(psn, pending.end_psn()) < 0
            }
        };
        let index = self
            .queue
            .iter()
            .position(unfinished)
            .unwrap_or(self.queue.len());
        let packet = match self.queue.get(index) {
            Some(pending) if pending.packets > 0 => psn_distance(psn, pending.first_psn),
            _ => 0,
        };
        self.cursor = (index, u32::try_from(packet).unwrap_or(0));
    }

    /// Returns the sequence number at the cursor.
    fn cursor_psn(&self) -> u32 {
        let (index, packet) = self.cursor;
        self.queue
            .get(index)
            .map_or(self.next_psn, |pending| psn_plus(pending.first_psn, packet))
    }

    /// Notes that everything before `psn` has arrived; what was to be sent again and has arrived is
    /// not.
    fn advance(&mut self, psn: u32) {
        self.oldest = psn;
        if psn_distance(self.cursor_psn(), psn) < 0 {
            self.seek(psn);
        }
    }

    fn outstanding_responses(&self) -> usize {
        self.queue
            .iter()
            .take(self.cursor.0)
            .filter(|pending| pending.wants_response())
            .count()
    }
}

impl QueuePair {
    pub(crate) fn accessor(&self) -> Accessor {
        Accessor {
            pd: self.pd(),
            reserved_lkey: self.context.rlkey.reserved_lkey(),
        }
    }

    /// Sends up to `budget` packets; says whether there is more that could go out now.
    pub(crate) fn pump(&mut self, core: &mut Core, mut budget: u32) -> bool {
        if self.state == QpState::ERR {
            self.look_for_posted(core);
            self.set_timer(core);
            return false;
        }
        if !matches!(self.state, QpState::RTS | QpState::SQD)
            || self.requester.resume_at.is_some_and(|at| at > core.now)
        {
            let more = self.pump_responses(core, &mut budget);
            self.set_timer(core);
            return more;
        }
        self.requester.resume_at = None;
        let mut more = self.pump_responses(core, &mut budget);
        while budget > 0 {
            if !self.step(core) {
                break;
            }
            budget -= 1;
            more |= budget == 0;
        }
        self.set_timer(core);
        self.report_if_drained(core);
        more
    }

    /// Flushes what has been posted to a failed queue pair. Its receives come without a doorbell,
    /// and who drains it posts one and waits for its end (Linux `drivers/infiniband/core/verbs.c`,
    /// `ib_drain_rq`): so this looks again, less often the longer nothing came.
    fn look_for_posted(&mut self, core: &mut Core) {
        let planned = self.requester.resume_at.filter(|&at| at > core.now);
        let taken = self.responder.taken;
        self.flush(core);
        if !self.has_receive_queue() {
            return;
        }
        if self.responder.taken != taken {
            self.requester.flush_interval = None;
        } else if planned.is_some() {
            self.requester.resume_at = planned;
            return;
        }
        let (first, last) = FLUSH_INTERVALS;
        let before = self.requester.flush_interval;
        let interval = before.map_or(first, |before| last.min(before * 2));
        self.requester.flush_interval = Some(interval);
        self.requester.resume_at = Some(core.now + interval);
    }

    /// Sends one packet or does one thing that needs none. False when nothing can be done now.
    fn step(&mut self, core: &mut Core) -> bool {
        if !matches!(self.state, QpState::RTS | QpState::SQD) {
            return false;
        }
        self.complete_front(core);
        if self.requester.cursor.0 == self.requester.queue.len() && !self.fetch(core) {
            return false;
        }
        let requester = &self.requester;
        let (index, packet) = requester.cursor;
        let Some(pending) = requester.queue.get(index) else {
            return false;
        };
        if pending.failed.is_some() {
            self.complete_front(core);
            return false;
        }
        let on_the_way = psn_distance(requester.cursor_psn(), requester.oldest);
        let full = on_the_way >= i32::try_from(WINDOW).unwrap_or(i32::MAX);
        let waits = packet == 0 && self.must_wait(pending, requester.outstanding_responses());
        if (full && pending.packets > 0) || waits {
            return false;
        }
        match pending.work.task {
            Task::Datagram { .. } | Task::Mlx { .. } => self.send_datagram(core, index),
            _ if pending.packets == 0 => self.do_locally(core, index),
            _ => self.send_packet(core, index, packet),
        }
        self.complete_front(core);
        true
    }

    /// Returns whether a send must wait for responses before it begins.
    fn must_wait(&self, pending: &Pending, outstanding: usize) -> bool {
        let limit = 1_usize << self.requester.parameters.log_reads();
        // Of what came before, the fence waits for READs and atomics only: the rest is carried out
        // in order by the peer. The limit is what the peer agreed to answer at once; it answers one
        // more with an error (`serves_all_it_may`).
        outstanding > 0
            && (pending.work.fence || (pending.wants_response() && outstanding >= limit))
    }

    /// Fetches the next send, if its owner bit says that it is one.
    fn fetch(&mut self, core: &mut Core) -> bool {
        if !self.requester.fetching
            || self.state != QpState::RTS
            || self.requester.queue.len() >= FETCHED
        {
            return false;
        }
        let counter = self.requester.slot;
        let Some((bytes, slots)) = self.read_wqe(core, counter) else {
            self.requester.fetching = false;
            return false;
        };
        self.requester.slot = counter.wrapping_add(slots);
        let parsed = parse(self.service(), counter, &bytes);
        let (work, failed) = match parsed {
            Ok(work) => (work, None),
            Err(malformed) => (unparsed(counter), Some(syndrome_of(malformed))),
        };
        let packets = match work.task {
            Task::Send { .. } | Task::Write { .. } | Task::Read { .. } if failed.is_none() => {
                work.len.div_ceil(self.mtu()).max(1)
            }
            Task::Atomic { .. } => 1,
            _ => 0,
        };
        let first_psn = self.requester.next_psn;
        // A READ takes as many numbers as its response has packets: the responder numbers them from
        // the request's own on (Linux `rxe_resp.c`, `rxe_prepare_res`: `last_psn`).
        self.requester.next_psn = psn_plus(first_psn, packets);
        self.requester.queue.push_back(Pending {
            work,
            first_psn,
            packets,
            received: 0,
            done: false,
            failed,
        });
        true
    }

    /// Returns whether the send queue may be read before its doorbell: its slots are whole chunks,
    /// and the queue pair may send.
    fn may_read_ahead(&self) -> bool {
        let size = self.context.send_queue;
        self.state == QpState::RTS && u32::from(size.log_stride()) >= LOG_BASIC_BLOCK_LEN
    }

    /// Reads the send whose first slot is `counter`: its bytes and how many slots it takes. `None`
    /// while it is not the device's. Chunks that were read ahead are taken as they were then.
    fn read_wqe(&mut self, core: &Core, counter: u16) -> Option<(Vec<u8>, u16)> {
        let size = self.context.send_queue;
        let stride = 1_usize << size.log_stride();
        let slots = 1_usize << size.log_slots();
        let ring = self.send_ring();
        let at = |slot: usize| (slot % slots * stride) as u64;
        let first = usize::from(counter);
        let mut bytes = vec![0; stride.clamp(SEGMENT_UNIT, BASIC_BLOCK_LEN)];
        match self.requester.ahead.take(at(first)) {
            Some(chunk) => bytes.copy_from_slice(&chunk),
            None => core
                .memory
                .ring_read(Purpose::SendWqe, ring, at(first), &mut bytes)
                .ok()?,
        }
        let (control, _) = ControlSegment::read_from_prefix(&bytes).ok()?;
        // Software sets the bit last, to the pass (Linux `hw/mlx4/qp.c`, `mlx4_ib_post_send`).
        if control.owner.pass() != (first & slots != 0) {
            return None;
        }
        let len = usize::from(control.size.units()).max(1) * SEGMENT_UNIT;
        let taken = len.div_ceil(stride);
        let head = bytes.clone();
        bytes.resize(taken * stride, 0);
        if len > head.len() {
            for (slot, chunk) in (first..).zip(bytes.chunks_mut(stride)) {
                core.memory
                    .ring_read(Purpose::SendWqe, ring, at(slot), chunk)
                    .ok()?;
            }
        }
        bytes[..head.len()].copy_from_slice(&head);
        self.take_ahead(at(first), &mut bytes);
        bytes.truncate(len);
        Some((bytes, u16::try_from(taken).unwrap_or(1)))
    }

    /// Replaces the chunks behind a send's first by what was read of them ahead.
    fn take_ahead(&mut self, start: u64, bytes: &mut [u8]) {
        let places = (start..).step_by(BASIC_BLOCK_LEN);
        for (at, chunk) in places.zip(bytes.chunks_exact_mut(BASIC_BLOCK_LEN)).skip(1) {
            if let Some(ahead) = self.requester.ahead.take(at) {
                chunk.copy_from_slice(&ahead);
            }
        }
    }

    /// Does what needs no packet.
    fn do_locally(&mut self, core: &mut Core, index: usize) {
        let Some(pending) = self.requester.queue.get_mut(index) else {
            return;
        };
        let done = match &pending.work.task {
            Task::LocalInvalidate { key } => fast_register::invalidate(&core.memory, *key),
            Task::FastRegister(segment) => fast_register::register(&core.memory, segment),
            _ => true,
        };
        if !done {
            pending.failed = Some(Syndrome::LOCAL_QP_OP_ERR);
            return;
        }
        pending.done = true;
        self.requester.cursor = (index + 1, 0);
    }

    fn send_packet(&mut self, core: &mut Core, index: usize, packet: u32) {
        let mtu = self.mtu();
        let who = self.accessor();
        let Some(pending) = self.requester.queue.get(index) else {
            return;
        };
        let psn = psn_plus(pending.first_psn, packet);
        let last = packet + 1 == pending.packets;
        let operation = operation(pending, packet, mtu);
        let payload = if pending.wants_response() {
            Ok(Vec::new())
        } else {
            let offset = packet * mtu;
            let len = mtu.min(pending.work.len - offset);
            gather(&core.memory, who, &pending.work.pieces, offset, len)
        };
        let payload = match payload {
            Ok(payload) => payload,
            Err(error) => {
                log::debug!("QP {:#x}: send: {error}", self.qpn);
                self.requester.queue[index].failed = Some(Syndrome::LOCAL_PROT_ERR);
                return;
            }
        };
        // An acknowledgement covers everything before it, so one a message does, and one now and
        // then within a long one, lest all of it be sent again.
        let marks = Marks {
            solicited: last && pending.work.solicited,
            ack_request: last || self.wants_ack(packet),
            srqn: pending.work.srqn,
        };
        let whole = pending.wants_response() || last;
        let next = if pending.wants_response() {
            pending.end_psn()
        } else {
            psn_plus(psn, 1)
        };
        if psn_distance(next, self.requester.sent) > 0 {
            self.requester.sent = next;
        }
        self.requester.cursor = if whole {
            (index + 1, 0)
        } else {
            (index, packet + 1)
        };
        self.transmit(core, psn, operation, payload, marks);
        // Nobody acknowledges an unreliable connection: a packet is done when it has left.
        if self.service() == Service::UC {
            self.requester.oldest = self.requester.sent;
        }
        if self.requester.deadline.is_none() {
            self.restart_timeout(core.now);
        }
    }

    fn wants_ack(&self, packet: u32) -> bool {
        let every = 1_u32 << self.requester.parameters.log_ack_request();
        (packet + 1).is_multiple_of(every.min(WINDOW / 2))
    }

    fn restart_timeout(&mut self, now: Instant) {
        // One timer for the oldest packet, as each answer starts it anew (Linux `rxe_req.c`,
        // `rxe_requester`, `retrans_timer`). An exponent of 0 waits for ever (`ibv_modify_qp`'s
        // manual, `timeout`).
        let exponent = self.context.primary_path.ack_timeout.exponent();
        let waiting =
            psn_distance(self.requester.sent, self.requester.oldest) > 0 && self.is_reliable();
        self.requester.deadline = (waiting && exponent != 0).then(|| {
            // The hardware waits for two to four times what it was told.
            now + Duration::from_nanos(4096 << exponent) * 2
        });
    }

    /// Completes every send at the front that is done.
    fn complete_front(&mut self, core: &mut Core) {
        while let Some(front) = self.requester.queue.front() {
            // A failure makes an entry whether the request is signalled or not (Linux `rxe_comp.c`,
            // `do_complete`, quotes IBA 10.7.3.1). It waits for its turn: those before it may still
            // succeed.
            if let Some(syndrome) = front.failed {
                let counter = front.work.counter;
                self.requester.queue.pop_front();
                self.fail_send(core, counter, syndrome);
                return;
            }
            let sent = self.requester.cursor.0 > 0;
            let answered = if front.packets == 0 {
                front.done
            } else if front.wants_response() {
                front.received == front.packets
            } else {
                psn_distance(self.requester.oldest, front.end_psn()) >= 0
            };
            if !(sent && answered) {
                return;
            }
            if let Some(done) = self.requester.queue.pop_front() {
                self.requester.cursor.0 -= 1;
                if done.work.signalled {
                    self.complete_send(core, &done.work);
                }
            }
        }
    }

    fn complete_send(&self, core: &mut Core, work: &Work) {
        let mut cqe = Cqe::new_zeroed();
        cqe.qpn = Low24::new(self.qpn);
        cqe.byte_count = work.len.into();
        cqe.wqe_counter = work.counter.into();
        cqe.owner = CqeOwner::new()
            .with_send(true)
            .with_opcode(work.opcode.0 & 0x1f);
        core.complete(self.context.send_cqn.get(), cqe, false);
    }

    /// Ends the oldest send with an error. A datagram queue pair only stops sending, the others
    /// fail.
    fn fail_send(&mut self, core: &mut Core, counter: u16, syndrome: Syndrome) {
        log::debug!("QP {:#x}: send {counter:#x} ends with {syndrome}", self.qpn);
        self.complete_error(core, true, counter, syndrome);
        if matches!(self.service(), Service::UD | Service::MLX) {
            // A datagram's failure says nothing of other destinations: it goes on receiving, and
            // software lets it send again by SQERR2RTS (IBA 1.3, 10.3.1).
            self.state = QpState::SQER;
            self.flush_sends(core);
        } else {
            self.fail(core);
        }
    }

    fn fail_oldest(&mut self, core: &mut Core, syndrome: Syndrome) {
        if let Some(front) = self.requester.queue.front_mut() {
            front.failed = Some(syndrome);
            self.complete_front(core);
        }
    }

    /// Completes as flushed what was fetched and what is in the send queue.
    pub(crate) fn flush_sends(&mut self, core: &mut Core) {
        self.requester.deadline = None;
        self.requester.resume_at = None;
        let fetched: Vec<u16> = self
            .requester
            .queue
            .drain(..)
            .map(|pending| pending.work.counter)
            .collect();
        // Each fetched request gets an entry, in order, and then those of the ring that were not
        // fetched: software counts on one for every request that it posted.
        self.requester.cursor = (0, 0);
        for counter in fetched {
            self.complete_error(core, true, counter, Syndrome::WR_FLUSH_ERR);
        }
        let slots = 1_u32 << self.context.send_queue.log_slots();
        for _ in 0..slots {
            if !self.requester.fetching {
                break;
            }
            let counter = self.requester.slot;
            match self.read_wqe(core, counter) {
                Some((_, taken)) => {
                    self.requester.slot = counter.wrapping_add(taken);
                    self.complete_error(core, true, counter, Syndrome::WR_FLUSH_ERR);
                }
                None => self.requester.fetching = false,
            }
        }
    }

    /// Does what is due by now.
    pub(crate) fn tick(&mut self, core: &mut Core) {
        self.requester.timer = None;
        if self.requester.deadline.is_some_and(|at| at <= core.now) {
            self.requester.deadline = None;
            core.diagnostics.count(Diagnostics::TIMEOUTS);
            if self.requester.retries == 0 {
                self.fail_oldest(core, Syndrome::TRANSPORT_RETRY_EXC_ERR);
            } else {
                self.requester.retries -= 1;
                self.requester.gap = None;
                core.counters.retransmitted += 1;
                let oldest = self.requester.oldest;
                self.requester.seek(oldest);
            }
        }
        self.pump_or_queue(core);
    }

    /// Registers the queue pair's next deadline, unless one before it is registered already.
    fn set_timer(&mut self, core: &mut Core) {
        let due = [self.requester.deadline, self.requester.resume_at]
            .into_iter()
            .flatten()
            .min();
        let Some(due) = due else { return };
        if self.requester.timer.is_none_or(|set| due < set) {
            core.timers.insert((due, self.qpn));
            self.requester.timer = Some(due);
        }
    }

    fn report_if_drained(&mut self, core: &mut Core) {
        if self.report_drained && self.state == QpState::SQD && self.requester.is_idle() {
            self.report_drained = false;
            core.events
                .report_number(&core.memory, EventType::SQ_DRAINED, self.qpn);
        }
    }

    /// Sends the datagram at `index` of the queue; it is done with that.
    fn send_datagram(&mut self, core: &mut Core, index: usize) {
        let Some(pending) = self.requester.queue.get(index) else {
            return;
        };
        let work = pending.work.clone();
        if let Err(syndrome) = self.datagram(core, &work) {
            self.requester.queue[index].failed = Some(syndrome);
            return;
        }
        self.requester.queue[index].done = true;
        self.requester.cursor = (index + 1, 0);
    }
}

fn unparsed(counter: u16) -> Work {
    Work {
        counter,
        opcode: WqeOpcode::NOP,
        signalled: true,
        solicited: false,
        fence: false,
        srqn: None,
        task: Task::Nop,
        pieces: Vec::new(),
        len: 0,
    }
}

fn syndrome_of(malformed: Malformed) -> Syndrome {
    match malformed {
        Malformed::Operation => Syndrome::LOCAL_QP_OP_ERR,
        Malformed::Length => Syndrome::LOCAL_LENGTH_ERR,
    }
}
