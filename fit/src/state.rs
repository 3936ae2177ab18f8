//! States and terms of a connection, and reasons why a slot of it failed.

use hal::Duration;

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
