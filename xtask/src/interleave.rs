//! `interleave`: model-checks shared state under loom and shuttle (`testbed/interleave`, libos,
//! processor).
//!
//! The flag that puts their locks in place of ours changes every crate that has some, so it builds
//! into a folder of its own.

use anyhow::Result;

use crate::project::{self, cargo};
use crate::tools::shown;

/// Model-checks shared state under loom and shuttle
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs only the tests with this in their name
    name: Option<String>,
}

/// Part of the names of all tests of this kind beside the code.
const OWN: &str = "interleavings";

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        run(self.name.as_deref())
    }
}

/// Runs all tests, or those with `name` in their name.
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
