//! Calls of few lines: their values and errors as Linux has them.

use super::*;

const O_RDWR: u64 = 2;
const O_CREAT: u64 = 0o100;
const O_DIRECTORY: u64 = 0o200_000;
const O_NOFOLLOW: u64 = 0o400_000;
const O_PATH: u64 = 0o10_000_000;
const AT_FDCWD: u64 = (-100i64).cast_unsigned();
const EMPTY_PATH: u64 = 0x1000;

impl Run {
    fn text_at(&self, place: u64, text: &str) -> u64 {
        self.put(DATA + place * 64, format!("{text}\0").as_bytes())
    }

    pub(super) fn error(&mut self, number: u32, args: &[u64]) -> Option<messages::Errno> {
        errno_of(self.call(number, args))
    }
}

#[test]
fn a_place_is_neither_read_nor_written() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let name = run.text_at(0, "/tmp/file");
    run.call(nr::__NR_open, &[name, O_RDWR | O_CREAT, 0o600])
        .unwrap();
    let place = run.call(nr::__NR_open, &[name, O_PATH | O_RDWR]).unwrap();
    assert_eq!(
        run.error(nr::__NR_read, &[place, DATA + 512, 1]),
        Some(errno::EBADF)
    );
    assert_eq!(
        run.error(nr::__NR_write, &[place, DATA, 1]),
        Some(errno::EBADF)
    );
    assert_eq!(
        run.error(nr::__NR_ftruncate, &[place, 0]),
        Some(errno::EBADF)
    );
    assert!(run.call(nr::__NR_fstat, &[place, DATA + 512]).is_ok());
    assert!(run.call(nr::__NR_dup, &[place]).is_ok());
    let link = run.text_at(1, "/tmp/link");
    run.call(nr::__NR_symlink, &[name, link]).unwrap();
    assert_eq!(
        run.error(nr::__NR_open, &[link, O_NOFOLLOW]),
        Some(errno::ELOOP)
    );
    let itself = run
        .call(nr::__NR_open, &[link, O_PATH | O_NOFOLLOW])
        .unwrap();
    run.call(nr::__NR_fstat, &[itself, DATA + 512]).unwrap();
    let mode = u32::from_le_bytes(run.get(DATA + 512 + 24, 4).try_into().unwrap());
    assert_eq!(mode >> 12, 0o12, "a symbolic link");
    let folder = run.text_at(0, "/tmp");
    let folder = run
        .call(nr::__NR_open, &[folder, O_PATH | O_DIRECTORY])
        .unwrap();
    let name = run.text_at(0, "file");
    assert!(run.call(nr::__NR_openat, &[folder, name, 0]).is_ok());
    assert_eq!(run.call(nr::__NR_fchdir, &[folder]), Ok(0));
    assert_eq!(
        run.error(nr::__NR_getdents64, &[folder, DATA + 512, 512]),
        Some(errno::EBADF)
    );
}

#[test]
fn pieces_are_read_and_written_at_an_offset() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let name = run.text_at(0, "/tmp/file");
    let fd = run
        .call(nr::__NR_open, &[name, O_RDWR | O_CREAT, 0o600])
        .unwrap();
    run.put(DATA + 512, b"abcdef");
    let pieces = [DATA + 512, 2, DATA + 514, 4]
        .map(u64::to_le_bytes)
        .concat();
    run.put(DATA + 256, &pieces);
    assert_eq!(
        run.call(nr::__NR_pwritev, &[fd, DATA + 256, 2, 10, 0]),
        Ok(6)
    );
    assert_eq!(
        run.call(nr::__NR_lseek, &[fd, 0, 1]),
        Ok(0),
        "the file stands where it stood"
    );
    run.put(DATA + 512, &[0; 6]);
    assert_eq!(
        run.call(nr::__NR_preadv, &[fd, DATA + 256, 2, 12, 0]),
        Ok(4)
    );
    assert_eq!(run.get(DATA + 512, 6), b"cdef\0\0");
    assert_eq!(
        run.call(nr::__NR_preadv2, &[fd, DATA + 256, 1, u64::MAX, 0, 0]),
        Ok(2)
    );
    assert_eq!(
        run.call(nr::__NR_lseek, &[fd, 0, 1]),
        Ok(2),
        "-1 is where the file stands"
    );
    assert_eq!(
        run.error(nr::__NR_preadv, &[fd, DATA + 256, 2, u64::MAX]),
        Some(errno::EINVAL)
    );
    let unknown = run.error(nr::__NR_pwritev2, &[fd, DATA + 256, 2, 0, 0, 0x40]);
    assert_eq!(unknown, Some(errno::EOPNOTSUPP));
    assert_eq!(run.call(nr::__NR_lseek, &[fd, 3, 3]), Ok(3), "data");
    assert_eq!(
        run.call(nr::__NR_lseek, &[fd, 3, 4]),
        Ok(16),
        "the hole at the end"
    );
    assert_eq!(run.error(nr::__NR_lseek, &[fd, 16, 3]), Some(errno::ENXIO));
}

#[test]
fn an_open_file_can_be_executed() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let fd = run.open("/bin/program").unwrap();
    let nothing = run.text_at(0, "");
    let wrong = run.error(nr::__NR_execveat, &[fd, nothing, 0, 0, 1]);
    assert_eq!(wrong, Some(errno::EINVAL));
    assert_eq!(
        run.error(nr::__NR_execveat, &[fd, nothing, 0, 0, 0]),
        Some(errno::ENOENT)
    );
    assert_eq!(
        run.call(nr::__NR_execveat, &[fd, nothing, 0, 0, EMPTY_PATH]),
        Ok(0)
    );
    assert_eq!(run.thread.cpu.ip(), 0x40_0100);
}

#[test]
fn attributes_are_s_s() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let (file, name) = (run.text_at(0, "/big"), run.text_at(1, "user.a"));
    let (from, into) = (run.text_at(4, "value"), run.text_at(6, ""));
    let (set, get) = (nr::__NR_setxattr, nr::__NR_lgetxattr);
    assert_eq!(run.call(set, &[file, name, from, 5, 1]), Ok(0));
    assert_eq!(
        run.error(set, &[file, name, from, 5, 1]),
        Some(errno::EEXIST)
    );
    assert_eq!(
        run.error(set, &[file, name, from, 5, 4]),
        Some(errno::EINVAL)
    );
    assert_eq!(
        run.error(set, &[file, name, from, 70_000, 0]),
        Some(errno::E2BIG)
    );
    assert_eq!(run.call(get, &[file, name, 0, 0]), Ok(5));
    assert_eq!(run.error(get, &[file, name, into, 4]), Some(errno::ERANGE));
    assert_eq!(run.call(get, &[file, name, into, 100]), Ok(5));
    assert_eq!(run.get(into, 5), b"value");
    assert_eq!(run.call(nr::__NR_listxattr, &[file, into, 100]), Ok(7));
    assert_eq!(run.get(into, 7), b"user.a\0");
    let fd = run.open("/big").unwrap();
    assert_eq!(run.call(nr::__NR_fgetxattr, &[fd, name, 0, 0]), Ok(5));
    assert_eq!(run.call(nr::__NR_fremovexattr, &[fd, name]), Ok(0));
    assert_eq!(
        run.error(nr::__NR_removexattr, &[file, name]),
        Some(errno::ENODATA)
    );
    assert_eq!(run.call(nr::__NR_flistxattr, &[fd, 0, 0]), Ok(0));
    run.call(nr::__NR_close, &[fd]).unwrap();
    tmp::ends_clean(node, run);
    assert_eq!(
        node.files.open.get(),
        0,
        "what was opened for a call is closed"
    );
}

#[test]
fn no_file_of_this_node_s_own_has_attributes() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let (file, name) = (run.text_at(0, "/tmp"), run.text_at(1, "user.a"));
    assert_eq!(
        run.error(nr::__NR_getxattr, &[file, name, 0, 0]),
        Some(errno::ENODATA)
    );
    assert_eq!(run.call(nr::__NR_llistxattr, &[file, 0, 0]), Ok(0));
    assert_eq!(
        run.error(nr::__NR_setxattr, &[file, name, DATA, 3, 0]),
        Some(errno::EOPNOTSUPP)
    );
    let nobody = run.text_at(2, "/none");
    assert_eq!(
        run.error(nr::__NR_listxattr, &[nobody, 0, 0]),
        Some(errno::ENOENT)
    );
    assert_eq!(
        run.error(nr::__NR_fgetxattr, &[99, name, 0, 0]),
        Some(errno::EBADF)
    );
    let empty = run.text_at(3, "");
    assert_eq!(
        run.error(nr::__NR_getxattr, &[file, empty, 0, 0]),
        Some(errno::ERANGE)
    );
}

#[test]
fn priorities_are_kept_and_inherited() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    assert_eq!(run.call(nr::__NR_getpriority, &[0, 0]), Ok(20));
    assert_eq!(run.call(nr::__NR_setpriority, &[0, 0, 5]), Ok(0));
    let child = run.call(nr::__NR_fork, &[]).unwrap();
    assert_eq!(run.call(nr::__NR_getpriority, &[0, child]), Ok(15));
    assert_eq!(
        run.error(nr::__NR_getpriority, &[0, 999]),
        Some(errno::ESRCH)
    );
    assert_eq!(
        run.error(nr::__NR_getpriority, &[3, 0]),
        Some(errno::EINVAL)
    );
    // SCHED_FIFO at 7.
    run.put(DATA, &7u32.to_le_bytes());
    assert_eq!(run.call(nr::__NR_sched_setscheduler, &[0, 1, DATA]), Ok(0));
    assert_eq!(run.call(nr::__NR_sched_getscheduler, &[0]), Ok(1));
    run.put(DATA, &100u32.to_le_bytes());
    assert_eq!(
        run.error(nr::__NR_sched_setparam, &[0, DATA]),
        Some(errno::EINVAL)
    );
    assert_eq!(run.call(nr::__NR_sched_get_priority_max, &[1]), Ok(99));
    assert_eq!(
        run.error(nr::__NR_sched_get_priority_min, &[77]),
        Some(errno::EINVAL)
    );
    run.call(nr::__NR_setuid, &[1000]).unwrap();
    assert_eq!(
        run.error(nr::__NR_setpriority, &[0, 0, 4]),
        Some(errno::EACCES)
    );
    node.run_started();
    run.end();
}

#[test]
fn ranges_that_are_not_mapped_are_told_of() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let at = run.map(8192).unwrap();
    run.put(at, b"x");
    let hole = at + (1 << 30);
    assert_eq!(run.call(nr::__NR_mincore, &[at, 8192, DATA]), Ok(0));
    assert_eq!(run.get(DATA, 2), [1, 0], "touched, and not");
    assert_eq!(
        run.error(nr::__NR_mincore, &[at + 1, 1, DATA]),
        Some(errno::EINVAL)
    );
    for call in [nr::__NR_mlock, nr::__NR_munlock] {
        assert_eq!(run.call(call, &[at, 8192]), Ok(0));
    }
    assert_eq!(run.call(nr::__NR_msync, &[at, 8192, 4]), Ok(0));
    assert_eq!(
        run.error(nr::__NR_msync, &[at, 8192, 5]),
        Some(errno::EINVAL)
    );
    if run.thread.memory().rights(hole).is_none() {
        assert_eq!(
            run.error(nr::__NR_msync, &[hole, 4096, 4]),
            Some(errno::ENOMEM)
        );
        assert_eq!(run.error(nr::__NR_mlock, &[hole, 1]), Some(errno::ENOMEM));
    }
    assert_eq!(run.error(nr::__NR_mlockall, &[0]), Some(errno::EINVAL));
}

#[test]
fn times_are_set_in_every_form() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let name = run.text_at(0, "/tmp/file");
    let fd = run
        .call(nr::__NR_open, &[name, O_RDWR | O_CREAT, 0o600])
        .unwrap();
    let modified = |run: &mut Run| {
        run.call(nr::__NR_fstat, &[fd, DATA + 512]).unwrap();
        let word = |at| u64::from_le_bytes(run.get(DATA + 512 + at, 8).try_into().unwrap());
        (word(88), word(96))
    };
    run.put(
        DATA + 256,
        &[5u64, 4_102_444_800].map(u64::to_le_bytes).concat(),
    );
    assert_eq!(run.call(nr::__NR_utime, &[name, DATA + 256]), Ok(0));
    assert_eq!(modified(&mut run), (4_102_444_800, 0), "the year 2100");
    run.put(DATA + 256, &[1u64, 2, 3, 4].map(u64::to_le_bytes).concat());
    assert_eq!(run.call(nr::__NR_utimes, &[name, DATA + 256]), Ok(0));
    assert_eq!(modified(&mut run), (3, 4000));
    run.put(
        DATA + 256,
        &[1u64, 2, 3, 1_000_000].map(u64::to_le_bytes).concat(),
    );
    assert_eq!(
        run.error(nr::__NR_futimesat, &[AT_FDCWD, name, DATA + 256]),
        Some(errno::EINVAL)
    );
}

#[test]
fn what_is_not_supported_says_so() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    assert_eq!(run.call(nr::__NR_membarrier, &[0, 0]), Ok(0x18));
    assert_eq!(run.call(nr::__NR_membarrier, &[8, 0]), Ok(0));
    assert_eq!(
        run.error(nr::__NR_membarrier, &[1, 0]),
        Some(errno::EINVAL),
        "not offered"
    );
    assert_eq!(
        run.error(nr::__NR_clock_settime, &[0, DATA]),
        Some(errno::EPERM)
    );
    let monotonic = run.error(nr::__NR_clock_settime, &[1, DATA]);
    assert_eq!(monotonic, Some(errno::EINVAL));
    run.put(DATA, &[0; 208]);
    assert_eq!(
        run.call(nr::__NR_adjtimex, &[DATA]),
        Ok(5),
        "TIME_ERROR: no clock is followed"
    );
    assert_eq!(
        run.error(nr::__NR_io_uring_setup, &[1, DATA]),
        Some(errno::ENOSYS)
    );
    assert_eq!(node.kernel.unimplemented().len(), 1);
}

#[test]
fn advice_is_for_files() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let fd = run.open("/big").unwrap();
    assert_eq!(run.call(nr::__NR_fadvise64, &[fd, 0, 0, 3]), Ok(0));
    let unknown = run.error(nr::__NR_fadvise64, &[fd, 0, 0, 6]);
    assert_eq!(unknown, Some(errno::EINVAL));
    let closed = run.error(nr::__NR_fadvise64, &[99, 0, 0, 3]);
    assert_eq!(closed, Some(errno::EBADF));
    run.call(nr::__NR_pipe, &[DATA]).unwrap();
    let pipe = u64::from(run.get(DATA, 1)[0]);
    let refused = run.error(nr::__NR_fadvise64, &[pipe, 0, 0, 3]);
    assert_eq!(refused, Some(errno::ESPIPE));
    assert_eq!(run.call(nr::__NR_readahead, &[fd, 0, 4096]), Ok(0));
    let refused = run.error(nr::__NR_readahead, &[pipe, 0, 4096]);
    assert_eq!(refused, Some(errno::EINVAL));
    run.end();
}

#[test]
fn queued_signals_need_the_right_to_signal() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    const QUEUED: u32 = (-1i32).cast_unsigned();
    run.put(DATA, &[0; 128]);
    run.put(DATA + 8, &QUEUED.to_le_bytes());
    let queue = nr::__NR_rt_sigqueueinfo;
    assert_eq!(run.call(queue, &[1, 0, DATA]), Ok(0));
    let nobody = run.error(queue, &[9999, 0, DATA]);
    assert_eq!(nobody, Some(errno::ESRCH));
    let child = run.call(nr::__NR_fork, &[]).unwrap();
    assert_eq!(run.call(queue, &[child, 0, DATA]), Ok(0));
    let user = [1000; 3];
    assert_eq!(run.call(nr::__NR_setresuid, &user), Ok(0));
    let refused = run.error(queue, &[child, 0, DATA]);
    assert_eq!(refused, Some(errno::EPERM));
    assert_eq!(run.error(queue, &[child, 10, DATA]), refused);
    // A stack that is both on and off.
    run.put(DATA, &[[0; 8], [3, 0, 0, 0, 0, 0, 0, 0]].concat());
    let neither = run.error(nr::__NR_sigaltstack, &[DATA, 0]);
    assert_eq!(neither, Some(errno::EINVAL));
}
