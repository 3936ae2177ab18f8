//! Locks of files: of byte ranges by process or by open file (`fcntl`), and of whole files
//! (`flock`).
//!
//! Files are known by their inode numbers, and the locks are this node's own: programs on other Ps
//! do not see them.

mod ranges;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;

use crate::error::{Result, errno};
use crate::wait::WaitQueue;
use ranges::Ranges;
pub(crate) use ranges::{Lock, Mode, Owner, Range};

/// Locks at most, of all files together.
const MAX_LOCKS: usize = 65_536;

/// The locks of all files.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    table: Mutex<Table>,
    /// Woken when locks are let go.
    pub(crate) queue: WaitQueue,
    /// Some range was locked, ever.
    used: AtomicBool,
}

#[derive(Debug, Default)]
struct Table {
    files: BTreeMap<u64, FileLocks>,
    /// The locks that threads wait for, by thread.
    waiting: BTreeMap<u32, (u64, Lock)>,
}

#[derive(Debug, Default)]
struct FileLocks {
    ranges: Ranges,
    /// Holders of the whole file (`flock`).
    whole: Vec<Whole>,
}

/// A lock of a whole file.
#[derive(Clone, Copy, Debug)]
struct Whole {
    /// The open file that holds it.
    holder: usize,
    mode: Mode,
    /// The process that set it.
    pid: u32,
}

/// A lock as `/proc/locks` tells of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LockInfo {
    pub(crate) file: u64,
    pub(crate) mode: Mode,
    /// The locked range and its owner; `None` for a whole file (`flock`).
    pub(crate) range: Option<Lock>,
    /// The process that set the lock of a whole file.
    pub(crate) pid: u32,
    /// A thread waits for it.
    pub(crate) waits: bool,
}

impl LockInfo {
    fn of(file: u64, lock: &Lock, waits: bool) -> Self {
        Self {
            file,
            mode: lock.mode,
            range: Some(*lock),
            pid: 0,
            waits,
        }
    }
}

impl Table {
    /// Returns whether waiting for `wanted` would wait for what its owner holds.
    fn deadlocks(&self, file: u64, wanted: &Lock) -> bool {
        let mut seen = BTreeSet::new();
        let mut look = alloc::vec![(file, *wanted)];
        while let Some((file, lock)) = look.pop() {
            let there = self.files.get(&file);
            for holder in there
                .into_iter()
                .flat_map(|there| there.ranges.conflicts(&lock))
            {
                if holder.owner == wanted.owner {
                    return true;
                }
                if seen.insert(holder.owner) {
                    let waits = self.waiting.values();
                    look.extend(
                        waits
                            .filter(|(_, wait)| wait.owner == holder.owner)
                            .copied(),
                    );
                }
            }
        }
        false
    }

    fn tidy(&mut self, file: u64) {
        let empty = |there: &FileLocks| there.ranges.len() == 0 && there.whole.is_empty();
        if self.files.get(&file).is_some_and(empty) {
            self.files.remove(&file);
        }
    }

    fn count(&self) -> usize {
        self.files
            .values()
            .map(|file| file.ranges.len() + file.whole.len())
            .sum()
    }
}

impl Locks {
    /// Returns all locks: those that are held, each followed by those that wait for it.
    pub(crate) fn list(&self) -> Vec<LockInfo> {
        let table = self.table.lock();
        let mut list = Vec::new();
        for (&file, there) in &table.files {
            for held in there.ranges.iter() {
                list.push(LockInfo::of(file, held, false));
                let waits = table.waiting.values();
                let blocked = waits.filter(|(on, wanted)| *on == file && held.excludes(wanted));
                list.extend(blocked.map(|(_, wanted)| LockInfo::of(file, wanted, true)));
            }
            list.extend(there.whole.iter().map(|whole| LockInfo {
                file,
                mode: whole.mode,
                range: None,
                pid: whole.pid,
                waits: false,
            }));
        }
        list
    }

    /// Returns the lock that excludes `wanted`.
    pub(crate) fn conflict(&self, file: u64, wanted: &Lock) -> Option<Lock> {
        let table = self.table.lock();
        table
            .files
            .get(&file)
            .and_then(|there| there.ranges.conflict(wanted))
    }

    /// Sets a lock if nothing excludes it.
    ///
    /// # Errors
    ///
    /// EAGAIN; ENOLCK if there are too many.
    pub(crate) fn set(&self, file: u64, wanted: &Lock) -> Result<()> {
        let mut table = self.table.lock();
        if table.count() >= MAX_LOCKS {
            return Err(errno::ENOLCK.into());
        }
        let there = table.files.entry(file).or_default();
        if there.ranges.conflict(wanted).is_some() {
            table.tidy(file);
            return Err(errno::EAGAIN.into());
        }
        there
            .ranges
            .set(wanted.owner, wanted.range, Some(wanted.mode));
        self.used.store(true, Ordering::Relaxed);
        drop(table);
        // A writer that became a reader lets others in.
        self.queue.wake();
        Ok(())
    }

    /// Sets a lock as [`set`](Self::set) does; thread `tid` will wait if it does not succeed.
    ///
    /// # Errors
    ///
    /// EDEADLK if it would wait for itself.
    pub(crate) fn set_or_wait(&self, file: u64, wanted: &Lock, tid: u32) -> Result<()> {
        let set = self.set(file, wanted);
        let mut table = self.table.lock();
        table.waiting.remove(&tid);
        if set == Err(errno::EAGAIN.into()) {
            if matches!(wanted.owner, Owner::Process(_)) && table.deadlocks(file, wanted) {
                return Err(errno::EDEADLK.into());
            }
            table.waiting.insert(tid, (file, *wanted));
        }
        set
    }

    /// Notes that a thread waits no more.
    pub(crate) fn stop_waiting(&self, tid: u32) {
        self.table.lock().waiting.remove(&tid);
    }

    /// Takes a range from an owner.
    pub(crate) fn unlock(&self, file: u64, owner: Owner, range: Range) {
        let mut table = self.table.lock();
        if let Some(there) = table.files.get_mut(&file) {
            there.ranges.set(owner, range, None);
            table.tidy(file);
        }
        drop(table);
        self.queue.wake();
    }

    /// Returns whether any process may hold locks of ranges.
    pub(crate) fn any(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes all locks of one file from an owner.
    pub(crate) fn release_file(&self, file: u64, owner: Owner) {
        let mut table = self.table.lock();
        let released = table
            .files
            .get_mut(&file)
            .is_some_and(|there| there.ranges.release(owner));
        table.tidy(file);
        drop(table);
        if released {
            self.queue.wake();
        }
    }

    /// Takes all locks from an owner that ends.
    pub(crate) fn release(&self, owner: Owner) {
        let mut table = self.table.lock();
        for there in table.files.values_mut() {
            there.ranges.release(owner);
            if let Owner::File(own) = owner {
                there.whole.retain(|whole| whole.holder != own);
            }
        }
        table
            .files
            .retain(|_, there| there.ranges.len() > 0 || !there.whole.is_empty());
        drop(table);
        self.queue.wake();
    }

    /// Sets or takes the lock of a whole file. A holder that changes its lock loses the one it had.
    ///
    /// # Errors
    ///
    /// EAGAIN; ENOLCK if there are too many.
    pub(crate) fn set_whole(
        &self,
        file: u64,
        (own, pid): (usize, u32),
        mode: Option<Mode>,
    ) -> Result<()> {
        let mut table = self.table.lock();
        if table.count() >= MAX_LOCKS {
            return Err(errno::ENOLCK.into());
        }
        let there = table.files.entry(file).or_default();
        let had = there
            .whole
            .iter()
            .find(|whole| whole.holder == own)
            .map(|whole| whole.mode);
        if had == mode {
            table.tidy(file);
            return Ok(());
        }
        there.whole.retain(|whole| whole.holder != own);
        let excluded = mode.is_some_and(|wanted| {
            let excludes = |other: Mode| wanted == Mode::Write || other == Mode::Write;
            there.whole.iter().any(|other| excludes(other.mode))
        });
        if !excluded {
            let holder = own;
            there
                .whole
                .extend(mode.map(|mode| Whole { holder, mode, pid }));
        }
        table.tidy(file);
        drop(table);
        if had.is_some() {
            self.queue.wake();
        }
        if excluded {
            return Err(errno::EAGAIN.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lock(pid: u32, start: u64, end: u64) -> Lock {
        Lock {
            owner: Owner::Process(pid),
            range: Range { start, end },
            mode: Mode::Write,
        }
    }

    #[test]
    fn waiting_in_a_circle_is_refused() {
        let locks = Locks::default();
        let again = Err(errno::EAGAIN.into());
        for pid in 1..=3 {
            assert_eq!(locks.set(u64::from(pid), &lock(pid, 0, 10)), Ok(()));
        }
        assert_eq!(locks.set_or_wait(2, &lock(1, 5, 6), 1), again);
        assert_eq!(locks.set_or_wait(3, &lock(2, 0, 1), 2), again);
        assert_eq!(
            locks.set_or_wait(1, &lock(3, 9, 10), 3),
            Err(errno::EDEADLK.into())
        );
        let told: Vec<_> = locks
            .list()
            .iter()
            .map(|told| (told.file, told.waits))
            .collect();
        let blocked = [(1, false), (2, false), (2, true), (3, false), (3, true)];
        assert_eq!(told, blocked);
        // Beside what the first holds there is no circle, nor when it waits no more.
        assert_eq!(locks.set_or_wait(1, &lock(3, 10, 11), 3), Ok(()));
        locks.stop_waiting(1);
        assert_eq!(locks.set_or_wait(1, &lock(3, 9, 10), 3), again);
        locks.release(Owner::Process(1));
        assert_eq!(locks.set_or_wait(1, &lock(3, 9, 10), 3), Ok(()));
    }

    #[test]
    fn whole_files_have_one_writer_or_many_readers() {
        let locks = Locks::default();
        let again = Err(errno::EAGAIN.into());
        assert_eq!(locks.set_whole(9, (1, 10), Some(Mode::Read)), Ok(()));
        assert_eq!(locks.set_whole(9, (2, 20), Some(Mode::Read)), Ok(()));
        assert_eq!(locks.set_whole(9, (2, 20), Some(Mode::Write)), again);
        let told: Vec<_> = locks.list().iter().map(|told| told.pid).collect();
        assert_eq!(told, [10]);
        // It has lost its own by asking.
        assert_eq!(locks.set_whole(9, (1, 10), Some(Mode::Write)), Ok(()));
        assert_eq!(locks.set_whole(9, (3, 30), Some(Mode::Read)), again);
        locks.release(Owner::File(1));
        assert_eq!(locks.set_whole(9, (3, 30), Some(Mode::Read)), Ok(()));
        assert_eq!(locks.set_whole(9, (3, 30), None), Ok(()));
        assert!(locks.table.lock().files.is_empty());
    }

    proptest! {
        /// However processes lock and wait, some process never waits: there is no circle.
        #[test]
        fn someone_can_always_go_on(
            steps in proptest::collection::vec((1..5u32, 0..3u64, 0..4u64), 1..80),
        ) {
            let locks = Locks::default();
            let mut waiting = BTreeMap::new();
            for (pid, file, at) in steps {
                if waiting.contains_key(&pid) {
                    continue;
                }
                let wanted = lock(pid, at, at + 2);
                match locks.set_or_wait(file, &wanted, pid) {
                    Err(error) if error == errno::EAGAIN.into() => {
                        waiting.insert(pid, (file, wanted));
                    }
                    Err(error) => prop_assert_eq!(error, errno::EDEADLK.into()),
                    Ok(()) => {}
                }
                prop_assert!(waiting.len() < 4, "all wait for each other");
                if waiting.len() == 3 {
                    // Who does not wait ends, and then all others can, one after the other.
                    let free = (1..5).find(|pid| !waiting.contains_key(pid)).unwrap();
                    locks.release(Owner::Process(free));
                    while !waiting.is_empty() {
                        let next = waiting.iter().find(|(pid, (file, wanted))| {
                            locks.set_or_wait(*file, wanted, **pid).is_ok()
                        });
                        let next = next.map(|(pid, _)| *pid);
                        prop_assert!(next.is_some(), "nobody can go on");
                        waiting.remove(&next.unwrap());
                        locks.release(Owner::Process(next.unwrap()));
                    }
                }
            }
        }
    }
}
