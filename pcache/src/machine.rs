//! The machine around the cache, as the cache needs it.

use hal::Instant;

use crate::{Entry, LineId, Page, SpaceId};

/// A place in remote memory: opaque to the cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RemoteAddr {
    /// The address on the remote side.
    pub addr: u64,
    /// Key that selects and opens the remote side: a region's rkey, a peer's number.
    pub key: u64,
}

/// A transfer that failed, by the store's own code.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("transfer failed with code {0:#x}")]
pub struct IoFailed(pub u32);

/// Page tables, lines, and the one-sided way to remote memory.
///
/// [`read`](Self::read), [`write`](Self::write) and [`ring`](Self::ring) are called with no lock of
/// the cache held; all else may be called with one or two sets locked and never calls the cache.
pub trait Machine {
    /// A leaf entry's place.
    type Entry: Entry;

    /// Returns the time; asked only for transfers whose time is taken.
    fn now(&self) -> Instant;
    /// Returns the calling core, from 0; only to spread what cores would contend for.
    fn core(&self) -> usize;

    /// Returns the physical address of a line.
    fn frame(&self, line: LineId) -> u64;
    /// Returns the line at a physical address; `None` if no line is there.
    fn line(&self, frame: u64) -> Option<LineId>;

    /// Starts reading `line` from `from`; the store may hold it back until [`ring`](Self::ring).
    ///
    /// A line has at most one transfer under way. Each ends by exactly one
    /// [`Cache::complete`](crate::Cache::complete), also one that could not be started.
    fn read(&self, line: LineId, from: RemoteAddr);
    /// Starts writing `line` to `to`, as [`read`](Self::read). The program may write the line
    /// meanwhile: what lands is then a mix, and the cache writes the line again later.
    fn write(&self, line: LineId, to: RemoteAddr);
    /// Shows the device all that was started.
    fn ring(&self);
    /// Starts reading `line` from `from` and shows it to the device: a miss that brings nothing
    /// else.
    fn read_now(&self, line: LineId, from: RemoteAddr) {
        self.read(line, from);
        self.ring();
    }

    /// Starts writing lines, in order, and shows the WRITEs to the device: the dirty victims of a
    /// batch.
    fn write_now(&self, lines: &[(LineId, RemoteAddr)]) {
        for &(line, to) in lines {
            self.write(line, to);
        }
        self.ring();
    }

    /// Returns when no core uses a translation of these pages from before the call.
    fn flush(&self, stale: &[Page]);
    /// Returns when no core uses a translation of a page of this space from before the call.
    fn flush_space(&self, space: SpaceId);
    /// Drops this core's translation of a page, so that its next use sets the accessed mark again.
    fn flush_own(&self, page: Page);
    /// Gets a line that a READ filled ready to be executed by programs. What [`copy_in`] and its
    /// kin write needs no such care.
    ///
    /// [`copy_in`]: Machine::copy_in
    fn prepare_code(&self, line: LineId);
    /// Tells that a line which programs may have executed is about to hold something else.
    fn retire_code(&self, line: LineId);

    /// Copies bytes from `offset` of `line` out.
    ///
    /// # Panics
    ///
    /// When the range leaves the line: offsets are this node's own arithmetic.
    fn copy_out(&self, line: LineId, offset: usize, into: &mut [u8]);
    /// Copies bytes into `line` at `offset`.
    ///
    /// # Panics
    ///
    /// As [`copy_out`](Self::copy_out).
    fn copy_in(&self, line: LineId, offset: usize, from: &[u8]);
    /// Stores `new` in the word of four bytes at `offset`, a multiple of four, if that is `old`: at
    /// once for the stores of programs on all cores. Returns the word from before, as `Err` if it
    /// was not `old`.
    ///
    /// # Errors
    ///
    /// The word, if it was another.
    ///
    /// # Panics
    ///
    /// As [`copy_out`](Self::copy_out).
    fn exchange(&self, line: LineId, offset: usize, old: u32, new: u32) -> Result<u32, u32>;
    /// Copies a whole line to another.
    fn copy_line(&self, from: LineId, to: LineId);
    /// Sets a whole line to zero.
    fn zero(&self, line: LineId);
}
