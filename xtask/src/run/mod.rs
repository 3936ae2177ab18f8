//! `run`: starts a cluster in QEMU and runs a program on it.
//!
//! * [`disk`]: S's disk. * [`drive`]: where it lies. * [`vm`]: QEMU's. * [`boot`]: `--boot`. *
//!   [`media`]: `--boot-from`. [`boot_server`]: a boot server for it.
//! * [`start`]: what to run. * [`console`]: its streams. * [`serial`]: a serial port for them.
//! * [`cards`]: `--card`, nodes with real cards. * [`join`]: `--open` and `--join`.
//! * [`cluster`]: starts, watches and ends the processes.
//! * [`screens`]: the nodes' screens. * [`report`]: the table afterwards.
//! * [`top`]: what runs meanwhile.
//! * [`demo`]: the job without a program.

mod attended;
pub(crate) mod boot;
mod boot_server;
mod cards;
mod cluster;
pub(crate) mod console;
mod demo;
pub(crate) mod disk;
pub(crate) mod drive;
mod join;
mod media;
mod report;
mod root;
mod screens;
pub(crate) mod serial;
pub(crate) mod start;
mod terminal;
mod top;
pub(crate) mod vm;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use self::attended::{ProgramTerminal, window};
use self::boot::BootOption;
use self::cards::{Card, CardArgs, Cards, Pins};
use self::cluster::{Cluster, End, Limits};
use self::console::Channel;
pub(crate) use self::demo::measured_peak as sort_peak;
use self::demo::{Collector, Native};
pub(crate) use self::disk::{Add, busybox, word_lists};
use self::drive::{Drive, DriveArgs};
use self::join::{JoinArgs, Joined};
use self::media::{BootFrom, Source};
use self::report::Report;
pub(crate) use self::root::Root;
use self::terminal::Terminal;
use self::top::Top;
use self::vm::{StreamsDevice, Vm, names};
use crate::bed::cmdline::CommandLine;
use crate::bed::machine::{Chipset, Place};
use crate::bed::plugin::{self, Plugin};
use crate::bed::process::Process;
use crate::bed::{self, FAILED, INTERRUPTED_STATUS, make_folder, random_key, server};
use crate::build_image::sign::Signer;
use crate::build_image::{Role, build};
use crate::passthrough::host::Linux;
use crate::project;
use crate::qemu::Qemu;
use crate::tools::{self, parse_size, say, step};

/// Memory of P's kernel beside its cache, and of S in all.
const KERNEL_MEMORY: u64 = 128 << 20;
/// The least memory of M with which a program starts.
const MIN_MEMORY: u64 = 96 << 20;
/// Exit status for wrong usage, as clap's.
const USAGE: u8 = 2;
/// Exit status when the program's output could not be written, as that of a program that sees it.
const UNWRITTEN: u8 = 1;
/// P's cache, unless its size is given or the demonstration runs.
const DEFAULT_CACHE: u64 = 8 << 20;
/// Size of a page, and of a line of the cache.
const PAGE: u64 = 4096;

/// Starts a processor, a memory and a storage node in QEMU and runs a program on them
///
/// Without a program: sorts word lists with busybox in a cache of an eighth of the memory that this
/// needs, and compares with the same program run on the host.
///
/// Exit status: the program's, 128 + N if signal N ended it; 127 if there is no such program, 126
/// if it can't be run; 125 if the run itself failed; 2 for wrong usage; 1 if the program's output
/// can't be written; 130 after Ctrl-C.
#[derive(clap::Args)]
#[command(args_override_self = true)]
pub(crate) struct Args {
    /// Size of P's cache: a number of bytes with K, M or G [default: 8M, or an eighth of the demo's
    /// peak memory]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pcache: Option<u64>,
    /// Lines in a set of the cache
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(4..=64))]
    ways: u64,
    /// Cores of P
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Milliseconds that a node may be silent before the others take it for lost; 0 for ever. A
    /// busy host may hold a node up for seconds
    #[arg(long, default_value_t = 15_000, value_name = "MS")]
    keepalive: u64,
    /// Main memory of M
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_size)]
    memory: u64,
    /// Puts a file or folder on S's disk, under /data/NAME if no guest path is given (repeatable)
    #[arg(long, value_name = "HOST[:GUEST]")]
    add: Vec<Add>,
    /// Fills S's disk with a root file system: Debian's `bookworm` or `trixie` (fetched once,
    /// unpacked in the cache folder), or a folder of the host. Without it the disk holds busybox
    /// and two word lists
    #[arg(long, value_name = "RELEASE|FOLDER")]
    root: Option<Root>,
    /// Adds Debian packages, and what they depend on, to the root file system
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', requires = "root")]
    packages: Vec<String>,
    #[command(flatten)]
    drive: DriveArgs,
    /// P's device for the program's streams; with `serial` and `--disk-device nvme` no machine has
    /// a virtio device
    #[arg(long, value_enum, default_value_t)]
    streams: StreamsDevice,
    /// Sets a variable in the program's environment (repeatable; the last of a name counts)
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<OsString>,
    /// The program's working folder
    #[arg(long, value_name = "FOLDER", default_value = "/")]
    workdir: PathBuf,
    /// The user that the program runs as: a name of /etc/passwd on S's disk or a number, and a
    /// group of /etc/group or a number. HOME is the user's then. Root without this option
    #[arg(
        long,
        value_name = "NAME|UID[:GROUP|:GID]",
        default_value = "",
        hide_default_value = true
    )]
    user: String,
    /// Writes each system call of the program, as strace does, to standard error or a file
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    strace: Option<Option<PathBuf>>,
    /// Shows processes, threads, cache and fabric each second in the lowest lines of the terminal,
    /// or writes them to a file, for scripts: lines parted by tabs
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    top: Option<Option<PathBuf>>,
    /// Says nothing but what the program says, and errors
    #[arg(long, short)]
    quiet: bool,
    /// Prints the table of counters on standard error; where that is a terminal it comes without
    /// asking
    #[arg(long)]
    stats: bool,
    /// Adds an option to the kernel command line of a component, or of all: `memory:workers=4`,
    /// `all:polling=busy`; see docs/architecture.md (repeatable)
    #[arg(long, value_name = "WHO:OPTION")]
    boot: Vec<BootOption>,
    /// Starts the machines of all nodes, or of one, otherwise than by QEMU's own loader: by UEFI
    /// firmware from a USB stick (`disk`), an ISO (`iso`) or the network (`pxe`), or in another way
    /// of docs/metal.md (repeatable; the last for a node counts)
    #[arg(long, value_name = "[WHO:]WAY")]
    boot_from: Vec<BootFrom>,
    /// Signs what firmware starts with this key and certificate (PEM)
    #[arg(long, num_args = 2, value_names = ["KEY", "CERT"])]
    sign: Option<Vec<PathBuf>>,
    /// Secure Boot: firmware starts only what Debian's test key has signed, which signs unless
    /// --sign names another
    #[arg(long)]
    secure_boot: bool,
    /// Gives the nodes screens, and writes those of M and S to FOLDER when the program has ended,
    /// as `memory.ppm` and `storage.ppm`. Only UEFI firmware sets screens up: see --boot-from
    #[arg(long, value_name = "FOLDER")]
    screens: Option<PathBuf>,
    /// The nodes' chipset
    #[arg(long, value_enum, default_value_t = Chipset::Q35)]
    chipset: Chipset,
    /// Place of the adapters in the machines: `slot`, `port` (a PCI Express port), `bridges`,
    /// `second-root` (another root bus), `high` (doorbells above 4 GB)
    #[arg(long, value_name = "PLACE", default_value = "slot")]
    adapter_place: Place,
    /// The model of the nodes' CPUs, as QEMU names it
    #[arg(long, value_name = "MODEL", default_value = "max")]
    cpu_model: String,
    #[command(flatten)]
    cards: CardArgs,
    #[command(flatten)]
    join: JoinArgs,
    /// Log level of the nodes
    #[arg(long, value_name = "LEVEL", value_parser = ["error", "warn", "info", "debug", "trace"])]
    log: Option<String>,
    /// Keeps the folder with the nodes' logs, and says where it is; a failed run keeps it always
    #[arg(long)]
    keep_logs: bool,
    /// Records every command, doorbell, DMA and interrupt of the adapters in a file: a line each,
    /// its fields parted by tabs
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
    /// The program, by its path on S's disk or a name that is looked for in PATH, and its arguments
    #[arg(last = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

/// Programs and images that must be made before a run.
struct Parts {
    qemu: Qemu,
    /// The fabric's server; `None` if the nodes have real cards.
    server: Option<PathBuf>,
    images: Images,
}

/// Parts of one run.
struct Bed<'a> {
    parts: &'a Parts,
    cards: Option<&'a Cards>,
    /// The place in another run.
    joined: Option<&'a Joined>,
    folder: &'a Path,
    drive: &'a Drive,
    /// Bytes of P's cache.
    pcache: u64,
}

/// The images by the roles' names.
type Images = BTreeMap<&'static str, PathBuf>;

/// Gets and builds all that a run needs, so that the first of many takes no longer than the others.
pub(crate) fn prepare() -> Result<()> {
    Parts::obtain(true).map(drop)
}

pub(crate) fn main(args: Args) -> ExitCode {
    if let Err(error) = args.check() {
        eprintln!("error: {error:#}");
        return USAGE.into();
    }
    // Where standard error is not for a person it is the program's alone.
    if args.quiet || !args.program.is_empty() && !std::io::stderr().is_terminal() {
        tools::be_quiet();
    }
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
        bed::need_launcher()?;
        if media::needs_rack(&self.boot_from) {
            boot_server::enter()?;
        }
        let folder = make_folder()?;
        let result = self.run_in(&folder);
        // Only logs are worth keeping.
        let _ = fs::remove_file(names::disk(&folder));
        let _ = fs::remove_dir_all(folder.join("disk"));
        Source::remove(&folder);
        if result.is_ok() && !self.keep_logs || self.cards.only_checks() {
            let _ = fs::remove_dir_all(&folder);
        } else {
            eprintln!("tessera: The nodes' logs are in {}", folder.display());
        }
        result
    }

    fn check(&self) -> Result<()> {
        self.env
            .iter()
            .try_for_each(|variable| disk::check_environment(variable))?;
        ensure!(
            self.memory >= MIN_MEMORY,
            "--memory must be at least {}M: M's kernel and the memory of the smallest program live in it",
            MIN_MEMORY >> 20
        );
        bed::check_folder()?;
        ensure!(
            self.workdir.is_absolute(),
            "--workdir is a folder on S's disk: give an absolute path, not {}",
            self.workdir.display()
        );
        ensure!(
            !self.secure_boot || self.chipset == Chipset::Q35,
            "--secure-boot needs the chipset q35: firmware keeps its keys by system management mode"
        );
        self.check_cards()?;
        ensure!(
            self.root.is_none() && !self.join.joins() || !self.program.is_empty(),
            "--root and --join need a program to run: give it after `--`"
        );
        if let Some(size) = self.pcache {
            let line = self.ways * PAGE;
            ensure!(
                size >= line && size.is_multiple_of(PAGE),
                "--pcache must be a multiple of 4K and hold a set, {line} bytes"
            );
        }
        Ok(())
    }

    fn run_in(&self, folder: &Path) -> Result<u8> {
        let joined = self.join.place()?;
        let laid_out = self.root.is_some() || !self.add.is_empty();
        let drive = match &joined {
            Some(_) => join::no_drive(folder)?,
            None => self.drive.drive(folder, laid_out)?,
        };
        let cards = self.plan_cards();
        if let Some(cards) = &cards {
            let missing = cards.check();
            if self.cards.only_checks() {
                self.show_machines(cards, folder, &drive)?;
                return missing.map(|()| 0);
            }
            missing?;
        }
        let parts = Parts::obtain(cards.is_none() && joined.is_none())?;
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
        if drive.make {
            disk::stage(&staged, root.as_deref(), &self.add)?;
        }
        let native = if self.program.is_empty() {
            Some(demo::run_here(
                &staged,
                &start::environment(&self.env, true),
            )?)
        } else {
            None
        };
        if drive.make {
            disk::make(&staged, &drive.file, drive.room)?;
        }
        let pcache = self.pcache.unwrap_or_else(|| {
            native
                .as_ref()
                .map_or(DEFAULT_CACHE, |run| demo::cache_size(run.peak))
        });
        if let Some(native) = &native {
            say(&format!(
                "Sorting {} bytes of word lists, which takes {} KiB of memory, in a cache of {} KiB",
                native.output.len(),
                native.peak >> 10,
                pcache >> 10
            ));
        }
        bed::handle_signals()?;
        let bed = Bed {
            parts: &parts,
            cards: cards.as_ref(),
            joined: joined.as_ref(),
            folder,
            drive: &drive,
            pcache,
        };
        let (end, report) = self.cluster(&bed, native.as_ref())?;
        match end {
            End::Interrupted => Ok(INTERRUPTED_STATUS),
            End::Unwritten => Ok(UNWRITTEN),
            End::Program => self.finish(&report),
        }
    }

    /// Starts the cluster, shows the program's output until its end, and ends the cluster.
    fn cluster(&self, bed: &Bed<'_>, native: Option<&Native>) -> Result<(End, Report)> {
        let folder = bed.folder;
        let collected = Collector::default();
        let terminal = Terminal::of_stdin().filter(|_| native.is_none());
        let top = match &self.top {
            Some(file) => Some(Top::new(file.as_deref())?),
            None => None,
        };
        let _closing = top.as_ref().map(Top::closing);
        let (program, streams) = if native.is_some() {
            let program = demo::program().map(OsString::from).to_vec();
            (program, start::demo_streams(&collected))
        } else {
            let streams = start::streams(self.strace_file()?, terminal.as_ref(), top.clone())?;
            (self.program.clone(), streams)
        };
        let mut start = start::start(&program, &self.env, self.workdir.as_os_str(), &self.user);
        if native.is_none() {
            start.sources = start::sources(terminal.as_ref());
        }
        start.window = window(terminal.as_ref(), top.as_ref());
        let channel = Channel::new()?;
        let server = self.start_server(bed)?;
        let key = bed
            .joined
            .map_or_else(random_key, |joined| Ok(joined.key.clone()))?;
        let vms = self.vms(bed, &key)?;
        // Given back after the machines have ended, on each path.
        let _bound = bed.cards.map(|cards| cards.bind(&Linux)).transpose()?;
        let _rack = boot_server::BootServer::start(&vms, folder)?;
        say("Starting the cluster");
        let mut cluster =
            Cluster::start(&bed.parts.qemu, &vms, server, folder, channel.qemus_end()?)?;
        let _opened = self.join.open(folder, &key)?;
        if media::way(&self.boot_from, Role::Processor) != media::Way::Pvh {
            cluster.wait_for_kernel(Duration::from_secs(self.boot_timeout))?;
        }
        let channel = match self.streams {
            StreamsDevice::Virtio => channel,
            StreamsDevice::Serial => channel.over_serial()?,
        };
        let console = channel.serve(start, streams)?;
        let mut attended = ProgramTerminal::new(terminal.as_ref(), &console, top.as_ref());
        let limits = Limits {
            boot: Duration::from_secs(self.boot_timeout),
            program: self.timeout.map(Duration::from_secs),
        };
        let machines = cluster.machines();
        let mut pins = bed
            .cards
            .map_or_else(Pins::default, |cards| cards.pins(&machines));
        let end = cluster.watch(&limits, |running| {
            pins.look()?;
            attended.look(running)
        });
        drop(attended);
        let report = cluster.report();
        let screens = match &self.screens {
            Some(to) => screens::take(folder, to),
            None => Ok(()),
        };
        cluster.stop();
        let end = end?;
        screens?;
        if end == End::Program {
            if let Err(error) = console.finish() {
                eprintln!("error: {error:#}");
                return Ok((End::Unwritten, report));
            }
            if let Some(native) = native {
                say(&demo::compare(&collected.take(), &native.output)?);
            }
        }
        Ok((end, report))
    }

    /// Starts the fabric's server, if there is to be one.
    fn start_server(&self, bed: &Bed<'_>) -> Result<Option<Process>> {
        let Some(program) = &bed.parts.server else {
            return Ok(None);
        };
        let trace = self.trace.as_ref();
        let trace = trace.map(|file| [OsStr::new("--trace"), file.as_os_str()]);
        let options = trace.as_ref().map_or(&[][..], |words| words);
        let nodes = self.join.adapters();
        let (server, _) = server::start(program, bed.folder, &nodes, "", options)?;
        Ok(Some(server))
    }

    /// Prints the table and gives the program's exit status.
    fn finish(&self, report: &Report) -> Result<u8> {
        if let Some(file) = &self.report {
            fs::write(file, report.to_tsv())
                .with_context(|| format!("can't write {}", file.display()))?;
        }
        if self.stats || !self.quiet && std::io::stderr().is_terminal() {
            eprint!("{}", report.table());
        }
        if let Some(killed) = report.killed() {
            eprintln!("tessera: {killed} (--keep-logs keeps the nodes' logs)");
        }
        let code = report
            .exit_code()
            .context("processor: it left without reporting the program's exit status")?;
        if self.program.is_empty() && code != 0 {
            bail!("the program ended with {code}");
        }
        Ok(code)
    }

    /// Makes the file that the trace of calls goes to, if one is asked for.
    fn strace_file(&self) -> Result<Option<File>> {
        let Some(Some(path)) = &self.strace else {
            return Ok(None);
        };
        let file = File::create(path).with_context(|| format!("can't make {}", path.display()))?;
        Ok(Some(file))
    }

    fn vms<'a>(&'a self, bed: &Bed<'a>, key: &str) -> Result<Vec<Vm<'a>>> {
        let signer = match &self.sign {
            Some(files) => Some(Signer::of(files)?),
            None if self.secure_boot => Some(Signer::for_tests(bed.folder)?),
            None => None,
        };
        let vm = |role: Role| {
            let command_line = self.command_line(role, bed.pcache, key)?;
            let way = media::way(&self.boot_from, role);
            let image = &bed.parts.images[role.name()];
            let source = Source::make(way, role, image, command_line, bed.folder, signer.as_ref())?;
            let card = bed.cards.and_then(|cards| cards.of(role));
            let mut vm = self.vm(role, source, bed.pcache, (bed.folder, bed.drive), card);
            if let Some(joined) = bed.joined {
                vm.socket.clone_from(&joined.socket);
            }
            Ok(vm)
        };
        let joins = bed.joined.is_some();
        let roles = Role::ALL.into_iter();
        let roles = roles.filter(|role| !joins || *role == Role::Processor);
        roles.map(vm).collect()
    }

    /// Returns a node's machine.
    fn vm<'a>(
        &'a self,
        role: Role,
        source: Source,
        pcache: u64,
        (folder, drive): (&'a Path, &'a Drive),
        card: Option<&'a Card>,
    ) -> Vm<'a> {
        let (memory, cpus) = self.size(role, pcache);
        Vm {
            role,
            source,
            secure: self.secure_boot,
            chipset: self.chipset,
            place: self.adapter_place,
            cpu_model: &self.cpu_model,
            memory: media::memory(media::way(&self.boot_from, role), memory),
            cpus,
            plugin: plugin::of_node(&self.plugin, role.name()),
            folder,
            socket: bed::socket(folder, role.name()),
            drive,
            streams: self.streams,
            has_screen: self.screens.is_some(),
            card,
        }
    }

    /// Returns the memory and the cores of a node's machine.
    fn size(&self, role: Role, pcache: u64) -> (u64, u32) {
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
        (memory, cpus)
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
            if self.streams != StreamsDevice::default() {
                line.option("streams", self.streams.boot_option());
            }
            if self.strace.is_some() {
                line.flag("strace");
            }
            if self.top.is_some() {
                line.option("top", top::PAUSE.to_string());
            }
        }
        line.finish()
            .with_context(|| format!("the kernel command line of {}", role.name()))
    }
}

impl Parts {
    fn obtain(with_server: bool) -> Result<Self> {
        let qemu = Qemu::obtain()?;
        let server = || step("Building the fabric server", project::build_hca_server);
        let server = with_server.then(server).transpose()?;
        let build = |role: Role| Ok((role.name(), build(role)?));
        let images = Role::ALL.into_iter().map(build).collect::<Result<_>>()?;
        Ok(Self {
            qemu,
            server,
            images,
        })
    }
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
