//! The names of open and mapped files in `/proc`: paths without symbolic links, and what has none.

use alloc::vec::Vec;

use super::folders::seen_from;
use super::path::{object_number, terminal_path};
use crate::error::{Error, Result, errno};
use crate::files::{Kind, OpenFile};
use crate::process::Node;
use crate::thread::Thread;
use crate::tmpfs::{Found, TYPE_MASK};

/// The end of the path shown for a file that has no name any more.
const DELETED: &[u8] = b" (deleted)";

impl<N: Node> Thread<N> {
    /// Returns what `/proc/self/fd` calls a file.
    pub(super) async fn name_of(&self, file: &OpenFile) -> Result<Vec<u8>> {
        match &file.kind {
            Kind::Object(object) if object.device() != 0 => Ok(terminal_path(object.device())),
            Kind::Object(object) if object.named().is_none() => {
                let kind: &[u8] = match object.mode() & TYPE_MASK {
                    0o010_000 => b"pipe",
                    0o140_000 => b"socket",
                    _ => return Ok(object.name().to_vec()),
                };
                let number = object_number(object);
                Ok([kind, b":[", alloc::format!("{number}").as_bytes(), b"]"].concat())
            }
            Kind::File(_) | Kind::Folder(_) | Kind::Tmp(_) | Kind::TmpFolder(_) => {
                // What never had a name is shown by one that says so.
                if file.path.ends_with(DELETED) {
                    return Ok(file.path.clone());
                }
                let mut name = self.shown_path(&file.path).await?;
                match self.status_of(file).await {
                    Ok(stat) if stat.links > 0 => {}
                    Ok(_) | Err(Error::Errno(_)) => name.extend_from_slice(DELETED),
                    Err(error) => return Err(error),
                }
                Ok(name)
            }
            _ => Ok(file.path.clone()),
        }
    }

    /// Returns the path that Linux shows for one that a file was opened by: without symbolic links,
    /// as far as it leads anywhere now, and from the thread's root if it lies in it.
    pub(crate) async fn shown_path(&self, path: &[u8]) -> Result<Vec<u8>> {
        let shown = self.path_now(path).await?;
        Ok(seen_from(&self.root(), &shown).unwrap_or(shown))
    }

    /// Returns a path without symbolic links, as far as it leads anywhere now.
    async fn path_now(&self, path: &[u8]) -> Result<Vec<u8>> {
        let split = path.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        let (folder, name) = path.split_at(split);
        let tmpfs = self.node.kernel().tmpfs();
        let missing = matches!(
            tmpfs.find(path, true, &self.creds()),
            Ok(Found::Missing(..))
        );
        if !missing {
            match self.real_path(path).await {
                Err(Error::Errno(errno::ENOENT)) => {}
                Err(Error::Errno(_)) => return Ok(path.to_vec()),
                real => return real,
            }
        }
        // The name has gone; its folder may be there.
        match self.real_path(folder).await {
            Ok(real) => Ok([real.strip_suffix(b"/").unwrap_or(&real), name].concat()),
            Err(Error::Errno(_)) => Ok(path.to_vec()),
            Err(error) => Err(error),
        }
    }
}
