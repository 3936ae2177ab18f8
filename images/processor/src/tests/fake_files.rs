//! S as a map from paths to bytes.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::BTreeMap;

use messages::pieces::pieces;
use messages::storage::{
    AllocateFlags, AttributeFlags, Attributes, Caller, Entry, FileId, FileTime, FlushRequest,
    Flushed, Leased, OpenFlags, Opened, Privileges, RenameFlags, Stat, Statfs, Written, XattrFlags,
    XattrName,
};
use messages::{Wire, Writer};

use crate::error::errno;
use crate::{Files, Result};

/// A caller: user, group, privileges, supplementary groups.
type Named = (u32, u32, Privileges, Vec<u32>);

/// S: files by path; a path with nothing behind it is a folder.
#[derive(Default)]
pub(crate) struct FakeFiles {
    /// The files at the start.
    pub(crate) files: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) links: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) open: Cell<i64>,
    pub(crate) reads: Cell<u64>,
    pub(crate) writes: Cell<u64>,
    /// Writes are ENOSPC.
    pub(crate) full: Cell<bool>,
    pub(crate) syncs: Cell<u64>,
    /// Questions about paths: `stat`, `readlink`, `open`.
    pub(crate) asked: Cell<u64>,
    /// The most bytes that a read or write takes.
    pub(crate) most: usize,
    pub(crate) read_only: Cell<bool>,
    /// Leases are granted.
    pub(crate) leases: Cell<bool>,
    /// Generation of the lease of all names; 0 if none is granted.
    pub(crate) names: Cell<u64>,
    /// Write leases are granted, too.
    pub(crate) gathers: Cell<bool>,
    /// Blocks promised with a write lease.
    pub(crate) promised: Cell<u32>,
    /// Runs of gathered writes.
    pub(crate) flushes: Cell<u64>,
    /// Requests for write leases.
    pub(crate) write_asked: Cell<u64>,
    /// Questions about open files: status, leases.
    pub(crate) file_asked: Cell<u64>,
    /// Generation of the next lease of each inode; changes by another node raise it.
    generations: RefCell<BTreeMap<usize, u64>>,
    /// Opens are EACCES.
    pub(crate) refuses: Cell<bool>,
    /// The callers of all requests.
    pub(crate) callers: RefCell<Vec<Named>>,
    /// Extended attributes, the same of every file.
    xattrs: RefCell<BTreeMap<Vec<u8>, Vec<u8>>>,
    disk: RefCell<FakeDisk>,
}

/// Inodes by position, which is also the number of an open file; names that are gone keep theirs.
#[derive(Default)]
struct FakeDisk {
    names: BTreeMap<Vec<u8>, usize>,
    inodes: Vec<FakeInode>,
}

#[derive(Clone)]
struct FakeInode {
    data: Vec<u8>,
    mode: u32,
    uid: u32,
}

impl FakeInode {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        self.data.resize(self.data.len().max(end), 0);
        self.data[at..end].copy_from_slice(bytes);
    }
}

impl FakeFiles {
    /// Returns an S with files.
    pub(crate) fn new(files: BTreeMap<Vec<u8>, Vec<u8>>) -> Self {
        Self {
            files,
            most: 5_000,
            leases: Cell::new(true),
            names: Cell::new(1),
            promised: Cell::new(72),
            ..Self::default()
        }
    }

    /// Cuts a file, as another node would.
    pub(crate) fn cut(&self, path: &str, size: usize) {
        let at = self.find(path.as_bytes()).unwrap();
        self.disk().inodes[at].data.truncate(size);
    }

    /// Returns the generation of a lease; 0 if none is granted.
    fn generation(&self, at: usize) -> u64 {
        match self.leases.get() {
            true => *self.generations.borrow_mut().entry(at).or_insert(1),
            false => 0,
        }
    }

    /// Ends the lease of a file, for a change by another node; returns the inode and the
    /// generation to be recalled.
    pub(crate) fn recall(&self, path: &str) -> (u64, u64) {
        let at = self.find(path.as_bytes()).unwrap();
        let lease = self.generation(at);
        self.generations.borrow_mut().insert(at, lease + 1);
        (at as u64 + 10, lease)
    }

    /// Carries out what was gathered.
    pub(crate) fn put_pieces(&self, at: usize, bytes: &[u8]) {
        for piece in pieces(bytes) {
            let piece = piece.expect("a sound piece");
            let offset = usize::try_from(piece.offset).unwrap();
            self.disk().inodes[at].write(offset, piece.bytes);
        }
    }

    /// Changes a file, as another node would.
    pub(crate) fn change(&self, path: &str, data: &[u8]) {
        let at = self.find(path.as_bytes()).unwrap();
        self.disk().inodes[at].data = data.to_vec();
    }

    /// Returns what the disk has of a file.
    pub(crate) fn data(&self, path: &str) -> Vec<u8> {
        let at = self.find(path.as_bytes()).unwrap();
        self.disk().inodes[at].data.clone()
    }

    fn note(&self, by: Caller<'_>) {
        let groups = (0..100).filter(|&group| by.groups.contains(group));
        let caller = (by.user, by.group, by.privileges, groups.collect());
        self.callers.borrow_mut().push(caller);
    }

    fn disk(&self) -> RefMut<'_, FakeDisk> {
        let mut disk = self.disk.borrow_mut();
        if disk.inodes.is_empty() {
            for (index, (path, data)) in self.files.iter().enumerate() {
                let mode = if data.is_empty() {
                    0o040_755
                } else {
                    0o100_755
                };
                let (data, uid) = (data.clone(), 0);
                disk.inodes.push(FakeInode { data, mode, uid });
                disk.names.insert(path.clone(), index);
            }
        }
        disk
    }

    fn changing(&self) -> Result<RefMut<'_, FakeDisk>> {
        if self.read_only.get() {
            return Err(errno::EROFS.into());
        }
        Ok(self.disk())
    }

    fn find(&self, path: &[u8]) -> Result<usize> {
        self.disk()
            .names
            .get(trimmed(path))
            .copied()
            .ok_or_else(|| errno::ENOENT.into())
    }

    fn stat_of(&self, at: usize) -> Stat {
        let inode = self.disk().inodes[at].clone();
        let never = FileTime {
            seconds: 0,
            nanos: 0,
        };
        Stat {
            inode: at as u64 + 10,
            mode: inode.mode,
            links: 1,
            uid: inode.uid,
            gid: 0,
            size: inode.data.len() as u64,
            block_size: 4096,
            blocks: 8,
            accessed: never,
            modified: never,
            changed: never,
            device: 0,
        }
    }

    fn add(&self, by: Caller<'_>, path: &[u8], mode: u32) -> Result<usize> {
        if self.find(path).is_ok() {
            return Err(errno::EEXIST.into());
        }
        let mut disk = self.changing()?;
        let (data, uid) = (Vec::new(), by.user);
        disk.inodes.push(FakeInode { data, mode, uid });
        let at = disk.inodes.len() - 1;
        disk.names.insert(trimmed(path).to_vec(), at);
        Ok(at)
    }

    fn set(&self, at: usize, set: &Attributes) -> Result<()> {
        let inode = &mut self.changing()?.inodes[at];
        if set.which.contains(AttributeFlags::MODE) {
            inode.mode = inode.mode & !0o7777 | set.mode;
        }
        if set.which.contains(AttributeFlags::UID) {
            inode.uid = set.uid;
        }
        Ok(())
    }
}

fn trimmed(path: &[u8]) -> &[u8] {
    match path {
        [rest @ .., b'/'] if !rest.is_empty() => trimmed(rest),
        path => path,
    }
}

fn index(file: FileId) -> usize {
    usize::try_from(file.0 - 1).unwrap()
}

impl Files for FakeFiles {
    async fn open(
        &self,
        by: Caller<'_>,
        path: &[u8],
        flags: OpenFlags,
        mode: u32,
    ) -> Result<Opened> {
        self.note(by);
        self.asked.set(self.asked.get() + 1);
        if self.refuses.get() {
            return Err(errno::EACCES.into());
        }
        let at = match self.find(path) {
            Err(_) if flags.contains(OpenFlags::CREATE) => self.add(by, path, 0o100_000 | mode)?,
            Ok(_) if flags.contains(OpenFlags::CREATE | OpenFlags::EXCLUSIVE) => {
                return Err(errno::EEXIST.into());
            }
            found => found?,
        };
        if flags.contains(OpenFlags::WRITE) {
            let inode = &mut self.changing()?.inodes[at];
            if inode.mode & 0o170_000 == 0o040_000 {
                return Err(errno::EISDIR.into());
            }
            if flags.contains(OpenFlags::TRUNCATE) {
                inode.data.clear();
            }
        }
        self.open.set(self.open.get() + 1);
        Ok(Opened {
            file: FileId(at as u64 + 1),
            lease: self.generation(at),
            writes: self.gathers.get() && flags.contains(OpenFlags::GATHER),
            blocks: self.promised.get(),
            stat: self.stat_of(at),
        })
    }
    async fn write_lease(&self, file: FileId) -> Result<Leased> {
        self.write_asked.set(self.write_asked.get() + 1);
        let lease = match self.gathers.get() {
            true => self.generation(index(file)),
            false => 0,
        };
        let stat = self.stat_of(index(file));
        let blocks = self.promised.get();
        Ok(Leased {
            lease,
            blocks,
            stat,
        })
    }
    async fn flush(&self, request: &FlushRequest, bytes: &[u8]) -> Result<Flushed> {
        let at = index(request.file);
        if self.full.get() {
            return Err(errno::ENOSPC.into());
        }
        if !bytes.is_empty() && request.lease != self.generation(at) {
            return Err(errno::ESTALE.into());
        }
        self.flushes.set(self.flushes.get() + 1);
        self.put_pieces(at, bytes);
        let synced = self.syncs.get() + u64::from(request.durable);
        self.syncs.set(synced);
        let blocks = self.promised.get();
        Ok(Flushed { blocks })
    }
    async fn read(&self, file: FileId, offset: u64, into: &mut [u8]) -> Result<usize> {
        self.reads.set(self.reads.get() + 1);
        let content = &self.disk().inodes[index(file)].data;
        let rest = content
            .get(usize::try_from(offset).unwrap()..)
            .unwrap_or(&[]);
        // Fewer than asked for, as a peer may.
        let len = rest.len().min(into.len()).min(self.most);
        into[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
    async fn stat(&self, by: Caller<'_>, path: &[u8], _: bool) -> Result<Stat> {
        self.note(by);
        self.asked.set(self.asked.get() + 1);
        Ok(self.stat_of(self.find(path)?))
    }
    async fn stat_file(&self, file: FileId) -> Result<Stat> {
        self.file_asked.set(self.file_asked.get() + 1);
        Ok(self.stat_of(index(file)))
    }
    async fn lease(&self, file: FileId) -> Result<Leased> {
        if file == FileId::NAMES {
            return Ok(Leased {
                lease: self.names.get(),
                blocks: 0,
                stat: self.stat_of(0),
            });
        }
        self.file_asked.set(self.file_asked.get() + 1);
        Ok(Leased {
            lease: self.generation(index(file)),
            blocks: 0,
            stat: self.stat_of(index(file)),
        })
    }
    async fn getdents(&self, _: FileId, position: u64, into: &mut [u8]) -> Result<usize> {
        let mut writer = Writer::new(into);
        let names: Vec<_> = self.disk().names.keys().cloned().collect();
        for (at, path) in names
            .iter()
            .enumerate()
            .skip(usize::try_from(position).unwrap())
        {
            let name = path
                .rsplit(|&b| b == b'/')
                .next()
                .filter(|n| !n.is_empty())
                .unwrap_or(b".");
            Entry {
                inode: 1,
                next: at as u64 + 1,
                kind: 8,
                name,
            }
            .put(&mut writer)
            .unwrap();
        }
        Ok(writer.len())
    }
    async fn readlink(&self, by: Caller<'_>, path: &[u8], into: &mut [u8]) -> Result<usize> {
        self.note(by);
        self.asked.set(self.asked.get() + 1);
        let target = self.links.get(path).ok_or(errno::EINVAL)?;
        into[..target.len()].copy_from_slice(target);
        Ok(target.len())
    }
    async fn close(&self, _: FileId) -> Result<()> {
        self.open.set(self.open.get() - 1);
        Ok(())
    }
    async fn write(&self, file: FileId, offset: Option<u64>, bytes: &[u8]) -> Result<Written> {
        if self.full.get() {
            return Err(errno::ENOSPC.into());
        }
        self.writes.set(self.writes.get() + 1);
        let inode = &mut self.changing()?.inodes[index(file)];
        let at = offset.map_or(inode.data.len(), |at| usize::try_from(at).unwrap());
        inode.write(at, bytes);
        Ok(Written {
            offset: at as u64,
            len: u32::try_from(bytes.len()).unwrap(),
        })
    }
    async fn truncate(&self, file: FileId, size: u64) -> Result<()> {
        let inode = &mut self.changing()?.inodes[index(file)];
        inode.data.resize(usize::try_from(size).unwrap(), 0);
        Ok(())
    }
    async fn allocate(
        &self,
        file: FileId,
        flags: AllocateFlags,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        let inode = &mut self.changing()?.inodes[index(file)];
        let (from, end) = (
            usize::try_from(offset).unwrap(),
            usize::try_from(offset + len).unwrap(),
        );
        if flags.contains(AllocateFlags::PUNCH_HOLE) {
            let end = end.min(inode.data.len());
            inode.data[from.min(end)..end].fill(0);
        } else if flags.is_empty() {
            inode.data.resize(inode.data.len().max(end), 0);
        }
        Ok(())
    }
    async fn fsync(&self, _: FileId) -> Result<()> {
        self.syncs.set(self.syncs.get() + 1);
        Ok(())
    }
    async fn sync(&self) -> Result<()> {
        self.syncs.set(self.syncs.get() + 1);
        Ok(())
    }
    async fn make(&self, by: Caller<'_>, path: &[u8], mode: u32, _: u64) -> Result<()> {
        self.note(by);
        self.add(by, path, mode).map(drop)
    }
    async fn symlink(&self, by: Caller<'_>, path: &[u8], _: &[u8]) -> Result<()> {
        self.note(by);
        self.add(by, path, 0o120_777).map(drop)
    }
    async fn link(&self, by: Caller<'_>, old: &[u8], _: bool, new: &[u8]) -> Result<()> {
        self.note(by);
        let at = self.find(old)?;
        if self.find(new).is_ok() {
            return Err(errno::EEXIST.into());
        }
        self.changing()?.names.insert(new.to_vec(), at);
        Ok(())
    }
    async fn link_file(&self, _: Caller<'_>, file: FileId, new: &[u8]) -> Result<()> {
        self.changing()?.names.insert(new.to_vec(), index(file));
        Ok(())
    }
    async fn rename(&self, by: Caller<'_>, old: &[u8], new: &[u8], _: RenameFlags) -> Result<u64> {
        self.note(by);
        let mut disk = self.changing()?;
        let at = disk.names.remove(old).ok_or(errno::ENOENT)?;
        let had = disk.names.insert(new.to_vec(), at);
        Ok(had.map_or(0, |had| had as u64 + 10))
    }
    async fn remove(&self, by: Caller<'_>, path: &[u8], _: bool) -> Result<u64> {
        self.note(by);
        let at = self.changing()?.names.remove(path).ok_or(errno::ENOENT)?;
        Ok(at as u64 + 10)
    }
    async fn set_path(&self, by: Caller<'_>, path: &[u8], _: bool, set: &Attributes) -> Result<()> {
        self.note(by);
        self.set(self.find(path)?, set)
    }
    async fn set_file(&self, _: Caller<'_>, file: FileId, set: &Attributes) -> Result<()> {
        self.set(index(file), set)
    }
    async fn get_xattr(&self, by: Caller<'_>, _: FileId, name: XattrName<'_>) -> Result<Vec<u8>> {
        self.note(by);
        let value = self.xattrs.borrow().get(name.as_bytes()).cloned();
        value.ok_or_else(|| errno::ENODATA.into())
    }
    async fn list_xattrs(&self, _: Caller<'_>, _: FileId) -> Result<Vec<u8>> {
        let names = self.xattrs.borrow();
        Ok(names
            .keys()
            .flat_map(|name| [name, &[0][..]].concat())
            .collect())
    }
    async fn set_xattr(
        &self,
        _: Caller<'_>,
        _: FileId,
        name: XattrName<'_>,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        let mut xattrs = self.xattrs.borrow_mut();
        let there = xattrs.contains_key(name.as_bytes());
        if there && flags.contains(XattrFlags::CREATE) {
            return Err(errno::EEXIST.into());
        }
        xattrs.insert(name.as_bytes().to_vec(), value.to_vec());
        Ok(())
    }
    async fn remove_xattr(&self, _: Caller<'_>, _: FileId, name: XattrName<'_>) -> Result<()> {
        let removed = self.xattrs.borrow_mut().remove(name.as_bytes());
        removed.map(drop).ok_or_else(|| errno::ENODATA.into())
    }
    async fn statfs(&self) -> Result<Statfs> {
        Ok(Statfs {
            block_size: 4096,
            blocks: 1000,
            free: 500,
            available: 400,
            inodes: 100,
            free_inodes: 50,
            id: 7,
            read_only: self.read_only.get(),
        })
    }
}
