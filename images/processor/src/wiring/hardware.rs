//! Lines, page tables and the one-sided way to M, for the cache.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use fit::{LostCause, PagePath, PageRefused, PeerId};
use hal::{DmaBuffer, Instant};
use libos::{AddressSpace, Asid, Exit, FrameArray, flush_cores, power_off, quirks};
use node::{Card, Error, Node};
use pcache::{Cache, IoFailed, LINE_SIZE, LineId, Machine, Page, Pte, RemoteAddr, SpaceId};
use processor::mm;
use spin::Mutex;
use verbs::{Access, Device, PageOp, Region, Rkey};

/// Changed pages of one space from which on all its translations are dropped instead.
const MANY: usize = 32;

/// The store's code for a transfer that the fabric did not carry out; the cause is in the log.
const TRANSFER_FAILED: u32 = 1;

/// A line on its way.
#[derive(Clone, Copy)]
struct Transfer {
    line: LineId,
    remote: RemoteAddr,
    read: bool,
}

type Path = PagePath<<Card as Device>::Pages>;

/// One core's way to M, and the transfers that its rings have no room for, at most one a line.
struct Way {
    path: Path,
    /// The path of WRITEs, so that a READ, which a program waits for, does not wait behind a batch
    /// of them; without it both go by one path, and by one doorbell.
    writes_path: Option<Path>,
    reads: VecDeque<Transfer>,
    writes: VecDeque<Transfer>,
}

impl Way {
    /// Starts a transfer, or keeps it until its ring has room. On a path that both share a READ
    /// goes before WRITEs.
    #[inline]
    fn start(&mut self, region: &Region, transfer: Transfer) {
        let may = if transfer.read {
            self.reads.is_empty()
        } else {
            self.writes.is_empty() && (self.writes_path.is_some() || self.reads.is_empty())
        };
        if may && self.try_start(region, &transfer) {
            return;
        }
        if transfer.read {
            self.reads.push_back(transfer);
        } else {
            self.writes.push_back(transfer);
        }
    }

    /// Starts what waits for room, and shows it to the device.
    fn resume(&mut self, region: &Region) {
        while let Some(&transfer) = self.reads.front()
            && self.try_start(region, &transfer)
        {
            self.reads.pop_front();
        }
        let may = self.writes_path.is_some() || self.reads.is_empty();
        while let Some(&transfer) = self.writes.front().filter(|_| may)
            && self.try_start(region, &transfer)
        {
            self.writes.pop_front();
        }
        self.ring();
    }

    /// Returns the path of an operation.
    #[inline]
    fn path_of(&mut self, read: bool) -> &mut Path {
        match &mut self.writes_path {
            Some(path) if !read => path,
            _ => &mut self.path,
        }
    }

    /// Starts a transfer; false if its ring has no room for it now.
    #[inline]
    fn try_start(&mut self, region: &Region, transfer: &Transfer) -> bool {
        let Transfer { line, remote, read } = *transfer;
        let local = region.addr + u64::from(line.0) * LINE_SIZE as u64;
        let rkey = u32::try_from(remote.key).expect("a chunk's key is an rkey");
        let remote = verbs::RemoteAddr {
            addr: remote.addr,
            rkey: Rkey(rkey),
        };
        let path = self.path_of(read);
        let started = if read {
            path.read(line.0, local, remote)
        } else {
            path.write(line.0, local, remote)
        };
        match started {
            Ok(()) => true,
            Err(PageRefused::Full) => false,
            Err(PageRefused::Lost) => {
                // It leaves a program without its memory: M is lost, and this node with it.
                let (_, name) = path.peer();
                log::error!("{name}: the way of pages is lost: {:?}", path.lost());
                power_off(Exit::Failure)
            }
        }
    }

    #[inline]
    fn ring(&mut self) {
        self.path.ring();
        if let Some(path) = &mut self.writes_path {
            path.ring();
        }
    }

    /// Tells `done` of all transfers that have ended; returns whether any has.
    #[inline]
    fn look(
        &mut self,
        now: Instant,
        done: &mut impl FnMut(PageOp, u32, Result<(), LostCause>),
    ) -> bool {
        let mut ended = false;
        while self.path.pending() > 0 && self.path.look(now, done) > 0 {
            ended = true;
        }
        let Some(path) = &mut self.writes_path else {
            return ended;
        };
        while path.pending() > 0 && path.look(now, done) > 0 {
            ended = true;
        }
        ended
    }

    fn pending(&self) -> u32 {
        self.path.pending() + self.writes_path.as_ref().map_or(0, Path::pending)
    }

    fn arm(&mut self) {
        self.path.arm();
        if let Some(path) = &mut self.writes_path {
            path.arm();
        }
    }
}

/// A leaf entry's place.
#[derive(Clone, Copy)]
pub(crate) struct Entry(libos::Entry);

impl pcache::Entry for Entry {
    fn load(self) -> Pte {
        Pte(self.0.load())
    }

    fn exchange(self, old: Pte, new: Pte) -> Result<(), Pte> {
        self.0.compare_exchange(old.0, new.0).map_err(Pte)
    }

    fn neighbour(self, distance: i64) -> Option<Self> {
        self.0.offset(distance).map(Self)
    }

    fn first_used(self, count: usize) -> Option<(usize, Self)> {
        let (skipped, found) = self.0.first_used(count)?;
        Some((skipped, Self(found)))
    }
}

/// The page tables of one space.
pub(crate) struct Tables {
    space: Arc<AddressSpace>,
}

impl Tables {
    /// Makes the page tables of a new space; `None` when memory or numbers of spaces are out.
    pub(crate) fn create() -> Option<Self> {
        AddressSpace::new().map(|space| Self { space })
    }

    /// Returns the space, for threads to run in.
    pub(crate) fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }
}

/// Returns a space's number as libos has it.
const fn asid(space: SpaceId) -> Asid {
    Asid::from_number(space.0)
}

impl mm::Tables for Tables {
    type Entry = Entry;

    fn space(&self) -> SpaceId {
        SpaceId(self.space.asid().number())
    }
    fn entry(&self, addr: u64) -> Option<Entry> {
        self.space.entry(addr).map(Entry)
    }
    fn entry_or_create(&self, addr: u64) -> Option<Entry> {
        self.space.entry_or_create(addr).ok().map(Entry)
    }
    fn next_table(&self, from: u64, end: u64) -> Option<u64> {
        self.space.next_table(from, end)
    }
    fn release(&self, addr: u64) -> bool {
        self.space.release(addr)
    }
}

/// The machine under the cache: frames, page tables, and page paths to M.
pub(crate) struct Hardware {
    frames: &'static FrameArray,
    base: u64,
    /// The lines, as the HCA reaches them. Peers cannot.
    region: Region,
    /// One a core that takes misses. Its lock is held for one request or one look; sets' locks are
    /// taken under it, never the other way round.
    ways: Vec<Mutex<Way>>,
}

impl Hardware {
    /// Takes memory for `lines` lines and shows it to the HCA. With `writes_apart` WRITEs go by
    /// page paths of their own.
    ///
    /// # Errors
    ///
    /// When the machine has not so much contiguous memory, or the HCA refuses it.
    pub(crate) async fn new(
        lines: u32,
        node: &Node,
        memory: PeerId,
        writes_apart: bool,
    ) -> Result<Self, Error> {
        let len = lines as usize * LINE_SIZE;
        let frames = FrameArray::allocate(lines as usize).ok_or(hal::Error::NoDmaMemory { len });
        let frames = frames.map_err(|error| Error::Role(alloc::format!("pcache: {error}")))?;
        let access = Access {
            local_write: true,
            ..Access::default()
        };
        let domain = node.fit.domain(memory);
        let bus = frames.buffer().bus_addr().0;
        let region = node.card.register(domain, bus, len as u64, access).await?;
        let mut ways = Vec::new();
        for core in 0..node.fit.cores() {
            let path = node.fit.open_pages(core, memory, region.lkey).await?;
            let writes_path = if writes_apart {
                Some(node.fit.open_pages(core, memory, region.lkey).await?)
            } else {
                None
            };
            ways.push(Mutex::new(Way {
                path,
                writes_path,
                reads: VecDeque::with_capacity(lines as usize),
                writes: VecDeque::with_capacity(lines as usize),
            }));
        }
        Ok(Self {
            frames,
            base: frames.frame(0).phys().0,
            region,
            ways,
        })
    }

    /// Returns this core's way to M.
    fn way(&self) -> &Mutex<Way> {
        let core = libos::current_core();
        // A division only where there are fewer ways than cores.
        self.ways
            .get(core)
            .unwrap_or_else(|| &self.ways[core % self.ways.len()])
    }

    fn start(&self, transfer: Transfer) {
        self.way().lock().start(&self.region, transfer);
    }

    /// Looks once for transfers of this core that have ended; returns whether any has.
    pub(crate) fn look(&self, cache: &Cache<Self>, now: Instant) -> bool {
        let mut way = self.way().lock();
        let mut done = |_: PageOp, line, result: Result<(), LostCause>| {
            let result = result.map_err(|cause| {
                log::error!("a page's transfer failed: {cause}");
                IoFailed(TRANSFER_FAILED)
            });
            if let Err(error) = cache.complete(LineId(line), result) {
                tell(error);
            }
        };
        let ended = way.look(now, &mut done);
        if ended && !(way.reads.is_empty() && way.writes.is_empty()) {
            way.resume(&self.region);
        }
        ended
    }

    /// Returns whether transfers of this core are under way.
    pub(crate) fn pending(&self) -> bool {
        self.way().lock().pending() > 0
    }

    /// Asks for an interrupt when a transfer of this core ends.
    pub(crate) fn arm(&self) {
        self.way().lock().arm();
    }
}

/// Tells of a transfer that failed. A fill's failure reaches the program that waits for it; a lost
/// write-back has nobody to tell.
#[cold]
fn tell(error: pcache::Error) {
    log::error!("{error}");
    if matches!(error, pcache::Error::WriteBack { .. }) {
        power_off(Exit::Failure);
    }
}

impl Machine for Hardware {
    type Entry = Entry;

    fn now(&self) -> Instant {
        libos::now()
    }
    fn core(&self) -> usize {
        libos::current_core()
    }
    fn frame(&self, line: LineId) -> u64 {
        self.base + u64::from(line.0) * LINE_SIZE as u64
    }
    fn line(&self, frame: u64) -> Option<LineId> {
        let index = frame.checked_sub(self.base)? / LINE_SIZE as u64;
        let line = u32::try_from(index).ok()?;
        ((line as usize) < self.frames.count()).then_some(LineId(line))
    }

    fn read(&self, line: LineId, from: RemoteAddr) {
        self.start(Transfer {
            line,
            remote: from,
            read: true,
        });
    }
    fn write(&self, line: LineId, to: RemoteAddr) {
        self.start(Transfer {
            line,
            remote: to,
            read: false,
        });
    }
    fn ring(&self) {
        self.way().lock().ring();
    }
    fn read_now(&self, line: LineId, from: RemoteAddr) {
        let transfer = Transfer {
            line,
            remote: from,
            read: true,
        };
        let mut way = self.way().lock();
        way.start(&self.region, transfer);
        way.path.ring();
    }

    fn write_now(&self, lines: &[(LineId, RemoteAddr)]) {
        let mut way = self.way().lock();
        for &(line, remote) in lines {
            let transfer = Transfer {
                line,
                remote,
                read: false,
            };
            way.start(&self.region, transfer);
        }
        way.ring();
    }

    fn flush(&self, stale: &[Page]) {
        // A batch is of few spaces, mostly of one, whose pages follow each other.
        let runs = stale.chunk_by(|a, b| a.space == b.space);
        for run in runs.clone() {
            let space = asid(run[0].space);
            if run.len() >= MANY {
                space.changed_all();
            } else {
                run.iter().for_each(|page| space.changed(page.vpn.addr()));
            }
        }
        flush_cores(runs.map(|run| asid(run[0].space)));
    }
    fn flush_space(&self, space: SpaceId) {
        asid(space).changed_all();
        flush_cores(core::iter::once(asid(space)));
    }
    fn flush_own(&self, page: Page) {
        asid(page.space).flush_own(page.vpn.addr());
    }
    fn retire_code(&self, line: LineId) {
        // TCG makes every store to a frame slow as long as it has translations of code there, which
        // a fill by RDMA does not end: the demonstration ran half as long again.
        quirks::refresh_code(self.frames.frame(line.0 as usize));
    }
    fn prepare_code(&self, line: LineId) {
        quirks::refresh_code(self.frames.frame(line.0 as usize));
    }

    fn copy_out(&self, line: LineId, offset: usize, into: &mut [u8]) {
        self.frames.frame(line.0 as usize).read(offset, into);
    }
    fn copy_in(&self, line: LineId, offset: usize, from: &[u8]) {
        self.frames.frame(line.0 as usize).write(offset, from);
    }
    fn exchange(&self, line: LineId, offset: usize, old: u32, new: u32) -> Result<u32, u32> {
        let frame = self.frames.frame(line.0 as usize);
        frame.exchange_u32(offset, old, new)
    }
    fn copy_line(&self, from: LineId, to: LineId) {
        let mut bytes = [0; LINE_SIZE];
        self.frames.frame(from.0 as usize).read(0, &mut bytes);
        self.frames.frame(to.0 as usize).write(0, &bytes);
    }
    fn zero(&self, line: LineId) {
        self.frames.frame(line.0 as usize).fill(0, LINE_SIZE, 0);
    }
}
