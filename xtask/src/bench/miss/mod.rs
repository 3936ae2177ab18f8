//! `bench miss`: a page miss's cost on P, counted so that the figures repeat.
//!
//! * [`plugin`], `plugin/counts.c`: the TCG plugin that counts. * [`runs`]: runs of
//!   `testbed/tests/programs/pages.c` with it.
//! * [`counts`]: the plugin's file. * [`symbols`]: what code an address is. * [`groups`]: **the
//!   table to edit when code moves**.
//! * [`split`]: waiting apart from work. * [`model`]: the adapters' events. * [`measure`]: all
//!   figures. * [`report`]: tables.
//! * [`scale`]: misses a second with several cores and threads.

pub(super) mod counts;
mod groups;
mod measure;
mod model;
pub(super) mod plugin;
mod report;
pub(super) mod runs;
mod scale;
mod split;
pub(super) mod symbols;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::measure::Measured;
use self::runs::Bed;
use self::symbols::Symbols;
use super::compare::compare;
use super::figures::{Figure, to_json, to_tsv};
use super::record::{self, MeasurementContext, Record};
use super::table::aligned;
use crate::build_image::Role;
use crate::qemu::Qemu;
use crate::tools::{say, step};
use crate::{bed, build_image, run, test_programs};

/// Counts what a page miss and other operations cost P: guest instructions by part of the path,
/// doorbells, and what the adapters read and write
///
/// Each operation runs as it is and with P held at doorbells for two times, so that waiting and
/// what P does as time passes can be told from work. The counts repeat to about a hundredth
/// whatever else the machine does; a record and a comparison build on that.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Repetitions of each run; with one there is no spread
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=20))]
    runs: u8,
    /// Prints each operation's instructions by function, too, with the group that each belongs to
    #[arg(long, conflicts_with = "json")]
    frames: bool,
    /// Prints the figures as JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Writes the figures to this file, too, as tab-separated values
    #[arg(long, value_name = "FILE")]
    tsv: Option<PathBuf>,
    /// Writes docs/bench/miss.md with a plot and the figures
    #[arg(long)]
    record: bool,
    /// Shows what changed since the last record; fails if a counted figure grew beyond the
    /// tolerance
    #[arg(long)]
    compare: bool,
    /// Growth of a counted figure that is allowed, in per cent
    #[arg(long, value_name = "PERCENT", default_value_t = TOLERANCE, requires = "compare")]
    tolerance: f64,
    /// Measures misses a second with 1 to 4 cores and 1 to 8 threads instead
    #[arg(long, conflicts_with_all = ["frames", "record", "compare"])]
    scale: bool,
}

/// Runs differ by one per cent.
const TOLERANCE: f64 = 3.0;
/// The name of the record.
const RECORD: &str = "miss";

impl Args {
    /// Returns the arguments of a comparison with the last record, all else by default.
    pub(super) fn comparing() -> Self {
        Self {
            runs: 2,
            frames: false,
            json: false,
            tsv: None,
            record: false,
            compare: true,
            tolerance: TOLERANCE,
            scale: false,
        }
    }

    pub(crate) fn run(self) -> Result<()> {
        // Before minutes of measuring.
        let before = if self.compare {
            Some(record::last(RECORD)?)
        } else {
            None
        };
        let folder = bed::make_folder()?;
        let result = self.measure(&folder);
        if result.is_ok() {
            let _ = std::fs::remove_dir_all(&folder);
        } else {
            say(&format!("What the runs left is in {}", folder.display()));
        }
        let Some((measured, circumstances)) = result? else {
            return Ok(());
        };
        let figures = measured.figures();
        if self.json {
            println!("{:#}", to_json(&figures));
        } else {
            print!("{}", report::text(&measured));
        }
        if self.frames {
            print!("{}", report::frames(&measured.cases));
        }
        self.write_tsv(&figures)?;
        if self.record {
            let record = Record {
                name: RECORD,
                title: "What a page miss costs P",
                command: "cargo xtask bench miss --record",
                body: report::sections(&measured),
                svg: report::plot(&measured.cases),
                figures: &figures,
            };
            record.write(&circumstances)?;
        }
        match before {
            Some(before) => self.tell_changes(&before, &figures),
            None => Ok(()),
        }
    }

    fn tell_changes(&self, before: &[Figure], now: &[Figure]) -> Result<()> {
        let comparison = compare(before, now, self.tolerance / 100.0);
        // With --json, standard output is for the figures.
        eprintln!("\n{}", aligned(&comparison.rows));
        if comparison.worse.is_empty() {
            return Ok(());
        }
        bail!(
            "{} counted figures grew by more than {} % since the last record (docs/bench/{RECORD}.md):\n  {}\nIf that is \
             meant, make a new record with --record",
            comparison.worse.len(),
            self.tolerance,
            comparison.worse.join("\n  ")
        )
    }

    fn scale(&self, bed: &Bed<'_>) -> Result<()> {
        let (figures, note) = scale::measure(bed)?;
        if self.json {
            println!("{:#}", to_json(&figures));
        } else {
            println!("{}", scale::text(&figures));
        }
        if let Some(note) = note {
            eprintln!("note: {note}");
        }
        self.write_tsv(&figures)
    }

    fn write_tsv(&self, figures: &[Figure]) -> Result<()> {
        match &self.tsv {
            Some(file) => std::fs::write(file, to_tsv(figures))
                .with_context(|| format!("can't write {}", file.display())),
            None => Ok(()),
        }
    }

    /// Measures, or returns `None` if all is printed.
    fn measure(&self, folder: &Path) -> Result<Option<(Measured, MeasurementContext)>> {
        run::prepare()?;
        let qemu = Qemu::obtain()?;
        let image = build_image::path(Role::Processor)?;
        let program = test_programs::pages()?;
        let plugin = step("Building the counting plugin", || {
            plugin::build(&qemu, folder)
        })?;
        let mut bed = Bed {
            folder,
            plugin: &plugin,
            program: &program,
            seen: &[],
        };
        if self.scale {
            return self.scale(&bed).map(|()| None);
        }
        let symbols = Symbols::of(&image);
        let places = measure::places(&bed, &symbols)?;
        bed.seen = &places.seen;
        let measured = measure::measure(&bed, &symbols, &places, self.runs.into())?;
        Ok(Some((measured, MeasurementContext::here(&qemu.version))))
    }
}
