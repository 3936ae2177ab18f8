//! A program's half of the address space.
//!
//! # Shootdown
//!
//! A translation outlives its entry in the caches of every core that has walked there (Intel SDM
//! volume 3A, "Propagation of Paging-Structure Changes to Multiple Processors"), so whoever takes
//! an entry or a right away goes in this order:
//!
//! ```text
//!   changes the entry ──► counts the generation ──► drops its own translation
//!       ──► calls the cores that run the space ──► waits for them ──► uses the frame again
//! ```
//!
//! A core does the mirror image: it says that it is in user mode (`user_epoch` odd), then compares
//! generations, then enters. All four are sequentially consistent, so either the core sees the new
//! generation and flushes, or it is seen to be in user mode and called out. Linux has the same pair
//! (`arch/x86/mm/tlb.c`: `inc_mm_tlb_gen` in `flush_tlb_mm_range` "synchronizes with switch_mm").
//! Going back to user mode flushes, so the call's handler has nothing to do.
// UNSAFETY: reads and writes tables through the direct map.
#![expect(unsafe_code, reason = "raw memory")]

use alloc::sync::Arc;
use core::num::NonZeroU64;
use core::sync::atomic::{AtomicU64, Ordering};

use hal::{Duration, PhysAddr};
use spin::Mutex;

use crate::Error;
use crate::cpu::apic;
use crate::cpu::core_local;
use crate::mem::asid::Asid;
use crate::mem::dma::{PageFrame, is_program_frame};
use crate::mem::frame_bitmap::PAGE_SIZE;
use crate::mem::frames::Frames;
use crate::mem::layout::{DIRECT_BASE, PHYS_LIMIT};
use crate::mem::page_entry::{ADDRESS, ENTRIES, PRESENT, USER_END};
use crate::mem::paging;
use crate::mem::table_pool::{MAX_CORES, Pool, TableFrames};
use crate::mem::user_tables::{Kind, Mapping, Rights, TableMemory, Tables, first_used, index_of};
use crate::task::time;

/// Time that a core may take to leave user mode when called. Emulated cores may be off their CPU
/// for a while.
const LEAVE_DEADLINE: Duration = Duration::from_secs(10);

/// The size of an entry.
const ENTRY: u64 = size_of::<u64>() as u64;
/// The place of a table's last entry.
const LAST_ENTRY: u64 = PAGE_SIZE as u64 - ENTRY;

/// Leaf tables. The locks of the run queues, the heap and the frame allocator are taken under it.
static LEAVES: Mutex<Pool> = Mutex::new(Pool::new());
/// Upper tables and roots, under the same rule. They are kept apart from leaf tables so that a
/// stale [`Entry`] never reaches one.
static UPPERS: Mutex<Pool> = Mutex::new(Pool::new());

fn pool(kind: Kind) -> &'static Mutex<Pool> {
    match kind {
        Kind::Leaf => &LEAVES,
        Kind::Upper => &UPPERS,
    }
}

/// Counts the table frames of both kinds.
pub(crate) fn table_frames() -> TableFrames {
    let [leaves, uppers] = [Kind::Leaf, Kind::Upper].map(|kind| pool(kind).lock().count());
    TableFrames {
        in_use: leaves.in_use + uppers.in_use,
        retired: leaves.retired + uppers.retired,
        free: leaves.free + uppers.free,
    }
}

/// RAM, through the direct map.
#[derive(Debug)]
struct Ram;

impl TableMemory for Ram {
    fn new_table(&self, kind: Kind) -> Result<PhysAddr, Error> {
        let fresh = || Frames::zeroed(1, 1).map(Frames::into_raw);
        pool(kind)
            .lock()
            .take(core_local::current(), core_local::all(), fresh)
    }

    fn retire_table(&self, kind: Kind, table: PhysAddr) {
        pool(kind)
            .lock()
            .retire([table], core_local::current(), core_local::all());
    }

    fn load(&self, at: PhysAddr) -> u64 {
        word(at).load(Ordering::Acquire)
    }

    fn first_used(&self, at: PhysAddr, count: usize) -> Option<usize> {
        first_used(Entry::new(at).words(count))
    }

    fn store(&self, at: PhysAddr, entry: u64) {
        word(at).store(entry, Ordering::Release);
    }

    fn compare_exchange(&self, at: PhysAddr, old: u64, new: u64) -> Result<(), u64> {
        word(at)
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
    }
}

fn word(at: PhysAddr) -> &'static AtomicU64 {
    Entry::new(at).word()
}

/// The place of one leaf entry of an address space.
///
/// It is to be used only until the next `.await` or [`UserContext::run`](crate::UserContext::run),
/// or while the entry is known not to be empty. The table may be gone afterwards (see
/// [`AddressSpace::release`]). A stale place reaches some entry of some leaf table, never other
/// memory: frames of leaf tables are used for nothing else, and [`Entry::compare_exchange`] only
/// lets frames of a [`FrameArray`](crate::FrameArray) in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry(
    /// Its address in the direct map.
    NonZeroU64,
);

const _: () = assert!(size_of::<Option<Entry>>() == 8);

impl Entry {
    /// `at` is an entry of a table; of a leaf table if the result leaves this module.
    fn new(at: PhysAddr) -> Self {
        const BASE: NonZeroU64 = NonZeroU64::new(DIRECT_BASE).expect("the upper half");
        // No physical address has one of the base's bits.
        const { assert!(PHYS_LIMIT & DIRECT_BASE == 0 && DIRECT_BASE.trailing_zeros() > 46) };
        Self(BASE | at.0)
    }

    fn word(self) -> &'static AtomicU64 {
        let address = usize::try_from(self.0.get()).unwrap_or_default();
        let word = core::ptr::with_exposed_provenance_mut(address);
        // SAFETY: an aligned word of a frame that a pool of tables gave out. Such a frame holds a
        // table for good, RAM is in the direct map, and all access to the word is atomic.
        unsafe { AtomicU64::from_ptr(word) }
    }

    /// Returns `count` entries from this one on, or those to the table's end.
    fn words(self, count: usize) -> &'static [AtomicU64] {
        let address = usize::try_from(self.0.get()).unwrap_or_default();
        let words = core::ptr::with_exposed_provenance::<AtomicU64>(address);
        let left = ENTRIES - index_of(PhysAddr(self.0.get() & !DIRECT_BASE));
        // SAFETY: as in `word`; the words lie in the same frame.
        unsafe { core::slice::from_raw_parts(words, count.min(left)) }
    }

    /// Loads the entry.
    #[must_use]
    pub fn load(self) -> u64 {
        self.word().load(Ordering::Acquire)
    }

    /// Replaces `old` by `new`.
    ///
    /// The caller sees to cached translations: [`AddressSpace::changed`] and [`flush_cores`].
    /// Checking a present `new` takes 10 instructions if its frame lies in the last array made.
    ///
    /// # Errors
    ///
    /// Returns what is there instead of `old`.
    ///
    /// # Panics
    ///
    /// When `new` is present and points to a frame that is not one of a
    /// [`FrameArray`](crate::FrameArray).
    pub fn compare_exchange(self, old: u64, new: u64) -> Result<(), u64> {
        if new & PRESENT != 0 && !is_program_frame(PhysAddr(new & ADDRESS)) {
            foreign_frame(new);
        }
        self.word()
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
    }

    /// Returns the entry `distance` pages on; `None` when another table holds it.
    #[must_use]
    pub fn offset(self, distance: i64) -> Option<Self> {
        let at = self
            .0
            .get()
            .wrapping_add_signed(distance.checked_mul(ENTRY.cast_signed())?);
        let same_table = at / PAGE_SIZE as u64 == self.0.get() / PAGE_SIZE as u64;
        NonZeroU64::new(at).filter(|_| same_table).map(Self)
    }

    /// Returns the first entry from this one on that is not empty, and how many pages it lies
    /// behind this one; `None` if the `count` entries from this one on, or those to the table's
    /// end, are all empty.
    #[must_use]
    #[inline]
    pub fn first_used(self, count: usize) -> Option<(usize, Self)> {
        let skipped = first_used(self.words(count))?;
        Some((skipped, Self(self.0.saturating_add(skipped as u64 * ENTRY))))
    }

    /// Returns the next page's entry; `None` behind the last of a table.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        let last = self.0.get() % PAGE_SIZE as u64 == LAST_ENTRY;
        (!last).then(|| Self(self.0.saturating_add(ENTRY)))
    }

    /// Returns the entry of the page before; `None` before the first of a table.
    #[must_use]
    pub fn previous(self) -> Option<Self> {
        let first = self.0.get().is_multiple_of(PAGE_SIZE as u64);
        NonZeroU64::new(self.0.get() - ENTRY)
            .filter(|_| !first)
            .map(Self)
    }
}

/// Ends the node: a program could reach the kernel's memory by the entry.
#[cold]
fn foreign_frame(entry: u64) -> ! {
    panic!("entry {entry:#x} points to no frame of a `FrameArray`")
}

/// The existing leaf entries of a range of pages, with their addresses. See
/// [`AddressSpace::entries`].
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    space: &'a AddressSpace,
    /// The next page's address.
    address: u64,
    end: u64,
    /// The next page's entry, if its table is known to exist.
    entry: Option<Entry>,
}

impl Iterator for Entries<'_> {
    type Item = (u64, Entry);

    fn next(&mut self) -> Option<Self::Item> {
        if self.address >= self.end {
            return None;
        }
        let entry = match self.entry {
            Some(entry) => entry,
            None => loop {
                self.address = self.space.next_table(self.address, self.end)?;
                // Another core may release the table in between.
                if let Some(entry) = self.space.entry(self.address) {
                    break entry;
                }
            },
        };
        let address = self.address;
        self.address += PAGE_SIZE as u64;
        self.entry = entry.next();
        Some((address, entry))
    }
}

/// A program's address space: 4 KiB pages in the lower half, below [`crate::USER_END`].
///
/// A leaf entry is present, remote (not present and not zero: its meaning is the caller's) or
/// empty. It is read and changed through [`Entry`]. [`AddressSpace::map`] and its kin change
/// present entries and leave remote ones alone; their changes are in force on every core when they
/// return.
///
/// Cores in user mode are interrupted and waited for; cores in the kernel need not be: they look
/// for changes before they enter user mode, so a caller may hold locks that tasks on other cores
/// wait for.
#[derive(Debug)]
pub struct AddressSpace {
    /// A core that has them loaded holds a reference to this, so none walks them when they go.
    tables: Tables<Ram>,
    asid: Asid,
    /// Counts the changes that a translation may have been cached before. It is the number's.
    generation: &'static AtomicU64,
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        self.asid.release();
    }
}

impl AddressSpace {
    /// An empty address space; `None` when memory or numbers are out.
    #[must_use]
    pub fn new() -> Option<Arc<Self>> {
        let tables = Tables::new(Ram).ok()?;
        paging::copy_kernel_half(tables.root());
        let asid = Asid::allocate()?;
        Some(Arc::new(Self {
            tables,
            asid,
            generation: asid.word(),
        }))
    }

    /// Returns the space's number.
    #[must_use]
    pub const fn asid(&self) -> Asid {
        self.asid
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(crate) fn root(&self) -> PhysAddr {
        self.tables.root()
    }

    /// Returns the leaf entry of the page that holds `address`; `None` when its table does not
    /// exist or `address` is not a program's.
    ///
    /// It takes 40 instructions, no lock and no allocation.
    #[must_use]
    #[inline]
    pub fn entry(&self, address: u64) -> Option<Entry> {
        self.tables.entry(address).map(Entry::new)
    }

    /// Returns the leaf entry of the page that holds `address` and creates missing tables.
    ///
    /// It takes 49 instructions and no lock if the tables exist.
    ///
    /// # Errors
    ///
    /// [`Error::NotUserAddress`] for an address that is not a program's, [`Error::NoMemory`] when
    /// there is none for a table.
    pub fn entry_or_create(&self, address: u64) -> Result<Entry, Error> {
        self.tables.entry_or_create(address).map(Entry::new)
    }

    /// Returns the first address from `from` on and below `end` whose leaf table exists.
    ///
    /// The cost follows the tables that exist, not the length of the range.
    #[must_use]
    pub fn next_table(&self, from: u64, end: u64) -> Option<u64> {
        self.tables.next_table(from, end)
    }

    /// Returns the entries from the page that holds `from` up to `end` whose leaf tables exist.
    ///
    /// The iterator holds an [`Entry`], so it is to be used like one.
    #[must_use]
    pub fn entries(&self, from: u64, end: u64) -> Entries<'_> {
        let address = from / PAGE_SIZE as u64 * PAGE_SIZE as u64;
        Entries {
            space: self,
            address,
            end: end.min(USER_END),
            entry: None,
        }
    }

    /// Takes the leaf table that covers `address` away if all its entries are empty, and the upper
    /// tables that are empty then. Returns whether it did.
    ///
    /// The caller holds the lock under which entries of this leaf table become non-empty, holds no
    /// [`Entry`] of it, and has called [`AddressSpace::changed`] for what it emptied. The frames
    /// are used again once every other core has passed a quiescent point. No core is interrupted.
    pub fn release(&self, address: u64) -> bool {
        let Some(unhooked) = self.tables.unhook(address) else {
            return false;
        };
        // Paging-structure caches may still hold the way to the tables. One INVLPG drops all of
        // them on this core (Intel SDM volume 3A, section 4.10.4.1). Other cores drop theirs when
        // they enter user mode next, for the generation has changed, and are waited for until then.
        self.changed(address);
        self.tables.retire(unhooked);
        true
    }

    /// Announces a change of the page at `address`: see [`Asid::changed`].
    pub fn changed(&self, address: u64) {
        self.asid.changed(address);
    }

    /// Announces changes of many pages: see [`Asid::changed_all`].
    pub fn changed_all(&self) {
        self.asid.changed_all();
    }

    /// Maps the page at `address` to `frame`. A page that is mapped to the same frame already gets
    /// the new rights, as by [`AddressSpace::protect`].
    ///
    /// # Errors
    ///
    /// [`Error::NotUserPage`] for an address that is no program's or not a page's first,
    /// [`Error::Mapped`] when another frame is mapped there, [`Error::NoMemory`] when there is none
    /// for a table.
    pub fn map(&self, address: u64, frame: PageFrame, rights: Rights) -> Result<(), Error> {
        // An entry that was not present needs no call: no translation is cached of one (Intel SDM
        // volume 3A, "Optional Invalidation").
        if let Some(was) = self.tables.map(address, frame.phys(), rights)? {
            self.rights_changed(address, was, rights);
        }
        Ok(())
    }

    /// The page at `address`, if one is mapped.
    #[must_use]
    pub fn query(&self, address: u64) -> Option<Mapping> {
        self.tables.query(address)
    }

    /// Unmaps the page at `address` and returns its marks. No core uses it when this returns.
    pub fn unmap(&self, address: u64) -> Option<Mapping> {
        let was = self.tables.unmap(address)?;
        // Whatever the accessed mark says: it may have been taken while a translation stayed
        // cached.
        self.invalidate(address);
        Some(was)
    }

    /// Changes a mapped page's rights and returns its former state; its marks stay.
    pub fn protect(&self, address: u64, rights: Rights) -> Option<Mapping> {
        let was = self.tables.protect(address, rights)?;
        self.rights_changed(address, was, rights);
        Some(was)
    }

    /// Clears the page's dirty mark and returns its former value. A store after this sets it again.
    pub fn clear_dirty(&self, address: u64) -> Option<Mapping> {
        let was = self.tables.clear_dirty(address)?;
        // With the translation cached as dirty the CPU would not set the mark again at the next
        // store (Intel SDM volume 3A, "Accessed and Dirty Flags").
        if was.dirty {
            self.invalidate(address);
        }
        Some(was)
    }

    /// Clears the page's accessed mark and returns its former value.
    ///
    /// A use by this core after this sets it again. Other cores are not interrupted for a hint: one
    /// that has the translation cached sets it again only once that is gone.
    pub fn clear_accessed(&self, address: u64) -> Option<Mapping> {
        let was = self.tables.clear_accessed(address)?;
        if was.accessed {
            self.asid.flush_own(address);
        }
        Some(was)
    }

    /// Rights that were added need no call: a core that has the narrower ones cached faults, which
    /// drops them, and finds the new ones when it repeats the access.
    /// (Intel SDM volume 3A, "Optional Invalidation"; Linux `arch/x86/mm/fault.c`,
    /// `spurious_kernel_fault`, tells the same for the kernel.)
    fn rights_changed(&self, address: u64, was: Mapping, rights: Rights) {
        if rights.contains(was.rights) {
            self.asid.flush_own(address);
        } else {
            self.invalidate(address);
        }
    }

    /// Drops the translation of one page everywhere.
    fn invalidate(&self, address: u64) {
        self.changed(address);
        flush_cores(core::iter::once(self.asid));
    }
}

impl Asid {
    /// Announces that the present entry of the page at `address` was taken or lost a right or a
    /// mark. No core enters user mode with the old translation after this.
    ///
    /// This core's translation is dropped. [`flush_cores`] calls out the cores that are in user
    /// mode, once for a batch of changes. It takes no lock.
    pub fn changed(self, address: u64) {
        self.announce(|_| invalidate(address));
    }

    /// Announces changes of many pages: as [`Asid::changed`], but drops all of the space's
    /// translations on this core. It is the cheaper way from some 64 pages on.
    pub fn changed_all(self) {
        self.announce(paging::load_root);
    }

    /// Drops this core's translation of the page at `address`, without telling other cores.
    ///
    /// It suffices when the accessed mark was taken, which is a hint, or a right was added. It
    /// takes no lock.
    pub fn flush_own(self, address: u64) {
        if core_local::this().loaded.borrow().is(self) {
            invalidate(address);
        }
    }

    /// Counts a change, and drops by `drop_own`, which gets the root, what this core has of the
    /// space.
    fn announce(self, drop_own: impl FnOnce(PhysAddr)) {
        // A read-modify-write, so a full barrier: the entry's change is visible before the count,
        // and the looks at `user_epoch` in `flush_cores` come behind it.
        let before = self.advance();
        let mut loaded = core_local::this().loaded.borrow_mut();
        if let Some(root) = loaded.root_of(self) {
            drop_own(root);
            // If nothing else was missed, this core need not flush when it enters user mode.
            if loaded.generation == before {
                loaded.generation = before + 1;
            }
        }
    }
}

/// Calls every other core that runs a program in one of `spaces` out of user mode, once.
///
/// When it returns, no core uses a translation from before what [`Asid::changed`] or
/// [`Asid::changed_all`] announced for these spaces. All cores are called first and waited
/// for then. A space may be given more than once.
///
/// # Panics
///
/// When a core does not leave user mode within 10 s.
pub fn flush_cores(spaces: impl Iterator<Item = Asid> + Clone) {
    let own = core_local::this().index;
    // A core that is not waited for has an even number here, which no epoch in user mode is.
    let mut epochs = [0; MAX_CORES];
    for core in core_local::all().filter(|core| core.index != own) {
        let epoch = core.user_epoch.load(Ordering::SeqCst);
        if epoch % 2 == 0 {
            continue;
        }
        // Stored before the epoch became odd, so it is this stay's, or a later one's: then that
        // core has seen the generation on its way in.
        let runs = core.user_space.load(Ordering::SeqCst);
        if spaces.clone().any(|space| space.number() == runs) {
            apic::interrupt(core.apic_id, apic::CALL_VECTOR);
            epochs[core.index] = epoch;
        }
    }
    let called = || core_local::all().filter(|core| epochs[core.index] % 2 == 1);
    if called().next().is_none() {
        return;
    }
    let end = time::now() + LEAVE_DEADLINE;
    for core in called() {
        // Any other number will do: it has left, and what it entered since is as of the new
        // generation.
        while core.user_epoch.load(Ordering::SeqCst) == epochs[core.index] {
            assert!(
                time::now() < end,
                "core {} does not leave user mode",
                core.index
            );
            core::hint::spin_loop();
        }
    }
}

/// Drops this core's translation of the page at `address`, if it has one.
fn invalidate(address: u64) {
    x86_64::instructions::tlb::flush(x86_64::VirtAddr::new_truncate(address));
}
