//! The system calls' arguments, for the trace: one line a call.

use linux_raw_sys::general as nr;

use super::structs::Struct;
use super::words::{
    ACCESS, ADVICE, ARCH, AT, CLOCKS, CLONE, CONTROL, EPOLL_OPS, FAMILIES, FUTEX, HOW, IOCTLS,
    LIMITS, MAP, MESSAGES, PRCTL, PROT, SHUTDOWN, SOCKETS, WAIT, WHENCE, Words,
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
    /// An end of a process that the call has written.
    OutStatus,
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
    /// A structure that the call reads.
    Given(Struct),
    /// A structure that the call has written.
    Filled(Struct),
    /// Structures that the call reads; the number of the argument that counts them.
    List(Struct, usize),
    /// Structures that the call has written; the result counts them.
    Events(Struct),
    /// Pieces of memory whose bytes the call reads, and the number of the argument that counts
    /// them.
    Pieces(usize),
    /// Pieces of memory that the call has written to.
    OutPieces(usize),
    /// A socket's address that the call reads; the number of the argument that is its length.
    Address(usize),
    /// A socket's address that the call has written; the number of the argument that leads to its
    /// length.
    OutAddress(usize),
}

use Arg::{
    Address, Count, Dir, Events, Filled, Flags, Given, Hex, In, Int, List, Mode, Name, Open, Out,
    OutAddress, OutPair, OutPath, OutPieces, OutStatus, Path, Pieces, Signal, Size, Strings,
};
use Struct::{
    EpollEvent, Limit, Names, PollFd, SigAction, SigSet, Stat, Statx, TimeSpec, TimeVal, Times,
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
        nr::__NR_readv => &[Int, OutPieces(2), Int],
        nr::__NR_writev => &[Int, Pieces(2), Int],
        nr::__NR_preadv => &[Int, OutPieces(2), Int, Size],
        nr::__NR_pwritev => &[Int, Pieces(2), Int, Size],
        nr::__NR_open => &[Path, Open, Mode],
        nr::__NR_openat => &[Dir, Path, Open, Mode],
        nr::__NR_creat => &[Path, Mode],
        nr::__NR_close | nr::__NR_fsync | nr::__NR_fdatasync | nr::__NR_fchdir => &[Int],
        nr::__NR_stat | nr::__NR_lstat => &[Path, Filled(Stat)],
        nr::__NR_statfs => &[Path, Hex],
        nr::__NR_fstat => &[Int, Filled(Stat)],
        nr::__NR_fstatfs => &[Int, Hex],
        nr::__NR_newfstatat => &[Dir, Path, Filled(Stat), Flags(AT)],
        nr::__NR_statx => &[Dir, Path, Flags(AT), Hex, Filled(Statx)],
        nr::__NR_access => &[Path, Flags(ACCESS)],
        nr::__NR_faccessat => &[Dir, Path, Flags(ACCESS)],
        nr::__NR_faccessat2 => &[Dir, Path, Flags(ACCESS), Flags(AT)],
        nr::__NR_readlink => &[Path, Out, Size],
        nr::__NR_readlinkat => &[Dir, Path, Out, Size],
        nr::__NR_getcwd => &[OutPath, Size],
        nr::__NR_chdir | nr::__NR_chroot | nr::__NR_rmdir | nr::__NR_unlink => &[Path],
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
        nr::__NR_poll => &[List(PollFd, 1), Int, Int],
        nr::__NR_ppoll => &[List(PollFd, 1), Int, Given(TimeSpec), Given(SigSet), Size],
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
        nr::__NR_wait4 => &[Int, OutStatus, Flags(WAIT), Hex],
        nr::__NR_waitid => &[Int, Int, Hex, Flags(WAIT), Hex],
        nr::__NR_kill | nr::__NR_tkill => &[Int, Signal],
        nr::__NR_tgkill => &[Int, Int, Signal],
        nr::__NR_rt_sigaction => &[Signal, Given(SigAction), Filled(SigAction), Size],
        nr::__NR_rt_sigprocmask => &[Name(HOW), Given(SigSet), Filled(SigSet), Size],
        nr::__NR_rt_sigsuspend => &[Given(SigSet), Size],
        nr::__NR_rt_sigpending => &[Filled(SigSet), Size],
        nr::__NR_rt_sigtimedwait => &[Given(SigSet), Hex, Given(TimeSpec), Size],
        nr::__NR_setpgid => &[Int, Int],
        nr::__NR_getpgid | nr::__NR_getsid => &[Int],
        nr::__NR_futex => &[Hex, Name(FUTEX), Int, Hex, Hex, Hex],
        nr::__NR_nanosleep => &[Given(TimeSpec), Hex],
        nr::__NR_clock_nanosleep => &[Name(CLOCKS), Hex, Given(TimeSpec), Hex],
        nr::__NR_clock_gettime | nr::__NR_clock_getres => &[Name(CLOCKS), Filled(TimeSpec)],
        nr::__NR_clock_settime => &[Name(CLOCKS), Given(TimeSpec)],
        nr::__NR_gettimeofday => &[Filled(TimeVal), Hex],
        nr::__NR_utimensat => &[Dir, Path, Given(Times), Flags(AT)],
        nr::__NR_epoll_ctl => &[Int, Name(EPOLL_OPS), Int, Given(EpollEvent)],
        nr::__NR_epoll_wait | nr::__NR_epoll_pwait => &[Int, Events(EpollEvent), Int, Int],
        nr::__NR_socket => &[Name(FAMILIES), Flags(SOCKETS), Int],
        nr::__NR_socketpair => &[Name(FAMILIES), Flags(SOCKETS), Int, OutPair],
        nr::__NR_bind | nr::__NR_connect => &[Int, Address(2), Int],
        nr::__NR_listen => &[Int, Int],
        nr::__NR_accept => &[Int, OutAddress(2), Hex],
        nr::__NR_accept4 => &[Int, OutAddress(2), Hex, Flags(SOCKETS)],
        nr::__NR_getsockname | nr::__NR_getpeername => &[Int, OutAddress(2), Hex],
        nr::__NR_sendto => &[Int, In(2), Size, Flags(MESSAGES), Address(5), Int],
        nr::__NR_recvfrom => &[Int, Out, Size, Flags(MESSAGES), OutAddress(5), Hex],
        nr::__NR_sendmsg | nr::__NR_recvmsg => &[Int, Hex, Flags(MESSAGES)],
        nr::__NR_shutdown => &[Int, Name(SHUTDOWN)],
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
        nr::__NR_set_robust_list | nr::__NR_sigaltstack => &[Hex, Hex],
        nr::__NR_rseq => &[Hex, Size, Hex, Hex],
        nr::__NR_arch_prctl => &[Name(ARCH), Hex],
        nr::__NR_prctl => &[Name(PRCTL), Hex, Hex, Hex, Hex],
        nr::__NR_prlimit64 => &[Int, Name(LIMITS), Given(Limit), Filled(Limit)],
        nr::__NR_getrlimit => &[Name(LIMITS), Filled(Limit)],
        nr::__NR_setrlimit => &[Name(LIMITS), Given(Limit)],
        nr::__NR_uname => &[Filled(Names)],
        nr::__NR_sysinfo => &[Hex],
        _ => &[Hex; 4],
    }
}
