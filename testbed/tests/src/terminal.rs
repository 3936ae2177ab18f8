//! A program on a pseudo-terminal of the host, as a person at a keyboard uses it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// Deadline of an answer: long enough for a cluster's boot on a busy machine.
const PATIENCE: Duration = Duration::from_secs(150);

/// A program with a terminal of its own.
pub struct Terminal {
    child: Child,
    master: File,
    slave: OwnedFd,
    shown: Receiver<Vec<u8>>,
    /// Text that was shown and not yet matched.
    unread: String,
}

impl Terminal {
    /// Starts a command on a new terminal that controls its session.
    ///
    /// # Panics
    /// If there is no terminal to be had.
    #[must_use]
    pub fn start(command: &Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("a terminal");
        grantpt(&master)
            .and_then(|()| unlockpt(&master))
            .expect("a terminal");
        let name = ptsname(&master, Vec::new()).expect("its name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = open(name.as_c_str(), flags, Mode::empty()).expect("its other end");
        let end = || Stdio::from(slave.try_clone().expect("a descriptor"));
        // `setsid` of util-linux makes the terminal the controlling one, and becomes the command.
        let mut launched = Command::new("setsid");
        launched
            .args(["--ctty", "--wait"])
            .arg(command.get_program())
            .args(command.get_args());
        launched.stdin(end()).stdout(end()).stderr(end());
        let child = launched.spawn().expect("setsid starts");
        let master = File::from(master);
        let (sender, shown) = channel();
        let mut from = master.try_clone().expect("a descriptor");
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let unread = String::new();
        let terminal = Self {
            child,
            master,
            slave,
            shown,
            unread,
        };
        terminal.resize(24, 80);
        terminal
    }

    /// Waits until a text is shown; returns what was shown before it.
    ///
    /// # Panics
    /// If it does not come.
    pub fn expect(&mut self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.unread.find(text) {
                let before = self.unread[..at].to_owned();
                self.unread.drain(..at + text.len());
                return before;
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.shown.recv_timeout(left) {
                Ok(bytes) => self.unread += &String::from_utf8_lossy(&bytes),
                Err(_) => panic!("{text:?} was not shown, but {:?}", self.unread),
            }
        }
    }

    /// Types.
    ///
    /// # Panics
    /// If the terminal is gone.
    pub fn keys(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("a terminal");
    }

    /// Changes the window's size.
    ///
    /// # Panics
    /// If the terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).expect("a terminal");
    }

    /// Returns whether the terminal edits lines and echoes, as it does before and after a program
    /// that makes it raw.
    ///
    /// # Panics
    /// If the terminal is gone.
    #[must_use]
    pub fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.slave).expect("a terminal").local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Returns the program that has the terminal, for signals.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// If it does not come.
    pub fn end(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(
                Instant::now() < end,
                "it does not end, and shows {:?}",
                self.unread
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
