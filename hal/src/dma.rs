//! Memory that a device may read and write at any time.

use crate::BusAddr;

/// One physically contiguous piece of memory shared with a device; freed when dropped.
///
/// The device (or whoever drives it) is a concurrent writer: contents are copied in and out, never
/// borrowed, and what was read is checked before it is believed. The word accessors are single,
/// untorn accesses of naturally aligned words in the CPU's order; big-endian fields are swapped by
/// the caller.
///
/// # Panics
///
/// Every accessor panics when the range leaves the buffer or a word is misaligned: offsets are the
/// driver's own arithmetic, and a number that came from the device has been checked before it
/// becomes one.
pub trait DmaBuffer: Send + Sync {
    /// The address that the device uses for the first byte.
    fn bus_addr(&self) -> BusAddr;
    /// The length in bytes.
    fn len(&self) -> usize;
    /// Returns whether the buffer has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Copies `into.len()` bytes from `offset` on out of the buffer.
    fn read(&self, offset: usize, into: &mut [u8]);
    /// Copies `from` into the buffer at `offset`.
    fn write(&self, offset: usize, from: &[u8]);
    /// Sets `len` bytes from `offset` on to `value`.
    fn fill(&self, offset: usize, len: usize, value: u8);
    /// Reads one 32-bit word.
    fn read_u32(&self, offset: usize) -> u32;
    /// Writes one 32-bit word.
    fn write_u32(&self, offset: usize, value: u32);
    /// Reads one 64-bit word.
    fn read_u64(&self, offset: usize) -> u64;
    /// Writes one 64-bit word.
    fn write_u64(&self, offset: usize, value: u64);
    /// Writes 64-bit words one after the other, as [`write_u64`](Self::write_u64) does each.
    #[inline]
    fn write_words<const N: usize>(&self, offset: usize, words: [u64; N]) {
        for (word, at) in words.into_iter().zip((offset..).step_by(8)) {
            self.write_u64(at, word);
        }
    }
}
