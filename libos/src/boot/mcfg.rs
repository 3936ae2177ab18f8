//! Memory-mapped configuration space as ACPI's MCFG describes it: a range of buses of a segment
//! an entry.
//!
//! Layout: PCI firmware specification 3.3, section 4.1.2.

use alloc::vec::Vec;

/// Offset of the entries, and their length.
const ENTRIES: usize = 44;
const ENTRY_LEN: usize = 16;
/// More ranges than this are not looked at; a machine has one, or one a socket.
pub(crate) const MAX_RANGES: usize = 64;

/// Memory-mapped configuration space of some buses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ecam {
    /// The physical address of bus 0's part, whether or not bus 0 is covered.
    pub base: u64,
    /// The segment: a set of 256 buses of its own.
    pub segment: u16,
    /// The first bus covered.
    pub first_bus: u8,
    /// The last bus covered.
    pub last_bus: u8,
}

impl Ecam {
    /// Returns whether it covers a bus of a segment.
    #[must_use]
    pub fn covers(&self, segment: u16, bus: u8) -> bool {
        self.segment == segment && (self.first_bus..=self.last_bus).contains(&bus)
    }
}

/// Reads a MCFG, header and all. Entries without an address or with buses in the wrong order are
/// left out.
pub(super) fn ranges(mcfg: &[u8]) -> Vec<Ecam> {
    let entries = mcfg.get(ENTRIES..).unwrap_or_default();
    entries
        .chunks_exact(ENTRY_LEN)
        .filter_map(|entry| {
            let range = Ecam {
                base: u64::from_le_bytes(*entry.first_chunk()?),
                segment: u16::from_le_bytes([entry[8], entry[9]]),
                first_bus: entry[10],
                last_bus: entry[11],
            };
            (range.base != 0 && range.first_bus <= range.last_bus).then_some(range)
        })
        .take(MAX_RANGES)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(base: u64, segment: u16, first_bus: u8, last_bus: u8) -> [u8; ENTRY_LEN] {
        let mut entry = [0; ENTRY_LEN];
        entry[..8].copy_from_slice(&base.to_le_bytes());
        entry[8..10].copy_from_slice(&segment.to_le_bytes());
        entry[10..12].copy_from_slice(&[first_bus, last_bus]);
        entry
    }

    #[test]
    fn the_ranges_of_all_segments_are_read() {
        let mut mcfg = vec![0; ENTRIES];
        for entry in [
            entry(0x8000_0000, 0, 0, 0x7f),
            entry(0x8000_0000, 0, 0x80, 0xff),
            entry(0, 1, 0, 0xff),
            entry(0xc_0000_0000, 2, 0x40, 0x3f),
            entry(0xd_0000_0000, 0xffff, 0, 0),
        ] {
            mcfg.extend(entry);
        }
        mcfg.push(0);
        let ranges = ranges(&mcfg);
        let places: Vec<_> = ranges
            .iter()
            .map(|range| (range.segment, range.first_bus, range.last_bus))
            .collect();
        assert_eq!(places, [(0, 0, 0x7f), (0, 0x80, 0xff), (0xffff, 0, 0)]);
        assert!(ranges[1].covers(0, 0x80) && !ranges[1].covers(1, 0x80));
        assert!(!ranges[1].covers(0, 0x7f));
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(ranges(&bytes).len() <= MAX_RANGES);
        }
    }
}
