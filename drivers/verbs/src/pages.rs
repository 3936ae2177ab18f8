//! The data path of pages: READs and WRITEs of a page each, on a queue pair of their own.
//!
//! A request is named by the number of the local line that it fills or empties. Requests end in the
//! order in which they were posted, so one completion ends all unsignalled ones before it. The
//! first failure stops a queue for good: nothing ends by itself any more, and what is outstanding
//! is [taken back](PageQueue::take_back) once the queue pair is dead, for the device may write into
//! its lines until then.

use alloc::collections::VecDeque;

use crate::{
    Access, Completion, CompletionKind, Device, Domain, Error, Lkey, Payload, QpConfig, QpKind,
    QpSlot, Qpn, QueueSet, RemoteAddr, SendOp, SendRequest, Sge, Status,
};

/// Bytes that a request moves.
pub const PAGE_LEN: u32 = 4096;

/// The operation of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageOp {
    /// Fills a local line from the peer's memory.
    Read,
    /// Writes a local line to the peer's memory.
    Write,
}

/// The ring has no place for another request; nothing was posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ring of a page queue is full")]
pub struct RingFull;

/// Reasons why a page queue has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageFailure {
    /// The oldest outstanding request failed.
    #[error("a page's transfer ended with {0:?}")]
    Request(Status),
    /// The device wrote a completion that can't be.
    #[error("a completion for QPN {qpn:#x}, index {index}, that nothing was posted for")]
    Inconsistent {
        /// The queue pair's number as the device wrote it.
        qpn: u32,
        /// The index as the device wrote it.
        index: u16,
    },
    /// The completion queue failed.
    #[error("the completion queue failed")]
    CqFailed,
}

// Kept and looked at on the way of a page: what holds an [`Error`] would be larger.
const _: () = assert!(size_of::<Result<(), PageFailure>>() == 8);

impl From<Error> for PageFailure {
    fn from(error: Error) -> Self {
        match error {
            Error::Inconsistent { qpn, index } => Self::Inconsistent { qpn, index },
            _ => Self::CqFailed,
        }
    }
}

/// The configuration of a new page queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagesConfig {
    /// The domain of the lines' region, and of nothing else that the queue pair reaches.
    pub domain: Domain,
    /// Port, from 1.
    pub port: u8,
    /// Requests that it holds at least.
    pub depth: u32,
    /// The local key of the region that all lines lie in.
    pub lkey: Lkey,
    /// The interrupt vector of its completion queue, from 0.
    pub vector: u16,
}

/// One queue pair for pages and its completion queue: the property of one core. No call waits or
/// takes a lock.
pub trait PageQueue: Send {
    /// Puts a request between the line at `local` and the peer's page at `remote` into the ring.
    /// The device is sure to see it after the next [`ring`](Self::ring); an unsignalled one ends
    /// with a later signalled one.
    ///
    /// # Errors
    ///
    /// [`RingFull`].
    fn post(
        &mut self,
        op: PageOp,
        line: u32,
        local: u64,
        remote: RemoteAddr,
        signalled: bool,
    ) -> Result<(), RingFull>;

    /// Shows the device everything posted so far, by one doorbell.
    fn ring(&mut self);

    /// Returns whether there is a completion to [take](Self::take).
    fn is_ready(&self) -> bool;

    /// Hands a request that has ended to `done`, or several, oldest first; a completion must be
    /// [ready](Self::is_ready), and stays so until all that ended with it were handed out. A
    /// completion queue that failed may have none and is told by
    /// [`DeviceEvent::CqFailed`](crate::DeviceEvent::CqFailed) alone.
    ///
    /// # Errors
    ///
    /// [`PageFailure`], now and at every later call. The request that failed and all behind it stay
    /// outstanding.
    fn take(&mut self, done: &mut impl FnMut(PageOp, u32)) -> Result<(), PageFailure>;

    /// Returns the oldest outstanding request.
    fn oldest(&self) -> Option<(PageOp, u32)>;

    /// Takes the oldest outstanding request back. The queue pair must be dead, or else the device
    /// may still carry it out.
    fn take_back(&mut self) -> Option<(PageOp, u32)>;

    /// Asks for an interrupt at the next completion, as [`QueueSet::arm`] does.
    fn arm(&mut self);

    /// Returns the number of requests that the ring still takes.
    fn room(&self) -> u32;

    /// Returns the number of requests that have not ended.
    fn outstanding(&self) -> u32;
}

/// A request of a [`PagesOver`].
#[derive(Debug, Clone, Copy)]
struct Posted {
    op: PageOp,
    line: u32,
    signalled: bool,
}

/// A page queue over one queue pair of any queue set: for devices without a shorter way.
#[derive(Debug)]
pub struct PagesOver<Q> {
    queues: Q,
    qp: QpSlot,
    lkey: Lkey,
    depth: u32,
    posted: VecDeque<Posted>,
    /// The number of the oldest outstanding request. Numbers are ids.
    oldest: u64,
    failure: Option<PageFailure>,
}

impl<Q: QueueSet> PagesOver<Q> {
    /// Creates the queue set and queue pair of a page queue, as
    /// [`Device::create_pages`] does for a device that has no shorter way.
    ///
    /// # Errors
    ///
    /// Those of [`Device::create_queues`] and [`Device::create_qp`].
    pub async fn create<D: Device<Queues = Q>>(
        device: &D,
        config: &PagesConfig,
    ) -> Result<(Self, Qpn), Error> {
        // One more entry than requests: the queue pair's receive queue has a slot that stays empty.
        let mut queues = device
            .create_queues(config.depth + 1, config.vector)
            .await?;
        let pair = QpConfig {
            kind: QpKind::ReliableConnection,
            domain: config.domain,
            port: config.port,
            send_depth: config.depth,
            receive_depth: 1,
            send_sge: 1,
            receive_sge: 1,
            inline: 0,
            remote_access: Access::default(),
        };
        let (qp, qpn) = device.create_qp(&mut queues, &pair).await?;
        Ok((Self::new(queues, qp, config.depth, config.lkey), qpn))
    }

    /// Makes a page queue of the queue pair `qp`, the only one in `queues`, for `depth` requests
    /// and lines under `lkey`.
    fn new(queues: Q, qp: QpSlot, depth: u32, lkey: Lkey) -> Self {
        Self {
            queues,
            qp,
            lkey,
            depth,
            posted: VecDeque::with_capacity(depth as usize),
            oldest: 0,
            failure: None,
        }
    }

    /// Returns the queue set, to be taken away.
    pub fn into_queues(self) -> Q {
        self.queues
    }

    /// Ends what `completion` says has ended.
    fn complete(
        &mut self,
        completion: &Completion,
        done: &mut impl FnMut(PageOp, u32),
    ) -> Result<(), PageFailure> {
        let Completion { id, kind, .. } = *completion;
        let bad = PageFailure::Inconsistent {
            qpn: self.qp.0.into(),
            index: u16::try_from(id & 0xffff).unwrap_or(0),
        };
        let end = self.oldest + self.posted.len() as u64;
        if kind != CompletionKind::Send || !(self.oldest..end).contains(&id) {
            return Err(bad);
        }
        while self.oldest <= id {
            let last = self.oldest == id;
            let failed = completion.status != Status::Success;
            let Some(&Posted {
                op,
                line,
                signalled,
            }) = self.posted.front()
            else {
                return Err(bad);
            };
            if last && failed {
                return Err(PageFailure::Request(completion.status));
            }
            if signalled != last {
                return Err(bad);
            }
            self.posted.pop_front();
            self.oldest += 1;
            done(op, line);
        }
        Ok(())
    }
}

impl<Q: QueueSet> PageQueue for PagesOver<Q> {
    fn post(
        &mut self,
        op: PageOp,
        line: u32,
        local: u64,
        remote: RemoteAddr,
        signalled: bool,
    ) -> Result<(), RingFull> {
        if self.room() == 0 {
            return Err(RingFull);
        }
        let piece = Sge {
            addr: local,
            len: PAGE_LEN,
            lkey: self.lkey,
        };
        let request = SendRequest {
            id: self.oldest + self.posted.len() as u64,
            op: match op {
                PageOp::Read => SendOp::Read { from: remote },
                PageOp::Write => SendOp::Write {
                    to: remote,
                    imm: None,
                },
            },
            payload: Payload::Gather(&[piece]),
            signalled,
            solicited: false,
            fence: false,
            to: None,
        };
        match self.queues.post_send(self.qp, &request) {
            Ok(()) => {}
            Err(Error::QueueFull { .. }) => return Err(RingFull),
            // The queue pair is gone: the request never ends by itself, as if it had been posted.
            Err(_) => self.failure = self.failure.or(Some(PageFailure::Request(Status::Flushed))),
        }
        self.posted.push_back(Posted {
            op,
            line,
            signalled,
        });
        Ok(())
    }

    fn ring(&mut self) {
        self.queues.ring(self.qp);
    }

    /// There may be: only taking tells.
    fn is_ready(&self) -> bool {
        true
    }

    fn take(&mut self, done: &mut impl FnMut(PageOp, u32)) -> Result<(), PageFailure> {
        let mut entry = [Completion::EMPTY];
        if self.failure.is_none() {
            self.failure = match self.queues.poll(&mut entry) {
                Ok(0) => None,
                Ok(_) => self.complete(&entry[0], done).err(),
                Err(error) => Some(error.into()),
            };
        }
        self.failure.map_or(Ok(()), Err)
    }

    fn oldest(&self) -> Option<(PageOp, u32)> {
        self.posted.front().map(|posted| (posted.op, posted.line))
    }

    fn take_back(&mut self) -> Option<(PageOp, u32)> {
        let Posted { op, line, .. } = self.posted.pop_front()?;
        self.oldest += 1;
        Some((op, line))
    }

    fn arm(&mut self) {
        self.queues.arm(false);
    }

    fn room(&self) -> u32 {
        self.depth - self.outstanding()
    }

    fn outstanding(&self) -> u32 {
        u32::try_from(self.posted.len()).unwrap_or(u32::MAX)
    }
}
