//! Whole clusters of state machines over a network of datagrams that are lost, late, doubled and
//! reordered.

use std::collections::BTreeMap;

use hal::{Duration, Instant};
use proptest::prelude::*;
use verbs::{Address, Gid, Lid};

use super::proof::Rng;
use super::*;
use crate::Role;

const STEP: Duration = Duration::from_millis(50);
const KEEPALIVE: u64 = 2000;

/// Faults that the test brings about in the cluster.
#[derive(Debug, Clone)]
enum Fault {
    Crash(usize),
    Start(usize),
    Leave(usize),
    /// A connection breaks.
    Break(usize, usize),
    Wait(u64),
    /// An announcement that was heard before comes again.
    Replay(usize),
}

enum Due {
    Datagram(Address, Vec<u8>),
    /// A node of this life asks for a connection.
    Call(Gid, Incarnation),
    CallFailed(Gid),
    /// A node finds out whether the link with this number still has another end.
    Check(PeerId),
}

struct Node {
    machine: Membership,
    /// By peer: who is at the other end, in which life.
    links: BTreeMap<PeerId, (Gid, Incarnation)>,
    peers: u16,
    told: Vec<Change>,
}

struct World {
    now: Instant,
    nodes: BTreeMap<Gid, Node>,
    queue: BTreeMap<(Instant, u64), (Gid, Due)>,
    heard: Vec<(Address, Vec<u8>)>,
    rng: Rng,
    lossy: bool,
    lives: u64,
}

fn gid(number: usize) -> Gid {
    Gid([u8::try_from(number).unwrap() + 1; 16])
}

fn address(gid: Gid) -> Address {
    Lid(gid.0[0].into()).into()
}

fn cluster() -> Cluster {
    Cluster::new("c", Key::new([9; 32]))
}

impl World {
    fn new(seed: u64) -> Self {
        let mut bytes = [1; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Self {
            now: Instant::from_nanos(1),
            nodes: BTreeMap::new(),
            queue: BTreeMap::new(),
            heard: Vec::new(),
            rng: Rng::new(bytes),
            lossy: true,
            lives: 0,
        }
    }

    fn later(&mut self, millis: u64, to: Gid, due: Due) {
        let at = self.now + Duration::from_millis(millis);
        let unique = self.rng.number();
        self.queue.insert((at, unique), (to, due));
    }

    fn start(&mut self, gid: Gid) {
        if self.nodes.contains_key(&gid) {
            return;
        }
        self.lives += 1;
        let me = Member {
            name: PeerName {
                role: Role::Memory,
                gid,
            },
            incarnation: Incarnation::default(),
            capacity: 1,
        };
        let mut machine = Membership::new(me, 0, cluster(), self.rng.fork(), self.now);
        machine.set_port(gid, address(gid));
        let node = Node {
            machine,
            links: BTreeMap::new(),
            peers: 0,
            told: Vec::new(),
        };
        self.nodes.insert(gid, node);
    }

    /// The node is gone; the others find out by and by.
    fn stop(&mut self, gone: Gid, found_out: u64) {
        self.nodes.remove(&gone);
        let ends: Vec<(Gid, PeerId)> = self
            .nodes
            .iter()
            .flat_map(|(&gid, node)| node.links.iter().map(move |(&peer, end)| (gid, peer, *end)))
            .filter(|(.., end)| end.0 == gone)
            .map(|(gid, peer, _)| (gid, peer))
            .collect();
        for (gid, peer) in ends {
            self.later(found_out, gid, Due::Check(peer));
        }
    }

    fn event(&mut self, at: Gid, event: Event<'_>) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&at) else {
            return;
        };
        let actions = node.machine.on(event, now);
        let life = node.machine.me().incarnation;
        for action in actions {
            match action {
                Action::Announce(bytes) => self.announce(at, &*bytes),
                Action::Call(name) => {
                    let delay = 20 + self.rng.below(200);
                    self.later(delay, name.gid, Due::Call(at, life));
                }
                Action::Probe(peer) => self.later(30, at, Due::Check(peer)),
                Action::Drop(peer) => self.lose(at, peer),
                Action::Tell(change) => self.nodes.get_mut(&at).unwrap().told.push(change),
            }
        }
    }

    fn announce(&mut self, from: Gid, bytes: &[u8]) {
        self.heard.push((address(from), bytes.to_vec()));
        let all: Vec<Gid> = self.nodes.keys().copied().collect();
        for to in all {
            let copies = match self.rng.below(10) {
                0..4 if self.lossy => 0,
                4 if self.lossy => 2,
                _ => 1,
            };
            for _ in 0..copies {
                let delay = if self.lossy { self.rng.below(400) } else { 1 };
                self.later(delay, to, Due::Datagram(address(from), bytes.to_vec()));
            }
        }
    }

    /// One end of a connection goes; the other finds out at once.
    fn lose(&mut self, at: Gid, peer: PeerId) {
        let Some(node) = self.nodes.get_mut(&at) else {
            return;
        };
        let Some((other, life)) = node.links.remove(&peer) else {
            return;
        };
        let me = (at, node.machine.me().incarnation);
        self.event(at, Event::Lost(peer));
        let Some(theirs) = self.nodes.get_mut(&other) else {
            return;
        };
        if theirs.machine.me().incarnation != life {
            return;
        }
        let found = theirs.links.iter().find(|(_, end)| **end == me);
        if let Some(peer) = found.map(|(&peer, _)| peer) {
            theirs.links.remove(&peer);
            self.event(other, Event::Lost(peer));
        }
    }

    /// Returns whether the other end of a connection has it too.
    fn stands(&self, at: Gid, peer: PeerId) -> bool {
        let node = &self.nodes[&at];
        let Some((other, life)) = node.links.get(&peer) else {
            return true;
        };
        let me = (at, node.machine.me().incarnation);
        self.nodes.get(other).is_some_and(|theirs| {
            theirs.machine.me().incarnation == *life && theirs.links.values().any(|end| *end == me)
        })
    }

    fn deliver(&mut self, to: Gid, due: Due) {
        match due {
            Due::Datagram(from, bytes) => self.event(to, Event::Heard(from, &bytes)),
            Due::CallFailed(gid) => self.event(
                to,
                Event::CallFailed {
                    gid,
                    refused: false,
                },
            ),
            Due::Check(peer) => {
                if self.nodes.contains_key(&to) && !self.stands(to, peer) {
                    self.lose(to, peer);
                }
            }
            Due::Call(from, life) => self.call(from, life, to),
        }
    }

    fn call(&mut self, from: Gid, life: Incarnation, to: Gid) {
        let caller = self.nodes.get(&from).map(|node| node.machine.me());
        let Some(caller) = caller.filter(|caller| caller.incarnation == life) else {
            return;
        };
        let linked = |node: &Node, gid: Gid| node.links.values().any(|end| end.0 == gid);
        let Some(callee) = self.nodes.get(&to) else {
            return self.later(1000, from, Due::CallFailed(to));
        };
        if linked(callee, from) || linked(&self.nodes[&from], to) {
            self.event(to, Event::CalledAgain(from));
            return self.later(20, from, Due::CallFailed(to));
        }
        let callee = callee.machine.me();
        for (at, other) in [(from, callee), (to, caller)] {
            let node = self.nodes.get_mut(&at).unwrap();
            let peer = PeerId(node.peers);
            node.peers += 1;
            node.links.insert(peer, (other.name.gid, other.incarnation));
            self.event(at, Event::Admitted(peer, other, address(other.name.gid)));
        }
    }

    fn run(&mut self, millis: u64) {
        let end = self.now + Duration::from_millis(millis);
        while self.now < end {
            self.now = self.now + STEP;
            while let Some(entry) = self
                .queue
                .first_entry()
                .filter(|entry| entry.key().0 <= self.now)
            {
                let (to, due) = entry.remove();
                self.deliver(to, due);
            }
            let all: Vec<Gid> = self.nodes.keys().copied().collect();
            all.into_iter().for_each(|gid| self.event(gid, Event::Tick));
        }
    }

    fn apply(&mut self, fault: &Fault) {
        match *fault {
            Fault::Crash(number) => self.stop(gid(number), KEEPALIVE),
            Fault::Start(number) => self.start(gid(number)),
            Fault::Leave(number) => {
                self.event(gid(number), Event::Leave);
                self.stop(gid(number), 100);
            }
            Fault::Break(number, nth) => {
                let node = self.nodes.get(&gid(number));
                let peer = node.and_then(|node| node.links.keys().nth(nth).copied());
                if let Some(peer) = peer {
                    self.lose(gid(number), peer);
                }
            }
            Fault::Wait(millis) => self.run(millis),
            Fault::Replay(nth) => {
                if self.heard.is_empty() {
                    return;
                }
                let (from, bytes) = self.heard[nth % self.heard.len()].clone();
                let all: Vec<Gid> = self.nodes.keys().copied().collect();
                for to in all {
                    self.event(to, Event::Heard(from, &bytes));
                }
            }
        }
    }

    fn assert_converged(&self) {
        let views: Vec<View> = self
            .nodes
            .values()
            .map(|node| node.machine.view())
            .collect();
        for (node, view) in self.nodes.values().zip(&views) {
            let seen: Vec<_> = view
                .members
                .iter()
                .map(|(_, member)| member.incarnation)
                .collect();
            let others = views.iter().map(|view| view.me).filter(|me| *me != view.me);
            let expected: Vec<_> = others.map(|me| me.incarnation).collect();
            assert_eq!(seen, expected);
            assert_eq!(
                (view.digest, view.agreeing),
                (views[0].digest, views.len() - 1)
            );
            assert_told_in_order(&node.told);
        }
    }
}

/// A node is told as lost before it is told as joined again, and each number is used once.
fn assert_told_in_order(told: &[Change]) {
    let mut here: BTreeMap<Gid, PeerId> = BTreeMap::new();
    let mut numbers = Vec::new();
    for change in told {
        match change {
            Change::Joined(peer, member) => {
                assert!(!numbers.contains(peer));
                numbers.push(*peer);
                assert_eq!(here.insert(member.name.gid, *peer), None);
            }
            Change::Lost(peer, member) => assert_eq!(here.remove(&member.name.gid), Some(*peer)),
        }
    }
}

fn fault() -> impl Strategy<Value = Fault> {
    let node = 0..6_usize;
    prop_oneof![
        node.clone().prop_map(Fault::Crash),
        node.clone().prop_map(Fault::Start),
        node.clone().prop_map(Fault::Leave),
        (node, 0..5_usize).prop_map(|(number, nth)| Fault::Break(number, nth)),
        (50..3000_u64).prop_map(Fault::Wait),
        (0..500_usize).prop_map(Fault::Replay),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn views_converge_whatever_happened_before(
        seed: u64, faults in proptest::collection::vec(fault(), 0..40),
    ) {
        let mut world = World::new(seed);
        (0..4).for_each(|number| world.start(gid(number)));
        faults.iter().for_each(|fault| world.apply(fault));
        world.lossy = false;
        world.run(45_000);
        world.assert_converged();
    }
}

#[test]
fn the_checker_notices_a_node_that_hears_nothing() {
    let mut world = World::new(1);
    (0..2).for_each(|number| world.start(gid(number)));
    for _ in 0..100 {
        world.queue.clear();
        world.run(50);
    }
    assert!(std::panic::catch_unwind(|| world.assert_converged()).is_err());
}

fn alone() -> Membership {
    let mut world = World::new(3);
    world.start(gid(0));
    world.nodes.remove(&gid(0)).unwrap().machine
}

fn announcement(number: usize, life: u64, sequence: u64) -> Vec<u8> {
    let member = Member {
        name: PeerName {
            role: Role::Storage,
            gid: gid(number),
        },
        incarnation: Incarnation(life),
        capacity: 0,
    };
    let announcement = announcement::Announcement {
        member,
        address: address(gid(number)),
        message_version: 0,
        leaves: false,
        sequence,
        members: 1,
        digest: 0,
    };
    announcement.encode(&cluster()).to_vec()
}

#[test]
fn a_flood_of_names_fills_no_table_and_pushes_no_member_out() {
    let mut machine = alone();
    let mut now = Instant::from_nanos(1);
    let member = Member {
        name: PeerName {
            role: Role::Memory,
            gid: gid(1),
        },
        incarnation: Incarnation(1),
        capacity: 0,
    };
    machine.on(Event::Admitted(PeerId(0), member, address(gid(1))), now);
    for number in 0..5000_u32 {
        let mut name = [0; 16];
        name[..4].copy_from_slice(&number.to_le_bytes());
        let stranger = Member {
            name: PeerName {
                role: Role::Memory,
                gid: Gid(name),
            },
            ..member
        };
        let announcement = announcement::Announcement {
            member: stranger,
            address: Lid(7).into(),
            message_version: 0,
            leaves: false,
            sequence: 1,
            members: 1,
            digest: 0,
        };
        now = now + Duration::from_millis(1);
        machine.on(
            Event::Heard(Lid(7).into(), &announcement.encode(&cluster())),
            now,
        );
    }
    assert_eq!(machine.view().members.len(), 1);
    let calls = machine.on(Event::Tick, now + Duration::from_secs(2));
    assert!(calls.len() <= 257, "{}", calls.len());
}

#[test]
fn a_duplicate_of_a_member_leads_to_a_probe_and_to_nothing_else() {
    let mut machine = alone();
    let now = Instant::from_nanos(1);
    let from = address(gid(1));
    machine.on(Event::Heard(from, &announcement(1, 5, 1)), now);
    let member = Member {
        name: PeerName {
            role: Role::Storage,
            gid: gid(1),
        },
        incarnation: Incarnation(5),
        capacity: 0,
    };
    machine.on(Event::Admitted(PeerId(3), member, from), now);
    // Another life, a replayed announcement, and one whose LID is not its sender's.
    assert_eq!(
        machine.on(Event::Heard(from, &announcement(1, 6, 1)), now),
        [Action::Probe(PeerId(3))]
    );
    assert_eq!(
        machine.on(Event::CalledAgain(gid(1)), now),
        [Action::Probe(PeerId(3))]
    );
    assert_eq!(
        machine.on(Event::Heard(from, &announcement(1, 5, 1)), now),
        []
    );
    assert_eq!(
        machine.on(Event::Heard(Lid(99).into(), &announcement(1, 5, 2)), now),
        []
    );
    let counters = *machine.counters();
    assert_eq!(
        (
            counters.nr_duplicate,
            counters.nr_replayed,
            counters.nr_bad_proof
        ),
        (2, 1, 1)
    );
    assert_eq!(machine.view().members, [(PeerId(3), member)]);
}

#[test]
fn a_second_node_with_our_own_name_is_counted_and_never_called() {
    let mut machine = alone();
    let now = Instant::from_nanos(1);
    machine.on(Event::Heard(address(gid(0)), &announcement(0, 5, 1)), now);
    assert_eq!(machine.counters().nr_duplicate, 1);
    let actions = machine.on(Event::Tick, now + Duration::from_secs(5));
    assert!(
        actions
            .iter()
            .all(|action| matches!(action, Action::Announce(_)))
    );
}
