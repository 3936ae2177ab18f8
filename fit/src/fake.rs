//! A fake device for FIT's tests and fuzz targets: memory, and queue pairs that are strict.
//!
//! It takes what is posted, and panics where hardware would only misbehave: a post beyond a queue,
//! a receive posted twice, an overrun of the completion queue, memory that nobody lent. It carries
//! nothing out by itself: a test's [`Script`] says what a doorbell does and which calls fail, and
//! the test takes requests out and puts completions in.
//!
//! All that it does lies in functions named `outside_*`, which `cargo xtask bench rpc` does not
//! count, and a request allocates nothing.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use hal::{BusAddr, DmaBuffer};
use spin::{Mutex, MutexGuard};
use verbs::{
    Completion, CompletionKind, Payload, QpSlot, QueueSet, SendOp, SendRequest, Sge, Status,
};

use crate::config::Depths;
use crate::wire::{HEADER_LEN, MAX_PIECES};

/// Bytes that a request holds inline.
const MOST_INLINE: usize = 256;

/// One address space for all nodes of a test.
#[derive(Clone)]
pub(crate) struct Memory(Arc<Mutex<Space>>);

#[derive(Default)]
struct Space {
    bytes: Vec<u8>,
    /// Address of the first byte.
    base: u64,
    /// Memory that devices may touch: address and length.
    lent: Vec<(u64, u64)>,
}

impl Space {
    fn at(&mut self, addr: u64, len: usize) -> &mut [u8] {
        let start = usize::try_from(addr - self.base).expect("an address of the test's memory");
        &mut self.bytes[start..start + len]
    }
}

impl Memory {
    /// Makes an address space that begins at `base`.
    pub(crate) fn new(base: u64) -> Self {
        let space = Space {
            base,
            ..Space::default()
        };
        Self(Arc::new(Mutex::new(space)))
    }

    /// Adds memory that is not lent yet.
    pub(crate) fn alloc(&self, len: usize) -> Buffer {
        let mut space = self.0.lock();
        let end = space.bytes.len();
        // Empty ones have an address of their own, too: memory that is lent is known by it.
        space.bytes.resize(end + len.max(1), 0);
        Buffer {
            memory: self.clone(),
            addr: space.base + end as u64,
            len,
        }
    }

    /// Lets devices touch memory, be there bytes of the test's or not.
    pub(crate) fn lend(&self, addr: u64, len: u64) {
        self.0.lock().lent.push((addr, len));
    }

    /// Panics unless memory is lent.
    pub(crate) fn check_lent(&self, addr: u64, len: u32) {
        let end = addr
            .checked_add(len.into())
            .expect("an end within the addresses");
        let covers = |&(at, size): &(u64, u64)| at <= addr && end <= at + size;
        assert!(
            self.0.lock().lent.iter().any(covers),
            "{len} bytes at {addr:#x} were touched though nobody lent them"
        );
    }
}

#[cfg(test)]
impl Memory {
    /// Keeps devices from memory that was lent.
    pub(crate) fn take_back(&self, addr: u64) {
        self.0.lock().lent.retain(|&(at, _)| at != addr);
    }

    pub(crate) fn write(&self, addr: u64, bytes: &[u8]) {
        self.0.lock().at(addr, bytes.len()).copy_from_slice(bytes);
    }

    pub(crate) fn copy(&self, from: u64, to: u64, len: u32) {
        let mut space = self.0.lock();
        let [from, to] = [from, to].map(|addr| (addr - space.base) as usize);
        space.bytes.copy_within(from..from + len as usize, to);
    }
}

/// A piece of [`Memory`].
#[derive(Clone)]
pub(crate) struct Buffer {
    memory: Memory,
    addr: u64,
    len: usize,
}

impl Buffer {
    #[cfg(test)]
    pub(crate) fn sge(&self) -> Sge {
        Sge {
            addr: self.addr,
            len: u32::try_from(self.len).expect("short"),
            lkey: verbs::Lkey(1),
        }
    }

    /// Lets devices touch it.
    pub(crate) fn lend(&self) {
        self.memory.lend(self.addr, self.len as u64);
    }
}

#[inline(never)]
fn outside_read(buffer: &Buffer, offset: usize, into: &mut [u8]) {
    assert!(offset + into.len() <= buffer.len);
    let mut space = buffer.memory.0.lock();
    into.copy_from_slice(space.at(buffer.addr + offset as u64, into.len()));
}

#[inline(never)]
fn outside_write(buffer: &Buffer, offset: usize, from: &[u8]) {
    assert!(offset + from.len() <= buffer.len);
    let mut space = buffer.memory.0.lock();
    let at = space.at(buffer.addr + offset as u64, from.len());
    at.copy_from_slice(from);
}

impl DmaBuffer for Buffer {
    fn bus_addr(&self) -> BusAddr {
        BusAddr(self.addr)
    }
    fn len(&self) -> usize {
        self.len
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        outside_read(self, offset, into);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        outside_write(self, offset, from);
    }
    fn fill(&self, offset: usize, len: usize, value: u8) {
        self.write(offset, &vec![value; len]);
    }
    fn read_u32(&self, _: usize) -> u32 {
        unreachable!("FIT uses no words")
    }
    fn write_u32(&self, _: usize, _: u32) {
        unreachable!("FIT uses no words")
    }
    fn read_u64(&self, _: usize) -> u64 {
        unreachable!("FIT uses no words")
    }
    fn write_u64(&self, _: usize, _: u64) {
        unreachable!("FIT uses no words")
    }
}

/// A send request.
#[derive(Clone)]
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "fuzz targets carry nothing out")
)]
pub(crate) struct Work {
    pub(crate) id: u64,
    pub(crate) op: SendOp,
    pub(crate) signalled: bool,
    inline: [u8; MOST_INLINE],
    inline_len: usize,
    pieces: [Sge; MAX_PIECES + 1],
    piece_count: usize,
}

impl Work {
    fn new(id: u64, op: SendOp, signalled: bool, payload: Payload<'_>) -> Self {
        let mut work = Self {
            id,
            op,
            signalled,
            inline: [0; MOST_INLINE],
            inline_len: 0,
            pieces: [Sge::default(); MAX_PIECES + 1],
            piece_count: 0,
        };
        match payload {
            Payload::Inline(head, rest) => {
                for bytes in [head, rest] {
                    let end = work.inline_len + bytes.len();
                    work.inline[work.inline_len..end].copy_from_slice(bytes);
                    work.inline_len = end;
                }
            }
            Payload::Gather(pieces) => {
                work.pieces[..pieces.len()].copy_from_slice(pieces);
                work.piece_count = pieces.len();
            }
        }
        work
    }

    #[cfg(test)]
    pub(crate) fn inline(&self) -> &[u8] {
        &self.inline[..self.inline_len]
    }

    /// Returns the bytes that it moves.
    #[cfg(test)]
    pub(crate) fn len(&self) -> u32 {
        self.inline_len as u32 + self.pieces().iter().map(|piece| piece.len).sum::<u32>()
    }

    pub(crate) fn pieces(&self) -> &[Sge] {
        &self.pieces[..self.piece_count]
    }
}

/// A test's device: its part of a call, besides that of [`Queues`].
pub(crate) trait Script: Send + Sized + 'static {
    /// Whether a call may fail, and so whether [`on_post`](Self::on_post) and
    /// [`on_poll`](Self::on_poll) are asked.
    const FAILS: bool = false;

    /// Takes or refuses a post.
    fn on_post(&mut self, _: CompletionKind) -> Result<(), verbs::Error> {
        Ok(())
    }

    /// Lets a poll fail or not.
    fn on_poll(&mut self) -> Result<(), verbs::Error> {
        Ok(())
    }

    /// Acts on a doorbell.
    fn on_ring(_: &Queues<Self>) {}
}

/// A queue pair and its completion queue.
pub(crate) struct Qp<S> {
    pub(crate) script: S,
    memory: Memory,
    sends: VecDeque<Work>,
    /// Requests of `sends` that a doorbell has shown.
    shown: usize,
    /// Requests whose slots the driver has not got back.
    taken: VecDeque<u64>,
    pub(crate) receives: VecDeque<(u64, Sge)>,
    completions: VecDeque<Completion>,
    dead: bool,
    send_depth: usize,
    receive_depth: usize,
    pub(crate) cq_depth: usize,
}

impl<S> Qp<S> {
    #[cfg(test)]
    pub(crate) fn is_dead(&self) -> bool {
        self.dead
    }

    /// Takes the next request that the device has seen.
    pub(crate) fn next(&mut self) -> Option<Work> {
        if self.dead {
            return None;
        }
        self.shown = self.shown.checked_sub(1)?;
        self.sends.pop_front()
    }

    /// Returns the requests that the device has seen.
    #[cfg(feature = "fuzz")]
    pub(crate) fn seen(&self) -> impl Iterator<Item = &Work> {
        self.sends.iter().take(self.shown)
    }

    pub(crate) fn complete(&mut self, id: u64, kind: CompletionKind, status: Status, bytes: u32) {
        assert!(
            self.completions.len() < self.cq_depth,
            "the completion queue overruns"
        );
        self.completions.push_back(Completion {
            id,
            kind,
            status,
            bytes,
            ..Completion::EMPTY
        });
    }

    /// Fails the queue pair: everything posted is flushed.
    pub(crate) fn flush(&mut self) {
        self.dead = true;
        self.shown = 0;
        while let Some(work) = self.sends.pop_front() {
            self.complete(work.id, CompletionKind::Send, Status::Flushed, 0);
        }
        while let Some((id, _)) = self.receives.pop_front() {
            self.complete(id, CompletionKind::Receive, Status::Flushed, 0);
        }
    }
}

/// A queue set of one queue pair: one word, as a driver's handle is.
pub(crate) struct Queues<S>(Arc<Mutex<Qp<S>>>);

impl<S> Clone for Queues<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Script> Queues<S> {
    /// Makes a queue pair on `memory` whose completion queue has `cq_depth` entries.
    pub(crate) fn new(memory: &Memory, depths: &Depths, cq_depth: usize, script: S) -> Self {
        let [send, receive] = [depths.send, depths.receive].map(|depth| depth as usize);
        Self(Arc::new(Mutex::new(Qp {
            script,
            memory: memory.clone(),
            sends: VecDeque::with_capacity(send),
            shown: 0,
            taken: VecDeque::with_capacity(send),
            receives: VecDeque::with_capacity(receive),
            completions: VecDeque::with_capacity(send + receive),
            dead: false,
            send_depth: send,
            receive_depth: receive,
            cq_depth,
        })))
    }

    pub(crate) fn qp(&self) -> MutexGuard<'_, Qp<S>> {
        self.0.lock()
    }
}

#[inline(never)]
fn outside_send<S: Script>(queues: &Queues<S>, request: &SendRequest<'_>) {
    let work = Work::new(request.id, request.op, request.signalled, request.payload);
    take(&mut queues.qp(), work);
}

/// Takes a short message, whose head is FIT's.
#[inline(never)]
fn outside_send_inline<S: Script>(
    queues: &Queues<S>,
    id: u64,
    signalled: bool,
    head: &[u8; HEADER_LEN],
    rest: &[u8],
) {
    let payload = Payload::Inline(head, rest);
    let work = Work::new(id, SendOp::Send { imm: None }, signalled, payload);
    take(&mut queues.qp(), work);
}

fn take<S>(qp: &mut Qp<S>, work: Work) {
    assert!(
        qp.taken.len() < qp.send_depth,
        "a post beyond the send queue"
    );
    for piece in work.pieces() {
        qp.memory.check_lent(piece.addr, piece.len);
    }
    qp.taken.push_back(work.id);
    qp.sends.push_back(work);
}

#[inline(never)]
fn outside_post_receive<S: Script>(queues: &Queues<S>, id: u64, into: &[Sge]) {
    let mut qp = queues.qp();
    assert!(
        qp.receives.len() < qp.receive_depth,
        "a post beyond the receive queue"
    );
    assert!(
        qp.receives.iter().all(|&(posted, _)| posted != id),
        "a buffer posted twice"
    );
    qp.memory.check_lent(into[0].addr, into[0].len);
    qp.receives.push_back((id, into[0]));
}

#[inline(never)]
fn outside_ring<S: Script>(queues: &Queues<S>) {
    let mut qp = queues.qp();
    qp.shown = qp.sends.len();
    drop(qp);
    S::on_ring(queues);
}

#[inline(never)]
fn outside_poll<S: Script>(queues: &Queues<S>, into: &mut [Completion]) -> usize {
    let mut qp = queues.qp();
    let count = qp.completions.len().min(into.len());
    for place in &mut into[..count] {
        *place = qp.completions.pop_front().expect("as many as counted");
        if place.kind == CompletionKind::Send
            && let Some(at) = qp.taken.iter().position(|id| *id == place.id)
        {
            qp.taken.drain(..=at);
        }
    }
    count
}

impl<S: Script> QueueSet for Queues<S> {
    fn post_send(&mut self, _: QpSlot, request: &SendRequest<'_>) -> Result<(), verbs::Error> {
        if S::FAILS {
            self.qp().script.on_post(CompletionKind::Send)?;
        }
        outside_send(self, request);
        Ok(())
    }
    fn send_inline(
        &mut self,
        _: QpSlot,
        id: u64,
        signalled: bool,
        head: &[u8],
        rest: &[u8],
    ) -> Result<(), verbs::Error> {
        if S::FAILS {
            self.qp().script.on_post(CompletionKind::Send)?;
        }
        let head = head.try_into().expect("FIT's header");
        outside_send_inline(self, id, signalled, head, rest);
        Ok(())
    }
    fn post_receive(&mut self, _: QpSlot, id: u64, into: &[Sge]) -> Result<(), verbs::Error> {
        if S::FAILS {
            self.qp().script.on_post(CompletionKind::Receive)?;
        }
        outside_post_receive(self, id, into);
        Ok(())
    }
    fn ring(&mut self, _: QpSlot) {
        outside_ring(self);
    }
    fn poll(&mut self, into: &mut [Completion]) -> Result<usize, verbs::Error> {
        if S::FAILS {
            self.qp().script.on_poll()?;
        }
        Ok(outside_poll(self, into))
    }
    fn arm(&mut self, _: bool) {}
    fn forget(&mut self, _: QpSlot) {
        let mut qp = self.qp();
        qp.sends.clear();
        qp.taken.clear();
        qp.receives.clear();
        qp.completions.clear();
        (qp.shown, qp.dead) = (0, false);
    }
}
