//! The journal's table.

use super::runs::{Setting, Trained};
use crate::bench::figures::{Figure, Kind, find};
use crate::bench::plot::{Bar, stacked};

/// Case of the figures of this machine's Linux.
const LINUX: &str = "Linux, not emulated";
/// Figures of a setting: names, and their columns' heads.
const COLUMNS: [(&str, &str); 5] = [
    ("seconds", "s"),
    ("pages read", "reads"),
    ("ns a read", "us a read"),
    ("pages written back", "write-backs"),
    ("ns a write-back", "us a write-back"),
];

/// Returns the figures of the run on this machine's Linux.
pub(super) fn native(run: &Trained) -> Vec<Figure> {
    vec![
        Figure::new(LINUX, COLUMNS[0].0, run.seconds, Kind::Timed),
        Figure::new(LINUX, "peak MiB", (run.peak >> 20) as f64, Kind::Timed),
    ]
}

/// Returns the mean figures of a setting's runs.
pub(super) fn figures(setting: &Setting, runs: &[Trained]) -> Vec<Figure> {
    let mean = |value: &dyn Fn(&Trained) -> f64| {
        runs.iter().map(value).sum::<f64>() / runs.len().max(1) as f64
    };
    let values = [
        mean(&|run| run.seconds),
        mean(&|run| run.reads as f64),
        mean(&|run| run.read_ns as f64),
        mean(&|run| run.writes as f64),
        mean(&|run| run.write_ns as f64),
    ];
    let case = setting.to_string();
    let figure =
        |((what, _), value): ((&str, &str), f64)| Figure::new(&case, what, value, Kind::Timed);
    COLUMNS.into_iter().zip(values).map(figure).collect()
}

/// Returns the cases in the order of their runs.
fn cases(figures: &[Figure]) -> Vec<&str> {
    let mut cases: Vec<&str> = figures.iter().map(|figure| figure.case.as_str()).collect();
    cases.dedup();
    cases
}

/// Returns a case's time as a multiple of that of the first case with as many cores.
fn slowdown(figures: &[Figure], case: &str) -> Option<f64> {
    let cores = case.split_once(',')?.0;
    let first = cases(figures)
        .into_iter()
        .find(|other| other.split_once(',').is_some_and(|(head, _)| head == cores))?;
    let seconds = |case| Some(find(figures, case, COLUMNS[0].0)?.value);
    Some(seconds(case)? / seconds(first)?)
}

/// Returns the table, the first row being the header.
pub(super) fn rows(figures: &[Figure]) -> Vec<Vec<String>> {
    let heads = COLUMNS.iter().map(|(_, head)| (*head).to_owned());
    let mut header: Vec<String> = std::iter::once("setting".to_owned()).chain(heads).collect();
    header.push("slowdown".into());
    let mut rows = vec![header];
    for case in cases(figures) {
        let cell = |&(what, _): &(&str, &str)| match find(figures, case, what) {
            Some(figure) if what.starts_with("ns ") => format!("{:.1}", figure.value / 1000.0),
            Some(figure) if what == "seconds" => format!("{:.1}", figure.value),
            Some(figure) => format!("{:.0}", figure.value),
            None => "-".into(),
        };
        let mut row = vec![case.to_owned()];
        row.extend(COLUMNS.iter().map(cell));
        let slowdown = (case != LINUX).then(|| slowdown(figures, case)).flatten();
        row.push(slowdown.map_or("-".into(), |times| format!("{times:.2}")));
        rows.push(row);
    }
    rows
}

/// Returns the plot of run times, as a share of the time with all memory local.
pub(super) fn plot(figures: &[Figure]) -> String {
    let bar = |case: &str| {
        let percent = slowdown(figures, case)? * 100.0;
        Some(Bar {
            name: case.to_owned(),
            parts: vec![percent],
        })
    };
    let bars: Vec<Bar> = cases(figures)
        .into_iter()
        .filter(|case| *case != LINUX)
        .filter_map(bar)
        .collect();
    let title = "Time of an epoch, in % of that with all memory local";
    stacked(title, &["Tessera"], &bars)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slowdown_is_of_the_same_number_of_cores() {
        let run = |seconds| Trained {
            seconds,
            reads: 3,
            read_ns: 12_500,
            ..Trained::default()
        };
        let setting = |cores, share| Setting {
            cores,
            share,
            working_set: 1,
        };
        let mut all = native(&run(0.5));
        all.extend(figures(&setting(1, 100.0), &[run(2.0), run(4.0)]));
        all.extend(figures(&setting(1, 50.0), &[run(6.0)]));
        all.extend(figures(&setting(2, 100.0), &[run(2.0)]));
        let rows = rows(&all);
        assert_eq!(rows[1][1..], ["0.5", "-", "-", "-", "-", "-"]);
        assert_eq!(
            rows[2],
            [
                "1 core, 100 % local",
                "3.0",
                "3",
                "12.5",
                "0",
                "0.0",
                "1.00"
            ]
        );
        assert_eq!((rows[3][6].as_str(), rows[4][6].as_str()), ("2.00", "1.00"));
        assert!(plot(&all).contains("1 core, 50 % local"));
    }
}
