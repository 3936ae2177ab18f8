//! Write leases: what is gathered under them, and who brings it.

use messages::pieces::Piece;

use super::lease::*;
use super::*;

const GATHERS: OpenFlags = BOTH.union(OpenFlags::GATHER);

fn run(pieces: &[(u64, &[u8])]) -> Vec<u8> {
    let mut run = Vec::new();
    for &(offset, bytes) in pieces {
        run.extend(Piece { offset, bytes }.head());
        run.extend(bytes);
    }
    run
}

fn flush(server: &Server<Ram>, of: &Opened, durable: bool, bytes: &[u8]) -> Result<(), Errno> {
    let mut reply;
    let request = FlushRequest {
        file: of.file,
        lease: of.lease,
        age_ms: 2_500,
        durable,
    };
    let mut bulk = Buffer::sent(bytes);
    call!(server, P, Flush, request, &mut bulk, reply).map(drop)
}

fn read_as(server: &Server<Ram>, peer: PeerKey, file: FileId) -> Vec<u8> {
    let mut reply;
    let request = ReadRequest {
        file,
        offset: 0,
        len: 100,
    };
    let mut bulk = Buffer::room(100);
    let got = call!(server, peer, Read, request, &mut bulk, reply).unwrap();
    bulk.got.truncate(usize::try_from(got).unwrap());
    bulk.got
}

#[test]
fn what_is_gathered_comes_in_pieces_and_only_under_the_lease() {
    let (server, fakes, _folder) = leased("flush-pieces");
    fakes.answer(Some(true));
    let file = open_as(&server, P, "/hello", GATHERS);
    assert!(file.writes && file.lease != 0);
    let pieces = run(&[(0, b"H"), (13, b"more\n"), (7, b"W")]);
    assert_eq!(flush(&server, &file, true, &pieces), Ok(()));
    assert_eq!(read_as(&server, P, file.file), b"Hello, World\nmore\n");
    let modified = stat(&server, "/hello", true).unwrap().modified;
    let age = (NOW.seconds - modified.seconds) * 1000 - 2_500;
    assert_eq!((age / 1000, modified.nanos), (0, 623_456_789), "of then");
    let counters = server.counters();
    assert_eq!((counters.handle_flush, counters.handle_fsync), (1, 1));
    // All or nothing.
    let nonsense = [&run(&[(0, b"J")])[..], &[1; 12]].concat();
    assert_eq!(flush(&server, &file, false, &nonsense), Err(Errno::EPROTO));
    let other = Opened {
        lease: file.lease + 1,
        ..file
    };
    assert_eq!(flush(&server, &other, false, &pieces), Err(Errno::ESTALE));
    let reader = open_as(&server, P, "/hello", OpenFlags::READ);
    let reader = Opened {
        lease: file.lease,
        ..reader
    };
    assert_eq!(flush(&server, &reader, false, &pieces), Err(Errno::EBADF));
    assert_eq!(read_as(&server, P, file.file), b"Hello, World\nmore\n");
    assert!(fakes.recalls().is_empty(), "nobody else has it");
}

#[test]
fn another_peer_s_look_brings_what_was_gathered() {
    let (server, fakes, _folder) = leased("flush-looks");
    let file = open_as(&server, Q, "/hello", OpenFlags::READ).file;
    let caller = Caller::ROOT;
    macro_rules! brings {
        ($call:ty, $request:expr, $size:expr) => {{
            fakes.answer(Some(true));
            fakes.gather(None);
            // Q's read lease is in the way of the open's.
            lose(&server, Q, file);
            let mine = open_as(&server, P, "/hello", GATHERS);
            assert!(mine.writes, "{}", <$call>::NAME);
            fakes.recalls();
            let size = stat(&server, "/hello", true).unwrap().size;
            let bytes = [b'x'; 40];
            let pieces: Vec<(u64, &[u8])> = (0..60).map(|n| (size + n * 40, &bytes[..])).collect();
            fakes.gather(Some((mine.file, run(&pieces))));
            let mut reply;
            let mut bulk = Buffer::room(10_000);
            let told = call!(server, Q, $call, $request, &mut bulk, reply).unwrap();
            let told: Option<u64> = $size(told);
            assert!(
                told.is_none_or(|told| told == size + 2400),
                "{}",
                <$call>::NAME
            );
            let recalls: Vec<_> = fakes.recalls().iter().map(|(_, r)| r.from).collect();
            assert_eq!(recalls, [0, 1000, 2000, 3000, 3120], "{}", <$call>::NAME);
            let late = flush(&server, &mine, false, &run(&[(0, b"late")]));
            assert_eq!(late, Err(Errno::ESTALE), "{}", <$call>::NAME);
            fakes.gather(None);
            assert_eq!(stat(&server, "/hello", true).unwrap().size, size + 2400);
        }};
    }
    let place = path("/hello");
    let stat_of = StatRequest {
        caller,
        path: place,
        follow: true,
    };
    let open = OpenRequest {
        caller,
        path: place,
        flags: OpenFlags::READ,
        mode: 0,
    };
    brings!(StatPath, stat_of, |stat: Stat| Some(stat.size));
    brings!(StatFile, FileRequest { file }, |stat: Stat| Some(stat.size));
    brings!(Lease, FileRequest { file }, |l: Leased| Some(l.stat.size));
    brings!(Open, open, |opened: Opened| Some(opened.stat.size));
    let read = ReadRequest {
        file,
        offset: 0,
        len: 10_000,
    };
    brings!(Read, read, |_| None);
    brings!(Fsync, FileRequest { file }, |()| None);
    assert!(read_as(&server, Q, file).starts_with(b"hello, world"));
}

/// Has a peer lose its lease of a file, by a change of the other one.
fn lose(server: &Server<Ram>, peer: PeerKey, file: FileId) {
    let stat = lease_of(server, peer, file).stat;
    let mine = open_as(server, P, "/hello", OpenFlags::WRITE);
    let mut reply;
    let request = TruncateRequest {
        file: mine.file,
        size: stat.size,
    };
    call!(server, P, Truncate, request, &mut Buffer::default(), reply).unwrap();
}

#[test]
fn what_a_recall_brought_and_could_not_be_written_is_told_by_the_next_flush() {
    let (server, fakes, _folder) = leased("flush-fails");
    fakes.answer(Some(true));
    let mine = open_as(&server, P, "/hello", GATHERS);
    let far = run(&[(1 << 60, b"far")]);
    fakes.gather(Some((mine.file, far)));
    let size = open_as(&server, Q, "/hello", OpenFlags::READ).stat.size;
    assert_eq!(size, 13);
    assert_eq!(flush(&server, &mine, false, b""), Err(Errno::EFBIG));
    assert_eq!(flush(&server, &mine, false, b""), Ok(()), "told once");
}

#[test]
fn a_peer_whose_answer_to_a_recall_came_too_late_is_told_so() {
    let (server, fakes, _folder) = leased("flush-late");
    let mine = open_as(&server, P, "/hello", GATHERS);
    let (mut reply, mut raw) = (vec![0; MAX_MESSAGE], [0; MAX_MESSAGE]);
    let request = OpenRequest {
        caller: Caller::ROOT,
        path: path("/hello"),
        flags: OpenFlags::READ,
        mode: 0,
    };
    let mut bulk = Buffer::default();
    let mut open = pin!(begin!(server, Open, request, &mut bulk, reply, raw));
    assert!(!polled(&mut open), "the recall is not answered");
    fakes.pass(leases::TERM + leases::MARGIN);
    assert!(polled(&mut open));
    // The peer has handed its writes over, and asks what became of them.
    assert_eq!(flush(&server, &mine, false, b""), Err(Errno::ESTALE));
}

#[test]
fn only_one_of_two_that_wait_takes_what_was_gathered() {
    let (server, fakes, _folder) = leased("flush-two");
    let mine = open_as(&server, P, "/hello", GATHERS);
    fakes.answer(None);
    fakes.gather(Some((mine.file, run(&[(0, b"P's")]))));
    let request = OpenRequest {
        caller: Caller::ROOT,
        path: path("/hello"),
        flags: BOTH,
        mode: 0,
    };
    let (mut reply, mut raw) = (vec![0; MAX_MESSAGE], [0; MAX_MESSAGE]);
    let (mut other_reply, mut other_raw) = (vec![0; MAX_MESSAGE], [0; MAX_MESSAGE]);
    let (mut bulk, mut other_bulk) = (Buffer::default(), Buffer::default());
    let mut first = pin!(begin!(server, Open, request, &mut bulk, reply, raw));
    let bulk = &mut other_bulk;
    let mut second = pin!(begin!(server, Open, request, bulk, other_reply, other_raw));
    assert!(!polled(&mut first) && !polled(&mut second));
    fakes.answer(Some(true));
    assert!(polled(&mut first));
    // What the first writes now stays.
    let file = open_as(&server, Q, "/hello", BOTH).file;
    let write = WriteRequest {
        file,
        offset: 0,
        append: false,
    };
    let mut answer;
    let mut sent = Buffer::sent(b"Q's");
    call!(server, Q, Write, write, &mut sent, answer).unwrap();
    assert!(polled(&mut second));
    assert_eq!(&read_as(&server, Q, file)[..4], b"Q'sl");
    let asked: Vec<_> = fakes.recalls().iter().map(|(_, r)| r.from).collect();
    assert_eq!(asked, [0, 15]);
}

#[test]
fn nobody_gathers_for_a_disk_that_is_nearly_full_or_a_file_that_others_use() {
    let (server, fakes, _folder) = leased("flush-full");
    fakes.answer(Some(true));
    open_as(&server, Q, "/hello", OpenFlags::READ);
    let mine = open_as(&server, P, "/hello", GATHERS);
    assert!(!mine.writes && mine.lease != 0, "a read lease, as Q has");
    let big = open_as(&server, P, "/big", GATHERS);
    assert!(big.writes);
    let mut reply;
    let request = AllocateRequest {
        file: big.file,
        flags: AllocateFlags::empty(),
        offset: 0,
        len: 8 << 20,
    };
    call!(server, P, Allocate, request, &mut Buffer::default(), reply).unwrap();
    let many = open_as(&server, P, "/many/file-number-0001", GATHERS);
    assert!(!many.writes);
    let request = FileRequest { file: many.file };
    let mut reply;
    let bulk = &mut Buffer::default();
    let leased = call!(server, P, WriteLease, request, bulk, reply).unwrap();
    assert_eq!(leased.lease, 0);
}

/// Appends to a file until the disk is full; returns the bytes.
fn fill(server: &Server<Ram>, peer: PeerKey, file: FileId) -> u64 {
    let mut all = 0;
    loop {
        let write = WriteRequest {
            file,
            offset: 0,
            append: true,
        };
        let mut reply;
        let mut sent = Buffer::sent(&[7; 60_000]);
        match call!(server, peer, Write, write, &mut sent, reply) {
            Ok(written) => all += u64::from(written.len),
            Err(error) => {
                assert_eq!(error, Errno::ENOSPC);
                return all;
            }
        }
    }
}

#[test]
fn what_is_gathered_under_a_promise_fits_a_disk_that_others_fill() {
    let (server, fakes, _folder) = leased("flush-promise");
    // The holder does not answer, and so keeps its lease and its blocks.
    fakes.answer(Some(false));
    let mine = open_as(&server, P, "/hello", GATHERS);
    assert!(mine.blocks >= 16);
    let other = open_as(&server, Q, "/big", BOTH);
    fill(&server, Q, other.file);
    assert!(server.files.promised() > u64::from(mine.blocks));
    // Scattered, so that each piece takes a block.
    let pieces: Vec<(u64, &[u8])> = (1..u64::from(mine.blocks))
        .map(|n| (n * 3 * 4096, &b"mine"[..]))
        .collect();
    assert_eq!(flush(&server, &mine, true, &run(&pieces)), Ok(()));
    let size = u64::from(mine.blocks - 1) * 3 * 4096 + 4;
    assert_eq!(stat(&server, "/hello", true).unwrap().size, size);
    // A peer that answers gives its blocks to others.
    fakes.answer(Some(true));
    assert!(fill(&server, Q, other.file) > 0);
    assert!(fakes.recalls().iter().any(|(peer, _)| *peer == P));
    assert_eq!(server.files.promised(), 0);
    let mut reply;
    let request = FileRequest { file: mine.file };
    let bulk = &mut Buffer::default();
    let leased = call!(server, P, WriteLease, request, bulk, reply).unwrap();
    assert_eq!((leased.lease, leased.blocks), (0, 0), "written through now");
}

#[test]
fn a_promise_ends_with_the_last_open_file_the_lease_or_the_peer() {
    let (server, fakes, _folder) = leased("flush-ends");
    fakes.answer(Some(true));
    let close = |file| {
        let mut reply;
        let request = FileRequest { file };
        call!(server, P, Close, request, &mut Buffer::default(), reply).unwrap();
    };
    let files = [GATHERS; 2].map(|flags| open_as(&server, P, "/hello", flags));
    close(files[0].file);
    assert!(server.files.promised() > 0);
    close(files[1].file);
    assert_eq!(server.files.promised(), 0, "closed");
    open_as(&server, P, "/hello", GATHERS);
    assert!(server.files.promised() > 0);
    open_as(&server, Q, "/hello", OpenFlags::READ);
    assert_eq!(server.files.promised(), 0, "recalled");
    open_as(&server, P, "/big", GATHERS);
    assert!(server.files.promised() > 0);
    server.peer_lost(P);
    server.commit().now_or_never().unwrap().unwrap();
    assert_eq!(server.files.promised(), 0, "lost");
}
