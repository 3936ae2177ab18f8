//! The lines by which a run is judged afterwards; `docs/architecture.md` has their meaning.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;
use core::time::Duration;

use pcache::{Cache, Machine, Summary};

use crate::system_call_name;

/// Gathers the report of a run. Its last line is the exit status.
#[derive(Default, Debug)]
pub struct Report {
    lines: Vec<String>,
}

impl Report {
    /// The program ran this long.
    pub fn run_time(&mut self, time: Duration) {
        self.line(&["run_ns", &format!("{}", time.as_nanos())]);
    }

    /// A counter.
    pub fn counter(&mut self, name: &str, value: u64) {
        self.line(&["counter", name, &format!("{value}")]);
    }

    /// A profile point.
    pub fn time(&mut self, name: &str, s: &Summary) {
        let [count, avg, p50, p99] =
            [s.count, s.avg_ns, s.p50_ns, s.p99_ns].map(|n| format!("{n}"));
        self.line(&["time", name, &count, &avg, &p50, &p99]);
    }

    /// Adds the counters and times of the cache.
    pub fn cache<M: Machine>(&mut self, cache: &Cache<M>) {
        for (name, value) in cache.counters().named() {
            self.counter(name, value);
        }
        self.counter("nr_pcache_lines", u64::from(cache.geometry().lines()));
        self.time("__pcache_fill_remote_net", &cache.fill_times());
        self.time("pcache_flush_net", &cache.flush_times());
    }

    /// Calls made, by message.
    pub fn calls(&mut self, name: &str, count: u64) {
        self.line(&["rpc", name, &format!("{count}")]);
    }

    /// Bytes to and from a peer.
    pub fn bytes(&mut self, peer: impl Display, sent: u64, received: u64) {
        self.line(&["bytes", "sent", &format!("{peer}"), &format!("{sent}")]);
        self.line(&[
            "bytes",
            "received",
            &format!("{peer}"),
            &format!("{received}"),
        ]);
    }

    /// The first process was ended by a signal, for an access to `addr` at instruction `ip` if it
    /// was a fault.
    pub fn killed(&mut self, signal: u8, addr: u64, ip: u64) {
        self.line(&[
            "killed",
            &format!("{signal}"),
            &format!("{addr:#x}"),
            &format!("{ip:#x}"),
        ]);
    }

    /// A system call that was answered by ENOSYS.
    pub fn unimplemented(&mut self, number: u64, count: u64) {
        let name = system_call_name(number).map_or_else(|| format!("{number}"), String::from);
        self.line(&["unimplemented", &name, &format!("{count}")]);
    }

    /// All lines so far.
    #[must_use]
    pub fn into_lines(self) -> Vec<String> {
        self.lines
    }

    /// All lines, with the exit status as the last.
    #[must_use]
    pub fn finish(mut self, status: u8) -> Vec<String> {
        self.line(&["exit", &format!("{status}")]);
        self.lines
    }

    fn line(&mut self, fields: &[&str]) {
        self.lines.push(format!("report\t{}", fields.join("\t")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_ends_with_the_status() {
        let mut report = Report::default();
        report.run_time(Duration::from_micros(3));
        report.unimplemented(62, 1);
        report.unimplemented(9999, 2);
        report.bytes(crate::Peer::Memory, 1, 2);
        assert_eq!(
            report.finish(139),
            [
                "report\trun_ns\t3000",
                "report\tunimplemented\tkill\t1",
                "report\tunimplemented\t9999\t2",
                "report\tbytes\tsent\tmemory\t1",
                "report\tbytes\treceived\tmemory\t2",
                "report\texit\t139",
            ]
        );
    }
}
