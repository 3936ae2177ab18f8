//! Requests that change files, names or attributes.

use alloc::vec;
use alloc::vec::Vec;

use ext4::{Allocation, Disk};
use messages::Errno;
use messages::storage::{
    AllocateFlags, AllocateRequest, AttributeFlags, Attributes, FileId, LinkRequest, MakeRequest,
    PATH_MAX, Path, RemoveRequest, RenameFlags, RenameRequest, SetFileRequest, SetPathRequest,
    TruncateRequest, WriteRequest, Written,
};

use crate::convert::{self, DIRECTORY, REGULAR, TYPE_MASK};
use crate::server::{OpenFile, PIECE};
use crate::walk::{Found, Node};
use crate::{Bulk, Error, PeerKey, Server};

/// Takes the call's bulk as a path.
fn bulk_path(bulk: &mut dyn Bulk) -> Result<Vec<u8>, Errno> {
    if bulk.len() > PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    let mut bytes = vec![0; bulk.len()];
    let got = bulk.read(0, &mut bytes);
    if got < bytes.len() {
        return Err(Errno::EIO);
    }
    Path::new(&bytes).map_err(|_| Errno::EPROTO)?;
    Ok(bytes)
}

/// Returns the directory and the name for something that is to be made.
fn free_place(found: &Found) -> Result<(&Node, &[u8]), Errno> {
    match (&found.dir, &found.node) {
        (Some(dir), None) => Ok((dir, &found.name)),
        _ => Err(Errno::EEXIST),
    }
}

impl<D: Disk> Server<D> {
    /// Returns an open file that may be written.
    fn writable(&self, from: PeerKey, file: FileId) -> Result<alloc::sync::Arc<OpenFile>, Errno> {
        let file = self.file(from, file)?;
        if file.writable {
            Ok(file)
        } else {
            Err(Errno::EBADF)
        }
    }

    /// Refuses a change of names on a read-only file system before the names are looked for, as
    /// Linux does.
    fn check_writable(&self) -> Result<(), Errno> {
        if self.files.is_read_only() {
            Err(Errno::EROFS)
        } else {
            Ok(())
        }
    }

    pub(crate) async fn write(
        &self,
        from: PeerKey,
        ask: &WriteRequest,
        bulk: &mut dyn Bulk,
    ) -> Result<Written, Error> {
        let file = self.writable(from, ask.file)?;
        let inode = file.held.inode();
        let mut bytes = vec![0; bulk.len().min(PIECE)];
        if bulk.read(0, &mut bytes) < bytes.len() {
            return Err(Errno::EIO.into());
        }
        let (offset, len) = if ask.append {
            self.files.append(inode, &bytes, self.now()).await?
        } else {
            let len = self
                .files
                .write(inode, ask.offset, &bytes, self.now())
                .await?;
            (ask.offset, len)
        };
        self.count(|counters| {
            counters.handle_write += 1;
            counters.nr_bytes_written += len as u64;
        });
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        Ok(Written { offset, len })
    }

    pub(crate) async fn truncate(&self, from: PeerKey, ask: &TruncateRequest) -> Result<(), Error> {
        let file = self.writable(from, ask.file)?;
        Ok(self
            .files
            .truncate(file.held.inode(), ask.size, self.now())
            .await?)
    }

    pub(crate) async fn allocate(&self, from: PeerKey, ask: &AllocateRequest) -> Result<(), Error> {
        let file = self.writable(from, ask.file)?;
        let how = if ask.flags.contains(AllocateFlags::PUNCH_HOLE) {
            Allocation::PunchHole
        } else if ask.flags.contains(AllocateFlags::KEEP_SIZE) {
            Allocation::KeepSize
        } else {
            Allocation::Extend
        };
        let inode = file.held.inode();
        Ok(self
            .files
            .fallocate(inode, how, ask.offset, ask.len, self.now())
            .await?)
    }

    pub(crate) async fn fsync(&self, from: PeerKey, file: FileId) -> Result<(), Error> {
        self.count(|counters| counters.handle_fsync += 1);
        let file = self.file(from, file)?;
        Ok(self.files.fsync(file.held.inode(), self.now()).await?)
    }

    pub(crate) async fn sync_all(&self) -> Result<(), Error> {
        self.count(|counters| counters.handle_fsync += 1);
        Ok(self.files.sync(self.now()).await?)
    }

    pub(crate) async fn make(&self, ask: &MakeRequest<'_>) -> Result<(), Error> {
        let found = self.walker().find(ask.path.as_bytes(), false).await?;
        let (dir, name) = free_place(&found)?;
        let dir = dir.held.inode();
        // Type and permissions have sixteen bits.
        let kind = u16::try_from(ask.mode & u32::from(TYPE_MASK)).unwrap_or(0);
        let mut new = self.new_node(ask.mode);
        if kind == DIRECTORY {
            self.files.mkdir(dir, name, new).await?;
            return Ok(());
        }
        if found.slash {
            return Err(Errno::ENOENT.into());
        }
        if kind == 0 || kind == REGULAR {
            self.files.create(dir, name, new).await?;
            return Ok(());
        }
        new.mode |= kind;
        let device = convert::device_words(ask.device).ok_or(Errno::EINVAL)?;
        self.files.mknod(dir, name, device, new).await?;
        Ok(())
    }

    pub(crate) async fn symlink(&self, path: Path<'_>, bulk: &mut dyn Bulk) -> Result<(), Error> {
        let target = bulk_path(bulk)?;
        let found = self.walker().find(path.as_bytes(), false).await?;
        let (dir, name) = free_place(&found)?;
        if found.slash {
            return Err(Errno::ENOENT.into());
        }
        let new = self.new_node(0o777);
        self.files
            .symlink(dir.held.inode(), name, &target, new)
            .await?;
        Ok(())
    }

    pub(crate) async fn link(
        &self,
        ask: &LinkRequest<'_>,
        bulk: &mut dyn Bulk,
    ) -> Result<(), Error> {
        let new = bulk_path(bulk)?;
        let node = self
            .walker()
            .existing(ask.path.as_bytes(), ask.follow)
            .await?;
        self.link_node(node.held.inode(), &new).await
    }

    pub(crate) async fn link_file(
        &self,
        from: PeerKey,
        file: FileId,
        bulk: &mut dyn Bulk,
    ) -> Result<(), Error> {
        let new = bulk_path(bulk)?;
        let file = self.file(from, file)?;
        self.link_node(file.held.inode(), &new).await
    }

    async fn link_node(&self, inode: u32, new: &[u8]) -> Result<(), Error> {
        let found = self.walker().find(new, false).await?;
        let (dir, name) = free_place(&found)?;
        if found.slash {
            return Err(Errno::ENOENT.into());
        }
        Ok(self
            .files
            .link(inode, dir.held.inode(), name, self.now())
            .await?)
    }

    pub(crate) async fn rename(
        &self,
        ask: &RenameRequest<'_>,
        bulk: &mut dyn Bulk,
    ) -> Result<u64, Error> {
        let new = bulk_path(bulk)?;
        let how = match ask.flags {
            flags if flags == RenameFlags::all() => return Err(Errno::EINVAL.into()),
            flags if flags.contains(RenameFlags::EXCHANGE) => ext4::Rename::Exchange,
            flags if flags.contains(RenameFlags::NO_REPLACE) => ext4::Rename::NoReplace,
            _ => ext4::Rename::Replace,
        };
        let from = self.walker().find(ask.path.as_bytes(), false).await?;
        let to = self.walker().find(&new, false).await?;
        let (Some(old_dir), Some(new_dir)) = (&from.dir, &to.dir) else {
            return Err(Errno::EBUSY.into());
        };
        self.check_writable()?;
        let moved = from.node.as_ref().ok_or(Errno::ENOENT)?;
        if (from.slash || to.slash) && !moved.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        let old = (old_dir.held.inode(), from.name.as_slice());
        let new = (new_dir.held.inode(), to.name.as_slice());
        self.files.rename(old, new, how, self.now()).await?;
        Ok(to.node.map_or(0, |node| node.stat.inode.into()))
    }

    pub(crate) async fn remove(&self, ask: &RemoveRequest<'_>) -> Result<u64, Error> {
        let found = self.walker().find(ask.path.as_bytes(), false).await?;
        let Some(dir) = &found.dir else {
            return Err(no_name(&found.name, ask.directory).into());
        };
        self.check_writable()?;
        let node = found.node.as_ref().ok_or(Errno::ENOENT)?;
        if found.slash && !node.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        let (dir, name) = (dir.held.inode(), found.name.as_slice());
        if ask.directory {
            self.files.rmdir(dir, name, self.now()).await?;
        } else {
            self.files.unlink(dir, name, self.now()).await?;
        }
        Ok(node.stat.inode.into())
    }

    pub(crate) async fn set_path(&self, ask: &SetPathRequest<'_>) -> Result<(), Error> {
        let node = self
            .walker()
            .existing(ask.path.as_bytes(), ask.follow)
            .await?;
        self.set(node.held.inode(), &ask.set).await
    }

    pub(crate) async fn set_file(&self, from: PeerKey, ask: &SetFileRequest) -> Result<(), Error> {
        let file = self.file(from, ask.file)?;
        self.set(file.held.inode(), &ask.set).await
    }

    async fn set(&self, inode: u32, set: &Attributes) -> Result<(), Error> {
        let has = |flag| set.which.contains(flag);
        let set = ext4::Attributes {
            permissions: has(AttributeFlags::MODE)
                .then(|| u16::try_from(set.mode & 0o7777).unwrap_or(0)),
            uid: has(AttributeFlags::UID).then_some(set.uid),
            gid: has(AttributeFlags::GID).then_some(set.gid),
            accessed: has(AttributeFlags::ACCESSED).then(|| convert::file_time(set.accessed)),
            modified: has(AttributeFlags::MODIFIED).then(|| convert::file_time(set.modified)),
        };
        Ok(self.files.set_attributes(inode, set, self.now()).await?)
    }
}

/// Returns the error of removing what is no name: the root, `.` or `..`.
fn no_name(name: &[u8], directory: bool) -> Errno {
    match name {
        _ if !directory => Errno::EISDIR,
        b"." => Errno::EINVAL,
        b".." => Errno::ENOTEMPTY,
        _ => Errno::EBUSY,
    }
}
