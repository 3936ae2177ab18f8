//! Ends of a program's streams, for tests: a writer that keeps what it gets, and P at its end of
//! the console channel.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use console::{Decoder, Frame};

/// A writer whose clones all write into one memory.
#[derive(Clone, Default)]
pub(crate) struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    /// Returns all bytes so far.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("lock").clone()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("lock").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// P's end of the channel.
pub(crate) struct Guest {
    socket: UnixStream,
    decoder: Decoder,
}

impl Guest {
    pub(crate) fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            decoder: Decoder::default(),
        }
    }

    pub(crate) fn send(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.socket.write_all(&bytes).expect("the host reads");
    }

    /// Waits for the next frame. Bytes come in small pieces, so that frames are cut.
    pub(crate) fn next(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("a frame") {
                return frame;
            }
            let mut bytes = [0; 100];
            let count = self.socket.read(&mut bytes).expect("the host writes");
            assert!(count > 0, "the host has gone");
            self.decoder.push(&bytes[..count]);
        }
    }
}
