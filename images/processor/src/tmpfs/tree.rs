//! Folders, names and links.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use core::time::Duration;

use messages::storage::FileTime;

use super::{FIRST_INODE, Found, MOUNTS, NAME_MAX, TmpFile, time};
use crate::error::{Result, errno};
use crate::pipe::Pipe;

/// A file, folder or link without its names.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) links: u32,
    pub(super) times: [FileTime; 3],
    pub(super) body: Body,
}

impl Inode {
    /// Sets the times of the last access and of the last change of the data, where given.
    pub(super) fn set_times(&mut self, accessed: Option<FileTime>, modified: Option<FileTime>) {
        if let Some(accessed) = accessed {
            self.times[0] = accessed;
        }
        if let Some(modified) = modified {
            self.times[1] = modified;
            if let Body::File(file) = &self.body {
                file.modified.store(0, Ordering::Relaxed);
            }
        }
    }
}

#[derive(Debug)]
pub(super) enum Body {
    File(Arc<TmpFile>),
    Folder {
        parent: u64,
        names: BTreeMap<Vec<u8>, u64>,
    },
    Link(Vec<u8>),
    /// The name of a bound local socket; the socket itself is found by the inode's number.
    Socket,
    Fifo(Arc<Pipe>),
    /// A device's file, with its number.
    Device(u64),
}

/// All folders and files.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) inodes: BTreeMap<u64, Inode>,
    next: u64,
    cookie: u32,
    pub(super) names: usize,
    pub(super) mounts: [u64; MOUNTS.len()],
    /// Names that S's disk has in the folders that are mounted over: they stay seen.
    pub(super) below: [BTreeSet<Vec<u8>>; MOUNTS.len()],
}

/// One walk, as far as neither a link nor `..` leads elsewhere.
pub(super) enum Step {
    /// The place, and for one that is here its path without links and dots.
    Found(Found, Vec<u8>),
    /// A link was met: the path goes on so.
    Link(Vec<u8>),
    /// The path leaves the file system upwards, and goes on so. It is shorter than before.
    Out(Vec<u8>),
}

/// Goes one part on; `..` takes the part before it away.
fn step<'a>(way: &mut Vec<&'a [u8]>, part: &'a [u8]) {
    match part {
        b"." => {}
        b".." => drop(way.pop()),
        part => way.push(part),
    }
}

/// Returns a path's parts without `.` and `..`.
fn normal<'a>(path: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    path.iter().for_each(|part| step(&mut parts, part));
    parts
}

/// Returns the last part of a path.
pub(crate) fn last_part(path: &[u8]) -> &[u8] {
    path.split(|&b| b == b'/')
        .rfind(|part| !part.is_empty())
        .unwrap_or(b"")
}

impl Tree {
    pub(super) fn new() -> Self {
        Self {
            inodes: BTreeMap::new(),
            next: FIRST_INODE,
            cookie: 0,
            names: 0,
            mounts: [0; MOUNTS.len()],
            below: Default::default(),
        }
    }

    /// Returns a number that joins the two events of a move.
    pub(super) fn new_cookie(&mut self) -> u32 {
        self.cookie = self.cookie.wrapping_add(1).max(1);
        self.cookie
    }

    /// Returns the number of a new inode.
    pub(super) fn new_inode(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    pub(super) fn add(&mut self, mode: u32, now: Duration, body: impl FnOnce(u64) -> Body) -> u64 {
        let inode = self.new_inode();
        let body = body(inode);
        let links = if matches!(body, Body::Folder { .. }) {
            1
        } else {
            0
        };
        let entry = Inode {
            mode,
            uid: 0,
            gid: 0,
            links,
            times: [time(now); 3],
            body,
        };
        self.inodes.insert(inode, entry);
        inode
    }

    pub(super) fn folder(&self, inode: u64) -> Result<&BTreeMap<Vec<u8>, u64>> {
        match self.inodes.get(&inode).map(|inode| &inode.body) {
            Some(Body::Folder { names, .. }) => Ok(names),
            Some(_) => Err(errno::ENOTDIR.into()),
            None => Err(errno::ENOENT.into()),
        }
    }

    fn folder_mut(&mut self, inode: u64) -> Result<&mut Inode> {
        self.folder(inode)?;
        self.inodes
            .get_mut(&inode)
            .ok_or_else(|| errno::ENOENT.into())
    }

    /// Puts a name into a folder.
    pub(super) fn enter(
        &mut self,
        folder: u64,
        name: &[u8],
        inode: u64,
        now: Duration,
    ) -> Result<()> {
        let there = self.folder_mut(folder)?;
        if let Body::Folder { names, .. } = &mut there.body {
            names.insert(name.to_vec(), inode);
        }
        (there.times[1], there.times[2]) = (time(now), time(now));
        self.names += 1;
        if self.folder(inode).is_ok() {
            self.folder_mut(folder)?.links += 1;
        }
        if let Some(own) = self.inodes.get_mut(&inode) {
            own.times[2] = time(now);
            if own.links == 0 || matches!(own.body, Body::Folder { .. }) {
                own.links += 1;
            }
        }
        Ok(())
    }

    /// Makes a name that is in a folder that of another inode.
    pub(super) fn put(&mut self, at: (u64, &[u8]), inode: u64, now: Duration) -> Result<()> {
        let there = self.folder_mut(at.0)?;
        (there.times[1], there.times[2]) = (time(now), time(now));
        if let Body::Folder { names, .. } = &mut there.body {
            names.insert(at.1.to_vec(), inode);
        }
        Ok(())
    }

    /// Notes that an inode's name has moved from one folder to another.
    pub(super) fn moved(&mut self, inode: u64, from: u64, to: u64, now: Duration) {
        let Some(own) = self.inodes.get_mut(&inode) else {
            return;
        };
        own.times[2] = time(now);
        let Body::Folder { parent, .. } = &mut own.body else {
            return;
        };
        *parent = to;
        if let Some(left) = self.inodes.get_mut(&from) {
            left.links = left.links.saturating_sub(1);
        }
        if let Some(entered) = self.inodes.get_mut(&to) {
            entered.links += 1;
        }
    }

    /// Takes a name out of a folder; the inode goes with its last one.
    pub(super) fn leave(&mut self, folder: u64, name: &[u8], now: Duration) -> Result<()> {
        let there = self.folder_mut(folder)?;
        (there.times[1], there.times[2]) = (time(now), time(now));
        let Body::Folder { names, .. } = &mut there.body else {
            return Err(errno::ENOTDIR.into());
        };
        let inode = names.remove(name).ok_or(errno::ENOENT)?;
        self.names -= 1;
        if self.folder(inode).is_ok() {
            let there = self.folder_mut(folder)?;
            there.links = there.links.saturating_sub(1);
        }
        let own = self.inodes.get_mut(&inode).ok_or(errno::ENOENT)?;
        own.times[2] = time(now);
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
    pub(super) fn parent_of(&self, path: &[u8], inode: u64, name: &[u8]) -> Result<u64> {
        let trimmed = path.iter().rposition(|&b| b != b'/').map_or(0, |at| at + 1);
        let up = &path[..trimmed.saturating_sub(last_part(path).len())];
        let by_path = match self.walk(up, true, &|_| true) {
            Ok(Step::Found(Found::Here(folder), _)) => Some(folder),
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

    pub(super) fn is_within(&self, mut folder: u64, outer: u64) -> bool {
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

    /// Returns whether S's disk has a name in a folder that is mounted over.
    fn is_below(&self, folder: u64, name: &[u8]) -> bool {
        let mounts = self.mounts.iter().zip(&self.below);
        mounts
            .filter(|(root, _)| **root == folder)
            .any(|(_, names)| names.contains(name))
    }

    /// Walks a path. `may_search` says whether the caller may look names up in a folder.
    ///
    /// On the way to the file system's root `..` takes the part before it away; within, a path goes
    /// through what exists only, as on Linux.
    pub(super) fn walk(
        &self,
        path: &[u8],
        follow: bool,
        may_search: &dyn Fn(&Inode) -> bool,
    ) -> Result<Step> {
        let parts: Vec<&[u8]> = path
            .split(|&b| b == b'/')
            .filter(|p| !p.is_empty())
            .collect();
        let Some((root, depth, mut walked)) = self.mount_on(&parts) else {
            return Ok(Step::Found(Found::Storage(path.to_vec()), Vec::new()));
        };
        let must_be_folder = path.ends_with(b"/");
        let mut at = root;
        for (index, part) in parts.iter().enumerate().skip(depth) {
            let rest = &parts[index + 1..];
            let names = self.folder(at)?;
            if !self.inodes.get(&at).is_some_and(may_search) {
                return Err(errno::EACCES.into());
            }
            match *part {
                b"." => continue,
                b".." => {
                    walked.pop();
                    if at == root {
                        walked.extend(rest);
                        return Ok(out(&walked, must_be_folder));
                    }
                    at = self.parent(at);
                    continue;
                }
                part if part.len() > NAME_MAX => return Err(errno::ENAMETOOLONG.into()),
                _ => {}
            }
            let Some(&next) = names.get(*part) else {
                return if self.is_below(at, part) {
                    walked.extend(&parts[index..]);
                    // S does not know what this node has beside its names.
                    if rest.contains(&&b".."[..]) {
                        return Ok(out(&normal(&walked), must_be_folder));
                    }
                    let path = whole_path(&walked, must_be_folder);
                    Ok(Step::Found(Found::Storage(path), Vec::new()))
                } else if rest.is_empty() {
                    let missing = Found::Missing(at, part.to_vec(), must_be_folder);
                    Ok(Step::Found(missing, Vec::new()))
                } else {
                    Err(errno::ENOENT.into())
                };
            };
            let there = self.inodes.get(&next).ok_or(errno::ENOENT)?;
            if let Body::Link(target) = &there.body
                && (follow || !rest.is_empty() || must_be_folder)
            {
                return Ok(Step::Link(redirect(&walked, target, rest, must_be_folder)));
            }
            walked.push(part);
            at = next;
        }
        if must_be_folder {
            self.folder(at)?;
        }
        Ok(Step::Found(Found::Here(at), whole_path(&walked, false)))
    }

    /// Returns the root of the file system that a path leads into, how many parts lead there, and
    /// these without dots.
    fn mount_on<'a>(&self, parts: &[&'a [u8]]) -> Option<(u64, usize, Vec<&'a [u8]>)> {
        let mut way = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            step(&mut way, part);
            let leads = |mount: &[u8]| {
                let mount = mount.split(|&b| b == b'/').filter(|part| !part.is_empty());
                mount.eq(way.iter().copied())
            };
            let mut mounts = MOUNTS.iter().zip(self.mounts);
            if let Some((_, root)) = mounts.find(|((mount, _), _)| leads(mount)) {
                return Some((root, index + 1, way));
            }
        }
        None
    }

    /// Returns the folder that a folder is in.
    fn parent(&self, folder: u64) -> u64 {
        match self.inodes.get(&folder).map(|inode| &inode.body) {
            Some(Body::Folder { parent, .. }) => *parent,
            _ => folder,
        }
    }
}

/// Leaves the file system by a path, which is that of the root without parts.
fn out(parts: &[&[u8]], folder: bool) -> Step {
    Step::Out(whole_path(parts, folder || parts.is_empty()))
}

/// Returns the path of parts.
fn whole_path(parts: &[&[u8]], folder: bool) -> Vec<u8> {
    let mut path = Vec::new();
    for part in parts {
        path.push(b'/');
        path.extend_from_slice(part);
    }
    path.extend(folder.then_some(b'/'));
    path
}

/// Returns the path that goes on behind a link in the folder of a path.
fn redirect(folder: &[&[u8]], target: &[u8], rest: &[&[u8]], must_be_folder: bool) -> Vec<u8> {
    let mut path = Vec::new();
    if !target.starts_with(b"/") {
        path = whole_path(folder, true);
    }
    path.extend_from_slice(target);
    path.extend(whole_path(rest, must_be_folder));
    path
}
