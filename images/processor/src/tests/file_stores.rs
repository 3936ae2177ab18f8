//! Shared mappings of files of S that programs store to.

use super::tmp::ends_clean;
use super::*;
use crate::mm::fault::Refused;

const PROT_READ: u64 = 1;
const PROT_RW: u64 = 3;
const SHARED: u64 = 1;
const PRIVATE: u64 = 2;
const READ_WRITE: u64 = 2;
const MS_SYNC: u64 = 4;

impl Run {
    fn open_rw(&mut self, path: &str) -> u64 {
        let name = self.name(0, path);
        self.call(nr::__NR_open, &[name, READ_WRITE]).unwrap()
    }

    fn map_file(&mut self, fd: u64, len: u64, rights: u64, kind: u64) -> u64 {
        self.call(nr::__NR_mmap, &[0, len, rights, kind, fd, 0])
            .unwrap()
    }

    fn pread(&mut self, fd: u64, at: u64, len: u64) -> Vec<u8> {
        let into = self.map(len.max(1)).unwrap();
        let got = self.call(nr::__NR_pread64, &[fd, into, len, at]).unwrap();
        let bytes = self.get(into, usize::try_from(got).unwrap());
        self.call(nr::__NR_munmap, &[into, len.max(1)]).unwrap();
        bytes
    }
}

#[test]
fn stores_reach_the_file() {
    let node: &FakeNode = node(32);
    let mut run = Run::new(node);
    let fd = run.open_rw("/big");
    let at = run.map_file(fd, 100_000, PROT_RW, SHARED);
    let private = run.map_file(fd, 100_000, PROT_READ, PRIVATE);
    let mut expected = node.files.data("/big");
    assert!(run.get(at, 100_000) == expected);
    assert_eq!(run.call(nr::__NR_msync, &[at, 100_000, MS_SYNC]), Ok(0));
    assert_eq!(node.files.writes.get(), 0, "nothing was stored");
    run.put(at + 4090, b"over the end of a page");
    expected[4090..4112].copy_from_slice(b"over the end of a page");
    assert_eq!(run.get(private + 4090, 22), b"over the end of a page");
    assert_eq!(run.pread(fd, 4000, 200), expected[4000..4200]);
    assert_eq!(node.files.writes.get(), 0, "reads and stores share pages");
    assert_eq!(run.call(nr::__NR_msync, &[at, 100_000, MS_SYNC]), Ok(0));
    assert!(node.files.data("/big") == expected);
    let writes = node.files.writes.get();
    assert_eq!(writes, 1, "two neighbours go together");
    assert_eq!(run.call(nr::__NR_msync, &[at, 100_000, MS_SYNC]), Ok(0));
    assert_eq!(
        (node.files.writes.get(), node.files.syncs.get()),
        (writes, 3)
    );
    // A page that went back is written again once it differs again.
    run.put(at + 4096, b"again");
    expected[4096..4101].copy_from_slice(b"again");
    assert_eq!(run.call(nr::__NR_fsync, &[fd]), Ok(0));
    assert!(node.files.data("/big") == expected);
    run.put(at + 50_000, b"at the end of the mapping");
    expected[50_000..50_025].copy_from_slice(b"at the end of the mapping");
    run.call(nr::__NR_munmap, &[at, 100_000]).unwrap();
    assert!(node.files.data("/big") == expected);
    ends_clean(node, run);
    assert_eq!(node.files.open.get(), 0);
}

#[test]
fn processes_share_stores_and_the_last_ones_come_with_the_end() {
    let node: &FakeNode = node(32);
    let mut run = Run::new(node);
    let fd = run.open_rw("/big");
    let at = run.map_file(fd, 40_000, PROT_RW, SHARED);
    run.put(at, b"parent");
    run.call(nr::__NR_fork, &[]).unwrap();
    let thread = node.started.borrow_mut().pop().unwrap();
    let child = Run { node, thread };
    child.put(at + 8192, b"child");
    assert_eq!(run.get(at + 8192, 5), b"child");
    run.put(at + 3, b"a parent");
    assert_eq!(child.get(at, 11), b"para parent");
    node.block_on(child.thread.run());
    assert_eq!(node.files.data("/big")[8192..8197], *b"child");
    run.put(at + 20_000, b"last");
    ends_clean(node, run);
    let data = node.files.data("/big");
    assert_eq!(
        (&data[..11], &data[20_000..20_004]),
        (&b"para parent"[..], &b"last"[..])
    );
}

#[test]
fn rights_are_those_of_the_open_file() {
    let node: &FakeNode = node(32);
    let mut run = Run::new(node);
    let before = node.files.data("/big");
    let reader = run.open("/big").unwrap();
    let refused = run.call(nr::__NR_mmap, &[0, 4096, PROT_RW, SHARED, reader, 0]);
    assert_eq!(errno_of(refused), Some(errno::EACCES));
    let at = run.map_file(reader, 8192, PROT_READ, SHARED);
    assert_eq!(
        run.error(nr::__NR_mprotect, &[at, 4096, PROT_RW]),
        Some(errno::EACCES)
    );
    let name = run.name(0, "/big");
    let writer = run.call(nr::__NR_open, &[name, 1]).unwrap();
    let refused = run.call(nr::__NR_mmap, &[0, 4096, PROT_READ, PRIVATE, writer, 0]);
    assert_eq!(errno_of(refused), Some(errno::EACCES));
    let both = run.open_rw("/big");
    let at = run.map_file(both, 8192, PROT_READ, SHARED);
    assert_eq!(run.get(at, 4), before[..4]);
    let stored = run.node.block_on(run.thread.memory().write(at, b"x"));
    assert_eq!(errno_of(stored), Some(errno::EFAULT));
    assert_eq!(run.call(nr::__NR_mprotect, &[at, 4096, PROT_RW]), Ok(0));
    run.put(at, b"x");
    assert_eq!(run.call(nr::__NR_mprotect, &[at, 4096, PROT_READ]), Ok(0));
    let stored = run.node.block_on(run.thread.memory().write(at, b"y"));
    assert_eq!(errno_of(stored), Some(errno::EFAULT));
    assert_eq!(run.pread(both, 0, 2), [b'x', before[1]]);
    ends_clean(node, run);
}

#[test]
fn what_was_opened_or_attached_to_be_read_does_not_become_writable() {
    let node: &FakeNode = node(32);
    let mut run = Run::new(node);
    let fd = run.create("/tmp/own", 0).unwrap();
    run.call(nr::__NR_ftruncate, &[fd, 4096]).unwrap();
    let reader = run.open("/tmp/own").unwrap();
    let at = run.map_file(reader, 4096, PROT_READ, SHARED);
    let refused = run.error(nr::__NR_mprotect, &[at, 4096, PROT_RW]);
    assert_eq!(refused, Some(errno::EACCES));
    let at = run.map_file(fd, 4096, PROT_READ, SHARED);
    assert_eq!(run.call(nr::__NR_mprotect, &[at, 4096, PROT_RW]), Ok(0));
    let name = run.name(0, "/tmp/own");
    let writer = run.call(nr::__NR_open, &[name, 1]).unwrap();
    let refused = run.call(nr::__NR_mmap, &[0, 4096, PROT_READ, PRIVATE, writer, 0]);
    assert_eq!(errno_of(refused), Some(errno::EACCES));
    // A file that may not be written from now on.
    const ADD_SEALS: u64 = 1033;
    const FUTURE_WRITE: u64 = 0x10;
    const ALLOW_SEALING: u64 = 2;
    let name = run.name(0, "sealed");
    let call = [name, ALLOW_SEALING];
    let fd = run.call(nr::__NR_memfd_create, &call).unwrap();
    run.call(nr::__NR_ftruncate, &[fd, 4096]).unwrap();
    run.call(nr::__NR_fcntl, &[fd, ADD_SEALS, FUTURE_WRITE])
        .unwrap();
    let at = run.map_file(fd, 4096, PROT_READ, SHARED);
    let refused = run.error(nr::__NR_mprotect, &[at, 4096, PROT_RW]);
    assert_eq!(refused, Some(errno::EACCES));
    const SHM_RDONLY: u64 = 0o10_000;
    let id = run.call(nr::__NR_shmget, &[0, 4096, 0o600]).unwrap();
    let at = run.call(nr::__NR_shmat, &[id, 0, SHM_RDONLY]).unwrap();
    let refused = run.error(nr::__NR_mprotect, &[at, 4096, PROT_RW]);
    assert_eq!(refused, Some(errno::EACCES));
    let at = run.call(nr::__NR_shmat, &[id, 0, 0]).unwrap();
    assert_eq!(run.call(nr::__NR_mprotect, &[at, 4096, PROT_READ]), Ok(0));
    assert_eq!(run.call(nr::__NR_mprotect, &[at, 4096, PROT_RW]), Ok(0));
    run.call(nr::__NR_shmctl, &[id, 0, 0]).unwrap();
    ends_clean(node, run);
}

#[test]
fn a_store_that_s_can_not_take_is_told_once() {
    let node: &FakeNode = node(32);
    let mut run = Run::new(node);
    let fd = run.open_rw("/big");
    let at = run.map_file(fd, 8192, PROT_RW, SHARED);
    run.put(at, b"lost");
    node.files.full.set(true);
    assert_eq!(
        run.error(nr::__NR_msync, &[at, 8192, MS_SYNC]),
        Some(errno::ENOSPC)
    );
    run.call(nr::__NR_munmap, &[at, 8192]).unwrap();
    node.files.full.set(false);
    // It goes now that there is room, and the failure is told all the same.
    assert_eq!(run.error(nr::__NR_fsync, &[fd]), Some(errno::ENOSPC));
    assert_eq!(node.files.data("/big")[..4], *b"lost");
    assert_eq!(run.call(nr::__NR_fsync, &[fd]), Ok(0));
    ends_clean(node, run);
}

#[test]
fn bytes_behind_the_end_are_no_part_of_the_file() {
    let node: &FakeNode = node(32);
    let mut run = Run::new(node);
    let fd = run.create("/new", 0).unwrap();
    run.call(nr::__NR_close, &[fd]).unwrap();
    let fd = run.open_rw("/new");
    run.call(nr::__NR_ftruncate, &[fd, 100]).unwrap();
    let at = run.map_file(fd, 300_000, PROT_RW, SHARED);
    run.put(at + 90, &[7; 20]);
    assert_eq!(run.touch(at + 4096, Access::Write), Err(Refused::BeyondEnd));
    run.call(nr::__NR_msync, &[at, 4096, MS_SYNC]).unwrap();
    assert_eq!(node.files.data("/new")[90..], [7; 10]);
    // The file grows under the mapping, beyond what was made for it at first.
    run.call(nr::__NR_ftruncate, &[fd, 200_000]).unwrap();
    assert_eq!(run.get(at + 90, 20), [[7; 10], [0; 10]].concat());
    run.put(at + 199_990, &[9; 10]);
    run.call(nr::__NR_msync, &[at, 200_704, MS_SYNC]).unwrap();
    let data = node.files.data("/new");
    assert_eq!(data.len(), 200_000);
    assert_eq!(data[199_990..], [9; 10]);
    assert_eq!(data[100..110], [0; 10]);
    ends_clean(node, run);
}

#[test]
fn a_file_that_another_node_has_cut_does_not_grow_again() {
    let node: &FakeNode = node(32);
    let mut run = Run::new(node);
    let fd = run.open_rw("/big");
    let at = run.map_file(fd, 8192, PROT_RW, SHARED);
    run.put(at + 10, b"within");
    run.put(at + 5000, b"behind");
    node.files.cut("/big", 100);
    run.call(nr::__NR_msync, &[at, 8192, MS_SYNC]).unwrap();
    let data = node.files.data("/big");
    assert_eq!((data.len(), &data[10..16]), (100, &b"within"[..]));
    ends_clean(node, run);
}

#[test]
fn what_s_was_told_by_a_call_is_not_taken_for_what_a_mapping_had() {
    let node: &FakeNode = node(32);
    let mut run = Run::new(node);
    let fd = run.open_rw("/big");
    let at = run.map_file(fd, 4096, PROT_RW, SHARED);
    run.put(at, b"one");
    run.call(nr::__NR_msync, &[at, 4096, MS_SYNC]).unwrap();
    let two = run.put(DATA, b"two");
    run.call(nr::__NR_pwrite64, &[fd, two, 3, 0]).unwrap();
    run.put(at, b"one");
    run.call(nr::__NR_msync, &[at, 4096, MS_SYNC]).unwrap();
    assert_eq!(node.files.data("/big")[..3], *b"one");
    let fd = run.create("/new", 0).unwrap();
    let two = run.put(DATA, b"two");
    // A write that leaves a gap behind the end fills it with zeros here too.
    run.call(nr::__NR_ftruncate, &[fd, 100]).unwrap();
    let at = run.map_file(fd, 4096, PROT_RW, SHARED);
    run.put(at + 90, &[7; 100]);
    run.call(nr::__NR_pwrite64, &[fd, two, 3, 150]).unwrap();
    assert_eq!(
        run.get(at + 99, 55),
        [&[7], &[0; 50][..], b"two", &[7]].concat()
    );
    ends_clean(node, run);
}

/// A program's access to the file.
#[derive(Clone, Copy, Debug)]
enum Step {
    Store { other: bool, at: u64, byte: u8 },
    Look { other: bool, at: u64 },
    Write { at: u64, len: u64, byte: u8 },
    Read { at: u64, len: u64 },
    Cut { size: u64 },
    Sync,
    Remap,
    Forget,
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0..60_000u64;
    let len = 1..9000u64;
    prop_oneof![
        (any::<bool>(), at.clone(), any::<u8>()).prop_map(|(other, at, byte)| Step::Store {
            other,
            at,
            byte
        }),
        (any::<bool>(), at.clone()).prop_map(|(other, at)| Step::Look { other, at }),
        (at.clone(), len.clone(), any::<u8>()).prop_map(|(at, len, byte)| Step::Write {
            at,
            len,
            byte
        }),
        (at.clone(), len).prop_map(|(at, len)| Step::Read { at, len }),
        at.prop_map(|size| Step::Cut { size }),
        Just(Step::Sync),
        Just(Step::Remap),
        Just(Step::Forget),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Two mappings, calls and S agree with an array of bytes, whatever the order, through a cache
    /// of sixteen lines.
    #[test]
    fn mappings_and_calls_see_one_file(steps in proptest::collection::vec(step(), 1..80)) {
        let node: &FakeNode = node(16);
        let mut run = Run::new(node);
        let fd = run.open_rw("/big");
        let source = run.map(9000).unwrap();
        let mut at = run.map_file(fd, 61_440, PROT_RW, SHARED);
        let other = run.map_file(fd, 61_440, PROT_RW, SHARED);
        let mut file = node.files.data("/big");
        for step in steps {
            let size = file.len() as u64;
            match step {
                Step::Store { other: second, at: to, byte } if to < size => {
                    run.put(if second { other } else { at } + to, &[byte]);
                    file[usize::try_from(to).unwrap()] = byte;
                }
                Step::Look { other: second, at: from } if from < size => {
                    let seen = run.get(if second { other } else { at } + from, 1);
                    prop_assert_eq!(seen[0], file[usize::try_from(from).unwrap()]);
                }
                Step::Write { at: to, len, byte } => {
                    let count = usize::try_from(len).unwrap();
                    run.put(source, &vec![byte; count]);
                    run.call(nr::__NR_pwrite64, &[fd, source, len, to]).unwrap();
                    let to = usize::try_from(to).unwrap();
                    file.resize(file.len().max(to + count), 0);
                    file[to..to + count].fill(byte);
                }
                Step::Read { at: from, len } => {
                    let read = run.pread(fd, from, len);
                    let from = file.len().min(usize::try_from(from).unwrap());
                    let end = file.len().min(from + usize::try_from(len).unwrap());
                    prop_assert!(read == file[from..end], "{} bytes at {}", len, from);
                }
                Step::Cut { size } => {
                    run.call(nr::__NR_ftruncate, &[fd, size]).unwrap();
                    file.resize(usize::try_from(size).unwrap(), 0);
                }
                Step::Sync => {
                    prop_assert_eq!(run.call(nr::__NR_fsync, &[fd]), Ok(0));
                    prop_assert!(node.files.data("/big") == file);
                }
                Step::Remap => {
                    run.call(nr::__NR_munmap, &[at, 61_440]).unwrap();
                    prop_assert!(node.files.data("/big").len() == file.len());
                    at = run.map_file(fd, 61_440, PROT_RW, SHARED);
                }
                Step::Forget => {
                    run.call(nr::__NR_madvise, &[other, 61_440, 4]).unwrap();
                }
                Step::Store { .. } | Step::Look { .. } => {}
            }
        }
        ends_clean(node, run);
        prop_assert!(node.files.data("/big") == file);
    }
}
