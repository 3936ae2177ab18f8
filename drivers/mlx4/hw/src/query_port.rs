//! QUERY_PORT: a port's kind, link and table sizes.
//!
//! Source: Linux `fw.c`, `mlx4_QUERY_PORT` (`QUERY_PORT_*_OFFSET`), `port.c`.

use bitfield_struct::bitfield;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::{Low, layout};

/// QUERY_PORT's output mailbox.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct QueryPort {
    /// Kind and link.
    pub link: PortLink,
    /// Autonegotiation and the largest InfiniBand MTU.
    pub mtu: PortMtu,
    /// Largest Ethernet frame.
    pub ethernet_mtu: U16,
    /// InfiniBand link speeds.
    pub ib_speeds: Low<4>,
    /// Ethernet link speed.
    pub ethernet_speed: u8,
    /// Widths: bit 0 is 1x, bit 1 is 4x.
    pub widths: Low<4>,
    /// log2 of the GIDs and of the partition keys.
    pub log_gids_pkeys: Nibbles,
    _reserved_08: [u8; 2],
    /// log2 of the VLANs and of the MAC addresses.
    pub log_vlans_macs: Nibbles,
    /// Traffic classes and virtual lanes.
    pub max_tc_vl: Nibbles,
    _reserved_0c: [u8; 4],
    /// The port's MAC address in the low 48 bits.
    pub mac: U64,
    /// Transceiver's type and vendor.
    pub transceiver: U32,
    /// Transceiver's wavelength.
    pub wavelength: U16,
    _reserved_1e: [u8; 2],
    /// Transceiver's code.
    pub transceiver_code: U64,
}

layout!(QueryPort: 0x28, mtu @ 1, ethernet_mtu @ 2, ethernet_speed @ 5, widths @ 6, log_gids_pkeys @ 7,
    log_vlans_macs @ 0x0a, max_tc_vl @ 0x0b, mac @ 0x10, transceiver @ 0x18, transceiver_code @ 0x20);

/// First byte of a [`QueryPort`].
#[bitfield(u8, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct PortLink {
    /// The link is up.
    pub up: bool,
    #[bits(2)]
    __: u8,
    /// Senses its kind by itself.
    pub default_sense: bool,
    /// Of both kinds, Ethernet is suggested.
    pub suggest_ethernet: bool,
    #[bits(1)]
    __: u8,
    /// Can be Ethernet.
    pub ethernet: bool,
    /// Can be InfiniBand.
    pub infiniband: bool,
}

/// Second byte of a [`QueryPort`].
#[bitfield(u8, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct PortMtu {
    /// Autonegotiation is done.
    pub negotiated: bool,
    #[bits(3)]
    __: u8,
    /// Largest InfiniBand MTU: 1 to 5 for 256 to 4096 bytes.
    #[bits(4)]
    pub max_ib_mtu_code: u8,
}

/// Two numbers in a byte.
#[bitfield(u8, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct Nibbles {
    /// Bits 7 to 4.
    #[bits(4)]
    pub high: u8,
    /// Bits 3 to 0.
    #[bits(4)]
    pub low: u8,
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn golden() {
        // Linux fw.c: link_state = (field & 0x80) >> 7; supported_port_types = field & 3; max_mtu =
        // field & 0xf at 1; max_port_width = field & 0xf at 6; log_max_gids = field >> 4 at 7;
        // max_vl = field & 0xf at 0x0b.
        let mut port = QueryPort::new_zeroed();
        port.link = PortLink::new().with_up(true).with_infiniband(true);
        port.mtu = PortMtu::new().with_max_ib_mtu_code(5);
        port.widths = Low::new(3);
        port.log_gids_pkeys = Nibbles::new().with_high(7).with_low(6);
        port.max_tc_vl = Nibbles::new().with_low(8);
        port.mac = 0x0002_c901_0203.into();
        let bytes = port.as_bytes();
        assert_eq!(bytes[..8], [0x81, 5, 0, 0, 0, 0, 3, 0x76]);
        assert_eq!(bytes[0x0b], 8);
        assert_eq!(bytes[0x10..0x18], [0, 0, 0, 2, 0xc9, 1, 2, 3]);
    }
}
