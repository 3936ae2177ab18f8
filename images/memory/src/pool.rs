//! The memory that is lent: registered regions, cut into chunks of one window each.

use alloc::vec::Vec;

use messages::WINDOW_SIZE;
use verbs::RemoteAddr;

/// Where the chunks really are.
pub trait Backing {
    /// Fills the window's worth of bytes at `chunk` with zeroes.
    fn zero(&mut self, chunk: RemoteAddr);
}

/// One chunk, taken from a pool. It is given back by [`Pool::give`]; it can't be copied, so not twice.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk(RemoteAddr);

impl Chunk {
    /// Where peers reach it.
    #[must_use]
    pub fn remote(&self) -> RemoteAddr {
        self.0
    }
}

/// The chunks that are free. Every free chunk is zero.
#[derive(Debug, Default)]
pub struct Pool {
    free: Vec<Chunk>,
    total: usize,
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a zeroed region of `len` bytes; what does not fill a chunk at its end is not used.
    pub fn add_region(&mut self, region: RemoteAddr, len: u64) {
        let chunks = len / WINDOW_SIZE;
        let chunk = |index| {
            Chunk(RemoteAddr {
                addr: region.addr + index * WINDOW_SIZE,
                rkey: region.rkey,
            })
        };
        let before = self.free.len();
        self.free.extend((0..chunks).rev().map(chunk));
        self.total += self.free.len() - before;
    }

    /// Free chunks.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// All chunks, free or lent.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total
    }

    /// Takes a chunk, all zero.
    pub fn take(&mut self) -> Option<Chunk> {
        self.free.pop()
    }

    /// Takes a chunk back and zeroes it, so that no borrower sees what another left.
    pub fn give(&mut self, chunk: Chunk, backing: &mut impl Backing) {
        backing.zero(chunk.0);
        self.free.push(chunk);
    }
}
