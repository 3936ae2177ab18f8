//! Layout of the kernel's half of the address space. `docs/libos.md` draws it.
// UNSAFETY: names the linker script's symbols. Only their addresses are taken.
#![expect(unsafe_code, reason = "linker symbols")]

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use hal::PhysAddr;

use crate::mem::frame_bitmap::PAGE_SIZE;

/// All of RAM, linearly.
pub(crate) const DIRECT_BASE: u64 = 0xffff_8000_0000_0000;
/// Device registers, linearly by physical address, uncached.
pub(crate) const DEVICE_BASE: u64 = 0xffff_c000_0000_0000;
/// The cores' stacks, each above an unmapped page.
pub(crate) const STACKS_BASE: u64 = 0xffff_ff00_0000_0000;
/// Physical address of the image's first byte.
static IMAGE_HOME: AtomicU64 = AtomicU64::new(0);
/// Physical addresses beyond this one are not mapped: the windows above would overlap.
pub(crate) const PHYS_LIMIT: u64 = STACKS_BASE - DEVICE_BASE;
const _: () = assert!(DIRECT_BASE == handover::DIRECT_BASE);

unsafe extern "C" {
    static __image_start: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __image_end: u8;
}

/// The virtual addresses at which the image's parts begin and end.
#[derive(Clone, Copy)]
pub(crate) struct Image {
    pub(crate) start: u64,
    pub(crate) text: u64,
    pub(crate) text_end: u64,
    pub(crate) rodata_end: u64,
    pub(crate) end: u64,
}

impl Image {
    pub(crate) fn get() -> Self {
        Self {
            start: (&raw const __image_start).addr() as u64,
            text: (&raw const __text_start).addr() as u64,
            text_end: (&raw const __text_end).addr() as u64,
            rodata_end: (&raw const __rodata_end).addr() as u64,
            end: (&raw const __image_end).addr() as u64,
        }
    }

    /// Notes where the loader put the image.
    pub(crate) fn place(home: u64) {
        assert_eq!(Self::get().start, handover::LINK_BASE);
        IMAGE_HOME.store(home, Ordering::Release);
    }

    /// The physical address of one of the image's own addresses.
    pub(crate) fn phys_of(address: u64) -> u64 {
        address - handover::LINK_BASE + IMAGE_HOME.load(Ordering::Acquire)
    }

    /// Returns the image's place in physical memory, in whole pages.
    pub(crate) fn phys(self) -> Range<u64> {
        Self::phys_of(self.start)..Self::phys_of(self.end.next_multiple_of(PAGE_SIZE as u64))
    }

    pub(crate) fn contains_text(address: u64) -> bool {
        let image = Self::get();
        (image.text..image.text_end).contains(&address)
    }
}

/// The direct map's address of a piece of RAM.
pub(crate) fn direct(address: PhysAddr) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(
        usize::try_from(DIRECT_BASE + address.0).unwrap_or_default(),
    )
}
