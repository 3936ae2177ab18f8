//! Leaving: by QEMU's exit device, by ACPI, or by stopping.
//!
//! QEMU's `isa-debug-exit` turns the value written into its own exit status, 2 × value + 1. A
//! machine that has no such device is powered off by ACPI's PM1 registers; after a failure it stops
//! instead, so that the last lines stay to be read, unless the option `failure` says otherwise.
// UNSAFETY: writes I/O ports.
#![expect(unsafe_code, reason = "port I/O")]

use spin::Once;
use x86_64::instructions::port::Port;

use crate::boot::acpi::Tables;
use crate::boot::fixed::{Fixed, SoftOff};
use crate::boot::watchdog::Write;
use crate::cpu::apic;
use crate::dev::console;

/// The port that `docs/architecture.md` gives the device.
const PORT: u16 = 0xf4;
/// ACPI 6.5, section 4.8.3.2.1: the registers are the operating system's (`SCI_EN`), the sleep type
/// and the bit that begins it.
const OURS: u16 = 1;
const TYPE_SHIFT: u32 = 10;
const SLEEP: u16 = 1 << 13;
/// Reads of a register until firmware counts as refusing to hand the registers over.
const PATIENCE: u32 = 1_000_000;
/// The reset control register of Intel's chipsets (ICH9 and later, section 13.7.5) and the value
/// for a reset of everything; the command of the keyboard controller that pulses the reset line.
const RESET_CONTROL: (u16, u8) = (0xcf9, 0x0e);
const KEYBOARD_RESET: (u16, u8) = (0x64, 0xfe);

/// Outcomes of a node's run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All is done: QEMU exits with 1.
    Success,
    /// The kernel panicked: QEMU exits with 3.
    Panic,
    /// An error that the log names: QEMU exits with 5.
    Failure,
}

/// The boot option `failure`: the end of a machine that has failed or panicked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum AfterFailure {
    /// It stops with power on.
    #[default]
    Stop,
    /// It powers off.
    Off,
    /// It starts anew.
    Reset,
}

impl core::str::FromStr for AfterFailure {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "stop" => Self::Stop,
            "off" => Self::Off,
            "reset" => Self::Reset,
            _ => return Err("stop, off or reset is expected"),
        })
    }
}

/// The ways out of this machine.
struct Ways {
    fixed: Fixed,
    soft_off: Option<SoftOff>,
    after_failure: AfterFailure,
}

static WAYS: Once<Ways> = Once::new();

/// Notes how this machine is left.
pub(crate) fn init(tables: &Tables, after_failure: AfterFailure) {
    WAYS.call_once(|| Ways {
        fixed: tables.fixed,
        soft_off: tables.soft_off,
        after_failure,
    });
}

/// Ends the node: powers the machine off, or does what the option `failure` says. Where there is no
/// way to do that all cores stop.
pub fn power_off(how: Exit) -> ! {
    let value: u32 = match how {
        Exit::Success => 0,
        Exit::Panic => 1,
        Exit::Failure => 2,
    };
    x86_64::instructions::interrupts::disable();
    console::drain();
    // SAFETY: the port belongs to the debug-exit device, or to nothing.
    unsafe { Port::new(PORT).write(value) };
    if let Some(ways) = WAYS.get() {
        match (how, ways.after_failure) {
            (Exit::Success, _) | (_, AfterFailure::Off) => ways.off(),
            (_, AfterFailure::Reset) => ways.reset(),
            (_, AfterFailure::Stop) => {}
        }
    }
    apic::stop_others();
    loop {
        x86_64::instructions::hlt();
    }
}

impl Ways {
    /// Powers the machine off; returns if it can't be.
    fn off(&self) {
        let (Some(ports), Some(types)) = (self.fixed.power, self.soft_off) else {
            return;
        };
        if let Some((port, value)) = ports.enable
            && read::<u16>(ports.pm1a) & OURS == 0
        {
            // Firmware's handler of system management answers; its registers are ours then.
            write(port, value);
            let _ = (0..PATIENCE).any(|_| read::<u16>(ports.pm1a) & OURS != 0);
        }
        let registers = [Some((ports.pm1a, types.a)), ports.pm1b.zip(Some(types.b))];
        for sleep in [0, SLEEP] {
            for (port, kind) in registers.into_iter().flatten() {
                let kept = read::<u16>(port) & !(7 << TYPE_SHIFT | SLEEP);
                write(port, kept | u16::from(kind) << TYPE_SHIFT | sleep);
            }
        }
    }

    /// Resets the machine; returns if nothing does.
    fn reset(&self) {
        for (port, value) in [self.fixed.reset, Some(RESET_CONTROL), Some(KEYBOARD_RESET)]
            .into_iter()
            .flatten()
        {
            write(port, value);
            for _ in 0..PATIENCE {
                core::hint::spin_loop();
            }
        }
    }
}

/// Makes a write that firmware's tables ask for.
pub(crate) fn write_register(write: Write) {
    let kept = if write.keeps == 0 {
        0
    } else {
        let old = match write.bytes {
            1 => read::<u8>(write.port).into(),
            2 => read::<u16>(write.port).into(),
            _ => read::<u32>(write.port),
        };
        old & write.keeps
    };
    let [low, high, ..] = (kept | write.value).to_le_bytes();
    match write.bytes {
        1 => self::write(write.port, low),
        2 => self::write(write.port, u16::from_le_bytes([low, high])),
        _ => self::write(write.port, kept | write.value),
    }
}

fn read<T: x86_64::instructions::port::PortRead>(port: u16) -> T {
    // SAFETY: a register of power management or of the watchdog, by firmware's tables; nothing else
    // drives it.
    unsafe { Port::new(port).read() }
}

fn write<T: x86_64::instructions::port::PortWrite>(port: u16, value: T) {
    // SAFETY: a register of power management, reset or the watchdog, by firmware's tables or the
    // chipset's: the node ends here, or the watchdog is stopped, which nothing else drives.
    unsafe { Port::new(port).write(value) };
}
