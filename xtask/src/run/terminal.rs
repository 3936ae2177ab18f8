//! The host's terminal while a program of P has it: raw, so that P's line discipline edits and
//! makes signals, and restored on every way out.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use console::Window;
use rustix::process::getpgrp;
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::{
    OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr,
};

/// The terminal that our standard input is.
pub(crate) struct Terminal {
    file: File,
}

/// The terminal in raw mode; dropping it goes back to what was before.
pub(super) struct Raw {
    terminal: OwnedFd,
    before: Termios,
    keeper: Option<Child>,
}

impl Terminal {
    /// Returns the terminal if our standard input is one and we are in its foreground: from the
    /// background, reading or changing it would stop us.
    pub(super) fn of_stdin() -> Option<Self> {
        let foreground =
            isatty(stdin()) && tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp());
        let fd = stdin().try_clone_to_owned().ok().filter(|_| foreground)?;
        Some(Self { file: fd.into() })
    }

    /// Returns its window; nothing if it tells none.
    pub(super) fn window(&self) -> Window {
        let size = tcgetwinsize(&self.file);
        size.map_or_else(
            |_| Window::default(),
            |size| Window::from_words([size.ws_row, size.ws_col, size.ws_xpixel, size.ws_ypixel]),
        )
    }

    /// Returns a descriptor that shows what is written to it.
    pub(super) fn output(&self) -> Result<File> {
        // Standard input may be open for reading only.
        let shown = [stdout(), stderr()].into_iter().find(|fd| isatty(fd));
        let fd = shown.unwrap_or(self.file.as_fd()).try_clone_to_owned();
        Ok(fd.context("can't share the terminal")?.into())
    }

    /// Makes it raw.
    pub(super) fn raw(&self) -> Result<Raw> {
        let terminal = self
            .file
            .as_fd()
            .try_clone_to_owned()
            .context("can't share the terminal")?;
        let before = tcgetattr(&terminal).context("can't read the terminal's settings")?;
        let keeper = keeper(&terminal);
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &raw)
            .context("can't change the terminal's settings")?;
        Ok(Raw {
            terminal,
            before,
            keeper,
        })
    }
}

/// Starts a shell that restores the terminal if we are killed; none where there is no `stty`.
fn keeper(terminal: &OwnedFd) -> Option<Child> {
    let shared = || terminal.try_clone().ok().map(Stdio::from);
    let saved = Command::new("stty")
        .arg("-g")
        .stdin(shared()?)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let saved = String::from_utf8(saved.stdout).ok()?;
    // Its input ends with us, or brings a line when all went well.
    let script = r#"trap "" INT QUIT TERM HUP TSTP TTIN TTOU; read line || stty "$1" <&1"#;
    Command::new("sh")
        .args(["-c", script, "sh", saved.trim()])
        .stdin(Stdio::piped())
        .stdout(shared()?)
        .stderr(Stdio::null())
        .spawn()
        .ok()
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nobody to tell that it failed.
        let _ = tcsetattr(&self.terminal, OptionalActions::Drain, &self.before);
        if let Some(keeper) = &mut self.keeper {
            let _ = keeper.stdin.take().map(|mut input| input.write_all(b"\n"));
            let _ = keeper.wait();
        }
    }
}
