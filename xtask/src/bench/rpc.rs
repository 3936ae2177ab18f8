//! `bench rpc`: the cost of a call: instructions by callgrind, work of the modelled adapter, and
//! times between machines.
//!
//! The times are [`profile`]'s. What is counted comes from tests of `fit` (`fit/src/tests/cost.rs`,
//! `fit/tests/whole_path.rs`), so that the figures are of what is tested.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{profile, table};
use crate::bed;
use crate::project::{self, cargo};
use crate::tools::{need, quiet, say, step};

/// Counts what a short call costs: instructions of FIT by callgrind, and work of the modelled
/// adapter; then times calls of several sizes between two machines in QEMU, with every reply
/// checked
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Calls of each size, number of tasks and kind of handler
    #[arg(long, value_name = "N", default_value_t = CALLS_A_SERIES, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    calls: u32,
    /// Same as --calls 100000
    #[arg(long, conflicts_with = "calls")]
    stress: bool,
    /// Sets a boot option of both nodes, as `polling=busy` (repeatable)
    #[arg(long, value_name = "OPTION")]
    boot: Vec<String>,
    /// Writes all figures to this file, too, as tab-separated values
    #[arg(long, value_name = "FILE")]
    tsv: Option<PathBuf>,
}

/// Takes a minute or two in all.
const CALLS_A_SERIES: u32 = 10_000;
/// The journal's stress.
const STRESS: u32 = 100_000;

/// The test that is run under callgrind, and how many calls it makes (`CALLS` there).
const TEST: &str = "tests::cost::short_calls";
const CALLS: u64 = 2000;
/// The beginning of the name of the function in that test that looks for completions and finds
/// none.
const EMPTY_POLL: &str = "empty_poll_";
/// The sides of a call: the beginnings of the names of the functions that do its work, and of the
/// one that finds its message, with what these are.
const SIDES: [(&str, [(&str, &str); 2]); 2] = [
    (
        "caller",
        [
            ("caller_side_", "asks, takes the reply"),
            ("caller_polls_", "the reply arrives"),
        ],
    ),
    (
        "callee",
        [
            ("callee_side_", "takes, answers"),
            ("callee_polls_", "the request arrives"),
        ],
    ),
];
/// The test of pages, with as many rounds, and the functions in it that do FIT's and the driver's
/// part, with what that is.
const PAGES_TEST: &str = "tests::page_cost::faults";
const PAGES: [(&str, &str); 5] = [
    ("page_starts_read", "a READ, start to doorbell"),
    ("page_starts_both", "a READ and a WRITE, the same"),
    ("page_ends_one", "its completion, to its end"),
    ("page_ends_next", "both completions, the same"),
    ("page_looks_in_vain", "a look that finds nothing"),
];
/// The beginning of the names of functions that stand for device and memory.
const OUTSIDE: &str = "outside_";
/// The test that counts on the model, and what its lines begin with.
const MODEL_TEST: &str = "a_short_call_is_one_doorbell_and_one_packet_each_way";
const MODEL_LINE: &str = "counted\t";

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let mut figures = count_all()?;
        let calls = if self.stress { STRESS } else { self.calls };
        let folder = bed::make_folder()?;
        let profile = match profile::measure(&folder, calls, &self.boot) {
            Ok(profile) => profile,
            Err(error) => {
                say(&format!("The nodes' logs are in {}", folder.display()));
                return Err(error);
            }
        };
        let _ = std::fs::remove_dir_all(&folder);
        let header = profile::HEADER.map(str::to_owned).to_vec();
        let rows: Vec<_> = std::iter::once(header).chain(profile.rows).collect();
        println!("\ncalls between two machines\n{}", table::aligned(&rows));
        println!(
            "{} calls made, as many replies checked, all counters of both sides agree: nothing lost",
            profile.calls
        );
        figures.push(vec!["nothing_lost".into(), profile.calls.to_string()]);
        match self.tsv {
            Some(file) => table::write(&file, rows.into_iter().chain(figures)),
            None => Ok(()),
        }
    }
}

/// Counts instructions and the adapter's work; prints them, and gives them as rows.
fn count_all() -> Result<Vec<Vec<String>>> {
    let mut figures = Vec::new();
    let valgrind = need("valgrind", "`apt-get install valgrind`")?;
    let test = step("Building FIT's tests for release", build)?;
    println!("A call with 32 bytes of request and 4 of reply.\n");
    println!("instructions of FIT itself, without device and copying");
    let mut tell = |what: &str, instructions: f64| {
        println!("  {what:<26}{instructions:>7.1}");
        let what = what.trim_start().to_owned();
        figures.push(vec![
            "instructions".into(),
            what,
            format!("{instructions:.1}"),
        ]);
    };
    let empty = count(&valgrind, &test, TEST, EMPTY_POLL)?;
    for (side, [(work, works), (arrival, arrives)]) in SIDES {
        let work = count(&valgrind, &test, TEST, work)?;
        // Polling is what a look costs anyhow; what it costs more when a message is there is the
        // call's.
        let arrival = count(&valgrind, &test, TEST, arrival)? - empty;
        tell(side, work + arrival);
        tell(&format!("  {works}"), work);
        tell(&format!("  {arrives}"), arrival);
    }
    tell("a look that finds nothing", empty);
    println!("\ninstructions of a page's transfer, FIT and driver, without the adapter");
    for (function, what) in PAGES {
        let counted = count(&valgrind, &test, PAGES_TEST, function)?;
        println!("  {what:<32}{counted:>7.1}");
        figures.push(vec!["page".into(), what.into(), format!("{counted:.1}")]);
    }
    println!("\nthe modelled adapter's work, a call");
    let args = [
        "test",
        "--quiet",
        "--locked",
        "--package",
        "fit",
        "--test",
        "whole_path",
    ];
    let said = quiet(
        cargo()
            .args(args)
            .args(["--", "--exact", MODEL_TEST, "--nocapture"]),
    )?;
    let counted: Vec<_> = said
        .lines()
        .filter_map(|line| line.strip_prefix(MODEL_LINE))
        .collect();
    ensure!(!counted.is_empty(), "the test {MODEL_TEST} counted nothing");
    for line in counted {
        println!("  {}", line.replace('\t', " "));
        let cells = line.split('\t').map(str::to_owned);
        figures.push(std::iter::once("adapter".to_owned()).chain(cells).collect());
    }
    Ok(figures)
}

/// Builds `fit`'s unit tests and gives the program.
fn build() -> Result<PathBuf> {
    let args = [
        "test",
        "--quiet",
        "--locked",
        "--release",
        "--package",
        "fit",
        "--lib",
        "--no-run",
        "--message-format=json",
    ];
    let said = quiet(cargo().args(args))?;
    let program = said.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "fit")
            .then(|| message["executable"].as_str().map(PathBuf::from))
            .flatten()
    });
    program.context("cargo named no program of fit's tests")
}

/// Instructions a call inside the functions named `function…`, less those of what is outside.
fn count(valgrind: &Path, program: &Path, test: &str, function: &str) -> Result<f64> {
    let out = project::target_folder()?.join(format!("callgrind.{function}out"));
    let mut command = Command::new(valgrind);
    command.args(["--tool=callgrind", "--collect-atstart=no"]);
    command.arg(format!("--toggle-collect=*{function}*"));
    command.arg(format!("--callgrind-out-file={}", out.display()));
    quiet(
        command
            .arg(program)
            .args([test, "--exact", "--test-threads=1"]),
    )?;
    let profile =
        std::fs::read_to_string(&out).with_context(|| format!("can't read {}", out.display()))?;
    let counted = own(&profile).context("callgrind's file is not as expected")?;
    ensure!(counted > 0, "callgrind counted nothing in {function}…");
    // Exact enough: far below 2^52.
    Ok(counted as f64 / CALLS as f64)
}

/// Returns the instructions of a callgrind profile, without those of calls to functions outside.
///
/// A line `cfn=(id) name` names the callee (the name stands there the first time only), `calls=`
/// announces a call, and the last number of the line behind it is what the call cost, callees
/// included (Valgrind's manual, "Callgrind Format").
fn own(profile: &str) -> Option<u64> {
    let mut outside = std::collections::BTreeMap::new();
    let (mut total, mut callee, mut is_call, mut away) = (None, "", false, 0);
    for line in profile.lines() {
        let named = ["fn=", "cfn="]
            .into_iter()
            .find_map(|key| line.strip_prefix(key));
        if let Some(text) = named {
            let (id, name) = text.split_once(')').unwrap_or((text, ""));
            if !name.is_empty() {
                outside.insert(id, name.contains(OUTSIDE));
            }
            if line.starts_with('c') {
                callee = id;
            }
        } else if line.starts_with("calls=") {
            is_call = true;
        } else if let Some(text) = line.strip_prefix("totals: ") {
            total = text.trim().parse::<u64>().ok();
        } else if core::mem::take(&mut is_call) && *outside.get(callee)? {
            away += line.split_whitespace().last()?.parse::<u64>().ok()?;
        }
    }
    total?.checked_sub(away)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_outside_is_taken_off() {
        let profile = "events: Ir\nfn=(1) fit::start\n10 5\ncfn=(2) fit::tests::cost::outside_ring\ncalls=1 20\n11 40\n\
                       cfn=(3) fit::post\ncalls=1 30\n12 7\n\nfn=(3)\n30 4\ncfn=(2)\ncalls=1 20\n31 3\ntotals: 52\n";
        assert_eq!(own(profile), Some(9));
        assert_eq!(own("events: Ir\n"), None);
        assert_eq!(own("cfn=(9)\ncalls=1 2\n3 4\ntotals: 9\n"), None);
    }
}
