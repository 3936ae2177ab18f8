//! What the checker knows besides the hardware: operations that are open, requests that were seen, who exports what.

use std::collections::{BTreeMap, BTreeSet};

use verbs::{Qpn, RemoteAddr};

use crate::qp::Wqe;
use crate::rule::Rule;
use crate::world::{Event, Life, NodeIndex, World};

/// What an operation may take beyond its deadline: the control task's tick, the death of a queue pair, a slow node.
const GRACE: u64 = 2_000_000_000;
/// How often the watchdog looks.
const WATCH: u64 = 100_000_000;

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Phase {
    /// Traffic and faults.
    #[default]
    Traffic,
    /// Faults are over: everyone proves that it can call everyone, with all credits.
    Exam,
    /// Nothing is started any more.
    Rest,
}

struct Open {
    life: Life,
    what: &'static str,
    due: u64,
}

/// Memory that a node exports, in places of which each is used by one connection of one peer.
pub(crate) struct Export {
    pub(crate) life: Life,
    pub(crate) base: RemoteAddr,
    pub(crate) places: u64,
    pub(crate) used: u64,
}

/// Bytes of a place.
pub(crate) const PLACE: usize = 256;

#[derive(Default)]
pub(crate) struct Checker {
    pub(crate) phase: Phase,
    next: u64,
    open: BTreeMap<u64, Open>,
    seen: BTreeMap<u64, Life>,
    pub(crate) exports: BTreeMap<NodeIndex, Export>,
    /// Pairs of which the first has passed its exam with the second.
    pub(crate) passed: BTreeSet<(NodeIndex, NodeIndex)>,
    /// READs whose bytes a deliberate bug holds back.
    pub(crate) late_reads: Vec<(NodeIndex, Qpn, Wqe, Vec<u8>)>,
    /// Messages that a deliberate bug delivers again.
    pub(crate) late_sends: Vec<(NodeIndex, Qpn, Vec<u8>)>,
}

impl Checker {
    /// A number that no operation had.
    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn crashed(&mut self, life: Life) {
        self.open.retain(|_, open| open.life != life);
        self.exports.remove(&life.node);
        self.late_reads.retain(|(node, ..)| *node != life.node);
        self.late_sends.retain(|(node, ..)| *node != life.node);
    }
}

impl World {
    /// An operation begins, which must end within `timeout` (of the node's own clock) and a bound.
    pub(crate) fn open(&mut self, life: Life, what: &'static str, timeout: u64) -> u64 {
        let number = self.check.number();
        let due = self.now + self.nodes[life.node].clock.real(timeout) + GRACE;
        self.check.open.insert(number, Open { life, what, due });
        number
    }

    /// An operation ended, or was given up by its caller.
    pub(crate) fn close(&mut self, number: u64, ok: bool) {
        match self.check.open.remove(&number) {
            Some(_) if ok => self.stats.ended += 1,
            Some(_) => self.stats.failed += 1,
            None => self.violate(Rule::EndsOnce, format_args!("operation {number} ended twice")),
        }
        let now = self.now;
        self.trace.event(now, 4, [number, u64::from(ok), 0]);
    }

    /// A handler sees the request of a call.
    pub(crate) fn saw(&mut self, life: Life, number: u64) {
        if self.check.seen.insert(number, life).is_some() {
            self.violate(
                Rule::SeenOnce,
                format_args!("node {} sees the request of call {number} again", life.node),
            );
        }
    }

    /// A call was answered: someone must have seen it.
    pub(crate) fn answered(&mut self, number: u64, by: NodeIndex) {
        if self.check.seen.get(&number).is_none_or(|life| life.node != by) {
            self.violate(
                Rule::Acknowledged,
                format_args!("call {number} was answered, and node {by} never saw it"),
            );
        }
    }

    /// A place in a peer's export that nobody used before: the export's life, and where.
    pub(crate) fn take_place(&mut self, of: NodeIndex) -> Option<(Life, RemoteAddr)> {
        let export = self.check.exports.get_mut(&of)?;
        let place = export.used;
        export.used += 1;
        (place < export.places).then(|| {
            let addr = export.base.addr + place * PLACE as u64;
            (export.life, RemoteAddr { addr, ..export.base })
        })
    }

    /// Whether an acknowledged WRITE stands in its target's memory, as long as that lives.
    pub(crate) fn check_written(&mut self, target: Life, at: RemoteAddr, wanted: &[u8]) {
        let Some(node) = self.living(target) else { return };
        if node
            .memory
            .bytes(at.addr, wanted.len())
            .is_none_or(|bytes| bytes != wanted)
        {
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
            let cpu = &self.nodes[open.life.node].cpu;
            if cpu.stopped_until > now || cpu.slow > 0 {
                open.due = open.due.max(cpu.stopped_until.max(now) + GRACE);
            }
            if open.due < now {
                overdue = Some((*number, open.life.node, open.what));
            }
        }
        if let Some((number, node, what)) = overdue {
            self.violate(
                Rule::Ends,
                format_args!("node {node}: {what} ({number}) is past its deadline and has no end"),
            );
        }
        for (node, qpn, wqe, data) in std::mem::take(&mut self.check.late_reads) {
            let _ = self.scatter(node, qpn, &wqe.source, &data);
        }
        for (node, qpn, data) in std::mem::take(&mut self.check.late_sends) {
            self.deliver_again(node, qpn, &data);
        }
        self.after(WATCH, Event::Watch);
    }

    /// Whether the node has used up its queue pairs: FIT gives a lost peer a new one each time.
    pub(crate) fn exhausted(&self, node: NodeIndex) -> bool {
        !self.nodes[node]
            .qps
            .values()
            .any(|qp| qp.state == verbs::QpState::Init)
    }

    /// At rest each connection has all its receives posted and its send queue free.
    pub(crate) fn check_credits(&mut self, signal_every: u64) {
        for node in 0..self.nodes.len() {
            let faults: Vec<String> = self.nodes[node]
                .qps
                .values()
                .filter(|qp| qp.state == verbs::QpState::ReadyToSend)
                .filter(|qp| {
                    qp.receives.len() != qp.receive_depth as usize
                        || qp.posted - qp.freed >= signal_every.max(1)
                        || qp.sent > 0
                })
                .map(|qp| {
                    format!(
                        "{}: {} of {} receives posted, {} sends not freed, {} under way",
                        qp.qpn,
                        qp.receives.len(),
                        qp.receive_depth,
                        qp.posted - qp.freed,
                        qp.sent
                    )
                })
                .collect();
            if let Some(fault) = faults.first() {
                self.violate(Rule::Credits, format_args!("node {node} at rest: {fault}"));
            }
        }
    }
}
