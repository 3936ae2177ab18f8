//! Page tables, lines and the one-sided way to M, for the cache.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use fit::PeerId;
use hal::DmaBuffer;
use libos::{AddressSpace, Exit, FrameArray, Rights, power_off, quirks};
use messages::memory::Prot;
use node::{Core, Error};
use pcache::{
    LINE_SIZE, LineId, Lines, MapFailed, Mapper, Page, RemoteAddr, RemoteStore, SpaceId, Token, Unmapped,
};
use spin::RwLock;
use verbs::{Access, Device, Region, Rkey, Sge};

/// What the cache works on.
pub(crate) struct Hardware {
    frames: &'static FrameArray,
    /// The lines, as the HCA reaches them. Peers cannot.
    region: Region,
    core: Core,
    memory: PeerId,
    /// The page tables. Taken under a set's lock of the cache; it takes none itself.
    spaces: RwLock<BTreeMap<SpaceId, Arc<AddressSpace>>>,
}

impl Hardware {
    /// Takes memory for `lines` lines and shows it to the HCA.
    ///
    /// # Errors
    ///
    /// When the machine has not so much contiguous memory, or the HCA refuses it.
    pub(crate) async fn new(
        lines: u32,
        device: &impl Device,
        core: Core,
        memory: PeerId,
    ) -> Result<Self, Error> {
        let len = lines as usize * LINE_SIZE;
        let frames = FrameArray::allocate(lines as usize).ok_or(hal::Error::NoDmaMemory { len });
        let frames = frames.map_err(|error| Error::Role(alloc::format!("pcache: {error}")))?;
        let access = Access {
            local_write: true,
            ..Access::default()
        };
        let region = device
            .register(frames.buffer().bus_addr().0, len as u64, access)
            .await?;
        Ok(Self {
            frames,
            region,
            core,
            memory,
            spaces: RwLock::default(),
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
        let (from, into) = (Self::place(from), self.piece(line));
        started(self.core.start_read(self.memory, from, into, token.raw()));
    }

    fn start_write(&self, token: Token, line: LineId, to: RemoteAddr) {
        let (from, to) = (self.piece(line), Self::place(to));
        started(self.core.start_write(self.memory, from, to, token.raw()));
    }
}

/// A transfer that cannot be started leaves a program without its memory: M is lost, and this node with it.
fn started(result: Result<(), fit::Error>) {
    if let Err(error) = result {
        log::error!("{error}");
        power_off(Exit::Failure);
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
