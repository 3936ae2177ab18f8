//! Faults of a cluster file, each with its line and key.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Error, anyhow};

/// The faults found so far in one file.
pub(super) struct Faults<'a> {
    file: PathBuf,
    text: &'a str,
    found: Vec<(usize, String)>,
}

impl<'a> Faults<'a> {
    /// Returns an empty list for a file.
    pub(super) fn new(file: &Path, text: &'a str) -> Self {
        Self {
            file: file.to_owned(),
            text,
            found: Vec::new(),
        }
    }

    /// Adds a fault of a key at a place in the text.
    pub(super) fn add(&mut self, at: &Range<usize>, key: &str, fault: impl std::fmt::Display) {
        let line = self.line(at.start);
        let told = format!("{}:{line}: {key}: {fault}", self.file.display());
        self.found.push((line, told));
    }

    /// Adds what the reader of TOML found.
    pub(super) fn add_syntax(&mut self, error: &toml::de::Error) {
        let span = error.span().unwrap_or_default();
        let key = field(error.message()).or_else(|| self.key_at(span.start));
        // The error's own display would show the line, which may hold the cluster's key.
        self.add(&span, key.unwrap_or("syntax"), error.message());
    }

    /// Returns their number.
    pub(super) fn count(&self) -> usize {
        self.found.len()
    }

    /// Returns whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Returns one error that lists all faults in the order of their lines.
    pub(super) fn into_error(mut self) -> Error {
        self.found.sort();
        let lines: Vec<String> = self.found.into_iter().map(|(_, told)| told).collect();
        anyhow!("the cluster file has faults:\n  {}", lines.join("\n  "))
    }

    fn line(&self, offset: usize) -> usize {
        let before = self
            .text
            .as_bytes()
            .get(..offset)
            .unwrap_or(self.text.as_bytes());
        before.iter().filter(|&&byte| byte == b'\n').count() + 1
    }

    /// Returns the key that is assigned on the line of a place.
    fn key_at(&self, offset: usize) -> Option<&'a str> {
        let line = self.text.lines().nth(self.line(offset) - 1)?;
        let key = line.split_once('=')?.0.trim();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        (!key.is_empty() && key.bytes().all(plain)).then_some(key)
    }
}

/// Returns the field that serde's message names: "missing field `mac`", "unknown field `x`, …".
fn field(message: &str) -> Option<&str> {
    let known = ["missing field `", "unknown field `", "duplicate field `"];
    let rest = known
        .iter()
        .find_map(|prefix| message.strip_prefix(prefix))?;
    rest.split('`').next()
}
