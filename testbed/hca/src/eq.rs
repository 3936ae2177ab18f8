//! Event queues: entries, interrupts, and which queue an event goes to.

use std::collections::BTreeMap;

use mlx4_hw::bits::Low24;
use mlx4_hw::eq::{
    EQ_STATE_ALWAYS_ARMED, EQ_STATE_ARMED, EQ_STATE_FIRED, EQE_LEN, EqContext, Eqe, EventType,
    STATUS_OVERFLOW, STATUS_WRITE_FAIL,
};
use mlx4_hw::regs::EqDoorbell;
use zerocopy::IntoBytes;

use crate::memory::{AccessError, Memory, RingMemory};
use crate::trace::Purpose;

const PAGE_LEN: usize = 4096;

struct EventQueue {
    context: EqContext,
    ring: RingMemory,
    /// Entries written so far; the bit above an index's is the pass.
    producer: u32,
    /// The consumer index of the last doorbell.
    consumer: u32,
    /// The next event interrupts.
    armed: bool,
    failed: bool,
    /// Bytes of an entry: 32, or 64 of which the upper half counts.
    entry_len: usize,
}

impl EventQueue {
    fn entries(&self) -> u32 {
        1 << self.context.log_size.get().min(24)
    }

    /// Returns how many entries software has not told that it read.
    fn pending(&self) -> u32 {
        Low24::new(self.producer.wrapping_sub(self.consumer)).get()
    }
}

/// All event queues of a card.
#[derive(Default)]
pub(crate) struct EventQueues {
    /// INIT_HCA asked for entries of 64 bytes.
    pub(crate) wide: bool,
    queues: BTreeMap<u32, EventQueue>,
    /// For each event type below 64 the queue that MAP_EQ named.
    routes: BTreeMap<u8, u32>,
    /// Interrupts sent.
    pub(crate) interrupts: u64,
}

impl EventQueues {
    /// Forgets every queue.
    pub(crate) fn reset(&mut self) {
        self.queues.clear();
        self.routes.clear();
        self.wide = false;
    }

    pub(crate) fn contains(&self, eqn: u32) -> bool {
        self.queues.contains_key(&eqn)
    }

    /// Takes a queue over: all its entries become the device's.
    pub(crate) fn create(
        &mut self,
        memory: &Memory,
        eqn: u32,
        context: EqContext,
    ) -> Result<(), AccessError> {
        let ring = RingMemory {
            buffer: context.buffer,
            offset: u64::from(context.page_offset.get()),
        };
        let entry_len = if self.wide { 2 * EQE_LEN } else { EQE_LEN };
        let queue = EventQueue {
            ring,
            entry_len,
            producer: context.producer.get(),
            consumer: context.consumer.get(),
            armed: matches!(
                context.flags.state(),
                EQ_STATE_ARMED | EQ_STATE_ALWAYS_ARMED
            ),
            failed: false,
            context,
        };
        let fresh = Eqe::new(EventType::COMPLETION, 0, [0; 24], true);
        let fresh = fresh.as_bytes().repeat(2);
        fill_entries(
            memory,
            Purpose::Eqe,
            ring,
            queue.entries(),
            &fresh[..entry_len],
        )?;
        self.queues.insert(eqn, queue);
        Ok(())
    }

    pub(crate) fn destroy(&mut self, eqn: u32) -> Option<EqContext> {
        let context = self.query(eqn);
        self.queues.remove(&eqn);
        self.routes.retain(|_, route| *route != eqn);
        context
    }

    pub(crate) fn query(&self, eqn: u32) -> Option<EqContext> {
        let queue = self.queues.get(&eqn)?;
        let mut context = queue.context;
        context.producer = Low24::new(queue.producer);
        context.consumer = Low24::new(queue.consumer);
        if context.flags.state() != EQ_STATE_ALWAYS_ARMED {
            context.flags.set_state(if queue.armed {
                EQ_STATE_ARMED
            } else {
                EQ_STATE_FIRED
            });
        }
        Some(context)
    }

    /// Routes the event types in `mask` to a queue, or takes those routes away.
    pub(crate) fn map(&mut self, eqn: u32, mask: u64, unmap: bool) {
        for event in (0_u8..64).filter(|event| EventType(*event).mask() & mask != 0) {
            if !unmap {
                self.routes.insert(event, eqn);
            } else if self.routes.get(&event) == Some(&eqn) {
                self.routes.remove(&event);
            }
        }
    }

    /// Reports an event to the queue that takes its type; without one it is lost.
    pub(crate) fn report(
        &mut self,
        memory: &Memory,
        event: EventType,
        subtype: u8,
        data: [u8; 24],
    ) {
        match self.routes.get(&event.0) {
            Some(eqn) => self.post(memory, *eqn, event, subtype, data),
            None => log::debug!("no EQ takes event {event}"),
        }
    }

    /// Reports an event that is about a numbered object.
    pub(crate) fn report_number(&mut self, memory: &Memory, event: EventType, number: u32) {
        self.report(memory, event, 0, Eqe::number_data(number));
    }

    /// Writes an entry into a queue, and raises its interrupt if it is armed.
    pub(crate) fn post(
        &mut self,
        memory: &Memory,
        eqn: u32,
        event: EventType,
        subtype: u8,
        data: [u8; 24],
    ) {
        let Some(queue) = self.queues.get_mut(&eqn).filter(|queue| !queue.failed) else {
            log::debug!("event {event} for EQ {eqn}, which is not there or failed");
            return;
        };
        let entries = queue.entries();
        if queue.pending() >= entries && !queue.context.flags.ignore_overrun() {
            log::warn!("EQ {eqn} overflows at event {event}");
            // Nothing more is written: the entries that software has not read stay as they are.
            queue.failed = true;
            queue.context.flags.set_status(STATUS_OVERFLOW);
            if event != EventType::EQ_OVERFLOW {
                self.report_number(memory, EventType::EQ_OVERFLOW, eqn);
            }
            return;
        }
        // The consumer index comes by doorbell only, so a queue of which nobody tells fills up even
        // if it is read (Linux `mlx4/eq.c`, `mlx4_eq_int`, tells it every `MLX4_NUM_SPARE_EQE`
        // entries).
        let pass = queue.producer & entries != 0;
        let index = (queue.producer & (entries - 1)) as usize;
        let at = (index * queue.entry_len + (queue.entry_len - EQE_LEN)) as u64;
        let eqe = Eqe::new(event, subtype, data, pass);
        if let Err(error) = write_entry(memory, Purpose::Eqe, queue.ring, at, eqe.as_bytes()) {
            log::warn!("EQ {eqn}: {error}");
            queue.failed = true;
            queue.context.flags.set_status(STATUS_WRITE_FAIL);
            return;
        }
        queue.producer = queue.producer.wrapping_add(1);
        // An interrupt disarms the queue: software handles what there is and arms it again by the
        // doorbell (Linux `mlx4/eq.c`, `mlx4_eq_int`, `eq_set_ci`).
        if queue.armed {
            queue.armed = queue.context.flags.state() == EQ_STATE_ALWAYS_ARMED;
            self.interrupts += 1;
            memory.raise(queue.context.vector.get() & 0x1ff);
        }
    }

    /// Handles an EQ's doorbell: the consumer index, and whether to arm.
    ///
    /// Entries behind the consumer index interrupt at once, since Linux does not look again after
    /// arming (`mlx4/eq.c`, `mlx4_eq_int`): else an event between the two would be lost.
    pub(crate) fn ring(&mut self, memory: &Memory, eqn: u32, doorbell: EqDoorbell) {
        let Some(queue) = self.queues.get_mut(&eqn) else {
            return;
        };
        queue.consumer = doorbell.consumer();
        if !doorbell.arm() {
            return;
        }
        if queue.pending() != 0 {
            queue.armed = false;
            self.interrupts += 1;
            memory.raise(queue.context.vector.get() & 0x1ff);
        } else {
            queue.armed = true;
        }
    }
}

/// Writes the same entry all over a queue, a page at a time.
pub(crate) fn fill_entries(
    memory: &Memory,
    purpose: Purpose,
    ring: RingMemory,
    count: u32,
    entry: &[u8],
) -> Result<(), AccessError> {
    let total = u64::from(count) * entry.len() as u64;
    let page = entry.repeat(PAGE_LEN / entry.len());
    for at in (0..total).step_by(PAGE_LEN) {
        let len = usize::try_from(total - at)
            .unwrap_or(PAGE_LEN)
            .min(PAGE_LEN);
        memory.ring_write(purpose, ring, at, &page[..len])?;
    }
    Ok(())
}

/// Writes an entry of a CQ or EQ, its last word with the owner bit last: software reads the rest as
/// soon as that bit is right (Linux `hw/mlx4/cq.c`, `mlx4_ib_poll_one`; `mlx4/eq.c`,
/// `mlx4_eq_int`).
pub(crate) fn write_entry(
    memory: &Memory,
    purpose: Purpose,
    ring: RingMemory,
    at: u64,
    bytes: &[u8],
) -> Result<(), AccessError> {
    let (body, owner) = bytes.split_at(bytes.len() - 8);
    memory.ring_write(purpose, ring, at, body)?;
    memory.ring_write(purpose, ring, at + body.len() as u64, owner)
}
