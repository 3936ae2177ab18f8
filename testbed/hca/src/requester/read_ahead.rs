//! Reads of the send queue ahead of its doorbell.
//!
//! The device reads up to 2 KB of a send queue in advance and later uses what it has read (Linux
//! `hw/mlx4/qp.c`, the comments of `set_kernel_sq_size`, `stamp_send_wqe` and `set_data_seg`). It
//! tells a chunk of 64 bytes that is not written yet by its first dword only:
//!
//! ```text
//!   first chunk of a slot     the owner bit is not that of this pass through the ring
//!   every other chunk         0xffff_ffff, the stamp
//! ```
//!
//! So software that writes another first dword before the rest of the chunk, or leaves an old one,
//! has the device send stale bytes.

use std::collections::BTreeMap;

use mlx4_hw::wqe::{BASIC_BLOCK_LEN, ControlOwner, SEND_HEADROOM_LEN, STAMP};
use zerocopy::FromBytes;

use crate::core::Core;
use crate::memory::{Memory, RingMemory};
use crate::qp::QueuePair;

type Chunk = [u8; BASIC_BLOCK_LEN];

/// The chunks that were read ahead and count as written, by their offset in the ring.
#[derive(Default)]
pub(super) struct ReadAhead {
    chunks: BTreeMap<u64, Chunk>,
}

impl ReadAhead {
    /// Takes the chunk at an offset out.
    pub(super) fn take(&mut self, at: u64) -> Option<Chunk> {
        self.chunks.remove(&at)
    }
}

/// A part of a send ring: the chunks from `start` on for `len` bytes, which do not wrap.
#[derive(Clone, Copy)]
struct RingSpan {
    start: u64,
    len: usize,
    stride: u64,
    /// The owner bit of this pass.
    pass: bool,
}

impl RingSpan {
    /// Returns whether the chunk at `at` counts as written, by its first dword.
    fn is_written(&self, at: u64, chunk: &[u8]) -> bool {
        let Ok((owner, _)) = ControlOwner::read_from_prefix(chunk) else {
            return false;
        };
        if at.is_multiple_of(self.stride) {
            owner.pass() == self.pass
        } else {
            !chunk.starts_with(&STAMP.to_be_bytes())
        }
    }

    fn chunks<'a>(&self, bytes: &'a [u8]) -> impl Iterator<Item = (u64, &'a [u8])> {
        (self.start..)
            .step_by(BASIC_BLOCK_LEN)
            .zip(bytes.chunks_exact(BASIC_BLOCK_LEN))
    }

    /// Reads the chunks that count as written. The first dwords are read before the rest: a
    /// processor may write meanwhile, and a chunk as the device reads it is of one moment.
    fn read(&self, memory: &Memory, ring: RingMemory) -> Vec<(u64, Chunk)> {
        let (mut first, mut whole) = (vec![0; self.len], vec![0; self.len]);
        let read = memory
            .read_ahead(ring, self.start, &mut first)
            .and_then(|()| memory.read_ahead(ring, self.start, &mut whole));
        if read.is_err() {
            return Vec::new();
        }
        self.chunks(&first)
            .zip(self.chunks(&whole))
            .filter(|((at, first), (_, whole))| {
                self.is_written(*at, first) && self.is_written(*at, whole)
            })
            .filter_map(|(_, (at, whole))| Some((at, whole.try_into().ok()?)))
            .collect()
    }
}

impl QueuePair {
    /// Reads what follows the next send. Chunks that were read before and count as written stay as
    /// they were read.
    pub(crate) fn read_ahead(&mut self, core: &Core) {
        let size = self.context.send_queue;
        if !self.may_read_ahead() {
            return;
        }
        let stride = 1_u64 << size.log_stride();
        let ring_len = stride << size.log_slots();
        let mut left = u64::from(SEND_HEADROOM_LEN).min(ring_len - stride);
        let mut slot = u64::from(self.requester.slot);
        while left > 0 {
            let start = slot * stride % ring_len;
            let len = left.min(ring_len - start);
            let span = RingSpan {
                start,
                len: usize::try_from(len).unwrap_or(0),
                stride,
                pass: slot >> size.log_slots() & 1 == 1,
            };
            for (at, chunk) in span.read(&core.memory, self.send_ring()) {
                self.requester.ahead.chunks.entry(at).or_insert(chunk);
            }
            left -= len;
            slot += len / stride;
        }
    }
}
