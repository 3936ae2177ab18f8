//! Threads: registers, mask and memory of one, and its life from the first instruction to the end.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::future::poll_fn;
use core::ops::Deref;
use core::pin::pin;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use core::task::{Poll, Waker};

use pcache::{Access, Prefetcher};
use spin::{Mutex, MutexGuard};

use crate::cpu_time::ThreadTime;
use crate::creds::Creds;
use crate::error::{Error, Exit, Result, errno};
use crate::files::{Fs, Table};
use crate::jobs::child_info;
use crate::kernel::FIRST;
use crate::locks::Owner;
use crate::mm::Space;
use crate::mm::fault::ImmediateResult;
use crate::platform::{Cpu, Platform, Trap};
use crate::process::{Node, Process};
use crate::rseq::Registration;
use crate::signals::{Actions, Pending, SIGCHLD, SIGKILL, SignalInfo, changes_jobs, number};
use crate::syscall::now::Taken;
use crate::timer::ProcessTimers;
use crate::wait::WaitQueue;

/// The open files and the folder of a thread, for those who look at it. A thread that has ended has
/// none.
#[derive(Clone, Default)]
pub(crate) struct Places {
    pub(crate) files: Weak<Mutex<Table>>,
    pub(crate) fs: Weak<Mutex<Fs>>,
}

/// The part of a thread that others reach.
pub(crate) struct Shared {
    tid: AtomicU32,
    core: AtomicUsize,
    /// The cores that the thread may run on, a bit each.
    affinity: AtomicU64,
    /// Blocked signals.
    mask: AtomicU64,
    /// Signals that were blocked and that the thread waits for.
    awaited: AtomicU64,
    /// The head of the list of robust futexes (`set_robust_list`).
    pub(crate) robust_list: AtomicU64,
    /// The thread ends and has left its locks: nobody may wait for it any more. Written with the
    /// states of locks locked.
    pub(crate) left_locks: AtomicBool,
    /// Signals for this thread alone.
    pub(crate) pending: Mutex<Pending>,
    actions: Mutex<Arc<Mutex<Actions>>>,
    /// There may be signals to take, or the thread is to end: looked at before the program goes on.
    attention: AtomicBool,
    /// The CPU runs the program, or is about to.
    in_user: AtomicBool,
    pub(crate) time: ThreadTime,
    creds: Mutex<Arc<Creds>>,
    nice: AtomicI32,
    /// The scheduling policy and its static priority, which are only reported.
    policy: Mutex<(u32, u32)>,
    /// The name that `prctl` sets, and `/proc` shows.
    pub(crate) name: Mutex<Vec<u8>>,
    /// The thread has registered an area of restartable sequences.
    pub(crate) has_rseq: AtomicBool,
    places: Mutex<Places>,
    /// Wakes the thread out of a wait that a signal may end.
    waker: Mutex<Option<Waker>>,
}

impl Shared {
    pub(crate) fn new(
        tid: u32,
        core: usize,
        mask: u64,
        actions: Arc<Mutex<Actions>>,
        creds: Arc<Creds>,
    ) -> Self {
        Self {
            creds: Mutex::new(creds),
            nice: AtomicI32::new(0),
            policy: Mutex::default(),
            name: Mutex::default(),
            tid: AtomicU32::new(tid),
            core: AtomicUsize::new(core),
            affinity: AtomicU64::new(u64::MAX),
            mask: AtomicU64::new(mask),
            awaited: AtomicU64::new(0),
            robust_list: AtomicU64::new(0),
            left_locks: AtomicBool::new(false),
            pending: Mutex::default(),
            actions: Mutex::new(actions),
            attention: AtomicBool::new(false),
            in_user: AtomicBool::new(false),
            has_rseq: AtomicBool::new(false),
            places: Mutex::default(),
            time: ThreadTime::default(),
            waker: Mutex::default(),
        }
    }

    /// Returns the thread's number.
    pub(crate) fn tid(&self) -> u32 {
        self.tid.load(Ordering::Relaxed)
    }

    /// Changes the thread's number: that of a new program is its process's.
    pub(crate) fn set_tid(&self, tid: u32) {
        self.tid.store(tid, Ordering::Relaxed);
    }

    /// Returns the thread's identity.
    pub(crate) fn creds(&self) -> Arc<Creds> {
        self.creds.lock().clone()
    }

    /// Changes the thread's identity.
    pub(crate) fn change_creds<T>(&self, change: impl FnOnce(&mut Creds) -> T) -> T {
        change(Arc::make_mut(&mut self.creds.lock()))
    }

    /// Returns the thread's open files and folder.
    pub(crate) fn places(&self) -> Places {
        self.places.lock().clone()
    }

    /// Returns the niceness.
    pub(crate) fn nice(&self) -> i32 {
        self.nice.load(Ordering::Relaxed)
    }

    pub(crate) fn set_nice(&self, nice: i32) {
        self.nice.store(nice, Ordering::Relaxed);
    }

    /// Returns the scheduling policy and its static priority.
    pub(crate) fn policy(&self) -> (u32, u32) {
        *self.policy.lock()
    }

    pub(crate) fn set_policy(&self, policy: u32, priority: u32) {
        *self.policy.lock() = (policy, priority);
    }

    /// Returns the core that the thread runs on.
    pub(crate) fn core(&self) -> usize {
        self.core.load(Ordering::Relaxed)
    }

    /// Returns the cores that the thread may run on, a bit each.
    pub(crate) fn affinity(&self) -> u64 {
        self.affinity.load(Ordering::Relaxed)
    }

    /// Sets the cores that the thread may run on; it moves when it next enters the program.
    pub(crate) fn set_affinity(&self, cores: u64) {
        self.affinity.store(cores, Ordering::Relaxed);
        self.attend();
    }

    /// Moves the thread: its next turn is on another core.
    pub(crate) fn set_core(&self, core: usize) {
        self.core.store(core, Ordering::Relaxed);
    }

    /// Changes the actions, which are a new program's own.
    pub(crate) fn set_actions(&self, actions: Arc<Mutex<Actions>>) {
        *self.actions.lock() = actions;
    }

    /// Returns the signals that are ignored, and those with handlers.
    pub(crate) fn ignored_and_caught(&self) -> (u64, u64) {
        self.actions.lock().lock().ignored_and_caught()
    }

    /// Returns whether a signal would do nothing.
    pub(crate) fn ignores(&self, signal: u8) -> bool {
        self.actions.lock().lock().ignores(signal)
    }

    /// Returns whether a signal would stop the process.
    pub(crate) fn stops(&self, signal: u8) -> bool {
        self.actions.lock().lock().stops(signal)
    }

    /// Returns whether the process wants signals when children stop.
    pub(crate) fn hears_of_stops(&self) -> bool {
        self.actions.lock().lock().hears_of_stops()
    }

    /// Returns whether children that end leave nothing to wait for.
    fn forgets_children(&self) -> bool {
        self.actions.lock().lock().forgets_children()
    }

    pub(crate) fn mask(&self) -> u64 {
        self.mask.load(Ordering::SeqCst)
    }

    pub(crate) fn set_mask(&self, mask: u64) {
        self.mask
            .store(crate::signals::blockable(mask), Ordering::SeqCst);
        // A signal may have waited for this.
        self.attend();
    }

    /// Notes the blocked signals that the thread waits for: they are neither ignored nor stop the
    /// process meanwhile (Linux's `real_blocked`).
    pub(crate) fn await_signals(&self, set: u64) {
        self.awaited.store(set, Ordering::SeqCst);
    }

    /// Returns whether the thread waits for a signal that it has blocked.
    pub(crate) fn awaits(&self, signal: u8) -> bool {
        self.awaited.load(Ordering::SeqCst) & crate::signals::bit(signal) != 0
    }

    /// Makes the thread look at its signals before the program goes on.
    pub(crate) fn attend(&self) {
        self.attention.store(true, Ordering::SeqCst);
    }

    /// Notes that the thread looks now.
    pub(crate) fn attended(&self) {
        self.attention.store(false, Ordering::SeqCst);
    }

    pub(crate) fn masks(&self, signal: u8) -> bool {
        self.mask() & crate::signals::bit(signal) != 0
    }

    /// Makes the thread look at its signals, wherever it is.
    pub(crate) fn call<N: Node>(&self, node: &N) {
        self.attend();
        if let Some(waker) = self.waker.lock().take() {
            waker.wake();
        }
        if self.in_user.load(Ordering::SeqCst) {
            node.kick(self.core());
        }
    }

    /// Sends a signal to this thread.
    pub(crate) fn send<N: Node>(&self, node: &N, info: SignalInfo) {
        if self.ignores(info.signal) && !self.masks(info.signal) && !self.awaits(info.signal) {
            return;
        }
        self.pending.lock().add(info);
        self.call(node);
    }
}

/// Signalled once, when a vfork child releases its parent's memory.
#[derive(Default)]
pub(crate) struct Release {
    done: AtomicBool,
    queue: WaitQueue,
}

impl Release {
    pub(crate) fn release(&self) {
        self.done.store(true, Ordering::Release);
        self.queue.wake();
    }

    pub(crate) async fn wait(&self) {
        let done = || self.done.load(Ordering::Acquire).then_some(());
        self.queue.until(done).await;
    }
}

/// A thread. Its parts that threads may share are behind `Arc`s of their own, as clone's flags say.
pub struct Thread<N: Node> {
    pub(crate) process: Arc<Process<N>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) cpu: N::Cpu,
    pub(crate) memory: Arc<Space<'static, N>>,
    /// The recent misses, for readahead.
    pub(crate) prefetcher: Prefetcher,
    pub(crate) files: Arc<Mutex<Table>>,
    pub(crate) fs: Arc<Mutex<Fs>>,
    pub(crate) actions: Arc<Mutex<Actions>>,
    /// The alternate signal stack as `stack_t` has it: base, flags, size.
    pub(crate) alternate: [u64; 3],
    /// The mask to return to after a handler that interrupted a wait with another mask.
    pub(crate) saved_mask: Option<u64>,
    /// The word that is cleared, and waiters on it woken, at the end.
    pub(crate) clear_tid: u64,
    pub(crate) release: Option<Arc<Release>>,
    /// The area of restartable sequences.
    pub(crate) rseq: Option<Registration>,
    /// Bytes that the read under way has taken from its file.
    pub(crate) taken: Option<Taken>,
}

/// The outcome of a turn.
enum Turn {
    /// The program can go on.
    Done,
    /// Signals, or the end, are to be looked for.
    Signals,
    /// A fault that has to wait; `first` if the cache was not asked yet.
    Fault {
        addr: u64,
        access: Access,
        first: bool,
    },
    /// All else.
    Trap(Trap),
}

impl<N: Node> Deref for Thread<N> {
    type Target = Process<N>;

    fn deref(&self) -> &Process<N> {
        &self.process
    }
}

impl<N: Node> Thread<N> {
    pub(crate) fn tid(&self) -> u32 {
        self.shared.tid()
    }

    /// Lets others find the thread's open files and folder.
    pub(crate) fn show_places(&self) {
        *self.shared.places.lock() = Places {
            files: Arc::downgrade(&self.files),
            fs: Arc::downgrade(&self.fs),
        };
    }

    pub(crate) fn now(&self) -> hal::Instant {
        self.node.platform().now()
    }

    /// Returns the address space.
    pub fn memory(&self) -> &Space<'static, N> {
        &self.memory
    }

    /// Locks the table of open files.
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.files.lock()
    }

    /// Returns the signals that wait and are not blocked.
    pub(crate) fn due(&self) -> u64 {
        self.pending() & !self.shared.mask()
    }

    /// Returns the signals that wait, blocked or not.
    pub(crate) fn pending(&self) -> u64 {
        self.shared.pending.lock().set() | self.process.pending.lock().set()
    }

    /// Returns whether a wait that signals end must end.
    pub(crate) fn called(&self) -> bool {
        self.due() != 0 || self.process.must_end(self.tid())
    }

    /// Waits, unless a signal comes first.
    ///
    /// # Errors
    ///
    /// [`errno::ERESTARTSYS`] when one does.
    pub(crate) async fn unless_called<T>(&self, wait: impl Future<Output = T>) -> Result<T> {
        self.unless(|| self.called(), wait).await
    }

    /// Waits, unless the thread is to end first: other signals are taken later.
    ///
    /// # Errors
    ///
    /// As [`unless_called`](Self::unless_called).
    pub(crate) async fn unless_ended<T>(&self, wait: impl Future<Output = T>) -> Result<T> {
        self.unless(|| self.process.must_end(self.tid()), wait)
            .await
    }

    async fn unless<T>(
        &self,
        called: impl Fn() -> bool,
        wait: impl Future<Output = T>,
    ) -> Result<T> {
        let mut wait = pin!(wait);
        poll_fn(|context| {
            // Before anything is looked at: who changes it wakes this.
            *self.shared.waker.lock() = Some(context.waker().clone());
            if self.is_frozen() {
                return Poll::Pending;
            }
            if let Poll::Ready(value) = wait.as_mut().poll(context) {
                return Poll::Ready(Ok(value));
            }
            if called() {
                return Poll::Ready(Err(errno::ERESTARTSYS.into()));
            }
            Poll::Pending
        })
        .await
    }

    /// Returns whether the thread is to do nothing until its process goes on.
    fn is_frozen(&self) -> bool {
        self.process.is_stopped() && !self.process.must_end(self.tid())
    }

    /// Waits for as long as the process is stopped.
    pub(crate) async fn thaw(&self) {
        poll_fn(|context| {
            *self.shared.waker.lock() = Some(context.waker().clone());
            if self.is_frozen() {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
    }

    /// Runs the thread's turns until it ends.
    pub(crate) async fn live(mut self) {
        let exit = loop {
            let outcome = match self.turn() {
                Ok(Turn::Done) => continue,
                Ok(turn) => self.go_on(turn).await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => {
                    if let Some(core) = self.new_core() {
                        return self.move_to(core);
                    }
                }
                Err(Error::Ended(exit)) => {
                    self.process.end(exit);
                    break exit;
                }
                Err(Error::ThreadEnded(exit)) => break exit,
                Err(error) => {
                    self.node.fail(error);
                    break Exit::Signal(SIGKILL);
                }
            }
        };
        let node = self.node;
        self.trace_exit(self.process.ends().unwrap_or(exit)).await;
        if let Err(error) = self.end(exit).await {
            node.fail(error);
        }
    }

    /// Runs the program until it needs the kernel, and does what can be done without waiting: all
    /// of most faults. No `async` function: its state need not outlive the call.
    #[inline]
    fn turn(&mut self) -> Result<Turn> {
        // Who sends a signal sets `attention` before it looks at `in_user`.
        self.shared.in_user.store(true, Ordering::SeqCst);
        if self.shared.attention.load(Ordering::SeqCst) {
            self.shared.in_user.store(false, Ordering::Release);
            return Ok(Turn::Signals);
        }
        let trap = self.cpu.run(self.memory.tables());
        self.shared.in_user.store(false, Ordering::Release);
        Ok(match trap {
            Trap::Syscall if self.serve_now() => Turn::Done,
            Trap::PageFault { addr, access } => {
                let prefetcher = &mut self.prefetcher;
                match self
                    .memory
                    .fault_now(addr, access, |miss| prefetcher.miss(miss))?
                {
                    ImmediateResult::Done => Turn::Done,
                    ImmediateResult::Later { first } => Turn::Fault {
                        addr,
                        access,
                        first,
                    },
                }
            }
            trap => Turn::Trap(trap),
        })
    }

    /// Continues what a turn could not complete.
    async fn go_on(&mut self, turn: Turn) -> Result<()> {
        match turn {
            Turn::Done => Ok(()),
            Turn::Signals => self.take_signals().await,
            Turn::Fault {
                addr,
                access,
                first,
            } => self.fault(addr, access, first).await,
            Turn::Trap(Trap::Syscall) => self.serve().await,
            Turn::Trap(Trap::PageFault { addr, access }) => self.fault(addr, access, true).await,
            Turn::Trap(Trap::Exception { vector, error }) => self.exception(vector, error),
            Turn::Trap(Trap::Preempted) => {
                let (cores, core) = (&self.node.kernel().cores, self.core());
                cores.begin_wait(core);
                self.node.platform().yield_now().await;
                cores.end_wait(core);
                Ok(())
            }
        }
    }

    /// Returns the core that the thread had better go on with, if it is another one.
    fn new_core(&self) -> Option<usize> {
        let cores = &self.node.kernel().cores;
        cores.better(self.core(), self.node.cores(), self.shared.affinity())
    }

    /// Ends this task and continues in one on another core.
    fn move_to(mut self, core: usize) {
        let node = self.node;
        self.cpu.leave_core();
        node.kernel().cores.leave(self.core());
        self.process.cpu_time.add(self.shared.time.end(self.now()));
        self.shared.set_core(core);
        self.shared.note_turn_of_other();
        node.spawn(self, core);
    }

    /// Serves the system call that the thread made, if it has its answer at once.
    #[inline]
    fn serve_now(&mut self) -> bool {
        if self.node.kernel().strace {
            return false;
        }
        let number = self.cpu.system_call().number;
        let value = if number == u64::from(linux_raw_sys::general::__NR_read) {
            self.read_now(self.cpu.system_call().args)
        } else {
            self.call_now(number, || self.cpu.system_call().args)
        };
        value.inspect(|&value| self.cpu.set_result(value)).is_some()
    }

    /// Takes one turn, whole.
    #[cfg(test)]
    pub(crate) async fn step(&mut self) -> Result<()> {
        let turn = self.turn()?;
        self.go_on(turn).await
    }

    /// Gives back what the thread has. `exit` is how the process ended, if it was the last thread
    /// and nothing else ended it.
    async fn end(self, exit: Exit) -> Result<()> {
        self.release_locks(true).await?;
        let Self {
            process,
            shared,
            memory,
            files,
            release,
            cpu,
            ..
        } = self;
        drop((files, cpu));
        process.node.kernel().net.collect();
        let node = process.node;
        node.kernel().close_files(node).await?;
        // Each thread lets go of the memory before it leaves: the last one finds nobody else's
        // hold.
        drop(memory);
        let last = {
            let mut threads = process.threads.lock();
            threads.remove(&shared.tid());
            threads.is_empty()
        };
        if !last && process.pending.lock().set() != 0 {
            // What this thread was called for and did not take is another's.
            process.call_all();
        }
        if last {
            let memory = process.memory.lock().take();
            if let Some(space) = memory.and_then(Arc::into_inner) {
                node.kernel().add_faults(space.faults());
                space.end().await?;
            }
        }
        if let Some(release) = release {
            release.release();
        }
        node.kernel().cores.leave(shared.core());
        process.fewer_threads.wake();
        let now = node.platform().now();
        process.cpu_time.add(shared.time.split(now));
        if last {
            *process.timers.lock() = ProcessTimers::default();
            let text = process.text.lock().take();
            drop(text);
            node.kernel().locks.release(Owner::Process(process.pid));
            let now = node.platform().wall_clock().as_secs();
            node.kernel().ipc.semaphores.exit(process.pid, now);
            process.ended(process.ends().unwrap_or(exit));
        }
        Ok(())
    }
}

impl<N: Node> Process<N> {
    /// Notes that the last thread has ended: the parent may ask how.
    fn ended(&self, exit: Exit) {
        let kernel = self.node.kernel();
        let mut groups = Vec::new();
        let (session, parent, later) = {
            let mut tree = kernel.tree.lock();
            let mut orphans_ended = false;
            let place = |pid: u32| {
                let own = tree.processes.get(&pid)?;
                Some((own.group, own.session))
            };
            let (own_place, parents_place) = (place(self.pid), place(self.parent()));
            // What keeps a group from being orphaned is a member whose parent is in another group
            // of the session (Linux `kernel/exit.c`, `kill_orphaned_pgrp`).
            let keeps = |child: (u32, u32), parent: Option<(u32, u32)>| {
                parent.is_some_and(|parent| child.0 != parent.0 && child.1 == parent.1)
            };
            for relations in tree.processes.values_mut() {
                if relations.process.parent() == self.pid {
                    if keeps((relations.group, relations.session), own_place) {
                        groups.push(relations.group);
                    }
                    relations.process.set_parent(FIRST);
                    // Another signal could end the first process (Linux `kernel/exit.c`,
                    // `reparent_leader`).
                    relations.exit_signal = SIGCHLD;
                    orphans_ended |= relations.ended.is_some();
                }
            }
            let Some(own) = tree.processes.get_mut(&self.pid) else {
                return;
            };
            own.ended = Some(exit);
            if keeps((own.group, own.session), parents_place) {
                groups.push(own.group);
            }
            let session = own.session;
            let (parent, signal) = (own.process.parent(), own.exit_signal);
            if orphans_ended && let Some(first) = tree.processes.get(&FIRST) {
                first.process.children_changed.wake();
            }
            let parent = tree
                .processes
                .get(&parent)
                .map(|parent| parent.process.clone());
            let waited_for = |parent: &Arc<Self>| parent.forgets(signal).is_none();
            if !parent.as_ref().is_some_and(waited_for) && self.pid != FIRST {
                tree.processes.remove(&self.pid);
                self.lifetime.forget();
            }
            // `clone` takes any byte for a signal (Linux `kernel/signal.c`, `do_notify_parent`).
            let info = number(signal.into()).map(|_| child_info(signal, self.pid, exit));
            let notice = parent.clone().zip(info.ok());
            // Who waits sees the end once the tree is unlocked, and the signal is pending by then,
            // but for those whose sending takes the tree's lock.
            let later = match notice {
                Some((parent, info)) if !changes_jobs(info.signal) => {
                    parent.send(info);
                    None
                }
                other => other,
            };
            (session, parent, later)
        };
        if let Some((parent, info)) = later {
            parent.send(info);
        }
        kernel.leave_jobs(self.pid, session, &groups);
        if let Some(parent) = parent {
            // Also a parent that is told of no ends: it may wait for its last child.
            parent.children_changed.wake();
        }
        self.lifetime.end();
        kernel.process_ended.wake();
    }

    /// Returns whether the process wants to hear nothing of children's ends.
    fn forgets(&self, signal: u8) -> Option<()> {
        let threads = self.threads.lock();
        let first = threads.values().next()?;
        (signal == SIGCHLD && first.forgets_children()).then_some(())
    }
}
