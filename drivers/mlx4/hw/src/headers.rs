//! Packet headers that software builds itself: those of QP0's and QP1's sends.
//!
//! Source: InfiniBand Architecture 1.3, volume 1, sections 7.7, 9.2 and 9.8.3; Linux `core/ud_header.c` (`lrh_table`,
//! `bth_table`, `deth_table`).

use bitfield_struct::bitfield;
use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::{Low24, layout};

/// Local route, transport and datagram headers, as they follow one another without a GRH.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct UdHeaders {
    /// Virtual lane, service level, what follows.
    pub route: RouteFlags,
    /// Destination LID.
    pub dlid: U16,
    /// Packet length in dwords, from here to the invariant checksum's end (11 bits).
    pub len_dwords: U16,
    /// Source LID.
    pub slid: U16,
    /// Opcode and so on.
    pub transport: TransportFlags,
    /// Destination QP.
    pub dest_qpn: Low24,
    /// PSN.
    pub psn: Low24,
    /// Q_Key.
    pub qkey: U32,
    /// Source QP.
    pub source_qpn: Low24,
}

layout!(UdHeaders: 28, dlid @ 2, len_dwords @ 4, slid @ 6, transport @ 8, dest_qpn @ 12, psn @ 16, qkey @ 20,
    source_qpn @ 24);

/// First half of the local route header.
#[bitfield(u16, repr = U16, from = U16::new, into = U16::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct RouteFlags {
    /// Virtual lane.
    #[bits(4)]
    pub vl: u8,
    /// Link version: 0.
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

/// The transport header follows.
pub const NEXT_BTH: u8 = 2;
/// A global route header follows.
pub const NEXT_GRH: u8 = 3;
/// Opcode of a datagram that is one packet.
pub const OPCODE_UD_SEND_ONLY: u8 = 0x64;
/// Opcode of a datagram with immediate data.
pub const OPCODE_UD_SEND_ONLY_IMM: u8 = 0x65;
/// Bytes of the invariant checksum.
pub const ICRC_LEN: usize = 4;

/// First dword of the transport header.
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct TransportFlags {
    /// Opcode.
    pub opcode: u8,
    /// The completion is solicited.
    pub solicited: bool,
    /// Migrated.
    pub migrated: bool,
    /// Bytes of padding.
    #[bits(2)]
    pub pad: u8,
    /// Version: 0.
    #[bits(4)]
    pub version: u8,
    /// Partition key.
    pub pkey: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn golden() {
        // Linux ud_header.c: LRH vl 4 bits, lver, sl, reserved 2, lnh 2, dlid, reserved 5, length 11, slid;
        // BTH opcode, se, m, pad, tver, pkey, f/b, dest qpn 24, ack, psn; DETH qkey, source qpn.
        let mut headers = UdHeaders::new_zeroed();
        headers.route = RouteFlags::new().with_vl(15).with_next(NEXT_BTH);
        headers.dlid = 0xffff.into();
        headers.len_dwords = 72.into();
        headers.slid = 5.into();
        headers.transport = TransportFlags::new()
            .with_opcode(OPCODE_UD_SEND_ONLY)
            .with_solicited(true)
            .with_pkey(0xffff);
        headers.dest_qpn = Low24::new(1);
        headers.psn = Low24::new(9);
        headers.qkey = 0x8001_0000.into();
        headers.source_qpn = Low24::new(1);
        assert_eq!(
            headers.as_bytes(),
            [
                0xf0, 0x02, 0xff, 0xff, 0, 72, 0, 5, 0x64, 0x80, 0xff, 0xff, 0, 0, 0, 1, 0, 0, 0, 9, 0x80, 1,
                0, 0, 0, 0, 0, 1
            ]
        );
    }
}
