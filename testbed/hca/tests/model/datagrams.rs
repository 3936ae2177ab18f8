//! Datagrams, multicast, shared receives, registration by work request, unreliable connections.

use fabric::FabricConfig;
use mad::sa::{JoinState, McMemberRecord, SaMad, mc_member_mask};
use mad::{Attribute, Method, Status};
use mlx4_hw::bits::{Low, Low24, QueueBuffer};
use mlx4_hw::command::Opcode;
use mlx4_hw::cq::{ReceiveOpcode, Syndrome};
use mlx4_hw::eq::EventType;
use mlx4_hw::extended::{FastRegisterFlags, FastRegisterSegment};
use mlx4_hw::mgm::{GroupEntry, GroupMembers, GroupQp};
use mlx4_hw::mpt::{HwKey, MPT_STATUS_FREE, Mpt, MptFlags, MptPd};
use mlx4_hw::mtt::MttEntry;
use mlx4_hw::path::{AddressVector, GrhPathBits, PortPd};
use mlx4_hw::qp::{MtuMessage, OptionalParameters, QueueSize, Service, SrqUse};
use mlx4_hw::srq::{NextSegment, SrqContext, SrqSize};
use mlx4_hw::wqe::{
    COMPLETION_WANTED, ControlFlags, ControlSegment, ControlSize, DataSegment, DatagramSegment,
    WqeOpcode,
};
use verbs::Lid;
use zerocopy::{FromZeros, IntoBytes};

use crate::bench::queues::{Connection, Cq, Qp, Send, all_rights};
use crate::bench::{Bench, PD, SPECIAL_BASE};

const QKEY: u32 = 0x11_1111;

fn ready(bench: &mut Bench, qp: &mut Qp) {
    qp.context.mtu = MtuMessage::new().with_mtu_code(5).with_log_message(12);
    bench
        .transition(qp, Opcode::INIT2RTR_QP, OptionalParameters::new())
        .unwrap();
    bench
        .transition(qp, Opcode::RTR2RTS_QP, OptionalParameters::new())
        .unwrap();
}

pub(crate) fn datagram_pair(bench: &mut Bench) -> (Qp, Cq, Qp, Cq) {
    let (cq_a, cq_b) = (bench.make_cq(0, 6), bench.make_cq(1, 6));
    let (mut a, mut b) = (
        bench.make_qp(0, Service::UD, &cq_a),
        bench.make_qp(1, Service::UD, &cq_b),
    );
    ready(bench, &mut a);
    ready(bench, &mut b);
    (a, cq_a, b, cq_b)
}

struct To {
    lid: Lid,
    qpn: u32,
    qkey: u32,
    gid: Option<[u8; 16]>,
}

fn post(bench: &mut Bench, qp: &mut Qp, to: &To, piece: (u64, u32, u32)) {
    let mut control = ControlSegment::new_zeroed();
    control.size = ControlSize::new().with_units(5);
    control.flags = ControlFlags::new().with_completion(COMPLETION_WANTED);
    let mut datagram = DatagramSegment::new_zeroed();
    datagram.vector = AddressVector::new_zeroed();
    datagram.vector.port_pd = PortPd::new().with_port(1).with_pd(PD);
    datagram.vector.dlid = to.lid.0.into();
    if let Some(gid) = to.gid {
        datagram.vector.grh = GrhPathBits::new().with_grh(true);
        datagram.vector.dgid = gid;
    }
    datagram.qpn = Low24::new(to.qpn);
    datagram.qkey = to.qkey.into();
    let mut bytes = control.as_bytes().to_vec();
    bytes.extend_from_slice(datagram.as_bytes());
    bytes.extend_from_slice(DataSegment::new(piece.0, piece.1, piece.2).as_bytes());
    bench.post_bytes(qp, WqeOpcode::SEND, &bytes);
    bench.ring_send(qp);
}

/// Sends a piece of memory from node 0 to a queue pair of node 1.
pub(crate) fn post_to(bench: &mut Bench, qp: &mut Qp, peer: &Qp, piece: (u64, u32, u32)) {
    let to = To {
        lid: bench.nodes[1].lid,
        qpn: peer.qpn,
        qkey: QKEY,
        gid: None,
    };
    post(bench, qp, &to, piece);
}

/// Sends a piece of memory to QP1 of a node.
pub(crate) fn post_to_agent(bench: &mut Bench, qp: &mut Qp, node: usize, piece: (u64, u32, u32)) {
    let to = To {
        lid: bench.nodes[node].lid,
        qpn: 1,
        qkey: verbs::QKey::GSI.0,
        gid: None,
    };
    post(bench, qp, &to, piece);
}

#[test]
fn a_datagram_arrives_behind_the_place_of_its_route_header() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (mut a, mut cq_a, mut b, mut cq_b) = datagram_pair(&mut bench);
    let from = bench.make_mr(0, 4096, all_rights());
    let into = bench.make_mr(1, 8192, all_rights());
    bench.nodes[0].ram.put(from.addr, b"datagram");
    bench.post_receive(&mut b, into.addr, 4136, into.key);
    let to = To {
        lid: bench.nodes[1].lid,
        qpn: b.qpn,
        qkey: QKEY,
        gid: None,
    };
    post(
        &mut bench,
        &mut a,
        &To { qkey: 1, ..to },
        (from.addr, 8, from.key),
    );
    let to = To {
        lid: bench.nodes[1].lid,
        qpn: b.qpn,
        qkey: QKEY,
        gid: None,
    };
    post(&mut bench, &mut a, &to, (from.addr, 8, from.key));
    assert_eq!(
        bench.drain(&mut cq_a).len(),
        2,
        "the sender learns nothing of a wrong Q_Key"
    );
    let cqe = bench.poll_cq(&mut cq_b).unwrap();
    assert_eq!(
        (cqe.byte_count.get(), cqe.remote.qpn(), cqe.slid.get()),
        (48, a.qpn, bench.nodes[0].lid.0)
    );
    assert!(!cqe.remote.grh());
    assert_eq!(bench.nodes[1].ram.bytes(into.addr + 40, 8), b"datagram");
    assert!(bench.poll_cq(&mut cq_b).is_none());
}

#[test]
fn a_datagram_longer_than_a_packet_stops_the_send_queue() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (mut a, mut cq_a, b, _) = datagram_pair(&mut bench);
    let from = bench.make_mr(0, 8192, all_rights());
    let to = To {
        lid: bench.nodes[1].lid,
        qpn: b.qpn,
        qkey: QKEY,
        gid: None,
    };
    post(&mut bench, &mut a, &to, (from.addr, 4097, from.key));
    assert_eq!(
        bench.drain(&mut cq_a),
        [(true, 0, Syndrome::LOCAL_LENGTH_ERR)]
    );
    bench
        .transition(&a, Opcode::SQERR2RTS_QP, OptionalParameters::new())
        .unwrap();
    post(&mut bench, &mut a, &to, (from.addr, 4096, from.key));
    assert_eq!(bench.drain(&mut cq_a), [(true, 1, Syndrome::NONE)]);
}

/// Asks the subnet administrator from QP1, by a datagram queue pair that stands for it.
fn ask(bench: &mut Bench, request: &SaMad) -> SaMad {
    bench
        .command_raw(0, Opcode::CONF_SPECIAL_QP, 1, SPECIAL_BASE, 0)
        .unwrap();
    let mut cq = bench.make_cq(0, 6);
    let free = core::mem::replace(&mut bench.nodes[0].next_qpn, SPECIAL_BASE + 2);
    let mut qp1 = bench.make_qp(0, Service::UD, &cq);
    bench.nodes[0].next_qpn = free;
    qp1.context.qkey = verbs::QKey::GSI.0.into();
    bench
        .transition(
            &qp1,
            Opcode::INIT2INIT_QP,
            OptionalParameters::new().with_qkey(true),
        )
        .unwrap();
    ready(bench, &mut qp1);
    let region = bench.make_mr(0, 8192, all_rights());
    bench.nodes[0].ram.put(region.addr, &request.to_mad());
    bench.post_receive(&mut qp1, region.addr + 4096, 296, region.key);
    let to = To {
        lid: fabric::SM_LID,
        qpn: 1,
        qkey: verbs::QKey::GSI.0,
        gid: None,
    };
    post(bench, &mut qp1, &to, (region.addr, 256, region.key));
    let cqes = bench.drain(&mut cq);
    bench
        .command_raw(0, Opcode::QP_2RST, 2, qp1.qpn, 0)
        .unwrap();
    // The agent sent it from an ordinary queue pair's number, so the answer comes to that.
    assert_eq!(cqes.len(), 2, "sent and answered");
    SaMad::parse(&bench.nodes[0].ram.bytes(region.addr + 4096 + 40, 256)).unwrap()
}

#[test]
fn multicast_reaches_those_who_joined_and_attached() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (a, mut cq_a, mut b, _) = datagram_pair(&mut bench);
    let mgid = [0xff, 0x12, 0xa0, 0x1b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
    let record = McMemberRecord {
        mgid,
        qkey: QKEY.into(),
        scope_join: JoinState::new().with_scope(2).with_join(1),
        ..McMemberRecord::default()
    };
    let mask = mc_member_mask::MGID | mc_member_mask::CREATE;
    let request = SaMad::request(Method::SET, Attribute::MC_MEMBER_RECORD, mask, &record, 77);
    let answer = ask(&mut bench, &request);
    assert_eq!(
        (answer.header.status(), answer.header.transaction.get()),
        (Status::OK, 77)
    );
    let group: McMemberRecord = answer.record().unwrap();
    assert!(group.mlid.get() > 0xc000);
    attach(&mut bench, 0, mgid, GroupQp::new().with_qpn(a.qpn));
    let into = bench.make_mr(0, 4096, all_rights());
    let from = bench.make_mr(1, 4096, all_rights());
    let mut receiver = a;
    bench.post_receive(&mut receiver, into.addr, 256, into.key);
    let to = To {
        lid: Lid(group.mlid.get()),
        qpn: 0xff_ffff,
        qkey: QKEY,
        gid: Some(mgid),
    };
    post(&mut bench, &mut b, &to, (from.addr, 8, from.key));
    let cqe = bench.poll_cq(&mut cq_a).expect("the group's datagram");
    assert!(cqe.remote.grh());
    assert_eq!(bench.nodes[0].ram.bytes(into.addr + 24, 16), mgid);
}

/// Attaches a queue pair at its card, in the chain that the card's hash names.
fn attach(bench: &mut Bench, node: usize, mgid: [u8; 16], member: GroupQp) {
    let bucket = bench.command(node, Opcode::MGID_HASH, 0, 0, &mgid).unwrap() & 0xffff;
    let mut entry = GroupEntry::new_zeroed();
    entry.gid = mgid;
    entry.members = GroupMembers::new().with_count(1);
    entry.qps[0] = member;
    let bucket = u32::try_from(bucket).unwrap();
    bench
        .command(node, Opcode::WRITE_MCG, 0, bucket, entry.as_bytes())
        .unwrap();
}

#[test]
fn a_member_hears_itself_unless_it_asked_not_to() {
    for (blocked, heard) in [(false, 1), (true, 0)] {
        let mut bench = Bench::new(1, FabricConfig::default());
        let mut cq = bench.make_cq(0, 6);
        let mut qp = bench.make_qp(0, Service::UD, &cq);
        ready(&mut bench, &mut qp);
        let mgid = [0xff, 0x12, 0xa0, 0x1b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
        let member = GroupQp::new().with_qpn(qp.qpn).with_block_loopback(blocked);
        attach(&mut bench, 0, mgid, member);
        let memory = bench.make_mr(0, 4096, all_rights());
        bench.post_receive(&mut qp, memory.addr, 256, memory.key);
        let to = To {
            lid: Lid(0xc007),
            qpn: 0xff_ffff,
            qkey: QKEY,
            gid: Some(mgid),
        };
        post(&mut bench, &mut qp, &to, (memory.addr + 512, 8, memory.key));
        let received =
            std::iter::from_fn(|| bench.poll_cq(&mut cq)).filter(|cqe| !cqe.owner.send());
        assert_eq!(received.count(), heard, "blocked: {blocked}");
    }
}

/// Makes a shared receive queue of four entries, of which 0, 2 and 1 are posted, in this order.
fn make_srq(bench: &mut Bench, srqn: u32) {
    let buffer = bench.alloc(1, 4096);
    let record = bench.alloc(1, 64);
    let into = bench.make_mr(1, 4096, all_rights());
    let mut srq = SrqContext::new_zeroed();
    srq.size = SrqSize::new().with_log_size(2);
    srq.log_stride_less_4 = Low::new(1);
    srq.buffer = QueueBuffer::new(bench.map(1, buffer, 4096), 12);
    srq.pd = Low24::new(PD);
    srq.doorbell_record = record.into();
    bench
        .command(1, Opcode::SW2HW_SRQ, 0, srqn, srq.as_bytes())
        .unwrap();
    for (index, next) in [(0_u64, 2_u16), (2, 1), (1, 3)] {
        let mut link = NextSegment::new_zeroed();
        link.next = next.into();
        bench.nodes[1].ram.put(buffer + index * 32, link.as_bytes());
        let piece = DataSegment::new(into.addr + index * 64, 64, into.key);
        bench.nodes[1]
            .ram
            .put(buffer + index * 32 + 16, piece.as_bytes());
    }
    bench.nodes[1].ram.put(record, &3_u32.to_be_bytes());
}

/// Linux leaves the size of a receive queue that there is not at a stride of 0 bytes, which
/// overflows its field.
#[test]
fn a_queue_pair_with_shared_receives_sends_whatever_its_receive_queues_size() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (mut cq_a, mut cq_b) = (bench.make_cq(0, 6), bench.make_cq(1, 6));
    let srqn = 0x40;
    make_srq(&mut bench, srqn);
    let mut a = bench.make_qp(0, Service::RC, &cq_a);
    let mut b = bench.make_qp(1, Service::RC, &cq_b);
    bench.command_raw(1, Opcode::QP_2RST, 2, b.qpn, 0).unwrap();
    b.context.srq = SrqUse::new().with_enable(true).with_srqn(srqn);
    b.context.receive_queue = QueueSize::from_bits(0xfc);
    bench
        .transition(&b, Opcode::RST2INIT_QP, OptionalParameters::new())
        .unwrap();
    bench.connect(&mut a, (1, b.qpn), Connection::default());
    bench.connect(&mut b, (0, a.qpn), Connection::default());
    let from = bench.make_mr(1, 4096, all_rights());
    let into = bench.make_mr(0, 4096, all_rights());
    bench.post_receive(&mut a, into.addr, 64, into.key);
    let pieces = [(from.addr, 8, from.key)];
    let send = Send {
        opcode: WqeOpcode::SEND,
        remote: None,
        pieces: &pieces,
        imm: 0,
        signalled: true,
    };
    bench.post(&mut b, &send);
    bench.ring_send(&b);
    assert!(bench.poll_cq(&mut cq_a).is_some(), "the receive");
    assert!(bench.poll_cq(&mut cq_b).is_some(), "the send");
}

#[test]
fn receives_are_shared_along_their_links_and_the_limit_is_reported() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (cq_a, mut cq_b) = (bench.make_cq(0, 6), bench.make_cq(1, 6));
    let srqn = 0x40;
    make_srq(&mut bench, srqn);
    bench.command_raw(1, Opcode::ARM_SRQ, 0, srqn, 2).unwrap();
    let mut a = bench.make_qp(0, Service::RC, &cq_a);
    let mut b = bench.make_qp(1, Service::RC, &cq_b);
    bench.command_raw(1, Opcode::QP_2RST, 2, b.qpn, 0).unwrap();
    b.context.srq = SrqUse::new().with_enable(true).with_srqn(srqn);
    bench
        .transition(&b, Opcode::RST2INIT_QP, OptionalParameters::new())
        .unwrap();
    bench.connect(&mut a, (1, b.qpn), Connection::default());
    bench.connect(&mut b, (0, a.qpn), Connection::default());
    bench.events(1);
    let from = bench.make_mr(0, 4096, all_rights());
    for _ in 0..3 {
        let pieces = [(from.addr, 8, from.key)];
        bench.post(
            &mut a,
            &Send {
                opcode: WqeOpcode::SEND,
                remote: None,
                pieces: &pieces,
                imm: 0,
                signalled: true,
            },
        );
    }
    bench.ring_send(&a);
    let taken: Vec<u16> = bench
        .drain(&mut cq_b)
        .iter()
        .map(|(_, index, _)| *index)
        .collect();
    assert_eq!(taken, [0, 2, 1]);
    let limits = bench
        .events(1)
        .iter()
        .filter(|eqe| eqe.event == EventType::SRQ_LIMIT)
        .count();
    assert_eq!(limits, 1);
}

#[test]
fn a_region_registered_by_work_request_lives_until_it_is_invalidated() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (mut a, mut cq, mut b, mut cq_b) = bench.pair(Service::RC, Connection::default());
    let from = bench.make_mr(0, 4096, all_rights());
    let into = bench.make_mr(1, 4096, all_rights());
    let page = bench.alloc(1, 4096);
    let list = bench.alloc(1, 4096);
    bench.nodes[1].ram.put(list, MttEntry::new(page).as_bytes());
    let index = bench.nodes[1].next_mpt;
    let key = HwKey::new(index, 9);
    let mut mpt = Mpt::new_zeroed();
    mpt.flags = MptFlags::new()
        .with_status(MPT_STATUS_FREE)
        .with_region(true);
    mpt.key = key;
    mpt.pd = MptPd::new()
        .with_pd(PD)
        .with_fast_register_enable(true)
        .with_invalidate_enable(true)
        .with_remote_invalidate_enable(true);
    mpt.mtt_offset = bench.map(1, page, 4096).into();
    mpt.mtt_len = 1.into();
    bench
        .command(1, Opcode::SW2HW_MPT, 0, index, mpt.as_bytes())
        .unwrap();
    let mut segment = FastRegisterSegment::new_zeroed();
    segment.flags = FastRegisterFlags::new()
        .with_remote_write(true)
        .with_local_write(true);
    segment.key = key.to_key().into();
    segment.page_list = list.into();
    segment.start = 0x1_0000.into();
    segment.len = 4096.into();
    segment.log_page = 12.into();
    let mut control = ControlSegment::new_zeroed();
    control.size = ControlSize::new().with_units(4);
    control.flags = ControlFlags::new()
        .with_completion(COMPLETION_WANTED)
        .with_strong_order(true);
    let mut bytes = control.as_bytes().to_vec();
    bytes.extend_from_slice(segment.as_bytes());
    bench.post_bytes(&mut b, WqeOpcode::FAST_REGISTER, &bytes);
    bench.ring_send(&b);
    assert_eq!(bench.drain(&mut cq_b), [(true, 0, Syndrome::NONE)]);

    bench.nodes[0].ram.put(from.addr, b"fast");
    let pieces = [(from.addr, 4, from.key)];
    let write = Send {
        opcode: WqeOpcode::RDMA_WRITE,
        remote: Some((0x1_0010, key.to_key())),
        pieces: &pieces,
        imm: 0,
        signalled: true,
    };
    bench.post(&mut a, &write);
    bench.post_receive(&mut b, into.addr, 64, into.key);
    let inval = Send {
        opcode: WqeOpcode::SEND_INVAL,
        remote: None,
        imm: key.to_key(),
        ..write
    };
    bench.post(&mut a, &inval);
    bench.post(&mut a, &write);
    bench.ring_send(&a);
    let expected = [
        (true, 0, Syndrome::NONE),
        (true, 1, Syndrome::NONE),
        (true, 2, Syndrome::REMOTE_ACCESS_ERR),
    ];
    assert_eq!(bench.drain(&mut cq), expected);
    assert_eq!(bench.nodes[1].ram.bytes(page + 0x10, 4), b"fast");
    let cqe = bench.poll_cq(&mut cq_b).unwrap();
    assert_eq!(
        (cqe.owner.opcode(), cqe.immediate_or_pkey.get()),
        (ReceiveOpcode::SEND_INVAL, key.to_key())
    );
}

#[test]
fn unreliable_connections_deliver_and_complete_at_once() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let how = Connection {
        mtu_code: 1,
        ..Connection::default()
    };
    let (mut a, mut cq_a, mut b, mut cq_b) = bench.pair(Service::UC, how);
    let from = bench.make_mr(0, 4096, all_rights());
    let into = bench.make_mr(1, 4096, all_rights());
    bench.nodes[0].ram.put(from.addr, &[7; 1000]);
    let pieces = [(from.addr, 1000, from.key)];
    let send = Send {
        opcode: WqeOpcode::SEND,
        remote: None,
        pieces: &pieces,
        imm: 0,
        signalled: true,
    };
    bench.post(&mut a, &send);
    bench.ring_send(&a);
    assert_eq!(
        bench.drain(&mut cq_a),
        [(true, 0, Syndrome::NONE)],
        "nobody listens, nobody tells"
    );
    assert!(bench.drain(&mut cq_b).is_empty());
    bench.post_receive(&mut b, into.addr, 4096, into.key);
    bench.post(&mut a, &send);
    bench.ring_send(&a);
    assert_eq!(bench.drain(&mut cq_b), [(false, 0, Syndrome::NONE)]);
    assert_eq!(bench.nodes[1].ram.bytes(into.addr, 1000), [7; 1000]);
}
