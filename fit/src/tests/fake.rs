//! Two queue pairs joined back to back, over the strict [fake](crate::fake) that does one step when
//! told.

use hal::Instant;
use verbs::{CompletionKind, Gid, Lkey, QpSlot, Qpn, RemoteAddr, Rkey, SendOp, Status};

pub(super) use crate::fake::Buffer;
use crate::fake::{Memory, Qp, Script, Work};
use crate::link::Parts;
use crate::{Config, Engine, PeerId, PeerName, Piece, Role, Target};

impl Buffer {
    pub(super) fn piece(&self) -> Piece {
        let verbs::Sge { addr, len, lkey } = self.sge();
        Piece {
            addr,
            len,
            lkey,
            rkey: Rkey(1),
        }
    }
    pub(super) fn remote(&self) -> RemoteAddr {
        RemoteAddr {
            addr: self.sge().addr,
            rkey: Rkey(1),
        }
    }
}

/// A device that a test tells what to do.
#[derive(Default)]
pub(super) struct Told {
    pub(super) posted: usize,
    pub(super) doorbells: usize,
    /// The device refuses every post.
    pub(super) refuses: bool,
    /// The next poll finds a completion that can't be.
    pub(super) nonsense: bool,
}

impl Script for Told {
    const FAILS: bool = true;

    fn on_post(&mut self, kind: CompletionKind) -> Result<(), verbs::Error> {
        if self.refuses {
            return Err(verbs::Error::NotReady { qp: QpSlot(0) });
        }
        self.posted += usize::from(kind == CompletionKind::Send);
        Ok(())
    }
    fn on_poll(&mut self) -> Result<(), verbs::Error> {
        if std::mem::take(&mut self.nonsense) {
            return Err(verbs::Error::Inconsistent {
                qpn: 0xbad,
                index: 7,
            });
        }
        Ok(())
    }
    fn on_ring(queues: &Queues) {
        queues.qp().script.doorbells += 1;
    }
}

pub(super) type Queues = crate::fake::Queues<Told>;

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

/// Does what a request says, at the queue pair that it goes to.
pub(super) fn carry_out<S>(memory: &Memory, work: &Work, theirs: &mut Qp<S>) {
    let len = work.len();
    for piece in work.pieces() {
        memory.check_lent(piece.addr, piece.len);
    }
    match work.op {
        SendOp::Send { .. } => {
            let receive = theirs.receives.pop_front();
            let (id, into) = receive.expect("a receive is always posted");
            assert!(len <= into.len);
            gather(memory, work, into.addr);
            theirs.complete(id, CompletionKind::Receive, Status::Success, len);
        }
        SendOp::Write { to, .. } => {
            memory.check_lent(to.addr, len);
            gather(memory, work, to.addr);
        }
        SendOp::Read { from } => {
            memory.check_lent(from.addr, len);
            let mut at = from.addr;
            for piece in work.pieces() {
                memory.copy(at, piece.addr, piece.len);
                at += u64::from(piece.len);
            }
        }
    }
}

/// Copies a request's bytes to `to`.
fn gather(memory: &Memory, work: &Work, to: u64) {
    memory.write(to, work.inline());
    let mut at = to + work.inline().len() as u64;
    for piece in work.pieces() {
        memory.copy(piece.addr, at, piece.len);
        at += u64::from(piece.len);
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
    pub(super) memory: Memory,
    pub(super) nodes: [Node; 2],
    pub(super) now: Instant,
}

impl Pair {
    pub(super) fn new(config: Config) -> Self {
        let memory = Memory::new(0);
        let nodes = [Role::Processor, Role::Memory].map(|peer| {
            let depths = config.depths();
            // A duplicate per request is the fault's, not FIT's.
            let cq_depth = 2 * depths.completions as usize;
            let queues = Queues::new(&memory, &depths, cq_depth, Told::default());
            let mut engine = Engine::new(config, queues.clone());
            let name = PeerName {
                role: peer,
                gid: Gid([peer.number(); 16]),
            };
            let own = memory.alloc(crate::config::Layout::new(&config).len());
            // Its own device may always touch it.
            own.lend();
            let (qp, qpn, lkey) = (QpSlot(0), Qpn(0x40), Lkey(1));
            engine.add(Parts {
                peer: name,
                qp,
                qpn,
                memory: own,
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
            memory,
            nodes,
            now: Instant::from_nanos(1000),
        }
    }

    /// Memory that is lent to the device and the peer until it is taken back.
    pub(super) fn lend(&mut self, len: usize) -> Buffer {
        let buffer = self.memory.alloc(len);
        buffer.lend();
        buffer
    }

    /// The owner has its memory back: whoever touches it now is caught.
    pub(super) fn take_back(&mut self, buffer: &Buffer) {
        self.memory.take_back(buffer.sge().addr);
    }

    /// Carries out the next request of node `from`. Returns whether there was one.
    pub(super) fn step(&mut self, from: usize, fault: Fault) -> bool {
        let (mine, theirs) = (
            self.nodes[from].queues.clone(),
            self.nodes[1 - from].queues.clone(),
        );
        let mut mine = mine.qp();
        let Some(work) = mine.next() else {
            return false;
        };
        let mut theirs = theirs.qp();
        let fault = if theirs.is_dead() {
            Fault::Error(Status::RetryExceeded)
        } else {
            fault
        };
        if let Fault::Error(status) = fault {
            mine.complete(work.id, CompletionKind::Send, status, 0);
            mine.flush();
            return true;
        }
        carry_out(&self.memory, &work, &mut theirs);
        let bytes = work.len();
        if work.signalled && fault != Fault::LostCompletion {
            mine.complete(work.id, CompletionKind::Send, Status::Success, bytes);
            if fault == Fault::DuplicateCompletion {
                mine.complete(work.id, CompletionKind::Send, Status::Success, bytes);
            }
        }
        true
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
