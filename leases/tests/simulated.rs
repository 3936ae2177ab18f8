//! A granter and several holders, whose messages are late or lost and whose clocks differ, by seed.
//!
//! The file is a number that each change raises. A node that relies on a lease must know every
//! change that S has carried out, and while one relies on a write lease no other relies on any.

use std::collections::BTreeMap;

use hal::{Duration, Instant};
use leases::{Ask, Granter, Holder, Kind, Lease, Peer, TERM, Ticket};

const NODES: usize = 4;
const FILES: u64 = 2;
const STEPS: usize = 2_000;

/// A mistake in the use of leases, which the rules must find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sabotage {
    None,
    /// S carries changes out though leases are not returned.
    NoWait,
    /// S takes a recall that was not answered for a return.
    LostIsReturned,
    /// A lease lasts from its grant on, not from the request.
    FromReply,
    /// A holder does not hear recalls while it asks.
    DeafWhileAsking,
    /// A write under a lost lease is carried out.
    NoFence,
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

enum Event {
    /// A request for a lease arrives at S.
    Asked(usize, u64, u64, Kind),
    /// Its reply arrives, with the number that the file had.
    Answered(usize, u64, u64, Option<(u64, Kind)>, u64),
    /// A recall arrives at a node.
    Recalled(usize, u64, u64),
    /// The node's return arrives at S.
    Returned(usize, u64, u64),
    /// A request to change the file arrives at S.
    Change(usize, u64, u64),
    /// S looks whether the access may be carried out.
    Look(usize, u64, u64, Ticket),
    /// The reply of a change arrives.
    Changed(usize, u64, u64, u64),
    /// A write under a write lease arrives at S.
    WriteBack(usize, u64, u64, u64),
}

#[derive(Default)]
struct Node {
    life: u64,
    holder: Holder,
    /// Requests under way, with the own changes of the file that had ended before.
    asks: BTreeMap<u64, (Ask, u64)>,
    /// Own changes of each file that have ended.
    changed: BTreeMap<u64, u64>,
    /// The number of each file that the node keeps, and the generation that it was read under.
    kept: BTreeMap<u64, (u64, u64)>,
    changing: BTreeMap<u64, u32>,
    /// Speed of the clock, in thousandths, and its beginning.
    speed: u64,
    begin: u64,
    cut_off: bool,
}

struct World {
    random: Random,
    now: u64,
    events: BTreeMap<(u64, u64), Event>,
    next: u64,
    granter: Granter,
    files: BTreeMap<u64, u64>,
    nodes: Vec<Node>,
    sabotage: Sabotage,
    reads: u64,
    changes: u64,
    refused: u64,
}

impl World {
    fn new(seed: u64, sabotage: Sabotage) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let nodes = (0..NODES).map(|_| Node {
            speed: 950 + random.below(101),
            begin: random.below(1 << 40),
            ..Node::default()
        });
        let nodes = nodes.collect();
        Self {
            random,
            now: 0,
            events: BTreeMap::new(),
            next: 0,
            granter: Granter::new(0),
            files: BTreeMap::new(),
            nodes,
            sabotage,
            reads: 0,
            changes: 0,
            refused: 0,
        }
    }

    /// S's clock.
    fn here(&self) -> Instant {
        Instant::from_nanos(self.now * 1000)
    }

    fn clock(&self, node: usize) -> Instant {
        let node = &self.nodes[node];
        Instant::from_nanos((node.begin + self.now * node.speed / 1000) * 1000)
    }

    /// A life of a node is a peer of its own.
    fn peer(&self, node: usize, life: u64) -> Peer {
        Peer(u16::try_from(node as u64 + life * NODES as u64).unwrap())
    }

    fn after(&mut self, micros: u64, event: Event) {
        self.next += 1;
        self.events.insert((self.now + micros, self.next), event);
    }

    /// Sends a message of a node or to it: it is late, or lost if the node is cut off.
    fn send(&mut self, node: usize, event: Event) {
        if self.nodes[node].cut_off {
            return;
        }
        let slow = self.random.one_in(8);
        let delay = self.random.below(if slow { 1_500_000 } else { 2_000 });
        self.after(delay, event);
    }

    fn value(&self, file: u64) -> u64 {
        self.files.get(&file).copied().unwrap_or(0)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Asked(node, life, file, kind) => {
                let peer = self.peer(node, life);
                let granted = self.granter.grant(peer, file, kind, self.here());
                let granted = granted.map(|generation| (generation, kind));
                let value = self.value(file);
                self.send(node, Event::Answered(node, life, file, granted, value));
            }
            Event::Answered(node, life, file, granted, value) => {
                self.answered(node, life, file, granted, value)
            }
            Event::Recalled(node, file, generation) => {
                let clock = self.clock(node);
                let deaf = self.sabotage == Sabotage::DeafWhileAsking;
                let at = &mut self.nodes[node];
                if !(deaf && at.asks.contains_key(&file)) {
                    at.holder.recalled(file, generation, clock);
                }
                let life = at.life;
                let peer = self.peer(node, life);
                self.send(node, Event::Returned(usize::from(peer.0), file, generation));
            }
            Event::Returned(peer, file, generation) => {
                let peer = Peer(u16::try_from(peer).unwrap());
                self.granter.returned(peer, file, generation);
            }
            Event::Change(node, life, file) => self.begin_change(node, life, file),
            Event::Look(node, life, file, ticket) => self.look(node, life, file, ticket),
            Event::Changed(node, life, file, value) => {
                let at = &mut self.nodes[node];
                if at.life == life {
                    *at.changing.entry(file).or_default() -= 1;
                    *at.changed.entry(file).or_default() += 1;
                    if let Some((_, kept)) = at.kept.get_mut(&file) {
                        *kept = value.max(*kept);
                    }
                }
            }
            Event::WriteBack(node, life, file, generation) => {
                let peer = self.peer(node, life);
                let permitted = self.granter.permits(peer, file, generation);
                self.refused += u64::from(!permitted);
                if permitted || self.sabotage == Sabotage::NoFence {
                    *self.files.entry(file).or_default() += 1;
                    self.changes += 1;
                }
                let value = self.value(file);
                self.send(node, Event::Changed(node, life, file, value));
            }
        }
    }

    fn answered(
        &mut self,
        node: usize,
        life: u64,
        file: u64,
        granted: Option<(u64, Kind)>,
        value: u64,
    ) {
        let clock = self.clock(node);
        let late = self.sabotage == Sabotage::FromReply;
        let at = &mut self.nodes[node];
        if at.life != life {
            return;
        }
        let Some((mut ask, before)) = at.asks.remove(&file) else {
            return;
        };
        let changed = at.changed.get(&file).copied().unwrap_or(0) != before;
        if late {
            at.holder.abandoned(ask);
            ask = at.holder.ask(clock);
        }
        if let Some(held) = at.holder.answered(ask, file, granted) {
            let known = at
                .kept
                .get(&file)
                .is_some_and(|kept| kept.0 == held.generation);
            // Under a lease that was extended, what is kept is at least as new. What the node has
            // changed itself meanwhile may be missing in the reply.
            if !known && changed {
                at.kept.remove(&file);
            } else if !known {
                at.kept.insert(file, (held.generation, value));
            }
        }
    }

    fn begin_change(&mut self, node: usize, life: u64, file: u64) {
        let peer = self.peer(node, life);
        let ticket = self.granter.begin(peer, file, Kind::Write);
        for Lease {
            peer, generation, ..
        } in self.granter.recalls(ticket, self.here())
        {
            let (to, of) = (
                usize::from(peer.0) % NODES,
                u64::from(peer.0) / NODES as u64,
            );
            // A recall of a life that has ended is not answered.
            if self.nodes[to].life == of {
                self.send(to, Event::Recalled(to, file, generation));
            }
            if self.sabotage == Sabotage::LostIsReturned && self.nodes[to].cut_off {
                self.granter.returned(peer, file, generation);
            }
        }
        self.after(0, Event::Look(node, life, file, ticket));
    }

    fn look(&mut self, node: usize, life: u64, file: u64, ticket: Ticket) {
        let waits = self.granter.waits(ticket, self.here());
        if waits.is_some() && self.sabotage != Sabotage::NoWait {
            return self.after(500, Event::Look(node, life, file, ticket));
        }
        let value = self.files.entry(file).or_default();
        *value += 1;
        let value = *value;
        self.changes += 1;
        self.granter.end(ticket);
        self.send(node, Event::Changed(node, life, file, value));
    }

    /// A node does something.
    fn act(&mut self) {
        let node = usize::try_from(self.random.below(NODES as u64)).unwrap();
        let file = self.random.below(FILES);
        let clock = self.clock(node);
        let life = self.nodes[node].life;
        match self.random.below(200) {
            0 => self.nodes[node].cut_off = true,
            1..=4 if self.nodes[node].cut_off => self.restart(node),
            5..=14 => {
                *self.nodes[node].changing.entry(file).or_default() += 1;
                self.send(node, Event::Change(node, life, file));
            }
            15..=30 => self.write_back(node, file),
            _ => {
                let at = &mut self.nodes[node];
                if at.holder.valid(file, clock).is_none()
                    && at.holder.may_ask(file, clock)
                    && !at.asks.contains_key(&file)
                {
                    let ask = at.holder.ask(clock);
                    let changed = at.changed.get(&file).copied().unwrap_or(0);
                    at.asks.insert(file, (ask, changed));
                    let kind = match self.random.below(4) {
                        0 => Kind::Write,
                        _ => Kind::Read,
                    };
                    self.send(node, Event::Asked(node, life, file, kind));
                }
            }
        }
    }

    fn write_back(&mut self, node: usize, file: u64) {
        let (clock, life) = (self.clock(node), self.nodes[node].life);
        let held = self.nodes[node].holder.valid(file, clock);
        if let Some(held) = held.filter(|held| held.kind == Kind::Write) {
            *self.nodes[node].changing.entry(file).or_default() += 1;
            self.send(node, Event::WriteBack(node, life, file, held.generation));
        }
    }

    /// A node that was cut off starts again as another peer.
    fn restart(&mut self, node: usize) {
        let old = &self.nodes[node];
        let fresh = Node {
            life: old.life + 1,
            speed: old.speed,
            begin: old.begin,
            ..Node::default()
        };
        self.nodes[node] = fresh;
    }

    /// Checks what programs of all nodes would see now.
    fn check(&mut self) -> Result<(), String> {
        for file in 0..FILES {
            let mut holders = Vec::new();
            for (node, at) in self.nodes.iter().enumerate() {
                let Some(held) = at.holder.valid(file, self.clock(node)) else {
                    continue;
                };
                holders.push(held.kind);
                let Some(&(generation, kept)) = at.kept.get(&file) else {
                    continue;
                };
                let changing = at.changing.get(&file).is_some_and(|&count| count > 0);
                if generation == held.generation && !changing {
                    self.reads += 1;
                    if kept < self.value(file) {
                        let value = self.value(file);
                        return Err(format!("node {node} reads {kept} of file {file}: {value}"));
                    }
                }
            }
            if holders.len() > 1 && holders.contains(&Kind::Write) {
                return Err(format!("file {file} has a writer and others"));
            }
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            let idle = self.random.below(20_000);
            self.act();
            let until = self.now + idle;
            while let Some((&key, _)) = self.events.first_key_value() {
                if key.0 > until {
                    break;
                }
                self.now = key.0;
                let event = self.events.remove(&key).expect("just seen");
                self.handle(event);
                self.check()?;
            }
            self.now = until;
            self.check()?;
        }
        Ok(())
    }
}

/// The first seed whose run breaks a rule.
fn found(sabotage: Sabotage, seeds: u64) -> Option<String> {
    (1..=seeds).find_map(|seed| World::new(seed, sabotage).run().err())
}

#[test]
fn no_node_relies_on_what_has_changed() {
    let (mut reads, mut changes, mut refused) = (0, 0, 0);
    for seed in 1..=200 {
        let mut world = World::new(seed, Sabotage::None);
        if let Err(broken) = world.run() {
            panic!("seed {seed}, after {} us: {broken}", world.now);
        }
        reads += world.reads;
        changes += world.changes;
        refused += world.refused;
    }
    assert!(
        reads > 100_000 && changes > 5_000 && refused > 0,
        "{reads} reads, {changes} changes, {refused} refused"
    );
}

#[test]
fn the_rules_find_each_mistake() {
    for sabotage in [
        Sabotage::NoWait,
        Sabotage::LostIsReturned,
        Sabotage::FromReply,
        Sabotage::DeafWhileAsking,
        Sabotage::NoFence,
    ] {
        assert!(found(sabotage, 100).is_some(), "{sabotage:?}");
    }
}

#[test]
fn a_change_waits_for_a_silent_holder_no_longer_than_its_lease() {
    let mut granter = Granter::new(0);
    let start = Instant::from_nanos(0);
    granter.grant(Peer(1), 7, Kind::Read, start).unwrap();
    let change = granter.begin(Peer(2), 7, Kind::Write);
    let end = granter.waits(change, start).unwrap();
    assert!(end.since(start) <= TERM + Duration::from_secs(1));
    assert_eq!(granter.waits(change, end), None);
}
