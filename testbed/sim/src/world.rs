//! Simulated world without the tasks: time, future events, the nodes, the network.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use fit::Fit;
use verbs::{DeviceEvent, Gid, Guid, Lid, Qpn, Sge};

use crate::check::Checker;
use crate::executor::Ready;
use crate::hca::Hca;
use crate::hostile::Recorder;
use crate::machine::Machine;
use crate::memory::{Denied, Memory};
use crate::network::{Network, Packet};
use crate::plan::Rates;
use crate::qp::{Cq, Qp, Vector};
use crate::rng::{Ppm, Rng};
use crate::rogue::Rogues;
use crate::rule::{Rule, Violation};
use crate::sa::Administrator;
use crate::sabotage::Sabotage;
use crate::trace::Trace;
use crate::views::TrueMembership;

/// A node's place in the cluster.
pub type NodeIndex = usize;

/// The first port GUID.
const GUID: u64 = 0x0002_c903_0000_1000;

/// Event in the future.
pub(crate) enum Event {
    /// A task gets its turn.
    Run(usize),
    /// A sleep is over.
    Timer { slot: usize, generation: u64 },
    /// A packet arrives.
    Packet(Box<Packet>),
    /// The acknowledgement timer of a queue pair has expired.
    AckTimeout { life: Life, qpn: Qpn, timer: u64 },
    /// A receiver that was not ready may be by now.
    Rnr { life: Life, qpn: Qpn, timer: u64 },
    /// A completion becomes visible.
    Completion { life: Life, cqn: u32 },
    /// An interrupt reaches the machine.
    Interrupt { life: Life, vector: u16 },
    /// The bytes of a READ come, though its queue pair has failed.
    Begun(Late, Vec<Sge>),
    /// A planned fault begins.
    Fault(usize),
    /// A planned fault ends.
    Relief(usize),
    /// A node that has left is switched off.
    Off(Life),
    /// The watchdog looks at what is open.
    Watch,
}

/// One life of a node: from its start to its crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Life {
    /// The node.
    pub(crate) node: NodeIndex,
    /// Counts its starts.
    pub(crate) incarnation: u32,
}

/// A queue pair that had failed, at a time when it had been reset so often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Late {
    pub(crate) life: Life,
    pub(crate) qpn: Qpn,
    pub(crate) resets: u64,
}

struct Scheduled {
    at: u64,
    sequence: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// A node's clock, which begins anywhere and runs a little fast or slow.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Clock {
    pub(crate) began: u64,
    pub(crate) offset: u64,
    pub(crate) ppm: i64,
}

impl Clock {
    pub(crate) fn local(&self, now: u64) -> u64 {
        let span = i128::from(now - self.began);
        let local = span + span * i128::from(self.ppm) / 1_000_000;
        self.offset + u64::try_from(local).expect("a clock that runs forwards")
    }

    /// Converts a span of the node's clock to virtual time.
    pub(crate) fn real(&self, span: u64) -> u64 {
        let real =
            u128::from(span) * 1_000_000 / u128::try_from(1_000_000 + self.ppm).expect("forwards");
        u64::try_from(real)
            .unwrap_or(u64::MAX >> 2)
            .saturating_add(1)
    }
}

/// A node's processor: one task at a time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cpu {
    pub(crate) free_at: u64,
    /// Each turn comes up to so much late.
    pub(crate) slow: u64,
    /// Time before which none of the node's tasks runs.
    pub(crate) stopped_until: u64,
    /// Time until which a handler computes.
    pub(crate) busy_until: u64,
}

/// A machine with its HCA.
pub(crate) struct Node {
    pub(crate) incarnation: u32,
    pub(crate) alive: bool,
    /// Its port's number for life, which no other should have.
    pub(crate) guid: Guid,
    pub(crate) lid: Lid,
    pub(crate) clock: Clock,
    pub(crate) cpu: Cpu,
    pub(crate) memory: Memory,
    pub(crate) qps: BTreeMap<u32, Qp>,
    pub(crate) cqs: Vec<Cq>,
    pub(crate) next_qpn: u32,
    pub(crate) vectors: Vec<Vector>,
    pub(crate) mads: VecDeque<(Lid, mad::Mad)>,
    pub(crate) events: VecDeque<DeviceEvent>,
    /// FIT has started: commands may be refused.
    pub(crate) started: bool,
    /// Its HCA refuses to reset queue pairs, until the node is switched off.
    pub(crate) broken: bool,
    /// Its port is full of datagrams that make no sense.
    pub(crate) flood: Option<Flood>,
}

/// Datagrams of a flood that a node has taken at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Flood {
    pub(crate) at: u64,
    pub(crate) taken: u32,
}

impl Node {
    fn new(guid: Guid, lid: Lid) -> Self {
        Self {
            incarnation: 0,
            alive: false,
            guid,
            lid,
            clock: Clock::default(),
            cpu: Cpu::default(),
            memory: Memory::new(),
            qps: BTreeMap::new(),
            cqs: Vec::new(),
            next_qpn: 0x40,
            vectors: Vec::new(),
            mads: VecDeque::new(),
            events: VecDeque::new(),
            started: false,
            broken: false,
            flood: None,
        }
    }

    /// Its port's GID.
    pub(crate) fn gid(&self) -> Gid {
        Gid::new(Gid::DEFAULT_PREFIX, self.guid)
    }
}

/// Counts of injected faults and of ended operations.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Operations that ended well.
    pub ended: u64,
    /// Operations that ended with an error.
    pub failed: u64,
    /// Operations between nodes of the cluster that ended with an error and were not given up.
    pub errors: u64,
    /// Operations that ended well, by kind.
    pub kinds: BTreeMap<&'static str, u64>,
    /// Time from the last fault until all views agreed and each node had called every other, in
    /// nanoseconds.
    pub settled: u64,
}

impl Stats {
    pub(crate) fn count(&mut self, fault: &'static str) {
        *self.faults.entry(fault).or_default() += 1;
    }
}

/// The simulated world.
pub(crate) struct World {
    pub(crate) now: u64,
    heap: BinaryHeap<Reverse<Scheduled>>,
    sequence: u64,
    timers: Vec<(u64, Option<Waker>)>,
    free_timers: Vec<usize>,
    pub(crate) rng: Rng,
    pub(crate) trace: Trace,
    pub(crate) nodes: Vec<Node>,
    /// Node at each LID.
    lids: Vec<Option<NodeIndex>>,
    pub(crate) net: Network,
    pub(crate) recorder: Recorder,
    pub(crate) rogues: Rogues,
    pub(crate) sa: Administrator,
    pub(crate) rates: Rates,
    pub(crate) sabotage: Option<Sabotage>,
    pub(crate) sabotaged: u64,
    pub(crate) check: Checker,
    pub(crate) truth: TrueMembership,
    pub(crate) stats: Stats,
    pub(crate) violation: Option<Violation>,
}

impl World {
    pub(crate) fn new(seed: u64, nodes: usize, rates: Rates, trace: Trace) -> Self {
        // 0 is no LID, 1 the subnet manager's.
        let lids: Vec<Option<NodeIndex>> = [None, None]
            .into_iter()
            .chain((0..nodes).map(Some))
            .collect();
        let node = |index: NodeIndex| {
            let lid = u16::try_from(index + 2).expect("few nodes");
            Node::new(Guid(GUID + ((index as u64) << 8)), Lid(lid))
        };
        Self {
            now: 0,
            heap: BinaryHeap::new(),
            sequence: 0,
            timers: Vec::new(),
            free_timers: Vec::new(),
            rng: Rng::of(seed, 1),
            trace,
            nodes: (0..nodes).map(node).collect(),
            lids,
            net: Network::new(nodes),
            recorder: Recorder::default(),
            rogues: Rogues::default(),
            sa: Administrator::default(),
            rates,
            sabotage: None,
            sabotaged: 0,
            check: Checker::default(),
            truth: TrueMembership::new(nodes),
            stats: Stats::default(),
            violation: None,
        }
    }

    pub(crate) fn schedule(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        let scheduled = Scheduled {
            at: at.max(self.now),
            sequence: self.sequence,
            event,
        };
        self.heap.push(Reverse(scheduled));
    }

    pub(crate) fn after(&mut self, span: u64, event: Event) {
        self.schedule(self.now.saturating_add(span), event);
    }

    /// Goes on to the next event.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let Reverse(next) = self.heap.pop()?;
        self.now = next.at;
        Some(next.event)
    }

    /// Returns the node, if this life of it goes on.
    pub(crate) fn living(&mut self, life: Life) -> Option<&mut Node> {
        self.nodes
            .get_mut(life.node)
            .filter(|node| node.alive && node.incarnation == life.incarnation)
    }

    pub(crate) fn life(&self, node: NodeIndex) -> Life {
        Life {
            node,
            incarnation: self.nodes[node].incarnation,
        }
    }

    /// Returns the node with this LID.
    pub(crate) fn by_lid(&self, lid: Lid) -> Option<NodeIndex> {
        self.lids.get(usize::from(lid.0)).copied().flatten()
    }

    /// Gives a node another LID.
    pub(crate) fn move_port(&mut self, index: NodeIndex) {
        let old = usize::from(self.nodes[index].lid.0);
        self.lids[old] = None;
        self.nodes[index].lid = self.next_lid();
        self.lids.push(Some(index));
    }

    /// Another subnet manager takes over, at a port of its own.
    pub(crate) fn move_manager(&mut self) {
        self.sa.lid = self.next_lid();
        self.lids.push(None);
    }

    fn next_lid(&self) -> Lid {
        Lid(u16::try_from(self.lids.len()).expect("few LIDs"))
    }

    // ---- Lives ----

    /// Begins a new life of a node.
    pub(crate) fn boot(&mut self, index: NodeIndex, skew: Ppm) -> Life {
        if self.nodes[index].incarnation > 0 && self.rng.chance(200_000) {
            self.move_port(index);
        }
        let (guid, lid) = (self.nodes[index].guid, self.nodes[index].lid);
        let skew = u64::from(skew);
        let ppm = i64::try_from(self.rng.below(2 * skew + 1)).expect("small")
            - i64::try_from(skew).expect("small");
        let offset = self.rng.below(3_000_000_000);
        let incarnation = self.nodes[index].incarnation + 1;
        self.nodes[index] = Node {
            incarnation,
            alive: true,
            clock: Clock {
                began: self.now,
                offset,
                ppm,
            },
            ..Node::new(guid, lid)
        };
        let now = self.now;
        self.trace.say(
            now,
            format_args!("node {index} starts, life {incarnation}, {lid}, clock {ppm:+} ppm"),
        );
        self.life(index)
    }

    /// Ends a node's life: its memory and queues are gone.
    pub(crate) fn crash(&mut self, index: NodeIndex) {
        let life = self.life(index);
        let node = &self.nodes[index];
        self.nodes[index] = Node {
            incarnation: life.incarnation,
            ..Node::new(node.guid, node.lid)
        };
        self.check.crashed(life);
        let now = self.now;
        self.truth.ends(life, now);
        self.sa.forget(index);
        self.trace.say(now, format_args!("node {index} is off"));
    }

    // ---- Findings ----

    pub(crate) fn violate(&mut self, rule: Rule, what: fmt::Arguments<'_>) {
        let now = self.now;
        self.trace
            .say(now, format_args!("VIOLATION {rule:?}: {what}"));
        if self.violation.is_none() {
            self.violation = Some(Violation {
                rule,
                at: now,
                what: what.to_string(),
            });
        }
    }

    /// Tells of memory that the device must not touch. Returns whether hardware itself would have
    /// refused.
    pub(crate) fn denied(&mut self, node: NodeIndex, denied: Denied) {
        match denied {
            Denied::Key => {}
            // What answers its nonsense lands anywhere.
            _ if self.is_rogue(node) => {}
            Denied::Owned(addr) => self.violate(
                Rule::OwnedMemory,
                format_args!(
                    "node {node}: the device touches {addr:#x}, which its owner has not lent"
                ),
            ),
            Denied::Freed(addr) => self.violate(
                Rule::FreedMemory,
                format_args!("node {node}: the device touches {addr:#x}, which is not allocated"),
            ),
        }
    }

    /// Returns whether the deliberate bug `kind` strikes now. It strikes every seventh time.
    pub(crate) fn sabotaged(&mut self, kind: Sabotage) -> bool {
        if self.sabotage != Some(kind) {
            return false;
        }
        self.sabotaged += 1;
        self.sabotaged.is_multiple_of(7)
    }

    /// Returns whether the deliberate bug `kind` is built in for good.
    pub(crate) fn has(&self, kind: Sabotage) -> bool {
        self.sabotage == Some(kind)
    }

    /// Returns whether the clock stands still by the deliberate bug.
    pub(crate) fn clock_stands(&self) -> bool {
        self.sabotage == Some(Sabotage::StandingClock) && self.now > 1_000_000_000
    }

    // ---- Timers ----

    pub(crate) fn start_timer(&mut self, span: u64, waker: Waker) -> (usize, u64) {
        let slot = self.free_timers.pop().unwrap_or_else(|| {
            self.timers.push((0, None));
            self.timers.len() - 1
        });
        let entry = &mut self.timers[slot];
        entry.0 += 1;
        entry.1 = Some(waker);
        let generation = entry.0;
        self.after(span, Event::Timer { slot, generation });
        (slot, generation)
    }

    pub(crate) fn timer_runs(&self, (slot, generation): (usize, u64)) -> bool {
        let (current, waker) = &self.timers[slot];
        *current == generation && waker.is_some()
    }

    pub(crate) fn end_timer(&mut self, (slot, generation): (usize, u64)) -> Option<Waker> {
        let entry = &mut self.timers[slot];
        if entry.0 != generation {
            return None;
        }
        let waker = entry.1.take()?;
        self.free_timers.push(slot);
        Some(waker)
    }
}

/// The world, and who is ready to run in it.
pub(crate) struct Bed {
    world: Mutex<World>,
    pub(crate) ready: Arc<Ready>,
    /// The FIT of each node that runs. Outside the world, as it looks at the world itself.
    fits: Mutex<BTreeMap<NodeIndex, Fit<Hca, Machine>>>,
}

impl Bed {
    pub(crate) fn new(world: World) -> Arc<Self> {
        Arc::new(Self {
            world: Mutex::new(world),
            ready: Arc::default(),
            fits: Mutex::default(),
        })
    }

    /// Returns the FIT of each running node.
    pub(crate) fn fits(&self) -> MutexGuard<'_, BTreeMap<NodeIndex, Fit<Hca, Machine>>> {
        self.fits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skewed_clock_and_its_spans_agree() {
        for ppm in [-200_000, -100, 0, 100, 200_000] {
            let clock = Clock {
                began: 1000,
                offset: 77,
                ppm,
            };
            let real = clock.real(1_000_000);
            let local = clock.local(1000 + real) - clock.local(1000);
            assert!((1_000_000..1_000_003).contains(&local), "{ppm}: {local}");
        }
    }
}
