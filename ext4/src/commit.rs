//! Commits and checkpoints.
//!
//! One at a time: the lock of the number that no inode has is theirs. Operations go on meanwhile.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use futures_util::future::try_join_all;

use crate::fs::State;
use crate::journal::{Encoded, Journal};
use crate::store::{Block, Transaction};
use crate::{Disk, Errno, Error, Ext4, Time};

/// The number of the lock.
const COMMIT_LOCK: u32 = 0;

/// Bytes written at once when consecutive blocks are checkpointed.
const MAX_WRITE: usize = 256 << 10;

/// Writes in flight at a time.
const IN_FLIGHT: usize = 16;

/// A transaction on its way to the log.
struct Work {
    txn: Arc<Transaction>,
    cost: u32,
}

impl<D: Disk> Ext4<D> {
    /// Makes all that operations changed until now, and all data written until now, durable.
    pub(crate) async fn commit(&self, now: Time) -> Result<(), Error> {
        let _guard = self.locks.exclusive(COMMIT_LOCK).await;
        let done = self.commit_locked(now).await;
        self.note_failure(done)
    }

    /// Writes all changes to their places, and ends the log.
    pub(crate) async fn checkpoint_all(&self, now: Time) -> Result<(), Error> {
        let _guard = self.locks.exclusive(COMMIT_LOCK).await;
        let done = async {
            self.commit_locked(now).await?;
            self.checkpoint().await
        };
        let done = done.await;
        self.note_failure(done)
    }

    /// Remembers the first failure: what could not be committed is lost, so nothing may build upon
    /// it.
    fn note_failure(&self, done: Result<(), Error>) -> Result<(), Error> {
        if let Err(error) = done {
            self.state.lock().failed.get_or_insert(error);
        }
        done
    }

    async fn commit_locked(&self, now: Time) -> Result<(), Error> {
        // A commit whose task was dropped half-way is done again: it lies at the same place of the
        // log.
        let leftover = self.take_work(false)?;
        if let Some(work) = leftover {
            self.write_transaction(work, now).await?;
        }
        if let Some(work) = self.take_work(true)? {
            return self.write_transaction(work, now).await;
        }
        let unflushed = core::mem::take(&mut self.state.lock().unflushed);
        if unflushed {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// Returns the transaction to be written next; `freeze` starts one of what operations changed.
    fn take_work(&self, freeze: bool) -> Result<Option<Work>, Error> {
        let mut state = self.state.lock();
        if let Some(error) = state.failed {
            return Err(error);
        }
        let State { store, journal, .. } = &mut *state;
        let Some(journal) = journal.as_ref() else {
            return Ok(None);
        };
        if freeze && !store.running.is_empty() {
            store.freeze();
        }
        let txn = store.committing.clone();
        Ok(txn.map(|txn| Work {
            cost: journal.cost(&txn),
            txn,
        }))
    }

    async fn flush(&self) -> Result<(), Error> {
        let done = self.disk.flush().await;
        if done.is_err() {
            self.state.lock().unflushed = true;
        }
        Ok(done?)
    }

    async fn write_transaction(&self, work: Work, now: Time) -> Result<(), Error> {
        let has_room = {
            let state = self.state.lock();
            state
                .journal
                .as_ref()
                .is_some_and(|journal| journal.has_room(work.cost))
        };
        if !has_room {
            self.checkpoint().await?;
        }
        let journal = self.state.lock().journal.clone().ok_or(Errno::EROFS)?;
        let encoded = journal.encode(&work.txn, now);
        self.state.lock().unflushed = false;
        self.write_log(&journal, &encoded).await?;
        let mut state = self.state.lock();
        if let Some(journal) = state.journal.as_mut() {
            journal.advance(&encoded);
        }
        state.store.committed();
        Ok(())
    }

    async fn write_log(&self, journal: &Journal, encoded: &Encoded) -> Result<(), Error> {
        for (first, bytes) in &encoded.body {
            self.write_journal(journal, *first, bytes).await?;
        }
        // The commit block must not be there before what it commits, nor before the data that this
        // points at.
        self.flush().await?;
        let (place, bytes) = &encoded.commit;
        let place = self.offset(journal.place(*place)?);
        Ok(self.disk.write_through(place, bytes).await?)
    }

    /// Writes consecutive blocks of the journal; on the disk they may lie in several runs.
    async fn write_journal(
        &self,
        journal: &Journal,
        first: u32,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let size = self.geometry.block_size;
        let mut at = first;
        let mut left = bytes;
        while !left.is_empty() {
            let place = journal.place(at)?;
            let mut blocks = 1;
            while blocks * size < left.len() && journal.place(at + 1)? == place + blocks as u64 {
                at += 1;
                blocks += 1;
            }
            let (now, rest) = left.split_at((blocks * size).min(left.len()));
            self.disk.write(self.offset(place), now).await?;
            at += 1;
            left = rest;
        }
        Ok(())
    }

    /// Writes the blocks of committed transactions to their places, and so lets the log restart.
    async fn checkpoint(&self) -> Result<(), Error> {
        let written: BTreeMap<u64, Block> = self.state.lock().store.checkpoint.clone();
        let runs = runs(&written, MAX_WRITE / self.geometry.block_size);
        for part in runs.chunks(IN_FLIGHT) {
            let writes = part
                .iter()
                .map(|(block, bytes)| self.disk.write(self.offset(*block), bytes));
            try_join_all(writes).await?;
        }
        self.flush().await?;
        self.restart_log().await?;
        self.state.lock().store.checkpointed(written);
        Ok(())
    }

    /// Restarts the log behind its head.
    pub(crate) async fn restart_log(&self) -> Result<(), Error> {
        let superblock = {
            let mut state = self.state.lock();
            let journal = state.journal.as_mut().ok_or(Errno::EROFS)?;
            let bytes = journal.restart(&self.geometry);
            (journal.place(0)?, bytes)
        };
        self.write_superblock(superblock).await
    }

    /// Marks the log as one that need not be replayed.
    pub(crate) async fn stop_log(&self) -> Result<(), Error> {
        let superblock = {
            let mut state = self.state.lock();
            let journal = state.journal.as_mut().ok_or(Errno::EROFS)?;
            let bytes = journal.stop();
            (journal.place(0)?, bytes)
        };
        self.write_superblock(superblock).await
    }

    /// Writes the journal's superblock: durable before its log is written over.
    async fn write_superblock(&self, (place, mut bytes): (u64, Vec<u8>)) -> Result<(), Error> {
        // A disk may take whole blocks only. Nothing follows the superblock in its block.
        bytes.resize(self.geometry.block_size, 0);
        self.disk.write(self.offset(place), &bytes).await?;
        self.flush().await
    }
}

/// Joins consecutive blocks to writes of up to `max` blocks.
fn runs(blocks: &BTreeMap<u64, Block>, max: usize) -> Vec<(u64, Vec<u8>)> {
    let mut runs: Vec<(u64, u64, Vec<u8>)> = Vec::new();
    for (&block, bytes) in blocks {
        match runs.last_mut() {
            Some((first, next, joined)) if *next == block && *next - *first < max as u64 => {
                *next += 1;
                joined.extend_from_slice(bytes);
            }
            _ => runs.push((block, block + 1, bytes.to_vec())),
        }
    }
    runs.into_iter()
        .map(|(first, _, bytes)| (first, bytes))
        .collect()
}
