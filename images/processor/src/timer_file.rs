//! Timers that are read (`timerfd`).

use alloc::sync::Arc;

use crate::error::{Result, errno};
use crate::object::{Object, POLL_IN, POLL_RDNORM};
use crate::timer::{Clock, Target, Timer, Timers};
use crate::wait::WaitQueue;

/// A timer whose expiries are counted until they are read.
#[derive(Debug)]
pub(crate) struct TimerFile {
    timer: Arc<Timer>,
    queue: Arc<WaitQueue>,
}

impl TimerFile {
    pub(crate) fn new(timers: &Arc<Timers>, clock: Clock) -> Self {
        let queue = Arc::<WaitQueue>::default();
        Self {
            timer: Arc::new(Timer::new(timers, clock, Target::File(queue.clone()))),
            queue,
        }
    }
}

impl Object for TimerFile {
    fn name(&self) -> &[u8] {
        b"anon_inode:[timerfd]"
    }
    fn read(&self, into: &mut [u8]) -> Result<usize> {
        let into = into.get_mut(..8).ok_or(errno::EINVAL)?;
        let expired = self.timer.take_expired();
        if expired == 0 {
            return Err(errno::EAGAIN.into());
        }
        into.copy_from_slice(&expired.to_le_bytes());
        Ok(8)
    }
    fn write(&self, _: &[u8]) -> Result<usize> {
        Err(errno::EINVAL.into())
    }
    fn ready(&self) -> u16 {
        if self.timer.has_expired() {
            POLL_IN | POLL_RDNORM
        } else {
            0
        }
    }
    fn queue(&self) -> &WaitQueue {
        &self.queue
    }
    fn as_timer(&self) -> Option<&Arc<Timer>> {
        Some(&self.timer)
    }
    fn mode(&self) -> u32 {
        0o600
    }
    fn readable(&self) -> usize {
        0
    }
}
