//! Workload of the nodes: find each other, call each other in all ways, access each other's memory;
//! each operation is checked.
//!
//! * `answers`: a node's handler, and the memory that it lends to its peers.
//! * `link`: one node's talk with one peer. `operations`, `one_sided`: what it says; a new kind of
//!   operation is a function there and a line in `Link::operate`. `exam`: what must work once
//!   faults are over.
//! * `local`: memory that is lent for an operation. `ends`: accesses that end by their tag.
//! * `strangers`: who has no business here.

mod answers;
mod ends;
mod exam;
mod link;
mod local;
mod one_sided;
mod operations;
mod strangers;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use fit::{Cluster, Config, Domains, Fit, Key, Polling, Role};
use hal::Duration;

use crate::fault::Impostor;
use crate::hca::Hca;
use crate::machine::Machine;
use crate::plan::Plan;
use crate::rng::{Rng, mix};
use crate::rule::Rule;
use crate::sabotage::Sabotage;
use crate::views::Identity;
use crate::world::{Life, NodeIndex};
use answers::Answers;
use ends::Ends;
use link::Link;

/// Bytes of a message with FIT's header.
const MESSAGE: u32 = 300;
/// Bytes of the longest bulk of a request or reply.
const BULK: u32 = 2048;
/// Bytes in front of a request's filler: number, delay in microseconds, length of the reply, of its
/// bulk and of the request's.
const HEAD: usize = 24;
/// Kinds of operations that a link chooses from.
pub(crate) const KINDS: u32 = 14;
/// Tasks that answer.
const WORKERS: usize = 6;

fn role(node: NodeIndex) -> Role {
    [Role::Processor, Role::Memory, Role::Storage][node % 3]
}

fn config(plan: &Plan, life: Life, guise: Option<Impostor>, leaked: bool) -> Config {
    let key = match guise {
        Some(Impostor::OtherKey) if !leaked => Key::new([8; Key::LEN]),
        Some(Impostor::OtherCluster) => Key::new([9; Key::LEN]),
        _ => Key::new([7; Key::LEN]),
    };
    let name = match guise {
        Some(Impostor::OtherCluster) => "another",
        _ => "sim",
    };
    // Some machines have the same entropy in each of their lives.
    let mut rng = Rng::of(plan.seed, mix(life.node as u64) ^ 0xe0e0);
    if rng.chance(800_000) {
        rng = Rng::of(rng.number(), life.incarnation.into());
    }
    let shape = plan.shape(life);
    let mut entropy = [0; 32];
    entropy.fill_with(|| rng.number().to_le_bytes()[0]);
    Config {
        cores: shape.cores,
        peers: plan.connections(&shape).max(1),
        calls: shape.calls,
        serves: shape.serves,
        one_sided: shape.one_sided,
        message_size: MESSAGE,
        bulk_size: BULK,
        signal_every: plan.signal_every,
        one_ways: shape.one_ways,
        bulk_buffers: 2,
        polling: Polling::Adaptive(plan.poll_budget),
        timeout: Duration::from_millis(plan.timeout_ms),
        connect_timeout: Duration::from_secs(20),
        cluster: Cluster::new(name, key),
        discover: plan.discover || guise.is_some(),
        capacity: u32::try_from(life.node).expect("few nodes"),
        keepalive: Duration::from_millis(plan.keepalive_ms),
        entropy,
        domains: if plan.own_domains {
            Domains::PerPeer
        } else {
            Domains::Shared
        },
        ..Config::default()
    }
}

/// Returns the bytes that encode a number.
fn pattern(number: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|at| mix(number ^ (at << 40)).to_le_bytes()[0])
        .collect()
}

/// State that the tasks of one life of a node share.
struct NodeLife {
    machine: Machine,
    device: Arc<Hca>,
    fit: Fit<Hca, Machine>,
    plan: Arc<Plan>,
    ends: Ends,
}

/// Runs a node's life: starts FIT and everything that uses it.
pub(crate) async fn live(machine: Machine, plan: Arc<Plan>) {
    let life = machine.life;
    let guise = plan.guise(life.node);
    let device = Arc::new(Hca(machine.clone()));
    let has = |bug| machine.living(|world| world.has(bug)).unwrap_or(false);
    let mut config = config(&plan, life, guise, has(Sabotage::LeakedKey));
    if has(Sabotage::NoKeepAlive) {
        config.keepalive = Duration::ZERO;
    }
    let fit = match Fit::new(device.clone(), machine.clone(), role(life.node), config).await {
        Ok(fit) => fit,
        Err(error) => {
            machine.living(|world| {
                world.violate(
                    Rule::Post,
                    format_args!("node {} can't start: {error}", life.node),
                )
            });
            return;
        }
    };
    machine.living(|world| world.nodes[life.node].started = true);
    let incarnation = fit.view().me.incarnation;
    machine.living(|world| {
        let gid = world.nodes[life.node].gid();
        world
            .truth
            .begins(incarnation, Identity { life, gid, guise });
    });
    machine.bed.fits().insert(life.node, fit.clone());
    let node = Arc::new(NodeLife {
        machine,
        device,
        fit,
        plan,
        ends: Ends::default(),
    });
    node.start();
    match guise {
        None | Some(Impostor::Rogue) => node.talk(),
        Some(_) => node.machine.spawn(strangers::intrude(node.clone())),
    }
    node.misbehave();
}

impl NodeLife {
    /// Starts the tasks that FIT needs, and those that answer.
    fn start(self: &Arc<Self>) {
        let control = self.fit.clone();
        self.machine.spawn(async move { control.control().await });
        let answers = Arc::new(Answers::new(self.clone()));
        let mute = self.plan.sabotage == Some(Sabotage::MuteNode) && self.machine.life.node == 0;
        for core in 0..self.fit.cores() {
            let node = self.clone();
            self.machine.spawn(async move {
                let sink = |ended: fit::AccessEnd, _| node.ends.end(&node.machine, ended);
                let _ = node.fit.run_core_with(core, sink).await;
            });
            for _ in 0..if mute { 0 } else { WORKERS } {
                let (core, answers) = (self.fit.core(core), answers.clone());
                self.machine
                    .spawn(async move { core.serve(&*answers).await });
            }
        }
        let watch = self.fit.clone();
        self.machine
            .spawn(async move { watch.watch(&*answers).await });
    }

    /// Starts the traffic with each neighbour.
    fn talk(self: &Arc<Self>) {
        let Life { node, incarnation } = self.machine.life;
        for peer in (0..self.plan.places()).filter(|peer| self.plan.talk(node, *peer)) {
            let purpose = mix(((node as u64) << 32) + peer as u64) ^ u64::from(incarnation);
            let link = Link::new(self.clone(), peer, Rng::of(self.plan.seed, purpose));
            self.machine.spawn(link.run());
        }
    }

    /// Starts the deliberate bugs that are tasks of their own.
    fn misbehave(self: &Arc<Self>) {
        match self.plan.sabotage {
            Some(Sabotage::RestlessCaller) => {
                self.machine.spawn(strangers::call_nobody(self.clone()))
            }
            Some(Sabotage::SpinningTask) => self.machine.spawn(poll_fn(|context| {
                context.waker().wake_by_ref();
                Poll::Pending
            })),
            _ => {}
        }
    }
}
