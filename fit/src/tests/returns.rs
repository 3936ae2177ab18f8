//! Queue pairs that serve one peer after another.

use core::sync::atomic::{AtomicU32, Ordering};
use core::task::Waker;
use std::sync::Arc;
use std::task::Wake;

use hal::Duration;
use verbs::Lkey;

use super::fake::{PEER, Pair};
use crate::{Call, Config, Error, LinkState, LostCause, OneSided, PeerId, PeerName, Role, Target};

fn config() -> Config {
    Config {
        calls: 3,
        serves: 3,
        one_sided: 4,
        message_size: 256,
        bulk_size: 64,
        ..Config::default()
    }
}

/// A node whose peer is lost begins anew, with `peer`; gives the connection, which is not up yet.
fn begin(pair: &mut Pair, node: usize, peer: PeerId) -> u16 {
    let name = PeerName {
        role: Role::Memory,
        gid: verbs::Gid([peer.0.to_le_bytes()[0]; 16]),
    };
    let engine = &mut pair.nodes[node].engine;
    let (link, _) = engine.claim(peer, name).expect("a queue pair that is free");
    engine.forget(link);
    engine.renew(link, Lkey(1));
    link
}

fn target() -> Target {
    let config = config();
    Target {
        serves: config.serves,
        message_size: config.message_size,
        bulk_size: config.bulk_size,
        one_ways: config.one_ways,
        reads: 2,
    }
}

/// Both sides lose each other and connect anew, as `peer`.
fn begin_anew(pair: &mut Pair, peer: PeerId) {
    for node in [0, 1] {
        let link = begin(pair, node, peer);
        assert!(pair.nodes[node].engine.up(link, target()));
    }
}

/// Counts how often a task was woken.
#[derive(Default)]
struct Woken(AtomicU32);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The caller of a connection has it up when the callee's acceptance came, the callee only when the
/// confirmation did: requests may be faster than that.
#[test]
fn a_request_that_is_faster_than_the_confirmation_wakes_a_server_when_the_connection_is_up() {
    let mut pair = Pair::new(config());
    for node in &mut pair.nodes {
        node.engine.fail_peer(PEER, LostCause::PeerLeft);
    }
    pair.bury();
    let peer = PeerId(1);
    let (caller, callee) = (begin(&mut pair, 0, peer), begin(&mut pair, 1, peer));
    pair.nodes[0].engine.up(caller, target());
    let woken = Arc::new(Woken::default());
    let (waker, mut into) = (Waker::from(woken.clone()), [0; 256]);
    assert!(
        pair.nodes[1]
            .engine
            .poll_request(&waker, &mut into)
            .is_pending()
    );
    let (now, deadline) = (pair.now, pair.now + Duration::from_secs(9));
    let call = pair.nodes[0]
        .engine
        .start_call(peer, &Call::new(1, b"early"), now, deadline);
    assert!(call.unwrap().is_some());
    assert!(pair.step(0, super::fake::Fault::None));
    pair.poll(1);
    // Whoever has not confirmed is not served.
    assert!(
        pair.nodes[1]
            .engine
            .poll_request(&waker, &mut into)
            .is_pending()
    );
    let before = woken.0.load(Ordering::Relaxed);
    pair.nodes[1].engine.up(callee, target());
    assert_eq!(woken.0.load(Ordering::Relaxed), before + 1);
    assert!(
        pair.nodes[1]
            .engine
            .poll_request(&waker, &mut into)
            .is_ready()
    );
}

#[test]
fn a_connection_that_failed_while_it_was_made_is_not_revived() {
    let mut pair = Pair::new(config());
    pair.nodes[0].engine.fail_peer(PEER, LostCause::PeerLeft);
    pair.bury();
    let link = begin(&mut pair, 0, PeerId(1));
    pair.nodes[0].engine.fail(link, LostCause::QpFailed);
    assert!(!pair.nodes[0].engine.up(link, target()));
    assert_eq!(
        pair.nodes[0].engine.state(PeerId(1)),
        Ok(LinkState::Failing)
    );
}

#[test]
fn a_thousand_losses_and_returns_leak_no_slot_and_mix_no_lives() {
    let mut pair = Pair::new(config());
    let there = pair.lend(64);
    let deadline = pair.now + Duration::from_secs(9);
    let mut into = [0; 256];
    let mut stale = None;
    for life in 0..1000 {
        let peer = PeerId(life);
        let now = pair.now;
        // A call that is being served, one that is not, and two accesses are under way.
        let caller = &mut pair.nodes[0];
        let calls: Vec<_> = (0..2)
            .map(|_| {
                caller
                    .engine
                    .start_call(peer, &Call::new(1, b"call"), now, deadline)
            })
            .map(|id| id.unwrap().expect("a free slot"))
            .collect();
        let at = (there.remote(), there.sge());
        let read = caller
            .engine
            .start_op(peer, OneSided::Read, at, now, deadline);
        let read = read.unwrap().expect("a free slot");
        let tagged = caller
            .engine
            .start_tagged(peer, (OneSided::Write, 5), at, now, deadline);
        assert_eq!(tagged, Ok(Some(())));
        pair.step(0, super::fake::Fault::None);
        pair.poll(1);
        let served = pair.nodes[1].engine.poll_request(Waker::noop(), &mut into);
        let std::task::Poll::Ready(served) = served else {
            panic!("the request arrived")
        };
        if let Some(stale) = stale.replace(served) {
            // A handler that is late by a life: its answer reaches nobody.
            let posted = pair.nodes[1].queues.qp().script.posted;
            assert_eq!(pair.nodes[1].engine.reply_limit(&stale), 0);
            pair.nodes[1].engine.write_bulk(&stale, 0, b"late");
            pair.nodes[1].engine.reply(&stale, b"", 0);
            assert_eq!(pair.nodes[1].queues.qp().script.posted, posted);
        }
        for node in &mut pair.nodes {
            node.engine.fail_peer(peer, LostCause::PeerLeft);
        }
        pair.bury();
        let next = PeerId(life + 1);
        let name = pair.nodes[0].engine.name(peer).unwrap();
        // An end that nobody has taken yet holds the queue pair back.
        assert_eq!(pair.nodes[0].engine.claim(next, name), None);
        let ended = pair.nodes[0]
            .engine
            .take_ended()
            .expect("the access with a tag ended");
        assert_eq!((ended.tag, ended.result.is_err()), (5, true));
        begin_anew(&mut pair, next);
        // Who asks late still learns what became of it.
        let engine = &mut pair.nodes[0].engine;
        for id in calls {
            let end = engine.poll_call(peer, id, Waker::noop(), &mut into);
            assert!(
                matches!(
                    end,
                    std::task::Poll::Ready(Err(Error::PeerLost {
                        cause: LostCause::PeerLeft,
                        ..
                    }))
                ),
                "{end:?}"
            );
        }
        assert!(engine.poll_op(peer, read, Waker::noop()).is_ready());
        assert_eq!(engine.state(next), Ok(LinkState::Up));
        assert_eq!(engine.test_link(0).0.slots_in_use(), (0, 0));
        let depth = config().depths().receive as usize;
        assert_eq!(engine.test_link(0).0.receives_posted(), depth);
    }
    assert_eq!(
        pair.nodes[0].engine.state(PEER),
        Err(Error::NotConnected(0))
    );
    // Why the latest were lost is remembered.
    let cause = |life| pair.nodes[0].engine.cause(PeerId(life));
    assert_eq!(
        [cause(1000), cause(999), cause(0)],
        [None, Some(LostCause::PeerLeft), None]
    );
}
