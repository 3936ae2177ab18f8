//! inotify.

use super::{Args, int};
use crate::creds::READ;
use crate::error::{Result, errno};
use crate::files::{Kind, O_NONBLOCK, OpenFile};
use crate::inotify::{ALL_EVENTS, Inotify, MASK_ADD, MASK_CREATE};
use crate::process::Node;
use crate::thread::Thread;
use crate::tmpfs::{FOLDER, Found, TYPE_MASK, last_part};

const IN_CLOEXEC: u32 = 0o2_000_000;
const ONLYDIR: u32 = 0x0100_0000;
const DONT_FOLLOW: u32 = 0x0200_0000;
const EXCL_UNLINK: u32 = 0x0400_0000;
const ONESHOT: u32 = 0x8000_0000;

fn queue(file: &OpenFile) -> Result<&Inotify> {
    let found = match &file.kind {
        Kind::Object(object) => object.as_inotify(),
        _ => None,
    };
    found.ok_or_else(|| errno::EINVAL.into())
}

impl<N: Node> Thread<N> {
    pub(super) fn sys_inotify_init(&self, flags: u64) -> Result<u64> {
        let flags = int(flags);
        if flags & !(IN_CLOEXEC | O_NONBLOCK) != 0 {
            return Err(errno::EINVAL.into());
        }
        let object = Inotify::new(self.node.kernel().tmpfs().watches())?;
        self.add_object(object, flags & O_NONBLOCK, flags & IN_CLOEXEC != 0)
    }

    pub(super) async fn sys_inotify_add_watch(&self, [fd, path, mask, ..]: Args) -> Result<u64> {
        let mask = int(mask);
        let known =
            ALL_EVENTS | MASK_ADD | MASK_CREATE | ONLYDIR | DONT_FOLLOW | EXCL_UNLINK | ONESHOT;
        if mask & known == 0 || mask & MASK_ADD != 0 && mask & MASK_CREATE != 0 {
            return Err(errno::EINVAL.into());
        }
        let file = self.file(fd)?;
        let queue = queue(&file)?;
        let follow = mask & DONT_FOLLOW == 0;
        let stat = self.watched_status(path, follow).await?;
        if mask & ONLYDIR != 0 && stat.mode & TYPE_MASK != FOLDER {
            return Err(errno::ENOTDIR.into());
        }
        self.check_rights(&stat, READ)?;
        let watch = queue.watch(stat.inode, mask)?;
        Ok(u64::from(watch.cast_unsigned()))
    }

    async fn watched_status(&self, path: u64, follow: bool) -> Result<messages::storage::Stat> {
        let (path, found) = self.locate(super::path::AT_FDCWD, path, follow).await?;
        match found {
            Found::Here(inode) => self.node.kernel().tmpfs().stat(inode),
            Found::Missing(..) => Err(errno::ENOENT.into()),
            Found::Storage(_) => self.status_of_path(&path, follow).await,
        }
    }

    pub(super) fn sys_inotify_rm_watch(&self, [fd, watch, ..]: Args) -> Result<u64> {
        let file = self.file(fd)?;
        queue(&file)?.unwatch(int(watch).cast_signed())?;
        Ok(0)
    }

    /// Tells those who watch a file of this node's own, or its folder, what happened to it.
    pub(super) fn tell(&self, file: &OpenFile, mask: u32) {
        let tmpfs = self.node.kernel().tmpfs();
        if tmpfs.watches().any() {
            match &file.kind {
                Kind::Tmp(tmp) => tmpfs.happened(tmp.inode(), last_part(&file.path), mask),
                Kind::TmpFolder(inode) => tmpfs.happened(*inode, last_part(&file.path), mask),
                _ => {}
            }
        }
    }
}
