//! Leaving: QEMU's `isa-debug-exit` turns the value written into its own exit status, 2 × value +
//! 1.
// UNSAFETY: writes an I/O port.
#![expect(unsafe_code, reason = "port I/O")]

use x86_64::instructions::port::Port;

/// The port that `docs/architecture.md` gives the device.
const PORT: u16 = 0xf4;

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

/// Powers the node off. Where no such device is the core stops instead.
pub fn power_off(how: Exit) -> ! {
    let value: u32 = match how {
        Exit::Success => 0,
        Exit::Panic => 1,
        Exit::Failure => 2,
    };
    x86_64::instructions::interrupts::disable();
    // SAFETY: the port belongs to the debug-exit device, or to nothing.
    unsafe { Port::new(PORT).write(value) };
    loop {
        x86_64::instructions::hlt();
    }
}
