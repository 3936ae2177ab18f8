//! The attributes of switches and subnet managers, and what they report (IBA 1.3, 13.4.8.2 and
//! 14.2.5).

use bitfield_struct::bitfield;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::number::{layout, open_enum};

/// LIDs of a block of [`LinearForwarding`].
pub const LINEAR_BLOCK: usize = 64;
/// LIDs of a block of [`MulticastForwarding`].
pub const MULTICAST_BLOCK: usize = 32;

/// LifeTimeValue of packets in a switch, and the bit that a port's state has changed.
#[bitfield(u8, order = Msb)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct LifeState {
    /// 4.096 µs × 2^n.
    #[bits(5)]
    pub life_time: u8,
    /// A port came up or went down. Writing it clears it.
    pub port_state_change: bool,
    #[bits(2)]
    __: u8,
}

/// Partition and raw packet enforcement of a switch, and the type of its port 0.
#[bitfield(u8, order = Msb)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct SwitchFlags {
    /// It can check partitions of what comes in.
    pub inbound_enforcement: bool,
    /// It can check partitions of what goes out.
    pub outbound_enforcement: bool,
    #[bits(2)]
    __: u8,
    /// Port 0 is a port like those of a channel adapter.
    pub enhanced_port_0: bool,
    #[bits(3)]
    __: u8,
}

/// A switch's parameters (14.2.5.4).
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct SwitchInfo {
    /// Entries of the linear forwarding table.
    pub linear_cap: U16,
    /// Entries of the random forwarding table.
    pub random_cap: U16,
    /// Entries of the multicast forwarding table.
    pub multicast_cap: U16,
    /// The highest LID of the linear forwarding table in use.
    pub linear_top: U16,
    /// Port for packets whose LID has no entry.
    pub default_port: u8,
    /// Port for multicast packets without an entry.
    pub default_multicast_primary: u8,
    /// Port for multicast packets without an entry that came in by the primary one.
    pub default_multicast_other: u8,
    /// Life time of packets, and the mark of a change.
    pub life_state: LifeState,
    /// LIDs of a port, with a random forwarding table.
    pub lids_per_port: U16,
    /// Entries of a port's partition table.
    pub enforcement_cap: U16,
    /// Abilities.
    pub flags: SwitchFlags,
    /// Reserved.
    pub reserved: u8,
    /// The highest multicast LID in use.
    pub multicast_top: U16,
}
layout!(SwitchInfo: 20, linear_top @ 6, life_state @ 11, enforcement_cap @ 14, flags @ 16, multicast_top @ 18);

/// The ports of one block of LIDs; 255 is no port (14.2.5.10).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct LinearForwarding(pub [u8; LINEAR_BLOCK]);

/// Sixteen ports, a bit each, of one block of multicast LIDs (14.2.5.12).
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
pub struct MulticastForwarding(pub [U16; MULTICAST_BLOCK]);

/// State of a subnet manager (14.4.1).
pub struct SmState;
impl SmState {
    /// It does nothing.
    pub const NOT_ACTIVE: u8 = 0;
    /// It looks at the subnet.
    pub const DISCOVERING: u8 = 1;
    /// It waits for the master's end.
    pub const STANDBY: u8 = 2;
    /// It manages the subnet.
    pub const MASTER: u8 = 3;
}

/// A subnet manager's rank and its [`SmState`].
#[bitfield(u8, order = Msb)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct Priority {
    /// The highest one is master; among equals the smallest GUID.
    #[bits(4)]
    pub priority: u8,
    /// A [`SmState`] value.
    #[bits(4)]
    pub state: u8,
}

/// A subnet manager (14.2.5.13).
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct SmInfo {
    /// GUID of its port.
    pub guid: U64,
    /// Key that proves the manager.
    pub key: U64,
    /// Counts on while it lives.
    pub activity: U32,
    /// Rank and state.
    pub priority: Priority,
}
layout!(SmInfo: 21, key @ 8, activity @ 16, priority @ 20);

open_enum! {
    /// Type of a notice (urgency), with the bit of a generic one.
    #[derive(Unaligned)]
    pub struct NoticeType(u8) {
        /// Generic, urgent.
        URGENT = 0x81,
        /// Generic, for information.
        INFORMATIVE = 0x84,
    }
}

/// Trap 128: a port of the switch that the details name by its LID came up or went down (14.2.5.1).
pub const TRAP_LINK_STATE: u16 = 128;

/// Trap 144: the port that the details name has changed something of its own: its abilities, its
/// node's text (14.2.5.1).
pub const TRAP_LOCAL_CHANGES: u16 = 144;

/// A report of something that happened (13.4.8.2).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Notice {
    /// Type of the notice.
    pub kind: NoticeType,
    /// The reporting node's type, 24 bits.
    pub producer: [u8; 3],
    /// Trap number: the event.
    pub trap: U16,
    /// LID of the reporter.
    pub issuer: U16,
    /// Notice toggle and count: whether it is in a queue, and how many times it was reported.
    pub toggle_count: U16,
    /// More, by the kind of trap.
    pub details: [u8; 54],
}
layout!(Notice: 64, trap @ 4, issuer @ 6, details @ 10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switch_info_is_as_opensm_lays_it_out() {
        // OpenSM ib_types.h, ib_switch_info_t: life_state's bit 0x04 is the port state change,
        // flags' 0x08 port 0.
        let info = SwitchInfo {
            linear_cap: U16::new(0xbfff),
            life_state: LifeState::new()
                .with_life_time(18)
                .with_port_state_change(true),
            flags: SwitchFlags::new().with_enhanced_port_0(true),
            ..SwitchInfo::default()
        };
        let bytes = info.as_bytes();
        assert_eq!(
            (bytes[..2].to_vec(), bytes[11], bytes[16]),
            (vec![0xbf, 0xff], 0x94, 0x08)
        );
    }

    #[test]
    fn sm_info_is_as_opensm_lays_it_out() {
        // OpenSM ib_types.h, ib_sm_info_t: pri_state has the priority in its upper half.
        let info = SmInfo {
            priority: Priority::new()
                .with_priority(15)
                .with_state(SmState::MASTER),
            ..SmInfo::default()
        };
        assert_eq!(info.as_bytes()[20], 0xf3);
    }
}
