//! Files and directories of S: what changes them.

use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;

use messages::storage::{
    AllocateFlags, AttributeFlags, Attributes, OpenFlags, PATH_MAX, RenameFlags, Statfs,
};

use super::layout::Bytes;
use super::misc::TMPFS_MAGIC;
use super::path::{AT_FDCWD, Change};
use super::{Args, int};
use crate::device::Device;
use crate::error::{Error, Result, errno};
use crate::files::{Kind, O_DIRECT, OpenFile};
use crate::load::PIECE;
use crate::platform::Files;
use crate::process::Node;
use crate::pseudo::{Entry, Walked};
use crate::storage::{self, StorageFile};
use crate::thread::Thread;
use crate::tmpfs::{self, FOLDER, Found, NewInode, time};

const O_APPEND: u32 = 0o2_000;
/// `O_DSYNC`, a part of `O_SYNC`.
const O_DSYNC: u32 = 0o10_000;
/// `AT_EMPTY_PATH` and `AT_SYMLINK_FOLLOW` of linkat.
const EMPTY_PATH: u64 = 0x1000;
const FOLLOW: u64 = 0x400;
const EXT4_MAGIC: u64 = 0xef53;
/// Folder in which programs find their open files, by number.
const OPEN_FILES: &[u8] = b"/proc/self/fd/";

fn piece_len(left: u64) -> usize {
    usize::try_from(left).map_or(PIECE, |left| left.min(PIECE))
}

/// Returns a change as S is told it.
fn attributes(change: &tmpfs::Change) -> Attributes {
    let never = time(Duration::ZERO);
    let mut set = Attributes {
        which: AttributeFlags::empty(),
        mode: 0,
        uid: 0,
        gid: 0,
        accessed: never,
        modified: never,
    };
    match *change {
        tmpfs::Change::Mode(mode) => {
            set.which = AttributeFlags::MODE;
            set.mode = mode & 0o7777;
        }
        tmpfs::Change::Owner(uid, gid) => {
            set.which.set(AttributeFlags::UID, uid != u32::MAX);
            set.which.set(AttributeFlags::GID, gid != u32::MAX);
            (set.uid, set.gid) = (uid, gid);
        }
        tmpfs::Change::Present(now) => {
            set.which =
                AttributeFlags::PRESENT | AttributeFlags::ACCESSED | AttributeFlags::MODIFIED;
            (set.accessed, set.modified) = (time(now), time(now));
        }
        tmpfs::Change::Times(accessed, modified) => {
            set.which.set(AttributeFlags::ACCESSED, accessed.is_some());
            set.which.set(AttributeFlags::MODIFIED, modified.is_some());
            (set.accessed, set.modified) = (accessed.unwrap_or(never), modified.unwrap_or(never));
        }
    }
    set
}

/// Returns the number of the file system under a path of `/proc`, `/sys` or `/dev` (Linux
/// `include/uapi/linux/magic.h`).
fn magic_of(path: &[u8]) -> u64 {
    const PROC_SUPER_MAGIC: u64 = 0x9fa0;
    const SYSFS_MAGIC: u64 = 0x6265_6572;
    const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;
    let below = |folder: &[u8]| {
        let rest = path.strip_prefix(folder);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    };
    if below(b"/proc") {
        PROC_SUPER_MAGIC
    } else if below(b"/sys") {
        SYSFS_MAGIC
    } else if below(b"/dev/pts") {
        DEVPTS_SUPER_MAGIC
    } else {
        TMPFS_MAGIC
    }
}

impl<N: Node> Thread<N> {
    /// Writes from the program to a file of S: through at once, or to be gathered.
    pub(super) async fn write_storage(
        &self,
        file: &OpenFile,
        of: StorageFile,
        addr: u64,
        count: u64,
        offset: Option<u64>,
    ) -> Result<u64> {
        let count = self.memory.reachable(addr, count, false)?;
        let _pass = self.node.kernel().changes.pass(of.inode).await;
        // As on Linux, pwrite appends to a file that is open for that.
        let append = file.flags() & O_APPEND != 0;
        let mut at = match offset {
            _ if append => None,
            Some(offset) => Some(offset),
            None => Some(file.offset.load(Relaxed)),
        };
        let gathers = file.flags() & (O_DSYNC | O_DIRECT) == 0;
        let mut piece = vec![0; piece_len(count)];
        let mut done = 0;
        while done < count {
            let want = piece_len(count - done);
            self.memory.read(addr + done, &mut piece[..want]).await?;
            let put = self.put_storage(of, at, &piece[..want], gathers).await;
            let (end, len) = match put {
                Err(Error::Errno(_)) if done > 0 => break,
                written => written?,
            };
            at = at.map(|_| end);
            if offset.is_none() {
                file.offset.store(end, Relaxed);
            }
            done += len as u64;
            if len < want {
                break;
            }
        }
        if file.flags() & O_DSYNC != 0 {
            self.node.files().fsync(of.id).await?;
        }
        Ok(done)
    }

    /// Writes from the kernel to a file of S, at its end if there is no offset; returns where it
    /// ended and how much it was. The caller has passed the gate of the file's changes.
    async fn put_storage(
        &self,
        of: StorageFile,
        at: Option<u64>,
        from: &[u8],
        gathers: bool,
    ) -> Result<(u64, usize)> {
        if let Some(at) = at {
            self.check_size(at.saturating_add(from.len() as u64))?;
        }
        let files = self.node.files();
        let gathered = match gathers {
            true => files.gather(of.id, at, from).await?,
            false => None,
        };
        let written = match gathered {
            Some(written) => written,
            None => files.write(of.id, at, from).await?,
        };
        let len = written.len as usize;
        storage::written(self.node, of.inode, written.offset, &from[..len]).await?;
        Ok((written.offset + u64::from(written.len), len))
    }

    /// Writes what the kernel has to an open file of S, as [`put_storage`](Self::put_storage) does.
    pub(super) async fn write_storage_from(
        &self,
        of: StorageFile,
        at: Option<u64>,
        from: &[u8],
    ) -> Result<(u64, usize)> {
        let _pass = self.node.kernel().changes.pass(of.inode).await;
        self.put_storage(of, at, from, false).await
    }

    /// Sets the size of an open file of S.
    pub(super) async fn resize_storage(&self, of: StorageFile, size: u64) -> Result<()> {
        {
            let _pass = self.node.kernel().changes.pass(of.inode).await;
            self.node.files().truncate(of.id, size).await?;
            storage::resized(self.node, of.inode, size).await?;
        }
        storage::unmap_behind(self.node, of.inode, size).await
    }

    /// Sets the size of the file of S at a path.
    pub(super) async fn truncate_storage(&self, path: &[u8], size: u64) -> Result<u64> {
        self.check_size(size)?;
        let by = self.asker();
        let opened = self
            .node
            .files()
            .open(by.caller(), path, OpenFlags::WRITE, 0)
            .await?;
        let of = StorageFile {
            id: opened.file,
            inode: opened.stat.inode,
        };
        let resized = if self.node.kernel().texts.runs(of.inode) {
            Err(errno::ETXTBSY.into())
        } else {
            self.resize_storage(of, size).await
        };
        self.node.kernel().closing.add(opened.file);
        resized.map(|()| 0)
    }

    /// Allocates or frees a range of an open file of S.
    pub(super) async fn allocate_storage(
        &self,
        of: StorageFile,
        mode: u64,
        offset: u64,
        len: u64,
    ) -> Result<u64> {
        let flags = match mode {
            0 => AllocateFlags::empty(),
            1 => AllocateFlags::KEEP_SIZE,
            3 => AllocateFlags::KEEP_SIZE | AllocateFlags::PUNCH_HOLE,
            _ => return Err(errno::EOPNOTSUPP.into()),
        };
        let end = offset.checked_add(len).ok_or(errno::EFBIG)?;
        let _pass = self.node.kernel().changes.pass(of.inode).await;
        self.node
            .files()
            .allocate(of.id, flags, offset, len)
            .await?;
        if flags.contains(AllocateFlags::PUNCH_HOLE) {
            storage::punched(self.node, of.inode, offset, end).await?;
        } else if flags.is_empty() {
            storage::written(self.node, of.inode, end, &[]).await?;
        }
        Ok(0)
    }

    /// Makes an open file durable; what is no file of S is not kept anyway.
    pub(super) async fn sys_fsync(&self, [fd, ..]: Args) -> Result<u64> {
        let file = self.file(fd)?;
        match &file.kind {
            Kind::File(of) => {
                storage::sync(self.node, *of).await?;
                storage::tell_failure(self.node, &file).map(|()| 0)
            }
            Kind::Folder(of) => self.node.files().fsync(of.id).await.map(|()| 0),
            Kind::Tmp(_) | Kind::TmpFolder(_) => Ok(0),
            _ => Err(errno::EINVAL.into()),
        }
    }

    /// Makes all of a file durable: S knows no ranges.
    pub(super) async fn sys_sync_range(&self, [fd, from, len, flags, ..]: Args) -> Result<u64> {
        /// `SYNC_FILE_RANGE_WAIT_BEFORE`, `_WRITE` and `_WAIT_AFTER`.
        const KNOWN: u64 = 7;
        let end = from.checked_add(len).filter(|end| end.cast_signed() >= 0);
        if flags & !KNOWN != 0 || from.cast_signed() < 0 || end.is_none() {
            return Err(errno::EINVAL.into());
        }
        match &self.file(fd)?.kind {
            Kind::File(_) | Kind::Folder(_) | Kind::Tmp(_) | Kind::TmpFolder(_) => {}
            _ => return Err(errno::ESPIPE.into()),
        }
        match flags {
            0 => Ok(0),
            _ => self.sys_fsync([fd, 0, 0, 0, 0, 0]).await,
        }
    }

    /// Makes what was written to an open file durable, if it is one of S.
    pub(super) async fn sync_written(&self, fd: u64) -> Result<()> {
        let file = self.file(fd)?;
        match &file.kind {
            Kind::File(of) => {
                storage::sync(self.node, *of).await?;
                storage::tell_failure(self.node, &file)
            }
            _ => Ok(()),
        }
    }

    /// Makes everything durable. sync(2) tells of no failure.
    pub(super) async fn sys_sync(&self) -> Result<u64> {
        storage::write_back_all(self.node).await?;
        match self.node.files().sync().await {
            Err(Error::Errno(_)) => Ok(0),
            synced => synced.map(|()| 0),
        }
    }

    pub(super) async fn sys_syncfs(&self, [fd, ..]: Args) -> Result<u64> {
        let file = self.file(fd)?;
        storage::write_back_all(self.node).await?;
        self.node.files().sync().await?;
        let gathered = self.node.files().gathered();
        match gathered.and_then(|gathered| file.failure_of_any(gathered)) {
            Some(errno) => Err(errno.into()),
            None => Ok(0),
        }
    }

    /// Makes something on S's disk; `mode` has the program's mask applied.
    pub(super) async fn make_storage(
        &self,
        path: &[u8],
        mode: u32,
        device: u64,
        what: NewInode,
    ) -> Result<u64> {
        if Device::named(path).is_some() {
            return Err(errno::EEXIST.into());
        }
        let (by, files) = (self.asker(), self.node.files());
        let by = by.caller();
        match what {
            NewInode::Folder => files.make(by, path, FOLDER | mode, 0).await?,
            // The mode says which of them it is.
            NewInode::File | NewInode::Fifo | NewInode::Socket | NewInode::Device { .. } => {
                files.make(by, path, mode, device).await?;
            }
            NewInode::Link(target) => files.symlink(by, path, &target).await?,
        }
        self.node.kernel().changes.note();
        Ok(0)
    }

    pub(super) async fn remove_storage(&self, path: &[u8], directory: bool) -> Result<u64> {
        if Device::named(path).is_some() {
            return self.refuse_change(path, Change::Remove).await;
        }
        let (by, files) = (self.asker(), self.node.files());
        let inode = files.remove(by.caller(), path, directory).await?;
        self.node.kernel().tmpfs().forget_below(path);
        storage::removed(self.node, inode);
        Ok(0)
    }

    pub(super) async fn rename_storage(&self, old: &[u8], new: &[u8], flags: u64) -> Result<u64> {
        if Device::named(old).is_some() || Device::named(new).is_some() {
            return self.refuse_change(old, Change::Remove).await;
        }
        let flags = u8::try_from(flags).ok().and_then(RenameFlags::from_bits);
        let flags = flags.ok_or(errno::EINVAL)?;
        let (by, files) = (self.asker(), self.node.files());
        let replaced = files.rename(by.caller(), old, new, flags).await?;
        if !flags.contains(RenameFlags::EXCHANGE) {
            self.node.kernel().tmpfs().forget_below(old);
            storage::removed(self.node, replaced);
        }
        self.node.kernel().changes.note();
        Ok(0)
    }

    pub(super) async fn link_storage(&self, old: &[u8], follow: bool, new: &[u8]) -> Result<u64> {
        if Device::named(old).is_some() || Device::named(new).is_some() {
            return self.refuse_change(new, Change::Create).await;
        }
        let (by, files) = (self.asker(), self.node.files());
        files.link(by.caller(), old, follow, new).await?;
        self.node.kernel().changes.note();
        Ok(0)
    }

    /// Gives an open file of S, which linkat names by its number, a name; `None` if it names none.
    pub(super) async fn link_open_file(
        &self,
        [from_dir, from, to_dir, to, flags, _]: Args,
    ) -> Result<Option<u64>> {
        let old = self.memory.read_string(from, PATH_MAX).await?;
        let fd = match old.strip_prefix(OPEN_FILES) {
            Some(number) if flags & FOLLOW != 0 => {
                let number = core::str::from_utf8(number)
                    .ok()
                    .and_then(|text| text.parse().ok());
                number.ok_or(errno::ENOENT)?
            }
            _ if flags & EMPTY_PATH != 0 && old.is_empty() && int(from_dir) != int(AT_FDCWD) => {
                from_dir
            }
            _ => return Ok(None),
        };
        let file = self.file(fd)?;
        let Kind::File(of) = &file.kind else {
            return Err(errno::EXDEV.into());
        };
        let (_, wanted) = self.locate(to_dir, to, false).await?;
        match wanted {
            Found::Storage(new) => {
                let (by, files) = (self.asker(), self.node.files());
                files.link_file(by.caller(), of.id, &new).await?;
            }
            Found::Here(_) => return Err(errno::EEXIST.into()),
            Found::Missing(..) => return Err(errno::EXDEV.into()),
        }
        self.node.kernel().changes.note();
        Ok(Some(0))
    }

    /// Changes attributes of what a path of S names.
    pub(super) async fn change_storage(
        &self,
        path: &[u8],
        follow: bool,
        change: &tmpfs::Change,
    ) -> Result<u64> {
        if Device::named(path).is_some() {
            return self.refuse_change(path, Change::Modify).await;
        }
        let (by, files) = (self.asker(), self.node.files());
        files
            .set_path(by.caller(), path, follow, &attributes(change))
            .await?;
        self.node.kernel().changes.note();
        Ok(0)
    }

    /// Changes attributes of an open file of S.
    pub(super) async fn change_storage_file(
        &self,
        of: StorageFile,
        change: &tmpfs::Change,
    ) -> Result<u64> {
        let (by, files) = (self.asker(), self.node.files());
        files
            .set_file(by.caller(), of.id, &attributes(change))
            .await?;
        self.node.kernel().changes.note();
        Ok(0)
    }

    pub(super) async fn sys_statfs(&self, addr: u64, into: u64) -> Result<u64> {
        let path = self.path(AT_FDCWD, addr, true).await?;
        let path = match self.pseudo(&path, true)? {
            Walked::Entry(Entry::Open(file), _) => return self.statfs_of(&file, into).await,
            Walked::Entry(_, path) => return self.put_plain_statfs(magic_of(&path), into).await,
            Walked::Elsewhere(path) => path,
        };
        match self
            .node
            .kernel()
            .tmpfs()
            .find(&path, true, &self.creds())?
        {
            Found::Storage(path) => {
                let by = self.asker();
                self.node.files().stat(by.caller(), &path, true).await?;
                self.put_statfs(into).await
            }
            Found::Missing(..) => Err(errno::ENOENT.into()),
            Found::Here(_) => self.put_tmp_statfs(into).await,
        }
    }

    pub(super) async fn sys_fstatfs(&self, fd: u64, into: u64) -> Result<u64> {
        let file = self.place(fd)?;
        self.statfs_of(&file, into).await
    }

    async fn statfs_of(&self, file: &OpenFile, into: u64) -> Result<u64> {
        const PIPEFS_MAGIC: u64 = 0x5049_5045;
        const SOCKFS_MAGIC: u64 = 0x534f_434b;
        const ANON_INODE_FS_MAGIC: u64 = 0x0904_1934;
        let magic = match &file.kind {
            Kind::File(_) | Kind::Folder(_) => return self.put_statfs(into).await,
            Kind::Device(_) | Kind::Text(_) | Kind::Listing(_) => magic_of(&file.path),
            Kind::Object(object) if object.device() != 0 => magic_of(&file.path),
            Kind::Object(object) if file.path.is_empty() => match object.mode() >> 12 {
                0o1 => PIPEFS_MAGIC,
                0o14 => SOCKFS_MAGIC,
                _ => ANON_INODE_FS_MAGIC,
            },
            _ => TMPFS_MAGIC,
        };
        self.put_plain_statfs(magic, into).await
    }

    /// Tells of a file system that has no size.
    async fn put_plain_statfs(&self, magic: u64, into: u64) -> Result<u64> {
        if magic == TMPFS_MAGIC {
            return self.put_tmp_statfs(into).await;
        }
        let mut bytes = Bytes::default();
        for word in [magic, 4096, 0, 0, 0, 0, 0, 0, 255, 4096, 0x20] {
            bytes = bytes.u64(word);
        }
        self.memory.write(into, &bytes.done(120)).await?;
        Ok(0)
    }

    async fn put_statfs(&self, into: u64) -> Result<u64> {
        const READ_ONLY: u64 = 1;
        let s: Statfs = self.node.files().statfs().await?;
        let flags = if s.read_only { READ_ONLY } else { 0 };
        let size = u64::from(s.block_size);
        let mut bytes = Bytes::default();
        for word in [
            EXT4_MAGIC,
            size,
            s.blocks,
            s.free,
            s.available,
            s.inodes,
            s.free_inodes,
            s.id,
        ] {
            bytes = bytes.u64(word);
        }
        // The longest name, the size of a fragment, flags with the bit that says they count.
        for word in [255, size, flags | 0x20] {
            bytes = bytes.u64(word);
        }
        let bytes: Vec<u8> = bytes.done(120);
        self.memory.write(into, &bytes).await?;
        Ok(0)
    }

    /// Returns whether S's disk can't be changed.
    pub(super) async fn storage_is_read_only(&self) -> Result<bool> {
        Ok(self.node.files().statfs().await?.read_only)
    }
}
