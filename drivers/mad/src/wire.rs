//! The packet headers that a datagram's sender builds itself on QP0 and QP1 (IBA 1.3, 7.7, 8.3, 9.2, 9.3.2).

use bitfield_struct::bitfield;
use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::number::layout;

/// Opcode of a datagram that is one packet (Linux `IB_OPCODE_UD_SEND_ONLY`).
pub const UD_SEND_ONLY: u8 = 0x64;
/// The same with immediate data.
pub const UD_SEND_ONLY_WITH_IMMEDIATE: u8 = 0x65;
/// Next header is the base transport header.
pub const NEXT_BTH: u8 = 2;
/// Next header is the global route header.
pub const NEXT_GRH: u8 = 3;

/// The local route header.
#[derive(Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LocalRoute {
    /// Lane, service level, next header.
    pub first: LocalRouteFirst,
    /// The destination.
    pub dlid: U16,
    /// Length in dwords, 11 bits.
    pub len: U16,
    /// The source.
    pub slid: U16,
}
layout!(LocalRoute: 8, dlid @ 2, slid @ 6);

/// First two bytes of a [`LocalRoute`].
#[bitfield(u16, repr = U16, from = U16::new, into = U16::get, order = Msb)]
#[derive(PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct LocalRouteFirst {
    /// Virtual lane.
    #[bits(4)]
    pub lane: u8,
    /// 0.
    #[bits(4)]
    pub version: u8,
    /// Service level.
    #[bits(4)]
    pub sl: u8,
    #[bits(2)]
    __: u8,
    /// [`NEXT_BTH`] or [`NEXT_GRH`].
    #[bits(2)]
    pub next: u8,
}

/// The global route header: IPv6's.
#[derive(Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct GlobalRoute {
    /// Version, class and flow.
    pub first: GlobalRouteFirst,
    /// Bytes that follow this header, without the last CRC.
    pub len: U16,
    /// 0x1b: a transport header follows.
    pub next: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// The source.
    pub sgid: [u8; 16],
    /// The destination.
    pub dgid: [u8; 16],
}
layout!(GlobalRoute: 40, len @ 4, sgid @ 8, dgid @ 24);

/// First dword of a [`GlobalRoute`].
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct GlobalRouteFirst {
    /// 6.
    #[bits(4)]
    pub version: u8,
    /// Traffic class.
    pub class: u8,
    /// Flow label.
    #[bits(20)]
    pub flow_label: u32,
}

/// The base transport header.
#[derive(Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BaseTransport {
    /// [`UD_SEND_ONLY`] and so on.
    pub opcode: u8,
    /// Solicited, padding, version.
    pub flags: BaseTransportFlags,
    /// Partition key.
    pub pkey: U16,
    /// Destination QP.
    pub destination: Number,
    /// Ack request and sequence number.
    pub psn: Number,
}
layout!(BaseTransport: 12, pkey @ 2, destination @ 4, psn @ 8);

/// Second byte of a [`BaseTransport`].
#[bitfield(u8, order = Msb)]
#[derive(PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct BaseTransportFlags {
    /// The receiver's completion is solicited.
    pub solicited: bool,
    /// Path is migrated.
    pub migrated: bool,
    /// Bytes of padding.
    #[bits(2)]
    pub pad: u8,
    /// 0.
    #[bits(4)]
    pub version: u8,
}

/// A number of 24 bits, with a flag above.
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct Number {
    /// The flag (an acknowledgement is wanted).
    pub flag: bool,
    #[bits(7)]
    __: u8,
    /// The number.
    #[bits(24)]
    pub number: u32,
}

/// The datagram extension.
#[derive(Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DatagramTransport {
    /// Q_Key.
    pub qkey: U32,
    /// Source QP.
    pub source: Number,
}
layout!(DatagramTransport: 8, source @ 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_as_linux_packs_them() {
        // Linux ud_header.c: lrh_table, bth_table, deth_table.
        let route = LocalRoute {
            first: LocalRouteFirst::new()
                .with_lane(15)
                .with_sl(3)
                .with_next(NEXT_BTH),
            dlid: U16::new(0xffff),
            len: U16::new(72),
            slid: U16::new(0x0102),
        };
        assert_eq!(route.as_bytes(), [0xf0, 0x32, 0xff, 0xff, 0, 72, 1, 2]);
        let transport = BaseTransport {
            opcode: UD_SEND_ONLY,
            flags: BaseTransportFlags::new().with_solicited(true),
            pkey: U16::new(0xffff),
            destination: Number::new().with_number(1),
            psn: Number::new().with_number(0x01_0203),
        };
        assert_eq!(
            transport.as_bytes(),
            [0x64, 0x80, 0xff, 0xff, 0, 0, 0, 1, 0, 1, 2, 3]
        );
        let datagram = DatagramTransport {
            qkey: U32::new(0x8001_0000),
            source: Number::new().with_number(1),
        };
        assert_eq!(datagram.as_bytes(), [0x80, 1, 0, 0, 0, 0, 0, 1]);
    }
}
