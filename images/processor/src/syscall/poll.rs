//! poll, select, pipes, event counters.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::pin::pin;
use core::task::{Poll, Waker};
use core::time::Duration;

use super::{Args, int};
use crate::error::{Result, errno};
use crate::files::{Kind, MAX_FILES, O_NONBLOCK, OpenFile};
use crate::object::{
    EventCounter, Object, POLL_ERR, POLL_HUP, POLL_IN, POLL_NVAL, POLL_OUT, POLL_RDNORM,
    POLL_WRNORM,
};
use crate::pipe::pipe;
use crate::platform::Platform;
use crate::process::Node;
use crate::thread::Thread;

const O_CLOEXEC: u64 = 0o2_000_000;
const O_DIRECT: u64 = 0o40_000;
const EFD_SEMAPHORE: u64 = 1;
/// Bits of `POLL_IN` and of what counts as readable for select, and so on.
const READABLE: u16 = POLL_IN | POLL_RDNORM | POLL_HUP | POLL_ERR;
const WRITABLE: u16 = POLL_OUT | POLL_WRNORM | POLL_ERR;

/// A file that is polled: its number, and the bits that are asked for.
type Asked = (i32, u16);

impl<N: Node> Thread<N> {
    pub(super) async fn sys_pipe(&self, [into, flags, ..]: Args) -> Result<u64> {
        if flags & !(O_CLOEXEC | O_DIRECT | u64::from(O_NONBLOCK)) != 0 {
            return Err(errno::EINVAL.into());
        }
        let (reader, writer) = pipe(self.pipe_payer());
        let status = u32::try_from(flags & !O_CLOEXEC).unwrap_or(0);
        let close = flags & O_CLOEXEC != 0;
        let first = self.add_object(Arc::new(reader), status, close)?;
        let second = self.add_object(Arc::new(writer), status | 1, close);
        self.give_pair(first, second, into).await
    }

    /// Gives the program two new descriptors; if the second could not be made, or the program can't
    /// take them, none stays.
    pub(super) async fn give_pair(
        &self,
        first: u64,
        second: Result<u64>,
        into: u64,
    ) -> Result<u64> {
        let second = match second {
            Ok(second) => second,
            Err(error) => {
                let first = self.table().remove(first);
                drop(first);
                return Err(error);
            }
        };
        let pair = (second << 32 | first).to_le_bytes();
        if let Err(error) = self.memory.write(into, &pair).await {
            let ends = [first, second].map(|fd| self.table().remove(fd));
            drop(ends);
            return Err(error);
        }
        Ok(0)
    }

    pub(super) fn sys_eventfd(&self, count: u64, flags: u64) -> Result<u64> {
        if flags & !(O_CLOEXEC | u64::from(O_NONBLOCK) | EFD_SEMAPHORE) != 0 {
            return Err(errno::EINVAL.into());
        }
        let counter = EventCounter::new(count & 0xffff_ffff, flags & EFD_SEMAPHORE != 0);
        let status = u32::try_from(flags & u64::from(O_NONBLOCK)).unwrap_or(0) | 2;
        self.add_object(Arc::new(counter), status, flags & O_CLOEXEC != 0)
    }

    pub(super) fn add_object(
        &self,
        object: Arc<dyn Object>,
        flags: u32,
        close_on_exec: bool,
    ) -> Result<u64> {
        let file = OpenFile::new(Kind::Object(object), Vec::new(), flags, None);
        self.table().add(Arc::new(file), 0, close_on_exec)
    }

    pub(super) async fn sys_poll(&self, [addr, count, timeout, ..]: Args) -> Result<u64> {
        let timeout = int(timeout).cast_signed();
        let wait = u64::try_from(timeout).ok().map(Duration::from_millis);
        self.poll(addr, count, wait).await
    }

    pub(super) async fn sys_ppoll(
        &mut self,
        [addr, count, timeout, mask, ..]: Args,
    ) -> Result<u64> {
        let wait = match timeout {
            0 => None,
            addr => Some(self.timespec(addr).await?),
        };
        self.mask_from(mask).await?;
        let done = self.poll(addr, count, wait).await;
        self.unmask(done)
    }

    /// Sets the mask at an address for the time of a wait; 0 leaves it.
    pub(super) async fn mask_from(&mut self, addr: u64) -> Result<()> {
        if addr != 0 {
            let mask = self.memory.read_u64(addr).await?;
            self.mask_for_wait(mask);
        }
        Ok(())
    }

    /// Goes back to the mask from before a wait, unless a handler is to run first, which does.
    pub(super) fn unmask(&mut self, done: Result<u64>) -> Result<u64> {
        if done != Err(errno::ERESTARTNOHAND.into())
            && let Some(mask) = self.saved_mask.take()
        {
            self.shared.set_mask(mask);
        }
        done
    }

    async fn poll(&self, addr: u64, count: u64, wait: Option<Duration>) -> Result<u64> {
        let count = usize::try_from(count)
            .ok()
            .filter(|&n| n <= self.table().limit())
            .ok_or(errno::EINVAL)?;
        let mut entries = vec![0; count * 8];
        self.memory.read(addr, &mut entries).await?;
        let asked: Vec<Asked> = entries
            .chunks_exact(8)
            .map(|entry| {
                let fd = i32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]);
                (fd, u16::from_le_bytes([entry[4], entry[5]]))
            })
            .collect();
        let found = self.poll_files(&asked, wait).await?;
        for (entry, found) in entries.chunks_exact_mut(8).zip(&found) {
            entry[6..].copy_from_slice(&found.to_le_bytes());
        }
        self.memory.write(addr, &entries).await?;
        Ok(found.iter().filter(|&&found| found != 0).count() as u64)
    }

    /// Waits until something asked for holds; returns the bits of each file.
    async fn poll_files(&self, asked: &[Asked], wait: Option<Duration>) -> Result<Vec<u16>> {
        let end = wait.map(|wait| self.now() + wait);
        match self.unless_called(self.poll_once(asked, end)).await {
            Ok(found) => Ok(found.unwrap_or_else(|| vec![0; asked.len()])),
            Err(_) => Err(errno::ERESTARTNOHAND.into()),
        }
    }

    /// Waits for one of the files until `until`.
    async fn poll_once(&self, asked: &[Asked], until: Option<hal::Instant>) -> Option<Vec<u16>> {
        let files: Vec<_> = asked
            .iter()
            .map(|&(fd, bits)| (self.polled(fd), bits))
            .collect();
        let look = |waker: Option<&Waker>| -> Option<Vec<u16>> {
            let bits = files
                .iter()
                .map(|(file, bits)| self.ready(file, *bits, waker));
            let found: Vec<u16> = bits.collect();
            found.iter().any(|&found| found != 0).then_some(found)
        };
        if let Some(found) = look(None) {
            return Some(found);
        }
        let any = poll_fn(|context| look(Some(context.waker())).map_or(Poll::Pending, Poll::Ready));
        let Some(until) = until else {
            return Some(any.await);
        };
        let (mut any, mut late) = (pin!(any), pin!(self.node.platform().sleep_until(until)));
        poll_fn(|context| {
            if let Poll::Ready(found) = any.as_mut().poll(context) {
                return Poll::Ready(Some(found));
            }
            late.as_mut().poll(context).map(|()| None)
        })
        .await
    }

    /// Returns a polled file; `None` for a negative number, which is passed over.
    fn polled(&self, fd: i32) -> Option<Result<Arc<OpenFile>>> {
        u64::try_from(fd).ok().map(|fd| self.file(fd))
    }

    /// Returns which of the bits hold for a file, after keeping a waker for the next change.
    fn ready(
        &self,
        file: &Option<Result<Arc<OpenFile>>>,
        asked: u16,
        waker: Option<&Waker>,
    ) -> u16 {
        let file = match file {
            None => return 0,
            Some(Err(_)) => return POLL_NVAL,
            Some(Ok(file)) => file,
        };
        if let (Some(waker), Kind::Object(object)) = (waker, &file.kind) {
            object.register(waker);
        }
        let holds = self.ready_bits(file);
        holds & (asked | POLL_ERR | POLL_HUP)
    }

    /// Returns the poll bits that hold for a file now.
    pub(super) fn ready_bits(&self, file: &OpenFile) -> u16 {
        match &file.kind {
            Kind::Object(object) => match object.as_signals() {
                Some(signals) if self.pending() & signals.set() != 0 => POLL_IN | POLL_RDNORM,
                _ => object.ready(),
            },
            _ => POLL_IN | POLL_RDNORM | POLL_OUT | POLL_WRNORM,
        }
    }

    pub(super) async fn sys_select(
        &self,
        [count, read, write, except, timeout, _]: Args,
    ) -> Result<u64> {
        let wait = match timeout {
            0 => None,
            addr => {
                let (seconds, micros) = (
                    self.memory.read_u64(addr).await?,
                    self.memory.read_u64(addr.saturating_add(8)).await?,
                );
                if seconds.cast_signed() < 0 || micros.cast_signed() < 0 {
                    return Err(errno::EINVAL.into());
                }
                let wait = Duration::from_secs(seconds).checked_add(Duration::from_micros(micros));
                Some(wait.ok_or(errno::EINVAL)?)
            }
        };
        self.select(count, [read, write, except], wait).await
    }

    pub(super) async fn sys_pselect(
        &mut self,
        [count, read, write, except, timeout, mask]: Args,
    ) -> Result<u64> {
        let wait = match timeout {
            0 => None,
            addr => Some(self.timespec(addr).await?),
        };
        if mask != 0 {
            let addr = self.memory.read_u64(mask).await?;
            if addr != 0 {
                let mask = self.memory.read_u64(addr).await?;
                self.mask_for_wait(mask);
            }
        }
        let done = self.select(count, [read, write, except], wait).await;
        self.unmask(done)
    }

    async fn select(&self, count: u64, sets: [u64; 3], wait: Option<Duration>) -> Result<u64> {
        let count = usize::try_from(int(count).cast_signed()).map_err(|_| errno::EINVAL)?;
        // Numbers above the highest that can be open are not looked at.
        let count = count.min(MAX_FILES);
        let len = count.div_ceil(64) * 8;
        let mut bits = [const { Vec::new() }; 3];
        for (bits, addr) in bits.iter_mut().zip(sets) {
            *bits = vec![0_u8; len];
            if addr != 0 {
                self.memory.read(addr, bits).await?;
            }
        }
        let has = |set: &[u8], fd: usize| set[fd / 8] >> (fd % 8) & 1 != 0;
        let kinds = [READABLE, WRITABLE, 0];
        let mut asked = Vec::new();
        for fd in 0..count {
            let wanted = (0..3)
                .filter(|&set| has(&bits[set], fd))
                .fold(0, |sum, set| sum | kinds[set]);
            if (0..3).any(|set| has(&bits[set], fd)) {
                let number = i32::try_from(fd).expect("at most MAX_FILES");
                self.file(fd as u64)?;
                asked.push((number, wanted));
            }
        }
        let found = self.poll_files(&asked, wait).await?;
        let mut ready = 0;
        let mut result = [const { Vec::new() }; 3];
        for (set, result) in result.iter_mut().enumerate() {
            *result = vec![0_u8; len];
            for (&(fd, _), &found) in asked.iter().zip(&found) {
                let fd = usize::try_from(fd).expect("not negative");
                if found & kinds[set] != 0 && has(&bits[set], fd) {
                    result[fd / 8] |= 1 << (fd % 8);
                    ready += 1;
                }
            }
        }
        for (result, addr) in result.iter().zip(sets) {
            if addr != 0 {
                self.memory.write(addr, result).await?;
            }
        }
        Ok(ready)
    }
}
