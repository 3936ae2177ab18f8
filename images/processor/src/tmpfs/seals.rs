//! Files without a name (`memfd_create`, `O_TMPFILE`), and seals: changes that a file refuses for
//! ever.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use core::time::Duration;

use super::tree::{Body, Inode};
use super::watch::Named;
use super::{REGULAR, TmpFile, Tmpfs, time};
use crate::error::{Result, errno};
use crate::process::Node;

/// Seals (Linux `include/uapi/linux/fcntl.h`).
pub(crate) const SEAL_SEAL: u32 = 1;
pub(crate) const SEAL_SHRINK: u32 = 2;
pub(crate) const SEAL_GROW: u32 = 4;
pub(crate) const SEAL_WRITE: u32 = 8;
pub(crate) const SEAL_FUTURE_WRITE: u32 = 0x10;
pub(crate) const SEAL_EXEC: u32 = 0x20;
const ALL: u32 = 0x3f;

impl TmpFile {
    /// Returns the seals.
    pub(crate) fn seals(&self) -> u32 {
        self.seals.load(Ordering::Acquire)
    }

    /// Returns whether the file's seals forbid one of `of`.
    pub(crate) fn sealed(&self, of: u32) -> bool {
        self.seals() & of != 0
    }

    /// Checks a write that ends at `end`.
    ///
    /// # Errors
    ///
    /// EPERM if a seal forbids it.
    pub(super) fn may_write(&self, end: u64) -> Result<()> {
        let grows = end > self.size();
        if self.sealed(SEAL_WRITE | SEAL_FUTURE_WRITE) || grows && self.sealed(SEAL_GROW) {
            return Err(errno::EPERM.into());
        }
        Ok(())
    }

    /// Checks a new length.
    ///
    /// # Errors
    ///
    /// EPERM if a seal forbids it.
    pub(super) fn may_resize(&self, size: u64) -> Result<()> {
        let (grows, shrinks) = (size > self.size(), size < self.size());
        if grows && self.sealed(SEAL_GROW) || shrinks && self.sealed(SEAL_SHRINK) {
            return Err(errno::EPERM.into());
        }
        Ok(())
    }

    /// Sets the rights that a file without a name shows.
    pub(crate) fn set_mode(&self, mode: u32) {
        self.mode.store(REGULAR | mode & 0o7777, Ordering::Relaxed);
    }
}

impl<N: Node> Tmpfs<N> {
    /// Makes a file without a name.
    pub(crate) fn unnamed(&self, mode: u32, seals: u32) -> Arc<TmpFile> {
        let inode = self.tree.lock().new_inode();
        let file = TmpFile::new(inode, self.closing.clone());
        file.set_mode(mode);
        file.seals.store(seals, Ordering::Release);
        let now = self.space.node_time();
        file.modified.store(now, Ordering::Relaxed);
        Arc::new(file)
    }

    /// Gives a file that has no name one.
    pub(crate) fn adopt(
        &self,
        file: &Arc<TmpFile>,
        folder: u64,
        name: &[u8],
        now: Duration,
    ) -> Result<()> {
        let mut tree = self.tree.lock();
        if tree.folder(folder)?.contains_key(name) {
            return Err(errno::EEXIST.into());
        }
        let entry = || Inode {
            mode: file.mode.load(Ordering::Relaxed),
            uid: 0,
            gid: 0,
            links: 0,
            times: [time(now); 3],
            body: Body::File(file.clone()),
        };
        let there = tree.inodes.entry(file.inode()).or_insert_with(entry);
        // One that has names gets one more.
        there.links += u32::from(there.links > 0);
        tree.enter(folder, name, file.inode(), now)?;
        drop(tree);
        self.entered(file.inode(), &Named { folder, name }, true);
        Ok(())
    }

    /// Adds seals.
    ///
    /// # Errors
    ///
    /// EINVAL for unknown ones, EPERM if the file is sealed against it, EBUSY if it is to be sealed
    /// against writing while it is mapped.
    pub(crate) async fn add_seals(&self, file: &TmpFile, seals: u32) -> Result<()> {
        if seals & !ALL != 0 {
            return Err(errno::EINVAL.into());
        }
        let _pass = file.gate.pass().await;
        if file.sealed(SEAL_SEAL) {
            return Err(errno::EPERM.into());
        }
        if seals & SEAL_WRITE != 0 && file.is_mapped() {
            return Err(errno::EBUSY.into());
        }
        file.seals.fetch_or(seals, Ordering::AcqRel);
        Ok(())
    }
}
