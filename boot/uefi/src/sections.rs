//! Sections of a PE file as it lies in memory.
//!
//! Layout: Microsoft's "PE Format", sections "MS-DOS Stub", "COFF File Header" and "Section Table
//! (Section Headers)".

use crate::Error;

/// The section that holds the image's ELF file.
pub const IMAGE: [u8; 8] = *b".tessera";
/// The section that holds a command line, if one is built in.
pub const COMMAND_LINE: [u8; 8] = *b".cmdline";

/// Offset in the MS-DOS header of the PE header's offset.
const PE_OFFSET: usize = 0x3c;
const SIGNATURE: &[u8] = b"PE\0\0";
/// Signature and COFF header.
const HEADER_LEN: usize = 24;
const SECTION_LEN: usize = 40;

/// Finds a section's bytes in a loaded program.
///
/// # Errors
///
/// If the program has no PE header, or no such section within it.
pub fn find(program: &[u8], name: [u8; 8]) -> Result<&[u8], Error> {
    let offset = u32_at(program, PE_OFFSET).and_then(|offset| usize::try_from(offset).ok());
    let header = offset.and_then(|offset| program.get(offset..));
    let header = header
        .filter(|header| header.starts_with(SIGNATURE))
        .ok_or(Error::NoHeader)?;
    let count = u16_at(header, 6).ok_or(Error::NoHeader)?;
    let optional = u16_at(header, 20).ok_or(Error::NoHeader)?;
    let table = header
        .get(HEADER_LEN + usize::from(optional)..)
        .ok_or(Error::NoHeader)?;
    table
        .chunks_exact(SECTION_LEN)
        .take(count.into())
        .find(|section| section.starts_with(&name))
        .and_then(|section| {
            let len = usize::try_from(u32_at(section, 8)?).ok()?;
            let start = usize::try_from(u32_at(section, 12)?).ok()?;
            program.get(start..start.checked_add(len)?)
        })
        .ok_or(Error::NoSection { name })
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;

    /// A program with one section, `.cmdline`, of 5 bytes at 0x100.
    fn program() -> Vec<u8> {
        let mut bytes = vec![0; 0x110];
        bytes[PE_OFFSET] = 0x40;
        bytes[0x40..0x44].copy_from_slice(SIGNATURE);
        bytes[0x46] = 1;
        bytes[0x54] = 8; // the optional header's length
        let section = 0x40 + HEADER_LEN + 8;
        bytes[section..section + 8].copy_from_slice(&COMMAND_LINE);
        bytes[section + 8] = 5;
        bytes[section + 13] = 1;
        bytes[0x100..0x105].copy_from_slice(b"hello");
        bytes
    }

    #[test]
    fn a_section_is_found_by_its_name() {
        assert_eq!(find(&program(), COMMAND_LINE), Ok(&b"hello"[..]));
        assert_eq!(
            find(&program(), IMAGE),
            Err(Error::NoSection { name: IMAGE })
        );
    }

    #[test]
    fn a_section_outside_of_the_program_or_no_program_is_an_error() {
        let mut bytes = program();
        bytes.truncate(0x104);
        assert_eq!(
            find(&bytes, COMMAND_LINE),
            Err(Error::NoSection { name: COMMAND_LINE })
        );
        for len in 0..0x60 {
            assert!(find(&program()[..len], COMMAND_LINE).is_err(), "{len}");
        }
    }
}
