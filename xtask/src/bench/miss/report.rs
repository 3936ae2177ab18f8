//! Tables of the measurements, for people and for the record.

use super::groups::Group;
use super::measure::{Case, Measured, names};
use super::model::Trace;
use crate::bench::figures::{Figure, find};
use crate::bench::plot::{Bar, stacked};
use crate::bench::record::markdown;
use crate::bench::table::aligned;

/// Functions shown of those that no rule assigns.
const SHOWN: usize = 12;
/// Characters of a frame that a table shows.
const ROOM: usize = 90;
/// Instructions an operation below which a function is not shown.
const FEW: f64 = 1.0;

/// Targets: operation, figure, and the most that it should be.
const TARGETS: [(&str, &str, f64); 10] = [
    ("clean", "trap to doorbell + completion to return", 500.0),
    ("clean", "instructions", 900.0),
    ("dirty", "instructions", 1200.0),
    ("clean", "a look that finds nothing", 30.0),
    ("zero-fill", "instructions", 450.0),
    ("mmap-munmap", "instructions", 1500.0),
    ("getppid", "instructions", 200.0),
    ("clock-gettime", "instructions", 0.0),
    ("clean", "doorbells", 1.0),
    ("sequential", "traps", 0.125),
];

/// Returns the table of figures by operation, the first row being the header.
fn figures(cases: &[Case]) -> Vec<Vec<String>> {
    let header = std::iter::once("an operation".to_owned())
        .chain(cases.iter().map(|case| case.name.clone()));
    let row = |what: &str| {
        let cell = |case: &Case| match find(&case.figures, &case.name, what) {
            Some(figure) => short(figure.value),
            None => String::new(),
        };
        std::iter::once(what.to_owned())
            .chain(cases.iter().map(cell))
            .collect()
    };
    std::iter::once(header.collect())
        .chain(names(cases).into_iter().map(row))
        .collect()
}

/// Formats a value with some three digits; `0` if it is below 0.005.
fn short(value: f64) -> String {
    match value.abs() {
        ..0.005 => "0".into(),
        ..10.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

/// Shortens a frame to what a table has room for; its end tells most.
fn shortened(frame: &str) -> String {
    match frame.char_indices().rev().nth(ROOM) {
        Some((at, _)) => format!("…{}", &frame[at..]),
        None => frame.to_owned(),
    }
}

/// Returns the table of the adapters' events.
fn events([clean, dirty]: &[Trace; 2]) -> Vec<Vec<String>> {
    let header = ["an adapter's events", "clean", "bytes", "dirty", "bytes"]
        .map(str::to_owned)
        .to_vec();
    let mut keys: Vec<_> = clean.keys().chain(dirty.keys()).collect();
    keys.sort();
    keys.dedup();
    let row = |key: &(String, String)| {
        let cells = [clean, dirty].into_iter().flat_map(|trace| {
            let events = trace.get(key).copied().unwrap_or_default();
            [
                format!("{:.2}", events.count),
                format!("{:.0}", events.bytes),
            ]
        });
        std::iter::once(format!("{} {}", key.0, key.1))
            .chain(cells)
            .collect()
    };
    std::iter::once(header)
        .chain(keys.into_iter().map(row))
        .collect()
}

/// Returns what no rule assigns, the most first.
fn unassigned(cases: &[Case]) -> Vec<Vec<String>> {
    let header = ["unassigned", "operation", "instructions"]
        .map(str::to_owned)
        .to_vec();
    let mut rows: Vec<(&str, &str, f64)> = Vec::new();
    for case in cases {
        let frames = case
            .frames
            .iter()
            .filter(|(_, group, _)| *group == Group::Unassigned);
        rows.extend(frames.map(|(frame, _, count)| (&frame[..], &case.name[..], *count)));
    }
    rows.retain(|row| row.2 >= FEW);
    rows.sort_by(|a, b| b.2.total_cmp(&a.2));
    let rows = rows.into_iter().take(SHOWN);
    let rows = rows
        .map(|(frame, case, count)| vec![shortened(frame), case.to_owned(), format!("{count:.1}")]);
    std::iter::once(header).chain(rows).collect()
}

/// Returns the table of targets: what is aimed at, and what it is.
fn targets(all: &[Figure]) -> Vec<Vec<String>> {
    let header = ["operation", "figure", "aim", "is", ""]
        .map(str::to_owned)
        .to_vec();
    let value = |case: &str, what: &str| -> Option<f64> {
        what.split(" + ")
            .map(|part| find(all, case, part).map(|figure| figure.value))
            .sum()
    };
    let rows = TARGETS.iter().filter_map(|(case, what, most)| {
        let is = value(case, what)?;
        // A timer's interrupt now and then is no miss of a target.
        let reached = if is <= most + 0.05 { "reached" } else { "" };
        Some(vec![
            case.to_string(),
            what.to_string(),
            format!("{most}"),
            format!("{is:.2}"),
            reached.into(),
        ])
    });
    std::iter::once(header).chain(rows).collect()
}

/// Returns the largest spread of a case's instructions, in words.
fn spread(cases: &[Case]) -> String {
    let figures = cases.iter().flat_map(|case| &case.figures);
    let largest = figures
        .filter_map(|figure| Some((figure.spread?, &figure.case)))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match largest {
        Some((spread, case)) => format!(
            "Runs differ from their mean by {:.2} % at most ({case}).",
            100.0 * spread
        ),
        None => "One run each: no spread is known.".into(),
    }
}

/// Returns the report for a terminal.
pub(super) fn text(measured: &Measured) -> String {
    let mut text = format!(
        "Instructions of P's kernel for an operation, waiting apart.\n\n{}\n\n{}\n",
        aligned(&figures(&measured.cases)),
        spread(&measured.cases)
    );
    let unassigned = unassigned(&measured.cases);
    if unassigned.len() > 1 {
        text += &format!("\n{}\n", aligned(&unassigned));
    }
    if let Some(model) = &measured.model {
        text += &format!("\n{}\n", aligned(&events(model)));
    }
    text += &format!("\n{}\n", aligned(&targets(&measured.figures())));
    for note in &measured.notes {
        text += &format!("\nnote: {note}\n");
    }
    text
}

/// Returns each operation's instructions by frame.
pub(super) fn frames(cases: &[Case]) -> String {
    let mut text = String::new();
    for case in cases.iter().filter(|case| !case.frames.is_empty()) {
        let rows = case.frames.iter().filter(|(_, _, count)| *count >= FEW);
        let rows: Vec<_> = rows
            .map(|(frame, group, count)| {
                vec![
                    format!("  {}", shortened(frame)),
                    group.name().into(),
                    format!("{count:.1}"),
                ]
            })
            .collect();
        text += &format!("\n{}\n{}\n", case.name, aligned(&rows));
    }
    text
}

/// Returns the sections of the record.
pub(super) fn sections(measured: &Measured) -> String {
    let mut text = format!("## Aims\n\n{}\n", markdown(&targets(&measured.figures())));
    text += &format!(
        "## Instructions of P's kernel\n\n{}\n{}\n\n",
        markdown(&figures(&measured.cases)),
        spread(&measured.cases)
    );
    if let Some(model) = &measured.model {
        text += &format!(
            "## What the adapters do for a miss\n\n{}\n",
            markdown(&events(model))
        );
    }
    let unassigned = unassigned(&measured.cases);
    if unassigned.len() > 1 {
        text += &format!(
            "## Functions that no group has\n\n{}\n",
            markdown(&unassigned)
        );
    }
    if !measured.notes.is_empty() {
        text += "## Left out\n\n";
        for note in &measured.notes {
            text += &format!("* {note}\n");
        }
    }
    text
}

/// Tells system calls, which would dwarf the others, from touches of pages.
fn is_call(case: &Case) -> bool {
    let of_calls = case.groups.get(&Group::Calls);
    of_calls.is_some_and(|instructions| *instructions > FEW)
}

/// Returns the plot of a page's instructions by group.
pub(super) fn plot(cases: &[Case]) -> String {
    let groups = Group::ALL;
    let bars: Vec<Bar> = cases
        .iter()
        .filter(|case| !case.groups.is_empty() && !is_call(case))
        .map(|case| Bar {
            name: case.name.clone(),
            parts: groups
                .iter()
                .map(|group| case.groups.get(group).copied().unwrap_or(0.0))
                .collect(),
        })
        .collect();
    stacked(
        "Instructions of P's kernel for a page",
        &groups.map(Group::name),
        &bars,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::Kind;

    fn case(name: &str, figures: &[(&str, f64)]) -> Case {
        Case {
            name: name.into(),
            groups: [(Group::Trap, 10.0)].into(),
            frames: vec![
                ("a.rs f".into(), Group::Trap, 9.0),
                ("b.rs g".into(), Group::Unassigned, 1.5),
            ],
            figures: figures
                .iter()
                .map(|(what, value)| Figure::new(name, what, *value, Kind::Counted))
                .collect(),
        }
    }

    #[test]
    fn a_column_is_an_operation() {
        let cases = [
            case("clean", &[("instructions", 5642.4)]),
            case("dirty", &[("looks", 1.5)]),
        ];
        let rows = figures(&cases);
        assert_eq!(rows[0], ["an operation", "clean", "dirty"]);
        assert_eq!(rows[1], ["instructions", "5642", ""]);
        assert_eq!(rows[2], ["looks", "", "1.50"]);
        assert_eq!(unassigned(&cases)[1], ["b.rs g", "clean", "1.5"]);
    }

    #[test]
    fn a_target_may_be_a_sum() {
        let figures = case(
            "clean",
            &[
                ("trap to doorbell", 200.0),
                ("completion to return", 250.0),
                ("doorbells", 1.02),
            ],
        );
        let rows = targets(&figures.figures);
        assert_eq!(rows.len(), 3);
        assert_eq!((&rows[1][3][..], &rows[1][4][..]), ("450.00", "reached"));
        assert_eq!(&rows[2][4][..], "reached");
    }

    #[test]
    fn a_record_and_a_plot_have_all_cases() {
        let measured = Measured {
            cases: vec![case("clean", &[])],
            notes: vec!["x: left out".into()],
            model: None,
        };
        assert!(sections(&measured).contains("* x: left out"));
        assert!(text(&measured).contains("note: x: left out"));
        assert!(plot(&measured.cases).contains(">clean<"));
        assert!(frames(&measured.cases).contains("a.rs f"));
    }
}
