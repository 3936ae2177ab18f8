//! P: an ELF file. The segments of an accepted one are in order, within the file and the program's
//! half of the address space.

use messages::{PAGE_SIZE, USER_END};
use pcache::Rights;
use processor::elf::Header;

pub(crate) fn run(bytes: &[u8]) {
    let Ok(header) = Header::parse(bytes) else {
        return;
    };
    let at = usize::try_from(header.headers_at).unwrap_or(usize::MAX);
    let headers = bytes.get(at..).unwrap_or_default();
    let headers = &headers[..headers.len().min(header.headers_len())];
    let Ok(program) = header.program(headers, bytes.len() as u64) else {
        return;
    };
    let (first, end) = program.span();
    assert!(first < end && end <= USER_END.next_multiple_of(PAGE_SIZE));
    let mut last = 0;
    for segment in &program.segments {
        assert!(segment.addr >= last && segment.addr + segment.len <= USER_END);
        assert!(segment.file_len <= segment.len);
        assert!(segment.file_offset + segment.file_len <= bytes.len() as u64);
        last = segment.addr + segment.len;
    }
    let holds_entry = |addr, len| (addr..addr + len).contains(&program.entry);
    let mut code = program
        .segments
        .iter()
        .filter(|segment| segment.prot.contains(Rights::EXEC));
    assert!(code.any(|segment| holds_entry(segment.addr, segment.len)));
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut file = vec![0; 0x200];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    for (at, value) in [(16, 2_u16), (18, 62), (54, 56), (56, 3)] {
        file[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    let mut put = |at: usize, value: u64| file[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(24, 0x40_0100);
    put(32, 64);
    for (index, flags) in [(0, 5_u64), (1, 6)] {
        let header = 64 + index * 56;
        put(header, 1 | flags << 32);
        put(header + 16, 0x40_0000 + index as u64 * 0x2000);
        put(header + 32, 0x200);
        put(header + 40, 0x1000);
    }
    put(64 + 112, 0x6474_e551 | 6 << 32);
    let mut relocatable = file.clone();
    relocatable[16] = 3;
    vec![file, relocatable]
}
