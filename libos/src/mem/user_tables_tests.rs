use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;

pub(super) const PAGE: u64 = PAGE_SIZE as u64;

/// Tables by number, as strict as can be: an access outside a live table panics, and so does
/// freeing one twice.
#[derive(Clone, Default)]
pub(super) struct FakeMemory(Rc<FakeState>);

type FakeTable = (Kind, Box<[u64; ENTRIES]>);

/// Address of the first table: far up, so that a cut-off address shows.
const BASE: u64 = 0x000f_0000_0000_0000;

#[derive(Default)]
struct FakeState {
    /// The tables made so far; `None` for one that was retired.
    tables: RefCell<Vec<Option<FakeTable>>>,
    live: Cell<usize>,
    limit: Cell<Option<usize>>,
    loads: Cell<usize>,
    /// Done once, just before the next compare-and-exchange: what another core gets in with.
    meanwhile: RefCell<Option<(u64, u64)>>,
}

impl FakeMemory {
    pub(super) fn live(&self) -> usize {
        self.0.live.get()
    }

    pub(super) fn limit(&self, tables: Option<usize>) {
        self.0.limit.set(tables);
    }

    /// Returns how many entries were loaded so far.
    pub(super) fn loads(&self) -> usize {
        self.0.loads.get()
    }

    fn with<R>(&self, at: PhysAddr, f: impl FnOnce(&mut u64) -> R) -> R {
        assert_eq!(at.0 % 8, 0);
        let mut tables = self.0.tables.borrow_mut();
        let (_, table) = tables[Self::number(at)].as_mut().expect("no such table");
        f(&mut table[usize::try_from(at.0 % 4096 / 8).unwrap()])
    }

    fn number(at: PhysAddr) -> usize {
        usize::try_from((at.0 - BASE) / PAGE).unwrap()
    }
}

impl TableMemory for FakeMemory {
    fn new_table(&self, kind: Kind) -> Result<PhysAddr, Error> {
        if self.0.limit.get().is_some_and(|limit| self.live() >= limit) {
            return Err(Error::NoMemory);
        }
        let mut tables = self.0.tables.borrow_mut();
        tables.push(Some((kind, Box::new([0; ENTRIES]))));
        self.0.live.set(self.0.live.get() + 1);
        Ok(PhysAddr(BASE + (tables.len() as u64 - 1) * PAGE))
    }

    fn retire_table(&self, kind: Kind, table: PhysAddr) {
        let mut tables = self.0.tables.borrow_mut();
        let (was, entries) = tables[Self::number(table)].take().expect("retired twice");
        assert_eq!(was, kind);
        assert!(entries.iter().all(|&entry| entry == 0), "retired in use");
        self.0.live.set(self.0.live.get() - 1);
    }

    fn first_used(&self, at: PhysAddr, count: usize) -> Option<usize> {
        assert!(index_of(at) + count <= ENTRIES, "beyond the table");
        (0..count).find(|&index| self.load(place(at, index)) != 0)
    }

    fn load(&self, at: PhysAddr) -> u64 {
        self.0.loads.set(self.0.loads.get() + 1);
        self.with(at, |entry| *entry)
    }

    fn store(&self, at: PhysAddr, value: u64) {
        self.with(at, |entry| *entry = value);
    }

    fn compare_exchange(&self, at: PhysAddr, old: u64, new: u64) -> Result<(), u64> {
        if let Some((at, value)) = self.0.meanwhile.borrow_mut().take() {
            self.with(PhysAddr(at), |entry| *entry = value);
        }
        self.with(at, |entry| {
            if *entry == old {
                *entry = new;
                Ok(())
            } else {
                Err(*entry)
            }
        })
    }
}

/// Accesses a page as the CPU does: walks, checks, and sets the marks. Written from the SDM's
/// words, not by the walker's constants.
pub(super) fn access(
    memory: &FakeMemory,
    root: PhysAddr,
    address: u64,
    write: bool,
    fetch: bool,
) -> Option<u64> {
    let mut table = root.0;
    let (mut user, mut writable, mut executable) = (true, true, true);
    for level in (0..4).rev() {
        let at = PhysAddr(table + ((address >> (12 + 9 * level)) & 0x1ff) * 8);
        let entry = memory.load(at);
        if entry & 0x1 == 0 {
            return None;
        }
        writable &= entry & 0x2 != 0;
        user &= entry & 0x4 != 0;
        executable &= entry >> 63 == 0;
        table = entry & 0x000f_ffff_ffff_f000;
        if level == 0 {
            if !user || (write && !writable) || (fetch && !executable) {
                return None;
            }
            memory.store(at, entry | 0x20 | if write { 0x40 } else { 0 });
        }
    }
    Some(table)
}

pub(super) fn tables() -> (FakeMemory, Tables<FakeMemory>) {
    let memory = FakeMemory::default();
    let tables = Tables::new(memory.clone()).unwrap();
    (memory, tables)
}

pub(super) fn frame(n: u64) -> PhysAddr {
    PhysAddr(n * PAGE)
}

#[test]
fn the_kernels_half_is_never_touched() {
    let (memory, tables) = tables();
    // Tables that are not of this memory: the strict fake would panic.
    for index in 256..512 {
        memory.store(PhysAddr(tables.root().0 + index * 8), 0x1003);
    }
    tables.map(0x1000, frame(1), Rights::READ).unwrap();
    tables.map(USER_END - PAGE, frame(1), Rights::READ).unwrap();
    assert_eq!(memory.load(PhysAddr(tables.root().0 + 256 * 8)), 0x1003);
    drop(tables);
    assert_eq!(memory.live(), 0);
}

#[test]
fn an_entry_has_the_architectures_bits() {
    let (memory, tables) = tables();
    let address = 0x1234_5678_9000;
    for (rights, bits) in [
        (Rights::READ, 0x8000_0000_0000_0005),
        (Rights::WRITE, 0x8000_0000_0000_0007),
        (Rights::READ | Rights::WRITE, 0x8000_0000_0000_0007),
        (Rights::READ | Rights::EXECUTE, 0x0000_0000_0000_0005),
        (Rights::all(), 0x0000_0000_0000_0007),
        (Rights::empty(), 0x8000_0000_0000_0001_u64),
    ] {
        tables.map(address, frame(0xabcde), rights).unwrap();
        let leaf = tables.page(address).unwrap();
        assert_eq!(memory.load(leaf), 0xabc_de000 | bits, "{rights:?}");
        tables.unmap(address).unwrap();
    }
}

#[test]
fn hostile_addresses_are_errors() {
    let (memory, tables) = tables();
    for address in [
        1,
        0xfff,
        USER_END,
        USER_END + 0xfff,
        0x8000_0000_0000,
        0x1234_0000_0000_0000,
        0xffff_7fff_ffff_f000,
        0xffff_8000_0000_0000,
        0xffff_ffff_8000_0000,
        0xffff_ffff_ffff_f000,
        u64::MAX,
    ] {
        let refused = Err(Error::NotUserPage { address });
        assert_eq!(tables.map(address, frame(1), Rights::READ), refused);
        assert_eq!(tables.unmap(address), None);
        assert_eq!(tables.protect(address, Rights::READ), None);
        assert_eq!(tables.query(address), None);
        assert_eq!(tables.clear_accessed(address), None);
        assert_eq!(tables.clear_dirty(address), None);
    }
    assert_eq!(memory.live(), 1);
}

#[test]
fn a_mapped_page_takes_new_rights_but_no_other_frame() {
    let (memory, tables) = tables();
    assert_eq!(
        tables.map(0x1000, frame(1), Rights::READ | Rights::WRITE),
        Ok(None)
    );
    access(&memory, tables.root(), 0x1000, true, false).unwrap();
    let before = tables.query(0x1000);
    assert_eq!(tables.map(0x1000, frame(1), Rights::READ), Ok(before));
    let now = tables.query(0x1000).unwrap();
    assert_eq!(
        now,
        Mapping {
            frame: frame(1),
            rights: Rights::READ,
            dirty: true,
            accessed: true
        }
    );
    let other = tables.map(0x1000, frame(2), Rights::READ);
    assert_eq!(other, Err(Error::Mapped { address: 0x1000 }));
    assert_eq!(tables.query(0x1000), Some(now));
}

#[test]
fn out_of_memory_is_an_error_and_leaves_the_rest_alone() {
    let (memory, tables) = tables();
    tables.map(0x1000, frame(1), Rights::READ).unwrap();
    memory.0.limit.set(Some(memory.live() + 1));
    let far = 0x7000_0000_0000;
    assert_eq!(
        tables.map(far, frame(2), Rights::READ),
        Err(Error::NoMemory)
    );
    assert_eq!(tables.query(far), None);
    assert_eq!(tables.map(0x2000, frame(2), Rights::READ), Ok(None));
    drop(tables);
    assert_eq!(memory.live(), 0);
}

#[test]
fn a_mark_set_meanwhile_is_not_lost() {
    let (memory, tables) = tables();
    tables
        .map(0x1000, frame(1), Rights::READ | Rights::WRITE)
        .unwrap();
    let leaf = tables.page(0x1000).unwrap();
    // The program writes between the walker's load and its change.
    *memory.0.meanwhile.borrow_mut() = Some((leaf.0, memory.load(leaf) | ACCESSED | DIRTY));
    let was = tables.protect(0x1000, Rights::READ).unwrap();
    assert!(was.dirty && was.accessed);
    assert!(tables.unmap(0x1000).unwrap().dirty);
    // And a page that goes away meanwhile is gone.
    tables.map(0x1000, frame(1), Rights::READ).unwrap();
    *memory.0.meanwhile.borrow_mut() = Some((leaf.0, 0));
    assert_eq!(tables.protect(0x1000, Rights::all()), None);
    assert_eq!(tables.query(0x1000), None);
}

#[derive(Debug, Clone)]
enum Step {
    Map(u64, u64, Rights),
    Unmap(u64),
    Protect(u64, Rights),
    ClearAccessed(u64),
    ClearDirty(u64),
    Access {
        address: u64,
        write: bool,
        fetch: bool,
    },
}

/// Few enough addresses that steps meet, spread over all levels of the tree.
pub(super) fn page() -> impl Strategy<Value = u64> {
    (0..2_u64, 0..2_u64, 0..2_u64, 0..3_u64).prop_map(|(a, b, c, d)| {
        ((a * 0x7f) << 40) | ((b * 511) << 30) | ((c * 3) << 21) | (d << 12)
    })
}

fn rights() -> impl Strategy<Value = Rights> {
    // The CPU reads what it may write or execute.
    (0..8_u8).prop_map(|bits| match Rights::from_bits_truncate(bits) {
        none if none.is_empty() => none,
        some => some | Rights::READ,
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (page(), 1..4_u64, rights()).prop_map(|(address, n, rights)| Step::Map(address, n, rights)),
        page().prop_map(Step::Unmap),
        (page(), rights()).prop_map(|(address, rights)| Step::Protect(address, rights)),
        page().prop_map(Step::ClearAccessed),
        page().prop_map(Step::ClearDirty),
        (page(), any::<bool>(), any::<bool>()).prop_map(|(address, write, fetch)| Step::Access {
            address,
            write,
            fetch: fetch && !write
        }),
    ]
}

fn apply(
    step: &Step,
    memory: &FakeMemory,
    tables: &Tables<FakeMemory>,
    model: &mut BTreeMap<u64, Mapping>,
) {
    match *step {
        Step::Map(address, n, rights) => {
            let fresh = Mapping {
                frame: frame(n),
                rights,
                dirty: false,
                accessed: false,
            };
            let expected = match model.get(&address).copied() {
                Some(there) if there.frame != frame(n) => Err(Error::Mapped { address }),
                there => Ok(there),
            };
            assert_eq!(tables.map(address, frame(n), rights), expected);
            if expected.is_ok() {
                model.entry(address).or_insert(fresh).rights = rights;
            }
        }
        Step::Unmap(address) => assert_eq!(tables.unmap(address), model.remove(&address)),
        Step::Protect(address, rights) => {
            assert_eq!(
                tables.protect(address, rights),
                model.get(&address).copied()
            );
            model.entry(address).and_modify(|page| page.rights = rights);
        }
        Step::ClearAccessed(address) => {
            assert_eq!(tables.clear_accessed(address), model.get(&address).copied());
            model
                .entry(address)
                .and_modify(|page| page.accessed = false);
        }
        Step::ClearDirty(address) => {
            assert_eq!(tables.clear_dirty(address), model.get(&address).copied());
            model.entry(address).and_modify(|page| page.dirty = false);
        }
        Step::Access {
            address,
            write,
            fetch,
        } => {
            let mut needed = Rights::READ;
            needed.set(Rights::WRITE, write);
            needed.set(Rights::EXECUTE, fetch);
            let page = model
                .get_mut(&address)
                .filter(|page| page.rights.contains(needed));
            let got = access(memory, tables.root(), address, write, fetch);
            assert_eq!(got, page.as_ref().map(|page| page.frame.0));
            if let Some(page) = page {
                page.accessed = true;
                page.dirty |= write;
            }
        }
    }
}

proptest! {
    #[test]
    fn a_tree_behaves_as_a_map(steps in prop::collection::vec(step(), 1..200)) {
        let (memory, tables) = tables();
        let mut model = BTreeMap::new();
        for step in &steps {
            apply(step, &memory, &tables, &mut model);
        }
        for (address, page) in &model {
            prop_assert_eq!(tables.query(*address), Some(*page));
        }
        drop(tables);
        prop_assert_eq!(memory.live(), 0);
    }

    #[test]
    fn no_address_panics(address: u64) {
        let (_, tables) = tables();
        let mapped = tables.map(address, frame(1), Rights::READ);
        prop_assert_eq!(mapped.is_ok(), address < USER_END && address.is_multiple_of(PAGE));
        prop_assert_eq!(tables.query(address).is_some(), mapped.is_ok());
    }
}
