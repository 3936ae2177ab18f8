//! Several processors on one disk: they see each other's files as processes of one Linux do, and
//! what one of them leaves behind when it is killed or stopped holds up none of the others.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use hca_model::Rng;
use rustix::process::{Pid, Signal, kill_process};
use testbed_tests::{Run, descendants, program};

const PROGRAM: &str = "/bin/orders";
/// Deadline of whatever must happen, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);
/// Orders that are compared with Linux; `TESSERA_ORDERS` sets another number.
const ORDERS: u64 = 400;
/// Time for which a processor is stopped: longer than a lease lasts, shorter than the silence after
/// which it is lost.
const STOPPED: Duration = Duration::from_secs(7);
/// Attempts to stop one while something waits on it.
const TRIES: u32 = 3;

/// A program that carries out orders, here or on a processor.
struct Orders {
    child: Child,
    to: Option<ChildStdin>,
    lines: Receiver<String>,
    /// The last orders and their answers.
    told: VecDeque<String>,
}

impl Orders {
    fn of(mut child: Child) -> Self {
        let (to, from) = (child.stdin.take(), child.stdout.take().expect("a pipe"));
        let (send, lines) = channel();
        spawn(move || {
            let lines = BufReader::new(from).lines().map_while(Result::ok);
            lines
                .take_while(|line| send.send(line.clone()).is_ok())
                .for_each(drop);
        });
        let mut orders = Self {
            child,
            to,
            lines,
            told: VecDeque::new(),
        };
        assert_eq!(orders.answer("its start"), "ready");
        orders
    }

    /// Starts it on this machine.
    fn here(folder: &Path) -> Self {
        let mut command = Command::new(program("orders"));
        command
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Self::of(command.spawn().expect("it starts"))
    }

    /// Starts it on a processor.
    fn on(run: Run) -> Self {
        Self::of(run.start(&[PROGRAM, "/data"]))
    }

    fn answer(&mut self, to: &str) -> String {
        let answer = self.lines.recv_timeout(PATIENCE);
        answer.unwrap_or_else(|error| {
            let _ = self.child.kill();
            let mut said = String::new();
            if let Some(mut stderr) = self.child.stderr.take() {
                let _ = stderr.read_to_string(&mut said);
            }
            panic!("no answer to {to}: {error}\n{:#?}\n{said}", self.told)
        })
    }

    /// Has an order carried out; returns its answer.
    fn order(&mut self, order: &str) -> String {
        let to = self.to.as_mut().expect("its input");
        writeln!(to, "{order}").expect("it reads");
        let answer = self.answer(order);
        self.told.push_back(format!("{order} => {answer}"));
        if self.told.len() > 40 {
            self.told.pop_front();
        }
        answer
    }

    /// Has orders carried out that must give 0.
    fn all(&mut self, orders: &[&str]) {
        for order in orders {
            assert_eq!(self.order(order), "0", "{order}");
        }
    }

    /// Returns the machine of its processor.
    fn machine(&self) -> Pid {
        let machines = descendants(self.child.id());
        let (pid, _) = machines
            .into_iter()
            .find(|(_, line)| line.contains("processor.elf"))
            .expect("a machine");
        Pid::from_raw(pid).expect("a number")
    }

    /// Ends it; returns its exit status.
    fn end(mut self) -> Option<i32> {
        self.to.take();
        self.child.wait().expect("it ends").code()
    }
}

/// A cluster that processors may join.
struct Cluster {
    folder: PathBuf,
    first: Orders,
}

impl Cluster {
    fn new(name: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a folder");
        let (door, disk) = (folder.join("door"), folder.join("disk"));
        let run = Run::new(&["--open", text(&door), "--disk", text(&disk)])
            .add(program("orders"), PROGRAM);
        let first = Orders::on(run);
        Self { folder, first }
    }

    /// Starts a processor more.
    fn join(&self) -> Orders {
        Orders::on(Run::new(&["--join", text(&self.folder.join("door"))]))
    }

    /// Ends it, and checks its disk.
    fn end(self) {
        assert_eq!(self.first.end(), Some(0));
        let disk = self.folder.join("disk");
        for (options, most) in [("-fp", 1), ("-fn", 0)] {
            let checked = Command::new("/sbin/e2fsck")
                .args([options, text(&disk)])
                .output();
            let checked = checked.expect("e2fsck of e2fsprogs");
            let said = String::from_utf8_lossy(&checked.stdout);
            assert!(
                checked.status.code().is_some_and(|code| code <= most),
                "{said}"
            );
        }
        fs::remove_dir_all(self.folder).expect("removed");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// Draws orders.
struct Draw(Rng);

impl Draw {
    fn below(&mut self, bound: u32) -> u64 {
        self.0.below(bound).into()
    }

    fn path(&mut self) -> String {
        let name = self.below(4);
        match self.below(4) {
            0 => format!("dir/f{name}"),
            _ => format!("f{name}"),
        }
    }

    fn order(&mut self) -> String {
        let (place, seed) = (self.below(5), self.below(1 << 30));
        let (len, at) = (1 + self.below(9000), self.below(40_000));
        match self.below(26) {
            0..5 => {
                let flags = ["r", "rwc", "rwc", "rwca", "rwct", "rwcx", "wca", "rws"];
                let flags = flags[usize::try_from(self.below(8)).expect("small")];
                format!("open {place} {} {flags}", self.path())
            }
            5 => format!("close {place}"),
            6..9 => format!("write {place} {len} {seed}"),
            9..12 => format!("pwrite {place} {len} {seed} {at}"),
            12 => format!("burst {place} 20 {} {seed}", 1 + len / 10),
            13 => format!("truncate {place} {at}"),
            14 => format!("fsync {place}"),
            15..17 => format!("pread {place} {len} {at}"),
            17 => format!("fstat {place}"),
            18 => format!("read {place} {len}"),
            19 => format!("stat {}", self.path()),
            20..22 => format!("sum {}", self.path()),
            22 => format!("rename {} {}", self.path(), self.path()),
            23 => format!("link {} {}", self.path(), self.path()),
            24 => format!("unlink {}", self.path()),
            _ => format!(
                "list {}",
                ["dir", "."][usize::try_from(self.below(2)).expect("small")]
            ),
        }
    }
}

#[test]
fn two_processors_see_files_as_two_processes_of_one_linux_do() {
    let orders = std::env::var("TESSERA_ORDERS").ok();
    let orders = orders.and_then(|text| text.parse().ok()).unwrap_or(ORDERS);
    let mut cluster = Cluster::new("several-see");
    let mut second = cluster.join();
    let here = cluster.folder.join("here");
    fs::create_dir_all(&here).expect("a folder");
    let mut linux = [Orders::here(&here), Orders::here(&here)];
    // The cluster's folder holds the program's, too.
    cluster
        .first
        .all(&["mkdir work", "chdir work", "mkdir dir"]);
    second.all(&["chdir work"]);
    linux[0].all(&["mkdir dir"]);
    let mut draw = Draw(Rng::new(1));
    for number in 0..orders {
        let (who, order) = (draw.below(2), draw.order());
        let on = [&mut cluster.first, &mut second];
        let who = usize::try_from(who).expect("small");
        let there = on.into_iter().nth(who).expect("one of two").order(&order);
        let expected = linux[who].order(&order);
        assert_eq!(
            there, expected,
            "order {number} of processor {who}: {order}; before, on either:\n{:#?}\n{:#?}",
            linux[0].told, linux[1].told
        );
    }
    assert_eq!(second.end(), Some(0));
    cluster.end();
}

/// Stops a processor with writes that wait for longer than its lease lasts: what is lost then, it
/// is told of. Returns whether any was: on a busy host all may have been brought before.
fn stop_and_go_on(first: &mut Orders, third: &mut Orders) -> bool {
    third.all(&["open 1 stopped rwct"]);
    assert_eq!(third.order("burst 1 30 500 3"), "30 records");
    let machine = third.machine();
    kill_process(machine, Signal::STOP).expect("stopped");
    let stopped = Instant::now();
    let brought = first.order("stat stopped").starts_with("size 15000 ");
    first.all(&["open 4 stopped rwct"]);
    assert_eq!(first.order("write 4 100 1"), "100");
    println!("the other went on {:?} after the stop", stopped.elapsed());
    sleep(STOPPED.saturating_sub(stopped.elapsed()));
    kill_process(machine, Signal::CONT).expect("it goes on");
    let expected = if brought { "0" } else { "error 5" };
    assert_eq!(third.order("fsync 1"), expected, "what waited is lost");
    third.all(&["fsync 1"]);
    assert_eq!(third.order("sum stopped"), first.order("sum stopped"));
    assert!(first.order("stat stopped").starts_with("size 100 "));
    !brought
}

#[test]
fn what_waits_on_a_processor_is_read_by_another_and_none_is_held_up_by_a_dead_one() {
    let mut cluster = Cluster::new("several-killed");
    let mut second = cluster.join();
    let first = &mut cluster.first;
    // Each reads what waits on the other: nothing was closed or synced.
    first.all(&["open 0 log rwca"]);
    second.all(&["open 0 log rwca"]);
    for round in 0..10 {
        assert_eq!(
            first.order(&format!("burst 0 30 500 {round}")),
            "30 records"
        );
        let size = 30 * 500 * (2 * round + 1);
        let said = second.order("stat log");
        assert!(said.starts_with(&format!("size {size} ")), "{said}");
        assert_eq!(
            second.order(&format!("burst 0 30 500 {}", 100 + round)),
            "30 records"
        );
        assert_eq!(first.order("sum log"), second.order("sum log"));
    }
    // One is killed while something waits on it.
    second.all(&["open 1 promised rwc"]);
    assert_eq!(second.order("pwrite 1 5000 7 0"), "5000");
    second.all(&["fsync 1"]);
    let promised = second.order("sum promised");
    second.all(&["open 2 waits rwc"]);
    assert_eq!(second.order("burst 2 30 500 3"), "30 records");
    kill_process(second.machine(), Signal::KILL).expect("killed");
    let killed = Instant::now();
    assert_eq!(first.order("sum promised"), promised);
    let said = first.order("sum waits");
    assert!(said.contains(" bytes "), "{said}");
    first.all(&["open 3 new rwc", "unlink waits", "rename promised moved"]);
    assert_eq!(first.order("sum moved"), promised);
    println!("the other went on {:?} after the kill", killed.elapsed());
    assert_eq!(second.end(), Some(125), "its run has failed");
    // Another one takes the place, and finds all.
    let mut third = cluster.join();
    let first = &mut cluster.first;
    assert_eq!(third.order("sum moved"), promised);
    assert_eq!(third.order("sum log"), first.order("sum log"));
    assert_eq!(third.order("stat waits"), "error 2");
    let lost = (0..TRIES).any(|_| stop_and_go_on(first, &mut third));
    assert!(lost, "something waited when the processor was stopped");
    assert_eq!(third.end(), Some(0));
    cluster.end();
}
