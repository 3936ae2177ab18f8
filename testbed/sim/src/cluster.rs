//! A run: boots the nodes, lets things happen in order, and tells how it ended.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use verbs::DeviceEvent;

use crate::check::Phase;
use crate::executor::Executor;
use crate::machine::Machine;
use crate::plan::{Kind, Plan, Rates, Sabotage};
use crate::rng::mix;
use crate::rule::{Rule, Violation};
use crate::trace::{Detail, Trace};
use crate::workload;
use crate::world::{Bed, Event, NodeIndex, Stats, World};

/// Within so much time after the last fault everyone must be able to call everyone.
const CONVERGENCE: u64 = 90_000_000_000;
/// What is left of traffic has ended so much time after the last exam.
const REST: u64 = 8_000_000_000;
/// Events within one instant: more are a loop.
const INSTANT: u64 = 1_000_000;

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The first broken rule.
    pub violation: Option<Violation>,
    /// Stands for everything that happened.
    pub hash: u64,
    /// How much that was.
    pub events: u64,
    /// Virtual nanoseconds.
    pub time: u64,
    /// What was injected.
    pub stats: Stats,
    /// The trace as text, if it was asked for.
    pub lines: Vec<String>,
}

struct Run {
    plan: Arc<Plan>,
    bed: Arc<Bed>,
    executor: Executor,
    /// The planned faults that hold at the moment.
    active: BTreeSet<usize>,
    rest_at: Option<u64>,
}

/// Carries a plan out.
#[must_use]
pub fn run(plan: &Plan, detail: Detail) -> Outcome {
    let mut world = World::new(plan.seed, plan.nodes, plan.rates, Trace::new(detail));
    world.sabotage = plan.sabotage;
    world.sa.silent = plan.sabotage == Some(Sabotage::SilentAdministrator);
    let bed = Bed::new(world);
    let mut run = Run {
        plan: Arc::new(plan.clone()),
        executor: Executor::new(bed.clone()),
        bed: bed.clone(),
        active: BTreeSet::new(),
        rest_at: None,
    };
    let ended = catch_unwind(AssertUnwindSafe(|| run.run()));
    if let Err(panic) = ended {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let text = text.unwrap_or_default();
        bed.world().violate(Rule::Panic, format_args!("{text}"));
    }
    let outcome = {
        let mut world = bed.world();
        // Nothing that is torn down may report any more.
        for node in &mut world.nodes {
            node.alive = false;
        }
        Outcome {
            violation: world.violation.clone(),
            hash: mix(world.trace.hash()),
            events: world.trace.events(),
            time: world.now,
            stats: world.stats.clone(),
            lines: world.trace.take_lines(),
        }
    };
    // Tasks may panic once more while they are dropped, if one did before.
    let _ = catch_unwind(AssertUnwindSafe(|| run.end()));
    outcome
}

impl Run {
    fn run(&mut self) {
        {
            let mut world = self.bed.world();
            for (index, fault) in self.plan.faults.iter().enumerate() {
                world.schedule(fault.from, Event::Fault(index));
                world.schedule(fault.until, Event::Relief(index));
            }
            world.schedule(0, Event::Watch);
        }
        for node in 0..self.plan.nodes {
            self.boot(node);
        }
        let (mut instant, mut within) = (0, 0);
        loop {
            self.executor.collect();
            let event = {
                let mut world = self.bed.world();
                if world.violation.is_some() {
                    return;
                }
                let event = world.next();
                if world.now == instant {
                    within += 1;
                    if within > INSTANT {
                        world.violate(Rule::Progress, format_args!("time stands still"));
                    }
                } else {
                    (instant, within) = (world.now, 0);
                }
                event
            };
            let Some(event) = event else { return };
            if self.handle(event) {
                return;
            }
        }
    }

    /// Lets an event happen. Returns whether the run is over.
    fn handle(&mut self, event: Event) -> bool {
        match event {
            Event::Run(task) => self.executor.run(task),
            Event::Fault(index) => self.fault(index, true),
            Event::Relief(index) => self.fault(index, false),
            Event::Watch => {
                self.bed.world().watch();
                return self.progress();
            }
            event => self.bed.world().happen(event),
        }
        false
    }

    fn boot(&mut self, node: NodeIndex) {
        let life = self.bed.world().boot(node, self.plan.skew);
        let machine = Machine {
            bed: self.bed.clone(),
            life,
        };
        machine.spawn(workload::live(machine.clone(), self.plan.clone()));
    }

    fn fault(&mut self, index: usize, begins: bool) {
        let fault = &self.plan.faults[index];
        let kind = fault.kind.clone();
        if begins {
            self.active.insert(index);
            self.bed.world().stats.count(kind.name());
        } else {
            self.active.remove(&index);
        }
        {
            let mut world = self.bed.world();
            let now = world.now;
            world.trace.event(now, 5, [index as u64, u64::from(begins), 0]);
            let word = if begins { "begins" } else { "ends" };
            world
                .trace
                .say(now, format_args!("fault {index} {word}: {kind:?}"));
        }
        match kind {
            Kind::Crash(node) if begins => {
                self.bed.world().crash(node);
                self.executor.end_tasks(node);
            }
            Kind::Crash(node) => {
                let down = self.any(|kind| *kind == Kind::Crash(node));
                if !down && !self.bed.world().nodes[node].alive {
                    self.boot(node);
                }
            }
            _ => {}
        }
        self.apply(fault_until(&self.plan, &self.active));
    }

    fn any(&self, wanted: impl Fn(&Kind) -> bool) -> bool {
        self.active
            .iter()
            .any(|&index| wanted(&self.plan.faults[index].kind))
    }

    /// Makes the world as the active faults say.
    fn apply(&mut self, stops: Vec<(NodeIndex, u64)>) {
        let silent = self.any(|kind| *kind == Kind::Silence)
            || self.plan.sabotage == Some(Sabotage::SilentAdministrator);
        let burst = self.any(|kind| *kind == Kind::Burst);
        let cut = self
            .active
            .iter()
            .find_map(|&index| match self.plan.faults[index].kind {
                Kind::Partition { nodes, manager } => Some((nodes, manager)),
                _ => None,
            });
        let (cut, manager) = cut.unwrap_or_default();
        let bed = self.bed.clone();
        let mut world = bed.world();
        world.sa.silent = silent;
        let calm = world.check.phase != Phase::Traffic;
        world.rates.datagram_loss = if burst {
            900_000
        } else if calm {
            0
        } else {
            self.plan.rates.datagram_loss
        };
        world.net.sm_side = manager.into();
        for node in 0..self.plan.nodes {
            world.net.side[node] = u8::from(cut >> node & 1 == 1);
            let up = !self.any(|kind| *kind == Kind::Port(node));
            if up != world.net.port_up[node] {
                world.net.port_up[node] = up;
                world.nodes[node]
                    .events
                    .push_back(DeviceEvent::PortChanged { port: 1 });
                if !up {
                    world.sa.forget(node);
                }
            }
            let of = |pick: fn(&Kind) -> Option<(NodeIndex, u64)>| {
                let all = self
                    .active
                    .iter()
                    .filter_map(|&index| pick(&self.plan.faults[index].kind));
                all.filter(|(of, _)| *of == node)
                    .map(|(_, amount)| amount)
                    .max()
                    .unwrap_or(0)
            };
            world.net.slow[node] = of(|kind| match kind {
                Kind::Link(node, extra) => Some((*node, *extra)),
                _ => None,
            });
            world.nodes[node].cpu.slow = of(|kind| match kind {
                Kind::Slow(node, late) => Some((*node, *late)),
                _ => None,
            });
        }
        for (node, until) in stops {
            let cpu = &mut world.nodes[node].cpu;
            cpu.stopped_until = cpu.stopped_until.max(until);
        }
    }

    /// Goes from phase to phase. Returns whether the run is over.
    fn progress(&mut self) -> bool {
        let bed = self.bed.clone();
        let mut world = bed.world();
        let now = world.now;
        match world.check.phase {
            Phase::Traffic if now >= self.plan.calm => {
                world.trace.say(now, format_args!("faults are over"));
                world.rates = Rates::default();
                world.check.phase = Phase::Exam;
            }
            Phase::Traffic => {}
            Phase::Exam => {
                let missing = self.missing(&world);
                match missing {
                    None => {
                        world.trace.say(now, format_args!("everyone has called everyone"));
                        world.check.phase = Phase::Rest;
                        self.rest_at = Some(now + REST);
                    }
                    Some((a, b)) if now > self.plan.calm + CONVERGENCE => world.violate(
                        Rule::Convergence,
                        format_args!("node {a} can't call node {b}, long after the last fault"),
                    ),
                    Some(_) => {}
                }
            }
            Phase::Rest => {
                if self.rest_at.is_some_and(|at| now >= at) {
                    world.check_credits(self.plan.signal_every.into());
                    return true;
                }
            }
        }
        false
    }

    /// A pair that has not passed its exam, and has the means to.
    fn missing(&self, world: &World) -> Option<(NodeIndex, NodeIndex)> {
        let nodes = 0..self.plan.nodes;
        let pairs = nodes.clone().flat_map(|a| nodes.clone().map(move |b| (a, b)));
        pairs
            .filter(|&(a, b)| self.plan.talk(a, b) && !world.check.passed.contains(&(a, b)))
            .find(|&(a, b)| !world.exhausted(a) && !world.exhausted(b))
    }

    fn end(&mut self) {
        for node in 0..self.plan.nodes {
            self.executor.end_tasks(node);
        }
    }
}

/// Nodes that stand still, with the ends of that.
fn fault_until(plan: &Plan, active: &BTreeSet<usize>) -> Vec<(NodeIndex, u64)> {
    let faults = active.iter().map(|&index| &plan.faults[index]);
    faults
        .filter_map(|fault| match fault.kind {
            Kind::Stop(node) => Some((node, fault.until)),
            _ => None,
        })
        .collect()
}

impl World {
    /// Lets something happen that concerns no task directly.
    fn happen(&mut self, event: Event) {
        match event {
            Event::Timer { slot, generation } => {
                if let Some(waker) = self.end_timer((slot, generation)) {
                    waker.wake();
                }
            }
            Event::Packet(packet) => self.arrive(*packet),
            Event::AckTimeout { life, qpn, timer } if self.living(life).is_some() => {
                self.ack_timeout(life.node, qpn, timer);
            }
            Event::Rnr { life, qpn, timer } if self.living(life).is_some() => {
                self.rnr_over(life.node, qpn, timer)
            }
            Event::Completion { life, cqn } if self.living(life).is_some() => {
                self.completion_visible(life.node, cqn)
            }
            Event::Interrupt { life, vector } if self.living(life).is_some() => {
                self.interrupt(life.node, vector)
            }
            _ => {}
        }
    }
}
