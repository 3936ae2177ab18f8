//! `bench latency`: what programs wait for most often, in instructions of the kernel, on P and on
//! Linux.
//!
//! The same program runs on a P and in a Linux guest of one core each, both counted by the same
//! plugin of QEMU. Its pages are all in P's cache: what a miss costs, `bench miss` tells.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::child::xtask;
use super::figures::{Figure, Kind, find};
use super::miss::counts::Counts;
use super::miss::plugin;
use super::miss::runs::Said;
use super::miss::symbols::Symbols;
use super::output::{in_folder, show};
use super::plot::{Bar, stacked};
use super::record::{MeasurementContext, Record, markdown};
use super::table::aligned;
use crate::bench::FIXED_LAYOUT;
use crate::build_image::Role;
use crate::qemu::Qemu;
use crate::tools::step;
use crate::{build_image, linux, run, test_programs};

/// Seconds that the program may take under the plugin on a busy machine.
const LIMIT: &str = "300";
/// The program's place.
const PROGRAM: &str = "/bin/latency";
/// Linux at its best: without the mitigations that slow each entry into the kernel, and without
/// accounting of stalls.
const APPEND: &str = "mitigations=off psi=0";
/// The systems, as figures name them.
const SYSTEMS: [&str; 2] = ["Tessera", "Linux"];

/// Counts what a futex's hand-off, a pipe's round trip, fork, exec and wait, and getpid cost the
/// kernel, on P and on Linux in a guest
///
/// Instructions of the kernel on one core, for an operation. Takes two or three minutes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Operations of each kind; a hundredth of it where processes are made
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..))]
    operations: u32,
    /// Also prints the functions of P's kernel that executed most, N for each operation
    #[arg(long, value_name = "N", default_value_t = 0)]
    frames: usize,
    /// Prints the figures as JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Writes the figures to this file, too, as tab-separated values
    #[arg(long, value_name = "FILE")]
    tsv: Option<PathBuf>,
    /// Writes docs/bench/latency.md with a plot and the figures
    #[arg(long)]
    record: bool,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let (figures, circumstances) = in_folder(|folder| self.measure(folder))?;
        show(&figures, self.json, self.tsv.as_ref(), || {
            aligned(&rows(&figures))
        })?;
        if self.record {
            let record = Record {
                name: "latency",
                title: "What programs wait for, on P and on Linux",
                command: "cargo xtask bench latency --record",
                body: format!(
                    "Instructions of the kernel for an operation, on one core.\n\n{}",
                    markdown(&rows(&figures))
                ),
                svg: plot(&figures),
                figures: &figures,
            };
            record.write(&circumstances)?;
        }
        Ok(())
    }

    fn measure(&self, folder: &Path) -> Result<(Vec<Figure>, MeasurementContext)> {
        run::prepare()?;
        linux::prepare()?;
        let qemu = Qemu::obtain()?;
        let program = test_programs::latency()?;
        let plugin = step("Building the counting plugin", || {
            plugin::build(&qemu, folder)
        })?;
        let count = self.operations.to_string();
        let mut figures = Vec::new();
        for system in SYSTEMS {
            let out = folder.join(format!("{system}.counts"));
            let said = step(&format!("Counting on {system}"), || {
                let on = if system == "Linux" { on_linux } else { on_p };
                on(&program, &plugin, &out, &count)
            })?;
            let text = fs::read_to_string(&out)
                .with_context(|| format!("QEMU left no {}", out.display()))?;
            let counts =
                Counts::parse(&text).with_context(|| format!("can't read {}", out.display()))?;
            let said = Said::parse(&said)?;
            figures.extend(of_run(system, &said, &counts));
            if self.frames > 0 && system != "Linux" {
                print!("{}", self.frames(&said, &counts, folder)?);
            }
        }
        Ok((figures, MeasurementContext::here(&qemu.version)))
    }
}

impl Args {
    /// Returns a line for each of the functions that executed most, the innermost first, with those
    /// that they are inlined in.
    fn frames(&self, said: &Said, counts: &Counts, folder: &Path) -> Result<String> {
        let symbols = Symbols::of(&build_image::path(Role::Processor)?);
        let mut text = String::new();
        for phase in &said.phases {
            let Some(executed) = counts.executed.get(&phase.number) else {
                continue;
            };
            let chains = symbols.chains(executed.keys().copied(), folder)?;
            let mut sums = BTreeMap::<String, u64>::new();
            for (address, count) in executed {
                let name = chains.get(address).map(|chain| chain.join(" < "));
                *sums.entry(name.unwrap_or_default()).or_default() += count;
            }
            let mut sums: Vec<_> = sums.into_iter().collect();
            sums.sort_by_key(|(_, count)| Reverse(*count));
            for (name, count) in sums.into_iter().take(self.frames) {
                let each = count as f64 / phase.operations.max(1) as f64;
                // Writing to a string does not fail.
                let _ = writeln!(text, "{}\t{each:.1}\t{name}", phase.name);
            }
        }
        Ok(text)
    }
}

/// Runs the program on a cluster, counted in P, and returns what it says.
fn on_p(program: &Path, plugin: &Path, out: &Path, count: &str) -> Result<String> {
    let option = plugin::option("processor", plugin, out, 0, &[]);
    let add = format!("{}:{PROGRAM}", program.display());
    xtask(&[
        "run",
        "--pcache",
        "64M",
        "--boot",
        FIXED_LAYOUT,
        "--timeout",
        LIMIT,
        "--plugin",
        &option,
        "--add",
        &add,
        "--",
        PROGRAM,
        count,
    ])
}

/// Runs the program in a Linux guest, and returns what it says.
fn on_linux(program: &Path, plugin: &Path, out: &Path, count: &str) -> Result<String> {
    let option = plugin::option("node0", plugin, out, 0, &[]);
    let add = format!("{}:{PROGRAM}", program.display());
    let text = xtask(&[
        "linux",
        "--nodes",
        "1",
        "--timeout",
        LIMIT,
        "--append",
        APPEND,
        "--plugin",
        &option,
        "--add",
        &add,
        "--",
        &format!("{PROGRAM} {count}"),
    ])?;
    let lines = text.lines().filter_map(|line| line.strip_prefix("node0: "));
    Ok(lines.map(|line| format!("{line}\n")).collect())
}

/// Returns the instructions of each phase of a run, for an operation.
fn of_run(system: &str, said: &Said, counts: &Counts) -> Vec<Figure> {
    let figure = |phase: &super::miss::runs::Phased| {
        let executed = counts.executed.get(&phase.number)?;
        let sum: u64 = executed.values().sum();
        let kind = if system == "Linux" {
            Kind::Part
        } else {
            Kind::Counted
        };
        let value = sum as f64 / phase.operations.max(1) as f64;
        Some(Figure::new(
            &phase.name.replace('_', "-"),
            system,
            value,
            kind,
        ))
    };
    said.phases.iter().filter_map(figure).collect()
}

/// Returns the operations in the order of the runs.
fn operations(figures: &[Figure]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for figure in figures {
        if !names.contains(&&figure.case[..]) {
            names.push(&figure.case);
        }
    }
    names
}

/// Returns the table, the first row being the header.
fn rows(figures: &[Figure]) -> Vec<Vec<String>> {
    let header = ["operation", "Tessera", "Linux", "Tessera / Linux"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for name in operations(figures) {
        let [ours, linux] =
            SYSTEMS.map(|system| find(figures, name, system).map(|figure| figure.value));
        let whole = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.0}"));
        let ratio = ours.zip(linux).map(|(ours, linux)| ours / linux);
        rows.push(vec![
            name.to_owned(),
            whole(ours),
            whole(linux),
            ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")),
        ]);
    }
    rows
}

fn plot(figures: &[Figure]) -> String {
    let bar = |name: &str| {
        let value = |system| find(figures, name, system).map(|figure| figure.value);
        let (ours, linux) = value(SYSTEMS[0]).zip(value(SYSTEMS[1]))?;
        Some(Bar {
            name: name.to_owned(),
            parts: vec![ours / linux * 100.0],
        })
    };
    let bars: Vec<Bar> = operations(figures).into_iter().filter_map(bar).collect();
    stacked(
        "Instructions of P's kernel, in % of Linux's",
        &["Tessera"],
        &bars,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operations_instructions_stand_beside_linuxs() {
        let said = Said::parse("phase\t128\tfutex_handoff\t10\t999\nwrong\t0\n").expect("a phase");
        let counts = |each: u64| {
            let text = format!(
                "tessera-counts 1 0 1\ncount 128 ffff000000000000 {each}\ncount 128 ffff000000000004 {each}\n\
                 count 255 ffff000000000000 7\nend\n"
            );
            Counts::parse(&text).expect("counts")
        };
        let mut figures = of_run("Tessera", &said, &counts(500));
        figures.extend(of_run("Linux", &said, &counts(1000)));
        assert_eq!(rows(&figures)[1], ["futex-handoff", "100", "200", "0.50"]);
        assert!(plot(&figures).contains("futex-handoff"));
        assert!(
            Said::parse("wrong\t1\n").is_err(),
            "what failed is no figure"
        );
    }
}
