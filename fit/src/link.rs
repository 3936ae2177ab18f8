//! One connection: the parts that it is made of, how it begins, and how it ends.
//!
//! Every wait is a slot: a call (`calls`), or a one-sided READ or WRITE (`one_sided`). A slot that
//! lends memory (a READ, a WRITE, a call with a bulk buffer) gives its waiter no error before that
//! memory can't be touched any more: when it runs past its deadline the whole connection is failed,
//! and the waiter is told once the queue pair is dead.
//!
//! Each part keeps its own state, knows neither the others nor the connection, and returns what is
//! to be done beside it; this module and those below it do that.

mod accessing;
mod arriving;
mod calling;
mod sending;
mod serving;

use core::task::Waker;

use hal::{DmaBuffer, Instant};
use mutants::Mutant;
use verbs::{Lkey, QpSlot, Qpn};

use crate::bulk::Buffers;
use crate::call::Piece;
use crate::calls::Calls;
use crate::config::Layout;
use crate::due;
use crate::keepalive::Alive;
use crate::one_sided::Ops;
use crate::one_way::Window;
use crate::overdue::Overdue;
use crate::receive::Receives;
use crate::ring::SendRing;
use crate::serve::Serves;
use crate::state::Failure;
use crate::waiters::{TooMany, Waiters};
use crate::wire::{HEADER_BYTES, HEADER_LEN, Header};
use crate::{
    Config, Error, LinkCounters, LinkState, LostCause, Operation, PeerId, PeerName, Target,
};

/// A message about to be sent: header, descriptors and body, and memory that is gathered behind
/// them.
struct Outgoing<'a> {
    header: Header,
    /// The pieces that the header calls `gathers`.
    offered: &'a [Piece],
    /// The pieces that it calls `scatters`.
    accepting: &'a [Piece],
    body: &'a [u8],
    carried: &'a [Piece],
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

/// One connection of one core.
pub(crate) struct Link<M> {
    /// The peer that the connection belongs to.
    pub(crate) owner: Option<PeerId>,
    pub(crate) peer: PeerName,
    pub(crate) qp: QpSlot,
    pub(crate) qpn: Qpn,
    state: LinkState,
    cause: Option<LostCause>,
    counters: LinkCounters,
    target: Target,
    layout: Layout,
    memory: M,
    serves: Serves,
    /// Work that is [due].
    due: u8,
    window: Window,
    /// READs that the device has.
    reads_out: u8,
    ring: SendRing,
    alive: Alive,
    overdue: Overdue,
    message_size: u32,
    lkey: Lkey,
    max_inline: u32,
    /// The header of the message at hand; kept, as clearing it each time would cost three
    /// instructions.
    header: [u8; HEADER_LEN],
    /// Bodies shorter than this may be sent at once: they go inline, and the connection is up. One
    /// comparison for all.
    at_once: u32,
    calls: Calls,
    ops: Ops,
    receives: Receives,
    room: Waiters,
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
        let receives = Receives::new(&layout, parts.memory.bus_addr(), parts.lkey);
        let buffers = Buffers::new(config.bulk_buffers, config.bulk_size);
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
            serves: Serves::new(config.serves, config.one_ways, buffers),
            due: 0,
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
            calls: Calls::new(config.calls),
            ops: Ops::new(config.one_sided),
            receives,
            room: Waiters::new(usize::from(config.calls) * 4),
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
        link.calls.follow(&calls);
        link.serves.follow(&serves);
        link
    }

    pub(crate) fn state(&self) -> LinkState {
        self.state
    }

    /// Returns why the connection is lost, if it is.
    pub(crate) fn cause(&self) -> Option<LostCause> {
        self.cause
    }

    pub(crate) fn counters(&self) -> &LinkCounters {
        &self.counters
    }

    /// Returns the bus address and length of its memory.
    pub(crate) fn memory(&self) -> (u64, u64) {
        (self.memory.bus_addr().0, self.memory.len() as u64)
    }

    /// Returns whether something is [due].
    #[inline(always)]
    pub(crate) fn is_due(&self) -> bool {
        self.due != 0
    }

    /// Returns whether something has arrived that the servers were not told of; from now on they
    /// were.
    #[inline(always)]
    pub(crate) fn take_arrived(&mut self) -> bool {
        let arrived = self.due & due::ARRIVED != 0;
        if arrived {
            self.due &= !due::ARRIVED;
        }
        arrived
    }

    /// Returns whether the peer is lost and everybody who waited has been told.
    pub(crate) fn is_over(&self) -> bool {
        self.state == LinkState::Down && !self.ops.has_ended()
    }

    /// The connection stands.
    pub(crate) fn up(&mut self, target: Target) {
        self.target = target;
        self.target.message_size = target.message_size.min(self.message_size);
        let inline = self.target.message_size.min(self.max_inline);
        self.at_once = inline.saturating_sub(HEADER_BYTES) + 1;
        self.calls.open(target.serves);
        self.window.open(target.one_ways);
        self.state = LinkState::Up;
        // The peer had it up before: its first requests may be here, which no server could take
        // then.
        if self.serves.has_arrived() {
            self.due |= due::ARRIVED;
        }
        self.room.wake();
    }

    fn lost(&self) -> Error {
        Error::PeerLost {
            peer: self.peer,
            cause: self.cause.unwrap_or(LostCause::QpFailed),
            waiting: None,
        }
    }

    fn error(&self, operation: Operation, failure: Failure) -> Error {
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
    fn check_up(&self) -> Result<(), Error> {
        match self.state {
            LinkState::Up | LinkState::Connecting => Ok(()),
            LinkState::Failing | LinkState::Down => Err(self.lost()),
        }
    }

    /// Keeps a waker to be woken when a slot becomes free.
    pub(crate) fn wait_for_room(&mut self, waker: &Waker) -> Result<(), Error> {
        self.check_up()?;
        match self.room.keep(waker) {
            Ok(new) => {
                self.counters.nr_back_pressure += u64::from(new);
                Ok(())
            }
            Err(TooMany { limit }) => Err(Error::Overloaded {
                peer: self.peer,
                limit,
            }),
        }
    }

    /// Finds out whether the peer still answers.
    pub(crate) fn probe(&mut self) {
        self.alive.ask();
        self.note_signs();
    }

    fn note_signs(&mut self) {
        if self.alive.owes_signs() {
            self.due |= due::BACKLOG;
        }
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
        self.receives.forget_all();
        self.serves.fail();
        self.calls.fail();
        self.ops.fail_queued(cause);
        if Mutant::LentMemoryToldEarly.on() {
            self.ops.fail_posted(cause);
        }
        self.room.wake();
    }

    /// The queue pair is dead: no buffer of this connection will be touched any more. Everyone
    /// still waiting is told.
    pub(crate) fn dead(&mut self) {
        self.fail(LostCause::QpFailed);
        self.state = LinkState::Down;
        self.ring.clear();
        self.reads_out = 0;
        self.serves.dead();
        self.calls.dead();
        self.ops
            .fail_posted(self.cause.unwrap_or(LostCause::QpFailed));
        self.room.wake();
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
        self.room.wake();
    }

    /// Asks a silent peer, and loses it when it stays so.
    fn watch_peer(&mut self, now: Instant) {
        if let Some(silent) = self.alive.look(now) {
            self.fail(LostCause::Silent(silent));
        }
        self.note_signs();
    }

    /// Loses the connection if the device owes a completion for too long.
    fn watch_completions(&mut self, now: Instant) {
        if self.overdue.look(self.ring.oldest_signalled(), now) {
            self.fail(LostCause::NoCompletion);
        }
    }
}

/// Looks of the tests at its parts.
#[cfg(test)]
impl<M: DmaBuffer> Link<M> {
    /// Slots in use: calls, then one-sided accesses.
    pub(crate) fn slots_in_use(&self) -> (usize, usize) {
        (self.calls.in_use(), self.ops.in_use())
    }

    /// Receives that the device holds.
    pub(crate) fn receives_posted(&self) -> usize {
        self.receives.posted()
    }

    /// Receives that there are.
    pub(crate) fn receives(&self) -> usize {
        self.layout.receives().into()
    }

    /// Sends any bytes as a message.
    pub(crate) fn forge<Q: verbs::QueueSet>(&mut self, queues: &mut Q, bytes: &[u8]) {
        let at = self.layout.call(0);
        self.memory.write(at, bytes);
        let piece = self.piece(at, bytes.len());
        let op = verbs::SendOp::Send { imm: None };
        let payload = verbs::Payload::Gather(&[piece]);
        self.post(queues, op, payload, crate::ring::Purpose::Unanswered);
        self.flush(queues);
    }

    /// Buffers for bulk that nobody has.
    pub(crate) fn free_buffers(&self) -> usize {
        self.serves.free_buffers()
    }

    /// Requests that the send queue holds.
    pub(crate) fn sends_outstanding(&self) -> u64 {
        self.ring.outstanding()
    }
}
