//! The end of a node that found a bug in itself: what happened, where, and who called.
// UNSAFETY: reads the frame-pointer chain and the code at a fault.
#![expect(unsafe_code, reason = "raw memory")]

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};

use ksyms::Table;
use x86_64::registers::control::Cr2;

use crate::cpu::traps::TrapFrame;
use crate::dev::console::panic_line;
use crate::exit::{Exit, power_off};
use crate::mem::layout::Image;
use crate::mem::page_table::translate;
use crate::mem::paging;

const MAX_FRAMES: usize = 32;
const CODE_BYTES: usize = 16;

unsafe extern "C" {
    static __ksyms_start: u8;
    static __ksyms_end: u8;
}

/// Lets one core tell its story: another that panics meanwhile waits for the end, and a panic on
/// the way ends at once.
fn only_once() {
    static TELLING: AtomicU32 = AtomicU32::new(0);
    // Not by per-core data: it may not be there yet, or be what broke. 0 is no core.
    let own = (core::arch::x86_64::__cpuid(1).ebx >> 24) + 1;
    match TELLING.compare_exchange(0, own, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => {}
        Err(core) if core == own => power_off(Exit::Panic),
        Err(_) => loop {
            x86_64::instructions::hlt();
        },
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    x86_64::instructions::interrupts::disable();
    only_once();
    panic_line(format_args!("kernel {info}"));
    let frame: u64;
    // SAFETY: copies a register.
    unsafe {
        core::arch::asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack, preserves_flags))
    };
    backtrace(None, frame);
    power_off(Exit::Panic)
}

/// Ends the node for an exception that the kernel itself raised.
pub(crate) fn exception(frame: &TrapFrame) -> ! {
    only_once();
    let name = NAMES
        .get(usize::try_from(frame.vector).unwrap_or(usize::MAX))
        .copied()
        .unwrap_or("unknown");
    let fault = Cr2::read_raw();
    panic_line(format_args!(
        "kernel exception {} ({name}), error {:#x}, address {fault:#x}",
        frame.vector, frame.error
    ));
    if paging::is_stack_guard(fault) && matches!(frame.vector, 8 | 14) {
        panic_line(format_args!("a kernel stack has overflowed"));
    }
    registers(frame);
    code(frame.rip);
    backtrace(Some(frame.rip), frame.rbp);
    power_off(Exit::Panic)
}

fn registers(frame: &TrapFrame) {
    let TrapFrame {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rbp,
        rsp,
        r8,
        r9,
        r10,
        r11,
        ..
    } = frame;
    let TrapFrame {
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
        cs,
        ss,
        ..
    } = frame;
    panic_line(format_args!(
        "rax {rax:016x} rbx {rbx:016x} rcx {rcx:016x} rdx {rdx:016x}"
    ));
    panic_line(format_args!(
        "rsi {rsi:016x} rdi {rdi:016x} rbp {rbp:016x} rsp {rsp:016x}"
    ));
    panic_line(format_args!(
        "r8  {r8:016x} r9  {r9:016x} r10 {r10:016x} r11 {r11:016x}"
    ));
    panic_line(format_args!(
        "r12 {r12:016x} r13 {r13:016x} r14 {r14:016x} r15 {r15:016x}"
    ));
    panic_line(format_args!(
        "rip {rip:016x} flags {rflags:08x} cs {cs:x} ss {ss:x}"
    ));
}

fn code(rip: u64) {
    let mut bytes = [0_u8; CODE_BYTES];
    for (at, byte) in (rip..).zip(&mut bytes) {
        if !Image::contains_text(at) {
            return;
        }
        // SAFETY: the image's text is mapped and never changes.
        *byte = unsafe { pointer::<u8>(at).read() };
    }
    panic_line(format_args!("code {bytes:02x?}"));
}

fn backtrace(rip: Option<u64>, mut frame: u64) {
    if let Some(rip) = rip {
        panic_line(format_args!("  at {}", Place(rip)));
    }
    for _ in 0..MAX_FRAMES {
        let (Some(caller), Some(next)) = (word(frame.wrapping_add(8)), word(frame)) else {
            return;
        };
        if !Image::contains_text(caller) {
            return;
        }
        // The call lies before the address it returns to.
        panic_line(format_args!("  by {}", Place(caller - 1)));
        if next <= frame {
            return;
        }
        frame = next;
    }
}

/// A word of the kernel's memory, if there is any at this address.
fn word(address: u64) -> Option<u64> {
    let in_kernel = address >> 47 == 0x1_ffff;
    // No tables of our own yet: whatever broke did so at the very start.
    if !address.is_multiple_of(8) || !in_kernel || paging::kernel_root().0 == 0 {
        return None;
    }
    translate(paging::kernel_root(), address)?;
    // SAFETY: mapped, aligned, in the kernel's half; a copy of whatever is there.
    Some(unsafe { pointer::<u64>(address).read_volatile() })
}

fn pointer<T>(address: u64) -> *const T {
    core::ptr::with_exposed_provenance(usize::try_from(address).unwrap_or_default())
}

/// An address in the text, by name if the image carries its symbols.
struct Place(u64);

impl core::fmt::Display for Place {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let start = &raw const __ksyms_start;
        let len = (&raw const __ksyms_end).addr() - start.addr();
        // SAFETY: the linker script's room for the table, in read-only data.
        let bytes = unsafe { core::slice::from_raw_parts(start, len) };
        match Table::parse(bytes).and_then(|table| table.lookup(self.0)) {
            Some((name, offset)) => write!(f, "{:#x} {name}+{offset:#x}", self.0),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

/// Intel SDM volume 3A, table 6-1.
const NAMES: [&str; 20] = [
    "divide error",
    "debug",
    "NMI",
    "breakpoint",
    "overflow",
    "bound range",
    "invalid opcode",
    "no FPU",
    "double fault",
    "coprocessor overrun",
    "invalid TSS",
    "segment not present",
    "stack segment",
    "general protection",
    "page fault",
    "reserved",
    "x87 error",
    "alignment check",
    "machine check",
    "SIMD error",
];
