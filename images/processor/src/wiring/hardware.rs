//! Page tables, lines and the one-sided way to M, for the cache.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;

use fit::PeerId;
use hal::DmaBuffer;
use libos::{AddressSpace, Exit, FrameArray, Rights, power_off, quirks};
use messages::memory::Prot;
use node::{Core, Error, Node};
use pcache::{
    LINE_SIZE, LineId, Lines, MapFailed, Mapper, Page, RemoteAddr, RemoteStore, SpaceId, Token, Unmapped,
};
use spin::{Mutex, RwLock};
use verbs::{Access, Device, Region, Rkey, Sge};

/// Tasks that may wait for a READ at once without a queue having to grow.
const READERS: usize = 64;

/// A line on its way.
#[derive(Clone, Copy)]
struct Transfer {
    token: Token,
    line: LineId,
    remote: RemoteAddr,
    read: bool,
}

/// Transfers that FIT has no room for, at most one a line.
struct Backlog {
    reads: VecDeque<Transfer>,
    writes: VecDeque<Transfer>,
}

impl Backlog {
    fn queue(&mut self, read: bool) -> &mut VecDeque<Transfer> {
        if read { &mut self.reads } else { &mut self.writes }
    }
}

/// What the cache works on.
pub(crate) struct Hardware {
    frames: &'static FrameArray,
    /// The lines, as the HCA reaches them. Peers cannot.
    region: Region,
    core: Core,
    memory: PeerId,
    /// The page tables. Taken under a set's lock of the cache; it takes none itself.
    spaces: RwLock<BTreeMap<SpaceId, Arc<AddressSpace>>>,
    /// FIT's lock is taken under it.
    backlog: Mutex<Backlog>,
}

impl Hardware {
    /// Takes memory for `lines` lines and shows it to the HCA.
    ///
    /// # Errors
    ///
    /// When the machine has not so much contiguous memory, or the HCA refuses it.
    pub(crate) async fn new(lines: u32, node: &Node, core: Core, memory: PeerId) -> Result<Self, Error> {
        let len = lines as usize * LINE_SIZE;
        let frames = FrameArray::allocate(lines as usize).ok_or(hal::Error::NoDmaMemory { len });
        let frames = frames.map_err(|error| Error::Role(alloc::format!("pcache: {error}")))?;
        let access = Access {
            local_write: true,
            ..Access::default()
        };
        let region = node
            .card
            .register(
                node.fit.domain(memory),
                frames.buffer().bus_addr().0,
                len as u64,
                access,
            )
            .await?;
        Ok(Self {
            frames,
            region,
            core,
            memory,
            spaces: RwLock::default(),
            backlog: Mutex::new(Backlog {
                reads: VecDeque::with_capacity(READERS),
                writes: VecDeque::with_capacity(lines as usize),
            }),
        })
    }

    /// Makes the page tables of an address space.
    pub(crate) fn add_space(&self, space: SpaceId) -> Result<Arc<AddressSpace>, MapFailed> {
        let mut spaces = self.spaces.write();
        if let Some(known) = spaces.get(&space) {
            return Ok(known.clone());
        }
        let tables = AddressSpace::new().ok_or(MapFailed)?;
        spaces.insert(space, tables.clone());
        Ok(tables)
    }

    /// Drops the page tables of an address space.
    pub(crate) fn remove_space(&self, space: SpaceId) {
        self.spaces.write().remove(&space);
    }

    fn with<T>(&self, space: SpaceId, what: impl FnOnce(&AddressSpace) -> T) -> Option<T> {
        self.spaces.read().get(&space).map(|tables| what(tables))
    }

    /// Starts a transfer, or keeps it until FIT has room.
    fn start(&self, transfer: Transfer) {
        let mut backlog = self.backlog.lock();
        // A READ has a program waiting for it and goes before WRITEs, which have not.
        let may = backlog.reads.is_empty() && (transfer.read || backlog.writes.is_empty());
        if !(may && self.try_start(&transfer)) {
            backlog.queue(transfer.read).push_back(transfer);
        }
    }

    /// Starts what waits for room. To be called when a transfer has ended.
    pub(crate) fn resume(&self) {
        let mut backlog = self.backlog.lock();
        while let Some(&transfer) = backlog.reads.front().or(backlog.writes.front()) {
            if !self.try_start(&transfer) {
                return;
            }
            backlog.queue(transfer.read).pop_front();
        }
    }

    /// Starts a transfer; false if FIT has no room for it now.
    fn try_start(&self, transfer: &Transfer) -> bool {
        let (local, tag) = (self.piece(transfer.line), transfer.token.raw());
        let remote = Self::place(transfer.remote);
        let started = if transfer.read {
            self.core.start_read(self.memory, remote, local, tag)
        } else {
            self.core.start_write(self.memory, local, remote, tag)
        };
        match started {
            Ok(()) => true,
            Err(fit::Error::Overloaded { .. }) => false,
            Err(error) => {
                // It leaves a program without its memory: M is lost, and this node with it.
                log::error!("{error}");
                power_off(Exit::Failure)
            }
        }
    }

    fn piece(&self, line: LineId) -> Sge {
        Sge {
            addr: self.region.addr + u64::from(line.0) * LINE_SIZE as u64,
            len: 4096,
            lkey: self.region.lkey,
        }
    }

    fn place(at: RemoteAddr) -> verbs::RemoteAddr {
        let rkey = u32::try_from(at.key).expect("the layout's keys are rkeys");
        verbs::RemoteAddr {
            addr: at.addr,
            rkey: Rkey(rkey),
        }
    }
}

fn rights(prot: Prot) -> Rights {
    let mut rights = Rights::empty();
    rights.set(Rights::READ, prot.contains(Prot::READ));
    rights.set(Rights::WRITE, prot.contains(Prot::WRITE));
    rights.set(Rights::EXECUTE, prot.contains(Prot::EXEC));
    rights
}

impl Mapper for Hardware {
    type Rights = Prot;

    fn map(&self, page: Page, line: LineId, prot: Prot) -> Result<(), MapFailed> {
        let frame = self.frames.frame(line.0 as usize);
        if prot.contains(Prot::EXEC) {
            quirks::refresh_code(frame);
        }
        let (address, rights) = (page.vpn.addr(), rights(prot));
        let mapped = self.with(page.space, |tables| tables.map(address, frame, rights));
        let mapped = match mapped {
            Some(mapped) => mapped,
            None => self.add_space(page.space)?.map(address, frame, rights),
        };
        mapped.map_err(|_| MapFailed)
    }

    fn unmap(&self, page: Page) -> Unmapped {
        let mapping = self
            .with(page.space, |tables| tables.unmap(page.vpn.addr()))
            .flatten();
        Unmapped {
            dirty: mapping.is_some_and(|mapping| mapping.dirty),
        }
    }

    fn take_accessed(&self, page: Page) -> bool {
        let mapping = self
            .with(page.space, |tables| tables.clear_accessed(page.vpn.addr()))
            .flatten();
        mapping.is_some_and(|mapping| mapping.accessed)
    }
}

impl RemoteStore for Hardware {
    fn start_read(&self, token: Token, line: LineId, from: RemoteAddr) {
        self.start(Transfer {
            token,
            line,
            remote: from,
            read: true,
        });
    }

    fn start_write(&self, token: Token, line: LineId, to: RemoteAddr) {
        self.start(Transfer {
            token,
            line,
            remote: to,
            read: false,
        });
    }
}

impl Lines for Hardware {
    fn read(&self, line: LineId, offset: usize, into: &mut [u8]) {
        self.frames.frame(line.0 as usize).read(offset, into);
    }

    fn write(&self, line: LineId, offset: usize, from: &[u8]) {
        self.frames.frame(line.0 as usize).write(offset, from);
    }

    fn zero(&self, line: LineId) {
        self.frames.frame(line.0 as usize).fill(0, LINE_SIZE, 0);
    }
}
