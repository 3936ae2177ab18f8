//! Ordering between the CPU and a device, by purpose.

use core::sync::atomic::{Ordering, fence};

/// Makes everything written to DMA memory so far visible to the device before anything written after it.
///
/// Stands between filling a descriptor and handing it over (owner bit, doorbell record, doorbell).
#[inline]
pub fn publish() {
    // A full fence, not `Release`: a doorbell register is not ordinary memory, and stores through a write-combining
    // mapping are not ordered by the stores before them. On x86-64 this is one `mfence`.
    fence(Ordering::SeqCst);
}

/// Keeps reads of what the device wrote from moving before the read that found it ready.
///
/// Stands between reading an owner bit or a producer index and reading the entry it covers.
#[inline]
pub fn observe() {
    fence(Ordering::Acquire);
}
