//! The records of subnet administration (IBA 1.3, 15.2.5).

use bitfield_struct::bitfield;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::number::layout;
use crate::smp::{NodeDescription, NodeInfo, PKeyTable, PortInfo};

/// A value with the way it is compared: 0 greater, 1 less, 2 exactly, 3 the largest.
#[bitfield(u8, order = Msb)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct Selector {
    /// Comparison of a selector.
    #[bits(2)]
    pub how: u8,
    /// MTU code, rate code or packet life time.
    #[bits(6)]
    pub value: u8,
}

impl Selector {
    /// Exactly `value`.
    #[must_use]
    pub const fn exactly(value: u8) -> Self {
        Self::new().with_how(2).with_value(value & 0x3f)
    }
}

/// A path between two ports (15.2.5.16; Linux `ib_sa.h`, `path_rec_table`).
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
pub struct PathRecord {
    /// Service the path is for.
    pub service_id: U64,
    /// GID of the destination.
    pub dgid: [u8; 16],
    /// GID of the source.
    pub sgid: [u8; 16],
    /// LID of the destination.
    pub dlid: U16,
    /// LID of the source.
    pub slid: U16,
    /// Raw traffic bit, flow label and hop limit.
    pub flow_hop: U32,
    /// Traffic class.
    pub traffic_class: u8,
    /// Reversible bit and number of paths wanted.
    pub reversible_paths: u8,
    /// Partition key.
    pub pkey: U16,
    /// QoS class (12 bits) and service level (4).
    pub qos_sl: U16,
    /// MTU code.
    pub mtu: Selector,
    /// Rate code: 3 = 10 Gb/s, 7 = 40 Gb/s, 12 = 56 Gb/s.
    pub rate: Selector,
    /// Packet life time: 4.096 µs × 2^n.
    pub life_time: Selector,
    /// Preference among several paths.
    pub preference: u8,
    /// Reserved.
    pub reserved: [u8; 6],
}
layout!(PathRecord: 64, dgid @ 8, sgid @ 24, dlid @ 40, slid @ 42, flow_hop @ 44, pkey @ 50, qos_sl @ 52, mtu @ 54, rate @ 55,
    life_time @ 56);

/// Component mask bits of [`PathRecord`] (Linux `IB_SA_PATH_REC_*`).
pub mod path_record_mask {
    /// `dgid` counts.
    pub const DGID: u64 = 1 << 2;
    /// `sgid` counts.
    pub const SGID: u64 = 1 << 3;
    /// `dlid` counts.
    pub const DLID: u64 = 1 << 4;
    /// `slid` counts.
    pub const SLID: u64 = 1 << 5;
    /// The number of paths counts.
    pub const NUMB_PATH: u64 = 1 << 12;
    /// `pkey` counts.
    pub const PKEY: u64 = 1 << 13;
}

/// Scope of a multicast group and the way a port is a member.
#[bitfield(u8, order = Msb)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct JoinState {
    /// Scope.
    #[bits(4)]
    pub scope: u8,
    /// One bit each: full member, non-member, send-only non-member.
    #[bits(4)]
    pub join: u8,
}

/// A port's membership of a multicast group (15.2.5.17; Linux `mcmember_rec_table`).
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
pub struct McMemberRecord {
    /// The group.
    pub mgid: [u8; 16],
    /// The member.
    pub port_gid: [u8; 16],
    /// The group's Q_Key.
    pub qkey: U32,
    /// The group's LID.
    pub mlid: U16,
    /// MTU code.
    pub mtu: Selector,
    /// Traffic class.
    pub traffic_class: u8,
    /// Partition key.
    pub pkey: U16,
    /// Rate code.
    pub rate: Selector,
    /// Packet life time.
    pub life_time: Selector,
    /// Service level (4 bits), flow label (20), hop limit (8).
    pub sl_flow_hop: U32,
    /// Scope and join state.
    pub scope_join: JoinState,
    /// Proxy join bit.
    pub proxy_join: u8,
    /// Reserved.
    pub reserved: [u8; 2],
}
layout!(McMemberRecord: 52, port_gid @ 16, qkey @ 32, mlid @ 36, mtu @ 38, pkey @ 40, rate @ 42, sl_flow_hop @ 44,
    scope_join @ 48);

/// Component mask bits of [`McMemberRecord`] (Linux `IB_SA_MCMEMBER_REC_*`).
pub mod mc_member_mask {
    /// `mgid` counts.
    pub const MGID: u64 = 1 << 0;
    /// `port_gid` counts.
    pub const PORT_GID: u64 = 1 << 1;
    /// `qkey` counts.
    pub const QKEY: u64 = 1 << 2;
    /// `mlid` counts.
    pub const MLID: u64 = 1 << 3;
    /// The comparison with `mtu` counts, and the MTU.
    pub const MTU: u64 = 1 << 4 | 1 << 5;
    /// `traffic_class` counts.
    pub const TRAFFIC_CLASS: u64 = 1 << 6;
    /// The comparison with `rate` counts, and the rate.
    pub const RATE: u64 = 1 << 8 | 1 << 9;
    /// `pkey` counts.
    pub const PKEY: u64 = 1 << 7;
    /// The service level counts.
    pub const SL: u64 = 1 << 12;
    /// The flow label counts.
    pub const FLOW_LABEL: u64 = 1 << 13;
    /// The join state counts.
    pub const JOIN_STATE: u64 = 1 << 16;
    /// Components that a request to create a group must name.
    pub const CREATE: u64 = QKEY | TRAFFIC_CLASS | PKEY | SL | FLOW_LABEL | JOIN_STATE;
}

/// A node (15.2.5.2).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct NodeRecord {
    /// LID of one of its ports.
    pub lid: U16,
    /// Reserved.
    pub reserved: U16,
    /// The node's NodeInfo.
    pub info: NodeInfo,
    /// Its text.
    pub description: NodeDescription,
}
layout!(NodeRecord: 108, info @ 4, description @ 44);

impl NodeRecord {
    /// The record of the node behind `lid`.
    #[must_use]
    pub fn new(lid: u16, info: NodeInfo, description: NodeDescription) -> Self {
        Self {
            lid: U16::new(lid),
            reserved: U16::ZERO,
            info,
            description,
        }
    }
}

/// Component mask bits of [`NodeRecord`].
pub mod node_record_mask {
    /// `lid` counts.
    pub const LID: u64 = 1 << 0;
    /// The node's type counts.
    pub const NODE_TYPE: u64 = 1 << 4;
    /// The system GUID counts.
    pub const SYSTEM_GUID: u64 = 1 << 6;
    /// The node GUID counts.
    pub const NODE_GUID: u64 = 1 << 7;
    /// The port GUID counts.
    pub const PORT_GUID: u64 = 1 << 8;
}

/// A port (15.2.5.3).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct PortInfoRecord {
    /// The port's LID.
    pub lid: U16,
    /// The port's number.
    pub port: u8,
    /// Options.
    pub options: u8,
    /// Its parameters.
    pub info: PortInfo,
}
layout!(PortInfoRecord: 68, info @ 4);

/// Component mask bits of [`PortInfoRecord`].
pub mod port_info_record_mask {
    /// `lid` counts.
    pub const LID: u64 = 1 << 0;
    /// `port` counts.
    pub const PORT: u64 = 1 << 1;
    /// `capabilities` of `info` count.
    pub const CAPABILITIES: u64 = 1 << 7;
    /// Of the attribute's modifier: abilities need only be among those that a port has (15.2.5.3).
    pub const ABILITIES_INCLUDED: u32 = 1 << 31;
}

/// A link, from the port that it is seen from (15.2.5.13; OpenSM `ib_types.h`,
/// `ib_link_record_t`).
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
pub struct LinkRecord {
    /// LID of the node on this side.
    pub from_lid: U16,
    /// Its port.
    pub from_port: u8,
    /// Port of the node on the other side.
    pub to_port: u8,
    /// Its LID.
    pub to_lid: U16,
    /// Reserved.
    pub reserved: [u8; 2],
}
layout!(LinkRecord: 8, from_port @ 2, to_port @ 3, to_lid @ 4);

/// Component mask bits of [`LinkRecord`].
pub mod link_record_mask {
    /// `from_lid` counts.
    pub const FROM_LID: u64 = 1 << 0;
    /// `from_port` counts.
    pub const FROM_PORT: u64 = 1 << 1;
    /// `to_port` counts.
    pub const TO_PORT: u64 = 1 << 2;
    /// `to_lid` counts.
    pub const TO_LID: u64 = 1 << 3;
}

/// A block of a port's partition table (15.2.5.11; OpenSM `ib_types.h`, `ib_pkey_table_record_t`).
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
pub struct PKeyTableRecord {
    /// The node's LID.
    pub lid: U16,
    /// Number of the block.
    pub block: U16,
    /// The port.
    pub port: u8,
    /// Reserved.
    pub reserved: [u8; 3],
    /// The keys.
    pub keys: PKeyTable,
}
layout!(PKeyTableRecord: 72, block @ 2, port @ 4, keys @ 8);

/// Component mask bits of [`PKeyTableRecord`].
pub mod pkey_record_mask {
    /// `lid` counts.
    pub const LID: u64 = 1 << 0;
    /// `block` counts.
    pub const BLOCK: u64 = 1 << 1;
    /// `port` counts.
    pub const PORT: u64 = 1 << 2;
}

/// Capabilities of a class and its redirection (13.4.8.1; Linux `struct ib_class_port_info`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ClassPortInfo {
    /// 1.
    pub base_version: u8,
    /// The class's version.
    pub class_version: u8,
    /// Abilities.
    pub capabilities: U16,
    /// Abilities of the second set (27 bits) and response time: 4.096 µs × 2^n (5 bits).
    pub capabilities2_resp_time: U32,
    /// Redirection and trap target; zero: none.
    pub targets: [u8; 64],
}
layout!(ClassPortInfo: 72, targets @ 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_record_is_as_linux_lays_it_out() {
        // Linux sa_query.c, path_rec_table: dgid at word 2, sgid 6, dlid/slid 10, pkey 12 bit 16,
        // mtu 13 bit 16.
        let record = PathRecord {
            dlid: U16::new(0x0203),
            slid: U16::new(0x0405),
            pkey: U16::new(0xffff),
            mtu: Selector::exactly(5),
            rate: Selector::exactly(12),
            ..PathRecord::default()
        };
        let bytes = record.as_bytes();
        assert_eq!(bytes[40..44], [2, 3, 4, 5]);
        assert_eq!(bytes[50..52], [0xff, 0xff]);
        assert_eq!(bytes[54..56], [0x85, 0x8c]);
    }

    #[test]
    fn mc_member_record_is_as_linux_lays_it_out() {
        // Linux sa_query.c, mcmember_rec_table: qkey at word 8, mlid 9, mtu 9 bit 16, join state 12
        // bit 4.
        let record = McMemberRecord {
            qkey: U32::new(0x8001_0203),
            mlid: U16::new(0xc001),
            mtu: Selector::exactly(4),
            scope_join: JoinState::new().with_scope(2).with_join(1),
            ..McMemberRecord::default()
        };
        let bytes = record.as_bytes();
        assert_eq!(bytes[32..39], [0x80, 1, 2, 3, 0xc0, 1, 0x84]);
        assert_eq!(bytes[48], 0x21);
    }
}
