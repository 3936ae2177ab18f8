//! Processes: execve, wait4, exit, groups and sessions.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use core::time::Duration;

use messages::storage::PATH_MAX;
use pcache::Prefetcher;
use spin::Mutex;

use super::path::{AT_FDCWD, EMPTY_PATH, NOFOLLOW};
use super::time::rusage;
use super::walk::ROOT;
use super::{Args, int};
use crate::console::kinds;
use crate::deliver::Outcome;
use crate::error::{Error, Exit, Result, errno};
use crate::files::{Fs, Table};
use crate::jobs::{ChildChange, child_info, news_info};
use crate::kernel::{FIRST, Relations};
use crate::load::{self, Command, Refusal};
use crate::platform::Cpu;
use crate::process::{Node, Process};
use crate::pseudo::Walked;
use crate::signals::{Actions, SIGCHLD};
use crate::stack::MAX_STRINGS;
use crate::terminal::Jobs;
use crate::thread::{Shared, Thread};
use crate::users::identity;

const WNOHANG: u64 = 1;
/// The longest argument or variable (Linux `MAX_ARG_STRLEN` less the zero).
const MAX_STRING: usize = (32 * 4096) - 1;
/// `WUNTRACED` of wait4, `WSTOPPED` of waitid.
const WUNTRACED: u64 = 2;
const WCONTINUED: u64 = 8;
/// `__WNOTHREAD`, `__WALL`, `__WCLONE` among them.
const WAIT_KNOWN: u64 = WNOHANG | WUNTRACED | WCONTINUED | 0x2000_0000 | 0x4000_0000 | 0x8000_0000;
const WEXITED: u64 = 4;
const WNOWAIT: u64 = 0x100_0000;

/// A child that has changed: its number, how, and its CPU time.
type Changed = (u32, Change, Duration);

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
        node.kernel()
            .begin(node)
            .await
            .map_err(|cause| Refusal::Failed {
                path: String::from_utf8_lossy(&command.path).into_owned(),
                cause,
            })?;
        let (creds, home) = identity(node, &command.user).await?;
        let mut command = command.clone();
        if let Some(home) = home
            && !command.env.iter().any(|each| each.starts_with(b"HOME="))
        {
            command.env.push([b"HOME=", &home[..]].concat());
        }
        let command = &command;
        let image = load::load(node, FIRST, command, &creds, cpu.vectors().len()).await;
        node.kernel()
            .close_files(node)
            .await
            .map_err(|cause| Refusal::Failed {
                path: String::from_utf8_lossy(&command.path).into_owned(),
                cause,
            })?;
        let image = image?;
        let actions = Arc::new(Mutex::new(Actions::default()));
        let core = node.kernel().cores.choose(node.cores(), u64::MAX);
        let shared = Arc::new(Shared::new(
            FIRST,
            core,
            0,
            actions.clone(),
            Arc::new(image.creds),
        ));
        let process = Arc::new(Process::new(node, FIRST, 0));
        let memory = Arc::new(image.memory);
        *process.memory.lock() = Some(memory.clone());
        *process.exec_path.lock() = image.path;
        *process.text.lock() = image.text;
        *process.arguments.lock() = command.strings();
        process.threads.lock().insert(FIRST, shared.clone());
        {
            let mut tree = node.kernel().tree.lock();
            let id = tree.new_id();
            debug_assert_eq!(id, Ok(FIRST));
            let relations = Relations {
                process: process.clone(),
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
        let thread = Self {
            process,
            shared,
            cpu: N::Cpu::new(image.entry, image.sp),
            memory,
            prefetcher: Prefetcher::default(),
            taken: None,
            files: Arc::new(Mutex::new(Table::new(streams))),
            fs: Arc::new(Mutex::new(Fs {
                cwd,
                root: ROOT.to_vec(),
                umask: 0o022,
            })),
            actions,
            alternate: [0, 2, 0],
            saved_mask: None,
            clear_tid: 0,
            rseq: None,
            release: None,
        };
        thread.show_places();
        thread.name_after(&command.path);
        Ok(thread)
    }

    /// Returns the core that the thread is to run on.
    #[must_use]
    pub fn core(&self) -> usize {
        self.shared.core()
    }

    /// Runs another program: by its path, the addresses of arguments and environment, and the flags
    /// of `execveat`.
    pub(super) async fn sys_execve(
        &mut self,
        dir: u64,
        [path, args, env, flags]: [u64; 4],
    ) -> Result<Outcome> {
        let mut room = MAX_STRINGS;
        let (path, name) = self.program_path(dir, path, flags).await?;
        let path = match self.pseudo(&path, flags & NOFOLLOW == 0)? {
            Walked::Elsewhere(path) => path,
            Walked::Entry(..) => return Err(errno::EACCES.into()),
        };
        let command = Command {
            path,
            name_closes: name.starts_with(b"/dev/fd/") && self.closes_on_exec(dir),
            name,
            root: self.root(),
            args: self.strings(args, &mut room).await?,
            env: self.strings(env, &mut room).await?,
            fixed_layout: self.process.has_fixed_layout(),
            ..Command::default()
        };
        let vectors = self.cpu.vectors().len();
        let image = load::load(self.node, self.pid, &command, &self.creds(), vectors).await;
        let image = image.map_err(Refusal::into_error)?;
        if let Err(error) = self.be_alone().await {
            image.memory.end().await?;
            return Err(error);
        }
        *self.process.arguments.lock() = command.strings();
        self.become_program(image).await?;
        // A script's thread is named after the script.
        self.name_after(&command.path);
        Ok(Outcome::Registers)
    }

    /// Returns the path of a program to run, with `AT_EMPTY_PATH` that of the open file `dir`, and
    /// the name that the program is told (Linux `fs/exec.c`, `alloc_bprm`).
    async fn program_path(&self, dir: u64, addr: u64, flags: u64) -> Result<(Vec<u8>, Vec<u8>)> {
        if flags & !(EMPTY_PATH | NOFOLLOW) != 0 {
            return Err(errno::EINVAL.into());
        }
        let given = self.memory.read_string(addr, PATH_MAX).await?;
        let by_number = alloc::format!("/dev/fd/{}", int(dir)).into_bytes();
        if flags & EMPTY_PATH != 0 && given.is_empty() {
            return Ok((self.place(dir)?.path.clone(), by_number));
        }
        let follow = flags & NOFOLLOW == 0;
        let path = self.path(dir, addr, follow).await?;
        if !follow {
            const LINK: u32 = 0o12;
            if self.status_of_path(&path, false).await?.mode >> 12 == LINK {
                return Err(errno::ELOOP.into());
            }
        }
        let name = if given.starts_with(b"/") || int(dir) == int(AT_FDCWD) {
            given
        } else {
            [&by_number[..], b"/", &given].concat()
        };
        Ok((path, name))
    }

    /// Returns whether a folder's number names an open file that exec closes.
    fn closes_on_exec(&self, dir: u64) -> bool {
        int(dir) != int(AT_FDCWD) && self.table().close_on_exec(int(dir).into()) == Ok(true)
    }

    /// Ends the process's other threads; this one gets the process's number.
    async fn be_alone(&mut self) -> Result<()> {
        if !self.process.end_others(self.tid()) {
            return Err(errno::ERESTARTSYS.into());
        }
        let alone = || (self.process.threads.lock().len() == 1).then_some(());
        let waited = self
            .unless_ended(self.process.fewer_threads.until(alone))
            .await;
        self.process.others_ended();
        waited?;
        if self.tid() != self.pid {
            // It loses the number by which it owns locks.
            self.node.kernel().futexes.exit(self.tid(), || {});
        }
        let mut threads = self.process.threads.lock();
        threads.remove(&self.tid());
        self.shared.set_tid(self.pid);
        threads.insert(self.pid, self.shared.clone());
        Ok(())
    }

    async fn become_program(&mut self, image: load::Image<N>) -> Result<()> {
        self.release_locks(false).await?;
        let memory = Arc::new(image.memory);
        *self.process.memory.lock() = Some(memory.clone());
        *self.process.exec_path.lock() = image.path;
        let old = core::mem::replace(&mut *self.process.text.lock(), image.text);
        drop(old);
        self.shared.change_creds(|creds| *creds = image.creds);
        if image.secure {
            self.process.clear_personality();
        }
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
            self.show_places();
        }
        let closed = self.table().exec();
        for file in closed {
            self.closed(file).await?;
        }
        self.process.delete_timers();
        // A program's maker asked for another signal of the program before (Linux `fs/exec.c`,
        // `de_thread`).
        if let Some(own) = self.node.kernel().tree.lock().processes.get_mut(&self.pid)
            && self.pid != FIRST
        {
            own.exit_signal = SIGCHLD;
        }
        self.alternate = [0, 2, 0];
        self.clear_tid = 0;
        self.set_rseq(None);
        self.shared.robust_list.store(0, Ordering::Relaxed);
        self.cpu = N::Cpu::new(image.entry, image.sp);
        self.apply_limits();
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
            let string = match self
                .memory
                .read_string(string, (*room).min(MAX_STRING))
                .await
            {
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
        let Some((child, change, time)) = self.wait_for(children, options | WEXITED).await? else {
            return Ok(0);
        };
        if status != 0 {
            self.memory
                .write(status, &wait_status(change).to_le_bytes())
                .await?;
        }
        if usage != 0 {
            self.memory.write_words(usage, &rusage(time, 0, 0)).await?;
        }
        Ok(child.into())
    }

    pub(super) async fn sys_waitid(
        &self,
        [kind, id, info, options, usage, _]: Args,
    ) -> Result<u64> {
        let id = u32::try_from(id & 0xffff_ffff).expect("32 bits");
        let mut waits = options & WNOHANG == 0;
        let mut again = false;
        let children = match kind {
            3 => {
                let (pid, may_wait) = self.child_at(id)?;
                again = !may_wait && waits;
                waits &= may_wait;
                Children::One(pid)
            }
            0 => Children::Any,
            1 => Children::One(id),
            2 if id == 0 => {
                Children::Group(self.node.kernel().relation(self.pid, |own| own.group)?)
            }
            2 => Children::Group(id),
            _ => return Err(errno::EINVAL.into()),
        };
        if options & (WEXITED | WUNTRACED | WCONTINUED) == 0 {
            return Err(errno::EINVAL.into());
        }
        let options = if waits { options } else { options | WNOHANG };
        let found = self.wait_for(children, options).await?;
        if again && found.is_none() {
            return Err(errno::EAGAIN.into());
        }
        if info != 0 {
            let told = found.map_or([0; crate::signals::INFO_SIZE], |(child, change, _)| {
                let info = match change {
                    Change::Ended(exit) => child_info(SIGCHLD, child, exit),
                    Change::News(news) => news_info(child, news),
                };
                info.encode()
            });
            self.memory.write(info, &told).await?;
        }
        if let Some((_, _, time)) = found.filter(|_| usage != 0) {
            self.memory.write_words(usage, &rusage(time, 0, 0)).await?;
        }
        Ok(0)
    }

    /// Waits for a change of a child that the options ask for; `None` if there is none and the call
    /// is not to wait.
    async fn wait_for(&self, children: Children, options: u64) -> Result<Option<Changed>> {
        let look = || match self.changed_child(children, options) {
            Ok(None) if options & WNOHANG == 0 => None,
            found => Some(found),
        };
        self.unless_called(self.process.children_changed.until(look))
            .await?
    }

    /// Returns a child that has changed, if one has; unless the caller only looks, it is told once.
    fn changed_child(&self, children: Children, options: u64) -> Result<Option<Changed>> {
        let mut tree = self.node.kernel().tree.lock();
        let mut any = false;
        let mut found = None;
        for (&pid, relations) in &tree.processes {
            let meant = match children {
                Children::Any => true,
                Children::One(one) => pid == one,
                Children::Group(group) => relations.group == group,
            };
            if relations.process.parent() == self.pid && meant {
                any = true;
                let time = &relations.process.cpu_time;
                let time = || time.total() + time.of_children();
                found = found
                    .or_else(|| change_of(relations, options).map(|change| (pid, change, time())));
            }
        }
        if options & WNOWAIT == 0 {
            match found {
                Some((pid, Change::Ended(_), _)) => {
                    if let Some(child) = tree.processes.remove(&pid) {
                        self.process.cpu_time.add_child(&child.process.cpu_time);
                        child.process.lifetime.forget();
                    }
                }
                Some((pid, Change::News(_), _)) => {
                    if let Some(child) = tree.processes.get_mut(&pid) {
                        child.news = None;
                    }
                }
                None => {}
            }
        }
        if any {
            Ok(found)
        } else {
            Err(errno::ECHILD.into())
        }
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
        if pid != self.pid && there.process.parent() != self.pid {
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

/// Changes of a child that a wait reports.
#[derive(Clone, Copy)]
enum Change {
    Ended(Exit),
    News(ChildChange),
}

/// Returns the change of a child that the options of a wait ask for.
fn change_of<N: Node>(child: &Relations<N>, options: u64) -> Option<Change> {
    if let Some(exit) = child.ended {
        return (options & WEXITED != 0).then_some(Change::Ended(exit));
    }
    let asked = match child.news? {
        ChildChange::Stopped(_) => WUNTRACED,
        ChildChange::Continued => WCONTINUED,
    };
    (options & asked != 0).then_some(Change::News(child.news?))
}

/// Returns a process's change as `wait` tells it.
fn wait_status(change: Change) -> u32 {
    match change {
        Change::Ended(Exit::Code(code)) => u32::from(code) << 8,
        Change::Ended(Exit::Signal(signal)) => signal.into(),
        Change::News(ChildChange::Stopped(signal)) => u32::from(signal) << 8 | 0x7f,
        Change::News(ChildChange::Continued) => 0xffff,
    }
}
