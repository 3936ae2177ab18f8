//! The host's end of P's console channel: the program to run, input on request, output in order.
//!
//! QEMU gets one end of a socket pair as its standard input, so that nothing lies in the temporary
//! folder and no path bounds it. A reader that is slow here leaves bytes in the socket, QEMU stops
//! the port then, and the program waits as it would for a full pipe. See decision 0160.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use console::{Decoder, Frame, MAX_BYTES, Output, Start, Window};
use rustix::event::{PollFd, PollFlags, poll};

use crate::bed::INTERRUPTED;

/// Bytes read from the channel at once.
const PIECE: usize = 64 << 10;
/// Typed bytes read at once.
const TYPED: u32 = 1024;
/// The key (Ctrl-]) that ends a run when it is typed three times within a second, as
/// `systemd-nspawn` has it.
const ESCAPE: u8 = 0x1d;

/// The two ends before the cluster starts.
pub(crate) struct Channel {
    ours: UnixStream,
    theirs: OwnedFd,
}

/// Ends of the program's streams on this side.
pub(crate) struct Streams {
    /// Source of its input.
    pub(crate) input: Box<dyn Read + Send>,
    /// Targets of [`Output::ALL`].
    pub(crate) outputs: Outputs,
    /// The input is a terminal: it is read as soon as the program runs, as keys may be signals.
    pub(crate) typed: bool,
}

/// An output for each of [`Output::ALL`].
pub(crate) type Outputs = [Box<dyn Write + Send>; Output::ALL.len()];

/// The threads that serve the channel.
pub(crate) struct Server {
    wants: Sender<u32>,
    to: Arc<Mutex<UnixStream>>,
    /// The program has ended and all output is written.
    ended: Arc<AtomicBool>,
    reader: JoinHandle<Vec<(Output, std::io::Error)>>,
}

impl Channel {
    /// Makes the two ends.
    pub(crate) fn new() -> Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("can't make a pair of sockets")?;
        let theirs = theirs.into();
        Ok(Self { ours, theirs })
    }

    /// Returns QEMU's end, for its standard input.
    pub(crate) fn qemus_end(&self) -> Result<Stdio> {
        let end = self.theirs.try_clone();
        Ok(end.context("can't share a socket")?.into())
    }

    /// Has its bytes go over a serial port.
    pub(crate) fn over_serial(self) -> Result<Self> {
        let Self { ours, theirs } = self;
        let ours = super::serial::bridge(ours)?;
        Ok(Self { ours, theirs })
    }

    /// Returns one whose other end is at a serial port's line.
    pub(crate) fn on_port(port: File) -> Result<Self> {
        let Self { theirs, .. } = Self::new()?;
        let ours = super::serial::bridge(port)?;
        Ok(Self { ours, theirs })
    }

    /// Begins to serve it. The threads end with the channel, or with this process.
    pub(crate) fn serve(self, start: Start, streams: Streams) -> Result<Server> {
        let Streams {
            input,
            outputs,
            typed,
        } = streams;
        let to = Arc::new(Mutex::new(
            self.ours.try_clone().context("can't share a socket")?,
        ));
        let (wants, wanted) = channel();
        spawn({
            let to = Arc::clone(&to);
            let times = if typed { usize::MAX } else { 1 };
            move || send_input(&start, input, &wanted, &to, times)
        });
        let ended = Arc::new(AtomicBool::new(false));
        let reader = spawn({
            let (wants, to, ended) = (wants.clone(), Arc::clone(&to), Arc::clone(&ended));
            move || receive(self.ours, outputs, &wants, &to, &ended)
        });
        Ok(Server {
            wants,
            to,
            ended,
            reader,
        })
    }
}

impl Server {
    /// Returns whether the program has ended and all its output is written.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Returns whether the channel has ended, and the program had not before.
    pub(crate) fn is_lost(&self) -> bool {
        self.reader.is_finished() && !self.has_ended()
    }

    /// Ends the channel from this side; what was sent goes its way still.
    pub(crate) fn hang_up(&self) {
        let to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        // Where the other end has gone there is nothing to end.
        let _ = to.shutdown(Shutdown::Write);
    }

    /// Begins to read the terminal.
    pub(crate) fn read_terminal(&self) {
        // The thread may have ended, with the channel.
        let _ = self.wants.send(TYPED);
    }

    /// Says that the terminal's window has changed.
    pub(crate) fn set_window(&self, window: Window) {
        send(&self.to, &Frame::Window(window));
    }

    /// Waits until the channel has ended and all output is written.
    ///
    /// # Errors
    /// If some of the output could not be written; not if nobody reads it any more.
    pub(crate) fn finish(self) -> Result<()> {
        let failed = self.reader.join();
        let failed =
            failed.map_err(|_| anyhow!("the thread that writes the program's output panicked"))?;
        match failed
            .into_iter()
            .find(|(_, error)| error.kind() != ErrorKind::BrokenPipe)
        {
            None => Ok(()),
            Some((output, error)) => {
                let name = match output {
                    Output::Stdout => "standard output",
                    Output::Stderr => "standard error",
                    Output::Trace => "the trace",
                    Output::Terminal => "the terminal",
                    Output::Top => "what --top shows",
                };
                Err(error).with_context(|| format!("can't write {name}"))
            }
        }
    }
}

/// Sends a frame; false if the channel has ended.
fn send(to: &Mutex<UnixStream>, frame: &Frame) -> bool {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
    to.write_all(&bytes).is_ok()
}

/// Says what to run; then reads input whenever P wants some, and never before; `times` for each
/// wish.
fn send_input(
    start: &Start,
    mut from: impl Read,
    wanted: &Receiver<u32>,
    to: &Mutex<UnixStream>,
    times: usize,
) {
    if !send(to, &Frame::Start(start.clone())) {
        return;
    }
    let mut buffer = vec![0; MAX_BYTES];
    let mut escape = Escape::default();
    for want in wanted
        .iter()
        .flat_map(|want| std::iter::repeat_n(want, times))
    {
        let room = usize::try_from(want).map_or(MAX_BYTES, |want| want.clamp(1, MAX_BYTES));
        let frame = loop {
            match from.read(&mut buffer[..room]) {
                Ok(0) => break Frame::InputEnd(0),
                Ok(count) => break Frame::Input(buffer[..count].to_vec()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Frame::InputEnd(errno(&error)),
            }
        };
        if let Frame::Input(bytes) = &frame
            && times > 1
            && escape.typed(bytes, Instant::now())
        {
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
        let last = matches!(frame, Frame::InputEnd(_)) && times > 1;
        if !send(to, &frame) || last {
            return;
        }
    }
}

/// Looks for the key that ends a run.
#[derive(Default)]
struct Escape {
    times: Vec<Instant>,
}

impl Escape {
    /// Returns whether the key was typed for the third time within a second, and nothing between.
    fn typed(&mut self, bytes: &[u8], now: Instant) -> bool {
        for &byte in bytes {
            if byte == ESCAPE {
                self.times.push(now);
            } else {
                self.times.clear();
            }
        }
        let recent = |time: &&Instant| now.duration_since(**time) <= Duration::from_secs(1);
        self.times.iter().filter(recent).count() >= 3
    }
}

/// Writes what comes to where it belongs, to the channel's end; returns the outputs that failed.
fn receive(
    mut from: UnixStream,
    mut outputs: Outputs,
    wants: &Sender<u32>,
    to: &Mutex<UnixStream>,
    ended: &AtomicBool,
) -> Vec<(Output, std::io::Error)> {
    let (mut decoder, mut buffer) = (Decoder::default(), vec![0; PIECE]);
    let mut failed: Vec<(Output, std::io::Error)> = Vec::new();
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => decoder.push(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        }
        loop {
            match decoder.next_frame() {
                Ok(Some(Frame::Output(output, _)))
                    if failed.iter().any(|(broken, _)| *broken == output) => {}
                Ok(Some(Frame::Output(output, bytes))) => {
                    if let Err(error) = outputs[output.index()].write_all(&bytes) {
                        send(to, &Frame::Broken(output, errno(&error)));
                        failed.push((output, error));
                    }
                }
                Ok(Some(Frame::Want(count))) => drop(wants.send(count)),
                Ok(Some(Frame::Finish)) => {
                    send(to, &Frame::Done);
                    ended.store(true, Ordering::Release);
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    // P sees an end of the channel, and says so in its log.
                    eprintln!("tessera: the processor's console: {error}");
                    let _ = from.shutdown(Shutdown::Both);
                    return failed;
                }
            }
        }
    }
    failed
}

fn errno(error: &std::io::Error) -> u16 {
    let number = error
        .raw_os_error()
        .and_then(|number| u16::try_from(number).ok());
    // EIO for what has no number.
    number.unwrap_or(5)
}

/// A file that is written whole also where it is set not to wait.
pub(crate) struct BlockingFile(pub(crate) File);

impl Write for BlockingFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0.as_fd(), PollFlags::OUT)], None)?;
                }
                done => return done,
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Read for BlockingFile {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.0.read(into) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0.as_fd(), PollFlags::IN)], None)?;
                }
                done => return done,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{Guest, Sink};

    fn serve(input: impl Read + Send + 'static, outputs: Outputs) -> (Guest, Server) {
        let channel = Channel::new().expect("sockets");
        let socket = UnixStream::from(channel.theirs.try_clone().expect("a socket"));
        let input = Box::new(input);
        let streams = Streams {
            input,
            outputs,
            typed: false,
        };
        let server = channel.serve(Start::default(), streams);
        let mut guest = Guest::new(socket);
        assert_eq!(guest.next(), Frame::Start(Start::default()));
        (guest, server.expect("threads"))
    }

    fn sinks() -> ([Sink; 5], Outputs) {
        let sinks = [(); 5].map(|()| Sink::default());
        let outputs = sinks
            .clone()
            .map(|sink| Box::new(sink) as Box<dyn Write + Send>);
        (sinks, outputs)
    }

    #[test]
    fn input_is_read_when_it_is_wanted_and_errors_are_told() {
        let (_, outputs) = sinks();
        let (mut guest, _server) = serve(&b"words"[..], outputs);
        guest.send(&Frame::Want(3));
        assert_eq!(guest.next(), Frame::Input(b"wor".to_vec()));
        guest.send(&Frame::Want(100));
        assert_eq!(guest.next(), Frame::Input(b"ds".to_vec()));
        guest.send(&Frame::Want(100));
        assert_eq!(guest.next(), Frame::InputEnd(0));
        let folder = File::open(std::env::temp_dir()).expect("a folder");
        let (_, outputs) = sinks();
        let (mut guest, _server) = serve(folder, outputs);
        guest.send(&Frame::Want(3));
        assert_eq!(guest.next(), Frame::InputEnd(21), "EISDIR");
    }

    #[test]
    fn three_escapes_in_a_second_end_the_run() {
        let (mut escape, start) = (Escape::default(), Instant::now());
        let at = |millis: u64| start + Duration::from_millis(millis);
        assert!(
            !escape.typed(b"\x1d\x1dx\x1d", at(0)),
            "another key between"
        );
        assert!(!escape.typed(b"\x1d", at(900)));
        assert!(!escape.typed(b"\x1d", at(1100)), "the first was long ago");
        assert!(escape.typed(b"\x1d", at(1200)));
    }

    #[test]
    fn output_goes_where_it_belongs_and_its_end_is_acknowledged() {
        let (sinks, outputs) = sinks();
        let (mut guest, server) = serve(std::io::empty(), outputs);
        for (output, text) in [
            (Output::Stdout, "a"),
            (Output::Stderr, "b"),
            (Output::Stdout, "c"),
        ] {
            guest.send(&Frame::Output(output, text.into()));
        }
        guest.send(&Frame::Finish);
        assert_eq!(guest.next(), Frame::Done);
        drop(guest);
        // The pair's other end is QEMU's, whose exit closes it.
        server.finish().expect("all is written");
        let texts = sinks.map(|sink| sink.bytes());
        assert_eq!(
            texts,
            [b"ac".to_vec(), b"b".to_vec(), vec![], vec![], vec![]]
        );
    }

    #[test]
    fn an_output_that_can_t_be_written_is_told_and_the_others_go_on() {
        let ([_, stderr, ..], [_, rest @ ..]) = sinks();
        let full = File::options()
            .write(true)
            .open("/dev/full")
            .expect("/dev/full");
        let [second, third, fourth, fifth] = rest;
        let outputs: Outputs = [Box::new(full), second, third, fourth, fifth];
        let (mut guest, server) = serve(std::io::empty(), outputs);
        guest.send(&Frame::Output(Output::Stdout, b"lost".to_vec()));
        assert_eq!(guest.next(), Frame::Broken(Output::Stdout, 28), "ENOSPC");
        guest.send(&Frame::Output(Output::Stdout, b"lost".to_vec()));
        guest.send(&Frame::Output(Output::Stderr, b"kept".to_vec()));
        guest.send(&Frame::Finish);
        assert_eq!(guest.next(), Frame::Done);
        drop(guest);
        let error = format!("{:#}", server.finish().expect_err("some is lost"));
        assert!(
            error.starts_with("can't write standard output: No space left"),
            "{error}"
        );
        assert_eq!(stderr.bytes(), b"kept");
    }
}
