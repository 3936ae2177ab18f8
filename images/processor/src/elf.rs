//! ELF64 executables: what a loader must know of one, from bytes that may be anything.
//!
//! Layout: System V ABI, gABI chapters 4 and 5 (<https://gabi.xinuos.com/elf/>), as in Linux
//! `include/uapi/linux/elf.h`.

use alloc::vec::Vec;
use core::ops::Range;

use messages::{PAGE_SIZE, USER_END};
use pcache::Rights;

/// Bytes of the file header.
pub const HEADER_SIZE: usize = 64;
/// Bytes of one program header.
pub const PROGRAM_HEADER_SIZE: usize = 56;
/// The most program headers looked at; Linux's limit is a page of them.
pub const MAX_PROGRAM_HEADERS: u16 = 73;

const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_PHDR: u32 = 6;
const PT_GNU_STACK: u32 = 0x6474_e551;

/// Reasons not to run a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ElfError {
    /// It is no ELF file at all.
    #[error("not an ELF file")]
    NotElf,
    /// It is for another machine: class, byte order and machine number.
    #[error("an ELF file for another machine (class {class}, order {order}, machine {machine})")]
    OtherMachine {
        /// `e_ident[EI_CLASS]`, 2 for 64 bits.
        class: u8,
        /// `e_ident[EI_DATA]`, 1 for little-endian.
        order: u8,
        /// `e_machine`, 62 for x86-64.
        machine: u16,
    },
    /// It is no executable.
    #[error("an ELF file of type {0}, not an executable")]
    NotExecutable(u16),
    /// It names a program interpreter by a path that can't be one.
    #[error("the name of its program interpreter makes no sense")]
    BadInterpreter,
    /// Its program headers are of an odd size or too many.
    #[error("{count} program headers of {size} bytes")]
    BadHeaders {
        /// `e_phnum`.
        count: u16,
        /// `e_phentsize`.
        size: u16,
    },
    /// A segment leaves the file or the address space, or overlaps another.
    #[error("segment {0} makes no sense")]
    BadSegment(usize),
    /// It has nothing to load, or its entry point lies in nothing that is.
    #[error("no code at its entry point {0:#x}")]
    NoEntry(u64),
}

/// The file header's useful part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Position-independent: may be loaded anywhere.
    pub relocatable: bool,
    entry: u64,
    /// Offset in the file of the program headers.
    pub headers_at: u64,
    /// Number of program headers.
    pub headers: u16,
}

/// One piece of the file to be put into memory; addresses before relocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The first address.
    pub addr: u64,
    /// Bytes in memory; those beyond `file_len` are zero.
    pub len: u64,
    /// Offset in the file of the segment's bytes.
    pub file_offset: u64,
    /// Length in the file, in bytes.
    pub file_len: u64,
    /// Its rights.
    pub prot: Rights,
}

/// A program to load; addresses before relocation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// May be loaded anywhere.
    pub relocatable: bool,
    /// The first instruction.
    pub entry: u64,
    /// The program headers in memory, 0 if they are not loaded.
    pub headers_addr: u64,
    /// Number of program headers.
    pub headers: u16,
    /// Segments to load, by rising address.
    pub segments: Vec<Segment>,
    /// The stack may hold code.
    pub executable_stack: bool,
    /// The place in the file of the path of the program that loads this one, its final zero
    /// included.
    pub interpreter: Option<Range<u64>>,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// Reads where in the file the interpreter's path is.
fn interpreter(raw: &[u8], file_len: u64) -> Result<Range<u64>, ElfError> {
    let (start, len) = (u64_at(raw, 8), u64_at(raw, 32));
    let end = start.checked_add(len).filter(|&end| end <= file_len);
    let range = start..end.ok_or(ElfError::BadInterpreter)?;
    // Linux `fs/binfmt_elf.c`: two bytes to PATH_MAX.
    if len < 2 || len > messages::storage::PATH_MAX as u64 {
        return Err(ElfError::BadInterpreter);
    }
    Ok(range)
}

impl Header {
    /// Reads the first [`HEADER_SIZE`] bytes of a file (fewer if the file is shorter).
    ///
    /// # Errors
    ///
    /// [`ElfError`] for what is no x86-64 executable.
    pub fn parse(bytes: &[u8]) -> Result<Self, ElfError> {
        if bytes.len() < HEADER_SIZE || !bytes.starts_with(b"\x7fELF") {
            return Err(ElfError::NotElf);
        }
        let (class, order, machine) = (bytes[4], bytes[5], u16_at(bytes, 18));
        if (class, order, machine) != (2, 1, EM_X86_64) {
            return Err(ElfError::OtherMachine {
                class,
                order,
                machine,
            });
        }
        let relocatable = match u16_at(bytes, 16) {
            ET_EXEC => false,
            ET_DYN => true,
            other => return Err(ElfError::NotExecutable(other)),
        };
        let (size, count) = (u16_at(bytes, 54), u16_at(bytes, 56));
        if usize::from(size) != PROGRAM_HEADER_SIZE || count == 0 || count > MAX_PROGRAM_HEADERS {
            return Err(ElfError::BadHeaders { count, size });
        }
        Ok(Self {
            relocatable,
            entry: u64_at(bytes, 24),
            headers_at: u64_at(bytes, 32),
            headers: count,
        })
    }

    /// Bytes that the program headers take.
    #[must_use]
    pub fn headers_len(&self) -> usize {
        usize::from(self.headers) * PROGRAM_HEADER_SIZE
    }

    /// Reads the program headers of a file that is `file_len` bytes long.
    ///
    /// # Errors
    ///
    /// [`ElfError`] for what cannot be loaded.
    pub fn program(&self, headers: &[u8], file_len: u64) -> Result<Program, ElfError> {
        let mut program = Program {
            relocatable: self.relocatable,
            entry: self.entry,
            headers_addr: 0,
            headers: self.headers,
            segments: Vec::new(),
            executable_stack: false,
            interpreter: None,
        };
        let mut phdr = None;
        for (index, raw) in headers.chunks_exact(PROGRAM_HEADER_SIZE).enumerate() {
            match u32_at(raw, 0) {
                PT_LOAD => {
                    let segment = segment(raw, file_len).ok_or(ElfError::BadSegment(index))?;
                    if program
                        .segments
                        .last()
                        .is_some_and(|last| last.addr + last.len > segment.addr)
                    {
                        return Err(ElfError::BadSegment(index));
                    }
                    program.segments.push(segment);
                }
                PT_INTERP => program.interpreter = Some(interpreter(raw, file_len)?),
                PT_PHDR => phdr = Some(u64_at(raw, 16)),
                PT_GNU_STACK => program.executable_stack = u32_at(raw, 4) & 1 != 0,
                _ => {}
            }
        }
        program.headers_addr = phdr
            .or_else(|| self.headers_in(&program.segments))
            .unwrap_or(0);
        let has_entry = |s: &Segment| {
            s.prot.contains(Rights::EXEC) && (s.addr..s.addr + s.len).contains(&self.entry)
        };
        if !program.segments.iter().any(has_entry) {
            return Err(ElfError::NoEntry(self.entry));
        }
        Ok(program)
    }

    /// Returns the address of the program headers, from the segment that holds them.
    fn headers_in(&self, segments: &[Segment]) -> Option<u64> {
        let within =
            |s: &&Segment| (s.file_offset..s.file_offset + s.file_len).contains(&self.headers_at);
        segments
            .iter()
            .find(within)
            .map(|s| s.addr + (self.headers_at - s.file_offset))
    }
}

fn segment(raw: &[u8], file_len: u64) -> Option<Segment> {
    let flags = u32_at(raw, 4);
    let mut prot = Rights::empty();
    prot.set(Rights::EXEC, flags & 1 != 0);
    prot.set(Rights::WRITE, flags & 2 != 0);
    prot.set(Rights::READ, flags & 4 != 0);
    let segment = Segment {
        addr: u64_at(raw, 16),
        len: u64_at(raw, 40),
        file_offset: u64_at(raw, 8),
        file_len: u64_at(raw, 32),
        prot,
    };
    let in_memory = segment.addr.checked_add(segment.len)? <= USER_END;
    let in_file = segment.file_offset.checked_add(segment.file_len)? <= file_len;
    let same_offset = segment.addr % PAGE_SIZE == segment.file_offset % PAGE_SIZE;
    (in_memory && in_file && same_offset && segment.file_len <= segment.len).then_some(segment)
}

impl Program {
    /// The pages that the segments span: first address, and one past the last.
    #[must_use]
    pub fn span(&self) -> (u64, u64) {
        let first = self
            .segments
            .first()
            .map_or(0, |s| s.addr / PAGE_SIZE * PAGE_SIZE);
        let end = self
            .segments
            .last()
            .map_or(0, |s| (s.addr + s.len).next_multiple_of(PAGE_SIZE));
        (first, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file header and one PT_LOAD of 0x1000 bytes at 0x400000.
    pub(crate) fn tiny() -> Vec<u8> {
        let mut file = vec![0; 0x1000];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        for (at, value) in [(16, 2u16), (18, 62), (54, 56), (56, 1)] {
            file[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        file[64..72].copy_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]);
        for (at, value) in [
            (24, 0x40_0100u64),
            (32, 64),
            (64 + 16, 0x40_0000),
            (64 + 32, 0x1000),
            (64 + 40, 0x2000),
        ] {
            file[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        file
    }

    fn parse(file: &[u8]) -> Result<Program, ElfError> {
        let header = Header::parse(file)?;
        let at = usize::try_from(header.headers_at).unwrap_or(usize::MAX);
        let headers = file.get(at..).unwrap_or(&[]);
        header.program(
            &headers[..headers.len().min(header.headers_len())],
            file.len() as u64,
        )
    }

    #[test]
    fn static_program_is_understood() {
        let program = parse(&tiny()).unwrap();
        assert_eq!(
            (program.entry, program.headers_addr),
            (0x40_0100, 0x40_0040)
        );
        assert_eq!(program.span(), (0x40_0000, 0x40_2000));
        assert_eq!(program.segments[0].prot, Rights::READ | Rights::EXEC);
    }

    #[test]
    fn other_files_are_named() {
        assert_eq!(parse(b"#!/bin/sh\n"), Err(ElfError::NotElf));
        let with = |at: usize, byte: u8| {
            let mut file = tiny();
            file[at] = byte;
            parse(&file)
        };
        assert_eq!(
            with(4, 1),
            Err(ElfError::OtherMachine {
                class: 1,
                order: 1,
                machine: 62
            })
        );
        assert_eq!(with(16, 1), Err(ElfError::NotExecutable(1)));
        assert_eq!(with(64, 3), Err(ElfError::BadInterpreter));
        assert_eq!(
            with(56, 0),
            Err(ElfError::BadHeaders { count: 0, size: 56 })
        );
        assert_eq!(
            with(64 + 16, 1),
            Err(ElfError::BadSegment(0)),
            "address and offset disagree within the page"
        );
        assert_eq!(with(26, 0), Err(ElfError::NoEntry(0x100)));
    }

    proptest! {
        #[test]
        fn hostile_files_are_refused_or_bounded(flips in prop::collection::vec((0usize..140, any::<u8>()), 0..12)) {
            let mut file = tiny();
            for (at, byte) in flips {
                file[at] = byte;
            }
            if let Ok(program) = parse(&file) {
                let (first, end) = program.span();
                prop_assert!(first <= end && end <= USER_END + PAGE_SIZE);
            }
        }

        #[test]
        fn noise_is_no_program(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse(&bytes).is_err());
        }
    }
}
