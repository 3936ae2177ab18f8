//! The Open POSIX Test Suite: its programs for the interfaces of POSIX, built here and run one by
//! one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result};

use super::suite::{Case, Ended, FOLDER, Outcome, Suite, Verdict, last_line};
use crate::debian::{TRIXIE, source};
use crate::tools::{need, step};

/// Seconds for a test; its own waits take up to some 20.
const LIMIT: u64 = 60;
/// Compiler flags of each test, as the suite's own `Makefile` and `LDFLAGS` have them.
const FLAGS: [&str; 7] = [
    "-O2",
    "-w",
    "-std=gnu99",
    "-D_POSIX_C_SOURCE=200112L",
    "-D_XOPEN_SOURCE=600",
    "-D_GNU_SOURCE",
    "-fcommon",
];
const LIBRARIES: [&str; 3] = ["-lpthread", "-lrt", "-lm"];
/// Exit statuses of the suite (`include/posixtest.h`).
const PASS: i32 = 0;
const UNRESOLVED: i32 = 2;
const UNSUPPORTED: i32 = 4;
const UNTESTED: i32 = 5;

/// The suite. A case is a program.
pub(super) struct Posix;

impl Suite for Posix {
    fn name(&self) -> &'static str {
        "posix"
    }

    fn about(&self) -> &'static str {
        "The Open POSIX Test Suite 1.5.2 (Debian's source package `posixtestsuite`), its tests of interfaces that this \
         machine's compiler builds."
    }

    fn packages(&self) -> &'static [&'static str] {
        &[]
    }

    fn prepare(&self, folder: &Path) -> Result<Vec<Case>> {
        let source = source("posixtestsuite", TRIXIE)?;
        let interfaces = source.join("conformance/interfaces");
        let mut tests = Vec::new();
        for interface in names(&interfaces)? {
            let within = interfaces.join(&interface);
            let programs = names(&within)?.into_iter().filter(|name| {
                let stem = name.strip_suffix(".c");
                stem.is_some_and(|stem| {
                    !stem.contains("buildonly") && stem.starts_with(|c: char| c.is_ascii_digit())
                })
            });
            tests.extend(
                programs.map(|name| format!("{interface}/{}", name.trim_end_matches(".c"))),
            );
        }
        step("Building the Open POSIX tests", || {
            build(&source, &tests, folder)
        })?;
        let case = |name: String| Case {
            command: format!("exec {FOLDER}/{name}"),
            name,
            limit: LIMIT,
        };
        Ok(tests
            .into_iter()
            .filter(|name| folder.join(name).is_file())
            .map(case)
            .collect())
    }

    fn judge(&self, _case: &Case, ended: &Ended, output: &str) -> Vec<Verdict> {
        let outcome = match ended {
            Ended::Status(PASS) => Outcome::Pass,
            Ended::Status(UNSUPPORTED | UNTESTED) => Outcome::Skip,
            Ended::Status(_) | Ended::TimedOut | Ended::Lost(_) => Outcome::Fail,
        };
        let why = match ended {
            Ended::Status(UNRESOLVED) => format!("unresolved: {}", last_line(output)),
            Ended::Status(1) => last_line(output),
            other => format!("{other}: {}", last_line(output)),
        };
        Verdict::whole(outcome, why)
    }
}

/// Returns the sorted names in a folder.
fn names(folder: &Path) -> Result<Vec<String>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("can't list {}", folder.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.retain(|name| folder.join(name).is_dir() || name.contains('.'));
    names.sort();
    Ok(names)
}

/// Builds what is not there yet, on all cores. What does not compile is left out: some tests need
/// functions that glibc has removed.
fn build(source: &Path, tests: &[String], folder: &Path) -> Result<()> {
    let gcc = need("gcc", "`apt-get install gcc`")?;
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<anyhow::Error>> = Mutex::new(None);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(test) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = build_one(&gcc, source, test, folder)
                        && let Ok(mut failed) = failed.lock()
                    {
                        *failed = Some(error);
                    }
                }
            });
        }
    });
    match failed.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok(()),
    }
}

fn build_one(gcc: &PathBuf, source: &Path, test: &str, folder: &Path) -> Result<()> {
    let program = folder.join(test);
    // Marks a test that does not compile.
    let hopeless = program.with_extension("not-built");
    if program.exists() || hopeless.exists() {
        return Ok(());
    }
    if let Some(parent) = program.parent() {
        fs::create_dir_all(parent).with_context(|| format!("can't make {}", parent.display()))?;
    }
    let file = source
        .join("conformance/interfaces")
        .join(format!("{test}.c"));
    let status = Command::new(gcc)
        .args(FLAGS)
        .arg("-I")
        .arg(source.join("include"))
        .arg(&file)
        .arg("-o")
        .arg(&program)
        .args(LIBRARIES)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("can't run gcc")?;
    if !status.success() {
        fs::write(&hopeless, "").with_context(|| format!("can't make {}", hopeless.display()))?;
    }
    Ok(())
}
