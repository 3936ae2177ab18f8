//! All the cards of a testbed and the fabric between them.

use std::sync::Arc;

use fabric::{Fabric, PortIndex};
use hal::Instant;
use mlx4_hw::eq::EventType;

use crate::hca::Hca;
use crate::pci::ConfigEffect;
use crate::trace::Recorder;
use crate::{ClusterConfig, Counters, Host, NodeConfig, NodeIndex, agents};

/// Packets that one call delivers at most; the rest is left for [`Cluster::poll`].
const WORK_PER_CALL: u32 = 4096;

/// All cards, the fabric and its subnet manager.
///
/// Register accesses do their work at once: over a fabric without latency a doorbell write carries
/// a whole RDMA operation out, packets, DMA, completion and interrupt included. The work of one
/// call is bounded; what is left, and what waits for time to pass, is done by [`poll`](Self::poll):
/// call it after every other call that takes the time, to learn when it wants to be called again.
///
/// # Panics
///
/// Every method panics on a [`NodeIndex`] that did not come from this cluster's
/// [`add_node`](Self::add_node).
pub struct Cluster {
    nodes: Vec<Node>,
    fabric: Fabric,
    /// Node and its port's number, by switch port.
    attached: Vec<(usize, u8)>,
    recorder: Option<Arc<dyn Recorder>>,
    seed: u64,
}

struct Node {
    hca: Hca,
    ports: Vec<PortIndex>,
}

impl Cluster {
    /// Creates a cluster without nodes.
    #[must_use]
    pub fn new(config: ClusterConfig) -> Self {
        Self {
            nodes: Vec::new(),
            seed: config.fabric.seed,
            fabric: Fabric::new(config.fabric),
            attached: Vec::new(),
            recorder: None,
        }
    }

    /// Tells `recorder` what the cards do that are added from now on.
    pub fn record(&mut self, recorder: Arc<dyn Recorder>) {
        self.recorder = Some(recorder);
    }

    /// Adds a card that sits in the machine `host`, and joins its ports to the switch.
    pub fn add_node(&mut self, config: NodeConfig, host: Arc<dyn Host>) -> NodeIndex {
        let index = self.nodes.len();
        let seed = self.seed.wrapping_add(index as u64);
        let hca = Hca::new(&config, Some(host), self.recorder.clone(), seed);
        let ports = hca
            .core
            .ports
            .iter()
            .map(|port| {
                self.attached.push((index, port.number));
                self.fabric.add_port()
            })
            .collect();
        self.nodes.push(Node { hca, ports });
        NodeIndex(index)
    }

    /// Puts a card on a bus, with its BARs where firmware has placed them: BARs answer while memory
    /// space is enabled, DMA is made while the card may master the bus, and its reset register
    /// loses configuration space and ownership, and leaves it away for a second. A virtual machine
    /// monitor sees to most of that itself, so its cards are on none.
    pub fn put_on_bus(&mut self, node: NodeIndex, now: Instant, bars: [u32; 2]) {
        let hca = self.hca(node, now);
        for (offset, bar) in [(0x10, bars[0]), (0x18, bars[1])] {
            hca.write_config(offset, &bar.to_le_bytes());
        }
        hca.put_on_bus();
    }

    /// Reads configuration space of a card that may be away after a reset.
    pub fn config_read_at(&self, node: NodeIndex, now: Instant, offset: u16, into: &mut [u8]) {
        self.nodes[node.0].hca.read_config_at(now, offset, into);
    }

    /// Reads configuration space.
    pub fn config_read(&self, node: NodeIndex, offset: u16, into: &mut [u8]) {
        self.nodes[node.0].hca.read_config(offset, into);
    }

    /// Writes configuration space.
    pub fn config_write(&mut self, node: NodeIndex, now: Instant, offset: u16, from: &[u8]) {
        if self.hca(node, now).write_config(offset, from) == ConfigEffect::Reset {
            self.reset(node, now);
        }
    }

    /// Reads registers: `bar` is 0 or 2. Bytes are in the order in which they lie on the bus. What
    /// is not there reads as ones, and so does every doorbell page.
    pub fn bar_read(
        &mut self,
        node: NodeIndex,
        now: Instant,
        bar: u8,
        offset: u64,
        into: &mut [u8],
    ) {
        match bar {
            0 if self.hca(node, now).answers(0) => self.hca(node, now).read_registers(offset, into),
            _ => into.fill(0xff),
        }
    }

    /// Writes registers: `bar` is 0 or 2. Bytes are in the order in which they lie on the bus.
    pub fn bar_write(&mut self, node: NodeIndex, now: Instant, bar: u8, offset: u64, from: &[u8]) {
        let hca = self.hca(node, now);
        match bar {
            _ if !hca.answers(bar) => return,
            0 => {
                hca.write_registers(offset, from);
                self.follow_links(node.0, now);
            }
            2 => hca.ring(offset, from),
            _ => return,
        }
        self.collect(node.0, now);
        self.run(now);
    }

    /// Resets a card as a reset of its machine does: everything is lost but the node's place in the
    /// fabric.
    pub fn reset(&mut self, node: NodeIndex, now: Instant) {
        self.hca(node, now).hard_reset();
        self.follow_links(node.0, now);
        self.run(now);
    }

    /// Takes a node's machine away (it ended): the card is reset, its links go down and it makes no
    /// more DMA.
    pub fn detach(&mut self, node: NodeIndex, now: Instant) {
        self.nodes[node.0].hca.core.memory.set_host(None);
        self.reset(node, now);
    }

    /// Gives a detached node a machine again.
    pub fn attach(&mut self, node: NodeIndex, now: Instant, host: Arc<dyn Host>) {
        self.nodes[node.0].hca.core.memory.set_host(Some(host));
        self.reset(node, now);
    }

    /// Pulls (`false`) or plugs the cable of a node's port, which counts from 1.
    pub fn set_link(&mut self, node: NodeIndex, now: Instant, port: u8, up: bool) {
        let core = &mut self.hca(node, now).core;
        if core.port_mut(port).is_some_and(|state| state.plug(up)) {
            agents::report_link(core, port, false);
        }
        self.follow_links(node.0, now);
        self.run(now);
    }

    /// Does what is due, and says when it wants to be called next: `now` or earlier when work is
    /// left, nothing when only a register access can cause more.
    pub fn poll(&mut self, now: Instant) -> Option<Instant> {
        for index in 0..self.nodes.len() {
            self.hca(NodeIndex(index), now).tick();
            self.collect(index, now);
        }
        self.fabric.poll(now);
        self.run(now);
        let busy = self
            .nodes
            .iter()
            .any(|node| !node.hca.core.ready.is_empty());
        if busy || self.fabric.has_arrivals() {
            return Some(now);
        }
        let timers = self.nodes.iter().filter_map(|node| node.hca.deadline());
        timers.chain(self.fabric.deadline()).min()
    }

    /// Has a card read ahead in the send queues that were rung last, once in `one_in` calls on
    /// average. It does so by itself at times that follow from
    /// [`FabricConfig::seed`](fabric::FabricConfig::seed).
    pub fn read_ahead(&mut self, node: NodeIndex, now: Instant, one_in: u64) {
        self.hca(node, now).may_read_ahead(one_in);
    }

    /// Lets a card's firmware die: it takes no command any more and fills its catastrophic error
    /// buffer, and reports an event if it still can. A reset of the card brings it back.
    pub fn kill_firmware(&mut self, node: NodeIndex, now: Instant, reports: bool) {
        let hca = self.hca(node, now);
        hca.registers.dead = true;
        if reports {
            let core = &mut hca.core;
            core.events
                .report(&core.memory, EventType::LOCAL_CATASTROPHIC, 0, [0; 24]);
        }
    }

    /// Returns a node's counters.
    #[must_use]
    pub fn counters(&self, node: NodeIndex) -> Counters {
        self.nodes[node.0].hca.counters()
    }

    /// Returns how many packets the links' faults befell.
    #[must_use]
    pub fn fault_counts(&self) -> fabric::FaultCounts {
        self.fabric.fault_counts()
    }

    fn hca(&mut self, node: NodeIndex, now: Instant) -> &mut Hca {
        let hca = &mut self.nodes[node.0].hca;
        hca.core.now = now;
        hca.core.memory.tracer.set_now(now);
        hca
    }

    /// Tells the fabric which links the card wants.
    fn follow_links(&mut self, index: usize, now: Instant) {
        let Node { hca, ports } = &mut self.nodes[index];
        for (port, place) in hca.core.ports.iter_mut().zip(ports) {
            let wanted = port.wants_link();
            self.fabric.set_widths(*place, port.info.width_enabled);
            if core::mem::take(&mut port.bounced) && wanted {
                self.fabric.restart_link(now, *place);
            } else {
                self.fabric.set_link(now, *place, wanted);
            }
        }
    }

    /// Tells the cards of links that the fabric brought up or took down.
    fn hear_links(&mut self, now: Instant) {
        while let Some((place, up)) = self.fabric.next_link() {
            let (index, number) = self.attached[place.0];
            let width = self.fabric.width(place);
            let core = &mut self.hca(NodeIndex(index), now).core;
            if core
                .port_mut(number)
                .is_some_and(|port| port.link(up, width))
            {
                agents::report_link(core, number, false);
            }
        }
    }

    /// Hands a card's packets to the fabric.
    fn collect(&mut self, index: usize, now: Instant) {
        let Node { hca, ports } = &mut self.nodes[index];
        while let Some((port, packet)) = hca.core.outgoing.pop_front() {
            hca.loop_back(port, &packet);
            if let Some(place) = ports.get(usize::from(port).wrapping_sub(1)) {
                self.fabric.send(now, *place, packet);
            }
        }
    }

    /// Delivers packets, and lets queue pairs with work have their turns, until nothing is left or
    /// the call has done enough.
    fn run(&mut self, now: Instant) {
        for _ in 0..WORK_PER_CALL {
            self.hear_links(now);
            if let Some((place, packet)) = self.fabric.next(now) {
                let (index, number) = self.attached[place.0];
                self.hca(NodeIndex(index), now).receive(number, packet);
                if self.nodes[index]
                    .hca
                    .core
                    .ports
                    .iter()
                    .any(|port| port.bounced)
                {
                    self.follow_links(index, now);
                }
                self.collect(index, now);
            } else if !self.take_turns(now) {
                return;
            }
        }
    }

    /// Gives each card with work a turn. False when none has any.
    fn take_turns(&mut self, now: Instant) -> bool {
        let mut worked = false;
        for index in 0..self.nodes.len() {
            if self.hca(NodeIndex(index), now).take_turn() {
                worked = true;
                self.collect(index, now);
            }
        }
        worked
    }
}
