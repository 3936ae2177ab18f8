//! An image's ELF file: what goes where in memory, and where it is entered.
//!
//! Layouts: "System V ABI", chapter 5 (program headers, note section).

use alloc::vec::Vec;

use elf::ElfBytes;
use elf::abi::{PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::note::Note;
use handover::{LINK_BASE, LOAD_BASE, NOTE_NAME, NOTE_TYPE};

use crate::Error;

/// The longest image in memory.
const MAX_LEN: u64 = 64 << 20;
const PAGE: u64 = 4096;

/// An image that can be loaded.
#[derive(Debug)]
pub struct Image<'a> {
    /// Offsets in memory, and the bytes that go there; the rest is zero.
    segments: Vec<(usize, &'a [u8])>,
    len: u64,
    entry: u64,
}

impl<'a> Image<'a> {
    /// Reads the headers.
    ///
    /// # Errors
    ///
    /// If the file is no image for this loader.
    pub fn parse(file: &'a [u8]) -> Result<Self, Error> {
        let elf = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(|_| Error::NotElf)?;
        let (mut segments, mut len, mut entry) = (Vec::new(), 0, None);
        for header in elf.segments().ok_or(Error::NotElf)? {
            if header.p_type == PT_NOTE {
                let notes = elf
                    .segment_data_as_notes(&header)
                    .map_err(|_| Error::NotElf)?;
                entry = entry.or(notes.filter_map(|note| entry_of(&note)).next());
            }
            if header.p_type != PT_LOAD {
                continue;
            }
            let bad = Error::Segment {
                address: header.p_paddr,
                len: header.p_memsz,
            };
            let bytes = elf.segment_data(&header).map_err(|_| bad)?;
            let start = header.p_paddr.checked_sub(LOAD_BASE).ok_or(bad)?;
            let end = start
                .checked_add(header.p_memsz)
                .filter(|&end| end <= MAX_LEN && bytes.len() as u64 <= header.p_memsz)
                .ok_or(bad)?;
            segments.push((usize::try_from(start).map_err(|_| bad)?, bytes));
            len = len.max(end);
        }
        let entry = entry.filter(|entry| (LINK_BASE..LINK_BASE + len).contains(entry));
        Ok(Self {
            segments,
            len: len.next_multiple_of(PAGE),
            entry: entry.ok_or(Error::NoEntry)?,
        })
    }

    /// Its length in memory, in whole pages.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The virtual address at which it is entered.
    #[must_use]
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// Fills memory of [`Image::len`] bytes.
    ///
    /// # Panics
    ///
    /// If `memory` is shorter.
    pub fn load(&self, memory: &mut [u8]) {
        memory.fill(0);
        for &(start, bytes) in &self.segments {
            memory[start..start + bytes.len()].copy_from_slice(bytes);
        }
    }
}

fn entry_of(note: &Note<'_>) -> Option<u64> {
    let Note::Unknown(note) = note else {
        return None;
    };
    let ours =
        note.n_type == u64::from(NOTE_TYPE) && note.name_str().is_ok_and(|name| name == NOTE_NAME);
    (ours)
        .then(|| {
            note.desc
                .first_chunk()
                .map(|value| u64::from_le_bytes(*value))
        })
        .flatten()
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn header(kind: u32, offset: u64, address: u64, file: u64, memory: u64) -> Vec<u8> {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(5_u32.to_le_bytes());
        for word in [offset, address, address, file, memory, 4] {
            bytes.extend(word.to_le_bytes());
        }
        bytes
    }

    /// A file with one segment of 0x3000 bytes in memory whose first 4 are in the file, and a note.
    fn file(headers: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        bytes.extend([0; 8]); // entry
        bytes.extend(64_u64.to_le_bytes());
        bytes.extend([0; 12]); // section headers, flags
        bytes.extend([64, 0, 56, 0, u8::try_from(headers.len()).expect("few"), 0]);
        bytes.extend([0; 6]);
        assert_eq!(bytes.len(), 64);
        headers.iter().for_each(|header| bytes.extend(header));
        bytes.resize(0x200, 0);
        bytes.extend([8, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0]);
        bytes.extend(b"Tessera\0");
        bytes.extend((LINK_BASE + 0x1234).to_le_bytes());
        bytes.extend(b"code");
        bytes
    }

    fn good() -> [Vec<u8>; 2] {
        [
            header(PT_NOTE, 0x200, LOAD_BASE, 28, 28),
            header(PT_LOAD, 0x21c, LOAD_BASE + 0x1000, 4, 0x1801),
        ]
    }

    #[test]
    fn segments_go_where_their_headers_say_and_the_rest_is_zero() {
        let file = file(&good());
        let image = Image::parse(&file).expect("an image");
        assert_eq!((image.len(), image.entry()), (0x3000, LINK_BASE + 0x1234));
        let mut memory = vec![0xaa; 0x3000];
        image.load(&mut memory);
        assert_eq!(&memory[0x1000..0x1004], b"code");
        assert_eq!(memory.iter().filter(|&&byte| byte != 0).count(), 4);
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let with =
            |segment: Vec<u8>| Image::parse(&file(&[good()[0].clone(), segment])).map(|_| ());
        let bad = |address, len| Err(Error::Segment { address, len });
        let low = LOAD_BASE - 1;
        assert_eq!(with(header(PT_LOAD, 0x21c, low, 4, 4)), bad(low, 4));
        assert_eq!(
            with(header(PT_LOAD, 0x21c, LOAD_BASE, 4, 3)),
            bad(LOAD_BASE, 3)
        );
        assert_eq!(
            with(header(PT_LOAD, 0x21c, LOAD_BASE, 400, 400)),
            bad(LOAD_BASE, 400)
        );
        let long = MAX_LEN + 1;
        assert_eq!(
            with(header(PT_LOAD, 0x21c, LOAD_BASE, 4, long)),
            bad(LOAD_BASE, long)
        );
        let far = u64::MAX - 2;
        assert_eq!(with(header(PT_LOAD, 0x21c, far, 4, 4)), bad(far, 4));
        assert_eq!(
            with(header(PT_LOAD, u64::MAX, LOAD_BASE, 4, 4)),
            bad(LOAD_BASE, 4)
        );
    }

    #[test]
    fn an_entry_is_needed_and_lies_within() {
        let [note, segment] = good();
        assert_eq!(
            Image::parse(&file(core::slice::from_ref(&segment))).map(|_| ()),
            Err(Error::NoEntry)
        );
        let short = header(PT_LOAD, 0x21c, LOAD_BASE, 4, 0x1000);
        assert_eq!(
            Image::parse(&file(&[note, short])).map(|_| ()),
            Err(Error::NoEntry)
        );
        assert_eq!(Image::parse(b"MZ").map(|_| ()), Err(Error::NotElf));
    }
}
