//! `--open` and `--join`: processors that other runs add to a cluster.
//!
//! A run with `--open PATH` has adapters for further processors on its fabric, and writes to PATH
//! what they need: its folder and its key. A run with `--join PATH` takes a free adapter and starts
//! a processor only, with memory and disk of the first.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};

use super::drive::Drive;
use super::vm::names;
use crate::bed;
use crate::build_image::Role;

/// The most processors that may join a run at a time.
const PLACES: [&str; 3] = ["processor-2", "processor-3", "processor-4"];

/// Options about several processors.
#[derive(clap::Args, Debug, Clone, Default)]
pub(crate) struct JoinArgs {
    /// Lets up to three other runs join this one by `--join PATH`. PATH is made, readable by this
    /// user only, and removed at the end
    #[arg(long, value_name = "PATH")]
    open: Option<PathBuf>,
    /// Starts a processor only, which joins the run that has `--open PATH`: memory and disk are
    /// those of that run, and end with it
    #[arg(long, value_name = "PATH", conflicts_with_all = OF_THE_FIRST)]
    join: Option<PathBuf>,
}

/// Options about what belongs to the first run.
const OF_THE_FIRST: [&str; 16] = [
    "open",
    "memory",
    "root",
    "packages",
    "add",
    "disk",
    "fresh",
    "disk_room",
    "disk_read_only",
    "disk_device",
    "disk_errors",
    "screens",
    "boot_from",
    "cards",
    "trace",
    "plugin",
];

/// File that a run has written for others, removed when this is dropped.
#[derive(Debug)]
pub(super) struct Opened(PathBuf);

impl Drop for Opened {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A place of a processor in another run, given back when this is dropped.
#[derive(Debug)]
pub(super) struct Joined {
    /// Socket of its adapter.
    pub(super) socket: PathBuf,
    /// The cluster's key.
    pub(super) key: String,
    /// Locked as long as the place is taken.
    _lock: File,
}

impl JoinArgs {
    /// Returns the names of the adapters on a run's fabric.
    pub(super) fn adapters(&self) -> Vec<&'static str> {
        let more = self.open.as_ref().map_or(&[][..], |_| &PLACES);
        let own = Role::ALL.map(Role::name);
        own.into_iter().chain(more.iter().copied()).collect()
    }

    /// Returns whether the run joins another one.
    pub(super) fn joins(&self) -> bool {
        self.join.is_some()
    }

    /// Lets other runs join one in `folder`, if that is asked for.
    ///
    /// # Errors
    ///
    /// If PATH can't be made.
    pub(super) fn open(&self, folder: &Path, key: &str) -> Result<Option<Opened>> {
        let Some(path) = &self.open else {
            return Ok(None);
        };
        // It appears whole: who waits for it reads it at once.
        let new = folder.join("open");
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o600);
        let text = format!("{}\n{key}\n", folder.display());
        options
            .open(&new)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("can't write {}", new.display()))?;
        let copied = fs::rename(&new, path).or_else(|_| copy(&new, path));
        copied.with_context(|| format!("--open {}", path.display()))?;
        Ok(Some(Opened(path.clone())))
    }

    /// Takes a place in the run that is to be joined, if one is.
    ///
    /// # Errors
    ///
    /// If there is no such run, or no free place in it.
    pub(super) fn place(&self) -> Result<Option<Joined>> {
        let Some(path) = &self.join else {
            return Ok(None);
        };
        let what = || format!("--join {}", path.display());
        let text = fs::read_to_string(path).with_context(what)?;
        let mut lines = text.lines();
        let (Some(folder), Some(key)) = (lines.next(), lines.next()) else {
            bail!("{} was not made by --open", path.display());
        };
        for place in PLACES {
            let lock = Path::new(folder).join(format!("{place}.lock"));
            let mut options = File::options();
            options.write(true).create(true).truncate(false);
            let lock = options.open(&lock).with_context(what)?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return Ok(Some(Joined {
                    socket: bed::socket(Path::new(folder), place),
                    key: key.to_owned(),
                    _lock: lock,
                }));
            }
        }
        bail!(
            "{}: {} other processors have joined already",
            path.display(),
            PLACES.len()
        )
    }
}

/// Copies a file to another file system, where it can't be moved.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let part = to.with_extension("part");
    fs::copy(from, &part)?;
    fs::rename(part, to)
}

/// Returns the drive of a run that joins another one: none is used.
pub(super) fn no_drive(folder: &Path) -> Result<Drive> {
    let file = names::disk(folder);
    ensure!(!file.exists(), "{} exists", file.display());
    Ok(Drive::existing(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_joined_as_long_as_there_are_places() {
        let folder = std::env::temp_dir().join(format!("tessera-join-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("door");
        let args = |open: bool| JoinArgs {
            open: open.then(|| path.clone()),
            join: (!open).then(|| path.clone()),
        };
        assert!(args(false).place().is_err(), "nothing to join");
        let opened = args(true).open(&folder, "abc").expect("opened");
        let places: Vec<Joined> = PLACES
            .iter()
            .map(|_| args(false).place().expect("a place").expect("asked for"))
            .collect();
        let sockets: Vec<_> = places.iter().map(|place| place.socket.clone()).collect();
        assert_eq!(sockets, PLACES.map(|name| bed::socket(&folder, name)));
        assert!(places.iter().all(|place| place.key == "abc"));
        let error = args(false).place().expect_err("no place");
        assert!(error.to_string().contains("3 other processors"), "{error}");
        drop(places);
        assert!(args(false).place().is_ok(), "given back");
        assert_eq!(args(true).adapters().len(), Role::ALL.len() + PLACES.len());
        assert_eq!(args(false).adapters().len(), Role::ALL.len());
        drop(opened);
        assert!(!path.exists());
        fs::remove_dir_all(folder).expect("removed");
    }
}
