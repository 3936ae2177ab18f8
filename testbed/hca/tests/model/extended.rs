//! Extended reliable connections (XRC): domains, SRQs that requests name, and whose memory counts.

use fabric::FabricConfig;
use mlx4_hw::bits::{Low, Low24, QueueBuffer};
use mlx4_hw::command::{CmdStatus, Opcode};
use mlx4_hw::cq::{CQE_OPCODE_ERROR, ReceiveOpcode, Syndrome};
use mlx4_hw::qp::{QpMailbox, QueueSize, Service};
use mlx4_hw::srq::{NextSegment, SrqContext, SrqOffset, SrqSize};
use mlx4_hw::wqe::{DataSegment, WqeOpcode};
use zerocopy::{FromZeros, IntoBytes};

use crate::bench::Bench;
use crate::bench::queues::{Connection, Cq, Mr, Qp, Send, all_rights};

/// Marks the number of a queue pair that takes XRC requests (Linux `hw/mlx4/qp.c`,
/// `create_qp_common`).
const TARGET: u32 = 1 << 23;
const DOMAIN: u16 = 9;
const ENTRIES: u16 = 4;
const ENTRY_LEN: u64 = 4096;

/// An SRQ on node 1, all its entries posted, in a protection domain of its own.
struct Shared {
    srqn: u32,
    cq: Cq,
    memory: Mr,
}

fn make_srq(bench: &mut Bench, srqn: u32, domain: u16, pd: u32) -> Shared {
    let cq = bench.make_cq(1, 6);
    let (buffer, record) = (bench.alloc(1, 4096), bench.alloc(1, 64));
    let memory = bench.make_mr_in(1, ENTRY_LEN * u64::from(ENTRIES), all_rights(), pd);
    let mut srq = SrqContext::new_zeroed();
    srq.size = SrqSize::new().with_log_size(2);
    srq.log_stride_less_4 = Low::new(1);
    srq.xrcd = domain.into();
    srq.offset_cqn = SrqOffset::new().with_cqn(cq.cqn);
    srq.buffer = QueueBuffer::new(bench.map(1, buffer, 4096), 12);
    srq.pd = Low24::new(pd);
    srq.doorbell_record = record.into();
    let made = bench.command(1, Opcode::SW2HW_SRQ, 0, srqn, srq.as_bytes());
    made.unwrap();
    for index in 0..ENTRIES {
        let mut link = NextSegment::new_zeroed();
        link.next = ((index + 1) % ENTRIES).into();
        let at = buffer + u64::from(index) * 32;
        let into = memory.addr + u64::from(index) * ENTRY_LEN;
        let piece = DataSegment::new(into, 4096, memory.key);
        bench.nodes[1].ram.put(at, link.as_bytes());
        bench.nodes[1].ram.put(at + 16, piece.as_bytes());
    }
    let posted = u32::from(ENTRIES).to_be_bytes();
    bench.nodes[1].ram.put(record, &posted);
    Shared { srqn, cq, memory }
}

/// Connects a queue pair that sends on node 0 to one that takes requests on node 1, whose own
/// protection domain has no memory.
fn pair(bench: &mut Bench, domain: u16, how: Connection) -> (Qp, Cq, Qp, Cq) {
    let (cq_a, cq_b) = (bench.make_cq(0, 6), bench.make_cq(1, 6));
    // Linux writes no size of a receive queue that there is not, less 4.
    let no_receives = QueueSize::from_bits(0xff);
    let change = |mailbox: &mut QpMailbox| mailbox.context.receive_queue = no_receives;
    let mut a = bench.try_make_qp(0, Service::XRC, &cq_a, change).unwrap();
    bench.nodes[1].next_qpn |= TARGET;
    let change = |mailbox: &mut QpMailbox| {
        mailbox.context.xrcd = Low24::new(domain.into());
        mailbox.context.pd = Low24::new(0x77);
        mailbox.context.receive_queue = no_receives;
    };
    let mut b = bench.try_make_qp(1, Service::XRC, &cq_b, change).unwrap();
    assert_ne!(b.qpn & TARGET, 0);
    bench.connect(&mut a, (1, b.qpn), how);
    bench.connect(&mut b, (0, a.qpn), how);
    (a, cq_a, b, cq_b)
}

fn send<'a>(
    opcode: WqeOpcode,
    pieces: &'a [(u64, u32, u32)],
    remote: Option<(u64, u32)>,
) -> Send<'a> {
    Send {
        opcode,
        remote,
        pieces,
        imm: 0x1234,
        signalled: true,
    }
}

#[test]
fn each_request_takes_a_receive_of_the_srq_that_it_names() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let how = Connection {
        mtu_code: 1,
        ..Connection::default()
    };
    let mut first = make_srq(&mut bench, 0x40, DOMAIN, 7);
    let mut second = make_srq(&mut bench, 0x41, DOMAIN, 8);
    let (mut a, mut cq_a, b, mut cq_b) = pair(&mut bench, DOMAIN, how);
    let from = bench.make_mr(0, 4096, all_rights());
    let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
    bench.nodes[0].ram.put(from.addr, &bytes);
    // Of four packets.
    let pieces = [(from.addr, 1000, from.key)];
    for srqn in [second.srqn, first.srqn, second.srqn] {
        a.srqn = srqn;
        bench.post(&mut a, &send(WqeOpcode::SEND_IMM, &pieces, None));
    }
    bench.ring_send(&a);
    for (shared, count) in [(&mut first, 1_u16), (&mut second, 2)] {
        for index in 0..count {
            let cqe = bench.poll_cq(&mut shared.cq).unwrap();
            assert_eq!(cqe.qpn.get(), b.qpn);
            assert_eq!(cqe.remote.qpn(), shared.srqn);
            assert_eq!(cqe.owner.opcode(), ReceiveOpcode::SEND_IMM);
            assert_eq!((cqe.wqe_counter.get(), cqe.byte_count.get()), (index, 1000));
            let at = shared.memory.addr + u64::from(index) * ENTRY_LEN;
            assert_eq!(bench.nodes[1].ram.bytes(at, 1000), bytes);
        }
        assert!(bench.poll_cq(&mut shared.cq).is_none());
    }
    assert!(bench.poll_cq(&mut cq_b).is_none(), "the target's own queue");
    let sent = bench.drain(&mut cq_a);
    assert_eq!(sent, [0, 1, 2].map(|slot| (true, slot, Syndrome::NONE)));
}

#[test]
fn remote_accesses_are_judged_by_the_srqs_protection_domain() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let shared = make_srq(&mut bench, 0x40, DOMAIN, 7);
    let other = make_srq(&mut bench, 0x41, DOMAIN, 8);
    let (mut a, mut cq_a, _b, _) = pair(&mut bench, DOMAIN, Connection::default());
    let local = bench.make_mr(0, 8192, all_rights());
    bench.nodes[0].ram.put(local.addr, b"by WRITE");
    let to = Some((shared.memory.addr, shared.memory.key));
    let pieces = [(local.addr, 8, local.key)];
    let back = [(local.addr + 4096, 8, local.key)];
    a.srqn = shared.srqn;
    bench.post(&mut a, &send(WqeOpcode::RDMA_WRITE, &pieces, to));
    bench.post(&mut a, &send(WqeOpcode::RDMA_READ, &back, to));
    a.srqn = other.srqn;
    bench.post(&mut a, &send(WqeOpcode::RDMA_WRITE, &pieces, to));
    bench.ring_send(&a);
    assert_eq!(bench.nodes[0].ram.bytes(local.addr + 4096, 8), b"by WRITE");
    let syndromes: Vec<Syndrome> = bench.drain(&mut cq_a).iter().map(|done| done.2).collect();
    let refused = Syndrome::REMOTE_ACCESS_ERR;
    assert_eq!(syndromes, [Syndrome::NONE, Syndrome::NONE, refused]);
}

/// Also where both sides have domain 0: Linux gives it to what has none.
#[test]
fn an_srq_of_another_domain_is_out_of_reach() {
    for (target, srq, named) in [
        (DOMAIN, DOMAIN + 1, 0x40),
        (DOMAIN, DOMAIN, 0x41),
        (0, 0, 0x40),
    ] {
        let mut bench = Bench::new(2, FabricConfig::default());
        let mut shared = make_srq(&mut bench, 0x40, srq, 7);
        let (mut a, mut cq_a, _b, _) = pair(&mut bench, target, Connection::default());
        let from = bench.make_mr(0, 4096, all_rights());
        a.srqn = named;
        let pieces = [(from.addr, 8, from.key)];
        bench.post(&mut a, &send(WqeOpcode::SEND, &pieces, None));
        bench.ring_send(&a);
        let refused = (true, 0, Syndrome::REMOTE_INVAL_REQ_ERR);
        assert_eq!(
            bench.drain(&mut cq_a),
            [refused],
            "{target} {srq} {named:#x}"
        );
        assert!(bench.poll_cq(&mut shared.cq).is_none());
    }
}

#[test]
fn a_receive_that_is_too_short_ends_at_the_srqs_queue() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let mut shared = make_srq(&mut bench, 0x40, DOMAIN, 7);
    let (mut a, mut cq_a, b, mut cq_b) = pair(&mut bench, DOMAIN, Connection::default());
    let from = bench.make_mr(0, 8192, all_rights());
    a.srqn = shared.srqn;
    let pieces = [(from.addr, 5000, from.key)];
    bench.post(&mut a, &send(WqeOpcode::SEND, &pieces, None));
    bench.ring_send(&a);
    let cqe = bench.poll_cq(&mut shared.cq).unwrap();
    assert_eq!(cqe.owner.opcode(), CQE_OPCODE_ERROR);
    assert_eq!(cqe.syndrome, Syndrome::LOCAL_LENGTH_ERR);
    assert_eq!((cqe.qpn.get(), cqe.remote.qpn()), (b.qpn, shared.srqn));
    assert!(bench.poll_cq(&mut cq_b).is_none());
    let refused = (true, 0, Syndrome::REMOTE_INVAL_REQ_ERR);
    assert_eq!(bench.drain(&mut cq_a), [refused]);
}

#[test]
fn the_completion_queue_of_an_srq_is_in_use() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let shared = make_srq(&mut bench, 0x40, DOMAIN, 7);
    let cqn = shared.cq.cqn;
    let destroyed = bench.command_raw(1, Opcode::HW2SW_CQ, 1, cqn, 0);
    assert_eq!(destroyed, Err(CmdStatus::RESOURCE_BUSY));
    bench.command_raw(1, Opcode::HW2SW_SRQ, 1, 0x40, 0).unwrap();
    bench.command_raw(1, Opcode::HW2SW_CQ, 1, cqn, 0).unwrap();
}
