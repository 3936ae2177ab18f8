//! Read leases of files: granted to peers, and recalled before another peer changes the file.
//!
//! Every change of an inode, its attributes included, begins by `Server::access`. The state
//! machine is the crate [`leases`]; here are its messages and waits.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;

use ext4::Disk;
use futures_util::future::{join_all, select};
use hal::Instant;
use leases::{Granter, Kind, Lease, Peer, Ticket};
use messages::recall::RecallRequest;
use messages::storage::{FileId, Leased};
use spin::Mutex;

use crate::convert::{self, REGULAR};
use crate::{Error, PeerKey, Server};

/// A future of the machine.
pub type Wait<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The way to peers that hold leases, and the clock by which leases expire.
pub trait Holders: Send + Sync {
    /// Returns the time.
    fn now(&self) -> Instant;
    /// Asks a peer to give up a lease; returns whether it has.
    fn recall(&self, peer: PeerKey, lease: RecallRequest) -> Wait<'_, bool>;
    /// Waits until `until`.
    fn sleep_until(&self, until: Instant) -> Wait<'_, ()>;
}

/// The leases, and the way to those that hold them.
pub(crate) struct Leases {
    granter: Mutex<Granter>,
    holders: Box<dyn Holders>,
}

/// Accesses to files that are carried out; no other peer gets leases that conflict with them.
pub(crate) struct Access<'a> {
    leases: Option<&'a Leases>,
    tickets: Vec<Ticket>,
}

impl Drop for Access<'_> {
    fn drop(&mut self) {
        if let Some(leases) = self.leases {
            let mut granter = leases.granter.lock();
            self.tickets.iter().for_each(|&ticket| granter.end(ticket));
        }
    }
}

impl Leases {
    /// Returns a table without leases, whose generations are greater than `last`.
    pub(crate) fn new(last: u64, holders: Box<dyn Holders>) -> Self {
        Self {
            granter: Mutex::new(Granter::new(last)),
            holders,
        }
    }

    /// Grants a read lease, or extends it; returns its generation, 0 if the peer gets none.
    fn grant(&self, to: PeerKey, inode: u32) -> u64 {
        let now = self.holders.now();
        let mut granter = self.granter.lock();
        let granted = granter.grant(Peer(to.0), inode.into(), Kind::Read, now);
        granted.unwrap_or(0)
    }

    /// Ends the leases of a peer that has taken its leave.
    pub(crate) fn left(&self, peer: PeerKey) {
        self.granter.lock().left(Peer(peer.0));
    }

    /// Begins changes of inodes, recalls the leases of other peers, and waits until they are
    /// returned or have expired.
    async fn access(&self, by: PeerKey, inodes: &[u32]) -> Access<'_> {
        let mut access = Access {
            leases: Some(self),
            tickets: Vec::new(),
        };
        let recalls: Vec<_> = {
            let now = self.holders.now();
            let mut granter = self.granter.lock();
            let mut recalls = Vec::new();
            for &inode in inodes {
                let ticket = granter.begin(Peer(by.0), inode.into(), Kind::Write);
                access.tickets.push(ticket);
                let leases = granter.recalls(ticket, now);
                recalls.extend(leases.into_iter().map(|lease| (inode, lease)));
            }
            recalls
        };
        if !recalls.is_empty() {
            let asked = recalls
                .into_iter()
                .map(|(inode, lease)| self.recall(inode, lease));
            let asked = core::pin::pin!(join_all(asked));
            let expired = core::pin::pin!(self.expiry(&access.tickets));
            select(asked, expired).await;
        }
        // Whoever did not answer may rely on its lease until that has expired.
        self.expiry(&access.tickets).await;
        access
    }

    async fn recall(&self, inode: u32, lease: Lease) {
        let inode = u64::from(inode);
        let request = RecallRequest {
            inode,
            lease: lease.generation,
        };
        let peer = PeerKey(lease.peer.0);
        if self.holders.recall(peer, request).await {
            let mut granter = self.granter.lock();
            granter.returned(lease.peer, inode, lease.generation);
        } else {
            log::warn!("peer {} did not return a lease: it expires", peer.0);
        }
    }

    /// Waits until no lease stands in the way of accesses.
    async fn expiry(&self, tickets: &[Ticket]) {
        loop {
            let last = {
                let (now, mut granter) = (self.holders.now(), self.granter.lock());
                let waits = tickets.iter().map(|&ticket| granter.waits(ticket, now));
                waits.max().flatten()
            };
            match last {
                Some(until) => self.holders.sleep_until(until).await,
                None => return,
            }
        }
    }
}

impl<D: Disk> Server<D> {
    /// Begins a change of inodes by a peer: no other peer holds a lease of them any more, nor gets
    /// one until the access is dropped.
    pub(crate) async fn access(&self, by: PeerKey, inodes: &[u32]) -> Access<'_> {
        match &self.leases {
            Some(leases) => leases.access(by, inodes).await,
            None => Access {
                leases: None,
                tickets: Vec::new(),
            },
        }
    }

    /// Grants a peer a read lease of a regular file; 0 if it gets none. What is known of the file
    /// must be read after this.
    pub(crate) fn grant(&self, to: PeerKey, inode: u32, kind: u16) -> u64 {
        match &self.leases {
            Some(leases) if kind == REGULAR => leases.grant(to, inode),
            _ => 0,
        }
    }

    /// Answers a request for a lease of an open file.
    pub(crate) async fn lease(&self, from: PeerKey, file: FileId) -> Result<Leased, Error> {
        let file = self.file(from, file)?;
        let inode = file.held.inode();
        let lease = self.grant(from, inode, file.kind);
        let stat = self.files.stat(inode).await?;
        let stat = convert::stat(&stat, self.files.block_size());
        Ok(Leased { lease, stat })
    }
}
