//! A 16550 UART, polled: the kernel log's way out. It is COM1 until ACPI's SPCR names another.
//!
//! Registers: National Semiconductor PC16550D data sheet, table II.
// UNSAFETY: reads and writes I/O ports.
#![expect(unsafe_code, reason = "port I/O")]

use core::fmt;

use x86_64::instructions::port::Port;

use crate::boot::acpi::SerialConsole;

pub(crate) const COM1: u16 = 0x3f8;
/// Line status: the transmit FIFO is empty.
const LSR_THR_EMPTY: u8 = 1 << 5;
/// Line status: nothing is left in the FIFO or the shift register.
const LSR_IDLE: u8 = 1 << 6;
const FIFO_BYTES: usize = 16;
/// Number of reads of the status before the line counts as dead.
const PATIENCE: u32 = 1_000_000;

/// Clock of the divisor.
const BASE_BAUD: u32 = 115_200;

/// The UART at some ports. Output only.
pub(crate) struct Serial {
    /// Its first port.
    port: u16,
    dead: bool,
}

impl Serial {
    pub(crate) const fn at(port: u16) -> Self {
        Self { port, dead: false }
    }

    /// Sets it up for 115200 bits a second.
    pub(crate) fn init(&mut self) {
        self.set_up(Some(BASE_BAUD));
    }

    /// Goes on at the ports that firmware uses as its console.
    pub(crate) fn move_to(&mut self, console: SerialConsole) {
        // The line's two ends must run at one speed, so what firmware has set counts.
        self.drain();
        self.port = console.port;
        self.dead = false;
        self.set_up(console.baud);
    }

    /// 8 bits, no parity, FIFOs on, no interrupts; the speed as it is for `None`.
    fn set_up(&mut self, baud: Option<u32>) {
        self.write(1, 0);
        if let Some(baud) = baud {
            let divisor = u16::try_from(BASE_BAUD / baud.max(1)).unwrap_or(1).max(1);
            let [low, high] = divisor.to_le_bytes();
            for (register, value) in [(3, 0x80), (0, low), (1, high)] {
                self.write(register, value);
            }
        }
        for (register, value) in [(3, 0x03), (2, 0x07), (4, 0x03)] {
            self.write(register, value);
        }
    }

    pub(crate) fn write_bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(FIFO_BYTES) {
            if !self.ready() {
                return;
            }
            for &byte in chunk {
                self.write(0, byte);
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
            if self.read(5) & bit != 0 {
                return true;
            }
            core::hint::spin_loop();
        }
        self.dead = true;
        false
    }

    fn write(&self, register: u16, value: u8) {
        // SAFETY: a register of the UART, which nothing else drives.
        unsafe { Port::new(self.port + register).write(value) };
    }

    fn read(&self, register: u16) -> u8 {
        // SAFETY: a register of the UART, which nothing else drives.
        unsafe { Port::new(self.port + register).read() }
    }
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write_bytes(text.as_bytes());
        Ok(())
    }
}
