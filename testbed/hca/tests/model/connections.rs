//! Reliable connections as software sees them.

use crate::bench::queues::{Connection, Send, all_rights};
use crate::bench::{Bench, PD};
use fabric::{FabricConfig, Faults};
use hal::Duration;
use mlx4_hw::command::{CmdStatus, Opcode};
use mlx4_hw::cq::{ReceiveOpcode, Syndrome};
use mlx4_hw::eq::EventType;
use mlx4_hw::mpt::MptFlags;
use mlx4_hw::qp::{OptionalParameters, Service};
use mlx4_hw::wqe::WqeOpcode;
use proptest::prelude::*;

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from((at * 7 + usize::from(seed)) % 251).unwrap())
        .collect()
}

fn send(opcode: WqeOpcode, remote: Option<(u64, u32)>, pieces: &[(u64, u32, u32)]) -> Send<'_> {
    Send {
        opcode,
        remote,
        pieces,
        imm: 0x0a0b_0c0d,
        signalled: true,
    }
}

#[test]
fn read_of_a_page_completes_within_its_doorbell() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (mut a, mut cq, _b, _) = bench.pair(Service::RC, Connection::default());
    let local = bench.make_mr(0, 4096, all_rights());
    let remote = bench.make_mr(1, 4096, all_rights());
    bench.nodes[1].ram.put(remote.addr, &pattern(4096, 3));
    bench.post(
        &mut a,
        &send(
            WqeOpcode::RDMA_READ,
            Some((remote.addr, remote.key)),
            &[(local.addr, 4096, local.key)],
        ),
    );
    assert!(
        bench.poll_cq(&mut cq).is_none(),
        "nothing is fetched before the doorbell"
    );
    bench.ring_send(&a);
    let cqe = bench.poll_cq(&mut cq).expect("completed inline");
    assert_eq!(
        (cqe.owner.opcode(), cqe.byte_count.get()),
        (WqeOpcode::RDMA_READ.0, 4096)
    );
    assert_eq!(bench.nodes[0].ram.bytes(local.addr, 4096), pattern(4096, 3));
}

#[test]
fn long_write_and_read_are_cut_into_packets_and_arrive_whole() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let how = Connection {
        mtu_code: 1,
        ..Connection::default()
    };
    let (mut a, mut cq, _b, _) = bench.pair(Service::RC, how);
    let len = 1 << 20;
    let from = bench.make_mr(0, len, all_rights());
    let remote = bench.make_mr(1, len, all_rights());
    let back = bench.make_mr(0, len, all_rights());
    let data = pattern(1 << 20, 9);
    bench.nodes[0].ram.put(from.addr, &data);
    bench.post(
        &mut a,
        &send(
            WqeOpcode::RDMA_WRITE,
            Some((remote.addr, remote.key)),
            &[(from.addr, 1 << 20, from.key)],
        ),
    );
    bench.post(
        &mut a,
        &send(
            WqeOpcode::RDMA_READ,
            Some((remote.addr, remote.key)),
            &[(back.addr, 1 << 20, back.key)],
        ),
    );
    bench.ring_send(&a);
    bench.run(Duration::from_secs(1));
    assert_eq!(
        bench.drain(&mut cq),
        [(true, 0, Syndrome::NONE), (true, 1, Syndrome::NONE)]
    );
    assert_eq!(bench.nodes[0].ram.bytes(back.addr, 1 << 20), data);
}

#[test]
fn sends_and_immediate_writes_use_receives() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (mut a, mut cq_a, mut b, mut cq_b) = bench.pair(Service::RC, Connection::default());
    let from = bench.make_mr(0, 4096, all_rights());
    let to = bench.make_mr(1, 4096, all_rights());
    bench.nodes[0].ram.put(from.addr, b"hello");
    bench.post_receive(&mut b, to.addr, 64, to.key);
    bench.post_receive(&mut b, to.addr + 64, 64, to.key);
    bench.post(
        &mut a,
        &send(
            WqeOpcode::SEND_IMM,
            None,
            &[(from.addr, 2, from.key), (from.addr + 2, 3, from.key)],
        ),
    );
    bench.post(
        &mut a,
        &send(
            WqeOpcode::RDMA_WRITE_IMM,
            Some((to.addr + 1024, to.key)),
            &[(from.addr, 5, from.key)],
        ),
    );
    bench.ring_send(&a);
    assert_eq!(bench.drain(&mut cq_a).len(), 2);
    let first = bench.poll_cq(&mut cq_b).unwrap();
    assert_eq!(
        (first.owner.opcode(), first.byte_count.get()),
        (ReceiveOpcode::SEND_IMM, 5)
    );
    assert_eq!(first.immediate_or_pkey.get(), 0x0a0b_0c0d);
    let second = bench.poll_cq(&mut cq_b).unwrap();
    assert_eq!(
        (second.owner.opcode(), second.wqe_counter.get()),
        (ReceiveOpcode::WRITE_IMM, 1)
    );
    assert_eq!(bench.nodes[1].ram.bytes(to.addr, 5), b"hello");
    assert_eq!(bench.nodes[1].ram.bytes(to.addr + 1024, 5), b"hello");
}

#[test]
fn a_receiver_that_is_not_ready_is_tried_again() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (mut a, mut cq_a, mut b, mut cq_b) = bench.pair(Service::RC, Connection::default());
    let from = bench.make_mr(0, 4096, all_rights());
    let to = bench.make_mr(1, 4096, all_rights());
    bench.post(
        &mut a,
        &send(WqeOpcode::SEND, None, &[(from.addr, 100, from.key)]),
    );
    bench.ring_send(&a);
    assert!(bench.poll_cq(&mut cq_a).is_none());
    bench.post_receive(&mut b, to.addr, 128, to.key);
    bench.run(Duration::from_millis(1));
    assert_eq!(bench.drain(&mut cq_a), [(true, 0, Syndrome::NONE)]);
    assert_eq!(bench.drain(&mut cq_b), [(false, 0, Syndrome::NONE)]);
}

#[test]
fn a_receiver_that_never_is_ready_ends_the_send() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let how = Connection {
        rnr_retries: 2,
        ..Connection::default()
    };
    let (mut a, mut cq_a, _b, _) = bench.pair(Service::RC, how);
    let from = bench.make_mr(0, 4096, all_rights());
    bench.post(
        &mut a,
        &send(WqeOpcode::SEND, None, &[(from.addr, 100, from.key)]),
    );
    bench.post(
        &mut a,
        &send(WqeOpcode::SEND, None, &[(from.addr, 100, from.key)]),
    );
    bench.ring_send(&a);
    bench.run(Duration::from_millis(5));
    let flushed = Syndrome::WR_FLUSH_ERR;
    assert_eq!(
        bench.drain(&mut cq_a),
        [(true, 0, Syndrome::RNR_RETRY_EXC_ERR), (true, 1, flushed)]
    );
}

#[test]
fn a_silent_peer_ends_the_send_and_everything_is_flushed() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (mut a, mut cq_a, b, _) = bench.pair(
        Service::RC,
        Connection {
            retries: 2,
            ..Connection::default()
        },
    );
    let from = bench.make_mr(0, 4096, all_rights());
    bench.command_raw(1, Opcode::QP_2RST, 2, b.qpn, 0).unwrap();
    bench.post_receive(&mut a, from.addr, 64, from.key);
    bench.post(
        &mut a,
        &send(
            WqeOpcode::RDMA_WRITE,
            Some((0, 0)),
            &[(from.addr, 8, from.key)],
        ),
    );
    bench.ring_send(&a);
    bench.run(Duration::from_millis(50));
    let expected = [
        (true, 0, Syndrome::TRANSPORT_RETRY_EXC_ERR),
        (false, !0, Syndrome::WR_FLUSH_ERR),
    ];
    assert_eq!(bench.drain(&mut cq_a), expected);
    // What is posted later is flushed too: a send at its doorbell, a receive without one.
    bench.post(&mut a, &send(WqeOpcode::SEND, None, &[]));
    bench.ring_send(&a);
    bench.post_receive(&mut a, from.addr, 64, from.key);
    bench.run(Duration::from_millis(50));
    let expected = [
        (true, 1, Syndrome::WR_FLUSH_ERR),
        (false, !1, Syndrome::WR_FLUSH_ERR),
    ];
    let mut found = bench.drain(&mut cq_a);
    found.sort_by_key(|(send, ..)| !send);
    assert_eq!(found, expected);
}

/// Returns the number of the cluster's steps in a second.
fn steps_in_a_second(bench: &mut Bench) -> u32 {
    let end = bench.now + Duration::from_secs(1);
    let mut steps = 0;
    while bench.now < end && bench.step() {
        steps += 1;
    }
    steps
}

#[test]
fn a_failed_queue_pair_flushes_late_receives_and_costs_little_when_none_come() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (mut a, mut cq, _b, _) = bench.pair(Service::RC, Connection::default());
    let to = bench.make_mr(0, 4096, all_rights());
    let idle = steps_in_a_second(&mut bench);
    bench
        .transition(&a, Opcode::QP_2ERR, OptionalParameters::new())
        .unwrap();
    steps_in_a_second(&mut bench);
    let looking = steps_in_a_second(&mut bench);
    assert!(
        looking <= idle + 10,
        "{looking} steps a second, {idle} before"
    );
    bench.post_receive(&mut a, to.addr, 64, to.key);
    bench.run(Duration::from_millis(130));
    assert_eq!(bench.drain(&mut cq), [(false, !0, Syndrome::WR_FLUSH_ERR)]);
    // Where one came, more may come.
    bench.post_receive(&mut a, to.addr, 64, to.key);
    bench.run(Duration::from_millis(3));
    assert_eq!(bench.drain(&mut cq), [(false, !1, Syndrome::WR_FLUSH_ERR)]);
}

#[test]
fn more_reads_at_once_than_were_agreed_are_refused() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let how = |log_reads| Connection {
        log_reads,
        ..Connection::default()
    };
    let (cq_a, cq_b) = (bench.make_cq(0, 8), bench.make_cq(1, 8));
    let mut a = bench.make_qp(0, Service::RC, &cq_a);
    let mut b = bench.make_qp(1, Service::RC, &cq_b);
    bench.connect(&mut a, (1, b.qpn), how(3));
    bench.connect(&mut b, (0, a.qpn), how(1));
    let len = 1 << 20;
    let local = bench.make_mr(0, len, all_rights());
    let remote = bench.make_mr(1, len, all_rights());
    let pieces = [(local.addr, 1 << 20, local.key)];
    for _ in 0..3 {
        let remote = Some((remote.addr, remote.key));
        bench.post(&mut a, &send(WqeOpcode::RDMA_READ, remote, &pieces));
    }
    bench.ring_send(&a);
    bench.run(Duration::from_secs(1));
    let mut cq = cq_a;
    let expected = [
        (true, 0, Syndrome::NONE),
        (true, 1, Syndrome::NONE),
        (true, 2, Syndrome::REMOTE_INVAL_REQ_ERR),
    ];
    assert_eq!(bench.drain(&mut cq), expected);
    let kinds: Vec<_> = bench.events(1).iter().map(|event| event.event).collect();
    assert!(kinds.contains(&EventType::WQ_INVALID_REQUEST), "{kinds:?}");
}

/// Checks that each kind of bad access gives the right syndrome on both sides.
#[test]
fn access_checks_give_the_right_syndromes() {
    let read_only = MptFlags::new().with_local_read(true).with_remote_read(true);
    let write_only = MptFlags::new()
        .with_local_read(true)
        .with_local_write(true)
        .with_remote_write(true);
    let (read, write) = (WqeOpcode::RDMA_READ, WqeOpcode::RDMA_WRITE);
    // Rights of the region, operation, offset and length, change of the key: the requester's
    // syndrome.
    let cases = [
        (all_rights(), read, 0, 64, 0, Syndrome::NONE),
        (all_rights(), write, 4096 - 64, 64, 0, Syndrome::NONE),
        (read_only, read, 0, 64, 0, Syndrome::NONE),
        (read_only, write, 0, 64, 0, Syndrome::REMOTE_ACCESS_ERR),
        (write_only, read, 0, 64, 0, Syndrome::REMOTE_ACCESS_ERR),
        (
            all_rights(),
            read,
            4096 - 63,
            64,
            0,
            Syndrome::REMOTE_ACCESS_ERR,
        ),
        (
            all_rights(),
            write,
            0_u64.wrapping_sub(1),
            1,
            0,
            Syndrome::REMOTE_ACCESS_ERR,
        ),
        (all_rights(), write, 0, 64, 1, Syndrome::REMOTE_ACCESS_ERR),
        (
            all_rights(),
            read,
            0,
            64,
            0x100,
            Syndrome::REMOTE_ACCESS_ERR,
        ),
    ];
    for (number, (rights, opcode, offset, len, key, expected)) in cases.into_iter().enumerate() {
        let mut bench = Bench::new(2, FabricConfig::default());
        let (mut a, mut cq, b, _) = bench.pair(Service::RC, Connection::default());
        let local = bench.make_mr(0, 4096, all_rights());
        let remote = bench.make_mr(1, 4096, rights);
        let to = (remote.addr.wrapping_add(offset), remote.key ^ key);
        bench.events(1);
        bench.post(
            &mut a,
            &send(opcode, Some(to), &[(local.addr, len, local.key)]),
        );
        bench.ring_send(&a);
        assert_eq!(bench.drain(&mut cq), [(true, 0, expected)], "case {number}");
        let events: Vec<_> = bench
            .events(1)
            .iter()
            .map(|eqe| (eqe.event, eqe.number()))
            .collect();
        if expected == Syndrome::NONE {
            assert!(events.is_empty());
        } else {
            assert_eq!(
                events,
                [(EventType::WQ_ACCESS_VIOLATION, b.qpn)],
                "case {number}"
            );
        }
    }
}

#[test]
fn local_errors_and_forbidden_requests_give_the_right_syndromes() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (mut a, mut cq, _b, _) = bench.pair(Service::RC, Connection::default());
    let remote = bench.make_mr(1, 4096, all_rights());
    bench.post(
        &mut a,
        &send(
            WqeOpcode::RDMA_WRITE,
            Some((remote.addr, remote.key)),
            &[(0, 8, 0x1_2300)],
        ),
    );
    bench.ring_send(&a);
    assert_eq!(bench.drain(&mut cq), [(true, 0, Syndrome::LOCAL_PROT_ERR)]);

    let (mut a, mut cq, _b, _) = bench.pair(Service::RC, Connection::default());
    bench.post(&mut a, &send(WqeOpcode(0x1f), None, &[]));
    bench.ring_send(&a);
    assert_eq!(bench.drain(&mut cq), [(true, 0, Syndrome::LOCAL_QP_OP_ERR)]);

    // The peer's queue pair does not take READs.
    let (mut a, mut cq, mut b, _) = bench.pair(Service::RC, Connection::default());
    let local = bench.make_mr(0, 4096, all_rights());
    b.context.responder.set_remote_read(false);
    let optional = OptionalParameters::new().with_remote_read(true);
    bench.transition(&b, Opcode::RTS2RTS_QP, optional).unwrap();
    bench.post(
        &mut a,
        &send(
            WqeOpcode::RDMA_READ,
            Some((remote.addr, remote.key)),
            &[(local.addr, 8, local.key)],
        ),
    );
    bench.ring_send(&a);
    assert_eq!(
        bench.drain(&mut cq),
        [(true, 0, Syndrome::REMOTE_INVAL_REQ_ERR)]
    );

    // The message is longer than the receive.
    let (mut a, mut cq, mut b, mut cq_b) = bench.pair(Service::RC, Connection::default());
    let to = bench.make_mr(1, 4096, all_rights());
    bench.post_receive(&mut b, to.addr, 16, to.key);
    bench.post(
        &mut a,
        &send(WqeOpcode::SEND, None, &[(local.addr, 17, local.key)]),
    );
    bench.ring_send(&a);
    assert_eq!(
        bench.drain(&mut cq),
        [(true, 0, Syndrome::REMOTE_INVAL_REQ_ERR)]
    );
    assert_eq!(
        bench.drain(&mut cq_b),
        [(false, 0, Syndrome::LOCAL_LENGTH_ERR)]
    );
    let events = bench.events(1);
    let told = events.iter().filter(|event| event.number() == b.qpn);
    // The receive's completion says it; an event would say it again.
    assert!(
        told.map(|event| event.event)
            .all(|event| event == EventType::COMMUNICATION_ESTABLISHED)
    );
}

#[test]
fn errors_have_the_vendors_syndromes_that_are_known() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (mut a, mut cq, _b, _) = bench.pair(Service::RC, Connection::default());
    let local = bench.make_mr(0, 4096, all_rights());
    let remote = bench.make_mr(1, 4096, all_rights());
    for key in [remote.key ^ 1, remote.key] {
        let pieces = [(local.addr, 8, local.key)];
        bench.post(
            &mut a,
            &send(WqeOpcode::RDMA_WRITE, Some((remote.addr, key)), &pieces),
        );
    }
    bench.ring_send(&a);
    for expected in [
        (Syndrome::REMOTE_ACCESS_ERR, 0x88),
        (Syndrome::WR_FLUSH_ERR, 0xf9),
    ] {
        let cqe = bench.poll_cq(&mut cq).expect("a completion");
        assert_eq!((cqe.syndrome, cqe.vendor_syndrome), expected);
    }
}

#[test]
fn a_translation_that_changes_without_a_command_is_seen() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (mut a, _cq, _b, _) = bench.pair(Service::RC, Connection::default());
    let local = bench.make_mr(0, 4096, all_rights());
    let remote = bench.make_mr(1, 4096, all_rights());
    let other = bench.alloc(1, 4096);
    bench.nodes[1].ram.put(remote.addr, b"old");
    bench.nodes[1].ram.put(other, b"new");
    for (page, expected) in [(remote.addr, b"old"), (other, b"new")] {
        bench.write_mtt(1, remote.mtt, page);
        bench.post(
            &mut a,
            &send(
                WqeOpcode::RDMA_READ,
                Some((remote.addr, remote.key)),
                &[(local.addr, 3, local.key)],
            ),
        );
        bench.ring_send(&a);
        assert_eq!(bench.nodes[0].ram.bytes(local.addr, 3), expected);
    }
}

#[test]
fn a_region_taken_back_is_reached_no_more() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (mut a, mut cq, _b, _) = bench.pair(Service::RC, Connection::default());
    let local = bench.make_mr(0, 4096, all_rights());
    let remote = bench.make_mr(1, 4096, all_rights());
    bench
        .command_raw(1, Opcode::HW2SW_MPT, 1, remote.index, 0)
        .unwrap();
    bench.post(
        &mut a,
        &send(
            WqeOpcode::RDMA_READ,
            Some((remote.addr, remote.key)),
            &[(local.addr, 3, local.key)],
        ),
    );
    bench.ring_send(&a);
    assert_eq!(
        bench.drain(&mut cq),
        [(true, 0, Syndrome::REMOTE_ACCESS_ERR)]
    );
}

#[test]
fn a_completion_queue_loses_nothing_when_it_is_resized_again_and_again() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let mut cq = bench.make_cq(0, 2);
    let cq_b = bench.make_cq(1, 4);
    let mut a = bench.make_qp(0, Service::RC, &cq);
    let mut b = bench.make_qp(1, Service::RC, &cq_b);
    bench.connect(&mut a, (1, b.qpn), Connection::default());
    bench.connect(&mut b, (0, a.qpn), Connection::default());
    let nop = send(WqeOpcode::NOP, None, &[]);
    let mut taken = 0;
    // Three entries, one, seven: sizes that `ibv_resize_cq` was called with.
    for log_size in [1, 3, 1, 2, 4, 1, 2] {
        bench.post(&mut a, &nop);
        bench.ring_send(&a);
        bench.resize_cq(&mut cq, log_size).unwrap();
        bench.post(&mut a, &nop);
        bench.ring_send(&a);
        let expected = [taken, taken + 1].map(|wqe| (true, wqe, Syndrome::NONE));
        assert_eq!(bench.drain(&mut cq), expected);
        taken += 2;
    }
}

#[test]
fn a_completion_queue_is_not_resized_below_what_it_holds() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let mut cq = bench.make_cq(0, 2);
    let cq_b = bench.make_cq(1, 4);
    let mut a = bench.make_qp(0, Service::RC, &cq);
    let mut b = bench.make_qp(1, Service::RC, &cq_b);
    bench.connect(&mut a, (1, b.qpn), Connection::default());
    bench.connect(&mut b, (0, a.qpn), Connection::default());
    for (posted, log_size) in [(2, 1), (4, 3)] {
        while a.sent < posted {
            bench.post(&mut a, &send(WqeOpcode::NOP, None, &[]));
        }
        bench.ring_send(&a);
        assert_eq!(bench.resize_cq(&mut cq, log_size), Err(CmdStatus::BAD_SIZE));
    }
    assert_eq!(bench.drain(&mut cq).len(), 4);
}

#[test]
fn a_completion_queue_that_overruns_fails_with_its_queue_pairs() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let cq = bench.make_cq(0, 2);
    let cq_b = bench.make_cq(1, 4);
    let mut a = bench.make_qp(0, Service::RC, &cq);
    let mut b = bench.make_qp(1, Service::RC, &cq_b);
    bench.connect(&mut a, (1, b.qpn), Connection::default());
    bench.connect(&mut b, (0, a.qpn), Connection::default());
    bench.events(0);
    for _ in 0..5 {
        bench.post(&mut a, &send(WqeOpcode::NOP, None, &[]));
    }
    bench.ring_send(&a);
    let events: Vec<_> = bench
        .events(0)
        .iter()
        .map(|eqe| (eqe.event, eqe.number()))
        .collect();
    assert_eq!(
        events,
        [
            (EventType::CQ_ERROR, cq.cqn),
            (EventType::WQ_CATASTROPHIC, a.qpn)
        ]
    );
}

#[test]
fn atomics_return_what_was_there() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (mut a, mut cq, _b, _) = bench.pair(Service::RC, Connection::default());
    let local = bench.make_mr(0, 4096, all_rights());
    let remote = bench.make_mr(1, 4096, all_rights());
    bench.nodes[1].ram.put(remote.addr, &40_u64.to_le_bytes());
    let mut bytes = vec![0; 16];
    bytes[7] = 4;
    bytes[11] = 0x0c;
    bytes.extend_from_slice(&remote.addr.to_be_bytes());
    bytes.extend_from_slice(&remote.key.to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&2_u64.to_be_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&8_u32.to_be_bytes());
    bytes.extend_from_slice(&local.key.to_be_bytes());
    bytes.extend_from_slice(&local.addr.to_be_bytes());
    bench.post_bytes(&mut a, WqeOpcode::ATOMIC_FA, &bytes);
    bench.ring_send(&a);
    assert_eq!(bench.drain(&mut cq), [(true, 0, Syndrome::NONE)]);
    assert_eq!(bench.nodes[1].ram.get::<u64>(remote.addr), 42);
    assert_eq!(
        bench.nodes[0].ram.bytes(local.addr, 8),
        40_u64.to_le_bytes(),
        "both sides have it in the host's order"
    );
    let _ = PD;
}

fn faulty(seed: u64, loss: f64, reorder: f64, duplicate: f64) -> FabricConfig {
    let delay = Duration::from_micros(30);
    FabricConfig {
        latency: Duration::from_micros(1),
        faults: Faults {
            loss,
            duplicate,
            reorder,
            delay,
        },
        seed,
        ..FabricConfig::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Whatever the links lose, double or reorder: every message arrives exactly once and in order,
    /// every READ brings what is there, every WRITE what was sent; or, after too many losses, the
    /// connection says that it failed.
    #[test]
    fn connections_survive_bad_links(
        seed: u64,
        loss in 0.0..0.2_f64,
        reorder in 0.0..0.2_f64,
        duplicate in 0.0..0.2_f64,
        lengths in proptest::collection::vec((0_u8..3, 0_u32..3000), 1..30),
    ) {
        let mut bench = Bench::new(2, faulty(seed, loss, reorder, duplicate));
        let how = Connection { mtu_code: 1, ack_timeout: 6, log_reads: 2, ..Connection::default() };
        let (mut a, mut cq_a, mut b, mut cq_b) = bench.pair(Service::RC, how);
        let area = 32 * 4096;
        let from = bench.make_mr(0, area, all_rights());
        let to = bench.make_mr(1, area, all_rights());
        let received = bench.make_mr(1, area, all_rights());
        let mut expected_messages = Vec::new();
        for (number, (kind, len)) in (0_u8..).zip(&lengths) {
            let place = u64::from(number) * 4096;
            let data = pattern(*len as usize, number);
            let piece = [(from.addr + place, *len, from.key)];
            let there = Some((to.addr + place, to.key));
            match kind {
                0 => {
                    bench.post_receive(&mut b, received.addr + expected_messages.len() as u64 * 4096, 4096, received.key);
                    expected_messages.push(data.clone());
                    bench.nodes[0].ram.put(from.addr + place, &data);
                    bench.post(&mut a, &send(WqeOpcode::SEND, None, &piece));
                }
                1 => {
                    bench.nodes[0].ram.put(from.addr + place, &data);
                    bench.post(&mut a, &send(WqeOpcode::RDMA_WRITE, there, &piece));
                }
                _ => {
                    bench.nodes[1].ram.put(to.addr + place, &data);
                    bench.post(&mut a, &send(WqeOpcode::RDMA_READ, there, &piece));
                }
            }
            bench.ring_send(&a);
        }
        bench.run(Duration::from_millis(200));
        let done = bench.drain(&mut cq_a);
        prop_assert_eq!(done.len(), lengths.len(), "every send completes once: {:?}", done);
        let failed = done.iter().any(|(_, _, syndrome)| *syndrome != Syndrome::NONE);
        if failed {
            let first = done.iter().find(|(_, _, syndrome)| *syndrome != Syndrome::NONE).unwrap();
            prop_assert_eq!(first.2, Syndrome::TRANSPORT_RETRY_EXC_ERR);
            prop_assert!(loss > 0.05, "too much lost for {loss}");
            return Ok(());
        }
        for (number, (kind, len)) in (0_u8..).zip(&lengths) {
            let place = u64::from(number) * 4096;
            let data = pattern(*len as usize, number);
            match kind {
                0 => {}
                1 => prop_assert_eq!(bench.nodes[1].ram.bytes(to.addr + place, data.len()), data),
                _ => prop_assert_eq!(bench.nodes[0].ram.bytes(from.addr + place, data.len()), data),
            }
        }
        prop_assert_eq!(bench.drain(&mut cq_b).len(), expected_messages.len());
        for (number, data) in (0_u64..).zip(expected_messages) {
            prop_assert_eq!(bench.nodes[1].ram.bytes(received.addr + number * 4096, data.len()), data);
        }
    }
}
