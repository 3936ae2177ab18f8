//! Processes as files (`pidfd`): readable when the process has ended.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Once;

use crate::error::{Result, errno};
use crate::object::{Object, POLL_HUP, POLL_IN, POLL_RDNORM};
use crate::wait::WaitQueue;

/// The end of one process, and the tasks that wait for it. Outlives the process, whose number may
/// be another's then.
#[derive(Debug, Default)]
pub(crate) struct Lifetime {
    ended: AtomicBool,
    /// Nobody can ask any more how it ended.
    forgotten: AtomicBool,
    queue: WaitQueue,
}

impl Lifetime {
    /// Notes that the process's number is free again.
    pub(crate) fn forget(&self) {
        self.forgotten.store(true, Ordering::Release);
        self.end();
    }

    /// Notes the end.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.queue.wake();
    }
}

/// A process as a file.
#[derive(Debug, Default)]
pub(crate) struct PidFd {
    /// The process's number and life, once there is a process.
    of: Once<(u32, Arc<Lifetime>)>,
    /// Stands in until then.
    none: WaitQueue,
}

impl PidFd {
    /// Makes the file that of a process.
    pub(crate) fn name(&self, pid: u32, lifetime: &Arc<Lifetime>) {
        self.of.call_once(|| (pid, lifetime.clone()));
    }

    /// Returns the process's number and life.
    pub(crate) fn of(&self) -> Option<&(u32, Arc<Lifetime>)> {
        self.of.get()
    }
}

impl Object for PidFd {
    fn name(&self) -> &[u8] {
        b"anon_inode:[pidfd]"
    }
    fn read(&self, _: &mut [u8]) -> Result<usize> {
        Err(errno::EINVAL.into())
    }
    fn write(&self, _: &[u8]) -> Result<usize> {
        Err(errno::EINVAL.into())
    }
    fn ready(&self) -> u16 {
        let Some((_, lifetime)) = self.of() else {
            return 0;
        };
        let bit = |flag: &AtomicBool, bits| {
            if flag.load(Ordering::Acquire) {
                bits
            } else {
                0
            }
        };
        bit(&lifetime.ended, POLL_IN | POLL_RDNORM) | bit(&lifetime.forgotten, POLL_HUP)
    }
    fn queue(&self) -> &WaitQueue {
        self.of()
            .map_or(&self.none, |(_, lifetime)| &lifetime.queue)
    }
    fn as_pidfd(&self) -> Option<&PidFd> {
        Some(self)
    }
    fn mode(&self) -> u32 {
        0o600
    }
    fn readable(&self) -> usize {
        0
    }
}
