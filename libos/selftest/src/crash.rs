//! Ways to break a kernel. What it then says is checked by the runner.
// UNSAFETY: breaks the kernel's rules on purpose, to see them enforced.
#![expect(unsafe_code, reason = "does what must fault")]

use libos::Exit;

pub(crate) fn crash(how: &str) -> Exit {
    match how {
        "panic" => panicking_function(3),
        "write_text" => {
            let text = crash as *const () as *mut u8;
            // SAFETY: none: the store must fault.
            unsafe { text.write_volatile(0xcc) };
        }
        "execute_data" => {
            static CODE: [u8; 1] = [0xc3];
            // SAFETY: none: the call must fault.
            let call: extern "C" fn() = unsafe { core::mem::transmute(CODE.as_ptr()) };
            call();
        }
        "execute_heap" => {
            let code = alloc::vec![0xc3_u8; 16];
            // SAFETY: none: the call must fault.
            let call: extern "C" fn() = unsafe { core::mem::transmute(code.as_ptr()) };
            call();
        }
        "null" => {
            let null = core::hint::black_box(core::ptr::null_mut::<u8>());
            // SAFETY: none: the store must fault.
            unsafe { core::arch::asm!("mov byte ptr [{}], 0", in(reg) null) };
        }
        "overflow" => {
            log::info!("{}", endless(1));
        }
        "undefined" => {
            // SAFETY: none: it must fault.
            unsafe { core::arch::asm!("ud2") };
        }
        "foreign_entry" => {
            // The kernel's own memory, for a program to write to.
            let space = libos::AddressSpace::new().expect("memory");
            let entry = space.entry_or_create(0x1000).expect("memory");
            let _ = entry.compare_exchange(0, 0x20_0007);
        }
        "watchdog" => {
            run_watchdog();
            return Exit::Failure;
        }
        "failure" => return Exit::Failure,
        _ => {}
    }
    Exit::Success
}

#[inline(never)]
fn panicking_function(left: u32) {
    if left == 0 {
        panic!("on purpose");
    }
    panicking_function(core::hint::black_box(left - 1));
    core::hint::black_box(left);
}

#[inline(never)]
#[expect(unconditional_recursion, reason = "overflows the stack")]
fn endless(depth: u64) -> u64 {
    let room = core::hint::black_box([depth; 64]);
    endless(core::hint::black_box(depth + 1)) + room[3]
}

/// Lets the watchdog of q35's chipset run and waits for what it does.
fn run_watchdog() {
    /// Reload, control and count (Intel ICH9 data sheet, section 13.9; `libos::dev::tco`).
    const RELOAD: u16 = 0x660;
    const CONTROL: u16 = 0x668;
    const COUNT: u16 = 0x672;
    const HALTED: u16 = 1 << 11;
    let output = |port: u16, value: u16| {
        // SAFETY: a register of the watchdog, which only this function drives now.
        unsafe { core::arch::asm!("out dx, ax", in("dx") port, in("ax") value) };
    };
    let control: u16;
    // SAFETY: as above.
    unsafe { core::arch::asm!("in ax, dx", in("dx") CONTROL, out("ax") control) };
    // Twice four counts of 0.6 s.
    output(COUNT, 4);
    output(CONTROL, control & !HALTED);
    output(RELOAD, 1);
    let end = libos::now() + hal::Duration::from_secs(30);
    while libos::now() < end {
        core::hint::spin_loop();
    }
}
