//! Datagrams to multicast groups.

use hal::{Duration, Platform};
use harness::Testbed;
use mad::sa::{JoinState, McMemberRecord, SaMad, mc_member_mask};
use mad::{Attribute, Method};
use verbs::{
    Completion, Device, Gid, Lid, PKey, Payload, QKey, QpConfig, QpKind, Qpn, QueueSet, SendOp,
    Status, UdAddress,
};
use zerocopy::FromBytes;

use crate::common::{ALL, End, Node, RC, end, guid, log, rc_config, request, start};

const QKEY: QKey = QKey(0x1234);

/// A transient group of link-local scope.
fn group(number: u16) -> Gid {
    let mut gid = [0; 16];
    gid[..2].copy_from_slice(&[0xff, 0x12]);
    gid[14..].copy_from_slice(&number.to_be_bytes());
    Gid(gid)
}

/// A datagram queue pair that may send, with a receive.
async fn datagrams(node: &Node) -> End {
    let config = QpConfig {
        kind: QpKind::Datagram { qkey: QKEY },
        ..rc_config(8)
    };
    let end = end(node, &config).await;
    node.device.ready_to_send(end.qpn, None, &RC).await.unwrap();
    end
}

/// Joins the port to a group through the subnet administrator; returns the group's LID.
async fn join(node: &Node, group: Gid) -> Lid {
    let port = node.device.port(1).await.unwrap();
    let record = McMemberRecord {
        mgid: group.0,
        port_gid: port.gid.0,
        qkey: QKEY.0.into(),
        pkey: PKey::DEFAULT.0.into(),
        scope_join: JoinState::new().with_scope(2).with_join(1),
        ..McMemberRecord::default()
    };
    let mask = mc_member_mask::MGID | mc_member_mask::PORT_GID | mc_member_mask::CREATE;
    let query = SaMad::request(Method::SET, Attribute::MC_MEMBER_RECORD, mask, &record, 7).to_mad();
    let sent = node.device.send_mad(1, port.manager, PKey::DEFAULT, &query);
    sent.await.unwrap();
    loop {
        if let Some((_, mad)) = node.device.take_mad(1) {
            let answer = SaMad::read_from_bytes(&mad).unwrap();
            assert_eq!(answer.header.method, Method::GET_RESP);
            return Lid(answer.record::<McMemberRecord>().unwrap().mlid.get());
        }
        node.platform.sleep(Duration::from_millis(1)).await;
    }
}

async fn send(node: &Node, from: &mut End, lid: Lid, group: Gid) {
    let mut send = request(
        2,
        SendOp::Send { imm: None },
        Payload::Inline(b"hello", &[]),
    );
    send.to = Some(UdAddress {
        address: lid.into(),
        qpn: Qpn::MULTICAST,
        qkey: QKEY,
        sl: 0,
        gid: Some(group),
    });
    from.post(&send);
    from.queues.ring(from.slot);
    assert_eq!(from.next(&node.platform).await.status, Status::Success);
    node.platform.sleep(Duration::from_millis(1)).await;
}

/// Completions that are there; each with its GRH.
fn arrived(end: &mut End) -> usize {
    let mut got = [Completion::EMPTY; 4];
    let count = end.queues.poll(&mut got).unwrap();
    for completion in &got[..count] {
        assert_eq!(
            (completion.status, completion.bytes),
            (Status::Success, 40 + 5)
        );
        assert!(completion.source.unwrap().grh);
    }
    count
}

#[test]
fn a_group_reaches_every_queue_pair_that_is_attached() {
    log();
    let mut bed = Testbed::default();
    let machines = [0, 1, 2].map(|n| bed.add_machine("node", guid(n)));
    let [a, b, c] = machines.map(|machine| start(&mut bed, machine));
    bed.block_on(async {
        let mut from = datagrams(&a).await;
        let (mut at_b, mut at_c) = (datagrams(&b).await, datagrams(&c).await);
        let (to_b, to_c) = (b.memory(4096, ALL).await, c.memory(4096, ALL).await);
        let lid = join(&a, group(1)).await;
        assert_eq!(
            (join(&b, group(1)).await, join(&c, group(1)).await),
            (lid, lid)
        );
        // Joined, but not attached.
        at_b.receive(1, &[to_b.sge(0, 4096)]);
        at_c.receive(1, &[to_c.sge(0, 4096)]);
        send(&a, &mut from, lid, group(1)).await;
        assert_eq!((arrived(&mut at_b), arrived(&mut at_c)), (0, 0));
        for (node, end) in [(&b, &at_b), (&c, &at_c), (&c, &at_c)] {
            node.device
                .attach_multicast(end.qpn, group(1))
                .await
                .unwrap();
        }
        send(&a, &mut from, lid, group(1)).await;
        assert_eq!((arrived(&mut at_b), arrived(&mut at_c)), (1, 1));
        assert_eq!(to_b.bytes(45)[40..], *b"hello");
        c.device.detach_multicast(at_c.qpn, group(1)).await.unwrap();
        c.device.detach_multicast(at_c.qpn, group(1)).await.unwrap();
        at_b.receive(1, &[to_b.sge(0, 4096)]);
        at_c.receive(1, &[to_c.sge(0, 4096)]);
        send(&a, &mut from, lid, group(1)).await;
        assert_eq!((arrived(&mut at_b), arrived(&mut at_c)), (1, 0));
    });
    assert_eq!(a.platform.violations() + b.platform.violations(), 0);
}

#[test]
fn groups_of_one_hash_are_found_in_their_chain_whatever_order_they_come_and_go() {
    log();
    let mut bed = Testbed::default();
    let machines = [0, 1].map(|n| bed.add_machine("node", guid(n)));
    let [a, b] = machines.map(|machine| start(&mut bed, machine));
    // More than the hash has values, so some must share one.
    const GROUPS: u16 = 150;
    bed.block_on(async {
        let (mut from, mut at_b) = (datagrams(&a).await, datagrams(&b).await);
        let into = b.memory(4096, ALL).await;
        // The receiver looks at the GID only, so the fabric's way to one group will do.
        let lid = join(&a, group(0)).await;
        join(&b, group(0)).await;
        // 13 and 150 have no common divisor: each round takes every group once, in another order.
        for round in 0..3_u16 {
            let nth = |step: u16| group((step * 13 + round) % GROUPS);
            for step in 0..GROUPS {
                b.device
                    .attach_multicast(at_b.qpn, nth(step))
                    .await
                    .unwrap();
            }
            for step in 0..GROUPS {
                at_b.receive(1, &[into.sge(0, 4096)]);
                send(&a, &mut from, lid, nth(step)).await;
                assert_eq!(arrived(&mut at_b), 1, "{:?}", nth(step));
            }
            // Half goes; the other half is still found.
            for step in 0..GROUPS / 2 {
                b.device
                    .detach_multicast(at_b.qpn, nth(step))
                    .await
                    .unwrap();
            }
            at_b.receive(1, &[into.sge(0, 4096)]);
            for step in 0..GROUPS {
                send(&a, &mut from, lid, nth(step)).await;
                let there = usize::from(step >= GROUPS / 2);
                assert_eq!(arrived(&mut at_b), there, "{:?}", nth(step));
                if there == 1 {
                    at_b.receive(1, &[into.sge(0, 4096)]);
                }
            }
            for step in GROUPS / 2..GROUPS {
                b.device
                    .detach_multicast(at_b.qpn, nth(step))
                    .await
                    .unwrap();
            }
            send(&a, &mut from, lid, nth(0)).await;
            assert_eq!(arrived(&mut at_b), 0);
            at_b = datagrams(&b).await;
        }
    });
}
