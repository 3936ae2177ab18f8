//! A snapshot as P sends it, read; `docs/architecture.md` has its lines.

use std::collections::BTreeMap;
use std::str::FromStr;

/// A process of P.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) parent: u32,
    pub(super) user: u32,
    pub(super) state: String,
    pub(super) threads: u64,
    pub(super) cpu_nanos: u64,
    pub(super) mapped: u64,
    pub(super) touched: u64,
    pub(super) faults: u64,
    pub(super) name: String,
}

/// A thread of a process with several.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Thread {
    pub(super) pid: u32,
    pub(super) tid: u32,
    pub(super) state: String,
    pub(super) cpu_nanos: u64,
    pub(super) core: u64,
    pub(super) name: String,
}

/// All that P says at one time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// P's clock.
    pub(super) nanos: u64,
    pub(super) process_count: u64,
    pub(super) thread_count: u64,
    pub(super) running: u64,
    pub(super) cores: u64,
    pub(super) processes: Vec<Process>,
    pub(super) threads: Vec<Thread>,
    pub(super) counters: BTreeMap<String, u64>,
    /// Calls to M and S.
    pub(super) calls: u64,
    /// Bytes, by `sent` or `received` and the peer's role.
    pub(super) bytes: BTreeMap<[String; 2], u64>,
    /// Average and 99th percentile of a fill, in nanoseconds.
    pub(super) fill: Option<[u64; 2]>,
}

impl Snapshot {
    /// Reads the lines; those that it does not know or that make no sense are left out.
    pub(super) fn parse(text: &str) -> Self {
        let mut snapshot = Self::default();
        for line in text.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            // The line is left out.
            let _ = snapshot.take(&fields);
        }
        snapshot
    }

    fn take(&mut self, fields: &[&str]) -> Option<()> {
        match *fields {
            ["all", nanos, processes, threads, running, cores] => {
                self.nanos = number(nanos)?;
                self.process_count = number(processes)?;
                self.thread_count = number(threads)?;
                self.running = number(running)?;
                self.cores = number(cores)?;
            }
            [
                "process",
                pid,
                parent,
                user,
                state,
                threads,
                time,
                mapped,
                touched,
                faults,
                name,
            ] => {
                self.processes.push(Process {
                    pid: number(pid)?,
                    parent: number(parent)?,
                    user: number(user)?,
                    state: state.to_owned(),
                    threads: number(threads)?,
                    cpu_nanos: number(time)?,
                    mapped: number(mapped)?,
                    touched: number(touched)?,
                    faults: number(faults)?,
                    name: name.to_owned(),
                });
            }
            ["thread", pid, tid, state, time, core, name] => self.threads.push(Thread {
                pid: number(pid)?,
                tid: number(tid)?,
                state: state.to_owned(),
                cpu_nanos: number(time)?,
                core: number(core)?,
                name: name.to_owned(),
            }),
            ["report", "counter", name, value] => {
                self.counters.insert(name.to_owned(), number(value)?);
            }
            ["report", "rpc", _, count] => {
                self.calls = self.calls.saturating_add(number(count)?);
            }
            ["report", "bytes", way, peer, count] => {
                let key = [way.to_owned(), peer.to_owned()];
                self.bytes.insert(key, number(count)?);
            }
            [
                "report",
                "time",
                "__pcache_fill_remote_net",
                _,
                average,
                _,
                p99,
            ] => {
                self.fill = Some([number(average)?, number(p99)?]);
            }
            _ => {}
        }
        Some(())
    }

    /// Returns a counter; 0 if P does not say.
    pub(super) fn counter(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }

    /// Returns the bytes to or from the peers of a role.
    pub(super) fn bytes(&self, way: &str, peer: &str) -> u64 {
        let key = [way.to_owned(), peer.to_owned()];
        self.bytes.get(&key).copied().unwrap_or(0)
    }

    /// Returns the CPU time of all processes.
    pub(super) fn cpu_nanos(&self) -> u64 {
        let times = self.processes.iter().map(|process| process.cpu_nanos);
        times.fold(0, u64::saturating_add)
    }
}

fn number<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}
