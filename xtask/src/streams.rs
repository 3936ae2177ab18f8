//! `streams`: the other end of a real serial line to P, which has its program's streams on it.
//!
//! The protocol is [`console`]'s, over [`console::Line`], as between `run` and QEMU's port
//! (`docs/decisions/0174-streams-over-serial.md`).

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write, stderr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::spawn;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::OFlags;
use rustix::termios::{ControlModes, OptionalActions, isatty, tcgetattr, tcsetattr};

use crate::bed::{self, FAILED, INTERRUPTED, INTERRUPTED_STATUS};
use crate::run::console::{BlockingFile, Channel, Streams};
use crate::run::start;

/// Bits a second of a line, as P sets its port (`libos/src/dev/uart.rs`).
const SPEED: u32 = 115_200;
/// Poll interval of the line's end.
const PAUSE: Duration = Duration::from_millis(20);
/// Time that the kernel log has after the program's end to tell the exit status.
const LAST_LINES: Duration = Duration::from_secs(10);
/// Start of the line of P's log that tells the exit status.
const EXIT: &str = "report\texit\t";

/// Gives a program on a real machine its streams, over the serial line to P
///
/// P takes the line by its option `streams=serial`, at 115200 8N1 without flow control. Exit
/// status: with --log the program's, else 0; 125 if the line fails, 130 after Ctrl-C.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// This machine's serial port at the line, such as /dev/ttyS0
    #[arg(long, value_name = "PORT")]
    port: PathBuf,
    /// The serial port with P's kernel log, which goes to standard error then, and tells the exit
    /// status
    #[arg(long, value_name = "PORT")]
    log: Option<PathBuf>,
    /// Sets a variable in the program's environment (repeatable; the last of a name counts)
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<OsString>,
    /// The program's working folder
    #[arg(long, value_name = "FOLDER", default_value = "/")]
    workdir: PathBuf,
    /// The user that the program runs as, as for `run`
    #[arg(
        long,
        value_name = "USER",
        default_value = "",
        hide_default_value = true
    )]
    user: String,
    /// The program and its arguments; none if P's command line names it
    #[arg(last = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

pub(crate) fn main(args: &Args) -> ExitCode {
    let streams = start::streams(None, None, None);
    match bed::handle_signals().and_then(|()| args.run(streams?)) {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("error: {error:#}");
            FAILED.into()
        }
    }
}

impl Args {
    /// Serves the line until the program has ended; returns the exit status.
    fn run(&self, streams: Streams) -> Result<u8> {
        let port = open(&self.port)?;
        let status = self.log.as_deref().map(follow_log).transpose()?;
        let folder = self.workdir.as_os_str();
        let mut start = start::start(&self.program, &self.env, folder, &self.user);
        start.sources = start::sources(None);
        let server = Channel::on_port(port)?.serve(start, streams)?;
        while !server.has_ended() {
            if INTERRUPTED.load(Ordering::Relaxed) {
                return Ok(INTERRUPTED_STATUS);
            }
            ensure!(
                !server.is_lost(),
                "{}: the line ended before the program did",
                self.port.display()
            );
            std::thread::sleep(PAUSE);
        }
        // What P is to hear last is brought to it before the line is let go.
        server.hang_up();
        server.finish()?;
        status.map_or(Ok(0), |status| exit_status(&status))
    }
}

/// Opens a serial port and sets it up.
fn open(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags((OFlags::NOCTTY | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)
        .with_context(|| format!("can't open {}", path.display()))?;
    ensure!(
        isatty(&file),
        "{} is no serial port: it has no settings of a line",
        path.display()
    );
    let set_up = || {
        let mut settings = tcgetattr(&file)?;
        settings.make_raw();
        settings.control_modes |= ControlModes::CREAD | ControlModes::CLOCAL;
        settings.control_modes -= ControlModes::CRTSCTS | ControlModes::CSTOPB;
        settings.set_speed(SPEED)?;
        tcsetattr(&file, OptionalActions::Now, &settings)
    };
    set_up().with_context(|| format!("can't set {} to {SPEED} 8N1", path.display()))?;
    Ok(file)
}

/// Copies P's log to standard error; the receiver gets the exit status that it tells.
fn follow_log(path: &Path) -> Result<Receiver<u8>> {
    let mut from = BlockingFile(open(path)?);
    let (sender, status) = channel();
    spawn(move || {
        let (mut line, mut piece) = (Vec::new(), [0; 1024]);
        loop {
            let count = match from.read(&mut piece) {
                Ok(0) => return,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let _ = stderr().write_all(&piece[..count]);
            for &byte in &piece[..count] {
                match byte {
                    b'\n' => {
                        if let Some(code) = told(&line) {
                            let _ = sender.send(code);
                        }
                        line.clear();
                    }
                    // A longer line is none that is looked for.
                    _ if line.len() < 256 => line.push(byte),
                    _ => {}
                }
            }
        }
    });
    Ok(status)
}

/// Returns the exit status that a line of the log tells.
fn told(line: &[u8]) -> Option<u8> {
    let line = std::str::from_utf8(line).ok()?;
    line.trim_end().strip_prefix(EXIT)?.parse().ok()
}

fn exit_status(told: &Receiver<u8>) -> Result<u8> {
    let end = Instant::now() + LAST_LINES;
    loop {
        match told.recv_timeout(PAUSE) {
            Ok(code) => return Ok(code),
            Err(RecvTimeoutError::Disconnected) => bail!("the log ended without an exit status"),
            Err(RecvTimeoutError::Timeout) if INTERRUPTED.load(Ordering::Relaxed) => {
                return Ok(INTERRUPTED_STATUS);
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() > end => {
                bail!("the log told no exit status within {LAST_LINES:?}")
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use console::{Frame, Output, Start};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    use super::*;
    use crate::fakes::{Guest, Sink};
    use crate::run::serial::bridge;

    /// Makes a serial line: P's end, the path of this machine's port, and what keeps it a line
    /// while nobody has it open.
    fn line() -> (File, PathBuf, File) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a line");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        let name = ptsname(&master, Vec::new()).expect("a name");
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(name.as_bytes()));
        let kept = open(&path).expect("a port");
        (File::from(master), path, kept)
    }

    fn args(port: &Path, log: Option<PathBuf>) -> Args {
        Args {
            port: port.into(),
            log,
            env: vec!["A=1".into()],
            workdir: "/data".into(),
            user: String::new(),
            program: ["cat", "-"].map(OsString::from).to_vec(),
        }
    }

    fn streams(input: Vec<u8>, outputs: [&Sink; 2]) -> Streams {
        let [out, err] = outputs.map(Clone::clone);
        let sink = || Box::new(std::io::sink());
        Streams {
            input: Box::new(std::io::Cursor::new(input)),
            outputs: [Box::new(out), Box::new(err), sink(), sink(), sink()],
            typed: false,
        }
    }

    #[test]
    fn a_program_has_its_streams_over_a_line() {
        let (port, path, _kept) = line();
        let (mut log, log_path, _log_kept) = line();
        // Boot messages of firmware and a loader are no frames.
        (&port)
            .write_all(b"\r\nBIOS \x7e\x01\x02~~\xff")
            .expect("noise");
        let (out, err) = (Sink::default(), Sink::default());
        let input: Vec<u8> = (0..30_000_u32)
            .map(|at| (at / 3).to_le_bytes()[0])
            .collect();
        let streams = streams(input.clone(), [&out, &err]);
        let args = args(&path, Some(log_path));
        let host = spawn(move || args.run(streams));
        let mut guest = Guest::new(bridge(port).expect("a bridge"));
        let Frame::Start(Start { args, folder, .. }) = guest.next() else {
            panic!("no start")
        };
        assert_eq!(
            (args, folder),
            (vec![b"cat".to_vec(), b"-".to_vec()], b"/data".to_vec())
        );
        let mut came = Vec::new();
        loop {
            guest.send(&Frame::Want(4096));
            match guest.next() {
                Frame::Input(bytes) => came.extend(bytes),
                Frame::InputEnd(0) => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(came == input);
        guest.send(&Frame::Output(Output::Stdout, came));
        guest.send(&Frame::Output(Output::Stderr, b"warning".to_vec()));
        guest.send(&Frame::Finish);
        assert_eq!(guest.next(), Frame::Done);
        log.write_all(b"[ 1.0] INFO off\r\nreport\texit\t7\r\n")
            .expect("a log");
        let status = host.join().expect("the host ends");
        assert_eq!(status.expect("a status"), 7);
        assert!(out.bytes() == input);
        assert_eq!(err.bytes(), b"warning");
    }

    #[test]
    fn a_line_that_ends_is_an_error() {
        let (port, path, _kept) = line();
        let sinks = (Sink::default(), Sink::default());
        let streams = streams(Vec::new(), [&sinks.0, &sinks.1]);
        let args = args(&path, None);
        let host = spawn(move || args.run(streams));
        let mut guest = Guest::new(bridge(port).expect("a bridge"));
        assert!(matches!(guest.next(), Frame::Start(_)));
        drop(guest);
        let error = host
            .join()
            .expect("the host ends")
            .expect_err("no end of a program");
        assert!(
            format!("{error:#}").contains("before the program did"),
            "{error:#}"
        );
    }

    #[test]
    fn what_is_no_serial_port_is_refused() {
        let error = open(Path::new("/dev/null")).expect_err("no port");
        assert!(error.to_string().contains("no serial port"), "{error}");
        assert!(open(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn the_exit_status_is_a_line_of_the_log() {
        assert_eq!(told(b"report\texit\t137\r"), Some(137));
        for line in [
            &b"report\texit\t"[..],
            b"report\texit\t256",
            b"x report\texit\t1",
            b"\xff",
        ] {
            assert_eq!(told(line), None, "{line:?}");
        }
    }
}
