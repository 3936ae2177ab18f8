//! QEMU's command line for a machine that has a card of the host's.

use std::path::Path;
use std::process::Command;

use super::bdf::Bdf;
use crate::bed::machine::file_chardev;
use crate::build_image::Role;

/// A machine under KVM.
pub(crate) struct Machine<'a> {
    pub(crate) role: Role,
    /// The card.
    pub(crate) bdf: Bdf,
    /// Bytes of its memory.
    pub(crate) memory: u64,
    /// KiB of a huge page.
    pub(crate) page: u64,
    /// NUMA node of its memory.
    pub(crate) node: Option<u32>,
    pub(crate) cpus: usize,
    pub(crate) image: &'a Path,
    pub(crate) command_line: &'a str,
    /// File for the kernel log.
    pub(crate) log: &'a Path,
}

impl Machine<'_> {
    /// Adds the machine to QEMU's command, without the disk or streams of its role.
    pub(crate) fn add_to(&self, command: &mut Command) {
        let name = self.role.name();
        // Threads with names are found for pinning.
        command.args(["-name", &format!("tessera-{name},debug-threads=on")]);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        command.args([
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-machine",
            "q35,memory-backend=mem",
        ]);
        let size = format!("{}K", self.memory >> 10);
        let page = self.page;
        let mut memory = format!(
            "memory-backend-memfd,id=mem,size={size},share=on,prealloc=on,\
             hugetlb=on,hugetlbsize={page}K"
        );
        if let Some(node) = self.node {
            memory += &format!(",host-nodes={node},policy=bind");
        }
        command.args([
            "-object",
            &memory,
            "-m",
            &size,
            "-smp",
            &self.cpus.to_string(),
        ]);
        command
            .arg("-kernel")
            .arg(self.image)
            .args(["-append", self.command_line]);
        // Without the card's option ROM, whose PXE client would start first.
        let card = format!("vfio-pci,host={},addr=0x8,rombar=0", self.bdf);
        command.args(["-device", &card]);
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
        file_chardev(command, "log", self.log, None);
        command.args(["-serial", "chardev:log"]);
    }
}

/// Returns a command as a shell takes it, with the value of `key=` left out.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| quoted(&without_key(&word.to_string_lossy())));
    words.collect::<Vec<_>>().join(" ")
}

fn without_key(word: &str) -> String {
    let token = |token: &str| match token.starts_with("key=") {
        true => "key=…".to_owned(),
        false => token.to_owned(),
    };
    word.split(' ').map(token).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=,./:%+@".contains(&byte);
    match !word.is_empty() && word.bytes().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}
