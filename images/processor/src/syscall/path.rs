//! Paths: open, stat, access, readlink.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use messages::storage::{FileTime, OpenFlags, PATH_MAX, Stat};

use super::layout;
use super::resolve::tidy;
use super::walk::{Begin, ROOT, is_magic};
use super::{Args, int};
use crate::creds::{Creds, READ, WRITE};
use crate::device::Device;
use crate::error::{Error, Result, errno};
use crate::files::{Kind, Listing, O_PATH, OpenFile};
use crate::gather::Gathered;
use crate::inotify::{MODIFY, OPEN};
use crate::leased;
use crate::object::Object;
use crate::platform::Files;
use crate::process::Node;
use crate::pseudo::{Entry, OpenText, Sink, Walked, inode_of};
use crate::storage::{self, StorageFile};
use crate::thread::Thread;
use crate::tmpfs::{DEVICE_BLOCK, DEVICE_CHAR, Found, NewInode, SOCKET, last_part};

/// Stands for the working folder where a folder's number is asked for.
pub(super) const AT_FDCWD: u64 = (-100i64).cast_unsigned();
/// `AT_SYMLINK_NOFOLLOW`.
pub(super) const NOFOLLOW: u64 = 0x100;
/// `AT_EMPTY_PATH`.
pub(super) const EMPTY_PATH: u64 = 0x1000;
/// The longest path from the root on, by way of a working directory or an open one.
const MAX_WHOLE: usize = 16 * 4096;
const O_ACCMODE: u64 = 3;
const O_CREAT: u64 = 0o100;
const O_EXCL: u64 = 0o200;
const O_DIRECTORY: u64 = 0o200_000;
const O_NOFOLLOW: u64 = 0o400_000;
const O_TRUNC: u64 = 0o1_000;
const O_CLOEXEC: u64 = 0o2_000_000;
/// `O_TMPFILE`, which has `O_DIRECTORY` in it.
const O_TMPFILE: u64 = 0o20_200_000;
/// Flags that an open file keeps: access mode, `O_APPEND`, `O_NONBLOCK`, `O_DSYNC`, `O_DIRECT`,
/// `O_LARGEFILE`, `O_SYNC`.
const KEPT: u64 = 0o3 | 0o6_000 | 0o10_000 | 0o40_000 | 0o4_000_000;
/// Flags of creat(2): `O_CREAT | O_WRONLY | O_TRUNC`.
pub(super) const CREATE_TO_WRITE: u64 = 0o1_101;
const TYPE_MASK: u32 = 0o170_000;
const FOLDER: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const FIFO: u32 = 0o010_000;
/// `W_OK` of access(2).
const W_OK: u64 = 2;
/// `AT_EACCESS`: the effective numbers count, not the real ones.
const AT_EACCESS: u64 = 0x200;

/// Changes that a call makes to the object that a path names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// Make it: it must not exist.
    Create,
    /// Remove it, or give it another name.
    Remove,
    /// Change it: it must exist.
    Modify,
}

/// Returns the rights that opening with these flags asks for, as bits of access(2).
fn wanted(flags: u64) -> u32 {
    if flags & u64::from(O_PATH) != 0 {
        return 0;
    }
    let mode = match flags & O_ACCMODE {
        0 => READ,
        1 => WRITE,
        _ => READ | WRITE,
    };
    if flags & O_TRUNC != 0 {
        mode | WRITE
    } else {
        mode
    }
}

/// Returns whether opening with these flags follows a link in the last place: what is to be made
/// anew does not go where a link leads.
pub(super) const fn follows(flags: u64) -> bool {
    flags & O_NOFOLLOW == 0 && flags & (O_CREAT | O_EXCL) != O_CREAT | O_EXCL
}

/// The status of an end of the console: a pipe.
fn stream_status() -> Stat {
    let never = FileTime {
        seconds: 0,
        nanos: 0,
    };
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

/// Returns the path of a terminal with this device number.
pub(super) fn terminal_path(device: u64) -> Vec<u8> {
    const PTS_MAJOR: u64 = 136;
    match device >> 8 {
        PTS_MAJOR.. => alloc::format!(
            "/dev/pts/{}",
            ((device >> 8) - PTS_MAJOR) * 256 + (device & 0xff)
        )
        .into_bytes(),
        _ => b"/dev/console".to_vec(),
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

/// Returns the number that an object shows as its inode.
pub(super) fn object_number(object: &Arc<dyn Object>) -> u64 {
    Arc::as_ptr(object).cast::<u8>().addr() as u64 & 0xffff_ffff
}

impl<N: Node> Thread<N> {
    /// Returns the working folder.
    pub(super) fn cwd(&self) -> Vec<u8> {
        self.fs.lock().cwd.clone()
    }

    /// Returns the folder that absolute paths begin at.
    pub(super) fn root(&self) -> Vec<u8> {
        self.fs.lock().root.clone()
    }

    /// Returns the folder that relative paths of a call begin at.
    ///
    /// # Errors
    ///
    /// EBADF; ENOTDIR for an open file that is no folder.
    pub(super) fn folder(&self, dir: u64) -> Result<Vec<u8>> {
        // Only the lower half of the register counts: the number is an int.
        if int(dir) == int(AT_FDCWD) {
            return Ok(self.cwd());
        }
        let file = self.place(dir)?;
        if !file.is_folder() {
            return Err(errno::ENOTDIR.into());
        }
        Ok(file.path.clone())
    }

    /// Returns the absolute path of what the program calls `addr`, seen from folder `dir`; `follow`
    /// says whether the call follows a link in the last place.
    pub(super) async fn path(&self, dir: u64, addr: u64, follow: bool) -> Result<Vec<u8>> {
        let path = self.memory.read_string(addr, PATH_MAX).await?;
        self.whole_path(dir, path, follow).await
    }

    /// Returns the absolute path of a path, from the root of all.
    pub(super) async fn whole_path(
        &self,
        dir: u64,
        path: Vec<u8>,
        follow: bool,
    ) -> Result<Vec<u8>> {
        if path.is_empty() {
            return Err(errno::ENOENT.into());
        }
        let root = self.root();
        if root != ROOT {
            let begin = Begin {
                folder: &if path.starts_with(b"/") {
                    root.clone()
                } else {
                    self.folder(dir)?
                },
                root: &root,
                follow,
                resolve: 0,
            };
            return self.walk(begin, &path).await;
        }
        if path.starts_with(b"/") {
            return Ok(path);
        }
        let mut whole = self.folder(dir)?;
        if !whole.ends_with(b"/") {
            whole.push(b'/');
        }
        whole.extend_from_slice(&path);
        // S takes no longer one than the program may name; P's own file systems do.
        if whole.len() > MAX_WHOLE {
            return Err(errno::ENAMETOOLONG.into());
        }
        Ok(whole)
    }

    pub(super) async fn sys_open(&self, dir: u64, addr: u64, flags: u64, mode: u64) -> Result<u64> {
        let path = self.path(dir, addr, follows(flags)).await?;
        self.open_path(path, flags, mode).await
    }

    /// Opens an absolute path.
    pub(super) async fn open_path(&self, path: Vec<u8>, flags: u64, mode: u64) -> Result<u64> {
        if flags & u64::from(O_PATH) != 0 {
            return self.open_place(path, flags).await;
        }
        let (kind, path) = match self.pseudo(&path, flags & O_NOFOLLOW == 0)? {
            Walked::Entry(entry, path) => (self.open_pseudo(entry, &path, flags).await?, path),
            Walked::Elsewhere(path) => (self.open_elsewhere(&path, flags, mode).await?, path),
        };
        // What F_GETFL gives: not the flags that only mattered for opening.
        let status = u32::try_from(flags & KEPT | 0o100_000).unwrap_or(0);
        let closing = Some(self.node.kernel().closing.clone());
        let path = tidy(&path).unwrap_or(path);
        let inode = match &kind {
            Kind::File(of) => Some(of.inode),
            Kind::Tmp(tmp) => Some(tmp.inode()),
            _ => None,
        };
        let file = Arc::new(OpenFile::new(kind, path, status, closing));
        let gathered = self.node.files().gathered();
        file.begin_failures(gathered.map_or(0, Gathered::failures));
        if let Some(inode) = inode.filter(|_| flags & O_ACCMODE != 0) {
            file.keep_use(self.node.kernel().texts.write(inode)?);
        }
        self.table().add(file, 0, flags & O_CLOEXEC != 0)
    }

    /// Opens a path for its place only (`O_PATH`): other flags do not matter, nor do rights.
    async fn open_place(&self, path: Vec<u8>, flags: u64) -> Result<u64> {
        const LINK: u32 = 0o120_000;
        let flags = flags & (O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        let stat = self.status_of_path(&path, flags & O_NOFOLLOW == 0).await?;
        let kind = if stat.mode & TYPE_MASK == LINK {
            if flags & O_DIRECTORY != 0 {
                return Err(errno::ENOTDIR.into());
            }
            Kind::Link(Arc::new(stat))
        } else {
            match self.pseudo(&path, true)? {
                Walked::Entry(entry, path) => self.open_pseudo(entry, &path, flags).await?,
                Walked::Elsewhere(path) => {
                    let flags = flags | u64::from(O_PATH);
                    self.open_elsewhere(&path, flags, 0).await?
                }
            }
        };
        let closing = Some(self.node.kernel().closing.clone());
        let path = tidy(&path).unwrap_or(path);
        let file = Arc::new(OpenFile::new(kind, path, O_PATH, closing));
        self.table().add(file, 0, flags & O_CLOEXEC != 0)
    }

    /// Opens what S or this node's own file systems have under a path.
    async fn open_elsewhere(&self, path: &[u8], flags: u64, mode: u64) -> Result<Kind> {
        match self
            .node
            .kernel()
            .tmpfs()
            .find(path, follows(flags), &self.creds())?
        {
            Found::Storage(path) => self.open_storage(&path, flags, mode).await,
            found if flags & O_TMPFILE == O_TMPFILE => self.open_unnamed(found, flags, mode),
            found => self.open_tmp(path, found, flags, mode).await,
        }
    }

    /// Opens a file of `/proc`, `/sys` or `/dev`.
    async fn open_pseudo(&self, entry: Entry<N>, path: &[u8], flags: u64) -> Result<Kind> {
        if flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL {
            return Err(errno::EEXIST.into());
        }
        let folder = matches!(entry, Entry::Folder(_));
        if flags & O_DIRECTORY != 0 && !folder {
            return Err(errno::ENOTDIR.into());
        }
        let stat = self.pseudo_status(&entry, path);
        match entry {
            Entry::Folder(_) if flags & (O_ACCMODE | O_CREAT) != 0 => Err(errno::EISDIR.into()),
            Entry::Folder(names) => {
                let process = self.pidfd_of_folder(path);
                Ok(Kind::Listing(Arc::new(Listing { names, process })))
            }
            Entry::Link(_) => Err(errno::ELOOP.into()),
            Entry::Device(device) if device.is_terminal() => self.open_terminal(device, flags),
            Entry::Device(device) => Ok(Kind::Device(device)),
            Entry::Open(file) if matches!(file.kind, Kind::Link(_)) => Err(errno::ELOOP.into()),
            Entry::Open(file) => Ok(file.kind.clone()),
            Entry::Text(text) => {
                let sink = text.sink();
                if flags & O_ACCMODE != 0 && sink == Sink::Nothing {
                    return Err(errno::EACCES.into());
                }
                let bytes = self.pseudo_text(&text).await?;
                Ok(Kind::Text(Arc::new(OpenText { bytes, sink, stat })))
            }
        }
    }

    async fn open_storage(&self, path: &[u8], flags: u64, mode: u64) -> Result<Kind> {
        let writes = flags & O_ACCMODE != 0;
        let reads = flags & O_ACCMODE != 1 && flags & u64::from(O_PATH) == 0;
        let unnamed = flags & O_TMPFILE == O_TMPFILE;
        if unnamed && !writes {
            return Err(errno::EINVAL.into());
        }
        let mut wants = OpenFlags::empty();
        for (flag, wanted) in [
            (OpenFlags::READ, reads),
            (OpenFlags::WRITE, writes),
            (OpenFlags::DIRECTORY, flags & O_DIRECTORY != 0 && !unnamed),
            (OpenFlags::NOFOLLOW, flags & O_NOFOLLOW != 0),
            (OpenFlags::CREATE, flags & O_CREAT != 0),
            (OpenFlags::EXCLUSIVE, flags & O_EXCL != 0),
            (OpenFlags::TRUNCATE, flags & O_TRUNC != 0),
            (OpenFlags::UNNAMED, unnamed),
        ] {
            wants.set(flag, wanted);
        }
        let mode = int(mode) & 0o7777 & !int(self.fs.lock().umask);
        let by = self.asker();
        // S would empty the file of a program that runs before its number is known.
        let runs = wants.contains(OpenFlags::TRUNCATE) && self.runs_at(path, flags).await;
        if runs {
            wants.remove(OpenFlags::TRUNCATE);
            wants.insert(OpenFlags::WRITE);
        }
        let opened = leased::open(self.node, by.caller(), path, wants, mode).await?;
        let of = StorageFile {
            id: opened.file,
            inode: opened.stat.inode,
        };
        if runs {
            self.node.kernel().closing.add(of.id);
            return Err(errno::ETXTBSY.into());
        }
        let kind = opened.stat.mode & TYPE_MASK;
        if kind == FOLDER {
            return Ok(Kind::Folder(of));
        }
        if kind != REGULAR && flags & u64::from(O_PATH) == 0 {
            self.node.kernel().closing.add(of.id);
            if kind != FIFO {
                return Err(errno::ENXIO.into());
            }
            let pipe = self.node.kernel().named_pipes.get(of.inode);
            return self.open_fifo(&pipe, &opened.stat, flags).await;
        }
        if wants.intersects(OpenFlags::CREATE | OpenFlags::UNNAMED) {
            self.node.kernel().changes.note();
        }
        if wants.contains(OpenFlags::TRUNCATE) {
            let size = {
                let _pass = self.node.kernel().changes.pass(of.inode).await;
                // Somebody may have written since it was emptied.
                let size = self.node.files().stat_file(of.id).await?.size;
                storage::resized(self.node, of.inode, size).await?;
                size
            };
            storage::unmap_behind(self.node, of.inode, size).await?;
        }
        Ok(Kind::File(of))
    }

    /// Returns whether a program runs whose file of S has this path.
    async fn runs_at(&self, path: &[u8], flags: u64) -> bool {
        let (by, follow) = (self.asker(), flags & O_NOFOLLOW == 0);
        let stat = self.node.files().stat(by.caller(), path, follow).await;
        stat.is_ok_and(|stat| self.node.kernel().texts.runs(stat.inode))
    }

    /// Checks that no program of a file runs, for who will change it.
    ///
    /// # Errors
    ///
    /// ETXTBSY.
    pub(super) fn check_text(&self, inode: u64) -> Result<()> {
        if self.node.kernel().texts.runs(inode) {
            return Err(errno::ETXTBSY.into());
        }
        Ok(())
    }

    /// Opens, and makes if that is asked for, a file or folder of this node's own.
    async fn open_tmp(&self, path: &[u8], found: Found, flags: u64, mode: u64) -> Result<Kind> {
        let tmpfs = self.node.kernel().tmpfs();
        let tell = |inode, what| tmpfs.happened(inode, last_part(path), what);
        let inode = match found {
            Found::Storage(_) => return Err(errno::ENOENT.into()),
            Found::Here(_) if flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL => {
                return Err(errno::EEXIST.into());
            }
            Found::Here(inode) => inode,
            Found::Missing(..) if flags & O_CREAT == 0 => return Err(errno::ENOENT.into()),
            // Only folders end with a slash, and this makes none.
            Found::Missing(_, _, true) => return Err(errno::EISDIR.into()),
            Found::Missing(folder, name, false) => {
                let mode = int(mode) & 0o7777 & !int(self.fs.lock().umask);
                let made = self.make(folder, &name, mode, NewInode::File)?;
                let file = tmpfs.file(made).ok_or(errno::ENOENT)?;
                tell(made, OPEN);
                return Ok(Kind::Tmp(file));
            }
        };
        let stat = tmpfs.stat(inode)?;
        self.check_rights(&stat, wanted(flags))?;
        if wanted(flags) & WRITE != 0 {
            self.check_text(inode)?;
        }
        let kind = stat.mode & TYPE_MASK;
        if kind == FOLDER {
            if flags & (O_ACCMODE | O_CREAT | O_TRUNC) != 0 {
                return Err(errno::EISDIR.into());
            }
            tell(inode, OPEN);
            return Ok(Kind::TmpFolder(inode));
        }
        if flags & O_DIRECTORY != 0 {
            return Err(errno::ENOTDIR.into());
        }
        if let Some(pipe) = tmpfs.fifo(inode) {
            return self.open_fifo(&pipe, &stat, flags).await;
        }
        if kind == DEVICE_CHAR
            && let Some(device) = Device::of_memory(stat.device)
        {
            return Ok(Kind::Device(device));
        }
        if matches!(kind, SOCKET | DEVICE_CHAR | DEVICE_BLOCK) {
            return Err(errno::ENXIO.into());
        }
        // A link that is not to be followed.
        let file = tmpfs.file(inode).ok_or(errno::ELOOP)?;
        tell(inode, OPEN);
        if flags & O_TRUNC != 0 {
            tmpfs.resize(&file, 0).await?;
            tell(inode, MODIFY);
        }
        Ok(Kind::Tmp(file))
    }

    pub(super) async fn status_of(&self, file: &OpenFile) -> Result<Stat> {
        match &file.kind {
            Kind::File(of) => leased::status(self.node, *of).await,
            Kind::Folder(of) => self.node.files().stat_file(of.id).await,
            Kind::Device(device) => Ok(device_status(*device)),
            Kind::Tmp(tmp) => Ok(self.node.kernel().tmpfs().stat_file(tmp)),
            Kind::TmpFolder(inode) => self.node.kernel().tmpfs().stat(*inode),
            Kind::Link(stat) => Ok(**stat),
            Kind::Text(text) => Ok(text.stat),
            Kind::Listing(listing) => {
                Ok(self.pseudo_status(&Entry::Folder(listing.names.clone()), &file.path))
            }
            Kind::Object(object) if let Some(stat) = object.named() => {
                let now = self.node.kernel().tmpfs().stat(stat.inode);
                // One that has lost its name, or is S's, is as it was.
                Ok(now.unwrap_or(*stat))
            }
            Kind::Object(object) => Ok(Stat {
                inode: match object.device() {
                    0 => object_number(object),
                    device => inode_of(&terminal_path(device)),
                },
                mode: object.mode(),
                device: object.device(),
                ..stream_status()
            }),
        }
    }

    pub(super) async fn status_at(&self, dir: u64, addr: u64, flags: u64) -> Result<Stat> {
        self.status_at_by(&self.creds(), dir, addr, flags).await
    }

    /// Returns the status of what a path names, as somebody of an identity reaches it.
    async fn status_at_by(&self, by: &Creds, dir: u64, addr: u64, flags: u64) -> Result<Stat> {
        /// `AT_NO_AUTOMOUNT`, `AT_SYMLINK_FOLLOW` and the ways to ask a server, which statx(2) has.
        const ALSO: u64 = 0x800 | 0x400 | 0x6000;
        if flags & !(EMPTY_PATH | NOFOLLOW | ALSO) != 0 {
            return Err(errno::EINVAL.into());
        }
        if flags & EMPTY_PATH != 0
            && (addr == 0 || self.memory.read_string(addr, PATH_MAX).await?.is_empty())
        {
            return if dir & 0xffff_ffff == AT_FDCWD & 0xffff_ffff {
                self.status_of_path_by(by, &self.cwd(), true).await
            } else {
                self.status_of(&*self.place(dir)?).await
            };
        }
        let follow = flags & NOFOLLOW == 0;
        let path = self.path(dir, addr, follow).await?;
        self.status_of_path_by(by, &path, follow).await
    }

    pub(super) async fn status_of_path(&self, path: &[u8], follow: bool) -> Result<Stat> {
        self.status_of_path_by(&self.creds(), path, follow).await
    }

    async fn status_of_path_by(&self, by: &Creds, path: &[u8], follow: bool) -> Result<Stat> {
        let path = &match self.pseudo(path, follow)? {
            Walked::Entry(Entry::Open(file), _) if follow => return self.status_of(&file).await,
            Walked::Entry(entry, path) => return Ok(self.pseudo_status(&entry, &path)),
            Walked::Elsewhere(path) => path,
        };
        let tmpfs = self.node.kernel().tmpfs();
        match tmpfs.find(path, follow, by)? {
            Found::Storage(path) => {
                let by = by.asker();
                self.node.files().stat(by.caller(), &path, follow).await
            }
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
        let status = self.status_of(&*self.place(fd)?).await?;
        self.memory.write(into, &layout::stat(&status)).await?;
        Ok(0)
    }

    pub(super) async fn sys_statx(&self, [dir, addr, flags, _mask, into, _]: Args) -> Result<u64> {
        let status = self.status_at(dir, addr, flags).await?;
        self.memory.write(into, &layout::statx(&status)).await?;
        Ok(0)
    }

    pub(super) async fn sys_access(
        &self,
        dir: u64,
        addr: u64,
        mode: u64,
        flags: u64,
    ) -> Result<u64> {
        if mode & !7 != 0 || flags & !(AT_EACCESS | NOFOLLOW | EMPTY_PATH) != 0 {
            return Err(errno::EINVAL.into());
        }
        let own = self.creds();
        let creds = if flags & AT_EACCESS != 0 {
            (*own).clone()
        } else {
            own.as_real()
        };
        let status = self
            .status_at_by(&creds, dir, addr, flags & !AT_EACCESS)
            .await?;
        let writable = status.device != 0 || status.inode >= crate::tmpfs::FIRST_INODE;
        if mode & W_OK != 0 && !writable && self.storage_is_read_only().await? {
            return Err(errno::EROFS.into());
        }
        if creds.may(status.mode, status.uid, status.gid, int(mode)) {
            Ok(0)
        } else {
            Err(errno::EACCES.into())
        }
    }

    pub(super) async fn sys_readlink(
        &self,
        dir: u64,
        addr: u64,
        into: u64,
        len: u64,
    ) -> Result<u64> {
        let Some(len) = usize::try_from(len)
            .ok()
            .filter(|&len| len > 0 && len <= i32::MAX as usize)
        else {
            return Err(errno::EINVAL.into());
        };
        let path = self.path(dir, addr, false).await?;
        let target = self.link_target(&path).await?;
        let got = target.len().min(len);
        self.memory.write(into, &target[..got]).await?;
        Ok(got as u64)
    }

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    ///
    /// EINVAL for anything else.
    pub(super) async fn link_target(&self, path: &[u8]) -> Result<Vec<u8>> {
        let path = match self.pseudo(path, false)? {
            Walked::Elsewhere(path) => path,
            Walked::Entry(Entry::Link(to), path) if is_magic(&path) => {
                return self.shown_path(&to).await;
            }
            Walked::Entry(Entry::Link(to), _) => return Ok(to),
            Walked::Entry(Entry::Open(file), _) => return self.name_of(&file).await,
            Walked::Entry(..) => return Err(errno::EINVAL.into()),
        };
        let tmpfs = self.node.kernel().tmpfs();
        match tmpfs.find(&path, false, &self.creds())? {
            Found::Storage(path) => {
                let mut target = vec![0; PATH_MAX];
                let (by, files) = (self.asker(), self.node.files());
                let got = files.readlink(by.caller(), &path, &mut target).await?;
                target.truncate(got);
                Ok(target)
            }
            Found::Here(inode) => tmpfs.target(inode),
            Found::Missing(..) => Err(errno::ENOENT.into()),
        }
    }

    /// Returns the error for a change of one of the devices, which have no names on the disk: that
    /// of a file system mounted read-only.
    pub(super) async fn refuse_change(&self, path: &[u8], change: Change) -> Result<u64> {
        let found = match Device::named(path) {
            Some(_) => Ok(()),
            None => {
                let by = self.asker();
                self.node
                    .files()
                    .stat(by.caller(), path, false)
                    .await
                    .map(drop)
            }
        };
        match (change, found) {
            (Change::Create, Ok(())) => Err(errno::EEXIST.into()),
            (Change::Create | Change::Remove, Err(Error::Errno(errno::ENOENT))) => {
                Err(errno::EROFS.into())
            }
            (_, found) => found.and(Err(errno::EROFS.into())),
        }
    }
}
