//! Checker's state beside the hardware's: open operations, seen requests, credits at rest.

use std::collections::{BTreeMap, BTreeSet};

use fit::PeerId;
use verbs::{Qpn, RemoteAddr};

use crate::plan::Plan;
use crate::qp::{Qp, Wqe};
use crate::rule::Rule;
use crate::world::{Event, Life, NodeIndex, World};

/// Time an operation may take beyond its deadline: the control task's tick, the teardown of a queue
/// pair, a slow node.
const GRACE: u64 = 2_000_000_000;
/// Time within which every waiter for a lost peer must get an error, counted from the handler's
/// report of the loss.
const TOLD: u64 = 500_000_000;
/// Interval of the watchdog's checks.
const WATCH: u64 = 100_000_000;

/// Phase of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Phase {
    /// Traffic and faults.
    #[default]
    Traffic,
    /// Faults are over: the views agree, and everyone proves that it can call everyone, with all
    /// credits.
    Exam,
    /// Calm: each link does operations of all kinds, and none may fail.
    Calm,
    /// Rest: the workload starts nothing.
    Rest,
}

struct Open {
    life: Life,
    peer: PeerId,
    what: &'static str,
    due: u64,
    /// Time by which the operation must end because its peer is lost; `None` while the peer is not.
    told: Option<u64>,
}

#[derive(Default)]
pub(crate) struct Checker {
    pub(crate) phase: Phase,
    /// Nodes of the cluster: who has a higher number is none of it.
    pub(crate) nodes: usize,
    /// Number of sends for each signalled one.
    signal_every: u64,
    next: u64,
    open: BTreeMap<u64, Open>,
    seen: BTreeMap<u64, Life>,
    /// Pairs of which the first has passed its exam with the second.
    pub(crate) passed: BTreeSet<(NodeIndex, NodeIndex)>,
    /// Operations of the calm that ended well, by pair of nodes.
    pub(crate) calm: BTreeMap<(NodeIndex, NodeIndex), u32>,
    /// Queue pairs that had all their credits at some moment of the rest.
    whole: BTreeSet<(NodeIndex, Qpn)>,
    /// Memory regions that the workload has registered, which FIT knows nothing of.
    pub(crate) regions: BTreeMap<NodeIndex, usize>,
    /// READs whose bytes a deliberate bug holds back.
    pub(crate) late_reads: Vec<(NodeIndex, Qpn, Wqe, Vec<u8>)>,
    /// Messages that a deliberate bug delivers again.
    pub(crate) late_sends: Vec<(NodeIndex, Qpn, Vec<u8>)>,
    /// Queue pairs that a deliberate bug has taken a receive from.
    pub(crate) leaked: BTreeSet<(Life, Qpn)>,
}

impl Checker {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            nodes: plan.nodes,
            signal_every: plan.signal_every.into(),
            ..Self::default()
        }
    }

    /// Returns a number that no operation had.
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn crashed(&mut self, life: Life) {
        self.open.retain(|_, open| open.life != life);
        self.regions.remove(&life.node);
        self.passed
            .retain(|(a, b)| *a != life.node && *b != life.node);
        self.late_reads.retain(|(node, ..)| *node != life.node);
        self.late_sends.retain(|(node, ..)| *node != life.node);
    }

    /// Notes that a peer is lost: every waiter for it must get an error soon.
    pub(crate) fn lost(&mut self, life: Life, peer: PeerId, now: u64) {
        let open = self.open.values_mut();
        open.filter(|open| open.life == life && open.peer == peer)
            .for_each(|open| open.told = Some(now + TOLD));
    }
}

impl World {
    /// Notes the start of an operation with a peer, which must end within `timeout` (of the node's
    /// own clock) and a bound.
    pub(crate) fn open(
        &mut self,
        life: Life,
        peer: PeerId,
        what: &'static str,
        timeout: u64,
    ) -> u64 {
        let number = self.check.number();
        let due = self.now + self.nodes[life.node].clock.real(timeout) + GRACE;
        let open = Open {
            life,
            peer,
            what,
            due,
            told: None,
        };
        self.check.open.insert(number, open);
        number
    }

    /// Notes that an operation ended, or was given up by its caller.
    pub(crate) fn close(&mut self, number: u64, ok: bool) {
        match self.check.open.remove(&number) {
            Some(open) if ok => {
                self.stats.ended += 1;
                *self.stats.kinds.entry(open.what).or_default() += 1;
            }
            Some(_) => self.stats.failed += 1,
            None => self.violate(
                Rule::EndsOnce,
                format_args!("operation {number} ended twice"),
            ),
        }
        let now = self.now;
        self.trace.event(now, 4, [number, u64::from(ok), 0]);
    }

    /// Notes that a handler sees the request of a call.
    pub(crate) fn saw(&mut self, life: Life, number: u64) {
        if self.check.seen.insert(number, life).is_some() {
            self.violate(
                Rule::SeenOnce,
                format_args!("node {} sees the request of call {number} again", life.node),
            );
        }
    }

    /// Checks a call's answer: the node that answered must have seen the request.
    pub(crate) fn answered(&mut self, number: u64, by: NodeIndex) {
        let seen = self.check.seen.get(&number);
        if seen.is_none_or(|life| self.nodes[life.node].guid != self.nodes[by].guid) {
            self.violate(
                Rule::Acknowledged,
                format_args!("call {number} was answered, and node {by} never saw it"),
            );
        }
    }

    /// Checks that an acknowledged WRITE is in its target's memory, as long as that node lives.
    pub(crate) fn check_written(&mut self, target: Life, at: RemoteAddr, wanted: &[u8]) {
        let Some(node) = self.living(target) else {
            return;
        };
        // Memory that the target has taken back meanwhile says nothing.
        let bytes = node.memory.bytes(at.addr, wanted.len());
        if bytes.is_some_and(|bytes| bytes != wanted) {
            self.violate(
                Rule::Acknowledged,
                format_args!(
                    "a WRITE to {:#x} of node {} was acknowledged and is not there",
                    at.addr, target.node
                ),
            );
        }
    }

    /// Looks whether anything is open for too long.
    pub(crate) fn watch(&mut self) {
        let now = self.now;
        let mut overdue = None;
        for (number, open) in &mut self.check.open {
            if self.nodes[open.life.node].broken {
                // What was lent to its HCA stays lent.
                continue;
            }
            let cpu = &self.nodes[open.life.node].cpu;
            if cpu.stopped_until > now || cpu.slow > 0 {
                let runs = cpu.stopped_until.max(now);
                open.due = open.due.max(runs + GRACE);
                open.told = open.told.map(|told| told.max(runs + GRACE));
            }
            if open.told.is_some_and(|told| told < now) {
                overdue = Some((*number, open.life.node, open.what, Rule::Told));
            } else if open.due < now {
                overdue = Some((*number, open.life.node, open.what, Rule::Ends));
            }
        }
        match overdue {
            Some((number, node, what, Rule::Told)) => self.violate(
                Rule::Told,
                format_args!("node {node}: {what} ({number}) has no end, though its peer is lost"),
            ),
            Some((number, node, what, rule)) => self.violate(
                rule,
                format_args!("node {node}: {what} ({number}) is past its deadline and has no end"),
            ),
            None => {}
        }
        for (node, qpn, wqe, data) in std::mem::take(&mut self.check.late_reads) {
            let _ = self.scatter(node, qpn, &wqe.source, &data);
        }
        for (node, qpn, data) in std::mem::take(&mut self.check.late_sends) {
            self.deliver_again(node, qpn, &data);
        }
        self.note_hearing();
        if self.check.phase == Phase::Rest {
            self.note_credits();
        }
        self.after(WATCH, Event::Watch);
    }

    /// Notes the queue pairs that have all credits now. Keep-alives go on at rest, so none has them
    /// always.
    fn note_credits(&mut self) {
        let nodes = self.nodes.iter().enumerate();
        let all = nodes.flat_map(|(node, of)| of.qps.values().map(move |qp| (node, qp)));
        let every = self.check.signal_every;
        let whole = all
            .filter(|(_, qp)| is_whole(qp, every))
            .map(|(node, qp)| (node, qp.qpn));
        self.check.whole.extend(whole);
    }

    /// Checks that each connection had all its receives posted and its send queue free at some time
    /// of the rest.
    pub(crate) fn check_credits(&mut self) {
        let nodes = self.nodes.iter().enumerate();
        let mut all = nodes.flat_map(|(node, of)| of.qps.values().map(move |qp| (node, qp)));
        let fault = all.find_map(|(node, qp)| {
            let used = qp.state == verbs::QpState::ReadyToSend;
            (used && !self.check.whole.contains(&(node, qp.qpn))).then(|| {
                format!(
                    "node {node} at rest: {}: {} of {} receives posted, {} sends not freed, {} under way",
                    qp.qpn,
                    qp.receives.len(),
                    qp.receive_depth,
                    qp.posted - qp.freed,
                    qp.sent
                )
            })
        });
        if let Some(fault) = fault {
            self.violate(Rule::Credits, format_args!("{fault}"));
        }
    }

    /// Returns the number of regions that FIT has registered: all without the workload's.
    pub(crate) fn registered(&self, node: NodeIndex) -> usize {
        let workload = self.check.regions.get(&node).copied().unwrap_or(0);
        self.nodes[node].memory.regions() - workload
    }
}

/// Returns whether all receives of a queue pair are posted and no sends are outstanding, except
/// unsignalled ones that wait for the next signalled send.
fn is_whole(qp: &Qp, signal_every: u64) -> bool {
    let unsignalled = qp.posted - qp.freed < signal_every;
    qp.receives.len() == qp.receive_depth as usize && unsignalled && qp.sent == 0
}
