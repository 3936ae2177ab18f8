//! Inodes that are held open.
//!
//! Ending a hold may mean to delete a file, which the drop of a value can't wait for: the numbers
//! are kept until somebody calls [`Holds::release`].

use alloc::sync::Arc;
use alloc::vec::Vec;

use ext4::{Disk, Ext4, Time};
use spin::Mutex;

/// The holds that have ended but for their release.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holds(Arc<Mutex<Vec<u32>>>);

/// An inode that is held open until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    inode: u32,
    ended: Holds,
}

impl Holds {
    /// Takes over a hold that the file system counts already.
    pub(crate) fn take(&self, inode: u32) -> Held {
        let ended = self.clone();
        Held { inode, ended }
    }

    /// Releases what is not held any more; returns the first failure.
    pub(crate) async fn release<D: Disk>(
        &self,
        files: &Ext4<D>,
        now: Time,
    ) -> Result<(), ext4::Error> {
        let mut result = Ok(());
        while let Some(inode) = self.pop() {
            result = result.and(files.release(inode, now).await);
        }
        result
    }

    fn pop(&self) -> Option<u32> {
        self.0.lock().pop()
    }
}

impl Held {
    pub(crate) fn inode(&self) -> u32 {
        self.inode
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.ended.0.lock().push(self.inode);
    }
}
