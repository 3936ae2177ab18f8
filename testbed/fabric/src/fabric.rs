//! The fabric: its links, the packets in flight on them, and their delivery.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use hal::Instant;
use mad::smp::{LinkWidth, PERMISSIVE_LID, Smp};
use mad::{Attribute, Header, Method, MgmtClass};
use verbs::{Lid, Qpn};

use crate::counters::{self, CountedPorts, Counter};
use crate::faults::{FaultCounts, FaultInjector};
use crate::packet::is_multicast;
use crate::sm::{SM_LID, SubnetManager, management_packet};
use crate::switch::{Hop, LinkOrder, Switch};
use crate::{FabricConfig, LinkRate, Manager, Operation, Packet};

/// A port of the switch, in the order of [`Fabric::add_port`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortIndex(pub usize);

impl PortIndex {
    /// Returns the port's number at the switch, from 1.
    pub(crate) fn number(self) -> u8 {
        u8::try_from(self.0 + 1).expect("a switch has no more ports than it can number")
    }

    fn of(number: u8) -> Option<Self> {
        usize::from(number).checked_sub(1).map(Self)
    }
}

/// Returns whether a packet is addressed to the performance management agent.
fn is_of_counters(packet: &Packet) -> bool {
    packet.dqpn == Qpn(1)
        && Header::parse(&packet.payload).is_ok_and(|header| header.class == MgmtClass::PERF)
}

/// A link between the switch and a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Down,
    /// The link is training and carries nothing until this time.
    Training(Instant),
    Up,
}

/// Direction of a link, as the switch sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

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

/// The fabric.
pub struct Fabric {
    config: FabricConfig,
    links: Vec<Link>,
    /// Ports whose card wants a link, by port index.
    wanted: Vec<bool>,
    /// Widths that each port's card may use.
    widths: Vec<u8>,
    /// Time at which each link is free again: towards the switch, and from it.
    busy: Vec<[Instant; 2]>,
    /// Time at which the packet that is being sent has come in whole.
    entered: Option<Instant>,
    /// Links that came up or went down and whose cards were not told yet.
    changes: VecDeque<(PortIndex, bool)>,
    switch: Switch,
    arrived: VecDeque<(PortIndex, Packet)>,
    travelling: BinaryHeap<Reverse<InFlight>>,
    sequence: u64,
    faults: FaultInjector,
    /// The fabric's own, if it has one.
    manager: Option<SubnetManager>,
}

impl Fabric {
    /// Creates a switch without ports.
    #[must_use]
    pub fn new(config: FabricConfig) -> Self {
        let mut switch = Switch::new();
        let manager = (config.manager == Manager::Own).then(|| {
            switch.manage_from_here(SM_LID);
            SubnetManager::default()
        });
        Self {
            faults: FaultInjector::new(config.faults, config.seed),
            manager,
            config,
            links: Vec::new(),
            wanted: Vec::new(),
            widths: Vec::new(),
            busy: Vec::new(),
            entered: None,
            changes: VecDeque::new(),
            switch,
            arrived: VecDeque::new(),
            travelling: BinaryHeap::new(),
            sequence: 0,
        }
    }

    /// Returns how many packets the links' faults befell.
    #[must_use]
    pub fn fault_counts(&self) -> FaultCounts {
        self.faults.counts()
    }

    /// Adds a port to the switch, without link.
    pub fn add_port(&mut self) -> PortIndex {
        self.links.push(Link::Down);
        self.wanted.push(false);
        self.widths.push(LinkWidth::X1 | LinkWidth::X4);
        self.busy.push([Instant::default(); 2]);
        self.switch.add_port();
        if let Some(manager) = &mut self.manager {
            manager.add_port();
        }
        PortIndex(self.links.len() - 1)
    }

    /// Sets the rate of the links, for packets that are sent from now on.
    pub fn set_rate(&mut self, rate: Option<LinkRate>) {
        self.config.rate = rate;
    }

    /// Says whether a port's card wants a link. Whether there is one is told by
    /// [`next_link`](Self::next_link).
    pub fn set_link(&mut self, now: Instant, port: PortIndex, wanted: bool) {
        self.wanted[port.0] = wanted;
        self.try_link(now, port);
    }

    /// Sets the widths that a port's card may use from the next training on.
    pub fn set_widths(&mut self, port: PortIndex, widths: u8) {
        self.widths[port.0] = widths;
    }

    /// Returns the widest width that both ends of a link may use; 0 for none.
    #[must_use]
    pub fn width(&self, port: PortIndex) -> u8 {
        let common = self.widths[port.0] & self.switch.widths(port.number());
        common.checked_ilog2().map_or(0, |bit| 1 << bit)
    }

    /// Takes the next link that came up (`true`) or went down since it was last asked.
    pub fn next_link(&mut self) -> Option<(PortIndex, bool)> {
        self.changes.pop_front()
    }

    /// Brings a link up or down as both its ends want it.
    fn try_link(&mut self, now: Instant, port: PortIndex) {
        let up = self.wanted[port.0]
            && !self.switch.is_disabled(port.number())
            && (self.links[port.0] == Link::Up || self.width(port) != 0);
        let training = self.config.training;
        match (self.links[port.0], up) {
            (Link::Down, true) if !training.is_zero() => {
                self.links[port.0] = Link::Training(now + training)
            }
            (Link::Down, true) => self.follow_link(now, port, true),
            (Link::Training(_), false) => self.links[port.0] = Link::Down,
            (Link::Up, false) => self.follow_link(now, port, false),
            (Link::Down, false) | (Link::Training(_) | Link::Up, true) => {}
        }
    }

    fn follow_link(&mut self, now: Instant, port: PortIndex, up: bool) {
        self.links[port.0] = if up { Link::Up } else { Link::Down };
        if up {
            self.switch.set_width(port.number(), self.width(port));
        }
        self.changes.push_back((port, up));
        self.switch.link_changed(now, port.number(), up);
        if let Some(manager) = &mut self.manager {
            manager.link_changed(now, port, up, &mut self.switch);
        }
        self.send_management(now);
    }

    /// Says that a port lost its state (its card was reset) though the link looks the same: it is
    /// brought up anew.
    pub fn restart_link(&mut self, now: Instant, port: PortIndex) {
        self.set_link(now, port, false);
        self.set_link(now, port, true);
    }

    /// Does to the links what a subnet manager told the switch.
    fn follow_orders(&mut self, now: Instant) {
        while let Some((number, order)) = self.switch.take_order() {
            let Some(port) = PortIndex::of(number).filter(|port| port.0 < self.links.len()) else {
                continue;
            };
            log::info!("switch: port {number}: {order:?}");
            if order == LinkOrder::Retrain && self.wanted[port.0] {
                self.restart_link(now, port);
            } else {
                self.try_link(now, port);
            }
        }
    }

    /// Takes a packet from a port.
    pub fn send(&mut self, now: Instant, from: PortIndex, packet: Packet) {
        if self.links[from.0] != Link::Up {
            return;
        }
        if let Some(counts) = self.switch.counts(from.number()) {
            counts.received(&packet);
        }
        self.entered = Some(self.pass(now, from, Way::In, &packet));
        self.take(now, from, packet);
        self.entered = None;
    }

    /// Returns the time at which a packet has passed a link, behind those before it.
    fn pass(&mut self, from: Instant, port: PortIndex, way: Way, packet: &Packet) -> Instant {
        let Some(rate) = self.config.rate else {
            return from;
        };
        let lanes = match self.width(port) {
            LinkWidth::X1 => 1,
            _ => 4,
        };
        let free = &mut self.busy[port.0][way as usize];
        let begin = from.max(*free);
        *free = begin + rate.time_of(packet.wire_len(), lanes);
        let end = *free;
        if way == Way::Out
            && let Some(counts) = self.switch.counts(port.number())
        {
            counts.waited(begin.since(from));
        }
        end
    }

    /// Takes a packet that has come in whole.
    fn take(&mut self, now: Instant, from: PortIndex, packet: Packet) {
        let here = self.switch.lid();
        match packet.dlid {
            Lid(PERMISSIVE_LID) if packet.dqpn != Qpn(0) => {}
            Lid(PERMISSIVE_LID) => self.manage(now, from.number(), &packet),
            lid if lid == here && packet.dqpn == Qpn(0) => self.manage(now, from.number(), &packet),
            lid if lid == here && is_of_counters(&packet) => self.answer_counters(now, &packet),
            lid if lid == here => {
                if let Some(manager) = self.manager.as_mut().filter(|_| packet.dqpn == Qpn(1)) {
                    manager.administer(now, from, &packet, &mut self.switch);
                }
                self.send_management(now);
            }
            lid if packet.vl15 => self.relay(now, from, lid, packet),
            _ if !self.switch.carries_data(from.number()) => {
                log::debug!("switch: port {} carries no data yet", from.number());
            }
            _ if !self.switch.lets_in(from.number(), packet.pkey) => {
                log::debug!("switch: port {} is not in {}", from.number(), packet.pkey);
            }
            lid if is_multicast(lid) => {
                let to: Vec<u8> = self.switch.towards_group(lid).collect();
                for port in to.into_iter().filter(|&port| port != from.number()) {
                    self.leave(now, port, packet.clone());
                }
            }
            lid => self.relay(now, from, lid, packet),
        }
    }

    /// Sends a packet that came by a port on towards a LID.
    fn relay(&mut self, now: Instant, from: PortIndex, lid: Lid, packet: Packet) {
        if self.switch.towards(lid).is_none()
            && let Some(counts) = self.switch.counts(from.number())
        {
            counts.count(Counter::RelayErrors);
        }
        self.forward(now, lid, packet);
    }

    /// Answers who asks for the switch's counters.
    fn answer_counters(&mut self, now: Instant, packet: &Packet) {
        let Operation::Datagram { source, qkey, .. } = packet.operation else {
            return;
        };
        let mad = packet.payload.as_slice().try_into().ok();
        let Some(answer) = mad.and_then(|mad| counters::answer(&mut self.switch, mad)) else {
            return;
        };
        let answer = Packet {
            slid: packet.dlid,
            dlid: packet.slid,
            dqpn: source,
            grh: None,
            operation: Operation::Datagram {
                qkey,
                source: Qpn(1),
                imm: None,
            },
            payload: answer.to_vec(),
            ..packet.clone()
        };
        self.forward(now, packet.slid, answer);
    }

    /// Sends a packet on towards a LID.
    fn forward(&mut self, now: Instant, lid: Lid, packet: Packet) {
        match self.switch.towards(lid) {
            Some(port) => self.leave(now, port, packet),
            None => log::debug!("switch: no route to {lid}"),
        }
    }

    /// Lets a packet out by a port of the switch, if there is a link and, for data, if it is open.
    fn leave(&mut self, now: Instant, port: u8, packet: Packet) {
        let Some(to) = PortIndex::of(port).filter(|to| self.links.get(to.0) == Some(&Link::Up))
        else {
            self.discard(port);
            return;
        };
        if packet.vl15 {
            self.carry(now, to, packet);
        } else if !self.switch.carries_data(port) {
            self.discard(port);
        } else if self.switch.lets_out(port, packet.pkey) {
            self.carry(now, to, packet);
        }
    }

    fn discard(&mut self, port: u8) {
        if let Some(counts) = self.switch.counts(port) {
            counts.count(Counter::Discards);
        }
    }

    /// Takes a packet on QP0 that came to the switch by a port.
    fn manage(&mut self, now: Instant, from: u8, packet: &Packet) {
        self.pass_management(now, from, packet);
        self.follow_orders(now);
        self.send_management(now);
    }

    fn pass_management(&mut self, now: Instant, from: u8, packet: &Packet) {
        let Ok(mut smp) = Smp::parse(&packet.payload) else {
            log::debug!("switch: no SMP from port {from}");
            return;
        };
        if !smp.is_directed() {
            if let Some(answer) = self.answer(now, from, smp) {
                let answer = management_packet(self.switch.lid(), packet.slid, &answer);
                self.forward(now, packet.slid, answer);
            }
            return;
        }
        match self.switch.hop(&mut smp, from) {
            Hop::Here => {
                if let Some(mut answer) = self.answer(now, from, smp) {
                    let hop = self.switch.hop(&mut answer, 0);
                    self.route(now, hop, &answer);
                }
            }
            hop => self.route(now, hop, &smp),
        }
    }

    /// Sends an SMP where its route takes it from here.
    fn route(&mut self, now: Instant, hop: Hop, smp: &Smp) {
        let permissive = Lid(PERMISSIVE_LID);
        match hop {
            Hop::Leave(port) => {
                self.leave(now, port, management_packet(permissive, permissive, smp))
            }
            Hop::To(lid) => self.forward(now, lid, management_packet(self.switch.lid(), lid, smp)),
            Hop::Here | Hop::Lost => log::debug!("switch: an SMP that goes nowhere"),
        }
    }

    /// Returns the response of the switch, or of the manager on it, to an SMP that has arrived.
    fn answer(&mut self, now: Instant, from: u8, smp: Smp) -> Option<Smp> {
        match &mut self.manager {
            Some(manager) if smp.header.method.is_response() => {
                let from = PortIndex::of(from)?;
                manager.receive(now, from, &smp, &mut self.switch);
                None
            }
            Some(manager) if smp.header.method == Method::TRAP => {
                manager.hear_trap(PortIndex::of(from)?, smp)
            }
            Some(manager) if smp.header.attribute() == Attribute::SM_INFO => manager.answer(smp),
            _ => self.switch.answer(smp, from),
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
            if self.links[to.0] == Link::Up {
                return Some((to, packet));
            }
        }
    }

    /// Does what is due, and says when there is something to do or to take next.
    pub fn poll(&mut self, now: Instant) -> Option<Instant> {
        for index in 0..self.links.len() {
            if matches!(self.links[index], Link::Training(until) if until <= now) {
                self.follow_link(now, PortIndex(index), true);
            }
        }
        if let Some(manager) = &mut self.manager {
            manager.poll(now, &mut self.switch);
        }
        if let Some((to, report)) = self.switch.report(now) {
            let report = management_packet(self.switch.lid(), to, &report);
            self.forward(now, to, report);
        }
        self.send_management(now);
        if self.arrived.is_empty() {
            self.deadline()
        } else {
            Some(now)
        }
    }

    /// Returns whether a packet has arrived that was not taken yet.
    #[must_use]
    pub fn has_arrivals(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// Returns the earliest time at which there is something to do or to take; packets that have
    /// arrived do not count.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let travelling = self.travelling.peek().map(|Reverse(first)| first.due);
        let manager = self.manager.as_ref().and_then(SubnetManager::deadline);
        let trained = self.links.iter().filter_map(|link| match link {
            Link::Training(until) => Some(*until),
            Link::Down | Link::Up => None,
        });
        let others = [travelling, manager, self.switch.deadline()];
        others.into_iter().flatten().chain(trained).min()
    }

    fn send_management(&mut self, now: Instant) {
        while let Some((to, packet)) = self.manager.as_mut().and_then(SubnetManager::take_packet) {
            self.carry(now, to, packet);
        }
    }

    fn carry(&mut self, now: Instant, to: PortIndex, packet: Packet) {
        if let Some(counts) = self.switch.counts(to.number()) {
            counts.sent(&packet);
        }
        let verdict = self.faults.judge();
        let entered = self.entered.unwrap_or(now);
        let left = self.pass(entered, to, Way::Out, &packet);
        let delay = left.since(now) + self.config.latency + verdict.late_by;
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
