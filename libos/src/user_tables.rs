//! A program's page tables, as logic over any memory: 4 KiB pages of the lower half.
//!
//! Nothing here holds a lock. The CPU itself sets the accessed and dirty bits at any time, so every change of an entry is
//! one atomic operation anyway; and a table once hung in stays until the tree is dropped.

use bitflags::bitflags;
use hal::PhysAddr;

use crate::Error;
use crate::frame_bitmap::PAGE_SIZE;
use crate::page_entry::{
    ACCESSED, ADDRESS, DIRTY, ENTRIES, NO_EXECUTE, PRESENT, ROOT_LEVEL, USER, USER_END, WRITABLE,
};

bitflags! {
    /// What a program may do with a page. The CPU can't forbid reading a page that may be written or executed; a page
    /// without any right stays mapped, out of the program's reach.
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
    /// What the program may do. Reading is part of every other right.
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

/// Physical memory as page tables need it.
///
/// An address passed in is that of an entry in a table that `new_table` gave and `free_table` has not taken back.
pub(crate) trait TableMemory {
    /// A zeroed frame for a table, if one is left.
    fn new_table(&self) -> Option<PhysAddr>;
    /// Takes a table back.
    fn free_table(&self, table: PhysAddr);
    /// Loads an entry.
    fn load(&self, at: PhysAddr) -> u64;
    /// Stores an entry and returns what was there, in one atomic step.
    fn swap(&self, at: PhysAddr, entry: u64) -> u64;
    /// Replaces `old` by `new`, or returns what is there instead.
    fn compare_exchange(&self, at: PhysAddr, old: u64, new: u64) -> Result<(), u64>;
}

/// The tree of one address space. Dropping it frees the tables of the lower half and the root.
#[derive(Debug)]
pub(crate) struct Tables<M: TableMemory> {
    memory: M,
    root: PhysAddr,
}

impl<M: TableMemory> Tables<M> {
    /// An empty tree; `None` when memory is out. The upper half of its root is the caller's to fill.
    pub(crate) fn new(memory: M) -> Option<Self> {
        let root = memory.new_table()?;
        Some(Self { memory, root })
    }

    pub(crate) fn root(&self) -> PhysAddr {
        self.root
    }

    /// Maps the page at `address` to `frame`. A page that is mapped to the same frame already gets the new rights and keeps
    /// its marks; returns what it was then.
    pub(crate) fn map(
        &self,
        address: u64,
        frame: PhysAddr,
        rights: Rights,
    ) -> Result<Option<Mapping>, Error> {
        check(address)?;
        let at = self.leaf_or_create(address)?;
        let fresh = frame.0 | PRESENT | rights.bits_of_entry();
        match self.memory.compare_exchange(at, 0, fresh) {
            Ok(()) => Ok(None),
            Err(there) if there & ADDRESS == frame.0 => Ok(self.set_rights(at, rights)),
            Err(_) => Err(Error::Mapped { address }),
        }
    }

    /// The page at `address`, if one is mapped.
    pub(crate) fn query(&self, address: u64) -> Option<Mapping> {
        Mapping::of(self.memory.load(self.leaf(address)?))
    }

    /// Unmaps the page at `address` and tells what it was. A core may go on using a translation that it has cached; if it can
    /// write by it, the dirty mark was set before.
    pub(crate) fn unmap(&self, address: u64) -> Option<Mapping> {
        Mapping::of(self.memory.swap(self.leaf(address)?, 0))
    }

    /// Changes a mapped page's rights and tells what it was; its marks stay.
    pub(crate) fn protect(&self, address: u64, rights: Rights) -> Option<Mapping> {
        self.set_rights(self.leaf(address)?, rights)
    }

    /// Takes the page's dirty mark and tells what it was.
    pub(crate) fn clear_dirty(&self, address: u64) -> Option<Mapping> {
        self.change(self.leaf(address)?, |entry| entry & !DIRTY)
    }

    /// Takes the page's accessed mark and tells what it was.
    pub(crate) fn clear_accessed(&self, address: u64) -> Option<Mapping> {
        self.change(self.leaf(address)?, |entry| entry & !ACCESSED)
    }

    fn set_rights(&self, at: PhysAddr, rights: Rights) -> Option<Mapping> {
        let bits = rights.bits_of_entry();
        self.change(at, |entry| entry & !(USER | WRITABLE | NO_EXECUTE) | bits)
    }

    /// Changes a present entry, whatever the CPU does to it meanwhile, and tells what it was.
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

    /// Where the entry of the page at `address` is; `None` if its table does not exist, or `address` is no program's page.
    fn leaf(&self, address: u64) -> Option<PhysAddr> {
        check(address).ok()?;
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

    fn leaf_or_create(&self, address: u64) -> Result<PhysAddr, Error> {
        let mut table = self.root;
        for level in (2..=ROOT_LEVEL).rev() {
            let at = slot(table, address, level);
            let entry = self.memory.load(at);
            table = if entry & PRESENT == 0 {
                self.hang_table(at)?
            } else {
                PhysAddr(entry & ADDRESS)
            };
        }
        Ok(slot(table, address, 1))
    }

    /// Hangs a new table into the empty entry at `at`; if another core was first, returns its table.
    fn hang_table(&self, at: PhysAddr) -> Result<PhysAddr, Error> {
        let table = self.memory.new_table().ok_or(Error::NoMemory)?;
        // The leaf decides about rights.
        match self
            .memory
            .compare_exchange(at, 0, table.0 | PRESENT | WRITABLE | USER)
        {
            Ok(()) => Ok(table),
            Err(there) => {
                self.memory.free_table(table);
                Ok(PhysAddr(there & ADDRESS))
            }
        }
    }

    /// Frees a table of `level` and those below the first `entries` of it.
    fn free(&self, table: PhysAddr, level: u32, entries: usize) {
        if level > 1 {
            for index in 0..entries as u64 {
                let entry = self.memory.load(PhysAddr(table.0 + index * ENTRY));
                if entry & PRESENT != 0 {
                    self.free(PhysAddr(entry & ADDRESS), level - 1, ENTRIES);
                }
            }
        }
        self.memory.free_table(table);
    }
}

impl<M: TableMemory> Drop for Tables<M> {
    fn drop(&mut self) {
        // The upper half is the kernel's.
        self.free(self.root, ROOT_LEVEL, ENTRIES / 2);
    }
}

/// The size of an entry.
const ENTRY: u64 = 8;

fn check(address: u64) -> Result<(), Error> {
    if address < USER_END && address.is_multiple_of(PAGE_SIZE as u64) {
        Ok(())
    } else {
        Err(Error::NotUserPage { address })
    }
}

fn slot(table: PhysAddr, address: u64, level: u32) -> PhysAddr {
    let index = address >> (12 + 9 * (level - 1)) & (ENTRIES as u64 - 1);
    PhysAddr(table.0 + index * ENTRY)
}

#[cfg(test)]
#[path = "user_tables_tests.rs"]
mod tests;
