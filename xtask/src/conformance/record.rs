//! `docs/conformance.md`: a section a suite, each with its counts and a reason for each failure.
//! Results case by case lie beside it, in a file a suite.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};

use super::suite::{SUITES, Suite};
use super::table::{Classification, Table};

/// Head of the page.
const HEAD: &str = "# Tests that others wrote\n\n\
    `cargo xtask conformance SUITE --record` writes a section of this page: what passes, what fails on the cluster\n\
    and not on Linux, what fails on Linux too, what was not tested. The second column of a table of failures is\n\
    written by hand; without a reason there, it says what the test printed. [conformance/](conformance) has the\n\
    result of each case.\n";
/// Mark before a reason that no one has written yet.
const PRINTED: &str = "printed: ";

/// Reasons that the page gives, by test.
#[derive(Default, Debug)]
pub(super) struct Reasons(BTreeMap<String, String>);

impl Reasons {
    /// Reads a suite's section.
    ///
    /// # Errors
    /// If the page is there and can't be read.
    pub(super) fn read(page: &Path, suite: &str) -> Result<Self> {
        let text = read(page)?;
        Ok(Self::parse(section(&text, suite).unwrap_or_default()))
    }

    fn parse(section: &str) -> Self {
        let row = |line: &str| {
            let (test, why) = line.strip_prefix("| `")?.split_once("` | ")?;
            let why = why.trim_end().strip_suffix('|')?.trim_end();
            (!why.starts_with(PRINTED)).then(|| (test.to_owned(), why.to_owned()))
        };
        Self(section.lines().filter_map(row).collect())
    }

    /// Returns whether a reason is given for a test.
    pub(super) fn has(&self, test: &str) -> bool {
        self.0.contains_key(&cell(test))
    }
}

/// Writes the suite's section anew and leaves the others. So many cases are `left` to be run.
///
/// # Errors
/// If the page can't be read or written.
pub(super) fn write(
    page: &Path,
    suite: &dyn Suite,
    table: &Table,
    left: usize,
    reasons: &Reasons,
) -> Result<()> {
    let old = read(page)?;
    let mut text = HEAD.to_owned();
    for each in SUITES {
        if each.name() == suite.name() {
            text += &render(suite, table, left, reasons);
        } else if let Some(section) = section(&old, each.name()) {
            text += section;
        }
    }
    fs::write(page, text).with_context(|| format!("can't write {}", page.display()))
}

fn read(page: &Path) -> Result<String> {
    match fs::read_to_string(page) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        other => other.with_context(|| format!("can't read {}", page.display())),
    }
}

fn heading(suite: &str) -> String {
    format!("\n## {suite}\n")
}

/// Returns a suite's section, with the empty line before its heading.
fn section<'a>(text: &'a str, suite: &str) -> Option<&'a str> {
    let heading = heading(suite);
    let start = text.find(&heading)?;
    let rest = &text[start + heading.len()..];
    let length = rest.find("\n## ").unwrap_or(rest.len());
    Some(&text[start..start + heading.len() + length])
}

fn render(suite: &dyn Suite, table: &Table, left: usize, reasons: &Reasons) -> String {
    let counts = table.counts();
    let mut text = heading(suite.name());
    text += &format!(
        "\n{}\n\n| pass | fail | fail on Linux too | skipped |\n|---|---|---|---|\n| {} | {} | {} | {} |\n",
        suite.about(),
        counts.pass,
        counts.fail,
        counts.on_linux,
        counts.skip
    );
    if left > 0 {
        text += &format!("\n**Not whole**: {left} cases were not run yet.\n");
    }
    if counts.fail > 0 {
        text += "\n| fails | why |\n|---|---|\n";
    }
    for (name, row) in table.with(Classification::Fail) {
        let name = cell(name);
        let why = reasons.0.get(&name).cloned();
        let why = why.unwrap_or_else(|| format!("{PRINTED}{}", cell(&row.why)));
        text += &format!("| `{name}` | {why} |\n");
    }
    text
}

/// Returns a text that can stand in a cell.
fn cell(text: &str) -> String {
    text.replace('|', "¦").replace('`', "'")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::suite::{Case, Outcome, Verdict};

    #[test]
    fn reasons_are_kept_and_other_sections_too() {
        let page = std::env::temp_dir().join(format!("tessera-conformance-{}", std::process::id()));
        let other = "\n## python\n\nOther.\n";
        let old =
            format!("old\n\n## busybox\n\n| `a: x|` | no reason |\n| `a: x¦` | known |\n{other}");
        fs::write(&page, old).expect("write");
        let reasons = Reasons::read(&page, "busybox").expect("read");
        assert!(reasons.has("a: x|") && !reasons.has("a: y"));
        let mut table = Table::default();
        let case = Case {
            name: "a".into(),
            command: String::new(),
            limit: 1,
        };
        let fail = |test: &str| Verdict {
            test: test.into(),
            outcome: Outcome::Fail,
            why: "said".into(),
        };
        table.add_ours(&case, &[fail("x|"), fail("y")]);
        write(&page, SUITES[0], &table, 7, &reasons).expect("write");
        let text = fs::read_to_string(&page).expect("read");
        fs::remove_file(&page).expect("remove");
        assert!(
            text.contains("| `a: x¦` | known |\n| `a: y` | printed: said |\n"),
            "{text}"
        );
        assert!(
            text.contains("| 0 | 2 | 0 | 0 |\n\n**Not whole**: 7 cases") && text.ends_with(other),
            "{text}"
        );
        let again = Reasons::parse(section(&text, "busybox").expect("a section"));
        assert!(!again.has("a: y"), "what was printed is no reason");
    }
}
