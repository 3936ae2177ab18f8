//! The packet headers that a datagram's sender builds itself on QP0 and QP1.
//!
//! Source: InfiniBand Architecture 1.3, volume 1, sections 7.7, 8.3, 9.2 and 9.8.3; Linux
//! `core/ud_header.c` (`lrh_table`, `grh_table`, `bth_table`, `deth_table`).

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

/// Bytes of the invariant checksum behind the payload.
pub const ICRC_LEN: usize = 4;

/// Local route, transport and datagram headers, as they follow one another without a global route.
#[derive(
    Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct UdHeaders {
    /// Local route header: the packet's destination.
    pub route: LocalRoute,
    /// To which queue pair.
    pub transport: BaseTransport,
    /// From which.
    pub datagram: DatagramTransport,
}
layout!(UdHeaders: 28, transport @ 8, datagram @ 20);

/// The local route header.
#[derive(
    Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LocalRoute {
    /// Lane, service level, next header.
    pub first: LocalRouteFirst,
    /// The destination.
    pub dlid: U16,
    /// Length in dwords, from here to the invariant checksum's end, 11 bits.
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
#[derive(
    Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
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
#[derive(
    Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
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
#[derive(
    Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
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
        // Linux ud_header.c: lrh_table (lane 4 bits, version 4, service level 4, reserved 2, next
        // 2, dlid, reserved 5, length 11, slid), bth_table (opcode, solicited, migrated, pad 2,
        // version 4, pkey, destination 24, ack, psn 24), deth_table (qkey, source 24).
        let headers = UdHeaders {
            route: LocalRoute {
                first: LocalRouteFirst::new()
                    .with_lane(15)
                    .with_sl(3)
                    .with_next(NEXT_BTH),
                dlid: U16::new(0xffff),
                len: U16::new(72),
                slid: U16::new(0x0102),
            },
            transport: BaseTransport {
                opcode: UD_SEND_ONLY,
                flags: BaseTransportFlags::new().with_solicited(true).with_pad(1),
                pkey: U16::new(0xfffe),
                destination: Number::new().with_number(1),
                psn: Number::new().with_flag(true).with_number(0x01_0203),
            },
            datagram: DatagramTransport {
                qkey: U32::new(0x8001_0000),
                source: Number::new().with_number(2),
            },
        };
        assert_eq!(
            headers.as_bytes(),
            [
                0xf0, 0x32, 0xff, 0xff, 0, 72, 1, 2, 0x64, 0x90, 0xff, 0xfe, 0, 0, 0, 1, 0x80, 1,
                2, 3, 0x80, 1, 0, 0, 0, 0, 0, 2
            ]
        );
    }

    #[test]
    fn global_route_is_as_linux_packs_it() {
        // Linux ud_header.c: grh_table (version 4 bits, class 8, flow label 20, length, next, hop
        // limit, GIDs).
        let route = GlobalRoute {
            first: GlobalRouteFirst::new()
                .with_version(6)
                .with_class(0x12)
                .with_flow_label(0x3_4567),
            len: U16::new(0x0120),
            next: 0x1b,
            hop_limit: 64,
            sgid: [0xaa; 16],
            dgid: [0xbb; 16],
        };
        let mut bytes = [0; 40];
        bytes[..8].copy_from_slice(&[0x61, 0x23, 0x45, 0x67, 1, 0x20, 0x1b, 64]);
        bytes[8..24].fill(0xaa);
        bytes[24..].fill(0xbb);
        assert_eq!(route.as_bytes(), bytes);
    }
}
