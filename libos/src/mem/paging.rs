//! The kernel's own page tables: no page is both writable and executable, and stacks end in
//! unmapped pages.
// UNSAFETY: loads page tables and control registers.
#![expect(unsafe_code, reason = "control registers")]

use core::sync::atomic::{AtomicU64, Ordering};

use hal::PhysAddr;
use raw_cpuid::CpuId;
use spin::{Mutex, Once};
use x86_64::registers::control::{Cr3, Cr3Flags, Cr4, Cr4Flags};
use x86_64::registers::model_specific::Msr;
use x86_64::structures::paging::PhysFrame;

use crate::boot::memory_map::MemoryMap;
use crate::mem::frame_bitmap::PAGE_SIZE;
use crate::mem::frames::Frames;
use crate::mem::layout::{DEVICE_BASE, DIRECT_BASE, Image, PHYS_LIMIT, STACKS_BASE};
use crate::mem::page_table::{
    ENTRIES, GLOBAL, LARGE, LARGE_PAGE, NO_EXECUTE, PRESENT, UNCACHED, WRITABLE, entry_or_create,
    table, translate,
};

const PAGE: u64 = PAGE_SIZE as u64;
const TABLE_RIGHTS: u64 = PRESENT | WRITABLE;
const DATA: u64 = PRESENT | WRITABLE | NO_EXECUTE | GLOBAL;
const READ_ONLY: u64 = PRESENT | NO_EXECUTE | GLOBAL;
const CODE: u64 = PRESENT | GLOBAL;
const PAT_MSR: u32 = 0x277;
const PAT_AFTER_RESET: u64 = 0x0007_0406_0007_0406;
/// Bytes that one entry of the root covers.
const ROOT_SPAN: usize = 1 << 39;

/// Read by `boot.s`, too.
pub(crate) static KERNEL_ROOT: AtomicU64 = AtomicU64::new(0);
static RAM: Once<MemoryMap> = Once::new();
static PHYS_END: AtomicU64 = AtomicU64::new(0);
/// Held while the kernel's tables change. The frame allocator's lock is taken under it.
static CHANGE: Mutex<()> = Mutex::new(());
static NEXT_STACK: AtomicU64 = AtomicU64::new(STACKS_BASE);

/// The kernel's root table.
pub(crate) fn kernel_root() -> PhysAddr {
    PhysAddr(KERNEL_ROOT.load(Ordering::Acquire))
}

/// Builds the tables and loads them.
pub(crate) fn init(map: &MemoryMap) {
    let root = Frames::zeroed(1, 1)
        .expect("no memory for page tables")
        .into_raw();
    KERNEL_ROOT.store(root.0, Ordering::Release);
    let bits = CpuId::new()
        .get_processor_capacity_feature_info()
        .map_or(36, |info| info.physical_address_bits());
    let phys_end = (1 << bits.min(46)).min(PHYS_LIMIT);
    PHYS_END.store(phys_end, Ordering::Release);
    // Every program's root copies the kernel's half once, so its entries must all be there from the
    // start.
    for base in [DIRECT_BASE, DEVICE_BASE] {
        for at in (0..phys_end).step_by(ROOT_SPAN) {
            make_table(root, base + at);
        }
    }
    make_table(root, STACKS_BASE);
    map_image(root);
    for region in map.regions() {
        map_ram(root, region.start, region.end.min(phys_end));
    }
    RAM.call_once(|| map.clone());
    load_on_this_core();
}

fn make_table(root: PhysAddr, address: u64) {
    entry_or_create(root, address, 3, TABLE_RIGHTS).expect("no memory for page tables");
}

fn map_image(root: PhysAddr) {
    let image = Image::get();
    for (start, end, rights) in [
        (image.text, image.text_end, CODE),
        (image.text_end, image.rodata_end, READ_ONLY),
        (image.rodata_end, image.end, DATA),
    ] {
        for address in (start..end).step_by(PAGE_SIZE) {
            set(root, address, Image::phys_of(address) | rights);
        }
    }
}

/// Maps RAM into the direct map, but for the image: its frames have the rights above and no others.
fn map_ram(root: PhysAddr, start: u64, end: u64) {
    let hole = Image::get().phys();
    let mut at = start;
    while at < end {
        let large = at.is_multiple_of(LARGE_PAGE)
            && at + LARGE_PAGE <= end
            && (at + LARGE_PAGE <= hole.start || at >= hole.end);
        if large {
            let slot = entry_or_create(root, DIRECT_BASE + at, 2, TABLE_RIGHTS)
                .expect("no memory for page tables");
            slot.store(at | DATA | LARGE, Ordering::Release);
            at += LARGE_PAGE;
            continue;
        }
        if !hole.contains(&at) {
            set(root, DIRECT_BASE + at, at | DATA);
        }
        at += PAGE;
    }
}

fn set(root: PhysAddr, address: u64, word: u64) {
    entry_or_create(root, address, 1, TABLE_RIGHTS)
        .expect("no memory for page tables")
        .store(word, Ordering::Release);
}

/// Returns the RAM between `within`'s ends that is lowest and has `len` bytes.
pub(crate) fn find_ram(len: u64, within: core::ops::Range<u64>) -> Option<u64> {
    RAM.get()?.find(len, within, &[Image::get().phys()])
}

/// Loads the kernel's tables and turns on what protects them.
pub(crate) fn load_on_this_core() {
    // SAFETY: the value after reset (Intel SDM volume 3A, section 12.12.4), which [`UNCACHED`]
    // counts on; firmware may have changed it.
    unsafe { Msr::new(PAT_MSR).write(PAT_AFTER_RESET) };
    let mut wanted = Cr4Flags::PAGE_GLOBAL;
    if let Some(features) = CpuId::new().get_extended_feature_info() {
        wanted.set(
            Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION,
            features.has_smep(),
        );
        wanted.set(
            Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION,
            features.has_smap(),
        );
        // Programs would learn the kernel's addresses from SGDT and SIDT.
        wanted.set(
            Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION,
            features.has_umip(),
        );
    }
    load_root(kernel_root());
    // SAFETY: the flags only forbid what the kernel and its programs never do; global pages are
    // the same in every root.
    unsafe { Cr4::update(|flags| flags.insert(wanted)) };
}

/// Loads a root table, which drops this core's translations of the lower half.
///
/// A move to CR3 without PCIDs drops all translations but global ones, and the paging-structure
/// caches with them (Intel SDM volume 3A, "Operations that Invalidate TLBs and Paging-Structure
/// Caches"). The kernel's half is global: it is the same in every root and its entries never
/// change.
pub(crate) fn load_root(root: PhysAddr) {
    let frame = PhysFrame::containing_address(x86_64::PhysAddr::new(root.0));
    // SAFETY: every root holds the kernel's half.
    unsafe { Cr3::write(frame, Cr3Flags::empty()) };
}

/// Maps device registers, uncached. `None` where the range is RAM or beyond the machine's
/// addresses, as only a broken device can ask, or memory is out.
pub(crate) fn map_device(start: PhysAddr, len: u64) -> Option<*mut u8> {
    let end = start
        .0
        .checked_add(len)
        .filter(|&end| len > 0 && end <= PHYS_END.load(Ordering::Acquire))?;
    let ram = RAM.get()?.regions();
    if ram
        .iter()
        .any(|region| start.0 < region.end && region.start < end)
    {
        return None;
    }
    map_linear(DEVICE_BASE, start.0, end, DATA | UNCACHED)?;
    Some(pointer(DEVICE_BASE + start.0))
}

/// Maps firmware tables into the direct map, read-only where no RAM is.
pub(crate) fn map_firmware(start: PhysAddr, len: u64) -> Option<*const u8> {
    let end = start
        .0
        .checked_add(len)
        .filter(|&end| len > 0 && end <= PHYS_END.load(Ordering::Acquire))?;
    map_linear(DIRECT_BASE, start.0, end, READ_ONLY)?;
    Some(pointer(DIRECT_BASE + start.0))
}

/// Other cores need not be told: the entries were not present, and no translation is cached of
/// such.
fn map_linear(base: u64, start: u64, end: u64, rights: u64) -> Option<()> {
    let _change = CHANGE.lock();
    for at in (start / PAGE * PAGE..end).step_by(PAGE_SIZE) {
        if translate(kernel_root(), base + at).is_none() {
            let slot = entry_or_create(kernel_root(), base + at, 1, TABLE_RIGHTS)?;
            slot.store(at | rights, Ordering::Release);
        }
    }
    Some(())
}

/// Makes a stack of `bytes` above an unmapped page; returns its top.
pub(crate) fn new_stack(bytes: usize) -> u64 {
    let _change = CHANGE.lock();
    let base = NEXT_STACK.fetch_add(bytes as u64 + PAGE, Ordering::AcqRel) + PAGE;
    // Contiguous, so that a buffer on a stack has one physical address.
    let frames = Frames::zeroed(bytes / PAGE_SIZE, PAGE_SIZE)
        .expect("no memory for a stack")
        .into_raw();
    for at in (0..bytes as u64).step_by(PAGE_SIZE) {
        set(kernel_root(), base + at, (frames.0 + at) | DATA);
    }
    base + bytes as u64
}

/// Returns whether `address` lies in the unmapped page below a stack, or near it.
pub(crate) fn is_stack_guard(address: u64) -> bool {
    (STACKS_BASE..NEXT_STACK.load(Ordering::Acquire)).contains(&address)
        && translate(kernel_root(), address).is_none()
}

/// The physical address of the kernel's memory at `address`.
pub(crate) fn kernel_phys(address: u64) -> Option<PhysAddr> {
    translate(kernel_root(), address)
}

/// The kernel half's entries, for a program's root.
pub(crate) fn copy_kernel_half(root: PhysAddr) {
    // Four at a time: 256 entries one by one took 2,600 instructions.
    let (to, from) = (table(root), table(kernel_root()));
    let (to, _) = to[ENTRIES / 2..].as_chunks::<4>();
    let (from, _) = from[ENTRIES / 2..].as_chunks::<4>();
    for (to, from) in to.iter().zip(from) {
        for (to, from) in to.iter().zip(from) {
            to.store(from.load(Ordering::Acquire), Ordering::Release);
        }
    }
}

/// Fills a root table and the two pages behind it so that they map the first 2 MiB where they are,
/// and the kernel's half.
pub(crate) fn map_low_memory(root: PhysAddr) {
    let (upper, lower) = (PhysAddr(root.0 + PAGE), PhysAddr(root.0 + 2 * PAGE));
    table(root)[0].store(upper.0 | TABLE_RIGHTS, Ordering::Release);
    table(upper)[0].store(lower.0 | TABLE_RIGHTS, Ordering::Release);
    table(lower)[0].store(PRESENT | LARGE, Ordering::Release);
    copy_kernel_half(root);
}

fn pointer<T>(address: u64) -> *mut T {
    core::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or_default())
}
