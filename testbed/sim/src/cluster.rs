//! A run: boots the nodes, handles events in order, and returns the outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use fit::View;

use crate::check::{Checker, Phase};
use crate::executor::Executor;
use crate::fault::Kind;
use crate::machine::Machine;
use crate::plan::{Plan, Rates};
use crate::rng::mix;
use crate::rule::{Rule, Violation};
use crate::sabotage::Sabotage;
use crate::trace::{Detail, Trace};
use crate::workload::{self, KINDS};
use crate::world::{Bed, Event, NodeIndex, Stats, World};

/// Time after the last fault within which all views must agree, and each node can call each other.
const CONVERGENCE: u64 = 30_000_000_000;
/// Additional time if nodes have to find out by themselves that a subnet manager has forgotten
/// them.
const FORGOTTEN: u64 = 60_000_000_000;
/// Time after which FIT notices a completion that never came: ten seconds, of a slow clock that is
/// looked at late.
const UNNOTICED: u64 = 13_000_000_000;
/// Time after which FIT gives up a caller that has not proven itself: a rogue may be switched off
/// while it calls.
const UNPROVEN: u64 = 6_000_000_000;
/// Time within which each pair must have done the operations of the calm.
const CALM: u64 = 10_000_000_000;
/// Length of the rest after that, in which nothing may happen.
const REST: u64 = 4_000_000_000;
/// Turns of a task between two looks of the watchdog, a tenth of a second apart: more are a loop.
const TURNS: u32 = 50_000;
/// Lines of FIT's table of peers, for those who are lost, refused or idle.
const OLD_PEERS: usize = 66;

/// Outcome of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The first broken rule.
    pub violation: Option<Violation>,
    /// Stands for everything that happened.
    pub hash: u64,
    /// Number of events.
    pub events: u64,
    /// Virtual nanoseconds.
    pub time: u64,
    /// Counts of faults and operations.
    pub stats: Stats,
    /// The trace as text, if it was asked for.
    pub lines: Vec<String>,
}

pub(crate) struct Run {
    pub(crate) plan: Arc<Plan>,
    pub(crate) bed: Arc<Bed>,
    pub(crate) executor: Executor,
    /// The planned faults that hold at the moment.
    pub(crate) active: BTreeSet<usize>,
    /// End of the calm, or of the rest.
    due: u64,
}

/// Carries a plan out.
#[must_use]
pub fn run(plan: &Plan, detail: Detail) -> Outcome {
    let mut world = World::new(plan.seed, plan.places(), plan.rates, Trace::new(detail));
    world.check = Checker::new(plan);
    world.sabotage = plan.sabotage;
    world.rogues.places = plan.rogues();
    world.sa.silent = plan.sabotage == Some(Sabotage::SilentAdministrator);
    let bed = Bed::new(world);
    let mut run = Run {
        plan: Arc::new(plan.clone()),
        executor: Executor::new(bed.clone()),
        bed: bed.clone(),
        active: BTreeSet::new(),
        due: 0,
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
            if self
                .plan
                .faults
                .iter()
                .all(|fault| fault.kind != Kind::Late(node))
            {
                self.boot(node);
            }
        }
        loop {
            self.executor.collect();
            let event = {
                let mut world = self.bed.world();
                if world.violation.is_some() {
                    return;
                }
                world.next()
            };
            let Some(event) = event else { return };
            if self.handle(event) {
                return;
            }
        }
    }

    /// Lets one thing happen. Returns whether the run is over.
    fn handle(&mut self, event: Event) -> bool {
        match event {
            Event::Run(task) => self.executor.run(task),
            Event::Fault(index) => self.fault(index, true),
            Event::Relief(index) => self.fault(index, false),
            Event::Off(life) => self.off(life),
            Event::Watch => return self.watch(),
            event => self.bed.world().happen(event),
        }
        false
    }

    pub(crate) fn boot(&mut self, node: NodeIndex) {
        let life = self.bed.world().boot(node, self.plan.skew);
        let machine = Machine {
            bed: self.bed.clone(),
            life,
        };
        machine.spawn(workload::live(machine.clone(), self.plan.clone()));
    }

    /// Checks everything, as the watchdog. Returns whether the run is over.
    fn watch(&mut self) -> bool {
        let busiest = self.executor.busiest();
        let (mut views, mut peers) = (BTreeMap::new(), BTreeMap::new());
        for (&node, fit) in self.bed.fits().iter() {
            views.insert(node, fit.view());
            peers.insert(node, fit.peers().len());
        }
        let bed = self.bed.clone();
        let mut world = bed.world();
        world.watch();
        if let Some((node, turns)) = busiest.filter(|(_, turns)| *turns > TURNS) {
            world.violate(
                Rule::Progress,
                format_args!("node {node}: a task had {turns} turns within a tenth of a second"),
            );
        }
        for (&node, view) in &views {
            world.look_at_view(node, view.clone(), self.plan.keepalive_ms * 1_000_000);
        }
        let most = 2 * self.plan.places() + OLD_PEERS;
        if let Some((node, lines)) = peers.iter().find(|(_, lines)| **lines > most) {
            world.violate(
                Rule::Growth,
                format_args!("node {node}: the table of peers has {lines} lines"),
            );
        }
        self.progress(&mut world, &views)
    }

    /// Goes from phase to phase. Returns whether the run is over.
    fn progress(&mut self, world: &mut World, views: &BTreeMap<NodeIndex, View>) -> bool {
        let now = world.now;
        match world.check.phase {
            Phase::Traffic if now >= self.plan.calm => {
                world.trace.say(now, format_args!("faults are over"));
                world.rates = Rates::default();
                world.check.phase = Phase::Exam;
            }
            Phase::Traffic => {}
            Phase::Exam => {
                let late = now > self.plan.calm + self.bound();
                let (apart, missing) = (world.disagreement(&self.plan, views), self.missing(world));
                if apart.is_none() && missing.is_none() && world.stats.settled == 0 {
                    world.stats.settled = now - self.plan.calm;
                }
                match (apart, missing) {
                    (None, None) if now < self.plan.calm + self.aftermath() => {}
                    (None, None) => {
                        world.trace.say(
                            now,
                            format_args!("all views agree, and everyone has called everyone"),
                        );
                        world.check.phase = Phase::Calm;
                        self.due = now + CALM;
                    }
                    (Some(apart), _) if late => world.violate(
                        Rule::Views,
                        format_args!("{apart}, long after the last fault"),
                    ),
                    (None, Some((a, b))) if late => world.violate(
                        Rule::Convergence,
                        format_args!("node {a} can't call node {b}, long after the last fault"),
                    ),
                    _ => {}
                }
            }
            Phase::Calm => match self.unfinished(world) {
                None => {
                    world
                        .trace
                        .say(now, format_args!("each has done all kinds of operations"));
                    world.check.phase = Phase::Rest;
                    self.due = now + REST;
                }
                Some((a, b)) if now >= self.due => world.violate(
                    Rule::Calm,
                    format_args!("node {a} has not done every kind of operation with node {b}"),
                ),
                Some(_) => {}
            },
            Phase::Rest if now >= self.due => {
                self.check_rest(world, views);
                return true;
            }
            Phase::Rest => {}
        }
        false
    }

    /// Returns the time after the last fault within which all must be well.
    fn bound(&self) -> u64 {
        let forgotten = self.plan.faults.iter().any(|fault| {
            matches!(
                fault.kind,
                Kind::Forget { told: false } | Kind::Handover { told: false, .. }
            )
        });
        CONVERGENCE + if forgotten { FORGOTTEN } else { 0 }
    }

    /// Returns the time after the last fault in which its traces may still end a connection.
    fn aftermath(&self) -> u64 {
        match (self.plan.rates.completion_lost, self.plan.rogues().len()) {
            (0, 0) => 0,
            (0, _) => UNPROVEN,
            _ => UNNOTICED,
        }
    }

    /// Checks the rules that hold once nothing has happened for a while.
    fn check_rest(&self, world: &mut World, views: &BTreeMap<NodeIndex, View>) {
        world.check_credits();
        if let Some(apart) = world.disagreement(&self.plan, views) {
            world.violate(
                Rule::Views,
                format_args!("{apart}, though nothing happened"),
            );
        }
        for (&node, view) in views.range(..self.plan.nodes) {
            world.check_told(node, view);
            let regions = world.registered(node);
            // A region for each connection's buffers, and one for the announcements.
            let shape = self.plan.shape(world.life(node));
            let connections = self.plan.connections(&shape) * shape.cores;
            let most = usize::from(connections) + usize::from(self.plan.discover);
            if regions > most {
                world.violate(
                    Rule::Growth,
                    format_args!(
                        "node {node}: FIT has {regions} regions registered, and needs {most}"
                    ),
                );
            }
        }
    }

    /// Returns a pair that has not passed its exam.
    fn missing(&self, world: &World) -> Option<(NodeIndex, NodeIndex)> {
        let mut pairs = self.plan.pairs();
        pairs.find(|pair| !world.check.passed.contains(pair))
    }

    /// Returns a pair that has operations of the calm left.
    fn unfinished(&self, world: &World) -> Option<(NodeIndex, NodeIndex)> {
        let done = |pair: &(NodeIndex, NodeIndex)| {
            world
                .check
                .calm
                .get(pair)
                .is_some_and(|count| *count >= KINDS)
        };
        self.plan.pairs().find(|pair| !done(pair))
    }

    fn end(&mut self) {
        for node in 0..self.plan.places() {
            self.executor.end_tasks(node);
        }
        // Each knows the world that knows it.
        let fits = std::mem::take(&mut *self.bed.fits());
        drop(fits);
    }
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
            Event::Begun(late, what) if self.living(late.life).is_some() => {
                self.end_begun(late, &what)
            }
            Event::Interrupt { life, vector } if self.living(life).is_some() => {
                self.interrupt(life.node, vector)
            }
            _ => {}
        }
    }
}
