//! Starting a program: its file into memory, its stack, its first instruction.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use messages::storage::{FileId, OpenFlags, Stat};
use messages::{Errno, PAGE_SIZE, USER_END};
use pcache::Rights;

use core::ops::Range;

use crate::elf::{ElfError, HEADER_SIZE, Header, Program};
use crate::error::{Error, Result, errno};
use crate::mm::STACK_TOP;
use crate::mm::map::Place;
use crate::mm::vma::{Vma, VmaFlags};
use crate::platform::{Cpu, Files, Platform};
use crate::process::{Node, Process};
use crate::stack::{self, Facts};
use crate::syscall::Heap;

/// Bytes of a stack below its first contents that are mapped from the start; it grows from there
/// (Linux's `stack_expand`).
const STACK_SPARE: u64 = 128 << 10;
/// Where position-independent programs go.
const RELOCATED_BASE: u64 = 0x5555_5540_0000;
/// A file is read in pieces of this many bytes.
pub(crate) const PIECE: usize = 64 << 10;
/// `S_IFMT` and `S_IFREG`.
const TYPE_MASK: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// The program's absolute path.
    pub path: Vec<u8>,
    /// Its arguments, its own name first.
    pub args: Vec<Vec<u8>>,
    /// Its environment, each `NAME=VALUE`.
    pub env: Vec<Vec<u8>>,
    /// Its working folder; empty for `/`.
    pub cwd: Vec<u8>,
    /// Log each system call.
    pub strace: bool,
    /// CPUID leaf 1, `edx`, for the program to see.
    pub hwcap: u64,
}

/// Why a program did not start.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no such file.
    #[error("{0}: not found")]
    NotFound(String),
    /// The file is no program that runs here.
    #[error("{path}: {cause}")]
    NotRunnable {
        /// The path.
        path: String,
        /// What is wrong with the file.
        cause: ElfError,
    },
    /// The file could not be opened, or its memory not be had.
    #[error("{path}: {cause}")]
    Failed {
        /// The path.
        path: String,
        /// Why.
        cause: Error,
    },
}

impl Refusal {
    /// The status that a shell would exit with.
    #[must_use]
    pub const fn status(&self) -> u8 {
        match self {
            Self::NotFound(_) => 127,
            _ => 126,
        }
    }
}

/// Either of the two ways in which loading goes wrong.
enum Failure {
    Elf(ElfError),
    Other(Error),
}

impl From<ElfError> for Failure {
    fn from(error: ElfError) -> Self {
        Self::Elf(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Other(errno.into())
    }
}

impl<'n, N: Node> Process<'n, N> {
    /// Makes a process that is about to run `command`, with its thread's registers in `cpu`.
    ///
    /// # Errors
    ///
    /// A [`Refusal`], whose text is one line for the user.
    pub async fn start(
        node: &'n N,
        pid: u32,
        command: &Command,
        cpu: &mut impl Cpu,
    ) -> core::result::Result<Self, Refusal> {
        let path = || String::from_utf8_lossy(&command.path).into_owned();
        let failed = |cause| Refusal::Failed { path: path(), cause };
        let opened = match node.files().open(&command.path, OpenFlags::empty()).await {
            Err(Error::Errno(errno::ENOENT | errno::ENOTDIR)) => return Err(Refusal::NotFound(path())),
            opened => opened.map_err(failed)?,
        };
        let mut process = Self::empty(node, pid).map_err(failed)?;
        let loaded = process.load(command, opened.file, &opened.stat, cpu).await;
        let closed = node.files().close(opened.file).await;
        match loaded.and(closed.map_err(Failure::from)) {
            Ok(()) => Ok(process),
            Err(failure) => {
                process.end().await.map_err(failed)?;
                Err(match failure {
                    Failure::Elf(cause) => Refusal::NotRunnable { path: path(), cause },
                    Failure::Other(cause) => failed(cause),
                })
            }
        }
    }

    async fn load(
        &mut self,
        command: &Command,
        file: FileId,
        stat: &Stat,
        cpu: &mut impl Cpu,
    ) -> core::result::Result<(), Failure> {
        if stat.mode & TYPE_MASK != REGULAR {
            return Err(errno::EACCES.into());
        }
        self.exec_path.clone_from(&command.path);
        self.strace = command.strace;
        if !command.cwd.is_empty() {
            self.cwd.clone_from(&command.cwd);
        }
        let mut start = [0; HEADER_SIZE];
        let got = self.read_file(file, 0, &mut start).await?;
        let header = Header::parse(&start[..got])?;
        let mut headers = vec![0; header.headers_len()];
        let got = self.read_file(file, header.headers_at, &mut headers).await?;
        let program = header.program(&headers[..got], stat.size)?;

        let bias = self.load_segments(&program, file).await?;
        let mut random = [0; 16];
        self.node.platform().random(&mut random);
        let entry = program.entry + bias;
        let facts = Facts {
            exec_path: &command.path,
            args: &command.args,
            env: &command.env,
            headers_addr: if program.headers_addr == 0 {
                0
            } else {
                program.headers_addr.wrapping_add(bias)
            },
            headers: program.headers,
            entry,
            random,
            hwcap: command.hwcap,
        };
        let stack = stack::build(STACK_TOP, &facts)?;
        let mut rights = Rights::READ | Rights::WRITE;
        rights.set(Rights::EXEC, program.executable_stack);
        let bottom = (stack.pointer - STACK_SPARE) / PAGE_SIZE * PAGE_SIZE;
        let mut vma = Vma::anonymous(rights);
        vma.flags |= VmaFlags::GROWSDOWN;
        self.memory
            .map(Place::Free(bottom), STACK_TOP - bottom, vma)
            .await?;
        self.memory.load(stack.pointer, &stack.bytes).await?;
        cpu.start(entry, stack.pointer);
        Ok(())
    }

    /// Maps and fills the segments; returns what is to be added to the file's addresses.
    async fn load_segments(&mut self, program: &Program, file: FileId) -> Result<u64> {
        let (_, end) = program.span();
        let bias = if program.relocatable { RELOCATED_BASE } else { 0 };
        let end = end
            .checked_add(bias)
            .filter(|&end| end <= USER_END)
            .ok_or(errno::ENOMEM)?;
        for segment in &program.segments {
            let start = segment.addr + bias;
            let pages = start / PAGE_SIZE * PAGE_SIZE..(start + segment.len).next_multiple_of(PAGE_SIZE);
            self.map_segment(pages, segment.prot).await?;
            self.populate(file, segment.file_offset, start, segment.file_len)
                .await?;
        }
        self.heap = Heap::at(end);
        Ok(bias)
    }

    /// Maps the pages of a segment. A page that an earlier segment maps already gets the rights of both.
    async fn map_segment(&mut self, pages: Range<u64>, rights: Rights) -> Result<()> {
        let mut free = pages.clone();
        if let Some(had) = self.memory.rights(pages.start) {
            free.start += PAGE_SIZE;
            let shared = pages.start..free.start;
            self.memory.protect(shared, had | rights).await?;
        }
        if free.is_empty() {
            return Ok(());
        }
        let (place, len) = (Place::Free(free.start), free.end - free.start);
        self.memory.map(place, len, Vma::anonymous(rights)).await?;
        Ok(())
    }

    /// Copies `len` bytes of a file from `offset` on to `addr`, or as many as the file has.
    pub(crate) async fn populate(&self, file: FileId, offset: u64, addr: u64, len: u64) -> Result<()> {
        let mut piece = vec![0; PIECE];
        let mut done = 0;
        while done < len {
            let want = usize::try_from(len - done).map_or(PIECE, |left| left.min(PIECE));
            let got = self.read_file(file, offset + done, &mut piece[..want]).await?;
            self.memory.load(addr + done, &piece[..got]).await?;
            done += got as u64;
            if got < want {
                break;
            }
        }
        Ok(())
    }

    /// Reads until `into` is full or the file ends.
    pub(crate) async fn read_file(&self, file: FileId, offset: u64, into: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < into.len() {
            let at = offset.checked_add(done as u64).ok_or(errno::EINVAL)?;
            let got = self.node.files().read(file, at, &mut into[done..]).await?;
            if got == 0 {
                break;
            }
            done += got.min(into.len() - done);
        }
        Ok(done)
    }
}
