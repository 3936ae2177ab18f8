//! A disk in memory with a write cache that loses and reorders what was not flushed.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use ext4::{Disk, DiskError};

use super::Rng;

/// Writes of more than this tear when the power goes.
const ATOMIC: usize = 4096;

/// Flushes that the disk reports done without doing them. The crash checker must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Honesty {
    Honest,
    /// No flush does anything.
    IgnoresFlushes,
    /// A flush directly before the write of a commit block does nothing, and the power goes soon
    /// after one of them.
    IgnoresFlushBeforeCommit,
    /// Revoke blocks are written empty.
    ForgetsRevokes,
}

/// An image and what was changed of it, so that many disks share one image.
#[derive(Debug, Clone)]
struct Layered {
    base: Arc<Vec<u8>>,
    changed: HashMap<usize, [u8; UNIT]>,
}

/// Bytes that are changed at a time.
const UNIT: usize = 1024;

impl Layered {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        for (number, unit) in bytes.as_chunks::<UNIT>().0.iter().enumerate() {
            self.changed.insert(at / UNIT + number, *unit);
        }
    }

    fn read(&self, at: usize, into: &mut [u8]) {
        for (number, unit) in into.chunks_mut(UNIT).enumerate() {
            let block = at / UNIT + number;
            match self.changed.get(&block) {
                Some(bytes) => unit.copy_from_slice(bytes),
                None => unit.copy_from_slice(&self.base[block * UNIT..(block + 1) * UNIT]),
            }
        }
    }

    fn image(&self) -> Vec<u8> {
        let mut image = self.base.to_vec();
        for (block, bytes) in &self.changed {
            image[block * UNIT..(block + 1) * UNIT].copy_from_slice(bytes);
        }
        image
    }
}

#[derive(Debug)]
struct Inner {
    /// Bytes that survive a loss of power.
    durable: Layered,
    /// Bytes that reads return.
    current: Layered,
    pending: Vec<(usize, Vec<u8>)>,
    /// Writes and flushes until the power goes.
    left: u64,
    dead: bool,
    honesty: Honesty,
    held_back: Vec<(usize, Vec<u8>)>,
    /// Percentage of reads that fail.
    failing: u64,
    rng: Rng,
    pub(crate) counts: Counts,
}

/// Requests of each kind.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
}

/// A handle of the disk.
#[derive(Debug, Clone)]
pub(crate) struct MemDisk(Arc<Mutex<Inner>>);

fn find(bytes: &[u8], kind: u32) -> bool {
    bytes.len() >= 12 && bytes[..4] == [0xc0, 0x3b, 0x39, 0x98] && bytes[4..8] == kind.to_be_bytes()
}

impl MemDisk {
    pub(crate) fn new(image: impl Into<Arc<Vec<u8>>>, seed: u64) -> Self {
        let image = Layered {
            base: image.into(),
            changed: HashMap::new(),
        };
        Self(Arc::new(Mutex::new(Inner {
            durable: image.clone(),
            current: image,
            pending: Vec::new(),
            left: u64::MAX,
            dead: false,
            honesty: Honesty::Honest,
            held_back: Vec::new(),
            failing: 0,
            rng: Rng(seed),
            counts: Counts::default(),
        })))
    }

    /// Cuts the power at the write or flush after `requests` more.
    pub(crate) fn kill_after(&self, requests: u64) {
        self.0.lock().unwrap().left = requests;
    }

    pub(crate) fn set_honesty(&self, honesty: Honesty) {
        self.0.lock().unwrap().honesty = honesty;
    }

    /// Lets a percentage of reads fail.
    pub(crate) fn fail_reads(&self, percent: u64) {
        self.0.lock().unwrap().failing = percent;
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.0.lock().unwrap().dead
    }

    pub(crate) fn counts(&self) -> Counts {
        self.0.lock().unwrap().counts
    }

    /// Returns what reads see.
    pub(crate) fn image(&self) -> Vec<u8> {
        self.0.lock().unwrap().current.image()
    }

    /// Returns what is left after the power went: of what was not flushed any part, in any order.
    pub(crate) fn after_power_loss(&self) -> Vec<u8> {
        let mut inner = self.0.lock().unwrap();
        let inner = &mut *inner;
        let mut left = inner.durable.clone();
        let mut pieces: Vec<(usize, Vec<u8>)> = Vec::new();
        for (at, bytes) in inner.held_back.drain(..).chain(inner.pending.drain(..)) {
            let first = ATOMIC - at % ATOMIC;
            let (head, rest) = bytes.split_at(first.min(bytes.len()));
            pieces.push((at, head.to_vec()));
            for (number, part) in rest.chunks(ATOMIC).enumerate() {
                pieces.push((at + first + number * ATOMIC, part.to_vec()));
            }
        }
        for last in (1..pieces.len()).rev() {
            let other = inner.rng.index(last + 1);
            pieces.swap(last, other);
        }
        // From nothing to all, evenly.
        let kept = inner.rng.below(101);
        for (at, bytes) in pieces {
            if inner.rng.chance(kept) {
                left.write(at, &bytes);
            }
        }
        left.image()
    }

    /// Lets other tasks run now and then, as a disk that takes its time does.
    async fn pause(&self) {
        let mut turns = self.0.lock().unwrap().rng.below(3);
        poll_fn(move |context| {
            turns = turns.saturating_sub(1);
            if turns == 0 {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

fn offset_of(offset: u64, len: usize, end: usize) -> Result<usize, DiskError> {
    assert!(
        offset.is_multiple_of(1024) && len.is_multiple_of(1024),
        "requests are aligned"
    );
    let at = usize::try_from(offset)
        .ok()
        .filter(|at| at.checked_add(len).is_some_and(|last| last <= end));
    at.ok_or(DiskError { offset })
}

impl Disk for MemDisk {
    async fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        self.pause().await;
        let mut inner = self.0.lock().unwrap();
        inner.counts.reads += 1;
        let at = offset_of(offset, into.len(), inner.current.base.len())?;
        let failing = inner.failing;
        if inner.dead || inner.rng.chance(failing) {
            return Err(DiskError { offset });
        }
        inner.current.read(at, into);
        Ok(())
    }

    async fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.pause().await;
        let mut inner = self.0.lock().unwrap();
        inner.counts.writes += 1;
        let at = offset_of(offset, bytes.len(), inner.current.base.len())?;
        if inner.left == 0 {
            inner.dead = true;
        }
        if inner.dead {
            return Err(DiskError { offset });
        }
        inner.left -= 1;
        if !find(bytes, 2) {
            // What a flush held back was not in front of a commit block after all.
            let held = std::mem::take(&mut inner.held_back);
            for (at, bytes) in held {
                inner.durable.write(at, &bytes);
            }
        }
        let mut bytes = bytes.to_vec();
        if inner.honesty == Honesty::ForgetsRevokes && find(&bytes, 5) {
            bytes[12..16].copy_from_slice(&16_u32.to_be_bytes());
        }
        inner.current.write(at, &bytes);
        inner.pending.push((at, bytes));
        Ok(())
    }

    async fn flush(&self) -> Result<(), DiskError> {
        // What is written while the flush is under way it does not cover.
        let covered = self.0.lock().unwrap().pending.len();
        self.pause().await;
        let mut inner = self.0.lock().unwrap();
        inner.counts.flushes += 1;
        let unlucky = !inner.held_back.is_empty() && inner.rng.chance(10);
        if inner.left == 0 || unlucky {
            inner.dead = true;
        }
        inner.left = inner.left.saturating_sub(1);
        if inner.dead {
            return Err(DiskError { offset: 0 });
        }
        match inner.honesty {
            Honesty::IgnoresFlushes => {}
            Honesty::IgnoresFlushBeforeCommit if inner.held_back.is_empty() => {
                let covered: Vec<_> = inner.pending.drain(..covered).collect();
                inner.held_back = covered;
            }
            _ => {
                let mut covered: Vec<_> = inner.pending.drain(..covered).collect();
                let mut all = std::mem::take(&mut inner.held_back);
                all.append(&mut covered);
                for (at, bytes) in all {
                    inner.durable.write(at, &bytes);
                }
            }
        }
        Ok(())
    }
}
