//! Checks that each line of `docs/fit.md` on what an attacker cannot do names a test that exists.

use std::path::Path;

/// Abbreviations of the table.
const PLACES: [(&str, &str); 3] = [
    ("SIM", "testbed/sim/tests/runs.rs"),
    ("FIT/", "fit/tests/membership/"),
    ("LIB/", "fit/src/"),
];
/// Rows that the table has at least.
const ROWS: usize = 26;

/// Returns the words of a line that stand between backquotes.
fn quoted(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// Returns the file that a place in the table means.
fn file(place: &str) -> String {
    let known = PLACES.iter().find(|(short, _)| place.starts_with(short));
    known.map_or_else(
        || place.to_owned(),
        |(short, long)| place.replacen(short, long, 1),
    )
}

#[test]
fn every_claim_about_attackers_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |path: &str| std::fs::read_to_string(root.join(path));
    let page = read("docs/fit.md").expect("the page of FIT");
    let table = page.split("| attacker | cannot | test |").nth(1);
    let table = table.expect("the table of what attackers cannot do");
    let lines = table
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with('|'));
    let rows: Vec<&str> = lines.filter(|line| !line.starts_with("|---")).collect();
    assert!(rows.len() >= ROWS, "{} rows", rows.len());
    for row in rows {
        let last = row.rsplit('|').nth(1).expect("a column for the test");
        let [place, test] = quoted(last)[..] else {
            panic!("no file and test: {row}")
        };
        let source = read(&file(place)).unwrap_or_else(|error| panic!("{place}: {error}"));
        let head = format!("fn {test}(");
        let (before, _) = source
            .split_once(&head)
            .unwrap_or_else(|| panic!("{place} has no test {test}"));
        // The attribute stands right in front, or above another one.
        let attributes = before.rsplit("\n\n").next().unwrap_or_default();
        assert!(attributes.contains("#[test]"), "{test} is no test");
    }
}
