//! openat2: opening with restrictions of the way to the file (`RESOLVE_*`).

use alloc::vec;
use alloc::vec::Vec;

use messages::storage::PATH_MAX;

use super::Args;
use super::path::follows;
use super::walk::{BENEATH, Begin, IN_ROOT};
use crate::error::{Result, errno};
use crate::process::Node;
use crate::thread::Thread;

const O_CREAT: u64 = 0o100;
const O_TMPFILE: u64 = 0o20_200_000;

/// Restrictions beside those of [`super::walk`].
const CACHED: u64 = 32;
const ALL: u64 = 63;

impl<N: Node> Thread<N> {
    /// Opens a path as a structure says (`struct open_how`).
    pub(super) async fn sys_openat2(&self, [dir, addr, how, size, ..]: Args) -> Result<u64> {
        const KNOWN: usize = 24;
        /// All flags that Linux knows (`VALID_OPEN_FLAGS`).
        const VALID: u64 = 0o37_777_703;
        let size = usize::try_from(size).map_err(|_| errno::E2BIG)?;
        if size < KNOWN {
            return Err(errno::EINVAL.into());
        }
        if size > 4096 {
            return Err(errno::E2BIG.into());
        }
        let mut bytes = vec![0; size];
        self.memory.read(how, &mut bytes).await?;
        if bytes[KNOWN..].iter().any(|&byte| byte != 0) {
            return Err(errno::E2BIG.into());
        }
        let word = |at: usize| {
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight of 24 bytes"))
        };
        let (flags, mode, resolve) = (word(0), word(8), word(16));
        let makes = flags & O_CREAT != 0 || flags & O_TMPFILE == O_TMPFILE;
        let contradicts = resolve & !ALL != 0 || resolve & (BENEATH | IN_ROOT) == BENEATH | IN_ROOT;
        if flags & !VALID != 0 || contradicts || mode & !0o7777 != 0 || mode != 0 && !makes {
            return Err(errno::EINVAL.into());
        }
        if resolve & CACHED != 0 {
            // Whether S would have to be asked is not known before.
            return Err(errno::EAGAIN.into());
        }
        if resolve == 0 {
            return self.sys_open(dir, addr, flags, mode).await;
        }
        let path = self.memory.read_string(addr, PATH_MAX).await?;
        if path.is_empty() {
            return Err(errno::ENOENT.into());
        }
        let path = self.restricted(dir, &path, flags, resolve).await?;
        self.open_path(path, flags, mode).await
    }

    /// Walks a path under restrictions.
    async fn restricted(&self, dir: u64, path: &[u8], flags: u64, resolve: u64) -> Result<Vec<u8>> {
        let scoped = resolve & (BENEATH | IN_ROOT) != 0;
        let own_root = self.root();
        // The folder of an absolute path is not looked at unless the way may not leave it.
        let folder = if path.starts_with(b"/") && !scoped {
            own_root.clone()
        } else {
            self.folder(dir)?
        };
        let begin = Begin {
            folder: &folder,
            root: if scoped { &folder } else { &own_root },
            follow: follows(flags),
            resolve,
        };
        self.walk(begin, path).await
    }
}
