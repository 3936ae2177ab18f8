//! Two machines back to back, for FIT: the hal and an RDMA device that keep strictly to what their
//! traits say, and no more.
//!
//! * An interrupt comes for the first completion after the queue was armed, or at once if one is
//!   there that was not polled.
//! * What was shown by a doorbell is carried out by [`Bed::wire`], a task of its own, one request
//!   at a time.
//! * Time stands unless [`Bed::pass`] moves it. So who waits for a time that never comes, because
//!   nobody woke it, waits for ever.
//!
//! No scheduling point of shuttle lies under the world's lock: wakers are called when it is free
//! again.
//!
//! [`world`] has the state and the wire, [`platform`] a machine's hal, [`device`] its device.

mod device;
mod platform;
mod world;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use fit::{Config, Fit, PeerId, PeerName, Role};
use hal::{Duration, Instant, Platform};
use verbs::{CompletionKind, Gid, Guid, Lid, Lkey, RemoteAddr, Rkey, Sge, Status};

pub(crate) use world::Sabotage;
use world::{Cq, Qp, Vector, Work, World};

const SM: Lid = Lid(1);
const MEMORY: usize = 1 << 20;

/// Both machines.
#[derive(Clone, Default)]
pub(crate) struct Bed(Arc<Mutex<World>>);

/// One of them; also its device.
#[derive(Clone)]
pub(crate) struct Machine {
    bed: Bed,
    node: usize,
}

pub(crate) type Node2 = Fit<Machine, Machine>;
pub(crate) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Two nodes that are connected.
pub(crate) struct Connected {
    pub(crate) bed: Bed,
    pub(crate) nodes: [Node2; 2],
    /// Each one's name for the other.
    pub(crate) peers: [PeerId; 2],
    pub(crate) controls: [Task; 2],
}

fn lid(node: usize) -> Lid {
    Lid(u16::try_from(node + 2).expect("two nodes"))
}

fn gid(node: usize) -> Gid {
    Gid::new(Gid::DEFAULT_PREFIX, Guid(node as u64 + 1))
}

fn wake(wakers: impl IntoIterator<Item = Waker>) {
    wakers.into_iter().for_each(Waker::wake);
}

impl Bed {
    fn with<T>(&self, action: impl FnOnce(&mut World) -> T) -> T {
        action(&mut self.0.lock().expect("nothing panics under it"))
    }

    /// Creates two connected nodes, before anything runs concurrently. From then on wakes come in
    /// the orders that shuttle tries. Their control tasks do not run until somebody spawns them.
    pub(crate) fn connected(config: Config, sabotage: Sabotage) -> Connected {
        let bed = Self::default();
        let machine = |node| Machine::of(&bed, node);
        let make = |node: usize, role| {
            bed.with(|world| world.nodes[node].memory = vec![0; MEMORY]);
            let entropy = [u8::try_from(node).expect("two"); 32];
            let config = Config { entropy, ..config };
            let made = Fit::new(Arc::new(machine(node)), machine(node), role, config);
            shuttle::future::block_on(made).unwrap_or_else(|error| panic!("{error}"))
        };
        let nodes = [make(0, Role::Processor), make(1, Role::Memory)];
        let mut controls = nodes.each_ref().map(|node| {
            let node = node.clone();
            Box::pin(async move { node.control().await }) as Task
        });
        let peers = bed.connect(&nodes, &mut controls);
        bed.with(|world| world.sabotage = sabotage);
        Connected {
            bed,
            nodes,
            peers,
            controls,
        }
    }

    fn connect(&self, nodes: &[Node2; 2], controls: &mut [Task; 2]) -> [PeerId; 2] {
        let name = |node, role| PeerName {
            role,
            gid: gid(node),
        };
        let mut connects = [
            Box::pin(nodes[0].connect(name(1, Role::Memory))),
            Box::pin(nodes[1].connect(name(0, Role::Processor))),
        ];
        let mut peers = [None; 2];
        let mut context = std::task::Context::from_waker(Waker::noop());
        for _ in 0..1000 {
            for control in &mut *controls {
                assert!(
                    control.as_mut().poll(&mut context).is_pending(),
                    "it never ends"
                );
            }
            for (peer, connect) in peers.iter_mut().zip(&mut connects) {
                if peer.is_none()
                    && let Poll::Ready(connected) = connect.as_mut().poll(&mut context)
                {
                    *peer = Some(connected.unwrap_or_else(|error| panic!("{error}")));
                }
            }
            if let [Some(a), Some(b)] = peers {
                return [a, b];
            }
            self.pass(Duration::from_millis(5));
        }
        panic!("the nodes do not connect")
    }

    /// Moves time, and wakes whose time has come.
    pub(crate) fn pass(&self, span: Duration) {
        let woken = self.with(|world| {
            world.now = world.now + span;
            let now = world.now;
            let (due, later) = std::mem::take(&mut world.sleepers)
                .into_iter()
                .partition(|(at, _)| *at <= now);
            world.sleepers = later;
            let due: Vec<(Instant, Waker)> = due;
            due
        });
        wake(woken.into_iter().map(|(_, waker)| waker));
    }

    /// Carries out what the doorbells showed, for ever.
    pub(crate) async fn wire(self) {
        loop {
            let work = poll_fn(|context| {
                self.with(|world| match world.next_work() {
                    Some(work) => Poll::Ready(work),
                    None => {
                        world.wire = Some(context.waker().clone());
                        Poll::Pending
                    }
                })
            })
            .await;
            let (node, qpn, work) = work;
            // Whoever runs meanwhile finds the request gone and not yet done.
            shuttle::future::yield_now().await;
            let woken = self.with(|world| {
                let failed = world.nodes[node].qps[&qpn].failed;
                if failed {
                    world
                        .complete(node, qpn, work.id, CompletionKind::Send, Status::Flushed, 0)
                        .into_iter()
                        .collect()
                } else {
                    world.carry_out(node, qpn, &work)
                }
            });
            wake(woken);
        }
    }
}

impl Machine {
    pub(crate) fn of(bed: &Bed, node: usize) -> Self {
        Self {
            bed: bed.clone(),
            node,
        }
    }

    /// Allocates memory that both the device and the peer can access.
    pub(crate) fn memory(&self, len: usize) -> (Sge, RemoteAddr) {
        let addr = self.alloc(len, 64).expect("memory is left").addr;
        let piece = Sge {
            addr,
            len: u32::try_from(len).expect("short"),
            lkey: Lkey(1),
        };
        (
            piece,
            RemoteAddr {
                addr,
                rkey: Rkey(1),
            },
        )
    }

    pub(crate) fn bytes(&self, piece: Sge) -> Vec<u8> {
        self.bed
            .with(|world| world.nodes[self.node].at(piece.addr, piece.len).to_vec())
    }

    pub(crate) fn fill(&self, piece: Sge, value: u8) {
        self.bed
            .with(|world| world.nodes[self.node].at(piece.addr, piece.len).fill(value));
    }
}
