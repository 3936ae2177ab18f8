//! The disk, and a small cache of its blocks.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::future::Future;

use spin::Mutex;

/// A read that the disk did not carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the disk did not read {len} bytes at {offset:#x}")]
pub struct DiskError {
    /// Where.
    pub offset: u64,
    /// How much.
    pub len: usize,
}

/// A disk.
pub trait BlockDevice: Send + Sync {
    /// Fills `into` with the bytes from `offset` on. Neither need be aligned.
    fn read(&self, offset: u64, into: &mut [u8]) -> impl Future<Output = Result<(), DiskError>> + Send;
}

/// Blocks that the cache holds.
const LINES: usize = 256;

struct Line {
    block: u64,
    bytes: Box<[u8]>,
}

/// Keeps blocks of metadata (inode tables, folders, extent trees) so that a path is not read from the disk each time.
pub(crate) struct Cache {
    block_size: usize,
    lines: Mutex<Vec<Option<Line>>>,
}

impl Cache {
    pub(crate) fn new(block_size: usize) -> Self {
        Self {
            block_size,
            lines: Mutex::new((0..LINES).map(|_| None).collect()),
        }
    }

    /// Reads `into.len()` bytes at `offset` of a block; they may not leave it.
    pub(crate) async fn read<B: BlockDevice>(
        &self,
        disk: &B,
        block: u64,
        offset: usize,
        into: &mut [u8],
    ) -> Result<(), DiskError> {
        let range = offset..offset + into.len();
        let at = usize::try_from(block % LINES as u64).expect("less than the number of lines");
        {
            let lines = self.lines.lock();
            if let Some(line) = lines[at].as_ref().filter(|line| line.block == block) {
                into.copy_from_slice(&line.bytes[range]);
                return Ok(());
            }
        }
        let mut bytes = vec![0; self.block_size].into_boxed_slice();
        let start = block.checked_mul(self.block_size as u64);
        let start = start.ok_or(DiskError {
            offset: u64::MAX,
            len: self.block_size,
        })?;
        disk.read(start, &mut bytes).await?;
        into.copy_from_slice(&bytes[range]);
        self.lines.lock()[at] = Some(Line { block, bytes });
        Ok(())
    }
}
