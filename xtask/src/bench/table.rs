//! Rows of figures: for people, and as tab-separated values.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Aligns rows in columns of equal width, the first to the left and the others to the right.
pub(super) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(String::len).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, &width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ")
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Writes the rows, each a line with its cells parted by tabs.
pub(super) fn write(file: &Path, rows: impl IntoIterator<Item = Vec<String>>) -> Result<()> {
    let lines: String = rows.into_iter().map(|row| row.join("\t") + "\n").collect();
    fs::write(file, lines).with_context(|| format!("can't write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<String>> {
        [["tool", "us"], ["a", "100.5"]]
            .map(|row| row.map(str::to_owned).to_vec())
            .to_vec()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        assert_eq!(aligned(&rows()), "tool     us\na     100.5");
        assert_eq!(aligned(&[]), "");
    }

    #[test]
    fn a_file_has_a_line_a_row() {
        let file = std::env::temp_dir().join(format!("tessera-table-{}", std::process::id()));
        write(&file, rows()).expect("written");
        assert_eq!(
            fs::read_to_string(&file).expect("read"),
            "tool\tus\na\t100.5\n"
        );
        fs::remove_file(file).expect("removed");
    }
}
