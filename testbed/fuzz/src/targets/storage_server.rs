//! S under a hostile P: any requests of two peers to a sound file system.

use futures_util::FutureExt;
use messages::storage::{
    Close, FileId, FileRequest, GetdentsRequest, Open, OpenFlags, OpenRequest, Path, ReadRequest,
    StatRequest, StorageRequest,
};
use messages::{Call, Kind, MAX_MESSAGE, decode_reply};
use storage::{Bulk, Ext4, PeerKey, Server};

use super::image::{self, Disk};
use crate::input::Input;

/// What one input's requests may read: each walks a path of at most some 2,000 parts through folders of a block.
const MOST_READ: usize = 256 << 20;

struct Buffer {
    limit: usize,
    end: usize,
}

impl Bulk for Buffer {
    fn limit(&self) -> usize {
        self.limit
    }
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.limit, "bulk beyond what was lent");
        self.end = self.end.max(offset + bytes.len());
    }
}

fn path<'a>(input: &mut Input<'a>) -> Path<'a> {
    const KNOWN: [&[u8]; 6] = [b"/", b"/a", b"/a/hello", b"/link", b"/long", b"/tree"];
    let which = usize::from(input.u8() % 8);
    let bytes = KNOWN.get(which).copied().unwrap_or_else(|| input.string());
    Path::new(bytes).unwrap_or_else(|_| Path::new(b"/").expect("a path"))
}

fn request<'a>(input: &mut Input<'a>) -> StorageRequest<'a> {
    let file = FileId(u64::from(input.u8() % 16));
    match input.u8() % 8 {
        0 | 7 => StorageRequest::Open(OpenRequest {
            path: path(input),
            flags: OpenFlags::from_bits_truncate(input.u8()),
        }),
        1 => StorageRequest::Read(ReadRequest {
            file,
            offset: if input.bool() {
                input.u64()
            } else {
                input.u16().into()
            },
            len: input.u32(),
        }),
        2 => StorageRequest::StatPath(StatRequest {
            path: path(input),
            follow: input.bool(),
        }),
        3 => StorageRequest::StatFile(FileRequest { file }),
        4 => StorageRequest::Getdents(GetdentsRequest {
            file,
            position: if input.bool() {
                input.u64()
            } else {
                input.u16().into()
            },
            max: input.u32(),
        }),
        5 => StorageRequest::Readlink(path(input)),
        _ => StorageRequest::Close(FileRequest { file }),
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let disk = Disk::new(image::build(), MOST_READ);
    let files = Ext4::mount(disk)
        .now_or_never()
        .expect("a disk in memory")
        .expect("a sound one");
    let server = Server::new(files);
    while !input.is_empty() {
        let from = PeerKey(u16::from(input.u8() & 1));
        let mut raw = [0; MAX_MESSAGE];
        let (kind, len) = match input.u8() {
            0 => {
                server.peer_lost(from);
                continue;
            }
            1 => {
                let kind = u16::from(input.u8());
                let bytes = input.string();
                raw[..bytes.len()].copy_from_slice(bytes);
                (kind, bytes.len())
            }
            _ => {
                let (Kind(kind), len) = request(&mut input).encode(&mut raw).expect("a request fits");
                (kind, len)
            }
        };
        let mut reply = [0; MAX_MESSAGE];
        let limit = usize::from(input.u16()) << 4;
        let mut bulk = Buffer { limit, end: 0 };
        let answered = server
            .handle(from, kind, &raw[..len], &mut reply, &mut bulk)
            .now_or_never();
        let reply = &reply[..answered.expect("a disk in memory never waits")];
        assert!(reply.len() >= 4, "an answer has an errno");
        match Kind(kind) {
            Open::KIND => assert!(decode_reply::<Open>(reply).is_ok(), "an answer is one"),
            messages::storage::Read::KIND => {
                let read = decode_reply::<messages::storage::Read>(reply).expect("an answer is one");
                assert!(read.is_err() || read == Ok(u32::try_from(bulk.end).unwrap_or(u32::MAX)));
            }
            messages::storage::Getdents::KIND => {
                assert!(
                    decode_reply::<messages::storage::Getdents>(reply).is_ok(),
                    "an answer is one"
                );
            }
            Close::KIND => assert!(decode_reply::<Close>(reply).is_ok(), "an answer is one"),
            _ => {}
        }
    }
    for peer in [PeerKey(0), PeerKey(1)] {
        server.peer_lost(peer);
    }
    assert_eq!(server.open_files(), 0, "nothing stays open");
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let step = |file: u8, what: u8, rest: &[u8]| [&[0, 2, file, what][..], rest, &[0, 1]].concat();
    let open = |path: u8| step(0, 0, &[path, 0]);
    let read = |file: u8| step(file, 1, &[0, 0, 0, 0, 8, 0, 0]);
    let list = |file: u8| step(file, 4, &[0, 0, 0, 0, 4, 0, 0]);
    vec![
        [open(2), read(1), step(1, 3, &[]), step(1, 6, &[])].concat(),
        [open(0), list(1), open(5), read(2)].concat(),
        [step(0, 5, &[3]), step(0, 5, &[4]), step(0, 2, &[4, 1])].concat(),
        vec![0, 1, 16, 4, 2, 0, b'/', b'a', 0, 0],
    ]
}
