//! S's disk: which of the machine's it is, and how the file system uses it.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Display;

use ext4::DiskError;
use futures_util::future::try_join_all;
use libos::CommandLine;
use libos::pci::{self, Function};
use libos::virtio;
use node::Error;
use storage::{Choice, Kind};

/// Most pairs of queues that an NVMe controller is asked for.
const MAX_QUEUES: usize = 4;
/// A longer request is cut at multiples of this, which any disk has at a block's end.
const ALIGN: u64 = 4096;

enum Device {
    Virtio(Box<virtio::Disk>),
    Nvme(Box<nvme::Disk<Function>>),
}

/// A disk as the file system sees it: requests of any length, cut into those that the device takes.
#[derive(Clone, Copy)]
pub(crate) struct AnyDisk(&'static Named);

struct Named {
    device: Device,
    /// Kind, place on the PCI bus, and serial number if it has one.
    name: String,
    read_only: bool,
    max_transfer: usize,
}

/// Starts the disk that the command line chooses, by default the first.
///
/// # Errors
///
/// If there is none such, or it does not start.
pub(crate) async fn find(line: &CommandLine) -> Result<AnyDisk, Error> {
    let choice = match line.value("disk") {
        Some(text) => text
            .parse()
            .map_err(|error| Error::Role(format!("disk={text}: {error}")))?,
        None => Choice::Any,
    };
    let found: Vec<_> = pci::functions_where(|function| kind(function).is_some())
        .into_iter()
        .filter_map(|function| Some((kind(&function)?, function)))
        .collect();
    for (kind, function) in &found {
        if !choice.may_be(*kind, &function.to_string()) {
            continue;
        }
        match start(*kind, *function).await {
            Ok((disk, serial)) => {
                if choice.serial().is_none_or(|wanted| wanted == serial) {
                    return Ok(take(disk));
                }
                // Dropped, an NVMe controller is stopped; a virtio disk is left as it is.
            }
            // Another may be meant.
            Err(error) if choice.serial().is_some() => log::warn!("{error}"),
            Err(error) => return Err(error),
        }
    }
    Err(Error::Role(none(&choice, &found)))
}

/// Says which disks there are, if not the one that is wanted.
fn none(choice: &Choice, found: &[(Kind, Function)]) -> String {
    if found.is_empty() {
        return "no disk in this machine: neither virtio nor NVMe".into();
    }
    let shown = |(kind, function): &(Kind, Function)| format!("{kind} {function}");
    let found: Vec<_> = found.iter().map(shown).collect();
    format!("no disk is disk={choice}; there are: {}", found.join(", "))
}

fn kind(function: &Function) -> Option<Kind> {
    if virtio::is_disk(function) {
        Some(Kind::Virtio)
    } else {
        (function.class == nvme::PCI_CLASS).then_some(Kind::Nvme)
    }
}

/// Starts a disk; gives its serial number, too.
async fn start(kind: Kind, function: Function) -> Result<(Named, String), Error> {
    let failed = |error: &dyn Display| Error::Role(format!("disk {kind} {function}: {error}"));
    let queues = libos::cores().min(MAX_QUEUES);
    let config = nvme::Config {
        queues: u16::try_from(queues).unwrap_or(1),
    };
    let (device, serial) = match kind {
        Kind::Virtio => {
            let disk = virtio::disk(function)?;
            let serial = disk.serial().await.map_err(|error| failed(&error))?;
            (Device::Virtio(Box::new(disk)), serial)
        }
        Kind::Nvme => {
            let disk = nvme::Disk::start(function, config).await;
            let disk = disk.map_err(|error| failed(&error))?;
            let serial = disk.serial();
            (Device::Nvme(Box::new(disk)), serial)
        }
    };
    let (read_only, max_transfer) = match &device {
        Device::Virtio(disk) => (disk.read_only(), virtio::MAX_TRANSFER),
        Device::Nvme(disk) => {
            log::info!(
                "NVMe {function}: {}, {} bytes in blocks of {}, pairs of queues: {}, {}",
                disk.model(),
                disk.size(),
                disk.block_size(),
                disk.queue_pairs(),
                if disk.has_write_cache() {
                    "a write cache"
                } else {
                    "no write cache"
                },
            );
            (disk.read_only(), disk.max_transfer())
        }
    };
    let number = if serial.is_empty() {
        String::new()
    } else {
        format!(" (serial {serial})")
    };
    let disk = Named {
        device,
        name: format!("{kind} {function}{number}"),
        read_only,
        max_transfer,
    };
    Ok((disk, serial))
}

/// Keeps a disk for as long as the node runs.
fn take(disk: Named) -> AnyDisk {
    log::info!("the disk is {}", disk.name);
    let disk: &'static Named = Box::leak(Box::new(disk));
    if let Device::Nvme(disk) = &disk.device {
        libos::spawn(disk.serve()).detach();
    }
    AnyDisk(disk)
}

impl AnyDisk {
    /// Returns whether the disk can't be written.
    pub(crate) fn read_only(self) -> bool {
        self.0.read_only
    }

    /// Cuts a request into `(offset on the disk, range in it)`, at multiples of [`ALIGN`].
    fn cut(
        self,
        offset: u64,
        len: usize,
    ) -> impl Iterator<Item = (u64, core::ops::Range<usize>)> + Send {
        // Less than ALIGN.
        let lead = usize::try_from(offset % ALIGN).unwrap_or(0);
        let most = self.0.max_transfer;
        let mut at = 0;
        core::iter::from_fn(move || {
            let room = if at == 0 { most - lead } else { most };
            let piece = at..len.min(at + room);
            at = piece.end;
            (!piece.is_empty()).then(|| (offset.saturating_add(piece.start as u64), piece))
        })
    }

    /// Logs a failure with the disk's name.
    fn failed(self, offset: u64, error: &dyn Display) -> DiskError {
        match &self.0.device {
            // Its errors name it by its place.
            Device::Virtio(_) => log::error!("{error}"),
            Device::Nvme(_) => log::error!("disk {}: {error}", self.0.name),
        }
        DiskError { offset }
    }

    async fn read_piece(self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        match &self.0.device {
            Device::Virtio(disk) => disk
                .read(offset / virtio::SECTOR as u64, into)
                .await
                .map_err(|error| self.failed(offset, &error)),
            Device::Nvme(disk) => disk
                .read(offset, into)
                .await
                .map_err(|error| self.failed(offset, &error)),
        }
    }

    async fn write_piece(self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        match &self.0.device {
            Device::Virtio(disk) => disk
                .write(offset / virtio::SECTOR as u64, bytes)
                .await
                .map_err(|error| self.failed(offset, &error)),
            Device::Nvme(disk) => disk
                .write(offset, bytes)
                .await
                .map_err(|error| self.failed(offset, &error)),
        }
    }
}

impl ext4::Disk for AnyDisk {
    async fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        let mut rest = into;
        let mut reads = Vec::new();
        for (offset, range) in self.cut(offset, rest.len()) {
            let (piece, after) = rest.split_at_mut(range.len());
            reads.push(self.read_piece(offset, piece));
            rest = after;
        }
        try_join_all(reads).await.map(drop)
    }

    async fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let pieces = self.cut(offset, bytes.len());
        let writes = pieces.map(|(offset, range)| self.write_piece(offset, &bytes[range]));
        try_join_all(writes).await.map(drop)
    }

    // `write_through` stays a write and a flush: with QEMU's NVMe controller, a block that had been
    // written with FUA was lost with the write cache.

    async fn flush(&self) -> Result<(), DiskError> {
        match &self.0.device {
            Device::Virtio(disk) => disk.flush().await.map_err(|error| self.failed(0, &error)),
            Device::Nvme(disk) => disk.flush().await.map_err(|error| self.failed(0, &error)),
        }
    }
}
