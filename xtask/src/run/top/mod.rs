//! `--top`: what runs on P, in the lowest lines of the terminal or as text in a file.

mod screen;
mod snapshot;
mod view;

use std::fs::File;
use std::io::{ErrorKind, Result, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, ensure};
use rustix::stdio::stderr;
use rustix::termios::isatty;

use self::screen::Screen;
use self::snapshot::Snapshot;

/// Milliseconds between two snapshots.
pub(super) const PAUSE: u64 = 1000;
/// The line behind a snapshot.
const END: &str = "\nend\n";
/// The most bytes of a snapshot that are kept; P sends some 100 KB at most.
const MAX_BYTES: usize = 1 << 20;

/// The place where snapshots are shown.
#[derive(Clone, Debug)]
pub(crate) struct Top(Arc<Mutex<Target>>);

/// Gives the terminal's lines back when it is dropped; what comes later is not shown.
#[derive(Debug)]
pub(super) struct Closing(Top);

#[derive(Debug)]
enum Target {
    File(File),
    Screen(Box<Shown>),
}

/// Snapshots on a terminal.
#[derive(Debug)]
struct Shown {
    screen: Screen,
    /// The beginning of a snapshot that has not come whole.
    begun: Vec<u8>,
    last: Snapshot,
    closed: bool,
}

impl Top {
    /// Returns the place: a file, or the terminal that standard error is.
    ///
    /// # Errors
    /// If the file can't be made, or standard error is no terminal that is large enough.
    pub(super) fn new(file: Option<&Path>) -> anyhow::Result<Self> {
        let target = match file {
            Some(path) => Target::File(
                File::create(path).with_context(|| format!("can't make {}", path.display()))?,
            ),
            None => {
                ensure!(
                    isatty(stderr()),
                    "--top shows processes on standard error, which is no terminal: give a file, --top=FILE"
                );
                let terminal = stderr().as_fd().try_clone_to_owned();
                let screen = Screen::new(terminal.context("can't share the terminal")?.into());
                ensure!(
                    screen.kept().is_some(),
                    "--top needs a terminal of 14 lines or more: make it larger, or give a file, --top=FILE"
                );
                Target::Screen(Box::new(Shown {
                    screen,
                    begun: Vec::new(),
                    last: Snapshot::default(),
                    closed: false,
                }))
            }
        };
        Ok(Self(Arc::new(Mutex::new(target))))
    }

    /// Returns what gives the terminal's lines back at the end, on any way out.
    pub(super) fn closing(&self) -> Closing {
        Closing(self.clone())
    }

    /// Returns the rows that the program has of so many.
    pub(super) fn rows_left(&self, rows: u16) -> u16 {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Target::File(_) => rows,
            Target::Screen(_) => {
                let kept = screen::height(rows.into());
                rows.saturating_sub(u16::try_from(kept).unwrap_or(0))
            }
        }
    }
}

impl Write for Top {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Target::File(file) => file.write(bytes),
            Target::Screen(shown) => {
                shown.take(bytes)?;
                Ok(bytes.len())
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Shown {
    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.begun.extend_from_slice(bytes);
        while let Some(end) = self
            .begun
            .windows(END.len())
            .position(|window| window == END.as_bytes())
        {
            let rest = self.begun.split_off(end + END.len());
            let whole = std::mem::replace(&mut self.begun, rest);
            self.show(&String::from_utf8_lossy(&whole))?;
        }
        if self.begun.len() > MAX_BYTES {
            let kind = ErrorKind::InvalidData;
            return Err(std::io::Error::new(kind, "a snapshot of P has no end"));
        }
        Ok(())
    }

    fn show(&mut self, text: &str) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        let now = Snapshot::parse(text);
        let kept = self.screen.kept();
        let lines = kept.map(|size| view::lines(&self.last, &now, size));
        self.last = now;
        self.screen.show(&lines.unwrap_or_default())
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        if let Target::Screen(shown) = &mut *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
        {
            shown.closed = true;
            // There is nobody to tell that it failed.
            let _ = shown.screen.close();
        }
    }
}
