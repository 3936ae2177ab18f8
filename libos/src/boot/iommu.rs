//! IOMMUs as ACPI's DMAR (Intel VT-d) or IVRS (AMD-Vi) describes them, and the state that firmware
//! has left them in.
//!
//! They are not programmed here: a unit that translates is left so, and named in the log.
//!
//! Layouts: Intel "Virtualization Technology for Directed I/O", revision 4.1, sections 8.1 and 8.3
//! (DMAR), 11.4.4.2 (global status); AMD "I/O Virtualization Technology (IOMMU) Specification",
//! revision 3.08, sections 5.2.1 and 5.2.2 (IVRS), 3.4.3 (control); Linux
//! `drivers/iommu/intel/iommu.h`, `drivers/iommu/amd/init.c`.

use alloc::vec::Vec;
use core::fmt;

/// More units than this are not looked at; large servers have some ten.
const MAX_UNITS: usize = 64;

/// Designs of an IOMMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Intel's.
    VtD,
    /// AMD's.
    AmdVi,
}

/// The IOMMUs that a table describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Iommus {
    /// Their design.
    pub kind: Kind,
    /// Physical address of each one's registers.
    pub registers: Vec<u64>,
}

/// State of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It lets all accesses through.
    Off,
    /// It translates accesses, or interrupts, or both.
    On,
    /// Nothing answers at its registers.
    Silent,
}

impl Iommus {
    /// Reads a DMAR, header and all.
    pub(super) fn of_dmar(dmar: &[u8]) -> Self {
        /// Remapping structures: type 2, length 2; of a unit: flags, size, segment 2, registers 8.
        const ENTRIES: usize = 48;
        const UNIT: u16 = 0;
        Self {
            kind: Kind::VtD,
            registers: registers(dmar.get(ENTRIES..).unwrap_or_default(), |entry| {
                let [a, b, c, d, ..] = *entry else {
                    return None;
                };
                let len = usize::from(u16::from_le_bytes([c, d]));
                Some((u16::from_le_bytes([a, b]) == UNIT, len))
            }),
        }
    }

    /// Reads an IVRS, header and all. A unit may be described several times, in the older and the
    /// newer formats.
    pub(super) fn of_ivrs(ivrs: &[u8]) -> Self {
        /// Blocks: type, flags, length 2, device id 2, capability 2, registers 8.
        const ENTRIES: usize = 48;
        const UNITS: [u8; 3] = [0x10, 0x11, 0x40];
        Self {
            kind: Kind::AmdVi,
            registers: registers(ivrs.get(ENTRIES..).unwrap_or_default(), |entry| {
                let [kind, _, c, d, ..] = *entry else {
                    return None;
                };
                Some((
                    UNITS.contains(&kind),
                    usize::from(u16::from_le_bytes([c, d])),
                ))
            }),
        }
    }

    /// Returns the offset of the register that tells a unit's state.
    #[must_use]
    pub fn status_offset(&self) -> usize {
        match self.kind {
            Kind::VtD => 0x1c,
            Kind::AmdVi => 0x18,
        }
    }

    /// Returns the state that the register's value means.
    #[must_use]
    pub fn state(&self, status: u32) -> State {
        /// Translation, and interrupt remapping, are enabled.
        const VTD_ON: u32 = 1 << 31 | 1 << 25;
        const AMD_ON: u32 = 1 << 0;
        let on = match self.kind {
            Kind::VtD => VTD_ON,
            Kind::AmdVi => AMD_ON,
        };
        match status {
            u32::MAX => State::Silent,
            _ if status & on != 0 => State::On,
            _ => State::Off,
        }
    }
}

impl fmt::Display for Iommus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::VtD => "VT-d",
            Kind::AmdVi => "AMD-Vi",
        })
    }
}

/// Collects the registers' addresses of the entries that are units, as `kind` says with an entry's
/// length. In both tables the address lies at offset 8.
fn registers(mut rest: &[u8], kind: impl Fn(&[u8]) -> Option<(bool, usize)>) -> Vec<u64> {
    const ADDRESS: usize = 8;
    let mut found = Vec::new();
    while let Some((is_unit, len)) = kind(rest)
        && let Some(entry) = rest.get(..len).filter(|entry| entry.len() >= 4)
        && found.len() < MAX_UNITS
    {
        rest = &rest[len..];
        let address = entry.get(ADDRESS..).and_then(<[u8]>::first_chunk);
        let address = address.map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if is_unit && address != 0 && !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: [u8; 48] = [0; 48];

    fn drhd(kind: u16, len: u16, registers: u64) -> Vec<u8> {
        let mut entry = [kind.to_le_bytes(), len.to_le_bytes(), [1, 0], [0, 0]].concat();
        entry.extend(registers.to_le_bytes());
        entry.resize(len.into(), 0);
        entry
    }

    fn ivhd(kind: u8, len: u16, registers: u64) -> Vec<u8> {
        let mut entry = vec![kind, 0];
        entry.extend(len.to_le_bytes());
        entry.extend([0; 4]);
        entry.extend(registers.to_le_bytes());
        entry.resize(len.into(), 0);
        entry
    }

    #[test]
    fn units_of_both_makers_are_found() {
        let dmar = [
            &HEADER[..],
            &drhd(0, 24, 0xfed9_0000),
            &drhd(1, 32, 0x7f00_0000),
            &drhd(0, 16, 0xfed9_1000),
            &drhd(0, 16, 0),
        ]
        .concat();
        let found = Iommus::of_dmar(&dmar);
        assert_eq!(found.registers, [0xfed9_0000, 0xfed9_1000]);
        let ivrs = [
            &HEADER[..],
            &ivhd(0x10, 40, 0xfec0_0000),
            &ivhd(0x20, 32, 0xdead_0000),
            &ivhd(0x11, 48, 0xfec0_0000),
            &ivhd(0x40, 40, 0xfec8_0000),
        ]
        .concat();
        let found = Iommus::of_ivrs(&ivrs);
        assert_eq!(found.registers, [0xfec0_0000, 0xfec8_0000], "each once");
    }

    #[test]
    fn tables_that_are_cut_or_loop_end() {
        let mut dmar = [&HEADER[..], &drhd(0, 16, 0x1000), &drhd(0, 0, 0)].concat();
        dmar.extend([0; 16]);
        assert_eq!(Iommus::of_dmar(&dmar).registers, [0x1000], "a length of 0");
        dmar[50..52].copy_from_slice(&200_u16.to_le_bytes());
        assert_eq!(Iommus::of_dmar(&dmar).registers, [0_u64; 0], "too long");
        assert_eq!(Iommus::of_ivrs(&HEADER[..40]).registers, [0_u64; 0]);
    }

    #[test]
    fn states_are_told_apart() {
        let (intel, amd) = (Iommus::of_dmar(&[]), Iommus::of_ivrs(&[]));
        for (status, state) in [
            (0, State::Off),
            (1 << 30, State::Off),
            (1 << 31, State::On),
            (1 << 25, State::On),
            (u32::MAX, State::Silent),
        ] {
            assert_eq!(intel.state(status), state, "{status:#x}");
        }
        assert_eq!([amd.state(2), amd.state(3)], [State::Off, State::On]);
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(Iommus::of_dmar(&bytes).registers.len() <= MAX_UNITS);
            prop_assert!(Iommus::of_ivrs(&bytes).registers.len() <= MAX_UNITS);
        }
    }
}
