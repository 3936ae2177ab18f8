//! Deliberate bugs, by which the tests see that the checker finds each kind.

/// A deliberate bug, which shows that a rule can be broken. It is in the simulated hardware, or in
/// what the simulated nodes do with FIT; never in FIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Sabotage {
    /// A message is delivered twice.
    DoubleDelivery,
    /// A READ's bytes land once more, long after its completion.
    LateRead,
    /// A WRITE is acknowledged and not done.
    LostWrite,
    /// A receive that was posted is forgotten.
    LostReceive,
    /// A completion queue is shorter than was asked for.
    ShortCompletionQueue,
    /// Deadlines are no longer checked.
    StandingClock,
    /// The subnet administrator never answers, without a planned fault.
    SilentAdministrator,
    /// A send queue is shorter than was asked for.
    ShortSendQueue,
    /// A receive is completed and stays posted.
    KeptReceive,
    /// A queue pair is said to be ready to send, and is not.
    StuckQueuePair,
    /// One receive of each connection is lost: too few to run dry.
    LeakedReceive,
    /// The switch forwards no multicast to or from one node.
    DeafNode,
    /// One node answers no call.
    MuteNode,
    /// A node changes what it has given to be sent.
    ScribbledWrite,
    /// A node frees memory that it has lent.
    FreedBuffer,
    /// A node takes the end of an access twice.
    DoubleEnd,
    /// A node tries to connect to ever more nodes that do not exist.
    RestlessCaller,
    /// A handler panics.
    PanickingHandler,
    /// A task wakes itself again and again.
    SpinningTask,
    /// A task that waits for the end of an operation is not woken when its peer is lost.
    LostWake,
    /// A node's list of members still contains lost ones.
    StaleList,
    /// A handler is not told of a peer that is lost.
    UntoldLoss,
    /// Silent peers are not probed.
    NoKeepAlive,
    /// Requests fail when the faults are long over.
    LateError,
    /// A stranger was given the key.
    LeakedKey,
}
