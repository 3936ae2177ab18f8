//! Requests that change files, names or attributes.

use alloc::vec;
use alloc::vec::Vec;

use ext4::{Allocation, Disk};
use messages::Errno;
use messages::storage::{
    AllocateFlags, AllocateRequest, Attributes, Caller, FileId, LinkFileRequest, LinkRequest,
    MakeRequest, PATH_MAX, Path, PathRequest, Privileges, RemoveRequest, RenameFlags,
    RenameRequest, SetFileRequest, SetPathRequest, TruncateRequest, WriteRequest, Written,
};

use crate::convert::{self, BLOCK_DEVICE, CHARACTER, DIRECTORY, REGULAR, TYPE_MASK};
use crate::rights::{self, WRITE};
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
    pub(crate) fn writable(
        &self,
        from: PeerKey,
        file: FileId,
    ) -> Result<alloc::sync::Arc<OpenFile>, Errno> {
        let file = self.file(from, file)?;
        if !file.writable {
            return Err(Errno::EBADF);
        }
        // Devices, sockets and named pipes have no data on a disk.
        if file.kind != REGULAR {
            return Err(Errno::EINVAL);
        }
        Ok(file)
    }

    /// Refuses a change of names on a read-only file system before the names are looked for, as
    /// Linux does.
    pub(crate) fn check_writable(&self) -> Result<(), Errno> {
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
        let _access = self.access(from, &[inode]).await;
        self.strip_set_ids(&file).await?;
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
        self.promise_after_write(from, inode).await;
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        Ok(Written { offset, len })
    }

    pub(crate) async fn truncate(&self, from: PeerKey, ask: &TruncateRequest) -> Result<(), Error> {
        let file = self.writable(from, ask.file)?;
        let _access = self.access(from, &[file.held.inode()]).await;
        self.strip_set_ids(&file).await?;
        Ok(self
            .files
            .truncate(file.held.inode(), ask.size, self.now())
            .await?)
    }

    pub(crate) async fn allocate(&self, from: PeerKey, ask: &AllocateRequest) -> Result<(), Error> {
        let file = self.writable(from, ask.file)?;
        let _access = self.access(from, &[file.held.inode()]).await;
        self.strip_set_ids(&file).await?;
        let how = if ask.flags.contains(AllocateFlags::PUNCH_HOLE) {
            Allocation::PunchHole
        } else if ask.flags.contains(AllocateFlags::KEEP_SIZE) {
            Allocation::KeepSize
        } else {
            Allocation::Extend
        };
        let inode = file.held.inode();
        // The peer forgets it too: a promise is for the tree that the file has.
        if let Some(leases) = &self.leases {
            let _door = leases.door(inode).await;
            self.end_promise(leases, inode);
        }
        Ok(self
            .files
            .fallocate(inode, how, ask.offset, ask.len, self.now())
            .await?)
    }

    pub(crate) async fn fsync(&self, from: PeerKey, file: FileId) -> Result<(), Error> {
        self.count(|counters| counters.handle_fsync += 1);
        let file = self.file(from, file)?;
        let _look = self.look(from, file.held.inode()).await;
        if let Some(errno) = file.failed.lock().take() {
            return Err(errno.into());
        }
        Ok(self.files.fsync(file.held.inode(), self.now()).await?)
    }

    pub(crate) async fn sync_all(&self) -> Result<(), Error> {
        self.count(|counters| counters.handle_fsync += 1);
        Ok(self.files.sync(self.now()).await?)
    }

    pub(crate) async fn make(&self, from: PeerKey, ask: &MakeRequest<'_>) -> Result<(), Error> {
        let by = &ask.caller;
        let found = self.walker(by).find(ask.path.as_bytes(), false).await?;
        let (dir, name) = free_place(&found)?;
        // Type and permissions have sixteen bits.
        let kind = u16::try_from(ask.mode & u32::from(TYPE_MASK)).unwrap_or(0);
        if found.slash && kind != DIRECTORY {
            return Err(Errno::ENOENT.into());
        }
        self.check_writable()?;
        rights::check_create(by, &dir.stat)?;
        let device = matches!(kind, CHARACTER | BLOCK_DEVICE);
        if device && !by.privileges.contains(Privileges::MKNOD) {
            return Err(Errno::EPERM.into());
        }
        let mut new = rights::new_node(by, &dir.stat, ask.mode, kind == DIRECTORY, self.now());
        let dir = dir.held.inode();
        let _access = self.access(from, &[]).await;
        if kind == DIRECTORY {
            self.files.mkdir(dir, name, new).await?;
            return Ok(());
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

    pub(crate) async fn symlink(
        &self,
        from: PeerKey,
        ask: &PathRequest<'_>,
        bulk: &mut dyn Bulk,
    ) -> Result<(), Error> {
        let (by, target) = (&ask.caller, bulk_path(bulk)?);
        let found = self.walker(by).find(ask.path.as_bytes(), false).await?;
        let (dir, name) = free_place(&found)?;
        if found.slash {
            return Err(Errno::ENOENT.into());
        }
        self.check_writable()?;
        rights::check_create(by, &dir.stat)?;
        let new = rights::new_node(by, &dir.stat, 0o777, false, self.now());
        let _access = self.access(from, &[]).await;
        self.files
            .symlink(dir.held.inode(), name, &target, new)
            .await?;
        Ok(())
    }

    pub(crate) async fn link(
        &self,
        from: PeerKey,
        ask: &LinkRequest<'_>,
        bulk: &mut dyn Bulk,
    ) -> Result<(), Error> {
        let new = bulk_path(bulk)?;
        let node = self
            .walker(&ask.caller)
            .existing(ask.path.as_bytes(), ask.follow)
            .await?;
        self.link_node(from, &ask.caller, node.held.inode(), &new)
            .await
    }

    pub(crate) async fn link_file(
        &self,
        from: PeerKey,
        ask: &LinkFileRequest<'_>,
        bulk: &mut dyn Bulk,
    ) -> Result<(), Error> {
        let new = bulk_path(bulk)?;
        let file = self.file(from, ask.file)?;
        self.link_node(from, &ask.caller, file.held.inode(), &new)
            .await
    }

    async fn link_node(
        &self,
        from: PeerKey,
        by: &Caller<'_>,
        inode: u32,
        new: &[u8],
    ) -> Result<(), Error> {
        let found = self.walker(by).find(new, false).await?;
        let (dir, name) = free_place(&found)?;
        if found.slash {
            return Err(Errno::ENOENT.into());
        }
        self.check_writable()?;
        rights::check_create(by, &dir.stat)?;
        let _access = self.access(from, &[inode]).await;
        Ok(self
            .files
            .link(inode, dir.held.inode(), name, self.now())
            .await?)
    }

    pub(crate) async fn rename(
        &self,
        peer: PeerKey,
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
        let by = &ask.caller;
        let from = self.walker(by).find(ask.path.as_bytes(), false).await?;
        let to = self.walker(by).find(&new, false).await?;
        let (Some(old_dir), Some(new_dir)) = (&from.dir, &to.dir) else {
            return Err(Errno::EBUSY.into());
        };
        self.check_writable()?;
        let moved = from.node.as_ref().ok_or(Errno::ENOENT)?;
        if (from.slash || to.slash) && !moved.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        check_rename(by, (old_dir, moved), (new_dir, to.node.as_ref()), how)?;
        let target = to.node.as_ref().map(|node| node.held.inode());
        let changed: Vec<u32> = target.into_iter().chain([moved.held.inode()]).collect();
        let _access = self.access(peer, &changed).await;
        let old = (old_dir.held.inode(), from.name.as_slice());
        let new = (new_dir.held.inode(), to.name.as_slice());
        self.files.rename(old, new, how, self.now()).await?;
        Ok(to.node.map_or(0, |node| node.stat.inode.into()))
    }

    pub(crate) async fn remove(
        &self,
        from: PeerKey,
        ask: &RemoveRequest<'_>,
    ) -> Result<u64, Error> {
        let by = &ask.caller;
        let found = self.walker(by).find(ask.path.as_bytes(), false).await?;
        let Some(dir) = &found.dir else {
            return Err(no_name(&found.name, ask.directory).into());
        };
        self.check_writable()?;
        let node = found.node.as_ref().ok_or(Errno::ENOENT)?;
        if found.slash && !node.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        rights::check_delete(by, &dir.stat, &node.stat)?;
        let _access = self.access(from, &[node.held.inode()]).await;
        let (dir, name) = (dir.held.inode(), found.name.as_slice());
        if ask.directory {
            self.files.rmdir(dir, name, self.now()).await?;
        } else {
            self.files.unlink(dir, name, self.now()).await?;
        }
        Ok(node.stat.inode.into())
    }

    pub(crate) async fn set_path(
        &self,
        from: PeerKey,
        ask: &SetPathRequest<'_>,
    ) -> Result<(), Error> {
        let node = self
            .walker(&ask.caller)
            .existing(ask.path.as_bytes(), ask.follow)
            .await?;
        self.set(from, &ask.caller, node.held.inode(), &ask.set)
            .await
    }

    pub(crate) async fn set_file(
        &self,
        from: PeerKey,
        ask: &SetFileRequest<'_>,
    ) -> Result<(), Error> {
        let file = self.file(from, ask.file)?;
        self.set(from, &ask.caller, file.held.inode(), &ask.set)
            .await
    }

    async fn set(
        &self,
        from: PeerKey,
        by: &Caller<'_>,
        inode: u32,
        set: &Attributes,
    ) -> Result<(), Error> {
        let _access = self.access(from, &[inode]).await;
        let decide =
            |stat: &ext4::Stat| rights::change(by, stat, set).map_err(|errno| ext4::Errno(errno.0));
        let changed = self.files.change_attributes(inode, self.now(), decide);
        Ok(changed.await?)
    }

    /// Takes set-user-id and set-group-id off a file that is about to be changed by who may not
    /// keep them (Linux `file_remove_privs`).
    pub(crate) async fn strip_set_ids(&self, file: &OpenFile) -> Result<(), Error> {
        if file.keeps_set_ids {
            return Ok(());
        }
        let inode = file.held.inode();
        let stripped = |stat: &ext4::Stat| rights::without_set_ids(stat, true);
        if stripped(&self.files.stat(inode).await?).is_none() {
            return Ok(());
        }
        let decide = |stat: &ext4::Stat| {
            Ok(ext4::Attributes {
                permissions: stripped(stat),
                ..ext4::Attributes::default()
            })
        };
        let changed = self.files.change_attributes(inode, self.now(), decide);
        Ok(changed.await?)
    }
}

/// Checks a rename as Linux's `vfs_rename` does.
fn check_rename(
    by: &Caller<'_>,
    (old_dir, moved): (&Node, &Node),
    (new_dir, target): (&Node, Option<&Node>),
    how: ext4::Rename,
) -> Result<(), Errno> {
    let exchange = how == ext4::Rename::Exchange;
    match (how, target) {
        (ext4::Rename::NoReplace, Some(_)) => return Err(Errno::EEXIST),
        (ext4::Rename::Exchange, None) => return Err(Errno::ENOENT),
        (_, Some(target)) if target.stat.inode == moved.stat.inode => return Ok(()),
        _ => {}
    }
    rights::check_delete(by, &old_dir.stat, &moved.stat)?;
    match target {
        Some(target) => rights::check_delete(by, &new_dir.stat, &target.stat)?,
        None => rights::check_create(by, &new_dir.stat)?,
    }
    if old_dir.stat.inode == new_dir.stat.inode {
        return Ok(());
    }
    // The `..` of a directory changes with its place.
    for dir in [Some(moved), target.filter(|_| exchange)]
        .into_iter()
        .flatten()
    {
        if dir.is_dir() {
            rights::check(by, &dir.stat, WRITE)?;
        }
    }
    Ok(())
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
