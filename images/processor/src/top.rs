//! Snapshots of the processes and threads that run, for whoever watches a run;
//! `docs/architecture.md` has the lines.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::mm::vma::Vmas;
use crate::platform::Platform;
use crate::process::{Node, Process};
use crate::thread::Shared;

/// Processes and threads of a snapshot that are listed; the first line counts all.
const MAX_LISTED: usize = 1024;
/// Processes that are looked at before other tasks have a turn. A process takes some microseconds.
const TURN: usize = 32;

/// Returns a line for all, for each process and for each thread of those with several.
pub async fn snapshot<N: Node>(node: &N) -> Vec<String> {
    let kernel = node.kernel();
    let (running, threads) = kernel.count_threads();
    let pids = kernel.pids();
    let mut lines = Vec::new();
    lines.push(format!(
        "all\t{}\t{}\t{threads}\t{running}\t{}",
        node.platform().now().nanos,
        pids.len(),
        node.cores()
    ));
    for (index, &pid) in pids.iter().enumerate() {
        if lines.len() > MAX_LISTED {
            break;
        }
        add_process(node, pid, &mut lines);
        if index % TURN == TURN - 1 {
            node.platform().yield_now().await;
        }
    }
    lines.truncate(MAX_LISTED + 1);
    lines
}

/// Adds the lines of a process, if it is still there.
fn add_process<N: Node>(node: &N, pid: u32, lines: &mut Vec<String>) {
    let facts = |of: &crate::kernel::Relations<N>| (of.process.clone(), of.ended.is_some());
    let Ok((process, ended)) = node.kernel().relation(pid, facts) else {
        return;
    };
    let threads: Vec<_> = process.threads.lock().values().cloned().collect();
    let [mapped, touched, faults] = memory(&process);
    let name = match threads.iter().find(|thread| thread.tid() == pid) {
        Some(thread) => thread.name.lock().clone(),
        None => process.last_name(),
    };
    let user = threads.first().map_or(0, |thread| thread.creds().user.real);
    let state = match (ended, threads.iter().any(|thread| thread.time.is_running())) {
        (true, _) => 'Z',
        (false, true) => 'R',
        (false, false) => 'S',
    };
    let now = node.platform().now();
    // The turns that have not ended are not in the process's time yet.
    let turns: u128 = threads
        .iter()
        .map(|one| one.time.turn(now).as_nanos())
        .sum();
    let time = process.cpu_time.total().as_nanos() + turns;
    lines.push(format!(
        "process\t{pid}\t{}\t{user}\t{state}\t{}\t{time}\t{mapped}\t{touched}\t{faults}\t{}",
        process.parent(),
        threads.len(),
        printable(&name)
    ));
    if threads.len() > 1 {
        let line = |thread: &alloc::sync::Arc<Shared>| {
            let state = if thread.time.is_running() { 'R' } else { 'S' };
            format!(
                "thread\t{pid}\t{}\t{state}\t{}\t{}\t{}",
                thread.tid(),
                thread.time.total(now).as_nanos(),
                thread.core(),
                printable(&thread.name.lock())
            )
        };
        lines.extend(threads.iter().map(line));
    }
}

/// Returns the bytes that a process has mapped and touched, and its faults.
fn memory<N: Node>(process: &Process<N>) -> [u64; 3] {
    let memory = process.memory.lock();
    memory.as_ref().map_or([0; 3], |space| {
        [
            space.with_vmas(Vmas::size),
            space.resident(),
            space.faults(),
        ]
    })
}

/// Returns a name, which programs choose, without what would part a line or move a cursor.
fn printable(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    let visible = |c: char| if c.is_control() { '?' } else { c };
    name.chars().map(visible).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_part_no_line() {
        assert_eq!(printable(b"a\tb\nc\x1b[2J"), "a?b?c?[2J");
    }
}
