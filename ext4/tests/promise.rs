//! Promised blocks: whatever was gathered under a promise can be written, however full others make
//! the disk meanwhile.

mod common;

use common::disk::MemDisk;
use common::mounted::{finish, mount, node};
use common::tools::mke2fs;
use common::{Rng, at, block_on};
use ext4::{Allocation, Errno, Error, Ext4, MAX_PROMISED, ROOT};
use futures_util::future::join;

/// A file, what it must hold, and what waits for it under a promise.
struct File {
    inode: u32,
    data: Vec<u8>,
    /// Blocks that may still be gathered.
    left: u64,
    waits: Vec<(u64, Vec<u8>)>,
}

struct Bed {
    fs: Ext4<MemDisk>,
    block: u64,
    rng: Rng,
    files: Vec<File>,
    /// Requests that were refused as the disk was full.
    full: u32,
    /// Blocks brought under promises.
    brought: u64,
}

fn put(data: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let offset = usize::try_from(offset).unwrap();
    let end = offset + bytes.len();
    data.resize(data.len().max(end), 0);
    data[offset..end].copy_from_slice(bytes);
}

impl Bed {
    async fn new(disk: &MemDisk, block: u64, seed: u64) -> Self {
        let (fs, rng) = (mount(disk), Rng(seed));
        let (files, full, brought) = (Vec::new(), 0, 0);
        let mut bed = Self {
            fs,
            block,
            rng,
            files,
            full,
            brought,
        };
        for number in 0..6 {
            bed.add(number).await;
        }
        bed
    }

    /// Makes a file: empty, of few extents, or of a tree whose leaves are full.
    async fn add(&mut self, number: u64) {
        let name = format!("promised {number}");
        let inode = self.fs.create(ROOT, name.as_bytes(), node(at(1))).await;
        let mut file = File {
            inode: inode.unwrap(),
            data: Vec::new(),
            left: 0,
            waits: Vec::new(),
        };
        let blocks = match number {
            0 | 1 => 0,
            2 => 3,
            3 => 90,
            _ => 340 + self.rng.below(100),
        };
        for at_block in 0..blocks {
            let offset = 2 * at_block * self.block;
            self.fs
                .write(file.inode, offset, b"old", at(1))
                .await
                .unwrap();
            put(&mut file.data, offset, b"old");
        }
        if number == 2 {
            let (how, len) = (Allocation::KeepSize, 200 * self.block);
            self.fs
                .fallocate(file.inode, how, 20 * self.block, len, at(1))
                .await
                .unwrap();
        }
        self.files.push(file);
    }

    /// Notes an answer that may be that the disk is full.
    fn may_fail<T>(&mut self, done: Result<T, Error>) -> Option<T> {
        match done {
            Ok(value) => Some(value),
            Err(error) => {
                assert_eq!(error.errno(), Errno::ENOSPC);
                self.full += 1;
                None
            }
        }
    }

    /// Promises a file blocks, as many as wait already and more.
    async fn promise(&mut self, which: usize) {
        let waits = self.files[which].waits.len() as u64;
        let blocks = waits + self.rng.below(u64::from(MAX_PROMISED) + 1 - waits);
        let wanted = u32::try_from(blocks).unwrap();
        if self
            .fs
            .promise(self.files[which].inode, wanted, 0)
            .await
            .unwrap()
        {
            self.files[which].left = blocks - waits;
        }
    }

    /// Gathers writes of a file within its promise: one after the other, scattered, or backwards.
    fn gather(&mut self, which: usize) {
        let (how, start) = (self.rng.below(3), self.rng.below(900));
        let file = &mut self.files[which];
        for step in 0.. {
            let block = match how {
                0 => start + step,
                1 => self.rng.below(900),
                _ => 2 * (500 - step.min(500)) + 1,
            };
            let offset = block * self.block + self.rng.below(self.block);
            let room = (block + 1) * self.block - offset;
            let len = usize::try_from(1 + self.rng.below(room)).unwrap();
            if file.left == 0 {
                break;
            }
            file.left -= 1;
            let byte = self.rng.next().to_le_bytes()[0];
            file.waits.push((offset, vec![byte; len]));
        }
    }

    /// Brings some of what waits for a file; none of it may be refused.
    async fn bring(&mut self, which: usize, some: bool) {
        let count = self.files[which].waits.len();
        let now = if some {
            self.rng.index(count + 1)
        } else {
            count
        };
        let waits: Vec<_> = self.files[which].waits.drain(..now).collect();
        let (inode, fs) = (self.files[which].inode, &self.fs);
        let other = self.files[(which + 1) % self.files.len()].inode;
        let far = (4_000 + self.rng.below(4_000)) * self.block;
        let bring = async {
            for (offset, bytes) in &waits {
                let done = fs.write_promised(inode, *offset, bytes, at(2)).await;
                assert_eq!(done, Ok(bytes.len()), "of what was promised");
            }
        };
        // Another task has its part of the disk's last blocks.
        let takes = fs.write(other, far, &[1; 3000], at(2));
        let ((), taken) = join(bring, takes).await;
        self.may_fail(taken);
        self.look((which + 1) % self.files.len()).await;
        self.brought += waits.len() as u64;
        for (offset, bytes) in waits {
            put(&mut self.files[which].data, offset, &bytes);
        }
    }

    /// Writes to a file without its promise, once nothing waits, and promises anew as S does.
    async fn through(&mut self, which: usize) {
        self.bring(which, false).await;
        let offset = self.rng.below(900) * self.block;
        let len = 1 + self.rng.index(20_000);
        let inode = self.files[which].inode;
        let done = self.fs.write(inode, offset, &vec![9; len], at(2)).await;
        self.may_fail(done);
        self.look(which).await;
        self.promise(which).await;
    }

    /// Takes over what a file holds: of a write that was cut short some bytes may be there.
    async fn look(&mut self, which: usize) {
        let file = &mut self.files[which];
        let size = self.fs.stat(file.inode).await.unwrap().size;
        file.data = vec![0; usize::try_from(size).unwrap()];
        self.fs.read(file.inode, 0, &mut file.data).await.unwrap();
    }

    /// Uses and frees blocks as programs that were promised nothing do.
    async fn others(&mut self) {
        let name = format!("other {}", self.rng.below(12));
        let made = self.fs.create(ROOT, name.as_bytes(), node(at(3))).await;
        let file = match made {
            Err(error) if error.errno() == Errno::EEXIST => {
                self.fs.lookup(ROOT, name.as_bytes()).await.unwrap()
            }
            made => match self.may_fail(made) {
                Some(file) => file,
                None => return,
            },
        };
        let (offset, len) = (self.rng.below(300_000), 1 + self.rng.below(90_000));
        let bytes = vec![3; usize::try_from(len).unwrap()];
        let done = match self.rng.below(8) {
            0 => self.fs.unlink(ROOT, name.as_bytes(), at(3)).await,
            1 => self.fs.truncate(file, offset, at(3)).await,
            2 => {
                let how = Allocation::PunchHole;
                self.fs.fallocate(file, how, offset, len, at(3)).await
            }
            3 => {
                let how = Allocation::Extend;
                self.fs.fallocate(file, how, offset, len, at(3)).await
            }
            _ => self.fs.write(file, offset, &bytes, at(3)).await.map(drop),
        };
        self.may_fail(done);
    }

    /// Takes every block that is promised to nobody.
    async fn fill(&mut self) {
        let name = format!("filler {}", self.rng.next());
        let made = self.fs.create(ROOT, name.as_bytes(), node(at(4))).await;
        let Some(file) = self.may_fail(made) else {
            return;
        };
        loop {
            let done = self.fs.append(file, &[5; 50_000], at(4)).await;
            if self.may_fail(done).is_none() {
                break;
            }
        }
        let stat = self.fs.statfs().await.unwrap();
        assert!(stat.free <= 2, "{} blocks are kept from others", stat.free);
    }

    async fn step(&mut self) {
        let which = self.rng.index(self.files.len());
        match self.rng.below(12) {
            0..=2 => self.promise(which).await,
            3..=5 => self.gather(which),
            6 => self.bring(which, true).await,
            7 => self.through(which).await,
            8 if self.rng.chance(20) => self.fs.sync(at(5)).await.unwrap(),
            _ => self.others().await,
        }
    }

    /// Fills the disk, brings all that waits, and compares the files.
    async fn end(&mut self) {
        self.fill().await;
        for which in 0..self.files.len() {
            self.bring(which, false).await;
        }
        for file in &self.files {
            let mut read = vec![0; file.data.len() + 1];
            let got = self.fs.read(file.inode, 0, &mut read).await.unwrap();
            assert!(read[..got] == file.data);
            self.fs.end_promise(file.inode);
        }
        assert_eq!(self.fs.promised(), 0);
        self.fill().await;
    }
}

fn seeds() -> u64 {
    let seeds = std::env::var("EXT4_SEEDS").ok();
    seeds.map_or(24, |seeds| seeds.parse().expect("a number"))
}

#[test]
fn whatever_was_promised_can_be_written() {
    let (mut full, mut brought) = (0, 0);
    for seed in 0..seeds() {
        let (block, size) = [(1024, 4 << 20), (4096, 12 << 20)][usize::try_from(seed % 2).unwrap()];
        let image = mke2fs(size, &["-b", &block.to_string(), "-m", "0"]);
        let disk = MemDisk::new(image, seed);
        let bed = block_on(async {
            let mut bed = Bed::new(&disk, block, seed).await;
            for _ in 0..150 {
                bed.step().await;
            }
            bed.end().await;
            bed
        });
        (full, brought) = (full + bed.full, brought + bed.brought);
        finish(bed.fs, &disk);
    }
    assert!(full > 100, "the disk was full only {full} times");
    assert!(brought > 1000, "only {brought} blocks were brought");
}

#[test]
fn a_promise_is_refused_when_others_would_have_too_little() {
    let disk = MemDisk::new(mke2fs(8 << 20, &["-b", "1024", "-m", "0"]), 1);
    let fs = mount(&disk);
    block_on(async {
        let file = fs.create(ROOT, b"file", node(at(1))).await.unwrap();
        let free = fs.statfs().await.unwrap().free;
        assert_eq!(fs.promise(file, 60, free).await, Ok(false));
        assert_eq!(fs.promise(file, 60, free / 2).await, Ok(true));
        let promised = fs.promised();
        assert!(promised > 60);
        assert_eq!(fs.statfs().await.unwrap().free, free - promised);
        // Overwriting takes nothing of it.
        fs.write(file, 0, &[1; 1024], at(1)).await.unwrap();
        fs.write_promised(file, 0, &[2; 1024], at(1)).await.unwrap();
        assert_eq!(fs.promised(), promised);
        fs.write_promised(file, 5000, &[2; 1024], at(1))
            .await
            .unwrap();
        assert_eq!(fs.promised(), promised - 2, "two blocks");
        fs.end_promise(file);
        assert_eq!(fs.statfs().await.unwrap().free, free - 3);
        let dir = fs.mkdir(ROOT, b"dir", node(at(1))).await.unwrap();
        assert_eq!(
            fs.promise(dir, 1, 0).await,
            Err(Error::Errno(Errno::EISDIR))
        );
    });
    finish(fs, &disk);
}

/// Appends to a new file until nothing is left; returns its inode.
async fn fill(fs: &Ext4<MemDisk>, name: &[u8]) -> u32 {
    let file = fs.create(ROOT, name, node(at(1))).await.unwrap();
    while fs.append(file, &[5; 50_000], at(1)).await.is_ok() {}
    file
}

#[test]
fn a_promise_is_for_the_nodes_of_a_tree_too_and_needs_no_commit() {
    let disk = MemDisk::new(mke2fs(8 << 20, &["-b", "1024", "-m", "0"]), 1);
    let fs = mount(&disk);
    block_on(async {
        // Four leaves of 84 extents, all full.
        let file = fs.create(ROOT, b"file", node(at(1))).await.unwrap();
        for block in 0..4 * 84 {
            fs.write(file, block * 2048, b"old", at(1)).await.unwrap();
        }
        assert_eq!(fs.promise(file, 8, 0).await, Ok(true));
        let full = fill(&fs, b"full").await;
        for place in 0..8 {
            let offset = place * 40 * 2048 + 1024;
            let done = fs.write_promised(file, offset, &[7; 1024], at(2)).await;
            assert_eq!(done, Ok(1024), "{place}");
        }
        assert_eq!(
            fs.promised(),
            26 - 8 - 5,
            "four leaves were split, and the root"
        );
        // Others wait for the commit of what was freed rather than take what is promised.
        fs.truncate(full, 3_000_000, at(1)).await.unwrap();
        fs.sync(at(1)).await.unwrap();
        assert_eq!(fs.promise(file, 40, 0).await, Ok(true));
        let rest = fill(&fs, b"rest").await;
        fs.truncate(rest, 0, at(1)).await.unwrap();
        fs.append(full, &[3; 140_000], at(1)).await.unwrap();
        let flushes = disk.counts().flushes;
        for place in 0..40 {
            let offset = 1_000_000 + place * 1024;
            let done = fs.write_promised(file, offset, &[7; 1024], at(2)).await;
            assert_eq!(done, Ok(1024), "{place}");
        }
        assert_eq!(disk.counts().flushes, flushes);
    });
    finish(fs, &disk);
}
