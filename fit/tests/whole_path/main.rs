//! Nodes over the real driver and the ConnectX-3 model, in one process and in virtual time.

mod bulk;
mod common;
mod pages;

use std::sync::{Arc, Mutex};

use common::{GUID, SHORT, SILENT, bytes, config, node, node_with_taken, pair, pair_of};

use fit::{Call, Config, Error, LinkState, LostCause, OneSided, Operation, PeerSpec, Piece, Role};
use hal::{DmaBuffer, Duration, Instant, Platform};
use harness::Testbed;
use harness::trace::{Command, Direction, Event, Purpose, Recorder};
use mad::cm::CmMessage;
use mlx4_hw::command::Opcode;
use mlx4_hw::qp::{QpMailbox, Service};
use verbs::{Gid, Guid, Psn, RemoteAddr, Rkey, Sge};
use zerocopy::FromBytes;

#[test]
fn calls_of_all_sizes_come_back() {
    let mut bed = Testbed::default();
    let (processor, _memory, peer) = pair(&mut bed);
    bed.block_on(async {
        let core = processor.fit.core(0);
        let (buffer, region) = processor.lent(64 << 10, 0).await;
        let mut reply = vec![0; 4096];
        for len in [0_usize, 1, 4, 32, 180, 300, 1000, 4072] {
            let request = vec![len.to_le_bytes()[0]; len];
            let got = core
                .call(peer, Call::new(3, &request), &mut reply)
                .await
                .unwrap();
            assert_eq!((&reply[..got.len], got.bulk), (&request[..], 0));
        }
        for len in [1, 4096, 5000, 65536] {
            buffer.fill(0, 64 << 10, 0);
            let pieces = [Piece::of(&region, 0, len)];
            let call = Call::new(7, b"x").scatter(&pieces);
            let got = core.call(peer, call, &mut reply).await.unwrap();
            assert_eq!(got.bulk, len);
            let len = len as usize;
            let expected = [vec![7; len], vec![0; (64 << 10) - len]].concat();
            assert!(bytes(&buffer, 64 << 10) == expected, "{len} bytes");
        }
        let long = vec![0; 4073];
        let error = core.call(peer, Call::new(3, &long), &mut reply).await;
        assert!(matches!(error, Err(Error::TooLong { limit: 4096, .. })));
    });
    assert_eq!(processor.machine.violations(), 0);
}

#[test]
fn more_calls_than_credits_all_end() {
    let mut bed = Testbed::default();
    let (processor, _memory, peer) = pair(&mut bed);
    let core = processor.fit.core(0);
    bed.block_on(async {
        let calls = (0..40_u8).map(|tag| {
            let core = core.clone();
            async move {
                let mut reply = [0; 64];
                let got = core
                    .call(peer, Call::new(3, &[tag; 50]), &mut reply)
                    .await
                    .unwrap();
                assert_eq!(reply[..got.len], [tag; 50]);
            }
        });
        futures_util::future::join_all(calls).await;
    });
    let counters = &core.link_counters()[0].2;
    assert_eq!((counters.nr_ib_send_reply, counters.calls[3]), (40, 40));
    assert!(counters.nr_back_pressure > 0);
    assert_eq!(counters.call_time.summary().count, 40);
}

#[test]
fn reads_and_writes_move_memory_in_order() {
    let mut bed = Testbed::default();
    let (processor, memory, peer) = pair(&mut bed);
    bed.block_on(async {
        let core = processor.fit.core(0);
        let (there, _, remote) = memory.memory(4096, 0x11).await;
        let (here, local, _) = processor.memory(4096, 0x22).await;
        core.read(peer, remote, local).await.unwrap();
        assert_eq!(bytes(&here, 4096), [0x11; 4096]);
        here.fill(0, 4096, 0x33);
        core.write(peer, local, remote).await.unwrap();
        assert_eq!(bytes(&there, 4096), [0x33; 4096]);
        // A batch: forty READs, more than may be outstanding at once, behind a WRITE that they must
        // see.
        here.fill(0, 4096, 0x44);
        let (copies, target, _) = processor.memory(40 * 4096, 0).await;
        let mut batch = core.batch(peer);
        let write = batch.add(OneSided::Write, remote, local).unwrap().unwrap();
        let reads: Vec<_> = (0..40_u64)
            .map(|page| {
                let into = Sge {
                    addr: target.addr + page * 4096,
                    len: 4096,
                    ..target
                };
                batch.add(OneSided::Read, remote, into).unwrap().unwrap()
            })
            .collect();
        let doorbells = core.link_counters()[0].2.nr_doorbells;
        drop(batch);
        assert_eq!(core.link_counters()[0].2.nr_doorbells, doorbells + 1);
        write.await.unwrap();
        for read in reads {
            read.await.unwrap();
        }
        assert!(bytes(&copies, 40 * 4096) == [0x44; 40 * 4096]);
    });
}

#[test]
fn a_key_that_does_not_fit_loses_the_connection_and_says_so() {
    let mut bed = Testbed::default();
    let (processor, memory, peer) = pair(&mut bed);
    bed.block_on(async {
        let core = processor.fit.core(0);
        // An answer: the other side has the connection up too, and will know whom it loses.
        core.call(peer, Call::new(3, b"there"), &mut [0; 8])
            .await
            .unwrap();
        let (_here, local, _) = processor.memory(4096, 0).await;
        let nowhere = RemoteAddr {
            addr: 0x1000,
            rkey: Rkey(0xdead_0000),
        };
        let error = core.read(peer, nowhere, local).await.unwrap_err();
        let cause = LostCause::Transport(verbs::Status::RemoteAccess);
        assert!(
            matches!(error, Error::PeerLost { cause: got, .. } if got == cause),
            "{error}"
        );
        // The other side is told, and so is its handler.
        while memory.handler.lost.lock().unwrap().is_empty() {
            memory.machine.sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(processor.handler.lost.lock().unwrap()[..], [peer]);
    });
}

#[test]
fn a_peer_that_does_not_answer_ends_the_call_at_its_deadline() {
    let mut bed = Testbed::default();
    let (processor, _memory, peer) = pair(&mut bed);
    let before = bed.now();
    bed.block_on(async {
        let core = processor.fit.core(0);
        let error = core
            .call(peer, Call::new(SILENT, b""), &mut [])
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
        // The connection itself is none the worse: the other worker still answers.
        assert!(
            core.call(peer, Call::new(3, b"x"), &mut [0; 8])
                .await
                .is_ok()
        );
    });
    let waited = bed.now().since(before);
    assert!(
        waited >= Duration::from_secs(5) && waited < Duration::from_secs(6),
        "{waited:?}"
    );
}

#[test]
fn a_dead_peer_ends_every_wait_by_an_error_that_names_it() {
    let mut bed = Testbed::default();
    let (processor, memory, peer) = pair(&mut bed);
    let before = bed.now();
    bed.block_on(async {
        let core = processor.fit.core(0);
        let (_there, _, remote) = memory.memory(4096, 0).await;
        let (_here, local, _) = processor.memory(4096, 0).await;
        let name = memory.spec().await.to_string();
        memory.machine.power_off();
        let (read, call) = futures_util::future::join(
            core.read(peer, remote, local),
            core.call(peer, Call::new(3, b""), &mut []),
        )
        .await;
        for (error, was) in [
            (read.unwrap_err(), Operation::Read),
            (call.unwrap_err(), Operation::Call(3)),
        ] {
            assert!(error.to_string().starts_with(&name), "{error}");
            let Error::PeerLost {
                waiting: Some(waiting),
                ..
            } = error
            else {
                panic!("{error}: what was waited for?")
            };
            assert_eq!(waiting.operation, was);
            assert!(
                waiting.age > Duration::ZERO && waiting.state != LinkState::Up,
                "{waiting:?}"
            );
        }
        // Nobody has waited for what comes too late.
        let again = core.read(peer, remote, local).await;
        assert!(matches!(again, Err(Error::PeerLost { waiting: None, .. })));
        assert!(processor.fit.lost_cause(peer).is_some());
    });
    assert!(bed.now().since(before) < Duration::from_secs(10));
}

#[test]
fn three_nodes_come_up_in_any_order() {
    let mut bed = Testbed::default();
    // The processor asks for peers that are not there yet.
    let processor = node(&mut bed, 1, Role::Processor, config());
    let gid = |index: u64| Gid::new(Gid::DEFAULT_PREFIX, Guid(GUID + (index << 8) + 1));
    let wanted = [(Role::Memory, 2), (Role::Storage, 3)].map(|(role, index)| PeerSpec {
        role,
        gid: gid(index),
    });
    let fit = processor.fit.clone();
    let done = Arc::new(Mutex::new(Vec::new()));
    let told = done.clone();
    bed.spawn(async move {
        for peer in wanted {
            let connected = fit.connect(peer).await;
            told.lock().unwrap().push(connected);
        }
    });
    let machine = processor.machine.clone();
    bed.block_on(machine.sleep(Duration::from_secs(3)));
    let memory = node(&mut bed, 2, Role::Memory, config());
    let storage = node(&mut bed, 3, Role::Storage, config());
    let specs = bed.block_on(async { [memory.spec().await, storage.spec().await] });
    assert_eq!(specs, wanted);
    bed.block_on(async {
        while done.lock().unwrap().len() < 2 {
            machine.sleep(Duration::from_millis(10)).await;
        }
        let core = processor.fit.core(0);
        let connected = core::mem::take(&mut *done.lock().unwrap());
        for peer in connected {
            let mut reply = [0; 8];
            assert_eq!(
                core.call(peer.unwrap(), Call::new(3, b"hello"), &mut reply)
                    .await
                    .unwrap()
                    .len,
                5
            );
        }
    });
}

#[test]
fn both_sides_may_call_each_other_at_once() {
    let mut bed = Testbed::default();
    let memory = node(&mut bed, 2, Role::Memory, config());
    let processor = node(&mut bed, 1, Role::Processor, config());
    bed.block_on(async {
        let (p, m) = (processor.spec().await, memory.spec().await);
        let both = futures_util::future::join(processor.fit.connect(m), memory.fit.connect(p));
        let (to_memory, to_processor) = both.await;
        let (to_memory, to_processor) = (to_memory.unwrap(), to_processor.unwrap());
        let mut reply = [0; 8];
        assert!(
            processor
                .fit
                .core(0)
                .call(to_memory, Call::new(3, b"a"), &mut reply)
                .await
                .is_ok()
        );
        assert!(
            memory
                .fit
                .core(0)
                .call(to_processor, Call::new(3, b"b"), &mut reply)
                .await
                .is_ok()
        );
    });
}

#[test]
fn a_peer_that_never_comes_is_named_when_the_time_is_over() {
    let mut bed = Testbed::default();
    let processor = node(&mut bed, 1, Role::Processor, config());
    let peer: PeerSpec = "memory@fe80::2:c903:0:1201".parse().unwrap();
    let error = bed.block_on(processor.fit.connect(peer)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("memory@fe80::2:c903:0:1201 did not connect within 30"),
        "{text}"
    );
}

#[test]
fn another_version_of_the_messages_is_refused() {
    let mut bed = Testbed::default();
    let other = Config {
        message_version: 9,
        ..config()
    };
    let memory = node(&mut bed, 2, Role::Memory, other);
    let processor = node(&mut bed, 1, Role::Processor, config());
    let error = bed.block_on(async { processor.fit.connect(memory.spec().await).await });
    assert!(
        matches!(error, Err(Error::Refused { reason: 28, .. })),
        "{error:?}"
    );
}

/// Remembers, by node, the PSNs that connection requests and acceptances name and those that queue
/// pairs expect.
#[derive(Default)]
struct Psns {
    named: Mutex<Vec<(String, Psn)>>,
    expected: Mutex<Vec<(String, Psn)>>,
    mailbox: Mutex<Vec<u8>>,
}

impl Recorder for Psns {
    fn record(&self, node: &str, _: Instant, event: &Event<'_>) {
        match *event {
            Event::Dma {
                direction: Direction::Read,
                purpose: Purpose::Mailbox,
                bytes,
                ..
            } => bytes.clone_into(&mut self.mailbox.lock().unwrap()),
            Event::Dma {
                direction: Direction::Read,
                purpose: Purpose::Payload,
                bytes,
                ..
            } => {
                let mad = bytes
                    .try_into()
                    .ok()
                    .and_then(|mad| CmMessage::parse(mad).ok());
                let psn = match mad {
                    Some((_, CmMessage::Req(req))) => req.starting_psn,
                    Some((_, CmMessage::Rep(rep))) => rep.starting_psn,
                    _ => return,
                };
                self.named.lock().unwrap().push((node.into(), psn));
            }
            Event::Command(Command {
                opcode: Opcode::INIT2RTR_QP,
                ..
            }) => {
                let mailbox = self.mailbox.lock().unwrap();
                let (mailbox, _) = QpMailbox::read_from_prefix(&mailbox).unwrap();
                if mailbox.context.flags.service() != Service::RC {
                    return;
                }
                let psn = Psn(mailbox.context.receive_psn.next_psn());
                self.expected.lock().unwrap().push((node.into(), psn));
            }
            _ => {}
        }
    }
}

/// IBA 1.3, 12.7.31: REQ and REP name the PSN that the other side begins with. Linux takes it so.
#[test]
fn each_side_expects_the_psn_that_it_named() {
    let mut bed = Testbed::default();
    let psns = Arc::new(Psns::default());
    bed.with_cluster(|cluster, _| cluster.record(Arc::clone(&psns) as _));
    let _nodes = pair(&mut bed);
    let named = psns.named.lock().unwrap().clone();
    assert!(named.len() >= 2, "{named:?}");
    for expected in psns.expected.lock().unwrap().iter() {
        assert!(named.contains(expected), "{expected:?} of {named:?}");
    }
}

/// B9 of LegoOS's journal: numbers of queue pairs were computed, and every other user of the card
/// shifted them.
#[test]
fn b9_queue_pairs_may_have_any_numbers() {
    let mut bed = Testbed::default();
    let memory = node_with_taken(&mut bed, 2, Role::Memory, config(), 7);
    let processor = node_with_taken(&mut bed, 1, Role::Processor, config(), 40);
    bed.block_on(async {
        let peer = processor.fit.connect(memory.spec().await).await.unwrap();
        let mut reply = [0; 8];
        let got = processor
            .fit
            .core(0)
            .call(peer, Call::new(3, b"b9"), &mut reply)
            .await;
        assert_eq!(got.unwrap().len, 2);
    });
}

#[test]
fn cores_have_queue_pairs_of_their_own_and_share_none() {
    let mut bed = Testbed::default();
    let config = Config {
        cores: 3,
        ..config()
    };
    let memory = node(&mut bed, 2, Role::Memory, config);
    let processor = node(&mut bed, 1, Role::Processor, config);
    let peer = bed
        .block_on(async { processor.fit.connect(memory.spec().await).await })
        .unwrap();
    bed.block_on(async {
        let (_there, _, remote) = memory.memory(4096, 0x11).await;
        let (_here, local, _) = processor.memory(4096, 0x22).await;
        // Each core has other work: as many calls as its number says, and one READ.
        let work = (0..3_u8).map(|index| {
            let core = processor.fit.core(index.into());
            async move {
                for _ in 0..=index {
                    let mut reply = [0; 8];
                    let got = core
                        .call(peer, Call::new(3, &[index; 4]), &mut reply)
                        .await
                        .unwrap();
                    assert_eq!(reply[..got.len], [index; 4]);
                }
                core.read(peer, remote, local).await.unwrap();
            }
        });
        futures_util::future::join_all(work).await;
    });
    for index in 0..3_u16 {
        let ours = processor.fit.core(index).link_counters();
        let theirs = memory.fit.core(index).link_counters();
        let calls = u64::from(index) + 1;
        assert_eq!((ours.len(), theirs.len()), (1, 1), "core {index}");
        assert_eq!((ours[0].2.calls[3], ours[0].2.nr_rdma_read), (calls, 1));
        assert_eq!(
            theirs[0].2.served[3], calls,
            "served by the same core there"
        );
        // Its own completion queue brought what it waited for: a reply for each call, and the READ.
        let completions = processor.fit.core(index).counters().nr_cqe;
        assert!(completions > calls, "core {index}: {completions}");
    }
    assert_eq!(processor.machine.violations(), 0);
}

#[test]
fn nodes_with_different_numbers_of_cores_share_no_queue_pair_either() {
    for (our_cores, their_cores) in [(1, 3), (3, 1), (2, 3)] {
        let mut bed = Testbed::default();
        let with = |cores| Config {
            cores,
            peers: 6,
            ..config()
        };
        let (processor, memory, peer) = pair_of(&mut bed, with(our_cores), with(their_cores));
        let lanes = u64::from(our_cores.max(their_cores));
        bed.block_on(async {
            let (_there, _, remote) = memory.memory(4096, 0x11).await;
            let (_here, local, _) = processor.memory(4096, 0x22).await;
            for index in 0..our_cores {
                let core = processor.fit.core(index);
                for tag in 0..12_u8 {
                    let mut reply = [0; 8];
                    let got = core.call(peer, Call::new(3, &[tag; 4]), &mut reply).await;
                    assert_eq!(reply[..got.unwrap().len], [tag; 4]);
                }
                core.read(peer, remote, local).await.unwrap();
            }
        });
        let (mut ours, mut served) = (0, Vec::new());
        for index in 0..our_cores {
            ours += processor.fit.core(index).link_counters().len() as u64;
        }
        for index in 0..their_cores {
            let counters = memory.fit.core(index).link_counters();
            served.push(
                counters
                    .iter()
                    .map(|(_, _, link)| link.served[3])
                    .sum::<u64>(),
            );
        }
        assert_eq!(ours, lanes, "{our_cores} and {their_cores} cores");
        assert_eq!(served.iter().sum::<u64>(), 12 * u64::from(our_cores));
        assert!(
            served.iter().all(|&count| count > 0),
            "each core there has its part: {served:?}"
        );
        // Lost on one core, lost on all, and told once.
        processor.fit.leave();
        bed.block_on(async {
            while memory.handler.lost.lock().unwrap().is_empty() {
                memory.machine.sleep(Duration::from_millis(10)).await;
            }
            memory.machine.sleep(Duration::from_millis(500)).await;
        });
        assert_eq!(memory.handler.lost.lock().unwrap().len(), 1);
        assert_eq!(processor.machine.violations(), 0);
    }
}

/// `cargo xtask bench rpc` shows what this prints.
#[test]
fn a_short_call_is_one_doorbell_and_one_packet_each_way() {
    const CALLS: u64 = 200;
    let mut bed = Testbed::default();
    let (processor, memory, peer) = pair(&mut bed);
    let nodes = [&processor, &memory];
    let look = |bed: &Testbed| {
        nodes.map(|node| {
            let card = bed.with_cluster(|cluster, _| cluster.counters(node.machine.node()));
            (card, node.fit.core(0).link_counters()[0].2.nr_doorbells)
        })
    };
    let core = processor.fit.core(0);
    bed.block_on(async {
        core.call(peer, Call::new(3, b"warm"), &mut [0; 4])
            .await
            .unwrap();
    });
    let before = look(&bed);
    bed.block_on(async {
        for _ in 0..CALLS {
            let got = core
                .call(peer, Call::new(SHORT, &[7; 32]), &mut [0; 4])
                .await;
            assert_eq!(got.unwrap().len, 4);
        }
    });
    let after = look(&bed);
    for (side, node) in ["caller", "callee"].into_iter().zip(0..) {
        let ((was, rung_before), (is, rung_after)) = (before[node], after[node]);
        let line = |what, count: u64| {
            println!(
                "counted\t{side}\t{what}\t{:.2}",
                count as f64 / CALLS as f64
            )
        };
        line("doorbells for sends", rung_after - rung_before);
        line("doorbells in all", is.doorbells - was.doorbells);
        line(
            "packets sent, with acknowledgements",
            is.packets_sent - was.packets_sent,
        );
        line("bytes sent", is.bytes_sent - was.bytes_sent);
        line("reads of memory", is.dma_reads - was.dma_reads);
        line("writes to memory", is.dma_writes - was.dma_writes);
        line("interrupts", is.interrupts - was.interrupts);
        assert_eq!(rung_after - rung_before, CALLS, "{side}: a doorbell a call");
        // A message and the acknowledgement of the other's; those may be left out or shared.
        let packets = is.packets_sent - was.packets_sent;
        assert!(
            (CALLS..=2 * CALLS).contains(&packets),
            "{side}: {packets} packets"
        );
    }
}
