//! INIT_HCA's input mailbox and QUERY_HCA's output: where the tables are in ICM and how large.
//!
//! Source: Linux `fw.c`, `mlx4_INIT_HCA` (`INIT_HCA_*_OFFSET`).

use bitfield_struct::bitfield;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::{Low, TableBase, layout};

/// The version that a mailbox states.
pub const VERSION: u8 = 2;
/// `TableBase::log_entries` of the EQ table when EQs are numbered by QUERY_FUNC.
pub const LOG_EQS_SYSTEM: u8 = 0x1f;

/// The mailbox.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InitHca {
    /// [`VERSION`].
    pub version: u8,
    _reserved_001: [u8; 3],
    /// Capabilities of the device (QUERY_HCA only).
    pub global_capabilities: U32,
    _reserved_008: [u8; 4],
    /// The clock's frequency in MHz (QUERY_HCA only).
    pub clock_mhz: U16,
    /// The cache line's size.
    pub cache_line: CacheLine,
    _reserved_00f: u8,
    _reserved_010: [u8; 4],
    /// Features that are turned on.
    pub flags: InitFlags,
    /// Bit 31: report recoverable errors.
    pub recoverable_errors: U32,
    _reserved_01c: [u8; 0x14],
    /// QP contexts.
    pub qpc: TableBase,
    _reserved_038: [u8; 0x10],
    /// SRQ contexts.
    pub srqc: TableBase,
    /// CQ contexts.
    pub cqc: TableBase,
    /// Entries of 64 bytes.
    pub entry_len: EntryLen,
    _reserved_05c: [u8; 4],
    /// Alternate paths.
    pub altc: U64,
    _reserved_068: [u8; 8],
    /// Auxiliary contexts.
    pub auxc: U64,
    _reserved_078: [u8; 8],
    /// EQ contexts.
    pub eqc: TableBase,
    _reserved_088: [u8; 2],
    /// EQs of the system.
    pub system_eqs: U16,
    _reserved_08c: [u8; 4],
    /// Responder resources: the logarithm is of the entries a QP has.
    pub rdmarc: TableBase,
    _reserved_098: [u8; 0x28],
    /// Multicast groups.
    pub groups: U64,
    _reserved_0c8: [u8; 0x0b],
    /// log2 of a group entry's bytes.
    pub log_group_entry: Low<5>,
    _reserved_0d4: [u8; 3],
    /// log2 of the hashed entries.
    pub log_group_hash: Low<5>,
    /// Steering.
    pub steering: Steering,
    _reserved_0d9: [u8; 2],
    /// log2 of the group entries.
    pub log_groups: Low<5>,
    _reserved_0dc: [u8; 0x14],
    /// dMPT.
    pub dmpt: U64,
    /// Memory windows on.
    pub windows: crate::bits::High<1>,
    _reserved_0f9: [u8; 2],
    /// log2 of the dMPT's entries.
    pub log_mpts: Low<6>,
    _reserved_0fc: [u8; 4],
    /// MTT.
    pub mtt: U64,
    /// cMPT.
    pub cmpt: U64,
    _reserved_110: [u8; 0x1a],
    /// log2 of the UAR pages.
    pub log_uars: Low<4>,
    /// log2 of a UAR page's bytes, less 12.
    pub log_uar_page_less_12: u8,
    _reserved_12c: [u8; 0x14],
    /// The driver's name and version.
    pub driver: [u8; 64],
    _reserved_180: [u8; 0x80],
}

layout!(InitHca: 0x200, clock_mhz @ 0x0c, cache_line @ 0x0e, flags @ 0x14, qpc @ 0x30, srqc @ 0x48, cqc @ 0x50,
    entry_len @ 0x58, altc @ 0x60, auxc @ 0x70, eqc @ 0x80, system_eqs @ 0x8a, rdmarc @ 0x90, groups @ 0xc0,
    log_group_entry @ 0xd3, log_group_hash @ 0xd7, steering @ 0xd8, log_groups @ 0xdb, dmpt @ 0xf0, windows @ 0xf8,
    log_mpts @ 0xfb, mtt @ 0x100, cmpt @ 0x108, log_uars @ 0x12a, log_uar_page_less_12 @ 0x12b, driver @ 0x140);

/// Cache line of an [`InitHca`].
#[bitfield(u8, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct CacheLine {
    /// log2 of its bytes, less 4.
    #[bits(3)]
    pub log_less_4: u8,
    /// The field counts.
    pub valid: bool,
    #[bits(4)]
    __: u8,
}

/// Flags of an [`InitHca`].
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Lsb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct InitFlags {
    /// Check the port in datagrams' address vectors.
    pub ud_port_check: bool,
    /// The host is big-endian.
    pub big_endian_host: bool,
    /// Quality of service.
    pub qos: bool,
    /// IPoIB checksums.
    pub ipoib_checksum: bool,
    /// Counter sets.
    pub counters: bool,
    #[bits(1)]
    __: u8,
    /// Device-managed steering.
    pub flow_steering: bool,
    #[bits(6)]
    __: u8,
    /// RSS of IP fragments.
    pub rss_fragments: bool,
    #[bits(18)]
    __: u32,
}

/// Entry sizes of an [`InitHca`].
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct EntryLen {
    #[bits(1)]
    __: u8,
    /// CQEs of 64 bytes.
    pub cqe_64: bool,
    /// EQEs of 64 bytes.
    pub eqe_64: bool,
    #[bits(21)]
    __: u32,
    /// log2 of an EQE's stride, less 5.
    #[bits(4)]
    pub log_eqe_stride_less_5: u8,
    /// log2 of a CQE's stride, less 5.
    #[bits(4)]
    pub log_cqe_stride_less_5: u8,
}

/// Steering of an [`InitHca`].
#[bitfield(u8, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct Steering {
    #[bits(4)]
    __: u8,
    /// Unicast is steered by the group table too.
    pub unicast: bool,
    /// Hash function.
    #[bits(3)]
    pub hash: u8,
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn golden() {
        // Linux fw.c: version 2 at 0; ((ilog2(cache line) - 4) << 5) | 1 << 4 at 0x0e; flags bit 3
        // for checksums; log_num_qps at 0x37, log_num_cqs 0x57, log_num_eqs 0x87, log_rd_per_qp
        // 0x97, log_mpt_sz 0xfb, uar 0x12a.
        let mut init = InitHca::new_zeroed();
        init.version = VERSION;
        init.cache_line = CacheLine::new().with_log_less_4(2).with_valid(true);
        init.flags = InitFlags::new().with_ipoib_checksum(true);
        init.qpc = TableBase::new(0x1_0800_0000, 18);
        init.cqc = TableBase::new(0x1_1080_0000, 16);
        init.eqc = TableBase::new(0x1_1184_0000, 7);
        init.rdmarc = TableBase::new(0x1_0000_0000, 4);
        init.log_mpts = Low::new(19);
        init.log_uars = Low::new(10);
        init.steering = Steering::new().with_unicast(true);
        init.cmpt = 0x0102_0304_0506_0700.into();
        let bytes = init.as_bytes();
        assert_eq!((bytes[0], bytes[0x0e], bytes[0x17]), (2, 0x50, 8));
        assert_eq!(bytes[0x30..0x38], [0, 0, 0, 1, 8, 0, 0, 18]);
        assert_eq!((bytes[0x57], bytes[0x87], bytes[0x97]), (16, 7, 4));
        assert_eq!((bytes[0xfb], bytes[0x12a], bytes[0xd8]), (19, 10, 8));
        assert_eq!(bytes[0x108..0x110], [1, 2, 3, 4, 5, 6, 7, 0]);
        // INIT_HCA_EQE_CQE_OFFSETS 0x58: 1 << 29 for EQEs, 1 << 30 for CQEs.
        assert_eq!(
            EntryLen::new().with_cqe_64(true).as_bytes(),
            [0x40, 0, 0, 0]
        );
    }
}
