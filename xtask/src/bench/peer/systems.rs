//! Runs of a program on Tessera and on Linux guests.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::programs::{Program, SHARES, WORDS};
use crate::bench::FIXED_LAYOUT;
use crate::bench::child::xtask;
use crate::bench::miss::counts::Counts;
use crate::bench::miss::plugin;
use crate::bench::miss::runs::Said;
use crate::{project, run};

/// Folder of programs and word lists in a Linux guest.
const THERE: &str = "/peer";
/// Without the mitigations that slow each entry into the kernel, and without accounting of stalls:
/// Linux at its best.
const APPEND: &str = "mitigations=off psi=0";
/// Seconds that a program may take with all shares.
const LIMIT: &str = "600";
/// Passes of the program whose faults are counted, each touching each page once.
const COUNTED: [&str; 5] = ["touch", "64", "4096", "1", "1"];
/// Its local memory in KiB: a quarter, and what lies beside.
const COUNTED_LOCAL: u64 = (4 << 10) + 512;

/// A system that runs programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum System {
    /// P, with its memory on M.
    Tessera,
    /// Linux, swapping by NVMe over RDMA to another guest's memory.
    Nvme,
    /// Linux, swapping to compressed memory of its own.
    Zram,
}

impl System {
    /// All but Tessera.
    pub(super) const PEERS: [Self; 2] = [Self::Nvme, Self::Zram];

    /// Returns its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tessera => "Tessera",
            Self::Nvme => "nvme",
            Self::Zram => "zram",
        }
    }
}

/// Time and faults of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Time {
    /// Seconds of the program's main part.
    pub(super) seconds: f64,
    /// Pages that came from elsewhere.
    pub(super) pages_in: u64,
    /// Faults that waited for them.
    pub(super) faults: u64,
}

/// Files that all runs share.
pub(super) struct Bed<'a> {
    folder: &'a Path,
    pages: &'a Path,
    words: Vec<PathBuf>,
    busybox: PathBuf,
    guest: PathBuf,
}

impl<'a> Bed<'a> {
    /// Prepares files for runs in a folder.
    pub(super) fn new(folder: &'a Path, pages: &'a Path) -> Result<Self> {
        let guest = folder.join("peer-guest");
        fs::write(&guest, include_bytes!("guest.sh")).context("can't write the guest's script")?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&guest, mode).context("can't make the guest's script executable")?;
        let (words, busybox) = (run::word_lists()?.to_vec(), run::busybox()?);
        Ok(Self {
            folder,
            pages,
            words,
            busybox,
            guest,
        })
    }

    /// Runs a program with each share of its memory local.
    pub(super) fn run(&self, system: System, program: &Program) -> Result<Vec<Time>> {
        match system {
            System::Tessera => SHARES
                .iter()
                .map(|&share| self.tessera(program, share))
                .collect(),
            System::Nvme | System::Zram => self.linux(system, program),
        }
    }

    fn tessera(&self, program: &Program, share: f64) -> Result<Time> {
        let report = self.folder.join("report.tsv").display().to_string();
        let add = format!("{}:/bin/pages", self.pages.display());
        let pcache = format!("{}K", program.local(share));
        let mut words: Vec<&str> = vec![
            "run",
            "--timeout",
            LIMIT,
            "--pcache",
            &pcache,
            "--boot",
            FIXED_LAYOUT,
            "--report",
            &report,
            "--add",
            &add,
        ];
        words.extend([
            "--",
            if program.is_busybox {
                "/bin/busybox"
            } else {
                "/bin/pages"
            },
        ]);
        words.extend(&program.args);
        let lists = WORDS.map(|list| format!("/usr/share/dict/{list}"));
        if program.is_busybox {
            words.extend(lists.iter().map(String::as_str));
        }
        let said = xtask(&words)?;
        let report = fs::read_to_string(&report).context("a run left no report")?;
        let value =
            |name: &str| value(&report, name).with_context(|| format!("the report has no {name}"));
        let nanos = if program.is_busybox {
            value("run_ns")?
        } else {
            main_part(&said)?
        };
        let pages_in = value("nr_pcache_fill_from_memory")?;
        Ok(Time {
            seconds: nanos as f64 / 1e9,
            pages_in,
            faults: pages_in,
        })
    }

    fn linux(&self, system: System, program: &Program) -> Result<Vec<Time>> {
        let executable = if program.is_busybox {
            "busybox"
        } else {
            "pages"
        };
        let mut words = format!("{THERE}/{executable} {}", program.args.join(" "));
        if program.is_busybox {
            words += &WORDS.map(|list| format!(" {THERE}/{list}")).concat();
        }
        let jobs: String = SHARES
            .iter()
            .enumerate()
            .map(|(index, &share)| format!("{index} {} {words}\n", program.local(share)))
            .collect();
        let text = self.guests(system, "-", &jobs, &[])?;
        let times = jobs_of(&text, program.is_busybox)?;
        ensure!(
            times.len() == SHARES.len(),
            "Linux ran {} of {} jobs; it said:\n{text}",
            times.len(),
            SHARES.len()
        );
        Ok(times)
    }

    /// Counts what a major fault costs Linux's kernel, without readahead so that each touch is one.
    pub(super) fn count(&self, plugin: &Path) -> Result<Vec<(String, f64)>> {
        let out = self.folder.join("linux.counts");
        let option = plugin::option("node1", plugin, &out, 0, &[]);
        let jobs = format!(
            "counted {COUNTED_LOCAL} {THERE}/pages {}\n",
            COUNTED.join(" ")
        );
        let text = self.guests(System::Nvme, "0", &jobs, &["--plugin", &option])?;
        let said = Said::parse(&of_node(&text))?;
        let counts = fs::read_to_string(&out).context("the guest's QEMU left no counts")?;
        let counts = Counts::parse(&counts)?;
        let of_phase = |name: &str| {
            let phase = said.phases.iter().find(|phase| phase.name == name)?;
            let sum: u64 = counts.executed.get(&phase.number)?.values().sum();
            Some((
                format!("{name}: instructions"),
                sum as f64 / phase.operations as f64,
            ))
        };
        Ok(["zero_fill", "clean", "dirty"]
            .into_iter()
            .filter_map(of_phase)
            .collect())
    }

    /// Runs jobs on node 1 of two guests and returns what they say. Node 0 offers its memory.
    fn guests(
        &self,
        system: System,
        cluster: &str,
        jobs: &str,
        options: &[&str],
    ) -> Result<String> {
        let list = self.folder.join("jobs");
        fs::write(&list, jobs).context("can't write the list of jobs")?;
        let target = project::root().join("testbed/tests/guest/nvme-target");
        let pair = |host: &Path, guest: &str| format!("{}:{guest}", host.display());
        let mut adds = vec![
            pair(self.pages, &format!("{THERE}/pages")),
            pair(&self.busybox, &format!("{THERE}/busybox")),
            pair(&self.guest, "/usr/bin/peer-guest"),
            pair(&list, "/usr/share/peer-jobs"),
            pair(&target, "/usr/bin/nvme-target"),
        ];
        for (host, name) in self.words.iter().zip(WORDS) {
            adds.push(pair(host, &format!("{THERE}/{name}")));
        }
        let offer = if system == System::Nvme {
            "nvme-target 10.0.1.1"
        } else {
            "true"
        };
        let command = format!("peer-guest {} {cluster}", system.name());
        let mut words = vec![
            "linux",
            "--nodes",
            "2",
            "--packages",
            "nvme-cli",
            "--timeout",
            LIMIT,
            "--append",
            APPEND,
        ];
        words.extend(adds.iter().flat_map(|add| ["--add", add]));
        words.extend(options);
        words.extend(["--", offer, &command]);
        xtask(&words)
    }
}

/// Returns the lines of node 1.
fn of_node(text: &str) -> String {
    let lines = text.lines().filter_map(|line| line.strip_prefix("node1: "));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Returns a value of P's report.
fn value(report: &str, name: &str) -> Option<u64> {
    let mut rows = report.lines().map(|line| line.split('\t'));
    rows.find_map(|mut row| {
        row.any(|cell| cell == name)
            .then(|| row.next()?.parse().ok())?
    })
}

/// Returns the nanoseconds of a program's main part.
fn main_part(said: &str) -> Result<u64> {
    let said = Said::parse(said)?;
    let phase = said.phases.first().context("the program told no time")?;
    Ok(phase.nanos)
}

/// Returns the times of all jobs in the guests' output; for `pages` those of its main part.
fn jobs_of(text: &str, is_busybox: bool) -> Result<Vec<Time>> {
    let (mut times, mut said) = (Vec::new(), String::new());
    for line in of_node(text).lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let ["job", _, status, centiseconds, faults, pages_in, _] = words[..] else {
            said += &format!("{line}\n");
            continue;
        };
        ensure!(
            status == "0",
            "a program ended with {status} on Linux:\n{said}"
        );
        let number = |word: &str| word.parse::<u64>().with_context(|| format!("{line:?}"));
        let seconds = if is_busybox {
            number(centiseconds)? as f64 / 100.0
        } else {
            main_part(&said)? as f64 / 1e9
        };
        times.push(Time {
            seconds,
            pages_in: number(pages_in)?,
            faults: number(faults)?,
        });
        said.clear();
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "node0: x\nnode1: phase\t32\trandom\t20000\t2500000000\nnode1: wrong\t0\nnode1: job 0 0 300 7 9 11\n";

    #[test]
    fn a_job_has_its_programs_time() {
        let time = Time {
            seconds: 2.5,
            pages_in: 9,
            faults: 7,
        };
        assert_eq!(jobs_of(SAID, false).unwrap(), [time]);
        assert_eq!(
            jobs_of(SAID, true).unwrap(),
            [Time {
                seconds: 3.0,
                ..time
            }]
        );
        assert!(jobs_of(&SAID.replace("job 0 0", "job 0 137"), false).is_err());
        assert!(jobs_of(&SAID.replace("wrong\t0", "wrong\t1"), false).is_err());
    }

    #[test]
    fn a_reports_value_follows_its_name() {
        assert_eq!(value("run_ns\t5\ncounter\tnr_x\t7\n", "nr_x"), Some(7));
        assert_eq!(value("run_ns\t5\n", "run_ns"), Some(5));
        assert_eq!(value("run_ns\n", "run_ns"), None);
    }
}
