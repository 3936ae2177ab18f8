//! Physical memory for tests of what reads it.

use super::acpi::ReadPhys;

/// Address of the first byte.
pub(super) const BASE: u64 = 0x1000;

/// Memory that begins at [`BASE`].
pub(super) struct Memory(pub(super) Vec<u8>);

impl ReadPhys for Memory {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let from = address
            .checked_sub(BASE)
            .and_then(|at| self.0.get(usize::try_from(at).ok()?..)?.get(..into.len()));
        from.is_some_and(|from| {
            into.copy_from_slice(from);
            true
        })
    }
}
