//! A completion queue as its consumer sees it.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use hal::{DmaBuffer, Platform, Registers, fence};
use mlx4_hw::bits::Low24;
use mlx4_hw::cq::{
    CQE_END_OFFSET, CQE_INIT_BYTE, CQE_LAST_OFFSET, CQE_LEN, CQE_OWNER_OFFSET, Cqe, CqeEnd,
    CqeLast, CqeOwner,
};
use mlx4_hw::regs::{self, ARM_NEXT, ARM_SOLICITED, CqArm, CqArmRecord};
use mutants::Mutant;
use zerocopy::{FromZeros, IntoBytes};

use crate::event::CqState;
use crate::hca::UAR_PAGE;

/// QPN that the driver writes into entries of a QP that is gone. No table is that large.
const GONE_QPN: u32 = Low24::MAX;

/// Entries of which one is told of, where entries are [taken](CompletionQueue::advance) one by one.
/// The queue has so many more than there can be completions, and a multiple of it in all: to the
/// card it is full when the producer meets the consumer that it was told of.
pub(crate) const TELL_EVERY: u32 = 32;

/// Offsets in the memory of a CQ: the ring, then its doorbell record.
pub(crate) struct CompletionQueue<P: Platform> {
    pub(crate) cqn: u32,
    log_entries: u8,
    /// Place of the next entry, for lookups by words, and its pass bit once it has come.
    next_at: usize,
    next_pass: CqeLast,
    memory: Arc<P::Buffer>,
    uar: Arc<P::Bar>,
    consumer: u32,
    pub(crate) state: Arc<CqState>,
}

/// Bytes of a CQ's memory: the ring of 2^`log_entries` and a line for the doorbell record.
pub(crate) fn memory_len(log_entries: u8) -> usize {
    (CQE_LEN << log_entries) + 64
}

/// Returns the offset of the doorbell record in a CQ's memory.
pub(crate) fn record_offset(log_entries: u8) -> usize {
    CQE_LEN << log_entries
}

impl<P: Platform> CompletionQueue<P> {
    pub(crate) fn new(
        cqn: u32,
        log_entries: u8,
        memory: Arc<P::Buffer>,
        uar: Arc<P::Bar>,
        state: Arc<CqState>,
    ) -> Self {
        memory.fill(0, CQE_LEN << log_entries, CQE_INIT_BYTE);
        Self {
            cqn,
            log_entries,
            next_at: 0,
            next_pass: CqeLast::of_pass(false),
            memory,
            uar,
            consumer: 0,
            state,
        }
    }

    fn entry_at(&self, index: u32) -> Option<Cqe> {
        let entries = 1_u32 << self.log_entries;
        let at = (index % entries) as usize * CQE_LEN;
        let mut owner = [0];
        self.memory.read(at + CQE_OWNER_OFFSET, &mut owner);
        let pass = index / entries % 2 == 1;
        if CqeOwner::from(owner[0]).pass() != pass {
            return None;
        }
        fence::observe();
        let mut entry = Cqe::new_zeroed();
        self.memory.read(at, entry.as_mut_bytes());
        Some(entry)
    }

    /// Takes the next entry, if there is one; those of QPs that are gone are skipped.
    pub(crate) fn next(&mut self) -> Option<Cqe> {
        for _ in 0..1_u32 << self.log_entries {
            let entry = self.entry_at(self.consumer)?;
            self.consumer = self.consumer.wrapping_add(1);
            if entry.qpn.get() != GONE_QPN {
                return Some(entry);
            }
        }
        None
    }

    /// Returns whether there is a next entry.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        let last = self.memory.read_u32(self.next_at + CQE_LAST_OFFSET);
        CqeLast(last).has_pass_of(self.next_pass)
    }

    /// Looks at what the next entry, which is [ready](Self::is_ready), says has ended, without
    /// taking it. By words: bytes that nobody needs are not copied.
    #[inline]
    pub(crate) fn look(&self) -> CqeEnd {
        fence::observe();
        CqeEnd::from(regs::swap_long(
            self.memory.read_u64(self.next_at + CQE_END_OFFSET),
        ))
    }

    /// Takes the entry that was looked at. The card is told of every [`TELL_EVERY`]th.
    #[inline]
    pub(crate) fn advance(&mut self) {
        self.consumer = self.consumer.wrapping_add(1);
        self.next_at += CQE_LEN;
        if self.next_at.is_multiple_of(TELL_EVERY as usize * CQE_LEN) {
            self.tell();
        }
    }

    /// Tells the card what was taken, and goes back to the first entry behind the last.
    #[cold]
    #[inline(never)]
    fn tell(&mut self) {
        self.publish_consumer();
        let entries = 1 << self.log_entries;
        self.next_at = (self.consumer % entries) as usize * CQE_LEN;
        let pass = self.consumer / entries % 2 == 1 && !Mutant::CompletionPassStands.on();
        self.next_pass = CqeLast::of_pass(pass);
    }

    /// Makes the entries of `qpn` that were not taken yet nobody's.
    pub(crate) fn forget(&mut self, qpn: u32) {
        if Mutant::OldCompletionsKept.on() {
            return;
        }
        let entries = 1_u32 << self.log_entries;
        for ahead in 0..entries {
            let index = self.consumer.wrapping_add(ahead);
            let Some(entry) = self.entry_at(index) else {
                break;
            };
            if entry.qpn.get() == qpn {
                let at = (index % entries) as usize * CQE_LEN;
                self.memory.write(at, Low24::new(GONE_QPN).as_bytes());
            }
        }
    }

    /// Tells the card what was taken.
    #[inline]
    pub(crate) fn publish_consumer(&self) {
        if Mutant::CompletionsTakenUntold.on() {
            return;
        }
        let record = record_offset(self.log_entries);
        self.memory
            .write_u32(record, regs::swap(self.consumer & Low24::MAX));
    }

    /// Asks for an event at the next completion.
    pub(crate) fn arm(&self, solicited_only: bool) {
        let command = if solicited_only {
            ARM_SOLICITED
        } else {
            ARM_NEXT
        };
        let events = self.state.events.load(Ordering::Acquire);
        // The first sequence number is 1.
        let sequence = u8::try_from(events.wrapping_add(1) % 4).unwrap_or(0);
        let consumer = self.consumer & Low24::MAX;
        let record = CqArmRecord::new()
            .with_sequence(sequence)
            .with_command(command)
            .with_consumer(consumer);
        let at = record_offset(self.log_entries);
        self.memory.write_u32(at + 4, regs::swap(record.into()));
        fence::publish();
        let arm = CqArm::new()
            .with_sequence(sequence)
            .with_command(command)
            .with_cqn(self.cqn);
        self.uar.write_u64(
            UAR_PAGE as usize * regs::UAR_PAGE_LEN + regs::CQ_DOORBELL,
            regs::cq_doorbell(arm, consumer),
        );
    }
}
