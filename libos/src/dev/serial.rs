//! The first 16550 UART, polled: the kernel log's way out.
//!
//! Registers: National Semiconductor PC16550D data sheet, table II.
// UNSAFETY: reads and writes I/O ports.
#![expect(unsafe_code, reason = "port I/O")]

use core::fmt;

use x86_64::instructions::port::Port;

const COM1: u16 = 0x3f8;
/// Line status: the transmit FIFO is empty.
const LSR_THR_EMPTY: u8 = 1 << 5;
/// Line status: nothing is left in the FIFO or the shift register.
const LSR_IDLE: u8 = 1 << 6;
const FIFO_BYTES: usize = 16;
/// Number of reads of the status before the line counts as dead.
const PATIENCE: u32 = 1_000_000;

/// COM1. Output only.
pub(crate) struct Serial {
    dead: bool,
}

impl Serial {
    pub(crate) const fn new() -> Self {
        Self { dead: false }
    }

    /// 115200 baud, 8 bits, no parity, FIFOs on, no interrupts.
    pub(crate) fn init(&mut self) {
        for (register, value) in [
            (1, 0),
            (3, 0x80),
            (0, 1),
            (1, 0),
            (3, 0x03),
            (2, 0x07),
            (4, 0x03),
        ] {
            write(register, value);
        }
    }

    pub(crate) fn write_bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(FIFO_BYTES) {
            if !self.ready() {
                return;
            }
            for &byte in chunk {
                write(0, byte);
            }
        }
    }

    /// Waits until all that was written is on the line.
    pub(crate) fn drain(&mut self) {
        self.status(LSR_IDLE);
    }

    fn ready(&mut self) -> bool {
        self.status(LSR_THR_EMPTY)
    }

    /// Waits for a bit of the line status; a line that never gets there is not waited for again.
    fn status(&mut self, bit: u8) -> bool {
        if self.dead {
            return false;
        }
        for _ in 0..PATIENCE {
            if read(5) & bit != 0 {
                return true;
            }
            core::hint::spin_loop();
        }
        self.dead = true;
        false
    }
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write_bytes(text.as_bytes());
        Ok(())
    }
}

fn write(register: u16, value: u8) {
    // SAFETY: a register of COM1, which nothing else drives.
    unsafe { Port::new(COM1 + register).write(value) };
}

fn read(register: u16) -> u8 {
    // SAFETY: a register of COM1, which nothing else drives.
    unsafe { Port::new(COM1 + register).read() }
}
