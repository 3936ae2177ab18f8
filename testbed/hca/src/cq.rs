//! Completion queues: entries, overrun, arming, moderation, and time stamps.

use std::collections::{BTreeSet, HashMap};

use hal::{Duration, Instant};
use mlx4_hw::bits::Low24;
use mlx4_hw::cq::{
    CQ_STATE_ARMED, CQ_STATE_ARMED_SOLICITED, CQ_STATE_FIRED, CQE_INIT_BYTE, CQE_LEN,
    CQE_OPCODE_ERROR, CQE_OPCODE_RESIZE, CqContext, Cqe, CqeOwner,
};
use mlx4_hw::eq::{CqErrorEvent, Eqe, EventType, STATUS_OVERFLOW, STATUS_WRITE_FAIL};
use mlx4_hw::regs::{ARM_NEXT, ARM_SOLICITED, CqArm};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::eq::{EventQueues, fill_entries, write_entry};
use crate::memory::{AccessError, Memory, RingMemory};
use crate::registers::cycles;
use crate::trace::Purpose;

/// Armed state of a completion queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arm {
    None,
    Solicited,
    Next,
}

struct CompletionQueue {
    context: CqContext,
    ring: RingMemory,
    /// Entries written so far. It counts on beyond the ring's size: the bit above an index's is the
    /// pass.
    producer: u32,
    /// The consumer index as last read.
    consumer: u32,
    /// Producer index behind the last solicited completion.
    solicited: u32,
    arm: Arm,
    /// Overrun, or its memory could not be written: it takes nothing more until it is created anew.
    failed: bool,
    /// Bytes of an entry: 32, or 64 of which the upper half counts.
    entry_len: usize,
    /// Completions that an event is owed for, and when it is sent at the latest.
    owed: u16,
    owed_until: Option<Instant>,
    /// Events sent so far.
    events: u32,
}

/// Syndrome of a completion queue's error event: the queue overran.
const OVERRUN: u8 = 1;
const ACCESS_VIOLATION: u8 = 2;

impl CompletionQueue {
    fn new(context: CqContext, entry_len: usize) -> Self {
        Self {
            ring: ring_of(&context),
            producer: context.producer.get(),
            consumer: context.consumer.get(),
            solicited: context.producer.get(),
            arm: Arm::None,
            failed: false,
            entry_len,
            owed: 0,
            owed_until: None,
            events: 0,
            context,
        }
    }

    fn entries(&self) -> u32 {
        1 << self.context.size.log_size().min(24)
    }

    /// Returns the distance of an index from the consumer's. Both are 24 bits wide in registers and
    /// records.
    fn ahead_of(&self, index: u32, consumer: u32) -> u32 {
        Low24::new(index.wrapping_sub(consumer)).get()
    }

    /// Returns whether no entry is free. The doorbell record is read when the queue seems full:
    /// software updates it without a register access (Linux `mlx4/cq.h`, `mlx4_cq_set_ci`).
    fn is_full(&mut self, memory: &Memory) -> bool {
        if self.ahead_of(self.producer, self.consumer) < self.entries() {
            return false;
        }
        if let Ok(record) =
            memory.read_as::<Low24>(Purpose::DoorbellRecord, self.context.doorbell_record.get())
        {
            self.consumer = record.get();
        }
        self.ahead_of(self.producer, self.consumer) >= self.entries()
            && !self.context.flags.ignore_overrun()
    }

    fn write(&mut self, memory: &Memory, mut cqe: Cqe) -> Result<(), AccessError> {
        let entries = self.entries();
        // Software tells a new entry by this bit alone, against its own count of passes (Linux
        // `hw/mlx4/cq.c`, `get_sw_cqe`).
        cqe.owner.set_pass(self.producer & entries != 0);
        let at = entry_place(self.producer & (entries - 1), self.entry_len);
        write_entry(memory, Purpose::Cqe, self.ring, at, cqe.as_bytes())?;
        self.producer = self.producer.wrapping_add(1);
        Ok(())
    }

    /// Returns whether an event waits for more completions: moderation takes both numbers.
    fn is_moderated(&self) -> bool {
        self.context.period.get() != 0 && self.context.max_count.get() > 1
    }
}

/// Returns the place of an entry's 32 bytes that count.
fn entry_place(index: u32, entry_len: usize) -> u64 {
    (index as usize * entry_len + (entry_len - CQE_LEN)) as u64
}

fn ring_of(context: &CqContext) -> RingMemory {
    RingMemory {
        buffer: context.buffer,
        offset: u64::from(context.page_offset.get()),
    }
}

/// All completion queues of a card.
#[derive(Default)]
pub(crate) struct CompletionQueues {
    queues: HashMap<u32, CompletionQueue>,
    /// INIT_HCA asked for entries of 64 bytes.
    pub(crate) wide: bool,
    /// Arms are checked for their sequence number.
    pub(crate) checks_sequence: bool,
    /// Moderated events, by the time at which they are due.
    due: BTreeSet<(Instant, u32)>,
    /// Queues that failed since the last look; their queue pairs are to fail too.
    pub(crate) newly_failed: Vec<u32>,
}

impl CompletionQueues {
    /// Forgets every queue.
    pub(crate) fn reset(&mut self) {
        *self = Self {
            checks_sequence: self.checks_sequence,
            ..Self::default()
        };
    }

    pub(crate) fn contains(&self, cqn: u32) -> bool {
        self.queues.contains_key(&cqn)
    }

    /// Takes a queue over; `initialise` makes all its entries the device's.
    pub(crate) fn create(
        &mut self,
        memory: &Memory,
        cqn: u32,
        context: CqContext,
        initialise: bool,
    ) -> Result<(), AccessError> {
        let entry_len = if self.wide { 2 * CQE_LEN } else { CQE_LEN };
        let queue = CompletionQueue::new(context, entry_len);
        if initialise {
            fill_entries(
                memory,
                Purpose::Cqe,
                queue.ring,
                queue.entries(),
                &[CQE_INIT_BYTE; 2 * CQE_LEN][..entry_len],
            )?;
        }
        self.queues.insert(cqn, queue);
        Ok(())
    }

    /// Takes a queue back from the device (HW2SW_CQ); returns the context that software may ask
    /// for.
    pub(crate) fn destroy(&mut self, cqn: u32) -> Option<CqContext> {
        let context = self.query(cqn);
        self.queues.remove(&cqn);
        context
    }

    pub(crate) fn query(&self, cqn: u32) -> Option<CqContext> {
        let queue = self.queues.get(&cqn)?;
        let mut context = queue.context;
        context.producer = Low24::new(queue.producer);
        context.consumer = Low24::new(queue.consumer);
        context.solicited = Low24::new(queue.solicited);
        context.flags.set_state(match queue.arm {
            Arm::None => CQ_STATE_FIRED,
            Arm::Solicited => CQ_STATE_ARMED_SOLICITED,
            Arm::Next => CQ_STATE_ARMED,
        });
        Some(context)
    }

    /// Sets the moderation: an armed queue reports `max_count` completions by one event, or fewer
    /// after `period` microseconds.
    pub(crate) fn moderate(&mut self, cqn: u32, wanted: &CqContext) -> bool {
        let Some(queue) = self.queues.get_mut(&cqn) else {
            return false;
        };
        queue.context.period = wanted.period;
        queue.context.max_count = wanted.max_count;
        true
    }

    /// Moves a queue to another buffer: the old one ends with an entry that says so, which takes a
    /// producer index like every other. Software copies each entry before it to the place behind
    /// its own and goes on one further (rdma-core `providers/mlx4/cq.c`,
    /// `mlx4_cq_resize_copy_cqes`). False when the old size has no entry left for it, when the new
    /// one does not hold what is in the queue and this one, or when there is no such queue.
    pub(crate) fn resize(
        &mut self,
        memory: &Memory,
        cqn: u32,
        wanted: &CqContext,
    ) -> Result<bool, AccessError> {
        let Some(queue) = self.queues.get_mut(&cqn) else {
            return Ok(false);
        };
        queue.consumer = memory
            .read_as::<Low24>(Purpose::DoorbellRecord, queue.context.doorbell_record.get())?
            .get();
        let pending = queue.ahead_of(queue.producer, queue.consumer);
        let entries = 1_u32 << wanted.size.log_size().min(24);
        if pending >= entries.min(queue.entries()) {
            return Ok(false);
        }
        let mut last = Cqe::new_zeroed();
        last.owner = CqeOwner::new().with_opcode(CQE_OPCODE_RESIZE);
        queue.write(memory, last)?;
        queue.context.size = queue.context.size.with_log_size(wanted.size.log_size());
        queue.context.buffer = wanted.buffer;
        queue.context.page_offset = wanted.page_offset;
        queue.ring = ring_of(&queue.context);
        fill_for(memory, queue, entries)?;
        Ok(true)
    }

    /// Adds a completion.
    pub(crate) fn complete(
        &mut self,
        now: Instant,
        memory: &Memory,
        events: &mut EventQueues,
        cqn: u32,
        mut cqe: Cqe,
        solicited: bool,
    ) {
        let Some(queue) = self.queues.get_mut(&cqn).filter(|queue| !queue.failed) else {
            return;
        };
        if queue.context.flags.timestamps() && cqe.owner.opcode() != CQE_OPCODE_ERROR {
            cqe.set_timestamp(cycles(now));
        }
        let failure = if queue.is_full(memory) {
            Some((OVERRUN, STATUS_OVERFLOW))
        } else {
            queue
                .write(memory, cqe)
                .is_err()
                .then_some((ACCESS_VIOLATION, STATUS_WRITE_FAIL))
        };
        if let Some((syndrome, status)) = failure {
            log::warn!("CQ {cqn:#x} fails with syndrome {syndrome}");
            queue.failed = true;
            queue.context.flags.set_status(status);
            // The queue pairs fail after this call, when nobody holds one of them: see
            // `Hca::fail_with_queues`.
            self.newly_failed.push(cqn);
            let mut data = CqErrorEvent::new_zeroed();
            data.cqn = Low24::new(cqn);
            data.syndrome = syndrome;
            events.report(memory, EventType::CQ_ERROR, 0, zerocopy::transmute!(data));
            return;
        }
        if solicited {
            queue.solicited = queue.producer;
        }
        let fires = match queue.arm {
            Arm::None => false,
            Arm::Next => true,
            Arm::Solicited => solicited,
        };
        if !fires {
            return;
        }
        queue.owed = queue.owed.saturating_add(1);
        if !queue.is_moderated() || queue.owed >= queue.context.max_count.get() {
            notify(memory, events, queue, cqn);
        } else if queue.owed_until.is_none() {
            let due = now + Duration::from_micros(queue.context.period.get().into());
            queue.owed_until = Some(due);
            self.due.insert((due, cqn));
        }
    }

    /// Sends the events whose period is over.
    pub(crate) fn tick(&mut self, now: Instant, memory: &Memory, events: &mut EventQueues) {
        while let Some(&(due, cqn)) = self.due.first().filter(|(due, _)| *due <= now) {
            self.due.pop_first();
            // It may have been sent, or the queue be another one, since.
            if let Some(queue) = self.queues.get_mut(&cqn)
                && queue.owed_until == Some(due)
            {
                notify(memory, events, queue, cqn);
            }
        }
    }

    /// Returns the time at which the next moderated event is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Handles a CQ's doorbell from UAR page `uar`: arms it, or reports at once if there are
    /// entries beyond the consumer index already. Linux's Ethernet driver does not look again
    /// after arming (`mlx4/en_rx.c`, `mlx4_en_poll_rx_cq`).
    pub(crate) fn ring(
        &mut self,
        memory: &Memory,
        events: &mut EventQueues,
        uar: u32,
        arm: CqArm,
        consumer: u32,
    ) {
        let Some(queue) = self.queues.get_mut(&arm.cqn()) else {
            return;
        };
        // A doorbell works only from the page that the context names: that is what keeps one
        // process's from another's queues, as each has a page of its own (Linux `pd.c`,
        // `mlx4_uar_alloc`).
        if queue.context.size.uar() != uar {
            log::debug!("CQ {:#x} is not rung from UAR page {uar}", arm.cqn());
            return;
        }
        queue.consumer = consumer;
        // Software counts the events that it has seen from 1 on (Linux `mlx4/cq.c`,
        // `mlx4_cq_completion`). An arm of before the last event is too late.
        let sequence = u32::from(arm.sequence());
        if self.checks_sequence && sequence != queue.events.wrapping_add(1) % 4 {
            log::debug!("CQ {:#x}: an arm of before the last event", arm.cqn());
            return;
        }
        let (wait, newest) = match arm.command() {
            ARM_SOLICITED => (Arm::Solicited, queue.solicited),
            ARM_NEXT => (Arm::Next, queue.producer),
            _ => return,
        };
        // A distance of more than half the numbers is an index behind the consumer.
        let ahead = queue.ahead_of(newest, consumer);
        if ahead != 0 && ahead <= queue.entries() {
            notify(memory, events, queue, arm.cqn());
        } else {
            queue.arm = wait;
        }
    }
}

/// Sends the queue's event and disarms it. Entries that come before the next arm make none.
fn notify(memory: &Memory, events: &mut EventQueues, queue: &mut CompletionQueue, cqn: u32) {
    // An arm is for one event. The next takes a doorbell, with the next sequence number.
    queue.arm = Arm::None;
    queue.owed = 0;
    queue.owed_until = None;
    queue.events = queue.events.wrapping_add(1);
    queue.context.last_notified = Low24::new(queue.producer);
    let eqn = u32::from(queue.context.eqn.get());
    events.post(memory, eqn, EventType::COMPLETION, 0, Eqe::number_data(cqn));
}

/// Makes every entry of a queue the device's for a producer that stands at `producer`: those that
/// it comes to in this pass are owned as the pass before, the others as this one.
fn fill_for(memory: &Memory, queue: &CompletionQueue, entries: u32) -> Result<(), AccessError> {
    let pass = queue.producer & entries != 0;
    for entry in 0..entries {
        let mut cqe =
            Cqe::read_from_bytes(&[CQE_INIT_BYTE; CQE_LEN]).unwrap_or_else(|_| Cqe::new_zeroed());
        cqe.owner
            .set_pass(if entry >= queue.producer & (entries - 1) {
                !pass
            } else {
                pass
            });
        let at = entry_place(entry, queue.entry_len);
        memory.ring_write(Purpose::Cqe, queue.ring, at, cqe.as_bytes())?;
    }
    Ok(())
}
