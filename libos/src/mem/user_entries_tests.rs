//! Tests of the tree's shape: entries by place, tables that come and go.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::tests::{FakeMemory, PAGE, access, frame, page, tables};
use super::*;

/// Bytes that one leaf table covers.
const LEAF: u64 = 2 << 20;
/// An entry that is not present, with bits that mean something in a present one.
const REMOTE: u64 = 0x8000_1234_5678_9006;

/// Releases the leaf table that covers `address`; returns whether it was empty.
fn release(tables: &Tables<FakeMemory>, address: u64) -> bool {
    let unhooked = tables.unhook(address);
    unhooked.map(|unhooked| tables.retire(unhooked)).is_some()
}

fn set(memory: &FakeMemory, tables: &Tables<FakeMemory>, address: u64, entry: u64) {
    memory.store(tables.entry_or_create(address).unwrap(), entry);
}

#[test]
fn an_entry_is_where_the_cpu_looks() {
    let (memory, tables) = tables();
    let address = 0x1234_5678_9000;
    assert_eq!(tables.entry(address), None);
    assert_eq!(memory.live(), 1, "a look creates nothing");
    let entry = tables.entry_or_create(address + 0x123).unwrap();
    assert_eq!(tables.entry(address), Some(entry));
    assert_eq!(tables.entry(address + PAGE), Some(PhysAddr(entry.0 + 8)));
    assert_eq!(memory.live(), 4);
    memory.compare_exchange(entry, 0, 0x0abc_d007).unwrap();
    assert_eq!(
        access(&memory, tables.root(), address, true, false),
        Some(0x0abc_d000)
    );
}

#[test]
fn entries_of_hostile_addresses_are_errors() {
    let (memory, tables) = tables();
    for address in [USER_END, 0x8000_0000_0000, 0xffff_8000_0000_0000, u64::MAX] {
        assert_eq!(tables.entry(address), None);
        assert_eq!(
            tables.entry_or_create(address),
            Err(Error::NotUserAddress { address })
        );
        assert!(!release(&tables, address));
        assert_eq!(tables.next_table(address, u64::MAX), None);
    }
    assert_eq!(tables.next_table(0, u64::MAX), None);
    assert_eq!(memory.live(), 1);
}

#[test]
fn a_remote_entry_is_left_alone() {
    let (memory, tables) = tables();
    let page = frame(0x1234_5678 & 0xffff);
    let remote = REMOTE & !ADDRESS | page.0;
    set(&memory, &tables, 0x1000, remote);
    let refused = Err(Error::Mapped { address: 0x1000 });
    assert_eq!(tables.map(0x1000, page, Rights::READ), refused);
    assert_eq!(tables.unmap(0x1000), None);
    assert_eq!(tables.protect(0x1000, Rights::all()), None);
    assert_eq!(tables.query(0x1000), None);
    assert_eq!(tables.clear_accessed(0x1000), None);
    assert_eq!(tables.clear_dirty(0x1000), None);
    assert_eq!(memory.load(tables.entry(0x1000).unwrap()), remote);
    assert!(!release(&tables, 0x1000), "a remote entry is not empty");
    drop(tables);
    assert_eq!(memory.live(), 0);
}

#[test]
fn a_released_table_takes_the_empty_ones_above_along() {
    let (memory, tables) = tables();
    let (near, far) = (0x1000, 0x1000 + LEAF);
    set(&memory, &tables, near, REMOTE);
    set(&memory, &tables, far, REMOTE);
    assert_eq!(memory.live(), 5);
    assert!(!release(&tables, near));
    set(&memory, &tables, near, 0);
    assert!(release(&tables, near + 5 * PAGE));
    assert_eq!(memory.live(), 4, "the other leaf keeps the upper tables");
    assert_eq!(tables.entry(near), None);
    assert!(!release(&tables, near), "there is none any more");
    set(&memory, &tables, far, 0);
    assert!(release(&tables, far));
    assert_eq!(memory.live(), 1, "the root stays");
    // And they come back.
    set(&memory, &tables, near, REMOTE);
    assert_eq!(memory.live(), 4);
}

#[test]
fn the_next_table_is_found_over_terabytes_of_nothing() {
    let (memory, tables) = tables();
    assert_eq!(tables.next_table(0, 1 << 46), None);
    let far = (1 << 46) - LEAF;
    set(&memory, &tables, far + 7 * PAGE, REMOTE);
    let before = memory.loads();
    assert_eq!(tables.next_table(0, 1 << 46), Some(far));
    assert!(
        memory.loads() - before < 4 * 3 * 512,
        "{}",
        memory.loads() - before
    );
    assert_eq!(tables.next_table(0, far), None);
    assert_eq!(tables.next_table(far + 3, far + 4), Some(far + 3));
    assert_eq!(tables.next_table(far + LEAF, USER_END), None);
}

#[test]
fn scattered_pages_leave_no_table() {
    let (memory, tables) = tables();
    let pages = || (0..60_000).map(|n| 0x10_0000_0000 + n * LEAF + n % 512 * PAGE);
    for address in pages() {
        set(&memory, &tables, address, REMOTE);
    }
    assert!(memory.live() > 60_000);
    for address in pages().rev() {
        set(&memory, &tables, address, 0);
        assert!(release(&tables, address));
    }
    assert_eq!(memory.live(), 1);
    // One after the other, as a program that maps and unmaps in a loop does.
    for address in pages().take(2000) {
        set(&memory, &tables, address, REMOTE);
        set(&memory, &tables, address, 0);
        assert!(release(&tables, address));
        assert_eq!(memory.live(), 1);
    }
}

#[test]
fn spaces_are_dropped_whatever_their_entries_hold() {
    let memory = FakeMemory::default();
    for n in 0..1000_u64 {
        let tables = Tables::new(memory.clone()).unwrap();
        for address in [0x1000, 0x7f00_0000_0000, n << 30] {
            set(&memory, &tables, address, REMOTE.rotate_left(4) & !PRESENT);
            set(&memory, &tables, address + PAGE, 0x1007);
        }
    }
    assert_eq!(memory.live(), 0);
}

#[test]
fn out_of_memory_leaves_what_is_there_in_reach() {
    let (memory, tables) = tables();
    set(&memory, &tables, 0x1000, REMOTE);
    memory.limit(Some(memory.live() + 1));
    assert_eq!(
        tables.entry_or_create(0x7000_0000_0000),
        Err(Error::NoMemory)
    );
    assert_eq!(tables.entry(0x7000_0000_0000), None);
    assert_eq!(memory.load(tables.entry(0x1000).unwrap()), REMOTE);
    memory.limit(None);
    set(&memory, &tables, 0x7000_0000_0000, REMOTE);
    drop(tables);
    assert_eq!(memory.live(), 0);
}

#[derive(Debug, Clone)]
enum Step {
    Look(u64),
    Create(u64),
    Set(u64, u64),
    Release(u64),
    NextTable(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let entry = prop_oneof![Just(0), Just(0x1007_u64), Just(REMOTE)];
    prop_oneof![
        page().prop_map(Step::Look),
        page().prop_map(Step::Create),
        (page(), entry).prop_map(|(address, entry)| Step::Set(address, entry)),
        page().prop_map(Step::Release),
        (page(), page()).prop_map(|(from, end)| Step::NextTable(from, end)),
    ]
}

/// Model of the tree: for each existing leaf table, by its first address, the entries that are not
/// empty.
type Model = BTreeMap<u64, BTreeMap<u64, u64>>;

fn apply(step: &Step, memory: &FakeMemory, tables: &Tables<FakeMemory>, model: &mut Model) {
    let leaf = |address: u64| address / LEAF * LEAF;
    match *step {
        Step::Look(address) => {
            let expected = model
                .get(&leaf(address))
                .map(|pages| pages.get(&address).copied());
            let entry = tables.entry(address).map(|at| memory.load(at));
            assert_eq!(entry, expected.map(Option::unwrap_or_default));
        }
        Step::Create(address) => {
            tables.entry_or_create(address).unwrap();
            model.entry(leaf(address)).or_default();
        }
        Step::Set(address, entry) => {
            set(memory, tables, address, entry);
            let pages = model.entry(leaf(address)).or_default();
            pages.insert(address, entry);
            pages.retain(|_, entry| *entry != 0);
        }
        Step::Release(address) => {
            let empty = model.get(&leaf(address)).is_some_and(BTreeMap::is_empty);
            assert_eq!(release(tables, address), empty);
            if empty {
                model.remove(&leaf(address));
            }
        }
        Step::NextTable(from, end) => {
            let mut leaves = model.keys().copied();
            let next = leaves
                .find(|&table| table + LEAF > from)
                .map(|table| table.max(from));
            assert_eq!(tables.next_table(from, end), next.filter(|&at| at < end));
        }
    }
}

/// Counts the tables that a tree with these leaves has, if no upper table is empty.
fn tables_of(model: &Model) -> usize {
    let count = |size: u64| {
        let mut all: Vec<_> = model.keys().map(|leaf| leaf / size).collect();
        all.dedup();
        all.len()
    };
    1 + count(LEAF) + count(LEAF << 9) + count(LEAF << 18)
}

proptest! {
    #[test]
    fn the_first_used_entry_is_found_at_any_place(
        len in 0_usize..20,
        used in proptest::collection::vec(0_usize..20, 0..3),
    ) {
        let entries: Vec<AtomicU64> = (0..len).map(|_| AtomicU64::new(0)).collect();
        for &index in used.iter().filter(|&&index| index < len) {
            entries[index].store(1 << 63, Ordering::Relaxed);
        }
        let first = used.iter().copied().filter(|&index| index < len).min();
        prop_assert_eq!(first_used(&entries), first);
    }

    #[test]
    fn entries_behave_as_a_map(steps in prop::collection::vec(step(), 1..300)) {
        let (memory, tables) = tables();
        let mut model = Model::new();
        for step in &steps {
            apply(step, &memory, &tables, &mut model);
            prop_assert_eq!(memory.live(), tables_of(&model));
        }
        drop(tables);
        prop_assert_eq!(memory.live(), 0);
    }
}
