//! What a page table's entry is made of (Intel SDM volume 3A, section 4.5).

pub(crate) const PRESENT: u64 = 1;
pub(crate) const WRITABLE: u64 = 1 << 1;
pub(crate) const USER: u64 = 1 << 2;
pub(crate) const ACCESSED: u64 = 1 << 5;
pub(crate) const DIRTY: u64 = 1 << 6;
pub(crate) const NO_EXECUTE: u64 = 1 << 63;
/// Bits 51 to 12: where the entry points.
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Entries of a table.
pub(crate) const ENTRIES: usize = 512;
/// The level of the root; level 1 holds the entries of 4 KiB pages.
pub(crate) const ROOT_LEVEL: u32 = 4;

/// One past the highest address of a program: the last page of the lower half stays empty, so that no return
/// address of a system call is ever non-canonical.
pub const USER_END: u64 = 0x7fff_ffff_f000;
