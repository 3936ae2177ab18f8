//! File systems without data of their own: `/proc`, `/sys` and `/dev`.
//!
//! A path is walked by [`Thread::pseudo`]: to an [`Entry`], or to a path elsewhere, as links lead
//! to the files of S and of this node. The text of a file is made when it is opened, and is what it
//! was then.

mod machine;
mod process;
mod sys;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use messages::storage::{FileTime, Stat};

use crate::device::Device;
use crate::error::{Result, errno};
use crate::files::OpenFile;
use crate::platform::Platform;
use crate::process::{Node, Process};
use crate::thread::{Shared, Thread};

/// Links that are followed on one way (Linux `MAXSYMLINKS`).
const MAX_LINKS: usize = 40;
/// Inodes of these file systems begin here, each with the numbers that a hash of the path gives.
pub(crate) const FIRST_INODE: u64 = 1 << 41;

const FOLDER: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// A name in a folder, and its type.
pub(crate) type Name = (Vec<u8>, u32);

/// The place that a path leads to.
pub(crate) enum Entry<N: Node> {
    /// A folder with these names.
    Folder(Vec<Name>),
    /// A file.
    Text(Text<N>),
    /// A symbolic link that is not followed.
    Link(Vec<u8>),
    /// The open file that a number stands for.
    Open(Arc<OpenFile>),
    /// A device.
    Device(Device),
}

/// A file, by its contents.
pub(crate) enum Text<N: Node> {
    /// The same always.
    Constant(&'static [u8]),
    /// Content that was made when the file was opened.
    Made(Vec<u8>),
    /// Something of the machine.
    Machine(machine::Kind),
    /// Something of a process, seen by one of its threads.
    Process(Arc<Process<N>>, Arc<Shared>, process::Kind),
}

/// The settings that writing to such a file changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sink {
    /// Nothing can be written.
    Nothing,
    /// The name of the thread.
    Name,
    /// Taken and forgotten.
    Void,
}

/// A file that was opened: its text, and what writing does.
pub(crate) struct OpenText {
    pub(crate) bytes: Vec<u8>,
    pub(crate) sink: Sink,
    pub(crate) stat: Stat,
}

impl fmt::Debug for OpenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenText")
            .field("sink", &self.sink)
            .finish_non_exhaustive()
    }
}

/// The outcome of a walk.
pub(crate) enum Walked<N: Node> {
    /// An entry, and its path.
    Entry(Entry<N>, Vec<u8>),
    /// Another file system has it, under this path.
    Elsewhere(Vec<u8>),
}

/// One step of a walk.
enum Step<N: Node> {
    Entry(Entry<N>),
    /// A link to an absolute path, or one beside the link; `rest` parts of the path follow it.
    Link(Vec<u8>, usize),
}

impl<N: Node> Step<N> {
    fn constant(bytes: &'static [u8]) -> Result<Self> {
        Ok(Self::Entry(Entry::Text(Text::Constant(bytes))))
    }

    fn folder<T: AsRef<[u8]>>(folders: &[T], files: &[T]) -> Result<Self> {
        let name = |kind: u32| move |name: &T| (name.as_ref().to_vec(), kind);
        let names = folders
            .iter()
            .map(name(FOLDER))
            .chain(files.iter().map(name(REGULAR)));
        Ok(Self::Entry(Entry::Folder(names.collect())))
    }
}

fn missing<T>() -> Result<T> {
    Err(errno::ENOENT.into())
}

/// Returns a path's parts without `.`; `..` takes the part before it away.
fn parts(path: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts
}

/// Returns whether a path's first part names one of these file systems.
fn begins_here(path: &[u8]) -> bool {
    let first = path.split(|&b| b == b'/').find(|part| !part.is_empty());
    first.is_some_and(|first| [&b"proc"[..], b"sys", b"dev"].contains(&first))
}

fn join<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut path = Vec::new();
    for part in parts {
        path.push(b'/');
        path.extend_from_slice(part);
    }
    if path.is_empty() { b"/".to_vec() } else { path }
}

/// Reads a decimal number without sign or leading zero.
fn number(part: &[u8]) -> Option<u32> {
    let text = core::str::from_utf8(part).ok()?;
    text.parse()
        .ok()
        .filter(|_| !text.starts_with(['0', '+']) || text == "0")
}

/// Returns an inode number for a path: these file systems keep none.
pub(crate) fn inode_of(path: &[u8]) -> u64 {
    // FNV-1a.
    let hash = path.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    FIRST_INODE | hash & (FIRST_INODE - 1)
}

impl<N: Node> Thread<N> {
    /// Walks a path as far as these file systems have it; a link at its end is followed if
    /// `follow`.
    ///
    /// # Errors
    ///
    /// ENOENT, ENOTDIR, ELOOP as Linux has them.
    pub(crate) fn pseudo(&self, path: &[u8], follow: bool) -> Result<Walked<N>> {
        let mut path = path.to_vec();
        // The name of a folder's own entry is never that of a link.
        let follow = follow || path.ends_with(b"/.") || path.ends_with(b"/..");
        for _ in 0..MAX_LINKS {
            let walked = parts(&path);
            let step = match walked.split_first() {
                Some((&b"proc", rest)) => self.proc(rest)?,
                Some((&b"sys", rest)) => self.sys(rest)?,
                Some((&b"dev", rest)) => match self.dev(rest)? {
                    Some(step) => step,
                    None => return Ok(Walked::Elsewhere(path)),
                },
                // A way out of these file systems is walked here: S's disk may not have their
                // folders.
                _ if path.windows(3).any(|three| three == b"/..") && begins_here(&path) => {
                    return Ok(Walked::Elsewhere(join(walked)));
                }
                _ => return Ok(Walked::Elsewhere(path)),
            };
            match step {
                Step::Entry(entry) => {
                    if path.ends_with(b"/") && !matches!(entry, Entry::Folder(_)) {
                        return Err(errno::ENOTDIR.into());
                    }
                    let path = join(walked);
                    return Ok(Walked::Entry(entry, path));
                }
                Step::Link(target, rest) => {
                    if rest == 0 && !follow && !path.ends_with(b"/") {
                        let path = join(walked);
                        return Ok(Walked::Entry(Entry::Link(target), path));
                    }
                    let (before, after) = walked.split_at(walked.len() - rest);
                    let mut next = Vec::new();
                    if !target.starts_with(b"/") {
                        next = join(before[..before.len() - 1].iter().copied());
                        next.push(b'/');
                    }
                    next.extend_from_slice(&target);
                    if !after.is_empty() {
                        next.extend(join(after.iter().copied()));
                    }
                    path = next;
                }
            }
        }
        Err(errno::ELOOP.into())
    }

    /// Walks `/dev`; `None` for what other file systems have.
    fn dev(&self, parts: &[&[u8]]) -> Result<Option<Step<N>>> {
        let link = |target: &[u8]| Ok(Some(Step::Link(target.to_vec(), parts.len() - 1)));
        match parts {
            [] => {
                let mut names: Vec<Name> = Device::ALL
                    .iter()
                    .map(|(name, _)| (name.to_vec(), CHARACTER))
                    .collect();
                names.push((b"shm".to_vec(), FOLDER));
                names.push((b"pts".to_vec(), FOLDER));
                let links: [&[u8]; 4] = [b"fd", b"stdin", b"stdout", b"stderr"];
                names.extend(links.map(|name| (name.to_vec(), LINK)));
                Ok(Some(Step::Entry(Entry::Folder(names))))
            }
            [b"fd", ..] => link(b"/proc/self/fd"),
            [b"stdin", ..] => link(b"/proc/self/fd/0"),
            [b"stdout", ..] => link(b"/proc/self/fd/1"),
            [b"stderr", ..] => link(b"/proc/self/fd/2"),
            [b"shm", ..] => Ok(None),
            [b"pts", rest @ ..] => self.dev_pts(rest).map(Some),
            [name, rest @ ..] => match Device::of_name(name) {
                Some(_) if !rest.is_empty() => Err(errno::ENOTDIR.into()),
                Some(device) => Ok(Some(Step::Entry(Entry::Device(device)))),
                None => Ok(None),
            },
        }
    }

    /// Walks `/dev/pts`.
    fn dev_pts(&self, parts: &[&[u8]]) -> Result<Step<N>> {
        /// Pseudo-terminals at most.
        const MOST: u32 = 1024;
        let terminals = &self.node.kernel().terminals;
        match parts {
            [] => {
                let there = (0..MOST).filter(|&number| terminals.pty(number).is_some());
                let names =
                    there.map(|number| (alloc::format!("{number}").into_bytes(), CHARACTER));
                Ok(Step::Entry(Entry::Folder(
                    names.chain([(b"ptmx".to_vec(), CHARACTER)]).collect(),
                )))
            }
            [b"ptmx"] => Ok(Step::Entry(Entry::Device(Device::Ptmx))),
            [name] => match number(name).filter(|&number| terminals.pty(number).is_some()) {
                Some(number) => Ok(Step::Entry(Entry::Device(Device::Pty(number)))),
                None => missing(),
            },
            _ => Err(errno::ENOTDIR.into()),
        }
    }

    /// Returns the status of an entry.
    pub(crate) fn pseudo_status(&self, entry: &Entry<N>, path: &[u8]) -> Stat {
        let now = self.started_at();
        let (mode, size, links) = match entry {
            Entry::Folder(names) => (FOLDER | 0o555, 0, 2 + names.len()),
            Entry::Text(text) => (REGULAR | text.mode(), 0, 1),
            Entry::Link(target) => (LINK | 0o777, target.len(), 1),
            Entry::Open(_) => (LINK | 0o700, 64, 1),
            Entry::Device(_) => (CHARACTER | 0o666, 0, 1),
        };
        let owner = match entry {
            Entry::Text(Text::Process(process, ..)) => process.creds(),
            _ => None,
        };
        let (uid, gid) = owner.map_or((0, 0), |owner| {
            (owner.user.effective, owner.group.effective)
        });
        Stat {
            inode: inode_of(path),
            mode,
            links: u32::try_from(links).unwrap_or(u32::MAX),
            uid,
            gid,
            size: size as u64,
            block_size: 1024,
            blocks: 0,
            accessed: now,
            modified: now,
            changed: now,
            device: match entry {
                Entry::Device(device) => device.number(),
                _ => 0,
            },
        }
    }

    fn started_at(&self) -> FileTime {
        let wall = self.node.platform().wall_clock();
        FileTime {
            seconds: wall.as_secs().cast_signed(),
            nanos: wall.subsec_nanos(),
        }
    }

    /// Makes the text of a file.
    ///
    /// # Errors
    ///
    /// ESRCH for a process that has ended; errors that end the node.
    pub(crate) async fn pseudo_text(&self, text: &Text<N>) -> Result<Vec<u8>> {
        match text {
            Text::Constant(bytes) => Ok(bytes.to_vec()),
            Text::Made(bytes) => Ok(bytes.clone()),
            Text::Machine(kind) => self.machine_text(*kind).await,
            Text::Process(process, thread, kind) => self.process_text(process, thread, *kind).await,
        }
    }
}

impl<N: Node> Text<N> {
    fn mode(&self) -> u32 {
        if self.sink() == Sink::Nothing {
            0o444
        } else {
            0o644
        }
    }

    /// Returns what writing to the file does.
    pub(crate) fn sink(&self) -> Sink {
        match self {
            Self::Process(_, _, process::Kind::Comm) => Sink::Name,
            Self::Process(_, _, process::Kind::OomScoreAdj) => Sink::Void,
            _ => Sink::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_plain_decimals() {
        for (text, value) in [
            ("1", Some(1)),
            ("0", Some(0)),
            ("01", None),
            ("+1", None),
            ("", None),
            ("1x", None),
        ] {
            assert_eq!(number(text.as_bytes()), value, "{text}");
        }
    }

    #[test]
    fn inodes_differ_by_path_and_from_other_file_systems() {
        let (a, b) = (inode_of(b"/proc/1"), inode_of(b"/proc/2"));
        assert!(a != b && a >= FIRST_INODE && b >= FIRST_INODE);
    }
}
