//! Cost of a short call in the engine itself: allocations here, instructions by `cargo xtask bench
//! rpc`, which runs [`short_calls`] under callgrind and counts the instructions inside the
//! functions `caller_side_*`, `callee_side_*`, `caller_polls_*`, `callee_polls_*` and
//! `empty_poll_*`, but not inside those named `outside_*`: the device, and the copying between its
//! memory and ours.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use hal::{BusAddr, DmaBuffer, Duration, Instant};
use verbs::{
    Completion, CompletionKind, Gid, Lkey, QpSlot, Qpn, QueueSet, SendRequest, Sge, Status,
};

use super::fake::PEER;
use crate::link::Parts;
use crate::wire::HEADER_LEN;
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

/// One word, as a driver's handle is.
struct Card(Arc<(Shared, usize)>);

impl Card {
    fn new(wire: Shared, node: usize) -> Self {
        Self(Arc::new((wire, node)))
    }

    fn with<T>(&self, action: impl FnOnce(&mut Port) -> T) -> T {
        let (wire, node) = &*self.0;
        action(&mut wire.lock().unwrap().ports[*node])
    }
}

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
fn outside_send(card: &Card, id: u64, signalled: bool, head: &[u8; HEADER_LEN], body: &[u8]) {
    let (mut copy, len) = ([0; 128], head.len() + body.len());
    copy[..head.len()].copy_from_slice(head);
    copy[head.len()..len].copy_from_slice(body);
    card.with(|port| port.sends.push_back((id, signalled, len, copy)));
}

#[inline(never)]
fn outside_post_receive(card: &Card, id: u64, into: &[Sge]) {
    card.with(|port| port.receives.push_back((id, into[0].addr)));
}

#[inline(never)]
fn outside_ring(card: &Card) {
    let (wire, node) = &*card.0;
    let mut wire = wire.lock().unwrap();
    let wire = &mut *wire;
    while let Some((id, signalled, len, bytes)) = wire.ports[*node].sends.pop_front() {
        let (receive, at) = wire.ports[1 - node]
            .receives
            .pop_front()
            .expect("a receive");
        wire.memory[at as usize..at as usize + len].copy_from_slice(&bytes[..len]);
        let arrived = completion(receive, CompletionKind::Receive, len);
        wire.ports[1 - node].completions.push_back(arrived);
        if signalled {
            let sent = completion(id, CompletionKind::Send, len);
            wire.ports[*node].completions.push_back(sent);
        }
    }
}

#[inline(never)]
fn outside_poll(card: &Card, into: &mut [Completion]) -> usize {
    card.with(|port| {
        let taken = into.len().min(port.completions.len());
        into.iter_mut()
            .zip(port.completions.drain(..taken))
            .for_each(|(place, completion)| *place = completion);
        taken
    })
}

#[inline(never)]
fn outside_read(place: &Place, offset: usize, into: &mut [u8]) {
    assert!(offset + into.len() <= place.len);
    let at = place.at + offset;
    into.copy_from_slice(&place.wire.lock().unwrap().memory[at..at + into.len()]);
}

impl QueueSet for Card {
    fn post_send(&mut self, _: QpSlot, _: &SendRequest<'_>) -> Result<(), verbs::Error> {
        unreachable!("a short message goes inline")
    }
    fn send_inline(
        &mut self,
        _: QpSlot,
        id: u64,
        signalled: bool,
        head: &[u8],
        rest: &[u8],
    ) -> Result<(), verbs::Error> {
        let head = head.try_into().expect("FIT's header");
        outside_send(self, id, signalled, head, rest);
        Ok(())
    }
    fn post_receive(&mut self, _: QpSlot, id: u64, into: &[Sge]) -> Result<(), verbs::Error> {
        outside_post_receive(self, id, into);
        Ok(())
    }
    fn ring(&mut self, _: QpSlot) {
        outside_ring(self);
    }
    fn poll(&mut self, into: &mut [Completion]) -> Result<usize, verbs::Error> {
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
        let mut engine = Engine::new(config, Card::new(wire.clone(), node));
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
fn caller_side_start(
    caller: &mut Node,
    call: &Call<'_>,
    now: Instant,
    deadline: Instant,
) -> CallId {
    match caller.start_call(PEER, call, now, deadline) {
        Ok(Some(id)) => id,
        _ => panic!("a connection with a free slot"),
    }
}

// The functions that poll differ in what they give, or they would become one.
#[inline(never)]
fn callee_polls_request(callee: &mut Node, now: Instant) -> bool {
    callee.poll(now) > 0
}

#[inline(never)]
fn callee_side_serve(callee: &mut Node, request: &mut [u8; REQUEST]) {
    match callee.poll_request(Waker::noop(), request) {
        Poll::Ready(incoming) => callee.reply(&incoming, &request[..REPLY], 0),
        Poll::Pending => panic!("the request has arrived"),
    }
}

#[inline(never)]
fn caller_polls_reply(caller: &mut Node, now: Instant) -> usize {
    caller.poll(now)
}

#[inline(never)]
fn caller_side_end(caller: &mut Node, id: CallId, reply: &mut [u8; REPLY]) -> usize {
    match caller.poll_call(PEER, id, Waker::noop(), reply) {
        Poll::Ready(Ok(reply)) => reply.len,
        _ => panic!("the reply has arrived"),
    }
}

#[inline(never)]
fn empty_poll_once(engine: &mut Node, now: Instant) -> bool {
    engine.poll(now) == 0
}

fn one_call([caller, callee]: &mut [Node; 2], now: Instant) {
    let deadline = now + Duration::from_secs(1);
    let id = caller_side_start(caller, &Call::new(1, &[7; REQUEST]), now, deadline);
    assert!(callee_polls_request(callee, now));
    callee_side_serve(callee, &mut [0; REQUEST]);
    assert!(caller_polls_reply(caller, now) > 0);
    let mut reply = [0; REPLY];
    assert_eq!(caller_side_end(caller, id, &mut reply), REPLY);
    assert_eq!(reply, [7; REPLY]);
}

#[test]
fn short_calls() {
    let mut nodes = pair();
    for call in 0..CALLS {
        let now = Instant::from_nanos(1000 * u64::from(call));
        one_call(&mut nodes, now);
        assert!(black_box(empty_poll_once(&mut nodes[0], now)));
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
