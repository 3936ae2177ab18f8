//! The subnet administrator: answers queries about the subnet, and keeps the multicast groups.

use std::collections::BTreeMap;

use hal::Instant;
use mad::sa::{
    ClassPortInfo, JoinState, LinkRecord, McMemberRecord, NodeRecord, PKeyTableRecord, PathRecord,
    PortInfoRecord, SaMad, Selector, mc_member_mask, node_record_mask, path_record_mask,
    port_info_record_mask,
};
use mad::smp::PortInfo;
use mad::{Attribute, Method, Status};
use verbs::{Gid, Lid, PKey, QKey, Qpn};
use zerocopy::big_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use crate::packet::FIRST_MLID;
use crate::rmpp::Transfers;
use crate::sm::{self, KEY, Port, SM_LID};
use crate::switch::Switch;
use crate::{Operation, Packet, PortIndex};

/// The group that IPoIB interfaces of the default partition meet in (RFC 4391, section 4).
const IPOIB_BROADCAST: [u8; 16] = [
    0xff, 0x12, 0x40, 0x1b, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
];
const IPOIB_QKEY: u32 = 0x0b1b;
const MOST_GROUPS: usize = 1024;
/// 2048 bytes.
const GROUP_MTU: u8 = 4;
/// 56 Gb/s (4x FDR).
const RATE: u8 = 12;
const PACKET_LIFE: u8 = 18;

struct Group {
    record: McMemberRecord,
    /// Join state of each member.
    members: BTreeMap<PortIndex, u8>,
}

impl Group {
    fn member_records(&self, ports: &[Port]) -> Vec<McMemberRecord> {
        let member = |(port, joined): (&PortIndex, &u8)| McMemberRecord {
            port_gid: ports[port.0].gid().0,
            scope_join: JoinState::new()
                .with_scope(self.record.mgid[1] & 0xf)
                .with_join(*joined),
            ..self.record
        };
        self.members.iter().map(member).collect()
    }
}

/// The subnet administrator.
pub(crate) struct Administrator {
    groups: BTreeMap<[u8; 16], Group>,
    transfers: Transfers,
}

impl Default for Administrator {
    fn default() -> Self {
        let record = McMemberRecord {
            mgid: IPOIB_BROADCAST,
            qkey: U32::new(IPOIB_QKEY),
            mlid: U16::new(FIRST_MLID),
            pkey: U16::new(PKey::DEFAULT.0),
            ..group_defaults()
        };
        let group = Group {
            record,
            members: BTreeMap::new(),
        };
        Self {
            groups: BTreeMap::from([(IPOIB_BROADCAST, group)]),
            transfers: Transfers::default(),
        }
    }
}

fn group_defaults() -> McMemberRecord {
    McMemberRecord {
        mtu: Selector::exactly(GROUP_MTU),
        rate: Selector::exactly(RATE),
        life_time: Selector::exactly(PACKET_LIFE),
        ..McMemberRecord::default()
    }
}

/// The response, or the status that the request comes back with.
type Answer = Result<Response, Status>;

enum Response {
    Record(SaMad),
    /// Header of each segment, and the records.
    Table(SaMad, Vec<u8>),
}

impl Administrator {
    /// Takes a port out of every group.
    pub(crate) fn forget(&mut self, port: PortIndex, switch: &mut Switch) {
        self.transfers.forget(port);
        for group in self.groups.values_mut() {
            group.members.remove(&port);
            route_group(group, switch);
        }
    }

    /// Returns the segments of tables in flight whose retry is due.
    pub(crate) fn poll(&mut self, now: Instant) -> Vec<(PortIndex, Packet)> {
        self.transfers.poll(now)
    }

    /// Returns the time at which the next retry is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.transfers.deadline()
    }

    /// Answers a datagram that came to QP1 from a port, if it is a request or about an answer.
    pub(crate) fn answer(
        &mut self,
        now: Instant,
        ports: &[Port],
        from: PortIndex,
        packet: &Packet,
        switch: &mut Switch,
    ) -> Vec<Packet> {
        let Operation::Datagram { source, .. } = packet.operation else {
            return Vec::new();
        };
        let request = match SaMad::parse(&packet.payload) {
            // First, for it looks like the request that it speaks of.
            Ok(mad) if mad.rmpp.is_control() => return self.transfers.hear(now, from, &mad),
            Ok(request) if !request.header.method.is_response() => request,
            Ok(_) => return Vec::new(),
            Err(error) => {
                log::debug!("subnet administrator: port {}: {error}", from.0);
                return Vec::new();
            }
        };
        let envelope = envelope(packet, source);
        let response = match self.decide(ports, from, &request, switch) {
            Ok(Response::Table(head, table)) => {
                return self.transfers.begin(now, from, envelope, &head, &table);
            }
            Ok(Response::Record(response)) => response,
            Err(status) => request.into_response(status),
        };
        vec![Packet {
            payload: response.to_mad().to_vec(),
            ..envelope
        }]
    }

    fn decide(
        &mut self,
        ports: &[Port],
        from: PortIndex,
        request: &SaMad,
        switch: &mut Switch,
    ) -> Answer {
        let method = request.header.method;
        let reads = matches!(method, Method::GET | Method::GET_TABLE);
        match request.header.attribute() {
            Attribute::CLASS_PORT_INFO if method == Method::GET => class_port_info(request),
            Attribute::PATH_RECORD if reads => records(request, &paths(ports, from, request)),
            Attribute::NODE_RECORD if reads => records(request, &nodes(ports, switch, request)),
            Attribute::PORT_INFO_RECORD if reads => {
                records(request, &port_infos(ports, switch, request))
            }
            Attribute::LINK_RECORD if reads => records(request, &links(ports, request)),
            Attribute::PKEY_TABLE_RECORD if reads && request.sm_key.get() == KEY => {
                records(request, &partitions(ports, switch, request))
            }
            Attribute::PKEY_TABLE_RECORD if reads => Err(Status::SA_DENIED),
            Attribute::MC_MEMBER_RECORD if reads => {
                records(request, &self.groups_matching(ports, request))
            }
            Attribute::MC_MEMBER_RECORD if method == Method::SET => {
                self.join(ports, from, request, switch)
            }
            Attribute::MC_MEMBER_RECORD if method == Method::DELETE => {
                self.leave(from, request, switch)
            }
            _ => Err(Status::BAD_ATTRIBUTE),
        }
    }

    /// Returns the groups that a request selects; if it has the key, also their members, a record
    /// each.
    fn groups_matching(&self, ports: &[Port], request: &SaMad) -> Vec<McMemberRecord> {
        let Some(wanted) = request.record::<McMemberRecord>() else {
            return Vec::new();
        };
        let mask = request.component_mask.get();
        let trusted = request.sm_key.get() == KEY;
        self.groups
            .values()
            .filter(|group| mask & mc_member_mask::MGID == 0 || group.record.mgid == wanted.mgid)
            .filter(|group| mask & mc_member_mask::MLID == 0 || group.record.mlid == wanted.mlid)
            .flat_map(|group| {
                if trusted && !group.members.is_empty() {
                    group.member_records(ports)
                } else {
                    vec![group.record]
                }
            })
            .filter(|record| {
                mask & mc_member_mask::PORT_GID == 0 || record.port_gid == wanted.port_gid
            })
            .collect()
    }

    fn join(
        &mut self,
        ports: &[Port],
        from: PortIndex,
        request: &SaMad,
        switch: &mut Switch,
    ) -> Answer {
        let mask = request.component_mask.get();
        let Some(wanted) = request.record::<McMemberRecord>() else {
            return Err(Status::BAD_FIELD);
        };
        let Some(member) = member_of(ports, from, &wanted, mask) else {
            return Err(Status::SA_INVALID_GID);
        };
        if mask & mc_member_mask::JOIN_STATE == 0 || wanted.scope_join.join() == 0 {
            return Err(Status::SA_INSUFFICIENT_COMPONENTS);
        }
        let known = mask & mc_member_mask::MGID != 0 && self.groups.contains_key(&wanted.mgid);
        let mgid = if known {
            wanted.mgid
        } else {
            self.create(&wanted, mask)?
        };
        let Some(group) = self.groups.get_mut(&mgid) else {
            return Err(Status::SA_NO_RECORDS);
        };
        let (has_mtu, has_rate) = (group.record.mtu.value(), group.record.rate.value());
        let fits = named(wanted.mtu, mask, mc_member_mask::MTU)
            .is_none_or(|asked| fits(asked, has_mtu, mtu_order))
            && named(wanted.rate, mask, mc_member_mask::RATE)
                .is_none_or(|asked| fits(asked, has_rate, rate_order));
        if !fits {
            return Err(Status::SA_REQUEST_INVALID);
        }
        *group.members.entry(member).or_default() |= wanted.scope_join.join();
        let joined = group.members[&member];
        let mut record = group.record;
        record.port_gid = ports[member.0].gid().0;
        record.scope_join = wanted.scope_join.with_join(joined);
        route_group(group, switch);
        let mut response = request.into_response(Status::OK);
        response.set_record(&record);
        Ok(Response::Record(response))
    }

    fn create(&mut self, wanted: &McMemberRecord, mask: u64) -> Result<[u8; 16], Status> {
        if mask & mc_member_mask::CREATE != mc_member_mask::CREATE {
            return Err(Status::SA_INSUFFICIENT_COMPONENTS);
        }
        if self.groups.len() >= MOST_GROUPS {
            return Err(Status::SA_DENIED);
        }
        let taken: Vec<u16> = self
            .groups
            .values()
            .map(|group| group.record.mlid.get())
            .collect();
        let mlid = (FIRST_MLID..)
            .find(|mlid| !taken.contains(mlid))
            .unwrap_or(FIRST_MLID);
        let mut mgid = wanted.mgid;
        if mask & mc_member_mask::MGID == 0 || mgid == [0; 16] {
            // A transient group of link-local scope, named by its LID (IBA 1.3, 15.2.5.17.4).
            mgid = [0; 16];
            mgid[..4].copy_from_slice(&[0xff, 0x12, 0xa0, 0x1b]);
            mgid[14..].copy_from_slice(&mlid.to_be_bytes());
        }
        if mgid[0] != 0xff {
            return Err(Status::SA_INVALID_GID);
        }
        let mtu = named(wanted.mtu, mask, mc_member_mask::MTU);
        let mtu = choose(mtu, &MTUS, GROUP_MTU, mtu_order)?;
        let rate = named(wanted.rate, mask, mc_member_mask::RATE);
        let rate = choose(rate, &RATES, RATE, rate_order)?;
        let record = McMemberRecord {
            mtu: Selector::exactly(mtu),
            rate: Selector::exactly(rate),
            mgid,
            qkey: wanted.qkey,
            mlid: U16::new(mlid),
            pkey: wanted.pkey,
            traffic_class: wanted.traffic_class,
            sl_flow_hop: wanted.sl_flow_hop,
            ..group_defaults()
        };
        let members = BTreeMap::new();
        self.groups.insert(mgid, Group { record, members });
        Ok(mgid)
    }

    fn leave(&mut self, from: PortIndex, request: &SaMad, switch: &mut Switch) -> Answer {
        let Some(wanted) = request.record::<McMemberRecord>() else {
            return Err(Status::BAD_FIELD);
        };
        let Some(group) = self.groups.get_mut(&wanted.mgid) else {
            return Err(Status::SA_NO_RECORDS);
        };
        let Some(joined) = group.members.get_mut(&from) else {
            return Err(Status::SA_NO_RECORDS);
        };
        *joined &= !wanted.scope_join.join();
        if *joined == 0 {
            group.members.remove(&from);
        }
        route_group(group, switch);
        if group.members.is_empty() && wanted.mgid != IPOIB_BROADCAST {
            self.groups.remove(&wanted.mgid);
        }
        Ok(Response::Record(request.into_response(Status::OK)))
    }
}

/// Codes of the MTUs that ports have, and of the rates, the slowest first.
const MTUS: [u8; 5] = [1, 2, 3, 4, 5];
const RATES: [u8; 7] = [2, 5, 3, 11, 6, 7, RATE];

/// Returns an MTU's place among all by its code.
fn mtu_order(code: u8) -> u32 {
    code.into()
}

/// Returns the hundreds of Mb/s of a rate's code (IBA 1.3, 15.2.5.16; Linux `ib_verbs.h`,
/// `ib_rate`).
fn rate_order(code: u8) -> u32 {
    const OF_CODE: [u32; 19] = [
        0, 0, 25, 100, 300, 50, 200, 400, 600, 800, 1200, 140, 560, 1120, 1680, 250, 1000, 2000,
        3000,
    ];
    OF_CODE.get(usize::from(code)).copied().unwrap_or(u32::MAX)
}

/// Returns whether a value is what a selector asks for: greater, less, or exactly so; the largest
/// there is, is.
fn fits(wanted: Selector, value: u8, order: fn(u8) -> u32) -> bool {
    let (asked, has) = (order(wanted.value()), order(value));
    match wanted.how() {
        0 => has > asked,
        1 => has < asked,
        2 => has == asked,
        _ => true,
    }
}

/// Returns the value that a new group gets: the usual one if it is what is asked for, or else the
/// largest that is.
fn choose(
    wanted: Option<Selector>,
    values: &[u8],
    usual: u8,
    order: fn(u8) -> u32,
) -> Result<u8, Status> {
    let fits = |value: &u8| wanted.is_none_or(|wanted| fits(wanted, *value, order));
    if fits(&usual) {
        return Ok(usual);
    }
    let found = values.iter().rev().find(|value| fits(value));
    found.copied().ok_or(Status::SA_REQUEST_INVALID)
}

/// Returns what a request says of a component, if it says something.
fn named(value: Selector, mask: u64, component: u64) -> Option<Selector> {
    (mask & component == component).then_some(value)
}

/// Returns the port that joins: the named one, which must be the sender's (there are no proxies),
/// or the sender's.
fn member_of(
    ports: &[Port],
    from: PortIndex,
    wanted: &McMemberRecord,
    mask: u64,
) -> Option<PortIndex> {
    let named = mask & mc_member_mask::PORT_GID != 0;
    (!named || ports[from.0].gid() == Gid(wanted.port_gid)).then_some(from)
}

fn route_group(group: &Group, switch: &mut Switch) {
    let mlid = Lid(group.record.mlid.get());
    switch.set_group(mlid, group.members.keys().map(|port| port.number()));
}

fn class_port_info(request: &SaMad) -> Answer {
    let mut response = request.into_response(Status::OK);
    response.set_record(&ClassPortInfo {
        base_version: 1,
        class_version: 2,
        capabilities: U16::ZERO,
        capabilities2_resp_time: U32::new(u32::from(PACKET_LIFE)),
        targets: [0; 64],
    });
    Ok(Response::Record(response))
}

fn paths(ports: &[Port], from: PortIndex, request: &SaMad) -> Vec<PathRecord> {
    let Some(wanted) = request.record::<PathRecord>() else {
        return Vec::new();
    };
    let mask = request.component_mask.get();
    let active = || ports.iter().filter(|port| port.is_active());
    let source = active().find(|port| {
        let by_gid = mask & path_record_mask::SGID != 0;
        let by_lid = mask & path_record_mask::SLID != 0;
        if by_gid || by_lid {
            (!by_gid || port.gid() == Gid(wanted.sgid))
                && (!by_lid || port.lid.0 == wanted.slid.get())
        } else {
            port.lid == ports[from.0].lid
        }
    });
    let Some(source) = source else {
        return Vec::new();
    };
    active()
        .filter(|port| mask & path_record_mask::DGID == 0 || port.gid() == Gid(wanted.dgid))
        .filter(|port| mask & path_record_mask::DLID == 0 || port.lid.0 == wanted.dlid.get())
        .map(|port| PathRecord {
            dgid: port.gid().0,
            sgid: source.gid().0,
            dlid: U16::new(port.lid.0),
            slid: U16::new(source.lid.0),
            reversible_paths: 0x81,
            pkey: U16::new(PKey::DEFAULT.0),
            mtu: Selector::exactly(port.info.mtu_sm_sl.mtu().min(source.info.mtu_sm_sl.mtu())),
            rate: Selector::exactly(RATE),
            life_time: Selector::exactly(PACKET_LIFE),
            ..PathRecord::default()
        })
        .collect()
}

fn nodes(ports: &[Port], switch: &Switch, request: &SaMad) -> Vec<NodeRecord> {
    let Some(wanted) = request.record::<NodeRecord>() else {
        return Vec::new();
    };
    let mask = request.component_mask.get();
    let own = NodeRecord::new(SM_LID.0, switch.node_info(0), switch.description());
    let active = ports.iter().filter(|port| port.is_active());
    let theirs = active.map(|port| NodeRecord::new(port.lid.0, port.node, port.description));
    let info = &wanted.info;
    [own]
        .into_iter()
        .chain(theirs)
        .filter(|record| mask & node_record_mask::LID == 0 || record.lid == wanted.lid)
        .filter(|record| {
            mask & node_record_mask::NODE_GUID == 0 || record.info.node_guid == info.node_guid
        })
        .filter(|record| {
            mask & node_record_mask::PORT_GUID == 0 || record.info.port_guid == info.port_guid
        })
        .filter(|record| {
            mask & node_record_mask::NODE_TYPE == 0 || record.info.node_type == info.node_type
        })
        .collect()
}

fn port_infos(ports: &[Port], switch: &Switch, request: &SaMad) -> Vec<PortInfoRecord> {
    let Some(wanted) = request.record::<PortInfoRecord>() else {
        return Vec::new();
    };
    let mask = request.component_mask.get();
    let included = request.header.modifier.get() & port_info_record_mask::ABILITIES_INCLUDED != 0;
    let able = |record: &PortInfoRecord| {
        let (has, asked) = (
            record.info.capabilities.get(),
            wanted.info.capabilities.get(),
        );
        if included {
            has & asked == asked
        } else {
            has == asked
        }
    };
    let record = |lid: Lid, port: u8, info: PortInfo| PortInfoRecord {
        lid: U16::new(lid.0),
        port,
        options: 0,
        info,
    };
    let own = (0_u8..).zip(switch.port_infos());
    let active = ports.iter().filter(|port| port.is_active());
    own.map(|(port, info)| record(SM_LID, port, info))
        .chain(active.map(|port| record(port.lid, port.node.local_port, port.info)))
        .filter(|record| mask & port_info_record_mask::LID == 0 || record.lid == wanted.lid)
        .filter(|record| mask & port_info_record_mask::PORT == 0 || record.port == wanted.port)
        .filter(|record| mask & port_info_record_mask::CAPABILITIES == 0 || able(record))
        .collect()
}

/// Returns each link twice, as both of its ends see it.
fn links(ports: &[Port], request: &SaMad) -> Vec<LinkRecord> {
    use mad::sa::link_record_mask::{FROM_LID, FROM_PORT, TO_LID, TO_PORT};
    let Some(wanted) = request.record::<LinkRecord>() else {
        return Vec::new();
    };
    let mask = request.component_mask.get();
    let link = |from: (Lid, u8), to: (Lid, u8)| LinkRecord {
        from_lid: U16::new(from.0.0),
        from_port: from.1,
        to_port: to.1,
        to_lid: U16::new(to.0.0),
        reserved: [0; 2],
    };
    (1_u8..)
        .zip(ports)
        .filter(|(_, port)| port.is_active())
        .flat_map(|(number, port)| {
            let (here, there) = ((SM_LID, number), (port.lid, port.node.local_port));
            [link(here, there), link(there, here)]
        })
        .filter(|record| mask & FROM_LID == 0 || record.from_lid == wanted.from_lid)
        .filter(|record| mask & FROM_PORT == 0 || record.from_port == wanted.from_port)
        .filter(|record| mask & TO_LID == 0 || record.to_lid == wanted.to_lid)
        .filter(|record| mask & TO_PORT == 0 || record.to_port == wanted.to_port)
        .collect()
}

/// Returns the partition tables of the switch's ports, and those that the manager has set at nodes.
fn partitions(ports: &[Port], switch: &Switch, request: &SaMad) -> Vec<PKeyTableRecord> {
    use mad::sa::pkey_record_mask::{BLOCK, LID, PORT};
    let Some(wanted) = request.record::<PKeyTableRecord>() else {
        return Vec::new();
    };
    let mask = request.component_mask.get();
    let record = |lid: Lid, port, keys| PKeyTableRecord {
        lid: U16::new(lid.0),
        block: U16::ZERO,
        port,
        reserved: [0; 3],
        keys,
    };
    let own = (0_u8..).zip(switch.partition_tables());
    let active = ports.iter().filter(|port| port.is_active());
    own.map(|(port, keys)| record(SM_LID, port, keys))
        .chain(active.map(|port| record(port.lid, port.node.local_port, sm::partitions())))
        .filter(|record| mask & LID == 0 || record.lid == wanted.lid)
        .filter(|record| mask & BLOCK == 0 || record.block == wanted.block)
        .filter(|record| mask & PORT == 0 || record.port == wanted.port)
        .collect()
}

/// Answers by the record found, or by the table of them.
fn records<T: IntoBytes + Immutable>(request: &SaMad, found: &[T]) -> Answer {
    let mut response = request.into_response(Status::OK);
    if request.header.method == Method::GET {
        return match found {
            [] => Err(Status::SA_NO_RECORDS),
            [record] => {
                response.set_record(record);
                Ok(Response::Record(response))
            }
            _ => Err(Status::SA_TOO_MANY_RECORDS),
        };
    }
    let stride = size_of::<T>().next_multiple_of(8);
    let mut table = vec![0; stride * found.len()];
    for (place, record) in table.chunks_mut(stride).zip(found) {
        place[..size_of::<T>()].copy_from_slice(record.as_bytes());
    }
    response.attribute_offset = U16::new(u16::try_from(stride / 8).unwrap_or(0));
    Ok(Response::Table(response, table))
}

/// Returns an empty datagram to the sender of `request`.
fn envelope(request: &Packet, to: Qpn) -> Packet {
    Packet {
        slid: SM_LID,
        dlid: request.slid,
        dqpn: to,
        grh: None,
        operation: Operation::Datagram {
            qkey: QKey::GSI,
            source: Qpn(1),
            imm: None,
        },
        payload: Vec::new(),
        ..request.clone()
    }
}
