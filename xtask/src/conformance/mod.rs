//! `conformance`: runs test suites that others wrote, on a cluster and on this machine's Linux.
//!
//! * [`suite`]: the interface of a suite. * [`busybox`], [`posix`], [`python`], [`stress`],
//!   [`nix`], [`fsx`], [`pjdfstest`], [`fio`], [`hostile`]: one suite each; [`crates`]: builds
//!   those that are crates.
//! * [`bed`]: runs cases on a cluster or in a `chroot`. * [`table`]: compares both runs. [`record`]
//!   keeps the results in `docs/conformance.md`, [`kept`] those of a run that was interrupted.

mod bed;
mod busybox;
mod crates;
mod fio;
mod fsx;
mod hostile;
mod kept;
mod nix;
mod pjdfstest;
mod posix;
mod python;
mod record;
mod stress;
mod suite;
mod table;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use self::bed::{Bed, Place};
use self::kept::{Environment, SuiteResults};
use self::suite::{Case, FOLDER, Outcome, SUITES, Suite, Verdict};
use self::table::Table;
use crate::bed::handle_signals;
use crate::run::Root;
use crate::tools::{quiet, say, step};
use crate::{project, run};

/// Time between two reports of a run's progress.
const PROGRESS: Duration = Duration::from_secs(60);

/// Runs a test suite that others wrote on a cluster, and what fails there on this machine's Linux
/// as well
///
/// A test that fails in both places counts against neither. The same programs run in both: in a
/// root file system of Debian 13, natively by `chroot` in namespaces of their own. The exit status
/// is 1 if a test fails on the cluster alone and docs/conformance.md gives no reason for it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The suite: busybox, posix, python, stress, nix, fsx, pjdfstest, fio or hostile
    suite: &'static dyn Suite,
    /// Runs only the cases whose names hold NAME (repeatable)
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Lists the cases and runs nothing
    #[arg(long)]
    list: bool,
    /// Writes all results to a file: a line each, its fields parted by tabs
    #[arg(long, value_name = "FILE")]
    tsv: Option<PathBuf>,
    /// Writes the suite's section of docs/conformance.md anew, and each case's result beside it;
    /// reasons that stand there are kept
    #[arg(long, conflicts_with = "only")]
    record: bool,
    /// Keeps the results of the last run that was interrupted, or else those recorded, and runs the
    /// other cases
    #[arg(long = "continue", conflicts_with_all = ["only", "again"])]
    goes_on: bool,
    /// Keeps the results of the cases that passed in the last run, or else as recorded, and runs
    /// the other cases
    #[arg(long, conflicts_with = "only")]
    again: bool,
    /// Starts no case on the cluster after so many minutes; --continue runs those that are left
    #[arg(long = "for", value_name = "MINUTES")]
    minutes: Option<u64>,
    /// Seconds that a case may take [default: the suite's]
    #[arg(long, value_name = "SECONDS")]
    limit: Option<u64>,
    /// Cores of P
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: u32,
    /// Size of P's cache
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pcache: String,
    /// Main memory of M
    #[arg(long, value_name = "SIZE", default_value = "2G")]
    memory: String,
    /// Prints what each failed case said
    #[arg(long)]
    verbose: bool,
}

impl FromStr for &'static dyn Suite {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names: Vec<_> = SUITES.iter().map(|suite| suite.name()).collect();
        let found = SUITES.into_iter().find(|suite| suite.name() == text);
        found.ok_or_else(|| format!("it is one of {}", names.join(", ")))
    }
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let suite = self.suite;
        let folder = project::target_folder()?
            .join("conformance")
            .join(suite.name());
        let files = folder.join("files");
        fs::create_dir_all(&files).with_context(|| format!("can't make {}", files.display()))?;
        let mut cases = suite.prepare(&files)?;
        if !self.only.is_empty() {
            cases.retain(|case| self.only.iter().any(|only| case.name.contains(only)));
        }
        ensure!(
            !cases.is_empty(),
            "no case of {} has such a name",
            suite.name()
        );
        if self.list {
            for case in &cases {
                println!("{}", case.name);
            }
            return Ok(());
        }
        for case in &mut cases {
            case.limit = self.limit.unwrap_or(case.limit);
        }
        run::prepare()?;
        handle_signals()?;
        let root = folder.join("root");
        step("Laying out the root file system", || {
            stage(suite, &files, &root)
        })?;
        // A run of some cases leaves what is kept of all.
        let name = if self.only.is_empty() {
            "results.tsv"
        } else {
            "some.tsv"
        };
        let mut kept = SuiteResults::open(&folder.join(name), &self.recorded(), |kept, case| {
            self.goes_on || self.again && kept.passed(case)
        })?;
        let table = self.judge(&cases, &root, &mut kept)?;
        fs::remove_dir_all(&root).with_context(|| format!("can't remove {}", root.display()))?;
        let run = |case: &&Case| kept.of(Environment::Cluster, &case.name).is_some();
        let left = cases.len() - cases.iter().filter(run).count();
        if self.record {
            kept.record(&self.recorded())?;
        }
        self.tell(&table, left)
    }

    /// Returns the file of recorded results.
    fn recorded(&self) -> PathBuf {
        let file = format!("docs/conformance/{}.tsv", self.suite.name());
        project::root().join(file)
    }

    /// Runs the cases on the cluster, and natively those that did not just pass there. What is
    /// kept is not run.
    fn judge(&self, cases: &[Case], root: &Path, kept: &mut SuiteResults) -> Result<Table> {
        let options = [
            "--cpus",
            &self.cpus.to_string(),
            "--pcache",
            &self.pcache,
            "--memory",
            &self.memory,
        ]
        .map(str::to_owned);
        self.run_cases(cases, root, Place::Cluster(&options), kept)?;
        let again: Vec<Case> = cases
            .iter()
            .filter(|case| kept.of(Environment::Cluster, &case.name).is_some())
            .filter(|case| !kept.passed(&case.name))
            .cloned()
            .collect();
        if !again.is_empty() && self.suite.may_run_here() {
            say(&format!(
                "{} cases run natively for comparison",
                again.len()
            ));
            self.run_cases(&again, root, Place::Native, kept)?;
        }
        let mut table = Table::default();
        for case in cases {
            if let Some(verdicts) = kept.of(Environment::Cluster, &case.name) {
                table.add_ours(case, verdicts);
            }
            if let Some(verdicts) = kept.of(Environment::Linux, &case.name) {
                table.add_linux(case, verdicts);
            }
        }
        Ok(table)
    }

    /// Runs the cases in a place, but those whose results are kept.
    fn run_cases(
        &self,
        cases: &[Case],
        root: &Path,
        place: Place<'_>,
        kept: &mut SuiteResults,
    ) -> Result<()> {
        let to = match place {
            Place::Cluster(_) => Environment::Cluster,
            Place::Native => Environment::Linux,
        };
        let left: Vec<Case> = cases
            .iter()
            .filter(|case| kept.of(to, &case.name).is_none())
            .cloned()
            .collect();
        let (mut done, mut told) = (cases.len() - left.len(), Instant::now());
        let minutes = self.minutes.filter(|_| to == Environment::Cluster);
        let end = minutes.map(|minutes| told + Duration::from_secs(60 * minutes));
        Bed { root, place }.run(&left, |case, ended, output| {
            done += 1;
            let verdicts = self.suite.judge(case, &ended, output);
            let failed = |verdict: &Verdict| verdict.outcome == Outcome::Fail;
            let bad = to == Environment::Cluster && verdicts.iter().any(failed);
            if bad {
                say(&format!("{done}/{}: {}: {ended}", cases.len(), case.name));
                if self.verbose {
                    eprintln!("{output}");
                }
            } else if told.elapsed() > PROGRESS {
                say(&format!("{done}/{} cases", cases.len()));
            }
            if bad || told.elapsed() > PROGRESS {
                told = Instant::now();
            }
            kept.add(to, &case.name, &verdicts)?;
            let late = end.is_some_and(|end| Instant::now() > end);
            Ok(if late {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })
    }

    /// Prints the table, and records it; so many cases are `left` to be run.
    fn tell(&self, table: &Table, left: usize) -> Result<()> {
        if let Some(file) = &self.tsv {
            fs::write(file, table.to_tsv())
                .with_context(|| format!("can't write {}", file.display()))?;
        }
        let page = project::root().join("docs/conformance.md");
        let reasons = record::Reasons::read(&page, self.suite.name())?;
        if self.record {
            record::write(&page, self.suite, table, left, &reasons)?;
        }
        print!("{table}");
        if left > 0 {
            println!("{left} cases were not run: --continue runs them");
        }
        let new: Vec<&str> = table.failed().filter(|name| !reasons.has(name)).collect();
        ensure!(
            new.is_empty(),
            "{} tests fail without a reason in docs/conformance.md: {}",
            new.len(),
            new.join(", ")
        );
        Ok(())
    }
}

/// Copies Debian's root file system and puts the suite's files in it. Tests may change the copy.
fn stage(suite: &dyn Suite, files: &Path, root: &Path) -> Result<()> {
    let packages: Vec<String> = suite
        .packages()
        .iter()
        .map(|&name| name.to_owned())
        .collect();
    Root::Debian(crate::debian::TRIXIE).copy(&packages, root)?;
    let inside = root.join(FOLDER.trim_start_matches('/'));
    quiet(
        Command::new("cp")
            .args(["-a", "--reflink=auto"])
            .args([files, &inside]),
    )?;
    Ok(())
}
