//! The interface of a suite: what it needs, its cases, and what a case's end means.

use std::fmt;
use std::path::Path;

use anyhow::Result;

use super::{busybox, fio, fsx, hostile, nix, pjdfstest, posix, python, stress};

/// The suite's files in the root file system.
pub(super) const FOLDER: &str = "/conformance";
/// All suites, in the order of `docs/conformance.md`.
pub(super) const SUITES: [&dyn Suite; 9] = [
    &busybox::Busybox,
    &posix::Posix,
    &python::Python,
    &stress::Stress,
    &nix::Nix,
    &fsx::Fsx,
    &pjdfstest::Pjdfstest,
    &fio::Fio,
    &hostile::Hostile,
];

/// A suite of tests.
pub(super) trait Suite: Sync + Send {
    /// Returns the name on the command line.
    fn name(&self) -> &'static str;
    /// Returns what the suite is, for the page of results.
    fn about(&self) -> &'static str;
    /// Returns the Debian packages that the root file system needs besides the base.
    fn packages(&self) -> &'static [&'static str];
    /// Fetches and builds the suite's files into `folder`, which becomes [`FOLDER`], and returns
    /// its cases.
    ///
    /// # Errors
    /// Names what could not be fetched or built.
    fn prepare(&self, folder: &Path) -> Result<Vec<Case>>;
    /// Returns the results that a case's end and output tell.
    fn judge(&self, case: &Case, ended: &Ended, output: &str) -> Vec<Verdict>;
    /// Returns whether this machine may run what failed on the cluster, too.
    fn may_run_here(&self) -> bool {
        true
    }
}

/// A command whose end is judged.
#[derive(Clone, Debug)]
pub(super) struct Case {
    /// Its name, of no tabs.
    pub(super) name: String,
    /// A line for the shell.
    pub(super) command: String,
    /// Seconds that it may take.
    pub(super) limit: u64,
}

/// The way that a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// By itself or by a signal; as a shell shows it.
    Status(i32),
    /// Killed at its limit.
    TimedOut,
    /// The cluster did not answer any more, or ended.
    Lost(String),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) if *status > 128 => write!(f, "ended by signal {}", status - 128),
            Self::Status(status) => write!(f, "exit status {status}"),
            Self::TimedOut => write!(f, "did not end in time"),
            Self::Lost(why) => write!(f, "took the cluster down: {why}"),
        }
    }
}

/// Result of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The result that should be.
    Pass,
    /// Another result than should be.
    Fail,
    /// Not tested.
    Skip,
}

impl Outcome {
    /// Returns the word for it in tables.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Skip => "skip",
        }
    }

    /// Returns the outcome of a word.
    pub(super) fn of(word: &str) -> Option<Self> {
        [Self::Pass, Self::Fail, Self::Skip]
            .into_iter()
            .find(|outcome| outcome.word() == word)
    }
}

/// The result of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The test within its case; empty if the case is one test.
    pub(super) test: String,
    /// The result.
    pub(super) outcome: Outcome,
    /// The test's output, in a line.
    pub(super) why: String,
}

impl Verdict {
    /// A verdict on a case that is one test.
    pub(super) fn whole(outcome: Outcome, why: impl Into<String>) -> Vec<Self> {
        vec![Self {
            test: String::new(),
            outcome,
            why: why.into(),
        }]
    }
}

/// Returns the last line that says something, cut to a length that fits a table.
pub(super) fn last_line(output: &str) -> String {
    const LENGTH: usize = 160;
    let line = output
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or_default();
    line.chars().take(LENGTH).collect()
}
