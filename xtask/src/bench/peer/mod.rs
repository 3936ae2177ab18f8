//! `bench peer`: the same programs with all and with a part of their memory local, on Tessera and
//! on Linux that swaps.
//!
//! Linux swaps by NVMe over RDMA to the memory of a second guest, through the same modelled
//! adapters, or to compressed memory of its own (zram). Both get the same local memory: P as its
//! cache, Linux as the limit of a control group. Systems take turns program by program, so that a
//! busy machine slows all.
//!
//! * [`programs`]: what runs. * [`systems`]: how it runs on each. * [`table`]: slowdowns and their
//!   ratio.

mod programs;
mod systems;
mod table;

use std::path::{Path, PathBuf};

use anyhow::Result;

use self::programs::{Program, all};
use self::systems::{Bed, System};
use super::figures::{Figure, Kind};
use super::miss::plugin;
use super::output::{in_folder, show};
use super::record::{MeasurementContext, Record, markdown};
use super::table::aligned;
use crate::qemu::Qemu;
use crate::tools::step;
use crate::{linux, run, test_programs};

/// Runs the same programs with 100, 50, 25 and 12.5 % of their memory local, on Tessera and on
/// Linux guests that swap, and compares slowdowns
///
/// Linux swaps by NVMe over RDMA to a second guest through the same modelled adapters, and to zram.
/// Takes some ten minutes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs only this program (repeatable)
    #[arg(long, value_name = "NAME", value_parser = programs::NAMES)]
    program: Vec<String>,
    /// Runs only this system beside Tessera (repeatable)
    #[arg(long, value_name = "NAME", value_parser = ["nvme", "zram"])]
    peer: Vec<String>,
    /// Leaves the count of Linux's instructions a fault out
    #[arg(long)]
    no_count: bool,
    /// Prints the figures as JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Writes the figures to this file, too, as tab-separated values
    #[arg(long, value_name = "FILE")]
    tsv: Option<PathBuf>,
    /// Writes docs/bench/peer.md with a plot and the figures
    #[arg(long)]
    record: bool,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let (figures, circumstances) = in_folder(|folder| self.measure(folder))?;
        show(&figures, self.json, self.tsv.as_ref(), || {
            format!(
                "{}\n\n{}\n\n{}",
                aligned(&table::rows(&figures)),
                aligned(&table::runs(&figures)),
                aligned(&table::faults(&figures))
            )
        })?;
        if self.record {
            let body = format!(
                "## Slowdowns\n\n{}\n## Times and faults\n\n{}\n{}\n",
                markdown(&table::rows(&figures)),
                markdown(&table::runs(&figures)),
                markdown(&table::faults(&figures))
            );
            let record = Record {
                name: "peer",
                title: "Programs in little memory, on Tessera and on Linux that swaps",
                command: "cargo xtask bench peer --record",
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
        linux::prepare()?;
        let qemu = Qemu::obtain()?;
        let pages = test_programs::pages()?;
        let bed = Bed::new(folder, &pages)?;
        let wanted = |program: &Program| {
            self.program.is_empty() || self.program.iter().any(|name| name == program.name)
        };
        let peers = System::PEERS.into_iter().filter(|peer| {
            self.peer.is_empty() || self.peer.iter().any(|name| name == peer.name())
        });
        let systems: Vec<System> = std::iter::once(System::Tessera).chain(peers).collect();
        let mut figures = Vec::new();
        for program in all()?.iter().filter(|program| wanted(program)) {
            for &system in &systems {
                let times = step(&format!("{} on {}", program.name, system.name()), || {
                    bed.run(system, program)
                })?;
                for (share, time) in programs::SHARES.into_iter().zip(times) {
                    figures.extend(table::figures(program, system, share, time));
                }
            }
        }
        if !self.no_count && systems.contains(&System::Nvme) {
            let plugin = step("Building the counting plugin", || {
                plugin::build(&qemu, folder)
            })?;
            let counted = step("Counting Linux's instructions a fault", || {
                bed.count(&plugin)
            })?;
            let figure =
                |(what, value): (String, f64)| Figure::new(table::LINUX, &what, value, Kind::Part);
            figures.extend(counted.into_iter().map(figure));
        }
        Ok((figures, MeasurementContext::here(&qemu.version)))
    }
}
