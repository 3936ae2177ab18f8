//! `run`: a cluster in QEMU, and a program on it.
//!
//! * [`disk`]: S's disk. * [`drive`]: where it lies. * [`vm`]: QEMU's.
//! * [`cluster`]: starts, watches and ends the processes.
//! * [`report`]: the table afterwards. * [`demo`]: the job without a program.

mod cluster;
mod demo;
mod disk;
mod drive;
mod report;
mod root;
mod vm;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use self::cluster::{Cluster, End, Limits};
pub(crate) use self::demo::measured_peak as sort_peak;
use self::demo::{Collector, Native};
pub(crate) use self::disk::{Add, busybox, word_lists};
use self::drive::{Drive, DriveArgs};
use self::report::Report;
use self::root::Root;
use self::vm::{Vm, names};
use crate::bed::cmdline::CommandLine;
use crate::bed::plugin::{self, Plugin};
use crate::bed::streams::{self, Follower};
use crate::bed::{self, FAILED, INTERRUPTED_STATUS, OUTPUT_CLOSED_STATUS, make_folder, random_key, server};
use crate::build_image::{Role, build};
use crate::project;
use crate::qemu::Qemu;
use crate::tools::{parse_size, say, step};

/// What P's kernel needs beside its cache, and S's in all.
const KERNEL_MEMORY: u64 = 128 << 20;
/// Size of a page, and of a line of the cache.
const PAGE: u64 = 4096;

/// Starts a processor, a memory and a storage node in QEMU and runs a program on them
///
/// Without a program: sorts word lists with busybox in a cache of an eighth of the memory that this needs, and compares
/// with the same program run on the host. Exit status: the program's; 125 if the run itself failed; 130 after Ctrl-C.
#[derive(clap::Args)]
#[command(args_override_self = true)]
pub(crate) struct Args {
    /// Size of P's cache: a number of bytes with K, M or G [default: 8M, or an eighth of the demo's peak memory]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pcache: Option<u64>,
    /// Lines in a set of the cache
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=64))]
    ways: u64,
    /// Cores of P
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Milliseconds that a node may be silent before the others take it for lost; 0 for ever. A busy host may hold a node up
    /// for seconds
    #[arg(long, default_value_t = 15_000, value_name = "MS")]
    keepalive: u64,
    /// Main memory of M
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_size)]
    memory: u64,
    /// Puts a file or folder on S's disk, under /data/NAME if no guest path is given (repeatable)
    #[arg(long, value_name = "HOST[:GUEST]")]
    add: Vec<Add>,
    /// Fills S's disk with a root file system: Debian's `bookworm` or `trixie` (fetched once, unpacked in the cache
    /// folder), or a folder of the host. Without it the disk holds busybox and two word lists
    #[arg(long, value_name = "RELEASE|FOLDER")]
    root: Option<Root>,
    /// Adds Debian packages, and what they depend on, to the root file system
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', requires = "root")]
    packages: Vec<String>,
    #[command(flatten)]
    drive: DriveArgs,
    /// Sets a variable in the program's environment (repeatable)
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<OsString>,
    /// Logs each system call of the program in P's log; implies --keep-logs
    #[arg(long)]
    strace: bool,
    /// Adds an option to the kernel command line of a component, or of all: `memory:workers=4`, `all:polling=busy`; see
    /// docs/architecture.md (repeatable)
    #[arg(long, value_name = "WHO:OPTION")]
    boot: Vec<BootOption>,
    /// How much the nodes log
    #[arg(long, value_name = "LEVEL", value_parser = ["error", "warn", "info", "debug", "trace"])]
    log: Option<String>,
    /// Keeps the folder with the nodes' logs, and says where it is; a failed run keeps it always
    #[arg(long)]
    keep_logs: bool,
    /// Records every command, doorbell, DMA and interrupt of the adapters in a file: a line each, its fields parted by
    /// tabs
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Writes the report to a file, for scripts: a line a value, its fields parted by tabs
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Loads a TCG plugin into the QEMU of processor, memory or storage (once for each)
    #[arg(long, value_name = "WHO:FILE[,ARGUMENTS]")]
    plugin: Vec<Plugin>,
    /// Seconds that the nodes may take to start the program
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    boot_timeout: u64,
    /// Seconds that the program may take [default: no limit]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// The program, by its path on S's disk, and its arguments
    #[arg(last = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

/// An option for the kernel command line of some components.
#[derive(Debug, Clone, PartialEq, Eq)]
struct BootOption {
    /// None for all.
    role: Option<Role>,
    key: String,
    value: Option<String>,
}

impl BootOption {
    fn is_for(&self, role: Role) -> bool {
        self.role.is_none_or(|only| only == role)
    }

    fn add_to(&self, line: &mut CommandLine) {
        match &self.value {
            Some(value) => line.option(&self.key, value),
            None => line.flag(&self.key),
        }
    }
}

impl std::str::FromStr for BootOption {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let form =
            || "it is WHO:OPTION or WHO:OPTION=VALUE, WHO being all, processor, memory or storage".to_owned();
        let (who, option) = text.split_once(':').ok_or_else(form)?;
        let role = Role::ALL.into_iter().find(|role| role.name() == who);
        if role.is_none() && who != "all" {
            return Err(form());
        }
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (option, None),
        };
        if key.is_empty() {
            return Err(form());
        }
        let key = key.to_owned();
        Ok(Self { role, key, value })
    }
}

/// What is made before a run.
struct Parts {
    qemu: Qemu,
    server: PathBuf,
    images: BTreeMap<&'static str, PathBuf>,
}

/// Gets and builds all that a run needs, so that the first of many takes no longer than the others.
pub(crate) fn prepare() -> Result<()> {
    Parts::obtain().map(drop)
}

pub(crate) fn main(args: Args) -> ExitCode {
    match args.run() {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("error: {error:#}");
            FAILED.into()
        }
    }
}

impl Args {
    fn run(self) -> Result<u8> {
        self.check()?;
        let folder = make_folder()?;
        let result = self.run_in(&folder);
        // Only logs are worth keeping.
        let _ = fs::remove_file(names::disk(&folder));
        let _ = fs::remove_dir_all(folder.join("disk"));
        if result.is_ok() && !self.keep_logs && !self.strace {
            let _ = fs::remove_dir_all(&folder);
        } else {
            say(&format!("The nodes' logs are in {}", folder.display()));
        }
        result
    }

    fn check(&self) -> Result<()> {
        self.env
            .iter()
            .try_for_each(|variable| disk::check_environment(variable))?;
        ensure!(
            self.memory >= 64 << 20,
            "--memory must be at least 64M: M's kernel lives in it too"
        );
        if let Some(size) = self.pcache {
            let line = self.ways * PAGE;
            ensure!(
                size >= line && size.is_multiple_of(PAGE),
                "--pcache must be a multiple of 4K and hold a set, {line} bytes"
            );
        }
        bed::need_launcher()
    }

    fn run_in(&self, folder: &Path) -> Result<u8> {
        let parts = Parts::obtain()?;
        let drive = self
            .drive
            .drive(folder, self.root.is_some() || !self.add.is_empty())?;
        ensure!(
            drive.make || !self.program.is_empty(),
            "a disk that exists needs a program to run: give it after `--`"
        );
        let staged = folder.join("disk");
        let root = self
            .root
            .as_ref()
            .map(|root| root.obtain(&self.packages))
            .transpose()?;
        ensure!(
            root.is_none() || !self.program.is_empty(),
            "--root needs a program to run: give it after `--`"
        );
        if drive.make {
            disk::stage(&staged, root.as_deref(), &self.add)?;
        }
        let native = if self.program.is_empty() {
            Some(demo::run_here(&staged, &self.environment()?)?)
        } else {
            None
        };
        if drive.make {
            disk::make(&staged, &drive.file, drive.room)?;
        }
        let pcache = self
            .pcache
            .unwrap_or_else(|| native.as_ref().map_or(8 << 20, |run| demo::cache_size(run.peak)));
        if let Some(native) = &native {
            say(&format!(
                "Sorting {} bytes of word lists, which takes {} KiB of memory, in a cache of {} KiB",
                native.output.len(),
                native.peak >> 10,
                pcache >> 10
            ));
        }
        bed::handle_signals()?;
        let (end, report) = self.cluster(&parts, folder, &drive, pcache, native.as_ref())?;
        match end {
            End::Interrupted => Ok(INTERRUPTED_STATUS),
            End::OutputClosed => Ok(OUTPUT_CLOSED_STATUS),
            End::Program => self.finish(&report),
        }
    }

    /// Starts the cluster, shows the program's output until its end, and ends the cluster.
    fn cluster(
        &self,
        parts: &Parts,
        folder: &Path,
        drive: &Drive,
        pcache: u64,
        native: Option<&Native>,
    ) -> Result<(End, Report)> {
        let (stdout, stderr) = (names::stdout(folder), names::stderr(folder));
        for file in [&stdout, &stderr] {
            File::create_new(file).with_context(|| format!("can't make {}", file.display()))?;
        }
        let collected = Collector::default();
        let to: Box<dyn Write + Send> = if native.is_some() {
            Box::new(collected.clone())
        } else {
            Box::new(std::io::stdout())
        };
        let mut output = [
            Follower::start(&stdout, to)?,
            Follower::start(&stderr, std::io::stderr())?,
        ];
        let input = make_input(folder)?;
        let trace = self
            .trace
            .as_ref()
            .map(|file| [OsStr::new("--trace"), file.as_os_str()]);
        let options = trace.as_ref().map_or(&[][..], |words| words);
        let (server, _) = server::start(&parts.server, folder, &Role::ALL.map(Role::name), "", options)?;
        let vms = self.vms(parts, folder, drive, pcache)?;
        say("Starting the cluster");
        let mut cluster = Cluster::start(&parts.qemu, &vms, server, folder)?;
        let _input = if native.is_some() {
            streams::send_input(input, std::io::empty())?
        } else {
            streams::send_input(input, std::io::stdin())?
        };
        let limits = Limits {
            boot: Duration::from_secs(self.boot_timeout),
            program: self.timeout.map(Duration::from_secs),
        };
        let end = cluster.watch(&limits, &output);
        let report = cluster.report();
        cluster.stop();
        let flushed = output.iter_mut().try_for_each(Follower::finish);
        let end = end?;
        if end == End::Program {
            flushed?;
            if let Some(native) = native {
                say(&demo::compare(&collected.take(), &native.output)?);
            }
        }
        Ok((end, report))
    }

    /// Prints the table and gives the program's exit status.
    fn finish(&self, report: &Report) -> Result<u8> {
        if let Some(file) = &self.report {
            fs::write(file, report.to_tsv()).with_context(|| format!("can't write {}", file.display()))?;
        }
        eprint!("{}", report.table());
        let code = report
            .exit_code()
            .context("processor: it left without reporting the program's exit status")?;
        if self.program.is_empty() && code != 0 {
            bail!("the program ended with {code}");
        }
        Ok(code)
    }

    fn vms<'a>(
        &'a self,
        parts: &Parts,
        folder: &'a Path,
        drive: &'a Drive,
        pcache: u64,
    ) -> Result<Vec<Vm<'a>>> {
        let key = random_key()?;
        let vm = |role: Role| {
            let (memory, cpus) = match role {
                Role::Processor => (KERNEL_MEMORY + pcache, self.cpus),
                Role::Memory => (self.memory, 1),
                Role::Storage => (KERNEL_MEMORY, 1),
            };
            // Who is to poll on more cores needs them.
            let pollers = self.boot.iter().filter(|extra| extra.is_for(role));
            let pollers = pollers.filter(|extra| extra.key == "pollers");
            let cpus = pollers
                .filter_map(|extra| extra.value.as_deref()?.parse().ok())
                .fold(cpus, u32::max);
            let command_line = self.command_line(role, pcache, &key)?;
            Ok(Vm {
                role,
                image: parts.images[role.name()].clone(),
                command_line,
                memory,
                cpus,
                plugin: plugin::of_node(&self.plugin, role.name()),
                folder,
                drive,
            })
        };
        Role::ALL.into_iter().map(vm).collect()
    }

    fn command_line(&self, role: Role, pcache: u64, key: &str) -> Result<String> {
        let mut line = CommandLine::default();
        line.option("cluster", "run");
        line.option("key", key);
        line.option("keepalive", self.keepalive.to_string());
        if let Some(level) = &self.log {
            line.option("log", level);
        }
        for extra in self.boot.iter().filter(|extra| extra.is_for(role)) {
            extra.add_to(&mut line);
        }
        if role != Role::Memory {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            line.option("clock", now.unwrap_or_default().as_secs().to_string());
        }
        if role == Role::Processor {
            line.option("pcache", pcache.to_string());
            line.option("ways", self.ways.to_string());
            if self.strace {
                line.flag("strace");
            }
            line.option("cwd", "/");
            for variable in default_environment()
                .map(OsString::from)
                .into_iter()
                .chain(self.env.iter().cloned())
            {
                line.option("env", variable);
            }
            if self.program.is_empty() {
                line.program(&demo::program());
            } else {
                line.program(&self.program);
            }
        }
        line.finish()
            .with_context(|| format!("the kernel command line of {}", role.name()))
    }

    /// The environment as the host's run of the same program gets it.
    fn environment(&self) -> Result<Vec<(String, String)>> {
        let own = self.env.iter().map(|variable| variable.clone().into_string());
        default_environment()
            .into_iter()
            .map(|variable| Ok(variable.to_owned()))
            .chain(own)
            .map(|variable| {
                let variable = variable.ok().context("a variable is not text")?;
                let (name, value) = variable.split_once('=').context("a variable without `=`")?;
                Ok((name.to_owned(), value.to_owned()))
            })
            .collect()
    }
}

/// What each program's environment holds.
fn default_environment() -> [&'static str; 2] {
    ["PATH=/bin:/usr/bin", "HOME=/root"]
}

impl Parts {
    fn obtain() -> Result<Self> {
        let qemu = Qemu::obtain()?;
        let server = step("Building the fabric server", project::build_hca_server)?;
        let build = |role: Role| Ok((role.name(), build(role)?));
        let images = Role::ALL.into_iter().map(build).collect::<Result<_>>()?;
        Ok(Self { qemu, server, images })
    }
}

/// The pipe that QEMU reads the program's input from. Open both ways, so that neither opening it nor a pause ends it.
fn make_input(folder: &Path) -> Result<File> {
    let pipe = names::stdin(folder);
    let open = bed::make_pipe(&pipe)?;
    if std::io::stdin().is_terminal() {
        say("The program reads this terminal; Ctrl-D ends its input, Ctrl-C the run");
    }
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn boot_options_go_to_whom_they_are_for() {
        let parsed = |text: &str| text.parse::<BootOption>();
        let workers = parsed("memory:workers=4").unwrap();
        assert!(workers.is_for(Role::Memory) && !workers.is_for(Role::Storage));
        let all = parsed("all:profile").unwrap();
        assert!(Role::ALL.into_iter().all(|role| all.is_for(role)));
        let mut line = CommandLine::default();
        workers.add_to(&mut line);
        all.add_to(&mut line);
        assert_eq!(line.finish().unwrap(), "workers=4 profile");
        for bad in ["workers=4", "disk:workers=4", "memory:", "memory:=4", ""] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_last_of_an_option_counts_and_additions_add_up() {
        let line = [
            "run",
            "--timeout",
            "5",
            "--add",
            "a",
            "--timeout",
            "6",
            "--add",
            "b",
            "--",
            "/p",
            "--add",
        ];
        let Ok(Line { args }) = Line::try_parse_from(line) else {
            panic!("it is a line")
        };
        assert_eq!(
            (args.timeout, args.add.len(), args.program.len()),
            (Some(6), 2, 2)
        );
    }
}
