//! QUERY_FW: the firmware's version, what it needs and where its registers are.
//!
//! Source: Linux `fw.c`, `mlx4_QUERY_FW` (`QUERY_FW_*_OFFSET`).

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::{High, layout};

/// QUERY_FW's output mailbox.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct QueryFw {
    /// The firmware area's size in 4 KB pages.
    pub pages: U16,
    /// Version: major.
    pub major: U16,
    /// Version: subminor.
    pub subminor: U16,
    /// Version: minor.
    pub minor: U16,
    _reserved_08: [u8; 2],
    /// Command interface revision; 3 has the port commands of ConnectX-3.
    pub command_revision: U16,
    _reserved_0c: [u8; 3],
    /// log2 of the commands that may be outstanding.
    pub log_max_commands: u8,
    _build_time: [u8; 8],
    _reserved_18: [u8; 8],
    /// The clear-interrupt register's offset (INTx only).
    pub clear_interrupt: RegisterPlace,
    _reserved_2c: [u8; 4],
    /// The catastrophic error buffer's offset.
    pub catastrophic_offset: U64,
    /// Its size in dwords.
    pub catastrophic_len: U32,
    /// Its BAR, as half the BAR's index.
    pub catastrophic_bar: High<2>,
    _reserved_3d: [u8; 3],
    /// The communication channel of virtual functions.
    pub comm_channel: RegisterPlace,
    _reserved_4c: [u8; 4],
    /// The free-running clock.
    pub clock: RegisterPlace,
    _reserved_5c: [u8; 4],
}

layout!(QueryFw: 0x60, command_revision @ 0x0a, log_max_commands @ 0x0f, clear_interrupt @ 0x20,
    catastrophic_offset @ 0x30, catastrophic_len @ 0x38, catastrophic_bar @ 0x3c, comm_channel @ 0x40, clock @ 0x50);

/// Place of a register: an offset and the BAR it counts in.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RegisterPlace {
    /// Offset in the BAR.
    pub offset: U64,
    /// The BAR, as half its index (0, 1 and 2 for BAR0, BAR2 and BAR4).
    pub bar: High<2>,
    _reserved: [u8; 3],
}

layout!(RegisterPlace: 12, bar @ 8);

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn golden() {
        // Offsets of Linux fw.c; version order major, subminor, minor.
        let mut fw = QueryFw::new_zeroed();
        fw.pages = 0x200.into();
        fw.major = 2.into();
        fw.minor = 42.into();
        fw.subminor = 5000.into();
        fw.command_revision = 3.into();
        fw.log_max_commands = 4;
        fw.clear_interrupt.offset = 0x3_e000.into();
        fw.clear_interrupt.bar = High::new(1);
        fw.catastrophic_len = 0x10.into();
        let bytes = fw.as_bytes();
        assert_eq!(
            bytes[..16],
            [2, 0, 0, 2, 0x13, 0x88, 0, 42, 0, 0, 0, 3, 0, 0, 0, 4]
        );
        assert_eq!(
            bytes[0x20..0x2c],
            [0, 0, 0, 0, 0, 3, 0xe0, 0, 0x40, 0, 0, 0]
        );
        assert_eq!(bytes[0x38..0x3c], [0, 0, 0, 0x10]);
    }
}
