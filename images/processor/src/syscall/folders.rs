//! The folders that paths begin at: the working folder, and the root (chroot).

use alloc::vec::Vec;

use super::Args;
use super::path::AT_FDCWD;
use super::walk::{ROOT, below};
use crate::creds::{CAP_SYS_CHROOT, EXECUTE};
use crate::error::{Result, errno};
use crate::process::Node;
use crate::thread::Thread;

const TYPE_MASK: u32 = 0o170_000;
const FOLDER: u32 = 0o040_000;
/// Begins the path of a folder that does not lie in the root (Linux `fs/d_path.c`, getcwd).
const UNREACHABLE: &[u8] = b"(unreachable)";

/// Returns a path of the root of all as who has another root sees it; `None` if it lies outside.
pub(crate) fn seen_from(root: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    match below(root, path)? {
        b"" => Some(ROOT.to_vec()),
        rest => Some(rest.to_vec()),
    }
}

impl<N: Node> Thread<N> {
    pub(super) async fn sys_getcwd(&self, [into, len, ..]: Args) -> Result<u64> {
        let (cwd, root) = (self.cwd(), self.root());
        let mut seen = seen_from(&root, &cwd).unwrap_or_else(|| [UNREACHABLE, &cwd].concat());
        seen.push(0);
        if (seen.len() as u64) > len {
            return Err(errno::ERANGE.into());
        }
        self.memory.write(into, &seen).await?;
        Ok(seen.len() as u64)
    }

    pub(super) async fn sys_chdir(&self, [addr, ..]: Args) -> Result<u64> {
        let folder = self.enterable(addr).await?;
        self.fs.lock().cwd = folder;
        Ok(0)
    }

    pub(super) async fn sys_fchdir(&self, [fd, ..]: Args) -> Result<u64> {
        let file = self.place(fd)?;
        if !file.is_folder() {
            return Err(errno::ENOTDIR.into());
        }
        self.check_rights(&self.status_of(&file).await?, EXECUTE)?;
        let path = self.real_path(&file.path).await?;
        self.fs.lock().cwd = path;
        Ok(0)
    }

    /// Lets absolute paths of the process begin at a folder. Its working folder and open folders
    /// stay where they are, as on Linux.
    pub(super) async fn sys_chroot(&self, [addr, ..]: Args) -> Result<u64> {
        let folder = self.enterable(addr).await?;
        if !self.creds().can(CAP_SYS_CHROOT) {
            return Err(errno::EPERM.into());
        }
        self.fs.lock().root = folder;
        Ok(0)
    }

    /// Returns the path without links of a folder that the thread may search.
    async fn enterable(&self, addr: u64) -> Result<Vec<u8>> {
        let path = self.path(AT_FDCWD, addr, true).await?;
        let stat = self.status_of_path(&path, true).await?;
        if stat.mode & TYPE_MASK != FOLDER {
            return Err(errno::ENOTDIR.into());
        }
        self.check_rights(&stat, EXECUTE)?;
        self.real_path(&path).await
    }
}
