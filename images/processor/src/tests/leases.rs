//! Files that are read under leases of S: what is kept, and what other nodes and this one change.

use std::pin::pin;

use messages::recall::{Recall, RecallRequest};
use messages::{Call as _, decode_reply, encode_request};

use super::tmp::ends_clean;
use super::*;
use crate::platform::{Files, Platform};
use crate::wait::either;

const PROT_RW: u64 = 3;
const SHARED: u64 = 1;
const APPEND: u64 = 0o2000;
const DIRECT: u64 = 0o40_000;
/// Longer than the pause after a recall.
pub(super) const PAUSE: u64 = 60_000_000;
/// Longer than a lease.
pub(super) const TERM: u64 = 5_000_000_000;

impl FakeNode {
    /// Recalls a file's lease, and carries out what was gathered under it.
    pub(super) fn recall(&self, path: &str) {
        let (inode, lease) = self.files.recall(path);
        let mut pieces = Vec::new();
        loop {
            let from = u32::try_from(pieces.len()).unwrap();
            let (mut request, mut reply) = ([0; 32], [0; messages::MAX_MESSAGE]);
            let asked = RecallRequest { inode, lease, from };
            let len = encode_request::<Recall>(&asked, &mut request).unwrap();
            let now = self.platform.now();
            let kind = Recall::KIND.0;
            let request = &request[..len];
            let len = self.kernel.answer(self, now, kind, request, &mut reply);
            let answer = decode_reply::<Recall>(&reply[..len]).unwrap().unwrap();
            pieces.extend_from_slice(answer.part.0);
            if answer.part.0.is_empty() {
                break;
            }
        }
        let at = usize::try_from(inode - 10).unwrap();
        self.files.put_pieces(at, &pieces);
    }

    /// Another node's change of a file: S recalls the lease first.
    fn changed_elsewhere(&self, path: &str, data: &[u8]) {
        self.recall(path);
        self.files.change(path, data);
    }

    pub(super) fn pass(&self, nanos: u64) {
        let clock = &self.platform.clock;
        clock.set(clock.get() + nanos);
    }

    /// Requests about open files, opens, and reads until now.
    fn requests(&self) -> (u64, u64, u64) {
        let files = &self.files;
        (files.file_asked.get(), files.asked.get(), files.reads.get())
    }
}

impl Run {
    fn pread_all(&mut self, fd: u64, into: u64, len: u64) -> Vec<u8> {
        let got = self.call(nr::__NR_pread64, &[fd, into, len, 0]).unwrap();
        self.get(into, usize::try_from(got).unwrap())
    }

    pub(super) fn size_of(&mut self, fd: u64) -> u64 {
        assert_eq!(self.call(nr::__NR_fstat, &[fd, DATA]), Ok(0));
        let size = self.call(nr::__NR_lseek, &[fd, 0, 2]).unwrap();
        let word = self.get(DATA + 48, 8);
        assert_eq!(u64::from_le_bytes(word.try_into().unwrap()), size);
        size
    }
}

#[test]
fn what_is_read_again_under_a_lease_asks_s_for_nothing() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let into = run.map(200_000).unwrap();
    let fd = run.open("/big").unwrap();
    let all = node.files.data("/big");
    assert!(run.pread_all(fd, into, 200_000) == all);
    let before = node.requests();
    assert!(run.pread_all(fd, into, 200_000) == all);
    assert_eq!(run.size_of(fd), 100_000);
    for at in (0..200).map(|n| n * 7919 % 100_000) {
        let got = run.call(nr::__NR_pread64, &[fd, into, 4096, at]).unwrap();
        let at = usize::try_from(at).unwrap();
        let end = all.len().min(at + 4096);
        assert!(run.get(into, usize::try_from(got).unwrap()) == all[at..end]);
    }
    assert_eq!(node.requests(), before);
    // Opened anew, the open is the only request.
    run.call(nr::__NR_close, &[fd]).unwrap();
    let fd = run.open("/big").unwrap();
    assert_eq!(run.size_of(fd), 100_000);
    assert!(run.pread_all(fd, into, 200_000) == all);
    let (file_asked, asked, reads) = before;
    assert_eq!(node.requests(), (file_asked, asked + 1, reads));
    // A mapping shares the pages.
    let at = run.call(nr::__NR_mmap, &[0, 100_000, 1, 2, fd, 0]).unwrap();
    assert!(run.get(at, 100_000) == all);
    assert_eq!(node.requests(), (file_asked, asked + 1, reads));
    // O_DIRECT reads pass the pages by.
    let name = run.name(0, "/big");
    let direct = run.call(nr::__NR_open, &[name, DIRECT]).unwrap();
    assert!(run.pread_all(direct, into, 200_000) == all);
    assert!(node.files.reads.get() > reads);
    ends_clean(node, run);
    assert_eq!(node.files.open.get(), 0);
}

#[test]
fn a_random_read_brings_no_more_than_its_pages() {
    let node = node(64);
    node.files.most = 1 << 20;
    let node: &FakeNode = node;
    let mut run = Run::new(node);
    let fd = run.open("/big").unwrap();
    let into = run.map(8192).unwrap();
    run.call(nr::__NR_pread64, &[fd, into, 100, 50_000])
        .unwrap();
    let reads = node.files.reads.get();
    run.call(nr::__NR_pread64, &[fd, into, 4000, 49_152])
        .unwrap();
    assert_eq!(node.files.reads.get(), reads, "of the same page");
    run.call(nr::__NR_pread64, &[fd, into, 100, 80_000])
        .unwrap();
    assert_eq!(node.files.reads.get(), reads + 1);
    ends_clean(node, run);
}

#[test]
fn another_node_s_change_is_seen_after_its_recall() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let into = run.map(200_000).unwrap();
    let fd = run.open("/big").unwrap();
    let at = run
        .call(nr::__NR_mmap, &[0, 100_000, 1, SHARED, fd, 0])
        .unwrap();
    assert_eq!(run.pread_all(fd, into, 200_000).len(), 100_000);
    let other: Vec<u8> = (0..70_001_u32).map(|n| n.to_le_bytes()[0]).collect();
    node.changed_elsewhere("/big", &other);
    // Without a lease S is asked each time; then there is a new one.
    assert!(run.pread_all(fd, into, 200_000) == other);
    assert_eq!(run.size_of(fd), 70_001);
    node.pass(PAUSE);
    assert!(run.pread_all(fd, into, 200_000) == other);
    let before = node.requests();
    assert!(run.pread_all(fd, into, 200_000) == other);
    assert_eq!(run.size_of(fd), 70_001);
    assert_eq!(node.requests(), before);
    // A mapping sees the pages that were read anew, and loses those behind the end.
    assert!(run.get(at, 70_001) == other);
    let mut byte = [0];
    let behind = node.block_on(run.thread.memory.read(at + 90_000, &mut byte));
    assert_eq!(errno_of(behind.map(|()| 0)), Some(errno::EFAULT));
    // What is cut and grows again reads as zeroes.
    let mut grown = other[..10_000].to_vec();
    grown.resize(50_000, 0);
    node.changed_elsewhere("/big", &grown);
    node.pass(PAUSE);
    assert!(run.pread_all(fd, into, 200_000) == grown);
    ends_clean(node, run);
}

#[test]
fn a_lease_that_expired_is_asked_for_again_and_keeps_its_pages() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let into = run.map(200_000).unwrap();
    let fd = run.open("/big").unwrap();
    let all = run.pread_all(fd, into, 200_000);
    let (file_asked, asked, reads) = node.requests();
    node.pass(TERM);
    assert!(run.pread_all(fd, into, 200_000) == all);
    assert_eq!(node.requests(), (file_asked + 1, asked, reads));
    // S has given it to another node meanwhile, which this one was not told.
    node.pass(TERM);
    node.files.recall("/big");
    node.files.change("/big", b"short");
    assert_eq!(run.pread_all(fd, into, 200_000), b"short");
    ends_clean(node, run);
}

#[test]
fn without_leases_s_is_asked_for_all() {
    let node: &FakeNode = node(64);
    node.files.leases.set(false);
    let mut run = Run::new(node);
    let into = run.map(200_000).unwrap();
    let fd = run.open("/big").unwrap();
    for size in [100_000, 3] {
        assert_eq!(run.pread_all(fd, into, 200_000).len(), size);
        node.files.cut("/big", 3);
    }
    assert_eq!(run.size_of(fd), 3);
    ends_clean(node, run);
}

fn many(count: usize) -> Vec<(String, Vec<u8>)> {
    let file = |n: usize| (format!("/f{n}"), vec![n.to_le_bytes()[0] + 1; 100_000]);
    (0..count).map(file).collect()
}

fn node_with(files: &[(String, Vec<u8>)]) -> &'static FakeNode {
    let program = program();
    let mut all: Vec<(&str, &[u8])> = vec![("/", b""), ("/bin", b""), ("/bin/program", &program)];
    all.extend(files.iter().map(|(path, data)| (&path[..], &data[..])));
    let node = FakeNode::new(64, &all);
    node.files.most = 1 << 20;
    node.memory.total.set(8);
    node
}

#[test]
fn files_that_are_read_once_do_not_displace_those_that_are_used_again() {
    let files = many(60);
    let node = node_with(&files);
    let mut run = Run::new(node);
    let into = run.map(100_000).unwrap();
    let read = |run: &mut Run, path: &str| {
        let fd = run.open(path).unwrap();
        let all = run.pread_all(fd, into, 100_000);
        assert_eq!(all.len(), 100_000);
        run.call(nr::__NR_close, &[fd]).unwrap();
        all
    };
    read(&mut run, "/f0");
    read(&mut run, "/f0");
    // 60 files of 25 pages are more than the quarter of 4,096 that may be kept.
    for (path, data) in &files {
        assert!(read(&mut run, path) == *data);
    }
    let reads = node.files.reads.get();
    read(&mut run, "/f0");
    read(&mut run, "/f59");
    assert_eq!(node.files.reads.get(), reads, "used again, and just read");
    read(&mut run, "/f1");
    assert!(node.files.reads.get() > reads, "read once, long ago");
    ends_clean(node, run);
    assert_eq!(node.files.open.get(), 0);
}

#[test]
fn pages_of_files_are_given_up_when_m_has_no_memory() {
    let files = many(40);
    let node = node_with(&files);
    let mut run = Run::new(node);
    let into = run.map(100_000).unwrap();
    for (path, _) in &files {
        let fd = run.open(path).unwrap();
        assert_eq!(run.pread_all(fd, into, 100_000).len(), 100_000);
        run.call(nr::__NR_close, &[fd]).unwrap();
    }
    let len = 7 * 512 * 4096 - 200 * 4096;
    let at = run.map(len).unwrap();
    let reclaim = async {
        node.kernel.keep_files(node).await.unwrap();
    };
    let touch = async {
        for page in 0..len / 4096 {
            let word = page.to_le_bytes();
            run.thread.memory.write(at + page * 4096, &word).await?;
        }
        Ok(())
    };
    let touched: Option<Result<(), Error>> = node.block_on(either(pin!(touch), pin!(reclaim)));
    assert_eq!(touched, Some(Ok(())));
    ends_clean(node, run);
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// The longest file of the differential test.
const LONGEST: u64 = 60_000;

/// A program, and the file as it must be.
struct Twin {
    run: Run,
    fds: [u64; 2],
    buffer: u64,
    mapped: Option<u64>,
    file: Vec<u8>,
    random: Random,
}

impl Twin {
    fn new(node: &'static FakeNode, seed: u64) -> Self {
        let mut run = Run::new(node);
        let name = run.name(0, "/big");
        let fds = [0, APPEND].map(|flags| run.call(nr::__NR_open, &[name, 2 | flags]).unwrap());
        let buffer = run.map(LONGEST + 8192).unwrap();
        let mut twin = Self {
            run,
            fds,
            buffer,
            mapped: None,
            file: vec![0; 30_000],
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        };
        let size = twin.file.len() as u64;
        twin.call(nr::__NR_ftruncate, &[fds[0], 0]);
        twin.call(nr::__NR_ftruncate, &[fds[0], size]);
        twin
    }

    fn call(&mut self, number: u32, args: &[u64]) -> u64 {
        self.run.call(number, args).unwrap()
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let (len, first) = (1 + self.random.below(most), self.random.below(255));
        (0..len).map(|n| (first + n).to_le_bytes()[0] | 1).collect()
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        self.file.resize(self.file.len().max(end), 0);
        self.file[at..end].copy_from_slice(bytes);
    }

    fn read(&mut self) {
        let (at, len) = (self.random.below(LONGEST), 1 + self.random.below(20_000));
        let fd = self.fds[0];
        let got = self.call(nr::__NR_pread64, &[fd, self.buffer, len, at]);
        let read = self.run.get(self.buffer, usize::try_from(got).unwrap());
        let start = usize::try_from(at).unwrap().min(self.file.len());
        let end = self.file.len().min(start + usize::try_from(len).unwrap());
        assert_eq!(read.len(), end - start, "of {len} at {at}");
        assert!(read == self.file[start..end], "{len} at {at}");
    }

    fn write(&mut self) {
        let bytes = self.bytes(9_000);
        self.run.put(self.buffer, &bytes);
        let len = bytes.len() as u64;
        if self.random.below(3) == 0 && self.file.len() as u64 + len < LONGEST {
            self.call(nr::__NR_write, &[self.fds[1], self.buffer, len]);
            self.put(self.file.len(), &bytes);
        } else {
            let at = self.random.below(LONGEST - len);
            self.call(nr::__NR_pwrite64, &[self.fds[0], self.buffer, len, at]);
            self.put(usize::try_from(at).unwrap(), &bytes);
        }
    }

    fn resize(&mut self) {
        let size = self.random.below(LONGEST);
        self.call(nr::__NR_ftruncate, &[self.fds[0], size]);
        self.file.resize(usize::try_from(size).unwrap(), 0);
    }

    fn punch(&mut self) {
        let (at, len) = (self.random.below(LONGEST), 1 + self.random.below(9_000));
        self.call(nr::__NR_fallocate, &[self.fds[0], 3, at, len]);
        let end = self.file.len().min(usize::try_from(at + len).unwrap());
        let start = usize::try_from(at).unwrap().min(end);
        self.file[start..end].fill(0);
    }

    /// Maps the file anew.
    fn map(&mut self) {
        if let Some(at) = self.mapped.take() {
            self.call(nr::__NR_munmap, &[at, LONGEST]);
        }
        let args = [0, LONGEST, PROT_RW, SHARED, self.fds[0], 0];
        self.mapped = Some(self.call(nr::__NR_mmap, &args));
    }

    /// Stores to the file through the mapping, or looks at it.
    fn touch(&mut self) {
        let Some(at) = self.mapped.filter(|_| !self.file.is_empty()) else {
            return;
        };
        let start = self.random.below(self.file.len() as u64);
        let left = self.file.len() as u64 - start;
        let bytes = self.bytes(left.min(5_000));
        let from = usize::try_from(start).unwrap();
        if self.random.below(2) == 0 {
            self.run.put(at + start, &bytes);
            self.put(from, &bytes);
        } else {
            let there = self.run.get(at + start, bytes.len());
            assert!(
                there == self.file[from..from + bytes.len()],
                "mapped at {start}"
            );
        }
    }

    fn reopen(&mut self) {
        let name = self.run.name(0, "/big");
        let flags = [2, 2 | APPEND];
        let which = usize::try_from(self.random.below(2)).unwrap();
        self.call(nr::__NR_close, &[self.fds[which]]);
        self.fds[which] = self.call(nr::__NR_open, &[name, flags[which]]);
    }

    fn sizes(&mut self) {
        let size = self.run.size_of(self.fds[0]);
        assert_eq!(size, self.file.len() as u64);
    }

    /// Another node changes the file.
    fn elsewhere(&mut self) {
        let node = self.run.node;
        let bytes = self.bytes(20_000);
        match self.random.below(3) {
            0 => self.file.truncate(bytes.len()),
            1 => self
                .file
                .extend_from_slice(&bytes[..bytes.len().min(9_000)]),
            _ => self.put(bytes.len(), &bytes),
        }
        self.file.truncate(usize::try_from(LONGEST).unwrap());
        let file = self.file.clone();
        node.changed_elsewhere("/big", &file);
    }

    /// One step; of programs that store through mappings, or of two nodes.
    fn step(&mut self, mapped: bool) {
        match self.random.below(20) {
            0..=6 => self.read(),
            7..=9 => self.write(),
            10 => self.resize(),
            11 => self.punch(),
            12 => self.reopen(),
            13 => self.sizes(),
            14 => self.run.node.pass(PAUSE),
            15 => self.run.node.pass(TERM),
            16 if mapped => self.map(),
            17..=19 if mapped => self.touch(),
            16 | 17 => self.elsewhere(),
            _ => self.read(),
        }
    }
}

/// Programs see their own changes, and those of another node, at once through read, mmap and
/// truncate together.
#[test]
fn reads_mappings_and_changes_agree_with_a_plain_file() {
    for seed in 1..=24 {
        let node: &FakeNode = node(64);
        node.files.gathers.set(seed % 4 < 2);
        let mut twin = Twin::new(node, seed);
        for step in 0..250 {
            let before = twin.file.len();
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                twin.step(seed % 2 == 0);
            }));
            assert!(
                done.is_ok(),
                "seed {seed}, step {step}, {before} bytes before"
            );
        }
        let gathered = node.files.gathered().unwrap().kept();
        assert_eq!(
            gathered > 5,
            seed % 4 < 2,
            "seed {seed}: {gathered} gathered"
        );
        let expected = twin.file.clone();
        ends_clean(node, twin.run);
        assert!(node.files.data("/big") == expected, "seed {seed}: at S");
    }
}
