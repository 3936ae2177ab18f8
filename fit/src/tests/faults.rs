//! Random traffic with lost, late, duplicated and error completions: each operation ends exactly
//! once, no credit is lost, no memory is touched after its owner got it back (the fake checks that
//! at each step).

use std::task::{Poll, Waker};

use hal::{DmaBuffer, Duration, Instant};
use proptest::prelude::*;
use verbs::{RemoteAddr, Sge, Status};

use super::fake::{Buffer, Fault, PEER, Pair};
use crate::{Call, CallId, Config, Incoming, LinkState, LostCause, OneSided, OpId};

#[derive(Debug, Clone, Copy)]
enum Action {
    /// With room for bulk of the reply, and bulk of the request in pieces of so many bytes.
    Call {
        len: usize,
        bulk: bool,
        pieces: [usize; 2],
        tag: u8,
    },
    OneWay {
        tag: u8,
    },
    OneSided {
        read: bool,
    },
    Step {
        node: usize,
        fault: Fault,
    },
    Poll {
        node: usize,
    },
    Take,
    Answer {
        oldest: bool,
    },
    Look,
    DropCall,
    Wait {
        millis: u64,
    },
}

fn action() -> impl Strategy<Value = Action> {
    let fault = prop_oneof![
        60 => Just(Fault::None),
        2 => Just(Fault::LostCompletion),
        2 => Just(Fault::DuplicateCompletion),
        1 => prop_oneof![Just(Status::RetryExceeded), Just(Status::RemoteAccess)].prop_map(Fault::Error),
    ];
    prop_oneof![
        2 => (0usize..200, any::<bool>(), any::<u8>())
            .prop_map(|(len, bulk, tag)| Action::Call { len, bulk, pieces: [0; 2], tag }),
        3 => (0usize..40, any::<bool>(), [0usize..300, 0usize..300], any::<u8>())
            .prop_map(|(len, bulk, pieces, tag)| Action::Call { len, bulk, pieces, tag }),
        3 => any::<u8>().prop_map(|tag| Action::OneWay { tag }),
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
    lent: Vec<Buffer>,
}

struct Run {
    pair: Pair,
    calls: Vec<WaitingCall>,
    ops: Vec<(OpId, Buffer)>,
    serving: Vec<(Incoming, Vec<u8>)>,
    there: Buffer,
    /// One-way messages that were sent, and how many of them a handler has seen.
    sent: Vec<u8>,
    seen: usize,
}

const TIMEOUT: Duration = Duration::from_secs(1);

impl Run {
    fn new() -> Self {
        let config = Config {
            calls: 4,
            serves: 3,
            one_sided: 5,
            message_size: 256,
            bulk_size: 500,
            bulk_buffers: 3,
            one_ways: 3,
            signal_every: 3,
            ..Config::default()
        };
        let mut pair = Pair::new(config);
        let there = pair.lend(64);
        Self {
            pair,
            calls: Vec::new(),
            ops: Vec::new(),
            serving: Vec::new(),
            there,
            sent: Vec::new(),
            seen: 0,
        }
    }

    fn take_back(&mut self, buffers: &[Buffer]) {
        buffers
            .iter()
            .for_each(|buffer| self.pair.take_back(buffer));
    }

    fn deadline(&self) -> Instant {
        self.pair.now + TIMEOUT
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Call {
                len,
                bulk,
                pieces,
                tag,
            } => self.call(&vec![tag; len], bulk, pieces, tag),
            Action::OneWay { tag } => {
                if let Ok(Some(())) = self.pair.nodes[0].engine.start_one_way(PEER, 9, &[tag; 20]) {
                    self.sent.push(tag);
                }
            }
            Action::OneSided { read } => {
                let buffer = self.pair.lend(64);
                let what = if read {
                    OneSided::Read
                } else {
                    OneSided::Write
                };
                let at: (RemoteAddr, Sge) = (self.there.remote(), buffer.sge());
                let (now, deadline) = (self.pair.now, self.deadline());
                if let Ok(Some(id)) = self.pair.nodes[0]
                    .engine
                    .start_op(PEER, what, at, now, deadline)
                {
                    self.pair.nodes[0].engine.flush(PEER);
                    self.ops.push((id, buffer));
                } else {
                    self.pair.take_back(&buffer);
                }
            }
            Action::Step { node, fault } => {
                self.pair.step(node, fault);
            }
            Action::Poll { node } => self.pair.poll(node),
            Action::Take => self.take(),
            Action::Answer { oldest } => self.answer(oldest),
            Action::Look => self.look(),
            Action::DropCall => {
                // Only a call that lends nothing: who drops one that does may not use its memory
                // again.
                if let Some(at) = self.calls.iter().position(|call| call.lent.is_empty()) {
                    let call = self.calls.swap_remove(at);
                    self.pair.nodes[0].engine.abandon_call(call.id);
                }
            }
            Action::Wait { millis } => {
                self.pair.now = self.pair.now + Duration::from_millis(millis);
                self.tick();
            }
        }
    }

    fn call(&mut self, body: &[u8], bulk: bool, pieces: [usize; 2], tag: u8) {
        let mut gather = Vec::new();
        for len in pieces.into_iter().filter(|_| pieces != [0; 2]) {
            let buffer = self.pair.lend(len);
            buffer.write(0, &vec![!tag; len]);
            gather.push(buffer);
        }
        let scatter: Vec<_> = if bulk {
            vec![self.pair.lend(40), self.pair.lend(24)]
        } else {
            Vec::new()
        };
        let of = |buffers: &[Buffer]| buffers.iter().map(Buffer::piece).collect::<Vec<_>>();
        let (gathered, scattered) = (of(&gather), of(&scatter));
        let call = Call::new(3, body).gather(&gathered).scatter(&scattered);
        let (now, deadline) = (self.pair.now, self.deadline());
        let lent = gather.into_iter().chain(scatter).collect();
        match self.pair.nodes[0]
            .engine
            .start_call(PEER, &call, now, deadline)
        {
            Ok(Some(id)) => self.calls.push(WaitingCall {
                id,
                body: body.to_vec(),
                lent,
            }),
            _ => self.take_back(&lent),
        }
    }

    /// A handler takes the next message: one-way messages come once and in order, and a request's
    /// bulk is what was sent.
    fn take(&mut self) {
        let mut request = vec![0; 256];
        let engine = &mut self.pair.nodes[1].engine;
        let Poll::Ready(incoming) = engine.poll_request(Waker::noop(), &mut request) else {
            return;
        };
        if incoming.one_way {
            assert_eq!(request[..incoming.len], [self.sent[self.seen]; 20]);
            self.seen += 1;
            return;
        }
        let mut bulk = vec![0; incoming.bulk_len as usize];
        if incoming.carried {
            let len = bulk.len();
            bulk.copy_from_slice(&request[incoming.len..][..len]);
        } else {
            assert_eq!(engine.read_bulk(&incoming, 0, &mut bulk), bulk.len());
        }
        request.truncate(incoming.len);
        if let (Some(&tag), Some(&first)) = (request.first(), bulk.first()) {
            assert_eq!(first, !tag);
        }
        assert!(bulk.iter().all(|byte| *byte == bulk[0]));
        self.serving.push((incoming, request));
    }

    fn tick(&mut self) {
        let now = self.pair.now;
        self.pair
            .nodes
            .iter_mut()
            .for_each(|node| node.engine.tick(now));
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
        let memory = &self.pair.memory;
        self.calls.retain(|call| {
            let mut reply = [0; 256];
            match engine.poll_call(PEER, call.id, Waker::noop(), &mut reply) {
                Poll::Pending => return true,
                Poll::Ready(Ok(got)) => assert_eq!(reply[..got.len], call.body[..]),
                Poll::Ready(Err(_)) => {}
            }
            call.lent.iter().for_each(|buffer| {
                memory.take_back(buffer.sge().addr);
            });
            false
        });
        self.ops.retain(|(id, buffer)| {
            let ended = engine.poll_op(PEER, *id, Waker::noop()).is_ready();
            if ended {
                memory.take_back(buffer.sge().addr);
            }
            !ended
        });
    }

    /// Lets messages in flight arrive, and be taken and answered.
    fn flow(&mut self) {
        for node in 0..2 {
            while self.pair.step(node, Fault::None) {}
            self.pair.poll(node);
        }
        self.act(Action::Take);
        self.answer(true);
        self.look();
    }

    /// Lets everything end: first the traffic, then the deadlines, at last what no completion has
    /// come for.
    fn settle(&mut self) {
        (0..50).for_each(|_| self.flow());
        for _ in 0..12 {
            self.pair.now = self.pair.now + TIMEOUT;
            self.tick();
            (0..3).for_each(|_| self.flow());
        }
        // A side that lost the connection says so by a DREQ; without it the other keeps the slots
        // of calls that were dropped, as their replies may still come.
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
            prop_assert_eq!(link.free_buffers(), 3, "buffers for bulk");
            if state == LinkState::Up {
                prop_assert_eq!(link.receives_posted(), link.receives());
                prop_assert_eq!(run.seen, run.sent.len(), "one-way messages");
            } else {
                prop_assert_eq!(state, LinkState::Down);
                prop_assert_eq!(link.sends_outstanding(), 0);
            }
        }
    }
}
