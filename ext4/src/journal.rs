//! The journal (jbd2): its layout on the disk, replay, and the log that commits append to.
//!
//! Layout after Linux `Documentation/filesystems/ext4/journal.rst` and `include/linux/jbd2.h`; all
//! numbers are big-endian. A transaction is written as
//!
//! ```text
//!  [revoke block]*  ([descriptor block] [block]+)*  -- flush --  [commit block]  -- flush --
//! ```
//!
//! The first flush also makes durable the file data that the transaction's metadata points at
//! (ordered data).

mod recover;
mod write;

pub(crate) use recover::{Recovered, scan};
pub(crate) use write::Encoded;

use alloc::vec::Vec;

use crate::Error;
use crate::bytes::{be32_at, put_be32};
use crate::crc::crc32c;
use crate::superblock::Geometry;

/// `h_magic`, and the types of blocks that begin with it.
const MAGIC: u32 = 0xc03b_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK: u32 = 4;
const REVOKE: u32 = 5;

/// `JBD2_FEATURE_INCOMPAT_*`.
const FEATURE_REVOKE: u32 = 0x1;
const FEATURE_64BIT: u32 = 0x2;
const FEATURE_CSUM_V3: u32 = 0x10;

/// `JBD2_FLAG_*` of tags.
const TAG_ESCAPED: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_LAST: u32 = 8;

/// Offsets in the journal's superblock.
const SB_MAX_LEN: usize = 0x10;
const SB_FIRST: usize = 0x14;
const SB_SEQUENCE: usize = 0x18;
const SB_START: usize = 0x1c;
const SB_INCOMPAT: usize = 0x28;
const SB_UUID: usize = 0x30;
const SB_CHECKSUM_TYPE: usize = 0x50;
const SB_CHECKSUM: usize = 0xfc;
const SB_SIZE: usize = 1024;

/// `JBD2_CRC32C_CHKSUM`.
const CRC32C: u8 = 4;

/// Smallest journal (`JBD2_MIN_JOURNAL_BLOCKS`).
const MIN_BLOCKS: u32 = 1024;

/// Largest transaction, however large the journal: bounds the memory of a commit.
const MAX_TRANSACTION: u32 = 2048;

/// Most blocks of the log in use: until a checkpoint their copies are kept in memory.
const MAX_USED: u32 = 8192;

/// A run of the journal's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) logical: u32,
    pub(crate) len: u32,
    pub(crate) physical: u64,
}

/// The journal's place and the state of its superblock.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    block_size: usize,
    runs: Vec<Run>,
    /// The superblock as it was read, with our changes.
    raw: Vec<u8>,
    /// First block of the log, and the block behind its last.
    first: u32,
    len: u32,
    seed: u32,
    /// Place and number of the next transaction.
    head: u32,
    sequence: u32,
    /// Blocks of the log that checkpoints have not freed.
    used: u32,
}

fn check(what: &'static str, at: u64, good: bool) -> Result<(), Error> {
    if good {
        Ok(())
    } else {
        Err(Error::Corrupt { what, at })
    }
}

impl Journal {
    /// Checks the journal's superblock.
    pub(crate) fn parse(raw: &[u8], block_size: usize, runs: Vec<Run>) -> Result<Self, Error> {
        let raw = raw[..SB_SIZE].to_vec();
        let kind = (be32_at(&raw, 0), be32_at(&raw, 4));
        check(
            "journal superblock",
            kind.1.into(),
            kind == (MAGIC, SUPERBLOCK),
        )?;
        let known = FEATURE_REVOKE | FEATURE_64BIT | FEATURE_CSUM_V3;
        let bits = be32_at(&raw, SB_INCOMPAT) & !known;
        if bits != 0 {
            return Err(Error::Features {
                set: "journal s_feature_incompat",
                bits,
            });
        }
        let (first, len) = (be32_at(&raw, SB_FIRST), be32_at(&raw, SB_MAX_LEN));
        let size = be32_at(&raw, 0xc);
        check(
            "journal s_blocksize",
            size.into(),
            u64::from(size) == block_size as u64,
        )?;
        let blocks = runs.last().map_or(0, |run| run.logical + run.len);
        check(
            "journal s_maxlen",
            len.into(),
            len >= MIN_BLOCKS && len <= blocks,
        )?;
        check(
            "journal s_first",
            first.into(),
            first >= 1 && first < len / 2,
        )?;
        let journal = Self {
            block_size,
            runs,
            seed: crc32c(!0, &raw[SB_UUID..SB_UUID + 16]),
            head: first,
            sequence: be32_at(&raw, SB_SEQUENCE),
            used: 0,
            first,
            len,
            raw,
        };
        let sealed = be32_at(&journal.raw, SB_CHECKSUM);
        check(
            "journal s_checksum",
            sealed.into(),
            !journal.sums() || sealed == journal.checksum(),
        )?;
        Ok(journal)
    }

    fn incompat(&self) -> u32 {
        be32_at(&self.raw, SB_INCOMPAT)
    }

    /// Returns whether blocks of the log carry checksums.
    fn sums(&self) -> bool {
        self.incompat() & FEATURE_CSUM_V3 != 0
    }

    /// Returns whether block numbers have 64 bits.
    fn wide(&self) -> bool {
        self.incompat() & FEATURE_64BIT != 0
    }

    fn checksum(&self) -> u32 {
        let mut copy = self.raw.clone();
        put_be32(&mut copy, SB_CHECKSUM, 0);
        crc32c(!0, &copy)
    }

    /// Returns where the log begins, and with which transaction; `None` if it is empty.
    pub(crate) fn start(&self) -> Option<(u32, u32)> {
        let start = be32_at(&self.raw, SB_START);
        (start != 0).then_some((start, be32_at(&self.raw, SB_SEQUENCE)))
    }

    /// Returns the block on the disk of one of the journal's.
    pub(crate) fn place(&self, block: u32) -> Result<u64, Error> {
        let behind = self.runs.partition_point(|run| run.logical <= block);
        let run = behind.checked_sub(1).map(|at| self.runs[at]);
        let run = run.filter(|run| block - run.logical < run.len);
        match run {
            Some(run) => Ok(run.physical + u64::from(block - run.logical)),
            None => Err(Error::Corrupt {
                what: "journal block",
                at: block.into(),
            }),
        }
    }

    /// Returns the block of the log behind one, around its end.
    fn next(&self, block: u32) -> u32 {
        if block + 1 >= self.len {
            self.first
        } else {
            block + 1
        }
    }

    /// Returns how many blocks a transaction may change.
    pub(crate) fn max_transaction(&self) -> usize {
        ((self.len - self.first) / 4).min(MAX_TRANSACTION) as usize
    }

    /// Returns whether a transaction of so many blocks, with what comes with it, fits before a
    /// checkpoint.
    pub(crate) fn has_room(&self, blocks: u32) -> bool {
        // The largest transaction is a quarter of either bound.
        self.used + blocks < (self.len - self.first).min(MAX_USED)
    }

    /// Returns the superblock for an empty log that the next commit continues; `features` are
    /// switched on as the file system's tell.
    pub(crate) fn restart(&mut self, geometry: &Geometry) -> Vec<u8> {
        let mut features = self.incompat() | FEATURE_REVOKE;
        if geometry.wide {
            features |= FEATURE_64BIT;
        }
        if geometry.metadata_csum {
            features |= FEATURE_CSUM_V3;
            self.raw[SB_CHECKSUM_TYPE] = CRC32C;
        }
        put_be32(&mut self.raw, SB_INCOMPAT, features);
        self.used = 0;
        let head = self.head;
        self.superblock(head)
    }

    /// Returns the superblock for a log that need not be replayed.
    pub(crate) fn stop(&mut self) -> Vec<u8> {
        self.used = 0;
        self.superblock(0)
    }

    fn superblock(&mut self, start: u32) -> Vec<u8> {
        let sequence = self.sequence;
        put_be32(&mut self.raw, SB_START, start);
        put_be32(&mut self.raw, SB_SEQUENCE, sequence);
        if self.sums() {
            let sum = self.checksum();
            put_be32(&mut self.raw, SB_CHECKSUM, sum);
        }
        self.raw.clone()
    }

    /// Continues behind what was recovered.
    pub(crate) fn resume(&mut self, sequence: u32) {
        self.sequence = sequence;
        self.head = self.first;
    }
}
