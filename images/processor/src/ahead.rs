//! Reading ahead: programs read files in small pieces, one behind the other, and each would be a
//! call to S.

use alloc::vec;
use alloc::vec::Vec;

use crate::error::Result;
use crate::files::{O_DIRECT, OpenFile};
use crate::leased;
use crate::load::{PIECE, read_file};
use crate::process::Node;
use crate::storage::{self, StorageFile};
use crate::thread::Thread;

/// The bytes of an open file that were read last.
#[derive(Debug, Default)]
pub(crate) struct Readahead {
    /// Offset in the file of the first byte.
    start: u64,
    bytes: Vec<u8>,
    /// The file's version before they were read.
    version: u64,
}

impl Readahead {
    /// Keeps bytes of the file from `start` on.
    pub(crate) fn keep(&mut self, start: u64, bytes: Vec<u8>, version: u64) {
        (self.start, self.bytes, self.version) = (start, bytes, version);
    }

    /// Copies the bytes from `at` on that are kept and are those of the file's `version`; returns
    /// how many.
    fn copy(&self, at: u64, into: &mut [u8], version: u64) -> usize {
        if self.version != version {
            return 0;
        }
        let from = at
            .checked_sub(self.start)
            .and_then(|skip| self.bytes.get(usize::try_from(skip).ok()?..))
            .unwrap_or_default();
        let len = from.len().min(into.len());
        into[..len].copy_from_slice(&from[..len]);
        len
    }

    /// Returns whether a read at `at` goes on where the last one ended.
    pub(crate) fn continues(&self, at: u64) -> bool {
        at > 0 && self.start.checked_add(self.bytes.len() as u64) == Some(at)
    }
}

impl<N: Node> Thread<N> {
    /// Reads until `into` is full or the file ends; ahead, if the program reads small pieces one
    /// behind the other.
    pub(crate) async fn read_on(
        &self,
        file: &OpenFile,
        of: StorageFile,
        offset: u64,
        into: &mut [u8],
    ) -> Result<usize> {
        if file.flags() & O_DIRECT == 0
            && let Some(done) = leased::read(self.node, file, of, offset, into).await?
        {
            return Ok(done);
        }
        let end = offset.saturating_add(into.len() as u64);
        storage::before_read(self.node, of.inode, offset..end).await?;
        let mut done = 0;
        while done < into.len() {
            let (at, rest) = (offset.saturating_add(done as u64), &mut into[done..]);
            let version = self.node.kernel().changes.version(of.inode);
            let copied = file.ahead.lock().copy(at, rest, version);
            if copied > 0 {
                done += copied;
                continue;
            }
            let far = file.ahead.lock().continues(at) && rest.len() < PIECE;
            if !far {
                let got = read_file(self.node, of.id, at, rest).await?;
                let end = at.saturating_add(got as u64);
                file.ahead.lock().keep(end, Vec::new(), version);
                return Ok(done + got);
            }
            let mut bytes = vec![0; PIECE];
            let got = read_file(self.node, of.id, at, &mut bytes).await?;
            bytes.truncate(got);
            file.ahead.lock().keep(at, bytes, version);
            if got == 0 {
                break;
            }
        }
        Ok(done)
    }
}
