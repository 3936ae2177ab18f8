//! Invariants, and the message of a broken one.

use std::fmt;

/// An invariant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// No request is posted beyond the depth of a work queue.
    QueueDepth,
    /// A completion queue never overruns.
    CompletionQueue,
    /// An honest peer never finds the receive queue empty.
    ReceiveQueueDry,
    /// A request is posted only where hardware takes it: state, kind, keys, sizes.
    Post,
    /// Memory that its owner did not lend, or got back, is not touched.
    OwnedMemory,
    /// Freed memory is not touched.
    FreedMemory,
    /// A buffer does not change between its post and its departure.
    SendBuffer,
    /// A receive buffer is posted once at a time.
    ReceiveBuffer,
    /// A call's request is seen by a handler at most once.
    SeenOnce,
    /// A call or READ returns the right bytes.
    Content,
    /// An acknowledged operation has taken effect.
    Acknowledged,
    /// Every operation ends, by its deadline and a bound.
    Ends,
    /// Every operation ends only once.
    EndsOnce,
    /// Once faults stop, everyone can call everyone within a bound.
    Convergence,
    /// Once faults have stopped and a bounded time has passed, no operation fails, and each pair of
    /// nodes carries out one of each kind.
    Calm,
    /// Once faults stop, all views become the same within a bound, contain exactly the live nodes,
    /// and stay so.
    Views,
    /// No view contains two incarnations of one node at once.
    OneLife,
    /// A handler is told that a node has joined and that it is lost in turn, of each that its node
    /// sees.
    JoinedAndLost,
    /// A peer that is gone, stopped or out of reach is lost within a bound.
    LostInTime,
    /// Every member holds the key and has its own identity.
    Stranger,
    /// No stranger's answer leads a connection request to another port.
    Astray,
    /// Whoever waits for a lost peer is told.
    Told,
    /// At rest all credits and slots are free.
    Credits,
    /// Tables are bounded, and what is registered for a lost peer is taken back.
    Growth,
    /// No task panics.
    Panic,
    /// No task wakes itself endlessly.
    Progress,
}

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// Time of the violation, in nanoseconds of virtual time.
    pub at: u64,
    /// Event that broke the rule, as text.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} broken at {}: {}",
            self.rule,
            crate::trace::Time(self.at),
            self.what
        )
    }
}
