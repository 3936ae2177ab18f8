//! True membership of the cluster, against which each node's view is checked.

use std::collections::{BTreeMap, BTreeSet};

use fit::{Incarnation, Member, PeerId, View};
use verbs::{Domain, Gid, QpState};

use crate::check::Phase;
use crate::fault::Impostor;
use crate::plan::Plan;
use crate::rule::Rule;
use crate::world::{Life, NodeIndex, World};

/// Time that the loss of a silent peer may take beyond the keep-alive bound: late checks, the
/// teardown of queue pairs.
const LOSS_GRACE: u64 = 1_500_000_000;

/// Identity of a life of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) life: Life,
    pub(crate) gid: Gid,
    /// Guise, if the node should not be there; `None` for a node of the cluster.
    pub(crate) guise: Option<Impostor>,
}

impl Identity {
    /// Returns whether the two hold the same key.
    fn is_akin(&self, other: &Self) -> bool {
        let camp = |guise: Option<Impostor>| match guise {
            None | Some(Impostor::Twin(_) | Impostor::Rogue) => 0,
            Some(Impostor::OtherKey) => 1,
            Some(Impostor::OtherCluster) => 2,
        };
        camp(self.guise) == camp(other.guise)
    }
}

/// Membership as a life's handler was told it.
#[derive(Default)]
struct ReportedMembership {
    here: BTreeMap<PeerId, Member>,
    /// Numbers that were given.
    used: BTreeSet<PeerId>,
}

/// True membership, which nodes can't know.
pub(crate) struct TrueMembership {
    /// Identity of every life of FIT, by the incarnation that it drew.
    lives: BTreeMap<Incarnation, Identity>,
    /// Time at which each life ended or began to leave.
    ended: BTreeMap<Life, u64>,
    /// Time since which no packet of node `from` reaches node `to`: `[to][from]`; `None` while
    /// packets pass.
    deaf: Vec<Vec<Option<u64>>>,
    /// Time since which each node has been running normally; `None` while it is not.
    steady: Vec<Option<u64>>,
    /// Time since which each connection has been in a view.
    seen: BTreeMap<(Life, PeerId), u64>,
    /// Reports to each life's handler.
    told: BTreeMap<Life, ReportedMembership>,
    /// The last views, for a node that forgets to strike out.
    stale: BTreeMap<Life, Vec<(PeerId, Member)>>,
}

impl TrueMembership {
    pub(crate) fn new(nodes: usize) -> Self {
        Self {
            lives: BTreeMap::new(),
            ended: BTreeMap::new(),
            deaf: vec![vec![None; nodes]; nodes],
            steady: vec![None; nodes],
            seen: BTreeMap::new(),
            told: BTreeMap::new(),
            stale: BTreeMap::new(),
        }
    }

    /// Notes that a life of FIT begins.
    pub(crate) fn begins(&mut self, incarnation: Incarnation, identity: Identity) {
        self.lives.insert(incarnation, identity);
    }

    /// Notes that a life announces its leave.
    pub(crate) fn leaves(&mut self, life: Life, now: u64) {
        self.ended.entry(life).or_insert(now);
    }

    /// Notes that a life is over.
    pub(crate) fn ends(&mut self, life: Life, now: u64) {
        self.leaves(life, now);
        self.told.remove(&life);
        self.stale.remove(&life);
        self.seen.retain(|(of, _), _| *of != life);
    }

    /// Returns whether a life has ended or begun to leave.
    pub(crate) fn has_ended(&self, life: Life) -> bool {
        self.ended.contains_key(&life)
    }
}

impl World {
    /// Returns whether a life goes on and has not left.
    fn is_there(&self, life: Life) -> bool {
        let node = &self.nodes[life.node];
        node.alive && node.incarnation == life.incarnation && !self.truth.has_ended(life)
    }

    /// Notes who can hear whom, whenever that may have changed.
    pub(crate) fn note_hearing(&mut self) {
        let now = self.now;
        for to in 0..self.nodes.len() {
            let node = &self.nodes[to];
            let steady = node.alive && node.cpu.stopped_until <= now && node.cpu.slow == 0;
            let since = &mut self.truth.steady[to];
            *since = since.filter(|_| steady).or(steady.then_some(now));
            for from in 0..self.nodes.len() {
                let speaks = self.nodes[from].alive && self.nodes[from].cpu.stopped_until <= now;
                let hears = speaks && self.net.joined(Some(from), Some(to));
                let since = &mut self.truth.deaf[to][from];
                *since = since.filter(|_| !hears).or((!hears).then_some(now));
            }
        }
    }

    /// Looks at what a node says of who is there; `bound` is how long a peer may be silent.
    pub(crate) fn look_at_view(&mut self, node: NodeIndex, mut view: View, bound: u64) {
        let life = self.life(node);
        let Some(me) = self.truth.lives.get(&view.me.incarnation).copied() else {
            return;
        };
        if self.has(crate::Sabotage::StaleList) {
            let stale = self.truth.stale.entry(life).or_default();
            for member in &view.members {
                if !stale.contains(member) {
                    stale.push(*member);
                }
            }
            view.members.clone_from(stale);
        }
        let mut gids = BTreeMap::new();
        for (peer, member) in &view.members {
            let other = gids.insert(member.name.gid, member.incarnation);
            if other.is_some_and(|other| other != member.incarnation) {
                self.violate(
                    Rule::OneLife,
                    format_args!("node {node} sees two incarnations of {}", member.name),
                );
            }
            let known = self.truth.lives.get(&member.incarnation).copied();
            match known.filter(|known| known.is_akin(&me) && known.gid == member.name.gid) {
                None => self.violate(
                    Rule::Stranger,
                    format_args!("node {node} has a member {} {member:?}", peer.0),
                ),
                Some(known) => self.look_at_member(node, *peer, known.life, bound),
            }
        }
        self.truth.seen.retain(|(of, peer), _| {
            *of != life || view.members.iter().any(|(known, _)| known == peer)
        });
    }

    /// Checks that a silent peer is lost in time.
    fn look_at_member(&mut self, node: NodeIndex, peer: PeerId, of: Life, bound: u64) {
        let (life, now) = (self.life(node), self.now);
        let seen = *self.truth.seen.entry((life, peer)).or_insert(now);
        let ended = self.truth.ended.get(&of).copied();
        let silent = ended.or(self.truth.deaf[node][of.node]);
        let (Some(silent), Some(steady)) = (silent, self.truth.steady[node]) else {
            return;
        };
        let since = silent.max(steady).max(seen);
        let bound = self.nodes[node].clock.real(bound) + LOSS_GRACE;
        if now - since > bound && !self.truth.has_ended(life) {
            self.violate(
                Rule::LostInTime,
                format_args!(
                    "node {node} has not lost node {} (peer {}), silent for {} ms",
                    of.node,
                    peer.0,
                    (now - since) / 1_000_000
                ),
            );
        }
    }

    /// Returns the first difference between the views and the truth; `None` if all agree.
    pub(crate) fn disagreement(
        &self,
        plan: &Plan,
        views: &BTreeMap<NodeIndex, View>,
    ) -> Option<String> {
        let there: BTreeMap<NodeIndex, (Gid, Incarnation)> = self
            .truth
            .lives
            .iter()
            .filter(|(_, identity)| identity.guise.is_none() && self.is_there(identity.life))
            .map(|(incarnation, identity)| (identity.life.node, (identity.gid, *incarnation)))
            .collect();
        let started = (0..plan.nodes).filter(|&node| self.is_there(self.life(node)));
        for node in started {
            let (Some(view), true) = (views.get(&node), there.contains_key(&node)) else {
                return Some(format!("node {node} has not started"));
            };
            let wanted: BTreeSet<_> = there
                .iter()
                .filter(|(other, _)| **other != node && (plan.discover || plan.talk(node, **other)))
                .map(|(_, member)| *member)
                .collect();
            let seen: BTreeSet<_> = view
                .members
                .iter()
                .map(|(_, member)| (member.name.gid, member.incarnation))
                .collect();
            if let Some((gid, incarnation)) = wanted.difference(&seen).next() {
                return Some(format!("node {node} does not see {gid} {incarnation}"));
            }
            if let Some((gid, incarnation)) = seen.difference(&wanted).next() {
                return Some(format!("node {node} still sees {gid} {incarnation}"));
            }
        }
        if plan.discover {
            disputed(views, &there)
        } else {
            None
        }
    }

    /// Checks a handler's report that a node has joined.
    pub(crate) fn told_joined(&mut self, life: Life, peer: PeerId, member: Member) {
        let node = life.node;
        self.quiet(node, &member);
        let told = self.truth.told.entry(life).or_default();
        let again = told
            .here
            .values()
            .any(|known| known.name.gid == member.name.gid);
        let fresh = told.used.insert(peer);
        told.here.insert(peer, member);
        if again || !fresh {
            let number = peer.0;
            self.violate(
                Rule::JoinedAndLost,
                format_args!(
                    "node {node} is told that {} joins as {number}, and it or this number is there",
                    member.name
                ),
            );
        }
        let now = self.now;
        let name = member.name;
        self.trace.event(now, 6, [node as u64, peer.0.into(), 1]);
        self.trace.say(
            now,
            format_args!(
                "node {node}: {name} {} joins as peer {}",
                member.incarnation, peer.0
            ),
        );
    }

    /// Checks, when a peer is reported as lost, that all queue pairs of its domain are reset, so
    /// that none touches memory any more.
    pub(crate) fn check_let_go(&mut self, node: NodeIndex, domain: Domain) {
        let mut pairs = self.nodes[node].qps.values();
        // One in INIT takes no packets: its making was broken off.
        let still = [QpState::Reset, QpState::Init];
        let alive = pairs.find(|qp| qp.domain == domain && !still.contains(&qp.state));
        if let Some((qpn, state)) = alive.map(|qp| (qp.qpn, qp.state)) {
            self.violate(
                Rule::OwnedMemory,
                format_args!(
                    "node {node}: {qpn} is in {state:?} though its peer was reported as lost"
                ),
            );
        }
    }

    /// Checks a handler's report that a peer is lost: every waiter for it must get an error soon.
    pub(crate) fn told_lost(&mut self, life: Life, peer: PeerId) {
        let node = life.node;
        let known = self.truth.told.entry(life).or_default().here.remove(&peer);
        match known {
            Some(member) => self.quiet(node, &member),
            None => self.violate(
                Rule::JoinedAndLost,
                format_args!(
                    "node {node} is told of the loss of peer {}, which never joined",
                    peer.0
                ),
            ),
        }
        self.check.lost(life, peer, self.now);
        let now = self.now;
        self.trace.event(now, 6, [node as u64, peer.0.into(), 0]);
        self.trace
            .say(now, format_args!("node {node}: peer {} is lost", peer.0));
    }

    /// Reports a violation if a member comes or goes in the rest, after the last fault.
    fn quiet(&mut self, node: NodeIndex, member: &Member) {
        if matches!(self.check.phase, Phase::Calm | Phase::Rest) && node < self.check.nodes {
            self.violate(
                Rule::Views,
                format_args!(
                    "node {node}: {} comes or goes, long after the last fault",
                    member.name
                ),
            );
        }
    }

    /// Checks that a handler was told the members of its view, once all is quiet.
    pub(crate) fn check_told(&mut self, node: NodeIndex, view: &View) {
        let life = self.life(node);
        let told = self.truth.told.get(&life);
        let told: Vec<PeerId> = told
            .into_iter()
            .flat_map(|told| told.here.keys())
            .copied()
            .collect();
        let mut seen: Vec<PeerId> = view.members.iter().map(|(peer, _)| *peer).collect();
        seen.sort_unstable();
        if told != seen {
            self.violate(
                Rule::JoinedAndLost,
                format_args!("node {node} sees {seen:?}, and its handler was told of {told:?}"),
            );
        }
    }
}

/// Returns the first difference between views whose digests must be equal; `None` if there is none.
fn disputed(
    views: &BTreeMap<NodeIndex, View>,
    there: &BTreeMap<NodeIndex, (Gid, Incarnation)>,
) -> Option<String> {
    let all = || {
        there
            .keys()
            .filter_map(|node| Some((*node, views.get(node)?)))
    };
    let (first, digest) = all().next().map(|(node, view)| (node, view.digest))?;
    if let Some((node, view)) = all().find(|(_, view)| view.digest != digest) {
        let members = &view.members;
        return Some(format!(
            "node {node} has another digest than node {first}, and sees {members:?}"
        ));
    }
    let others = there.len() - 1;
    let (node, view) = all().find(|(_, view)| view.agreeing != others)?;
    let agreeing = view.agreeing;
    Some(format!(
        "node {node} knows only {agreeing} of {others} others to agree with it"
    ))
}
