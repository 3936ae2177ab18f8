//! stress-ng: each stressor alone, for a few seconds. It asks that nothing hangs and nothing but
//! the program ends.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::suite::{Case, Ended, Outcome, Suite, Verdict, last_line};
use crate::debian::TRIXIE;
use crate::run::Root;
use crate::tools::quiet;

/// Seconds that a stressor works.
const SECONDS: u64 = 5;
/// Seconds that it may take in all.
const LIMIT: u64 = 60;
/// The classes that ask something of a kernel. A stressor of several classes runs once.
const CLASSES: [&str; 9] = [
    "scheduler",
    "pipe",
    "signal",
    "memory",
    "vm",
    "filesystem",
    "interrupt",
    "os",
    "cpu",
];
/// Stressors that no unprivileged system permits, or that are made to end the machine or fill its
/// disk.
const LEFT_OUT: [&str; 8] = [
    "reboot",
    "sysinval",
    "iomix",
    "hdd",
    "fallocate",
    "cpu-online",
    "smi",
    "module",
];
/// Exit statuses of stress-ng (its manual, "EXIT STATUS").
const NO_RESOURCE: i32 = 3;
const NOT_IMPLEMENTED: i32 = 4;

/// The suite. A case is a stressor.
pub(super) struct Stress;

impl Suite for Stress {
    fn name(&self) -> &'static str {
        "stress"
    }

    fn about(&self) -> &'static str {
        "stress-ng (Debian's package), each stressor of the classes scheduler, pipe, signal, memory, vm, filesystem, \
         interrupt, os and cpu alone for 5 s."
    }

    fn packages(&self) -> &'static [&'static str] {
        &["stress-ng"]
    }

    fn prepare(&self, _folder: &Path) -> Result<Vec<Case>> {
        let packages: Vec<String> = self
            .packages()
            .iter()
            .map(|&name| name.to_owned())
            .collect();
        let root = Root::Debian(TRIXIE).obtain(&packages)?;
        let mut names: Vec<String> = Vec::new();
        for class in CLASSES {
            // `--class NAME?` prints `class 'NAME' stressors: a b c`.
            let text = here(&root, &["--class", &format!("{class}?")])
                .with_context(|| format!("can't list the class {class}"))?;
            let list = text
                .split_once("stressors:")
                .map(|(_, list)| list.trim())
                .unwrap_or_default();
            names.extend(list.split_whitespace().map(str::to_owned));
        }
        names.sort();
        names.dedup();
        names.retain(|name| !LEFT_OUT.contains(&name.as_str()));
        let case = |name: String| Case {
            command: format!("exec stress-ng --{name} 1 --timeout {SECONDS} --verify"),
            name,
            limit: LIMIT,
        };
        Ok(names.into_iter().map(case).collect())
    }

    fn judge(&self, _case: &Case, ended: &Ended, output: &str) -> Vec<Verdict> {
        let outcome = match ended {
            Ended::Status(0) if output.contains("skipped: 1") => Outcome::Skip,
            Ended::Status(0) => Outcome::Pass,
            Ended::Status(NO_RESOURCE | NOT_IMPLEMENTED) => Outcome::Skip,
            _ => Outcome::Fail,
        };
        let told = output
            .lines()
            .find(|line| line.contains("fail:") || line.contains("error:"));
        let told = told.map_or_else(|| last_line(output), last_line);
        Verdict::whole(outcome, format!("{ended}: {told}"))
    }
}

/// Runs the root file system's stress-ng on this machine, by its own loader.
fn here(root: &Path, args: &[&str]) -> Result<String> {
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    quiet(
        Command::new(root.join("usr/lib64/ld-linux-x86-64.so.2"))
            .arg("--library-path")
            .arg(&libraries)
            .arg(root.join("usr/bin/stress-ng"))
            .args(args),
    )
}
