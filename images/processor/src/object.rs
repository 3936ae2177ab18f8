//! Things that programs read and write beside files: pipes, event counters.
//!
//! An [`Object`] never waits: it does what it can now and says EAGAIN else. Whoever may wait registers
//! in its queue and tries again ([`Thread::read_object`]).

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};
use core::task::Waker;

use spin::Mutex;

use crate::epoll::Epoll;
use crate::error::{Error, Result, errno};
use crate::files::OpenFile;
use crate::process::Node;
use crate::signals::{SI_USER, SIGPIPE, SignalInfo};
use crate::terminal::{Side, Terminal};
use crate::thread::Thread;
use crate::wait::WaitQueue;

/// Bits of `poll`.
pub(crate) const POLL_IN: u16 = 1;
pub(crate) const POLL_OUT: u16 = 4;
pub(crate) const POLL_ERR: u16 = 8;
pub(crate) const POLL_HUP: u16 = 0x10;
pub(crate) const POLL_NVAL: u16 = 0x20;
pub(crate) const POLL_RDNORM: u16 = 0x40;
pub(crate) const POLL_WRNORM: u16 = 0x100;

/// Bytes that a pipe holds.
pub(crate) const PIPE_SIZE: usize = 65_536;
/// Bytes that are written in one piece or not at all (`PIPE_BUF`).
const ATOMIC: usize = 4096;
/// Bytes that are copied at once between a program and an object.
const PIECE: usize = 16 << 10;

/// Something that is read and written without a position.
pub(crate) trait Object: Send + Sync + fmt::Debug {
    /// Reads what there is; 0 at the end.
    ///
    /// # Errors
    ///
    /// EAGAIN if there is nothing yet.
    fn read(&self, into: &mut [u8]) -> Result<usize>;
    /// Writes what there is room for.
    ///
    /// # Errors
    ///
    /// EAGAIN if there is no room, EPIPE if nobody will read it.
    fn write(&self, from: &[u8]) -> Result<usize>;
    /// Returns the poll bits that hold now.
    fn ready(&self) -> u16;
    /// Returns the queue that is woken at each change.
    fn queue(&self) -> &WaitQueue;
    /// Keeps a waker until the next change.
    fn register(&self, waker: &Waker) {
        self.queue().register(waker);
    }
    /// Returns the object as a set of files that are waited for, if it is one.
    fn as_epoll(&self) -> Option<&Epoll> {
        None
    }
    /// Returns the type and rights as `stat` gives them.
    fn mode(&self) -> u32;
    /// Returns how many bytes could be read.
    fn readable(&self) -> usize;
    /// Returns the device's number as `st_rdev` has it; 0 for what is no device.
    fn device(&self) -> u64 {
        0
    }
    /// Returns the terminal, and which side of it this is, if it is one.
    fn as_terminal(&self) -> Option<(&Arc<Terminal>, Side)> {
        None
    }
}

/// The bytes between a pipe's two ends.
#[derive(Debug, Default)]
struct Pipe {
    bytes: Mutex<VecDeque<u8>>,
    readers: AtomicU32,
    writers: AtomicU32,
    queue: WaitQueue,
}

/// The end that is read.
#[derive(Debug)]
pub(crate) struct PipeReader(Arc<Pipe>);

/// The end that is written.
#[derive(Debug)]
pub(crate) struct PipeWriter(Arc<Pipe>);

/// Returns the two ends of a new pipe.
pub(crate) fn pipe() -> (PipeReader, PipeWriter) {
    let pipe = Arc::new(Pipe {
        readers: AtomicU32::new(1),
        writers: AtomicU32::new(1),
        ..Pipe::default()
    });
    (PipeReader(pipe.clone()), PipeWriter(pipe))
}

const FIFO: u32 = 0o010_600;

impl Object for PipeReader {
    fn read(&self, into: &mut [u8]) -> Result<usize> {
        let mut bytes = self.0.bytes.lock();
        let count = bytes.len().min(into.len());
        if count == 0 {
            return if self.0.writers.load(Ordering::Acquire) == 0 || into.is_empty() {
                Ok(0)
            } else {
                Err(errno::EAGAIN.into())
            };
        }
        for (place, byte) in into.iter_mut().zip(bytes.drain(..count)) {
            *place = byte;
        }
        drop(bytes);
        self.0.queue.wake();
        Ok(count)
    }
    fn write(&self, _: &[u8]) -> Result<usize> {
        Err(errno::EBADF.into())
    }
    fn ready(&self) -> u16 {
        let some = !self.0.bytes.lock().is_empty();
        let ended = self.0.writers.load(Ordering::Acquire) == 0;
        (if some { POLL_IN | POLL_RDNORM } else { 0 }) | if ended { POLL_HUP } else { 0 }
    }
    fn queue(&self) -> &WaitQueue {
        &self.0.queue
    }
    fn mode(&self) -> u32 {
        FIFO
    }
    fn readable(&self) -> usize {
        self.0.bytes.lock().len()
    }
}

impl Drop for PipeReader {
    fn drop(&mut self) {
        self.0.readers.store(0, Ordering::Release);
        self.0.queue.wake();
    }
}

impl Object for PipeWriter {
    fn read(&self, _: &mut [u8]) -> Result<usize> {
        Err(errno::EBADF.into())
    }
    fn write(&self, from: &[u8]) -> Result<usize> {
        if self.0.readers.load(Ordering::Acquire) == 0 {
            return Err(errno::EPIPE.into());
        }
        let mut bytes = self.0.bytes.lock();
        let room = PIPE_SIZE - bytes.len();
        if room == 0 || (from.len() <= ATOMIC && room < from.len()) {
            return Err(errno::EAGAIN.into());
        }
        let count = room.min(from.len());
        bytes.extend(&from[..count]);
        drop(bytes);
        self.0.queue.wake();
        Ok(count)
    }
    fn ready(&self) -> u16 {
        let room = PIPE_SIZE - self.0.bytes.lock().len() >= ATOMIC;
        let nobody = self.0.readers.load(Ordering::Acquire) == 0;
        (if room { POLL_OUT | POLL_WRNORM } else { 0 }) | if nobody { POLL_ERR } else { 0 }
    }
    fn queue(&self) -> &WaitQueue {
        &self.0.queue
    }
    fn mode(&self) -> u32 {
        FIFO
    }
    fn readable(&self) -> usize {
        self.0.bytes.lock().len()
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        self.0.writers.store(0, Ordering::Release);
        self.0.queue.wake();
    }
}

/// A counter that is added to by writing and taken from by reading (`eventfd`).
#[derive(Debug)]
pub(crate) struct EventCounter {
    count: Mutex<u64>,
    /// Reading takes one, not all.
    by_one: bool,
    queue: WaitQueue,
}

impl EventCounter {
    pub(crate) fn new(count: u64, by_one: bool) -> Self {
        Self {
            count: Mutex::new(count),
            by_one,
            queue: WaitQueue::default(),
        }
    }
}

impl Object for EventCounter {
    fn read(&self, into: &mut [u8]) -> Result<usize> {
        let into = into.get_mut(..8).ok_or(errno::EINVAL)?;
        let mut count = self.count.lock();
        if *count == 0 {
            return Err(errno::EAGAIN.into());
        }
        let taken = if self.by_one { 1 } else { *count };
        *count -= taken;
        into.copy_from_slice(&taken.to_le_bytes());
        drop(count);
        self.queue.wake();
        Ok(8)
    }
    fn write(&self, from: &[u8]) -> Result<usize> {
        let more = from.first_chunk().map(|word| u64::from_le_bytes(*word));
        let more = more.filter(|&more| more != u64::MAX).ok_or(errno::EINVAL)?;
        let mut count = self.count.lock();
        let sum = count.checked_add(more).filter(|&sum| sum != u64::MAX);
        *count = sum.ok_or(errno::EAGAIN)?;
        drop(count);
        self.queue.wake();
        Ok(8)
    }
    fn ready(&self) -> u16 {
        let count = *self.count.lock();
        let out = if count < u64::MAX - 1 {
            POLL_OUT | POLL_WRNORM
        } else {
            0
        };
        out | if count > 0 { POLL_IN | POLL_RDNORM } else { 0 }
    }
    fn queue(&self) -> &WaitQueue {
        &self.queue
    }
    fn mode(&self) -> u32 {
        0o600
    }
    fn readable(&self) -> usize {
        8
    }
}

impl<N: Node> Thread<N> {
    /// Reads into the program from an object, and waits for bytes unless the file says not to.
    pub(crate) async fn read_object(
        &self,
        file: &OpenFile,
        object: &Arc<dyn Object>,
        addr: u64,
        count: u64,
    ) -> Result<u64> {
        if let Some((terminal, Side::Program)) = object.as_terminal() {
            return self.read_terminal(file, terminal, addr, count).await;
        }
        let count = self.memory.reachable(addr, count, true)?;
        let mut piece = vec![0; usize::try_from(count).map_or(PIECE, |count| count.min(PIECE))];
        let attempt = || match object.read(&mut piece) {
            Err(Error::Errno(errno::EAGAIN)) if !file.nonblocking() => None,
            done => Some(done),
        };
        let got = self.unless_called(object.queue().until(attempt)).await??;
        self.memory.write(addr, &piece[..got]).await?;
        Ok(got as u64)
    }

    /// Writes from the program to an object, all of it unless the file says not to wait.
    pub(crate) async fn write_object(
        &self,
        file: &OpenFile,
        object: &Arc<dyn Object>,
        addr: u64,
        count: u64,
    ) -> Result<u64> {
        if let Some((terminal, Side::Program)) = object.as_terminal()
            && terminal.stops_writers()
        {
            self.may_change(terminal)?;
        }
        let count = self.memory.reachable(addr, count, false)?;
        let mut piece = vec![0; usize::try_from(count).map_or(PIECE, |count| count.min(PIECE))];
        let mut done = 0;
        while done < count {
            let want = usize::try_from(count - done).map_or(PIECE, |left| left.min(PIECE));
            self.memory.read(addr + done, &mut piece[..want]).await?;
            match self.write_piece(file, object, &piece[..want]).await {
                Ok(0) => break,
                Ok(written) => done += written as u64,
                Err(Error::Errno(_)) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Writes bytes to an object, as many as it takes at once.
    pub(crate) async fn write_piece(
        &self,
        file: &OpenFile,
        object: &Arc<dyn Object>,
        piece: &[u8],
    ) -> Result<usize> {
        let attempt = || match object.write(piece) {
            Err(Error::Errno(errno::EAGAIN)) if !file.nonblocking() => None,
            tried => Some(tried),
        };
        let tried = self.unless_called(object.queue().until(attempt)).await;
        let tried = tried.flatten();
        if tried == Err(errno::EPIPE.into()) {
            let info = SignalInfo::from_process(SIGPIPE, SI_USER, self.pid);
            self.shared.send(self.node, info);
        }
        tried
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_holds_what_fits_and_ends_with_its_writer() {
        let (reader, writer) = pipe();
        let mut into = [0; 10];
        assert_eq!(reader.read(&mut into), Err(errno::EAGAIN.into()));
        assert_eq!(writer.write(&vec![7; PIPE_SIZE - 10]), Ok(PIPE_SIZE - 10));
        assert_eq!(writer.write(&[8; 20]), Err(errno::EAGAIN.into()), "in one piece");
        assert_eq!(writer.write(&[8; 5000]), Ok(10));
        assert_eq!(writer.ready() & POLL_OUT, 0);
        let mut all = vec![0; PIPE_SIZE];
        assert_eq!(reader.read(&mut all), Ok(PIPE_SIZE));
        assert_eq!(all[PIPE_SIZE - 11..PIPE_SIZE - 9], [7, 8]);
        drop(writer);
        assert_eq!((reader.read(&mut into), reader.ready()), (Ok(0), POLL_HUP));
    }

    #[test]
    fn a_pipe_without_a_reader_is_broken() {
        let (reader, writer) = pipe();
        drop(reader);
        assert_eq!(writer.write(&[1]), Err(errno::EPIPE.into()));
        assert_ne!(writer.ready() & POLL_ERR, 0);
    }

    #[test]
    fn event_counters_add_and_are_taken_whole_or_by_one() {
        for (by_one, taken) in [(false, 7), (true, 1)] {
            let counter = EventCounter::new(3, by_one);
            assert_eq!(counter.write(&4u64.to_le_bytes()), Ok(8));
            assert_eq!(counter.write(&u64::MAX.to_le_bytes()), Err(errno::EINVAL.into()));
            assert_eq!(
                counter.write(&(u64::MAX - 7).to_le_bytes()),
                Err(errno::EAGAIN.into())
            );
            let mut into = [0; 8];
            assert_eq!(counter.read(&mut into), Ok(8));
            assert_eq!(u64::from_le_bytes(into), taken);
        }
    }
}
