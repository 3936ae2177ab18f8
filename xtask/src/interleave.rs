//! `interleave`: tries the orders in which cores come to what they share, by loom and shuttle (`testbed/interleave`, libos, processor).
//!
//! The flag that puts their locks in place of ours changes every crate that has some, so it builds into a folder of its own.

use anyhow::Result;

use crate::project::{self, cargo};
use crate::tools::shown;

/// Tries the orders in which tasks of different cores come to what they share
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the tests whose name holds this
    name: Option<String>,
}

/// The part of their names that tests of this kind beside the code have in common.
const OWN: &str = "interleavings";

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        run(self.name.as_deref())
    }
}

/// Runs all tests, or those whose name holds `name`.
pub(crate) fn run(name: Option<&str>) -> Result<()> {
    let folder = project::target_folder()?.join("interleave");
    for (package, part, filter) in [
        ("libos", "--lib", Some(name.unwrap_or(OWN))),
        ("processor", "--lib", Some(name.unwrap_or(OWN))),
        ("interleave", "--tests", name),
    ] {
        let mut command = cargo();
        command
            .args([
                "test",
                "--quiet",
                "--locked",
                "--package",
                package,
                part,
                "--target-dir",
            ])
            .arg(&folder)
            .arg("--")
            .args(filter)
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", "--cfg interleave -Dwarnings");
        shown(&mut command)?;
    }
    Ok(())
}
