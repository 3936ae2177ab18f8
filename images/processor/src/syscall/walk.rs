//! Walks of paths part by part: from a process's own root (chroot), and under restrictions
//! (`RESOLVE_*` of openat2).
//!
//! S and this node's own file systems follow links from the root of all. A way that may not leave
//! a folder is walked here instead, to a path without symbolic links, which the call takes then.
//! A rename at the same moment may lead a walk elsewhere. Linux: `fs/namei.c`,
//! `Documentation/filesystems/path-lookup.rst`.

use alloc::vec;
use alloc::vec::Vec;

use messages::storage::PATH_MAX;

use crate::creds::Creds;
use crate::error::{Error, Result, errno};
use crate::platform::Files;
use crate::process::Node;
use crate::pseudo::{Entry, Walked};
use crate::thread::Thread;
use crate::tmpfs::Found;

/// The most symbolic links on one way (Linux `MAXSYMLINKS`).
const MAX_LINKS: u32 = 40;
const TYPE_MASK: u32 = 0o170_000;
const LINK: u32 = 0o120_000;
const FOLDER: u32 = 0o040_000;

/// Restrictions (Linux `include/uapi/linux/openat2.h`).
pub(super) const NO_XDEV: u64 = 1;
pub(super) const NO_MAGICLINKS: u64 = 2;
pub(super) const NO_SYMLINKS: u64 = 4;
pub(super) const BENEATH: u64 = 8;
pub(super) const IN_ROOT: u64 = 16;

/// The root that is no other than that of all.
pub(crate) const ROOT: &[u8] = b"/";

/// Returns the place that a path's file system is mounted at.
fn mount_of(path: &[u8]) -> &'static [u8] {
    const MOUNTS: [&[u8]; 7] = [
        b"/dev/shm",
        b"/dev/pts",
        b"/proc",
        b"/sys",
        b"/dev",
        b"/tmp",
        b"/run",
    ];
    let holds = |mount: &&&[u8]| below(mount, path).is_some();
    MOUNTS.iter().find(holds).copied().unwrap_or(ROOT)
}

/// Returns what of a path comes after a folder's; `None` if it does not lie in it.
pub(crate) fn below<'a>(folder: &[u8], path: &'a [u8]) -> Option<&'a [u8]> {
    let folder = folder.strip_suffix(b"/").unwrap_or(folder);
    let rest = path.strip_prefix(folder)?;
    (rest.is_empty() || rest.starts_with(b"/")).then_some(rest)
}

/// Returns whether a path is a link of `/proc` that leads to an object and not to a name.
pub(super) fn is_magic(path: &[u8]) -> bool {
    let Some(rest) = path.strip_prefix(b"/proc/") else {
        return false;
    };
    let mut parts = rest.split(|&byte| byte == b'/').skip(1).peekable();
    if parts.next_if(|part| *part == b"task").is_some() {
        parts.next();
    }
    matches!(
        (parts.next(), parts.next()),
        (Some(b"exe" | b"cwd" | b"root"), None) | (Some(b"fd"), Some(_))
    )
}

/// A walk's rights, and the file systems that it sees.
pub(crate) struct Walker<'a, N: Node> {
    pub(crate) node: &'a N,
    pub(crate) creds: &'a Creds,
    /// The thread whose `/proc` is walked; without one there are S's disk and this node's files.
    pub(crate) thread: Option<&'a Thread<N>>,
}

/// A walk's beginning and its bounds.
pub(crate) struct Begin<'a> {
    /// The folder of a relative path.
    pub(crate) folder: &'a [u8],
    /// The folder that absolute paths begin at, and that `..` does not lead out of.
    pub(crate) root: &'a [u8],
    /// A link in the last place is followed.
    pub(crate) follow: bool,
    /// Restrictions.
    pub(crate) resolve: u64,
}

/// A way to a file.
struct Way<'a> {
    resolve: u64,
    root: &'a [u8],
    /// The path so far, without symbolic links.
    at: Vec<u8>,
    /// The parts to come, the next one last.
    rest: Vec<Vec<u8>>,
    links: u32,
}

impl Way<'_> {
    fn has(&self, restriction: u64) -> bool {
        self.resolve & restriction != 0
    }

    fn push(&mut self, path: &[u8]) {
        self.rest
            .extend(path.rsplit(|&byte| byte == b'/').map(<[u8]>::to_vec));
    }

    /// Goes to another place, which may be on another file system.
    fn go(&mut self, to: Vec<u8>) -> Result<()> {
        if self.has(NO_XDEV) && mount_of(&to) != mount_of(&self.at) {
            return Err(errno::EXDEV.into());
        }
        self.at = to;
        Ok(())
    }

    /// Goes to the folder above. Who began outside of the root goes on to that of all.
    fn ascend(&mut self) -> Result<()> {
        if self.at == self.root {
            return if self.has(BENEATH) {
                Err(errno::EXDEV.into())
            } else {
                Ok(())
            };
        }
        let end = self.at.iter().rposition(|&byte| byte == b'/');
        let above = &self.at[..end.unwrap_or(0)];
        let above = if above.is_empty() { ROOT } else { above };
        self.go(above.to_vec())
    }

    /// Returns the path of a name in the folder.
    fn below(&self, part: &[u8]) -> Vec<u8> {
        let separator: &[u8] = if self.at.ends_with(b"/") { b"" } else { b"/" };
        [&self.at, separator, part].concat()
    }

    /// Follows a link that was found in the folder.
    fn follow(&mut self, target: &[u8]) -> Result<()> {
        if target.starts_with(b"/") {
            if self.has(BENEATH) {
                return Err(errno::EXDEV.into());
            }
            self.go(self.root.to_vec())?;
        }
        self.push(target);
        Ok(())
    }
}

impl<N: Node> Walker<'_, N> {
    /// Walks a path; returns one without symbolic links, but for the last part if that is not
    /// followed. The last part may be missing; it keeps a slash, and `.` or `..`, that end it.
    ///
    /// # Errors
    ///
    /// Those of the way: ENOENT, ENOTDIR, EACCES, ELOOP; EXDEV where it leaves its bounds.
    pub(crate) async fn walk(&self, begin: Begin<'_>, path: &[u8]) -> Result<Vec<u8>> {
        let absolute = path.starts_with(b"/");
        if absolute && begin.resolve & BENEATH != 0 {
            return Err(errno::EXDEV.into());
        }
        let start = if absolute { begin.root } else { begin.folder };
        let mut way = Way {
            resolve: begin.resolve,
            root: begin.root,
            at: start.to_vec(),
            rest: Vec::new(),
            links: 0,
        };
        way.push(path);
        let mut dots: &[u8] = b"";
        while let Some(part) = way.rest.pop() {
            let ends = way.rest.iter().all(Vec::is_empty) && !begin.follow;
            match &part[..] {
                b"" => {}
                // Calls that name an entry tell these apart.
                b"." if ends => dots = b"/.",
                b".." if ends && way.at != way.root => dots = b"/..",
                b"." => {}
                b".." => way.ascend()?,
                part => {
                    let next = way.below(part);
                    let follow = begin.follow || !way.rest.is_empty();
                    if self.go_on_to(&mut way, next, follow).await? {
                        break;
                    }
                }
            }
        }
        way.at.extend_from_slice(dots);
        if path.ends_with(b"/") && !way.at.ends_with(b"/") {
            way.at.push(b'/');
        }
        Ok(way.at)
    }

    /// Goes on to `next`, or where it leads if it is a link that is followed; returns whether the
    /// way ends there.
    async fn go_on_to(&self, way: &mut Way<'_>, next: Vec<u8>, follow: bool) -> Result<bool> {
        let last = way.rest.iter().all(Vec::is_empty);
        let mode = match self.mode(&next).await {
            Ok(mode) => mode,
            // It may be made.
            Err(Error::Errno(errno::ENOENT)) if last => 0,
            Err(error) => return Err(error),
        };
        if mode & TYPE_MASK != LINK || !follow {
            if mode != 0 && mode & TYPE_MASK != FOLDER && !way.rest.is_empty() {
                return Err(errno::ENOTDIR.into());
            }
            way.go(next)?;
            return Ok(false);
        }
        way.links += 1;
        if way.has(NO_SYMLINKS) || way.links > MAX_LINKS {
            return Err(errno::ELOOP.into());
        }
        match self.thread.filter(|_| is_magic(&next)) {
            Some(thread) => Self::go_to_object(thread, way, next, last),
            None => {
                let target = self.target(&next).await?;
                way.follow(&target)?;
                Ok(false)
            }
        }
    }

    /// Goes where a link of `/proc` leads that stands for an object.
    fn go_to_object(
        thread: &Thread<N>,
        way: &mut Way<'_>,
        link: Vec<u8>,
        last: bool,
    ) -> Result<bool> {
        if way.has(NO_MAGICLINKS) {
            return Err(errno::ELOOP.into());
        }
        if way.has(BENEATH | IN_ROOT) {
            return Err(errno::EXDEV.into());
        }
        match thread.pseudo(&link, true)? {
            Walked::Entry(Entry::Open(_), _) if last => {
                way.at = link;
                return Ok(true);
            }
            Walked::Entry(Entry::Open(_), _) => return Err(errno::ENOTDIR.into()),
            Walked::Entry(_, path) | Walked::Elsewhere(path) => way.go(path)?,
        }
        Ok(false)
    }

    /// Returns the type and rights of what a path without links names.
    async fn mode(&self, path: &[u8]) -> Result<u32> {
        if let Some(thread) = self.thread {
            return Ok(thread.status_of_path(path, false).await?.mode);
        }
        let tmpfs = self.node.kernel().tmpfs();
        match tmpfs.find(path, false, self.creds)? {
            Found::Storage(path) => {
                let by = self.creds.asker();
                let stat = self.node.files().stat(by.caller(), &path, false).await?;
                Ok(stat.mode)
            }
            Found::Here(inode) => Ok(tmpfs.stat(inode)?.mode),
            Found::Missing(..) => Err(errno::ENOENT.into()),
        }
    }

    /// Returns a symbolic link's target.
    async fn target(&self, path: &[u8]) -> Result<Vec<u8>> {
        if let Some(thread) = self.thread {
            return thread.link_target(path).await;
        }
        let tmpfs = self.node.kernel().tmpfs();
        match tmpfs.find(path, false, self.creds)? {
            Found::Storage(path) => {
                let (by, files) = (self.creds.asker(), self.node.files());
                let mut target = vec![0; PATH_MAX];
                let got = files.readlink(by.caller(), &path, &mut target).await?;
                target.truncate(got);
                Ok(target)
            }
            Found::Here(inode) => tmpfs.target(inode),
            Found::Missing(..) => Err(errno::ENOENT.into()),
        }
    }
}

impl<N: Node> Thread<N> {
    /// Walks a path of the program's with the thread's own rights.
    pub(super) async fn walk(&self, begin: Begin<'_>, path: &[u8]) -> Result<Vec<u8>> {
        let creds = self.creds();
        let walker = Walker {
            node: self.node,
            creds: &creds,
            thread: Some(self),
        };
        walker.walk(begin, path).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_whole_parts() {
        for (path, mount) in [
            ("/", "/"),
            ("/tmpfile", "/"),
            ("/tmp", "/tmp"),
            ("/dev/null", "/dev"),
            ("/dev/shm/x", "/dev/shm"),
        ] {
            assert_eq!(mount_of(path.as_bytes()), mount.as_bytes(), "{path}");
        }
    }

    #[test]
    fn what_comes_after_a_folder() {
        for (folder, path, rest) in [
            ("/", "/a/b", Some("/a/b")),
            ("/a", "/a/b", Some("/b")),
            ("/a", "/a", Some("")),
            ("/a", "/ab", None),
            ("/a/b", "/a", None),
        ] {
            let found = below(folder.as_bytes(), path.as_bytes());
            assert_eq!(found, rest.map(str::as_bytes), "{folder} {path}");
        }
    }

    #[test]
    fn magic_links_lead_to_objects() {
        for (path, magic) in [
            ("/proc/self", false),
            ("/proc/1/fd", false),
            ("/proc/1/fd/3", true),
            ("/proc/1/task/2/exe", true),
            ("/proc/1/root", true),
            ("/proc/1/mounts", false),
            ("/sys/1/root", false),
        ] {
            assert_eq!(is_magic(path.as_bytes()), magic, "{path}");
        }
    }
}
