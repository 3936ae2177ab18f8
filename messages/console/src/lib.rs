//! The frames that P and the host exchange over P's console channel.
//!
//! A frame is a kind (one byte), a length (three bytes, little-endian) and as many bytes of
//! payload:
//!
//! ```text
//!  host to P                              P to host
//!  0x01 start   what to run (Start)       0x81 stdout  bytes
//!  0x02 input   bytes                     0x82 stderr  bytes
//!  0x03 end     errno (u16), 0: the end   0x83 trace   bytes
//!  0x04 window  rows, columns, x, y (u16) 0x84 terminal bytes
//!  0x05 broken  stream (u8), errno (u16)  0x85 top     bytes
//!  0x06 done    all output is written     0x86 want    bytes of input that P has room for (u32)
//!                                         0x87 finish  P has no more output
//! ```
//!
//! The bytes of a channel that is a serial line go over a [`Line`].
//!
//! Both sides use [`Decoder`], which checks each frame; [`Start`] is what to run. All
//! output takes one channel, so that it keeps its order. The host reads its own input only after a
//! `want`, or at once if the input is a terminal.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod decoder;
mod line;
mod start;

use alloc::vec::Vec;

pub use decoder::Decoder;
pub use line::Line;
pub use start::{Source, Start};

/// Bytes before a frame's payload.
pub const HEADER: usize = 4;
/// The most bytes of input or output in a frame.
pub const MAX_BYTES: usize = 64 << 10;
/// The most bytes of a start frame: Linux's 2 MB of strings, and their lengths.
pub const MAX_START: usize = 8 << 20;

/// An output of P.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The trace of system calls.
    Trace,
    /// The terminal.
    Terminal,
    /// Snapshots of what runs, as text.
    Top,
}

impl Output {
    /// All, by number.
    pub const ALL: [Self; 5] = [
        Self::Stdout,
        Self::Stderr,
        Self::Trace,
        Self::Terminal,
        Self::Top,
    ];

    /// Returns the output's number.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// The size of a terminal's window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Window {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
    /// Width in pixels, or 0.
    pub width: u16,
    /// Height in pixels, or 0.
    pub height: u16,
}

impl Window {
    /// Returns the four words in the order of Linux's `struct winsize`.
    #[must_use]
    pub const fn words(self) -> [u16; 4] {
        [self.rows, self.columns, self.width, self.height]
    }

    /// Returns the window of four words.
    #[must_use]
    pub const fn from_words([rows, columns, width, height]: [u16; 4]) -> Self {
        Self {
            rows,
            columns,
            width,
            height,
        }
    }
}

/// A frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// The host says what to run.
    Start(Start),
    /// Input for the program.
    Input(Vec<u8>),
    /// The input has ended, or failed with an error number.
    InputEnd(u16),
    /// The terminal's window has this size.
    Window(Window),
    /// The host can't write an output any more, for this error number.
    Broken(Output, u16),
    /// The host has written all output.
    Done,
    /// Output of the program.
    Output(Output, Vec<u8>),
    /// P has room for so many bytes of input.
    Want(u32),
    /// P has no more output.
    Finish,
}

/// The fault of a channel's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// No frame has this kind.
    #[error("unknown frame kind {0:#x}")]
    Kind(u8),
    /// A frame of this kind can't have this length.
    #[error("frame kind {kind:#x} with {len} bytes")]
    Length {
        /// The kind.
        kind: u8,
        /// The length.
        len: usize,
    },
    /// A frame's payload makes no sense.
    #[error("frame kind {0:#x} with a payload that makes no sense")]
    Payload(u8),
}

const START: u8 = 1;
const INPUT: u8 = 2;
const END: u8 = 3;
const WINDOW: u8 = 4;
const BROKEN: u8 = 5;
const DONE: u8 = 6;
const OUTPUT: u8 = 0x81;
const WANT: u8 = 0x86;
const FINISH: u8 = 0x87;

impl Frame {
    /// Appends the frame's bytes.
    ///
    /// # Panics
    ///
    /// If the payload is longer than a frame of its kind may be.
    pub fn encode(&self, into: &mut Vec<u8>) {
        match self {
            Self::Start(start) => put(into, START, &start.encode()),
            Self::Input(bytes) => put(into, INPUT, bytes),
            Self::InputEnd(errno) => put(into, END, &errno.to_le_bytes()),
            Self::Window(window) => {
                let words = window.words().map(u16::to_le_bytes);
                put(into, WINDOW, words.as_flattened());
            }
            Self::Broken(output, errno) => {
                let [low, high] = errno.to_le_bytes();
                put(into, BROKEN, &[*output as u8, low, high]);
            }
            Self::Done => put(into, DONE, &[]),
            Self::Output(output, bytes) => put_output(into, *output, bytes),
            Self::Want(count) => put(into, WANT, &count.to_le_bytes()),
            Self::Finish => put(into, FINISH, &[]),
        }
    }

    /// Reads a frame's payload.
    fn decode(kind: u8, payload: &[u8]) -> Result<Self, FrameError> {
        let wrong = FrameError::Payload(kind);
        Ok(match kind {
            START => Self::Start(Start::decode(payload).ok_or(wrong)?),
            INPUT => Self::Input(payload.into()),
            END => Self::InputEnd(u16::from_le_bytes(*payload.first_chunk().ok_or(wrong)?)),
            WINDOW => {
                let mut words = [0; 4];
                for (word, bytes) in words.iter_mut().zip(payload.chunks_exact(2)) {
                    *word = u16::from_le_bytes([bytes[0], bytes[1]]);
                }
                Self::Window(Window::from_words(words))
            }
            BROKEN => {
                let [output, low, high] = *payload.first_chunk().ok_or(wrong)?;
                let output = *Output::ALL.get(usize::from(output)).ok_or(wrong)?;
                Self::Broken(output, u16::from_le_bytes([low, high]))
            }
            DONE => Self::Done,
            WANT => Self::Want(u32::from_le_bytes(*payload.first_chunk().ok_or(wrong)?)),
            FINISH => Self::Finish,
            kind => {
                let index = usize::from(kind.wrapping_sub(OUTPUT));
                let output = *Output::ALL.get(index).ok_or(FrameError::Kind(kind))?;
                Self::Output(output, payload.into())
            }
        })
    }
}

/// Appends a frame of output without a copy of its own.
///
/// # Panics
///
/// If there are more than [`MAX_BYTES`].
pub fn put_output(into: &mut Vec<u8>, output: Output, bytes: &[u8]) {
    put(into, OUTPUT + output as u8, bytes);
}

fn put(into: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    check(kind, payload.len()).expect("a payload that its kind may have");
    let [low, middle, high, ..] = payload.len().to_le_bytes();
    into.extend_from_slice(&[kind, low, middle, high]);
    into.extend_from_slice(payload);
}

/// Checks that a frame of this kind may have this length.
fn check(kind: u8, len: usize) -> Result<(), FrameError> {
    let fits = match kind {
        START => len <= MAX_START,
        INPUT => (1..=MAX_BYTES).contains(&len),
        END => len == 2,
        WINDOW => len == 8,
        BROKEN => len == 3,
        DONE | FINISH => len == 0,
        WANT => len == 4,
        0x81..=0x85 => (1..=MAX_BYTES).contains(&len),
        _ => return Err(FrameError::Kind(kind)),
    };
    if fits {
        Ok(())
    } else {
        Err(FrameError::Length { kind, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn frames_have_these_bytes() {
        let bytes = |frame: Frame| {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            bytes
        };
        assert_eq!(bytes(Frame::Input(b"hi".to_vec())), b"\x02\x02\0\0hi");
        assert_eq!(bytes(Frame::InputEnd(21)), b"\x03\x02\0\0\x15\0");
        let window = Window::from_words([24, 80, 1, 0x102]);
        assert_eq!(
            bytes(Frame::Window(window)),
            b"\x04\x08\0\0\x18\0\x50\0\x01\0\x02\x01"
        );
        assert_eq!(
            bytes(Frame::Broken(Output::Stderr, 32)),
            b"\x05\x03\0\0\x01\x20\0"
        );
        assert_eq!(bytes(Frame::Done), b"\x06\0\0\0");
        let trace = Frame::Output(Output::Trace, vec![b'x'; 0x102]);
        assert_eq!(bytes(trace)[..5], *b"\x83\x02\x01\0x");
        assert_eq!(bytes(Frame::Want(0x1_0000)), b"\x86\x04\0\0\0\0\x01\0");
        assert_eq!(bytes(Frame::Finish), b"\x87\0\0\0");
    }

    #[test]
    fn lengths_and_kinds_are_checked() {
        assert_eq!(check(0, 0), Err(FrameError::Kind(0)));
        assert_eq!(check(0x88, 0), Err(FrameError::Kind(0x88)));
        for (kind, len) in [
            (INPUT, 0),
            (INPUT, MAX_BYTES + 1),
            (END, 0),
            (WINDOW, 7),
            (DONE, 1),
        ] {
            assert_eq!(check(kind, len), Err(FrameError::Length { kind, len }));
        }
        assert_eq!(
            Frame::decode(BROKEN, &[5, 0, 0]),
            Err(FrameError::Payload(BROKEN))
        );
    }
}
