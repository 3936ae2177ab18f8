//! One life of a simulated HCA: the verbs.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::Poll;

use verbs::{
    Access, Address, Device, DeviceEvent, DeviceLimits, Domain, Failure, Gid, Lid, Operation, PKey,
    PagesConfig, PagesOver, PathToPeer, PortInfo, PortState, QpConfig, QpKind, QpSlot, QpState,
    Qpn, RcParameters, Region,
};

use crate::machine::Machine;
use crate::network::{Body, Packet};
use crate::qp::{Armed, Cq, Qp, Vector};
use crate::rule::Rule;
use crate::sabotage::Sabotage;
use crate::world::{Flood, World};

const LIMITS: DeviceLimits = DeviceLimits {
    max_reads: 16,
    max_reads_as_responder: 16,
    max_queue_depth: 16 << 10,
    max_sge: 9,
    max_inline: 220,
    max_cq_depth: 4 << 20,
    ports: 1,
    max_domains: 1 << 15,
};

/// The longest time of a slow command, before or after its effect.
const SLOW: u64 = 20_000_000;
/// Datagrams of a flood that nobody should take without letting time go by.
const FLOOD_AT_ONCE: u32 = 1000;

/// One life of an HCA.
#[derive(Clone)]
pub(crate) struct Hca(pub(crate) Machine);

/// A completion queue with its queue pairs.
pub(crate) struct Queues {
    pub(crate) hca: Hca,
    pub(crate) cqn: u32,
}

fn dead() -> verbs::Error {
    verbs::Error::Failed(Failure::Gone)
}

fn refused(operation: Operation) -> verbs::Error {
    verbs::Error::Refused {
        operation,
        status: 0x03,
    }
}

impl Hca {
    pub(crate) fn node(&self) -> usize {
        self.0.life.node
    }

    /// Runs a firmware command: it takes a while, and has its effect at some time within it.
    async fn command<T>(
        &self,
        effect: impl FnOnce(&mut World, usize) -> Result<T, verbs::Error> + Send,
    ) -> Result<T, verbs::Error> {
        let (before, after) = self.0.living(World::command_time).ok_or_else(dead)?;
        self.0.pause(before).await;
        let result = self
            .0
            .living(|world| effect(world, self.node()))
            .ok_or_else(dead)?;
        self.0.pause(after).await;
        result
    }

    /// Runs a firmware command that may be refused, and has no effect then.
    async fn fallible<T>(
        &self,
        operation: Operation,
        effect: impl FnOnce(&mut World, usize) -> Result<T, verbs::Error> + Send,
    ) -> Result<T, verbs::Error> {
        self.command(|world, node| match world.refuses(node) {
            true => Err(refused(operation)),
            false => effect(world, node),
        })
        .await
    }

    async fn change_qp(
        &self,
        qpn: Qpn,
        operation: Operation,
        change: impl FnOnce(&mut World, usize) -> bool + Send,
    ) -> Result<(), verbs::Error> {
        self.command(|world, node| {
            // A queue pair that can't be reset ends its node: that is a fault of its own.
            let ends = matches!(operation, Operation::ResetQp | Operation::FailQp);
            if !ends && world.refuses(node) {
                return Err(refused(operation));
            }
            if !world.nodes[node].qps.contains_key(&qpn.0) || !change(world, node) {
                world.violate(
                    Rule::Post,
                    format_args!("node {node}: {operation} on {qpn} in the wrong state"),
                );
                return Err(refused(operation));
            }
            Ok(())
        })
        .await
    }
}

impl Device for Hca {
    type Queues = Queues;
    type Pages = PagesOver<Queues>;

    fn limits(&self) -> DeviceLimits {
        LIMITS
    }

    async fn create_queues(&self, depth: u32, vector: u16) -> Result<Queues, verbs::Error> {
        let cqn = self
            .command(|world, node| {
                let depth = if world.has(Sabotage::ShortCompletionQueue) {
                    3
                } else {
                    depth
                };
                let node = &mut world.nodes[node];
                let cqn = u32::try_from(node.cqs.len()).expect("few completion queues");
                node.cqs.push(Cq {
                    depth,
                    vector,
                    entries: VecDeque::new(),
                    last_ready: 0,
                    armed: Armed::No,
                    slots: Vec::new(),
                    failed: false,
                });
                while node.vectors.len() <= usize::from(vector) {
                    node.vectors.push(Vector::default());
                }
                Ok(cqn)
            })
            .await?;
        Ok(Queues {
            hca: self.clone(),
            cqn,
        })
    }

    async fn destroy_queues(&self, queues: Queues) -> Result<(), verbs::Error> {
        self.command(|world, node| {
            world.nodes[node].qps.retain(|_, qp| qp.cqn != queues.cqn);
            world.nodes[node].cqs[queues.cqn as usize].entries.clear();
            Ok(())
        })
        .await
    }

    async fn wait_completion(&self, vector: u16) -> Result<(), verbs::Error> {
        let _forget = Forget { hca: self, vector };
        poll_fn(|context| {
            let polled = self.0.living(|world| {
                let vector = &mut world.nodes[self.node()].vectors[usize::from(vector)];
                if std::mem::take(&mut vector.pending) {
                    return Poll::Ready(Ok(()));
                }
                vector.waiter = Some(context.waker().clone());
                Poll::Pending
            });
            polled.unwrap_or(Poll::Pending)
        })
        .await
    }

    async fn create_qp(
        &self,
        queues: &mut Queues,
        config: &QpConfig,
    ) -> Result<(QpSlot, Qpn), verbs::Error> {
        let cqn = queues.cqn;
        self.fallible(Operation::InitQp, |world, node| {
            let short = world.has(Sabotage::ShortSendQueue);
            let node = &mut world.nodes[node];
            let qpn = Qpn(node.next_qpn);
            node.next_qpn += 1;
            let slots = &mut node.cqs[cqn as usize].slots;
            let slot = QpSlot(u16::try_from(slots.len()).expect("few queue pairs"));
            slots.push(Some(qpn));
            let mut qp = Qp::new(qpn, slot, cqn, config);
            if short && config.kind == QpKind::ReliableConnection {
                qp.send_depth = 3;
            }
            node.qps.insert(qpn.0, qp);
            Ok((slot, qpn))
        })
        .await
    }

    async fn ready_to_receive(
        &self,
        qpn: Qpn,
        path: &PathToPeer,
        parameters: &RcParameters,
    ) -> Result<(), verbs::Error> {
        let (path, parameters) = (*path, *parameters);
        self.change_qp(qpn, Operation::ReadyToReceive, |world, node| {
            let qp = world.nodes[node].qps.get_mut(&qpn.0).expect("checked");
            let allowed = qp.state == QpState::Init
                && parameters.reads_as_responder <= LIMITS.max_reads_as_responder
                && parameters.rnr_retry < 7
                && path.address.is_set();
            if allowed {
                qp.state = QpState::ReadyToReceive;
                qp.expected = path.their_psn;
                (qp.path, qp.parameters) = (Some(path), Some(parameters));
            }
            // A pair that failed meanwhile is no mistake of the user's.
            allowed || qp.state == QpState::Error
        })
        .await
    }

    async fn ready_to_send(
        &self,
        qpn: Qpn,
        path: Option<&PathToPeer>,
        parameters: &RcParameters,
    ) -> Result<(), verbs::Error> {
        let (psn, parameters) = (path.map(|path| path.our_psn), *parameters);
        self.change_qp(qpn, Operation::ReadyToSend, |world, node| {
            let stuck = world.has(Sabotage::StuckQueuePair);
            let qp = world.nodes[node].qps.get_mut(&qpn.0).expect("checked");
            let from = match qp.kind {
                QpKind::ReliableConnection => QpState::ReadyToReceive,
                QpKind::Datagram { .. } => QpState::Init,
            };
            let allowed =
                qp.state == from && (psn.is_some() || qp.kind != QpKind::ReliableConnection);
            let stuck = stuck && qp.kind == QpKind::ReliableConnection;
            if allowed && !stuck {
                qp.state = QpState::ReadyToSend;
                qp.next_psn = psn.unwrap_or_default();
                qp.parameters = Some(parameters);
            }
            allowed || qp.state == QpState::Error
        })
        .await
    }

    async fn fail_qp(&self, qpn: Qpn) -> Result<(), verbs::Error> {
        self.change_qp(qpn, Operation::FailQp, |world, node| {
            world.fail_pair(node, qpn, false);
            true
        })
        .await
    }

    async fn reset_qp(&self, qpn: Qpn) -> Result<(), verbs::Error> {
        let breaks = |world: &mut World| world.nodes[self.node()].broken;
        if self.0.living(breaks).unwrap_or(false) {
            return self.command(|_, _| Err(refused(Operation::ResetQp))).await;
        }
        self.change_qp(qpn, Operation::ResetQp, |world, node| {
            world.nodes[node]
                .qps
                .get_mut(&qpn.0)
                .expect("checked")
                .reset();
            true
        })
        .await
    }

    async fn init_qp(&self, qpn: Qpn, domain: Domain) -> Result<(), verbs::Error> {
        self.change_qp(qpn, Operation::InitQp, |world, node| {
            let qp = world.nodes[node].qps.get_mut(&qpn.0).expect("checked");
            let allowed =
                qp.state == QpState::Reset && qp.posted == qp.freed && qp.receives_taken == 0;
            if allowed {
                qp.state = QpState::Init;
                qp.domain = domain;
            }
            allowed
        })
        .await
    }

    async fn attach_multicast(&self, qpn: Qpn, mgid: Gid) -> Result<(), verbs::Error> {
        self.change_qp(qpn, Operation::Multicast, |world, node| {
            let qp = world.nodes[node].qps.get_mut(&qpn.0).expect("checked");
            if !qp.groups.contains(&mgid) {
                qp.groups.push(mgid);
            }
            matches!(qp.kind, QpKind::Datagram { .. }) && mgid.0[0] == 0xff
        })
        .await
    }

    async fn detach_multicast(&self, qpn: Qpn, mgid: Gid) -> Result<(), verbs::Error> {
        self.change_qp(qpn, Operation::Multicast, |world, node| {
            let qp = world.nodes[node].qps.get_mut(&qpn.0).expect("checked");
            qp.groups.retain(|group| *group != mgid);
            true
        })
        .await
    }

    async fn destroy_qp(&self, queues: &mut Queues, qp: QpSlot) -> Result<(), verbs::Error> {
        let cqn = queues.cqn;
        self.command(|world, node| {
            let node = &mut world.nodes[node];
            let cq = &mut node.cqs[cqn as usize];
            cq.entries.retain(|entry| entry.completion.qp != qp);
            if let Some(qpn) = cq.slots.get_mut(usize::from(qp.0)).and_then(Option::take) {
                node.qps.remove(&qpn.0);
            }
            Ok(())
        })
        .await
    }

    async fn create_pages(
        &self,
        config: &PagesConfig,
    ) -> Result<(PagesOver<Queues>, Qpn), verbs::Error> {
        PagesOver::create(self, config).await
    }

    async fn destroy_pages(&self, pages: PagesOver<Queues>) -> Result<(), verbs::Error> {
        self.destroy_queues(pages.into_queues()).await
    }

    async fn register(
        &self,
        domain: Domain,
        addr: u64,
        len: u64,
        access: Access,
    ) -> Result<Region, verbs::Error> {
        self.fallible(Operation::Register, |world, node| {
            let bytes = usize::try_from(len).unwrap_or(usize::MAX);
            if world.nodes[node].memory.bytes(addr, bytes).is_none() {
                world.violate(
                    Rule::Post,
                    format_args!("node {node}: registers memory that is not allocated"),
                );
            }
            Ok(world.nodes[node].memory.register(domain, addr, len, access))
        })
        .await
    }

    async fn deregister(&self, region: &Region) -> Result<(), verbs::Error> {
        let key = region.lkey.0;
        self.fallible(Operation::Deregister, |world, node| {
            world.nodes[node].memory.deregister(key);
            Ok(())
        })
        .await
    }

    async fn port(&self, _: u8) -> Result<PortInfo, verbs::Error> {
        self.fallible(Operation::QueryPort, |world, node| {
            let up = world.net.port_up[node];
            Ok(PortInfo {
                state: if up {
                    PortState::Active
                } else {
                    PortState::Down
                },
                address: world.nodes[node].lid.into(),
                manager: world.sa.lid.into(),
                guid: world.nodes[node].guid,
                gid: world.nodes[node].gid(),
                mtu: 4096,
            })
        })
        .await
    }

    async fn send_mad(
        &self,
        _: u8,
        to: Address,
        _: PKey,
        mad: &[u8; 256],
    ) -> Result<(), verbs::Error> {
        let sent = self.0.living(|world| {
            let packet = Packet {
                slid: world.nodes[self.node()].lid,
                dlid: to.lid(),
                to: Qpn(1),
                body: Body::Mad(Box::new(*mad)),
            };
            world.check_way(self.node(), to.lid(), mad);
            world.send_datagram(packet);
            world.rng.between(300, 3000)
        });
        self.0.pause(sent.ok_or_else(dead)?).await;
        Ok(())
    }

    fn take_mad(&self, _: u8) -> Option<(Address, [u8; 256])> {
        self.0.living(|world| {
            let node = self.node();
            let genuine = world.nodes[node].mads.pop_front();
            let (from, mad) = genuine.or_else(|| world.noise(node))?;
            Some((from.into(), mad))
        })?
    }

    fn take_event(&self) -> Option<DeviceEvent> {
        self.0
            .living(|world| world.nodes[self.node()].events.pop_front())?
    }
}

impl World {
    /// Draws the time that a command takes before its effect and after it, in nanoseconds.
    fn command_time(&mut self) -> (u64, u64) {
        let rate = self.rates.slow_command;
        let mut span = || {
            let most = if self.rng.chance(rate) { SLOW } else { 30_000 };
            self.rng.between(2000, most)
        };
        (span(), span())
    }

    /// Returns whether the HCA refuses a command of a node that has started.
    fn refuses(&mut self, node: usize) -> bool {
        let refuses = self.nodes[node].started && self.rng.chance(self.rates.failed_command);
        if refuses {
            self.stats.count("command refused");
        }
        refuses
    }

    /// Returns a datagram that makes no sense, for a node whose port is full of them.
    fn noise(&mut self, node: usize) -> Option<(Lid, [u8; 256])> {
        let now = self.now;
        let flood = self.nodes[node].flood.as_mut()?;
        if flood.at != now {
            *flood = Flood { at: now, taken: 0 };
        }
        flood.taken += 1;
        if flood.taken > FLOOD_AT_ONCE {
            self.violate(
                Rule::Progress,
                format_args!("node {node} takes datagrams and does nothing else"),
            );
            return None;
        }
        let mut mad = [0; 256];
        mad.fill_with(|| self.rng.number().to_le_bytes()[0]);
        Some((self.sa.lid, mad))
    }

    /// Returns whether the deliberate bug that takes one receive of each connection strikes.
    pub(crate) fn leaks(&mut self, node: usize, qpn: Qpn) -> bool {
        let life = self.life(node);
        self.has(Sabotage::LeakedReceive) && self.check.leaked.insert((life, qpn))
    }
}

/// Takes the waker of a wait that is over or dropped back.
struct Forget<'a> {
    hca: &'a Hca,
    vector: u16,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let node = self.hca.node();
        self.hca.0.living(|world| {
            if let Some(vector) = world.nodes[node].vectors.get_mut(usize::from(self.vector)) {
                vector.waiter = None;
            }
        });
    }
}
