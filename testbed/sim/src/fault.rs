//! Planned faults, each of which lasts for a while.

use crate::rng::Rng;
use crate::world::NodeIndex;

pub(crate) const MS: u64 = 1_000_000;

/// Identity of a node that should not be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Impostor {
    /// Stranger with the cluster's name and another key.
    OtherKey,
    /// Stranger of another cluster, by name and key.
    OtherCluster,
    /// Stranger with the key and the GID of this node, like a copy of a machine.
    Twin(NodeIndex),
    /// Member that holds the key and breaks the protocol.
    Rogue,
}

/// A planned fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The node is switched off, and restarts at the end.
    Crash(NodeIndex),
    /// The node starts only at the end.
    Late(NodeIndex),
    /// The node leaves in order, is switched off so many nanoseconds later, and restarts at the
    /// end.
    Leave(NodeIndex, u64),
    /// Nodes whose bit is set, and perhaps the subnet manager, are cut off from the others.
    Partition {
        /// A bit for each node; strangers share them.
        nodes: u64,
        /// The subnet manager is on the side of `nodes`.
        manager: bool,
    },
    /// The node's tasks run up to so many nanoseconds late.
    Slow(NodeIndex, u64),
    /// The node's tasks do not run at all.
    Stop(NodeIndex),
    /// The node's port is down.
    Port(NodeIndex),
    /// The node's link takes so many nanoseconds more.
    Link(NodeIndex, u64),
    /// The subnet administrator answers nothing.
    Silence,
    /// Datagrams are lost nine times in ten.
    Burst,
    /// The subnet manager restarts and has forgotten all multicast groups.
    Forget {
        /// The ports are told to register again.
        told: bool,
    },
    /// The subnet manager gives the node's port another LID.
    Moved(NodeIndex),
    /// Another subnet manager takes over, at a port of its own.
    Handover {
        /// It knows the multicast groups.
        knows: bool,
        /// The ports are told to register again.
        told: bool,
    },
    /// The queue pair by which the node receives its cluster's group fails.
    Deafened(NodeIndex),
    /// The node's HCA refuses to reset queue pairs from now on, and one of its connections fails.
    /// The node is switched off so many nanoseconds later, and restarts at the end.
    Broken(NodeIndex, u64),
    /// The node's port is full of datagrams that make no sense.
    Flood(NodeIndex),
    /// A node that should not be there starts, at this place behind the others. Twins and rogues
    /// are switched off at the end, others stay.
    Stranger(NodeIndex, Impostor),
}

impl Kind {
    /// Its name in counts.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Crash(_) => "crash",
            Self::Late(_) => "late start",
            Self::Leave(..) => "orderly leave",
            Self::Partition { .. } => "partition",
            Self::Slow(..) => "slow node",
            Self::Stop(_) => "stopped node",
            Self::Port(_) => "port down",
            Self::Link(..) => "slow link",
            Self::Silence => "silent SA",
            Self::Burst => "burst of lost datagrams",
            Self::Forget { .. } => "forgetful SA",
            Self::Moved(_) => "another LID",
            Self::Handover { .. } => "another subnet manager",
            Self::Deafened(_) => "failed queue pair of the group",
            Self::Broken(..) => "broken HCA",
            Self::Flood(_) => "flood of datagrams",
            Self::Stranger(_, Impostor::OtherKey) => "stranger with another key",
            Self::Stranger(_, Impostor::OtherCluster) => "stranger of another cluster",
            Self::Stranger(_, Impostor::Twin(_)) => "stranger with a GID of another",
            Self::Stranger(_, Impostor::Rogue) => "member that breaks the protocol",
        }
    }

    /// Returns the node that the fault keeps down.
    pub(crate) fn downs(&self) -> Option<NodeIndex> {
        match *self {
            Self::Crash(node) | Self::Late(node) | Self::Leave(node, _) | Self::Broken(node, _) => {
                Some(node)
            }
            _ => None,
        }
    }
}

/// Planned fault with its begin and end, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Its beginning.
    pub from: u64,
    /// Its end.
    pub until: u64,
    /// Kind of fault.
    pub kind: Kind,
}

/// Draws the faults of a run of so many nodes, in its first `span` nanoseconds.
pub(crate) fn draw(rng: &mut Rng, nodes: usize, span: u64) -> Vec<Fault> {
    let count = rng.below(8);
    let mut strangers = nodes;
    let mut faults: Vec<Fault> = (0..count)
        .map(|_| fault(rng, nodes, &mut strangers, span))
        .collect();
    faults.sort_by_key(|fault| fault.from);
    faults
}

/// Draws the faults that came later than the others, so that the seeds' plans stay.
pub(crate) fn draw_later(rng: &mut Rng, nodes: usize, strangers: usize, span: u64) -> Vec<Fault> {
    let mut faults = Vec::new();
    if rng.chance(150_000) {
        let from = rng.between(100 * MS, span);
        faults.push(Fault {
            from,
            until: from + rng.between(1000 * MS, 5000 * MS),
            kind: Kind::Stranger(strangers, Impostor::Rogue),
        });
    }
    if rng.chance(150_000) {
        let (from, node) = (rng.between(100 * MS, span), rng.index(nodes));
        faults.push(at_once(from, Kind::Moved(node)));
    }
    if rng.chance(150_000) {
        let from = rng.between(100 * MS, span);
        let (knows, told) = (rng.chance(500_000), !rng.chance(200_000));
        faults.push(at_once(from, Kind::Handover { knows, told }));
    }
    if rng.chance(150_000) {
        let (mut from, node) = (rng.between(100 * MS, span), rng.index(nodes));
        for _ in 0..rng.between(2, 10) {
            let until = from + rng.between(MS / 10, 60 * MS);
            let kind = Kind::Port(node);
            faults.push(Fault { from, until, kind });
            from = until + rng.between(MS / 10, 60 * MS);
        }
    }
    faults
}

/// A fault that has no end.
fn at_once(from: u64, kind: Kind) -> Fault {
    let until = from + MS;
    Fault { from, until, kind }
}

fn fault(rng: &mut Rng, nodes: usize, strangers: &mut usize, span: u64) -> Fault {
    let from = rng.between(100 * MS, span);
    let node = rng.index(nodes);
    let (kind, len) = match rng.below(16) {
        0 | 1 => (Kind::Crash(node), rng.between(MS, 3000 * MS)),
        2 => {
            let kind = Kind::Partition {
                nodes: rng.number(),
                manager: rng.chance(500_000),
            };
            (kind, rng.between(MS, 4000 * MS))
        }
        3 => (
            Kind::Slow(node, rng.between(100_000, 4 * MS)),
            rng.between(100 * MS, 3000 * MS),
        ),
        4 => (
            Kind::Stop(node),
            rng.pick(&[50 * MS, 1000 * MS, 3000 * MS, 10_000 * MS]),
        ),
        5 => (Kind::Port(node), rng.between(MS, 3000 * MS)),
        6 => (
            Kind::Link(node, rng.between(10_000, 20 * MS)),
            rng.between(100 * MS, 3000 * MS),
        ),
        7 => (Kind::Silence, rng.between(100 * MS, 3000 * MS)),
        8 => (Kind::Burst, rng.between(10 * MS, 1000 * MS)),
        9 => return late(node, from),
        10 | 11 => {
            let len = rng.between(10 * MS, 4000 * MS);
            (Kind::Leave(node, rng.below(len)), len)
        }
        // Whoever is not told asks again a minute later, which makes long runs: so it is rare.
        12 => {
            let told = !rng.chance(100_000);
            (Kind::Forget { told }, MS)
        }
        13 => (Kind::Deafened(node), MS),
        _ => {
            let guise = match rng.below(3) {
                0 => Impostor::OtherKey,
                1 => Impostor::OtherCluster,
                _ => Impostor::Twin(node),
            };
            *strangers += 1;
            let kind = Kind::Stranger(*strangers - 1, guise);
            (kind, rng.between(1000 * MS, 5000 * MS))
        }
    };
    Fault {
        from,
        until: from + len,
        kind,
    }
}

fn late(node: NodeIndex, until: u64) -> Fault {
    Fault {
        from: 0,
        until,
        kind: Kind::Late(node),
    }
}
