//! Names and attributes for tasks.

use alloc::vec::Vec;

use crate::alloc_inodes::Fresh;
use crate::bytes::u32_at;
use crate::error::corrupt;
use crate::inode::{Clock, DIRECTORY, Inode, REGULAR, SYMLINK, TYPE_MASK};
use crate::names::{Contents, Place};
use crate::superblock::{FREE_INODES, free_blocks};
use crate::{DirEntry, Disk, Errno, Error, Ext4, Rename, Stat, Time};

/// Mode, owners and time of a new file, directory or node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewNode {
    /// Permissions, and for [`Ext4::mknod`] the type, as `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of creation.
    pub now: Time,
}

impl NewNode {
    fn fresh(&self, kind: u16) -> Fresh {
        Fresh {
            mode: self.mode & !TYPE_MASK | kind,
            uid: self.uid,
            gid: self.gid,
        }
    }
}

/// Attributes to be changed; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Permissions, without the type.
    pub permissions: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Time of the last access.
    pub accessed: Option<Time>,
    /// Time of the last change of contents.
    pub modified: Option<Time>,
}

/// Sizes of the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statfs {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks, without those of the file system's own tables before the first group's data.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks for users other than root.
    pub available: u64,
    /// Inodes.
    pub inodes: u32,
    /// Free inodes.
    pub free_inodes: u32,
    /// The file system's UUID.
    pub uuid: [u8; 16],
}

impl<D: Disk> Ext4<D> {
    /// Returns the inode that a name in a directory has.
    ///
    /// # Errors
    ///
    /// ENOENT, ENOTDIR, ENAMETOOLONG; else the disk's or the file system's failure, as of all
    /// operations.
    pub async fn lookup(&self, dir: u32, name: &[u8]) -> Result<u32, Error> {
        self.run(Time::default(), |op| {
            let dir = op.used_inode(dir)?;
            if name.len() > crate::NAME_MAX {
                return Err(Errno::ENAMETOOLONG.into());
            }
            Ok(op.find(&dir, name)?.ok_or(Errno::ENOENT)?.inode)
        })
        .await
    }

    /// Returns a file's attributes.
    ///
    /// # Errors
    ///
    /// As [`Self::lookup`].
    pub async fn stat(&self, inode: u32) -> Result<Stat, Error> {
        self.run(Time::default(), |op| {
            Ok(op.used_inode(inode)?.stat(op.geometry))
        })
        .await
    }

    /// Returns entries of a directory from `position` on, and the position to go on at; `None` at
    /// the end. An entry may be missed or returned twice if the directory grows meanwhile.
    ///
    /// # Errors
    ///
    /// ENOTDIR; else as [`Self::lookup`].
    pub async fn entries(
        &self,
        dir: u32,
        position: u64,
    ) -> Result<Option<(Vec<DirEntry>, u64)>, Error> {
        self.run(Time::default(), |op| {
            let dir = op.used_inode(dir)?;
            op.entries(&dir, position)
        })
        .await
    }

    /// Returns a symbolic link's target.
    ///
    /// # Errors
    ///
    /// EINVAL for another type of file.
    pub async fn read_link(&self, inode: u32) -> Result<Vec<u8>, Error> {
        self.run(Time::default(), |op| op.target(inode)).await
    }

    async fn make(
        &self,
        dir: u32,
        name: &[u8],
        new: NewNode,
        kind: u16,
        contents: Contents<'_>,
    ) -> Result<u32, Error> {
        let place = Place { dir, name };
        self.run(new.now, |op| op.create(place, new.fresh(kind), contents))
            .await
    }

    /// Makes an empty regular file; returns its inode.
    ///
    /// # Errors
    ///
    /// EEXIST, ENOENT (the directory was removed), ENOTDIR, ENAMETOOLONG, ENOSPC, EPERM, EROFS.
    pub async fn create(&self, dir: u32, name: &[u8], new: NewNode) -> Result<u32, Error> {
        self.make(dir, name, new, REGULAR, Contents::Empty).await
    }

    /// Makes a directory; returns its inode.
    ///
    /// # Errors
    ///
    /// As [`Self::create`]; EMLINK.
    pub async fn mkdir(&self, dir: u32, name: &[u8], new: NewNode) -> Result<u32, Error> {
        self.make(dir, name, new, DIRECTORY, Contents::Empty).await
    }

    /// Makes a symbolic link; returns its inode.
    ///
    /// # Errors
    ///
    /// As [`Self::create`].
    pub async fn symlink(
        &self,
        dir: u32,
        name: &[u8],
        target: &[u8],
        new: NewNode,
    ) -> Result<u32, Error> {
        self.make(dir, name, new, SYMLINK, Contents::Target(target))
            .await
    }

    /// Makes a device node, FIFO or socket of the type in `new.mode`; returns its inode. `device`
    /// is the node's number in the old and the new encoding.
    ///
    /// # Errors
    ///
    /// As [`Self::create`]; EINVAL for another type.
    pub async fn mknod(
        &self,
        dir: u32,
        name: &[u8],
        device: [u32; 2],
        new: NewNode,
    ) -> Result<u32, Error> {
        let kind = new.mode & TYPE_MASK;
        let contents = match kind {
            crate::inode::CHARACTER | crate::inode::BLOCK_DEVICE => Contents::Device(device),
            _ => Contents::Empty,
        };
        self.make(dir, name, new, kind, contents).await
    }

    /// Makes a regular file without a name, held open once; returns its inode.
    ///
    /// # Errors
    ///
    /// As [`Self::create`].
    pub async fn create_unnamed(&self, dir: u32, new: NewNode) -> Result<u32, Error> {
        let inode = self
            .run(new.now, |op| op.create_unnamed(dir, new.fresh(REGULAR)))
            .await?;
        *self.state.lock().holds.entry(inode).or_default() += 1;
        Ok(inode)
    }

    /// Gives a file another name.
    ///
    /// # Errors
    ///
    /// EPERM for a directory, EMLINK; else as [`Self::create`].
    pub async fn link(&self, inode: u32, dir: u32, name: &[u8], now: Time) -> Result<(), Error> {
        self.run(now, |op| op.link(inode, Place { dir, name }))
            .await
    }

    /// Removes a name of a file; the file is deleted with its last name once it is not open.
    ///
    /// # Errors
    ///
    /// ENOENT, ENOTDIR, EISDIR, EPERM, EROFS.
    pub async fn unlink(&self, dir: u32, name: &[u8], now: Time) -> Result<(), Error> {
        let (inode, last) = self.run(now, |op| op.unlink(Place { dir, name })).await?;
        if last {
            self.delete(inode, now).await
        } else {
            Ok(())
        }
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    ///
    /// ENOENT, ENOTDIR, ENOTEMPTY, EINVAL, EPERM, EROFS.
    pub async fn rmdir(&self, dir: u32, name: &[u8], now: Time) -> Result<(), Error> {
        let inode = self.run(now, |op| op.rmdir(Place { dir, name })).await?;
        self.delete(inode, now).await
    }

    /// Renames a file or directory, atomically.
    ///
    /// # Errors
    ///
    /// ENOENT, EEXIST, ENOTDIR, EISDIR, ENOTEMPTY, EINVAL (a directory into itself), ENOSPC,
    /// EMLINK, EPERM, EROFS.
    pub async fn rename(
        &self,
        from: (u32, &[u8]),
        to: (u32, &[u8]),
        how: Rename,
        now: Time,
    ) -> Result<(), Error> {
        let place = |(dir, name)| Place { dir, name };
        let gone = self
            .run(now, |op| op.rename(place(from), place(to), how))
            .await?;
        match gone {
            Some(inode) => self.delete(inode, now).await,
            None => Ok(()),
        }
    }

    /// Changes attributes.
    ///
    /// # Errors
    ///
    /// EPERM for an immutable file, EROFS.
    pub async fn set_attributes(
        &self,
        inode: u32,
        set: Attributes,
        now: Time,
    ) -> Result<(), Error> {
        self.change_attributes(inode, now, |_| Ok(set)).await
    }

    /// Changes attributes to what `decide` makes of those that the file has, in one step; `decide`
    /// may be called more than once.
    ///
    /// # Errors
    ///
    /// That of `decide`; else as [`Self::set_attributes`].
    pub async fn change_attributes(
        &self,
        inode: u32,
        now: Time,
        mut decide: impl FnMut(&Stat) -> Result<Attributes, Errno>,
    ) -> Result<(), Error> {
        self.run(now, |op| {
            let mut inode = op.used_inode(inode)?;
            if inode.is_restricted() {
                return Err(Errno::EPERM.into());
            }
            let set = decide(&inode.stat(op.geometry))?;
            apply(&mut inode, set);
            inode.set_time(Clock::Changed, now);
            op.put_inode(&inode)
        })
        .await
    }

    /// Returns sizes of the file system.
    ///
    /// # Errors
    ///
    /// The disk's failure.
    pub async fn statfs(&self) -> Result<Statfs, Error> {
        self.run(Time::default(), |op| {
            let g = op.geometry;
            let sb = op.superblock()?;
            let free = free_blocks(sb, g.wide);
            let free = free.saturating_sub(op.store.promises.unavailable());
            Ok(Statfs {
                block_size: u32::try_from(g.block_size).unwrap_or(u32::MAX),
                blocks: g.blocks - g.first_data_block,
                free,
                available: free.saturating_sub(g.reserved_blocks),
                inodes: g.inodes,
                free_inodes: u32_at(sb, FREE_INODES),
                uuid: g.uuid,
            })
        })
        .await
    }

    /// Holds an inode open: it is not deleted with its last name.
    ///
    /// # Errors
    ///
    /// ENOENT if it has no name any more and is not held.
    pub async fn hold(&self, inode: u32) -> Result<(), Error> {
        self.run(Time::default(), |op| {
            let links = op.used_inode(inode)?.links();
            if links == 0 && !op.held.contains_key(&inode) {
                return Err(Errno::ENOENT.into());
            }
            op.change.hold = Some(inode);
            Ok(())
        })
        .await
    }

    /// Finds a name in a directory and holds what it names open, in one step; returns its
    /// attributes.
    ///
    /// # Errors
    ///
    /// As [`Self::lookup`].
    pub async fn hold_named(&self, dir: u32, name: &[u8]) -> Result<Stat, Error> {
        self.run(Time::default(), |op| {
            let dir = op.used_inode(dir)?;
            if name.len() > crate::NAME_MAX {
                return Err(Errno::ENAMETOOLONG.into());
            }
            let found = op.find(&dir, name)?.ok_or(Errno::ENOENT)?;
            let inode = op.used_inode(found.inode)?;
            if inode.links() == 0 {
                return corrupt("inode of a name", found.inode.into());
            }
            op.change.hold = Some(inode.number);
            Ok(inode.stat(op.geometry))
        })
        .await
    }

    /// Ends a hold; a file without names goes with the last.
    ///
    /// # Errors
    ///
    /// The failure of the deletion.
    pub async fn release(&self, inode: u32, now: Time) -> Result<(), Error> {
        let may_be_nameless = {
            let mut state = self.state.lock();
            let count = state.holds.get(&inode).copied().unwrap_or_default();
            if count > 1 {
                state.holds.insert(inode, count - 1);
            } else {
                state.holds.remove(&inode);
            }
            // One without names is on the list of orphans.
            count == 1 && state.store.orphans.contains(&inode)
        };
        let nameless = may_be_nameless
            && self
                .run(now, |op| Ok(op.used_inode(inode)?.links() == 0))
                .await?;
        if nameless {
            self.delete(inode, now).await
        } else {
            Ok(())
        }
    }

    /// Deletes a file without names unless it is held open.
    async fn delete(&self, inode: u32, now: Time) -> Result<(), Error> {
        let _guard = self.locks.exclusive(inode).await;
        if self.state.lock().holds.contains_key(&inode) {
            return Ok(());
        }
        while !self.run(now, |op| op.shrink_orphan(inode)).await? {}
        Ok(())
    }
}

fn apply(inode: &mut Inode, set: Attributes) {
    if let Some(permissions) = set.permissions {
        let mode = inode.mode() & TYPE_MASK | permissions & !TYPE_MASK;
        inode.set_mode(mode);
    }
    let (uid, gid) = inode.owner();
    inode.set_owner(set.uid.unwrap_or(uid), set.gid.unwrap_or(gid));
    for (clock, time) in [
        (Clock::Accessed, set.accessed),
        (Clock::Modified, set.modified),
    ] {
        if let Some(time) = time {
            inode.set_time(clock, time);
        }
    }
}
