//! Rules that hold on a fabric without faults, and the fate of a peer that breaks the protocol.

use std::task::{Poll, Waker};

use hal::{DmaBuffer, Duration};
use verbs::Status;

use super::fake::{Fault, PEER, Pair};
use crate::wire::{Header, MessageType};
use crate::{Call, Config, Error, LinkState, LostCause, OneSided, Operation};

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

fn later(pair: &Pair) -> hal::Instant {
    pair.now + Duration::from_secs(1)
}

/// Node 1 answers one request: its own bytes back, and bulk of 7s.
pub(super) fn echo(pair: &mut Pair) {
    let mut request = [0; 512];
    let Poll::Ready(incoming) = pair.nodes[1]
        .engine
        .poll_request(Waker::noop(), &mut request)
    else {
        panic!("no request arrived")
    };
    let bulk = vec![7; incoming.bulk_limit as usize];
    pair.nodes[1].engine.write_bulk(&incoming, 0, &bulk);
    pair.nodes[1]
        .engine
        .reply(&incoming, &request[..incoming.len], incoming.bulk_limit);
}

#[test]
fn a_short_call_is_one_request_and_one_doorbell_each_way() {
    let mut pair = Pair::new(config());
    let deadline = later(&pair);
    let id = pair.nodes[0]
        .engine
        .start_call(PEER, &Call::new(5, b"ping"), pair.now, deadline)
        .unwrap()
        .unwrap();
    assert!(pair.step(0, Fault::None));
    pair.poll(1);
    echo(&mut pair);
    assert!(pair.step(1, Fault::None));
    pair.poll(0);
    let mut reply = [0; 8];
    let Poll::Ready(Ok(got)) = pair.nodes[0]
        .engine
        .poll_call(PEER, id, Waker::noop(), &mut reply)
    else {
        panic!("the call has not ended")
    };
    assert_eq!((&reply[..got.len], got.bulk), (&b"ping"[..], 0));
    for node in &pair.nodes {
        let qp = node.queues.qp();
        assert_eq!((qp.script.posted, qp.script.doorbells), (1, 1));
    }
}

#[test]
fn bulk_arrives_before_the_reply_that_tells_of_it() {
    let mut pair = Pair::new(config());
    let buffer = pair.lend(100);
    let pieces = [buffer.piece()];
    let deadline = later(&pair);
    let long = [9; 300];
    let id = pair.nodes[0]
        .engine
        .start_call(
            PEER,
            &Call::new(5, &long).scatter(&pieces),
            pair.now,
            deadline,
        )
        .unwrap()
        .unwrap();
    pair.step(0, Fault::None);
    pair.poll(1);
    echo(&mut pair);
    while pair.step(1, Fault::None) {}
    pair.poll(0);
    let mut reply = [0; 300];
    let ended = pair.nodes[0]
        .engine
        .poll_call(PEER, id, Waker::noop(), &mut reply);
    assert!(matches!(ended, Poll::Ready(Ok(reply)) if reply.bulk == 100 && reply.len == 300));
    let mut got = [0; 100];
    buffer.read(0, &mut got);
    assert_eq!((got, reply), ([7; 100], [9; 300]));
}

#[test]
fn no_more_reads_are_outstanding_than_agreed_and_order_is_kept() {
    let mut pair = Pair::new(config());
    let (there, here) = (pair.lend(64), pair.lend(64));
    let deadline = later(&pair);
    let at = (there.remote(), here.sge());
    for what in [
        OneSided::Read,
        OneSided::Read,
        OneSided::Read,
        OneSided::Write,
    ] {
        assert!(
            pair.nodes[0]
                .engine
                .start_op(PEER, what, at, pair.now, deadline)
                .unwrap()
                .is_some()
        );
    }
    pair.nodes[0].engine.flush(PEER);
    // Two READs are agreed on; the WRITE stays behind the third READ.
    assert_eq!(pair.nodes[0].queues.qp().script.posted, 2);
    assert_eq!(pair.nodes[0].queues.qp().script.doorbells, 1);
    pair.step(0, Fault::None);
    pair.poll(0);
    assert_eq!(pair.nodes[0].queues.qp().script.posted, 4);
}

#[test]
fn calls_beyond_the_peers_credits_wait() {
    let mut pair = Pair::new(config());
    let deadline = later(&pair);
    for started in [true, true, true, false] {
        let id = pair.nodes[0]
            .engine
            .start_call(PEER, &Call::new(5, b""), pair.now, deadline)
            .unwrap();
        assert_eq!(id.is_some(), started);
    }
    assert_eq!(
        pair.nodes[0].engine.wait_for_room(PEER, Waker::noop()),
        Ok(())
    );
}

#[test]
fn a_late_reply_touches_nothing() {
    let mut pair = Pair::new(config());
    let deadline = later(&pair);
    let start = |pair: &mut Pair| {
        pair.nodes[0]
            .engine
            .start_call(PEER, &Call::new(5, b"one"), pair.now, deadline)
            .unwrap()
            .unwrap()
    };
    let id = start(&mut pair);
    pair.step(0, Fault::None);
    pair.now = deadline;
    let now = pair.now;
    pair.nodes[0].engine.tick(now);
    let mut reply = [0; 8];
    let ended = pair.nodes[0]
        .engine
        .poll_call(PEER, id, Waker::noop(), &mut reply);
    let Poll::Ready(Err(error)) = ended else {
        panic!("the deadline is over")
    };
    assert!(matches!(
        error,
        Error::Deadline { operation: Operation::Call(5), state: LinkState::Up, age, .. }
            if age == Duration::from_secs(1)
    ));
    assert_eq!(
        error.to_string(),
        "processor@101:101:101:101:101:101:101:101: no end of call 5 after 1s (connection Up)"
    );
    // The slot is not used again before the late reply came.
    assert_eq!(pair.nodes[0].engine.test_link(0).0.slots_in_use(), (1, 0));
    pair.poll(1);
    echo(&mut pair);
    pair.step(1, Fault::None);
    pair.poll(0);
    assert_eq!(pair.nodes[0].engine.test_link(0).0.slots_in_use(), (0, 0));
    assert_eq!(reply, [0; 8]);
}

#[test]
fn a_late_read_loses_the_connection_and_its_waiter_is_told_last() {
    let mut pair = Pair::new(config());
    let (there, here) = (pair.lend(64), pair.lend(64));
    let deadline = later(&pair);
    let at = (there.remote(), here.sge());
    let id = pair.nodes[0]
        .engine
        .start_op(PEER, OneSided::Read, at, pair.now, deadline)
        .unwrap()
        .unwrap();
    pair.nodes[0].engine.tick(deadline);
    assert!(
        pair.nodes[0]
            .engine
            .poll_op(PEER, id, Waker::noop())
            .is_pending()
    );
    pair.bury();
    let ended = pair.nodes[0].engine.poll_op(PEER, id, Waker::noop());
    let cause = LostCause::Deadline(Operation::Read);
    assert!(matches!(ended, Poll::Ready(Err(Error::PeerLost { cause: got, .. })) if got == cause));
}

#[test]
fn a_dead_peer_fails_every_waiter() {
    let mut pair = Pair::new(config());
    let deadline = later(&pair);
    let id = pair.nodes[0]
        .engine
        .start_call(PEER, &Call::new(5, b""), pair.now, deadline)
        .unwrap()
        .unwrap();
    pair.step(0, Fault::Error(Status::RetryExceeded));
    pair.poll(0);
    let ended = pair.nodes[0]
        .engine
        .poll_call(PEER, id, Waker::noop(), &mut []);
    let lost = LostCause::Transport(Status::RetryExceeded);
    assert!(matches!(ended, Poll::Ready(Err(Error::PeerLost { cause, .. })) if cause == lost));
    let again = pair.nodes[0]
        .engine
        .start_call(PEER, &Call::new(5, b""), pair.now, deadline);
    assert!(matches!(again, Err(Error::PeerLost { .. })));
}

/// Sends a message with a header of the test's making from node 0.
pub(super) fn forge(pair: &mut Pair, header: &Header) {
    forge_bytes(pair, &header.encode());
}

/// Node 0's device sends node 1 these bytes, whatever they mean.
pub(super) fn forge_bytes(pair: &mut Pair, bytes: &[u8]) {
    let (link, queues) = pair.nodes[0].engine.test_link(0);
    link.forge(queues, bytes);
    pair.step(0, Fault::None);
    pair.poll(1);
}

#[test]
fn a_peer_that_breaks_the_protocol_is_lost() {
    let good = Header {
        kind: 5,
        ..Header::bare(MessageType::Request, 0)
    };
    let state = |pair: &mut Pair| pair.nodes[1].engine.state(PEER).unwrap();
    // A slot that it was not given, a wrong length, and a slot used twice.
    for bad in [Header { slot: 3, ..good }, Header { body: 1, ..good }] {
        let mut pair = Pair::new(config());
        forge(&mut pair, &bad);
        assert_eq!(state(&mut pair), LinkState::Failing, "{bad:?}");
    }
    let mut pair = Pair::new(config());
    forge(&mut pair, &good);
    assert_eq!(state(&mut pair), LinkState::Up);
    forge(&mut pair, &good);
    assert_eq!(state(&mut pair), LinkState::Failing);
    // A reply that nobody asked for is dropped and counted.
    let mut pair = Pair::new(config());
    forge(
        &mut pair,
        &Header {
            message: MessageType::Reply,
            generation: 77,
            ..good
        },
    );
    assert_eq!(state(&mut pair), LinkState::Up);
    assert_eq!(
        pair.nodes[1]
            .engine
            .link_counters()
            .next()
            .unwrap()
            .2
            .nr_stray,
        1
    );
}

/// The device may read what a request gathers once more as long as it has not completed it, so the
/// call does not end before.
#[test]
fn a_call_that_gathers_ends_when_its_request_is_done_too() {
    for dies in [false, true] {
        let mut pair = Pair::new(config());
        let buffer = pair.lend(100);
        let pieces = [buffer.piece()];
        let deadline = later(&pair);
        let call = Call::new(5, b"gathered").gather(&pieces);
        let started = pair.nodes[0]
            .engine
            .start_call(PEER, &call, pair.now, deadline);
        let id = started.unwrap().unwrap();
        pair.step(0, Fault::LostCompletion);
        pair.poll(1);
        echo(&mut pair);
        pair.step(1, Fault::None);
        pair.poll(0);
        let mut reply = [0; 8];
        let mut look = |pair: &mut Pair| {
            let engine = &mut pair.nodes[0].engine;
            engine.poll_call(PEER, id, Waker::noop(), &mut reply)
        };
        assert!(
            look(&mut pair).is_pending(),
            "the request may still be read"
        );
        if dies {
            pair.nodes[0].engine.fail_peer(PEER, LostCause::WeLeft);
            pair.bury();
        } else {
            let done = pair.nodes[0].queues.qp().script.posted as u64 - 1;
            let kind = verbs::CompletionKind::Send;
            pair.nodes[0]
                .queues
                .qp()
                .complete(done, kind, Status::Success, 0);
            pair.poll(0);
        }
        assert!(matches!(look(&mut pair), Poll::Ready(Ok(got)) if got.len == 8));
    }
}
