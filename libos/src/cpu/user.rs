//! Running programs in ring 3.
// UNSAFETY: enters user mode and sets the MSRs for it.
#![expect(unsafe_code, reason = "user mode")]

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use hal::{Duration, PhysAddr};
use x86_64::VirtAddr;
use x86_64::registers::control::Cr2;
use x86_64::registers::model_specific::{
    Efer, EferFlags, FsBase, KernelGsBase, LStar, SFMask, Star,
};
use x86_64::registers::rflags::RFlags;

use crate::Error;
use crate::cpu::core_local::{self, CoreLocal};
use crate::cpu::fpu::{self, Area};
use crate::cpu::segments::{KERNEL_CODE, USER_DATA};
use crate::cpu::traps::{FIRST_INTERRUPT, enter_user, syscall_entry};
use crate::cpu::{apic, interrupts};
use crate::mem::address_space::AddressSpace;
use crate::mem::asid::Asid;
use crate::mem::page_entry::USER_END;
use crate::mem::paging;
use crate::task::{time, timer};

/// Vector that `trap.s` leaves for a system call.
pub(crate) const SYSCALL_VECTOR: u64 = 256;
/// Time that a program runs before the core's other tasks get their turn.
const QUANTUM: Duration = Duration::from_millis(10);
/// The flags that a program may set itself.
const USER_FLAGS: u64 = 0x0025_0dd5;
/// Interrupts on, and the bit that is always set.
const FORCED_FLAGS: u64 = 0x202;
const PAGE_FAULT: u64 = 14;
const GENERAL_PROTECTION: u8 = 13;

/// A program's general registers. Flags that are the kernel's are corrected when the program runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
#[expect(missing_docs, reason = "the registers' names say it")]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
    pub(crate) vector: u64,
    pub(crate) error: u64,
}

/// Reasons why a program stopped running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trap {
    /// It executed SYSCALL: the number is in `rax`, the arguments are in `rdi`, `rsi`, `rdx`,
    /// `r10`, `r8` and `r9`, and the result goes to `rax`.
    Syscall,
    /// It touched a page that is not mapped or against its rights. Running it again repeats the
    /// access.
    PageFault {
        /// The address touched.
        addr: u64,
        /// A store, not a load.
        write: bool,
        /// An instruction fetch.
        execute: bool,
        /// A page is mapped: the rights forbid it.
        present: bool,
    },
    /// The CPU raised an exception.
    Exception {
        /// Its number (Intel SDM volume 3A, table 6-1).
        vector: u8,
        /// Its error code, 0 if it has none.
        error: u64,
    },
    /// Its time is up, or another task of this core has become runnable.
    Preempted,
}

/// Owner of the FPU state in a core's registers.
#[derive(Debug, Default)]
pub(crate) struct FpuOwner {
    context: u64,
    area: usize,
}

/// The program state that a core has loaded.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    context: u64,
    fs_base: u64,
    gs_base: u64,
    space: Option<Arc<AddressSpace>>,
    /// The number of `space`.
    asid: Option<Asid>,
    pub(crate) generation: u64,
}

impl Loaded {
    /// Returns whether the core has this space loaded. A number is not used again before that ends.
    pub(crate) fn is(&self, space: Asid) -> bool {
        self.asid == Some(space)
    }

    /// Returns the root table of this space if the core has it loaded.
    pub(crate) fn root_of(&self, space: Asid) -> Option<PhysAddr> {
        self.space
            .as_ref()
            .filter(|_| self.is(space))
            .map(|loaded| loaded.root())
    }
}

/// A program's thread as the CPU sees it.
#[derive(Debug)]
pub struct UserContext {
    /// The general registers.
    pub registers: Registers,
    fs_base: u64,
    gs_base: u64,
    fpu: Area,
    /// The core whose registers hold the FPU state; `fpu` is stale then.
    live_on: Option<usize>,
    id: u64,
}

impl UserContext {
    /// A thread that starts at `rip` with the stack pointer `rsp` and everything else clear.
    #[must_use]
    pub fn new(rip: u64, rsp: u64) -> Self {
        let registers = Registers {
            rip,
            rsp,
            ..Registers::default()
        };
        Self {
            registers,
            fs_base: 0,
            gs_base: 0,
            fpu: Area::new(),
            live_on: None,
            id: next_id(),
        }
    }

    /// A copy of the thread, as `fork` and `clone` need it.
    ///
    /// # Panics
    ///
    /// When called on another core than the thread ran on (see [`UserContext::unload`]).
    #[must_use]
    pub fn duplicate(&mut self) -> Self {
        self.unload();
        Self {
            registers: self.registers,
            fs_base: self.fs_base,
            gs_base: self.gs_base,
            fpu: self.fpu.clone(),
            live_on: None,
            id: next_id(),
        }
    }

    /// The base of FS, which programs keep their thread's data at.
    #[must_use]
    pub fn fs_base(&self) -> u64 {
        self.fs_base
    }

    /// Sets the base of FS.
    ///
    /// # Errors
    ///
    /// [`Error::NotUserAddress`] when it is not in the program's half.
    pub fn set_fs_base(&mut self, base: u64) -> Result<(), Error> {
        self.fs_base = user_address(base)?;
        Ok(())
    }

    /// The base of GS.
    #[must_use]
    pub fn gs_base(&self) -> u64 {
        self.gs_base
    }

    /// Sets the base of GS.
    ///
    /// # Errors
    ///
    /// [`Error::NotUserAddress`] when it is not in the program's half.
    pub fn set_gs_base(&mut self, base: u64) -> Result<(), Error> {
        self.gs_base = user_address(base)?;
        Ok(())
    }

    /// The FPU and vector state in XSAVE's standard form (FXSAVE's where the CPU has no XSAVE).
    ///
    /// # Panics
    ///
    /// When called on another core than the thread ran on (see [`UserContext::unload`]).
    #[must_use]
    pub fn fpu_state(&mut self) -> Vec<u8> {
        self.unload();
        self.fpu.bytes()
    }

    /// Sets the state that [`UserContext::fpu_state`] gives; `false` and unchanged if the CPU would
    /// refuse it.
    ///
    /// # Panics
    ///
    /// When called on another core than the thread ran on (see [`UserContext::unload`]).
    #[must_use]
    pub fn set_fpu_state(&mut self, state: &[u8]) -> bool {
        self.unload();
        self.fpu.set(state)
    }

    /// Takes the FPU state out of the core's registers. To be called before the thread goes to
    /// another core.
    ///
    /// # Panics
    ///
    /// When called on another core than the thread ran on.
    ///
    /// State is switched lazily: registers stay loaded until another thread runs on the core, and a
    /// thread that moves must bring its state along, as no core reads another one's registers.
    pub fn unload(&mut self) {
        let Some(index) = self.live_on else { return };
        let core = core_local::this();
        assert_eq!(
            index, core.index,
            "a thread left core {index} without its FPU state"
        );
        let mut owner = core.fpu.lock();
        if owner.context == self.id {
            // SAFETY: our own area.
            unsafe { fpu::save(self.fpu.pointer()) };
            *owner = FpuOwner::default();
            core.fpu_context.store(0, Ordering::Relaxed);
        }
        self.live_on = None;
    }

    /// Runs the program in `space` until something needs the kernel.
    ///
    /// Device and timer interrupts that make no task of this core runnable are served without
    /// coming back. A thread belongs to the core that it ran on; see [`UserContext::unload`].
    ///
    /// # Panics
    ///
    /// When the thread ran on another core and was not unloaded there.
    #[inline]
    pub fn run(&mut self, space: &Arc<AddressSpace>) -> Trap {
        let core = core_local::this();
        loop {
            // An address that is not canonical would fault in the kernel on the way out.
            if self.registers.rip >= USER_END {
                return Trap::Exception {
                    vector: GENERAL_PROTECTION,
                    error: 0,
                };
            }
            // Only the core itself sets it, and whoever takes the state away from it clears it.
            if core.fpu_context.load(Ordering::Relaxed) != self.id {
                self.load_fpu(core);
            }
            self.enter(core, space);
            if let Some(trap) = self.trap(core) {
                return trap;
            }
        }
    }

    #[inline]
    fn enter(&mut self, core: &CoreLocal, space: &Arc<AddressSpace>) {
        let registers = &mut self.registers;
        registers.rflags = registers.rflags & USER_FLAGS | FORCED_FLAGS;
        // SYSRET takes rip and rflags from rcx and r11: right only after a system call that nobody
        // redirected.
        // Where SYSRET would not restore all, IRET does: it is slower, but takes everything from
        // the stack (Linux `arch/x86/entry/entry_64.S`, `entry_SYSCALL_64`, asks the same).
        let by_sysret = registers.vector == SYSCALL_VECTOR
            && registers.rcx == registers.rip
            && registers.r11 == registers.rflags;
        if core.armed.get() == u64::MAX || core.timers.next() < core.armed.get() {
            arm_timer(core);
        }
        // Only this core writes it. The store orders: first it is seen here, then the changes are
        // looked at.
        let epoch = core.user_epoch.load(Ordering::Relaxed);
        core.user_space
            .store(space.asid().number(), Ordering::Relaxed);
        core.user_epoch.store(epoch + 1, Ordering::SeqCst);
        // From here on others call this core out of user mode; what they changed before is caught
        // up with.
        self.load(core, space);
        // SAFETY: the kernel's half is the same in every space, the registers are the program's,
        // and interrupts are off.
        unsafe { enter_user(&raw mut self.registers, by_sysret.into()) };
        // A plain store suffices on the way out: whoever waits for it only waits longer until it is
        // visible.
        core.user_epoch.store(epoch + 2, Ordering::Release);
    }

    /// Loads address space and segment bases, where the core has others.
    #[inline]
    fn load(&self, core: &CoreLocal, space: &Arc<AddressSpace>) {
        let has_all = {
            let loaded = core.loaded.borrow();
            loaded.is(space.asid())
                && loaded.generation == space.generation()
                && loaded.context == self.id
                && loaded.fs_base == self.fs_base
                && loaded.gs_base == self.gs_base
        };
        if !has_all {
            self.load_missing(core, space);
        }
    }

    #[cold]
    #[inline(never)]
    fn load_missing(&self, core: &CoreLocal, space: &Arc<AddressSpace>) {
        let mut loaded = core.loaded.borrow_mut();
        let generation = space.generation();
        if !loaded.is(space.asid()) {
            paging::load_root(space.root());
            // The old space may go only now.
            loaded.space = Some(space.clone());
            loaded.asid = Some(space.asid());
            loaded.generation = generation;
        } else if loaded.generation != generation {
            paging::load_root(space.root());
            loaded.generation = generation;
        }
        let same = loaded.context == self.id;
        if !same || loaded.fs_base != self.fs_base {
            FsBase::write(VirtAddr::new_truncate(self.fs_base));
            loaded.fs_base = self.fs_base;
        }
        if !same || loaded.gs_base != self.gs_base {
            // SWAPGS on the way out makes it the program's GS base, and keeps the core's own
            // meanwhile.
            KernelGsBase::write(VirtAddr::new_truncate(self.gs_base));
            loaded.gs_base = self.gs_base;
        }
        loaded.context = self.id;
    }

    #[cold]
    #[inline(never)]
    fn load_fpu(&mut self, core: &CoreLocal) {
        assert!(
            self.live_on.is_none_or(|on| on == core.index),
            "a thread left its core without its FPU state"
        );
        let mut owner = core.fpu.lock();
        if owner.context != 0 {
            // SAFETY: the owner's area lives: its drop would have taken the ownership away, under
            // this lock.
            unsafe { fpu::save(core::ptr::with_exposed_provenance_mut(owner.area)) };
        }
        let area = self.fpu.pointer();
        // SAFETY: our own area.
        unsafe { fpu::load(area) };
        *owner = FpuOwner {
            context: self.id,
            area: area.expose_provenance(),
        };
        core.fpu_context.store(self.id, Ordering::Relaxed);
        self.live_on = Some(core.index);
    }

    /// Turns what `trap.s` left into a trap; `None` if the program may go on.
    #[inline]
    fn trap(&mut self, core: &CoreLocal) -> Option<Trap> {
        let Registers { vector, error, .. } = self.registers;
        match vector {
            SYSCALL_VECTOR => Some(Trap::Syscall),
            PAGE_FAULT => {
                // Nothing has faulted since: interrupts are off, and the kernel itself never takes
                // page faults.
                let addr = Cr2::read_raw();
                // Bit 3: a reserved bit was set in an entry (Intel SDM volume 3A, "Page-Fault
                // Exceptions").
                assert!(error & 8 == 0, "broken page table at {addr:#x}");
                let (present, write, execute) = (error & 1 != 0, error & 2 != 0, error & 16 != 0);
                Some(Trap::PageFault {
                    addr,
                    write,
                    execute,
                    present,
                })
            }
            _ => self.other_trap(core),
        }
    }

    /// Decodes traps as [`UserContext::trap`] does, all but those that programs cause by the
    /// thousand.
    #[inline(never)]
    fn other_trap(&mut self, core: &CoreLocal) -> Option<Trap> {
        let Registers { vector, error, .. } = self.registers;
        match vector {
            2 | 8 | 18 => panic!(
                "exception {vector} in a program at {:#x}",
                self.registers.rip
            ),
            0..FIRST_INTERRUPT => Some(Trap::Exception {
                vector: u8::try_from(vector).unwrap_or_default(),
                error,
            }),
            _ => {
                interrupts::serve(vector);
                let timed_out = vector == u64::from(apic::TIMER_VECTOR);
                (timed_out || !core.queue.is_empty()).then_some(Trap::Preempted)
            }
        }
    }
}

impl Drop for UserContext {
    fn drop(&mut self) {
        if let Some(core) = self.live_on.and_then(core_local::get) {
            let mut owner = core.fpu.lock();
            if owner.context == self.id {
                *owner = FpuOwner::default();
                core.fpu_context.store(0, Ordering::Relaxed);
            }
        }
    }
}

/// Sets the timer to the end of a program's time, or to the next deadline if that comes first.
#[cold]
#[inline(never)]
fn arm_timer(core: &CoreLocal) {
    let end = (time::now() + QUANTUM).nanos;
    timer::arm(core, end.min(core.timers.next()));
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn user_address(address: u64) -> Result<u64, Error> {
    if address < USER_END {
        Ok(address)
    } else {
        Err(Error::NotUserAddress { address })
    }
}

/// Makes this core ready to run programs.
pub(crate) fn init_core() {
    fpu::init();
    // SAFETY: the selectors are those of `segments`; SYSRET adds 8 and 16 to its own.
    unsafe { Star::write_raw(USER_DATA - 8, KERNEL_CODE) };
    LStar::write(VirtAddr::new(syscall_entry as *const () as u64));
    // What a program sets must not be in force in the kernel: interrupts, single step, direction,
    // alignment.
    SFMask::write(
        RFlags::INTERRUPT_FLAG
            | RFlags::TRAP_FLAG
            | RFlags::DIRECTION_FLAG
            | RFlags::ALIGNMENT_CHECK
            | RFlags::NESTED_TASK
            | RFlags::IOPL_LOW
            | RFlags::IOPL_HIGH,
    );
    // SAFETY: SYSCALL is ready.
    unsafe { Efer::update(|flags| flags.insert(EferFlags::SYSTEM_CALL_EXTENSIONS)) };
}
