//! Open objects that are no files of a file system (devices, streams), and event counters.
//!
//! An [`Object`] never waits: it does what it can now and says EAGAIN else. Whoever may wait
//! registers in its queue and tries again ([`Thread::read_object`]).

use alloc::sync::Arc;
use alloc::vec;
use core::fmt;
use core::future::poll_fn;
use core::task::{Poll, Waker};

use messages::storage::Stat;
use spin::Mutex;

use crate::epoll::Epoll;
use crate::error::{Error, Result, errno};
use crate::files::OpenFile;
use crate::inotify::Inotify;
use crate::ipc::posix::MessageQueue;
use crate::pidfd::PidFd;
use crate::pipe::PipeEnd;
use crate::process::Node;
use crate::signal_file::SignalFile;
use crate::signals::{SI_USER, SIGPIPE, SignalInfo};
use crate::socket::Socket;
use crate::terminal::{Side, Terminal};
use crate::thread::Thread;
use crate::timer::Timer;
use crate::wait::WaitQueue;

/// Bits of `poll`.
pub(crate) const POLL_IN: u16 = 1;
pub(crate) const POLL_OUT: u16 = 4;
pub(crate) const POLL_ERR: u16 = 8;
pub(crate) const POLL_HUP: u16 = 0x10;
pub(crate) const POLL_NVAL: u16 = 0x20;
pub(crate) const POLL_RDNORM: u16 = 0x40;
pub(crate) const POLL_WRNORM: u16 = 0x100;
pub(crate) const POLL_WRBAND: u16 = 0x200;
pub(crate) const POLL_RDHUP: u16 = 0x2000;

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
    /// EAGAIN if there is no room, EPIPE if there is no reader.
    fn write(&self, from: &[u8]) -> Result<usize>;
    /// Returns the poll bits that hold now.
    fn ready(&self) -> u16;
    /// Returns the queue that is woken at each change.
    fn queue(&self) -> &WaitQueue;
    /// Keeps a waker until the next change.
    fn register(&self, waker: &Waker) {
        self.queue().register(waker);
    }
    /// Returns a number that differs after each change.
    fn changes(&self) -> u64 {
        self.queue().changes()
    }
    /// Returns whether a short read or write, of `PIPE_BUF` bytes at most, is done whole or not at
    /// all, and whoever asks.
    fn is_plain(&self) -> bool {
        false
    }
    /// Returns whether a write hands one value over, however many bytes there are.
    fn takes_one(&self) -> bool {
        false
    }
    /// Returns what `/proc/self/fd` calls an object that is neither a pipe nor a socket.
    fn name(&self) -> &[u8] {
        b"anon_inode:[object]"
    }
    /// Returns the object as a queue of what happens to files, if it is one.
    fn as_inotify(&self) -> Option<&Inotify> {
        None
    }
    /// Returns the object as a process, if it is one.
    fn as_pidfd(&self) -> Option<&PidFd> {
        None
    }
    /// Returns the object as an end of a pipe, if it is one.
    fn as_pipe(&self) -> Option<&PipeEnd> {
        None
    }
    /// Returns the status of the inode by which the object was opened, as it was then, if it has a
    /// name in a file system.
    fn named(&self) -> Option<&Stat> {
        None
    }
    /// Returns the object as a socket, if it is one.
    fn as_socket(&self) -> Option<&Socket> {
        None
    }
    /// Returns the object as a set of files that are waited for, if it is one.
    fn as_epoll(&self) -> Option<&Epoll> {
        None
    }
    /// Returns the object as a POSIX message queue, if it is one.
    fn as_message_queue(&self) -> Option<&MessageQueue> {
        None
    }
    /// Returns the set of signals that are read from the object, if that is what it is.
    fn as_signals(&self) -> Option<&SignalFile> {
        None
    }
    /// Returns the object's timer, if it has one.
    fn as_timer(&self) -> Option<&Arc<Timer>> {
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
    fn name(&self) -> &[u8] {
        b"anon_inode:[eventfd]"
    }
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
    fn takes_one(&self) -> bool {
        true
    }
    fn is_plain(&self) -> bool {
        true
    }
    fn mode(&self) -> u32 {
        0o600
    }
    fn readable(&self) -> usize {
        8
    }
}

impl<N: Node> Thread<N> {
    /// Sends SIGPIPE, and returns EPIPE.
    pub(crate) fn broken_pipe(&self) -> Error {
        let info = SignalInfo::from_process(SIGPIPE, SI_USER, self.pid);
        self.process.send_thread(&self.shared, info);
        errno::EPIPE.into()
    }

    /// Reads into the program from an object, and waits for bytes unless the file says not to.
    pub(crate) async fn read_object(
        &self,
        file: &OpenFile,
        object: &Arc<dyn Object>,
        addr: u64,
        count: u64,
    ) -> Result<u64> {
        if object.as_signals().is_some() {
            return self.read_signals(file, object, addr, count).await;
        }
        if let Some(socket) = object.as_socket() {
            return self.receive_plain(file, socket, &[(addr, count)]).await;
        }
        if let Some((terminal, Side::Program)) = object.as_terminal() {
            return self.read_terminal(file, terminal, addr, count).await;
        }
        let count = self.memory.reachable(addr, count, true)?;
        let mut piece = vec![0; usize::try_from(count).map_or(PIECE, |count| count.min(PIECE))];
        let attempt = || match object.read(&mut piece) {
            Err(Error::Errno(errno::EAGAIN)) if !file.nonblocking() => None,
            done => Some(done),
        };
        let got = self.unless_called(until(&**object, attempt)).await??;
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
        if let Some(socket) = object.as_socket() {
            return self.send_plain(file, socket, &[(addr, count)]).await;
        }
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
            if object.takes_one() {
                break;
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
        let tried = self.unless_called(until(&**object, attempt)).await;
        let tried = tried.flatten();
        if tried == Err(errno::EPIPE.into()) {
            let info = SignalInfo::from_process(SIGPIPE, SI_USER, self.pid);
            self.shared.send(self.node, info);
        }
        tried
    }
}

/// Waits until `look` gives something; it is called after each change of the object. A socket
/// changes at either end, so its own queue alone does not tell.
pub(crate) async fn until<T>(object: &dyn Object, mut look: impl FnMut() -> Option<T>) -> T {
    poll_fn(|context| {
        if let Some(found) = look() {
            return Poll::Ready(found);
        }
        object.register(context.waker());
        look().map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Wake};

    use super::*;
    use crate::socket::{Credentials, Net, Type};

    /// A waker that remembers whether it was called.
    #[derive(Default)]
    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_waits_to_write_to_a_full_socket_is_woken_by_its_reader() {
        let net = Arc::<Net>::default();
        let [writer, reader] = net.pair(Type::Stream, Credentials::default()).unwrap();
        while writer.write(&[0; 4096]).is_ok() {}
        let flag = Arc::new(Flag::default());
        let waker = Waker::from(flag.clone());
        let mut context = Context::from_waker(&waker);
        let mut wait = pin!(until(&*writer, || writer.write(&[0; 4096]).ok()));
        assert!(wait.as_mut().poll(&mut context).is_pending());
        assert!(!flag.0.load(Ordering::Relaxed));
        let mut all = vec![0; 1 << 20];
        reader.read(&mut all).unwrap();
        assert!(flag.0.load(Ordering::Relaxed), "woken");
        assert_eq!(wait.as_mut().poll(&mut context), Poll::Ready(4096));
    }

    #[test]
    fn event_counters_add_and_are_taken_whole_or_by_one() {
        for (by_one, taken) in [(false, 7), (true, 1)] {
            let counter = EventCounter::new(3, by_one);
            assert_eq!(counter.write(&4u64.to_le_bytes()), Ok(8));
            assert_eq!(
                counter.write(&u64::MAX.to_le_bytes()),
                Err(errno::EINVAL.into())
            );
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
