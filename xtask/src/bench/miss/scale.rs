//! `bench miss --scale`: misses a second with 1 to 4 cores and 1 to 8 threads.
//!
//! These are times, so they are the machine's as much as P's: compare rows of one run with each
//! other.

use anyhow::{Context, Result};

use super::runs::Bed;
use crate::bench::FIXED_LAYOUT;
use crate::bench::figures::{Figure, Kind, find};
use crate::bench::table::aligned;
use crate::tools::step;

/// Cores of P.
const CORES: [u32; 3] = [1, 2, 4];
/// Threads of the program.
const THREADS: [u32; 4] = [1, 2, 4, 8];
/// The region in MiB, of which a quarter is local; pages that each thread touches.
const REGION: &str = "16";
const CACHE: &str = "4M";
const TOUCHES: &str = "8192";
/// A touch in four finds its page.
const MISSES: f64 = 0.75;
const COLUMNS: [&str; 3] = ["misses a second", "median us", "99% us"];

/// Measures with each number of cores and threads. Returns figures, and why some are missing.
pub(super) fn measure(bed: &Bed<'_>) -> Result<(Vec<Figure>, Option<String>)> {
    let (mut figures, mut note) = (Vec::new(), None);
    for cores in CORES {
        for threads in THREADS {
            let name = name(cores, threads);
            let (cores, threads) = (cores.to_string(), threads.to_string());
            let said = step(&format!("Running {name}"), || {
                bed.run(
                    &["--pcache", CACHE, "--cpus", &cores, "--boot", FIXED_LAYOUT],
                    &["scale", &threads, REGION, TOUCHES],
                )
            })?;
            if let Some((what, reason)) = said.skipped.first() {
                note = Some(format!("{what}: P does not offer them yet ({reason})"));
                // No more threads either.
                break;
            }
            let scaled = said.scaled.context("the program told no times")?;
            let rate = MISSES * scaled.operations as f64 * 1e9 / scaled.nanos as f64;
            let [median, most] = scaled.quantiles.map(|nanos| nanos as f64 / 1000.0);
            let values = COLUMNS.into_iter().zip([rate, median, most]);
            figures
                .extend(values.map(|(what, value)| Figure::new(&name, what, value, Kind::Timed)));
        }
    }
    Ok((figures, note))
}

fn name(cores: u32, threads: u32) -> String {
    let many =
        |count: u32, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    format!("{}, {}", many(cores, "core"), many(threads, "thread"))
}

/// Returns the figures as a table.
pub(super) fn text(figures: &[Figure]) -> String {
    let mut rows = vec![
        std::iter::once("P")
            .chain(COLUMNS)
            .map(str::to_owned)
            .collect(),
    ];
    for cores in CORES {
        for name in THREADS.map(|threads| name(cores, threads)) {
            let cells = COLUMNS.map(|what| {
                find(figures, &name, what).map(|figure| format!("{:.0}", figure.value))
            });
            if cells.iter().all(Option::is_some) {
                rows.push(
                    std::iter::once(name)
                        .chain(cells.into_iter().flatten())
                        .collect(),
                );
            }
        }
    }
    aligned(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_has_no_row() {
        let name = name(1, 1);
        let figures: Vec<Figure> = COLUMNS
            .iter()
            .map(|what| Figure::new(&name, what, 123.4, Kind::Timed))
            .collect();
        let text = text(&figures);
        assert_eq!(text.lines().count(), 2);
        assert!(
            text.lines()
                .nth(1)
                .is_some_and(|line| line.starts_with("1 core, 1 thread ") && line.ends_with("123"))
        );
    }
}
