//! Changes by requests: what they do, what they refuse, and that e2fsck agrees afterwards.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Stdio;

use super::*;

pub(super) fn server(name: &str) -> (Server<Ram>, Ram) {
    let disk = Ram(Arc::new(Mutex::new(image(&folder(name), 4096))));
    (mount(disk.clone(), false).unwrap(), disk)
}

/// Makes a call whose bulk is `sent`.
macro_rules! ask {
    ($server:expr, $call:ty, $request:expr, $sent:expr) => {{
        let mut reply;
        call!($server, P, $call, $request, &mut Buffer::sent($sent), reply)
    }};
}
pub(super) use ask;

pub(super) fn write(
    server: &Server<Ram>,
    file: FileId,
    offset: u64,
    bytes: &[u8],
) -> Result<Written, Errno> {
    let append = false;
    ask!(
        server,
        Write,
        WriteRequest {
            file,
            offset,
            append
        },
        bytes
    )
}

fn append(server: &Server<Ram>, file: FileId, bytes: &[u8]) -> Result<Written, Errno> {
    let (offset, append) = (0, true);
    ask!(
        server,
        Write,
        WriteRequest {
            file,
            offset,
            append
        },
        bytes
    )
}

fn make(server: &Server<Ram>, name: &str, mode: u32, device: u64) -> Result<(), Errno> {
    ask!(
        server,
        Make,
        MakeRequest {
            caller: Caller::ROOT,
            path: path(name),
            mode,
            device
        },
        b""
    )
}

fn remove(server: &Server<Ram>, name: &str, directory: bool) -> Result<u64, Errno> {
    ask!(
        server,
        Remove,
        RemoveRequest {
            caller: Caller::ROOT,
            path: path(name),
            directory
        },
        b""
    )
}

fn rename(server: &Server<Ram>, old: &str, new: &str, flags: RenameFlags) -> Result<u64, Errno> {
    ask!(
        server,
        Rename,
        RenameRequest {
            caller: Caller::ROOT,
            path: path(old),
            flags
        },
        new.as_bytes()
    )
}

fn close(server: &Server<Ram>, file: FileId) -> Result<(), Errno> {
    ask!(server, Close, FileRequest { file }, b"")
}

fn contents(server: &Server<Ram>, name: &str) -> Result<Vec<u8>, Errno> {
    let opened = open(server, name, OpenFlags::READ)?;
    let bytes = read(
        server,
        opened.file,
        0,
        usize::try_from(opened.stat.size).unwrap(),
    );
    close(server, opened.file).unwrap();
    bytes
}

const BOTH: OpenFlags = OpenFlags::READ.union(OpenFlags::WRITE);
const MAKE: OpenFlags = OpenFlags::CREATE.union(OpenFlags::WRITE);

/// Unmounts; e2fsck must find nothing.
pub(super) fn finish(server: Server<Ram>, disk: &Ram) {
    server.peer_lost(P);
    server.commit().now_or_never().unwrap().unwrap();
    let files = server.into_files();
    files.unmount(NOW).now_or_never().unwrap().unwrap();
    check(&disk.0.lock().unwrap());
}

fn check(image: &[u8]) {
    let file = std::env::temp_dir().join(format!(
        "tessera-storage-check-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    fs::File::create(&file).unwrap().write_all(image).unwrap();
    let tools = ["e2fsck", "/usr/sbin/e2fsck", "/sbin/e2fsck"];
    let found = tools.into_iter().find(|name| {
        let mut version = Command::new(name);
        version.arg("-V").stderr(Stdio::null()).status().is_ok()
    });
    let e2fsck = found.expect("e2fsck of Debian's e2fsprogs is there");
    let checked = Command::new(e2fsck)
        .args(["-fn"])
        .arg(&file)
        .output()
        .unwrap();
    fs::remove_file(&file).unwrap();
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stdout)
    );
}

#[test]
fn files_are_made_written_and_read_back() {
    let (server, disk) = server("write");
    let opened = open(&server, "/a/new", MAKE).unwrap();
    assert_eq!((opened.stat.mode, opened.stat.size), (0o100_644, 0));
    assert_eq!(
        opened.stat.modified,
        FileTime {
            seconds: NOW.seconds,
            nanos: NOW.nanos
        }
    );
    let file = opened.file;
    assert_eq!(
        write(&server, file, 5_000, b"middle"),
        Ok(Written {
            offset: 5_000,
            len: 6
        })
    );
    assert_eq!(
        append(&server, file, b"end"),
        Ok(Written {
            offset: 5_006,
            len: 3
        })
    );
    assert_eq!(write(&server, file, 0, b"begin").unwrap().len, 5);
    let mut expected = vec![0; 5_009];
    expected[..5].copy_from_slice(b"begin");
    expected[5_000..].copy_from_slice(b"middleend");
    assert_eq!(contents(&server, "/a/new").unwrap(), expected);
    ask!(server, Truncate, TruncateRequest { file, size: 5_002 }, b"").unwrap();
    assert_eq!(contents(&server, "/a/new").unwrap(), expected[..5_002]);
    let flags = AllocateFlags::PUNCH_HOLE;
    ask!(
        server,
        Allocate,
        AllocateRequest {
            file,
            flags,
            offset: 2,
            len: 5_000 - 2
        },
        b""
    )
    .unwrap();
    expected[2..5_000].fill(0);
    assert_eq!(contents(&server, "/a/new").unwrap(), expected[..5_002]);
    ask!(server, Fsync, FileRequest { file }, b"").unwrap();
    // Emptied by an open, also by one that does not write, as on Linux.
    let emptied = open(&server, "/a/new", OpenFlags::READ | OpenFlags::TRUNCATE).unwrap();
    assert_eq!(
        (emptied.stat.size, emptied.stat.inode),
        (0, opened.stat.inode)
    );
    // What was opened to read only is not written.
    let reader = open(&server, "/hello", OpenFlags::READ).unwrap().file;
    assert_eq!(write(&server, reader, 0, b"x"), Err(Errno::EBADF));
    let truncated = ask!(
        server,
        Truncate,
        TruncateRequest {
            file: reader,
            size: 0
        },
        b""
    );
    assert_eq!(truncated, Err(Errno::EBADF));
    finish(server, &disk);
}

#[test]
fn a_file_outlives_its_name_while_it_is_open() {
    let (server, disk) = server("orphans");
    let sizes = |server: &Server<Ram>| ask!(server, StatFs, (), b"").unwrap();
    let before = sizes(&server);
    let file = open(&server, "/big", BOTH).unwrap().file;
    let inode = stat(&server, "/big", true).unwrap().inode;
    assert_eq!(remove(&server, "/big", false), Ok(inode));
    assert_eq!(stat(&server, "/big", true), Err(Errno::ENOENT));
    assert_eq!(write(&server, file, 0, b"still").unwrap().len, 5);
    assert_eq!(read(&server, file, 0, 5).unwrap(), b"still");
    assert_eq!(sizes(&server).free_inodes, before.free_inodes);
    close(&server, file).unwrap();
    assert_eq!(sizes(&server).free_inodes, before.free_inodes + 1);
    assert!(sizes(&server).free > before.free + 700);
    // One that never had a name: gone with the peer, unless it gets one.
    let unnamed = OpenFlags::UNNAMED | OpenFlags::WRITE;
    for name in [Some("/a/named"), None] {
        let file = open(&server, "/a", unnamed).unwrap().file;
        write(&server, file, 0, b"unnamed").unwrap();
        if let Some(name) = name {
            let caller = Caller::ROOT;
            let request = LinkFileRequest { caller, file };
            ask!(server, LinkFile, request, name.as_bytes()).unwrap();
        }
    }
    server.peer_lost(P);
    server.commit().now_or_never().unwrap().unwrap();
    assert_eq!(sizes(&server).free_inodes, before.free_inodes);
    assert_eq!(contents(&server, "/a/named").unwrap(), b"unnamed");
    finish(server, &disk);
}

#[test]
fn what_has_no_data_takes_none() {
    let (server, disk) = server("no-data");
    make(&server, "/pipe", 0o010_644, 0).unwrap();
    let pipe = open(&server, "/pipe", OpenFlags::WRITE).unwrap().file;
    let refused = write(&server, pipe, 0, b"no data of its own").map(drop);
    assert_eq!(refused, Err(Errno::EINVAL));
    finish(server, &disk);
}

#[test]
fn names_change_as_on_linux() {
    let (server, disk) = server("names");
    let replace = RenameFlags::empty();
    make(&server, "/d/", 0o040_750, 0).unwrap();
    assert_eq!(stat(&server, "/d", true).unwrap().mode, 0o040_750);
    make(&server, "/d/null", 0o020_666, 0x103).unwrap();
    let node = stat(&server, "/d/null", true).unwrap();
    assert_eq!((node.mode, node.device), (0o020_666, 0x103));
    ask!(server, Symlink, named("/d/soft"), b"../hello").unwrap();
    assert_eq!(contents(&server, "/d/soft").unwrap(), b"hello, world\n");
    ask!(
        server,
        Link,
        LinkRequest {
            caller: Caller::ROOT,
            path: path("/d/soft"),
            follow: true
        },
        b"/d/hard"
    )
    .unwrap();
    assert_eq!(stat(&server, "/d/hard", true).unwrap().links, 3);
    // A dangling link is followed by an open that makes.
    ask!(server, Symlink, named("/d/dangling"), b"made").unwrap();
    open(&server, "/d/dangling", MAKE).unwrap();
    assert!(stat(&server, "/d/made", false).is_ok());
    assert_eq!(
        open(&server, "/d/dangling", MAKE | OpenFlags::EXCLUSIVE).map(drop),
        Err(Errno::EEXIST)
    );
    rename(&server, "/d/made", "/a/moved", replace).unwrap();
    rename(&server, "/a/moved", "/d/hard", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(contents(&server, "/a/moved").unwrap(), b"hello, world\n");
    for (result, errno) in [
        (
            rename(&server, "/d", "/d/below", replace).map(drop),
            Errno::EINVAL,
        ),
        (
            rename(&server, "/hello", "/d", replace).map(drop),
            Errno::EISDIR,
        ),
        (
            rename(&server, "/d", "/hello", replace).map(drop),
            Errno::ENOTDIR,
        ),
        (
            rename(&server, "/hello", "/d/hard", RenameFlags::NO_REPLACE).map(drop),
            Errno::EEXIST,
        ),
        (
            rename(&server, "/none", "/d/x", replace).map(drop),
            Errno::ENOENT,
        ),
        (
            rename(&server, "/", "/d/x", replace).map(drop),
            Errno::EBUSY,
        ),
        (
            rename(&server, "/hello", "/d/x/", replace).map(drop),
            Errno::ENOTDIR,
        ),
        (
            rename(&server, "/hello", "/d/x", RenameFlags::all()).map(drop),
            Errno::EINVAL,
        ),
        (make(&server, "/d", 0o040_755, 0), Errno::EEXIST),
        (make(&server, "/", 0o040_755, 0), Errno::EEXIST),
        (make(&server, "/no/d", 0o040_755, 0), Errno::ENOENT),
        (make(&server, "/d/f/", 0o100_644, 0), Errno::ENOENT),
        (remove(&server, "/d", true).map(drop), Errno::ENOTEMPTY),
        (remove(&server, "/d", false).map(drop), Errno::EISDIR),
        (remove(&server, "/hello", true).map(drop), Errno::ENOTDIR),
        (remove(&server, "/hello/", false).map(drop), Errno::ENOTDIR),
        (remove(&server, "/d/.", true).map(drop), Errno::EINVAL),
        (remove(&server, "/d/..", true).map(drop), Errno::ENOTEMPTY),
        (remove(&server, "/", true).map(drop), Errno::EBUSY),
        (open(&server, "/d", MAKE).map(drop), Errno::EISDIR),
        (open(&server, "/d/f/", MAKE).map(drop), Errno::EISDIR),
        (open(&server, "/no/f", MAKE).map(drop), Errno::ENOENT),
    ] {
        assert_eq!(result, Err(errno));
    }
    for name in ["/d/null", "/d/soft", "/d/hard", "/d/dangling"] {
        remove(&server, name, false).unwrap();
    }
    remove(&server, "/d/", true).unwrap();
    finish(server, &disk);
}

#[test]
fn attributes_are_kept_with_nanoseconds_and_past_2038() {
    let (server, disk) = server("attributes");
    let set = Attributes {
        which: AttributeFlags::all(),
        mode: 0o4711,
        uid: 70_000,
        gid: 5,
        accessed: FileTime {
            seconds: 4_400_000_000,
            nanos: 7,
        },
        modified: FileTime {
            seconds: -5,
            nanos: 999_999_999,
        },
    };
    ask!(
        server,
        SetPath,
        SetPathRequest {
            caller: Caller::ROOT,
            path: path("/a/link"),
            follow: true,
            set
        },
        b""
    )
    .unwrap();
    let stat_of = |server: &Server<Ram>| stat(server, "/hello", true).unwrap();
    let is = stat_of(&server);
    assert_eq!((is.mode, is.uid, is.gid), (0o104_711, 70_000, 5));
    assert_eq!((is.accessed, is.modified), (set.accessed, set.modified));
    let which = AttributeFlags::MODE;
    let file = open(&server, "/hello", OpenFlags::READ).unwrap().file;
    let set = Attributes {
        which,
        mode: 0o600,
        uid: 1,
        ..set
    };
    let caller = Caller::ROOT;
    let request = SetFileRequest { caller, file, set };
    ask!(server, SetFile, request, b"").unwrap();
    let is = stat_of(&server);
    assert_eq!((is.mode, is.uid), (0o100_600, 70_000));
    finish(server, &disk);
}

#[test]
fn a_read_only_file_system_refuses_all_changes() {
    let server = serve(image(&folder("read-only"), 4096)).unwrap();
    let rofs = Err(Errno::EROFS);
    assert_eq!(open(&server, "/hello", OpenFlags::WRITE).map(drop), rofs);
    assert_eq!(open(&server, "/new", MAKE).map(drop), rofs);
    assert_eq!(
        open(&server, "/a", OpenFlags::WRITE).map(drop),
        Err(Errno::EISDIR)
    );
    assert_eq!(make(&server, "/d", 0o040_755, 0), rofs);
    assert_eq!(make(&server, "/a", 0o040_755, 0), Err(Errno::EEXIST));
    assert_eq!(remove(&server, "/hello", false).map(drop), rofs);
    assert_eq!(
        rename(&server, "/hello", "/x", RenameFlags::empty()).map(drop),
        rofs
    );
    assert!(ask!(server, StatFs, (), b"").unwrap().read_only);
    assert_eq!(ask!(server, Sync, (), b""), Ok(()));
}

#[test]
fn a_full_disk_shortens_writes_and_then_refuses_them() {
    let (server, disk) = server("full");
    let file = open(&server, "/fill", MAKE).unwrap().file;
    let piece = [0x5a; 64 << 10];
    let mut size = 0;
    let errno = loop {
        match write(&server, file, size, &piece) {
            Ok(written) => size += u64::from(written.len),
            Err(errno) => break errno,
        }
    };
    assert_eq!((errno, size > 4 << 20), (Errno::ENOSPC, true));
    assert_eq!(make(&server, "/a/d", 0o040_755, 0), Err(Errno::ENOSPC));
    assert_eq!(contents(&server, "/hello").unwrap(), b"hello, world\n");
    ask!(server, Truncate, TruncateRequest { file, size: 0 }, b"").unwrap();
    make(&server, "/a/d", 0o040_755, 0).unwrap();
    finish(server, &disk);
}

#[derive(Debug, Clone)]
enum Step {
    Write(usize, u64, usize),
    Truncate(usize, u64),
    Rename(usize, usize),
    Remove(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let name = || 0usize..6;
    prop_oneof![
        4 => (name(), 0u64..40_000, 1usize..9_000).prop_map(|(name, at, len)| Step::Write(name, at, len)),
        1 => (name(), 0u64..50_000).prop_map(|(name, size)| Step::Truncate(name, size)),
        2 => (name(), name()).prop_map(|(from, to)| Step::Rename(from, to)),
        1 => name().prop_map(Step::Remove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    /// Files are what a map of bytes is after the same steps, before and after a mount.
    #[test]
    fn files_are_as_a_map_has_them(steps in proptest::collection::vec(step(), 1..60)) {
        use std::sync::OnceLock;
        static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
        let bytes = IMAGE.get_or_init(|| image(&folder("map"), 1024)).clone();
        let disk = Ram(Arc::new(Mutex::new(bytes)));
        let server = mount(disk.clone(), false).unwrap();
        let names = ["/p", "/q", "/a/p", "/a/q", "/a/b/p", "/many/p"];
        let mut model: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
        for (number, step) in (1u8..).zip(&steps) {
            match *step {
                Step::Write(name, at, len) => {
                    let file = open(&server, names[name], MAKE).unwrap().file;
                    let bytes = vec![number; len];
                    prop_assert_eq!(write(&server, file, at, &bytes).unwrap().len as usize, len);
                    close(&server, file).unwrap();
                    let (at, data) = (usize::try_from(at).unwrap(), model.entry(names[name]).or_default());
                    data.resize(data.len().max(at + len), 0);
                    data[at..at + len].copy_from_slice(&bytes);
                }
                Step::Truncate(name, size) => {
                    let opened = open(&server, names[name], OpenFlags::WRITE);
                    let data = model.get_mut(names[name]);
                    prop_assert_eq!(opened.is_ok(), data.is_some());
                    if let (Ok(opened), Some(data)) = (opened, data) {
                        let request = TruncateRequest { file: opened.file, size };
                        ask!(server, Truncate, request, b"").unwrap();
                        data.resize(usize::try_from(size).unwrap(), 0);
                    }
                }
                Step::Rename(from, to) => {
                    let renamed = rename(&server, names[from], names[to], RenameFlags::empty());
                    let data = model.remove(names[from]);
                    prop_assert_eq!(renamed.is_ok(), data.is_some());
                    model.extend(data.map(|data| (names[to], data)));
                }
                Step::Remove(name) => {
                    let removed = remove(&server, names[name], false);
                    prop_assert_eq!(removed.is_ok(), model.remove(names[name]).is_some());
                }
            }
        }
        let same = |server: &Server<Ram>| {
            names.iter().all(|name| contents(server, name).ok() == model.get(name).cloned())
        };
        prop_assert!(same(&server));
        finish(server, &disk);
        prop_assert!(same(&mount(disk, true).unwrap()));
    }
}
