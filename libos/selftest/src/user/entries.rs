//! Leaf entries that are changed by place, tables that come and go, and changes in batches.

use alloc::vec::Vec;

use libos::page_entry::{ACCESSED, ADDRESS, DIRTY, NO_EXECUTE, PRESENT, USER, WRITABLE};
use libos::{AddressSpace, Entry, PAGE_SIZE, PageFrame, Rights, Trap};

use super::code;
use super::memory::Counter;
use super::{CODE, DATA, NOWHERE, PAGE, Program, data_word, frame};

/// Bytes that one leaf table covers.
const LEAF: u64 = 2 << 20;
/// An entry that is not present.
const REMOTE: u64 = 0x1234_5678_9abc_def0;

pub(super) async fn run() {
    a_program_uses_what_an_entry_holds().await;
    remote_entries_are_left_alone().await;
    entries_are_walked();
    released_tables_are_not_walked().await;
    scattered_pages_leave_no_table().await;
    spaces_are_dropped_whatever_they_hold().await;
    changes_in_a_batch_reach_every_core().await;
    tables_are_released_under_a_running_program().await;
}

/// Returns the entry of a page that a program may read and write.
fn read_write(page: PageFrame) -> u64 {
    page.phys().0 | PRESENT | WRITABLE | USER | NO_EXECUTE
}

/// Empties an entry, whatever marks the CPU sets meanwhile, and returns what it held.
fn take(entry: Entry) -> u64 {
    let mut old = entry.load();
    while let Err(now) = entry.compare_exchange(old, 0) {
        old = now;
    }
    old
}

fn missing(write: bool) -> Trap {
    Trap::PageFault {
        addr: DATA,
        write,
        execute: false,
        present: false,
    }
}

async fn a_program_uses_what_an_entry_holds() {
    let mut program = Program::with(code::STORE, DATA);
    program.expect_syscall().await;
    let entry = program.space.entry(DATA).expect("its table exists");
    let was = take(entry);
    assert_eq!(was, read_write(program.data) | ACCESSED | DIRTY);
    program.space.changed(DATA);
    program.thread.registers.rip = CODE;
    assert_eq!(program.next().await, missing(true));
    entry
        .compare_exchange(0, read_write(frame(3)))
        .expect("empty");
    program.thread.registers.rax = 0xdddd;
    program.expect_syscall().await;
    assert_eq!(data_word(frame(3), 0), 0xdddd);
    assert_eq!(entry.load() & ADDRESS, frame(3).phys().0);
}

async fn remote_entries_are_left_alone() {
    let mut program = Program::with(code::STORE, DATA);
    let entry = program.space.entry_or_create(DATA).expect("memory");
    take(entry);
    program.space.changed_all();
    entry.compare_exchange(0, REMOTE).expect("empty");
    assert_eq!(program.next().await, missing(true));
    assert!(program.space.map(DATA, program.data, Rights::READ).is_err());
    assert_eq!(program.space.query(DATA), None);
    assert_eq!(program.space.unmap(DATA), None);
    assert!(!program.space.release(DATA));
    assert_eq!(entry.load(), REMOTE);
}

fn entries_are_walked() {
    let space = AddressSpace::new().expect("memory");
    assert_eq!(space.entries(0, u64::MAX).count(), 0);
    let first = NOWHERE / LEAF * LEAF;
    let entry = space.entry_or_create(first).expect("memory");
    assert_eq!(entry.previous(), None);
    let mut last = entry;
    while let Some(next) = last.next() {
        assert_eq!(next.previous(), Some(last));
        last = next;
    }
    assert_eq!(space.entry(first + LEAF - 1), Some(last));
    space.entry_or_create(first + 8 * LEAF).expect("memory");
    let mut all = space.entries(0, u64::MAX);
    assert_eq!(all.next(), Some((first, entry)));
    assert_eq!(
        all.last().map(|(address, _)| address),
        Some(first + 9 * LEAF - PAGE)
    );
    assert_eq!(space.entries(0, u64::MAX).count(), 2 * PAGE_SIZE / 8);
    let top = libos::USER_END - PAGE;
    space.entry_or_create(top).expect("memory");
    assert_eq!(space.entries(top, u64::MAX).count(), 1);
    assert_eq!(
        space
            .entries(first + PAGE + 5, first + 3 * PAGE + 1)
            .count(),
        3
    );
}

async fn released_tables_are_not_walked() {
    let mut program = Program::with(code::LOAD, DATA);
    program.expect_syscall().await;
    let in_use = libos::frames::tables().in_use;
    assert!(!program.space.release(DATA), "it is in use");
    take(program.space.entry(DATA).expect("its table exists"));
    program.space.changed(DATA);
    // The code lies in another leaf table below the same upper ones.
    assert!(program.space.release(DATA));
    assert_eq!(program.space.entry(DATA), None);
    assert_eq!(libos::frames::tables().in_use, in_use - 1);
    program.thread.registers.rip = CODE;
    assert_eq!(program.next().await, missing(false));
    let entry = program.space.entry_or_create(DATA).expect("memory");
    entry
        .compare_exchange(0, read_write(program.data))
        .expect("empty");
    program.expect_syscall().await;
}

async fn scattered_pages_leave_no_table() {
    let space = AddressSpace::new().expect("memory");
    let in_use = libos::frames::tables().in_use;
    for n in 0..2_000 {
        let address = NOWHERE + n * LEAF;
        let entry = space.entry_or_create(address).expect("memory");
        entry.compare_exchange(0, REMOTE).expect("empty");
        take(entry);
        assert!(space.release(address));
        assert_eq!(libos::frames::tables().in_use, in_use);
        if n % 64 == 0 {
            libos::yield_now().await;
        }
    }
    assert_eq!(space.next_table(0, u64::MAX), None);
}

async fn spaces_are_dropped_whatever_they_hold() {
    let in_use = libos::frames::tables().in_use;
    for n in 0..1_000 {
        let space = AddressSpace::new().expect("memory");
        for address in [PAGE, NOWHERE + n * LEAF, n << 30] {
            let entry = space.entry_or_create(address).expect("memory");
            entry.compare_exchange(0, REMOTE).expect("empty");
        }
        drop(space);
        if n % 16 == 0 {
            libos::yield_now().await;
        }
    }
    assert_eq!(libos::frames::tables().in_use, in_use);
    // What another core kept back comes when that core has polled a task or slept.
    let end = libos::now() + hal::Duration::from_secs(10);
    while libos::frames::tables().retired > 0 {
        assert!(libos::now() < end, "tables stay retired");
        libos::yield_now().await;
        drop(AddressSpace::new());
    }
}

/// Starts a counter on every core but this one, each in a space of its own.
fn counters() -> Vec<Counter> {
    let cores = (1..libos::cores()).take(4);
    cores
        .map(|core| Counter::start_on(core, 3 * core))
        .collect()
}

async fn changes_in_a_batch_reach_every_core() {
    for round in 0..10 {
        let counters = counters();
        for counter in &counters {
            counter.moves().await;
        }
        for counter in &counters {
            let entry = counter.space.entry(DATA).expect("its table exists");
            assert!(take(entry) & DIRTY != 0);
            if round % 2 == 0 {
                counter.space.changed(DATA);
            } else {
                counter.space.changed_all();
            }
        }
        libos::flush_cores(counters.iter().map(|counter| counter.space.asid()));
        for counter in counters {
            counter.expect_stopped_store(false).await;
        }
    }
}

async fn tables_are_released_under_a_running_program() {
    let counters = counters();
    for round in 0..300 {
        for counter in &counters {
            // The counter's core may have the upper tables cached that lead here.
            let address = DATA + (1 + round % 7) * LEAF;
            let entry = counter.space.entry_or_create(address).expect("memory");
            entry.compare_exchange(0, REMOTE).expect("empty");
            take(entry);
            assert!(counter.space.release(address));
        }
        libos::yield_now().await;
    }
    for counter in counters {
        counter.moves().await;
        take(counter.space.entry(DATA).expect("its table exists"));
        counter.space.changed(DATA);
        libos::flush_cores(core::iter::once(counter.space.asid()));
        counter.expect_stopped_store(false).await;
    }
}
