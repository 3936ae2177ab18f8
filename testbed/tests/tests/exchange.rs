//! One disk that Tessera and Linux write in turn, each of them killed with a log to replay: what
//! one of them synced, the other one reads.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{sleep, spawn};
use std::time::Duration;

use hca_model::Rng;
use testbed_tests::disks::{assert_copy_sound, kill_machine, scratch, text};
use testbed_tests::lossy::LossyDisk;
use testbed_tests::{Run, program, xtask};

const PROGRAM: &str = "/bin/tree";
/// Deadline of a boot and of what a system does with the tree, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// Turns of both systems; `TESSERA_ROUNDS` sets another number.
const ROUNDS: u32 = 2;
/// The end of a list.
const END: &str = "end";
/// Lines of a difference that are shown.
const SHOWN: usize = 12;

/// A disk of which a loss of power takes what was not flushed, or all that was written stays.
struct Disk {
    image: PathBuf,
    lossy: bool,
    rng: Rng,
}

impl Disk {
    /// Has a system use the disk, by the path that it is given, until it is killed.
    fn with<T>(&mut self, system: impl FnOnce(&Path, Duration) -> T) -> T {
        let seed = u64::from(self.rng.below(1 << 31));
        // Until its end it makes changes that it promises nothing of.
        let delay = Duration::from_millis(u64::from(self.rng.below(3_000)));
        if !self.lossy {
            return system(&self.image, delay);
        }
        let socket = std::env::temp_dir().join(format!("tessera-nbd-{}", std::process::id()));
        let served = LossyDisk::serve(&self.image, &socket, seed).expect("the disk is served");
        let result = system(&socket, delay);
        println!("{:?}", served.finish().expect("QEMU speaks NBD"));
        result
    }
}

/// The lists that a system printed; each has passed its end.
type Lists = Vec<Vec<String>>;

/// Splits lines into lists; times of birth are left out, as only Linux tells them.
fn lists<'a>(lines: impl Iterator<Item = &'a str>) -> Lists {
    let (mut whole, mut open) = (Vec::new(), Vec::new());
    for line in lines {
        if line == END {
            whole.push(std::mem::take(&mut open));
        } else if line.starts_with('.') {
            let words = line.split(' ').filter(|word| !word.starts_with('b'));
            open.push(words.collect::<Vec<_>>().join(" "));
        } else {
            panic!("{line}");
        }
    }
    whole
}

fn assert_same(found: &[String], promised: &[String], who: &str) {
    let name = |line: &str| line.split(' ').next().map(str::to_owned);
    let mut differences = String::new();
    let mut count = 0;
    let differ = |line: &&String| !promised.contains(line);
    for line in found.iter().filter(differ) {
        count += 1;
        if count > SHOWN {
            continue;
        }
        let other = promised.iter().find(|other| name(other) == name(line));
        let _ = writeln!(differences, "  found {line}\npromised {other:?}");
    }
    let missing: Vec<_> = promised
        .iter()
        .filter(|line| found.iter().all(|other| name(other) != name(line)))
        .take(SHOWN)
        .collect();
    assert!(
        found == promised,
        "{who} finds {} names of {}, {count} of them otherwise:\n{differences}missing: {missing:#?}",
        found.len(),
        promised.len()
    );
}

fn lines_of(child: &mut Child) -> Receiver<String> {
    let (send, lines) = channel();
    let from = child.stdout.take().expect("a pipe");
    spawn(move || {
        let lines = BufReader::new(from).lines().map_while(Result::ok);
        lines
            .take_while(|line| send.send(line.clone()).is_ok())
            .for_each(drop);
    });
    lines
}

/// Runs a script on a cluster until it has printed so many lists, and kills S some time later.
fn ours(disk: &Path, script: &str, count: usize, delay: Duration) -> Lists {
    let run = Run::new(&["--disk", text(disk), "--pcache", "8M", "--cpus", "2"]);
    let mut child = run.start(&["/bin/busybox", "sh", "-c", script]);
    let output = lines_of(&mut child);
    let mut lines: Vec<String> = Vec::new();
    while lines.iter().filter(|line| *line == END).count() < count {
        match output.recv_timeout(PATIENCE) {
            Ok(line) => lines.push(line),
            Err(error) => {
                let _ = child.kill();
                let mut said = String::new();
                let mut stderr = child.stderr.take().expect("a pipe");
                let _ = stderr.read_to_string(&mut said);
                panic!("no list: {error}\n{:?}\n{said}", lines.last());
            }
        }
    }
    sleep(delay);
    kill_machine(child.id(), "storage.elf");
    let ended = child.wait().expect("the run ends");
    assert_eq!(ended.code(), Some(125), "a run ends when S does");
    lists(lines.iter().map(String::as_str))
}

/// Mounts the disk in a Linux guest, which replays the log, lists the tree, changes it, lists it
/// again and loses its power some time later.
fn linux(disk: &Path, seed: u32, delay: Duration) -> Lists {
    let script = format!(
        "mkdir /mnt; mount -t ext4 -o noatime /dev/vda /mnt || exit 9
        dmesg | grep -q 'vda): recovery complete' || {{ echo no recovery; dmesg | grep EXT4; exit 8; }}
        {PROGRAM} list /mnt/data/tree || exit 7
        {PROGRAM} change /mnt/data/tree {seed} || exit 6
        sync; {PROGRAM} list /mnt/data/tree || exit 5
        if dmesg | grep 'EXT4-fs [ew]'; then exit 4; fi
        {PROGRAM} noise /mnt/data/noise {seed} &
        sleep {:.2}; lose-power",
        delay.as_secs_f32()
    );
    let mut command = xtask();
    command.args(["linux", "--timeout", "300", "--disk", text(disk), "--add"]);
    command.arg(format!("{}:{PROGRAM}", program("tree").display()));
    let ran = command
        .args(["--", &script])
        .stdin(Stdio::null())
        .output()
        .expect("xtask runs");
    let (said, errors) = (
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr),
    );
    let lines = said.lines().filter_map(|line| line.strip_prefix("node0: "));
    let lines: Vec<&str> = lines.map(|line| line.trim_end_matches('\r')).collect();
    assert_eq!(
        ran.status.code(),
        Some(0),
        "{:#?}\n{errors}",
        lines.iter().rev().take(SHOWN).collect::<Vec<_>>()
    );
    lists(lines.into_iter())
}

/// Takes the only list.
fn only(mut lists: Lists) -> Vec<String> {
    assert_eq!(lists.len(), 1);
    lists.pop().expect("one")
}

fn exchange(name: &str, lossy: bool) {
    let rounds = std::env::var("TESSERA_ROUNDS").ok();
    let rounds = rounds.and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let folder = scratch(env!("CARGO_TARGET_TMPDIR"), name);
    let (image, empty) = (folder.join("disk"), folder.join("empty"));
    fs::create_dir(&empty).expect("a folder");
    let made = Run::new(&["--disk", text(&image), "--disk-room", "64M"])
        .add(program("tree"), PROGRAM)
        .add(&empty, "/data/tree")
        .add(&empty, "/data/noise")
        .run(&["/bin/busybox", "true"]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let rng = Rng::new(u64::from(rounds));
    let mut disk = Disk { image, lossy, rng };
    let mut promised: Option<Vec<String>> = None;
    for round in 0..rounds {
        let seed = 2 * round + 1;
        let (first, begin) = match promised {
            None => (0, "make"),
            Some(_) => (1, "list /data/tree && /bin/tree change"),
        };
        let script = format!(
            "{PROGRAM} {begin} /data/tree {seed} && sync && {PROGRAM} list /data/tree && exec {PROGRAM} noise /data/noise {seed}"
        );
        let mut found = disk.with(|path, delay| ours(path, &script, first + 1, delay));
        let last = found.pop().expect("a list");
        if let Some(promised) = &promised {
            assert_same(&only(found), promised, "Tessera");
        }
        assert!(assert_copy_sound(&disk.image), "there is a log to replay");
        let mut found = disk.with(|path, delay| linux(path, seed + 1, delay));
        let after = found.pop().expect("a list");
        assert_same(&only(found), &last, "Linux");
        assert!(assert_copy_sound(&disk.image), "there is a log to replay");
        println!("round {round}: {} names, then {}", last.len(), after.len());
        promised = Some(after);
    }
    let found =
        disk.with(|path, delay| ours(path, "/bin/tree list /data/tree; sleep 1000", 1, delay));
    assert_same(&only(found), &promised.expect("a round"), "Tessera");
    assert_copy_sound(&disk.image);
    fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn linux_reads_what_was_synced_here_and_the_other_way_round() {
    exchange("exchange", false);
}

#[test]
fn so_they_do_when_the_disk_loses_what_was_not_flushed() {
    exchange("exchange-lossy", true);
}
