//! `doctor`: lists the required programs, present and missing, and how to get the missing ones.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::project::{self, BARE, UEFI};
use crate::qemu::Qemu;
use crate::tools::{find, quiet};

/// Tells what is present and what is missing, with remedies
#[derive(clap::Args)]
pub(crate) struct Args {}

/// State of one requirement.
enum State {
    Here(String),
    /// Missing, and the other commands will get it by themselves.
    Obtained(String),
    Missing(String),
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let mut missing = 0;
        for (name, state) in examine() {
            let (word, text) = match state {
                State::Here(text) => ("ok", text),
                State::Obtained(text) => ("later", text),
                State::Missing(text) => {
                    missing += 1;
                    ("MISSING", text)
                }
            };
            println!("{word:<8}{name:<20}{text}");
        }
        ensure!(missing == 0, "{missing} missing");
        Ok(())
    }
}

fn examine() -> Vec<(&'static str, State)> {
    let cargo = match quiet(project::cargo().arg("--version")) {
        Ok(version) => State::Here(version.trim().into()),
        Err(error) => State::Missing(format!("install Rust from https://rustup.rs ({error:#})")),
    };
    let target = |name: &str| match project::has_target(name) {
        Ok(true) => State::Here("installed".into()),
        Ok(false) if find("rustup").is_some() => {
            State::Obtained(format!("`rustup target add {name}` gets it"))
        }
        _ => State::Missing(
            "install rustup (https://rustup.rs), which follows rust-toolchain.toml".into(),
        ),
    };
    let packages = match (find("apt-get"), find("dpkg-deb")) {
        (Some(_), Some(_)) => State::Here("apt-get and dpkg-deb".into()),
        _ => State::Missing(
            "apt-get and dpkg-deb: run on Debian 12 or later, or see docs/user/run.md".into(),
        ),
    };
    let qemu = match Qemu::system() {
        Some(qemu) => State::Here(qemu.version),
        None => State::Obtained(
            "the system has none with vfio-user-pci; Debian's is fetched and not installed".into(),
        ),
    };
    let mut states = vec![
        ("cargo", cargo),
        (BARE, target(BARE)),
        (UEFI, target(UEFI)),
        ("packages", packages),
        ("qemu", qemu),
    ];
    for (program, remedy) in [
        ("mke2fs", "`apt-get install e2fsprogs`"),
        ("setpriv", "`apt-get install util-linux`"),
    ] {
        let state = match find(program) {
            Some(path) => State::Here(path.display().to_string()),
            None => State::Missing(remedy.into()),
        };
        states.push((program, state));
    }
    let compiler = match find("gcc") {
        Some(path) => State::Here(format!("{}, for the tests' musl programs", path.display())),
        None => {
            State::Missing("`apt-get install gcc`: the tests build a program against musl".into())
        }
    };
    states.push(("gcc", compiler));
    let compiler = match find("c++") {
        Some(path) => State::Here(format!("{}, for libFuzzer", path.display())),
        None => State::Missing("`apt-get install g++`: `cargo xtask fuzz` builds libFuzzer".into()),
    };
    states.push(("c++", compiler));
    let nextest = match quiet(Command::new("cargo-nextest").arg("--version")) {
        Ok(_) => State::Here("tests run by it".into()),
        Err(_) => State::Here("not here; tests run by `cargo test`, which does as well".into()),
    };
    states.push(("cargo-nextest", nextest));
    states
}
