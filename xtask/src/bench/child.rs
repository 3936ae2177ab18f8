//! Runs of `xtask` itself, each a process of its own: each handles signals, and Ctrl-C reaches all.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `cargo xtask` with these words and returns its standard output.
///
/// # Errors
/// Names the words, with all that was said.
pub(super) fn xtask(words: &[impl AsRef<OsStr>]) -> Result<String> {
    xtask_with(words, &[])
}

/// Runs a command, as [`xtask`] does, with variables in its environment.
///
/// # Errors
/// As [`xtask`].
pub(super) fn xtask_with(
    words: &[impl AsRef<OsStr>],
    variables: &[(&str, &OsStr)],
) -> Result<String> {
    let this = std::env::current_exe().context("can't find this program")?;
    let output = Command::new(this)
        .args(words)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .context("can't start a run")?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let words: Vec<_> = words
            .iter()
            .map(|word| word.as_ref().to_string_lossy())
            .collect();
        bail!(
            "`cargo xtask {}` ended with {}:\n{stdout}{stderr}",
            words.join(" "),
            output.status
        );
    }
    Ok(stdout)
}
