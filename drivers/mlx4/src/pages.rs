//! A queue pair for pages and its completion queue: READs and WRITEs of one piece, a block each.
//!
//! The common part of all WQEs is computed once; a post writes five words of one block, and then
//! the owner. Slots are one basic block, so no other block needs a stamp (Linux `stamp_send_wqe`
//! stamps each block but the first): a stale slot is told by its owner bit alone. Indices are the
//! driver's own; what each slot was posted for is kept beside the ring, and a completion's counter
//! is checked against what is outstanding.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;

use hal::{DmaBuffer, Platform, Registers, fence};
use mlx4_hw::cq::{CqeEnd, Syndrome};
use mlx4_hw::regs::{self, SendDoorbell};
use mlx4_hw::wqe::{PageWqe, SEGMENT_UNIT, WqeOpcode};
use verbs::{Lkey, PAGE_LEN, PageFailure, PageOp, PageQueue, RemoteAddr, RingFull};
use zerocopy::IntoBytes;

use crate::completion::CompletionQueue;
use crate::hca::UAR_PAGE;
use crate::queues::status;
use crate::work_queue::{Geometry, low_half};

/// Opcodes by operation.
const OPCODES: [WqeOpcode; 2] = [WqeOpcode::RDMA_READ, WqeOpcode::RDMA_WRITE];

/// The request that a slot was posted for.
#[derive(Debug, Clone, Copy)]
struct Posted {
    line: u32,
    op: PageOp,
    signalled: bool,
}

/// A page queue: see [`verbs::PageQueue`].
///
/// Dropping it leaves the card's side in place;
/// [`Device::destroy_pages`](verbs::Device::destroy_pages) takes it away in order.
pub struct Pages<P: Platform> {
    memory: Arc<P::Buffer>,
    uar: Arc<P::Bar>,
    cq: CompletionQueue<P>,
    posted: Box<[Posted]>,
    /// Offset of the ring in its memory.
    offset: usize,
    /// The last slot's number.
    last: u32,
    depth: u32,
    head: u32,
    tail: u32,
    qpn: u32,
    /// The send doorbell's value.
    doorbell: u32,
    /// The completion opcode of each operation.
    successes: [u8; 2],
    /// Owner dwords by operation and pass.
    owners: [[u32; 2]; 2],
    /// Flags of an unsignalled and of a signalled request.
    flags: [u64; 2],
    /// Length and local key.
    piece: u64,
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
        let template = PageWqe::template();
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
            last: (1 << geometry.log_send_slots) - 1,
            depth: geometry.send_depth,
            head: 0,
            tail: 0,
            qpn,
            doorbell: regs::swap(SendDoorbell::new().with_qpn(qpn).into()),
            successes: OPCODES.map(|opcode| CqeEnd::success_of(opcode.0)),
            owners: OPCODES.map(owners),
            flags: [false, true].map(PageWqe::flags),
            piece: PageWqe::piece(PAGE_LEN, lkey.0),
        }
    }

    /// Makes a page queue without a card, for tests that count its cost and act as the card. Its
    /// queue pair has the number [`Self::NO_CARD`]; its ring of at least `depth` requests begins at
    /// `ring`, its completion queue of 2^`log_entries` entries at `completions`.
    #[doc(hidden)]
    pub fn without_card(
        ring: P::Buffer,
        completions: P::Buffer,
        uar: P::Bar,
        (depth, log_entries): (u32, u8),
        lkey: Lkey,
    ) -> Self {
        let uar = Arc::new(uar);
        let (completions, state) = (Arc::new(completions), Arc::default());
        let cq = CompletionQueue::new(0, log_entries, completions, Arc::clone(&uar), state);
        let geometry = Geometry::new(depth, size_of::<PageWqe>(), 1, SEGMENT_UNIT);
        Self::new(Self::NO_CARD, cq, Arc::new(ring), uar, geometry, lkey)
    }

    /// The number of a queue pair [without a card](Self::without_card).
    #[doc(hidden)]
    pub const NO_CARD: u32 = 0x40;

    pub(crate) fn qpn(&self) -> u32 {
        self.qpn
    }

    pub(crate) fn cqn(&self) -> u32 {
        self.cq.cqn
    }

    #[inline]
    fn slot(&self, index: u32) -> usize {
        (index & self.last) as usize
    }

    /// Ends and returns the oldest request, given that an entry is ready. If the entry is of this
    /// request it is consumed; otherwise the request was unsignalled and precedes the entry's.
    #[inline(always)]
    fn complete(&mut self) -> Result<(PageOp, u32), PageFailure> {
        // The entry's QPN is not checked: this queue pair is the only one on the CQ.
        let entry = self.cq.look();
        let before = entry.wqe().wrapping_sub(low_half(self.tail));
        if u32::from(before) >= self.outstanding() {
            return Err(inconsistent(self.qpn, entry));
        }
        let Posted {
            line,
            op,
            signalled,
        } = self.posted[self.slot(self.tail)];
        // A failed entry is not consumed, so each later call fails alike.
        if before == 0 {
            if entry.kind() != self.successes[usize::from(op == PageOp::Write)] {
                return Err(failed(self.qpn, entry));
            }
            // Only now may the card write over the entry, since nothing of it is looked at any
            // more.
            self.cq.advance();
        } else if signalled {
            return Err(inconsistent(self.qpn, entry));
        }
        self.tail = self.tail.wrapping_add(1);
        Ok((op, line))
    }
}

/// Returns the failure for an impossible entry: its counter is of no outstanding request, or skips
/// a signalled one, or its opcode is of another operation.
#[cold]
#[inline(never)]
fn inconsistent(qpn: u32, entry: CqeEnd) -> PageFailure {
    let index = entry.wqe();
    PageFailure::Inconsistent { qpn, index }
}

#[cold]
#[inline(never)]
fn failed(qpn: u32, entry: CqeEnd) -> PageFailure {
    if !entry.is_failure() {
        return inconsistent(qpn, entry);
    }
    PageFailure::Request(status(Syndrome(entry.syndrome())))
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
        // Before the owner bit: a completion of this slot may be there as soon as that is set.
        self.posted[slot] = Posted {
            line,
            op,
            signalled,
        };
        let at = self.offset + slot * size_of::<PageWqe>();
        let memory = &*self.memory;
        let flags = self.flags[usize::from(signalled)];
        let body = PageWqe::body(flags, (remote.addr, remote.rkey.0), self.piece, local);
        memory.write_words(at + PageWqe::BODY, body);
        let pass = self.head & (self.last + 1) != 0;
        // Body before owner: a card at work on this queue executes a WQE as soon as its owner bit
        // is right, without a doorbell (Linux `hw/mlx4/qp.c`, `mlx4_ib_post_send`).
        fence::order();
        let owner = self.owners[usize::from(op == PageOp::Write)][usize::from(pass)];
        memory.write_u32(at + PageWqe::OWNER, owner);
        self.head = self.head.wrapping_add(1);
        Ok(())
    }

    #[inline]
    fn ring(&mut self) {
        // WQEs before the doorbell register, which is not ordinary memory: `order` would not do.
        fence::publish();
        let at = UAR_PAGE as usize * regs::UAR_PAGE_LEN + regs::SEND_DOORBELL;
        self.uar.write_u32(at, self.doorbell);
    }

    #[inline]
    fn is_ready(&self) -> bool {
        self.cq.is_ready()
    }

    #[inline]
    fn take(&mut self, done: &mut impl FnMut(PageOp, u32)) -> Result<(), PageFailure> {
        self.complete().map(|(op, line)| done(op, line))
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
        // The arm names this index too, but the record is what an overrun is judged by: `advance`
        // publishes only every `TELL_EVERY` entries.
        self.cq.publish_consumer();
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
