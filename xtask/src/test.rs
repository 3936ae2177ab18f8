//! `test`: runs every check and test, as the README names it and CI runs it.

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::project::{self, BARE, UEFI, cargo};
use crate::qemu::Qemu;
use crate::tools::{find, quiet, shown};
use crate::{build_image, fuzz, interleave, ipxe, lint, linux, mutants, nodes, run, sim};

/// Packages that are built for the bare target besides the host; others are of the host alone.
const BARE_PACKAGES: [&str; 20] = [
    "ext4",
    "hal",
    "handover",
    "leases",
    "libos",
    "mad",
    "mlx4",
    "mlx4_hw",
    "verbs",
    "messages",
    "fit",
    "fit_node",
    "pcache",
    "metrics",
    "mutants",
    "node",
    "selftest",
    "processor",
    "memory",
    "storage",
];

/// Checks formatting, lints and tests, then runs whole clusters in QEMU
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leaves out the clusters in QEMU, and says so
    #[arg(long)]
    quick: bool,
    /// Runs all checks by Linux guests and nothing else; with a value those whose group's or own
    /// name holds it
    #[arg(
        long,
        value_name = "NAME",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        conflicts_with = "quick"
    )]
    linux: Option<String>,
    /// Runs only the steps whose name holds this (for instance "clusters" or "documentation")
    #[arg(long, value_name = "STEP", conflicts_with_all = ["quick", "linux"])]
    only: Option<String>,
}

/// Counts of passed and failed steps.
#[derive(Default)]
struct Tally {
    only: Option<String>,
    passed: u32,
    failed: u32,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        if let Some(filter) = &self.linux {
            return linux_tests(&["--all", filter]);
        }
        let mut tally = Tally {
            only: self.only.clone(),
            ..Tally::default()
        };
        tally.step("formatting", || {
            shown(cargo().args(["fmt", "--all", "--check"]))
        });
        tally.step("rules of the house", || lint::Args {}.run());
        tally.step("clippy, host", || clippy(&["--workspace", "--all-targets"]));
        tally.step("clippy, bare", || {
            project::need_target(BARE)?;
            let packages = BARE_PACKAGES
                .into_iter()
                .flat_map(|name| ["--package", name]);
            clippy(
                &["--target", BARE, "--lib", "--bins"]
                    .into_iter()
                    .chain(packages)
                    .collect::<Vec<_>>(),
            )
        });
        tally.step("clippy, UEFI", || {
            project::need_target(UEFI)?;
            clippy(&[
                "--target",
                UEFI,
                "--lib",
                "--bins",
                "--package",
                "uefi_loader",
            ])
        });
        tally.step("documentation", || {
            shown(
                cargo()
                    .args(["doc", "--quiet", "--locked", "--workspace", "--no-deps"])
                    .env("RUSTDOCFLAGS", "-D warnings"),
            )
        });
        tally.step("tests on the host", host_tests);
        tally.step("orders of cores", || interleave::run(None));
        tally.step("fuzz targets", fuzz::test);
        tally.step("simulated clusters", || sim::run(&["--seeds", "100"]));
        tally.step("mutants", || mutants::run(None));
        tally.step("a real program is loaded", loader_test);
        if self.quick {
            println!("libos and clusters in QEMU: left out, as --quick says");
        } else {
            tally.step("libos in QEMU", libos_tests);
            tally.step("clusters in QEMU", cluster_tests);
            tally.step("Linux on the modelled adapters", || linux_tests(&[]));
        }
        println!("{} passed, {} failed", tally.passed, tally.failed);
        if let Some(only) = &self.only {
            ensure!(
                tally.passed + tally.failed > 0,
                "no step's name holds {only:?}"
            );
        }
        ensure!(
            tally.failed == 0,
            "{} of the steps above failed",
            tally.failed
        );
        Ok(())
    }
}

impl Tally {
    fn step(&mut self, name: &str, body: impl FnOnce() -> Result<()>) {
        if self
            .only
            .as_ref()
            .is_some_and(|only| !name.contains(only.as_str()))
        {
            return;
        }
        println!("{name} …");
        // The step's own output follows.
        let _ = std::io::stdout().flush();
        let start = Instant::now();
        let result = body();
        let seconds = start.elapsed().as_secs();
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("{name}: passed ({seconds} s)");
            }
            Err(error) => {
                self.failed += 1;
                println!("{name}: FAILED ({seconds} s): {error:#}");
            }
        }
    }
}

fn clippy(args: &[&str]) -> Result<()> {
    shown(
        cargo()
            .args(["clippy", "--quiet", "--locked"])
            .args(args)
            .args(["--", "-D", "warnings"]),
    )
}

fn host_tests() -> Result<()> {
    let nextest = find("cargo-nextest").is_some()
        && quiet(Command::new("cargo-nextest").arg("--version")).is_ok();
    let runner: &[&str] = if nextest {
        &["nextest", "run"]
    } else {
        &["test", "--quiet"]
    };
    shown(
        cargo()
            .args(runner)
            .args(["--locked", "--workspace", "--exclude", "testbed_tests"]),
    )?;
    if nextest {
        // It runs no examples in documentation.
        shown(cargo().args(["test", "--quiet", "--locked", "--workspace", "--doc"]))?;
    }
    Ok(())
}

/// Tests the loader with a real program: Debian's busybox.
fn loader_test() -> Result<()> {
    let busybox = run::busybox()?;
    let mut command = cargo();
    command.args([
        "test",
        "--quiet",
        "--locked",
        "--package",
        "processor",
        "--lib",
    ]);
    command.args(["--", "--ignored", "--exact"]);
    command.arg("tests::real_program_is_loaded_whole_through_a_small_cache");
    shown(command.env("TESSERA_STATIC_PROGRAM", busybox))
}

/// libos's own tests, on the machine that it is for.
fn libos_tests() -> Result<()> {
    let words = Qemu::obtain()?.words()?;
    let mut command = cargo();
    command.args([
        "test",
        "--quiet",
        "--locked",
        "--package",
        "selftest",
        "--test",
        "qemu",
    ]);
    // They start a machine each: as many as there are cores would disturb each other.
    command.args(["--", "--ignored", "--test-threads=1"]);
    shown(command.env("TESSERA_QEMU", words))
}

/// Returns the names of all test programs for clusters, so that none is left out: the files beside
/// the folder with the checks by Linux guests, which are a step of their own.
fn cluster_test_names() -> Result<Vec<String>> {
    let folder = project::root().join("testbed/tests/tests");
    let entries =
        std::fs::read_dir(&folder).with_context(|| format!("can't list {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry
            .with_context(|| format!("can't list {}", folder.display()))?
            .path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(
                path.file_stem()
                    .map(|name| name.to_string_lossy().into_owned()),
            );
        }
    }
    names.sort();
    Ok(names)
}

/// Runs the tests of clusters one at a time, for each needs the machine. A variable tells them this
/// program.
fn cluster_tests() -> Result<()> {
    run::prepare()?;
    nodes::prepare()?;
    let mut command = cargo();
    // A file of tests that fails does not keep the others from being run.
    command.args(["test", "--locked", "--no-fail-fast"]);
    command.args(["--package", "testbed_tests", "--lib"]);
    for name in cluster_test_names()? {
        command.args(["--test", &name]);
    }
    command.args(["--", "--test-threads=1"]);
    command.env("TESSERA_XTASK", std::env::current_exe()?);
    let start = Instant::now();
    shown(&mut command)?;
    ensure!(
        start.elapsed() < LIMIT,
        "they took over {} minutes",
        LIMIT.as_secs() / 60
    );
    Ok(())
}

/// Runs the Linux guests, one group after the other; they print a line a check.
fn linux_tests(args: &[&str]) -> Result<()> {
    linux::prepare()?;
    let mut command = cargo();
    command.args(["test", "--quiet", "--locked", "--package", "testbed_tests"]);
    command.args(["--test", "linux", "--"]).args(args);
    // Some start an image of ours beside the guests.
    command.env("TESSERA_QEMU", Qemu::obtain()?.words()?);
    command.env("TESSERA_IPXE", ipxe::obtain()?);
    command.env("TESSERA_PROBE", build_image::build_probe()?);
    shown(command.env("TESSERA_XTASK", std::env::current_exe()?))
}

/// Time limit of all clusters together.
const LIMIT: Duration = Duration::from_secs(40 * 60);
