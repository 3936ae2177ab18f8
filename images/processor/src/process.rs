//! Processes: what the threads of a program share beside memory and files, and how processes are
//! related.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use hal::Instant;
use pcache::{Cache, Machine};
use spin::Mutex;

use crate::cpu_time::ProcessTime;
use crate::error::Exit;
use crate::kernel::Kernel;
use crate::limits::Limits;
use crate::mm::supply::ChunkSupply;
use crate::mm::{Space, Tables};
use crate::pidfd::Lifetime;
use crate::platform::{Cpu, Files, Memory, Platform};
use crate::signals::{Pending, SIGCONT, SIGKILL, STOPS, SignalInfo, bit};
use crate::texts::Use;
use crate::thread::{Shared, Thread};
use crate::timer::ProcessTimers;
use crate::wait::WaitQueue;

/// Everything that processes reach beyond themselves.
pub trait Node: Sized + 'static {
    /// Lines, shootdowns, one-sided transfers.
    type Machine: Machine;
    /// The page tables of one address space.
    type Tables: Tables<Entry = <Self::Machine as Machine>::Entry>;
    /// A thread as the CPU sees it.
    type Cpu: Cpu<Self::Tables>;
    /// Clock, RNG, console.
    type Platform: Platform;
    /// M.
    type Memory: Memory;
    /// S.
    type Files: Files;
    /// Returns the cache.
    fn cache(&self) -> &Cache<Self::Machine>;
    /// Returns the chunks and promises that this node has of M.
    fn supply(&self) -> &ChunkSupply;
    /// Makes the page tables of a new address space; `None` when there is no memory for them.
    fn new_tables(&self) -> Option<Self::Tables>;
    /// Looks once for pages that have come; false if the task had better let others run.
    fn poll_pages(&self, now: Instant) -> bool;
    /// Returns whether readahead is on.
    fn reads_ahead(&self) -> bool;
    /// Returns the machine.
    fn platform(&self) -> &Self::Platform;
    /// Returns M.
    fn memory(&self) -> &Self::Memory;
    /// Returns S.
    fn files(&self) -> &Self::Files;
    /// Returns the processes and what they have in common.
    fn kernel(&self) -> &Kernel<Self>;
    /// Returns how many cores run threads.
    fn cores(&self) -> usize;
    /// Runs a thread on a core, to its end.
    fn spawn(&'static self, thread: Thread<Self>, core: usize);
    /// Calls a core out of user mode, so that its thread looks for signals.
    fn kick(&self, core: usize);
    /// Ends the node: it cannot go on.
    fn fail(&self, error: crate::Error);
}

/// `ADDR_NO_RANDOMIZE` (Linux `include/uapi/linux/personality.h`).
const NO_RANDOMIZE: u32 = 0x4_0000;
/// `PER_CLEAR_ON_SETID`: with it READ_IMPLIES_EXEC, ADDR_COMPAT_LAYOUT and MMAP_PAGE_ZERO.
const CLEARED_WITH_RIGHTS: u32 = NO_RANDOMIZE | 0x40_0000 | 0x20_0000 | 0x10_0000;

/// A process: a group of threads.
pub struct Process<N: Node> {
    pub(crate) node: &'static N,
    pub(crate) pid: u32,
    /// The parent's number; changes under the lock of the tree of processes.
    parent: AtomicU32,
    pub(crate) started: Instant,
    /// The threads that have not ended, by number.
    pub(crate) threads: Mutex<BTreeMap<u32, Arc<Shared>>>,
    /// Signals for whichever thread takes them.
    pub(crate) pending: Mutex<Pending>,
    ending: Mutex<Ending>,
    /// The process is stopped, by job control.
    stopped: AtomicBool,
    /// Woken when a thread has ended.
    pub(crate) fewer_threads: WaitQueue,
    /// Woken when a child has ended.
    pub(crate) children_changed: WaitQueue,
    /// The address space, while there is one.
    pub(crate) memory: Mutex<Option<Arc<Space<'static, N>>>>,
    /// The last word that `personality` was told (Linux `include/uapi/linux/personality.h`).
    pub(crate) personality: AtomicU32,
    pub(crate) exec_path: Mutex<Vec<u8>>,
    /// Keeps writers away from the program's file.
    pub(crate) text: Mutex<Option<Use>>,
    /// Arguments and environment of the program, each string with its final zero.
    pub(crate) arguments: Mutex<(Vec<u8>, Vec<u8>)>,
    pub(crate) limits: Mutex<Limits>,
    pub(crate) timers: Mutex<ProcessTimers>,
    /// Overruns that the last signals of timers told of, by timer.
    pub(crate) overruns: Mutex<BTreeMap<i32, u64>>,
    pub(crate) cpu_time: ProcessTime,
    /// Woken at each signal, for files that signals are read from.
    pub(crate) signalled: Arc<WaitQueue>,
    /// Its exit status, for pidfds.
    pub(crate) lifetime: Arc<Lifetime>,
}

/// The threads that are to end.
#[derive(Default)]
struct Ending {
    /// All, and this is the process's end.
    exit: Option<Exit>,
    /// All but this one, which runs another program then.
    but: Option<u32>,
}

impl<N: Node> Process<N> {
    pub(crate) fn new(node: &'static N, pid: u32, parent: u32) -> Self {
        Self {
            node,
            pid,
            parent: AtomicU32::new(parent),
            started: node.platform().now(),
            threads: Mutex::default(),
            pending: Mutex::default(),
            ending: Mutex::default(),
            stopped: AtomicBool::new(false),
            fewer_threads: WaitQueue::default(),
            children_changed: WaitQueue::default(),
            memory: Mutex::new(None),
            personality: AtomicU32::new(0),
            exec_path: Mutex::default(),
            text: Mutex::default(),
            arguments: Mutex::default(),
            limits: Mutex::default(),
            timers: Mutex::default(),
            overruns: Mutex::default(),
            cpu_time: ProcessTime::default(),
            signalled: Arc::default(),
            lifetime: Arc::default(),
        }
    }

    /// Returns the process's number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns what `personality` was told.
    pub(crate) fn personality(&self) -> u32 {
        self.personality.load(Ordering::Relaxed)
    }

    /// Returns whether the next program's memory is not to be randomized.
    pub(crate) fn has_fixed_layout(&self) -> bool {
        self.personality() & NO_RANDOMIZE != 0
    }

    /// Forgets what a program with its owner's rights is not to inherit.
    pub(crate) fn clear_personality(&self) {
        self.personality
            .fetch_and(!CLEARED_WITH_RIGHTS, Ordering::Relaxed);
    }

    /// Returns the parent's number.
    pub(crate) fn parent(&self) -> u32 {
        self.parent.load(Ordering::Relaxed)
    }

    /// Makes the process another one's child. Called with the tree of processes locked.
    pub(crate) fn set_parent(&self, parent: u32) {
        self.parent.store(parent, Ordering::Relaxed);
    }

    /// Returns the time at which it began.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Returns the name that the program's file gives the process.
    pub(crate) fn last_name(&self) -> Vec<u8> {
        let path = self.exec_path.lock();
        let name = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
        name[..name.len().min(15)].to_vec()
    }

    /// Ends all threads; the first call says how the process ended.
    pub(crate) fn end(&self, exit: Exit) {
        self.ending.lock().exit.get_or_insert(exit);
        self.call_all();
    }

    /// Ends all threads but `tid`; false if another thread asked first, or the process ends.
    pub(crate) fn end_others(&self, tid: u32) -> bool {
        {
            let mut ending = self.ending.lock();
            if ending.exit.is_some() || ending.but.is_some() {
                return false;
            }
            ending.but = Some(tid);
        }
        self.call_all();
        true
    }

    /// Lets threads live again, after [`end_others`](Self::end_others).
    pub(crate) fn others_ended(&self) {
        self.ending.lock().but = None;
    }

    /// Returns how the process ends, if it is about to.
    pub(crate) fn ends(&self) -> Option<Exit> {
        self.ending.lock().exit
    }

    /// Returns whether a thread is to end.
    pub(crate) fn must_end(&self, tid: u32) -> bool {
        let ending = self.ending.lock();
        ending.exit.is_some() || ending.but.is_some_and(|but| but != tid)
    }

    /// Returns whether the process is stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Notes that the process is stopped, or goes on; false if it was so before.
    pub(crate) fn set_stopped(&self, stopped: bool) -> bool {
        self.stopped.swap(stopped, Ordering::SeqCst) != stopped
    }

    pub(crate) fn call_all(&self) {
        let threads: Vec<_> = self.threads.lock().values().cloned().collect();
        threads.iter().for_each(|thread| thread.call(self.node));
    }

    /// Forgets signals that wait.
    fn forget(&self, threads: &[Arc<Shared>], signals: u64) {
        self.pending.lock().discard(signals);
        threads
            .iter()
            .for_each(|thread| thread.pending.lock().discard(signals));
    }

    /// Sends a signal to whichever thread takes it. Takes the lock of the tree of processes if the
    /// signal [changes jobs](crate::signals::changes_jobs).
    pub(crate) fn send(&self, info: SignalInfo) {
        let threads: Vec<_> = self.threads.lock().values().cloned().collect();
        let Some(first) = threads.first() else { return };
        match info.signal {
            SIGCONT => {
                self.forget(&threads, STOPS);
                self.resume(true);
            }
            // A stopped process dies like any other.
            SIGKILL => self.resume(false),
            signal if STOPS & bit(signal) != 0 => self.forget(&threads, bit(SIGCONT)),
            _ => {}
        }
        let takes = |thread: &&Arc<Shared>| !thread.masks(info.signal);
        let taker = threads.iter().find(takes);
        let at_once = taker.is_some_and(|taker| !taker.awaits(info.signal));
        if at_once && first.ignores(info.signal) {
            return;
        }
        if at_once && first.stops(info.signal) {
            self.stop(info.signal);
            return;
        }
        self.pending.lock().add(info);
        self.signalled.wake();
        if let Some(thread) = taker {
            thread.call(self.node);
        }
    }

    /// Sends a signal to one thread.
    pub(crate) fn send_thread(&self, thread: &Shared, info: SignalInfo) {
        thread.send(self.node, info);
        self.signalled.wake();
    }
}
