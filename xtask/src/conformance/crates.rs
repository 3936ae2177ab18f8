//! Programs of suites that are published as crates.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::project::cargo;
use crate::tools::{quiet, step};

/// Builds a crate's program into the suite's `folder`, unless it is there.
///
/// # Errors
/// Names the crate that could not be fetched or built.
pub(super) fn install(folder: &Path, name: &str, version: &str) -> Result<()> {
    let program = folder.join(format!("{name}-{version}"));
    if program.exists() {
        return Ok(());
    }
    let work = folder.parent().context("the suite has a folder")?;
    let mut command = cargo();
    command
        .args(["install", "--locked", "--no-track", "--force", "--root"])
        .arg(work)
        .args(["--version", &format!("={version}"), name])
        .env("CARGO_TARGET_DIR", work.join("target"));
    step(&format!("Building {name} {version}"), || {
        quiet(&mut command)
    })?;
    let built = work.join("bin").join(name);
    fs::copy(&built, &program).with_context(|| format!("can't copy {}", built.display()))?;
    Ok(())
}
