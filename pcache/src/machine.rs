//! What the cache needs of the machine around it.

use crate::{LineId, Page, Token};

/// A place in remote memory: opaque to the cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RemoteAddr {
    /// The address on the remote side.
    pub addr: u64,
    /// What selects the remote side and opens it (a region's key, a peer's number).
    pub key: u64,
}

/// Where the bytes of a page come from that no line holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Nowhere: the page was never written back and starts as zeros.
    Zero,
    /// Remote memory, which holds what was last written back.
    Remote(RemoteAddr),
    /// The caller brings them (a page of a file): it gets the line to put them in.
    Caller,
}

/// A transfer that failed, by the store's own code.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("transfer failed with code {0:#x}")]
pub struct IoFailed(pub u32);

/// A mapping that failed: the page tables could not grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no memory for page tables")]
pub struct MapFailed;

/// What the page tables knew of a page when its mapping was taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Unmapped {
    /// The page was written through the mapping since it was mapped.
    pub dirty: bool,
}

/// Knows where pages live. Called with a set locked: short, and never calls the cache.
pub trait Backing {
    /// Where the bytes of `page` come from now.
    fn source(&self, page: Page) -> Source;
    /// Where `page` is to be written back to; none if it has no place (a bug of the layout's keeper).
    fn place(&self, page: Page) -> Option<RemoteAddr>;
    /// `page` has been written back: from now on its source is remote memory.
    fn written_back(&self, page: Page);
}

/// The page tables of all address spaces.
pub trait Mapper {
    /// What a mapping allows.
    type Rights: Copy;
    /// Maps `page` to `line` as clean, replacing rights if it is mapped already (its dirty bit is then kept). Called with a set
    /// locked: takes no lock that an `unmap` under way may hold for long, and never calls the cache.
    ///
    /// # Errors
    ///
    /// [`MapFailed`] when the tables cannot grow.
    fn map(&self, page: Page, line: LineId, rights: Self::Rights) -> Result<(), MapFailed>;
    /// Takes the mapping of `page` away and returns once no core can use it any more. Called with no lock held.
    fn unmap(&self, page: Page) -> Unmapped;
    /// Whether `page` was used through its mapping since the last call; forgets it. Called with a set locked.
    fn take_accessed(&self, page: Page) -> bool;
}

/// Moves lines to and from remote memory.
///
/// There is at most one transfer a line under way, so a queue as long as the cache has lines never overflows; a transfer that
/// cannot even be started completes with an error. Transfers may complete in any order, from any context that may take a
/// spin lock (also before `start_*` returns, if the store calls [`crate::Cache::complete`] from another core).
/// Called with no lock held.
pub trait RemoteStore {
    /// Starts reading `line` from `from`.
    fn start_read(&self, token: Token, line: LineId, from: RemoteAddr);
    /// Starts writing `line` to `to`. The line may be written by the program meanwhile: what lands is then a mix, and
    /// the cache writes the line again later.
    fn start_write(&self, token: Token, line: LineId, to: RemoteAddr);
}

/// The bytes of the lines. Called with no lock held; the caller holds a pin or the line is in no one else's hands.
///
/// # Panics
///
/// Implementations panic when a range leaves its line: offsets are this node's own arithmetic.
pub trait Lines {
    /// Copies bytes from `offset` of `line` out.
    fn read(&self, line: LineId, offset: usize, into: &mut [u8]);
    /// Copies bytes into `line` at `offset`.
    fn write(&self, line: LineId, offset: usize, from: &[u8]);
    /// Sets the whole line to zero.
    fn zero(&self, line: LineId);
}

/// All that the cache needs.
pub trait Machine: Backing + Mapper + RemoteStore + Lines {}

impl<T: Backing + Mapper + RemoteStore + Lines> Machine for T {}
