//! The adapters' work for a miss, as the difference of traced runs that differ in misses only.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};

use super::runs::Bed;
use crate::bench::FIXED_LAYOUT;

/// Pages of the traced program's region: four times as many as the cache holds.
const PAGES: u64 = 1024;
const OPTIONS: [&str; 4] = ["--pcache", "1M", "--boot", FIXED_LAYOUT];
/// Passes over the region.
const PASSES: u64 = 4;
/// Events rarer than this are not the miss's.
const RARE: f64 = 0.01;

/// Events and bytes of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Events {
    /// Number of events.
    pub(super) count: f64,
    /// Their bytes in all.
    pub(super) bytes: f64,
}

/// Events by node and kind: a doorbell's kind, `read` or `write` with what it is for, `interrupt`.
pub(super) type Trace = BTreeMap<(String, String), Events>;

/// Traces runs and returns the events of a clean miss and of one with dirty eviction.
pub(super) fn measure(bed: &Bed<'_>) -> Result<[Trace; 2]> {
    let pages = PAGES.to_string();
    let trace = |name: &str, clean: u64, dirty: u64| {
        let args = [
            "touch",
            "64",
            &pages,
            &clean.to_string(),
            &dirty.to_string(),
        ];
        let file = bed.trace(name, &OPTIONS, &args)?;
        let trace = read(&file)?;
        // A trace is large, and nobody reads it again.
        fs::remove_file(&file).with_context(|| format!("can't remove {}", file.display()))?;
        Ok::<_, anyhow::Error>(trace)
    };
    let base = trace("base", 0, 0)?;
    let clean = trace("clean", PASSES, 0)?;
    let dirty = trace("dirty", 0, PASSES)?;
    let misses = (PASSES * PAGES) as f64;
    Ok([&clean, &dirty].map(|trace| difference(trace, &base, misses)))
}

fn read(file: &Path) -> Result<Trace> {
    let lines = BufReader::new(
        File::open(file).with_context(|| format!("there is no {}", file.display()))?,
    );
    let mut trace = Trace::new();
    for line in lines.lines() {
        let line = line.with_context(|| format!("can't read {}", file.display()))?;
        add(&mut trace, &line);
    }
    Ok(trace)
}

/// Adds a line of a trace: its time, node, kind, and what belongs to the kind.
fn add(trace: &mut Trace, line: &str) {
    let mut words = line.split('\t');
    let (Some(_), Some(node), Some(kind)) = (words.next(), words.next(), words.next()) else {
        return;
    };
    let kind = match (kind, words.next()) {
        ("read" | "write" | "doorbell", Some(what)) => format!("{kind} {what}"),
        _ => kind.to_owned(),
    };
    let length = words
        .find_map(|word| u32::from_str_radix(word.strip_prefix("len=0x")?, 16).ok())
        .unwrap_or(0);
    let events = trace.entry((node.to_owned(), kind)).or_default();
    events.count += 1.0;
    events.bytes += f64::from(length);
}

fn difference(trace: &Trace, base: &Trace, misses: f64) -> Trace {
    let of_miss = |(key, events): (&(String, String), &Events)| {
        let base = base.get(key).copied().unwrap_or_default();
        let (count, bytes) = (
            (events.count - base.count) / misses,
            (events.bytes - base.bytes) / misses,
        );
        (count >= RARE).then(|| (key.clone(), Events { count, bytes }))
    };
    trace.iter().filter_map(of_miss).collect()
}

/// Returns the sum over a node's kinds that begin so.
pub(super) fn sum(trace: &Trace, node: &str, kind: &str) -> Events {
    let wanted = trace
        .iter()
        .filter(|((its, what), _)| its == node && what.starts_with(kind));
    wanted.fold(Events::default(), |sum, (_, events)| Events {
        count: sum.count + events.count,
        bytes: sum.bytes + events.bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(lines: &[&str]) -> Trace {
        let mut trace = Trace::new();
        for line in lines {
            add(&mut trace, line);
        }
        trace
    }

    #[test]
    fn a_miss_is_the_difference_of_two_runs() {
        let read = "1.0\tprocessor\tread\tSendWqe\taddr=0x1\tlen=0x40\topcode=9";
        let bell = "1.1\tprocessor\tdoorbell\tsend\tqpn=0x4";
        let base = trace(&[read, "1\tmemory\tinterrupt\tvector=0x1"]);
        let more = trace(&[
            read,
            read,
            read,
            bell,
            bell,
            "1\tmemory\tinterrupt\tvector=0x1",
            "odd",
        ]);
        let miss = difference(&more, &base, 2.0);
        assert_eq!(
            sum(&miss, "processor", "read"),
            Events {
                count: 1.0,
                bytes: 64.0
            }
        );
        assert_eq!(
            sum(&miss, "processor", "doorbell send"),
            Events {
                count: 1.0,
                bytes: 0.0
            }
        );
        assert_eq!(sum(&miss, "memory", "interrupt"), Events::default());
        assert_eq!(miss.len(), 2);
    }
}
