//! Calls that are small or say the same in another form.

use super::*;
use crate::error::errno;

const AT_FDCWD: u64 = (-100i64).cast_unsigned();
const PATH: u64 = DATA + 0x100;
const HOW: u64 = DATA + 0x200;
const THERE: u64 = DATA + 0x300;

#[test]
fn memory_of_another_process_is_copied() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let at = run.map(3 * 4096).unwrap();
    let pid = run.call(nr::__NR_fork, &[]).unwrap();
    let child = node.started.borrow_mut().pop().unwrap();
    node.block_on(child.memory().write(at, b"of the child"))
        .unwrap();
    run.put(HOW, &words(&[DATA, 6, DATA + 16, 100]));
    run.put(THERE, &words(&[at, 4, at + 4, 8]));
    let read = [pid, HOW, 2, THERE, 2, 0];
    assert_eq!(run.call(nr::__NR_process_vm_readv, &read), Ok(12));
    assert_eq!(
        (run.get(DATA, 6), run.get(DATA + 16, 6)),
        (b"of the".to_vec(), b" child".to_vec())
    );
    run.put(HOW, &words(&[DATA, 6]));
    run.put(THERE, &words(&[at + 2 * 4096 + 4090, 10]));
    let write = [pid, HOW, 1, THERE, 1, 0];
    assert_eq!(run.call(nr::__NR_process_vm_writev, &write), Ok(6));
    let mut there = [0; 6];
    let read_back = child.memory().read(at + 2 * 4096 + 4090, &mut there);
    node.block_on(read_back).unwrap();
    assert_eq!(&there, b"of the");
    // What is not mapped there is not copied, and alone is an error.
    run.put(HOW, &words(&[DATA, 20]));
    run.put(THERE, &words(&[at + 3 * 4096 - 4, 20]));
    assert_eq!(
        run.call(nr::__NR_process_vm_readv, &[pid, HOW, 1, THERE, 1, 0]),
        Ok(4)
    );
    run.put(THERE, &words(&[8, 20]));
    let nowhere = run.call(nr::__NR_process_vm_readv, &[pid, HOW, 1, THERE, 1, 0]);
    assert_eq!(errno_of(nowhere), Some(errno::EFAULT));
    let flags = run.call(nr::__NR_process_vm_readv, &[pid, HOW, 1, THERE, 1, 1]);
    assert_eq!(errno_of(flags), Some(errno::EINVAL));
    let nobody = run.call(nr::__NR_process_vm_readv, &[999, HOW, 1, THERE, 1, 0]);
    assert_eq!(errno_of(nobody), Some(errno::ESRCH));
    run.call(nr::__NR_setresuid, &[9, 9, 9]).unwrap();
    let denied = run.call(nr::__NR_process_vm_readv, &[pid, HOW, 1, THERE, 1, 0]);
    assert_eq!(errno_of(denied), Some(errno::EPERM));
    node.block_on(child.run());
    run.end();
}

#[test]
fn scheduling_attributes_are_kept() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    // Size and policy (SCHED_RR), flags, niceness and static priority.
    run.put(HOW, &words(&[48 | 2 << 32, 1, 7 << 32, 0, 0, 0]));
    assert_eq!(run.call(nr::__NR_sched_setattr, &[0, HOW, 0]), Ok(0));
    assert_eq!(run.call(nr::__NR_sched_getattr, &[0, HOW, 56, 0]), Ok(0));
    assert_eq!(run.get(HOW, 24), words(&[56 | 2 << 32, 1, 7 << 32]));
    assert_eq!(run.call(nr::__NR_sched_getscheduler, &[0]), Ok(0x4000_0002));
    run.put(HOW, &words(&[48, 0, 5, 0, 0, 0]));
    assert_eq!(run.call(nr::__NR_sched_setattr, &[0, HOW, 0]), Ok(0));
    assert_eq!(run.thread.shared.nice(), 5);
    for (head, expected) in [
        (48 | 6 << 32, errno::EINVAL),
        (40, errno::E2BIG),
        (4097, errno::E2BIG),
    ] {
        run.put(HOW, &words(&[head, 0, 0, 0, 0, 0]));
        let refused = run.call(nr::__NR_sched_setattr, &[0, HOW, 0]);
        assert_eq!(errno_of(refused), Some(expected), "{head:#x}");
    }
    let small = run.call(nr::__NR_sched_getattr, &[0, HOW, 47, 0]);
    assert_eq!(errno_of(small), Some(errno::EINVAL));
}

#[test]
fn open_by_structure_takes_no_flag_that_it_does_not_know() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.put(PATH, b"/big\0");
    let mut open = |how: [u64; 4], size: u64| {
        run.put(HOW, &words(&how));
        run.call(nr::__NR_openat2, &[AT_FDCWD, PATH, HOW, size])
    };
    let fd = open([0, 0, 0, 0], 24).unwrap();
    assert_eq!(open([0, 0, 0, 0], 32), Ok(fd + 1));
    for (how, size, expected) in [
        ([0, 0, 0, 1], 32, errno::E2BIG),
        ([0, 0, 0, 0], 16, errno::EINVAL),
        ([1 << 40, 0, 0, 0], 24, errno::EINVAL),
        ([0, 0o600, 0, 0], 24, errno::EINVAL),
        // An unknown restriction; RESOLVE_BENEATH and RESOLVE_IN_ROOT; RESOLVE_CACHED.
        ([0, 0, 64, 0], 24, errno::EINVAL),
        ([0, 0, 24, 0], 24, errno::EINVAL),
        ([0, 0, 32, 0], 24, errno::EAGAIN),
    ] {
        assert_eq!(errno_of(open(how, size)), Some(expected), "{how:x?}");
    }
}

#[test]
fn ways_to_a_file_are_restricted() {
    let [no_xdev, no_magic, no_links, beneath, in_root] = [1_u64, 2, 4, 8, 16];
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    for (call, from, to) in [
        (nr::__NR_mkdir, "/tmp/a", ""),
        (nr::__NR_mkdir, "/tmp/a/b", ""),
        (nr::__NR_symlink, "b", "/tmp/a/inner"),
        (nr::__NR_symlink, "/tmp/a/b", "/tmp/a/absolute"),
        (nr::__NR_symlink, "../..", "/tmp/a/b/out"),
        (nr::__NR_symlink, "/bin", "/tmp/a/bin"),
    ] {
        run.put(PATH, format!("{from}\0").as_bytes());
        run.put(PATH + 64, format!("{to}\0").as_bytes());
        let second = if call == nr::__NR_mkdir {
            0o755
        } else {
            PATH + 64
        };
        assert_eq!(run.call(call, &[PATH, second]), Ok(0), "{from}");
    }
    run.put(PATH, b"/tmp/a\0");
    let dir = run.call(nr::__NR_open, &[PATH, 0]).unwrap();
    let mut open = |path: &str, flags: u64, resolve: u64| {
        run.put(PATH, format!("{path}\0").as_bytes());
        let mode = if flags & 0o100 == 0 { 0 } else { 0o600 };
        run.put(HOW, &words(&[flags, mode, resolve]));
        let opened = run.call(nr::__NR_openat2, &[dir, PATH, HOW, 24]);
        opened
            .map(|fd| assert_eq!(run.call(nr::__NR_close, &[fd]), Ok(0)))
            .map_err(|error| match error {
                Error::Errno(errno) => errno,
                error => panic!("{error}"),
            })
    };
    for (path, resolve, expected) in [
        ("inner", beneath, Ok(())),
        ("inner", no_links, Err(errno::ELOOP)),
        ("inner/../b", beneath, Ok(())),
        ("absolute", beneath, Err(errno::EXDEV)),
        ("absolute", in_root, Err(errno::ENOENT)),
        ("..", beneath, Err(errno::EXDEV)),
        ("../../b", in_root, Ok(())),
        ("/b", in_root, Ok(())),
        ("/tmp", beneath, Err(errno::EXDEV)),
        ("b/out", beneath, Err(errno::EXDEV)),
        ("b/out", in_root, Ok(())),
        ("b/out", no_xdev, Ok(())),
        ("../..", no_xdev, Err(errno::EXDEV)),
        ("bin", no_xdev, Err(errno::EXDEV)),
        ("/bin", no_xdev, Ok(())),
        ("b/", no_links, Ok(())),
        ("/proc/version/", no_links, Err(errno::ENOTDIR)),
        ("b/missing/x", beneath, Err(errno::ENOENT)),
        ("/proc/self/fd/1", no_magic, Err(errno::ELOOP)),
        ("/proc/self/status", no_magic, Ok(())),
        ("/proc/self/status", no_links, Err(errno::ELOOP)),
        ("/proc/self/cwd/bin", no_xdev, Err(errno::EXDEV)),
        ("/proc/self/cwd/bin", beneath | no_links, Err(errno::EXDEV)),
    ] {
        assert_eq!(open(path, 0, resolve), expected, "{path} with {resolve}");
    }
    assert_eq!(open("b/new", 0o101, beneath), Ok(()));
    assert_eq!(open("/b/new", 0o301, in_root), Err(errno::EEXIST));
    assert_eq!(open("inner", 0o400_000, beneath), Err(errno::ELOOP));
    assert_eq!(
        open("inner", 0o10_400_000, no_links),
        Ok(()),
        "O_PATH of the link"
    );
}

#[test]
fn modes_attributes_and_ranges_by_their_newer_calls() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.put(PATH, b"/tmp/file\0");
    let fd = run.call(nr::__NR_open, &[PATH, 0o102, 0o600]).unwrap();
    let chmod = |run: &mut Run, flags: u64, mode: u64| {
        run.call(nr::__NR_fchmodat2, &[AT_FDCWD, PATH, mode, flags])
    };
    assert_eq!(chmod(&mut run, 0x100, 0o640), Ok(0));
    assert_eq!(run.call(nr::__NR_fstat, &[fd, HOW]), Ok(0));
    assert_eq!(run.get(HOW + 24, 4), 0o100_640u32.to_le_bytes());
    assert_eq!(errno_of(chmod(&mut run, 1, 0)), Some(errno::EINVAL));
    run.put(PATH, b"\0");
    assert_eq!(
        run.call(nr::__NR_fchmodat2, &[fd, PATH, 0o600, 0x1000]),
        Ok(0)
    );
    run.put(PATH, b"/tmp/link\0");
    run.put(DATA, b"file\0");
    assert_eq!(run.call(nr::__NR_symlink, &[DATA, PATH]), Ok(0));
    assert_eq!(errno_of(chmod(&mut run, 0x100, 0)), Some(errno::EOPNOTSUPP));

    run.put(DATA, b"user.name\0");
    run.put(HOW, &words(&[DATA, 4]));
    let get = [AT_FDCWD, PATH, 0, DATA, HOW, 16];
    let mut refused = |number: u32, args: &[u64]| errno_of(run.call(number, args));
    assert_eq!(refused(nr::__NR_getxattrat, &get), Some(errno::ENODATA));
    assert_eq!(refused(nr::__NR_setxattrat, &get), Some(errno::EOPNOTSUPP));
    assert_eq!(refused(nr::__NR_removexattrat, &get), Some(errno::ENODATA));
    assert_eq!(refused(nr::__NR_listxattrat, &get), None);
    assert_eq!(
        refused(nr::__NR_getxattrat, &[AT_FDCWD, PATH, 0, DATA, HOW, 8]),
        Some(errno::EINVAL)
    );
    assert_eq!(
        refused(nr::__NR_listxattrat, &[AT_FDCWD, PATH, 1]),
        Some(errno::EINVAL)
    );

    assert_eq!(refused(nr::__NR_sync_file_range, &[fd, 0, 0, 7]), None);
    assert_eq!(
        refused(nr::__NR_sync_file_range, &[fd, 0, 0, 8]),
        Some(errno::EINVAL)
    );
    assert_eq!(
        refused(nr::__NR_sync_file_range, &[fd, u64::MAX, 1, 0]),
        Some(errno::EINVAL)
    );
    assert_eq!(
        refused(nr::__NR_sync_file_range, &[1, 0, 0, 0]),
        Some(errno::ESPIPE)
    );
}

#[test]
fn a_personality_is_kept_and_inherited() {
    const NO_RANDOMIZE: u64 = 0x4_0000;
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let ask = |run: &mut Run| run.call(nr::__NR_personality, &[0xffff_ffff]);
    let machine = |run: &mut Run| {
        run.call(nr::__NR_uname, &[DATA]).unwrap();
        run.get(DATA + 4 * 65, 6)
    };
    assert_eq!(ask(&mut run), Ok(0));
    assert_eq!(machine(&mut run), b"x86_64");
    // The upper half of the word is not looked at.
    let set = run.call(nr::__NR_personality, &[1 << 32 | NO_RANDOMIZE | 8]);
    assert_eq!(set, Ok(0));
    assert_eq!(ask(&mut run), Ok(NO_RANDOMIZE | 8));
    assert_eq!(machine(&mut run), b"i686\0\0");
    run.call(nr::__NR_fork, &[]).unwrap();
    let child = node.started.borrow_mut().pop().unwrap();
    assert_eq!(u64::from(child.process.personality()), NO_RANDOMIZE | 8);
    assert!(child.process.has_fixed_layout());
    child.process.clear_personality();
    assert_eq!(child.process.personality(), 8);
    assert_eq!(ask(&mut run), Ok(NO_RANDOMIZE | 8));
    node.block_on(child.run());
    run.end();
}

#[test]
fn strings_have_linux_s_longest_lengths() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let at = run.map(64 * 4096).unwrap();
    let end = at + 64 * 4096;
    // The last string of the memory that is mapped: nothing behind it is looked at.
    let string = |run: &mut Run, len: usize| {
        let start = end - len as u64 - 1;
        run.put(start, &[&vec![b'/'; len][..], b"\0"].concat());
        start
    };
    for (len, fails) in [(4095, None), (4096, Some(errno::ENAMETOOLONG))] {
        let path = string(&mut run, len);
        assert_eq!(errno_of(run.call(nr::__NR_access, &[path, 0])), fails);
    }
    let endless = end - 4096;
    run.put(endless, &[b'/'; 4096]);
    let access = run.call(nr::__NR_access, &[endless, 0]);
    assert_eq!(errno_of(access), Some(errno::ENAMETOOLONG));
    let access = run.call(nr::__NR_access, &[endless + 1, 0]);
    assert_eq!(errno_of(access), Some(errno::EFAULT));
    for (len, fails) in [(249, None), (250, Some(errno::EINVAL))] {
        let name = string(&mut run, len);
        assert_eq!(errno_of(run.call(nr::__NR_memfd_create, &[name, 0])), fails);
    }
    let program = DATA + 0x400;
    run.put(program, b"/nowhere\0");
    for (len, fails) in [(131_071, errno::ENOENT), (131_072, errno::E2BIG)] {
        let argument = string(&mut run, len);
        run.put(THERE, &words(&[argument, 0]));
        let execve = run.call(nr::__NR_execve, &[program, THERE, 0]);
        assert_eq!(errno_of(execve), Some(fails));
    }
    run.end();
}

#[test]
fn times_before_1970_are_kept() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.put(PATH, b"/tmp/old\0");
    let fd = run.call(nr::__NR_open, &[PATH, 0o102, 0o644]).unwrap();
    let before = |seconds: i64| seconds.cast_unsigned();
    let (accessed, modified) = (before(-1), before(i32::MIN.into()));
    run.put(HOW, &words(&[accessed, 5, modified, 999_999_999]));
    assert_eq!(run.call(nr::__NR_utimensat, &[fd, 0, HOW, 0]), Ok(0));
    run.call(nr::__NR_fstat, &[fd, THERE]).unwrap();
    // st_atim and st_mtim.
    let kept = words(&[accessed, 5, modified, 999_999_999]);
    assert_eq!(run.get(THERE + 72, 32), kept);
    run.put(HOW, &words(&[accessed, 5, modified, 999_999]));
    let at = [AT_FDCWD, PATH, HOW];
    assert_eq!(run.call(nr::__NR_futimesat, &at), Ok(0));
    run.call(nr::__NR_fstat, &[fd, THERE]).unwrap();
    let kept = words(&[accessed, 5_000, modified, 999_999_000]);
    assert_eq!(run.get(THERE + 72, 32), kept);
    run.put(HOW, &words(&[modified, accessed]));
    assert_eq!(run.call(nr::__NR_utime, &[PATH, HOW]), Ok(0));
    run.call(nr::__NR_fstat, &[fd, THERE]).unwrap();
    assert_eq!(run.get(THERE + 72, 32), words(&[modified, 0, accessed, 0]));
    for nanos in [1_000_000_000, before(-1)] {
        run.put(HOW, &words(&[0, nanos, 0, 0]));
        let wrong = run.call(nr::__NR_utimensat, &[fd, 0, HOW, 0]);
        assert_eq!(errno_of(wrong), Some(errno::EINVAL));
    }
    // What is written afterwards is newer.
    run.put(DATA, b"new");
    assert_eq!(run.call(nr::__NR_write, &[fd, DATA, 3]), Ok(3));
    run.call(nr::__NR_fstat, &[fd, THERE]).unwrap();
    assert_ne!(run.get(THERE + 88, 8), words(&[accessed]));
    run.end();
}
