//! The device of P's console channel: a virtio serial port, or a UART with a [`Line`] on it.

use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;

use console::Line;
use hal::{Duration, Instant};
use libos::CommandLine;
use libos::uart::{COM2, Uart};
use libos::virtio;
use node::Error;
use spin::Mutex;

/// Bytes moved at once, between UART and line: what a UART has.
const PIECE: usize = 16;
const SHORTEST_NAP: Duration = Duration::from_micros(50);
/// Within this a UART of 16 bytes is not filled at 115200 bits a second.
const LONGEST_NAP: Duration = Duration::from_millis(1);
/// The same for who waits for the line and not for the UART.
const LONGEST_WAIT: Duration = Duration::from_millis(5);

/// Takes bytes from the host.
pub(crate) enum Reader {
    Virtio(Box<virtio::Reader>),
    Serial(Shared),
}

/// Gives bytes to the host.
pub(crate) enum Writer {
    Virtio(Box<virtio::Writer>),
    Serial(Shared),
}

/// A line, for both directions and the task that drives its UART. The lock is held for a copy of
/// some bytes; no lock is taken under it but the heap's.
type Shared = Arc<Mutex<Line>>;

/// Both ends of the channel.
pub(crate) struct Channel {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
}

impl Channel {
    /// Opens the device that `streams=` names: `virtio`, `serial` for COM2, or `serial:PORT` with a
    /// port in hexadecimal digits. Without the option it is a virtio device.
    ///
    /// # Errors
    ///
    /// When the device is missing or broken.
    pub(crate) fn open(line: &CommandLine) -> Result<Self, Error> {
        let value = line.value("streams").unwrap_or("virtio");
        let port = match value.split_once(':') {
            None if value == "virtio" => return Self::open_virtio(),
            None if value == "serial" => Some(COM2),
            Some(("serial", port)) => u16::from_str_radix(port.trim_start_matches("0x"), 16).ok(),
            _ => None,
        };
        let bad = || {
            Error::Role(format!(
                "streams={value}: it is virtio, serial or serial:PORT"
            ))
        };
        let port = port.ok_or_else(bad)?;
        let missing = || Error::Role(format!("no serial port at {port:#x} beside the log's"));
        let uart = Uart::open(port).ok_or_else(missing)?;
        log::info!("the program's streams go over the serial port at {port:#x}");
        let line = Shared::new(Mutex::new(Line::new()));
        libos::spawn(drive(uart, line.clone())).detach();
        Ok(Self {
            reader: Reader::Serial(line.clone()),
            writer: Writer::Serial(line),
        })
    }

    fn open_virtio() -> Result<Self, Error> {
        let missing = || {
            let text = "no virtio console for the program's streams; streams=serial takes COM2";
            Error::Role(text.into())
        };
        let console = virtio::consoles()?.into_iter().next();
        let virtio::Console { reader, writer } = console.ok_or_else(missing)?;
        Ok(Self {
            reader: Reader::Virtio(Box::new(reader)),
            writer: Writer::Virtio(Box::new(writer)),
        })
    }
}

fn milliseconds() -> u64 {
    libos::now().nanos / 1_000_000
}

/// Moves bytes between a UART and its line, for ever.
async fn drive(mut uart: Uart, line: Shared) {
    let mut nap = SHORTEST_NAP;
    loop {
        let mut piece = [0; PIECE];
        let came = uart.read(&mut piece);
        let went = {
            let mut line = line.lock();
            line.receive(&piece[..came], milliseconds());
            let room = uart.room().min(PIECE);
            let count = line.transmit(&mut piece[..room], milliseconds());
            uart.write(&piece[..count]);
            count
        };
        if came + went > 0 {
            nap = SHORTEST_NAP;
            libos::yield_now().await;
        } else {
            libos::sleep(nap).await;
            nap = (nap * 2).min(LONGEST_NAP);
        }
    }
}

/// Waits longer and longer.
struct Wait(Duration, Instant);

impl Wait {
    fn new() -> Self {
        Self(SHORTEST_NAP, libos::now())
    }

    async fn pause(&mut self) {
        if libos::now().since(self.1) < SHORTEST_NAP {
            return libos::yield_now().await;
        }
        libos::sleep(self.0).await;
        self.0 = (self.0 * 2).min(LONGEST_WAIT);
    }
}

impl Reader {
    /// Reads at least one byte, however long the host sends none.
    ///
    /// # Errors
    ///
    /// When the device breaks.
    pub(crate) async fn read(&mut self, into: &mut [u8]) -> Result<usize, libos::Error> {
        let line = match self {
            Self::Virtio(reader) => return reader.read(into).await,
            Self::Serial(line) => line,
        };
        let mut wait = Wait::new();
        loop {
            let count = line.lock().read(into);
            if count > 0 {
                return Ok(count);
            }
            wait.pause().await;
        }
    }
}

impl Writer {
    /// Writes all bytes, however long the host takes none.
    ///
    /// # Errors
    ///
    /// When the device breaks.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), libos::Error> {
        let line = match self {
            Self::Virtio(writer) => return writer.write(bytes).await,
            Self::Serial(line) => line,
        };
        let mut wait = Wait::new();
        let mut left = bytes;
        while !left.is_empty() {
            let count = line.lock().write(left);
            left = &left[count..];
            if count > 0 {
                wait = Wait::new();
            } else {
                wait.pause().await;
            }
        }
        Ok(())
    }
}
