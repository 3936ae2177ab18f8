//! One PCI function as a driver sees it: config space, BARs, DMA memory, interrupt vectors and
//! time.

use core::future::Future;

use crate::{DmaBuffer, Duration, Instant};

/// Errors of a platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The function has no memory BAR of this index, or it is smaller than its device class
    /// demands.
    #[error("BAR {index} is missing or not memory")]
    NoBar {
        /// The BAR's index in config space (a 64-bit BAR counts by its first dword).
        index: u8,
    },
    /// No contiguous memory of this size is left.
    #[error("no {len} contiguous bytes for DMA")]
    NoDmaMemory {
        /// The bytes asked for.
        len: usize,
    },
    /// The function has fewer MSI-X vectors than were asked for, or none.
    #[error("{wanted} MSI-X vectors wanted, the function has {have}")]
    TooFewVectors {
        /// The vectors asked for.
        wanted: u16,
        /// The vectors there are.
        have: u16,
    },
}

/// The registers behind one BAR.
///
/// Values are in the CPU's order as a little-endian load or store of that width gives them; a
/// big-endian register is swapped by the driver's layout crate. Accesses to one BAR keep their
/// order. Offsets are the driver's constants: one outside the BAR panics.
pub trait Registers: Send + Sync {
    /// The BAR's size in bytes.
    fn len(&self) -> usize;
    /// Returns whether the BAR has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Loads a 32-bit register. All ones may mean that the device is gone.
    fn read_u32(&self, offset: usize) -> u32;
    /// Stores a 32-bit register.
    fn write_u32(&self, offset: usize, value: u32);
    /// Stores a 64-bit register in one access.
    fn write_u64(&self, offset: usize, value: u64);
}

/// The function's PCI configuration space, by aligned dwords.
pub trait ConfigSpace: Send + Sync {
    /// Loads the dword at `offset`.
    fn read_u32(&self, offset: u16) -> u32;
    /// Stores the dword at `offset`.
    fn write_u32(&self, offset: u16, value: u32);
}

/// One interrupt vector of the function.
pub trait InterruptVector: Send + Sync {
    /// Waits until the vector has fired since the last wait ended (an interrupt that came before
    /// the call counts).
    fn wait(&self) -> impl Future<Output = ()> + Send;
}

/// One PCI function and the machine around it. Cheap to clone: every clone means the same function.
pub trait Platform: Clone + Send + Sync + 'static {
    /// A mapped BAR.
    type Bar: Registers + 'static;
    /// The configuration space.
    type Config: ConfigSpace + 'static;
    /// DMA memory.
    type Buffer: DmaBuffer + 'static;
    /// An interrupt vector.
    type Vector: InterruptVector + 'static;

    /// Maps the memory BAR `index`, uncached.
    ///
    /// # Errors
    ///
    /// [`Error::NoBar`] when the function has none such.
    fn map_bar(&self, index: u8) -> Result<Self::Bar, Error>;

    /// The configuration space.
    fn config(&self) -> Self::Config;

    /// Allocates zeroed DMA memory of at least `len` bytes, contiguous, aligned to `align` (a power
    /// of two; 4096 is always possible).
    ///
    /// # Errors
    ///
    /// [`Error::NoDmaMemory`] when no such piece is left.
    fn alloc(&self, len: usize, align: usize) -> Result<Self::Buffer, Error>;

    /// Enables MSI-X with `count` vectors, numbered from 0 as the device's table is.
    ///
    /// # Errors
    ///
    /// [`Error::TooFewVectors`] when the function offers fewer.
    fn enable_vectors(
        &self,
        count: u16,
    ) -> Result<impl IntoIterator<Item = Self::Vector> + use<Self>, Error>;

    /// The monotonic time.
    fn now(&self) -> Instant;

    /// Lets other tasks run, and returns after `span` or a little later. A zero `span` only yields.
    fn sleep(&self, span: Duration) -> impl Future<Output = ()> + Send;
}
