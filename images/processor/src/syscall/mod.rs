//! System calls: from a number and six words to what is done.

mod io;
mod layout;
mod memory;
mod misc;
mod now;
mod path;
mod resolve;
mod time;

use linux_raw_sys::general as nr;
pub(crate) use memory::Heap;

use crate::error::{Error, Exit, Result, errno};
use crate::platform::{Cpu, SystemCall};
use crate::process::{Node, Process};

/// The words of a call.
type Args = [u64; 6];

impl<N: Node> Process<'_, N> {
    /// Does what the program asked for.
    pub(crate) async fn system_call(&mut self, cpu: &mut impl Cpu, call: SystemCall) -> Result<u64> {
        let a = call.args;
        let Ok(number) = u32::try_from(call.number) else {
            return self.unknown(call.number);
        };
        match number {
            nr::__NR_read => self.sys_read(a).await,
            nr::__NR_write => self.sys_write(a).await,
            nr::__NR_readv => self.sys_readv(a).await,
            nr::__NR_writev => self.sys_writev(a).await,
            nr::__NR_pread64 => self.sys_pread(a).await,
            nr::__NR_sendfile => self.sys_sendfile(a).await,
            nr::__NR_lseek => self.sys_lseek(a).await,
            nr::__NR_close => self.sys_close(a).await,
            nr::__NR_dup | nr::__NR_dup2 | nr::__NR_dup3 => self.sys_dup(number, a).await,
            nr::__NR_fcntl => self.sys_fcntl(a),
            nr::__NR_ioctl => self.sys_ioctl(a),
            nr::__NR_poll => self.sys_poll(a).await,
            nr::__NR_getdents64 => self.sys_getdents(a).await,
            nr::__NR_mmap => self.sys_mmap(a).await,
            nr::__NR_munmap => self.sys_munmap(a).await,
            nr::__NR_mprotect => self.sys_mprotect(a).await,
            nr::__NR_mremap => self.sys_mremap(a).await,
            nr::__NR_brk => self.sys_brk(a).await,
            nr::__NR_madvise => self.sys_madvise(a).await,
            nr::__NR_arch_prctl => self.sys_arch_prctl(cpu, a).await,
            nr::__NR_exit | nr::__NR_exit_group => {
                // The low byte is what a parent sees.
                Err(Error::Ended(Exit::Code(a[0].to_le_bytes()[0])))
            }
            _ => self.path_call(number, a).await,
        }
    }

    async fn path_call(&mut self, number: u32, a: Args) -> Result<u64> {
        let [dir, path, ..] = a;
        match number {
            nr::__NR_open => self.sys_open(path::AT_FDCWD, a[0], a[1]).await,
            nr::__NR_creat => self.sys_open(path::AT_FDCWD, a[0], path::CREATE_TO_WRITE).await,
            nr::__NR_openat => self.sys_open(dir, path, a[2]).await,
            nr::__NR_stat => self.sys_stat(path::AT_FDCWD, a[0], a[1], 0).await,
            nr::__NR_lstat => self.sys_stat(path::AT_FDCWD, a[0], a[1], path::NOFOLLOW).await,
            nr::__NR_newfstatat => self.sys_stat(dir, path, a[2], a[3]).await,
            nr::__NR_fstat => self.sys_fstat(a).await,
            nr::__NR_statx => self.sys_statx(a).await,
            nr::__NR_access => self.sys_access(path::AT_FDCWD, a[0], a[1]).await,
            nr::__NR_faccessat | nr::__NR_faccessat2 => self.sys_access(dir, path, a[2]).await,
            nr::__NR_readlink => self.sys_readlink(path::AT_FDCWD, a[0], a[1], a[2]).await,
            nr::__NR_readlinkat => self.sys_readlink(dir, path, a[2], a[3]).await,
            nr::__NR_getcwd => self.sys_getcwd(a).await,
            nr::__NR_chdir => self.sys_chdir(a).await,
            nr::__NR_fchdir => self.sys_fchdir(a).await,
            _ => self.changing_call(number, a).await,
        }
    }

    /// Calls that would change files, by the folder and path that they would change.
    async fn changing_call(&mut self, number: u32, a: Args) -> Result<u64> {
        use path::{AT_FDCWD, Change};
        let (change, dir, path) = match number {
            nr::__NR_mkdir | nr::__NR_mknod => (Change::Create, AT_FDCWD, a[0]),
            nr::__NR_mkdirat | nr::__NR_mknodat => (Change::Create, a[0], a[1]),
            nr::__NR_symlink | nr::__NR_link => (Change::Create, AT_FDCWD, a[1]),
            nr::__NR_symlinkat => (Change::Create, a[1], a[2]),
            nr::__NR_linkat => (Change::Create, a[2], a[3]),
            nr::__NR_rmdir | nr::__NR_unlink | nr::__NR_rename => (Change::Remove, AT_FDCWD, a[0]),
            nr::__NR_unlinkat | nr::__NR_renameat | nr::__NR_renameat2 => (Change::Remove, a[0], a[1]),
            nr::__NR_truncate
            | nr::__NR_chmod
            | nr::__NR_chown
            | nr::__NR_lchown
            | nr::__NR_utime
            | nr::__NR_utimes => (Change::Modify, AT_FDCWD, a[0]),
            nr::__NR_fchmodat | nr::__NR_fchownat | nr::__NR_utimensat => (Change::Modify, a[0], a[1]),
            _ => return self.other_call(number, a).await,
        };
        self.sys_change(change, dir, path).await
    }

    async fn other_call(&mut self, number: u32, a: Args) -> Result<u64> {
        match number {
            nr::__NR_futex => self.sys_futex(a).await,
            nr::__NR_sched_yield => self.sys_yield().await,
            nr::__NR_umask => Ok(core::mem::replace(&mut self.umask, a[0] & 0o777)),
            nr::__NR_uname => self.sys_uname(a).await,
            nr::__NR_sysinfo => self.sys_sysinfo(a).await,
            nr::__NR_getrandom => self.sys_getrandom(a).await,
            nr::__NR_prlimit64 => self.sys_limit(a[1], a[3]).await,
            nr::__NR_getrlimit => self.sys_limit(a[0], a[1]).await,
            nr::__NR_sched_getaffinity => self.sys_affinity(a).await,
            nr::__NR_clock_gettime => self.sys_clock_gettime(a).await,
            nr::__NR_clock_getres => self.sys_clock_getres(a).await,
            nr::__NR_gettimeofday => self.sys_gettimeofday(a).await,
            nr::__NR_time => self.sys_time(a).await,
            nr::__NR_nanosleep => self.sys_nanosleep(a[0]).await,
            nr::__NR_clock_nanosleep => self.sys_clock_nanosleep(a).await,
            nr::__NR_getrusage => self.sys_getrusage(a).await,
            nr::__NR_times => self.sys_times(a).await,
            nr::__NR_rt_sigaction => self.sys_sigaction(a).await,
            nr::__NR_rt_sigprocmask => self.sys_sigprocmask(a).await,
            nr::__NR_sigaltstack => self.sys_sigaltstack(a).await,
            nr::__NR_kill | nr::__NR_tkill => self.sys_kill(a[0], a[1]),
            nr::__NR_tgkill => self.sys_kill(a[1], a[2]),
            _ => match self.call_now(u64::from(number)) {
                Some(value) => Ok(value),
                None => self.unknown(u64::from(number)),
            },
        }
    }

    pub(super) fn unknown(&mut self, number: u64) -> Result<u64> {
        // A program may try any number: the table stays bounded by those that Linux has.
        let known = crate::system_call_name(number).map_or(u64::MAX, |_| number);
        *self.unimplemented.entry(known).or_default() += 1;
        Err(errno::ENOSYS.into())
    }
}
