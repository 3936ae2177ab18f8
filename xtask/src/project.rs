//! The source tree, and cargo.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::tools;

/// The target that unikernels are built for.
pub(crate) const BARE: &str = "x86_64-unknown-none";

/// Target that the UEFI loader is built for.
pub(crate) const UEFI: &str = "x86_64-unknown-uefi";

/// Returns the root of the source tree.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies within the source tree")
}

/// Returns a command of cargo in the source tree.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Returns `cargo metadata` of the workspace: its own packages only.
pub(crate) fn metadata() -> Result<Value> {
    let text =
        tools::quiet(cargo().args(["metadata", "--no-deps", "--format-version", "1", "--locked"]))?;
    serde_json::from_str(&text).context("can't read what `cargo metadata` says")
}

/// Returns the folder of cargo's build results.
pub(crate) fn target_folder() -> Result<PathBuf> {
    let metadata = metadata()?;
    let folder = metadata["target_directory"]
        .as_str()
        .context("`cargo metadata` names no target folder")?;
    Ok(folder.into())
}

/// Builds the server of the modelled adapters and gives its path.
pub(crate) fn build_hca_server() -> Result<PathBuf> {
    tools::shown(cargo().args([
        "build",
        "--quiet",
        "--release",
        "--locked",
        "--package",
        "hca_server",
    ]))?;
    Ok(target_folder()?.join("release/hca_server"))
}

/// Returns whether a target is installed.
pub(crate) fn has_target(target: &str) -> Result<bool> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let sysroot = tools::quiet(
        Command::new(rustc)
            .args(["--print", "sysroot"])
            .current_dir(root()),
    )?;
    Ok(Path::new(sysroot.trim())
        .join("lib/rustlib")
        .join(target)
        .join("lib")
        .is_dir())
}

/// Installs a target if it is missing.
pub(crate) fn need_target(target: &str) -> Result<()> {
    if has_target(target)? {
        return Ok(());
    }
    let remedy = "install rustup (https://rustup.rs), which follows rust-toolchain.toml";
    let rustup = tools::need("rustup", remedy)?;
    tools::step(&format!("Installing the Rust target {target}"), || {
        tools::shown(
            Command::new(rustup)
                .args(["target", "add", target])
                .current_dir(root()),
        )
    })
}
