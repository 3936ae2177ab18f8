//! Ways to a peer: the address path in a QP's context and the address vector in a datagram's WQE.
//!
//! Source: Linux `include/linux/mlx4/qp.h` (`struct mlx4_qp_path`), `include/linux/mlx4/device.h`
//! (`struct mlx4_av`).

use bitfield_struct::bitfield;
use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::layout;

/// The way to the peer in a QP's context.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Path {
    /// Forced loopback and VLAN handling.
    pub flags: u8,
    /// VLAN control.
    pub vlan_control: u8,
    /// Bit 6: do not check the P_Key.
    pub disable_pkey_check: u8,
    /// Index of the partition key.
    pub pkey_index: u8,
    /// Index of the counter set.
    pub counter_index: u8,
    /// GRH and source LID bits.
    pub grh: GrhPathBits,
    /// The peer's LID.
    pub remote_lid: U16,
    /// ACK timeout and link type.
    pub ack_timeout: AckTimeout,
    /// Index of the source GID.
    pub gid_index: u8,
    /// Static rate.
    pub static_rate: u8,
    /// GRH's hop limit.
    pub hop_limit: u8,
    /// GRH's traffic class and flow label.
    pub traffic: TrafficClass,
    /// The peer's GID.
    pub remote_gid: [u8; 16],
    /// Port and service level.
    pub schedule: ScheduleQueue,
    /// Index of the VLAN.
    pub vlan_index: u8,
    /// Ethernet overrides.
    pub ethernet: u8,
    /// VLAN overrides on receive.
    pub receive_vlan: u8,
    _reserved_24: [u8; 2],
    /// The peer's MAC address.
    pub mac: [u8; 6],
}

layout!(Path: 44, pkey_index @ 3, grh @ 5, remote_lid @ 6, ack_timeout @ 8, gid_index @ 9, hop_limit @ 0x0b,
    traffic @ 0x0c, remote_gid @ 0x10, schedule @ 0x20, mac @ 0x26);

/// GRH flag and path bits.
#[bitfield(u8, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct GrhPathBits {
    /// Packets have a GRH.
    pub grh: bool,
    /// Low bits of the source LID (Ethernet: index of the source MAC address).
    #[bits(7)]
    pub path_bits: u8,
}

/// ACK timeout and link type.
#[bitfield(u8, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct AckTimeout {
    /// 4.096 µs × 2^n; 0 is for ever.
    #[bits(5)]
    pub exponent: u8,
    /// 0: InfiniBand, 1: Ethernet.
    #[bits(3)]
    pub link_type: u8,
}

/// Traffic class and flow label.
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct TrafficClass {
    /// Service level in a datagram's address vector; nothing in a path.
    #[bits(4)]
    pub sl: u8,
    /// Traffic class.
    pub class: u8,
    /// Flow label.
    #[bits(20)]
    pub flow_label: u32,
}

/// Scheduling queue: port and service level (Linux `MLX4_IB_DEFAULT_SCHED_QUEUE` 0x83,
/// `..._QP0_...` 0x3f).
#[bitfield(u8, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct ScheduleQueue {
    /// Set for all but QP0.
    pub ordinary: bool,
    /// The port, from 0.
    #[bits(1)]
    pub port_index: u8,
    /// Service level.
    #[bits(4)]
    pub sl: u8,
    /// 3.
    #[bits(2)]
    pub low: u8,
}

impl ScheduleQueue {
    /// Returns the path of an ordinary QP on `port` (from 1).
    #[must_use]
    pub fn of(port: u8, sl: u8) -> Self {
        Self::new()
            .with_ordinary(true)
            .with_port_index(port.saturating_sub(1) & 1)
            .with_sl(sl & 0xf)
            .with_low(3)
    }

    /// Returns the path of QP0 on `port` (from 1).
    #[must_use]
    pub fn of_qp0(port: u8) -> Self {
        Self::new()
            .with_port_index(port.saturating_sub(1) & 1)
            .with_sl(0xf)
            .with_low(3)
    }

    /// The port, from 1.
    #[must_use]
    pub fn port(self) -> u8 {
        self.port_index() + 1
    }
}

/// The destination of a datagram, in its WQE.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AddressVector {
    /// Port and protection domain.
    pub port_pd: PortPd,
    _reserved_04: u8,
    /// GRH and source LID bits.
    pub grh: GrhPathBits,
    /// The destination LID.
    pub dlid: U16,
    _reserved_08: u8,
    /// Index of the source GID.
    pub gid_index: u8,
    /// Static rate.
    pub static_rate: u8,
    /// GRH's hop limit.
    pub hop_limit: u8,
    /// Service level, traffic class, flow label.
    pub traffic: TrafficClass,
    /// The destination GID.
    pub dgid: [u8; 16],
}

layout!(AddressVector: 32, grh @ 5, dlid @ 6, gid_index @ 9, hop_limit @ 0x0b, traffic @ 0x0c, dgid @ 0x10);

/// First dword of an [`AddressVector`].
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct PortPd {
    /// Loops back whatever the destination.
    pub force_loopback: bool,
    #[bits(5)]
    __: u8,
    /// The port, from 1.
    #[bits(2)]
    pub port: u8,
    /// The protection domain.
    #[bits(24)]
    pub pd: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn golden_path() {
        // Linux mlx4 ib qp.c: sched_queue = 0x83 | (port - 1) << 6 | sl << 2; ackto = timeout << 3;
        // grh_mylmc bit 7.
        let mut path = Path::new_zeroed();
        path.schedule = ScheduleQueue::of(2, 5);
        path.ack_timeout = AckTimeout::new().with_exponent(14);
        path.remote_lid = 0x1234.into();
        path.grh = GrhPathBits::new().with_grh(true).with_path_bits(1);
        path.traffic = TrafficClass::new()
            .with_class(0xab)
            .with_flow_label(0xc_def0);
        let bytes = path.as_bytes();
        assert_eq!(bytes[5..9], [0x81, 0x12, 0x34, 14 << 3]);
        assert_eq!(bytes[0x0c..0x10], [0x0a, 0xbc, 0xde, 0xf0]);
        assert_eq!(bytes[0x20], 0x83 | 1 << 6 | 5 << 2);
        // MLX4_IB_DEFAULT_QP0_SCHED_QUEUE 0x3f | (port - 1) << 6.
        assert_eq!(ScheduleQueue::of_qp0(1).into_bits(), 0x3f);
        assert_eq!(ScheduleQueue::of_qp0(2).into_bits(), 0x7f);
    }

    #[test]
    fn golden_address_vector() {
        // Linux mlx4 ib ah.c: port_pd = pd | port << 24; sl_tclass_flowlabel = sl << 28 | ...;
        // g_slid bit 7.
        let mut av = AddressVector::new_zeroed();
        av.port_pd = PortPd::new().with_port(1).with_pd(5);
        av.dlid = 7.into();
        av.traffic = TrafficClass::new().with_sl(3);
        let bytes = av.as_bytes();
        assert_eq!(bytes[..8], [1, 0, 0, 5, 0, 0, 0, 7]);
        assert_eq!(bytes[0x0c], 0x30);
    }
}
