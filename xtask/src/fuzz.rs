//! `fuzz`: fuzzes every parser of untrusted input, guided by coverage (`testbed/fuzz`).
//!
//! libFuzzer searches; the compiler counts edges and tells comparisons, by passes that stable Rust
//! has. All targets are in one program. Before anything else it must find what is planted in a
//! target of its own, or the search is not guided.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};

use crate::project::{self, cargo};
use crate::tools::{find, quiet, shown, step};

/// Fuzzes every parser of untrusted input, guided by coverage
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Targets to fuzz; all if none is named
    targets: Vec<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Lists the targets
    #[arg(long)]
    list: bool,
    /// Feeds this file, once, to the target named
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seconds", "list"])]
    input: Option<PathBuf>,
}

/// Compiler flags that count edges and trace comparisons for libFuzzer.
const COVERAGE: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebuginfo=line-tables-only",
    "-Ccodegen-units=1",
];
/// An input that takes so many seconds is a finding. Even a busy machine needs far less.
const SLOW: u32 = 30;
/// An input that takes so many megabytes of memory is a finding, too.
const LARGE: u32 = 2048;
/// Inputs within which the planted bytes must be found; some thousands are usual.
const PLANTED_RUNS: u32 = 5_000_000;
/// Limits of each target in `cargo xtask test`, in seconds and in inputs. The limit of inputs keeps
/// a fast machine from trying there what a slow one tries only when given more time.
const TEST_SECONDS: u32 = 2;
const TEST_RUNS: u32 = 50_000;

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let fuzzer = Fuzzer::build()?;
        if self.list {
            fuzzer
                .targets
                .iter()
                .for_each(|(name, _)| println!("{name}"));
            return Ok(());
        }
        for name in &self.targets {
            ensure!(
                fuzzer.targets.iter().any(|(known, _)| known == name),
                "no target is called {name}: --list lists them"
            );
        }
        if let Some(file) = &self.input {
            let [name] = &self.targets[..] else {
                bail!("--input needs one target")
            };
            return fuzzer.feed(name, file);
        }
        fuzzer.find_planted()?;
        let wanted = |name: &str| {
            self.targets.is_empty() || self.targets.iter().any(|target| target == name)
        };
        fuzzer.search_all(
            wanted,
            &Search {
                corpus: fuzzer.folder.join("corpus"),
                seconds: self.seconds,
                runs: None,
                seed: None,
            },
        )
    }
}

/// Runs a short search of all targets, from their seeds alone and in the same order each time.
pub(crate) fn test() -> Result<()> {
    let fuzzer = Fuzzer::build()?;
    fuzzer.find_planted()?;
    let corpus = fuzzer.folder.join("test-corpus");
    if corpus.exists() {
        fs::remove_dir_all(&corpus)
            .with_context(|| format!("can't remove {}", corpus.display()))?;
    }
    fuzzer.search_all(
        |_| true,
        &Search {
            corpus,
            seconds: TEST_SECONDS,
            runs: Some(TEST_RUNS),
            seed: Some(1),
        },
    )
}

/// Parameters of a search.
struct Search {
    /// Folder with a folder for each target, of the inputs that reached something new.
    corpus: PathBuf,
    seconds: u32,
    runs: Option<u32>,
    seed: Option<u32>,
}

/// The program with all targets.
struct Fuzzer {
    program: PathBuf,
    folder: PathBuf,
    /// Names and longest inputs.
    targets: Vec<(String, u32)>,
}

impl Fuzzer {
    fn build() -> Result<Self> {
        ensure!(
            find("c++").is_some() || std::env::var_os("CXX").is_some(),
            "libFuzzer needs a C++ compiler: `apt-get install g++`"
        );
        let folder = project::target_folder()?.join("fuzz");
        let host = host()?;
        let mut command = cargo();
        command
            .args([
                "build",
                "--quiet",
                "--locked",
                "--profile",
                "sim",
                "--package",
                "fuzz",
            ])
            .args(["--features", "engine", "--target", &host, "--target-dir"])
            .arg(&folder)
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            // Named with its target, so that build scripts are built without.
            .env("RUSTFLAGS", COVERAGE.join(" "));
        step("Building the fuzz targets", || shown(&mut command))?;
        let program = folder.join(host).join("sim/fuzz");
        let listed = quiet(Command::new(&program).env_remove("TESSERA_FUZZ_TARGET"))?;
        let targets = listed
            .lines()
            .map(|line| {
                let (name, len) = line
                    .split_once('\t')
                    .context("the targets are not listed as expected")?;
                Ok((name.to_owned(), len.parse()?))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            program,
            folder,
            targets,
        })
    }

    /// Returns the program's command, set to a target.
    fn command(&self, target: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("TESSERA_FUZZ_TARGET", target)
            .env("RUST_BACKTRACE", "1")
            .arg(format!("-timeout={SLOW}"))
            .arg(format!("-rss_limit_mb={LARGE}"));
        command
    }

    /// Checks that the search is guided: nine bytes cannot be guessed.
    fn find_planted(&self) -> Result<()> {
        let prefix = format!("-artifact_prefix={}/", self.findings()?.display());
        let output = self
            .command("planted")
            .args(["-seed=1", "-max_len=16", &prefix])
            .arg(format!("-runs={PLANTED_RUNS}"))
            .output()
            .context("can't run the fuzz targets")?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success() && told.contains("found what was planted"),
            "the search is not guided: what was planted is not found\n{told}"
        );
        Ok(())
    }

    fn findings(&self) -> Result<PathBuf> {
        let folder = self.folder.join("findings");
        fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        Ok(folder)
    }

    /// Feeds one file.
    fn feed(&self, target: &str, file: &Path) -> Result<()> {
        let file = file
            .canonicalize()
            .with_context(|| format!("can't find {}", file.display()))?;
        shown(self.command(target).arg(file))?;
        println!("{target} takes it");
        Ok(())
    }

    /// Searches several targets, as many at a time as there are cores.
    fn search_all(&self, wanted: impl Fn(&str) -> bool, search: &Search) -> Result<()> {
        let targets: Vec<_> = self
            .targets
            .iter()
            .filter(|(name, _)| wanted(name))
            .collect();
        let width = targets
            .iter()
            .map(|(name, _)| name.len())
            .max()
            .unwrap_or(0);
        let next = AtomicUsize::new(0);
        let failed = Mutex::new(Vec::new());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..cores.min(targets.len()) {
                scope.spawn(|| {
                    while let Some((name, max_len)) =
                        targets.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        match self.search(name, *max_len, search) {
                            Ok(line) => println!("{name:width$}  {line}"),
                            Err(error) => {
                                println!("{name:width$}  FAILED: {error:#}");
                                failed
                                    .lock()
                                    .unwrap_or_else(PoisonError::into_inner)
                                    .push(name.as_str());
                            }
                        }
                    }
                });
            }
        });
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        ensure!(failed.is_empty(), "findings in {}", failed.join(", "));
        Ok(())
    }

    /// Searches one target; gives a line about it.
    fn search(&self, target: &str, max_len: u32, search: &Search) -> Result<String> {
        let corpus = search.corpus.join(target);
        fs::create_dir_all(&corpus).with_context(|| format!("can't make {}", corpus.display()))?;
        let prefix = self.findings()?.join(format!("{target}-"));
        let mut command = self.command(target);
        command
            .env("TESSERA_FUZZ_SEEDS", &corpus)
            .arg(format!("-max_total_time={}", search.seconds.max(1)))
            .arg(format!("-max_len={max_len}"))
            .arg(format!("-artifact_prefix={}", prefix.display()))
            .args([
                "-print_final_stats=1",
                "-len_control=20",
                "-use_value_profile=1",
            ])
            .args(search.runs.map(|runs| format!("-runs={runs}")))
            .args(search.seed.map(|seed| format!("-seed={seed}")))
            .arg(&corpus);
        let output = command.output().context("can't run the fuzz targets")?;
        let told = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            return summary(&told).context("libFuzzer does not say what it did");
        }
        bail!("{}", finding(target, &output, &told))
    }
}

/// Returns a search's figures from libFuzzer's output: inputs, edges and the inputs that reached
/// something new.
fn summary(told: &str) -> Option<String> {
    let after = |line: &str, label: &str| {
        let (_, rest) = line.split_once(label)?;
        Some(rest.split_whitespace().next()?.to_owned())
    };
    let stat = |name: &str| told.lines().find_map(|line| after(line, name));
    let runs = stat("stat::number_of_executed_units:")?;
    let new = stat("stat::new_units_added:")?;
    let edges = told.lines().rev().find_map(|line| after(line, " cov: "))?;
    Some(format!(
        "{runs:>9} runs, {edges:>5} edges, {new:>4} new inputs"
    ))
}

/// Returns the report of a finding, with the command that reproduces it.
fn finding(target: &str, output: &Output, told: &str) -> String {
    let mut lines: Vec<&str> = told
        .lines()
        .skip_while(|line| !line.contains("panicked at") && !line.contains("ERROR: libFuzzer"))
        .filter(|line| !line.starts_with("stat::"))
        .take(40)
        .collect();
    if lines.is_empty() {
        lines = told.lines().rev().take(10).collect();
        lines.reverse();
    }
    let file = told.lines().find_map(|line| {
        line.split_once("Test unit written to ")
            .map(|(_, file)| file)
    });
    let again = file.map_or_else(
        || format!("{}; no input was kept", output.status),
        |file| format!("again: cargo xtask fuzz {target} --input {file}"),
    );
    format!("{}\n{again}", lines.join("\n"))
}

/// Returns the target that this machine's own programs are built for.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let told = quiet(Command::new(rustc).arg("-vV").current_dir(project::root()))?;
    told.lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("rustc does not say what it is for")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_is_summed_up_from_what_libfuzzer_prints() {
        let told = "#12\tNEW    cov: 7 ft: 9 corp: 2/9b\n#500\tDONE   cov: 41 ft: 60 corp: 9/99b lim: 8 exec/s: 250\n\
            Done 500 runs in 2 second(s)\nstat::number_of_executed_units: 500\nstat::new_units_added:          13\n";
        let line = summary(told).expect("it is whole");
        assert!(
            line.contains(" 500 runs") && line.contains("41 edges") && line.contains("13 new"),
            "{line}"
        );
        assert_eq!(summary("INFO: nothing"), None);
    }
}
