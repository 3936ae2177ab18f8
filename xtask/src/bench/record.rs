//! Records of a benchmark in `docs/bench`: a report for people, its plot, and the figures for the
//! next comparison.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::figures::{Figure, from_tsv, to_tsv};
use crate::project;
use crate::tools::{quiet, say};

/// Contents of a record.
pub(super) struct Record<'a> {
    /// The name of its files.
    pub(super) name: &'a str,
    /// The report's heading.
    pub(super) title: &'a str,
    /// The command that makes it.
    pub(super) command: &'a str,
    /// The report's sections, in Markdown.
    pub(super) body: String,
    /// The plot.
    pub(super) svg: String,
    /// All figures.
    pub(super) figures: &'a [Figure],
}

/// Machine and commit of a measurement.
pub(super) struct MeasurementContext {
    commit: String,
    machine: String,
}

impl MeasurementContext {
    /// Looks at this machine and this tree. `qemu` is QEMU's version.
    pub(super) fn here(qemu: &str) -> Self {
        let git =
            |args: &[&str]| quiet(Command::new("git").args(args).current_dir(project::root()));
        let commit = git(&["log", "-1", "--format=%h, %cs"]).unwrap_or_else(|_| "unknown".into());
        // Records themselves are no change of what is measured.
        let changed = git(&[
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            ":!docs",
        ]);
        let is_changed = changed.is_ok_and(|list| !list.trim().is_empty());
        let with = if is_changed {
            ", with changes that are not committed"
        } else {
            ""
        };
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let machine = format!(
            "{}, {cores} cores; {qemu}, TCG",
            model(&info).unwrap_or("unknown processor")
        );
        Self {
            commit: format!("{}{with}", commit.trim()),
            machine,
        }
    }

    /// Returns lines for a report.
    fn lines(&self) -> [String; 2] {
        [
            format!("commit: {}", self.commit),
            format!("machine: {}", self.machine),
        ]
    }
}

fn model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

fn place(name: &str, extension: &str) -> PathBuf {
    project::root()
        .join("docs/bench")
        .join(format!("{name}.{extension}"))
}

impl Record<'_> {
    /// Writes the record's files.
    pub(super) fn write(&self, circumstances: &MeasurementContext) -> Result<()> {
        let [commit, machine] = circumstances.lines();
        let report = format!(
            "# {}\n\nMade by `{}`; [the user's guide](../user/bench.md) says what the figures are.\n\n* {commit}\n* {machine}\n* \
             figures for scripts: [{name}.tsv]({name}.tsv)\n\n![plot]({name}.svg)\n\n{}",
            self.title,
            self.command,
            self.body,
            name = self.name
        );
        let figures = format!("# {commit}\n# {machine}\n{}", to_tsv(self.figures));
        let folder = project::root().join("docs/bench");
        fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        for (extension, text) in [("md", &report), ("svg", &self.svg), ("tsv", &figures)] {
            let file = place(self.name, extension);
            fs::write(&file, text).with_context(|| format!("can't write {}", file.display()))?;
        }
        say(&format!("Recorded in docs/bench/{}.md", self.name));
        Ok(())
    }
}

/// Reads the figures of the last record.
pub(super) fn last(name: &str) -> Result<Vec<Figure>> {
    let file = place(name, "tsv");
    let text = fs::read_to_string(&file).with_context(|| {
        format!(
            "there is no record {}: make one with --record",
            file.display()
        )
    })?;
    from_tsv(&text).with_context(|| format!("{} is damaged", file.display()))
}

/// Returns rows, the first being the header, as a Markdown table.
pub(super) fn markdown(rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let Some((header, rest)) = rows.split_first() else {
        return String::new();
    };
    let rule: Vec<String> = (0..header.len())
        .map(|column| if column == 0 { "---" } else { "---:" }.to_owned())
        .collect();
    let rest: String = rest.iter().map(|row| line(row)).collect();
    line(header) + &line(&rule) + &rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_rule_below_its_header() {
        let rows = [["a", "b"], ["c", "1"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(markdown(&rows), "| a | b |\n| --- | ---: |\n| c | 1 |\n");
        assert_eq!(markdown(&[]), "");
    }

    #[test]
    fn the_processors_model_is_found() {
        assert_eq!(
            model("processor\t: 0\nmodel name\t: X Y 3000\n"),
            Some("X Y 3000")
        );
        assert_eq!(model(""), None);
    }
}
