//! Reading ahead: programs read files in small pieces, one behind the other, and each would be a call to S.

use alloc::vec;
use alloc::vec::Vec;

use messages::storage::FileId;

use crate::error::Result;
use crate::load::PIECE;
use crate::process::{Node, Process};

/// What a process read last of a file. There is one a process; files of S do not change.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    file: Option<FileId>,
    /// Where in the file the bytes begin.
    start: u64,
    bytes: Vec<u8>,
}

impl Ahead {
    /// Keeps bytes of a file from `start` on.
    fn keep(&mut self, file: FileId, start: u64, bytes: Vec<u8>) {
        (self.file, self.start, self.bytes) = (Some(file), start, bytes);
    }

    /// Copies what it has of a file from `at` on; how much.
    fn copy(&self, file: FileId, at: u64, into: &mut [u8]) -> usize {
        let from = at
            .checked_sub(self.start)
            .filter(|_| self.file == Some(file))
            .and_then(|skip| self.bytes.get(usize::try_from(skip).ok()?..))
            .unwrap_or_default();
        let len = from.len().min(into.len());
        into[..len].copy_from_slice(&from[..len]);
        len
    }

    /// Whether a read at `at` goes on where the last one ended.
    fn continues(&self, file: FileId, at: u64) -> bool {
        self.file == Some(file) && self.start.checked_add(self.bytes.len() as u64) == Some(at)
    }

    /// A file is closed: its number may soon mean another.
    pub(crate) fn forget(&mut self, file: FileId) {
        if self.file == Some(file) {
            *self = Self::default();
        }
    }
}

impl<N: Node> Process<'_, N> {
    /// Reads until `into` is full or the file ends; ahead, if the program reads small pieces one behind the other.
    pub(crate) async fn read_on(&self, file: FileId, offset: u64, into: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < into.len() {
            let (at, rest) = (offset.saturating_add(done as u64), &mut into[done..]);
            let copied = self.ahead.lock().copy(file, at, rest);
            if copied > 0 {
                done += copied;
                continue;
            }
            let far = self.ahead.lock().continues(file, at) && rest.len() < PIECE;
            if !far {
                let got = self.read_file(file, at, rest).await?;
                self.ahead
                    .lock()
                    .keep(file, at.saturating_add(got as u64), Vec::new());
                return Ok(done + got);
            }
            let mut bytes = vec![0; PIECE];
            let got = self.read_file(file, at, &mut bytes).await?;
            bytes.truncate(got);
            self.ahead.lock().keep(file, at, bytes);
            if got == 0 {
                break;
            }
        }
        Ok(done)
    }
}
