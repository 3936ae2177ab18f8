//! Starting the other cores (Intel SDM volume 3A, section 9.4.4).
// UNSAFETY: places the trampoline and hands a stack to a new core.
#![expect(unsafe_code, reason = "machine entry")]

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hal::{Duration, PhysAddr};

use crate::cpu::core_local::{self, MAX_CORES};
use crate::cpu::{apic, user, vdso};
use crate::mem::frame_bitmap::PAGE_SIZE;
use crate::mem::layout::direct;
use crate::mem::paging::{self, new_stack};
use crate::task::{executor, time};

pub(crate) const STACK: usize = 128 << 10;
/// Time that a core may take to start.
const START_DEADLINE: Duration = Duration::from_secs(2);

/// Read by `boot.s`.
pub(crate) static AP_STACK: AtomicU64 = AtomicU64::new(0);
static AP_CORE: AtomicUsize = AtomicUsize::new(0);
static AP_APIC: AtomicU64 = AtomicU64::new(0);

/// Pages at which new cores begin: one of code, and three page tables that map it at its own
/// address.
const TRAMPOLINE_PAGES: u64 = 4;
/// A core starts below 1 MiB; the first page holds the real mode's vectors, and above 640 KiB is no
/// RAM.
const TRAMPOLINE_WITHIN: core::ops::Range<u64> = 0x1000..0xa_0000;

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    static ap_gdt_pointer: u8;
    static ap_far: u8;
    static ap_tables: u8;
}

/// Writes the trampoline into low memory; returns the number of its page. `None` if there is no RAM
/// for it.
fn place_trampoline() -> Option<u8> {
    let page = PAGE_SIZE as u64;
    let home = paging::find_ram(TRAMPOLINE_PAGES * page, TRAMPOLINE_WITHIN)?;
    let number = u8::try_from(home / page).ok()?;
    let low = u32::try_from(home).ok()?;
    let start = (&raw const ap_trampoline).addr();
    let len = (&raw const ap_trampoline_end).addr() - start;
    let to = direct(PhysAddr(home));
    // SAFETY: low memory is never given away, and what the loader left there has been read.
    unsafe { to.write_bytes(0, PAGE_SIZE * 4) };
    // SAFETY: as above; the trampoline is shorter than a page.
    unsafe { to.copy_from_nonoverlapping(&raw const ap_trampoline, len) };
    let tables = low + 0x1000;
    for (field, skip, add) in [
        (&raw const ap_gdt_pointer, 2, low),
        (&raw const ap_far, 0, low),
        (&raw const ap_tables, 0, tables),
    ] {
        let offset = field.addr() - start + skip;
        // SAFETY: a number within the copy, whatever its alignment.
        let field = unsafe { to.add(offset) }.cast::<u32>();
        // SAFETY: as above.
        let value = unsafe { field.read_unaligned() };
        // SAFETY: as above.
        unsafe { field.write_unaligned(value + add) };
    }
    let root = PhysAddr(tables.into());
    paging::map_low_memory(root);
    Some(number)
}

/// Starts the cores with these APIC ids, but for this one. A core that does not come up is left out
/// and named in the log.
pub(crate) fn start_others(apic_ids: &[u32]) {
    if apic_ids.len() < 2 {
        return;
    }
    let Some(page) = place_trampoline() else {
        log::error!("no RAM below 1 MiB for the other cores' start: going on with one core");
        return;
    };
    let own = apic::id();
    for &apic_id in apic_ids.iter().filter(|&&id| id != own) {
        let index = core_local::count();
        if index == MAX_CORES {
            log::warn!("more than {MAX_CORES} cores: the rest stays off");
            return;
        }
        if !start(index, apic_id, page) {
            // It may still be on its way to the stack and number that the next one would be given.
            log::error!("core {index} (APIC {apic_id}) does not start; going on with {index}");
            return;
        }
    }
}

fn start(index: usize, apic_id: u32, page: u8) -> bool {
    AP_STACK.store(new_stack(STACK), Ordering::Release);
    AP_CORE.store(index, Ordering::Release);
    AP_APIC.store(apic_id.into(), Ordering::Release);
    // INIT, 10 ms, STARTUP, and STARTUP again if the core has not come (Intel SDM volume 3A,
    // "Typical AP Initialization Sequence"; Linux `arch/x86/kernel/smpboot.c`,
    // `wakeup_secondary_cpu_via_init`). The stack and number above are visible to it: sending is
    // behind a fence.
    apic::send_init(apic_id);
    time::spin(Duration::from_millis(10));
    // The count is the last that a new core changes: it is also the next core's number, so that
    // nothing may go on before.
    let has_come = || core_local::count() > index;
    let end = time::now() + START_DEADLINE;
    for _ in 0..2 {
        apic::send_startup(apic_id, page);
        let attempt = time::now() + Duration::from_millis(100);
        while time::now() < attempt {
            if has_come() {
                return true;
            }
            core::hint::spin_loop();
        }
    }
    while time::now() < end {
        if has_come() {
            return true;
        }
        core::hint::spin_loop();
    }
    false
}

/// A new core's first Rust.
pub(crate) extern "C" fn ap_start() -> ! {
    // The trampoline's tables map low memory too; from here on only the kernel's half is there.
    paging::load_on_this_core();
    let apic_id = u32::try_from(AP_APIC.load(Ordering::Acquire)).unwrap_or_default();
    let core = core_local::prepare(AP_CORE.load(Ordering::Acquire), apic_id);
    apic::init();
    user::init_core();
    // Last of all: others find the core from now on, and may call it.
    core_local::adopt(core);
    vdso::init_core();
    executor::run()
}
