//! Leases of files: granted to peers, and recalled before another peer's conflicting access.
//!
//! Every change of an inode, its attributes included, begins by `Server::access`, and whatever
//! tells of its bytes or its size by `Server::look`. The state machine is the crate [`leases`];
//! here are its messages and waits. What a holder of a write lease has gathered comes with its
//! answer and is carried out by S (`flush`), so that no holder needs a worker of S to answer.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;

use ext4::Disk;
use futures_util::future::{join_all, select};
use hal::{Duration, Instant};
use leases::{Granter, Kind, Lease, Peer, Ticket};
use messages::pieces::MAX_PIECES;
use messages::recall::RecallRequest;
use messages::storage::{FileId, Leased, OpenFlags};
use spin::{Mutex, MutexGuard};

use crate::convert::{self, REGULAR};
use crate::door::{Doors, Pass};
use crate::promise::Promise;
use crate::server::OpenFile;
use crate::{Error, PeerKey, Server};

/// Bytes of pieces that a recall may bring: those that were on their way, and those behind them.
const MOST: usize = 2 * MAX_PIECES;

/// The inode that stands for all names, and for the attributes that paths tell. No file has it.
const NAMES: u32 = 0;

/// A future of the machine.
pub type Wait<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The way to peers that hold leases, and the clock by which leases expire.
pub trait Holders: Send + Sync {
    /// Returns the time.
    fn now(&self) -> Instant;
    /// Asks a peer to give up a lease; returns its answer, `None` if there is none.
    fn recall(&self, peer: PeerKey, lease: RecallRequest) -> Wait<'_, Option<Answer>>;
    /// Waits until `until`.
    fn sleep_until(&self, until: Instant) -> Wait<'_, ()>;
}

/// A peer's answer to a recall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The open file that the pieces were written to.
    pub file: FileId,
    /// Bytes of all pieces that were gathered.
    pub total: u32,
    /// Some of them, from where they were asked for.
    pub part: Vec<u8>,
}

/// The leases, and the way to those that hold them.
pub(crate) struct Leases {
    granter: Mutex<Granter>,
    holders: Box<dyn Holders>,
    doors: Doors,
    /// By inode.
    promises: Mutex<BTreeMap<u32, Promise>>,
}

/// The lease that comes with an open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Granted {
    /// Its generation; 0 for none.
    pub(crate) lease: u64,
    /// It is a write lease.
    pub(crate) writes: bool,
    /// Blocks promised with it.
    pub(crate) blocks: u32,
}

/// A lease that is in the way of an access.
struct Recall {
    inode: u32,
    lease: Lease,
    ticket: Ticket,
}

/// Accesses to files that are carried out; no other peer gets leases that conflict with them.
pub(crate) struct Access<'a> {
    leases: Option<&'a Leases>,
    tickets: Vec<Ticket>,
    /// Leases were recalled for it: what was known before may have changed.
    pub(crate) recalled: bool,
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
            doors: Doors::default(),
            promises: Mutex::default(),
        }
    }

    /// Grants a lease, or extends it; returns its generation, 0 if the peer gets none.
    fn grant(&self, to: PeerKey, inode: u32, kind: Kind) -> u64 {
        let now = self.holders.now();
        let mut granter = self.granter.lock();
        let granted = granter.grant(Peer(to.0), inode.into(), kind, now);
        granted.unwrap_or(0)
    }

    /// Returns whether a peer may write under the lease of this generation.
    pub(crate) fn permits(&self, peer: PeerKey, inode: u32, lease: u64) -> bool {
        let granter = self.granter.lock();
        granter.permits(Peer(peer.0), inode.into(), lease)
    }

    /// Waits until nobody else brings what was gathered of an inode.
    pub(crate) async fn door(&self, inode: u32) -> Pass<'_> {
        self.doors.pass(inode).await
    }

    /// Ends the leases of a peer that has taken its leave.
    pub(crate) fn left(&self, peer: PeerKey) {
        self.granter.lock().left(Peer(peer.0));
    }

    /// Begins accesses to inodes; returns the leases that are in their way, too.
    fn begin(&self, by: PeerKey, inodes: &[u32], kind: Kind) -> (Access<'_>, Vec<Recall>) {
        let mut access = Access {
            leases: Some(self),
            tickets: Vec::new(),
            recalled: false,
        };
        let now = self.holders.now();
        let mut granter = self.granter.lock();
        let mut recalls = Vec::new();
        for &inode in inodes {
            let ticket = granter.begin(Peer(by.0), inode.into(), kind);
            access.tickets.push(ticket);
            let leases = granter.recalls(ticket, now).into_iter();
            recalls.extend(leases.map(|lease| Recall {
                inode,
                lease,
                ticket,
            }));
        }
        access.recalled = !recalls.is_empty();
        (access, recalls)
    }

    /// Takes a lease back; returns what was gathered under it. `None` if somebody else has taken it
    /// back already, or if the holder does not answer.
    async fn recall(&self, recall: &Recall) -> Option<Answer> {
        let (now, lease) = (self.holders.now(), recall.lease.generation);
        let left = self.granter.lock().recalls(recall.ticket, now);
        if left.iter().all(|other| other.generation != lease) {
            return None;
        }
        let peer = PeerKey(recall.lease.peer.0);
        let got = self.fetch(peer, recall.inode, lease).await;
        if got.is_none() {
            log::warn!("peer {} did not return a lease: it expires", peer.0);
        }
        got
    }

    /// Asks for a lease, and for what was gathered under it, part by part.
    pub(crate) async fn fetch(&self, peer: PeerKey, inode: u32, lease: u64) -> Option<Answer> {
        let ask = |from| {
            let request = RecallRequest {
                inode: inode.into(),
                lease,
                from,
            };
            self.holders.recall(peer, request)
        };
        let mut all = ask(0).await?;
        let total = usize::try_from(all.total).ok()?;
        if total == 0 {
            return Some(all);
        }
        let sound = |part: &Answer| part.total == all.total && part.file == all.file;
        while all.part.len() < total && total <= MOST {
            let next = ask(u32::try_from(all.part.len()).ok()?).await?;
            if next.part.is_empty() || !sound(&next) {
                return None;
            }
            all.part.extend_from_slice(&next.part);
        }
        // The holder keeps them until it is told that all have come.
        ask(all.total).await?;
        (all.part.len() == total).then_some(all)
    }

    /// Notes that a peer has given a lease back.
    pub(crate) fn returned(&self, peer: PeerKey, inode: u32, lease: u64) {
        let mut granter = self.granter.lock();
        granter.returned(Peer(peer.0), inode.into(), lease);
    }

    /// Returns the promises made with write leases.
    pub(crate) fn promises(&self) -> MutexGuard<'_, BTreeMap<u32, Promise>> {
        self.promises.lock()
    }

    /// Waits for a time.
    pub(crate) fn sleep(&self, time: Duration) -> Wait<'_, ()> {
        self.holders.sleep_until(self.holders.now() + time)
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
    /// Begins a change of inodes, or of names, by a peer: no other peer holds a lease of them or of
    /// all names any more, nor gets one until the access is dropped.
    pub(crate) async fn access(&self, by: PeerKey, inodes: &[u32]) -> Access<'_> {
        let all: Vec<u32> = inodes.iter().copied().chain([NAMES]).collect();
        self.begin(by, &all, Kind::Write).await
    }

    /// Begins to look at an inode for a peer: what others have gathered of it has come, and no
    /// other peer gets a write lease until the access is dropped.
    pub(crate) async fn look(&self, by: PeerKey, inode: u32) -> Access<'_> {
        self.begin(by, &[inode], Kind::Read).await
    }

    async fn begin(&self, by: PeerKey, inodes: &[u32], kind: Kind) -> Access<'_> {
        let Some(leases) = &self.leases else {
            return Access {
                leases: None,
                tickets: Vec::new(),
                recalled: false,
            };
        };
        let (access, recalls) = leases.begin(by, inodes, kind);
        if access.recalled {
            let asked = recalls.iter().map(|recall| self.take_back(leases, recall));
            let asked = core::pin::pin!(join_all(asked));
            let expired = core::pin::pin!(leases.expiry(&access.tickets));
            select(asked, expired).await;
        }
        // Whoever did not answer may rely on its lease until that has expired.
        leases.expiry(&access.tickets).await;
        // What others take back at this moment may be this peer's.
        for &inode in inodes.iter().filter(|&&inode| inode != NAMES) {
            let _door = leases.door(inode).await;
            self.end_dead_promise(leases, inode);
        }
        access
    }

    /// Takes a lease back, and carries out what was gathered under it.
    async fn take_back(&self, leases: &Leases, recall: &Recall) {
        // Nothing was gathered under a read lease: nobody needs to wait for what it brings.
        let _door = match recall.lease.kind() {
            Kind::Write => Some(leases.door(recall.inode).await),
            Kind::Read => None,
        };
        let Some(answer) = leases.recall(recall).await else {
            return;
        };
        if !answer.part.is_empty() {
            let peer = PeerKey(recall.lease.peer.0);
            let lease = recall.lease.generation;
            self.brought(peer, (recall.inode, lease), &answer).await;
        }
        leases.returned(
            PeerKey(recall.lease.peer.0),
            recall.inode,
            recall.lease.generation,
        );
        if recall.lease.kind() == Kind::Write {
            self.end_dead_promise(leases, recall.inode);
        }
    }

    /// Grants a peer a read lease of a regular file; 0 if it gets none. What is known of the file
    /// must be read after this.
    pub(crate) fn grant(&self, to: PeerKey, inode: u32, kind: u16) -> u64 {
        match &self.leases {
            Some(leases) if kind == REGULAR => leases.grant(to, inode, Kind::Read),
            _ => 0,
        }
    }

    /// Grants a peer a write lease of a regular file, 0 if it gets none, and promises it blocks for
    /// what it gathers. When the disk is nearly full nobody gets one.
    pub(crate) async fn grant_writing(
        &self,
        to: PeerKey,
        inode: u32,
        kind: u16,
    ) -> Result<(u64, u32), Error> {
        let Some(leases) = self.leases.as_ref().filter(|_| kind == REGULAR) else {
            return Ok((0, 0));
        };
        if !self.has_room().await? {
            return Ok((0, 0));
        }
        // What others know of the file by its path may change from now on.
        let _names = self.access(to, &[]).await;
        let lease = leases.grant(to, inode, Kind::Write);
        let blocks = match lease {
            0 => 0,
            lease => self.promise(leases, (to, lease), inode).await,
        };
        Ok((lease, blocks))
    }

    /// Grants the lease that comes with an open.
    pub(crate) async fn grant_opened(
        &self,
        from: PeerKey,
        opened: &OpenFile,
        flags: OpenFlags,
    ) -> Result<Granted, Error> {
        let inode = opened.held.inode();
        if opened.writable && flags.contains(OpenFlags::GATHER) {
            let (lease, blocks) = self.grant_writing(from, inode, opened.kind).await?;
            if lease != 0 {
                return Ok(Granted {
                    lease,
                    writes: true,
                    blocks,
                });
            }
        }
        let reads = opened.readable || opened.writable;
        let lease = match reads {
            true => self.grant(from, inode, opened.kind),
            false => 0,
        };
        Ok(Granted {
            lease,
            writes: false,
            blocks: 0,
        })
    }

    /// Answers a request for a lease of an open file.
    pub(crate) async fn lease(&self, from: PeerKey, file: FileId) -> Result<Leased, Error> {
        if file == FileId::NAMES {
            let lease = self.grant(from, NAMES, REGULAR);
            return self.leased(ext4::ROOT, (lease, 0)).await;
        }
        let file = self.file(from, file)?;
        let inode = file.held.inode();
        let _look = self.look(from, inode).await;
        let lease = self.grant(from, inode, file.kind);
        self.leased(inode, (lease, 0)).await
    }

    /// Answers a request for a write lease of an open file.
    pub(crate) async fn write_lease(&self, from: PeerKey, file: FileId) -> Result<Leased, Error> {
        let file = self.file(from, file)?;
        let inode = file.held.inode();
        let lease = match file.writable {
            true => self.grant_writing(from, inode, file.kind).await?,
            false => (0, 0),
        };
        let _look = self.look(from, inode).await;
        self.leased(inode, lease).await
    }

    async fn leased(&self, inode: u32, (lease, blocks): (u64, u32)) -> Result<Leased, Error> {
        let stat = self.files.stat(inode).await?;
        let stat = convert::stat(&stat, self.files.block_size());
        Ok(Leased {
            lease,
            blocks,
            stat,
        })
    }
}
