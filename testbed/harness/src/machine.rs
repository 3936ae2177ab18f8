//! A machine with one card: the hal over the model.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use hal::{ConfigSpace, Duration, Error, Instant, InterruptVector, Platform, Registers};
use hca_model::{DmaError, Host, NodeIndex};

use crate::bed::World;
use crate::memory::{Buffer, Memory};

/// A zero sleep lets this much time pass, so that a task that only yields does not stop the clock.
const YIELD: Duration = Duration::from_nanos(100);
const CAPABILITIES: u16 = 0x34;
const CAPABILITY_MSIX: u8 = 0x11;
const MSIX_ENABLE: u32 = 1 << 31;

/// What the card reaches of the machine.
pub(crate) struct Board {
    pub(crate) memory: Arc<Memory>,
    interrupts: Mutex<Vec<Arc<AtomicBool>>>,
}

impl Board {
    pub(crate) fn new(memory_len: usize) -> Self {
        Self {
            memory: Arc::new(Memory::new(memory_len)),
            interrupts: Mutex::default(),
        }
    }

    fn vector(&self, index: usize) -> Arc<AtomicBool> {
        let mut interrupts = self.interrupts.lock().unwrap_or_else(PoisonError::into_inner);
        if interrupts.len() <= index {
            interrupts.resize_with(index + 1, Arc::default);
        }
        Arc::clone(&interrupts[index])
    }
}

impl Host for Board {
    fn dma_read(&self, addr: u64, into: &mut [u8]) -> Result<(), DmaError> {
        let len = into.len();
        self.memory.dma(addr, len, |bytes| into.copy_from_slice(bytes))
    }

    fn dma_write(&self, addr: u64, from: &[u8]) -> Result<(), DmaError> {
        self.memory
            .dma(addr, from.len(), |bytes| bytes.copy_from_slice(from))
    }

    fn raise(&self, vector: u16) {
        self.vector(usize::from(vector)).store(true, Ordering::Release);
    }
}

/// One machine of a [`Testbed`](crate::Testbed), as its card's driver sees it.
#[derive(Clone)]
pub struct Machine {
    pub(crate) world: Arc<World>,
    pub(crate) node: NodeIndex,
    pub(crate) board: Arc<Board>,
}

impl Machine {
    /// The card's place in the cluster.
    #[must_use]
    pub fn node(&self) -> NodeIndex {
        self.node
    }

    /// How often the card reached for memory that was not allocated.
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
        let now = self.world.now();
        self.world.cluster().detach(self.node, now);
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
        let world = &self.machine.world;
        let now = world.now();
        world
            .cluster()
            .bar_write(self.machine.node, now, self.index, offset as u64, bytes);
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
        let world = &self.machine.world;
        let now = world.now();
        world
            .cluster()
            .bar_read(self.machine.node, now, self.index, offset as u64, &mut bytes);
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
pub struct Config {
    machine: Machine,
}

impl ConfigSpace for Config {
    fn read_u32(&self, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        let cluster = self.machine.world.cluster();
        cluster.config_read(self.machine.node, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write_u32(&self, offset: u16, value: u32) {
        let world = &self.machine.world;
        let now = world.now();
        world
            .cluster()
            .config_write(self.machine.node, now, offset, &value.to_le_bytes());
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
    type Config = Config;
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

    fn config(&self) -> Config {
        Config {
            machine: self.clone(),
        }
    }

    fn alloc(&self, len: usize, align: usize) -> Result<Buffer, Error> {
        let buffer = self.board.memory.alloc(len, align);
        buffer.ok_or(Error::NoDmaMemory { len })
    }

    fn enable_vectors(&self, count: u16) -> Result<impl IntoIterator<Item = Vector> + use<>, Error> {
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
            return Err(Error::TooFewVectors { wanted: count, have });
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
