//! Pipes, with and without a name.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use messages::storage::Stat;
use spin::Mutex;

use crate::error::{Result, errno};
use crate::object::{Object, POLL_ERR, POLL_HUP, POLL_IN, POLL_OUT, POLL_RDNORM, POLL_WRNORM};
use crate::wait::WaitQueue;

/// The default capacity of a pipe, in bytes.
pub(crate) const PIPE_SIZE: usize = 65_536;
/// Bytes that are written in one piece or not at all (`PIPE_BUF`).
const ATOMIC: usize = 4096;
/// The least and the most that a pipe can hold (Linux's `fs.pipe-max-size`).
const LEAST: usize = 4096;
const MOST: usize = 1 << 20;
/// Bytes of a page, by which users are charged.
const PAGE: usize = 4096;
/// Pages that the pipes of a user may hold (Linux's `fs.pipe-user-pages-soft`).
pub(crate) const USER_PAGES: u64 = 16_384;
/// The capacity of a new pipe of a user who has that many.
const SMALL: usize = 2 * PAGE;
/// `S_IFIFO` with the owner's rights.
const FIFO: u32 = 0o010_600;

/// The pages that the pipes of each user may come to hold.
#[derive(Debug, Default)]
pub(crate) struct UserPages(Mutex<BTreeMap<u32, u64>>);

/// A user who makes or enlarges pipes.
#[derive(Clone, Debug)]
pub(crate) struct PipeUser {
    pub(crate) pages: Arc<UserPages>,
    pub(crate) user: u32,
    /// The user's pages have a bound.
    pub(crate) bounded: bool,
}

impl PipeUser {
    /// Pays for `to` bytes in place of `from`; false, and nothing changes, if that is too much.
    fn pay(&self, from: usize, to: usize, bounded: bool) -> bool {
        let [from, to] = [from, to].map(|bytes| (bytes / PAGE) as u64);
        let mut users = self.pages.0.lock();
        let paid = users.get(&self.user).copied().unwrap_or(0);
        let new = paid.saturating_sub(from) + to;
        if bounded && to > from && new > USER_PAGES {
            return false;
        }
        if new == 0 {
            users.remove(&self.user);
        } else {
            users.insert(self.user, new);
        }
        true
    }
}

/// The bytes between a pipe's ends.
#[derive(Debug)]
pub(crate) struct Pipe {
    state: Mutex<State>,
    queue: WaitQueue,
}

#[derive(Debug)]
struct State {
    bytes: VecDeque<u8>,
    capacity: usize,
    /// The user who is charged for the capacity.
    payer: Option<PipeUser>,
    readers: u32,
    writers: u32,
    /// Number of opens of the read end, for openers of a FIFO that wait for the other end.
    read_opens: u64,
    write_opens: u64,
}

impl Default for Pipe {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                bytes: VecDeque::new(),
                capacity: PIPE_SIZE,
                payer: None,
                readers: 0,
                writers: 0,
                read_opens: 0,
                write_opens: 0,
            }),
            queue: WaitQueue::default(),
        }
    }
}

impl State {
    fn room(&self) -> usize {
        self.capacity.saturating_sub(self.bytes.len())
    }

    fn take(&mut self, into: &mut [u8]) -> usize {
        let count = self.bytes.len().min(into.len());
        for (place, byte) in into.iter_mut().zip(self.bytes.drain(..count)) {
            *place = byte;
        }
        count
    }
}

/// An end: read, written, or (of a FIFO) both.
#[derive(Debug)]
pub(crate) struct PipeEnd {
    pipe: Arc<Pipe>,
    reads: bool,
    writes: bool,
    /// Opens of the other end that there had been, if nobody had it open when this one was opened.
    unmet: Option<u64>,
    /// Status of the FIFO's inode when the end was opened; a pipe has none.
    named: Option<Box<Stat>>,
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some(payer) = &self.payer {
            payer.pay(self.capacity, 0, false);
        }
    }
}

/// Returns the two ends of a new pipe: the one that is read, the one that is written.
pub(crate) fn pipe(payer: PipeUser) -> (PipeEnd, PipeEnd) {
    let pipe = Arc::new(Pipe::default());
    {
        let mut state = pipe.state.lock();
        if !payer.pay(0, PIPE_SIZE, payer.bounded) {
            state.capacity = SMALL;
            payer.pay(0, SMALL, false);
        }
        state.payer = Some(payer);
    }
    (
        PipeEnd::open(&pipe, true, false),
        PipeEnd::open(&pipe, false, true),
    )
}

impl PipeEnd {
    /// Opens an end.
    pub(crate) fn open(pipe: &Arc<Pipe>, reads: bool, writes: bool) -> Self {
        let mut state = pipe.state.lock();
        let unmet = if reads {
            (state.writers == 0).then_some(state.write_opens)
        } else {
            (state.readers == 0).then_some(state.read_opens)
        };
        state.readers += u32::from(reads);
        state.writers += u32::from(writes);
        state.read_opens += u64::from(reads);
        state.write_opens += u64::from(writes);
        drop(state);
        pipe.queue.wake();
        Self {
            pipe: pipe.clone(),
            reads,
            writes,
            unmet,
            named: None,
        }
    }

    /// Keeps the status of the inode by which the end was opened.
    pub(crate) fn named(mut self, stat: &Stat) -> Self {
        self.named = Some(Box::new(*stat));
        self
    }

    /// Opens the end of a FIFO that is written, if somebody reads it.
    ///
    /// # Errors
    ///
    /// ENXIO.
    pub(crate) fn open_to_write(pipe: &Arc<Pipe>) -> Result<Self> {
        if pipe.state.lock().readers == 0 {
            return Err(errno::ENXIO.into());
        }
        Ok(Self::open(pipe, false, true))
    }

    /// Returns whether the other end is open, or was since this one was opened.
    pub(crate) fn met(&self) -> bool {
        let state = self.pipe.state.lock();
        let opens = if self.reads {
            state.write_opens
        } else {
            state.read_opens
        };
        self.unmet != Some(opens)
    }

    /// Returns whether two ends are of the same pipe.
    pub(crate) fn same_pipe(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pipe, &other.pipe)
    }

    /// Returns the bytes that the pipe holds at most.
    pub(crate) fn capacity(&self) -> usize {
        self.pipe.state.lock().capacity
    }

    /// Changes the bytes that the pipe holds at most, to a power of two that is not less; returns
    /// it.
    ///
    /// # Errors
    ///
    /// EINVAL, EPERM if it is too much, of itself or with the user's other pipes; EBUSY if more is
    /// there.
    pub(crate) fn set_capacity(&self, asked: u32, by: PipeUser) -> Result<usize> {
        let asked = usize::try_from(asked).map_err(|_| errno::EINVAL)?;
        if asked > 1 << 31 {
            return Err(errno::EINVAL.into());
        }
        let capacity = asked.max(LEAST).next_power_of_two();
        if capacity > MOST {
            return Err(errno::EPERM.into());
        }
        let mut state = self.pipe.state.lock();
        if state.bytes.len() > capacity {
            return Err(errno::EBUSY.into());
        }
        let had = state.capacity;
        // A named pipe has nobody who pays until it is changed.
        let (payer, before) = match state.payer.clone() {
            Some(payer) => (payer, had),
            None => (by.clone(), 0),
        };
        if !payer.pay(before, capacity, by.bounded && capacity > had) {
            return Err(errno::EPERM.into());
        }
        state.payer = Some(payer);
        state.capacity = capacity;
        drop(state);
        self.pipe.queue.wake();
        Ok(capacity)
    }

    /// Returns how many bytes can be written now.
    pub(crate) fn room(&self) -> usize {
        self.pipe.state.lock().room()
    }

    /// Reads without taking away.
    ///
    /// # Errors
    ///
    /// As reading.
    pub(crate) fn peek(&self, most: usize) -> Result<Vec<u8>> {
        let state = self.pipe.state.lock();
        if state.bytes.is_empty() && state.writers > 0 {
            return Err(errno::EAGAIN.into());
        }
        Ok(state.bytes.iter().take(most).copied().collect())
    }

    /// Adds bytes that were taken from where they can't be put back, beyond the size if need be.
    pub(crate) fn force(&self, bytes: &[u8]) {
        self.pipe.state.lock().bytes.extend(bytes);
        self.pipe.queue.wake();
    }

    /// Takes away bytes that were peeked at; fewer if another reader was first.
    pub(crate) fn consume(&self, count: usize) {
        let mut state = self.pipe.state.lock();
        let count = count.min(state.bytes.len());
        state.bytes.drain(..count);
        drop(state);
        self.pipe.queue.wake();
    }
}

impl Object for PipeEnd {
    fn read(&self, into: &mut [u8]) -> Result<usize> {
        if !self.reads {
            return Err(errno::EBADF.into());
        }
        let mut state = self.pipe.state.lock();
        let count = state.take(into);
        if count == 0 {
            return if state.writers == 0 || into.is_empty() {
                Ok(0)
            } else {
                Err(errno::EAGAIN.into())
            };
        }
        drop(state);
        self.pipe.queue.wake();
        Ok(count)
    }

    fn write(&self, from: &[u8]) -> Result<usize> {
        if !self.writes {
            return Err(errno::EBADF.into());
        }
        let mut state = self.pipe.state.lock();
        if state.readers == 0 {
            return Err(errno::EPIPE.into());
        }
        let room = state.room();
        if room == 0 || (from.len() <= ATOMIC && room < from.len()) {
            return Err(errno::EAGAIN.into());
        }
        let count = room.min(from.len());
        state.bytes.extend(&from[..count]);
        drop(state);
        self.pipe.queue.wake();
        Ok(count)
    }

    fn ready(&self) -> u16 {
        let state = self.pipe.state.lock();
        let mut bits = 0;
        if self.reads {
            if !state.bytes.is_empty() {
                bits |= POLL_IN | POLL_RDNORM;
            }
            // Who opened a FIFO without waiting has not lost a writer that never was.
            if state.writers == 0 && self.unmet != Some(state.write_opens) {
                bits |= POLL_HUP;
            }
        }
        if self.writes {
            if state.room() >= ATOMIC {
                bits |= POLL_OUT | POLL_WRNORM;
            }
            if state.readers == 0 {
                bits |= POLL_ERR;
            }
        }
        bits
    }

    fn queue(&self) -> &WaitQueue {
        &self.pipe.queue
    }

    fn is_plain(&self) -> bool {
        true
    }

    fn as_pipe(&self) -> Option<&PipeEnd> {
        Some(self)
    }

    fn named(&self) -> Option<&Stat> {
        self.named.as_deref()
    }

    fn mode(&self) -> u32 {
        FIFO
    }

    fn readable(&self) -> usize {
        self.pipe.state.lock().bytes.len()
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        let mut state = self.pipe.state.lock();
        state.readers -= u32::from(self.reads);
        state.writers -= u32::from(self.writes);
        if state.readers == 0 && state.writers == 0 {
            // A FIFO begins anew.
            state.bytes = VecDeque::new();
        }
        drop(state);
        self.pipe.queue.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payer() -> PipeUser {
        PipeUser {
            pages: Arc::default(),
            user: 1000,
            bounded: true,
        }
    }

    #[test]
    fn a_pipe_holds_what_fits_and_ends_with_its_writer() {
        let (reader, writer) = pipe(payer());
        let mut into = [0; 10];
        assert_eq!(reader.read(&mut into), Err(errno::EAGAIN.into()));
        assert_eq!(writer.write(&vec![7; PIPE_SIZE - 10]), Ok(PIPE_SIZE - 10));
        assert_eq!(
            writer.write(&[8; 20]),
            Err(errno::EAGAIN.into()),
            "in one piece"
        );
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
        let (reader, writer) = pipe(payer());
        drop(reader);
        assert_eq!(writer.write(&[1]), Err(errno::EPIPE.into()));
        assert_ne!(writer.ready() & POLL_ERR, 0);
    }

    #[test]
    fn a_pipe_s_size_is_a_power_of_two_that_holds_what_is_there() {
        let (_reader, writer) = pipe(payer());
        assert_eq!(writer.set_capacity(0, payer()), Ok(4096));
        assert_eq!(writer.set_capacity(5000, payer()), Ok(8192));
        assert_eq!(writer.write(&[1; 8192]), Ok(8192));
        assert_eq!(writer.write(&[1]), Err(errno::EAGAIN.into()));
        assert_eq!(writer.set_capacity(4096, payer()), Err(errno::EBUSY.into()));
        assert_eq!(
            writer.set_capacity(1 << 21, payer()),
            Err(errno::EPERM.into())
        );
        assert_eq!(
            writer.set_capacity(u32::MAX, payer()),
            Err(errno::EINVAL.into())
        );
        assert_eq!(
            (writer.set_capacity(10_000, payer()), writer.room()),
            (Ok(16_384), 8192)
        );
    }

    #[test]
    fn a_named_pipe_hangs_up_only_after_a_writer_was_there() {
        let pipe = Arc::new(Pipe::default());
        assert!(PipeEnd::open_to_write(&pipe).is_err());
        let reader = PipeEnd::open(&pipe, true, false);
        assert_eq!((reader.ready(), reader.met()), (0, false));
        let writer = PipeEnd::open_to_write(&pipe).unwrap();
        assert_eq!(writer.write(b"x"), Ok(1));
        drop(writer);
        assert_eq!((reader.ready() & POLL_HUP, reader.met()), (POLL_HUP, true));
        assert_eq!(reader.read(&mut [0; 4]), Ok(1));
        drop(reader);
        let both = PipeEnd::open(&pipe, true, true);
        assert_eq!((both.readable(), both.write(b"y")), (0, Ok(1)));
    }

    #[test]
    fn a_user_s_pipes_hold_no_more_than_a_bound() {
        let one = payer();
        let root = PipeUser {
            bounded: false,
            ..one.clone()
        };
        // 1,022 pipes of 16 pages, and one of 16 more.
        let mut pipes: Vec<_> = (0..1023).map(|_| pipe(one.clone())).collect();
        let (reader, writer) = pipe(one.clone());
        assert_eq!(writer.capacity(), PIPE_SIZE, "the last whole one");
        assert_eq!(
            writer.set_capacity(1 << 17, one.clone()),
            Err(errno::EPERM.into())
        );
        let (_, small) = pipe(one.clone());
        assert_eq!(small.capacity(), SMALL);
        assert_eq!(small.set_capacity(4096, one.clone()), Ok(4096));
        assert_eq!(writer.set_capacity(1 << 17, root.clone()), Ok(1 << 17));
        let other = PipeUser {
            user: 7,
            ..one.clone()
        };
        assert_eq!(pipe(other).0.capacity(), PIPE_SIZE);
        drop((reader, writer, small));
        pipes.truncate(1000);
        let (_reader, writer) = pipe(one.clone());
        assert_eq!(writer.set_capacity(1 << 20, one.clone()), Ok(1 << 20));
        drop((pipes, _reader, writer));
        assert!(one.pages.0.lock().is_empty(), "all comes back");
    }
}
