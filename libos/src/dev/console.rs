//! The kernel log: [`log`]'s backend, one line a record, and the report lines that scripts read.
// UNSAFETY: opens a window on the framebuffer.
#![expect(unsafe_code, reason = "device memory")]

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU16, Ordering};

use hal::PhysAddr;
use handover::Framebuffer;

use spin::Mutex;

use crate::boot::acpi::SerialConsole;
use crate::dev::screen::{self, Pixels, Screen};
use crate::dev::serial::{COM1, Serial};
use crate::mem::paging;
use crate::mem::window::Window;

/// Taken for one line at a time. No lock is taken under it.
static SERIAL: Mutex<Serial> = Mutex::new(Serial::at(COM1));
/// Its port, for who writes without the lock.
static PORT: AtomicU16 = AtomicU16::new(COM1);
/// Number of tries of a panicking core to get the line that another core is writing.
const PANIC_PATIENCE: u32 = 10_000_000;

/// The screen, if there is one. Taken for one line at a time, after the serial port was given up.
/// No lock is taken under it.
static SCREEN: Mutex<Option<Screen<Mapped>>> = Mutex::new(None);

/// A mapped framebuffer.
#[derive(Debug)]
struct Mapped(Window);

impl Pixels for Mapped {
    fn put(&self, at: usize, color: u32) {
        self.0.store(4 * at, color);
    }
}

struct Backend;

impl log::Log for Backend {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now = crate::task::time::now().nanos / 1000;
        let (seconds, micros) = (now / 1_000_000, now % 1_000_000);
        let (level, target) = (record.level(), record.target());
        line(format_args!(
            "[{seconds:5}.{micros:06}] {level:<5} {target}: {}",
            record.args()
        ));
    }

    fn flush(&self) {}
}

/// Starts the console; records of `info` and above are shown until [`set_level`].
pub(crate) fn init() {
    SERIAL.lock().init();
    // A second start can't happen, and would leave the first in place.
    let _ = log::set_logger(&Backend);
    log::set_max_level(log::LevelFilter::Info);
}

/// Goes on at the serial port that firmware uses as its console.
pub(crate) fn move_to(console: SerialConsole) {
    PORT.store(console.port, Ordering::Relaxed);
    SERIAL.lock().move_to(console);
}

/// Goes on at the screen, too, if the loader has told of one that can be drawn on.
pub(crate) fn add_screen(buffer: Option<Framebuffer>) {
    let Some(buffer) = buffer else { return };
    let mapped = screen::usable(&buffer).and_then(|len| {
        let base = paging::map_device(PhysAddr(buffer.address), len as u64)?;
        // SAFETY: mapped for good, and only the screen has it.
        Some(unsafe { Window::new(base, len) })
    });
    let screen = mapped.and_then(|window| Screen::new(Mapped(window), &buffer));
    if screen.is_none() {
        log::warn!("the screen can't be drawn on: {buffer:?}");
    }
    *SCREEN.lock() = screen;
}

/// Returns the first port of the log's UART.
pub(crate) fn port() -> u16 {
    PORT.load(Ordering::Relaxed)
}

/// Shows records up to `level`.
pub fn set_level(level: log::LevelFilter) {
    log::set_max_level(level);
}

/// Writes one line as it is.
pub fn line(text: fmt::Arguments<'_>) {
    // Neither output can fail.
    let _ = writeln!(SERIAL.lock(), "{text}");
    if let Some(screen) = &mut *SCREEN.lock() {
        let _ = writeln!(screen, "{text}");
    }
}

/// Writes a report line, `report<TAB>key<TAB>value…` (see `docs/architecture.md`).
///
/// ```ignore
/// libos::report("exit", format_args!("{status}"));
/// libos::report("counter", format_args!("nr_pcache_hit\t{hits}"));
/// ```
pub fn report(key: &str, values: fmt::Arguments<'_>) {
    line(format_args!("report\t{key}\t{values}"));
}

/// Waits until what was written is on the line. Another core may hold the lock, and be stopped.
pub(crate) fn drain() {
    match SERIAL.try_lock() {
        Some(mut serial) => serial.drain(),
        None => Serial::at(PORT.load(Ordering::Relaxed)).drain(),
    }
}

/// Writes a line of a panic: waits for the lock only so long.
pub(crate) fn panic_line(text: fmt::Arguments<'_>) {
    // Another core may be stopped while it draws; the serial port has the line then.
    if let Some(mut screen) = SCREEN.try_lock()
        && let Some(screen) = &mut *screen
    {
        let _ = writeln!(screen, "{text}");
    }
    for _ in 0..PANIC_PATIENCE {
        if let Some(mut serial) = SERIAL.try_lock() {
            let _ = writeln!(serial, "{text}");
            return;
        }
        core::hint::spin_loop();
    }
    // The holder may be this very core: write past it.
    let _ = writeln!(Serial::at(PORT.load(Ordering::Relaxed)), "{text}");
}
