//! Memory protection table entries and the arithmetic of keys.
//!
//! Source: Linux `include/linux/mlx4/device.h` (`struct mlx4_mpt_entry`), `mr.c`
//! (`hw_index_to_key`, `MLX4_MPT_FLAG_*`, `MLX4_MPT_PD_FLAG_*`).
//!
//! # Shape
//!
//! ```text
//!  00 status, rights │ 04 QPN │ 08 key, rotated │ 0c flags, protection domain
//!  10 first address           │ 18 length
//!  20 lkey │ 24 windows │ 28 flags │ 2c byte offset of the first MTT entry (64 bits, unaligned)
//!  34 MTT entries │ 38 log2 of the page │ 3c first byte's offset
//!
//!  key       31 ─────────── entry's number ─────────── 8 │ 7 ── tag ── 0     what users pass
//!  HwKey     31 ── tag ── 24 │ 23 ───────── entry's number ───────── 0       what stands here
//! ```
//!
//! The card finds an entry by the number and refuses a key whose tag is not the entry's. An entry
//! that is used again gets another tag, so an old key stays dead (Linux `mr.c`, `hw_index_to_key`,
//! `key_to_hw_index`).

use bitfield_struct::bitfield;
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::layout;

/// An entry of the dMPT: one memory region (or window).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Mpt {
    /// Rights and kind.
    pub flags: MptFlags,
    /// The QP a window is bound to.
    pub qpn: U32,
    /// The key, in the table's order.
    pub key: HwKey,
    /// Protection domain and what may be done to the entry.
    pub pd: MptPd,
    /// First virtual address.
    pub start: U64,
    /// Length in bytes.
    pub len: U64,
    /// Local key of the region that a window lies in.
    pub lkey: U32,
    /// Windows bound to the region.
    pub windows: U32,
    /// Odds and ends of the translation.
    pub mtt_flags: MptMttFlags,
    /// Byte offset of the first entry in the MTT table; not used by a physical region. Lies
    /// unaligned.
    pub mtt_offset: U64,
    /// MTT entries, for regions registered by a work request.
    pub mtt_len: U32,
    /// log2 of the bytes that one MTT entry maps.
    pub log_page: U32,
    /// Offset of the first byte in the first page, when enabled.
    pub first_byte_offset: U32,
}

layout!(Mpt: 0x40, key @ 0x08, pd @ 0x0c, start @ 0x10, len @ 0x18, lkey @ 0x20, windows @ 0x24, mtt_flags @ 0x28,
    mtt_offset @ 0x2c, mtt_len @ 0x34, log_page @ 0x38, first_byte_offset @ 0x3c);

/// The status that software hands over and that marks an entry the device doesn't own.
pub const MPT_STATUS_SOFTWARE: u8 = 0xf;
/// The status of an unbound window or of a region waiting for its registration.
pub const MPT_STATUS_FREE: u8 = 0x3;

/// First dword of an [`Mpt`].
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct MptFlags {
    /// [`MPT_STATUS_SOFTWARE`] and so on.
    #[bits(4)]
    pub status: u8,
    #[bits(8)]
    __: u8,
    /// No snooping.
    pub no_snoop: bool,
    #[bits(1)]
    __: u8,
    /// Linux sets it for every region (`MLX4_MPT_FLAG_MIO`).
    pub mio: bool,
    #[bits(1)]
    __: u8,
    /// Windows may be bound.
    pub bind_enable: bool,
    /// Peers may do atomics.
    pub atomic: bool,
    /// Peers may WRITE.
    pub remote_write: bool,
    /// Peers may READ.
    pub remote_read: bool,
    /// This HCA may write.
    pub local_write: bool,
    /// This HCA may read.
    pub local_read: bool,
    /// Virtual addresses are bus addresses; there are no MTT entries.
    pub physical: bool,
    /// A region; a window otherwise.
    pub region: bool,
    __: u8,
}

/// Protection domain dword of an [`Mpt`].
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct MptPd {
    #[bits(3)]
    __: u8,
    /// Checked by a registering work request.
    pub remote_access_enable: bool,
    /// May be registered by a work request.
    pub fast_register_enable: bool,
    #[bits(1)]
    __: u8,
    /// May be invalidated by this side.
    pub invalidate_enable: bool,
    /// May be invalidated by a peer.
    pub remote_invalidate_enable: bool,
    /// The protection domain.
    #[bits(24)]
    pub pd: u32,
}

/// Translation flags of an [`Mpt`].
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get, order = Msb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct MptMttFlags {
    #[bits(8)]
    __: u8,
    /// `first_byte_offset` counts.
    pub first_byte_enable: bool,
    /// Bit 64 of the length: all memory, with a length of 0.
    pub len_64: bool,
    /// Blocks of equal length in place of pages.
    pub block_mode: bool,
    #[bits(17)]
    __: u32,
    /// log2 of the MTT's replication.
    #[bits(4)]
    pub replication: u8,
}

/// A key in the table's order: the entry's index in the low 24 bits, the 8-bit tag above.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct HwKey(U32);

impl HwKey {
    /// The key of entry `index` (24 bits) with `tag`.
    #[must_use]
    pub const fn new(index: u32, tag: u8) -> Self {
        let [_, a, b, c] = index.to_be_bytes();
        Self(U32::from_bytes([tag, a, b, c]))
    }

    /// From the key that work requests and peers name (an L_Key or R_Key).
    #[must_use]
    pub const fn from_key(key: u32) -> Self {
        Self(U32::new(key.rotate_right(8)))
    }

    /// The key that work requests and peers name.
    #[must_use]
    pub const fn to_key(self) -> u32 {
        self.0.get().rotate_left(8)
    }

    /// The entry's index in the dMPT; a table of fewer than 2^24 entries uses its low bits.
    #[must_use]
    pub const fn index(self) -> u32 {
        let [_, a, b, c] = self.0.get().to_be_bytes();
        u32::from_be_bytes([0, a, b, c])
    }

    /// The tag, which lets a reused entry have a new key.
    #[must_use]
    pub const fn tag(self) -> u8 {
        self.0.get().to_be_bytes()[0]
    }
}

impl core::fmt::Debug for HwKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "entry {:#x} tag {:#x}", self.index(), self.tag())
    }
}

/// The L_Key of nothing (Linux `qp.h`, `MLX4_INVALID_LKEY`): ends a short list of pieces.
pub const INVALID_LKEY: u32 = 0x100;

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn golden_region() {
        // Linux mr.c, mlx4_mr_enable: flags MIO | REGION | access; pd | RAE... en_main's all-memory
        // region reads 0xF0020F00 in its first dword when local and remote read and write are set
        // with PHYSICAL.
        let mut mpt = Mpt::new_zeroed();
        mpt.flags = MptFlags::new()
            .with_status(MPT_STATUS_SOFTWARE)
            .with_mio(true)
            .with_region(true)
            .with_physical(true)
            .with_local_read(true)
            .with_local_write(true);
        mpt.key = HwKey::from_key(0x0001_2304);
        mpt.pd = MptPd::new()
            .with_invalidate_enable(true)
            .with_remote_invalidate_enable(true)
            .with_pd(5);
        mpt.start = 0x1000.into();
        mpt.len = 0x2000.into();
        mpt.mtt_offset = 0x11_2233_4458.into();
        mpt.log_page = 12.into();
        let bytes = mpt.as_bytes();
        assert_eq!(bytes[..4], [0xf0, 0x02, 0x0f, 0x00]);
        assert_eq!(bytes[8..16], [0x04, 0, 0x01, 0x23, 3, 0, 0, 5]);
        assert_eq!(bytes[0x2c..0x34], [0, 0, 0, 0x11, 0x22, 0x33, 0x44, 0x58]);
        assert_eq!(bytes[0x38..0x3c], [0, 0, 0, 12]);
    }

    #[test]
    fn right_bits() {
        // Linux qp.h: MLX4_PERM_LOCAL_READ 1 << 10, LOCAL_WRITE 11, REMOTE_READ 12, REMOTE_WRITE
        // 13, ATOMIC 14, BIND_MW 15.
        let remote = MptFlags::new()
            .with_remote_read(true)
            .with_remote_write(true)
            .with_atomic(true);
        assert_eq!(remote.as_bytes(), [0, 0, 0x70, 0]);
        // Linux mr.c: MLX4_MPT_FLAG_REGION 1 << 8, PHYSICAL 9, MIO 17; mtt_fbo:
        // MLX4_MTT_FLAG_PRESENT apart, FBO bit 23.
        assert_eq!(
            MptMttFlags::new().with_first_byte_enable(true).as_bytes(),
            [0, 0x80, 0, 0]
        );
    }

    #[test]
    fn keys_rotate() {
        // Linux mr.c: hw_index_to_key(ind) = (ind >> 24) | (ind << 8).
        let key = HwKey::new(0x01_0203, 0x7f);
        assert_eq!(key.to_key(), 0x0102_037f);
        assert_eq!(HwKey::from_key(key.to_key()), key);
        assert_eq!((key.index(), key.tag()), (0x01_0203, 0x7f));
    }
}
