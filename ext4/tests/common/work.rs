//! Random operations, done to a file system and to the reference at once.

use std::collections::BTreeMap;

use ext4::{Allocation, Attributes, Errno, Error, Ext4, NewNode, ROOT, Rename};

use super::disk::MemDisk;
use super::model::{Id, Kind, Model, ROOT as MODEL_ROOT};
use super::{Rng, at};

/// An operation on files of the reference.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Create(Id, Vec<u8>),
    Mkdir(Id, Vec<u8>),
    Symlink(Id, Vec<u8>, usize),
    Link(Id, Id, Vec<u8>),
    Unlink(Id, Vec<u8>),
    Rmdir(Id, Vec<u8>),
    Rename(Id, Vec<u8>, Id, Vec<u8>, Rename),
    Write(Id, usize, Vec<u8>),
    Truncate(Id, usize),
    Allocate(Id, Allocation, usize, usize),
    Chmod(Id, u16),
    Sync,
}

fn name(rng: &mut Rng, names: u64) -> Vec<u8> {
    let number = rng.below(names);
    let long = number.is_multiple_of(5);
    let filler = if long {
        "x".repeat(60 + usize::try_from(number).expect("small") % 150)
    } else {
        String::new()
    };
    format!("n{number}{filler}").into_bytes()
}

/// Sizes of a workload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Different names.
    pub(crate) names: u64,
    /// Largest offset of a write.
    pub(crate) reach: u64,
    /// Longest write.
    pub(crate) longest: u64,
    /// Percentage of operations that sync.
    pub(crate) syncs: u64,
}

fn target(id: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| b'a' + u8::try_from((at + id) % 26).expect("a letter"))
        .collect()
}

impl Op {
    pub(crate) fn random(rng: &mut Rng, model: &Model, load: Load) -> Self {
        let dirs = model.dirs();
        let files = model.files();
        let dir = dirs[rng.index(dirs.len())];
        let fresh = name(rng, load.names);
        // A name that exists, mostly.
        let known = model.entries(dir).keys().collect::<Vec<_>>();
        let known = if known.is_empty() || rng.chance(10) {
            fresh.clone()
        } else {
            known[rng.index(known.len())].clone()
        };
        if rng.chance(load.syncs) {
            return Self::Sync;
        }
        let choice = rng.below(100);
        if choice < 15 || files.is_empty() {
            return Self::Create(dir, fresh);
        }
        let file = files[rng.index(files.len())];
        let offset = usize::try_from(rng.below(load.reach)).expect("fits");
        let len = 1 + usize::try_from(rng.below(load.longest)).expect("fits");
        match choice {
            15..20 => Self::Mkdir(dir, fresh),
            20..24 => {
                let longest = if rng.chance(50) { 59 } else { 700 };
                Self::Symlink(dir, fresh, 1 + rng.index(longest))
            }
            24..29 => Self::Link(file, dir, fresh),
            29..37 => Self::Unlink(dir, known),
            37..40 => Self::Rmdir(dir, known),
            40..55 => {
                let other = dirs[rng.index(dirs.len())];
                let names = model.entries(other).keys().collect::<Vec<_>>();
                let to = if names.is_empty() || rng.chance(50) {
                    fresh
                } else {
                    names[rng.index(names.len())].clone()
                };
                let how = [
                    Rename::Replace,
                    Rename::Replace,
                    Rename::NoReplace,
                    Rename::Exchange,
                ][rng.index(4)];
                Self::Rename(dir, known, other, to, how)
            }
            55..80 => {
                let seed = rng.next().to_le_bytes();
                let byte = |at: usize| seed[at % 7] ^ (at / 7).to_le_bytes()[0];
                Self::Write(file, offset, (0..len).map(byte).collect())
            }
            80..87 => Self::Truncate(file, offset),
            87..95 => {
                let how = [
                    Allocation::Extend,
                    Allocation::KeepSize,
                    Allocation::PunchHole,
                ][rng.index(3)];
                Self::Allocate(file, how, offset, len)
            }
            _ => Self::Chmod(file, u16::try_from(rng.below(0o1000)).expect("small")),
        }
    }

    /// Does the operation to the reference; returns what a file system must answer.
    pub(crate) fn apply(&self, model: &mut Model) -> Result<(), Errno> {
        match self {
            Self::Create(dir, name) => model
                .make(*dir, name, Kind::File(Vec::new().into()), 0o644)
                .map(drop),
            Self::Mkdir(dir, name) => model
                .make(*dir, name, Kind::Dir(BTreeMap::new()), 0o755)
                .map(drop),
            Self::Symlink(dir, name, len) => model
                .make(*dir, name, Kind::Symlink(target(name.len(), *len)), 0o777)
                .map(drop),
            Self::Link(file, dir, name) => model.link(*file, *dir, name),
            Self::Unlink(dir, name) => model.unlink(*dir, name),
            Self::Rmdir(dir, name) => model.rmdir(*dir, name),
            Self::Rename(dir, name, other, to, how) => {
                model.rename((*dir, name), (*other, to), *how)
            }
            Self::Write(file, offset, bytes) => {
                model.write(*file, *offset, bytes);
                Ok(())
            }
            Self::Truncate(file, size) => {
                model.truncate(*file, *size);
                Ok(())
            }
            Self::Allocate(file, how, offset, len) => {
                let end = offset + len;
                match how {
                    Allocation::Extend if model.data(*file).len() < end => {
                        model.truncate(*file, end)
                    }
                    Allocation::PunchHole => model.punch(*file, *offset, end),
                    _ => {}
                }
                Ok(())
            }
            Self::Chmod(file, mode) => {
                model.nodes.get_mut(file).expect("exists").mode = *mode;
                Ok(())
            }
            Self::Sync => Ok(()),
        }
    }
}

/// A mounted file system and the inodes of the reference's files.
pub(crate) struct World {
    pub(crate) fs: Ext4<MemDisk>,
    pub(crate) inodes: BTreeMap<Id, u32>,
    pub(crate) step: u64,
}

impl World {
    pub(crate) fn new(fs: Ext4<MemDisk>) -> Self {
        Self {
            fs,
            inodes: BTreeMap::from([(MODEL_ROOT, ROOT)]),
            step: 0,
        }
    }

    fn new_node(&self, mode: u16) -> NewNode {
        NewNode {
            mode,
            uid: 1000,
            gid: 70_000,
            now: at(self.step),
        }
    }

    /// Does an operation to the file system. `after` is the reference after it, for the numbers of
    /// new files.
    pub(crate) async fn perform(&mut self, op: &Op, after: &Model) -> Result<(), Error> {
        self.step += 1;
        let now = at(self.step);
        let inodes = self.inodes.clone();
        let of = |id: &Id| inodes[id];
        let fs = &self.fs;
        let made = match op {
            Op::Create(dir, name) => Some((
                *dir,
                name,
                fs.create(of(dir), name, self.new_node(0o644)).await?,
            )),
            Op::Mkdir(dir, name) => Some((
                *dir,
                name,
                fs.mkdir(of(dir), name, self.new_node(0o755)).await?,
            )),
            Op::Symlink(dir, name, len) => {
                let target = target(name.len(), *len);
                Some((
                    *dir,
                    name,
                    fs.symlink(of(dir), name, &target, self.new_node(0o777))
                        .await?,
                ))
            }
            Op::Link(file, dir, name) => {
                fs.link(of(file), of(dir), name, now).await?;
                None
            }
            Op::Unlink(dir, name) => {
                fs.unlink(of(dir), name, now).await?;
                None
            }
            Op::Rmdir(dir, name) => {
                fs.rmdir(of(dir), name, now).await?;
                None
            }
            Op::Rename(dir, name, other, to, how) => {
                fs.rename((of(dir), name), (of(other), to), *how, now)
                    .await?;
                None
            }
            Op::Write(file, offset, bytes) => {
                let written = fs.write(of(file), *offset as u64, bytes, now).await?;
                assert_eq!(written, bytes.len());
                None
            }
            Op::Truncate(file, size) => {
                fs.truncate(of(file), *size as u64, now).await?;
                None
            }
            Op::Allocate(file, how, offset, len) => {
                fs.fallocate(of(file), *how, *offset as u64, *len as u64, now)
                    .await?;
                None
            }
            Op::Chmod(file, mode) => {
                let set = Attributes {
                    permissions: Some(*mode),
                    ..Attributes::default()
                };
                fs.set_attributes(of(file), set, now).await?;
                None
            }
            Op::Sync => {
                fs.sync(now).await?;
                None
            }
        };
        if let Some((dir, name, inode)) = made {
            self.inodes
                .insert(after.entries(dir)[name.as_slice()], inode);
        }
        Ok(())
    }
}
