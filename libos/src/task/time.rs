//! The clock: the CPU's time stamp counter, measured once against the PIT.
//!
//! The counter is taken to run at one rate on all cores and from one start ("invariant TSC"), as
//! every CPU with a ConnectX-3 in its machine and QEMU have it.
// UNSAFETY: drives the PIT by I/O ports.
#![expect(unsafe_code, reason = "port I/O")]

use core::sync::atomic::{AtomicU64, Ordering};

use hal::Instant;
use x86_64::instructions::port::Port;

use crate::cpu::apic;
use crate::task::shortest::Shortest;

/// The 8254's input clock.
const PIT_HZ: u64 = 1_193_182;
/// Its count over the measured span, about 5 ms.
const PIT_COUNT: u16 = 5966;
/// Measured at most so often.
const ROUNDS: usize = 12;
/// Number of reads of the PIT before it counts as absent.
const PATIENCE: u32 = 10_000_000;

/// Nanoseconds a tick, in units of 2^-32.
static NANOS_PER_TICK: AtomicU64 = AtomicU64::new(0);
/// The APIC timer's counts a second.
static TIMER_HZ: AtomicU64 = AtomicU64::new(0);
static START: AtomicU64 = AtomicU64::new(0);

fn ticks() -> u64 {
    // SAFETY: every 64-bit CPU has the counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The time since the node started.
#[must_use]
pub fn now() -> Instant {
    let passed = ticks().wrapping_sub(START.load(Ordering::Relaxed));
    let nanos = (u128::from(passed) * u128::from(NANOS_PER_TICK.load(Ordering::Relaxed))) >> 32;
    Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Returns how the clock is read: the counter at its beginning, and nanoseconds a tick in units of
/// 2^-32.
pub(crate) fn clock() -> [u64; 2] {
    [
        START.load(Ordering::Relaxed),
        NANOS_PER_TICK.load(Ordering::Relaxed),
    ]
}

/// Returns the time stamp counter's frequency.
#[must_use]
pub fn tsc_hz() -> u64 {
    let scale = u128::from(NANOS_PER_TICK.load(Ordering::Relaxed)).max(1);
    u64::try_from((1_000_000_000_u128 << 32) / scale).unwrap_or(u64::MAX)
}

/// Measures the counter and the APIC's timer.
pub(crate) fn init() {
    START.store(ticks(), Ordering::Relaxed);
    let (mut tsc, mut timer) = (Shortest::default(), Shortest::default());
    for (ticks, counts) in (0..ROUNDS).filter_map(|_| measure()) {
        let agreed = (tsc.add(ticks), timer.add(counts));
        if agreed == (true, true) {
            break;
        }
    }
    let (Some(tsc), Some(timer)) = (tsc.count(), timer.count()) else {
        panic!("the PIT does not count")
    };
    let hz = |count: u64| (count * PIT_HZ / u64::from(PIT_COUNT)).max(1);
    NANOS_PER_TICK.store(
        u64::try_from((1_000_000_000_u128 << 32) / u128::from(hz(tsc))).unwrap_or(1),
        Ordering::Relaxed,
    );
    TIMER_HZ.store(hz(timer), Ordering::Relaxed);
    log::debug!(
        "TSC {} MHz, APIC timer {} MHz",
        hz(tsc) / 1_000_000,
        hz(timer) / 1_000_000
    );
}

/// Counts TSC and APIC timer over the PIT's span.
fn measure() -> Option<(u64, u64)> {
    // Channel 2's gate is bit 0 of port 0x61, its output bit 5; bit 1 is the speaker.
    let gate = input(0x61) & !3;
    output(0x61, gate);
    output(0x43, 0b1011_0000); // channel 2, low byte then high, mode 0: output rises at the end
    let [low, high] = PIT_COUNT.to_le_bytes();
    output(0x42, low);
    apic::set_timer(u32::MAX);
    let start = ticks();
    // Nothing may be read behind this: QEMU's PIT counts from here on, whatever its gate
    // (`hw/timer/i8254_common.c`).
    output(0x42, high);
    output(0x61, gate | 1);
    let ended = (0..PATIENCE).any(|_| input(0x61) & 1 << 5 != 0);
    let tsc = ticks() - start;
    let timer = u32::MAX - apic::timer_left();
    apic::set_timer(0);
    ended.then_some((tsc, timer.into()))
}

fn input(port: u16) -> u8 {
    // SAFETY: a port of the PIT.
    unsafe { Port::new(port).read() }
}

fn output(port: u16, value: u8) {
    // SAFETY: a port of the PIT.
    unsafe { Port::new(port).write(value) };
}

/// The APIC timer's count for a span of nanoseconds, at least 1; long spans are cut.
pub(crate) fn timer_count(nanos: u64) -> u32 {
    let count = u128::from(nanos) * u128::from(TIMER_HZ.load(Ordering::Relaxed)) / 1_000_000_000;
    u32::try_from(count + 1).unwrap_or(u32::MAX)
}

/// Waits without letting anything else run; for a core's start only.
pub(crate) fn spin(span: hal::Duration) {
    let end = now() + span;
    while now() < end {
        core::hint::spin_loop();
    }
}
