//! A node whose M, S, page tables and network are a few maps: transfers and calls end only when the
//! executor has nothing else to do.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hal::Instant;
use messages::memory::{CapacityReply, Chunks as Lent, MAX_CHUNKS};
use messages::{CHUNK_SIZE, Errno};
use pcache::{
    Access, Cache, Chunks, Config, Geometry, LINE_SIZE, LineId, Machine, Page, Pte, RemoteAddr,
    SpaceId,
};
use verbs::Rkey;

use super::fake_files::FakeFiles;
use super::turns::Turns;
use console::{Decoder, Frame, Output};

use crate::error::errno;
use crate::gather::Gathering;
use crate::mm::Tables;
use crate::mm::layout::Randomize;
use crate::mm::supply::ChunkSupply;
use crate::{
    Cpu, Error, Exit, Kernel, Memory, Node, Platform, REGISTERS, Registers, Result, SystemCall,
    Thread, Trap,
};

/// Physical address of the first line.
const BASE: u64 = 0x1000_0000;

/// One leaf table; leaked, as entries are places.
type Leaf = &'static [AtomicU64; 512];

#[derive(Clone, Copy)]
pub(crate) struct FakeEntry {
    leaf: Leaf,
    index: usize,
}

impl pcache::Entry for FakeEntry {
    fn load(self) -> Pte {
        Pte(self.leaf[self.index].load(Ordering::SeqCst))
    }
    fn exchange(self, old: Pte, new: Pte) -> core::result::Result<(), Pte> {
        self.leaf[self.index]
            .compare_exchange(old.0, new.0, Ordering::SeqCst, Ordering::SeqCst)
            .map(drop)
            .map_err(Pte)
    }
    fn neighbour(self, distance: i64) -> Option<Self> {
        let index = i64::try_from(self.index).unwrap() + distance;
        let index = usize::try_from(index).ok().filter(|&index| index < 512)?;
        Some(Self { index, ..self })
    }
}

/// The leaf tables of one space.
#[derive(Clone)]
pub(crate) struct FakeTables {
    id: SpaceId,
    leaves: Rc<RefCell<BTreeMap<u64, Leaf>>>,
}

impl FakeTables {
    fn new(id: u32) -> Self {
        Self {
            id: SpaceId(id),
            leaves: Rc::default(),
        }
    }

    /// Returns the number of leaf tables.
    pub(crate) fn count(&self) -> usize {
        self.leaves.borrow().len()
    }
}

impl Tables for FakeTables {
    type Entry = FakeEntry;
    fn space(&self) -> SpaceId {
        self.id
    }
    fn entry(&self, addr: u64) -> Option<FakeEntry> {
        let leaf = *self.leaves.borrow().get(&(addr / CHUNK_SIZE))?;
        let index = usize::try_from(addr / 4096 % 512).unwrap();
        Some(FakeEntry { leaf, index })
    }
    fn entry_or_create(&self, addr: u64) -> Option<FakeEntry> {
        let new = || &*Box::leak(Box::new([const { AtomicU64::new(0) }; 512]));
        self.leaves
            .borrow_mut()
            .entry(addr / CHUNK_SIZE)
            .or_insert_with(new);
        self.entry(addr)
    }
    fn next_table(&self, from: u64, end: u64) -> Option<u64> {
        let leaves = self.leaves.borrow();
        let (&leaf, _) = leaves.range(from / CHUNK_SIZE..).next()?;
        let at = from.max(leaf * CHUNK_SIZE);
        (at < end).then_some(at)
    }
    fn release(&self, addr: u64) -> bool {
        let mut leaves = self.leaves.borrow_mut();
        let Some(leaf) = leaves.get(&(addr / CHUNK_SIZE)) else {
            return false;
        };
        let empty = leaf.iter().all(|entry| entry.load(Ordering::SeqCst) == 0);
        if empty {
            leaves.remove(&(addr / CHUNK_SIZE));
        }
        empty
    }
}

/// Lines and transfers.
#[derive(Default)]
pub(crate) struct FakeMachine {
    lines: Mutex<Vec<Vec<u8>>>,
    remote: Mutex<BTreeMap<u64, Vec<u8>>>,
    transfers: Mutex<Vec<(LineId, RemoteAddr, bool)>>,
    pub(crate) most_stale: Cell<usize>,
    /// A word that the program stores before the next exchange.
    pub(crate) stored_between: Cell<Option<u32>>,
    turns: Rc<Turns>,
}

impl FakeMachine {
    /// Forgets what M keeps of chunks that it does not lend any more.
    pub(crate) fn forget_all_but(&self, lent: &BTreeSet<u64>) {
        let mut remote = self.remote.lock().unwrap();
        remote.retain(|addr, _| lent.contains(&(addr / CHUNK_SIZE * CHUNK_SIZE)));
    }
}

impl Machine for FakeMachine {
    type Entry = FakeEntry;
    fn now(&self) -> Instant {
        Instant::from_nanos(1)
    }
    fn core(&self) -> usize {
        0
    }
    fn frame(&self, line: LineId) -> u64 {
        BASE + u64::from(line.0) * 4096
    }
    fn line(&self, frame: u64) -> Option<LineId> {
        Some(LineId(u32::try_from(frame.checked_sub(BASE)? / 4096).ok()?))
    }
    fn read(&self, line: LineId, from: RemoteAddr) {
        self.transfers.lock().unwrap().push((line, from, false));
    }
    fn write(&self, line: LineId, to: RemoteAddr) {
        self.transfers.lock().unwrap().push((line, to, true));
    }
    fn ring(&self) {}
    fn flush(&self, stale: &[Page]) {
        self.most_stale.set(self.most_stale.get().max(stale.len()));
        self.turns.did(stale.len());
    }
    fn flush_space(&self, _: SpaceId) {}
    fn flush_own(&self, _: Page) {}
    fn prepare_code(&self, _: LineId) {}
    fn retire_code(&self, _: LineId) {}
    fn copy_out(&self, line: LineId, offset: usize, into: &mut [u8]) {
        self.turns.did(1);
        into.copy_from_slice(
            &self.lines.lock().unwrap()[line.0 as usize][offset..offset + into.len()],
        );
    }
    fn copy_in(&self, line: LineId, offset: usize, from: &[u8]) {
        self.turns.did(1);
        self.lines.lock().unwrap()[line.0 as usize][offset..offset + from.len()]
            .copy_from_slice(from);
    }
    fn exchange(
        &self,
        line: LineId,
        offset: usize,
        old: u32,
        new: u32,
    ) -> core::result::Result<u32, u32> {
        self.turns.did(1);
        let lines = &mut *self.lines.lock().unwrap();
        let word: &mut [u8; 4] = lines[line.0 as usize][offset..].first_chunk_mut().unwrap();
        // A store of the program between the kernel's load and its exchange.
        if let Some(stored) = self.stored_between.take() {
            *word = stored.to_le_bytes();
        }
        let before = u32::from_le_bytes(*word);
        if before != old {
            return Err(before);
        }
        *word = new.to_le_bytes();
        Ok(before)
    }
    fn copy_line(&self, from: LineId, to: LineId) {
        self.turns.did(1);
        let mut lines = self.lines.lock().unwrap();
        lines[to.0 as usize] = lines[from.0 as usize].clone();
    }
    fn zero(&self, line: LineId) {
        self.turns.did(1);
        self.lines.lock().unwrap()[line.0 as usize].fill(0);
    }
}

/// M: knows how many chunks it has, which are lent, and what it promised.
pub(crate) struct FakeMemory {
    next_chunk: Cell<u64>,
    pub(crate) total: Cell<u32>,
    pub(crate) promised: Cell<u32>,
    pub(crate) lent: RefCell<BTreeSet<u64>>,
    pub(crate) calls: Cell<u64>,
    /// Requests that are told to come again.
    pub(crate) busy: Cell<u32>,
}

impl Memory for FakeMemory {
    async fn capacity(&self) -> Result<CapacityReply> {
        let total = self.total.get();
        let lent = u32::try_from(self.lent.borrow().len()).unwrap();
        let free = total.saturating_sub(lent.max(self.promised.get()));
        Ok(CapacityReply { total, free })
    }
    async fn reserve(&self, chunks: u32) -> Result<()> {
        self.calls.set(self.calls.get() + 1);
        if chunks > self.total.get() {
            return Err(errno::ENOMEM.into());
        }
        self.promised.set(chunks);
        Ok(())
    }
    async fn lend(&self, _: u32, count: u16) -> Result<Lent> {
        self.calls.set(self.calls.get() + 1);
        if self.busy.get() > 0 {
            self.busy.set(self.busy.get() - 1);
            return Err(errno::EAGAIN.into());
        }
        let mut lent = Lent::new();
        for _ in 0..count {
            if self.lent.borrow().len() >= self.total.get() as usize {
                break;
            }
            let addr = self.next_chunk.replace(self.next_chunk.get() + CHUNK_SIZE);
            self.lent.borrow_mut().insert(addr);
            lent.push(verbs::RemoteAddr {
                addr,
                rkey: Rkey(9),
            })
            .unwrap();
        }
        if lent.is_empty() {
            return Err(errno::ENOMEM.into());
        }
        Ok(lent)
    }
    async fn give_back(&self, chunks: heapless::Vec<u64, MAX_CHUNKS>) -> Result<()> {
        self.calls.set(self.calls.get() + 1);
        for addr in &chunks {
            assert!(self.lent.borrow_mut().remove(addr), "{addr:#x} was lent");
        }
        Ok(())
    }
}

#[derive(Default)]
pub(crate) struct FakePlatform {
    pub(crate) clock: Rc<Cell<u64>>,
    /// Input that is left, and ends when it is taken.
    pub(crate) stdin: RefCell<Vec<u8>>,
    pub(crate) out: RefCell<Vec<(Output, Vec<u8>)>>,
    pub(crate) turns: Rc<Turns>,
}

impl Platform for FakePlatform {
    fn vdso(&self) -> crate::vdso::VdsoParts {
        crate::vdso::VdsoParts {
            code: &[0xc3],
            functions: vec![("time", 0)],
            data: vec![7],
        }
    }
    fn cpu(&self) -> crate::CpuFacts {
        crate::CpuFacts::default()
    }
    fn now(&self) -> Instant {
        // A program may sleep until the end of time.
        self.clock.set(self.clock.get().saturating_add(10));
        Instant::from_nanos(self.clock.get())
    }
    fn wall_clock(&self) -> Duration {
        Duration::from_secs(1_700_000_000) + Duration::from_nanos(self.clock.get())
    }
    fn random(&self, into: &mut [u8]) {
        into.fill(0x5a);
    }
    async fn sleep_until(&self, until: Instant) {
        // A wait, if a short one: who sleeps again and again is seen to wait.
        let mut slept = false;
        std::future::poll_fn(|_| {
            if std::mem::replace(&mut slept, true) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        self.clock.set(self.clock.get().max(until.nanos));
    }
    async fn yield_now(&self) {
        self.turns.next();
    }
}

/// A thread that only follows a script of traps; at its end it exits.
#[derive(Clone, Default)]
pub(crate) struct FakeCpu {
    registers: Registers,
    fs: u64,
    vectors: Vec<u8>,
    pub(crate) script: Vec<(Trap, SystemCall)>,
    call: SystemCall,
    pub(crate) results: Vec<u64>,
    /// Number of times that the thread's state was taken out of a core.
    pub(crate) left_cores: u32,
}

const RAX: usize = 13;
const RSP: usize = 15;
const RIP: usize = 16;

impl FakeCpu {
    pub(crate) fn sp(&self) -> u64 {
        self.registers[RSP]
    }
}

impl Cpu<FakeTables> for FakeCpu {
    fn new(ip: u64, sp: u64) -> Self {
        let mut registers = [0; REGISTERS];
        (registers[RIP], registers[RSP]) = (ip, sp);
        Self {
            registers,
            vectors: vec![0; 832],
            ..Self::default()
        }
    }
    fn duplicate(&mut self) -> Self {
        Self {
            script: Vec::new(),
            ..self.clone()
        }
    }
    fn leave_core(&mut self) {
        self.left_cores += 1;
    }
    fn run(&mut self, _: &FakeTables) -> Trap {
        if self.script.is_empty() {
            self.call = SystemCall {
                number: 60,
                args: [0; 6],
            };
            return Trap::Syscall;
        }
        let (trap, call) = self.script.remove(0);
        self.call = call;
        trap
    }
    fn system_call(&self) -> SystemCall {
        self.call
    }
    fn set_result(&mut self, result: u64) {
        self.registers[RAX] = result;
        self.results.push(result);
    }
    fn ip(&self) -> u64 {
        self.registers[RIP]
    }
    fn set_sp(&mut self, sp: u64) {
        self.registers[RSP] = sp;
    }
    fn registers(&self) -> Registers {
        self.registers
    }
    fn set_registers(&mut self, registers: &Registers) {
        self.registers = *registers;
    }
    fn vectors(&mut self) -> Vec<u8> {
        self.vectors.clone()
    }
    fn set_vectors(&mut self, state: &[u8]) -> bool {
        let len = self.vectors.len();
        self.vectors.copy_from_slice(&state[..len]);
        true
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

/// S, with a clock in front that tells when gathered writes are due.
pub(crate) type FakeStorage = Gathering<FakeFiles, Box<dyn Fn() -> Instant>>;

pub(crate) struct FakeNode {
    pub(crate) cache: Cache<FakeMachine>,
    pub(crate) supply: ChunkSupply,
    pub(crate) platform: FakePlatform,
    pub(crate) memory: FakeMemory,
    pub(crate) files: FakeStorage,
    pub(crate) kernel: Kernel<FakeNode>,
    /// Threads that were started and have not run.
    pub(crate) started: RefCell<Vec<Thread<FakeNode>>>,
    spaces: Cell<u32>,
}

impl Node for FakeNode {
    type Machine = FakeMachine;
    type Tables = FakeTables;
    type Cpu = FakeCpu;
    type Platform = FakePlatform;
    type Memory = FakeMemory;
    type Files = FakeStorage;
    fn cache(&self) -> &Cache<FakeMachine> {
        &self.cache
    }
    fn supply(&self) -> &ChunkSupply {
        &self.supply
    }
    fn new_tables(&self) -> Option<FakeTables> {
        self.spaces.set(self.spaces.get() + 1);
        Some(FakeTables::new(self.spaces.get()))
    }
    fn poll_pages(&self, _: Instant) -> bool {
        self.pump()
    }
    fn reads_ahead(&self) -> bool {
        true
    }
    fn platform(&self) -> &FakePlatform {
        &self.platform
    }
    fn memory(&self) -> &FakeMemory {
        &self.memory
    }
    fn files(&self) -> &FakeStorage {
        &self.files
    }
    fn kernel(&self) -> &Kernel<Self> {
        &self.kernel
    }
    fn cores(&self) -> usize {
        2
    }
    fn spawn(&'static self, thread: Thread<Self>, _: usize) {
        self.started.borrow_mut().push(thread);
    }
    fn kick(&self, _: usize) {}
    fn fail(&self, error: Error) {
        panic!("the node fails: {error}");
    }
}

impl FakeNode {
    /// A node with a cache of `lines` lines, an M of 64 chunks, and files.
    pub(crate) fn new(lines: u64, files: &[(&str, &[u8])]) -> &'static mut Self {
        let geometry = Geometry::new(lines * LINE_SIZE as u64, 4).unwrap();
        let bytes = (0..geometry.lines())
            .map(|_| vec![0xee; LINE_SIZE])
            .collect();
        let machine = FakeMachine {
            lines: Mutex::new(bytes),
            ..FakeMachine::default()
        };
        let turns = machine.turns.clone();
        let table = files
            .iter()
            .map(|(path, content)| (path.as_bytes().to_vec(), content.to_vec()))
            .collect();
        let clock = Rc::<Cell<u64>>::default();
        let ticks = clock.clone();
        let now = move || Instant::from_nanos(ticks.get());
        // Threads live as long as their node.
        Box::leak(Box::new(Self {
            cache: Cache::new(geometry, Config::default(), Chunks::new(10_000), machine),
            supply: ChunkSupply::default(),
            platform: FakePlatform {
                turns,
                clock,
                ..FakePlatform::default()
            },
            memory: FakeMemory {
                next_chunk: Cell::new(1 << 32),
                total: Cell::new(64),
                promised: Cell::new(0),
                lent: RefCell::default(),
                calls: Cell::new(0),
                busy: Cell::new(0),
            },
            files: Gathering::new(FakeFiles::new(table), Box::new(now)),
            kernel: Kernel::new(7, false, Randomize::Off),
            started: RefCell::default(),
            spaces: Cell::new(0),
        }))
    }

    /// Runs the threads that were started to their ends.
    pub(crate) fn run_started(&self) {
        loop {
            let Some(thread) = self.started.borrow_mut().pop() else {
                return;
            };
            self.block_on(thread.run());
        }
    }

    /// Returns how a process ended, if it did and nobody has asked.
    pub(crate) fn ended(&self, pid: u32) -> Option<Exit> {
        self.kernel
            .relation(pid, |relations| relations.ended)
            .ok()
            .flatten()
    }

    /// The program stores through its mapping; false if that faults.
    pub(crate) fn store(&self, tables: &FakeTables, addr: u64, byte: u8) -> bool {
        let Some(entry) = tables.entry(addr) else {
            return false;
        };
        let pte = pcache::Entry::load(entry);
        if !pte.permits(Access::Write) {
            return false;
        }
        // As the CPU does: accessed and dirty.
        pcache::Entry::exchange(entry, pte, Pte(pte.0 | 0x60)).unwrap();
        let line = self.cache.machine().line(pte.frame()).unwrap();
        let offset = usize::try_from(addr % 4096).unwrap();
        self.cache.machine().copy_in(line, offset, &[byte]);
        true
    }

    /// Ends the oldest transfer. False if there is none.
    fn pump(&self) -> bool {
        self.pump_console() || self.pump_page()
    }

    /// Plays the host of the console channel. False if there is nothing to do.
    pub(crate) fn pump_console(&self) -> bool {
        let (mut bytes, mut decoder) = (Vec::new(), Decoder::default());
        if !self.kernel.console.take_output(&mut bytes) {
            return false;
        }
        decoder.push(&bytes);
        while let Some(frame) = decoder.next_frame().unwrap() {
            let answer = match frame {
                Frame::Output(output, bytes) => {
                    self.platform.out.borrow_mut().push((output, bytes));
                    continue;
                }
                Frame::Want(_) if self.platform.stdin.borrow().is_empty() => Frame::InputEnd(0),
                Frame::Want(_) => Frame::Input(self.platform.stdin.take()),
                _ => continue,
            };
            self.send(&answer);
        }
        true
    }

    /// Sends P a frame.
    pub(crate) fn send(&self, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.kernel.console.take(&bytes).unwrap();
    }

    /// Ends the oldest page transfer. False if there is none.
    fn pump_page(&self) -> bool {
        let machine = self.cache.machine();
        let mut transfers = machine.transfers.lock().unwrap();
        if transfers.is_empty() {
            return false;
        }
        let (line, at, write) = transfers.remove(0);
        drop(transfers);
        let (mut lines, mut remote) = (
            machine.lines.lock().unwrap(),
            machine.remote.lock().unwrap(),
        );
        let here = &mut lines[line.0 as usize];
        // Into what is there: a test counts the allocations of a miss.
        if write {
            remote.entry(at.addr).or_default().clone_from(here);
        } else {
            here.clone_from(&remote[&at.addr]);
        }
        drop((lines, remote));
        self.cache.complete(line, Ok(())).unwrap();
        true
    }

    /// Ends all transfers.
    pub(crate) fn drain(&self) {
        while self.pump() {}
    }

    /// Runs `future` to its end.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.drive(future, 1000).expect("something ends the wait")
    }

    /// Runs `future` to its end; `None`, and without it, when it waits for what does not come.
    pub(crate) fn try_block_on<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        self.drive(future, 2)
    }

    /// Polls until the end, or until `patience` polls have seen no transfer.
    fn drive<T>(&self, future: impl Future<Output = T>, patience: u32) -> Option<T> {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        let mut idle = 0;
        while idle < patience {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return Some(value);
            }
            self.platform.turns.next();
            idle = if self.pump() { 0 } else { idle + 1 };
        }
        None
    }
}

/// The errno of a call that failed.
pub(crate) fn errno_of<T>(result: Result<T>) -> Option<Errno> {
    match result {
        Err(Error::Errno(errno)) => Some(errno),
        _ => None,
    }
}
