//! The server over file systems made by `mke2fs`, checked against the folder they were made of.

mod change;
mod flush;
mod lease;
mod rights;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path as HostPath, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use ext4::{Disk, DiskError, Ext4, Options, Time};
use futures_util::FutureExt;
use messages::storage::*;
use messages::{Call, Errno, MAX_MESSAGE, decode_reply, encode_request};
use proptest::prelude::*;

use crate::*;

const P: PeerKey = PeerKey(0);

/// A disk in memory.
#[derive(Clone, Default)]
struct Ram(Arc<Mutex<Vec<u8>>>);

impl Ram {
    /// Calls `with` with the range of a request.
    fn range(
        &self,
        offset: u64,
        len: usize,
        with: impl FnOnce(&mut [u8]),
    ) -> Result<(), DiskError> {
        let error = DiskError { offset };
        let start = usize::try_from(offset).map_err(|_| error)?;
        let mut bytes = self.0.lock().unwrap();
        let range = bytes
            .get_mut(start..)
            .and_then(|bytes| bytes.get_mut(..len));
        with(range.ok_or(error)?);
        Ok(())
    }
}

impl Disk for Ram {
    async fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        self.range(offset, into.len(), |range| into.copy_from_slice(range))
    }
    async fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.range(offset, bytes.len(), |range| range.copy_from_slice(bytes))
    }
    async fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
}

const NOW: Time = Time {
    seconds: 5_000_000_000,
    nanos: 123_456_789,
};

/// Data that comes with a request, and room for data that is read.
#[derive(Default)]
struct Buffer {
    sent: Vec<u8>,
    got: Vec<u8>,
}

impl Buffer {
    fn room(len: usize) -> Self {
        Self {
            got: vec![0xee; len],
            ..Self::default()
        }
    }
    fn sent(bytes: &[u8]) -> Self {
        Self {
            sent: bytes.to_vec(),
            ..Self::default()
        }
    }
}

impl Bulk for Buffer {
    fn len(&self) -> usize {
        self.sent.len()
    }
    fn read(&mut self, offset: usize, into: &mut [u8]) -> usize {
        let len = into.len().min(self.sent.len() - offset);
        into[..len].copy_from_slice(&self.sent[offset..offset + len]);
        len
    }
    fn limit(&self) -> usize {
        self.got.len()
    }
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.got[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

/// A folder that is removed at the end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn big() -> Vec<u8> {
    (0..3_000_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0])
        .collect()
}

/// Makes a folder with a bit of everything.
fn folder(name: &str) -> Folder {
    let root = std::env::temp_dir().join(format!("tessera-storage-{}-{name}", std::process::id()));
    fs::create_dir_all(root.join("tree/a/b")).unwrap();
    let tree = root.join("tree");
    fs::write(tree.join("hello"), b"hello, world\n").unwrap();
    fs::hard_link(tree.join("hello"), tree.join("again")).unwrap();
    fs::write(tree.join("big"), big()).unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    sparse.set_len(1_000_000).unwrap();
    fs::create_dir(tree.join("many")).unwrap();
    for index in 0..500 {
        fs::write(tree.join(format!("many/file-number-{index:04}")), b"").unwrap();
    }
    symlink("../hello", tree.join("a/link")).unwrap();
    symlink("/a", tree.join("folder-link")).unwrap();
    symlink("loop", tree.join("loop")).unwrap();
    symlink(format!("/{}hello", "./".repeat(60)), tree.join("long-link")).unwrap();
    Folder(root)
}

fn image(folder: &Folder, block_size: u32) -> Vec<u8> {
    image_with(folder, block_size, "metadata_csum")
}

fn image_with(folder: &Folder, block_size: u32, features: &str) -> Vec<u8> {
    let path = folder.0.join("image");
    let mke2fs = ["mke2fs", "/usr/sbin/mke2fs", "/sbin/mke2fs"]
        .into_iter()
        .find(|name| Command::new(name).arg("-V").output().is_ok());
    let mke2fs = mke2fs.expect("mke2fs of Debian's e2fsprogs is there");
    let made = Command::new(mke2fs)
        .args([
            "-q",
            "-t",
            "ext4",
            "-b",
            &block_size.to_string(),
            "-O",
            features,
            "-d",
        ])
        .args([&folder.0.join("tree"), &path])
        .arg("16M")
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    fs::read(path).unwrap()
}

fn mount(disk: Ram, read_only: bool) -> Result<Server<Ram>, ext4::Error> {
    let options = Options {
        read_only,
        now: NOW,
    };
    let mounted = Ext4::mount(disk, options).now_or_never().unwrap();
    mounted.map(|files| Server::new(files, || NOW))
}

fn serve(image: Vec<u8>) -> Result<Server<Ram>, ext4::Error> {
    mount(Ram(Arc::new(Mutex::new(image))), true)
}

/// Makes a call through the bytes; evaluates to the decoded reply.
macro_rules! call {
    ($server:expr, $from:expr, $call:ty, $request:expr, $bulk:expr, $reply:ident) => {{
        let mut request = [0; MAX_MESSAGE];
        let len = encode_request::<$call>(&$request, &mut request).unwrap();
        $reply = vec![0; MAX_MESSAGE];
        let len = $server
            .handle($from, <$call>::KIND.0, &request[..len], &mut $reply, $bulk)
            .now_or_never()
            .unwrap();
        decode_reply::<$call>(&$reply[..len]).unwrap()
    }};
}
use call;

fn path(text: &str) -> Path<'_> {
    Path::new(text.as_bytes()).unwrap()
}

fn named(text: &str) -> PathRequest<'_> {
    let (caller, path) = (Caller::ROOT, path(text));
    PathRequest { caller, path }
}

fn open(server: &Server<Ram>, name: &str, flags: OpenFlags) -> Result<Opened, Errno> {
    let mut reply;
    call!(
        server,
        P,
        Open,
        OpenRequest {
            caller: Caller::ROOT,
            path: path(name),
            flags,
            mode: 0o644,
        },
        &mut Buffer::default(),
        reply
    )
}

fn stat(server: &Server<Ram>, name: &str, follow: bool) -> Result<Stat, Errno> {
    let mut reply;
    call!(
        server,
        P,
        StatPath,
        StatRequest {
            caller: Caller::ROOT,
            path: path(name),
            follow
        },
        &mut Buffer::default(),
        reply
    )
}

fn read(server: &Server<Ram>, file: FileId, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
    let mut reply;
    let mut bulk = Buffer::room(len);
    let request = ReadRequest {
        file,
        offset,
        len: u32::try_from(len).unwrap(),
    };
    let got = call!(server, P, Read, request, &mut bulk, reply)?;
    bulk.got.truncate(got as usize);
    Ok(bulk.got)
}

fn names(server: &Server<Ram>, name: &str, max: u32) -> Vec<(String, u8, u64)> {
    let flags = OpenFlags::READ | OpenFlags::DIRECTORY;
    let file = open(server, name, flags).unwrap().file;
    let (mut all, mut position) = (Vec::new(), 0);
    loop {
        let mut reply;
        let request = GetdentsRequest {
            file,
            position,
            max,
        };
        let entries = call!(server, P, Getdents, request, &mut Buffer::default(), reply).unwrap();
        let before = all.len();
        for entry in entries.iter() {
            let entry = entry.unwrap();
            position = entry.next;
            all.push((
                String::from_utf8(entry.name.to_vec()).unwrap(),
                entry.kind,
                entry.inode,
            ));
        }
        if all.len() == before {
            return all;
        }
    }
}

#[test]
fn files_read_and_stat_as_on_the_host() {
    let folder = folder("files");
    for block_size in [1024, 4096] {
        let server = serve(image(&folder, block_size)).unwrap();
        for name in [
            "/hello",
            "/big",
            "/sparse",
            "/a//./b/../link",
            "/folder-link/link",
            "/long-link",
        ] {
            let host = match name {
                "/a//./b/../link" | "/folder-link/link" | "/long-link" => {
                    folder.0.join("tree/hello")
                }
                name => folder.0.join("tree").join(&name[1..]),
            };
            let expected = fs::read(&host).unwrap();
            let opened = open(&server, name, OpenFlags::READ).unwrap();
            assert_eq!(opened.stat, stat(&server, name, true).unwrap());
            compare(&opened.stat, &host);
            assert!(
                read(&server, opened.file, 0, expected.len() + 10).unwrap() == expected,
                "{name}"
            );
            let end = expected.len() as u64;
            assert_eq!(
                read(&server, opened.file, end - 5, 100).unwrap(),
                expected[expected.len() - 5..]
            );
            assert_eq!(read(&server, opened.file, end, 100), Ok(vec![]));
            assert_eq!(read(&server, opened.file, u64::MAX, 100), Ok(vec![]));
        }
        assert_eq!(
            stat(&server, "/hello", true).unwrap().inode,
            stat(&server, "/again", true).unwrap().inode
        );
    }
}

fn compare(stat: &Stat, host: &HostPath) {
    let host = fs::metadata(host).unwrap();
    assert_eq!((stat.mode, stat.size), (host.mode(), host.len()));
    assert_eq!(
        (u64::from(stat.links), stat.uid, stat.gid),
        (host.nlink(), host.uid(), host.gid())
    );
    assert_eq!(stat.modified.seconds, host.mtime());
    assert!(stat.inode > 10 && stat.blocks * 512 <= stat.size + 2 * 4096);
}

#[test]
fn reads_at_any_offset_are_the_files_bytes() {
    let folder = folder("offsets");
    let server = serve(image(&folder, 1024)).unwrap();
    let file = open(&server, "/big", OpenFlags::READ).unwrap().file;
    let bytes = big();
    for offset in [0, 1, 1023, 1024, 65_535, 1_234_567, 2_999_999] {
        for len in [1, 1024, 70_000] {
            let end = (offset + len).min(bytes.len());
            assert!(
                read(&server, file, offset as u64, len).unwrap() == bytes[offset..end],
                "{offset} {len}"
            );
        }
    }
}

#[test]
fn folders_list_every_entry_once_however_small_the_replies() {
    let folder = folder("folders");
    let server = serve(image(&folder, 1024)).unwrap();
    let mut expected: Vec<String> = (0..500)
        .map(|index| format!("file-number-{index:04}"))
        .collect();
    expected.extend([".".to_owned(), "..".to_owned()]);
    expected.sort();
    for max in [40, 333, 100_000] {
        let mut listed: Vec<String> = names(&server, "/many", max)
            .into_iter()
            .map(|(name, ..)| name)
            .collect();
        listed.sort();
        assert_eq!(listed, expected, "{max} bytes a reply");
    }
    for (name, kind, inode) in names(&server, "/", 4000) {
        let expected = match name.as_str() {
            "hello" | "again" | "big" | "sparse" => 8,
            "folder-link" | "loop" | "long-link" => 10,
            _ => 4,
        };
        assert_eq!(kind, expected, "{name}");
        assert_eq!(
            inode,
            stat(&server, &format!("/{name}"), false).unwrap().inode,
            "{name}"
        );
    }
}

#[test]
fn links_and_errors_follow_linux() {
    let folder = folder("errors");
    let server = serve(image(&folder, 4096)).unwrap();
    let none = OpenFlags::READ;
    let long = format!("/{}", "x".repeat(256));
    for (name, flags, errno) in [
        ("/missing", none, Errno::ENOENT),
        ("", none, Errno::ENOENT),
        ("hello", none, Errno::ENOENT),
        ("/hello/x", none, Errno::ENOTDIR),
        ("/hello/", none, Errno::ENOTDIR),
        ("/hello", OpenFlags::DIRECTORY, Errno::ENOTDIR),
        ("/hello", OpenFlags::WRITE, Errno::EROFS),
        ("/a", OpenFlags::WRITE, Errno::EISDIR),
        ("/loop", none, Errno::ELOOP),
        ("/a/link", OpenFlags::NOFOLLOW, Errno::ELOOP),
        (long.as_str(), none, Errno::ENAMETOOLONG),
    ] {
        assert_eq!(open(&server, name, flags).map(|_| ()), Err(errno), "{name}");
    }
    assert!(stat(&server, "/loop", false).is_ok());
    assert_eq!(stat(&server, "/../../a/../hello", true).unwrap().size, 13);
    let mut reply;
    let target = call!(
        server,
        P,
        Readlink,
        named("/a/link"),
        &mut Buffer::default(),
        reply
    );
    assert_eq!(target.unwrap().as_bytes(), b"../hello");
    let mut reply;
    let target = call!(
        server,
        P,
        Readlink,
        named("/hello"),
        &mut Buffer::default(),
        reply
    );
    assert_eq!(target, Err(Errno::EINVAL));
    let folder = open(&server, "/a", none).unwrap().file;
    assert_eq!(read(&server, folder, 0, 10), Err(Errno::EISDIR));
}

#[test]
fn a_handle_is_its_peers_own_and_ends_with_it() {
    let folder = folder("handles");
    let server = serve(image(&folder, 4096)).unwrap();
    let file = open(&server, "/hello", OpenFlags::READ).unwrap().file;
    let (mut reply, mut bulk);
    bulk = Buffer::default();
    let stolen = call!(
        server,
        PeerKey(1),
        StatFile,
        FileRequest { file },
        &mut bulk,
        reply
    );
    assert_eq!(stolen, Err(Errno::EBADF));
    assert!(!reply.is_empty());
    let mut limit = 1;
    while open(&server, "/hello", OpenFlags::READ).is_ok() {
        limit += 1;
    }
    assert_eq!(limit, MAX_OPEN);
    server.peer_lost(P);
    assert_eq!(server.open_files(), 0);
    assert_eq!(read(&server, file, 0, 1), Err(Errno::EBADF));
}

#[test]
fn a_disk_without_a_file_system_is_refused() {
    assert!(matches!(serve(vec![0; 4096]), Err(ext4::Error::NotExt4(0))));
    assert!(matches!(serve(vec![0; 100]), Err(ext4::Error::Disk(_))));
    let folder = folder("features");
    let mut image = image_with(&folder, 1024, "^metadata_csum");
    image[1024 + 0x62] |= 1; // encryption
    let refused = serve(image).err().unwrap();
    assert!(
        matches!(refused, ext4::Error::Features { bits: 0x1_0000, .. }),
        "{refused:?}"
    );
}

#[test]
fn a_tree_of_extents_that_makes_no_sense_is_told_as_on_linux() {
    let folder = folder("depth");
    let mut image = image_with(&folder, 1024, "^metadata_csum");
    let server = serve(image.clone()).unwrap();
    let number = usize::try_from(stat(&server, "/hello", true).unwrap().inode).unwrap();
    let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
    let inode_size = usize::from(u16::from_le_bytes([image[1024 + 0x58], image[1024 + 0x59]]));
    let tree = word(2048 + 8) * 1024 + (number - 1) * inode_size + 0x28;
    // The file's leaf says that nodes lie below it.
    image[tree + 6] = 1;
    let server = serve(image).unwrap();
    let file = open(&server, "/hello", OpenFlags::READ).unwrap().file;
    assert_eq!(read(&server, file, 0, 10), Err(Errno::EUCLEAN));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// Metadata lies in the first blocks of the image; wherever it is damaged, nothing panics and
    /// everything ends.
    #[test]
    fn a_damaged_file_system_gives_errors(
        damage in proptest::collection::vec((0usize..1 << 20, any::<u8>()), 1..200),
    ) {
        use std::sync::OnceLock;
        static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
        let mut image = IMAGE.get_or_init(|| image_with(&folder("damage"), 1024, "^metadata_csum")).clone();
        for (at, value) in damage {
            image[at] = value;
        }
        let Ok(server) = serve(image) else { return Ok(()) };
        for name in ["/hello", "/big", "/a/link", "/many/file-number-0499", "/long-link"] {
            if let Ok(opened) = open(&server, name, OpenFlags::READ) {
                let _ = read(&server, opened.file, 0, 10_000);
                let _ = read(&server, opened.file, opened.stat.size / 2, 10_000);
            }
        }
    }
}
