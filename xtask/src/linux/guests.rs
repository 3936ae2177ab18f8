//! Running guests: from their start until all commands have ended.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Forward;
use crate::bed::firmware::Start;
use crate::bed::labelled::Labelled;
use crate::bed::machine::{Adapter, Chipset, Machine, Place, file_chardev};
use crate::bed::plugin::{self, Plugin};
use crate::bed::process::{Process, silent};
use crate::bed::streams::Follower;
use crate::bed::{self, INTERRUPTED, INTERRUPTED_STATUS, OUTPUT_CLOSED_STATUS, server};
use crate::qemu::Qemu;
use crate::run::drive::Drive;
use crate::tools::say;

/// Poll interval of the guests.
const PAUSE: Duration = Duration::from_millis(20);
/// Time that node 0's command runs before the others' start.
const LEAD: Duration = Duration::from_millis(300);
/// A guest may stand still for long where the host is busy. Its kernel would take that for a fault
/// of its own and complain.
const BUSY_HOST: &str = "nowatchdog rcupdate.rcu_cpu_stall_suppress=1";
/// Training time of the links: the least that real ones need. Packets that come while Linux still
/// opens the port are errors to its kernel.
const TRAINING: [&str; 2] = ["--training-ms", "300"];

/// Guests to be run.
pub(crate) struct Guests<'a> {
    /// The folder of the run.
    pub(crate) folder: &'a Path,
    /// Number of guests.
    pub(crate) nodes: usize,
    /// A folder with their adapters' sockets, of a server that runs already.
    pub(crate) join: Option<&'a Path>,
    /// Disk of node 0.
    pub(crate) disk: Option<Drive>,
    /// TCP ports of node 0, reached by ports of this machine.
    pub(crate) forward: &'a [Forward],
    /// File for the trace of the adapters.
    pub(crate) trace: Option<&'a Path>,
    /// Their files.
    pub(crate) initramfs: &'a Path,
    /// Their kernel.
    pub(crate) kernel: &'a Path,
    /// Each one's memory in bytes.
    pub(crate) memory: u64,
    /// Each one's cores.
    pub(crate) cpus: u32,
    /// Each has an IOMMU, which its kernel drives.
    pub(crate) iommu: bool,
    /// Each adapter's ports.
    pub(crate) ports: u8,
    /// Kind of the adapters, in the fabric server's words.
    pub(crate) adapter: &'a [String],
    /// The fabric server's options for its links.
    pub(crate) links: Vec<String>,
    /// Node 0 runs the subnet manager.
    pub(crate) managed_by_guest: bool,
    /// Node 0 has a shell on our standard input.
    pub(crate) console: bool,
    /// Plugins for their TCG.
    pub(crate) plugins: &'a [Plugin],
    /// More words for their kernels' command lines.
    pub(crate) append: &'a str,
    /// The guests may reboot.
    pub(crate) reboots: bool,
    /// Time limit of the guests' boot.
    pub(crate) boot: Duration,
    /// Time limit of the commands; `None` for no limit.
    pub(crate) limit: Option<Duration>,
}

/// A running guest.
struct Guest {
    name: String,
    process: Process,
    /// File with the guest's messages to us.
    said: PathBuf,
    /// Pipe for our messages to the guest.
    tell: File,
    /// Its console's input, open for as long as QEMU, which otherwise would wait for a writer.
    typed: File,
    /// Times that it was told to begin: once a boot.
    begun: usize,
    /// It asked to be killed, and was.
    lost: bool,
    /// Requests to plug or pull a cable that were carried out.
    cables: usize,
}

impl Guests<'_> {
    /// Runs them on a fabric that this server serves, or on one that is there; gives the first
    /// failed command's exit status, or 0.
    pub(crate) fn run(&self, qemu: &Qemu, server: Option<&Path>) -> Result<u8> {
        let names: Vec<String> = (0..self.nodes).map(|node| format!("node{node}")).collect();
        let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut server = server
            .map(|program| self.start_server(program, &nodes))
            .transpose()?;
        let mut output = Vec::new();
        let mut guests = Vec::new();
        for (node, name) in nodes.iter().enumerate() {
            let (guest, follower) = self.start(qemu, node, name)?;
            guests.push(guest);
            output.push(follower);
        }
        let result = self.watch(&mut guests, server.as_mut(), &output);
        for guest in &mut guests {
            guest.process.ask_to_end();
        }
        drop(guests);
        let flushed = output.iter_mut().try_for_each(Follower::finish);
        let code = result?;
        if code != OUTPUT_CLOSED_STATUS {
            flushed?;
        }
        Ok(code)
    }

    fn start_server(&self, server: &Path, nodes: &[&str]) -> Result<Process> {
        let mut adapter = format!(",ports={}", self.ports);
        for kind in self.adapter {
            adapter += &format!(",{kind}");
        }
        let mut options: Vec<&OsStr> = TRAINING.iter().map(OsStr::new).collect();
        options.extend(self.links.iter().map(OsStr::new));
        if self.managed_by_guest {
            options.extend(["--sm", "node"].map(OsStr::new));
        }
        if let Some(trace) = self.trace {
            options.extend([OsStr::new("--trace"), trace.as_os_str()]);
        }
        let (server, _) = server::start(server, self.folder, nodes, &adapter, &options)?;
        Ok(server)
    }

    fn start(&self, qemu: &Qemu, node: usize, name: &str) -> Result<(Guest, Follower)> {
        let file = |kind: &str| self.folder.join(format!("{name}.{kind}"));
        let (stdout, said) = (file("out"), file("said"));
        for path in [&stdout, &said] {
            File::create_new(path).with_context(|| format!("can't make {}", path.display()))?;
        }
        let tell = bed::make_pipe(&file("tell"))?;
        let typed = bed::make_pipe(&file("in"))?;
        let outside = node == 0 && !self.forward.is_empty();
        let manages = node == 0 && self.managed_by_guest;
        let flag = u8::from;
        let iommu = if self.iommu { "intel_iommu=on" } else { "" };
        let command_line = format!(
            "console=ttyS0 panic=-1 {BUSY_HOST} {iommu} node={node} outside={} manages={} {}",
            flag(outside),
            flag(manages),
            self.append
        );
        let machine = Machine {
            start: Start::Kernel {
                kernel: self.kernel,
                command_line: &command_line,
            },
            chipset: Chipset::Q35,
            cpu_model: "max",
            memory: self.memory,
            cpus: &self.cpus.to_string(),
            adapters: &[Adapter {
                socket: &bed::socket(self.join.unwrap_or(self.folder), name),
                place: Place::Port,
            }],
            iommu: self.iommu,
            reboots: self.reboots,
            plugin: plugin::of_node(self.plugins, name),
        };
        let mut command = machine.command(qemu);
        command.arg("-initrd").arg(self.initramfs);
        file_chardev(&mut command, "log", &bed::log(self.folder, name), None);
        file_chardev(&mut command, "out", &stdout, Some(&file("in")));
        file_chardev(&mut command, "said", &said, Some(&file("tell")));
        for port in ["log", "out", "said"] {
            command.args(["-serial", &format!("chardev:{port}")]);
        }
        self.network(&mut command, node);
        if outside {
            self.outside(&mut command);
        }
        if let Some(disk) = self.disk.as_ref().filter(|_| node == 0) {
            disk.add_to(&mut command, Chipset::Q35);
        }
        let follower = if self.console {
            if node == 0 {
                type_into(
                    typed
                        .try_clone()
                        .context("can't share the pipe for standard input")?,
                );
            }
            Follower::start(&stdout, io::stdout())?
        } else {
            Follower::start(&stdout, Labelled::new(name, io::stdout()))?
        };
        let guest = Guest {
            name: name.into(),
            process: Process::start(name, silent(command), self.folder)?,
            said,
            tell,
            typed,
            begun: 0,
            lost: false,
            cables: 0,
        };
        Ok((guest, follower))
    }

    /// Adds an Ethernet for the tools' traffic beside the fabric: node 0 has a hub, the others a
    /// cable to it.
    fn network(&self, command: &mut Command, node: usize) {
        if self.nodes < 2 {
            return;
        }
        let cable = |other: usize| {
            let path = self.folder.join(format!("ethernet{other}"));
            path.display().to_string().replace(',', ",,")
        };
        if node == 0 {
            for other in 1..self.nodes {
                let stream = format!(
                    "stream,id=cable{other},server=on,addr.type=unix,addr.path={}",
                    cable(other)
                );
                let port = format!("hubport,id=port{other},hubid=0,netdev=cable{other}");
                command.args(["-netdev", &stream, "-netdev", &port]);
            }
            command.args(["-netdev", "hubport,id=net,hubid=0"]);
        } else {
            let stream = format!(
                "stream,id=net,server=off,reconnect-ms=100,addr.type=unix,addr.path={}",
                cable(node)
            );
            command.args(["-netdev", &stream]);
        }
        let mac = format!("52:54:00:00:00:{:02x}", node + 1);
        command.args([
            "-device",
            &format!("virtio-net-pci,netdev=net,mac={mac},addr=0x9,disable-legacy=on,romfile="),
        ]);
    }

    /// Adds a network that reaches this machine, and that this machine reaches by the forwarded
    /// ports.
    fn outside(&self, command: &mut Command) {
        let mut netdev = "user,id=outside".to_owned();
        for Forward { host, guest } in self.forward {
            netdev += &format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}");
        }
        command.args(["-netdev", &netdev, "-device"]);
        command
            .arg("virtio-net-pci,netdev=outside,mac=52:54:00:00:01:00,addr=0xa,disable-legacy=on,romfile=");
    }

    fn watch(
        &self,
        guests: &mut [Guest],
        mut server: Option<&mut Process>,
        output: &[Follower],
    ) -> Result<u8> {
        let started = Instant::now();
        let mut phase = Phase::Boot;
        loop {
            if INTERRUPTED.load(Ordering::Relaxed) {
                return Ok(INTERRUPTED_STATUS);
            }
            if output.iter().any(Follower::has_failed) {
                return Ok(OUTPUT_CLOSED_STATUS);
            }
            if let Some(server) = &mut server
                && let Some(status) = server.ended()?
            {
                bail!(
                    "the fabric server ended with {status}; it said:\n{}",
                    bed::tail(&server.stderr)
                );
            }
            for guest in guests.iter_mut() {
                self.alive(guest)?;
                guest.lose_power_if_it_wants()?;
                guest.pass_on_cables(server.as_deref_mut())?;
            }
            phase = match phase {
                Phase::Boot => {
                    if let Some(late) = guests.iter().find(|guest| guest.boots() == 0) {
                        if started.elapsed() > self.boot {
                            let log = bed::tail(&bed::log(self.folder, &late.name));
                            bail!(
                                "{}: not up within {:?}; its log ends:\n{log}",
                                late.name,
                                self.boot
                            );
                        }
                        Phase::Boot
                    } else {
                        say(&format!(
                            "Up after {:.1} s",
                            started.elapsed().as_secs_f32()
                        ));
                        guests[0].go()?;
                        if self.console {
                            // No earlier: a terminal that is being set up keeps no lines.
                            let typed = guests[0].typed.try_clone();
                            type_into(typed.context("can't share the pipe for standard input")?);
                        }
                        Phase::First(Instant::now())
                    }
                }
                Phase::First(since) if since.elapsed() < LEAD => Phase::First(since),
                Phase::First(since) => {
                    guests[1..].iter_mut().try_for_each(Guest::go)?;
                    Phase::All(since)
                }
                Phase::All(since) => {
                    guests.iter_mut().try_for_each(Guest::go_on)?;
                    let codes: Vec<_> = guests.iter().map(Guest::exit_code).collect();
                    if codes.iter().all(Option::is_some) || self.console && codes[0].is_some() {
                        return Ok(codes
                            .into_iter()
                            .flatten()
                            .find(|&code| code != 0)
                            .unwrap_or(0));
                    }
                    if let Some(limit) = self.limit.filter(|&limit| since.elapsed() > limit) {
                        let running: Vec<_> = guests
                            .iter()
                            .filter(|guest| guest.exit_code().is_none())
                            .map(|guest| guest.name.as_str())
                            .collect();
                        bail!(
                            "the commands of {} did not end within {limit:?}",
                            running.join(", ")
                        );
                    }
                    Phase::All(since)
                }
            };
            std::thread::sleep(PAUSE);
        }
    }

    fn alive(&self, guest: &mut Guest) -> Result<()> {
        if guest.lost {
            return Ok(());
        }
        let Some(status) = guest.process.ended()? else {
            return Ok(());
        };
        let log = bed::tail(&bed::log(self.folder, &guest.name));
        let qemu = bed::tail(&guest.process.stderr);
        bail!(
            "{}: its QEMU ended with {status}; its log ends:\n{log}\n{qemu}",
            guest.name
        )
    }
}

/// Phase of the run.
enum Phase {
    Boot,
    /// Node 0 has been told to begin.
    First(Instant),
    All(Instant),
}

impl Guest {
    fn lines(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.said).unwrap_or_default()).into_owned()
    }

    fn said(&self, word: &str) -> usize {
        self.lines().lines().filter(|&line| line == word).count()
    }

    /// Returns the number of boots so far.
    fn boots(&self) -> usize {
        self.said("up")
    }

    fn go(&mut self) -> Result<()> {
        let name = &self.name;
        self.begun += 1;
        writeln!(self.tell, "{}", self.begun).with_context(|| format!("can't tell {name} to begin"))
    }

    /// Tells it to begin again if it has booted again.
    fn go_on(&mut self) -> Result<()> {
        if self.boots() > self.begun {
            self.go()
        } else {
            Ok(())
        }
    }

    fn lose_power_if_it_wants(&mut self) -> Result<()> {
        if !self.lost && self.said("lose power") > 0 {
            self.process.kill()?;
            self.lost = true;
        }
        Ok(())
    }

    /// Tells the fabric server which cables the guest wants to be plugged or pulled since last
    /// time.
    fn pass_on_cables(&mut self, server: Option<&mut Process>) -> Result<()> {
        let text = self.lines();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let wanted = whole.lines().filter_map(|line| line.strip_prefix("cable "));
        let new: Vec<&str> = wanted.skip(self.cables).collect();
        let Some(server) = server.filter(|_| !new.is_empty()) else {
            return Ok(());
        };
        self.cables += new.len();
        let mut pipe = server
            .child()
            .stdin
            .as_ref()
            .context("the fabric server takes no input")?;
        for cable in new {
            writeln!(pipe, "cable {} {cable}", self.name)
                .context("can't tell the fabric server of a cable")?;
        }
        Ok(())
    }

    /// Returns the command's exit status; `None` while it runs. A guest that asked for the loss of
    /// its power has status 0.
    fn exit_code(&self) -> Option<u8> {
        if self.lost {
            return Some(0);
        }
        // Its last line may not be whole yet.
        let text = self.lines();
        let (whole, _) = text.rsplit_once('\n')?;
        whole
            .lines()
            .find_map(|line| line.strip_prefix("exit ")?.parse().ok())
    }
}

/// Sends our standard input to a guest. The thread ends with the process at the latest.
fn type_into(mut pipe: File) {
    std::thread::spawn(move || {
        if let Err(error) =
            io::copy(&mut io::stdin(), &mut pipe).and_then(|_| pipe.write_all(b"\x04"))
        {
            eprintln!("tessera: standard input is lost: {error}");
        }
    });
}
