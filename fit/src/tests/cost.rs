//! Cost of a short call in the engine itself: allocations here, instructions by `cargo xtask bench
//! rpc`, which runs [`short_calls`] under callgrind and counts the instructions inside the
//! functions `caller_side_*`, `callee_side_*`, `caller_polls_*`, `callee_polls_*` and
//! `empty_poll_*`, but not inside those named `outside_*`: the device, and the copying between its
//! memory and ours.

use std::hint::black_box;
use std::sync::OnceLock;
use std::task::{Poll, Waker};

use hal::{Duration, Instant};
use verbs::{CompletionKind, Gid, Lkey, QpSlot, Qpn, Status};

use super::fake::{PEER, carry_out};
use crate::fake::{Buffer, Memory, Queues, Script};
use crate::link::Parts;
use crate::{Call, CallId, Config, Engine, PeerName, Role, Target};

/// Calls that [`short_calls`] makes; `cargo xtask bench rpc` divides by it.
const CALLS: u32 = 2000;
/// Bytes of the request and of the reply: LegoOS's short call.
const REQUEST: usize = 32;
const REPLY: usize = 4;

/// A device that carries everything out at the doorbell. Nothing goes wrong.
#[derive(Default)]
struct Prompt(OnceLock<(Memory, Queues<Prompt>)>);

impl Script for Prompt {
    fn on_ring(queues: &Queues<Self>) {
        loop {
            let mut mine = queues.qp();
            let Some(work) = mine.next() else { return };
            let (memory, theirs) = mine.script.0.get().expect("two nodes");
            carry_out(memory, &work, &mut theirs.qp());
            if work.signalled {
                mine.complete(work.id, CompletionKind::Send, Status::Success, 0);
            }
        }
    }
}

type Node = Engine<Queues<Prompt>, Buffer>;

/// A caller and a callee.
fn pair() -> [Node; 2] {
    let config = Config::default();
    let memory = Memory::new(0);
    let depths = config.depths();
    let queues = [(); 2].map(|()| Queues::new(&memory, &depths, usize::MAX, Prompt::default()));
    [0, 1].map(|node| {
        let theirs = (memory.clone(), queues[1 - node].clone());
        let joined = queues[node].qp().script.0.set(theirs);
        assert!(joined.is_ok(), "once");
        let mut engine = Engine::new(config, queues[node].clone());
        let peer = PeerName {
            role: Role::Memory,
            gid: Gid::default(),
        };
        let own = memory.alloc(crate::config::Layout::new(&config).len());
        own.lend();
        engine.add(Parts {
            peer,
            qp: QpSlot(0),
            qpn: Qpn(0x40),
            memory: own,
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
