//! S's disk: its file, and whether it outlives the run.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use super::vm::names;
use crate::tools::parse_size;

/// Options about S's disk.
#[derive(clap::Args, Debug, Clone, Default)]
pub(crate) struct DriveArgs {
    /// Keeps S's disk in FILE from run to run: made as --root and --add say if the file does not
    /// exist, else used as it is; a Unix socket is one of an NBD server. Without this option each
    /// run makes a disk that is removed at its end, and with it what the program wrote
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Makes the disk of --disk anew, whatever it holds
    #[arg(long, requires = "disk")]
    fresh: bool,
    /// Free room on a disk that is made
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    disk_room: u64,
    /// Lets nothing change the disk: programs get EROFS
    #[arg(long)]
    disk_read_only: bool,
}

/// S's disk in one run.
#[derive(Debug, Clone)]
pub(crate) struct Drive {
    /// The image.
    pub(crate) file: PathBuf,
    /// The image must be made.
    pub(crate) make: bool,
    /// Bytes that a new image has besides what it holds.
    pub(crate) room: u64,
    kept: bool,
    read_only: bool,
}

impl DriveArgs {
    /// Returns the disk of a run in `folder`; `laid_out` tells whether the user names files for it.
    ///
    /// # Errors
    ///
    /// If files are named for a disk that exists.
    pub(crate) fn drive(&self, folder: &Path, laid_out: bool) -> Result<Drive> {
        let exists = self.disk.as_ref().is_some_and(|file| file.exists());
        let make = self.fresh || !exists;
        ensure!(
            make || !laid_out,
            "the disk of --disk exists: --root and --add lay out new disks only; add --fresh to make it anew"
        );
        Ok(Drive {
            file: self.disk.clone().unwrap_or_else(|| names::disk(folder)),
            make,
            room: self.disk_room,
            kept: self.disk.is_some(),
            read_only: self.disk_read_only,
        })
    }
}

impl Drive {
    /// Returns a disk that exists and outlives the run.
    pub(crate) fn existing(file: PathBuf) -> Self {
        Self {
            file,
            make: false,
            room: 0,
            kept: true,
            read_only: false,
        }
    }

    /// Gives QEMU the disk. The host's cache is flushed when S flushes, unless the disk does not
    /// outlive the run anyway.
    pub(crate) fn add_to(&self, command: &mut Command) {
        let path = self.file.display().to_string();
        let mut file = if self
            .file
            .metadata()
            .is_ok_and(|file| file.file_type().is_socket())
        {
            serde_json::json!({ "driver": "nbd", "server": { "type": "unix", "path": path } })
        } else {
            serde_json::json!({ "driver": "file", "filename": path })
        };
        file["read-only"] = self.read_only.into();
        file["cache"] = serde_json::json!({ "no-flush": !self.kept });
        let node = serde_json::json!({
            "driver": "raw", "node-name": "disk", "read-only": self.read_only,
            "cache": { "no-flush": !self.kept }, "file": file,
        });
        command.arg("-blockdev").arg(node.to_string());
        command.args([
            "-device",
            "virtio-blk-pci,drive=disk,addr=0x10,disable-legacy=on",
        ]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_exists_is_used_unless_it_is_to_be_made_anew() {
        let folder = Path::new("/nowhere");
        let file = std::env::current_exe().expect("this program");
        let of = |disk: Option<&Path>, fresh, laid_out| {
            let args = DriveArgs {
                disk: disk.map(Path::to_owned),
                fresh,
                ..DriveArgs::default()
            };
            args.drive(folder, laid_out)
                .map(|drive| (drive.make, drive.kept))
        };
        assert_eq!(of(None, false, true).ok(), Some((true, false)));
        assert_eq!(of(Some(&file), false, false).ok(), Some((false, true)));
        assert_eq!(of(Some(&file), true, true).ok(), Some((true, true)));
        assert_eq!(
            of(Some(&folder.join("new")), false, true).ok(),
            Some((true, true))
        );
        assert!(of(Some(&file), false, true).is_err());
    }
}
