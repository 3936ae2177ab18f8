//! Numbers of address spaces, and how often each space's translations changed.
//!
//! The numbers are software's own: hardware's PCIDs are not used. Whoever changed a page's entry
//! needs only the number to announce it, so no table of spaces has to be locked on the path of a
//! page miss.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::{Mutex, Once};

/// Spaces whose counters are allocated together.
const BLOCK: usize = 512;
/// Blocks at most: 32,768 spaces, as many as Linux's default limit of processes.
const BLOCKS: usize = 64;

/// The number of an address space. It is used again once nothing holds the space, on no core
/// either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Asid(u32);

/// A space's generation. A cache line each: cores write those of different spaces at once.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Generation(AtomicU64);

type Block = Box<[Generation]>;

static BLOCKS_MADE: [Once<Block>; BLOCKS] = [const { Once::new() }; BLOCKS];

/// Numbers that are free again, and the first that was never used. A leaf lock.
static FREE: Mutex<(Vec<u32>, u32)> = Mutex::new((Vec::new(), 0));

impl Asid {
    /// Takes a number that no space has; `None` when all are taken.
    pub(crate) fn allocate() -> Option<Self> {
        let number = {
            let mut free = FREE.lock();
            free.0.pop().or_else(|| {
                let fresh = free.1;
                ((fresh as usize) < BLOCKS * BLOCK).then(|| {
                    free.1 += 1;
                    fresh
                })
            })?
        };
        let make = || (0..BLOCK).map(|_| Generation::default()).collect();
        BLOCKS_MADE[number as usize / BLOCK].call_once(make);
        Some(Self(number))
    }

    /// Gives the number back. The generation goes on from where it is.
    pub(crate) fn release(self) {
        FREE.lock().0.push(self.0);
    }

    /// Returns the number as a plain integer.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Returns the space's number from the integer of [`number`](Self::number).
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// Returns the count of the space's changes.
    pub(crate) fn word(self) -> &'static AtomicU64 {
        let block = BLOCKS_MADE.get(self.0 as usize / BLOCK).and_then(Once::get);
        &block.expect("a number that a space has")[self.0 as usize % BLOCK].0
    }

    /// Counts a change; returns the generation before it.
    pub(crate) fn advance(self) -> u64 {
        self.word().fetch_add(1, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again_and_their_generations_go_on() {
        let first = Asid::allocate().unwrap();
        let second = Asid::allocate().unwrap();
        assert_ne!(first, second);
        let before = first.word().load(Ordering::SeqCst);
        assert_eq!(first.advance(), before);
        assert_eq!(Asid::from_number(first.number()), first);
        assert_eq!(
            second.word().load(Ordering::SeqCst),
            0,
            "the other's is its own"
        );
        first.release();
        let again = Asid::allocate().unwrap();
        assert_eq!(
            (again, again.word().load(Ordering::SeqCst)),
            (first, before + 1)
        );
    }
}
