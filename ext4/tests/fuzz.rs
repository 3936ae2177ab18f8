//! Damaged metadata: an error, never a panic or a hang.
//!
//! Checksums of what was damaged are made right again by chance only, so half of the images have
//! none.

mod common;

use std::time::{Duration, Instant};

use common::check::read_all;
use common::disk::MemDisk;
use common::model::Model;
use common::tools::mke2fs;
use common::work::{Load, Op, World};
use common::{Rng, at, block_on};
use ext4::{Allocation, Ext4, NewNode, Options, ROOT, Rename};

const LOAD: Load = Load {
    names: 60,
    reach: 200_000,
    longest: 20_000,
    syncs: 3,
};

/// Fills a file system; returns its image and the numbers of its inodes, after an unmount or with a
/// log to replay.
fn filled(image: Vec<u8>, unmount: bool) -> Vec<u8> {
    let disk = MemDisk::new(image, 1);
    let mut rng = Rng(7);
    let mut model = Model::default();
    let fs = block_on(Ext4::mount(
        disk.clone(),
        Options {
            read_only: false,
            now: at(0),
        },
    ))
    .expect("mounts");
    let mut world = World::new(fs);
    for _ in 0..300 {
        let op = Op::random(&mut rng, &model, LOAD);
        let _ = op.apply(&mut model);
        let _ = block_on(world.perform(&op, &model));
    }
    let fs = world.fs;
    block_on(async {
        let new = NewNode {
            mode: 0o644,
            uid: 0,
            gid: 0,
            now: at(1),
        };
        let dir = fs.mkdir(ROOT, b"many", new).await.expect("is made");
        for number in 0..300 {
            fs.create(dir, format!("an entry of many {number}").as_bytes(), new)
                .await
                .expect("is made");
        }
        fs.sync(at(1)).await.expect("syncs");
    });
    if unmount {
        block_on(fs.unmount(at(1))).expect("unmounts");
    }
    disk.image()
}

/// Changes bytes where there are some: superblock, descriptors, bitmaps, inodes, directories,
/// nodes, the journal.
fn damage(image: &mut [u8], rng: &mut Rng, used: &[usize]) {
    for _ in 0..=rng.below(30) {
        let block = used[rng.index(used.len())] * 1024;
        let at = block + rng.index(1024);
        let near = (at..block + 1024).find(|&at| image[at] != 0).unwrap_or(at);
        let value = [
            0,
            0xff,
            0x7f,
            0x80,
            image[near] ^ 1 << rng.below(8),
            rng.next().to_le_bytes()[0],
        ];
        image[near] = value[rng.index(value.len())];
    }
}

/// Does everything to a damaged file system; only that it ends is asked for.
async fn exercise(disk: MemDisk, rng: &mut Rng) {
    let options = Options {
        read_only: rng.chance(20),
        now: at(0),
    };
    let Ok(fs) = Ext4::mount(disk, options).await else {
        return;
    };
    let new = NewNode {
        mode: 0o644,
        uid: 0,
        gid: 0,
        now: at(2),
    };
    if fs.stat(ROOT).await.is_ok_and(|stat| stat.size < 1 << 24) {
        let _ = small_walk(&fs).await;
    }
    let mut dirs = vec![ROOT];
    for step in 0..60 {
        let dir = dirs[rng.index(dirs.len())];
        let name = format!("n{}", rng.below(30)).into_bytes();
        let inode = u32::try_from(rng.below(500)).expect("small");
        let _ = match rng.below(11) {
            0 => fs.create(dir, &name, new).await.map(drop),
            1 => fs.mkdir(dir, &name, new).await.map(|made| dirs.push(made)),
            2 => fs.unlink(dir, &name, at(step)).await,
            3 => fs.rmdir(dir, &name, at(step)).await,
            4 => {
                fs.rename((dir, &name), (ROOT, b"to"), Rename::Exchange, at(step))
                    .await
            }
            5 => {
                fs.rename((ROOT, b"to"), (dir, &name), Rename::Replace, at(step))
                    .await
            }
            6 => fs
                .write(inode, rng.below(100_000), &[1; 3000], at(step))
                .await
                .map(drop),
            7 => fs.truncate(inode, rng.below(100_000), at(step)).await,
            8 => {
                fs.fallocate(
                    inode,
                    Allocation::PunchHole,
                    rng.below(50_000),
                    50_000,
                    at(step),
                )
                .await
            }
            9 => fs.sync(at(step)).await,
            _ => fs.lookup(dir, b"many").await.map(|found| dirs.push(found)),
        };
    }
    let _ = fs.unmount(at(99)).await;
}

/// Reads directories and the beginnings of files; damaged sizes are large.
async fn small_walk(fs: &Ext4<MemDisk>) -> Result<(), ext4::Error> {
    let mut left = vec![ROOT];
    let mut seen = 0;
    while let Some(dir) = left.pop() {
        let mut position = 0;
        while let Some((entries, next)) = fs.entries(dir, position).await? {
            position = next;
            for entry in entries
                .into_iter()
                .filter(|entry| entry.name != b"." && entry.name != b"..")
            {
                seen += 1;
                if seen > 2_000 {
                    return Ok(());
                }
                let mut bytes = [0; 5000];
                let _ = fs.read(entry.inode, 0, &mut bytes).await;
                let _ = fs.read_link(entry.inode).await;
                if entry.kind == 2 {
                    left.push(entry.inode);
                }
            }
        }
    }
    Ok(())
}

fn rounds() -> u64 {
    let set = std::env::var("EXT4_FUZZ")
        .ok()
        .and_then(|rounds| rounds.parse().ok());
    set.unwrap_or(400)
}

fn fuzz(options: &[&str], unmount: bool) {
    let image = filled(mke2fs(8 << 20, options), unmount);
    let intact = MemDisk::new(image.clone(), 1);
    let fs = block_on(Ext4::mount(
        intact,
        Options {
            read_only: true,
            now: at(0),
        },
    ))
    .expect("mounts");
    block_on(read_all(&fs)).expect("is readable");
    let stale = |block: &[u8]| block.iter().all(|&byte| byte == 0 || byte == 0xa5);
    let used: Vec<_> = image
        .chunks(1024)
        .enumerate()
        .filter(|(_, block)| !stale(block))
        .map(|(at, _)| at)
        .collect();
    for seed in 0..rounds() {
        let mut rng = Rng(seed);
        let mut damaged = image.clone();
        damage(&mut damaged, &mut rng, &used);
        let begun = Instant::now();
        block_on(exercise(MemDisk::new(damaged, seed), &mut rng));
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "seed {seed} hangs"
        );
    }
}

#[test]
fn damaged_metadata_without_checksums() {
    fuzz(&["-b", "1024", "-O", "^metadata_csum"], true);
}

#[test]
fn damaged_metadata_with_checksums() {
    fuzz(&["-b", "1024"], true);
}

#[test]
fn a_damaged_log() {
    fuzz(&["-b", "1024", "-O", "^metadata_csum"], false);
}
