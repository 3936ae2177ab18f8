//! A program's page tables, as logic over any memory: 4 KiB pages of the lower half.
//!
//! A leaf entry is *present* (the CPU's format), *remote* (not present and not zero: its meaning is
//! the caller's) or *empty* (zero). The CPU sets accessed and dirty marks at any time, so every
//! change of an entry is one atomic operation. Walks take no lock. Adding a table and taking one
//! out does; a table that was taken out is left to the caller as [`Unhooked`], because another core
//! may still be walking it.

use core::sync::atomic::{AtomicU64, Ordering};

use bitflags::bitflags;
use hal::PhysAddr;
use spin::Mutex;

use crate::Error;
use crate::mem::frame_bitmap::PAGE_SIZE;
use crate::mem::page_entry::{
    ACCESSED, ADDRESS, DIRTY, ENTRIES, NO_EXECUTE, PRESENT, ROOT_LEVEL, USER, USER_END, WRITABLE,
};

bitflags! {
    /// Rights of a program to a page. The CPU can't forbid reading a page that may be written or
    /// executed; a page without any right stays mapped, out of the program's reach.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Rights: u8 {
        /// Load from it.
        const READ = 1;
        /// Store to it.
        const WRITE = 2;
        /// Execute it.
        const EXECUTE = 4;
    }
}

impl Rights {
    fn bits_of_entry(self) -> u64 {
        let mut bits = 0;
        if !self.is_empty() {
            bits |= USER;
        }
        if self.contains(Self::WRITE) {
            bits |= WRITABLE;
        }
        if !self.contains(Self::EXECUTE) {
            bits |= NO_EXECUTE;
        }
        bits
    }

    fn of(entry: u64) -> Self {
        let mut rights = Self::empty();
        rights.set(Self::READ, entry & USER != 0);
        rights.set(Self::WRITE, entry & WRITABLE != 0);
        rights.set(Self::EXECUTE, entry & NO_EXECUTE == 0);
        rights
    }
}

/// One page as it is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// The frame's physical address.
    pub frame: PhysAddr,
    /// Rights of the program. Reading is part of every other right.
    pub rights: Rights,
    /// The program has written to it since it was mapped or the mark was taken.
    pub dirty: bool,
    /// The program has used it since it was mapped or the mark was taken.
    pub accessed: bool,
}

impl Mapping {
    fn of(entry: u64) -> Option<Self> {
        (entry & PRESENT != 0).then(|| Self {
            frame: PhysAddr(entry & ADDRESS),
            rights: Rights::of(entry),
            dirty: entry & DIRTY != 0,
            accessed: entry & ACCESSED != 0,
        })
    }
}

/// Kinds of tables, by what their entries point to.
///
/// Frames are kept apart by it: what writes to a stale leaf entry can't give the CPU a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// To pages.
    Leaf,
    /// To tables.
    Upper,
}

impl Kind {
    fn of(level: u32) -> Self {
        if level == 1 { Self::Leaf } else { Self::Upper }
    }
}

/// Physical memory as page tables need it.
///
/// An address passed in is that of an entry in a table that `new_table` returned.
pub(crate) trait TableMemory {
    /// Returns a zeroed frame for a table, if one is left.
    fn new_table(&self, kind: Kind) -> Result<PhysAddr, Error>;
    /// Takes back a table that is all zero. It stays so until no core can be walking it.
    fn retire_table(&self, kind: Kind, table: PhysAddr);
    /// Loads an entry.
    fn load(&self, at: PhysAddr) -> u64;
    /// Returns how many of the `count` entries from `at` on, all of one table, come before the
    /// first that is not empty.
    fn first_used(&self, at: PhysAddr, count: usize) -> Option<usize>;
    /// Stores an entry.
    fn store(&self, at: PhysAddr, entry: u64);
    /// Replaces `old` by `new`, or returns what is there instead.
    fn compare_exchange(&self, at: PhysAddr, old: u64, new: u64) -> Result<(), u64>;
}

/// The tree of one address space. Dropping it retires the tables of the lower half and the root.
#[derive(Debug)]
pub(crate) struct Tables<M: TableMemory> {
    memory: M,
    root: PhysAddr,
    /// Held while a table is hung in or taken out. The locks of `memory` are taken under it.
    structure: Mutex<()>,
}

/// Tables that were taken out of the tree, the leaf first. They are to be given to
/// [`Tables::retire`], once no core will cache a way to them any more.
#[must_use]
#[derive(Debug)]
pub(crate) struct Unhooked([Option<PhysAddr>; BELOW_ROOT]);

impl<M: TableMemory> Tables<M> {
    /// Makes an empty tree. The upper half of its root is the caller's to fill.
    pub(crate) fn new(memory: M) -> Result<Self, Error> {
        let root = memory.new_table(Kind::Upper)?;
        Ok(Self {
            memory,
            root,
            structure: Mutex::new(()),
        })
    }

    pub(crate) fn root(&self) -> PhysAddr {
        self.root
    }

    /// Maps the page at `address` to `frame`. A page that is mapped to the same frame already gets
    /// the new rights and keeps its marks; returns what it was then.
    pub(crate) fn map(
        &self,
        address: u64,
        frame: PhysAddr,
        rights: Rights,
    ) -> Result<Option<Mapping>, Error> {
        check(address)?;
        let at = self.entry_or_create(address)?;
        let fresh = frame.0 | PRESENT | rights.bits_of_entry();
        // Two cores may fault on one page; the second finds the first one's entry. A table that is
        // retired meanwhile can't be hit: whoever maps holds the lock that its release needs.
        match self.memory.compare_exchange(at, 0, fresh) {
            Ok(()) => Ok(None),
            Err(there) if there & PRESENT != 0 && there & ADDRESS == frame.0 => {
                Ok(self.set_rights(at, rights))
            }
            Err(_) => Err(Error::Mapped { address }),
        }
    }

    /// The page at `address`, if one is mapped.
    pub(crate) fn query(&self, address: u64) -> Option<Mapping> {
        Mapping::of(self.memory.load(self.page(address)?))
    }

    /// Unmaps the page at `address` and tells what it was. A core may go on using a translation
    /// that it has cached; if it can write by it, the dirty mark was set before.
    pub(crate) fn unmap(&self, address: u64) -> Option<Mapping> {
        self.change(self.page(address)?, |_| 0)
    }

    /// Changes a mapped page's rights and returns its former state; its marks stay.
    pub(crate) fn protect(&self, address: u64, rights: Rights) -> Option<Mapping> {
        self.set_rights(self.page(address)?, rights)
    }

    /// Clears the page's dirty mark and returns its former value.
    pub(crate) fn clear_dirty(&self, address: u64) -> Option<Mapping> {
        self.change(self.page(address)?, |entry| entry & !DIRTY)
    }

    /// Clears the page's accessed mark and returns its former value.
    pub(crate) fn clear_accessed(&self, address: u64) -> Option<Mapping> {
        self.change(self.page(address)?, |entry| entry & !ACCESSED)
    }

    fn set_rights(&self, at: PhysAddr, rights: Rights) -> Option<Mapping> {
        let bits = rights.bits_of_entry();
        self.change(at, |entry| entry & !(USER | WRITABLE | NO_EXECUTE) | bits)
    }

    /// Changes a present entry, whatever the CPU does to it meanwhile, and tells what it was.
    ///
    /// The CPU sets its marks by locked cycles (Intel SDM volume 3A, "Automatic Locking"), so a
    /// compare-and-swap loses none: a plain load and store could drop a dirty mark, and with it the
    /// page's contents.
    fn change(&self, at: PhysAddr, change: impl Fn(u64) -> u64) -> Option<Mapping> {
        let mut entry = self.memory.load(at);
        while entry & PRESENT != 0 {
            match self.memory.compare_exchange(at, entry, change(entry)) {
                Ok(()) => return Mapping::of(entry),
                Err(there) => entry = there,
            }
        }
        None
    }

    /// Returns the entry of the page that begins at `address`.
    fn page(&self, address: u64) -> Option<PhysAddr> {
        check(address).ok()?;
        self.entry(address)
    }

    /// Returns the leaf entry of the page that holds `address`; `None` when its table does not
    /// exist or `address` is not a program's.
    #[inline]
    pub(crate) fn entry(&self, address: u64) -> Option<PhysAddr> {
        if address >= USER_END {
            return None;
        }
        self.walk(address)
    }

    /// Returns the leaf entry of the page that holds `address` and creates missing tables.
    pub(crate) fn entry_or_create(&self, address: u64) -> Result<PhysAddr, Error> {
        if address >= USER_END {
            return Err(Error::NotUserAddress { address });
        }
        match self.walk(address) {
            Some(at) => Ok(at),
            None => self.create(address),
        }
    }

    /// Finds the leaf entry of `address`, if its table exists.
    #[inline]
    fn walk(&self, address: u64) -> Option<PhysAddr> {
        let mut table = self.root;
        for level in (2..=ROOT_LEVEL).rev() {
            let entry = self.memory.load(slot(table, address, level));
            if entry & PRESENT == 0 {
                return None;
            }
            table = PhysAddr(entry & ADDRESS);
        }
        Some(slot(table, address, 1))
    }

    /// Walks as [`Tables::walk`] does and hangs in the tables that are missing.
    #[cold]
    fn create(&self, address: u64) -> Result<PhysAddr, Error> {
        // From the root again: the tables that were walked without the lock may be retired.
        let _structure = self.structure.lock();
        let mut table = self.root;
        let mut above = None;
        for level in (2..=ROOT_LEVEL).rev() {
            let at = slot(table, address, level);
            let mut entry = self.memory.load(at);
            if entry & PRESENT == 0 {
                // The leaf decides about rights.
                // The table is zeroed before the entry shows it, for CPUs walk without a lock:
                // stores are seen in order on x86 (Linux `mm/memory.c`, `pmd_install`, has
                // `smp_wmb` here).
                entry = self.memory.new_table(Kind::of(level - 1))?.0 | PRESENT | WRITABLE | USER;
                self.memory.store(at, entry);
                if let Some(above) = above {
                    self.count(above, |entries| entries + ONE_ENTRY);
                }
            }
            above = Some(at);
            table = PhysAddr(entry & ADDRESS);
        }
        Ok(slot(table, address, 1))
    }

    /// Changes the count of entries in the table that the entry `at` points to; returns it. The
    /// caller holds the lock of the structure; the CPU may be setting the entry's accessed mark.
    fn count(&self, at: PhysAddr, change: impl Fn(u64) -> u64) -> u64 {
        let mut old = self.memory.load(at);
        loop {
            let new = old & !COUNT | change(old & COUNT);
            match self.memory.compare_exchange(at, old, new) {
                Ok(()) => return new & COUNT,
                Err(now) => old = now,
            }
        }
    }

    /// Returns the first address from `from` on and below `end` whose leaf table exists.
    ///
    /// The cost follows the tables that exist, not the length of the range.
    pub(crate) fn next_table(&self, from: u64, end: u64) -> Option<u64> {
        let end = end.min(USER_END);
        let mut address = from;
        'root: while address < end {
            let mut table = self.root;
            for level in (2..=ROOT_LEVEL).rev() {
                let at = slot(table, address, level);
                // An entry of an upper table is present or zero.
                let entry = self.memory.load(at);
                if entry == 0 {
                    let start = address & !(span(level) - 1);
                    let wanted = (end - start).div_ceil(span(level));
                    let left = (ENTRIES - index_of(at)).min(usize::try_from(wanted).unwrap_or(0));
                    let skipped = self.memory.first_used(at, left).unwrap_or(left) as u64;
                    address = start.saturating_add(skipped * span(level));
                    continue 'root;
                }
                table = PhysAddr(entry & ADDRESS);
            }
            return Some(address);
        }
        None
    }

    /// Takes the leaf table that covers `address` out of the tree if it is empty, and then the
    /// upper tables that have become so. The root stays.
    pub(crate) fn unhook(&self, address: u64) -> Option<Unhooked> {
        if address >= USER_END {
            return None;
        }
        let _structure = self.structure.lock();
        let mut way = [(self.root, self.root); BELOW_ROOT];
        let mut table = self.root;
        for (step, level) in way.iter_mut().zip((2..=ROOT_LEVEL).rev()) {
            let at = slot(table, address, level);
            let entry = self.memory.load(at);
            if entry & PRESENT == 0 {
                return None;
            }
            table = PhysAddr(entry & ADDRESS);
            *step = (at, table);
        }
        let mut unhooked = Unhooked([None; BELOW_ROOT]);
        let mut is_empty = self.is_empty(table);
        let mut rest = way.iter().rev().peekable();
        for place in &mut unhooked.0 {
            let Some(&(at, table)) = rest.next().filter(|_| is_empty) else {
                break;
            };
            // The CPU may be setting the entry's accessed mark, but only if it is still present
            // (Intel SDM volume 3A, section 4.8).
            self.memory.store(at, 0);
            *place = Some(table);
            is_empty = match rest.peek() {
                Some(&&(above, _)) => self.count(above, |entries| entries - ONE_ENTRY) == 0,
                None => false,
            };
        }
        unhooked.0[0].is_some().then_some(unhooked)
    }

    /// Retires tables that [`Tables::unhook`] took out.
    pub(crate) fn retire(&self, unhooked: Unhooked) {
        for (table, level) in unhooked.0.into_iter().flatten().zip(1..) {
            self.memory.retire_table(Kind::of(level), table);
        }
    }

    fn is_empty(&self, table: PhysAddr) -> bool {
        self.memory.first_used(table, ENTRIES).is_none()
    }

    /// Clears and retires a table of `level` and those below the first `used` entries of it. What
    /// else its entries hold does not matter.
    fn clear(&self, table: PhysAddr, level: u32, used: usize) {
        let mut index = 0;
        while let Some(skipped) = self.memory.first_used(place(table, index), ENTRIES - index) {
            index += skipped;
            let at = place(table, index);
            let entry = self.memory.load(at);
            if level > 1 && index < used && entry & PRESENT != 0 {
                self.clear(PhysAddr(entry & ADDRESS), level - 1, ENTRIES);
            }
            self.memory.store(at, 0);
            index += 1;
        }
        self.memory.retire_table(Kind::of(level), table);
    }
}

impl<M: TableMemory> Drop for Tables<M> {
    fn drop(&mut self) {
        // The upper half is the kernel's.
        self.clear(self.root, ROOT_LEVEL, ENTRIES / 2);
    }
}

/// The entries of the table that an upper entry points to, in bits that the CPU ignores (Intel SDM
/// volume 3A, table 4-19). Whether a table has become empty is known without a look at all of it.
const COUNT: u64 = 0x3ff << 52;
const ONE_ENTRY: u64 = 1 << 52;
/// Levels below the root's.
const BELOW_ROOT: usize = ROOT_LEVEL as usize - 1;
/// The size of an entry.
const ENTRY: u64 = 8;

fn check(address: u64) -> Result<(), Error> {
    if address < USER_END && address.is_multiple_of(PAGE_SIZE as u64) {
        Ok(())
    } else {
        Err(Error::NotUserPage { address })
    }
}

/// Returns the bytes that an entry of a table of `level` covers.
fn span(level: u32) -> u64 {
    1 << (12 + 9 * (level - 1))
}

fn slot(table: PhysAddr, address: u64, level: u32) -> PhysAddr {
    let index = (address / span(level)) % ENTRIES as u64;
    PhysAddr(table.0 + index * ENTRY)
}

/// Returns the place of an entry within its table.
pub(crate) fn index_of(at: PhysAddr) -> usize {
    usize::try_from(at.0 % PAGE_SIZE as u64 / ENTRY).unwrap_or_default()
}

/// Returns the place of a table's entry.
fn place(table: PhysAddr, index: usize) -> PhysAddr {
    PhysAddr(table.0 + index as u64 * ENTRY)
}

/// Returns the first of some entries that is not empty.
///
/// It looks at two cache lines at once: of the 101,700 instructions that fork and wait took by four
/// entries at once, with each upper table looked through, 20,400 were here; 13,600 of 92,900 are.
#[cfg(any(test, target_os = "none"))]
#[inline]
pub(crate) fn first_used(entries: &[AtomicU64]) -> Option<usize> {
    /// Entries of two cache lines.
    const LINES: usize = 16;
    let used = |entry: &AtomicU64| entry.load(Ordering::Acquire) != 0;
    // Of a full table each entry is asked for in turn.
    if entries.first().is_some_and(used) {
        return Some(0);
    }
    let (lines, rest) = entries.as_chunks::<LINES>();
    let bits = |line: &[AtomicU64; LINES]| {
        line.iter()
            .fold(0, |bits, entry| bits | entry.load(Ordering::Acquire))
    };
    let line = lines.iter().position(|line| bits(line) != 0);
    let start = LINES * line.unwrap_or(lines.len());
    let next = match line {
        Some(line) => lines[line].iter().position(used),
        None => rest.iter().position(used),
    };
    next.map(|next| start + next)
}

#[cfg(test)]
#[path = "user_tables_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "user_entries_tests.rs"]
mod entries_tests;
