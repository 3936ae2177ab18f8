//! State that all processes have in common: their table, futexes, files to be closed, cores' loads.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use console::Output;
use messages::storage::FileId;
use spin::{Mutex, Once};

use crate::console::Console;
use crate::cores::Cores;
use crate::error::{Error, Exit, Result, errno};
use crate::futex::Futexes;
use crate::inotify::Watches;
use crate::ipc::Ipc;
use crate::jobs::ChildChange;
use crate::leased::Leases;
use crate::locks::Locks;
use crate::mm::Space;
use crate::mm::file_cache::FileCache;
use crate::mm::layout::{Layout, Layouts, Randomize};
use crate::mm::object::Object;
use crate::pipe::UserPages;
use crate::platform::{Files, Platform};
use crate::process::{Node, Process};
use crate::socket::Net;
use crate::storage::{Changes, NamedPipes};
use crate::strace::{Tallies, summary};
use crate::terminal::Terminals;
use crate::texts::Texts;
use crate::timer::Timers;
use crate::tmpfs::Tmpfs;
use crate::vdso;
use crate::wait::WaitQueue;

/// The first process: a run lasts as long as it does, and orphans are its children.
pub const FIRST: u32 = 1;
/// The highest number of a process or thread (Linux's `PID_MAX_DEFAULT`).
pub(crate) const MAX_PID: u32 = 32_768;
/// Threads of all processes together, at most. A thread takes some 12 KB of the kernel's heap,
/// which ends the node when it is used up: 10,000 threads of one program did that on a P of 384
/// MB.
pub(crate) const MAX_THREADS: usize = 4096;

/// The node's processes.
pub struct Kernel<N: Node> {
    pub(crate) tree: Mutex<Tree<N>>,
    pub(crate) futexes: Futexes,
    timers: Arc<Timers>,
    tmpfs: Once<Tmpfs<N>>,
    /// The pages of the vDSO.
    vdso: Mutex<Option<Arc<Object>>>,
    pub(crate) file_cache: Mutex<FileCache>,
    /// Leases of files of S.
    pub(crate) leases: Leases,
    pub(crate) named_pipes: NamedPipes,
    pub(crate) texts: Arc<Texts>,
    /// The pages that users' pipes may come to hold.
    pub(crate) pipe_pages: Arc<UserPages>,
    pub(crate) closing: Arc<Closing>,
    pub(crate) changes: Changes,
    pub(crate) cores: Cores,
    pub(crate) net: Arc<Net>,
    pub(crate) locks: Arc<Locks>,
    /// System V's shared memory, semaphores and message queues.
    pub(crate) ipc: Ipc,
    /// Woken when a process has ended.
    pub(crate) process_ended: WaitQueue,
    unimplemented: Mutex<BTreeMap<u64, u64>>,
    /// The address and instruction of the fault that ended the first process.
    fatal: Mutex<(u64, u64)>,
    faults: AtomicU64,
    /// The name that `uname` tells of the node.
    pub(crate) host_name: Mutex<Vec<u8>>,
    /// CPUID leaf 1, `edx`, for programs to see.
    pub(crate) hwcap: u64,
    /// The program's streams.
    pub(crate) console: Arc<Console>,
    /// Terminals, and the signals that they cause.
    pub(crate) terminals: Arc<Terminals>,
    /// Trace each system call.
    pub(crate) strace: bool,
    pub(crate) layouts: Layouts,
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
    pub(crate) group: u32,
    pub(crate) session: u32,
    /// The signal that tells the parent of the end; 0 for none.
    pub(crate) exit_signal: u8,
    pub(crate) ended: Option<Exit>,
    /// A stop, or a going on, that the parent has not asked for.
    pub(crate) news: Option<ChildChange>,
}

/// Files of S that nothing uses any more: closing is a call to S, which the drop of a file can't
/// make.
#[derive(Debug, Default)]
pub(crate) struct Closing {
    files: Mutex<Vec<FileId>>,
    /// Addresses and lengths of files of this node's own, in the kernel's space.
    regions: Mutex<Vec<(u64, u64)>>,
    /// Closed files of this node's own, while something is watched.
    closed: Mutex<Vec<Closed>>,
    /// The inotify watches.
    pub(crate) watches: Arc<Watches>,
    count: AtomicU32,
    /// Something is to be freed at once.
    hurried: AtomicBool,
    wanted: WaitQueue,
}

/// A file that was closed: its inode, the path that opened it, and whether it could be written.
#[derive(Debug)]
pub(crate) struct Closed {
    pub(crate) inode: u64,
    pub(crate) path: Vec<u8>,
    pub(crate) wrote: bool,
}

impl Closing {
    /// Notes the end of an open file of this node's own, for those who watch it.
    pub(crate) fn add_closed(&self, closed: Closed) {
        self.closed.lock().push(closed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn take_closed(&self) -> Option<Closed> {
        let mut closed = self.closed.lock();
        if closed.is_empty() {
            return None;
        }
        let first = closed.remove(0);
        self.count.fetch_sub(1, Ordering::Relaxed);
        Some(first)
    }

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

    /// Frees what is not used any more at once, not with the next end of a call.
    pub(crate) fn hurry(&self) {
        self.hurried.store(true, Ordering::Release);
        self.wanted.wake();
    }

    /// Returns whether there is something to close.
    pub(crate) fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }
}

impl<N: Node> Kernel<N> {
    /// Returns a kernel without processes. `hwcap` is CPUID leaf 1, `edx`; with `strace` each
    /// system call is logged; `randomize` says how address spaces are laid out.
    #[must_use]
    pub fn new(hwcap: u64, strace: bool, randomize: Randomize) -> Self {
        let terminals = Arc::<Terminals>::default();
        Self {
            tree: Mutex::new(Tree {
                processes: BTreeMap::new(),
                last: 0,
            }),
            futexes: Futexes::default(),
            timers: Arc::default(),
            tmpfs: Once::new(),
            vdso: Mutex::default(),
            file_cache: Mutex::default(),
            leases: Leases::default(),
            named_pipes: NamedPipes::default(),
            texts: Arc::default(),
            pipe_pages: Arc::default(),
            closing: Arc::default(),
            changes: Changes::default(),
            cores: Cores::default(),
            net: Arc::default(),
            locks: Arc::default(),
            ipc: Ipc::default(),
            process_ended: WaitQueue::default(),
            unimplemented: Mutex::default(),
            fatal: Mutex::default(),
            faults: AtomicU64::new(0),
            host_name: Mutex::new(b"tessera".to_vec()),
            hwcap,
            console: Arc::new(Console::new(terminals.clone())),
            terminals,
            strace,
            layouts: Layouts::new(randomize),
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
            self.console
                .write_all(Output::Trace, summary.as_bytes())
                .await;
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
        self.tmpfs.call_once(|| {
            Tmpfs::new(
                Space::new(node, 0, tables, Layout::FIXED),
                now,
                self.closing.clone(),
            )
        });
        let parts = node.platform().vdso();
        if !parts.functions.is_empty() && self.vdso().is_none() {
            let pages = vdso::make(self.tmpfs().space(), &parts).await?;
            *self.vdso.lock() = Some(pages);
        }
        self.tmpfs().look_below(node).await
    }

    /// Returns the pages of the vDSO, if the machine has one.
    pub(crate) fn vdso(&self) -> Option<Arc<Object>> {
        self.vdso.lock().clone()
    }

    /// Returns the file systems of this node's own.
    pub(crate) fn tmpfs(&self) -> &Tmpfs<N> {
        self.tmpfs.get().expect("made with the first process")
    }

    /// Returns the armed timers.
    pub(crate) fn timers(&self) -> &Arc<Timers> {
        &self.timers
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
        counts
            .iter()
            .map(|(&number, &count)| (number, count))
            .collect()
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
        while let Some(closed) = self.closing.take_closed() {
            self.tmpfs().was_closed(&closed);
        }
        while let Some((start, len)) = self.closing.take_region() {
            self.tmpfs().free(start, len).await?;
        }
        Ok(())
    }

    /// Frees what is not used any more whenever memory is short, for ever.
    ///
    /// # Errors
    ///
    /// When M or S is lost.
    pub async fn keep_files(&self, node: &N) -> Result<()> {
        let closing = &self.closing;
        let hurried = || closing.hurried.swap(false, Ordering::AcqRel).then_some(());
        loop {
            closing.wanted.until(hurried).await;
            self.close_files(node).await?;
        }
    }

    /// Returns a process that has not been waited for.
    pub fn process(&self, pid: u32) -> Option<Arc<Process<N>>> {
        let tree = self.tree.lock();
        tree.processes
            .get(&pid)
            .map(|relations| relations.process.clone())
    }

    /// Returns the numbers of all processes, of those too that have ended and nobody has asked how.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.tree.lock().processes.keys().copied().collect()
    }

    /// Returns how many threads run now, and how many there are.
    pub(crate) fn count_threads(&self) -> (usize, usize) {
        let (mut running, mut all) = (0, 0);
        for process in self.living() {
            let threads = process.threads.lock();
            all += threads.len();
            running += threads
                .values()
                .filter(|thread| thread.time.is_running())
                .count();
        }
        (running, all)
    }

    /// Returns the number that was given last.
    pub(crate) fn last_id(&self) -> u32 {
        self.tree.lock().last
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
        let kept = (self.file_cache.lock().clear(), self.vdso.lock().take());
        drop(kept);
        self.close_files(node).await?;
        // What programs wrote outlives the run, whether or not they asked for it.
        if self.changes.take() {
            match node.files().sync().await {
                Err(Error::Errno(errno)) => {
                    log::error!("S can't make what was written durable: {errno}")
                }
                synced => synced?,
            }
        }
        self.ipc.end(node).await;
        self.tmpfs().end().await?;
        node.supply().settle(node).await?;
        Ok(exit)
    }
}

impl<N: Node> Tree<N> {
    /// Returns how many threads run as a user.
    pub(crate) fn owned_by(&self, user: u32) -> u64 {
        let count = |relations: &Relations<N>| {
            let threads = relations.process.threads.lock();
            let owned = threads
                .values()
                .filter(|thread| thread.creds().user.real == user);
            owned.count() as u64
        };
        self.processes.values().map(count).sum()
    }

    /// Returns how many threads there are.
    pub(crate) fn threads(&self) -> usize {
        let count = |relations: &Relations<N>| relations.process.threads.lock().len();
        self.processes.values().map(count).sum()
    }

    /// Returns a number that no process, thread or group has.
    pub(crate) fn new_id(&mut self) -> Result<u32> {
        for _ in 0..MAX_PID {
            self.last = if self.last >= MAX_PID {
                2
            } else {
                self.last + 1
            };
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
