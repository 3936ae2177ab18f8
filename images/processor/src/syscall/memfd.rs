//! Files without a name: memfd_create, seals, O_TMPFILE.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{Args, int};
use crate::creds::{EXECUTE, WRITE};
use crate::error::{Result, errno};
use crate::files::{Kind, OpenFile};
use crate::platform::Platform;
use crate::process::Node;
use crate::thread::Thread;
use crate::tmpfs::{FOLDER, Found, SEAL_EXEC, SEAL_SEAL, TYPE_MASK, TmpFile};

const MFD_CLOEXEC: u32 = 1;
const MFD_ALLOW_SEALING: u32 = 2;
const MFD_NOEXEC_SEAL: u32 = 8;
const MFD_EXEC: u32 = 0x10;
/// The longest name: `NAME_MAX` less `memfd:`.
const NAME_MAX: usize = 249;
const O_EXCL: u64 = 0o200;
const O_ACCMODE: u64 = 3;
/// `O_LARGEFILE`, as `F_GETFL` shows it.
const LARGE: u32 = 0o100_000;

impl<N: Node> Thread<N> {
    pub(super) async fn sys_memfd_create(&self, [name, flags, ..]: Args) -> Result<u64> {
        let flags = int(flags);
        let both = MFD_EXEC | MFD_NOEXEC_SEAL;
        if flags & !(MFD_CLOEXEC | MFD_ALLOW_SEALING | both) != 0 || flags & both == both {
            return Err(errno::EINVAL.into());
        }
        let name = match self.memory.read_string(name, NAME_MAX).await {
            Err(crate::Error::Errno(errno::ENAMETOOLONG)) => return Err(errno::EINVAL.into()),
            name => name?,
        };
        let (mode, seals) = match flags & (MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL) {
            0 => (0o777, SEAL_SEAL),
            MFD_ALLOW_SEALING => (0o777, 0),
            _ => (0o666, SEAL_EXEC),
        };
        let file = self.node.kernel().tmpfs().unnamed(mode, seals);
        let path = [b"/memfd:", &name[..], b" (deleted)"].concat();
        let open = OpenFile::new(Kind::Tmp(file), path, LARGE | 2, None);
        self.table()
            .add(Arc::new(open), 0, flags & MFD_CLOEXEC != 0)
    }

    /// Makes a file without a name in a folder of this node's own (`O_TMPFILE`).
    pub(super) fn open_unnamed(&self, found: Found, flags: u64, mode: u64) -> Result<Kind> {
        let tmpfs = self.node.kernel().tmpfs();
        let folder = match found {
            Found::Here(folder) => folder,
            Found::Missing(..) => return Err(errno::ENOENT.into()),
            Found::Storage(_) => return Err(errno::EOPNOTSUPP.into()),
        };
        let stat = tmpfs.stat(folder)?;
        if stat.mode & TYPE_MASK != FOLDER {
            return Err(errno::ENOTDIR.into());
        }
        self.check_rights(&stat, WRITE | EXECUTE)?;
        if flags & O_ACCMODE == 0 {
            return Err(errno::EINVAL.into());
        }
        let mode = int(mode) & 0o7777 & !int(self.fs.lock().umask);
        let file = tmpfs.unnamed(mode, SEAL_SEAL);
        file.set_linkable(flags & O_EXCL == 0);
        Ok(Kind::Tmp(file))
    }

    /// Returns the file that a number, or the path of one in `/proc`, means to `linkat`.
    pub(super) fn unnamed_file(&self, dir: u64, path: &[u8]) -> Option<Arc<TmpFile>> {
        let fd = match path {
            b"" => dir,
            path => {
                let digits = path.strip_prefix(b"/proc/self/fd/")?;
                core::str::from_utf8(digits).ok()?.parse().ok()?
            }
        };
        match &self.file(fd).ok()?.kind {
            Kind::Tmp(file) => Some(file.clone()),
            _ => None,
        }
    }

    /// Gives an open file a name.
    pub(super) async fn link_file(&self, file: &Arc<TmpFile>, to_dir: u64, to: u64) -> Result<u64> {
        let (_, wanted) = self.locate(to_dir, to, false).await?;
        let (folder, name): (u64, Vec<u8>) = match wanted {
            Found::Missing(_, _, true) => return Err(errno::ENOENT.into()),
            Found::Missing(folder, name, false) => (folder, name),
            Found::Here(_) => return Err(errno::EEXIST.into()),
            Found::Storage(_) => return Err(errno::EXDEV.into()),
        };
        if !file.is_linkable() {
            return Err(errno::ENOENT.into());
        }
        let tmpfs = self.node.kernel().tmpfs();
        self.check_rights(&tmpfs.stat(folder)?, WRITE | EXECUTE)?;
        let now = self.node.platform().wall_clock();
        tmpfs.adopt(file, folder, &name, now)?;
        Ok(0)
    }

    pub(super) fn sys_get_seals(&self, file: &OpenFile) -> Result<u64> {
        match &file.kind {
            Kind::Tmp(tmp) => Ok(tmp.seals().into()),
            _ => Err(errno::EINVAL.into()),
        }
    }

    pub(super) async fn sys_add_seals(&self, file: &OpenFile, seals: u64) -> Result<u64> {
        let Kind::Tmp(tmp) = &file.kind else {
            return Err(errno::EINVAL.into());
        };
        if file.flags() & 3 == 0 {
            return Err(errno::EPERM.into());
        }
        self.node
            .kernel()
            .tmpfs()
            .add_seals(tmp, int(seals))
            .await?;
        Ok(0)
    }
}
