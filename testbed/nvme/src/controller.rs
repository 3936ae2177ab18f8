//! Registers and queues.

use std::collections::BTreeMap;
use std::sync::Arc;

use hal::{Duration, Instant};
use hca_model::Host;
use nvme_hw::{
    AdminQueueAttributes, Cap, Command, Completion, ControllerConfig, ControllerStatus, Status,
    command, completion, regs,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::Medium;
use crate::config_space::ConfigSpace;
use crate::facts::ControllerFacts;
use crate::rng::Rng;

/// The time that a late command takes.
pub(crate) const LATE: Duration = Duration::from_secs(100);

/// A submission queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Submission {
    pub(crate) memory: u64,
    pub(crate) entries: u16,
    pub(crate) head: u16,
    pub(crate) tail: u16,
}

/// A completion queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CompletionQueue {
    pub(crate) memory: u64,
    pub(crate) entries: u16,
    /// The entry that the host reads next.
    pub(crate) head: u16,
    pub(crate) tail: u16,
    pub(crate) phase: bool,
    pub(crate) interrupts: bool,
}

/// A command that was fetched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) due: Instant,
    pub(crate) queue: u16,
    pub(crate) command: Command,
}

/// A controller with one namespace.
pub struct Controller {
    pub(crate) facts: ControllerFacts,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) space: ConfigSpace,
    pub(crate) medium: Medium,
    pub(crate) rng: Rng,
    config: ControllerConfig,
    status: ControllerStatus,
    /// The time at which the status is as the configuration says.
    settles: Option<Instant>,
    admin: AdminQueueAttributes,
    bases: [u64; 2],
    pub(crate) submissions: BTreeMap<u16, Submission>,
    pub(crate) completions: BTreeMap<u16, CompletionQueue>,
    pub(crate) work: Vec<Work>,
    violations: Vec<String>,
    pub(crate) commands: u64,
    /// The size of a block that it told: another than the medium's if the data was spoiled.
    pub(crate) told_block_shift: u8,
    gone: bool,
    dead: bool,
    pub(crate) starts: u64,
}

impl Controller {
    /// Creates a controller that is stopped.
    #[must_use]
    pub fn new(facts: ControllerFacts, host: Arc<dyn Host>) -> Self {
        Self {
            space: ConfigSpace::new(facts.msix),
            medium: Medium::new(facts.blocks, 1 << facts.block_shift),
            rng: Rng(facts.seed),
            host,
            config: ControllerConfig::new(),
            status: ControllerStatus::new(),
            settles: None,
            admin: AdminQueueAttributes::new(),
            bases: [0; 2],
            submissions: BTreeMap::new(),
            completions: BTreeMap::new(),
            work: Vec::new(),
            violations: Vec::new(),
            commands: 0,
            told_block_shift: facts.block_shift,
            gone: false,
            dead: false,
            starts: 0,
            facts,
        }
    }

    /// Returns what the driver did against the rules.
    #[must_use]
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// Returns the content.
    #[must_use]
    pub fn medium(&self) -> &Medium {
        &self.medium
    }

    /// Returns how often it was started.
    #[must_use]
    pub fn starts(&self) -> u64 {
        self.starts
    }

    /// Returns the number of commands that it fetched.
    #[must_use]
    pub fn commands(&self) -> u64 {
        self.commands
    }

    /// Pulls the controller out.
    pub fn unplug(&mut self) {
        self.gone = true;
        self.stop();
    }

    pub(crate) fn violation(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }

    fn cap(&self) -> u64 {
        Cap::new()
            .with_max_queue_entries(self.facts.max_queue_entries)
            .with_contiguous(true)
            .with_timeout(self.facts.timeout)
            .with_stride(self.facts.stride)
            .with_command_sets(1)
            .with_max_page(4)
            .into()
    }

    /// Loads a dword of the registers.
    pub fn read(&mut self, offset: usize, now: Instant) -> u32 {
        self.settle(now);
        if self.gone {
            return regs::GONE;
        }
        let [a, b, c, d, e, f, g, h] = self.cap().to_le_bytes();
        let (low, high) = ([a, b, c, d], [e, f, g, h]);
        match offset {
            regs::CAP => u32::from_le_bytes(low),
            0x04 => u32::from_le_bytes(high),
            regs::VS => 0x0001_0400,
            regs::CC => self.config.into(),
            regs::CSTS => self.status.into(),
            regs::AQA => self.admin.into(),
            _ => 0,
        }
    }

    /// Stores a dword of the registers.
    pub fn write(&mut self, offset: usize, value: u32, now: Instant) {
        self.settle(now);
        if self.gone || self.dead {
            return;
        }
        let half = |old: u64, high: bool| {
            if high {
                old & 0xffff_ffff | u64::from(value) << 32
            } else {
                old & !0xffff_ffff | u64::from(value)
            }
        };
        match offset {
            regs::CC => self.configure(value.into(), now),
            regs::AQA => self.admin = value.into(),
            regs::ASQ => self.bases[0] = half(self.bases[0], false),
            0x2c => self.bases[0] = half(self.bases[0], true),
            regs::ACQ => self.bases[1] = half(self.bases[1], false),
            0x34 => self.bases[1] = half(self.bases[1], true),
            regs::DOORBELLS.. => self.ring(offset, value, now),
            _ => self.violation(format!("a store at {offset:#x}")),
        }
    }

    fn configure(&mut self, config: ControllerConfig, now: Instant) {
        let was = self.config.enable();
        self.config = config;
        if was == config.enable() {
            return;
        }
        self.settles = Some(now + self.facts.start);
        if !config.enable() {
            self.stop();
            return;
        }
        self.starts += 1;
        let sizes = (config.submission_entry(), config.completion_entry());
        if sizes != (command::LEN_SHIFT, completion::LEN_SHIFT) || config.page() != 0 {
            self.violation(format!("started as {config:?}"));
        }
        let [submission, completion] = self.bases;
        if (submission | completion) & 0xfff != 0 || submission == 0 || completion == 0 {
            self.violation("admin queues at no pages");
        }
        let queue = self.admin.submission() + 1;
        self.add_submission(0, submission, queue);
        self.add_completion(0, completion, self.admin.completion() + 1, true);
    }

    pub(crate) fn add_submission(&mut self, number: u16, memory: u64, entries: u16) {
        let queue = Submission {
            memory,
            entries,
            head: 0,
            tail: 0,
        };
        self.submissions.insert(number, queue);
    }

    pub(crate) fn add_completion(
        &mut self,
        number: u16,
        memory: u64,
        entries: u16,
        interrupts: bool,
    ) {
        let queue = CompletionQueue {
            memory,
            entries,
            head: 0,
            tail: 0,
            phase: true,
            interrupts,
        };
        self.completions.insert(number, queue);
    }

    fn stop(&mut self) {
        self.submissions.clear();
        self.completions.clear();
        self.work.clear();
    }

    fn settle(&mut self, now: Instant) {
        if self.dead || self.settles.is_none_or(|at| at > now) {
            return;
        }
        self.settles = None;
        self.status = ControllerStatus::new().with_ready(self.config.enable());
    }

    fn ring(&mut self, offset: usize, value: u32, now: Instant) {
        let index = (offset - regs::DOORBELLS) / (4 << self.facts.stride);
        let number = u16::try_from(index / 2).unwrap_or(u16::MAX);
        let value = u16::try_from(value).unwrap_or(u16::MAX);
        if !self.status.ready() {
            return self.violation("a doorbell of a controller that is not ready");
        }
        if index % 2 == 1 {
            let Some(queue) = self.completions.get_mut(&number) else {
                return self.violation(format!("completion doorbell {number}"));
            };
            let waiting = (queue.tail + queue.entries - queue.head) % queue.entries;
            let taken =
                (value.wrapping_sub(queue.head).wrapping_add(queue.entries)) % queue.entries;
            if value >= queue.entries || taken > waiting {
                return self.violation(format!("completion head {value} of queue {number}"));
            }
            queue.head = value;
            return;
        }
        let Some(queue) = self.submissions.get_mut(&number) else {
            return self.violation(format!("submission doorbell {number}"));
        };
        if value >= queue.entries {
            return self.violation(format!("submission tail {value} of queue {number}"));
        }
        queue.tail = value;
        self.fetch(number, now);
    }

    fn fetch(&mut self, number: u16, now: Instant) {
        while let Some(queue) = self.submissions.get_mut(&number) {
            if queue.head == queue.tail {
                return;
            }
            let at = queue.memory + u64::from(queue.head) * command::LEN as u64;
            queue.head = (queue.head + 1) % queue.entries;
            let mut bytes = [0; command::LEN];
            if !self.dma_read(at, &mut bytes) {
                return;
            }
            let command = Command::read_from_bytes(&bytes).expect("as long");
            self.commands += 1;
            let same = |work: &Work| (work.queue, work.command.id) == (number, command.id);
            if self.work.iter().any(same) {
                self.violation(format!("command {:#x} is in use", command.id.get()));
            }
            self.begin(number, command, now);
        }
    }

    /// Takes a command, or fails by it.
    fn begin(&mut self, queue: u16, command: Command, now: Instant) {
        let faults = self.facts.faults.clone();
        let faulty = self.commands > faults.after;
        if faulty && self.rng.happens(faults.fatal) {
            self.status.set_fatal(true);
            self.work.clear();
            return;
        }
        if faulty && self.rng.happens(faults.unplug) {
            return self.unplug();
        }
        if faulty && self.rng.happens(faults.dead) {
            self.dead = true;
            self.stop();
            return;
        }
        if self.status.fatal() {
            return;
        }
        let late = queue != 0 && faulty && self.rng.happens(faults.late);
        let nanos = u64::try_from(self.facts.latency.as_nanos()).unwrap_or(0);
        let latency = Duration::from_nanos(1 + self.rng.below(nanos));
        let due = now + if late { LATE } else { latency };
        self.work.push(Work {
            due,
            queue,
            command,
        });
    }

    /// Does what is due; returns when there is more.
    pub fn poll(&mut self, now: Instant) -> Option<Instant> {
        self.settle(now);
        loop {
            let due = |work: &Work| work.due <= now && self.has_room(work.queue);
            // In the order of their times, which is not the order of submission.
            let next = (0..self.work.len())
                .filter(|&index| due(&self.work[index]))
                .min_by_key(|&index| self.work[index].due);
            let Some(index) = next else {
                break;
            };
            let work = self.work.swap_remove(index);
            let (status, result) = self.execute(&work.command, work.queue);
            self.complete(work.queue, work.command.id.get(), status, result);
        }
        let times = self.work.iter().map(|work| work.due);
        let times = times.filter(|due| *due > now);
        times.chain(self.settles).min()
    }

    fn has_room(&self, queue: u16) -> bool {
        self.completions
            .get(&queue)
            .is_some_and(|queue| (queue.tail + 1) % queue.entries != queue.head)
    }

    /// Writes a completion, and what the faults make of it.
    pub(crate) fn complete(&mut self, queue: u16, id: u16, status: Status, result: u32) {
        let faults = self.facts.faults.clone();
        let faulty = queue != 0 && self.commands > faults.after;
        let mut of = queue;
        let mut id = id;
        if faulty && self.rng.happens(faults.wrong_id) {
            id = (self.rng.next() & 0xffff) as u16;
        }
        if faulty && self.rng.happens(faults.wrong_queue) {
            of = (self.rng.next() & 0xffff) as u16;
        }
        self.post(queue, of, id, status, result);
        if faulty && self.rng.happens(faults.twice) && self.has_room(queue) {
            self.post(queue, of, id, status, result);
        }
        let interrupts = self.completions.get(&queue);
        let told = interrupts.is_some_and(|queue| queue.interrupts);
        let lost = faulty && self.rng.happens(faults.lost_interrupt);
        if told && !lost && self.space.has_vectors_on() {
            self.host.raise(0);
        }
    }

    fn post(&mut self, number: u16, of: u16, id: u16, status: Status, result: u32) {
        let head = self.submissions.get(&number).map_or(0, |queue| queue.head);
        let Some(queue) = self.completions.get_mut(&number) else {
            return;
        };
        let parts = completion::PhaseStatus::new()
            .with_phase(queue.phase)
            .with_kind(status.kind)
            .with_code(status.code)
            .with_do_not_retry(status.final_);
        let mut entry = Completion::default();
        entry.result = result.into();
        entry.submission_head = head.into();
        entry.submission_queue = of.into();
        entry.id = id.into();
        entry.phase_status = u16::from(parts).into();
        let at = queue.memory + u64::from(queue.tail) * completion::LEN as u64;
        queue.tail = (queue.tail + 1) % queue.entries;
        queue.phase ^= queue.tail == 0;
        self.dma_write(at, entry.as_bytes());
    }

    pub(crate) fn dma_read(&mut self, at: u64, into: &mut [u8]) -> bool {
        if !self.space.is_master() {
            self.violation("DMA without the bus");
            return false;
        }
        let read = self.host.dma_read(at, into);
        if let Err(error) = read {
            self.violation(error.to_string());
        }
        read.is_ok()
    }

    pub(crate) fn dma_write(&mut self, at: u64, from: &[u8]) -> bool {
        if !self.space.is_master() {
            self.violation("DMA without the bus");
            return false;
        }
        let written = self.host.dma_write(at, from);
        if let Err(error) = written {
            self.violation(error.to_string());
        }
        written.is_ok()
    }
}
