//! Blocks promised with write leases: what a peer gathers under one is never told later that the
//! disk is full.
//!
//! A write lease comes with a number of the file's blocks that may wait in the peer; `ext4` keeps
//! as many from others (`Ext4::promise`). Each flush takes from them and, while there is room,
//! fills them up again. They end with the lease, and when the peer has the file open for writing no
//! more.
//!
//! A request that would be ENOSPC because of promises has them taken back first: their leases are
//! recalled, as by a conflicting access, and the request is carried out again.
//!
//! An inode's promise changes behind its door only.

use alloc::vec::Vec;

use ext4::{Disk, MAX_PROMISED};
use futures_util::future::{join_all, select};
use leases::TERM;
use messages::pieces::count_blocks;

use crate::lease::Leases;
use crate::{Error, PeerKey, Server};

/// Bytes of the disk that promises leave to others, at least.
const ROOM: u64 = 4 << 20;
/// Leases that are recalled at a time when promises are taken back.
const AT_A_TIME: usize = 16;

/// A promise to the holder of a write lease.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Promise {
    peer: PeerKey,
    lease: u64,
    /// Blocks of the file that may wait in the peer.
    blocks: u32,
}

impl<D: Disk> Server<D> {
    /// Returns whether there is room for a promise, and so for a write lease.
    pub(crate) async fn has_room(&self) -> Result<bool, Error> {
        let sizes = self.files.statfs().await?;
        Ok(!self.files.is_read_only()
            && sizes.available >= self.spare() + 4 * u64::from(MAX_PROMISED))
    }

    /// Returns the blocks that a promise must leave to others: as many as all promises have.
    fn spare(&self) -> u64 {
        let room = ROOM / u64::from(self.files.block_size().max(1));
        room.max(self.files.promised())
    }

    /// Promises blocks to a peer that has got a write lease; returns how many may wait.
    pub(crate) async fn promise(&self, leases: &Leases, to: (PeerKey, u64), inode: u32) -> u32 {
        let _door = leases.door(inode).await;
        self.promise_again(leases, to, inode, 0).await
    }

    /// Takes blocks that were brought from a peer's promise, and fills that up if there is room;
    /// returns how many may wait from now on. The caller is behind the inode's door.
    pub(crate) async fn promise_again(
        &self,
        leases: &Leases,
        (peer, lease): (PeerKey, u64),
        inode: u32,
        brought: u32,
    ) -> u32 {
        if !leases.permits(peer, inode, lease) {
            return 0;
        }
        let had = leases.promises().get(&inode).copied();
        let had = had.filter(|had| (had.peer, had.lease) == (peer, lease));
        let left = had.map_or(0, |had| had.blocks.saturating_sub(brought));
        let made = self.files.promise(inode, MAX_PROMISED, self.spare()).await;
        let blocks = match made {
            Ok(true) => MAX_PROMISED,
            Ok(false) => left,
            Err(error) => {
                log::warn!("inode {inode}: no promise: {error}");
                left
            }
        };
        let promise = Promise {
            peer,
            lease,
            blocks,
        };
        leases.promises().insert(inode, promise);
        blocks
    }

    /// Fills a peer's promise up after a write of its own that did not take from it.
    pub(crate) async fn promise_after_write(&self, peer: PeerKey, inode: u32) {
        let Some(leases) = &self.leases else {
            return;
        };
        let had = leases.promises().get(&inode).copied();
        if let Some(had) = had.filter(|had| had.peer == peer) {
            let _door = leases.door(inode).await;
            self.promise_again(leases, (peer, had.lease), inode, 0)
                .await;
        }
    }

    /// Returns the blocks that pieces touch.
    pub(crate) fn blocks_of(&self, pieces: &[u8]) -> u32 {
        count_blocks(pieces, self.files.block_size())
    }

    /// Ends a promise whose lease has ended, or whose peer can't bring anything any more. The
    /// caller is behind the inode's door.
    pub(crate) fn end_dead_promise(&self, leases: &Leases, inode: u32) {
        let Some(promise) = leases.promises().get(&inode).copied() else {
            return;
        };
        let alive = leases.permits(promise.peer, inode, promise.lease)
            && self.may_write(promise.peer, inode);
        if !alive {
            self.end_promise(leases, inode);
        }
    }

    /// Ends a promise. The caller is behind the inode's door.
    pub(crate) fn end_promise(&self, leases: &Leases, inode: u32) {
        leases.promises().remove(&inode);
        self.files.end_promise(inode);
    }

    /// Ends promises of leases and peers that are gone.
    pub(crate) async fn end_dead_promises(&self) {
        let Some(leases) = &self.leases else {
            return;
        };
        let all: Vec<u32> = leases.promises().keys().copied().collect();
        for inode in all {
            let _door = leases.door(inode).await;
            self.end_dead_promise(leases, inode);
        }
    }

    /// Takes all promises back, by recalls of their leases; waits no longer than a lease lasts.
    pub(crate) async fn take_promises_back(&self) {
        self.end_dead_promises().await;
        let Some(leases) = &self.leases else {
            return;
        };
        let all: Vec<(u32, Promise)> = {
            let promises = leases.promises();
            promises.iter().map(|(&inode, &at)| (inode, at)).collect()
        };
        let asked = async {
            for some in all.chunks(AT_A_TIME) {
                let asked = some.iter().map(|of| self.take_promise_back(leases, *of));
                join_all(asked).await;
            }
        };
        let late = leases.sleep(TERM);
        select(core::pin::pin!(asked), late).await;
    }

    async fn take_promise_back(&self, leases: &Leases, (inode, promise): (u32, Promise)) {
        let _door = leases.door(inode).await;
        let (peer, lease) = (promise.peer, promise.lease);
        if !leases.permits(peer, inode, lease) {
            return;
        }
        // A peer that does not answer keeps its promise: its writes may be on their way.
        let Some(answer) = leases.fetch(peer, inode, lease).await else {
            return;
        };
        if !answer.part.is_empty() {
            self.brought(peer, (inode, lease), &answer).await;
        }
        leases.returned(peer, inode, lease);
        self.end_dead_promise(leases, inode);
    }
}
