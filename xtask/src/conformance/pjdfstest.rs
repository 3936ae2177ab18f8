//! pjdfstest: what POSIX asks of calls that make, change and remove files, their errors and times.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::crates::install;
use super::suite::{Case, Ended, FOLDER, Outcome, Suite, Verdict, last_line};

/// The version that is run.
const VERSION: &str = "0.2.2";
/// Seconds for the tests of a call.
const LIMIT: u64 = 600;
/// The calls.
const CALLS: [&str; 15] = [
    "chmod",
    "chown",
    "ftruncate",
    "link",
    "mkdir",
    "mkfifo",
    "mknod",
    "open",
    "posix_fallocate",
    "rename",
    "rmdir",
    "symlink",
    "truncate",
    "unlink",
    "utimensat",
];
/// Features of ext4, the time between two changes that must differ, and users of Debian.
const SETTINGS: &str = "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutime_now = {}\n\
    utimensat = {}\n[settings]\nnaptime = 0.02\n[dummy_auth]\n\
    entries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n";

/// The suite. A case is a call on a file system.
pub(super) struct Pjdfstest;

impl Suite for Pjdfstest {
    fn name(&self) -> &'static str {
        "pjdfstest"
    }

    fn about(&self) -> &'static str {
        "The crate pjdfstest 0.2.2, on S's disk and in P's own memory (`/tmp`)."
    }

    fn packages(&self) -> &'static [&'static str] {
        &[]
    }

    fn prepare(&self, folder: &Path) -> Result<Vec<Case>> {
        install(folder, self.name(), VERSION)?;
        fs::write(folder.join("pjdfstest.toml"), SETTINGS)
            .context("can't write pjdfstest's settings")?;
        let case = |place: &str, path: &str, other: &str, call: &str| Case {
            name: format!("{place}: {call}"),
            command: format!(
                "exec {FOLDER}/pjdfstest-{VERSION} -c {FOLDER}/pjdfstest.toml -p {path} -s {other} {call}::"
            ),
            limit: LIMIT,
        };
        let disk = CALLS.map(|call| case("disk", FOLDER, "/tmp/case", call));
        let memory = CALLS.map(|call| case("memory", "/tmp/case", FOLDER, call));
        Ok(disk.into_iter().chain(memory).collect())
    }

    fn judge(&self, case: &Case, ended: &Ended, output: &str) -> Vec<Verdict> {
        let call = case.name.split(' ').next_back().unwrap_or_default();
        let mut verdicts = results(output, call);
        if !matches!(ended, Ended::Status(0 | 1)) || verdicts.is_empty() {
            let why = format!("{ended}: {}", last_line(output));
            verdicts.extend(Verdict::whole(Outcome::Fail, why));
        }
        verdicts
    }
}

/// Reads lines `NAME ok|FAILED|skipped`; the reason follows in a line that begins with a tab. A
/// pattern finds the tests of other calls, too, whose names end alike.
fn results(output: &str, call: &str) -> Vec<Verdict> {
    let mut verdicts: Vec<Verdict> = Vec::new();
    let mut lines = output.lines().peekable();
    while let Some(line) = lines.next() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(word), None) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let outcome = match word {
            "ok" => Outcome::Pass,
            "FAILED" => Outcome::Fail,
            "skipped" => Outcome::Skip,
            _ => continue,
        };
        let Some(test) = name
            .strip_prefix(call)
            .and_then(|test| test.strip_prefix("::"))
        else {
            continue;
        };
        let why = lines.next_if(|line| line.starts_with('\t'));
        verdicts.push(Verdict {
            test: test.to_owned(),
            outcome,
            why: why.map(last_line).unwrap_or_default(),
        });
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_those_of_the_call() {
        let output = "link::a    ok\nunlink::b  FAILED\n\tassertion\nlink::c  FAILED\n\tleft: 1\n\tright: 2\n\
                      link::d   skipped\n\trequires root\n\nSummary: 2 failed, 1 skipped, 1 passed\n";
        let found = results(output, "link");
        let told: Vec<_> = found
            .iter()
            .map(|v| (v.test.as_str(), v.outcome.word(), v.why.as_str()))
            .collect();
        let expected = [
            ("a", "pass", ""),
            ("c", "fail", "left: 1"),
            ("d", "skip", "requires root"),
        ];
        assert_eq!(told, expected);
    }
}
