//! A QEMU that has vfio-user: the system's if it does, else Debian's from its backports, unpacked
//! in the cache.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::debian::{Bundle, TRIXIE};
use crate::tools::{self, find};

const PROGRAM: &str = "qemu-system-x86_64";
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Debian's build. Debian 13 itself has 10.0, which lacks the device.
const BUNDLE: Bundle<'_> = Bundle {
    name: "qemu-1",
    release: TRIXIE,
    packages: &["qemu-system-x86"],
    dependencies: true,
    backports: true,
    files: &[
        LOADER,
        "usr/bin/qemu-system-x86_64",
        "usr/share/qemu",
        "usr/share/seabios/bios-256k.bin",
    ],
};

/// QEMU's program, with the arguments that it needs before others.
#[derive(Clone, Debug)]
pub(crate) struct Qemu {
    program: PathBuf,
    args: Vec<String>,
    /// First line of `--version`.
    pub(crate) version: String,
}

impl Qemu {
    /// Returns the system's QEMU, or one fetched from Debian now or before.
    pub(crate) fn obtain() -> Result<Self> {
        if let Some(qemu) = Self::system() {
            return Ok(qemu);
        }
        Self::private().context(
            "no QEMU with the device vfio-user-pci: install QEMU 10.1 or later, or let Debian's be fetched \
             (see docs/user/run.md)",
        )
    }

    /// Returns the system's QEMU, if it has the device.
    pub(crate) fn system() -> Option<Self> {
        let program = find(PROGRAM)?;
        let devices = tools::quiet(Command::new(&program).args(["-device", "help"])).ok()?;
        if !devices.contains("\"vfio-user-pci\"") {
            return None;
        }
        let version = version(&program, &[]).ok()?;
        Some(Self {
            program,
            args: Vec::new(),
            version,
        })
    }

    /// Returns Debian's QEMU, run by its own loader so that it finds its own libraries and nothing
    /// need be installed.
    ///
    /// It is not asked for its devices: where another QEMU is installed it would look for modules
    /// in that one's folder and refuse them.
    fn private() -> Result<Self> {
        let root = BUNDLE.obtain()?;
        let path = |part: &str| root.join(part).display().to_string();
        let program = root.join(LOADER);
        let mut args = vec![
            "--library-path".into(),
            path(LIBRARIES),
            path("usr/bin/qemu-system-x86_64"),
        ];
        let version = version(&program, &args).with_context(|| {
            format!(
                "the QEMU in {} does not run: remove that folder and try again",
                root.display()
            )
        })?;
        for folder in ["usr/share/qemu", "usr/share/seabios"] {
            args.extend(["-L".into(), path(folder)]);
        }
        Ok(Self {
            program,
            args,
            version,
        })
    }

    /// Returns the folder with Debian's QEMU and its libraries, whatever the system has.
    pub(crate) fn folder() -> Result<PathBuf> {
        BUNDLE.obtain()
    }

    /// Returns a command that starts it, with the options that it always needs.
    pub(crate) fn command(&self, launcher: &[&str]) -> Command {
        let mut words = launcher
            .iter()
            .map(PathBuf::from)
            .chain([self.program.clone()]);
        let mut command = Command::new(words.next().expect("at least the program"));
        command.args(words).args(&self.args).stdin(Stdio::null());
        command
    }

    /// Returns that command's words, for a test that starts QEMU itself.
    ///
    /// # Errors
    /// If one holds a space, which parts them.
    pub(crate) fn words(&self) -> Result<String> {
        let program = self.program.display().to_string();
        let words: Vec<_> = std::iter::once(program)
            .chain(self.args.iter().cloned())
            .collect();
        for word in &words {
            ensure!(
                !word.contains(' '),
                "QEMU's place has a space in it: {word}"
            );
        }
        Ok(words.join(" "))
    }
}

fn version(program: &PathBuf, args: &[String]) -> Result<String> {
    let text = tools::quiet(Command::new(program).args(args).arg("--version"))?;
    let first = text.lines().next().unwrap_or_default();
    ensure!(
        first.starts_with("QEMU emulator version"),
        "it says {first:?}"
    );
    Ok(first.into())
}
