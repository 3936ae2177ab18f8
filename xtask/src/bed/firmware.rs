//! The start of a machine: by QEMU itself, or by firmware that finds an image on a medium or in the
//! network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::ipxe;

/// Starter of a machine.
#[derive(Debug)]
pub(crate) enum Start<'a> {
    /// QEMU's own loader.
    Kernel {
        /// A file with a PVH entry or for Linux's boot protocol.
        kernel: &'a Path,
        /// Its kernel command line.
        command_line: &'a str,
    },
    /// UEFI firmware.
    Firmware {
        /// The firmware, with this machine's own variables.
        firmware: Firmware,
        /// Medium on which the firmware finds the image.
        medium: Medium<'a>,
    },
    /// The BIOS, which has the network card's option ROM (iPXE) load a file of a folder by TFTP.
    Bios {
        /// The folder.
        folder: &'a Path,
        /// The file's name.
        file: &'a str,
    },
}

/// Medium on which firmware finds an image.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Medium<'a> {
    /// A disk's contents on a USB stick.
    Stick(&'a Path),
    /// An ISO in a CD drive.
    Cd(&'a Path),
    /// A file that a boot server in the network gives, of a folder that TFTP serves.
    Network {
        /// The folder.
        folder: &'a Path,
        /// The file's name.
        file: &'a str,
    },
    /// The boot server of the network that an interface of the host is in.
    Server {
        /// The TAP interface.
        interface: &'a str,
        /// The address of the machine's card.
        mac: &'a str,
        /// The client that asks the server.
        client: Client<'a>,
    },
}

/// Client by which a machine asks a boot server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client<'a> {
    /// The firmware's own, by PXE.
    Pxe,
    /// The firmware's own, by HTTP.
    Http,
    /// Another, on a USB stick.
    Stick(&'a Path),
}

/// UEFI firmware of one machine: OVMF.
#[derive(Debug)]
pub(crate) struct Firmware {
    code: PathBuf,
    variables: PathBuf,
    /// It checks signatures, and keeps its variables by system management mode.
    secure: bool,
}

impl Firmware {
    /// Fetches OVMF, if need be, and gives it fresh variables in a file: without keys, or with
    /// Debian's test key and Secure Boot on.
    pub(crate) fn obtain(variables: PathBuf, secure: bool) -> Result<Self> {
        let root = ipxe::obtain()?;
        let (code, fresh) = if secure {
            ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.snakeoil.fd")
        } else {
            ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd")
        };
        let file = |name| root.join("usr/share/OVMF").join(name);
        let fresh = file(fresh);
        fs::copy(&fresh, &variables)
            .with_context(|| format!("can't make {}", variables.display()))?;
        Ok(Self {
            code: file(code),
            variables,
            secure,
        })
    }

    fn add_to(&self, command: &mut Command) {
        drive(command, "code", &self.code, true);
        drive(command, "variables", &self.variables, false);
        command.args(["-machine", "pflash0=code,pflash1=variables"]);
        if self.secure {
            let flash = "driver=cfi.pflash01,property=secure,value=on";
            command.args(["-machine", "smm=on", "-global", flash]);
        }
    }
}

impl Start<'_> {
    /// Adds what starts the machine to its command.
    pub(crate) fn add_to(&self, command: &mut Command) {
        match self {
            Self::Kernel {
                kernel,
                command_line,
            } => {
                command
                    .arg("-kernel")
                    .arg(kernel)
                    .args(["-append", command_line]);
            }
            Self::Firmware { firmware, medium } => {
                firmware.add_to(command);
                medium.add_to(command);
            }
            Self::Bios { folder, file } => {
                network(command, folder, file);
                let card = "e1000,netdev=boot,romfile=pxe-e1000.rom,bootindex=0";
                command.args(["-device", card]);
            }
        }
    }
}

impl Medium<'_> {
    fn add_to(&self, command: &mut Command) {
        match self {
            Self::Stick(path) => {
                drive(command, "medium", path, true);
                command.args(["-device", "qemu-xhci,id=usb", "-device"]);
                command.arg("usb-storage,bus=usb.0,drive=medium,bootindex=0");
            }
            Self::Cd(path) => {
                drive(command, "medium", path, true);
                command.args(["-device", "ich9-ahci,id=sata", "-device"]);
                command.arg("ide-cd,bus=sata.0,drive=medium,bootindex=0");
            }
            Self::Network { folder, file } => {
                network(command, folder, file);
                // Without its option ROM, so that the firmware's driver and PXE client serve it.
                command.args(["-device", "virtio-net-pci,netdev=boot,romfile=,bootindex=0"]);
                // The firmware's network needs random numbers.
                command.args(["-device", "virtio-rng-pci"]);
            }
            Self::Server {
                interface,
                mac,
                client,
            } => {
                let tap = format!("tap,id=boot,ifname={interface},script=no,downscript=no");
                command.args(["-netdev", &tap, "-device", "virtio-rng-pci"]);
                let mut card = format!("virtio-net-pci,netdev=boot,mac={mac},romfile=");
                match client {
                    Client::Stick(path) => Self::Stick(path).add_to(command),
                    Client::Pxe | Client::Http => card += ",bootindex=0",
                }
                command.args(["-device", &card]);
                if *client == Client::Http {
                    // OVMF tries PXE before HTTP (`NetworkPkg` asks QEMU for these settings).
                    for version in ["4", "6"] {
                        let name = format!("opt/org.tianocore/IPv{version}PXESupport");
                        command.args(["-fw_cfg", &format!("name={name},string=no")]);
                    }
                }
            }
        }
    }
}

/// Adds QEMU's own network, out of which nothing gets, with a boot server.
fn network(command: &mut Command, folder: &Path, file: &str) {
    let folder = folder.display().to_string().replace(',', ",,");
    let network = format!("user,id=boot,restrict=on,tftp={folder},bootfile={file}");
    command.args(["-netdev", &network]);
}

/// Gives QEMU a raw file as a block device.
fn drive(command: &mut Command, name: &str, path: &Path, read_only: bool) {
    let node = serde_json::json!({
        "driver": "raw", "node-name": name, "read-only": read_only,
        "file": { "driver": "file", "filename": path.display().to_string(), "read-only": read_only },
    });
    command.arg("-blockdev").arg(node.to_string());
}
