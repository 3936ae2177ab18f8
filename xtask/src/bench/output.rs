//! The folder of a measurement's runs, and the ways in which its figures are given.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::figures::{Figure, to_json, to_tsv};
use crate::bed;
use crate::tools::say;

/// Measures in a folder of its own, which is left if that fails.
///
/// # Errors
/// Those of the measurement, and of making the folder.
pub(super) fn in_folder<T>(measure: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let folder = bed::make_folder()?;
    let result = measure(&folder);
    if result.is_ok() {
        // What can't be removed is of no more use.
        let _ = fs::remove_dir_all(&folder);
    } else {
        say(&format!("What the runs left is in {}", folder.display()));
    }
    result
}

/// Prints figures as JSON, or as the text that `tables` makes; writes them to a file if one is
/// named.
///
/// # Errors
/// If the file can't be written.
pub(super) fn show(
    figures: &[Figure],
    json: bool,
    tsv: Option<&PathBuf>,
    tables: impl FnOnce() -> String,
) -> Result<()> {
    if json {
        println!("{:#}", to_json(figures));
    } else {
        println!("{}", tables());
    }
    if let Some(file) = tsv {
        fs::write(file, to_tsv(figures))
            .with_context(|| format!("can't write {}", file.display()))?;
    }
    Ok(())
}
