//! Tasks that wait for a free slot of a connection.

use alloc::vec::Vec;
use core::task::Waker;

/// Wakes all who wait. Not inline: often looked at, seldom done.
#[inline(never)]
pub(crate) fn wake_all(waiters: &mut Vec<Waker>) {
    waiters.drain(..).for_each(Waker::wake);
}

/// The wakers of tasks that wait, each once.
#[derive(Debug)]
pub(crate) struct Waiters {
    wakers: Vec<Waker>,
    max: usize,
}

/// Too many tasks wait already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMany {
    /// Number of waiters at most.
    pub(crate) limit: usize,
}

impl Waiters {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            wakers: Vec::with_capacity(max),
            max,
        }
    }

    /// Keeps a waker; false if it was there already.
    pub(crate) fn keep(&mut self, waker: &Waker) -> Result<bool, TooMany> {
        if self.wakers.iter().any(|known| known.will_wake(waker)) {
            return Ok(false);
        }
        if self.wakers.len() >= self.max {
            return Err(TooMany { limit: self.max });
        }
        self.wakers.push(waker.clone());
        Ok(true)
    }

    #[inline]
    pub(crate) fn wake(&mut self) {
        if !self.wakers.is_empty() {
            wake_all(&mut self.wakers);
        }
    }
}
