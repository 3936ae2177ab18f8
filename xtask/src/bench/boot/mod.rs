//! `bench boot`: a node's start, by stage: time, and instructions executed.
//!
//! The stages of a node are lines of its log and places in its code. A plugin of QEMU
//! (`stages.c`) records when the code of a log line, and those places, are reached; [`stages`]
//! joins that with the log.

mod stages;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use self::stages::{Events, Stage};
use super::child::xtask_with;
use super::figures::{Figure, Kind, to_tsv};
use super::miss::plugin;
use super::output::in_folder;
use super::plot::{Bar, stacked};
use super::record::{MeasurementContext, Record, markdown};
use super::table::aligned;
use crate::bed;
use crate::build_image::{self, Role};
use crate::qemu::Qemu;
use crate::run;
use crate::tools::{need, quiet};

/// Goals of a start: milliseconds from the kernel's first instruction.
const GOALS: [(&str, f64); 2] = [(stages::COMMAND, 5.0), (stages::PROGRAM, 1000.0)];
/// Time limit of a run in seconds.
const LIMIT: &str = "120";

/// Measures a node's start: time and instructions until each stage
///
/// Runs a program that ends at once on three nodes. Times are by the host's clock, which the guests
/// have too; a machine without hardware virtualisation is some times slower than a real one.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Number of runs; each stage's figures are of the run in which it came soonest
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20))]
    runs: u32,
    /// Writes the figures to this file, too, as tab-separated values
    #[arg(long, value_name = "FILE")]
    tsv: Option<PathBuf>,
    /// Writes docs/bench/boot.md with a plot and the figures
    #[arg(long)]
    record: bool,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let (starts, circumstances) = in_folder(|folder| self.measure(folder))?;
        let figures: Vec<Figure> = starts.iter().flat_map(figures).collect();
        for start in &starts {
            println!("{}\n{}\n", start.role.name(), aligned(&rows(start)));
        }
        println!("{}", aligned(&goals(&starts)));
        if let Some(file) = &self.tsv {
            fs::write(file, to_tsv(&figures))
                .with_context(|| format!("can't write {}", file.display()))?;
        }
        if self.record {
            let sections = starts.iter().map(|start| {
                let table = markdown(&rows(start));
                format!("## {}\n\n{table}\n", start.role.name())
            });
            let body = format!(
                "## Goals\n\n{}\n{}",
                markdown(&goals(&starts)),
                sections.collect::<String>()
            );
            let record = Record {
                name: "boot",
                title: "A node's start",
                command: "cargo xtask bench boot --record",
                body,
                svg: plot(&starts),
                figures: &figures,
            };
            record.write(&circumstances)?;
        }
        Ok(())
    }

    fn measure(&self, folder: &Path) -> Result<(Vec<Start>, MeasurementContext)> {
        run::prepare()?;
        let qemu = Qemu::obtain()?;
        let plugin = plugin::build_source(&qemu, folder, "boot/stages.c")?;
        let mut starts: Vec<Start> = Vec::new();
        for number in 0..self.runs {
            let run = folder.join(format!("run{number}"));
            fs::create_dir(&run).with_context(|| format!("can't make {}", run.display()))?;
            for (index, start) in one_run(&plugin, &run)?.into_iter().enumerate() {
                match starts.get_mut(index) {
                    Some(best) => best.take_sooner(&start),
                    None => starts.push(start),
                }
            }
        }
        Ok((starts, MeasurementContext::here(&qemu.version)))
    }
}

/// The start of one node.
struct Start {
    role: Role,
    stages: Vec<Stage>,
}

impl Start {
    /// Takes each stage of another run that came sooner there.
    fn take_sooner(&mut self, other: &Self) {
        for stage in &mut self.stages {
            if let Some(sooner) = other.stages.iter().find(|other| other.name == stage.name) {
                stage.nanos = stage.nanos.min(sooner.nanos);
                stage.instructions = stage.instructions.min(sooner.instructions);
            }
        }
    }
}

/// Runs a program on three nodes with the plugin in each.
fn one_run(plugin: &Path, folder: &Path) -> Result<Vec<Start>> {
    let mut words: Vec<String> = ["run", "--keep-logs", "--timeout", LIMIT]
        .map(str::to_owned)
        .into();
    let mut places = Vec::new();
    for role in Role::ALL {
        let own = Places::of(&build_image::path(role)?)?;
        let out = folder.join(role.name());
        let (name, plugin) = (role.name(), plugin.display());
        words.push("--plugin".into());
        words.push(format!(
            "{name}:{plugin},out={},{}",
            out.display(),
            own.options()
        ));
        places.push((role, own, out));
    }
    words.extend(["--", "busybox", "true"].map(str::to_owned));
    // The folder of the logs is told on standard error, which only a failed run gives; so that it
    // is found otherwise it gets a place of its own.
    let logs = folder.join("tmp");
    fs::create_dir(&logs).with_context(|| format!("can't make {}", logs.display()))?;
    xtask_with(&words, &[("TMPDIR", logs.as_os_str())])?;
    let kept = fs::read_dir(&logs)
        .ok()
        .and_then(|mut entries| entries.next()?.ok())
        .context("the run kept no logs")?
        .path();
    let start = |(role, places, out): (Role, Places, PathBuf)| {
        let read = |path: &Path| {
            fs::read(path)
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .with_context(|| format!("can't read {}", path.display()))
        };
        let events = Events::parse(&read(&out)?).with_context(|| out.display().to_string())?;
        let log = read(&bed::log(&kept, role.name()))?;
        let stages = stages::of(&events, &places.addresses(), &log)
            .with_context(|| format!("the start of {}", role.name()))?;
        Ok(Start { role, stages })
    };
    places.into_iter().map(start).collect()
}

/// Addresses in an image.
struct Places {
    /// The first Rust.
    start: u64,
    /// The function that writes a line of the log.
    log: u64,
    /// The code that enters a program.
    enter: u64,
}

impl Places {
    fn of(image: &Path) -> Result<Self> {
        let nm = need("nm", "`apt-get install binutils`")?;
        let text = quiet(Command::new(nm).arg("-C").arg(image))?;
        let find = |name: &str| {
            let lines = text.lines().filter_map(|line| {
                let (address, rest) = line.split_once(' ')?;
                (rest.get(2..) == Some(name)).then_some(address)
            });
            let found: Vec<&str> = lines.collect();
            ensure!(found.len() == 1, "{} times {name}", found.len());
            u64::from_str_radix(found[0], 16).context("nm gave no address")
        };
        let places = || {
            Ok::<_, anyhow::Error>(Self {
                start: find("libos::boot::start::start")?,
                log: find("<libos::dev::console::Backend as log::Log>::log")?,
                enter: find("enter_user")?,
            })
        };
        places().with_context(|| image.display().to_string())
    }

    fn options(&self) -> String {
        let Self { start, log, enter } = self;
        format!("first={start:x},at={log:x},first={enter:x}")
    }

    fn addresses(&self) -> stages::Addresses {
        stages::Addresses {
            start: self.start,
            log: self.log,
            enter: self.enter,
        }
    }
}

fn millis(nanos: u64) -> String {
    format!("{:.1}", nanos as f64 / 1e6)
}

fn rows(start: &Start) -> Vec<Vec<String>> {
    let head = ["until", "ms", "ms more", "thousand instructions", "more"].map(str::to_owned);
    let mut rows = vec![head.to_vec()];
    let (mut nanos, mut instructions) = (0, 0);
    for stage in &start.stages {
        let more = stage.instructions.saturating_sub(instructions) / 1000;
        rows.push(vec![
            stage.name.clone(),
            millis(stage.nanos),
            millis(stage.nanos.saturating_sub(nanos)),
            (stage.instructions / 1000).to_string(),
            more.to_string(),
        ]);
        (nanos, instructions) = (stage.nanos, stage.instructions);
    }
    rows
}

/// Returns the goals and what each node needs.
fn goals(starts: &[Start]) -> Vec<Vec<String>> {
    let mut rows = vec![["goal", "ms", "is", ""].map(str::to_owned).to_vec()];
    for (name, goal) in GOALS {
        for start in starts {
            let Some(stage) = start.stages.iter().find(|stage| stage.name == name) else {
                continue;
            };
            let reached = stage.nanos as f64 / 1e6 <= goal;
            let mark = if reached { "reached" } else { "" };
            rows.push(vec![
                format!("{}: {name}", start.role.name()),
                goal.to_string(),
                millis(stage.nanos),
                mark.into(),
            ]);
        }
    }
    rows
}

fn figures(start: &Start) -> Vec<Figure> {
    let of_stage = |stage: &Stage| {
        let case = format!("{}: {}", start.role.name(), stage.name);
        [
            Figure::new(&case, "ms", stage.nanos as f64 / 1e6, Kind::Timed),
            // Polling for what other machines do is a part.
            Figure::new(
                &case,
                "instructions",
                stage.instructions as f64,
                Kind::Timed,
            ),
        ]
    };
    start.stages.iter().flat_map(of_stage).collect()
}

/// Draws a bar a node, a part a stage.
fn plot(starts: &[Start]) -> String {
    let longest = starts.iter().max_by_key(|start| start.stages.len());
    let legend: Vec<&str> = longest.map_or_else(Vec::new, |start| {
        start
            .stages
            .iter()
            .map(|stage| stage.name.as_str())
            .collect()
    });
    let bars: Vec<Bar> = starts
        .iter()
        .map(|start| {
            let mut before = 0;
            let part = |name: &&str| {
                let stage = start.stages.iter().find(|stage| stage.name == *name);
                let Some(stage) = stage else { return 0.0 };
                let nanos = stage.nanos.saturating_sub(before);
                before = stage.nanos.max(before);
                nanos as f64 / 1e6
            };
            Bar {
                name: start.role.name().into(),
                parts: legend.iter().map(part).collect(),
            }
        })
        .collect();
    stacked(
        "Milliseconds from the kernel's first instruction",
        &legend,
        &bars,
    )
}
