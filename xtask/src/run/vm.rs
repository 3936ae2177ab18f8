//! QEMU's command line for one node.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::LAUNCHER;
use crate::build_image::Role;
use crate::qemu::Qemu;

/// One node's machine.
pub(crate) struct Vm<'a> {
    /// What it is.
    pub(crate) role: Role,
    /// Its image.
    pub(crate) image: PathBuf,
    /// Its kernel command line.
    pub(crate) command_line: String,
    /// Its main memory in bytes.
    pub(crate) memory: u64,
    /// Its cores.
    pub(crate) cpus: u32,
    /// The folder of the run, with sockets, consoles and disk.
    pub(crate) folder: &'a Path,
}

/// Files of a run, by the names that the server, the VMs and we agree on.
pub(crate) mod names {
    use std::path::{Path, PathBuf};

    /// A node's adapter.
    pub(crate) fn socket(folder: &Path, node: &str) -> PathBuf {
        folder.join(format!("{node}.sock"))
    }

    /// A node's log.
    pub(crate) fn log(folder: &Path, node: &str) -> PathBuf {
        folder.join(format!("{node}.log"))
    }

    /// P's standard output, error and input.
    pub(crate) fn stdout(folder: &Path) -> PathBuf {
        folder.join("stdout")
    }
    /// See [`stdout`].
    pub(crate) fn stderr(folder: &Path) -> PathBuf {
        folder.join("stderr")
    }
    /// See [`stdout`].
    pub(crate) fn stdin(folder: &Path) -> PathBuf {
        folder.join("stdin")
    }

    /// S's disk.
    pub(crate) fn disk(folder: &Path) -> PathBuf {
        folder.join("disk.img")
    }
}

impl Vm<'_> {
    /// The command that starts it.
    pub(crate) fn command(&self, qemu: &Qemu) -> Command {
        let mut command = qemu.command(&LAUNCHER);
        let size = format!("{}K", self.memory.div_ceil(1 << 20) << 10);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-machine",
            "q35,memory-backend=mem",
        ]);
        // The server maps this memory, and does DMA in it.
        command.args([
            "-object",
            &format!("memory-backend-memfd,id=mem,size={size},share=on"),
            "-m",
            &size,
        ]);
        command.args(["-smp", &self.cpus.to_string()]);
        command
            .arg("-kernel")
            .arg(&self.image)
            .args(["-append", &self.command_line]);
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
        self.file_chardev(
            &mut command,
            "log",
            &names::log(self.folder, self.role.name()),
            None,
        );
        command.args(["-serial", "chardev:log"]);
        let socket = names::socket(self.folder, self.role.name()).display().to_string();
        let device = serde_json::json!({
            "driver": "vfio-user-pci", "addr": "0x8", "socket": { "type": "unix", "path": socket },
        });
        command.arg("-device").arg(device.to_string());
        match self.role {
            Role::Processor => self.consoles(&mut command),
            Role::Storage => self.disk(&mut command),
            Role::Memory => {}
        }
        command
    }

    /// Two virtio serial devices with a port each, in the order of their slots.
    fn consoles(&self, command: &mut Command) {
        let input = names::stdin(self.folder);
        self.file_chardev(command, "stdout", &names::stdout(self.folder), Some(&input));
        self.file_chardev(command, "stderr", &names::stderr(self.folder), None);
        for (id, slot) in [("stdout", "0x10"), ("stderr", "0x11")] {
            let bus = format!("virtio-serial-pci,id=bus-{id},addr={slot},max_ports=2,disable-legacy=on");
            command.args([
                "-device",
                &bus,
                "-device",
                &format!("virtserialport,nr=1,chardev={id},bus=bus-{id}.0"),
            ]);
        }
    }

    fn disk(&self, command: &mut Command) {
        let node = serde_json::json!({
            "driver": "raw", "node-name": "disk", "read-only": true,
            "file": { "driver": "file", "filename": names::disk(self.folder).display().to_string(), "read-only": true },
        });
        command.arg("-blockdev").arg(node.to_string());
        command.args(["-device", "virtio-blk-pci,drive=disk,addr=0x10,disable-legacy=on"]);
    }

    fn file_chardev(&self, command: &mut Command, id: &str, path: &Path, input: Option<&Path>) {
        // QEMU reads a doubled comma as one within a value.
        let escape = |path: &Path| path.display().to_string().replace(',', ",,");
        let mut text = format!("file,id={id},path={}", escape(path));
        if let Some(input) = input {
            text += &format!(",input-path={}", escape(input));
        }
        command.args(["-chardev", &text]);
    }
}
