//! busybox's own testsuite, run on Debian's static busybox with Debian's configuration.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::suite::{Case, Ended, FOLDER, Outcome, Suite, Verdict, last_line};
use crate::debian::{TRIXIE, source};
use crate::run::busybox;
use crate::tools::{need, quiet};

/// Seconds for an applet's tests.
const LIMIT: u64 = 300;
/// Applets whose tests compute for long: those of `bc` do so for a minute on the host itself, and
/// an emulated CPU is some twenty times slower.
const SLOW: [(&str, u64); 1] = [("bc", 1800)];
/// Words that begin a line on a test's result.
const WORDS: [(&str, Outcome); 4] = [
    ("PASS: ", Outcome::Pass),
    ("FAIL: ", Outcome::Fail),
    ("SKIPPED: ", Outcome::Skip),
    ("UNTESTED: ", Outcome::Skip),
];

/// The suite. A case is an applet.
pub(super) struct Busybox;

impl Suite for Busybox {
    fn name(&self) -> &'static str {
        "busybox"
    }

    fn about(&self) -> &'static str {
        "busybox's testsuite (Debian's source package), on Debian's busybox-static."
    }

    fn packages(&self) -> &'static [&'static str] {
        &["bzip2", "xz-utils", "cpio", "procps"]
    }

    fn prepare(&self, folder: &Path) -> Result<Vec<Case>> {
        let source = source("busybox", TRIXIE)?;
        let tests = folder.join("testsuite");
        if !tests.exists() {
            quiet(
                Command::new("cp")
                    .arg("-a")
                    .arg(source.join("testsuite"))
                    .arg(&tests),
            )?;
        }
        // The tests' shell has an `echo` without `-ne`; their own replacement is built on the spot
        // otherwise.
        quiet(
            Command::new(need("gcc", "`apt-get install gcc`")?)
                .args(["-Os", "-w", "-static", "-o"])
                .arg(tests.join("echo-ne"))
                .arg(source.join("scripts/echo.c")),
        )?;
        let config = folder.join(".config");
        fs::copy(source.join("debian/config/pkg/static"), config)
            .context("can't copy Debian's configuration")?;
        fs::copy(busybox()?, folder.join("busybox")).context("can't copy busybox")?;
        let mut applets = Vec::new();
        for entry in fs::read_dir(&tests).context("can't list the tests")? {
            let entry = entry.context("can't list the tests")?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let applet = name.strip_suffix(".tests").map(str::to_owned);
            let old_style = entry.path().is_dir() && name != "mount.testroot";
            // `all_sourcecode` checks the style of the source.
            let applet = applet
                .or(old_style.then_some(name))
                .filter(|name| !name.starts_with("all_"));
            applets.extend(applet);
        }
        applets.sort();
        applets.dedup();
        let case = |applet: String| Case {
            // In P's own memory, as the suite makes a link for each applet before each run; but the
            // program stays on the disk, for P copies a file of its own each time that it is
            // executed.
            command: format!(
                "[ -d /tmp/suite ] || {{ cp -r {FOLDER} /tmp/suite; ln -sf {FOLDER}/busybox \
                 /tmp/suite/busybox; }}; cd /tmp/suite/testsuite && bindir=/tmp/suite VERBOSE= \
                 ./runtest {applet}"
            ),
            limit: SLOW
                .into_iter()
                .find(|(slow, _)| *slow == applet)
                .map_or(LIMIT, |(_, limit)| limit),
            name: applet,
        };
        Ok(applets.into_iter().map(case).collect())
    }

    fn judge(&self, _case: &Case, ended: &Ended, output: &str) -> Vec<Verdict> {
        let verdict = |line: &str| {
            let (word, outcome) = WORDS.into_iter().find(|(word, _)| line.starts_with(word))?;
            Some(Verdict {
                test: line[word.len()..].trim().to_owned(),
                outcome,
                why: String::new(),
            })
        };
        let mut verdicts: Vec<Verdict> = output.lines().filter_map(verdict).collect();
        if !matches!(ended, Ended::Status(_)) {
            verdicts.extend(Verdict::whole(Outcome::Fail, ended.to_string()));
        } else if verdicts.is_empty() {
            let outcome = if *ended == Ended::Status(0) {
                Outcome::Skip
            } else {
                Outcome::Fail
            };
            verdicts = Verdict::whole(outcome, last_line(output));
        }
        verdicts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_and_a_suite_without_any_has_failed() {
        let case = Case {
            name: "ls".into(),
            command: String::new(),
            limit: 1,
        };
        let judge = |ended: &Ended, output: &str| {
            let verdicts = Busybox.judge(&case, ended, output);
            verdicts
                .iter()
                .map(|verdict| format!("{}={}", verdict.test, verdict.outcome.word()))
                .collect::<Vec<_>>()
                .join(" ")
        };
        let output = "PASS: a\nnoise\nFAIL: b c\nSKIPPED: d\n";
        assert_eq!(judge(&Ended::Status(1), output), "a=pass b c=fail d=skip");
        assert_eq!(judge(&Ended::TimedOut, "PASS: a\n"), "a=pass =fail");
        assert_eq!(judge(&Ended::Status(1), "gcc: not found\n"), "=fail");
        assert_eq!(judge(&Ended::Status(0), ""), "=skip");
    }
}
