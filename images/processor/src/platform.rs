//! The machine and the network, as P's logic needs them.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::future::Future;
use core::time::Duration;

use hal::Instant;
use messages::memory::{CapacityReply, Chunks, MAX_CHUNKS};
use messages::storage::{
    AllocateFlags, Attributes, Caller, FileId, FlushRequest, Flushed, Leased, OpenFlags, Opened,
    RenameFlags, Stat, Statfs, Written, XattrFlags, XattrName,
};
use pcache::Access;

use crate::error::Result;
use crate::gather::{Gathered, Settle};
use crate::vdso::VdsoParts;

/// A component that P asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// M.
    Memory,
    /// S.
    Storage,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Storage => "storage",
        })
    }
}

/// Facts about the CPU that programs may ask for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CpuFacts {
    /// CPUID leaf 0.
    pub vendor: String,
    /// The name, as its leaves 0x80000002 to 4 have it.
    pub name: String,
    /// Family, model and stepping, extended parts included.
    pub family: u32,
    /// See `family`.
    pub model: u32,
    /// See `family`.
    pub stepping: u32,
    /// The frequency of the time stamp counter.
    pub megahertz: u64,
    /// Features by Linux's names, parted by spaces.
    pub flags: String,
}

/// Clock and RNG.
pub trait Platform {
    /// Returns what programs are told of the CPU.
    fn cpu(&self) -> CpuFacts;
    /// Returns the code of the vDSO; empty if the machine has none.
    fn vdso(&self) -> VdsoParts;
    /// The monotonic time.
    fn now(&self) -> Instant;
    /// The time since 1970, as far as the machine knows it.
    fn wall_clock(&self) -> Duration;
    /// Fills `into` with bytes no one can guess.
    fn random(&self, into: &mut [u8]);
    /// Waits until `until`.
    fn sleep_until(&self, until: Instant) -> impl Future<Output = ()>;
    /// Lets other tasks run.
    fn yield_now(&self) -> impl Future<Output = ()>;
}

/// M as a client sees it. Each call ends within a deadline of its own, with an error that says so.
pub trait Memory {
    /// Returns how much memory there is.
    fn capacity(&self) -> impl Future<Output = Result<CapacityReply>>;
    /// Asks for a promise of `chunks` chunks in all; ENOMEM if M can't keep it.
    fn reserve(&self, chunks: u32) -> impl Future<Output = Result<()>>;
    /// Asks for up to `count` chunks, accounted to process `pid`; ENOMEM if there is none, EAGAIN
    /// if M is busy cleaning memory.
    fn lend(&self, pid: u32, count: u16) -> impl Future<Output = Result<Chunks>>;
    /// Returns chunks by their addresses.
    fn give_back(&self, chunks: heapless::Vec<u64, MAX_CHUNKS>)
    -> impl Future<Output = Result<()>>;
}

/// S as a client sees it. Paths are absolute; `by` names the program that asks. Each call ends
/// within a deadline of its own.
pub trait Files {
    /// Opens a file or folder; `mode` has the permissions of a file that is made.
    fn open(
        &self,
        by: Caller<'_>,
        path: &[u8],
        flags: OpenFlags,
        mode: u32,
    ) -> impl Future<Output = Result<Opened>>;
    /// Reads up to `into.len()` bytes; 0 at the end of the file.
    fn read(
        &self,
        file: FileId,
        offset: u64,
        into: &mut [u8],
    ) -> impl Future<Output = Result<usize>>;
    /// A path's status.
    fn stat(&self, by: Caller<'_>, path: &[u8], follow: bool)
    -> impl Future<Output = Result<Stat>>;
    /// An open file's status.
    fn stat_file(&self, file: FileId) -> impl Future<Output = Result<Stat>>;
    /// Grants or extends this node's read lease of an open file.
    fn lease(&self, file: FileId) -> impl Future<Output = Result<Leased>>;
    /// Encoded entries of a folder from `position` on into `into`; how many bytes, 0 at the end.
    fn getdents(
        &self,
        file: FileId,
        position: u64,
        into: &mut [u8],
    ) -> impl Future<Output = Result<usize>>;
    /// Reads the target of a symbolic link; returns its length in bytes.
    fn readlink(
        &self,
        by: Caller<'_>,
        path: &[u8],
        into: &mut [u8],
    ) -> impl Future<Output = Result<usize>>;
    /// Closes a file.
    fn close(&self, file: FileId) -> impl Future<Output = Result<()>>;
    /// Writes bytes, at the file's end if there is no offset; fewer than given only if the disk is
    /// full or they are many.
    fn write(
        &self,
        file: FileId,
        offset: Option<u64>,
        bytes: &[u8],
    ) -> impl Future<Output = Result<Written>>;
    /// Sets a file's size.
    fn truncate(&self, file: FileId, size: u64) -> impl Future<Output = Result<()>>;
    /// Allocates or frees a range of a file.
    fn allocate(
        &self,
        file: FileId,
        flags: AllocateFlags,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<()>>;
    /// Makes a file durable.
    fn fsync(&self, file: FileId) -> impl Future<Output = Result<()>>;
    /// Makes everything durable.
    fn sync(&self) -> impl Future<Output = Result<()>>;
    /// Makes a directory or a node of the type in `mode`.
    fn make(
        &self,
        by: Caller<'_>,
        path: &[u8],
        mode: u32,
        device: u64,
    ) -> impl Future<Output = Result<()>>;
    /// Makes a symbolic link.
    fn symlink(
        &self,
        by: Caller<'_>,
        path: &[u8],
        target: &[u8],
    ) -> impl Future<Output = Result<()>>;
    /// Gives a file another name.
    fn link(
        &self,
        by: Caller<'_>,
        old: &[u8],
        follow: bool,
        new: &[u8],
    ) -> impl Future<Output = Result<()>>;
    /// Gives an open file, which may have none, a name.
    fn link_file(
        &self,
        by: Caller<'_>,
        file: FileId,
        new: &[u8],
    ) -> impl Future<Output = Result<()>>;
    /// Renames; gives the inode that the new name had before, or 0.
    fn rename(
        &self,
        by: Caller<'_>,
        old: &[u8],
        new: &[u8],
        flags: RenameFlags,
    ) -> impl Future<Output = Result<u64>>;
    /// Removes the name of a directory or of anything else; gives the inode.
    fn remove(
        &self,
        by: Caller<'_>,
        path: &[u8],
        directory: bool,
    ) -> impl Future<Output = Result<u64>>;
    /// Changes attributes by path.
    fn set_path(
        &self,
        by: Caller<'_>,
        path: &[u8],
        follow: bool,
        set: &Attributes,
    ) -> impl Future<Output = Result<()>>;
    /// Changes attributes of an open file.
    fn set_file(
        &self,
        by: Caller<'_>,
        file: FileId,
        set: &Attributes,
    ) -> impl Future<Output = Result<()>>;
    /// Reads the value of an open file's extended attribute.
    fn get_xattr(
        &self,
        by: Caller<'_>,
        file: FileId,
        name: XattrName<'_>,
    ) -> impl Future<Output = Result<Vec<u8>>>;
    /// Returns the names of an open file's extended attributes, each with a zero behind it.
    fn list_xattrs(&self, by: Caller<'_>, file: FileId) -> impl Future<Output = Result<Vec<u8>>>;
    /// Sets an extended attribute of an open file.
    fn set_xattr(
        &self,
        by: Caller<'_>,
        file: FileId,
        name: XattrName<'_>,
        value: &[u8],
        flags: XattrFlags,
    ) -> impl Future<Output = Result<()>>;
    /// Removes an extended attribute of an open file.
    fn remove_xattr(
        &self,
        by: Caller<'_>,
        file: FileId,
        name: XattrName<'_>,
    ) -> impl Future<Output = Result<()>>;
    /// The file system's sizes.
    fn statfs(&self) -> impl Future<Output = Result<Statfs>>;
    /// Grants or extends this node's write lease of an open file.
    fn write_lease(&self, file: FileId) -> impl Future<Output = Result<Leased>>;
    /// Brings writes that were gathered under a write lease, as pieces; ESTALE if it was lost.
    fn flush(&self, request: &FlushRequest, pieces: &[u8])
    -> impl Future<Output = Result<Flushed>>;
    /// Keeps a write, to bring it to S later; `None` if it must be written through.
    fn gather(
        &self,
        _file: FileId,
        _offset: Option<u64>,
        _bytes: &[u8],
    ) -> impl Future<Output = Result<Option<Written>>> {
        async { Ok(None) }
    }
    /// Brings what was gathered. What S refuses is told by `Gathered::failed_since`.
    fn settle(&self, _which: Settle) -> impl Future<Output = Result<()>> {
        async { Ok(()) }
    }
    /// Gives up the lease of all names, which S recalls.
    fn recall_names(&self, _lease: u64, _now: Instant) {}
    /// Returns what was gathered, if writes are.
    fn gathered(&self) -> Option<&Gathered> {
        None
    }
}

/// The registers of a program's thread that Linux's ABI speaks of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SystemCall {
    /// `rax`.
    pub number: u64,
    /// `rdi`, `rsi`, `rdx`, `r10`, `r8`, `r9`.
    pub args: [u64; 6],
}

/// Reasons why a thread stopped running.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trap {
    /// It made a system call.
    Syscall,
    /// It touched a page that is not mapped, or against its rights.
    PageFault {
        /// The address touched.
        addr: u64,
        /// The kind of access.
        access: Access,
    },
    /// The CPU raised another exception.
    Exception {
        /// Its number (Intel SDM volume 3A, table 6-1).
        vector: u8,
        /// Its error code.
        error: u64,
    },
    /// Its time is up.
    Preempted,
}

/// Words of a thread's general registers.
pub const REGISTERS: usize = 18;

/// General registers in the order of Linux's `struct sigcontext_64`: r8 to r15, rdi, rsi, rbp, rbx,
/// rdx, rax, rcx, rsp, rip, rflags.
pub type Registers = [u64; REGISTERS];

/// A thread as the CPU sees it. `T` is the page tables that it runs with.
pub trait Cpu<T>: Sized {
    /// Returns a thread that starts at `ip` with the stack pointer `sp`, everything else clear.
    fn new(ip: u64, sp: u64) -> Self;
    /// Returns a copy, for another thread.
    fn duplicate(&mut self) -> Self;
    /// Takes the thread's state out of the core's registers, before it goes to another core.
    fn leave_core(&mut self);
    /// Runs the thread until it traps.
    fn run(&mut self, tables: &T) -> Trap;
    /// Returns the system call that it made.
    fn system_call(&self) -> SystemCall;
    /// Gives the system call's result.
    fn set_result(&mut self, result: u64);
    /// Returns the instruction pointer.
    fn ip(&self) -> u64;
    /// Sets the stack pointer.
    fn set_sp(&mut self, sp: u64);
    /// Returns the general registers.
    fn registers(&self) -> Registers;
    /// Sets the general registers. Flags that are the kernel's do not change.
    fn set_registers(&mut self, registers: &Registers);
    /// Returns the vector state in the form that XSAVE (or FXSAVE) stores.
    fn vectors(&mut self) -> Vec<u8>;
    /// Sets the vector state; false if the CPU would not take it.
    fn set_vectors(&mut self, state: &[u8]) -> bool;
    /// Returns the base of `fs`.
    fn fs_base(&self) -> u64;
    /// Sets the base of `fs`. False if it is no address of the user's half.
    fn set_fs_base(&mut self, base: u64) -> bool;
    /// Returns the base of `gs`.
    fn gs_base(&self) -> u64;
    /// Sets the base of `gs`. False if it is no address of the user's half.
    fn set_gs_base(&mut self, base: u64) -> bool;
}
