//! Sections added to a linked PE file: how the UEFI loader gets its image and its command line.
//!
//! Layout: Microsoft's "PE Format", sections "COFF File Header", "Optional Header" and "Section
//! Table".

use anyhow::{Context, Result, ensure};

const PE_OFFSET: usize = 0x3c;
const SIGNATURE: &[u8] = b"PE\0\0";
/// Offsets from the signature on.
const SECTIONS: usize = 6;
const TIME: usize = 8;
const OPTIONAL_LEN: usize = 20;
const OPTIONAL: usize = 24;
/// Offsets in the optional header of PE32+.
const PE32_PLUS: u16 = 0x20b;
const SECTION_ALIGNMENT: usize = 32;
const FILE_ALIGNMENT: usize = 36;
const IMAGE_LEN: usize = 56;
const HEADERS_LEN: usize = 60;
const CHECKSUM: usize = 64;
const SECTION_LEN: usize = 40;
/// `IMAGE_SCN_CNT_INITIALIZED_DATA` and `IMAGE_SCN_MEM_READ`.
const READ_ONLY_DATA: u32 = 0x4000_0040;

/// A PE file in the making.
pub(super) struct Pe {
    bytes: Vec<u8>,
    /// Offset of the signature.
    header: usize,
}

impl Pe {
    /// Takes a linked file. Its time of linking is erased, so that the same input gives the same
    /// bytes.
    pub(super) fn new(bytes: Vec<u8>) -> Result<Self> {
        let header = usize::try_from(u32_at(&bytes, PE_OFFSET)?)?;
        let mut pe = Self { bytes, header };
        ensure!(
            pe.bytes
                .get(header..)
                .is_some_and(|rest| rest.starts_with(SIGNATURE)),
            "the loader is not a PE file"
        );
        ensure!(
            u16_at(&pe.bytes, header + OPTIONAL)? == PE32_PLUS,
            "the loader is not a PE file of 64 bits"
        );
        pe.put(header + TIME, &[0; 4])?;
        pe.put(header + OPTIONAL + CHECKSUM, &[0; 4])?;
        Ok(pe)
    }

    /// Adds a section with these contents, behind all others.
    pub(super) fn add(&mut self, name: [u8; 8], contents: &[u8]) -> Result<()> {
        let optional = self.header + OPTIONAL;
        let field = |offset| u32_at(&self.bytes, optional + offset);
        let (section_alignment, file_alignment) =
            (field(SECTION_ALIGNMENT)?, field(FILE_ALIGNMENT)?);
        let (image_len, headers_len) = (field(IMAGE_LEN)?, usize::try_from(field(HEADERS_LEN)?)?);
        ensure!(
            section_alignment.is_power_of_two() && file_alignment.is_power_of_two(),
            "the loader's sections have no alignment"
        );
        let count = u16_at(&self.bytes, self.header + SECTIONS)?;
        let table = optional + usize::from(u16_at(&self.bytes, self.header + OPTIONAL_LEN)?);
        let place = table + usize::from(count) * SECTION_LEN;
        ensure!(
            place + SECTION_LEN <= headers_len,
            "the loader's headers have no room for another section"
        );
        let len = u32::try_from(contents.len()).context("the section is too long")?;
        let address = image_len.next_multiple_of(section_alignment);
        let start = self
            .bytes
            .len()
            .next_multiple_of(usize::try_from(file_alignment)?);
        let stored = contents
            .len()
            .next_multiple_of(usize::try_from(file_alignment)?);
        self.bytes.resize(start, 0);
        self.bytes.extend_from_slice(contents);
        self.bytes.resize(start + stored, 0);
        let mut section = name.to_vec();
        for word in [
            len,
            address,
            u32::try_from(stored)?,
            u32::try_from(start)?,
            0,
            0,
            0,
            READ_ONLY_DATA,
        ] {
            section.extend(word.to_le_bytes());
        }
        self.put(place, &section)?;
        self.put(self.header + SECTIONS, &(count + 1).to_le_bytes())?;
        let end = address
            .checked_add(len)
            .context("the section is too long")?;
        let end = end.next_multiple_of(section_alignment);
        self.put(optional + IMAGE_LEN, &end.to_le_bytes())
    }

    /// The file.
    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        let place = self.bytes.get_mut(at..at + bytes.len());
        place
            .context("the loader is cut off")?
            .copy_from_slice(bytes);
        Ok(())
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
    Ok(u16::from_le_bytes(*word.context("the loader is cut off")?))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
    Ok(u32::from_le_bytes(*word.context("the loader is cut off")?))
}

#[cfg(test)]
mod tests {
    use object::{Object, ObjectSection};

    use super::*;

    /// A PE file of x86-64 with one section of code.
    fn file() -> Vec<u8> {
        let mut bytes = vec![0; 0x400];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[PE_OFFSET] = 0x40;
        bytes[0x40..0x48].copy_from_slice(b"PE\0\0\x64\x86\x01\0");
        bytes[0x48..0x4c].fill(0xee);
        bytes[0x54] = 240;
        let optional = 0x58;
        bytes[optional..optional + 2].copy_from_slice(&PE32_PLUS.to_le_bytes());
        for (offset, value) in [
            (SECTION_ALIGNMENT, 0x1000_u32),
            (FILE_ALIGNMENT, 0x200),
            (IMAGE_LEN, 0x2000),
            (HEADERS_LEN, 0x200),
            (108, 16),
        ] {
            bytes[optional + offset..][..4].copy_from_slice(&value.to_le_bytes());
        }
        let section = optional + 240;
        bytes[section..section + 5].copy_from_slice(b".text");
        for (field, value) in [0x200_u32, 0x1000, 0x200, 0x200].into_iter().enumerate() {
            bytes[section + 8 + field * 4..][..4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn added_sections_are_read_back_and_no_time_is_left() {
        let mut pe = Pe::new(file()).expect("a PE file");
        pe.add(*b".tessera", &[7; 0x1234]).expect("room");
        let bytes = pe.finish();
        let parsed = object::File::parse(&bytes[..]).expect("still a PE file");
        let section = parsed.section_by_name(".tessera").expect("the section");
        assert_eq!(section.address(), 0x2000);
        assert_eq!(&section.data().expect("data")[..0x1234], &[7; 0x1234]);
        assert_eq!(bytes[0x48..0x4c], [0; 4]);
        assert_eq!(u32_at(&bytes, 0x58 + IMAGE_LEN).expect("there"), 0x4000);
    }

    #[test]
    fn headers_without_room_and_other_files_are_refused() {
        let mut pe = Pe::new(file()).expect("a PE file");
        // 0x200 bytes of headers hold four sections.
        let added = (0..4)
            .filter(|_| pe.add(*b".tessera", b"x").is_ok())
            .count();
        assert!(added < 4, "{added} sections fit");
        assert!(Pe::new(b"\x7fELF".to_vec()).is_err());
        assert!(Pe::new(file()[..0x50].to_vec()).is_err());
    }
}
