//! The line discipline: from typed bytes to what programs read and what is echoed. Pure logic,
//! after POSIX's "General Terminal Interface" and Linux's `n_tty`.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::termios::{
    ECHO, ECHOCTL, ECHOE, ECHOK, ECHOKE, ECHONL, ICANON, ICRNL, IEXTEN, IGNCR, IMAXBEL, INLCR,
    ISIG, ISTRIP, IUTF8, IXANY, IXON, NOFLSH, OCRNL, ONLCR, ONLRET, ONOCR, OPOST, Termios, VEOF,
    VEOL, VEOL2, VERASE, VINTR, VKILL, VLNEXT, VMIN, VQUIT, VREPRINT, VSTART, VSTOP, VSUSP, VTIME,
    VWERASE, XTABS,
};
use crate::signals::{SIGINT, SIGQUIT, SIGTSTP};

/// Bytes that were typed and not read at most (Linux's `N_TTY_BUF_SIZE`).
pub(crate) const MAX_INPUT: usize = 4096;
const BELL: u8 = 7;
const TAB: usize = 8;

/// A terminal's line discipline.
#[derive(Debug, Default)]
pub(crate) struct Discipline {
    termios: Termios,
    /// The line that is being edited.
    line: Vec<u8>,
    /// The column at which it began.
    line_column: usize,
    /// Bytes that programs may read.
    ready: VecDeque<u8>,
    /// Lengths of the lines in `ready`; an end of file is one without a line feed.
    lines: VecDeque<usize>,
    /// The next byte is taken as it is.
    literal: bool,
    /// The column of the cursor.
    column: usize,
    /// Output is stopped by VSTOP.
    stopped: bool,
}

impl Discipline {
    /// Returns the settings.
    pub(crate) fn termios(&self) -> &Termios {
        &self.termios
    }

    /// Changes the settings. What was typed stays: a line without its end can be read in raw mode.
    pub(crate) fn set_termios(&mut self, termios: Termios) {
        let (before, now) = (self.canonical(), termios.has_local(ICANON));
        self.termios = termios;
        if before && !now {
            self.ready.extend(self.line.drain(..));
            self.lines.clear();
        } else if !before && now && !self.ready.is_empty() {
            self.lines.push_back(self.ready.len());
        }
        if termios.input & IXON == 0 {
            self.stopped = false;
        }
    }

    fn canonical(&self) -> bool {
        self.termios.has_local(ICANON)
    }

    /// Returns whether output waits for VSTART.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Stops output, or lets it go on.
    pub(crate) fn stop(&mut self, stopped: bool) {
        self.stopped = stopped;
    }

    /// Forgets what was typed and not read.
    pub(crate) fn flush(&mut self) {
        self.line.clear();
        self.ready.clear();
        self.lines.clear();
    }

    /// Returns whether there is room for typed bytes.
    pub(crate) fn has_room(&self) -> bool {
        // An unfinished line that fills all is no reason to wait: nobody can read it.
        self.ready.len() + self.line.len() < MAX_INPUT
            || (self.canonical() && self.lines.is_empty())
    }

    /// Takes a typed byte; echoes into `echo` and returns the signal that it stands for.
    pub(crate) fn type_byte(&mut self, byte: u8, echo: &mut Vec<u8>) -> Option<u8> {
        let byte = if self.termios.input & ISTRIP != 0 {
            byte & 0x7f
        } else {
            byte
        };
        if core::mem::take(&mut self.literal) {
            self.insert(byte, echo);
            return None;
        }
        if self.flow(byte) {
            return None;
        }
        if let Some(signal) = self.signal(byte) {
            if !self.termios.has_local(NOFLSH) {
                self.flush();
            }
            self.echo(byte, echo);
            return Some(signal);
        }
        let byte = match byte {
            b'\r' if self.termios.input & IGNCR != 0 => return None,
            b'\r' if self.termios.input & ICRNL != 0 => b'\n',
            b'\n' if self.termios.input & INLCR != 0 => b'\r',
            byte => byte,
        };
        if self.canonical() {
            self.edit(byte, echo);
        } else {
            self.insert(byte, echo);
        }
        None
    }

    /// Handles the bytes that stop and start output.
    fn flow(&mut self, byte: u8) -> bool {
        if self.termios.input & IXON == 0 {
            return false;
        }
        if self.termios.is(byte, VSTOP) {
            self.stopped = true;
            return true;
        }
        let starts = self.termios.is(byte, VSTART);
        if starts || self.termios.input & IXANY != 0 {
            self.stopped = false;
        }
        starts
    }

    fn signal(&self, byte: u8) -> Option<u8> {
        if !self.termios.has_local(ISIG) {
            return None;
        }
        [(VINTR, SIGINT), (VQUIT, SIGQUIT), (VSUSP, SIGTSTP)]
            .into_iter()
            .find_map(|(place, signal)| self.termios.is(byte, place).then_some(signal))
    }

    /// Handles a byte in canonical mode.
    fn edit(&mut self, byte: u8, echo: &mut Vec<u8>) {
        let extended = self.termios.has_local(IEXTEN);
        if self.termios.is(byte, VERASE) {
            self.erase(1, echo);
        } else if self.termios.is(byte, VKILL) {
            self.kill(byte, echo);
        } else if extended && self.termios.is(byte, VWERASE) {
            let word = |&&byte: &&u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
            let blanks = self
                .line
                .iter()
                .rev()
                .take_while(|byte| !word(byte))
                .count();
            let letters = self.line.iter().rev().skip(blanks).take_while(word).count();
            let keep = self.line.len() - blanks - letters;
            while self.line.len() > keep {
                self.erase(1, echo);
            }
        } else if extended && self.termios.is(byte, VLNEXT) {
            self.literal = true;
            if self.termios.has_local(ECHO) && self.termios.has_local(ECHOCTL) {
                self.put(b"^\x08", echo);
            }
        } else if extended && self.termios.is(byte, VREPRINT) && self.termios.has_local(ECHO) {
            self.echo(byte, echo);
            self.put(b"\n", echo);
            let line = core::mem::take(&mut self.line);
            self.line_column = self.column;
            line.iter().for_each(|&byte| self.echo(byte, echo));
            self.line = line;
        } else if self.termios.is(byte, VEOF) {
            self.end_line();
        } else if byte == b'\n' {
            if self.room(echo) {
                if self.termios.has_local(ECHO) || self.termios.has_local(ECHONL) {
                    self.put(b"\n", echo);
                }
                self.line.push(byte);
                self.end_line();
            }
        } else if self.termios.is(byte, VEOL) || extended && self.termios.is(byte, VEOL2) {
            self.insert(byte, echo);
            self.end_line();
        } else if self.line.len() + 1 < MAX_INPUT {
            self.insert(byte, echo);
        } else {
            self.bell(echo);
        }
    }

    fn end_line(&mut self) {
        self.lines.push_back(self.line.len());
        self.ready.extend(self.line.drain(..));
    }

    /// Adds a byte to what is typed.
    fn insert(&mut self, byte: u8, echo: &mut Vec<u8>) {
        if !self.room(echo) {
            return;
        }
        if self.canonical() {
            if self.line.is_empty() {
                self.line_column = self.column;
            }
            self.line.push(byte);
        } else {
            self.ready.push_back(byte);
        }
        self.echo(byte, echo);
    }

    fn room(&mut self, echo: &mut Vec<u8>) -> bool {
        let room = self.ready.len() + self.line.len() < MAX_INPUT;
        if !room {
            self.bell(echo);
        }
        room
    }

    fn bell(&mut self, echo: &mut Vec<u8>) {
        if self.termios.input & IMAXBEL != 0 {
            echo.push(BELL);
        }
    }

    /// Takes characters off the end of the line.
    fn erase(&mut self, count: usize, echo: &mut Vec<u8>) {
        for _ in 0..count {
            let continued = |byte: u8| self.termios.input & IUTF8 != 0 && byte & 0xc0 == 0x80;
            let tail = self
                .line
                .iter()
                .rev()
                .take_while(|&&byte| continued(byte))
                .count();
            let Some(keep) = self.line.len().checked_sub(tail + 1) else {
                self.line.clear();
                return;
            };
            let erased = self.line[keep];
            self.line.truncate(keep);
            if !self.termios.has_local(ECHO) {
                continue;
            }
            if self.termios.has_local(ECHOE) {
                let mut column = self.line_column;
                for &byte in &self.line {
                    column = self.after_echo(column, byte);
                }
                for _ in column..self.column {
                    echo.extend_from_slice(b"\x08 \x08");
                }
                self.column = column;
            } else {
                self.echo(erased, echo);
            }
        }
    }

    fn kill(&mut self, byte: u8, echo: &mut Vec<u8>) {
        let visible = [ECHO, ECHOE, ECHOK, ECHOKE]
            .iter()
            .all(|&flag| self.termios.has_local(flag));
        if visible {
            while !self.line.is_empty() {
                self.erase(1, echo);
            }
            return;
        }
        self.line.clear();
        self.echo(byte, echo);
        if self.termios.has_local(ECHOK) && self.termios.has_local(ECHO) {
            self.put(b"\n", echo);
        }
    }

    /// Returns whether a byte is echoed as `^X`.
    fn shown_as_control(&self, byte: u8) -> bool {
        self.termios.has_local(ECHOCTL)
            && (byte < 0x20 || byte == 0x7f)
            && !matches!(byte, b'\t' | b'\n')
    }

    /// Echoes a byte, if typing is to be seen.
    fn echo(&mut self, byte: u8, echo: &mut Vec<u8>) {
        if !self.termios.has_local(ECHO) {
            return;
        }
        if self.shown_as_control(byte) {
            self.put(&[b'^', byte ^ 0x40], echo);
        } else {
            self.put(&[byte], echo);
        }
    }

    /// Returns the cursor's column after the echo of a byte.
    fn after_echo(&self, column: usize, byte: u8) -> usize {
        if self.shown_as_control(byte) {
            column + 2
        } else {
            self.after(column, byte)
        }
    }

    /// Returns the cursor's column after a byte.
    fn after(&self, column: usize, byte: u8) -> usize {
        match byte {
            b'\r' => 0,
            b'\t' => (column / TAB + 1) * TAB,
            8 => column.saturating_sub(1),
            byte if byte < 0x20 || byte == 0x7f => column,
            byte if byte & 0xc0 == 0x80 && self.termios.input & IUTF8 != 0 => column,
            _ => column + 1,
        }
    }

    /// Passes output on, as the settings say.
    pub(crate) fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let flags = self.termios.output;
        let has = |flag: u32| flags & flag != 0;
        for &byte in bytes {
            if !has(OPOST) {
                self.column = self.after(self.column, byte);
                out.push(byte);
                continue;
            }
            match byte {
                b'\n' => {
                    if has(ONLCR) {
                        out.push(b'\r');
                    }
                    out.push(b'\n');
                    if has(ONLCR) || has(ONLRET) {
                        self.column = 0;
                    }
                }
                b'\r' if has(ONOCR) && self.column == 0 => {}
                b'\r' if has(OCRNL) => {
                    out.push(b'\n');
                    if has(ONLRET) {
                        self.column = 0;
                    }
                }
                b'\t' if flags & XTABS == XTABS => {
                    let next = self.after(self.column, byte);
                    out.resize(out.len() + next - self.column, b' ');
                    self.column = next;
                }
                byte => {
                    self.column = self.after(self.column, byte);
                    out.push(byte);
                }
            }
        }
    }

    /// Returns the bytes that the next read could give.
    pub(crate) fn readable(&self) -> usize {
        if self.canonical() {
            self.lines.front().copied().unwrap_or(0)
        } else {
            self.ready.len()
        }
    }

    /// Returns whether a read would not wait.
    pub(crate) fn is_ready(&self) -> bool {
        if self.canonical() {
            return !self.lines.is_empty();
        }
        // As Linux's poll: VMIN counts only without a timer.
        let least = match (self.termios.chars[VTIME], self.termios.chars[VMIN]) {
            (0, least @ 1..) => usize::from(least),
            _ => 1,
        };
        self.ready.len() >= least
    }

    /// Returns the tenths of a second that a read waits for the next byte, if its timer runs now.
    pub(crate) fn timer(&self) -> Option<u8> {
        let [tenths, least] = [VTIME, VMIN].map(|place| self.termios.chars[place]);
        let runs = !self.canonical() && tenths > 0 && (least == 0 || !self.ready.is_empty());
        runs.then_some(tenths)
    }

    /// Reads: a line, or in raw mode what there is; `None` if that would wait. With `late` the wait
    /// is over: what there is counts.
    pub(crate) fn read(&mut self, into: &mut [u8], late: bool) -> Option<usize> {
        if into.is_empty() {
            return Some(0);
        }
        let count = if self.canonical() {
            let line = self.lines.front_mut()?;
            let count = (*line).min(into.len());
            *line -= count;
            // An empty line is an end of file, which is read once.
            if *line == 0 {
                self.lines.pop_front();
            }
            count
        } else {
            let [tenths, least] = [VTIME, VMIN].map(|place| self.termios.chars[place]);
            let enough = usize::from(least).min(into.len());
            let waits = if least == 0 {
                tenths > 0 && self.ready.is_empty()
            } else {
                self.ready.len() < enough
            };
            if waits && !late {
                return None;
            }
            self.ready.len().min(into.len())
        };
        for (place, byte) in into.iter_mut().zip(self.ready.drain(..count)) {
            *place = byte;
        }
        Some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use alloc::vec;
    use proptest::prelude::*;

    fn typed(discipline: &mut Discipline, text: &[u8]) -> (String, Vec<u8>) {
        let mut echo = Vec::new();
        let signals = text
            .iter()
            .filter_map(|&byte| discipline.type_byte(byte, &mut echo))
            .collect();
        (String::from_utf8_lossy(&echo).into_owned(), signals)
    }

    fn read(discipline: &mut Discipline, len: usize) -> Option<String> {
        let mut into = vec![0; len];
        let count = discipline.read(&mut into, false)?;
        Some(String::from_utf8_lossy(&into[..count]).into_owned())
    }

    fn with(change: impl FnOnce(&mut Termios)) -> Discipline {
        let mut discipline = Discipline::default();
        let mut termios = *discipline.termios();
        change(&mut termios);
        discipline.set_termios(termios);
        discipline
    }

    #[test]
    fn lines_are_edited_echoed_and_read_one_at_a_time() {
        let mut d = Discipline::default();
        let (echo, _) = typed(&mut d, b"abx\x7fc\r");
        assert_eq!(echo, "abx\x08 \x08c\r\n");
        typed(&mut d, b"two words\x17\x17\x17three\nrest");
        assert_eq!(read(&mut d, 2).as_deref(), Some("ab"));
        assert_eq!(read(&mut d, 100).as_deref(), Some("c\n"));
        assert_eq!(read(&mut d, 100).as_deref(), Some("three\n"));
        assert_eq!(read(&mut d, 100), None);
        let (echo, _) = typed(&mut d, b"\x15");
        assert_eq!(echo, "\x08 \x08".repeat(4));
        typed(&mut d, b"x\x16\x03\n");
        assert_eq!(
            read(&mut d, 100).as_deref(),
            Some("x\x03\n"),
            "literal next"
        );
    }

    #[test]
    fn erasing_knows_tabs_control_characters_and_utf_8() {
        let mut d = Discipline::default();
        typed(&mut d, "ab\t".as_bytes());
        assert_eq!(typed(&mut d, b"\x7f").0, "\x08 \x08".repeat(6));
        assert_eq!(typed(&mut d, b"\x01\x7f").0, "^A\x08 \x08\x08 \x08");
        assert_eq!(typed(&mut d, "ü\x7f".as_bytes()).0, "ü\x08 \x08");
        assert_eq!(
            typed(&mut d, b"\x7f\x7f\x7f\x7f").0,
            "\x08 \x08".repeat(2),
            "no further than the line"
        );
    }

    #[test]
    fn an_end_of_file_is_read_once_and_ends_a_line_without_a_feed() {
        let mut d = Discipline::default();
        typed(&mut d, b"part\x04\x04");
        assert_eq!(read(&mut d, 100).as_deref(), Some("part"));
        assert!(d.is_ready());
        assert_eq!(read(&mut d, 100).as_deref(), Some(""));
        assert_eq!((read(&mut d, 100), d.is_ready()), (None, false));
    }

    #[test]
    fn signals_flush_what_was_typed_and_can_be_switched_off() {
        let mut d = Discipline::default();
        assert_eq!(
            typed(&mut d, b"lost\x03\x1c\x1a"),
            ("lost^C^\\^Z".into(), vec![2, 3, 20])
        );
        typed(&mut d, b"kept\n");
        assert_eq!(read(&mut d, 100).as_deref(), Some("kept\n"));
        let mut d = with(|termios| termios.local &= !ISIG);
        assert_eq!(typed(&mut d, b"\x03\n").1, []);
        assert_eq!(read(&mut d, 100).as_deref(), Some("\x03\n"));
    }

    #[test]
    fn raw_mode_follows_vmin_and_vtime() {
        let raw = |least, tenths| {
            with(|termios| {
                termios.local = 0;
                termios.input = 0;
                (termios.chars[VMIN], termios.chars[VTIME]) = (least, tenths);
            })
        };
        let mut d = raw(3, 0);
        assert_eq!(typed(&mut d, b"\x03\r"), (String::new(), vec![]));
        assert_eq!((read(&mut d, 10), d.is_ready()), (None, false));
        assert_eq!(
            read(&mut d, 2).as_deref(),
            Some("\x03\r"),
            "no more is asked for"
        );
        assert_eq!(read(&mut raw(0, 0), 10).as_deref(), Some(""));
        let mut d = raw(0, 5);
        assert_eq!((read(&mut d, 10), d.timer()), (None, Some(5)));
        assert_eq!(d.read(&mut [0; 4], true), Some(0), "late");
        let mut d = raw(2, 5);
        assert_eq!(d.timer(), None, "it begins with the first byte");
        typed(&mut d, b"x");
        assert_eq!((d.timer(), d.read(&mut [0; 4], true)), (Some(5), Some(1)));
    }

    #[test]
    fn what_was_typed_survives_a_change_of_mode() {
        let mut d = Discipline::default();
        typed(&mut d, b"one\ntw");
        let (canonical, mut raw) = (*d.termios(), *d.termios());
        raw.local &= !ICANON;
        d.set_termios(raw);
        assert_eq!(read(&mut d, 5).as_deref(), Some("one\nt"));
        d.set_termios(canonical);
        assert_eq!(read(&mut d, 5).as_deref(), Some("w"));
    }

    #[test]
    fn output_is_processed_as_the_flags_say() {
        let put = |output: u32, text: &[u8]| {
            let mut out = Vec::new();
            with(|termios| termios.output = output).put(text, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(put(OPOST | ONLCR, b"a\nb\r"), "a\r\nb\r");
        assert_eq!(put(0, b"a\nb"), "a\nb");
        assert_eq!(put(OPOST | XTABS, b"ab\tc"), "ab      c");
        assert_eq!(put(OPOST | OCRNL, b"a\r"), "a\n");
        assert_eq!(put(OPOST | ONOCR, b"\ra\r"), "a\r");
    }

    #[test]
    fn output_stops_and_starts() {
        let mut d = Discipline::default();
        assert_eq!(typed(&mut d, b"\x13").0, "");
        assert!(d.stopped());
        typed(&mut d, b"\x11");
        assert!(!d.stopped());
    }

    proptest! {
        #[test]
        fn no_typing_panics_or_grows_without_bound(
            keys in prop::collection::vec(any::<u8>(), 0..6000),
            flags: [u32; 3],
            chars: [u8; 19],
        ) {
            let mut d = with(|termios| {
                [termios.input, termios.output, termios.local] = flags;
                termios.chars = chars;
            });
            let mut echo = Vec::new();
            for key in keys {
                d.type_byte(key, &mut echo);
                echo.clear();
                if key == 0x55 {
                    d.read(&mut [0; 7], key & 1 == 0);
                }
            }
            prop_assert!(d.ready.len() + d.line.len() <= MAX_INPUT);
            if d.canonical() {
                prop_assert_eq!(d.lines.iter().sum::<usize>(), d.ready.len());
            }
        }
    }
}
