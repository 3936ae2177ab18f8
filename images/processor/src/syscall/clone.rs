//! Making threads and processes: clone, fork, vfork.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use pcache::Prefetcher;
use spin::Mutex;

use super::{Args, int};
use crate::error::{Error, Result, errno};
use crate::kernel::{FIRST, MAX_THREADS, Relations};
use crate::limits::Resource;
use crate::mm::Space;
use crate::pidfd::PidFd;
use crate::platform::Cpu;
use crate::process::{Node, Process};
use crate::signals::{Actions, SIGCHLD};
use crate::thread::{Release, Shared, Thread};

const CLONE_VM: u64 = 0x100;
const CLONE_FS: u64 = 0x200;
const CLONE_FILES: u64 = 0x400;
const CLONE_SIGHAND: u64 = 0x800;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_THREAD: u64 = 0x1_0000;
const CLONE_SETTLS: u64 = 0x8_0000;
const CLONE_DETACHED: u64 = 0x40_0000;
const CLONE_PARENT_SETTID: u64 = 0x10_0000;
const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
const CLONE_CHILD_SETTID: u64 = 0x100_0000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// Namespaces and cgroups, which nobody has here.
const CLONE_NEW: u64 = 0x2_7e02_0080;
/// The signal of the child's end, in clone's flags.
const CSIGNAL: u64 = 0xff;
/// Bytes of `struct clone_args` in its first version, and as far as it is known.
const CLONE_ARGS_FIRST: usize = 64;
const CLONE_ARGS_KNOWN: usize = 88;

/// A request to clone.
#[derive(Default)]
struct Clone {
    flags: u64,
    /// Address to which the pidfd is written.
    pidfd: u64,
    signal: u64,
    stack: u64,
    parent_tid: u64,
    child_tid: u64,
    tls: u64,
}

impl<N: Node> Thread<N> {
    pub(super) async fn sys_clone(
        &mut self,
        [flags, stack, parent_tid, child_tid, tls, _]: Args,
    ) -> Result<u64> {
        if flags & CLONE_PIDFD != 0 && flags & CLONE_PARENT_SETTID != 0 {
            return Err(errno::EINVAL.into());
        }
        self.clone_thread(Clone {
            flags: flags & !CSIGNAL & 0xffff_ffff,
            signal: flags & CSIGNAL,
            stack,
            // The old call has one place for both.
            pidfd: parent_tid,
            parent_tid,
            child_tid,
            tls,
        })
        .await
    }

    pub(super) async fn sys_fork(&mut self) -> Result<u64> {
        self.clone_thread(Clone {
            signal: SIGCHLD.into(),
            ..Clone::default()
        })
        .await
    }

    pub(super) async fn sys_vfork(&mut self) -> Result<u64> {
        self.clone_thread(Clone {
            flags: CLONE_VM | CLONE_VFORK,
            signal: SIGCHLD.into(),
            ..Clone::default()
        })
        .await
    }

    pub(super) async fn sys_clone3(&mut self, [addr, size, ..]: Args) -> Result<u64> {
        let size = usize::try_from(size).map_err(|_| errno::E2BIG)?;
        if size < CLONE_ARGS_FIRST {
            return Err(errno::EINVAL.into());
        }
        if size > 4096 {
            return Err(errno::E2BIG.into());
        }
        let mut bytes = alloc::vec![0; size.max(CLONE_ARGS_KNOWN)];
        self.memory.read(addr, &mut bytes[..size]).await?;
        if bytes[CLONE_ARGS_KNOWN..].iter().any(|&byte| byte != 0) {
            return Err(errno::E2BIG.into());
        }
        let word =
            |n: usize| u64::from_le_bytes(bytes[n * 8..n * 8 + 8].try_into().expect("eight bytes"));
        let (stack, stack_size, set_tid) = (word(5), word(6), word(9));
        if (stack == 0) != (stack_size == 0) || word(4) > 64 || word(0) & CSIGNAL != 0 {
            return Err(errno::EINVAL.into());
        }
        if set_tid != 0 {
            return Err(errno::EPERM.into());
        }
        self.clone_thread(Clone {
            flags: word(0),
            signal: word(4),
            stack: stack.wrapping_add(stack_size),
            pidfd: word(1),
            parent_tid: word(3),
            child_tid: word(2),
            tls: word(7),
        })
        .await
    }

    /// Makes a thread or a process as clone's flags say, and a file of the process if they ask for
    /// one.
    async fn clone_thread(&mut self, clone: Clone) -> Result<u64> {
        if clone.flags & CLONE_PIDFD == 0 {
            return self.clone_with(clone, None).await;
        }
        if clone.flags & (CLONE_THREAD | CLONE_DETACHED) != 0 {
            return Err(errno::EINVAL.into());
        }
        let (fd, object) = self.reserve_pidfd()?;
        let made = self.clone_with(clone, Some((fd, object))).await;
        if made.is_err() {
            let unused = self.table().remove(fd);
            drop(unused);
        }
        made
    }

    async fn clone_with(&mut self, clone: Clone, pidfd: Option<(u64, Arc<PidFd>)>) -> Result<u64> {
        let flags = clone.flags;
        let has = |flag: u64| flags & flag != 0;
        let broken = has(CLONE_THREAD) && !has(CLONE_SIGHAND)
            || has(CLONE_SIGHAND) && !has(CLONE_VM)
            || has(CLONE_CLEAR_SIGHAND) && has(CLONE_SIGHAND)
            // The first process has no parent whose child another could be.
            || has(CLONE_PARENT) && self.pid == FIRST;
        if broken || flags & CLONE_NEW != 0 {
            return Err(errno::EINVAL.into());
        }
        let node = self.node;
        let memory = if has(CLONE_VM) {
            self.memory.clone()
        } else {
            self.fork_memory().await?
        };
        let mut cpu = self.cpu.duplicate();
        cpu.set_result(0);
        if clone.stack != 0 {
            cpu.set_sp(clone.stack);
        }
        if has(CLONE_SETTLS) && !cpu.set_fs_base(clone.tls) {
            return Err(errno::EPERM.into());
        }
        let actions = if has(CLONE_SIGHAND) {
            self.actions.clone()
        } else {
            let mut actions = self.actions.lock().clone();
            if has(CLONE_CLEAR_SIGHAND) {
                actions.reset();
            }
            Arc::new(Mutex::new(actions))
        };
        let core = node
            .kernel()
            .cores
            .choose(node.cores(), self.shared.affinity());
        let release = has(CLONE_VFORK).then(Arc::<Release>::default);
        let (process, shared) = match self.enlist(&clone, core, actions.clone()) {
            Ok(enlisted) => enlisted,
            Err(error) => {
                node.kernel().cores.leave(core);
                if let Some(space) = Arc::into_inner(memory) {
                    space.end().await?;
                }
                return Err(error);
            }
        };
        if !has(CLONE_THREAD) {
            process.text.lock().clone_from(&self.process.text.lock());
            *process.memory.lock() = Some(memory.clone());
        }
        let mut child = Self {
            process,
            shared,
            cpu,
            memory,
            prefetcher: Prefetcher::default(),
            taken: None,
            files: if has(CLONE_FILES) {
                self.files.clone()
            } else {
                Arc::new(Mutex::new(self.table().clone()))
            },
            fs: if has(CLONE_FS) {
                self.fs.clone()
            } else {
                Arc::new(Mutex::new(self.fs.lock().clone()))
            },
            actions,
            // A thread that shares memory can't run on the same stack.
            alternate: if has(CLONE_VM) && !has(CLONE_VFORK) {
                [0, 2, 0]
            } else {
                self.alternate
            },
            saved_mask: None,
            clear_tid: if has(CLONE_CHILD_CLEARTID) {
                clone.child_tid
            } else {
                0
            },
            release: release.clone(),
            rseq: None,
        };
        if !has(CLONE_VM) {
            child.set_rseq(self.rseq);
        }
        child.show_places();
        let tid = child.tid();
        if let Some((fd, object)) = pidfd {
            object.name(tid, &child.process.lifetime);
            self.give_pidfd(fd, &child, &clone).await?;
        }
        if has(CLONE_PARENT_SETTID) {
            // As on Linux, a bad address does not undo the clone.
            quiet(
                self.memory
                    .write(clone.parent_tid, &tid.to_le_bytes())
                    .await,
            )?;
        }
        if has(CLONE_CHILD_SETTID) {
            quiet(
                child
                    .memory
                    .write(clone.child_tid, &tid.to_le_bytes())
                    .await,
            )?;
        }
        node.spawn(child, core);
        if let Some(release) = release {
            // The child is on the parent's stack: no signal but the end ends this wait.
            self.unless_ended(release.wait()).await?;
        }
        Ok(tid.into())
    }

    /// Tells the program the number of its child as a file, which the child does not have.
    async fn give_pidfd(&self, fd: u64, child: &Self, clone: &Clone) -> Result<()> {
        if clone.flags & CLONE_FILES == 0 {
            let copied = child.table().remove(fd);
            drop(copied);
        }
        quiet(self.memory.write(clone.pidfd, &int(fd).to_le_bytes()).await)
    }

    /// Makes the child's place among processes and threads.
    fn enlist(
        &self,
        clone: &Clone,
        core: usize,
        actions: Arc<Mutex<Actions>>,
    ) -> Result<(Arc<Process<N>>, Arc<Shared>)> {
        let mut tree = self.node.kernel().tree.lock();
        let limit = self.process.limits.lock().soft(Resource::Processes);
        let creds = self.creds();
        if limit != u64::MAX && creds.user.real != 0 && tree.owned_by(creds.user.real) >= limit {
            return Err(errno::EAGAIN.into());
        }
        if tree.threads() >= MAX_THREADS {
            return Err(errno::EAGAIN.into());
        }
        let id = tree.new_id()?;
        let shared = Arc::new(Shared::new(
            id,
            core,
            self.shared.mask(),
            actions,
            self.creds(),
        ));
        shared.name.lock().clone_from(&self.shared.name.lock());
        shared.set_affinity(self.shared.affinity());
        shared.set_nice(self.shared.nice());
        let (policy, priority) = self.shared.policy();
        shared.set_policy(policy, priority);
        if clone.flags & CLONE_THREAD != 0 {
            let mut threads = self.process.threads.lock();
            if self.process.must_end(self.tid()) {
                return Err(errno::ERESTARTSYS.into());
            }
            threads.insert(id, shared.clone());
            return Ok((self.process.clone(), shared));
        }
        let (parent, signal, group, session) = {
            let own = tree.processes.get(&self.pid).ok_or(errno::ESRCH)?;
            // A sibling tells the parent of its end as its maker does (Linux `kernel/fork.c`,
            // `copy_process`).
            let (parent, signal) = if clone.flags & CLONE_PARENT != 0 {
                (self.process.parent(), own.exit_signal)
            } else {
                (self.pid, u8::try_from(clone.signal).unwrap_or(SIGCHLD))
            };
            (parent, signal, own.group, own.session)
        };
        let process = Arc::new(Process::new(self.node, id, parent));
        process
            .personality
            .store(self.process.personality(), Ordering::Relaxed);
        process
            .exec_path
            .lock()
            .clone_from(&self.process.exec_path.lock());
        process
            .arguments
            .lock()
            .clone_from(&self.process.arguments.lock());
        process
            .limits
            .lock()
            .clone_from(&self.process.limits.lock());
        let limited = process.limits.lock().next_cpu_time().is_some();
        if limited {
            process.note_cpu_timers();
        }
        process.threads.lock().insert(id, shared.clone());
        let relations = Relations {
            process: process.clone(),
            group,
            session,
            exit_signal: signal,
            ended: None,
            news: None,
        };
        tree.processes.insert(id, relations);
        Ok((process, shared))
    }

    async fn fork_memory(&self) -> Result<Arc<Space<'static, N>>> {
        let tables = self.node.new_tables().ok_or(errno::ENOMEM)?;
        let child = Space::new(self.node, self.pid, tables, self.memory.layout);
        let _change = self.memory.change().await;
        match self.memory.fork_into(&child).await {
            Ok(()) => Ok(Arc::new(child)),
            Err(error) => {
                child.end().await?;
                Err(error)
            }
        }
    }
}

/// Leaves out the errors that are the program's own.
fn quiet(result: Result<()>) -> Result<()> {
    match result {
        Err(Error::Errno(_)) => Ok(()),
        other => other,
    }
}
