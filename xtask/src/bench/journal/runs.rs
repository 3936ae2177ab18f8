//! Runs of the program, on this machine's Linux and on clusters.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::bed::native;
use crate::bench::FIXED_LAYOUT;
use crate::bench::child::xtask;
use crate::debian::TRIXIE;
use crate::run::Root;
use crate::tools::quiet;

/// Debian's packages.
const PACKAGES: [&str; 3] = [
    "python3-numpy",
    "libopenblas0-pthread",
    "dataset-fashion-mnist",
];
/// The program, in the root file system.
const PROGRAM: &str = "/usr/share/tessera/train.py";
/// Variables of each run. Both libraries choose their code by the CPU's model, and sums depend on
/// it; this names code that each x86-64 CPU since 2008 can run.
const ENVIRONMENT: [&str; 5] = [
    "OPENBLAS_NUM_THREADS=4",
    "OPENBLAS_CORETYPE=Nehalem",
    "NPY_DISABLE_CPU_FEATURES=AVX F16C FMA3 AVX2 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL \
     AVX512_ICL AVX512_SPR",
    "PYTHONDONTWRITEBYTECODE=1",
    "PYTHONHASHSEED=0",
];
/// Seconds that a run may take.
const LIMIT: &str = "1800";
/// A granule of the cache, in bytes.
const GRANULE: u64 = 64 << 10;

/// The program's arguments, and boot options of the cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape<'a> {
    /// Images that it reads.
    pub(super) images: u32,
    /// Times that it sees each.
    pub(super) epochs: u32,
    /// Options as `run --boot` takes them.
    pub(super) boot: &'a [String],
}

/// A cluster's size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Setting {
    /// Cores of P.
    pub(super) cores: u32,
    /// Local share of the working set, in per cent.
    pub(super) share: f64,
    /// The working set in bytes.
    pub(super) working_set: u64,
}

impl Setting {
    /// Returns the size of P's cache in bytes. A cache of sets needs more than the working set to
    /// hold all of it.
    fn pcache(&self) -> u64 {
        let factor = if self.share >= 100.0 {
            2.0
        } else {
            self.share / 100.0
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a product of positive numbers far below 2^52"
        )]
        let bytes = (self.working_set as f64 * factor) as u64;
        bytes.next_multiple_of(GRANULE)
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cores = if self.cores == 1 { "core" } else { "cores" };
        write!(f, "{} {cores}, {} % local", self.cores, self.share)
    }
}

/// A run's results.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Trained {
    /// The program's standard output: each epoch's loss.
    pub(super) said: String,
    /// Seconds of all epochs together.
    pub(super) seconds: f64,
    /// The most memory that the program used, in bytes.
    pub(super) peak: u64,
    /// Pages read from M.
    pub(super) reads: u64,
    /// Pages written back to M.
    pub(super) writes: u64,
    /// Mean nanoseconds of a READ.
    pub(super) read_ns: u64,
    /// Mean nanoseconds of a write-back.
    pub(super) write_ns: u64,
}

/// The files of all runs.
pub(super) struct Bed<'a> {
    folder: &'a Path,
    root: PathBuf,
    shape: Shape<'a>,
}

impl<'a> Bed<'a> {
    /// Lays out a root file system in a folder.
    pub(super) fn new(folder: &'a Path, shape: Shape<'a>) -> Result<Self> {
        let root = folder.join("root");
        Root::Debian(TRIXIE).copy(&PACKAGES.map(str::to_owned), &root)?;
        let program = root.join(PROGRAM.trim_start_matches('/'));
        if let Some(parent) = program.parent() {
            fs::create_dir_all(parent).context("can't make the program's folder")?;
        }
        fs::write(&program, include_bytes!("train.py")).context("can't write the program")?;
        // Debian's packages compile Python's modules when they are installed. An emulated CPU would
        // spend most of a run on it.
        let words = ["/usr/bin/python3", "-m", "compileall", "-q", "/usr/lib"];
        // Modules of other versions of Python do not compile.
        let _ = quiet(&mut native::command(&root, &words)?);
        Ok(Self {
            folder,
            root,
            shape,
        })
    }

    /// Trains on this machine's Linux.
    pub(super) fn native(&self) -> Result<Trained> {
        let mut words = vec!["/usr/bin/env"];
        words.extend(ENVIRONMENT);
        let arguments = self.arguments();
        words.extend(["/usr/bin/python3", PROGRAM]);
        words.extend(arguments.iter().map(String::as_str));
        let mut command: Command = native::command(&self.root, &words)?;
        let output = command
            .stdin(Stdio::null())
            .output()
            .context("can't start the program")?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "the program ended with {} on this machine:\n{stderr}",
            output.status
        );
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        told(said, &stderr)
    }

    /// Trains on a cluster.
    pub(super) fn cluster(&self, setting: &Setting) -> Result<Trained> {
        let report = self.folder.join("report.tsv");
        let root = self.root.display().to_string();
        let (cores, pcache) = (setting.cores.to_string(), setting.pcache().to_string());
        let file = report.display().to_string();
        let mut words = vec![
            "run", "--quiet", "--root", &root, "--cpus", &cores, "--pcache", &pcache,
        ];
        words.extend(["--memory", "2G", "--timeout", LIMIT, "--report", &file]);
        words.extend(["--boot-timeout", "200", "--boot", FIXED_LAYOUT]);
        for option in self.shape.boot {
            words.extend(["--boot", option]);
        }
        for variable in ENVIRONMENT {
            words.extend(["--env", variable]);
        }
        let arguments = self.arguments();
        // Both streams by one pipe, told apart by their tabs.
        let script = format!("exec python3 {PROGRAM} {} 2>&1", arguments.join(" "));
        words.extend(["--", "/bin/sh", "-c", &script]);
        let text = xtask(&words)?;
        let (times, said): (Vec<&str>, Vec<&str>) =
            text.lines().partition(|line| line.contains('\t'));
        let lines =
            |lines: &[&str]| -> String { lines.iter().map(|line| format!("{line}\n")).collect() };
        let mut trained = told(lines(&said), &lines(&times))?;
        let report = fs::read_to_string(&report).context("a run left no report")?;
        let time = |name: &str| {
            let mut rows = report.lines().map(|line| line.split('\t'));
            let cells = rows.find_map(|mut row| row.any(|cell| cell == name).then_some(row));
            let mut cells = cells.with_context(|| format!("the report has no {name}"))?;
            let mut number = || -> Option<u64> { cells.next()?.parse().ok() };
            number()
                .zip(number())
                .with_context(|| format!("the report has no times of {name}"))
        };
        (trained.reads, trained.read_ns) = time("__pcache_fill_remote_net")?;
        (trained.writes, trained.write_ns) = time("pcache_flush_net")?;
        Ok(trained)
    }

    fn arguments(&self) -> [String; 2] {
        [self.shape.images.to_string(), self.shape.epochs.to_string()]
    }
}

/// Reads the lines of times.
fn told(said: String, times: &str) -> Result<Trained> {
    let mut trained = Trained {
        said,
        ..Trained::default()
    };
    for line in times.lines() {
        let Some((name, value)) = line.split_once('\t') else {
            continue;
        };
        if name.starts_with("epoch ") {
            trained.seconds += value
                .parse::<f64>()
                .with_context(|| format!("{line:?} has no seconds"))?;
        } else if name == "peak" {
            let peak = value.parse::<u64>();
            trained.peak = peak.with_context(|| format!("{line:?} has no size"))? << 10;
        }
    }
    ensure!(trained.seconds > 0.0, "the program told no times:\n{times}");
    Ok(trained)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_peak_are_read() {
        let times = "load\t9.5\nepoch 1\t1.25\nepoch 2\t0.5\npeak\t2048\n";
        let trained = told("epoch 1: loss 0.5\n".into(), times).expect("times");
        assert_eq!((trained.seconds, trained.peak), (1.75, 2 << 20));
        assert!(told(String::new(), "load\t1\n").is_err(), "no epoch");
        assert!(told(String::new(), "epoch 1\tx\n").is_err());
    }

    #[test]
    fn a_cache_is_a_share_of_the_working_set() {
        let mut setting = Setting {
            cores: 1,
            share: 12.5,
            working_set: 80 << 20,
        };
        assert_eq!(setting.pcache(), 10 << 20);
        setting.share = 100.0;
        assert_eq!(setting.pcache(), 160 << 20);
        assert_eq!(setting.to_string(), "1 core, 100 % local");
    }
}
