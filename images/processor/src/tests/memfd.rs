//! Files without a name, and seals.

use super::*;
use crate::error::errno;

const AT_FDCWD: u64 = (-100i64).cast_unsigned();
const F_ADD_SEALS: u64 = 1033;
const F_GET_SEALS: u64 = 1034;
const SHRINK: u64 = 2;
const GROW: u64 = 4;
const WRITE: u64 = 8;
const ALLOW_SEALING: u64 = 2;
const O_TMPFILE: u64 = 0o20_200_000;

impl Run {
    fn memfd(&mut self, flags: u64) -> Result<u64, Error> {
        self.put(DATA, b"name\0");
        self.call(nr::__NR_memfd_create, &[DATA, flags])
    }

    fn seal(&mut self, fd: u64, seals: u64) -> Result<u64, Error> {
        self.call(nr::__NR_fcntl, &[fd, F_ADD_SEALS, seals])
    }
}

#[test]
fn seals_forbid_what_they_name() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let fd = run.memfd(ALLOW_SEALING).unwrap();
    assert_eq!(run.call(nr::__NR_fstat, &[fd, DATA + 256]), Ok(0));
    let status = run.get(DATA + 256, 144);
    assert_eq!(
        (status[16], &status[24..28]),
        (0, &0o100_777u32.to_le_bytes()[..])
    );
    assert_eq!(run.call(nr::__NR_ftruncate, &[fd, 8192]), Ok(0));
    assert_eq!(run.call(nr::__NR_fcntl, &[fd, F_GET_SEALS]), Ok(0));
    assert_eq!(errno_of(run.seal(fd, 0x40)), Some(errno::EINVAL));
    assert_eq!(run.seal(fd, GROW | SHRINK), Ok(0));
    assert_eq!(
        run.call(nr::__NR_fcntl, &[fd, F_GET_SEALS]),
        Ok(GROW | SHRINK)
    );
    for size in [4096, 10_000] {
        assert_eq!(
            errno_of(run.call(nr::__NR_ftruncate, &[fd, size])),
            Some(errno::EPERM)
        );
    }
    assert_eq!(run.call(nr::__NR_pwrite64, &[fd, DATA, 4, 0]), Ok(4));
    assert_eq!(
        errno_of(run.call(nr::__NR_pwrite64, &[fd, DATA, 4, 8190])),
        Some(errno::EPERM)
    );
    let shared = run.call(nr::__NR_mmap, &[0, 4096, 3, 1, fd, 0]).unwrap();
    assert_eq!(errno_of(run.seal(fd, WRITE)), Some(errno::EBUSY));
    assert_eq!(run.call(nr::__NR_munmap, &[shared, 4096]), Ok(0));
    assert_eq!(run.seal(fd, WRITE | 1), Ok(0));
    assert_eq!(
        errno_of(run.call(nr::__NR_pwrite64, &[fd, DATA, 4, 0])),
        Some(errno::EPERM)
    );
    assert_eq!(
        errno_of(run.call(nr::__NR_mmap, &[0, 4096, 3, 1, fd, 0])),
        Some(errno::EPERM)
    );
    let read = run.call(nr::__NR_mmap, &[0, 4096, 1, 1, fd, 0]).unwrap();
    assert_eq!(run.get(read, 4), b"name");
    assert_eq!(run.call(nr::__NR_mprotect, &[read, 4096, 3]), Ok(0));
    run.put(read, b"mine");
    assert_eq!(run.call(nr::__NR_pread64, &[fd, DATA, 4, 0]), Ok(4));
    assert_eq!(
        run.get(DATA, 4),
        b"name",
        "no mapping writes what is sealed"
    );
    assert_eq!(errno_of(run.seal(fd, GROW)), Some(errno::EPERM));
    run.end();
    assert!(node.memory.lent.borrow().is_empty());
}

#[test]
fn files_that_allow_no_seals_have_none() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let fd = run.memfd(0).unwrap();
    assert_eq!(run.call(nr::__NR_fcntl, &[fd, F_GET_SEALS]), Ok(1));
    assert_eq!(errno_of(run.seal(fd, GROW)), Some(errno::EPERM));
    assert_eq!(errno_of(run.memfd(0x40)), Some(errno::EINVAL));
    let big = run.open("/big").unwrap();
    assert_eq!(
        errno_of(run.call(nr::__NR_fcntl, &[big, F_GET_SEALS])),
        Some(errno::EINVAL)
    );
    run.end();
}

#[test]
fn a_file_without_a_name_may_be_given_one() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.put(DATA, b"/tmp\0");
    let open =
        |run: &mut Run, flags: u64| run.call(nr::__NR_open, &[DATA, O_TMPFILE | flags, 0o640]);
    assert_eq!(errno_of(open(&mut run, 0)), Some(errno::EINVAL));
    let fd = open(&mut run, 2).unwrap();
    assert_eq!(run.call(nr::__NR_write, &[fd, DATA, 4]), Ok(4));
    run.put(DATA + 64, b"\0");
    run.put(DATA + 128, b"/tmp/named\0");
    let link = [fd, DATA + 64, AT_FDCWD, DATA + 128, 0x1000];
    assert_eq!(run.call(nr::__NR_linkat, &link), Ok(0));
    assert_eq!(
        errno_of(run.call(nr::__NR_linkat, &link)),
        Some(errno::EEXIST)
    );
    assert_eq!(run.call(nr::__NR_stat, &[DATA + 128, DATA + 256]), Ok(0));
    let status = run.get(DATA + 256, 144);
    assert_eq!(
        (status[16], status[48], &status[24..26]),
        (1, 4, &[0xa0, 0x81][..])
    );
    run.put(DATA, b"/tmp\0");
    let other = open(&mut run, 2 | 0o200).unwrap();
    run.put(DATA + 128, b"/tmp/other\0");
    let link = [other, DATA + 64, AT_FDCWD, DATA + 128, 0x1000];
    assert_eq!(
        errno_of(run.call(nr::__NR_linkat, &link)),
        Some(errno::ENOENT)
    );
    run.end();
    assert!(node.memory.lent.borrow().is_empty());
}
