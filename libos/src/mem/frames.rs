//! The machine's page frames.
// UNSAFETY: turns the bitmap's place in RAM into a slice, and clears frames through the direct map.
#![expect(unsafe_code, reason = "raw memory")]

use core::ops::Range;

use hal::PhysAddr;
use spin::Mutex;

use crate::boot::boot_info::{BootInfo, Piece};
use crate::mem::address_space;
use crate::mem::frame_bitmap::{FrameBitmap, PAGE_SIZE, words_for};
use crate::mem::layout::{Image, direct};
use crate::mem::table_pool::TableFrames;

/// Memory below is left to firmware and to the cores' start.
const LOW_MEMORY_END: u64 = 1 << 20;

/// No lock is taken under it.
static FRAMES: Mutex<Option<FrameBitmap<&'static mut [u64]>>> = Mutex::new(None);

/// A run of frames, freed when dropped.
#[derive(Debug)]
pub struct Frames {
    start: PhysAddr,
    count: usize,
}

impl Frames {
    /// Takes `count` contiguous frames, aligned to `align` bytes (a power of two). Their contents
    /// are whatever they were.
    #[must_use]
    pub fn allocate(count: usize, align: usize) -> Option<Self> {
        if count == 0 || !align.is_power_of_two() {
            return None;
        }
        let align = (align / PAGE_SIZE).max(1);
        let first = FRAMES.lock().as_mut()?.allocate(count, align)?;
        Some(Self {
            start: PhysAddr((first * PAGE_SIZE) as u64),
            count,
        })
    }

    /// Takes frames as [`Frames::allocate`] does and clears them.
    #[must_use]
    pub fn zeroed(count: usize, align: usize) -> Option<Self> {
        let frames = Self::allocate(count, align)?;
        // SAFETY: the frames are ours alone and RAM is mapped in the direct map.
        unsafe { direct(frames.start).write_bytes(0, count * PAGE_SIZE) };
        Some(frames)
    }

    /// The first frame's address.
    #[must_use]
    pub fn start(&self) -> PhysAddr {
        self.start
    }

    /// The number of frames.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Gives up ownership without freeing; [`Frames::from_raw`] takes it again.
    pub(crate) fn into_raw(self) -> PhysAddr {
        let start = self.start;
        core::mem::forget(self);
        start
    }

    /// Takes ownership again of what [`Frames::into_raw`] gave up.
    pub(crate) fn from_raw(start: PhysAddr, count: usize) -> Self {
        Self { start, count }
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        let first = usize::try_from(self.start.0).unwrap_or(usize::MAX) / PAGE_SIZE;
        if let Some(frames) = FRAMES.lock().as_mut() {
            frames.free(first, self.count);
        }
    }
}

/// Counts the frames that hold programs' page tables: those for leaf and for upper tables together.
///
/// They stay table frames for good, so [`free`] does not count them.
#[must_use]
pub fn tables() -> TableFrames {
    address_space::table_frames()
}

/// The number of free frames.
#[must_use]
pub fn free() -> usize {
    FRAMES.lock().as_ref().map_or(0, FrameBitmap::free_frames)
}

/// Puts the bitmap into RAM and fills it. Only what the loader mapped can be reached yet.
pub(crate) fn init(info: &BootInfo) {
    let map = &info.map;
    let frames = usize::try_from(map.end()).expect("64-bit") / PAGE_SIZE;
    let words = words_for(frames);
    let bytes = (words * size_of::<u64>()).next_multiple_of(PAGE_SIZE) as u64;
    let image = Image::get().phys();
    let kept = info.modules.iter().chain([&info.record]);
    let kept = kept.filter(|piece| piece.len > 0).map(pages_of);
    let taken: heapless::Vec<_, 8> = kept.chain([image.clone()]).collect();
    let home = map
        .find(bytes, LOW_MEMORY_END..info.mapped, &taken)
        .expect("no RAM for the frame bitmap that the loader mapped");
    // SAFETY: RAM that nothing uses yet (it is no part of the image), mapped, aligned to a page.
    let words =
        unsafe { core::slice::from_raw_parts_mut(direct(PhysAddr(home)).cast::<u64>(), words) };
    let mut bitmap = FrameBitmap::new(words);
    let page = |address: u64| usize::try_from(address).expect("64-bit") / PAGE_SIZE;
    for region in map.regions() {
        bitmap.provide(page(region.start), page(region.end));
    }
    bitmap.withhold(0, page(LOW_MEMORY_END));
    for kept in &taken {
        let end = kept.end.min(map.end());
        bitmap.withhold(page(kept.start.min(end)), page(end));
    }
    bitmap.withhold(page(home), page(home + bytes));
    *FRAMES.lock() = Some(bitmap);
}

/// Returns the whole pages that hold some bytes.
fn pages_of(piece: &Piece) -> Range<u64> {
    let page = PAGE_SIZE as u64;
    let end = piece.start.saturating_add(piece.len);
    piece.start / page * page
        ..end
            .checked_next_multiple_of(page)
            .unwrap_or(u64::MAX / page * page)
}
