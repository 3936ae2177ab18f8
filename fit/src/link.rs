//! One connection: its slots and credits, how it posts, and how it ends.
//!
//! Every wait is a slot: a call, or a one-sided READ or WRITE (`one_sided`). A slot's number and
//! generation name it to the peer (calls) and to the waiter; whatever comes for another generation
//! touches nothing. A slot that lends memory (a READ, a WRITE, a call with a bulk buffer) gives its
//! waiter no error before that memory can't be touched any more: when it runs past its deadline the
//! whole connection is failed, and the waiter is told once the queue pair is dead.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::task::Waker;

use hal::{DmaBuffer, Duration, Instant};
use mutants::Mutant;
use verbs::{Lkey, Payload, PostError, QpSlot, Qpn, QueueSet, SendOp, SendRequest, Sge};

use crate::arrivals::Arrivals;
use crate::bulk::Buffers;
use crate::call_slots::{CallSlot, CallState, FreeCalls};
use crate::calls::Piece;
use crate::config::Layout;
use crate::keepalive::Alive;
use crate::one_sided::{OpState, Ops};
use crate::one_way::Window;
use crate::overdue::Overdue;
use crate::receive::Receive;
use crate::ring::{Place, Purpose, SendRing};
use crate::serve::ServeSlot;
use crate::wire::{HEADER_BYTES, HEADER_LEN, Header, MAX_DESCRIPTORS_LEN};
use crate::{Config, Error, LinkCounters, LostCause, MAX_PIECES, Operation, PeerId, PeerName};

/// A connection's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// Its queue pair takes receives, the peer is not yet there.
    Connecting,
    /// In use.
    Up,
    /// Lost; the queue pair may not be dead yet.
    Failing,
    /// Lost, and the queue pair is dead.
    Down,
}

/// Parameters that both sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Calls that the peer takes at once.
    pub serves: u16,
    /// Bytes of a message with its header that both sides take.
    pub message_size: u32,
    /// Bytes of bulk that the peer takes with a request, beyond what fits a message.
    pub bulk_size: u32,
    /// One-way messages that may be under way to the peer.
    pub one_ways: u16,
    /// READs that may be outstanding.
    pub reads: u8,
}

/// Reasons why a slot failed, without the names that are the same for all of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    Lost,
    Deadline { age: Duration, state: LinkState },
}

/// A message about to be sent: header, descriptors and body, and memory that is gathered behind
/// them.
pub(crate) struct Outgoing<'a> {
    pub(crate) header: Header,
    /// The pieces that the header calls `gathers`.
    pub(crate) offered: &'a [Piece],
    /// The pieces that it calls `scatters`.
    pub(crate) accepting: &'a [Piece],
    pub(crate) body: &'a [u8],
    pub(crate) carried: &'a [Piece],
}

/// Parts of a connection.
pub(crate) struct Parts<M> {
    pub(crate) peer: PeerName,
    pub(crate) qp: QpSlot,
    pub(crate) qpn: Qpn,
    pub(crate) memory: M,
    pub(crate) lkey: Lkey,
    pub(crate) max_inline: u32,
}

/// Work that is due on a connection at the end of a round, as bits: one look tells that there is
/// none.
pub(crate) mod due {
    /// Something may wait to be posted.
    pub(crate) const BACKLOG: u8 = 1;
    /// Something was posted that the device was not told of.
    pub(crate) const DOORBELL: u8 = 2;
    /// Something has arrived that the servers were not told of.
    pub(crate) const ARRIVED: u8 = 4;
}

/// One connection of one core.
pub(crate) struct Link<M> {
    /// The peer that the connection belongs to.
    pub(crate) owner: Option<PeerId>,
    pub(crate) peer: PeerName,
    pub(crate) qp: QpSlot,
    pub(crate) qpn: Qpn,
    pub(crate) state: LinkState,
    pub(crate) cause: Option<LostCause>,
    pub(crate) counters: LinkCounters,
    pub(crate) target: Target,
    pub(crate) layout: Layout,
    pub(crate) memory: M,
    pub(crate) serves: Box<[ServeSlot]>,
    pub(crate) arrived: Arrivals,
    /// Work that is [due].
    pub(crate) due: u8,
    pub(crate) queued_replies: VecDeque<u16>,
    pub(crate) bulk: Buffers,
    pub(crate) window: Window,
    /// READs that the device has.
    pub(crate) reads_out: u8,
    pub(crate) ring: SendRing,
    pub(crate) alive: Alive,
    pub(crate) overdue: Overdue,
    pub(crate) message_size: u32,
    lkey: Lkey,
    max_inline: u32,
    /// The header of the message at hand; kept, as clearing it each time would cost three
    /// instructions.
    pub(crate) header: [u8; HEADER_LEN],
    /// Bodies shorter than this may be sent at once: they go inline, and the connection is up. One
    /// comparison for all.
    at_once: u32,
    pub(crate) calls: Box<[CallSlot]>,
    pub(crate) free_calls: FreeCalls,
    pub(crate) ops: Ops,
    pub(crate) receives: Box<[Receive]>,
    room_waiters: Vec<Waker>,
    max_waiters: usize,
}

/// Wakes all who wait. Not inline: often looked at, seldom done.
#[inline(never)]
pub(crate) fn wake_all(waiters: &mut Vec<Waker>) {
    waiters.drain(..).for_each(Waker::wake);
}

impl<M: DmaBuffer> Link<M> {
    /// Makes a connection out of its parts; [`post_receives`](Self::post_receives) comes next.
    pub(crate) fn new(config: &Config, parts: Parts<M>) -> Self {
        let depths = config.depths();
        let layout = Layout::new(config);
        assert!(
            parts.memory.len() >= layout.len(),
            "a connection's memory holds all its buffers"
        );
        let receives = Receive::all(&layout, parts.memory.bus_addr(), parts.lkey);
        Self {
            owner: None,
            peer: parts.peer,
            qp: parts.qp,
            qpn: parts.qpn,
            state: LinkState::Connecting,
            cause: None,
            counters: LinkCounters::default(),
            target: Target {
                serves: 0,
                message_size: 0,
                bulk_size: 0,
                one_ways: 0,
                reads: 0,
            },
            layout,
            memory: parts.memory,
            serves: (0..config.serves).map(|_| ServeSlot::default()).collect(),
            arrived: Arrivals::new(config.one_ways),
            due: 0,
            queued_replies: VecDeque::with_capacity(config.serves.into()),
            bulk: Buffers::new(config),
            window: Window::new(config.one_ways),
            reads_out: 0,
            ring: SendRing::new(depths.send, config.signal_every),
            alive: Alive::new(config.keepalive),
            overdue: Overdue::default(),
            message_size: config.message_size,
            lkey: parts.lkey,
            max_inline: parts.max_inline,
            header: [0; HEADER_LEN],
            at_once: 0,
            calls: (0..config.calls).map(|_| CallSlot::free()).collect(),
            free_calls: FreeCalls::none(),
            ops: Ops::new(config),
            receives,
            room_waiters: Vec::with_capacity(usize::from(config.calls) * 4),
            max_waiters: usize::from(config.calls) * 4,
        }
    }

    /// Begins anew with the same queue pair and memory, for another peer. Names of calls and
    /// requests from before mean nothing.
    pub(crate) fn renewed(self, config: &Config, lkey: Lkey) -> Self {
        let (owner, calls, serves) = (self.owner, self.calls, self.serves);
        let parts = Parts {
            peer: self.peer,
            qp: self.qp,
            qpn: self.qpn,
            memory: self.memory,
            lkey,
            max_inline: self.max_inline,
        };
        let mut link = Self::new(config, parts);
        link.owner = owner;
        let calls = link.calls.iter_mut().zip(&calls);
        calls.for_each(|(new, old)| new.follow(old));
        let serves = link.serves.iter_mut().zip(&serves);
        serves.for_each(|(new, old)| new.follow(old));
        link
    }

    /// Returns whether the peer is lost and everybody who waited has been told.
    pub(crate) fn is_over(&self) -> bool {
        self.state == LinkState::Down && !self.has_ended()
    }

    /// The connection stands.
    pub(crate) fn up(&mut self, target: Target) {
        self.target = target;
        self.target.message_size = target.message_size.min(self.message_size);
        let inline = self.target.message_size.min(self.max_inline);
        self.at_once = inline.saturating_sub(HEADER_BYTES) + 1;
        let credit = if Mutant::CallCreditIgnored.on() {
            u16::MAX
        } else {
            target.serves
        };
        let calls = u16::try_from(self.calls.len())
            .expect("calls are counted in 16 bits")
            .min(credit);
        for slot in (0..calls).rev() {
            self.free_calls.push(&mut self.calls, slot);
        }
        self.window.open(target.one_ways);
        self.state = LinkState::Up;
        self.wake_room_waiters();
    }

    fn lost(&self) -> Error {
        Error::PeerLost {
            peer: self.peer,
            cause: self.cause.unwrap_or(LostCause::QpFailed),
            waiting: None,
        }
    }

    pub(crate) fn error(&self, operation: Operation, failure: Failure) -> Error {
        match failure {
            Failure::Lost => self.lost(),
            Failure::Deadline { age, state } => Error::Deadline {
                peer: self.peer,
                operation,
                age,
                state,
            },
        }
    }

    /// Checks that the connection is up; one still being made is only a reason to wait.
    pub(crate) fn check_up(&self) -> Result<(), Error> {
        match self.state {
            LinkState::Up | LinkState::Connecting => Ok(()),
            LinkState::Failing | LinkState::Down => Err(self.lost()),
        }
    }

    /// Keeps a waker to be woken when a slot becomes free.
    pub(crate) fn wait_for_room(&mut self, waker: &Waker) -> Result<(), Error> {
        self.check_up()?;
        if self.room_waiters.iter().any(|known| known.will_wake(waker)) {
            return Ok(());
        }
        if self.room_waiters.len() >= self.max_waiters {
            return Err(Error::Overloaded {
                peer: self.peer,
                limit: self.max_waiters,
            });
        }
        self.counters.nr_back_pressure += 1;
        self.room_waiters.push(waker.clone());
        Ok(())
    }

    #[inline]
    pub(crate) fn wake_room_waiters(&mut self) {
        if !self.room_waiters.is_empty() {
            wake_all(&mut self.room_waiters);
        }
    }

    // ---- Posting ----

    /// Refuses messages that are too long.
    #[inline]
    pub(crate) fn check_len(&self, len: usize) -> Result<(), Error> {
        if len <= self.target.message_size as usize {
            return Ok(());
        }
        Err(Error::TooLong {
            peer: self.peer,
            len,
            limit: self.target.message_size as usize,
        })
    }

    /// Returns whether such a body may be [sent at once](Self::send_at_once).
    #[inline(always)]
    pub(crate) fn goes_at_once(&self, body: &[u8]) -> bool {
        body.len() < self.at_once as usize
    }

    /// Posts a message whose body [may go at once](Self::goes_at_once), and shows the device what
    /// is posted.
    #[inline(always)]
    pub(crate) fn send_at_once<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        place: Place,
        mut header: Header,
        body: &[u8],
    ) {
        header.returned = self.window.tell();
        self.counters.nr_bytes_tx += u64::from(HEADER_BYTES + header.body);
        let posted = queues.send_inline(self.qp, place.id, place.signalled, &header.encode(), body);
        if let Err(error) = posted {
            return self.on_refused_send(&error, Purpose::Unanswered, place);
        }
        if self.due != 0 {
            self.due |= due::DOORBELL;
            return self.flush(queues);
        }
        queues.ring(self.qp);
        self.counters.nr_doorbells += 1;
    }

    /// Posts a message of header and body, inline when short, else from its place in the
    /// connection's memory.
    pub(crate) fn send_plain<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        mut header: Header,
        body: &[u8],
        at: usize,
        purpose: Purpose,
    ) {
        let len = HEADER_LEN + body.len();
        if len > self.max_inline as usize {
            self.memory.write(at + HEADER_LEN, body);
            return self.send_staged(queues, header, at, len, purpose);
        }
        header.returned = self.window.tell();
        self.counters.nr_bytes_tx += len as u64;
        let payload = Payload::Inline(&header.encode(), body);
        self.post(queues, SendOp::Send { imm: None }, payload, purpose);
    }

    /// Posts a message, inline when short, else from the connection's memory at `at` and what is
    /// gathered behind it.
    pub(crate) fn send_message<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        mut message: Outgoing<'_>,
        at: usize,
        purpose: Purpose,
    ) {
        message.header.returned = self.window.tell();
        let head_len = message.header.head_len();
        let mut head = [0; HEADER_LEN + MAX_DESCRIPTORS_LEN];
        head[..HEADER_LEN].copy_from_slice(&message.header.encode());
        let pieces = message.offered.iter().chain(message.accepting);
        for (piece, place) in pieces.zip(head[HEADER_LEN..].as_chunks_mut().0) {
            *place = piece.descriptor().encode();
        }
        let head = &head[..head_len];
        let len = head_len + message.body.len();
        if len <= self.max_inline as usize && message.carried.is_empty() {
            self.counters.nr_bytes_tx += len as u64;
            let payload = Payload::Inline(head, message.body);
            return self.post(queues, SendOp::Send { imm: None }, payload, purpose);
        }
        self.memory.write(at, head);
        self.memory.write(at + head_len, message.body);
        let mut pieces = [Sge::default(); 1 + MAX_PIECES];
        pieces[0] = self.piece(at, len);
        for (place, piece) in pieces[1..].iter_mut().zip(message.carried) {
            *place = piece.sge();
        }
        self.send_gathered(queues, &pieces[..1 + message.carried.len()], purpose);
    }

    /// Posts a message whose body stands in the connection's memory, behind room for the header.
    pub(crate) fn send_staged<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        mut header: Header,
        at: usize,
        len: usize,
        purpose: Purpose,
    ) {
        header.returned = self.window.tell();
        self.memory.write(at, &header.encode());
        let piece = self.piece(at, len);
        self.send_gathered(queues, &[piece], purpose);
    }

    /// Posts a message that is nothing but its header. It always goes inline: [`Config::check`]
    /// sees to that.
    pub(crate) fn send_bare<Q: QueueSet>(&mut self, queues: &mut Q, mut header: Header) {
        header.returned = self.window.tell();
        self.counters.nr_bytes_tx += HEADER_LEN as u64;
        let op = SendOp::Send { imm: None };
        let payload = Payload::Inline(&header.encode(), &[]);
        self.post(queues, op, payload, Purpose::Unanswered);
    }

    fn send_gathered<Q: QueueSet>(&mut self, queues: &mut Q, pieces: &[Sge], purpose: Purpose) {
        let len: u64 = pieces.iter().map(|piece| u64::from(piece.len)).sum();
        self.counters.nr_bytes_tx += len;
        let op = SendOp::Send { imm: None };
        self.post(queues, op, Payload::Gather(pieces), purpose);
    }

    pub(crate) fn piece(&self, at: usize, len: usize) -> Sge {
        let len = u32::try_from(len).expect("a piece of a connection's memory");
        Sge {
            addr: self.memory.bus_addr().offset(at).0,
            len,
            lkey: self.lkey,
        }
    }

    /// The longest body of a reply.
    pub(crate) fn reply_limit(&self) -> usize {
        self.target.message_size as usize - HEADER_LEN
    }

    /// Posts a request. Whoever asks has seen that the send queue has room.
    pub(crate) fn post<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        op: SendOp,
        payload: Payload<'_>,
        purpose: Purpose,
    ) {
        let place = self.ring.take(purpose);
        let place = place.expect("a request within the send queue's credits");
        let solicited = matches!(op, SendOp::Send { .. });
        let request = SendRequest {
            id: place.id,
            op,
            payload,
            signalled: place.signalled,
            solicited,
            fence: false,
            to: None,
        };
        match queues.post_send(self.qp, &request) {
            Ok(()) => self.due |= due::DOORBELL,
            Err(error) => self.on_refused_send(&error, purpose, place),
        }
    }

    /// The credits make this impossible; a device that is failing may still refuse.
    #[cold]
    fn on_refused_send(&mut self, error: &PostError, purpose: Purpose, place: Place) {
        log::error!("{}: {error}", self.peer);
        self.ring.give_back(place);
        if let Purpose::OneSided(slot) = purpose {
            self.end_op(slot, OpState::Failed(Failure::Lost));
        }
        self.fail(LostCause::Device);
    }

    /// Posts what waits for room, and rings the doorbell if anything was posted since.
    #[inline]
    pub(crate) fn flush<Q: QueueSet>(&mut self, queues: &mut Q) {
        if self.due & due::BACKLOG != 0 {
            self.work_off(queues);
        }
        if self.due & due::DOORBELL != 0 {
            self.due &= !due::DOORBELL;
            queues.ring(self.qp);
            self.counters.nr_doorbells += 1;
        }
    }

    /// Posts what waits for room or credit, replies first.
    #[inline(never)]
    fn work_off<Q: QueueSet>(&mut self, queues: &mut Q) {
        if self.state != LinkState::Up {
            return;
        }
        self.due &= !due::BACKLOG;
        self.send_queued_replies(queues);
        self.fetch_offered(queues);
        self.post_queued_ops(queues);
        self.send_signs(queues);
        self.send_credit(queues);
        if self.has_backlog() {
            self.due |= due::BACKLOG;
        }
    }

    /// Returns whether something waits to be posted.
    fn has_backlog(&self) -> bool {
        !self.queued_replies.is_empty()
            || !self.bulk.fetching.is_empty()
            || self.has_queued_ops()
            || self.alive.owes_signs()
            || self.window.is_credit_due()
    }

    // ---- Ends ----

    /// Loses the connection. Waiters that lent no memory are told now, the others by
    /// [`dead`](Self::dead).
    pub(crate) fn fail(&mut self, cause: LostCause) {
        if matches!(self.state, LinkState::Failing | LinkState::Down) {
            return;
        }
        self.state = LinkState::Failing;
        self.cause = Some(cause);
        self.at_once = 0;
        self.receives.iter_mut().for_each(Receive::forget);
        self.drop_requests();
        for slot in 0..self.calls.len() {
            let call = &self.calls[slot];
            if call.state == CallState::Waiting && !call.lends {
                self.end_call(slot, CallState::Failed(Failure::Lost));
            }
        }
        self.fail_queued_ops();
        if Mutant::LentMemoryToldEarly.on() {
            self.fail_posted_ops();
        }
        self.wake_room_waiters();
    }

    /// The queue pair is dead: no buffer of this connection will be touched any more. Everyone
    /// still waiting is told.
    pub(crate) fn dead(&mut self) {
        self.fail(LostCause::QpFailed);
        self.state = LinkState::Down;
        self.ring.clear();
        self.reads_out = 0;
        self.bulk.free_all();
        for slot in 0..self.calls.len() {
            let place = u16::try_from(slot).expect("calls are counted in 16 bits");
            match self.calls[slot].state {
                CallState::Waiting => self.end_call(slot, CallState::Failed(Failure::Lost)),
                CallState::Expired(failure) => self.end_call(slot, CallState::Failed(failure)),
                CallState::Orphaned => self.free_call(place),
                // The reply was there, only the request's end is missing.
                CallState::Answered { .. } => self.on_gathered(place, self.calls[slot].generation),
                CallState::Free | CallState::Failed(_) => {}
            }
        }
        self.fail_posted_ops();
    }

    /// Looks at every deadline.
    pub(crate) fn tick(&mut self, now: Instant) {
        if self.state == LinkState::Up {
            self.expire_calls(now);
            self.expire_ops(now);
            self.watch_peer(now);
            self.watch_completions(now);
        }
        // Those waiting for room look at their own deadlines.
        self.wake_room_waiters();
    }

    /// Slots in use: calls, then one-sided accesses.
    #[cfg(test)]
    pub(crate) fn slots_in_use(&self) -> (usize, usize) {
        let calls = self
            .calls
            .iter()
            .filter(|call| call.state != CallState::Free)
            .count();
        (calls, self.ops.in_use())
    }
}
