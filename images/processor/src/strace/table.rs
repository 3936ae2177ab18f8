//! The system calls' arguments, for the trace: one line a call.

use linux_raw_sys::general as nr;

use super::words::{
    ACCESS, ADVICE, AT, CLOCKS, CLONE, CONTROL, EPOLL_OPS, FUTEX, HOW, IOCTLS, MAP, PROT, WAIT,
    WHENCE, Words,
};

/// Formats of an argument.
#[derive(Clone, Copy)]
pub(super) enum Arg {
    /// A signed number of 32 bits.
    Int,
    /// A number.
    Size,
    /// An address or a set of bits.
    Hex,
    /// A folder's file number, or `AT_FDCWD`.
    Dir,
    /// A path.
    Path,
    /// Bytes that the call reads; the number of the argument that is their length.
    In(usize),
    /// Bytes that the call has written; the result is their length.
    Out,
    /// A path that the call has written.
    OutPath,
    /// Two file numbers that the call has written.
    OutPair,
    /// An int that the call has written.
    OutInt,
    /// A list of strings.
    Strings,
    /// The number of strings of a list.
    Count,
    /// The flags of open.
    Open,
    /// Bits with names.
    Flags(&'static Words),
    /// A number with a name.
    Name(&'static Words),
    /// A signal.
    Signal,
    /// Rights, in octal.
    Mode,
    /// Seconds and nanoseconds.
    Time,
    /// A set of signals.
    Set,
}

use Arg::{
    Count, Dir, Flags, Hex, In, Int, Mode, Name, Open, Out, OutInt, OutPair, OutPath, Path, Set,
    Signal, Size, Strings, Time,
};

/// Returns a call's arguments; for calls without a line of their own, four words.
pub(super) fn args(number: u64) -> &'static [Arg] {
    let Ok(number) = u32::try_from(number) else {
        return &[Hex; 4];
    };
    match number {
        nr::__NR_read => &[Int, Out, Size],
        nr::__NR_write => &[Int, In(2), Size],
        nr::__NR_pread64 => &[Int, Out, Size, Size],
        nr::__NR_pwrite64 => &[Int, In(2), Size, Size],
        nr::__NR_readv | nr::__NR_writev => &[Int, Hex, Int],
        nr::__NR_open => &[Path, Open, Mode],
        nr::__NR_openat => &[Dir, Path, Open, Mode],
        nr::__NR_creat => &[Path, Mode],
        nr::__NR_close | nr::__NR_fsync | nr::__NR_fdatasync | nr::__NR_fchdir => &[Int],
        nr::__NR_stat | nr::__NR_lstat | nr::__NR_statfs => &[Path, Hex],
        nr::__NR_fstat | nr::__NR_fstatfs => &[Int, Hex],
        nr::__NR_newfstatat => &[Dir, Path, Hex, Flags(AT)],
        nr::__NR_statx => &[Dir, Path, Flags(AT), Hex, Hex],
        nr::__NR_access => &[Path, Flags(ACCESS)],
        nr::__NR_faccessat => &[Dir, Path, Flags(ACCESS)],
        nr::__NR_faccessat2 => &[Dir, Path, Flags(ACCESS), Flags(AT)],
        nr::__NR_readlink => &[Path, Out, Size],
        nr::__NR_readlinkat => &[Dir, Path, Out, Size],
        nr::__NR_getcwd => &[OutPath, Size],
        nr::__NR_chdir | nr::__NR_rmdir | nr::__NR_unlink => &[Path],
        nr::__NR_mkdir | nr::__NR_chmod => &[Path, Mode],
        nr::__NR_mkdirat | nr::__NR_fchmodat => &[Dir, Path, Mode],
        nr::__NR_unlinkat => &[Dir, Path, Flags(AT)],
        nr::__NR_rename | nr::__NR_link | nr::__NR_symlink => &[Path, Path],
        nr::__NR_renameat | nr::__NR_linkat => &[Dir, Path, Dir, Path],
        nr::__NR_renameat2 => &[Dir, Path, Dir, Path, Hex],
        nr::__NR_symlinkat => &[Path, Dir, Path],
        nr::__NR_lseek => &[Int, Size, Name(WHENCE)],
        nr::__NR_dup => &[Int],
        nr::__NR_dup2 => &[Int, Int],
        nr::__NR_dup3 => &[Int, Int, Open],
        nr::__NR_pipe => &[OutPair],
        nr::__NR_pipe2 => &[OutPair, Open],
        nr::__NR_fcntl => &[Int, Name(CONTROL), Hex],
        nr::__NR_ioctl => &[Int, Name(IOCTLS), Hex],
        nr::__NR_poll => &[Hex, Int, Int],
        nr::__NR_getdents64 => &[Int, Hex, Size],
        nr::__NR_mmap => &[Hex, Size, Flags(PROT), Flags(MAP), Int, Hex],
        nr::__NR_munmap => &[Hex, Size],
        nr::__NR_mprotect => &[Hex, Size, Flags(PROT)],
        nr::__NR_mremap => &[Hex, Size, Size, Hex],
        nr::__NR_madvise => &[Hex, Size, Name(ADVICE)],
        nr::__NR_brk | nr::__NR_set_tid_address => &[Hex],
        nr::__NR_clone => &[Flags(CLONE), Hex, Hex, Hex, Hex],
        nr::__NR_clone3 => &[Hex, Size],
        nr::__NR_execve => &[Path, Strings, Count],
        nr::__NR_exit | nr::__NR_exit_group => &[Int],
        nr::__NR_wait4 => &[Int, OutInt, Flags(WAIT), Hex],
        nr::__NR_waitid => &[Int, Int, Hex, Flags(WAIT), Hex],
        nr::__NR_kill | nr::__NR_tkill => &[Int, Signal],
        nr::__NR_tgkill => &[Int, Int, Signal],
        nr::__NR_rt_sigaction => &[Signal, Hex, Hex, Size],
        nr::__NR_rt_sigprocmask => &[Name(HOW), Set, Hex, Size],
        nr::__NR_rt_sigsuspend => &[Set, Size],
        nr::__NR_setpgid => &[Int, Int],
        nr::__NR_getpgid | nr::__NR_getsid => &[Int],
        nr::__NR_futex => &[Hex, Name(FUTEX), Int, Hex, Hex, Hex],
        nr::__NR_nanosleep => &[Time, Hex],
        nr::__NR_clock_nanosleep => &[Name(CLOCKS), Hex, Time, Hex],
        nr::__NR_clock_gettime | nr::__NR_clock_getres => &[Name(CLOCKS), Hex],
        nr::__NR_epoll_ctl => &[Int, Name(EPOLL_OPS), Int, Hex],
        nr::__NR_epoll_wait | nr::__NR_epoll_pwait => &[Int, Hex, Int, Int],
        nr::__NR_getrandom => &[Hex, Size, Hex],
        nr::__NR_umask => &[Mode],
        nr::__NR_getpid
        | nr::__NR_gettid
        | nr::__NR_getppid
        | nr::__NR_getpgrp
        | nr::__NR_getuid
        | nr::__NR_geteuid
        | nr::__NR_getgid
        | nr::__NR_getegid
        | nr::__NR_fork
        | nr::__NR_vfork
        | nr::__NR_pause
        | nr::__NR_setsid
        | nr::__NR_sync
        | nr::__NR_sched_yield
        | nr::__NR_rt_sigreturn => &[],
        nr::__NR_set_robust_list | nr::__NR_rseq | nr::__NR_arch_prctl | nr::__NR_sigaltstack => {
            &[Hex, Hex]
        }
        nr::__NR_prlimit64 => &[Int, Int, Hex, Hex],
        nr::__NR_uname | nr::__NR_sysinfo => &[Hex],
        _ => &[Hex; 4],
    }
}
