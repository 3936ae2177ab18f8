//! Multicast group entries (READ_MCG, WRITE_MCG).
//!
//! Source: Linux `mlx4.h` (`struct mlx4_mgm`), `mcg.c`.

use bitfield_struct::bitfield;
use zerocopy::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::layout;

/// QPs that an entry of [`ENTRY_LEN`] bytes holds.
pub const QPS_PER_ENTRY: usize = (ENTRY_LEN - 0x20) / 4;
/// Bytes of an entry (Linux `MLX4_DEFAULT_MGM_LOG_ENTRY_SIZE` 10).
pub const ENTRY_LEN: usize = 1 << 10;

/// A multicast group: its GID and its member queue pairs.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct GroupEntry {
    /// The next entry with this hash.
    pub next: GroupNext,
    /// Number of member QPs, and their protocol.
    pub members: GroupMembers,
    _reserved_08: [u8; 8],
    /// The group's GID.
    pub gid: [u8; 16],
    /// The QPs.
    pub qps: [GroupQp; QPS_PER_ENTRY],
}

layout!(GroupEntry: 1024, members @ 4, gid @ 0x10, qps @ 0x20);

/// Index of the next entry; 0 ends the chain.
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct GroupNext {
    /// The index.
    #[bits(26)]
    pub index: u32,
    #[bits(6)]
    __: u8,
}

/// Members of a [`GroupEntry`].
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct GroupMembers {
    /// 0: InfiniBand, 1: Ethernet.
    #[bits(2)]
    pub protocol: u8,
    #[bits(6)]
    __: u8,
    /// Number of members.
    #[bits(24)]
    pub count: u32,
}

/// A member of a [`GroupEntry`].
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct GroupQp {
    #[bits(1)]
    __: u8,
    /// Does not get what it sent itself.
    pub block_loopback: bool,
    #[bits(6)]
    __: u8,
    /// The QP.
    #[bits(24)]
    pub qpn: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn golden() {
        // Linux mcg.c: next_gid_index = index << 6; members_count = count | prot << 30;
        // MGM_BLCK_LB_BIT 30.
        let mut entry = GroupEntry::new_zeroed();
        entry.next = GroupNext::new().with_index(5);
        entry.members = GroupMembers::new().with_protocol(1).with_count(2);
        entry.qps[0] = GroupQp::new().with_block_loopback(true).with_qpn(0x208);
        let bytes = entry.as_bytes();
        assert_eq!(bytes[..8], [0, 0, 1, 0x40, 0x40, 0, 0, 2]);
        assert_eq!(bytes[0x20..0x24], [0x40, 0, 2, 8]);
        assert_eq!(QPS_PER_ENTRY, 248);
    }
}
