//! A 16550 UART for bytes both ways, polled; the kernel log's is in `serial`.
//!
//! Registers: National Semiconductor PC16550D data sheet, table II.
// UNSAFETY: reads and writes I/O ports.
#![expect(unsafe_code, reason = "port I/O")]

use x86_64::instructions::port::Port;

use crate::dev::console;

const DATA: u16 = 0;
const INTERRUPTS: u16 = 1;
const FIFO: u16 = 2;
const LINE: u16 = 3;
const MODEM: u16 = 4;
const STATUS: u16 = 5;
const SCRATCH: u16 = 7;
/// Line status: a byte has come.
const DATA_READY: u8 = 1 << 0;
/// Line status: the transmit FIFO is empty.
const TRANSMIT_EMPTY: u8 = 1 << 5;
/// Line control: the divisor is at the first two registers.
const DIVISOR: u8 = 0x80;
/// Line control: 8 bits, no parity, one stop bit.
const EIGHT_BITS: u8 = 0x03;
/// FIFO control: on, both cleared, the trigger at 14 bytes.
const FIFOS_ON: u8 = 0xc7;
/// Modem control: DTR and RTS.
const READY: u8 = 0x03;
const FIFO_BYTES: usize = 16;

/// The PC's second serial port.
pub const COM2: u16 = 0x2f8;

/// A UART at I/O ports, at 115200 bits a second.
#[derive(Debug)]
pub struct Uart {
    port: u16,
}

impl Uart {
    /// Sets the UART at `port` up; `None` if there is none, or the kernel log has it.
    #[must_use]
    pub fn open(port: u16) -> Option<Self> {
        let last = port.checked_add(SCRATCH)?;
        let log = console::port();
        if log <= last && port <= log.saturating_add(SCRATCH) {
            return None;
        }
        let uart = Self { port };
        let there = [0x5a, 0xa5].into_iter().all(|value| {
            uart.store(SCRATCH, value);
            uart.load(SCRATCH) == value
        });
        if !there {
            return None;
        }
        let set_up = [
            (INTERRUPTS, 0),
            (LINE, DIVISOR),
            (DATA, 1),
            (INTERRUPTS, 0),
            (LINE, EIGHT_BITS),
            (FIFO, FIFOS_ON),
            (MODEM, READY),
        ];
        for (register, value) in set_up {
            uart.store(register, value);
        }
        Some(uart)
    }

    /// Reads the bytes that have come, as many as there is room for; returns their number.
    pub fn read(&mut self, into: &mut [u8]) -> usize {
        for (count, byte) in into.iter_mut().enumerate() {
            if self.load(STATUS) & DATA_READY == 0 {
                return count;
            }
            *byte = self.load(DATA);
        }
        into.len()
    }

    /// Returns how many bytes [`write`](Self::write) takes now.
    #[must_use]
    pub fn room(&self) -> usize {
        match self.load(STATUS) & TRANSMIT_EMPTY {
            0 => 0,
            _ => FIFO_BYTES,
        }
    }

    /// Writes bytes, no more than [`room`](Self::room) has said.
    pub fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.store(DATA, byte);
        }
    }

    fn store(&self, register: u16, value: u8) {
        // SAFETY: a register of a UART, which nothing else drives.
        unsafe { Port::new(self.port + register).write(value) };
    }

    fn load(&self, register: u16) -> u8 {
        // SAFETY: as above.
        unsafe { Port::new(self.port + register).read() }
    }
}
