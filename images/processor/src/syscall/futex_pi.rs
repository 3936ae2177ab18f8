//! futex's operations on locks with priority inheritance, and what becomes of locks when their
//! owner ends (robust lists).

use alloc::sync::Arc;
use core::future::poll_fn;
use core::sync::atomic::Ordering;
use core::task::Poll;

use super::int;
use crate::error::{Error, Result, errno};
use crate::futex::pi::{Attempt, Locked, Locker, OWNER_DIED, TID, WAITERS, WaiterEnd, Word};
use crate::futex::{ANY, Key, Waiter};
use crate::mm::Tables;
use crate::process::Node;
use crate::thread::Thread;

/// Locks that a dead thread may have held are looked through no further (Linux's
/// `ROBUST_LIST_LIMIT`).
const ROBUST_LIMIT: usize = 2048;

/// A word of the thread's memory, for the kernel's changes.
struct Own<'a, N: Node> {
    thread: &'a Thread<N>,
    addr: u64,
}

impl<N: Node> Word for Own<'_, N> {
    fn load(&self) -> Option<u32> {
        self.thread.word_now(self.addr)
    }

    fn exchange(&self, old: u32, new: u32) -> Option<()> {
        let entry = self.thread.memory.tables().entry(self.addr)?;
        let offset = usize::try_from(self.addr % messages::PAGE_SIZE).expect("less than a page");
        let exchanged = self.thread.node.cache().exchange(entry, offset, old, new)?;
        exchanged.ok().map(drop)
    }
}

/// An entry of a robust list: its address, and whether its lock is one of this module's.
fn robust_entry(word: u64) -> (u64, bool) {
    (word & !1, word & 1 != 0)
}

impl<N: Node> Thread<N> {
    fn locker(&self) -> Locker {
        let (_, priority) = self.shared.policy();
        Locker {
            tid: self.tid(),
            priority,
        }
    }

    /// Returns whether a thread lives that may own a lock.
    fn may_own(&self, tid: u32) -> bool {
        let process = self.node.kernel().process_of(tid);
        let thread = process.and_then(|process| process.threads.lock().get(&tid).cloned());
        thread.is_some_and(|thread| !thread.left_locks.load(Ordering::Relaxed))
    }

    /// Makes an attempt at a word again until that is here and holds still.
    async fn with_lock<T>(
        &self,
        addr: u64,
        mut act: impl FnMut(&dyn Word) -> Attempt<T>,
    ) -> Result<T> {
        loop {
            if let Some(done) = act(&Own { thread: self, addr }) {
                return done.map_err(Error::from);
            }
            if self.process.must_end(self.tid()) {
                return Err(errno::ERESTARTNOINTR.into());
            }
            self.bring_word(addr).await?;
        }
    }

    /// Brings a word's page, to be written.
    async fn bring_word(&self, addr: u64) -> Result<()> {
        self.memory.change_word(addr, Some).await.map(drop)
    }

    /// `FUTEX_LOCK_PI`, `FUTEX_LOCK_PI2`, and `FUTEX_TRYLOCK_PI` if it does not wait.
    pub(super) async fn lock_pi(
        &self,
        (addr, key): (u64, Key),
        waits: bool,
        end: Option<hal::Instant>,
    ) -> Result<u64> {
        let futexes = &self.node.kernel().futexes;
        let by = self.locker();
        let lives = |tid: u32| self.may_own(tid);
        let locked = self
            .with_lock(addr, |word| futexes.lock(key, by, waits, word, &lives))
            .await?;
        match locked {
            Locked::Taken => Ok(0),
            Locked::Queued(waiter) => self
                .wait_for_lock((addr, key), &waiter, end)
                .await
                .map_err(|(_, error)| error),
        }
    }

    /// Waits for a lock, or for the move to one and that; `to` is the lock.
    async fn wait_for_lock(
        &self,
        to: (u64, Key),
        waiter: &Arc<Waiter>,
        end: Option<hal::Instant>,
    ) -> core::result::Result<u64, (WaiterEnd, Error)> {
        let woken = poll_fn(|context| {
            if waiter.poll(context.waker()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        let waited = self.unless_called(self.unless_late(woken, end)).await;
        let left = self.node.kernel().futexes.leave(waiter);
        match (left, waited) {
            (WaiterEnd::Owner, _) => Ok(0),
            (WaiterEnd::Heir, _) => self.inherit(to).await.map_err(|error| (left, error)),
            (_, Err(_)) => Err((left, errno::ERESTARTNOINTR.into())),
            (_, Ok(_)) => Err((left, errno::ETIMEDOUT.into())),
        }
    }

    /// Takes over the lock of an owner that died, even if this thread is to end itself.
    async fn inherit(&self, (addr, key): (u64, Key)) -> Result<u64> {
        let futexes = &self.node.kernel().futexes;
        while futexes
            .inherit(key, self.tid(), &Own { thread: self, addr })
            .is_none()
        {
            if let Err(error) = self.bring_word(addr).await {
                futexes.disclaim(key);
                return Err(error);
            }
        }
        Ok(0)
    }

    pub(super) async fn unlock_pi(&self, (addr, key): (u64, Key)) -> Result<u64> {
        let futexes = &self.node.kernel().futexes;
        let tid = self.tid();
        self.with_lock(addr, |word| futexes.unlock(key, tid, word))
            .await?;
        Ok(0)
    }

    /// `FUTEX_WAIT_REQUEUE_PI`: waits on the first word to be moved to the lock `second`.
    pub(super) async fn wait_requeue_pi(
        &self,
        (addr, key): (u64, Key),
        value: u32,
        (second, private): (u64, bool),
        end: Option<hal::Instant>,
    ) -> Result<u64> {
        let to = self.futex_key(second, private)?;
        if key == to {
            return Err(errno::EINVAL.into());
        }
        let futexes = &self.node.kernel().futexes;
        let by = self.locker();
        let queue = |read: &dyn Fn() -> Option<u32>| {
            futexes.wait_for_move((key, to), by, || read() == Some(value))
        };
        let waiter = self.with_word(addr, queue).await?.ok_or(errno::EAGAIN)?;
        match self.wait_for_lock((second, to), &waiter, end).await {
            // The first word has changed since: made again, the call would say this.
            Err((WaiterEnd::Without, Error::Errno(errno::ERESTARTNOINTR))) => {
                Err(errno::EAGAIN.into())
            }
            Err((_, error)) => Err(error),
            Ok(value) => Ok(value),
        }
    }

    /// `FUTEX_CMP_REQUEUE_PI`.
    pub(super) async fn requeue_pi(
        &self,
        (addr, key): (u64, Key),
        (second, private): (u64, bool),
        (wake, most): (u32, u32),
        expected: u32,
    ) -> Result<u64> {
        let to = self.futex_key(second, private)?;
        if wake != 1 || most.cast_signed() < 0 || key == to {
            return Err(errno::EINVAL.into());
        }
        let futexes = &self.node.kernel().futexes;
        let lives = |tid: u32| self.may_own(tid);
        let own = |addr: u64| Own { thread: self, addr };
        let (first, lock) = (own(addr), own(second));
        loop {
            // The first word is only read, and its page may be one that can't be written.
            self.memory.read(addr, &mut [0; 4]).await?;
            let words: (&dyn Word, &dyn Word) = (&first, &lock);
            if let Some(moved) = futexes.move_to_lock((key, expected), to, most, words, &lives) {
                return Ok(moved?.into());
            }
            if self.process.must_end(self.tid()) {
                return Err(errno::ERESTARTNOINTR.into());
            }
            self.bring_word(second).await?;
        }
    }

    /// Tells those that wait for this thread: for its end, and for locks that it held. The thread
    /// `ends`, or runs another program.
    pub(crate) async fn release_locks(&self, ends: bool) -> Result<()> {
        // A program that ends may have unmapped any of this: errors are its own affair.
        match self.walk_robust_list().await {
            Err(Error::Errno(_)) | Ok(()) => {}
            Err(error) => return Err(error),
        }
        let mark = || self.shared.left_locks.store(ends, Ordering::Relaxed);
        self.node.kernel().futexes.exit(self.tid(), mark);
        // Nobody waits for the last user of an address space.
        if self.clear_tid != 0 && Arc::strong_count(&self.memory) > 2 {
            match self.memory.write(self.clear_tid, &[0; 4]).await {
                Ok(()) => self.wake_futex(self.clear_tid, 1, ANY),
                Err(Error::Errno(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Marks the locks of the robust list as those of a dead owner (Linux
    /// `Documentation/locking/robust-futex-ABI.rst`).
    async fn walk_robust_list(&self) -> Result<()> {
        let head = self.shared.robust_list.load(Ordering::Relaxed);
        if head == 0 {
            return Ok(());
        }
        let offset = self.memory.read_u64(head.saturating_add(8)).await?;
        let pending = robust_entry(self.memory.read_u64(head.saturating_add(16)).await?);
        let mut entry = robust_entry(self.memory.read_u64(head).await?);
        for _ in 0..ROBUST_LIMIT {
            let (at, is_pi) = entry;
            if at == head || at == 0 {
                break;
            }
            let next = robust_entry(self.memory.read_u64(at).await?);
            if at != pending.0 {
                self.owner_died(at.wrapping_add(offset), is_pi, false)
                    .await?;
            }
            entry = next;
        }
        if let (at @ 1.., is_pi) = pending {
            self.owner_died(at.wrapping_add(offset), is_pi, true)
                .await?;
        }
        Ok(())
    }

    /// Marks a lock, if it is this thread's, and wakes a waiter; those of a lock with priority
    /// inheritance are the kernel's to wake. `pending`: the thread was about to take or free it.
    async fn owner_died(&self, word: u64, is_pi: bool, pending: bool) -> Result<()> {
        if !word.is_multiple_of(4) {
            return Err(errno::EINVAL.into());
        }
        let tid = self.tid();
        let marked = |value: u32| {
            let own = value & TID == tid;
            Some(if own {
                value & WAITERS | OWNER_DIED
            } else {
                value
            })
        };
        let value = self.memory.change_word(word, marked).await?;
        let wakes = match value & TID {
            // It was freed, and the wake-up has not been made.
            0 => pending,
            owner => owner == tid && value & WAITERS != 0,
        };
        if wakes && !is_pi {
            self.wake_futex(word, 1, ANY);
        }
        Ok(())
    }
}

/// The operations and the clock that each takes its timeout by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operation {
    Lock,
    TryLock,
    Unlock,
    WaitRequeue,
    CompareRequeue,
}

/// Returns the operation of a command and whether its timeout is in wall-clock time.
pub(super) fn operation(command: u64, realtime: bool) -> Option<(Operation, bool)> {
    Some(match command {
        6 => (Operation::Lock, true),
        7 => (Operation::Unlock, false),
        8 => (Operation::TryLock, false),
        11 => (Operation::WaitRequeue, realtime),
        12 => (Operation::CompareRequeue, false),
        13 => (Operation::Lock, realtime),
        _ => return None,
    })
}

impl<N: Node> Thread<N> {
    /// Serves an operation on a lock; `words` are the last three arguments of the call.
    pub(super) async fn operate_pi(
        &self,
        (operation, realtime): (Operation, bool),
        first: (u64, Key),
        value: u32,
        private: bool,
        [timeout, second, third]: [u64; 3],
    ) -> Result<u64> {
        let takes_time = matches!(operation, Operation::Lock | Operation::WaitRequeue);
        let end = match timeout {
            addr if takes_time && addr != 0 => Some(self.futex_deadline(addr, realtime).await?),
            _ => None,
        };
        let second = (second, private);
        match operation {
            Operation::Lock => self.lock_pi(first, true, end).await,
            Operation::TryLock => self.lock_pi(first, false, None).await,
            Operation::Unlock => self.unlock_pi(first).await,
            Operation::WaitRequeue => self.wait_requeue_pi(first, value, second, end).await,
            Operation::CompareRequeue => {
                let counts = (value, int(timeout));
                self.requeue_pi(first, second, counts, int(third)).await
            }
        }
    }
}
