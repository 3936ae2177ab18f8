//! Membership: the nodes of the cluster.
//!
//! A node is told its cluster's name and key and nothing else. It announces itself to a multicast
//! group whose GID follows from the name, hears the others there, and connects to them; `handshake`
//! proves that both sides hold the key. An announcement is only a hint: a node is a member once its
//! connection stands, and until that is lost.
//!
//! ```text
//!               ┌───────────────── lost ──────────────────┐
//!               ▼                                         │
//!  (nobody) ─heard─► Heard ─call─► Calling ─admitted─► Member ─probe─► answers: stays
//!               │      ▲ └────────── it called ───────────▲ │ another incarnation, or another LID
//!               │      └──failed: later────┘                └──────────► is silent: lost
//!               └── not heard for 30 s, or it left: forgotten
//! ```
//!
//! [`Membership`] decides and does nothing: it has no clock, thread or device, and chance is drawn
//! from a seed.

pub(crate) mod announcement;
mod cluster;
mod limiter;
mod machine;
pub(crate) mod proof;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::fmt;

use sha2::{Digest, Sha256};

pub(crate) use announcement::ANNOUNCEMENT_LEN;
pub use cluster::{BadKey, Cluster, Key};
pub(crate) use limiter::Limiter;
pub use machine::MembershipCounters;
pub(crate) use machine::{Action, Event, Membership};

use crate::{PeerId, PeerName};

/// One life of a node, drawn by chance when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A node of the cluster in one of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its role and GID.
    pub name: PeerName,
    /// Incarnation of the node.
    pub incarnation: Incarnation,
    /// Capacity that it offers, in MiB: memory to lend, or of its disk. 0 if it has not said.
    pub capacity: u32,
}

/// A change in who is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A node has joined: calls to it work.
    Joined(PeerId, Member),
    /// A node is lost. It comes before the node's next [`Joined`](Self::Joined), which has another
    /// [`PeerId`].
    Lost(PeerId, Member),
}

/// Members of the cluster, as one node sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The node itself.
    pub me: Member,
    /// The others, by GID.
    pub members: Vec<(PeerId, Member)>,
    /// A hash over all of them and the node itself. Nodes with the same view have the same digest.
    pub digest: u64,
    /// Number of other members that last announced the same digest.
    pub agreeing: usize,
}

/// A hash over members, which are in order of their GIDs.
fn digest<'a>(members: impl Iterator<Item = &'a Member>) -> u64 {
    let mut hash = Sha256::new();
    for member in members {
        hash.update(member.name.gid.0);
        hash.update([member.name.role.number()]);
        hash.update(member.incarnation.0.to_le_bytes());
    }
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash.finalize()[..8]);
    u64::from_le_bytes(bytes)
}
