//! Errors of the cache.

use crate::{IoFailed, LineId, Slot};

/// An error of the cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// The cache would have fewer ways than one instruction can need pages at once.
    #[error("{0} ways are too few: one instruction may need {min} pages of one set", min = crate::MIN_WAYS)]
    TooFewWays(u32),
    /// The cache would have more ways than a set keeps track of.
    #[error("{0} ways are too many: a set has at most {max}", max = crate::MAX_WAYS)]
    TooManyWays(u32),
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
    /// A slot could not be read from remote memory.
    #[error("{slot} could not be read: {cause}")]
    Fill {
        /// The slot.
        slot: Slot,
        /// The store's reason.
        cause: IoFailed,
    },
    /// A slot could not be written back to remote memory. Its line still holds it.
    #[error("{slot} could not be written back: {cause}")]
    WriteBack {
        /// The slot.
        slot: Slot,
        /// The store's reason.
        cause: IoFailed,
    },
    /// A completion names a line that has no transfer under way.
    #[error("completion of a transfer that is not under way, of line {}", .0.0)]
    UnknownTransfer(LineId),
}
