//! The local APIC, by MSRs (x2APIC) where these may be used, else by its registers in memory.
//!
//! Registers: Intel SDM volume 3A, table 11-1 (offsets) and 11.12.1.2 (MSR numbers: 0x800 + offset
//! / 16).
// UNSAFETY: writes MSRs, and registers through a mapping.
#![expect(unsafe_code, reason = "device registers")]

use core::sync::atomic::{AtomicBool, Ordering};

use hal::PhysAddr;
use raw_cpuid::CpuId;
use spin::Once;
use x86_64::instructions::port::Port;
use x86_64::registers::model_specific::Msr;

use crate::mem::paging::map_device;
use crate::mem::window::Window;

/// The vector of the core's timer.
pub(crate) const TIMER_VECTOR: u8 = 0xf0;
/// The vector by which cores call each other.
pub(crate) const CALL_VECTOR: u8 = 0xf1;
const SPURIOUS_VECTOR: u8 = 0xff;

const ID: u32 = 0x20;
const TASK_PRIORITY: u32 = 0x80;
const END_OF_INTERRUPT: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const COMMAND_LOW: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const TIMER: u32 = 0x320;
const LINT0: u32 = 0x350;
const LINT1: u32 = 0x360;
const ERROR: u32 = 0x370;
const TIMER_INITIAL: u32 = 0x380;
const TIMER_CURRENT: u32 = 0x390;
const TIMER_DIVIDE: u32 = 0x3e0;

const ENABLED: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
const DIVIDE_BY_16: u32 = 3;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;
const DELIVERING: u32 = 1 << 12;

const BASE_MSR: u32 = 0x1b;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;
const X2APIC_MSRS: u32 = 0x800;
/// Number of looks at a command's delivery before it counts as failed.
const PATIENCE: u32 = 1_000_000;

static X2APIC: AtomicBool = AtomicBool::new(false);
static REGISTERS: Once<Window> = Once::new();

/// Silences the two 8259s, which would deliver into the exceptions' vectors.
pub(crate) fn silence_legacy() {
    // Initialise with the vectors 0x20 to 0x2f, so that a spurious interrupt hits no exception,
    // then mask all.
    for (port, value) in [
        (0x20, 0x11),
        (0xa0, 0x11),
        (0x21, 0x20),
        (0xa1, 0x28),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
    ] {
        out(port, value);
    }
    out(0x21, 0xff);
    out(0xa1, 0xff);
}

fn out(port: u16, value: u8) {
    // SAFETY: a port of the interrupt controllers.
    unsafe { Port::new(port).write(value) };
}

/// Returns whether the APIC is driven by MSRs: where firmware has turned that on, as it can't be
/// turned off again without a reset, and in virtual machines. A real machine wants its interrupts
/// remapped first, which is not done here (Linux `arch/x86/kernel/apic/apic.c`,
/// `try_to_enable_x2apic`).
fn uses_x2apic(has: bool, virtual_machine: bool, on: bool) -> bool {
    on || has && virtual_machine
}

/// Turns this core's APIC on.
pub(crate) fn init() {
    let mut base = Msr::new(BASE_MSR);
    // SAFETY: every 64-bit CPU has it.
    let old = unsafe { base.read() };
    let features = CpuId::new().get_feature_info();
    let x2apic = uses_x2apic(
        features.as_ref().is_some_and(|info| info.has_x2apic()),
        features.as_ref().is_some_and(|info| info.has_hypervisor()),
        old & BASE_X2APIC != 0,
    );
    X2APIC.store(x2apic, Ordering::Release);
    let mode = if x2apic {
        BASE_ENABLE | BASE_X2APIC
    } else {
        BASE_ENABLE
    };
    // SAFETY: turns the APIC on where it is.
    unsafe { base.write(old | mode) };
    if !x2apic {
        REGISTERS.call_once(|| {
            let page =
                map_device(PhysAddr(old & 0x000f_ffff_ffff_f000), 0x1000).expect("the APIC's page");
            // SAFETY: mapped for good, and only this module has it.
            unsafe { Window::new(page, 0x1000) }
        });
    }
    // All vectors are let in; firmware may have left a threshold. The spurious vector's register
    // turns the APIC on in software: until then no local vector, the timer's too, can be unmasked
    // (Intel SDM volume 3A, "Local APIC State After It Has Been Software Disabled").
    write(TASK_PRIORITY, 0);
    for register in [LINT0, LINT1, ERROR] {
        write(register, MASKED);
    }
    write(SPURIOUS, ENABLED | u32::from(SPURIOUS_VECTOR));
    write(TIMER_DIVIDE, DIVIDE_BY_16);
    write(TIMER, TIMER_VECTOR.into());
}

fn read(register: u32) -> u32 {
    match REGISTERS.get() {
        // SAFETY: a readable register of the x2APIC.
        None => (unsafe { Msr::new(X2APIC_MSRS + (register >> 4)).read() } & 0xffff_ffff) as u32,
        Some(window) => window.load(register as usize),
    }
}

fn write(register: u32, value: u32) {
    match REGISTERS.get() {
        // SAFETY: a writable register of the x2APIC.
        None => unsafe { Msr::new(X2APIC_MSRS + (register >> 4)).write(value.into()) },
        Some(window) => window.store(register as usize, value),
    }
}

/// This core's APIC id.
pub(crate) fn id() -> u32 {
    if X2APIC.load(Ordering::Acquire) {
        read(ID)
    } else {
        read(ID) >> 24
    }
}

/// Signals the end of the interrupt (EOI) to the APIC.
///
/// Until then no vector of this priority or below is delivered to this core.
pub(crate) fn end_of_interrupt() {
    write(END_OF_INTERRUPT, 0);
}

/// Starts the timer, which fires once when `count` has run down; 0 stops it.
pub(crate) fn set_timer(count: u32) {
    write(TIMER_INITIAL, count);
}

/// Returns the rest of the timer's count.
pub(crate) fn timer_left() -> u32 {
    read(TIMER_CURRENT)
}

/// Interrupts another core by `vector`.
pub(crate) fn interrupt(apic_id: u32, vector: u8) {
    command(apic_id, vector.into());
}

/// Resets a core, which then waits for [`send_startup`].
pub(crate) fn send_init(apic_id: u32) {
    command(apic_id, INIT);
}

/// Stops all other cores for good: they wait for a start that never comes.
pub(crate) fn stop_others() {
    /// Shorthand for all cores but the one that sends (SDM 3A, figure 12-12).
    const ALL_OTHERS: u32 = 3 << 18;
    if X2APIC.load(Ordering::Acquire) || REGISTERS.get().is_some() {
        command(0, INIT | ALL_OTHERS);
    }
}

/// Starts a waiting core in real mode at `page` × 4096.
pub(crate) fn send_startup(apic_id: u32, page: u8) {
    command(apic_id, STARTUP | u32::from(page));
}

/// Sends an interrupt or a reset to another core, and waits until it is on its way where the APIC
/// tells that: x2APIC takes the command in one write and has no delivery status.
fn command(apic_id: u32, command: u32) {
    // What was written before must be seen by the core that is called: in x2APIC mode the write to
    // the MSR orders nothing.
    hal::fence::publish();
    let Some(window) = REGISTERS.get() else {
        let value = u64::from(apic_id) << 32 | u64::from(command);
        // SAFETY: the interrupt command register.
        return unsafe { Msr::new(X2APIC_MSRS + (COMMAND_LOW >> 4)).write(value) };
    };
    // The store to the lower half sends it, so the destination comes first (Intel SDM volume 3A,
    // "Interrupt Command Register (ICR)").
    window.store(COMMAND_HIGH as usize, apic_id << 24);
    window.store(COMMAND_LOW as usize, command);
    for _ in 0..PATIENCE {
        if window.load::<u32>(COMMAND_LOW as usize) & DELIVERING == 0 {
            return;
        }
        core::hint::spin_loop();
    }
    log::error!("interrupt to APIC {apic_id} is not delivered");
}
