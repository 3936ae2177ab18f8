//! Files of S: what programs change there, and what this node keeps of them.

use messages::storage::{Caller, Privileges};

use super::tmp::ends_clean;
use super::*;

const APPEND: u64 = 0o2000;
const TRUNC: u64 = 0o1000;
const DSYNC: u64 = 0o10_000;
const PRIVATE: u64 = 2;
const SHARED: u64 = 1;

#[test]
fn writes_go_through_at_once() {
    let node: &FakeNode = node(32);
    let mut run = Run::new(node);
    let fd = run.create("/new", 0).unwrap();
    let at = run.map(200_000).unwrap();
    let bytes: Vec<u8> = (0..200_000u32)
        .map(|n| ((n * 7) >> 3).to_le_bytes()[0])
        .collect();
    run.put(at, &bytes);
    assert_eq!(run.call(nr::__NR_write, &[fd, at, 150_000]), Ok(150_000));
    assert_eq!(run.call(nr::__NR_pwrite64, &[fd, at, 10, 199_990]), Ok(10));
    assert_eq!(run.status("/new").unwrap().1, 0o100_644);
    assert_eq!(run.status("/new").unwrap().2, 200_000);
    let to = run.map(200_000).unwrap();
    assert_eq!(
        run.call(nr::__NR_pread64, &[fd, to, 300_000, 0]),
        Ok(200_000)
    );
    let read = run.get(to, 200_000);
    assert!(read[..150_000] == bytes[..150_000] && read[199_990..] == bytes[..10]);
    assert!(read[150_000..199_990].iter().all(|&byte| byte == 0));
    assert_eq!(node.files.syncs.get(), 0);
    assert_eq!(run.call(nr::__NR_fsync, &[fd]), Ok(0));
    assert_eq!(run.call(nr::__NR_fdatasync, &[fd]), Ok(0));
    let sync = run.create("/new", DSYNC | APPEND).unwrap();
    assert_eq!(run.call(nr::__NR_pwrite64, &[sync, at, 3, 0]), Ok(3));
    assert_eq!(node.files.syncs.get(), 3);
    assert_eq!(
        run.status("/new").unwrap().2,
        200_003,
        "pwrite appends, as on Linux"
    );
    assert_eq!(run.call(nr::__NR_lseek, &[fd, 0, 2]), Ok(200_003));
    let writer = run.name(0, "/new");
    let writer = run.call(nr::__NR_open, &[writer, 1]).unwrap();
    assert_eq!(
        errno_of(run.call(nr::__NR_read, &[writer, to, 1])),
        Some(errno::EBADF)
    );
    ends_clean(node, run);
    assert_eq!(
        node.files.syncs.get(),
        4,
        "the end of the run makes all durable"
    );
    assert_eq!(node.files.open.get(), 0);
}

#[test]
fn a_run_that_changes_nothing_syncs_nothing() {
    let node: &FakeNode = node(32);
    let mut run = Run::new(node);
    let fd = run.open("/big").unwrap();
    assert_eq!(run.call(nr::__NR_read, &[fd, DATA, 100]), Ok(100));
    ends_clean(node, run);
    assert_eq!(node.files.syncs.get(), 0);
}

#[test]
fn names_and_attributes_change_at_s() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let dir = run.name(0, "/dir");
    assert_eq!(run.call(nr::__NR_umask, &[0o027]), Ok(0o022));
    assert_eq!(run.call(nr::__NR_mkdir, &[dir, 0o777]), Ok(0));
    assert_eq!(run.status("/dir").unwrap().1, 0o040_750);
    run.write_text("/dir/a", "one");
    assert_eq!(run.two(nr::__NR_rename, "/dir/a", "/dir/b"), Ok(0));
    assert_eq!(run.two(nr::__NR_link, "/dir/b", "/dir/c"), Ok(0));
    let name = run.name(0, "/dir/b");
    assert_eq!(run.call(nr::__NR_unlink, &[name]), Ok(0));
    assert_eq!(
        (run.status("/dir/b"), run.text("/dir/c")),
        (None, b"one".to_vec())
    );
    let name = run.name(0, "/dir/c");
    assert_eq!(run.call(nr::__NR_chmod, &[name, 0o4711]), Ok(0));
    assert_eq!(run.call(nr::__NR_truncate, &[name, 2]), Ok(0));
    assert_eq!(run.status("/dir/c").unwrap().1, 0o104_711);
    assert_eq!(run.text("/dir/c"), b"on");
    assert_eq!(
        errno_of(run.two(nr::__NR_rename, "/dir/c", "/tmp/c")),
        Some(errno::EXDEV)
    );
    assert_eq!(errno_of(run.create("/dir/c", 0o200)), Some(errno::EEXIST));
    // A file that never had a name gets one.
    let name = run.name(0, "/dir");
    let fd = run.call(nr::__NR_open, &[name, 0o20_200_002, 0o600]);
    assert_eq!(
        errno_of(fd),
        Some(errno::EISDIR),
        "the fake knows no files without names"
    );
    let fd = run.create("/dir/c", 0).unwrap();
    let (empty, new) = (run.name(2, ""), run.name(3, "/dir/d"));
    let at_cwd = (-100i64).cast_unsigned();
    assert_eq!(
        run.call(nr::__NR_linkat, &[fd, empty, at_cwd, new, 0x1000]),
        Ok(0)
    );
    assert_eq!(run.text("/dir/d"), b"on");
    // The devices are not on the disk.
    let null = run.name(0, "/dev/null");
    for (call, errno) in [
        (nr::__NR_unlink, errno::EROFS),
        (nr::__NR_mkdir, errno::EEXIST),
    ] {
        assert_eq!(errno_of(run.call(call, &[null, 0])), Some(errno));
    }
    ends_clean(node, run);
}

#[test]
fn reading_ahead_never_shows_what_was_overwritten() {
    let node = node(64);
    node.files.most = 1 << 20;
    let node: &FakeNode = node;
    let mut run = Run::new(node);
    let fd = run.open("/big").unwrap();
    // Read ahead is what is read one behind the other.
    for _ in 0..3 {
        assert_eq!(run.call(nr::__NR_read, &[fd, DATA, 100]), Ok(100));
    }
    let writer = run.create("/big", 0).unwrap();
    run.put(DATA, b"fresh");
    assert_eq!(run.call(nr::__NR_pwrite64, &[writer, DATA, 5, 300]), Ok(5));
    assert_eq!(run.call(nr::__NR_read, &[fd, DATA + 100, 5]), Ok(5));
    assert_eq!(run.get(DATA + 100, 5), b"fresh");
    assert_eq!(run.call(nr::__NR_ftruncate, &[writer, 310]), Ok(0));
    assert_eq!(run.call(nr::__NR_read, &[fd, DATA + 100, 100]), Ok(5));
    ends_clean(node, run);
}

#[test]
fn mappings_see_what_is_written_cut_and_punched() {
    let node: &FakeNode = node(16);
    let mut run = Run::new(node);
    let fd = run.create("/big", 0).unwrap();
    let map =
        |run: &mut Run, len, prot, kind| run.call(nr::__NR_mmap, &[0, len, prot, kind, fd, 0]);
    let seen = map(&mut run, 100_000, 1, SHARED).unwrap();
    let own = map(&mut run, 100_000, 3, PRIVATE).unwrap();
    let before = run.get(seen, 100_000);
    run.put(own + 8192, b"own");
    // Across pages that are here, and pages that have not come.
    run.put(DATA, &[0x77; 300]);
    for at in [4000, 8190, 70_000, 99_900] {
        assert_eq!(run.call(nr::__NR_pwrite64, &[fd, DATA, 300, at]), Ok(300));
    }
    assert_eq!(
        run.get(seen + 3999, 302),
        [&before[3999..4000], &[0x77; 300], &before[4300..4301]].concat()
    );
    assert_eq!(
        run.get(own + 8190, 6),
        b"\x77\x77own\x6d".map(|byte| if byte == 0x6d { before[8195] } else { byte })
    );
    assert_eq!(
        (run.get(seen + 70_000, 300), run.get(seen + 99_900, 100)),
        (vec![0x77; 300], vec![0x77; 100])
    );
    // All pages go to remote memory and come back.
    let other = run.map(64 * 4096).unwrap();
    for page in 0..64 {
        run.put(other + page * 4096, &[1]);
    }
    assert_eq!(run.get(seen + 8190, 300), [0x77; 300]);
    assert_eq!(
        run.call(nr::__NR_fallocate, &[fd, 3, 60_000, 20_000]),
        Ok(0)
    );
    assert_eq!(run.get(seen + 59_999, 2), [before[59_999], 0]);
    assert_eq!(run.get(seen + 70_000, 10), [0; 10]);
    // Cut, and grown again.
    assert_eq!(run.call(nr::__NR_ftruncate, &[fd, 5000]), Ok(0));
    assert_eq!(run.call(nr::__NR_ftruncate, &[fd, 90_000]), Ok(0));
    assert_eq!(
        run.get(seen + 4290, 12),
        [&[0x77; 10][..], &before[4300..4302]].concat()
    );
    assert_eq!(
        (run.get(seen + 5000, 100), run.get(seen + 80_000, 100)),
        (vec![0; 100], vec![0; 100])
    );
    // A longer file, mapped again, has its new pages.
    assert_eq!(
        run.call(nr::__NR_pwrite64, &[fd, DATA, 300, 300_000]),
        Ok(300)
    );
    let longer = map(&mut run, 300_300, 1, PRIVATE).unwrap();
    assert_eq!(run.get(longer + 300_000, 300), [0x77; 300]);
    assert_eq!(
        run.call(nr::__NR_pwrite64, &[fd, DATA, 100, 300_000]),
        Ok(100)
    );
    assert_eq!(run.get(longer + 4000, 300), [0x77; 300]);
    // Emptied by an open: nothing is behind the end.
    run.create("/big", TRUNC).unwrap();
    for at in [4000, 200_000] {
        let refused = run.call(nr::__NR_write, &[fd, longer + at, 10]);
        assert_eq!(errno_of(refused), Some(errno::EFAULT));
    }
    ends_clean(node, run);
    assert_eq!(node.files.open.get(), 0);
}

#[test]
fn pages_of_a_removed_file_are_kept_only_while_they_are_mapped() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.write_text("/old", "old text");
    let fd = run.open("/old").unwrap();
    let at = run
        .call(nr::__NR_mmap, &[0, 4096, 1, PRIVATE, fd, 0])
        .unwrap();
    assert_eq!(run.get(at, 8), b"old text");
    run.call(nr::__NR_close, &[fd]).unwrap();
    let open = node.files.open.get();
    run.write_text("/fresh", "new");
    assert_eq!(run.two(nr::__NR_rename, "/fresh", "/old"), Ok(0));
    assert_eq!(
        (run.get(at, 8), run.text("/old")),
        (b"old text".to_vec(), b"new".to_vec())
    );
    assert_eq!(
        node.files.open.get(),
        open + 1,
        "the pages of the new file are kept, too"
    );
    run.call(nr::__NR_munmap, &[at, 4096]).unwrap();
    run.call(nr::__NR_getppid, &[]).unwrap();
    assert_eq!(node.files.open.get(), open);
    ends_clean(node, run);
}

#[test]
fn sizes_of_the_file_system_are_s_s() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let word = |run: &Run, at: u64| {
        u64::from_le_bytes(run.get(DATA + 256 + at * 8, 8).try_into().unwrap())
    };
    let name = run.name(0, "/bin");
    assert_eq!(run.call(nr::__NR_statfs, &[name, DATA + 256]), Ok(0));
    assert_eq!(
        [0, 2, 3, 10].map(|at| word(&run, at)),
        [0xef53, 1000, 500, 0x20]
    );
    let fd = run.create("/tmp/x", 0).unwrap();
    assert_eq!(run.call(nr::__NR_fstatfs, &[fd, DATA + 256]), Ok(0));
    assert_eq!(word(&run, 0), 0x0102_1994);
    for (path, magic) in [
        ("/dev", 0x0102_1994),
        ("/dev/null", 0x0102_1994),
        ("/dev/pts", 0x1cd1),
        ("/proc", 0x9fa0),
        ("/proc/self/stat", 0x9fa0),
        ("/sys", 0x6265_6572),
    ] {
        let name = run.name(0, path);
        assert_eq!(run.call(nr::__NR_statfs, &[name, DATA + 256]), Ok(0));
        let by_path = run.get(DATA + 256, 120);
        assert_eq!(word(&run, 0), magic, "{path}");
        let fd = run.open(path).unwrap();
        assert_eq!(run.call(nr::__NR_fstatfs, &[fd, DATA + 256]), Ok(0));
        assert_eq!(run.get(DATA + 256, 120), by_path, "{path}");
    }
    assert_eq!(run.call(nr::__NR_fstatfs, &[0, DATA + 256]), Ok(0));
    assert_eq!(word(&run, 0), 0x5049_5045, "a pipe");
    ends_clean(node, run);
}

#[test]
fn s_is_asked_in_the_name_of_who_calls() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let asked = || node.files.callers.borrow().last().cloned().unwrap();
    let root = Caller::ROOT;
    run.status("/big").unwrap();
    assert_eq!(asked(), (root.user, root.group, root.privileges, vec![]));
    let groups = [7_u32, 5].map(u32::to_le_bytes).concat();
    run.put(DATA, &groups);
    run.call(nr::__NR_setgroups, &[2, DATA]).unwrap();
    run.call(nr::__NR_setresgid, &[100, 101, 102]).unwrap();
    // With 1000 as the real user, whom access(2) asks for, and 1001 as the effective one.
    run.call(nr::__NR_setresuid, &[1000, 1001, 1001]).unwrap();
    let user = (1001, 101, Privileges::empty(), vec![5, 7]);
    let open = run.name(0, "/open");
    run.call(nr::__NR_mkdir, &[open, 0o777]).unwrap();
    assert_eq!(asked(), user);
    run.write_text("/open/own", "own");
    let made = node.files.callers.borrow().len();
    let name = run.name(0, "/open/own");
    for (call, args) in [
        (nr::__NR_chmod, [name, 0o600]),
        (nr::__NR_truncate, [name, 1]),
        (nr::__NR_utime, [name, 0]),
        (nr::__NR_unlink, [name, 0]),
    ] {
        run.call(call, &args).unwrap();
    }
    assert_eq!(
        node.files.callers.borrow().len(),
        made + 4,
        "one request each"
    );
    assert!(
        node.files.callers.borrow()[made..]
            .iter()
            .all(|by| *by == user)
    );
    let open = run.name(0, "/open");
    run.call(nr::__NR_access, &[open, 4]).unwrap();
    assert_eq!((asked().0, asked().1), (1000, 100));
    ends_clean(node, run);
}

#[test]
fn a_file_that_s_does_not_open_is_not_opened() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    node.files.refuses.set(true);
    for flags in [0, TRUNC] {
        assert_eq!(errno_of(run.create("/big", flags)), Some(errno::EACCES));
    }
    node.files.refuses.set(false);
    assert_eq!(run.status("/big").unwrap().2, 100_000, "it was not emptied");
    ends_clean(node, run);
}

#[test]
fn a_program_that_runs_is_not_written_and_one_that_is_written_does_not_run() {
    const RDWR: u64 = 2;
    const TRUNC: u64 = 0o1000;
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let busy = |done: Result<u64, Error>| {
        assert_eq!(errno_of(done), Some(errno::ETXTBSY));
    };
    let program = run.name(0, "/bin/program");
    let before = node.files.open.get();
    for flags in [RDWR, 1, TRUNC, 1 | TRUNC] {
        busy(run.call(nr::__NR_open, &[program, flags]));
    }
    busy(run.call(nr::__NR_truncate, &[program, 5]));
    assert_eq!(node.files.open.get(), before, "nothing stays open");
    let read = run.call(nr::__NR_open, &[program, 0]).unwrap();
    let size = run.call(nr::__NR_lseek, &[read, 0, 2]);
    assert_eq!(size, Ok(0x1000), "it is whole");
    // A copy that is open for writing, and mapped.
    let name = run.name(0, "/tmp/copy");
    let copy = run.call(nr::__NR_open, &[name, 0o102, 0o755]).unwrap();
    let at = run.map(0x1000).unwrap();
    assert_eq!(
        run.call(nr::__NR_pread64, &[read, at, 0x1000, 0]),
        Ok(0x1000)
    );
    assert_eq!(run.call(nr::__NR_write, &[copy, at, 0x1000]), Ok(0x1000));
    let name = run.name(0, "/tmp/copy");
    assert_eq!(run.call(nr::__NR_chmod, &[name, 0o755]), Ok(0));
    busy(run.call(nr::__NR_execve, &[name, 0, 0]));
    run.call(nr::__NR_mmap, &[0, 0x1000, 3, 1, copy, 0])
        .unwrap();
    assert_eq!(run.call(nr::__NR_close, &[copy]), Ok(0));
    assert_eq!(run.call(nr::__NR_execve, &[name, 0, 0]), Ok(0));
    // The old program's file is free, the new one's is not.
    let name = run.name(0, "/tmp/copy");
    busy(run.call(nr::__NR_open, &[name, RDWR]));
    busy(run.call(nr::__NR_truncate, &[name, 5]));
    let program = run.name(0, "/bin/program");
    let written = run.call(nr::__NR_open, &[program, RDWR]).unwrap();
    assert_eq!(run.call(nr::__NR_close, &[written]), Ok(0));
    // A child keeps it, and lets go with its end.
    run.call(nr::__NR_fork, &[]).unwrap();
    assert_eq!(run.call(nr::__NR_execve, &[program, 0, 0]), Ok(0));
    let name = run.name(0, "/tmp/copy");
    busy(run.call(nr::__NR_open, &[name, RDWR]));
    node.run_started();
    assert!(run.call(nr::__NR_open, &[name, RDWR]).is_ok());
    ends_clean(node, run);
}
