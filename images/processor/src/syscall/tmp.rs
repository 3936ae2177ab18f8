//! Files and folders of this node's own: reading, writing, and what changes names.

use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;

use messages::storage::{Entry, FileTime, PATH_MAX};

use super::Args;
use super::int;
use super::layout::dirent;
use super::path::{AT_FDCWD, EMPTY_PATH, NOFOLLOW};
use crate::creds::{CAP_FOWNER, CAP_MKNOD, EXECUTE, WRITE};
use crate::error::{Error, Result, errno};
use crate::files::{Kind, OpenFile};
use crate::inotify::{ACCESS, ATTRIB, MODIFY};
use crate::load::PIECE;
use crate::platform::Platform;
use crate::process::Node;
use crate::thread::Thread;
use crate::tmpfs::{
    Change, DEVICE_BLOCK, DEVICE_CHAR, FIFO, FOLDER, Found, LINK, NewInode, REGULAR, SOCKET,
    TYPE_MASK, TmpFile, Tmpfs, last_part, time,
};

const O_APPEND: u32 = 0o2_000;
const AT_REMOVEDIR: u64 = 0x200;
const RENAME_NOREPLACE: u64 = 1;
const RENAME_EXCHANGE: u64 = 2;
/// `UTIME_NOW` and `UTIME_OMIT`.
const UTIME_NOW: u64 = 0x3fff_ffff;
const UTIME_OMIT: u64 = 0x3fff_fffe;

impl<N: Node> Thread<N> {
    fn tmpfs(&self) -> &Tmpfs<N> {
        self.node.kernel().tmpfs()
    }

    fn wall(&self) -> Duration {
        self.node.platform().wall_clock()
    }

    pub(super) async fn read_tmp(
        &self,
        file: &OpenFile,
        tmp: &TmpFile,
        addr: u64,
        count: u64,
        offset: Option<u64>,
    ) -> Result<u64> {
        let count = self.memory.reachable(addr, count, true)?;
        let start = offset.unwrap_or_else(|| file.offset.load(Relaxed));
        let mut piece = vec![0; usize::try_from(count).map_or(PIECE, |count| count.min(PIECE))];
        let mut done = 0;
        while done < count {
            let want = usize::try_from(count - done).map_or(PIECE, |left| left.min(PIECE));
            let got = self
                .tmpfs()
                .read(tmp, start + done, &mut piece[..want])
                .await?;
            self.memory.write(addr + done, &piece[..got]).await?;
            done += got as u64;
            if got < want {
                break;
            }
        }
        if offset.is_none() {
            file.offset.store(start + done, Relaxed);
        }
        if done > 0 {
            self.tell(file, ACCESS);
        }
        Ok(done)
    }

    pub(super) async fn write_tmp(
        &self,
        file: &OpenFile,
        tmp: &TmpFile,
        addr: u64,
        count: u64,
        offset: Option<u64>,
    ) -> Result<u64> {
        let count = self.memory.reachable(addr, count, false)?;
        let mut at = match offset {
            Some(offset) => Some(offset),
            None if file.flags() & O_APPEND != 0 => None,
            None => Some(file.offset.load(Relaxed)),
        };
        let mut piece = vec![0; usize::try_from(count).map_or(PIECE, |count| count.min(PIECE))];
        let mut done = 0;
        while done < count {
            let want = usize::try_from(count - done).map_or(PIECE, |left| left.min(PIECE));
            self.memory.read(addr + done, &mut piece[..want]).await?;
            let end = at.unwrap_or_else(|| tmp.size()).saturating_add(want as u64);
            if let Err(error) = self.check_size(end) {
                return if done > 0 { Ok(done) } else { Err(error) };
            }
            match self.tmpfs().write(tmp, at, &piece[..want]).await {
                Ok(end) => {
                    done += want as u64;
                    at = at.map(|_| end);
                    if offset.is_none() {
                        file.offset.store(end, Relaxed);
                    }
                }
                Err(Error::Errno(_)) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        self.tell(file, MODIFY);
        Ok(done)
    }

    pub(super) async fn list_tmp(
        &self,
        file: &OpenFile,
        inode: u64,
        addr: u64,
        count: u64,
    ) -> Result<u64> {
        let position = file.offset.load(Relaxed);
        let entries = self
            .tmpfs()
            .entries(inode, usize::try_from(position).unwrap_or(usize::MAX))?;
        let mut records: Vec<u8> = Vec::new();
        let mut next = position;
        for (inode, mode, name) in entries {
            let kind = match mode {
                FOLDER => 4,
                LINK => 10,
                SOCKET => 12,
                FIFO => 1,
                // A program that must know asks for the status.
                0 => 0,
                _ => 8,
            };
            let record = dirent(&Entry {
                inode,
                next: next + 1,
                kind,
                name: &name,
            });
            if (records.len() + record.len()) as u64 > count {
                if records.is_empty() {
                    return Err(errno::EINVAL.into());
                }
                break;
            }
            records.extend(record);
            next += 1;
        }
        self.memory.write(addr, &records).await?;
        file.offset.store(next, Relaxed);
        self.tell(file, ACCESS);
        Ok(records.len() as u64)
    }

    pub(super) async fn sys_ftruncate(&self, [fd, size, ..]: Args) -> Result<u64> {
        if size.cast_signed() < 0 {
            return Err(errno::EINVAL.into());
        }
        let file = self.file(fd)?;
        match &file.kind {
            _ if file.flags() & 3 == 0 => return Err(errno::EINVAL.into()),
            Kind::Tmp(tmp) => {
                self.check_size(size)?;
                self.tmpfs().resize(tmp, size).await?;
                self.tell(&file, MODIFY);
            }
            Kind::File(of) => {
                self.check_size(size)?;
                self.resize_storage(*of, size).await?;
            }
            _ => return Err(errno::EINVAL.into()),
        }
        Ok(0)
    }

    pub(super) async fn sys_fallocate(&self, [fd, mode, offset, len, ..]: Args) -> Result<u64> {
        const KEEP_SIZE: u64 = 1;
        const PUNCH_HOLE: u64 = 2;
        if offset.cast_signed() < 0 || len.cast_signed() <= 0 {
            return Err(errno::EINVAL.into());
        }
        let file = self.file(fd)?;
        if file.flags() & 3 == 0 {
            return Err(errno::EBADF.into());
        }
        match &file.kind {
            Kind::File(of) => return self.allocate_storage(*of, mode, offset, len).await,
            Kind::Tmp(tmp) if mode == KEEP_SIZE | PUNCH_HOLE => {
                let end = offset.checked_add(len).ok_or(errno::EFBIG)?;
                self.tmpfs().punch(tmp, offset..end).await?;
                self.tell(&file, MODIFY);
            }
            Kind::Tmp(_) if mode & !KEEP_SIZE != 0 => return Err(errno::EOPNOTSUPP.into()),
            Kind::Tmp(tmp) => {
                let end = offset.checked_add(len).ok_or(errno::EFBIG)?;
                if mode == 0 && end > tmp.size() {
                    self.tmpfs().resize(tmp, end).await?;
                }
                self.tell(&file, MODIFY);
            }
            _ => return Err(errno::ENODEV.into()),
        }
        Ok(0)
    }

    /// Returns where a path of the program leads, and the absolute path.
    pub(super) async fn locate(
        &self,
        dir: u64,
        addr: u64,
        follow: bool,
    ) -> Result<(Vec<u8>, Found)> {
        let path = self.path(dir, addr, follow).await?;
        let found = self.tmpfs().find(&path, follow, &self.creds())?;
        Ok((path, found))
    }

    pub(super) async fn sys_mkdirat(&self, dir: u64, addr: u64, mode: u64) -> Result<u64> {
        self.create(dir, addr, mode & 0o7777, 0, NewInode::Folder)
            .await
    }

    pub(super) async fn sys_mknodat(
        &self,
        dir: u64,
        addr: u64,
        mode: u64,
        device: u64,
    ) -> Result<u64> {
        let what = match int(mode) & TYPE_MASK {
            FOLDER => return Err(errno::EPERM.into()),
            FIFO => NewInode::Fifo,
            SOCKET => NewInode::Socket,
            kind @ (DEVICE_CHAR | DEVICE_BLOCK) => NewInode::Device {
                block: kind == DEVICE_BLOCK,
                number: int(device).into(),
            },
            _ => NewInode::File,
        };
        self.create(dir, addr, mode, device, what).await
    }

    pub(super) async fn sys_symlinkat(&self, target: u64, dir: u64, addr: u64) -> Result<u64> {
        let target = self.memory.read_string(target, PATH_MAX).await?;
        if target.is_empty() {
            return Err(errno::ENOENT.into());
        }
        self.create(dir, addr, 0o777, 0, NewInode::Link(target))
            .await
    }

    async fn create(
        &self,
        dir: u64,
        addr: u64,
        mode: u64,
        device: u64,
        what: NewInode,
    ) -> Result<u64> {
        let (_, found) = self.locate(dir, addr, false).await?;
        let mask = match what {
            NewInode::Link(_) => 0,
            _ => int(self.fs.lock().umask),
        };
        let masked = int(mode) & !mask;
        match found {
            Found::Storage(path) => {
                self.make_storage(&path, masked & (TYPE_MASK | 0o7777), device, what)
                    .await
            }
            Found::Here(_) => Err(errno::EEXIST.into()),
            Found::Missing(_, _, true) if !matches!(what, NewInode::Folder) => {
                Err(errno::ENOENT.into())
            }
            Found::Missing(folder, name, _) => {
                match int(mode) & TYPE_MASK {
                    0 | REGULAR | FIFO | SOCKET => {}
                    DEVICE_CHAR | DEVICE_BLOCK if self.creds().can(CAP_MKNOD) => {}
                    DEVICE_CHAR | DEVICE_BLOCK => return Err(errno::EPERM.into()),
                    _ => return Err(errno::EINVAL.into()),
                }
                self.make(folder, &name, masked & 0o7777, what)?;
                Ok(0)
            }
        }
    }

    /// Makes something of the thread's own in a folder that it may write to; returns its number.
    pub(super) fn make(&self, folder: u64, name: &[u8], mode: u32, what: NewInode) -> Result<u64> {
        self.check_rights(&self.tmpfs().stat(folder)?, WRITE | EXECUTE)?;
        let now = self.wall();
        let made = self.tmpfs().make(folder, name, mode, what, now)?;
        let creds = self.creds();
        let owner = Change::Owner(creds.user.fs, creds.group.fs);
        self.tmpfs().change(made, &owner, now)?;
        Ok(made)
    }

    pub(super) async fn sys_unlinkat(&self, dir: u64, addr: u64, flags: u64) -> Result<u64> {
        if flags & !AT_REMOVEDIR != 0 {
            return Err(errno::EINVAL.into());
        }
        let (path, found) = self.locate(dir, addr, false).await?;
        match found {
            Found::Storage(path) => self.remove_storage(&path, flags & AT_REMOVEDIR != 0).await,
            Found::Missing(..) => Err(errno::ENOENT.into()),
            Found::Here(inode) => {
                match last_part(&path) {
                    b"." if flags & AT_REMOVEDIR != 0 => return Err(errno::EINVAL.into()),
                    b".." if flags & AT_REMOVEDIR != 0 => return Err(errno::ENOTEMPTY.into()),
                    b"." | b".." => return Err(errno::EISDIR.into()),
                    _ => {}
                }
                if self.tmpfs().is_mount(inode) {
                    return Err(errno::EBUSY.into());
                }
                let (folder, _) = self.folder_of(&path)?;
                self.check_removal(folder, inode)?;
                self.tmpfs()
                    .remove(inode, &path, flags & AT_REMOVEDIR != 0, self.wall())?;
                Ok(0)
            }
        }
    }

    pub(super) async fn sys_renameat(
        &self,
        [from_dir, from, to_dir, to, flags, _]: Args,
    ) -> Result<u64> {
        let (old, was) = self.locate(from_dir, from, false).await?;
        let (_, wanted) = self.locate(to_dir, to, false).await?;
        let (inode, new) = match (was, wanted) {
            (Found::Storage(old), Found::Storage(new)) => {
                return self.rename_storage(&old, &new, flags).await;
            }
            _ if flags & !(RENAME_NOREPLACE | RENAME_EXCHANGE) != 0
                || flags == RENAME_NOREPLACE | RENAME_EXCHANGE =>
            {
                return Err(errno::EINVAL.into());
            }
            (Found::Storage(_), _) | (_, Found::Storage(_)) => return Err(errno::EXDEV.into()),
            (Found::Missing(..), _) => return Err(errno::ENOENT.into()),
            (Found::Here(inode), new) => (inode, new),
        };
        let (folder, name) = match new {
            Found::Missing(_, _, true) if self.tmpfs().stat(inode)?.mode & TYPE_MASK != FOLDER => {
                return Err(errno::ENOTDIR.into());
            }
            Found::Missing(folder, name, _) => (folder, name),
            _ => {
                let path = self.path(to_dir, to, false).await?;
                self.folder_of(&path)?
            }
        };
        let dots = |path: &[u8]| matches!(last_part(path), b"." | b"..");
        if dots(&old) || dots(&name) {
            return Err(errno::EBUSY.into());
        }
        if flags & RENAME_EXCHANGE != 0 {
            let other = self.tmpfs().entry(folder, &name).ok_or(errno::ENOENT)?;
            let (old_folder, old_name) = self.folder_of(&old)?;
            self.check_move((inode, &old), (folder, &name))?;
            self.check_removal(folder, other)?;
            return self
                .tmpfs()
                .exchange((old_folder, &old_name), (folder, &name), self.wall())
                .map(|()| 0);
        }
        let no_replace = flags & RENAME_NOREPLACE != 0;
        self.check_move((inode, &old), (folder, &name))?;
        self.tmpfs()
            .rename((inode, &old), (folder, &name), no_replace, self.wall())?;
        Ok(0)
    }

    /// Returns an error if the thread may not take the name of `inode` out of a folder.
    fn check_removal(&self, folder: u64, inode: u64) -> Result<()> {
        const STICKY: u32 = 0o1000;
        let (folder, stat) = (self.tmpfs().stat(folder)?, self.tmpfs().stat(inode)?);
        self.check_rights(&folder, WRITE | EXECUTE)?;
        let creds = self.creds();
        let owns = [folder.uid, stat.uid].contains(&creds.user.fs);
        if folder.mode & STICKY != 0 && !owns && !creds.can(CAP_FOWNER) {
            return Err(errno::EPERM.into());
        }
        Ok(())
    }

    /// Returns an error if the thread may not move `inode` from its old name to one in a folder.
    fn check_move(&self, (inode, old): (u64, &[u8]), (folder, name): (u64, &[u8])) -> Result<()> {
        if self.tmpfs().is_mount(inode) {
            return Err(errno::EBUSY.into());
        }
        let (old_folder, _) = self.folder_of(old)?;
        self.check_removal(old_folder, inode)?;
        self.check_rights(&self.tmpfs().stat(folder)?, WRITE | EXECUTE)?;
        if let Some(replaced) = self.tmpfs().entry(folder, name) {
            self.check_removal(folder, replaced)?;
        }
        let stat = self.tmpfs().stat(inode)?;
        if stat.mode & TYPE_MASK == FOLDER && old_folder != folder {
            // Its entry `..` changes.
            self.check_rights(&stat, WRITE)?;
        }
        Ok(())
    }

    /// Returns the folder here that a path's last part is in, and that part.
    fn folder_of(&self, path: &[u8]) -> Result<(u64, Vec<u8>)> {
        let name = last_part(path).to_vec();
        let mut up = path.to_vec();
        while up.last() == Some(&b'/') {
            up.pop();
        }
        up.truncate(up.len() - name.len());
        match self.tmpfs().find(&up, true, &self.creds())? {
            Found::Here(folder) if !name.is_empty() => Ok((folder, name)),
            _ => Err(errno::ENOENT.into()),
        }
    }

    pub(super) async fn sys_linkat(
        &self,
        [from_dir, from, to_dir, to, flags, _]: Args,
    ) -> Result<u64> {
        const FOLLOW: u64 = 0x400;
        const EMPTY_PATH: u64 = 0x1000;
        if flags & (FOLLOW | EMPTY_PATH) != 0 {
            let path = self.memory.read_string(from, PATH_MAX).await?;
            if let Some(file) = self.unnamed_file(from_dir, &path) {
                return self.link_file(&file, to_dir, to).await;
            }
        }
        if let Some(linked) = self
            .link_open_file([from_dir, from, to_dir, to, flags, 0])
            .await?
        {
            return Ok(linked);
        }
        let follow = flags & FOLLOW != 0;
        let (_, was) = self.locate(from_dir, from, follow).await?;
        let (_, wanted) = self.locate(to_dir, to, false).await?;
        match (was, wanted) {
            (Found::Storage(old), Found::Storage(new)) => {
                self.link_storage(&old, follow, &new).await
            }
            (Found::Storage(_), _) | (_, Found::Storage(_)) => Err(errno::EXDEV.into()),
            (_, Found::Here(_)) => Err(errno::EEXIST.into()),
            (Found::Missing(..), _) => Err(errno::ENOENT.into()),
            (Found::Here(_), Found::Missing(_, _, true)) => Err(errno::ENOENT.into()),
            (Found::Here(inode), Found::Missing(folder, name, false)) => {
                self.check_rights(&self.tmpfs().stat(folder)?, WRITE | EXECUTE)?;
                self.tmpfs().link(inode, folder, &name, self.wall())?;
                Ok(0)
            }
        }
    }

    pub(super) async fn sys_truncate(&self, [addr, size, ..]: Args) -> Result<u64> {
        if size.cast_signed() < 0 {
            return Err(errno::EINVAL.into());
        }
        let (path, found) = self.locate(AT_FDCWD, addr, true).await?;
        match found {
            Found::Storage(path) => self.truncate_storage(&path, size).await,
            Found::Missing(..) => Err(errno::ENOENT.into()),
            Found::Here(inode) => {
                let stat = self.tmpfs().stat(inode)?;
                if stat.mode & TYPE_MASK == FOLDER {
                    return Err(errno::EISDIR.into());
                }
                let file = self.tmpfs().file(inode).ok_or(errno::EINVAL)?;
                self.check_rights(&stat, WRITE)?;
                self.check_text(inode)?;
                self.check_size(size)?;
                self.tmpfs().resize(&file, size).await?;
                self.tmpfs().happened(inode, last_part(&path), MODIFY);
                Ok(0)
            }
        }
    }

    /// Changes what is known of a path.
    pub(super) async fn change_at(
        &self,
        dir: u64,
        addr: u64,
        follow: bool,
        change: Change,
    ) -> Result<u64> {
        let (path, found) = self.locate(dir, addr, follow).await?;
        match found {
            Found::Storage(path) => self.change_storage(&path, follow, &change).await,
            Found::Missing(..) => Err(errno::ENOENT.into()),
            Found::Here(inode) => {
                self.check_change(&self.tmpfs().stat(inode)?, &change)?;
                self.tmpfs().change(inode, &change, self.wall())?;
                self.tmpfs().happened(inode, last_part(&path), ATTRIB);
                Ok(0)
            }
        }
    }

    /// Changes the mode of a path, or with `AT_EMPTY_PATH` of an open file.
    pub(super) async fn sys_fchmodat2(&self, [dir, path, mode, flags, ..]: Args) -> Result<u64> {
        const LINK: u32 = 0o12;
        if flags & !(EMPTY_PATH | NOFOLLOW) != 0 {
            return Err(errno::EINVAL.into());
        }
        let change = Change::Mode(int(mode));
        let empty =
            flags & EMPTY_PATH != 0 && self.memory.read_string(path, PATH_MAX).await?.is_empty();
        if empty {
            return self.change_file(dir, &change).await;
        }
        let follow = flags & NOFOLLOW == 0;
        // A symbolic link has no mode of its own.
        if !follow && self.status_at(dir, path, NOFOLLOW).await?.mode >> 12 == LINK {
            return Err(errno::EOPNOTSUPP.into());
        }
        self.change_at(dir, path, follow, change).await
    }

    /// Changes what is known of an open file.
    pub(super) async fn change_file(&self, fd: u64, change: &Change) -> Result<u64> {
        let file = self.file(fd)?;
        let inode = match &file.kind {
            Kind::Tmp(tmp) => tmp.inode(),
            Kind::TmpFolder(inode) => *inode,
            Kind::File(of) | Kind::Folder(of) => {
                return self.change_storage_file(*of, change).await;
            }
            Kind::Object(object) if object.named().is_some() => {
                object.named().map_or(0, |stat| stat.inode)
            }
            _ => return Ok(0),
        };
        if let Ok(stat) = self.tmpfs().stat(inode) {
            self.check_change(&stat, change)?;
        }
        let changed = self.tmpfs().change(inode, change, self.wall());
        self.tell(&file, ATTRIB);
        match changed {
            // It has no name.
            Err(Error::Errno(errno::ENOENT)) => {
                if let (Kind::Tmp(tmp), Change::Mode(mode)) = (&file.kind, change) {
                    tmp.set_mode(*mode);
                }
                Ok(0)
            }
            changed => changed.map(|()| 0),
        }
    }

    /// Sets times by whole seconds: a `struct utimbuf`, or now.
    pub(super) async fn sys_utime(&self, [addr, times, ..]: Args) -> Result<u64> {
        let mut change = Change::Present(self.wall());
        if times != 0 {
            let mut wanted = [time(Duration::ZERO); 2];
            for (index, wanted) in (0..).zip(&mut wanted) {
                let at = times.saturating_add(index * 8);
                wanted.seconds = self.memory.read_u64(at).await?.cast_signed();
            }
            change = Change::Times(Some(wanted[0]), Some(wanted[1]));
        }
        self.change_at(AT_FDCWD, addr, true, change).await
    }

    /// Sets times by microseconds: two `struct timeval`, or now.
    pub(super) async fn sys_futimesat(&self, [dir, addr, times, ..]: Args) -> Result<u64> {
        let mut change = Change::Present(self.wall());
        if times != 0 {
            let mut wanted = [time(Duration::ZERO); 2];
            for (index, wanted) in (0..).zip(&mut wanted) {
                *wanted = self
                    .file_time(times.saturating_add(index * 16), 1_000)
                    .await?;
            }
            change = Change::Times(Some(wanted[0]), Some(wanted[1]));
        }
        if addr == 0 {
            return self.change_file(dir, &change).await;
        }
        self.change_at(dir, addr, true, change).await
    }

    /// Reads a time that a file is to have, of seconds, negative before 1970, and parts of a second
    /// of so many nanoseconds each.
    async fn file_time(&self, addr: u64, part_nanos: u32) -> Result<FileTime> {
        let seconds = self.memory.read_u64(addr).await?.cast_signed();
        let parts = self.memory.read_u64(addr.saturating_add(8)).await?;
        let nanos = u32::try_from(parts)
            .ok()
            .and_then(|parts| parts.checked_mul(part_nanos))
            .filter(|&nanos| nanos < 1_000_000_000)
            .ok_or(errno::EINVAL)?;
        Ok(FileTime { seconds, nanos })
    }

    pub(super) async fn sys_utimensat(&self, [dir, addr, times, flags, ..]: Args) -> Result<u64> {
        let now = self.wall();
        let mut wanted = [Some(time(now)); 2];
        let mut present = true;
        if times != 0 {
            for (index, wanted) in (0..).zip(&mut wanted) {
                let at = times.saturating_add(index * 16);
                let nanos = self.memory.read_u64(at.saturating_add(8)).await?;
                present &= nanos == UTIME_NOW;
                *wanted = match nanos {
                    UTIME_NOW => Some(time(now)),
                    UTIME_OMIT => None,
                    _ => Some(self.file_time(at, 1).await?),
                };
            }
        }
        let change = if present {
            Change::Present(now)
        } else {
            Change::Times(wanted[0], wanted[1])
        };
        if addr == 0 {
            return self.change_file(dir, &change).await;
        }
        if wanted == [None; 2] {
            return Ok(0);
        }
        let follow = flags & NOFOLLOW == 0;
        self.change_at(dir, addr, follow, change).await
    }
}
