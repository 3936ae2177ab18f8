//! A hybrid ISO: firmware boots it from a CD, or from a stick that it was copied to.
//!
//! `xorriso` writes it, the system's or Debian's: no crate writes an El Torito record that points
//! into an appended partition.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::debian::{Bundle, TRIXIE};
use crate::tools::{find, quiet};

const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const PROGRAM: &str = "usr/bin/xorriso";
const BUNDLE: Bundle<'_> = Bundle {
    name: "xorriso-1",
    release: TRIXIE,
    packages: &["xorriso"],
    dependencies: true,
    backports: false,
    files: &[LOADER, PROGRAM],
};
/// The type of an EFI system partition.
const ESP: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
/// All times in the image, and what makes its identifiers: 2000-01-01.
const EPOCH: Duration = Duration::from_secs(946_684_800);
const DATE: &str = "2000010100000000";

fn xorriso() -> Result<Command> {
    if let Some(program) = find("xorriso") {
        return Ok(Command::new(program));
    }
    let root = BUNDLE
        .obtain()
        .context("no xorriso: install it, or let Debian's be fetched (see docs/user/run.md)")?;
    let mut command = Command::new(root.join(LOADER));
    command.arg("--library-path");
    command.arg(root.join("usr/lib/x86_64-linux-gnu"));
    command.arg(root.join(PROGRAM));
    Ok(command)
}

/// Writes an ISO whose EFI system partition is `volume`.
pub(super) fn write(path: &Path, volume: &[u8]) -> Result<()> {
    let work = PathBuf::from(format!("{}.work", path.display()));
    let problem = || format!("can't make {}", work.display());
    let root = work.join("root");
    fs::create_dir_all(&root).with_context(problem)?;
    let esp = work.join("esp.img");
    fs::write(&esp, volume).with_context(problem)?;
    let readme = root.join("README.TXT");
    fs::write(
        &readme,
        "Tessera. UEFI firmware boots the appended partition.\r\n",
    )
    .with_context(problem)?;
    // xorriso records the times that the host has for them.
    for path in [&readme, &root] {
        fs::File::open(path)
            .and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH + EPOCH))
            .with_context(problem)?;
    }
    let mut command = xorriso()?;
    command
        .env("SOURCE_DATE_EPOCH", EPOCH.as_secs().to_string())
        .env("TZ", "UTC");
    command.args(["-no_rc", "-as", "mkisofs", "-quiet", "-V", "TESSERA"]);
    command.arg(format!("--modification-date={DATE}"));
    command.args([
        "--set_all_file_dates",
        "set_to_mtime",
        "-append_partition",
        "2",
        ESP,
    ]);
    command.arg(&esp);
    command.args([
        "-appended_part_as_gpt",
        "-partition_offset",
        "16",
        "-e",
        "--interval:appended_partition_2:all::",
        "-no-emul-boot",
        "-o",
    ]);
    // It refuses to write over a file that is no ISO.
    let _ = fs::remove_file(path);
    quiet(command.arg(path).arg(&root))
        .with_context(|| format!("can't make {}", path.display()))?;
    fs::remove_dir_all(&work).with_context(|| format!("can't remove {}", work.display()))
}
