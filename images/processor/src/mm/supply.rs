//! Chunks from M: requested in batches and in advance, kept for reuse, returned if there are many.
//!
//! Commitment is counted in pages here and promised by M in chunks, so that most `mmap` calls send
//! nothing. A mapping that asks for no promise takes what is left.

use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::{Poll, Waker};
use core::time::Duration;

use messages::memory::{Chunks as Lent, MAX_CHUNKS};
use pcache::{CHUNK_PAGES, Cache, ChunkId, Machine, RemoteAddr};
use spin::Mutex;

use crate::error::{Error, Result, errno};
use crate::platform::{Memory, Peer, Platform};
use crate::process::Node;

/// Chunks that are asked for at once.
const BATCH: u16 = 8;
/// Low watermark of spare chunks: below it, more are requested in advance.
const LOW: usize = 2;
/// High watermark of spare chunks: above it, some are returned.
const HIGH: usize = 32;
/// Chunks that a promise is rounded up to: 64 MB.
const PROMISE: u64 = 32;
/// Pause before M is asked again that is busy cleaning memory.
const PAUSE: Duration = Duration::from_millis(2);
/// Bounds the time that M may be busy before it counts as having none.
const PATIENCE: Duration = Duration::from_secs(10);

/// The state of the supply.
#[derive(Default)]
struct State {
    /// Chunks that nothing uses, ready for a region.
    spare: Vec<ChunkId>,
    /// Pages that mappings were promised.
    committed: u64,
    /// Chunks that M has promised.
    promised: u64,
    /// The last advance request failed; the next is made when a chunk is needed.
    refused: bool,
    /// Wakes the task that requests chunks in advance.
    refill: Option<Waker>,
}

/// The chunks and promises that this node has of M.
#[derive(Default)]
pub struct ChunkSupply {
    state: Mutex<State>,
}

impl ChunkSupply {
    /// Returns the pages that mappings were promised.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.state.lock().committed
    }

    /// Returns how many chunks are ready for a region.
    #[must_use]
    pub fn spare(&self) -> usize {
        self.state.lock().spare.len()
    }

    /// Promises `pages` more pages.
    ///
    /// # Errors
    ///
    /// ENOMEM if M has too little memory that is not promised to a peer.
    pub(crate) async fn commit<N: Node>(&self, node: &N, pages: u64) -> Result<()> {
        if self.commit_now(pages) {
            return Ok(());
        }
        let total = self.committed().checked_add(pages).ok_or(errno::ENOMEM)?;
        let exact = total.div_ceil(CHUNK_PAGES);
        for wish in [exact.next_multiple_of(PROMISE), exact] {
            let Ok(asked) = u32::try_from(wish) else {
                continue;
            };
            match node.memory().reserve(asked).await {
                Ok(()) => {
                    let mut state = self.state.lock();
                    state.promised = wish;
                    state.committed += pages;
                    return Ok(());
                }
                Err(Error::Errno(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(errno::ENOMEM.into())
    }

    /// Promises `pages` more pages out of what M has promised; false if that is not enough.
    pub(crate) fn commit_now(&self, pages: u64) -> bool {
        let mut state = self.state.lock();
        let total = state.committed.checked_add(pages);
        let total = total.filter(|total| total.div_ceil(CHUNK_PAGES) <= state.promised);
        total.inspect(|&total| state.committed = total).is_some()
    }

    /// Takes a promise of `pages` pages back.
    pub(crate) fn uncommit(&self, pages: u64) {
        let mut state = self.state.lock();
        debug_assert!(pages <= state.committed, "what was promised is taken back");
        state.committed = state.committed.saturating_sub(pages);
    }

    /// Takes a chunk that is here already, if there is one.
    pub(crate) fn take_spare<M: Machine>(&self, cache: &Cache<M>) -> Option<ChunkId> {
        let mut state = self.state.lock();
        self.gather(cache, &mut state);
        let chunk = state.spare.pop();
        if state.spare.len() < LOW
            && !state.refused
            && let Some(waker) = state.refill.take()
        {
            waker.wake();
        }
        chunk
    }

    /// Collects chunks that came to hold nothing.
    fn gather<M: Machine>(&self, cache: &Cache<M>, state: &mut State) {
        while let Some(chunk) = cache.chunks().take_empty() {
            state.spare.push(chunk);
        }
        if state.spare.len() > HIGH
            && let Some(waker) = state.refill.take()
        {
            waker.wake();
        }
    }

    /// Waits for a chunk; `None` if M has none for this node.
    pub(crate) async fn take<N: Node>(&self, node: &N, pid: u32) -> Result<Option<ChunkId>> {
        if let Some(chunk) = self.take_spare(node.cache()) {
            return Ok(Some(chunk));
        }
        self.lend(node, pid).await?;
        Ok(self.take_spare(node.cache()))
    }

    /// Asks M for a batch of chunks; false if it has none.
    async fn lend<N: Node>(&self, node: &N, pid: u32) -> Result<bool> {
        let end = node.platform().now() + PATIENCE;
        loop {
            match node.memory().lend(pid, BATCH).await {
                Ok(lent) => {
                    self.take_in(node, &lent)?;
                    return Ok(!lent.is_empty());
                }
                Err(Error::Errno(errno::EAGAIN)) if node.platform().now() < end => {
                    let until = node.platform().now() + PAUSE;
                    node.platform().sleep_until(until).await;
                }
                Err(Error::Errno(_)) => {
                    self.state.lock().refused = true;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn take_in<N: Node>(&self, node: &N, lent: &Lent) -> Result<()> {
        let mut state = self.state.lock();
        state.refused = false;
        for at in lent {
            let place = RemoteAddr {
                addr: at.addr,
                key: u64::from(at.rkey.0),
            };
            // More chunks than the table was made for is not what M said it has.
            let id = node.cache().chunks().add(place).map_err(|full| {
                log::error!("{full}");
                Error::Nonsense {
                    peer: Peer::Memory,
                    kind: <messages::memory::Lend as messages::Call>::KIND.0,
                }
            })?;
            state.spare.push(id);
        }
        Ok(())
    }

    /// Keeps some chunks ready and returns those that are too many, for ever.
    ///
    /// # Errors
    ///
    /// When M is lost.
    pub async fn keep<N: Node>(&self, node: &N) -> Result<()> {
        loop {
            let spare = poll_fn(|context| {
                let mut state = self.state.lock();
                let spare = state.spare.len();
                if spare > HIGH || (spare < LOW && !state.refused) {
                    return Poll::Ready(spare);
                }
                state.refill = Some(context.waker().clone());
                Poll::Pending
            })
            .await;
            if spare > HIGH {
                self.give_back(node, HIGH / 2).await?;
            } else {
                self.lend(node, 0).await?;
            }
        }
    }

    /// Returns all unused chunks and unneeded promises.
    ///
    /// # Errors
    ///
    /// When M is lost.
    pub async fn settle<N: Node>(&self, node: &N) -> Result<()> {
        {
            let mut state = self.state.lock();
            self.gather(node.cache(), &mut state);
        }
        self.give_back(node, 0).await?;
        let chunks = self.committed().div_ceil(CHUNK_PAGES);
        let asked = u32::try_from(chunks).map_err(|_| errno::ENOMEM)?;
        node.memory().reserve(asked).await?;
        self.state.lock().promised = chunks;
        Ok(())
    }

    /// Returns spare chunks until `keep` are left.
    async fn give_back<N: Node>(&self, node: &N, keep: usize) -> Result<()> {
        loop {
            let gone: Vec<ChunkId> = {
                let mut state = self.state.lock();
                let count = state.spare.len().saturating_sub(keep).min(MAX_CHUNKS);
                state.spare.drain(..count).collect()
            };
            if gone.is_empty() {
                return Ok(());
            }
            let chunks = node.cache().chunks();
            let places = gone.iter().map(|&id| chunks.place_of(id).addr).collect();
            node.memory().give_back(places).await?;
            gone.into_iter().for_each(|id| chunks.remove(id));
        }
    }
}
