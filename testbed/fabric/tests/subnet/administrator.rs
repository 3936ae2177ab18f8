//! The subnet administrator: paths, records and groups.

use super::*;

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

/// `saquery --smkey 1 LR`, `PKTR`: the links, and the partition tables for those who have the key.
#[test]
fn links_and_partition_tables_are_recorded() {
    let (mut fabric, now) = subnet(2);
    let wanted = LinkRecord {
        from_lid: 3.into(),
        ..LinkRecord::default()
    };
    let mask = link_record_mask::FROM_LID;
    let request = SaMad::request(Method::GET, Attribute::LINK_RECORD, mask, &wanted, 5);
    let link: LinkRecord = ask(&mut fabric, now, 0, &request).record().unwrap();
    assert_eq!(
        (link.from_port, link.to_lid.get(), link.to_port),
        (1, SM_LID.0, 2)
    );
    let table = SaMad::request(Method::GET_TABLE, Attribute::LINK_RECORD, 0, &wanted, 5);
    let answer = ask(&mut fabric, now, 0, &table);
    assert_eq!(u32::from_be_bytes(answer.rmpp.payload_len), 20 + 4 * 8);

    let wanted = PKeyTableRecord {
        lid: 3.into(),
        ..PKeyTableRecord::default()
    };
    let mask = pkey_record_mask::LID;
    let attribute = Attribute::PKEY_TABLE_RECORD;
    let mut request = SaMad::request(Method::GET, attribute, mask, &wanted, 5);
    let refused = ask(&mut fabric, now, 0, &request);
    assert_eq!(refused.header.status(), Status::SA_DENIED);
    request.sm_key = 1.into();
    let record: PKeyTableRecord = ask(&mut fabric, now, 0, &request).record().unwrap();
    assert_eq!((record.port, record.keys.0[0].get()), (1, 0xffff));
}

/// `osmtest -f m`: a group's rate and MTU are what a member asks for, or it does not come in.
#[test]
fn a_join_with_a_rate_or_mtu_that_can_not_be_is_refused() {
    const LESS: u8 = 1;
    const EXACTLY: u8 = 2;
    let (mut fabric, now) = subnet(2);
    let mut join = |mgid: u8, mask: u64, rate: (u8, u8), mtu: (u8, u8)| {
        let selector = |(how, value)| mad::sa::Selector::new().with_how(how).with_value(value);
        let mut record = mad::sa::McMemberRecord {
            rate: selector(rate),
            mtu: selector(mtu),
            scope_join: mad::sa::JoinState::new().with_join(1),
            ..mad::sa::McMemberRecord::default()
        };
        record.mgid = [
            0xff, 0x12, 0xa0, 0x1b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, mgid,
        ];
        let mask = mask | mc_member_mask::MGID | mc_member_mask::CREATE;
        let request = SaMad::request(Method::SET, Attribute::MC_MEMBER_RECORD, mask, &record, 5);
        let answer = ask(&mut fabric, now, 0, &request);
        let record: mad::sa::McMemberRecord = answer.record().unwrap();
        match answer.header.status() {
            Status::OK => Ok((record.rate.value(), record.mtu.value())),
            status => Err(status),
        }
    };
    let (rate, mtu) = (mc_member_mask::RATE, mc_member_mask::MTU);
    let none = (0, 0);
    let refused = Err(Status::SA_REQUEST_INVALID);
    assert_eq!(join(1, 0, none, none), Ok((12, 4)), "the usual");
    assert_eq!(join(2, rate, (EXACTLY, 3), none), Ok((3, 4)), "10 Gb/s");
    assert_eq!(join(3, rate, (LESS, 7), none), Ok((6, 4)), "20 of below 40");
    assert_eq!(join(4, rate, (0, 10), none), refused, "above 120 Gb/s");
    assert_eq!(join(5, mtu, none, (EXACTLY, 5)), Ok((12, 5)));
    assert_eq!(join(6, mtu, none, (0, 5)), refused, "above 4096");
    // A group that is there.
    assert_eq!(join(2, rate, (EXACTLY, 3), none), Ok((3, 4)));
    assert_eq!(join(2, rate, (EXACTLY, 7), none), refused);
    assert_eq!(join(5, mtu, none, (LESS, 5)), refused);
}
