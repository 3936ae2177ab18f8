//! An image's ELF file without what only a debugger reads.
//!
//! Layout: "System V ABI", chapters 4 (header) and 5 (program headers).

use anyhow::{Context, Result};
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, Object, ObjectSection};

/// The header, and each program header.
const HEADER_LEN: u64 = 64;
const PROGRAM_HEADER_LEN: u64 = 56;
/// Offsets in a program header of the file offset and of the length in the file.
const OFFSET_AT: usize = 8;
const FILE_LEN_AT: usize = 32;

/// Returns the file with its segments and nothing else. Trailing zeros of read-only and writable
/// data are left to the loader, as ELF provides: a segment is zero beyond what the file has of it.
pub(super) fn strip(file: &[u8]) -> Result<Vec<u8>> {
    let header = FileHeader64::<Endianness>::parse(file).context("an image is not an ELF file")?;
    let endian = header.endian().context("an image is not an ELF file")?;
    let segments = header
        .program_headers(endian, file)
        .context("an image has no segments")?;
    let table_len = u64::try_from(segments.len())? * PROGRAM_HEADER_LEN;
    let old_table = usize::try_from(header.e_phoff(endian))?;
    let mut out = file[..usize::try_from(HEADER_LEN)?].to_vec();
    out[32..40].copy_from_slice(&HEADER_LEN.to_le_bytes());
    // No section headers: their offset, their number, and that of their names.
    out[40..48].fill(0);
    out[60..64].fill(0);
    out.extend_from_slice(&file[old_table..old_table + usize::try_from(table_len)?]);
    // Segments that lie within another one (notes) go with it.
    let mut placed: Vec<(u64, u64, u64)> = Vec::new();
    let order = |loads: bool| {
        segments
            .iter()
            .enumerate()
            .filter(move |(_, segment)| (segment.p_type(endian) == PT_LOAD) == loads)
    };
    for (index, segment) in order(true).chain(order(false)) {
        let (offset, len) = (segment.p_offset(endian), segment.p_filesz(endian));
        let bytes = segment
            .data(endian, file)
            .ok()
            .context("an image's segment is cut off")?;
        let within = placed.iter().find(|(old, old_len, _)| {
            (*old..old + old_len).contains(&offset) && offset + len <= old + old_len
        });
        let (new, new_len) = match within {
            Some((old, _, new)) => (new + (offset - old), len),
            None => {
                let used = bytes
                    .iter()
                    .rposition(|&byte| byte != 0)
                    .map_or(0, |last| last + 1);
                let new = u64::try_from(out.len())?.next_multiple_of(16);
                out.resize(usize::try_from(new)?, 0);
                out.extend_from_slice(&bytes[..used]);
                placed.push((offset, len, new));
                (new, u64::try_from(used)?)
            }
        };
        let at = usize::try_from(HEADER_LEN)? + index * usize::try_from(PROGRAM_HEADER_LEN)?;
        out[at + OFFSET_AT..][..8].copy_from_slice(&new.to_le_bytes());
        out[at + FILE_LEN_AT..][..8].copy_from_slice(&new_len.to_le_bytes());
    }
    Ok(out)
}

/// Returns the names and sizes of what is in memory, for a person to read.
pub(super) fn sections(file: &[u8]) -> Result<Vec<(String, u64)>> {
    let parsed = object::File::parse(file).context("an image is not an ELF file")?;
    let in_memory = parsed.sections().filter(|section| section.address() != 0);
    in_memory
        .map(|section| {
            Ok((
                section.name().context("a section has no name")?.to_owned(),
                section.size(),
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three segments: a note, one that holds it, and data with zeros at its end. Behind them what
    /// is to go.
    fn file() -> Vec<u8> {
        let mut bytes = vec![0; 0x400];
        bytes[..24].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0");
        bytes[32] = 64;
        bytes[40..42].copy_from_slice(&[0x00, 0x30]);
        bytes[52..64].copy_from_slice(&[64, 0, 56, 0, 3, 0, 64, 0, 9, 0, 8, 0]);
        for (index, (kind, offset, file, memory)) in [
            (4_u32, 0x208_u64, 8_u64, 8_u64),
            (1, 0x200, 0x20, 0x40),
            (1, 0x300, 0x20, 0x1000),
        ]
        .into_iter()
        .enumerate()
        {
            let at = 64 + index * 56;
            bytes[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            for (field, value) in [
                (8, offset),
                (24, 0x20_0000 + offset),
                (32, file),
                (40, memory),
            ] {
                bytes[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        bytes[0x208..0x210].copy_from_slice(b"the note");
        bytes[0x21f] = b'!';
        bytes[0x300..0x304].copy_from_slice(b"data");
        bytes.extend([0xdd; 0x1000]);
        bytes
    }

    #[test]
    fn a_stripped_file_has_the_same_segments_and_nothing_else() {
        let (old, new) = (file(), strip(&file()).expect("an ELF file"));
        assert!(new.len() < 0x180, "{:#x} bytes", new.len());
        let read = |file: &[u8]| {
            let header = FileHeader64::<Endianness>::parse(file).expect("a header");
            let endian = header.endian().expect("little");
            let segments = header.program_headers(endian, file).expect("segments");
            segments
                .iter()
                .map(|segment| {
                    let mut memory = segment.data(endian, file).expect("data").to_vec();
                    memory.resize(usize::try_from(segment.p_memsz(endian)).expect("small"), 0);
                    (segment.p_type(endian), segment.p_paddr(endian), memory)
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(read(&old), read(&new));
        assert_eq!(strip(&new).expect("again"), new);
    }

    #[test]
    fn what_is_no_elf_file_is_an_error() {
        assert!(strip(b"MZ").is_err());
        assert!(strip(&file()[..0x2ff]).is_err());
    }
}
