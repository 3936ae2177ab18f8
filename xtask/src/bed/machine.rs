//! QEMU's command line for a machine with a modelled adapter.

use std::path::Path;
use std::process::Command;

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

    fn bus(self) -> &'static str {
        match self {
            Self::Q35 => "pcie.0",
            Self::Pc => "pci.0",
        }
    }
}

/// A machine whose memory the fabric's server may map, its adapter in slot 8.
pub(crate) struct Machine<'a> {
    /// Starter of the machine.
    pub(crate) start: Start<'a>,
    /// Its chipset.
    pub(crate) chipset: Chipset,
    /// Its CPUs' model, as QEMU names it.
    pub(crate) cpu_model: &'a str,
    /// Its main memory in bytes.
    pub(crate) memory: u64,
    /// Its cores.
    pub(crate) cpus: u32,
    /// Its adapter's socket.
    pub(crate) adapter: &'a Path,
    /// The adapter is in a slot, behind a port that reports the link's width and speed. If unset,
    /// it is on the root bus.
    pub(crate) slot: bool,
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
        command.args(["-smp", &self.cpus.to_string()]);
        self.start.add_to(&mut command);
        let socket = self.adapter.display().to_string();
        let (bus, place) = if self.slot {
            command.args(["-device", "pcie-root-port,id=root-port,addr=0x8"]);
            ("root-port", "0x0")
        } else {
            (self.chipset.bus(), "0x8")
        };
        let device = serde_json::json!({
            "driver": "vfio-user-pci", "bus": bus, "addr": place, "socket": { "type": "unix", "path": socket },
        });
        command.arg("-device").arg(device.to_string());
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
