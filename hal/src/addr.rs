//! Addresses as distinct types, so that one can't be taken for the other.

use core::fmt;

/// An address in the machine's physical memory, as the CPU sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysAddr(pub u64);

/// An address as a device sees it: what is written into descriptors. Equal to the physical address
/// where no IOMMU translates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BusAddr(pub u64);

impl BusAddr {
    /// The address `bytes` further on.
    ///
    /// # Panics
    ///
    /// When the sum leaves the 64-bit space, which no buffer of a machine can.
    #[must_use]
    pub fn offset(self, bytes: usize) -> Self {
        Self(
            self.0
                .checked_add(bytes as u64)
                .expect("bus address overflow"),
        )
    }
}

impl fmt::Debug for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "phys {:#x}", self.0)
    }
}

impl fmt::Debug for BusAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bus {:#x}", self.0)
    }
}
