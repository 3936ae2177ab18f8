//! Queue pairs that are used again after a failure.

use harness::Testbed;
use verbs::{Device, Domain, Payload, QueueSet, SendOp, Status};

use crate::common::{ALL, RC, connect, join, rc_config, two_nodes};

#[test]
fn a_failed_queue_pair_that_was_reset_works_anew_in_another_domain() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let (mut left, mut right) = connect(&a, &b, &rc_config(4), &RC).await;
        let old = b.memory(4096, ALL).await;
        for round in 1..40 {
            let domain = Domain(round);
            let there = b.memory_in(domain, 4096, ALL).await;
            // Left behind: requests that were posted, not shown, and their flushes, not polled.
            right.receive(5, &[old.sge(0, 64)]);
            left.receive(6, &[]);
            a.device.fail_qp(left.qpn).await.unwrap();
            b.device.fail_qp(right.qpn).await.unwrap();
            left.send(7, SendOp::Send { imm: None }, Payload::Inline(b"late", &[]));
            for (node, end) in [(&a, &mut left), (&b, &mut right)] {
                node.device.reset_qp(end.qpn).await.unwrap();
                end.queues.forget(end.slot);
            }
            a.device.init_qp(left.qpn, Domain::default()).await.unwrap();
            b.device.init_qp(right.qpn, domain).await.unwrap();
            // Several rounds of the rings each time.
            right.receive(8, &[there.sge(100, 64)]);
            join((&a, &mut left), (&b, &mut right), &RC).await;
            for id in 0..20 {
                let to = there.remote(0);
                left.send(
                    id,
                    SendOp::Write { to, imm: None },
                    Payload::Inline(b"new", &[]),
                );
                let end = left.next(&a.platform).await;
                assert_eq!((end.id, end.status), (id, Status::Success), "round {round}");
            }
            left.send(
                9,
                SendOp::Send { imm: None },
                Payload::Inline(b"hello", &[]),
            );
            assert_eq!(right.next(&b.platform).await.id, 8);
            assert_eq!(left.next(&a.platform).await.id, 9);
            assert_eq!(there.bytes(105)[..3], *b"new");
            assert_eq!(there.bytes(105)[100..], *b"hello");
            // The domain it was in before is out of reach.
            let op = SendOp::Write {
                to: old.remote(0),
                imm: None,
            };
            left.send(10, op, Payload::Inline(b"no", &[]));
            assert_eq!(left.next(&a.platform).await.status, Status::RemoteAccess);
            b.device.deregister(&there.region).await.unwrap();
        }
    });
    assert_eq!(a.platform.violations() + b.platform.violations(), 0);
}
