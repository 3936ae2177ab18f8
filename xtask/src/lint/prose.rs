//! Rules for comments: doc summaries that say what an item is, and lines of at most 100 columns.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Columns of a comment's line at most.
const COLUMNS: usize = 100;
/// Words that a doc summary must not begin with: it would be a question without an answer, or half
/// a sentence.
const QUESTIONS: [&str; 11] = [
    "What", "Who", "How", "Where", "Which", "Whose", "Why", "For how", "As", "When", "That",
];

/// Returns the faults of a file's comments.
///
/// # Errors
///
/// When the file can't be read.
pub(super) fn faults(file: &Path) -> Result<Vec<String>> {
    let text =
        fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))?;
    let told = |(line, fault)| format!("{}:{line}: {fault}", file.display());
    Ok(faults_of(&text).into_iter().map(told).collect())
}

fn faults_of(text: &str) -> Vec<(usize, String)> {
    let mut faults = Vec::new();
    let (mut before, mut drawn, mut blank_before) = (None, false, false);
    for (index, line) in text.lines().enumerate() {
        let comment = Comment::of(line);
        if let Some(Comment { kind, words }) = comment {
            let opens = before != Some(kind);
            // Each paragraph of a module's documentation says what something is, as its first does.
            let is_summary = kind != "//" && opens || kind == "//!" && blank_before;
            blank_before = words.is_empty();
            if let Some(question) = is_summary.then(|| question(words)).flatten() {
                let fault =
                    format!("a summary begins with {question:?}; say what the item is or does");
                faults.push((index + 1, fault));
            }
            // Drawings stand between two fences.
            drawn &= !opens;
            drawn ^= words.starts_with("```");
            if !drawn && is_too_long(line, words) {
                faults.push((
                    index + 1,
                    format!("a comment's line has over {COLUMNS} columns"),
                ));
            }
        }
        before = comment.map(|comment| comment.kind);
    }
    faults
}

/// A line that is a comment.
#[derive(Clone, Copy)]
struct Comment<'a> {
    /// `//`, `///` or `//!`.
    kind: &'static str,
    words: &'a str,
}

impl<'a> Comment<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let line = line.trim_start();
        let of = |kind| Some((kind, line.strip_prefix(kind)?));
        let (kind, words) = of("///").or_else(|| of("//!")).or_else(|| of("//"))?;
        let words = words.trim();
        Some(Self { kind, words })
    }
}

fn question(words: &str) -> Option<&'static str> {
    let asks = |question: &&str| {
        let rest = words.strip_prefix(*question);
        rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_alphanumeric()))
    };
    QUESTIONS.into_iter().find(|question| asks(question))
}

/// Returns whether a line could be broken and is not. Rows of tables, drawings and lone words
/// (addresses) cannot.
fn is_too_long(line: &str, words: &str) -> bool {
    let drawn = words.starts_with('|') || words.contains(['│', '─', '┌', '└', '►', '◄']);
    line.chars().count() > COLUMNS && !drawn && words.contains(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<usize> {
        faults_of(text).into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn summaries_that_ask_are_found() {
        assert_eq!(lines("/// What it is.\nfn f() {}\n"), [1]);
        assert_eq!(lines("    /// For how long.\n    a: u8,\n"), [1]);
        assert_eq!(lines("//! Where things are.\n"), [1]);
        assert_eq!(lines("/// As the doorbell told it last.\n"), [1]);
        assert_eq!(lines("/// When it failed.\n"), [1]);
        assert_eq!(lines("//! A list.\n//!\n//! What it holds.\n"), [3]);
        assert!(lines("//! A list; it says\n//! What it holds.\n").is_empty());
        assert!(lines("/// Whatever comes is taken.\nfn f() {}\n").is_empty());
        assert!(lines("/// Returns it.\n/// What follows is no summary.\n").is_empty());
        assert!(lines("// Why: the card reads ahead.\n").is_empty());
    }

    #[test]
    fn long_comments_are_found_unless_they_cannot_be_broken() {
        let long = "word ".repeat(30);
        assert_eq!(lines(&format!("// {long}\n")), [1]);
        assert_eq!(
            lines(&format!("/// ```\n/// {long}\n/// ```\n/// {long}\n")),
            [4]
        );
        assert!(lines(&format!("/// | {long} |\n")).is_empty());
        assert!(lines(&format!("// https://{}\n", "x".repeat(120))).is_empty());
        assert!(lines(&format!("let code = \"{long}\";\n")).is_empty());
    }
}
