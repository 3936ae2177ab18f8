//! The record of a Multiboot2 loader, such as GRUB.
//!
//! Layouts: Multiboot2 specification 2.0, section 3.6 (boot information format).

use heapless::Vec;

use super::acpi::ReadPhys;
use super::boot_info::{BootInfo, COMMAND_LINE_MAX, Loader, PVH_MAPPED, Piece};
use super::memory_map::{ENTRY_LEN, MemoryMap};
use crate::Error;

/// The longest record that is read; GRUB's has some kilobytes.
const RECORD_MAX: u32 = 1 << 20;
const RECORD_MIN: u32 = 16;
/// The most tags that are looked at.
const MAX_TAGS: usize = 256;
/// The most entries of the memory map.
const MAP_MAX: u32 = 1024;
/// A tag's type and length.
const TAG_HEAD: u64 = 8;

/// Types of tags.
const END: u32 = 0;
const COMMAND_LINE: u32 = 1;
const MODULE: u32 = 3;
const MEMORY_MAP: u32 = 6;
const OLD_RSDP: u32 = 14;
const NEW_RSDP: u32 = 15;

/// One tag: its type, and where its contents lie.
#[derive(Clone, Copy)]
struct Tag {
    kind: u32,
    contents: Piece,
}

impl BootInfo {
    /// Reads what a loader of Multiboot2 left at `address`.
    ///
    /// # Errors
    ///
    /// If there is no such record, or its memory map has no RAM.
    pub fn from_multiboot2(memory: &impl ReadPhys, address: u64) -> Result<Self, Error> {
        let len = word(memory, address)
            .filter(|len| (RECORD_MIN..=RECORD_MAX).contains(len))
            .filter(|_| address.is_multiple_of(8))
            .ok_or(Error::NoBootRecord { address })?;
        let record = Piece {
            start: address,
            len: len.into(),
        };
        let mut info = Self {
            loader: Loader::Multiboot2,
            image: handover::LOAD_BASE,
            mapped: PVH_MAPPED,
            map: MemoryMap::default(),
            command_line: Piece::default(),
            rsdp: 0,
            framebuffer: None,
            modules: Vec::new(),
            record,
        };
        let mut at = 8;
        for _ in 0..MAX_TAGS {
            let Some(tag) = tag(memory, record, at) else {
                break;
            };
            info.take(memory, tag);
            at = (at + TAG_HEAD + tag.contents.len).next_multiple_of(8);
        }
        info.checked()
    }

    fn take(&mut self, memory: &impl ReadPhys, tag: Tag) {
        let Piece { start, len } = tag.contents;
        match tag.kind {
            COMMAND_LINE => {
                // A C string, whose end need not be the tag's.
                let len = len.min(COMMAND_LINE_MAX);
                let mut byte = [0];
                let ends =
                    |&at: &u64| !memory.read(start.saturating_add(at), &mut byte) || byte[0] == 0;
                let len = (0..len).find(ends).unwrap_or(len);
                self.command_line = Piece { start, len };
            }
            MODULE => {
                if let (Some(first), Some(end)) = (word(memory, start), word(memory, start + 4))
                    && first < end
                {
                    // As many as fit are looked at.
                    let _ = self.modules.push(Piece {
                        start: first.into(),
                        len: u64::from(end - first),
                    });
                }
            }
            MEMORY_MAP => self.take_map(memory, tag.contents),
            // The loader's copy of the root pointer; that of the newer version counts.
            OLD_RSDP if self.rsdp == 0 => self.rsdp = start,
            NEW_RSDP => self.rsdp = start,
            _ => {}
        }
    }

    fn take_map(&mut self, memory: &impl ReadPhys, Piece { start, len }: Piece) {
        let Some(entry_len) =
            word(memory, start).filter(|&entry_len| entry_len as usize >= ENTRY_LEN)
        else {
            return;
        };
        let count = len.saturating_sub(TAG_HEAD) / u64::from(entry_len);
        for index in 0..count.min(MAP_MAX.into()) {
            let mut entry = [0; ENTRY_LEN];
            let at = start
                .saturating_add(TAG_HEAD)
                .saturating_add(index * u64::from(entry_len));
            if !memory.read(at, &mut entry) {
                break;
            }
            // Base, length, type: as an entry of PVH's map, RAM's number among them.
            self.map.add_pvh(&entry);
        }
    }
}

/// Reads the head of the tag at an offset of the record; `None` at its end.
fn tag(memory: &impl ReadPhys, record: Piece, at: u64) -> Option<Tag> {
    let start = record.start.checked_add(at)?;
    let end = at.checked_add(TAG_HEAD)?;
    if end > record.len {
        return None;
    }
    let (kind, len) = (word(memory, start)?, word(memory, start.checked_add(4)?)?);
    let len = u64::from(len).checked_sub(TAG_HEAD)?;
    (kind != END && end + len <= record.len).then_some(Tag {
        kind,
        contents: Piece {
            start: start + TAG_HEAD,
            len,
        },
    })
}

fn word(memory: &impl ReadPhys, address: u64) -> Option<u32> {
    let mut bytes = [0; 4];
    memory
        .read(address, &mut bytes)
        .then(|| u32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::boot::memory_map::Region;
    use crate::boot::test_memory::{BASE, Memory};

    fn record(tags: &[(u32, &[u8])]) -> Memory {
        let mut bytes = vec![0; 8];
        for (kind, contents) in tags {
            let len = u32::try_from(contents.len() + 8).unwrap();
            bytes.extend(kind.to_le_bytes());
            bytes.extend(len.to_le_bytes());
            bytes.extend(*contents);
            bytes.resize(bytes.len().next_multiple_of(8), 0xff);
        }
        bytes.extend([0, 0, 0, 0, 8, 0, 0, 0]);
        let len = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        Memory(bytes)
    }

    /// A map of low memory, reserved memory and 112 MiB.
    fn map() -> std::vec::Vec<u8> {
        let mut map = vec![24, 0, 0, 0, 0, 0, 0, 0];
        for (base, len, kind) in [
            (0, 0x9_f000_u64, 1_u64),
            (0x9_f000, 0x1000, 2),
            (0x10_0000, 0x700_0000, 1),
        ] {
            map.extend([base, len, kind].map(u64::to_le_bytes).as_flattened());
        }
        map
    }

    #[test]
    fn a_record_is_read_whole() {
        let memory = record(&[
            (1, b"log=info -- /p\0"),
            (2, b"GRUB 2.12\0"),
            (3, &[0, 0, 0x40, 0, 0x23, 1, 0x40, 0, 0]),
            (14, b"RSD PTR "),
            (15, b"RSD PTR "),
            (MEMORY_MAP, &map()),
        ]);
        let info = BootInfo::from_multiboot2(&memory, BASE).expect("a record");
        assert_eq!((info.loader, info.image), (Loader::Multiboot2, 0x20_0000));
        let Piece { start, len } = info.command_line;
        assert_eq!((start, len), (BASE + 16, 14));
        assert_eq!(info.modules[0].start, 0x40_0000);
        assert_eq!(info.modules[0].len, 0x123);
        let mut root = [0; 8];
        assert!(memory.read(info.rsdp, &mut root) && &root == b"RSD PTR ");
        assert_eq!(info.record.len, memory.0.len() as u64);
        let ram = Region {
            start: 0x10_0000,
            end: 0x710_0000,
        };
        assert_eq!(info.map.regions()[1], ram);
    }

    #[test]
    fn a_record_that_can_not_be_is_refused() {
        let refused = Err(Error::NoBootRecord { address: BASE });
        for len in [0_u32, 15, RECORD_MAX + 1] {
            let mut memory = record(&[(MEMORY_MAP, &map())]);
            memory.0[..4].copy_from_slice(&len.to_le_bytes());
            assert_eq!(BootInfo::from_multiboot2(&memory, BASE), refused, "{len}");
        }
        let none = BootInfo::from_multiboot2(&record(&[]), BASE);
        assert_eq!(none, Err(Error::NoMemoryMap));
        // The tag says that it is longer than the record.
        let mut memory = record(&[(MEMORY_MAP, &map())]);
        memory.0[12..16].copy_from_slice(&0x1000_u32.to_le_bytes());
        let cut = BootInfo::from_multiboot2(&memory, BASE);
        assert_eq!(cut, Err(Error::NoMemoryMap));
    }

    proptest! {
        #[test]
        fn any_record_is_read_or_refused(
            contents in prop::collection::vec((0..20_u32, prop::collection::vec(any::<u8>(), 0..60)), 0..8),
            change in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        ) {
            let tags: std::vec::Vec<_> = contents.iter().map(|(kind, bytes)| (*kind, &bytes[..])).collect();
            let mut memory = record(&tags);
            if let Some((at, byte)) = change {
                let at = at.index(memory.0.len());
                memory.0[at] = byte;
            }
            let _ = BootInfo::from_multiboot2(&memory, BASE);
        }
    }
}
