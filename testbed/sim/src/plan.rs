//! Plan of a run: everything follows from the seed, and parts can be taken away one by one.

use crate::fault::{self, Fault, Impostor, Kind, MS};
use crate::rng::{Ppm, Rng, mix};
use crate::sabotage::Sabotage;
use crate::world::{Life, NodeIndex};

/// Rates of small faults.
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
    /// Announcements and connection messages that the hostile node replays, garbles or makes up,
    /// for each that is sent.
    pub hostile: Ppm,
    /// Firmware commands that take up to 40 ms more.
    pub slow_command: Ppm,
    /// Firmware commands that are refused.
    pub failed_command: Ppm,
    /// Requests whose handlers compute for up to 20 ms, in which their node does nothing else.
    pub busy_handler: Ppm,
}

/// A rate among the others.
type Field = fn(&mut Rates) -> &mut Ppm;

/// The rates by name, with the most that a run has of each.
const KINDS: [(&str, Ppm, Field); 16] = [
    ("packet-loss", 20_000, |rates| &mut rates.packet_loss),
    ("packet-duplicate", 20_000, |rates| {
        &mut rates.packet_duplicate
    }),
    ("datagram-loss", 300_000, |rates| &mut rates.datagram_loss),
    ("datagram-duplicate", 200_000, |rates| {
        &mut rates.datagram_duplicate
    }),
    ("datagram-late", 200_000, |rates| &mut rates.datagram_late),
    ("completion-late", 50_000, |rates| {
        &mut rates.completion_late
    }),
    ("completion-lost", 300, |rates| &mut rates.completion_lost),
    ("completion-duplicate", 1000, |rates| {
        &mut rates.completion_duplicate
    }),
    ("error-completion", 300, |rates| &mut rates.error_completion),
    ("interrupt-late", 100_000, |rates| &mut rates.interrupt_late),
    ("interrupt-lost", 50_000, |rates| &mut rates.interrupt_lost),
    ("not-ready", 20_000, |rates| &mut rates.not_ready),
    ("hostile", 300_000, |rates| &mut rates.hostile),
    ("slow-command", 200_000, |rates| &mut rates.slow_command),
    ("failed-command", 100_000, |rates| &mut rates.failed_command),
    ("busy-handler", 20_000, |rates| &mut rates.busy_handler),
];

/// Purpose of the numbers that are drawn for the rates added last.
const LATER: u64 = 0x1a7e;

/// Purpose of the numbers that are drawn for the faults added last.
const LATEST: u64 = 0x1a7f;

/// Returns the number of nodes and strangers.
fn places(nodes: usize, faults: &[Fault]) -> usize {
    let strangers = faults.iter().filter_map(|fault| match fault.kind {
        Kind::Stranger(place, _) => Some(place + 1),
        _ => None,
    });
    strangers.max().unwrap_or(0).max(nodes)
}

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

/// Settings of one life of a node. Nodes with other numbers work with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) cores: u16,
    pub(crate) calls: u16,
    pub(crate) serves: u16,
    pub(crate) one_sided: u16,
    pub(crate) one_ways: u16,
}

/// Parameters and faults of a run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Seed of the run's RNGs.
    pub seed: u64,
    /// Nodes.
    pub nodes: usize,
    /// Nodes find each other by multicast. If unset, each is given its neighbours and tries to
    /// connect to each as long as it runs: nobody else restores a lost connection, and no peer is
    /// forgotten.
    pub discover: bool,
    /// Peers that each node talks to.
    pub degree: usize,
    /// Operations of each node with each peer.
    pub operations: u32,
    /// Small things that go wrong.
    pub rates: Rates,
    /// Big things that go wrong.
    pub faults: Vec<Fault>,
    /// Time at which the faults stop, in nanoseconds.
    pub calm: u64,
    /// Largest deviation of a clock's rate.
    pub skew: Ppm,
    /// The deadline of operations, in milliseconds.
    pub timeout_ms: u64,
    /// Keep-alive bound: the longest silence of a peer, in milliseconds.
    pub keepalive_ms: u64,
    /// Each peer's connections and memory are in a protection domain of their own.
    pub own_domains: bool,
    /// Connections that a node can have beyond those it needs.
    pub spare: u16,
    /// The most cores that a life of a node has; each chooses.
    pub cores: u16,
    /// Calls at once, on both sides; each life chooses up to so many.
    pub calls: u16,
    /// One-sided accesses at once; each life chooses up to so many.
    pub one_sided: u16,
    /// Number of requests for each signalled one.
    pub signal_every: u16,
    /// Empty polls before a core rests.
    pub poll_budget: u32,
    /// The deliberate bug, if any.
    pub sabotage: Option<Sabotage>,
}

impl Plan {
    /// Creates the plan of a seed, with `nodes` nodes or a number that the seed chooses.
    #[must_use]
    pub fn new(seed: u64, nodes: Option<usize>) -> Self {
        let mut rng = Rng::of(seed, 0);
        let usual = [2, 2, 3, 3, 4, 5, 6, 8, 12, 16];
        let chosen = rng.pick(&usual);
        let nodes = nodes.unwrap_or(chosen).clamp(2, 64);
        let mut rates = Rates::default();
        // What came later than the others draws by itself, so that the seeds' plans stay.
        let (mut later, mut latest) = (Rng::of(seed, LATER), Rng::of(seed, LATEST));
        for (name, most, rate) in KINDS {
            let rng = match name {
                "slow-command" => &mut later,
                "failed-command" | "busy-handler" => &mut latest,
                _ => &mut rng,
            };
            // Each run has some kinds and none of others, so that rare ones are not drowned.
            if rng.chance(400_000) {
                *rate(&mut rates) = u32::try_from(rng.between(1, u64::from(most))).expect("a rate");
            }
        }
        let span = rng.between(2, 12) * 1000 * MS;
        let mut faults = fault::draw(&mut rng, nodes, span);
        let strangers = places(nodes, &faults);
        faults.extend(fault::draw_later(&mut latest, nodes, strangers, span));
        let is_rogue = |fault: &Fault| matches!(fault.kind, Kind::Stranger(_, Impostor::Rogue));
        // A member reaches whatever is registered in its domain.
        let with_rogue = faults.iter().any(is_rogue);
        let calm = faults
            .iter()
            .map(|fault| fault.until)
            .max()
            .unwrap_or(0)
            .max(span);
        Self {
            seed,
            nodes,
            discover: !rng.chance(125_000),
            degree: (nodes - 1).min(6),
            operations: u32::try_from(rng.between(10, 200)).expect("few"),
            rates,
            faults,
            calm,
            skew: rng.pick(&[0, 50, 1000, 50_000]),
            timeout_ms: rng.pick(&[300, 1000, 3000, 6000]),
            keepalive_ms: rng.pick(&[500, 1000, 2000, 2000]),
            own_domains: rng.chance(500_000) | with_rogue,
            spare: rng.pick(&[0, 1, 4]),
            cores: rng.pick(&[1, 1, 2, 3]),
            calls: rng.pick(&[1, 2, 4, 8]),
            one_sided: rng.pick(&[1, 2, 8]),
            signal_every: rng.pick(&[1, 2, 4, 8]),
            poll_budget: rng.pick(&[1, 3, 10]),
            sabotage: None,
        }
    }

    /// Nodes and strangers: who has a place in the world.
    #[must_use]
    pub fn places(&self) -> usize {
        places(self.nodes, &self.faults)
    }

    /// Returns the guise of the stranger at `place`, which is not a place of the cluster's nodes.
    pub(crate) fn guise(&self, place: NodeIndex) -> Option<Impostor> {
        self.faults.iter().find_map(|fault| match fault.kind {
            Kind::Stranger(at, guise) if at == place => Some(guise),
            _ => None,
        })
    }

    /// Returns the places of members that break the protocol.
    pub(crate) fn rogues(&self) -> Vec<NodeIndex> {
        let strangers = self.faults.iter().filter_map(|fault| match fault.kind {
            Kind::Stranger(place, Impostor::Rogue) => Some(place),
            _ => None,
        });
        strangers.collect()
    }

    /// Returns the most connections that a core needs: to each other node, or to its given
    /// neighbours, each of which may have more cores than this one.
    pub(crate) fn connections(&self, shape: &Shape) -> u16 {
        let needed = if self.discover {
            self.nodes - 1
        } else {
            self.degree
        };
        let lanes = self.cores.div_ceil(shape.cores);
        // Rogues are members too.
        let needed = needed + self.rogues().len();
        u16::try_from(needed).expect("few nodes") * lanes + self.spare
    }

    /// Returns the settings of one life of a node.
    pub(crate) fn shape(&self, life: Life) -> Shape {
        let purpose = mix(life.node as u64 ^ 0x5a9e) ^ u64::from(life.incarnation);
        let mut rng = Rng::of(self.seed, purpose);
        let mut upto =
            |most: u16| u16::try_from(rng.between(1, most.into())).expect("at most that");
        Shape {
            cores: upto(self.cores),
            calls: upto(self.calls),
            serves: upto(self.calls),
            one_sided: upto(self.one_sided),
            one_ways: upto(self.calls.min(5)),
        }
    }

    /// Pairs of nodes of which the first talks to the second.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (NodeIndex, NodeIndex)> {
        let all = (0..self.nodes).flat_map(|a| (0..self.nodes).map(move |b| (a, b)));
        all.filter(|&(a, b)| self.talk(a, b))
    }

    /// Returns whether two nodes talk to each other: a ring with chords.
    #[must_use]
    pub fn talk(&self, a: NodeIndex, b: NodeIndex) -> bool {
        if a.max(b) >= self.nodes {
            return a.min(b) < self.nodes && self.guise(a.max(b)) == Some(Impostor::Rogue);
        }
        let distance = a.abs_diff(b);
        let around = distance.min(self.nodes - distance);
        around > 0 && around <= self.degree.div_ceil(2)
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
