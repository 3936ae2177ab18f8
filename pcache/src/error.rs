//! What can go wrong.

use crate::{IoFailed, MapFailed, Page, Token};

/// An error of the cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// The cache would have fewer ways than one instruction can need pages at once.
    #[error("{0} ways are too few: one instruction may need {min} pages of one set", min = crate::MIN_WAYS)]
    TooFewWays(u32),
    /// The memory given does not hold one set.
    #[error("{bytes} bytes do not hold one set of {ways} lines")]
    TooSmall {
        /// The memory given.
        bytes: u64,
        /// The ways asked for.
        ways: u32,
    },
    /// The memory given holds more lines than a cache can number.
    #[error("{0} bytes are more than a cache can hold")]
    TooLarge(u64),
    /// A page could not be read from remote memory.
    #[error("{page} could not be read: {cause}")]
    Fill {
        /// The page.
        page: Page,
        /// What the store said.
        cause: IoFailed,
    },
    /// A page could not be written back to remote memory. Its line still holds it.
    #[error("{page} could not be written back: {cause}")]
    WriteBack {
        /// The page.
        page: Page,
        /// What the store said.
        cause: IoFailed,
    },
    /// A page has no remote place to be read from or written to.
    #[error("{0} has no place in remote memory")]
    NoPlace(Page),
    /// The page tables did not take a page.
    #[error("{page} could not be mapped: {cause}")]
    Map {
        /// The page.
        page: Page,
        /// What the page tables said.
        cause: MapFailed,
    },
    /// The page was given up while its line was being prepared.
    #[error("{0} was unmapped meanwhile")]
    Gone(Page),
    /// A completion names no transfer that is under way.
    #[error("completion of unknown transfer {:#x}", .0.raw())]
    UnknownToken(Token),
}
