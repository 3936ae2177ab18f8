//! The processes of each peer, and the answers to their requests.

use alloc::collections::BTreeMap;

use messages::memory::{
    Map, MapRequest, Mapped, MemoryRequest, ProcessCreate, ProcessEnd, ProcessId, Protect, Unmap, Windows,
};
use messages::{Call, Errno, Kind, encode_reply};

use crate::pool::{Backing, Order, Pool, Share};
use crate::space::AddressSpace;

/// The most processes a peer may have.
pub const MAX_PROCESSES: usize = 4096;

/// Who asks: FIT's number of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(pub u16);

/// What M counts, by LegoOS's names where it has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Processes made.
    pub handle_p2m_fork: u64,
    /// Mappings made (also for `brk`).
    pub handle_p2m_mmap: u64,
    /// Ranges unmapped (also for `brk`).
    pub handle_p2m_munmap: u64,
    /// Rights changed.
    pub handle_p2m_mprotect: u64,
    /// Processes ended.
    pub handle_p2m_exit: u64,
    /// Window lists asked for.
    pub handle_p2m_windows: u64,
    /// Requests that were none.
    pub nr_bad_requests: u64,
    /// Calls refused for lack of memory.
    pub nr_enomem: u64,
    /// Most chunks lent at once.
    pub max_chunks_lent: usize,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The reply has this length.
    Replied(usize),
    /// Do this, tell [`Manager::pool_mut`], and give the request again: nothing has changed yet.
    First(Order),
}

/// M's logic: the pool, and every process by its peer and number.
#[derive(Debug)]
pub struct Manager<B> {
    pool: Pool,
    backing: B,
    processes: BTreeMap<(PeerKey, ProcessId), AddressSpace>,
    next: u64,
    /// Chunks that the request under way could not get.
    short: usize,
    counters: Counters,
}

impl Counters {
    fn count(&mut self, request: &MemoryRequest) {
        *match request {
            MemoryRequest::ProcessCreate(_) => &mut self.handle_p2m_fork,
            MemoryRequest::Map(_) => &mut self.handle_p2m_mmap,
            MemoryRequest::Unmap(_) => &mut self.handle_p2m_munmap,
            MemoryRequest::Protect(_) => &mut self.handle_p2m_mprotect,
            MemoryRequest::ProcessEnd(_) => &mut self.handle_p2m_exit,
            MemoryRequest::Windows(_) => &mut self.handle_p2m_windows,
        } += 1;
    }
}

impl<B: Backing> Manager<B> {
    /// Lends the memory of `pool`, which is in `backing`.
    pub fn new(pool: Pool, backing: B) -> Self {
        Self {
            pool,
            backing,
            processes: BTreeMap::new(),
            next: 1,
            short: 0,
            counters: Counters::default(),
        }
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The pool.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The pool, to be told what became of an order.
    pub fn pool_mut(&mut self) -> (&mut Pool, &mut B) {
        (&mut self.pool, &mut self.backing)
    }

    /// Where the memory is.
    #[must_use]
    pub fn backing(&self) -> &B {
        &self.backing
    }

    /// How many processes there are.
    #[must_use]
    pub fn processes(&self) -> usize {
        self.processes.len()
    }

    /// The address space of a process.
    #[must_use]
    pub fn space(&self, from: PeerKey, process: ProcessId) -> Option<&AddressSpace> {
        self.processes.get(&(from, process))
    }

    /// Answers one request, or says what must be done first.
    ///
    /// `reply` holds at least [`messages::MAX_MESSAGE`] bytes; a shorter one may cut a reply to nothing, which the
    /// caller can't read.
    pub fn handle(&mut self, from: PeerKey, kind: u16, request: &[u8], reply: &mut [u8]) -> Step {
        self.answer(from, kind, request, reply, true)
    }

    /// Answers one request with what the borrower has already, for when an order has failed; returns the reply's length.
    pub fn handle_at_once(&mut self, from: PeerKey, kind: u16, request: &[u8], reply: &mut [u8]) -> usize {
        match self.answer(from, kind, request, reply, false) {
            Step::Replied(len) => len,
            Step::First(order) => unreachable!("{order:?} though none was asked for"),
        }
    }

    fn answer(
        &mut self,
        from: PeerKey,
        kind: u16,
        request: &[u8],
        reply: &mut [u8],
        may_order: bool,
    ) -> Step {
        let request = match MemoryRequest::decode(Kind(kind), request) {
            Ok(request) => request,
            Err(error) => {
                log::warn!("peer {}: call {kind}: {error}", from.0);
                self.counters.nr_bad_requests += 1;
                return Step::Replied(put::<ProcessEnd>(&Err(Errno::EPROTO), reply));
            }
        };
        self.short = 0;
        let len = self.act(from, &request, reply);
        if self.short > 0 {
            if let Some(order) = may_order.then(|| self.pool.order(from, self.short)).flatten() {
                return Step::First(order);
            }
            self.counters.nr_enomem += 1;
            log::warn!("peer {}: {} chunks short for {request:?}", from.0, self.short);
        }
        self.pool.settled(from);
        self.counters.count(&request);
        let lent = self.pool.total() - self.pool.free();
        self.counters.max_chunks_lent = self.counters.max_chunks_lent.max(lent);
        Step::Replied(len)
    }

    fn act(&mut self, from: PeerKey, request: &MemoryRequest, reply: &mut [u8]) -> usize {
        match request {
            MemoryRequest::ProcessCreate(create) => {
                put::<ProcessCreate>(&self.create(from, create.pid), reply)
            }
            MemoryRequest::Map(map) => put::<Map>(&self.map(from, map), reply),
            MemoryRequest::Unmap(range) => {
                let done = self.with(from, range.process, |space, pool, backing| {
                    space.unmap(pool, backing, range.address, range.len)
                });
                put::<Unmap>(&done, reply)
            }
            MemoryRequest::Protect(range) => {
                let done = self.with(from, range.process, |space, pool, _| {
                    space.protect(pool, range.address, range.len, range.prot)
                });
                put::<Protect>(&done, reply)
            }
            MemoryRequest::ProcessEnd(end) => put::<ProcessEnd>(&self.end(from, end.process), reply),
            MemoryRequest::Windows(ask) => {
                let list = self.with(from, ask.process, |space, _, _| {
                    Ok(space.windows(ask.first, ask.count))
                });
                put::<Windows>(&list, reply)
            }
        }
    }

    /// Takes back everything that a lost peer had. Its queue pairs are dead: nothing of it can be in flight.
    pub fn peer_lost(&mut self, peer: PeerKey) {
        let first = (peer, ProcessId(0))..=(peer, ProcessId(u64::MAX));
        while let Some((&key, _)) = self.processes.range(first.clone()).next() {
            self.remove(key);
        }
        self.pool.settled(peer);
    }

    fn create(&mut self, from: PeerKey, pid: u32) -> Result<ProcessId, Errno> {
        let theirs = self
            .processes
            .range((from, ProcessId(0))..=(from, ProcessId(u64::MAX)))
            .count();
        if theirs >= MAX_PROCESSES {
            return Err(Errno::ENOMEM);
        }
        let id = ProcessId(self.next);
        self.next += 1;
        log::debug!("peer {}: its process {pid} is {id:?}", from.0);
        self.processes.insert((from, id), AddressSpace::new());
        Ok(id)
    }

    fn map(&mut self, from: PeerKey, request: &MapRequest) -> Result<Mapped, Errno> {
        let mapped = self.with(from, request.process, |space, pool, backing| {
            let at = (request.hint, request.len);
            space.map(pool, backing, at, request.prot, request.flags)
        });
        mapped.map(|(address, windows)| Mapped { address, windows })
    }

    fn end(&mut self, from: PeerKey, process: ProcessId) -> Result<(), Errno> {
        self.remove((from, process)).ok_or(Errno::ESRCH)
    }

    fn remove(&mut self, key: (PeerKey, ProcessId)) -> Option<()> {
        let mut space = self.processes.remove(&key)?;
        space.clear(&mut self.pool.share(key.0), &mut self.backing);
        Some(())
    }

    fn with<T>(
        &mut self,
        from: PeerKey,
        process: ProcessId,
        act: impl FnOnce(&mut AddressSpace, &mut Share<'_>, &mut B) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let space = self.processes.get_mut(&(from, process)).ok_or(Errno::ESRCH)?;
        let mut share = self.pool.share(from);
        let done = act(space, &mut share, &mut self.backing);
        self.short = share.short();
        done
    }
}

fn put<C: Call>(reply: &Result<C::Reply<'_>, Errno>, into: &mut [u8]) -> usize {
    encode_reply::<C>(reply, into).unwrap_or_else(|error| {
        log::error!("{}: {error}", C::NAME);
        0
    })
}
