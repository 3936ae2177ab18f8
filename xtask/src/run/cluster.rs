//! A running cluster: the fabric's server and three VMs, from their start to the program's end.

use std::fs;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use super::report::Report;
use super::vm::Vm;
use crate::bed::left::{self, NodeOutcome};
use crate::bed::process::{Process, silent};
use crate::bed::{INTERRUPTED, log, tail};
use crate::build_image::Role;
use crate::qemu::Qemu;

/// Poll interval of the nodes; a node that dies is noticed within this.
const PAUSE: Duration = Duration::from_millis(10);
/// Start of libos's line in the log once the loader has handed over (`libos/src/boot/start.rs`).
const KERNEL_BEGUN: &str = "libos::boot::start: started by ";
/// End of a run, other than by an error.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The program ended.
    Program,
    /// We got Ctrl-C or SIGTERM.
    Interrupted,
    /// The program ended, but not all of its output could be written.
    Unwritten,
}

/// The limits of a run.
pub(crate) struct Limits {
    /// Time limit from the VMs' start until P starts the program.
    pub(crate) boot: Duration,
    /// Time limit of the program, from its start; `None` for no limit.
    pub(crate) program: Option<Duration>,
}

/// Processes of a run. Dropping it ends them all.
pub(crate) struct Cluster<'a> {
    folder: &'a Path,
    nodes: Vec<(Role, Process)>,
    /// The fabric's, unless it is a real one.
    server: Option<Process>,
    started: Instant,
}

impl<'a> Cluster<'a> {
    /// Starts the VMs in the order given. `console` is the end of the console channel that P's QEMU
    /// gets.
    pub(crate) fn start(
        qemu: &Qemu,
        vms: &[Vm<'_>],
        server: Option<Process>,
        folder: &'a Path,
        console: Stdio,
    ) -> Result<Self> {
        let mut cluster = Self {
            folder,
            nodes: Vec::new(),
            server,
            started: Instant::now(),
        };
        let mut console = Some(console);
        for vm in vms {
            let mut command = silent(vm.command(qemu)?);
            if vm.role == Role::Processor
                && let Some(end) = console.take()
            {
                command.stdin(end);
            }
            cluster
                .nodes
                .push((vm.role, Process::start(vm.role.name(), command, folder)?));
        }
        Ok(cluster)
    }

    /// Waits until P's firmware has handed over to its kernel.
    ///
    /// Until then nothing may lie on the console channel: OVMF has a driver for the channel's
    /// device, and bytes that came while it had the device never reached P.
    ///
    /// # Errors
    /// If a node fails, or the kernel has not begun in time.
    pub(crate) fn wait_for_kernel(&mut self, limit: Duration) -> Result<()> {
        let begun = |log: &str| log.lines().any(|line| line.contains(KERNEL_BEGUN));
        while !begun(&self.log(Role::Processor)) && !INTERRUPTED.load(Ordering::Relaxed) {
            if self.processor_ended()? {
                break;
            }
            self.others_alive()?;
            if self.started.elapsed() > limit {
                let log = tail(&log(self.folder, Role::Processor.name()));
                bail!(
                    "processor: its firmware started no kernel within {limit:?}; its log ends:\n{log}"
                );
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Waits until the program ends, or something else ends the run. Calls `look` now and then, and
    /// tells it whether the program runs.
    ///
    /// # Errors
    /// Names the node that failed or did not come up in time, with the end of its log.
    pub(crate) fn watch(
        &mut self,
        limits: &Limits,
        mut look: impl FnMut(bool) -> Result<()>,
    ) -> Result<End> {
        let mut running_since = None;
        loop {
            if INTERRUPTED.load(Ordering::Relaxed) {
                return Ok(End::Interrupted);
            }
            if self.processor_ended()? {
                return Ok(End::Program);
            }
            self.others_alive()?;
            look(running_since.is_some())?;
            match running_since {
                None if self
                    .log(Role::Processor)
                    .lines()
                    .any(|line| line.starts_with("report\tready")) =>
                {
                    running_since = Some(Instant::now());
                }
                None if self.started.elapsed() > limits.boot => {
                    let log = tail(&log(self.folder, Role::Processor.name()));
                    bail!(
                        "processor: started no program within {:?}; its log ends:\n{log}",
                        limits.boot
                    );
                }
                Some(since) if limits.program.is_some_and(|limit| since.elapsed() > limit) => {
                    bail!(
                        "processor: the program did not end within {:?}",
                        limits.program.unwrap_or_default()
                    );
                }
                _ => {}
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Returns the machines' processes.
    pub(crate) fn machines(&mut self) -> Vec<(Role, u32)> {
        let nodes = self.nodes.iter_mut();
        nodes
            .map(|(role, process)| (*role, process.child().id()))
            .collect()
    }

    /// Returns P's report.
    pub(crate) fn report(&self) -> Report {
        Report::parse(&self.log(Role::Processor))
    }

    /// Ends all processes, the VMs at the same time.
    pub(crate) fn stop(mut self) {
        for (_, process) in &mut self.nodes {
            process.ask_to_end();
        }
    }

    fn processor_ended(&mut self) -> Result<bool> {
        let folder = self.folder;
        for (role, process) in self
            .nodes
            .iter_mut()
            .filter(|(role, _)| *role == Role::Processor)
        {
            match process.ended()? {
                None => {}
                Some(status) if NodeOutcome::from(status) == NodeOutcome::Well => return Ok(true),
                Some(status) => return Err(node_error(folder, *role, process, status)),
            }
        }
        Ok(false)
    }

    fn others_alive(&mut self) -> Result<()> {
        if let Some(server) = &mut self.server
            && let Some(status) = server.ended()?
        {
            bail!(
                "the fabric server ended with {status}; it said:\n{}",
                tail(&server.stderr)
            );
        }
        let folder = self.folder;
        for (role, process) in self
            .nodes
            .iter_mut()
            .filter(|(role, _)| *role != Role::Processor)
        {
            // One that left well has been told to, as the program's end nears.
            if let Some(status) = process.ended()?
                && NodeOutcome::from(status) != NodeOutcome::Well
            {
                return Err(node_error(folder, *role, process, status));
            }
        }
        Ok(())
    }

    fn log(&self, role: Role) -> String {
        let bytes = fs::read(log(self.folder, role.name())).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn node_error(folder: &Path, role: Role, process: &Process, status: ExitStatus) -> anyhow::Error {
    let how = left::describe(status);
    let said = tail(&process.stderr);
    let said = if said.is_empty() {
        said
    } else {
        format!("\nQEMU said:\n{said}")
    };
    let log = tail(&log(folder, role.name()));
    anyhow!("{}: {how}; its log ends:\n{log}{said}", role.name())
}
