//! Blocks, and the writes that a loss of power takes.

use std::collections::BTreeMap;

/// A disk's content.
#[derive(Debug, Clone)]
pub struct Medium {
    durable: Vec<u8>,
    /// Blocks written since the last flush.
    cached: BTreeMap<u64, Vec<u8>>,
    block: usize,
}

impl Medium {
    pub(crate) fn new(blocks: u64, block: usize) -> Self {
        let len = usize::try_from(blocks).expect("a small disk") * block;
        Self {
            durable: vec![0; len],
            cached: BTreeMap::new(),
            block,
        }
    }

    fn place(&self, block: u64) -> std::ops::Range<usize> {
        let start = usize::try_from(block).expect("a small disk") * self.block;
        start..start + self.block
    }

    pub(crate) fn read(&self, first: u64, into: &mut [u8]) {
        for (block, into) in (first..).zip(into.chunks_mut(self.block)) {
            match self.cached.get(&block) {
                Some(bytes) => into.copy_from_slice(bytes),
                None => into.copy_from_slice(&self.durable[self.place(block)]),
            }
        }
    }

    pub(crate) fn write(&mut self, first: u64, bytes: &[u8], durable: bool) {
        for (block, bytes) in (first..).zip(bytes.chunks(self.block)) {
            if durable {
                let place = self.place(block);
                self.durable[place].copy_from_slice(bytes);
                self.cached.remove(&block);
            } else {
                self.cached.insert(block, bytes.to_vec());
            }
        }
    }

    pub(crate) fn flush(&mut self) {
        for (block, bytes) in std::mem::take(&mut self.cached) {
            let place = self.place(block);
            self.durable[place].copy_from_slice(&bytes);
        }
    }

    /// Returns the content after a loss of power.
    #[must_use]
    pub fn after_power_loss(&self) -> &[u8] {
        &self.durable
    }
}
