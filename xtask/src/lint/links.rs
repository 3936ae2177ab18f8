//! Rules for the documentation: links between its pages, and files that it names, exist.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Pages that name files of the tree; each name in backquotes with a slash is one.
const NAMES_FILES: [&str; 1] = ["docs/tour.md"];

/// Returns the broken links and names of all pages below `root`.
///
/// # Errors
///
/// When a page can't be read.
pub(super) fn faults(root: &Path) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for page in pages(root)? {
        let text =
            fs::read_to_string(&page).with_context(|| format!("can't read {}", page.display()))?;
        let folder = page.parent().unwrap_or(root);
        let broken = links(&text).filter(|link| !folder.join(link).exists());
        faults.extend(
            broken.map(|link| format!("{} links to {link}, which does not exist", page.display())),
        );
        if NAMES_FILES.iter().any(|name| page == root.join(name)) {
            let gone = names(&text).filter(|name| !root.join(name).exists());
            faults.extend(
                gone.map(|name| format!("{} names {name}, which does not exist", page.display())),
            );
        }
    }
    Ok(faults)
}

/// Returns the Markdown pages at the root and below `docs`.
fn pages(root: &Path) -> Result<Vec<PathBuf>> {
    let mut pages = Vec::new();
    let mut folders = vec![root.join("docs")];
    for entry in list(root)? {
        pages.extend(Some(entry).filter(|path| is_page(path)));
    }
    while let Some(folder) = folders.pop() {
        for path in list(&folder)? {
            if path.is_dir() {
                folders.push(path);
            } else if is_page(&path) {
                pages.push(path);
            }
        }
    }
    Ok(pages)
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("can't list {}", folder.display()))?;
    entries
        .map(|entry| {
            Ok(entry
                .with_context(|| format!("can't list {}", folder.display()))?
                .path())
        })
        .collect()
}

fn is_page(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "md")
}

/// Returns the targets of a page's links to files, without the part behind `#`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    let files =
        targets.filter(|target| !target.contains("://") && !target.contains(char::is_whitespace));
    files
        .filter_map(|target| target.split('#').next())
        .filter(|target| !target.is_empty())
}

/// Returns the names in backquotes that are paths.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|name| name.contains('/') && !name.contains(char::is_whitespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_names_are_found() {
        let text = "See [a](docs/a.md#part), [b](https://b.example/) and [c](#here); `src/x.rs`, `no` and `a b/c`.";
        assert_eq!(links(text).collect::<Vec<_>>(), ["docs/a.md"]);
        assert_eq!(names(text).collect::<Vec<_>>(), ["src/x.rs"]);
    }
}
