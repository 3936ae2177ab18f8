//! The bits of a page table's entry (Intel SDM volume 3A, section 4.5, table 4-20).

/// Marks an entry that the CPU uses; it ignores all other bits of an entry without it.
pub const PRESENT: u64 = 1;
/// Allows stores.
pub const WRITABLE: u64 = 1 << 1;
/// Allows accesses from user mode.
pub const USER: u64 = 1 << 2;
/// Is set by the CPU when it uses the entry.
pub const ACCESSED: u64 = 1 << 5;
/// Is set by the CPU when it stores to the page.
pub const DIRTY: u64 = 1 << 6;
/// Forbids instruction fetches.
pub const NO_EXECUTE: u64 = 1 << 63;
/// Holds the physical address that the entry points to: bits 51 to 12.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Entries of a table.
pub const ENTRIES: usize = 512;
/// The level of the root; level 1 holds the entries of 4 KiB pages.
#[cfg(any(test, target_os = "none"))]
pub(crate) const ROOT_LEVEL: u32 = 4;

/// One past the highest address of a program: the last page of the lower half stays empty, so that
/// no return address of a system call is ever non-canonical.
pub const USER_END: u64 = 0x7fff_ffff_f000;
