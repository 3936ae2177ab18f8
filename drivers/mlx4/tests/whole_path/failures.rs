//! Failures of the fabric, of the peer and of the card, and the errors that report them.

use futures_util::future::{Either, select};
use hal::{Duration, Platform};
use harness::{ClusterConfig, FabricConfig, Faults, Faulty, LinkFaults, Testbed};
use mlx4::{Config, Mlx4};
use proptest::prelude::*;
use verbs::{
    Access, Completion, CompletionKind, Device, DeviceEvent, Domain, Payload, QpConfig, QueueSet,
    RemoteAddr, Rkey, SendOp, Status,
};

use crate::common::{
    ALL, End, Node, RC, connect, guid, log, pattern, rc_config, request, start, start_served,
    two_nodes,
};

const SEND: SendOp = SendOp::Send { imm: None };

async fn write(a: &Node, left: &mut End, to: RemoteAddr) -> Status {
    let op = SendOp::Write { to, imm: None };
    left.send(1, op, Payload::Inline(b"forbidden", &[]));
    left.next(&a.platform).await.status
}

#[test]
fn remote_access_ends_at_a_region_and_at_its_rights() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let read_only = Access {
            local_write: true,
            remote_read: true,
            remote_write: false,
        };
        let there = b.memory(8192, ALL).await;
        let guarded = b.memory(4096, read_only).await;
        let gone = b.memory(4096, ALL).await;
        b.device.deregister(&gone.region).await.unwrap();
        let cases = [
            (
                "a key that never was",
                RemoteAddr {
                    rkey: Rkey(0x7700_0001),
                    ..there.remote(0)
                },
            ),
            ("beyond the end", there.remote(8190)),
            (
                "before the start",
                RemoteAddr {
                    addr: there.region.addr - 1,
                    ..there.remote(0)
                },
            ),
            ("no right to write", guarded.remote(0)),
            ("a region taken back", gone.remote(0)),
        ];
        for (case, to) in cases {
            let (mut left, mut right) = connect(&a, &b, &rc_config(4), &RC).await;
            right.receive(5, &[]);
            assert_eq!(
                write(&a, &mut left, to).await,
                Status::RemoteAccess,
                "{case}"
            );
            // Both ends are in error now: what is posted is flushed.
            left.send(2, SEND, Payload::Inline(b"late", &[]));
            let late = left.next(&a.platform).await;
            assert_eq!((late.id, late.status), (2, Status::Flushed), "{case}");
            let flushed = right.next(&b.platform).await;
            assert_eq!(
                (flushed.id, flushed.status, flushed.kind),
                (5, Status::Flushed, CompletionKind::Receive)
            );
            b.platform.sleep(Duration::from_millis(1)).await;
            let events: Vec<_> = std::iter::from_fn(|| b.device.take_event()).collect();
            assert!(
                events.contains(&DeviceEvent::QpFailed { qpn: right.qpn }),
                "{case}: {events:?}"
            );
        }
        assert_eq!(guarded.bytes(9), [0; 9]);
    });
}

#[test]
fn a_queue_pair_without_the_right_refuses_writes() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let config = QpConfig {
            remote_access: Access {
                remote_read: true,
                ..Access::default()
            },
            ..rc_config(4)
        };
        let there = b.memory(4096, ALL).await;
        let (mut left, _right) = connect(&a, &b, &config, &RC).await;
        let status = write(&a, &mut left, there.remote(0)).await;
        assert!(
            matches!(status, Status::RemoteInvalidRequest | Status::RemoteAccess),
            "{status:?}"
        );
    });
}

#[test]
fn memory_of_another_domain_is_out_of_reach_from_both_sides() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let other = Domain(7);
        let theirs = b.memory_in(other, 4096, ALL).await;
        let (mut left, _right) = connect(&a, &b, &rc_config(4), &RC).await;
        assert_eq!(
            write(&a, &mut left, theirs.remote(0)).await,
            Status::RemoteAccess
        );

        let config = QpConfig {
            domain: other,
            ..rc_config(4)
        };
        let ours = a.memory(4096, ALL).await;
        let (mut left, _right) = connect(&a, &b, &config, &RC).await;
        assert_eq!(
            write(&a, &mut left, theirs.remote(0)).await,
            Status::Success
        );
        left.send(1, SEND, Payload::Gather(&[ours.sge(0, 100)]));
        assert_eq!(left.next(&a.platform).await.status, Status::LocalProtection);
        assert_eq!(theirs.bytes(100)[50..], [0; 50]);
    });
}

#[test]
fn a_local_key_that_does_not_cover_the_memory_is_a_local_error() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let (mut left, _right) = connect(&a, &b, &rc_config(4), &RC).await;
        let from = a.memory(4096, ALL).await;
        left.send(1, SEND, Payload::Gather(&[from.sge(4000, 200)]));
        assert_eq!(left.next(&a.platform).await.status, Status::LocalProtection);
    });
}

#[test]
fn a_receiver_that_is_never_ready_ends_the_retries() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let (mut left, mut right) = connect(&a, &b, &rc_config(4), &RC).await;
        let into = b.memory(64, ALL).await;
        left.send(1, SEND, Payload::Inline(b"hello", &[]));
        assert_eq!(
            left.next(&a.platform).await.status,
            Status::RnrRetryExceeded
        );

        let (mut left, mut late) = connect(&a, &b, &rc_config(4), &RC).await;
        left.send(2, SEND, Payload::Inline(b"hello", &[]));
        late.receive(3, &[into.sge(0, 64)]);
        assert_eq!(left.next(&a.platform).await.status, Status::Success);
        assert_eq!(into.bytes(5), b"hello");
        assert_eq!(right.queues.poll(&mut [Completion::EMPTY]), Ok(0));
    });
}

#[test]
fn a_dead_peer_ends_the_retries() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let (mut left, _right) = connect(&a, &b, &rc_config(4), &RC).await;
        b.platform.power_off();
        left.send(1, SEND, Payload::Inline(b"anybody?", &[]));
        assert_eq!(left.next(&a.platform).await.status, Status::RetryExceeded);
    });
}

#[test]
fn a_bad_link_loses_nothing_of_a_connection() {
    log();
    let mut bed = Testbed::new(ClusterConfig {
        fabric: FabricConfig {
            faults: LinkFaults {
                loss: 0.02,
                duplicate: 0.02,
                reorder: 0.02,
                delay: Duration::from_micros(30),
            },
            seed: 7,
            ..FabricConfig::default()
        },
    });
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let patient = verbs::RcParameters {
            retry_count: 7,
            ..RC
        };
        let (mut left, mut right) = connect(&a, &b, &rc_config(8), &patient).await;
        let from = a.memory(1 << 16, ALL).await;
        let into = b.memory(1 << 16, ALL).await;
        let back = a.memory(1 << 16, ALL).await;
        for round in 0..10 {
            let data = pattern(1 << 16, round);
            from.write(&data);
            right.receive(1, &[into.sge(0, 1 << 16)]);
            left.send(1, SEND, Payload::Gather(&[from.sge(0, 1 << 16)]));
            assert_eq!(right.next(&b.platform).await.status, Status::Success);
            assert_eq!(left.next(&a.platform).await.status, Status::Success);
            assert_eq!(into.bytes(1 << 16), data);
            let read = SendOp::Read {
                from: into.remote(0),
            };
            left.send(2, read, Payload::Gather(&[back.sge(0, 1 << 16)]));
            assert_eq!(left.next(&a.platform).await.status, Status::Success);
            assert_eq!(back.bytes(1 << 16), data);
        }
    });
}

#[test]
fn a_failed_queue_pair_flushes_in_order() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let (mut left, _right) = connect(&a, &b, &rc_config(4), &RC).await;
        let into = a.memory(64, ALL).await;
        for id in 0..4 {
            left.receive(id, &[into.sge(0, 64)]);
        }
        a.device.fail_qp(left.qpn).await.unwrap();
        for id in 0..4 {
            let flushed = left.next(&a.platform).await;
            assert_eq!((flushed.id, flushed.status), (id, Status::Flushed));
        }
    });
}

#[test]
fn an_overrun_queue_is_reported_and_polls_no_more() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let mut queues = a.device.create_queues(4, 0).await.unwrap();
        let cqn = queues.cqn();
        let config = rc_config(16);
        let (slot, qpn) = a.device.create_qp(&mut queues, &config).await.unwrap();
        let into = a.memory(64, ALL).await;
        for id in 0..16 {
            let into = [into.sge(0, 64)];
            queues.post_receive(slot, id, &into).unwrap();
        }
        // Sixteen flushes do not fit four entries.
        a.device.fail_qp(qpn).await.unwrap();
        a.platform.sleep(Duration::from_millis(5)).await;
        let events: Vec<_> = std::iter::from_fn(|| a.device.take_event()).collect();
        assert!(
            events.contains(&DeviceEvent::CqFailed { cqn }),
            "{events:?}"
        );
        assert_eq!(
            queues.poll(&mut [Completion::EMPTY]),
            Err(verbs::Error::CqFailed)
        );
        drop(b);
    });
}

#[test]
fn a_lost_interrupt_does_not_stop_the_service() {
    log();
    let faults = Faults::new(1);
    let mut bed = Testbed::default();
    let machine = bed.add_machine("a", guid(0));
    let platform = Faulty::new(machine, faults.clone());
    let start = Mlx4::start(platform.clone(), Config::default());
    let device = std::sync::Arc::new(bed.block_on(start).unwrap());
    faults.lose_interrupts(1000);
    let served = device.clone();
    bed.spawn(async move {
        let _ = served.service().await;
    });
    let node = Node { platform, device };
    bed.block_on(async {
        let deadline = node.platform.now() + Duration::from_secs(20);
        while node.device.port(1).await.unwrap().state != verbs::PortState::Active {
            assert!(
                node.platform.now() < deadline,
                "the port did not become active"
            );
            node.platform.sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn a_lost_completion_interrupt_costs_one_wait_only() {
    log();
    let faults = Faults::new(1);
    let mut bed = Testbed::default();
    let machine = bed.add_machine("a", guid(0));
    let peer = bed.add_machine("b", guid(1));
    let b = start(&mut bed, peer);
    let a = start(&mut bed, Faulty::new(machine, faults.clone()));
    bed.block_on(async {
        let (mut left, mut right) = connect(&a, &b, &rc_config(4), &RC).await;
        let into = b.memory(64, ALL).await;
        right.receive(0, &[into.sge(0, 64)]);
        left.queues.arm(false);
        faults.lose_interrupts(u32::MAX - 1);
        let in_vain = {
            let wait = std::pin::pin!(a.device.wait_completion(0));
            let meanwhile = std::pin::pin!(async {
                a.platform.sleep(Duration::from_millis(1)).await;
                left.send(1, SEND, Payload::Inline(b"x", &[]));
                a.platform.sleep(Duration::from_millis(10)).await;
            });
            matches!(select(wait, meanwhile).await, Either::Right(_))
        };
        assert!(in_vain);
        a.device.wait_completion(0).await.unwrap();
        assert_eq!(left.next(&a.platform).await.id, 1);
    });
}

#[test]
fn a_command_that_is_given_up_ends_the_use_of_the_card() {
    log();
    let faults = Faults::new(1);
    let mut bed = Testbed::default();
    let machine = bed.add_machine("a", guid(0));
    let start = Mlx4::start(Faulty::new(machine, faults.clone()), Config::default());
    let device = bed.block_on(start).unwrap();
    // The next command is on its way when its caller goes away.
    faults.drop_command(u32::try_from(faults.opcodes().len()).unwrap());
    {
        let mut query = std::pin::pin!(device.port(1));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(query.as_mut().poll(&mut context).is_pending());
    }
    assert!(matches!(
        bed.block_on(device.port(1)),
        Err(verbs::Error::Failed(_))
    ));
}

/// Linux `mlx4/catas.c`: the buffer is looked at, for firmware that dies may report nothing.
#[test]
fn firmware_that_dies_is_noticed_and_ends_every_wait() {
    log();
    for reports in [false, true] {
        let mut bed = Testbed::default();
        let machine = bed.add_machine("a", guid(0));
        let device = bed
            .block_on(Mlx4::start(machine.clone(), Config::default()))
            .unwrap();
        bed.block_on(device.service_once()).unwrap();
        bed.with_cluster(|cluster, now| cluster.kill_firmware(machine.node(), now, reports));
        let before = bed.now();
        let error = bed.block_on(device.port(1)).err();
        assert!(matches!(error, Some(verbs::Error::Failed(_))), "{error:?}");
        let ended = bed.block_on(device.service_once()).err();
        assert_eq!(ended, Some(mlx4::Error::Failed));
        assert!(bed.now().since(before) < Duration::from_secs(3));
        drop(device);
        // A reset repairs it.
        bed.block_on(Mlx4::start(machine.clone(), Config::default()))
            .unwrap();
    }
}

#[test]
fn firmware_that_dies_while_nothing_is_asked_is_noticed_by_the_service() {
    log();
    let mut bed = Testbed::default();
    let machine = bed.add_machine("a", guid(0));
    let device = bed
        .block_on(Mlx4::start(machine.clone(), Config::default()))
        .unwrap();
    bed.with_cluster(|cluster, now| cluster.kill_firmware(machine.node(), now, false));
    let before = bed.now();
    let error = bed.block_on(device.service()).err();
    assert_eq!(error, Some(mlx4::Error::Catastrophic(1)));
    assert_eq!(device.take_event(), Some(DeviceEvent::DeviceFailed));
    assert!(bed.now().since(before) < Duration::from_secs(3));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_a_card_says_of_itself_never_panics_the_driver(seed: u64, one_in in 2_u32..60) {
        let faults = Faults::new(seed);
        faults.spoil_one_in(one_in);
        let mut bed = Testbed::default();
        let machine = bed.add_machine("a", guid(0));
        let start = Mlx4::start(Faulty::new(machine.clone(), faults), Config::default());
        if let Ok(device) = bed.block_on(start) {
            let _ = bed.block_on(device.service_once());
            let _ = bed.block_on(device.stop());
        }
        prop_assert_eq!(machine.allocated(), 0);
    }

    #[test]
    fn what_a_card_writes_never_panics_the_driver(seed: u64, one_in in 2_u32..40) {
        let faults = Faults::new(seed);
        let mut bed = Testbed::default();
        let machine = bed.add_machine("a", guid(0));
        let peer = bed.add_machine("b", guid(1));
        // A command whose end is spoiled is waited for until its deadline.
        let seldom = Duration::from_millis(5);
        let b = start_served(&mut bed, peer, Config::default(), seldom);
        let spoiled = Faulty::new(machine, faults.clone());
        let a = start_served(&mut bed, spoiled, Config::default(), seldom);
        bed.block_on(async {
            let (mut left, mut right) = connect(&a, &b, &rc_config(8), &RC).await;
            let into = b.memory(4096, ALL).await;
            let from = a.memory(4096, ALL).await;
            from.write(&pattern(4096, 1));
            faults.spoil_one_in(one_in);
            for id in 0..40 {
                let receive = [into.sge(0, 4096)];
                let _ = right.queues.post_receive(right.slot, id, &receive);
                let pieces = [from.sge(0, 100)];
                let send = request(id, SEND, Payload::Gather(&pieces));
                let _ = left.queues.post_send(left.slot, &send);
                left.queues.ring(left.slot);
                a.platform.sleep(Duration::from_micros(100)).await;
                let mut completions = [Completion::EMPTY; 4];
                let _ = left.queues.poll(&mut completions);
                let _ = right.queues.poll(&mut completions);
                while a.device.take_event().is_some() {}
                if id % 8 == 0 {
                    // May be an error; a wrong token is one after the deadline only.
                    let _ = a.device.service_once().await;
                }
            }
            // Commands may fail too, and must end.
            let _ = a.device.port(1).await;
            let _ = a.device.destroy_queues(left.queues).await;
        });
    }
}
