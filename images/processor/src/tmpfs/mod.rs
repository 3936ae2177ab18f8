//! A file system of this node's own, for `/tmp` and the like: names here, data in slots.
//!
//! The data of a file is a shared [`Object`], mapped in an address space that only the kernel
//! reaches: so a program's mapping of the file shares the pages, and they leave for M and come back
//! as all pages do.

mod below;
mod data;
mod seals;
mod tree;
mod watch;

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use core::time::Duration;

use messages::PAGE_SIZE;
use messages::storage::{FileTime, Stat};
use spin::Mutex;

use crate::creds::{Creds, EXECUTE};
use crate::error::{Result, errno};
use crate::inotify::Watches;
use crate::kernel::Closing;
use crate::mm::Space;
use crate::pipe::Pipe;
use crate::process::Node;
pub(crate) use data::TmpFile;
pub(crate) use seals::{SEAL_EXEC, SEAL_FUTURE_WRITE, SEAL_SEAL, SEAL_WRITE};
pub(crate) use tree::last_part;
use tree::{Body, Inode, Step, Tree};
use watch::Named;

/// Folders that are file systems of this node's own.
const MOUNTS: [(&[u8], u32); 3] = [(b"/tmp", 0o1777), (b"/dev/shm", 0o1777), (b"/run", 0o755)];
/// Numbers of inodes begin here: far from those of S's disk.
pub(crate) const FIRST_INODE: u64 = 1 << 40;
/// The number that entries of S's disk have in listings.
const BELOW: u64 = 1;
/// Names at most, of all folders together.
const MAX_NAMES: usize = 1 << 20;
/// The longest name.
const NAME_MAX: usize = 255;
/// Links that are followed on one way (Linux `MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

pub(crate) const TYPE_MASK: u32 = 0o170_000;
pub(crate) const FOLDER: u32 = 0o040_000;
pub(crate) const REGULAR: u32 = 0o100_000;
pub(crate) const LINK: u32 = 0o120_000;
pub(crate) const SOCKET: u32 = 0o140_000;
pub(crate) const FIFO: u32 = 0o010_000;
pub(crate) const DEVICE_CHAR: u32 = 0o020_000;
pub(crate) const DEVICE_BLOCK: u32 = 0o060_000;

/// The place that a path leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// A path of S.
    Storage(Vec<u8>),
    /// An inode here.
    Here(u64),
    /// Nothing of this name in a folder here; whether the path ends with a slash, so that only a
    /// folder may be made.
    Missing(u64, Vec<u8>, bool),
}

/// The file system.
pub(crate) struct Tmpfs<N: Node> {
    tree: Mutex<Tree>,
    space: Space<'static, N>,
    closing: Arc<Closing>,
    /// The inotify watches.
    watches: Arc<Watches>,
}

/// A kind of thing to make.
pub(crate) enum NewInode {
    File,
    Folder,
    Link(Vec<u8>),
    Socket,
    Fifo,
    /// A device's file: of blocks or of characters, and its number as `st_rdev` has it.
    Device {
        block: bool,
        number: u64,
    },
}

impl<N: Node> Tmpfs<N> {
    /// Returns empty file systems. `space` is the kernel's own.
    pub(crate) fn new(space: Space<'static, N>, now: Duration, closing: Arc<Closing>) -> Self {
        let mut tree = Tree::new();
        for (index, (_, mode)) in MOUNTS.into_iter().enumerate() {
            let inode = tree.add(FOLDER | mode, now, |own| Body::Folder {
                parent: own,
                names: BTreeMap::new(),
            });
            if let Some(root) = tree.inodes.get_mut(&inode) {
                root.links += 1;
            }
            tree.mounts[index] = inode;
        }
        Self {
            tree: Mutex::new(tree),
            space,
            watches: closing.watches.clone(),
            closing,
        }
    }

    /// Looks what S's disk has in the folders that are mounted over: it stays seen.
    pub(crate) async fn look_below(&self, node: &N) -> Result<()> {
        for (index, (path, _)) in MOUNTS.into_iter().enumerate() {
            let names = below::names(node, path).await?;
            self.tree.lock().below[index] = names;
        }
        Ok(())
    }

    /// Forgets a name of S's disk in a folder that is mounted over, now that S has it no more.
    pub(crate) fn forget_below(&self, path: &[u8]) {
        let mut tree = self.tree.lock();
        for (index, (mount, _)) in MOUNTS.into_iter().enumerate() {
            let below = path
                .strip_prefix(mount)
                .and_then(|rest| rest.strip_prefix(b"/"));
            if let Some(name) = below {
                tree.below[index].remove(name);
            }
        }
    }

    /// Returns the kernel's own space.
    pub(crate) fn space(&self) -> &Space<'static, N> {
        &self.space
    }

    /// Frees the addresses of a file that nothing uses any more.
    pub(crate) async fn free(&self, start: u64, len: u64) -> Result<()> {
        let _change = self.space.change().await;
        self.space.unmap(start..start + len).await
    }

    /// Frees everything.
    pub(crate) async fn end(&self) -> Result<()> {
        let gone = core::mem::take(&mut self.tree.lock().inodes);
        drop(gone);
        self.space.end().await
    }

    /// Finds out where an absolute path leads for a caller; a link at its end is followed if
    /// `follow`.
    ///
    /// # Errors
    ///
    /// EACCES, ENAMETOOLONG, ENOENT, ENOTDIR, ELOOP as Linux has them.
    pub(crate) fn find(&self, path: &[u8], follow: bool, by: &Creds) -> Result<Found> {
        self.walk(path, follow, by).map(|(found, _)| found)
    }

    /// Returns the path without links and dots of what is here; `None` for what is not.
    ///
    /// # Errors
    ///
    /// As [`find`](Self::find).
    pub(crate) fn real_path(&self, path: &[u8], by: &Creds) -> Result<Option<Vec<u8>>> {
        let (found, path) = self.walk(path, true, by)?;
        Ok(matches!(found, Found::Here(_)).then_some(path))
    }

    fn walk(&self, path: &[u8], follow: bool, by: &Creds) -> Result<(Found, Vec<u8>)> {
        let may_search = |folder: &Inode| by.may(folder.mode, folder.uid, folder.gid, EXECUTE);
        let tree = self.tree.lock();
        let mut path = path.to_vec();
        let mut links = 0;
        while links <= MAX_LINKS {
            match tree.walk(&path, follow, &may_search)? {
                Step::Found(found, path) => return Ok((found, path)),
                Step::Link(to) => {
                    links += 1;
                    path = to;
                }
                Step::Out(to) => path = to,
            }
        }
        Err(errno::ELOOP.into())
    }

    /// Makes something under a name that does not exist; returns its number.
    pub(crate) fn make(
        &self,
        folder: u64,
        name: &[u8],
        mode: u32,
        what: NewInode,
        now: Duration,
    ) -> Result<u64> {
        if name.len() > NAME_MAX {
            return Err(errno::ENAMETOOLONG.into());
        }
        let mut tree = self.tree.lock();
        if tree.names >= MAX_NAMES {
            return Err(errno::ENOSPC.into());
        }
        if tree.folder(folder)?.contains_key(name) {
            return Err(errno::EEXIST.into());
        }
        let (kind, closing) = (what.kind(), self.closing.clone());
        let inode = tree.add(kind | mode, now, |own| match what {
            NewInode::File => Body::File(Arc::new(TmpFile::new(own, closing))),
            NewInode::Folder => Body::Folder {
                parent: folder,
                names: BTreeMap::new(),
            },
            NewInode::Link(target) => Body::Link(target),
            NewInode::Socket => Body::Socket,
            NewInode::Fifo => Body::Fifo(Arc::default()),
            NewInode::Device { number, .. } => Body::Device(number),
        });
        tree.enter(folder, name, inode, now)?;
        drop(tree);
        self.entered(inode, &Named { folder, name }, false);
        Ok(inode)
    }

    /// Gives a file another name.
    pub(crate) fn link(&self, inode: u64, folder: u64, name: &[u8], now: Duration) -> Result<()> {
        let mut tree = self.tree.lock();
        if tree.folder(folder)?.contains_key(name) {
            return Err(errno::EEXIST.into());
        }
        let there = tree.inodes.get_mut(&inode).ok_or(errno::ENOENT)?;
        if there.mode & TYPE_MASK == FOLDER {
            return Err(errno::EPERM.into());
        }
        there.links += 1;
        tree.enter(folder, name, inode, now)?;
        drop(tree);
        self.entered(inode, &Named { folder, name }, true);
        Ok(())
    }

    /// Removes a name: a folder's if `folder_wanted`, else that of something else.
    pub(crate) fn remove(
        &self,
        inode: u64,
        path: &[u8],
        folder_wanted: bool,
        now: Duration,
    ) -> Result<()> {
        let mut tree = self.tree.lock();
        if tree.mounts.contains(&inode) {
            return Err(errno::EBUSY.into());
        }
        let there = tree.inodes.get(&inode).ok_or(errno::ENOENT)?;
        match (&there.body, folder_wanted) {
            (Body::Folder { names, .. }, true) if !names.is_empty() => {
                return Err(errno::ENOTEMPTY.into());
            }
            (Body::Folder { .. }, false) => return Err(errno::EISDIR.into()),
            (Body::Folder { .. }, true) => {}
            (_, true) => return Err(errno::ENOTDIR.into()),
            _ => {}
        }
        let name = last_part(path);
        let folder = tree.parent_of(path, inode, name)?;
        tree.leave(folder, name, now)?;
        let gone = !tree.inodes.contains_key(&inode);
        drop(tree);
        self.left(inode, &Named { folder, name }, folder_wanted, gone);
        Ok(())
    }

    /// Renames; what has the new name is replaced.
    pub(crate) fn rename(
        &self,
        (inode, from): (u64, &[u8]),
        (folder, name): (u64, &[u8]),
        no_replace: bool,
        now: Duration,
    ) -> Result<()> {
        let mut tree = self.tree.lock();
        if tree.mounts.contains(&inode) {
            return Err(errno::EBUSY.into());
        }
        let is_folder = matches!(
            tree.inodes.get(&inode).ok_or(errno::ENOENT)?.body,
            Body::Folder { .. }
        );
        if is_folder && tree.is_within(folder, inode) {
            return Err(errno::EINVAL.into());
        }
        let replaced = tree.folder(folder)?.get(name).copied();
        if let Some(there) = replaced {
            if no_replace {
                return Err(errno::EEXIST.into());
            }
            if there == inode {
                return Ok(());
            }
            match (
                &tree.inodes.get(&there).ok_or(errno::ENOENT)?.body,
                is_folder,
            ) {
                (Body::Folder { names, .. }, true) if !names.is_empty() => {
                    return Err(errno::ENOTEMPTY.into());
                }
                (Body::Folder { .. }, false) => return Err(errno::EISDIR.into()),
                (Body::Folder { .. }, true) | (_, false) => tree.leave(folder, name, now)?,
                (_, true) => return Err(errno::ENOTDIR.into()),
            }
        }
        let old_name = last_part(from);
        let old_folder = tree.parent_of(from, inode, old_name)?;
        // The inode must outlive its old name.
        if let Some(own) = tree.inodes.get_mut(&inode) {
            own.links += 1;
        }
        tree.leave(old_folder, old_name, now)?;
        if let Some(own) = tree.inodes.get_mut(&inode)
            && let Body::Folder { parent, .. } = &mut own.body
        {
            *parent = folder;
        }
        tree.enter(folder, name, inode, now)?;
        if let Some(own) = tree.inodes.get_mut(&inode)
            && is_folder
        {
            own.links -= 1;
        }
        drop(tree);
        let from = Named {
            folder: old_folder,
            name: old_name,
        };
        self.moved(inode, &from, &Named { folder, name }, replaced);
        Ok(())
    }

    /// Exchanges what two names stand for.
    ///
    /// # Errors
    ///
    /// ENOENT if one is not there, EINVAL if one is a folder that the other lies in, EBUSY for a
    /// root.
    pub(crate) fn exchange(
        &self,
        one: (u64, &[u8]),
        two: (u64, &[u8]),
        now: Duration,
    ) -> Result<()> {
        let mut tree = self.tree.lock();
        let found = |tree: &Tree, (folder, name): (u64, &[u8])| -> Result<u64> {
            Ok(*tree.folder(folder)?.get(name).ok_or(errno::ENOENT)?)
        };
        let (first, second) = (found(&tree, one)?, found(&tree, two)?);
        if [first, second].iter().any(|it| tree.mounts.contains(it)) {
            return Err(errno::EBUSY.into());
        }
        if first == second {
            return Ok(());
        }
        if tree.is_within(two.0, first) || tree.is_within(one.0, second) {
            return Err(errno::EINVAL.into());
        }
        tree.put(one, second, now)?;
        tree.put(two, first, now)?;
        tree.moved(first, one.0, two.0, now);
        tree.moved(second, two.0, one.0, now);
        drop(tree);
        let named = |(folder, name)| Named { folder, name };
        self.moved(first, &named(one), &named(two), None);
        self.moved(second, &named(two), &named(one), None);
        Ok(())
    }

    /// Returns whether an inode is the root of one of the file systems.
    pub(crate) fn is_mount(&self, inode: u64) -> bool {
        self.tree.lock().mounts.contains(&inode)
    }

    /// Returns what has a name in a folder.
    pub(crate) fn entry(&self, folder: u64, name: &[u8]) -> Option<u64> {
        self.tree.lock().folder(folder).ok()?.get(name).copied()
    }

    /// Returns the data of a file; `None` of something else.
    pub(crate) fn file(&self, inode: u64) -> Option<Arc<TmpFile>> {
        match &self.tree.lock().inodes.get(&inode)?.body {
            Body::File(file) => Some(file.clone()),
            _ => None,
        }
    }

    /// Returns the pipe of a FIFO; `None` of something else.
    pub(crate) fn fifo(&self, inode: u64) -> Option<Arc<Pipe>> {
        match &self.tree.lock().inodes.get(&inode)?.body {
            Body::Fifo(pipe) => Some(pipe.clone()),
            _ => None,
        }
    }

    /// Returns a link's target.
    pub(crate) fn target(&self, inode: u64) -> Result<Vec<u8>> {
        match self.tree.lock().inodes.get(&inode).map(|inode| &inode.body) {
            Some(Body::Link(target)) => Ok(target.clone()),
            _ => Err(errno::EINVAL.into()),
        }
    }

    /// Returns the status of an open file, which may have no name any more.
    pub(crate) fn stat_file(&self, file: &TmpFile) -> Stat {
        self.stat(file.inode()).unwrap_or_else(|_| Stat {
            inode: file.inode(),
            mode: file.mode.load(Ordering::Relaxed),
            links: 0,
            uid: 0,
            gid: 0,
            size: file.size(),
            block_size: 4096,
            blocks: file.size().div_ceil(PAGE_SIZE) * 8,
            accessed: time(Duration::ZERO),
            modified: time(Duration::from_nanos(file.modified.load(Ordering::Relaxed))),
            changed: time(Duration::ZERO),
            device: 0,
        })
    }

    /// Returns the status of an inode.
    pub(crate) fn stat(&self, inode: u64) -> Result<Stat> {
        let tree = self.tree.lock();
        let there = tree.inodes.get(&inode).ok_or(errno::ENOENT)?;
        let size = match &there.body {
            Body::File(file) => file.size(),
            Body::Folder { names, .. } => names.len() as u64 * 20,
            Body::Link(target) => target.len() as u64,
            Body::Socket | Body::Fifo(_) | Body::Device(_) => 0,
        };
        let mut times = there.times;
        if let Body::File(file) = &there.body {
            // 0 if the file was not written since its times were set.
            let nanos = file.modified.load(Ordering::Relaxed);
            let (written, set) = (time(Duration::from_nanos(nanos)), there.times[1]);
            if nanos > 0 && (written.seconds, written.nanos) > (set.seconds, set.nanos) {
                (times[1], times[2]) = (written, written);
            }
        }
        Ok(Stat {
            inode,
            mode: there.mode,
            links: there.links,
            uid: there.uid,
            gid: there.gid,
            size,
            block_size: 4096,
            blocks: size.div_ceil(PAGE_SIZE) * 8,
            accessed: times[0],
            modified: times[1],
            changed: times[2],
            device: match there.body {
                Body::Device(number) => number,
                _ => 0,
            },
        })
    }

    /// Changes mode, owner or times of an inode.
    pub(crate) fn change(&self, inode: u64, change: &Change, now: Duration) -> Result<()> {
        let mut tree = self.tree.lock();
        let there = tree.inodes.get_mut(&inode).ok_or(errno::ENOENT)?;
        match *change {
            Change::Mode(mode) => there.mode = there.mode & TYPE_MASK | mode & 0o7777,
            Change::Owner(uid, gid) => {
                if uid != u32::MAX {
                    there.uid = uid;
                }
                if gid != u32::MAX {
                    there.gid = gid;
                }
            }
            Change::Times(accessed, modified) => there.set_times(accessed, modified),
            Change::Present(now) => there.set_times(Some(time(now)), Some(time(now))),
        }
        there.times[2] = time(now);
        Ok(())
    }

    /// Returns the entries of a folder from `position` on: number, type and name.
    pub(crate) fn entries(&self, inode: u64, position: usize) -> Result<Vec<(u64, u32, Vec<u8>)>> {
        let tree = self.tree.lock();
        let Body::Folder { parent, names } = &tree.inodes.get(&inode).ok_or(errno::ENOENT)?.body
        else {
            return Err(errno::ENOTDIR.into());
        };
        let own = [(inode, b".".to_vec()), (*parent, b"..".to_vec())];
        let all = own
            .into_iter()
            .chain(names.iter().map(|(name, &inode)| (inode, name.clone())));
        // Of what S's disk has, nothing but the names is known here.
        let mounts = tree.mounts.iter().zip(&tree.below);
        let below = mounts
            .filter(|(root, _)| **root == inode)
            .flat_map(|(_, names)| names);
        let all = all.chain(below.map(|name| (BELOW, name.clone())));
        let typed = all.map(|(inode, name)| {
            let kind = tree
                .inodes
                .get(&inode)
                .map_or(0, |there| there.mode & TYPE_MASK);
            (inode, kind, name)
        });
        Ok(typed.skip(position).take(512).collect())
    }
}

/// A change of what is known of an inode.
pub(crate) enum Change {
    Mode(u32),
    /// `u32::MAX` leaves one as it is.
    Owner(u32, u32),
    /// Last access and last change of the data.
    Times(Option<FileTime>, Option<FileTime>),
    /// Sets both times to the present, for which write permission suffices.
    Present(Duration),
}

impl NewInode {
    fn kind(&self) -> u32 {
        match self {
            Self::File => REGULAR,
            Self::Folder => FOLDER,
            Self::Link(_) => LINK,
            Self::Socket => SOCKET,
            Self::Fifo => FIFO,
            Self::Device { block: false, .. } => DEVICE_CHAR,
            Self::Device { block: true, .. } => DEVICE_BLOCK,
        }
    }
}

/// Returns the point of time so long after 1970.
pub(crate) fn time(since: Duration) -> FileTime {
    FileTime {
        seconds: since.as_secs().cast_signed(),
        nanos: since.subsec_nanos(),
    }
}
