//! System calls: from a number and six words to what is done.

mod attributes;
mod clone;
mod epoll;
mod fifo;
mod folders;
mod futex;
mod futex2;
mod futex_pi;
mod identity;
mod inotify;
mod io;
mod ipc;
mod layout;
mod lock;
mod memfd;
mod memory;
mod misc;
pub(crate) mod now;
mod openat2;
mod other_memory;
mod path;
mod pidfd;
mod poll;
mod priority;
mod process;
mod pseudo;
mod resident;
mod resolve;
mod rseq;
mod shown;
mod signal;
mod socket;
mod splice;
mod storage;
mod terminal;
mod time;
mod timer;
mod tmp;
pub(crate) mod walk;

use alloc::sync::Arc;

use linux_raw_sys::general as nr;

use crate::deliver::Outcome;
use crate::error::{Error, Exit, Result, errno};
use crate::files::{O_PATH, OpenFile};
use crate::platform::SystemCall;
use crate::process::Node;
use crate::thread::Thread;
pub(crate) use layout::{device_of, device_parts};

/// The words of a call.
type Args = [u64; 6];

/// Returns an argument that is an int: the upper half of the register does not count.
const fn int(word: u64) -> u32 {
    (word & 0xffff_ffff) as u32
}

impl<N: Node> Thread<N> {
    /// Does what the program asked for.
    pub(crate) async fn system_call(&mut self, call: SystemCall) -> Result<Outcome> {
        let a = call.args;
        let Ok(number) = u32::try_from(call.number) else {
            return Err(self.unknown(call.number));
        };
        match number {
            nr::__NR_rt_sigreturn => {
                self.sys_sigreturn().await?;
                Ok(Outcome::Registers)
            }
            nr::__NR_execve => self.sys_execve(path::AT_FDCWD, [a[0], a[1], a[2], 0]).await,
            nr::__NR_execveat => self.sys_execve(a[0], [a[1], a[2], a[3], a[4]]).await,
            nr::__NR_exit => Err(self.sys_exit(a[0])),
            // The way through all families below takes some 500 instructions; those of a shell's
            // fork and wait go straight to theirs.
            nr::__NR_clone
            | nr::__NR_clone3
            | nr::__NR_fork
            | nr::__NR_vfork
            | nr::__NR_wait4
            | nr::__NR_set_robust_list
            | nr::__NR_set_tid_address
            | nr::__NR_rseq
            | nr::__NR_rt_sigaction
            | nr::__NR_rt_sigprocmask => self.thread_call(number, a).await.map(Outcome::Value),
            nr::__NR_futex => self.sys_futex(a).await.map(Outcome::Value),
            nr::__NR_read => self.read_taken(a).await.map(Outcome::Value),
            // The low byte is what a parent sees.
            nr::__NR_exit_group => Err(Error::Ended(Exit::Code(a[0].to_le_bytes()[0]))),
            _ => self.file_call(number, a).await.map(Outcome::Value),
        }
    }

    /// Reads from a file, or puts what was read already where it belongs.
    async fn read_taken(&mut self, a: Args) -> Result<u64> {
        match self.taken.take() {
            Some(taken) => {
                self.memory.write(a[1], taken.bytes()).await?;
                Ok(taken.bytes().len() as u64)
            }
            None => self.sys_read(a).await,
        }
    }

    /// Returns the open file of a number, for what reads, writes or changes it.
    ///
    /// # Errors
    ///
    /// EBADF if there is none, or one that `O_PATH` opened.
    pub(crate) fn file(&self, fd: u64) -> Result<Arc<OpenFile>> {
        let file = self.place(fd)?;
        if file.flags() & O_PATH != 0 {
            return Err(errno::EBADF.into());
        }
        Ok(file)
    }

    /// Returns the open file of a number, for what asks where or what it is.
    pub(crate) fn place(&self, fd: u64) -> Result<Arc<OpenFile>> {
        self.table().get(fd)
    }

    async fn file_call(&mut self, number: u32, a: Args) -> Result<u64> {
        match number {
            nr::__NR_write => self.sys_write(a).await,
            nr::__NR_readv => self.sys_readv(a).await,
            nr::__NR_writev => self.sys_writev(a).await,
            nr::__NR_pwrite64 => self.sys_pwrite(a).await,
            nr::__NR_pread64 => self.sys_pread(a).await,
            nr::__NR_preadv | nr::__NR_preadv2 => self.sys_preadv(number, a).await,
            nr::__NR_pwritev | nr::__NR_pwritev2 => self.sys_pwritev(number, a).await,
            nr::__NR_sendfile => self.sys_sendfile(a).await,
            nr::__NR_inotify_init => self.sys_inotify_init(0),
            nr::__NR_inotify_init1 => self.sys_inotify_init(a[0]),
            nr::__NR_inotify_add_watch => self.sys_inotify_add_watch(a).await,
            nr::__NR_inotify_rm_watch => self.sys_inotify_rm_watch(a),
            nr::__NR_splice => self.sys_splice(a).await,
            nr::__NR_tee => self.sys_tee(a).await,
            nr::__NR_vmsplice => self.sys_vmsplice(a).await,
            nr::__NR_copy_file_range => self.sys_copy_file_range(a).await,
            nr::__NR_lseek => self.sys_lseek(a).await,
            nr::__NR_close => self.sys_close(a).await,
            nr::__NR_close_range => self.sys_close_range(a).await,
            nr::__NR_dup | nr::__NR_dup2 | nr::__NR_dup3 => self.sys_dup(number, a).await,
            nr::__NR_flock => self.sys_flock(a).await,
            nr::__NR_fcntl => self.sys_fcntl(a).await,
            nr::__NR_memfd_create => self.sys_memfd_create(a).await,
            nr::__NR_ioctl => self.sys_ioctl(a).await,
            nr::__NR_poll => self.sys_poll(a).await,
            nr::__NR_ppoll => self.sys_ppoll(a).await,
            nr::__NR_select => self.sys_select(a).await,
            nr::__NR_pselect6 => self.sys_pselect(a).await,
            nr::__NR_pipe => self.sys_pipe([a[0], 0, 0, 0, 0, 0]).await,
            nr::__NR_pipe2 => self.sys_pipe(a).await,
            nr::__NR_eventfd => self.sys_eventfd(a[0], 0),
            nr::__NR_eventfd2 => self.sys_eventfd(a[0], a[1]),
            nr::__NR_epoll_create if int(a[0]).cast_signed() > 0 => self.sys_epoll_create(0),
            nr::__NR_epoll_create => Err(errno::EINVAL.into()),
            nr::__NR_epoll_create1 => self.sys_epoll_create(a[0]),
            nr::__NR_epoll_ctl => self.sys_epoll_ctl(a).await,
            nr::__NR_epoll_wait => self.sys_epoll_wait(a).await,
            nr::__NR_epoll_pwait => self.sys_epoll_pwait(a).await,
            nr::__NR_epoll_pwait2 => self.sys_epoll_pwait2(a).await,
            nr::__NR_getdents64 => self.sys_getdents(a).await,
            nr::__NR_mmap => self.sys_mmap(a).await,
            nr::__NR_munmap => self.sys_munmap(a).await,
            nr::__NR_mprotect => self.sys_mprotect(a).await,
            nr::__NR_mremap => self.sys_mremap(a).await,
            nr::__NR_brk => self.sys_brk(a).await,
            nr::__NR_madvise => self.sys_madvise(a).await,
            nr::__NR_arch_prctl => self.sys_arch_prctl(a).await,
            _ => self.socket_call(number, a).await,
        }
    }

    async fn path_call(&mut self, number: u32, a: Args) -> Result<u64> {
        let [dir, path, ..] = a;
        match number {
            nr::__NR_open => self.sys_open(path::AT_FDCWD, a[0], a[1], a[2]).await,
            nr::__NR_creat => {
                self.sys_open(path::AT_FDCWD, a[0], path::CREATE_TO_WRITE, a[1])
                    .await
            }
            nr::__NR_openat => self.sys_open(dir, path, a[2], a[3]).await,
            nr::__NR_openat2 => self.sys_openat2(a).await,
            nr::__NR_stat => self.sys_stat(path::AT_FDCWD, a[0], a[1], 0).await,
            nr::__NR_lstat => {
                self.sys_stat(path::AT_FDCWD, a[0], a[1], path::NOFOLLOW)
                    .await
            }
            nr::__NR_newfstatat => self.sys_stat(dir, path, a[2], a[3]).await,
            nr::__NR_fstat => self.sys_fstat(a).await,
            nr::__NR_statx => self.sys_statx(a).await,
            nr::__NR_access => self.sys_access(path::AT_FDCWD, a[0], a[1], 0).await,
            nr::__NR_faccessat => self.sys_access(dir, path, a[2], 0).await,
            nr::__NR_faccessat2 => self.sys_access(dir, path, a[2], a[3]).await,
            nr::__NR_readlink => self.sys_readlink(path::AT_FDCWD, a[0], a[1], a[2]).await,
            nr::__NR_readlinkat => self.sys_readlink(dir, path, a[2], a[3]).await,
            nr::__NR_getcwd => self.sys_getcwd(a).await,
            nr::__NR_chdir => self.sys_chdir(a).await,
            nr::__NR_chroot => self.sys_chroot(a).await,
            nr::__NR_fchdir => self.sys_fchdir(a).await,
            _ => self.changing_call(number, a).await,
        }
    }

    /// Calls that change files.
    async fn changing_call(&mut self, number: u32, a: Args) -> Result<u64> {
        use path::AT_FDCWD;
        match number {
            nr::__NR_mkdir => self.sys_mkdirat(AT_FDCWD, a[0], a[1]).await,
            nr::__NR_mkdirat => self.sys_mkdirat(a[0], a[1], a[2]).await,
            nr::__NR_mknod => self.sys_mknodat(AT_FDCWD, a[0], a[1], a[2]).await,
            nr::__NR_mknodat => self.sys_mknodat(a[0], a[1], a[2], a[3]).await,
            nr::__NR_symlink => self.sys_symlinkat(a[0], AT_FDCWD, a[1]).await,
            nr::__NR_symlinkat => self.sys_symlinkat(a[0], a[1], a[2]).await,
            nr::__NR_link => {
                self.sys_linkat([AT_FDCWD, a[0], AT_FDCWD, a[1], 0, 0])
                    .await
            }
            nr::__NR_linkat => self.sys_linkat(a).await,
            nr::__NR_unlink => self.sys_unlinkat(AT_FDCWD, a[0], 0).await,
            nr::__NR_rmdir => self.sys_unlinkat(AT_FDCWD, a[0], 0x200).await,
            nr::__NR_unlinkat => self.sys_unlinkat(a[0], a[1], a[2]).await,
            nr::__NR_rename => {
                self.sys_renameat([AT_FDCWD, a[0], AT_FDCWD, a[1], 0, 0])
                    .await
            }
            nr::__NR_renameat => self.sys_renameat([a[0], a[1], a[2], a[3], 0, 0]).await,
            nr::__NR_renameat2 => self.sys_renameat(a).await,
            nr::__NR_truncate => self.sys_truncate(a).await,
            nr::__NR_ftruncate => self.sys_ftruncate(a).await,
            nr::__NR_fallocate => self.sys_fallocate(a).await,
            nr::__NR_utimensat => self.sys_utimensat(a).await,
            nr::__NR_fsync | nr::__NR_fdatasync => self.sys_fsync(a).await,
            nr::__NR_sync_file_range => self.sys_sync_range(a).await,
            nr::__NR_sync => self.sys_sync().await,
            nr::__NR_syncfs => self.sys_syncfs(a).await,
            _ => self.owner_call(number, a).await,
        }
    }

    /// Calls that change modes and owners.
    async fn owner_call(&mut self, number: u32, a: Args) -> Result<u64> {
        use crate::tmpfs::Change;
        use path::{AT_FDCWD, NOFOLLOW};
        let mode = |mode: u64| Change::Mode(int(mode));
        let owner = |uid: u64, gid: u64| Change::Owner(int(uid), int(gid));
        match number {
            nr::__NR_chmod => self.change_at(AT_FDCWD, a[0], true, mode(a[1])).await,
            nr::__NR_fchmod => self.change_file(a[0], &mode(a[1])).await,
            nr::__NR_fchmodat2 => self.sys_fchmodat2(a).await,
            nr::__NR_fchmodat => self.change_at(a[0], a[1], true, mode(a[2])).await,
            nr::__NR_chown => {
                self.change_at(AT_FDCWD, a[0], true, owner(a[1], a[2]))
                    .await
            }
            nr::__NR_lchown => {
                self.change_at(AT_FDCWD, a[0], false, owner(a[1], a[2]))
                    .await
            }
            nr::__NR_fchown => self.change_file(a[0], &owner(a[1], a[2])).await,
            nr::__NR_fchownat => {
                let follow = a[4] & NOFOLLOW == 0;
                self.change_at(a[0], a[1], follow, owner(a[2], a[3])).await
            }
            nr::__NR_utime => self.sys_utime(a).await,
            nr::__NR_utimes => self.sys_futimesat([AT_FDCWD, a[0], a[1], 0, 0, 0]).await,
            nr::__NR_futimesat => self.sys_futimesat(a).await,
            _ => self.other_call(number, a).await,
        }
    }

    async fn other_call(&mut self, number: u32, a: Args) -> Result<u64> {
        match number {
            nr::__NR_getpgrp => self.sys_getpgid(0),
            nr::__NR_getpgid => self.sys_getpgid(a[0]),
            nr::__NR_setpgid => self.sys_setpgid(a),
            nr::__NR_getsid => self.sys_getsid(a[0]),
            nr::__NR_setsid => self.sys_setsid(),
            nr::__NR_sched_yield => self.sys_yield().await,
            nr::__NR_umask => {
                let mut fs = self.fs.lock();
                Ok(core::mem::replace(&mut fs.umask, a[0] & 0o777))
            }
            nr::__NR_uname => self.sys_uname(a).await,
            nr::__NR_sysinfo => self.sys_sysinfo(a).await,
            nr::__NR_getrandom => self.sys_getrandom(a).await,
            nr::__NR_sched_getaffinity => self.sys_affinity(a).await,
            nr::__NR_getcpu => self.sys_getcpu(a).await,
            _ => self.thread_call(number, a).await,
        }
    }

    async fn thread_call(&mut self, number: u32, a: Args) -> Result<u64> {
        match number {
            nr::__NR_clone => self.sys_clone(a).await,
            nr::__NR_clone3 => self.sys_clone3(a).await,
            nr::__NR_fork => self.sys_fork().await,
            nr::__NR_vfork => self.sys_vfork().await,
            nr::__NR_wait4 => self.sys_wait4(a).await,
            nr::__NR_waitid => self.sys_waitid(a).await,
            nr::__NR_pidfd_open => self.sys_pidfd_open(a),
            nr::__NR_pidfd_send_signal => self.sys_pidfd_send_signal(a).await,
            nr::__NR_futex_waitv => self.sys_futex_waitv(a).await,
            nr::__NR_futex_wait => self.sys_futex_wait(a).await,
            nr::__NR_futex_wake => self.sys_futex_wake(a),
            nr::__NR_futex_requeue => self.sys_futex_requeue(a).await,
            nr::__NR_rseq => self.sys_rseq(a).await,
            nr::__NR_set_tid_address => Ok(self.sys_set_tid_address(a[0])),
            nr::__NR_set_robust_list => self.sys_set_robust_list(a),
            nr::__NR_get_robust_list => self.sys_get_robust_list(a).await,
            nr::__NR_rt_sigaction => self.sys_sigaction(a).await,
            nr::__NR_rt_sigprocmask => self.sys_sigprocmask(a).await,
            nr::__NR_rt_sigpending => self.sys_sigpending(a).await,
            nr::__NR_rt_sigsuspend => self.sys_sigsuspend(a).await,
            nr::__NR_rt_sigtimedwait => self.sys_sigtimedwait(a).await,
            nr::__NR_rt_sigqueueinfo => self.sys_sigqueueinfo(None, [a[0], a[1], a[2]]).await,
            nr::__NR_rt_tgsigqueueinfo => {
                self.sys_sigqueueinfo(Some(a[0]), [a[1], a[2], a[3]]).await
            }
            nr::__NR_sigaltstack => self.sys_sigaltstack(a).await,
            nr::__NR_pause => self.sys_pause().await,
            nr::__NR_kill => self.sys_kill(a),
            nr::__NR_tkill => self.sys_tgkill(None, a[0], a[1]),
            nr::__NR_tgkill => self.sys_tgkill(Some(a[0]), a[1], a[2]),
            _ => self.clock_call(number, a).await,
        }
    }

    async fn clock_call(&mut self, number: u32, a: Args) -> Result<u64> {
        match number {
            nr::__NR_clock_gettime => self.sys_clock_gettime(a).await,
            nr::__NR_clock_getres => self.sys_clock_getres(a).await,
            nr::__NR_gettimeofday => self.sys_gettimeofday(a).await,
            nr::__NR_time => self.sys_time(a).await,
            nr::__NR_nanosleep => self.sys_nanosleep(a).await,
            nr::__NR_clock_nanosleep => self.sys_clock_nanosleep(a).await,
            nr::__NR_getrusage => self.sys_getrusage(a).await,
            nr::__NR_times => self.sys_times(a).await,
            _ => match self.timer_call(number, a).await {
                Some(done) => done,
                None => self.kept_call(number, a).await,
            },
        }
    }

    /// Calls about what is kept of a thread or process.
    async fn kept_call(&self, number: u32, a: Args) -> Result<u64> {
        if let Some(done) = self.identity_call(number, a).await {
            return done;
        }
        if let Some(done) = self.priority_call(number, a).await {
            return done;
        }
        if let Some(done) = self.attribute_call(number, a).await {
            return done;
        }
        if let Some(done) = self.other_memory_call(number, a).await {
            return done;
        }
        if let Some(done) = self.ipc_call(number, a).await {
            return done;
        }
        match self.resident_call(number, a).await {
            Some(done) => done,
            None => self.quiet_call(number, a).await,
        }
    }

    /// Calls that change nothing here, and what they say.
    async fn quiet_call(&self, number: u32, a: Args) -> Result<u64> {
        match number {
            nr::__NR_fadvise64 => self.sys_fadvise(a),
            nr::__NR_readahead => self.sys_readahead(a),
            nr::__NR_personality => Ok(self.sys_personality(a[0])),
            nr::__NR_prctl => self.sys_prctl(a).await,
            nr::__NR_statfs => self.sys_statfs(a[0], a[1]).await,
            nr::__NR_fstatfs => self.sys_fstatfs(a[0], a[1]).await,
            nr::__NR_membarrier => self.sys_membarrier(a),
            nr::__NR_clock_settime => self.sys_clock_settime(a),
            nr::__NR_settimeofday | nr::__NR_clock_adjtime => Err(errno::EPERM.into()),
            nr::__NR_adjtimex => self.sys_adjtimex(a).await,
            nr::__NR_sched_setaffinity => self.sys_set_affinity(a).await,
            _ => match self.call_now(u64::from(number), || a) {
                Some(value) => Ok(value),
                None => Err(self.unknown(u64::from(number))),
            },
        }
    }

    pub(super) fn unknown(&self, number: u64) -> Error {
        self.node.kernel().count_unimplemented(number);
        errno::ENOSYS.into()
    }
}
