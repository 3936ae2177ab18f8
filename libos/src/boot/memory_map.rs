//! The machine's memory map, from the PVH boot protocol or UEFI.
//!
//! Layouts: Xen's `public/arch-x86/hvm/start_info.h` (`hvm_start_info` version 1,
//! `hvm_memmap_table_entry`); UEFI specification 2.10, section 7.2.3 (`EFI_MEMORY_DESCRIPTOR`,
//! `EFI_MEMORY_TYPE`).

use core::ops::Range;

use heapless::Vec;

use crate::mem::frame_bitmap::PAGE_SIZE;

/// The bytes of an `hvm_start_info` of version 1.
pub const START_INFO_LEN: usize = 56;
/// The bytes of one memory map entry.
pub const ENTRY_LEN: usize = 24;
const MAGIC: u32 = 0x336e_c578;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const TYPE_RAM: u32 = 1;
/// The bytes of version 1 of UEFI's memory descriptor that are read; firmware may append more to
/// each.
pub const UEFI_DESCRIPTOR_LEN: usize = 40;
/// UEFI's memory types that are RAM for an image to use: boot services' code and data, and
/// conventional memory. The loader's own memory holds the image and what it was told, so it stays
/// out of use.
const UEFI_RAM: [u32; 3] = [3, 4, 7];
/// The most pieces of RAM that are kept; firmware reports about ten, once neighbours are joined.
const MAX_REGIONS: usize = 128;

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
    /// The list of modules.
    pub module_list: u64,
    /// The number of its entries.
    pub modules: u32,
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
            module_list: u64_at(bytes, 16)?,
            modules: u32_at(bytes, 12)?,
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
    lost: u64,
}

impl MemoryMap {
    /// Reads a PVH map's entries. Whatever else than RAM they name is left out; RAM beyond what can
    /// be kept, too.
    #[must_use]
    pub fn parse(entries: &[u8]) -> Self {
        let mut map = Self::default();
        for entry in entries.chunks_exact(ENTRY_LEN) {
            map.add_pvh(entry);
        }
        map
    }

    /// Adds what an entry of a PVH map names, if it is RAM.
    pub fn add_pvh(&mut self, entry: &[u8]) {
        if let (Some(address), Some(size), Some(TYPE_RAM)) =
            (u64_at(entry, 0), u64_at(entry, 8), u32_at(entry, 16))
        {
            self.add(address, size);
        }
    }

    /// Adds what a descriptor of UEFI names, if it is RAM.
    pub fn add_uefi(&mut self, descriptor: &[u8]) {
        let kind = u32_at(descriptor, 0);
        if let (Some(address), Some(pages)) = (u64_at(descriptor, 8), u64_at(descriptor, 24))
            && kind.is_some_and(|kind| UEFI_RAM.contains(&kind))
            && let Some(size) = pages.checked_mul(PAGE_SIZE as u64)
        {
            self.add(address, size);
        }
    }

    /// Adds the whole pages of a piece of RAM, joined with a piece that it touches.
    fn add(&mut self, address: u64, size: u64) {
        let page = PAGE_SIZE as u64;
        let start = address.checked_next_multiple_of(page);
        let end = address.checked_add(size).map(|end| end / page * page);
        let (Some(start), Some(end)) = (start, end) else {
            return;
        };
        if start >= end {
            return;
        }
        let touching = self
            .regions
            .iter_mut()
            .find(|region| region.start <= end && start <= region.end);
        if let Some(region) = touching {
            region.start = region.start.min(start);
            region.end = region.end.max(end);
        } else if self.regions.push(Region { start, end }).is_err() {
            self.lost += end - start;
        }
    }

    /// The bytes of RAM that could not be kept, as the map has too many pieces.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Finds `len` bytes of RAM within `within` and outside all of `taken`, the lowest there are.
    #[must_use]
    pub fn find(&self, len: u64, within: Range<u64>, taken: &[Range<u64>]) -> Option<u64> {
        // The lowest place begins where a region begins, or behind what is taken.
        let starts = |region: &Region| {
            let (start, end) = (region.start.max(within.start), region.end.min(within.end));
            let behind = taken.iter().map(|taken| taken.end);
            core::iter::once(start)
                .chain(behind)
                .filter(move |&at| {
                    at >= start && at.checked_add(len).is_some_and(|last| last <= end)
                })
                .filter(|&at| {
                    taken
                        .iter()
                        .all(|taken| at + len <= taken.start || taken.end <= at)
                })
                .min()
        };
        self.regions.iter().filter_map(starts).min()
    }

    /// The pieces of RAM, as the firmware ordered them. Broken firmware may make them overlap.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// One past RAM's last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.regions
            .iter()
            .map(|region| region.end)
            .max()
            .unwrap_or(0)
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
        bytes
            .extend_from_slice(&address.to_le_bytes())
            .expect("room");
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
            module_list: 0,
            modules: 0,
        };
        assert_eq!(StartInfo::parse(&bytes), Some(info));
        bytes[4] = 0;
        assert_eq!(
            StartInfo::parse(&bytes),
            None,
            "version 0 has no memory map"
        );
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

    fn descriptor(kind: u32, start: u64, pages: u64) -> [u8; UEFI_DESCRIPTOR_LEN] {
        let mut bytes = [0; UEFI_DESCRIPTOR_LEN];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&start.to_le_bytes());
        bytes[24..32].copy_from_slice(&pages.to_le_bytes());
        bytes
    }

    #[test]
    fn of_uefi_memory_what_the_firmware_is_done_with_is_ram_and_neighbours_are_joined() {
        let mut map = MemoryMap::default();
        // The loader's, boot services', conventional, runtime's, ACPI's, conventional again.
        for (kind, start, pages) in [
            (2, 0x10_0000, 0x10),
            (4, 0x11_0000, 0x10),
            (7, 0x12_0000, 0x10),
            (6, 0x13_0000, 0x10),
            (9, 0x14_0000, 0x10),
            (3, 0x10_0000_0000, 1),
            (7, u64::MAX - 0xfff, 2),
            (7, 0, u64::MAX),
        ] {
            map.add_uefi(&descriptor(kind, start, pages));
        }
        let region = |start, end| Region { start, end };
        assert_eq!(
            map.regions(),
            [
                region(0x11_0000, 0x13_0000),
                region(0x10_0000_0000, 0x10_0000_1000)
            ]
        );
    }

    #[test]
    fn more_pieces_than_are_kept_are_counted() {
        let mut map = MemoryMap::default();
        for index in 0..MAX_REGIONS as u64 + 3 {
            map.add_uefi(&descriptor(7, index << 13, 1));
        }
        assert_eq!(map.lost(), 3 << 12);
    }

    #[test]
    fn free_ram_is_found_beside_what_is_taken() {
        let map =
            MemoryMap::parse(&[entry(0x20_0000, 0x10_0000, 1), entry(0, 0xa_0000, 1)].concat());
        let find = |len, within, taken: Range<u64>| map.find(len, within, &[taken]);
        assert_eq!(find(0x1000, 0x1000..0x10_0000, 0..0), Some(0x1000));
        assert_eq!(find(0x1000, 0x10_0000..u64::MAX, 0..0), Some(0x20_0000));
        assert_eq!(
            find(0x1000, 0x10_0000..u64::MAX, 0x1f_0000..0x28_0000),
            Some(0x28_0000)
        );
        assert_eq!(
            find(0x1000, 0x10_0000..u64::MAX, 0x28_0000..0x29_0000),
            Some(0x20_0000)
        );
        assert_eq!(
            find(0x9_0000, 0x10_0000..u64::MAX, 0x28_0000..0x29_0000),
            None
        );
        assert_eq!(find(0x1000, 0x10_0000..0x20_0fff, 0..0), None);
        assert_eq!(find(u64::MAX, 0..u64::MAX, 0..0), None);
        // The top of RAM is taken, too, and what lies between is free.
        let both = [0x20_0000..0x28_0000, 0x2f_f000..0x30_0000];
        let above = 0x10_0000..u64::MAX;
        assert_eq!(map.find(0x7_f000, above.clone(), &both), Some(0x28_0000));
        assert_eq!(map.find(0x8_0000, above, &both), None);
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
