//! Ordering between the CPU and a device, by purpose.

use core::sync::atomic::{Ordering, fence};

/// Makes everything written to DMA memory so far visible to the device before anything written
/// after it.
///
/// Stands between filling a descriptor and handing it over (owner bit, doorbell record, doorbell).
#[inline]
pub fn publish() {
    // A full fence, not `Release`: a doorbell register is not ordinary memory, and stores through a
    // write-combining mapping are not ordered by the stores before them. On x86-64 this is one
    // `mfence`.
    fence(Ordering::SeqCst);
}

/// Makes what was written to DMA memory so far visible to the device no later than what is written
/// to DMA memory after it.
///
/// Stands between the body of a descriptor and its owner bit where [`publish`] follows before the
/// doorbell: both are ordinary memory. On x86-64 stores to it become visible in order, so it is no
/// instruction, as Linux's `dma_wmb` in `mlx4_en_xmit` is none.
#[inline]
pub fn order() {
    fence(Ordering::Release);
}

/// Keeps reads of what the device wrote from moving before the read that found it ready.
///
/// Stands between reading an owner bit or a producer index and reading the entry it covers.
#[inline]
pub fn observe() {
    fence(Ordering::Acquire);
}
