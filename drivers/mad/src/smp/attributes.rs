//! The attributes of subnet management (IBA 1.3, 14.2.5).

use bitfield_struct::bitfield;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::number::{layout, open_enum};

open_enum! {
    /// Type of a node.
    #[derive(Unaligned)]
    pub struct NodeType(u8) {
        /// A channel adapter.
        CHANNEL_ADAPTER = 1,
        /// A switch.
        SWITCH = 2,
        /// A router.
        ROUTER = 3,
    }
}

/// NodeInfo: type, identity and maker of a node (14.2.5.3).
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
pub struct NodeInfo {
    /// 1.
    pub base_version: u8,
    /// 1.
    pub class_version: u8,
    /// Its type.
    pub node_type: NodeType,
    /// Its ports.
    pub ports: u8,
    /// GUID of the system that it is a part of.
    pub system_guid: U64,
    /// GUID of the node.
    pub node_guid: U64,
    /// GUID of the port that was asked.
    pub port_guid: U64,
    /// Entries of the partition table.
    pub partition_cap: U16,
    /// The maker's device number.
    pub device_id: U16,
    /// Its revision.
    pub revision: U32,
    /// The port that was asked.
    pub local_port: u8,
    /// The maker.
    pub vendor_id: [u8; 3],
}
layout!(NodeInfo: 40, node_guid @ 12, port_guid @ 20, device_id @ 30, local_port @ 36);

/// A node's text, filled up by zeros (14.2.5.2).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct NodeDescription(pub [u8; 64]);

impl NodeDescription {
    /// The text's first 63 bytes.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut bytes = [0; 64];
        let len = text.len().min(63);
        bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
        Self(bytes)
    }
}

/// The GUIDs of one block of eight; entry 0 of block 0 is the port's own (14.2.5.5).
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
pub struct GuidInfo(pub [U64; 8]);

/// One block of 32 partition keys (14.2.5.7).
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
pub struct PKeyTable(pub [U16; 32]);

/// Sixteen virtual lanes by service level, four bits each (14.2.5.8).
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
pub struct SlToVl(pub [u8; 8]);

/// Link widths, one bit each.
pub struct LinkWidth;
impl LinkWidth {
    /// One lane.
    pub const X1: u8 = 1;
    /// Four lanes.
    pub const X4: u8 = 2;
}

/// Speeds supported, and the port's state.
#[bitfield(u8, order = Msb)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct SpeedState {
    /// Link speeds supported, one bit each: 2.5, 5, 10 Gb/s.
    #[bits(4)]
    pub speed_supported: u8,
    /// A [`PortStateBits`] value.
    #[bits(4)]
    pub state: u8,
}

/// The values of the port state field.
pub struct PortStateBits;
impl PortStateBits {
    /// In a Set: leave it.
    pub const NO_CHANGE: u8 = 0;
    /// No link.
    pub const DOWN: u8 = 1;
    /// Link, waiting for the subnet manager.
    pub const INIT: u8 = 2;
    /// Configured.
    pub const ARMED: u8 = 3;
    /// In use.
    pub const ACTIVE: u8 = 4;
}

/// The physical state, and the one to fall back to.
#[bitfield(u8, order = Msb)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct PortPhys {
    /// 1 sleep, 2 polling, 3 disabled, 4 training, 5 link up, 6 recovery.
    #[bits(4)]
    pub state: u8,
    /// 1 sleep, 2 polling.
    #[bits(4)]
    pub down_default: u8,
}

/// The neighbour's MTU code (1 = 256 to 5 = 4096), and the subnet manager's service level.
#[bitfield(u8, order = Msb)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct MtuAndSl {
    /// MTU code.
    #[bits(4)]
    pub mtu: u8,
    /// Service level.
    #[bits(4)]
    pub sl: u8,
}

/// Two numbers of four bits in a byte.
#[bitfield(u8, order = Msb)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct Nibbles {
    /// The upper one.
    #[bits(4)]
    pub high: u8,
    /// The lower one.
    #[bits(4)]
    pub low: u8,
}

/// The flag of a subnet manager that wants clients to register again, and the subnet timeout.
#[bitfield(u8, order = Msb)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct SubnetTimeout {
    /// Clients must register again.
    pub client_reregister: bool,
    #[bits(2)]
    __: u8,
    /// 4.096 µs × 2^n.
    #[bits(5)]
    pub timeout: u8,
}

/// Bits of the port's capability mask (Linux `ib_mad.h`, `IB_PORT_*`).
pub struct PortCapabilities;
impl PortCapabilities {
    /// A subnet manager runs behind the port.
    pub const SM: u32 = 1 << 1;
    /// Traps are sent.
    pub const TRAP: u32 = 1 << 3;
    /// Automatic path migration.
    pub const AUTO_MIGRATION: u32 = 1 << 5;
    /// SL to VL mapping.
    pub const SL_MAP: u32 = 1 << 6;
    /// A system image GUID.
    pub const SYSTEM_GUID: u32 = 1 << 11;
    /// Speeds beyond QDR.
    pub const EXTENDED_SPEEDS: u32 = 1 << 14;
    /// A communication manager.
    pub const CM: u32 = 1 << 16;
    /// Reports link quality.
    pub const CLIENT_REREGISTER: u32 = 1 << 25;
}

/// A port's parameters (14.2.5.6; offsets also in Linux `ib_smi.h`, `struct ib_port_info`).
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
pub struct PortInfo {
    /// The management key.
    pub m_key: U64,
    /// The subnet prefix of the port's GIDs.
    pub gid_prefix: U64,
    /// The port's LID.
    pub lid: U16,
    /// The master subnet manager's LID.
    pub sm_lid: U16,
    /// [`PortCapabilities`].
    pub capabilities: U32,
    /// Diagnostic code.
    pub diag_code: U16,
    /// Lease of the management key, in seconds.
    pub m_key_lease: U16,
    /// The port that was asked.
    pub local_port: u8,
    /// Widths that may be used: [`LinkWidth`].
    pub width_enabled: u8,
    /// Widths there are.
    pub width_supported: u8,
    /// The width in use.
    pub width_active: u8,
    /// Speeds and state.
    pub speed_state: SpeedState,
    /// Physical state.
    pub phys: PortPhys,
    /// Protection of the management key (two bits) and LMC (three).
    pub mkey_lmc: u8,
    /// Speed in use (upper) and speeds that may be used (lower).
    pub speed_active: Nibbles,
    /// The MTU to use, the subnet manager's service level.
    pub mtu_sm_sl: MtuAndSl,
    /// Virtual lanes there are (upper; 4 = eight), and init type.
    pub vl_cap: Nibbles,
    /// Limit of high priority.
    pub vl_high_limit: u8,
    /// Entries of the high-priority arbitration table.
    pub vl_arb_high_cap: u8,
    /// Entries of the low-priority arbitration table.
    pub vl_arb_low_cap: u8,
    /// Init type reply (upper) and largest MTU (lower).
    pub mtu_cap: Nibbles,
    /// Stall count and head-of-queue life.
    pub vl_stall: u8,
    /// Virtual lanes in use (upper; 4 = eight), and partition enforcement.
    pub operational_vls: Nibbles,
    /// M_Key violations.
    pub m_key_violations: U16,
    /// P_Key violations.
    pub p_key_violations: U16,
    /// Q_Key violations.
    pub q_key_violations: U16,
    /// GUIDs that the port can have.
    pub guid_cap: u8,
    /// Register again, and the subnet's timeout.
    pub subnet_timeout: SubnetTimeout,
    /// Response time: 4.096 µs × 2^n.
    pub response_time: u8,
    /// Error thresholds.
    pub error_thresholds: u8,
    /// Credit hint.
    pub max_credit_hint: U16,
    /// Link latency.
    pub link_latency: U32,
    /// Second set of abilities.
    pub capabilities2: U16,
    /// Speeds beyond QDR: in use (upper), there are (lower).
    pub ext_speed: Nibbles,
    /// Speeds beyond QDR that may be used.
    pub ext_speed_enabled: u8,
}
layout!(PortInfo: 64, gid_prefix @ 8, lid @ 16, sm_lid @ 18, capabilities @ 20, local_port @ 28, speed_state @ 32, phys @ 33,
    mtu_sm_sl @ 36, vl_cap @ 37, mtu_cap @ 41, operational_vls @ 43, m_key_violations @ 44, guid_cap @ 50,
    subnet_timeout @ 51, response_time @ 52, ext_speed @ 62);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_info_bytes_are_those_of_the_standard() {
        // Offsets as Linux's struct ib_port_info and mlx4_ib's ib_link_query_port read them.
        let mut info = PortInfo {
            lid: U16::new(0x1234),
            sm_lid: U16::new(0x0001),
            ..PortInfo::default()
        };
        info.speed_state = SpeedState::new()
            .with_speed_supported(7)
            .with_state(PortStateBits::ACTIVE);
        info.phys = PortPhys::new().with_state(5).with_down_default(2);
        info.mtu_sm_sl = MtuAndSl::new().with_mtu(5);
        info.subnet_timeout = SubnetTimeout::new()
            .with_client_reregister(true)
            .with_timeout(18);
        let bytes = info.as_bytes();
        assert_eq!(bytes[16..20], [0x12, 0x34, 0, 1]);
        assert_eq!(bytes[32..34], [0x74, 0x52]);
        assert_eq!(bytes[36], 0x50);
        assert_eq!(bytes[51], 0x92);
    }

    #[test]
    fn a_long_node_description_is_cut() {
        let text = "x".repeat(100);
        assert_eq!(NodeDescription::new(&text).0[62..], [b'x', 0]);
    }
}
