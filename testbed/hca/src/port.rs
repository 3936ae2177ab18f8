//! A port: its state, addresses and tables, as subnet management sees and sets them.

use fabric::counters::{Counter, PortCounts};
use fabric::{Grh, Packet};
use hal::{Duration, Instant};
use mad::smp::{
    LinkWidth, MtuAndSl, Nibbles, PortCapabilities, PortInfo, PortPhys, PortStateBits, SpeedState,
};
use mlx4_hw::path::TrafficClass;
use verbs::{Gid, Guid, Lid, PKey};
use zerocopy::FromZeros;
use zerocopy::big_endian::{U16, U32, U64};

/// Entries of the partition key and GUID tables.
pub(crate) const TABLE_LEN: usize = 128;
/// log2 of that.
pub(crate) const LOG_TABLE_LEN: u8 = 7;
/// Code of 4096 bytes.
pub(crate) const MTU_4096: u8 = 5;
const VLS_8: u8 = 4;
const PHYS_POLLING: u8 = 2;
const PHYS_LINK_UP: u8 = 5;
/// 2.5, 5 and 10 Gb/s.
const SPEEDS: u8 = 7;
const SPEED_QDR: u8 = 4;
/// FDR, among the extended speeds.
const SPEED_FDR: u8 = 1;

/// Changes that a write of PortInfo makes, each reported by its own event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) became_active: bool,
    pub(crate) left_active: bool,
    pub(crate) lid: bool,
    pub(crate) sm_lid: bool,
    pub(crate) gid_prefix: bool,
    pub(crate) reregister: bool,
}

/// One port.
pub(crate) struct Port {
    pub(crate) number: u8,
    guid: Guid,
    /// The cable is plugged.
    cable: bool,
    /// Software started the port.
    enabled: bool,
    /// The link is trained: the switch is at its other end.
    linked: bool,
    /// The link is to be seen down and up again.
    pub(crate) bounced: bool,
    pub(crate) info: PortInfo,
    pub(crate) pkeys: [U16; TABLE_LEN],
    /// GUIDs beyond the port's own, which is entry 0.
    pub(crate) guids: [U64; TABLE_LEN],
    pub(crate) sl_to_vl: [u8; 8],
    pub(crate) counts: PortCounts,
    /// Report to the subnet manager that is not acknowledged yet.
    trap: Option<Trap>,
    /// Time at which the management key's protection ends, since a request had not the key.
    lease_end: Option<Instant>,
}

/// A report that is sent until it is acknowledged.
#[derive(Debug, Clone, Copy)]
struct Trap {
    due: Instant,
    tries: u32,
}

/// Interval between two reports, and their number at most.
const TRAP_PAUSE: Duration = Duration::from_secs(1);
const TRAP_TRIES: u32 = 10;

impl Port {
    pub(crate) fn new(number: u8, guid: Guid) -> Self {
        let mut port = Self {
            number,
            guid,
            cable: true,
            enabled: false,
            linked: false,
            bounced: false,
            info: PortInfo::new_zeroed(),
            pkeys: [U16::ZERO; TABLE_LEN],
            guids: [U64::ZERO; TABLE_LEN],
            sl_to_vl: [0; 8],
            counts: PortCounts::default(),
            trap: None,
            lease_end: None,
        };
        port.reset();
        port
    }

    /// Puts the port into its state after a reset of the card: down, without addresses.
    pub(crate) fn reset(&mut self) {
        self.enabled = false;
        self.bounced = false;
        self.trap = None;
        self.counts = PortCounts::default();
        self.pkeys = [U16::ZERO; TABLE_LEN];
        self.pkeys[0] = U16::new(PKey::DEFAULT.0);
        self.guids = [U64::ZERO; TABLE_LEN];
        self.guids[0] = U64::new(self.guid.0);
        self.sl_to_vl = [0x01, 0x23, 0x45, 0x67, 0x01, 0x23, 0x45, 0x67];
        let mut info = PortInfo::new_zeroed();
        info.gid_prefix = U64::new(Gid::DEFAULT_PREFIX);
        info.capabilities = U32::new(
            PortCapabilities::TRAP
                | PortCapabilities::SL_MAP
                | PortCapabilities::SYSTEM_GUID
                | PortCapabilities::EXTENDED_SPEEDS
                | PortCapabilities::CLIENT_REREGISTER,
        );
        info.local_port = self.number;
        info.width_enabled = LinkWidth::X1 | LinkWidth::X4;
        info.width_supported = LinkWidth::X1 | LinkWidth::X4;
        info.width_active = LinkWidth::X4;
        info.speed_state = SpeedState::new()
            .with_speed_supported(SPEEDS)
            .with_state(PortStateBits::DOWN);
        info.phys = PortPhys::new()
            .with_state(PHYS_POLLING)
            .with_down_default(PHYS_POLLING);
        info.speed_active = Nibbles::new().with_high(SPEED_QDR).with_low(SPEEDS);
        info.mtu_sm_sl = MtuAndSl::new().with_mtu(MTU_4096);
        info.vl_cap = Nibbles::new().with_high(VLS_8);
        info.mtu_cap = Nibbles::new().with_low(MTU_4096);
        info.vl_arb_high_cap = 8;
        info.vl_arb_low_cap = 8;
        info.operational_vls = Nibbles::new().with_high(VLS_8);
        info.guid_cap = 128;
        info.response_time = 16;
        info.ext_speed = Nibbles::new().with_high(SPEED_FDR).with_low(SPEED_FDR);
        info.ext_speed_enabled = SPEED_FDR;
        self.info = info;
    }

    pub(crate) fn guid(&self) -> Guid {
        self.guid
    }

    pub(crate) fn lid(&self) -> Lid {
        Lid(self.info.lid.get())
    }

    /// Returns the payload bytes of a full datagram.
    pub(crate) fn mtu(&self) -> u32 {
        128 << self.info.mtu_sm_sl.mtu().clamp(1, MTU_4096)
    }

    pub(crate) fn state(&self) -> u8 {
        self.info.speed_state.state()
    }

    pub(crate) fn is_active(&self) -> bool {
        self.state() == PortStateBits::ACTIVE
    }

    /// Returns whether software started the port.
    pub(crate) fn is_started(&self) -> bool {
        self.enabled
    }

    /// Begins to report something to the subnet manager.
    pub(crate) fn begin_trap(&mut self, now: Instant) {
        self.trap = Some(Trap {
            due: now,
            tries: TRAP_TRIES,
        });
    }

    /// Stops reporting: the manager has acknowledged.
    pub(crate) fn end_trap(&mut self) {
        self.trap = None;
    }

    /// Returns the time of the next report.
    pub(crate) fn trap_due(&self) -> Option<Instant> {
        self.trap.map(|trap| trap.due)
    }

    /// Takes the report that is due: the manager's LID, if there is another port's that has one.
    pub(crate) fn take_trap(&mut self, now: Instant) -> Option<Lid> {
        let trap = self.trap.filter(|trap| trap.due <= now)?;
        let manager = Lid(self.info.sm_lid.get());
        let heard = self.is_active() && manager != Lid(0) && manager != self.lid();
        self.trap = (heard && trap.tries > 1).then(|| Trap {
            due: now + TRAP_PAUSE,
            tries: trap.tries - 1,
        });
        heard.then_some(manager)
    }

    /// Lifts the management key's protection when its lease is over.
    pub(crate) fn follow_lease(&mut self, now: Instant) {
        const PROTECTION: u8 = 0b11 << 6;
        if self.lease_end.is_some_and(|end| end <= now) {
            self.lease_end = None;
            self.info.mkey_lmc &= !PROTECTION;
        }
    }

    /// Returns whether a management key lets a request in: none is set, it is the same, or it is a
    /// read that the protection leaves open (IBA 1.3, 14.2.4). One that is not is counted, and
    /// begins the lease, which one with the key ends.
    pub(crate) fn accepts_key(&mut self, key: u64, set: bool, now: Instant) -> bool {
        const READS_ARE_OPEN: core::ops::RangeInclusive<u8> = 0..=1;
        let own = self.info.m_key.get();
        let protection = self.info.mkey_lmc >> 6;
        let accepted = own == 0 || own == key || !set && READS_ARE_OPEN.contains(&protection);
        if !accepted {
            let count = self.info.m_key_violations.get().saturating_add(1);
            self.info.m_key_violations = U16::new(count);
            let lease = Duration::from_secs(self.info.m_key_lease.get().into());
            if lease != Duration::ZERO {
                self.lease_end.get_or_insert(now + lease);
            }
        } else if own == key {
            self.lease_end = None;
        }
        accepted
    }

    /// Returns PortInfo as a request with this key may see it: the key itself is for those who have
    /// it, unless it is not protected at all.
    pub(crate) fn info_for(&self, key: Option<u64>) -> PortInfo {
        let mut info = self.info;
        let hidden = info.mkey_lmc >> 6 != 0 && key.is_some_and(|key| key != info.m_key.get());
        if hidden {
            info.m_key = U64::ZERO;
        }
        info
    }

    /// Returns whether the port tries to have a link.
    pub(crate) fn wants_link(&self) -> bool {
        self.cable && self.enabled
    }

    /// Returns whether the link is trained.
    pub(crate) fn link_is_up(&self) -> bool {
        self.wants_link() && self.linked
    }

    /// Sets whether the link is trained, and its width. Returns whether the port thereby left
    /// ACTIVE.
    pub(crate) fn link(&mut self, linked: bool, width: u8) -> bool {
        self.linked = linked;
        if linked {
            self.info.width_active = width;
        }
        self.retrain()
    }

    pub(crate) fn pkey(&self, index: u8) -> Option<PKey> {
        self.pkeys
            .get(usize::from(index))
            .map(|pkey| PKey(pkey.get()))
    }

    /// Returns the index of the first key that lets packets of a partition in.
    pub(crate) fn pkey_index(&self, pkey: PKey) -> Option<u8> {
        let admits = |entry: &U16| PKey(entry.get()).admits(pkey);
        u8::try_from(self.pkeys.iter().position(admits)?).ok()
    }

    /// Returns whether the key with this index lets a packet of a partition in, and counts it if it
    /// does not (IBA 1.3, 9.6.1.1.3).
    pub(crate) fn admits(&mut self, index: u8, pkey: PKey) -> bool {
        let admitted = self.pkey(index).is_some_and(|own| own.admits(pkey));
        if !admitted {
            let count = self.info.p_key_violations.get().saturating_add(1);
            self.info.p_key_violations = U16::new(count);
        }
        admitted
    }

    /// Returns whether any key lets a packet of a partition in, and counts it if none does.
    pub(crate) fn admits_to_any(&mut self, pkey: PKey) -> bool {
        let index = self.pkey_index(pkey).unwrap_or(0);
        self.admits(index, pkey)
    }

    pub(crate) fn gid(&self, index: u8) -> Gid {
        let guid = self
            .guids
            .get(usize::from(index))
            .map_or(0, |guid| guid.get());
        Gid::new(self.info.gid_prefix.get(), Guid(guid))
    }

    /// Builds the global route header of a packet from this port.
    pub(crate) fn grh(
        &self,
        gid_index: u8,
        traffic: TrafficClass,
        hop_limit: u8,
        to: [u8; 16],
    ) -> Grh {
        Grh {
            traffic_class: traffic.class(),
            flow_label: traffic.flow_label(),
            hop_limit,
            sgid: self.gid(gid_index),
            dgid: Gid(to),
        }
    }

    /// Returns whether the port's state lets the packet out: management packets whenever the link
    /// is up, data when the port is active.
    ///
    /// The manager must reach a port to configure it, so its packets pass before anything else may.
    pub(crate) fn may_send(&self, packet: &Packet) -> bool {
        self.is_active() || (packet.vl15 && self.link_is_up())
    }

    /// Starts or stops the port on software's behalf. Returns whether it thereby left ACTIVE.
    pub(crate) fn enable(&mut self, enabled: bool) -> bool {
        self.enabled = enabled;
        self.retrain()
    }

    /// Plugs or pulls the cable. Returns whether the port thereby left ACTIVE.
    pub(crate) fn plug(&mut self, plugged: bool) -> bool {
        self.cable = plugged;
        self.retrain()
    }

    /// Follows the link: INIT with one (a port that was up stays as it is), DOWN without.
    fn retrain(&mut self) -> bool {
        let was_active = self.is_active();
        let up = self.link_is_up();
        // What the manager has reached stays for as long as the link does.
        if up && self.state() != PortStateBits::DOWN {
            return false;
        }
        if self.state() != PortStateBits::DOWN && !up {
            self.counts.count(Counter::LinkDowned);
        }
        let (state, phys) = if up {
            (PortStateBits::INIT, PHYS_LINK_UP)
        } else {
            (PortStateBits::DOWN, PHYS_POLLING)
        };
        self.info.speed_state.set_state(state);
        self.info.phys.set_state(phys);
        was_active
    }

    /// Sets what a subnet manager sets of PortInfo. Nothing if the state wanted can't be reached.
    pub(crate) fn set_info(&mut self, wanted: &PortInfo) -> Option<Changed> {
        let old = self.info;
        let widths = fabric::widths_of(&self.info, wanted.width_enabled)?;
        let before = self.state();
        // The manager moves a port from INIT by way of ARMED to ACTIVE, when routes lead to it; it
        // can't skip a state, and only the link itself takes a port from DOWN (IBA 1.3, 14.2.5.6).
        let after = match (before, wanted.speed_state.state()) {
            (_, PortStateBits::NO_CHANGE) => before,
            (PortStateBits::INIT | PortStateBits::ARMED, PortStateBits::ARMED) => {
                PortStateBits::ARMED
            }
            (PortStateBits::ARMED | PortStateBits::ACTIVE, PortStateBits::ACTIVE) => {
                PortStateBits::ACTIVE
            }
            (_, PortStateBits::DOWN) => PortStateBits::INIT,
            _ => return None,
        };
        self.bounced |= wanted.speed_state.state() == PortStateBits::DOWN && self.link_is_up();
        let info = &mut self.info;
        info.m_key = wanted.m_key;
        info.gid_prefix = wanted.gid_prefix;
        info.lid = wanted.lid;
        info.sm_lid = wanted.sm_lid;
        info.m_key_lease = wanted.m_key_lease;
        info.mkey_lmc = wanted.mkey_lmc;
        if wanted.mtu_sm_sl.mtu() != 0 {
            info.mtu_sm_sl = wanted.mtu_sm_sl;
        }
        if wanted.operational_vls.high() != 0 {
            info.operational_vls = wanted.operational_vls;
        }
        info.vl_high_limit = wanted.vl_high_limit;
        info.width_enabled = widths;
        info.subnet_timeout = wanted.subnet_timeout.with_client_reregister(false);
        if self.link_is_up() {
            self.info.speed_state.set_state(after);
        }
        Some(Changed {
            became_active: before != PortStateBits::ACTIVE && self.is_active(),
            left_active: before == PortStateBits::ACTIVE && !self.is_active(),
            lid: old.lid != wanted.lid,
            sm_lid: old.sm_lid != wanted.sm_lid,
            gid_prefix: old.gid_prefix != wanted.gid_prefix,
            reregister: wanted.subnet_timeout.client_reregister(),
        })
    }
}
