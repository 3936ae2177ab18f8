//! Files of the node's own: names, data, mappings.

use super::*;
use crate::error::errno;

const O_RDWR: u64 = 2;
const O_CREAT: u64 = 0o100;
const O_TRUNC: u64 = 0o1000;
const O_APPEND: u64 = 0o2000;
const AT_FDCWD: u64 = (-100i64).cast_unsigned();

impl Run {
    pub(super) fn name(&self, place: u64, path: &str) -> u64 {
        self.put(DATA + place * 64, format!("{path}\0").as_bytes())
    }

    pub(super) fn create(&mut self, path: &str, flags: u64) -> Result<u64, Error> {
        let name = self.name(0, path);
        self.call(nr::__NR_open, &[name, O_RDWR | O_CREAT | flags, 0o666])
    }

    pub(super) fn two(&mut self, call: u32, from: &str, to: &str) -> Result<u64, Error> {
        let (from, to) = (self.name(0, from), self.name(1, to));
        self.call(call, &[from, to])
    }

    /// Returns links, mode and length of a path.
    pub(super) fn status(&mut self, path: &str) -> Option<(u64, u32, u64)> {
        let name = self.name(0, path);
        self.call(nr::__NR_lstat, &[name, DATA + 256]).ok()?;
        let bytes = self.get(DATA + 256, 144);
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        Some((
            word(16),
            u32::from_le_bytes(bytes[24..28].try_into().unwrap()),
            word(48),
        ))
    }

    pub(super) fn text(&mut self, path: &str) -> Vec<u8> {
        let fd = self.open(path).unwrap();
        let len = self.call(nr::__NR_read, &[fd, DATA + 512, 512]).unwrap();
        self.call(nr::__NR_close, &[fd]).unwrap();
        self.get(DATA + 512, usize::try_from(len).unwrap())
    }

    pub(super) fn write_text(&mut self, path: &str, text: &str) {
        let fd = self.create(path, O_TRUNC).unwrap();
        self.put(DATA + 512, text.as_bytes());
        assert_eq!(
            self.call(nr::__NR_write, &[fd, DATA + 512, text.len() as u64]),
            Ok(text.len() as u64)
        );
        self.call(nr::__NR_close, &[fd]).unwrap();
    }
}

/// Ends the run, and looks that nothing is left.
pub(super) fn ends_clean(node: &'static FakeNode, run: Run) {
    run.thread.process.end(Exit::Code(0));
    node.block_on(run.thread.run());
    assert_eq!(node.block_on(node.kernel.finish(node)), Ok(Exit::Code(0)));
    // A line that was being written back lets its chunk go only now.
    node.drain();
    node.block_on(node.supply.settle(node)).unwrap();
    assert_eq!(node.cache.lines_in_use(), (0, 0));
    assert!(node.memory.lent.borrow().is_empty());
    assert_eq!(
        (node.supply.committed(), node.memory.promised.get()),
        (0, 0)
    );
}

#[test]
fn what_was_written_is_read_at_any_place_through_a_small_cache() {
    let node: &FakeNode = node(32);
    let mut run = Run::new(node);
    let fd = run.create("/tmp/data", 0).unwrap();
    let at = run.map(400_000).unwrap();
    let bytes: Vec<u8> = (0..400_000u32)
        .map(|n| ((n * 7) >> 3).to_le_bytes()[0])
        .collect();
    run.put(at, &bytes);
    assert_eq!(run.call(nr::__NR_write, &[fd, at, 300_000]), Ok(300_000));
    // A hole, and more behind it.
    assert_eq!(
        run.call(nr::__NR_pwrite64, &[fd, at, 100, 500_000]),
        Ok(100)
    );
    assert_eq!(run.status("/tmp/data"), Some((1, 0o100_644, 500_100)));
    let to = run.map(500_100).unwrap();
    assert_eq!(run.call(nr::__NR_lseek, &[fd, 0, 0]), Ok(0));
    assert_eq!(run.call(nr::__NR_read, &[fd, to, 600_000]), Ok(500_100));
    let read = run.get(to, 500_100);
    assert!(read[..300_000] == bytes[..300_000] && read[500_000..] == bytes[..100]);
    assert!(read[300_000..500_000].iter().all(|&byte| byte == 0));
    // Cut and grown again, it holds zeros there.
    assert_eq!(run.call(nr::__NR_ftruncate, &[fd, 5_000]), Ok(0));
    assert_eq!(run.call(nr::__NR_ftruncate, &[fd, 20_000]), Ok(0));
    assert_eq!(run.call(nr::__NR_pread64, &[fd, to, 30_000, 0]), Ok(20_000));
    let read = run.get(to, 20_000);
    assert!(read[..5_000] == bytes[..5_000] && read[5_000..].iter().all(|&byte| byte == 0));
    ends_clean(node, run);
}

#[test]
fn mappings_share_a_file_s_pages_or_copy_them() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.write_text("/dev/shm/x", "before");
    let fd = run.create("/dev/shm/x", 0).unwrap();
    let shared = run.call(nr::__NR_mmap, &[0, 4096, 3, 1, fd, 0]).unwrap();
    let private = run.call(nr::__NR_mmap, &[0, 4096, 3, 2, fd, 0]).unwrap();
    run.put(shared, b"AFTER");
    run.put(private, b"own");
    assert_eq!(run.text("/dev/shm/x"), b"AFTERe");
    assert_eq!(run.get(private, 6), b"ownore");
    run.call(nr::__NR_close, &[fd]).unwrap();
    let name = run.name(0, "/dev/shm/x");
    assert_eq!(run.call(nr::__NR_unlink, &[name]), Ok(0));
    assert_eq!(run.get(shared, 6), b"AFTERe", "the mapping keeps the pages");
    ends_clean(node, run);
}

#[test]
fn names_come_and_go_as_on_linux() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let name = run.name(0, "/tmp/d");
    assert_eq!(run.call(nr::__NR_mkdir, &[name, 0o777]), Ok(0));
    assert_eq!(
        errno_of(run.call(nr::__NR_mkdir, &[name, 0o777])),
        Some(errno::EEXIST)
    );
    assert_eq!(run.status("/tmp/d").map(|status| status.1), Some(0o040_755));
    run.write_text("/tmp/d/one", "1");
    let name = run.name(0, "/tmp/d");
    assert_eq!(
        errno_of(run.call(nr::__NR_rmdir, &[name])),
        Some(errno::ENOTEMPTY)
    );
    assert_eq!(run.two(nr::__NR_link, "/tmp/d/one", "/tmp/two"), Ok(0));
    assert_eq!(run.status("/tmp/two").map(|status| status.0), Some(2));
    assert_eq!(run.two(nr::__NR_rename, "/tmp/two", "/tmp/d/three"), Ok(0));
    run.write_text("/tmp/four", "4");
    assert_eq!(run.two(nr::__NR_rename, "/tmp/four", "/tmp/d/three"), Ok(0));
    assert_eq!(
        (run.text("/tmp/d/three"), run.text("/tmp/d/one")),
        (b"4".to_vec(), b"1".to_vec())
    );
    assert_eq!(run.status("/tmp/d/one").map(|status| status.0), Some(1));
    assert_eq!(run.two(nr::__NR_rename, "/tmp/d", "/tmp/e"), Ok(0));
    assert_eq!(
        errno_of(run.two(nr::__NR_rename, "/tmp/e", "/tmp/e/f")),
        Some(errno::EINVAL)
    );
    assert_eq!(
        errno_of(run.two(nr::__NR_rename, "/big", "/tmp/big")),
        Some(errno::EXDEV)
    );
    assert_eq!(
        errno_of(run.two(nr::__NR_rename, "/tmp/none", "/tmp/x")),
        Some(errno::ENOENT)
    );
    assert_eq!(run.two(nr::__NR_symlink, "../tmp/e", "/tmp/link"), Ok(0));
    assert_eq!(run.text("/tmp/link/one"), b"1");
    let link = run.name(0, "/tmp/link");
    assert_eq!(run.call(nr::__NR_readlink, &[link, DATA + 256, 100]), Ok(8));
    assert_eq!(run.two(nr::__NR_symlink, "/big", "/tmp/storage"), Ok(0));
    assert_eq!(run.text("/tmp/storage").len(), 512, "a link to S's disk");
    assert_eq!(run.two(nr::__NR_symlink, "loop", "/tmp/loop"), Ok(0));
    assert_eq!(errno_of(run.open("/tmp/loop")), Some(errno::ELOOP));
    for (path, errno) in [
        ("/tmp/none/x", errno::ENOENT),
        ("/tmp/e/one/x", errno::ENOTDIR),
        ("/tmp/e", errno::EISDIR),
    ] {
        assert_eq!(errno_of(run.create(path, 0)), Some(errno), "{path}");
    }
    let name = run.name(0, "/tmp");
    assert_eq!(
        errno_of(run.call(nr::__NR_rmdir, &[name])),
        Some(errno::EBUSY)
    );
    ends_clean(node, run);
}

#[test]
fn folders_are_listed_and_be_worked_in() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let name = run.name(0, "/tmp/many");
    run.call(nr::__NR_mkdir, &[name, 0o700]).unwrap();
    assert_eq!(run.call(nr::__NR_chdir, &[name]), Ok(0));
    for n in 0..30 {
        run.write_text(&format!("file{n}"), "x");
    }
    let fd = run.open(".").unwrap();
    let mut names = Vec::new();
    loop {
        let len = run
            .call(nr::__NR_getdents64, &[fd, DATA + 512, 300])
            .unwrap();
        if len == 0 {
            break;
        }
        let mut records = &run.get(DATA + 512, usize::try_from(len).unwrap())[..];
        while !records.is_empty() {
            let len = usize::from(u16::from_le_bytes([records[16], records[17]]));
            let name = records[19..len].split(|&byte| byte == 0).next().unwrap();
            names.push(String::from_utf8(name.to_vec()).unwrap());
            records = &records[len..];
        }
    }
    names.sort();
    let mut expected: Vec<_> = (0..30).map(|n| format!("file{n}")).collect();
    expected.extend([".".to_owned(), "..".to_owned()]);
    expected.sort();
    assert_eq!(names, expected);
    let name = run.name(0, "file3");
    assert_eq!(run.call(nr::__NR_unlinkat, &[fd, name, 0]), Ok(0));
    assert_eq!(
        errno_of(run.call(nr::__NR_unlinkat, &[AT_FDCWD, name, 0])),
        Some(errno::ENOENT)
    );
    ends_clean(node, run);
}

#[test]
fn appending_goes_to_the_end_and_an_open_file_outlives_its_name() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.write_text("/tmp/log", "one\n");
    let fd = run.create("/tmp/log", O_APPEND).unwrap();
    run.put(DATA + 512, b"two\n");
    assert_eq!(run.call(nr::__NR_write, &[fd, DATA + 512, 4]), Ok(4));
    assert_eq!(run.text("/tmp/log"), b"one\ntwo\n");
    let name = run.name(0, "/tmp/log");
    assert_eq!(run.call(nr::__NR_unlink, &[name]), Ok(0));
    assert_eq!(run.status("/tmp/log"), None);
    assert_eq!(run.call(nr::__NR_pread64, &[fd, DATA + 512, 100, 0]), Ok(8));
    assert_eq!(run.call(nr::__NR_fstat, &[fd, DATA + 256]), Ok(0));
    let read_only = run.open("/big").unwrap();
    assert_eq!(
        errno_of(run.call(nr::__NR_ftruncate, &[read_only, 0])),
        Some(errno::EINVAL)
    );
    ends_clean(node, run);
}

#[test]
fn what_the_disk_has_in_tmp_stays_seen() {
    let node: &FakeNode = FakeNode::new(
        64,
        &[
            ("/bin/program", &program()),
            ("/tmp", b""),
            ("/tmp/given", b""),
            ("/tmp/given/file", b"text"),
        ],
    );
    let mut run = Run::new(node);
    assert_eq!(run.text("/tmp/given/file"), b"text");
    assert_eq!(run.text("/tmp/./given/../given/file"), b"text");
    run.write_text("/tmp/given/file", "other");
    assert_eq!(run.text("/tmp/given/file"), b"other");
    for name in ["/tmp/given/file", "/tmp/given"] {
        let name = run.name(0, name);
        assert_eq!(run.call(nr::__NR_unlink, &[name]), Ok(0));
    }
    assert_eq!(run.status("/tmp/given"), None);
    run.write_text("/tmp/given", "now here");
    assert_eq!(run.text("/tmp/given"), b"now here");
    run.write_text("/tmp/own", "own");
    assert_eq!(run.text("/tmp/own"), b"own");
    ends_clean(node, run);
}

/// Sets the effective user.
fn become_user(run: &mut Run, user: u64) {
    assert_eq!(
        run.call(nr::__NR_setresuid, &[u64::MAX, user, u64::MAX]),
        Ok(0)
    );
}

#[test]
fn names_are_changed_by_who_may_write_to_their_folder() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let one = |run: &mut Run, call: u32, path: &str, arg: u64| {
        let name = run.name(0, path);
        run.error(call, &[name, arg])
    };
    let own = run.name(0, "/tmp/own");
    run.call(nr::__NR_mkdir, &[own, 0o755]).unwrap();
    let inner = run.name(0, "/tmp/own/inner");
    run.call(nr::__NR_mkdir, &[inner, 0o755]).unwrap();
    run.write_text("/tmp/own/file", "text");
    run.write_text("/tmp/sticky", "text");
    run.write_text("/tmp/open", "text");
    assert_eq!(one(&mut run, nr::__NR_chmod, "/tmp/open", 0o666), None);
    become_user(&mut run, 1000);
    let refused = Some(errno::EACCES);
    assert_eq!(one(&mut run, nr::__NR_unlink, "/tmp/own/file", 0), refused);
    assert_eq!(one(&mut run, nr::__NR_rmdir, "/tmp/own/inner", 0), refused);
    assert_eq!(
        one(&mut run, nr::__NR_truncate, "/tmp/own/file", 1),
        refused
    );
    let two = |run: &mut Run, call, from: &str, to: &str| errno_of(run.two(call, from, to));
    let rename = nr::__NR_rename;
    assert_eq!(two(&mut run, rename, "/tmp/own/file", "/tmp/mine"), refused);
    assert_eq!(
        two(&mut run, nr::__NR_link, "/tmp/open", "/tmp/own/new"),
        refused
    );
    // Anybody may write to /tmp, and take out only what is his.
    let sticky = Some(errno::EPERM);
    assert_eq!(one(&mut run, nr::__NR_unlink, "/tmp/sticky", 0), sticky);
    assert_eq!(two(&mut run, rename, "/tmp/sticky", "/tmp/mine"), sticky);
    run.write_text("/tmp/mine", "text");
    assert_eq!(two(&mut run, rename, "/tmp/mine", "/tmp/sticky"), sticky);
    assert_eq!(one(&mut run, nr::__NR_truncate, "/tmp/open", 1), None);
    assert_eq!(one(&mut run, nr::__NR_unlink, "/tmp/mine", 0), None);
    // What lies in a folder that may not be searched is out of reach.
    become_user(&mut run, 0);
    assert_eq!(one(&mut run, nr::__NR_chmod, "/tmp/own", 0o700), None);
    become_user(&mut run, 1000);
    assert_eq!(one(&mut run, nr::__NR_open, "/tmp/own/file", 0), refused);
    assert_eq!(run.status("/tmp/own/inner"), None);
    become_user(&mut run, 0);
    assert_eq!(one(&mut run, nr::__NR_open, "/tmp/own/file", 0), None);
    ends_clean(node, run);
}

#[test]
fn names_that_come_and_go_are_seen_in_links_and_times() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let links = |run: &mut Run, path: &str| {
        let name = run.name(0, path);
        run.call(nr::__NR_stat, &[name, DATA + 256]).unwrap();
        run.get(DATA + 256 + 16, 1)[0]
    };
    let changed = |run: &mut Run, path: &str| {
        let name = run.name(0, path);
        run.call(nr::__NR_lstat, &[name, DATA + 256]).unwrap();
        run.get(DATA + 256 + 104, 16)
    };
    for path in ["/tmp/a", "/tmp/b", "/tmp/a/c", "/tmp/a/c/d"] {
        let name = run.name(0, path);
        run.call(nr::__NR_mkdir, &[name, 0o755]).unwrap();
    }
    assert_eq!(
        (links(&mut run, "/tmp/a"), links(&mut run, "/tmp/b")),
        (3, 2)
    );
    run.two(nr::__NR_rename, "/tmp/a/c", "/tmp/b/c").unwrap();
    assert_eq!(
        (links(&mut run, "/tmp/a"), links(&mut run, "/tmp/b")),
        (2, 3)
    );
    assert_eq!(links(&mut run, "/tmp/b/c"), 3);
    run.write_text("/tmp/a/file", "text");
    run.two(nr::__NR_link, "/tmp/a/file", "/tmp/b/other")
        .unwrap();
    let before = (
        changed(&mut run, "/tmp/a"),
        changed(&mut run, "/tmp/b/other"),
    );
    node.platform
        .clock
        .set(node.platform.clock.get() + 1_000_000);
    let name = run.name(0, "/tmp/a/file");
    run.call(nr::__NR_unlink, &[name]).unwrap();
    assert_ne!(changed(&mut run, "/tmp/a"), before.0);
    assert_ne!(changed(&mut run, "/tmp/b/other"), before.1);
    ends_clean(node, run);
}

#[test]
fn odd_names_have_linux_s_errors() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let long = format!("/tmp/{}", "x".repeat(256));
    for call in [
        nr::__NR_unlink,
        nr::__NR_rmdir,
        nr::__NR_mkdir,
        nr::__NR_chmod,
    ] {
        let name = run.put(DATA + 1024, format!("{long}\0").as_bytes());
        assert_eq!(run.error(call, &[name, 0]), Some(errno::ENAMETOOLONG));
    }
    let name = run.name(0, "/tmp/dir");
    run.call(nr::__NR_mkdir, &[name, 0o755]).unwrap();
    const TRUNC: u64 = 0o1000;
    const CREATE_NEW: u64 = 0o300;
    assert_eq!(
        run.error(nr::__NR_open, &[name, TRUNC]),
        Some(errno::EISDIR)
    );
    let busy = Some(errno::EBUSY);
    assert_eq!(
        errno_of(run.two(nr::__NR_rename, "/tmp/dir/.", "/tmp/x")),
        busy
    );
    assert_eq!(
        errno_of(run.two(nr::__NR_rename, "/tmp/dir/..", "/tmp/x")),
        busy
    );
    run.two(nr::__NR_symlink, "/tmp/nothing", "/tmp/link")
        .unwrap();
    let name = run.name(0, "/tmp/link");
    assert_eq!(
        run.error(nr::__NR_open, &[name, CREATE_NEW | 2, 0o600]),
        Some(errno::EEXIST)
    );
    run.write_text("/tmp/cut", "text");
    let name = run.name(0, "/tmp/cut");
    run.call(nr::__NR_open, &[name, TRUNC]).unwrap();
    assert_eq!(run.status("/tmp/cut").unwrap().2, 0);
    ends_clean(node, run);
}

#[test]
fn paths_go_through_what_exists_and_only_folders_end_with_a_slash() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    for folder in ["/tmp/a", "/tmp/a/b"] {
        let name = run.name(0, folder);
        run.call(nr::__NR_mkdir, &[name, 0o755]).unwrap();
    }
    run.write_text("/tmp/file", "outer");
    run.write_text("/tmp/a/file", "inner");
    run.two(nr::__NR_symlink, "a/b", "/tmp/link").unwrap();
    run.two(nr::__NR_symlink, "nothing/", "/tmp/dangles")
        .unwrap();
    // Up from a link is up from where it leads.
    assert_eq!(run.text("/tmp/link/../file"), b"inner");
    assert_eq!(run.text("/tmp/a/../file"), b"outer");
    assert_eq!(run.text("/tmp/../tmp/./a/b/.././file"), b"inner");
    for (path, flags, error) in [
        ("/tmp/none/..", 0, errno::ENOENT),
        ("/tmp/none/../file", 0, errno::ENOENT),
        ("/tmp/file/..", 0, errno::ENOTDIR),
        ("/tmp/file/.", 0, errno::ENOTDIR),
        ("/tmp/file/", 0, errno::ENOTDIR),
        ("/tmp/new/", O_CREAT | 1, errno::EISDIR),
        ("/tmp/dangles", O_CREAT | 1, errno::EISDIR),
        ("/tmp/none/way", O_CREAT | 1, errno::ENOENT),
    ] {
        let name = run.name(0, path);
        let got = run.error(nr::__NR_open, &[name, flags, 0o600]);
        assert_eq!(got, Some(error), "{path}");
    }
    for (call, to, error) in [
        (nr::__NR_rename, "/tmp/moved/", errno::ENOTDIR),
        (nr::__NR_link, "/tmp/linked/", errno::ENOENT),
        (nr::__NR_symlink, "/tmp/linked/", errno::ENOENT),
    ] {
        let got = errno_of(run.two(call, "/tmp/file", to));
        assert_eq!(got, Some(error), "{to}");
    }
    let name = run.name(0, "/tmp/fifo/");
    let got = run.error(nr::__NR_mknod, &[name, 0o010_600, 0]);
    assert_eq!(got, Some(errno::ENOENT));
    for (call, path) in [
        (nr::__NR_mkdir, "/tmp/made/"),
        (nr::__NR_chdir, "/tmp/made"),
        (nr::__NR_chdir, ".."),
        (nr::__NR_chdir, "link/.."),
    ] {
        let name = run.name(0, path);
        assert_eq!(run.call(call, &[name, 0o755]), Ok(0), "{path}");
    }
    assert_eq!(run.call(nr::__NR_getcwd, &[DATA, 64]), Ok(7));
    assert_eq!(run.get(DATA, 7), b"/tmp/a\0");
    assert_eq!(
        run.two(nr::__NR_rename, "/tmp/made", "/tmp/moved/"),
        Ok(0),
        "a folder may"
    );
    // The root of all.
    for path in ["/tmp/..", "/tmp/../", "/tmp/a/../.."] {
        let name = run.name(0, path);
        assert_eq!(run.call(nr::__NR_chdir, &[name]), Ok(0), "{path}");
        assert_eq!(run.call(nr::__NR_getcwd, &[DATA, 64]), Ok(2), "{path}");
        let name = run.name(0, path);
        let stat = run.call(nr::__NR_lstat, &[name, DATA + 0x400]);
        assert_eq!(stat, Ok(0), "{path}");
    }
    for path in ["/tmp", ".."] {
        let name = run.name(0, path);
        run.call(nr::__NR_chdir, &[name]).unwrap();
    }
    assert_eq!(run.call(nr::__NR_getcwd, &[DATA, 64]), Ok(2));
    ends_clean(node, run);
}

#[test]
fn two_names_are_exchanged() {
    const CWD: u64 = u64::MAX - 99;
    const EXCHANGE: u64 = 2;
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let swap = |run: &mut Run, from: &str, to: &str| {
        let (from, to) = (run.name(0, from), run.name(1, to));
        run.call(nr::__NR_renameat2, &[CWD, from, CWD, to, EXCHANGE])
    };
    for path in ["/tmp/a", "/tmp/a/folder", "/tmp/b"] {
        let name = run.name(0, path);
        run.call(nr::__NR_mkdir, &[name, 0o755]).unwrap();
    }
    run.write_text("/tmp/b/file", "four");
    assert_eq!(swap(&mut run, "/tmp/a/folder", "/tmp/b/file"), Ok(0));
    assert_eq!(run.status("/tmp/a/folder").unwrap().2, 4);
    assert_eq!(run.status("/tmp/b/file").unwrap().1, 0o040_755);
    let up = run.status("/tmp/b/file/..").unwrap().0;
    assert_eq!(up, run.status("/tmp/b").unwrap().0);
    let missing = swap(&mut run, "/tmp/a/folder", "/tmp/b/no");
    assert_eq!(errno_of(missing), Some(errno::ENOENT));
    let inside = swap(&mut run, "/tmp/b", "/tmp/b/file");
    assert_eq!(errno_of(inside), Some(errno::EINVAL));
    ends_clean(node, run);
}

#[test]
fn pages_that_programs_map_are_not_given_to_others_when_their_file_is_cut() {
    const RW: u64 = 3;
    const SHARED: u64 = 1;
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let fd = run.create("/tmp/cut", 0).unwrap();
    run.call(nr::__NR_ftruncate, &[fd, 16_384]).unwrap();
    let mapped = [0, 16_384, RW, SHARED, fd, 0];
    let at = run.call(nr::__NR_mmap, &mapped).unwrap();
    run.put(at, &[7; 16_384]);
    run.call(nr::__NR_ftruncate, &[fd, 100]).unwrap();
    let other = run.map(64 * 4096).unwrap();
    for page in 0..64 {
        run.put(other + page * 4096, &[9; 4096]);
    }
    assert_eq!(run.get(at, 100), [7; 100]);
    assert_eq!(run.get(at + 100, 3996), [0; 3996]);
    let beyond = node.block_on(run.thread.memory().read(at + 4096, &mut [0]));
    assert_eq!(beyond, Err(errno::EFAULT.into()));
    run.call(nr::__NR_ftruncate, &[fd, 16_384]).unwrap();
    assert_eq!(run.get(at + 100, 16_284), [0; 16_284]);
    run.put(at + 8192, &[1; 4096]);
    for page in 0..64 {
        assert_eq!(run.get(other + page * 4096, 4096), [9; 4096], "page {page}");
    }
    ends_clean(node, run);
}

#[test]
fn holes_are_punched_in_files_of_p_s_own() {
    const PUNCH: u64 = 3;
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let fd = run.create("/tmp/hole", 0).unwrap();
    let from = run.map(20_000).unwrap();
    run.put(from, &[7; 20_000]);
    run.call(nr::__NR_write, &[fd, from, 20_000]).unwrap();
    let punch = [fd, PUNCH, 100, 12_000];
    assert_eq!(run.call(nr::__NR_fallocate, &punch), Ok(0));
    assert_eq!(
        run.call(nr::__NR_pread64, &[fd, from, 20_000, 0]),
        Ok(20_000)
    );
    let expected = [&[7; 100][..], &[0; 12_000], &[7; 7_900]].concat();
    assert!(run.get(from, 20_000) == expected);
    let pages = |node: &FakeNode| {
        let chunks = node.memory.lent.borrow();
        (chunks.len(), node.cache.lines_in_use().0)
    };
    let held = pages(node);
    run.call(nr::__NR_fallocate, &[fd, PUNCH, 12_288, 4096])
        .unwrap();
    assert_eq!(pages(node).1, held.1 - 1, "a whole page is freed");
    run.put(from, &[7; 4096]);
    run.call(nr::__NR_pwrite64, &[fd, from, 4096, 12_288])
        .unwrap();
    // Beyond the end nothing happens, and the size stays.
    let beyond = [fd, PUNCH, 19_000, 1 << 30];
    assert_eq!(run.call(nr::__NR_fallocate, &beyond), Ok(0));
    assert_eq!(run.status("/tmp/hole").unwrap().2, 20_000);
    run.call(nr::__NR_ftruncate, &[fd, 24_000]).unwrap();
    assert_eq!(
        run.call(nr::__NR_pread64, &[fd, from, 2000, 18_990]),
        Ok(2000)
    );
    assert_eq!(run.get(from, 2000), [&[7; 10][..], &[0; 1990]].concat());
    // Without keeping the size there are no holes, as on Linux.
    let refused = run.call(nr::__NR_fallocate, &[fd, 2, 0, 4096]);
    assert_eq!(errno_of(refused), Some(errno::EOPNOTSUPP));
    ends_clean(node, run);
}

#[test]
fn files_of_devices_are_made_by_the_privileged() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let name = run.name(0, "/tmp/null");
    // S_IFCHR, major 1, minor 3: /dev/null.
    assert_eq!(run.call(nr::__NR_mknod, &[name, 0o020_622, 0x103]), Ok(0));
    assert_eq!(run.call(nr::__NR_stat, &[name, DATA + 256]), Ok(0));
    let status = run.get(DATA + 256, 48);
    // st_mode and st_rdev.
    assert_eq!(status[24..28], 0o020_600_u32.to_le_bytes());
    assert_eq!(status[40..48], 0x103_u64.to_le_bytes());
    let fd = run.call(nr::__NR_open, &[name, 2]).unwrap();
    assert_eq!(run.call(nr::__NR_write, &[fd, DATA, 10]), Ok(10));
    assert_eq!(run.call(nr::__NR_read, &[fd, DATA, 10]), Ok(0));
    assert_eq!(run.call(nr::__NR_close, &[fd]), Ok(0));
    let block = run.name(1, "/tmp/disk");
    assert_eq!(run.call(nr::__NR_mknod, &[block, 0o060_600, 0x103]), Ok(0));
    let refused = run.call(nr::__NR_open, &[block, 0]);
    assert_eq!(errno_of(refused), Some(errno::ENXIO));
    assert_eq!(run.call(nr::__NR_unlink, &[block]), Ok(0));
    assert_eq!(run.call(nr::__NR_unlink, &[name]), Ok(0));
    assert_eq!(run.call(nr::__NR_setuid, &[1000]), Ok(0));
    let refused = run.call(nr::__NR_mknod, &[name, 0o020_622, 0x103]);
    assert_eq!(errno_of(refused), Some(errno::EPERM));
    ends_clean(node, run);
}

#[test]
fn folders_are_as_deep_as_their_relative_paths_lead() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let part = run.put(DATA + 1024, &[&[b'd'; 250][..], b"\0"].concat());
    let tmp = run.name(0, "/tmp");
    run.call(nr::__NR_chdir, &[tmp]).unwrap();
    for _ in 0..20 {
        run.call(nr::__NR_mkdir, &[part, 0o755]).unwrap();
        run.call(nr::__NR_chdir, &[part]).unwrap();
    }
    // 5,024 bytes from the root on.
    let file = run.name(0, "file");
    let fd = run.call(nr::__NR_open, &[file, 0o102, 0o644]).unwrap();
    run.call(nr::__NR_close, &[fd]).unwrap();
    run.call(nr::__NR_unlink, &[file]).unwrap();
    let above = run.name(0, "..");
    for _ in 0..20 {
        run.call(nr::__NR_chdir, &[above]).unwrap();
        run.call(nr::__NR_rmdir, &[part]).unwrap();
    }
    run.end();
}
