//! The processes of each peer, and the answers to their requests.

use alloc::collections::BTreeMap;

use messages::memory::{
    Map, MapRequest, Mapped, MemoryRequest, ProcessCreate, ProcessEnd, ProcessId, Protect, Unmap, Windows,
};
use messages::{Call, Errno, Kind, encode_reply};

use crate::pool::{Backing, Pool};
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

#[derive(Debug)]
struct Process {
    pid: u32,
    space: AddressSpace,
}

/// M's logic: the pool, and every process by its peer and number.
#[derive(Debug)]
pub struct Manager<B> {
    pool: Pool,
    backing: B,
    processes: BTreeMap<(PeerKey, ProcessId), Process>,
    next: u64,
    counters: Counters,
}

impl<B: Backing> Manager<B> {
    /// Lends the memory of `pool`, which is in `backing`.
    pub fn new(pool: Pool, backing: B) -> Self {
        Self {
            pool,
            backing,
            processes: BTreeMap::new(),
            next: 1,
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
        self.processes.get(&(from, process)).map(|process| &process.space)
    }

    /// Answers one request; returns the length of the reply.
    ///
    /// `reply` holds at least [`messages::MAX_MESSAGE`] bytes; a shorter one may cut a reply to nothing, which the
    /// caller can't read.
    pub fn handle(&mut self, from: PeerKey, kind: u16, request: &[u8], reply: &mut [u8]) -> usize {
        let request = match MemoryRequest::decode(Kind(kind), request) {
            Ok(request) => request,
            Err(error) => {
                log::warn!("peer {}: call {kind}: {error}", from.0);
                self.counters.nr_bad_requests += 1;
                return put::<ProcessEnd>(&Err(Errno::EPROTO), reply);
            }
        };
        let counters = &mut self.counters;
        let len = match request {
            MemoryRequest::ProcessCreate(create) => {
                counters.handle_p2m_fork += 1;
                put::<ProcessCreate>(&self.create(from, create.pid), reply)
            }
            MemoryRequest::Map(map) => {
                counters.handle_p2m_mmap += 1;
                put::<Map>(&self.map(from, &map), reply)
            }
            MemoryRequest::Unmap(range) => {
                counters.handle_p2m_munmap += 1;
                let done = self.with(from, range.process, |process, pool, backing| {
                    process.space.unmap(pool, backing, range.address, range.len)
                });
                put::<Unmap>(&done, reply)
            }
            MemoryRequest::Protect(range) => {
                counters.handle_p2m_mprotect += 1;
                let done = self.with(from, range.process, |process, pool, _| {
                    process.space.protect(pool, range.address, range.len, range.prot)
                });
                put::<Protect>(&done, reply)
            }
            MemoryRequest::ProcessEnd(end) => {
                counters.handle_p2m_exit += 1;
                put::<ProcessEnd>(&self.end(from, end.process), reply)
            }
            MemoryRequest::Windows(ask) => {
                counters.handle_p2m_windows += 1;
                let list = self.with(from, ask.process, |process, _, _| {
                    Ok(process.space.windows(ask.first, ask.count))
                });
                put::<Windows>(&list, reply)
            }
        };
        let lent = self.pool.total() - self.pool.free();
        self.counters.max_chunks_lent = self.counters.max_chunks_lent.max(lent);
        len
    }

    /// Takes back everything that a lost peer had. Its queue pairs are dead: nothing of it can be in flight.
    pub fn peer_lost(&mut self, peer: PeerKey) {
        let first = (peer, ProcessId(0))..=(peer, ProcessId(u64::MAX));
        while let Some((&key, _)) = self.processes.range(first.clone()).next() {
            self.remove(key);
        }
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
        self.processes.insert(
            (from, id),
            Process {
                pid,
                space: AddressSpace::new(),
            },
        );
        Ok(id)
    }

    fn map(&mut self, from: PeerKey, request: &MapRequest) -> Result<Mapped, Errno> {
        let mapped = self.with(from, request.process, |process, pool, backing| {
            let at = (request.hint, request.len);
            let mapped = process.space.map(pool, backing, at, request.prot, request.flags);
            if mapped == Err(Errno::ENOMEM) {
                log::warn!("process {}: no {} bytes for a mapping", process.pid, request.len);
            }
            mapped
        });
        if mapped == Err(Errno::ENOMEM) {
            self.counters.nr_enomem += 1;
        }
        mapped.map(|(address, windows)| Mapped { address, windows })
    }

    fn end(&mut self, from: PeerKey, process: ProcessId) -> Result<(), Errno> {
        self.remove((from, process)).ok_or(Errno::ESRCH)
    }

    fn remove(&mut self, key: (PeerKey, ProcessId)) -> Option<()> {
        let mut process = self.processes.remove(&key)?;
        process.space.clear(&mut self.pool, &mut self.backing);
        Some(())
    }

    fn with<T>(
        &mut self,
        from: PeerKey,
        process: ProcessId,
        act: impl FnOnce(&mut Process, &mut Pool, &mut B) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let process = self.processes.get_mut(&(from, process)).ok_or(Errno::ESRCH)?;
        act(process, &mut self.pool, &mut self.backing)
    }
}

fn put<C: Call>(reply: &Result<C::Reply<'_>, Errno>, into: &mut [u8]) -> usize {
    encode_reply::<C>(reply, into).unwrap_or_else(|error| {
        log::error!("{}: {error}", C::NAME);
        0
    })
}
