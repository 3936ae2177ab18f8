//! The switch's subnet management agent (IBA 1.3, 14.2.5).

use hal::Instant;
use mad::smp::{
    GuidInfo, LINEAR_BLOCK, LinearForwarding, MULTICAST_BLOCK, MulticastForwarding, NodeInfo,
    NodeType, PKeyTable, PortInfo, PortStateBits, SlToVl, Smp, SwitchInfo, attribute, data_of,
};
use mad::{Attribute, Method, Status};
use verbs::Lid;
use zerocopy::big_endian::{U16, U32, U64};

use super::{
    GUID, LAST_LID, LinkOrder, MULTICAST_CAP, NO_PORT, PHYS_DISABLED, PHYS_LINK_UP, PHYS_NO_CHANGE,
    PHYS_POLLING, PKEYS, Port, Switch,
};
use crate::packet::FIRST_MLID;

/// The maker of the adapters, with the number of its InfiniScale III: none of the later ones, which
/// have attributes of their own.
const VENDOR: [u8; 3] = [0x00, 0x02, 0xc9];
const DEVICE: u16 = 47396;

impl Switch {
    /// Answers a request to the switch that came by port `from`. Nothing when it is none.
    pub(crate) fn answer(&mut self, mut smp: Smp, from: u8) -> Option<Smp> {
        let done = match smp.header.method {
            Method::GET => self.get(from, &mut smp),
            Method::SET => self.set(from, &mut smp),
            Method::TRAP_REPRESS => {
                self.trap.end();
                return None;
            }
            method if method.is_response() => return None,
            _ => Err(Status::BAD_METHOD),
        };
        Some(smp.into_response(done.err().unwrap_or(Status::OK)))
    }

    /// Returns the report that is due to the subnet manager, with the manager's LID; `None` before
    /// switch and manager have LIDs.
    pub(crate) fn report(&mut self, now: Instant) -> Option<(Lid, Smp)> {
        let manager = Lid(self.ports[0].info.sm_lid.get());
        let lid = self.lid();
        if manager == Lid(0) || lid == Lid(0) || manager == lid {
            self.trap.end();
            return None;
        }
        self.trap.poll(now, lid).map(|smp| (manager, smp))
    }

    /// Returns the time of the next report.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.trap.deadline()
    }

    /// Returns the switch's NodeInfo as `port` sees it.
    pub(crate) fn node_info(&self, port: u8) -> NodeInfo {
        NodeInfo {
            base_version: 1,
            class_version: 1,
            node_type: NodeType::SWITCH,
            ports: u8::try_from(self.ports.len() - 1).unwrap_or(u8::MAX),
            system_guid: U64::new(GUID.0),
            node_guid: U64::new(GUID.0),
            port_guid: U64::new(GUID.0),
            partition_cap: U16::new(PKEYS.into()),
            device_id: U16::new(DEVICE),
            revision: U32::ZERO,
            local_port: port,
            vendor_id: VENDOR,
        }
    }

    pub(crate) fn description(&self) -> mad::smp::NodeDescription {
        self.description
    }

    fn port(&self, number: u32) -> Result<&Port, Status> {
        let index = usize::try_from(number).map_err(|_| Status::BAD_FIELD)?;
        self.ports.get(index).ok_or(Status::BAD_FIELD)
    }

    fn port_mut(&mut self, number: u32) -> Result<&mut Port, Status> {
        let index = usize::try_from(number).map_err(|_| Status::BAD_FIELD)?;
        self.ports.get_mut(index).ok_or(Status::BAD_FIELD)
    }

    fn get(&self, from: u8, smp: &mut Smp) -> Result<(), Status> {
        let modifier = smp.header.modifier.get();
        smp.data = match smp.header.attribute() {
            Attribute::NODE_DESCRIPTION => self.description.0,
            Attribute::NODE_INFO => data_of(&self.node_info(from)),
            Attribute::SWITCH_INFO => data_of(&self.info),
            Attribute::GUID_INFO => {
                let mut table = GuidInfo::default();
                table.0[0] = U64::new(GUID.0);
                data_of(&table)
            }
            Attribute::PORT_INFO => {
                let mut info = self.port(modifier & 0xff)?.info;
                info.local_port = from;
                data_of(&info)
            }
            Attribute::PKEY_TABLE => data_of(&PKeyTable(self.port(one_block(modifier)?)?.pkeys)),
            // The modifier: the port that packets come in by, and the one that they leave by, whose
            // table is all there is.
            Attribute::SL_TO_VL => data_of(&SlToVl(self.port(modifier & 0xff)?.sl_to_vl)),
            Attribute::VL_ARBITRATION => [0; 64],
            Attribute::LINEAR_FORWARDING => {
                let first = linear_block(modifier)?;
                let mut block = LinearForwarding([NO_PORT; LINEAR_BLOCK]);
                for (to, from) in block.0.iter_mut().zip(&self.unicast[first..]) {
                    *to = *from;
                }
                data_of(&block)
            }
            Attribute::MULTICAST_FORWARDING => data_of(&self.multicast_block(modifier)?),
            _ => return Err(Status::BAD_ATTRIBUTE),
        };
        Ok(())
    }

    fn set(&mut self, from: u8, smp: &mut Smp) -> Result<(), Status> {
        let modifier = smp.header.modifier.get();
        match smp.header.attribute() {
            Attribute::SWITCH_INFO => {
                let wanted: SwitchInfo = attribute(&smp.data).ok_or(Status::BAD_FIELD)?;
                self.set_switch_info(&wanted)?;
            }
            Attribute::PORT_INFO => {
                let wanted: PortInfo = attribute(&smp.data).ok_or(Status::BAD_FIELD)?;
                let number = modifier & 0xff;
                self.port_mut(number)?.set_info(&wanted, number == 0)?;
            }
            Attribute::PKEY_TABLE => {
                let table: PKeyTable = attribute(&smp.data).ok_or(Status::BAD_FIELD)?;
                self.port_mut(one_block(modifier)?)?.pkeys = table.0;
            }
            Attribute::SL_TO_VL => {
                let table: SlToVl = attribute(&smp.data).ok_or(Status::BAD_FIELD)?;
                self.port_mut(modifier & 0xff)?.sl_to_vl = table.0;
            }
            Attribute::VL_ARBITRATION => {}
            Attribute::LINEAR_FORWARDING => {
                let first = linear_block(modifier)?;
                let block: LinearForwarding = attribute(&smp.data).ok_or(Status::BAD_FIELD)?;
                for (to, from) in self.unicast[first..].iter_mut().zip(&block.0) {
                    *to = *from;
                }
            }
            Attribute::MULTICAST_FORWARDING => {
                let block: MulticastForwarding = attribute(&smp.data).ok_or(Status::BAD_FIELD)?;
                self.set_multicast_block(modifier, &block)?;
            }
            _ => return Err(Status::BAD_ATTRIBUTE),
        }
        self.get(from, smp)
    }

    fn set_switch_info(&mut self, wanted: &SwitchInfo) -> Result<(), Status> {
        if wanted.linear_top.get() > LAST_LID {
            return Err(Status::BAD_FIELD);
        }
        let info = &mut self.info;
        info.linear_top = wanted.linear_top;
        info.default_port = wanted.default_port;
        info.default_multicast_primary = wanted.default_multicast_primary;
        info.default_multicast_other = wanted.default_multicast_other;
        info.multicast_top = wanted.multicast_top;
        let changed = info.life_state.port_state_change() && !wanted.life_state.port_state_change();
        info.life_state = wanted.life_state.with_port_state_change(changed);
        Ok(())
    }

    fn multicast_block(&self, modifier: u32) -> Result<MulticastForwarding, Status> {
        let (first, position) = multicast_block(modifier)?;
        let mut block = MulticastForwarding::default();
        for (lid, word) in (first..).zip(&mut block.0) {
            let words = self.multicast.get(&lid);
            *word = U16::new(
                words
                    .and_then(|words| words.get(position))
                    .copied()
                    .unwrap_or(0),
            );
        }
        Ok(block)
    }

    fn set_multicast_block(
        &mut self,
        modifier: u32,
        block: &MulticastForwarding,
    ) -> Result<(), Status> {
        let (first, position) = multicast_block(modifier)?;
        let len = self.ports.len().div_ceil(16);
        for (lid, word) in (first..).zip(&block.0) {
            if word.get() == 0 && !self.multicast.contains_key(&lid) {
                continue;
            }
            let words = self.multicast.entry(lid).or_insert_with(|| vec![0; len]);
            if let Some(place) = words.get_mut(position) {
                *place = word.get();
            }
            if words.iter().all(|word| *word == 0) {
                self.multicast.remove(&lid);
            }
        }
        Ok(())
    }
}

impl Port {
    /// Sets what a subnet manager sets; `own` for port 0, which alone has addresses.
    fn set_info(&mut self, wanted: &PortInfo, own: bool) -> Result<(), Status> {
        let before = self.info.speed_state.state();
        let up = self.info.phys.state() == PHYS_LINK_UP;
        let order = self.link_order(wanted, own)?;
        let widths = widths_of(&self.info, wanted.width_enabled).ok_or(Status::BAD_FIELD)?;
        let after = match (before, wanted.speed_state.state()) {
            (_, PortStateBits::NO_CHANGE) => before,
            (PortStateBits::INIT | PortStateBits::ARMED, PortStateBits::ARMED) if up => {
                PortStateBits::ARMED
            }
            (PortStateBits::ARMED | PortStateBits::ACTIVE, PortStateBits::ACTIVE) if up => {
                PortStateBits::ACTIVE
            }
            // It is so when the link has gone down.
            (_, PortStateBits::DOWN) if !own => before,
            _ => return Err(Status::BAD_FIELD),
        };
        let info = &mut self.info;
        if own {
            info.m_key = wanted.m_key;
            info.gid_prefix = wanted.gid_prefix;
            info.lid = wanted.lid;
            info.sm_lid = wanted.sm_lid;
            info.m_key_lease = wanted.m_key_lease;
            info.mkey_lmc = wanted.mkey_lmc;
            info.subnet_timeout = wanted.subnet_timeout.with_client_reregister(false);
        }
        if wanted.mtu_sm_sl.mtu() != 0 {
            info.mtu_sm_sl = wanted.mtu_sm_sl;
        }
        if wanted.operational_vls.high() != 0 {
            info.operational_vls.set_high(wanted.operational_vls.high());
        }
        if !own {
            info.operational_vls.set_low(wanted.operational_vls.low());
        }
        info.vl_high_limit = wanted.vl_high_limit;
        info.width_enabled = widths;
        info.speed_state.set_state(after);
        self.order = order.or(self.order);
        Ok(())
    }

    /// Returns the order for the link that a written PortInfo means (IBA 1.3, 14.2.5.6: PortState
    /// and PortPhysicalState). `ibportstate` disables a port by its physical state, and enables it
    /// by polling.
    fn link_order(&self, wanted: &PortInfo, own: bool) -> Result<Option<LinkOrder>, Status> {
        let down = wanted.speed_state.state() == PortStateBits::DOWN;
        match wanted.phys.state() {
            _ if own => Ok(None),
            PHYS_DISABLED => Ok(Some(LinkOrder::Disable)),
            PHYS_POLLING if self.disabled => Ok(Some(LinkOrder::Enable)),
            // `ibportstate reset` sets no state.
            PHYS_POLLING if self.info.phys.state() == PHYS_LINK_UP => Ok(Some(LinkOrder::Retrain)),
            PHYS_NO_CHANGE | PHYS_POLLING if down && !self.disabled => Ok(Some(LinkOrder::Retrain)),
            PHYS_NO_CHANGE | PHYS_POLLING => Ok(None),
            _ => Err(Status::BAD_FIELD),
        }
    }
}

/// Returns the widths that a port may use after a Set: 0 leaves them, 255 means all there are (IBA
/// 1.3, 14.2.5.6, LinkWidthEnabled). They count when the link trains next.
#[must_use]
pub fn widths_of(info: &PortInfo, wanted: u8) -> Option<u8> {
    match wanted {
        0 => Some(info.width_enabled),
        u8::MAX => Some(info.width_supported),
        some => (some & !info.width_supported == 0).then_some(some),
    }
}

/// Returns the port of a partition table's modifier; each port has one block.
fn one_block(modifier: u32) -> Result<u32, Status> {
    if modifier & 0xffff == 0 {
        Ok(modifier >> 16)
    } else {
        Err(Status::BAD_FIELD)
    }
}

/// Returns the first LID of a block.
fn linear_block(modifier: u32) -> Result<usize, Status> {
    let first = usize::try_from(modifier)
        .ok()
        .and_then(|block| block.checked_mul(LINEAR_BLOCK));
    first
        .filter(|&first| first <= usize::from(LAST_LID))
        .ok_or(Status::BAD_FIELD)
}

/// Returns the first LID of a block and the number of its group of sixteen ports: the modifier's
/// upper four bits.
fn multicast_block(modifier: u32) -> Result<(u16, usize), Status> {
    let position = usize::try_from(modifier >> 28).map_err(|_| Status::BAD_FIELD)?;
    let block = usize::try_from(modifier & 0x0fff_ffff).map_err(|_| Status::BAD_FIELD)?;
    let offset = block
        .checked_mul(MULTICAST_BLOCK)
        .and_then(|offset| u16::try_from(offset).ok());
    let offset = offset
        .filter(|&offset| offset < MULTICAST_CAP)
        .ok_or(Status::BAD_FIELD)?;
    Ok((FIRST_MLID + offset, position))
}
