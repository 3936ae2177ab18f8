//! The memory that is lent, in extents: runs of chunks, each registered for one borrower at a time.
//!
//! ```text
//!        ┌─────────── refused ────────────┐
//!        ▼                                │
//!      Idle ──────── Register ──────► Registering ── registered ──► Lent
//!        ▲                                                           │
//!        │ zeroed to its end                      borrower lost  │   │ another needs it,
//!        │                                                       ▼   │ and no chunk of it is lent
//!     Zeroing ◄──── Zero ──── Dirty                      Abandoned   │
//!        │                    ▲   ▲                          │       │
//!        └─ piece is zeroed ──┘   └── deregistered ── Returning ◄────┘
//!                                                         └── stuck ──► Unusable
//! ```
//!
//! A region gives rights to its borrower alone, for it lies in the protection domain of that
//! borrower's queue pairs. So a borrower may still write to chunks that it returned, but only to
//! its own harm: before another borrower gets the extent, the region is gone and the whole extent
//! is zeroed. A chunk that comes back and stays in its borrower's extent is not zeroed. Memory as
//! firmware left it begins as [`Pool::dirty`], so that a node need not zero all of it to start.
//!
//! Extents are few, because the HCA slows down past some hundreds of regions. They all have the
//! same number of chunks, so that an extent can take any other's place.

use alloc::vec::Vec;

use messages::CHUNK_SIZE;
use messages::memory::Chunks;
use verbs::Rkey;

use crate::PeerKey;
use crate::extent::{Extent, ExtentId, Loan, PIECE, State};

/// The most extents that the memory is cut into.
pub const MAX_EXTENTS: usize = 128;

/// Work on an extent, for the caller to do and to report to the [`Manager`](crate::Manager).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Register the extent in the borrower's protection domain, with rights to read and write.
    ///
    /// Then [`Manager::registered`](crate::Manager::registered) or
    /// [`Manager::refused`](crate::Manager::refused).
    Register {
        /// The extent.
        extent: ExtentId,
        /// The borrower.
        to: PeerKey,
        /// The bus address of its first byte.
        addr: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// Deregister the extent's region.
    ///
    /// Then [`Manager::deregistered`](crate::Manager::deregistered) or
    /// [`Manager::stuck`](crate::Manager::stuck).
    Deregister {
        /// The extent.
        extent: ExtentId,
    },
    /// Zero a piece of the extent, without holding a lock that requests need.
    ///
    /// Then [`Manager::zeroed`](crate::Manager::zeroed).
    Zero {
        /// The extent.
        extent: ExtentId,
        /// The bus address of the piece.
        addr: u64,
        /// Its length in bytes, at most [`PIECE`].
        len: u64,
    },
}

/// The next thing to do or to wait for, so that a borrower gets another extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// An action.
    Action(Action),
    /// The end of an action that another task carries out.
    Wait,
    /// Nothing.
    None,
}

/// All memory there is to lend.
#[derive(Debug, Default)]
pub struct Pool {
    /// By rising address.
    extents: Vec<Extent>,
    /// Chunks in each extent.
    size: usize,
    usable: usize,
}

impl Pool {
    /// Takes pieces of zeroed memory, each a bus address and a length in bytes, that do not
    /// overlap.
    ///
    /// The extents are as small as keeps them to [`MAX_EXTENTS`]. What does not fill an extent at
    /// the end of a piece stays unused.
    #[must_use]
    pub fn new(pieces: &[(u64, u64)]) -> Self {
        let chunks: u64 = pieces.iter().map(|&(_, len)| len / CHUNK_SIZE).sum();
        let size = chunks.div_ceil(MAX_EXTENTS as u64);
        Self::with_extents_of(usize::try_from(size).unwrap_or(usize::MAX), pieces)
    }

    /// Takes pieces of memory as [`new`](Self::new) does, in extents of `size` chunks.
    #[must_use]
    pub fn with_extents_of(size: usize, pieces: &[(u64, u64)]) -> Self {
        let size = size.max(1);
        let bytes = size as u64 * CHUNK_SIZE;
        let starts = pieces
            .iter()
            .flat_map(|&(addr, len)| (0..len / bytes).map(move |index| addr + index * bytes));
        let mut extents: Vec<_> = starts
            .map(|addr| Extent {
                addr,
                chunks: size,
                state: State::Idle,
            })
            .collect();
        extents.truncate(usize::from(u16::MAX));
        extents.sort_unstable_by_key(|extent| extent.addr);
        let usable = extents.len();
        Self {
            extents,
            size,
            usable,
        }
    }

    /// Takes all extents for dirty: each is zeroed before it is lent, as a lost borrower's is.
    #[must_use]
    pub fn dirty(mut self) -> Self {
        for extent in &mut self.extents {
            extent.state = State::Dirty(0);
        }
        self
    }

    /// Returns how many chunks there are.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.usable * self.size
    }

    /// Returns how many extents there are.
    #[must_use]
    pub fn extents(&self) -> usize {
        self.usable
    }

    /// Returns how many chunks an extent has.
    #[must_use]
    pub fn extent_chunks(&self) -> usize {
        self.size
    }

    /// Returns how many extents are all zero and without a borrower.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.extents
            .iter()
            .filter(|extent| matches!(extent.state, State::Idle))
            .count()
    }

    /// Returns how many chunks `peer` can be lent from extents that it holds, and how many extents
    /// are registered for it that it does not hold.
    pub(crate) fn within_reach(&self, peer: PeerKey) -> (usize, usize) {
        let loans = self
            .extents
            .iter()
            .filter_map(|extent| Some((extent, extent.loan_to(peer)?)));
        loans.fold((0, 0), |(free, empty), (extent, loan)| {
            if loan.is_held() {
                (free + extent.free_for(peer), empty)
            } else {
                (free, empty + 1)
            }
        })
    }

    /// Lends chunks of the fullest extent of `peer` that has one free, until `chunks` has `count`;
    /// returns whether `peer` did not hold that extent before. `None` if there is no such extent.
    ///
    /// The fullest extent comes first so that others empty, which other borrowers can then have. An
    /// extent that `peer` does not hold is taken only if `may_hold_another`.
    pub(crate) fn take(
        &mut self,
        peer: PeerKey,
        pid: u32,
        count: usize,
        may_hold_another: bool,
        chunks: &mut Chunks,
    ) -> Option<bool> {
        let candidates = self.extents.iter_mut().filter_map(|extent| {
            let free = extent.free_for(peer);
            let held = extent.loan_to(peer)?.is_held();
            (free > 0 && (held || may_hold_another)).then_some((!held, free, extent))
        });
        let (new, _, extent) = candidates.min_by_key(|&(new, free, _)| (new, free))?;
        while chunks.len() < count
            && let Some(chunk) = extent.take(pid)
        {
            chunks.push(chunk).ok()?;
        }
        Some(new)
    }

    /// Returns the process that the chunk at `addr` is lent for, if `peer` has it.
    pub(crate) fn user(&self, peer: PeerKey, addr: u64) -> Option<u32> {
        self.extents[self.extent_at(addr)?].user(peer, addr)
    }

    /// Takes a chunk back; returns the process that it was lent for, and whether its borrower holds
    /// the extent no more.
    pub(crate) fn give(&mut self, peer: PeerKey, addr: u64) -> Option<(u32, bool)> {
        let index = self.extent_at(addr)?;
        let extent = &mut self.extents[index];
        extent.loan_to(peer)?;
        let pid = extent.give(addr)?;
        Some((pid, !extent.loan_to(peer)?.is_held()))
    }

    fn extent_at(&self, addr: u64) -> Option<usize> {
        self.extents
            .partition_point(|extent| extent.addr <= addr)
            .checked_sub(1)
    }

    /// Returns the next step towards another extent for `peer`: an idle one or, if `thorough`, one
    /// that must be made idle first.
    ///
    /// The extent that is closest to idle goes first, and an empty extent is taken from another
    /// borrower only if none is on its way.
    pub(crate) fn progress(&mut self, peer: PeerKey, thorough: bool) -> Progress {
        if let Some(action) = self.register(peer) {
            return Progress::Action(action);
        }
        if !thorough {
            return Progress::None;
        }
        if let Some(action) = self.zero().or_else(|| self.deregister_abandoned()) {
            return Progress::Action(action);
        }
        let busy = |extent: &Extent| {
            let state = &extent.state;
            matches!(
                state,
                State::Returning | State::Zeroing(_) | State::Registering(None)
            )
        };
        if self.extents.iter().any(busy) {
            return Progress::Wait;
        }
        let empty = |state: &State| matches!(state, State::Lent(loan) if loan.to != peer && !loan.is_held());
        self.deregister(empty)
            .map_or(Progress::None, Progress::Action)
    }

    /// Returns the next action that brings an extent without a borrower closer to idle.
    pub(crate) fn clean(&mut self) -> Option<Action> {
        self.deregister_abandoned().or_else(|| self.zero())
    }

    fn register(&mut self, to: PeerKey) -> Option<Action> {
        let (extent, it) = self.find(|state| matches!(state, State::Idle))?;
        it.state = State::Registering(Some(to));
        Some(Action::Register {
            extent,
            to,
            addr: it.addr,
            len: it.len(),
        })
    }

    fn zero(&mut self) -> Option<Action> {
        let dirty = (0..).zip(&mut self.extents).filter_map(|(index, extent)| {
            let State::Dirty(zeroed) = extent.state else {
                return None;
            };
            Some((zeroed, index, extent))
        });
        let (zeroed, index, extent) = dirty.max_by_key(|&(zeroed, ..)| zeroed)?;
        extent.state = State::Zeroing(zeroed);
        Some(Action::Zero {
            extent: ExtentId(index),
            addr: extent.addr + zeroed,
            len: PIECE.min(extent.len() - zeroed),
        })
    }

    fn deregister_abandoned(&mut self) -> Option<Action> {
        self.deregister(|state| matches!(state, State::Abandoned))
    }

    fn deregister(&mut self, which: impl Fn(&State) -> bool) -> Option<Action> {
        let (extent, it) = self.find(which)?;
        it.state = State::Returning;
        Some(Action::Deregister { extent })
    }

    fn find(&mut self, which: impl Fn(&State) -> bool) -> Option<(ExtentId, &mut Extent)> {
        (0..)
            .map(ExtentId)
            .zip(&mut self.extents)
            .find(|(_, extent)| which(&extent.state))
    }

    fn get_mut(&mut self, id: ExtentId) -> Option<&mut Extent> {
        self.extents.get_mut(usize::from(id.0))
    }

    /// Returns whether an extent is being registered for `peer`.
    pub(crate) fn is_registering(&self, peer: PeerKey) -> bool {
        let theirs =
            |extent: &Extent| matches!(extent.state, State::Registering(Some(to)) if to == peer);
        self.extents.iter().any(theirs)
    }

    /// Ends [`Action::Register`], by the region's key or by `None` if it failed; returns the
    /// borrower, unless it is lost.
    pub(crate) fn registered(&mut self, id: ExtentId, rkey: Option<Rkey>) -> Option<PeerKey> {
        let extent = self.get_mut(id)?;
        let State::Registering(to) = extent.state else {
            return None;
        };
        extent.state = match (rkey, to) {
            (None, _) => State::Idle,
            (Some(_), None) => State::Abandoned,
            (Some(rkey), Some(to)) => State::Lent(Loan::new(to, rkey)),
        };
        to
    }

    /// Ends [`Action::Deregister`]; returns whether an extent went out of use because it failed.
    pub(crate) fn deregistered(&mut self, id: ExtentId, gone: bool) -> bool {
        let Some(extent) = self.get_mut(id) else {
            return false;
        };
        if !matches!(extent.state, State::Returning) {
            return false;
        }
        extent.state = if gone {
            State::Dirty(0)
        } else {
            State::Unusable
        };
        self.usable -= usize::from(!gone);
        !gone
    }

    /// Ends [`Action::Zero`]; returns whether the extent is idle now.
    pub(crate) fn zeroed(&mut self, id: ExtentId) -> bool {
        let Some(extent) = self.get_mut(id) else {
            return false;
        };
        let State::Zeroing(from) = extent.state else {
            return false;
        };
        let zeroed = (from + PIECE).min(extent.len());
        let whole = zeroed == extent.len();
        extent.state = if whole {
            State::Idle
        } else {
            State::Dirty(zeroed)
        };
        whole
    }

    /// Ends the reservations of `peer`; returns how many extents it holds no more.
    pub(crate) fn settle(&mut self, peer: PeerKey) -> usize {
        let loans = self
            .extents
            .iter_mut()
            .filter_map(|extent| extent.loan_to_mut(peer));
        loans
            .filter_map(|loan| core::mem::take(&mut loan.reserved).then_some(!loan.is_held()))
            .filter(|&left| left)
            .count()
    }

    /// Abandons every extent of a lost borrower.
    pub(crate) fn abandon(&mut self, peer: PeerKey) {
        for extent in &mut self.extents {
            match &mut extent.state {
                State::Lent(loan) if loan.to == peer => extent.state = State::Abandoned,
                State::Registering(to) if *to == Some(peer) => *to = None,
                _ => {}
            }
        }
    }
}
