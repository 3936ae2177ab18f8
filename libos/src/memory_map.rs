//! The machine's memory map, from the PVH boot protocol.
//!
//! Layouts: Xen's `public/arch-x86/hvm/start_info.h` (`hvm_start_info` version 1, `hvm_memmap_table_entry`).

use heapless::Vec;

use crate::frame_bitmap::PAGE_SIZE;

/// The bytes of an `hvm_start_info` of version 1.
pub const START_INFO_LEN: usize = 56;
/// The bytes of one memory map entry.
pub const ENTRY_LEN: usize = 24;
const MAGIC: u32 = 0x336e_c578;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const TYPE_RAM: u32 = 1;
/// The most pieces of RAM that are kept; firmware reports about ten.
const MAX_REGIONS: usize = 64;

/// Addresses of what the boot loader hands over; all physical, zero for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartInfo {
    /// The command line, a C string.
    pub command_line: u64,
    /// ACPI's root pointer.
    pub rsdp: u64,
    /// The memory map.
    pub map: u64,
    /// The number of its entries.
    pub map_entries: u32,
}

impl StartInfo {
    /// Reads the structure; `None` if it is of another kind or too old to carry a memory map.
    #[must_use]
    pub fn parse(bytes: &[u8; START_INFO_LEN]) -> Option<Self> {
        let has_map = u32_at(bytes, 4)? >= 1;
        (u32_at(bytes, 0)? == MAGIC && has_map).then_some(Self {
            command_line: u64_at(bytes, 24)?,
            rsdp: u64_at(bytes, 32)?,
            map: u64_at(bytes, 40)?,
            map_entries: u32_at(bytes, 48)?,
        })
    }
}

/// A piece of RAM in whole pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// The first byte's physical address, page-aligned.
    pub start: u64,
    /// One past the last byte's, page-aligned.
    pub end: u64,
}

/// The machine's RAM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryMap {
    regions: Vec<Region, MAX_REGIONS>,
}

impl MemoryMap {
    /// Reads the map's entries. Whatever else than RAM they name is left out; RAM beyond what can be kept, too.
    #[must_use]
    pub fn parse(entries: &[u8]) -> Self {
        let mut map = Self::default();
        for entry in entries.chunks_exact(ENTRY_LEN) {
            let (Some(address), Some(size), Some(kind)) =
                (u64_at(entry, 0), u64_at(entry, 8), u32_at(entry, 16))
            else {
                continue;
            };
            let page = PAGE_SIZE as u64;
            let start = address.checked_next_multiple_of(page);
            let end = address.checked_add(size).map(|end| end / page * page);
            if let (TYPE_RAM, Some(start), Some(end)) = (kind, start, end)
                && start < end
                && map.regions.push(Region { start, end }).is_err()
            {
                break;
            }
        }
        map
    }

    /// The pieces of RAM, as the firmware ordered them. Broken firmware may make them overlap.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// One past RAM's last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.regions.iter().map(|region| region.end).max().unwrap_or(0)
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(address: u64, size: u64, kind: u32) -> Vec<u8, ENTRY_LEN> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&address.to_le_bytes()).expect("room");
        bytes.extend_from_slice(&size.to_le_bytes()).expect("room");
        bytes.extend_from_slice(&kind.to_le_bytes()).expect("room");
        bytes.extend_from_slice(&[0; 4]).expect("room");
        bytes
    }

    #[test]
    fn start_info_is_read_by_the_published_offsets() {
        let mut bytes = [0; START_INFO_LEN];
        bytes[0..8].copy_from_slice(&[0x78, 0xc5, 0x6e, 0x33, 1, 0, 0, 0]);
        bytes[24] = 0x11;
        bytes[32] = 0x22;
        bytes[40] = 0x33;
        bytes[48] = 0x44;
        let info = StartInfo {
            command_line: 0x11,
            rsdp: 0x22,
            map: 0x33,
            map_entries: 0x44,
        };
        assert_eq!(StartInfo::parse(&bytes), Some(info));
        bytes[4] = 0;
        assert_eq!(StartInfo::parse(&bytes), None, "version 0 has no memory map");
    }

    #[test]
    fn ram_is_kept_in_whole_pages() {
        let table = [
            entry(0, 0x9fc00, 1),
            entry(0x9fc00, 0x400, 2),
            entry(0x10_0000, 0x700_0000, 1),
        ]
        .concat();
        let map = MemoryMap::parse(&table);
        assert_eq!(
            map.regions(),
            [
                Region {
                    start: 0,
                    end: 0x9f000
                },
                Region {
                    start: 0x10_0000,
                    end: 0x710_0000
                }
            ]
        );
        assert_eq!(map.end(), 0x710_0000);
    }

    proptest! {
        #[test]
        fn any_table_gives_sound_regions(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            for region in MemoryMap::parse(&bytes).regions() {
                prop_assert!(region.start < region.end);
                prop_assert_eq!((region.start | region.end) % PAGE_SIZE as u64, 0);
            }
        }

        #[test]
        fn wrapping_entries_are_dropped(address in any::<u64>(), size in any::<u64>()) {
            for region in MemoryMap::parse(&entry(address, size, 1)).regions() {
                prop_assert!(region.start >= address && region.end - region.start <= size);
            }
        }
    }
}
