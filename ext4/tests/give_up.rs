//! Tasks that are dropped in the middle of an operation.

mod common;

use common::check::read_image;
use common::disk::MemDisk;
use common::mounted::{finish, mount, node};
use common::tools::mke2fs;
use common::{Rng, at, block_on, give_up};
use ext4::{Allocation, Ext4, ROOT};

/// Does one operation on a file whose bytes all have one value, or part of one.
fn one_operation(fs: &Ext4<MemDisk>, rng: &mut Rng, step: u64) {
    let number = rng.below(12);
    let name = format!("file {number}").into_bytes();
    let byte = u8::try_from(number + 1).expect("small");
    let polls = if rng.chance(40) {
        rng.below(60)
    } else {
        1_000_000
    };
    let now = at(step);
    let Ok(file) = block_on(fs.lookup(ROOT, &name)) else {
        give_up(fs.create(ROOT, &name, node(now)), polls);
        return;
    };
    let (offset, len) = (rng.below(400_000), 1 + rng.index(60_000));
    let bytes = vec![byte; len];
    match rng.below(8) {
        0..3 => drop(give_up(fs.write(file, offset, &bytes, now), polls)),
        3 => drop(give_up(fs.append(file, &bytes, now), polls)),
        4 => drop(give_up(fs.truncate(file, offset / 2, now), polls)),
        5 => drop(give_up(
            fs.fallocate(file, Allocation::PunchHole, offset, 30_000, now),
            polls,
        )),
        6 => drop(give_up(fs.sync(now), polls)),
        _ if rng.chance(30) => drop(give_up(fs.unlink(ROOT, &name, now), polls)),
        _ => {}
    }
}

fn give_up_at_random(image: Vec<u8>, seed: u64) {
    let disk = MemDisk::new(image, seed);
    let fs = mount(&disk);
    let mut rng = Rng(seed);
    (0..1_500).for_each(|step| one_operation(&fs, &mut rng, step));
    block_on(fs.unmount(at(9))).expect("unmounts");
    // Deletions that were given up are finished now.
    let fs = mount(&disk);
    let image = finish(fs, &disk);
    for (path, found) in read_image(image).expect("mounts") {
        let text = String::from_utf8_lossy(&path).into_owned();
        let number: u8 = text.trim_start_matches("/file ").parse().expect("a number");
        let foreign = found
            .data
            .iter()
            .position(|&byte| byte != 0 && byte != number + 1);
        assert_eq!(
            foreign, None,
            "seed {seed}: {text} has a byte of another file"
        );
    }
}

#[test]
fn operations_that_are_given_up_leave_no_damage() {
    let image = mke2fs(16 << 20, &["-b", "1024"]);
    (0..8).for_each(|seed| give_up_at_random(image.clone(), seed));
}

#[test]
fn a_cut_that_was_given_up_brings_nothing_back() {
    let image = mke2fs(16 << 20, &["-b", "1024"]);
    for polls in 0..40 {
        let disk = MemDisk::new(image.clone(), polls);
        let fs = mount(&disk);
        block_on(async {
            let file = fs.create(ROOT, b"file", node(at(1))).await.unwrap();
            for block in 0..200 {
                fs.write(file, block * 2048, &[7; 1024], at(1))
                    .await
                    .unwrap();
            }
            fs.sync(at(1)).await.unwrap();
            give_up(fs.truncate(file, 0, at(2)), polls);
            let size = fs.stat(file).await.unwrap().size;
            fs.truncate(file, 400_000, at(3)).await.unwrap();
            let mut bytes = vec![1; 400_000];
            fs.read(file, 0, &mut bytes).await.unwrap();
            assert_eq!(bytes.contains(&7), size > 0, "after {polls} polls");
        });
        finish(fs, &disk);
    }
}

#[test]
fn a_disk_that_fails_is_an_error_and_stays_sound() {
    for seed in 0..20 {
        let disk = MemDisk::new(mke2fs(16 << 20, &["-b", "1024"]), seed);
        let fs = mount(&disk);
        let mut rng = Rng(seed);
        (0..100).for_each(|step| one_operation(&fs, &mut rng, step));
        block_on(fs.sync(at(1))).expect("syncs");
        disk.fail_reads(20);
        (0..300).for_each(|step| one_operation(&fs, &mut rng, step));
        disk.fail_reads(0);
        block_on(fs.unmount(at(9))).expect("unmounts");
        let fs = mount(&disk);
        finish(fs, &disk);
    }
}
