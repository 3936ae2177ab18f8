//! Loading a program: its file (and its interpreter's) into memory, its stack, its first
//! instruction.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use messages::storage::{FileId, OpenFlags, Stat};
use messages::{Errno, PAGE_SIZE, USER_END};
use pcache::Rights;

use crate::creds::{Creds, EXECUTE};
use crate::elf::{ElfError, HEADER_SIZE, Header, Program, Segment};
use crate::error::{Error, Result, errno};
use crate::files::{Kind, OpenFile};
use crate::leased;
use crate::mm::file::FilePages;
use crate::mm::layout::Layout;
use crate::mm::map::Place;
use crate::mm::vma::{Backing, Vma, VmaFlags};
use crate::mm::{Heap, Space};
use crate::platform::{Files, Platform};
use crate::process::Node;
use crate::stack::{self, Facts, Identity};
use crate::storage::{self, StorageFile};
use crate::syscall::walk::{Begin, Walker};
use crate::texts::Use;
use crate::tmpfs::{Found, TmpFile};
use crate::vdso;

/// Bytes of a stack below its first contents that are mapped from the start; it grows from there
/// (Linux's `stack_expand`).
const STACK_SPARE: u64 = 128 << 10;
/// The alignment of the interpreter's address: a chunk, so that its pages share no leaf table.
const INTERPRETER_ALIGN: u64 = 2 << 20;
/// A file is read in pieces of this many bytes.
pub(crate) const PIECE: usize = 64 << 10;
/// Bytes of a script's first line that are looked at (Linux's `BINPRM_BUF_SIZE`).
const SCRIPT_LINE: usize = 256;
/// Scripts that are each other's interpreter at most (Linux `fs/exec.c`).
const MAX_SCRIPTS: usize = 5;
/// `S_IFMT` and `S_IFREG`.
const TYPE_MASK: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
/// Bytes of a signal's frame beside the vector state, and its alignment.
const SIGNAL_FRAME: u64 = 1024;

/// A program to run.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// The program's path from the root of all.
    pub path: Vec<u8>,
    /// The path that the program is told, as its caller gave it; empty for the same.
    pub name: Vec<u8>,
    /// The name is that of an open file that is closed when the program starts.
    pub name_closes: bool,
    /// The folder that absolute paths begin at (chroot); empty for `/`.
    pub root: Vec<u8>,
    /// Its arguments, its own name first.
    pub args: Vec<Vec<u8>>,
    /// Its environment, each `NAME=VALUE`.
    pub env: Vec<Vec<u8>>,
    /// Its working folder; empty for `/`.
    pub cwd: Vec<u8>,
    /// The user that it runs as, by name or number; empty for root.
    pub user: Vec<u8>,
    /// Its memory's parts lie in fixed places (`ADDR_NO_RANDOMIZE`).
    pub fixed_layout: bool,
    /// The kinds of its first three descriptors on the host.
    pub streams: [console::Source; 3],
}

impl Command {
    /// Returns the path that the program is told.
    fn told(&self) -> &[u8] {
        if self.name.is_empty() {
            &self.path
        } else {
            &self.name
        }
    }

    /// Keeps the name that was told first: an interpreter is told its script's.
    fn told_as(&mut self, name: &[u8]) {
        if self.name.is_empty() {
            self.name = name.to_vec();
        }
    }

    /// Returns arguments and environment as `/proc/PID` shows them.
    pub(crate) fn strings(&self) -> (Vec<u8>, Vec<u8>) {
        let joined = |strings: &[Vec<u8>]| {
            let whole = strings
                .iter()
                .flat_map(|string| string.iter().copied().chain([0]));
            whole.collect()
        };
        (joined(&self.args), joined(&self.env))
    }
}

/// The reason why a program did not start.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no such file.
    #[error("{0}: not found")]
    NotFound(String),
    /// No folder of PATH has the program.
    #[error("{name}: not found in PATH, {path}: give the program's path, or --env PATH=…")]
    NotInPath {
        /// The program's name.
        name: String,
        /// The folders.
        path: String,
    },
    /// The working folder is not there.
    #[error("{0}: no such folder to work in: --workdir names a folder on S's disk")]
    NoFolder(String),
    /// Neither a name nor a number of a user.
    #[error("{0}: no such user: --user names one of /etc/passwd on S's disk, or is a number")]
    UnknownUser(String),
    /// The program is a folder.
    #[error("{0}: is a folder: name a program in it")]
    IsFolder(String),
    /// The file is no program that runs here.
    #[error("{path}: {cause}")]
    NotRunnable {
        /// The path.
        path: String,
        /// The fault of the file.
        cause: ElfError,
    },
    /// The file could not be opened, or its memory not be had.
    #[error("{path}: {cause}")]
    Failed {
        /// The path.
        path: String,
        /// The cause.
        cause: Error,
    },
}

impl Refusal {
    /// Returns the status that a shell would exit with.
    #[must_use]
    pub const fn status(&self) -> u8 {
        match self {
            Self::NotFound(_) | Self::NotInPath { .. } => 127,
            Self::NoFolder(_) | Self::UnknownUser(_) => 125,
            _ => 126,
        }
    }

    /// Returns what `execve` gives.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::NotFound(_)
            | Self::NotInPath { .. }
            | Self::NoFolder(_)
            | Self::UnknownUser(_) => errno::ENOENT.into(),
            Self::IsFolder(_) => errno::EACCES.into(),
            Self::NotRunnable { .. } => errno::ENOEXEC.into(),
            Self::Failed { cause, .. } => cause,
        }
    }
}

/// A failure of loading: either of two kinds.
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

type Loading<T> = core::result::Result<T, Failure>;

/// A program in memory, about to run.
pub(crate) struct Image<N: Node> {
    pub(crate) memory: Space<'static, N>,
    pub(crate) entry: u64,
    pub(crate) sp: u64,
    /// The path of the file that runs.
    pub(crate) path: Vec<u8>,
    /// The program has rights that who runs it has not.
    pub(crate) secure: bool,
    /// The program's identity.
    pub(crate) creds: Creds,
    /// Keeps writers away from the file.
    pub(crate) text: Option<Use>,
}

/// A file that is read while it is loaded.
struct Source<'a, N: Node> {
    node: &'a N,
    file: SourceFile,
    stat: Stat,
    /// Keeps writers away.
    text: Option<Use>,
}

/// The place of a file that is loaded.
enum SourceFile {
    /// On S. The open file closes it when neither this nor a mapping needs it.
    Storage(StorageFile, Arc<OpenFile>),
    /// Of this node's own.
    Tmp(Arc<TmpFile>),
}

impl<'a, N: Node> Source<'a, N> {
    async fn open(node: &'a N, path: &[u8], creds: &Creds) -> Result<Self> {
        let tmpfs = node.kernel().tmpfs();
        let (file, stat) = match tmpfs.find(path, true, creds)? {
            Found::Storage(path) => {
                let by = creds.asker();
                let flags = OpenFlags::EXECUTE;
                let opened = leased::open(node, by.caller(), &path, flags, 0).await?;
                let of = StorageFile {
                    id: opened.file,
                    inode: opened.stat.inode,
                };
                let closing = Some(node.kernel().closing.clone());
                let open = Arc::new(OpenFile::new(Kind::File(of), path, 0, closing));
                storage::before_read(node, of.inode, 0..u64::MAX).await?;
                (SourceFile::Storage(of, open), opened.stat)
            }
            Found::Here(inode) => {
                let file = tmpfs.file(inode).ok_or(errno::EACCES)?;
                (SourceFile::Tmp(file), tmpfs.stat(inode)?)
            }
            Found::Missing(..) => return Err(errno::ENOENT.into()),
        };
        let mut source = Self {
            node,
            file,
            stat,
            text: None,
        };
        let (mode, uid, gid) = (source.stat.mode, source.stat.uid, source.stat.gid);
        if mode & TYPE_MASK != REGULAR || !creds.may(mode, uid, gid, EXECUTE) {
            return Err(errno::EACCES.into());
        }
        source.text = Some(node.kernel().texts.run(stat.inode)?);
        Ok(source)
    }

    /// Reads until `into` is full or the file ends.
    async fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        match &self.file {
            SourceFile::Storage(of, open) => {
                match leased::read(self.node, open, *of, offset, into).await? {
                    Some(got) => Ok(got),
                    None => read_file(self.node, of.id, offset, into).await,
                }
            }
            SourceFile::Tmp(file) => self.node.kernel().tmpfs().read(file, offset, into).await,
        }
    }

    /// Copies `len` bytes of the file from `offset` on to `addr`, or as many as the file has.
    async fn copy_to(
        &self,
        memory: &Space<'static, N>,
        offset: u64,
        addr: u64,
        len: u64,
    ) -> Result<()> {
        let mut piece = vec![0; PIECE];
        let mut done = 0;
        while done < len {
            let want = usize::try_from(len - done).map_or(PIECE, |left| left.min(PIECE));
            let got = self.read(offset + done, &mut piece[..want]).await?;
            memory.load(addr + done, &piece[..got]).await?;
            done += got as u64;
            if got < want {
                break;
            }
        }
        Ok(())
    }

    /// Returns the file's pages, which all that map it share; `None` for a file whose pages a
    /// private mapping can't share.
    async fn pages(&self) -> Result<Option<Arc<FilePages>>> {
        let SourceFile::Storage(of, open) = &self.file else {
            return Ok(None);
        };
        let pages = leased::pages_to_map(self.node, open, *of).await?;
        self.node.kernel().file_cache.lock().used(&pages);
        Ok(Some(pages))
    }

    async fn program(&self) -> Loading<Program> {
        let mut start = [0; HEADER_SIZE];
        let got = self.read(0, &mut start).await?;
        let header = Header::parse(&start[..got])?;
        let mut headers = vec![0; header.headers_len()];
        let got = self.read(header.headers_at, &mut headers).await?;
        Ok(header.program(&headers[..got], self.stat.size)?)
    }

    /// Returns what a script's first line says: the interpreter, and its argument.
    async fn script(&self) -> Result<Option<(Vec<u8>, Option<Vec<u8>>)>> {
        let mut line = [0; SCRIPT_LINE];
        let got = self.read(0, &mut line).await?;
        Ok(parse_script(&line[..got]))
    }
}

/// Reads the first line of a script (Linux `fs/binfmt_script.c`).
fn parse_script(start: &[u8]) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let line = start.strip_prefix(b"#!")?.split(|&b| b == b'\n').next()?;
    let line = line.trim_ascii();
    let end = line
        .iter()
        .position(|b| b" \t".contains(b))
        .unwrap_or(line.len());
    let (interpreter, rest) = line.split_at(end);
    let rest = rest.trim_ascii();
    if interpreter.is_empty() {
        return None;
    }
    Some((
        interpreter.to_vec(),
        (!rest.is_empty()).then(|| rest.to_vec()),
    ))
}

/// Loads a program into an address space of its own. `creds` is the identity of who asks; `vectors`
/// is the size of a thread's vector state.
///
/// # Errors
///
/// A [`Refusal`], whose text is one line for the user.
pub(crate) async fn load<N: Node>(
    node: &'static N,
    pid: u32,
    command: &Command,
    creds: &Creds,
    vectors: usize,
) -> core::result::Result<Image<N>, Refusal> {
    let name = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let mut command = command.clone();
    let mut script_name = command.told().to_vec();
    for _ in 0..MAX_SCRIPTS {
        let failed = |cause| Refusal::Failed {
            path: name(&command.path),
            cause,
        };
        let source = match Source::open(node, &command.path, creds).await {
            Err(Error::Errno(errno::ENOENT | errno::ENOTDIR)) => {
                return Err(Refusal::NotFound(name(&command.path)));
            }
            opened => opened.map_err(failed)?,
        };
        if let Some((interpreter, argument)) = source.script().await.map_err(failed)? {
            if command.name_closes {
                // The interpreter could not open it (Linux `fs/binfmt_script.c`).
                return Err(Refusal::NotFound(name(&command.path)));
            }
            let path = in_root(node, creds, &command.root, &interpreter).await;
            let path = path.map_err(failed)?;
            command.told_as(&script_name);
            command.path = path;
            let rest = command.args.split_off(command.args.len().min(1));
            command.args = vec![interpreter.clone()];
            command.args.extend(argument);
            command
                .args
                .push(core::mem::replace(&mut script_name, interpreter));
            command.args.extend(rest);
            continue;
        }
        let tables = node.new_tables().ok_or(errno::ENOMEM);
        let tables = tables.map_err(|errno| failed(errno.into()))?;
        let mut creds = creds.clone();
        let secure = creds.execute(source.stat.mode, source.stat.uid, source.stat.gid);
        // Who runs a program with its owner's rights does not say where it lies.
        let layout = if command.fixed_layout && !secure {
            Layout::FIXED
        } else {
            let layouts = &node.kernel().layouts;
            layouts.next(|bytes| node.platform().random(bytes))
        };
        let memory = Space::new(node, pid, tables, layout);
        let identity = Identity::of(&creds, secure);
        return match fill(&memory, &source, &command, identity, vectors).await {
            Ok((entry, sp)) => Ok(Image {
                memory,
                entry,
                sp,
                path: command.path,
                secure,
                creds,
                text: source.text,
            }),
            Err(failure) => {
                memory.end().await.map_err(failed)?;
                Err(match failure {
                    Failure::Elf(cause) => Refusal::NotRunnable {
                        path: name(&command.path),
                        cause,
                    },
                    Failure::Other(cause) => failed(cause),
                })
            }
        };
    }
    Err(Refusal::Failed {
        path: name(&command.path),
        cause: errno::ELOOP.into(),
    })
}

/// Returns an interpreter's path from the root of all; its own begins at the process's root.
async fn in_root<N: Node>(node: &N, creds: &Creds, root: &[u8], path: &[u8]) -> Result<Vec<u8>> {
    if matches!(root, b"" | b"/") {
        return Ok(path.to_vec());
    }
    let begin = Begin {
        folder: root,
        root,
        follow: true,
        resolve: 0,
    };
    let walker = Walker {
        node,
        creds,
        thread: None,
    };
    walker.walk(begin, path).await
}

/// Fills an empty address space; returns the first instruction and the stack pointer.
async fn fill<N: Node>(
    memory: &Space<'static, N>,
    source: &Source<'_, N>,
    command: &Command,
    identity: Identity,
    vectors: usize,
) -> Loading<(u64, u64)> {
    let node = source.node;
    let program = source.program().await?;
    let bias = if program.relocatable {
        memory.layout.program
    } else {
        0
    };
    let end = map_program(memory, &program, bias, source).await?;
    let start = end.next_multiple_of(PAGE_SIZE) + memory.layout.heap_gap;
    *memory.heap.lock() = Heap { start, end: start };
    let (start, base) = match &program.interpreter {
        Some(range) => interpret(memory, source, range.clone(), &command.root).await?,
        None => (program.entry + bias, 0),
    };
    let vdso = match node.kernel().vdso() {
        Some(pages) => vdso::map(memory, &pages).await?,
        None => 0,
    };
    let mut random = [0; 16];
    node.platform().random(&mut random);
    let facts = Facts {
        exec_path: command.told(),
        args: &command.args,
        env: &command.env,
        headers_addr: match program.headers_addr {
            0 => 0,
            addr => addr.wrapping_add(bias),
        },
        headers: program.headers,
        entry: program.entry + bias,
        base,
        vdso,
        min_signal_stack: SIGNAL_FRAME + vectors as u64,
        random,
        identity,
        hwcap: node.kernel().hwcap,
    };
    let top = memory.layout.stack_top;
    let stack = stack::build(top - memory.layout.stack_skip, &facts)?;
    let mut rights = Rights::READ | Rights::WRITE;
    rights.set(Rights::EXEC, program.executable_stack);
    let bottom = (stack.pointer - STACK_SPARE) / PAGE_SIZE * PAGE_SIZE;
    let mut vma = Vma::anonymous(rights);
    vma.flags |= VmaFlags::GROWSDOWN;
    memory.map(Place::Free(bottom), top - bottom, vma).await?;
    memory.load(stack.pointer, &stack.bytes).await?;
    Ok((start, stack.pointer))
}

/// Loads the program's interpreter; returns its first instruction and its address.
async fn interpret<N: Node>(
    memory: &Space<'static, N>,
    source: &Source<'_, N>,
    range: Range<u64>,
    root: &[u8],
) -> Loading<(u64, u64)> {
    let len = usize::try_from(range.end - range.start).map_err(|_| ElfError::BadInterpreter)?;
    let mut path = vec![0; len];
    let got = source.read(range.start, &mut path).await?;
    if got < len || path.pop() != Some(0) || path.contains(&0) {
        return Err(ElfError::BadInterpreter.into());
    }
    // Whoever may execute the program may execute what loads it.
    let creds = Creds::new(0, 0);
    let path = in_root(source.node, &creds, root, &path).await?;
    let interpreter = Source::open(source.node, &path, &creds).await?;
    let program = interpreter.program().await?;
    let bias = if program.relocatable {
        let (_, end) = program.span();
        let start = memory
            .layout
            .mmap_top
            .checked_sub(end)
            .ok_or(errno::ENOMEM)?;
        start / INTERPRETER_ALIGN * INTERPRETER_ALIGN
    } else {
        0
    };
    map_program(memory, &program, bias, &interpreter).await?;
    Ok((program.entry + bias, bias))
}

/// Maps and fills the segments; returns the end of the last.
async fn map_program<N: Node>(
    memory: &Space<'static, N>,
    program: &Program,
    bias: u64,
    source: &Source<'_, N>,
) -> Result<u64> {
    let (_, end) = program.span();
    let end = end
        .checked_add(bias)
        .filter(|&end| end <= USER_END)
        .ok_or(errno::ENOMEM)?;
    let pages = source.pages().await?;
    for segment in &program.segments {
        let start = segment.addr + bias;
        let whole =
            start / PAGE_SIZE * PAGE_SIZE..(start + segment.len).next_multiple_of(PAGE_SIZE);
        match &pages {
            Some(pages) if !needs_own_pages(memory, segment, &whole) => {
                map_file_segment(memory, pages, segment, start, whole).await?;
            }
            _ => {
                map_segment(memory, whole, segment.prot).await?;
                source
                    .copy_to(memory, segment.file_offset, start, segment.file_len)
                    .await?;
            }
        }
    }
    Ok(end)
}

/// Returns whether a segment cannot have the file's own pages: it begins in a page of the one
/// before, or ends in zeros that can't be written afterwards.
fn needs_own_pages<N: Node>(
    memory: &Space<'static, N>,
    segment: &Segment,
    whole: &Range<u64>,
) -> bool {
    let zeros = segment.len > segment.file_len && !segment.prot.contains(Rights::WRITE);
    memory.rights(whole.start).is_some() || zeros
}

/// Maps a segment's pages of the file, and zeros behind them.
async fn map_file_segment<N: Node>(
    memory: &Space<'static, N>,
    pages: &Arc<FilePages>,
    segment: &Segment,
    start: u64,
    whole: Range<u64>,
) -> Result<()> {
    let file_end = start + segment.file_len;
    let split = if segment.file_len == 0 {
        whole.start
    } else {
        file_end.next_multiple_of(PAGE_SIZE)
    };
    if whole.start < split {
        let mut vma = Vma::anonymous(segment.prot);
        vma.backing = Backing::File(pages.clone(), segment.file_offset / PAGE_SIZE);
        memory
            .map(Place::Free(whole.start), split - whole.start, vma)
            .await?;
        if segment.len > segment.file_len && file_end < split {
            // What the file has behind the segment is not the program's.
            let rest = usize::try_from(split - file_end).expect("less than a page");
            memory.write(file_end, &[0; 4096][..rest]).await?;
        }
    }
    if split < whole.end {
        let vma = Vma::anonymous(segment.prot);
        memory
            .map(Place::Free(split), whole.end - split, vma)
            .await?;
    }
    Ok(())
}

/// Maps the pages of a segment. A page that an earlier segment maps already gets the rights of
/// both.
async fn map_segment<N: Node>(
    memory: &Space<'static, N>,
    pages: Range<u64>,
    rights: Rights,
) -> Result<()> {
    let mut free = pages.clone();
    if let Some(had) = memory.rights(pages.start) {
        free.start += PAGE_SIZE;
        let shared = pages.start..free.start;
        memory.protect(shared, had | rights).await?;
    }
    if free.is_empty() {
        return Ok(());
    }
    let (place, len) = (Place::Free(free.start), free.end - free.start);
    memory.map(place, len, Vma::anonymous(rights)).await?;
    Ok(())
}

/// Reads until `into` is full or the file ends.
pub(crate) async fn read_file<N: Node>(
    node: &N,
    file: FileId,
    offset: u64,
    into: &mut [u8],
) -> Result<usize> {
    let mut done = 0;
    while done < into.len() {
        let at = offset.checked_add(done as u64).ok_or(errno::EINVAL)?;
        let got = node.files().read(file, at, &mut into[done..]).await?;
        if got == 0 {
            break;
        }
        done += got.min(into.len() - done);
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines_of_scripts_name_an_interpreter_and_one_argument() {
        let parsed = |line: &str| {
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            parse_script(line.as_bytes()).map(|(path, arg)| (text(path), arg.map(text)))
        };
        let some = |path: &str, arg: Option<&str>| Some((path.to_owned(), arg.map(str::to_owned)));
        assert_eq!(parsed("#!/bin/sh\necho"), some("/bin/sh", None));
        assert_eq!(
            parsed("#! /usr/bin/env  python3 -u \nx"),
            some("/usr/bin/env", Some("python3 -u"))
        );
        assert_eq!(parsed("#!\n/bin/sh"), None);
        assert_eq!(parsed("\x7fELF"), None);
    }
}
