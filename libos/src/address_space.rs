//! A program's half of the address space.
// UNSAFETY: reads and writes tables through the direct map.
#![expect(unsafe_code, reason = "raw memory")]

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use hal::{Duration, PhysAddr};

use crate::core_local::{self, CoreLocal};
use crate::dma::PageFrame;
use crate::frames::Frames;
use crate::layout::direct;
use crate::user_tables::{Mapping, Rights, TableMemory, Tables};
use crate::{Error, apic, paging, time};

/// How long a core may take to leave user mode when called. Emulated cores may be off their CPU for a while.
const LEAVE_DEADLINE: Duration = Duration::from_secs(10);

/// RAM, through the direct map.
#[derive(Debug)]
struct Ram;

impl Ram {
    fn entry(at: PhysAddr) -> &'static AtomicU64 {
        // SAFETY: an aligned word of a table (see `TableMemory`), which RAM's direct map has; all access to it is atomic.
        unsafe { AtomicU64::from_ptr(direct(at).cast()) }
    }
}

impl TableMemory for Ram {
    fn new_table(&self) -> Option<PhysAddr> {
        Frames::zeroed(1, 1).map(Frames::into_raw)
    }

    fn free_table(&self, table: PhysAddr) {
        drop(Frames::from_raw(table, 1));
    }

    fn load(&self, at: PhysAddr) -> u64 {
        Self::entry(at).load(Ordering::Acquire)
    }

    fn swap(&self, at: PhysAddr, entry: u64) -> u64 {
        Self::entry(at).swap(entry, Ordering::AcqRel)
    }

    fn compare_exchange(&self, at: PhysAddr, old: u64, new: u64) -> Result<(), u64> {
        Self::entry(at).compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(drop)
    }
}

/// A program's address space: 4 KiB pages in the lower half, below [`crate::USER_END`].
///
/// A change is in force on every core when the call that made it returns. Cores in user mode are interrupted and
/// waited for; cores in the kernel need not be: they look for changes before they enter user mode, so a caller may
/// hold locks that tasks on other cores wait for. No method takes a lock that another core's call holds for long.
#[derive(Debug)]
pub struct AddressSpace {
    /// A core that has them loaded holds a reference to this, so none walks them when they go.
    tables: Tables<Ram>,
    /// Counts the changes that a translation may have been cached before.
    generation: AtomicU64,
}

impl AddressSpace {
    /// An empty address space; `None` when memory is out.
    #[must_use]
    pub fn new() -> Option<Arc<Self>> {
        let tables = Tables::new(Ram)?;
        paging::copy_kernel_half(tables.root());
        Some(Arc::new(Self { tables, generation: AtomicU64::new(0) }))
    }

    pub(crate) fn root(&self) -> PhysAddr {
        self.tables.root()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Maps the page at `address` to `frame`. A page that is mapped to the same frame already gets the new rights, as by
    /// [`AddressSpace::protect`].
    ///
    /// # Errors
    ///
    /// [`Error::NotUserPage`] for an address that is no program's or not a page's first, [`Error::Mapped`] when another
    /// frame is mapped there, [`Error::NoMemory`] when there is none for a table.
    pub fn map(&self, address: u64, frame: PageFrame, rights: Rights) -> Result<(), Error> {
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

    /// Unmaps the page at `address` and tells how it was used. No core uses it when this returns.
    pub fn unmap(&self, address: u64) -> Option<Mapping> {
        let was = self.tables.unmap(address)?;
        // Whatever the accessed mark says: it may have been taken while a translation stayed cached.
        self.invalidate(address);
        Some(was)
    }

    /// Changes a mapped page's rights and tells what it was; its dirty and accessed marks stay.
    pub fn protect(&self, address: u64, rights: Rights) -> Option<Mapping> {
        let was = self.tables.protect(address, rights)?;
        self.rights_changed(address, was, rights);
        Some(was)
    }

    /// Takes the page's dirty mark and tells what it was. A store after this sets it again.
    pub fn clear_dirty(&self, address: u64) -> Option<Mapping> {
        let was = self.tables.clear_dirty(address)?;
        if was.dirty {
            self.invalidate(address);
        }
        Some(was)
    }

    /// Takes the page's accessed mark and tells what it was.
    ///
    /// A use by this core after this sets it again. Other cores are not interrupted for a hint: one that has the
    /// translation cached sets it again only once that is gone.
    pub fn clear_accessed(&self, address: u64) -> Option<Mapping> {
        let was = self.tables.clear_accessed(address)?;
        if was.accessed {
            flush_own(address);
        }
        Some(was)
    }

    /// Rights that were added need no call: a core that has the narrower ones cached faults, which drops them, and finds the
    /// new ones when it repeats the access.
    fn rights_changed(&self, address: u64, was: Mapping, rights: Rights) {
        if rights.contains(was.rights) {
            flush_own(address);
        } else {
            self.invalidate(address);
        }
    }

    /// Drops the translation of one page everywhere.
    fn invalidate(&self, address: u64) {
        let before = self.generation.fetch_add(1, Ordering::SeqCst);
        let own = core_local::this();
        {
            let mut loaded = own.loaded.borrow_mut();
            if loaded.is(self) {
                flush_own(address);
                // Nothing else was missed: this core need not flush everything when it enters user mode.
                if loaded.generation == before {
                    loaded.generation = before + 1;
                }
            }
        }
        for core in core_local::all().filter(|core| core.index != own.index) {
            self.call_out_of_user_mode(core);
        }
    }

    /// Waits until `core` is not in user mode with translations from before the last change.
    fn call_out_of_user_mode(&self, core: &CoreLocal) {
        let epoch = core.user_epoch.load(Ordering::SeqCst);
        let in_user_mode = epoch % 2 == 1 && core.user_root.load(Ordering::SeqCst) == self.root().0;
        if !in_user_mode {
            return;
        }
        apic::interrupt(core.apic_id, apic::CALL_VECTOR);
        let end = time::now() + LEAVE_DEADLINE;
        while core.user_epoch.load(Ordering::SeqCst) == epoch {
            assert!(time::now() < end, "core {} does not leave user mode", core.index);
            core::hint::spin_loop();
        }
    }
}

/// Drops this core's translation of the page at `address`, if it has one.
fn flush_own(address: u64) {
    x86_64::instructions::tlb::flush(x86_64::VirtAddr::new_truncate(address));
}
