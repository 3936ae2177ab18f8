//! A queue pair for pages and its completion queue: READs and WRITEs of one piece, a block each.
//!
//! What all WQEs have in common is written once a slot, when the ring is made; a post writes the peer's address and key, the local
//! address, the flags and the owner. Slots are one basic block, so no other block needs a stamp (Linux `stamp_send_wqe` stamps
//! each block but the first): a stale slot is told by its owner bit alone. Indices are the driver's own; what each slot
//! was posted for is kept beside the ring, and a completion's counter is checked against what is outstanding.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use core::sync::atomic::Ordering;

use hal::{DmaBuffer, Platform, Registers, fence};
use mlx4_hw::regs::{self, SendDoorbell};
use mlx4_hw::wqe::{PageWqe, WqeOpcode};
use verbs::{Cqn, Lkey, PAGE_LEN, PageFailure, PageOp, PageQueue, PollError, RemoteAddr, RingFull};
use zerocopy::IntoBytes;

use crate::completion::{CompletionQueue, SendEntry};
use crate::hca::UAR_PAGE;
use crate::queues::status;
use crate::work_queue::{Geometry, low_half};

/// What a slot was posted for.
#[derive(Debug, Clone, Copy)]
struct Posted {
    line: u32,
    op: PageOp,
    signalled: bool,
}

/// A page queue: see [`verbs::PageQueue`].
///
/// Dropping it leaves the card's side in place; [`Device::destroy_pages`](verbs::Device::destroy_pages) takes it away in order.
pub struct Pages<P: Platform> {
    memory: Arc<P::Buffer>,
    uar: Arc<P::Bar>,
    cq: CompletionQueue<P>,
    posted: Box<[Posted]>,
    /// Offset of the ring in its memory.
    offset: usize,
    log_slots: u8,
    depth: u32,
    head: u32,
    tail: u32,
    qpn: u32,
    /// The send doorbell's value.
    doorbell: u32,
    /// Owner dwords by operation and pass.
    owners: [[u32; 2]; 2],
    /// Flags of an unsignalled and of a signalled request.
    flags: [u32; 2],
}

impl<P: Platform> Pages<P> {
    pub(crate) fn new(
        qpn: u32,
        cq: CompletionQueue<P>,
        memory: Arc<P::Buffer>,
        uar: Arc<P::Bar>,
        geometry: Geometry,
        lkey: Lkey,
    ) -> Self {
        let offset = geometry.send_offset();
        let slots = 1_usize << geometry.log_send_slots;
        let template = PageWqe::template(PAGE_LEN, lkey.0);
        for slot in 0..slots {
            memory.write(offset + slot * size_of::<PageWqe>(), template.as_bytes());
        }
        let nothing = Posted {
            line: 0,
            op: PageOp::Read,
            signalled: true,
        };
        let owners = |opcode| [false, true].map(|pass| PageWqe::owner(opcode, pass));
        Self {
            memory,
            uar,
            cq,
            posted: vec![nothing; slots].into(),
            offset,
            log_slots: geometry.log_send_slots,
            depth: geometry.send_depth,
            head: 0,
            tail: 0,
            qpn,
            doorbell: regs::swap(SendDoorbell::new().with_qpn(qpn).into()),
            owners: [WqeOpcode::RDMA_READ, WqeOpcode::RDMA_WRITE].map(owners),
            flags: [false, true].map(PageWqe::flags),
        }
    }

    pub(crate) fn qpn(&self) -> u32 {
        self.qpn
    }

    pub(crate) fn cqn(&self) -> u32 {
        self.cq.cqn
    }

    /// Returns the completion queue's number, as [`DeviceEvent::CqFailed`](verbs::DeviceEvent::CqFailed) names it.
    #[must_use]
    pub fn completion_queue(&self) -> Cqn {
        Cqn(self.cq.cqn)
    }

    #[inline]
    fn slot(&self, index: u32) -> usize {
        index as usize & ((1 << self.log_slots) - 1)
    }

    /// Ends what an entry says has ended: the request it is of, and the unsignalled ones before it.
    #[inline]
    fn complete(&mut self, entry: SendEntry, done: &mut impl FnMut(PageOp, u32)) -> Result<u32, PageFailure> {
        let before = u32::from(entry.wqe.wrapping_sub(low_half(self.tail)));
        if entry.qpn != self.qpn || before >= self.outstanding() {
            return Err(inconsistent(entry));
        }
        for _ in 0..before {
            let Posted { line, op, signalled } = self.posted[self.slot(self.tail)];
            if signalled {
                return Err(inconsistent(entry));
            }
            self.tail = self.tail.wrapping_add(1);
            done(op, line);
        }
        let Posted { line, op, signalled } = self.posted[self.slot(self.tail)];
        match entry.syndrome {
            None if signalled => {}
            None => return Err(inconsistent(entry)),
            Some(syndrome) => return Err(PageFailure::Request(status(syndrome))),
        }
        self.tail = self.tail.wrapping_add(1);
        done(op, line);
        Ok(before + 1)
    }
}

/// The failure of a queue whose entry can't be: an unknown queue pair, a counter that nothing is outstanding for, or one that skips a
/// signalled request.
#[cold]
fn inconsistent(entry: SendEntry) -> PageFailure {
    PageFailure::Poll(PollError::Inconsistent {
        qpn: entry.qpn,
        index: entry.wqe,
    })
}

impl<P: Platform> PageQueue for Pages<P> {
    #[inline]
    fn post(
        &mut self,
        op: PageOp,
        line: u32,
        local: u64,
        remote: RemoteAddr,
        signalled: bool,
    ) -> Result<(), RingFull> {
        if self.outstanding() >= self.depth {
            return Err(RingFull);
        }
        let slot = self.slot(self.head);
        let at = self.offset + slot * size_of::<PageWqe>();
        let memory = &*self.memory;
        memory.write_u32(at + PageWqe::FLAGS, self.flags[usize::from(signalled)]);
        memory.write_u64(at + PageWqe::REMOTE, regs::swap_long(remote.addr));
        memory.write_u32(at + PageWqe::RKEY, regs::swap(remote.rkey.0));
        memory.write_u64(at + PageWqe::LOCAL, regs::swap_long(local));
        self.posted[slot] = Posted { line, op, signalled };
        let pass = self.head >> self.log_slots & 1 == 1;
        // A card that is at work here takes the WQE as soon as it is its own, doorbell or not.
        fence::order();
        let owner = self.owners[usize::from(op == PageOp::Write)][usize::from(pass)];
        memory.write_u32(at + PageWqe::OWNER, owner);
        self.head = self.head.wrapping_add(1);
        Ok(())
    }

    #[inline]
    fn ring(&mut self) {
        fence::publish();
        let at = UAR_PAGE as usize * regs::UAR_PAGE_LEN + regs::SEND_DOORBELL;
        self.uar.write_u32(at, self.doorbell);
    }

    #[inline]
    fn poll(&mut self, done: &mut impl FnMut(PageOp, u32)) -> Result<u32, PageFailure> {
        if self.cq.state.failed.load(Ordering::Acquire) {
            return Err(PollError::QueueFailed.into());
        }
        let mut ended = 0;
        let mut result = Ok(());
        while let Some(entry) = self.cq.look() {
            match self.complete(entry, done) {
                Ok(count) => ended += count,
                // The entry stays: whoever looks again meets it again.
                Err(failure) => {
                    result = Err(failure);
                    break;
                }
            }
            self.cq.advance();
        }
        if ended > 0 {
            self.cq.publish_consumer();
        }
        result.map(|()| ended)
    }

    fn oldest(&self) -> Option<(PageOp, u32)> {
        if self.outstanding() == 0 {
            return None;
        }
        let Posted { line, op, .. } = self.posted[self.slot(self.tail)];
        Some((op, line))
    }

    fn take_back(&mut self) -> Option<(PageOp, u32)> {
        let oldest = self.oldest()?;
        self.tail = self.tail.wrapping_add(1);
        Some(oldest)
    }

    fn arm(&mut self) {
        self.cq.arm(false);
    }

    #[inline]
    fn room(&self) -> u32 {
        self.depth - self.outstanding()
    }

    #[inline]
    fn outstanding(&self) -> u32 {
        self.head.wrapping_sub(self.tail)
    }
}
