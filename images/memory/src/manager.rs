//! Answers the borrowers' requests, and orders what must be done first.

use alloc::collections::VecDeque;

use messages::memory::{
    Capacity, CapacityReply, Chunks, Lend, LendRequest, MAX_CHUNKS, MemoryRequest, Reserve,
    ReserveRequest, Return, ReturnRequest,
};
use messages::{Call, Errno, Kind, encode_reply};
use verbs::Rkey;

use crate::accounts::{Accounts, Lost};
use crate::counters::Counters;
use crate::extent::ExtentId;
use crate::pool::{Action, Pool, Progress};

/// Lost peers that are remembered: those of over a minute of one that connects and breaks off as
/// fast as it can. No request takes as long. FIT gives a number again after thousands of others.
const MAX_LOST: usize = 1024;

/// A borrower: FIT's number of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(pub u16);

/// The outcome of giving a request to the manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The reply has this length.
    Replied(usize),
    /// Nothing has changed yet: carry out this action, report it, and give the request again.
    First(Action),
    /// Nothing has changed yet: give the request again once an action that another task carries out
    /// has ended.
    Wait,
}

/// M's logic: the pool, and what each borrower has of it.
///
/// It reaches neither the fabric nor the memory: it only issues [`Action`]s. So no call of it takes
/// long, whatever a borrower asks or leaves behind: its work is bounded by
/// [`MAX_EXTENTS`](crate::MAX_EXTENTS) and [`MAX_CHUNKS`], not by how many chunks there are.
#[derive(Debug)]
pub struct Manager {
    pool: Pool,
    accounts: Accounts,
    /// The latest lost peers. A request that began before its peer was lost may still be under way,
    /// and must not be lent anything.
    lost: VecDeque<PeerKey>,
    /// Counts what a peer causes at will; the log says it at debug only, as a console is slow and
    /// the manager locked meanwhile.
    counters: Counters,
}

impl Manager {
    /// Lends the memory of `pool`.
    #[must_use]
    pub fn new(pool: Pool) -> Self {
        Self {
            accounts: Accounts::new(pool.extent_chunks()),
            pool,
            lost: VecDeque::with_capacity(MAX_LOST),
            counters: Counters::default(),
        }
    }

    /// Returns the counters and gauges.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            nr_chunks: self.pool.chunks(),
            nr_chunks_lent: self.accounts.lent(),
            nr_chunks_promised: self.accounts.promised(),
            ..self.counters
        }
    }

    /// Returns the pool.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Returns how many chunks are lent for process `pid` of `peer`.
    #[must_use]
    pub fn held(&self, peer: PeerKey, pid: u32) -> usize {
        self.accounts.of_process(peer, pid)
    }

    /// Answers one request, or returns what must happen first.
    ///
    /// `reply` holds at least [`messages::MAX_MESSAGE`] bytes.
    pub fn handle(&mut self, from: PeerKey, kind: u16, request: &[u8], reply: &mut [u8]) -> Step {
        self.answer(from, kind, request, reply, true)
    }

    /// Answers one request with what the borrower can have at once, when an action has failed or
    /// took too long; returns the reply's length.
    pub fn handle_at_once(
        &mut self,
        from: PeerKey,
        kind: u16,
        request: &[u8],
        reply: &mut [u8],
    ) -> usize {
        match self.answer(from, kind, request, reply, false) {
            Step::Replied(len) => len,
            other => unreachable!("{other:?} though the request cannot wait"),
        }
    }

    /// Answers a request for chunks by EAGAIN; returns the reply's length.
    pub fn put_off(&mut self, reply: &mut [u8]) -> usize {
        self.counters.nr_eagain += 1;
        put::<Lend>(&Err(Errno::EAGAIN), reply)
    }

    /// Takes back all that a lost peer had. Its extents are cleaned by the actions of
    /// [`clean`](Self::clean).
    ///
    /// The peer's queue pairs are dead: none of its transfers is in flight.
    pub fn peer_lost(&mut self, peer: PeerKey) -> Lost {
        if self.lost.len() == MAX_LOST {
            self.lost.pop_front();
        }
        self.lost.push_back(peer);
        self.pool.abandon(peer);
        self.accounts.close(peer)
    }

    /// Returns the next action that makes what a borrower left fit for another; `None` if there is
    /// none to give now.
    pub fn clean(&mut self) -> Option<Action> {
        self.pool.clean()
    }

    /// Notes that an extent is registered, under this key.
    pub fn registered(&mut self, extent: ExtentId, rkey: Rkey) {
        self.pool.registered(extent, Some(rkey));
    }

    /// Notes that an extent could not be registered.
    pub fn refused(&mut self, extent: ExtentId) {
        if let Some(peer) = self.pool.registered(extent, None) {
            self.accounts.release(peer, 1);
        }
    }

    /// Notes that an extent was deregistered: no peer can write there any more.
    pub fn deregistered(&mut self, extent: ExtentId) {
        self.pool.deregistered(extent, true);
    }

    /// Notes that an extent's region could not be deregistered. The extent goes out of use.
    pub fn stuck(&mut self, extent: ExtentId) {
        if self.pool.deregistered(extent, false) {
            log::error!("{} chunks went out of use", self.pool.extent_chunks());
        }
    }

    /// Notes that a piece of an extent is zeroed.
    pub fn zeroed(&mut self, extent: ExtentId) {
        self.counters.nr_extents_zeroed += u64::from(self.pool.zeroed(extent));
    }

    fn answer(
        &mut self,
        from: PeerKey,
        kind: u16,
        request: &[u8],
        reply: &mut [u8],
        may_wait: bool,
    ) -> Step {
        let request = match MemoryRequest::decode(Kind(kind), request) {
            Ok(request) => request,
            Err(error) => {
                log::debug!("peer {}: call {kind}: {error}", from.0);
                self.counters.nr_bad_requests += 1;
                return Step::Replied(put::<Reserve>(&Err(Errno::EPROTO), reply));
            }
        };
        if self.lost.contains(&from) {
            return Step::Replied(put::<Reserve>(&Err(Errno::EIO), reply));
        }
        Step::Replied(match &request {
            MemoryRequest::Reserve(request) => put::<Reserve>(&self.reserve(from, request), reply),
            MemoryRequest::Lend(request) => match self.before_lending(from, request, may_wait) {
                Some(step) => return step,
                None => put::<Lend>(&self.lend(from, request), reply),
            },
            MemoryRequest::Return(request) => put::<Return>(&self.take_back(from, request), reply),
            MemoryRequest::Capacity(()) => put::<Capacity>(&Ok(self.capacity()), reply),
        })
    }

    fn capacity(&mut self) -> CapacityReply {
        self.counters.handle_p2m_capacity += 1;
        let counters = self.counters();
        let taken = counters.nr_chunks_lent.max(counters.nr_chunks_promised);
        let chunks = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        CapacityReply {
            total: chunks(counters.nr_chunks),
            free: chunks(counters.nr_chunks.saturating_sub(taken)),
        }
    }

    fn reserve(&mut self, from: PeerKey, request: &ReserveRequest) -> Result<(), Errno> {
        self.counters.handle_p2m_reserve += 1;
        let chunks = usize::try_from(request.chunks).unwrap_or(usize::MAX);
        if self.accounts.promise(from, chunks, self.pool.extents()) {
            return Ok(());
        }
        Err(self.short(from, chunks, "promise"))
    }

    /// Returns what must happen before the chunks can be lent.
    ///
    /// Idle extents are registered until there are as many chunks as wanted. For extents that must
    /// be cleaned first, a request waits only if it would get nothing otherwise.
    fn before_lending(
        &mut self,
        from: PeerKey,
        request: &LendRequest,
        may_wait: bool,
    ) -> Option<Step> {
        let may_hold = self.accounts.may_hold(from, self.pool.extents());
        let (free, empty) = self.pool.within_reach(from);
        let available = free + may_hold.min(empty) * self.pool.extent_chunks();
        if !may_wait || wanted(request) <= available {
            return None;
        }
        if available == 0 && self.pool.is_registering(from) {
            return Some(Step::Wait);
        }
        if may_hold <= empty {
            return None;
        }
        match self.pool.progress(from, available == 0) {
            Progress::Action(action) => {
                if matches!(action, Action::Register { .. }) {
                    self.accounts.hold(from);
                }
                Some(Step::First(action))
            }
            Progress::Wait => Some(Step::Wait),
            Progress::None => None,
        }
    }

    fn lend(&mut self, from: PeerKey, request: &LendRequest) -> Result<Chunks, Errno> {
        self.counters.handle_p2m_lend += 1;
        let (wanted, mut chunks) = (wanted(request), Chunks::new());
        if wanted == 0 {
            self.counters.nr_bad_requests += 1;
            return Err(Errno::EINVAL);
        }
        while chunks.len() < wanted {
            let may_hold_another = self.accounts.may_hold(from, self.pool.extents()) > 0;
            let pool = &mut self.pool;
            match pool.take(from, request.pid, wanted, may_hold_another, &mut chunks) {
                Some(true) => self.accounts.hold(from),
                Some(false) => {}
                None => break,
            }
        }
        let left = self.pool.settle(from);
        self.accounts.release(from, left);
        if chunks.is_empty() {
            return Err(self.short(from, wanted, "lend"));
        }
        self.accounts.lend(from, request.pid, chunks.len());
        self.counters.max_chunks_lent = self.counters.max_chunks_lent.max(self.accounts.lent());
        Ok(chunks)
    }

    fn take_back(&mut self, from: PeerKey, request: &ReturnRequest) -> Result<(), Errno> {
        self.counters.handle_p2m_return += 1;
        let mut sorted = request.chunks.clone();
        sorted.sort_unstable();
        let twice = sorted.windows(2).any(|pair| pair[0] == pair[1]);
        if twice
            || sorted
                .iter()
                .any(|&addr| self.pool.user(from, addr).is_none())
        {
            log::debug!("peer {}: returns chunks that it does not have", from.0);
            self.counters.nr_bad_requests += 1;
            return Err(Errno::EINVAL);
        }
        for addr in sorted {
            if let Some((pid, left)) = self.pool.give(from, addr) {
                self.accounts.give(from, pid);
                self.accounts.release(from, usize::from(left));
            }
        }
        Ok(())
    }

    fn short(&mut self, from: PeerKey, chunks: usize, what: &str) -> Errno {
        self.counters.nr_enomem += 1;
        log::debug!(
            "peer {}: can't {what} {chunks} chunks: of {}, {} are promised and {} lent",
            from.0,
            self.pool.chunks(),
            self.accounts.promised(),
            self.accounts.lent(),
        );
        Errno::ENOMEM
    }
}

fn wanted(request: &LendRequest) -> usize {
    usize::from(request.count).min(MAX_CHUNKS)
}

/// Encodes a reply. Every reply fits the room that [`Manager::handle`] asks for; an empty one is
/// unreadable to the peer.
fn put<C: Call>(reply: &Result<C::Reply<'_>, Errno>, into: &mut [u8]) -> usize {
    encode_reply::<C>(reply, into).unwrap_or_else(|error| {
        log::error!("{}: {error}", C::NAME);
        0
    })
}
