//! The lowest lines of a terminal, kept for snapshots while the program's output scrolls above.
//!
//! The terminal's scrolling region (DECSTBM, a VT100's and all that emulate one) ends above them,
//! as `apt` does it for its progress.

use std::fs::File;
use std::io::{Result, Write};

use rustix::termios::tcgetwinsize;

/// Lines that are kept of a terminal that has enough.
const HEIGHT: usize = 14;
/// Lines that the program keeps at least.
const OTHERS: usize = 8;

/// The lines.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: File,
    /// Rows and columns of the terminal for which the region was set.
    size: Option<[usize; 2]>,
}

impl Screen {
    pub(super) fn new(terminal: File) -> Self {
        Self {
            terminal,
            size: None,
        }
    }

    /// Returns rows and columns of the kept lines; `None` if the terminal is too small.
    pub(super) fn kept(&self) -> Option<[usize; 2]> {
        let size = tcgetwinsize(&self.terminal).ok()?;
        let height = height(size.ws_row.into());
        (height > 0).then_some([height, size.ws_col.into()])
    }

    /// Shows lines, at most as many as are kept.
    ///
    /// # Errors
    /// If the terminal can't be written.
    pub(super) fn show(&mut self, lines: &[String]) -> Result<()> {
        let Ok(size) = tcgetwinsize(&self.terminal) else {
            return Ok(());
        };
        let size = [usize::from(size.ws_row), usize::from(size.ws_col)];
        let [rows, _] = size;
        let height = height(rows);
        if height == 0 {
            return self.close();
        }
        let mut text = String::new();
        if self.size != Some(size) {
            text += &begin(rows, height, self.size.is_none());
            self.size = Some(size);
        }
        // Save the cursor, write each line, restore it.
        text += "\x1b7";
        for index in 0..height {
            let line = lines.get(index).map_or("", String::as_str);
            let style = if index == 0 { "\x1b[7m" } else { "" };
            text += &format!(
                "\x1b[{};1H\x1b[2K{style}{line}\x1b[0m",
                rows - height + 1 + index
            );
        }
        text += "\x1b8";
        self.write(&text)
    }

    /// Gives the lines back, empty.
    ///
    /// # Errors
    /// If the terminal can't be written.
    pub(super) fn close(&mut self) -> Result<()> {
        let Some([rows, _]) = self.size.take() else {
            return Ok(());
        };
        // Setting the region moves the cursor, so it is saved before.
        let first = rows - height(rows) + 1;
        self.write(&format!("\x1b7\x1b[r\x1b[{first};1H\x1b[J\x1b8"))
    }

    fn write(&mut self, text: &str) -> Result<()> {
        self.terminal.write_all(text.as_bytes())?;
        self.terminal.flush()
    }
}

/// Returns how many lines are kept of so many.
pub(super) fn height(rows: usize) -> usize {
    match rows.saturating_sub(OTHERS).min(HEIGHT) {
        few if few <= super::view::HEADER => 0,
        enough => enough,
    }
}

/// Returns what sets the scrolling region; at first the text that stands there moves up.
fn begin(rows: usize, height: usize, first: bool) -> String {
    let mut text = String::new();
    if first {
        text += &"\n".repeat(height);
        text += &format!("\x1b[{height}A");
    }
    text + &format!("\x1b7\x1b[1;{}r\x1b8", rows - height)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_terminal_is_the_program_s_alone() {
        assert_eq!(height(0), 0);
        assert_eq!(height(13), 0, "a header without processes");
        assert_eq!(height(14), 6);
        assert_eq!(height(24), 14);
        assert_eq!(height(100), 14);
    }
}
