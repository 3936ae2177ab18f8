//! `bench journal`: a network trained by NumPy on Fashion-MNIST with a part of its memory local, as
//! LegoOS's authors measured theirs with TensorFlow on MNIST.
//!
//! The loss of each epoch must be the same to the last digit wherever the program runs: on this
//! machine's Linux, and on clusters whose cache holds all, a half, a quarter or an eighth of what
//! the program uses.
//!
//! * [`runs`]: the program's runs. * [`table`]: the table of times and write-backs.

mod runs;
mod table;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use self::runs::{Bed, Setting, Shape};
use super::figures::Figure;
use super::output::{in_folder, show};
use super::record::{MeasurementContext, Record, markdown};
use super::table::aligned;
use crate::qemu::Qemu;
use crate::run;
use crate::tools::{say, step};

/// Shares of the program's memory that are local, in per cent.
const SHARES: [f64; 4] = [100.0, 50.0, 25.0, 12.5];
/// Cores of P.
const CORES: [u32; 3] = [1, 2, 4];

/// Trains a small network on Fashion-MNIST by Python and NumPy with 100, 50, 25 and 12.5 % of its
/// memory local, on 1, 2 and 4 cores, and compares its results with those of this machine's Linux
///
/// It is an error if a loss differs in a single digit. `OpenBLAS` computes with four threads. The
/// cluster writes what pages cost to read and write back. Takes some twenty minutes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Images that the network is trained with, 60000 at most
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(500..=60_000))]
    images: u32,
    /// Times that it sees each
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: u32,
    /// Runs only with this number of cores (repeatable)
    #[arg(long, value_name = "N")]
    cores: Vec<u32>,
    /// Runs only with this share of the memory, in per cent (repeatable)
    #[arg(long, value_name = "PERCENT")]
    share: Vec<f64>,
    /// Runs of each setting, of which the mean is told
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// A boot option of a component, such as `memory:workers=4` (repeatable)
    #[arg(long, value_name = "WHO:OPTION")]
    boot: Vec<String>,
    /// Prints the figures as JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Writes the figures to this file, too, as tab-separated values
    #[arg(long, value_name = "FILE")]
    tsv: Option<PathBuf>,
    /// Writes docs/bench/journal.md with a plot and the figures
    #[arg(long)]
    record: bool,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        ensure!(
            self.share
                .iter()
                .all(|&share| share > 0.0 && share <= 100.0),
            "--share is more than 0 and at most 100"
        );
        let (figures, circumstances) = in_folder(|folder| self.measure(folder))?;
        show(&figures, self.json, self.tsv.as_ref(), || {
            aligned(&table::rows(&figures))
        })?;
        if self.record {
            let body = format!(
                "{} images, {} epochs.\n\n{}",
                self.images,
                self.epochs,
                markdown(&table::rows(&figures))
            );
            let record = Record {
                name: "journal",
                title: "A network trained with a part of its memory local",
                command: "cargo xtask bench journal --record",
                body,
                svg: table::plot(&figures),
                figures: &figures,
            };
            record.write(&circumstances)?;
        }
        Ok(())
    }

    fn measure(&self, folder: &Path) -> Result<(Vec<Figure>, MeasurementContext)> {
        run::prepare()?;
        let qemu = Qemu::obtain()?;
        let shape = Shape {
            images: self.images,
            epochs: self.epochs,
            boot: &self.boot,
        };
        let bed = step("Laying out Debian with NumPy", || Bed::new(folder, shape))?;
        let native = step("Training on this machine's Linux", || bed.native())?;
        say(&format!(
            "The program uses {} MiB; it says:\n{}",
            native.peak >> 20,
            native.said.trim_end()
        ));
        let mut figures = table::native(&native);
        for cores in chosen(&self.cores, &CORES) {
            for share in chosen(&self.share, &SHARES) {
                let setting = Setting {
                    cores,
                    share,
                    working_set: native.peak,
                };
                let runs = (0..self.runs)
                    .map(|_| step(&setting.to_string(), || bed.cluster(&setting)))
                    .collect::<Result<Vec<_>>>()?;
                for run in &runs {
                    ensure!(
                        run.said == native.said,
                        "with {setting} the program said\n{}where Linux's said\n{}",
                        run.said,
                        native.said
                    );
                }
                figures.extend(table::figures(&setting, &runs));
            }
        }
        Ok((figures, MeasurementContext::here(&qemu.version)))
    }
}

/// Returns the values that were asked for, or all.
fn chosen<T: Copy>(asked: &[T], all: &[T]) -> Vec<T> {
    if asked.is_empty() { all } else { asked }.to_vec()
}
