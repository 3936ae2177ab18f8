//! The program's streams on P's side of the console channel: frames in, frames out, and what waits
//! between.
//!
//! [`Console`] does no I/O: the image pumps the channel's bytes through [`Console::take`] and
//! [`Console::output`]. Output waits in one bounded queue, so that standard output and error keep
//! their order and a slow reader on the host stops the program. Input is asked for when a program
//! reads or polls it, one frame at a time.

mod stream;

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::Poll;

use console::{Decoder, Frame, FrameError, MAX_BYTES, Output, Source, Start};
use messages::Errno;
use spin::Mutex;

use crate::error::{Error, Result, errno};
use crate::object::{POLL_IN, POLL_OUT, POLL_RDNORM, POLL_WRNORM};
use crate::terminal::{Terminal, Terminals};
use crate::wait::WaitQueue;

pub(crate) use stream::kinds;
#[cfg(test)]
use stream::streams;

/// Bytes of output that wait for the host at most.
const MAX_OUTPUT: usize = 64 << 10;
/// Bytes of output that are queued in one piece or not at all, as a pipe's `PIPE_BUF`.
const ATOMIC: usize = 4096;
/// Bytes of `want` and `finish` frames that may wait beside output.
const CONTROL: usize = 64;

/// P's end of the console channel.
#[derive(Debug)]
pub struct Console {
    state: Mutex<State>,
    terminals: Arc<Terminals>,
    /// Woken when input, room for output or the end has come.
    changed: WaitQueue,
    /// Woken when there is something to send.
    outgoing: WaitQueue,
}

#[derive(Debug, Default)]
struct State {
    decoder: Decoder,
    start: Option<Start>,
    /// The terminal at the other end, if there is one.
    terminal: Option<Arc<Terminal>>,
    input: VecDeque<u8>,
    /// The input's end: an error number, or 0.
    ended: Option<u16>,
    /// Input was asked for and has not come.
    wanted: bool,
    /// Frames for the host.
    out: Vec<u8>,
    /// The error numbers of outputs that the host can't write.
    broken: [Option<u16>; Output::ALL.len()],
    /// The host has written all, or the channel is lost.
    done: bool,
}

impl State {
    fn take(&mut self, frame: Frame, terminals: &Arc<Terminals>) {
        match frame {
            Frame::Start(start) => {
                if start.sources.contains(&Source::Terminal) {
                    self.terminal = Some(terminals.add_console(start.window));
                }
                self.start = Some(start);
            }
            Frame::Input(bytes) if self.terminal.is_some() => {
                if let Some(terminal) = &self.terminal {
                    // As with a line too long, what there is no room for is lost.
                    terminal.type_bytes(&bytes);
                }
            }
            Frame::Input(bytes) => {
                self.wanted = false;
                // A host that sends more than was asked for loses the rest.
                let room = MAX_BYTES.saturating_sub(self.input.len());
                self.input.extend(bytes.iter().take(room));
            }
            Frame::InputEnd(errno) => {
                self.ended = Some(errno);
                if let Some(terminal) = &self.terminal {
                    terminal.hang_up();
                }
            }
            Frame::Broken(output, errno) => self.broken[output.index()] = Some(errno),
            Frame::Done => self.done = true,
            Frame::Window(window) => {
                if let Some(terminal) = &self.terminal {
                    terminal.set_window(window);
                }
            }
            // These go the other way.
            Frame::Output(..) | Frame::Want(_) | Frame::Finish => {}
        }
    }

    /// Returns the bytes of output that may be queued now.
    fn room(&self) -> usize {
        MAX_OUTPUT
            .saturating_sub(self.out.len())
            .saturating_sub(console::HEADER)
    }
}

impl Console {
    /// Returns the end of a channel on which nothing came yet.
    pub(crate) fn new(terminals: Arc<Terminals>) -> Self {
        Self {
            state: Mutex::default(),
            terminals,
            changed: WaitQueue::default(),
            outgoing: WaitQueue::default(),
        }
    }

    /// Takes what came from the channel, cut anywhere.
    ///
    /// # Errors
    ///
    /// The fault of malformed bytes, which end the input.
    pub fn take(&self, bytes: &[u8]) -> core::result::Result<(), FrameError> {
        let taken = {
            let mut state = self.state.lock();
            state.decoder.push(bytes);
            loop {
                match state.decoder.next_frame() {
                    Ok(Some(frame)) => state.take(frame, &self.terminals),
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            }
        };
        match taken {
            Ok(()) => {
                self.changed.wake();
                // There may be a terminal now, whose output whoever sends does not wait for yet.
                self.outgoing.wake();
            }
            Err(_) => self.lose(),
        }
        taken
    }

    /// Notes that the channel is lost: nothing comes, and nobody takes output.
    pub fn lose(&self) {
        let eio = u16::try_from(errno::EIO.0).ok();
        {
            let mut state = self.state.lock();
            state.ended = state.ended.or(eio);
            state.broken = [eio; Output::ALL.len()];
            state.done = true;
        }
        self.changed.wake();
    }

    /// Waits for frames to send and moves them to the end of `into`.
    pub async fn output(&self, into: &mut Vec<u8>) {
        poll_fn(|context| {
            self.outgoing.register(context.waker());
            if let Some(terminal) = self.terminal() {
                terminal.other_end.register(context.waker());
            }
            if self.take_output(into) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Returns the terminal at the other end, if there is one.
    fn terminal(&self) -> Option<Arc<Terminal>> {
        self.state.lock().terminal.clone()
    }

    /// Moves the frames to send to the end of `into`; false if there are none.
    pub(crate) fn take_output(&self, into: &mut Vec<u8>) -> bool {
        let some = {
            let mut state = self.state.lock();
            into.append(&mut state.out);
            !into.is_empty()
        };
        let some = some | self.take_shown(into);
        if some {
            self.changed.wake();
        }
        some
    }

    /// Adds the terminal's output; false if there is none.
    fn take_shown(&self, into: &mut Vec<u8>) -> bool {
        let Some(terminal) = self.terminal() else {
            return false;
        };
        let mut shown = Vec::new();
        terminal.take_output(&mut shown, MAX_BYTES);
        if !shown.is_empty() {
            console::put_output(into, Output::Terminal, &shown);
        }
        !shown.is_empty()
    }

    /// Waits until the host has said what to run; `None` if the channel is lost.
    pub async fn start(&self) -> Option<Start> {
        let come = || {
            let state = self.state.lock();
            (state.start.is_some() || state.done).then(|| state.start.clone())
        };
        self.changed.until(come).await
    }

    /// Waits until the host has written all output.
    pub async fn finish(&self) {
        if let Some(terminal) = self.terminal() {
            terminal.stop(false);
            let shown = || (terminal.unshown() == 0).then_some(());
            terminal.changed.until(shown).await;
        }
        self.send(&Frame::Finish);
        self.changed
            .until(|| self.state.lock().done.then_some(()))
            .await;
    }

    /// Writes a line to the host's standard error, in turn with the program's output.
    pub async fn say(&self, line: &[u8]) {
        self.write_all(Output::Stderr, line).await;
    }

    /// Sends a snapshot of what runs, and waits for room: who shows it sets the pace.
    pub async fn show_top(&self, text: &[u8]) {
        self.write_all(Output::Top, text).await;
    }

    /// Queues all of `bytes`, waiting for room; they are lost with an output that is broken.
    pub(crate) async fn write_all(&self, output: Output, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let attempt = || match self.write(output, rest) {
                Err(Error::Errno(errno::EAGAIN)) => None,
                tried => Some(tried),
            };
            let Ok(count) = self.changed.until(attempt).await else {
                return;
            };
            rest = &rest[count..];
        }
    }

    fn send(&self, frame: &Frame) {
        frame.encode(&mut self.state.lock().out);
        self.outgoing.wake();
    }

    /// Queues what there is room for.
    fn write(&self, output: Output, bytes: &[u8]) -> Result<usize> {
        let mut state = self.state.lock();
        if let Some(errno) = state.broken[output.index()] {
            return Err(Errno(errno.into()).into());
        }
        let room = state.room();
        if bytes.is_empty() {
            return Ok(0);
        }
        if room == 0 || (bytes.len() <= ATOMIC && room < bytes.len()) {
            return Err(errno::EAGAIN.into());
        }
        let count = room.min(bytes.len());
        console::put_output(&mut state.out, output, &bytes[..count]);
        drop(state);
        self.outgoing.wake();
        Ok(count)
    }

    fn writable(&self, output: Output) -> u16 {
        let state = self.state.lock();
        let room = state.room() >= ATOMIC || state.broken[output.index()].is_some();
        if room { POLL_OUT | POLL_WRNORM } else { 0 }
    }

    /// Reads what has come; asks the host for more if there is nothing.
    fn read(&self, into: &mut [u8]) -> Result<usize> {
        let mut state = self.state.lock();
        let count = state.input.len().min(into.len());
        if count > 0 || into.is_empty() {
            for (place, byte) in into.iter_mut().zip(state.input.drain(..count)) {
                *place = byte;
            }
            return Ok(count);
        }
        match state.ended {
            Some(0) => Ok(0),
            Some(errno) => Err(Errno(errno.into()).into()),
            None => {
                drop(state);
                self.want();
                Err(errno::EAGAIN.into())
            }
        }
    }

    /// Returns whether a read would not wait; asks the host for input if it would.
    fn readable(&self) -> u16 {
        let ready = {
            let state = self.state.lock();
            !state.input.is_empty() || state.ended.is_some()
        };
        if ready {
            return POLL_IN | POLL_RDNORM;
        }
        self.want();
        0
    }

    fn want(&self) {
        let mut state = self.state.lock();
        if !state.wanted && state.out.len() < MAX_OUTPUT + CONTROL {
            state.wanted = true;
            let room = u32::try_from(MAX_BYTES).expect("a small constant");
            Frame::Want(room).encode(&mut state.out);
            drop(state);
            self.outgoing.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use core::pin::pin;
    use core::sync::atomic::{AtomicUsize, Ordering};
    use core::task::{Context, Waker};
    use std::task::Wake;

    fn console() -> Arc<Console> {
        Arc::new(Console::new(Arc::default()))
    }

    fn send(console: &Console, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        console.take(&bytes).unwrap();
    }

    fn sent(console: &Console) -> Vec<Frame> {
        let (mut bytes, mut decoder) = (Vec::new(), Decoder::default());
        console.take_output(&mut bytes);
        decoder.push(&bytes);
        core::iter::from_fn(|| decoder.next_frame().unwrap()).collect()
    }

    #[test]
    fn input_is_asked_for_once_and_only_when_it_is_read() {
        let console = console();
        let [input, ..] = streams(&console);
        assert_eq!(sent(&console), []);
        let mut into = [0; 4];
        assert_eq!(input.read(&mut into), Err(errno::EAGAIN.into()));
        assert_eq!(input.ready(), 0);
        assert_eq!(sent(&console), [Frame::Want(65_536)]);
        send(&console, &Frame::Input(b"hello".to_vec()));
        assert_eq!(
            (input.ready(), input.read(&mut into)),
            (POLL_IN | POLL_RDNORM, Ok(4))
        );
        assert_eq!(sent(&console), [], "there is some left");
        assert_eq!((input.read(&mut into), into[0]), (Ok(1), b'o'));
        assert_eq!(input.ready(), 0);
        assert_eq!(sent(&console).len(), 1);
        send(&console, &Frame::InputEnd(21));
        assert_eq!(input.read(&mut into), Err(Errno(21).into()));
        send(&console, &Frame::InputEnd(0));
        assert_eq!(input.read(&mut into), Ok(0));
    }

    #[test]
    fn input_beyond_what_was_asked_for_is_bounded() {
        let console = console();
        for _ in 0..3 {
            send(&console, &Frame::Input(vec![7; MAX_BYTES]));
        }
        assert_eq!(console.state.lock().input.len(), MAX_BYTES);
    }

    #[test]
    fn outputs_keep_their_order_and_wait_for_room() {
        let console = console();
        let [_, out, err] = streams(&console);
        assert_eq!(
            (out.write(b"a"), err.write(b"b"), out.write(b"c")),
            (Ok(1), Ok(1), Ok(1))
        );
        let text = |output, text: &[u8]| Frame::Output(output, text.to_vec());
        let expected = [
            text(Output::Stdout, b"a"),
            text(Output::Stderr, b"b"),
            text(Output::Stdout, b"c"),
        ];
        assert_eq!(sent(&console), expected);
        let mut queued = 0;
        while let Ok(count) = out.write(&[1; 10_000]) {
            queued += count;
        }
        assert!((60_000..=MAX_OUTPUT).contains(&queued));
        assert_eq!(
            (out.ready(), err.write(b"x")),
            (0, Err(errno::EAGAIN.into()))
        );
        sent(&console);
        assert_eq!(err.write(b"x"), Ok(1));
    }

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Whoever sends waits from before the first frame comes, and hears of a terminal's output all
    /// the same.
    #[test]
    fn a_terminal_s_output_wakes_who_waited_before_there_was_one() {
        let console = console();
        let count = Arc::<Count>::default();
        let waker = Waker::from(count.clone());
        let mut context = Context::from_waker(&waker);
        let mut bytes = Vec::new();
        let mut output = pin!(console.output(&mut bytes));
        let woken = || count.0.swap(0, Ordering::SeqCst) > 0;
        assert!(output.as_mut().poll(&mut context).is_pending());
        let start = Start {
            sources: [Source::Terminal; 3],
            ..Start::default()
        };
        send(&console, &Frame::Start(start));
        while woken() {
            assert!(output.as_mut().poll(&mut context).is_pending());
        }
        console.terminal().unwrap().type_bytes(b"x");
        assert!(woken(), "the echo");
        assert!(output.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn a_broken_output_fails_and_a_lost_channel_ends_all() {
        let console = console();
        let [input, out, err] = streams(&console);
        send(&console, &Frame::Broken(Output::Stdout, 32));
        assert_eq!(
            (out.write(b"a"), err.write(b"b")),
            (Err(errno::EPIPE.into()), Ok(1))
        );
        assert!(console.take(&[9; 4]).is_err());
        assert_eq!(err.write(b"b"), Err(errno::EIO.into()));
        assert_eq!(input.read(&mut [0; 4]), Err(errno::EIO.into()));
        assert!(console.state.lock().done);
    }
}
