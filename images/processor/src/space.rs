//! What P knows of where pages live: the windows that M granted, and which of their pages were ever written back.

use alloc::collections::BTreeMap;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use messages::memory::{Window, WindowRun};
use messages::{PAGE_SIZE, WINDOW_SIZE};
use pcache::{
    Backing, LineId, Lines, MapFailed, Mapper, Page, RemoteAddr, RemoteStore, Source, SpaceId, Token,
    Unmapped, Vpn,
};
use spin::RwLock;

use crate::Hardware;

const PAGES: u64 = WINDOW_SIZE / PAGE_SIZE;
const WORDS: usize = (PAGES / 64) as usize;

/// One window: its chunk at M, and a bit for each page that M holds.
struct Backed {
    chunk: RemoteAddr,
    written: [AtomicU64; WORDS],
}

impl Backed {
    fn bit(&self, page: Page) -> (&AtomicU64, u64) {
        let offset = page.vpn.0 % PAGES;
        (
            &self.written[usize::try_from(offset / 64).expect("less than WORDS")],
            1 << (offset % 64),
        )
    }

    fn place(&self, page: Page) -> RemoteAddr {
        RemoteAddr {
            addr: self.chunk.addr.wrapping_add(page.vpn.0 % PAGES * PAGE_SIZE),
            key: self.chunk.key,
        }
    }
}

/// The windows of all address spaces. Its lock is taken under a set's lock of the cache, and takes none itself.
#[derive(Default)]
pub struct Spaces {
    windows: RwLock<BTreeMap<(SpaceId, u64), Backed>>,
}

impl Spaces {
    /// A window was backed by a chunk; nothing of it was written back yet.
    pub fn add(&self, space: SpaceId, window: &Window) {
        let chunk = RemoteAddr {
            addr: window.chunk.addr,
            key: u64::from(window.chunk.rkey.0),
        };
        let written = [const { AtomicU64::new(0) }; WORDS];
        self.windows
            .write()
            .insert((space, u64::from(window.index)), Backed { chunk, written });
    }

    /// Windows are without a chunk now.
    pub fn remove(&self, space: SpaceId, run: WindowRun) {
        let first = u64::from(run.first);
        let mut windows = self.windows.write();
        windows
            .retain(|&(s, index), _| s != space || !(first..first + u64::from(run.count)).contains(&index));
    }

    /// All windows of a space are gone.
    pub fn remove_space(&self, space: SpaceId) {
        self.windows.write().retain(|&(s, _), _| s != space);
    }

    /// The pages of a range start as zeros again.
    pub fn forget(&self, space: SpaceId, first: Vpn, count: u64) {
        let windows = self.windows.read();
        let end = first.0.saturating_add(count);
        for (&(_, index), window) in windows.range((space, first.0 / PAGES)..=(space, end / PAGES)) {
            for vpn in (index * PAGES..(index + 1) * PAGES).filter(|vpn| (first.0..end).contains(vpn)) {
                let (word, bit) = window.bit(Page { space, vpn: Vpn(vpn) });
                word.fetch_and(!bit, Relaxed);
            }
        }
    }

    fn with<T>(&self, page: Page, what: impl FnOnce(&Backed) -> T) -> Option<T> {
        self.windows
            .read()
            .get(&(page.space, page.vpn.0 / PAGES))
            .map(what)
    }
}

impl Backing for Spaces {
    fn source(&self, page: Page) -> Source {
        let written = |w: &Backed| {
            let (word, bit) = w.bit(page);
            (word.load(Relaxed) & bit != 0).then(|| w.place(page))
        };
        match self.with(page, written).flatten() {
            Some(place) => Source::Remote(place),
            None => Source::Zero,
        }
    }

    fn place(&self, page: Page) -> Option<RemoteAddr> {
        self.with(page, |w| w.place(page))
    }

    fn written_back(&self, page: Page) {
        self.with(page, |w| {
            let (word, bit) = w.bit(page);
            word.fetch_or(bit, Relaxed);
        });
    }
}

/// The machine that pcache works on: the hardware, and what P knows of the layout.
pub struct CacheMachine<H> {
    /// Where pages live.
    pub spaces: Spaces,
    /// Page tables, lines and the network.
    pub hardware: H,
}

impl<H> CacheMachine<H> {
    /// No address space yet.
    pub fn new(hardware: H) -> Self {
        Self {
            spaces: Spaces::default(),
            hardware,
        }
    }
}

impl<H> Backing for CacheMachine<H> {
    fn source(&self, page: Page) -> Source {
        self.spaces.source(page)
    }
    fn place(&self, page: Page) -> Option<RemoteAddr> {
        self.spaces.place(page)
    }
    fn written_back(&self, page: Page) {
        self.spaces.written_back(page);
    }
}

impl<H: Hardware> Mapper for CacheMachine<H> {
    type Rights = H::Rights;
    fn map(&self, page: Page, line: LineId, rights: Self::Rights) -> Result<(), MapFailed> {
        self.hardware.map(page, line, rights)
    }
    fn unmap(&self, page: Page) -> Unmapped {
        self.hardware.unmap(page)
    }
    fn take_accessed(&self, page: Page) -> bool {
        self.hardware.take_accessed(page)
    }
}

impl<H: Hardware> RemoteStore for CacheMachine<H> {
    fn start_read(&self, token: Token, line: LineId, from: RemoteAddr) {
        self.hardware.start_read(token, line, from);
    }
    fn start_write(&self, token: Token, line: LineId, to: RemoteAddr) {
        self.hardware.start_write(token, line, to);
    }
}

impl<H: Hardware> Lines for CacheMachine<H> {
    fn read(&self, line: LineId, offset: usize, into: &mut [u8]) {
        self.hardware.read(line, offset, into);
    }
    fn write(&self, line: LineId, offset: usize, from: &[u8]) {
        self.hardware.write(line, offset, from);
    }
    fn zero(&self, line: LineId) {
        self.hardware.zero(line);
    }
}
