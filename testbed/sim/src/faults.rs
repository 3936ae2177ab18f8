//! Begin and end of planned faults.

use fit::Fit;
use verbs::DeviceEvent;

use crate::check::Phase;
use crate::cluster::Run;
use crate::fault::{Impostor, Kind};
use crate::hca::Hca;
use crate::machine::Machine;
use crate::sabotage::Sabotage;
use crate::world::{Event, Flood, Life, NodeIndex, World};

/// The rate of [`Kind::Burst`].
const BURST: u32 = 900_000;

impl Run {
    /// Begins or ends a planned fault.
    pub(crate) fn fault(&mut self, index: usize, begins: bool) {
        let kind = self.plan.faults[index].kind.clone();
        if begins {
            self.active.insert(index);
        } else {
            self.active.remove(&index);
        }
        {
            let mut world = self.bed.world();
            let now = world.now;
            if begins {
                world.stats.count(kind.name());
            }
            world
                .trace
                .event(now, 5, [index as u64, u64::from(begins), 0]);
            let word = if begins { "begins" } else { "ends" };
            world
                .trace
                .say(now, format_args!("fault {index} {word}: {kind:?}"));
        }
        match kind {
            Kind::Crash(node) if begins => self.switch_off(node),
            Kind::Leave(node, stay) if begins => self.leave(node, stay),
            Kind::Broken(node, stay) if begins => self.bed.world().break_card(node, stay),
            Kind::Crash(node) | Kind::Late(node) | Kind::Leave(node, _) | Kind::Broken(node, _)
                if !begins =>
            {
                self.come_back(node)
            }
            Kind::Forget { told } if begins => self.bed.world().forget_groups(told),
            Kind::Moved(node) if begins => self.bed.world().give_lid(node),
            Kind::Handover { knows, told } if begins => self.bed.world().hand_over(knows, told),
            Kind::Deafened(node) if begins => self.bed.world().fail_group_pair(node),
            Kind::Stranger(place, guise) if begins => self.let_in(place, guise),
            Kind::Stranger(place, Impostor::Twin(_) | Impostor::Rogue) => self.switch_off(place),
            _ => {}
        }
        let mut world = self.bed.world();
        self.apply(&mut world);
        world.note_hearing();
    }

    /// Returns whether a fault keeps the node down now.
    pub(crate) fn is_down(&self, node: NodeIndex) -> bool {
        self.any(|kind| kind.downs() == Some(node))
    }

    fn switch_off(&mut self, node: NodeIndex) {
        self.bed.world().crash(node);
        self.executor.end_tasks(node);
        // Dropped with nothing locked: it gives its memory back.
        let gone: Option<Fit<Hca, Machine>> = self.bed.fits().remove(&node);
        drop(gone);
    }

    /// Switches a node off that has left, unless that has happened.
    pub(crate) fn off(&mut self, life: Life) {
        let lives = self.bed.world().living(life).is_some();
        if lives {
            self.switch_off(life.node);
            self.bed.world().note_hearing();
        }
    }

    fn leave(&mut self, node: NodeIndex, stay: u64) {
        let fit = self.bed.fits().get(&node).cloned();
        let Some(fit) = fit else { return };
        {
            let mut world = self.bed.world();
            let (life, now) = (world.life(node), world.now);
            world.truth.leaves(life, now);
            world.after(stay, Event::Off(life));
        }
        fit.leave();
    }

    fn come_back(&mut self, node: NodeIndex) {
        if self.is_down(node) {
            return;
        }
        let (lives, leaves) = {
            let world = self.bed.world();
            (
                world.nodes[node].alive,
                world.truth.has_ended(world.life(node)),
            )
        };
        if lives && leaves {
            self.switch_off(node);
        }
        if !lives || leaves {
            self.boot(node);
        }
    }

    fn let_in(&mut self, place: NodeIndex, guise: Impostor) {
        if let Impostor::Twin(of) = guise {
            let mut world = self.bed.world();
            world.nodes[place].guid = world.nodes[of].guid;
        }
        self.boot(place);
    }

    fn any(&self, wanted: impl Fn(&Kind) -> bool) -> bool {
        self.active
            .iter()
            .any(|&index| wanted(&self.plan.faults[index].kind))
    }

    /// Returns the largest value that active faults have for a node.
    fn most(&self, node: NodeIndex, pick: impl Fn(&Kind) -> Option<(NodeIndex, u64)>) -> u64 {
        let all = self
            .active
            .iter()
            .filter_map(|&index| pick(&self.plan.faults[index].kind));
        let of_node = all.filter(|(of, _)| *of == node);
        of_node.map(|(_, amount)| amount).max().unwrap_or(0)
    }

    /// Makes the world as the active faults say.
    fn apply(&self, world: &mut World) {
        world.sa.silent =
            self.any(|kind| *kind == Kind::Silence) || world.has(Sabotage::SilentAdministrator);
        world.rates.datagram_loss = if self.any(|kind| *kind == Kind::Burst) {
            BURST
        } else if world.check.phase == Phase::Traffic {
            self.plan.rates.datagram_loss
        } else {
            0
        };
        let cut = self
            .active
            .iter()
            .find_map(|&index| match self.plan.faults[index].kind {
                Kind::Partition { nodes, manager } => Some((nodes, manager)),
                _ => None,
            });
        let (cut, manager) = cut.unwrap_or_default();
        world.net.sm_side = manager.into();
        for node in 0..self.plan.places() {
            world.net.side[node] = u8::from(cut >> (node % 64) & 1 == 1);
            world.set_port(node, !self.any(|kind| *kind == Kind::Port(node)));
            world.net.slow[node] = self.most(node, |kind| match kind {
                Kind::Link(node, extra) => Some((*node, *extra)),
                _ => None,
            });
            let flood = self.any(|kind| *kind == Kind::Flood(node));
            world.nodes[node].flood = flood.then(Flood::default);
            world.nodes[node].cpu.slow = self.most(node, |kind| match kind {
                Kind::Slow(node, late) => Some((*node, *late)),
                _ => None,
            });
        }
        for fault in self.active.iter().map(|&index| &self.plan.faults[index]) {
            if let Kind::Stop(node) = fault.kind {
                let cpu = &mut world.nodes[node].cpu;
                cpu.stopped_until = cpu.stopped_until.max(fault.until);
            }
        }
    }
}

impl World {
    fn set_port(&mut self, node: NodeIndex, up: bool) {
        if up == self.net.port_up[node] {
            return;
        }
        self.net.port_up[node] = up;
        self.nodes[node]
            .events
            .push_back(DeviceEvent::PortChanged { port: 1 });
        if !up {
            self.sa.forget(node);
        }
    }

    /// Fails the queue pair that is attached to a group; the RNG decides whether its user gets an
    /// event as well.
    fn fail_group_pair(&mut self, node: NodeIndex) {
        let pairs = &self.nodes[node].qps;
        let attached = pairs.values().find(|qp| !qp.groups.is_empty());
        if let Some(qpn) = attached.map(|qp| qp.qpn) {
            let told = self.rng.chance(500_000);
            self.fail_pair(node, qpn, told);
        }
    }

    /// Makes a node's HCA refuse to reset queue pairs, and fails one of its connections. From then
    /// on the node counts as one that goes: it can't give back what it has lent, so it must end.
    fn break_card(&mut self, node: NodeIndex, stay: u64) {
        let (life, now) = (self.life(node), self.now);
        if self.living(life).is_none() {
            return;
        }
        self.nodes[node].broken = true;
        self.truth.leaves(life, now);
        self.after(stay, Event::Off(life));
        let mut pairs = self.nodes[node].qps.values();
        let joined = pairs.find(|qp| qp.path.is_some()).map(|qp| qp.qpn);
        if let Some(qpn) = joined {
            self.fail_pair(node, qpn, true);
        }
    }

    fn forget_groups(&mut self, told: bool) {
        self.sa.forget_all();
        if told {
            self.tell_ports();
        }
    }

    fn tell_ports(&mut self) {
        for node in &mut self.nodes {
            node.events.push_back(DeviceEvent::PortChanged { port: 1 });
        }
    }

    /// Gives a port another LID while its node runs.
    fn give_lid(&mut self, node: NodeIndex) {
        self.move_port(node);
        self.nodes[node]
            .events
            .push_back(DeviceEvent::PortChanged { port: 1 });
    }

    /// Puts another subnet manager in the place of the one that was there.
    fn hand_over(&mut self, knows: bool, told: bool) {
        self.move_manager();
        if !knows {
            self.sa.forget_all();
        }
        if told {
            self.tell_ports();
        }
    }
}
