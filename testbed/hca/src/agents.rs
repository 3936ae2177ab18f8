//! The firmware's management agents: subnet management and port counters.

use mad::smp::{
    GuidInfo, NodeDescription, NodeInfo, NodeType, Notice, NoticeType, PKeyTable, PortInfo, SlToVl,
    Smp, TRAP_LOCAL_CHANGES, attribute, data_of,
};
use mad::{Attribute, Header, Mad, Method, MgmtClass, Status};
use mlx4_hw::bits::Low;
use mlx4_hw::eq::{
    EventType, PortAttributes, PortChange, PortEvent, PortManagementChange, PortManagementEvent,
};
use verbs::Guid;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use crate::core::Core;
use crate::firmware::FIRMWARE;
use crate::port::{Changed, TABLE_LEN};

/// Card's identity in management datagrams.
pub(crate) struct Identity {
    pub(crate) guid: Guid,
    pub(crate) description: NodeDescription,
    /// The PCI device number.
    pub(crate) device: u16,
}

const VENDOR: [u8; 3] = [0x00, 0x02, 0xc9];
/// PortInfo's modifier (IBA 1.3, 14.2.5.6; OpenSM sets it with every Set).
const SM_KNOWS_SPEEDS: u32 = 1 << 31;
/// The maker's own attribute of a port: FDR10, by bit 0 of bytes 7 (supported), 11 (enabled) and 15
/// (active). OpenSM asks each ConnectX for it (`ib_types.h`, `ib_mlnx_ext_port_info_t`), Linux
/// those with QDR (mlx4_ib `main.c`).
const MAKERS_PORT_INFO: Attribute = Attribute(0xff90);
const PKEYS_PER_BLOCK: usize = 32;
const GUIDS_PER_BLOCK: usize = 8;

/// Answers a datagram for the agents of a port; `checks_key` unless the management key does not
/// count. Nothing when it is not theirs to answer, or has the wrong key.
pub(crate) fn answer(
    core: &mut Core,
    identity: &Identity,
    port: u8,
    checks_key: bool,
    mad: &Mad,
) -> Option<Mad> {
    let header = Header::parse(mad).ok()?;
    match header.class {
        MgmtClass::SUBN_LID | MgmtClass::SUBN_DIRECTED => {
            answer_smp(core, identity, port, checks_key, mad)
        }
        MgmtClass::PERF => fabric::counters::answer(core, mad),
        MgmtClass::VENDOR_1 | MgmtClass::VENDOR_2 | MgmtClass::CONGESTION => {
            answer_vendor(core, identity, header, mad)
        }
        _ => None,
    }
}

/// Answers a datagram of the maker's classes: who the card is (`vendstat -N`), and that nothing
/// else is known.
fn answer_vendor(core: &Core, identity: &Identity, header: Header, mad: &Mad) -> Option<Mad> {
    /// Attribute of the card's model and firmware, and its place in the datagram (infiniband-diags
    /// `vendstat.c`, `IB_MLX_IS3_GENERAL_INFO`, `is4_general_info_t`).
    const GENERAL_INFO: Attribute = Attribute(0x17);
    const DATA: usize = 24;
    if header.method.is_response() {
        return None;
    }
    let mut out = *mad;
    let ours = header.class == MgmtClass::VENDOR_2;
    let known = ours && header.attribute() == GENERAL_INFO;
    let status = match (known, header.method) {
        // Base and class version; `vendstat` asks for them first.
        (false, Method::GET) if ours && header.attribute() == Attribute::CLASS_PORT_INFO => {
            out[DATA..DATA + 2].copy_from_slice(&[1, 1]);
            Status::OK
        }
        (true, Method::GET) => {
            let mut put = |at: usize, bytes: &[u8]| {
                out[DATA + at..DATA + at + bytes.len()].copy_from_slice(bytes);
            };
            let seconds = u32::try_from(core.now.nanos / 1_000_000_000).unwrap_or(u32::MAX);
            put(8, &1_u16.to_be_bytes());
            put(10, &identity.device.to_be_bytes());
            put(36, &seconds.to_be_bytes());
            // Its firmware: in bytes, and in dwords for numbers beyond these.
            put(
                41,
                &[FIRMWARE[0].to_be_bytes()[3], FIRMWARE[1].to_be_bytes()[3]],
            );
            for (at, number) in (76..).step_by(4).zip(FIRMWARE) {
                put(at, &number.to_be_bytes());
            }
            Status::OK
        }
        (true, _) => Status::BAD_METHOD,
        (false, _) => Status::BAD_ATTRIBUTE,
    };
    let mut response = header;
    response.method = Method::GET_RESP;
    response.status = U16::new(status.0);
    out[..size_of::<Header>()].copy_from_slice(response.as_bytes());
    Some(out)
}

/// Begins to tell subnet managers that the node's text has changed.
pub(crate) fn begin_traps(core: &mut Core) {
    let now = core.now;
    for port in core.ports.iter_mut().filter(|port| port.is_active()) {
        port.begin_trap(now);
    }
    send_traps(core);
}

/// Sends the traps that are due: 144, local changes (IBA 1.3, 14.2.5.1; OpenSM `ib_types.h`,
/// `ntc_144`).
pub(crate) fn send_traps(core: &mut Core) {
    const NODE_DESCRIPTION_CHANGED: u8 = 1;
    let now = core.now;
    let mut due = Vec::new();
    for port in &mut core.ports {
        if let Some(manager) = port.take_trap(now) {
            due.push((port.number, port.lid(), manager, port.info.capabilities));
        }
    }
    for (number, lid, manager, capabilities) in due {
        let mut details = [0; 54];
        details[2..4].copy_from_slice(&lid.0.to_be_bytes());
        details[5] = 1;
        details[6..10].copy_from_slice(capabilities.as_bytes());
        details[11] = NODE_DESCRIPTION_CHANGED;
        let notice = Notice {
            kind: NoticeType::INFORMATIVE,
            producer: [0, 0, NodeType::CHANNEL_ADAPTER.0],
            trap: U16::new(TRAP_LOCAL_CHANGES),
            issuer: U16::new(lid.0),
            toggle_count: U16::ZERO,
            details,
        };
        let smp = Smp {
            data: data_of(&notice),
            ..Smp::request(Method::TRAP, Attribute::NOTICE, 0, now.nanos)
        };
        core.send(number, fabric::management_packet(lid, manager, &smp));
    }
}

fn answer_smp(
    core: &mut Core,
    identity: &Identity,
    port: u8,
    checks_key: bool,
    mad: &Mad,
) -> Option<Mad> {
    let mut smp = Smp::parse(mad).ok()?;
    if smp.header.method.is_response() {
        return None;
    }
    let key = checks_key.then_some(smp.m_key.get());
    let sets = smp.header.method != Method::GET;
    let now = core.now;
    core.port_mut(port)?.follow_lease(now);
    if let Some(key) = key
        && !core.port_mut(port)?.accepts_key(key, sets, now)
    {
        log::debug!("port {port}: a request with the wrong M_Key");
        return None;
    }
    let status = match smp.header.method {
        Method::GET => get(core, identity, port, key, &mut smp),
        Method::SET => set(core, identity, port, key, &mut smp),
        Method::TRAP_REPRESS => {
            core.port_mut(port)?.end_trap();
            return None;
        }
        _ => Err(Status::BAD_METHOD),
    };
    let status = status.err().unwrap_or(Status::OK);
    if smp.is_directed() {
        let hop = usize::from(smp.hop_count());
        if let Some(place) = smp.return_path.get_mut(hop) {
            *place = port;
        }
    }
    Some(smp.into_response(status).to_mad())
}

/// Returns the range of a table's block.
fn block<const LEN: usize>(number: u32) -> Result<core::ops::Range<usize>, Status> {
    let number = u16::try_from(number).map_err(|_| Status::BAD_FIELD)?;
    let first = usize::from(number) * LEN;
    if first + LEN > TABLE_LEN {
        return Err(Status::BAD_FIELD);
    }
    Ok(first..first + LEN)
}

/// Returns the block of the partition table that a modifier names. The modifier's upper half is a
/// port of a switch, and ignored by a channel adapter (IBA 1.3, 14.2.5.7): `smpquery pkeys` puts
/// one there.
fn pkey_block(modifier: u32) -> Result<core::ops::Range<usize>, Status> {
    block::<PKEYS_PER_BLOCK>(modifier & 0xffff)
}

fn get(
    core: &Core,
    identity: &Identity,
    number: u8,
    key: Option<u64>,
    smp: &mut Smp,
) -> Result<(), Status> {
    let modifier = smp.header.modifier.get();
    let port = core.port(number).ok_or(Status::BAD_FIELD)?;
    smp.data = match smp.header.attribute() {
        Attribute::NODE_INFO => data_of(&node_info(core, identity, number)),
        Attribute::NODE_DESCRIPTION => identity.description.0,
        Attribute::PORT_INFO => {
            // The modifier names a port of this node; 0 is the one that was asked. Its top bit says
            // that the manager understands extended speeds.
            let wanted =
                u8::try_from(modifier & !SM_KNOWS_SPEEDS).map_err(|_| Status::BAD_FIELD)?;
            let port = if wanted == 0 {
                port
            } else {
                core.port(wanted).ok_or(Status::BAD_FIELD)?
            };
            data_of(&port.info_for(key))
        }
        Attribute::PKEY_TABLE => {
            let mut table = PKeyTable::default();
            table.0.copy_from_slice(&port.pkeys[pkey_block(modifier)?]);
            data_of(&table)
        }
        Attribute::GUID_INFO => {
            let mut table = GuidInfo::default();
            table
                .0
                .copy_from_slice(&port.guids[block::<GUIDS_PER_BLOCK>(modifier)?]);
            data_of(&table)
        }
        Attribute::SL_TO_VL => data_of(&SlToVl(port.sl_to_vl)),
        Attribute::VL_ARBITRATION => [0; 64],
        MAKERS_PORT_INFO => makers_port_info(),
        _ => return Err(Status::BAD_ATTRIBUTE),
    };
    Ok(())
}

/// Returns the vendor's PortInfo: FDR10 is supported and enabled, but not active.
fn makers_port_info() -> [u8; 64] {
    const SUPPORTED: usize = 7;
    const ENABLED: usize = 11;
    let mut data = [0; 64];
    data[SUPPORTED] = 1;
    data[ENABLED] = 1;
    data
}

fn node_info(core: &Core, identity: &Identity, number: u8) -> NodeInfo {
    NodeInfo {
        base_version: 1,
        class_version: 1,
        node_type: NodeType::CHANNEL_ADAPTER,
        ports: u8::try_from(core.ports.len()).unwrap_or(0),
        system_guid: U64::new(identity.guid.0),
        node_guid: U64::new(identity.guid.0),
        port_guid: U64::new(core.port(number).map_or(0, |port| port.guid().0)),
        partition_cap: U16::new(u16::try_from(TABLE_LEN).unwrap_or(0)),
        device_id: U16::new(identity.device),
        revision: U32::ZERO,
        local_port: number,
        vendor_id: VENDOR,
    }
}

fn set(
    core: &mut Core,
    identity: &Identity,
    number: u8,
    key: Option<u64>,
    smp: &mut Smp,
) -> Result<(), Status> {
    let modifier = smp.header.modifier.get();
    match smp.header.attribute() {
        Attribute::PORT_INFO => {
            let wanted: PortInfo = attribute(&smp.data).ok_or(Status::BAD_FIELD)?;
            let port = core.port_mut(number).ok_or(Status::BAD_FIELD)?;
            let changed = port.set_info(&wanted).ok_or(Status::BAD_FIELD)?;
            report(core, number, changed);
        }
        Attribute::PKEY_TABLE => {
            let table: PKeyTable = attribute(&smp.data).ok_or(Status::BAD_FIELD)?;
            let port = core.port_mut(number).ok_or(Status::BAD_FIELD)?;
            let place = &mut port.pkeys[pkey_block(modifier)?];
            let changed = *place != table.0;
            place.copy_from_slice(&table.0);
            if changed {
                report_management(
                    core,
                    number,
                    PortManagementChange::PKEY_TABLE,
                    PortAttributes::new(),
                );
            }
        }
        Attribute::GUID_INFO => {
            let table: GuidInfo = attribute(&smp.data).ok_or(Status::BAD_FIELD)?;
            let port = core.port_mut(number).ok_or(Status::BAD_FIELD)?;
            let own = port.guids[0];
            port.guids[block::<GUIDS_PER_BLOCK>(modifier)?].copy_from_slice(&table.0);
            port.guids[0] = own;
            report_management(
                core,
                number,
                PortManagementChange::GUID_INFO,
                PortAttributes::new(),
            );
        }
        Attribute::SL_TO_VL => {
            let table: SlToVl = attribute(&smp.data).ok_or(Status::BAD_FIELD)?;
            core.port_mut(number).ok_or(Status::BAD_FIELD)?.sl_to_vl = table.0;
        }
        Attribute::VL_ARBITRATION | MAKERS_PORT_INFO => {}
        _ => return Err(Status::BAD_ATTRIBUTE),
    }
    get(core, identity, number, key, smp)
}

/// Reports what changed of a port.
fn report(core: &mut Core, number: u8, changed: Changed) {
    if changed.lid || changed.sm_lid || changed.gid_prefix || changed.reregister {
        let attributes = PortAttributes::new()
            .with_lid(changed.lid)
            .with_sm_lid(changed.sm_lid)
            .with_gid_prefix(changed.gid_prefix)
            .with_client_reregister(changed.reregister);
        report_management(core, number, PortManagementChange::PORT_INFO, attributes);
    }
    if changed.became_active {
        report_link(core, number, true);
    }
    if changed.left_active {
        report_link(core, number, false);
    }
}

/// Reports that a port became active or is no longer.
pub(crate) fn report_link(core: &mut Core, number: u8, active: bool) {
    let mut event = PortEvent::new_zeroed();
    event.port = mlx4_hw::bits::High::new(number);
    let subtype = if active {
        PortChange::ACTIVE
    } else {
        PortChange::DOWN
    };
    core.events.report(
        &core.memory,
        EventType::PORT_CHANGE,
        subtype,
        zerocopy::transmute!(event),
    );
}

fn report_management(core: &mut Core, number: u8, subtype: u8, changed: PortAttributes) {
    let Some(port) = core.port(number) else {
        return;
    };
    let mut event = PortManagementEvent::new_zeroed();
    event.port = number;
    event.lid = port.info.lid;
    event.sm_lid = port.info.sm_lid;
    event.sm_sl = Low::new(port.info.mtu_sm_sl.sl());
    event.gid_prefix = port.info.gid_prefix;
    event.changed = changed;
    core.events.report(
        &core.memory,
        EventType::PORT_MANAGEMENT_CHANGE,
        subtype,
        zerocopy::transmute!(event),
    );
}
