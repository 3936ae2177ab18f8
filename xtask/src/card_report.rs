//! `card-report`: what a node's log says of its card, in one text that can be sent to others.
//!
//! The driver writes these lines, on the model as on a real card (`drivers/mlx4/src/report.rs`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// Collects what a node's log says of its card: versions, capabilities, commands, events
///
/// The node must have run with the option `log=debug`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The node's log; `-` for standard input
    log: PathBuf,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let text = if self.log.as_os_str() == "-" {
            let mut bytes = Vec::new();
            std::io::stdin()
                .read_to_end(&mut bytes)
                .context("can't read standard input")?;
            bytes
        } else {
            fs::read(&self.log).with_context(|| format!("can't read {}", self.log.display()))?
        };
        let report = Report::of(&String::from_utf8_lossy(&text));
        ensure!(
            !report.mailboxes.is_empty(),
            "the log says nothing of a card: run the node with `log=debug`"
        );
        print!("{}", report.text());
        Ok(())
    }
}

/// Contents of a log, by kind.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    /// Lines of the driver and of the node that are no rows: versions, warnings, errors.
    said: Vec<String>,
    /// Rows of mailboxes.
    mailboxes: Vec<String>,
    commands: Vec<Command>,
    events: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Command {
    name: String,
    rest: String,
    status: String,
    micros: u64,
}

impl Report {
    fn of(log: &str) -> Self {
        let mut report = Self::default();
        for line in log.lines() {
            let Some((_, row)) = line.split_once("card\t") else {
                let worth = ["firmware", "card", "port", "WARN", "ERROR", "interrupt"];
                if worth.iter().any(|word| line.contains(word)) {
                    report.said.push(line.to_owned());
                }
                continue;
            };
            let fields: Vec<&str> = row.split('\t').collect();
            match fields[..] {
                ["mailbox", ref rest @ ..] => report.mailboxes.push(rest.join("  ")),
                ["command", name, op, modifier, status, micros] => report.commands.push(Command {
                    name: name.into(),
                    rest: format!("{op} {modifier}"),
                    status: status.into(),
                    micros: micros.parse().unwrap_or(0),
                }),
                ["event", ref rest @ ..] => report.events.push(rest.join("  ")),
                _ => {}
            }
        }
        report
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut section = |name: &str, lines: &[String]| {
            let _ = writeln!(text, "== {name}");
            for line in lines {
                let _ = writeln!(text, "{line}");
            }
        };
        section("said", &self.said);
        section("mailboxes", &self.mailboxes);
        section("commands", &self.summary());
        let line = |command: &Command| {
            let Command {
                name,
                rest,
                status,
                micros,
            } = command;
            format!("{name} {rest}: {status}, {micros} us")
        };
        let all: Vec<String> = self.commands.iter().map(line).collect();
        section("each command", &all);
        section("events", &self.events);
        text
    }

    /// Returns a line for each command and status: how often, and the longest time.
    fn summary(&self) -> Vec<String> {
        let mut sums: BTreeMap<(&str, &str), (u32, u64)> = BTreeMap::new();
        for command in &self.commands {
            let sum = sums.entry((&command.name, &command.status)).or_default();
            *sum = (sum.0 + 1, sum.1.max(command.micros));
        }
        sums.into_iter()
            .map(|((name, status), (count, longest))| {
                format!("{name}: {status}, {count} times, at most {longest} us")
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "[0.1] INFO firmware 2.42.5000, command interface 3\n\
        [0.1] DEBUG card\tmailbox\tQUERY_FW\t0x000\t02000002\n\
        [0.2] DEBUG card\tcommand\tNOP\t0x0\t0x1f\tOK\t40\n\
        [0.2] DEBUG card\tcommand\tNOP\t0x0\t0x1f\tOK\t60\n\
        [0.3] DEBUG card\tcommand\tSET_PORT\t0x0\t0x1\tBAD_SIZE\t9\n\
        [0.4] DEBUG card\tevent\tPORT_CHANGE\t00090004\n\
        [0.5] INFO something else\n";

    #[test]
    fn a_log_is_sorted_into_sections() {
        let text = Report::of(LOG).text();
        for line in [
            "[0.1] INFO firmware 2.42.5000, command interface 3",
            "QUERY_FW  0x000  02000002",
            "NOP: OK, 2 times, at most 60 us",
            "SET_PORT 0x0 0x1: BAD_SIZE, 9 us",
            "PORT_CHANGE  00090004",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}:\n{text}");
        }
        assert!(!text.contains("something else"));
    }

    #[test]
    fn torn_lines_are_passed_over() {
        let report = Report::of("card\t\ncard\tcommand\tNOP\ncard\tcommand\n");
        assert_eq!(report, Report::default());
    }
}
