//! Runs that end badly: each must name what went wrong, and leave no process behind.

use std::io::Read;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use testbed_tests::{Ran, Run, descendants, program};

/// A run that lost a node ends within this; see `docs/user/run.md`.
const DEADLINE: Duration = Duration::from_secs(10);
/// Deadline for a cluster to come up on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn work(args: &[&str]) -> Ran {
    Run::new(&[])
        .add(program("work"), "/bin/work")
        .run(&[&["/bin/work"], args].concat())
}

#[test]
fn a_null_pointer_is_sigsegv() {
    let ran = work(&["null"]);
    assert_eq!(ran.code, Some(139), "{}", ran.stderr);
}

/// Checks that a crash gives the status of Linux's signal: SIGSEGV 11, SIGFPE 8, SIGABRT 6.
#[test]
fn crashes_have_linux_s_statuses() {
    for (how, code) in [
        ("text", 139),
        ("overflow", 139),
        ("divide", 136),
        ("abort", 134),
        // No 32-bit calls, and UMIP, which QEMU's CPU has.
        ("int80", 139),
        ("sidt", 139),
    ] {
        let run = Run::new(&[]).add(program("stress"), "/bin/stress");
        let ran = run.run(&["/bin/stress", "dies", how]);
        assert_eq!(ran.code, Some(code), "{how}: {}", ran.stderr);
    }
}

#[test]
fn an_exit_status_is_the_programs() {
    assert_eq!(work(&["exit", "42"]).code, Some(42));
}

#[test]
fn a_missing_program_is_127_and_one_line() {
    let ran = Run::new(&[]).run(&["/bin/none"]);
    assert_eq!(ran.code, Some(127), "{}", ran.stderr);
    assert_eq!(
        ran.stderr
            .lines()
            .filter(|line| line.contains("/bin/none"))
            .count(),
        1,
        "{}",
        ran.stderr
    );
}

#[test]
fn a_file_that_is_no_program_is_126() {
    let ran = Run::new(&[]).run(&["/usr/share/dict/web2"]);
    assert_eq!(ran.code, Some(126), "{}", ran.stderr);
}

#[test]
fn more_memory_than_there_is_is_enomem() {
    let run = Run::new(&["--memory", "256M"]).add(program("work"), "/bin/work");
    let ran = run.run(&["/bin/work", "huge", "4096"]);
    assert_eq!(
        (ran.code, String::from_utf8_lossy(&ran.stdout).as_ref()),
        (Some(4), "ENOMEM\n"),
        "{}",
        ran.stderr
    );
}

/// Starts a program that never ends, and waits until its cluster is up.
fn endless() -> Child {
    let run = Run::new(&[]).add(program("work"), "/bin/work");
    let mut child = run.start(&["/bin/work", "spin"]);
    let end = Instant::now() + PATIENCE;
    while find(&child, "processor.elf").is_none() {
        assert!(Instant::now() < end, "no cluster came up");
        if let Some(status) = child.try_wait().expect("wait") {
            let mut said = String::new();
            child
                .stderr
                .take()
                .expect("a pipe")
                .read_to_string(&mut said)
                .expect("text");
            panic!("the run ended with {status}: {said}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // Past the boot, or within it: either must end the same way.
    std::thread::sleep(Duration::from_secs(2));
    child
}

fn find(child: &Child, part: &str) -> Option<Pid> {
    descendants(child.id())
        .into_iter()
        .find(|(_, line)| line.contains(part))
        .and_then(|(pid, _)| Pid::from_raw(pid))
}

/// Waits for a run's end; gives its exit status and what it said, and checks that its processes
/// have gone.
fn end_of(mut child: Child, deadline: Duration) -> (Option<i32>, String) {
    let processes = descendants(child.id());
    let end = Instant::now() + deadline;
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        assert!(
            Instant::now() < end,
            "the run did not end within {deadline:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut said = String::new();
    child
        .stderr
        .take()
        .expect("a pipe")
        .read_to_string(&mut said)
        .expect("text");
    for (pid, line) in processes {
        assert!(
            !std::path::Path::new(&format!("/proc/{pid}")).exists(),
            "still there: {line}"
        );
    }
    (status.code(), said)
}

fn a_killed_node_is_named(node: &str) {
    let child = endless();
    let pid = find(&child, &format!("{node}.elf")).expect("the node");
    kill_process(pid, Signal::KILL).expect("kill");
    let (code, said) = end_of(child, DEADLINE);
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains(&format!("error: {node}:")), "{said}");
}

#[test]
fn a_killed_memory_node_is_named() {
    a_killed_node_is_named("memory");
}

#[test]
fn a_killed_storage_node_is_named() {
    a_killed_node_is_named("storage");
}

#[test]
fn ctrl_c_ends_all_processes() {
    let child = endless();
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).expect("kill");
    let (code, said) = end_of(child, DEADLINE);
    assert_eq!(code, Some(130), "{said}");
}

#[test]
fn a_closed_output_ends_the_run() {
    let mut child = Run::new(&[]).start(&["/bin/busybox", "yes"]);
    let mut some = [0; 4];
    child
        .stdout
        .take()
        .expect("a pipe")
        .read_exact(&mut some)
        .expect("output");
    assert_eq!(&some, b"y\ny\n");
    let (code, said) = end_of(child, DEADLINE);
    assert_eq!(code, Some(141), "{said}");
}

#[test]
fn a_killed_xtask_leaves_no_process() {
    let mut child = endless();
    let processes = descendants(child.id());
    child.kill().expect("kill");
    child.wait().expect("wait");
    let end = Instant::now() + DEADLINE;
    for (pid, line) in processes {
        while std::path::Path::new(&format!("/proc/{pid}")).exists() {
            assert!(Instant::now() < end, "still there: {line}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
