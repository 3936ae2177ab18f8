//! Commits: a transaction as blocks of the log.

use alloc::vec;
use alloc::vec::Vec;

use super::{COMMIT, DESCRIPTOR, Journal, MAGIC, REVOKE, TAG_ESCAPED, TAG_LAST, TAG_SAME_UUID};
use crate::Time;
use crate::bytes::{be32_at, high32, low16, low32, put_be16, put_be32};
use crate::crc::crc32c;
use crate::store::Transaction;

/// A transaction ready to be written.
#[derive(Debug)]
pub(crate) struct Encoded {
    /// Pieces of consecutive blocks of the journal: first block and bytes.
    pub(crate) body: Vec<(u32, Vec<u8>)>,
    /// The commit block and its place.
    pub(crate) commit: (u32, Vec<u8>),
    /// Blocks in all.
    blocks: u32,
}

/// Writes blocks one behind the other, around the log's end.
struct Writer<'a> {
    journal: &'a Journal,
    at: u32,
    pieces: Vec<(u32, Vec<u8>)>,
    blocks: u32,
}

impl Writer<'_> {
    fn push(&mut self, block: &[u8]) {
        let wraps = self.at == self.journal.first && self.blocks > 0;
        match self.pieces.last_mut().filter(|_| !wraps) {
            Some((_, bytes)) => bytes.extend_from_slice(block),
            None => self.pieces.push((self.at, block.to_vec())),
        }
        self.at = self.journal.next(self.at);
        self.blocks += 1;
    }
}

impl Journal {
    fn header(&self, kind: u32) -> Vec<u8> {
        let mut block = vec![0; self.block_size];
        put_be32(&mut block, 0, MAGIC);
        put_be32(&mut block, 4, kind);
        put_be32(&mut block, 8, self.sequence);
        block
    }

    /// Puts the checksum at the end of a descriptor or revoke block.
    fn seal(&self, block: &mut [u8]) {
        if self.sums() {
            let tail = self.block_size - 4;
            let sum = crc32c(self.seed, block);
            put_be32(block, tail, sum);
        }
    }

    fn tag_size(&self) -> usize {
        match (self.sums(), self.wide()) {
            (true, _) => 16,
            (false, true) => 12,
            (false, false) => 8,
        }
    }

    /// Tags of a descriptor block, of which the first is followed by a UUID of 16 bytes.
    fn tags_per_block(&self) -> usize {
        let tail = if self.sums() { 4 } else { 0 };
        (self.block_size - 12 - 16 - tail) / self.tag_size()
    }

    fn revokes_per_block(&self) -> usize {
        let tail = if self.sums() { 4 } else { 0 };
        (self.block_size - 16 - tail) / if self.wide() { 8 } else { 4 }
    }

    /// Returns how many blocks of the log a transaction takes at most.
    pub(crate) fn cost(&self, txn: &Transaction) -> u32 {
        let (blocks, revoked) = (txn.blocks.len(), txn.revoked.len());
        let cost = blocks
            + blocks.div_ceil(self.tags_per_block())
            + revoked.div_ceil(self.revokes_per_block())
            + 1;
        u32::try_from(cost).unwrap_or(u32::MAX)
    }

    /// Lays a transaction out behind the log's head.
    pub(crate) fn encode(&self, txn: &Transaction, now: Time) -> Encoded {
        let mut writer = Writer {
            journal: self,
            at: self.head,
            pieces: Vec::new(),
            blocks: 0,
        };
        let revoked: Vec<_> = txn.revoked.iter().copied().collect();
        for part in revoked.chunks(self.revokes_per_block()) {
            writer.push(&self.revoke_block(part));
        }
        let blocks: Vec<_> = txn
            .blocks
            .iter()
            .map(|(&block, bytes)| (block, bytes.as_slice()))
            .collect();
        for part in blocks.chunks(self.tags_per_block()) {
            let copies: Vec<_> = part
                .iter()
                .map(|&(block, bytes)| (block, escaped(bytes)))
                .collect();
            writer.push(&self.descriptor(&copies));
            for (_, (bytes, _)) in &copies {
                writer.push(bytes);
            }
        }
        let commit = (writer.at, self.commit_block(now));
        Encoded {
            blocks: writer.blocks + 1,
            body: writer.pieces,
            commit,
        }
    }

    fn revoke_block(&self, revoked: &[u64]) -> Vec<u8> {
        let mut block = self.header(REVOKE);
        let size = if self.wide() { 8 } else { 4 };
        let end = 16 + size * revoked.len();
        put_be32(&mut block, 12, low32(end as u64));
        for (place, &number) in block[16..end].chunks_exact_mut(size).zip(revoked) {
            if size == 8 {
                put_be32(place, 0, high32(number));
            }
            put_be32(place, size - 4, low32(number));
        }
        self.seal(&mut block);
        block
    }

    fn descriptor(&self, copies: &[(u64, (Vec<u8>, bool))]) -> Vec<u8> {
        let mut block = self.header(DESCRIPTOR);
        let (size, mut at) = (self.tag_size(), 12);
        for (number, (target, (bytes, escape))) in copies.iter().enumerate() {
            let mut flags = if *escape { TAG_ESCAPED } else { 0 };
            flags |= if number > 0 { TAG_SAME_UUID } else { 0 };
            flags |= if number + 1 == copies.len() {
                TAG_LAST
            } else {
                0
            };
            let tag = &mut block[at..at + size];
            put_be32(tag, 0, low32(*target));
            if self.sums() {
                let sum = crc32c(crc32c(self.seed, &self.sequence.to_be_bytes()), bytes);
                put_be32(tag, 4, flags);
                put_be32(tag, 8, high32(*target));
                put_be32(tag, 12, sum);
            } else {
                put_be16(tag, 6, low16(flags));
                if self.wide() {
                    put_be32(tag, 8, high32(*target));
                }
            }
            at += size;
            if number == 0 {
                let uuid: [u8; 16] = core::array::from_fn(|byte| self.raw[super::SB_UUID + byte]);
                block[at..at + 16].copy_from_slice(&uuid);
                at += 16;
            }
        }
        self.seal(&mut block);
        block
    }

    fn commit_block(&self, now: Time) -> Vec<u8> {
        let mut block = self.header(COMMIT);
        let seconds = now.seconds.cast_unsigned();
        put_be32(&mut block, 0x30, high32(seconds));
        put_be32(&mut block, 0x34, low32(seconds));
        put_be32(&mut block, 0x38, now.nanos);
        if self.sums() {
            let sum = crc32c(self.seed, &block);
            put_be32(&mut block, 0x10, sum);
        }
        block
    }

    /// Moves the head behind a transaction that is durable.
    pub(crate) fn advance(&mut self, written: &Encoded) {
        self.head = self.next(written.commit.0);
        self.sequence = self.sequence.wrapping_add(1);
        self.used += written.blocks;
    }
}

/// Returns a block as it stands in the log: one that begins with the journal's magic number has it
/// blanked.
fn escaped(bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut copy = bytes.to_vec();
    let escape = be32_at(bytes, 0) == MAGIC;
    if escape {
        put_be32(&mut copy, 0, 0);
    }
    (copy, escape)
}
