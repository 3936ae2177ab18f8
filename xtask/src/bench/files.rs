//! `bench files`: what programs wait for at files, on Tessera and on Linux.
//!
//! The same program runs on a cluster and in a Linux guest, whose disks are copies of one image on
//! the same virtual device with the same emulated CPU. The systems take turns, so that a busy
//! machine slows both.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::child::xtask;
use super::figures::{Figure, Kind, find};
use super::miss::runs::Said;
use super::output::{in_folder, show};
use super::plot::{Bar, stacked};
use super::record::{MeasurementContext, Record, markdown};
use super::table::aligned;
use crate::qemu::Qemu;
use crate::tools::step;
use crate::{linux, run, test_programs};

/// Seconds that the program may take on a busy machine.
const LIMIT: &str = "300";
/// The program and its folder on the disk.
const PROGRAM: &str = "/bin/disk";
const FOLDER: &str = "/data/bench";
/// Linux at its best: without the mitigations that slow each entry into the kernel.
const APPEND: &str = "mitigations=off psi=0";
/// The systems, as figures name them.
const SYSTEMS: [&str; 2] = ["Tessera", "Linux"];
/// Places in the sorted times of the runs.
const STATISTICS: [&str; 3] = ["median", "min", "max"];

/// Times reads, writes, syncs and changes of names on S's disk, beside a Linux guest with the same
/// disk
///
/// Microseconds an operation by the program's clock; each system runs it several times, in turn.
/// Takes some two minutes a run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs of each system
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Size of P's cache
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    pcache: String,
    /// Prints the figures as JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Writes the figures to this file, too, as tab-separated values
    #[arg(long, value_name = "FILE")]
    tsv: Option<PathBuf>,
    /// Writes docs/bench/files.md with a plot and the figures
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
                name: "files",
                title: "Files on S's disk, and on Linux's",
                command: "cargo xtask bench files --record",
                body: format!(
                    "Microseconds an operation: the median of {} runs, and the shortest and longest.\n\n{}",
                    self.runs,
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
        let images = SYSTEMS.map(|system| folder.join(format!("{system}.disk")));
        make(&test_programs::disk()?, folder, &images)?;
        let mut times = Times::default();
        for number in 1..=self.runs {
            for (system, image) in SYSTEMS.iter().zip(&images) {
                let name = format!("Run {number} on {system}");
                let said = step(&name, || match *system {
                    "Linux" => on_linux(image),
                    _ => self.on_cluster(image),
                })?;
                times.add(system, &Said::parse(&said)?);
            }
        }
        Ok((times.figures(), MeasurementContext::here(&qemu.version)))
    }

    /// Runs the program on a cluster, and returns what it says.
    fn on_cluster(&self, image: &Path) -> Result<String> {
        let image = image.display().to_string();
        let options = ["run", "--timeout", LIMIT, "--pcache", &self.pcache];
        let program = ["--disk", &image, "--", PROGRAM, FOLDER];
        xtask(&[&options[..], &program].concat())
    }
}

/// Makes the systems' disks, alike.
fn make(program: &Path, folder: &Path, images: &[PathBuf; 2]) -> Result<()> {
    let empty = folder.join("empty");
    fs::create_dir(&empty).context("can't make a folder")?;
    let adds = [
        format!("{}:{PROGRAM}", program.display()),
        format!("{}:{FOLDER}", empty.display()),
    ];
    let image = images[0].display().to_string();
    let options = ["run", "--disk", &image, "--disk-room", "128M"];
    let adds = ["--add", &adds[0], "--add", &adds[1]];
    xtask(&[&options[..], &adds, &["--", "/bin/busybox", "true"]].concat())?;
    fs::copy(&images[0], &images[1]).context("can't copy the disk")?;
    Ok(())
}

/// Runs the program in a Linux guest, and returns what it says.
fn on_linux(image: &Path) -> Result<String> {
    let command = format!(
        "mkdir /mnt && mount -t ext4 /dev/vda /mnt && /mnt{PROGRAM} /mnt{FOLDER} && umount /mnt"
    );
    let image = image.display().to_string();
    let options = ["linux", "--timeout", LIMIT, "--append", APPEND];
    let text = xtask(&[&options[..], &["--disk", &image, "--", &command]].concat())?;
    let lines = text.lines().filter_map(|line| line.strip_prefix("node0: "));
    Ok(lines.map(|line| format!("{line}\n")).collect())
}

/// Microseconds an operation of all runs, by phase and system.
#[derive(Default)]
struct Times {
    /// Phases in their order.
    phases: Vec<String>,
    of: BTreeMap<(String, String), Vec<f64>>,
}

impl Times {
    fn add(&mut self, system: &str, said: &Said) {
        for phase in &said.phases {
            let name = phase.name.replace('_', "-");
            if !self.phases.contains(&name) {
                self.phases.push(name.clone());
            }
            let micros = phase.nanos as f64 / 1e3 / phase.operations.max(1) as f64;
            let key = (name, system.to_owned());
            self.of.entry(key).or_default().push(micros);
        }
    }

    fn figures(mut self) -> Vec<Figure> {
        let mut figures = Vec::new();
        for phase in &self.phases {
            for system in SYSTEMS {
                let Some(times) = self.of.get_mut(&(phase.clone(), system.to_owned())) else {
                    continue;
                };
                times.sort_by(f64::total_cmp);
                let values = [times[times.len() / 2], times[0], times[times.len() - 1]];
                for (statistic, value) in STATISTICS.iter().zip(values) {
                    let what = format!("{system} {statistic} us");
                    figures.push(Figure::new(phase, &what, value, Kind::Timed));
                }
            }
        }
        figures
    }
}

/// Returns the phases in their order.
fn phases(figures: &[Figure]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for figure in figures {
        if !names.contains(&&figure.case[..]) {
            names.push(&figure.case);
        }
    }
    names
}

fn value(figures: &[Figure], phase: &str, system: &str, statistic: &str) -> Option<f64> {
    find(figures, phase, &format!("{system} {statistic} us")).map(|figure| figure.value)
}

/// Returns Tessera's median time by Linux's.
fn ratio(figures: &[Figure], phase: &str) -> Option<f64> {
    let [ours, linux] = SYSTEMS.map(|system| value(figures, phase, system, STATISTICS[0]));
    Some(ours? / linux?)
}

/// Returns the table, the first row being the header.
fn rows(figures: &[Figure]) -> Vec<Vec<String>> {
    let header = [
        "operation",
        "Tessera us",
        "min..max",
        "Linux us",
        "min..max",
        "Tessera / Linux",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for phase in phases(figures) {
        let mut row = vec![phase.to_owned()];
        for system in SYSTEMS {
            let [median, min, max] = STATISTICS
                .map(|statistic| value(figures, phase, system, statistic).unwrap_or(f64::NAN));
            row.push(format!("{median:.0}"));
            row.push(format!("{min:.0}..{max:.0}"));
        }
        row.push(ratio(figures, phase).map_or("-".into(), |ratio| format!("{ratio:.1}")));
        rows.push(row);
    }
    rows
}

fn plot(figures: &[Figure]) -> String {
    let bar = |phase: &str| {
        Some(Bar {
            name: phase.to_owned(),
            parts: vec![ratio(figures, phase)?],
        })
    };
    let bars: Vec<Bar> = phases(figures).into_iter().filter_map(bar).collect();
    stacked("Tessera's time by Linux's", &["Tessera"], &bars)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_stand_beside_each_other() {
        let mut times = Times::default();
        for (system, nanos) in [
            ("Tessera", 9_000_000),
            ("Linux", 1_000_000),
            ("Tessera", 3_000_000),
            ("Linux", 1_500_000),
            ("Tessera", 1_000_000),
            ("Linux", 2_000_000),
        ] {
            let said = format!("phase\t128\tread_4k\t1000\t{nanos}\nwrong\t0\n");
            times.add(system, &Said::parse(&said).expect("a phase"));
        }
        let figures = times.figures();
        assert_eq!(
            rows(&figures)[1],
            ["read-4k", "3", "1..9", "2", "1..2", "2.0"]
        );
        assert!(plot(&figures).contains("read-4k"));
    }
}
