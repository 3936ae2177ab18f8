//! Memory that devices and programs may change: DMA buffers, and arrays of page frames.
// UNSAFETY: opens windows on frames.
#![expect(unsafe_code, reason = "raw memory")]

use alloc::boxed::Box;
use core::sync::atomic::{AtomicPtr, Ordering};

use hal::{BusAddr, DmaBuffer, PhysAddr};
use spin::Mutex;

use crate::mem::frame_bitmap::PAGE_SIZE;
use crate::mem::frames::Frames;
use crate::mem::layout::direct;
use crate::mem::window::Window;

/// Contiguous zeroed memory for a device, freed when dropped.
///
/// Ordinary cached memory: devices of x86 machines see the caches, so nothing is flushed by hand
/// (Linux `Documentation/core-api/dma-api.rst`, coherent memory). What remains to order is named by
/// [`hal::fence`].
#[derive(Debug)]
pub struct Buffer {
    frames: Frames,
    window: Window,
}

impl Buffer {
    /// Allocates at least `len` bytes aligned to `align`, a power of two.
    #[must_use]
    pub fn allocate(len: usize, align: usize) -> Option<Self> {
        let frames = Frames::zeroed(len.max(1).div_ceil(PAGE_SIZE), align.max(PAGE_SIZE))?;
        Some(Self::of(frames))
    }

    fn of(frames: Frames) -> Self {
        // SAFETY: RAM is mapped in the direct map, and the frames are this buffer's alone.
        let window = unsafe { Window::new(direct(frames.start()), frames.count() * PAGE_SIZE) };
        Self { frames, window }
    }
}

impl DmaBuffer for Buffer {
    fn bus_addr(&self) -> BusAddr {
        BusAddr(self.frames.start().0)
    }

    fn len(&self) -> usize {
        self.window.len()
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.window.read(offset, into);
    }

    fn write(&self, offset: usize, from: &[u8]) {
        self.window.write(offset, from);
    }

    fn fill(&self, offset: usize, len: usize, value: u8) {
        self.window.fill(offset, len, value);
    }

    fn read_u32(&self, offset: usize) -> u32 {
        self.window.load(offset)
    }

    fn write_u32(&self, offset: usize, value: u32) {
        self.window.store(offset, value);
    }

    fn read_u64(&self, offset: usize) -> u64 {
        self.window.load(offset)
    }

    fn write_u64(&self, offset: usize, value: u64) {
        self.window.store(offset, value);
    }

    #[inline]
    fn write_words<const N: usize>(&self, offset: usize, words: [u64; N]) {
        self.window.store_all(offset, words);
    }
}

/// A contiguous array of page frames that programs' pages are mapped to: the lines of a cache.
///
/// It lives as long as the kernel, so that a mapping or a device's registration never outlives its
/// memory.
#[derive(Debug)]
pub struct FrameArray {
    buffer: Buffer,
    frames: usize,
    /// The array that was allocated before this one.
    previous: Option<&'static Self>,
}

/// The last array that was allocated; the others follow by `previous`.
static LAST: AtomicPtr<FrameArray> = AtomicPtr::new(core::ptr::null_mut());
/// Held while an array is added to the list.
static ADD: Mutex<()> = Mutex::new(());

fn last() -> Option<&'static FrameArray> {
    let last = LAST.load(Ordering::Acquire);
    // SAFETY: null or leaked memory.
    unsafe { last.as_ref() }
}

/// Returns whether the frame at `phys` is one of a [`FrameArray`], which a program may reach.
#[inline]
pub(crate) fn is_program_frame(phys: PhysAddr) -> bool {
    core::iter::successors(last(), |array| array.previous).any(|array| {
        let offset = phys.0.wrapping_sub(array.buffer.frames.start().0);
        offset < array.buffer.window.len() as u64
    })
}

impl FrameArray {
    /// Takes `frames` zeroed frames for good. `None` when so many contiguous ones are not left.
    #[must_use]
    pub fn allocate(frames: usize) -> Option<&'static Self> {
        let buffer = Buffer::allocate(frames.checked_mul(PAGE_SIZE)?, PAGE_SIZE)?;
        Some(Self::keep(buffer, frames))
    }

    /// Takes `frames` frames for good as [`FrameArray::allocate`] does, without zeroing them: that
    /// takes a tenth of a second a gigabyte.
    #[must_use]
    pub fn allocate_dirty(frames: usize) -> Option<&'static Self> {
        let buffer = Buffer::of(Frames::allocate(frames, PAGE_SIZE)?);
        Some(Self::keep(buffer, frames))
    }

    fn keep(buffer: Buffer, frames: usize) -> &'static Self {
        let _add = ADD.lock();
        let array: &'static Self = Box::leak(Box::new(Self {
            buffer,
            frames,
            previous: last(),
        }));
        // The list never shrinks, so a reader needs no lock.
        LAST.store(core::ptr::from_ref(array).cast_mut(), Ordering::Release);
        array
    }

    /// The number of frames.
    #[must_use]
    pub fn count(&self) -> usize {
        self.frames
    }

    /// All the frames as one piece of DMA memory, to be registered with a device.
    #[must_use]
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// One frame.
    ///
    /// # Panics
    ///
    /// When `index` is not below [`FrameArray::count`].
    #[must_use]
    pub fn frame(&'static self, index: usize) -> PageFrame {
        assert!(index < self.frames, "frame {index} of {}", self.frames);
        PageFrame { array: self, index }
    }
}

/// One frame of a [`FrameArray`]. Copies mean the same frame.
#[derive(Debug, Clone, Copy)]
pub struct PageFrame {
    array: &'static FrameArray,
    index: usize,
}

impl PageFrame {
    /// The frame's place in its array.
    #[must_use]
    pub fn index(self) -> usize {
        self.index
    }

    /// The address that a device uses for the frame's first byte.
    #[must_use]
    pub fn bus_addr(self) -> BusAddr {
        BusAddr(self.phys().0)
    }

    /// The frame's physical address.
    #[must_use]
    pub fn phys(self) -> PhysAddr {
        PhysAddr(self.array.buffer.frames.start().0 + self.offset(0, 0) as u64)
    }

    /// Copies out of the frame.
    ///
    /// # Panics
    ///
    /// When the range leaves the frame.
    pub fn read(self, offset: usize, into: &mut [u8]) {
        self.array
            .buffer
            .read(self.offset(offset, into.len()), into);
    }

    /// Copies into the frame.
    ///
    /// # Panics
    ///
    /// When the range leaves the frame.
    pub fn write(self, offset: usize, from: &[u8]) {
        self.array
            .buffer
            .write(self.offset(offset, from.len()), from);
    }

    /// Stores `new` in the word at `offset` if that is `old`, in one step for all cores; returns
    /// the word from before.
    ///
    /// # Errors
    ///
    /// The word, if it was another.
    ///
    /// # Panics
    ///
    /// When the word leaves the frame or is not aligned.
    pub fn exchange_u32(self, offset: usize, old: u32, new: u32) -> Result<u32, u32> {
        let place = self.offset(offset, size_of::<u32>());
        self.array.buffer.window.exchange(place, old, new)
    }

    /// Sets `len` bytes from `offset` on.
    ///
    /// # Panics
    ///
    /// When the range leaves the frame.
    pub fn fill(self, offset: usize, len: usize, value: u8) {
        self.array.buffer.fill(self.offset(offset, len), len, value);
    }

    pub(crate) fn window(self) -> (Window, usize) {
        (self.array.buffer.window, self.index * PAGE_SIZE)
    }

    fn offset(self, offset: usize, len: usize) -> usize {
        let inside = offset.checked_add(len).is_some_and(|end| end <= PAGE_SIZE);
        assert!(inside, "{len} bytes at {offset:#x} leave a frame");
        self.index * PAGE_SIZE + offset
    }
}
