//! From a path as a program gives it to the path of a folder without symbolic links.

use alloc::vec;
use alloc::vec::Vec;

use messages::storage::PATH_MAX;

use crate::error::{Error, Result, errno};
use crate::platform::Files;
use crate::process::Node;
use crate::pseudo::Walked;
use crate::thread::Thread;

/// The most symbolic links on one way (Linux `MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// The same path without `.` and doubled slashes; None if it has a `..`, which only the file system
/// can follow.
pub(super) fn tidy(path: &[u8]) -> Option<Vec<u8>> {
    let mut tidied = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return None,
            part => {
                tidied.push(b'/');
                tidied.extend_from_slice(part);
            }
        }
    }
    Some(if tidied.is_empty() {
        b"/".to_vec()
    } else {
        tidied
    })
}

impl<N: Node> Thread<N> {
    /// Resolves an absolute path to one without `.`, `..` and symbolic links.
    pub(super) async fn real_path(&self, path: &[u8]) -> Result<Vec<u8>> {
        let parts = |path: &[u8]| -> Vec<Vec<u8>> {
            path.rsplit(|&b| b == b'/').map(<[u8]>::to_vec).collect()
        };
        let path = &match self.pseudo(path, true)? {
            Walked::Entry(_, path) => return Ok(path),
            Walked::Elsewhere(path) => path,
        };
        // What is this node's own has been looked for, and its links are not S's to follow.
        let tmpfs = self.node.kernel().tmpfs();
        if let Ok(Some(real)) = tmpfs.real_path(path, &self.creds()) {
            return Ok(real);
        }
        let (mut real, mut links) = (Vec::new(), 0);
        let mut target = vec![0; PATH_MAX];
        let by = self.asker();
        // The next part last.
        let mut rest = parts(path);
        while let Some(part) = rest.pop() {
            let parent = real.len();
            match &part[..] {
                b"" | b"." => continue,
                b".." => {
                    real.truncate(real.iter().rposition(|&b| b == b'/').unwrap_or(0));
                    continue;
                }
                part => {
                    real.push(b'/');
                    real.extend_from_slice(part);
                }
            }
            let files = self.node.files();
            let got = match files.readlink(by.caller(), &real, &mut target).await {
                Err(Error::Errno(errno::EINVAL)) => continue,
                got => got?.min(PATH_MAX),
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(errno::ELOOP.into());
            }
            let target = &target[..got];
            real.truncate(if target.starts_with(b"/") { 0 } else { parent });
            rest.extend(parts(target));
        }
        Ok(if real.is_empty() { b"/".to_vec() } else { real })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_tidied() {
        for (path, tidied) in [
            ("/", Some("/")),
            ("//a/./b//", Some("/a/b")),
            ("/a/../b", None),
        ] {
            assert_eq!(
                tidy(path.as_bytes()).as_deref(),
                tidied.map(str::as_bytes),
                "{path}"
            );
        }
    }
}
