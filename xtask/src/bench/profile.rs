//! The RPC profile of LegoOS's journal: calls of four sizes, by one, two and four tasks, between
//! two machines in QEMU.
//!
//! `testbed/fit_node` makes the calls, checks every reply, and compares after each series what both
//! sides have counted; a difference ends it with an error.

use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::bed::left::{self, NodeOutcome};
use crate::nodes::cluster::{Cluster, Parts};
use crate::tools::say;

/// Workers of the callee's handler; with 0 the polling task answers.
const WORKERS: [u16; 3] = [0, 1, 4];
/// Deadline of a node's boot, of finding the other node, and of a series of few calls.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time allowed for each call, with all others of its series.
const PATIENCE_A_CALL: Duration = Duration::from_millis(20);
const PAUSE: Duration = Duration::from_millis(50);
/// A busy machine may hold a node up for seconds.
const KEEPALIVE_MS: &str = "30000";

pub(super) const HEADER: [&str; 12] = [
    "handler",
    "bytes",
    "tasks",
    "typical us",
    "average us",
    "99% us",
    "calls/s",
    "calls",
    "checked",
    "doorbells/call",
    "waits/call",
    "their waits",
];

/// Results of the profile.
pub(super) struct Profile {
    /// A row for each series.
    pub(super) rows: Vec<Vec<String>>,
    /// Calls made and replies checked, those that are in no row too.
    pub(super) calls: u64,
}

/// Measures with `calls` calls in each series. Both nodes get the boot options.
pub(super) fn measure(folder: &Path, calls: u32, boot: &[String]) -> Result<Profile> {
    let parts = Parts::obtain()?;
    let mut profile = Profile {
        rows: Vec::new(),
        calls: 0,
    };
    for workers in WORKERS {
        let folder = folder.join(format!("workers{workers}"));
        std::fs::create_dir(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        let mut cluster = Cluster::new(&parts, &folder, &["callee", "caller"])?;
        cluster.tell_all("keepalive", KEEPALIVE_MS);
        for option in boot {
            let (key, value) = option
                .split_once('=')
                .with_context(|| format!("{option:?} has no value"))?;
            cluster.tell_all(key, value);
        }
        measure_one(cluster, (workers, calls), &mut profile)
            .with_context(|| format!("with {}", handler(workers)))?;
        say(&format!("Calls answered by {}: done", handler(workers)));
    }
    Ok(profile)
}

fn handler(workers: u16) -> String {
    match workers {
        0 => "poller".into(),
        1 => "1 worker".into(),
        more => format!("{more} workers"),
    }
}

/// Measures all series with one kind of callee.
fn measure_one(
    mut cluster: Cluster<'_>,
    (workers, calls): (u16, u32),
    profile: &mut Profile,
) -> Result<()> {
    let (lines, said) = Lines::channel();
    cluster.start(
        "callee",
        &["part=serve", &format!("workers={workers}")],
        io::sink(),
    )?;
    let options = ["part=profile", "role=processor", &format!("calls={calls}")];
    cluster.start("caller", &options, lines)?;
    let (before, mut total) = (profile.rows.len(), None::<u64>);
    let patience = PATIENCE + PATIENCE_A_CALL * calls;
    let mut heard = Instant::now();
    loop {
        match said.recv_timeout(PAUSE) {
            Ok(line) => {
                heard = Instant::now();
                if let Some(fields) = line.strip_prefix("report\tprofile\t") {
                    profile.rows.push(row(workers, fields)?);
                } else if let Some(count) = line.strip_prefix("report\tnothing_lost\t") {
                    total = count.parse().ok();
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                ensure!(
                    heard.elapsed() < patience,
                    "nothing was measured for {patience:?}"
                );
            }
            // The caller's log is whole, for its machine has ended.
            Err(RecvTimeoutError::Disconnected) => break,
        }
        for (name, status) in cluster.ended()? {
            let is_well = name == "caller" && NodeOutcome::from(status) == NodeOutcome::Well;
            ensure!(is_well, "{name}: {}", left::describe(status));
        }
    }
    let Some(total) = total else {
        bail!("the caller left without having compared all counters");
    };
    ensure!(profile.rows.len() > before, "no series was measured");
    profile.calls += total;
    say(&format!("{total} calls, as many replies, nothing lost"));
    Ok(())
}

/// Returns a row, of the caller's report of a series: bytes of request and reply, tasks, calls,
/// checked replies, nanoseconds (typical, average, 99 %, all in all), doorbells and waits for an
/// interrupt on both sides.
fn row(workers: u16, fields: &str) -> Result<Vec<String>> {
    let numbers: Option<Vec<u64>> = fields.split('\t').map(|field| field.parse().ok()).collect();
    let Some(
        [
            request,
            reply,
            tasks,
            calls,
            checked,
            typical,
            average,
            late,
            elapsed,
            doorbells,
            their_doorbells,
            waits,
            their_waits,
        ],
    ) = numbers
        .as_deref()
        .and_then(|numbers| <[u64; 13]>::try_from(numbers).ok())
    else {
        bail!("the caller says {fields:?} of a series");
    };
    let micros = |nanos: u64| format!("{}.{}", nanos / 1000, nanos / 100 % 10);
    // Hundredths, as a whole number.
    let each = |count: u64| {
        let hundredths = (count * 100).checked_div(calls).unwrap_or(0);
        format!("{}.{:02}", hundredths / 100, hundredths % 100)
    };
    let rate = u128::from(calls) * 1_000_000_000 / u128::from(elapsed.max(1));
    Ok(vec![
        handler(workers),
        format!("{request}/{reply}"),
        tasks.to_string(),
        micros(typical),
        micros(average),
        micros(late),
        rate.to_string(),
        calls.to_string(),
        checked.to_string(),
        format!("{}+{}", each(doorbells), each(their_doorbells)),
        each(waits),
        each(their_waits),
    ])
}

/// Sends what is written, line by line.
struct Lines {
    line: Vec<u8>,
    to: Sender<String>,
}

impl Lines {
    fn channel() -> (Self, Receiver<String>) {
        let (to, from) = channel();
        (
            Self {
                line: Vec::new(),
                to,
            },
            from,
        )
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            if byte == b'\n' {
                let line = String::from_utf8_lossy(&self.line);
                // Nobody listens once a run has failed.
                let _ = self.to.send(line.trim_end_matches('\r').to_owned());
                self.line.clear();
            } else {
                self.line.push(byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_made_of_what_the_caller_says() {
        let said = "32\t4096\t2\t1000\t1000\t150250\t161999\t400000\t200000000\t1000\t1010\t20\t5";
        let row = row(4, said).expect("a row");
        assert_eq!(
            row,
            [
                "4 workers",
                "32/4096",
                "2",
                "150.2",
                "161.9",
                "400.0",
                "5000",
                "1000",
                "1000",
                "1.00+1.01",
                "0.02",
                "0.00"
            ]
        );
        assert_eq!(row.len(), HEADER.len());
        assert!(super::row(0, "32\t4").is_err());
    }

    #[test]
    fn lines_come_whole() {
        let (mut lines, said) = Lines::channel();
        lines.write_all(b"one\r\ntw").expect("write");
        lines.write_all(b"o\nthree").expect("write");
        drop(lines);
        assert_eq!(said.iter().collect::<Vec<_>>(), ["one", "two"]);
    }
}
