//! hca_server: the messages of a hostile client, to a function that is small and counts what
//! reaches it.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use hca_server::Function;
use hca_server::irq::Vectors;
use hca_server::layout::Layout;
use hca_server::memory::Memory;
use hca_server::session::Session;
use hca_server::wire::{Command, HEADER_LEN, Header, MAX_DATA, MAX_MESSAGE, Request};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use zerocopy::FromBytes;

use crate::input::Input;

const BARS: [u64; 6] = [0x10_0000, 0, 0x80_0000, 0, 0, 0];
const CONFIG: u16 = 4096;
const VECTORS: u16 = 4;
/// Pages of the file that a client lends.
const PAGES: u64 = 16;

struct Strict;

impl Function for Strict {
    fn layout(&self) -> Layout {
        Layout {
            bars: BARS,
            config: CONFIG,
            vectors: VECTORS,
        }
    }
    fn config_read(&self, offset: u16, into: &mut [u8]) {
        assert!(usize::from(offset) + into.len() <= CONFIG.into());
    }
    fn config_write(&self, offset: u16, from: &[u8]) {
        assert!(usize::from(offset) + from.len() <= CONFIG.into());
    }
    fn bar_read(&self, bar: u8, offset: u64, into: &mut [u8]) {
        assert!(offset + into.len() as u64 <= BARS[usize::from(bar)]);
    }
    fn bar_write(&self, bar: u8, offset: u64, from: &[u8]) {
        assert!(offset + from.len() as u64 <= BARS[usize::from(bar)]);
    }
    fn reset(&self) {}
    fn attach(&self) {}
    fn detach(&self) {}
}

/// A file of a few pages, the same each time.
fn lent() -> Option<OwnedFd> {
    static FILE: OnceLock<OwnedFd> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let file = memfd_create("lent", MemfdFlags::CLOEXEC).expect("a file in memory");
        ftruncate(&file, PAGES * 4096).expect("of a few pages");
        file
    });
    file.try_clone().ok()
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (memory, vectors) = (Memory::default(), Vectors::new(VECTORS));
    let session = Session::new(&Strict, &memory, &vectors);
    while !input.is_empty() {
        if let Ok(header) = Header::read_from_bytes(&input.clone().array::<HEADER_LEN>())
            && let Ok(len) = header.body_len()
        {
            assert!(len + HEADER_LEN <= MAX_MESSAGE as usize);
        }
        let command = Command(u16::from(input.u8() % 20));
        let fds = (0..input.u8() % 4).filter_map(|_| lent()).collect();
        let body = input.string();
        let Ok(request) = Request::parse(command, body) else {
            continue;
        };
        if let Ok(answer) = session.answer(&request, fds) {
            assert!(
                answer.len() <= MAX_DATA as usize + 64,
                "an answer of {} bytes",
                answer.len()
            );
        }
        // The device reaches what is lent, and nothing else.
        let mut bytes = [0; 64];
        let at = input.u64();
        if memory.read(at, &mut bytes).is_ok() {
            let _ = memory.write(at, &bytes);
        }
        vectors.raise(input.u16());
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let message = |command: u8, fds: u8, body: &[u8]| {
        let len = u8::try_from(body.len()).unwrap_or(0);
        [&[command, fds, len][..], body, &[0; 10]].concat()
    };
    let words =
        |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    let map = |size: u32| words(&[32, 3, 0, 0, 0x1000, 0, size, 0]);
    vec![
        [
            message(1, 0, b"\0\0\0\0{}\0"),
            message(4, 0, &words(&[16, 0, 0, 0])),
        ]
        .concat(),
        [
            message(2, 1, &map(0x4000)),
            message(3, 0, &words(&[24, 0, 0x1000, 0, 0x4000, 0])),
        ]
        .concat(),
        message(5, 0, &words(&[32, 0, 7, 0, 0, 0, 0, 0])),
        message(7, 0, &words(&[16, 0, 2, 0])),
        [
            message(8, 2, &words(&[20, 0x24, 2, 0, 2])),
            message(8, 0, &words(&[20, 0x21, 2, 0, 0])),
        ]
        .concat(),
        [
            message(9, 0, &words(&[0x40, 0, 0, 64])),
            message(10, 0, &words(&[0, 0, 7, 4, 0xffff_ffff])),
        ]
        .concat(),
        message(15, 0, &words(&[1, 0, 0x20, 0, 2, 8, 5, 6])),
        message(13, 0, &[]),
    ]
}
