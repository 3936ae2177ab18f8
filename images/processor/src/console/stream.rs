//! Standard input, output and error as objects that programs read and write.

use alloc::sync::Arc;

use console::{Output, Source};

use super::Console;
use crate::device::Device;
use crate::error::{Result, errno};
use crate::files::Kind;
use crate::object::Object;
use crate::terminal::Tty;
use crate::wait::WaitQueue;

/// `S_IFIFO`, readable and writable by its owner.
const FIFO: u32 = 0o010_600;

/// Returns what the first three descriptors are.
pub(crate) fn kinds(console: &Arc<Console>, sources: [Source; 3]) -> [Kind; 3] {
    let streams = streams(console).into_iter();
    let terminal = console
        .terminal()
        .filter(|_| sources.contains(&Source::Terminal));
    let tty = terminal
        .and_then(|terminal| Tty::open(&terminal).ok())
        .map(Arc::new);
    let mut kinds = streams.zip(sources).map(|(stream, source)| match source {
        Source::Null => Kind::Device(Device::Null),
        Source::Full => Kind::Device(Device::Full),
        Source::Stream => Kind::Object(stream),
        Source::Terminal => match tty.clone() {
            Some(tty) => Kind::Object(tty),
            None => Kind::Object(stream),
        },
    });
    [(); 3].map(|()| kinds.next().expect("three of them"))
}

/// Returns the objects of the three streams.
pub(crate) fn streams(console: &Arc<Console>) -> [Arc<dyn Object>; 3] {
    let stream = |output| Arc::new(OutputStream(console.clone(), output));
    [
        Arc::new(InputStream(console.clone())),
        stream(Output::Stdout),
        stream(Output::Stderr),
    ]
}

/// Standard input.
#[derive(Debug)]
struct InputStream(Arc<Console>);

/// Standard output or error.
#[derive(Debug)]
struct OutputStream(Arc<Console>, Output);

impl Object for InputStream {
    fn read(&self, into: &mut [u8]) -> Result<usize> {
        self.0.read(into)
    }
    fn write(&self, _: &[u8]) -> Result<usize> {
        Err(errno::EBADF.into())
    }
    fn ready(&self) -> u16 {
        self.0.readable()
    }
    fn queue(&self) -> &WaitQueue {
        &self.0.changed
    }
    fn mode(&self) -> u32 {
        FIFO
    }
    fn readable(&self) -> usize {
        self.0.state.lock().input.len()
    }
}

impl Object for OutputStream {
    fn read(&self, _: &mut [u8]) -> Result<usize> {
        Err(errno::EBADF.into())
    }
    fn write(&self, from: &[u8]) -> Result<usize> {
        self.0.write(self.1, from)
    }
    fn ready(&self) -> u16 {
        self.0.writable(self.1)
    }
    fn queue(&self) -> &WaitQueue {
        &self.0.changed
    }
    fn mode(&self) -> u32 {
        FIFO
    }
    fn readable(&self) -> usize {
        0
    }
}
