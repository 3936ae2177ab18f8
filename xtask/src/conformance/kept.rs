//! Results on disk, case by case, so that a run that was interrupted can go on.
//!
//! A line holds a place, a case, a test, its outcome and what it said, parted by tabs. A line whose
//! outcome is [`DONE`] follows a case's results; results without it are of a case that was cut
//! short, and are not read.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::{fs, mem};

use anyhow::{Context, Result};

use super::suite::{Outcome, Verdict};

/// Outcome of the line that ends a case.
const DONE: &str = "done";

/// The place that a case ran in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Environment {
    /// On a cluster.
    Cluster,
    /// On this machine.
    Linux,
}

impl Environment {
    fn word(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Linux => "linux",
        }
    }

    fn of(word: &str) -> Option<Self> {
        [Self::Cluster, Self::Linux]
            .into_iter()
            .find(|place| place.word() == word)
    }
}

/// The results of a suite's cases that have ended, in memory and in a file.
#[derive(Debug)]
pub(super) struct SuiteResults {
    cases: HashMap<(Environment, String), Vec<Verdict>>,
    path: PathBuf,
    file: File,
}

impl SuiteResults {
    /// Opens the file, reads the results of earlier runs (those that were recorded, if there is no
    /// file yet) and keeps those of the cases for which `wanted` returns true, given all results of
    /// the case.
    ///
    /// # Errors
    /// If the file can't be read or written.
    pub(super) fn open(
        path: &Path,
        recorded: &Path,
        wanted: impl Fn(&Self, &str) -> bool,
    ) -> Result<Self> {
        let text = match read(path)? {
            Some(text) => text,
            None => read(recorded)?.unwrap_or_default(),
        };
        // Written beside and renamed, so that a run that ends here loses nothing.
        let beside = path.with_extension("new");
        let mut all = Self {
            cases: parse(&text),
            path: beside.clone(),
            file: File::create(&beside)
                .with_context(|| format!("can't make {}", beside.display()))?,
        };
        let mut cases = mem::take(&mut all.cases);
        all.cases.clone_from(&cases);
        cases.retain(|(_, case), _| wanted(&all, case));
        all.cases.clear();
        for ((place, case), verdicts) in cases {
            all.add(place, &case, &verdicts)?;
        }
        fs::rename(&beside, path).with_context(|| format!("can't write {}", path.display()))?;
        path.clone_into(&mut all.path);
        all.file = OpenOptions::new()
            .append(true)
            .open(path)
            .with_context(|| format!("can't open {}", path.display()))?;
        Ok(all)
    }

    /// Returns a case's results, if it has ended there.
    pub(super) fn of(&self, place: Environment, case: &str) -> Option<&[Verdict]> {
        let key = (place, case.to_owned());
        self.cases.get(&key).map(Vec::as_slice)
    }

    /// Returns whether a case has passed whole on the cluster.
    pub(super) fn passed(&self, case: &str) -> bool {
        self.of(Environment::Cluster, case).is_some_and(|verdicts| {
            let passes = |verdict: &Verdict| verdict.outcome == Outcome::Pass;
            !verdicts.is_empty() && verdicts.iter().all(passes)
        })
    }

    /// Writes all results to a file, those of a case beside each other.
    ///
    /// # Errors
    /// If the file can't be written.
    pub(super) fn record(&self, path: &Path) -> Result<()> {
        let mut cases: Vec<_> = self.cases.iter().collect();
        cases.sort_by_key(|((place, case), _)| (case, place.word()));
        let text: String = cases
            .into_iter()
            .map(|((place, case), verdicts)| lines(*place, case, verdicts))
            .collect();
        let folder = path.parent().unwrap_or(path);
        fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
        fs::write(path, text).with_context(|| format!("can't write {}", path.display()))
    }

    /// Adds a case's results.
    ///
    /// # Errors
    /// If the file can't be written.
    pub(super) fn add(
        &mut self,
        place: Environment,
        case: &str,
        verdicts: &[Verdict],
    ) -> Result<()> {
        self.file
            .write_all(lines(place, case, verdicts).as_bytes())
            .with_context(|| format!("can't write {}", self.path.display()))?;
        self.cases
            .insert((place, case.to_owned()), verdicts.to_vec());
        Ok(())
    }
}

/// Returns a file's text; `None` if there is no file.
fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        other => other
            .map(Some)
            .with_context(|| format!("can't read {}", path.display())),
    }
}

/// Returns the lines of a case's results.
fn lines(place: Environment, case: &str, verdicts: &[Verdict]) -> String {
    let line = |test: &str, outcome: &str, why: &str| {
        format!(
            "{}\t{case}\t{}\t{outcome}\t{}\n",
            place.word(),
            flat(test),
            flat(why)
        )
    };
    let mut text = String::new();
    for verdict in verdicts {
        text += &line(&verdict.test, verdict.outcome.word(), &verdict.why);
    }
    text + &line("", DONE, "")
}

/// Returns a text without tabs and ends of lines.
fn flat(text: &str) -> String {
    text.replace(['\t', '\n', '\r'], " ")
}

fn parse(text: &str) -> HashMap<(Environment, String), Vec<Verdict>> {
    let mut cases = HashMap::new();
    let mut open: HashMap<(Environment, String), Vec<Verdict>> = HashMap::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [place, case, test, outcome, why] = fields[..] else {
            continue;
        };
        let Some(place) = Environment::of(place) else {
            continue;
        };
        let key = (place, case.to_owned());
        if outcome == DONE {
            let verdicts = open.remove(&key).unwrap_or_default();
            cases.insert(key, verdicts);
        } else if let Some(outcome) = Outcome::of(outcome) {
            open.entry(key).or_default().push(Verdict {
                test: test.to_owned(),
                outcome,
                why: why.to_owned(),
            });
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(test: &str, outcome: Outcome) -> Verdict {
        Verdict {
            test: test.into(),
            outcome,
            why: "a\tb\nc".into(),
        }
    }

    #[test]
    fn cases_that_ended_are_read_again_and_others_are_not() {
        let path = std::env::temp_dir().join(format!("tessera-kept-{}", std::process::id()));
        let none = path.with_extension("none");
        let mut kept = SuiteResults::open(&path, &none, |_, _| true).expect("a file");
        let good = [verdict("x", Outcome::Pass), verdict("y", Outcome::Pass)];
        kept.add(Environment::Cluster, "good", &good)
            .expect("added");
        let bad = [verdict("", Outcome::Fail)];
        kept.add(Environment::Cluster, "bad", &bad).expect("added");
        kept.add(Environment::Linux, "bad", &[verdict("", Outcome::Pass)])
            .expect("added");
        kept.add(Environment::Cluster, "says nothing", &[])
            .expect("added");
        kept.file
            .write_all(b"cluster\tcut short\tz\tpass\t\ncluster\tgood\tz\tfa")
            .expect("written");
        drop(kept);

        let again = SuiteResults::open(&path, &none, |_, _| true).expect("read");
        let read = again.of(Environment::Cluster, "good").expect("kept");
        assert_eq!((read.len(), read[0].why.as_str()), (2, "a b c"));
        assert!(again.passed("good") && !again.passed("bad") && !again.passed("says nothing"));
        assert!(again.of(Environment::Cluster, "says nothing").is_some());
        assert!(again.of(Environment::Cluster, "cut short").is_none());

        let recorded = path.with_extension("recorded");
        again.record(&recorded).expect("written");
        let elsewhere = path.with_extension("elsewhere");
        let from_record = SuiteResults::open(&elsewhere, &recorded, |_, _| true).expect("read");
        assert_eq!(from_record.cases, again.cases);
        drop((again, from_record));
        fs::remove_file(&recorded).expect("removed");
        fs::remove_file(&elsewhere).expect("removed");

        let passed = SuiteResults::open(&path, &none, SuiteResults::passed).expect("read");
        assert!(passed.of(Environment::Cluster, "good").is_some());
        assert!(passed.of(Environment::Linux, "bad").is_none());
        drop(passed);
        let left = SuiteResults::open(&path, &none, |_, _| true).expect("read");
        assert_eq!(
            left.cases.len(),
            1,
            "what was not wanted is gone from the file"
        );
        fs::remove_file(&path).expect("removed");
    }
}
