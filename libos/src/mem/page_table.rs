//! The four levels of x86-64 page tables, as words in frames (Intel SDM volume 3A, section 4.5).
// UNSAFETY: reads and writes table frames through the direct map.
#![expect(unsafe_code, reason = "raw memory")]

use core::sync::atomic::{AtomicU64, Ordering};

use hal::PhysAddr;

use crate::mem::frames::Frames;
use crate::mem::layout::direct;
pub(crate) use crate::mem::page_entry::{
    ADDRESS, ENTRIES, NO_EXECUTE, PRESENT, ROOT_LEVEL, WRITABLE,
};

/// Write-through and cache-disable: together the PAT's entry 3, uncached after reset.
///
/// Accesses to such memory go out one by one and in program order (Intel SDM volume 3A, "Strong
/// Uncacheable (UC)"), as registers need it.
pub(crate) const UNCACHED: u64 = (1 << 3) | (1 << 4);
pub(crate) const LARGE: u64 = 1 << 7;
pub(crate) const GLOBAL: u64 = 1 << 8;
pub(crate) const LARGE_PAGE: u64 = 2 << 20;

pub(crate) type Table = [AtomicU64; ENTRIES];

/// The table in a frame.
///
/// Tables are only made here and in [`crate::mem::user_tables`], and freed when no core can walk
/// them.
pub(crate) fn table(frame: PhysAddr) -> &'static Table {
    // SAFETY: the frame holds a table (see above), any bit pattern is a valid entry, and all access
    // is atomic.
    unsafe { &*direct(frame).cast::<Table>() }
}

fn index(address: u64, level: u32) -> usize {
    usize::try_from(address >> (12 + 9 * (level - 1)) & 0x1ff).unwrap_or_default()
}

/// Finds the entry that maps `address` at `level`; `None` where a table on the way is missing or
/// maps more at once.
pub(crate) fn entry(root: PhysAddr, address: u64, level: u32) -> Option<&'static AtomicU64> {
    let mut at = root;
    for upper in (level + 1..=ROOT_LEVEL).rev() {
        let word = table(at)[index(address, upper)].load(Ordering::Acquire);
        if word & PRESENT == 0 || word & LARGE != 0 {
            return None;
        }
        at = PhysAddr(word & ADDRESS);
    }
    Some(&table(at)[index(address, level)])
}

/// Finds the entry as [`entry`] does, making missing tables with the rights `through`. The caller
/// keeps others from doing so in the same tree; `None` when memory is out.
pub(crate) fn entry_or_create(
    root: PhysAddr,
    address: u64,
    level: u32,
    through: u64,
) -> Option<&'static AtomicU64> {
    let mut at = root;
    for upper in (level + 1..=ROOT_LEVEL).rev() {
        let slot = &table(at)[index(address, upper)];
        let mut word = slot.load(Ordering::Acquire);
        if word & PRESENT == 0 {
            word = Frames::zeroed(1, 1)?.into_raw().0 | through;
            slot.store(word, Ordering::Release);
        }
        if word & LARGE != 0 {
            return None;
        }
        at = PhysAddr(word & ADDRESS);
    }
    Some(&table(at)[index(address, level)])
}

/// The physical address that `address` translates to.
pub(crate) fn translate(root: PhysAddr, address: u64) -> Option<PhysAddr> {
    for (level, size) in [(1, 1_u64 << 12), (2, 1 << 21), (3, 1 << 30)] {
        let Some(entry) = entry(root, address, level) else {
            continue;
        };
        let word = entry.load(Ordering::Acquire);
        let leaf = word & PRESENT != 0 && (level == 1 || word & LARGE != 0);
        return leaf.then(|| PhysAddr((word & ADDRESS & !(size - 1)) + (address & (size - 1))));
    }
    None
}
