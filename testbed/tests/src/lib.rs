//! End-to-end tests: the three components in QEMU on the modelled fabric.
//!
//! They call `cargo xtask run` as a user would, and compare with the same binaries run on the host.
//! `cargo xtask test` runs them; nothing skips them but its `--quick`. What the tests share is
//! here.
//!
//! [`terminal`] is a terminal of the host with a program on it. [`nodes`] is what tests of FIT on
//! whole machines need. Those of Linux guests are in `tests/linux`; [`linux`] is what they are made
//! of.
#![forbid(unsafe_code)]

pub mod disks;
pub mod linux;
pub mod lossy;
pub mod nodes;
pub mod screen;
pub mod terminal;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

/// The most that a node's boot and a test's program may take together, in seconds.
const TIMEOUT: &str = "300";

/// Returns the xtask that runs these tests, or cargo's.
#[must_use]
pub fn xtask() -> Command {
    match std::env::var_os("TESSERA_XTASK") {
        Some(program) => Command::new(program),
        None => {
            let mut command =
                Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            command.args(["run", "--quiet", "--package", "xtask", "--"]);
            command
        }
    }
}

/// Returns the program of a name that tests put on S's disk; all are built and fetched once.
///
/// # Panics
/// If they can't be had: a test that lacks its program has failed.
pub fn program(name: &str) -> &'static Path {
    static PROGRAMS: OnceLock<BTreeMap<String, PathBuf>> = OnceLock::new();
    let programs = PROGRAMS.get_or_init(|| {
        let output = xtask()
            .arg("test-programs")
            .stderr(Stdio::inherit())
            .output()
            .expect("xtask runs");
        assert!(output.status.success(), "`xtask test-programs` failed");
        let text = String::from_utf8(output.stdout).expect("text");
        let pair = |line: &str| {
            line.split_once('\t')
                .map(|(name, path)| (name.into(), path.into()))
        };
        text.lines().filter_map(pair).collect()
    });
    programs
        .get(name)
        .unwrap_or_else(|| panic!("no program {name}"))
}

/// Exit status and output of a program.
#[derive(Debug)]
pub struct Ran {
    /// Exit status as a shell shows it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error; with the cluster's lines where it ran on one.
    pub stderr: String,
    /// The report's lines; none of a program on the host.
    pub report: Vec<Vec<String>>,
}

impl Ran {
    /// Returns the sum of the last fields of the report's lines that begin with `fields`.
    #[must_use]
    pub fn sum(&self, fields: &[&str]) -> u64 {
        let begins = |line: &&Vec<String>| {
            line.iter().zip(fields).filter(|(a, b)| a == b).count() == fields.len()
        };
        self.report
            .iter()
            .filter(begins)
            .filter_map(|line| line.last()?.parse::<u64>().ok())
            .sum()
    }
}

/// A run of the cluster, to be started.
pub struct Run {
    command: Command,
    report: PathBuf,
    input: Vec<u8>,
}

impl Run {
    /// Creates a run with these options of `xtask run`.
    #[must_use]
    pub fn new(options: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let report =
            std::env::temp_dir().join(format!("tessera-report-{}-{number}", std::process::id()));
        let mut command = xtask();
        command
            .args(["run", "--timeout", TIMEOUT, "--report"])
            .arg(&report)
            .args(options);
        Self {
            command,
            report,
            input: Vec::new(),
        }
    }

    /// Puts a file of the host on the disk.
    #[must_use]
    pub fn add(mut self, host: &Path, guest: &str) -> Self {
        self.command
            .arg("--add")
            .arg(format!("{}:{guest}", host.display()));
        self
    }

    /// Gives the program this input.
    #[must_use]
    pub fn input(mut self, bytes: &[u8]) -> Self {
        self.input = bytes.to_vec();
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// If xtask can't be started.
    #[must_use]
    pub fn start(mut self, program: &[&str]) -> Child {
        if !program.is_empty() {
            self.command.arg("--").args(program);
        }
        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.command.spawn().expect("xtask starts")
    }

    /// Runs a program to its end; without one, the demonstration.
    ///
    /// # Panics
    /// If xtask can't be started.
    #[must_use]
    pub fn run(self, program: &[&str]) -> Ran {
        let (report, input) = (self.report.clone(), self.input.clone());
        let output = finish(self.start(program), input);
        let lines = fs::read_to_string(&report).unwrap_or_default();
        // There is none if the run failed.
        let _ = fs::remove_file(report);
        let report = lines
            .lines()
            .map(|line| line.split('\t').map(str::to_owned).collect())
            .collect();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Ran {
            code: output.status.code(),
            stdout: output.stdout,
            stderr,
            report,
        }
    }
}

/// Runs the same on the host.
///
/// # Panics
/// If it can't be started.
#[must_use]
pub fn native(program: &Path, args: &[&str], input: &[u8]) -> Ran {
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs([("PATH", "/bin:/usr/bin"), ("HOME", "/root")]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = finish(
        command.spawn().expect("the program starts here"),
        input.to_vec(),
    );
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Ran {
        code: output.status.code(),
        stdout: output.stdout,
        stderr,
        report: Vec::new(),
    }
}

fn finish(mut child: Child, input: Vec<u8>) -> Output {
    let mut stdin = child.stdin.take().expect("a pipe");
    let writer = thread::spawn(move || {
        // A program need not read its input.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("its output");
    writer.join().expect("the writer ends");
    output
}

/// Returns the descendants of a process, by number and command line.
#[must_use]
pub fn descendants(of: u32) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    let mut parents = vec![of];
    let processes: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect();
    while let Some(parent) = parents.pop() {
        for &(pid, _) in processes.iter().filter(|(_, of)| *of == parent) {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let text = String::from_utf8_lossy(&words).replace('\0', " ");
            found.push((i32::try_from(pid).expect("a process number"), text));
            parents.push(pid);
        }
    }
    found
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}
