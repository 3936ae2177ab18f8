//! The clock: the CPU's time stamp counter, measured once against the PIT, or against ACPI's timer
//! where firmware has stopped the PIT or there is none.
//!
//! The counter is taken to run at one rate on all cores and from one start ("invariant TSC"), as
//! every CPU with a ConnectX-3 in its machine and QEMU have it.
// UNSAFETY: drives timers by I/O ports.
#![expect(unsafe_code, reason = "port I/O")]

use core::sync::atomic::{AtomicU64, Ordering};

use hal::Instant;
use x86_64::instructions::port::Port;

use crate::boot::fixed::PmTimer;
use crate::cpu::apic;
use crate::task::shortest::Shortest;

/// The 8254's input clock.
const PIT_HZ: u64 = 1_193_182;
/// Its count over the measured span, about 2 ms: a look at it takes some microsecond, so the clock
/// is right to half a thousandth.
const PIT_COUNT: u16 = 2386;
/// ACPI's timer (ACPI 6.5, section 4.8.3.3), and the counts of a span of about 2 ms.
const PM_HZ: u64 = 3_579_545;
const PM_COUNT: u32 = 7159;
/// Measured at most so often.
const ROUNDS: usize = 12;
/// Ticks of the TSC until a timer counts as absent: a quarter of a second at 4 GHz.
const PATIENCE: u64 = 1_000_000_000;

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

/// Counts of one measured span.
struct Span {
    tsc: u64,
    apic: u64,
    /// The measuring timer's counts, and its frequency.
    counts: u64,
    hz: u64,
}

/// Measures the counter and the APIC's timer.
pub(crate) fn init(pm_timer: Option<PmTimer>) {
    START.store(ticks(), Ordering::Relaxed);
    let measured = shortest(against_pit).or_else(|| {
        log::info!("the PIT does not count");
        pm_timer.and_then(|timer| shortest(|| against_pm_timer(timer)))
    });
    let Some(span) = measured else {
        panic!("no timer counts: neither the PIT nor ACPI's")
    };
    let hz = |count: u64| (count * span.hz / span.counts).max(1);
    let nanos = (1_000_000_000_u128 << 32) / u128::from(hz(span.tsc));
    NANOS_PER_TICK.store(u64::try_from(nanos).unwrap_or(1), Ordering::Relaxed);
    TIMER_HZ.store(hz(span.apic), Ordering::Relaxed);
    log::debug!(
        "TSC {} MHz, APIC timer {} MHz",
        hz(span.tsc) / 1_000_000,
        hz(span.apic) / 1_000_000
    );
}

/// Repeats a measurement until two agree; `None` once one fails.
fn shortest(measure: impl Fn() -> Option<Span>) -> Option<Span> {
    let (mut tsc, mut apic) = (Shortest::default(), Shortest::default());
    let mut last = None;
    for _ in 0..ROUNDS {
        let span = measure()?;
        let agreed = (tsc.add(span.tsc), apic.add(span.apic));
        last = Some(span);
        if agreed == (true, true) {
            break;
        }
    }
    Some(Span {
        tsc: tsc.count()?,
        apic: apic.count()?,
        ..last?
    })
}

/// Counts TSC and APIC timer over the PIT's span.
fn against_pit() -> Option<Span> {
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
    let ended = until(start, || input(0x61) & 1 << 5 != 0);
    let (tsc, apic) = stop(start);
    // Where no PIT is, the port reads as ones at once.
    let counted = ended && input(0x61) != u8::MAX;
    counted.then_some(Span {
        tsc,
        apic,
        counts: PIT_COUNT.into(),
        hz: PIT_HZ,
    })
}

/// Counts TSC and APIC timer over a span of ACPI's timer.
fn against_pm_timer(timer: PmTimer) -> Option<Span> {
    // SAFETY: a timer of firmware's tables; reading it changes nothing.
    let count = || unsafe { Port::<u32>::new(timer.port).read() };
    let first = count();
    apic::set_timer(u32::MAX);
    let start = ticks();
    let mut counts = 0;
    let ended = until(start, || {
        counts = count().wrapping_sub(first) & timer.mask;
        counts >= PM_COUNT
    });
    let (tsc, apic) = stop(start);
    // A look takes a while: the span is a little longer than it should be.
    let of_span = |count: u64| count * u64::from(PM_COUNT) / u64::from(counts.max(1));
    ended.then(|| Span {
        tsc: of_span(tsc),
        apic: of_span(apic),
        counts: PM_COUNT.into(),
        hz: PM_HZ,
    })
}

/// Looks until `ended`; false if that takes too long.
fn until(start: u64, mut ended: impl FnMut() -> bool) -> bool {
    while !ended() {
        if ticks().wrapping_sub(start) > PATIENCE {
            return false;
        }
    }
    true
}

/// Ends a measurement: returns what TSC and APIC timer have counted.
fn stop(start: u64) -> (u64, u64) {
    let tsc = ticks().wrapping_sub(start);
    let apic = u32::MAX - apic::timer_left();
    apic::set_timer(0);
    (tsc, apic.into())
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
