//! `--screens`: what the nodes' screens show, by QEMU's `screendump`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::build_image::Role;

/// Time that QEMU may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

fn socket(folder: &Path, role: Role) -> PathBuf {
    folder.join(format!("{}.qmp", role.name()))
}

/// Gives a machine a screen, without a ROM for BIOSes, and QEMU's monitor to look at it.
pub(super) fn add_to(command: &mut Command, folder: &Path, role: Role) {
    command.args(["-device", "VGA,romfile="]);
    let socket = socket(folder, role).display().to_string();
    command.args(["-qmp", &format!("unix:{socket},server=on,wait=off")]);
}

/// Writes the screens of the nodes that still run at a program's end to `to`, as `ROLE.ppm`.
///
/// # Errors
///
/// If the folder can't be made or QEMU does not answer.
pub(super) fn take(folder: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("can't make {}", to.display()))?;
    let to = to.canonicalize()?;
    for role in [Role::Memory, Role::Storage] {
        let file = to.join(format!("{}.ppm", role.name()));
        let what = || format!("the screen of {}", role.name());
        dump(&socket(folder, role), &file).with_context(what)?;
    }
    Ok(())
}

fn dump(socket: &Path, file: &Path) -> Result<()> {
    let stream = UnixStream::connect(socket).context("QEMU has no monitor")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answers = BufReader::new(stream.try_clone()?).lines();
    let commands = [
        json!({ "execute": "qmp_capabilities" }),
        json!({ "execute": "screendump", "arguments": { "filename": file.display().to_string() } }),
    ];
    for command in commands {
        writeln!(&stream, "{command}")?;
        // Greeting and events come between.
        loop {
            let line = answers.next().context("QEMU hung up")??;
            let answer: Value = serde_json::from_str(&line)?;
            if answer.get("return").is_some() {
                break;
            }
            if let Some(error) = answer.get("error") {
                bail!("{}", error["desc"].as_str().unwrap_or("no reason"));
            }
        }
    }
    Ok(())
}
