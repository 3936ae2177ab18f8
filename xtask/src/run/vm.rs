//! QEMU's command line for one node.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use clap::ValueEnum;

use super::cards::Card;
use super::drive::Drive;
use super::media::Source;
use super::screens;
use crate::bed::log;
use crate::bed::machine::{Adapter, Chipset, Machine, Place};
use crate::bed::process::LAUNCHER;
use crate::build_image::Role;
use crate::passthrough;
use crate::qemu::Qemu;

/// One node's machine.
pub(crate) struct Vm<'a> {
    /// Role of the node.
    pub(crate) role: Role,
    /// Medium from which its machine starts.
    pub(super) source: Source,
    /// Its firmware starts only what Debian's test key has signed.
    pub(super) secure: bool,
    /// Its chipset.
    pub(crate) chipset: Chipset,
    /// Place of its modelled adapter.
    pub(super) place: Place,
    /// Its CPUs' model.
    pub(crate) cpu_model: &'a str,
    /// Its main memory in bytes.
    pub(crate) memory: u64,
    /// Its cores.
    pub(crate) cpus: u32,
    /// A plugin for its TCG.
    pub(crate) plugin: Option<&'a str>,
    /// The folder of the run, with sockets and consoles.
    pub(crate) folder: &'a Path,
    /// The socket of its adapter.
    pub(crate) socket: PathBuf,
    /// S's disk.
    pub(crate) drive: &'a Drive,
    /// P's device for the console channel.
    pub(crate) streams: StreamsDevice,
    /// It has a screen.
    pub(crate) has_screen: bool,
    /// Its real card, in place of a modelled adapter.
    pub(super) card: Option<&'a Card>,
}

/// P's device for the console channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum StreamsDevice {
    /// A virtio serial port.
    #[default]
    Virtio,
    /// The second serial port, COM2.
    Serial,
}

/// Files of a run, by the names that the server, the VMs and we agree on.
pub(crate) mod names {
    use std::path::{Path, PathBuf};

    /// Returns the file of S's disk, if it does not outlive the run.
    pub(crate) fn disk(folder: &Path) -> PathBuf {
        folder.join("disk.img")
    }
}

impl Vm<'_> {
    /// Returns the command that starts it.
    pub(crate) fn command(&self, qemu: &Qemu) -> Result<Command> {
        if self.card.is_some() {
            let mut command = qemu.command(&LAUNCHER);
            self.add_with_card(&mut command);
            return Ok(command);
        }
        let machine = Machine {
            start: self.source.start(self.role, self.folder, self.secure)?,
            chipset: self.chipset,
            cpu_model: self.cpu_model,
            memory: self.memory,
            cpus: &self.cpus.to_string(),
            adapters: &[Adapter {
                socket: &self.socket,
                place: self.place,
            }],
            iommu: false,
            reboots: false,
            plugin: self.plugin,
        };
        let mut command = machine.image_command(qemu, &log(self.folder, self.role.name()));
        if self.has_screen {
            screens::add_to(&mut command, self.folder, self.role);
        }
        self.add_devices(&mut command);
        Ok(command)
    }

    /// Adds a machine with a real card, which starts by QEMU's own loader.
    pub(super) fn add_with_card(&self, command: &mut Command) {
        let (Some(card), Source::Kernel(image, command_line)) = (self.card, &self.source) else {
            return;
        };
        let machine = passthrough::machine::Machine {
            role: self.role,
            bdf: card.bdf,
            memory: card.memory,
            page: card.page,
            node: card.node,
            cpus: card.cpus,
            image,
            command_line,
            log: &log(self.folder, self.role.name()),
        };
        machine.add_to(command);
        self.add_devices(command);
    }

    fn add_devices(&self, command: &mut Command) {
        match self.role {
            Role::Processor => self.streams.add_to(command, self.chipset),
            Role::Storage => self.drive.add_to(command, self.chipset),
            Role::Memory => {}
        }
    }
}

impl StreamsDevice {
    /// Returns the value of P's boot option `streams=`.
    pub(crate) fn boot_option(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::Serial => "serial",
        }
    }

    /// Adds the device with the console channel, whose other end is QEMU's standard input.
    pub(crate) fn add_to(self, command: &mut Command, chipset: Chipset) {
        command.args(["-chardev", "socket,id=console,fd=0"]);
        if self == Self::Serial {
            // The log has the first.
            command.args(["-serial", "chardev:console"]);
            return;
        }
        // Named, or QEMU takes a second root bus where there is one.
        let root = chipset.bus();
        let bus =
            format!("virtio-serial-pci,id=bus,bus={root},addr=0x10,max_ports=2,disable-legacy=on");
        command.args(["-device", &bus]);
        command.args(["-device", "virtserialport,nr=1,chardev=console,bus=bus.0"]);
    }
}
