//! Leases: who gets one, and what waits for its return.

pub(super) use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use hal::{Duration, Instant};
use leases::{MARGIN, TERM};
use messages::recall::RecallRequest;

use super::*;
use crate::lease::{Answer, Holders, Wait};

pub(super) const Q: PeerKey = PeerKey(1);

/// Peers whose answers the test gives, and a clock that it sets.
#[derive(Default)]
struct Bed {
    now: AtomicU64,
    /// Recalls, and whether each is answered.
    recalls: Mutex<Vec<(PeerKey, RecallRequest)>>,
    answers: Mutex<Option<bool>>,
    /// Pieces that a holder gives with its answer.
    gathered: Mutex<Option<(FileId, Vec<u8>)>>,
}

#[derive(Clone, Default)]
pub(super) struct Fakes(Arc<Bed>);

impl Fakes {
    pub(super) fn recalls(&self) -> Vec<(PeerKey, RecallRequest)> {
        std::mem::take(&mut self.0.recalls.lock().unwrap())
    }
    pub(super) fn answer(&self, answer: Option<bool>) {
        *self.0.answers.lock().unwrap() = answer;
    }
    /// Returns a part of what was gathered, 1,000 bytes at most.
    fn part(&self, from: u32) -> Answer {
        let gathered = self.0.gathered.lock().unwrap();
        let (file, bytes) = gathered.clone().unwrap_or((FileId(0), Vec::new()));
        let rest = &bytes[usize::try_from(from).unwrap()..];
        Answer {
            file,
            total: u32::try_from(bytes.len()).unwrap(),
            part: rest[..rest.len().min(1000)].to_vec(),
        }
    }
    pub(super) fn gather(&self, gathered: Option<(FileId, Vec<u8>)>) {
        *self.0.gathered.lock().unwrap() = gathered;
    }
    pub(super) fn pass(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap();
        self.0.now.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl Holders for Fakes {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.now.load(Ordering::Relaxed))
    }
    fn recall(&self, peer: PeerKey, lease: RecallRequest) -> Wait<'_, Option<Answer>> {
        self.0.recalls.lock().unwrap().push((peer, lease));
        Box::pin(std::future::poll_fn(move |_| {
            match *self.0.answers.lock().unwrap() {
                Some(true) => Poll::Ready(Some(self.part(lease.from))),
                Some(false) => Poll::Ready(None),
                None => Poll::Pending,
            }
        }))
    }
    fn sleep_until(&self, until: Instant) -> Wait<'_, ()> {
        Box::pin(std::future::poll_fn(move |_| {
            if self.now() >= until {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }))
    }
}

pub(super) fn leased(name: &str) -> (Server<Ram>, Fakes, Folder) {
    let folder = folder(name);
    let disk = Ram(Arc::new(Mutex::new(image(&folder, 4096))));
    let fakes = Fakes::default();
    let server = mount(disk, false).unwrap();
    (server.with_leases(Box::new(fakes.clone())), fakes, folder)
}

pub(super) fn open_as(server: &Server<Ram>, peer: PeerKey, name: &str, flags: OpenFlags) -> Opened {
    let mut reply;
    let request = OpenRequest {
        caller: Caller::ROOT,
        path: path(name),
        flags,
        mode: 0o644,
    };
    call!(server, peer, Open, request, &mut Buffer::default(), reply).unwrap()
}

pub(super) fn lease_of(server: &Server<Ram>, peer: PeerKey, file: FileId) -> Leased {
    let mut reply;
    let request = FileRequest { file };
    call!(server, peer, Lease, request, &mut Buffer::default(), reply).unwrap()
}

/// A change of peer Q, which is polled step by step.
pub(super) fn polled<'a>(change: &mut Pin<&mut (impl Future<Output = usize> + 'a)>) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    change.as_mut().poll(&mut context).is_ready()
}

/// Begins a request of Q; evaluates to a pinned future.
macro_rules! begin {
    ($server:expr, $call:ty, $request:expr, $bulk:expr, $reply:ident, $raw:ident) => {{
        let len = encode_request::<$call>(&$request, &mut $raw).unwrap();
        $server.handle(Q, <$call>::KIND.0, &$raw[..len], &mut $reply, $bulk)
    }};
}
pub(super) use begin;

pub(super) const BOTH: OpenFlags = OpenFlags::READ.union(OpenFlags::WRITE);

#[test]
fn an_open_file_is_leased_and_a_folder_or_a_mere_place_is_not() {
    let (server, _, _folder) = leased("lease-open");
    let first = open_as(&server, P, "/hello", OpenFlags::READ);
    assert_ne!(first.lease, 0);
    let other = open_as(&server, Q, "/hello", OpenFlags::READ);
    assert!(other.lease > first.lease, "many read at once");
    assert_eq!(lease_of(&server, P, first.file).lease, first.lease);
    assert_eq!(lease_of(&server, P, first.file).stat.size, 13);
    assert_eq!(open_as(&server, P, "/a", OpenFlags::READ).lease, 0);
    assert_eq!(open_as(&server, P, "/hello", OpenFlags::empty()).lease, 0);
}

#[test]
fn a_write_of_another_peer_waits_for_the_return() {
    let (server, fakes, _folder) = leased("lease-write");
    let held = open_as(&server, P, "/hello", OpenFlags::READ);
    let file = open_as(&server, Q, "/hello", BOTH).file;
    let (mut reply, mut raw) = (vec![0; MAX_MESSAGE], [0; MAX_MESSAGE]);
    let request = WriteRequest {
        file,
        offset: 0,
        append: false,
    };
    let mut bulk = Buffer::sent(b"HELLO");
    {
        let mut write = pin!(begin!(server, Write, request, &mut bulk, reply, raw));
        assert!(!polled(&mut write));
        let inode = held.stat.inode;
        let lease = held.lease;
        assert_eq!(
            fakes.recalls(),
            [(
                P,
                RecallRequest {
                    inode,
                    lease,
                    from: 0
                }
            )]
        );
        assert_eq!(lease_of(&server, P, held.file).lease, 0, "Q changes it");
        let mut data = Buffer::room(5);
        let mut answer;
        let read = ReadRequest {
            file: held.file,
            offset: 0,
            len: 5,
        };
        let got = call!(server, P, Read, read, &mut data, answer).unwrap();
        assert_eq!((got, &data.got[..]), (5, &b"hello"[..]));
        fakes.answer(Some(true));
        assert!(polled(&mut write));
    }
    let again = lease_of(&server, P, held.file);
    assert!(again.lease > held.lease, "what P has kept is stale");
    assert!(fakes.recalls().is_empty());
}

#[test]
fn a_holder_that_does_not_answer_delays_a_change_until_its_lease_expires() {
    for answer in [None, Some(false)] {
        let (server, fakes, _folder) = leased("lease-silent");
        fakes.answer(answer);
        open_as(&server, P, "/hello", OpenFlags::READ);
        let file = open_as(&server, Q, "/hello", BOTH).file;
        let (mut reply, mut raw) = (vec![0; MAX_MESSAGE], [0; MAX_MESSAGE]);
        let request = TruncateRequest { file, size: 0 };
        let mut bulk = Buffer::default();
        let mut cut = pin!(begin!(server, Truncate, request, &mut bulk, reply, raw));
        assert!(!polled(&mut cut));
        fakes.pass(TERM);
        assert!(!polled(&mut cut), "{answer:?}: within the margin");
        fakes.pass(MARGIN);
        assert!(polled(&mut cut), "{answer:?}");
    }
}

#[test]
fn every_change_of_an_inode_recalls_its_leases() {
    let (server, fakes, _folder) = leased("lease-all");
    fakes.answer(Some(true));
    let mine = open_as(&server, Q, "/big", BOTH);
    let caller = Caller::ROOT;
    let set = Attributes {
        which: AttributeFlags::MODE,
        mode: 0o600,
        uid: 0,
        gid: 0,
        accessed: mine.stat.accessed,
        modified: mine.stat.modified,
    };
    let name = XattrName::new(b"user.a").unwrap();
    let file = mine.file;
    macro_rules! recalls {
        ($call:ty, $request:expr, $sent:expr) => {{
            let held = open_as(&server, P, "/big", OpenFlags::READ);
            assert_ne!(held.lease, 0);
            let mut reply;
            let mut bulk = Buffer::sent($sent);
            let done = call!(server, Q, $call, $request, &mut bulk, reply);
            assert!(done.is_ok(), "{}", <$call>::NAME);
            let seen: Vec<_> = fakes.recalls().iter().map(|(_, r)| r.lease).collect();
            assert_eq!(seen, [held.lease], "{}", <$call>::NAME);
        }};
    }
    recalls!(
        Write,
        WriteRequest {
            file,
            offset: 0,
            append: true
        },
        b"more"
    );
    recalls!(
        Allocate,
        AllocateRequest {
            file,
            flags: AllocateFlags::KEEP_SIZE,
            offset: 0,
            len: 9
        },
        b""
    );
    recalls!(SetFile, SetFileRequest { caller, file, set }, b"");
    let path_of_it = path("/big");
    recalls!(
        SetPath,
        SetPathRequest {
            caller,
            path: path_of_it,
            follow: true,
            set
        },
        b""
    );
    recalls!(
        SetXattr,
        SetXattrRequest {
            caller,
            file,
            flags: XattrFlags::empty(),
            name
        },
        b"v"
    );
    recalls!(RemoveXattr, XattrRequest { caller, file, name }, b"");
    recalls!(
        Link,
        LinkRequest {
            caller,
            path: path_of_it,
            follow: false
        },
        b"/second"
    );
    recalls!(LinkFile, LinkFileRequest { caller, file }, b"/third");
    recalls!(
        Rename,
        RenameRequest {
            caller,
            path: path("/second"),
            flags: RenameFlags::empty()
        },
        b"/fourth"
    );
    recalls!(
        Rename,
        RenameRequest {
            caller,
            path: path("/hello"),
            flags: RenameFlags::empty()
        },
        b"/third"
    );
    recalls!(
        Remove,
        RemoveRequest {
            caller,
            path: path("/fourth"),
            directory: false
        },
        b""
    );
    recalls!(
        Open,
        OpenRequest {
            caller,
            path: path_of_it,
            flags: OpenFlags::WRITE | OpenFlags::TRUNCATE,
            mode: 0,
        },
        b""
    );
    recalls!(Truncate, TruncateRequest { file, size: 5 }, b"");
}

#[test]
fn whatever_paths_tell_is_not_changed_under_another_peer_s_lease_of_all_names() {
    let (server, fakes, _folder) = leased("lease-names");
    fakes.answer(Some(true));
    let caller = Caller::ROOT;
    let file = open_as(&server, Q, "/hello", BOTH).file;
    macro_rules! recalls {
        ($call:ty, $request:expr, $sent:expr) => {{
            let held = lease_of(&server, P, FileId::NAMES);
            assert_ne!(held.lease, 0);
            let mut reply;
            let mut bulk = Buffer::sent($sent);
            let done = call!(server, Q, $call, $request, &mut bulk, reply);
            assert!(done.is_ok(), "{}", <$call>::NAME);
            let seen: Vec<_> = fakes.recalls();
            let seen: Vec<_> = seen.iter().map(|(p, r)| (*p, r.inode, r.lease)).collect();
            assert_eq!(seen, [(P, 0, held.lease)], "{}", <$call>::NAME);
        }};
    }
    let make = |name: &'static str, mode| MakeRequest {
        caller,
        path: path(name),
        mode,
        device: 0,
    };
    recalls!(Make, make("/made", 0o040_755), b"");
    recalls!(Make, make("/file", 0o100_644), b"");
    let open = |name: &'static str, flags| OpenRequest {
        caller,
        path: path(name),
        flags,
        mode: 0o644,
    };
    recalls!(
        Open,
        open("/new", OpenFlags::WRITE | OpenFlags::CREATE),
        b""
    );
    let write = WriteRequest {
        file,
        offset: 0,
        append: false,
    };
    recalls!(Write, write, b"changed");
    let link = PathRequest {
        caller,
        path: path("/link"),
    };
    recalls!(Symlink, link, b"hello");
    // From now on the file changes without a word to S.
    recalls!(WriteLease, FileRequest { file }, b"");
    recalls!(Open, open("/file", BOTH | OpenFlags::GATHER), b"");
    // What changes nothing leaves it alone, and so does who holds it.
    let held = lease_of(&server, P, FileId::NAMES).lease;
    open_as(&server, Q, "/hello", OpenFlags::READ);
    open_as(&server, P, "/p", OpenFlags::CREATE | OpenFlags::WRITE);
    assert!(fakes.recalls().is_empty());
    assert_eq!(lease_of(&server, P, FileId::NAMES).lease, held);
}

#[test]
fn a_peer_that_leaves_holds_nothing_and_a_lost_one_until_its_leases_expire() {
    let (server, fakes, _folder) = leased("lease-left");
    fakes.answer(Some(false));
    let file = open_as(&server, Q, "/hello", BOTH).file;
    for leaves in [true, false] {
        open_as(&server, P, "/hello", OpenFlags::READ);
        server.peer_lost(P);
        if leaves {
            server.peer_left(P);
        }
        let (mut reply, mut raw) = (vec![0; MAX_MESSAGE], [0; MAX_MESSAGE]);
        let request = TruncateRequest { file, size: 1 };
        let mut bulk = Buffer::default();
        let mut cut = pin!(begin!(server, Truncate, request, &mut bulk, reply, raw));
        assert_eq!(polled(&mut cut), leaves);
        fakes.pass(TERM + MARGIN);
        assert!(leaves || polled(&mut cut));
    }
}
