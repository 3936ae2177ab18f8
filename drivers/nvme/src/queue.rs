//! A submission queue with its completion queue, and the buffers of the commands in them. It knows
//! no time and waits for nothing.
//!
//! # Ownership
//!
//! ```text
//!   submission ring     head ── the controller's ── tail        head comes back in completions
//!   completion ring     tail ── the host's ──────── head        phase inverts each pass
//!   slot                Free ──take──► Done(Lost) ──submit──► Lent ──reap──► Done ──release──► Free
//!                                                              │ release
//!                                                              └──► Abandoned ──reap──► Free
//! ```
//!
//! A buffer that the controller has is never used for something else, even if its caller has gone:
//! the controller may still write there until it completes the command or is reset (section 7.3.2).

use alloc::vec::Vec;
use core::task::Waker;

use hal::{DmaBuffer, Platform, fence};
use nvme_hw::completion::{self, PhaseStatus};
use nvme_hw::{Command, Completion, Status, command};
use zerocopy::{FromBytes, IntoBytes};

use crate::Error;
use crate::hardware::Hardware;
use crate::prp;

/// Bits of a command's identifier that are its slot's number; the others count the slot's uses.
const SLOT_BITS: u32 = 6;
/// The most slots of a queue: no identifier is 0xffff, which stands for none (section 5.14.1.1).
pub(crate) const MAX_SLOTS: usize = (1 << SLOT_BITS) - 1;

/// The end of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The controller has completed it.
    Completed { status: Status, result: u32 },
    /// A reset has ended it.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    /// The controller has the command and its buffer.
    Lent,
    /// Lent, and the caller has stopped waiting.
    Abandoned,
    Done(Answer),
}

/// A command's place, with its buffer.
struct Slot<B> {
    state: State,
    uses: u16,
    data: B,
    list: u64,
    waker: Option<Waker>,
}

/// A pair of queues.
pub(crate) struct Queue<P: Platform> {
    number: u16,
    entries: u16,
    submission: P::Buffer,
    completion: P::Buffer,
    _lists: P::Buffer,
    tail: u16,
    head: u16,
    phase: bool,
    slots: Vec<Slot<P::Buffer>>,
}

impl<P: Platform> Queue<P> {
    /// Allocates queues of `entries` entries and the buffers of at most `slots` commands, each for
    /// `data_len` bytes.
    pub(crate) fn new(
        platform: &P,
        number: u16,
        entries: u16,
        slots: usize,
        data_len: usize,
    ) -> Result<Self, Error> {
        let memory = |len: usize| platform.alloc(len.next_multiple_of(prp::PAGE), prp::PAGE);
        // So many that neither queue overflows, whatever of them the controller has fetched.
        let slots = slots.min(MAX_SLOTS).min(usize::from(entries) - 1);
        // A list lies within a page, as its length divides one (section 4.3).
        let list_len = prp::list_len(data_len).max(8).next_power_of_two();
        let lists = memory(list_len * slots)?;
        let slot = |index: usize| {
            let data = memory(data_len)?;
            prp::write_list(&lists, list_len * index, data.bus_addr().0, data_len);
            Ok(Slot {
                state: State::Free,
                uses: 0,
                data,
                list: lists.bus_addr().offset(list_len * index).0,
                waker: None,
            })
        };
        let slots = (0..slots).map(slot).collect::<Result<_, hal::Error>>()?;
        Ok(Self {
            number,
            entries,
            submission: memory(usize::from(entries) * command::LEN)?,
            completion: memory(usize::from(entries) * completion::LEN)?,
            _lists: lists,
            tail: 0,
            head: 0,
            phase: true,
            slots,
        })
    }

    /// Returns the queue's number.
    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// Returns the number of entries of each queue.
    pub(crate) fn entries(&self) -> u16 {
        self.entries
    }

    /// Returns the addresses of submission and completion queue.
    pub(crate) fn addresses(&self) -> [u64; 2] {
        [&self.submission, &self.completion].map(|memory| memory.bus_addr().0)
    }

    /// Takes a free slot; `None` if there is none. Its buffer is the caller's until
    /// [`submit`](Self::submit).
    pub(crate) fn take(&mut self) -> Option<usize> {
        let free = |slot: &Slot<_>| slot.state == State::Free;
        let index = self.slots.iter().position(free)?;
        let slot = &mut self.slots[index];
        slot.state = State::Done(Answer::Lost);
        slot.uses = slot.uses.wrapping_add(1) & (u16::MAX >> SLOT_BITS);
        slot.waker = None;
        Some(index)
    }

    /// Returns a slot's buffer.
    pub(crate) fn data(&self, index: usize) -> &P::Buffer {
        &self.slots[index].data
    }

    /// Returns the PRP entries for the first `len` bytes of a slot's buffer.
    pub(crate) fn prp(&self, index: usize, len: usize) -> [u64; 2] {
        let slot = &self.slots[index];
        prp::entries(slot.data.bus_addr().0, slot.list, len)
    }

    /// Returns the identifier of a slot's command.
    pub(crate) fn id(&self, index: usize) -> u16 {
        let [low, ..] = (index & MAX_SLOTS).to_le_bytes();
        self.slots[index].uses << SLOT_BITS | u16::from(low)
    }

    /// Gives the command of a slot that was taken to the controller.
    pub(crate) fn submit(&mut self, hardware: &Hardware<P>, index: usize, command: Command) {
        let command = command.with_id(self.id(index));
        self.slots[index].state = State::Lent;
        let at = usize::from(self.tail) * command::LEN;
        // The command before the doorbell, which has the fence. No entry is written over that the
        // controller has not fetched: there are fewer slots than entries (section 4.1.2, an empty
        // place tells full from empty).
        self.submission.write(at, command.as_bytes());
        self.tail = (self.tail + 1) % self.entries;
        hardware.ring_submission(self.number, self.tail);
    }

    /// Takes the completions that are there.
    ///
    /// # Errors
    ///
    /// If one is for no outstanding command; no other is looked at then.
    pub(crate) fn reap(&mut self, hardware: &Hardware<P>) -> Result<(), Error> {
        let before = self.head;
        let mut taken = Ok(());
        // A controller that goes on and on gets this far in one go.
        for _ in 0..self.entries {
            let Some(completion) = self.next() else {
                break;
            };
            taken = self.accept(&completion);
            if taken.is_err() {
                break;
            }
        }
        if self.head != before {
            // Once for all that was taken. Only now may the controller write over these entries.
            hardware.ring_completion(self.number, self.head);
        }
        taken
    }

    /// Takes the completion at the head, if its phase says that it is new (section 4.6).
    fn next(&mut self) -> Option<Completion> {
        let at = usize::from(self.head) * completion::LEN;
        let last = self.completion.read_u32(at + completion::LAST_DWORD);
        let [_, _, low, high] = last.to_le_bytes();
        if PhaseStatus::from(u16::from_le_bytes([low, high])).phase() != self.phase {
            return None;
        }
        // The phase before the rest of the entry, which the controller wrote earlier (Linux
        // `drivers/nvme/host/pci.c`, `nvme_poll_cq`: `nvme_cqe_pending`, then `dma_rmb`).
        fence::observe();
        let mut bytes = [0; completion::LEN];
        self.completion.read(at, &mut bytes);
        self.head = (self.head + 1) % self.entries;
        self.phase ^= self.head == 0;
        Completion::read_from_bytes(&bytes).ok()
    }

    fn accept(&mut self, completion: &Completion) -> Result<(), Error> {
        let (of, id) = (completion.submission_queue.get(), completion.id.get());
        let index = usize::from(id) & MAX_SLOTS;
        let known = of == self.number && index < self.slots.len() && self.id(index) == id;
        let state = known.then(|| self.slots[index].state);
        let answer = Answer::Completed {
            status: completion.parts().into(),
            result: completion.result.get(),
        };
        self.slots[match state {
            Some(State::Lent | State::Abandoned) => index,
            _ => {
                return Err(Error::Nonsense {
                    queue: self.number,
                    of,
                    id,
                });
            }
        }]
        .state = match state {
            Some(State::Lent) => State::Done(answer),
            _ => State::Free,
        };
        Ok(())
    }

    /// Returns the end of a slot's command; `None` while the controller has it.
    pub(crate) fn answer(&self, index: usize) -> Option<Answer> {
        match self.slots[index].state {
            State::Done(answer) => Some(answer),
            _ => None,
        }
    }

    /// Has a waker woken when a slot's command ends.
    pub(crate) fn wake_at_end(&mut self, index: usize, waker: &Waker) {
        self.slots[index].waker = Some(waker.clone());
    }

    /// Takes the waker of a command that has ended, to be woken without the queue's lock.
    pub(crate) fn take_waker(&mut self) -> Option<Waker> {
        let ended = |slot: &&mut Slot<_>| matches!(slot.state, State::Done(_));
        let mut slots = self.slots.iter_mut().filter(ended);
        slots.find_map(|slot| slot.waker.take())
    }

    /// Gives a slot up. A buffer that the controller has stays with it.
    pub(crate) fn release(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.waker = None;
        slot.state = match slot.state {
            State::Lent | State::Abandoned => State::Abandoned,
            State::Free | State::Done(_) => State::Free,
        };
    }

    /// Begins anew, while the controller is stopped: what it had is lost.
    pub(crate) fn rewind(&mut self) {
        let len = usize::from(self.entries) * completion::LEN;
        // Phase 1 is what the first pass writes, so old entries must not have it.
        self.completion.fill(0, len, 0);
        (self.tail, self.head, self.phase) = (0, 0, true);
        for slot in &mut self.slots {
            slot.state = match slot.state {
                State::Lent => State::Done(Answer::Lost),
                State::Abandoned => State::Free,
                other => other,
            };
        }
    }
}
