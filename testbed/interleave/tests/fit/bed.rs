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

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use fit::{Config, Fit, PeerId, PeerName, Role};
use hal::{
    BusAddr, ConfigSpace, DmaBuffer, Duration, Error, Instant, InterruptVector, Platform, Registers,
};
use mad::sa::{PathRecord, SaMad};
use mad::{Header, Mad, MgmtClass, Status as MadStatus};
use verbs::{
    Access, Completion, CompletionKind, Device, DeviceError, DeviceEvent, DeviceLimits, Domain,
    Gid, Guid, Lid, Lkey, PKey, PagesConfig, PagesOver, PathToPeer, Payload, PollError, PortInfo,
    PortState, PostError, QpConfig, QpKind, QpSlot, Qpn, QueueSet, RcParameters, Region,
    RemoteAddr, Rkey, SendOp, SendRequest, Sge, Status,
};
use zerocopy::big_endian::U16;

const SM: Lid = Lid(1);
const MEMORY: usize = 1 << 20;

/// Deliberate bug of a device, for a test that must find it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Sabotage {
    #[default]
    None,
    /// Arms only when the waiter has begun to wait: too late for what came after the last look.
    ArmsLate,
    /// Forgets an interrupt that came before anybody waited for it.
    ForgetsInterrupts,
    /// Wakes nobody when a doorbell rings and one was rung before.
    SleepingWire,
}

#[derive(Default)]
struct Vector {
    fired: bool,
    waiter: Option<Waker>,
    /// Queues to be armed when somebody waits, if that is what goes wrong.
    arm_late: Option<usize>,
}

#[derive(Default)]
struct Cq {
    entries: VecDeque<Completion>,
    armed: bool,
    vector: usize,
    slots: Vec<u32>,
}

#[derive(Clone)]
struct Work {
    id: u64,
    op: SendOp,
    bytes: Vec<u8>,
    pieces: Vec<Sge>,
    signalled: bool,
    /// Life of the queue pair that it was posted in.
    life: u32,
}

struct Qp {
    slot: QpSlot,
    cq: usize,
    /// The peer's node and queue pair.
    to: Option<(usize, u32)>,
    failed: bool,
    /// Resets so far.
    life: u32,
    posted: VecDeque<Work>,
    shown: usize,
    receives: VecDeque<(u64, Sge)>,
}

#[derive(Default)]
struct Node {
    mads: VecDeque<(Lid, Mad)>,
    cqs: Vec<Cq>,
    qps: BTreeMap<u32, Qp>,
    vectors: Vec<Vector>,
    memory: Vec<u8>,
    given: usize,
}

#[derive(Default)]
struct World {
    nodes: [Node; 2],
    sleepers: Vec<(Instant, Waker)>,
    now: Instant,
    wire: Option<Waker>,
    sabotage: Sabotage,
    rang: bool,
}

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

impl World {
    /// Adds a completion; gives who is to be woken.
    fn complete(
        &mut self,
        node: usize,
        qpn: u32,
        id: u64,
        kind: CompletionKind,
        status: Status,
        bytes: u32,
    ) -> Option<Waker> {
        let node = &mut self.nodes[node];
        let qp = &node.qps[&qpn];
        let cq = &mut node.cqs[qp.cq];
        cq.entries.push_back(Completion {
            id,
            qp: qp.slot,
            status,
            kind,
            bytes,
            ..Completion::EMPTY
        });
        if std::mem::take(&mut cq.armed) {
            let vector = cq.vector;
            return node.fire(vector);
        }
        None
    }

    fn next_work(&mut self) -> Option<(usize, u32, Work)> {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            for (qpn, qp) in &mut node.qps {
                if qp.shown > 0 && !qp.failed && qp.to.is_some() {
                    qp.shown -= 1;
                    return qp.posted.pop_front().map(|work| (index, *qpn, work));
                }
            }
        }
        None
    }

    /// Carries out one request; gives who is to be woken. A queue pair that failed, or that was
    /// reset and is not connected to the sender, does not answer.
    fn carry_out(&mut self, node: usize, qpn: u32, work: &Work) -> Vec<Waker> {
        let mut woken = Vec::new();
        // A request of a queue pair that was reset meanwhile comes to nothing.
        let ours = &self.nodes[node].qps[&qpn];
        let Some((to, their_qpn)) = ours.to.filter(|_| ours.life == work.life) else {
            return woken;
        };
        let theirs = &self.nodes[to].qps[&their_qpn];
        if theirs.failed || theirs.to != Some((node, qpn)) {
            woken.extend(self.complete(
                node,
                qpn,
                work.id,
                CompletionKind::Send,
                Status::RetryExceeded,
                0,
            ));
            woken.extend(self.flush(node, qpn));
            return woken;
        }
        let mut bytes = work.bytes.clone();
        for piece in &work.pieces {
            bytes.extend_from_slice(self.nodes[node].at(piece.addr, piece.len));
        }
        let len = u32::try_from(bytes.len()).expect("short");
        match work.op {
            SendOp::Send { .. } => {
                let qp = self.nodes[to]
                    .qps
                    .get_mut(&their_qpn)
                    .expect("a queue pair");
                let (id, into) = qp
                    .receives
                    .pop_front()
                    .expect("an honest peer finds a receive");
                assert!(len <= into.len, "longer than the receive");
                self.nodes[to].at(into.addr, len).copy_from_slice(&bytes);
                woken.extend(self.complete(
                    to,
                    their_qpn,
                    id,
                    CompletionKind::Receive,
                    Status::Success,
                    len,
                ));
            }
            SendOp::Write { to: place, .. } => {
                self.nodes[to].at(place.addr, len).copy_from_slice(&bytes)
            }
            SendOp::Read { from } => {
                let piece = work.pieces[0];
                let bytes = self.nodes[to].at(from.addr, piece.len).to_vec();
                self.nodes[node]
                    .at(piece.addr, piece.len)
                    .copy_from_slice(&bytes);
            }
        }
        if work.signalled {
            woken.extend(self.complete(
                node,
                qpn,
                work.id,
                CompletionKind::Send,
                Status::Success,
                len,
            ));
        }
        woken
    }

    /// Fails a queue pair: everything posted is flushed.
    fn flush(&mut self, node: usize, qpn: u32) -> Vec<Waker> {
        let qp = self.nodes[node].qps.get_mut(&qpn).expect("a queue pair");
        qp.failed = true;
        qp.shown = 0;
        let sends: Vec<_> = qp
            .posted
            .drain(..)
            .map(|work| (work.id, CompletionKind::Send))
            .collect();
        let receives: Vec<_> = qp
            .receives
            .drain(..)
            .map(|(id, _)| (id, CompletionKind::Receive))
            .collect();
        sends
            .into_iter()
            .chain(receives)
            .filter_map(|(id, kind)| self.complete(node, qpn, id, kind, Status::Flushed, 0))
            .collect()
    }
}

impl Node {
    fn fire(&mut self, vector: usize) -> Option<Waker> {
        let vector = &mut self.vectors[vector];
        vector.fired = true;
        vector.waiter.take()
    }

    fn at(&mut self, addr: u64, len: u32) -> &mut [u8] {
        let start = usize::try_from(addr).expect("an address");
        &mut self.memory[start..start + len as usize]
    }
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

/// A piece of a machine's memory; never given back.
pub(crate) struct Buffer {
    machine: Machine,
    addr: u64,
    len: usize,
}

impl DmaBuffer for Buffer {
    fn bus_addr(&self) -> BusAddr {
        BusAddr(self.addr)
    }
    fn len(&self) -> usize {
        self.len
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        let len = u32::try_from(into.len()).expect("short");
        let at = self.addr + offset as u64;
        self.machine
            .bed
            .with(|world| into.copy_from_slice(world.nodes[self.machine.node].at(at, len)));
    }
    fn write(&self, offset: usize, from: &[u8]) {
        let len = u32::try_from(from.len()).expect("short");
        let at = self.addr + offset as u64;
        self.machine.bed.with(|world| {
            world.nodes[self.machine.node]
                .at(at, len)
                .copy_from_slice(from)
        });
    }
    fn fill(&self, offset: usize, len: usize, value: u8) {
        self.write(offset, &vec![value; len]);
    }
    fn read_u32(&self, _: usize) -> u32 {
        unreachable!("FIT uses no words")
    }
    fn write_u32(&self, _: usize, _: u32) {
        unreachable!("FIT uses no words")
    }
    fn read_u64(&self, _: usize) -> u64 {
        unreachable!("FIT uses no words")
    }
    fn write_u64(&self, _: usize, _: u64) {
        unreachable!("FIT uses no words")
    }
}

/// Stand-in for what these machines lack: registers, configuration space and vectors. It has no
/// value.
pub(crate) enum Nothing {}

impl Registers for Nothing {
    fn len(&self) -> usize {
        match *self {}
    }
    fn read_u32(&self, _: usize) -> u32 {
        match *self {}
    }
    fn write_u32(&self, _: usize, _: u32) {
        match *self {}
    }
    fn write_u64(&self, _: usize, _: u64) {
        match *self {}
    }
}

impl ConfigSpace for Nothing {
    fn read_u32(&self, _: u16) -> u32 {
        match *self {}
    }
    fn write_u32(&self, _: u16, _: u32) {
        match *self {}
    }
}

impl InterruptVector for Nothing {
    async fn wait(&self) {
        match *self {}
    }
}

impl Platform for Machine {
    type Bar = Nothing;
    type Config = Nothing;
    type Buffer = Buffer;
    type Vector = Nothing;

    fn map_bar(&self, index: u8) -> Result<Nothing, Error> {
        Err(Error::NoBar { index })
    }
    fn config(&self) -> Nothing {
        unreachable!("no machine of this bed has a bus")
    }
    fn alloc(&self, len: usize, _: usize) -> Result<Buffer, Error> {
        let addr = self.bed.with(|world| {
            let node = &mut world.nodes[self.node];
            let addr = node.given;
            node.given = (addr + len).next_multiple_of(64);
            assert!(node.given <= MEMORY, "a larger memory is needed");
            addr as u64
        });
        Ok(Buffer {
            machine: self.clone(),
            addr,
            len,
        })
    }
    fn enable_vectors(
        &self,
        count: u16,
    ) -> Result<impl IntoIterator<Item = Nothing> + use<>, Error> {
        Err::<Vec<Nothing>, _>(Error::TooFewVectors {
            wanted: count,
            have: 0,
        })
    }
    fn now(&self) -> Instant {
        self.bed.with(|world| world.now)
    }
    async fn sleep(&self, span: Duration) {
        if span.is_zero() {
            return shuttle::future::yield_now().await;
        }
        let until = self.now() + span;
        poll_fn(|context| {
            self.bed.with(|world| {
                if world.now >= until {
                    return Poll::Ready(());
                }
                world.sleepers.push((until, context.waker().clone()));
                Poll::Pending
            })
        })
        .await;
    }
}

/// A machine's completion queue.
pub(crate) struct Queues {
    machine: Machine,
    cq: usize,
}

impl Queues {
    fn with_qp<T>(&self, slot: QpSlot, action: impl FnOnce(&mut Qp) -> T) -> T {
        self.machine.bed.with(|world| {
            let node = &mut world.nodes[self.machine.node];
            let qpn = node.cqs[self.cq].slots[usize::from(slot.0)];
            action(node.qps.get_mut(&qpn).expect("a queue pair"))
        })
    }
}

impl QueueSet for Queues {
    fn post_send(&mut self, qp: QpSlot, request: &SendRequest<'_>) -> Result<(), PostError> {
        let (bytes, pieces) = match request.payload {
            Payload::Inline(first, second) => ([first, second].concat(), Vec::new()),
            Payload::Gather(pieces) => (Vec::new(), pieces.to_vec()),
        };
        self.with_qp(qp, |pair| {
            if pair.failed {
                return Err(PostError::NotReady { qp });
            }
            pair.posted.push_back(Work {
                id: request.id,
                op: request.op,
                bytes,
                pieces,
                signalled: request.signalled,
                life: pair.life,
            });
            Ok(())
        })
    }
    fn post_receive(&mut self, qp: QpSlot, id: u64, into: &[Sge]) -> Result<(), PostError> {
        self.with_qp(qp, |pair| {
            assert!(
                pair.receives.iter().all(|&(posted, _)| posted != id),
                "a receive posted twice"
            );
            if pair.failed {
                return Err(PostError::NotReady { qp });
            }
            pair.receives.push_back((id, into[0]));
            Ok(())
        })
    }
    fn ring(&mut self, qp: QpSlot) {
        self.with_qp(qp, |pair| pair.shown = pair.posted.len());
        let wire = self.machine.bed.with(|world| {
            let again = std::mem::replace(&mut world.rang, true);
            let sleeps = again && world.sabotage == Sabotage::SleepingWire;
            if sleeps { None } else { world.wire.take() }
        });
        wake(wire);
    }
    fn poll(&mut self, into: &mut [Completion]) -> Result<usize, PollError> {
        self.machine.bed.with(|world| {
            let entries = &mut world.nodes[self.machine.node].cqs[self.cq].entries;
            let count = entries.len().min(into.len());
            into.iter_mut()
                .zip(entries.drain(..count))
                .for_each(|(place, entry)| *place = entry);
            Ok(count)
        })
    }
    fn arm(&mut self, _: bool) {
        let woken = self.machine.bed.with(|world| {
            let late = world.sabotage == Sabotage::ArmsLate;
            let node = &mut world.nodes[self.machine.node];
            let cq = &mut node.cqs[self.cq];
            let vector = cq.vector;
            if late {
                node.vectors[vector].arm_late = Some(self.cq);
                return None;
            }
            cq.armed = cq.entries.is_empty();
            if cq.armed { None } else { node.fire(vector) }
        });
        wake(woken);
    }
    fn forget(&mut self, qp: QpSlot) {
        self.with_qp(qp, |pair| {
            (pair.failed, pair.shown, pair.to) = (false, 0, None);
            pair.life += 1;
            pair.posted.clear();
            pair.receives.clear();
        });
        self.machine.bed.with(|world| {
            world.nodes[self.machine.node].cqs[self.cq]
                .entries
                .retain(|entry| entry.qp != qp);
        });
    }
    fn send_room(&self, _: QpSlot) -> u32 {
        u32::MAX
    }
}

impl Device for Machine {
    type Queues = Queues;
    type Pages = PagesOver<Queues>;

    fn limits(&self) -> DeviceLimits {
        DeviceLimits {
            max_reads: 2,
            max_reads_as_responder: 2,
            max_queue_depth: 1 << 10,
            max_sge: 9,
            max_inline: 64,
            max_cq_depth: 1 << 12,
            ports: 1,
            max_domains: 1,
        }
    }
    async fn create_queues(&self, _: u32, vector: u16) -> Result<Queues, DeviceError> {
        let vector = usize::from(vector);
        let cq = self.bed.with(|world| {
            let node = &mut world.nodes[self.node];
            node.vectors
                .resize_with(node.vectors.len().max(vector + 1), Vector::default);
            node.cqs.push(Cq {
                vector,
                ..Cq::default()
            });
            node.cqs.len() - 1
        });
        Ok(Queues {
            machine: self.clone(),
            cq,
        })
    }
    async fn destroy_queues(&self, _: Queues) -> Result<(), DeviceError> {
        Ok(())
    }
    async fn wait_completion(&self, vector: u16) -> Result<(), DeviceError> {
        let vector = usize::from(vector);
        let mut began = false;
        poll_fn(|context| {
            self.bed.with(|world| {
                let first = !std::mem::replace(&mut began, true);
                let forgets = world.sabotage == Sabotage::ForgetsInterrupts && first;
                let node = &mut world.nodes[self.node];
                let state = &mut node.vectors[vector];
                if let Some(cq) = state.arm_late.take() {
                    node.cqs[cq].armed = true;
                }
                if std::mem::take(&mut state.fired) && !forgets {
                    return Poll::Ready(Ok(()));
                }
                state.waiter = Some(context.waker().clone());
                Poll::Pending
            })
        })
        .await
    }
    async fn create_qp(
        &self,
        queues: &mut Queues,
        _: &QpConfig,
    ) -> Result<(QpSlot, Qpn), DeviceError> {
        Ok(self.bed.with(|world| {
            let node = &mut world.nodes[self.node];
            let qpn = u32::try_from(node.qps.len()).expect("few") + 0x40;
            let slots = &mut node.cqs[queues.cq].slots;
            let slot = QpSlot(u16::try_from(slots.len()).expect("few"));
            slots.push(qpn);
            node.qps.insert(
                qpn,
                Qp {
                    slot,
                    cq: queues.cq,
                    to: None,
                    failed: false,
                    life: 0,
                    posted: VecDeque::new(),
                    shown: 0,
                    receives: VecDeque::new(),
                },
            );
            (slot, Qpn(qpn))
        }))
    }
    async fn create_pages(
        &self,
        config: &PagesConfig,
    ) -> Result<(PagesOver<Queues>, Qpn), DeviceError> {
        let mut queues = self.create_queues(config.depth + 1, config.vector).await?;
        let pair = QpConfig {
            kind: QpKind::ReliableConnection,
            domain: config.domain,
            port: config.port,
            send_depth: config.depth,
            receive_depth: 1,
            send_sge: 1,
            receive_sge: 1,
            inline: 0,
            remote_access: Access::default(),
        };
        let (qp, qpn) = self.create_qp(&mut queues, &pair).await?;
        Ok((PagesOver::new(queues, qp, config.depth, config.lkey), qpn))
    }
    async fn destroy_pages(&self, pages: PagesOver<Queues>) -> Result<(), DeviceError> {
        self.destroy_queues(pages.into_queues()).await
    }
    async fn ready_to_receive(
        &self,
        qpn: Qpn,
        path: &PathToPeer,
        _: &RcParameters,
    ) -> Result<(), DeviceError> {
        let to = usize::from(path.lid.0) - 2;
        self.bed.with(|world| {
            let qp = world.nodes[self.node]
                .qps
                .get_mut(&qpn.0)
                .expect("a queue pair");
            qp.to = Some((to, path.qpn.0));
        });
        Ok(())
    }
    async fn ready_to_send(
        &self,
        _: Qpn,
        _: Option<&PathToPeer>,
        _: &RcParameters,
    ) -> Result<(), DeviceError> {
        Ok(())
    }
    async fn fail_qp(&self, qpn: Qpn) -> Result<(), DeviceError> {
        let woken = self.bed.with(|world| world.flush(self.node, qpn.0));
        wake(woken);
        Ok(())
    }
    async fn reset_qp(&self, qpn: Qpn) -> Result<(), DeviceError> {
        self.bed.with(|world| {
            let qp = world.nodes[self.node]
                .qps
                .get_mut(&qpn.0)
                .expect("a queue pair");
            qp.failed = true;
        });
        Ok(())
    }
    async fn init_qp(&self, _: Qpn, _: Domain) -> Result<(), DeviceError> {
        Ok(())
    }
    async fn attach_multicast(&self, _: Qpn, _: Gid) -> Result<(), DeviceError> {
        Ok(())
    }
    async fn detach_multicast(&self, _: Qpn, _: Gid) -> Result<(), DeviceError> {
        Ok(())
    }
    async fn destroy_qp(&self, _: &mut Queues, _: QpSlot) -> Result<(), DeviceError> {
        Ok(())
    }
    async fn register(
        &self,
        _: Domain,
        addr: u64,
        len: u64,
        _: Access,
    ) -> Result<Region, DeviceError> {
        let (lkey, rkey) = (Lkey(1), Rkey(1));
        Ok(Region {
            addr,
            len,
            lkey,
            rkey,
        })
    }
    async fn deregister(&self, _: &Region) -> Result<(), DeviceError> {
        Ok(())
    }
    async fn port(&self, _: u8) -> Result<PortInfo, DeviceError> {
        Ok(PortInfo {
            state: PortState::Active,
            lid: lid(self.node),
            sm_lid: SM,
            guid: Guid(self.node as u64 + 1),
            gid: gid(self.node),
            mtu: 4096,
        })
    }
    async fn send_mad(&self, _: u8, to: Lid, _: PKey, mad: &[u8; 256]) -> Result<(), DeviceError> {
        self.bed.with(|world| {
            if to == SM {
                world.nodes[self.node]
                    .mads
                    .extend(path_answer(self.node, mad).map(|mad| (SM, mad)));
            } else {
                world.nodes[usize::from(to.0) - 2]
                    .mads
                    .push_back((lid(self.node), *mad));
            }
        });
        Ok(())
    }
    fn take_mad(&self, _: u8) -> Option<(Lid, [u8; 256])> {
        self.bed
            .with(|world| world.nodes[self.node].mads.pop_front())
    }
    fn take_event(&self) -> Option<DeviceEvent> {
        None
    }
}

/// Answers as the subnet administrator: every path exists.
fn path_answer(from: usize, mad: &Mad) -> Option<Mad> {
    let header = Header::parse(mad).ok()?;
    if header.class != MgmtClass::SUBN_ADM {
        return None;
    }
    let request = SaMad::parse(mad).ok()?;
    let wanted = request.record::<PathRecord>()?;
    let mut answer = request.into_response(MadStatus::OK);
    answer.set_record(&PathRecord {
        dlid: U16::new(lid(1 - from).0),
        ..wanted
    });
    Some(answer.to_mad())
}
