//! Comparison of figures with the last record.

use super::figures::{Figure, Kind, find};

/// A change below this is no change, however large its share: a rare interrupt, a timer.
const SLACK: f64 = 0.05;
/// Slack of figures from [`MANY`] on.
const SLACK_OF_MANY: f64 = 1.0;
/// See [`SLACK_OF_MANY`].
const MANY: f64 = 10.0;
/// Multiple of the tolerance that a figure may grow if timing changes its path.
const ROUGHLY: f64 = 5.0;

/// Returns the most that a figure may be now; `None` if it may be anything.
fn most(old: f64, kind: Kind, tolerance: f64) -> Option<f64> {
    let tolerance = match kind {
        Kind::Counted => tolerance,
        Kind::Rough => ROUGHLY * tolerance,
        Kind::Part | Kind::Timed => return None,
    };
    let slack = if old < MANY { SLACK } else { SLACK_OF_MANY };
    Some(old * (1.0 + tolerance) + slack)
}

/// The difference between a record and new figures.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Comparison {
    /// Rows for people, with a header: case, figure, before, now, change.
    pub(super) rows: Vec<Vec<String>>,
    /// Counted figures that grew beyond the tolerance, in words.
    pub(super) worse: Vec<String>,
}

/// Compares. `tolerance` is the share by which a counted figure may grow.
pub(super) fn compare(before: &[Figure], now: &[Figure], tolerance: f64) -> Comparison {
    let mut comparison = Comparison::default();
    comparison
        .rows
        .push(row(["case", "figure", "before", "now", "change"]));
    for new in now {
        let value = format!("{:.2}", new.value);
        let Some(old) = find(before, &new.case, &new.what) else {
            comparison
                .rows
                .push(row([&new.case, &new.what, "-", &value, "new"]));
            continue;
        };
        if old.value.abs().max(new.value.abs()) < SLACK {
            continue;
        }
        let change = new.value - old.value;
        let percent = if old.value > 0.0 {
            format!("{:+.1} %", 100.0 * change / old.value)
        } else {
            "-".into()
        };
        let is_worse = most(old.value, new.kind, tolerance).is_some_and(|most| new.value > most);
        let mark = if is_worse {
            format!("{percent}  WORSE")
        } else {
            percent
        };
        if is_worse {
            comparison.worse.push(format!(
                "{} {}: {:.2} → {value}",
                new.case, new.what, old.value
            ));
        }
        comparison.rows.push(row([
            &new.case,
            &new.what,
            &format!("{:.2}", old.value),
            &value,
            &mark,
        ]));
    }
    for old in before
        .iter()
        .filter(|old| find(now, &old.case, &old.what).is_none())
    {
        comparison.rows.push(row([
            &old.case,
            &old.what,
            &format!("{:.2}", old.value),
            "-",
            "gone",
        ]));
    }
    comparison
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(what: &str, value: f64, kind: Kind) -> Figure {
        Figure::new("clean", what, value, kind)
    }

    #[test]
    fn only_counted_figures_that_grow_are_worse() {
        let before = [
            figure("instructions", 500.0, Kind::Counted),
            figure("doorbells", 1.0, Kind::Counted),
            figure("driver", 100.0, Kind::Part),
            figure("looks", 3.0, Kind::Timed),
            figure("waits", 1000.0, Kind::Rough),
        ];
        let now = [
            figure("instructions", 509.0, Kind::Counted),
            figure("doorbells", 2.0, Kind::Counted),
            figure("driver", 150.0, Kind::Part),
            figure("looks", 30.0, Kind::Timed),
            figure("waits", 1090.0, Kind::Rough),
        ];
        let comparison = compare(&before, &now, 0.02);
        assert_eq!(comparison.worse, ["clean doorbells: 1.00 → 2.00"]);
        assert_eq!(comparison.rows.len(), 6);
        assert!(
            compare(&now, &before, 0.02).worse.is_empty(),
            "better is never worse"
        );
        assert_eq!(compare(&before, &now, 0.01).worse.len(), 3);
    }

    #[test]
    fn rare_events_are_no_change() {
        let (before, now) = (
            [figure("loads", 0.0, Kind::Counted)],
            [figure("loads", 0.04, Kind::Counted)],
        );
        let comparison = compare(&before, &now, 0.02);
        assert!(comparison.worse.is_empty());
        assert_eq!(comparison.rows.len(), 1, "only the header");
    }

    #[test]
    fn what_came_and_went_is_told() {
        let (before, now) = (
            [figure("a", 1.0, Kind::Counted)],
            [figure("b", 1.0, Kind::Counted)],
        );
        let rows = compare(&before, &now, 0.02).rows;
        assert_eq!((&rows[1][4][..], &rows[2][4][..]), ("new", "gone"));
    }
}
