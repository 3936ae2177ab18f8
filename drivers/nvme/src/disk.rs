//! [`Disk`]: a controller's first namespace, with its queues.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::future::poll_fn;
use core::pin::pin;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::task::Poll;

use futures_util::future::select;
use hal::{DmaBuffer, Duration, InterruptVector, Platform};
use nvme_hw::{Command, Opcode, identify};
use spin::Mutex;

use crate::bring_up::{Admin, Facts};
use crate::error::{Error, Request, Step};
use crate::queue::{Answer, Queue};
use crate::recovery::{Cause, Life};

/// Bytes of the longest request, if the controller takes that many.
pub const MAX_TRANSFER: usize = 128 << 10;

/// Bytes in whose multiples callers count; a block may have more.
const GRAIN: u64 = 512;
/// Entries of an I/O queue.
const ENTRIES: u16 = 64;
/// Requests at work in a pair of queues; each has a buffer of its own.
const SLOTS: usize = 16;
/// Sends of one request: the first, and those after a reset or a failure that may pass.
const ATTEMPTS: u32 = 3;
/// The time that the device may take for one command.
const PATIENCE: Duration = Duration::from_secs(4);
/// A completion is polled for so long by yielding, then at intervals.
const POLL_FOR: Duration = Duration::from_millis(2);
/// The same time where an interrupt tells of completions.
const POLL_BEFORE_INTERRUPT: Duration = Duration::from_micros(50);
const SHORTEST_NAP: Duration = Duration::from_micros(50);
const LONGEST_NAP: Duration = Duration::from_millis(1);
/// Interval of looks at the status while a command is at work; a lost interrupt costs no more.
const CHECK: Duration = Duration::from_millis(100);

/// Choices of who starts a disk.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Pairs of I/O queues that the controller is asked for.
    pub queues: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self { queues: 1 }
    }
}

/// A disk.
///
/// Dropping a future of it gives the request up; the device may still carry it out.
pub struct Disk<P: Platform> {
    // First, as its drop stops the device, which has the memory of the queues.
    pub(crate) admin: Admin<P>,
    /// Each lock is held for a look at its queue or a copy of a request's data. No lock is taken
    /// under it.
    pub(crate) queues: Vec<Mutex<Queue<P>>>,
    pub(crate) facts: Facts,
    pub(crate) life: Mutex<Life>,
    vector: Mutex<Option<P::Vector>>,
    pub(crate) interrupts: bool,
    /// Somebody waits for interrupts.
    served: AtomicBool,
    /// The queue whose turn it is.
    turn: AtomicUsize,
    transfer: usize,
}

impl<P: Platform> fmt::Debug for Disk<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Disk({} {})", self.model(), self.serial())
    }
}

/// Bytes to or from the disk.
enum Data<'a> {
    /// Those from so many bytes behind the beginning of the first block.
    Read(&'a mut [u8], usize),
    Write(&'a [u8]),
    None,
}

/// A request in blocks.
struct Blocks {
    first: u64,
    count: u32,
    len: usize,
}

impl<P: Platform> Disk<P> {
    /// Starts a controller, in whatever state it is.
    ///
    /// # Errors
    ///
    /// If it does not come up, or is one that this driver can't use.
    pub async fn start(platform: P, config: Config) -> Result<Self, Error> {
        let admin = Admin::new(platform).await?;
        let facts = admin.start().await?;
        let platform = &admin.hardware.platform;
        // Without MSI-X the disk is polled.
        let vector = match platform.enable_vectors(1) {
            Ok(vectors) => vectors.into_iter().next(),
            Err(_) => None,
        };
        let entries = ENTRIES.min(admin.hardware.cap.max_queue_entries().saturating_add(1));
        let given = admin.ask_for_queues(config.queues).await?;
        let transfer = facts
            .controller
            .max_transfer
            .and_then(|pages| crate::prp::PAGE.checked_shl(pages.into()))
            .filter(|&limit| limit != 0)
            .map_or(MAX_TRANSFER, |limit| limit.min(MAX_TRANSFER));
        let queue = |number| Queue::new(platform, number, entries, SLOTS, transfer).map(Mutex::new);
        let queues = (1..=given).map(queue).collect::<Result<_, _>>()?;
        let disk = Self {
            interrupts: vector.is_some(),
            vector: Mutex::new(vector),
            admin,
            queues,
            facts,
            life: Mutex::new(Life::Ready),
            served: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
            transfer,
        };
        disk.create_queues().await?;
        Ok(disk)
    }

    /// Creates the I/O queues in a controller that has none.
    pub(crate) async fn create_queues(&self) -> Result<(), Error> {
        for queue in &self.queues {
            let vector = self.interrupts.then_some(0);
            self.admin.create(queue, vector).await?;
        }
        Ok(())
    }

    /// Takes completions when an interrupt tells of them, for as long as the disk exists. A task of
    /// its own runs this; without it requests poll.
    pub async fn serve(&self) {
        let Some(vector) = self.vector.lock().take() else {
            return;
        };
        self.served.store(true, Ordering::Relaxed);
        loop {
            vector.wait().await;
            for queue in &self.queues {
                // An error shows again to whoever waits.
                let _ = queue.lock().reap(&self.admin.hardware);
                self.wake(queue);
            }
        }
    }

    pub(crate) fn wake(&self, queue: &Mutex<Queue<P>>) {
        loop {
            let waker = queue.lock().take_waker();
            match waker {
                Some(waker) => waker.wake(),
                None => return,
            }
        }
    }

    /// Returns the disk's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.facts.namespace.blocks << self.facts.namespace.block_shift
    }

    /// Returns the bytes of a block, 512 to 4096: writes are whole blocks.
    #[must_use]
    pub fn block_size(&self) -> usize {
        1 << self.facts.namespace.block_shift
    }

    /// Returns the bytes of the longest request that begins and ends with a block.
    #[must_use]
    pub fn max_transfer(&self) -> usize {
        self.transfer
    }

    /// Returns the number of pairs of I/O queues.
    #[must_use]
    pub fn queue_pairs(&self) -> usize {
        self.queues.len()
    }

    /// Returns whether the disk can't be written.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.facts.namespace.read_only
    }

    /// Returns whether the disk has a volatile write cache.
    #[must_use]
    pub fn has_write_cache(&self) -> bool {
        self.facts.controller.write_cache
    }

    /// Returns the serial number.
    #[must_use]
    pub fn serial(&self) -> String {
        identify::text(&self.facts.controller.serial).collect()
    }

    /// Returns the model.
    #[must_use]
    pub fn model(&self) -> String {
        identify::text(&self.facts.controller.model).collect()
    }

    /// Reads bytes; offset and length are multiples of 512.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub async fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        let request = Request {
            opcode: Opcode::READ,
            offset,
            len: into.len(),
        };
        let size = self.block_size() as u64;
        let begin = offset - offset % size;
        let end = offset
            .checked_add(into.len() as u64)
            .and_then(|end| end.checked_next_multiple_of(size));
        let blocks = end.and_then(|end| self.blocks(begin, end));
        let whole = offset.is_multiple_of(GRAIN) && (into.len() as u64).is_multiple_of(GRAIN);
        let blocks = blocks.filter(|_| whole && !into.is_empty());
        let blocks = blocks.ok_or(Error::Impossible { request })?;
        // Less than a block.
        let skip = usize::try_from(offset - begin).unwrap_or(0);
        self.run(request, &blocks, Data::Read(into, skip)).await
    }

    /// Writes whole blocks. They are durable after a [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub async fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let request = Request {
            opcode: Opcode::WRITE,
            offset,
            len: bytes.len(),
        };
        let end = offset.checked_add(bytes.len() as u64);
        let blocks = end.and_then(|end| self.blocks(offset, end));
        let blocks = blocks.filter(|_| !self.read_only() && !bytes.is_empty());
        let blocks = blocks.ok_or(Error::Impossible { request })?;
        self.run(request, &blocks, Data::Write(bytes)).await
    }

    /// Makes all completed writes durable. A controller without a volatile write cache is not asked
    /// (section 6.8).
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub async fn flush(&self) -> Result<(), Error> {
        if !self.has_write_cache() || self.read_only() {
            return Ok(());
        }
        let request = Request {
            opcode: Opcode::FLUSH,
            offset: 0,
            len: 0,
        };
        let none = Blocks {
            first: 0,
            count: 0,
            len: 0,
        };
        self.run(request, &none, Data::None).await
    }

    /// Returns the blocks from one byte to another; `None` if they are no whole blocks, too many or
    /// not on the disk.
    fn blocks(&self, begin: u64, end: u64) -> Option<Blocks> {
        let size = self.block_size() as u64;
        let len = usize::try_from(end.checked_sub(begin)?).ok()?;
        let whole = begin.is_multiple_of(size) && end.is_multiple_of(size);
        let fits = end <= self.size() && len <= self.transfer;
        (whole && fits).then_some(Blocks {
            first: begin / size,
            count: u32::try_from(len as u64 / size).ok()?,
            len,
        })
    }

    /// Sends a request until it ends by itself.
    async fn run(
        &self,
        request: Request,
        blocks: &Blocks,
        mut data: Data<'_>,
    ) -> Result<(), Error> {
        let mut why = Error::Lost { request };
        for _ in 0..ATTEMPTS {
            let lease = self.take(request).await?;
            lease.submit(request, blocks, &data);
            match self.answer(&lease, request).await? {
                Answer::Lost => why = Error::Lost { request },
                Answer::Completed { status, .. } if status.is_success() => {
                    lease.copy_out(&mut data);
                    return Ok(());
                }
                Answer::Completed { status, .. } => {
                    why = Error::Failed { request, status };
                    if !status.may_be_retried() {
                        break;
                    }
                }
            }
        }
        Err(why)
    }

    /// Takes a slot of a queue, beginning with the one whose turn it is.
    async fn take(&self, request: Request) -> Result<Lease<'_, P>, Error> {
        let platform = &self.admin.hardware.platform;
        let start = platform.now();
        loop {
            self.ready().await?;
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            for at in 0..self.queues.len() {
                let queue = &self.queues[(turn + at) % self.queues.len()];
                let mut locked = queue.lock();
                let reaped = locked.reap(&self.admin.hardware);
                if let Some(index) = locked.take() {
                    drop(locked);
                    let disk = self;
                    return Ok(Lease { disk, queue, index });
                }
                drop(locked);
                if let Err(error) = reaped {
                    self.recover(Cause::Broken(error)).await?;
                }
            }
            let waited = platform.now().since(start);
            if waited > PATIENCE {
                // All slots are of requests that were given up, or whose own patience ends now.
                self.recover(Cause::NoSlot).await?;
                return Err(Error::Late { request, waited });
            }
            platform.sleep(LONGEST_NAP).await;
        }
    }

    /// Waits for the end of a request.
    async fn answer(&self, lease: &Lease<'_, P>, request: Request) -> Result<Answer, Error> {
        let hardware = &self.admin.hardware;
        let platform = &hardware.platform;
        let start = platform.now();
        let (mut nap, mut checked) = (SHORTEST_NAP, start);
        loop {
            let reaped = lease.queue.lock().reap(hardware);
            self.wake(lease.queue);
            if let Some(answer) = lease.answer() {
                return Ok(answer);
            }
            let now = platform.now();
            let waited = now.since(start);
            let mut cause = reaped.err().map(Cause::Broken);
            if now.since(checked) >= CHECK {
                checked = now;
                match hardware.status(Step::AwaitCompletion) {
                    Ok(status) if status.fatal() => cause = Some(Cause::Broken(Error::Fatal)),
                    Ok(_) => {}
                    Err(error) => cause = Some(Cause::Broken(error)),
                }
            }
            if waited > PATIENCE {
                cause = cause.or(Some(Cause::Late(lease)));
            }
            if let Some(cause) = cause {
                self.recover(cause).await?;
                return match lease.answer() {
                    Some(Answer::Lost) if waited > PATIENCE => Err(Error::Late { request, waited }),
                    Some(answer) => Ok(answer),
                    None => continue,
                };
            }
            self.ready().await?;
            self.pause(lease, waited, &mut nap).await;
        }
    }

    /// Waits a little, or for an interrupt.
    async fn pause(&self, lease: &Lease<'_, P>, waited: Duration, nap: &mut Duration) {
        let platform = &self.admin.hardware.platform;
        let served = self.served.load(Ordering::Relaxed);
        if waited
            < if served {
                POLL_BEFORE_INTERRUPT
            } else {
                POLL_FOR
            }
        {
            return platform.sleep(Duration::ZERO).await;
        }
        if served {
            let ended = pin!(poll_fn(|context| {
                let mut queue = lease.queue.lock();
                match queue.answer(lease.index) {
                    Some(_) => Poll::Ready(()),
                    None => {
                        queue.wake_at_end(lease.index, context.waker());
                        Poll::Pending
                    }
                }
            }));
            select(ended, pin!(platform.sleep(CHECK))).await;
            return;
        }
        platform.sleep(*nap).await;
        *nap = (*nap * 2).min(LONGEST_NAP);
    }
}

/// A slot in use; given up when dropped.
pub(crate) struct Lease<'a, P: Platform> {
    disk: &'a Disk<P>,
    pub(crate) queue: &'a Mutex<Queue<P>>,
    pub(crate) index: usize,
}

impl<P: Platform> Lease<'_, P> {
    fn submit(&self, request: Request, blocks: &Blocks, data: &Data<'_>) {
        let mut queue = self.queue.lock();
        if let Data::Write(bytes) = data {
            // Into the driver's own buffer: the caller's may be gone before the device has read it.
            queue.data(self.index).write(0, bytes);
        }
        let namespace = self.disk.facts.number;
        let command = match request.opcode {
            Opcode::FLUSH => Command::flush(namespace),
            opcode => Command::transfer(
                opcode,
                namespace,
                blocks.first,
                blocks.count,
                0,
                queue.prp(self.index, blocks.len),
            ),
        };
        queue.submit(&self.disk.admin.hardware, self.index, command);
    }

    pub(crate) fn answer(&self) -> Option<Answer> {
        self.queue.lock().answer(self.index)
    }

    fn copy_out(&self, data: &mut Data<'_>) {
        if let Data::Read(into, skip) = data {
            self.queue.lock().data(self.index).read(*skip, into);
        }
    }
}

impl<P: Platform> Drop for Lease<'_, P> {
    fn drop(&mut self) {
        self.queue.lock().release(self.index);
    }
}
