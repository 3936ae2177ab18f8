//! Events for the watches of files.

use super::{FOLDER, TYPE_MASK, Tmpfs, last_part};
use crate::inotify::{
    self, ATTRIB, CLOSE_NOWRITE, CLOSE_WRITE, CREATE, DELETE, DELETE_SELF, ISDIR, MOVE_SELF,
    MOVED_FROM, MOVED_TO,
};
use crate::kernel::Closed;
use crate::process::Node;

/// A name of something in a folder.
pub(super) struct Named<'a> {
    pub(super) folder: u64,
    pub(super) name: &'a [u8],
}

impl<N: Node> Tmpfs<N> {
    /// Returns the flag that events of a folder carry.
    fn dir_flag(&self, inode: u64) -> u32 {
        let tree = self.tree.lock();
        let folder = tree
            .inodes
            .get(&inode)
            .is_some_and(|there| there.mode & TYPE_MASK == FOLDER);
        if folder { ISDIR } else { 0 }
    }

    /// Tells what happened to a file that was opened by a path that ends in `name`: to those who
    /// watch its folder, and to those who watch it.
    pub(crate) fn happened(&self, inode: u64, name: &[u8], mask: u32) {
        if !self.watches.any() {
            return;
        }
        let mask = mask | self.dir_flag(inode);
        let mut folders = self.watches.inodes();
        {
            let tree = self.tree.lock();
            folders.retain(|&folder| {
                tree.folder(folder)
                    .is_ok_and(|names| names.get(name) == Some(&inode))
            });
        }
        for folder in folders {
            self.watches.tell(folder, mask, 0, name);
        }
        self.watches.tell(inode, mask, 0, &[]);
    }

    /// Reports a new name.
    pub(super) fn entered(&self, inode: u64, at: &Named<'_>, linked: bool) {
        if self.watches.any() {
            if linked {
                self.watches.tell(inode, ATTRIB, 0, &[]);
            }
            let flag = self.dir_flag(inode);
            self.watches.tell(at.folder, CREATE | flag, 0, at.name);
        }
    }

    /// Tells of a name that is no more; `gone` if it was the last.
    pub(super) fn left(&self, inode: u64, at: &Named<'_>, folder: bool, gone: bool) {
        if !self.watches.any() {
            return;
        }
        let flag = if folder { ISDIR } else { 0 };
        if !folder {
            self.watches.tell(inode, ATTRIB, 0, &[]);
        }
        if gone {
            self.watches.tell(inode, DELETE_SELF, 0, &[]);
        }
        self.watches.tell(at.folder, DELETE | flag, 0, at.name);
    }

    /// Tells of a name that became another; `replaced` is what had that.
    pub(super) fn moved(
        &self,
        inode: u64,
        from: &Named<'_>,
        to: &Named<'_>,
        replaced: Option<u64>,
    ) {
        if !self.watches.any() {
            return;
        }
        let flag = self.dir_flag(inode);
        let cookie = self.tree.lock().new_cookie();
        self.watches
            .tell(from.folder, MOVED_FROM | flag, cookie, from.name);
        self.watches
            .tell(to.folder, MOVED_TO | flag, cookie, to.name);
        if let Some(replaced) = replaced {
            self.watches.tell(replaced, ATTRIB, 0, &[]);
            if self.stat(replaced).is_err() {
                self.watches.tell(replaced, DELETE_SELF, 0, &[]);
            }
        }
        self.watches.tell(inode, MOVE_SELF, 0, &[]);
    }

    /// Reports the close of a file.
    pub(crate) fn was_closed(&self, closed: &Closed) {
        let mask = if closed.wrote {
            CLOSE_WRITE
        } else {
            CLOSE_NOWRITE
        };
        self.happened(closed.inode, last_part(&closed.path), mask);
    }

    /// Returns the watches.
    pub(crate) fn watches(&self) -> &alloc::sync::Arc<inotify::Watches> {
        &self.watches
    }
}
