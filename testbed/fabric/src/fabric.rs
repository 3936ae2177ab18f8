//! Links and the switch.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use hal::Instant;
use verbs::Lid;

use crate::faults::FaultInjector;
use crate::packet::is_multicast;
use crate::sm::SubnetManager;
use crate::{FabricConfig, Packet};

/// A port of the switch, in the order of [`Fabric::add_port`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortIndex(pub usize);

/// A packet on its way, ordered by when it is due.
struct InFlight {
    due: Instant,
    sequence: u64,
    to: PortIndex,
    packet: Packet,
}

impl PartialEq for InFlight {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.sequence) == (other.due, other.sequence)
    }
}
impl Eq for InFlight {}
impl PartialOrd for InFlight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for InFlight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.sequence).cmp(&(other.due, other.sequence))
    }
}

/// Where packets go: what the subnet manager programmed into the switch.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    pub(crate) unicast: BTreeMap<Lid, PortIndex>,
    pub(crate) multicast: BTreeMap<Lid, Vec<PortIndex>>,
}

/// The fabric.
pub struct Fabric {
    config: FabricConfig,
    links: Vec<bool>,
    routes: Routes,
    arrived: VecDeque<(PortIndex, Packet)>,
    travelling: BinaryHeap<Reverse<InFlight>>,
    sequence: u64,
    faults: FaultInjector,
    manager: SubnetManager,
}

impl Fabric {
    /// A switch without ports.
    #[must_use]
    pub fn new(config: FabricConfig) -> Self {
        Self {
            faults: FaultInjector::new(config.faults, config.seed),
            manager: SubnetManager::new(config.training),
            config,
            links: Vec::new(),
            routes: Routes::default(),
            arrived: VecDeque::new(),
            travelling: BinaryHeap::new(),
            sequence: 0,
        }
    }

    /// Adds a port to the switch, without link.
    pub fn add_port(&mut self) -> PortIndex {
        self.links.push(false);
        self.manager.add_port();
        PortIndex(self.links.len() - 1)
    }

    /// Says that a port's link came up or went down.
    pub fn set_link(&mut self, now: Instant, port: PortIndex, up: bool) {
        if self.links[port.0] == up {
            return;
        }
        self.links[port.0] = up;
        self.manager.link_changed(now, port, up, &mut self.routes);
        self.send_management(now);
    }

    /// Says that a port lost its state (its card was reset) though the link looks the same: it is brought up anew.
    pub fn restart_link(&mut self, now: Instant, port: PortIndex) {
        self.set_link(now, port, false);
        self.set_link(now, port, true);
    }

    /// Takes a packet from a port.
    pub fn send(&mut self, now: Instant, from: PortIndex, packet: Packet) {
        if !self.links[from.0] {
            return;
        }
        if self.manager.is_for(&packet) {
            self.manager.receive(now, from, &packet, &mut self.routes);
            self.send_management(now);
        } else if is_multicast(packet.dlid) {
            let members = self
                .routes
                .multicast
                .get(&packet.dlid)
                .cloned()
                .unwrap_or_default();
            for to in members.into_iter().filter(|to| *to != from) {
                self.carry(now, to, packet.clone());
            }
        } else if let Some(to) = self.routes.unicast.get(&packet.dlid).copied() {
            self.carry(now, to, packet);
        } else {
            log::debug!(
                "switch: no route to {} for a packet from port {}",
                packet.dlid,
                from.0
            );
        }
    }

    /// Takes the next packet that has arrived, with the port it arrived at.
    pub fn next(&mut self, now: Instant) -> Option<(PortIndex, Packet)> {
        while self
            .travelling
            .peek()
            .is_some_and(|Reverse(first)| first.due <= now)
        {
            if let Some(Reverse(InFlight { to, packet, .. })) = self.travelling.pop() {
                self.arrived.push_back((to, packet));
            }
        }
        loop {
            let (to, packet) = self.arrived.pop_front()?;
            if self.links[to.0] {
                return Some((to, packet));
            }
        }
    }

    /// Lets the subnet manager do what is due, and says when there is something to do or to take next.
    pub fn poll(&mut self, now: Instant) -> Option<Instant> {
        self.manager.poll(now);
        self.send_management(now);
        if self.arrived.is_empty() {
            self.deadline()
        } else {
            Some(now)
        }
    }

    /// Whether something has arrived that was not taken yet.
    #[must_use]
    pub fn has_arrivals(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// When there is something to do or to take next, at the earliest; not counting what has arrived already.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let travelling = self.travelling.peek().map(|Reverse(first)| first.due);
        [travelling, self.manager.deadline()].into_iter().flatten().min()
    }

    fn send_management(&mut self, now: Instant) {
        while let Some((to, packet)) = self.manager.take_packet() {
            self.carry(now, to, packet);
        }
    }

    fn carry(&mut self, now: Instant, to: PortIndex, packet: Packet) {
        let verdict = self.faults.judge();
        let delay = self.config.latency + verdict.late_by;
        for _ in 1..verdict.copies {
            self.deliver(now, delay, to, packet.clone());
        }
        if verdict.copies > 0 {
            self.deliver(now, delay, to, packet);
        }
    }

    fn deliver(&mut self, now: Instant, delay: hal::Duration, to: PortIndex, packet: Packet) {
        if delay.is_zero() {
            self.arrived.push_back((to, packet));
            return;
        }
        self.sequence += 1;
        self.travelling.push(Reverse(InFlight {
            due: now + delay,
            sequence: self.sequence,
            to,
            packet,
        }));
    }
}
