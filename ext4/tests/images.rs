//! Images that mke2fs and debugfs made, and structures that grow large, judged by e2fsck and
//! debugfs.

mod common;

use common::check::{read_all, read_image};
use common::disk::MemDisk;
use common::mounted::{finish, mount, node, options};
use common::tools::{Image, debugfs, debugfs_cat, mke2fs, reindex};
use common::{Rng, at, block_on};
use ext4::{Allocation, Attributes, Errno, Error, Ext4, ROOT, Time};
use futures_util::future::join_all;

#[test]
fn a_directory_of_many_entries_is_indexed() {
    let disk = MemDisk::new(mke2fs(32 << 20, &["-b", "1024", "-N", "20000"]), 1);
    let fs = mount(&disk);
    let names: Vec<_> = (0..12_000)
        .map(|number| format!("a rather long name, number {number}"))
        .collect();
    block_on(async {
        let dir = fs.mkdir(ROOT, b"large", node(at(1))).await.unwrap();
        for name in &names {
            fs.create(dir, name.as_bytes(), node(at(2))).await.unwrap();
        }
        for name in names.iter().step_by(3) {
            fs.unlink(dir, name.as_bytes(), at(3)).await.unwrap();
        }
        for (number, name) in names.iter().enumerate() {
            let found = fs.lookup(dir, name.as_bytes()).await;
            assert_eq!(found.is_err(), number % 3 == 0, "{name}");
        }
        assert_eq!(
            fs.rmdir(ROOT, b"large", at(3)).await,
            Err(Errno::ENOTEMPTY.into())
        );
    });
    let image = Image::new(&finish(fs, &disk));
    let tree = debugfs(&image, &["htree_dump /large"], false);
    assert!(
        tree.contains("Number of entries (count)"),
        "the directory has an index: {tree}"
    );
    let listed = debugfs(&image, &["ls -l /large"], false);
    assert_eq!(listed.matches("a rather long name").count(), 8_000);
}

#[test]
fn a_directory_indexed_by_e2fsck_grows_on() {
    // `e2fsck -D` rebuilds the index; names are then found by hashes of another program.
    let disk = MemDisk::new(mke2fs(16 << 20, &["-b", "1024"]), 1);
    let fs = mount(&disk);
    block_on(async {
        for number in 0..1_500 {
            fs.create(ROOT, format!("n\u{e4}me {number}").as_bytes(), node(at(1)))
                .await
                .unwrap();
        }
    });
    let image = Image::new(&finish(fs, &disk));
    reindex(&image);
    let disk = MemDisk::new(image.bytes(), 2);
    let fs = mount(&disk);
    block_on(async {
        for number in 0..1_500 {
            fs.lookup(ROOT, format!("n\u{e4}me {number}").as_bytes())
                .await
                .unwrap();
            fs.create(ROOT, format!("other {number}").as_bytes(), node(at(1)))
                .await
                .unwrap();
        }
    });
    finish(fs, &disk);
}

#[test]
fn a_file_of_many_extents_is_written_punched_and_cut() {
    let disk = MemDisk::new(mke2fs(32 << 20, &["-b", "1024"]), 1);
    let fs = mount(&disk);
    block_on(async {
        let file = fs.create(ROOT, b"sparse", node(at(1))).await.unwrap();
        // Every other block, so that nothing joins; in an order that splits nodes everywhere.
        for number in 0..4_000_u64 {
            let block = number * 2_477 % 4_000;
            fs.write(
                file,
                block * 2048,
                &[u8::try_from(block % 251).unwrap(); 1024],
                at(1),
            )
            .await
            .unwrap();
        }
        let mut block = [0; 2048];
        for number in 0..4_000_u64 {
            fs.read(file, number * 2048, &mut block).await.unwrap();
            let byte = u8::try_from(number % 251).unwrap();
            assert!(block[..1024].iter().all(|&is| is == byte), "block {number}");
        }
        // Far behind everything: beyond 4 GB.
        fs.write(file, (5 << 30) + 17, b"far away", at(1))
            .await
            .unwrap();
        fs.fallocate(file, Allocation::PunchHole, 1_000_000, 3_000_000, at(2))
            .await
            .unwrap();
        fs.fallocate(file, Allocation::KeepSize, 1_500_000, 100_000, at(2))
            .await
            .unwrap();
        assert_eq!(fs.stat(file).await.unwrap().size, (5 << 30) + 25);
        fs.truncate(file, 7_000_001, at(3)).await.unwrap();
        fs.truncate(file, 9_000_000, at(3)).await.unwrap();
        let mut rest = vec![1; 3000];
        fs.read(file, 7_000_000, &mut rest).await.unwrap();
        assert!(
            rest[1..].iter().all(|&byte| byte == 0),
            "what was cut off reads as zeroes"
        );
    });
    let image = finish(fs, &disk);
    let disk = MemDisk::new(image, 1);
    let fs = mount(&disk);
    let before = block_on(fs.statfs()).unwrap().free;
    block_on(fs.unlink(ROOT, b"sparse", at(4))).unwrap();
    assert!(block_on(fs.statfs()).unwrap().free > before + 2_000);
    finish(fs, &disk);
}

#[test]
fn a_journal_that_another_program_left_is_replayed() {
    let size = 16 << 20;
    for features in ["metadata_csum", "^metadata_csum,^64bit"] {
        let image = Image::new(&mke2fs(size, &["-b", "1024", "-O", features]));
        // The log brings block 9000 and revokes block 9001, which an earlier transaction brought.
        let (nine, revoked) = (Image::new(&[9; 1024]), Image::new(&[8; 1024]));
        let commands = [
            "jo -c".to_owned(),
            format!("jw -b 9001 {}", revoked.0.display()),
            format!("jw -b 9000 {}", nine.0.display()),
            "jw -r 9001".to_owned(),
            "jc".to_owned(),
        ];
        let commands: Vec<_> = commands.iter().map(String::as_str).collect();
        let text = debugfs(&image, &commands, true);
        let disk = MemDisk::new(image.bytes(), 1);
        let fs = block_on(Ext4::mount(disk.clone(), options(false)))
            .unwrap_or_else(|error| panic!("{error}: {text}"));
        let replayed = disk.image();
        assert!(
            replayed[9000 * 1024..9001 * 1024]
                .iter()
                .all(|&byte| byte == 9),
            "{features}: replayed"
        );
        assert!(
            replayed[9001 * 1024..9002 * 1024]
                .iter()
                .all(|&byte| byte != 8),
            "{features}: revoked"
        );
        finish(fs, &disk);
    }
}

#[test]
fn a_read_only_mount_replays_in_memory() {
    for options in [
        &["-b", "1024"][..],
        &["-b", "4096", "-O", "^metadata_csum,^64bit"],
    ] {
        let disk = MemDisk::new(mke2fs(16 << 20, options), 1);
        let fs = mount(&disk);
        block_on(async {
            for number in 0..40 {
                let name = format!("file {number}");
                let file = fs
                    .create(ROOT, name.as_bytes(), node(at(1)))
                    .await
                    .expect("is made");
                fs.write(file, 0, name.as_bytes(), at(1))
                    .await
                    .expect("is written");
            }
            fs.unlink(ROOT, b"file 7", at(1)).await.expect("is removed");
            fs.sync(at(1)).await.expect("syncs");
        });
        // Nothing but the log has it.
        let left = MemDisk::new(disk.image(), 1);
        let mounted =
            block_on(Ext4::mount(left.clone(), common::mounted::options(true))).expect("mounts");
        let found = block_on(read_all(&mounted)).expect("is readable");
        assert_eq!(found.len(), 39);
        assert_eq!(found[b"/file 39".as_slice()].data, b"file 39");
        let refused = block_on(mounted.create(ROOT, b"x", node(at(2))));
        assert_eq!(refused.map_err(Error::errno), Err(Errno::EROFS));
        assert_eq!(left.counts().writes, 0);
        finish(fs, &disk);
    }
}

#[test]
fn files_written_by_debugfs_are_read_and_changed() {
    let image = Image::new(&mke2fs(16 << 20, &["-b", "4096"]));
    let mut rng = Rng(4);
    let bytes: Vec<_> = (0..300_000).map(|_| rng.next().to_le_bytes()[0]).collect();
    let source = Image::new(&bytes);
    let write = format!("write {} file", source.0.display());
    let long = "t".repeat(100);
    let link = format!("symlink slow {long}");
    debugfs(
        &image,
        &[
            &write,
            "mkdir dir",
            "symlink fast target",
            &link,
            "ea_set file user.k value",
        ],
        true,
    );
    let disk = MemDisk::new(image.bytes(), 1);
    let fs = mount(&disk);
    block_on(async {
        let file = fs.lookup(ROOT, b"file").await.unwrap();
        let mut read = vec![0; bytes.len() + 10];
        assert_eq!(fs.read(file, 0, &mut read).await, Ok(bytes.len()));
        assert!(read[..bytes.len()] == bytes);
        for (name, target) in [(b"fast".as_slice(), "target"), (b"slow", &long)] {
            let link = fs.lookup(ROOT, name).await.unwrap();
            assert_eq!(fs.read_link(link).await.unwrap(), target.as_bytes());
        }
        fs.write(file, 100, b"changed", at(1)).await.unwrap();
        fs.rename(
            (ROOT, b"file"),
            (ROOT, b"renamed"),
            ext4::Rename::Replace,
            at(1),
        )
        .await
        .unwrap();
    });
    let image = Image::new(&finish(fs, &disk));
    assert_eq!(&debugfs_cat(&image, "/renamed")[100..107], b"changed");
    assert!(
        debugfs(&image, &["ea_get renamed user.k"], false).contains("value"),
        "attributes are kept"
    );
}

#[test]
fn a_nameless_file_lives_while_it_is_held() {
    let disk = MemDisk::new(mke2fs(16 << 20, &["-b", "1024"]), 1);
    let fs = mount(&disk);
    block_on(async {
        let free = fs.statfs().await.unwrap().free;
        let file = fs.create(ROOT, b"file", node(at(1))).await.unwrap();
        fs.write(file, 0, &[7; 50_000], at(1)).await.unwrap();
        fs.hold(file).await.unwrap();
        fs.unlink(ROOT, b"file", at(2)).await.unwrap();
        let mut byte = [0];
        assert_eq!(fs.read(file, 49_999, &mut byte).await, Ok(1));
        assert_eq!(byte, [7]);
        fs.truncate(file, 10_000, at(2)).await.unwrap();
        let unnamed = fs.create_unnamed(ROOT, node(at(2))).await.unwrap();
        fs.write(unnamed, 0, b"named later", at(2)).await.unwrap();
        fs.link(unnamed, ROOT, b"named", at(2)).await.unwrap();
        fs.release(unnamed, at(3)).await.unwrap();
        fs.release(file, at(3)).await.unwrap();
        assert_eq!(fs.hold(file).await, Err(Errno::ENOENT.into()));
        assert!(fs.statfs().await.unwrap().free >= free - 2);
    });
    let image = finish(fs, &disk);
    assert_eq!(
        read_image(image).unwrap()[b"/named".as_slice()].data,
        b"named later"
    );
}

/// Linux writes the superblock's sums now and then: after its crash they are old.
#[test]
fn old_sums_of_free_blocks_and_inodes_are_counted_anew() {
    let image = Image::new(&mke2fs(16 << 20, &["-b", "1024"]));
    let fs = mount(&MemDisk::new(image.bytes(), 1));
    let fresh = block_on(fs.statfs()).unwrap();
    for free in ["2", "4000000"] {
        let blocks = format!("ssv free_blocks_count {free}");
        let inodes = format!("ssv free_inodes_count {free}");
        debugfs(&image, &[&blocks, &inodes], true);
        let disk = MemDisk::new(image.bytes(), 1);
        let fs = mount(&disk);
        let stat = block_on(fs.statfs()).unwrap();
        assert_eq!(
            (stat.free, stat.free_inodes),
            (fresh.free, fresh.free_inodes)
        );
        block_on(async {
            for name in [b"a", b"b", b"c"] {
                let file = fs.create(ROOT, name, node(at(1))).await.unwrap();
                fs.write(file, 0, &[7; 10_000], at(1)).await.unwrap();
            }
        });
        finish(fs, &disk);
    }
}

#[test]
fn orphans_of_a_crash_are_deleted_at_the_next_mount() {
    let disk = MemDisk::new(mke2fs(16 << 20, &["-b", "1024"]), 1);
    let fs = mount(&disk);
    let free = block_on(fs.statfs()).unwrap().free;
    block_on(async {
        for name in [b"a", b"b", b"c"] {
            let file = fs.create(ROOT, name, node(at(1))).await.unwrap();
            fs.write(file, 0, &[7; 100_000], at(1)).await.unwrap();
            fs.hold(file).await.unwrap();
            fs.unlink(ROOT, name, at(2)).await.unwrap();
        }
        fs.sync(at(2)).await.unwrap();
    });
    drop(fs);
    let disk = MemDisk::new(disk.after_power_loss(), 1);
    let fs = mount(&disk);
    assert_eq!(block_on(fs.statfs()).unwrap().free, free);
    finish(fs, &disk);
}

#[test]
fn many_tasks_work_at_once() {
    let disk = MemDisk::new(mke2fs(32 << 20, &["-b", "1024"]), 3);
    let fs = mount(&disk);
    let task = async |number: u64| {
        let mut rng = Rng(number);
        let name = format!("task {number}");
        let dir = fs.mkdir(ROOT, name.as_bytes(), node(at(1))).await.unwrap();
        let byte = u8::try_from(number).unwrap();
        for step in 0..60 {
            let name = format!("file {}", rng.below(8));
            let file = match fs.lookup(dir, name.as_bytes()).await {
                Ok(file) => file,
                Err(_) => fs
                    .create(dir, name.as_bytes(), node(at(step)))
                    .await
                    .unwrap(),
            };
            let len = 1 + rng.index(20_000);
            fs.append(file, &vec![byte; len], at(step)).await.unwrap();
            match rng.below(6) {
                0 => fs.sync(at(step)).await.unwrap(),
                1 => fs.unlink(dir, name.as_bytes(), at(step)).await.unwrap(),
                2 => fs
                    .truncate(file, rng.below(30_000), at(step))
                    .await
                    .unwrap(),
                3 => fs
                    .rename(
                        (dir, name.as_bytes()),
                        (ROOT, name.as_bytes()),
                        ext4::Rename::Replace,
                        at(step),
                    )
                    .await
                    .unwrap(),
                _ => {}
            }
        }
    };
    block_on(join_all((1..9).map(task)));
    let image = finish(fs, &disk);
    for (path, found) in read_image(image).unwrap() {
        // A file renamed to the root belongs to one task: bytes of others are not in it.
        let mut bytes: Vec<_> = found
            .data
            .iter()
            .copied()
            .filter(|&byte| byte != 0)
            .collect();
        bytes.dedup();
        assert!(
            bytes.len() <= 1,
            "{}: {bytes:?}",
            String::from_utf8_lossy(&path)
        );
    }
}

#[test]
fn what_is_not_known_is_refused() {
    let writable = |options_of: &[&str]| {
        let disk = MemDisk::new(mke2fs(16 << 20, options_of), 1);
        block_on(Ext4::mount(disk, options(false)))
            .map(drop)
            .map_err(Error::errno)
    };
    assert_eq!(writable(&["-O", "^has_journal"]), Err(Errno::EROFS));
    assert_eq!(writable(&["-O", "inline_data"]), Err(Errno::EOPNOTSUPP));
    assert_eq!(writable(&["-O", "bigalloc"]), Err(Errno::EOPNOTSUPP));
    let disk = MemDisk::new(mke2fs(16 << 20, &["-O", "^has_journal"]), 1);
    let fs = block_on(Ext4::mount(disk, options(true)))
        .expect("a file system without journal is readable");
    assert_eq!(
        block_on(fs.create(ROOT, b"a", node(at(1)))),
        Err(Errno::EROFS.into())
    );
    let empty = MemDisk::new(vec![0; 1 << 20], 1);
    assert_eq!(
        block_on(Ext4::mount(empty, options(false))).map(drop),
        Err(Error::NotExt4(0))
    );
}

#[test]
fn a_full_disk_is_an_error_and_stays_sound() {
    let disk = MemDisk::new(mke2fs(4 << 20, &["-b", "1024"]), 1);
    let fs = mount(&disk);
    block_on(async {
        let mut rng = Rng(9);
        let mut full = 0;
        for step in 0..1_500 {
            let name = format!("file {}", rng.below(60));
            let file = match fs.lookup(ROOT, name.as_bytes()).await {
                Ok(file) => file,
                Err(_) => match fs.create(ROOT, name.as_bytes(), node(at(step))).await {
                    Ok(file) => file,
                    Err(error) => {
                        assert_eq!(error.errno(), Errno::ENOSPC);
                        full += 1;
                        continue;
                    }
                },
            };
            let bytes = vec![1; 1 + rng.index(90_000)];
            let done = match rng.below(8) {
                0 => fs.unlink(ROOT, name.as_bytes(), at(step)).await,
                1 => fs.truncate(file, rng.below(100_000), at(step)).await,
                2 => {
                    fs.fallocate(
                        file,
                        Allocation::Extend,
                        rng.below(200_000),
                        50_000,
                        at(step),
                    )
                    .await
                }
                3 => {
                    fs.fallocate(
                        file,
                        Allocation::PunchHole,
                        rng.below(200_000),
                        20_000,
                        at(step),
                    )
                    .await
                }
                _ => fs
                    .write(file, rng.below(200_000), &bytes, at(step))
                    .await
                    .map(drop),
            };
            if let Err(error) = done {
                assert_eq!(error.errno(), Errno::ENOSPC);
                full += 1;
            }
        }
        assert!(full > 100, "the disk was full only {full} times");
    });
    finish(fs, &disk);
}

#[test]
fn no_inodes_are_left() {
    let disk = MemDisk::new(mke2fs(8 << 20, &["-b", "1024", "-N", "64"]), 1);
    let fs = mount(&disk);
    let made = block_on(async {
        let mut made = 0;
        while fs
            .mkdir(ROOT, format!("dir {made}").as_bytes(), node(at(1)))
            .await
            .is_ok()
        {
            made += 1;
        }
        made
    });
    assert!(made >= 50);
    assert_eq!(
        block_on(fs.create(ROOT, b"file", node(at(1)))),
        Err(Errno::ENOSPC.into())
    );
    finish(fs, &disk);
}

/// Times beyond what an inode holds become the closest ones, as by Linux's `timestamp_truncate`.
#[test]
fn times_from_1901_to_2446_are_kept() {
    let disk = MemDisk::new(mke2fs(16 << 20, &["-b", "4096"]), 1);
    let fs = mount(&disk);
    let (first, last) = (i64::from(i32::MIN), 15_032_385_535);
    let time = |seconds, nanos| Time { seconds, nanos };
    let wanted = [
        (time(first - 1, 5), time(first, 0)),
        (time(i64::MIN, 5), time(first, 0)),
        (time(first + 1, 5), time(first + 1, 5)),
        (time(-1, 999_999_999), time(-1, 999_999_999)),
        (time(1 << 31, 1), time(1 << 31, 1)),
        (time(last - 1, 7), time(last - 1, 7)),
        (time(last, 7), time(last, 0)),
        (time(last + 1, 7), time(last, 0)),
        (time(i64::MAX, 7), time(last, 0)),
    ];
    block_on(async {
        let file = fs.create(ROOT, b"file", node(at(1))).await.unwrap();
        for (set, kept) in wanted {
            let set = Attributes {
                accessed: Some(set),
                modified: Some(set),
                ..Attributes::default()
            };
            fs.set_attributes(file, set, at(2)).await.unwrap();
            let stat = fs.stat(file).await.unwrap();
            assert_eq!((stat.accessed, stat.modified), (kept, kept), "{set:?}");
        }
    });
    finish(fs, &disk);
}
