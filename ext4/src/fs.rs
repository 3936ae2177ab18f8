//! A mounted file system: running operations, and reading what they miss.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;

use spin::Mutex;

use crate::error::{Step, Stop};
use crate::journal::Journal;
use crate::locks::Locks;
use crate::op::Op;
use crate::promise::Terms;
use crate::ranges::Ranges;
use crate::store::{Block, Store};
use crate::superblock::Geometry;
use crate::{Disk, Errno, Error, Time};

/// Commits that one operation waits for at most. A full disk needs one; more come from other tasks'
/// operations.
const MAX_COMMITS: usize = 64;

/// A mounted file system.
pub struct Ext4<D> {
    pub(crate) disk: D,
    pub(crate) geometry: Geometry,
    /// Blocks of the file system's own tables.
    pub(crate) system: Ranges,
    /// Held for computations only, never while the disk works.
    pub(crate) state: Mutex<State>,
    pub(crate) locks: Locks,
    pub(crate) read_only: bool,
}

/// The state that operations change in memory.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) store: Store,
    /// `None` on a read-only file system.
    pub(crate) journal: Option<Journal>,
    /// Number of holds of each inode.
    pub(crate) holds: BTreeMap<u32, u32>,
    /// Failure of a commit; nothing may be changed after it.
    pub(crate) failed: Option<Error>,
    /// Data was written that no flush has covered yet.
    pub(crate) unflushed: bool,
}

/// Blocks read for one operation. They keep an operation going that needs more blocks than the
/// store's clean layer has.
#[derive(Default)]
struct Loaded {
    blocks: BTreeMap<u64, Block>,
    generation: u64,
}

impl<D: Disk> Ext4<D> {
    /// Returns the bytes of a block.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        u32::try_from(self.geometry.block_size).unwrap_or(u32::MAX)
    }

    /// Returns whether nothing can be changed.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Carries an operation out, reading the blocks it misses.
    pub(crate) async fn run<T>(
        &self,
        now: Time,
        attempt: impl FnMut(&mut Op<'_>) -> Step<T>,
    ) -> Result<T, Error> {
        self.run_on(Terms::default(), now, attempt).await
    }

    /// Carries an operation out that takes blocks on terms of its own.
    pub(crate) async fn run_on<T>(
        &self,
        terms: Terms,
        now: Time,
        mut attempt: impl FnMut(&mut Op<'_>) -> Step<T>,
    ) -> Result<T, Error> {
        let mut loaded = Loaded::default();
        let mut commits = 0;
        loop {
            match self.attempt((terms, now), &mut loaded, &mut attempt) {
                Ok(value) => return Ok(value),
                Err(Stop::Miss(block)) => self.load(block, &mut loaded).await?,
                Err(Stop::Commit) if commits < MAX_COMMITS && !self.read_only => {
                    commits += 1;
                    self.commit(now).await?;
                }
                Err(Stop::Commit) => return Err(Errno::ENOSPC.into()),
                Err(Stop::Fail(error)) => return Err(error),
            }
        }
    }

    /// Tries an operation once; merges its changes if it succeeds.
    fn attempt<T>(
        &self,
        (terms, now): (Terms, Time),
        loaded: &mut Loaded,
        attempt: &mut impl FnMut(&mut Op<'_>) -> Step<T>,
    ) -> Step<T> {
        let mut state = self.state.lock();
        if loaded.generation != state.store.generation {
            loaded.blocks.clear();
            loaded.generation = state.store.generation;
        }
        let mut op = Op::new(
            &self.geometry,
            &state.store,
            &self.system,
            &loaded.blocks,
            &state.holds,
            now,
        );
        op.terms = terms;
        let value = attempt(&mut op)?;
        let change = op.change;
        if !change.is_empty() {
            let journal = state.journal.as_ref().filter(|_| !self.read_only);
            let max = journal.ok_or(Errno::EROFS)?.max_transaction();
            if let Some(error) = state.failed {
                return Err(error.into());
            }
            if change.cost() > max {
                return Err(Errno::ENOSPC.into());
            }
            if state.store.running.size() + change.cost() > max {
                return Err(Stop::Commit);
            }
        }
        if let Some(inode) = change.hold {
            *state.holds.entry(inode).or_default() += 1;
        }
        state.store.merge(change, terms);
        Ok(value)
    }

    /// Reads a block for an operation.
    async fn load(&self, block: u64, loaded: &mut Loaded) -> Result<(), Error> {
        let generation = self.state.lock().store.generation;
        let mut bytes = vec![0; self.geometry.block_size];
        self.disk.read(self.offset(block), &mut bytes).await?;
        let bytes = Arc::new(bytes);
        let mut state = self.state.lock();
        // A block that was changed, checkpointed and dropped meanwhile may be newer on the disk
        // than what was read.
        if state.store.generation == generation && state.store.get(block).is_none() {
            state.store.add_clean(block, bytes.clone(), false);
            if loaded.generation == generation {
                loaded.blocks.insert(block, bytes);
            }
        }
        Ok(())
    }

    /// Returns the byte offset of a block on the disk.
    pub(crate) fn offset(&self, block: u64) -> u64 {
        block.saturating_mul(self.geometry.block_size as u64)
    }
}
