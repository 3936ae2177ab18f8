//! The kernel command line: tokens, percent-encoded (see `docs/architecture.md`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use anyhow::{Result, ensure};

/// The longest line that QEMU's loader takes (QEMU `pc-bios/optionrom/pvh_main.c`:
/// `CMDLINE_BUFSIZE`, with its end mark).
const MAX_LEN: usize = 4095;

/// A command line in the making.
#[derive(Default)]
pub(crate) struct CommandLine {
    text: String,
}

impl CommandLine {
    /// Adds an option without a value.
    pub(crate) fn flag(&mut self, key: &str) {
        self.token(key.as_bytes());
    }

    /// Adds an option.
    pub(crate) fn option(&mut self, key: &str, value: impl AsRef<OsStr>) {
        self.token(key.as_bytes());
        self.text.push('=');
        self.text.push_str(&encode(value.as_ref().as_bytes()));
    }

    /// Returns the line.
    ///
    /// # Errors
    /// If it is too long.
    pub(crate) fn finish(self) -> Result<String> {
        let len = self.text.len();
        ensure!(
            len <= MAX_LEN,
            "the options are too long: {len} bytes once encoded, and {MAX_LEN} fit"
        );
        Ok(self.text)
    }

    fn token(&mut self, bytes: &[u8]) {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        self.text.push_str(&encode(bytes));
    }
}

fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_graphic() && !b"%'\"\\".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_part_a_token_is_encoded() {
        let mut line = CommandLine::default();
        line.option("pcache", "8M");
        line.option("key", "100% ü\n");
        line.flag("strace");
        let line = line.finish().expect("short");
        assert_eq!(line, "pcache=8M key=100%25%20%c3%bc%0a strace");
    }

    #[test]
    fn a_line_that_qemu_would_cut_is_refused() {
        let mut line = CommandLine::default();
        line.option("key", "x".repeat(4092));
        assert!(line.finish().is_err());
    }
}
