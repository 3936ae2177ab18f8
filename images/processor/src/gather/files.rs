//! S, with what was gathered brought before it is asked.

use alloc::vec::Vec;

use hal::Instant;
use messages::storage::{
    AllocateFlags, Attributes, Caller, FileId, FlushRequest, Flushed, Leased, OpenFlags, Opened,
    RenameFlags, Stat, Statfs, Written, XattrFlags, XattrName,
};

use super::{Asking, Cutting, Gathered, REFUSED, Settle, Tried};
use crate::error::{Error, Result};
use crate::platform::Files;

/// Attempts to keep a write, each after a call to S.
const ATTEMPTS: usize = 4;
/// The type of an inode, and that of a regular file.
const TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;

/// S, with what programs write gathered in front. `C` gives the time.
#[derive(Debug)]
pub struct Gathering<F, C = fn() -> Instant> {
    files: F,
    clock: C,
    gathered: Gathered,
}

impl<F, C> Gathering<F, C> {
    /// Returns `files` with nothing gathered.
    pub fn new(files: F, clock: C) -> Self {
        Self {
            files,
            clock,
            gathered: Gathered::default(),
        }
    }
}

#[cfg(test)]
impl<F, C> core::ops::Deref for Gathering<F, C> {
    type Target = F;
    fn deref(&self) -> &F {
        &self.files
    }
}

#[cfg(test)]
impl<F, C> core::ops::DerefMut for Gathering<F, C> {
    fn deref_mut(&mut self) -> &mut F {
        &mut self.files
    }
}

impl<F: Files, C: Fn() -> Instant> Gathering<F, C> {
    /// Brings what was gathered of a file, and with `durable` makes the file so in the same call;
    /// returns whether S has done that. What S refuses is noted.
    async fn bring(&self, inode: u64, durable: bool) -> Result<bool> {
        let (gate, state) = {
            let state = self.gathered.state.lock();
            let dirty = state.files.get(&inode).filter(|dirty| !dirty.is_clean());
            let Some(dirty) = dirty else {
                return Ok(false);
            };
            (dirty.gate.clone(), &self.gathered.state)
        };
        let _pass = gate.pass().await;
        let mut done = false;
        loop {
            let taken = state.lock().take_off(inode, (self.clock)());
            let Some((request, pieces)) = taken else {
                return Ok(done);
            };
            let request = FlushRequest { durable, ..request };
            let answer = match self.files.flush(&request, &pieces).await {
                Ok(flushed) => Ok(flushed),
                Err(Error::Errno(errno)) => Err(errno),
                Err(error) => return Err(error),
            };
            done = answer.is_ok();
            state.lock().landed(inode, answer);
        }
    }

    /// Brings what was gathered of an open file.
    async fn bring_file(&self, file: FileId) -> Result<()> {
        let inode = self.gathered.state.lock().open.get(&file).copied();
        if let Some(inode) = inode {
            self.bring(inode, false).await?;
        }
        Ok(())
    }

    /// Brings what was gathered of all files, or of those whose first write came before `until`.
    async fn bring_all(&self, until: Option<Instant>) -> Result<()> {
        let inodes: Vec<u64> = {
            let state = self.gathered.state.lock();
            let due = |since| until.is_none_or(|until| since <= until);
            let dirty = state.dirty().filter(|(_, dirty)| due(dirty.since));
            dirty.map(|(inode, _)| inode).collect()
        };
        for inode in inodes {
            self.bring(inode, false).await?;
        }
        Ok(())
    }

    /// Asks for a write lease of an open file; returns whether it is held.
    async fn ask(&self, file: FileId) -> Result<bool> {
        self.bring_file(file).await?;
        let state = &self.gathered.state;
        let cuts = state.lock().cuts;
        let asking = Asking::new(state, (self.clock)());
        let leased = match self.files.write_lease(file).await {
            Ok(leased) => leased,
            Err(Error::Errno(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        let held = asking.answered((leased.lease, leased.blocks), &leased.stat);
        let mut state = state.lock();
        let same = state.cuts == cuts && state.cutting == 0;
        if let Some((_, dirty)) = state.entry(file) {
            if !held {
                dirty.refused = (self.clock)() + REFUSED;
            } else if dirty.is_clean() {
                (dirty.file, dirty.generation) = (file, leased.lease);
                dirty.size = same.then_some(leased.stat.size);
            }
        }
        Ok(held)
    }

    /// Notes a file that was opened, with the lease that came with it.
    fn opened(&self, asking: Asking<'_>, opened: &Opened) {
        if opened.stat.mode & TYPE == REGULAR {
            let mut state = self.gathered.state.lock();
            state.open.insert(opened.file, opened.stat.inode);
        }
        if opened.writes {
            asking.answered((opened.lease, opened.blocks), &opened.stat);
        }
    }

    /// Notes how far a file reaches that was written through.
    fn written(&self, file: FileId, appended: bool, written: Written) {
        let mut state = self.gathered.state.lock();
        let inode = state.open.get(&file).copied();
        let held = inode.and_then(|inode| state.holder.valid(inode, (self.clock)()));
        let end = written.offset + u64::from(written.len);
        if let Some(held) = held
            && let Some((_, dirty)) = state.entry(file)
            && dirty.is_clean()
        {
            if appended {
                (dirty.file, dirty.generation) = (file, held.generation);
                dirty.size = Some(end);
            } else {
                dirty.size = dirty.size.map(|size| size.max(end));
            }
        } else {
            state.resized(file);
        }
    }
}

impl<F: Files, C: Fn() -> Instant> Files for Gathering<F, C> {
    async fn gather(
        &self,
        file: FileId,
        offset: Option<u64>,
        bytes: &[u8],
    ) -> Result<Option<Written>> {
        for _ in 0..ATTEMPTS {
            let now = (self.clock)();
            let tried = self.gathered.state.lock().keep(file, offset, bytes, now);
            match tried {
                Tried::Kept(written) => {
                    self.gathered.wanted.wake();
                    return Ok(Some(written));
                }
                Tried::Full => self.bring_file(file).await?,
                Tried::Ask if self.ask(file).await? => {}
                Tried::Ask | Tried::Not => return Ok(None),
            }
        }
        Ok(None)
    }
    async fn settle(&self, which: Settle) -> Result<()> {
        match which {
            Settle::File(file) => self.bring_file(file).await,
            Settle::Due(now) => {
                let until = now.nanos.checked_sub(duration_nanos(super::AGE));
                match until.map(Instant::from_nanos) {
                    Some(until) => self.bring_all(Some(until)).await,
                    None => Ok(()),
                }
            }
            Settle::All => self.bring_all(None).await,
        }
    }
    fn gathered(&self) -> Option<&Gathered> {
        Some(&self.gathered)
    }
    async fn write_lease(&self, file: FileId) -> Result<Leased> {
        self.files.write_lease(file).await
    }
    async fn flush(&self, request: &FlushRequest, pieces: &[u8]) -> Result<Flushed> {
        self.files.flush(request, pieces).await
    }
    async fn open(
        &self,
        by: Caller<'_>,
        path: &[u8],
        flags: OpenFlags,
        mode: u32,
    ) -> Result<Opened> {
        let state = &self.gathered.state;
        let cutting = flags.contains(OpenFlags::TRUNCATE);
        let _cutting = cutting.then(|| Cutting::new(state));
        // Of a file that is made nothing was gathered.
        let new = OpenFlags::CREATE | OpenFlags::EXCLUSIVE;
        if !flags.contains(new) && !flags.contains(OpenFlags::UNNAMED) {
            self.bring_all(None).await?;
        }
        let mut wants = flags;
        wants.set(OpenFlags::GATHER, flags.contains(OpenFlags::WRITE));
        let asking = Asking::new(state, (self.clock)());
        let opened = self.files.open(by, path, wants, mode).await?;
        self.opened(asking, &opened);
        Ok(opened)
    }
    async fn read(&self, file: FileId, offset: u64, into: &mut [u8]) -> Result<usize> {
        self.bring_file(file).await?;
        self.files.read(file, offset, into).await
    }
    async fn stat(&self, by: Caller<'_>, path: &[u8], follow: bool) -> Result<Stat> {
        self.bring_all(None).await?;
        self.files.stat(by, path, follow).await
    }
    async fn stat_file(&self, file: FileId) -> Result<Stat> {
        self.bring_file(file).await?;
        self.files.stat_file(file).await
    }
    async fn lease(&self, file: FileId) -> Result<Leased> {
        self.bring_file(file).await?;
        self.files.lease(file).await
    }
    async fn getdents(&self, file: FileId, position: u64, into: &mut [u8]) -> Result<usize> {
        self.files.getdents(file, position, into).await
    }
    async fn readlink(&self, by: Caller<'_>, path: &[u8], into: &mut [u8]) -> Result<usize> {
        self.files.readlink(by, path, into).await
    }
    async fn close(&self, file: FileId) -> Result<()> {
        self.bring_file(file).await?;
        let closed = self.files.close(file).await;
        let mut state = self.gathered.state.lock();
        if let Some(inode) = state.open.remove(&file) {
            let idle = |dirty: &super::Dirty| {
                dirty.file == file && dirty.is_clean() && dirty.handed.is_empty()
            };
            if state.files.get(&inode).is_some_and(idle) {
                state.files.remove(&inode);
            }
            if !state.open.values().any(|&other| other == inode) {
                state.promises.remove(&inode);
            }
        }
        closed
    }
    async fn write(&self, file: FileId, offset: Option<u64>, bytes: &[u8]) -> Result<Written> {
        self.bring_file(file).await?;
        let written = self.files.write(file, offset, bytes).await;
        match written {
            Ok(written) => self.written(file, offset.is_none(), written),
            Err(_) => self.gathered.state.lock().resized(file),
        }
        written
    }
    async fn truncate(&self, file: FileId, size: u64) -> Result<()> {
        self.bring_file(file).await?;
        let done = self.files.truncate(file, size).await;
        self.gathered.state.lock().resized(file);
        done
    }
    async fn allocate(
        &self,
        file: FileId,
        flags: AllocateFlags,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        self.bring_file(file).await?;
        let done = self.files.allocate(file, flags, offset, len).await;
        let mut state = self.gathered.state.lock();
        state.resized(file);
        // S promised blocks for the tree that the file had.
        if let Some(&inode) = state.open.get(&file) {
            state.promises.remove(&inode);
        }
        done
    }
    async fn fsync(&self, file: FileId) -> Result<()> {
        let inode = self.gathered.state.lock().open.get(&file).copied();
        if let Some(inode) = inode
            && self.bring(inode, true).await?
        {
            return Ok(());
        }
        self.files.fsync(file).await
    }
    async fn sync(&self) -> Result<()> {
        self.bring_all(None).await?;
        self.files.sync().await
    }
    async fn make(&self, by: Caller<'_>, path: &[u8], mode: u32, device: u64) -> Result<()> {
        self.files.make(by, path, mode, device).await
    }
    async fn symlink(&self, by: Caller<'_>, path: &[u8], target: &[u8]) -> Result<()> {
        self.files.symlink(by, path, target).await
    }
    async fn link(&self, by: Caller<'_>, old: &[u8], follow: bool, new: &[u8]) -> Result<()> {
        self.bring_all(None).await?;
        self.files.link(by, old, follow, new).await
    }
    async fn link_file(&self, by: Caller<'_>, file: FileId, new: &[u8]) -> Result<()> {
        self.bring_file(file).await?;
        self.files.link_file(by, file, new).await
    }
    async fn rename(
        &self,
        by: Caller<'_>,
        old: &[u8],
        new: &[u8],
        flags: RenameFlags,
    ) -> Result<u64> {
        self.bring_all(None).await?;
        self.files.rename(by, old, new, flags).await
    }
    async fn remove(&self, by: Caller<'_>, path: &[u8], directory: bool) -> Result<u64> {
        self.files.remove(by, path, directory).await
    }
    async fn set_path(
        &self,
        by: Caller<'_>,
        path: &[u8],
        follow: bool,
        set: &Attributes,
    ) -> Result<()> {
        self.bring_all(None).await?;
        self.files.set_path(by, path, follow, set).await
    }
    async fn set_file(&self, by: Caller<'_>, file: FileId, set: &Attributes) -> Result<()> {
        self.bring_file(file).await?;
        self.files.set_file(by, file, set).await
    }
    async fn get_xattr(
        &self,
        by: Caller<'_>,
        file: FileId,
        name: XattrName<'_>,
    ) -> Result<Vec<u8>> {
        self.files.get_xattr(by, file, name).await
    }
    async fn list_xattrs(&self, by: Caller<'_>, file: FileId) -> Result<Vec<u8>> {
        self.files.list_xattrs(by, file).await
    }
    async fn set_xattr(
        &self,
        by: Caller<'_>,
        file: FileId,
        name: XattrName<'_>,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        self.bring_file(file).await?;
        self.files.set_xattr(by, file, name, value, flags).await
    }
    async fn remove_xattr(&self, by: Caller<'_>, file: FileId, name: XattrName<'_>) -> Result<()> {
        self.bring_file(file).await?;
        self.files.remove_xattr(by, file, name).await
    }
    async fn statfs(&self) -> Result<Statfs> {
        self.bring_all(None).await?;
        self.files.statfs().await
    }
}

fn duration_nanos(time: hal::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
