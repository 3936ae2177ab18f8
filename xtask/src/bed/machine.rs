//! QEMU's command line for a machine with modelled adapters.

use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::firmware::Start;
use super::process::LAUNCHER;
use crate::qemu::Qemu;

/// A machine's chipset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Chipset {
    /// Intel's of 2009, with PCI Express.
    #[default]
    Q35,
    /// Intel's i440FX of 1996, with PCI.
    Pc,
}

impl Chipset {
    fn machine(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
            Self::Pc => "pc",
        }
    }

    /// Returns its root bus. A device that names none may land on another root bus.
    pub(crate) fn bus(self) -> &'static str {
        match self {
            Self::Q35 => "pcie.0",
            Self::Pc => "pci.0",
        }
    }
}

/// Place of an adapter in a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A slot of the root bus.
    Root(u8),
    /// Behind a port in slot 8 that reports the link's width and speed.
    Port,
    /// Behind a switch, or two PCI bridges where there is no PCI Express.
    Bridges,
    /// On a root bus of its own, as the cards of a second processor are.
    SecondRoot,
    /// Behind a port whose window for prefetchable memory, and so the adapter's doorbells, firmware
    /// can place above 4 GB only.
    High,
}

/// Names of the places.
const PLACES: [(&str, Place); 5] = [
    ("slot", USUAL),
    ("port", Place::Port),
    ("bridges", Place::Bridges),
    ("second-root", Place::SecondRoot),
    ("high", Place::High),
];

/// Place of the adapter in most machines.
pub(crate) const USUAL: Place = Place::Root(8);

impl FromStr for Place {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = PLACES.iter().find(|(name, _)| *name == text);
        let names = PLACES.map(|(name, _)| name).join(", ");
        Ok(found.with_context(|| format!("it is one of {names}"))?.1)
    }
}

/// An adapter: the socket of its model, and its place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Adapter<'a> {
    /// The socket.
    pub(crate) socket: &'a Path,
    /// The place.
    pub(crate) place: Place,
}

impl<'a> Adapter<'a> {
    /// Returns the adapter in slot 8, where most machines have it.
    pub(crate) fn usual(socket: &'a Path) -> [Self; 1] {
        let place = USUAL;
        [Self { socket, place }]
    }

    fn add_to(&self, command: &mut Command, chipset: Chipset) {
        let ports: &[&str] = match (self.place, chipset) {
            (Place::Root(_), _) => &[],
            (Place::Port, _) => &["pcie-root-port,id=adapter,addr=0x8"],
            (Place::High, _) => &["pcie-root-port,id=adapter,addr=0x8,pref64-reserve=8G"],
            (Place::Bridges, Chipset::Q35) => &[
                "pcie-root-port,id=above,addr=0x9",
                "x3130-upstream,id=switch,bus=above",
                "xio3130-downstream,id=adapter,bus=switch,chassis=9",
            ],
            (Place::Bridges, Chipset::Pc) => &[
                "pci-bridge,id=first,chassis_nr=1,addr=0x9",
                "pci-bridge,id=adapter,chassis_nr=2,bus=first,addr=0x3",
            ],
            (Place::SecondRoot, Chipset::Q35) => &[
                "pxb-pcie,id=root,bus_nr=128",
                "pcie-root-port,id=adapter,bus=root,chassis=9",
            ],
            (Place::SecondRoot, Chipset::Pc) => &["pxb,id=adapter,bus_nr=128"],
        };
        for port in ports {
            command.args(["-device", port]);
        }
        let (bus, slot) = match self.place {
            Place::Root(slot) => (chipset.bus(), slot),
            Place::Port | Place::Bridges | Place::SecondRoot | Place::High => ("adapter", 0),
        };
        // A bridge of a PCI bus has slot 0 for its own hot plugging.
        let slot = slot + u8::from(chipset == Chipset::Pc && bus == "adapter");
        let device = serde_json::json!({
            "driver": "vfio-user-pci", "bus": bus, "addr": format!("{slot:#x}"),
            "socket": { "type": "unix", "path": self.socket.display().to_string() },
        });
        command.arg("-device").arg(device.to_string());
    }
}

/// A machine whose memory the fabric's server may map.
pub(crate) struct Machine<'a> {
    /// Starter of the machine.
    pub(crate) start: Start<'a>,
    /// Its chipset.
    pub(crate) chipset: Chipset,
    /// Its CPUs' model, as QEMU names it.
    pub(crate) cpu_model: &'a str,
    /// Its main memory in bytes.
    pub(crate) memory: u64,
    /// Its cores, as QEMU's `-smp` takes them.
    pub(crate) cpus: &'a str,
    /// Its adapters.
    pub(crate) adapters: &'a [Adapter<'a>],
    /// It has an IOMMU.
    pub(crate) iommu: bool,
    /// The machine starts again when it resets itself. If unset, QEMU ends.
    pub(crate) reboots: bool,
    /// A plugin for TCG with its arguments, as QEMU's `-plugin` takes it.
    pub(crate) plugin: Option<&'a str>,
}

impl Machine<'_> {
    /// Returns the command that starts it with an image of ours, whose log goes to a file and which
    /// can power itself off.
    pub(crate) fn image_command(&self, qemu: &Qemu, log: &Path) -> Command {
        let mut command = self.command(qemu);
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
        file_chardev(&mut command, "log", log, None);
        command.args(["-serial", "chardev:log"]);
        command
    }

    /// Returns the command that starts it.
    pub(crate) fn command(&self, qemu: &Qemu) -> Command {
        let mut command = qemu.command(&LAUNCHER);
        let size = format!("{}K", self.memory.div_ceil(1 << 20) << 10);
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        if !self.reboots {
            command.arg("-no-reboot");
        }
        command.args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            self.cpu_model,
            "-machine",
            &format!("{},memory-backend=mem", self.chipset.machine()),
        ]);
        // The server maps this memory, and does DMA in it.
        command.args([
            "-object",
            &format!("memory-backend-memfd,id=mem,size={size},share=on"),
            "-m",
            &size,
        ]);
        command.args(["-smp", self.cpus]);
        self.start.add_to(&mut command);
        if self.iommu {
            // Before what it is for. The mode lets QEMU see mappings of devices in other processes.
            command.args(["-device", "intel-iommu,caching-mode=on"]);
        }
        for adapter in self.adapters {
            adapter.add_to(&mut command, self.chipset);
        }
        if let Some(plugin) = self.plugin {
            command.args(["-plugin", plugin]);
        }
        command
    }
}

/// Adds a character device that writes to a file, and reads from a pipe if one is given.
pub(crate) fn file_chardev(command: &mut Command, id: &str, path: &Path, input: Option<&Path>) {
    // QEMU reads a doubled comma as one within a value.
    let escape = |path: &Path| path.display().to_string().replace(',', ",,");
    let mut text = format!("file,id={id},path={}", escape(path));
    if let Some(input) = input {
        text += &format!(",input-path={}", escape(input));
    }
    command.args(["-chardev", &text]);
}
