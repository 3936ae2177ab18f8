//! `bench hca`: perftest's own figures between two Linux guests, and the time that the model takes
//! of a core for each message.
//!
//! Each tool is run twice, with few iterations and with many: what the second costs the fabric's
//! server beyond the first is what its additional messages cost, without making and connecting
//! queue pairs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::table;
use crate::project::{self, cargo};
use crate::tools::{quiet, say, step};

/// Measures the modelled adapter: perftest between two Linux guests, and READs of 4 KB in one
/// process
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Writes the table to this file, too, as tab-separated values
    #[arg(long, value_name = "FILE")]
    tsv: Option<PathBuf>,
}

const VERBS: [&str; 3] = ["read", "write", "send"];
/// Sizes of messages, with as many iterations as take a second or so.
const SIZES: [(u32, u32); 4] = [(64, 10_000), (4096, 10_000), (65_536, 2000), (1 << 20, 200)];
/// Iterations of the run that is subtracted.
const FEW: u32 = 20;
/// The port of perftest's first words.
const PORT: u16 = 18515;
/// Time limit of the guest's run, in seconds of its clock.
const LIMIT: u32 = 120;
const HEADER: [&str; 8] = [
    "tool",
    "bytes",
    "typical us",
    "average us",
    "99% us",
    "MB/s",
    "messages/s",
    "model us/message",
];
const NOTHING: &str = "-";

/// One tool with one size of messages.
struct Case {
    verb: &'static str,
    latency: bool,
    bytes: u32,
    iterations: u32,
}

impl Case {
    fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for verb in VERBS {
            for latency in [true, false] {
                for (bytes, iterations) in SIZES {
                    cases.push(Self {
                        verb,
                        latency,
                        bytes,
                        iterations,
                    });
                }
            }
        }
        cases
    }

    fn tool(&self) -> String {
        format!(
            "ib_{}_{}",
            self.verb,
            if self.latency { "lat" } else { "bw" }
        )
    }

    /// Messages of both sides: a latency is that of a WRITE or SEND to the other side and one back,
    /// and of a READ alone.
    fn messages(&self, iterations: u32) -> u32 {
        if self.latency && self.verb != "read" {
            2 * iterations
        } else {
            iterations
        }
    }

    /// Returns the node's script: with few iterations as check 2N, with many as check 2N + 1.
    fn script(&self, number: usize) -> String {
        let (tool, bytes) = (self.tool(), self.bytes);
        let mut script = String::new();
        for (check, iterations) in [(2 * number, FEW), (2 * number + 1, self.iterations)] {
            script += &format!(
                "check {check} {LIMIT} {tool} <<'END_OF_CHECK'\nmeasured {PORT} {tool} -s {bytes} -n {iterations}\nEND_OF_CHECK\n"
            );
        }
        script
    }

    /// Returns the figures' part of the row, from perftest's last line: `#bytes #iterations` and
    /// then, of a latency, minimum, maximum, typical, average, deviation, 99 % and 99.9 % in
    /// microseconds; of a bandwidth, peak and average in MB/s and 10^6 messages/s.
    fn figures(&self, line: &str) -> Result<[String; 5]> {
        let fields: Vec<f64> = line
            .split_whitespace()
            .filter_map(|field| field.parse().ok())
            .collect();
        let none = || NOTHING.to_owned();
        match fields[..] {
            [_, _, _, _, typical, average, _, ninety_nine, _] if self.latency => {
                let [typical, average, ninety_nine] =
                    [typical, average, ninety_nine].map(|us| format!("{us:.1}"));
                Ok([typical, average, ninety_nine, none(), none()])
            }
            [_, _, _, average, millions] if !self.latency => Ok([
                none(),
                none(),
                none(),
                format!("{average:.1}"),
                format!("{:.0}", millions * 1e6),
            ]),
            _ => bail!("{} printed no figures but {line:?}", self.tool()),
        }
    }
}

/// Measurements of one run of a tool.
#[derive(Default)]
struct Run {
    /// The server's time at its beginning, and until its end, in nanoseconds.
    began: u64,
    took: Option<u64>,
    ended: usize,
    failed: bool,
    /// Both sides had to begin again: what it took means nothing.
    repeated: bool,
    figures: String,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let reads = step("Measuring READs in one process", reads_per_second)?;
        let rows = measure()?;
        println!("{}", table::aligned(&rows));
        println!("Without QEMU, in one process: {reads} READs of 4096 bytes a second");
        if let Some(file) = self.tsv {
            let last =
                ["in_process", "reads_of_4096_per_second", &reads.to_string()].map(str::to_owned);
            table::write(&file, rows.into_iter().chain([last.into()]))?;
        }
        Ok(())
    }
}

fn reads_per_second() -> Result<u64> {
    let mut command = cargo();
    command.args([
        "bench",
        "--quiet",
        "--locked",
        "--package",
        "hca_model",
        "--bench",
        "reads",
    ]);
    let said = quiet(&mut command)?;
    let number = said
        .lines()
        .find_map(|line| line.strip_prefix("reads_per_second\t")?.parse().ok());
    number.with_context(|| format!("the benchmark of READs said {said:?}"))
}

/// Runs all cases in two guests: the table with its header.
fn measure() -> Result<Vec<Vec<String>>> {
    let cases = Case::all();
    let scripts: String = cases
        .iter()
        .enumerate()
        .map(|(number, case)| case.script(number))
        .collect();
    let mut child = start_guests(&format!(". /data/guest/checks.sh\n{scripts}"))?;
    let stdout = child.stdout.take().context("the guests have no output")?;
    let mut server = None;
    let mut runs: BTreeMap<usize, Run> = BTreeMap::new();
    let mut at = 0;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("can't read what the guests say")?;
        let pid = match server {
            Some(pid) => pid,
            None => *server.insert(find_server(child.id())?),
        };
        if let Some((number, what)) = mark(&line) {
            at = number;
            let run = runs.entry(number).or_default();
            if let Some(status) = what.strip_prefix("ended ") {
                run.ended += 1;
                run.failed |= status != "0";
                run.took = Some(busy_ns(pid)?.saturating_sub(run.began));
                if run.ended == 2 && number % 2 == 1 {
                    let case = &cases[number / 2];
                    say(&format!("{} of {} bytes: done", case.tool(), case.bytes));
                }
            } else if run.began == 0 {
                run.began = busy_ns(pid)?;
            }
            continue;
        }
        let run = runs.entry(at).or_default();
        run.repeated |= line.contains("measured: ");
        if let Some(text) = line.strip_prefix("node1: ")
            && text
                .trim_start()
                .starts_with(|first: char| first.is_ascii_digit())
        {
            run.figures = text.into();
        }
    }
    let status = child.wait().context("can't wait for the guests")?;
    ensure!(status.success(), "the guests ended with {status}");
    let header = HEADER.map(str::to_owned).to_vec();
    let rows = cases
        .iter()
        .enumerate()
        .map(|(number, case)| row(case, runs.get(&(2 * number)), runs.get(&(2 * number + 1))));
    std::iter::once(Ok(header)).chain(rows).collect()
}

fn row(case: &Case, few: Option<&Run>, many: Option<&Run>) -> Result<Vec<String>> {
    let (Some(few), Some(many)) = (few, many) else {
        bail!("{} of {} bytes was not run", case.tool(), case.bytes);
    };
    ensure!(
        !few.failed && !many.failed,
        "{} of {} bytes failed",
        case.tool(),
        case.bytes
    );
    let messages = case.messages(case.iterations) - case.messages(FEW);
    let model = match (few.took, many.took) {
        (Some(few_ns), Some(many_ns)) if !few.repeated && !many.repeated => {
            let us = many_ns.saturating_sub(few_ns) / 10 / u64::from(messages);
            format!("{}.{:02}", us / 100, us % 100)
        }
        _ => NOTHING.into(),
    };
    let mut row = vec![case.tool(), case.bytes.to_string()];
    row.extend(case.figures(&many.figures)?);
    row.push(model);
    Ok(row)
}

/// Parses a mark of `checks.sh` in a guest's line: the check's number and its event.
fn mark(line: &str) -> Option<(usize, &str)> {
    let (_, mark) = line.split_once(": @check ")?;
    let (number, what) = mark.split_once(' ')?;
    Some((number.parse().ok()?, what))
}

/// Starts two guests that both run the script.
fn start_guests(script: &str) -> Result<Child> {
    let tools = project::root().join("testbed/tests/guest");
    let mut command = Command::new(std::env::current_exe().context("can't find xtask itself")?);
    command.args([
        "linux",
        "--add",
        &format!("{}:/data/guest", tools.display()),
        "--",
        script,
        script,
    ]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().context("can't start `xtask linux`")
}

/// Returns the fabric's server among a process's descendants.
fn find_server(of: u32) -> Result<u32> {
    let children = format!("/proc/{of}/task/{of}/children");
    let list = fs::read_to_string(&children).with_context(|| format!("can't read {children}"))?;
    let is_server = |pid: &u32| {
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        program.file_name() == Some("hca_server".as_ref())
    };
    let mut pids = list.split_whitespace().filter_map(|pid| pid.parse().ok());
    pids.find(is_server)
        .context("the fabric's server is not running")
}

/// Returns the time that a process's threads have run on any core so far, in nanoseconds.
fn busy_ns(pid: u32) -> Result<u64> {
    let folder = format!("/proc/{pid}/task");
    let mut sum = 0;
    for thread in fs::read_dir(&folder).with_context(|| format!("can't list {folder}"))? {
        sum += busy_thread_ns(&thread?.path())?;
    }
    Ok(sum)
}

/// Returns a thread's time on the CPU: the first field (Linux,
/// Documentation/scheduler/sched-stats.rst).
fn busy_thread_ns(thread: &Path) -> Result<u64> {
    let file = thread.join("schedstat");
    let text =
        fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))?;
    let first = text
        .split_whitespace()
        .next()
        .and_then(|field| field.parse().ok());
    first.with_context(|| format!("{} holds {text:?}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(verb: &'static str, latency: bool) -> Case {
        Case {
            verb,
            latency,
            bytes: 64,
            iterations: 1020,
        }
    }

    fn run(took: u64, figures: &str) -> Run {
        Run {
            took: Some(took),
            figures: figures.into(),
            ..Run::default()
        }
    }

    /// Sample output of perftest 4.5.
    const LATENCY: &str = " 64      1000          15.20          200.97       16.11     	       17.42       	3.1     	40.00    	200.97 ";
    const BANDWIDTH: &str = " 64         1000             5.40               3.07   		   0.050345";

    #[test]
    fn a_row_has_perftests_figures_and_the_models_share() {
        let few = run(1_000_000, "");
        let row = row(
            &case("write", true),
            Some(&few),
            Some(&run(11_000_000, LATENCY)),
        )
        .expect("a row");
        // 10 ms more for 2 * 1000 more messages.
        assert_eq!(
            row,
            [
                "ib_write_lat",
                "64",
                "16.1",
                "17.4",
                "40.0",
                "-",
                "-",
                "5.00"
            ]
        );
    }

    #[test]
    fn a_bandwidth_counts_one_message_an_iteration() {
        let few = run(1_000_000, "");
        let row = row(
            &case("write", false),
            Some(&few),
            Some(&run(11_000_000, BANDWIDTH)),
        )
        .expect("a row");
        assert_eq!(
            row,
            ["ib_write_bw", "64", "-", "-", "-", "3.1", "50345", "10.00"]
        );
    }

    #[test]
    fn a_repeated_run_tells_no_share_and_a_failed_one_is_an_error() {
        let few = run(1, "");
        let repeated = Run {
            repeated: true,
            ..run(2, LATENCY)
        };
        let row_of = |many: &Run| row(&case("send", true), Some(&few), Some(many));
        assert_eq!(row_of(&repeated).expect("a row")[7], "-");
        let failed = Run {
            failed: true,
            ..run(2, LATENCY)
        };
        assert!(row_of(&failed).is_err());
        assert!(row_of(&run(2, "")).is_err(), "no figures");
    }

    #[test]
    fn marks_are_told_from_what_tools_say() {
        assert_eq!(mark("node1: @check 3 ended 0"), Some((3, "ended 0")));
        assert_eq!(mark("node0: @check x ended 0"), None);
        assert_eq!(mark("node0:  64 bytes"), None);
    }

    #[test]
    fn our_own_time_can_be_read() {
        assert!(busy_ns(std::process::id()).expect("schedstat") > 0);
    }
}
