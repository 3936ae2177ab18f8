//! One extent: a run of chunks that is registered for one borrower at a time, and the life of its
//! registration.

use alloc::vec::Vec;

use messages::CHUNK_SIZE;
use verbs::{RemoteAddr, Rkey};

use crate::PeerKey;

/// The most bytes that are zeroed by one [`Action`](crate::Action).
///
/// Other tasks of the core wait for this long at most: some 30 µs where memory is filled at 8 GB/s.
pub const PIECE: u64 = 256 << 10;

/// An extent's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtentId(pub u16);

/// A run of chunks.
#[derive(Debug)]
pub(crate) struct Extent {
    /// The bus address of its first byte.
    pub(crate) addr: u64,
    pub(crate) chunks: usize,
    pub(crate) state: State,
}

/// An extent's use. [`Pool`](crate::Pool) draws the transitions.
#[derive(Debug)]
pub(crate) enum State {
    /// All zero, and without a region.
    Idle,
    /// A region is being registered for this borrower; `None` once it is lost.
    Registering(Option<PeerKey>),
    /// Registered for one borrower.
    Lent(Loan),
    /// Its borrower is lost. The region is still registered.
    Abandoned,
    /// Its region is being deregistered.
    Returning,
    /// Without a region; bytes of a former borrower or of firmware begin at this offset.
    Dirty(u64),
    /// Dirty, and the piece at this offset is being zeroed.
    Zeroing(u64),
    /// Its region could not be deregistered, so its former borrower may still write to it.
    Unusable,
}

/// An extent in the hands of its borrower.
#[derive(Debug)]
pub(crate) struct Loan {
    pub(crate) to: PeerKey,
    rkey: Rkey,
    /// The process that each chunk is lent for; `None` for a chunk that came back. Chunks at and
    /// after the vector's end were not lent yet, so that registering a large extent does not fill a
    /// large table.
    users: Vec<Option<u32>>,
    /// The chunks in `users` that came back.
    free: Vec<usize>,
    lent: usize,
    /// Registered for a request that is not answered yet. Another borrower must not take the extent
    /// meanwhile, or two could take it from each other for ever.
    pub(crate) reserved: bool,
}

impl Extent {
    /// Returns its length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.chunks as u64 * CHUNK_SIZE
    }

    /// Returns the loan, if the extent is lent to `peer`.
    pub(crate) fn loan_to(&self, peer: PeerKey) -> Option<&Loan> {
        match &self.state {
            State::Lent(loan) if loan.to == peer => Some(loan),
            _ => None,
        }
    }

    /// Returns the loan, if the extent is lent to `peer`.
    pub(crate) fn loan_to_mut(&mut self, peer: PeerKey) -> Option<&mut Loan> {
        match &mut self.state {
            State::Lent(loan) if loan.to == peer => Some(loan),
            _ => None,
        }
    }

    /// Returns how many of its chunks `peer` can be lent without another registration.
    pub(crate) fn free_for(&self, peer: PeerKey) -> usize {
        self.loan_to(peer).map_or(0, |loan| self.chunks - loan.lent)
    }

    /// Lends one chunk to the borrower, for its process `pid`.
    pub(crate) fn take(&mut self, pid: u32) -> Option<RemoteAddr> {
        let State::Lent(loan) = &mut self.state else {
            return None;
        };
        let index = match loan.free.pop() {
            Some(index) => index,
            None if loan.users.len() < self.chunks => {
                loan.users.push(None);
                loan.users.len() - 1
            }
            None => return None,
        };
        loan.users[index] = Some(pid);
        loan.lent += 1;
        Some(RemoteAddr {
            addr: self.addr + index as u64 * CHUNK_SIZE,
            rkey: loan.rkey,
        })
    }

    /// Returns the process that the chunk at `addr` is lent for, if `peer` has it.
    pub(crate) fn user(&self, peer: PeerKey, addr: u64) -> Option<u32> {
        let index = self.index(addr)?;
        *self.loan_to(peer)?.users.get(index)?
    }

    /// Takes the chunk at `addr` back from its borrower; returns the process that it was lent for.
    pub(crate) fn give(&mut self, addr: u64) -> Option<u32> {
        let index = self.index(addr)?;
        let State::Lent(loan) = &mut self.state else {
            return None;
        };
        let pid = loan.users.get_mut(index)?.take()?;
        loan.free.push(index);
        loan.lent -= 1;
        Some(pid)
    }

    /// Returns the number of the chunk that begins at `addr`.
    fn index(&self, addr: u64) -> Option<usize> {
        let offset = addr.checked_sub(self.addr)?;
        let whole = offset.is_multiple_of(CHUNK_SIZE) && offset < self.len();
        whole.then_some(usize::try_from(offset / CHUNK_SIZE).ok()?)
    }
}

impl Loan {
    pub(crate) fn new(to: PeerKey, rkey: Rkey) -> Self {
        Self {
            to,
            rkey,
            users: Vec::new(),
            free: Vec::new(),
            lent: 0,
            reserved: true,
        }
    }

    /// Returns whether no other borrower may have the extent now.
    pub(crate) fn is_held(&self) -> bool {
        self.lent > 0 || self.reserved
    }
}
