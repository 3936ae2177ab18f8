//! SET_PORT: what a port offers to its subnet manager, or its Ethernet settings.
//!
//! Source: Linux `port.c` (`mlx4_SET_PORT`, `MLX4_SET_PORT_*`; `struct
//! mlx4_set_port_general_context`), iPXE `MT25408_PRM.h` (`hermonprm_set_port_ib_st`).

use bitfield_struct::bitfield;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::{High, layout};

/// InfiniBand settings (operation modifier 0).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SetPortIb {
    /// The setting to change, and its value.
    pub change: SetPortChange,
    /// PortInfo's capability mask.
    pub capability_mask: U32,
    /// System image GUID.
    pub system_guid: U64,
    /// The port's GUID.
    pub port_guid: U64,
    /// The node's GUID.
    pub node_guid: U64,
    _reserved_20: [u8; 8],
    /// Entries of the partition key table.
    pub pkey_table_len: U16,
    /// Entries of the GID table.
    pub gid_table_len: U16,
    _reserved_2c: [u8; 4],
}

layout!(SetPortIb: 0x30, capability_mask @ 4, system_guid @ 8, port_guid @ 0x10, node_guid @ 0x18,
    pkey_table_len @ 0x28, gid_table_len @ 0x2a);

/// First dword of a [`SetPortIb`].
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Lsb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct SetPortChange {
    /// Resets the counter of Q_Key violations.
    pub reset_qkey_violations: bool,
    /// Replaces the capability mask.
    pub reset_capability_mask: bool,
    #[bits(2)]
    __: u8,
    /// Virtual lanes.
    #[bits(4)]
    pub vl_cap: u8,
    #[bits(4)]
    __: u8,
    /// MTU: 1 to 5 for 256 to 4096 bytes.
    #[bits(4)]
    pub mtu_cap: u8,
    /// Sets the port's GUID.
    pub change_port_guid: bool,
    /// Sets the node's GUID.
    pub change_node_guid: bool,
    /// Sets the system image GUID.
    pub change_system_guid: bool,
    /// Sets the size of the GID table.
    pub change_gid_table: bool,
    /// Sets the size of the partition key table.
    pub change_pkey_table: bool,
    /// Sets `vl_cap`.
    pub change_vl_cap: bool,
    /// Sets `mtu_cap`.
    pub change_mtu_cap: bool,
    #[bits(9)]
    __: u16,
}

/// Kinds of Ethernet settings (operation modifier 1), in the input modifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EthernetSelector;

impl EthernetSelector {
    /// [`SetPortGeneral`].
    pub const GENERAL: u8 = 0x0;
    /// Receive QP calculation.
    pub const RQP_CALC: u8 = 0x1;
    /// MAC addresses.
    pub const MAC_TABLE: u8 = 0x2;
    /// VLANs.
    pub const VLAN_TABLE: u8 = 0x3;
    /// Priorities.
    pub const PRIORITY_MAP: u8 = 0x4;
    /// GIDs of RoCE v1.
    pub const GID_TABLE: u8 = 0x5;
    /// Priorities to traffic classes.
    pub const PRIORITY_TO_CLASS: u8 = 0x8;
    /// Scheduler.
    pub const SCHEDULER: u8 = 0x9;
    /// VXLAN.
    pub const VXLAN: u8 = 0xb;
    /// Addresses of RoCE v1 and v2.
    pub const ROCE_ADDRESS: u8 = 0xd;
}

/// General Ethernet settings.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SetPortGeneral {
    _reserved_00: [u8; 2],
    /// More of what is set.
    pub flags_2: u8,
    /// Fields that are set: bit 0 MTU, 1 receive pause, 2 send pause, 4 RoCE mode.
    pub flags: u8,
    /// RoCE mode and frame check.
    pub roce_mode: u8,
    _reserved_05: u8,
    /// MTU with all headers.
    pub mtu: U16,
    /// Send pause.
    pub send_pause: High<1>,
    /// Send pause by priority.
    pub send_pause_priorities: u8,
    _reserved_0a: [u8; 2],
    /// Receive pause.
    pub receive_pause: High<1>,
    /// Receive pause by priority.
    pub receive_pause_priorities: u8,
    _reserved_0e: [u8; 18],
}

layout!(SetPortGeneral: 0x20, flags @ 3, mtu @ 6, send_pause @ 8, receive_pause @ 0x0c);

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn golden() {
        // Linux port.c: MLX4_CHANGE_PORT_MTU_CAP 22, VL_CAP 21, PKEY_TBL 20, MLX4_SET_PORT_VL_CAP 4
        // (shift), MTU_CAP 12 (shift); capability mask at dword 1.
        let mut set = SetPortIb::new_zeroed();
        set.change = SetPortChange::new()
            .with_change_mtu_cap(true)
            .with_change_vl_cap(true)
            .with_mtu_cap(5)
            .with_vl_cap(8);
        set.capability_mask = 0x0251_0868.into();
        assert_eq!(set.as_bytes()[..8], [0, 0x60, 0x50, 0x80, 2, 0x51, 8, 0x68]);
        // mthca_cmd.c and iPXE: bit 0 resets the Q_Key counter, bit 1 the capability mask, 16 to 18
        // set GUIDs.
        let guid = SetPortChange::new()
            .with_change_port_guid(true)
            .with_change_system_guid(true);
        assert_eq!(guid.as_bytes(), [0, 5, 0, 0]);
    }
}
