//! A strict fake: two queue pairs joined back to back, which does one step when told and panics
//! where hardware would only misbehave (overrun, receiver not ready, memory that nobody lent).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use hal::{BusAddr, DmaBuffer, Instant};
use verbs::{
    Completion, CompletionKind, Gid, Lkey, Payload, QpSlot, Qpn, QueueSet, RemoteAddr, Rkey,
    SendOp, SendRequest, Sge, Status,
};

use crate::link::Parts;
use crate::{Config, Engine, PeerId, PeerName, Piece, Role, Target};

/// One address space for both nodes.
#[derive(Clone, Default)]
pub(super) struct World(Arc<Mutex<Vec<u8>>>);

impl World {
    pub(super) fn alloc(&self, len: usize) -> Buffer {
        let mut bytes = self.0.lock().unwrap();
        let at = bytes.len();
        // Empty ones have an address of their own, too: memory that is lent is known by it.
        bytes.resize(at + len.max(1), 0);
        Buffer {
            world: self.clone(),
            at,
            len,
        }
    }
    fn copy(&self, from: u64, to: u64, len: u32) {
        let (from, to, len) = (from as usize, to as usize, len as usize);
        self.0.lock().unwrap().copy_within(from..from + len, to);
    }
}

pub(super) struct Buffer {
    world: World,
    at: usize,
    len: usize,
}

impl Buffer {
    pub(super) fn sge(&self) -> Sge {
        Sge {
            addr: self.at as u64,
            len: self.len as u32,
            lkey: Lkey(1),
        }
    }
    pub(super) fn piece(&self) -> Piece {
        Piece {
            addr: self.at as u64,
            len: self.len as u32,
            lkey: Lkey(1),
            rkey: Rkey(1),
        }
    }
    pub(super) fn remote(&self) -> RemoteAddr {
        RemoteAddr {
            addr: self.at as u64,
            rkey: Rkey(1),
        }
    }
}

impl DmaBuffer for Buffer {
    fn bus_addr(&self) -> BusAddr {
        BusAddr(self.at as u64)
    }
    fn len(&self) -> usize {
        self.len
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        assert!(offset + into.len() <= self.len);
        let at = self.at + offset;
        into.copy_from_slice(&self.world.0.lock().unwrap()[at..at + into.len()]);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        assert!(offset + from.len() <= self.len);
        let at = self.at + offset;
        self.world.0.lock().unwrap()[at..at + from.len()].copy_from_slice(from);
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

#[derive(Clone)]
struct Work {
    id: u64,
    op: SendOp,
    inline: Vec<u8>,
    pieces: Vec<Sge>,
    signalled: bool,
}

impl Work {
    fn len(&self) -> u32 {
        self.inline.len() as u32 + self.pieces.iter().map(|piece| piece.len).sum::<u32>()
    }
}

#[derive(Default)]
pub(super) struct Qp {
    sends: VecDeque<Work>,
    shown: usize,
    /// Requests whose slots the driver has not got back, by whether they were signalled.
    taken: VecDeque<(u64, bool)>,
    receives: VecDeque<(u64, Sge)>,
    pub(super) cq: VecDeque<Completion>,
    pub(super) dead: bool,
    pub(super) posted: usize,
    pub(super) doorbells: usize,
    /// The device refuses every post.
    pub(super) refuses: bool,
    /// The next poll finds a completion that can't be.
    pub(super) nonsense: bool,
    send_depth: usize,
    receive_depth: usize,
    pub(super) cq_depth: usize,
}

/// Faults of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// Carried out, but its completion never comes.
    LostCompletion,
    /// Carried out, completed twice.
    DuplicateCompletion,
    /// Not carried out; the queue pair fails.
    Error(Status),
}

#[derive(Clone)]
pub(super) struct Queues(pub(super) Arc<Mutex<Qp>>);

impl Queues {
    pub(super) fn qp(&self) -> MutexGuard<'_, Qp> {
        self.0.lock().unwrap()
    }
}

impl QueueSet for Queues {
    fn post_send(&mut self, _: QpSlot, request: &SendRequest<'_>) -> Result<(), verbs::Error> {
        let mut qp = self.qp();
        if qp.refuses {
            return Err(verbs::Error::NotReady { qp: QpSlot(0) });
        }
        assert!(
            qp.taken.len() < qp.send_depth,
            "a post beyond the send queue"
        );
        let (inline, pieces) = match request.payload {
            Payload::Inline(first, second) => ([first, second].concat(), Vec::new()),
            Payload::Gather(pieces) => (Vec::new(), pieces.to_vec()),
        };
        qp.posted += 1;
        qp.taken.push_back((request.id, request.signalled));
        qp.sends.push_back(Work {
            id: request.id,
            op: request.op,
            inline,
            pieces,
            signalled: request.signalled,
        });
        Ok(())
    }
    fn post_receive(&mut self, _: QpSlot, id: u64, into: &[Sge]) -> Result<(), verbs::Error> {
        let mut qp = self.qp();
        if qp.refuses {
            return Err(verbs::Error::NotReady { qp: QpSlot(0) });
        }
        assert!(
            qp.receives.len() < qp.receive_depth,
            "a post beyond the receive queue"
        );
        assert!(
            qp.receives.iter().all(|&(posted, _)| posted != id),
            "a buffer posted twice"
        );
        qp.receives.push_back((id, into[0]));
        Ok(())
    }
    fn ring(&mut self, _: QpSlot) {
        let mut qp = self.qp();
        qp.shown = qp.sends.len();
        qp.doorbells += 1;
    }
    fn poll(&mut self, into: &mut [Completion]) -> Result<usize, verbs::Error> {
        let mut qp = self.qp();
        if std::mem::take(&mut qp.nonsense) {
            return Err(verbs::Error::Inconsistent {
                qpn: 0xbad,
                index: 7,
            });
        }
        let count = qp.cq.len().min(into.len());
        for place in &mut into[..count] {
            *place = qp.cq.pop_front().unwrap();
            if place.kind == CompletionKind::Send
                && let Some(at) = qp.taken.iter().position(|(id, _)| *id == place.id)
            {
                qp.taken.drain(..=at);
            }
        }
        Ok(count)
    }
    fn arm(&mut self, _: bool) {}
    fn forget(&mut self, _: QpSlot) {
        let mut qp = self.qp();
        qp.sends.clear();
        qp.taken.clear();
        qp.receives.clear();
        qp.cq.clear();
        (qp.shown, qp.dead) = (0, false);
    }
    fn send_room(&self, _: QpSlot) -> u32 {
        let qp = self.qp();
        (qp.send_depth - qp.taken.len()) as u32
    }
}

impl Qp {
    pub(super) fn complete(&mut self, id: u64, kind: CompletionKind, status: Status, bytes: u32) {
        assert!(
            self.cq.len() < self.cq_depth,
            "the completion queue overruns"
        );
        self.cq.push_back(Completion {
            id,
            qp: QpSlot(0),
            status,
            kind,
            bytes,
            imm: None,
            source: None,
        });
    }

    /// The queue pair fails: everything posted is flushed.
    pub(super) fn flush(&mut self) {
        self.dead = true;
        self.shown = 0;
        for work in std::mem::take(&mut self.sends) {
            self.complete(work.id, CompletionKind::Send, Status::Flushed, 0);
        }
        for (id, _) in std::mem::take(&mut self.receives) {
            self.complete(id, CompletionKind::Receive, Status::Flushed, 0);
        }
    }
}

/// One node of the pair.
pub(super) struct Node {
    pub(super) engine: Engine<Queues, Buffer>,
    pub(super) queues: Queues,
}

pub(super) const PEER: PeerId = PeerId(0);

/// Two nodes, connected back to back.
pub(super) struct Pair {
    pub(super) world: World,
    pub(super) nodes: [Node; 2],
    /// Memory lent to the device or the peer: address to length.
    pub(super) lent: HashMap<u64, u32>,
    pub(super) now: Instant,
}

impl Pair {
    pub(super) fn new(config: Config) -> Self {
        let world = World::default();
        let mut lent = HashMap::new();
        let nodes = [Role::Processor, Role::Memory].map(|peer| {
            let depths = config.depths();
            let queues = Queues(Arc::new(Mutex::new(Qp {
                send_depth: depths.send as usize,
                receive_depth: depths.receive as usize,
                // A duplicate per request is the fault's, not FIT's.
                cq_depth: 2 * depths.completions as usize,
                ..Qp::default()
            })));
            let mut engine = Engine::new(config, queues.clone());
            let name = PeerName {
                role: peer,
                gid: Gid([peer.number(); 16]),
            };
            let memory = world.alloc(crate::config::Layout::new(&config).len());
            // Its own device may always touch it.
            lent.insert(memory.sge().addr, memory.sge().len);
            let (qp, qpn, lkey) = (QpSlot(0), Qpn(0x40), Lkey(1));
            engine.add(Parts {
                peer: name,
                qp,
                qpn,
                memory,
                lkey,
                max_inline: 100,
            });
            engine.claim(PEER, name).unwrap();
            let message_size = config.message_size;
            engine.up(
                0,
                Target {
                    serves: config.serves,
                    message_size,
                    bulk_size: config.bulk_size,
                    one_ways: config.one_ways,
                    reads: 2,
                },
            );
            Node { engine, queues }
        });
        Self {
            world,
            nodes,
            lent,
            now: Instant::from_nanos(1000),
        }
    }

    /// Memory that is lent to the device and the peer until it is taken back.
    pub(super) fn lend(&mut self, len: usize) -> Buffer {
        let buffer = self.world.alloc(len);
        self.lent.insert(buffer.sge().addr, len as u32);
        buffer
    }

    /// The owner has its memory back: whoever touches it now is caught.
    pub(super) fn take_back(&mut self, buffer: &Buffer) {
        self.lent.remove(&buffer.sge().addr);
    }

    fn check_lent(&self, addr: u64, len: u32) {
        let covered = |(at, size): (&u64, &u32)| {
            *at <= addr && addr + u64::from(len) <= at + u64::from(*size)
        };
        assert!(
            self.lent.iter().any(covered),
            "memory at {addr:#x} was touched though nobody lent it"
        );
    }

    /// Carries out the next request of node `from`. Returns whether there was one.
    pub(super) fn step(&mut self, from: usize, fault: Fault) -> bool {
        let (mine, theirs) = (
            self.nodes[from].queues.clone(),
            self.nodes[1 - from].queues.clone(),
        );
        let mut mine = mine.qp();
        if mine.dead || mine.shown == 0 {
            return false;
        }
        let work = mine.sends.pop_front().unwrap();
        mine.shown -= 1;
        let mut theirs = theirs.qp();
        let fault = if theirs.dead {
            Fault::Error(Status::RetryExceeded)
        } else {
            fault
        };
        if let Fault::Error(status) = fault {
            mine.complete(work.id, CompletionKind::Send, status, 0);
            mine.flush();
            return true;
        }
        self.carry_out(&work, &mut theirs);
        let bytes = work.len();
        if work.signalled && fault != Fault::LostCompletion {
            mine.complete(work.id, CompletionKind::Send, Status::Success, bytes);
            if fault == Fault::DuplicateCompletion {
                mine.complete(work.id, CompletionKind::Send, Status::Success, bytes);
            }
        }
        true
    }

    fn carry_out(&self, work: &Work, theirs: &mut Qp) {
        for piece in &work.pieces {
            self.check_lent(piece.addr, piece.len);
        }
        match work.op {
            SendOp::Send { .. } => {
                let (id, into) = theirs
                    .receives
                    .pop_front()
                    .expect("a receive is always posted");
                let len = work.len();
                assert!(len <= into.len);
                self.gather(work, into.addr);
                theirs.complete(id, CompletionKind::Receive, Status::Success, len);
            }
            SendOp::Write { to, .. } => {
                self.check_lent(to.addr, work.len());
                self.gather(work, to.addr);
            }
            SendOp::Read { from } => {
                self.check_lent(from.addr, work.len());
                let mut at = from.addr;
                for piece in &work.pieces {
                    self.world.copy(at, piece.addr, piece.len);
                    at += u64::from(piece.len);
                }
            }
        }
    }

    /// Copies a request's bytes to `to`.
    fn gather(&self, work: &Work, to: u64) {
        let mut at = to as usize;
        self.world.0.lock().unwrap()[at..at + work.inline.len()].copy_from_slice(&work.inline);
        for piece in &work.pieces {
            self.world.copy(piece.addr, at as u64, piece.len);
            at += piece.len as usize;
        }
    }

    /// Kills what failed, as the control task does.
    pub(super) fn bury(&mut self) {
        for node in &mut self.nodes {
            while let Some((link, ..)) = node.engine.failing() {
                node.queues.qp().flush();
                node.engine.dead(link);
            }
        }
    }

    pub(super) fn poll(&mut self, node: usize) {
        while self.nodes[node].engine.poll(self.now) > 0 {}
    }
}
