//! Both runs' results, test by test.

use std::collections::BTreeMap;
use std::fmt;

use super::suite::{Case, Outcome, Verdict};

/// A test's results in both places.
#[derive(Default, Debug)]
pub(super) struct Row {
    ours: Option<Outcome>,
    linux: Option<Outcome>,
    /// The test's output on the cluster.
    pub(super) why: String,
}

/// Meaning of both results of a test together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Classification {
    /// It passes on the cluster.
    Pass,
    /// It fails on the cluster alone.
    Fail,
    /// It fails on Linux as well.
    FailsOnLinux,
    /// It was not tested on the cluster.
    Skip,
}

impl Row {
    /// Judges the cluster by the difference. A test that the cluster did not come to has failed if
    /// it ran on Linux.
    pub(super) fn meaning(&self) -> Classification {
        match (self.ours, self.linux) {
            (Some(Outcome::Pass), _) => Classification::Pass,
            (Some(Outcome::Fail), Some(Outcome::Fail | Outcome::Skip)) => {
                Classification::FailsOnLinux
            }
            (None, Some(Outcome::Fail | Outcome::Skip) | None) | (Some(Outcome::Skip), _) => {
                Classification::Skip
            }
            (Some(Outcome::Fail) | None, _) => Classification::Fail,
        }
    }
}

/// The results of a suite.
#[derive(Default, Debug)]
pub(super) struct Table {
    rows: BTreeMap<String, Row>,
}

/// Counts of tests by their meaning.
#[derive(Default, Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    /// [`Classification::Pass`].
    pub(super) pass: usize,
    /// [`Classification::Fail`].
    pub(super) fail: usize,
    /// [`Classification::FailsOnLinux`].
    pub(super) on_linux: usize,
    /// [`Classification::Skip`].
    pub(super) skip: usize,
}

impl Table {
    /// Adds the cluster's results of a case.
    pub(super) fn add_ours(&mut self, case: &Case, verdicts: &[Verdict]) {
        for verdict in verdicts {
            let row = self.row(case, &verdict.test);
            // A name that comes twice has failed if one of its tests has.
            if row.ours != Some(Outcome::Fail) {
                row.ours = Some(verdict.outcome);
                row.why.clone_from(&verdict.why);
            }
        }
    }

    /// Adds Linux's results of a case.
    pub(super) fn add_linux(&mut self, case: &Case, verdicts: &[Verdict]) {
        for verdict in verdicts {
            // A suite may name the failed tests of a case and, where none fails, the case alone.
            if verdict.test.is_empty() && verdict.outcome == Outcome::Pass && !self.whole(case) {
                continue;
            }
            let row = self.row(case, &verdict.test);
            if row.ours.is_none() {
                "not reached".clone_into(&mut row.why);
            }
            if row.linux != Some(Outcome::Fail) {
                row.linux = Some(verdict.outcome);
            }
        }
    }

    /// Returns whether the cluster's only result of a case is that of the whole.
    fn whole(&self, case: &Case) -> bool {
        let prefix = format!("{}: ", case.name);
        !self.rows.keys().any(|name| name.starts_with(&prefix))
    }

    fn row(&mut self, case: &Case, test: &str) -> &mut Row {
        let name = if test.is_empty() {
            case.name.clone()
        } else {
            format!("{}: {test}", case.name)
        };
        self.rows.entry(name).or_default()
    }

    /// Returns the names of the tests that fail on the cluster alone.
    pub(super) fn failed(&self) -> impl Iterator<Item = &str> {
        self.with(Classification::Fail).map(|(name, _)| name)
    }

    /// Returns the tests of this meaning.
    pub(super) fn with(&self, meaning: Classification) -> impl Iterator<Item = (&str, &Row)> {
        let rows = self.rows.iter().map(|(name, row)| (name.as_str(), row));
        rows.filter(move |(_, row)| row.meaning() == meaning)
    }

    /// Counts the results.
    pub(super) fn counts(&self) -> Counts {
        let of = |meaning| self.with(meaning).count();
        Counts {
            pass: of(Classification::Pass),
            fail: of(Classification::Fail),
            on_linux: of(Classification::FailsOnLinux),
            skip: of(Classification::Skip),
        }
    }

    /// Returns a line for each test: its name, the result on the cluster, on Linux, and what it
    /// said.
    pub(super) fn to_tsv(&self) -> String {
        let word = |outcome: Option<Outcome>| outcome.map_or("-", Outcome::word);
        let line = |(name, row): (&String, &Row)| {
            format!(
                "{name}\t{}\t{}\t{}\n",
                word(row.ours),
                word(row.linux),
                row.why
            )
        };
        self.rows.iter().map(line).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, row) in self.with(Classification::Fail) {
            writeln!(f, "fail\t{name}\t{}", row.why)?;
        }
        let counts = self.counts();
        writeln!(
            f,
            "{} pass, {} fail, {} fail on Linux too, {} skipped",
            counts.pass, counts.fail, counts.on_linux, counts.skip
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str) -> Case {
        Case {
            name: name.into(),
            command: String::new(),
            limit: 1,
        }
    }

    fn verdicts(of: &[(&str, Outcome)]) -> Vec<Verdict> {
        let verdict = |&(test, outcome): &(&str, Outcome)| Verdict {
            test: test.into(),
            outcome,
            why: "said".into(),
        };
        of.iter().map(verdict).collect()
    }

    #[test]
    fn a_test_fails_only_if_linux_passes_it() {
        use Outcome::{Fail, Pass, Skip};
        let mut table = Table::default();
        let one = case("one");
        table.add_ours(
            &one,
            &verdicts(&[("a", Pass), ("b", Fail), ("c", Fail), ("d", Skip)]),
        );
        table.add_linux(
            &one,
            &verdicts(&[
                ("a", Pass),
                ("b", Pass),
                ("c", Fail),
                ("d", Pass),
                ("e", Pass),
            ]),
        );
        assert_eq!(table.failed().collect::<Vec<_>>(), ["one: b", "one: e"]);
        let expected = Counts {
            pass: 1,
            fail: 2,
            on_linux: 1,
            skip: 1,
        };
        assert_eq!(table.counts(), expected);
    }

    #[test]
    fn a_name_that_comes_twice_has_failed_if_once() {
        use Outcome::{Fail, Pass};
        let mut table = Table::default();
        let ten = case("10");
        table.add_ours(&ten, &verdicts(&[("a", Fail), ("a", Pass)]));
        table.add_ours(&case("1"), &verdicts(&[("", Pass)]));
        assert_eq!(table.failed().count(), 1);
    }
}
