//! Counters of a card's work.

/// One card's counters since it was added to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Doorbell writes into BAR 2.
    pub doorbells: u64,
    /// Firmware commands.
    pub commands: u64,
    /// Packets handed to the fabric.
    pub packets_sent: u64,
    /// Packets taken from the fabric.
    pub packets_received: u64,
    /// Payload bytes handed to the fabric.
    pub bytes_sent: u64,
    /// Payload bytes taken from the fabric.
    pub bytes_received: u64,
    /// Packets sent again after a timeout or a NAK.
    pub retransmitted: u64,
    /// Reads of the node's memory, but for those of send queues ahead of their doorbell.
    pub dma_reads: u64,
    /// Writes to the node's memory.
    pub dma_writes: u64,
    /// MSI-X messages, and events that asked for the interrupt pin.
    pub interrupts: u64,
}
