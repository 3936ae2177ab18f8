//! Starting the other cores (Intel SDM volume 3A, section 9.4.4).
// UNSAFETY: places the trampoline and hands a stack to a new core.
#![expect(unsafe_code, reason = "machine entry")]

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hal::{Duration, PhysAddr};

use crate::core_local::{self, MAX_CORES};
use crate::layout::direct;
use crate::paging::{self, new_stack};
use crate::{apic, executor, time, user, vdso};

/// Address at which a new core begins, below 1 MiB.
pub(crate) const TRAMPOLINE: u64 = 0x8000;
const TRAMPOLINE_PAGE: u8 = 8;
pub(crate) const STACK: usize = 128 << 10;
/// Time that a core may take to start.
const START_DEADLINE: Duration = Duration::from_secs(2);

/// Read by `boot.s`.
pub(crate) static AP_STACK: AtomicU64 = AtomicU64::new(0);
static AP_CORE: AtomicUsize = AtomicUsize::new(0);
static AP_APIC: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
}

/// Starts the cores with these APIC ids, but for this one. A core that does not come up is left out and named in the log.
pub(crate) fn start_others(apic_ids: &[u32]) {
    let code = &raw const ap_trampoline;
    let len = (&raw const ap_trampoline_end).addr() - code.addr();
    // SAFETY: low memory is never given away, and its boot-time contents are not needed any more.
    unsafe { direct(PhysAddr(TRAMPOLINE)).copy_from_nonoverlapping(code, len) };
    let own = apic::id();
    for &apic_id in apic_ids.iter().filter(|&&id| id != own) {
        let index = core_local::count();
        if index == MAX_CORES {
            log::warn!("more than {MAX_CORES} cores: the rest stays off");
            return;
        }
        if !start(index, apic_id) {
            // It may still be on its way to the stack and number that the next one would be given.
            log::error!("core {index} (APIC {apic_id}) does not start; going on with {index}");
            return;
        }
    }
}

fn start(index: usize, apic_id: u32) -> bool {
    AP_STACK.store(new_stack(STACK), Ordering::Release);
    AP_CORE.store(index, Ordering::Release);
    AP_APIC.store(apic_id.into(), Ordering::Release);
    apic::send_init(apic_id);
    time::spin(Duration::from_millis(10));
    let end = time::now() + START_DEADLINE;
    for _ in 0..2 {
        apic::send_startup(apic_id, TRAMPOLINE_PAGE);
        let attempt = time::now() + Duration::from_millis(100);
        while time::now() < attempt {
            if core_local::get(index).is_some() {
                return true;
            }
            core::hint::spin_loop();
        }
    }
    while time::now() < end {
        if core_local::get(index).is_some() {
            return true;
        }
        core::hint::spin_loop();
    }
    false
}

/// A new core's first Rust.
pub(crate) extern "C" fn ap_start() -> ! {
    paging::load_on_this_core();
    let apic_id = u32::try_from(AP_APIC.load(Ordering::Acquire)).unwrap_or_default();
    let core = core_local::prepare(AP_CORE.load(Ordering::Acquire), apic_id);
    apic::init();
    user::init_core();
    core_local::adopt(core);
    vdso::init_core();
    executor::run()
}
