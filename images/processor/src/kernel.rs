//! State that all processes have in common: their table, futexes, files to be closed, cores' loads.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use console::Output;
use messages::storage::FileId;
use spin::{Mutex, Once};

use crate::console::Console;
use crate::error::{Exit, Result, errno};
use crate::futex::Futexes;
use crate::jobs::News;
use crate::mm::Space;
use crate::mm::file::FileCache;
use crate::platform::{Files, Platform};
use crate::process::{Node, Process};
use crate::strace::{Tallies, summary};
use crate::terminal::Terminals;
use crate::tmpfs::Tmpfs;
use crate::wait::WaitQueue;

/// Cores that threads are counted for.
const MAX_CORES: usize = 256;
/// The first process: a run lasts as long as it does, and orphans are its children.
pub const FIRST: u32 = 1;
/// The highest number of a process or thread (Linux's `PID_MAX_DEFAULT`).
const MAX_PID: u32 = 32_768;

/// The node's processes.
pub struct Kernel<N: Node> {
    pub(crate) tree: Mutex<Tree<N>>,
    pub(crate) futexes: Futexes,
    tmpfs: Once<Tmpfs<N>>,
    pub(crate) file_cache: Mutex<FileCache>,
    pub(crate) closing: Arc<Closing>,
    loads: [AtomicU32; MAX_CORES],
    /// Woken when a process has ended.
    pub(crate) process_ended: WaitQueue,
    unimplemented: Mutex<BTreeMap<u64, u64>>,
    /// The address and instruction of the fault that ended the first process.
    fatal: Mutex<(u64, u64)>,
    faults: AtomicU64,
    /// CPUID leaf 1, `edx`, for programs to see.
    pub(crate) hwcap: u64,
    /// The program's streams.
    pub(crate) console: Arc<Console>,
    /// Terminals, and the signals that they cause.
    pub(crate) terminals: Arc<Terminals>,
    /// Trace each system call.
    pub(crate) strace: bool,
    /// The calls traced.
    pub(crate) tallies: Mutex<Tallies>,
}

/// The processes, how they are related, and the numbers in use.
pub(crate) struct Tree<N: Node> {
    pub(crate) processes: BTreeMap<u32, Relations<N>>,
    last: u32,
}

/// A process among others. It stays after its end until its parent has asked how it ended.
pub(crate) struct Relations<N: Node> {
    pub(crate) process: Arc<Process<N>>,
    pub(crate) parent: u32,
    pub(crate) group: u32,
    pub(crate) session: u32,
    /// The signal that tells the parent of the end; 0 for none.
    pub(crate) exit_signal: u8,
    pub(crate) ended: Option<Exit>,
    /// A stop, or a going on, that the parent has not asked for.
    pub(crate) news: Option<News>,
}

/// Files of S that nothing uses any more: closing is a call to S, which the drop of a file can't make.
#[derive(Debug, Default)]
pub(crate) struct Closing {
    files: Mutex<Vec<FileId>>,
    /// Addresses and lengths of files of this node's own, in the kernel's space.
    regions: Mutex<Vec<(u64, u64)>>,
    count: AtomicU32,
}

impl Closing {
    pub(crate) fn add(&self, file: FileId) {
        self.files.lock().push(file);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_region(&self, start: u64, len: u64) {
        self.regions.lock().push((start, len));
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn take_region(&self) -> Option<(u64, u64)> {
        let region = self.regions.lock().pop()?;
        self.count.fetch_sub(1, Ordering::Relaxed);
        Some(region)
    }

    fn take_file(&self) -> Option<FileId> {
        let file = self.files.lock().pop()?;
        self.count.fetch_sub(1, Ordering::Relaxed);
        Some(file)
    }

    /// Returns whether there is something to close.
    pub(crate) fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }
}

impl<N: Node> Kernel<N> {
    /// Returns a kernel without processes. `hwcap` is CPUID leaf 1, `edx`; with `strace` each system
    /// call is logged.
    #[must_use]
    pub fn new(hwcap: u64, strace: bool) -> Self {
        let terminals = Arc::<Terminals>::default();
        Self {
            tree: Mutex::new(Tree {
                processes: BTreeMap::new(),
                last: 0,
            }),
            futexes: Futexes::default(),
            tmpfs: Once::new(),
            file_cache: Mutex::default(),
            closing: Arc::default(),
            loads: [const { AtomicU32::new(0) }; MAX_CORES],
            process_ended: WaitQueue::default(),
            unimplemented: Mutex::default(),
            fatal: Mutex::default(),
            faults: AtomicU64::new(0),
            hwcap,
            console: Arc::new(Console::new(terminals.clone())),
            terminals,
            strace,
            tallies: Mutex::default(),
        }
    }

    /// Returns whether there has been more than one process or thread.
    pub(crate) fn had_several(&self) -> bool {
        self.tree.lock().last > FIRST
    }

    /// Writes the summary of the trace, if there is one.
    pub async fn end_trace(&self) {
        if self.strace {
            let summary = summary(&self.tallies.lock());
            self.console.write_all(Output::Trace, summary.as_bytes()).await;
        }
    }

    /// Returns the program's streams.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Makes the file systems of this node's own.
    pub(crate) async fn begin(&self, node: &'static N) -> Result<()> {
        let tables = node.new_tables().ok_or(errno::ENOMEM)?;
        let now = node.platform().wall_clock();
        self.tmpfs
            .call_once(|| Tmpfs::new(Space::new(node, 0, tables), now, self.closing.clone()));
        self.tmpfs().look_below(node).await
    }

    /// Returns the file systems of this node's own.
    pub(crate) fn tmpfs(&self) -> &Tmpfs<N> {
        self.tmpfs.get().expect("made with the first process")
    }

    /// Returns the page faults of processes that have ended.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    pub(crate) fn add_faults(&self, faults: u64) {
        self.faults.fetch_add(faults, Ordering::Relaxed);
    }

    /// Returns the address and the instruction of the fault that ended the first process.
    #[must_use]
    pub fn fatal(&self) -> (u64, u64) {
        *self.fatal.lock()
    }

    pub(crate) fn note_fatal(&self, addr: u64, ip: u64) {
        *self.fatal.lock() = (addr, ip);
    }

    /// Returns the system calls answered by ENOSYS, and how often.
    #[must_use]
    pub fn unimplemented(&self) -> Vec<(u64, u64)> {
        let counts = self.unimplemented.lock();
        counts.iter().map(|(&number, &count)| (number, count)).collect()
    }

    pub(crate) fn count_unimplemented(&self, number: u64) {
        // A program may try any number: the table stays bounded by those that Linux has.
        let known = crate::system_call_name(number).map_or(u64::MAX, |_| number);
        *self.unimplemented.lock().entry(known).or_default() += 1;
    }

    /// Closes the files of S that nothing uses any more.
    pub(crate) async fn close_files(&self, node: &N) -> Result<()> {
        while let Some(file) = self.closing.take_file() {
            node.files().close(file).await?;
        }
        while let Some((start, len)) = self.closing.take_region() {
            self.tmpfs().free(start, len).await?;
        }
        Ok(())
    }

    /// Chooses the core with the fewest threads for one more.
    pub(crate) fn choose_core(&self, cores: usize) -> usize {
        let load = |core: &usize| self.loads[*core].load(Ordering::Relaxed);
        let core = (0..cores.clamp(1, MAX_CORES)).min_by_key(load).unwrap_or(0);
        self.loads[core].fetch_add(1, Ordering::Relaxed);
        core
    }

    /// Returns how many threads a core has.
    pub(crate) fn threads_on(&self, core: usize) -> u32 {
        self.loads[core % MAX_CORES].load(Ordering::Relaxed)
    }

    pub(crate) fn leave_core(&self, core: usize) {
        self.loads[core % MAX_CORES].fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns a process that has not been waited for.
    pub fn process(&self, pid: u32) -> Option<Arc<Process<N>>> {
        let tree = self.tree.lock();
        tree.processes
            .get(&pid)
            .map(|relations| relations.process.clone())
    }

    /// Returns the process that a thread belongs to.
    pub(crate) fn process_of(&self, tid: u32) -> Option<Arc<Process<N>>> {
        if let Some(process) = self.process(tid) {
            return Some(process);
        }
        let tree = self.tree.lock();
        let has = |relations: &&Relations<N>| relations.process.threads.lock().contains_key(&tid);
        tree.processes
            .values()
            .find(has)
            .map(|relations| relations.process.clone())
    }

    /// Asks for something of a process's relations.
    ///
    /// # Errors
    ///
    /// ESRCH if there is no such process.
    pub(crate) fn relation<T>(&self, pid: u32, ask: impl FnOnce(&Relations<N>) -> T) -> Result<T> {
        let tree = self.tree.lock();
        tree.processes
            .get(&pid)
            .map(ask)
            .ok_or_else(|| errno::ESRCH.into())
    }

    /// Returns all processes that have not ended.
    pub(crate) fn living(&self) -> Vec<Arc<Process<N>>> {
        let tree = self.tree.lock();
        let living = tree
            .processes
            .values()
            .filter(|relations| relations.ended.is_none());
        living.map(|relations| relations.process.clone()).collect()
    }

    /// Waits for the first process's end; the others are killed then. Returns how it ended.
    pub async fn finish(&self, node: &N) -> Result<Exit> {
        let first = || {
            let tree = self.tree.lock();
            tree.processes.get(&FIRST).and_then(|first| first.ended)
        };
        let exit = self.process_ended.until(first).await;
        self.living()
            .iter()
            .for_each(|process| process.end(Exit::Signal(9)));
        let none = || self.living().is_empty().then_some(());
        self.process_ended.until(none).await;
        let kept = self.file_cache.lock().clear();
        drop(kept);
        self.close_files(node).await?;
        self.tmpfs().end().await?;
        node.supply().settle(node).await?;
        Ok(exit)
    }
}

impl<N: Node> Tree<N> {
    /// Returns a number that no process, thread or group has.
    pub(crate) fn new_id(&mut self) -> Result<u32> {
        for _ in 0..MAX_PID {
            self.last = if self.last >= MAX_PID { 2 } else { self.last + 1 };
            let id = self.last;
            let used = |relations: &Relations<N>| {
                relations.group == id
                    || relations.session == id
                    || relations.process.threads.lock().contains_key(&id)
            };
            if !self.processes.contains_key(&id) && !self.processes.values().any(used) {
                return Ok(id);
            }
        }
        Err(errno::EAGAIN.into())
    }
}
