//! openat2: opening with restrictions of the way to the file (`RESOLVE_*`).
//!
//! A restricted way is walked here, part by part, to a path without symbolic links, which is opened
//! then. Linux: `fs/namei.c`, `Documentation/filesystems/path-lookup.rst`.

use alloc::vec;
use alloc::vec::Vec;

use messages::storage::PATH_MAX;

use super::Args;
use super::path::AT_FDCWD;
use crate::error::{Error, Result, errno};
use crate::process::Node;
use crate::pseudo::{Entry, Walked};
use crate::thread::Thread;

const O_CREAT: u64 = 0o100;
const O_EXCL: u64 = 0o200;
const O_NOFOLLOW: u64 = 0o400_000;
const O_TMPFILE: u64 = 0o20_200_000;
/// The most symbolic links on one way (Linux `MAXSYMLINKS`).
const MAX_LINKS: u32 = 40;
/// `S_IFLNK`, without the twelve bits of rights.
const LINK: u32 = 0o12;

/// Restrictions (Linux `include/uapi/linux/openat2.h`).
const NO_XDEV: u64 = 1;
const NO_MAGICLINKS: u64 = 2;
const NO_SYMLINKS: u64 = 4;
const BENEATH: u64 = 8;
const IN_ROOT: u64 = 16;
const CACHED: u64 = 32;
const ALL: u64 = 63;

/// A way to a file under restrictions.
struct Way {
    resolve: u64,
    /// The folder that the way may not leave.
    root: Vec<u8>,
    /// The path so far, without symbolic links.
    at: Vec<u8>,
    /// The parts to come, the next one last.
    rest: Vec<Vec<u8>>,
    links: u32,
}

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
    let holds = |mount: &&&[u8]| {
        let rest = path.strip_prefix(**mount);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    };
    MOUNTS.iter().find(holds).copied().unwrap_or(b"/")
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

impl Way {
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

    /// Goes to the folder above.
    fn ascend(&mut self) -> Result<()> {
        if self.has(BENEATH | IN_ROOT) && self.at == self.root {
            return if self.has(BENEATH) {
                Err(errno::EXDEV.into())
            } else {
                Ok(())
            };
        }
        let end = self.at.iter().rposition(|&byte| byte == b'/');
        let above = &self.at[..end.unwrap_or(0)];
        let above = if above.is_empty() { b"/" } else { above };
        self.go(above.to_vec())
    }

    /// Returns the path of a name in the folder.
    fn below(&self, part: &[u8]) -> Vec<u8> {
        let separator: &[u8] = if self.at.ends_with(b"/") { b"" } else { b"/" };
        [&self.at, separator, part].concat()
    }

    /// Goes where an absolute path begins.
    fn begin(&mut self) -> Result<()> {
        match () {
            () if self.has(BENEATH) => Err(errno::EXDEV.into()),
            () if self.has(IN_ROOT) => self.go(self.root.clone()),
            () => self.go(b"/".to_vec()),
        }
    }

    /// Follows a link that was found in the folder.
    fn follow(&mut self, target: &[u8]) -> Result<()> {
        if target.starts_with(b"/") {
            self.begin()?;
        }
        self.push(target);
        Ok(())
    }
}

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

    /// Returns the place that a restricted way begins at.
    fn beginning(&self, dir: u64) -> Result<Vec<u8>> {
        if dir & 0xffff_ffff == AT_FDCWD & 0xffff_ffff {
            return Ok(self.cwd());
        }
        let file = self.place(dir)?;
        if !file.is_folder() {
            return Err(errno::ENOTDIR.into());
        }
        Ok(file.path.clone())
    }

    /// Walks a path under restrictions; returns one without symbolic links, but for the last part
    /// if that is not followed.
    async fn restricted(&self, dir: u64, path: &[u8], flags: u64, resolve: u64) -> Result<Vec<u8>> {
        let follows = flags & O_NOFOLLOW == 0 && flags & (O_CREAT | O_EXCL) != O_CREAT | O_EXCL;
        let absolute = path.starts_with(b"/");
        let scoped = resolve & (BENEATH | IN_ROOT) != 0;
        // The folder of an absolute path is not looked at unless the way may not leave it.
        let root = if absolute && !scoped {
            b"/".to_vec()
        } else {
            self.beginning(dir)?
        };
        if absolute && resolve & BENEATH != 0 {
            return Err(errno::EXDEV.into());
        }
        let mut way = Way {
            resolve,
            at: root.clone(),
            root,
            rest: Vec::new(),
            links: 0,
        };
        way.push(path);
        while let Some(part) = way.rest.pop() {
            match &part[..] {
                b"" | b"." => {}
                b".." => way.ascend()?,
                part => {
                    let next = way.below(part);
                    let last = way.rest.iter().all(Vec::is_empty);
                    let plain_last = last && way.rest.is_empty();
                    if self
                        .go_on_to(&mut way, next, last, follows || !plain_last)
                        .await?
                    {
                        break;
                    }
                }
            }
        }
        if path.ends_with(b"/") && !way.at.ends_with(b"/") {
            way.at.push(b'/');
        }
        Ok(way.at)
    }

    /// Goes on to `next`, or where it leads if it is a link that is followed; returns whether the
    /// way ends there.
    async fn go_on_to(
        &self,
        way: &mut Way,
        next: Vec<u8>,
        last: bool,
        follows: bool,
    ) -> Result<bool> {
        let mode = match self.status_of_path(&next, false).await {
            Ok(stat) => stat.mode,
            // It may be made.
            Err(Error::Errno(errno::ENOENT)) if last => 0,
            Err(error) => return Err(error),
        };
        if mode >> 12 != LINK || !follows {
            way.go(next)?;
            return Ok(false);
        }
        way.links += 1;
        if way.has(NO_SYMLINKS) || way.links > MAX_LINKS {
            return Err(errno::ELOOP.into());
        }
        if !is_magic(&next) {
            let target = self.link_target(&next).await?;
            way.follow(&target)?;
            return Ok(false);
        }
        if way.has(NO_MAGICLINKS) {
            return Err(errno::ELOOP.into());
        }
        if way.has(BENEATH | IN_ROOT) {
            return Err(errno::EXDEV.into());
        }
        match self.pseudo(&next, true)? {
            Walked::Entry(Entry::Open(_), _) if last => {
                way.at = next;
                return Ok(true);
            }
            Walked::Entry(Entry::Open(_), _) => return Err(errno::ENOTDIR.into()),
            Walked::Entry(_, path) | Walked::Elsewhere(path) => way.go(path)?,
        }
        Ok(false)
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
