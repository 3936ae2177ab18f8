//! The page path: READs and WRITEs of a page each to one peer, on a queue pair of one core's own.
//!
//! It is the way of a page fault, so it is short: calls are synchronous, allocate nothing and take
//! no lock. Its owner starts requests, [rings](PagePath::ring) once for a batch, and
//! [looks](PagePath::look) for what has ended. READs are signalled; a WRITE is only if nothing
//! signalled follows it in its batch, so that one completion tells of all before it. For that the
//! last WRITE started is held back until what comes after it is known.
//!
//! A lost path tells nothing before its queue pair is dead, for lines may be written until then;
//! then every request that has not ended ends with the cause. A path that fails takes the peer with
//! it, as each of a peer's connections does, and the other way round. A path that is dropped is
//! closed in order by the control task, and the peer stays.

mod link;
mod open;

use alloc::sync::Arc;
use alloc::vec::Vec;

use hal::{Duration, Instant};
use verbs::{PageFailure, PageOp, PageQueue, Qpn, RemoteAddr};

use crate::sync::Mutex;
use crate::{LostCause, Operation, PeerId, PeerName};
pub(crate) use link::{PageLink, PageState};

/// A batch of WRITEs has at least one in so many signalled, so that places in the ring come back
/// before its end.
const SIGNAL_EVERY: u32 = 16;

/// A deadline that is not reckoned yet: any time is past it.
const UNSET: Instant = Instant::from_nanos(0);

/// Page queues whose owners are gone, to be taken away.
pub(crate) type OrphanedQueues<Q> = Mutex<Vec<(Qpn, Q)>>;

/// Reasons why a request was not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageRefused {
    /// The ring is full: [`look`](PagePath::look) makes room.
    #[error("the ring of the page path is full")]
    Full,
    /// The path is lost: [`lost`](PagePath::lost) says why.
    #[error("the page path is lost")]
    Lost,
}

/// The counters of a page path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageCounters {
    /// READs started.
    pub nr_rdma_read: u64,
    /// WRITEs started.
    pub nr_rdma_write: u64,
    /// WRITEs that made a completion of their own.
    pub nr_signalled_write: u64,
    /// Doorbells rung.
    pub nr_doorbells: u64,
}

/// A WRITE that was started and not posted.
#[derive(Debug, Clone, Copy)]
struct Held {
    line: u32,
    local: u64,
    to: RemoteAddr,
}

/// The way of pages between one core and one peer.
pub struct PagePath<Q: PageQueue> {
    /// There until this is dropped.
    queue: Option<Q>,
    link: Arc<PageLink>,
    parking: Arc<OrphanedQueues<Q>>,
    /// Requests that were started and have not ended.
    pending: u32,
    /// WRITEs since the last signalled one.
    unsignalled: u32,
    /// Whether anything was posted since the last doorbell.
    unrung: bool,
    held: Option<Held>,
    /// Deadline of the oldest request.
    give_up: Instant,
    timeout: Duration,
    counters: PageCounters,
}

impl<Q: PageQueue> PagePath<Q> {
    pub(crate) fn new(
        queue: Q,
        link: Arc<PageLink>,
        parking: Arc<OrphanedQueues<Q>>,
        timeout: Duration,
    ) -> Self {
        Self {
            queue: Some(queue),
            link,
            parking,
            pending: 0,
            unsignalled: 0,
            unrung: false,
            held: None,
            give_up: UNSET,
            timeout,
            counters: PageCounters::default(),
        }
    }

    /// Starts a READ of the peer's page at `from` into the line number `line`, which lies at
    /// `local` in the lines' region. The line is lent until the READ has ended. With
    /// [`ring`](Self::ring) 104 instructions, the driver's among them.
    ///
    /// # Errors
    ///
    /// [`PageRefused`]; nothing was started then.
    #[inline]
    pub fn read(&mut self, line: u32, local: u64, from: RemoteAddr) -> Result<(), PageRefused> {
        if !self.link.is_up() {
            return Err(PageRefused::Lost);
        }
        if self.held.is_some() {
            if self.room() == 0 {
                return Err(PageRefused::Full);
            }
            self.release(false);
        }
        self.post(PageOp::Read, line, local, from, true)?;
        self.pending += 1;
        self.counters.nr_rdma_read += 1;
        Ok(())
    }

    /// Starts a WRITE of the line number `line`, which lies at `local` in the lines' region, to the
    /// peer's page at `to`. The line is lent until the WRITE has ended.
    ///
    /// # Errors
    ///
    /// [`PageRefused`]; nothing was started then.
    #[inline]
    pub fn write(&mut self, line: u32, local: u64, to: RemoteAddr) -> Result<(), PageRefused> {
        if !self.link.is_up() {
            return Err(PageRefused::Lost);
        }
        if self.room() == 0 {
            return Err(PageRefused::Full);
        }
        if self.held.is_some() {
            self.release(self.unsignalled >= SIGNAL_EVERY - 1);
        }
        self.pending += 1;
        self.held = Some(Held { line, local, to });
        self.counters.nr_rdma_write += 1;
        Ok(())
    }

    /// Shows the device everything started so far, by one doorbell if there is anything.
    #[inline]
    pub fn ring(&mut self) {
        if self.held.is_some() {
            // Nothing follows it, so its own completion must end it and the ones before it.
            self.release(true);
        }
        if let Some(queue) = self.queue.as_mut().filter(|_| self.unrung) {
            queue.ring();
            self.unrung = false;
            self.counters.nr_doorbells += 1;
        }
    }

    /// Tells `done` of the oldest request if it has ended, or of several, and looks at the deadline
    /// of the oldest that has not: the path is lost when that has been the oldest for
    /// [`Config::timeout`](crate::Config::timeout). Returns how many ended: 0 when there is nothing
    /// more to look at now. 30 instructions if there is nothing, 90 if a request has ended.
    #[inline]
    pub fn look(
        &mut self,
        now: Instant,
        done: &mut impl FnMut(PageOp, u32, Result<(), LostCause>),
    ) -> u32 {
        let Some(queue) = &self.queue else { return 0 };
        if queue.is_ready() {
            return self.take(now, done);
        }
        if self.pending == 0 || now < self.give_up && self.link.is_up() {
            return 0;
        }
        self.look_closer(now, done)
    }

    /// Takes a completion. Not inline: a look that finds nothing would pay for what this saves on
    /// the stack.
    #[inline(never)]
    fn take(
        &mut self,
        now: Instant,
        done: &mut impl FnMut(PageOp, u32, Result<(), LostCause>),
    ) -> u32 {
        let Some(queue) = &mut self.queue else {
            return 0;
        };
        let mut ended = 0;
        let taken = queue.take(&mut |op, line| {
            ended += 1;
            done(op, line, Ok(()));
        });
        if let Err(failure) = taken {
            self.fail(failure);
        }
        if ended == 0 {
            return self.look_closer(now, done);
        }
        self.pending -= ended;
        self.give_up = UNSET;
        ended
    }

    /// Asks for an interrupt at the next completion, by the vector of the core that the path was
    /// opened for. A completion that is there already may raise none: look once more afterwards.
    pub fn arm(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.arm();
        }
    }

    /// Returns the number of requests that could be started now.
    #[must_use]
    pub fn room(&self) -> u32 {
        let held = u32::from(self.held.is_some());
        self.queue.as_ref().map_or(0, |queue| queue.room() - held)
    }

    /// Returns the number of requests that have not ended.
    #[must_use]
    pub fn pending(&self) -> u32 {
        self.pending
    }

    /// Returns the peer's number and name.
    #[must_use]
    pub fn peer(&self) -> (PeerId, PeerName) {
        (self.link.peer, self.link.name)
    }

    /// Returns why the path is lost, if it is. Requests may still be pending until the queue pair
    /// is dead.
    #[must_use]
    pub fn lost(&self) -> Option<LostCause> {
        (self.link.state() >= PageState::Failing).then(|| self.link.cause())
    }

    /// Returns what was counted so far.
    #[must_use]
    pub fn counters(&self) -> PageCounters {
        self.counters
    }

    /// Posts the WRITE that was held back. Not inline: most faults have none.
    #[inline(never)]
    fn release(&mut self, signalled: bool) {
        if let Some(Held { line, local, to }) = self.held.take() {
            self.counters.nr_signalled_write += u64::from(signalled);
            let posted = self.post(PageOp::Write, line, local, to, signalled);
            debug_assert!(posted.is_ok(), "its place was kept");
            self.unsignalled = if signalled { 0 } else { self.unsignalled + 1 };
        }
    }

    #[inline(always)]
    fn post(
        &mut self,
        op: PageOp,
        line: u32,
        local: u64,
        remote: RemoteAddr,
        signalled: bool,
    ) -> Result<(), PageRefused> {
        let queue = self.queue.as_mut().ok_or(PageRefused::Full)?;
        let posted = queue.post(op, line, local, remote, signalled);
        posted.map_err(|_| PageRefused::Full)?;
        self.unrung = true;
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn fail(&mut self, failure: PageFailure) {
        if !self.link.is_up() {
            return;
        }
        match failure {
            PageFailure::Request(status) => self.link.fail(LostCause::Transport(status)),
            error => {
                log::error!("{}: {error}", self.link.name);
                self.link.fail(LostCause::Device);
            }
        }
    }

    /// Does what a look that found nothing may have to: begins or ends the oldest request's time,
    /// or ends what a dead queue pair leaves.
    #[cold]
    #[inline(never)]
    fn look_closer(
        &mut self,
        now: Instant,
        done: &mut impl FnMut(PageOp, u32, Result<(), LostCause>),
    ) -> u32 {
        match self.link.state() {
            PageState::Dead => return self.end_all(done),
            PageState::Up if self.give_up == UNSET => self.give_up = now + self.timeout,
            PageState::Up if now >= self.give_up => {
                let oldest = self.queue.as_ref().and_then(PageQueue::oldest);
                let operation = match oldest {
                    Some((PageOp::Read, _)) => Operation::Read,
                    Some((PageOp::Write, _)) | None => Operation::Write,
                };
                self.link.fail(LostCause::Deadline(operation));
            }
            _ => {}
        }
        0
    }

    /// Ends every request: the queue pair is dead.
    fn end_all(&mut self, done: &mut impl FnMut(PageOp, u32, Result<(), LostCause>)) -> u32 {
        let cause = self.link.cause();
        while let Some((op, line)) = self.queue.as_mut().and_then(PageQueue::take_back) {
            done(op, line, Err(cause));
        }
        if let Some(held) = self.held.take() {
            done(PageOp::Write, held.line, Err(cause));
        }
        core::mem::take(&mut self.pending)
    }
}

impl<Q: PageQueue> Drop for PagePath<Q> {
    fn drop(&mut self) {
        self.link.close();
        if let Some(queue) = self.queue.take() {
            self.parking.lock().push((self.link.qpn, queue));
        }
    }
}
