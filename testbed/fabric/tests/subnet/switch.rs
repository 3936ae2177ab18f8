//! The switch as a foreign manager sees it.

use super::*;

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
    // `ibportstate reset`: polling, and no state.
    assert_eq!(
        order(&mut fabric, now, 2, NONE, POLLING),
        [(1, false), (1, true)]
    );
    // A port that nobody is at.
    assert_eq!(order(&mut fabric, now, 7, down, POLLING), []);
}

/// Asks the switch for a port's counters, as `perfquery` does.
pub(super) fn counters<T>(
    fabric: &mut Fabric,
    now: Instant,
    method: Method,
    attribute: Attribute,
    of: &T,
) -> T
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

/// Has the switch check partitions at a port, with one key in its table.
fn enforce(fabric: &mut Fabric, now: Instant, port: u32, way: u8, key: u16) {
    let mut table = PKeyTable::default();
    table.0[0].set(key);
    let table = set(Attribute::PKEY_TABLE, port << 16, data_of(&table));
    assert_eq!(ask_switch(fabric, now, table).header.status(), Status::OK);
    let info = ask_switch(fabric, now, get(Attribute::PORT_INFO, port));
    let mut info: PortInfo = attribute(&info.data).unwrap();
    info.speed_state.set_state(PortStateBits::NO_CHANGE);
    info.phys.set_state(0);
    info.operational_vls.set_low(way);
    let answer = ask_switch(fabric, now, set(Attribute::PORT_INFO, port, data_of(&info)));
    assert_eq!(answer.header.status(), Status::OK);
    let info: PortInfo = attribute(&answer.data).unwrap();
    assert_eq!(info.operational_vls.low(), way);
}

#[test]
fn the_switch_checks_partitions_where_a_manager_says_so() {
    const INBOUND: u8 = 8;
    const OUTBOUND: u8 = 4;
    let (mut fabric, now) = unmanaged(2);
    let info = ask_switch(&mut fabric, now, get(Attribute::SWITCH_INFO, 0));
    let mut info: SwitchInfo = attribute(&info.data).unwrap();
    assert!(info.flags.inbound_enforcement() && info.flags.outbound_enforcement());
    info.linear_top.set(9);
    let mut block = [255; 64];
    block[9] = 2;
    for (kind, data) in [
        (Attribute::SWITCH_INFO, data_of(&info)),
        (
            Attribute::LINEAR_FORWARDING,
            data_of(&LinearForwarding(block)),
        ),
    ] {
        ask_switch(&mut fabric, now, set(kind, 0, data));
    }
    for port in [1, 2] {
        for state in [PortStateBits::ARMED, PortStateBits::ACTIVE] {
            assert_eq!(drive(&mut fabric, now, port, state), Status::OK);
        }
    }
    let passes = |fabric: &mut Fabric, key| {
        let data = Packet {
            dlid: Lid(9),
            dqpn: Qpn(77),
            pkey: PKey(key),
            ..request_packet(
                0,
                &SaMad::request(Method::GET, Attribute::NODE_RECORD, 0, &[0_u8; 8], 0),
            )
        };
        fabric.send(now, PortIndex(0), data);
        fabric.next(now).is_some()
    };
    assert!(passes(&mut fabric, 0x8003), "nothing is checked");
    enforce(&mut fabric, now, 1, INBOUND, 0x8004);
    assert!(!passes(&mut fabric, 0x8003));
    assert!(passes(&mut fabric, 0x0004));
    enforce(&mut fabric, now, 1, INBOUND, 0x8003);
    enforce(&mut fabric, now, 2, OUTBOUND, 0x0003);
    assert!(passes(&mut fabric, 0x8003));
    assert!(!passes(&mut fabric, 0x0003), "two limited members");
    enforce(&mut fabric, now, 2, INBOUND, 0x8004);
    assert!(passes(&mut fabric, 0x0003), "of what comes in by port 2");
}
