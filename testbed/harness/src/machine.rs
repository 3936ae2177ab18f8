//! A machine with one card: the hal over the model.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use hal::{ConfigSpace, Duration, Error, Instant, InterruptVector, Platform, Registers};
use hca_model::{DmaError, Host, NodeIndex};

use crate::memory::{Buffer, Memory};

/// A zero sleep lets this much time pass, so that a task that only yields does not stop the clock.
const YIELD: Duration = Duration::from_nanos(100);
const CAPABILITIES: u16 = 0x34;
const CAPABILITY_MSIX: u8 = 0x11;
const MSIX_ENABLE: u32 = 1 << 31;

/// Machine's surroundings: the model that serves its card's registers, and its clock.
pub trait World: Send + Sync {
    /// Returns the time.
    fn now(&self) -> Instant;
    /// Asks for a wakeup at `deadline`.
    fn wake_at(&self, deadline: Instant);
    /// Reads the configuration space of a node's card.
    fn config_read(&self, node: NodeIndex, offset: u16, into: &mut [u8]);
    /// Writes it.
    fn config_write(&self, node: NodeIndex, offset: u16, from: &[u8]);
    /// Reads registers of a node's card.
    fn bar_read(&self, node: NodeIndex, bar: u8, offset: u64, into: &mut [u8]);
    /// Writes them.
    fn bar_write(&self, node: NodeIndex, bar: u8, offset: u64, from: &[u8]);
    /// Takes the machine away from its card.
    fn detach(&self, node: NodeIndex);
}

/// Machine as its card sees it: memory and interrupts.
pub struct Board {
    pub(crate) memory: Arc<Memory>,
    interrupts: Mutex<Vec<Arc<AtomicBool>>>,
}

impl Board {
    /// Creates a board with `memory_len` bytes of memory.
    #[must_use]
    pub fn new(memory_len: usize) -> Self {
        Self {
            memory: Arc::new(Memory::new(memory_len)),
            interrupts: Mutex::default(),
        }
    }

    fn vector(&self, index: usize) -> Arc<AtomicBool> {
        let mut interrupts = self
            .interrupts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if interrupts.len() <= index {
            interrupts.resize_with(index + 1, Arc::default);
        }
        Arc::clone(&interrupts[index])
    }
}

impl Host for Board {
    fn dma_read(&self, addr: u64, into: &mut [u8]) -> Result<(), DmaError> {
        let len = into.len();
        self.memory
            .dma(addr, len, |bytes| into.copy_from_slice(bytes))
    }

    fn dma_write(&self, addr: u64, from: &[u8]) -> Result<(), DmaError> {
        self.memory
            .dma(addr, from.len(), |bytes| bytes.copy_from_slice(from))
    }

    fn raise(&self, vector: u16) {
        self.vector(usize::from(vector))
            .store(true, Ordering::Release);
    }
}

/// One machine, as its card's driver sees it: of a [`Testbed`](crate::Testbed), or of another
/// [`World`].
#[derive(Clone)]
pub struct Machine {
    world: Arc<dyn World>,
    node: NodeIndex,
    board: Arc<Board>,
}

impl Machine {
    /// Creates the machine with this board, whose card is `node` of `world`.
    #[must_use]
    pub fn new(world: Arc<dyn World>, node: NodeIndex, board: Arc<Board>) -> Self {
        Self { world, node, board }
    }

    /// Returns the card's place in the cluster.
    #[must_use]
    pub fn node(&self) -> NodeIndex {
        self.node
    }

    /// Returns the number of accesses of the card to memory that was not allocated.
    #[must_use]
    pub fn violations(&self) -> u64 {
        self.board.memory.violations()
    }

    /// Bytes of DMA memory allocated.
    #[must_use]
    pub fn allocated(&self) -> usize {
        self.board.memory.allocated()
    }

    /// Ends the machine: its card loses its memory and its link.
    pub fn power_off(&self) {
        self.world.detach(self.node);
    }
}

/// A mapped BAR.
pub struct Bar {
    machine: Machine,
    index: u8,
    len: usize,
}

impl Bar {
    fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(
            offset + bytes.len() <= self.len,
            "a store at {offset:#x} of BAR {}",
            self.index
        );
        let Machine { world, node, .. } = &self.machine;
        world.bar_write(*node, self.index, offset as u64, bytes);
    }
}

impl Registers for Bar {
    fn len(&self) -> usize {
        self.len
    }

    fn read_u32(&self, offset: usize) -> u32 {
        assert!(
            offset + 4 <= self.len,
            "a load at {offset:#x} of BAR {}",
            self.index
        );
        let mut bytes = [0; 4];
        let Machine { world, node, .. } = &self.machine;
        world.bar_read(*node, self.index, offset as u64, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write_u32(&self, offset: usize, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    fn write_u64(&self, offset: usize, value: u64) {
        self.write(offset, &value.to_le_bytes());
    }
}

/// The card's configuration space.
pub struct CardConfigSpace {
    machine: Machine,
}

impl ConfigSpace for CardConfigSpace {
    fn read_u32(&self, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        let Machine { world, node, .. } = &self.machine;
        world.config_read(*node, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write_u32(&self, offset: u16, value: u32) {
        let Machine { world, node, .. } = &self.machine;
        world.config_write(*node, offset, &value.to_le_bytes());
    }
}

/// An interrupt vector.
pub struct Vector {
    fired: Arc<AtomicBool>,
}

impl InterruptVector for Vector {
    async fn wait(&self) {
        // The executor polls every task after whatever happened: no waker is needed.
        std::future::poll_fn(|_| {
            if self.fired.swap(false, Ordering::AcqRel) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

impl Platform for Machine {
    type Bar = Bar;
    type Config = CardConfigSpace;
    type Buffer = Buffer;
    type Vector = Vector;

    fn map_bar(&self, index: u8) -> Result<Bar, Error> {
        let config = self.config();
        let offset = 0x10 + 4 * u16::from(index);
        let before = config.read_u32(offset);
        // A BAR says its size by the address bits that can't be set.
        config.write_u32(offset, u32::MAX);
        let mask = config.read_u32(offset) & !0xf;
        config.write_u32(offset, before);
        let is_io = before & 1 == 1;
        if index > 5 || mask == 0 || is_io {
            return Err(Error::NoBar { index });
        }
        Ok(Bar {
            machine: self.clone(),
            index,
            len: mask.wrapping_neg() as usize,
        })
    }

    fn config(&self) -> CardConfigSpace {
        CardConfigSpace {
            machine: self.clone(),
        }
    }

    fn alloc(&self, len: usize, align: usize) -> Result<Buffer, Error> {
        let buffer = self.board.memory.alloc(len, align);
        buffer.ok_or(Error::NoDmaMemory { len })
    }

    fn enable_vectors(
        &self,
        count: u16,
    ) -> Result<impl IntoIterator<Item = Vector> + use<>, Error> {
        let config = self.config();
        let none = Error::TooFewVectors {
            wanted: count,
            have: 0,
        };
        let mut at = u16::from(config.read_u32(CAPABILITIES).to_le_bytes()[0]);
        while config.read_u32(at).to_le_bytes()[0] != CAPABILITY_MSIX {
            at = u16::from(config.read_u32(at).to_le_bytes()[1]);
            if at == 0 {
                return Err(none);
            }
        }
        let control = config.read_u32(at);
        let have = u16::try_from(control >> 16 & 0x7ff).unwrap_or(0) + 1;
        if have < count {
            return Err(Error::TooFewVectors {
                wanted: count,
                have,
            });
        }
        config.write_u32(at, control | MSIX_ENABLE);
        let vectors: Vec<_> = (0..usize::from(count))
            .map(|index| Vector {
                fired: self.board.vector(index),
            })
            .collect();
        Ok(vectors)
    }

    fn now(&self) -> Instant {
        self.world.now()
    }

    async fn sleep(&self, span: Duration) {
        let deadline = self.world.now() + span.max(YIELD);
        std::future::poll_fn(|_| {
            if self.world.now() >= deadline {
                return Poll::Ready(());
            }
            self.world.wake_at(deadline);
            Poll::Pending
        })
        .await;
    }
}
