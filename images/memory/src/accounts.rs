//! The accounts: how much each borrower is promised, holds and is lent, and what remains for
//! others.
//!
//! An extent is *held* by a borrower if chunks of it are lent, or if it is being registered for a
//! request that is not answered yet. No other borrower can have any chunk of it then. So
//! commitments are counted in extents:
//!
//! ```text
//! Σ over borrowers of max(extents that hold what is promised, extents held) ≤ extents
//! ```
//!
//! In chunks this implies Σ max(promised, lent) ≤ chunks. The stricter rule is what makes a promise
//! hold: counted in chunks, one borrower could hold every extent by a single chunk, and leave
//! another's promise without any.

use alloc::collections::BTreeMap;

use crate::PeerKey;

/// One borrower's account.
#[derive(Debug, Default)]
struct Account {
    /// Chunks.
    promised: usize,
    /// Extents.
    held: usize,
    /// Chunks.
    lent: usize,
    /// Chunks lent, by process; no process with none.
    processes: BTreeMap<u32, usize>,
}

/// Every borrower's account.
#[derive(Debug)]
pub(crate) struct Accounts {
    accounts: BTreeMap<PeerKey, Account>,
    /// Chunks in an extent.
    size: usize,
    /// The sum of the commitments, in extents.
    committed: usize,
    promised: usize,
    lent: usize,
}

/// The closed account of a lost borrower.
///
/// It is large if the borrower had many processes: drop it without a lock held.
#[derive(Debug, Default)]
#[must_use = "it says what a borrower had"]
pub struct Lost(Account);

impl Account {
    fn committed(&self, size: usize) -> usize {
        self.promised.div_ceil(size).max(self.held)
    }
}

impl Lost {
    /// Returns how many chunks were lent to the borrower.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.0.lent
    }

    /// Returns for how many processes chunks were lent.
    #[must_use]
    pub fn processes(&self) -> usize {
        self.0.processes.len()
    }
}

impl Accounts {
    /// Opens the accounts of a pool with `size` chunks in an extent.
    pub(crate) fn new(size: usize) -> Self {
        Self {
            accounts: BTreeMap::new(),
            size: size.max(1),
            committed: 0,
            promised: 0,
            lent: 0,
        }
    }

    /// Returns how many chunks are lent.
    pub(crate) fn lent(&self) -> usize {
        self.lent
    }

    /// Returns how many chunks are promised.
    pub(crate) fn promised(&self) -> usize {
        self.promised
    }

    /// Returns how many chunks are lent for process `pid` of `peer`.
    pub(crate) fn of_process(&self, peer: PeerKey, pid: u32) -> usize {
        let account = self.accounts.get(&peer);
        account.map_or(0, |account| {
            account.processes.get(&pid).copied().unwrap_or(0)
        })
    }

    /// Returns how many extents `peer` may hold besides those that it does, of `extents` in all.
    pub(crate) fn may_hold(&self, peer: PeerKey, extents: usize) -> usize {
        let uncommitted = extents.saturating_sub(self.committed);
        let account = self.accounts.get(&peer);
        uncommitted + account.map_or(0, |account| account.committed(self.size) - account.held)
    }

    /// Promises `chunks` to `peer`; returns whether it can be done with `extents` extents in all.
    pub(crate) fn promise(&mut self, peer: PeerKey, chunks: usize, extents: usize) -> bool {
        let account = self.accounts.entry(peer).or_default();
        let before = account.promised;
        let after = Account {
            promised: chunks,
            held: account.held,
            ..Account::default()
        };
        let more = after
            .committed(self.size)
            .saturating_sub(account.committed(self.size));
        // More extents may be committed than there are, since a region could not be deregistered.
        if more > 0 && more > extents.saturating_sub(self.committed) {
            return false;
        }
        self.promised = self.promised - before + chunks;
        self.change(peer, |account| account.promised = chunks);
        true
    }

    /// Notes that `peer` holds one more extent.
    pub(crate) fn hold(&mut self, peer: PeerKey) {
        self.change(peer, |account| account.held += 1);
    }

    /// Notes that `peer` holds `extents` fewer.
    pub(crate) fn release(&mut self, peer: PeerKey, extents: usize) {
        self.change(peer, |account| account.held -= extents);
    }

    /// Notes that `chunks` more are lent for process `pid` of `peer`.
    pub(crate) fn lend(&mut self, peer: PeerKey, pid: u32, chunks: usize) {
        self.lent += chunks;
        self.change(peer, |account| {
            account.lent += chunks;
            *account.processes.entry(pid).or_default() += chunks;
        });
    }

    /// Notes that process `pid` of `peer` has returned a chunk.
    pub(crate) fn give(&mut self, peer: PeerKey, pid: u32) {
        self.lent -= 1;
        self.change(peer, |account| {
            account.lent -= 1;
            let Some(count) = account.processes.get_mut(&pid) else {
                return;
            };
            *count -= 1;
            if *count == 0 {
                account.processes.remove(&pid);
                log::debug!("peer {}: process {pid} has no chunk left", peer.0);
            }
        });
    }

    /// Closes the account of a lost borrower.
    pub(crate) fn close(&mut self, peer: PeerKey) -> Lost {
        let account = self.accounts.remove(&peer).unwrap_or_default();
        self.committed -= account.committed(self.size);
        self.promised -= account.promised;
        self.lent -= account.lent;
        Lost(account)
    }

    /// Changes an account, and the sum of the commitments with it.
    fn change(&mut self, peer: PeerKey, change: impl FnOnce(&mut Account)) {
        let account = self.accounts.entry(peer).or_default();
        self.committed -= account.committed(self.size);
        change(account);
        self.committed += account.committed(self.size);
    }
}
