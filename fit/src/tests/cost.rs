//! What a short call costs the engine itself: allocations here, instructions by `cargo xtask bench rpc`, which runs
//! [`short_calls`] under callgrind and counts what is executed inside the functions `caller_side_*`, `callee_side_*` and
//! `empty_poll_*`, but not inside those named `outside_*`: the device, and the copying between its memory and ours.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use hal::{BusAddr, DmaBuffer, Duration, Instant};
use verbs::{
    Completion, CompletionKind, Gid, Lkey, Payload, PollError, PostError, QpSlot, Qpn, QueueSet,
    ReceiveRequest, SendRequest, Status,
};

use super::fake::PEER;
use crate::link::Parts;
use crate::{Call, CallId, Config, Engine, PeerName, Role, Target};

/// Calls that [`short_calls`] makes; `cargo xtask bench rpc` divides by it.
const CALLS: u32 = 2000;
/// Bytes of the request and of the reply: LegoOS's short call.
const REQUEST: usize = 32;
const REPLY: usize = 4;

/// Both nodes' memory and cards. Short messages only, and nothing goes wrong.
struct Wire {
    memory: Vec<u8>,
    ports: [Port; 2],
}

#[derive(Default)]
struct Port {
    receives: VecDeque<(u64, u64)>,
    sends: VecDeque<(u64, bool, usize, [u8; 128])>,
    completions: VecDeque<Completion>,
}

type Shared = Arc<Mutex<Wire>>;

struct Card(Shared, usize);

/// A piece of [`Wire::memory`].
struct Place {
    wire: Shared,
    at: usize,
    len: usize,
}

fn completion(id: u64, kind: CompletionKind, bytes: usize) -> Completion {
    Completion {
        id,
        kind,
        status: Status::Success,
        bytes: bytes as u32,
        ..Completion::EMPTY
    }
}

#[inline(never)]
fn outside_post_send(card: &Card, request: &SendRequest<'_>) {
    let Payload::Inline(bytes) = request.payload else {
        panic!("a short message goes inline")
    };
    let mut copy = [0; 128];
    copy[..bytes.len()].copy_from_slice(bytes);
    let send = (request.id, request.signalled, bytes.len(), copy);
    card.0.lock().unwrap().ports[card.1].sends.push_back(send);
}

#[inline(never)]
fn outside_post_receive(card: &Card, request: &ReceiveRequest<'_>) {
    let receive = (request.id, request.into[0].addr);
    card.0.lock().unwrap().ports[card.1].receives.push_back(receive);
}

#[inline(never)]
fn outside_ring(card: &Card) {
    let mut wire = card.0.lock().unwrap();
    let wire = &mut *wire;
    while let Some((id, signalled, len, bytes)) = wire.ports[card.1].sends.pop_front() {
        let (receive, at) = wire.ports[1 - card.1].receives.pop_front().expect("a receive");
        wire.memory[at as usize..at as usize + len].copy_from_slice(&bytes[..len]);
        let arrived = completion(receive, CompletionKind::Receive, len);
        wire.ports[1 - card.1].completions.push_back(arrived);
        if signalled {
            let sent = completion(id, CompletionKind::Send, len);
            wire.ports[card.1].completions.push_back(sent);
        }
    }
}

#[inline(never)]
fn outside_poll(card: &Card, into: &mut [Completion]) -> usize {
    let mut wire = card.0.lock().unwrap();
    let mut count = 0;
    while let Some(place) = into.get_mut(count)
        && let Some(completion) = wire.ports[card.1].completions.pop_front()
    {
        *place = completion;
        count += 1;
    }
    count
}

#[inline(never)]
fn outside_read(place: &Place, offset: usize, into: &mut [u8]) {
    assert!(offset + into.len() <= place.len);
    let at = place.at + offset;
    into.copy_from_slice(&place.wire.lock().unwrap().memory[at..at + into.len()]);
}

impl QueueSet for Card {
    fn post_send(&mut self, _: QpSlot, request: &SendRequest<'_>) -> Result<(), PostError> {
        outside_post_send(self, request);
        Ok(())
    }
    fn post_receive(&mut self, _: QpSlot, request: &ReceiveRequest<'_>) -> Result<(), PostError> {
        outside_post_receive(self, request);
        Ok(())
    }
    fn ring(&mut self, _: QpSlot) {
        outside_ring(self);
    }
    fn poll(&mut self, into: &mut [Completion]) -> Result<usize, PollError> {
        Ok(outside_poll(self, into))
    }
    fn arm(&mut self, _: bool) {}
    fn forget(&mut self, _: QpSlot) {}
    fn send_room(&self, _: QpSlot) -> u32 {
        u32::MAX
    }
}

impl DmaBuffer for Place {
    fn bus_addr(&self) -> BusAddr {
        BusAddr(self.at as u64)
    }
    fn len(&self) -> usize {
        self.len
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        outside_read(self, offset, into);
    }
    fn write(&self, _: usize, _: &[u8]) {
        unreachable!("short messages go inline")
    }
    fn fill(&self, _: usize, _: usize, _: u8) {
        unreachable!("FIT fills nothing")
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

type Node = Engine<Card, Place>;

/// A caller and a callee.
fn pair() -> [Node; 2] {
    let config = Config::default();
    let len = crate::config::Layout::new(&config).len();
    let room = config.completion_queue_depth() as usize;
    let port = || Port {
        receives: VecDeque::with_capacity(room),
        sends: VecDeque::with_capacity(room),
        completions: VecDeque::with_capacity(room),
    };
    let wire = Arc::new(Mutex::new(Wire {
        memory: vec![0; 2 * len],
        ports: [port(), port()],
    }));
    [0, 1].map(|node| {
        let mut engine = Engine::new(config, Card(wire.clone(), node));
        let peer = PeerName {
            role: Role::Memory,
            gid: Gid::default(),
        };
        let memory = Place {
            wire: wire.clone(),
            at: node * len,
            len,
        };
        engine.add(Parts {
            peer,
            qp: QpSlot(0),
            qpn: Qpn(0x40),
            memory,
            lkey: Lkey(1),
            max_inline: 128,
        });
        engine.claim(PEER, peer);
        let target = Target {
            serves: config.serves,
            message_size: config.message_size,
            bulk_size: config.bulk_size,
            one_ways: config.one_ways,
            reads: 16,
        };
        engine.up(0, target);
        engine
    })
}

#[inline(never)]
fn caller_side_start(caller: &mut Node, now: Instant) -> CallId {
    let request = [7; REQUEST];
    let deadline = now + Duration::from_secs(1);
    let started = caller.start_call(PEER, &Call::new(1, &request), now, deadline);
    started.expect("a connection").expect("a slot")
}

#[inline(never)]
fn callee_side_serve(callee: &mut Node, now: Instant) {
    callee.poll(now);
    let mut request = [0; REQUEST];
    let Poll::Ready(incoming) = callee.poll_request(Waker::noop(), &mut request) else {
        panic!("the request has arrived")
    };
    callee.reply(&incoming, &request[..REPLY], 0);
}

#[inline(never)]
fn caller_side_end(caller: &mut Node, id: CallId, now: Instant) -> usize {
    caller.poll(now);
    let mut reply = [0; REPLY];
    match caller.poll_call(PEER, id, Waker::noop(), &mut reply) {
        Poll::Ready(Ok(reply)) => reply.len,
        _ => panic!("the reply has arrived"),
    }
}

#[inline(never)]
fn empty_poll_once(engine: &mut Node, now: Instant) -> usize {
    engine.poll(now)
}

fn one_call([caller, callee]: &mut [Node; 2], now: Instant) {
    let id = caller_side_start(caller, now);
    callee_side_serve(callee, now);
    assert_eq!(caller_side_end(caller, id, now), REPLY);
}

#[test]
fn short_calls() {
    let mut nodes = pair();
    for call in 0..CALLS {
        let now = Instant::from_nanos(1000 * u64::from(call));
        one_call(&mut nodes, now);
        assert_eq!(black_box(empty_poll_once(&mut nodes[0], now)), 0);
    }
    let counters = nodes[0].link_counters().next().unwrap().2.nr_ib_send_reply;
    assert_eq!(counters, u64::from(CALLS));
}

#[test]
fn a_short_call_allocates_nothing() {
    let mut nodes = pair();
    one_call(&mut nodes, Instant::from_nanos(1));
    let allocations = allocation_counter::measure(|| {
        for call in 2..500 {
            one_call(&mut nodes, Instant::from_nanos(call));
        }
    });
    assert_eq!(allocations.count_total, 0);
}
