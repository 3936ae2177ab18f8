//! Random traffic with lost, late, duplicated and error completions: each operation ends exactly once, no credit is lost,
//! no memory is touched after its owner got it back (the fake checks that at each step).

use std::task::{Poll, Waker};

use hal::{Duration, Instant};
use proptest::prelude::*;
use verbs::{RemoteAddr, Sge, Status};

use super::fake::{Buffer, Fault, PEER, Pair};
use crate::{Bulk, CallId, Config, Incoming, LinkState, LostCause, OneSided, OpId};

#[derive(Debug, Clone, Copy)]
enum Action {
    Call { len: usize, bulk: bool, tag: u8 },
    OneSided { read: bool },
    Step { node: usize, fault: Fault },
    Poll { node: usize },
    Take,
    Answer { oldest: bool },
    Look,
    DropCall,
    Wait { millis: u64 },
}

fn action() -> impl Strategy<Value = Action> {
    let fault = prop_oneof![
        60 => Just(Fault::None),
        2 => Just(Fault::LostCompletion),
        2 => Just(Fault::DuplicateCompletion),
        1 => prop_oneof![Just(Status::RetryExceeded), Just(Status::RemoteAccess)].prop_map(Fault::Error),
    ];
    prop_oneof![
        4 => (0usize..200, any::<bool>(), any::<u8>()).prop_map(|(len, bulk, tag)| Action::Call { len, bulk, tag }),
        4 => any::<bool>().prop_map(|read| Action::OneSided { read }),
        8 => (0usize..2, fault).prop_map(|(node, fault)| Action::Step { node, fault }),
        6 => (0usize..2).prop_map(|node| Action::Poll { node }),
        3 => Just(Action::Take),
        3 => any::<bool>().prop_map(|oldest| Action::Answer { oldest }),
        2 => Just(Action::Look),
        1 => Just(Action::DropCall),
        1 => (1u64..400).prop_map(|millis| Action::Wait { millis }),
    ]
}

struct WaitingCall {
    id: CallId,
    body: Vec<u8>,
    buffer: Option<Buffer>,
}

struct Run {
    pair: Pair,
    calls: Vec<WaitingCall>,
    ops: Vec<(OpId, Buffer)>,
    serving: Vec<(Incoming, Vec<u8>)>,
    there: Buffer,
}

const TIMEOUT: Duration = Duration::from_secs(1);

impl Run {
    fn new() -> Self {
        let config = Config {
            calls: 4,
            serves: 3,
            one_sided: 5,
            message_size: 256,
            bulk_size: 64,
            signal_every: 3,
            ..Config::default()
        };
        let mut pair = Pair::new(config);
        let there = pair.world.alloc(64);
        pair.lent.insert(there.sge().addr, 64);
        Self {
            pair,
            calls: Vec::new(),
            ops: Vec::new(),
            serving: Vec::new(),
            there,
        }
    }

    fn lend(&mut self) -> Buffer {
        let buffer = self.pair.world.alloc(64);
        self.pair.lent.insert(buffer.sge().addr, 64);
        buffer
    }

    fn deadline(&self) -> Instant {
        self.pair.now + TIMEOUT
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Call { len, bulk, tag } => {
                let buffer = bulk.then(|| self.lend());
                let bulk = buffer.as_ref().map(|buffer| Bulk {
                    into: buffer.remote(),
                    len: 64,
                });
                let body = vec![tag; len];
                let (now, deadline) = (self.pair.now, self.deadline());
                match self.pair.nodes[0]
                    .engine
                    .start_call(PEER, (3, &body), bulk, now, deadline)
                {
                    Ok(Some(id)) => self.calls.push(WaitingCall { id, body, buffer }),
                    _ => buffer.iter().for_each(|buffer| {
                        self.pair.lent.remove(&buffer.sge().addr);
                    }),
                }
            }
            Action::OneSided { read } => {
                let buffer = self.lend();
                let what = if read { OneSided::Read } else { OneSided::Write };
                let at: (RemoteAddr, Sge) = (self.there.remote(), buffer.sge());
                let (now, deadline) = (self.pair.now, self.deadline());
                if let Ok(Some(id)) = self.pair.nodes[0].engine.start_op(PEER, what, at, now, deadline) {
                    self.pair.nodes[0].engine.flush(PEER);
                    self.ops.push((id, buffer));
                } else {
                    self.pair.lent.remove(&buffer.sge().addr);
                }
            }
            Action::Step { node, fault } => {
                self.pair.step(node, fault);
            }
            Action::Poll { node } => self.pair.poll(node),
            Action::Take => {
                let mut request = vec![0; 256];
                if let Poll::Ready(incoming) = self.pair.nodes[1]
                    .engine
                    .poll_request(Waker::noop(), &mut request)
                {
                    request.truncate(incoming.len);
                    self.serving.push((incoming, request));
                }
            }
            Action::Answer { oldest } => self.answer(oldest),
            Action::Look => self.look(),
            Action::DropCall => {
                // Only a call that lends nothing: who drops one that does may not use its memory again.
                if let Some(at) = self.calls.iter().position(|call| call.buffer.is_none()) {
                    let call = self.calls.swap_remove(at);
                    self.pair.nodes[0].engine.abandon_call(PEER, call.id);
                }
            }
            Action::Wait { millis } => {
                self.pair.now = self.pair.now + Duration::from_millis(millis);
                self.tick();
            }
        }
    }

    fn tick(&mut self) {
        let now = self.pair.now;
        self.pair.nodes.iter_mut().for_each(|node| node.engine.tick(now));
        self.pair.bury();
    }

    fn answer(&mut self, oldest: bool) {
        if self.serving.is_empty() {
            return;
        }
        let at = if oldest { 0 } else { self.serving.len() - 1 };
        let (incoming, body) = self.serving.remove(at);
        let bulk = vec![1; incoming.bulk_limit as usize];
        self.pair.nodes[1].engine.write_bulk(&incoming, 0, &bulk);
        self.pair.nodes[1]
            .engine
            .reply(&incoming, &body, incoming.bulk_limit);
    }

    /// Takes the ends of whatever has ended; an answer must be the request's own bytes.
    fn look(&mut self) {
        let engine = &mut self.pair.nodes[0].engine;
        let lent = &mut self.pair.lent;
        self.calls.retain(|call| {
            let mut reply = [0; 256];
            match engine.poll_call(PEER, call.id, Waker::noop(), &mut reply) {
                Poll::Pending => return true,
                Poll::Ready(Ok(got)) => assert_eq!(reply[..got.len], call.body[..]),
                Poll::Ready(Err(_)) => {}
            }
            call.buffer.iter().for_each(|buffer| {
                lent.remove(&buffer.sge().addr);
            });
            false
        });
        self.ops.retain(|(id, buffer)| {
            let ended = engine.poll_op(PEER, *id, Waker::noop()).is_ready();
            if ended {
                lent.remove(&buffer.sge().addr);
            }
            !ended
        });
    }

    /// Lets everything end: first the traffic, then the deadlines.
    fn settle(&mut self) {
        for _ in 0..50 {
            for node in 0..2 {
                while self.pair.step(node, Fault::None) {}
                self.pair.poll(node);
            }
            self.act(Action::Take);
            self.answer(true);
            self.look();
        }
        self.pair.now = self.pair.now + TIMEOUT;
        self.tick();
        self.look();
        // A side that lost the connection says so by a DREQ; without it the other keeps the slots of calls that were
        // dropped, as their replies may still come.
        for node in 0..2 {
            if self.pair.nodes[1 - node].engine.state(PEER) == Ok(LinkState::Down) {
                self.pair.nodes[node].engine.fail(0, LostCause::PeerLeft);
            }
        }
        self.pair.bury();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn everything_ends_once_and_no_credit_is_lost(actions in proptest::collection::vec(action(), 0..150)) {
        let mut run = Run::new();
        for action in actions {
            run.act(action);
        }
        run.settle();
        prop_assert_eq!(run.calls.len(), 0, "calls without an end");
        prop_assert_eq!(run.ops.len(), 0, "accesses without an end");
        for node in 0..2 {
            let state = run.pair.nodes[node].engine.state(PEER).unwrap();
            let (link, _) = run.pair.nodes[node].engine.test_link(0);
            prop_assert_eq!(link.slots_in_use(), (0, 0));
            if state == LinkState::Up {
                prop_assert_eq!(link.receives_posted(), 7 + 2 * crate::keepalive::PINGS as usize);
            } else {
                prop_assert_eq!(state, LinkState::Down);
                prop_assert_eq!(link.ring.outstanding(), 0);
            }
        }
    }
}
