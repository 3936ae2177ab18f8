//! Signals that are read (`signalfd`).
//!
//! A read takes from the signals of the thread that reads and of its process, so what is ready
//! depends on who asks: `read` and `poll` look at the thread, the object only knows the set.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Result, errno};
use crate::object::Object;
use crate::signals::{SignalInfo, blockable};
use crate::wait::WaitQueue;

/// Bytes of `struct signalfd_siginfo`.
pub(crate) const SIGNAL_SIZE: usize = 128;

/// A set of signals.
#[derive(Debug)]
pub(crate) struct SignalFile {
    set: AtomicU64,
    /// Wait queue of the process that made it.
    queue: Arc<WaitQueue>,
}

impl SignalFile {
    pub(crate) fn new(set: u64, queue: Arc<WaitQueue>) -> Self {
        Self {
            set: AtomicU64::new(blockable(set)),
            queue,
        }
    }

    pub(crate) fn set(&self) -> u64 {
        self.set.load(Ordering::Relaxed)
    }

    pub(crate) fn replace(&self, set: u64) {
        self.set.store(blockable(set), Ordering::Relaxed);
        self.queue.wake();
    }
}

/// Returns the bytes of `struct signalfd_siginfo` (Linux `include/uapi/linux/signalfd.h`).
pub(crate) fn encode(info: &SignalInfo) -> [u8; SIGNAL_SIZE] {
    let mut bytes = [0; SIGNAL_SIZE];
    let mut put = |at: usize, word: u64, len: usize| {
        bytes[at..at + len].copy_from_slice(&word.to_le_bytes()[..len]);
    };
    let [first, second] = info.fields;
    put(0, info.signal.into(), 4);
    put(8, u64::from(info.code.cast_unsigned()), 4);
    if info.timer_id().is_some() {
        put(24, first, 4);
        put(32, info.overrun(), 4);
        put(44, second, 4);
        put(48, second, 8);
    } else {
        put(12, first, 4);
        put(16, first >> 32, 4);
        // The status of a child, or the value that was sent.
        put(40, second, 4);
        put(44, second, 4);
        put(48, second, 8);
    }
    bytes
}

impl Object for SignalFile {
    fn name(&self) -> &[u8] {
        b"anon_inode:[signalfd]"
    }
    fn read(&self, _: &mut [u8]) -> Result<usize> {
        Err(errno::EAGAIN.into())
    }
    fn write(&self, _: &[u8]) -> Result<usize> {
        Err(errno::EINVAL.into())
    }
    fn ready(&self) -> u16 {
        0
    }
    fn queue(&self) -> &WaitQueue {
        &self.queue
    }
    fn as_signals(&self) -> Option<&SignalFile> {
        Some(self)
    }
    fn mode(&self) -> u32 {
        0o600
    }
    fn readable(&self) -> usize {
        0
    }
}
