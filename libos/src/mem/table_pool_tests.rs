use std::cell::Cell;

use super::*;

/// A core whose counters the test moves.
#[derive(Default)]
struct FakeCore {
    index: usize,
    polls: Cell<u64>,
    user_epoch: Cell<u64>,
    asleep: Cell<bool>,
}

impl Core for &FakeCore {
    fn index(&self) -> usize {
        self.index
    }

    fn observe(&self) -> Option<Progress> {
        (!self.asleep.get()).then(|| self.peek())
    }

    fn peek(&self) -> Progress {
        Progress {
            polls: self.polls.get(),
            user_epoch: self.user_epoch.get(),
        }
    }
}

impl FakeCore {
    fn poll(&self) {
        self.polls.set(self.polls.get() + 1);
    }

    /// Enters or leaves user mode.
    fn cross(&self) {
        self.user_epoch.set(self.user_epoch.get() + 1);
    }
}

/// Some cores, and a pool that makes tables of the numbers from 1 on.
struct Machine {
    cores: Vec<FakeCore>,
    pool: Pool,
    fresh: u64,
}

impl Machine {
    fn new(cores: usize) -> Self {
        let core = |index| FakeCore {
            index,
            ..FakeCore::default()
        };
        Self {
            cores: (0..cores).map(core).collect(),
            pool: Pool::new(),
            fresh: 0,
        }
    }

    fn take(&mut self, own: usize) -> PhysAddr {
        let fresh = || {
            self.fresh += 1;
            Some(PhysAddr(self.fresh * 4096))
        };
        self.pool.take(own, self.cores.iter(), fresh).unwrap()
    }

    fn retire(&mut self, own: usize, table: PhysAddr) {
        self.pool.retire([table], own, self.cores.iter());
    }

    /// Returns whether a table that core 0 has just retired is used again after `passing`.
    fn comes_back(before: impl FnOnce(&FakeCore), passing: impl FnOnce(&FakeCore)) -> bool {
        let mut machine = Self::new(2);
        let table = machine.take(0);
        before(&machine.cores[1]);
        machine.retire(0, table);
        assert_eq!(machine.pool.count().in_use, 0);
        passing(&machine.cores[1]);
        machine.take(0) == table
    }
}

#[test]
fn a_lone_core_reuses_at_once() {
    let mut machine = Machine::new(1);
    let table = machine.take(0);
    for _ in 0..1000 {
        machine.retire(0, table);
        assert_eq!(
            machine.pool.count(),
            TableFrames {
                in_use: 0,
                retired: 0,
                free: 1
            }
        );
        assert_eq!(machine.take(0), table);
    }
}

#[test]
fn each_quiescent_point_counts() {
    let nothing = |_: &FakeCore| {};
    assert!(!Machine::comes_back(nothing, nothing));
    assert!(Machine::comes_back(nothing, FakeCore::poll));
    assert!(
        Machine::comes_back(nothing, FakeCore::cross),
        "it enters user mode"
    );
    assert!(
        Machine::comes_back(nothing, |core| core.asleep.set(true)),
        "it sleeps after the look"
    );
    assert!(Machine::comes_back(
        |core| core.asleep.set(true),
        |core| core.asleep.set(false)
    ));
}

#[test]
fn leaving_user_mode_is_no_quiescent_point() {
    let entered = FakeCore::cross;
    assert!(!Machine::comes_back(entered, |_| {}));
    assert!(!Machine::comes_back(entered, FakeCore::cross));
    let again = |core: &FakeCore| {
        core.cross();
        core.cross();
    };
    assert!(Machine::comes_back(entered, again));
}

#[test]
fn every_core_is_waited_for() {
    let mut machine = Machine::new(4);
    let table = machine.take(2);
    machine.retire(2, table);
    for index in [0, 3] {
        machine.cores[index].poll();
        assert_ne!(machine.take(2), table);
    }
    machine.cores[1].poll();
    assert_eq!(machine.take(2), table, "core 2 has retired it itself");
}

#[test]
fn another_cores_tables_wait_for_the_own_core_too() {
    let mut machine = Machine::new(3);
    let tables = [(); 3].map(|()| machine.take(0));
    machine.retire(0, tables[0]);
    // The first batch waits, so these two collect.
    machine.retire(0, tables[1]);
    machine.retire(1, tables[2]);
    for core in &machine.cores {
        core.poll();
    }
    // The first batch comes back, and the second begins to wait for all three.
    assert_eq!(machine.take(0), tables[0]);
    machine.cores[1].poll();
    machine.cores[2].poll();
    let fresh = machine.take(0);
    assert!(!tables.contains(&fresh));
    machine.cores[0].poll();
    let back = [machine.take(0), machine.take(0)];
    assert!(back.contains(&tables[1]) && back.contains(&tables[2]));
}

#[test]
fn a_table_retired_later_waits_from_then() {
    let mut machine = Machine::new(2);
    let (first, second) = (machine.take(0), machine.take(0));
    machine.retire(0, first);
    machine.cores[1].poll();
    machine.retire(0, second);
    assert_eq!(
        machine.pool.count(),
        TableFrames {
            in_use: 0,
            retired: 1,
            free: 1
        }
    );
    assert_eq!(machine.take(0), first);
    assert_eq!(machine.take(0).0, 3 * 4096, "a fresh one");
}

#[test]
fn lists_never_grow_when_tables_come_back() {
    let mut machine = Machine::new(2);
    let tables: Vec<_> = (0..1000).map(|_| machine.take(0)).collect();
    let capacities = |pool: &Pool| {
        [
            pool.free.capacity(),
            pool.retired.collecting.capacity() + pool.retired.waiting.capacity(),
        ]
    };
    let before = capacities(&machine.pool);
    for table in tables {
        machine.retire(0, table);
        machine.cores[1].poll();
    }
    machine.retire(0, PhysAddr(0));
    assert_eq!(capacities(&machine.pool), before);
}

#[test]
fn out_of_memory_is_an_error() {
    let mut machine = Machine::new(1);
    let none = machine.pool.take(0, machine.cores.iter(), || None);
    assert_eq!(none, Err(Error::NoMemory));
    assert_eq!(machine.pool.count(), TableFrames::default());
}
