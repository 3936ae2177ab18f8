//! `mutants`: breaks FIT, the driver and pcache on purpose, and sees that a test finds each break.
//!
//! The breaks and their tests are listed by the crate `mutants`. The tests are built once with its
//! feature `on`; then each test program runs its tests without a mutant, which must pass, and after
//! that each mutant's test runs alone with the mutant chosen, and must fail.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mutants::{ALL, Entry, REACHED, Test, VARIABLE};
use serde_json::Value;

use crate::project::cargo;

/// Packages with mutants, or with tests that find some; the first has the switches.
const PACKAGES: [&str; 5] = ["mutants", "fit", "mlx4", "pcache", "sim"];
/// Test programs that run at a time.
const AT_ONCE: usize = 2;
/// Time that a test may take. One that hangs with its mutant has found it.
const LIMIT: Duration = Duration::from_secs(120);
/// Between two looks whether a test has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Accesses of pcache's checker: fewer than in the tests, for each mutant takes a run.
const ACCESSES: (&str, &str) = ("PCACHE_ACCESSES", "100000");

/// Breaks the product on purpose, and checks that tests find each break
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs only the mutants whose name holds this
    name: Option<String>,
    /// Lists the mutants and what each breaks
    #[arg(long)]
    list: bool,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        if self.list {
            for entry in ALL {
                println!("{}\t{}", entry.name, entry.breaks);
            }
            return Ok(());
        }
        run(self.name.as_deref())
    }
}

/// A test program: its package and the name of its file.
type Program = (&'static str, &'static str);

/// Runs all mutants, or those with `name` in their name.
pub(crate) fn run(name: Option<&str>) -> Result<()> {
    let chosen: Vec<&Entry> = ALL
        .iter()
        .filter(|entry| name.is_none_or(|name| entry.name.contains(name)))
        .collect();
    ensure!(!chosen.is_empty(), "no mutant's name holds {name:?}");
    let programs = build()?;
    let tests: BTreeSet<Test> = chosen.iter().map(|entry| entry.found_by).collect();
    pass_without(&programs, &tests)?;
    println!("mutant\tfound by\tseconds");
    let survivors = try_all(&programs, &chosen)?;
    ensure!(
        survivors.is_empty(),
        "{} of {} mutants were not found: {}",
        survivors.len(),
        chosen.len(),
        survivors.join(", ")
    );
    println!("{} mutants, all found", chosen.len());
    Ok(())
}

/// Builds the tests with the switches; the path of each program, and the folder that it runs in.
fn build() -> Result<BTreeMap<(String, String), (PathBuf, PathBuf)>> {
    let mut command = cargo();
    command.args(["test", "--no-run", "--quiet", "--locked"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    command.args(["--features", "mutants/on"]);
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("can't run cargo")?;
    ensure!(output.status.success(), "the tests can't be built");
    let text = String::from_utf8(output.stdout).context("cargo writes no text")?;
    let artifacts = text.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let path = message["executable"].as_str()?.into();
        let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
        let package = folder_package(folder)?;
        let target = &message["target"];
        let program = match target["kind"][0].as_str()? {
            "lib" => "lib",
            "test" => target["name"].as_str()?,
            _ => return None,
        };
        Some(((package, program.to_owned()), (path, folder.to_owned())))
    });
    Ok(artifacts.collect())
}

/// Returns which of the packages lies in this folder.
fn folder_package(folder: &Path) -> Option<String> {
    let name = folder.file_name()?.to_str()?;
    let package = PACKAGES.into_iter().find(|package| *package == name)?;
    Some(package.to_owned())
}

type Programs = BTreeMap<(String, String), (PathBuf, PathBuf)>;

fn command(programs: &Programs, (package, program): Program) -> Result<Command> {
    let key = (package.to_owned(), program.to_owned());
    let (path, folder) = programs
        .get(&key)
        .with_context(|| format!("{package} has no test program {program}"))?;
    let mut command = Command::new(path);
    command.current_dir(folder).env(ACCESSES.0, ACCESSES.1);
    command.env("CARGO_MANIFEST_DIR", folder);
    command.env_remove(VARIABLE).arg("--exact");
    Ok(command)
}

/// Checks that each test is there and passes as long as nothing is broken.
fn pass_without(programs: &Programs, tests: &BTreeSet<Test>) -> Result<()> {
    let mut by_program: BTreeMap<Program, Vec<&str>> = BTreeMap::new();
    for test in tests {
        let program = (test.package, test.program);
        by_program.entry(program).or_default().push(test.name);
    }
    for (program, names) in by_program {
        let output = command(programs, program)?
            .arg(format!("--test-threads={AT_ONCE}"))
            .args(&names)
            .output()
            .with_context(|| format!("can't run the tests of {program:?}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "tests fail without a mutant:\n{text}"
        );
        for name in names {
            ensure!(
                text.contains(&format!("test {name} ... ok")),
                "{program:?} has no test {name}"
            );
        }
    }
    Ok(())
}

/// Tries each mutant; returns the names of those that were not found.
fn try_all(programs: &Programs, chosen: &[&Entry]) -> Result<Vec<&'static str>> {
    let next = AtomicUsize::new(0);
    let survivors = Mutex::new(Vec::new());
    let worker = || -> Result<()> {
        while let Some(entry) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let found = is_found(programs, entry)?;
            let test = entry.found_by;
            let by = if found { test.name } else { "NOT FOUND" };
            let seconds = start.elapsed().as_secs_f64();
            println!("{}\t{}: {by}\t{seconds:.1}", entry.name, test.package);
            if !found && let Ok(mut survivors) = survivors.lock() {
                survivors.push(entry.name);
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| bail!("a worker has panicked"))
        })
    })?;
    Ok(survivors.into_inner().unwrap_or_default())
}

/// Returns whether the mutant's test reaches it and fails.
fn is_found(programs: &Programs, entry: &Entry) -> Result<bool> {
    let test = entry.found_by;
    let mut child = command(programs, (test.package, test.program))?
        .arg(test.name)
        .env(VARIABLE, entry.name)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't run {test:?}"))?;
    let mut errors = child.stderr.take().context("no stream of errors")?;
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = errors.read_to_end(&mut bytes);
        bytes
    });
    let failed = has_failed(&mut child)?;
    let said = reader.join().unwrap_or_default();
    let reached = format!("{REACHED}{}", entry.name);
    Ok(failed && String::from_utf8_lossy(&said).contains(&reached))
}

/// Waits for a test's end, and ends it when it takes too long, which counts as a failure.
fn has_failed(child: &mut Child) -> Result<bool> {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        if let Some(status) = child.try_wait().context("can't wait for a test")? {
            return Ok(!status.success());
        }
        thread::sleep(LOOK_AGAIN);
    }
    child.kill().context("can't end a test")?;
    child.wait().context("can't wait for a test")?;
    Ok(true)
}
