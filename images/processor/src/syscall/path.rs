//! Paths: open, stat, access, readlink, the working folder.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use messages::storage::{FileTime, OpenFlags, PATH_MAX, Stat};

use super::layout;
use super::resolve::tidy;
use super::{Args, int};
use crate::device::Device;
use crate::error::{Error, Result, errno};
use crate::files::{Kind, OpenFile};
use crate::platform::{Files, Platform};
use crate::process::Node;
use crate::thread::Thread;
use crate::tmpfs::{Found, Make};

/// Stands for the working folder where a folder's number is asked for.
pub(super) const AT_FDCWD: u64 = (-100i64).cast_unsigned();
/// `AT_SYMLINK_NOFOLLOW`.
pub(super) const NOFOLLOW: u64 = 0x100;
/// `AT_EMPTY_PATH`.
const EMPTY_PATH: u64 = 0x1000;
const O_ACCMODE: u64 = 3;
const O_CREAT: u64 = 0o100;
const O_EXCL: u64 = 0o200;
const O_DIRECTORY: u64 = 0o200_000;
const O_NOFOLLOW: u64 = 0o400_000;
const O_TRUNC: u64 = 0o1_000;
const O_CLOEXEC: u64 = 0o2_000_000;
/// What creat(2) means: `O_CREAT | O_WRONLY | O_TRUNC`.
pub(super) const CREATE_TO_WRITE: u64 = 0o1_101;
const TYPE_MASK: u32 = 0o170_000;
const FOLDER: u32 = 0o040_000;
/// Bits of access(2).
const W_OK: u64 = 2;
const X_OK: u64 = 1;

/// What a call would do to what a path names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// Make it: it must not exist.
    Create,
    /// Remove it, or give it another name. Linux sees that it may not before it looks for it.
    Remove,
    /// Change it: it must exist.
    Modify,
}

/// The status of an end of the console: a pipe.
fn stream_status() -> Stat {
    let never = FileTime { seconds: 0, nanos: 0 };
    Stat {
        inode: 1,
        mode: 0o010_600,
        links: 1,
        uid: 0,
        gid: 0,
        size: 0,
        block_size: 4096,
        blocks: 0,
        accessed: never,
        modified: never,
        changed: never,
        device: 0,
    }
}

/// The status of a device.
fn device_status(device: Device) -> Stat {
    Stat {
        mode: 0o020_666,
        device: device.number(),
        ..stream_status()
    }
}

impl<N: Node> Thread<N> {
    /// Returns the working folder.
    pub(super) fn cwd(&self) -> Vec<u8> {
        self.fs.lock().cwd.clone()
    }

    /// The absolute path of what the program calls `addr`, seen from folder `dir`.
    pub(super) async fn path(&self, dir: u64, addr: u64) -> Result<Vec<u8>> {
        let path = self.memory.read_string(addr, PATH_MAX).await?;
        if path.is_empty() {
            return Err(errno::ENOENT.into());
        }
        if path.starts_with(b"/") {
            return Ok(path);
        }
        // Only the lower half of the register counts: the number is an int.
        let mut whole = if dir & 0xffff_ffff == AT_FDCWD & 0xffff_ffff {
            self.cwd()
        } else {
            let file = self.file(dir)?;
            if !matches!(file.kind, Kind::Folder(_) | Kind::TmpFolder(_)) {
                return Err(errno::ENOTDIR.into());
            }
            file.path.clone()
        };
        if !whole.ends_with(b"/") {
            whole.push(b'/');
        }
        whole.extend_from_slice(&path);
        if whole.len() > PATH_MAX {
            return Err(errno::ENAMETOOLONG.into());
        }
        Ok(whole)
    }

    pub(super) async fn sys_open(&self, dir: u64, addr: u64, flags: u64, mode: u64) -> Result<u64> {
        let path = self.path(dir, addr).await?;
        let kind = if let Some(device) = Device::named(&path) {
            if device.is_terminal() {
                self.open_terminal(device, flags)?
            } else {
                Kind::Device(device)
            }
        } else {
            match self.node.kernel().tmpfs().find(&path, flags & O_NOFOLLOW == 0)? {
                Found::Storage(path) => self.open_storage(&path, flags).await?,
                found => self.open_tmp(found, flags, mode).await?,
            }
        };
        // What F_GETFL gives: not the flags that only mattered for opening.
        let status = u32::try_from(flags & 0o3 | flags & 0o6_000 | 0o100_000).unwrap_or(0);
        let closing = Some(self.node.kernel().closing.clone());
        let path = tidy(&path).unwrap_or(path);
        let file = Arc::new(OpenFile::new(kind, path, status, closing));
        self.table().add(file, 0, flags & O_CLOEXEC != 0)
    }

    async fn open_storage(&self, path: &[u8], flags: u64) -> Result<Kind> {
        let mut wants = OpenFlags::empty();
        wants.set(OpenFlags::WRITE, flags & O_ACCMODE != 0);
        wants.set(OpenFlags::DIRECTORY, flags & O_DIRECTORY != 0);
        wants.set(OpenFlags::NOFOLLOW, flags & O_NOFOLLOW != 0);
        match self.node.files().open(path, wants).await {
            Ok(opened) if flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL => {
                self.node.kernel().closing.add(opened.file);
                Err(errno::EEXIST.into())
            }
            Ok(opened) if opened.stat.mode & TYPE_MASK == FOLDER => Ok(Kind::Folder(opened.file)),
            Ok(opened) => Ok(Kind::File(opened.file)),
            // It would have to be created.
            Err(Error::Errno(errno::ENOENT)) if flags & O_CREAT != 0 => Err(errno::EROFS.into()),
            Err(error) => Err(error),
        }
    }

    /// Opens, and makes if that is asked for, a file or folder of this node's own.
    async fn open_tmp(&self, found: Found, flags: u64, mode: u64) -> Result<Kind> {
        let tmpfs = self.node.kernel().tmpfs();
        let inode = match found {
            Found::Storage(_) => return Err(errno::ENOENT.into()),
            Found::Here(_) if flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL => {
                return Err(errno::EEXIST.into());
            }
            Found::Here(inode) => inode,
            Found::Missing(..) if flags & O_CREAT == 0 => return Err(errno::ENOENT.into()),
            Found::Missing(folder, name) => {
                let now = self.node.platform().wall_clock();
                let mode = int(mode) & 0o7777 & !int(self.fs.lock().umask);
                tmpfs.make(folder, &name, mode, Make::File, now)?
            }
        };
        let kind = tmpfs.stat(inode)?.mode & TYPE_MASK;
        if kind == FOLDER {
            if flags & (O_ACCMODE | O_CREAT) != 0 {
                return Err(errno::EISDIR.into());
            }
            return Ok(Kind::TmpFolder(inode));
        }
        if flags & O_DIRECTORY != 0 {
            return Err(errno::ENOTDIR.into());
        }
        // A link that is not to be followed.
        let file = tmpfs.file(inode).ok_or(errno::ELOOP)?;
        if flags & O_TRUNC != 0 && flags & O_ACCMODE != 0 {
            tmpfs.resize(&file, 0).await?;
        }
        Ok(Kind::Tmp(file))
    }

    pub(super) async fn status_of(&self, file: &OpenFile) -> Result<Stat> {
        match &file.kind {
            Kind::File(id) | Kind::Folder(id) => self.node.files().stat_file(*id).await,
            Kind::Device(device) => Ok(device_status(*device)),
            Kind::Tmp(tmp) => Ok(self.node.kernel().tmpfs().stat_file(tmp)),
            Kind::TmpFolder(inode) => self.node.kernel().tmpfs().stat(*inode),
            Kind::Object(object) => Ok(Stat {
                mode: object.mode(),
                device: object.device(),
                ..stream_status()
            }),
        }
    }

    async fn status_at(&self, dir: u64, addr: u64, flags: u64) -> Result<Stat> {
        if flags & EMPTY_PATH != 0 && (addr == 0 || self.memory.read_string(addr, PATH_MAX).await?.is_empty())
        {
            return if dir & 0xffff_ffff == AT_FDCWD & 0xffff_ffff {
                self.status_of_path(&self.cwd(), true).await
            } else {
                self.status_of(&*self.file(dir)?).await
            };
        }
        let path = self.path(dir, addr).await?;
        self.status_of_path(&path, flags & NOFOLLOW == 0).await
    }

    async fn status_of_path(&self, path: &[u8], follow: bool) -> Result<Stat> {
        if let Some(device) = Device::named(path) {
            if let Device::Pty(number) = device
                && self.node.kernel().terminals.pty(number).is_none()
            {
                return Err(errno::ENOENT.into());
            }
            return Ok(device_status(device));
        }
        let tmpfs = self.node.kernel().tmpfs();
        match tmpfs.find(path, follow)? {
            Found::Storage(path) => self.node.files().stat(&path, follow).await,
            Found::Here(inode) => tmpfs.stat(inode),
            Found::Missing(..) => Err(errno::ENOENT.into()),
        }
    }

    pub(super) async fn sys_stat(&self, dir: u64, addr: u64, into: u64, flags: u64) -> Result<u64> {
        let status = self.status_at(dir, addr, flags).await?;
        self.memory.write(into, &layout::stat(&status)).await?;
        Ok(0)
    }

    pub(super) async fn sys_fstat(&self, [fd, into, ..]: Args) -> Result<u64> {
        let status = self.status_of(&*self.file(fd)?).await?;
        self.memory.write(into, &layout::stat(&status)).await?;
        Ok(0)
    }

    pub(super) async fn sys_statx(&self, [dir, addr, flags, _mask, into, _]: Args) -> Result<u64> {
        let status = self.status_at(dir, addr, flags).await?;
        self.memory.write(into, &layout::statx(&status)).await?;
        Ok(0)
    }

    pub(super) async fn sys_access(&self, dir: u64, addr: u64, mode: u64) -> Result<u64> {
        if mode & !7 != 0 {
            return Err(errno::EINVAL.into());
        }
        let status = self.status_at(dir, addr, 0).await?;
        let writable = status.device != 0 || status.inode >= crate::tmpfs::FIRST_INODE;
        if mode & W_OK != 0 && !writable {
            return Err(errno::EROFS.into());
        }
        // The program is root: it may execute what anyone may.
        let folder = status.mode & TYPE_MASK == FOLDER;
        if mode & X_OK != 0 && !folder && status.mode & 0o111 == 0 {
            return Err(errno::EACCES.into());
        }
        Ok(0)
    }

    pub(super) async fn sys_readlink(&self, dir: u64, addr: u64, into: u64, len: u64) -> Result<u64> {
        let Some(len) = usize::try_from(len)
            .ok()
            .filter(|&len| len > 0 && len <= i32::MAX as usize)
        else {
            return Err(errno::EINVAL.into());
        };
        let path = self.path(dir, addr).await?;
        let mut target = vec![0; PATH_MAX];
        let got = if path == b"/proc/self/exe" {
            target.clone_from(&self.exec_path.lock());
            target.len()
        } else {
            match self.node.kernel().tmpfs().find(&path, false)? {
                Found::Storage(path) => {
                    let files = self.node.files();
                    files.readlink(&path, &mut target).await?.min(PATH_MAX)
                }
                Found::Here(inode) => {
                    target = self.node.kernel().tmpfs().target(inode)?;
                    target.len()
                }
                Found::Missing(..) => return Err(errno::ENOENT.into()),
            }
        };
        let got = got.min(len);
        self.memory.write(into, &target[..got]).await?;
        Ok(got as u64)
    }

    pub(super) async fn sys_getcwd(&self, [into, len, ..]: Args) -> Result<u64> {
        let mut cwd = self.cwd();
        cwd.push(0);
        if (cwd.len() as u64) > len {
            return Err(errno::ERANGE.into());
        }
        self.memory.write(into, &cwd).await?;
        Ok(cwd.len() as u64)
    }

    pub(super) async fn sys_chdir(&self, [addr, ..]: Args) -> Result<u64> {
        let path = self.path(AT_FDCWD, addr).await?;
        if self.status_of_path(&path, true).await?.mode & TYPE_MASK != FOLDER {
            return Err(errno::ENOTDIR.into());
        }
        let path = self.real_path(&path).await?;
        self.fs.lock().cwd = path;
        Ok(0)
    }

    pub(super) async fn sys_fchdir(&self, [fd, ..]: Args) -> Result<u64> {
        let file = self.file(fd)?;
        if !matches!(file.kind, Kind::Folder(_) | Kind::TmpFolder(_)) {
            return Err(errno::ENOTDIR.into());
        }
        let path = self.real_path(&file.path).await?;
        self.fs.lock().cwd = path;
        Ok(0)
    }

    /// Returns the error that Linux has for a change of what a path names, on a file system mounted
    /// read-only.
    pub(super) async fn refuse_change(&self, path: &[u8], change: Change) -> Result<u64> {
        let found = match Device::named(path) {
            Some(_) => Ok(()),
            None => self.node.files().stat(path, false).await.map(drop),
        };
        match (change, found) {
            (Change::Create, Ok(())) => Err(errno::EEXIST.into()),
            (Change::Create | Change::Remove, Err(Error::Errno(errno::ENOENT))) => Err(errno::EROFS.into()),
            (_, found) => found.and(Err(errno::EROFS.into())),
        }
    }
}
