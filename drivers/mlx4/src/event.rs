//! Event queues and what their entries mean.
//!
//! The async queue (vector 0) carries command completions, port changes, failures, and the
//! completion events of the driver's own management queue. Each further vector has a queue with the
//! completion events of its users' CQs.
//!
//! Nothing the card writes here is believed: an entry names a CQ or QP only by a number that is
//! looked up, and an unknown entry is a line in the log.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use hal::{DmaBuffer, Platform, Registers, fence};
use mlx4_hw::command::CmdStatus;
use mlx4_hw::eq::{EQE_LEN, EQE_OWNER_OFFSET, Eqe, EventType, PortChange};
use mlx4_hw::regs::{self, EqDoorbell};
use mutants::Mutant;
use spin::Mutex;
use verbs::{Cqn, DeviceEvent, Qpn};
use zerocopy::{FromZeros, IntoBytes};

use crate::report;

/// log2 of an event queue's entries.
pub(crate) const LOG_ENTRIES: u8 = 8;
const ENTRIES: u32 = 1 << LOG_ENTRIES;
/// Bytes of an event queue.
pub(crate) const QUEUE_LEN: usize = EQE_LEN << LOG_ENTRIES;
/// Entries after which the consumer index is published even while events are handled: without it
/// the card takes the queue for overrun (Linux `mlx4/eq.c`, `mlx4_eq_int`, `MLX4_NUM_SPARE_EQE`).
const CONSUME_AT_ONCE: u32 = ENTRIES / 4;
/// Events kept for the user: more than there are queues that could fail.
const KEPT_EVENTS: usize = 4096;

/// The event types that go to the async queue.
pub(crate) fn async_mask(port_management: bool) -> u64 {
    let mut mask = [
        EventType::PATH_MIGRATED,
        EventType::COMMUNICATION_ESTABLISHED,
        EventType::SQ_DRAINED,
        EventType::CQ_ERROR,
        EventType::WQ_CATASTROPHIC,
        EventType::QPC_CATASTROPHIC,
        EventType::PATH_MIGRATION_FAILED,
        EventType::LOCAL_CATASTROPHIC,
        EventType::PORT_CHANGE,
        EventType::COMMAND,
        EventType::ECC_DETECT,
        EventType::WQ_INVALID_REQUEST,
        EventType::WQ_ACCESS_VIOLATION,
        EventType::SRQ_CATASTROPHIC,
        EventType::SRQ_LAST_WQE,
        EventType::SRQ_LIMIT,
        EventType::FATAL_WARNING,
    ]
    .iter()
    .fold(0, |mask, event| mask | event.mask());
    if port_management {
        mask |= EventType::PORT_MANAGEMENT_CHANGE.mask();
    }
    mask
}

/// The consumer's side of an event queue. Only the consumer index goes to the card, and it is never
/// read back.
pub(crate) struct EventQueue<P: Platform> {
    eqn: u32,
    buffer: Arc<P::Buffer>,
    uar: Arc<P::Bar>,
    /// Entries taken. It counts on beyond the ring's size: the parity of the pass is in it.
    consumer: u32,
}

impl<P: Platform> EventQueue<P> {
    /// A queue over zeroed memory of [`QUEUE_LEN`] bytes.
    pub(crate) fn new(eqn: u32, buffer: Arc<P::Buffer>, uar: Arc<P::Bar>) -> Self {
        // An entry is the driver's when its owner bit equals the parity of the pass, 0 at first
        // (Linux `mlx4/eq.c`, `next_eqe_sw`).
        for entry in 0..ENTRIES as usize {
            buffer.fill(entry * EQE_LEN + EQE_OWNER_OFFSET, 1, 0x80);
        }
        Self {
            eqn,
            buffer,
            uar,
            consumer: 0,
        }
    }

    pub(crate) fn eqn(&self) -> u32 {
        self.eqn
    }

    fn next(&mut self) -> Option<Eqe> {
        let at = (self.consumer % ENTRIES) as usize * EQE_LEN;
        let mut owner = [0];
        self.buffer.read(at + EQE_OWNER_OFFSET, &mut owner);
        let pass = self.consumer / ENTRIES % 2 == 1;
        if mlx4_hw::eq::EqeOwner::from(owner[0]).pass() != pass {
            return None;
        }
        // The owner byte before the rest of the entry (Linux `mlx4/eq.c`, `mlx4_eq_int`).
        fence::observe();
        let mut entry = Eqe::new_zeroed();
        self.buffer.read(at, entry.as_mut_bytes());
        self.consumer = self.consumer.wrapping_add(1);
        Some(entry)
    }

    /// Publishes the consumer index, and requests an interrupt for the next event if `arm`.
    pub(crate) fn ring(&self, arm: bool) {
        let value = EqDoorbell::new()
            .with_arm(arm)
            .with_consumer(self.consumer & mlx4_hw::bits::Low24::MAX);
        // One register an EQ, written whole: consumer index and arm bit can't be torn. No fence is
        // needed before it: the entries were read, not written, and a later load can at worst find
        // one entry more, for which the card then interrupts at once (Linux `mlx4/eq.c`,
        // `eq_set_ci`, has its barrier behind the store).
        self.uar
            .write_u32(regs::eq_doorbell(self.eqn), regs::swap(value.into()));
    }
}

/// State that the event side and the polling side of a CQ share.
#[derive(Debug, Default)]
pub(crate) struct CqState {
    /// Completion events so far: the doorbell's sequence.
    pub(crate) events: AtomicU32,
    /// The CQ failed.
    pub(crate) failed: AtomicBool,
}

/// Keeps an event for the user. Duplicates are dropped, so there are at most as many as ports and
/// queues. If a card reports more, all are replaced by the device's failure, and this is false.
fn keep(kept: &mut VecDeque<DeviceEvent>, event: DeviceEvent) -> bool {
    if kept.contains(&event) {
        return true;
    }
    let has_room = kept.len() < KEPT_EVENTS;
    if !has_room {
        kept.clear();
    }
    kept.push_back(if has_room {
        event
    } else {
        DeviceEvent::DeviceFailed
    });
    has_room
}

/// All event queues of the card.
pub(crate) struct Events<P: Platform> {
    async_queue: Mutex<EventQueue<P>>,
    completion_queues: Vec<Mutex<EventQueue<P>>>,
    vectors: Vec<P::Vector>,
    /// By CQN, as the card names them.
    cqs: Mutex<BTreeMap<u32, Arc<CqState>>>,
    /// Token, status and output of the command that ended last: one is outstanding at a time.
    command: Mutex<Option<(u16, CmdStatus, u64)>>,
    kept: Mutex<VecDeque<DeviceEvent>>,
    failed: AtomicBool,
    /// No interrupt comes: the queues are looked at in intervals.
    polled: AtomicBool,
}

impl<P: Platform> Events<P> {
    pub(crate) fn new(
        async_queue: EventQueue<P>,
        completion_queues: Vec<EventQueue<P>>,
        vectors: Vec<P::Vector>,
    ) -> Self {
        Self {
            async_queue: Mutex::new(async_queue),
            completion_queues: completion_queues.into_iter().map(Mutex::new).collect(),
            vectors,
            cqs: Mutex::default(),
            command: Mutex::default(),
            kept: Mutex::default(),
            failed: AtomicBool::new(false),
            polled: AtomicBool::new(false),
        }
    }

    /// Gives interrupts up: whoever waits for one looks at intervals.
    pub(crate) fn poll(&self) {
        self.polled.store(true, Ordering::Release);
    }

    /// Returns whether interrupts were given up.
    pub(crate) fn is_polled(&self) -> bool {
        self.polled.load(Ordering::Acquire)
    }

    /// Arms every queue.
    pub(crate) fn arm_all(&self) {
        self.async_queue.lock().ring(true);
        for queue in &self.completion_queues {
            queue.lock().ring(true);
        }
    }

    /// The EQN behind an interrupt vector, 0 being the async queue's.
    pub(crate) fn eqn(&self, vector: usize) -> Option<u32> {
        if vector == 0 {
            return Some(self.async_queue.lock().eqn());
        }
        Some(self.completion_queues.get(vector - 1)?.lock().eqn())
    }

    pub(crate) fn vector(&self, vector: usize) -> Option<&P::Vector> {
        self.vectors.get(vector)
    }

    pub(crate) fn add_cq(&self, cqn: u32, state: Arc<CqState>) {
        self.cqs.lock().insert(cqn, state);
    }

    pub(crate) fn remove_cq(&self, cqn: u32) {
        self.cqs.lock().remove(&cqn);
    }

    /// Returns whether the card reported its own failure.
    pub(crate) fn device_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Reports the card's failure to the user, once.
    pub(crate) fn fail(&self) {
        if !self.failed.swap(true, Ordering::AcqRel) {
            self.keep(DeviceEvent::DeviceFailed);
        }
    }

    pub(crate) fn take_event(&self) -> Option<DeviceEvent> {
        self.kept.lock().pop_front()
    }

    /// Returns status and output of the command with this token, if its end was reported.
    pub(crate) fn take_command(&self, token: u16) -> Option<(CmdStatus, u64)> {
        // Whoever waits for a command takes events itself: the service task may be the one that
        // waits.
        self.drain(0);
        let (reported, status, value) = self.command.lock().take()?;
        // The end of an abandoned command is dropped (Linux `mlx4/cmd.c`, `mlx4_cmd_event`).
        (reported == token).then_some((status, value))
    }

    /// Handles all events of a vector's queue, arms it again, and returns their number.
    pub(crate) fn drain(&self, vector: usize) -> u32 {
        let queue = match vector.checked_sub(1) {
            None => &self.async_queue,
            Some(index) => match self.completion_queues.get(index) {
                Some(queue) => queue,
                None => return 0,
            },
        };
        let mut queue = queue.lock();
        let mut taken = 0;
        // Bounded by the queue's size, whatever the card writes.
        while taken < ENTRIES {
            let Some(entry) = queue.next() else { break };
            self.dispatch(&entry);
            taken += 1;
            if taken % CONSUME_AT_ONCE == 0 {
                queue.ring(false);
            }
        }
        // An empty queue is still armed.
        if taken > 0 && !Mutant::EventQueueNotArmed.on() {
            queue.ring(true);
        }
        taken
    }

    fn dispatch(&self, entry: &Eqe) {
        if !matches!(entry.event, EventType::COMPLETION | EventType::COMMAND) {
            report::event(entry.event, entry.as_bytes());
        }
        match entry.event {
            EventType::COMPLETION => self.completion(entry.number()),
            EventType::COMMAND => {
                let end = entry.command();
                *self.command.lock() = Some((end.token.get(), end.status, end.out_param.get()));
            }
            EventType::PORT_CHANGE => {
                let port = entry.port().port.get();
                let state = match entry.subtype {
                    PortChange::ACTIVE => "active",
                    PortChange::DOWN => "down",
                    _ => "in an unknown state",
                };
                log::info!("port {port} is {state}");
                self.keep(DeviceEvent::PortChanged { port });
            }
            EventType::PORT_MANAGEMENT_CHANGE => {
                let change = entry.port_management();
                log::info!("port {} changed: {:?}", change.port, change.changed);
                self.keep(DeviceEvent::PortChanged { port: change.port });
            }
            EventType::CQ_ERROR => self.cq_error(entry),
            EventType::WQ_CATASTROPHIC
            | EventType::QPC_CATASTROPHIC
            | EventType::WQ_INVALID_REQUEST
            | EventType::WQ_ACCESS_VIOLATION => {
                let qpn = Qpn(entry.number());
                log::error!("{}: {qpn}", entry.event);
                self.keep(DeviceEvent::QpFailed { qpn });
            }
            EventType::LOCAL_CATASTROPHIC | EventType::EQ_OVERFLOW => {
                log::error!("{}: the card failed", entry.event);
                self.fail();
            }
            EventType::COMMUNICATION_ESTABLISHED | EventType::SQ_DRAINED => {
                log::debug!("{}: {}", entry.event, Qpn(entry.number()));
            }
            _ => log::warn!("unexpected event {entry:?}"),
        }
    }

    fn completion(&self, cqn: u32) {
        match self.cqs.lock().get(&cqn) {
            Some(cq) => {
                // The next arm's sequence number follows it. An arm with the old number would be
                // ignored (Linux `mlx4/cq.c`, `mlx4_cq_completion`, advances `arm_sn` before it
                // tells the user).
                cq.events.fetch_add(1, Ordering::AcqRel);
            }
            None => log::warn!("a completion event for {}, which does not exist", Cqn(cqn)),
        }
    }

    fn cq_error(&self, entry: &Eqe) {
        let error = entry.cq_error();
        let cqn = error.cqn.get();
        let cause = match error.syndrome {
            1 => "overrun",
            2 => "access violation",
            _ => "unknown cause",
        };
        log::error!("{} failed: {cause} ({:#x})", Cqn(cqn), error.syndrome);
        match self.cqs.lock().get(&cqn) {
            Some(cq) => cq.failed.store(true, Ordering::Release),
            None => log::warn!("{} does not exist", Cqn(cqn)),
        }
        self.keep(DeviceEvent::CqFailed { cqn: Cqn(cqn) });
    }

    fn keep(&self, event: DeviceEvent) {
        if !keep(&mut self.kept.lock(), event) {
            log::error!("the card reports more than it can have");
            self.failed.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_comes_again_is_kept_once_and_pushes_none_out() {
        let mut kept = VecDeque::new();
        let failed = |qpn| DeviceEvent::QpFailed { qpn: Qpn(qpn) };
        for round in 0..10_000 {
            assert!(keep(&mut kept, DeviceEvent::PortChanged { port: 1 }));
            assert!(keep(&mut kept, failed(round % 1024)));
        }
        assert_eq!(kept.len(), 1025);
        assert_eq!(kept[0], DeviceEvent::PortChanged { port: 1 });
    }

    #[test]
    fn a_card_that_names_more_than_there_is_has_failed() {
        let mut kept = VecDeque::new();
        let most = u32::try_from(KEPT_EVENTS).unwrap();
        let mut all =
            (0..=most).map(|qpn| keep(&mut kept, DeviceEvent::QpFailed { qpn: Qpn(qpn) }));
        assert!(all.by_ref().take(KEPT_EVENTS).all(|known| known));
        assert_eq!(all.next(), Some(false));
        assert_eq!(kept, [DeviceEvent::DeviceFailed]);
    }
}
