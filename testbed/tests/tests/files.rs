//! Files that programs change on S's disk: as on Linux, from run to run, and after S was killed.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use testbed_tests::disks::{self, assert_sound, kill_machine, text, tool};
use testbed_tests::lossy::LossyDisk;
use testbed_tests::{Run, native, program};

const PROGRAM: &str = "/bin/files";
/// Devices by which S may have its disk.
const DEVICES: [&str; 3] = ["virtio", "nvme", "nvme-4k"];
/// Deadline for a cluster to come up on a busy machine, and for S's first write.
const PATIENCE: Duration = Duration::from_secs(180);
/// Kills in CI; `TESSERA_KILLS` sets another number.
const KILLS: u64 = 3;
/// The same on a disk that loses what was not flushed, where each kill has more to find.
const LOSSY_KILLS: u64 = 8;

fn scratch(name: &str) -> PathBuf {
    disks::scratch(env!("CARGO_TARGET_TMPDIR"), name)
}

/// Copies a directory out of an image.
fn dump(image: &Path, from: &str, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    let (status, said) = tool(
        "debugfs",
        &["-R", &format!("rdump {from} {}", text(to)), text(image)],
    );
    assert_eq!(status, 0, "{said}");
}

#[test]
fn programs_change_files_as_on_linux() {
    let here = native(
        program("files"),
        &["check", text(&scratch("files-here"))],
        b"",
    );
    let empty = scratch("files-empty");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for device in DEVICES {
        let there = Run::new(&["--pcache", "4M", "--disk-device", device])
            .add(program("files"), PROGRAM)
            .add(&empty, "/data/work")
            .run(&[PROGRAM, "check", "/data/work"]);
        assert_eq!(
            text(&there.stdout),
            text(&here.stdout),
            "{device}: {}",
            there.stderr
        );
        assert_eq!((there.code, here.code), (Some(0), Some(0)), "{device}");
        let gathered = there.sum(&["counter", "nr_writes_gathered"]);
        assert!(gathered > 0, "{device}: no write was gathered");
    }
}

/// A full disk: `write` tells, also who gathers small writes beside another that does; what was
/// written before is there, and what a removed file had is free again.
#[test]
fn a_full_disk_is_told_by_write() {
    const SCRIPT: &str = "\
cd /; echo keep > keep; sync
dd if=/dev/zero of=f bs=3000 2>&1 | grep -c 'No space left'; [ -s f ] && rm f; sync
fill() { tr '\\000' $1 </dev/zero | dd of=$1 bs=700 2>/tmp/$1.says; }
fill a & fill b & wait
cat /tmp/*.says | grep -c 'error writing.*No space left'
for f in a b; do [ $(stat -c %s $f) -gt 1000000 ]; echo $? $(tr -d $f < $f | wc -c); done
sync; echo $? $(cat keep)
";
    let folder = scratch("files-full");
    let disk = folder.join("disk");
    let options = ["--cpus", "2", "--disk", text(&disk), "--disk-room", "4M"];
    let ran = Run::new(&options).run(&["/bin/busybox", "sh", "-c", SCRIPT]);
    let said = String::from_utf8_lossy(&ran.stdout);
    assert_eq!(said, "1\n2\n0 0\n0 0\n0 keep\n", "{}", ran.stderr);
    assert_eq!(ran.code, Some(0));
    assert_sound(&disk);
}

/// A disk that returns errors: the program gets EIO, and S's log names the disk.
#[test]
fn errors_of_a_disk_reach_the_program() {
    let folder = scratch("files-errors");
    let (disk, file) = (folder.join("disk"), folder.join("file"));
    fs::write(&file, fill(64 << 10, 1, 1, 1)).expect("a file");
    let made = Run::new(&["--disk", text(&disk)])
        .add(&file, "/data/file")
        .run(&["/bin/busybox", "true"]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let (_, blocks) = tool("debugfs", &["-R", "blocks /data/file", text(&disk)]);
    let blocks: Vec<u64> = blocks
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    assert_eq!(blocks.len(), 16, "{blocks:?}");
    let bad = blocks[9] * 8 + 3;
    for device in DEVICES {
        for (request, script) in [
            ("read", "cat /data/file >/dev/null"),
            (
                "write",
                "dd if=/dev/zero of=/data/file bs=4096 seek=9 count=1 conv=notrunc,fsync",
            ),
        ] {
            let errors = format!("{request}:{bad}");
            let options = [
                "--disk",
                text(&disk),
                "--disk-device",
                device,
                "--keep-logs",
            ];
            let ran = Run::new(&[&options[..], &["--disk-errors", &errors]].concat()).run(&[
                "/bin/busybox",
                "sh",
                "-c",
                script,
            ]);
            let what = format!("{device}, {request}: {}", ran.stderr);
            assert!(ran.stderr.contains("Input/output error"), "{what}");
            assert_eq!(ran.code, Some(1), "{what}");
            let logs = ran.stderr.split("logs are in ").nth(1).expect("a folder");
            let logs = Path::new(logs.trim());
            let log = fs::read_to_string(logs.join("storage.log")).expect("a log");
            let named = format!("a {request} of ");
            let named = |line: &&str| line.contains("00:10.0") && line.contains(&named);
            assert!(log.lines().any(|line| named(&line)), "{what}\n{log}");
            fs::remove_dir_all(logs).expect("removed");
        }
    }
    let sound =
        Run::new(&["--disk", text(&disk)]).run(&["/bin/busybox", "sha256sum", "/data/file"]);
    assert_eq!(sound.code, Some(0), "{}", sound.stderr);
    assert_sound(&disk);
    fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn rights_are_as_on_linux() {
    let here = native(program("rights"), &[text(&scratch("rights-here"))], b"");
    let empty = scratch("rights-empty");
    let there = Run::new(&["--pcache", "4M"])
        .add(program("rights"), "/bin/rights")
        .add(&empty, "/data/work")
        .run(&["/bin/rights", "/data/work"]);
    let lines = |ran: &testbed_tests::Ran| -> Vec<String> {
        let text = String::from_utf8_lossy(&ran.stdout).into_owned();
        text.lines().map(str::to_owned).collect()
    };
    let (here, said) = (lines(&here), lines(&there));
    assert_eq!(here.len(), 7 * 4 * 5, "Linux itself: {here:?}");
    let both = here.iter().zip(&said);
    let differ: Vec<_> = both.filter(|(linux, ours)| linux != ours).collect();
    assert!(differ.is_empty(), "{} lines: {differ:#?}", differ.len());
    assert_eq!(
        (said.len(), there.code),
        (here.len(), Some(0)),
        "{}",
        there.stderr
    );
}

#[test]
fn a_disk_that_is_kept_has_what_earlier_runs_wrote() {
    let folder = scratch("files-kept");
    let disk = folder.join("disk");
    let save = |options: &[&str], what: &str| {
        let run = Run::new(&[&["--disk", text(&disk)], options].concat());
        let run = if disk.exists() {
            run
        } else {
            run.add(program("files"), PROGRAM)
        };
        let ran = run.run(&[PROGRAM, "save", "/data", what]);
        (
            ran.code,
            String::from_utf8_lossy(&ran.stdout).into_owned(),
            ran.stderr,
        )
    };
    let (code, said, stderr) = save(&["--disk-room", "32M"], "first");
    assert_eq!(code, Some(0), "{stderr}");
    assert!(said.starts_with("before: 0 bytes"), "{said}");
    let (code, said, stderr) = save(&[], "SECOND RUN");
    assert_eq!(code, Some(0), "{stderr}");
    assert!(said.starts_with("before: 5 bytes"), "{said}");
    let (code, said, stderr) = save(&["--disk-read-only"], "x");
    assert_eq!(
        (code, said.as_str()),
        (Some(1), "open: -1 Read-only file system\n"),
        "{stderr}"
    );
    assert_sound(&disk);
    dump(&disk, "/data/saved", &folder);
    assert_eq!(
        fs::read(folder.join("saved")).expect("the file"),
        b"SECOND RUN"
    );
    fs::remove_dir_all(folder).expect("removed");
}

/// Returns the bytes of a file's generation, like `fill` of the program.
fn fill(len: usize, worker: i64, name: i64, generation: i64) -> Vec<u8> {
    let seed = worker * 7919 + name * 104_729 + generation * 31 + 1;
    // The program counts in 32 bits.
    let mut state = u32::try_from(seed & 0xffff_ffff).expect("32 bits");
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..len).map(next).collect()
}

fn length_of(generation: i64) -> usize {
    let scattered = u32::try_from(generation)
        .expect("positive")
        .wrapping_mul(2_654_435_761);
    usize::try_from(1 + scattered % 60_000).expect("small")
}

/// Compares what is there with what was promised; returns how many promises were looked at.
fn check_promises(work: &Path, seed: u64, said: &str) -> usize {
    let base = i64::try_from(seed).expect("small") * 1_000_000;
    let mut promises = 0;
    let words = said.lines().filter_map(|line| {
        let (what, numbers) = line.split_once(' ')?;
        let numbers: Option<Vec<i64>> = numbers.split(' ').map(|word| word.parse().ok()).collect();
        Some((what, numbers?))
    });
    for (what, numbers) in words {
        match (what, numbers.as_slice()) {
            ("replaced", &[worker, name, generation]) => {
                let path = work.join(format!("w{worker}/f{name}"));
                let bytes =
                    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                let header = bytes.get(..16).expect("a header");
                let digits = header.split(|&byte| byte == 0).next().expect("one part");
                let found: i64 = std::str::from_utf8(digits)
                    .ok()
                    .and_then(|d| d.parse().ok())
                    .expect("a number");
                assert!(
                    found >= generation,
                    "{what} {numbers:?}: generation {found} is there"
                );
                let expected = fill(length_of(found), worker, name, found);
                assert!(
                    bytes[16..] == expected,
                    "{what} {numbers:?}: generation {found} is not whole"
                );
            }
            ("appended", &[worker, sequence]) => {
                let bytes = fs::read(work.join(format!("w{worker}/log"))).expect("the log");
                let records = bytes.chunks_exact(64);
                assert!(
                    records.len() as i64 > sequence,
                    "{what} {numbers:?}: {} bytes",
                    bytes.len()
                );
                let whole =
                    |(number, record): (i64, &[u8])| record == fill(64, worker, -1, base + number);
                let upto = usize::try_from(sequence + 1).expect("positive");
                assert!(
                    (0..).zip(records).take(upto).all(whole),
                    "{what} {numbers:?}: other bytes"
                );
            }
            _ => panic!("what is {what} {numbers:?}?"),
        }
        promises += 1;
    }
    promises
}

/// Reads a program's output as it comes; the receiver gets all of it so far.
fn follow(child: &mut Child) -> mpsc::Receiver<Vec<u8>> {
    let mut stdout = child.stdout.take().expect("a pipe");
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = stdout.read(&mut piece) {
            if send.send(piece[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receive
}

/// Kills S some time after the first promise; gives what was promised.
fn killed_after(disk: &Path, device: &str, seed: u64, delay: Duration) -> String {
    let options = ["--disk", text(disk), "--disk-device", device];
    let run = Run::new(&[&options[..], &["--pcache", "4M", "--cpus", "2"]].concat());
    let mut child = run.start(&[PROGRAM, "load", "/data/work", &seed.to_string()]);
    let output = follow(&mut child);
    let first = output.recv_timeout(PATIENCE).unwrap_or_else(|error| {
        let _ = child.kill();
        let mut said = String::new();
        let _ = child
            .stderr
            .take()
            .expect("a pipe")
            .read_to_string(&mut said);
        panic!("nothing was promised: {error}\n{said}");
    });
    let killed = Instant::now() + delay;
    let mut said = first;
    while let Some(left) = killed.checked_duration_since(Instant::now()) {
        match output.recv_timeout(left) {
            Ok(more) => said.extend(more),
            Err(mpsc::RecvTimeoutError::Timeout) => break,
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("the load ended by itself"),
        }
    }
    kill_machine(child.id(), "storage.elf");
    // What was promised before reaches us after the kill, too.
    let ended = child.wait().expect("the run ends");
    assert_eq!(ended.code(), Some(125), "a run ends when S does");
    while let Ok(more) = output.recv_timeout(Duration::from_secs(5)) {
        said.extend(more);
    }
    let mut said = String::from_utf8(said).expect("text");
    said.truncate(said.rfind('\n').map_or(0, |end| end + 1));
    said
}

/// Mixes a number's bits, after SplitMix64.
fn mixed(seed: u64) -> u64 {
    let z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 27)
}

#[test]
fn nothing_that_fsync_promised_is_lost_when_s_is_killed() {
    kill_s("files-killed", KILLS, |disk, seed, delay| {
        killed_after(disk, "virtio", seed, delay)
    });
}

#[test]
fn nothing_that_fsync_promised_is_lost_with_what_the_disk_had_in_its_cache() {
    kill_with_a_cache("virtio", LOSSY_KILLS);
}

#[test]
fn nothing_that_fsync_promised_is_lost_with_what_an_nvme_disk_had_in_its_cache() {
    kill_with_a_cache("nvme", LOSSY_KILLS);
}

fn kill_with_a_cache(device: &str, kills: u64) {
    let (mut unflushed, mut lost, mut writes, mut flushes) = (0, 0, 0, 0);
    kill_s(
        &format!("files-lossy-{device}"),
        kills,
        |disk, seed, delay| {
            // The path of a socket is short.
            let name = format!("tessera-nbd-{device}-{}", std::process::id());
            let socket = std::env::temp_dir().join(name);
            let served = LossyDisk::serve(disk, &socket, mixed(seed)).expect("the disk is served");
            let said = killed_after(&socket, device, seed, delay);
            let losses = served.finish().expect("QEMU speaks NBD");
            println!("{losses:?}");
            unflushed += losses.unflushed;
            lost += losses.lost;
            writes += losses.writes;
            flushes += losses.flushes;
            said
        },
    );
    println!("{unflushed} blocks were not flushed, {lost} lost");
    // How much is lost is chance: S flushes often. That the disk loses it is its own test's.
    assert!(writes > 0 && flushes > 0, "the disk with the cache is S's");
}

/// Kills S many times with the disk that `run` gives it, which returns what was promised, and
/// checks each time what the image holds.
fn kill_s(name: &str, few: u64, mut run: impl FnMut(&Path, u64, Duration) -> String) {
    let kills = std::env::var("TESSERA_KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok());
    let kills: u64 = kills.unwrap_or(few);
    let folder = scratch(name);
    let (disk, empty) = (folder.join("disk"), folder.join("empty"));
    fs::create_dir(&empty).expect("a folder");
    let made = Run::new(&["--disk", text(&disk), "--disk-room", "64M"])
        .add(program("files"), PROGRAM)
        .add(&empty, "/data/work")
        .run(&["/bin/busybox", "true"]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let mut promises = 0;
    for seed in 0..kills {
        // Each kill meets the log that the one before has left; every fourth image is checked
        // before it is used again.
        let delay = Duration::from_millis(mixed(seed) % 4_000);
        let said = run(&disk, seed, delay);
        let image = folder.join("image");
        fs::copy(&disk, &image).expect("a copy");
        assert_sound(&image);
        let found = folder.join(format!("found-{seed}"));
        dump(&image, "/data/work", &found);
        let kept = check_promises(&found.join("work"), seed, &said);
        println!("kill {seed} after {delay:?}: {kept} promises kept");
        promises += kept;
        fs::remove_dir_all(found).expect("removed");
        if seed % 4 == 3 {
            fs::rename(&image, &disk).expect("the checked image");
        }
    }
    assert!(promises > 0);
    fs::remove_dir_all(folder).expect("removed");
}
