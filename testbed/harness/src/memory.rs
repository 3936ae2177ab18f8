//! A machine's memory: a byte array with a strict allocator.
//!
//! Only what is allocated exists for the card: an access to anything else is an error that is
//! counted, and freed memory is poisoned. So a driver that frees what its card still uses is found
//! out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use hal::{BusAddr, DmaBuffer};
use hca_model::DmaError;

/// Bus address of the first byte: beyond 32 bits, so that a truncated address is not allocated.
const BASE: u64 = 0x1_0000_0000;
/// Byte that fills freed memory.
const POISON: u8 = 0xdd;

struct Inner {
    bytes: Vec<u8>,
    /// Allocated pieces: length by offset.
    pieces: BTreeMap<usize, usize>,
    violations: u64,
}

/// A machine's memory.
pub(crate) struct Memory {
    inner: Mutex<Inner>,
    on_store: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Memory {
    pub(crate) fn new(len: usize) -> Self {
        Self {
            inner: Mutex::new(Inner {
                bytes: vec![0; len],
                pieces: BTreeMap::new(),
                violations: 0,
            }),
            on_store: OnceLock::new(),
        }
    }

    /// Calls `action` after each store of the processor, the first action given counting: what the
    /// card does between two stores.
    pub(crate) fn on_store(&self, action: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_store.set(Box::new(action));
    }

    fn stored(&self) {
        if let Some(action) = self.on_store.get() {
            action();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of accesses of the card to memory that was not allocated.
    pub(crate) fn violations(&self) -> u64 {
        self.lock().violations
    }

    /// Bytes allocated.
    pub(crate) fn allocated(&self) -> usize {
        self.lock().pieces.values().sum()
    }

    pub(crate) fn alloc(self: &Arc<Self>, len: usize, align: usize) -> Option<Buffer> {
        let mut inner = self.lock();
        let len = len.max(1);
        let mut at = 0_usize;
        for (&piece, &piece_len) in &inner.pieces {
            if at.next_multiple_of(align) + len <= piece {
                break;
            }
            at = piece + piece_len;
        }
        let at = at.next_multiple_of(align);
        if at + len > inner.bytes.len() {
            return None;
        }
        inner.pieces.insert(at, len);
        inner.bytes[at..at + len].fill(0);
        Some(Buffer {
            memory: Arc::clone(self),
            at,
            len,
        })
    }

    fn free(&self, at: usize) {
        let mut inner = self.lock();
        if let Some(len) = inner.pieces.remove(&at) {
            inner.bytes[at..at + len].fill(POISON);
        }
    }

    /// Accesses memory for the card: the range must lie in one allocated piece.
    pub(crate) fn dma<T>(
        &self,
        addr: u64,
        len: usize,
        access: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, DmaError> {
        let mut inner = self.lock();
        let range = addr
            .checked_sub(BASE)
            .and_then(|at| usize::try_from(at).ok())
            .and_then(|at| Some(at..at.checked_add(len)?));
        let inside = range.filter(|range| {
            let piece = inner.pieces.range(..=range.start).next_back();
            piece.is_some_and(|(&at, &len)| range.end <= at + len)
        });
        match inside {
            Some(range) => Ok(access(&mut inner.bytes[range])),
            None => {
                inner.violations += 1;
                log::warn!(
                    "the card reaches for {len} bytes at {addr:#x}, which are not allocated"
                );
                Err(DmaError { addr, len })
            }
        }
    }
}

/// A piece of a machine's memory.
pub struct Buffer {
    memory: Arc<Memory>,
    at: usize,
    len: usize,
}

impl Buffer {
    fn with<T>(&self, offset: usize, len: usize, access: impl FnOnce(&mut [u8]) -> T) -> T {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes at {offset:#x} leave a buffer of {:#x}",
            self.len
        );
        let at = self.at + offset;
        access(&mut self.memory.lock().bytes[at..at + len])
    }

    fn word<const N: usize>(&self, offset: usize) -> [u8; N] {
        assert!(
            offset.is_multiple_of(N),
            "offset {offset:#x} is misaligned for {N} bytes"
        );
        let mut word = [0; N];
        self.with(offset, N, |bytes| word.copy_from_slice(bytes));
        word
    }

    fn set_word<const N: usize>(&self, offset: usize, word: [u8; N]) {
        assert!(
            offset.is_multiple_of(N),
            "offset {offset:#x} is misaligned for {N} bytes"
        );
        self.with(offset, N, |bytes| bytes.copy_from_slice(&word));
        self.memory.stored();
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.memory.free(self.at);
    }
}

impl DmaBuffer for Buffer {
    fn bus_addr(&self) -> BusAddr {
        BusAddr(BASE + self.at as u64)
    }
    fn len(&self) -> usize {
        self.len
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        self.with(offset, into.len(), |bytes| into.copy_from_slice(bytes));
    }
    fn write(&self, offset: usize, from: &[u8]) {
        self.with(offset, from.len(), |bytes| bytes.copy_from_slice(from));
        self.memory.stored();
    }
    fn fill(&self, offset: usize, len: usize, value: u8) {
        self.with(offset, len, |bytes| bytes.fill(value));
        self.memory.stored();
    }
    fn read_u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.word(offset))
    }
    fn write_u32(&self, offset: usize, value: u32) {
        self.set_word(offset, value.to_le_bytes());
    }
    fn read_u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.word(offset))
    }
    fn write_u64(&self, offset: usize, value: u64) {
        self.set_word(offset, value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_card_reaches_only_what_is_allocated() {
        let memory = Arc::new(Memory::new(1 << 16));
        let buffer = memory.alloc(4096, 4096).unwrap();
        let addr = buffer.bus_addr().0;
        memory.dma(addr + 4092, 4, |bytes| bytes.fill(7)).unwrap();
        assert_eq!(buffer.read_u32(4092), 0x0707_0707);
        assert!(memory.dma(addr + 4092, 8, |_| ()).is_err());
        drop(buffer);
        assert!(memory.dma(addr, 4, |_| ()).is_err());
        assert_eq!(memory.violations(), 2);
    }

    #[test]
    fn freed_memory_is_used_again_zeroed() {
        let memory = Arc::new(Memory::new(8192));
        let first = memory.alloc(4096, 4096).unwrap();
        let second = memory.alloc(4096, 4096).unwrap();
        assert!(memory.alloc(1, 1).is_none());
        first.fill(0, 4096, 9);
        drop(first);
        let third = memory.alloc(4096, 4096).unwrap();
        assert_eq!(third.read_u64(0), 0);
        assert_ne!(third.bus_addr(), second.bus_addr());
    }
}
