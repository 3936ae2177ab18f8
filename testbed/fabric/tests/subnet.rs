//! Tests of the subnet manager and administrator, by ports that answer like a card's agent.

use fabric::{Fabric, FabricConfig, Manager, Operation, Packet, PortIndex, SM_LID, Service};
use hal::{Duration, Instant};
use mad::pma::{self, PortCounters, PortCountersExt};
use mad::sa::{
    NodeRecord, PathRecord, PortInfoRecord, Rmpp, SaMad, mc_member_mask, node_record_mask,
    path_record_mask, port_info_record_mask,
};
use mad::smp::{
    LinearForwarding, MulticastForwarding, NodeInfo, NodeType, Notice, PERMISSIVE_LID, PortInfo,
    PortStateBits, SmInfo, SmState, Smp, SwitchInfo, TRAP_LINK_STATE, attribute, data_of,
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

#[test]
fn ports_are_configured_armed_and_activated_in_turn() {
    let mut fabric = Fabric::new(FabricConfig::default());
    let now = Instant::from_nanos(1);
    let port = fabric.add_port();
    fabric.set_link(now, port, true);
    assert_eq!(settle(&mut fabric, now), [(0, 0), (0, 3), (0, 4)]);
    assert_eq!(fabric.deadline(), None, "nothing is left to wait for");
}

#[test]
fn a_port_that_does_not_answer_is_asked_again_ever_more_slowly() {
    let mut fabric = Fabric::new(FabricConfig::default());
    let mut now = Instant::from_nanos(1);
    let port = fabric.add_port();
    fabric.set_link(now, port, true);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        assert!(fabric.next(now).is_some());
        let due = fabric.poll(now).expect("a retry");
        pauses.push(due.since(now));
        now = due;
        fabric.poll(now);
    }
    assert!(
        pauses.is_sorted() && pauses[0] < pauses[7] && pauses[7] < Duration::from_secs(1),
        "{pauses:?}"
    );
}

#[test]
fn a_link_in_training_is_left_alone() {
    let mut fabric = Fabric::new(FabricConfig {
        training: Duration::from_millis(300),
        ..FabricConfig::default()
    });
    let now = Instant::from_nanos(1);
    let port = fabric.add_port();
    fabric.set_link(now, port, true);
    assert_eq!(settle(&mut fabric, now + Duration::from_millis(299)), []);
    assert!(!settle(&mut fabric, now + Duration::from_millis(300)).is_empty());
}

#[test]
fn a_path_is_found_by_gid() {
    let (mut fabric, now) = subnet(3);
    let wanted = PathRecord {
        dgid: gid(2).0,
        sgid: gid(0).0,
        ..PathRecord::default()
    };
    let mask = path_record_mask::DGID | path_record_mask::SGID;
    let request = SaMad::request(Method::GET, Attribute::PATH_RECORD, mask, &wanted, 5);
    let response = ask(&mut fabric, now, 0, &request);
    assert_eq!(
        (response.header.method, response.header.status()),
        (Method::GET_RESP, Status::OK)
    );
    let path: PathRecord = response.record().unwrap();
    assert_eq!(
        (path.slid.get(), path.dlid.get(), path.mtu.value()),
        (2, 4, 5)
    );
    // One that is not there, and one that went away.
    let nobody = PathRecord {
        dgid: gid(9).0,
        ..wanted
    };
    let request = SaMad::request(Method::GET, Attribute::PATH_RECORD, mask, &nobody, 6);
    assert_eq!(
        ask(&mut fabric, now, 0, &request).header.status(),
        Status::SA_NO_RECORDS
    );
    fabric.set_link(now, PortIndex(2), false);
    let request = SaMad::request(Method::GET, Attribute::PATH_RECORD, mask, &wanted, 7);
    assert_eq!(
        ask(&mut fabric, now, 0, &request).header.status(),
        Status::SA_NO_RECORDS
    );
}

#[test]
fn a_small_table_comes_in_one_datagram() {
    let (mut fabric, now) = subnet(2);
    let wanted = PathRecord::default();
    let request = SaMad::request(Method::GET_TABLE, Attribute::PATH_RECORD, 0, &wanted, 5);
    let response = ask(&mut fabric, now, 1, &request);
    assert_eq!(
        (response.header.method, response.attribute_offset.get()),
        (Method::GET_TABLE_RESP, 8)
    );
    assert_eq!(response.rmpp, Rmpp::data(1, true, 20 + 2 * 64));
}

/// Builds an acknowledgement like Linux (`drivers/infiniband/core/mad_rmpp.c`, `format_ack`): the
/// answer's header with the request's method.
fn acknowledge(segment: &SaMad, window: u32) -> SaMad {
    let mut ack = *segment;
    ack.header.method = Method::GET_TABLE;
    ack.rmpp.kind = Rmpp::ACK;
    ack.rmpp.payload_len = window.to_be_bytes();
    ack
}

#[test]
fn a_large_table_comes_in_segments_as_the_window_opens() {
    let (mut fabric, now) = subnet(4);
    let request = SaMad::request(Method::GET_TABLE, Attribute::NODE_RECORD, 0, &[0_u8; 8], 6);
    let first = ask(&mut fabric, now, 1, &request);
    // The switch and four cards, 112 bytes each: three segments of 200.
    assert_eq!(first.rmpp, Rmpp::data(1, false, 3 * 20 + 5 * 112));
    assert!(fabric.next(now).is_none(), "the window is 1 at first");
    let second = ask(&mut fabric, now, 1, &acknowledge(&first, 3));
    assert_eq!(second.rmpp, Rmpp::data(2, false, 0));
    let (_, packet) = fabric.next(now).expect("the third");
    let third = SaMad::parse(&packet.payload).unwrap();
    assert_eq!(third.rmpp, Rmpp::data(3, true, 20 + 160));
    let table = [first.data, second.data, third.data].concat();
    let lids: Vec<u16> = table
        .chunks_exact(112)
        .take(5)
        .map(|record| u16::from_be_bytes([record[0], record[1]]))
        .collect();
    assert_eq!(lids, [1, 2, 3, 4, 5]);
    let packet = request_packet(1, &acknowledge(&third, 6));
    fabric.send(now, PortIndex(1), packet.clone());
    fabric.send(now, PortIndex(1), packet);
    assert!(
        fabric.next(now).is_none(),
        "nothing answers an acknowledgement"
    );
}

#[test]
fn segments_that_nobody_acknowledges_come_again_and_not_for_ever() {
    let (mut fabric, mut now) = subnet(5);
    let request = SaMad::request(Method::GET_TABLE, Attribute::NODE_RECORD, 0, &[0_u8; 8], 6);
    let first = ask(&mut fabric, now, 1, &request);
    let mut due = |fabric: &mut Fabric| {
        let due = fabric.poll(now)?;
        assert!(due > now, "nothing is due at once");
        now = due;
        fabric.poll(now);
        let packets = std::iter::from_fn(|| fabric.next(now));
        let segments = packets.map(|(_, packet)| SaMad::parse(&packet.payload).unwrap());
        Some((
            now,
            segments
                .map(|segment| segment.rmpp.segment[3])
                .collect::<Vec<_>>(),
        ))
    };
    // The first is lost, then its acknowledgement comes and the two others are lost.
    assert_eq!(due(&mut fabric).unwrap().1, [1]);
    let (at, again) = due(&mut fabric).unwrap();
    assert_eq!(again, [1]);
    fabric.send(at, PortIndex(1), request_packet(1, &acknowledge(&first, 3)));
    while fabric.next(at).is_some() {}
    let mut tries = 0;
    while let Some((_, again)) = due(&mut fabric) {
        if again.is_empty() {
            break;
        }
        assert_eq!(again, [2, 3], "what is acknowledged does not come again");
        tries += 1;
    }
    assert_eq!(tries, 5);
    assert_eq!(fabric.deadline(), None, "it is given up");
}

#[test]
fn nodes_and_ports_are_recorded() {
    let (mut fabric, now) = subnet(2);
    let wanted = NodeRecord::new(3, NodeInfo::default(), mad::smp::NodeDescription::new(""));
    let request = SaMad::request(
        Method::GET,
        Attribute::NODE_RECORD,
        node_record_mask::LID,
        &wanted,
        5,
    );
    let record: NodeRecord = ask(&mut fabric, now, 0, &request).record().unwrap();
    assert_eq!(record.info.port_guid.get(), guid(PortIndex(1)).0);
    let lid = [0_u8, 3, 0, 0];
    let request = SaMad::request(Method::GET, Attribute::PORT_INFO_RECORD, 1, &lid, 6);
    let record: PortInfoRecord = ask(&mut fabric, now, 0, &request).record().unwrap();
    assert_eq!(record.info.lid.get(), 3);
    let request = SaMad::request(Method::GET, Attribute::CLASS_PORT_INFO, 0, &lid, 7);
    assert_eq!(
        ask(&mut fabric, now, 0, &request).header.status(),
        Status::OK
    );
    let request = SaMad::request(Method::GET, Attribute(0x31), 0, &lid, 8);
    assert_eq!(
        ask(&mut fabric, now, 0, &request).header.status(),
        Status::BAD_ATTRIBUTE
    );
}

#[test]
fn groups_are_joined_left_and_created_only_by_those_who_say_how() {
    let (mut fabric, now) = subnet(2);
    let mut record = mad::sa::McMemberRecord {
        mgid: [0xff; 16],
        scope_join: mad::sa::JoinState::new().with_join(1),
        ..mad::sa::McMemberRecord::default()
    };
    let (mgid, join) = (mc_member_mask::MGID, mc_member_mask::JOIN_STATE);
    let request = |method, mask, record: &mad::sa::McMemberRecord| {
        SaMad::request(method, Attribute::MC_MEMBER_RECORD, mask, record, 5)
    };
    let refused = ask(
        &mut fabric,
        now,
        0,
        &request(Method::SET, mgid | join, &record),
    );
    assert_eq!(refused.header.status(), Status::SA_INSUFFICIENT_COMPONENTS);
    // The broadcast group of IPoIB is there from the start.
    record.mgid[..12].copy_from_slice(&[0xff, 0x12, 0x40, 0x1b, 0xff, 0xff, 0, 0, 0, 0, 0, 0]);
    let joined = ask(
        &mut fabric,
        now,
        0,
        &request(Method::SET, mgid | join, &record),
    );
    let group: mad::sa::McMemberRecord = joined.record().unwrap();
    assert_eq!(
        (joined.header.status(), group.mlid.get(), group.port_gid),
        (Status::OK, 0xc000, gid(0).0)
    );
    // Not a member: can't leave. A member: can, once.
    assert_eq!(
        ask(
            &mut fabric,
            now,
            1,
            &request(Method::DELETE, mgid | join, &record)
        )
        .header
        .status(),
        Status::SA_NO_RECORDS
    );
    let left = ask(
        &mut fabric,
        now,
        0,
        &request(Method::DELETE, mgid | join, &record),
    );
    assert_eq!(
        (left.header.method, left.header.status()),
        (Method::DELETE_RESP, Status::OK)
    );
    let again = ask(
        &mut fabric,
        now,
        0,
        &request(Method::DELETE, mgid | join, &record),
    );
    assert_eq!(again.header.status(), Status::SA_NO_RECORDS);
}

/// Queries ports by their abilities, like `saquery -s` when it looks for subnet managers.
#[test]
fn ports_are_found_by_their_abilities() {
    let (mut fabric, now) = subnet(2);
    let mut wanted = PortInfoRecord {
        lid: 0.into(),
        port: 0,
        options: 0,
        info: PortInfo::default(),
    };
    wanted.info.capabilities = mad::smp::PortCapabilities::SM.into();
    let mask = port_info_record_mask::CAPABILITIES;
    let mut request = SaMad::request(Method::GET, Attribute::PORT_INFO_RECORD, mask, &wanted, 5);
    assert_eq!(
        ask(&mut fabric, now, 0, &request).header.status(),
        Status::SA_NO_RECORDS,
        "none has this ability alone"
    );
    request.header.modifier = port_info_record_mask::ABILITIES_INCLUDED.into();
    let record: PortInfoRecord = ask(&mut fabric, now, 0, &request).record().unwrap();
    assert_eq!((record.lid.get(), record.port), (SM_LID.0, 0));
}

#[test]
fn only_who_knows_the_key_learns_a_groups_members() {
    let (mut fabric, now) = subnet(2);
    let record = mad::sa::McMemberRecord {
        mgid: [
            0xff, 0x12, 0x40, 0x1b, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
        ],
        scope_join: mad::sa::JoinState::new().with_join(1),
        ..mad::sa::McMemberRecord::default()
    };
    let request =
        |method, mask| SaMad::request(method, Attribute::MC_MEMBER_RECORD, mask, &record, 5);
    let join = request(
        Method::SET,
        mc_member_mask::MGID | mc_member_mask::JOIN_STATE,
    );
    for port in [0, 1] {
        assert_eq!(
            ask(&mut fabric, now, port, &join).header.status(),
            Status::OK
        );
    }
    let mut list = request(Method::GET_TABLE, mc_member_mask::MGID);
    let mut members = |list: &SaMad| {
        let answer = ask(&mut fabric, now, 0, list);
        let whole = usize::try_from(u32::from_be_bytes(answer.rmpp.payload_len)).unwrap() - 20;
        let records = answer.data[..whole].chunks_exact(56);
        records
            .map(|record| record[16..32].to_vec())
            .collect::<Vec<_>>()
    };
    assert_eq!(members(&list), [[0; 16]]);
    list.sm_key = 1.into();
    assert_eq!(members(&list), [gid(0).0, gid(1).0]);
}

/// Builds a directed-route packet of a manager at a port; `path` has the switch's ports.
fn directed(path: &[u8], smp: Smp) -> Packet {
    let route: Vec<u8> = [1].iter().chain(path).copied().collect();
    let mut smp = smp.directed(&route).unwrap();
    smp.set_hops(1, smp.hop_count());
    Packet {
        slid: Lid(PERMISSIVE_LID),
        dlid: Lid(PERMISSIVE_LID),
        vl15: true,
        dqpn: Qpn(0),
        payload: smp.to_mad().to_vec(),
        ..request_packet(
            0,
            &SaMad::request(Method::GET, Attribute::NODE_RECORD, 0, &[0_u8; 8], 0),
        )
    }
}

fn get(attribute: Attribute, modifier: u32) -> Smp {
    Smp::request(Method::GET, attribute, modifier, 9)
}

fn set(attribute: Attribute, modifier: u32, data: [u8; 64]) -> Smp {
    Smp {
        data,
        ..Smp::request(Method::SET, attribute, modifier, 9)
    }
}

/// Asks the switch, as the subnet manager at port 0.
fn ask_switch(fabric: &mut Fabric, now: Instant, smp: Smp) -> Smp {
    fabric.send(now, PortIndex(0), directed(&[], smp));
    let (port, packet) = fabric.next(now).expect("an answer");
    let answer = Smp::parse(&packet.payload).unwrap();
    assert_eq!(
        (port, answer.hop_pointer(), answer.is_returning()),
        (PortIndex(0), 1, true)
    );
    answer
}

/// Creates a fabric without a manager of its own; its first ports have links.
fn unmanaged(ports: usize) -> (Fabric, Instant) {
    let mut fabric = Fabric::new(FabricConfig {
        manager: Manager::Foreign,
        ..FabricConfig::default()
    });
    let now = Instant::from_nanos(1);
    for _ in 0..ports {
        let port = fabric.add_port();
        fabric.set_link(now, port, true);
    }
    (fabric, now)
}

fn port_state(fabric: &mut Fabric, now: Instant, port: u32) -> u8 {
    let answer = ask_switch(fabric, now, get(Attribute::PORT_INFO, port));
    attribute::<PortInfo>(&answer.data)
        .unwrap()
        .speed_state
        .state()
}

/// Sets the state of a port of the switch.
fn drive(fabric: &mut Fabric, now: Instant, port: u32, state: u8) -> Status {
    let mut info = PortInfo::default();
    info.speed_state.set_state(state);
    let answer = ask_switch(fabric, now, set(Attribute::PORT_INFO, port, data_of(&info)));
    answer.header.status()
}

#[test]
fn a_foreign_manager_finds_the_switch_and_what_is_behind_it() {
    let (mut fabric, now) = unmanaged(3);
    let answer = ask_switch(&mut fabric, now, get(Attribute::NODE_INFO, 0));
    let node: NodeInfo = attribute(&answer.data).unwrap();
    assert_eq!(
        (node.node_type, node.ports, node.local_port),
        (NodeType::SWITCH, 36, 1)
    );
    let states: Vec<u8> = (0..5)
        .map(|port| port_state(&mut fabric, now, port))
        .collect();
    assert_eq!(
        states,
        [4, 2, 2, 2, 1],
        "port 0 is always open, and port 4 has no cable"
    );
    // Through the switch to the card at its port 3, and back.
    fabric.send(
        now,
        PortIndex(0),
        directed(&[3], get(Attribute::NODE_INFO, 0)),
    );
    let (port, packet) = fabric.next(now).expect("passed on");
    assert_eq!(port, PortIndex(2));
    let mut smp = Smp::parse(&packet.payload).unwrap();
    assert_eq!((smp.hop_pointer(), smp.return_path[1]), (2, 1));
    smp.return_path[2] = 1;
    let answer = smp.into_response(Status::OK);
    let payload = answer.to_mad().to_vec();
    fabric.send(now, port, Packet { payload, ..packet });
    assert_eq!(fabric.next(now).expect("back").0, PortIndex(0));
}

#[test]
fn data_goes_by_the_tables_and_through_open_ports_only() {
    let (mut fabric, now) = unmanaged(3);
    let data = Packet {
        dlid: Lid(9),
        dqpn: Qpn(77),
        ..request_packet(
            0,
            &SaMad::request(Method::GET, Attribute::NODE_RECORD, 0, &[0_u8; 8], 0),
        )
    };
    let goes = |fabric: &mut Fabric, packet: &Packet| -> Vec<usize> {
        fabric.send(now, PortIndex(0), packet.clone());
        std::iter::from_fn(|| fabric.next(now))
            .map(|(port, _)| port.0)
            .collect()
    };
    let mut block = [255; 64];
    block[9] = 3;
    let table = data_of(&LinearForwarding(block));
    ask_switch(
        &mut fabric,
        now,
        set(Attribute::LINEAR_FORWARDING, 0, table),
    );
    let mut info: SwitchInfo =
        attribute(&ask_switch(&mut fabric, now, get(Attribute::SWITCH_INFO, 0)).data).unwrap();
    assert!(info.life_state.port_state_change());
    info.linear_top.set(9);
    let answer = ask_switch(
        &mut fabric,
        now,
        set(Attribute::SWITCH_INFO, 0, data_of(&info)),
    );
    let info: SwitchInfo = attribute(&answer.data).unwrap();
    assert!(
        !info.life_state.port_state_change(),
        "written, it is cleared"
    );

    assert_eq!(
        goes(&mut fabric, &data),
        [] as [usize; 0],
        "no port is open"
    );
    assert_eq!(
        drive(&mut fabric, now, 3, PortStateBits::ACTIVE),
        Status::BAD_FIELD,
        "not armed"
    );
    for port in [1, 3] {
        for state in [PortStateBits::ARMED, PortStateBits::ACTIVE] {
            assert_eq!(drive(&mut fabric, now, port, state), Status::OK);
        }
    }
    assert_eq!(goes(&mut fabric, &data), [2]);
    // A group of ports 1, 2 and 3, of which 2 is not open; the sender gets no copy.
    let mut words = MulticastForwarding::default();
    words.0[5].set(0b1110);
    let table = data_of(&words);
    ask_switch(
        &mut fabric,
        now,
        set(Attribute::MULTICAST_FORWARDING, 0, table),
    );
    let group = Packet {
        dlid: Lid(0xc005),
        ..data.clone()
    };
    assert_eq!(goes(&mut fabric, &group), [2]);
    let answer = ask_switch(&mut fabric, now, get(Attribute::MULTICAST_FORWARDING, 0));
    assert_eq!(attribute::<MulticastForwarding>(&answer.data), Some(words));
    // A link that went closes its port.
    fabric.set_link(now, PortIndex(2), false);
    fabric.set_link(now, PortIndex(2), true);
    assert_eq!(goes(&mut fabric, &data), [] as [usize; 0]);
}

#[test]
fn a_foreign_manager_hears_of_links_until_it_says_so() {
    let (mut fabric, mut now) = unmanaged(2);
    assert_eq!(fabric.poll(now), None, "nobody is there to be told");
    let mut info = PortInfo::default();
    info.lid.set(7);
    info.sm_lid.set(2);
    ask_switch(
        &mut fabric,
        now,
        set(Attribute::PORT_INFO, 0, data_of(&info)),
    );
    let mut block = [255; 64];
    block[2] = 1;
    let table = data_of(&LinearForwarding(block));
    ask_switch(
        &mut fabric,
        now,
        set(Attribute::LINEAR_FORWARDING, 0, table),
    );
    let mut info = SwitchInfo::default();
    info.linear_top.set(2);
    ask_switch(
        &mut fabric,
        now,
        set(Attribute::SWITCH_INFO, 0, data_of(&info)),
    );

    fabric.set_link(now, PortIndex(1), false);
    for _ in 0..2 {
        let due = fabric.poll(now);
        let (port, packet) = fabric.next(now).expect("a trap");
        let trap = Smp::parse(&packet.payload).unwrap();
        let notice: Notice = attribute(&trap.data).unwrap();
        assert_eq!((port.0, packet.slid, packet.dlid), (0, Lid(7), Lid(2)));
        assert_eq!(
            (trap.header.method, notice.trap.get()),
            (Method::TRAP, TRAP_LINK_STATE)
        );
        assert_eq!(notice.details[..2], [0, 7]);
        now = due
            .filter(|&due| due > now)
            .or_else(|| fabric.deadline())
            .expect("again");
    }
    let repress = Smp::request(Method::TRAP_REPRESS, Attribute::NOTICE, 0, 2);
    fabric.send(
        now,
        PortIndex(0),
        Packet {
            dlid: Lid(7),
            payload: repress.to_mad().to_vec(),
            ..directed(&[], repress)
        },
    );
    assert_eq!((fabric.poll(now), fabric.next(now).is_none()), (None, true));
}

#[test]
fn the_own_manager_says_that_it_is_master() {
    let (mut fabric, now) = subnet(1);
    let answer = ask_switch(&mut fabric, now, get(Attribute::SM_INFO, 0));
    let info: SmInfo = attribute(&answer.data).unwrap();
    assert_eq!(
        (info.priority.priority(), info.priority.state()),
        (15, SmState::MASTER)
    );
    let again: SmInfo =
        attribute(&ask_switch(&mut fabric, now, get(Attribute::SM_INFO, 0)).data).unwrap();
    assert!(again.activity > info.activity);
    // Without it, the switch has none.
    let (mut fabric, now) = unmanaged(1);
    let answer = ask_switch(&mut fabric, now, get(Attribute::SM_INFO, 0));
    assert_eq!(answer.header.status(), Status::BAD_ATTRIBUTE);
}

/// Sets the physical state of a port of the switch, and says what became of links since.
fn order(fabric: &mut Fabric, now: Instant, port: u32, state: u8, phys: u8) -> Vec<(usize, bool)> {
    while fabric.next_link().is_some() {}
    let mut info = PortInfo::default();
    info.speed_state.set_state(state);
    info.phys.set_state(phys);
    let answer = ask_switch(fabric, now, set(Attribute::PORT_INFO, port, data_of(&info)));
    assert_eq!(answer.header.status(), Status::OK);
    std::iter::from_fn(|| fabric.next_link())
        .map(|(port, up)| (port.0, up))
        .collect()
}

#[test]
fn a_manager_disables_enables_and_retrains_links_at_the_switch() {
    const NONE: u8 = 0;
    const POLLING: u8 = 2;
    const DISABLED: u8 = 3;
    let (mut fabric, now) = unmanaged(2);
    let down = PortStateBits::DOWN;
    assert_eq!(order(&mut fabric, now, 2, NONE, DISABLED), [(1, false)]);
    assert_eq!(port_state(&mut fabric, now, 2), down);
    let answer = ask_switch(&mut fabric, now, get(Attribute::PORT_INFO, 2));
    let info: PortInfo = attribute(&answer.data).unwrap();
    assert_eq!(info.phys.state(), DISABLED);
    // Neither the card nor a second order to go down brings it back.
    fabric.restart_link(now, PortIndex(1));
    assert_eq!(order(&mut fabric, now, 2, down, NONE), []);
    assert_eq!(order(&mut fabric, now, 2, down, POLLING), [(1, true)]);
    assert_eq!(port_state(&mut fabric, now, 2), PortStateBits::INIT);
    assert_eq!(drive(&mut fabric, now, 2, PortStateBits::ARMED), Status::OK);
    assert_eq!(
        order(&mut fabric, now, 2, down, NONE),
        [(1, false), (1, true)]
    );
    assert_eq!(port_state(&mut fabric, now, 2), PortStateBits::INIT);
    // A port that nobody is at.
    assert_eq!(order(&mut fabric, now, 7, down, POLLING), []);
}

/// Asks the switch for a port's counters, as `perfquery` does.
fn counters<T>(fabric: &mut Fabric, now: Instant, method: Method, attribute: Attribute, of: &T) -> T
where
    T: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable + zerocopy::KnownLayout,
{
    let mut mad = SaMad::request(method, attribute, 0, &[0_u8; 0], 1).to_mad();
    mad[1] = MgmtClass::PERF.0;
    mad[2] = 1;
    mad[pma::DATA..].fill(0);
    mad[pma::DATA..pma::DATA + size_of::<T>()].copy_from_slice(of.as_bytes());
    let request = Packet {
        payload: mad.to_vec(),
        ..request_packet(0, &SaMad::request(method, attribute, 0, &[0_u8; 0], 1))
    };
    fabric.send(now, PortIndex(0), request);
    let (port, packet) = fabric.next(now).expect("an answer");
    assert_eq!((port.0, packet.dqpn), (0, Qpn(1)));
    let answered = Header::parse(&packet.payload).unwrap();
    assert_eq!(
        (answered.status(), answered.method),
        (Status::OK, Method::GET_RESP)
    );
    T::read_from_prefix(&packet.payload[pma::DATA..]).unwrap().0
}

#[test]
fn the_switch_counts_what_passes_its_ports() {
    let (mut fabric, now) = subnet(2);
    let small = |port| PortCounters {
        port,
        ..PortCounters::default()
    };
    let wide = |port| PortCountersExt {
        port,
        ..PortCountersExt::default()
    };
    let (get, set) = (Method::GET, Method::SET);
    let clear = PortCounters {
        select: 0xffff.into(),
        ..small(0xff)
    };
    let cleared = counters(&mut fabric, now, set, Attribute::PORT_COUNTERS, &clear);
    assert_eq!(cleared.xmit_packets.get(), 0);
    let before = counters(
        &mut fabric,
        now,
        get,
        Attribute::PORT_COUNTERS_EXT,
        &wide(2),
    );
    // A datagram of 256 bytes with all headers from port 0 to port 1.
    let sent = Packet {
        dlid: Lid(3),
        ..request_packet(
            0,
            &SaMad::request(get, Attribute::NODE_RECORD, 0, &[0_u8; 0], 1),
        )
    };
    fabric.send(now, PortIndex(0), sent.clone());
    assert_eq!(fabric.next(now).map(|(port, _)| port), Some(PortIndex(1)));
    let out = counters(&mut fabric, now, get, Attribute::PORT_COUNTERS, &small(2));
    // Local route, base transport and datagram headers, and the checksum.
    assert_eq!(out.xmit_data.get() * 4, 8 + 12 + 8 + 256 + 4);
    assert_eq!((out.xmit_packets.get(), out.rcv_packets.get()), (1, 0));
    let out = counters(
        &mut fabric,
        now,
        get,
        Attribute::PORT_COUNTERS_EXT,
        &wide(2),
    );
    let passed = out.by_kind[0].get() - before.by_kind[0].get();
    assert_eq!((passed, out.by_kind[2].get()), (1, 0), "one port, no group");
    // No route, a port without link, and a link that goes.
    fabric.send(
        now,
        PortIndex(0),
        Packet {
            dlid: Lid(99),
            ..sent.clone()
        },
    );
    let came = counters(&mut fabric, now, get, Attribute::PORT_COUNTERS, &small(1));
    assert_eq!((came.rcv_relay_errors.get(), came.link_downed), (1, 0));
    fabric.set_link(now, PortIndex(1), false);
    let gone = counters(&mut fabric, now, get, Attribute::PORT_COUNTERS, &small(2));
    assert_eq!(gone.link_downed, 1);
    let all = counters(
        &mut fabric,
        now,
        get,
        Attribute::PORT_COUNTERS,
        &small(0xff),
    );
    assert_eq!((all.link_downed, all.rcv_relay_errors.get()), (1, 1));
}
