//! `--boot-from`: what the nodes' machines start from.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::boot_server;
use crate::bed::firmware::{Client, Firmware, Medium, Start};
use crate::build_image::disk::ExtraFile;
use crate::build_image::sign::Signer;
use crate::build_image::{self, Contents, Format, Role};
use crate::grub;

/// The least memory of a machine that firmware starts; OVMF fails with less than some 100 MB.
const FIRMWARE_MEMORY: u64 = 256 << 20;
/// The file that a boot server in the network gives.
const BOOT_FILE: &str = "tessera.efi";
/// The command line beside the loader (see `boot/uefi/src/command_line.rs`).
const LINE_FILE: &str = "tessera.cmdline";

/// Way in which a machine starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Way {
    /// QEMU's own loader.
    #[default]
    Pvh,
    /// UEFI firmware, from a USB stick; the command line is a file on it.
    Disk,
    /// UEFI firmware, from an ISO; the command line is built in.
    Iso,
    /// UEFI firmware, from the network by PXE; the command line is built in.
    Pxe,
    /// The BIOS and iPXE, from the network: GRUB, which loads the image by Multiboot2.
    Grub,
    /// UEFI firmware, by PXE from a boot server of `xtask pxe`.
    RackPxe,
    /// UEFI firmware, by HTTP from such a server.
    RackHttp,
    /// UEFI firmware and iPXE on a USB stick, from such a server.
    RackIpxe,
}

impl Way {
    /// Returns whether it is a boot server of `xtask pxe`.
    fn is_of_rack(self) -> bool {
        matches!(self, Self::RackPxe | Self::RackHttp | Self::RackIpxe)
    }
}

/// Way in which some nodes start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BootFrom {
    /// None for all.
    role: Option<Role>,
    way: Way,
}

impl std::str::FromStr for BootFrom {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            "it is WAY or WHO:WAY, WHO being processor, memory or storage and WAY pvh, disk, iso, pxe, grub, \
             rack-pxe, rack-http or rack-ipxe"
                .to_owned()
        };
        let (who, way) = match text.split_once(':') {
            Some((who, way)) => (Some(who), way),
            None => (None, text),
        };
        let named = |who| Role::ALL.into_iter().find(|role| role.name() == who);
        let role = who.map(|who| named(who).ok_or_else(form)).transpose()?;
        let way = Way::from_str(way, false).map_err(|_| form())?;
        Ok(Self { role, way })
    }
}

/// The way of a role; the last option that is for it counts.
pub(super) fn way(options: &[BootFrom], role: Role) -> Way {
    let mut own = options
        .iter()
        .filter(|option| option.role.is_none_or(|only| only == role));
    own.next_back().map_or(Way::default(), |option| option.way)
}

/// The memory of a node's machine.
pub(super) fn memory(way: Way, memory: u64) -> u64 {
    match way {
        Way::Pvh => memory,
        _ => memory.max(FIRMWARE_MEMORY),
    }
}

/// Returns whether any node starts from a boot server of `xtask pxe`.
pub(super) fn needs_rack(options: &[BootFrom]) -> bool {
    Role::ALL
        .into_iter()
        .any(|role| way(options, role).is_of_rack())
}

/// The made medium from which a node's machine starts.
#[derive(Debug)]
pub(super) enum Source {
    /// An image and its command line.
    Kernel(PathBuf, String),
    /// A USB stick's contents.
    Stick(PathBuf),
    /// An ISO.
    Cd(PathBuf),
    /// A folder for TFTP.
    Folder(PathBuf),
    /// A folder for TFTP with GRUB.
    Grub(PathBuf),
    /// The boot server of the rack, which is to give this kernel command line.
    BootServer {
        /// UEFI firmware asks by HTTP; else by PXE.
        http: bool,
        /// A USB stick with iPXE, which asks in the firmware's place.
        stick: Option<PathBuf>,
        /// The kernel command line.
        line: String,
    },
}

impl Source {
    /// Makes it in the folder of the run.
    pub(super) fn make(
        way: Way,
        role: Role,
        image: &Path,
        line: String,
        folder: &Path,
        signer: Option<&Signer>,
    ) -> Result<Self> {
        let built_in = Contents {
            cmdline: Some(&line),
            signer,
            ..Contents::default()
        };
        let file = |extension: &str| folder.join(format!("{}.{extension}", role.name()));
        match way {
            Way::Pvh => Ok(Self::Kernel(image.into(), line)),
            Way::Disk => {
                let path = file("stick");
                let beside = ExtraFile {
                    name: LINE_FILE,
                    contents: line.as_bytes(),
                };
                let contents = Contents {
                    beside: &[beside],
                    signer,
                    ..Contents::default()
                };
                build_image::pack(image, Format::Disk, &contents, &path)?;
                Ok(Self::Stick(path))
            }
            Way::Iso => {
                let path = file("iso");
                build_image::pack(image, Format::Iso, &built_in, &path)?;
                Ok(Self::Cd(path))
            }
            Way::Pxe => {
                let served = file("tftp");
                fs::create_dir(&served)
                    .with_context(|| format!("can't make {}", served.display()))?;
                build_image::pack(image, Format::Efi, &built_in, &served.join(BOOT_FILE))?;
                Ok(Self::Folder(served))
            }
            Way::Grub => {
                let served = file("tftp");
                grub::make(&served, image, &line)?;
                Ok(Self::Grub(served))
            }
            Way::RackPxe | Way::RackHttp | Way::RackIpxe => {
                let stick = (way == Way::RackIpxe).then(|| file("stick"));
                if let Some(path) = &stick {
                    boot_server::make_ipxe_stick(role, path)?;
                }
                Ok(Self::BootServer {
                    http: way == Way::RackHttp,
                    stick,
                    line,
                })
            }
        }
    }

    /// Returns the starter for QEMU.
    pub(super) fn start(&self, role: Role, folder: &Path, secure: bool) -> Result<Start<'_>> {
        let medium = match self {
            Self::Kernel(kernel, command_line) => {
                return Ok(Start::Kernel {
                    kernel,
                    command_line,
                });
            }
            Self::Stick(path) => Medium::Stick(path),
            Self::Cd(path) => Medium::Cd(path),
            Self::Folder(folder) => Medium::Network {
                folder,
                file: BOOT_FILE,
            },
            Self::BootServer { http, stick, .. } => Medium::Server {
                interface: boot_server::interface(role),
                mac: boot_server::mac(role),
                client: match stick {
                    Some(path) => Client::Stick(path),
                    None if *http => Client::Http,
                    None => Client::Pxe,
                },
            },
            Self::Grub(folder) => {
                return Ok(Start::Bios {
                    folder,
                    file: grub::BOOT_FILE,
                });
            }
        };
        let firmware = Firmware::obtain(folder.join(format!("{}.vars", role.name())), secure)?;
        Ok(Start::Firmware { firmware, medium })
    }

    /// Removes what was made, which holds the cluster's key.
    pub(super) fn remove(folder: &Path) {
        for role in Role::ALL {
            for extension in ["stick", "iso", "vars"] {
                let _ = fs::remove_file(folder.join(format!("{}.{extension}", role.name())));
            }
            let _ = fs::remove_dir_all(folder.join(format!("{}.tftp", role.name())));
        }
        boot_server::remove(folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_way_for_a_role_counts() {
        let options =
            ["iso", "storage:pxe", "memory:disk", "memory:pvh"].map(|text| text.parse().unwrap());
        assert_eq!(
            Role::ALL.map(|role| way(&options, role)),
            [Way::Pxe, Way::Pvh, Way::Iso]
        );
        assert_eq!(way(&[], Role::Memory), Way::Pvh);
    }

    #[test]
    fn ways_and_roles_that_there_are_not_are_refused() {
        for bad in ["", "floppy", "all:iso", "memory:", ":iso", "memory:Iso"] {
            assert!(bad.parse::<BootFrom>().is_err(), "{bad}");
        }
    }
}
