//! Writes that are gathered: what S gets and when, and what programs see meanwhile.

use std::pin::pin;
use std::task::Poll;

use messages::Errno;

use super::leases::{PAUSE, TERM};
use super::tmp::ends_clean;
use super::*;
use crate::platform::Files;
use crate::wait::either;

const APPEND: u64 = 0o2000;
const CREATE: u64 = 0o100;
const TRUNCATE: u64 = 0o1000;
const DSYNC: u64 = 0o10_000;

/// A program, with room for what it writes.
struct Writer {
    run: Run,
    from: u64,
}

impl Writer {
    fn new(node: &'static FakeNode) -> Self {
        node.files.gathers.set(true);
        let mut run = Run::new(node);
        let from = run.map(100_000).unwrap();
        Self { run, from }
    }

    fn open(&mut self, path: &str, flags: u64) -> u64 {
        let name = self.run.name(0, path);
        let opened = self.run.call(nr::__NR_open, &[name, 2 | flags, 0o644]);
        opened.unwrap()
    }

    fn write(&mut self, fd: u64, bytes: &[u8]) -> Result<u64, Option<Errno>> {
        self.run.put(self.from, bytes);
        let args = [fd, self.from, bytes.len() as u64];
        self.run.call(nr::__NR_write, &args).map_err(errno)
    }

    fn pwrite(&mut self, fd: u64, at: u64, bytes: &[u8]) {
        self.run.put(self.from, bytes);
        let len = bytes.len() as u64;
        let args = [fd, self.from, len, at];
        assert_eq!(self.run.call(nr::__NR_pwrite64, &args), Ok(len));
    }

    fn fsync(&mut self, fd: u64) -> Result<u64, Option<Errno>> {
        self.run.call(nr::__NR_fsync, &[fd]).map_err(errno)
    }

    fn close(&mut self, fd: u64) -> Result<u64, Option<Errno>> {
        self.run.call(nr::__NR_close, &[fd]).map_err(errno)
    }

    fn size(&mut self, fd: u64) -> u64 {
        self.run.size_of(fd)
    }
}

fn errno(error: Error) -> Option<Errno> {
    match error {
        Error::Errno(errno) => Some(errno),
        _ => None,
    }
}

/// Calls to S: writes, runs of gathered writes, fsyncs.
fn calls(node: &FakeNode) -> (u64, u64, u64) {
    let files = &node.files;
    (files.writes.get(), files.flushes.get(), files.syncs.get())
}

#[test]
fn small_writes_go_to_s_together_and_with_an_fsync_in_one_call() {
    let node: &FakeNode = node(64);
    let mut all = Writer::new(node);
    let fd = all.open("/new", CREATE | TRUNCATE);
    for n in 0..100 {
        assert_eq!(all.write(fd, &[n + 1; 1000]), Ok(1000));
    }
    let expected: Vec<u8> = (0..100).flat_map(|n| [n + 1; 1000]).collect();
    assert_eq!(calls(node), (0, 1, 0), "a full run");
    assert_eq!(all.fsync(fd), Ok(0));
    assert_eq!(calls(node), (0, 2, 1));
    assert!(node.files.data("/new") == expected);
    // Overwrites at several places.
    for at in [70_000, 10, 3_000, 10, 69_990] {
        all.pwrite(fd, at, b"here and there");
    }
    assert!(node.files.data("/new") == expected);
    assert_eq!(all.size(fd), 100_000);
    assert_eq!(calls(node), (0, 3, 1), "the status needs it");
    assert_eq!(
        &node.files.data("/new")[69_990..70_014],
        b"here and there and there"
    );
    all.write(fd, b"end").unwrap();
    assert_eq!(all.close(fd), Ok(0));
    assert_eq!(calls(node), (0, 4, 1));
    assert!(node.files.data("/new").ends_with(b"end"));
    assert_eq!(node.files.gathered().unwrap().kept(), 106);
    ends_clean(node, all.run);
}

#[test]
fn appends_follow_each_other_and_those_of_others() {
    let node: &FakeNode = node(64);
    let mut all = Writer::new(node);
    let cut = |all: &mut Writer| {
        let name = all.run.name(0, "/big");
        all.run.call(nr::__NR_truncate, &[name, 0]).unwrap()
    };
    cut(&mut all);
    let [one, other] = [APPEND, APPEND].map(|flags| all.open("/big", flags));
    for n in 0..10 {
        all.write([one, other][n % 2], format!("{n} ").as_bytes())
            .unwrap();
    }
    let at = all.run.call(nr::__NR_lseek, &[other, 0, 1]);
    assert_eq!(at, Ok(20), "where its last write ended");
    assert_eq!(all.size(one), 20);
    assert_eq!(node.files.data("/big"), b"0 1 2 3 4 5 6 7 8 9 ");
    for _ in 0..3 {
        all.write(one, b"a").unwrap();
    }
    // Who cuts the file cuts what was gathered, too.
    let again = all.open("/big", TRUNCATE);
    for _ in 0..3 {
        all.write(one, b"b").unwrap();
    }
    assert_eq!(all.size(again), 3);
    cut(&mut all);
    all.write(one, b"c").unwrap();
    node.recall("/big");
    node.files.change("/big", b"elsewhere ");
    all.write(one, b"d").unwrap();
    node.pass(PAUSE);
    all.write(one, b"e").unwrap();
    all.write(one, b"f").unwrap();
    assert_eq!(all.fsync(one), Ok(0));
    assert_eq!(node.files.data("/big"), b"elsewhere def");
    ends_clean(node, all.run);
}

#[test]
fn a_recall_brings_what_was_gathered() {
    let node: &FakeNode = node(64);
    let mut all = Writer::new(node);
    let fd = all.open("/new", CREATE);
    let bytes: Vec<u8> = (0..15_000_u32).map(|n| n.to_le_bytes()[0] | 1).collect();
    all.write(fd, &bytes).unwrap();
    assert!(node.files.data("/new").is_empty());
    node.recall("/new");
    assert!(node.files.data("/new") == bytes, "in several parts");
    // Two nodes that take turns do not gather.
    all.write(fd, b"through").unwrap();
    assert!(node.files.data("/new").ends_with(b"through"));
    node.pass(PAUSE);
    all.write(fd, b"one").unwrap();
    all.write(fd, b"two").unwrap();
    let (_, flushes, _) = calls(node);
    assert_eq!(all.fsync(fd), Ok(0));
    assert!(node.files.data("/new").ends_with(b"throughonetwo"));
    assert_eq!(calls(node).1, flushes + 1);
    ends_clean(node, all.run);
}

#[test]
fn what_s_refuses_is_told_to_each_open_file_once() {
    let node: &FakeNode = node(64);
    let mut all = Writer::new(node);
    let fds = [CREATE, 0, 0].map(|flags| all.open("/new", flags));
    all.write(fds[0], b"lost").unwrap();
    node.files.full.set(true);
    // Somebody else's question is answered, and tells of nothing.
    assert_eq!(all.size(fds[1]), 0);
    let late = all.open("/new", 0);
    node.files.full.set(false);
    assert_eq!(all.fsync(late), Ok(0), "opened after it");
    assert_eq!(all.fsync(fds[1]), Err(Some(errno::ENOSPC)));
    assert_eq!(all.fsync(fds[1]), Ok(0));
    assert_eq!(all.close(fds[0]), Err(Some(errno::ENOSPC)));
    assert_eq!(all.close(fds[1]), Ok(0));
    assert_eq!(all.close(fds[2]), Err(Some(errno::ENOSPC)));
    // A lease that was lost without a recall that came.
    let other = all.open("/other", CREATE);
    all.pwrite(other, 0, b"x");
    node.files.recall("/other");
    assert_eq!(all.fsync(other), Err(Some(errno::EIO)));
    ends_clean(node, all.run);
}

#[test]
fn what_waits_is_brought_after_a_while() {
    let node: &FakeNode = node(64);
    let mut all = Writer::new(node);
    let fd = all.open("/new", CREATE);
    all.write(fd, b"waits").unwrap();
    let node = all.run.node;
    let brought = std::future::poll_fn(|context| {
        context.waker().wake_by_ref();
        match node.files.data("/new").is_empty() {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    });
    let keeps = pin!(node.kernel.keep_written(node));
    let before = node.platform.clock.get();
    node.block_on(either(pin!(brought), pin!(async { keeps.await.unwrap() })));
    assert_eq!(node.files.data("/new"), b"waits");
    let waited = node.platform.clock.get() - before;
    assert!((900_000_000..TERM / 2).contains(&waited), "{waited}");
    ends_clean(node, all.run);
}

#[test]
fn synchronous_and_lone_and_long_writes_are_written_through() {
    let node: &FakeNode = node(64);
    let mut all = Writer::new(node);
    let fd = all.open("/new", CREATE | DSYNC);
    all.write(fd, b"now").unwrap();
    assert_eq!(calls(node), (1, 0, 1));
    let fd = all.open("/new", 0);
    all.write(fd, &[1; 40_000]).unwrap();
    assert_eq!(calls(node), (2, 0, 1));
    // Without a lease a write now and then is no reason to ask for one.
    for n in 0..5 {
        node.pass(TERM);
        all.pwrite(fd, n, b"lone");
    }
    assert_eq!((calls(node), node.files.write_asked.get()), ((7, 0, 1), 0));
    all.pwrite(fd, 9, b"another");
    assert_eq!((calls(node), node.files.write_asked.get()), ((7, 0, 1), 1));
    ends_clean(node, all.run);
    assert_eq!(node.files.open.get(), 0);
}

#[test]
fn more_files_than_are_kept_are_written_too() {
    let node: &FakeNode = node(64);
    let mut all = Writer::new(node);
    let paths: Vec<String> = (0..40).map(|n| format!("/n{n}")).collect();
    let fds: Vec<u64> = paths.iter().map(|path| all.open(path, CREATE)).collect();
    for round in 0..3_u8 {
        for &fd in &fds {
            all.write(fd, &[b'0' + round]).unwrap();
        }
    }
    assert!(calls(node).0 > 0 && calls(node).0 < 120);
    // The end of the program brings all.
    ends_clean(node, all.run);
    for path in &paths {
        assert_eq!(node.files.data(path), b"012", "{path}");
    }
}

#[test]
fn no_more_waits_than_s_has_promised_and_enospc_comes_from_write() {
    let node: &FakeNode = node(64);
    node.files.promised.set(3);
    let mut all = Writer::new(node);
    let fd = all.open("/new", CREATE);
    for block in [0, 5, 9] {
        all.pwrite(fd, block * 4096 + 7, b"a block each");
        all.pwrite(fd, block * 4096 + 100, b"of the same");
    }
    assert_eq!(calls(node), (0, 0, 0));
    // Another block: what waits goes first. S promises nothing more.
    node.files.promised.set(0);
    all.pwrite(fd, 20 * 4096, b"fourth");
    assert_eq!(calls(node), (1, 1, 0), "and this one is written through");
    node.files.full.set(true);
    let error = all.write(fd, b"full");
    assert_eq!(error, Err(Some(errno::ENOSPC)), "at once");
    node.files.full.set(false);
    assert_eq!(all.close(fd), Ok(0), "nothing was lost");
    ends_clean(node, all.run);
}

#[test]
fn syncfs_tells_each_open_file_once_and_msync_tells_too() {
    let node: &FakeNode = node(64);
    let mut all = Writer::new(node);
    let fds = [CREATE, 0].map(|flags| all.open("/new", flags));
    let other = all.open("/big", 0);
    let args = [0, 4096, 3, 1, fds[0], 0];
    all.write(fds[0], b"there").unwrap();
    let at = all.run.call(nr::__NR_mmap, &args).unwrap();
    all.run.put(at, b"T");
    all.write(fds[0], b"lost").unwrap();
    node.files.full.set(true);
    all.size(fds[1]);
    node.files.full.set(false);
    let late = all.open("/big", 0);
    let msync = |all: &mut Writer| {
        let done = all.run.call(nr::__NR_msync, &[at, 4096, 4]);
        done.map_err(errno)
    };
    assert_eq!(msync(&mut all), Err(Some(errno::ENOSPC)));
    assert_eq!(msync(&mut all), Ok(0));
    let syncfs = |all: &mut Writer, fd| all.run.call(nr::__NR_syncfs, &[fd]).map_err(errno);
    for fd in [fds[0], other] {
        assert_eq!(syncfs(&mut all, fd), Err(Some(errno::ENOSPC)));
        assert_eq!(syncfs(&mut all, fd), Ok(0));
    }
    assert_eq!(syncfs(&mut all, late), Ok(0), "opened after it");
    assert_eq!(all.fsync(fds[1]), Err(Some(errno::ENOSPC)));
    ends_clean(node, all.run);
}
