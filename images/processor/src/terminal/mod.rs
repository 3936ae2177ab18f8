//! Terminals: what is typed into one becomes a program's input, what programs write is shown.
//!
//! * [`termios`]: settings. * [`discipline`]: editing, echo, signals. * [`pty`]: pseudo-terminals.
//!
//! [`Terminal`] joins them with a queue of output, a window, and the session that the terminal
//! controls. Who is at its other end (the console channel, or the master of a pty) types into it
//! and takes its output. Signals that it causes are noted in [`Terminals`] and sent by whoever has
//! no lock.

pub(crate) mod discipline;
pub(crate) mod pty;
pub(crate) mod termios;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use console::Window;
use spin::Mutex;

use self::discipline::Discipline;
use self::termios::{TOSTOP, Termios};
use crate::error::{Result, errno};
use crate::object::{Object, POLL_ERR, POLL_HUP, POLL_IN, POLL_OUT, POLL_RDNORM, POLL_WRNORM};
use crate::signals::{SIGCONT, SIGHUP, SIGWINCH};
use crate::wait::WaitQueue;

/// Bytes of output that wait to be shown at most.
const MAX_OUTPUT: usize = 32 << 10;
/// Room that is kept for echo beyond it.
const MAX_ECHO: usize = 8 << 10;
/// The most bytes that one byte of output becomes: a tab's spaces.
const MOST_FOR_ONE: usize = 8;
/// Bytes that are processed at once.
const PIECE: usize = 4096;

/// Receivers of a terminal's signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum To {
    /// A process group.
    Group(u32),
    /// A process.
    Process(u32),
}

/// The node's terminals, and the signals that they cause.
#[derive(Debug, Default)]
pub(crate) struct Terminals {
    /// Pseudo-terminals by number.
    ptys: Mutex<BTreeMap<u32, Weak<Terminal>>>,
    console: Mutex<Option<Arc<Terminal>>>,
    signals: Mutex<Vec<(To, u8)>>,
    due: AtomicBool,
}

impl Terminals {
    fn signal(&self, to: To, signal: u8) {
        let mut signals = self.signals.lock();
        // Signals of this kind are pending once: a flood of one adds nothing.
        if !signals.contains(&(to, signal)) {
            signals.push((to, signal));
        }
        self.due.store(true, Ordering::Release);
    }

    /// Returns whether there are signals to send.
    pub(crate) fn due(&self) -> bool {
        self.due.load(Ordering::Acquire)
    }

    /// Takes the signals to send.
    pub(crate) fn take_signals(&self) -> Vec<(To, u8)> {
        self.due.store(false, Ordering::Release);
        core::mem::take(&mut *self.signals.lock())
    }

    /// Makes the terminal at the other end of the console channel.
    pub(crate) fn add_console(self: &Arc<Self>, window: Window) -> Arc<Terminal> {
        let terminal = Arc::new(Terminal::new(self.clone(), Name::Console));
        terminal.state.lock().window = window;
        *self.console.lock() = Some(terminal.clone());
        terminal
    }

    /// Returns the console's terminal, if it is one.
    pub(crate) fn console(&self) -> Option<Arc<Terminal>> {
        self.console.lock().clone()
    }

    /// Returns a pseudo-terminal by its number.
    pub(crate) fn pty(&self, number: u32) -> Option<Arc<Terminal>> {
        self.ptys.lock().get(&number).and_then(Weak::upgrade)
    }

    /// Returns the terminal that controls a session.
    pub(crate) fn of_session(&self, session: u32) -> Option<Arc<Terminal>> {
        let console = self.console();
        let ptys: Vec<_> = self
            .ptys
            .lock()
            .values()
            .filter_map(Weak::upgrade)
            .collect();
        let mut all = console.into_iter().chain(ptys);
        all.find(|terminal| terminal.jobs().session == session)
    }

    /// Detaches a session's terminal after its leader's end. The foreground group gets SIGHUP
    /// and SIGCONT.
    pub(crate) fn leave_session(&self, session: u32) {
        if let Some(terminal) = self.of_session(session) {
            let group = terminal.jobs().group;
            for signal in [SIGHUP, SIGCONT] {
                self.signal(To::Group(group), signal);
            }
            terminal.set_jobs(Jobs::default());
        }
    }
}

/// Name of a terminal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Name {
    /// `/dev/console`.
    Console,
    /// `/dev/pts/N`.
    Pty(u32),
}

impl Name {
    /// Returns the device's number (Linux `Documentation/admin-guide/devices.txt`: 5:1, and 136
    /// on).
    pub(crate) fn device(self) -> u64 {
        match self {
            Self::Console => 0x501,
            Self::Pty(number) => 136 << 8 | u64::from(number),
        }
    }
}

/// The session that a terminal controls, and its foreground group; 0 for none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Jobs {
    pub(crate) session: u32,
    pub(crate) group: u32,
}

/// A terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    terminals: Arc<Terminals>,
    pub(crate) name: Name,
    state: Mutex<State>,
    /// Woken when programs may read or write again.
    pub(crate) changed: WaitQueue,
    /// Woken when there is output, or room for typing.
    pub(crate) other_end: WaitQueue,
    /// Open ends on the programs' side.
    users: AtomicU32,
}

#[derive(Debug, Default)]
struct State {
    discipline: Discipline,
    output: VecDeque<u8>,
    window: Window,
    jobs: Jobs,
    /// The other end is closed.
    hung_up: bool,
    /// A pty that can't be opened yet.
    locked: bool,
    /// Somebody has opened it.
    was_used: bool,
}

impl Terminal {
    fn new(terminals: Arc<Terminals>, name: Name) -> Self {
        Self {
            terminals,
            name,
            state: Mutex::default(),
            changed: WaitQueue::default(),
            other_end: WaitQueue::default(),
            users: AtomicU32::new(0),
        }
    }

    /// Returns the settings.
    pub(crate) fn termios(&self) -> Termios {
        *self.state.lock().discipline.termios()
    }

    /// Changes the settings; with `flush` what was typed is forgotten.
    pub(crate) fn set_termios(&self, termios: Termios, flush: bool) {
        {
            let mut state = self.state.lock();
            if flush {
                state.discipline.flush();
            }
            state.discipline.set_termios(termios);
        }
        self.wake_all();
    }

    fn wake_all(&self) {
        self.changed.wake();
        self.other_end.wake();
    }

    /// Returns whether output of background jobs stops them.
    pub(crate) fn stops_writers(&self) -> bool {
        self.termios().has_local(TOSTOP)
    }

    /// Returns the session and its foreground group.
    pub(crate) fn jobs(&self) -> Jobs {
        self.state.lock().jobs
    }

    pub(crate) fn set_jobs(&self, jobs: Jobs) {
        self.state.lock().jobs = jobs;
    }

    /// Returns the window.
    pub(crate) fn window(&self) -> Window {
        self.state.lock().window
    }

    /// Changes the window's size; the foreground group gets SIGWINCH.
    pub(crate) fn set_window(&self, window: Window) {
        let group = {
            let mut state = self.state.lock();
            let changed = core::mem::replace(&mut state.window, window) != window;
            changed.then_some(state.jobs.group)
        };
        if let Some(group) = group.filter(|&group| group != 0) {
            self.terminals.signal(To::Group(group), SIGWINCH);
        }
    }

    /// Takes typed bytes; returns how many there was room for.
    pub(crate) fn type_bytes(&self, bytes: &[u8]) -> usize {
        let mut typed = 0;
        {
            let mut state = self.state.lock();
            let mut echo = Vec::new();
            for &byte in bytes {
                if !state.discipline.has_room() {
                    break;
                }
                typed += 1;
                if let Some(signal) = state.discipline.type_byte(byte, &mut echo)
                    && state.jobs.group != 0
                {
                    self.terminals.signal(To::Group(state.jobs.group), signal);
                }
                // Echo that nobody takes is lost, as Linux does.
                if state.output.len() + echo.len() > MAX_OUTPUT + MAX_ECHO {
                    echo.clear();
                }
                state.output.extend(echo.drain(..));
            }
        }
        self.wake_all();
        typed
    }

    /// Moves output that is to be shown to the end of `into`, `most` bytes at most; returns how
    /// many.
    pub(crate) fn take_output(&self, into: &mut Vec<u8>, most: usize) -> usize {
        let count = {
            let mut state = self.state.lock();
            if state.discipline.stopped() {
                return 0;
            }
            let count = state.output.len().min(most);
            into.extend(state.output.drain(..count));
            count
        };
        if count > 0 {
            self.changed.wake();
        }
        count
    }

    /// Notes that nobody is at the other end any more: reads end, writes fail, the session hears of
    /// it.
    pub(crate) fn hang_up(&self) {
        let jobs = {
            let mut state = self.state.lock();
            state.hung_up = true;
            core::mem::take(&mut state.jobs)
        };
        if jobs.session != 0 {
            for signal in [SIGHUP, SIGCONT] {
                self.terminals.signal(To::Process(jobs.session), signal);
                self.terminals.signal(To::Group(jobs.group), signal);
            }
        }
        self.wake_all();
    }

    /// Forgets the input of a side that was not read, or its output that was not shown, or both.
    ///
    /// Neither side of a pseudo-terminal has output to forget: it is the other side's input at once
    /// (Linux moves it on by a work queue, `drivers/tty/pty.c`).
    pub(crate) fn flush(&self, side: Side, input: bool, output: bool) {
        {
            let mut state = self.state.lock();
            let is_pty = matches!(self.name, Name::Pty(_));
            if input && side == Side::Program {
                state.discipline.flush();
            }
            if input && side == Side::Master || output && !is_pty {
                state.output.clear();
            }
        }
        self.wake_all();
    }

    /// Stops or continues output.
    pub(crate) fn stop(&self, stopped: bool) {
        self.state.lock().discipline.stop(stopped);
        self.wake_all();
    }

    /// Returns how many bytes wait to be shown.
    pub(crate) fn unshown(&self) -> usize {
        self.state.lock().output.len()
    }

    /// Reads; `None` if that would wait. With `late` the timer of the read has run out.
    pub(crate) fn read(&self, into: &mut [u8], late: bool) -> Option<usize> {
        let mut state = self.state.lock();
        let got = state.discipline.read(into, late);
        let got = if state.hung_up {
            Some(got.unwrap_or(0))
        } else {
            got
        };
        drop(state);
        if got.is_some_and(|count| count > 0) {
            self.other_end.wake();
        }
        got
    }

    /// Returns how many bytes a read would give, and the tenths of a second that its timer runs.
    pub(crate) fn waiting(&self) -> (usize, Option<u8>) {
        let state = self.state.lock();
        (state.discipline.readable(), state.discipline.timer())
    }

    fn write(&self, from: &[u8]) -> Result<usize> {
        let count = {
            let mut state = self.state.lock();
            if state.hung_up {
                return Err(errno::EIO.into());
            }
            if from.is_empty() {
                return Ok(0);
            }
            let room = MAX_OUTPUT.saturating_sub(state.output.len()) / MOST_FOR_ONE;
            let count = room.min(from.len()).min(PIECE);
            if count == 0 || state.discipline.stopped() {
                return Err(errno::EAGAIN.into());
            }
            let mut shown = Vec::new();
            state.discipline.put(&from[..count], &mut shown);
            state.output.extend(shown);
            count
        };
        self.other_end.wake();
        Ok(count)
    }

    fn ready(&self) -> u16 {
        let state = self.state.lock();
        if state.hung_up {
            return POLL_IN | POLL_RDNORM | POLL_OUT | POLL_WRNORM | POLL_HUP | POLL_ERR;
        }
        let input = if state.discipline.is_ready() {
            POLL_IN | POLL_RDNORM
        } else {
            0
        };
        let room = state.output.len() < MAX_OUTPUT / 2 && !state.discipline.stopped();
        input | if room { POLL_OUT | POLL_WRNORM } else { 0 }
    }
}

/// An open end of a terminal on the programs' side.
#[derive(Debug)]
pub(crate) struct Tty(pub(crate) Arc<Terminal>);

impl Tty {
    /// Opens a terminal.
    ///
    /// # Errors
    ///
    /// EIO while the pty is locked, or if its other end is closed.
    pub(crate) fn open(terminal: &Arc<Terminal>) -> Result<Self> {
        let mut state = terminal.state.lock();
        if state.locked || state.hung_up {
            return Err(errno::EIO.into());
        }
        state.was_used = true;
        terminal.users.fetch_add(1, Ordering::AcqRel);
        Ok(Self(terminal.clone()))
    }
}

impl Drop for Tty {
    fn drop(&mut self) {
        if self.0.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.other_end.wake();
        }
    }
}

impl Object for Tty {
    fn read(&self, into: &mut [u8]) -> Result<usize> {
        self.0.read(into, false).ok_or_else(|| errno::EAGAIN.into())
    }
    fn write(&self, from: &[u8]) -> Result<usize> {
        self.0.write(from)
    }
    fn ready(&self) -> u16 {
        self.0.ready()
    }
    fn queue(&self) -> &WaitQueue {
        &self.0.changed
    }
    fn mode(&self) -> u32 {
        0o020_620
    }
    fn readable(&self) -> usize {
        self.0.waiting().0
    }
    fn device(&self) -> u64 {
        self.0.name.device()
    }
    fn as_terminal(&self) -> Option<(&Arc<Terminal>, Side)> {
        Some((&self.0, Side::Program))
    }
}

/// The side of a terminal that an open file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// Programs read what is typed.
    Program,
    /// The master of a pty types.
    Master,
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn terminal() -> (Arc<Terminals>, Arc<Terminal>) {
        let terminals = Arc::<Terminals>::default();
        let terminal = terminals.add_console(Window::default());
        terminal.set_jobs(Jobs {
            session: 1,
            group: 5,
        });
        (terminals, terminal)
    }

    fn shown(terminal: &Terminal) -> Vec<u8> {
        let mut shown = Vec::new();
        terminal.take_output(&mut shown, usize::MAX);
        shown
    }

    #[test]
    fn keys_signal_the_foreground_group_and_windows_tell_of_themselves() {
        let (terminals, terminal) = terminal();
        assert!(!terminals.due());
        terminal.type_bytes(b"\x03\x03\x1a");
        let window = Window {
            rows: 1,
            ..Window::default()
        };
        terminal.set_window(window);
        terminal.set_window(window);
        let group = To::Group(5);
        assert_eq!(
            terminals.take_signals(),
            [(group, 2), (group, 20), (group, SIGWINCH)]
        );
        terminal.hang_up();
        assert_eq!(terminals.take_signals()[0], (To::Process(1), SIGHUP));
        let tty = Tty::open(&terminal);
        assert_eq!(tty.map(drop), Err(errno::EIO.into()));
        assert_eq!(
            (terminal.read(&mut [0; 4], false), terminal.write(b"x")),
            (Some(0), Err(errno::EIO.into()))
        );
    }

    #[test]
    fn output_waits_for_its_reader_and_for_the_start_key() {
        let (_, terminal) = terminal();
        assert_eq!(terminal.write(b"a\n"), Ok(2));
        assert_eq!(shown(&terminal), b"a\r\n");
        terminal.type_bytes(b"\x13");
        assert_eq!(
            (terminal.write(b"b"), terminal.ready()),
            (Err(errno::EAGAIN.into()), 0)
        );
        terminal.type_bytes(b"\x11");
        let mut written = 0;
        while let Ok(count) = terminal.write(&[b'\n'; 1000]) {
            written += count;
        }
        assert!(written > 3000 && terminal.unshown() <= MAX_OUTPUT);
        assert_eq!(shown(&terminal).len(), 2 * written);
    }

    #[test]
    fn typing_stops_where_nobody_reads() {
        let (_, terminal) = terminal();
        let line = vec![b'x'; 99]
            .into_iter()
            .chain([b'\n'])
            .collect::<Vec<_>>();
        let typed: usize = (0..100).map(|_| terminal.type_bytes(&line)).sum();
        assert!((4000..4200).contains(&typed), "{typed}");
        assert_eq!(terminal.read(&mut [0; 200], false), Some(100));
        assert!(terminal.type_bytes(b"y") == 1);
    }
}
