//! Processes and threads: clone, execve, wait4, exit, groups and sessions.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use spin::Mutex;

use super::{Args, int};
use crate::console::kinds;
use crate::deliver::Outcome;
use crate::error::{Error, Exit, Result, errno};
use crate::files::Table;
use crate::jobs::{News, news_info};
use crate::kernel::{FIRST, Relations};
use crate::load::{self, Command, Refusal};
use crate::mm::Space;
use crate::platform::Cpu;
use crate::process::{Node, Process};
use crate::signals::{Actions, SIGCHLD};
use crate::stack::MAX_STRINGS;
use crate::terminal::Jobs;
use crate::thread::{Fs, Release, Shared, Thread};

const CLONE_VM: u64 = 0x100;
const CLONE_FS: u64 = 0x200;
const CLONE_FILES: u64 = 0x400;
const CLONE_SIGHAND: u64 = 0x800;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_THREAD: u64 = 0x1_0000;
const CLONE_SETTLS: u64 = 0x8_0000;
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

const WNOHANG: u64 = 1;
/// `WUNTRACED` of wait4, `WSTOPPED` of waitid.
const WUNTRACED: u64 = 2;
const WCONTINUED: u64 = 8;
/// `__WNOTHREAD`, `__WALL`, `__WCLONE` among them.
const WAIT_KNOWN: u64 = WNOHANG | WUNTRACED | WCONTINUED | 0x2000_0000 | 0x4000_0000 | 0x8000_0000;
const WEXITED: u64 = 4;
const WNOWAIT: u64 = 0x100_0000;
/// Bytes of `struct rusage`.
const RUSAGE: usize = 144;

/// A request to clone.
#[derive(Default)]
struct Clone {
    flags: u64,
    signal: u64,
    stack: u64,
    parent_tid: u64,
    child_tid: u64,
    tls: u64,
}

/// The children that a wait is for.
#[derive(Clone, Copy)]
enum Children {
    Any,
    One(u32),
    Group(u32),
}

impl<N: Node> Thread<N> {
    /// Makes the first process, with one thread that is about to run `command`.
    ///
    /// # Errors
    ///
    /// A [`Refusal`], whose text is one line for the user.
    pub async fn first(node: &'static N, command: &Command) -> core::result::Result<Self, Refusal> {
        let mut cpu = N::Cpu::new(0, 0);
        node.kernel().begin(node).await.map_err(|cause| Refusal::Failed {
            path: String::from_utf8_lossy(&command.path).into_owned(),
            cause,
        })?;
        let image = load::load(node, FIRST, command, cpu.vectors().len()).await;
        node.kernel()
            .close_files(node)
            .await
            .map_err(|cause| Refusal::Failed {
                path: String::from_utf8_lossy(&command.path).into_owned(),
                cause,
            })?;
        let image = image?;
        let actions = Arc::new(Mutex::new(Actions::default()));
        let core = node.kernel().choose_core(node.cores());
        let shared = Arc::new(Shared::new(FIRST, core, 0, actions.clone()));
        let process = Arc::new(Process::new(node, FIRST));
        let memory = Arc::new(image.memory);
        *process.memory.lock() = Some(memory.clone());
        *process.exec_path.lock() = image.path;
        process.threads.lock().insert(FIRST, shared.clone());
        {
            let mut tree = node.kernel().tree.lock();
            let id = tree.new_id();
            debug_assert_eq!(id, Ok(FIRST));
            let relations = Relations {
                process: process.clone(),
                parent: 0,
                group: FIRST,
                session: FIRST,
                exit_signal: 0,
                ended: None,
                news: None,
            };
            tree.processes.insert(FIRST, relations);
        }
        let streams = kinds(&node.kernel().console, command.streams);
        if let Some(terminal) = node.kernel().terminals.console() {
            terminal.set_jobs(Jobs {
                session: FIRST,
                group: FIRST,
            });
        }
        let cwd = if command.cwd.is_empty() {
            b"/".to_vec()
        } else {
            command.cwd.clone()
        };
        Ok(Self {
            process,
            shared,
            cpu: N::Cpu::new(image.entry, image.sp),
            memory,
            files: Arc::new(Mutex::new(Table::new(streams))),
            fs: Arc::new(Mutex::new(Fs { cwd, umask: 0o022 })),
            actions,
            alternate: [0, 2, 0],
            saved_mask: None,
            clear_tid: 0,
            release: None,
        })
    }

    /// Returns the core that the thread is to run on.
    #[must_use]
    pub fn core(&self) -> usize {
        self.shared.core()
    }

    pub(super) async fn sys_clone(
        &mut self,
        [flags, stack, parent_tid, child_tid, tls, _]: Args,
    ) -> Result<u64> {
        self.clone_thread(Clone {
            flags: flags & !CSIGNAL & 0xffff_ffff,
            signal: flags & CSIGNAL,
            stack,
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
        let word = |n: usize| u64::from_le_bytes(bytes[n * 8..n * 8 + 8].try_into().expect("eight bytes"));
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
            parent_tid: word(3),
            child_tid: word(2),
            tls: word(7),
        })
        .await
    }

    /// Makes a thread or a process as clone's flags say.
    async fn clone_thread(&mut self, clone: Clone) -> Result<u64> {
        let flags = clone.flags;
        let has = |flag: u64| flags & flag != 0;
        let broken = has(CLONE_THREAD) && !has(CLONE_SIGHAND)
            || has(CLONE_SIGHAND) && !has(CLONE_VM)
            || has(CLONE_CLEAR_SIGHAND) && has(CLONE_SIGHAND)
            || has(CLONE_PIDFD);
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
        let core = node.kernel().choose_core(node.cores());
        let release = has(CLONE_VFORK).then(Arc::<Release>::default);
        let (process, shared) = match self.enlist(&clone, core, actions.clone()) {
            Ok(enlisted) => enlisted,
            Err(error) => {
                node.kernel().leave_core(core);
                if let Some(space) = Arc::into_inner(memory) {
                    space.end().await?;
                }
                return Err(error);
            }
        };
        if !has(CLONE_THREAD) {
            *process.memory.lock() = Some(memory.clone());
        }
        let child = Self {
            process,
            shared,
            cpu,
            memory,
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
        };
        let tid = child.tid();
        if has(CLONE_PARENT_SETTID) {
            // As on Linux, a bad address does not undo the clone.
            quiet(self.memory.write(clone.parent_tid, &tid.to_le_bytes()).await)?;
        }
        if has(CLONE_CHILD_SETTID) {
            quiet(child.memory.write(clone.child_tid, &tid.to_le_bytes()).await)?;
        }
        node.spawn(child, core);
        if let Some(release) = release {
            // The child is on the parent's stack: no signal but the end ends this wait.
            self.unless_ended(release.wait()).await?;
        }
        Ok(tid.into())
    }

    /// Makes the child's place among processes and threads.
    fn enlist(
        &self,
        clone: &Clone,
        core: usize,
        actions: Arc<Mutex<Actions>>,
    ) -> Result<(Arc<Process<N>>, Arc<Shared>)> {
        let mut tree = self.node.kernel().tree.lock();
        let id = tree.new_id()?;
        let shared = Arc::new(Shared::new(id, core, self.shared.mask(), actions));
        if clone.flags & CLONE_THREAD != 0 {
            let mut threads = self.process.threads.lock();
            if self.process.must_end(self.tid()) {
                return Err(errno::ERESTARTSYS.into());
            }
            threads.insert(id, shared.clone());
            return Ok((self.process.clone(), shared));
        }
        let (parent, group, session) = {
            let own = tree.processes.get(&self.pid).ok_or(errno::ESRCH)?;
            let parent = if clone.flags & CLONE_PARENT != 0 {
                own.parent
            } else {
                self.pid
            };
            (parent, own.group, own.session)
        };
        let process = Arc::new(Process::new(self.node, id));
        process
            .exec_path
            .lock()
            .clone_from(&self.process.exec_path.lock());
        process.threads.lock().insert(id, shared.clone());
        let relations = Relations {
            process: process.clone(),
            parent,
            group,
            session,
            exit_signal: u8::try_from(clone.signal).unwrap_or(SIGCHLD),
            ended: None,
            news: None,
        };
        tree.processes.insert(id, relations);
        Ok((process, shared))
    }

    async fn fork_memory(&self) -> Result<Arc<Space<'static, N>>> {
        let tables = self.node.new_tables().ok_or(errno::ENOMEM)?;
        let child = Space::new(self.node, self.pid, tables);
        let _change = self.memory.change().await;
        match self.memory.fork_into(&child).await {
            Ok(()) => Ok(Arc::new(child)),
            Err(error) => {
                child.end().await?;
                Err(error)
            }
        }
    }

    pub(super) async fn sys_execve(&mut self, dir: u64, path: u64, args: u64, env: u64) -> Result<Outcome> {
        let mut room = MAX_STRINGS;
        let path = self.path(dir, path).await?;
        let command = Command {
            path,
            args: self.strings(args, &mut room).await?,
            env: self.strings(env, &mut room).await?,
            ..Command::default()
        };
        let vectors = self.cpu.vectors().len();
        let image = load::load(self.node, self.pid, &command, vectors).await;
        let image = image.map_err(Refusal::into_error)?;
        if let Err(error) = self.be_alone().await {
            image.memory.end().await?;
            return Err(error);
        }
        self.become_program(image).await?;
        Ok(Outcome::Registers)
    }

    /// Ends the process's other threads; this one gets the process's number.
    async fn be_alone(&mut self) -> Result<()> {
        if !self.process.end_others(self.tid()) {
            return Err(errno::ERESTARTSYS.into());
        }
        let alone = || (self.process.threads.lock().len() == 1).then_some(());
        let waited = self.unless_ended(self.process.fewer_threads.until(alone)).await;
        self.process.others_ended();
        waited?;
        let mut threads = self.process.threads.lock();
        threads.remove(&self.tid());
        self.shared.set_tid(self.pid);
        threads.insert(self.pid, self.shared.clone());
        Ok(())
    }

    async fn become_program(&mut self, image: load::Image<N>) -> Result<()> {
        let memory = Arc::new(image.memory);
        *self.process.memory.lock() = Some(memory.clone());
        *self.process.exec_path.lock() = image.path;
        let old = core::mem::replace(&mut self.memory, memory);
        if let Some(space) = Arc::into_inner(old) {
            self.node.kernel().add_faults(space.faults());
            space.end().await?;
        }
        if let Some(release) = self.release.take() {
            release.release();
        }
        let actions = {
            let mut actions = self.actions.lock().clone();
            actions.reset();
            Arc::new(Mutex::new(actions))
        };
        self.shared.set_actions(actions.clone());
        self.actions = actions;
        if Arc::strong_count(&self.files) > 1 {
            let own = self.table().clone();
            self.files = Arc::new(Mutex::new(own));
        }
        let closed = self.table().exec();
        drop(closed);
        self.alternate = [0, 2, 0];
        self.clear_tid = 0;
        self.shared.robust_list.store(0, Ordering::Relaxed);
        self.cpu = N::Cpu::new(image.entry, image.sp);
        Ok(())
    }

    /// Reads a zero-terminated list of strings; `room` is what they may still take.
    async fn strings(&self, addr: u64, room: &mut usize) -> Result<Vec<Vec<u8>>> {
        let mut strings = Vec::new();
        if addr == 0 {
            return Ok(strings);
        }
        for index in 0.. {
            let at = addr.checked_add(index * 8).ok_or(errno::EFAULT)?;
            let string = self.memory.read_u64(at).await?;
            if string == 0 {
                break;
            }
            let string = match self.memory.read_string(string, *room).await {
                Err(Error::Errno(errno::ENAMETOOLONG)) => Err(errno::E2BIG.into()),
                read => read,
            }?;
            *room = room.checked_sub(string.len() + 9).ok_or(errno::E2BIG)?;
            strings.push(string);
        }
        Ok(strings)
    }

    pub(super) fn sys_exit(&self, code: u64) -> Error {
        // The low byte is what a parent sees.
        Error::ThreadEnded(Exit::Code(code.to_le_bytes()[0]))
    }

    pub(super) async fn sys_wait4(&self, [pid, status, options, usage, ..]: Args) -> Result<u64> {
        if options & 0xffff_ffff & !WAIT_KNOWN != 0 {
            return Err(errno::EINVAL.into());
        }
        let own_group = || self.node.kernel().relation(self.pid, |own| own.group);
        let children = match int(pid).cast_signed() {
            -1 => Children::Any,
            0 => Children::Group(own_group()?),
            one @ 1.. => Children::One(one.cast_unsigned()),
            group => Children::Group(group.unsigned_abs()),
        };
        let Some((child, change)) = self.wait_for(children, options | WEXITED).await? else {
            return Ok(0);
        };
        if status != 0 {
            self.memory
                .write(status, &wait_status(change).to_le_bytes())
                .await?;
        }
        if usage != 0 {
            self.memory.write(usage, &[0; RUSAGE]).await?;
        }
        Ok(child.into())
    }

    pub(super) async fn sys_waitid(&self, [kind, id, info, options, ..]: Args) -> Result<u64> {
        let id = u32::try_from(id & 0xffff_ffff).expect("32 bits");
        let children = match kind {
            0 => Children::Any,
            1 => Children::One(id),
            2 if id == 0 => Children::Group(self.node.kernel().relation(self.pid, |own| own.group)?),
            2 => Children::Group(id),
            _ => return Err(errno::EINVAL.into()),
        };
        if options & (WEXITED | WUNTRACED | WCONTINUED) == 0 {
            return Err(errno::EINVAL.into());
        }
        let found = self.wait_for(children, options).await?;
        if info != 0 {
            let told = found.map_or([0; crate::signals::INFO_SIZE], |(child, change)| {
                let info = match change {
                    Change::Ended(exit) => crate::thread::child_info(SIGCHLD, child, exit),
                    Change::News(news) => news_info(child, news),
                };
                info.encode()
            });
            self.memory.write(info, &told).await?;
        }
        Ok(0)
    }

    /// Waits for a change of a child that the options ask for; `None` if there is none and the call is not to
    /// wait.
    async fn wait_for(&self, children: Children, options: u64) -> Result<Option<(u32, Change)>> {
        let look = || match self.changed_child(children, options) {
            Ok(None) if options & WNOHANG == 0 => None,
            found => Some(found),
        };
        self.unless_called(self.process.children_changed.until(look))
            .await?
    }

    /// Returns a child that has changed, if one has; unless the caller only looks, it is told once.
    fn changed_child(&self, children: Children, options: u64) -> Result<Option<(u32, Change)>> {
        let mut tree = self.node.kernel().tree.lock();
        let mut any = false;
        let mut found = None;
        for (&pid, relations) in &tree.processes {
            let meant = match children {
                Children::Any => true,
                Children::One(one) => pid == one,
                Children::Group(group) => relations.group == group,
            };
            if relations.parent == self.pid && meant {
                any = true;
                found = found.or_else(|| change_of(relations, options).map(|change| (pid, change)));
            }
        }
        if options & WNOWAIT == 0 {
            match found {
                Some((pid, Change::Ended(_))) => drop(tree.processes.remove(&pid)),
                Some((pid, Change::News(_))) => {
                    if let Some(child) = tree.processes.get_mut(&pid) {
                        child.news = None;
                    }
                }
                None => {}
            }
        }
        if any { Ok(found) } else { Err(errno::ECHILD.into()) }
    }

    pub(super) fn sys_getppid(&self) -> Result<u64> {
        self.node.kernel().relation(self.pid, |own| own.parent.into())
    }

    pub(super) fn sys_getpgid(&self, pid: u64) -> Result<u64> {
        self.node
            .kernel()
            .relation(self.pid_or_own(pid), |of| of.group.into())
    }

    pub(super) fn sys_getsid(&self, pid: u64) -> Result<u64> {
        self.node
            .kernel()
            .relation(self.pid_or_own(pid), |of| of.session.into())
    }

    fn pid_or_own(&self, pid: u64) -> u32 {
        match u32::try_from(pid & 0xffff_ffff) {
            Ok(0) | Err(_) => self.pid,
            Ok(pid) => pid,
        }
    }

    pub(super) fn sys_setpgid(&self, [pid, group, ..]: Args) -> Result<u64> {
        let pid = self.pid_or_own(pid);
        let group = match int(group).cast_signed() {
            0 => pid,
            group @ 1.. => group.cast_unsigned(),
            _ => return Err(errno::EINVAL.into()),
        };
        let mut tree = self.node.kernel().tree.lock();
        let own = tree.processes.get(&self.pid).map(|own| own.session);
        let there = tree.processes.get(&pid).ok_or(errno::ESRCH)?;
        if pid != self.pid && there.parent != self.pid {
            return Err(errno::ESRCH.into());
        }
        let (session, leader) = (there.session, there.session == pid);
        let exists = group == pid
            || tree
                .processes
                .values()
                .any(|other| other.group == group && other.session == session);
        if leader || Some(session) != own || !exists {
            return Err(errno::EPERM.into());
        }
        if let Some(there) = tree.processes.get_mut(&pid) {
            there.group = group;
        }
        Ok(0)
    }

    pub(super) fn sys_setsid(&self) -> Result<u64> {
        let mut tree = self.node.kernel().tree.lock();
        if tree.processes.values().any(|other| other.group == self.pid) {
            return Err(errno::EPERM.into());
        }
        if let Some(own) = tree.processes.get_mut(&self.pid) {
            (own.group, own.session) = (self.pid, self.pid);
        }
        Ok(self.pid.into())
    }
}

/// What a wait tells of a child.
#[derive(Clone, Copy)]
enum Change {
    Ended(Exit),
    News(News),
}

/// Returns the change of a child that the options of a wait ask for.
fn change_of<N: Node>(child: &Relations<N>, options: u64) -> Option<Change> {
    if let Some(exit) = child.ended {
        return (options & WEXITED != 0).then_some(Change::Ended(exit));
    }
    let asked = match child.news? {
        News::Stopped(_) => WUNTRACED,
        News::Continued => WCONTINUED,
    };
    (options & asked != 0).then_some(Change::News(child.news?))
}

/// Returns a process's change as `wait` tells it.
fn wait_status(change: Change) -> u32 {
    match change {
        Change::Ended(Exit::Code(code)) => u32::from(code) << 8,
        Change::Ended(Exit::Signal(signal)) => signal.into(),
        Change::News(News::Stopped(signal)) => u32::from(signal) << 8 | 0x7f,
        Change::News(News::Continued) => 0xffff,
    }
}

/// Leaves out the errors that are the program's own.
fn quiet(result: Result<()>) -> Result<()> {
    match result {
        Err(Error::Errno(_)) => Ok(()),
        other => other,
    }
}
