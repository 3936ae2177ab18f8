//! The tests of the `nix` crate, which calls most system calls of Linux from Rust; built here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::suite::{Case, Ended, FOLDER, Outcome, Suite, Verdict};
use crate::project::cargo;
use crate::tools::{quiet, step};

/// The version whose tests are run.
const VERSION: &str = "0.31.3";
/// Seconds for all tests of a program.
const LIMIT: u64 = 600;

/// The suite. A case is a test of the crate's test program.
pub(super) struct Nix;

impl Suite for Nix {
    fn name(&self) -> &'static str {
        "nix"
    }

    fn about(&self) -> &'static str {
        "The tests of the crate nix 0.31.3, all features, in one thread."
    }

    fn packages(&self) -> &'static [&'static str] {
        &[]
    }

    fn prepare(&self, folder: &Path) -> Result<Vec<Case>> {
        let program = folder.join("nix-test");
        if !program.exists() {
            let built = step("Building the tests of nix", || build(folder))?;
            fs::copy(&built, &program)
                .with_context(|| format!("can't copy {}", built.display()))?;
        }
        Ok(vec![Case {
            name: "test".into(),
            command: format!("exec {FOLDER}/nix-test --test-threads=1"),
            limit: LIMIT,
        }])
    }

    fn judge(&self, _case: &Case, ended: &Ended, output: &str) -> Vec<Verdict> {
        let mut verdicts = results(output);
        if !matches!(ended, Ended::Status(0 | 101)) {
            verdicts.extend(Verdict::whole(Outcome::Fail, ended.to_string()));
        }
        verdicts
    }
}

/// Fetches the crate as a dependency of an empty one, copies its source and builds its tests. The
/// crates that only its tests need come by its own list.
fn build(folder: &Path) -> Result<PathBuf> {
    let work = folder
        .parent()
        .context("the suite has a folder")?
        .join("source");
    fs::create_dir_all(work.join("fetch/src")).context("can't make a folder for the source")?;
    fs::write(work.join("fetch/src/lib.rs"), "").context("can't write the empty crate")?;
    let manifest = format!(
        "[package]\nname = \"fetch\"\nedition = \"2024\"\n[dependencies]\nnix = \"={VERSION}\"\n[workspace]\n"
    );
    fs::write(work.join("fetch/Cargo.toml"), manifest).context("can't write the empty crate")?;
    let mut command = cargo();
    command.current_dir(work.join("fetch"));
    let text = quiet(command.args(["metadata", "--format-version", "1"]))?;
    let metadata: serde_json::Value =
        serde_json::from_str(&text).context("can't read what cargo says")?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo names no packages")?;
    let nix = packages.iter().find(|package| package["name"] == "nix");
    let manifest = nix.and_then(|package| package["manifest_path"].as_str());
    let source = Path::new(manifest.context("cargo did not fetch nix")?)
        .parent()
        .context("a manifest lies in a folder")?;
    let copy = work.join("nix");
    if !copy.exists() {
        quiet(Command::new("cp").arg("-r").arg(source).arg(&copy))?;
    }
    // Else cargo takes it for a part of the workspace around it.
    let manifest = copy.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).context("can't read nix's manifest")?;
    if !text.contains("\n[workspace]") {
        fs::write(&manifest, text + "\n[workspace]\n").context("can't write nix's manifest")?;
    }
    let mut command = cargo();
    command
        .current_dir(&copy)
        .env("CARGO_TARGET_DIR", work.join("target"));
    let text = quiet(command.args([
        "test",
        "--all-features",
        "--test",
        "test",
        "--no-run",
        "--message-format",
        "json",
    ]))?;
    let built = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "test")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    let built = built.context("cargo built no test program")?;
    ensure!(built.is_file(), "{} is not there", built.display());
    Ok(built)
}

/// Reads the lines `test NAME ... ok` of Rust's test harness.
fn results(output: &str) -> Vec<Verdict> {
    let mut verdicts: Vec<Verdict> = Vec::new();
    let mut lines = output.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((name, rest)) = line
            .strip_prefix("test ")
            .and_then(|line| line.split_once(" ... "))
        else {
            continue;
        };
        // What a test prints comes before its result, and may end its line.
        let untested = !rest.trim().is_empty() && lines.next_if(|&next| next == "ok").is_some();
        let outcome = match rest.trim() {
            rest if rest.ends_with("ok") => Outcome::Pass,
            rest if rest.starts_with("ignored") => Outcome::Skip,
            _ => Outcome::Fail,
        };
        // A test that `nix` skips prints why and passes.
        let outcome = if rest.contains("skip") || untested {
            Outcome::Skip
        } else {
            outcome
        };
        verdicts.push(Verdict {
            test: name.trim_end_matches(" - should panic").to_owned(),
            outcome,
            why: panic_of(output, name),
        });
    }
    verdicts
}

/// Returns the message that the harness shows of a failed test's panic.
fn panic_of(output: &str, name: &str) -> String {
    let head = format!("---- {name} stdout ----");
    let after = output
        .split_once(&head)
        .map(|(_, after)| after)
        .unwrap_or_default();
    let said = after.lines().take_while(|line| !line.starts_with("---- "));
    let lines: Vec<&str> = said
        .filter(|line| !line.trim().is_empty())
        .take(3)
        .collect();
    let text: String = lines.join(" ");
    text.chars().take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harness_is_read() {
        let output = "running 4 tests\ntest a::b ... ok\ntest e ... no address\nok\ntest c ... FAILED\ntest d ... ignored, why\n\nfailures:\n\n\
                      ---- c stdout ----\n\nthread 'c' panicked at x:1:2:\nboom\n\nfailures:\n";
        let found = results(output);
        let words: Vec<_> = found
            .iter()
            .map(|v| (v.test.as_str(), v.outcome.word()))
            .collect();
        assert_eq!(
            words,
            [
                ("a::b", "pass"),
                ("e", "skip"),
                ("c", "fail"),
                ("d", "skip")
            ]
        );
        assert!(found[2].why.contains("boom"), "{:?}", found[2]);
    }
}
