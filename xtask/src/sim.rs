//! `sim`: simulates clusters of FIT in virtual time. The work is done by the crate of that name.

use anyhow::Result;

use crate::project::cargo;
use crate::tools::shown;

/// Simulates clusters of FIT, each run from a seed (`cargo xtask sim --help` lists what it takes)
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Arguments of the simulation
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        run(&words)
    }
}

/// Builds the simulation and runs it.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let mut command = cargo();
    command.args([
        "run",
        "--quiet",
        "--locked",
        "--profile",
        "sim",
        "--package",
        "sim",
        "--",
    ]);
    shown(command.args(words))
}
