//! Open files, and a process's table of them.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use messages::Errno;
use messages::storage::{FileId, Stat};
use spin::{Mutex, Once};

use crate::ahead::Readahead;
use crate::device::Device;
use crate::error::{Result, errno};
use crate::gather::Gathered;
use crate::kernel::{Closed, Closing};
use crate::locks::{Locks, Owner};
use crate::object::Object;
use crate::pidfd::PidFd;
use crate::pseudo::{Name, OpenText};
use crate::storage::StorageFile;
use crate::texts::Use;
use crate::tmpfs::TmpFile;

/// The most files that a process may have open, whatever its limit (Linux's `fs.nr_open`).
pub(crate) const MAX_FILES: usize = 65_536;
/// The limit of a process that has not set one.
const DEFAULT_LIMIT: usize = 1024;
/// `O_NONBLOCK`, `O_APPEND` and `O_DIRECT`: the flags that `F_SETFL` changes.
pub(crate) const CHANGEABLE: u32 = 0o4_000 | 0o2_000 | 0o40_000;
pub(crate) const O_NONBLOCK: u32 = 0o4_000;
/// `O_DIRECT`: reads go by the pages that are kept.
pub(crate) const O_DIRECT: u32 = 0o40_000;
/// `O_PATH`: the file stands for its place only.
pub(crate) const O_PATH: u32 = 0o10_000_000;

/// The kinds of an open file.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// A device.
    Device(Device),
    /// A file of S.
    File(StorageFile),
    /// A folder of S.
    Folder(StorageFile),
    /// A file of this node's own.
    Tmp(Arc<TmpFile>),
    /// A folder of this node's own, by its number.
    TmpFolder(u64),
    /// A file whose text was made when it was opened.
    Text(Arc<OpenText>),
    /// A symbolic link, opened as itself.
    Link(Arc<Stat>),
    /// A folder of a file system without data, by its names.
    Listing(Arc<Listing>),
    /// Something of this node's own that is read and written like a stream.
    Object(Arc<dyn Object>),
}

/// An open folder of a file system without data.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) names: Vec<Name>,
    /// The process whose `/proc/PID` it is.
    pub(crate) process: Option<PidFd>,
}

/// An open file or folder at S, which is closed when nothing uses it any more.
#[derive(Debug)]
pub(crate) struct Handle {
    id: FileId,
    closing: Arc<Closing>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.closing.add(self.id);
    }
}

/// An open file, shared by the numbers that `dup` made and by processes that fork made.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) kind: Kind,
    /// The absolute path that opened it.
    pub(crate) path: Vec<u8>,
    /// Offset of the next read.
    pub(crate) offset: AtomicU64,
    /// `F_GETFL`.
    flags: AtomicU32,
    pub(crate) ahead: Mutex<Readahead>,
    /// Its pages in M's memory were read through this open file.
    was_read: AtomicBool,
    /// S's handle of a file or folder of S. Mappings of the file share it.
    handle: Option<Arc<Handle>>,
    /// The lists for what happens when this is closed.
    closing: Option<Arc<Closing>>,
    /// The file is open for writing: no program of it starts.
    writes: Once<Use>,
    /// The number of the last failure to write the file back that its programs were told of.
    told: AtomicU64,
    /// The same of all files' failures, for syncfs.
    told_all: AtomicU64,
    /// The node's lock table, once the open file may own locks in it.
    locks: Once<Arc<Locks>>,
}

impl OpenFile {
    /// Returns an open file. One of S needs the list of files to close.
    pub(crate) fn new(
        kind: Kind,
        path: Vec<u8>,
        flags: u32,
        closing: Option<Arc<Closing>>,
    ) -> Self {
        let handle = match (&closing, &kind) {
            (Some(closing), Kind::File(of) | Kind::Folder(of)) => Some(Arc::new(Handle {
                id: of.id,
                closing: closing.clone(),
            })),
            _ => None,
        };
        Self {
            kind,
            path,
            offset: AtomicU64::new(0),
            flags: AtomicU32::new(flags),
            ahead: Mutex::default(),
            was_read: AtomicBool::new(false),
            handle,
            closing,
            writes: Once::new(),
            told: AtomicU64::new(0),
            told_all: AtomicU64::new(0),
            locks: Once::new(),
        }
    }

    /// Returns the number by which the file holds locks: no two open files have the same.
    pub(crate) fn identity(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// Returns S's handle of a file of S.
    pub(crate) fn handle(&self) -> Option<Arc<Handle>> {
        self.handle.clone()
    }

    /// Notes that the file is open for writing.
    pub(crate) fn keep_use(&self, writes: Use) {
        self.writes.call_once(|| writes);
    }

    /// Notes failures before the file was opened: its programs are not told of them.
    pub(crate) fn begin_failures(&self, last: u64) {
        self.told.store(last, Ordering::Relaxed);
        self.told_all.store(last, Ordering::Relaxed);
    }

    /// Returns the number of the last failure that the file's programs were told of.
    pub(crate) fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }

    /// Returns a failure to bring to S what was written to any file, once.
    pub(crate) fn failure_of_any(&self, gathered: &Gathered) -> Option<Errno> {
        let told = self.told_all.load(Ordering::Relaxed);
        let (number, errno) = gathered.any_failed_since(told)?;
        let first = self.told_all.fetch_max(number, Ordering::Relaxed) < number;
        first.then_some(errno)
    }

    /// Returns a failure to bring to S what was written to the file, once.
    pub(crate) fn failure(&self, gathered: &Gathered, inode: u64) -> Option<Errno> {
        let told = self.told.load(Ordering::Relaxed);
        let (number, errno) = gathered.failed_since(inode, told)?;
        let first = self.told.fetch_max(number, Ordering::Relaxed) < number;
        first.then_some(errno)
    }

    /// Notes that the file may hold locks, which end with it.
    pub(crate) fn locked_in(&self, locks: &Arc<Locks>) {
        self.locks.call_once(|| locks.clone());
    }

    /// Notes a read of the file's pages; returns whether it is the first one.
    pub(crate) fn first_read(&self) -> bool {
        !self.was_read.load(Ordering::Relaxed) && !self.was_read.swap(true, Ordering::Relaxed)
    }

    /// Returns the file's flags, as `F_GETFL` gives them.
    pub(crate) fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    /// Sets those flags that may change.
    pub(crate) fn set_flags(&self, flags: u32) {
        let keep = self.flags() & !CHANGEABLE;
        self.flags
            .store(keep | flags & CHANGEABLE, Ordering::Relaxed);
    }

    /// Returns whether the file is a folder.
    pub(crate) fn is_folder(&self) -> bool {
        matches!(
            self.kind,
            Kind::Folder(_) | Kind::TmpFolder(_) | Kind::Listing(_)
        )
    }

    /// Returns whether calls fail instead of waiting.
    pub(crate) fn nonblocking(&self) -> bool {
        self.flags() & O_NONBLOCK != 0
    }
}

impl OpenFile {
    /// Notes the close, for the file's watches.
    fn tell_closed(&self) {
        let inode = match &self.kind {
            Kind::Tmp(tmp) => tmp.inode(),
            Kind::TmpFolder(inode) => *inode,
            _ => return,
        };
        if let Some(closing) = self
            .closing
            .as_ref()
            .filter(|closing| closing.watches.any())
        {
            closing.add_closed(Closed {
                inode,
                path: self.path.clone(),
                wrote: self.flags() & 3 != 0,
            });
        }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Some(locks) = self.locks.get() {
            locks.release(Owner::File(self.identity()));
        }
        self.tell_closed();
    }
}

#[derive(Clone, Debug)]
struct Slot {
    file: Arc<OpenFile>,
    close_on_exec: bool,
}

/// The table: file numbers to open files.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    slots: Vec<Option<Slot>>,
    /// New numbers are below this (`RLIMIT_NOFILE`).
    limit: usize,
}

impl Table {
    /// Returns a table with the numbers 0, 1 and 2.
    pub(crate) fn new(streams: [Kind; 3]) -> Self {
        let open = |(kind, flags)| Slot {
            file: Arc::new(OpenFile::new(kind, Vec::new(), flags, None)),
            close_on_exec: false,
        };
        // The first is read, the others are written, and a terminal does both.
        let flags = |kind: &Kind, own| match kind {
            Kind::Object(object) if object.as_terminal().is_some() => 2,
            _ => own,
        };
        let slots = streams.into_iter().zip([0, 1, 1]).map(|(kind, own)| {
            let flags = flags(&kind, own);
            (kind, flags)
        });
        Self {
            slots: slots.map(open).map(Some).collect(),
            limit: DEFAULT_LIMIT,
        }
    }

    /// Sets the limit of new numbers; files above it stay open.
    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.limit = usize::try_from(limit).map_or(MAX_FILES, |limit| limit.min(MAX_FILES));
    }

    /// Returns the limit of new numbers.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Returns the open files with their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Arc<OpenFile>)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(fd, slot)| Some((fd, &slot.as_ref()?.file)))
    }

    /// Returns the open file of number `fd`.
    pub(crate) fn get(&self, fd: u64) -> Result<Arc<OpenFile>> {
        Ok(Arc::clone(&self.slot(fd)?.file))
    }

    fn slot(&self, fd: u64) -> Result<&Slot> {
        // File numbers are ints: the upper half of the register does not count.
        let index = (fd & 0xffff_ffff) as usize;
        self.slots
            .get(index)
            .and_then(Option::as_ref)
            .ok_or_else(|| errno::EBADF.into())
    }

    /// Puts a file at the lowest free number from `from` on.
    pub(crate) fn add(
        &mut self,
        file: Arc<OpenFile>,
        from: usize,
        close_on_exec: bool,
    ) -> Result<u64> {
        let free = (from..self.limit).find(|&fd| self.slots.get(fd).is_none_or(Option::is_none));
        let fd = free.ok_or(errno::EMFILE)?;
        self.put(fd, file, close_on_exec);
        Ok(fd as u64)
    }

    /// Puts a file at number `fd`; gives what was there.
    pub(crate) fn put(
        &mut self,
        fd: usize,
        file: Arc<OpenFile>,
        close_on_exec: bool,
    ) -> Option<Arc<OpenFile>> {
        if self.slots.len() <= fd {
            self.slots.resize(fd + 1, None);
        }
        self.slots[fd]
            .replace(Slot {
                file,
                close_on_exec,
            })
            .map(|slot| slot.file)
    }

    /// Takes number `fd` out of the table.
    pub(crate) fn remove(&mut self, fd: u64) -> Result<Arc<OpenFile>> {
        self.slot(fd)?;
        let slot = self.slots[(fd & 0xffff_ffff) as usize].take();
        slot.map(|slot| slot.file)
            .ok_or_else(|| errno::EBADF.into())
    }

    /// Takes the numbers of a range out of the table.
    pub(crate) fn remove_range(&mut self, first: usize, last: usize) -> Vec<Arc<OpenFile>> {
        let slots = self
            .slots
            .iter_mut()
            .skip(first)
            .take((last - first).saturating_add(1));
        slots
            .filter_map(Option::take)
            .map(|slot| slot.file)
            .collect()
    }

    /// Makes the numbers of a range close on exec.
    pub(crate) fn close_range_on_exec(&mut self, first: usize, last: usize) {
        let slots = self
            .slots
            .iter_mut()
            .skip(first)
            .take((last - first).saturating_add(1));
        slots.flatten().for_each(|slot| slot.close_on_exec = true);
    }

    /// Returns whether `fd` closes on exec.
    pub(crate) fn close_on_exec(&self, fd: u64) -> Result<bool> {
        Ok(self.slot(fd)?.close_on_exec)
    }

    /// Sets whether `fd` closes on exec.
    pub(crate) fn set_close_on_exec(&mut self, fd: u64, on: bool) -> Result<()> {
        self.slot(fd)?;
        if let Some(Some(slot)) = self.slots.get_mut((fd & 0xffff_ffff) as usize) {
            slot.close_on_exec = on;
        }
        Ok(())
    }

    /// Takes out what closes on exec.
    pub(crate) fn exec(&mut self) -> Vec<Arc<OpenFile>> {
        let closes =
            |slot: &&mut Option<Slot>| slot.as_ref().is_some_and(|slot| slot.close_on_exec);
        let closed = self.slots.iter_mut().filter(closes);
        closed
            .filter_map(Option::take)
            .map(|slot| slot.file)
            .collect()
    }
}
/// The folders that paths begin at and the mask of new files' rights, which `CLONE_FS` shares.
#[derive(Clone, Debug)]
pub(crate) struct Fs {
    /// Relative paths begin here; no symbolic links.
    pub(crate) cwd: Vec<u8>,
    /// Absolute paths begin here: `/`, or where chroot led.
    pub(crate) root: Vec<u8>,
    pub(crate) umask: u64,
}
