//! The second interface of futexes: waits for several words (`futex_waitv`), and `futex_wait`,
//! `futex_wake`, `futex_requeue` with a size in their flags (Linux `kernel/futex/syscalls.c`).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::Poll;

use super::{Args, int};
use crate::error::{Result, errno};
use crate::futex::{ANY, Waiter};
use crate::process::Node;
use crate::thread::Thread;

/// Words that one call may wait for (`FUTEX_WAITV_MAX`).
const MAX_WORDS: u32 = 128;
/// Bytes of `struct futex_waitv`.
const ENTRY: usize = 24;
/// The size of a word in the flags; only words of 32 bits exist.
const SIZE: u32 = 3;
const SIZE_U32: u32 = 2;
const PRIVATE: u32 = 0x80;
const CLOCK_REALTIME: u32 = 0;
const CLOCK_MONOTONIC: u32 = 1;

/// A word to wait for (`struct futex_waitv`).
struct Wanted {
    value: u32,
    addr: u64,
    private: bool,
}

/// Returns whether the flags name a word of the process's own.
fn is_private(flags: u32) -> Result<bool> {
    if flags & !(SIZE | PRIVATE) != 0 || flags & SIZE != SIZE_U32 {
        return Err(errno::EINVAL.into());
    }
    Ok(flags & PRIVATE != 0)
}

/// Returns a value or mask of the size that words have.
fn word(value: u64) -> Result<u32> {
    u32::try_from(value).map_err(|_| errno::EINVAL.into())
}

impl<N: Node> Thread<N> {
    /// Reads `count` entries of a program's list.
    async fn wanted(&self, addr: u64, count: u32) -> Result<Vec<Wanted>> {
        let mut bytes = alloc::vec![0; ENTRY * count as usize];
        self.memory.read(addr, &mut bytes).await?;
        let entries = bytes.chunks_exact(ENTRY).map(|entry| {
            let long = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("eight"));
            let (value, addr, flags) = (long(0), long(8), long(16));
            if flags >> 32 != 0 {
                return Err(errno::EINVAL.into());
            }
            let private = is_private(int(flags))?;
            let value = word(value)?;
            Ok(Wanted {
                value,
                addr,
                private,
            })
        });
        entries.collect()
    }

    /// Returns the end of an absolute timeout; `None` for none.
    async fn wait_end(&self, timeout: u64, clock: u64) -> Result<Option<hal::Instant>> {
        match (timeout, int(clock)) {
            (0, _) => Ok(None),
            (addr, CLOCK_REALTIME) => Ok(Some(self.futex_deadline(addr, true).await?)),
            (addr, CLOCK_MONOTONIC) => Ok(Some(self.futex_deadline(addr, false).await?)),
            _ => Err(errno::EINVAL.into()),
        }
    }

    pub(super) async fn sys_futex_waitv(
        &self,
        [list, count, flags, timeout, clock, _]: Args,
    ) -> Result<u64> {
        let count = int(count);
        if int(flags) != 0 || count == 0 || count > MAX_WORDS || list == 0 {
            return Err(errno::EINVAL.into());
        }
        let end = self.wait_end(timeout, clock).await?;
        let wanted = self.wanted(list, count).await?;
        let mut waiters = Vec::with_capacity(wanted.len());
        for each in &wanted {
            match self.queue_for(each).await {
                Ok(waiter) => waiters.push(waiter),
                // A word that was woken meanwhile counts more than one that has changed.
                Err(error) => return self.leave(&waiters).ok_or(error),
            }
        }
        let any = poll_fn(|context| {
            // Each is polled, as each keeps the waker.
            let woken = waiters.iter().filter(|waiter| waiter.poll(context.waker()));
            if woken.count() > 0 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        let waited = self.unless_called(self.unless_late(any, end)).await;
        if let Some(index) = self.leave(&waiters) {
            return Ok(index);
        }
        waited?;
        Err(errno::ETIMEDOUT.into())
    }

    /// Queues this thread for a word if that has its value.
    async fn queue_for(&self, wanted: &Wanted) -> Result<Arc<Waiter>> {
        let key = self.futex_key(wanted.addr, wanted.private)?;
        let futexes = &self.node.kernel().futexes;
        let queue = |read: &dyn Fn() -> Option<u32>| {
            futexes.wait(key, ANY, || read() == Some(wanted.value))
        };
        let queued = self.with_word(wanted.addr, queue).await?;
        queued.ok_or_else(|| errno::EAGAIN.into())
    }

    /// Leaves all queues; returns the number of the last word that was woken.
    fn leave(&self, waiters: &[Arc<Waiter>]) -> Option<u64> {
        let futexes = &self.node.kernel().futexes;
        let woken = (0..)
            .zip(waiters)
            .filter(|(_, waiter)| !futexes.cancel(waiter));
        woken.map(|(index, _)| index).last()
    }

    pub(super) async fn sys_futex_wait(
        &self,
        [addr, value, mask, flags, timeout, clock]: Args,
    ) -> Result<u64> {
        let private = is_private(int(flags))?;
        let (value, mask) = (word(value)?, word(mask)?);
        if mask == 0 {
            return Err(errno::EINVAL.into());
        }
        let end = self.wait_end(timeout, clock).await?;
        let key = self.futex_key(addr, private)?;
        self.wait_futex(addr, key, value, mask, end).await
    }

    pub(super) fn sys_futex_wake(&self, [addr, mask, count, flags, ..]: Args) -> Result<u64> {
        let private = is_private(int(flags))?;
        let mask = word(mask)?;
        if mask == 0 {
            return Err(errno::EINVAL.into());
        }
        let key = self.futex_key(addr, private)?;
        let futexes = &self.node.kernel().futexes;
        Ok(futexes.wake(key, int(count), mask)?.into())
    }

    pub(super) async fn sys_futex_requeue(
        &self,
        [list, flags, wake, move_on, ..]: Args,
    ) -> Result<u64> {
        if int(flags) != 0 || list == 0 {
            return Err(errno::EINVAL.into());
        }
        let (wake, move_on) = (int(wake), int(move_on));
        if wake.cast_signed() < 0 || move_on.cast_signed() < 0 {
            return Err(errno::EINVAL.into());
        }
        let wanted = self.wanted(list, 2).await?;
        let [from, to] = &wanted[..] else {
            return Err(errno::EINVAL.into());
        };
        let key = self.futex_key(from.addr, from.private)?;
        let to = (to.addr, to.private);
        let counts = (wake, move_on);
        self.requeue_futex((from.addr, key), to, counts, Some(from.value))
            .await
    }
}
