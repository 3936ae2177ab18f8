//! Everything that is encoded decodes to itself; no bytes make a decoder panic.

use proptest::prelude::*;
use verbs::{RemoteAddr, Rkey};

use crate::memory::*;
use crate::storage::*;
use crate::*;

fn chunks() -> impl Strategy<Value = Chunks> {
    let chunk = (any::<u64>(), any::<u32>()).prop_map(|(addr, rkey)| RemoteAddr {
        addr,
        rkey: Rkey(rkey),
    });
    proptest::collection::vec(chunk, 0..=MAX_CHUNKS).prop_map(|chunks| chunks.into_iter().collect())
}

fn memory_request() -> impl Strategy<Value = MemoryRequest> {
    let addresses = proptest::collection::vec(any::<u64>(), 0..=MAX_CHUNKS);
    prop_oneof![
        any::<u32>().prop_map(|chunks| MemoryRequest::Reserve(ReserveRequest { chunks })),
        (any::<u32>(), any::<u16>())
            .prop_map(|(pid, count)| MemoryRequest::Lend(LendRequest { pid, count })),
        addresses.prop_map(|addresses| {
            let chunks = addresses.into_iter().collect();
            MemoryRequest::Return(ReturnRequest { chunks })
        }),
    ]
}

/// Checks that the bytes which decode as a reply of call `C` encode to themselves.
fn reply_keeps_its_bytes<C: Call>(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(reply) = decode_reply::<C>(bytes) {
        let mut again = [0; MAX_MESSAGE];
        let len = encode_reply::<C>(&reply, &mut again).unwrap();
        prop_assert_eq!(&again[..len], bytes);
    }
    Ok(())
}

fn replies_keep_their_bytes(bytes: &[u8]) -> Result<(), TestCaseError> {
    reply_keeps_its_bytes::<Reserve>(bytes)?;
    reply_keeps_its_bytes::<Lend>(bytes)?;
    reply_keeps_its_bytes::<Return>(bytes)?;
    reply_keeps_its_bytes::<Open>(bytes)?;
    reply_keeps_its_bytes::<Read>(bytes)?;
    reply_keeps_its_bytes::<StatPath>(bytes)?;
    reply_keeps_its_bytes::<StatFile>(bytes)?;
    reply_keeps_its_bytes::<Getdents>(bytes)?;
    reply_keeps_its_bytes::<Readlink>(bytes)?;
    reply_keeps_its_bytes::<Write>(bytes)?;
    reply_keeps_its_bytes::<StatFs>(bytes)?;
    reply_keeps_its_bytes::<Close>(bytes)
}

fn time() -> impl Strategy<Value = FileTime> {
    (any::<i64>(), any::<u32>()).prop_map(|(seconds, nanos)| FileTime { seconds, nanos })
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let ids = (0u8..64, any::<u32>(), any::<u32>(), any::<u32>());
    (ids, time(), time()).prop_map(|((which, mode, uid, gid), accessed, modified)| Attributes {
        which: AttributeFlags::from_bits_truncate(which),
        mode,
        uid,
        gid,
        accessed,
        modified,
    })
}

/// Requests on open files, and on the whole file system.
fn file_request() -> impl Strategy<Value = StorageRequest<'static>> {
    let file = any::<u64>().prop_map(FileId);
    let numbers = (any::<u64>(), any::<u64>(), 0u8..4);
    (file, numbers, attributes(), 0u8..13).prop_map(|(file, (offset, len, flags), set, which)| {
        let (caller, attribute) = (Caller::ROOT, XattrName::new(b"user.x").unwrap());
        match which {
            0 => StorageRequest::Write(WriteRequest {
                file,
                offset,
                append: flags & 1 != 0,
            }),
            1 => StorageRequest::Truncate(TruncateRequest { file, size: len }),
            2 => {
                let flags = AllocateFlags::from_bits_truncate(flags);
                StorageRequest::Allocate(AllocateRequest {
                    file,
                    flags,
                    offset,
                    len,
                })
            }
            3 => StorageRequest::Fsync(FileRequest { file }),
            4 => StorageRequest::Sync(()),
            5 => StorageRequest::SetFile(SetFileRequest {
                caller: Caller::ROOT,
                file,
                set,
            }),
            6 => StorageRequest::StatFs(()),
            7 => StorageRequest::LinkFile(LinkFileRequest {
                caller: Caller::ROOT,
                file,
            }),
            8 => StorageRequest::GetXattr(XattrRequest {
                caller,
                file,
                name: attribute,
            }),
            9 => StorageRequest::ListXattr(ListXattrRequest { caller, file }),
            10 => StorageRequest::RemoveXattr(XattrRequest {
                caller,
                file,
                name: attribute,
            }),
            11 => {
                let flags = XattrFlags::from_bits_truncate(flags);
                StorageRequest::SetXattr(SetXattrRequest {
                    caller,
                    file,
                    flags,
                    name: attribute,
                })
            }
            _ => StorageRequest::Close(FileRequest { file }),
        }
    })
}

/// Bytes to put into a message, and where.
fn damage() -> impl Strategy<Value = Vec<(usize, u8)>> {
    proptest::collection::vec((0usize..48, any::<u8>()), 0..4)
}

fn spoil(bytes: &mut [u8], damage: &[(usize, u8)]) {
    for &(at, value) in damage {
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
    }
}

proptest! {
    #[test]
    fn memory_requests_round_trip(request in memory_request()) {
        let mut bytes = [0; MAX_MESSAGE];
        let (kind, len) = request.encode(&mut bytes).unwrap();
        prop_assert_eq!(MemoryRequest::decode(kind, &bytes[..len]).unwrap(), request.clone());
        prop_assert!(kind.name().is_some());
        // One byte less or more is no message.
        prop_assert!(MemoryRequest::decode(kind, &bytes[..len - 1]).is_err());
        prop_assert!(MemoryRequest::decode(kind, &bytes[..len + 1]).is_err());
    }

    #[test]
    fn paths_round_trip(
        path in proptest::collection::vec(1u8.., 0..PATH_MAX),
        flags: u16,
        (mode, device, follow) in any::<(u32, u64, bool)>(),
        set in attributes(),
        (user, group, privileges) in any::<(u32, u32, u8)>(),
        groups in proptest::collection::vec(any::<[u8; 4]>(), 0..=MAX_GROUPS),
    ) {
        let path = Path::new(&path).unwrap();
        let privileges = Privileges::from_bits_truncate(privileges);
        let groups = Groups::new(&groups).unwrap();
        let caller = Caller { user, group, privileges, groups };
        let rename = RenameFlags::from_bits_truncate(flags.to_le_bytes()[0]);
        let flags = OpenFlags::from_bits_truncate(flags);
        for request in [
            StorageRequest::Open(OpenRequest { caller, path, flags, mode }),
            StorageRequest::StatPath(StatRequest { caller, path, follow }),
            StorageRequest::Readlink(PathRequest { caller, path }),
            StorageRequest::Make(MakeRequest { caller, path, mode, device }),
            StorageRequest::Symlink(PathRequest { caller, path }),
            StorageRequest::Link(LinkRequest { caller, path, follow }),
            StorageRequest::Rename(RenameRequest { caller, path, flags: rename }),
            StorageRequest::Remove(RemoveRequest { caller, path, directory: follow }),
            StorageRequest::SetPath(SetPathRequest { caller, path, follow, set }),
        ] {
            let mut bytes = [0; MAX_MESSAGE];
            let (kind, len) = request.encode(&mut bytes).unwrap();
            prop_assert_eq!(StorageRequest::decode(kind, &bytes[..len]).unwrap(), request);
        }
    }

    #[test]
    fn requests_on_files_round_trip(request in file_request(), damage in damage()) {
        let mut bytes = [0; MAX_MESSAGE];
        let (kind, len) = request.encode(&mut bytes).unwrap();
        prop_assert_eq!(StorageRequest::decode(kind, &bytes[..len]).unwrap(), request);
        prop_assert!(kind.name().is_some());
        prop_assert!(StorageRequest::decode(kind, &bytes[..len + 1]).is_err());
        spoil(&mut bytes[..len], &damage);
        let spoilt = bytes;
        if let Ok(request) = StorageRequest::decode(kind, &spoilt[..len]) {
            let mut again = [0; MAX_MESSAGE];
            prop_assert_eq!(request.encode(&mut again).unwrap(), (kind, len));
            prop_assert_eq!(&again[..len], &spoilt[..len]);
        }
    }

    #[test]
    fn lent_chunks_round_trip(chunks in chunks()) {
        let reply = Ok(chunks);
        let mut bytes = [0; MAX_MESSAGE];
        let len = encode_reply::<Lend>(&reply, &mut bytes).unwrap();
        prop_assert_eq!(decode_reply::<Lend>(&bytes[..len]).unwrap(), reply);
    }

    #[test]
    fn errno_round_trips(number in 1i32..4096) {
        let mut bytes = [0; 16];
        let len = encode_reply::<Open>(&Err(Errno(number)), &mut bytes).unwrap();
        prop_assert_eq!(decode_reply::<Open>(&bytes[..len]).unwrap(), Err(Errno(number)));
    }

    #[test]
    fn entries_round_trip(names in proptest::collection::vec(proptest::collection::vec(1u8.., 1..=NAME_MAX), 0..8)) {
        let mut bytes = [0; MAX_MESSAGE];
        let mut writer = Writer::new(&mut bytes);
        for (at, entry) in (1u64..).zip(&names) {
            Entry { inode: at, next: at, kind: 8, name: entry }.put(&mut writer).unwrap();
        }
        let len = writer.len();
        let entries = Entries::take(&mut Reader::new(&bytes[..len])).unwrap();
        let back: Vec<_> = entries.iter().map(|entry| entry.unwrap().name.to_vec()).collect();
        prop_assert_eq!(back, names);
    }

    #[test]
    fn arbitrary_bytes_never_panic(kind in 0u16..46, bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let kind = Kind(kind);
        if let Ok(request) = MemoryRequest::decode(kind, &bytes) {
            let mut again = [0; MAX_MESSAGE];
            let (_, len) = request.encode(&mut again).unwrap();
            prop_assert_eq!(&again[..len], &bytes[..]);
        }
        if let Ok(request) = StorageRequest::decode(kind, &bytes) {
            let mut again = [0; MAX_MESSAGE];
            let (_, len) = request.encode(&mut again).unwrap();
            prop_assert_eq!(&again[..len], &bytes[..]);
        }
        replies_keep_their_bytes(&bytes)?;
        // As a success.
        let mut success = vec![0; 4];
        success.extend_from_slice(&bytes);
        replies_keep_their_bytes(&success)?;
    }

    #[test]
    fn damaged_requests_are_refused_or_say_all_their_bytes(request in memory_request(), damage in damage()) {
        let mut bytes = [0; MAX_MESSAGE];
        let (kind, len) = request.encode(&mut bytes).unwrap();
        spoil(&mut bytes[..len], &damage);
        if let Ok(request) = MemoryRequest::decode(kind, &bytes[..len]) {
            let mut again = [0; MAX_MESSAGE];
            prop_assert_eq!(request.encode(&mut again).unwrap(), (kind, len));
            prop_assert_eq!(&again[..len], &bytes[..len]);
        }
    }

    #[test]
    fn damaged_replies_are_refused_or_say_all_their_bytes(
        chunks in chunks(),
        names in proptest::collection::vec(proptest::collection::vec(1u8.., 1..20), 0..4),
        damage in damage(),
    ) {
        let mut bytes = [0; MAX_MESSAGE];
        let len = encode_reply::<Lend>(&Ok(chunks), &mut bytes).unwrap();
        spoil(&mut bytes[..len], &damage);
        replies_keep_their_bytes(&bytes[..len])?;
        let mut entries = [0; MAX_MESSAGE];
        let mut writer = Writer::new(&mut entries);
        for text in &names {
            Entry { inode: 1, next: 2, kind: 8, name: text }.put(&mut writer).unwrap();
        }
        let len = writer.len();
        let len = encode_reply::<Getdents>(&Ok(Entries(&entries[..len])), &mut bytes).unwrap();
        spoil(&mut bytes[..len], &damage);
        replies_keep_their_bytes(&bytes[..len])?;
    }
}

#[test]
fn the_longest_requests_and_replies_fit_a_message() {
    let mut bytes = [0; MAX_MESSAGE];
    let (path, groups) = ([b'x'; PATH_MAX], [[0xff; 4]; MAX_GROUPS]);
    let caller = Caller {
        groups: Groups::new(&groups).unwrap(),
        ..Caller::ROOT
    };
    let open = OpenRequest {
        caller,
        path: Path::new(&path).unwrap(),
        flags: OpenFlags::all(),
        mode: 0o777,
    };
    assert!(encode_request::<Open>(&open, &mut bytes).is_ok());
    let never = FileTime {
        seconds: -1,
        nanos: 0,
    };
    let set = Attributes {
        which: AttributeFlags::all(),
        mode: 0,
        uid: 0,
        gid: 0,
        accessed: never,
        modified: never,
    };
    let (path, follow) = (open.path, true);
    let set = SetPathRequest {
        caller,
        path,
        follow,
        set,
    };
    assert!(encode_request::<SetPath>(&set, &mut bytes).is_ok());
    let chunks = Chunks::from([RemoteAddr::default(); MAX_CHUNKS]);
    assert!(encode_reply::<Lend>(&Ok(chunks), &mut bytes).is_ok());
    let chunks = heapless::Vec::from([0; MAX_CHUNKS]);
    assert!(encode_request::<Return>(&ReturnRequest { chunks }, &mut bytes).is_ok());
}

#[test]
fn a_list_longer_than_its_bound_is_refused() {
    let len = MAX_CHUNKS + 1;
    let mut bytes = vec![0; 2 + 8 * len];
    bytes[..2].copy_from_slice(&u16::try_from(len).unwrap().to_le_bytes());
    let limit = MAX_CHUNKS;
    assert_eq!(
        MemoryRequest::decode(Return::KIND, &bytes),
        Err(WireError::StringTooLong { len, limit })
    );
}

#[test]
fn names_of_attributes_are_bounded() {
    let long = [b'x'; XATTR_NAME_MAX + 1];
    for bytes in [&b""[..], b"a\0b", &long] {
        assert!(XattrName::new(bytes).is_err(), "{bytes:?}");
    }
    assert!(XattrName::take(&mut Reader::new(&[0])).is_err());
    assert!(XattrName::take(&mut Reader::new(&[2, b'a', 0])).is_err());
    assert!(XattrName::new(&long[1..]).is_ok());
}

#[test]
fn a_path_with_a_zero_or_too_long_is_refused() {
    assert_eq!(
        Path::new(b"a\0b"),
        Err(WireError::BadValue {
            what: "a byte of a path",
            value: 0
        })
    );
    assert!(matches!(
        Path::new(&[b'a'; PATH_MAX + 1]),
        Err(WireError::StringTooLong { .. })
    ));
}

#[test]
fn more_groups_than_a_request_may_name_are_refused() {
    let groups = [[0; 4]; MAX_GROUPS + 1];
    let too_long = WireError::StringTooLong {
        len: MAX_GROUPS + 1,
        limit: MAX_GROUPS,
    };
    assert_eq!(Groups::new(&groups), Err(too_long));
    let count = u8::try_from(groups.len()).unwrap();
    let bytes = [&[count][..], groups.as_flattened()].concat();
    assert_eq!(Groups::take(&mut Reader::new(&bytes)), Err(too_long));
}

#[test]
fn a_caller_has_these_bytes() {
    let mut bytes = [0xff; 64];
    let groups = [7_u32.to_le_bytes(), 0x0102_0304_u32.to_le_bytes()];
    let caller = Caller {
        user: 1000,
        group: 100,
        privileges: Privileges::CHOWN | Privileges::MKNOD,
        groups: Groups::new(&groups).unwrap(),
    };
    let path = Path::new(b"/a").unwrap();
    let len = encode_request::<Readlink>(&PathRequest { caller, path }, &mut bytes).unwrap();
    let expected = [
        &[0xe8, 3, 0, 0, 100, 0, 0, 0, 33, 2, 7, 0, 0, 0, 4, 3, 2, 1][..],
        &[2, 0, b'/', b'a'],
    ];
    assert_eq!(bytes[..len], expected.concat());
    // A privilege that has no name.
    bytes[8] = 128;
    assert!(StorageRequest::decode(Readlink::KIND, &bytes[..len]).is_err());
}

/// Literal bytes of each layout, so that none can change unnoticed.
#[test]
fn memory_messages_have_these_bytes() {
    let mut bytes = [0xff; 64];
    let chunks = 0x0102_0304;
    let len = encode_request::<Reserve>(&ReserveRequest { chunks }, &mut bytes).unwrap();
    assert_eq!(bytes[..len], [4, 3, 2, 1]);
    let request = LendRequest {
        pid: 7,
        count: 0x0201,
    };
    let len = encode_request::<Lend>(&request, &mut bytes).unwrap();
    assert_eq!(bytes[..len], [7, 0, 0, 0, 1, 2]);
    let chunks = [0x40_0000, 0x20_0000].into_iter().collect();
    let len = encode_request::<Return>(&ReturnRequest { chunks }, &mut bytes).unwrap();
    assert_eq!(
        bytes[..len],
        [2, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0]
    );
    let lent = RemoteAddr {
        addr: 0x20_0000,
        rkey: Rkey(5),
    };
    let len = encode_reply::<Lend>(&Ok([lent].into_iter().collect()), &mut bytes).unwrap();
    assert_eq!(
        bytes[..len],
        [0, 0, 0, 0, 1, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 5, 0, 0, 0]
    );
}
