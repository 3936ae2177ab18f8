//! `linux`: Debian guests whose InfiniBand adapters are modelled ConnectX-3s on one fabric.
//!
//! * [`kernel`]: Debian's kernel and its modules. * [`initramfs`], [`cpio`], [`alternatives`]: the
//!   guests' files.
//! * [`guests`]: starts the guests and follows what they say. `init.sh` is what they run.

mod alternatives;
mod cpio;
mod guests;
mod initramfs;
mod kernel;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use self::guests::Guests;
use self::initramfs::Contents;
use self::kernel::Kernel;
use crate::bed::plugin::Plugin;
use crate::bed::{self, FAILED};
use crate::project;
use crate::qemu::Qemu;
use crate::run::Add;
use crate::run::drive::Drive;
use crate::tools::{parse_size, say, step};

/// The package of Debian's ordinary kernel is named `linux-image-` and this.
const KERNEL: &str = "amd64";
/// Modules of a guest with a disk that holds an ext4.
const DISK_MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "ext4", "crc32c_generic"];

/// Starts Debian guests in QEMU, their adapters on one modelled InfiniBand fabric, and runs a
/// command in each
///
/// Each node's output comes under its name. Without commands: a shell on node 0. Exit status: the
/// first command's that failed, by the order of the nodes; 125 if the run itself failed; 130 after
/// Ctrl-C.
#[derive(clap::Args)]
#[command(args_override_self = true)]
pub(crate) struct Args {
    /// Number of guests [default: one a command, at least 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    nodes: Option<u8>,
    /// More packages of Debian 12 for the guests, by name, with all that they depend on
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    packages: Vec<String>,
    /// The kernel: that of the package `linux-image-VERSION` of Debian 12, or of another release as
    /// `trixie/VERSION` or `trixie-backports/VERSION`
    #[arg(long, value_name = "VERSION", default_value = KERNEL)]
    kernel: String,
    /// More modules of the kernel for the guests, loaded before their commands
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    modules: Vec<String>,
    /// Puts a file or folder of the host into the guests, under /data/NAME if no guest path is
    /// given (repeatable)
    #[arg(long, value_name = "HOST[:GUEST]")]
    add: Vec<Add>,
    /// Gives node 0 the disk image FILE as /dev/vda, with the modules for it; a Unix socket is one
    /// of an NBD server
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Ports of each adapter
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    ports: u8,
    /// Manager of the subnet: the fabric itself, or opensm on node 0, whose log is /tmp/opensm.log
    #[arg(long, value_name = "WHO", value_enum, default_value = "fabric")]
    sm: Sm,
    /// Kind of each adapter: `pro`, `plain`, `blueflame`, `vectors=N` (repeatable)
    #[arg(long, value_name = "KIND")]
    adapter: Vec<String>,
    /// Rate of the fabric's links: qdr or fdr [default: a packet takes no time on them]
    #[arg(long, value_name = "RATE", value_parser = ["qdr", "fdr"])]
    rate: Option<String>,
    /// Time that a packet takes from port to port beside that, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    latency: Option<u64>,
    /// Packets of a thousand that the fabric loses
    #[arg(long, value_name = "N")]
    loss: Option<u16>,
    /// Main memory of each guest
    #[arg(long, value_name = "SIZE", default_value = "768M", value_parser = parse_size)]
    memory: u64,
    /// Cores of each guest
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    cpus: u32,
    /// Gives the guests an IOMMU, VT-d, and Debian's QEMU in /qemu, so that they can pass their
    /// adapters on to machines of their own
    #[arg(long)]
    iommu: bool,
    /// Lets programs of this machine reach a TCP port of node 0 at 127.0.0.1 (repeatable); node 0
    /// in turn reaches this machine at 10.0.2.2
    #[arg(long, value_name = "HOST:GUEST")]
    forward: Vec<Forward>,
    /// Uses adapters that a server has made already: FOLDER/node0.sock and so on
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["ports", "trace", "adapter", "rate", "latency", "loss"])]
    join: Option<PathBuf>,
    /// Records every command, doorbell, DMA and interrupt of the adapters in a file: a line each,
    /// its fields parted by tabs
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Loads a TCG plugin into a guest's QEMU, as node0:FILE (once for each)
    #[arg(long, value_name = "NODE:FILE[,ARGUMENTS]")]
    plugin: Vec<Plugin>,
    /// Adds words to the guests' kernel command lines
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
    /// Lets guests reboot: a node's command then runs again, with BOOT=2 and so on
    #[arg(long)]
    reboots: bool,
    /// Keeps the folder with the guests' kernel logs, and says where it is; a failed run keeps it
    /// always
    #[arg(long)]
    keep_logs: bool,
    /// Seconds that the guests may take to boot
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    boot_timeout: u64,
    /// Seconds that the commands may take [default: no limit]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// A command a node, for its shell
    #[arg(last = true, value_name = "COMMAND")]
    commands: Vec<String>,
}

/// Manager of the subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Sm {
    /// The fabric itself.
    Fabric,
    /// A program on node 0.
    Guest,
}

/// A TCP port of this machine that leads to one of node 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Forward {
    host: u16,
    guest: u16,
}

impl FromStr for Forward {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (host, guest) = text.split_once(':').context("ports are HOST:GUEST")?;
        let port = |text: &str| text.parse().with_context(|| format!("port {text:?}"));
        Ok(Self {
            host: port(host)?,
            guest: port(guest)?,
        })
    }
}

/// Gets and builds all that guests need, so that the first of many runs takes no longer than the
/// others.
pub(crate) fn prepare() -> Result<()> {
    Kernel::obtain(KERNEL)?;
    initramfs::prepare()
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
        bed::need_launcher()?;
        ensure!(
            self.memory >= 512 << 20,
            "--memory must be at least 512M: the guests' files lie in it too"
        );
        let nodes = self.nodes.map_or(self.commands.len().max(1), usize::from);
        ensure!(
            self.commands.len() <= nodes,
            "{} commands for {nodes} nodes",
            self.commands.len()
        );
        let folder = bed::make_folder()?;
        let result = self.run_in(&folder, nodes);
        // Only logs are worth keeping.
        let _ = fs::remove_file(folder.join(INITRAMFS));
        if matches!(result, Ok(code) if code != FAILED) && !self.keep_logs {
            let _ = fs::remove_dir_all(&folder);
        } else {
            say(&format!("The nodes' logs are in {}", folder.display()));
        }
        result
    }

    /// Returns the fabric server's options for its links.
    fn links(&self) -> Vec<String> {
        let rate = self
            .rate
            .iter()
            .flat_map(|rate| ["--rate".into(), rate.clone()]);
        let latency = self
            .latency
            .iter()
            .flat_map(|micros| ["--latency-us".into(), micros.to_string()]);
        let loss = self
            .loss
            .iter()
            .flat_map(|loss| ["--loss-per-mille".into(), loss.to_string()]);
        rate.chain(latency).chain(loss).collect()
    }

    fn run_in(&self, folder: &Path, nodes: usize) -> Result<u8> {
        let qemu = Qemu::obtain()?;
        let server = match self.join {
            Some(_) => None,
            None => Some(step(
                "Building the fabric server",
                project::build_hca_server,
            )?),
        };
        let kernel = Kernel::obtain(&self.kernel)?;
        let mut add = self.add.clone();
        if self.iommu {
            let qemu = Qemu::folder()?;
            add.push(format!("{}:/qemu", qemu.display()).parse()?);
        }
        let mut modules = self.modules.clone();
        if self.disk.is_some() {
            modules.extend(DISK_MODULES.map(str::to_owned));
        }
        let contents = Contents {
            packages: &self.packages,
            modules: &modules,
            add: &add,
            commands: &self.commands,
            nodes,
        };
        initramfs::write(&folder.join(INITRAMFS), &kernel, &contents)
            .context("the guests' files")?;
        bed::handle_signals()?;
        let guests = Guests {
            folder,
            nodes,
            join: self.join.as_deref(),
            disk: self.disk.clone().map(Drive::existing),
            forward: &self.forward,
            trace: self.trace.as_deref(),
            initramfs: &folder.join(INITRAMFS),
            kernel: &kernel.image,
            memory: self.memory,
            cpus: self.cpus,
            iommu: self.iommu,
            ports: self.ports,
            adapter: &self.adapter,
            links: self.links(),
            managed_by_guest: self.sm == Sm::Guest,
            console: self.commands.is_empty(),
            plugins: &self.plugin,
            append: &self.append,
            reboots: self.reboots,
            boot: Duration::from_secs(self.boot_timeout),
            limit: self.timeout.map(Duration::from_secs),
        };
        say(&format!(
            "Starting {nodes} guests with Linux {}",
            kernel.release
        ));
        guests.run(&qemu, server.as_deref())
    }
}

/// The guests' files in the folder of a run.
const INITRAMFS: &str = "initramfs";
