//! Futexes that are locks: the word has its owner's number, and the kernel hands it from the owner
//! to the first waiter (priority inheritance; Linux `kernel/futex/pi.c`, `requeue.c`).
//!
//! Threads here share a core equally whatever their priority, so nothing is inherited but the lock:
//! waiters get it in the order of their priorities.
//!
//! Lock order: buckets, the states, the tree of processes. States are few, one for each word that
//! somebody waits for, so they share a lock.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use locks::{AtomicU64, Mutex, MutexGuard, Ordering};
use messages::Errno;

use super::{Futexes, Key, Queue, Waiter};
use crate::error::errno;

/// The bits of a lock's word: somebody waits, the owner died, the owner's number.
pub(crate) const WAITERS: u32 = 0x8000_0000;
pub(crate) const OWNER_DIED: u32 = 0x4000_0000;
pub(crate) const TID: u32 = 0x3fff_ffff;
/// A chain of locks and owners is followed no further (Linux's `max_lock_depth`).
const MAX_DEPTH: usize = 1024;

/// A lock's word in a program's memory.
pub(crate) trait Word {
    /// Returns the value; `None` if its page is away.
    fn load(&self) -> Option<u32>;
    /// Replaces `old` by `new`; `None` if the page is away, or the word is not `old`.
    fn exchange(&self, old: u32, new: u32) -> Option<()>;
}

/// A thread that wants a lock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Locker {
    pub(crate) tid: u32,
    /// A real-time priority; 0 for all other threads.
    pub(crate) priority: u32,
}

/// The outcome of asking for a lock.
#[derive(Debug)]
pub(crate) enum Locked {
    /// The asker owns it.
    Taken,
    /// The asker waits.
    Queued(Arc<Waiter>),
}

/// The position of a waiter that does not wait any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WaiterEnd {
    /// It has not got the lock.
    Without,
    /// It was given the lock.
    Owner,
    /// The owner died: the waiter takes the lock by [`Futexes::inherit`].
    Heir,
    /// It still waited for a move to the lock.
    Unmoved,
}

/// A result that needs the word: `None` if its page has to be brought, or it has just changed.
pub(crate) type Attempt<T> = Option<Result<T, Errno>>;

/// A lock that somebody waits for.
#[derive(Debug)]
struct State {
    /// `None` once the owner died, until the heir has the word.
    owner: Option<u32>,
    /// The highest priority first.
    waiters: VecDeque<Arc<Waiter>>,
}

/// The locks that somebody waits for.
#[derive(Debug, Default)]
pub(super) struct States {
    table: Mutex<Table>,
    /// Entries of the table, for who wakes other words.
    count: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    states: BTreeMap<Key, State>,
    /// The lock that each waiter waits for.
    waiting: BTreeMap<u32, Key>,
}

impl Table {
    /// Returns whether `tid` would wait for itself.
    fn is_deadlock(&self, key: Key, tid: u32) -> bool {
        let mut key = key;
        for _ in 0..MAX_DEPTH {
            let Some(owner) = self.states.get(&key).and_then(|state| state.owner) else {
                return false;
            };
            if owner == tid {
                return true;
            }
            match self.waiting.get(&owner) {
                Some(next) => key = *next,
                None => return false,
            }
        }
        true
    }

    fn queue(&mut self, key: Key, waiter: Arc<Waiter>) -> Result<(), Errno> {
        let by = waiter.by;
        if self.is_deadlock(key, by.tid) {
            return Err(errno::EDEADLK);
        }
        let state = self.states.get_mut(&key).expect("somebody owns the lock");
        let behind = state
            .waiters
            .iter()
            .position(|other| other.by.priority < by.priority);
        let at = behind.unwrap_or(state.waiters.len());
        state.waiters.insert(at, waiter);
        self.waiting.insert(by.tid, key);
        Ok(())
    }

    /// Takes the first waiter out.
    fn pop(&mut self, key: Key) -> Option<Arc<Waiter>> {
        let first = self.states.get_mut(&key)?.waiters.pop_front()?;
        self.waiting.remove(&first.by.tid);
        Some(first)
    }

    /// Forgets a lock with an owner that nobody waits for.
    fn settle(&mut self, key: Key) {
        let idle = |state: &State| state.owner.is_some() && state.waiters.is_empty();
        if self.states.get(&key).is_some_and(idle) {
            self.states.remove(&key);
        }
    }

    /// Gives a lock without an owner to the first waiter.
    fn bequeath(&mut self, key: Key) {
        match self.pop(key) {
            Some(heir) => heir.wake_as_heir(),
            None => drop(self.states.remove(&key)),
        }
    }
}

/// A view of the table that keeps the count.
struct Open<'a> {
    table: MutexGuard<'a, Table>,
    count: &'a AtomicU64,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.count
            .store(self.table.states.len() as u64, Ordering::Release);
    }
}

impl States {
    fn open(&self) -> Open<'_> {
        Open {
            table: self.table.lock(),
            count: &self.count,
        }
    }

    /// Returns whether somebody waits for this lock.
    pub(super) fn has(&self, key: Key) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.table.lock().states.contains_key(&key)
    }
}

/// A request for a lock.
struct Request<'a> {
    key: Key,
    by: Locker,
    word: &'a dyn Word,
    /// Says whether a thread lives that may own a lock.
    lives: &'a dyn Fn(u32) -> bool,
    /// The word is to show waiters even if the lock is free.
    mark: bool,
}

/// Takes the lock if it is free (`true`), or sees to it that its state names the owner.
fn take_or_attach(table: &mut Table, queue: &Queue, ask: &Request<'_>) -> Attempt<bool> {
    let value = ask.word.load()?;
    let owner = value & TID;
    if owner == ask.by.tid {
        return Some(Err(errno::EDEADLK));
    }
    if let Some(state) = table.states.get(&ask.key) {
        let left_by_owner = owner == 0 && value & OWNER_DIED != 0;
        let consistent = state
            .owner
            .is_none_or(|known| known == owner || left_by_owner);
        return Some(if consistent {
            Ok(false)
        } else {
            Err(errno::EINVAL)
        });
    }
    if queue.iter().any(|waiter| *waiter.key.lock() == ask.key) {
        // It waits for the word as for any other.
        return Some(Err(errno::EINVAL));
    }
    if owner == 0 {
        let mark = if ask.mark { WAITERS } else { 0 };
        ask.word
            .exchange(value, value & OWNER_DIED | ask.by.tid | mark)?;
        return Some(Ok(true));
    }
    // From here on the owner comes to the kernel to unlock.
    ask.word.exchange(value, value | WAITERS)?;
    if !(ask.lives)(owner) {
        // It may have changed the word with its last breath.
        let unchanged = ask.word.load()? == value | WAITERS;
        return unchanged.then_some(Err(errno::ESRCH));
    }
    let state = State {
        owner: Some(owner),
        waiters: VecDeque::new(),
    };
    table.states.insert(ask.key, state);
    Some(Ok(false))
}

impl Futexes {
    /// Takes a lock, or queues for it (with `waits`).
    ///
    /// # Errors
    ///
    /// EDEADLK if the asker has it or would wait for itself, ESRCH if nobody is its owner, EINVAL
    /// if the word is not what the kernel knows, EAGAIN if it is another's and the asker does not
    /// wait.
    pub(crate) fn lock(
        &self,
        key: Key,
        by: Locker,
        waits: bool,
        word: &dyn Word,
        lives: &dyn Fn(u32) -> bool,
    ) -> Attempt<Locked> {
        let queue = self.buckets[key.bucket()].lock();
        let mut open = self.pi.open();
        let table = &mut *open.table;
        let mark = false;
        let ask = Request {
            key,
            by,
            word,
            lives,
            mark,
        };
        let outcome = match take_or_attach(table, &queue, &ask)? {
            Ok(true) => Ok(Locked::Taken),
            Ok(false) if waits => {
                let waiter = Arc::new(Waiter::new(key, super::ANY, by, None));
                table
                    .queue(key, waiter.clone())
                    .map(|()| Locked::Queued(waiter))
            }
            Ok(false) => Err(errno::EAGAIN),
            Err(errno) => Err(errno),
        };
        table.settle(key);
        Some(outcome)
    }

    /// Gives a lock of `tid` to the first waiter, or frees it.
    ///
    /// # Errors
    ///
    /// EPERM if it is not the owner by the word, EINVAL if by what the kernel knows.
    pub(crate) fn unlock(&self, key: Key, tid: u32, word: &dyn Word) -> Attempt<()> {
        let queue = self.buckets[key.bucket()].lock();
        let value = word.load()?;
        if value & TID != tid {
            return Some(Err(errno::EPERM));
        }
        let mut open = self.pi.open();
        let table = &mut *open.table;
        let Some(state) = table.states.get_mut(&key) else {
            if queue.iter().any(|waiter| *waiter.key.lock() == key) {
                return Some(Err(errno::EINVAL));
            }
            return word.exchange(value, 0).map(Ok);
        };
        let next = match state.waiters.front() {
            Some(next) if state.owner == Some(tid) => next.by.tid,
            _ => return Some(Err(errno::EINVAL)),
        };
        word.exchange(value, WAITERS | next)?;
        state.owner = Some(next);
        if let Some(next) = table.pop(key) {
            next.wake();
        }
        table.settle(key);
        Some(Ok(()))
    }

    /// Ends a wait for a lock, or for a move to one, that need not have ended.
    pub(crate) fn leave(&self, waiter: &Arc<Waiter>) -> WaiterEnd {
        if let Some(to) = waiter.target {
            // Whoever moves it changes its key with this bucket locked.
            let mut queue = self.buckets[waiter.first_key.bucket()].lock();
            let before = queue.len();
            queue.retain(|other| !Arc::ptr_eq(other, waiter));
            if queue.len() < before {
                return WaiterEnd::Unmoved;
            }
            drop(queue);
            return self.leave_lock(to, waiter);
        }
        self.leave_lock(waiter.first_key, waiter)
    }

    fn leave_lock(&self, key: Key, waiter: &Arc<Waiter>) -> WaiterEnd {
        let mut open = self.pi.open();
        let table = &mut *open.table;
        if let Some(state) = table.states.get_mut(&key) {
            let before = state.waiters.len();
            state.waiters.retain(|other| !Arc::ptr_eq(other, waiter));
            if state.waiters.len() < before {
                table.waiting.remove(&waiter.by.tid);
                table.settle(key);
                return WaiterEnd::Without;
            }
        }
        if waiter.is_heir() {
            WaiterEnd::Heir
        } else {
            WaiterEnd::Owner
        }
    }

    /// Puts an heir's number into the word.
    pub(crate) fn inherit(&self, key: Key, tid: u32, word: &dyn Word) -> Option<()> {
        let mut open = self.pi.open();
        word.exchange(word.load()?, OWNER_DIED | WAITERS | tid)?;
        if let Some(state) = open.table.states.get_mut(&key) {
            state.owner = Some(tid);
        }
        open.table.settle(key);
        Some(())
    }

    /// Passes on a lock whose heir can't reach the word.
    pub(crate) fn disclaim(&self, key: Key) {
        self.pi.open().table.bequeath(key);
    }

    /// Gives the locks of a thread that ends to who waits for them. `mark` makes it one that does
    /// not live.
    pub(crate) fn exit(&self, tid: u32, mark: impl FnOnce()) {
        let mut open = self.pi.open();
        mark();
        let owned = |(key, state): (&Key, &mut State)| {
            let is_owner = state.owner == Some(tid);
            is_owner.then(|| {
                state.owner = None;
                *key
            })
        };
        let keys: Vec<_> = open.table.states.iter_mut().filter_map(owned).collect();
        keys.into_iter().for_each(|key| open.table.bequeath(key));
    }

    /// Queues a waiter that is to be moved to the lock `to`, if `expected` still holds.
    pub(crate) fn wait_for_move(
        &self,
        (from, to): (Key, Key),
        by: Locker,
        expected: impl FnOnce() -> bool,
    ) -> Option<Arc<Waiter>> {
        let mut queue = self.buckets[from.bucket()].lock();
        if !expected() {
            return None;
        }
        let waiter = Arc::new(Waiter::new(from, super::ANY, by, Some(to)));
        queue.push_back(waiter.clone());
        Some(waiter)
    }

    /// Moves waiters of `from` to the lock `to`, up to `most` and one more; the first gets the lock
    /// if it is free. Returns how many were moved or got it.
    ///
    /// # Errors
    ///
    /// EAGAIN if the word of `from` is not `expected`, EINVAL if one waits for another move or for
    /// none, and those of [`lock`](Self::lock).
    pub(crate) fn move_to_lock(
        &self,
        (from, expected): (Key, u32),
        to: Key,
        most: u32,
        (first_word, word): (&dyn Word, &dyn Word),
        lives: &dyn Fn(u32) -> bool,
    ) -> Attempt<u32> {
        let (mut first, second) = self.lock_two(from, to);
        if first_word.load()? != expected {
            return Some(Err(errno::EAGAIN));
        }
        let mut open = self.pi.open();
        let table = &mut *open.table;
        let mut moved = 0;
        let mut refused = None;
        while moved <= most {
            let next = first.iter().position(|waiter| *waiter.key.lock() == from);
            let Some(at) = next else { break };
            if first[at].target != Some(to) {
                refused = Some(errno::EINVAL);
                break;
            }
            let taken = if moved == 0 {
                let by = first[at].by;
                let mark = most > 0;
                let ask = Request {
                    key: to,
                    by,
                    word,
                    lives,
                    mark,
                };
                match take_or_attach(table, second.as_deref().unwrap_or(&first), &ask)? {
                    Ok(taken) => taken,
                    Err(errno) => return Some(Err(errno)),
                }
            } else {
                false
            };
            if taken {
                let waiter = first.remove(at).expect("found");
                // Those that follow wait for it.
                let state = State {
                    owner: Some(waiter.by.tid),
                    waiters: VecDeque::new(),
                };
                table.states.insert(to, state);
                waiter.wake();
            } else if let Err(errno) = table.queue(to, first[at].clone()) {
                refused = Some(errno);
                break;
            } else {
                let waiter = first.remove(at).expect("found");
                *waiter.key.lock() = to;
            }
            moved += 1;
        }
        table.settle(to);
        Some(refused.map_or(Ok(moved), Err))
    }
}
