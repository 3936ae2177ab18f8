//! Byte streams to and from the host: a virtio serial device's one port (virtio 1.2, section 5.3).
//!
//! The port may be QEMU's `virtserialport` (port 1 of a device with several) or `virtconsole` (port
//! 0). Prefer the first: QEMU makes the guest wait when the host's reader is slow, where for a
//! `virtconsole` it drops the bytes.
// UNSAFETY: lends buffers to a device.
#![expect(unsafe_code, reason = "DMA")]

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use core::fmt;
use core::mem::ManuallyDrop;

use hal::Duration;
use spin::Mutex;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;
use virtio_drivers::transport::pci::PciTransport;

use crate::Error;
use crate::dev::backoff::Backoff;
use crate::dev::pci::Function;
use crate::dev::virtio::{VirtioHal, failed};
use crate::mem::frame_bitmap::PAGE_SIZE;
use crate::task::time;

const QUEUE_LEN: usize = 16;
/// A port's queue for input; that for output follows. Port 0 has 0, the control queues come next,
/// then port 1's.
const PORT_QUEUES: [u16; 2] = [0, 4];
const CONTROL_QUEUE: u16 = 2;
/// Bytes handed to the device at once.
const CHUNK: usize = 64 << 10;
/// Time between two log lines about writes that the host does not take.
const NOTICE: Duration = Duration::from_secs(60);
/// Time that the device may take to answer a control message.
const CONTROL_PATIENCE: Duration = Duration::from_secs(2);
/// A device is asked so long by yielding before it is asked now and then.
const POLL_FOR: Duration = Duration::from_micros(100);
const SHORTEST_NAP: Duration = Duration::from_micros(50);
const LONGEST_NAP: Duration = Duration::from_millis(5);

/// Control messages' events (virtio 1.2, section 5.3.6.2).
const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const CONTROL_LEN: usize = 8;

type Queue = VirtQueue<VirtioHal, QUEUE_LEN>;

bitflags::bitflags! {
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Features: u64 {
        const MULTIPORT = 1 << 1;
        const VERSION_1 = 1 << 32;
    }
}

/// A byte stream to and from the host; its halves may go to different tasks.
#[derive(Debug)]
pub struct Console {
    /// Bytes from the host.
    pub reader: Reader,
    /// Bytes to the host.
    pub writer: Writer,
}

/// State that both halves share.
struct Device {
    function: Function,
    /// Held for one notification. No lock is taken under it.
    transport: Mutex<PciTransport>,
    /// Queues that are not used but whose memory the device knows.
    _others: Vec<Queue>,
}

impl Device {
    fn failed(&self, cause: virtio_drivers::Error) -> Error {
        failed(self.function, &cause)
    }
}

/// The half of a [`Console`] that takes bytes from the host.
pub struct Reader {
    device: Arc<Device>,
    /// Never dropped: the device goes on knowing its memory.
    queue: ManuallyDrop<Queue>,
    index: u16,
    buffer: Vec<u8>,
    /// The token of the buffer while the device has it.
    token: Option<u16>,
    /// The filled part of the buffer that is not yet read.
    unread: core::ops::Range<usize>,
}

/// The half of a [`Console`] that gives bytes to the host.
pub struct Writer {
    device: Arc<Device>,
    queue: ManuallyDrop<Queue>,
    index: u16,
    buffer: Vec<u8>,
    /// The token and the length of what the device has of the buffer.
    lent: Option<(u16, usize)>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reader({})", self.device.function)
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Writer({})", self.device.function)
    }
}

impl Console {
    pub(crate) fn new(function: Function, mut transport: PciTransport) -> Result<Self, Error> {
        let fail = |cause: virtio_drivers::Error| failed(function, &cause);
        let several = transport
            .begin_init(Features::MULTIPORT | Features::VERSION_1)
            .contains(Features::MULTIPORT);
        let count = if several { 6 } else { 2 };
        let queues: Result<Vec<Queue>, _> = (0..count)
            .map(|index| VirtQueue::new(&mut transport, index, false, false))
            .collect();
        let mut queues = queues.map_err(fail)?;
        transport.finish_init();
        let port = if several {
            open_port(function, &mut transport, &mut queues)?
        } else {
            0
        };
        let index = PORT_QUEUES[usize::from(port)];
        let send = queues.swap_remove(usize::from(index) + 1);
        let receive = queues.swap_remove(usize::from(index));
        let device = Arc::new(Device {
            function,
            transport: Mutex::new(transport),
            _others: queues,
        });
        let reader = Reader {
            device: device.clone(),
            queue: ManuallyDrop::new(receive),
            index,
            buffer: vec![0; PAGE_SIZE],
            token: None,
            unread: 0..0,
        };
        Ok(Self {
            reader,
            writer: Writer {
                device,
                queue: ManuallyDrop::new(send),
                index: index + 1,
                buffer: vec![0; CHUNK],
                lent: None,
            },
        })
    }
}

impl Writer {
    /// Writes all of `bytes`. The wait has no end of its own: the host's reader may be a person,
    /// who takes time. It is logged each minute, and dropping the future ends it; what the host has
    /// then may still arrive, before a later write.
    ///
    /// # Errors
    ///
    /// [`Error::Virtio`] when the device breaks.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        for chunk in bytes.chunks(CHUNK) {
            self.write_chunk(chunk).await?;
        }
        Ok(())
    }

    async fn write_chunk(&mut self, chunk: &[u8]) -> Result<(), Error> {
        // A write that was given up may have left its chunk with the device.
        self.take_back().await?;
        self.buffer[..chunk.len()].copy_from_slice(chunk);
        let inputs = [&self.buffer[..chunk.len()]];
        // SAFETY: the buffer is this writer's own and is not touched until the device gives it
        // back.
        let token = unsafe { self.queue.add(&inputs, &mut []) }
            .map_err(|cause| self.device.failed(cause))?;
        self.lent = Some((token, chunk.len()));
        if self.queue.should_notify() {
            self.device.transport.lock().notify(self.index);
        }
        self.take_back().await
    }

    /// Waits until the device has given the buffer back.
    async fn take_back(&mut self) -> Result<(), Error> {
        let Some((token, len)) = self.lent else {
            return Ok(());
        };
        let mut backoff = Backoff::new(POLL_FOR, SHORTEST_NAP, LONGEST_NAP);
        let mut noticed = NOTICE;
        while !self.queue.can_pop() {
            backoff.wait().await;
            if backoff.waited() > noticed {
                log::info!(
                    "console {}: the host has taken nothing for {} s",
                    self.device.function,
                    noticed.as_secs()
                );
                noticed += NOTICE;
            }
        }
        let inputs = [&self.buffer[..len]];
        // SAFETY: the same buffer as was added.
        unsafe { self.queue.pop_used(token, &inputs, &mut []) }
            .map_err(|cause| self.device.failed(cause))?;
        self.lent = None;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.lent.is_some() {
            // The device still has the buffer: it must never be given back to the heap.
            core::mem::forget(core::mem::take(&mut self.buffer));
        }
    }
}

impl Reader {
    /// Reads at least one byte and at most `into.len()`; waits for as long as the host sends none.
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Virtio`] when the device breaks.
    pub async fn read(&mut self, into: &mut [u8]) -> Result<usize, Error> {
        let mut backoff = Backoff::new(POLL_FOR, SHORTEST_NAP, LONGEST_NAP);
        while self.unread.is_empty() {
            match self.token {
                None => self.lend_buffer()?,
                Some(_) if !self.queue.can_pop() => backoff.wait().await,
                Some(token) => self.take_buffer(token)?,
            }
        }
        let count = into.len().min(self.unread.len());
        into[..count].copy_from_slice(&self.buffer[self.unread.start..][..count]);
        self.unread.start += count;
        Ok(count)
    }

    fn lend_buffer(&mut self) -> Result<(), Error> {
        let mut outputs = [&mut self.buffer[..]];
        // SAFETY: the buffer is this reader's own and is not touched until the device gives it
        // back.
        let token = unsafe { self.queue.add(&[], &mut outputs) }
            .map_err(|cause| self.device.failed(cause))?;
        self.token = Some(token);
        if self.queue.should_notify() {
            self.device.transport.lock().notify(self.index);
        }
        Ok(())
    }

    fn take_buffer(&mut self, token: u16) -> Result<(), Error> {
        let mut outputs = [&mut self.buffer[..]];
        // SAFETY: the same buffer as was added.
        let len = unsafe { self.queue.pop_used(token, &[], &mut outputs) }
            .map_err(|cause| self.device.failed(cause))?;
        self.token = None;
        // The device tells the length: no more than there is room for.
        self.unread = 0..usize::try_from(len)
            .unwrap_or(usize::MAX)
            .min(self.buffer.len());
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.token.is_some() {
            // The device still has the buffer: it must never be given back to the heap.
            core::mem::forget(core::mem::take(&mut self.buffer));
        }
    }
}

/// Learns which port the device has, and opens it.
fn open_port(
    function: Function,
    transport: &mut PciTransport,
    queues: &mut [Queue],
) -> Result<u8, Error> {
    let fail = |cause: virtio_drivers::Error| failed(function, &cause);
    // The device writes here whenever a port changes: leaked, as it may do so for as long as it
    // runs.
    let from_device: &'static mut [[u8; CONTROL_LEN]; QUEUE_LEN] =
        alloc::boxed::Box::leak(Default::default());
    let control = usize::from(CONTROL_QUEUE);
    for message in from_device.iter_mut() {
        // SAFETY: leaked memory that is only looked at below, when the device has given it back.
        unsafe { queues[control].add(&[], &mut [message]) }.map_err(fail)?;
    }
    transport.notify(CONTROL_QUEUE);
    let mut tell = |queues: &mut [Queue], port: u8, event: u16| {
        let mut message = [0; CONTROL_LEN];
        message[0] = port;
        message[4..6].copy_from_slice(&event.to_le_bytes());
        message[6] = 1;
        send_control(function, transport, &mut queues[control + 1], &message)
    };
    tell(queues, 0, DEVICE_READY)?;
    let end = time::now() + CONTROL_PATIENCE;
    while time::now() < end {
        let Some(token) = queues[control].peek_used() else {
            continue;
        };
        let Some(message) = from_device.get_mut(usize::from(token)) else {
            break;
        };
        // SAFETY: descriptors are given out in order, so the token is the buffer's number.
        unsafe { queues[control].pop_used(token, &[], &mut [message]) }.map_err(fail)?;
        let port = message[0];
        let event = u16::from_le_bytes([message[4], message[5]]);
        if event == DEVICE_ADD && usize::from(port) < PORT_QUEUES.len() && message[1..4] == [0; 3] {
            tell(queues, port, PORT_READY)?;
            tell(queues, port, PORT_OPEN)?;
            return Ok(port);
        }
    }
    Err(failed(function, &"no port 0 or 1 was announced"))
}

fn send_control(
    function: Function,
    transport: &mut PciTransport,
    queue: &mut Queue,
    message: &[u8; CONTROL_LEN],
) -> Result<(), Error> {
    let fail = |cause: virtio_drivers::Error| failed(function, &cause);
    // Leaked if the device never takes it.
    let buffer = alloc::boxed::Box::leak(alloc::boxed::Box::new(*message));
    let inputs = [&buffer[..]];
    // SAFETY: leaked memory.
    let token = unsafe { queue.add(&inputs, &mut []) }.map_err(fail)?;
    transport.notify(CONTROL_QUEUE + 1);
    let end = time::now() + CONTROL_PATIENCE;
    while !queue.can_pop() {
        if time::now() > end {
            return Err(failed(function, &"a control message is not taken"));
        }
        core::hint::spin_loop();
    }
    // SAFETY: the same buffer as was added.
    unsafe { queue.pop_used(token, &inputs, &mut []) }.map_err(fail)?;
    Ok(())
}
