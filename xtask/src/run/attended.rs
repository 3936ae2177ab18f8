//! The terminal while the program has it.

use ::console::Window;
use anyhow::Result;

use super::console::Server;
use super::terminal::{Raw, Terminal};
use super::top::Top;

/// Returns what the program has of the terminal's window; nothing without a terminal.
pub(super) fn window(terminal: Option<&Terminal>, top: Option<&Top>) -> Window {
    let whole = terminal.map(Terminal::window).unwrap_or_default();
    Window {
        rows: top.map_or(whole.rows, |top| top.rows_left(whole.rows)),
        ..whole
    }
}

/// The terminal while the program has it.
pub(super) struct ProgramTerminal<'a> {
    terminal: Option<&'a Terminal>,
    console: &'a Server,
    top: Option<&'a Top>,
    raw: Option<Raw>,
    window: Window,
}

impl<'a> ProgramTerminal<'a> {
    pub(super) fn new(
        terminal: Option<&'a Terminal>,
        console: &'a Server,
        top: Option<&'a Top>,
    ) -> Self {
        Self {
            terminal,
            console,
            top,
            raw: None,
            window: window(terminal, top),
        }
    }

    /// Gives the program the terminal once it runs, and tells it of a new size.
    pub(super) fn look(&mut self, running: bool) -> Result<()> {
        let Some(terminal) = self.terminal.filter(|_| running) else {
            return Ok(());
        };
        if self.raw.is_none() {
            self.raw = Some(terminal.raw()?);
            self.console.read_terminal();
        }
        let window = window(Some(terminal), self.top);
        if window != self.window {
            self.window = window;
            self.console.set_window(window);
        }
        Ok(())
    }
}
