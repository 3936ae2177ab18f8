//! Performance counters (IBA 1.3, 16.1; Linux `ib_pma.h`). Attribute data begin at byte 64 of the
//! datagram.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::number::layout;

/// Offset of the attribute in the datagram.
pub const DATA: usize = 64;

/// The classic counters, which stick at their largest value (16.1.3.5).
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
pub struct PortCounters {
    /// Reserved.
    pub reserved: u8,
    /// The port.
    pub port: u8,
    /// Counters that a Set clears.
    pub select: U16,
    /// Symbol errors.
    pub symbol_errors: U16,
    /// Recoveries from link errors.
    pub link_recoveries: u8,
    /// Times that the link went down.
    pub link_downed: u8,
    /// Packets received with errors.
    pub rcv_errors: U16,
    /// Packets received with the mark of a bad packet.
    pub rcv_remote_physical_errors: U16,
    /// Packets received that a switch could not forward.
    pub rcv_relay_errors: U16,
    /// Packets not sent because the port is down or congested.
    pub xmit_discards: U16,
    /// Packets not sent because of their partition or version.
    pub xmit_constraint_errors: u8,
    /// Packets received and dropped because of their partition or version.
    pub rcv_constraint_errors: u8,
    /// Further counters that a Set clears: bit 0 is [`xmit_wait`](Self::xmit_wait).
    pub select2: u8,
    /// Local link integrity errors, excessive buffer overruns: four bits each.
    pub integrity_overruns: u8,
    /// Reserved.
    pub reserved2: U16,
    /// Management packets dropped for want of a buffer.
    pub vl15_dropped: U16,
    /// Data sent, in units of 4 bytes.
    pub xmit_data: U32,
    /// Data received, in units of 4 bytes.
    pub rcv_data: U32,
    /// Packets sent.
    pub xmit_packets: U32,
    /// Packets received.
    pub rcv_packets: U32,
    /// Ticks that packets waited.
    pub xmit_wait: U32,
}
layout!(PortCounters: 44, select @ 2, link_downed @ 7, xmit_discards @ 14, vl15_dropped @ 22, xmit_data @ 24, rcv_packets @ 36);

/// The 64-bit counters (16.1.4.11).
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
pub struct PortCountersExt {
    /// Reserved.
    pub reserved: u8,
    /// The port.
    pub port: u8,
    /// Counters that a Set clears.
    pub select: U16,
    /// Reserved.
    pub reserved2: U32,
    /// Data sent, in units of 4 bytes.
    pub xmit_data: U64,
    /// Data received, in units of 4 bytes.
    pub rcv_data: U64,
    /// Packets sent.
    pub xmit_packets: U64,
    /// Packets received.
    pub rcv_packets: U64,
    /// Unicast sent and received, multicast sent and received.
    pub by_kind: [U64; 4],
}
layout!(PortCountersExt: 72, xmit_data @ 8, rcv_packets @ 32, by_kind @ 40);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_as_linux_lays_them_out() {
        // Linux ib_pma.h, struct ib_pma_portcounters: link_downed_counter at 7, port_xmit_discards
        // at 14, port_xmit_data at 24, port_rcv_packets at 36.
        let counters = PortCounters {
            port: 2,
            link_downed: 3,
            xmit_discards: U16::new(0x0506),
            xmit_data: U32::new(0x0102_0304),
            ..PortCounters::default()
        };
        assert_eq!(counters.as_bytes()[..2], [0, 2]);
        assert_eq!(counters.as_bytes()[7..16], [3, 0, 0, 0, 0, 0, 0, 5, 6]);
        assert_eq!(counters.as_bytes()[24..28], [1, 2, 3, 4]);
    }
}
