//! A piece of memory that others may change at any time: copied in and out, checked for bounds.
// UNSAFETY: reads and writes memory by address.
#![expect(unsafe_code, reason = "raw memory")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

/// Bytes at a fixed address, shared with devices, programs or other cores.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is not the compiler's: every access is a copy or a volatile access.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// A window on `len` bytes from `base` on.
    ///
    /// # Safety
    ///
    /// The bytes are mapped and writable for as long as the window is used, and no reference to
    /// them exists.
    pub(crate) unsafe fn new(base: *mut u8, len: usize) -> Self {
        Self {
            base: NonNull::new(base).expect("a window on nothing"),
            len,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// # Panics
    ///
    /// When the range leaves the window or is misaligned for `T`.
    fn at<T>(&self, offset: usize, len: usize) -> *mut T {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(
            inside,
            "{len} bytes at {offset:#x} leave a window of {:#x}",
            self.len
        );
        assert!(
            offset.is_multiple_of(align_of::<T>()),
            "misaligned access at {offset:#x}"
        );
        // SAFETY: inside the window.
        unsafe { self.base.as_ptr().add(offset) }.cast()
    }

    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) {
        let from: *mut u8 = self.at(offset, into.len());
        // SAFETY: `at` checked the range, and no Rust reference overlaps it.
        unsafe { from.copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
    }

    pub(crate) fn write(&self, offset: usize, from: &[u8]) {
        let to: *mut u8 = self.at(offset, from.len());
        // SAFETY: `at` checked the range, and no Rust reference overlaps it.
        unsafe { to.copy_from_nonoverlapping(from.as_ptr(), from.len()) };
    }

    pub(crate) fn fill(&self, offset: usize, len: usize, value: u8) {
        let to: *mut u8 = self.at(offset, len);
        // SAFETY: `at` checked the range, and no Rust reference overlaps it.
        unsafe { to.write_bytes(value, len) };
    }

    /// Loads one word untorn.
    ///
    /// Of a register it is one load of that width, which the compiler neither drops nor doubles.
    /// The CPU keeps accesses to uncached memory in order among themselves; against ordinary memory
    /// [`hal::fence`] orders them.
    pub(crate) fn load<T: Word>(&self, offset: usize) -> T {
        let from: *mut T = self.at(offset, size_of::<T>());
        // SAFETY: `at` checked range and alignment.
        unsafe { from.read_volatile() }
    }

    /// Stores a word if that is `old`, in one step for all cores; returns the word from before, as
    /// `Err` if it was not `old`.
    pub(crate) fn exchange(&self, offset: usize, old: u32, new: u32) -> Result<u32, u32> {
        let word: *mut u32 = self.at(offset, size_of::<u32>());
        // SAFETY: `at` checked range and alignment, the memory lives as long as the window, and
        // what else changes the word meanwhile (programs) does so by the CPU's own instructions.
        let word = unsafe { AtomicU32::from_ptr(word) };
        word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
    }

    /// Stores one word untorn.
    pub(crate) fn store<T: Word>(&self, offset: usize, value: T) {
        let to: *mut T = self.at(offset, size_of::<T>());
        // SAFETY: `at` checked range and alignment.
        unsafe { to.write_volatile(value) };
    }

    /// Stores every word of a range over itself.
    pub(crate) fn store_again(&self, offset: usize, len: usize) {
        let words: *mut u64 = self.at(offset, len);
        // SAFETY: `at` checked range and alignment; the words keep their values. The direction flag
        // is clear in the kernel.
        unsafe {
            core::arch::asm!(
                "rep movsq",
                inout("rsi") words => _,
                inout("rdi") words => _,
                inout("rcx") len / size_of::<u64>() => _,
                options(nostack, preserves_flags)
            );
        }
    }

    /// Stores words one after the other, each untorn, with one check for all.
    #[inline]
    pub(crate) fn store_all<T: Word, const N: usize>(&self, offset: usize, values: [T; N]) {
        let to: *mut T = self.at(offset, size_of::<[T; N]>());
        for (index, value) in values.into_iter().enumerate() {
            // SAFETY: one of the words whose range `at` checked.
            let to = unsafe { to.add(index) };
            // SAFETY: as above, and `at` checked the alignment.
            unsafe { to.write_volatile(value) };
        }
    }
}

/// A word that one access moves.
pub(crate) trait Word: Copy {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}
