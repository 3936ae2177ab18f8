//! Writes to one file that wait to be brought to S.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use messages::pieces::{HEAD, MAX_PIECES, Piece};

/// Bytes by their offsets: ranges neither overlap nor touch.
#[derive(Debug, Default)]
pub(super) struct Run {
    ranges: BTreeMap<u64, Vec<u8>>,
    /// Bytes of all ranges.
    bytes: usize,
    /// Blocks of the file that they touch.
    blocks: BTreeSet<u64>,
}

impl Run {
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Returns the bytes that the run has as pieces.
    fn encoded(&self) -> usize {
        self.bytes + self.ranges.len() * HEAD
    }

    /// Returns whether a write of so many bytes surely fits.
    pub(super) fn fits(&self, len: usize) -> bool {
        self.encoded() + HEAD + len <= MAX_PIECES
    }

    /// Returns how many blocks of the file the run touches.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Returns how many blocks of `size` bytes it touches with a write of `len` bytes.
    pub(super) fn blocks_with(&self, offset: u64, len: usize, size: u64) -> u64 {
        let new = touched(offset, len, size).filter(|block| !self.blocks.contains(block));
        self.blocks() + new.count() as u64
    }

    /// Adds a write, over those before. The caller has checked that it fits.
    pub(super) fn add(&mut self, offset: u64, bytes: &[u8], block_size: u64) {
        if bytes.is_empty() {
            return;
        }
        let blocks = touched(offset, bytes.len(), block_size);
        self.blocks.extend(blocks);
        let end = offset + bytes.len() as u64;
        let before = self.ranges.range(..=offset).next_back();
        let joined = before.filter(|(start, had)| *start + had.len() as u64 >= offset);
        let start = joined.map_or(offset, |(&start, _)| start);
        let mut range = self.take(start);
        let from = usize::try_from(offset - start).unwrap_or(usize::MAX);
        let within = range.len().min(from + bytes.len());
        range[from..within].copy_from_slice(&bytes[..within - from]);
        range.extend_from_slice(&bytes[within - from..]);
        // What begins within the write, or right behind it, belongs to the range now.
        while let Some((&next, _)) = self.ranges.range(start..=end).next() {
            let behind = self.take(next);
            let known = usize::try_from(end - next).unwrap_or(usize::MAX);
            range.extend_from_slice(behind.get(known..).unwrap_or_default());
        }
        self.bytes += range.len();
        self.ranges.insert(start, range);
    }

    /// Takes a range out; an empty one if there is none.
    fn take(&mut self, start: u64) -> Vec<u8> {
        let range = self.ranges.remove(&start).unwrap_or_default();
        self.bytes -= range.len();
        range
    }

    /// Takes all as pieces, in the order of their offsets.
    pub(super) fn take_pieces(&mut self) -> Vec<u8> {
        let mut pieces = Vec::with_capacity(self.encoded());
        let run = core::mem::take(self);
        for (offset, bytes) in &run.ranges {
            let piece = Piece {
                offset: *offset,
                bytes,
            };
            pieces.extend_from_slice(&piece.head());
            pieces.extend_from_slice(bytes);
        }
        pieces
    }
}

/// Returns the blocks that a write touches.
fn touched(offset: u64, len: usize, size: u64) -> core::ops::Range<u64> {
    let end = offset.saturating_add(len as u64);
    offset / size..end.div_ceil(size)
}

#[cfg(test)]
mod tests {
    use messages::pieces::{count_blocks, pieces};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Gathered writes change a file as they would have one after the other, and no byte is
        /// brought twice.
        #[test]
        fn a_run_is_what_its_writes_are(
            writes in proptest::collection::vec((0..200_u64, 1..40_usize, 1..255_u8), 1..40)
        ) {
            let (mut run, mut file) = (Run::default(), vec![0_u8; 300]);
            for (offset, len, byte) in writes {
                let bytes: Vec<u8> = (0..len).map(|n| byte.wrapping_add(n.to_le_bytes()[0]) | 1).collect();
                prop_assert!(run.fits(len));
                run.add(offset, &bytes, 16);
                let at = usize::try_from(offset).unwrap();
                file[at..at + len].copy_from_slice(&bytes);
                let known: usize = run.ranges.values().map(Vec::len).sum();
                prop_assert_eq!(known, run.bytes);
            }
            let blocks = u32::try_from(run.blocks()).unwrap();
            let (len, bytes) = (run.encoded(), run.take_pieces());
            prop_assert_eq!(count_blocks(&bytes, 16), blocks);
            prop_assert_eq!(len, bytes.len());
            prop_assert!(run.is_empty() && run.bytes == 0);
            let (mut brought, mut last) = (vec![0; 300], None);
            for piece in pieces(&bytes) {
                let piece = piece.unwrap();
                prop_assert!(last.is_none_or(|last| last < piece.offset), "ranges touch");
                let at = usize::try_from(piece.offset).unwrap();
                brought[at..at + piece.bytes.len()].copy_from_slice(piece.bytes);
                last = Some(piece.offset + piece.bytes.len() as u64);
            }
            prop_assert_eq!(brought, file);
        }
    }

    #[test]
    fn a_full_run_takes_no_more() {
        let mut run = Run::default();
        let mut offset = 0;
        while run.fits(4096) {
            run.add(offset, &[7; 4096], 4096);
            offset += 5000;
        }
        let bytes = run.take_pieces();
        assert!(bytes.len() <= MAX_PIECES && bytes.len() > MAX_PIECES - 4096 - 2 * HEAD);
    }
}
