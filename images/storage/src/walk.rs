//! From a path to what it names.
//!
//! Each directory on the way is held open until the walk is over, so that a number never means
//! another file by then.

use alloc::vec::Vec;

use ext4::{Disk, Ext4, NAME_MAX, ROOT, Stat};
use messages::Errno;
use messages::storage::{Caller, PATH_MAX};

use crate::Error;
use crate::convert::{DIRECTORY, SYMLINK, is};
use crate::held::{Held, Holds};
use crate::rights::{self, EXECUTE};

/// Symbolic links on the way of one path (Linux `MAXSYMLINKS`).
const MAX_SYMLINKS: usize = 40;

/// A file, directory or anything else that is there.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) held: Held,
    pub(crate) stat: Stat,
}

impl Node {
    pub(crate) fn is_dir(&self) -> bool {
        is(&self.stat, DIRECTORY)
    }

    pub(crate) fn is_symlink(&self) -> bool {
        is(&self.stat, SYMLINK)
    }
}

/// The end of a path.
#[derive(Debug)]
pub(crate) struct Found {
    /// The directory that has the last name; `None` if the path ends in `.` or `..` or is the root.
    pub(crate) dir: Option<Node>,
    /// The last component; empty for the root.
    pub(crate) name: Vec<u8>,
    /// The node of that name; `None` if there is none.
    pub(crate) node: Option<Node>,
    /// The path ends in a slash, which asks for a directory.
    pub(crate) slash: bool,
}

impl Found {
    /// Returns what the path names.
    ///
    /// # Errors
    ///
    /// ENOENT, or ENOTDIR for something else than a directory with a slash behind it.
    pub(crate) fn existing(self) -> Result<Node, Error> {
        let node = self.node.ok_or(Errno::ENOENT)?;
        if self.slash && !node.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        Ok(node)
    }
}

/// Walks paths of one file system in a caller's name.
pub(crate) struct Walker<'a, D: Disk> {
    pub(crate) files: &'a Ext4<D>,
    pub(crate) holds: &'a Holds,
    pub(crate) by: &'a Caller<'a>,
}

impl<D: Disk> Walker<'_, D> {
    async fn root(&self) -> Result<Node, Error> {
        self.files.hold(ROOT).await?;
        let held = self.holds.take(ROOT);
        let stat = self.files.stat(ROOT).await?;
        Ok(Node { held, stat })
    }

    /// Looks a name up and holds what it names.
    pub(crate) async fn step(&self, dir: &Node, name: &[u8]) -> Result<Node, Error> {
        let stat = self.files.hold_named(dir.held.inode(), name).await?;
        let held = self.holds.take(stat.inode);
        Ok(Node { held, stat })
    }

    /// Follows an absolute path, component by component; a symbolic link at the end is followed if
    /// `follow` or if a slash is behind it.
    ///
    /// # Errors
    ///
    /// ENOENT (only the last component may be missing), ENOTDIR, EACCES (a directory on the way may
    /// not be searched), ELOOP (more than 40 links), ENAMETOOLONG; else the disk's or the file
    /// system's failure.
    pub(crate) async fn find(&self, path: &[u8], follow: bool) -> Result<Found, Error> {
        if !path.starts_with(b"/") {
            return Err(Errno::ENOENT.into());
        }
        let mut left = path.to_vec();
        let mut parents: Vec<Node> = Vec::new();
        let mut here = self.root().await?;
        // The last component, if it is no name.
        let mut special: &[u8] = b"";
        let mut links = 0;
        while let Some((name, rest)) = split_component(&left) {
            if !here.is_dir() {
                return Err(Errno::ENOTDIR.into());
            }
            rights::check(self.by, &here.stat, EXECUTE)?;
            if name.len() > NAME_MAX {
                return Err(Errno::ENAMETOOLONG.into());
            }
            if name == b"." || name == b".." {
                special = if name == b"." { b"." } else { b".." };
                if name == b".." {
                    here = parents.pop().unwrap_or(here);
                }
                left = rest.to_vec();
                continue;
            }
            let last = rest.iter().all(|&byte| byte == b'/');
            let next = match self.step(&here, name).await {
                Err(Error::Errno(Errno::ENOENT)) if last => {
                    let (dir, name) = (Some(here), name.to_vec());
                    return Ok(Found {
                        dir,
                        name,
                        node: None,
                        slash: !rest.is_empty(),
                    });
                }
                next => next?,
            };
            if next.is_symlink() && (follow || !rest.is_empty()) {
                links += 1;
                if links > MAX_SYMLINKS {
                    return Err(Errno::ELOOP.into());
                }
                let target = self.files.read_link(next.held.inode()).await?;
                if target.starts_with(b"/") {
                    parents.clear();
                    here = self.root().await?;
                    special = b"";
                }
                left = splice(target, rest)?;
                continue;
            }
            if last {
                let (dir, name) = (Some(here), name.to_vec());
                return Ok(Found {
                    dir,
                    name,
                    node: Some(next),
                    slash: !rest.is_empty(),
                });
            }
            left = rest.to_vec();
            parents.push(core::mem::replace(&mut here, next));
        }
        let name = special.to_vec();
        Ok(Found {
            dir: None,
            name,
            node: Some(here),
            slash: path.ends_with(b"/"),
        })
    }

    /// Returns what a path names.
    ///
    /// # Errors
    ///
    /// As [`Self::find`]; ENOENT.
    pub(crate) async fn existing(&self, path: &[u8], follow: bool) -> Result<Node, Error> {
        self.find(path, follow).await?.existing()
    }
}

/// Returns the first component and what is behind it (which keeps its slashes); `None` at the end.
fn split_component(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = path.iter().position(|&byte| byte != b'/')?;
    let path = &path[start..];
    let end = path
        .iter()
        .position(|&byte| byte == b'/')
        .unwrap_or(path.len());
    Some((&path[..end], &path[end..]))
}

/// Puts a link's target in front of what is left of the path.
fn splice(mut target: Vec<u8>, rest: &[u8]) -> Result<Vec<u8>, Errno> {
    if target.len() + rest.len() > PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    target.extend_from_slice(rest);
    Ok(target)
}
