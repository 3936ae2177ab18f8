//! Replay: which blocks the log's committed transactions hold, newest last.
//!
//! After `fs/jbd2/recovery.c`. The log ends at the first block that does not continue it or whose
//! checksum is wrong: the power went before that transaction had committed.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use super::{COMMIT, DESCRIPTOR, Journal, MAGIC, REVOKE, TAG_ESCAPED, TAG_LAST, TAG_SAME_UUID};
use crate::bytes::{be16_at, be32_at, index, put_be32};
use crate::crc::crc32c;
use crate::{Disk, Error};

/// A block in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Copy {
    /// Its block of the journal.
    log: u32,
    sequence: u32,
    flags: u32,
    checksum: u32,
}

/// The result of a scan: blocks to be replayed.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// The newest copy of each block of the file system.
    pub(crate) blocks: BTreeMap<u64, Copy>,
    /// The number for the next transaction.
    pub(crate) sequence: u32,
}

/// A tag of a descriptor block.
struct Tag {
    block: u64,
    flags: u32,
    checksum: u32,
}

/// Bytes of a block that hold tags or revoked numbers.
fn room(journal: &Journal) -> usize {
    journal.block_size - if journal.sums() { 4 } else { 0 }
}

fn tail_good(journal: &Journal, block: &[u8]) -> bool {
    let tail = journal.block_size - 4;
    let sum = crc32c(crc32c(journal.seed, &block[..tail]), &[0; 4]);
    !journal.sums() || sum == be32_at(block, tail)
}

fn commit_good(journal: &Journal, block: &[u8]) -> bool {
    let mut copy = block.to_vec();
    put_be32(&mut copy, 0x10, 0);
    !journal.sums() || crc32c(journal.seed, &copy) == be32_at(block, 0x10)
}

/// Takes the tags of a descriptor block apart.
fn tags(journal: &Journal, block: &[u8]) -> Vec<Tag> {
    let size = match (journal.sums(), journal.wide()) {
        (true, _) => 16,
        (false, true) => 12,
        (false, false) => 8,
    };
    let (mut tags, mut at) = (Vec::new(), 12);
    while at + size <= room(journal) {
        let tag = &block[at..at + size];
        let (flags, checksum, high) = if journal.sums() {
            (be32_at(tag, 4), be32_at(tag, 12), be32_at(tag, 8))
        } else {
            (
                be16_at(tag, 6).into(),
                0,
                if journal.wide() { be32_at(tag, 8) } else { 0 },
            )
        };
        let high = if journal.wide() {
            u64::from(high) << 32
        } else {
            0
        };
        let block = u64::from(be32_at(tag, 0)) | high;
        tags.push(Tag {
            block,
            flags,
            checksum,
        });
        at += size + if flags & TAG_SAME_UUID == 0 { 16 } else { 0 };
        if flags & TAG_LAST != 0 {
            break;
        }
    }
    tags
}

/// Takes the revoked block numbers of a revoke block apart.
fn revoked(journal: &Journal, block: &[u8]) -> Vec<u64> {
    let size = if journal.wide() { 8 } else { 4 };
    let end = index(be32_at(block, 12).into()).min(room(journal)).max(16);
    let number = |raw: &[u8]| match size {
        8 => u64::from(be32_at(raw, 0)) << 32 | u64::from(be32_at(raw, 4)),
        _ => be32_at(raw, 0).into(),
    };
    block[16..end].chunks_exact(size).map(number).collect()
}

async fn read<D: Disk>(journal: &Journal, disk: &D, block: u32) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; journal.block_size];
    disk.read(
        journal.place(block)? * journal.block_size as u64,
        &mut bytes,
    )
    .await?;
    Ok(bytes)
}

/// A scan of the log under way.
struct Scan<'a> {
    journal: &'a Journal,
    /// Number of the first transaction of the log.
    first: u32,
    /// Number of the transaction that the scan is in.
    sequence: u32,
    /// The last transaction that revoked each block.
    revokes: BTreeMap<u64, u32>,
    copies: Vec<(u64, Copy)>,
    /// Copies and revoked blocks of the transaction whose commit block is still to come.
    pending: Vec<(u64, Copy)>,
    pending_revokes: Vec<u64>,
}

impl Scan<'_> {
    /// Takes a block of the log; returns how many blocks it stands for, `None` at the log's end.
    fn take(&mut self, at: u32, block: &[u8]) -> Option<u32> {
        let journal = self.journal;
        if (be32_at(block, 0), be32_at(block, 8)) != (MAGIC, self.sequence) {
            return None;
        }
        match be32_at(block, 4) {
            DESCRIPTOR if tail_good(journal, block) => {
                return Some(self.take_descriptor(at, block));
            }
            REVOKE if tail_good(journal, block) => {
                self.pending_revokes.extend(revoked(journal, block))
            }
            COMMIT if commit_good(journal, block) => {
                let sequence = self.sequence;
                let revoked = self.pending_revokes.drain(..);
                self.revokes.extend(revoked.map(|block| (block, sequence)));
                self.copies.append(&mut self.pending);
                self.sequence = sequence.wrapping_add(1);
            }
            _ => return None,
        }
        Some(1)
    }

    fn take_descriptor(&mut self, at: u32, descriptor: &[u8]) -> u32 {
        let sequence = self.sequence;
        let (mut log, mut taken) = (at, 1);
        for tag in tags(self.journal, descriptor) {
            log = self.journal.next(log);
            taken += 1;
            let (flags, checksum) = (tag.flags, tag.checksum);
            let copy = Copy {
                log,
                sequence,
                flags,
                checksum,
            };
            self.pending.push((tag.block, copy));
        }
        taken
    }

    fn finish(self) -> Recovered {
        // Sequence numbers wrap around: they are compared by their distance from the first.
        let age = |sequence: u32| sequence.wrapping_sub(self.first);
        let lives = |(block, copy): &(u64, Copy)| {
            let revoked = self.revokes.get(block);
            revoked.is_none_or(|&revoked| age(revoked) < age(copy.sequence))
        };
        Recovered {
            blocks: self.copies.into_iter().filter(lives).collect(),
            // The number of the transaction that did not commit is not used again
            // (`jbd2_journal_recover`).
            sequence: self.sequence.wrapping_add(1),
        }
    }
}

/// Reads the log from its start to the last committed transaction.
pub(crate) async fn scan<D: Disk>(journal: &Journal, disk: &D) -> Result<Recovered, Error> {
    let Some((start, first)) = journal.start() else {
        let sequence = journal.sequence;
        return Ok(Recovered {
            sequence,
            ..Recovered::default()
        });
    };
    let inside = start >= journal.first && start < journal.len;
    super::check("journal s_start", start.into(), inside)?;
    let mut scan = Scan {
        journal,
        first,
        sequence: first,
        revokes: BTreeMap::new(),
        copies: Vec::new(),
        pending: Vec::new(),
        pending_revokes: Vec::new(),
    };
    let mut at = start;
    let mut left = journal.len - journal.first;
    while left > 0 {
        let block = read(journal, disk, at).await?;
        let Some(taken) = scan.take(at, &block).filter(|&taken| taken <= left) else {
            break;
        };
        left -= taken;
        for _ in 0..taken {
            at = journal.next(at);
        }
    }
    Ok(scan.finish())
}

impl Recovered {
    /// Reads a block's copy from the log.
    pub(crate) async fn read<D: Disk>(
        journal: &Journal,
        disk: &D,
        copy: Copy,
    ) -> Result<Vec<u8>, Error> {
        let mut bytes = read(journal, disk, copy.log).await?;
        let sum = crc32c(crc32c(journal.seed, &copy.sequence.to_be_bytes()), &bytes);
        super::check(
            "journal block",
            copy.log.into(),
            !journal.sums() || sum == copy.checksum,
        )?;
        if copy.flags & TAG_ESCAPED != 0 {
            put_be32(&mut bytes, 0, MAGIC);
        }
        Ok(bytes)
    }
}
