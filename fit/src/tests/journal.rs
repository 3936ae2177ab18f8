//! The bugs that LegoOS's journal tells of (2018, `net/lego`), B1 to B10 in the order of our study
//! of it, each as a rule that the old design broke. Where the old rule fits in a few lines it
//! stands here as well, to show that the check catches it. B9, which needs numbers of queue pairs,
//! is in `tests/whole_path.rs`.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Poll, Waker};

use hal::{DmaBuffer, Duration};
use verbs::{CompletionKind, Status};

use super::fake::{Fault, PEER, Pair};
use super::rules::{echo, forge};
use crate::wire::{Header, MessageType};
use crate::{Call, CallId, Config, Error, LinkState, LostCause, Operation};

fn config() -> Config {
    Config {
        calls: 3,
        serves: 3,
        one_sided: 6,
        message_size: 512,
        bulk_size: 1024,
        signal_every: 4,
        ..Config::default()
    }
}

const TIMEOUT: Duration = Duration::from_secs(1);

fn start(pair: &mut Pair, body: &[u8]) -> CallId {
    let (now, deadline) = (pair.now, pair.now + TIMEOUT);
    let started = pair.nodes[0]
        .engine
        .start_call(PEER, &Call::new(5, body), now, deadline);
    started.unwrap().expect("a free slot")
}

fn end(pair: &mut Pair, id: CallId, into: &mut [u8]) -> Poll<Result<usize, Error>> {
    let ended = pair.nodes[0]
        .engine
        .poll_call(PEER, id, Waker::noop(), into);
    ended.map(|result| result.map(|reply| reply.len))
}

/// Carries out and takes whatever is under way.
fn settle(pair: &mut Pair) {
    for node in [0, 1] {
        while pair.step(node, Fault::None) {}
        pair.poll(1 - node);
        pair.poll(node);
    }
}

fn receives(pair: &mut Pair) -> [usize; 2] {
    [0, 1].map(|node| pair.nodes[node].engine.test_link(0).0.receives_posted())
}

/// The old rule of B1 and B2: receives go back 64 at a time when one with a certain number is used,
/// and a batch that does not fit is cut short; so it may lose the very receive that brings the next
/// batch.
struct OldReceives {
    posted: std::collections::VecDeque<u32>,
}

impl OldReceives {
    const DEPTH: usize = 256;

    fn post_batch(&mut self) {
        for id in 0..64 {
            if self.posted.len() == Self::DEPTH {
                return; // -ENOMEM, which nobody looked at
            }
            self.posted.push_back(id);
        }
    }

    /// Returns the number of messages that arrive until one finds no receive, when every trigger is
    /// served twice, the second time late.
    fn messages_until_dry(late: u32) -> Option<u32> {
        let mut queue = Self {
            posted: (0..256).map(|id| id % 64).collect(),
        };
        let mut owed = std::collections::VecDeque::new();
        for message in 0..1_000_000 {
            while owed.front().is_some_and(|due| *due <= message) {
                owed.pop_front();
                queue.post_batch();
            }
            let Some(id) = queue.posted.pop_front() else {
                return Some(message);
            };
            if id == 63 {
                queue.post_batch();
                owed.push_back(message + late);
            }
        }
        None
    }
}

#[test]
fn b1_each_receive_is_posted_again_exactly_once() {
    assert!(
        OldReceives::messages_until_dry(30).is_some(),
        "the old rule runs dry"
    );
    let mut pair = Pair::new(config());
    let depth = config().depths().receive as usize;
    for round in 0..2000_usize {
        // One to three calls, answered in order or not, some given up; the fake panics on a receive
        // posted twice.
        let calls: Vec<_> = (0..=round % 3).map(|_| start(&mut pair, b"b1")).collect();
        settle(&mut pair);
        if round % 5 == 0 {
            pair.nodes[0].engine.abandon_call(calls[0]);
        }
        calls.iter().for_each(|_| echo(&mut pair));
        settle(&mut pair);
        for id in calls.iter().skip(usize::from(round % 5 == 0)) {
            assert_eq!(end(&mut pair, *id, &mut [0; 8]), Poll::Ready(Ok(2)));
        }
        assert_eq!(receives(&mut pair), [depth; 2], "after {round} rounds");
    }
}

#[test]
fn b2_a_receive_that_is_refused_ends_the_connection_with_an_error() {
    let mut pair = Pair::new(config());
    let id = start(&mut pair, b"b2");
    settle(&mut pair);
    echo(&mut pair);
    settle(&mut pair);
    pair.nodes[0].queues.qp().script.refuses = true;
    // The reply is taken, but its receive can't go back: nobody may believe that the credit is
    // still there.
    assert_eq!(end(&mut pair, id, &mut [0; 8]), Poll::Ready(Ok(2)));
    assert_eq!(pair.nodes[0].engine.state(PEER), Ok(LinkState::Failing));
    let (now, deadline) = (pair.now, pair.now + TIMEOUT);
    let again = pair.nodes[0]
        .engine
        .start_call(PEER, &Call::new(5, b""), now, deadline);
    let lost = |error: &Error| matches!(error, Error::PeerLost { cause, .. } if *cause == LostCause::Device);
    assert!(again.is_err_and(|error| lost(&error)));
}

#[test]
fn b3_the_first_receives_fill_the_queue_and_no_more() {
    // The old design made a queue of 256 and posted 256 and one for the ring's address.
    for (calls, serves) in [(1, 1), (3, 5), (16, 16), (100, 7)] {
        let config = Config {
            calls,
            serves,
            ..config()
        };
        // The fake panics on a post beyond the depth.
        let mut pair = Pair::new(config);
        let depth = config.depths().receive as usize;
        assert_eq!(receives(&mut pair), [depth; 2]);
        assert!(depth >= usize::from(calls + serves));
    }
}

#[test]
fn b4_a_send_that_never_completes_ends_by_an_error() {
    // The transport's own verdict comes before FIT's, and it comes: 7 would mean to retry for ever.
    let parameters = crate::handshake::persistence(4, 4);
    assert!(parameters.rnr_retry < 7);
    let timeout_ns = 4096_u64 << parameters.ack_timeout;
    let verdict = Duration::from_nanos(timeout_ns * 4 * (u64::from(parameters.retry_count) + 1));
    assert!(verdict < Config::default().timeout, "{verdict:?}");
    // (The old design's transport took 69 s, its own limit was 20 s.)
    // A peer without a receive, and one that is gone.
    for status in [Status::RnrRetryExceeded, Status::RetryExceeded] {
        let mut pair = Pair::new(config());
        let id = start(&mut pair, b"b4");
        pair.step(0, Fault::Error(status));
        pair.poll(0);
        let Poll::Ready(Err(Error::PeerLost { cause, .. })) = end(&mut pair, id, &mut []) else {
            panic!("the caller is told at once")
        };
        assert_eq!(cause, LostCause::Transport(status));
    }
    // A completion that the card swallows.
    let mut pair = Pair::new(config());
    let id = start(&mut pair, b"b4");
    pair.step(0, Fault::LostCompletion);
    pair.now = pair.now + TIMEOUT;
    let now = pair.now;
    pair.nodes[0].engine.tick(now);
    let ended = end(&mut pair, id, &mut []);
    assert!(matches!(
        ended,
        Poll::Ready(Err(Error::Deadline {
            operation: Operation::Call(5),
            ..
        }))
    ));
}

#[test]
fn b5_a_stalled_poller_overruns_no_completion_queue() {
    // The old queue had 2047 entries for 12 queue pairs with 129 receives to each of two peers:
    // 3096.
    let config = config();
    let mut pair = Pair::new(config);
    for node in &pair.nodes {
        // Exactly what was asked of the device; the fake panics when it overruns.
        node.queues.qp().cq_depth =
            config.completion_queue_depth() as usize / usize::from(config.peers);
    }
    let there = pair.lend(64);
    let (now, deadline) = (pair.now, pair.now + TIMEOUT);
    // Nobody polls node 1 while node 0 sends all it has credits for, then everything fails.
    for _ in 0..3 {
        start(&mut pair, b"b5");
    }
    while pair.step(0, Fault::None) {}
    pair.poll(0);
    let at = (there.remote(), there.sge());
    for node in &mut pair.nodes {
        let write = |engine: &mut crate::Engine<_, _>| {
            engine.start_op(PEER, crate::OneSided::Write, at, now, deadline)
        };
        while write(&mut node.engine).unwrap().is_some() {}
        node.engine.flush(PEER);
    }
    for node in [0, 1] {
        while pair.step(node, Fault::None) {}
    }
    pair.nodes.iter().for_each(|node| node.queues.qp().flush());
    [0, 1].into_iter().for_each(|node| pair.poll(node));
}

#[test]
fn b5_two_workers_never_get_one_request() {
    // The old rule let two pollers read the head before either had moved it.
    let mut pair = Pair::new(config());
    for body in [b"0", b"1", b"2"] {
        start(&mut pair, body);
    }
    settle(&mut pair);
    let mut request = [0; 512];
    let mut seen = HashSet::new();
    for _ in 0..3 {
        let Poll::Ready(incoming) = pair.nodes[1]
            .engine
            .poll_request(Waker::noop(), &mut request)
        else {
            panic!("three requests arrived")
        };
        assert!(seen.insert((incoming.slot, request[0])));
    }
    let more = pair.nodes[1]
        .engine
        .poll_request(Waker::noop(), &mut request);
    assert!(more.is_pending());
}

#[test]
fn b6_a_reply_that_comes_twice_or_late_is_counted_and_the_node_goes_on() {
    let mut pair = Pair::new(config());
    let id = start(&mut pair, b"b6");
    settle(&mut pair);
    echo(&mut pair);
    settle(&mut pair);
    assert_eq!(end(&mut pair, id, &mut [0; 8]), Poll::Ready(Ok(2)));
    // Node 0 plays the callee of a call that node 1 never made, or has long ended.
    let stray = |pair: &mut Pair, node: usize| {
        let counters = pair.nodes[node].engine.link_counters().next();
        counters.expect("a connection").2.nr_stray
    };
    for (generation, slot) in [(0, 0), (7, 2), (u32::MAX, 99)] {
        let before = stray(&mut pair, 1);
        forge(
            &mut pair,
            &Header {
                kind: 5,
                slot,
                generation,
                ..Header::bare(MessageType::Reply, 0)
            },
        );
        assert_eq!(stray(&mut pair, 1), before + 1);
    }
    let id = start(&mut pair, b"again");
    settle(&mut pair);
    echo(&mut pair);
    settle(&mut pair);
    assert_eq!(end(&mut pair, id, &mut [0; 8]), Poll::Ready(Ok(5)));
}

/// B7 was no matter of the network: `printk` trusted the length that formatting reported and moved
/// memory behind its buffer. The rule for FIT: how much is copied is bounded by the memory that is
/// copied to, whatever a length says.
#[test]
fn b7_a_reply_longer_than_its_place_is_refused_and_nothing_is_written() {
    let mut pair = Pair::new(config());
    let id = start(&mut pair, &[9; 100]);
    settle(&mut pair);
    echo(&mut pair);
    settle(&mut pair);
    let mut place = [0; 10];
    let ended = end(&mut pair, id, &mut place);
    assert!(matches!(
        ended,
        Poll::Ready(Err(Error::TooLong {
            len: 100,
            limit: 10,
            ..
        }))
    ));
    assert_eq!(place, [0; 10]);
}

/// Starts a call that lends `buffer` and lets it arrive.
fn start_lending(pair: &mut Pair, buffer: &super::fake::Buffer) -> CallId {
    let pieces = [buffer.piece()];
    let call = Call::new(5, b"b8").scatter(&pieces);
    let (now, deadline) = (pair.now, pair.now + TIMEOUT);
    let started = pair.nodes[0].engine.start_call(PEER, &call, now, deadline);
    settle(pair);
    started.unwrap().expect("a free slot")
}

#[test]
fn b8_nothing_is_written_after_the_owner_was_told() {
    // The old rule: the caller is told at its deadline, and takes its memory back, while the peer
    // may still write.
    let mut pair = Pair::new(config());
    let buffer = pair.lend(100);
    start_lending(&mut pair, &buffer);
    pair.take_back(&buffer);
    let caught = catch_unwind(AssertUnwindSafe(|| {
        echo(&mut pair);
        settle(&mut pair);
    }));
    assert!(
        caught.is_err(),
        "the fake catches a write into memory that nobody lends"
    );

    let mut pair = Pair::new(config());
    let buffer = pair.lend(100);
    let id = start_lending(&mut pair, &buffer);
    pair.now = pair.now + TIMEOUT;
    let now = pair.now;
    pair.nodes[0].engine.tick(now);
    assert!(
        end(&mut pair, id, &mut []).is_pending(),
        "the queue pair still lives"
    );
    pair.bury();
    assert!(matches!(
        end(&mut pair, id, &mut []),
        Poll::Ready(Err(Error::PeerLost { .. }))
    ));
    pair.take_back(&buffer);
    echo(&mut pair);
    settle(&mut pair);
    let mut bytes = [0; 100];
    buffer.read(0, &mut bytes);
    assert_eq!(bytes, [0; 100]);
    assert_eq!(pair.nodes[0].engine.test_link(0).0.slots_in_use(), (0, 0));
}

#[test]
fn b10_a_completion_wakes_the_call_that_it_is_of() {
    let mut pair = Pair::new(config());
    let calls = [&b"a"[..], b"bb", b"ccc"].map(|body| (start(&mut pair, body), body));
    settle(&mut pair);
    let mut taken = Vec::new();
    for _ in 0..3 {
        let mut request = [0; 512];
        if let Poll::Ready(incoming) = pair.nodes[1]
            .engine
            .poll_request(Waker::noop(), &mut request)
        {
            taken.push((incoming, request[..incoming.len].to_vec()));
        }
    }
    // Requests stand in memory of their own until they are taken: none was written over, and
    // answers may come in any order.
    for (incoming, body) in taken.iter().rev() {
        pair.nodes[1].engine.reply(incoming, body, 0);
        settle(&mut pair);
    }
    for (id, body) in calls {
        let mut reply = [0; 8];
        assert_eq!(end(&mut pair, id, &mut reply), Poll::Ready(Ok(body.len())));
        assert_eq!(&reply[..body.len()], body);
    }
}

#[test]
fn b10_a_post_that_is_refused_is_no_success() {
    let mut pair = Pair::new(config());
    pair.nodes[0].queues.qp().script.refuses = true;
    let id = start(&mut pair, b"b10");
    let Poll::Ready(Err(Error::PeerLost { cause, .. })) = end(&mut pair, id, &mut []) else {
        panic!("the caller is told at once, not after its deadline")
    };
    assert_eq!(cause, LostCause::Device);
}

#[test]
fn b10_a_full_send_queue_makes_callers_wait_and_loses_nothing() {
    let mut pair = Pair::new(config());
    let buffer = pair.lend(64);
    let (now, deadline) = (pair.now, pair.now + TIMEOUT);
    let mut ended = 0;
    let mut calls = Vec::new();
    for turn in 0..3000_usize {
        // More is asked for than fits; the fake panics on a post beyond the queue.
        let at = (buffer.remote(), buffer.sge());
        let engine = &mut pair.nodes[0].engine;
        let _ = engine.start_tagged(PEER, (crate::OneSided::Write, 1), at, now, deadline);
        engine.flush(PEER);
        calls.extend(
            engine
                .start_call(PEER, &Call::new(5, b"x"), now, deadline)
                .unwrap(),
        );
        if turn % 3 == 0 {
            settle(&mut pair);
            while let Poll::Ready(incoming) = pair.nodes[1]
                .engine
                .poll_request(Waker::noop(), &mut [0; 512])
            {
                pair.nodes[1].engine.reply(&incoming, b"y", 0);
            }
            settle(&mut pair);
            while pair.nodes[0].engine.take_ended().is_some() {}
            for id in core::mem::take(&mut calls) {
                assert_eq!(end(&mut pair, id, &mut [0; 8]), Poll::Ready(Ok(1)));
                ended += 1;
            }
        }
    }
    assert!(ended >= 1000, "{ended} calls ended");
}

#[test]
fn b10_the_poller_outlives_completions_that_cannot_be() {
    let mut pair = Pair::new(config());
    pair.nodes[0].queues.qp().script.nonsense = true;
    // Completions of nothing: of a send and of a receive that were never posted.
    let mut qp = pair.nodes[0].queues.qp();
    qp.complete(77, CompletionKind::Send, Status::Success, 0);
    qp.complete(77, CompletionKind::Receive, Status::Success, 64);
    drop(qp);
    pair.poll(0);
    assert_eq!(pair.nodes[0].engine.counters().nr_stray_cqe, 1);
    let counters = pair.nodes[0]
        .engine
        .link_counters()
        .next()
        .unwrap()
        .2
        .nr_stray;
    assert_eq!(counters, 2);
    let id = start(&mut pair, b"on");
    settle(&mut pair);
    echo(&mut pair);
    settle(&mut pair);
    assert_eq!(end(&mut pair, id, &mut [0; 8]), Poll::Ready(Ok(2)));
}
