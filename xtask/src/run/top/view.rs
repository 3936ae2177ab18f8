//! Snapshots as lines for people: rates since the one before.

use std::collections::BTreeMap;

use super::snapshot::{Process, Snapshot, Thread};

/// Bytes of a page.
const PAGE: f64 = 4096.0;
/// Lines above the list of processes.
pub(super) const HEADER: usize = 5;

/// Two snapshots, and the time between them.
struct Since<'a> {
    before: &'a Snapshot,
    now: &'a Snapshot,
}

impl Since<'_> {
    fn seconds(&self) -> f64 {
        float(self.now.nanos.saturating_sub(self.before.nanos)) / 1e9
    }

    /// Returns how many of something there were in a second.
    fn rate(&self, count: impl Fn(&Snapshot) -> u64) -> f64 {
        let seconds = self.seconds();
        let more = count(self.now).saturating_sub(count(self.before));
        if seconds > 0.0 {
            float(more) / seconds
        } else {
            0.0
        }
    }

    /// Returns a counter's rate, for people.
    fn of(&self, counter: &str) -> String {
        amount(self.rate(|snapshot| snapshot.counter(counter)))
    }
}

/// Returns at most `rows` lines of at most `columns` characters.
pub(super) fn lines(before: &Snapshot, now: &Snapshot, [rows, columns]: [usize; 2]) -> Vec<String> {
    let since = Since { before, now };
    let mut lines = header(&since);
    lines.extend(list(&since));
    lines.truncate(rows);
    for line in &mut lines {
        *line = line.chars().take(columns).collect();
    }
    lines
}

fn header(since: &Since<'_>) -> Vec<String> {
    let now = since.now;
    let cpu = since.rate(Snapshot::cpu_nanos) / 1e7;
    let fill = now.fill.map_or_else(String::new, |[average, p99]| {
        format!(", {} µs on average, {} µs p99", average / 1000, p99 / 1000)
    });
    let pages = |counter: &str| amount(since.rate(|one| one.counter(counter)) * PAGE);
    let from_s = amount(since.rate(|snapshot| snapshot.bytes("received", "storage")));
    let to_s = amount(since.rate(|snapshot| snapshot.bytes("sent", "storage")));
    vec![
        format!(
            "run     {:.1} s: {} processes, {} threads, {} running; CPU {cpu:.0} % of {} cores",
            float(now.nanos) / 1e9,
            now.process_count,
            now.thread_count,
            now.running,
            now.cores
        ),
        format!(
            "pcache  {} pages/s from memory{fill}; {} read ahead, {} zero, {} from files; {} evicted, {} dirty",
            since.of("nr_pcache_fill_from_memory"),
            since.of("nr_pcache_prefetch"),
            since.of("nr_pcache_fill_zerofill"),
            since.of("nr_pcache_fill_from_file"),
            since.of("nr_pcache_eviction_succeed"),
            since.of("nr_pcache_eviction_dirty")
        ),
        format!(
            "memory  {}B in the cache at most, {}B promised by M",
            amount(float(now.counter("nr_pcache_lines")) * PAGE),
            amount(float(now.counter("nr_pages_committed")) * PAGE)
        ),
        format!(
            "fabric  pages {}B/s in, {}B/s out; storage {from_s}B/s in, {to_s}B/s out; {} calls/s",
            pages("nr_pcache_fill_from_memory"),
            pages("nr_pcache_eviction_dirty"),
            amount(since.rate(|snapshot| snapshot.calls))
        ),
        format!(
            "{:>6} {:>6} {:>6} S {:>4} {:>6} {:>9} {:>7} {:>7} {:>8} NAME",
            "PID", "PPID", "USER", "THR", "%CPU", "TIME", "MAPPED", "TOUCHED", "FAULTS/S"
        ),
    ]
}

/// Lists the processes, those first that had most CPU time since, each before its busy threads.
fn list(since: &Since<'_>) -> Vec<String> {
    let times = |snapshot: &Snapshot| -> BTreeMap<u32, u64> {
        let processes = snapshot
            .processes
            .iter()
            .map(|one| (one.pid, one.cpu_nanos));
        let threads = snapshot.threads.iter().map(|one| (one.tid, one.cpu_nanos));
        // A first thread has its process's number, whose time is the larger.
        threads.chain(processes).collect()
    };
    let before = times(since.before);
    let spent = |id: u32, now: u64| now.saturating_sub(before.get(&id).copied().unwrap_or(0));
    let percent = |nanos: u64| {
        let seconds = since.seconds();
        if seconds > 0.0 {
            float(nanos) / seconds / 1e7
        } else {
            0.0
        }
    };
    let thread_before: BTreeMap<u32, u64> = since
        .before
        .threads
        .iter()
        .map(|one| (one.tid, one.cpu_nanos))
        .collect();
    let mut processes: Vec<(u64, &Process)> = since
        .now
        .processes
        .iter()
        .map(|process| (spent(process.pid, process.cpu_nanos), process))
        .collect();
    processes.sort_by_key(|(nanos, process)| (std::cmp::Reverse(*nanos), process.pid));
    let mut lines = Vec::new();
    for (nanos, process) in processes {
        let faults = since.rate(|snapshot| {
            let same = snapshot.processes.iter().find(|one| one.pid == process.pid);
            same.map_or(0, |one| one.faults)
        });
        lines.push(process_line(process, percent(nanos), faults));
        let mut threads: Vec<(u64, &Thread)> = since
            .now
            .threads
            .iter()
            .filter(|thread| thread.pid == process.pid)
            .map(|thread| {
                let earlier = thread_before.get(&thread.tid).copied().unwrap_or(0);
                (thread.cpu_nanos.saturating_sub(earlier), thread)
            })
            .filter(|(nanos, _)| *nanos > 0)
            .collect();
        threads.sort_by_key(|(nanos, thread)| (std::cmp::Reverse(*nanos), thread.tid));
        let line = |(nanos, thread): (u64, &Thread)| thread_line(thread, percent(nanos));
        lines.extend(threads.into_iter().map(line));
    }
    lines
}

fn process_line(process: &Process, percent: f64, faults: f64) -> String {
    format!(
        "{:>6} {:>6} {:>6} {:1} {:>4} {percent:>6.1} {:>9} {:>7} {:>7} {:>8} {}",
        process.pid,
        process.parent,
        process.user,
        process.state,
        process.threads,
        time(process.cpu_nanos),
        amount(float(process.mapped)),
        amount(float(process.touched)),
        amount(faults),
        process.name
    )
}

fn thread_line(thread: &Thread, percent: f64) -> String {
    format!(
        "{:>6} {:>6} {:>6} {:1} {:>4} {percent:>6.1} {:>9} {:>7} {:>7} {:>8}  {}",
        thread.tid,
        "",
        "",
        thread.state,
        "",
        time(thread.cpu_nanos),
        "core",
        thread.core,
        "",
        thread.name
    )
}

/// Returns a time as minutes, seconds and hundredths.
fn time(nanos: u64) -> String {
    let hundredths = nanos / 10_000_000;
    format!(
        "{}:{:02}.{:02}",
        hundredths / 6000,
        hundredths / 100 % 60,
        hundredths % 100
    )
}

/// Returns a number with three digits or more and a unit of thousands.
fn amount(value: f64) -> String {
    let mut value = value;
    for unit in ["", "k", "M", "G"] {
        if value < 1000.0 {
            let digits = usize::from(value < 100.0 && !unit.is_empty());
            return format!("{value:.digits$}{unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.1}T")
}

/// Returns a number as a float: what is lost shows in no three digits.
#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BEFORE: &str = "all\t1000000000\t1\t1\t1\t2\nprocess\t1\t0\t0\tS\t1\t100000000\t4096\t4096\t0\tsh\n\
        report\tcounter\tnr_pcache_fill_from_memory\t100\nreport\tbytes\treceived\tstorage\t1000\n";
    const NOW: &str = "all\t3000000000\t2\t4\t2\t2\nprocess\t1\t0\t0\tS\t1\t100000000\t4096\t4096\t0\tsh\n\
        process\t7\t1\t1000\tR\t3\t1500000000\t2097152\t4096\t300\tpython3\nthread\t7\t7\tS\t200000000\t0\tpython3\n\
        thread\t7\t8\tR\t1300000000\t1\tworker\nthread\t7\t9\tS\t0\t1\tidle\n\
        report\tcounter\tnr_pcache_fill_from_memory\t4100\nreport\tbytes\treceived\tstorage\t8193000\nreport\trpc\tlend\t9\n\
        report\ttime\t__pcache_fill_remote_net\t4000\t12000\t11000\t40000\n";

    #[test]
    fn rates_are_since_the_snapshot_before() {
        let (before, now) = (Snapshot::parse(BEFORE), Snapshot::parse(NOW));
        let shown = lines(&before, &now, [20, 200]);
        let text = shown.join("\n");
        for part in [
            "3.0 s: 2 processes, 4 threads, 2 running; CPU 75 % of 2 cores",
            "2.0k pages/s",
            "12 µs on average, 40 µs p99",
            "pages 8.2MB/s in, 0B/s out",
            "storage 4.1MB/s in",
            "4 calls/s",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let names: Vec<_> = shown[HEADER..]
            .iter()
            .map(|line| line.split_whitespace().last().expect("a name"))
            .collect();
        assert_eq!(names, ["python3", "worker", "python3", "sh"], "by time");
        assert!(shown[HEADER].contains("75.0"), "{text}");
        assert!(shown[HEADER].contains("0:01.50"), "{text}");
        assert!(shown[HEADER].contains(" 150 python3"), "faults: {text}");
    }

    #[test]
    fn lines_keep_to_the_window() {
        let (before, now) = (Snapshot::parse(BEFORE), Snapshot::parse(NOW));
        let shown = lines(&before, &now, [7, 30]);
        assert_eq!(shown.len(), 7);
        assert!(shown.iter().all(|line| line.chars().count() <= 30));
    }

    proptest! {
        #[test]
        fn no_snapshot_panics(one in "(all|process|thread|report|rpc|bytes|\t|\n|[0-9]{1,20})*",
                              other in "(all|process|thread|report|counter|time|\t|\n|[0-9]{1,20})*") {
            lines(&Snapshot::parse(&one), &Snapshot::parse(&other), [10, 80]);
        }
    }
}
