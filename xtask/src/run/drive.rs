//! S's disk: its file, and whether it outlives the run.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde_json::{Value, json};

use super::vm::names;
use crate::bed::machine::Chipset;
use crate::tools::parse_size;

/// Linux's number of an I/O error.
const EIO: u32 = 5;

/// Device by which S has its disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DiskDevice {
    /// A virtio block device.
    #[default]
    Virtio,
    /// An NVMe controller with blocks of 512 bytes.
    Nvme,
    /// An NVMe controller with blocks of 4096 bytes.
    #[value(name = "nvme-4k")]
    Nvme4k,
}

/// Errors that a disk returns: for reads, writes or flushes, everywhere or in one sector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskErrors {
    request: String,
    sector: Option<u64>,
}

impl FromStr for DiskErrors {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (request, sector) = match text.split_once(':') {
            Some((request, sector)) => (request, Some(sector)),
            None => (text, None),
        };
        let form =
            "it is read, write or flush, and for the first two :SECTOR if they fail there only";
        let known = matches!(
            (request, sector.is_some()),
            ("read" | "write", _) | ("flush", false)
        );
        let sector = sector.map(str::parse).transpose().map_err(|_| form)?;
        if !known {
            return Err(form.into());
        }
        Ok(Self {
            request: request.to_owned(),
            sector,
        })
    }
}

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
    /// The device by which S has its disk
    #[arg(long, value_enum, default_value_t)]
    disk_device: DiskDevice,
    /// Lets requests fail, those of a sector of 512 bytes or all: programs get EIO (repeatable)
    #[arg(long, value_name = "read|write|flush[:SECTOR]")]
    disk_errors: Vec<DiskErrors>,
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
    device: DiskDevice,
    errors: Vec<DiskErrors>,
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
            device: self.disk_device,
            errors: self.disk_errors.clone(),
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
            device: DiskDevice::Virtio,
            errors: Vec::new(),
        }
    }

    /// Returns the same disk by another device.
    pub(crate) fn on(mut self, device: DiskDevice) -> Self {
        self.device = device;
        self
    }

    /// Gives QEMU the disk. The host's cache is flushed when S flushes, unless the disk does not
    /// outlive the run anyway.
    pub(crate) fn add_to(&self, command: &mut Command, chipset: Chipset) {
        let path = self.file.display().to_string();
        let mut file = if self
            .file
            .metadata()
            .is_ok_and(|file| file.file_type().is_socket())
        {
            json!({ "driver": "nbd", "server": { "type": "unix", "path": path } })
        } else {
            json!({ "driver": "file", "filename": path })
        };
        file["read-only"] = self.read_only.into();
        file["cache"] = json!({ "no-flush": !self.kept });
        if !self.errors.is_empty() {
            file = self.failing(&file);
        }
        let node = json!({
            "driver": "raw", "node-name": "disk", "read-only": self.read_only,
            "cache": { "no-flush": !self.kept }, "file": file,
        });
        command.arg("-blockdev").arg(node.to_string());
        let device = match self.device {
            DiskDevice::Virtio => "virtio-blk-pci,drive=disk,disable-legacy=on",
            DiskDevice::Nvme => "nvme,drive=disk,serial=tessera",
            DiskDevice::Nvme4k => "nvme,id=controller,serial=tessera",
        };
        let place = format!("{device},bus={},addr=0x10", chipset.bus());
        command.args(["-device", &place]);
        if self.device == DiskDevice::Nvme4k {
            let blocks = "nvme-ns,bus=controller,drive=disk,logical_block_size=4096,physical_block_size=4096";
            command.args(["-device", blocks]);
        }
    }

    /// Returns a node of QEMU's that returns errors of its own for some requests of `file`'s.
    fn failing(&self, file: &Value) -> Value {
        let rule = |errors: &DiskErrors| {
            let mut rule = json!({ "event": "none", "iotype": errors.request, "errno": EIO });
            if let Some(sector) = errors.sector {
                rule["sector"] = sector.into();
            }
            rule
        };
        let rules: Vec<Value> = self.errors.iter().map(rule).collect();
        json!({
            "driver": "blkdebug", "image": file, "inject-error": rules,
            "read-only": self.read_only, "cache": { "no-flush": !self.kept },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_for_a_kind_of_request_and_may_be_for_a_sector() {
        let parsed = |text: &str| text.parse::<DiskErrors>();
        let read = parsed("read:800").expect("errors");
        assert_eq!((read.request.as_str(), read.sector), ("read", Some(800)));
        assert!(parsed("flush").is_ok_and(|errors| errors.sector.is_none()));
        for text in ["", "trim", "read:", "read:x", "flush:5", "write:-1"] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }

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
