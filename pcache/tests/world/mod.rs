//! A machine for the cache, stricter than a real one, and programs that check every byte they read.
//!
//! Each core has a TLB that keeps a translation until it is told to drop it, so a shootdown that is
//! missing or late shows as a wrong byte. A page is four words long. Transfers end only when told
//! to.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "each test uses a part of it"
)]

pub mod program;

use std::collections::HashMap;
use std::sync::atomic::Ordering;

#[cfg(interleave)]
use shuttle::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU64, AtomicUsize},
};
#[cfg(not(interleave))]
use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU64, AtomicUsize},
};

use hal::Instant;
use pcache::{
    Access, Cache, ChunkId, Chunks, Config, Entry, Geometry, IoFailed, LineId, Machine, Mapping,
    Page, Pte, RemoteAddr, SpaceId, Vpn,
};

/// Words of a page.
pub const WORDS: usize = 4;
/// Pages of an address space: two leaf tables.
pub const PAGES: usize = 128;
/// Entries of a leaf table.
pub const TABLE: usize = 64;
/// Physical address of the first line.
const BASE: u64 = 0x1000_0000;

/// A leaf entry's place.
#[derive(Clone, Copy)]
pub struct At {
    table: &'static [AtomicU64],
    index: usize,
}

impl Entry for At {
    fn load(self) -> Pte {
        Pte(self.table[self.index].load(Ordering::SeqCst))
    }

    fn exchange(self, old: Pte, new: Pte) -> Result<(), Pte> {
        self.table[self.index]
            .compare_exchange(old.0, new.0, Ordering::SeqCst, Ordering::SeqCst)
            .map(drop)
            .map_err(Pte)
    }

    fn neighbour(self, distance: i64) -> Option<Self> {
        let index = usize::try_from(i64::try_from(self.index).ok()?.checked_add(distance)?).ok()?;
        (index / TABLE == self.index / TABLE).then_some(Self { index, ..self })
    }
}

/// One address space's page table.
#[derive(Clone, Copy)]
pub struct Space {
    pub id: SpaceId,
    table: &'static [AtomicU64],
}

impl Space {
    pub fn new(id: u32) -> Self {
        let table: Vec<AtomicU64> = (0..PAGES).map(|_| AtomicU64::new(0)).collect();
        Self {
            id: SpaceId(id),
            table: table.leak(),
        }
    }

    pub fn at(&self, vpn: usize) -> Mapping<At> {
        let page = Page {
            space: self.id,
            vpn: Vpn(vpn as u64),
        };
        Mapping {
            entry: At {
                table: self.table,
                index: vpn,
            },
            page,
        }
    }
}

/// A translation that a core has cached.
#[derive(Clone, Copy)]
struct Cached {
    line: LineId,
    write: bool,
    /// The entry's dirty mark was set when the translation was made.
    dirty: bool,
}

/// A transfer under way.
#[derive(Clone, Copy)]
struct Transfer {
    line: LineId,
    remote: RemoteAddr,
    read: bool,
    rung: bool,
    /// The fabric lost it: it fails, and not before so many others were asked for.
    lost_until: usize,
}

/// The machine.
pub struct World {
    lines: Vec<[AtomicU64; WORDS]>,
    busy: Vec<AtomicBool>,
    /// A READ has put bytes there that are not yet code for the cores.
    unfit: Vec<AtomicBool>,
    remote: Mutex<HashMap<u64, [u64; WORDS]>>,
    transfers: Mutex<Vec<Transfer>>,
    tlbs: Vec<Mutex<HashMap<Page, Cached>>>,
    /// Number of rounds in which a transfer was to be carried out.
    turns: AtomicUsize,
    pub rings: AtomicUsize,
    pub shootdowns: AtomicUsize,
    pub writes: AtomicUsize,
    /// Set to let [`Machine::flush`] do nothing: the tests must notice.
    pub forgets_flushes: AtomicBool,
}

#[cfg(not(interleave))]
thread_local! {
    static CORE: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}
#[cfg(interleave)]
shuttle::thread_local! {
    static CORE: std::cell::Cell<usize> = std::cell::Cell::new(0);
}

/// Says on which core this thread is.
pub fn on_core(core: usize) {
    CORE.with(|own| own.set(core));
}

fn this_core() -> usize {
    CORE.with(std::cell::Cell::get)
}

impl World {
    pub fn new(lines: u32, cores: usize) -> Self {
        Self {
            lines: (0..lines)
                .map(|_| core::array::from_fn(|_| AtomicU64::new(0xdead)))
                .collect(),
            busy: (0..lines).map(|_| AtomicBool::new(false)).collect(),
            unfit: (0..lines).map(|_| AtomicBool::new(false)).collect(),
            remote: Mutex::default(),
            transfers: Mutex::default(),
            tlbs: (0..cores).map(|_| Mutex::default()).collect(),
            turns: AtomicUsize::new(0),
            rings: AtomicUsize::new(0),
            shootdowns: AtomicUsize::new(0),
            writes: AtomicUsize::new(0),
            forgets_flushes: AtomicBool::new(false),
        }
    }

    fn start(&self, line: LineId, remote: RemoteAddr, read: bool) {
        let was = self.busy[line.0 as usize].swap(true, Ordering::SeqCst);
        assert!(!was, "line {} has two transfers", line.0);
        if !read {
            self.writes.fetch_add(1, Ordering::SeqCst);
        }
        self.transfers.lock().unwrap().push(Transfer {
            line,
            remote,
            read,
            rung: false,
            lost_until: 0,
        });
    }

    /// Returns the number of transfers in flight, those not yet shown to the device included.
    pub fn transfers(&self) -> usize {
        self.transfers.lock().unwrap().len()
    }

    /// Loses the `which`th transfer of those that the device knows for `turns` turns.
    pub fn lose(&self, which: usize, turns: usize) {
        let until = self.turns.load(Ordering::SeqCst) + turns;
        let mut transfers = self.transfers.lock().unwrap();
        let mut known: Vec<_> = transfers
            .iter_mut()
            .filter(|transfer| transfer.rung && transfer.lost_until == 0)
            .collect();
        let count = known.len().max(1);
        if let Some(transfer) = known.get_mut(which % count) {
            transfer.lost_until = until;
        }
    }

    /// Carries a transfer out; the `which`th of those that the device knows.
    pub fn carry_out(&self, which: usize, fails: bool) -> Option<(LineId, Result<(), IoFailed>)> {
        let turn = self.turns.fetch_add(1, Ordering::SeqCst);
        let mut transfers = self.transfers.lock().unwrap();
        let due = |transfer: &Transfer| transfer.rung && transfer.lost_until <= turn;
        let known: Vec<usize> = (0..transfers.len())
            .filter(|&i| due(&transfers[i]))
            .collect();
        if known.is_empty() {
            return None;
        }
        let Transfer {
            line,
            remote,
            read,
            lost_until,
            ..
        } = transfers.remove(known[which % known.len()]);
        drop(transfers);
        let fails = fails || lost_until > 0;
        let words = &self.lines[line.0 as usize];
        if !fails && read {
            let from = self.remote.lock().unwrap().get(&remote.addr).copied();
            let from = from.expect("what is read was written before");
            for (word, value) in words.iter().zip(from) {
                word.store(value, Ordering::SeqCst);
            }
            self.unfit[line.0 as usize].store(true, Ordering::SeqCst);
        } else if !fails {
            let bytes = core::array::from_fn(|i| words[i].load(Ordering::SeqCst));
            self.remote.lock().unwrap().insert(remote.addr, bytes);
        } else if read {
            // A failed READ may have put anything there.
            words
                .iter()
                .for_each(|word| word.store(0xbad, Ordering::SeqCst));
        } else {
            // A failed WRITE may have come through in part.
            let mut pages = self.remote.lock().unwrap();
            let page = pages.entry(remote.addr).or_insert([0xbad; WORDS]);
            page[0] = words[0].load(Ordering::SeqCst);
        }
        self.busy[line.0 as usize].store(false, Ordering::SeqCst);
        let result = if fails { Err(IoFailed(1)) } else { Ok(()) };
        Some((line, result))
    }

    /// One access by this thread's core: the value of a word, or what to ask the cache for.
    fn try_access(&self, at: Mapping<At>, word: usize, write: Option<u64>) -> Result<u64, Access> {
        let access = if write.is_some() {
            Access::Write
        } else {
            Access::Read
        };
        let mut tlb = self.tlbs[this_core()].lock().unwrap();
        let cached = tlb.get(&at.page).copied();
        let usable = cached.filter(|c| write.is_none() || c.write && c.dirty);
        let line = match usable {
            Some(cached) => cached.line,
            None => {
                let line = self.walk(at, access)?;
                let write = at.entry.load().permits(Access::Write);
                let dirty = access == Access::Write;
                tlb.insert(at.page, Cached { line, write, dirty });
                line
            }
        };
        let cell = &self.lines[line.0 as usize][word];
        let seen = cell.load(Ordering::SeqCst);
        if let Some(value) = write {
            cell.store(value, Ordering::SeqCst);
        }
        Ok(seen)
    }

    /// Walks as the CPU does: sets accessed and dirty marks of an entry that permits the access.
    fn walk(&self, at: Mapping<At>, access: Access) -> Result<LineId, Access> {
        let mut pte = at.entry.load();
        loop {
            if !pte.permits(access) {
                return Err(access);
            }
            let marks = if access == Access::Write { 0x60 } else { 0x20 };
            match at.entry.exchange(pte, Pte(pte.0 | marks)) {
                Ok(()) => {
                    let line = self.line(pte.frame()).expect("a line");
                    let unfit = self.unfit[line.0 as usize].load(Ordering::SeqCst);
                    let fit = !(unfit && pte.is_executable());
                    assert!(fit, "line {} is executed as it came", line.0);
                    return Ok(line);
                }
                Err(there) => pte = there,
            }
        }
    }

    /// A word as the kernel copies it out of a line.
    fn word(&self, line: LineId, offset: usize) -> &AtomicU64 {
        &self.lines[line.0 as usize][offset / 8]
    }
}

impl Machine for World {
    type Entry = At;

    fn now(&self) -> Instant {
        Instant::from_nanos(1)
    }
    fn core(&self) -> usize {
        this_core()
    }
    fn frame(&self, line: LineId) -> u64 {
        BASE + u64::from(line.0) * 4096
    }
    fn line(&self, frame: u64) -> Option<LineId> {
        let line = u32::try_from(frame.checked_sub(BASE)? / 4096).ok()?;
        ((line as usize) < self.lines.len()).then_some(LineId(line))
    }
    fn read(&self, line: LineId, from: RemoteAddr) {
        self.start(line, from, true);
    }
    fn write(&self, line: LineId, to: RemoteAddr) {
        self.start(line, to, false);
    }
    fn ring(&self) {
        self.rings.fetch_add(1, Ordering::SeqCst);
        let mut transfers = self.transfers.lock().unwrap();
        transfers
            .iter_mut()
            .for_each(|transfer| transfer.rung = true);
    }
    fn flush(&self, stale: &[Page]) {
        self.shootdowns.fetch_add(1, Ordering::SeqCst);
        if self.forgets_flushes.load(Ordering::SeqCst) {
            return;
        }
        for tlb in &self.tlbs {
            let mut tlb = tlb.lock().unwrap();
            for page in stale {
                tlb.remove(page);
            }
        }
    }
    fn flush_space(&self, space: SpaceId) {
        self.shootdowns.fetch_add(1, Ordering::SeqCst);
        for tlb in &self.tlbs {
            tlb.lock().unwrap().retain(|page, _| page.space != space);
        }
    }
    fn flush_own(&self, page: Page) {
        self.tlbs[this_core()].lock().unwrap().remove(&page);
    }
    fn prepare_code(&self, line: LineId) {
        let unfit = self.unfit[line.0 as usize].swap(false, Ordering::SeqCst);
        assert!(unfit, "line {} is fit already", line.0);
    }
    fn retire_code(&self, _: LineId) {}
    fn copy_out(&self, line: LineId, offset: usize, into: &mut [u8]) {
        for (i, part) in into.chunks_exact_mut(8).enumerate() {
            let value = self.word(line, offset + i * 8).load(Ordering::SeqCst);
            part.copy_from_slice(&value.to_le_bytes());
        }
    }
    fn copy_in(&self, line: LineId, offset: usize, from: &[u8]) {
        for (i, part) in from.chunks_exact(8).enumerate() {
            let value = u64::from_le_bytes(part.try_into().unwrap());
            self.word(line, offset + i * 8)
                .store(value, Ordering::SeqCst);
        }
    }
    fn exchange(&self, line: LineId, offset: usize, old: u32, new: u32) -> Result<u32, u32> {
        let (word, shift) = (self.word(line, offset), offset % 8 * 8);
        let half = |word: u64| u32::try_from(word >> shift & 0xffff_ffff).unwrap();
        let put = |word: u64| word & !(0xffff_ffff << shift) | u64::from(new) << shift;
        let changed = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| {
            (half(word) == old).then(|| put(word))
        });
        changed.map(half).map_err(half)
    }
    fn copy_line(&self, from: LineId, to: LineId) {
        for (from, to) in self.lines[from.0 as usize]
            .iter()
            .zip(&self.lines[to.0 as usize])
        {
            to.store(from.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        self.unfit[to.0 as usize].store(false, Ordering::SeqCst);
    }
    fn zero(&self, line: LineId) {
        let idle = !self.busy[line.0 as usize].load(Ordering::SeqCst);
        assert!(
            idle,
            "line {} is used while a transfer is under way",
            line.0
        );
        self.lines[line.0 as usize]
            .iter()
            .for_each(|word| word.store(0, Ordering::SeqCst));
        self.unfit[line.0 as usize].store(false, Ordering::SeqCst);
    }
}

/// A cache of `sets` sets over this machine, with `chunks` chunks that M lent.
pub fn cache(
    sets: u32,
    ways: u32,
    config: Config,
    cores: usize,
    chunks: u32,
) -> (Cache<World>, Vec<ChunkId>) {
    let geometry = Geometry::new(u64::from(sets) * u64::from(ways) * 4096, ways).unwrap();
    let table = Chunks::new(chunks);
    let lent = (0..chunks)
        .map(|n| {
            let addr = u64::from(n + 1) << 21;
            let id = table.add(RemoteAddr { addr, key: 1 }).unwrap();
            table.attach(id);
            id
        })
        .collect();
    let machine = World::new(geometry.lines() + config.further_lines(), cores);
    let cache = Cache::new(geometry, config, table, machine);
    (cache, lent)
}
