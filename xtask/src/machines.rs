//! `machines`: boots a node of FIT on machines of many kinds, and checks what its log says.
//!
//! A machine passes if its node sees all cores and memory and its adapter's port becomes active.
//! On a machine without an adapter the node must say so in one line and leave.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::bed::cmdline::CommandLine;
use crate::bed::firmware::Start;
use crate::bed::left::{self, NodeOutcome};
use crate::bed::machine::{Adapter, Chipset, Machine, Place};
use crate::bed::process::{Process, silent};
use crate::bed::{self, server, tail};
use crate::build_image::{Role, build};
use crate::nodes::cluster::Parts;
use crate::run::disk;
use crate::run::drive::{DiskDevice, Drive};

/// Poll interval of a node's log.
const PAUSE: Duration = Duration::from_millis(20);
/// Time limit of a boot, for a busy host.
const DEADLINE: Duration = Duration::from_secs(120);
/// The adapters that the fabric has; no machine has more.
const ADAPTERS: [&str; 2] = ["first", "second"];
/// Parts of the lines by which a node is judged.
const ACTIVE: &str = "port 1 is active";
const DISK: &str = "the disk is nvme ";
const NO_CARD: &str = "no ConnectX-3 (PCI 15b3:1003 or 15b3:1007) in this machine";
/// Memory that a node may keep for itself or leave to firmware: MiB, and one part in so many.
const OWN_MIB: u64 = 48;
const OWN_PART: u64 = 32;

/// Free room on the disk of a machine of S's.
const DISK_ROOM: u64 = 16 << 20;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Boots a node of FIT on machines of many kinds, and checks that it works on each
///
/// A line a machine: its name, what it did, cores and free memory that the node saw, and the
/// seconds until its adapter's port was active, by the node's clock. Exit status 1 if a machine
/// failed.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Boots all machines instead of a few
    #[arg(long)]
    all: bool,
    /// Boots only the machines whose name holds this
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

/// One machine.
struct Case {
    name: &'static str,
    /// It is one of the few.
    few: bool,
    chipset: Chipset,
    cpu: &'static str,
    /// Cores, as QEMU's `-smp` takes them.
    cores: &'static str,
    count: u64,
    memory: u64,
    adapters: &'static [Place],
    /// It is a machine of S's with a disk, instead of one of a node of FIT.
    disk: Option<Disk>,
}

/// S's disk: an NVMe controller.
#[derive(Clone, Copy)]
struct Disk {
    device: DiskDevice,
    /// A virtio disk without a file system comes first on the bus; S is told the other's serial
    /// number.
    is_second: bool,
}

const NVME: Option<Disk> = Some(Disk {
    device: DiskDevice::Nvme,
    is_second: false,
});

/// A machine with one core, 128 MiB and one adapter.
const PLAIN: Case = Case {
    name: "q35",
    few: false,
    chipset: Chipset::Q35,
    cpu: "max",
    cores: "1",
    count: 1,
    memory: 128 * MIB,
    adapters: &[Place::Root(8)],
    disk: None,
};

const PC: Case = Case {
    name: "i440fx",
    chipset: Chipset::Pc,
    ..PLAIN
};

const fn memory(name: &'static str, memory: u64) -> Case {
    Case {
        name,
        memory,
        ..PLAIN
    }
}

const fn cores(name: &'static str, cores: &'static str, count: u64) -> Case {
    Case {
        name,
        cores,
        count,
        memory: 512 * MIB,
        ..PLAIN
    }
}

const fn cpu(name: &'static str, cpu: &'static str) -> Case {
    Case {
        name,
        cpu,
        cores: "2",
        count: 2,
        ..PLAIN
    }
}

const fn placed(name: &'static str, chipset: Chipset, adapters: &'static [Place]) -> Case {
    Case {
        name,
        chipset,
        adapters,
        ..PLAIN
    }
}

/// Name of the machine whose adapter has its doorbells above 4 GB.
const HIGH: &str = "doorbells above 4 GB";

const fn few(case: Case) -> Case {
    Case { few: true, ..case }
}

const CASES: &[Case] = &[
    PLAIN,
    PC,
    memory("1 GiB", GIB),
    memory("4 GiB, around the hole below it", 4 * GIB),
    few(memory("64 GiB", 64 * GIB)),
    memory("512 GiB", 512 * GIB),
    Case {
        name: "i440fx, 8 GiB",
        memory: 8 * GIB,
        ..PC
    },
    few(Case {
        name: "S with an NVMe disk",
        disk: NVME,
        ..PLAIN
    }),
    Case {
        name: "i440fx, S with an NVMe disk",
        disk: NVME,
        ..PC
    },
    Case {
        name: "S with an NVMe disk of blocks of 4 KB",
        disk: Some(Disk {
            device: DiskDevice::Nvme4k,
            is_second: false,
        }),
        ..PLAIN
    },
    few(Case {
        name: "S with two disks, the second by its serial number",
        disk: Some(Disk {
            device: DiskDevice::Nvme,
            is_second: true,
        }),
        ..PLAIN
    }),
    cores("2 cores", "2", 2),
    cores("4 cores", "4", 4),
    cores("8 cores", "8", 8),
    cores("16 cores", "16", 16),
    cores("24 cores", "24", 24),
    // APIC ids 0, 1, 2, 4, 5, 6.
    few(cores(
        "6 cores with gaps between APIC ids",
        "6,sockets=2,cores=3",
        6,
    )),
    Case {
        chipset: Chipset::Pc,
        ..cores("i440fx, 16 cores", "16,sockets=4,cores=2,threads=2", 16)
    },
    few(cpu("SandyBridge", "SandyBridge")),
    cpu("SandyBridge without x2APIC", "SandyBridge,-x2apic"),
    cpu("IvyBridge", "IvyBridge"),
    cpu("Haswell", "Haswell"),
    cpu("Broadwell", "Broadwell"),
    cpu("Skylake-Server", "Skylake-Server"),
    cpu("Icelake-Server", "Icelake-Server"),
    cpu("EPYC", "EPYC"),
    few(placed("no adapter", Chipset::Q35, &[])),
    placed("i440fx, no adapter", Chipset::Pc, &[]),
    placed(
        "two adapters",
        Chipset::Q35,
        &[Place::Root(4), Place::Root(0x1d)],
    ),
    placed("another slot", Chipset::Q35, &[Place::Root(0x1d)]),
    placed("i440fx, another slot", Chipset::Pc, &[Place::Root(0x1d)]),
    placed("behind a root port", Chipset::Q35, &[Place::Port]),
    few(placed("behind a switch", Chipset::Q35, &[Place::Bridges])),
    few(placed(
        "i440fx, behind two bridges",
        Chipset::Pc,
        &[Place::Bridges],
    )),
    placed("on a second root bus", Chipset::Q35, &[Place::SecondRoot]),
    few(placed(HIGH, Chipset::Q35, &[Place::High])),
    placed(
        "i440fx, on a second root bus",
        Chipset::Pc,
        &[Place::SecondRoot],
    ),
];

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let parts = Parts::obtain()?;
        bed::check_folder()?;
        let wanted = |case: &&Case| match &self.only {
            Some(part) => case.name.contains(part.as_str()),
            None => self.all || case.few,
        };
        let (mut passed, mut failed) = (0, 0);
        for case in CASES.iter().filter(wanted) {
            let folder = bed::make_folder()?;
            match case.run(&parts, &folder) {
                Ok(told) => {
                    passed += 1;
                    println!("{}\tpassed\t{told}", case.name);
                    let _ = fs::remove_dir_all(&folder);
                }
                Err(error) => {
                    failed += 1;
                    println!("{}\tFAILED\t{error:#}", case.name);
                    println!("\tits log is in {}", folder.display());
                }
            }
        }
        println!("{passed} passed, {failed} failed");
        ensure!(passed + failed > 0, "no machine has such a name");
        ensure!(failed == 0, "{failed} of the machines above failed");
        Ok(())
    }
}

impl Case {
    /// Boots it and returns what it did.
    fn run(&self, parts: &Parts, folder: &Path) -> Result<String> {
        let (_fabric, _) = server::start(&parts.server, folder, &ADAPTERS, "", &[])?;
        let mut line = CommandLine::default();
        line.option("cluster", "machines");
        line.option("key", bed::random_key()?);
        if self.disk.is_some_and(|disk| disk.is_second) {
            line.option("disk", "serial:tessera");
        }
        let command_line = line.finish()?;
        let sockets: Vec<PathBuf> = ADAPTERS
            .iter()
            .map(|name| bed::socket(folder, name))
            .collect();
        let adapters: Vec<Adapter<'_>> = sockets
            .iter()
            .zip(self.adapters)
            .map(|(socket, &place)| Adapter { socket, place })
            .collect();
        let log = bed::log(folder, "node");
        let storage = self.disk.map(|_| build(Role::Storage)).transpose()?;
        let machine = Machine {
            start: Start::Kernel {
                kernel: storage.as_ref().unwrap_or(&parts.image),
                command_line: &command_line,
            },
            chipset: self.chipset,
            cpu_model: self.cpu,
            memory: self.memory,
            cpus: self.cores,
            adapters: &adapters,
            iommu: false,
            reboots: false,
            plugin: None,
        };
        let mut command = machine.image_command(&parts.qemu, &log);
        if let Some(disk) = self.disk {
            disk.add_to(&mut command, self.chipset, folder)?;
        }
        let command = silent(command);
        let mut node = Process::start("node", command, folder)?;
        let (text, left) = watch(&mut node, &log)?;
        self.judge(&text, left).with_context(|| {
            let said = tail(&node.stderr);
            format!("its log ends:\n{}\nQEMU said:\n{said}", tail(&log))
        })
    }

    /// Checks a log that is complete up to the line that decides.
    fn judge(&self, log: &str, left: Option<ExitStatus>) -> Result<String> {
        let (cores, free) = machine_seen(log).context("it did not say what it has")?;
        ensure!(cores == self.count, "it uses {cores} cores");
        let memory = self.memory / MIB;
        let least = memory - memory / OWN_PART - OWN_MIB;
        ensure!(
            (least..=memory).contains(&free),
            "it has {free} MiB free of {memory}"
        );
        ensure!(
            self.name != HIGH || doorbells_of(log).is_some_and(|at| at >> 32 != 0),
            "its doorbells are not above 4 GB"
        );
        ensure!(
            self.disk.is_none() || log.contains(DISK),
            "it did not find its disk"
        );
        let errors = log.lines().filter(|line| line.contains("] ERROR ")).count();
        let seen = format!("{cores}\t{free} MiB");
        match left {
            None => {
                ensure!(!self.adapters.is_empty(), "it found an adapter");
                ensure!(errors == 0, "it came up, and reported errors");
                let at = log.lines().find(|line| line.contains(ACTIVE));
                let at = at.and_then(time_of).context("a line without a time")?;
                Ok(format!("{seen}\t{at} s"))
            }
            Some(status) => {
                let how = left::describe(status);
                ensure!(NodeOutcome::from(status) == NodeOutcome::Error, "{how}");
                ensure!(self.adapters.is_empty(), "{how}");
                ensure!(
                    errors == 1 && log.contains(NO_CARD),
                    "not one line says that there is no adapter"
                );
                Ok(format!("{seen}\tno adapter, {how}"))
            }
        }
    }
}

impl Disk {
    /// Makes a small disk with a file system and gives it to QEMU.
    fn add_to(self, command: &mut Command, chipset: Chipset, folder: &Path) -> Result<()> {
        let (content, image) = (folder.join("content"), folder.join("disk"));
        fs::create_dir(&content)?;
        disk::make(&content, &image, DISK_ROOM)?;
        if self.is_second {
            let first = folder.join("first");
            fs::File::create(&first)?.set_len(MIB)?;
            let file = serde_json::json!({
                "driver": "raw", "node-name": "first",
                "file": { "driver": "file", "filename": first.display().to_string() },
            });
            command.arg("-blockdev").arg(file.to_string());
            command.args([
                "-device",
                &format!(
                    "virtio-blk-pci,drive=first,bus={},addr=0xf,serial=first",
                    chipset.bus()
                ),
            ]);
        }
        Drive::existing(image)
            .on(self.device)
            .add_to(command, chipset);
        Ok(())
    }
}

/// Waits until a node's port is active or the node has left; returns its log, and its status if it
/// has left.
fn watch(node: &mut Process, log: &Path) -> Result<(String, Option<ExitStatus>)> {
    let end = Instant::now() + DEADLINE;
    loop {
        // Asked before the log is read, which is whole then.
        let left = node.ended()?;
        let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
        let active = text.lines().any(|line| line.contains(ACTIVE));
        if active || left.is_some() {
            return Ok((text, left));
        }
        if Instant::now() > end {
            bail!(
                "no port was active within {DEADLINE:?}; its log ends:\n{}",
                tail(log)
            );
        }
        std::thread::sleep(PAUSE);
    }
}

/// Returns cores and free MiB of libos's line `N cores, N MiB free`.
fn machine_seen(log: &str) -> Option<(u64, u64)> {
    let line = log
        .lines()
        .find_map(|line| line.strip_suffix(" MiB free"))?;
    let (cores, free) = line.rsplit_once(" cores, ")?;
    Some((cores.rsplit(' ').next()?.parse().ok()?, free.parse().ok()?))
}

/// Returns the address of BAR 2 of libos's line of it.
fn doorbells_of(log: &str) -> Option<u64> {
    let (_, rest) = log.split_once("BAR 2 at 0x")?;
    let end = rest.find(|byte: char| !byte.is_ascii_hexdigit())?;
    u64::from_str_radix(&rest[..end], 16).ok()
}

/// Returns the time of a line, `[   seconds]`.
fn time_of(line: &str) -> Option<&str> {
    let (time, _) = line.strip_prefix('[')?.split_once(']')?;
    Some(time.trim())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    const LOG: &str = "[    0.010000] INFO  libos::boot::start: 1 cores, 110 MiB free\n\
                       [    1.204000] INFO  mlx4::event: port 1 is active\n";

    #[test]
    fn a_log_is_judged_by_the_machine() {
        assert_eq!(machine_seen(LOG), Some((1, 110)));
        assert_eq!(
            PLAIN.judge(LOG, None).expect("fine"),
            "1\t110 MiB\t1.204000 s"
        );
        let fails = |log: &str, left| PLAIN.judge(log, left).expect_err("a fault");
        fails(&LOG.replace("1 cores", "2 cores"), None);
        fails(&LOG.replace("110 MiB", "60 MiB"), None);
        fails(&LOG.replace("110 MiB", "160 MiB"), None);
        fails(&format!("{LOG}[    1.300000] ERROR mlx4: no\n"), None);
        fails(LOG, Some(ExitStatus::from_raw(3 << 8)));
    }

    #[test]
    fn doorbells_have_to_be_where_the_machine_has_them() {
        let high = placed(HIGH, Chipset::Q35, &[Place::High]);
        let at = |place| format!("[ 0.1] INFO  x: 01:00.0: BAR 2 at {place}, 8192 KiB\n{LOG}");
        assert!(high.judge(&at("0xc000000000"), None).is_ok());
        high.judge(&at("0xfe000000"), None).expect_err("below");
        high.judge(LOG, None).expect_err("nothing said");
    }

    #[test]
    fn a_machine_without_an_adapter_says_so_and_leaves() {
        let bare = placed("bare", Chipset::Q35, &[]);
        let log = LOG.replace(
            "INFO  mlx4::event: port 1 is active",
            &format!("ERROR node: {NO_CARD}"),
        );
        let error = Some(ExitStatus::from_raw(5 << 8));
        assert!(bare.judge(&log, error).is_ok());
        bare.judge(&log, Some(ExitStatus::from_raw(1 << 8)))
            .expect_err("it did not fail");
        bare.judge(&(log.clone() + "[    2.000000] ERROR x: y\n"), error)
            .expect_err("two errors");
        PLAIN.judge(&log, error).expect_err("it has an adapter");
    }
}
