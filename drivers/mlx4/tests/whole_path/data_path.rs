//! Bytes from one machine's memory to another's, by every operation.

use std::pin::pin;

use futures_util::future::{Either, select};
use hal::{DmaBuffer, Duration, Platform};
use harness::{ClusterConfig, FabricConfig, Testbed};
use verbs::{
    Access, Completion, CompletionKind, Device, Domain, Parameter, Payload, QKey, QpConfig, QpKind,
    Qpn, QueueSet, RcParameters, SendOp, Status, UdAddress,
};

use crate::common::{
    ALL, End, Node, RC, address, connect, guid, log, pattern, rc_config, request, start,
    start_with, two_nodes,
};

const SIZES: [usize; 8] = [1, 63, 64, 1023, 1024, 1025, 65_536, 1 << 20];
const SEND: SendOp = SendOp::Send { imm: None };

#[test]
fn send_and_receive_at_all_sizes() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let (mut left, mut right) = connect(&a, &b, &rc_config(8), &RC).await;
        let from = a.memory(1 << 20, ALL).await;
        let into = b.memory(1 << 20, ALL).await;
        for (round, len) in SIZES.into_iter().enumerate() {
            let data = pattern(len, round);
            from.write(&data);
            let sent = u32::try_from(len).unwrap();
            right.receive(7, &[into.sge(0, 1 << 20)]);
            left.send(9, SEND, Payload::Gather(&[from.sge(0, sent)]));
            let got = right.next(&b.platform).await;
            assert_eq!((got.id, got.status, got.bytes), (7, Status::Success, sent));
            assert_eq!(got.kind, CompletionKind::Receive);
            let done = left.next(&a.platform).await;
            assert_eq!((done.id, done.status), (9, Status::Success));
            assert_eq!(into.bytes(len), data, "{len} bytes");
        }
    });
    assert_eq!((a.platform.violations(), b.platform.violations()), (0, 0));
}

#[test]
fn write_and_read_at_all_sizes() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let (mut left, _right) = connect(&a, &b, &rc_config(8), &RC).await;
        let from = a.memory(1 << 20, ALL).await;
        let back = a.memory(1 << 20, ALL).await;
        let there = b.memory(1 << 20, ALL).await;
        for (round, len) in SIZES.into_iter().enumerate() {
            let data = pattern(len, round);
            from.write(&data);
            let bytes = u32::try_from(len).unwrap();
            let write = SendOp::Write {
                to: there.remote(0),
                imm: None,
            };
            left.send(1, write, Payload::Gather(&[from.sge(0, bytes)]));
            // Posted behind the WRITE on the same queue pair: it sees what was written.
            let read = SendOp::Read {
                from: there.remote(0),
            };
            left.send(2, read, Payload::Gather(&[back.sge(0, bytes)]));
            assert_eq!(left.next(&a.platform).await.status, Status::Success);
            let done = left.next(&a.platform).await;
            assert_eq!(
                (done.id, done.status, done.bytes),
                (2, Status::Success, bytes)
            );
            assert_eq!(there.bytes(len), data, "{len} bytes there");
            assert_eq!(back.bytes(len), data, "{len} bytes back");
        }
    });
}

#[test]
fn immediates_reach_the_receiver() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let (mut left, mut right) = connect(&a, &b, &rc_config(8), &RC).await;
        let from = a.memory(4096, ALL).await;
        let there = b.memory(4096, ALL).await;
        right.receive(1, &[]);
        right.receive(2, &[there.sge(0, 64)]);
        let data = pattern(300, 3);
        from.write(&data);
        let write = SendOp::Write {
            to: there.remote(1000),
            imm: Some(0xdead_beef),
        };
        left.send(0, write, Payload::Gather(&[from.sge(0, 300)]));
        let send = SendOp::Send {
            imm: Some(0x0102_0304),
        };
        left.send(0, send, Payload::Gather(&[from.sge(0, 10)]));
        let first = right.next(&b.platform).await;
        assert_eq!((first.id, first.kind), (1, CompletionKind::ReceiveWrite));
        assert_eq!((first.imm, first.bytes), (Some(0xdead_beef), 300));
        let second = right.next(&b.platform).await;
        assert_eq!(
            (second.id, second.imm, second.bytes),
            (2, Some(0x0102_0304), 10)
        );
        assert_eq!(there.bytes(1300)[1000..], data);
    });
}

#[test]
fn inline_and_scattered_data_arrives_whole() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let (mut left, mut right) = connect(&a, &b, &rc_config(8), &RC).await;
        let from = a.memory(4096, ALL).await;
        let into = b.memory(4096, ALL).await;
        for len in [0, 1, 27, 28, 29, 43, 44, 45, 108, 220] {
            let data = pattern(len, len);
            right.receive(len as u64, &[into.sge(0, 16), into.sge(1000, 3000)]);
            left.send(1, SEND, Payload::Inline(&data[..len / 3], &data[len / 3..]));
            let got = right.next(&b.platform).await;
            assert_eq!((got.status, got.bytes as usize), (Status::Success, len));
            let bytes = into.bytes(4000);
            let (head, tail) = data.split_at(len.min(16));
            assert_eq!(
                (&bytes[..head.len()], &bytes[1000..1000 + tail.len()]),
                (head, tail)
            );
            assert_eq!(left.next(&a.platform).await.status, Status::Success);

            // The way of its own that such a SEND has. Unsignalled, it ends with the WRITE behind
            // it.
            right.receive(4, &[into.sge(0, 4000)]);
            let (head, rest) = data.split_at(len.min(24));
            let posted = left.queues.send_inline(left.slot, 4, false, head, rest);
            assert_eq!(posted, Ok(()));
            left.queues.ring(left.slot);
            let got = right.next(&b.platform).await;
            assert_eq!(
                (got.id, got.status, got.bytes as usize),
                (4, Status::Success, len)
            );
            assert_eq!(into.bytes(len), data);

            let write = SendOp::Write {
                to: into.remote(2000),
                imm: None,
            };
            left.send(
                2,
                write,
                Payload::Inline(&data[..len.min(24)], &data[len.min(24)..]),
            );
            assert_eq!(left.next(&a.platform).await.status, Status::Success);
            assert_eq!(into.bytes(2000 + len)[2000..], data);
        }
        from.write(&pattern(4096, 1));
        right.receive(3, &[into.sge(0, 4096)]);
        left.send(
            3,
            SEND,
            Payload::Gather(&[from.sge(100, 50), from.sge(3000, 70)]),
        );
        assert_eq!(right.next(&b.platform).await.bytes, 120);
        let (bytes, data) = (into.bytes(120), pattern(4096, 1));
        assert_eq!(
            (&bytes[..50], &bytes[50..]),
            (&data[100..150], &data[3000..3070])
        );
    });
}

/// Sends `count` numbered messages with one completion in `every`.
async fn stream(a: &Node, left: &mut End, b: &Node, right: &mut End, count: u32, every: u32) {
    let into = b.memory(4096, ALL).await;
    let depth = right.queues_depth();
    for id in 0..depth {
        right.receive(id.into(), &[into.sge(u64::from(id) * 8, 8)]);
    }
    let (mut sent, mut received) = (0, 0);
    while received < count {
        while sent < count && sent - received < depth {
            let data = sent.to_le_bytes();
            let mut send = request(sent.into(), SEND, Payload::Inline(&data, &[]));
            send.signalled = sent % every == every - 1;
            match left.queues.post_send(left.slot, &send) {
                Ok(()) => sent += 1,
                Err(verbs::Error::QueueFull { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
        left.queues.ring(left.slot);
        let got = right.next(&b.platform).await;
        let place = u64::from(received % depth);
        assert_eq!((got.id, got.status), (place, Status::Success));
        let mut bytes = [0; 4];
        into.buffer
            .read(usize::try_from(place).unwrap() * 8, &mut bytes);
        assert_eq!(u32::from_le_bytes(bytes), received);
        right.receive(place, &[into.sge(place * 8, 8)]);
        received += 1;
        let mut done = [Completion::EMPTY; 4];
        left.queues.poll(&mut done).unwrap();
    }
    assert_eq!(a.platform.violations(), 0);
}

impl End {
    /// The receives that `stream` keeps posted.
    fn queues_depth(&self) -> u32 {
        8
    }
}

#[test]
fn selective_signalling_over_many_wraps() {
    // With a way to go, so that the queue fills.
    let mut bed = Testbed::new(ClusterConfig {
        fabric: FabricConfig {
            latency: Duration::from_micros(2),
            ..FabricConfig::default()
        },
    });
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let (mut left, mut right) = connect(&a, &b, &rc_config(8), &RC).await;
        // More than 2^16 would be slow here; the counters' wrap is tested with the rings.
        stream(&a, &mut left, &b, &mut right, 1000, 4).await;
    });
}

#[test]
fn a_full_queue_and_a_wrong_request_are_refused_by_post() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let (mut left, _right) = connect(&a, &b, &rc_config(8), &RC).await;
        let more = request(0, SEND, Payload::Inline(b"x", &[]));
        let mut posted = 0;
        let full = loop {
            match left.queues.post_send(left.slot, &more) {
                Ok(()) => posted += 1,
                Err(error) => break error,
            }
            assert!(posted < 1000, "the queue is never full");
        };
        assert!(matches!(full, verbs::Error::QueueFull { .. }), "{full}");
        assert!(posted >= 8);
        let full = left.queues.send_inline(left.slot, 0, true, b"x", &[]);
        assert!(matches!(full, Err(verbs::Error::QueueFull { .. })));
        let slot = left.slot;
        let (mut fresh, _) = connect(&a, &b, &rc_config(8), &RC).await;
        let long = [0; 1000];
        let large = request(0, SEND, Payload::Inline(&long, &[]));
        assert!(matches!(
            fresh.queues.post_send(slot, &large),
            Err(verbs::Error::TooLarge { .. })
        ));
        assert!(matches!(
            fresh.queues.send_inline(slot, 0, true, &long, b"x"),
            Err(verbs::Error::TooLarge { .. })
        ));
        let from = verbs::RemoteAddr::default();
        let read = request(0, SendOp::Read { from }, Payload::Inline(b"x", &[]));
        assert!(matches!(
            fresh.queues.post_send(slot, &read),
            Err(verbs::Error::NotPossible { .. })
        ));
    });
}

const QKEY: QKey = QKey(0x1234);

#[test]
fn datagrams_name_their_sender() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let config = QpConfig {
            kind: QpKind::Datagram { qkey: QKEY },
            ..rc_config(8)
        };
        let mut ends = Vec::new();
        for node in [&a, &b] {
            let mut queues = node.device.create_queues(32, 0).await.unwrap();
            let (slot, qpn) = node.device.create_qp(&mut queues, &config).await.unwrap();
            node.device.ready_to_send(qpn, None, &RC).await.unwrap();
            ends.push(End { queues, slot, qpn });
        }
        let [mut left, mut right] = <[End; 2]>::try_from(ends).ok().unwrap();
        let into = b.memory(4096, ALL).await;
        let from = a.memory(4096, ALL).await;
        let data = pattern(1000, 5);
        from.write(&data);
        let to = UdAddress {
            address: address(&b).await,
            qpn: right.qpn,
            qkey: QKEY,
            sl: 0,
            gid: None,
        };
        for (to, arrives) in [
            (to, true),
            (
                UdAddress {
                    qkey: QKey(1),
                    ..to
                },
                false,
            ),
        ] {
            right.receive(1, &[into.sge(0, 4096)]);
            let pieces = [from.sge(0, 1000)];
            let mut send = request(2, SEND, Payload::Gather(&pieces));
            send.to = Some(to);
            left.post(&send);
            left.queues.ring(left.slot);
            assert_eq!(left.next(&a.platform).await.status, Status::Success);
            b.platform.sleep(Duration::from_millis(1)).await;
            let mut got = [Completion::EMPTY];
            assert_eq!(right.queues.poll(&mut got), Ok(usize::from(arrives)));
            if arrives {
                let source = got[0].source.unwrap();
                assert_eq!(
                    (got[0].bytes, source.qpn, source.address),
                    (1040, left.qpn, address(&a).await)
                );
                assert_eq!(into.bytes(1040)[40..], data);
            }
        }
        let write = request(
            0,
            SendOp::Write {
                to: into.remote(0),
                imm: None,
            },
            Payload::Inline(b"x", &[]),
        );
        assert!(matches!(
            left.queues.post_send(left.slot, &write),
            Err(verbs::Error::NotPossible { .. })
        ));
        // It names no destination.
        assert!(matches!(
            left.queues.send_inline(left.slot, 0, true, b"x", &[]),
            Err(verbs::Error::NotPossible { .. })
        ));
    });
}

#[test]
fn completion_interrupts_wake_the_waiter() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let (mut left, mut right) = connect(&a, &b, &rc_config(8), &RC).await;
        let into = b.memory(4096, ALL).await;
        // More than an event queue holds.
        for id in 0..600 {
            right.receive(id, &[into.sge(0, 64)]);
            right.queues.arm(false);
            let send = async {
                a.platform.sleep(Duration::from_micros(10)).await;
                left.send(id, SEND, Payload::Inline(b"wake up", &[]));
                a.platform.sleep(Duration::from_secs(1)).await;
            };
            // The waiter is there first, so that only an interrupt wakes it.
            let woken = {
                let (wait, send) = (pin!(b.device.wait_completion(0)), pin!(send));
                matches!(select(wait, send).await, Either::Left((Ok(()), _)))
            };
            assert!(woken, "message {id}");
            assert_eq!(right.next(&b.platform).await.id, id);
            left.next(&a.platform).await;
        }
        assert!(matches!(
            b.device.wait_completion(9).await,
            Err(verbs::Error::OutOfRange { .. })
        ));
    });
}

#[test]
fn each_vector_has_its_own_queue_sets() {
    log();
    let mut bed = Testbed::default();
    let machine = bed.add_machine("a", guid(0));
    let config = mlx4::Config {
        completion_vectors: 3,
        ..mlx4::Config::default()
    };
    let node = start_with(&mut bed, machine, config);
    bed.block_on(async {
        for vector in 0..3 {
            let queues = node.device.create_queues(16, vector).await.unwrap();
            node.device.destroy_queues(queues).await.unwrap();
        }
        assert!(node.device.create_queues(16, 3).await.is_err());
    });
}

#[test]
fn a_removed_queue_pair_leaves_nothing_behind() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let before = a.platform.allocated();
        for _ in 0..3 {
            let (mut left, mut right) = connect(&a, &b, &rc_config(8), &RC).await;
            let into = b.memory(64, ALL).await;
            right.receive(0, &[into.sge(0, 64)]);
            left.send(0, SEND, Payload::Inline(b"never polled", &[]));
            a.platform.sleep(Duration::from_millis(1)).await;
            a.device
                .destroy_qp(&mut left.queues, left.slot)
                .await
                .unwrap();
            // Its completion is gone with it.
            assert_eq!(left.queues.poll(&mut [Completion::EMPTY]), Ok(0));
            a.device.destroy_queues(left.queues).await.unwrap();
            b.device.deregister(&into.region).await.unwrap();
        }
        assert_eq!(a.platform.allocated(), before);
    });
}

#[test]
fn management_datagrams_go_from_user_to_user() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let mut mad = [0; 256];
        mad[..4].copy_from_slice(&[1, 7, 2, 3]);
        mad[255] = 0x77;
        let to = address(&b).await;
        a.device
            .send_mad(1, to, verbs::PKey::DEFAULT, &mad)
            .await
            .unwrap();
        b.platform.sleep(Duration::from_millis(1)).await;
        assert_eq!(b.device.take_mad(1), Some((address(&a).await, mad)));
        assert_eq!(b.device.take_mad(1), None);
        assert!(
            a.device
                .send_mad(2, to, verbs::PKey::DEFAULT, &mad)
                .await
                .is_err()
        );
    });
}

#[test]
fn parameters_out_of_range_are_named() {
    log();
    let mut bed = Testbed::default();
    let machine = bed.add_machine("a", guid(0));
    let node = start(&mut bed, machine);
    bed.block_on(async {
        let mut queues = node.device.create_queues(16, 0).await.unwrap();
        let (_, qpn) = node
            .device
            .create_qp(&mut queues, &rc_config(4))
            .await
            .unwrap();
        let path = verbs::PathToPeer {
            address: verbs::Lid(2).into(),
            qpn: Qpn(99),
            their_psn: verbs::Psn(0),
            our_psn: verbs::Psn(0),
            mtu: 1500,
            sl: 0,
        };
        let out_of_range = |result: Result<(), verbs::Error>, name: Parameter| match result {
            Err(verbs::Error::OutOfRange { parameter, .. }) => assert_eq!(parameter, name),
            other => panic!("{other:?}"),
        };
        out_of_range(
            node.device.ready_to_receive(qpn, &path, &RC).await,
            Parameter::PathMtu,
        );
        let for_ever = RcParameters { rnr_retry: 7, ..RC };
        out_of_range(
            node.device.ready_to_send(qpn, Some(&path), &for_ever).await,
            Parameter::RnrRetries,
        );
        let zero = node
            .device
            .register(Domain::default(), 0x1000, 0, Access::default())
            .await;
        out_of_range(zero.map(drop), Parameter::RegionLen);
        let wrong = QpConfig {
            port: 2,
            ..rc_config(4)
        };
        out_of_range(
            node.device.create_qp(&mut queues, &wrong).await.map(drop),
            Parameter::Port,
        );
        let strange = QpConfig {
            domain: Domain(node.device.limits().max_domains),
            ..rc_config(4)
        };
        let refused = node.device.create_qp(&mut queues, &strange).await;
        out_of_range(refused.map(drop), Parameter::Domain);
        let refused = node
            .device
            .register(strange.domain, 0x1000, 4096, Access::default())
            .await;
        out_of_range(refused.map(drop), Parameter::Domain);
    });
}
