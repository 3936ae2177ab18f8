//! The switch: its ports, its forwarding, and its place on directed routes.
//!
//! * `agent`: its subnet management agent. * `link_trap`: how it reports a link that changed.
//!
//! Port 0 is the switch's own; the others have the number of their [`PortIndex`](crate::PortIndex)
//! and one. A subnet manager writes its tables by SMPs; the fabric's own one, which runs on the
//! switch, writes them straight.

mod agent;
mod link_trap;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use hal::Instant;
use mad::smp::{
    LifeState, LinkWidth, MtuAndSl, Nibbles, NodeDescription, PERMISSIVE_LID, PKeyTable,
    PortCapabilities, PortInfo, PortPhys, PortStateBits, Smp, SpeedState, SwitchFlags, SwitchInfo,
};
use verbs::{Gid, Guid, Lid, PKey};
use zerocopy::big_endian::{U16, U32, U64};

pub use self::agent::widths_of;
use self::link_trap::LinkTrap;
use crate::counters::{CountedPorts, Counter, PortCounts};
use crate::packet::FIRST_MLID;

/// External ports that there are at least, as of the usual switch of one chip.
const PORTS: usize = 36;
/// External ports that there are at most: 255 means none.
const MOST_PORTS: usize = 254;
/// Marks a LID without a port in a forwarding table.
const NO_PORT: u8 = 255;
/// The highest unicast LID.
const LAST_LID: u16 = FIRST_MLID - 1;
/// Multicast LIDs that it can forward.
const MULTICAST_CAP: u16 = 4096;
/// Entries of a port's partition table: one block.
const PKEYS: u8 = 32;
/// Code of 4096 bytes.
const MTU_4096: u8 = 5;
const VLS_8: u8 = 4;
/// Bits of PortInfo's partition enforcement.
const ENFORCES_INBOUND: u8 = 1 << 3;
const ENFORCES_OUTBOUND: u8 = 1 << 2;
/// PortPhysicalState in a Set that leaves the state as it is.
const PHYS_NO_CHANGE: u8 = 0;
const PHYS_POLLING: u8 = 2;
const PHYS_DISABLED: u8 = 3;
const PHYS_LINK_UP: u8 = 5;
/// 2.5, 5 and 10 Gb/s; 10 Gb/s alone.
const SPEEDS: u8 = 7;
const SPEED_QDR: u8 = 4;
/// FDR, among the extended speeds.
const SPEED_FDR: u8 = 1;

/// The switch's GUID: smaller than those of adapters, so that it wins among subnet managers of one
/// priority.
pub(crate) const GUID: Guid = Guid(0x0002_c902_0000_0001);

/// A port of the switch.
struct Port {
    info: PortInfo,
    pkeys: [U16; PKEYS as usize],
    sl_to_vl: [u8; 8],
    counts: PortCounts,
    /// A manager keeps the link down.
    disabled: bool,
    /// Order of a manager for the link that was not carried out yet.
    order: Option<LinkOrder>,
}

/// Order of a subnet manager for a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkOrder {
    /// Takes the link down and trains it again.
    Retrain,
    /// Takes the link down and keeps it down.
    Disable,
    /// Lets the link train again.
    Enable,
}

/// The switch.
pub(crate) struct Switch {
    description: NodeDescription,
    /// Port 0 first.
    ports: Vec<Port>,
    attached: usize,
    info: SwitchInfo,
    /// Port by LID.
    unicast: Vec<u8>,
    /// Port masks by multicast LID: sixteen ports a word.
    multicast: BTreeMap<u16, Vec<u16>>,
    trap: LinkTrap,
}

/// Next hop of a packet on QP0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hop {
    /// The packet has arrived: it is for the switch, or for the subnet manager on it.
    Here,
    /// The packet leaves by this port.
    Leave(u8),
    /// The directed part of its route is over: it goes on to a LID.
    To(Lid),
    /// Its route is invalid.
    Lost,
}

impl Switch {
    pub(crate) fn new() -> Self {
        let mut switch = Self {
            description: NodeDescription::new("switch"),
            ports: Vec::new(),
            attached: 0,
            info: SwitchInfo {
                linear_cap: U16::new(FIRST_MLID),
                multicast_cap: U16::new(MULTICAST_CAP),
                enforcement_cap: U16::new(PKEYS.into()),
                default_port: NO_PORT,
                default_multicast_primary: NO_PORT,
                default_multicast_other: NO_PORT,
                life_state: LifeState::new().with_life_time(18),
                // OpenSM looks for another subnet manager behind a port 0 of this kind only.
                flags: SwitchFlags::new()
                    .with_inbound_enforcement(true)
                    .with_outbound_enforcement(true)
                    .with_enhanced_port_0(true),
                ..SwitchInfo::default()
            },
            unicast: vec![NO_PORT; usize::from(FIRST_MLID)],
            multicast: BTreeMap::new(),
            trap: LinkTrap::default(),
        };
        for number in 0..=PORTS {
            switch.ports.push(Port::new(number));
        }
        let own = &mut switch.ports[0].info;
        own.speed_state.set_state(PortStateBits::ACTIVE);
        own.phys.set_state(PHYS_LINK_UP);
        switch
    }

    /// Joins a cable to the next port.
    ///
    /// # Panics
    ///
    /// When there are more cables than a switch can have ports.
    pub(crate) fn add_port(&mut self) {
        self.attached += 1;
        assert!(
            self.attached <= MOST_PORTS,
            "a switch has {MOST_PORTS} ports at most"
        );
        if self.attached >= self.ports.len() {
            self.ports.push(Port::new(self.attached));
        }
    }

    /// Follows a link that came up or went down.
    pub(crate) fn link_changed(&mut self, now: Instant, port: u8, up: bool) {
        let Some(state) = self.ports.get_mut(usize::from(port)) else {
            return;
        };
        if !up && state.info.phys.state() == PHYS_LINK_UP {
            state.counts.count(Counter::LinkDowned);
        }
        let (logical, physical) = if up {
            (PortStateBits::INIT, PHYS_LINK_UP)
        } else if state.disabled {
            (PortStateBits::DOWN, PHYS_DISABLED)
        } else {
            (PortStateBits::DOWN, PHYS_POLLING)
        };
        state.info.speed_state.set_state(logical);
        state.info.phys.set_state(physical);
        self.info.life_state.set_port_state_change(true);
        self.trap.begin(now);
    }

    /// Takes what a subnet manager wants of a port's link.
    pub(crate) fn take_order(&mut self) -> Option<(u8, LinkOrder)> {
        let found = self
            .ports
            .iter_mut()
            .enumerate()
            .find(|(_, port)| port.order.is_some());
        let (number, port) = found?;
        let order = port.order.take()?;
        port.disabled = order == LinkOrder::Disable;
        if port.info.speed_state.state() == PortStateBits::DOWN {
            let phys = if port.disabled {
                PHYS_DISABLED
            } else {
                PHYS_POLLING
            };
            port.info.phys.set_state(phys);
        }
        Some((u8::try_from(number).ok()?, order))
    }

    /// Returns the widths that a port may use.
    pub(crate) fn widths(&self, port: u8) -> u8 {
        self.ports
            .get(usize::from(port))
            .map_or(0, |port| port.info.width_enabled)
    }

    /// Sets the width of a port's link.
    pub(crate) fn set_width(&mut self, port: u8, width: u8) {
        if let Some(port) = self.ports.get_mut(usize::from(port)) {
            port.info.width_active = width;
        }
    }

    /// Returns whether a manager keeps a port's link down.
    pub(crate) fn is_disabled(&self, port: u8) -> bool {
        self.ports
            .get(usize::from(port))
            .is_some_and(|port| port.disabled)
    }

    /// Returns the PortInfo of each port, port 0 first.
    pub(crate) fn port_infos(&self) -> impl Iterator<Item = PortInfo> + '_ {
        self.ports.iter().map(|port| port.info)
    }

    /// Returns the partition table of each port, port 0 first.
    pub(crate) fn partition_tables(&self) -> impl Iterator<Item = PKeyTable> + '_ {
        self.ports.iter().map(|port| PKeyTable(port.pkeys))
    }

    /// Returns the switch's own LID; 0 before it has one.
    pub(crate) fn lid(&self) -> Lid {
        Lid(self.ports[0].info.lid.get())
    }

    /// Returns whether data may pass a port.
    pub(crate) fn carries_data(&self, port: u8) -> bool {
        let state = self
            .ports
            .get(usize::from(port))
            .map(|port| port.info.speed_state.state());
        matches!(state, Some(PortStateBits::ARMED | PortStateBits::ACTIVE))
    }

    /// Returns whether data of a partition may come in by a port. A manager tells the port to check
    /// that (IBA 1.3, 14.2.5.6: PartitionEnforcementInbound, PartitionEnforcementOutbound).
    pub(crate) fn lets_in(&mut self, port: u8, pkey: PKey) -> bool {
        self.enforce(port, ENFORCES_INBOUND, pkey, Counter::RcvConstraint)
    }

    /// Returns whether data of a partition may go out by a port.
    pub(crate) fn lets_out(&mut self, port: u8, pkey: PKey) -> bool {
        self.enforce(port, ENFORCES_OUTBOUND, pkey, Counter::XmitConstraint)
    }

    fn enforce(&mut self, port: u8, way: u8, pkey: PKey, counter: Counter) -> bool {
        let Some(port) = self.ports.get_mut(usize::from(port)) else {
            return false;
        };
        let enforces = port.info.operational_vls.low() & way != 0;
        let admitted = !enforces || port.pkeys.iter().any(|own| PKey(own.get()).admits(pkey));
        if !admitted {
            port.counts.count(counter);
        }
        admitted
    }

    /// Returns the port towards a LID.
    pub(crate) fn towards(&self, lid: Lid) -> Option<u8> {
        let port = *self.unicast.get(usize::from(lid.0))?;
        (port != NO_PORT && lid.0 <= self.info.linear_top.get()).then_some(port)
    }

    /// Returns the ports towards the members of a multicast group.
    pub(crate) fn towards_group(&self, lid: Lid) -> impl Iterator<Item = u8> + '_ {
        let words = self.multicast.get(&lid.0).map_or(&[][..], Vec::as_slice);
        (0_u8..=NO_PORT - 1).filter(|&port| {
            let word = words.get(usize::from(port) / 16).copied().unwrap_or(0);
            word & 1 << (port % 16) != 0
        })
    }

    /// Makes the switch the seat of a subnet manager with this LID.
    pub(crate) fn manage_from_here(&mut self, lid: Lid) {
        let info = &mut self.ports[0].info;
        info.lid = U16::new(lid.0);
        info.sm_lid = U16::new(lid.0);
        info.gid_prefix = U64::new(Gid::DEFAULT_PREFIX);
        info.capabilities |= U32::new(PortCapabilities::SM);
        self.set_route(lid, Some(0));
    }

    /// Sets the port towards a LID.
    pub(crate) fn set_route(&mut self, lid: Lid, port: Option<u8>) {
        if let Some(entry) = self.unicast.get_mut(usize::from(lid.0)) {
            *entry = port.unwrap_or(NO_PORT);
            let top = self.info.linear_top.get().max(lid.0);
            self.info.linear_top = U16::new(top);
        }
    }

    /// Takes away all routes through a port.
    pub(crate) fn forget_port(&mut self, port: u8) {
        self.unicast
            .iter_mut()
            .filter(|to| **to == port)
            .for_each(|to| *to = NO_PORT);
    }

    /// Sets the ports towards a multicast group.
    pub(crate) fn set_group(&mut self, lid: Lid, ports: impl IntoIterator<Item = u8>) {
        let mut words = vec![0_u16; self.ports.len().div_ceil(16)];
        for port in ports {
            if let Some(word) = words.get_mut(usize::from(port) / 16) {
                *word |= 1 << (port % 16);
            }
        }
        self.multicast.insert(lid.0, words);
    }

    /// Sets the state of a port, for a manager that runs here.
    pub(crate) fn set_state(&mut self, port: u8, state: u8) {
        if let Some(port) = self.ports.get_mut(usize::from(port)) {
            port.info.speed_state.set_state(state);
        }
    }

    /// Moves a directed route's SMP one hop on (IBA 1.3, 14.2.2.2). `from` is the port it came by,
    /// 0 if it begins here.
    pub(crate) fn hop(&self, smp: &mut Smp, from: u8) -> Hop {
        if smp.is_returning() {
            self.hop_back(smp)
        } else {
            self.hop_on(smp, from)
        }
    }

    fn hop_on(&self, smp: &mut Smp, from: u8) -> Hop {
        let (pointer, count) = (smp.hop_pointer(), smp.hop_count());
        if pointer == 0 && count > 0 {
            smp.set_hops(1, count);
            return self.leave(smp.initial_path[1]);
        }
        if pointer > count {
            return Hop::Lost;
        }
        if pointer > 0 {
            smp.return_path[usize::from(pointer)] = from;
        }
        smp.set_hops(pointer + 1, count);
        if pointer < count {
            return self.leave(smp.initial_path[usize::from(pointer) + 1]);
        }
        match smp.dr_dlid.get() {
            PERMISSIVE_LID => Hop::Here,
            lid => Hop::To(Lid(lid)),
        }
    }

    fn hop_back(&self, smp: &mut Smp) -> Hop {
        let (pointer, count) = (smp.hop_pointer(), smp.hop_count());
        if pointer == 0 {
            return Hop::Lost;
        }
        smp.set_hops(pointer - 1, count);
        if pointer > 1 {
            return self.leave(smp.return_path[usize::from(pointer) - 1]);
        }
        match smp.dr_slid.get() {
            PERMISSIVE_LID => Hop::Here,
            lid => Hop::To(Lid(lid)),
        }
    }

    fn leave(&self, port: u8) -> Hop {
        if port > 0 && usize::from(port) < self.ports.len() {
            Hop::Leave(port)
        } else {
            Hop::Lost
        }
    }
}

impl Port {
    fn new(number: usize) -> Self {
        let mut info = PortInfo {
            width_enabled: LinkWidth::X1 | LinkWidth::X4,
            width_supported: LinkWidth::X1 | LinkWidth::X4,
            width_active: LinkWidth::X4,
            speed_state: SpeedState::new()
                .with_speed_supported(SPEEDS)
                .with_state(PortStateBits::DOWN),
            phys: PortPhys::new()
                .with_state(PHYS_POLLING)
                .with_down_default(PHYS_POLLING),
            speed_active: Nibbles::new().with_high(SPEED_QDR).with_low(SPEEDS),
            mtu_sm_sl: MtuAndSl::new().with_mtu(MTU_4096),
            vl_cap: Nibbles::new().with_high(VLS_8),
            mtu_cap: Nibbles::new().with_low(MTU_4096),
            operational_vls: Nibbles::new().with_high(VLS_8),
            response_time: 16,
            ext_speed: Nibbles::new().with_high(SPEED_FDR).with_low(SPEED_FDR),
            ext_speed_enabled: SPEED_FDR,
            ..PortInfo::default()
        };
        if number == 0 {
            info.capabilities = U32::new(
                PortCapabilities::TRAP
                    | PortCapabilities::SYSTEM_GUID
                    | PortCapabilities::EXTENDED_SPEEDS,
            );
            info.gid_prefix = U64::new(Gid::DEFAULT_PREFIX);
            info.guid_cap = 1;
        }
        let mut pkeys = [U16::ZERO; PKEYS as usize];
        pkeys[0] = U16::new(PKey::DEFAULT.0);
        Self {
            info,
            pkeys,
            sl_to_vl: [0x01, 0x23, 0x45, 0x67, 0x01, 0x23, 0x45, 0x67],
            counts: PortCounts::default(),
            disabled: false,
            order: None,
        }
    }
}

impl CountedPorts for Switch {
    fn numbers(&self) -> RangeInclusive<u8> {
        1..=u8::try_from(self.ports.len() - 1).unwrap_or(u8::MAX - 1)
    }

    fn counts(&mut self, port: u8) -> Option<&mut PortCounts> {
        self.ports
            .get_mut(usize::from(port))
            .map(|port| &mut port.counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mad::{Attribute, Method, Status};
    use proptest::prelude::*;

    fn directed(path: &[u8]) -> Smp {
        Smp::request(Method::GET, Attribute::NODE_INFO, 0, 7)
            .directed(path)
            .unwrap()
    }

    #[test]
    fn a_route_through_the_switch_goes_there_and_back() {
        // From a card at port 3 by its port 1, then by the switch's port 5; the card has counted
        // the first hop.
        let switch = Switch::new();
        let mut smp = directed(&[1, 5]);
        smp.set_hops(1, 2);
        assert_eq!(switch.hop(&mut smp, 3), Hop::Leave(5));
        assert_eq!((smp.hop_pointer(), smp.return_path[1]), (2, 3));
        // The other card's answer, as it leaves there.
        let mut answer = smp.into_response(Status::OK);
        answer.return_path[2] = 1;
        assert_eq!(switch.hop(&mut answer, 5), Hop::Leave(3));
        assert_eq!(answer.hop_pointer(), 1);
    }

    #[test]
    fn a_route_that_ends_here_is_answered_by_the_port_it_came_by() {
        let switch = Switch::new();
        let mut smp = directed(&[1]);
        smp.set_hops(1, 1);
        assert_eq!(switch.hop(&mut smp, 9), Hop::Here);
        let mut answer = smp.into_response(Status::OK);
        assert_eq!(switch.hop(&mut answer, 0), Hop::Leave(9));
        assert_eq!(answer.hop_pointer(), 1);
    }

    #[test]
    fn a_route_may_begin_and_end_by_lid() {
        let switch = Switch::new();
        let mut smp = directed(&[5]);
        smp.dr_slid = U16::new(7);
        assert_eq!(switch.hop(&mut smp, 2), Hop::Leave(5));
        let mut answer = smp.into_response(Status::OK);
        answer.set_hops(1, 1);
        assert_eq!(switch.hop(&mut answer, 5), Hop::To(Lid(7)));
        let mut far = directed(&[1]);
        far.dr_dlid = U16::new(8);
        far.set_hops(1, 1);
        assert_eq!(switch.hop(&mut far, 2), Hop::To(Lid(8)));
    }

    #[test]
    fn ports_that_are_not_there_lose_the_packet() {
        let switch = Switch::new();
        for port in [0, 37, 255] {
            let mut smp = directed(&[1, port]);
            smp.set_hops(1, 2);
            assert_eq!(switch.hop(&mut smp, 3), Hop::Lost);
        }
    }

    proptest! {
        #[test]
        fn no_route_panics(mut bytes in proptest::collection::vec(any::<u8>(), 256), from: u8) {
            bytes[..3].copy_from_slice(&[1, 0x81, 1]);
            bytes[7] &= 63;
            bytes[6] %= bytes[7] + 2;
            let mut smp = Smp::parse(&bytes).unwrap();
            let _ = Switch::new().hop(&mut smp, from);
        }
    }
}
