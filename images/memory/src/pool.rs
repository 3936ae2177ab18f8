//! The memory that is lent, in lots: runs of windows, each registered for one borrower at a time.
//!
//! ```text
//!  Idle ──order──► Claimed ──registered──► Lent ──order, once it is empty──► Returning ──taken back, zeroed──► Idle
//! ```
//!
//! A region's rights are its borrower's alone, for it lies in the protection domain of that borrower's queue pairs. So who
//! gave a chunk back may still write to it, but only to harm itself: before another borrower gets the lot, the region
//! is gone and all of it is zeroed. Lots are few, because the HCA slows down with some hundreds of regions.

use alloc::vec::Vec;

use messages::WINDOW_SIZE;
use verbs::{RemoteAddr, Rkey};

use crate::PeerKey;

/// The most lots that the memory is cut into.
pub const MAX_LOTS: usize = 128;

/// Where the chunks really are.
pub trait Backing {
    /// Fills the window's worth of bytes at the bus address `addr` with zeroes.
    fn zero(&mut self, addr: u64);
}

/// One chunk, taken from a share. It is given back by [`Share::give`]; it can't be copied, so not twice.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    lot: LotId,
    at: RemoteAddr,
}

impl Chunk {
    /// Where its borrower reaches it.
    #[must_use]
    pub fn remote(&self) -> RemoteAddr {
        self.at
    }
}

/// A lot's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LotId(pub u16);

/// What must be done to a lot before a request can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Register it for a borrower, with rights to read and write; then [`Pool::registered`] or [`Pool::refused`].
    Register {
        /// The lot.
        lot: LotId,
        /// Its borrower.
        to: PeerKey,
        /// The bus address where it begins.
        addr: u64,
        /// Bytes.
        len: u64,
    },
    /// Take its region back; then [`Pool::taken_back`], or [`Pool::stuck`].
    TakeBack {
        /// The lot.
        lot: LotId,
    },
}

#[derive(Debug)]
struct Lot {
    addr: u64,
    windows: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    Idle,
    Claimed(PeerKey),
    Lent(Lent),
    Returning,
}

#[derive(Debug)]
struct Lent {
    to: PeerKey,
    rkey: Rkey,
    /// The addresses of chunks that nobody has, each zero.
    free: Vec<u64>,
    /// Got for a request that has not been answered yet: it stays with its borrower until then.
    promised: bool,
}

/// All memory there is to lend.
#[derive(Debug, Default)]
pub struct Pool {
    lots: Vec<Lot>,
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Windows in a lot of a pool of `len` bytes: as few as keep the lots to [`MAX_LOTS`].
    #[must_use]
    pub fn lot_windows(len: u64) -> usize {
        let windows = usize::try_from(len / WINDOW_SIZE).unwrap_or(0);
        windows.div_ceil(MAX_LOTS).max(1)
    }

    /// Adds `len` bytes of zeroed memory from bus address `addr` on, in lots of `lot_windows` windows; what does not fill a
    /// window at its end is not used.
    pub fn add_memory(&mut self, addr: u64, len: u64, lot_windows: usize) {
        let windows = usize::try_from(len / WINDOW_SIZE).unwrap_or(0);
        let lot_windows = lot_windows.max(1);
        for first in (0..windows).step_by(lot_windows) {
            self.lots.push(Lot {
                addr: addr + first as u64 * WINDOW_SIZE,
                windows: lot_windows.min(windows - first),
                state: State::Idle,
            });
        }
    }

    /// Chunks that nobody has.
    #[must_use]
    pub fn free(&self) -> usize {
        self.lots.iter().map(Lot::free).sum()
    }

    /// All chunks.
    #[must_use]
    pub fn total(&self) -> usize {
        self.lots.iter().map(|lot| lot.windows).sum()
    }

    /// All lots.
    #[must_use]
    pub fn lots(&self) -> usize {
        self.lots.len()
    }

    /// What one borrower can take of it at once.
    pub fn share(&mut self, of: PeerKey) -> Share<'_> {
        Share {
            pool: self,
            of,
            short: 0,
        }
    }

    /// The first thing to do so that `of` may take `more` chunks than it can now; nothing if there are not so many.
    pub(crate) fn order(&mut self, of: PeerKey, more: usize) -> Option<Order> {
        let within_reach: usize = self
            .lots
            .iter()
            .filter(|lot| lot.is_within_reach(of))
            .map(Lot::free)
            .sum();
        if within_reach < more {
            return None;
        }
        let idle = self.lots.iter().position(|lot| matches!(lot.state, State::Idle));
        let index = idle.or_else(|| self.lots.iter().position(|lot| lot.is_within_reach(of)))?;
        let lot = &mut self.lots[index];
        let id = LotId(u16::try_from(index).ok()?);
        if idle.is_none() {
            lot.state = State::Returning;
            return Some(Order::TakeBack { lot: id });
        }
        lot.state = State::Claimed(of);
        Some(Order::Register {
            lot: id,
            to: of,
            addr: lot.addr,
            len: lot.windows as u64 * WINDOW_SIZE,
        })
    }

    /// A claimed lot has a region with this key.
    pub fn registered(&mut self, id: LotId, rkey: Rkey) {
        if let Some(lot) = self.lots.get_mut(usize::from(id.0))
            && let State::Claimed(to) = lot.state
        {
            let free = (0..lot.windows as u64)
                .rev()
                .map(|index| lot.addr + index * WINDOW_SIZE);
            lot.state = State::Lent(Lent {
                to,
                rkey,
                free: free.collect(),
                promised: true,
            });
        }
    }

    /// A claimed lot could not be registered.
    pub fn refused(&mut self, id: LotId) {
        if let Some(lot) = self.lots.get_mut(usize::from(id.0))
            && matches!(lot.state, State::Claimed(_))
        {
            lot.state = State::Idle;
        }
    }

    /// The region of a returning lot is gone: nobody can write there any more.
    pub fn taken_back(&mut self, id: LotId, backing: &mut impl Backing) {
        if let Some(lot) = self.lots.get_mut(usize::from(id.0))
            && matches!(lot.state, State::Returning)
        {
            (0..lot.windows as u64).for_each(|index| backing.zero(lot.addr + index * WINDOW_SIZE));
            lot.state = State::Idle;
        }
    }

    /// The region of a returning lot may be there still, so the lot is lost: nobody else may have it.
    pub fn stuck(&mut self, id: LotId) {
        if let Some(lot) = self.lots.get_mut(usize::from(id.0)) {
            lot.windows = 0;
        }
    }

    /// The request that lots were got for is answered, or its maker is gone.
    pub(crate) fn settled(&mut self, of: PeerKey) {
        for lot in &mut self.lots {
            if let State::Lent(lent) = &mut lot.state
                && lent.to == of
            {
                lent.promised = false;
            }
        }
    }
}

impl Lot {
    fn free(&self) -> usize {
        match &self.state {
            State::Lent(lent) => lent.free.len(),
            _ => self.windows,
        }
    }

    /// Whether a borrower that does not have it may get it.
    fn is_within_reach(&self, of: PeerKey) -> bool {
        match &self.state {
            State::Idle => true,
            State::Claimed(_) | State::Returning => false,
            State::Lent(lent) => lent.to != of && !lent.promised && lent.free.len() == self.windows,
        }
    }
}

/// What one borrower can take of the pool.
pub struct Share<'a> {
    pool: &'a mut Pool,
    of: PeerKey,
    short: usize,
}

impl Share<'_> {
    /// Whether `count` chunks can be taken. If not, what is short is remembered.
    pub fn covers(&mut self, count: usize) -> bool {
        let have: usize = self.lots().map(|lent| lent.free.len()).sum();
        self.short = count.saturating_sub(have);
        self.short == 0
    }

    /// How many chunks were short when [`covers`](Self::covers) said no.
    #[must_use]
    pub fn short(&self) -> usize {
        self.short
    }

    /// Takes a chunk, all zero.
    pub fn take(&mut self) -> Option<Chunk> {
        let of = self.of;
        (0..)
            .zip(&mut self.pool.lots)
            .find_map(|(index, lot)| match &mut lot.state {
                State::Lent(lent) if lent.to == of => lent.free.pop().map(|addr| Chunk {
                    lot: LotId(index),
                    at: RemoteAddr {
                        addr,
                        rkey: lent.rkey,
                    },
                }),
                _ => None,
            })
    }

    /// Takes a chunk back and zeroes it, so that no process sees what another left.
    pub fn give(&mut self, chunk: Chunk, backing: &mut impl Backing) {
        backing.zero(chunk.at.addr);
        if let Some(lot) = self.pool.lots.get_mut(usize::from(chunk.lot.0))
            && let State::Lent(lent) = &mut lot.state
        {
            lent.free.push(chunk.at.addr);
        }
    }

    fn lots(&self) -> impl Iterator<Item = &Lent> {
        self.pool.lots.iter().filter_map(|lot| match &lot.state {
            State::Lent(lent) if lent.to == self.of => Some(lent),
            _ => None,
        })
    }
}
