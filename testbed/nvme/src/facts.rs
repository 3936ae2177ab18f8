//! A controller's facts and faults.

use hal::Duration;

/// A controller's facts.
#[derive(Debug, Clone)]
pub struct ControllerFacts {
    /// Seed of all that is random.
    pub seed: u64,
    /// Bytes of a block, as a power of 2.
    pub block_shift: u8,
    /// Blocks of namespace 1.
    pub blocks: u64,
    /// MDTS: the longest transfer, as a power of 2 of a page; 0 for no limit.
    pub max_transfer: u8,
    /// There is a volatile write cache.
    pub write_cache: bool,
    /// The namespace is write protected.
    pub read_only: bool,
    /// Pairs of I/O queues that it gives.
    pub queues: u16,
    /// CAP.MQES: entries of a queue, less one.
    pub max_queue_entries: u16,
    /// CAP.DSTRD.
    pub stride: u8,
    /// CAP.TO, in units of 500 ms.
    pub timeout: u8,
    /// Time that it takes to start and to stop.
    pub start: Duration,
    /// The longest time that a command takes.
    pub latency: Duration,
    /// It has MSI-X.
    pub msix: bool,
    /// Its faults.
    pub faults: Faults,
}

impl Default for ControllerFacts {
    fn default() -> Self {
        Self {
            seed: 1,
            block_shift: 9,
            blocks: 4096,
            max_transfer: 7,
            write_cache: true,
            read_only: false,
            queues: 4,
            max_queue_entries: 1023,
            stride: 0,
            timeout: 4,
            start: Duration::from_millis(20),
            latency: Duration::from_micros(20),
            msix: true,
            faults: Faults::default(),
        }
    }
}

/// Faults, in one of a thousand commands unless they say otherwise.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// A read or write fails by its medium.
    pub media_error: u16,
    /// A command fails with a status that allows a retry.
    pub passing_error: u16,
    /// A command takes 100 s.
    pub late: u16,
    /// A late command ignores an abort.
    pub deaf: bool,
    /// A completion names another command.
    pub wrong_id: u16,
    /// A completion names another queue.
    pub wrong_queue: u16,
    /// A completion comes twice.
    pub twice: u16,
    /// The controller fails: CSTS.CFS.
    pub fatal: u16,
    /// The controller is pulled: all reads are ones.
    pub unplug: u16,
    /// From now on it does nothing any more, not even a reset.
    pub dead: u16,
    /// An interrupt is lost.
    pub lost_interrupt: u16,
    /// Bytes of identify data that are changed, in all.
    pub spoiled_bytes: u16,
    /// Faults begin after so many commands, so that it comes up first.
    pub after: u64,
}
