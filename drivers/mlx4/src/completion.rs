//! The consumer's side of a completion queue.
//!
//! An entry is the consumer's when its owner bit equals the parity of the pass through the ring.
//! The card writes that bit last, so the rest is read behind a fence (Linux `hw/mlx4/cq.c`,
//! `mlx4_ib_poll_one`).

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

/// QPN that the driver writes into entries of a destroyed or reset QP. No table is that large.
const GONE_QPN: u32 = Low24::MAX;

/// Interval, in entries, at which the consumer index is published where entries are
/// [taken](CompletionQueue::advance) one by one. The queue has so many entries more than there can
/// be completions, and a multiple of it in all: the card finds an overrun when its producer meets
/// the consumer index last published.
pub(crate) const TELL_EVERY: u32 = 32;

/// A completion queue. Its memory holds the ring, then the doorbell record.
pub(crate) struct CompletionQueue<P: Platform> {
    pub(crate) cqn: u32,
    log_entries: u8,
    /// Place of the next entry, for lookups by words, and its pass bit once it has come.
    next_at: usize,
    next_pass: CqeLast,
    memory: Arc<P::Buffer>,
    uar: Arc<P::Bar>,
    /// Entries taken. It counts on beyond the ring's size: the parity of the pass is in it.
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
        // The ring was filled with pass 1 before the card had it, so an unwritten entry of pass 0
        // has the wrong parity, and from then on each pass leaves the right one for the next (Linux
        // `mlx4/cq.c`, `mlx4_init_user_cqes`; `hw/mlx4/cq.c`, `get_sw_cqe`).
        if CqeOwner::from(owner[0]).pass() != pass {
            return None;
        }
        // The owner byte before the rest of the entry.
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
    ///
    /// One load of the dword whose last byte is the owner. It is a plain load: the fence comes in
    /// [`look`](Self::look), so that a look in vain costs none.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        let last = self.memory.read_u32(self.next_at + CQE_LAST_OFFSET);
        CqeLast(last).has_pass_of(self.next_pass)
    }

    /// Reads counter, syndrome and opcode of the next entry, which must be
    /// [ready](Self::is_ready), without taking it or copying the rest.
    #[inline]
    pub(crate) fn look(&self) -> CqeEnd {
        // The owner byte, read by `is_ready`, before the rest of the entry.
        fence::observe();
        CqeEnd::from(regs::swap_long(
            self.memory.read_u64(self.next_at + CQE_END_OFFSET),
        ))
    }

    /// Takes the entry that was looked at. Every [`TELL_EVERY`]th time the index is published.
    #[inline]
    pub(crate) fn advance(&mut self) {
        self.consumer = self.consumer.wrapping_add(1);
        self.next_at += CQE_LEN;
        if self.next_at.is_multiple_of(TELL_EVERY as usize * CQE_LEN) {
            self.tell();
        }
    }

    /// Publishes the consumer index, and wraps to the first entry behind the last.
    #[cold]
    #[inline(never)]
    fn tell(&mut self) {
        self.publish_consumer();
        let entries = 1 << self.log_entries;
        self.next_at = (self.consumer % entries) as usize * CQE_LEN;
        let pass = self.consumer / entries % 2 == 1 && !Mutant::CompletionPassStands.on();
        self.next_pass = CqeLast::of_pass(pass);
    }

    /// Invalidates the entries of `qpn`, a queue pair in RESET, that were not taken yet: its number
    /// may be used again. New ones can't come (Linux `hw/mlx4/cq.c`, `__mlx4_ib_cq_clean`, which
    /// removes them; here they are skipped, so that no index moves).
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

    /// Publishes the consumer index in the doorbell record. The card reads it when the queue seems
    /// full, so no register is written (Linux `mlx4/cq.h`, `mlx4_cq_set_ci`).
    #[inline]
    pub(crate) fn publish_consumer(&self) {
        if Mutant::CompletionsTakenUntold.on() {
            return;
        }
        let record = record_offset(self.log_entries);
        self.memory
            .write_u32(record, regs::swap(self.consumer & Low24::MAX));
    }

    /// Requests an event for the next completion: at once if there is an entry beyond the consumer
    /// index.
    pub(crate) fn arm(&self, solicited_only: bool) {
        let command = if solicited_only {
            ARM_SOLICITED
        } else {
            ARM_NEXT
        };
        let events = self.state.events.load(Ordering::Acquire);
        // It advances with each completion event, and begins with 1 (Linux `mlx4/cq.c`,
        // `mlx4_cq_completion`, `mlx4_cq_alloc`).
        let sequence = u8::try_from(events.wrapping_add(1) % 4).unwrap_or(0);
        // With an entry beyond this index the card reports at once, so none that came between the
        // last poll and the arm is missed.
        let consumer = self.consumer & Low24::MAX;
        let record = CqArmRecord::new()
            .with_sequence(sequence)
            .with_command(command)
            .with_consumer(consumer);
        let at = record_offset(self.log_entries);
        self.memory.write_u32(at + 4, regs::swap(record.into()));
        // The record before the doorbell register (Linux `mlx4/cq.h`, `mlx4_cq_arm`).
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
