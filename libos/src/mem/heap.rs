//! The kernel heap: talc over chunks of frames, in the direct map.
//!
//! For start-up and rare paths. It grows by a MiB or by what is asked for, and never shrinks.
// UNSAFETY: hands frames to the allocator.
#![expect(unsafe_code, reason = "raw memory")]

use core::alloc::Layout;

use talc::TalcLock;
use talc::base::Talc;
use talc::base::binning::Binning;
use talc::source::Source;

use crate::mem::frame_bitmap::PAGE_SIZE;
use crate::mem::frames::Frames;
use crate::mem::layout::direct;

const CHUNK: usize = 1 << 20;
/// Bytes of a new chunk that talc needs for its own marks.
const OVERHEAD: usize = 2 * PAGE_SIZE;

/// The frame allocator's lock is taken under it.
#[global_allocator]
static HEAP: TalcLock<spin::Mutex<()>, FrameSource> = TalcLock::new(FrameSource);

#[derive(Debug)]
struct FrameSource;

// SAFETY: it takes frames, never the heap.
unsafe impl Source for FrameSource {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        let least = layout
            .size()
            .checked_add(layout.align())
            .and_then(|len| len.checked_add(OVERHEAD))
            .ok_or(())?;
        let bytes = least
            .max(CHUNK)
            .checked_next_multiple_of(PAGE_SIZE)
            .ok_or(())?;
        let frames = Frames::allocate(bytes / PAGE_SIZE, PAGE_SIZE).ok_or(())?;
        let base = direct(frames.into_raw());
        // SAFETY: these frames are the heap's from now on.
        unsafe { talc.claim(base, bytes) }.map(|_| ()).ok_or(())
    }
}
