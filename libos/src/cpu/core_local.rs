//! Per-core data, found through the core's GS base.
// UNSAFETY: reads the GS base and publishes pointers to leaked memory.
#![expect(unsafe_code, reason = "per-core data")]

use alloc::boxed::Box;
use core::cell::{Cell, RefCell};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use async_task::Runnable;
use spin::Mutex;

use crate::cpu::segments::Segments;
use crate::cpu::user::{FpuOwner, Loaded};
pub(crate) use crate::mem::table_pool::MAX_CORES;
use crate::mem::table_pool::{self, Progress};
use crate::task::run_queue::RunQueue;
use crate::task::timer::Timers;

/// A core's own data. The first fields are named by offset in `trap.s`.
#[repr(C)]
pub(crate) struct CoreLocal {
    /// Address of this structure, for a load through GS.
    this: *const Self,
    /// The stack to return to when user mode is left.
    pub(crate) kernel_rsp: Cell<u64>,
    /// The registers of the program that runs.
    pub(crate) context: Cell<u64>,
    pub(crate) scratch: Cell<u64>,
    pub(crate) index: usize,
    pub(crate) apic_id: u32,
    pub(crate) segments: Segments,
    pub(crate) queue: RunQueue<Runnable>,
    pub(crate) timers: Timers,
    /// Odd while the core runs a program.
    pub(crate) user_epoch: AtomicU64,
    /// The number of the address space that the program runs in.
    pub(crate) user_space: AtomicU32,
    /// The program state that this core has loaded.
    pub(crate) loaded: RefCell<Loaded>,
    /// Owner of the FPU state in the core's registers. No lock is taken under it.
    pub(crate) fpu: Mutex<FpuOwner>,
    /// The context that `fpu` names, for a look without the lock.
    pub(crate) fpu_context: AtomicU64,
    /// The deadline that the timer is set to, in nanoseconds; `u64::MAX` for none.
    pub(crate) armed: Cell<u64>,
}

// SAFETY: other cores only touch atomics and what a mutex guards; the cells are the core's own.
unsafe impl Sync for CoreLocal {}
// SAFETY: as above.
unsafe impl Send for CoreLocal {}

impl table_pool::Core for &CoreLocal {
    fn index(&self) -> usize {
        self.index
    }

    fn observe(&self) -> Option<Progress> {
        let polls = self.queue.observe()?;
        // Sequentially consistent, as the store in `UserContext::run`: an entry into user mode that
        // is not seen here comes after, and the walks that follow it see what came before this.
        let user_epoch = self.user_epoch.load(Ordering::SeqCst);
        Some(Progress { polls, user_epoch })
    }

    fn peek(&self) -> Progress {
        Progress {
            polls: self.queue.polls(),
            user_epoch: self.user_epoch.load(Ordering::Acquire),
        }
    }
}

static CORES: [AtomicPtr<CoreLocal>; MAX_CORES] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CORES];
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Makes a core's data and everything that it points to. The core does not run yet.
pub(crate) fn prepare(index: usize, apic_id: u32) -> &'static CoreLocal {
    let core = Box::leak(Box::new(CoreLocal {
        this: core::ptr::null(),
        kernel_rsp: Cell::new(0),
        context: Cell::new(0),
        scratch: Cell::new(0),
        index,
        apic_id,
        segments: Segments::new(),
        queue: RunQueue::new(),
        timers: Timers::new(),
        user_epoch: AtomicU64::new(0),
        user_space: AtomicU32::new(0),
        loaded: RefCell::new(Loaded::default()),
        fpu: Mutex::new(FpuOwner::default()),
        fpu_context: AtomicU64::new(0),
        armed: Cell::new(u64::MAX),
    }));
    core.this = core;
    core.segments.link();
    core
}

/// Makes `core` this core's data. From here on others can find it.
pub(crate) fn adopt(core: &'static CoreLocal) {
    core.segments.load();
    let address = x86_64::VirtAddr::from_ptr(core);
    x86_64::registers::model_specific::GsBase::write(address);
    // GS leads to it before the list does: whoever calls this core from now on finds it able to
    // serve.
    CORES[core.index].store(core::ptr::from_ref(core).cast_mut(), Ordering::Release);
    COUNT.fetch_add(1, Ordering::AcqRel);
}

/// This core's data.
///
/// # Panics
///
/// It must have been adopted: nothing that needs it runs before.
pub(crate) fn this() -> &'static CoreLocal {
    let this: *const CoreLocal;
    // SAFETY: GS points to the core's data, whose first word is its address.
    unsafe {
        core::arch::asm!("mov {}, gs:[0]", out(reg) this, options(nostack, preserves_flags, readonly))
    };
    // SAFETY: leaked memory.
    unsafe { &*this }
}

/// The data of a core that runs.
pub(crate) fn get(index: usize) -> Option<&'static CoreLocal> {
    let core = CORES.get(index)?.load(Ordering::Acquire);
    // SAFETY: null or leaked memory.
    unsafe { core.as_ref() }
}

/// All cores that run.
pub(crate) fn all() -> impl Iterator<Item = &'static CoreLocal> + Clone {
    (0..MAX_CORES).map_while(get)
}

/// The number of cores that run.
#[must_use]
pub fn count() -> usize {
    COUNT.load(Ordering::Acquire)
}

/// This core's number, below [`count`].
#[must_use]
pub fn current() -> usize {
    this().index
}
