//! Virtio block devices (virtio 1.2, section 5.2), with several requests at work at a time.
//!
//! Each waiting task polls the used ring, for itself and for all others. The buffers
//! belong to the disk, so a request whose task was dropped, or whose answer is late, leaves no
//! memory of anybody else's with the device.
// UNSAFETY: lends buffers to a device.
#![expect(unsafe_code, reason = "DMA")]

use alloc::string::{String, ToString};
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

/// Bytes of a sector: the unit in which the device counts.
pub const SECTOR: usize = 512;
/// Bytes of the longest request.
pub const MAX_TRANSFER: usize = 128 << 10;

const QUEUE: u16 = 0;
const QUEUE_LEN: usize = 64;
/// Requests at work at a time; each takes up to three descriptors.
const SLOTS: usize = 16;
const _: () = assert!(SLOTS * 3 <= QUEUE_LEN);
/// The time that the device may take for one request.
const PATIENCE: Duration = Duration::from_secs(8);
/// The device is looked at by yielding for so long before it is looked at now and then.
const POLL_FOR: Duration = Duration::from_millis(2);
const SHORTEST_NAP: Duration = Duration::from_micros(50);
const LONGEST_NAP: Duration = Duration::from_millis(1);

const HEADER_LEN: usize = 16;
/// Types of requests.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
/// Returns the serial number, which may fill all of its bytes (section 5.2.6).
const GET_ID: u32 = 8;
const ID_LEN: usize = 20;
const STATUS_OK: u8 = 0;
/// No status that a device gives.
const STATUS_NONE: u8 = 0xff;

type Queue = VirtQueue<VirtioHal, QUEUE_LEN>;

bitflags::bitflags! {
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Features: u64 {
        const READ_ONLY = 1 << 5;
        const FLUSH = 1 << 9;
        const VERSION_1 = 1 << 32;
    }
}

/// A request as errors name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    kind: u32,
    sector: u64,
    len: usize,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, sector, len } = self;
        match *kind {
            IN => write!(f, "a read of {len} bytes at sector {sector}"),
            GET_ID => f.write_str("a question for its serial number"),
            OUT => write!(f, "a write of {len} bytes at sector {sector}"),
            _ => write!(f, "a flush"),
        }
    }
}

/// The failure of a request. `device` is the disk's place on the PCI bus.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The device has not answered in time.
    #[error("disk {device}: {request} was not answered in {seconds} s")]
    Stuck {
        /// The disk.
        device: String,
        /// The request.
        request: Request,
        /// The time waited.
        seconds: u64,
    },
    /// The device could not do it.
    #[error("disk {device}: {request} failed with status {status}")]
    Failed {
        /// The disk.
        device: String,
        /// The request.
        request: Request,
        /// The device's status byte.
        status: u8,
    },
    /// The request leaves the disk, is not in whole sectors or is too long, or would change a disk
    /// that is read-only.
    #[error("disk {device}: {request} can't be made")]
    Refused {
        /// The disk.
        device: String,
        /// The request.
        request: Request,
    },
    /// The device has broken its queue.
    #[error("disk {device}: its queue makes no sense")]
    Broken {
        /// The disk.
        device: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    /// The device has the buffers, under this token.
    Lent(u16),
    /// Lent, and the caller has stopped waiting.
    Abandoned(u16),
    /// The device has given the buffers back.
    Done,
}

/// The buffers of one request. They are not touched while they are lent.
struct Slot {
    state: State,
    request: Request,
    header: [u8; HEADER_LEN],
    data: Vec<u8>,
    status: [u8; 1],
}

impl Slot {
    /// Calls `with` with what the device reads and what it writes.
    fn buffers<R>(
        &mut self,
        with: impl for<'a> FnOnce(&'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> R,
    ) -> R {
        let Self {
            request,
            header,
            data,
            status,
            ..
        } = self;
        let data = &mut data[..request.len];
        match request.kind {
            IN | GET_ID => with(&[header], &mut [data, status]),
            OUT => with(&[header, data], &mut [status]),
            _ => with(&[header], &mut [status]),
        }
    }
}

struct Inner {
    transport: PciTransport,
    queue: Queue,
    slots: Vec<Slot>,
    broken: bool,
}

/// A disk.
pub struct Disk {
    function: Function,
    sectors: u64,
    features: Features,
    /// Held for a look at the queue. Never dropped: the device goes on knowing its memory. No lock
    /// is taken under it but the heap's.
    inner: ManuallyDrop<Mutex<Inner>>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Disk({})", self.function)
    }
}

/// Bytes to or from the disk.
enum Data<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
    None,
}

impl Disk {
    pub(crate) fn new(function: Function, mut transport: PciTransport) -> Result<Self, Error> {
        let fail = |cause: virtio_drivers::Error| failed(function, &cause);
        let features = transport.begin_init(Features::all());
        let capacity =
            |transport: &PciTransport, at| transport.read_config_space::<u32>(at).map(u64::from);
        let low = capacity(&transport, 0).map_err(fail)?;
        let high = capacity(&transport, 4).map_err(fail)?;
        let queue = Queue::new(&mut transport, QUEUE, false, false).map_err(fail)?;
        transport.finish_init();
        let request = Request {
            kind: FLUSH,
            sector: 0,
            len: 0,
        };
        let slot = || Slot {
            state: State::Free,
            request,
            header: [0; HEADER_LEN],
            data: vec![0; MAX_TRANSFER],
            status: [STATUS_NONE],
        };
        let slots = (0..SLOTS).map(|_| slot()).collect();
        let inner = Inner {
            transport,
            queue,
            slots,
            broken: false,
        };
        let inner = ManuallyDrop::new(Mutex::new(inner));
        Ok(Self {
            function,
            sectors: low | high << 32,
            features,
            inner,
        })
    }

    /// Returns the disk's size in sectors.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Returns whether the disk can't be written.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.features.contains(Features::READ_ONLY)
    }

    /// Reads whole sectors, at most [`MAX_TRANSFER`] bytes.
    ///
    /// # Errors
    ///
    /// See [`DiskError`].
    pub async fn read(&self, sector: u64, into: &mut [u8]) -> Result<(), DiskError> {
        let request = Request {
            kind: IN,
            sector,
            len: into.len(),
        };
        self.transfer(request, Data::Read(into)).await
    }

    /// Writes whole sectors, at most [`MAX_TRANSFER`] bytes. They are durable after a
    /// [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// See [`DiskError`].
    pub async fn write(&self, sector: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let request = Request {
            kind: OUT,
            sector,
            len: bytes.len(),
        };
        if self.read_only() {
            return Err(self.refused(request));
        }
        self.transfer(request, Data::Write(bytes)).await
    }

    /// Makes all completed writes durable. A device that offers no flush has no volatile cache
    /// (section 5.2.6.2).
    ///
    /// # Errors
    ///
    /// See [`DiskError`].
    pub async fn flush(&self) -> Result<(), DiskError> {
        if !self.features.contains(Features::FLUSH) {
            return Ok(());
        }
        let request = Request {
            kind: FLUSH,
            sector: 0,
            len: 0,
        };
        self.run(request, Data::None).await
    }

    /// Returns the serial number: printable ASCII, empty if the disk has none.
    ///
    /// # Errors
    ///
    /// See [`DiskError`]; a device that knows no such request has no number.
    pub async fn serial(&self) -> Result<String, DiskError> {
        let request = Request {
            kind: GET_ID,
            sector: 0,
            len: ID_LEN,
        };
        let mut id = [0; ID_LEN];
        match self.run(request, Data::Read(&mut id)).await {
            Err(DiskError::Failed { .. }) => return Ok(String::new()),
            result => result?,
        }
        let text = id.iter().take_while(|&&byte| byte != 0);
        Ok(text
            .map(|&byte| char::from(byte))
            .filter(|shown| (' '..='~').contains(shown))
            .collect())
    }

    fn name(&self) -> String {
        self.function.to_string()
    }

    fn refused(&self, request: Request) -> DiskError {
        DiskError::Refused {
            device: self.name(),
            request,
        }
    }

    async fn transfer(&self, request: Request, data: Data<'_>) -> Result<(), DiskError> {
        let whole =
            request.len > 0 && request.len.is_multiple_of(SECTOR) && request.len <= MAX_TRANSFER;
        let count = (request.len / SECTOR) as u64;
        let end = request
            .sector
            .checked_add(count)
            .filter(|&end| end <= self.sectors);
        if !whole || end.is_none() {
            return Err(self.refused(request));
        }
        self.run(request, data).await
    }

    async fn run(&self, request: Request, mut data: Data<'_>) -> Result<(), DiskError> {
        let mut backoff = Backoff::new(POLL_FOR, SHORTEST_NAP, LONGEST_NAP);
        let lease = loop {
            if let Some(lease) = self.start(request, &data)? {
                break lease;
            }
            self.wait(&mut backoff, request).await?;
        };
        loop {
            if let Some(status) = self.finish(&lease, &mut data)? {
                let device = self.name();
                return match status {
                    STATUS_OK => Ok(()),
                    status => Err(DiskError::Failed {
                        device,
                        request,
                        status,
                    }),
                };
            }
            self.wait(&mut backoff, request).await?;
        }
    }

    async fn wait(&self, backoff: &mut Backoff, request: Request) -> Result<(), DiskError> {
        if backoff.waited() > PATIENCE {
            let (device, seconds) = (self.name(), PATIENCE.as_secs());
            return Err(DiskError::Stuck {
                device,
                request,
                seconds,
            });
        }
        backoff.wait().await;
        Ok(())
    }

    /// Gives a request to the device; `None` while as many as may be are at work.
    fn start(&self, request: Request, data: &Data<'_>) -> Result<Option<Lease<'_>>, DiskError> {
        let mut inner = self.inner.lock();
        inner.reap();
        let free = inner
            .slots
            .iter()
            .position(|slot| slot.state == State::Free);
        let Some(index) = free.filter(|_| !inner.broken) else {
            return if inner.broken {
                Err(DiskError::Broken {
                    device: self.name(),
                })
            } else {
                Ok(None)
            };
        };
        let slot = &mut inner.slots[index];
        slot.request = request;
        slot.header[..4].copy_from_slice(&request.kind.to_le_bytes());
        slot.header[8..].copy_from_slice(&request.sector.to_le_bytes());
        slot.status = [STATUS_NONE];
        if let Data::Write(bytes) = data {
            slot.data[..request.len].copy_from_slice(bytes);
        }
        if !inner.lend(index) {
            inner.broken = true;
            return Err(DiskError::Broken {
                device: self.name(),
            });
        }
        Ok(Some(Lease { disk: self, index }))
    }

    /// Takes a request's answer; `None` while there is none.
    fn finish(&self, lease: &Lease<'_>, data: &mut Data<'_>) -> Result<Option<u8>, DiskError> {
        let mut inner = self.inner.lock();
        inner.reap();
        let slot = &inner.slots[lease.index];
        if slot.state != State::Done {
            return if inner.broken {
                Err(DiskError::Broken {
                    device: self.name(),
                })
            } else {
                Ok(None)
            };
        }
        if let Data::Read(into) = data {
            into.copy_from_slice(&slot.data[..slot.request.len]);
        }
        Ok(Some(slot.status[0]))
    }
}

impl Inner {
    /// Gives a slot's buffers to the device; false if its queue takes them not.
    fn lend(&mut self, index: usize) -> bool {
        let slot = &mut self.slots[index];
        // SAFETY: the buffers are the slot's, which lives as long as the queue, and are not touched
        // while they are lent.
        let added = slot.buffers(|inputs, outputs| unsafe { self.queue.add(inputs, outputs) });
        let Ok(token) = added else { return false };
        slot.state = State::Lent(token);
        if self.queue.should_notify() {
            self.transport.notify(QUEUE);
        }
        true
    }

    /// Takes back the buffers that the device is done with.
    fn reap(&mut self) {
        while !self.broken
            && let Some(token) = self.queue.peek_used()
        {
            let lent = [State::Lent(token), State::Abandoned(token)];
            // The device tells the token: it may be any number.
            let slot = self
                .slots
                .iter_mut()
                .find(|slot| lent.contains(&slot.state));
            let Some(slot) = slot else {
                self.broken = true;
                return;
            };
            // SAFETY: the same buffers as were added under this token.
            let popped = slot
                .buffers(|inputs, outputs| unsafe { self.queue.pop_used(token, inputs, outputs) });
            let waited_for = slot.state == State::Lent(token);
            slot.state = if waited_for { State::Done } else { State::Free };
            self.broken = popped.is_err();
        }
    }
}

/// A slot in use; given up when dropped.
struct Lease<'a> {
    disk: &'a Disk,
    index: usize,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let slot = &mut self.disk.inner.lock().slots[self.index];
        slot.state = match slot.state {
            State::Lent(token) => State::Abandoned(token),
            _ => State::Free,
        };
    }
}
