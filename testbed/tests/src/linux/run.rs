//! Runs groups: starts guests, prints a line for each check as it ends, and counts.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::thread;
use std::time::Instant;

use super::group::Group;
use super::judge::{Event, Judge};
use crate::xtask;

/// Time limit of the guests' boot on a busy machine, in seconds.
const BOOT: u32 = 300;
/// Time that nodes may wait for each other beyond the limits of their checks, in seconds.
const SLACK: u32 = 120;
/// Lines that are shown of what was said of a failed check.
const TAIL: usize = 40;

/// Results of the checks.
#[derive(Default)]
pub struct Tally {
    /// Number of checks that passed.
    pub passed: usize,
    /// Number of checks that failed or were not reached.
    pub failed: usize,
    /// Failed checks with their reasons, a line each.
    pub failures: Vec<String>,
    /// Checks that failed at first and passed when their group ran again, a line each.
    pub unsteady: Vec<String>,
}

impl Tally {
    /// Runs a group in guests of its own. A group in which a check fails runs once more: a machine
    /// that stood still for seconds fails a guest's own timeouts. What held only then is listed
    /// apart.
    pub fn run(&mut self, group: &Group) {
        let mut first = Self::default();
        first.run_once(group);
        if first.failed > 0 {
            println!("repeated  {}", group.name);
            let mut second = Self::default();
            second.run_once(group);
            if second.failed == 0 {
                second.unsteady = first.failures;
                first = second;
            } else {
                first.failures.extend(second.failures);
            }
        }
        self.passed += first.passed;
        self.failed += first.failed;
        self.failures.extend(first.failures);
        self.unsteady.extend(first.unsteady);
    }

    fn run_once(&mut self, group: &Group) {
        let mut report = Report {
            group,
            tally: self,
            since: Instant::now(),
            running: None,
            ended: vec![false; group.checks.len()],
        };
        let mut judge = Judge::new(group);
        let end = guests(group, |line| report.line(&mut judge, line));
        report.finish(&judge, &end);
    }
}

/// Progress of a running group.
struct Report<'a> {
    group: &'a Group,
    tally: &'a mut Tally,
    since: Instant,
    running: Option<usize>,
    ended: Vec<bool>,
}

impl Report<'_> {
    fn line(&mut self, judge: &mut Judge<'_>, line: &str) {
        match judge.line(line) {
            None => {}
            Some(Event::Begins(number)) => {
                self.running = Some(number);
                self.since = Instant::now();
            }
            Some(Event::Ended(verdict)) => {
                self.print(verdict.number, &verdict.faults, &verdict.said);
            }
        }
    }

    fn print(&mut self, number: usize, faults: &[String], said: &str) {
        self.ended[number] = true;
        let passed = faults.is_empty();
        let count = if passed {
            &mut self.tally.passed
        } else {
            &mut self.tally.failed
        };
        *count += 1;
        let word = if passed { "passed" } else { "FAILED" };
        let (group, check) = (&self.group.name, &self.group.checks[number].name);
        let seconds = self.since.elapsed().as_secs_f32();
        println!("{word}  {group}  {check}  ({seconds:.1} s)");
        for fault in faults {
            println!("        {fault}");
            self.tally
                .failures
                .push(format!("{group}  {check}: {fault}"));
        }
        if !passed {
            for line in tail(said) {
                println!("        | {line}");
            }
        }
        // Who watches wants to see it now, pipe or not.
        let _ = std::io::stdout().flush();
    }

    /// Counts what was not reached, and says why.
    fn finish(mut self, judge: &Judge<'_>, end: &str) {
        for number in 0..self.group.checks.len() {
            if self.ended[number] {
                continue;
            }
            if self.running == Some(number) {
                let fault = ["the guests ended before it".to_owned()];
                self.print(number, &fault, &format!("{}{end}", judge.said(number)));
            } else {
                self.since = Instant::now();
                let said = if self.running.is_none() && number == 0 {
                    end
                } else {
                    ""
                };
                self.print(number, &["not reached".to_owned()], said);
            }
        }
    }
}

fn tail(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].to_vec()
}

/// Runs the guests to their end, gives each of their lines to `line`; then what xtask said itself.
fn guests(group: &Group, mut line: impl FnMut(&str)) -> String {
    let limit: u32 = group.checks.iter().map(|check| check.limit).sum();
    let (boot, limit) = (BOOT.to_string(), (limit + SLACK).to_string());
    let tools = concat!(env!("CARGO_MANIFEST_DIR"), "/guest:/data/guest");
    let (options, _beside) = match group.beside.map(|start| start()).transpose() {
        Ok(started) => started.unzip(),
        Err(error) => return format!("can't start what runs beside the guests: {error}"),
    };
    let mut command = xtask();
    command
        .args([
            "linux",
            "--boot-timeout",
            &boot,
            "--timeout",
            &limit,
            "--add",
            tools,
        ])
        .args(&group.options)
        .args(options.unwrap_or_default())
        .arg("--")
        .args((0..group.nodes()).map(|node| group.command(node)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return format!("can't start xtask: {error}"),
    };
    let (stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let errors = thread::spawn(move || {
        let mut bytes = Vec::new();
        // Whatever came of it is shown.
        let _ = stderr.as_mut().map(|stderr| stderr.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    });
    for bytes in BufReader::new(stdout.expect("a pipe"))
        .split(b'\n')
        .map_while(Result::ok)
    {
        line(&String::from_utf8_lossy(&bytes));
    }
    let status = child
        .wait()
        .map_or_else(|error| error.to_string(), |status| status.to_string());
    let errors = errors.join().unwrap_or_default();
    format!("{errors}xtask linux: {status}\n")
}
