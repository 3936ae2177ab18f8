//! Tests of the subnet manager and administrator, by ports that answer like a card's agent.
//!
//! * [`ports`]: links are found, configured and brought up. * [`rates`]: links that are full.
//! * [`administrator`]: paths, records, groups. * [`switch`]: the switch for a foreign manager.

mod administrator;
mod ports;
mod rates;
mod switch;

use fabric::{Fabric, FabricConfig, Manager, Operation, Packet, PortIndex, SM_LID, Service};
use hal::{Duration, Instant};
use mad::pma::{self, PortCounters, PortCountersExt};
use mad::sa::{
    LinkRecord, NodeRecord, PKeyTableRecord, PathRecord, PortInfoRecord, Rmpp, SaMad,
    link_record_mask, mc_member_mask, node_record_mask, path_record_mask, pkey_record_mask,
    port_info_record_mask,
};
use mad::smp::{
    LinearForwarding, MulticastForwarding, NodeInfo, NodeType, Notice, PERMISSIVE_LID, PKeyTable,
    PortInfo, PortStateBits, SmInfo, SmState, Smp, SwitchInfo, TRAP_LINK_STATE, attribute, data_of,
};
use mad::{Attribute, Header, Method, MgmtClass, Status};
use verbs::{Gid, Guid, Lid, PKey, Psn, QKey, Qpn};

fn guid(port: PortIndex) -> Guid {
    Guid(0x0002_c903_0000_0001 + port.0 as u64)
}

fn gid(port: usize) -> Gid {
    Gid::new(Gid::DEFAULT_PREFIX, guid(PortIndex(port)))
}

/// Answers an SMP as a card without tables would: what is set is what is.
fn answer(port: PortIndex, packet: &Packet) -> Packet {
    let mut smp = Smp::parse(&packet.payload).unwrap();
    if smp.header.attribute() == Attribute::NODE_INFO {
        smp.data = data_of(&NodeInfo {
            node_type: NodeType::CHANNEL_ADAPTER,
            ports: 1,
            node_guid: guid(port).0.into(),
            port_guid: guid(port).0.into(),
            local_port: 1,
            ..NodeInfo::default()
        });
    } else if smp.header.attribute() == Attribute::PORT_INFO && smp.header.method == Method::GET {
        let mut info = PortInfo::default();
        info.mtu_cap.set_low(5);
        smp.data = data_of(&info);
    }
    Packet {
        payload: smp.into_response(Status::OK).to_mad().to_vec(),
        ..packet.clone()
    }
}

/// Answers everything that comes; says what states were set at each port.
fn settle(fabric: &mut Fabric, now: Instant) -> Vec<(usize, u8)> {
    let mut states = Vec::new();
    fabric.poll(now);
    while let Some((port, packet)) = fabric.next(now) {
        let smp = Smp::parse(&packet.payload).unwrap();
        if smp.header.attribute() == Attribute::PORT_INFO && smp.header.method == Method::SET {
            let info: PortInfo = attribute(&smp.data).unwrap();
            states.push((port.0, info.speed_state.state()));
        }
        fabric.send(now, port, answer(port, &packet));
    }
    states
}

fn subnet(ports: usize) -> (Fabric, Instant) {
    let mut fabric = Fabric::new(FabricConfig::default());
    let now = Instant::from_nanos(1);
    for _ in 0..ports {
        let port = fabric.add_port();
        fabric.set_link(now, port, true);
        settle(&mut fabric, now);
    }
    (fabric, now)
}

fn request_packet(from: usize, request: &SaMad) -> Packet {
    Packet {
        slid: Lid(u16::try_from(from).unwrap() + 2),
        dlid: SM_LID,
        sl: 0,
        vl15: false,
        grh: None,
        pkey: PKey::DEFAULT,
        dqpn: Qpn(1),
        psn: Psn(0),
        solicited: false,
        ack_request: false,
        service: Service::Ud,
        operation: Operation::Datagram {
            qkey: QKey::GSI,
            source: Qpn(1),
            imm: None,
        },
        payload: request.to_mad().to_vec(),
    }
}

fn ask(fabric: &mut Fabric, now: Instant, from: usize, request: &SaMad) -> SaMad {
    fabric.send(now, PortIndex(from), request_packet(from, request));
    let (port, packet) = fabric.next(now).expect("an answer");
    assert_eq!(port.0, from);
    SaMad::parse(&packet.payload).unwrap()
}
