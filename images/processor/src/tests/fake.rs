//! A node whose M, S, page tables and network are a few maps: transfers and calls end only when the executor has nothing else to
//! do.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hal::Instant;
use messages::memory::{
    MapFlags, MapRequest, Mapped, ProcessId, Prot, ProtectRequest, RangeRequest, Window, WindowList,
    WindowRun, WindowsRequest,
};
use messages::storage::{Entry, FileId, FileTime, OpenFlags, Opened, Stat};
use messages::{Errno, WINDOW_SIZE, Wire, Writer};
use pcache::{
    Cache, Config, Geometry, LINE_SIZE, LineId, Lines, MapFailed, Mapper, Page, RemoteAddr, RemoteStore,
    Token, Unmapped,
};
use verbs::Rkey;

use crate::error::errno;
use crate::{CacheMachine, Cpu, Error, Files, Memory, Node, Platform, Result, Stream, SystemCall, Trap};

type Remote = BTreeMap<(u64, u64), Vec<u8>>;

#[derive(Default)]
pub(crate) struct FakeHardware {
    pub(crate) tables: Mutex<BTreeMap<Page, (LineId, Prot, bool)>>,
    lines: Mutex<Vec<Vec<u8>>>,
    remote: Mutex<Remote>,
    transfers: Mutex<Vec<(Token, RemoteAddr, bool)>>,
}

impl FakeHardware {
    /// The program stores through its mapping; false if that faults.
    pub(crate) fn store(&self, page: Page, offset: usize, byte: u8) -> bool {
        let mut tables = self.tables.lock().unwrap();
        let Some((line, prot, dirty)) = tables.get_mut(&page) else {
            return false;
        };
        let allowed = prot.contains(Prot::WRITE);
        if allowed {
            *dirty = true;
            self.lines.lock().unwrap()[line.0 as usize][offset] = byte;
        }
        allowed
    }
}

impl Mapper for FakeHardware {
    type Rights = Prot;
    fn map(&self, page: Page, line: LineId, rights: Prot) -> core::result::Result<(), MapFailed> {
        let mut tables = self.tables.lock().unwrap();
        let dirty = tables.get(&page).is_some_and(|&(_, _, dirty)| dirty);
        tables.insert(page, (line, rights, dirty));
        Ok(())
    }
    fn unmap(&self, page: Page) -> Unmapped {
        let (_, _, dirty) = self
            .tables
            .lock()
            .unwrap()
            .remove(&page)
            .expect("unmaps only what is mapped");
        Unmapped { dirty }
    }
    fn take_accessed(&self, _: Page) -> bool {
        false
    }
}

impl RemoteStore for FakeHardware {
    fn start_read(&self, token: Token, _: LineId, from: RemoteAddr) {
        self.transfers.lock().unwrap().push((token, from, false));
    }
    fn start_write(&self, token: Token, _: LineId, to: RemoteAddr) {
        self.transfers.lock().unwrap().push((token, to, true));
    }
}

impl Lines for FakeHardware {
    fn read(&self, line: LineId, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.lines.lock().unwrap()[line.0 as usize][offset..offset + into.len()]);
    }
    fn write(&self, line: LineId, offset: usize, from: &[u8]) {
        self.lines.lock().unwrap()[line.0 as usize][offset..offset + from.len()].copy_from_slice(from);
    }
    fn zero(&self, line: LineId) {
        self.lines.lock().unwrap()[line.0 as usize].fill(0);
    }
}

/// M: gives addresses from one cursor on, backs whole windows, and knows how much it has.
pub(crate) struct FakeMemory {
    vmas: RefCell<Vec<(u64, u64)>>,
    cursor: Cell<u64>,
    windows: RefCell<BTreeMap<u32, u64>>,
    next_chunk: Cell<u64>,
    pub(crate) windows_left: Cell<u64>,
    pub(crate) calls: Cell<u64>,
    pub(crate) ended: Cell<bool>,
}

impl FakeMemory {
    fn back(&self, start: u64, end: u64) -> Result<WindowList> {
        let mut list = WindowList::default();
        for index in start / WINDOW_SIZE..end.div_ceil(WINDOW_SIZE) {
            let index = u32::try_from(index).unwrap();
            if !self.windows.borrow().contains_key(&index) {
                self.windows_left
                    .set(self.windows_left.get().checked_sub(1).ok_or(errno::ENOMEM)?);
                let addr = self.next_chunk.replace(self.next_chunk.get() + WINDOW_SIZE);
                self.windows.borrow_mut().insert(index, addr);
                list.push(Window {
                    index,
                    chunk: verbs::RemoteAddr { addr, rkey: Rkey(9) },
                });
            }
        }
        Ok(list)
    }
}

impl Memory for FakeMemory {
    async fn create(&self, _: u32) -> Result<ProcessId> {
        Ok(ProcessId(5))
    }
    async fn map(&self, request: MapRequest) -> Result<Mapped> {
        self.calls.set(self.calls.get() + 1);
        let len = request.len.next_multiple_of(4096);
        let fixed = !request.flags.is_empty();
        let start = if fixed {
            request.hint
        } else {
            self.cursor.replace(self.cursor.get() + len)
        };
        let taken = self
            .vmas
            .borrow()
            .iter()
            .any(|&(s, e)| s < start + len && start < e);
        if taken && request.flags.contains(MapFlags::FIXED_NOREPLACE) {
            return Err(errno::EEXIST.into());
        }
        let windows = if request.prot.is_empty() {
            WindowList::default()
        } else {
            self.back(start, start + len)?
        };
        self.vmas.borrow_mut().push((start, start + len));
        Ok(Mapped {
            address: start,
            windows,
        })
    }
    async fn unmap(&self, request: RangeRequest) -> Result<WindowRun> {
        self.calls.set(self.calls.get() + 1);
        let end = request.address + request.len;
        let mut rest = Vec::new();
        for (s, e) in self.vmas.borrow().iter().copied() {
            rest.extend(
                [(s, e.min(request.address)), (s.max(end), e)]
                    .iter()
                    .filter(|(s, e)| s < e),
            );
        }
        *self.vmas.borrow_mut() = rest;
        let (first, last) = (request.address.div_ceil(WINDOW_SIZE), end / WINDOW_SIZE);
        let run = WindowRun {
            first: u32::try_from(first).unwrap(),
            count: u32::try_from(last.saturating_sub(first)).unwrap(),
        };
        let mut windows = self.windows.borrow_mut();
        let before = windows.len();
        windows.retain(|&index, _| !(first..last).contains(&u64::from(index)));
        let freed = (before - windows.len()) as u64;
        self.windows_left.set(self.windows_left.get() + freed);
        Ok(run)
    }
    async fn protect(&self, request: ProtectRequest) -> Result<WindowList> {
        self.calls.set(self.calls.get() + 1);
        if request.prot.is_empty() {
            Ok(WindowList::default())
        } else {
            self.back(request.address, request.address + request.len)
        }
    }
    async fn windows(&self, request: WindowsRequest) -> Result<WindowList> {
        let mut list = WindowList::default();
        let windows = self.windows.borrow();
        for (&index, &addr) in windows.range(request.first..request.first + request.count) {
            list.push(Window {
                index,
                chunk: verbs::RemoteAddr { addr, rkey: Rkey(9) },
            });
        }
        Ok(list)
    }
    async fn end(&self, _: ProcessId) -> Result<()> {
        self.ended.set(true);
        Ok(())
    }
}

/// S: files by path; a path with nothing behind it is a folder. File numbers are positions in the table.
#[derive(Default)]
pub(crate) struct FakeFiles {
    pub(crate) files: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) links: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) open: Cell<i64>,
    pub(crate) reads: Cell<u64>,
    /// The most bytes that a read gives.
    pub(crate) most: usize,
}

impl FakeFiles {
    fn find(&self, path: &[u8]) -> Result<(usize, Stat)> {
        let mut path = path.to_vec();
        while path.len() > 1 && path.ends_with(b"/") {
            path.pop();
        }
        let at = self.files.keys().position(|p| *p == path).ok_or(errno::ENOENT)?;
        Ok((at, self.stat_of(at)))
    }

    fn stat_of(&self, at: usize) -> Stat {
        let content = self.files.values().nth(at).unwrap();
        let never = FileTime { seconds: 0, nanos: 0 };
        Stat {
            inode: at as u64 + 10,
            mode: if content.is_empty() { 0o040_755 } else { 0o100_755 },
            links: 1,
            uid: 0,
            gid: 0,
            size: content.len() as u64,
            block_size: 4096,
            blocks: 8,
            accessed: never,
            modified: never,
            changed: never,
            device: 0,
        }
    }
}

fn index(file: FileId) -> usize {
    usize::try_from(file.0).unwrap()
}

impl Files for FakeFiles {
    async fn open(&self, path: &[u8], flags: OpenFlags) -> Result<Opened> {
        let (at, stat) = self.find(path)?;
        if flags.contains(OpenFlags::WRITE) {
            return Err(errno::EROFS.into());
        }
        self.open.set(self.open.get() + 1);
        Ok(Opened {
            file: FileId(at as u64),
            stat,
        })
    }
    async fn read(&self, file: FileId, offset: u64, into: &mut [u8]) -> Result<usize> {
        self.reads.set(self.reads.get() + 1);
        let content = self.files.values().nth(index(file)).unwrap();
        let rest = content.get(usize::try_from(offset).unwrap()..).unwrap_or(&[]);
        // Fewer than asked for, as a peer may.
        let len = rest.len().min(into.len()).min(self.most);
        into[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
    async fn stat(&self, path: &[u8], _: bool) -> Result<Stat> {
        Ok(self.find(path)?.1)
    }
    async fn stat_file(&self, file: FileId) -> Result<Stat> {
        Ok(self.stat_of(index(file)))
    }
    async fn getdents(&self, _: FileId, position: u64, into: &mut [u8]) -> Result<usize> {
        let mut writer = Writer::new(into);
        for (at, path) in self
            .files
            .keys()
            .enumerate()
            .skip(usize::try_from(position).unwrap())
        {
            let name = path
                .rsplit(|&b| b == b'/')
                .next()
                .filter(|n| !n.is_empty())
                .unwrap_or(b".");
            Entry {
                inode: 1,
                next: at as u64 + 1,
                kind: 8,
                name,
            }
            .put(&mut writer)
            .unwrap();
        }
        Ok(writer.len())
    }
    async fn readlink(&self, path: &[u8], into: &mut [u8]) -> Result<usize> {
        let target = self.links.get(path).ok_or(errno::EINVAL)?;
        into[..target.len()].copy_from_slice(target);
        Ok(target.len())
    }
    async fn close(&self, _: FileId) -> Result<()> {
        self.open.set(self.open.get() - 1);
        Ok(())
    }
}

#[derive(Default)]
pub(crate) struct FakePlatform {
    pub(crate) clock: Cell<u64>,
    pub(crate) stdin: RefCell<Vec<u8>>,
    pub(crate) out: RefCell<Vec<(Stream, Vec<u8>)>>,
}

impl Platform for FakePlatform {
    fn now(&self) -> Instant {
        self.clock.set(self.clock.get() + 10);
        Instant::from_nanos(self.clock.get())
    }
    fn wall_clock(&self) -> Duration {
        Duration::from_secs(1_700_000_000)
    }
    fn random(&self, into: &mut [u8]) {
        into.fill(0x5a);
    }
    async fn sleep_until(&self, until: Instant) {
        self.clock.set(self.clock.get().max(until.nanos));
    }
    async fn yield_now(&self) {}
    async fn read_stdin(&self, into: &mut [u8]) -> usize {
        let mut stdin = self.stdin.borrow_mut();
        let len = stdin.len().min(into.len());
        into[..len].copy_from_slice(&stdin.drain(..len).collect::<Vec<_>>());
        len
    }
    fn stdin_ready(&self) -> bool {
        !self.stdin.borrow().is_empty()
    }
    async fn write(&self, stream: Stream, bytes: &[u8]) {
        self.out.borrow_mut().push((stream, bytes.to_vec()));
    }
}

/// A thread that only follows a script of traps.
#[derive(Default)]
pub(crate) struct FakeCpu {
    pub(crate) ip: u64,
    pub(crate) sp: u64,
    fs: u64,
    pub(crate) script: Vec<(Trap, SystemCall)>,
    call: SystemCall,
    pub(crate) results: Vec<u64>,
}

impl Cpu for FakeCpu {
    async fn run(&mut self) -> Trap {
        let (trap, call) = self.script.remove(0);
        self.call = call;
        trap
    }
    fn start(&mut self, ip: u64, sp: u64) {
        (self.ip, self.sp) = (ip, sp);
    }
    fn system_call(&self) -> SystemCall {
        self.call
    }
    fn set_result(&mut self, result: u64) {
        self.results.push(result);
    }
    fn ip(&self) -> u64 {
        self.ip
    }
    fn fs_base(&self) -> u64 {
        self.fs
    }
    fn set_fs_base(&mut self, base: u64) -> bool {
        let fits = base < messages::USER_END;
        if fits {
            self.fs = base;
        }
        fits
    }
    fn gs_base(&self) -> u64 {
        0
    }
    fn set_gs_base(&mut self, _: u64) -> bool {
        false
    }
}

pub(crate) struct FakeNode {
    pub(crate) cache: Cache<CacheMachine<FakeHardware>>,
    pub(crate) platform: FakePlatform,
    pub(crate) memory: FakeMemory,
    pub(crate) files: FakeFiles,
}

impl Node for FakeNode {
    type Hardware = FakeHardware;
    type Platform = FakePlatform;
    type Memory = FakeMemory;
    type Files = FakeFiles;
    fn cache(&self) -> &Cache<CacheMachine<FakeHardware>> {
        &self.cache
    }
    fn platform(&self) -> &FakePlatform {
        &self.platform
    }
    fn memory(&self) -> &FakeMemory {
        &self.memory
    }
    fn files(&self) -> &FakeFiles {
        &self.files
    }
}

impl FakeNode {
    /// A node with a cache of `lines` lines, an M of 64 windows, and files.
    pub(crate) fn new(lines: u64, files: &[(&str, &[u8])]) -> Self {
        let geometry = Geometry::new(lines * LINE_SIZE as u64, 4).unwrap();
        let bytes = (0..geometry.lines()).map(|_| vec![0xee; LINE_SIZE]).collect();
        let hardware = FakeHardware {
            lines: Mutex::new(bytes),
            ..FakeHardware::default()
        };
        let table = files
            .iter()
            .map(|(path, content)| (path.as_bytes().to_vec(), content.to_vec()))
            .collect();
        Self {
            cache: Cache::new(geometry, Config::default(), CacheMachine::new(hardware)),
            platform: FakePlatform::default(),
            memory: FakeMemory {
                vmas: RefCell::default(),
                cursor: Cell::new(0x7000_0000_0000),
                windows: RefCell::default(),
                next_chunk: Cell::new(1 << 32),
                windows_left: Cell::new(64),
                calls: Cell::new(0),
                ended: Cell::new(false),
            },
            files: FakeFiles {
                files: table,
                links: BTreeMap::new(),
                open: Cell::new(0),
                reads: Cell::new(0),
                most: 5_000,
            },
        }
    }

    /// Ends the oldest transfer. False if there is none.
    fn pump(&self) -> bool {
        let hardware = &self.cache.machine().hardware;
        let Some(&(token, at, write)) = hardware.transfers.lock().unwrap().first() else {
            return false;
        };
        hardware.transfers.lock().unwrap().remove(0);
        let line = token.line().0 as usize;
        if write {
            let bytes = hardware.lines.lock().unwrap()[line].clone();
            hardware.remote.lock().unwrap().insert((at.key, at.addr), bytes);
        } else {
            let bytes = hardware.remote.lock().unwrap()[&(at.key, at.addr)].clone();
            hardware.lines.lock().unwrap()[line] = bytes;
        }
        self.cache.complete(token, Ok(()), self.platform.now()).unwrap();
        true
    }

    /// Runs `future` to its end.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return value;
            }
            assert!(self.pump(), "waits for nothing");
        }
    }
}

/// The errno of a call that failed.
pub(crate) fn errno_of<T>(result: Result<T>) -> Option<Errno> {
    match result {
        Err(Error::Errno(errno)) => Some(errno),
        _ => None,
    }
}
