//! One node's traffic with one peer, over as many connections as it takes.

use std::sync::Arc;

use fit::{Core, Error, LinkState, PeerId, PeerSpec};

use super::answers::Place;
use super::local::Local;
use super::{BULK, KINDS, NodeLife, role};
use crate::check::Phase;
use crate::hca::Hca;
use crate::machine::Machine;
use crate::memory::Guard;
use crate::rng::Rng;
use crate::rule::Rule;
use crate::world::NodeIndex;

/// Wait of a link without work.
const IDLE: u64 = 100_000_000;

/// One node's talk with one peer.
pub(super) struct Link {
    pub(super) node: Arc<NodeLife>,
    pub(super) core: Core<Hca, Machine>,
    pub(super) peer: NodeIndex,
    pub(super) rng: Rng,
    /// Operations that are still to be started.
    left: u32,
    /// Operations of the calm that ended well.
    calm: u32,
}

/// One connection.
pub(super) struct Session {
    pub(super) peer: PeerId,
    /// Memory that the peer lends, once it was asked for.
    pub(super) place: Option<Place>,
    /// Bytes last written there; `None` if they are unknown.
    pub(super) written: Option<Vec<u8>>,
    pub(super) local: Local,
    pub(super) second: Local,
    /// Lent for what was given up: it comes back with the queue pair's death.
    pub(super) given_up: Vec<Local>,
}

impl Link {
    pub(super) fn new(node: Arc<NodeLife>, peer: NodeIndex, mut rng: Rng) -> Self {
        let core = u16::try_from(rng.index(node.fit.cores().into())).expect("few cores");
        Self {
            core: node.fit.core(core),
            left: node.plan.operations,
            calm: 0,
            node,
            peer,
            rng,
        }
    }

    /// Talks to the peer whenever it is connected.
    pub(super) async fn run(mut self) {
        loop {
            if let Some(peer) = self.find().await {
                self.talk(peer).await;
            }
            let span = self.rng.between(1_000_000, 100_000_000);
            self.node.machine.pause(span).await;
        }
    }

    /// Returns the peer's number: as a member, or by a request for a connection.
    async fn find(&mut self) -> Option<PeerId> {
        let peer = self.peer;
        let gid = self.node.machine.living(|world| world.nodes[peer].gid())?;
        if !self.node.plan.discover || self.rng.chance(300_000) {
            let spec = PeerSpec {
                role: role(peer),
                gid,
            };
            return self.node.fit.connect(spec).await.ok();
        }
        let view = self.node.fit.view();
        let mut members = view.members.iter();
        members
            .find(|(_, member)| member.name.gid == gid)
            .map(|(peer, _)| *peer)
    }

    pub(super) fn phase(&self) -> Phase {
        self.node
            .machine
            .living(|world| world.check.phase)
            .unwrap_or(Phase::Rest)
    }

    /// Talks to a connected peer until it is lost.
    async fn talk(&mut self, peer: PeerId) {
        let len = BULK;
        let local = self.node.surely(peer, len, Guard::Owned).await;
        let second = self.node.surely(peer, len, Guard::Owned).await;
        let mut session = Session {
            peer,
            place: None,
            written: None,
            local,
            second,
            given_up: Vec::new(),
        };
        loop {
            let (ended, pause) = match self.phase() {
                Phase::Traffic if self.left > 0 => {
                    self.left -= 1;
                    (
                        self.any(&mut session).await,
                        self.rng.below(20_000_000) + 1000,
                    )
                }
                Phase::Exam if !self.passed() => (
                    self.exam(&mut session).await,
                    self.rng.below(20_000_000) + 1000,
                ),
                Phase::Calm if self.calm < KINDS && !self.is_with_rogue() => (
                    self.be_calm(&mut session).await,
                    self.rng.below(2_000_000) + 1000,
                ),
                _ => (Ok(()), IDLE),
            };
            if let Err(error) = &ended {
                self.note_error(error);
            }
            // Other errors leave the connection as it was.
            let lost = matches!(ended, Err(Error::PeerLost { .. } | Error::NotConnected(_)));
            if lost || self.core.state(peer) != Ok(LinkState::Up) {
                break;
            }
            self.node.machine.pause(pause).await;
        }
        // What an abandoned operation was lent comes back only with the queue pair's death.
        while self.core.state(peer) == Ok(LinkState::Failing) {
            self.node.machine.pause(1_000_000).await;
        }
        self.node.take_back(session.local).await;
        self.node.take_back(session.second).await;
        for local in session.given_up {
            self.node.take_back(local).await;
        }
    }

    /// Notes an error that nobody was said to have caused.
    fn note_error(&self, error: &Error) {
        let (node, peer) = (self.node.machine.life.node, self.peer);
        let rogue = self.is_with_rogue();
        self.node.machine.living(|world| {
            world.stats.errors += u64::from(!rogue);
            let now = world.now;
            world
                .trace
                .say(now, format_args!("node {node} to {peer}: {error}"));
        });
    }

    /// Returns whether one of the two breaks the protocol, so that nothing need be right.
    pub(super) fn is_with_rogue(&self) -> bool {
        self.node.machine.life.node.max(self.peer) >= self.node.plan.nodes
    }

    fn passed(&self) -> bool {
        if self.is_with_rogue() {
            return true;
        }
        let pair = (self.node.machine.life.node, self.peer);
        self.node
            .machine
            .living(|world| world.check.passed.contains(&pair))
            .unwrap_or(true)
    }

    /// Does one operation, which the RNG chooses.
    async fn any(&mut self, session: &mut Session) -> Result<(), Error> {
        let kind = u32::try_from(self.rng.below(KINDS.into())).expect("few kinds");
        self.operate(session, kind).await
    }

    /// Does the next operation of the calm, which must not fail.
    async fn be_calm(&mut self, session: &mut Session) -> Result<(), Error> {
        let ended = self.operate(session, self.calm).await;
        match &ended {
            Ok(()) => {
                self.calm += 1;
                let pair = (self.node.machine.life.node, self.peer);
                let machine = &self.node.machine;
                machine.living(|world| world.check.calm.insert(pair, self.calm));
            }
            Err(error) => self.wrong(
                Rule::Calm,
                &format!("an operation fails, long after the last fault: {error}"),
            ),
        }
        ended
    }

    /// Does one operation of this kind, one of [`KINDS`].
    async fn operate(&mut self, session: &mut Session, kind: u32) -> Result<(), Error> {
        match kind {
            0..4 => self.call(session, None).await,
            4 => {
                let patience = self.rng.between(1000, 5_000_000);
                self.call(session, Some(patience)).await
            }
            5 => {
                let count = 1 + self.rng.index(4);
                self.burst(session.peer, count).await.map(drop)
            }
            6 => self.write(session).await,
            7 => self.read(session).await,
            8 => self.batch(session).await,
            9 | 10 => self.tagged(session).await,
            11 | 12 => self.one_way(session.peer).await,
            _ => self.too_long(session).await,
        }
    }

    /// Notes the start of an operation with the peer. Returns its number.
    pub(super) fn open(&self, peer: PeerId, what: &'static str) -> u64 {
        let timeout = self.node.plan.timeout_ms * 1_000_000;
        let machine = &self.node.machine;
        machine
            .living(|world| world.open(machine.life, peer, what, timeout))
            .unwrap_or(0)
    }

    pub(super) fn close(&self, number: u64, ok: bool) {
        self.node.machine.living(|world| world.close(number, ok));
    }

    pub(super) fn wrong(&self, rule: Rule, what: &str) {
        if self.is_with_rogue() {
            return;
        }
        let machine = &self.node.machine;
        let (node, peer) = (machine.life.node, self.peer);
        machine.living(|world| world.violate(rule, format_args!("node {node} to {peer}: {what}")));
    }
}
