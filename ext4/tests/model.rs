//! Random operations, compared with a reference in memory, then judged by e2fsck and debugfs.

mod common;

use common::check::{assert_same, read_all, read_image};
use common::disk::MemDisk;
use common::model::{Kind, Model};
use common::mounted::mount;
use common::tools::{Image, debugfs_cat, e2fsck, mke2fs};
use common::work::{Load, Op, World};
use common::{Rng, at, block_on};

const LOAD: Load = Load {
    names: 40,
    reach: 120_000,
    longest: 30_000,
    syncs: 4,
};

/// Does `steps` operations, comparing each answer; unmounts, and compares everything.
fn run(image: Vec<u8>, seed: u64, steps: u64, load: Load) -> Vec<u8> {
    let disk = MemDisk::new(image, seed);
    let mut rng = Rng(seed);
    let mut model = Model::default();
    let mut world = World::new(mount(&disk));
    for step in 0..steps {
        let op = Op::random(&mut rng, &model, load);
        let expected = op.apply(&mut model);
        let answer = block_on(world.perform(&op, &model)).map_err(ext4::Error::errno);
        assert_eq!(answer, expected, "seed {seed} step {step}: {op:?}");
        if step % 100 == 99 {
            assert_same(&block_on(read_all(&world.fs)).expect("is readable"), &model);
        }
    }
    block_on(world.fs.unmount(at(steps))).expect("unmounts");
    let image = disk.image();
    if let Err(text) = e2fsck(&image) {
        panic!("seed {seed}: {text}");
    }
    assert_same(&read_image(image.clone()).expect("mounts"), &model);
    judge_by_debugfs(&image, &model);
    image
}

fn judge_by_debugfs(image: &[u8], model: &Model) {
    let file = Image::new(image);
    for (path, id) in model.paths().into_iter().take(12) {
        if let Kind::File(data) = &model.nodes[&id].kind {
            let path = String::from_utf8(path).expect("an ASCII name");
            assert!(
                debugfs_cat(&file, &path) == **data,
                "debugfs reads {path} otherwise"
            );
        }
    }
}

fn rounds() -> u64 {
    let set = std::env::var("EXT4_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok());
    set.unwrap_or(4)
}

#[test]
fn random_operations_on_debians_defaults() {
    let image = mke2fs(16 << 20, &["-b", "4096"]);
    (0..rounds()).for_each(|seed| drop(run(image.clone(), seed, 500, LOAD)));
}

#[test]
fn random_operations_on_small_blocks() {
    let image = mke2fs(16 << 20, &["-b", "1024"]);
    (100..100 + rounds()).for_each(|seed| drop(run(image.clone(), seed, 500, LOAD)));
}

#[test]
fn random_operations_without_checksums_and_64_bits() {
    let image = mke2fs(16 << 20, &["-b", "1024", "-O", "^metadata_csum,^64bit"]);
    (200..200 + rounds()).for_each(|seed| drop(run(image.clone(), seed, 500, LOAD)));
}

#[test]
fn random_operations_on_old_group_checksums() {
    let image = mke2fs(
        16 << 20,
        &["-b", "1024", "-O", "^metadata_csum,uninit_bg", "-I", "128"],
    );
    (300..300 + rounds()).for_each(|seed| drop(run(image.clone(), seed, 500, LOAD)));
}
