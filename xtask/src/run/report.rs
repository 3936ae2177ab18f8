//! P's report of a run: the `report` lines of its log (see `docs/architecture.md`), and the table
//! made of them.

use std::fmt::Write;

/// The profile point of a page's READ.
const FILL: &str = "__pcache_fill_remote_net";
/// Hundredths of the run time from which on waiting for pages deserves a word.
const THRASHES: f64 = 25.0;

/// The lines of a log that a script should read, each split at its tabs, without the word `report`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    lines: Vec<Vec<String>>,
}

impl Report {
    /// Takes the report out of a log.
    pub(crate) fn parse(log: &str) -> Self {
        let lines = log
            .lines()
            .filter_map(|line| line.trim_end_matches('\r').strip_prefix("report\t"))
            .map(|line| line.split('\t').map(str::to_owned).collect())
            .collect();
        Self { lines }
    }

    /// Returns the program's exit status, if the program ended.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        self.rows("exit").last()?.first()?.parse().ok()
    }

    /// Returns how a signal ended the program, in words, if one did.
    pub(crate) fn killed(&self) -> Option<String> {
        let [signal, addr, ip] = self.rows("killed").last()? else {
            return None;
        };
        let name = match signal.as_str() {
            "4" => "SIGILL (invalid instruction)",
            "5" => "SIGTRAP (trap)",
            "7" => "SIGBUS (bus error)",
            "8" => "SIGFPE (arithmetic error)",
            "11" => "SIGSEGV (invalid memory access)",
            // A reader that has gone and Ctrl-C need no word, as in a shell.
            "2" | "13" => return None,
            other => return Some(format!("the program was ended by signal {other}")),
        };
        Some(format!(
            "the program was ended by {name} at address {addr}, instruction {ip}"
        ))
    }

    /// Returns the lines without the word `report`, as a file for scripts.
    pub(crate) fn to_tsv(&self) -> String {
        self.lines
            .iter()
            .map(|line| line.join("\t") + "\n")
            .collect()
    }

    /// Returns the table for people; empty without a report.
    pub(crate) fn table(&self) -> String {
        let mut table = String::new();
        if let Some(nanos) = self
            .rows("run_ns")
            .last()
            .and_then(|row| row.first()?.parse::<u64>().ok())
        {
            let _ = writeln!(
                table,
                "{:<34}{:>14}",
                "run time",
                format!(
                    "{}.{:03} s",
                    nanos / 1_000_000_000,
                    nanos / 1_000_000 % 1000
                )
            );
        }
        if let Some([seconds, share]) = self.waited() {
            let hint = if share < THRASHES {
                ""
            } else {
                ": the cache is too small for what the program uses (--pcache)"
            };
            let _ = writeln!(
                table,
                "{:<34}{:>14}, all threads together: {share:.0} % of the run time{hint}",
                "waited for pages of M, about",
                format!("{seconds:.3} s")
            );
        }
        self.section(&mut table, "counters", "counter");
        self.times(&mut table);
        self.section(&mut table, "RPCs", "rpc");
        self.section(&mut table, "bytes", "bytes");
        self.section(
            &mut table,
            "system calls met that are not implemented",
            "unimplemented",
        );
        table
    }

    /// Returns how many seconds threads have waited for pages, and how many hundredths of the run
    /// time that is: misses by the average time of a READ. Nothing if there were no misses.
    fn waited(&self) -> Option<[f64; 2]> {
        let number = |field: &String| field.parse::<f64>().ok();
        let counter = |name: &str| {
            let mut rows = self.rows("counter");
            let row = rows.find(|row| row.first().is_some_and(|first| first == name))?;
            number(row.get(1)?)
        };
        let misses = counter("nr_pcache_miss")? + counter("nr_pcache_miss_again")?;
        let mut times = self.rows("time");
        let fill = times.find(|row| row.first().is_some_and(|name| name == FILL))?;
        let run = number(self.rows("run_ns").last()?.first()?)?;
        let waited = misses * number(fill.get(2)?)?;
        (misses > 0.0 && run > 0.0).then(|| [waited / 1e9, 100.0 * waited / run])
    }

    fn rows<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a [String]> {
        self.lines
            .iter()
            .filter_map(move |line| line.split_first().filter(|(first, _)| *first == key))
            .map(|(_, row)| row)
    }

    /// Names and a last column of numbers.
    fn section(&self, table: &mut String, title: &str, key: &str) {
        for (index, row) in self.rows(key).enumerate() {
            if index == 0 {
                let _ = writeln!(table, "{title}");
            }
            if let Some((value, names)) = row.split_last() {
                let _ = writeln!(table, "  {:<32}{value:>14}", names.join(" "));
            }
        }
    }

    fn times(&self, table: &mut String) {
        for (index, row) in self.rows("time").enumerate() {
            if index == 0 {
                let _ = writeln!(
                    table,
                    "{:<34}{:>14}{:>12}{:>12}{:>12}",
                    "times (µs)", "count", "average", "p50", "p99"
                );
            }
            let [name, count, spans @ ..] = row else {
                continue;
            };
            let _ = write!(table, "  {name:<32}{count:>14}");
            for span in spans {
                let _ = write!(table, "{:>12}", micros(span));
            }
            table.push('\n');
        }
    }
}

/// Nanoseconds as microseconds with one digit after the point; what is no number stays as it is.
fn micros(nanos: &str) -> String {
    match nanos.parse::<u64>() {
        Ok(nanos) => format!("{}.{}", nanos / 1000, nanos / 100 % 10),
        Err(_) => nanos.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOG: &str = "[0.1] hello\r\nreport\trun_ns\t2034567890\r\nreport\tcounter\tnr_pgfault\t12\nreport\ttime\t\
        pcache_flush_net\t3\t1250\t900\t4000\nnoise report\texit\t9\nreport\tbytes\tsent\tmemory\t4096\nreport\texit\t139\n";

    #[test]
    fn a_log_gives_its_table_and_exit_status() {
        let report = Report::parse(LOG);
        assert_eq!(report.exit_code(), Some(139));
        let table = report.table();
        for part in ["2.034 s", "nr_pgfault", "1.2", "4.0", "sent memory"] {
            assert!(table.contains(part), "{part} in\n{table}");
        }
        assert!(
            report
                .to_tsv()
                .ends_with("bytes\tsent\tmemory\t4096\nexit\t139\n")
        );
    }

    #[test]
    fn a_program_that_waits_for_its_pages_is_told_so() {
        let table = |misses: u64| {
            let log = format!(
                "report\trun_ns\t2000000000\nreport\tcounter\tnr_pcache_miss\t{misses}\n\
                 report\tcounter\tnr_pcache_miss_again\t10\n\
                 report\ttime\t{FILL}\t125\t100000\t90000\t400000\n"
            );
            Report::parse(&log).table()
        };
        assert!(
            table(9990).contains("1.000 s, all threads together: 50 % of the run time: the cache"),
            "{}",
            table(9990)
        );
        assert!(table(990).contains(" 5 % of the run time\n"));
        assert!(!Report::parse(LOG).table().contains("waited"));
    }

    #[test]
    fn what_ended_the_program_is_told_in_a_line() {
        let killed = |log: &str| Report::parse(log).killed();
        let fault = killed("report\tkilled\t11\t0x10\t0x401000\n").expect("a fault");
        assert!(
            fault.contains("SIGSEGV") && fault.contains("0x10,") && fault.contains("0x401000"),
            "{fault}"
        );
        assert!(
            killed("report\tkilled\t15\t0x0\t0x0\n").is_some_and(|text| text.contains("signal 15"))
        );
        assert_eq!(
            killed("report\tkilled\t13\t0x0\t0x0\nreport\texit\t141\n"),
            None
        );
    }

    #[test]
    fn a_run_without_an_end_has_no_exit_status() {
        assert_eq!(Report::parse("report\trun_ns\t5\n").exit_code(), None);
        assert_eq!(
            Report::parse("report\texit\t256\nreport\texit\n").exit_code(),
            None
        );
    }

    proptest! {
        #[test]
        fn no_log_panics(log in "(report|\t|\n|[a-z0-9]|time|counter|exit)*") {
            let report = Report::parse(&log);
            let _ = (report.table(), report.to_tsv(), report.exit_code());
        }
    }
}
