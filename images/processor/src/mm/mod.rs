//! A program's memory: VMAs, page tables, and the chunks behind them.
//!
//! A miss goes: trap ([`fault`]), walk ([`Tables::entry`]), slot ([`pcache::Cache::touch`]). The
//! VMAs are asked only about pages that nobody touched. What changes an address space ([`map`])
//! walks the tables that exist, so its cost follows what is there, not the length asked for.
//!
//! * [`vma`]: which addresses a program may touch, and what is there first.
//! * [`supply`]: chunks and promises from M.
//! * [`mod@file`]: pages of files of S, shared by all that map them; `write_back`: those that
//!   programs store to.
//! * [`fault`]: page faults: misses, first touches, copy-on-write, stack growth.
//! * `read`: reads of files out of those pages.
//! * `now`: mappings made and unmade without waiting.
//! * [`map`]: mmap, munmap, mprotect, mremap, madvise, and fork of an address space.
//! * [`copy`]: the kernel's way to a program's memory.
//!
//! One thread at a time changes an address space (`Space::change`). Faults and copies go on
//! meanwhile: an entry that is empty becomes another under the lock of the VMAs, and all else is
//! the cache's.

pub(crate) mod beyond;
pub mod copy;
pub mod fault;
pub mod file;
pub(crate) mod file_cache;
pub mod layout;
pub mod map;
mod now;
pub mod object;
mod read;
pub mod supply;
pub mod vma;
mod walk;
mod write_back;

use alloc::collections::BTreeMap;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use locks::Mutex;
use messages::{CHUNK_SIZE, PAGE_SIZE, USER_END};
use pcache::{ChunkId, Machine, Mapping, Page, Prefetcher, SpaceId, Vpn};

use crate::platform::Platform;
use crate::process::Node;
use crate::wait::{Gate, Pass};
use layout::Layout;
use vma::Vmas;

/// One past the highest stack address: the last whole chunk's worth below the user's end.
pub const STACK_TOP: u64 = USER_END / CHUNK_SIZE * CHUNK_SIZE;
/// The default limit of a stack (`RLIMIT_STACK`).
pub const STACK_LIMIT: u64 = 8 << 20;
/// Distance between a stack and what lies below it (Linux's `stack_guard_gap`: 256 pages).
pub const STACK_GAP: u64 = 256 * 4096;
/// One past the highest address that a mapping without a wish gets where nothing is random; stacks
/// may grow to 128 MB above, Linux's least gap for them.
pub const MMAP_TOP: u64 = STACK_TOP - (128 << 20) - STACK_GAP;
/// The lowest address that may be mapped (Linux's `vm.mmap_min_addr`).
pub const MMAP_MIN: u64 = 65_536;

/// The page tables of one address space. A table's entries are not kept across a wait.
pub trait Tables {
    /// A leaf entry's place.
    type Entry: pcache::Entry;
    /// Returns the space's number, by which the machine's shootdowns know it.
    fn space(&self) -> SpaceId;
    /// Returns the leaf entry of a page; `None` when its table does not exist.
    fn entry(&self, addr: u64) -> Option<Self::Entry>;
    /// Returns the leaf entry of a page, making its tables; `None` when there is no memory for
    /// them.
    fn entry_or_create(&self, addr: u64) -> Option<Self::Entry>;
    /// Returns the first address from `from` on and below `end` whose leaf table exists.
    fn next_table(&self, from: u64, end: u64) -> Option<u64>;
    /// Takes the leaf table of an address away if it is empty; whether it did. Shootdowns of what
    /// it held are done.
    fn release(&self, addr: u64) -> bool;
}

/// The range of a program's heap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Heap {
    pub(crate) start: u64,
    /// The break: one past the last byte that the program may use.
    pub(crate) end: u64,
}

/// An address space.
pub struct Space<'n, N: Node> {
    pub(crate) node: &'n N,
    /// The process whose chunks M accounts these are.
    pid: u32,
    tables: N::Tables,
    /// Taken by first touches and by what changes the address space; sets' locks are taken under
    /// it.
    vmas: Mutex<Vmas>,
    /// The chunk of each 2 MB of addresses, from which its pages get their slots.
    regions: Mutex<BTreeMap<u64, ChunkId>>,
    /// The misses of the kernel's own copies.
    prefetcher: Mutex<Prefetcher>,
    /// Some mapping has an advice: only then does a miss ask the VMAs for it.
    advised: AtomicBool,
    faults: AtomicU32,
    /// Pages that were copied since other tasks had their turn.
    breath: AtomicU32,
    /// The most bytes that a stack may grow to.
    pub(crate) stack_limit: AtomicU64,
    /// The heap's range, which `brk` moves the end of.
    pub(crate) heap: Mutex<Heap>,
    /// The places of its parts.
    pub(crate) layout: Layout,
    /// Held while the address space changes.
    change: Gate,
}

/// A leaf entry's place, as the node's machine knows it.
pub(crate) type EntryOf<N> = <<N as Node>::Machine as Machine>::Entry;

impl<'n, N: Node> Space<'n, N> {
    /// Returns an empty address space with these page tables.
    pub(crate) fn new(node: &'n N, pid: u32, tables: N::Tables, layout: Layout) -> Self {
        Self {
            node,
            pid,
            tables,
            vmas: Mutex::default(),
            regions: Mutex::default(),
            prefetcher: Mutex::default(),
            advised: AtomicBool::new(false),
            faults: AtomicU32::new(0),
            breath: AtomicU32::new(0),
            stack_limit: AtomicU64::new(STACK_LIMIT),
            heap: Mutex::default(),
            layout,
            change: Gate::default(),
        }
    }

    /// Returns the time since 1970 in nanoseconds.
    pub(crate) fn node_time(&self) -> u64 {
        let now = self.node.platform().wall_clock();
        u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Returns the page tables.
    pub fn tables(&self) -> &N::Tables {
        &self.tables
    }

    /// Waits for the right to change the address space; faults and copies go on meanwhile.
    pub(crate) async fn change(&self) -> Pass<'_> {
        self.change.pass().await
    }

    /// Returns whether somebody changes the address space now.
    pub(crate) fn is_changing(&self) -> bool {
        self.change.try_pass().is_none()
    }

    /// Calls `look` with the VMAs.
    pub fn with_vmas<T>(&self, look: impl FnOnce(&Vmas) -> T) -> T {
        look(&self.vmas.lock())
    }

    /// Returns the page faults handled, those of the kernel's own copies included.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults
            .load(core::sync::atomic::Ordering::Relaxed)
            .into()
    }

    /// Sets how far the stack may grow.
    pub(crate) fn set_stack_limit(&self, limit: u64) {
        self.stack_limit
            .store(limit, core::sync::atomic::Ordering::Relaxed);
    }

    /// Returns the bytes of pages that were touched and not given back, wherever they are.
    pub(crate) fn resident(&self) -> u64 {
        let regions = self.regions.lock();
        let chunks = self.node.cache().chunks();
        let pages: u64 = regions
            .values()
            .map(|&id| u64::from(chunks.in_use(id)))
            .sum();
        pages * PAGE_SIZE
    }

    fn page(&self, addr: u64) -> Page {
        Page {
            space: self.tables.space(),
            vpn: Vpn::of(addr),
        }
    }

    fn mapping(&self, addr: u64, entry: EntryOf<N>) -> Mapping<EntryOf<N>> {
        Mapping {
            entry,
            page: self.page(addr),
        }
    }
}
