//! The boot loader's information, whichever loader it was: [`BootInfo`].
//!
//! QEMU (PVH), the UEFI loader of `boot/uefi` and loaders of Multiboot2 (see `multiboot.rs`) leave
//! different records; each is read through [`ReadPhys`], checked, and made one structure. Nothing
//! allocates: the heap does not exist yet.
//!
//! Layouts: Xen's `public/arch-x86/hvm/start_info.h` (`hvm_start_info`, `hvm_modlist_entry`), the
//! crate `handover`.

use handover::{Handover, MAGIC};
use heapless::Vec;
use zerocopy::FromBytes;

use crate::Error;
use crate::boot::acpi::ReadPhys;
use crate::boot::memory_map::{
    ENTRY_LEN, MemoryMap, START_INFO_LEN, StartInfo, UEFI_DESCRIPTOR_LEN,
};
use crate::mem::frame_bitmap::PAGE_SIZE;

/// The longest command line that is read.
pub const COMMAND_LINE_MAX: u64 = 64 << 10;
/// The most entries of a memory map that are read; firmware of large servers reports some hundred.
const MAP_MAX: u64 = 1024;
/// The bytes of an `hvm_modlist_entry`.
const MODULE_LEN: u64 = 32;
/// The most modules that are kept.
const MAX_MODULES: usize = 4;
/// Bytes that the PVH entry's page tables map.
pub const PVH_MAPPED: u64 = 1 << 30;

/// Loader that started the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loader {
    /// QEMU's `-kernel`, or another loader of Xen's PVH protocol.
    Pvh,
    /// UEFI firmware, by the loader of `boot/uefi`.
    Uefi,
    /// GRUB, or another loader of Multiboot2.
    Multiboot2,
}

impl core::fmt::Display for Loader {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Pvh => "PVH",
            Self::Uefi => "UEFI",
            Self::Multiboot2 => "Multiboot2",
        })
    }
}

/// Some bytes of physical memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Piece {
    /// The first byte's address.
    pub start: u64,
    /// The number of bytes.
    pub len: u64,
}

/// The boot loader's information about the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootInfo {
    /// The loader.
    pub loader: Loader,
    /// Physical address of the image's first byte.
    pub image: u64,
    /// Bytes of physical memory that the loader's page tables map in the direct map.
    pub mapped: u64,
    /// The machine's RAM.
    pub map: MemoryMap,
    /// The kernel command line.
    pub command_line: Piece,
    /// ACPI's root pointer; 0 where the loader knows none.
    pub rsdp: u64,
    /// The screen, if there is one.
    pub framebuffer: Option<handover::Framebuffer>,
    /// Files that the loader brought besides; their memory is never given away.
    pub modules: Vec<Piece, MAX_MODULES>,
    /// The loader's record, if it lies in RAM that the map calls free; it is never given away.
    pub record: Piece,
}

impl BootInfo {
    /// Reads what a loader of the PVH protocol left at `address`.
    ///
    /// # Errors
    ///
    /// If there is no such record, or its memory map has no RAM.
    pub fn from_pvh(memory: &impl ReadPhys, address: u64) -> Result<Self, Error> {
        let mut bytes = [0; START_INFO_LEN];
        let readable = memory.read(address, &mut bytes);
        let info = readable.then(|| StartInfo::parse(&bytes)).flatten();
        let info = info.ok_or(Error::NoBootRecord { address })?;
        let mut map = MemoryMap::default();
        for index in 0..u64::from(info.map_entries).min(MAP_MAX) {
            let mut entry = [0; ENTRY_LEN];
            if !read_entry(memory, info.map, index, ENTRY_LEN as u64, &mut entry) {
                break;
            }
            map.add_pvh(&entry);
        }
        let mut modules = Vec::new();
        for index in 0..u64::from(info.modules).min(MAX_MODULES as u64) {
            let mut entry = [0; 16];
            if read_entry(memory, info.module_list, index, MODULE_LEN, &mut entry)
                && let Some(module) =
                    piece(&entry).filter(|module| module.start.checked_add(module.len).is_some())
            {
                // As many as fit are looked at.
                let _ = modules.push(module);
            }
        }
        Self {
            loader: Loader::Pvh,
            image: handover::LOAD_BASE,
            mapped: PVH_MAPPED,
            map,
            command_line: c_string(memory, info.command_line),
            rsdp: info.rsdp,
            framebuffer: None,
            modules,
            record: Piece::default(),
        }
        .checked()
    }

    /// Reads what our UEFI loader left at `address`.
    ///
    /// # Errors
    ///
    /// If there is no such record, its numbers can't be, or its memory map has no RAM.
    pub fn from_handover(memory: &impl ReadPhys, address: u64) -> Result<Self, Error> {
        let mut bytes = [0; size_of::<Handover>()];
        let readable = memory.read(address, &mut bytes);
        let record = readable
            .then(|| Handover::read_from_bytes(&bytes).ok())
            .flatten();
        let record = record
            .filter(|record| {
                record.magic == MAGIC
                    && record.image.is_multiple_of(PAGE_SIZE as u64)
                    && record.descriptor_len >= UEFI_DESCRIPTOR_LEN as u64
                    && record.command_line_len <= COMMAND_LINE_MAX
            })
            .ok_or(Error::NoBootRecord { address })?;
        let mut map = MemoryMap::default();
        for index in 0..(record.map_len / record.descriptor_len).min(MAP_MAX) {
            let mut entry = [0; UEFI_DESCRIPTOR_LEN];
            if !read_entry(memory, record.map, index, record.descriptor_len, &mut entry) {
                break;
            }
            map.add_uefi(&entry);
        }
        Self {
            loader: Loader::Uefi,
            image: record.image,
            mapped: handover::MAPPED,
            map,
            command_line: Piece {
                start: record.command_line,
                len: record.command_line_len,
            },
            rsdp: record.rsdp,
            framebuffer: (record.framebuffer.address != 0).then_some(record.framebuffer),
            modules: Vec::new(),
            record: Piece::default(),
        }
        .checked()
    }

    pub(crate) fn checked(self) -> Result<Self, Error> {
        if self.map.regions().is_empty() {
            return Err(Error::NoMemoryMap);
        }
        Ok(self)
    }
}

/// Reads the beginning of entry `index` of a table whose entries have `len` bytes.
fn read_entry(memory: &impl ReadPhys, table: u64, index: u64, len: u64, into: &mut [u8]) -> bool {
    let address = index
        .checked_mul(len)
        .and_then(|offset| table.checked_add(offset));
    table != 0 && address.is_some_and(|address| memory.read(address, into))
}

/// Reads an address and a length.
fn piece(bytes: &[u8; 16]) -> Option<Piece> {
    let start = u64::from_le_bytes(*bytes.first_chunk()?);
    let len = u64::from_le_bytes(*bytes.last_chunk()?);
    Some(Piece { start, len })
}

/// Finds the end of the C string at `start`, which may be 0 for none.
fn c_string(memory: &impl ReadPhys, start: u64) -> Piece {
    let mut len = 0;
    let mut byte = [0];
    while len < COMMAND_LINE_MAX
        && start != 0
        && start
            .checked_add(len)
            .is_some_and(|at| memory.read(at, &mut byte))
        && byte[0] != 0
    {
        len += 1;
    }
    Piece { start, len }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::boot::memory_map::Region;
    use crate::boot::test_memory::{BASE, Memory};

    fn words(words: &[u64]) -> std::vec::Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn pvh() -> Memory {
        // The record; at 0x40 a map of one entry, at 0x60 the line, at 0x70 a module.
        let mut bytes = words(&[
            0x1_336e_c578,
            1 << 32,
            BASE + 0x70,
            BASE + 0x60,
            0xe_0000,
            BASE + 0x40,
            1,
            0,
        ]);
        bytes.extend(words(&[0x10_0000, 0x700_0000, 1, 0]));
        bytes.extend(b"log=info -- /p\0\xff");
        bytes.extend(words(&[0x40_0000, 0x123, 0, 0]));
        Memory(bytes)
    }

    #[test]
    fn a_pvh_record_is_read_whole() {
        let info = BootInfo::from_pvh(&pvh(), BASE).expect("a record");
        assert_eq!(
            (info.loader, info.image, info.mapped, info.rsdp),
            (Loader::Pvh, 0x20_0000, 1 << 30, 0xe_0000)
        );
        assert_eq!(
            info.command_line,
            Piece {
                start: BASE + 0x60,
                len: 14
            }
        );
        assert_eq!(
            info.map.regions(),
            [Region {
                start: 0x10_0000,
                end: 0x710_0000
            }]
        );
        assert_eq!(
            info.modules[..],
            [Piece {
                start: 0x40_0000,
                len: 0x123
            }]
        );
        assert_eq!(info.framebuffer, None);
    }

    #[test]
    fn a_pvh_record_of_another_kind_or_without_ram_is_refused() {
        let mut memory = pvh();
        memory.0[0] ^= 1;
        assert_eq!(
            BootInfo::from_pvh(&memory, BASE),
            Err(Error::NoBootRecord { address: BASE })
        );
        let mut memory = pvh();
        memory.0[0x50] = 2;
        assert_eq!(BootInfo::from_pvh(&memory, BASE), Err(Error::NoMemoryMap));
        assert_eq!(
            BootInfo::from_pvh(&memory, 0),
            Err(Error::NoBootRecord { address: 0 })
        );
    }

    fn uefi(change: impl FnOnce(&mut Handover)) -> Memory {
        let mut record = Handover {
            magic: MAGIC,
            image: 0x7f00_0000,
            command_line: BASE + 192,
            command_line_len: 8,
            rsdp: 0x7fff_0014,
            map: BASE + 96,
            map_len: 96,
            descriptor_len: 48,
            framebuffer: handover::Framebuffer::default(),
        };
        change(&mut record);
        let mut bytes = record.as_bytes().to_vec();
        // Type and padding, physical start, virtual start, pages, attributes, and what a later
        // version may add.
        bytes.extend(words(&[7, 0x10_0000, 0, 0x700, 0xf, u64::MAX]));
        bytes.extend(words(&[2, 0x80_0000, 0, 0x100, 0xf, u64::MAX]));
        bytes.extend(b"log=info");
        Memory(bytes)
    }

    #[test]
    fn a_handover_is_read_whole() {
        let info = BootInfo::from_handover(&uefi(|_| {}), BASE).expect("a record");
        assert_eq!(
            (info.loader, info.image, info.mapped, info.rsdp),
            (Loader::Uefi, 0x7f00_0000, 4 << 30, 0x7fff_0014)
        );
        assert_eq!(
            info.map.regions(),
            [Region {
                start: 0x10_0000,
                end: 0x80_0000
            }]
        );
        assert_eq!(info.command_line.len, 8);
    }

    #[test]
    fn a_handover_with_impossible_numbers_is_refused() {
        for change in [
            (|record| record.magic = 0) as fn(&mut Handover),
            |record| record.image += 1,
            |record| record.descriptor_len = 39,
            |record| record.command_line_len = 1 << 40,
        ] {
            let read = BootInfo::from_handover(&uefi(change), BASE);
            assert_eq!(read, Err(Error::NoBootRecord { address: BASE }));
        }
        let far = uefi(|record| record.map = u64::MAX - 7);
        assert_eq!(BootInfo::from_handover(&far, BASE), Err(Error::NoMemoryMap));
    }

    proptest! {
        #[test]
        fn any_record_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400), good in any::<bool>()) {
            let mut bytes = bytes;
            if good && bytes.len() > 16 {
                bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
            }
            let _ = BootInfo::from_handover(&Memory(bytes.clone()), BASE);
            if good && bytes.len() > 16 {
                bytes[..8].copy_from_slice(&[0x78, 0xc5, 0x6e, 0x33, 1, 0, 0, 0]);
            }
            let _ = BootInfo::from_pvh(&Memory(bytes), BASE);
        }
    }
}
