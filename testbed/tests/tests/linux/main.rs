//! Debian's unmodified drivers and tools on the modelled adapters: a client that was written for
//! real cards.
//!
//! A module a subject; each gives groups of checks. What checks can say is in
//! `testbed_tests::linux::group`.
//!
//! Arguments: `--all` for the full set (a bounded one otherwise), `--list` to print it only, and a
//! part of the names of groups or checks.
#![forbid(unsafe_code)]

mod adapters;
mod faults;
mod guests;
mod ip;
mod lifecycle;
mod ours;
mod storage;
mod subnet;
mod tools;

use std::process::ExitCode;

use testbed_tests::linux::group::Group;
use testbed_tests::linux::run::Tally;

/// Returns all groups, their modules' names before their own.
fn groups() -> impl Iterator<Item = Group> {
    let modules = [
        ("adapters", adapters::groups()),
        ("faults", faults::groups()),
        ("guests", guests::groups()),
        ("ip", ip::groups()),
        ("lifecycle", lifecycle::groups()),
        ("ours", ours::groups()),
        ("storage", storage::groups()),
        ("subnet", subnet::groups()),
        ("tools", tools::groups()),
    ];
    modules.into_iter().flat_map(|(module, groups)| {
        groups.into_iter().map(move |mut group| {
            group.name = format!("{module}: {}", group.name);
            group
        })
    })
}

fn main() -> ExitCode {
    let (mut all, mut list, mut filter) = (false, false, None);
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--all" => all = true,
            "--list" => list = true,
            _ if argument.starts_with('-') => {
                eprintln!("error: no option {argument}; there are --all, --list and a filter");
                return ExitCode::FAILURE;
            }
            // An empty one is in all names.
            _ => filter = Some(argument),
        }
    }
    let mut tally = Tally::default();
    let mut left_out = 0;
    for group in groups() {
        let (group, without) = group.select(all, filter.as_deref());
        left_out += without;
        match group {
            Some(group) if list => {
                for check in &group.checks {
                    println!("{}  {}", group.name, check.name);
                }
            }
            Some(group) => tally.run(&group),
            None => {}
        }
    }
    if list {
        return ExitCode::SUCCESS;
    }
    let Tally {
        passed,
        failed,
        failures,
        unsteady,
    } = tally;
    for line in unsteady {
        println!("unsteady: {line}");
    }
    for line in failures {
        println!("failed: {line}");
    }
    println!("{passed} passed, {failed} failed, {left_out} left out (run by --linux)");
    if failed == 0 && passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
