//! A file system of this node's own, for `/tmp` and the like: names here, data in slots.
//!
//! The data of a file is a shared [`Object`], mapped in an address space that only the kernel reaches: so
//! a program's mapping of the file shares the pages, and they leave for M and come back as all pages do.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use messages::PAGE_SIZE;
use messages::storage::{FileTime, Stat};
use pcache::Rights;
use spin::Mutex;

use crate::error::{Error, Result, errno};
use crate::kernel::Closing;
use crate::mm::Space;
use crate::mm::map::Place;
use crate::mm::object::Object;
use crate::mm::vma::{Backing, Vma, VmaFlags};
use crate::process::Node;
use crate::wait::Gate;

/// Folders that are file systems of this node's own.
const MOUNTS: [(&[u8], u32); 3] = [(b"/tmp", 0o1777), (b"/dev/shm", 0o1777), (b"/run", 0o755)];
/// Numbers of inodes begin here: far from those of S's disk.
pub(crate) const FIRST_INODE: u64 = 1 << 40;
/// Names at most, of all folders together.
const MAX_NAMES: usize = 1 << 20;
/// The longest name.
const NAME_MAX: usize = 255;
/// Bytes of addresses that a file has at least once it has data.
const LEAST: u64 = 64 << 10;
/// The longest file.
const MAX_SIZE: u64 = 1 << 40;
/// Links that are followed on one way (Linux `MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

pub(crate) const TYPE_MASK: u32 = 0o170_000;
pub(crate) const FOLDER: u32 = 0o040_000;
pub(crate) const REGULAR: u32 = 0o100_000;
pub(crate) const LINK: u32 = 0o120_000;

/// A file's data.
#[derive(Debug)]
pub(crate) struct TmpFile {
    inode: u64,
    size: AtomicU64,
    /// Passed by whoever reads, writes or resizes.
    gate: Gate,
    /// The addresses in the kernel's space, and the pages.
    region: Mutex<Option<Region>>,
    /// Where the addresses go when nothing uses the file any more.
    closing: Arc<Closing>,
    pub(crate) modified: AtomicU64,
}

#[derive(Clone, Debug)]
struct Region {
    start: u64,
    len: u64,
    object: Arc<Object>,
}

impl TmpFile {
    /// Returns the file's length.
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }
}

impl Drop for TmpFile {
    fn drop(&mut self) {
        if let Some(region) = self.region.get_mut().take() {
            self.closing.add_region(region.start, region.len);
        }
    }
}

/// A file, folder or link without its names.
#[derive(Debug)]
struct Inode {
    mode: u32,
    uid: u32,
    gid: u32,
    links: u32,
    times: [Duration; 3],
    body: Body,
}

#[derive(Debug)]
enum Body {
    File(Arc<TmpFile>),
    Folder {
        parent: u64,
        names: BTreeMap<Vec<u8>, u64>,
    },
    Link(Vec<u8>),
}

/// All folders and files.
#[derive(Debug)]
struct Tree {
    inodes: BTreeMap<u64, Inode>,
    next: u64,
    names: usize,
    mounts: [u64; MOUNTS.len()],
}

/// The place that a path leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// A path of S.
    Storage(Vec<u8>),
    /// An inode here.
    Here(u64),
    /// Nothing of this name in a folder here.
    Missing(u64, Vec<u8>),
}

/// The file system.
pub(crate) struct Tmpfs<N: Node> {
    tree: Mutex<Tree>,
    space: Space<'static, N>,
    closing: Arc<Closing>,
}

/// A kind of thing to make.
pub(crate) enum Make {
    File,
    Folder,
    Link(Vec<u8>),
}

impl<N: Node> Tmpfs<N> {
    /// Returns empty file systems. `space` is the kernel's own.
    pub(crate) fn new(space: Space<'static, N>, now: Duration, closing: Arc<Closing>) -> Self {
        let mut tree = Tree {
            inodes: BTreeMap::new(),
            next: FIRST_INODE,
            names: 0,
            mounts: [0; MOUNTS.len()],
        };
        for (index, (_, mode)) in MOUNTS.into_iter().enumerate() {
            let inode = tree.add(FOLDER | mode, now, |own| Body::Folder {
                parent: own,
                names: BTreeMap::new(),
            });
            tree.mounts[index] = inode;
        }
        Self {
            tree: Mutex::new(tree),
            space,
            closing,
        }
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

    /// Finds out where an absolute path leads; a link at its end is followed if `follow`.
    ///
    /// # Errors
    ///
    /// ENOENT, ENOTDIR, ELOOP as Linux has them.
    pub(crate) fn find(&self, path: &[u8], follow: bool) -> Result<Found> {
        let tree = self.tree.lock();
        let mut path = path.to_vec();
        for _ in 0..=MAX_LINKS {
            match tree.walk(&path, follow)? {
                Step::Found(found) => return Ok(found),
                Step::Elsewhere(to) => path = to,
            }
        }
        Err(errno::ELOOP.into())
    }

    /// Makes something under a name that does not exist; returns its number.
    pub(crate) fn make(&self, folder: u64, name: &[u8], mode: u32, what: Make, now: Duration) -> Result<u64> {
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
            Make::File => Body::File(Arc::new(TmpFile {
                inode: own,
                size: AtomicU64::new(0),
                gate: Gate::default(),
                region: Mutex::new(None),
                closing,
                modified: AtomicU64::new(0),
            })),
            Make::Folder => Body::Folder {
                parent: folder,
                names: BTreeMap::new(),
            },
            Make::Link(target) => Body::Link(target),
        });
        tree.enter(folder, name, inode, now)?;
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
        tree.enter(folder, name, inode, now)
    }

    /// Removes a name: a folder's if `folder_wanted`, else that of something else.
    pub(crate) fn remove(&self, inode: u64, path: &[u8], folder_wanted: bool, now: Duration) -> Result<()> {
        let mut tree = self.tree.lock();
        if tree.mounts.contains(&inode) {
            return Err(errno::EBUSY.into());
        }
        let there = tree.inodes.get(&inode).ok_or(errno::ENOENT)?;
        match (&there.body, folder_wanted) {
            (Body::Folder { names, .. }, true) if !names.is_empty() => return Err(errno::ENOTEMPTY.into()),
            (Body::Folder { .. }, false) => return Err(errno::EISDIR.into()),
            (Body::File(_) | Body::Link(_), true) => return Err(errno::ENOTDIR.into()),
            _ => {}
        }
        let name = last_part(path);
        let folder = tree.parent_of(path, inode, name)?;
        tree.leave(folder, name, now)
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
        if let Some(&there) = tree.folder(folder)?.get(name) {
            if no_replace {
                return Err(errno::EEXIST.into());
            }
            if there == inode {
                return Ok(());
            }
            match (&tree.inodes.get(&there).ok_or(errno::ENOENT)?.body, is_folder) {
                (Body::Folder { names, .. }, true) if !names.is_empty() => {
                    return Err(errno::ENOTEMPTY.into());
                }
                (Body::Folder { .. }, false) => return Err(errno::EISDIR.into()),
                (Body::File(_) | Body::Link(_), true) => return Err(errno::ENOTDIR.into()),
                _ => tree.leave(folder, name, now)?,
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
            own.links = 2;
        }
        Ok(())
    }

    /// Returns the data of a file; `None` of something else.
    pub(crate) fn file(&self, inode: u64) -> Option<Arc<TmpFile>> {
        match &self.tree.lock().inodes.get(&inode)?.body {
            Body::File(file) => Some(file.clone()),
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
        self.stat(file.inode).unwrap_or_else(|_| Stat {
            inode: file.inode,
            mode: REGULAR | 0o600,
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
        };
        let mut times = there.times.map(time);
        if let Body::File(file) = &there.body {
            let written = Duration::from_nanos(file.modified.load(Ordering::Relaxed));
            if written > there.times[1] {
                (times[1], times[2]) = (time(written), time(written));
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
            device: 0,
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
            Change::Times(accessed, modified) => {
                if let Some(accessed) = accessed {
                    there.times[0] = accessed;
                }
                if let Some(modified) = modified {
                    there.times[1] = modified;
                    if let Body::File(file) = &there.body {
                        file.modified.store(0, Ordering::Relaxed);
                    }
                }
            }
        }
        there.times[2] = now;
        Ok(())
    }

    /// Returns the entries of a folder from `position` on: number, type and name.
    pub(crate) fn entries(&self, inode: u64, position: usize) -> Result<Vec<(u64, u32, Vec<u8>)>> {
        let tree = self.tree.lock();
        let Body::Folder { parent, names } = &tree.inodes.get(&inode).ok_or(errno::ENOENT)?.body else {
            return Err(errno::ENOTDIR.into());
        };
        let own = [(inode, b".".to_vec()), (*parent, b"..".to_vec())];
        let all = own
            .into_iter()
            .chain(names.iter().map(|(name, &inode)| (inode, name.clone())));
        let typed = all.map(|(inode, name)| {
            let kind = tree.inodes.get(&inode).map_or(0, |there| there.mode & TYPE_MASK);
            (inode, kind, name)
        });
        Ok(typed.skip(position).take(512).collect())
    }

    /// Reads from a file into kernel memory; returns how much.
    pub(crate) async fn read(&self, file: &TmpFile, offset: u64, into: &mut [u8]) -> Result<usize> {
        let _pass = file.gate.pass().await;
        let left = file.size().saturating_sub(offset);
        let len = usize::try_from(left).map_or(into.len(), |left| left.min(into.len()));
        let region = file.region.lock().clone();
        match region {
            _ if len == 0 => Ok(0),
            Some(region) => {
                let within = region.len.saturating_sub(offset);
                let here = usize::try_from(within).map_or(len, |within| within.min(len));
                self.space.read(region.start + offset, &mut into[..here]).await?;
                into[here..len].fill(0);
                Ok(len)
            }
            None => {
                into[..len].fill(0);
                Ok(len)
            }
        }
    }

    /// Writes from kernel memory to a file, at its end if there is no offset; returns where it ended.
    pub(crate) async fn write(&self, file: &TmpFile, offset: Option<u64>, from: &[u8]) -> Result<u64> {
        let _pass = file.gate.pass().await;
        let offset = offset.unwrap_or_else(|| file.size());
        let end = offset
            .checked_add(from.len() as u64)
            .filter(|&end| end <= MAX_SIZE);
        let end = end.ok_or(errno::EFBIG)?;
        if from.is_empty() {
            return Ok(offset);
        }
        let region = self.reach(file, end).await?;
        match self.space.write(region.start + offset, from).await {
            // The only reason for a page of ours to be out of reach.
            Err(Error::Errno(_)) => return Err(errno::ENOSPC.into()),
            written => written?,
        }
        file.size.fetch_max(end, Ordering::AcqRel);
        let now = self.space.node_time();
        file.modified.store(now, Ordering::Relaxed);
        Ok(end)
    }

    /// Sets a file's length.
    pub(crate) async fn resize(&self, file: &TmpFile, size: u64) -> Result<()> {
        if size > MAX_SIZE {
            return Err(errno::EFBIG.into());
        }
        let _pass = file.gate.pass().await;
        let was = file.size.swap(size, Ordering::AcqRel);
        let region = file.region.lock().clone();
        if let Some(region) = region.filter(|_| size < was) {
            // What is behind the end is zero when the file grows again.
            let whole = size.next_multiple_of(PAGE_SIZE);
            let rest = usize::try_from(whole.min(was) - size).expect("less than a page");
            if rest > 0 && size < region.len {
                self.space.write(region.start + size, &[0; 4096][..rest]).await?;
            }
            let gone = whole.min(region.len)..was.next_multiple_of(PAGE_SIZE).min(region.len);
            let _change = self.space.change().await;
            self.space
                .discard(region.start + gone.start..region.start + gone.end)
                .await;
            for page in gone.start / PAGE_SIZE..gone.end / PAGE_SIZE {
                if let Some(slot) = region.object.take(page) {
                    self.space.node.cache().drop_slot(slot);
                }
            }
        }
        file.modified.store(self.space.node_time(), Ordering::Relaxed);
        Ok(())
    }

    /// Returns a file's pages as far as its length, for a mapping.
    pub(crate) async fn object(&self, file: &TmpFile, end: u64) -> Result<Arc<Object>> {
        let _pass = file.gate.pass().await;
        Ok(self.reach(file, end.max(1)).await?.object)
    }

    /// Returns a file's addresses, after making them reach to `end`.
    async fn reach(&self, file: &TmpFile, end: u64) -> Result<Region> {
        let had = file.region.lock().clone();
        if let Some(region) = had.as_ref().filter(|region| region.len >= end) {
            return Ok(region.clone());
        }
        let had_len = had.as_ref().map_or(0, |region| region.len);
        let len = end.max(had_len * 2).max(LEAST).next_multiple_of(PAGE_SIZE);
        let _change = self.space.change().await;
        let region = match had {
            Some(region) => {
                let was = region.start..region.start + region.len;
                let start = self.space.remap(was, len, true, None).await?;
                Region { start, len, ..region }
            }
            None => {
                let object = Arc::new(Object::default());
                let mut vma = Vma::anonymous(Rights::READ | Rights::WRITE);
                vma.flags |= VmaFlags::NORESERVE;
                vma.backing = Backing::Object(object.clone(), 0);
                let start = self.space.map(Place::Wish(0), len, vma).await?;
                Region { start, len, object }
            }
        };
        *file.region.lock() = Some(region.clone());
        Ok(region)
    }
}

/// A change of what is known of an inode.
pub(crate) enum Change {
    Mode(u32),
    /// `u32::MAX` leaves one as it is.
    Owner(u32, u32),
    /// Last access and last change of the data.
    Times(Option<Duration>, Option<Duration>),
}

impl Make {
    fn kind(&self) -> u32 {
        match self {
            Self::File => REGULAR,
            Self::Folder => FOLDER,
            Self::Link(_) => LINK,
        }
    }
}

fn time(since: Duration) -> FileTime {
    FileTime {
        seconds: since.as_secs().cast_signed(),
        nanos: since.subsec_nanos(),
    }
}

/// One walk, as far as no link leads elsewhere.
enum Step {
    Found(Found),
    Elsewhere(Vec<u8>),
}

/// Returns a path's parts without `.`; `..` takes the part before it away.
fn normal(path: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts
}

/// Returns the last part of a path.
pub(crate) fn last_part(path: &[u8]) -> &[u8] {
    path.split(|&b| b == b'/')
        .rfind(|part| !part.is_empty())
        .unwrap_or(b"")
}

impl Tree {
    fn add(&mut self, mode: u32, now: Duration, body: impl FnOnce(u64) -> Body) -> u64 {
        let inode = self.next;
        self.next += 1;
        let body = body(inode);
        let links = if matches!(body, Body::Folder { .. }) { 1 } else { 0 };
        let entry = Inode {
            mode,
            uid: 0,
            gid: 0,
            links,
            times: [now; 3],
            body,
        };
        self.inodes.insert(inode, entry);
        inode
    }

    fn folder(&self, inode: u64) -> Result<&BTreeMap<Vec<u8>, u64>> {
        match self.inodes.get(&inode).map(|inode| &inode.body) {
            Some(Body::Folder { names, .. }) => Ok(names),
            Some(_) => Err(errno::ENOTDIR.into()),
            None => Err(errno::ENOENT.into()),
        }
    }

    fn folder_mut(&mut self, inode: u64) -> Result<&mut Inode> {
        self.folder(inode)?;
        self.inodes.get_mut(&inode).ok_or_else(|| errno::ENOENT.into())
    }

    /// Puts a name into a folder.
    fn enter(&mut self, folder: u64, name: &[u8], inode: u64, now: Duration) -> Result<()> {
        let there = self.folder_mut(folder)?;
        if let Body::Folder { names, .. } = &mut there.body {
            names.insert(name.to_vec(), inode);
        }
        there.times[1] = now;
        self.names += 1;
        if let Some(own) = self.inodes.get_mut(&inode) {
            own.times[2] = now;
            if own.links == 0 || matches!(own.body, Body::Folder { .. }) {
                own.links += 1;
            }
        }
        Ok(())
    }

    /// Takes a name out of a folder; the inode goes with its last one.
    fn leave(&mut self, folder: u64, name: &[u8], now: Duration) -> Result<()> {
        let there = self.folder_mut(folder)?;
        there.times[1] = now;
        let Body::Folder { names, .. } = &mut there.body else {
            return Err(errno::ENOTDIR.into());
        };
        let inode = names.remove(name).ok_or(errno::ENOENT)?;
        self.names -= 1;
        let own = self.inodes.get_mut(&inode).ok_or(errno::ENOENT)?;
        let least = if matches!(own.body, Body::Folder { .. }) {
            2
        } else {
            1
        };
        own.links = own.links.saturating_sub(1);
        if own.links < least {
            self.inodes.remove(&inode);
        }
        Ok(())
    }

    /// Returns the folder in which the last part of a path is the name of `inode`.
    fn parent_of(&self, path: &[u8], inode: u64, name: &[u8]) -> Result<u64> {
        let mut up = path.to_vec();
        up.extend_from_slice(b"/..");
        let by_path = match self.walk(&up, true) {
            Ok(Step::Found(Found::Here(folder))) => Some(folder),
            _ => None,
        };
        let holds = |folder: &u64| {
            self.folder(*folder)
                .is_ok_and(|names| names.get(name) == Some(&inode))
        };
        let found = by_path
            .filter(holds)
            .or_else(|| self.inodes.keys().copied().find(holds));
        found.ok_or_else(|| errno::ENOENT.into())
    }

    fn is_within(&self, mut folder: u64, outer: u64) -> bool {
        loop {
            if folder == outer {
                return true;
            }
            match self.inodes.get(&folder).map(|inode| &inode.body) {
                Some(Body::Folder { parent, .. }) if *parent != folder => folder = *parent,
                _ => return false,
            }
        }
    }

    fn walk(&self, path: &[u8], follow: bool) -> Result<Step> {
        let parts = normal(path);
        let mount = MOUNTS.iter().zip(self.mounts).find(|((mount, _), _)| {
            let mount = normal(mount);
            parts.starts_with(&mount)
        });
        let Some(((mount, _), root)) = mount else {
            return Ok(Step::Found(Found::Storage(path.to_vec())));
        };
        let depth = normal(mount).len();
        let must_be_folder = path.ends_with(b"/");
        let mut at = root;
        for (index, part) in parts.iter().enumerate().skip(depth) {
            let last = index + 1 == parts.len();
            let Some(&next) = self.folder(at)?.get(*part) else {
                return if last {
                    Ok(Step::Found(Found::Missing(at, part.to_vec())))
                } else {
                    Err(errno::ENOENT.into())
                };
            };
            let there = self.inodes.get(&next).ok_or(errno::ENOENT)?;
            if let Body::Link(target) = &there.body
                && (follow || !last || must_be_folder)
            {
                return Ok(Step::Elsewhere(redirect(&parts, index, target)));
            }
            at = next;
        }
        if must_be_folder {
            self.folder(at)?;
        }
        Ok(Step::Found(Found::Here(at)))
    }
}

/// Returns the path with the part at `index` replaced by a link's target.
fn redirect(parts: &[&[u8]], index: usize, target: &[u8]) -> Vec<u8> {
    let mut path = Vec::new();
    if !target.starts_with(b"/") {
        for part in &parts[..index] {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        path.push(b'/');
    }
    path.extend_from_slice(target);
    for part in &parts[index + 1..] {
        path.push(b'/');
        path.extend_from_slice(part);
    }
    path
}
