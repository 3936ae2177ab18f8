//! A git repository on S's disk whose collection of garbage is cut off: S's machine, or all, are
//! killed at random moments. Each new cluster must find every object and every reference.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Child;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::spawn;
use std::time::{Duration, Instant};

use hca_model::Rng;
use testbed_tests::Run;
use testbed_tests::disks::{assert_copy_sound, kill_machine, scratch, text};
use testbed_tests::lossy::LossyDisk;

/// Deadline of a boot and of git's checks, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(280);
/// Kills; `TESSERA_KILLS` sets another number.
const KILLS: u32 = 4;
/// Commits before the first kill, and more before each kill.
const COMMITS: u32 = 300;
const MORE: u32 = 24;
/// The most that a kill comes after the collection has begun.
const DELAY_MS: u32 = 5_000;

/// Makes commits FROM..TO on three branches, a tag for every tenth, as loose objects; prints what
/// the repository holds.
const COMMANDS: &str = r#"
export HOME=/tmp; cd /data
[ -d r ] || git init -q --bare -b b0 r || exit 3
cd r
commits() {
  declare -A seen
  for ((n = $1; n < $2; n++)); do
    b=b$((n % 3))
    printf 'commit refs/heads/%s\ncommitter a <a@b> %d +0000\ndata <<E\nnumber %d\nE\n' $b $((1000000000 + n)) $n
    if [ -z "${seen[$b]}" ] && git rev-parse -q --verify refs/heads/$b >/dev/null; then
      printf 'from refs/heads/%s^0\n' $b
    fi
    seen[$b]=1
    printf 'M 100644 inline d%d/f%d\ndata <<E\n' $((n % 17)) $((n % 41))
    for ((l = 0; l < 40 + n % 50; l++)); do echo "line $((l * 31 % (n + 1))) of $((n % 41))"; done
    printf 'E\n\n'
    ((n % 10)) || printf 'reset refs/tags/t%d\nfrom refs/heads/%s\n\n' $n $b
  done | git -c fastimport.unpackLimit=1000000 fast-import --quiet || exit 4
}
holds() {
  git fsck --full --strict --no-dangling --no-progress 2>&1 || { echo "fsck ended with $?"; exit 5; }
  git symbolic-ref HEAD
  git for-each-ref
  git rev-list --all --objects | sort | sha256sum
}
"#;

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

/// Returns the lines before the one that says `end`.
fn upto(child: &mut Child, lines: &Receiver<String>, end: &str) -> Vec<String> {
    let mut said = Vec::new();
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) if line == end => return said,
            Ok(line) => said.push(line),
            Err(error) => {
                let _ = child.kill();
                let mut errors = String::new();
                let mut stderr = child.stderr.take().expect("a pipe");
                let _ = stderr.read_to_string(&mut errors);
                panic!("no {end}: {error}\n{said:#?}\n{errors}");
            }
        }
    }
}

/// A killed run.
struct Killed {
    /// The repository as the run found it.
    found: Vec<String>,
    /// The repository as it was when the collection began.
    promised: Vec<String>,
    /// The collection had not ended.
    cut_off: bool,
}

/// Checks the repository, adds commits, collects garbage, and kills machines meanwhile.
fn collect(disk: &Path, from: u32, delay: Duration, all: bool) -> Killed {
    let to = from + MORE;
    // A collection that was killed has left its locks, and its process number, which may be
    // another one's now; whoever starts git again removes them.
    let script = format!(
        "{COMMANDS}holds; echo checked; find . -name '*.lock' -delete; rm -f gc.pid; commits {from} {to}; sync; holds; sync; echo collects
        git gc --quiet --prune=now 2>&1; echo \"collected $?\"; sleep 1000"
    );
    let run = Run::new(&["--disk", text(disk), "--cpus", "2", "--pcache", "32M"]);
    let mut child = run.start(&["/bin/bash", "-c", &script]);
    let lines = lines_of(&mut child);
    let found = upto(&mut child, &lines, "checked");
    let promised = upto(&mut child, &lines, "collects");
    let end = Instant::now() + delay;
    let mut collected = Vec::new();
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => collected.push(line),
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => panic!("it ended: {collected:?}"),
        }
    }
    kill_machine(child.id(), "storage.elf");
    if all {
        kill_machine(child.id(), "memory.elf");
        kill_machine(child.id(), "processor.elf");
    }
    let ended = child.wait().expect("the run ends");
    assert_eq!(ended.code(), Some(125), "a run ends when S does");
    let cut_off = collected.is_empty();
    assert!(cut_off || collected == ["collected 0"], "{collected:?}");
    Killed {
        found,
        promised,
        cut_off,
    }
}

/// Debian's git, 150 MB of packages with it: `cargo test -p testbed_tests --test versions --
/// --ignored`.
#[test]
#[ignore = "fetches git; see docs/testing.md"]
fn a_collection_that_is_cut_off_loses_no_object_and_no_reference() {
    let kills = std::env::var("TESSERA_KILLS").ok();
    let kills: u32 = kills.and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let folder = scratch(env!("CARGO_TARGET_TMPDIR"), "versions");
    let disk = folder.join("disk");
    let script = format!("{COMMANDS}commits 0 {COMMITS}; holds");
    let root = [
        "--root",
        "trixie",
        "--packages",
        "git",
        "--disk-room",
        "128M",
    ];
    let machine = ["--disk", text(&disk), "--cpus", "2", "--pcache", "32M"];
    let made = Run::new(&[&root[..], &machine[..]].concat()).run(&["/bin/bash", "-c", &script]);
    let said = String::from_utf8_lossy(&made.stdout);
    assert_eq!(made.code, Some(0), "{said}{}", made.stderr);
    let mut promised: Vec<String> = said.lines().map(str::to_owned).collect();
    assert_eq!(promised.len(), 1 + 3 + 30 + 1, "{promised:#?}");
    let (mut rng, mut cut_off) = (Rng::new(7), 0);
    for kill in 0..kills {
        let delay = Duration::from_millis(rng.below(DELAY_MS).into());
        let (from, all) = (COMMITS + kill * MORE, kill % 2 == 1);
        let killed = if kill % 4 < 2 {
            let socket = std::env::temp_dir().join(format!("tessera-git-{}", std::process::id()));
            let seed = rng.below(1 << 31).into();
            let served = LossyDisk::serve(&disk, &socket, seed).expect("the disk is served");
            let killed = collect(&socket, from, delay, all);
            println!("{:?}", served.finish().expect("QEMU speaks NBD"));
            killed
        } else {
            collect(&disk, from, delay, all)
        };
        assert_eq!(killed.found, promised, "kill {kill}");
        println!("kill {kill} after {delay:?}, cut off: {}", killed.cut_off);
        cut_off += u32::from(killed.cut_off);
        promised = killed.promised;
        assert_copy_sound(&disk);
    }
    assert!(cut_off > 0, "each collection had ended before its kill");
    let check = format!("{COMMANDS}holds");
    let last = Run::new(&machine).run(&["/bin/bash", "-c", &check]);
    let said = String::from_utf8_lossy(&last.stdout);
    assert_eq!(last.code, Some(0), "{said}{}", last.stderr);
    assert!(
        said.lines().eq(promised.iter().map(String::as_str)),
        "{said}"
    );
    fs::remove_dir_all(folder).expect("removed");
}
