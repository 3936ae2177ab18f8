//! A core's engine between a hostile peer and a device that completes what it likes.
//!
//! The device is strict the other way: it takes no request beyond a queue's depth, no receive
//! twice, and none that leaves the connection's memory. Whatever the input says, each call and
//! access ends once at most, and when the queue pair is dead all have ended and every slot is free
//! again.

use alloc::vec::Vec;
use core::task::{Poll, Waker};

use hal::{DmaBuffer, Duration, Instant};
use verbs::{CompletionKind, Gid, Lkey, QpSlot, Qpn, RemoteAddr, Rkey, Sge, Status};

use super::Input;
use crate::config::Layout;
use crate::fake::{Buffer, Memory, Queues, Script};
use crate::link::Parts;
use crate::wire::{Descriptor, HEADER_LEN, Header, MessageType};
use crate::{
    Call, CallId, Config, Engine, Incoming, LinkState, LostCause, OneSided, OpId, PeerId, PeerName,
    Piece, Role, Target,
};

const BASE: u64 = 0x10_0000;
/// The memory of whoever uses the engine.
const USERS: core::ops::Range<u64> = 0x9000..0xa000;
const MESSAGE: u32 = 320;
const QP: QpSlot = QpSlot(0);

/// A device that completes what the input says.
struct Wild;

impl Script for Wild {}

struct Bed {
    engine: Engine<Queues<Wild>, Buffer>,
    queues: Queues<Wild>,
    memory: Buffer,
    config: Config,
    now: Instant,
    peer: PeerId,
    calls: Vec<(PeerId, CallId)>,
    ops: Vec<(PeerId, OpId)>,
    tags: u64,
    serving: Vec<Incoming>,
}

fn config() -> Config {
    Config {
        peers: 1,
        calls: 3,
        serves: 3,
        one_sided: 4,
        message_size: MESSAGE,
        bulk_size: 256,
        bulk_buffers: 3,
        one_ways: 2,
        signal_every: 3,
        timeout: Duration::from_millis(500),
        ..Config::default()
    }
}

fn name() -> PeerName {
    PeerName {
        role: Role::Memory,
        gid: Gid([1; 16]),
    }
}

impl Bed {
    fn new(target: Target) -> Self {
        let config = config();
        let depths = config.depths();
        let space = Memory::new(BASE);
        let memory = space.alloc(Layout::new(&config).len());
        memory.lend();
        space.lend(USERS.start, USERS.end - USERS.start);
        let queues = Queues::new(&space, &depths, usize::MAX, Wild);
        let mut engine = Engine::new(config, queues.clone());
        engine.add(Parts {
            peer: name(),
            qp: QP,
            qpn: Qpn(0x40),
            memory: memory.clone(),
            lkey: Lkey(1),
            max_inline: 60,
        });
        let mut bed = Self {
            engine,
            queues,
            memory,
            config,
            now: Instant::from_nanos(1),
            peer: PeerId(0),
            calls: Vec::new(),
            ops: Vec::new(),
            tags: 0,
            serving: Vec::new(),
        };
        bed.connect(PeerId(0), target);
        bed
    }

    fn connect(&mut self, peer: PeerId, target: Target) {
        let (link, _) = self.engine.claim(peer, name()).expect("a free queue pair");
        self.engine.up(link, target);
        self.peer = peer;
    }

    /// The peer sends: a message of its making arrives in a posted receive.
    fn arrive(&mut self, input: &mut Input<'_>) {
        let choice = input.u8();
        let mut device = self.queues.qp();
        if device.receives.is_empty() {
            return;
        }
        let index = usize::from(choice >> 4) % device.receives.len();
        let (id, into) = device.receives.remove(index).expect("one of them");
        let body = u32::from(input.u8() % 140);
        let (gathers, scatters) = (input.u8() % 10, input.u8() % 10);
        let mut header = Header {
            gathers,
            scatters,
            kind: u16::from(input.u8() % 4),
            slot: u16::from(input.u8() % 8),
            generation: u32::from(input.u8() % 4),
            body,
            bulk: u32::from(input.u8()),
            ..Header::bare(
                [
                    MessageType::Request,
                    MessageType::Reply,
                    MessageType::OneWay,
                    [MessageType::Ping, MessageType::Pong, MessageType::Credit]
                        [usize::from(choice >> 6) % 3],
                ][usize::from(choice % 4)],
                u32::from(input.u8() % 4),
            )
        };
        // Pieces that make up the bulk, unless the input says otherwise.
        let share = header.bulk.checked_div(gathers.into()).unwrap_or(0);
        if !input.u8().is_multiple_of(4) {
            header.bulk = share * u32::from(gathers);
        }
        let at = usize::try_from(into.addr - BASE).expect("within the memory");
        for index in 0..usize::from(gathers + scatters).min(16) {
            let descriptor = Descriptor {
                at: RemoteAddr {
                    addr: input.u8().into(),
                    rkey: Rkey(2),
                },
                len: if index < gathers.into() {
                    share
                } else {
                    input.u8().into()
                },
            };
            let bytes = descriptor.encode();
            self.memory
                .write(at + HEADER_LEN + index * bytes.len(), &bytes);
        }
        let mut message = header.encode();
        let mut bytes = u32::try_from(header.head_len()).expect("small") + body + header.carried();
        if choice & 8 == 8 {
            // Not even a header.
            message = input.array();
            bytes = input.u32();
        }
        self.memory.write(at, &message);
        device.complete(id, CompletionKind::Receive, Status::Success, bytes);
    }

    /// The device completes something, whether it was posted or not.
    fn complete(&mut self, input: &mut Input<'_>) {
        let mut device = self.queues.qp();
        let choice = input.u8();
        let status = match choice & 0xc {
            0xc => Status::RetryExceeded,
            _ => Status::Success,
        };
        match choice & 3 {
            0 | 1 => {
                // In order, as a queue pair does; what is not signalled goes with what is behind
                // it.
                if !device.seen().any(|work| work.signalled) {
                    return;
                }
                while let Some(work) = device.next() {
                    if work.signalled {
                        device.complete(work.id, CompletionKind::Send, status, 0);
                        break;
                    }
                }
            }
            2 => device.complete(u64::from(input.u8()), CompletionKind::Send, status, 0),
            _ => {
                let kind = if choice & 0x10 == 0 {
                    CompletionKind::Receive
                } else {
                    CompletionKind::ReceiveWrite
                };
                device.complete(input.u64() >> (input.u8() % 64), kind, status, input.u32());
            }
        }
    }

    fn start(&mut self, input: &mut Input<'_>) {
        let deadline = self.now + self.config.timeout;
        let place = RemoteAddr {
            addr: 0x5000,
            rkey: Rkey(5),
        };
        let choice = input.u8();
        let local = Sge {
            addr: USERS.start,
            len: 64,
            lkey: Lkey(1),
        };
        let what = if choice & 4 == 0 {
            OneSided::Read
        } else {
            OneSided::Write
        };
        match choice & 3 {
            0 | 1 => {
                let body = [0x55; 150];
                let body = &body[..usize::from(input.u8()) % body.len()];
                let piece = Piece {
                    addr: USERS.start,
                    len: input.u8().into(),
                    lkey: Lkey(1),
                    rkey: Rkey(5),
                };
                let pieces = [piece; 9];
                let (gather, scatter) = (choice >> 2 & 3, choice >> 4 & 3);
                let call = Call::new(u16::from(input.u8() % 4), body)
                    .gather(&pieces[..usize::from(gather) * 3])
                    .scatter(&pieces[..usize::from(scatter) * 3]);
                if let Ok(Some(id)) = self.engine.start_call(self.peer, &call, self.now, deadline) {
                    self.calls.push((self.peer, id));
                }
                if choice & 0x40 != 0 {
                    let _ = self.engine.start_one_way(self.peer, call.kind, body);
                }
            }
            2 => {
                if let Ok(Some(id)) =
                    self.engine
                        .start_op(self.peer, what, (place, local), self.now, deadline)
                {
                    self.ops.push((self.peer, id));
                }
                self.engine.flush(self.peer);
            }
            _ => {
                let started = self.engine.start_tagged(
                    self.peer,
                    (what, self.tags),
                    (place, local),
                    self.now,
                    deadline,
                );
                self.tags += u64::from(matches!(started, Ok(Some(()))));
                self.engine.flush(self.peer);
            }
        }
    }

    fn look(&mut self, input: &mut Input<'_>) {
        let choice = input.u8();
        let waker = Waker::noop();
        let pick = |len: usize| usize::from(choice >> 2) % len.max(1);
        match choice & 3 {
            0 if !self.calls.is_empty() => {
                let at = pick(self.calls.len());
                let (peer, id) = self.calls[at];
                let mut into = [0; 100];
                if self.engine.poll_call(peer, id, waker, &mut into).is_ready() {
                    self.calls.swap_remove(at);
                }
            }
            1 if !self.ops.is_empty() => {
                let at = pick(self.ops.len());
                let (peer, id) = self.ops[at];
                if self.engine.poll_op(peer, id, waker).is_ready() {
                    self.ops.swap_remove(at);
                }
            }
            2 if !self.calls.is_empty() => {
                let (_, id) = self.calls.swap_remove(pick(self.calls.len()));
                self.engine.abandon_call(id);
            }
            3 if !self.ops.is_empty() => {
                let (peer, id) = self.ops.swap_remove(pick(self.ops.len()));
                self.engine.abandon_op(peer, id);
            }
            _ => {}
        }
    }

    fn serve(&mut self, input: &mut Input<'_>) {
        let mut into = [0; MESSAGE as usize];
        if let Poll::Ready(incoming) = self.engine.poll_request(Waker::noop(), &mut into) {
            assert!(incoming.len <= into.len() - HEADER_LEN);
            assert!(incoming.bulk_limit <= self.config.bulk_size);
            let mut bulk = [0; 300];
            let read = self
                .engine
                .read_bulk(&incoming, input.u8().into(), &mut bulk);
            assert!(read <= incoming.bulk_len as usize);
            if !incoming.one_way {
                self.serving.push(incoming);
            }
        }
        let choice = input.u8();
        if choice & 1 == 1 && !self.serving.is_empty() {
            let incoming = self
                .serving
                .swap_remove(usize::from(choice >> 1) % self.serving.len());
            let body = [0x66; 200];
            let len = usize::from(input.u8()).min(self.engine.reply_limit(&incoming));
            let bulk = u32::from(input.u8()).min(incoming.bulk_limit);
            self.engine
                .write_bulk(&incoming, 0, &body[..(bulk as usize).min(body.len())]);
            self.engine
                .reply(&incoming, &body[..len.min(body.len())], bulk);
        }
    }

    /// Kills what failed, as the control task does.
    fn bury(&mut self) {
        while let Some((link, ..)) = self.engine.failing() {
            self.queues.qp().flush();
            self.engine.dead(link);
        }
    }

    fn poll(&mut self) {
        while self.engine.poll(self.now) > 0 {}
        while let Some(ended) = self.engine.take_ended() {
            assert!(ended.tag < self.tags, "an end of what was never started");
        }
    }

    /// Ends the connection: everybody must be told.
    fn end(&mut self) {
        self.engine.fail_peer(self.peer, LostCause::WeLeft);
        self.bury();
        self.poll();
        for (peer, id) in core::mem::take(&mut self.calls) {
            let ended = self
                .engine
                .poll_call(peer, id, Waker::noop(), &mut [0; 300]);
            assert!(
                ended.is_ready(),
                "a call is never told that its peer is lost"
            );
        }
        for (peer, id) in core::mem::take(&mut self.ops) {
            let ended = self.engine.poll_op(peer, id, Waker::noop());
            assert!(
                ended.is_ready(),
                "an access is never told that its peer is lost"
            );
        }
        self.serving.clear();
        assert_eq!(self.engine.state(self.peer).ok(), Some(LinkState::Down));
    }
}

fn target(input: &mut Input<'_>) -> Target {
    Target {
        serves: u16::from(input.u8() % 8).max(1),
        message_size: u32::from(input.u16()).max(280),
        bulk_size: input.u16().into(),
        one_ways: u16::from(input.u8() % 4),
        reads: input.u8() % 4,
    }
}

/// A script of a hostile peer and device, and of an honest user.
pub fn link(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut bed = Bed::new(target(&mut input));
    while !input.is_empty() {
        match input.u8() % 10 {
            0 | 1 => bed.arrive(&mut input),
            2 | 3 => bed.complete(&mut input),
            4 => bed.start(&mut input),
            5 => bed.look(&mut input),
            6 => bed.serve(&mut input),
            7 => {
                bed.now = bed.now + Duration::from_millis(input.u8().into());
                bed.engine.tick(bed.now);
            }
            8 => {
                bed.end();
                let next = PeerId(bed.peer.0 + 1);
                let (link, _) = bed
                    .engine
                    .claim(next, name())
                    .expect("the lost one's queue pair");
                bed.engine.forget(link);
                bed.engine.renew(link, Lkey(1));
                let target = target(&mut input);
                bed.engine.up(link, target);
                bed.peer = next;
            }
            _ => {
                bed.poll();
                bed.bury();
            }
        }
    }
    bed.end();
}
