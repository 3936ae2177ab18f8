//! Loss of power at random writes, by seed: what was synced is there byte for byte, and the rest is
//! a state that the operations passed through, in order.
//!
//! `EXT4_SEEDS=1000 cargo test --release -p ext4 --test crash` tries more.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

use common::check::{Found, difference, read_all, read_image};
use common::disk::{Honesty, MemDisk};
use common::model::{Kind, Model};
use common::tools::{e2fsck, mke2fs, replay};
use common::work::{Load, Op, World};
use common::{Rng, at, block_on};
use ext4::{Ext4, NewNode, Options, ROOT};

const OPTIONS: Options = Options {
    read_only: false,
    now: ext4::Time {
        seconds: 1_700_000_000,
        nanos: 0,
    },
};

/// The reference after each operation since the last sync that ended, that first.
#[derive(Default)]
struct History(Vec<Model>);

impl History {
    /// Checks what was found after a crash.
    fn check(&self, found: &BTreeMap<Vec<u8>, Found>) -> Result<(), String> {
        let mut last = String::new();
        for model in self.0.iter().rev() {
            match difference(found, model).map_or_else(|| self.check_data(found, model), Err) {
                Ok(()) => return Ok(()),
                Err(text) => last = text,
            }
        }
        Err(format!(
            "no state of the last {} is there; the synced one: {last}",
            self.0.len()
        ))
    }

    /// Checks the bytes of files. A file that was not changed since the sync has its bytes; any
    /// byte of another is one that it had since, or a zero of a hole that is filled or of a block
    /// that is cut.
    fn check_data(&self, found: &BTreeMap<Vec<u8>, Found>, model: &Model) -> Result<(), String> {
        for (path, id) in model.paths() {
            let Kind::File(data) = &model.nodes[&id].kind else {
                continue;
            };
            let is = &found[&path].data;
            let since = self.0.iter().filter_map(|model| {
                match model.nodes.get(&id).map(|node| &node.kind) {
                    Some(Kind::File(data)) => Some(data),
                    _ => None,
                }
            });
            let mut versions: Vec<_> = since.collect();
            versions.dedup_by(|a, b| Arc::ptr_eq(a, b));
            let changed = versions.len() > 1;
            for (at, (&byte, &expected)) in is.iter().zip(data.iter()).enumerate() {
                let excused = || {
                    changed
                        && (byte == 0
                            || versions
                                .iter()
                                .any(|version| version.get(at) == Some(&byte)))
                };
                if byte != expected && !excused() {
                    let path = String::from_utf8_lossy(&path);
                    return Err(format!(
                        "{path}: byte {at} is {byte:#x} instead of {expected:#x} (changed: {changed})"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Works until the power goes at a random write; returns the disk and the history.
fn crash(image: &Arc<Vec<u8>>, seed: u64, honesty: Honesty, load: Load) -> (MemDisk, History) {
    let mut rng = Rng(seed);
    let disk = MemDisk::new(image.clone(), seed ^ 0x5555);
    // Few writes often, many sometimes: the mount's own writes are among them.
    let most = [30, 300, 1500][rng.index(3)];
    disk.kill_after(rng.below(most));
    disk.set_honesty(honesty);
    let mut model = Model::default();
    let mut history = History(vec![model.clone()]);
    let Ok(fs) = block_on(Ext4::mount(disk.clone(), OPTIONS)) else {
        return (disk, history);
    };
    let mut world = World::new(fs);
    for step in 0..1000 {
        // A full disk is another test's affair.
        if model.size() > 1 << 20 {
            break;
        }
        let op = Op::random(&mut rng, &model, load);
        let expected = op.apply(&mut model);
        history.0.push(model.clone());
        let answer = block_on(world.perform(&op, &model));
        if disk.is_dead() {
            break;
        }
        assert_eq!(
            answer.map_err(ext4::Error::errno),
            expected,
            "seed {seed} step {step}: {op:?}"
        );
        if matches!(op, Op::Sync) {
            history.0.drain(..history.0.len() - 1);
        }
    }
    (disk, history)
}

/// Crashes once; checks what our replay and what e2fsck's make of it.
fn try_seed(image: &Arc<Vec<u8>>, seed: u64, honesty: Honesty, load: Load) -> Result<(), String> {
    let (disk, history) = crash(image, seed, honesty, load);
    let left = Arc::new(disk.after_power_loss());
    // Ours, interrupted by another loss of power now and then.
    let mut rng = Rng(seed ^ 0x1234);
    let mut image = left.clone();
    if rng.chance(30) {
        let again = MemDisk::new(left.clone(), seed ^ 0xaaaa);
        again.kill_after(rng.below(40));
        let _ = block_on(Ext4::mount(again.clone(), OPTIONS));
        image = again.after_power_loss().into();
    }
    let disk = MemDisk::new(image, seed);
    let fs =
        block_on(Ext4::mount(disk.clone(), OPTIONS)).map_err(|error| format!("mount: {error}"))?;
    let found = block_on(read_all(&fs)).map_err(|error| format!("read: {error}"))?;
    history.check(&found)?;
    block_on(fs.unmount(at(9999))).map_err(|error| format!("unmount: {error}"))?;
    e2fsck(&disk.image())?;
    let replayed = replay(&left).map_err(|text| format!("e2fsck's replay: {text}"))?;
    let found = read_image(replayed).map_err(|error| format!("after e2fsck: {error}"))?;
    history
        .check(&found)
        .map_err(|text| format!("after e2fsck: {text}"))
}

/// Tries seeds on all cores; returns those that failed.
fn try_seeds(
    image: &[u8],
    seeds: std::ops::Range<u64>,
    honesty: Honesty,
    load: Load,
) -> Vec<String> {
    let image = Arc::new(image.to_vec());
    let image = &image;
    let threads = thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    thread::scope(|scope| {
        let part = |first: u64| {
            let seeds =
                (seeds.start + first..seeds.end).step_by(usize::try_from(threads).expect("few"));
            let tried = seeds.map(|seed| {
                try_seed(image, seed, honesty, load).map_err(|text| format!("seed {seed}: {text}"))
            });
            tried.filter_map(Result::err).collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..threads)
            .map(|first| scope.spawn(move || part(first)))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("no panic"))
            .collect()
    })
}

fn seeds() -> u64 {
    let set = std::env::var("EXT4_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok());
    set.unwrap_or(60)
}

const LOAD: Load = Load {
    names: 25,
    reach: 60_000,
    longest: 20_000,
    syncs: 8,
};

fn assert_none(failed: &[String]) {
    assert!(
        failed.is_empty(),
        "{} failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

#[test]
fn nothing_that_sync_promised_is_lost() {
    let image = mke2fs(4 << 20, &["-b", "1024"]);
    assert_none(&try_seeds(&image, 0..seeds() / 2, Honesty::Honest, LOAD));
    let image = mke2fs(8 << 20, &["-b", "4096"]);
    assert_none(&try_seeds(
        &image,
        100_000..100_000 + seeds() / 4,
        Honesty::Honest,
        LOAD,
    ));
}

#[test]
fn nothing_is_lost_without_checksums() {
    let image = mke2fs(4 << 20, &["-b", "1024", "-O", "^metadata_csum,^64bit"]);
    assert_none(&try_seeds(
        &image,
        200_000..200_000 + seeds() / 4,
        Honesty::Honest,
        LOAD,
    ));
}

#[test]
fn the_checker_notices_a_disk_that_ignores_flushes() {
    let image = mke2fs(4 << 20, &["-b", "1024"]);
    let failed = try_seeds(&image, 0..40, Honesty::IgnoresFlushes, LOAD);
    assert!(failed.len() > 10, "only {} of 40 noticed", failed.len());
}

#[test]
fn the_checker_notices_a_missing_flush_before_the_commit_block() {
    let image = mke2fs(4 << 20, &["-b", "1024"]);
    let failed = try_seeds(&image, 0..80, Honesty::IgnoresFlushBeforeCommit, LOAD);
    assert!(!failed.is_empty(), "nothing of 80 noticed");
}

/// Removes directories, fills the disk with a file, syncs, and lets the power go; returns whether
/// the file is intact.
///
/// The file has blocks of the removed directories, of which the log holds copies.
fn reuses_directories(honesty: Honesty) -> bool {
    let disk = MemDisk::new(
        mke2fs(4 << 20, &["-b", "1024", "-O", "^metadata_csum,^64bit"]),
        1,
    );
    disk.set_honesty(honesty);
    let fs = block_on(Ext4::mount(disk.clone(), OPTIONS)).expect("mounts");
    let new = NewNode {
        mode: 0o755,
        uid: 0,
        gid: 0,
        now: at(1),
    };
    block_on(async {
        for number in 0..20 {
            fs.mkdir(ROOT, format!("dir {number}").as_bytes(), new)
                .await
                .expect("is made");
        }
        fs.sync(at(1)).await.expect("syncs");
        for number in 0..20 {
            fs.rmdir(ROOT, format!("dir {number}").as_bytes(), at(2))
                .await
                .expect("is removed");
        }
        fs.sync(at(2)).await.expect("syncs");
        let file = fs.create(ROOT, b"file", new).await.expect("is made");
        let written = fs
            .write(file, 0, &vec![0x77; 8 << 20], at(3))
            .await
            .expect("fills the disk");
        assert!(written < 8 << 20);
        fs.sync(at(3)).await.expect("syncs");
    });
    let disk = MemDisk::new(disk.after_power_loss(), 1);
    let fs = block_on(Ext4::mount(disk, OPTIONS)).expect("mounts");
    let found = block_on(read_all(&fs)).expect("is readable");
    let data = &found[b"/file".as_slice()].data;
    data.len() > 1 << 20 && data.iter().all(|&byte| byte == 0x77)
}

#[test]
fn replay_spares_blocks_that_were_reused() {
    assert!(reuses_directories(Honesty::Honest));
    assert!(
        !reuses_directories(Honesty::ForgetsRevokes),
        "without revoke blocks nothing was overwritten"
    );
}
