//! `passthrough`: a role in a machine under KVM that has a real card of this host's.
//!
//! * [`check`]: the conditions, looked at all at once. * [`bind`]: the card bound to vfio-pci and
//!   given back. * [`machine`]: QEMU's command line. * [`pin`]: virtual CPUs on cores of their own.
//! * [`host`]: the host as sysfs shows it. * [`bdf`]: PCI addresses.
//!
//! `run --card` uses these for a whole cluster.
//!
//! Left out: virtual functions, several cards in one machine, pinning of QEMU's other threads. No
//! real card has been passed through yet; the tests have a sysfs of their own.

pub(crate) mod bdf;
pub(crate) mod bind;
pub(crate) mod check;
#[cfg(test)]
pub(crate) mod fake;
pub(crate) mod host;
pub(crate) mod machine;
pub(crate) mod pin;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use self::bdf::Bdf;
use self::bind::Bound;
use self::check::Needs;
use self::host::{Host, Linux};
use self::machine::Machine;
use crate::bed::cmdline::CommandLine;
use crate::bed::left::{self, NodeOutcome};
use crate::bed::machine::Chipset;
use crate::bed::process::{LAUNCHER, Process};
use crate::bed::streams::Follower;
use crate::bed::{self, INTERRUPTED, tail};
use crate::build_image::{self, Role};
use crate::qemu::Qemu;
use crate::run::boot::BootOption;
use crate::run::console::{Channel, Server};
use crate::run::drive::Drive;
use crate::run::start;
use crate::run::vm::StreamsDevice;
use crate::tools::{find, parse_size, say};

/// Poll interval of QEMU.
const PAUSE: Duration = Duration::from_millis(20);
/// Time limit for QEMU's virtual CPUs to begin; it clears the huge pages before.
const CPUS_BEGIN: Duration = Duration::from_secs(120);

/// Runs a role in a machine under KVM with a real ConnectX-3 of this host's
///
/// The card is taken from the host's driver, and given back when the machine ends. The kernel's
/// log goes to standard error.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The role
    #[arg(value_enum)]
    role: Choice,
    /// PCI address of the card, as lspci writes it
    bdf: Bdf,
    /// Checks, prints and changes nothing
    #[arg(long)]
    dry_run: bool,
    /// Name of the cluster
    #[arg(long, value_name = "NAME")]
    cluster: String,
    /// File with the cluster's key, 64 hexadecimal digits
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Main memory of the machine
    #[arg(long, value_name = "SIZE", default_value = "2G", value_parser = parse_size)]
    memory: u64,
    /// Size of the huge pages that it is made of: 2M or 1G
    #[arg(long, value_name = "SIZE", default_value = "2M", value_parser = parse_size)]
    huge_pages: u64,
    /// Virtual CPUs
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: usize,
    /// Cores of the host for the virtual CPUs, such as 2-3,8; else the last ones near the card
    #[arg(long, value_name = "LIST", value_parser = parse_cores)]
    cores: Option<Cores>,
    /// An option for the kernel command line, such as pollers=2; may be repeated
    #[arg(long, value_name = "OPTION[=VALUE]")]
    boot: Vec<String>,
    /// S's disk, a raw image with ext4
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Folder where sysfs is
    #[arg(long, value_name = "FOLDER", default_value = "/sys")]
    sysfs: PathBuf,
    /// P's program and its arguments
    #[arg(last = true)]
    program: Vec<OsString>,
}

/// Cores of the host, in the order of the virtual CPUs.
#[derive(Debug, Clone)]
struct Cores(Vec<usize>);

fn parse_cores(text: &str) -> Result<Cores, String> {
    let cores = host::cores(text).ok_or_else(|| format!("{text:?} is no list of cores"))?;
    Ok(Cores(cores))
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    Processor,
    Memory,
    Storage,
}

impl Choice {
    fn role(self) -> Role {
        match self {
            Self::Processor => Role::Processor,
            Self::Memory => Role::Memory,
            Self::Storage => Role::Storage,
        }
    }
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let command_line = self.check()?;
        let host = Host {
            sysfs: self.sysfs.clone(),
            dev: "/dev".into(),
            proc: "/proc".into(),
        };
        let role = self.role.role();
        let node = host.numa_node(self.bdf);
        let page = self.huge_pages >> 10;
        let mut findings = check::all(
            &host,
            &Needs {
                bdf: self.bdf,
                memory: self.memory,
                page,
                node,
            },
        );
        let fetchable = find("apt-get").is_some() && find("dpkg-deb").is_some();
        findings.push(check::of_qemu(
            find("qemu-system-x86_64").as_deref(),
            fetchable,
        ));
        let near = host.near_cores(self.bdf);
        let wanted = self.cores.as_ref().map(|cores| cores.0.as_slice());
        let cores = pin::choose(wanted, &near, self.cpus);
        findings.push(check::of_cores(&host, &cores));
        for finding in &findings {
            println!("{finding}");
        }
        let folder = if self.dry_run {
            std::env::temp_dir()
        } else {
            bed::make_folder()?
        };
        let image = build_image::path(role)?;
        let machine = Machine {
            role,
            bdf: self.bdf,
            memory: self.memory,
            page,
            node,
            cpus: self.cpus,
            image: &image,
            command_line: &command_line,
            log: &bed::log(&folder, role.name()),
        };
        let mut plain = Command::new("qemu-system-x86_64");
        self.add_to(&machine, &mut plain);
        println!("{}", machine::shown(&plain));
        let failed = findings.iter().filter(|finding| finding.fails()).count();
        let result = match failed {
            0 if self.dry_run => return Ok(()),
            0 => self.start(&host, &machine, &cores, &folder),
            _ => Err(anyhow::anyhow!(
                "{failed} conditions are missing; each line says what to do"
            )),
        };
        if !self.dry_run {
            let _ = fs::remove_dir_all(&folder);
        }
        result
    }

    /// Checks the options, and returns the kernel command line.
    fn check(&self) -> Result<String> {
        let role = self.role.role();
        ensure!(
            matches!(self.huge_pages >> 10, 2048 | 1_048_576),
            "--huge-pages is 2M or 1G, the sizes that x86-64 has"
        );
        ensure!(
            self.memory > 0 && self.memory.is_multiple_of(self.huge_pages),
            "--memory must be a multiple of --huge-pages"
        );
        ensure!(self.cpus > 0, "--cpus must be at least 1");
        if let Some(cores) = &self.cores {
            let count = cores.0.len();
            ensure!(
                count == self.cpus,
                "--cores has {count} cores for {} CPUs",
                self.cpus
            );
        }
        ensure!(
            (role == Role::Storage) == self.disk.is_some(),
            "--disk FILE is for storage, which needs it"
        );
        ensure!(
            (role == Role::Processor) != self.program.is_empty(),
            "a program after `--` is for processor, which needs one"
        );
        let key = fs::read_to_string(&self.key_file)
            .with_context(|| format!("can't read {}", self.key_file.display()))?;
        let key = key.trim();
        ensure!(
            key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{}: a key has 64 hexadecimal digits; `openssl rand -hex 32` makes one",
            self.key_file.display()
        );
        let mut line = CommandLine::default();
        line.option("cluster", &self.cluster);
        line.option("key", key);
        for option in &self.boot {
            let option = format!("{}:{option}", role.name()).parse::<BootOption>();
            option
                .map_err(anyhow::Error::msg)
                .context("--boot")?
                .add_to(&mut line);
        }
        line.finish()
    }

    /// Binds the card, runs the machine to its end, and gives the card back on every path.
    fn start(
        &self,
        host: &Host,
        machine: &Machine<'_>,
        cores: &[usize],
        folder: &Path,
    ) -> Result<()> {
        bed::need_launcher()?;
        let qemu = Qemu::obtain()?;
        build_image::build(machine.role)?;
        // From here on Ctrl-C ends the wait below instead of this program.
        bed::handle_signals()?;
        let bound = Bound::new(host, &Linux, self.bdf)?;
        // The machine ends within, before the card is given back.
        let result = self.run_machine(&qemu, host, machine, cores, folder);
        let given = bound.give_back();
        result.and(given)
    }

    fn run_machine(
        &self,
        qemu: &Qemu,
        host: &Host,
        machine: &Machine<'_>,
        cores: &[usize],
        folder: &Path,
    ) -> Result<()> {
        fs::write(machine.log, "")
            .with_context(|| format!("can't make {}", machine.log.display()))?;
        let mut command = qemu.command(&LAUNCHER);
        self.add_to(machine, &mut command);
        command.stdout(Stdio::null());
        let mut channel = None;
        if machine.role == Role::Processor {
            let new = Channel::new()?;
            command.stdin(new.qemus_end()?);
            channel = Some(new);
        }
        let mut follower = Follower::start(machine.log, io::stderr())?;
        let mut process = Process::start(machine.role.name(), command, folder)?;
        let console = channel.map(|channel| self.serve(channel)).transpose()?;
        let result = watch(&mut process, host, machine.cpus, cores);
        drop(process);
        follower.finish()?;
        result?;
        console.map_or(Ok(()), Server::finish)
    }

    /// Adds the machine with the devices of its role to QEMU's command.
    fn add_to(&self, machine: &Machine<'_>, command: &mut Command) {
        machine.add_to(command);
        match (machine.role, &self.disk) {
            (Role::Processor, _) => StreamsDevice::Virtio.add_to(command, Chipset::Q35),
            (Role::Storage, Some(disk)) => {
                Drive::existing(disk.clone()).add_to(command, Chipset::Q35)
            }
            _ => {}
        }
    }

    /// Serves P's console channel.
    fn serve(&self, channel: Channel) -> Result<Server> {
        let mut start = start::start(&self.program, &[], OsStr::from_bytes(b"/"), "");
        start.sources = start::sources(None);
        channel.serve(start, start::streams(None, None, None)?)
    }
}

/// Pins the virtual CPUs once they have begun, and waits for QEMU's end or Ctrl-C.
fn watch(process: &mut Process, host: &Host, cpus: usize, cores: &[usize]) -> Result<()> {
    let deadline = Instant::now() + CPUS_BEGIN;
    let mut pinned = cores.is_empty();
    while !INTERRUPTED.load(Ordering::Relaxed) {
        if let Some(status) = process.ended()? {
            return ended(process, status);
        }
        if !pinned {
            let threads = pin::threads(&host.proc, process.child().id());
            if threads.len() == cpus {
                pin::pin(&threads, cores)?;
                pinned = true;
            } else if Instant::now() > deadline {
                bail!(
                    "only {} of {cpus} virtual CPUs began within {CPUS_BEGIN:?}",
                    threads.len()
                );
            }
        }
        std::thread::sleep(PAUSE);
    }
    say("Interrupted; the card is given back");
    Ok(())
}

fn ended(process: &Process, status: ExitStatus) -> Result<()> {
    if NodeOutcome::from(status) == NodeOutcome::Well {
        return Ok(());
    }
    let said = tail(&process.stderr);
    bail!(
        "{}: {}; QEMU said:\n{said}",
        process.name,
        left::describe(status)
    )
}
