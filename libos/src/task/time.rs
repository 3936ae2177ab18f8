//! The clock: the CPU's time stamp counter, measured once against a timer whose frequency is known:
//! the PIT, or ACPI's timer or the HPET where firmware has stopped the others or there is none.
//!
//! The counter is taken to run at one rate on all cores and from one start ("invariant TSC"), as
//! every CPU with a ConnectX-3 in its machine and QEMU have it.
// UNSAFETY: drives timers by I/O ports and by registers.
#![expect(unsafe_code, reason = "device registers")]

use core::sync::atomic::{AtomicU64, Ordering};

use hal::{Instant, PhysAddr};
use x86_64::instructions::port::Port;

use crate::boot::acpi::Tables;
use crate::boot::fixed::PmTimer;
use crate::cpu::apic;
use crate::mem::paging;
use crate::mem::window::Window;
use crate::task::hpet::Hpet;
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

/// RDTSC waits for nothing before it, so a reading may be some instructions early: times order
/// events of one core only as far as that.
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

/// The boot option `timer`: what the clock is measured against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reference {
    /// The 8254.
    Pit,
    /// ACPI's power management timer.
    Acpi,
    /// The high precision event timer.
    Hpet,
}

impl core::str::FromStr for Reference {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "pit" => Self::Pit,
            "acpi" => Self::Acpi,
            "hpet" => Self::Hpet,
            _ => return Err("pit, acpi or hpet is expected"),
        })
    }
}

/// Measures the counter and the APIC's timer, against `wanted` or the first timer that counts.
pub(crate) fn init(tables: &Tables, wanted: Option<Reference>) {
    START.store(ticks(), Ordering::Relaxed);
    let measure = |reference| {
        let span = match reference {
            Reference::Pit => shortest(against_pit),
            Reference::Acpi => tables
                .fixed
                .timer
                .and_then(|timer| shortest(|| against_pm_timer(timer))),
            Reference::Hpet => tables.hpet.and_then(measure_against_hpet),
        };
        if span.is_none() {
            log::info!("{} does not count", reference.name());
        }
        span.map(|span| (reference, span))
    };
    let all = [Reference::Pit, Reference::Acpi, Reference::Hpet];
    let mut wanted = all
        .into_iter()
        .filter(|&reference| wanted.is_none_or(|wanted| wanted == reference));
    let Some((reference, span)) = wanted.find_map(measure) else {
        panic!("no timer counts of the PIT, ACPI's timer and the HPET (see the option timer=)")
    };
    let hz = |count: u64| (count * span.hz / span.counts).max(1);
    let nanos = (1_000_000_000_u128 << 32) / u128::from(hz(span.tsc));
    NANOS_PER_TICK.store(u64::try_from(nanos).unwrap_or(1), Ordering::Relaxed);
    TIMER_HZ.store(hz(span.apic), Ordering::Relaxed);
    let usual = reference == Reference::Pit;
    log::log!(
        if usual {
            log::Level::Debug
        } else {
            log::Level::Info
        },
        "TSC {} MHz, APIC timer {} MHz by {}",
        hz(span.tsc) / 1_000_000,
        hz(span.apic) / 1_000_000,
        reference.name()
    );
}

impl Reference {
    fn name(self) -> &'static str {
        match self {
            Self::Pit => "the PIT",
            Self::Acpi => "ACPI's timer",
            Self::Hpet => "the HPET",
        }
    }
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
    ended.then(|| Span {
        tsc: scaled(tsc, PM_COUNT, counts),
        apic: scaled(apic, PM_COUNT, counts),
        counts: PM_COUNT.into(),
        hz: PM_HZ,
    })
}

/// Measures against the HPET whose registers are at an address.
fn measure_against_hpet(address: u64) -> Option<Span> {
    /// Bytes of registers, and offsets of some (IA-PC HPET specification 1.0a, section 2.3); the
    /// counter's low half is enough for a span.
    const REGISTERS: usize = 0x400;
    const CAPABILITIES: usize = 0x00;
    const PERIOD: usize = 0x04;
    const CONFIGURATION: usize = 0x10;
    const COUNTER: usize = 0xf0;
    /// Lets the counter run.
    const ENABLE: u32 = 1 << 0;
    let page = paging::map_device(PhysAddr(address), REGISTERS as u64)?;
    // SAFETY: mapped for good; device registers have no references.
    let registers = unsafe { Window::new(page, REGISTERS) };
    let hpet = Hpet::new(registers.load(CAPABILITIES), registers.load(PERIOD))?;
    let old: u32 = registers.load(CONFIGURATION);
    registers.store(CONFIGURATION, old | ENABLE);
    let span = shortest(|| against_hpet(&hpet, || registers.load(COUNTER)));
    registers.store(CONFIGURATION, old);
    span
}

/// Counts TSC and APIC timer over a span of the HPET.
fn against_hpet(hpet: &Hpet, count: impl Fn() -> u32) -> Option<Span> {
    let wanted = hpet.span();
    let first = count();
    apic::set_timer(u32::MAX);
    let start = ticks();
    let mut counts = 0;
    let ended = until(start, || {
        counts = count().wrapping_sub(first);
        counts >= wanted
    });
    let (tsc, apic) = stop(start);
    ended.then(|| Span {
        tsc: scaled(tsc, wanted, counts),
        apic: scaled(apic, wanted, counts),
        counts: wanted.into(),
        hz: hpet.hz(),
    })
}

/// Returns the part of a count that belongs to the wanted span, as a look takes a while: the span
/// measured is a little longer.
fn scaled(count: u64, wanted: u32, counts: u32) -> u64 {
    count * u64::from(wanted) / u64::from(counts.max(1))
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
