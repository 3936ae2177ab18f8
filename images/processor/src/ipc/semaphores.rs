//! Sets of semaphores.
//!
//! Operations of one call are done all at once or not at all. Calls that wait are served in the
//! order in which they came, by whoever changes a value; of those that could be served at once,
//! calls that only wait for zero come first. What a process wants undone at its end is kept by
//! process, set and semaphore. Linux `ipc/sem.c`.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use spin::Mutex;

use super::Ids;
use crate::error::{Result, errno};
use crate::wait::WaitQueue;

/// Sets, and semaphores of a set, at most (`SEMMNI`, `SEMMSL`).
pub(crate) const MAX_SETS: usize = 32_000;
pub(crate) const MAX_IN_SET: u32 = 32_000;
/// Semaphores of all sets at most: less than Linux's, as they lie in the kernel's own memory.
pub(crate) const MAX_SEMAPHORES: usize = 65_536;
/// Operations of a call at most (`SEMOPM`).
pub(crate) const MAX_OPERATIONS: u64 = 500;
/// The highest value (`SEMVMX`).
pub(crate) const MAX_VALUE: i32 = 32_767;
/// Operations that are looked at with a set locked, before other tasks have their turn.
const BUDGET: usize = 20_000;
/// Semaphores that processes want undone at most.
const MAX_UNDOS: usize = 65_536;
const SEM_UNDO: u16 = 0x1000;
const NOWAIT: u16 = 0o4000;

/// An operation on one semaphore (`struct sembuf`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Operation {
    pub(crate) semaphore: u16,
    pub(crate) change: i16,
    pub(crate) flags: u16,
}

impl Operation {
    /// Bytes of a `struct sembuf`.
    pub(crate) const SIZE: usize = 6;

    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            semaphore: half(0),
            change: half(2).cast_signed(),
            flags: half(4),
        }
    }
}

/// A semaphore.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Semaphore {
    pub(crate) value: i32,
    /// The process that last changed it.
    pub(crate) pid: u32,
}

/// State of a set.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) semaphores: Vec<Semaphore>,
    pub(crate) removed: bool,
    /// Seconds since 1970 of the last operation and change.
    pub(crate) operated: u64,
    pub(crate) changed: u64,
    /// The calls that wait, the first that came first.
    pending: Vec<Pending>,
    /// Calls that waited and are done, by their numbers, until they look.
    done: BTreeMap<u64, Result<()>>,
    /// Not all that could be served has been.
    behind: bool,
    next_waiter: u64,
}

/// A call that waits.
#[derive(Debug)]
struct Pending {
    number: u64,
    caller: Caller,
    operations: Vec<Operation>,
    /// Some operation changes a value.
    alters: bool,
    /// The semaphore that it waits for, and whether for zero.
    place: (u16, bool),
}

/// Returns whether operations change a value.
fn alter(operations: &[Operation]) -> bool {
    operations.iter().any(|operation| operation.change != 0)
}

/// A set of semaphores.
#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) state: Mutex<State>,
    /// Woken at each change of a value.
    pub(crate) queue: WaitQueue,
}

impl Set {
    pub(crate) fn new(count: u32, now: u64) -> Self {
        Self {
            state: Mutex::new(State {
                semaphores: vec![Semaphore::default(); count as usize],
                removed: false,
                operated: 0,
                changed: now,
                pending: Vec::new(),
                done: BTreeMap::new(),
                behind: false,
                next_waiter: 0,
            }),
            queue: WaitQueue::default(),
        }
    }

    /// Returns how many calls wait for a semaphore to be zero, or to be more than it is.
    pub(crate) fn waiters(&self, semaphore: u32, for_zero: bool) -> u64 {
        let state = self.state.lock();
        let wanted = |each: &&Pending| {
            let (index, zero) = each.place;
            u32::from(index) == semaphore && zero == for_zero
        };
        state.pending.iter().filter(wanted).count() as u64
    }

    /// Returns the number of a call that may wait here.
    pub(crate) fn waiter(&self) -> Waiter<'_> {
        let mut state = self.state.lock();
        state.next_waiter += 1;
        Waiter {
            set: self,
            number: state.next_waiter,
        }
    }
}

/// A call that may wait for a set; it waits no more when this is dropped.
#[derive(Debug)]
pub(crate) struct Waiter<'a> {
    set: &'a Set,
    number: u64,
}

impl Waiter<'_> {
    /// Returns how the call was served, if it was while it waited.
    pub(crate) fn served(&self) -> Option<Result<()>> {
        self.set.state.lock().done.remove(&self.number)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut state = self.set.state.lock();
        state.pending.retain(|each| each.number != self.number);
        state.done.remove(&self.number);
    }
}

/// The process, set and semaphore of something to undo.
type Undos = BTreeMap<(u32, u32, u16), i32>;

/// All sets.
#[derive(Debug, Default)]
pub(crate) struct Semaphores {
    pub(crate) ids: Mutex<Ids<Arc<Set>>>,
    /// Changes of values at processes' ends. Locked after a set.
    undos: Mutex<Undos>,
}

/// A process and a set that it operates on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub(crate) pid: u32,
    pub(crate) set: u32,
    pub(crate) now: u64,
}

impl Semaphores {
    /// Does all operations if none has to wait; `None` if one has to, or while others before this
    /// call are still to be served.
    pub(crate) fn attempt(
        &self,
        waiter: &Waiter<'_>,
        caller: Caller,
        operations: &[Operation],
    ) -> Option<Result<()>> {
        let mut guard = waiter.set.state.lock();
        if guard.behind {
            self.serve(&mut guard, caller.now);
            drop(guard);
            waiter.set.queue.wake();
            guard = waiter.set.state.lock();
        }
        let state = &mut *guard;
        if let Some(done) = state.done.remove(&waiter.number) {
            return Some(done);
        }
        if state.removed {
            return Some(Err(errno::EIDRM.into()));
        }
        if state
            .pending
            .iter()
            .any(|each| each.number == waiter.number)
        {
            return None;
        }
        let alters = alter(operations);
        match self.perform(state, caller, operations) {
            Ok(done) => {
                if done.is_ok() && alters {
                    self.serve(state, caller.now);
                    drop(guard);
                    waiter.set.queue.wake();
                }
                Some(done)
            }
            Err(place) => {
                state.pending.push(Pending {
                    number: waiter.number,
                    caller,
                    operations: operations.to_vec(),
                    alters,
                    place,
                });
                None
            }
        }
    }

    /// Does all operations or none.
    ///
    /// # Errors
    ///
    /// The semaphore that has to be waited for, and whether for zero.
    fn perform(
        &self,
        state: &mut State,
        caller: Caller,
        operations: &[Operation],
    ) -> core::result::Result<Result<()>, (u16, bool)> {
        let mut outcome = Ok(Ok(()));
        let mut done = 0;
        for operation in operations {
            let Some(semaphore) = state.semaphores.get_mut(usize::from(operation.semaphore)) else {
                outcome = Ok(Err(errno::EFBIG.into()));
                break;
            };
            let new = semaphore.value + i32::from(operation.change);
            let waits = new < 0 || operation.change == 0 && new != 0;
            if waits && operation.flags & NOWAIT == 0 {
                outcome = Err((operation.semaphore, operation.change == 0));
                break;
            }
            if waits || new > MAX_VALUE {
                let errno = if waits { errno::EAGAIN } else { errno::ERANGE };
                outcome = Ok(Err(errno.into()));
                break;
            }
            semaphore.value = new;
            done += 1;
        }
        if outcome == Ok(Ok(())) {
            outcome = Ok(self.note_undos(caller, operations));
        }
        if outcome != Ok(Ok(())) {
            for operation in operations[..done].iter().rev() {
                state.semaphores[usize::from(operation.semaphore)].value -=
                    i32::from(operation.change);
            }
            return outcome;
        }
        for operation in operations {
            state.semaphores[usize::from(operation.semaphore)].pid = caller.pid;
        }
        state.operated = caller.now;
        outcome
    }

    /// Serves the calls that wait, as far as values allow: after each change from the first again.
    /// It does no more than a budget at once; the next call that looks goes on from there. The
    /// caller wakes the queue.
    pub(crate) fn serve(&self, state: &mut State, now: u64) {
        state.behind = false;
        let mut budget = BUDGET;
        let mut pending = core::mem::take(&mut state.pending);
        'again: loop {
            for for_zero in [true, false] {
                for at in 0..pending.len() {
                    let each = &mut pending[at];
                    let skipped = each.alters == for_zero;
                    let cost = if skipped { 1 } else { each.operations.len() };
                    let Some(rest) = budget.checked_sub(cost) else {
                        state.behind = true;
                        break 'again;
                    };
                    budget = rest;
                    if skipped {
                        continue;
                    }
                    let caller = Caller { now, ..each.caller };
                    match self.perform(state, caller, &each.operations) {
                        Err(place) => each.place = place,
                        Ok(done) => {
                            let served = pending.remove(at);
                            state.done.insert(served.number, done);
                            continue 'again;
                        }
                    }
                }
            }
            break;
        }
        state.pending = pending;
    }

    /// Keeps what the operations want undone.
    fn note_undos(&self, caller: Caller, operations: &[Operation]) -> Result<()> {
        let mut undos = self.undos.lock();
        let mut new = Undos::new();
        for operation in operations {
            if operation.flags & SEM_UNDO == 0 || operation.change == 0 {
                continue;
            }
            let key = (caller.pid, caller.set, operation.semaphore);
            let known = new.get(&key).or_else(|| undos.get(&key));
            let undo = known.copied().unwrap_or(0) - i32::from(operation.change);
            if undo.abs() > MAX_VALUE {
                return Err(errno::ERANGE.into());
            }
            new.insert(key, undo);
        }
        if undos.len() + new.len() > MAX_UNDOS {
            return Err(errno::ENOSPC.into());
        }
        for (key, undo) in new {
            if undo == 0 {
                undos.remove(&key);
            } else {
                undos.insert(key, undo);
            }
        }
        Ok(())
    }

    /// Forgets what is to be undone of a set, or of one of its semaphores.
    pub(crate) fn forget_undos(&self, set: u32, semaphore: Option<u32>) {
        let concerns = |index: u16| semaphore.is_none_or(|only| only == u32::from(index));
        self.undos
            .lock()
            .retain(|&(_, of, index), _| of != set || !concerns(index));
    }

    /// Undoes what a process that has ended wants undone.
    pub(crate) fn exit(&self, pid: u32, now: u64) {
        let own: Vec<_> = {
            let mut undos = self.undos.lock();
            let range = (pid, 0, 0)..=(pid, u32::MAX, u16::MAX);
            let own: Vec<_> = undos
                .range(range)
                .map(|(&key, &undo)| (key, undo))
                .collect();
            for (key, _) in &own {
                undos.remove(key);
            }
            own
        };
        for ((_, id, index), undo) in own {
            let set = self.ids.lock().get(id).map(|entry| entry.object.clone());
            let Ok(set) = set else { continue };
            {
                let mut state = set.state.lock();
                if let Some(semaphore) = state.semaphores.get_mut(usize::from(index)) {
                    semaphore.value = (semaphore.value + undo).clamp(0, MAX_VALUE);
                    semaphore.pid = pid;
                }
                state.operated = now;
                self.serve(&mut state, now);
            }
            set.queue.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: Caller = Caller {
        pid: 4,
        set: 0,
        now: 9,
    };

    fn operation(semaphore: u16, change: i16, flags: u16) -> Operation {
        Operation {
            semaphore,
            change,
            flags,
        }
    }

    fn values(set: &Set) -> Vec<i32> {
        let state = set.state.lock();
        state.semaphores.iter().map(|each| each.value).collect()
    }

    #[test]
    fn operations_are_done_all_or_not_at_all() {
        let (all, set) = (Semaphores::default(), Set::new(2, 0));
        let attempt = |operations: &[Operation]| all.attempt(&set.waiter(), CALLER, operations);
        assert_eq!(attempt(&[operation(0, 3, 0)]), Some(Ok(())));
        let both = [operation(0, -2, 0), operation(1, -1, 0)];
        let waiter = set.waiter();
        assert_eq!(all.attempt(&waiter, CALLER, &both), None);
        assert_eq!((values(&set), set.waiters(1, false)), (vec![3, 0], 1));
        drop(waiter);
        let now = [operation(0, -2, NOWAIT), operation(1, -1, NOWAIT)];
        assert_eq!(attempt(&now), Some(Err(errno::EAGAIN.into())));
        let waiter = set.waiter();
        let zero = [operation(0, 0, 0)];
        assert_eq!(all.attempt(&waiter, CALLER, &zero), None);
        assert_eq!((set.waiters(0, true), set.waiters(1, false)), (1, 0));
        let high = [operation(1, 5, 0), operation(0, 32_765, 0)];
        assert_eq!(attempt(&high), Some(Err(errno::ERANGE.into())));
        let none = [operation(1, 5, 0), operation(2, 1, 0)];
        assert_eq!(attempt(&none), Some(Err(errno::EFBIG.into())));
        assert_eq!(values(&set), [3, 0]);
        drop(waiter);
        assert_eq!(set.waiters(0, true), 0);
    }

    #[test]
    fn calls_that_wait_are_served_in_their_order() {
        let (all, set) = (Semaphores::default(), Set::new(1, 0));
        let waiters = [(); 5].map(|()| set.waiter());
        let wants = [-2, -1, 0, -1, -1];
        let attempt = |at: usize| all.attempt(&waiters[at], CALLER, &[operation(0, wants[at], 0)]);
        let up = |by: i16| all.attempt(&set.waiter(), CALLER, &[operation(0, by, 0)]);
        assert_eq!(up(1), Some(Ok(())));
        assert_eq!([0, 2].map(attempt), [None; 2]);
        // Who comes later takes what those before can't use.
        assert_eq!((attempt(1), attempt(2)), (Some(Ok(())), Some(Ok(()))));
        assert_eq!([3, 4].map(attempt), [None; 2]);
        assert_eq!(set.waiters(0, false), 3);
        assert_eq!(up(3), Some(Ok(())));
        assert_eq!(values(&set), [0], "two were served");
        assert_eq!(set.waiters(0, false), 1);
        // Whichever looks first.
        assert_eq!((attempt(4), attempt(3)), (None, Some(Ok(()))));
        assert_eq!(
            (waiters[0].served(), waiters[4].served()),
            (Some(Ok(())), None)
        );
        drop(waiters);
        assert_eq!((up(1), values(&set)), (Some(Ok(())), vec![1]));
    }

    #[test]
    fn a_long_queue_is_served_in_several_turns() {
        let (all, set) = (Semaphores::default(), Set::new(1, 0));
        let waiters: Vec<_> = (0..300).map(|_| set.waiter()).collect();
        let mut down = vec![operation(0, 1, 0); 99];
        down.push(operation(0, -100, 0));
        for waiter in &waiters {
            assert_eq!(all.attempt(waiter, CALLER, &down), None);
        }
        let up = [operation(0, 300, 0)];
        assert_eq!(all.attempt(&set.waiter(), CALLER, &up), Some(Ok(())));
        let served = set.state.lock().done.len();
        assert!((1..300).contains(&served), "{served}");
        // The first to look serves the rest.
        for waiter in &waiters {
            assert_eq!(all.attempt(waiter, CALLER, &down), Some(Ok(())));
        }
        assert_eq!((values(&set), set.waiters(0, false)), (vec![0], 0));
    }

    #[test]
    fn the_end_of_a_process_undoes_what_it_asked_for() {
        let all = Semaphores::default();
        let creds = crate::creds::Creds::new(0, 0);
        let request = crate::ipc::Request {
            key: 0,
            flags: 0o600,
            creds: &creds,
        };
        let set = Arc::new(Set::new(2, 0));
        let id = all.ids.lock().add(request, 9, set.clone()).unwrap();
        let caller = Caller { set: id, ..CALLER };
        let waiter = set.waiter();
        let attempt = |operations: &[Operation]| all.attempt(&waiter, caller, operations);
        let up = [operation(0, 5, 0), operation(1, 7, SEM_UNDO)];
        assert_eq!(attempt(&up), Some(Ok(())));
        assert_eq!(attempt(&[operation(0, -2, SEM_UNDO)]), Some(Ok(())));
        assert_eq!(attempt(&[operation(1, -7, 0)]), Some(Ok(())));
        all.exit(5, 1);
        assert_eq!(values(&set), [3, 0], "another process");
        all.exit(4, 1);
        assert_eq!(values(&set), [5, 0], "not below zero");
        all.exit(4, 1);
        assert_eq!(values(&set), [5, 0], "once");
        assert_eq!(attempt(&[operation(0, -2, SEM_UNDO)]), Some(Ok(())));
        all.forget_undos(id, Some(0));
        all.exit(4, 1);
        assert_eq!(values(&set), [3, 0]);
    }
}
