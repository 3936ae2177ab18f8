//! Ports: bring-up by the subnet manager, with the agents in firmware and in software, and links
//! that go down.

use fabric::FabricConfig;
use hal::Duration;
use mad::pma::{self, PortCountersExt};
use mad::smp::{PortCapabilities, PortStateBits, Smp};
use mad::wire::{
    BaseTransport, BaseTransportFlags, DatagramTransport, LocalRoute, LocalRouteFirst, NEXT_BTH,
    Number,
};
use mad::{Attribute, Method, MgmtClass, Status};
use mlx4_hw::command::{CmdStatus, Opcode, op_modifier};
use mlx4_hw::eq::{EventType, PortChange};
use mlx4_hw::path::ScheduleQueue;
use mlx4_hw::qp::{MtuMessage, OptionalParameters, Service};
use mlx4_hw::set_port::{SetPortChange, SetPortIb};
use mlx4_hw::wqe::{
    ControlSize, DataSegment, InlineHeader, MlxControlFlags, MlxControlSegment, WqeOpcode,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::bench::queues::{Connection, Qp, all_rights};
use crate::bench::{Bench, SPECIAL_BASE};

#[test]
fn ports_get_lids_in_order_and_keep_them() {
    let mut bench = Bench::new(3, FabricConfig::default());
    let lids: Vec<u16> = bench.nodes.iter().map(|node| node.lid.0).collect();
    assert_eq!(lids, [2, 3, 4]);
    let index = bench.nodes[1].index;
    bench.cluster.set_link(index, bench.now, 1, false);
    assert_eq!(bench.port_info(1).speed_state.state(), PortStateBits::DOWN);
    bench.cluster.set_link(index, bench.now, 1, true);
    bench.wait_active(1);
    assert_eq!(bench.nodes[1].lid.0, 3);
    let links: Vec<u8> = bench
        .events(1)
        .iter()
        .filter(|eqe| eqe.event == EventType::PORT_CHANGE)
        .map(|eqe| eqe.subtype)
        .collect();
    assert_eq!(
        links,
        [PortChange::ACTIVE, PortChange::DOWN, PortChange::ACTIVE]
    );
}

#[test]
fn the_agent_answers_opensm() {
    // OpenSM 3.3.23: PortInfo's modifier says that it understands extended speeds, and each
    // ConnectX is asked for FDR10.
    let mut bench = Bench::new(1, FabricConfig::default());
    let mut ask = |attribute, modifier| {
        let smp = Smp::request(Method::GET, attribute, modifier, 1);
        bench
            .command(0, Opcode::MAD_IFC, 1, 1, &smp.to_mad())
            .unwrap();
        let answer = Smp::parse(&bench.output::<[u8; 256]>(0)).unwrap();
        (answer.header.status(), answer.data)
    };
    let plain = ask(Attribute::PORT_INFO, 1);
    assert_eq!(
        (ask(Attribute::PORT_INFO, 0x8000_0001), plain.0),
        (plain, Status::OK)
    );
    assert_eq!(ask(Attribute::PORT_INFO, 0x4000_0001).0, Status::BAD_FIELD);
    let (status, data) = ask(Attribute(0xff90), 1);
    assert_eq!((status, data[7], data[15]), (Status::OK, 1, 0));
}

/// `smpquery pkeys` and ibdiagnet name a port there.
#[test]
fn the_agent_ignores_a_port_in_the_modifier_of_the_partition_table() {
    let mut bench = Bench::new(1, FabricConfig::default());
    let mut ask = |modifier| {
        let smp = Smp::request(Method::GET, Attribute::PKEY_TABLE, modifier, 1);
        bench
            .command(0, Opcode::MAD_IFC, 1, 1, &smp.to_mad())
            .unwrap();
        let answer = Smp::parse(&bench.output::<[u8; 256]>(0)).unwrap();
        (answer.header.status(), answer.data)
    };
    let plain = ask(0);
    assert_eq!((plain.0, &plain.1[..2]), (Status::OK, &[0xff, 0xff][..]));
    assert_eq!(ask(1 << 16), plain);
    assert_eq!(ask(1 << 16 | 4).0, Status::BAD_FIELD);
}

/// Linux `hw/mlx4/main.c`, `mlx4_ib_SET_PORT`: a mask and no bit that asks for it.
#[test]
fn a_port_takes_the_capability_mask_that_it_is_given() {
    let mut bench = Bench::new(1, FabricConfig::default());
    let before = bench.port_info(0).capabilities.get();
    let is_sm = before | PortCapabilities::SM;
    for capabilities in [is_sm, before] {
        let mut set = SetPortIb::new_zeroed();
        set.capability_mask = capabilities.into();
        bench
            .command(
                0,
                Opcode::SET_PORT,
                op_modifier::SET_PORT_IB,
                1,
                set.as_bytes(),
            )
            .unwrap();
        assert_eq!(bench.port_info(0).capabilities.get(), capabilities);
    }
}

#[test]
fn a_port_refuses_more_lanes_of_an_mtu_than_its_buffers_hold() {
    let mut bench = Bench::new(1, FabricConfig::default());
    bench.command_raw(0, Opcode::CLOSE_PORT, 0, 1, 0).unwrap();
    for (lanes, mtu, expected) in [
        (8, 5, Err(CmdStatus::BAD_SIZE)),
        (8, 4, Ok(4)),
        (4, 5, Ok(3)),
        (2, 5, Ok(2)),
        (1, 5, Ok(1)),
    ] {
        let mut set = SetPortIb::new_zeroed();
        set.change = SetPortChange::new()
            .with_change_mtu_cap(true)
            .with_mtu_cap(mtu)
            .with_change_vl_cap(true)
            .with_vl_cap(lanes);
        let outcome = bench.command(
            0,
            Opcode::SET_PORT,
            op_modifier::SET_PORT_IB,
            1,
            set.as_bytes(),
        );
        let info = bench.port_info(0);
        let code = outcome.map(|_| info.vl_cap.high());
        assert_eq!(code, expected, "{lanes} lanes of MTU code {mtu}");
        assert!(info.operational_vls.high() <= info.vl_cap.high());
    }
}

/// `perfquery -x` and `perfquery -R` on a port of an adapter.
#[test]
fn a_port_counts_and_its_counters_can_be_cleared() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (mut a, ..) = bench.pair(Service::RC, Connection::default());
    let (from, into) = (
        bench.make_mr(0, 4096, all_rights()),
        bench.make_mr(1, 4096, all_rights()),
    );
    bench.post(
        &mut a,
        &crate::bench::queues::Send {
            opcode: WqeOpcode::RDMA_WRITE,
            remote: Some((into.addr, into.key)),
            pieces: &[(from.addr, 8, from.key)],
            imm: 0,
            signalled: true,
        },
    );
    let before = port_counters(&mut bench, Method::GET, 0);
    bench.ring_send(&a);
    let after = port_counters(&mut bench, Method::GET, 0);
    // A WRITE of 8 bytes: 8 + 12 + 16 bytes of headers, 4 of a checksum; and its acknowledgement.
    assert_eq!(after.xmit_data.get() - before.xmit_data.get(), 48 / 4);
    assert_eq!(after.rcv_data.get() - before.rcv_data.get(), 28 / 4);
    let unicast = after.by_kind[0].get() - before.by_kind[0].get();
    assert_eq!((unicast, after.by_kind[2].get()), (1, 0));
    let cleared = port_counters(&mut bench, Method::SET, 1 << 2);
    assert_eq!(
        (cleared.xmit_packets.get(), cleared.rcv_packets),
        (0, after.rcv_packets)
    );
}

/// Queries the extended counters of port 1 of the first node; a Set clears those selected.
fn port_counters(bench: &mut Bench, method: Method, select: u16) -> PortCountersExt {
    let mut mad = Smp::request(method, Attribute::PORT_COUNTERS_EXT, 0, 1).to_mad();
    mad[1] = MgmtClass::PERF.0;
    let wanted = PortCountersExt {
        port: 1,
        select: select.into(),
        ..PortCountersExt::default()
    };
    mad[pma::DATA..].fill(0);
    mad[pma::DATA..pma::DATA + size_of_val(&wanted)].copy_from_slice(wanted.as_bytes());
    bench.command(0, Opcode::MAD_IFC, 3, 1, &mad).unwrap();
    let answer: mad::Mad = bench.output(0);
    PortCountersExt::read_from_prefix(&answer[pma::DATA..])
        .unwrap()
        .0
}

#[test]
fn a_machine_that_ends_and_comes_back_starts_anew() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (mut a, mut cq, _b, _) = bench.pair(
        Service::RC,
        Connection {
            retries: 1,
            ..Connection::default()
        },
    );
    let region = bench.make_mr(0, 4096, all_rights());
    let index = bench.nodes[1].index;
    bench.cluster.detach(index, bench.now);
    bench.post(
        &mut a,
        &crate::bench::queues::Send {
            opcode: WqeOpcode::RDMA_WRITE,
            remote: Some((0, 0)),
            pieces: &[(region.addr, 8, region.key)],
            imm: 0,
            signalled: true,
        },
    );
    bench.ring_send(&a);
    bench.run(Duration::from_millis(20));
    assert_eq!(
        bench.drain(&mut cq),
        [(true, 0, mlx4_hw::cq::Syndrome::TRANSPORT_RETRY_EXC_ERR)]
    );
    let ram = bench.nodes[1].ram.clone();
    bench.cluster.attach(index, bench.now, ram);
    bench.nodes[1].next_mtt = 0;
    bench.bring_up(1);
    bench.wait_active(1);
    assert_eq!(bench.nodes[1].lid.0, 3);
}

/// Builds a send on QP0 as software does: route, transport and datagram header inline, the
/// datagram, room for the CRC.
fn management_send(data: DataSegment) -> Vec<u8> {
    let headers = (
        LocalRoute {
            first: LocalRouteFirst::new().with_lane(15).with_next(NEXT_BTH),
            dlid: 0xffff.into(),
            len: 72.into(),
            slid: 0xffff.into(),
        },
        BaseTransport {
            opcode: mad::wire::UD_SEND_ONLY,
            flags: BaseTransportFlags::new(),
            pkey: 0xffff.into(),
            destination: Number::new(),
            psn: Number::new(),
        },
        DatagramTransport {
            qkey: 0.into(),
            source: Number::new(),
        },
    );
    let mut control = MlxControlSegment::new_zeroed();
    control.flags = MlxControlFlags::new()
        .with_vl15(true)
        .with_slid_from_header(true);
    control.remote_lid = 0xffff.into();
    control.size = ControlSize::new().with_units(5);
    let mut bytes = control.as_bytes().to_vec();
    bytes.extend_from_slice(
        InlineHeader::new()
            .with_inline(true)
            .with_bytes(28)
            .as_bytes(),
    );
    bytes.extend_from_slice(headers.0.as_bytes());
    bytes.extend_from_slice(headers.1.as_bytes());
    bytes.extend_from_slice(headers.2.as_bytes());
    bytes.extend_from_slice(data.as_bytes());
    bytes.extend_from_slice(
        InlineHeader::new()
            .with_inline(true)
            .with_bytes(4)
            .as_bytes(),
    );
    bytes.extend_from_slice(&[0; 12]);
    bytes
}

fn make_qp0(bench: &mut Bench, cq: &crate::bench::queues::Cq) -> Qp {
    let free = core::mem::replace(&mut bench.nodes[0].next_qpn, SPECIAL_BASE);
    let mut qp = bench.make_qp(0, Service::MLX, cq);
    bench.nodes[0].next_qpn = free;
    qp.context.mtu = MtuMessage::new().with_mtu_code(5);
    qp.context.primary_path.schedule = ScheduleQueue::of_qp0(1);
    bench
        .transition(&qp, Opcode::INIT2RTR_QP, OptionalParameters::new())
        .unwrap();
    bench
        .transition(&qp, Opcode::RTR2RTS_QP, OptionalParameters::new())
        .unwrap();
    qp
}

#[test]
fn software_relays_management_from_qp0_to_the_firmware_and_back() {
    let mut bench = Bench::cold(1, FabricConfig::default());
    bench.bring_up(0);
    bench.command_raw(0, Opcode::CLOSE_PORT, 0, 1, 0).unwrap();
    bench
        .command_raw(0, Opcode::CONF_SPECIAL_QP, 0, SPECIAL_BASE, 0)
        .unwrap();
    let mut cq = bench.make_cq(0, 6);
    let mut qp0 = make_qp0(&mut bench, &cq);
    let region = bench.make_mr(0, 8192, all_rights());
    let (receive, answer) = (region.addr, region.addr + 4096);
    bench.post_receive(&mut qp0, receive, 296, region.key);
    bench.command_raw(0, Opcode::INIT_PORT, 0, 1, 0).unwrap();
    for _ in 0..100 {
        while let Some(cqe) = bench.poll_cq(&mut cq) {
            if cqe.owner.send() {
                continue;
            }
            assert_eq!((cqe.byte_count.get(), cqe.slid.get()), (296, 0xffff));
            let mad = bench.nodes[0].ram.bytes(receive + 40, 256);
            bench.post_receive(&mut qp0, receive, 296, region.key);
            bench.command(0, Opcode::MAD_IFC, 1, 1, &mad).unwrap();
            let response: [u8; 256] = bench.output(0);
            bench.nodes[0].ram.put(answer, &response);
            let send = management_send(DataSegment::new(answer, 256, region.key));
            bench.post_bytes(&mut qp0, WqeOpcode::SEND, &send);
            bench.ring_send(&qp0);
        }
        bench.step();
    }
    let info = bench.port_info(0);
    assert_eq!(info.speed_state.state(), PortStateBits::ACTIVE);
    assert_eq!((info.lid.get(), info.sm_lid.get()), (2, 1));
}

/// `ibportstate LID PORT width 1`, then `reset`: the width counts when the link trains next, and
/// both ends have it.
#[test]
fn a_link_has_the_width_that_both_ends_may_use() {
    use mad::smp::LinkWidth;
    let mut bench = Bench::new(1, FabricConfig::default());
    assert_eq!(bench.port_info(0).width_active, LinkWidth::X4);
    let set = |bench: &mut Bench, widths: u8| {
        let mut info = bench.port_info(0);
        info.width_enabled = widths;
        info.speed_state.set_state(PortStateBits::NO_CHANGE);
        let smp = Smp {
            data: mad::smp::data_of(&info),
            ..Smp::request(Method::SET, Attribute::PORT_INFO, 0, 1)
        };
        bench
            .command(0, Opcode::MAD_IFC, 3, 1, &smp.to_mad())
            .unwrap();
        let answer = Smp::parse(&bench.output::<[u8; 256]>(0)).unwrap();
        answer.header.status()
    };
    assert_eq!(set(&mut bench, 8), Status::BAD_FIELD, "twelve lanes");
    assert_eq!(set(&mut bench, LinkWidth::X1), Status::OK);
    assert_eq!(bench.port_info(0).width_active, LinkWidth::X4, "not yet");
    let index = bench.nodes[0].index;
    bench.cluster.set_link(index, bench.now, 1, false);
    bench.cluster.set_link(index, bench.now, 1, true);
    bench.wait_active(0);
    // The fabric's own manager has allowed all widths again by then.
    assert_eq!(bench.port_info(0).width_active, LinkWidth::X1);
}
