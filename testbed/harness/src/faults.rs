//! A platform that fails on purpose: wrapped around another one, it drops or spoils commands, loses
//! interrupts, or spoils what the driver reads of what the card wrote. Everything follows from a
//! seed and from what a test sets.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hal::{
    BusAddr, ConfigSpace, DmaBuffer, Duration, Error, Instant, InterruptVector, Platform, Registers,
};

/// The command register's last dword in BAR 0 (Linux `cmd.c`: `MLX4_HCR_BASE` +
/// `HCR_STATUS_OFFSET`).
const COMMAND_DOORBELL: usize = 0x8_0680 + 0x18;
/// Its opcode field, as a little-endian store of the big-endian register has it.
const OPCODE_MASK: u32 = 0xfff_u32.swap_bytes();
/// An opcode that no firmware knows.
const UNKNOWN_OPCODE: u32 = 0xfee_u32.swap_bytes();
const NEVER: u32 = u32::MAX;

/// Faults that happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fired {
    /// Commands that the card never saw.
    pub dropped: u32,
    /// Commands that it did not know.
    pub refused: u32,
    /// Interrupts that were lost.
    pub lost_interrupts: u32,
    /// Reads of memory whose bytes were spoiled.
    pub spoiled: u32,
    /// Words read of memory that were spoiled.
    pub spoiled_words: u32,
    /// Reads of registers of a card that was gone.
    pub gone: u32,
}

/// Faults to inject, and counts of what has happened so far. Commands count from 0.
pub struct Faults {
    commands: AtomicU32,
    drop_command: AtomicU32,
    refuse_command: AtomicU32,
    gone: AtomicBool,
    lost_interrupts: AtomicU32,
    spoil_one_in: AtomicU32,
    spoil_words_one_in: AtomicU32,
    random: AtomicU64,
    fired: Mutex<Fired>,
    /// Opcodes in the order in which they were sent.
    opcodes: Mutex<Vec<u16>>,
}

impl Faults {
    /// Returns a platform's faults, none at first; random ones follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            commands: AtomicU32::new(0),
            drop_command: AtomicU32::new(NEVER),
            refuse_command: AtomicU32::new(NEVER),
            gone: AtomicBool::new(false),
            lost_interrupts: AtomicU32::new(0),
            spoil_one_in: AtomicU32::new(0),
            spoil_words_one_in: AtomicU32::new(0),
            random: AtomicU64::new(seed | 1),
            fired: Mutex::default(),
            opcodes: Mutex::default(),
        })
    }

    /// Returns how often each fault has happened.
    #[must_use]
    pub fn fired(&self) -> Fired {
        *self.fired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, fault: impl FnOnce(&mut Fired) -> &mut u32) {
        *fault(&mut self.fired.lock().unwrap_or_else(PoisonError::into_inner)) += 1;
    }

    /// Returns whether the card is gone, for a read of its registers.
    fn gone(&self) -> bool {
        let gone = self.gone.load(Ordering::Relaxed);
        if gone {
            self.count(|fired| &mut fired.gone);
        }
        gone
    }

    /// Returns the opcodes of the commands sent so far.
    #[must_use]
    pub fn opcodes(&self) -> Vec<u16> {
        self.opcodes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Drops command number `index`: the card never sees it.
    pub fn drop_command(&self, index: u32) {
        self.drop_command.store(index, Ordering::Relaxed);
    }

    /// Replaces the opcode of command number `index` by one that the firmware does not know.
    pub fn refuse_command(&self, index: u32) {
        self.refuse_command.store(index, Ordering::Relaxed);
    }

    /// Sets whether the card is gone: registers read as all ones.
    pub fn set_gone(&self, gone: bool) {
        self.gone.store(gone, Ordering::Relaxed);
    }

    /// Loses the next `count` interrupts.
    pub fn lose_interrupts(&self, count: u32) {
        self.lost_interrupts.store(count, Ordering::Relaxed);
    }

    /// Spoils one in `n` reads of memory that the card may have written; 0 for none.
    pub fn spoil_one_in(&self, n: u32) {
        self.spoil_one_in.store(n, Ordering::Relaxed);
    }

    /// Spoils one in `n` words, of 32 or 64 bits, read from memory that the card may have written;
    /// 0 for none.
    pub fn spoil_words_one_in(&self, n: u32) {
        self.spoil_words_one_in.store(n, Ordering::Relaxed);
    }

    /// Draws the next number of a xorshift generator.
    fn random(&self) -> u64 {
        let mut x = self.random.load(Ordering::Relaxed);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.store(x, Ordering::Relaxed);
        x
    }

    fn spoil(&self, bytes: &mut [u8]) {
        if self.spoil_by(&self.spoil_one_in, bytes) {
            self.count(|fired| &mut fired.spoiled);
        }
    }

    fn spoil_word(&self, word: u32) -> u32 {
        let mut bytes = word.to_le_bytes();
        if self.spoil_by(&self.spoil_words_one_in, &mut bytes) {
            self.count(|fired| &mut fired.spoiled_words);
        }
        u32::from_le_bytes(bytes)
    }

    fn spoil_long(&self, word: u64) -> u64 {
        let mut bytes = word.to_le_bytes();
        if self.spoil_by(&self.spoil_words_one_in, &mut bytes) {
            self.count(|fired| &mut fired.spoiled_words);
        }
        u64::from_le_bytes(bytes)
    }

    fn spoil_by(&self, one_in: &AtomicU32, bytes: &mut [u8]) -> bool {
        let n = one_in.load(Ordering::Relaxed);
        if n == 0 || bytes.is_empty() || !self.random().is_multiple_of(u64::from(n)) {
            return false;
        }
        for _ in 0..1 + self.random() % 4 {
            let [at, value, ..] = self.random().to_le_bytes();
            let at = usize::from(at) % bytes.len();
            bytes[at] = value;
        }
        true
    }

    /// Returns a command as it arrives at the card; `None` if it is dropped.
    fn command(&self, value: u32) -> Option<u32> {
        let index = self.commands.fetch_add(1, Ordering::Relaxed);
        let opcode = u16::try_from((value & OPCODE_MASK).swap_bytes()).unwrap_or(0);
        self.opcodes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(opcode);
        if index == self.drop_command.load(Ordering::Relaxed) {
            self.count(|fired| &mut fired.dropped);
            return None;
        }
        if index == self.refuse_command.load(Ordering::Relaxed) {
            self.count(|fired| &mut fired.refused);
            return Some(value & !OPCODE_MASK | UNKNOWN_OPCODE);
        }
        Some(value)
    }
}

/// A platform with faults.
#[derive(Clone)]
pub struct Faulty<P> {
    inner: P,
    faults: Arc<Faults>,
}

impl<P: Platform> Faulty<P> {
    /// Wraps a platform.
    pub fn new(inner: P, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }
}

/// A BAR with faults.
pub struct FaultyBar<B> {
    inner: B,
    index: u8,
    faults: Arc<Faults>,
}

impl<B: Registers> Registers for FaultyBar<B> {
    fn len(&self) -> usize {
        self.inner.len()
    }
    fn read_u32(&self, offset: usize) -> u32 {
        if self.faults.gone() {
            return u32::MAX;
        }
        self.inner.read_u32(offset)
    }
    fn write_u32(&self, offset: usize, value: u32) {
        if self.faults.gone.load(Ordering::Relaxed) {
            return;
        }
        if self.index == 0 && offset == COMMAND_DOORBELL {
            if let Some(value) = self.faults.command(value) {
                self.inner.write_u32(offset, value);
            }
            return;
        }
        self.inner.write_u32(offset, value);
    }
    fn write_u64(&self, offset: usize, value: u64) {
        if !self.faults.gone.load(Ordering::Relaxed) {
            self.inner.write_u64(offset, value);
        }
    }
}

/// Config space with faults.
pub struct FaultyConfig<C> {
    inner: C,
    faults: Arc<Faults>,
}

impl<C: ConfigSpace> ConfigSpace for FaultyConfig<C> {
    fn read_u32(&self, offset: u16) -> u32 {
        if self.faults.gone() {
            return u32::MAX;
        }
        self.inner.read_u32(offset)
    }
    fn write_u32(&self, offset: u16, value: u32) {
        self.inner.write_u32(offset, value);
    }
}

/// Memory with faults: byte reads may be spoiled.
pub struct FaultyBuffer<B> {
    inner: B,
    faults: Arc<Faults>,
}

impl<B: DmaBuffer> DmaBuffer for FaultyBuffer<B> {
    fn bus_addr(&self) -> BusAddr {
        self.inner.bus_addr()
    }
    fn len(&self) -> usize {
        self.inner.len()
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        self.inner.read(offset, into);
        self.faults.spoil(into);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        self.inner.write(offset, from);
    }
    fn fill(&self, offset: usize, len: usize, value: u8) {
        self.inner.fill(offset, len, value);
    }
    fn read_u32(&self, offset: usize) -> u32 {
        self.faults.spoil_word(self.inner.read_u32(offset))
    }
    fn write_u32(&self, offset: usize, value: u32) {
        self.inner.write_u32(offset, value);
    }
    fn read_u64(&self, offset: usize) -> u64 {
        self.faults.spoil_long(self.inner.read_u64(offset))
    }
    fn write_u64(&self, offset: usize, value: u64) {
        self.inner.write_u64(offset, value);
    }
}

/// An interrupt vector with faults.
pub struct FaultyVector<V> {
    inner: V,
    faults: Arc<Faults>,
}

impl<V: InterruptVector> InterruptVector for FaultyVector<V> {
    async fn wait(&self) {
        loop {
            self.inner.wait().await;
            let lost = &self.faults.lost_interrupts;
            let left = lost.load(Ordering::Relaxed);
            if left == 0 {
                return;
            }
            lost.store(left - 1, Ordering::Relaxed);
            self.faults.count(|fired| &mut fired.lost_interrupts);
        }
    }
}

impl<P: Platform> Platform for Faulty<P> {
    type Bar = FaultyBar<P::Bar>;
    type Config = FaultyConfig<P::Config>;
    type Buffer = FaultyBuffer<P::Buffer>;
    type Vector = FaultyVector<P::Vector>;

    fn map_bar(&self, index: u8) -> Result<Self::Bar, Error> {
        Ok(FaultyBar {
            inner: self.inner.map_bar(index)?,
            index,
            faults: Arc::clone(&self.faults),
        })
    }

    fn config(&self) -> Self::Config {
        FaultyConfig {
            inner: self.inner.config(),
            faults: Arc::clone(&self.faults),
        }
    }

    fn alloc(&self, len: usize, align: usize) -> Result<Self::Buffer, Error> {
        Ok(FaultyBuffer {
            inner: self.inner.alloc(len, align)?,
            faults: Arc::clone(&self.faults),
        })
    }

    fn enable_vectors(
        &self,
        count: u16,
    ) -> Result<impl IntoIterator<Item = Self::Vector> + use<P>, Error> {
        let vectors: Vec<_> = self
            .inner
            .enable_vectors(count)?
            .into_iter()
            .map(|inner| FaultyVector {
                inner,
                faults: Arc::clone(&self.faults),
            })
            .collect();
        Ok(vectors)
    }

    fn now(&self) -> Instant {
        self.inner.now()
    }

    fn sleep(&self, span: Duration) -> impl Future<Output = ()> + Send {
        self.inner.sleep(span)
    }
}
