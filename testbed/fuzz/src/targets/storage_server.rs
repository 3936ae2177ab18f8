//! S under a hostile P: any requests of two peers to a sound file system.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ext4::{Ext4, Options, Time};
use futures_util::FutureExt;
use hal::Instant;
use messages::recall::RecallRequest;
use messages::storage::{
    AllocateFlags, AllocateRequest, AttributeFlags, Attributes, Caller, Close, FileId, FileRequest,
    FileTime, FlushRequest, GetdentsRequest, Groups, LinkFileRequest, LinkRequest,
    ListXattrRequest, MakeRequest, Open, OpenFlags, OpenRequest, Path, PathRequest, Privileges,
    ReadRequest, RemoveRequest, RenameFlags, RenameRequest, SetFileRequest, SetPathRequest,
    SetXattrRequest, StatRequest, StorageRequest, TruncateRequest, Write, WriteRequest, XattrFlags,
    XattrName, XattrRequest,
};
use messages::{Call, Kind, MAX_MESSAGE, decode_reply};
use storage::lease::{Answer, Holders, Wait};
use storage::{Bulk, PeerKey, Server};

use super::image::{self, Disk};
use crate::input::Input;

/// Limit of the bytes that one input's requests read: each walks a path of at most some 2,000 parts
/// through folders of a block.
const MOST_READ: usize = 256 << 20;

/// Peers that return every second lease, and a clock that goes on when S waits.
#[derive(Default)]
struct Fakes(Arc<AtomicU64>);

impl Holders for Fakes {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.load(Ordering::Relaxed))
    }
    fn recall(&self, _: PeerKey, ask: RecallRequest) -> Wait<'_, Option<Answer>> {
        // Some do not answer, some have gathered what is no piece, and some do not stop.
        let total = u32::try_from(ask.lease % 5 * 20).unwrap_or(0);
        let answer = Answer {
            file: FileId(ask.lease % 16),
            total,
            part: vec![u8::from(ask.lease.is_multiple_of(3)); 20],
        };
        Box::pin(async move { ask.lease.is_multiple_of(2).then_some(answer) })
    }
    fn sleep_until(&self, until: Instant) -> Wait<'_, ()> {
        let nanos = until.since(Instant::from_nanos(0)).as_nanos();
        let nanos = u64::try_from(nanos).expect("some seconds");
        Box::pin(async move { self.0.store(nanos, Ordering::Relaxed) })
    }
}

struct Buffer<'a> {
    sent: &'a [u8],
    limit: usize,
    end: usize,
}

impl Bulk for Buffer<'_> {
    fn len(&self) -> usize {
        self.sent.len()
    }
    fn read(&mut self, offset: usize, into: &mut [u8]) -> usize {
        let from = self.sent.get(offset..).unwrap_or_default();
        let len = from.len().min(into.len());
        into[..len].copy_from_slice(&from[..len]);
        len
    }
    fn limit(&self) -> usize {
        self.limit
    }
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(
            offset + bytes.len() <= self.limit,
            "bulk beyond what was lent"
        );
        self.end = self.end.max(offset + bytes.len());
    }
}

fn path<'a>(input: &mut Input<'a>) -> Path<'a> {
    const KNOWN: [&[u8]; 6] = [b"/", b"/a", b"/a/hello", b"/link", b"/long", b"/tree"];
    let which = usize::from(input.u8() % 8);
    let bytes = KNOWN.get(which).copied().unwrap_or_else(|| input.string());
    Path::new(bytes).unwrap_or_else(|_| Path::new(b"/").expect("a path"))
}

/// Root half of the time: users reach little.
fn caller<'a>(input: &mut Input<'a>) -> Caller<'a> {
    if input.bool() {
        return Caller::ROOT;
    }
    let (numbers, _) = input.string().as_chunks();
    Caller {
        user: input.u8().into(),
        group: input.u8().into(),
        privileges: Privileges::from_bits_truncate(input.u8()),
        groups: Groups::new(numbers).unwrap_or(Caller::ROOT.groups),
    }
}

fn request<'a>(input: &mut Input<'a>) -> StorageRequest<'a> {
    let file = FileId(u64::from(input.u8() % 16));
    match input.u8() % 33 {
        0 | 7 => StorageRequest::Open(OpenRequest {
            caller: caller(input),
            path: path(input),
            flags: OpenFlags::from_bits_truncate(input.u16()),
            mode: input.u16().into(),
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
            caller: caller(input),
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
        5 => StorageRequest::Readlink(PathRequest {
            caller: caller(input),
            path: path(input),
        }),
        6 => StorageRequest::Close(FileRequest { file }),
        30 => StorageRequest::Lease(FileRequest { file }),
        31 => StorageRequest::WriteLease(FileRequest { file }),
        32 => StorageRequest::Flush(FlushRequest {
            file,
            lease: input.u8().into(),
            age_ms: input.u32(),
            durable: input.bool(),
        }),
        24..30 => attribute(input.u8(), file, input),
        what => change(what, file, input),
    }
}

fn offset(input: &mut Input<'_>) -> u64 {
    if input.bool() {
        input.u64()
    } else {
        input.u16().into()
    }
}

/// A request that changes something.
fn change<'a>(what: u8, file: FileId, input: &mut Input<'a>) -> StorageRequest<'a> {
    match what {
        8 | 9 => StorageRequest::Write(WriteRequest {
            file,
            offset: offset(input),
            append: input.bool(),
        }),
        10 => StorageRequest::Truncate(TruncateRequest {
            file,
            size: offset(input),
        }),
        11 => StorageRequest::Allocate(AllocateRequest {
            file,
            flags: AllocateFlags::from_bits_truncate(input.u8()),
            offset: input.u16().into(),
            // The disk is full long before.
            len: u64::from(input.u32()),
        }),
        12 => StorageRequest::Fsync(FileRequest { file }),
        13 => StorageRequest::Make(MakeRequest {
            caller: caller(input),
            path: path(input),
            mode: input.u16().into(),
            device: input.u64(),
        }),
        14 => StorageRequest::Symlink(PathRequest {
            caller: caller(input),
            path: path(input),
        }),
        15 => StorageRequest::Link(LinkRequest {
            caller: caller(input),
            path: path(input),
            follow: input.bool(),
        }),
        16 | 17 => StorageRequest::Rename(RenameRequest {
            caller: caller(input),
            path: path(input),
            flags: RenameFlags::from_bits_truncate(input.u8()),
        }),
        18 | 19 => StorageRequest::Remove(RemoveRequest {
            caller: caller(input),
            path: path(input),
            directory: input.bool(),
        }),
        20 => StorageRequest::SetPath(SetPathRequest {
            caller: caller(input),
            path: path(input),
            follow: input.bool(),
            set: attributes(input),
        }),
        21 => {
            let (caller, set) = (caller(input), attributes(input));
            StorageRequest::SetFile(SetFileRequest { caller, file, set })
        }
        22 => StorageRequest::LinkFile(LinkFileRequest {
            caller: caller(input),
            file,
        }),
        _ => StorageRequest::Sync(()),
    }
}

/// A request about an extended attribute.
fn attribute<'a>(what: u8, file: FileId, input: &mut Input<'a>) -> StorageRequest<'a> {
    const KNOWN: [&[u8]; 4] = [b"user.a", b"user.bc", b"trusted.a", b"security.a"];
    let caller = caller(input);
    let which = usize::from(input.u8() % 6);
    let name = KNOWN.get(which).copied().unwrap_or_else(|| input.string());
    let name = XattrName::new(name).unwrap_or_else(|_| XattrName::new(KNOWN[0]).expect("a name"));
    match what % 4 {
        0 => StorageRequest::GetXattr(XattrRequest { caller, file, name }),
        1 => StorageRequest::ListXattr(ListXattrRequest { caller, file }),
        2 => StorageRequest::RemoveXattr(XattrRequest { caller, file, name }),
        _ => StorageRequest::SetXattr(SetXattrRequest {
            caller,
            file,
            flags: XattrFlags::from_bits_truncate(input.u8()),
            name,
        }),
    }
}

fn attributes(input: &mut Input<'_>) -> Attributes {
    let time = FileTime {
        seconds: input.u64().cast_signed(),
        nanos: input.u32(),
    };
    Attributes {
        which: AttributeFlags::from_bits_truncate(input.u8()),
        mode: input.u32(),
        uid: input.u32(),
        gid: input.u32(),
        accessed: time,
        modified: time,
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let disk = Disk::new(image::build(), MOST_READ);
    let options = Options {
        read_only: false,
        now: Time::default(),
    };
    let files = Ext4::mount(disk, options)
        .now_or_never()
        .expect("a disk in memory")
        .expect("a sound one");
    let server = Server::new(files, Time::default).with_leases(Box::new(Fakes::default()));
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
                let (Kind(kind), len) = request(&mut input)
                    .encode(&mut raw)
                    .expect("a request fits");
                (kind, len)
            }
        };
        let mut reply = [0; MAX_MESSAGE];
        let limit = usize::from(input.u16()) << 4;
        let sent = input.string();
        let mut bulk = Buffer {
            sent,
            limit,
            end: 0,
        };
        let answered = server
            .handle(from, kind, &raw[..len], &mut reply, &mut bulk)
            .now_or_never();
        let reply = &reply[..answered.expect("a disk in memory never waits")];
        assert!(reply.len() >= 4, "an answer has an errno");
        match Kind(kind) {
            Open::KIND => assert!(decode_reply::<Open>(reply).is_ok(), "an answer is one"),
            messages::storage::Read::KIND => {
                let read =
                    decode_reply::<messages::storage::Read>(reply).expect("an answer is one");
                assert!(read.is_err() || read == Ok(u32::try_from(bulk.end).unwrap_or(u32::MAX)));
            }
            messages::storage::Getdents::KIND => {
                assert!(
                    decode_reply::<messages::storage::Getdents>(reply).is_ok(),
                    "an answer is one"
                );
            }
            Write::KIND => assert!(decode_reply::<Write>(reply).is_ok(), "an answer is one"),
            Close::KIND => assert!(decode_reply::<Close>(reply).is_ok(), "an answer is one"),
            _ => {}
        }
    }
    for peer in [PeerKey(0), PeerKey(1)] {
        server.peer_lost(peer);
    }
    assert_eq!(server.open_files(), 0, "nothing stays open");
    let committed = server.commit().now_or_never();
    committed
        .expect("a disk in memory")
        .expect("a sound file system");
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let step = |file: u8, what: u8, rest: &[u8]| {
        [&[0, 2, file, what][..], rest, &[0, 1], &[2, b'/', b'x']].concat()
    };
    // The first byte asks as root.
    let open = |path: u8| step(0, 0, &[1, path, 0x80, 0, 0, 0]);
    let make = |path: u8| step(0, 0, &[1, path, 9, 0, 0xa4, 1]);
    let read = |file: u8| step(file, 1, &[0, 0, 0, 0, 8, 0, 0]);
    let list = |file: u8| step(file, 4, &[0, 0, 0, 0, 4, 0, 0]);
    vec![
        [open(2), read(1), step(1, 3, &[]), step(1, 6, &[])].concat(),
        [open(0), list(1), open(5), read(2)].concat(),
        [
            make(2),
            step(1, 8, &[0, 0, 0, 0]),
            step(1, 10, &[0, 9, 0]),
            step(1, 12, &[]),
        ]
        .concat(),
        // Sets an attribute, reads it, lists all, removes it.
        [
            make(2),
            step(1, 24, &[3, 1, 0, 0]),
            step(1, 24, &[0, 1, 0]),
            step(1, 24, &[1, 1, 0]),
            step(1, 24, &[2, 1, 0]),
        ]
        .concat(),
        [
            step(0, 15, &[1, 2, 0]),
            step(0, 16, &[1, 1, 0]),
            step(0, 18, &[1, 3, 0]),
            step(0, 23, &[]),
        ]
        .concat(),
        [
            step(0, 5, &[1, 3]),
            step(0, 5, &[1, 4]),
            step(0, 2, &[1, 4, 1]),
        ]
        .concat(),
        vec![0, 1, 16, 4, 2, 0, b'/', b'a', 0, 0, 0],
    ]
}
