//! futex, and what threads leave for their end: `set_tid_address`, `set_robust_list`.

use alloc::sync::Arc;
use core::cell::Cell;
use core::future::poll_fn;
use core::sync::atomic::Ordering;
use core::task::Poll;
use core::time::Duration;

use pcache::Access;

use super::futex_pi::operation;
use super::{Args, int};
use crate::error::{Result, errno};
use crate::futex::{ANY, Key};
use crate::mm::Tables;
use crate::mm::vma::Backing;
use crate::platform::Platform;
use crate::process::Node;
use crate::thread::Thread;
use crate::wait::either;

/// Operations, and the bits beside them (Linux `include/uapi/linux/futex.h`).
const COMMAND: u64 = 0x7f;
const PRIVATE: u64 = 0x80;
const CLOCK_REALTIME: u64 = 0x100;
const WAIT: u64 = 0;
const WAKE: u64 = 1;
const REQUEUE: u64 = 3;
const CMP_REQUEUE: u64 = 4;
const WAKE_OP: u64 = 5;
const WAIT_BITSET: u64 = 9;
const WAKE_BITSET: u64 = 10;
const WAIT_REQUEUE_PI: u64 = 11;
const LOCK_PI2: u64 = 13;
/// Bytes of the head of a robust list.
const ROBUST_HEAD: u64 = 24;

impl<N: Node> Thread<N> {
    pub(super) fn sys_set_tid_address(&mut self, addr: u64) -> u64 {
        self.clear_tid = addr;
        self.tid().into()
    }

    pub(super) fn sys_set_robust_list(&self, [head, len, ..]: Args) -> Result<u64> {
        if len != ROBUST_HEAD {
            return Err(errno::EINVAL.into());
        }
        self.shared.robust_list.store(head, Ordering::Relaxed);
        Ok(0)
    }

    pub(super) async fn sys_get_robust_list(&self, [tid, head, len, ..]: Args) -> Result<u64> {
        let list = match int(tid) {
            0 => self.shared.robust_list.load(Ordering::Relaxed),
            tid => {
                let process = self.node.kernel().process_of(tid).ok_or(errno::ESRCH)?;
                let thread = process.threads.lock().get(&tid).cloned();
                thread
                    .ok_or(errno::ESRCH)?
                    .robust_list
                    .load(Ordering::Relaxed)
            }
        };
        self.memory.write_words(len, &[ROBUST_HEAD]).await?;
        self.memory.write_words(head, &[list]).await?;
        Ok(0)
    }

    pub(super) async fn sys_futex(
        &self,
        [addr, op, value, timeout, second, third]: Args,
    ) -> Result<u64> {
        let (value, private, realtime) = (int(value), op & PRIVATE != 0, op & CLOCK_REALTIME != 0);
        if realtime && !matches!(op & COMMAND, WAIT_BITSET | WAIT_REQUEUE_PI | LOCK_PI2) {
            return Err(errno::ENOSYS.into());
        }
        let key = self.futex_key(addr, private)?;
        let futexes = &self.node.kernel().futexes;
        match op & COMMAND {
            WAKE => Ok(futexes.wake(key, value, ANY)?.into()),
            WAKE_BITSET if int(third) == 0 => Err(errno::EINVAL.into()),
            WAKE_BITSET => Ok(futexes.wake(key, value, int(third))?.into()),
            WAIT => {
                let end = match timeout {
                    0 => None,
                    addr => Some(self.now() + self.timespec(addr).await?),
                };
                self.wait_futex(addr, key, value, ANY, end).await
            }
            WAIT_BITSET if int(third) == 0 => Err(errno::EINVAL.into()),
            WAIT_BITSET => {
                let end = match timeout {
                    0 => None,
                    addr => Some(self.futex_deadline(addr, realtime).await?),
                };
                self.wait_futex(addr, key, value, int(third), end).await
            }
            command @ (REQUEUE | CMP_REQUEUE) => {
                let compare = (command == CMP_REQUEUE).then_some(int(third));
                self.requeue_futex(
                    (addr, key),
                    (second, private),
                    (value, int(timeout)),
                    compare,
                )
                .await
            }
            WAKE_OP => {
                self.wake_op((key, value), (second, private), int(timeout), int(third))
                    .await
            }
            command => match operation(command, realtime) {
                Some(operation) => {
                    let rest = [timeout, second, third];
                    self.operate_pi(operation, (addr, key), value, private, rest)
                        .await
                }
                None => Err(self.unknown(u64::from(linux_raw_sys::general::__NR_futex))),
            },
        }
    }

    /// Returns the time at which an absolute timeout is over.
    pub(super) async fn futex_deadline(&self, addr: u64, realtime: bool) -> Result<hal::Instant> {
        let at = self.timespec(addr).await?;
        let now = if realtime {
            self.node.platform().wall_clock()
        } else {
            Duration::from_nanos(self.now().nanos)
        };
        Ok(self.now() + at.saturating_sub(now))
    }

    /// Returns what identifies a word: its address, or its place in a shared object.
    ///
    /// # Errors
    ///
    /// EINVAL unless the address is aligned, EFAULT for a shared word that nothing maps.
    pub(super) fn futex_key(&self, addr: u64, private: bool) -> Result<Key> {
        if !addr.is_multiple_of(4) {
            return Err(errno::EINVAL.into());
        }
        let own = Key::Private(self.memory.tables().space(), addr);
        if private {
            return Ok(own);
        }
        self.memory.with_vmas(|vmas| {
            let (range, vma) = vmas.find(addr).ok_or(errno::EFAULT)?;
            Ok(match &vma.backing {
                Backing::Object(object, first) => {
                    let byte = first * messages::PAGE_SIZE + (addr - range.start);
                    Key::Shared(Arc::as_ptr(object) as usize, byte)
                }
                // Shared by who maps the same bytes of a file, if stores go there.
                Backing::File(file, first) if vma.is_shared() => {
                    let byte = first * messages::PAGE_SIZE + (addr - range.start);
                    Key::Shared(Arc::as_ptr(file).addr(), byte)
                }
                _ => own,
            })
        })
    }

    /// Wakes waiters on a word of this address space.
    pub(crate) fn wake_futex(&self, addr: u64, count: u32, bits: u32) {
        let futexes = &self.node.kernel().futexes;
        for private in [true, false] {
            if let Ok(key) = self.futex_key(addr, private) {
                // A lock that is waited for is not woken like this.
                let _ = futexes.wake(key, count, bits);
            }
        }
    }

    /// Reads a word whose page is here; `None` if it has to be brought first.
    pub(super) fn word_now(&self, addr: u64) -> Option<u32> {
        let entry = self.memory.tables().entry(addr)?;
        let mut bytes = [0; 4];
        let offset = usize::try_from(addr % messages::PAGE_SIZE).expect("less than a page");
        let cache = self.node.cache();
        let here = cache.copy_out(entry, Access::Read, offset, &mut bytes);
        here.then(|| u32::from_le_bytes(bytes))
    }

    /// Calls `act` with a way to read the word without waiting, until that could be read.
    pub(super) async fn with_word<T>(
        &self,
        addr: u64,
        mut act: impl FnMut(&dyn Fn() -> Option<u32>) -> T,
    ) -> Result<T> {
        loop {
            if let Some(done) = self.try_with_word(addr, &mut act) {
                return Ok(done);
            }
            self.memory.read(addr, &mut [0; 4]).await?;
        }
    }

    fn try_with_word<T>(
        &self,
        addr: u64,
        act: impl FnOnce(&dyn Fn() -> Option<u32>) -> T,
    ) -> Option<T> {
        let away = Cell::new(false);
        let read = || {
            let word = self.word_now(addr);
            away.set(word.is_none());
            word
        };
        let done = act(&read);
        (!away.get()).then_some(done)
    }

    pub(super) async fn wait_futex(
        &self,
        addr: u64,
        key: Key,
        value: u32,
        bits: u32,
        end: Option<hal::Instant>,
    ) -> Result<u64> {
        let futexes = &self.node.kernel().futexes;
        let queue =
            |read: &dyn Fn() -> Option<u32>| futexes.wait(key, bits, || read() == Some(value));
        let waiter = self.with_word(addr, queue).await?.ok_or(errno::EAGAIN)?;
        let woken = poll_fn(|context| {
            if waiter.poll(context.waker()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        let waited = self.unless_called(self.unless_late(woken, end)).await;
        let woken = matches!(waited, Ok(Some(()))) || !futexes.cancel(&waiter);
        if woken {
            return Ok(0);
        }
        waited?;
        Err(errno::ETIMEDOUT.into())
    }

    /// Waits until `end`, if there is one; `None` if that comes first.
    pub(super) async fn unless_late<T>(
        &self,
        wait: impl Future<Output = T>,
        end: Option<hal::Instant>,
    ) -> Option<T> {
        match end {
            None => Some(wait.await),
            Some(end) => either(wait, self.node.platform().sleep_until(end)).await,
        }
    }

    pub(super) async fn requeue_futex(
        &self,
        (addr, from): (u64, Key),
        (to, private): (u64, bool),
        counts: (u32, u32),
        compare: Option<u32>,
    ) -> Result<u64> {
        let to = self.futex_key(to, private)?;
        let futexes = &self.node.kernel().futexes;
        let act = |read: &dyn Fn() -> Option<u32>| {
            let expected = || compare.is_none_or(|value| read() == Some(value));
            futexes.requeue(from, to, counts, expected)
        };
        let (woken, moved) = self.with_word(addr, act).await?.ok_or(errno::EAGAIN)??;
        // Linux counts those that moved only where it compared.
        Ok((woken + if compare.is_some() { moved } else { 0 }).into())
    }

    /// Changes the second word, wakes waiters on the first, and on the second if the old value says
    /// so.
    async fn wake_op(
        &self,
        (key, count): (Key, u32),
        (second, private): (u64, bool),
        second_count: u32,
        op: u32,
    ) -> Result<u64> {
        let second_key = self.futex_key(second, private)?;
        let (mut argument, compare) = ((op >> 12) & 0xfff, op & 0xfff);
        if op & 0x8000_0000 != 0 {
            argument = 1 << (argument & 31);
        }
        let new = |old: u32| match op >> 28 & 7 {
            0 => Some(argument),
            1 => Some(old.wrapping_add(argument)),
            2 => Some(old | argument),
            3 => Some(old & !argument),
            4 => Some(old ^ argument),
            _ => None,
        };
        let old = self.memory.change_word(second, new).await?;
        let (signed, other) = (old.cast_signed(), sign_extended(compare));
        let due = match op >> 24 & 15 {
            0 => signed == other,
            1 => signed != other,
            2 => signed < other,
            3 => signed <= other,
            4 => signed > other,
            5 => signed >= other,
            _ => return Err(errno::ENOSYS.into()),
        };
        let futexes = &self.node.kernel().futexes;
        let mut woken = futexes.wake(key, count, ANY)?;
        if due {
            woken += futexes.wake(second_key, second_count, ANY)?;
        }
        Ok(woken.into())
    }
}

/// Extends the sign of twelve bits.
fn sign_extended(bits: u32) -> i32 {
    (bits << 20).cast_signed() >> 20
}
