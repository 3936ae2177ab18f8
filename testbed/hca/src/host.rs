//! Interface of a card to its machine: DMA and interrupts.

/// A device address that the machine has no memory for, or not with this right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no memory for DMA at {addr:#x}, {len} bytes")]
pub struct DmaError {
    /// The device address of the access.
    pub addr: u64,
    /// Its length in bytes.
    pub len: usize,
}

/// One node's machine, as its card reaches it.
///
/// The node's processors run meanwhile: memory changes at any time, and what the card reads it
/// checks.
///
/// Implementers promise three things:
///
/// * An access of exactly 4 or 8 bytes at a multiple of its length is one untorn access: doorbell
///   records, owner words and atomics depend on it.
/// * An access sees everything that the node's processors stored before the register access which
///   led to it.
/// * Writes become visible in the order in which they were made, and all of them before a
///   [`raise`](Self::raise) that follows.
///
/// No method may call back into the [`Cluster`](crate::Cluster).
pub trait Host: Send + Sync {
    /// Reads `into.len()` bytes at device address `addr`.
    ///
    /// # Errors
    ///
    /// When a part of the range is no memory that devices can reach.
    fn dma_read(&self, addr: u64, into: &mut [u8]) -> Result<(), DmaError>;

    /// Writes `from` at device address `addr`.
    ///
    /// # Errors
    ///
    /// When a part of the range is no memory that devices can reach; a part of the bytes may have
    /// been written.
    fn dma_write(&self, addr: u64, from: &[u8]) -> Result<(), DmaError>;

    /// Sends MSI-X message `vector`. Masking and the pending bits are the machine's.
    fn raise(&self, vector: u16);

    /// Asserts or deasserts the interrupt pin, which stands in for MSI-X messages while these are
    /// off. A machine without the line need not do anything.
    fn set_pin(&self, asserted: bool) {
        let _ = asserted;
    }
}
