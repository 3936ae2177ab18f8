//! Limits of what a peer may do, and the signs and credits that it is owed.

use std::task::{Poll, Waker};

use hal::Duration;

use super::fake::{Fault, PEER, Pair};
use super::rules::{echo, forge};
use crate::wire::{Header, MessageType};
use crate::{Call, CallId, Config, LinkState, LostCause};

/// Kind of the calls here.
const KIND: u16 = 5;

fn config() -> Config {
    Config {
        calls: 3,
        serves: 2,
        one_ways: 2,
        message_size: 512,
        bulk_size: 1024,
        signal_every: 4,
        keepalive: Duration::ZERO,
        ..Config::default()
    }
}

/// Starts a call of node `from` with much time; nothing if it may not be started now.
fn call(pair: &mut Pair, from: usize) -> Option<CallId> {
    let (now, deadline) = (pair.now, pair.now + Duration::from_secs(1000));
    let engine = &mut pair.nodes[from].engine;
    let started = engine.start_call(PEER, &Call::new(KIND, b""), now, deadline);
    started.unwrap()
}

fn has_ended(pair: &mut Pair, node: usize, id: CallId) -> bool {
    let engine = &mut pair.nodes[node].engine;
    let polled = engine.poll_call(PEER, id, Waker::noop(), &mut [0; 512]);
    polled.is_ready()
}

fn state(pair: &mut Pair, node: usize) -> LinkState {
    pair.nodes[node].engine.state(PEER).unwrap()
}

/// The header of a reply to a call of node 1.
fn reply(id: CallId) -> Header {
    Header {
        kind: KIND,
        slot: id.slot,
        generation: id.generation,
        ..Header::bare(MessageType::Reply, 0)
    }
}

#[test]
fn calls_beyond_what_the_peer_takes_wait() {
    let mut pair = Pair::new(config());
    let started = [(); 3].map(|()| call(&mut pair, 0).is_some());
    assert_eq!(started, [true, true, false]);
}

#[test]
fn calls_that_are_given_up_lose_the_peer_only_past_their_deadlines() {
    let mut pair = Pair::new(config());
    for _ in 0..2 {
        let id = call(&mut pair, 0).unwrap();
        pair.nodes[0].engine.abandon_call(id);
    }
    assert!(call(&mut pair, 0).is_none(), "the peer owes two replies");
    pair.now = pair.now + Duration::from_secs(999);
    pair.nodes[0].engine.tick(pair.now);
    assert_eq!(state(&mut pair, 0), LinkState::Up);
    pair.now = pair.now + Duration::from_secs(1);
    pair.nodes[0].engine.tick(pair.now);
    assert_eq!(state(&mut pair, 0), LinkState::Failing);
}

#[test]
fn a_reply_to_an_earlier_call_of_the_slot_answers_nobody() {
    let mut pair = Pair::new(config());
    let id = call(&mut pair, 1).unwrap();
    let earlier = Header {
        generation: id.generation.wrapping_sub(1),
        ..reply(id)
    };
    forge(&mut pair, &earlier);
    assert!(!has_ended(&mut pair, 1, id));
    forge(&mut pair, &reply(id));
    assert!(has_ended(&mut pair, 1, id));
}

#[test]
fn a_reply_with_more_bulk_than_there_is_room_for_loses_the_connection() {
    let mut pair = Pair::new(config());
    let id = call(&mut pair, 1).unwrap();
    let long = Header {
        bulk: 8,
        ..reply(id)
    };
    forge(&mut pair, &long);
    assert_eq!(state(&mut pair, 1), LinkState::Failing);
    assert_eq!(pair.nodes[1].engine.cause(PEER), Some(LostCause::Protocol));
}

#[test]
fn a_peer_that_overruns_the_window_is_lost() {
    let mut pair = Pair::new(config());
    let message = Header::bare(MessageType::OneWay, 0);
    for _ in 0..2 {
        forge(&mut pair, &message);
        assert_eq!(state(&mut pair, 1), LinkState::Up);
    }
    forge(&mut pair, &message);
    assert_eq!(state(&mut pair, 1), LinkState::Failing);
}

#[test]
fn a_receiver_with_nothing_to_say_returns_credit_by_a_message_of_its_own() {
    let mut pair = Pair::new(config());
    for sent in 0..6 {
        let engine = &mut pair.nodes[0].engine;
        let started = engine.start_one_way(PEER, KIND, b"").unwrap();
        assert!(started.is_some(), "message {sent} finds the window open");
        pair.step(0, Fault::None);
        pair.poll(1);
        let engine = &mut pair.nodes[1].engine;
        let Poll::Ready(taken) = engine.poll_request(Waker::noop(), &mut [0; 512]) else {
            panic!("message {sent} has not arrived")
        };
        assert!(taken.one_way);
        pair.step(1, Fault::None);
        pair.poll(0);
    }
}

#[test]
fn a_ping_is_answered() {
    let mut pair = Pair::new(config());
    forge(&mut pair, &Header::bare(MessageType::Ping, 0));
    assert_eq!(pair.nodes[1].queues.qp().script.posted, 1);
}

#[test]
fn a_completion_that_never_comes_loses_the_connection() {
    let mut pair = Pair::new(config());
    // The fourth request is signalled: its completion must come, though nothing else does.
    for _ in 0..2 {
        let ids = [(); 2].map(|()| call(&mut pair, 0).unwrap());
        for id in ids {
            pair.step(0, Fault::LostCompletion);
            pair.poll(1);
            echo(&mut pair);
            pair.step(1, Fault::None);
            pair.poll(0);
            assert!(has_ended(&mut pair, 0, id));
        }
    }
    for _ in 0..30 {
        pair.now = pair.now + Duration::from_secs(1);
        let now = pair.now;
        pair.nodes[0].engine.tick(now);
    }
    assert_eq!(
        pair.nodes[0].engine.cause(PEER),
        Some(LostCause::NoCompletion)
    );
}
