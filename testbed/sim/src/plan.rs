//! What a run does: everything follows from the seed, and can be taken away piece by piece.

use crate::rng::{Ppm, Rng};
use crate::world::NodeIndex;

/// How often small things go wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Packets of reliable connections lost (hardware sends them again).
    pub packet_loss: Ppm,
    /// Packets of reliable connections doubled.
    pub packet_duplicate: Ppm,
    /// Datagrams lost.
    pub datagram_loss: Ppm,
    /// Datagrams doubled.
    pub datagram_duplicate: Ppm,
    /// Datagrams up to 400 ms late, and so overtaken.
    pub datagram_late: Ppm,
    /// Completions up to 20 ms late.
    pub completion_late: Ppm,
    /// Completions of sends that never come.
    pub completion_lost: Ppm,
    /// Completions of sends that come twice.
    pub completion_duplicate: Ppm,
    /// Requests that end with an error.
    pub error_completion: Ppm,
    /// Interrupts up to 50 ms late.
    pub interrupt_late: Ppm,
    /// Interrupts that never come.
    pub interrupt_lost: Ppm,
    /// Receivers that say that they are not ready.
    pub not_ready: Ppm,
}

/// A rate among the others.
type Field = fn(&mut Rates) -> &mut Ppm;

/// The rates by name, with the most that a run has of each.
const KINDS: [(&str, Ppm, Field); 12] = [
    ("packet-loss", 20_000, |rates| &mut rates.packet_loss),
    ("packet-duplicate", 20_000, |rates| &mut rates.packet_duplicate),
    ("datagram-loss", 300_000, |rates| &mut rates.datagram_loss),
    ("datagram-duplicate", 200_000, |rates| {
        &mut rates.datagram_duplicate
    }),
    ("datagram-late", 200_000, |rates| &mut rates.datagram_late),
    ("completion-late", 50_000, |rates| &mut rates.completion_late),
    ("completion-lost", 300, |rates| &mut rates.completion_lost),
    ("completion-duplicate", 1000, |rates| {
        &mut rates.completion_duplicate
    }),
    ("error-completion", 300, |rates| &mut rates.error_completion),
    ("interrupt-late", 100_000, |rates| &mut rates.interrupt_late),
    ("interrupt-lost", 50_000, |rates| &mut rates.interrupt_lost),
    ("not-ready", 20_000, |rates| &mut rates.not_ready),
];

/// Names of the rates.
pub fn rate_names() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(name, ..)| *name)
}

impl Rates {
    /// Takes the rate of this name away. Returns whether there was one above zero.
    pub fn without(&mut self, name: &str) -> bool {
        let known = KINDS.iter().find(|(known, ..)| *known == name);
        known.is_some_and(|(.., rate)| std::mem::take(rate(self)) > 0)
    }
}

/// A planned fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The node is gone, and starts anew at the end.
    Crash(NodeIndex),
    /// Nodes whose bit is set, and perhaps the subnet manager, are cut off from the others.
    Partition {
        /// A bit for each node.
        nodes: u64,
        /// Whether the subnet manager is on their side.
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
}

impl Kind {
    /// Its name in counts.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Crash(_) => "crash",
            Self::Partition { .. } => "partition",
            Self::Slow(..) => "slow node",
            Self::Stop(_) => "stopped node",
            Self::Port(_) => "port down",
            Self::Link(..) => "slow link",
            Self::Silence => "silent SA",
            Self::Burst => "burst of lost datagrams",
        }
    }
}

/// When a fault begins and ends, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Its beginning.
    pub from: u64,
    /// Its end.
    pub until: u64,
    /// What goes wrong.
    pub kind: Kind,
}

/// A deliberate bug in the simulated hardware, which shows that a rule can be broken.
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
    /// Nobody looks at deadlines any more.
    StandingClock,
    /// The subnet administrator never answers, though no fault says so.
    SilentAdministrator,
}

/// Everything that a run is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where it all comes from.
    pub seed: u64,
    /// Nodes.
    pub nodes: usize,
    /// Peers that each node talks to.
    pub degree: usize,
    /// Operations of each node with each peer.
    pub operations: u32,
    /// Small things that go wrong.
    pub rates: Rates,
    /// Big things that go wrong.
    pub faults: Vec<Fault>,
    /// When the faults stop, in nanoseconds.
    pub calm: u64,
    /// How fast or slow clocks run at most.
    pub skew: Ppm,
    /// The deadline of operations, in milliseconds.
    pub timeout_ms: u64,
    /// Calls at once, on both sides.
    pub calls: u16,
    /// One-sided accesses at once.
    pub one_sided: u16,
    /// Every how many requests one is signalled.
    pub signal_every: u16,
    /// Empty polls before a core rests.
    pub poll_budget: u32,
    /// The deliberate bug, if any.
    pub sabotage: Option<Sabotage>,
}

const MS: u64 = 1_000_000;

impl Plan {
    /// The plan of a seed, of a number of nodes or one that the seed chooses.
    #[must_use]
    pub fn new(seed: u64, nodes: Option<usize>) -> Self {
        let mut rng = Rng::of(seed, 0);
        let usual = [2, 2, 3, 3, 4, 5, 6, 8, 12, 16];
        let chosen = rng.pick(&usual);
        let nodes = nodes.unwrap_or(chosen).clamp(2, 64);
        let mut rates = Rates::default();
        for (_, most, rate) in KINDS {
            // Each run has some kinds and none of others, so that rare ones are not drowned.
            if rng.chance(400_000) {
                *rate(&mut rates) = u32::try_from(rng.between(1, u64::from(most))).expect("a rate");
            }
        }
        let span = rng.between(2, 12) * 1000 * MS;
        let count = rng.below(7);
        let mut faults: Vec<Fault> = (0..count).map(|_| fault(&mut rng, nodes, span)).collect();
        faults.sort_by_key(|fault| fault.from);
        let calm = faults
            .iter()
            .map(|fault| fault.until)
            .max()
            .unwrap_or(0)
            .max(span);
        Self {
            seed,
            nodes,
            degree: (nodes - 1).min(6),
            operations: u32::try_from(rng.between(10, 200)).expect("few"),
            rates,
            faults,
            calm,
            skew: rng.pick(&[0, 50, 1000, 50_000]),
            timeout_ms: rng.pick(&[300, 1000, 3000, 6000]),
            calls: rng.pick(&[1, 2, 4, 8]),
            one_sided: rng.pick(&[1, 2, 8]),
            signal_every: rng.pick(&[1, 2, 4, 8]),
            poll_budget: rng.pick(&[1, 3, 10]),
            sabotage: None,
        }
    }

    /// Whether two nodes talk to each other: a ring with chords.
    #[must_use]
    pub fn talk(&self, a: NodeIndex, b: NodeIndex) -> bool {
        let distance = a.abs_diff(b);
        let around = distance.min(self.nodes - distance);
        around > 0 && around <= self.degree.div_ceil(2)
    }
}

fn fault(rng: &mut Rng, nodes: usize, span: u64) -> Fault {
    let from = rng.between(100 * MS, span);
    let node = rng.index(nodes);
    let (kind, len) = match rng.below(9) {
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
        _ => (Kind::Burst, rng.between(10 * MS, 1000 * MS)),
    };
    Fault {
        from,
        until: from + len,
        kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_has_someone_to_talk_to_and_the_talk_goes_both_ways() {
        for nodes in 2..=64 {
            let plan = Plan::new(1, Some(nodes));
            for a in 0..nodes {
                assert!((0..nodes).any(|b| plan.talk(a, b)), "{a} of {nodes}");
                assert!((0..nodes).all(|b| plan.talk(a, b) == plan.talk(b, a)));
                assert!(!plan.talk(a, a));
            }
        }
    }

    #[test]
    fn a_rate_can_be_taken_away_by_its_name() {
        let mut rates = Rates {
            not_ready: 3,
            ..Rates::default()
        };
        assert!(rates.without("not-ready"));
        assert!(!rates.without("not-ready"));
        assert_eq!(rates, Rates::default());
    }
}
