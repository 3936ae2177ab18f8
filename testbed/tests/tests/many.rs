//! Checks that processes and threads give back all they used: memory of M, P's kernel memory, S's
//! handles.
//!
//! The program is `programs/many.c`. S has 4,096 handles, so the test would run out of them if each
//! new program left one open.

use testbed_tests::{Run, program};

/// Frames by which the kernel's heap grows at a time (1 MiB), and how many such steps may differ:
/// what is under way at the end, such as processes that die while others start, differs from run to
/// run.
const FRAMES: u64 = 2 * 256;

/// Runs the program and returns the frames that P's kernel had free at the end.
fn free_frames(processes: u32, threads: u32, timeout: &str) -> u64 {
    let options = ["--cpus", "2", "--pcache", "16M", "--timeout", timeout];
    let (processes, threads) = (processes.to_string(), threads.to_string());
    let ran = Run::new(&options).add(program("many"), "/bin/many").run(&[
        "/bin/many",
        &processes,
        &threads,
    ]);
    let said = String::from_utf8_lossy(&ran.stdout);
    assert_eq!(said, "everything came back\n", "{}", ran.stderr);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let free = ran.sum(&["counter", "nr_kernel_frames_free"]);
    assert!(free > 0, "{}", ran.stderr);
    free
}

fn all_comes_back(processes: u32, threads: u32, timeout: &str) {
    let few = free_frames(8, 8, timeout);
    let many = free_frames(processes, threads, timeout);
    assert!(
        many + FRAMES >= few,
        "the kernel had {few} free frames after a few, {many} after many"
    );
}

#[test]
fn ten_thousand_processes_and_a_hundred_thousand_threads_give_back_what_they_used() {
    all_comes_back(10_000, 100_000, "1200");
}
