//! Figures of a benchmark, as scripts and records read them.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// Use of a figure in a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Counted, and lower is better: a comparison fails if it grows.
    Counted,
    /// Counted, but timing changes the path itself: a comparison allows for that.
    Rough,
    /// A part of a counted figure: it may grow at another part's expense.
    Part,
    /// Depends on the machine and what else it does.
    Timed,
}

impl Kind {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Counted, "counted"),
        (Self::Rough, "rough"),
        (Self::Part, "part"),
        (Self::Timed, "timed"),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Counted => "counted",
            Self::Rough => "rough",
            Self::Part => "part",
            Self::Timed => "timed",
        }
    }
}

/// A value that was measured.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figure {
    /// The operation, or the program.
    pub(super) case: String,
    /// The figure's name.
    pub(super) what: String,
    /// The value for one operation.
    pub(super) value: f64,
    /// The largest difference of a run from the mean, as a share of it; `None` if there was one
    /// run.
    pub(super) spread: Option<f64>,
    /// Its use in a comparison.
    pub(super) kind: Kind,
}

impl Figure {
    /// Creates a figure of a single run.
    pub(super) fn new(case: &str, what: &str, value: f64, kind: Kind) -> Self {
        Self {
            case: case.into(),
            what: what.into(),
            value,
            spread: None,
            kind,
        }
    }

    /// Returns the figure as a row of tab-separated values.
    fn row(&self) -> String {
        let spread = self
            .spread
            .map_or("-".into(), |spread| format!("{spread:.4}"));
        let (value, kind) = (format!("{:.3}", self.value), self.kind.name());
        [&self.case[..], &self.what, &value, &spread, kind].join("\t")
    }
}

/// The names of the columns.
const HEADER: &str = "case\tfigure\tvalue\tspread\tkind";

/// Returns figures as tab-separated values, a line each.
pub(super) fn to_tsv(figures: &[Figure]) -> String {
    let rows = figures.iter().map(|figure| figure.row() + "\n");
    std::iter::once(format!("{HEADER}\n")).chain(rows).collect()
}

/// Returns figures as JSON.
pub(super) fn to_json(figures: &[Figure]) -> Value {
    let one = |figure: &Figure| {
        json!({
            "case": figure.case, "figure": figure.what, "value": figure.value,
            "spread": figure.spread, "kind": figure.kind.name(),
        })
    };
    figures.iter().map(one).collect()
}

/// Reads what [`to_tsv`] wrote. Lines that begin with `#` are skipped.
pub(super) fn from_tsv(text: &str) -> Result<Vec<Figure>> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    ensure!(
        lines.next() == Some(HEADER),
        "the first line is not {HEADER:?}"
    );
    lines
        .map(|line| parse(line).with_context(|| format!("{line:?} is no figure")))
        .collect()
}

fn parse(line: &str) -> Option<Figure> {
    let cells: Vec<&str> = line.split('\t').collect();
    let [case, what, value, spread, kind] = cells[..] else {
        return None;
    };
    let spread = match spread {
        "-" => None,
        text => Some(text.parse().ok()?),
    };
    let kind = Kind::ALL.into_iter().find(|(_, name)| *name == kind)?.0;
    let (case, what, value) = (case.into(), what.into(), value.parse().ok()?);
    Some(Figure {
        case,
        what,
        value,
        spread,
        kind,
    })
}

/// Returns a case's figure.
pub(super) fn find<'a>(figures: &'a [Figure], case: &str, what: &str) -> Option<&'a Figure> {
    figures
        .iter()
        .find(|figure| figure.case == case && figure.what == what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn figures() -> Vec<Figure> {
        let mut figure = Figure::new("clean", "instructions", 5642.25, Kind::Counted);
        figure.spread = Some(0.01);
        vec![figure, Figure::new("clean", "looks", 7.5, Kind::Timed)]
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = to_tsv(&figures());
        assert_eq!(
            from_tsv(&format!("# commit abc\n{text}")).unwrap(),
            figures()
        );
        assert_eq!(
            find(&figures(), "clean", "looks").map(|figure| figure.value),
            Some(7.5)
        );
        assert_eq!(find(&figures(), "dirty", "looks"), None);
    }

    #[test]
    fn json_has_each_figure() {
        let json = to_json(&figures());
        assert_eq!(json[0]["value"], 5642.25);
        assert!(json[1]["spread"].is_null());
    }

    #[test]
    fn odd_lines_are_refused() {
        for bad in [
            "",
            "case\tfigure\n",
            &to_tsv(&figures()).replace("timed", "felt"),
            &to_tsv(&figures()).replace("7.5", "x"),
        ] {
            assert!(from_tsv(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(case\tfigure\tvalue\tspread\tkind|\t|\n|[a-z0-9.-]|#)*") {
            let _ = from_tsv(&text);
        }
    }
}
