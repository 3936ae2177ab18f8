//! Slowdowns, and their comparison.

use super::programs::{NAMES, Program, SHARES};
use super::systems::{System, Time};
use crate::bench::figures::{Figure, Kind, find};
use crate::bench::plot::{Bar, stacked};

/// The case of figures that say what a fault costs Linux.
pub(super) const LINUX: &str = "a fault on Linux";
/// Figures of a run.
const FIGURES: [&str; 3] = ["seconds", "pages in", "faults"];

/// Returns a run's figures.
pub(super) fn figures(program: &Program, system: System, share: f64, time: Time) -> [Figure; 3] {
    let figure = |what: &str, value| {
        Figure::new(
            program.name,
            &format!("{} {share} %: {what}", system.name()),
            value,
            Kind::Timed,
        )
    };
    let [seconds, pages_in, faults] = FIGURES;
    [
        figure(seconds, time.seconds),
        figure(pages_in, time.pages_in as f64),
        figure(faults, time.faults as f64),
    ]
}

fn seconds(figures: &[Figure], program: &str, system: System, share: f64) -> Option<f64> {
    let what = format!("{} {share} %: seconds", system.name());
    Some(find(figures, program, &what)?.value)
}

/// Returns the run time with a share of the memory local, as a multiple of that with all of it.
fn slowdown(figures: &[Figure], program: &str, system: System, share: f64) -> Option<f64> {
    Some(seconds(figures, program, system, share)? / seconds(figures, program, system, SHARES[0])?)
}

/// Returns the table of slowdowns, the first row being the header. A ratio is the run time that
/// Linux adds, by what Tessera adds.
pub(super) fn rows(figures: &[Figure]) -> Vec<Vec<String>> {
    let mut header = ["program", "local", "Tessera"].map(str::to_owned).to_vec();
    for peer in System::PEERS {
        header.extend([
            peer.name().to_owned(),
            format!("{} adds / Tessera adds", peer.name()),
        ]);
    }
    let mut rows = vec![header];
    for program in NAMES {
        for share in &SHARES[1..] {
            let Some(ours) = slowdown(figures, program, System::Tessera, *share) else {
                continue;
            };
            let mut row = vec![
                program.to_owned(),
                format!("{share} %"),
                format!("{ours:.2}"),
            ];
            for peer in System::PEERS {
                match slowdown(figures, program, peer, *share) {
                    Some(theirs) => {
                        row.extend([format!("{theirs:.2}"), ratio(theirs - 1.0, ours - 1.0)])
                    }
                    None => row.extend(["-".to_owned(), "-".to_owned()]),
                }
            }
            rows.push(row);
        }
    }
    rows
}

/// Formats the ratio of the added times; `-` if we add hardly any.
fn ratio(theirs: f64, ours: f64) -> String {
    if ours > 0.02 {
        format!("{:.1}", theirs / ours)
    } else {
        "-".into()
    }
}

/// Returns times and faults, a row for each program and share of local memory and three columns for
/// each system, the first row being the header.
pub(super) fn runs(figures: &[Figure]) -> Vec<Vec<String>> {
    let systems = [System::Tessera].into_iter().chain(System::PEERS);
    let columns: Vec<(System, &str)> = systems
        .flat_map(|system| FIGURES.map(|what| (system, what)))
        .collect();
    let titles = columns
        .iter()
        .map(|(system, what)| format!("{}: {what}", system.name()));
    let header = ["program", "local"].map(str::to_owned).into_iter();
    let mut rows = vec![header.chain(titles).collect()];
    for program in NAMES {
        for share in SHARES {
            let cells = columns.iter().map(|(system, what)| {
                let what = format!("{} {share} %: {what}", system.name());
                find(figures, program, &what).map_or("-".into(), |figure| number(figure.value))
            });
            let mut row = vec![program.to_owned(), format!("{share} %")];
            row.extend(cells);
            if row.iter().skip(2).any(|cell| cell != "-") {
                rows.push(row);
            }
        }
    }
    rows
}

/// Returns what a fault costs Linux, the first row being the header.
pub(super) fn faults(figures: &[Figure]) -> Vec<Vec<String>> {
    let header = [LINUX, "value"].map(str::to_owned).to_vec();
    let counted = figures.iter().filter(|figure| figure.case == LINUX);
    let row = |figure: &Figure| vec![figure.what.clone(), number(figure.value)];
    std::iter::once(header).chain(counted.map(row)).collect()
}

fn number(value: f64) -> String {
    if value < 100.0 {
        format!("{value:.3}")
    } else {
        format!("{value:.0}")
    }
}

/// Returns the plot of slowdowns with a quarter of the memory local.
pub(super) fn plot(figures: &[Figure]) -> String {
    const SHARE: f64 = 25.0;
    let systems = [System::Tessera, System::Nvme, System::Zram];
    let mut bars = Vec::new();
    for program in NAMES {
        for (index, system) in systems.into_iter().enumerate() {
            if let Some(value) = slowdown(figures, program, system, SHARE) {
                let mut parts = vec![0.0; systems.len()];
                // Bars tell whole numbers.
                parts[index] = value * 100.0;
                bars.push(Bar {
                    name: format!("{program}, {}", system.name()),
                    parts,
                });
            }
        }
    }
    let title = format!("Run time with {SHARE} % of the memory local, in % of that with all of it");
    stacked(&title, &systems.map(System::name), &bars)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Program {
        Program {
            name: "scan",
            args: vec![],
            is_busybox: false,
            working_set: 1,
        }
    }

    #[test]
    fn slowdowns_are_of_the_run_with_all_memory() {
        let time = |seconds| Time {
            seconds,
            pages_in: 5,
            faults: 5,
        };
        let all = [
            (System::Tessera, 100.0, 2.0),
            (System::Tessera, 50.0, 3.0),
            (System::Nvme, 100.0, 1.0),
            (System::Nvme, 50.0, 3.0),
        ];
        let figures: Vec<Figure> = all
            .into_iter()
            .flat_map(|(system, share, seconds)| figures(&program(), system, share, time(seconds)))
            .collect();
        let rows = rows(&figures);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[1], ["scan", "50 %", "1.50", "3.00", "4.0", "-", "-"]);
        let runs = runs(&figures);
        assert_eq!(runs.len(), 1 + 2);
        assert_eq!(runs[1][..5], ["scan", "100 %", "2.000", "5.000", "5.000"]);
        assert_eq!(runs[2][8..], ["-", "-", "-"], "zram was not run");
        assert!(
            !plot(&figures).contains(">scan"),
            "there is no run with a quarter"
        );
    }

    #[test]
    fn faults_of_linux_are_a_table_of_their_own() {
        let figure = Figure::new(LINUX, "clean: instructions", 30021.0, Kind::Part);
        assert_eq!(runs(std::slice::from_ref(&figure)).len(), 1);
        assert_eq!(faults(&[figure])[1], ["clean: instructions", "30021"]);
    }

    #[test]
    fn a_ratio_to_next_to_nothing_is_none() {
        assert_eq!(
            (ratio(2.0, 0.01), ratio(2.0, 0.5)),
            ("-".into(), "4.0".into())
        );
    }
}
