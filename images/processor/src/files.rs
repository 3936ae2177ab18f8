//! A process's table of open files.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;

use messages::storage::FileId;

use crate::device::Device;
use crate::error::{Result, errno};
use crate::platform::Stream;

/// The most files a process may have open.
pub(crate) const MAX_FILES: usize = 1024;

/// What an open file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Standard input.
    Stdin,
    /// Standard output or error.
    Output(Stream),
    /// A device.
    Device(Device),
    /// A file of S.
    File(FileId),
    /// A folder of S.
    Folder(FileId),
}

/// An open file, shared by the numbers that `dup` made.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) kind: Kind,
    /// The absolute path that opened it.
    pub(crate) path: Vec<u8>,
    /// Where the next read begins.
    pub(crate) offset: AtomicU64,
    /// `F_GETFL`.
    pub(crate) flags: u32,
}

#[derive(Clone, Debug)]
struct Slot {
    file: Arc<OpenFile>,
    close_on_exec: bool,
}

/// The table: file numbers to open files.
#[derive(Debug)]
pub(crate) struct Table {
    slots: Vec<Option<Slot>>,
}

impl Table {
    /// Numbers 0, 1 and 2.
    pub(crate) fn new() -> Self {
        let mut table = Self { slots: Vec::new() };
        for (kind, flags) in [
            (Kind::Stdin, 0),
            (Kind::Output(Stream::Stdout), 1),
            (Kind::Output(Stream::Stderr), 1),
        ] {
            let file = OpenFile {
                kind,
                path: Vec::new(),
                offset: AtomicU64::new(0),
                flags,
            };
            table.slots.push(Some(Slot {
                file: Arc::new(file),
                close_on_exec: false,
            }));
        }
        table
    }

    /// The open file of number `fd`.
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
    pub(crate) fn add(&mut self, file: Arc<OpenFile>, from: usize, close_on_exec: bool) -> Result<u64> {
        let free = (from..MAX_FILES).find(|&fd| self.slots.get(fd).is_none_or(Option::is_none));
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
            .replace(Slot { file, close_on_exec })
            .map(|slot| slot.file)
    }

    /// Takes number `fd` out of the table.
    pub(crate) fn remove(&mut self, fd: u64) -> Result<Arc<OpenFile>> {
        self.slot(fd)?;
        let slot = self.slots[(fd & 0xffff_ffff) as usize].take();
        slot.map(|slot| slot.file).ok_or_else(|| errno::EBADF.into())
    }

    /// Whether `fd` closes on exec.
    pub(crate) fn close_on_exec(&self, fd: u64) -> Result<bool> {
        Ok(self.slot(fd)?.close_on_exec)
    }

    /// Says whether `fd` closes on exec.
    pub(crate) fn set_close_on_exec(&mut self, fd: u64, on: bool) -> Result<()> {
        self.slot(fd)?;
        if let Some(Some(slot)) = self.slots.get_mut((fd & 0xffff_ffff) as usize) {
            slot.close_on_exec = on;
        }
        Ok(())
    }

    /// Empties the table.
    pub(crate) fn drain(&mut self) -> Vec<Arc<OpenFile>> {
        self.slots.drain(..).flatten().map(|slot| slot.file).collect()
    }
}
