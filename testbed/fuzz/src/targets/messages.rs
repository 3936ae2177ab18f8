//! messages: each request and reply. A parsed one must be encoded to the same bytes.

use messages::memory::{Capacity, Lend, MemoryRequest, Reserve, Return};
use messages::recall::{ProcessorRequest, Recall};
use messages::storage::{
    Allocate, Close, Flush, Fsync, GetXattr, Getdents, Lease, Link, LinkFile, ListXattr, Make,
    Open, Read, Readlink, Remove, RemoveXattr, Rename, SetFile, SetPath, SetXattr, StatFile,
    StatFs, StatPath, StorageRequest, Symlink, Sync, Truncate, Write, WriteLease,
};
use messages::{Call, Kind, MAX_MESSAGE, decode_reply, encode_reply};

use crate::input::Input;

/// The reply of one call.
macro_rules! reply {
    ($call:ty, $bytes:expr) => {
        if let Ok(reply) = decode_reply::<$call>($bytes) {
            let mut again = [0; MAX_MESSAGE];
            let len = encode_reply::<$call>(&reply, &mut again).expect("it was as long before");
            assert_eq!(&again[..len], $bytes, "a reply of {}", <$call>::NAME);
        }
    };
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let kind = Kind(u16::from(input.u8()));
    let bytes = input.rest();
    let mut again = [0; MAX_MESSAGE];
    if let Ok(request) = MemoryRequest::decode(kind, bytes) {
        let encoded = request.encode(&mut again).expect("it was as long before");
        assert_eq!((encoded.0, &again[..encoded.1]), (kind, bytes));
    }
    if let Ok(request) = StorageRequest::decode(kind, bytes) {
        let encoded = request.encode(&mut again).expect("it was as long before");
        assert_eq!((encoded.0, &again[..encoded.1]), (kind, bytes));
    }
    if let Ok(request) = ProcessorRequest::decode(kind, bytes) {
        let encoded = request.encode(&mut again).expect("it was as long before");
        assert_eq!((encoded.0, &again[..encoded.1]), (kind, bytes));
    }
    match kind {
        Reserve::KIND => reply!(Reserve, bytes),
        Lend::KIND => reply!(Lend, bytes),
        Return::KIND => reply!(Return, bytes),
        Capacity::KIND => reply!(Capacity, bytes),
        Open::KIND => reply!(Open, bytes),
        Read::KIND => reply!(Read, bytes),
        StatPath::KIND => reply!(StatPath, bytes),
        StatFile::KIND => reply!(StatFile, bytes),
        Getdents::KIND => reply!(Getdents, bytes),
        Readlink::KIND => reply!(Readlink, bytes),
        Close::KIND => reply!(Close, bytes),
        Write::KIND => reply!(Write, bytes),
        Truncate::KIND => reply!(Truncate, bytes),
        Allocate::KIND => reply!(Allocate, bytes),
        Fsync::KIND => reply!(Fsync, bytes),
        Sync::KIND => reply!(Sync, bytes),
        Make::KIND => reply!(Make, bytes),
        Symlink::KIND => reply!(Symlink, bytes),
        Link::KIND => reply!(Link, bytes),
        LinkFile::KIND => reply!(LinkFile, bytes),
        Rename::KIND => reply!(Rename, bytes),
        Remove::KIND => reply!(Remove, bytes),
        SetPath::KIND => reply!(SetPath, bytes),
        SetFile::KIND => reply!(SetFile, bytes),
        StatFs::KIND => reply!(StatFs, bytes),
        GetXattr::KIND => reply!(GetXattr, bytes),
        ListXattr::KIND => reply!(ListXattr, bytes),
        SetXattr::KIND => reply!(SetXattr, bytes),
        RemoveXattr::KIND => reply!(RemoveXattr, bytes),
        Lease::KIND => reply!(Lease, bytes),
        WriteLease::KIND => reply!(WriteLease, bytes),
        Flush::KIND => reply!(Flush, bytes),
        Recall::KIND => reply!(Recall, bytes),
        other => assert_eq!(other.name(), None, "a call that is left out here"),
    }
}

/// Bytes of a caller without groups: user, group, privileges, the count of groups.
const ROOT: usize = 10;

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // Every call with a body of zeroes of its request's length, and some that mean more.
    let mut seeds: Vec<_> = [
        (1, 4),
        (2, 6),
        (3, 2),
        (4, 0),
        (17, 20),
        (19, 8),
        (20, 20),
        (22, 8),
        (23, 17),
        (24, 16),
        (25, 25),
        (34, ROOT + 45),
        (36, ROOT + 8),
        (38, ROOT + 8),
        (41, 8),
        (42, 16),
    ]
    .map(|(kind, len)| [vec![kind], vec![0; len]].concat())
    .into();
    let by_root = |kind, rest: &[u8]| [&[kind][..], &[0; ROOT], rest].concat();
    seeds.push(by_root(16, b"\x05\0/a/bc\x07\0\xa4\x01\0\0"));
    seeds.push(by_root(18, b"\x01\0/\x01"));
    seeds.push(by_root(31, b"\x02\0/a\x01"));
    let name = [&[0; 8][..], b"\x06user.a"].concat();
    seeds.push(by_root(37, &name));
    seeds.push(by_root(40, &name));
    seeds.push(by_root(39, &[&[0; 8][..], b"\x01\x06user.a"].concat()));
    seeds.push(b"\x15\0\0\0\0\x04\0/tmp".to_vec());
    let entry = [&[0; 4][..], &[7; 8], &[9; 8], &[8, 3], b"abc"].concat();
    seeds.push([vec![20], entry].concat());
    let lent = [&[2, 0, 0, 0, 0, 1, 0][..], &[5; 12]].concat();
    seeds.push(lent);
    let given = [&[3, 2, 0][..], &[7; 16]].concat();
    seeds.push(given);
    seeds
}
